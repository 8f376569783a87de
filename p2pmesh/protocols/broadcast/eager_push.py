"""Eager push: copies and offers to each neighbour, with windows, acks and retries; and the acks that we owe.

In go messages with the links that they are meant for, and the neighbours' acks; out come decisions: `Send`, `Settled`
(a hop is decided, which the receipts must know), `CloseLink`.

On each link there is a window of unacknowledged messages (TCP's idea) and a backlog of those that wait for it. Each
is on its way as a copy, or as an *offer*: an announcement that has to be answered, by a graft or an ack. Publishers
wait for the slowest link that moves. One for which something has waited for longer than `slow_patience`, while others
acknowledge at once what came later, is closed; but nothing is while all are slow, or we are.

State: for each link at most `window` messages and `window_bytes` on their way and `backlog` that wait, and fewer than
`MAX_ACKS_WAITING` acks that we owe it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from attrs import asdict, define, field

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import BroadcastTimers, Due, StoredMessage
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.util.latency import LocalHealth, RoundTripTime
from p2pmesh.protocols.util.limits import FRAME, READ
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.protocols.util.window import Window
from p2pmesh.wire.messages import GossipAck, Message

RETRY_PRESSURE = 0.25
"""What a retry adds to the failure pressure."""
LOST_PRESSURE = 1.0
CLOSED_PRESSURE = 0.5
"""What the end of a link adds, if it fell silent and if it was closed."""
SLUGGISH_AFTER = 0.5
"""Seconds that acks take longer than the shortest ever seen, because so much is before them."""
FEW = 16
"""Broadcasts that may be on their way to a neighbour whose acks take long: what is more waits here, where it is spared
if the neighbour gets it from others."""
SLUGGISH_WITH = 2
"""Unacknowledged broadcasts at least: a single one may be a lost frame."""
MAX_ACKS_WAITING = 16
"""Acks that wait for one neighbour: a quarter of its window, by default."""
HALF_LIFE = 7.0
"""Seconds in which the failure pressure halves."""
MAX_PRESSURE = 16.0
"""More failures than this count no more."""

ID_BYTES = 16
"""Of the id of a broadcast in an ack."""


def price_of(message: Message) -> float:
    """Units that a frame costs which brings nothing, where the reader of the link has not counted its bytes."""
    if not isinstance(message, GossipAck):
        return FRAME
    ids = (
        len(message.new) + len(message.had) + len(message.prune) + 2 * len(message.refused)
    )  # receipts see them too
    return FRAME + ids * ID_BYTES / READ


class FailurePressure:
    """How much goes wrong around us: a number that grows with each failure and halves every 7 s.

    A tree is thin: where it is broken, what is under way waits for somebody to notice. So while links fail, each
    broadcast goes to as many links more, beyond the tree, as failures count; to all lazy ones at the most. When all
    is well it keeps to the tree.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._at = 0.0

    def add(self, weight: float, now: float) -> None:
        """Note that something went wrong; or, with a weight below zero, that it had not after all."""
        self._level = max(0.0, min(self.level(now) + weight, MAX_PRESSURE))
        self._at = now

    def link_ended(self, now: float, *, was_lost: bool) -> None:
        """Note the end of a link."""
        self.add(LOST_PRESSURE if was_lost else CLOSED_PRESSURE, now)

    def level(self, now: float) -> float:
        if not self._level:
            return 0.0
        return self._level * math.exp2((self._at - now) / HALF_LIFE)


# --- one link ---------------------------------------------------------------------------------------------------------


@define(eq=False)
class InFlight:
    """One broadcast on one link, sent and not acknowledged."""

    message: StoredMessage
    sent_at: float
    offered: bool
    attempts: int = 1


