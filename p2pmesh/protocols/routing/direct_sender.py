"""Direct sender: brings direct messages of ours to any peer, so many at once to each, and so many in all.

What is above waits, and so does its caller. A neighbour gets a `direct` over its link. That loses nothing, so nothing
is repeated while anything waits in it, and the message is given up only if neither an answer comes nor the link gets
on. For others, and if the link ends first, the same message goes as a packet, sealed for its recipient alone, which is
asked for its contact record first. A recipient without room says so: the message is *held*, until it says that there is
room, or is tried again after a while. Peers of the original project answer nothing: a message to one is done once its
link has taken it.

In: calls to send and to cancel, answers, links that have ended and how loaded they are, timeouts, outcomes of the
requests that it wanted.
Out: `Transmit` over a link, `Inspect` of one, `Start` and `Cancel` of requests, `Finish` of calls.
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
from p2pmesh.errors import MeshClosed, MeshError, PeerBusy, PeerRefused, PeerUnreachable, RemoteProtocolError
from p2pmesh.events import PayloadLike
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import LinkLoad, RemotePeer, Unsent
from p2pmesh.protocols.routing.packets import SEEN_FOR, content, origin_of, refusal_of
from p2pmesh.protocols.routing.requests import Delivery, Inquiry, PendingRequest
from p2pmesh.protocols.routing.sealed_box import Contacts, seal
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.protocols.util.window import Window
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Direct, DirectAck
from p2pmesh.wire.overlay import Contact, ContactReply, ContactRequest, Packet
from p2pmesh.wire.payloads import Body, legacy_direct, pack

LONGEST = SEEN_FOR / 2
"""Seconds that a message stays with a link that gets on, at the most: what goes on as a packet must be known still."""
AHEAD = 512
"""Messages to one recipient, from the first that it has not acknowledged: it remembers the ids of twice as many."""
HELD_FIRST = 1.0
HELD_CAP = 5.0
"""Seconds until a recipient that was busy is tried again, if it does not say before that it has room."""
LEGACY_CHECK = 0.1
"""Seconds until it is looked again whether the link to a peer of the original has taken what it was given."""


class AckTimeout(NamedTuple):
    """The timer of a message over a link, or of one that is held: no answer has come in time."""

    message_id: str


class Transmit(NamedTuple):
    """Send this over the link to this peer."""

    peer: PeerId
    message: Direct


class Inspect(NamedTuple):
    """Ask how much waits in the link to this peer."""

    peer: PeerId


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


Step: TypeAlias = Transmit | Inspect | Start | Cancel | Finish


@define(eq=False)
class DirectMessage:
    """A direct message of ours that its recipient has not acknowledged yet."""

    call: int | None
    """None once nobody waits for it any more, though it waits in a link still."""
    recipient: _Recipient
    message: Direct
    size: int
    number: int
    """Among those to its recipient."""
    began: float
    on_link: bool = False
    """Else it goes as a packet, or is held."""
    sent: Direct | None = None
    """What was given to this link; None if it did not take it."""
    attempts: int = 0
    """Over this link."""
    is_held: bool = False
    """Its recipient has no room."""
    held: int = 0
    """How often that was so."""
    is_overdue: bool = False
    """It is not known yet whether its link gets on."""

    @property
    def id(self) -> str:
        return str(self.message.id)


@define(eq=False)
class _Recipient:
    """A peer that we write to."""

    peer: PeerId
    in_flight: Window[str, DirectMessage]
    sent: int = 0
    """Messages so far."""
    waiting: OrderedDict[int, Body] = field(factory=OrderedDict)
    """Calls that wait for the window."""
    inquiry: str | None = None
    """The packet that asks it for its contact record."""
    unaddressed: dict[str, DirectMessage] = field(factory=dict)
    """Messages that wait for that record."""
    left: int = -1
    """Bytes that had left its link when it was looked at last."""
    got_on: float = -math.inf
    """When it was seen that more had."""


@define
class DirectCounts:
    """What became of direct messages."""

    sent: int = 0
    retried: int = 0
    acked: int = 0
    busy: int = 0
    """Answers that there is no room."""
    refused: int = 0
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
        self._backoff = Backoff(self._config.ack_timeout, self._config.patience / 2)
        self._hold = Backoff(HELD_FIRST, HELD_CAP)
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

    def send(self, call: int, peer: PeerId, payload: PayloadLike | Body) -> list[Step]:
        """Take a message for a peer; `pump` sends it as soon as there is room."""
        if self._closed:
            return [Finish(call, MeshClosed("the mesh was left"))]
        if peer == self._me:
            return [Finish(call, PeerUnreachable("that is this peer itself: send to another"))]
        try:
            body = pack(payload, self._max_payload)
        except MeshError as error:
            return [Finish(call, error)]
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
        on_link = [] if recipient is None else [one for one in recipient.in_flight.values() if one.on_link]
        steps: list[Step] = []
        for message in on_link:
            if message.call is None:
                steps += self._remove(message)
            elif link.is_member:
                self._timers.cancel(AckTimeout(message.id))
                message.on_link, message.is_overdue, message.attempts, message.began = False, False, 0, now
                self.counts.continued += 1
                steps += self._send_packet(message, now)
            else:
                why = f"the link to {short(link.peer_id)} closed before it acknowledged: {reason}"
                steps += self._fail(message, why)
        return steps

    def waits_for(self, peer: PeerId, message_id: str) -> bool:
        """Whether this message is for this peer, which has not acknowledged it yet."""
        return self._of(peer, message_id) is not None

    def answered(self, peer: PeerId, answer: DirectAck, now: float) -> list[Step]:
        """A neighbour says what became of a message."""
        match answer.outcome:
            case "taken":
                return self.acknowledged(peer, answer.id)
            case "busy":
                return self._busy(peer, answer.id, now)
            case "ready":
                return self.ready(peer, answer.id, now)
            case "refused":
                return self._refused(self._of(peer, answer.id), f"{short(peer)} refused it: {answer.reason}")

    def acknowledged(self, peer: PeerId, message_id: str) -> list[Step]:
        """The recipient has a message; its ack may come after the message has found another way."""
        message = self._of(peer, message_id)
        if message is None:
            return []
        self.counts.acked += 1
        return self._finish(message, None)

    def ready(self, peer: PeerId, message_id: str, now: float) -> list[Step]:
        """A recipient that was busy has room for a message."""
        message = self._of(peer, message_id)
        return self._send_on(message, now) if message is not None and message.is_held else []

    def unsent(self, event: Unsent) -> list[Step]:
        """A link did not take a message, as too large for its recipient, or for want of room."""
        recipient = self._recipients.get(event.peer)
        in_flight = [] if recipient is None else recipient.in_flight.values()
        message = next((one for one in in_flight if one.sent is event.message), None)
        if message is None:
            return []
        message.sent = None
        if event.limit is None:
            return []  # it is sent again when the link has room
        return self._refused(message, f"{short(event.peer)} can't take it: {event.reason}")

    def link_load(self, load: LinkLoad, now: float) -> list[Step]:
        """How much waits in a link: see whether it gets on, and what that means for what is overdue."""
        recipient = self._recipients.get(load.peer)
        if recipient is None:
            return []
        if load.left != recipient.left:
            recipient.left, recipient.got_on = load.left, now
        overdue = [message for message in recipient.in_flight.values() if message.is_overdue]
        return [step for message in overdue for step in self._look_at(message, load, now)]

    def _look_at(self, message: DirectMessage, load: LinkLoad, now: float) -> list[Step]:
        message.is_overdue = False
        link = self._links.get(load.peer)
        if message.sent is None and not load.frames and message.call is not None:
            return self._transmit(message, now)
        if link is not None and link.version == 0 and not load.frames:
            return self._finish(message, None)
        if message.call is None and not load.bytes:
            return self._remove(message)
        since = max(message.began, message.recipient.got_on if load.bytes else -math.inf)
        if now >= min(since + self._config.patience, message.began + LONGEST):
            what = f"has not acknowledged any of {message.attempts} attempts in {now - message.began:.1f} s"
            return self._fail(message, f"{short(load.peer)} {what}")
        if load.bytes or (link is not None and link.version == 0):
            return []
        self.counts.retried += 1
        return self._transmit(message, now)

    def timed_out(self, message_id: str, now: float) -> list[Step]:
        """An answer did not come in time."""
        message = self._in_flight[message_id]
        if not message.on_link:
            return self._send_on(message, now)
        self._wait(message, now)
        peer = message.recipient.peer
        if message.is_overdue:  # the answer got lost: this peer is overloaded itself
            return self._look_at(message, LinkLoad(peer, 0, 0, 0), now)
        message.is_overdue = True
        return [Inspect(peer)]

    def responded(self, purpose: Delivery | Inquiry, response: Packet, now: float) -> list[Step]:
        """A request has got its response."""
        match purpose:
            case Delivery(message_id) if response.kind == "ack":
                return self.acknowledged(origin_of(response), message_id)
            case Delivery(message_id) if response.kind == "busy":
                return self._busy(origin_of(response), message_id, now)
            case Delivery(message_id):
                return self._refused(self._in_flight[message_id], refusal_of(response))
            case Inquiry(peer) if response.kind == "refusal":
                messages, reason = self._end_inquiry(self._recipients[peer]), refusal_of(response)
                return [step for message in messages for step in self._refused(message, reason)]
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
        return [step for message in messages for step in self._abandon(message)]

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
        is_ahead = recipient.in_flight and recipient.sent >= recipient.in_flight.oldest().number + AHEAD
        return not is_ahead and len(self._in_flight) < self._config.pending and recipient.in_flight.has_room(size)

    def _send_next(self, recipient: _Recipient, now: float) -> list[Step]:
        call, body = recipient.waiting.popitem(last=False)
        direct = Direct(
            id=self._new_id(),
            payload=body.payload,
            encoding=body.encoding,
            blob=body.blob,
            timestamp=self._wall_ms(now),
        )
        message = DirectMessage(call, recipient, direct, body.size, recipient.sent, now)
        recipient.sent += 1
        recipient.in_flight.add(message.id, message, body.size)
        self._in_flight[message.id] = message
        self.counts.sent += 1
        return self._send_first(message, now)

    def _send_first(self, message: DirectMessage, now: float) -> list[Step]:
        return (
            self._transmit(message, now) if message.recipient.peer in self._links else self._send_packet(message, now)
        )

    def _transmit(self, message: DirectMessage, now: float) -> list[Step]:
        """Send a message over the link to its recipient, and wait for an answer."""
        message.on_link = True
        message.attempts += 1
        peer = message.recipient.peer
        if self._links[peer].version == 0:
            message.is_overdue = True  # it is done as soon as the link has taken it
            self._wait(message, now)
            body = Body(message.message.payload, message.message.encoding, message.message.blob)
            message.sent = Direct(payload=legacy_direct(body))
            return [Transmit(peer, message.sent), Inspect(peer)]
        self._wait(message, now)
        message.sent = message.message
        return [Transmit(peer, message.sent)]

    def _wait(self, message: DirectMessage, now: float) -> None:
        link = self._links.get(message.recipient.peer)
        wait = self._backoff.delay(message.attempts, self._rng)
        wait += message.recipient.in_flight.bytes / self._slowest_link
        if link is not None and link.version == 0:
            wait = LEGACY_CHECK
        self._timers.wait(AckTimeout(message.id), now + wait)

    # --- no room at the recipient -------------------------------------------------------------------------------------

    def _of(self, peer: PeerId, message_id: str) -> DirectMessage | None:
        """The message with this id, if it is for this peer."""
        message = self._in_flight.get(message_id)
        return None if message is None or message.recipient.peer != peer else message

    def _busy(self, peer: PeerId, message_id: str, now: float) -> list[Step]:
        message = self._of(peer, message_id)
        if message is None or message.is_held:
            return []
        self.counts.busy += 1
        if message.call is None:
            return self._remove(message)
        steps: list[Step] = [] if message.on_link else [Cancel(message.id)]
        message.on_link, message.is_overdue, message.attempts, message.is_held = False, False, 0, True
        message.held += 1
        wait = self._hold.delay(message.held, self._rng)
        self._timers.set(AckTimeout(message.id), min(now + wait, max(now, message.began + self._config.patience)))
        return steps

    def _send_on(self, message: DirectMessage, now: float) -> list[Step]:
        """Try one that is held again, if its time is not over."""
        if now >= message.began + self._config.patience:
            peer, took = short(message.recipient.peer), now - message.began
            why = f"the inbox of {peer} was full for {took:.1f} s: its application reads too slowly, or not at all"
            return self._fail(message, why, PeerBusy)
        self._timers.cancel(AckTimeout(message.id))
        message.is_held = False
        return self._send_first(message, now)

    # --- no link to the recipient -------------------------------------------------------------------------------------

    def _send_packet(self, message: DirectMessage, now: float) -> list[Step]:
        """Begin with a message to a recipient without a link."""
        recipient = message.recipient
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

    def _deadline(self, message: DirectMessage) -> float:
        return message.began + self._config.patience + message.size / self._slowest_link

    def _addressed(self, recipient: _Recipient, response: Packet, now: float) -> list[Step]:
        """The response to an inquiry has come: seal what waits for it."""
        peer = recipient.peer
        try:
            reply = content(response.carry) if response.kind == "answer" else None
        except RemoteProtocolError:
            reply = None
        if not isinstance(reply, ContactReply) or not self._contacts.learn(peer, reply.contact):
            is_refused = response.kind == "refusal"
            why = refusal_of(response) if is_refused else f"{short(peer)} does not say how to write to it"
            return self.given_up(Inquiry(peer), why)
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
            return self._refused(message, why)
        try:
            sealed = seal(encode(message.message), contact.box, self._me, peer, message.id, self._network)
        except RemoteProtocolError as error:
            return self._refused(message, f"{short(peer)} can't be written to: {error}")
        packet = Packet(id=message.id, kind="tell", from_=self._me, to=peer, sealed=True, carry=sealed)
        return [self._start(packet, self._deadline(message), Delivery(message.id), now)]

    def _start(self, packet: Packet, deadline: float, purpose: Delivery | Inquiry, now: float) -> Start:
        packet = structs.replace(packet, timestamp=self._wall_ms(now))
        return Start(PendingRequest(packet, deadline, purpose, hurried=True))

    def _refused(self, message: DirectMessage | None, reason: str) -> list[Step]:
        """Its recipient won't have a message, now or later."""
        self.counts.refused += message is not None
        return [] if message is None else self._fail(message, reason, PeerRefused)

    def _fail(self, message: DirectMessage, reason: str, error: type[PeerUnreachable] = PeerUnreachable) -> list[Step]:
        self.counts.unreachable += 1
        return self._finish(message, error(reason))

    def _finish(self, message: DirectMessage, error: MeshError | None) -> list[Step]:
        call = message.call
        return [*self._remove(message), *([] if call is None else [Finish(call, error)])]

    def _abandon(self, message: DirectMessage) -> list[Step]:
        """Nobody waits for a message any more; while it is in a link, it takes its room there."""
        if not message.on_link:
            return self._remove(message)
        message.call, message.is_overdue = None, True
        return [Inspect(message.recipient.peer)]

    def _remove(self, message: DirectMessage) -> list[Step]:
        """Take a message out of its window. What is to be cancelled with it."""
        recipient = message.recipient
        recipient.in_flight.pop(message.id)
        del self._in_flight[message.id]
        self._tidy(recipient)
        if message.on_link or message.is_held:
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
