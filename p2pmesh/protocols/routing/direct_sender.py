"""Direct messages of ours: a window of unacknowledged ones for each receiver, and a bound on all of them.

What is above waits, and so does its caller. A neighbour gets a `direct` over its link, repeated until it is acknowledged. For
others, and if the link ends first, the same message is sealed and goes as a packet.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from attrs import define, field

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshClosed, MeshError, PeerUnreachable
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.effects import Effect, Reply, SendFrame
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.wire.messages import Direct
from p2pmesh.wire.payloads import Body

REMEMBERED = 600.0
"""Seconds that the id of what was delivered is remembered: far beyond what a sender's retries take."""


class Repeat(NamedTuple):
    """Due when a neighbour's ack stays away."""

    peer: PeerId
    message_id: str


class Carrier(Protocol):
    """Who brings a letter to a peer without a link."""

    def bring(self, peer: PeerId, letter: DirectMessage, now: float) -> None:
        """Begin; ends in `Directs.arrived` or `Directs.failed`."""

    def stop(self, peer: PeerId, message_id: str) -> None:
        """Nobody waits for it any more."""


@define(eq=False)
class DirectMessage:
    """A direct message of ours that its receiver has not acknowledged yet."""

    call: int
    message: Direct
    size: int
    attempts: int = 0
    """Over the link; 0 if it goes as a packet."""
    deadline: float = math.inf
    """As a packet."""

    @property
    def id(self) -> str:
        return str(self.message.id)


@define(eq=False)
class _Receiver:
    """A peer that we write to."""

    peer: PeerId
    link: RemotePeer | None = None
    waiting: OrderedDict[int, Body] = field(factory=OrderedDict)
    """Calls that wait for the window."""
    flight: dict[str, DirectMessage] = field(factory=dict)
    flight_bytes: int = 0


@define
class DirectCounts:
    """What became of direct messages."""

    sent: int = 0
    retried: int = 0
    acked: int = 0
    unreachable: int = 0
    continued: int = 0
    """Whose link ended, so that they go on over a route."""