class SendWindow:
    """One link's window and backlog. A broadcast is in at most one of them."""

    def __init__(self, peer: RemotePeer, config: BroadcastConfig, bit: int = 1) -> None:
        self.peer = peer
        self.bit: int = bit
        """Stands for this link in sets of links that are numbers: a power of two, unlike all other links' of now."""
        self.round_trip: RoundTripTime = RoundTripTime()
        self.is_given_up: bool = False
        self.heard_at: float = -math.inf
        """When it acknowledged something last."""
        self.heard_until: float = -math.inf
        """When what it acknowledged was sent, the latest of it: what was sent before has been there, or was lost."""
        self.in_flight: Window[str, InFlight] = Window(config.window, config.window_bytes)
        self.backlog: dict[str, tuple[StoredMessage, float]] = {}
        """What waits, and since when."""
        self._backlog_bytes = 0
        self._config = config

    @property
    def is_full(self) -> bool:
        """Whether more wait for its window than should."""
        return len(self.backlog) >= self._config.publish_room or self._backlog_bytes >= self._config.window_bytes

    def is_sluggish(self, now: float) -> bool:
        """Whether its acks take so long that more would only make them take longer.

        What was sent before something that is acknowledged was lost, since links keep their order; that is not late.
        """
        if len(self.in_flight) < SLUGGISH_WITH:
            return False
        for entry in self.in_flight.values():
            if entry.sent_at > self.heard_until:
                return self.is_long(now - entry.sent_at)
        return False

    def is_long(self, seconds: float) -> bool:
        """Whether an ack that takes so long has waited for much else."""
        return seconds > SLUGGISH_AFTER + 2 * min(self.round_trip.shortest, SLUGGISH_AFTER)

    def is_stalled(self, now: float) -> bool:
        """Whether it has acknowledged nothing for so long that nobody should wait for it."""
        if not self.in_flight:
            return False
        return now - max(self.heard_at, self.in_flight.oldest().sent_at) > self._config.slow_patience

    def patience(self) -> float:
        """Seconds that an ack may take because the link is slow or its peer busy, on top of the usual wait for one."""
        return self.in_flight.bytes / self._config.slowest_link + self.round_trip.expected()

    def __contains__(self, message_id: str) -> bool:
        return message_id in self.in_flight or message_id in self.backlog

    def messages(self) -> list[StoredMessage]:
        """All that is on its way or waits."""
        entries = map(self.in_flight.get, self.in_flight)
        return [*(entry.message for entry in entries if entry is not None), *(one for one, _ in self.backlog.values())]

    def launch(self, message: StoredMessage, now: float, *, offered: bool = False) -> bool:
        """Take it into the window, if there is room and nothing waits before it."""
        size = 0 if offered else message.size
        if self.backlog or not self._has_room(size, now):
            return False
        self._start(message, size, now, offered=offered)
        return True

    def park(self, message: StoredMessage, now: float) -> StoredMessage | None:
        """Let it wait for the window. Returns the oldest that waits if that has to go for it."""
        dropped = None
        if len(self.backlog) >= self._config.backlog:
            dropped, _ = next(iter(self.backlog.values()))
            self.unpark(dropped.data.id)
        self.backlog[message.data.id] = message, now
        self._backlog_bytes += message.size
        return dropped

    def relaunch(self, now: float) -> InFlight | None:
        """Move the oldest that waits into the window, if there is room."""
        message, _ = next(iter(self.backlog.values()), (None, now))
        if message is None or not self._has_room(message.size, now):
            return None
        self.unpark(message.data.id)
        return self._start(message, message.size, now, offered=False)

    def _has_room(self, size: int, now: float) -> bool:
        """Whether one more may be on its way: far fewer than the window holds, if what is comes late."""
        return self.in_flight.has_room(size) and (len(self.in_flight) < FEW or not self.is_sluggish(now))

    def unpark(self, message_id: str) -> bool:
        """Take it out of the backlog; False if it is not there."""
        message, _ = self.backlog.pop(message_id, (None, 0.0))
        if message is None:
            return False
        self._backlog_bytes -= message.size
        return True

    def settle(self, message_id: str) -> None:
        """Be done with it, wherever it is."""
        if self.in_flight.pop(message_id) is None:
            self.unpark(message_id)

    def heard(self, entry: InFlight | None, now: float) -> None:
        """Note an ack for something that is on its way; for None, it is for something that waits.

        Which attempt an ack is for is only sure if there was but one (Karn), or if nothing that was sent later was
        acknowledged before, since links keep their order: then it was merely late, and how late must be learned.
        """
        self.heard_at = now
        if entry is not None and (entry.attempts == 1 or entry.sent_at >= self.heard_until):
            self.heard_until = max(self.heard_until, entry.sent_at)
            self.round_trip.sample(now - entry.sent_at)

    def _start(self, message: StoredMessage, size: int, now: float, *, offered: bool) -> InFlight:
        entry = InFlight(message, now, offered)
        self.in_flight.add(message.data.id, entry, size)
        return entry


