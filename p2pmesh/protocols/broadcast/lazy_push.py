"""Lazy push: announcements by lazy links, and grafts for what neighbours have announced and nobody brings.

*Announcements* (`gossip_ihave`, several ids in a frame) wait for company for `announce_delay`, jittered: a neighbour
has the broadcast from its parent by then, nearly always. Of two neighbours the slower one then knows that the other
has it, and says nothing. While links fail, somebody may be waiting to hear of it, so they wait for half a round-trip
only.

*Grafts.* Nobody is asked while a parent in the tree may still bring what was announced; a while after, the first that
announced it is asked, and the next one soon after that. Waiting times follow from measured round-trips. A neighbour
that time and again does not send what it announces may be slow, or lie: nothing is expected of what it announces until
something comes from there. One that *offered* a broadcast waits for an answer,
and counts on us for its receipt. It is asked, or told that the broadcast came another way once it did: never before,
since in the end it may be the one that is asked.

In go messages with their lazy links, and neighbours' announcements; out come announcements to send, and `Ask` (graft
this from that neighbour).
State: ids to announce, at most 256 for each link, and `BroadcastConfig.announced` awaited ids for each neighbour that
announced them; what it announces beyond that is ignored, and counted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from attrs import asdict, define, field

from p2pmesh.config import BroadcastConfig, MeshConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import FailurePressure, SendWindow
from p2pmesh.protocols.broadcast.message_store import NOBODY, BroadcastTimers, Due, MessageStore, StoredMessage
from p2pmesh.protocols.util.scores import Scores
from p2pmesh.wire.fields import MAX_IDS_IN_LIST
from p2pmesh.wire.messages import GossipGraft, GossipIHave

UNKNOWN_TRIP = 0.2
"""Seconds that a round-trip is taken for before one was measured: the far end of a continent and back."""
HURRY_ABOVE = 0.25
"""Failure pressure above which announcements hurry: a link was lost within the last 14 s, say."""
SHORTEST_WAIT = 0.2
LONGEST_WAIT = 5.0
"""Seconds that a parent gets to bring what others have announced, and a neighbour that was asked to send it: as long
as nearly all acks take on that link. A parent that is gone is not waited for."""
UNKNOWN_WAIT = 0.3
"""The same before any round-trip was measured."""
MAX_ASKS = 3
"""Times that each neighbour is asked for one broadcast."""
MAX_BROKEN = 64
BROKEN_FOR = 10.0
"""Promises in a row that a neighbour may break, and seconds since the first: in less, it may be slow. What it announces
after that is ignored."""
GRAFT_PRESSURE = 0.5
"""What an announced broadcast that stays away adds to the failure pressure."""

_ANNOUNCE = (Due.ANNOUNCE, NOBODY, "")


class LazyPush:
    """What is to be announced to each neighbour."""

    def __init__(
        self,
        config: BroadcastConfig,
        rng: random.Random,
        timers: BroadcastTimers,
        store: MessageStore,
        pressure: FailurePressure,
    ) -> None:
        self.announced: int = 0
        """Ids announced, since the start."""
        self._config = config
        self._rng = rng
        self._timers = timers
        self._store = store
        self._pressure = pressure
        self._waiting: dict[PeerId, list[StoredMessage]] = {}

    def add(self, message: StoredMessage, links: Sequence[SendWindow], now: float) -> None:
        """Announce it to these neighbours, soon."""
        if not self._waiting:
            delay = self._config.announce_delay
            if self._pressure.level(now) >= HURRY_ABOVE:
                delay = min(delay, max(link.round_trip.mean(UNKNOWN_TRIP) for link in links) / 2)
            self._timers.set(_ANNOUNCE, now + delay * self._rng.uniform(0.5, 1.0))
        for link in links:
            messages = self._waiting.setdefault(link.peer.peer_id, [])
            messages.append(message)
            if len(messages) >= MAX_IDS_IN_LIST:
                self._timers.set(_ANNOUNCE, now)

    def down(self, peer: PeerId) -> None:
        """Forget a link that has ended."""
        self._waiting.pop(peer, None)
        if not self._waiting:
            self._timers.cancel(_ANNOUNCE)

    def pop_due(self, now: float) -> list[tuple[tuple[PeerId, ...], GossipIHave]]:
        """What waits, for those who are not known to have it by now."""
        waiting, self._waiting = self._waiting, {}
        alike: dict[tuple[str, ...], tuple[list[PeerId], list[StoredMessage]]] = {}
        for peer, messages in waiting.items():
            lacked = [one for one in messages if self._store.get(one.data.id) is one and not one.is_held_by(peer)]
            if lacked:
                alike.setdefault(tuple([one.data.id for one in lacked]), ([], lacked))[0].append(peer)
        frames = []
        for peers, lacked in alike.values():
            self.announced += len(peers) * len(lacked)
            frames += [
                (tuple(peers), announcement(lacked[start : start + MAX_IDS_IN_LIST], now))
                for start in range(0, len(lacked), MAX_IDS_IN_LIST)
            ]
        return frames


def announcement(messages: Sequence[StoredMessage], now: float, *, offer: bool = False) -> GossipIHave:
    """Say that these are here."""
    return GossipIHave(
        ids=tuple([message.data.id for message in messages]),
        size=max(message.size for message in messages),
        hops=max(message.hops for message in messages),
        age=max(message.age(now) for message in messages),
        offer=offer,
    )


# --- what is announced to us ------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """Ask this neighbour for this broadcast."""

    peer: PeerId
    message_id: str


GraftDecisions: TypeAlias = list[Ask]


def grafts_of(decisions: GraftDecisions) -> list[tuple[PeerId, GossipGraft]]:
    """Ask for them, of one neighbour in one frame."""
    ids_of: dict[PeerId, list[str]] = {}
    for peer, message_id in decisions:
        ids_of.setdefault(peer, []).append(message_id)
    return [
        (peer, GossipGraft(ids=tuple(ids[start : start + MAX_IDS_IN_LIST])))
        for peer, ids in ids_of.items()
        for start in range(0, len(ids), MAX_IDS_IN_LIST)
    ]


@define(eq=False)
class _Awaited:
    size: int
    """Of its payload, by the least that was said."""
    since: float
    parent: PeerId | None = None
    """The neighbour that was to bring it unasked."""
    announcers: dict[PeerId, int] = field(factory=dict)
    """And how often each was asked."""
    offerers: list[PeerId] = field(factory=list)
    """Those of them that wait for an answer."""
    waits_for: PeerId | None = None
    """The neighbour that is to bring it: a parent, or the one asked last."""
    was_asked: bool = False
    waits_since: float = 0.0


@define(eq=False)
class _Broken:
    since: float
    count: int = 0
    is_told: bool = False


@define
class GraftCounts:
    """What became of announcements, since the start."""

    asked: int = 0
    unkept: int = 0
    ignored: int = 0
    dropped: int = 0


class GraftScheduler:
    """What was announced and has not come, by id: when to ask whom."""

    def __init__(
        self,
        config: MeshConfig,
        timers: BroadcastTimers,
        links: Mapping[PeerId, SendWindow],
        pressure: FailurePressure,
        scores: Scores,
    ) -> None:
        self.counts: GraftCounts = GraftCounts()
        self._config = config.broadcast
        self._largest = config.max_payload
        self._timers = timers
        self._links = links
        self._pressure = pressure
        self._scores = scores
        self._entries: dict[str, _Awaited] = {}
        self._announced: dict[PeerId, int] = {}
        self._broken: dict[PeerId, _Broken] = {}

    def snapshot(self) -> dict[str, int]:
        return {"awaited": len(self._entries), **asdict(self.counts)}

    def announced(
        self, link: SendWindow, message_id: str, heard: GossipIHave, parent: SendWindow | None, now: float
    ) -> GraftDecisions:
        """Await a broadcast that a neighbour has: from `parent`, if there is one; else it is asked for at once."""
        peer = link.peer.peer_id
        if self._announced.get(peer, 0) >= self._config.announced or self._is_unreliable(peer, now):
            self.counts.ignored += 1
            return []
        entry = self._entries.get(message_id)
        if entry is None:
            entry = self._entries[message_id] = _Awaited(min(heard.size, self._largest), now)
        elif heard.size < entry.size:  # whoever told of more may lie, so as to be waited for
            entry.size = heard.size
            asked = self._links.get(entry.waits_for) if entry.was_asked and entry.waits_for is not None else None
            if asked is not None:
                self._wait(message_id, entry, asked, entry.waits_since)
        if peer not in entry.announcers:
            entry.announcers[peer] = 0
            self._announced[peer] = self._announced.get(peer, 0) + 1
        if heard.offer and peer not in entry.offerers:
            entry.offerers.append(peer)
        if entry.was_asked:
            return []
        if parent is None or parent is link:
            return self._ask(message_id, entry, link, now)
        if entry.waits_for is None:
            entry.waits_for = entry.parent = parent.peer.peer_id
            self._timers.wait((Due.GRAFT, NOBODY, message_id), now + _patience(parent))
        return []

    def awaits(self, peer: PeerId, message_id: str) -> bool:
        """Whether this neighbour has announced a broadcast that is awaited."""
        entry = self._entries.get(message_id)
        return entry is not None and peer in entry.announcers

    def arrived(self, peer: PeerId, message_id: str, now: float) -> tuple[Sequence[PeerId], Sequence[PeerId]]:
        """Await a broadcast no more, which this neighbour has sent.

        If that is the parent after all, nothing was wrong but our patience. Returns the neighbours that have it, too,
        and those of them that have offered it and wait for an answer.
        """
        self._broken.pop(peer, None)
        entry, link = self._entries.get(message_id), self._links.get(peer)
        if entry is None:
            return (), ()
        if link is not None and entry.was_asked and entry.parent == peer:
            self._pressure.add(-GRAFT_PRESSURE, now)
            link.round_trip.sample(now - entry.since)
        self._forget(message_id)
        return list(entry.announcers), [other for other in entry.offerers if other != peer]

    def refused(self, peer: PeerId, message_id: str, now: float) -> GraftDecisions:
        """Await a broadcast from others, since what this neighbour has sent was refused: theirs may be acceptable."""
        entry = self._entries.get(message_id)
        if entry is None:
            return []
        return self._withdraw(peer, message_id, entry, now)

    def down(self, peer: PeerId, now: float) -> GraftDecisions:
        """Ask others for what a neighbour was to bring whose link has ended."""
        self._broken.pop(peer, None)
        decisions: GraftDecisions = []
        for message_id, entry in list(self._entries.items()):
            decisions += self._withdraw(peer, message_id, entry, now)
        return decisions

    def expire(self, message_id: str, now: float) -> GraftDecisions:
        """Ask for what has not come."""
        entry = self._entries[message_id]
        self._pressure.add(GRAFT_PRESSURE, now)
        if entry.was_asked and entry.waits_for is not None:
            self.counts.unkept += 1
            self._broken.setdefault(entry.waits_for, _Broken(now)).count += 1
        return self._ask_next(message_id, entry, now)

    def _withdraw(self, peer: PeerId, message_id: str, entry: _Awaited, now: float) -> GraftDecisions:
        """Expect it from this neighbour no more."""
        if entry.announcers.pop(peer, None) is not None:
            self._count_down(peer)
        if peer in entry.offerers:
            entry.offerers.remove(peer)
        if entry.waits_for == peer or not entry.announcers:
            return self._ask_next(message_id, entry, now)
        return []

    def _ask_next(self, message_id: str, entry: _Awaited, now: float) -> GraftDecisions:
        entry.waits_for = None
        peer = min(entry.announcers, key=entry.announcers.__getitem__, default=None)
        link = None if peer is None else self._links.get(peer)
        if peer is None or link is None or entry.announcers[peer] >= MAX_ASKS:
            self.counts.dropped += 1
            self._forget(message_id)
            return []
        return self._ask(message_id, entry, link, now)

    def _ask(self, message_id: str, entry: _Awaited, link: SendWindow, now: float) -> GraftDecisions:
        peer = link.peer.peer_id
        self.counts.asked += 1
        entry.announcers[peer] += 1
        entry.waits_for, entry.was_asked, entry.waits_since = peer, True, now
        self._wait(message_id, entry, link, now)
        return [Ask(peer, message_id)]

    def _wait(self, message_id: str, entry: _Awaited, link: SendWindow, since: float) -> None:
        """Expect it of the neighbour that is asked."""
        wait = _patience(link) + entry.size / self._config.slowest_link
        asked_before = entry.announcers.get(link.peer.peer_id, 1) - 1
        self._timers.wait((Due.GRAFT, NOBODY, message_id), since + wait * 2**asked_before)

    def _is_unreliable(self, peer: PeerId, now: float) -> bool:
        """Whether it has sent nothing of what it announced for long, though it was asked for much."""
        broken = self._broken.get(peer)
        if broken is None or broken.count < MAX_BROKEN or now - broken.since < BROKEN_FOR:
            return False
        if not broken.is_told:
            broken.is_told = True
            self._scores.add(peer, "failures", now)
        return True

    def _forget(self, message_id: str) -> None:
        entry = self._entries.pop(message_id)
        self._timers.cancel((Due.GRAFT, NOBODY, message_id))
        for peer in entry.announcers:
            self._count_down(peer)

    def _count_down(self, peer: PeerId) -> None:
        left = self._announced[peer] - 1
        if left:
            self._announced[peer] = left
        else:
            del self._announced[peer]


def _patience(link: SendWindow) -> float:
    return min(max(link.round_trip.expected(UNKNOWN_WAIT), SHORTEST_WAIT), LONGEST_WAIT)
