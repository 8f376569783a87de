"""Broadcasts that neighbours have announced and that have not come: when to ask whom.

Nobody is asked while a parent in the tree may still bring it; a while after, the first that announced it is asked, and the
next one soon after that. Waiting times follow from measured round-trips. Asked first is who keeps its promises: a
neighbour that announces what it then does not send is asked last, and in the end its link is closed.

Who *offered* a broadcast waits for an answer, and counts on us for its receipt. It is asked, or told that it came another way
once it did: never before, since in the end it may be the one who is asked.

The table is bounded for each neighbour: what it announces beyond that is ignored, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from attrs import define, field

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import EagerPush
from p2pmesh.protocols.broadcast.send_window import SendWindow
from p2pmesh.protocols.broadcast.trees import FailurePressure
from p2pmesh.protocols.effects import DropLink, Effect, SendFrame
from p2pmesh.protocols.util.local_health import LocalHealth
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.fields import MAX_IDS_IN_LIST
from p2pmesh.wire.messages import GossipGraft, GossipIHave

SHORTEST = 0.2
LONGEST = 5.0
"""Seconds that a parent gets to bring what others have announced, and that who was asked gets to send it: as long as nearly
all acks take on that link. A parent that is gone is not waited for."""
UNKNOWN = 0.3
"""The same before any round-trip was measured."""
ASK_AGAIN = 3
"""Times that each neighbour is asked for one broadcast."""
MOST_BROKEN = 64
BROKEN_FOR = 10.0
"""Promises in a row that a neighbour may break, and seconds since the first: in less, it may be slow."""
ASK_UNREST = 0.5


@define(eq=False)
class _Awaited:
    size: int
    since: float
    parent: PeerId | None = None
    """Who was to bring it unasked."""
    announcers: dict[PeerId, int] = field(factory=dict)
    """And how often each was asked."""
    offerers: list[PeerId] = field(factory=list)
    """Those of them who wait for an answer."""
    waits_for: PeerId | None = None
    """Who is to bring it: a parent, or who was asked last."""
    was_asked: bool = False
    was_put_off: bool = False
    """Whether asking for it was, because it is us who lag."""


@define(eq=False)
class _Broken:
    since: float
    count: int = 0


@define
class AwaitedCounts:
    """What became of announcements, since the start."""

    asked: int = 0
    unkept: int = 0
    ignored: int = 0
    dropped: int = 0


class GraftScheduler:
    """What was announced and has not come, by id."""

    def __init__(
        self,
        config: BroadcastConfig,
        hops: EagerPush,
        unrest: FailurePressure,
        lag: LocalHealth,
        do: Callable[[Effect], None],
    ) -> None:
        self.counts: AwaitedCounts = AwaitedCounts()
        self._config = config
        self._hops = hops
        self._unrest = unrest
        self._lag = lag
        self._do = do
        self._entries: dict[str, _Awaited] = {}
        self._announced: dict[PeerId, int] = {}
        self._broken: dict[PeerId, _Broken] = {}
        self._timers: Timers[str] = Timers()
        self._to_ask: dict[PeerId, list[str]] = {}
        self.next_deadline: Callable[[], float] = self._timers.next_deadline
        """When `expire` wants to be called."""

    def __len__(self) -> int:
        return len(self._entries)

    def announced(
        self, link: SendWindow, message_id: str, heard: GossipIHave, parent: SendWindow | None, now: float
    ) -> None:
        """A neighbour has a broadcast that we lack. `parent` may be about to bring it; with None it is asked for at once."""
        peer = link.peer.peer_id
        if self._announced.get(peer, 0) >= self._config.announced:
            self.counts.ignored += 1
            return
        entry = self._entries.get(message_id)
        if entry is None:
            entry = self._entries[message_id] = _Awaited(heard.size, now)
        if peer not in entry.announcers:
            entry.announcers[peer] = 0
            self._announced[peer] = self._announced.get(peer, 0) + 1
        if heard.offer and peer not in entry.offerers:
            entry.offerers.append(peer)
        if entry.was_asked:
            return
        if parent is None:
            self._ask(message_id, entry, link, now)
        elif entry.waits_for is None:
            entry.waits_for = entry.parent = parent.peer.peer_id
            self._timers.set(message_id, now + _patience(parent) + self._lag.patience(now))

    def arrived(self, peer: PeerId, message_id: str, now: float) -> tuple[Iterable[PeerId], Iterable[PeerId]]:
        """It has come, from this neighbour. If that is the parent after all, nothing was wrong but our patience.

        Gives who else has it, and who of them has offered it and waits for an answer.
        """
        self._broken.pop(peer, None)
        entry, link = self._entries.get(message_id), self._hops.get(peer)
        if entry is not None and link is not None and entry.was_asked and entry.parent == peer:
            self._unrest.add(-ASK_UNREST, now)
            link.round_trip.sample(now - entry.since)
        self._forget(message_id)
        return ((), ()) if entry is None else (entry.announcers, [other for other in entry.offerers if other != peer])

    def keeps_promises(self, peer: PeerId) -> bool:
        """Whether this neighbour has sent what it was asked for, lately."""
        return peer not in self._broken

    def down(self, peer: PeerId, now: float) -> None:
        """The link has ended: what it was to bring is asked for elsewhere."""
        self._announced.pop(peer, None)
        self._broken.pop(peer, None)
        self._to_ask.pop(peer, None)
        for message_id, entry in list(self._entries.items()):
            entry.announcers.pop(peer, None)
            if peer in entry.offerers:
                entry.offerers.remove(peer)
            if entry.waits_for == peer or not entry.announcers:
                self._ask_next(message_id, entry, now)

    def expire(self, now: float) -> None:
        """Ask for what has not come."""
        for message_id in self._timers.pop_due(now):
            entry = self._entries[message_id]
            if self._lag.is_late and not entry.was_put_off:
                entry.was_put_off = True
                self._timers.set(message_id, now + UNKNOWN + self._lag.patience(now))
                continue
            self._unrest.add(ASK_UNREST, now)
            if entry.was_asked and entry.waits_for is not None:
                self._broke(entry.waits_for, now)
            self._ask_next(message_id, entry, now)

    def flush(self) -> None:
        """Send the questions: those to one neighbour in a frame."""
        if not self._to_ask:
            return
        to_ask, self._to_ask = self._to_ask, {}
        for peer, ids in to_ask.items():
            for start in range(0, len(ids), MAX_IDS_IN_LIST):
                self._do(SendFrame((peer,), GossipGraft(ids=tuple(ids[start : start + MAX_IDS_IN_LIST])), urgent=True))

    def _ask_next(self, message_id: str, entry: _Awaited, now: float) -> None:
        entry.waits_for = None
        peer = min(entry.announcers, key=lambda one: (entry.announcers[one], self._times_broken(one)), default=None)
        link = None if peer is None else self._hops.get(peer)
        if peer is None or link is None or entry.announcers[peer] >= ASK_AGAIN:
            self.counts.dropped += 1
            self._forget(message_id)
            return
        self._ask(message_id, entry, link, now)

    def _ask(self, message_id: str, entry: _Awaited, link: SendWindow, now: float) -> None:
        peer = link.peer.peer_id
        self.counts.asked += 1
        self._to_ask.setdefault(peer, []).append(message_id)
        wait = (_patience(link) + entry.size / self._config.slowest_link) * 2 ** entry.announcers[peer]
        wait += self._lag.patience(now)
        entry.announcers[peer] += 1
        entry.waits_for, entry.was_asked = peer, True
        self._timers.set(message_id, now + wait)

    def _times_broken(self, peer: PeerId) -> int:
        broken = self._broken.get(peer)
        return 0 if broken is None else broken.count

    def _broke(self, peer: PeerId, now: float) -> None:
        """It was asked for what it had announced, and did not send it in time."""
        self.counts.unkept += 1
        broken = self._broken.setdefault(peer, _Broken(now))
        broken.count += 1
        if broken.count >= MOST_BROKEN and now - broken.since >= BROKEN_FOR and self._hops.get(peer) is not None:
            broken.since = math.inf  # said once
            self._do(DropLink(peer, "it announces broadcasts that it does not send", blame=True))

    def _forget(self, message_id: str) -> None:
        entry = self._entries.pop(message_id, None)
        if entry is None:
            return
        self._timers.cancel(message_id)
        for peer in entry.announcers:
            left = self._announced[peer] - 1
            if left:
                self._announced[peer] = left
            else:
                del self._announced[peer]


def _patience(link: SendWindow) -> float:
    return min(max(link.round_trip.expected(UNKNOWN), SHORTEST), LONGEST)
