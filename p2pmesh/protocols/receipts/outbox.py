"""The way of receipts from peer to peer: many in one message, over a link or a route, repeated until they are noted.

A message with receipts has a number, and its receiver answers with that number: it is noted, but for those broadcasts
that it does not count for the sender. What is told is written in the moment it leaves. A peer that was told nothing
for a while is told at once; what follows within `ReceiptsConfig.coalesce` goes along in one message, and answers wait
longer, so that they cost next to no messages of their own. How long answers take is measured (`util.rtt`), and
nothing is repeated sooner.

A peer that restarts forgets what it was told, so each process draws a number, its epoch. A neighbour is told nothing
before its epoch is known, and what goes over a route names the epoch that it is meant for.

Routing ends each route in one `RouteSucceeded` or `RouteFailed`, which the shell may drop while this peer is far
behind (`runtime.driver`). A route whose outcome does not come is over after `LOST_AFTER` times its time-out; the
parent is not to blame.

In: broadcasts of which a peer is to be told, answers to give and those that came, links, the ends of routes, the time.
Out: the peers whose turn it is, for each a `Batch` of broadcasts to be written of, and the message to send.
State: a box for each neighbour that there is something for, and for each other peer as long as it is to be told
something; in a box the broadcasts of `ReceiptsConfig.table`, each once, and `MOST_TIMED` times; at most `MOST_ROUTES`
routes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from enum import Enum
from itertools import islice
from typing import NamedTuple, TypeAlias

from attrs import asdict, define, field

from p2pmesh.config import ReceiptsConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.util.latency import LocalHealth, RoundTripTime
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.wire.fields import MAX_RECEIPTS
from p2pmesh.wire.messages import GossipReceipts, Receipt

MOST_ROUTES = 32
"""Under way at once; more peers without a link wait."""
MOST_TIMED = 64
"""Messages to one peer whose answers are timed."""
LOST_AFTER = 2.0
"""Times `ReceiptsConfig.route_timeout`: routing ends a route within one, and may itself be late on a busy machine."""


class Via(Enum):
    """How a peer is to be told."""

    LINK = "over its link"
    ROUTE = "by a route"
    QUESTION = "first it has to say which process it is"


class Batch(NamedTuple):
    """What may be sent to a peer now."""

    via: Via
    message_ids: list[str]
    """Broadcasts to be written of."""
    to: int | None = None
    """The process that is meant; None for any, or for that of a neighbour."""


@define
class OutboxCounts:
    """What went over links and routes, since the start."""

    sent: int = 0
    """Receipts, over links."""
    resent: int = 0
    """Of them those that went after one had not been noted in time."""
    routed: int = 0
    """Messages, by routes."""
    unrouted: int = 0
    """Routes that failed."""
    lost: int = 0
    """Routes of which routing never told the outcome."""


@define(eq=False)
class _Link:
    is_verified: bool
    epoch: int | None = None


@define(eq=False)
class _Box:
    """What one peer is to be told."""

    due: dict[str, int | None] = field(factory=dict)
    """Broadcasts, with the epoch that is meant."""
    in_flight: dict[int, dict[str, int | None]] = field(factory=dict)
    """What was told and is not noted, by the number of the message."""
    to_note: dict[int, tuple[str, ...]] = field(factory=dict)
    """Numbers of its messages that are to be noted, each with the broadcasts in it that don't count for it here."""
    quiet_at: float = 0.0
    """From when on it is told at once."""
    flush_at: float = 0.0
    """When what waits goes, if its timer is set."""
    attempts: int = 0
    route: int | None = None
    """The route under way, by the number of its message."""
    sent_at: dict[int, float] = field(factory=dict)
    """When the last messages left, by their numbers, those given up on included."""
    round_trip: RoundTripTime = field(factory=RoundTripTime)

    @property
    def is_empty(self) -> bool:
        return not (self.due or self.in_flight or self.to_note)


class _Due(Enum):
    """Why a box is looked at."""

    __hash__ = object.__hash__  # hashed for each timer: `Enum` hashes the names of its members anew

    FLUSH = "what waits should go"
    RETRY = "what was told is not noted"
    LOST = "the outcome of a route does not come"


_Timer: TypeAlias = tuple[_Due, PeerId]


