"""The way of receipts from peer to peer: many in one message, over a link or a route, repeated until they are noted.

A message with receipts has a number, and who gets it answers with that number: it is noted, but for those broadcasts that
it does not count for the sender. What is told is asked for (`write`) in the moment it leaves. A peer that was told nothing
for a while is told at once; what follows within `coalesce` goes along in one message, and answers wait longer, so that they
cost next to no messages of their own. How long answers take is measured, and nothing is repeated sooner.

Who restarts forgets what it was told, so each process draws a number, its epoch. A neighbour is told nothing before its
epoch is known, and what goes over a route names the epoch that it is meant for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import islice
from typing import Protocol, TypeAlias

from attrs import define, field

from p2pmesh.config import ReceiptsConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effect, Notify, SendFrame
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import ReturnPath, Route, RouteReply
from p2pmesh.protocols.util.rtt import RoundTripTime
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.wire.fields import MAX_RECEIPTS
from p2pmesh.wire.messages import GossipReceipts, Receipt

MOST_ROUTES = 32
"""Under way at once; more wait."""

MOST_TIMED = 64
"""Messages to one peer whose answers are timed."""


class Write(Protocol):
    """What a peer is to be told of a broadcast now; None for nothing."""

    def __call__(self, peer: PeerId, message_id: str) -> Receipt | None: ...


@define
class OutboxCounts:
    """What went over links and routes, since the start."""

    sent: int = 0
    resent: int = 0
    routed: int = 0
    unrouted: int = 0


@define(eq=False)
class _Link:
    is_verified: bool
    epoch: int | None = None


@define(eq=False)
class _Box:
    """What one peer is to be told."""

    due: dict[str, int | None] = field(factory=dict)
    """Broadcasts, with the epoch that is meant."""
    flying: dict[int, dict[str, int | None]] = field(factory=dict)
    """What was told and is not noted, by the number of the message."""
    owed: list[int] = field(factory=list)
    """Numbers to be noted."""
    unknown: dict[str, None] = field(factory=dict)
    quiet_at: float = 0.0
    """From when on it is told at once."""
    flush_at: float = 0.0
    """When what waits goes, if its timer is set."""
    attempts: int = 0
    call: int | None = None
    """The route under way."""
    sent_at: dict[int, float] = field(factory=dict)
    """When the last messages left, by their numbers, those given up on included."""
    round_trip: RoundTripTime = field(factory=RoundTripTime)

    @property
    def is_empty(self) -> bool:
        return not (self.due or self.flying or self.owed or self.unknown)


class _Due(Enum):
    """Why a box is looked at."""

    __hash__ = object.__hash__  # hashed for each timer: `Enum` hashes the names of its members anew

    FLUSH = "what waits should go"
    RETRY = "what was told is not noted"


_Timer: TypeAlias = tuple[_Due, PeerId]


class Outbox:
    """The boxes of all peers that are to be told something, and the links to neighbours."""

    def __init__(self, config: ReceiptsConfig, rng: random.Random, do: Callable[[Effect], None], write: Write) -> None:
        self.counts: OutboxCounts = OutboxCounts()
        self.epoch: int = rng.getrandbits(32)
        self._config = config
        self._rng = rng
        self._do = do
        self._write = write
        self._backoff = Backoff(config.retry_first, config.retry_cap)
        self._links: dict[PeerId, _Link] = {}
        self._boxes: dict[PeerId, _Box] = {}
        self._ripe: dict[PeerId, None] = {}
        self._stranded: dict[PeerId, None] = {}  # without a link, while there are too many routes
        self._calls: dict[int, PeerId] = {}  # routes under way, by the numbers of their messages
        self._number = 0  # of messages, never used again, so that a late answer means nothing
        self._timers: Timers[_Timer] = Timers()
        self.next_deadline: Callable[[], float] = self._timers.next_deadline
        """When `expire` wants to be called."""

    def __len__(self) -> int:
        return len(self._boxes)

    def has_link(self, peer: PeerId) -> bool:
        return peer in self._links

    def is_verified(self, peer: PeerId) -> bool:
        """Whether this is a neighbour that has proved who it is."""
        link = self._links.get(peer)
        return link is not None and link.is_verified

    def epoch_of(self, peer: PeerId) -> int | None:
        """The epoch of a neighbour, as far as it is known."""
        link = self._links.get(peer)
        return None if link is None else link.epoch

    # --- links --------------------------------------------------------------------------------------------------------

    def link_up(self, peer: RemotePeer) -> None:
        """A link is open. What waits for this peer goes over it, once its epoch is known."""
        if peer.version == 0:
            return
        self._links[peer.peer_id] = _Link(peer.verified)
        self.introduce(peer.peer_id)
        box = self._boxes.get(peer.peer_id)
        if box is not None:
            self._recall(box)
            self._ripe[peer.peer_id] = None

    def link_down(self, peer: PeerId) -> None:
        """It has ended; what is not noted goes by a route."""
        if self._links.pop(peer, None) is None:
            return
        box = self._boxes.get(peer)
        if box is not None:
            self._recall(box)
            self._ripe[peer] = None
            self._cancel(peer)

    def introduce(self, peer: PeerId) -> None:
        """Tell a neighbour our epoch."""
        self._do(SendFrame((peer,), GossipReceipts(epoch=self.epoch), urgent=True, patient=True))

    def introduced(self, peer: PeerId, epoch: int) -> None:
        """A neighbour has told its epoch."""
        link = self._links.get(peer)
        if link is not None:
            link.epoch = epoch
            if peer in self._boxes:
                self._ripe[peer] = None

    # --- what is to be told -------------------------------------------------------------------------------------------

    def tell(self, peer: PeerId, message_id: str, epoch: int | None, now: float) -> None:
        """There is something to tell this peer of a broadcast; `epoch` if no other process of it will do."""
        box = self._box(peer)
        box.due[message_id] = epoch
        self._ripen(peer, box, now)

    def answer(self, peer: PeerId, number: int, unknown: Iterable[str], now: float) -> None:
        """A neighbour's receipts are noted, but for these."""
        box = self._box(peer)
        box.owed.append(number)
        box.unknown.update(dict.fromkeys(unknown))
        if len(box.owed) >= MAX_RECEIPTS:
            self._ripe[peer] = None
        else:
            self._flush_at(peer, box, now + self._config.note_delay)

    def answer_routed(self, way: ReturnPath, number: int, unknown: Iterable[str]) -> None:
        """The same, for what came over a route."""
        message = GossipReceipts(noted=(number,), unknown=tuple(unknown))
        self._do(Notify(Subsystem.ROUTING, RouteReply(way, message)))

    def forget(self, peer: PeerId, message_id: str) -> None:
        """Nothing is to be told of this broadcast any more."""
        box = self._boxes.get(peer)
        if box is None:
            return
        box.due.pop(message_id, None)
        for told in box.flying.values():
            told.pop(message_id, None)
        box.flying = {number: told for number, told in box.flying.items() if told}
        self._tidy(peer, box)

    def noted(self, peer: PeerId, numbers: Iterable[int], now: float) -> list[str]:
        """This peer has answered: the broadcasts of which it has noted what it was told last."""
        box = self._boxes.get(peer)
        if box is None:
            return []
        ids: list[str] = []
        for number in numbers:
            ids.extend(box.flying.pop(number, ()))
            if number in box.sent_at:  # a late answer may mean nothing any more, but tells how late answers are
                box.round_trip.sample(now - box.sent_at.pop(number))
        if ids:
            box.attempts = 0
            self._timers.cancel((_Due.RETRY, peer))
            if box.flying:
                self._try_again(peer, box, now)
        self._tidy(peer, box)
        return ids

    def arrived(self, call: int) -> None:
        """A route has ended well: the answer it brought is taken as any other."""
        self._route_ended(call)

    def unrouted(self, call: int, now: float) -> PeerId | None:
        """A route has ended badly: to whom. What it was to be told waits, unless it is forgotten."""
        peer = self._route_ended(call)
        box = None if peer is None else self._boxes.get(peer)
        if peer is None or box is None:
            return peer
        self.counts.unrouted += 1
        self._recall(box)
        self._try_again(peer, box, now)
        return peer

    # --- time ---------------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Do what is due."""
        for due, peer in self._timers.pop_due(now):
            box = self._boxes.get(peer)
            if box is None:
                continue
            if due is _Due.RETRY:
                self._recall(box)
            self._ripe[peer] = None

    def flush(self, now: float, *, everything: bool = False) -> None:
        """Let go what is ripe."""
        if everything:
            self._ripe = dict.fromkeys(self._boxes)
        while self._ripe:
            ripe, self._ripe = self._ripe, {}
            for peer in ripe:
                box = self._boxes.get(peer)
                if box is not None:
                    self._send(peer, box, now)

    # --- within -------------------------------------------------------------------------------------------------------

    def _box(self, peer: PeerId) -> _Box:
        box = self._boxes.get(peer)
        if box is None:
            box = self._boxes[peer] = _Box()
        return box

    def _ripen(self, peer: PeerId, box: _Box, now: float) -> None:
        if now >= box.quiet_at or len(box.due) >= MAX_RECEIPTS:
            self._ripe[peer] = None
        else:
            self._flush_at(peer, box, box.quiet_at)

    def _flush_at(self, peer: PeerId, box: _Box, due: float) -> None:
        """What waits goes then, or earlier if that was said."""
        if due < box.flush_at or (_Due.FLUSH, peer) not in self._timers:
            box.flush_at = due
            self._timers.set((_Due.FLUSH, peer), due)

    def _send(self, peer: PeerId, box: _Box, now: float) -> None:
        link = self._links.get(peer)
        if link is None:
            self._send_by_route(peer, box, now)
        elif box.due and link.epoch is None:
            self._do(SendFrame((peer,), GossipReceipts(ask=True), urgent=True))
            self._try_again(peer, box, now)
            self._answer(peer, box)
        else:
            self._send_by_link(peer, box, now)
        self._tidy(peer, box)

    def _send_by_link(self, peer: PeerId, box: _Box, now: float) -> None:
        receipts = self._receipts(peer, box, dict(islice(box.due.items(), MAX_RECEIPTS)))
        number = self._fly(box, receipts, now)
        self._answer(peer, box, number, tuple(receipts.values()))
        box.quiet_at = now + self._config.coalesce
        self._timers.cancel((_Due.FLUSH, peer))
        if number is not None:
            self.counts.sent += len(receipts)
            self.counts.resent += bool(box.attempts) * len(receipts)
            self._try_again(peer, box, now)
        if box.due or box.owed:
            self._ripe[peer] = None

    def _answer(self, peer: PeerId, box: _Box, number: int | None = None, receipts: tuple[Receipt, ...] = ()) -> None:
        noted, box.owed = tuple(box.owed[:MAX_RECEIPTS]), box.owed[MAX_RECEIPTS:]
        unknown = tuple(islice(box.unknown, MAX_RECEIPTS))
        box.unknown = dict.fromkeys(islice(box.unknown, MAX_RECEIPTS, None))
        if receipts or noted or unknown:
            message = GossipReceipts(number=number, receipts=receipts, noted=noted, unknown=unknown)
            self._do(SendFrame((peer,), message, urgent=True, patient=True))

    def _send_by_route(self, peer: PeerId, box: _Box, now: float) -> None:
        """One message at a time, to one process of the peer."""
        box.owed.clear()
        box.unknown.clear()
        if box.call is not None or not box.due or (_Due.RETRY, peer) in self._timers:
            return
        if len(self._calls) >= MOST_ROUTES:
            self._stranded[peer] = None
            return
        to = next((epoch for epoch in box.due.values() if epoch is not None), None)
        ids = {message_id: epoch for message_id, epoch in box.due.items() if epoch in {None, to}}
        receipts = self._receipts(peer, box, dict(islice(ids.items(), MAX_RECEIPTS)))
        number = self._fly(box, receipts, now)
        if number is None:
            return
        self.counts.routed += 1
        box.call = number
        self._calls[number] = peer
        message = GossipReceipts(number=number, receipts=tuple(receipts.values()), to=to)
        timeout = self._config.route_timeout
        self._do(
            Notify(Subsystem.ROUTING, Route(Subsystem.RECEIPTS, number, peer, message, answered=True, timeout=timeout))
        )

    def _receipts(self, peer: PeerId, box: _Box, ids: dict[str, int | None]) -> dict[str, Receipt]:
        receipts = {}
        for message_id in ids:
            receipt = self._write(peer, message_id)
            if receipt is None:
                del box.due[message_id]
            else:
                receipts[message_id] = receipt
        return receipts

    def _fly(self, box: _Box, receipts: dict[str, Receipt], now: float) -> int | None:
        """These are on their way: the number of their message."""
        if not receipts:
            return None
        self._number += 1
        box.flying[self._number] = {message_id: box.due.pop(message_id) for message_id in receipts}
        if len(box.sent_at) >= MOST_TIMED:
            del box.sent_at[next(iter(box.sent_at))]
        box.sent_at[self._number] = now
        return self._number

    def _recall(self, box: _Box) -> None:
        """What was told and not noted is due again."""
        for told in box.flying.values():
            box.due.update(told)
        box.flying.clear()

    def _try_again(self, peer: PeerId, box: _Box, now: float) -> None:
        """If nothing is heard, later and later."""
        if (_Due.RETRY, peer) not in self._timers:
            box.attempts += 1
            self._timers.set(
                (_Due.RETRY, peer), now + self._backoff.delay(box.attempts, self._rng) + box.round_trip.expected()
            )

    def _route_ended(self, call: int) -> PeerId | None:
        peer = self._calls.pop(call, None)
        for stranded in self._stranded:
            self._ripe[stranded] = None
        self._stranded.clear()
        box = None if peer is None else self._boxes.get(peer)
        if peer is not None and box is not None and box.call == call:
            box.call = None
            self._ripe[peer] = None
        return peer

    def _cancel(self, peer: PeerId) -> None:
        for due in _Due:
            self._timers.cancel((due, peer))

    def _tidy(self, peer: PeerId, box: _Box) -> None:
        """Boxes of others than neighbours are kept for as long as they are needed."""
        if box.is_empty and box.call is None and peer not in self._links:
            self._cancel(peer)
            del self._boxes[peer]