# --- all links --------------------------------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send the payload to these neighbours, or offer it to them: announce it, to be answered."""

    peers: tuple[PeerId, ...]
    message: StoredMessage
    offered: bool


class Settled(NamedTuple):
    """The hop to this neighbour is decided: it took the message as new, or not."""

    message: StoredMessage
    peer: PeerId
    adopted: bool
    is_there: bool = False
    """Whether it said that it has it."""


class CloseLink(NamedTuple):
    """This neighbour is given up."""

    peer: PeerId
    reason: str


PushDecision: TypeAlias = Send | Settled | CloseLink
PushDecisions: TypeAlias = list[PushDecision]


@define
class EagerPushCounts:
    """What hops came to, since the start."""

    sent: int = 0
    offered: int = 0
    retried: int = 0
    acked: int = 0
    given_up: int = 0
    backlog_dropped: int = 0
    closed: int = 0
    strays: int = 0


class EagerPush:
    """The links to neighbours that acknowledge, and every broadcast on its way over one of them."""

    def __init__(
        self,
        config: BroadcastConfig,
        rng: random.Random,
        timers: BroadcastTimers,
        pressure: FailurePressure,
        health: LocalHealth,
    ) -> None:
        self.links: dict[PeerId, SendWindow] = {}
        self.counts: EagerPushCounts = EagerPushCounts()
        self._config = config
        self._rng = rng
        self._timers = timers
        self._pressure = pressure
        self._health = health
        self._backoff = Backoff(config.ack_timeout, config.max_ttl)

    def snapshot(self) -> dict[str, int]:
        """What is on its way and what waits, and what hops came to."""
        links = self.links.values()
        in_flight, backlog = sum(len(link.in_flight) for link in links), sum(len(link.backlog) for link in links)
        return {"in_flight": in_flight, "backlog": backlog, **asdict(self.counts)}

    def is_congested(self, last: str, now: float) -> bool:
        """Whether a new broadcast of ours should wait.

        It does while there is too much to do on any link, and the last one of ours, by its id, has not been taken
        everywhere: so of much that others send, everybody gets a turn. A link that does not move while others do is not
        waited for.
        """
        links = self.links.values()
        moving = [link for link in links if not link.is_stalled(now)] or list(links)
        return any(last in link for link in moving) and any(link.is_full or link.is_sluggish(now) for link in moving)

    def is_overloaded(self, now: float) -> bool:
        """Whether there is so much to do that nothing should be done twice."""
        return self._health.is_poor(now) or any(link.is_sluggish(now) for link in self.links.values())

    def up(self, peer: RemotePeer) -> SendWindow:
        """Begin with a link that is open now."""
        taken = 0
        for link in self.links.values():
            taken |= link.bit
        link = self.links[peer.peer_id] = SendWindow(peer, self._config, ~taken & (taken + 1))
        return link

    def down(self, peer: PeerId) -> PushDecisions:
        """End a link: nothing on it will be acknowledged."""
        messages = self.links.pop(peer).messages()
        for message in messages:
            self._timers.cancel((Due.RETRY, peer, message.data.id))
        return [Settled(message, peer, False) for message in messages]

    # --- sending ------------------------------------------------------------------------------------------------------

    def push(
        self, message: StoredMessage, eager: Sequence[SendWindow], offered: Sequence[SendWindow], now: float
    ) -> PushDecisions:
        """Send copies over these links and offers over those, or let it wait for their windows."""
        decisions: PushDecisions = []
        for links, is_offer in ((eager, False), (offered, True)):
            peers: list[PeerId] = []
            for link in links:
                if self._launch(link, message, now, offered=is_offer):
                    peers.append(link.peer.peer_id)
                else:
                    decisions += self._park(link, message, now)
            if peers:
                decisions.append(self._send(tuple(peers), message, offered=is_offer))
        return decisions

    def serve(self, link: SendWindow, message: StoredMessage, now: float) -> PushDecisions:
        """Send a copy to a neighbour that asks for it, unless one is on its way there already."""
        peer, message_id = link.peer.peer_id, message.data.id
        entry = link.in_flight.get(message_id)
        if entry is not None:
            if not entry.offered:
                return []
            link.heard(entry, now)  # a graft answers an offer
            self._timers.cancel((Due.RETRY, peer, message_id))
        link.settle(message_id)
        if self._launch(link, message, now, offered=False):
            return [self._send((peer,), message, offered=False)]
        return [*self._park(link, message, now), *self._pump(link, now)]  # an offer may have left its place

    def retry(self, peer: PeerId, message_id: str, now: float) -> PushDecisions:
        """Repeat what was not acknowledged in time, up to a limit."""
        link = self.links.get(peer)
        entry = None if link is None else link.in_flight.get(message_id)
        if link is None or entry is None:
            return []
        self._pressure.add(RETRY_PRESSURE, now)
        if entry.attempts > self._config.retries:
            self.counts.given_up += 1
            return self._settle(link, entry.message, adopted=False, now=now)
        self.counts.retried += 1
        entry.attempts += 1
        self._await_ack(link, message_id, entry.attempts, now)
        return [self._send((peer,), entry.message, offered=entry.offered)]

    def judge(self, now: float) -> PushDecisions:
        """See which links are left behind by others."""
        decisions: PushDecisions = []
        latest = max([link.heard_until for link in self.links.values()], default=-math.inf) - self._config.slow_patience
        for link in self.links.values():
            if link.is_full and not link.is_given_up and self._is_left_behind(link, latest, now):
                self.counts.closed += 1
                link.is_given_up = True
                reason = f"too slow: behind for {self._config.slow_patience:g} s"
                decisions.append(CloseLink(link.peer.peer_id, reason))
        return decisions

    def _is_left_behind(self, link: SendWindow, latest: float, now: float) -> bool:
        """Whether others are far better off than a link that is full: else there is too much to do for all, or us."""
        _, waits_since = next(iter(link.backlog.values()))
        if waits_since >= latest:  # seen at once, since every input asks while we wait
            return False
        others = [other for other in self.links.values() if other is not link]
        if self._health.is_poor(now) or any(other.is_long(other.round_trip.mean(0.0)) for other in others):
            return False
        return any(other.heard_until > waits_since + self._config.slow_patience for other in others)

    # --- what neighbours say ------------------------------------------------------------------------------------------

    def acked(self, link: SendWindow, message: StoredMessage, *, new: bool, now: float) -> PushDecisions:
        """Take an ack, which may be late. One that was never asked for changes nothing: then there is no decision."""
        message_id = message.data.id
        if message_id in link:
            link.heard(link.in_flight.get(message_id), now)
        elif message.is_held_by(link.peer.peer_id):
            return []
        message.held_by(link.peer.peer_id)
        self.counts.acked += 1
        return self._settle(link, message, adopted=new, now=now, is_there=True)

    def refused(self, link: SendWindow, message: StoredMessage, now: float) -> PushDecisions:
        """Take it that a neighbour will not have it, so that it need not be sent."""
        message.held_by(link.peer.peer_id)
        return self._settle(link, message, adopted=False, now=now) if message.data.id in link else []

    def crossed(self, link: SendWindow, message: StoredMessage, now: float) -> PushDecisions:
        """Take a neighbour's copy or announcement for an ack if ours is on its way there; else there is no decision.

        Then neither needs an ack. If ours is lost, the neighbour sends again and finds none on its way.
        """
        if message.data.id not in link.in_flight:
            return []
        message.held_by(link.peer.peer_id)
        self.counts.acked += 1
        return self._settle(link, message, adopted=False, now=now, is_there=True)

    def spare(self, link: SendWindow, message: StoredMessage) -> PushDecisions:
        """Note that a neighbour turned out to have it: it need not be sent, unless it is on its way."""
        is_news = message.parent is None and not message.is_held_by(link.peer.peer_id)
        message.held_by(link.peer.peer_id)
        if link.unpark(message.data.id) or is_news:
            return [Settled(message, link.peer.peer_id, False, is_there=True)]
        return []

    def give_up(self, message: StoredMessage, now: float) -> PushDecisions:
        """Stop sending a message: its time is over, or there is no room for it."""
        decisions: PushDecisions = []
        for link in self.links.values():
            if message.data.id in link:
                self.counts.given_up += 1
                decisions += self._settle(link, message, adopted=False, now=now)
        return decisions

    def stray(self) -> None:
        """Count a question for what is not here, or was sent there often enough."""
        self.counts.strays += 1

    # --- what follows -------------------------------------------------------------------------------------------------

    def _launch(self, link: SendWindow, message: StoredMessage, now: float, *, offered: bool) -> bool:
        if not link.launch(message, now, offered=offered):
            return False
        self._await_ack(link, message.data.id, 1, now)
        return True

    def _park(self, link: SendWindow, message: StoredMessage, now: float) -> PushDecisions:
        decisions: PushDecisions = []
        dropped = link.park(message, now)
        if dropped is not None:
            self.counts.backlog_dropped += 1
            decisions.append(Settled(dropped, link.peer.peer_id, False))
        if link.is_full:
            decisions += self.judge(now)
        return decisions

    def _await_ack(self, link: SendWindow, message_id: str, attempts: int, now: float) -> None:
        wait = self._backoff.delay(attempts, self._rng) + link.patience()
        self._timers.wait((Due.RETRY, link.peer.peer_id, message_id), now + wait)

    def _settle(
        self, link: SendWindow, message: StoredMessage, *, adopted: bool, now: float, is_there: bool = False
    ) -> PushDecisions:
        """Decide a hop, which makes room for the next."""
        peer, message_id = link.peer.peer_id, message.data.id
        self._timers.cancel((Due.RETRY, peer, message_id))
        link.settle(message_id)
        return [Settled(message, peer, adopted, is_there), *self._pump(link, now)]

    def _pump(self, link: SendWindow, now: float) -> PushDecisions:
        """Let what waits take the room in the window."""
        decisions: PushDecisions = []
        while (entry := link.relaunch(now)) is not None:
            self._await_ack(link, entry.message.data.id, 1, now)
            decisions.append(self._send((link.peer.peer_id,), entry.message, offered=entry.offered))
        return decisions

    def _send(self, peers: tuple[PeerId, ...], message: StoredMessage, *, offered: bool) -> Send:
        if offered:
            self.counts.offered += len(peers)
        else:
            self.counts.sent += len(peers)
        return Send(peers, message, offered)