class Outbox:
    """The boxes of all peers that are to be told something, and the links to neighbours."""

    def __init__(self, config: ReceiptsConfig, rng: random.Random, health: LocalHealth | None = None) -> None:
        self.counts: OutboxCounts = OutboxCounts()
        self.epoch: int = rng.getrandbits(32)
        self._config = config
        self._rng = rng
        self._backoff = Backoff(config.retry_first, config.retry_cap)
        self._links: dict[PeerId, _Link] = {}
        self._boxes: dict[PeerId, _Box] = {}
        self._ripe: dict[PeerId, None] = {}
        self._stranded: dict[PeerId, None] = {}  # without a link, while there are too many routes
        self._routes: dict[int, PeerId] = {}  # under way, by the numbers of their messages
        self._number = 0  # of messages, never used again, so that a late answer means nothing
        self._timers: Timers[_Timer] = Timers(health)

    # --- links --------------------------------------------------------------------------------------------------------

    def has_link(self, peer: PeerId) -> bool:
        return peer in self._links

    def neighbours(self) -> Iterable[PeerId]:
        """Those that there are links to."""
        return self._links

    def is_verified(self, peer: PeerId) -> bool:
        """Whether this is a neighbour that has proved who it is."""
        link = self._links.get(peer)
        return link is not None and link.is_verified

    def epoch_of(self, peer: PeerId) -> int | None:
        """The epoch of a neighbour, as far as it is known."""
        link = self._links.get(peer)
        return None if link is None else link.epoch

    def link_up(self, peer: RemotePeer) -> None:
        """A link is open. What waits for this peer goes over it, once its epoch is known."""
        self._links[peer.peer_id] = _Link(peer.verified)
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
            self._timers.cancel((_Due.FLUSH, peer))
            self._timers.cancel((_Due.RETRY, peer))

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
        if now >= box.quiet_at or len(box.due) >= MAX_RECEIPTS:
            self._ripe[peer] = None
        else:
            self._flush_at(peer, box, box.quiet_at)

    def answer(self, peer: PeerId, number: int, unknown: Iterable[str], now: float) -> None:
        """A neighbour's receipts are noted, but for these."""
        box = self._box(peer)
        box.to_note[number] = tuple(unknown)
        if len(box.to_note) >= MAX_RECEIPTS:
            self._ripe[peer] = None
        else:
            self._flush_at(peer, box, now + self._config.note_delay)

    def forget(self, peer: PeerId, message_id: str) -> None:
        """Nothing is to be told of this broadcast any more."""
        box = self._boxes.get(peer)
        if box is None:
            return
        box.due.pop(message_id, None)
        for told in box.in_flight.values():
            told.pop(message_id, None)
        box.in_flight = {number: told for number, told in box.in_flight.items() if told}
        self._tidy(peer, box)

    def noted(self, peer: PeerId, numbers: Iterable[int], now: float) -> list[str]:
        """This peer has answered: the broadcasts of which it has noted what it was told last."""
        box = self._boxes.get(peer)
        if box is None:
            return []
        ids: list[str] = []
        for number in numbers:
            ids.extend(box.in_flight.pop(number, ()))
            if number in box.sent_at:  # a late answer may mean nothing any more, but tells how late answers are
                box.round_trip.sample(now - box.sent_at.pop(number))
        if ids:
            box.attempts = 0
            self._timers.cancel((_Due.RETRY, peer))
            if box.in_flight:
                self._try_again(peer, box, now)
        self._tidy(peer, box)
        return ids

    # --- what goes ----------------------------------------------------------------------------------------------------

    def take_ripe(self, *, everything: bool = False) -> dict[PeerId, None]:
        """The peers whose turn it is, each once; with `everything`, all that there is something for."""
        ripe, self._ripe = self._ripe, {}
        return dict.fromkeys(self._boxes) if everything else ripe

    def batch(self, peer: PeerId) -> Batch | None:
        """What is to be sent to this peer now, if anything; `pack` follows."""
        box = self._boxes.get(peer)
        if box is None:
            return None
        link = self._links.get(peer)
        if link is None:
            return self._route_batch(peer, box)
        if box.due and link.epoch is None:
            return Batch(Via.QUESTION, [])
        return Batch(Via.LINK, list(islice(box.due, MAX_RECEIPTS)))

    def _route_batch(self, peer: PeerId, box: _Box) -> Batch | None:
        """One message at a time, to one process of the peer."""
        box.to_note.clear()
        batch = None
        if box.route is None and box.due and (_Due.RETRY, peer) not in self._timers:
            if len(self._routes) < MOST_ROUTES:
                to = next((epoch for epoch in box.due.values() if epoch is not None), None)
                ids = (message_id for message_id, epoch in box.due.items() if epoch in {None, to})
                batch = Batch(Via.ROUTE, list(islice(ids, MAX_RECEIPTS)), to)
            else:
                self._stranded[peer] = None
        if batch is None:
            self._tidy(peer, box)
        return batch

    def pack(self, peer: PeerId, batch: Batch, receipts: Mapping[str, Receipt], now: float) -> GossipReceipts | None:
        """The message with these receipts, which were written for the batch; None if there is nothing to send."""
        box = self._boxes[peer]
        number = self._launch(box, batch, receipts, now)
        message = None
        if batch.via is not Via.ROUTE:
            message = self._pack_for_link(peer, box, batch, number, tuple(receipts.values()), now)
        elif number is not None:
            self.counts.routed += 1
            box.route = number
            self._routes[number] = peer
            self._timers.wait((_Due.LOST, peer), now + LOST_AFTER * self._config.route_timeout)
            message = GossipReceipts(number=number, receipts=tuple(receipts.values()), to=batch.to)
        self._tidy(peer, box)
        return message

    def _pack_for_link(
        self, peer: PeerId, box: _Box, batch: Batch, number: int | None, receipts: tuple[Receipt, ...], now: float
    ) -> GossipReceipts | None:
        noted, unknown = self._pack_notes(box)
        if batch.via is Via.QUESTION:
            self._try_again(peer, box, now)
        else:
            box.quiet_at = now + self._config.coalesce
            self._timers.cancel((_Due.FLUSH, peer))
            if box.due or box.to_note:
                self._ripe[peer] = None
        if number is not None:
            self.counts.sent += len(receipts)
            self.counts.resent += bool(box.attempts) * len(receipts)
            self._try_again(peer, box, now)
        if not (receipts or noted):
            return None
        return GossipReceipts(number=number, receipts=receipts, noted=noted, unknown=unknown)

    def _pack_notes(self, box: _Box) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Numbers to be noted with all that is unknown of each, as many as one message holds."""
        noted: list[int] = []
        unknown: dict[str, None] = {}
        for number, ids in box.to_note.items():
            more = unknown | dict.fromkeys(ids)
            if len(noted) == MAX_RECEIPTS or (noted and len(more) > MAX_RECEIPTS):
                break
            noted.append(number)
            unknown = more
        for number in noted:
            del box.to_note[number]
        return tuple(noted), tuple(unknown)

    def _launch(self, box: _Box, batch: Batch, receipts: Mapping[str, Receipt], now: float) -> int | None:
        """What was written is in flight, and what was not is no longer due; the number of the message."""
        told = {message_id: box.due.pop(message_id) for message_id in batch.message_ids}
        if not receipts:
            return None
        self._number += 1
        box.in_flight[self._number] = {message_id: told[message_id] for message_id in receipts}
        if len(box.sent_at) >= MOST_TIMED:
            del box.sent_at[next(iter(box.sent_at))]
        box.sent_at[self._number] = now
        return self._number

    # --- routes and time ----------------------------------------------------------------------------------------------

    def route_ended(self, number: int) -> PeerId | None:
        """A route is over; the peer that it led to, or None if it was over already."""
        peer = self._routes.pop(number, None)
        if peer is None:
            return None
        self._ripe.update(self._stranded)
        self._stranded.clear()
        box = self._boxes.get(peer)
        if box is not None and box.route == number:
            box.route = None
            self._timers.cancel((_Due.LOST, peer))
            self._ripe[peer] = None
        return peer

    def route_failed(self, number: int, now: float) -> PeerId | None:
        """A route has failed; the peer that it led to. What that was to be told waits, unless it is forgotten."""
        peer = self.route_ended(number)
        box = None if peer is None else self._boxes.get(peer)
        if peer is not None and box is not None:
            self.counts.unrouted += 1
            self._recall(box)
            self._try_again(peer, box, now)
        return peer

    def next_deadline(self) -> float:
        """When `expire` wants to be called."""
        return self._timers.next_deadline()

    def expire(self, now: float) -> None:
        """Do what is due."""
        for due, peer in self._timers.pop_due(now):
            box = self._boxes.get(peer)
            if box is None:
                continue
            if due is _Due.LOST and box.route is not None:
                self.counts.lost += 1
                self.route_ended(box.route)
                self._recall(box)
                self._try_again(peer, box, now)
            elif due is _Due.RETRY:
                self._recall(box)
            self._ripe[peer] = None

    def snapshot(self) -> dict[str, int]:
        return {"boxes": len(self._boxes), "routes": len(self._routes), **asdict(self.counts)}

    # --- within -------------------------------------------------------------------------------------------------------

    def _box(self, peer: PeerId) -> _Box:
        box = self._boxes.get(peer)
        if box is None:
            box = self._boxes[peer] = _Box()
        return box

    def _flush_at(self, peer: PeerId, box: _Box, due: float) -> None:
        """What waits goes then, or earlier if that was said."""
        if due < box.flush_at or (_Due.FLUSH, peer) not in self._timers:
            box.flush_at = due
            self._timers.set((_Due.FLUSH, peer), due)

    def _recall(self, box: _Box) -> None:
        """What was told and not noted is due again."""
        for told in box.in_flight.values():
            box.due.update(told)
        box.in_flight.clear()

    def _try_again(self, peer: PeerId, box: _Box, now: float) -> None:
        """If nothing is heard, later and later."""
        if (_Due.RETRY, peer) not in self._timers:
            box.attempts += 1
            later = now + self._backoff.delay(box.attempts, self._rng)
            self._timers.wait((_Due.RETRY, peer), later + box.round_trip.expected())

    def _tidy(self, peer: PeerId, box: _Box) -> None:
        """Boxes of others than neighbours are kept for as long as they are needed."""
        if box.is_empty and box.route is None and peer not in self._links:
            for due in _Due:
                self._timers.cancel((due, peer))
            del self._boxes[peer]