class Directs:
    """The letters of one peer."""

    def __init__(
        self,
        config: MeshConfig,
        rng: random.Random,
        timers: Timers[NamedTuple],
        carrier: Carrier,
        do: Callable[[Effect], None],
        wall_ms: Callable[[float], int],
    ) -> None:
        self.counts: DirectCounts = DirectCounts()
        self.pending: int = 0
        """Letters in flight."""
        self._config = config.routing
        # Both are said of a link, not of what it carries: what is queued is not lost.
        self._window_bytes = config.broadcast.window_bytes
        self._slowest_link = config.broadcast.slowest_link
        self._rng = rng
        self._timers = timers
        self._carrier = carrier
        self._do = do
        self._wall_ms = wall_ms
        self._backoff = Backoff(self._config.ack_timeout, REMEMBERED / 4)
        self._receivers: dict[PeerId, _Receiver] = {}
        self._held_up: dict[PeerId, None] = {}  # those with calls that wait, in turn

    @property
    def waiting(self) -> int:
        """Calls that wait for a window."""
        return sum(len(receiver.waiting) for receiver in self._receivers.values())

    def link_of(self, peer: PeerId) -> RemotePeer | None:
        """Our neighbour of this id."""
        receiver = self._receivers.get(peer)
        return None if receiver is None else receiver.link

    def link_up(self, peer: RemotePeer, now: float) -> None:
        """A link is open. What is on its way already finds it by itself."""
        self.link_down(peer.peer_id, "it was replaced by a new one", now)
        self._receiver(peer.peer_id).link = peer

    def link_down(self, peer: PeerId, reason: str, now: float) -> None:
        """A link has ended: what was on it goes on as packets, if it is to somebody who can be found by those."""
        receiver = self._receivers.get(peer)
        if receiver is None or receiver.link is None:
            return
        link, receiver.link = receiver.link, None
        for letter in [letter for letter in receiver.flight.values() if letter.attempts]:
            letter.attempts = 0
            self._timers.cancel(Repeat(peer, letter.id))
            if link.verified:
                self.counts.continued += 1
                self._carrier.bring(peer, letter, now)
            else:
                why = f"the link to {short(peer)} closed before it acknowledged: {reason}"
                self.failed(peer, letter.id, why)
        self._tidy(receiver)

    def add(self, call: int, peer: PeerId, body: Body) -> None:
        """A message to bring to a peer, as soon as there is room."""
        self._receiver(peer).waiting[call] = body
        self._held_up[peer] = None

    def pump(self, now: float) -> None:
        """Let out what waits while there is room; who got some goes to the end of the queue."""
        for peer in list(self._held_up):
            receiver = self._receivers[peer]
            went = False
            while receiver.waiting and self._has_room(receiver, next(iter(receiver.waiting.values())).size):
                call, body = receiver.waiting.popitem(last=False)
                self._let_out(receiver, call, body, now)
                went = True
            if went or not receiver.waiting:
                self._held_up.pop(peer, None)
            if receiver.waiting:
                self._held_up[peer] = None
            self._tidy(receiver)

    def arrived(self, peer: PeerId, message_id: str) -> None:
        """The receiver has it; its ack may come after the message has found another way."""
        self._done(peer, message_id, None)

    def failed(self, peer: PeerId, message_id: str, reason: str) -> None:
        """It can't be brought to its receiver."""
        self._done(peer, message_id, PeerUnreachable(reason))

    def is_in_flight(self, due: Repeat) -> bool:
        """Whether it waits for an ack still."""
        receiver = self._receivers.get(due.peer)
        return receiver is not None and due.message_id in receiver.flight

    def repeat(self, due: Repeat, now: float) -> None:
        """An ack did not come in time."""
        receiver = self._receivers[due.peer]
        letter = receiver.flight[due.message_id]
        if letter.attempts > self._config.retries:
            reason = f"{short(due.peer)} has not acknowledged any of {letter.attempts} attempts"
            self.failed(due.peer, due.message_id, reason)
            return
        self.counts.retried += 1
        self._transmit(receiver, letter, now)

    def forget(self, call: int) -> None:
        """Nobody waits any more: it is not sent, or not again."""
        for receiver in list(self._receivers.values()):
            receiver.waiting.pop(call, None)
            for message_id in [key for key, letter in receiver.flight.items() if letter.call == call]:
                self._drop(receiver, message_id)
            self._tidy(receiver)

    def fail_all(self, reason: str) -> None:
        """Fail all that is open, each call with an error of its own."""
        for receiver in list(self._receivers.values()):
            for message_id in list(receiver.flight):
                self._done(receiver.peer, message_id, MeshClosed(reason))
            for call in receiver.waiting:
                self.counts.unreachable += 1
                self._do(Reply(call, error=MeshClosed(reason)))
            receiver.waiting.clear()
            self._tidy(receiver)

    def _receiver(self, peer: PeerId) -> _Receiver:
        receiver = self._receivers.get(peer)
        if receiver is None:
            receiver = self._receivers[peer] = _Receiver(peer)
        return receiver

    def _has_room(self, receiver: _Receiver, size: int) -> bool:
        if len(receiver.flight) >= self._config.window or self.pending >= self._config.pending:
            return False
        return not receiver.flight or receiver.flight_bytes + size <= self._window_bytes

    def _let_out(self, receiver: _Receiver, call: int, body: Body, now: float) -> None:
        message = Direct(
            id=self._rng.randbytes(16).hex(),
            payload=body.payload,
            encoding=body.encoding,
            blob=body.blob,
            timestamp=self._wall_ms(now),
        )
        letter = receiver.flight[str(message.id)] = DirectMessage(call, message, body.size)
        receiver.flight_bytes += body.size
        self.pending += 1
        self.counts.sent += 1
        if receiver.link is None:
            self._carrier.bring(receiver.peer, letter, now)
        else:
            self._transmit(receiver, letter, now)

    def _transmit(self, receiver: _Receiver, letter: DirectMessage, now: float) -> None:
        letter.attempts += 1
        wait = self._backoff.delay(letter.attempts, self._rng) + receiver.flight_bytes / self._slowest_link
        self._timers.set(Repeat(receiver.peer, letter.id), now + wait)
        self._do(SendFrame((receiver.peer,), letter.message))

    def _done(self, peer: PeerId, message_id: str, error: MeshError | None) -> None:
        receiver = self._receivers.get(peer)
        if receiver is None or message_id not in receiver.flight:
            return
        letter = self._drop(receiver, message_id)
        if error is None:
            self.counts.acked += 1
        else:
            self.counts.unreachable += 1
        self._do(Reply(letter.call, error=error))
        self._tidy(receiver)

    def _drop(self, receiver: _Receiver, message_id: str) -> DirectMessage:
        letter = receiver.flight.pop(message_id)
        receiver.flight_bytes -= letter.size
        self.pending -= 1
        self._timers.cancel(Repeat(receiver.peer, message_id))
        self._carrier.stop(receiver.peer, message_id)
        return letter

    def _tidy(self, receiver: _Receiver) -> None:
        """A receiver with neither a link nor letters is none."""
        if not receiver.waiting:
            self._held_up.pop(receiver.peer, None)
            if receiver.link is None and not receiver.flight:
                self._receivers.pop(receiver.peer, None)