# --- what we owe to neighbours ----------------------------------------------------------------------------------------


class AckKind(Enum):
    """What a neighbour's copy or offer was worth. `PRUNE` asks not to be sent its origin's broadcasts."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__

    NEW = "new"
    HAD = "had"
    PRUNE = "prune"


@define(eq=False)
class _Waiting:
    due: float
    kinds: dict[str, AckKind] = field(factory=dict)


class HopAcks:
    """Acks that we owe to each neighbour, several in a frame.

    After a pause the first ack goes at once, so that a lone broadcast is not held up; what follows within `ack_delay`
    waits for company, unless a copy goes to the same neighbour, or so many wait that its window may be running out.
    """

    def __init__(self, delay: float, timers: BroadcastTimers) -> None:
        self._delay = delay
        self._timers = timers
        self._waiting: dict[PeerId, _Waiting] = {}
        self._sent_at: dict[PeerId, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, peer: PeerId, message_id: str, kind: AckKind, now: float) -> None:
        """Acknowledge this, soon. What is said last of a broadcast counts."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            due = max(now, self._sent_at.get(peer, -math.inf) + self._delay)
            waiting = self._waiting[peer] = _Waiting(due)
            if due > now:
                self._timers.set((Due.ACKS, peer, ""), due)
        waiting.kinds[message_id] = kind
        if len(waiting.kinds) >= MAX_ACKS_WAITING:
            waiting.due = now

    def go_along(self, peers: Iterable[PeerId], now: float) -> None:
        """Let go what these neighbours are to be told, since something goes to them anyway."""
        for peer in peers:
            waiting = self._waiting.get(peer)
            if waiting is not None:
                waiting.due = now

    def down(self, peer: PeerId) -> None:
        """Forget a link that has ended."""
        self._waiting.pop(peer, None)
        self._sent_at.pop(peer, None)
        self._timers.cancel((Due.ACKS, peer, ""))

    def pop_due(self, now: float) -> list[tuple[PeerId, GossipAck]]:
        """What is to be sent now."""
        frames = []
        for peer in [peer for peer, waiting in self._waiting.items() if waiting.due <= now]:
            frames.append((peer, _ack(self._waiting.pop(peer).kinds)))
            self._sent_at[peer] = now
            self._timers.cancel((Due.ACKS, peer, ""))
        return frames


def _ack(kinds: dict[str, AckKind]) -> GossipAck:
    ids = {kind: tuple([message_id for message_id, one in kinds.items() if one is kind]) for kind in AckKind}
    return GossipAck(new=ids[AckKind.NEW], had=ids[AckKind.HAD], prune=ids[AckKind.PRUNE])
