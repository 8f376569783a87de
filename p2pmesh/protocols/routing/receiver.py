"""Receiver: takes what comes for this peer, requests in packets and direct messages alike, and delivers each once.

A request is acknowledged or answered as often as it comes. The origin of each has been proved already. A direct
message is acknowledged when the application's inbox has it; what is not taken is refused with a reason.

In: requests with the relays they came through, direct messages of neighbours, answers of other cores.
Out: `Taken` (the response to send, what to hand over); of a neighbour's direct message likewise, or an error to blame
  it for.
State: ids of about `RoutingConfig.seen_ids` messages, in windows by their senders; for `SEEN_FOR`, what
  `RoutingConfig.remembered_routes` questions were, with small answers, those of each neighbour apart; the inbox.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import attrs
from attrs import define
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import DirectReceived, Lagged, Payload
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.notices import ReturnPath, RoutedReceived
from p2pmesh.protocols.routing.forwarding_table import trail_id
from p2pmesh.protocols.routing.inbox import Inbox, OverLink, OverRoute
from p2pmesh.protocols.routing.packets import MAX_REASON, SEEN_FOR, content, is_urgent, origin_of, response_to
from p2pmesh.protocols.routing.sealed_box import Contacts, unseal
from p2pmesh.protocols.util.limits import ExpiringSet, LruTable, Novelty, SenderWindows
from p2pmesh.wire.codec import encode
from p2pmesh.wire.fields import TrailId
from p2pmesh.wire.messages import Direct, DirectAck, Message, Offer
from p2pmesh.wire.overlay import ContactReply, ContactRequest, Packet
from p2pmesh.wire.payloads import Body, unpack

SENDER_WINDOW = 1024
"""Ids of one sender that are remembered at most: twice what `direct_sender` lets it be ahead of one that was lost."""

_MAY_HAVE_COME = "it is older than others that came first: it may have come"


class Taken(NamedTuple):
    """What to do about a request: respond, and hand a message over to another core or to the application."""

    response: Packet | None
    message: RoutedReceived | DirectReceived | None = None


class TakenDirect(NamedTuple):
    """What to do about a neighbour's direct message."""

    answer: DirectAck | None
    event: DirectReceived | Lagged | None = None


class _Key(NamedTuple):
    """Whose packet or message, and which."""

    origin: PeerId
    id: str


@define
class ReceiverCounts:
    """What became of what came for us."""

    delivered: int = 0
    """Requests; those are in packets."""
    hops: int = 0
    """Links that those crossed, together."""
    duplicates: int = 0
    answers: int = 0
    refused: int = 0
    unremembered: int = 0
    """Dropped: there is no room to remember them, for what their neighbour brings; they come again another way."""
    directs: int = 0
    """Direct messages, over links and in packets."""
    direct_duplicates: int = 0
    direct_busy: int = 0
    """Those that found the inbox full; their senders come again."""
    direct_dropped: int = 0
    """Of those what came from the original's peers, which can't be told."""
    direct_blamed: int = 0
    """Malformed ones; each ended the link that it came by."""


class _Opened(NamedTuple):
    """A direct message, read."""

    message: Direct
    payload: Payload
    size: int

    @classmethod
    def of(cls, message: Direct) -> _Opened:
        """Read one.

        Raises:
          RemoteProtocolError: if it is malformed.
        """
        payload = unpack(message.payload, message.encoding, message.blob)
        return cls(message, payload, Body(message.payload, message.encoding, message.blob).size)


@define(eq=False)
class _Question:
    """What somebody asked us by a packet."""

    attempt: int
    answer: Packet | None = None


