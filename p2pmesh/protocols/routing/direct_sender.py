"""Direct sender: brings direct messages of ours to any peer, so many at once to each, and so many in all.

What is above waits, and so does its caller. A neighbour gets a `direct` over its link, repeated until it is
acknowledged. For others, and if the link ends first, the same message goes as a packet, sealed for its recipient
alone, which is asked for its contact record first. Peers of the original project acknowledge nothing: a message to
one is done once it is handed to the link.

In: calls to send and to cancel, acks, links that have ended, timeouts, outcomes of the requests that it wanted.
Out: `Transmit` over a link, `Start` and `Cancel` of requests, `Finish` of calls.
State: at most `RoutingConfig.pending` messages in flight, of which each recipient has a window of
  `RoutingConfig.window` and `BroadcastConfig.window_bytes`; the calls that wait for these.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import attrs
from attrs import define, field
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshClosed, MeshError, PeerUnreachable, RemoteProtocolError
from p2pmesh.events import Payload
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.routing.packets import SEEN_FOR, content, origin_of, refusal_of
from p2pmesh.protocols.routing.requests import Delivery, Inquiry, PendingRequest
from p2pmesh.protocols.routing.sealed_box import Contacts, seal
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.protocols.util.window import Window
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Direct
from p2pmesh.wire.overlay import Contact, ContactReply, ContactRequest, Packet
from p2pmesh.wire.payloads import Body, legacy_direct, pack


class AckTimeout(NamedTuple):
    """The timer of a message over a link: its ack has not come in time."""

    message_id: str


class Transmit(NamedTuple):
    """Send this over the link to this peer."""

    peer: PeerId
    message: Direct


class Start(NamedTuple):
    """Start a request; its outcome comes back by its purpose."""

    request: PendingRequest


class Cancel(NamedTuple):
    """Cancel the request of this packet, if there is one still."""

    packet_id: str


class Finish(NamedTuple):
    """Answer a call."""

    call: int
    error: MeshError | None = None


Step: TypeAlias = Transmit | Start | Cancel | Finish


@define(eq=False)
class DirectMessage:
    """A direct message of ours that its recipient has not acknowledged yet."""

    call: int
    recipient: _Recipient
    message: Direct
    size: int
    attempts: int = 0
    """Over a link; 0 if it goes as a packet."""
    deadline: float = math.inf
    """As a packet."""

    @property
    def id(self) -> str:
        return str(self.message.id)


@define(eq=False)
class _Recipient:
    """A peer that we write to."""

    peer: PeerId
    in_flight: Window[str, DirectMessage]
    waiting: OrderedDict[int, Body] = field(factory=OrderedDict)
    """Calls that wait for the window."""
    inquiry: str | None = None
    """The packet that asks it for its contact record."""
    unaddressed: dict[str, DirectMessage] = field(factory=dict)
    """Messages that wait for that record."""


@define
class DirectCounts:
    """What became of direct messages."""

    sent: int = 0
    retried: int = 0
    acked: int = 0
    unreachable: int = 0
    continued: int = 0
    """Those whose link ended, so that they go on over a route."""


class DirectSender:
    """The direct messages of one peer. `links` are its open links."""

    def __init__(
        self,
        config: MeshConfig,
        me: PeerId,
        rng: random.Random,
        wall: WallClock,
        timers: Timers[NamedTuple],
        links: Mapping[PeerId, RemotePeer],
        contacts: Contacts,
    ) -> None:
        self.counts: DirectCounts = DirectCounts()
        self._config = config.routing
        self._max_payload = config.max_payload
        self._network = config.network
        # Both are said of a link, not of what it carries: what is queued is not lost.
        self._window_bytes = config.broadcast.window_bytes
        self._slowest_link = config.broadcast.slowest_link
        self._me = me
        self._rng = rng
        self._wall = wall
        self._timers = timers
        self._links = links
        self._contacts = contacts
        # Of a message that is repeated later than its receiver remembers it two would be delivered.
        self._backoff = Backoff(self._config.ack_timeout, SEEN_FOR / 4)
        self._closed = False
        self._recipients: dict[PeerId, _Recipient] = {}
        self._held_up: dict[PeerId, None] = {}  # those with calls that wait, in turn
        self._in_flight: dict[str, DirectMessage] = {}

    def snapshot(self) -> dict[str, int]:
        """What became of messages, how many wait for an ack, and how many calls for a window."""
        waiting = sum(len(recipient.waiting) for recipient in self._recipients.values())
        return {**attrs.asdict(self.counts), "in_flight": len(self._in_flight), "waiting": waiting}

    @property
    def is_held_up(self) -> bool:
        """Whether any call waits."""
        return bool(self._held_up)

    def send(self, call: int, peer: PeerId, payload: Payload) -> list[Step]:
        """Take a message for a peer; `pump` sends it as soon as there is room."""
        if self._closed:
            return [Finish(call, MeshClosed("the mesh was left"))]
        if peer == self._me:
            return [Finish(call, PeerUnreachable("that is this peer itself: send to another"))]
        try:
            body = pack(payload, self._max_payload)
        except MeshError as error:
            return [Finish(call, error)]
        link = self._links.get(peer)
        if link is not None and link.version == 0:
            self.counts.sent += 1
            return [Transmit(peer, Direct(payload=legacy_direct(body))), Finish(call)]
        recipient = self._recipients.get(peer)
        if recipient is None:
            window = Window[str, DirectMessage](self._config.window, self._window_bytes)
            recipient = self._recipients[peer] = _Recipient(peer, window)
        recipient.waiting[call] = body
        self._held_up[peer] = None
        return []

    def pump(self, now: float) -> Iterator[Step]:
        """Send what waits while there is room; a recipient that got some goes to the end of the queue.

        Steps that fail make room at once, so each has to be carried out before the next is asked for.
        """
        for peer in list(self._held_up):
            recipient = self._recipients[peer]
            got_some = False
            while recipient.waiting and self._has_room(recipient):
                got_some = True
                yield from self._send_next(recipient, now)
            if got_some:
                self._held_up.pop(peer, None)
            if recipient.waiting:
                self._held_up[peer] = None
            self._tidy(recipient)

    def link_down(self, link: RemotePeer, reason: str, now: float) -> list[Step]:
        """A link has ended: what was on it goes on as packets, if its peer can be found by those."""
        recipient = self._recipients.get(link.peer_id)
        on_link = [] if recipient is None else [one for one in recipient.in_flight.values() if one.attempts]
        steps: list[Step] = []
        for message in on_link:
            if link.is_member:
                self._timers.cancel(AckTimeout(message.id))
                message.attempts = 0
                self.counts.continued += 1
                steps += self._send_packet(message, now)
            else:
                why = f"the link to {short(link.peer_id)} closed before it acknowledged: {reason}"
                steps += self._fail(message, why)
        return steps

    def acknowledged(self, peer: PeerId, message_id: str) -> list[Step]:
        """The recipient has a message; its ack may come after the message has found another way."""
        message = self._in_flight.get(message_id)
        if message is None or message.recipient.peer != peer:
            return []
        self.counts.acked += 1
        return self._finish(message, None)

    def timed_out(self, message_id: str, now: float) -> list[Step]:
        """An ack did not come in time."""
        message = self._in_flight[message_id]
        if message.attempts > self._config.retries:
            peer = short(message.recipient.peer)
            return self._fail(message, f"{peer} has not acknowledged any of {message.attempts} attempts")
        self.counts.retried += 1
        return [self._transmit(message, now)]

    def responded(self, purpose: Delivery | Inquiry, response: Packet, now: float) -> list[Step]:
        """A request has got its response."""
        match purpose:
            case Delivery(message_id) if response.kind == "ack":
                return self.acknowledged(origin_of(response), message_id)
            case Delivery():
                return self.given_up(purpose, refusal_of(response))
            case Inquiry(peer):
                return self._addressed(self._recipients[peer], response, now)

    def given_up(self, purpose: Delivery | Inquiry, reason: str) -> list[Step]:
        """A request has failed."""
        match purpose:
            case Delivery(message_id):
                return self._fail(self._in_flight[message_id], reason)
            case Inquiry(peer):
                messages = self._end_inquiry(self._recipients[peer])
                return [step for message in messages for step in self._fail(message, reason)]

    def cancel(self, call: int) -> list[Step]:
        """Nobody waits for a call any more: its message is not sent, or not again."""
        for recipient in list(self._recipients.values()):
            recipient.waiting.pop(call, None)
            self._tidy(recipient)
        messages = [message for message in self._in_flight.values() if message.call == call]
        return [step for message in messages for step in self._remove(message)]

    def close(self, reason: str) -> list[Step]:
        """Fail all calls that are open, each with an error of its own, and all that come."""
        self._closed = True
        steps: list[Step] = []
        for recipient in list(self._recipients.values()):
            for message in recipient.in_flight.values():
                steps += self._finish(message, MeshClosed(reason))
            steps += [Finish(call, MeshClosed(reason)) for call in recipient.waiting]
            recipient.waiting.clear()
            self._tidy(recipient)
        self.counts.unreachable += sum(isinstance(step, Finish) for step in steps)
        return steps

    def _has_room(self, recipient: _Recipient) -> bool:
        size = next(iter(recipient.waiting.values())).size
        return len(self._in_flight) < self._config.pending and recipient.in_flight.has_room(size)

    def _send_next(self, recipient: _Recipient, now: float) -> list[Step]:
        call, body = recipient.waiting.popitem(last=False)
        direct = Direct(
            id=self._new_id(),
            payload=body.payload,
            encoding=body.encoding,
            blob=body.blob,
            timestamp=self._wall_ms(now),
        )
        message = DirectMessage(call, recipient, direct, body.size)
        recipient.in_flight.add(message.id, message, body.size)
        self._in_flight[message.id] = message
        self.counts.sent += 1
        return [self._transmit(message, now)] if recipient.peer in self._links else self._send_packet(message, now)

    def _transmit(self, message: DirectMessage, now: float) -> Transmit:
        """Send a message over the link to its recipient, and wait for an ack."""
        message.attempts += 1
        wait = self._backoff.delay(message.attempts, self._rng)
        wait += message.recipient.in_flight.bytes / self._slowest_link
        self._timers.wait(AckTimeout(message.id), now + wait)
        return Transmit(message.recipient.peer, message.message)

    def _send_packet(self, message: DirectMessage, now: float) -> list[Step]:
        """Begin with a message to a recipient without a link."""
        recipient = message.recipient
        message.deadline = now + self._config.patience + message.size / self._slowest_link
        contact = self._contacts.get(recipient.peer)
        if contact is not None:
            return self._seal(message, contact, now)
        recipient.unaddressed[message.id] = message
        if recipient.inquiry is not None:
            return []
        recipient.inquiry = self._new_id()
        carry = encode(ContactRequest(contact=self._contacts.own(self._wall_ms(now))))
        packet = Packet(id=recipient.inquiry, kind="ask", from_=self._me, to=recipient.peer, carry=carry)
        return [self._start(packet, now + self._config.patience, Inquiry(recipient.peer), now)]

    def _addressed(self, recipient: _Recipient, response: Packet, now: float) -> list[Step]:
        """The response to an inquiry has come: seal what waits for it."""
        peer = recipient.peer
        try:
            reply = content(response.carry) if response.kind == "answer" else None
        except RemoteProtocolError:
            reply = None
        if not isinstance(reply, ContactReply) or not self._contacts.learn(peer, reply.contact):
            return self.given_up(Inquiry(peer), f"{short(peer)} does not say how to write to it")
        messages = self._end_inquiry(recipient)
        return [step for message in messages for step in self._seal(message, reply.contact, now)]

    def _end_inquiry(self, recipient: _Recipient) -> list[DirectMessage]:
        """The messages that waited for it."""
        messages, recipient.unaddressed, recipient.inquiry = recipient.unaddressed, {}, None
        return list(messages.values())

    def _seal(self, message: DirectMessage, contact: Contact, now: float) -> list[Step]:
        """Start the request that brings a message, if its recipient takes it."""
        peer = message.recipient.peer
        if message.size > contact.max_payload:
            limit = contact.max_payload
            why = f"the payload has {message.size} bytes: too large for {short(peer)}, which takes {limit}"
            return self._fail(message, why)
        try:
            sealed = seal(encode(message.message), contact.box, self._me, peer, message.id, self._network)
        except RemoteProtocolError as error:
            return self._fail(message, f"{short(peer)} can't be written to: {error}")
        packet = Packet(id=message.id, kind="tell", from_=self._me, to=peer, sealed=True, carry=sealed)
        return [self._start(packet, message.deadline, Delivery(message.id), now)]

    def _start(self, packet: Packet, deadline: float, purpose: Delivery | Inquiry, now: float) -> Start:
        packet = structs.replace(packet, timestamp=self._wall_ms(now))
        return Start(PendingRequest(packet, deadline, purpose, hurried=True))

    def _fail(self, message: DirectMessage, reason: str) -> list[Step]:
        self.counts.unreachable += 1
        return self._finish(message, PeerUnreachable(reason))

    def _finish(self, message: DirectMessage, error: MeshError | None) -> list[Step]:
        return [*self._remove(message), Finish(message.call, error)]

    def _remove(self, message: DirectMessage) -> list[Step]:
        """Take a message out of its window. What is to be cancelled with it."""
        recipient = message.recipient
        recipient.in_flight.pop(message.id)
        del self._in_flight[message.id]
        self._tidy(recipient)
        if message.attempts:
            self._timers.cancel(AckTimeout(message.id))
            return []
        if recipient.unaddressed.pop(message.id, None) is None:
            return [Cancel(message.id)]
        if recipient.unaddressed or recipient.inquiry is None:
            return []
        inquiry, recipient.inquiry = recipient.inquiry, None
        return [Cancel(inquiry)]

    def _tidy(self, recipient: _Recipient) -> None:
        """Forget a recipient without messages."""
        if not recipient.waiting:
            self._held_up.pop(recipient.peer, None)
            if not recipient.in_flight:
                self._recipients.pop(recipient.peer, None)

    def _new_id(self) -> str:
        return self._rng.randbytes(16).hex()

    def _wall_ms(self, now: float) -> int:
        return int(self._wall(now) * 1000)