class Receiver:
    """Takes what is for us."""

    def __init__(
        self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock, contacts: Contacts
    ) -> None:
        self.counts: ReceiverCounts = ReceiverCounts()
        self.inbox: Inbox = Inbox(config)
        self._me = identity.peer_id
        self._box = identity.box_key()
        self._config = config
        self._network = config.network
        self._rng = rng
        self._wall = wall
        self._contacts = contacts
        routing = config.routing
        self._seen = SenderWindows(routing.seen_ids, SENDER_WINDOW, config.max_peers, SEEN_FOR)
        lots = min(2 * config.max_peers, routing.remembered_routes)
        self._questions = LruTable[ExpiringSet[_Key, _Question]](lots)
        """By the neighbours that brought them: none makes another's question, and the answer to it, be forgotten."""
        self._questions_each = routing.remembered_routes // lots

    def snapshot(self) -> dict[str, Any]:
        """What became of what came for us, and how much of it is remembered."""
        return {
            **attrs.asdict(self.counts),
            "seen_ids": len(self._seen),
            "seen_ids_refused": self._seen.refused,
            "questions": sum(map(len, self._questions.values())),
            "inbox": self.inbox.snapshot(),
        }

    # --- requests -----------------------------------------------------------------------------------------------------

    def request(self, packet: Packet, path: tuple[TrailId, ...], origin: RemotePeer, by: PeerId, now: float) -> Taken:
        """Take a request that came through these relays, the last of which is a neighbour."""
        key = _Key(origin.peer_id, packet.id)
        question = self._question(key) if packet.kind == "ask" else None
        if question is not None:
            self.counts.duplicates += 1
            question.attempt = packet.attempt
            if question.answer is not None:
                return Taken(structs.replace(question.answer, attempt=packet.attempt))
        elif packet.kind == "tell":
            match self._seen.judge(*key, packet.timestamp / 1000, by, self._wall(now)):
                case Novelty.KNOWN:
                    self.counts.duplicates += 1
                    return Taken(self._ack(packet))
                case Novelty.OLD:
                    self.counts.refused += 1
                    return Taken(self.refusal(packet, _MAY_HAVE_COME))
                case Novelty.FULL:
                    self.counts.unremembered += 1
                    return Taken(None)
                case Novelty.NEW:
                    pass
        try:
            message = self._open(packet, now)
            direct = self._open_direct(packet, message) if isinstance(message, Direct) else None
        except RemoteProtocolError as error:
            self.counts.refused += 1
            return Taken(self.refusal(packet, str(error)))
        if direct is not None and not self.inbox.has_room(direct.size):
            self.counts.direct_busy += 1
            self.inbox.turn_away(key, OverRoute(response_to(packet, "ready", self._me), path))
            return Taken(response_to(packet, "busy", self._me))
        if isinstance(message, Offer) and question is None and not self._is_new(packet, key, by, now):
            self.counts.unremembered += 1  # else who has seen one could make us hold a slot for it again and again
            return Taken(None)
        self.counts.delivered += 1
        self.counts.hops += len(path) + 1
        if packet.kind == "ask":
            self._ask(key, packet.attempt, by, now)
        else:
            self._seen.add(*key, packet.timestamp / 1000, by, self._wall(now))
        if direct is not None:
            return Taken(self._ack(packet), self._put_in(key, direct, True, len(path) + 1, now))
        way = ReturnPath(origin.peer_id, packet.id, (trail_id(origin.peer_id), *path), by)
        if isinstance(message, ContactRequest):
            self._contacts.learn(origin.peer_id, message.contact)
            reply = ContactReply(contact=self._contacts.own(int(self._wall(now) * 1000)))
            return Taken(self.answer(way, reply) if packet.kind == "ask" else self._ack(packet))
        return Taken(self._ack(packet) if packet.kind == "tell" else None, RoutedReceived(origin, message, way))

    def _is_new(self, packet: Packet, key: _Key, by: PeerId, now: float) -> bool:
        at, wall = packet.timestamp / 1000, self._wall(now)
        if self._seen.judge(*key, at, by, wall) is not Novelty.NEW:
            return False
        self._seen.add(*key, at, by, wall)
        return True

    def _question(self, key: _Key) -> _Question | None:
        return next((asked[key] for asked in self._questions.values() if key in asked), None)

    def _ask(self, key: _Key, attempt: int, by: PeerId, now: float) -> None:
        asked = self._questions.get(by) or ExpiringSet[_Key, _Question](self._questions_each)
        self._questions.put(by, asked)
        if self._question(key) is None:
            asked.add(key, _Question(attempt), now + SEEN_FOR, now)

    def answer(self, way: ReturnPath, message: Message) -> Packet | None:
        """The packet that answers a question; None if it took so long that nobody waits any more."""
        question = self._question(_Key(way.peer, way.packet_id))
        if question is None:
            return None
        answer = Packet(
            id=way.packet_id,
            kind="answer",
            from_=self._me,
            to=way.peer,
            attempt=question.attempt,
            carry=encode(message),
        )
        if is_urgent(answer):  # a large one is rather made anew, should the question be repeated
            question.answer = answer
        self.counts.answers += 1
        return answer

    def _open(self, packet: Packet, now: float) -> Message:
        """The message in a request.

        Raises:
          RemoteProtocolError: if we don't take it; the text is for its origin.
        """
        if packet.signature is not None:  # else the link says that it is no repetition by somebody else
            apart = abs(int(self._wall(now) * 1000) - packet.timestamp) / 1000
            if apart > self._config.routing.clock_skew:
                raise RemoteProtocolError(f"it is {apart:.0f} s old or young, by the clock here: is yours right?")
        carry = packet.carry
        if packet.sealed:
            carry = unseal(carry, self._box, origin_of(packet), self._me, packet.id, self._network)
        message = content(carry)
        if message is None:
            raise RemoteProtocolError("this type of message is not taken from packets")
        return message

    def _open_direct(self, packet: Packet, message: Direct) -> _Opened:
        if not packet.sealed or packet.kind != "tell" or message.id != packet.id:
            raise RemoteProtocolError("a direct message is sealed, and of its packet's id")
        opened = _Opened.of(message)
        reason = self._too_large(opened.size)
        if reason is not None:
            raise RemoteProtocolError(reason)
        return opened

    def _too_large(self, size: int) -> str | None:
        """Why a payload of this size is refused, if it is."""
        most = self._config.max_payload
        return None if size <= most else f"its payload has {size} bytes: too large for this peer, which takes {most}"

    def _ack(self, request: Packet) -> Packet:
        return response_to(request, "ack", self._me)

    def refusal(self, request: Packet, reason: str) -> Packet:
        """The response to a request that is not taken, now or later."""
        return response_to(request, "refusal", self._me, carry=reason.encode("utf-8", "replace")[:MAX_REASON])

    # --- direct messages from neighbours ------------------------------------------------------------------------------

    def direct(self, sender: RemotePeer, message: Direct, now: float) -> TakenDirect:
        """Take a direct message that came over a link.

        Raises:
          RemoteProtocolError: if it breaks the protocol.
        """
        try:
            return self._legacy(sender, message, now) if sender.version == 0 else self._direct(sender, message, now)
        except RemoteProtocolError:
            self.counts.direct_blamed += 1
            raise

    def _direct(self, sender: RemotePeer, message: Direct, now: float) -> TakenDirect:
        if message.id is None:
            raise RemoteProtocolError("a direct message without an id")
        key = _Key(sender.peer_id, message.id)
        wall = self._wall(now)
        at = wall if message.timestamp is None else message.timestamp / 1000
        by = f"{sender.peer_id} itself"  # what it brings of others does not fill this part
        novelty = self._seen.judge(*key, at, by, wall)
        if novelty is Novelty.KNOWN:
            self.counts.direct_duplicates += 1
            return TakenDirect(DirectAck(id=message.id))
        opened = _Opened.of(message)
        reason = self._too_large(opened.size) if novelty is Novelty.NEW else _MAY_HAVE_COME
        if reason is not None:
            self.counts.refused += 1
            return TakenDirect(DirectAck(id=message.id, outcome="refused", reason=reason))
        if not self.inbox.has_room(opened.size):
            self.counts.direct_busy += 1
            self.inbox.turn_away(key, OverLink(sender.peer_id, DirectAck(id=message.id, outcome="ready")))
            return TakenDirect(DirectAck(id=message.id, outcome="busy"))
        self._seen.add(*key, at, by, wall)
        return TakenDirect(DirectAck(id=message.id), self._put_in(key, opened, sender.verified, 1, now))

    def _legacy(self, sender: RemotePeer, message: Direct, now: float) -> TakenDirect:
        """From a peer of the original, which can't be told that there is no room."""
        size = len(encode(message, text=True))
        if not self.inbox.has_room(size):
            self.counts.direct_dropped += 1
            return TakenDirect(None, Lagged(1))
        key = _Key(sender.peer_id, self._rng.randbytes(16).hex())
        opened = _Opened(message, message.payload, size)
        return TakenDirect(None, self._put_in(key, opened, sender.verified, 1, now))

    def _put_in(self, key: _Key, opened: _Opened, verified: bool, hops: int, now: float) -> DirectReceived:
        """Give a message to the application, which has room for it."""
        self.counts.directs += 1
        self.inbox.add(key, opened.size)
        sent = opened.message.timestamp
        timestamp = self._wall(now) if sent is None else sent / 1000
        return DirectReceived(key.origin, opened.payload, key.id, timestamp, verified, hops)
