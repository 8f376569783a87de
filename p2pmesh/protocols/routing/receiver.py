"""What comes for this peer: requests in packets, and direct messages, over links as in packets. Each is delivered once.

A request is acknowledged or answered as often as it comes. Whoever sent it has been proved already.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from attrs import define
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import DirectReceived, Payload
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import DropLink, Effect, Emit, Notify, SendFrame
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.notices import ReturnPath, RoutedReceived
from p2pmesh.protocols.routing.contacts import Contacts
from p2pmesh.protocols.routing.direct_sender import REMEMBERED
from p2pmesh.protocols.routing.packets import TRAVELLERS, content, is_urgent
from p2pmesh.protocols.routing.sealed_box import unseal
from p2pmesh.protocols.util.lru_table import ExpiringSet
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Direct, DirectAck, Message
from p2pmesh.wire.overlay import ContactReply, ContactRequest, Packet
from p2pmesh.wire.payloads import Body, unpack

_MAX_REASON = 200
"""Bytes of a refusal."""


class _Key(NamedTuple):
    """Whose packet or message, and which."""

    origin: PeerId
    id: str


@define
class PacketCounts:
    """What became of requests for us."""

    delivered: int = 0
    hops: int = 0
    """Links that those crossed, together."""
    duplicates: int = 0
    answers: int = 0
    refused: int = 0


@define
class ReceiverCounts:
    """What became of direct messages for us."""

    received: int = 0
    duplicates: int = 0
    blamed: int = 0


@define(eq=False)
class _Asked:
    """What somebody asked us by a packet."""

    attempt: int
    waits: bool
    answer: Packet | None = None


class Receiver:
    """Takes what is for us."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        contacts: Contacts,
        do: Callable[[Effect], None],
        respond: Callable[[Packet, tuple[PeerId, ...]], None],
    ) -> None:
        self.packets: PacketCounts = PacketCounts()
        self.counts: ReceiverCounts = ReceiverCounts()
        self._me = identity.peer_id
        self._box = identity.box_key()
        self._config = config
        self._rng = rng
        self._wall = wall
        self._contacts = contacts
        self._do = do
        self._respond = respond
        seen_ids = config.routing.seen_ids
        self.seen: ExpiringSet[_Key, None] = ExpiringSet(seen_ids)
        """Direct messages."""
        self.heard: ExpiringSet[_Key, None] = ExpiringSet(seen_ids)
        """Other messages that came in packets."""
        self.asked: ExpiringSet[_Key, _Asked] = ExpiringSet(config.routing.remembered_routes)

    # --- requests -------------------------------------------------------------------------------------------------------

    def request(self, packet: Packet, path: tuple[PeerId, ...], origin: RemotePeer, now: float) -> None:
        """A request came by this path."""
        key = _Key(packet.from_, packet.id)
        if packet.kind == "tell" and (key in self.heard or key in self.seen):
            self.packets.duplicates += 1
            self._ack(packet, path)
            return
        if packet.kind == "ask" and key in self.asked:
            self.packets.duplicates += 1
            asked = self.asked[key]
            asked.attempt = packet.attempt
            if asked.answer is not None:
                self._respond(structs.replace(asked.answer, attempt=packet.attempt), path)
                return
        try:
            message = self._open(packet, len(path), now)
        except RemoteProtocolError as error:
            self._refuse(packet, path, str(error))
            return
        self.packets.delivered += 1
        self.packets.hops += len(path)
        way = ReturnPath(packet.from_, packet.id, path)
        if packet.kind == "ask":
            self.asked.add(key, _Asked(packet.attempt, packet.waits), now + REMEMBERED, now)
        else:
            self._ack(packet, path)
        match message:
            case Direct():
                pass  # delivered when it was opened
            case ContactRequest(contact=contact):
                self._contacts.learn(packet.from_, contact)
                self.answer(way, ContactReply(contact=self._contacts.own(int(self._wall(now) * 1000))))
            case _:
                if packet.kind == "tell":
                    self.heard.add(key, None, now + REMEMBERED, now)
                self._do(Notify(TRAVELLERS[type(message)], RoutedReceived(origin, message, way)))

    def _open(self, packet: Packet, hops: int, now: float) -> Message:
        """What is in a request; a direct message is delivered.

        Raises:
          RemoteProtocolError: if we don't take it; the text is for its origin.
        """
        if packet.signature is not None:  # else the link says that it is no repetition by somebody else
            apart = abs(int(self._wall(now) * 1000) - packet.timestamp) / 1000
            if apart > self._config.routing.clock_skew:
                raise RemoteProtocolError(f"it is {apart:.0f} s old or young, by the clock here: is yours right?")
        carry = packet.carry
        if packet.sealed:
            carry = unseal(carry, self._box, packet.from_, self._me, packet.id)
        message = content(carry)
        if message is None:
            raise RemoteProtocolError("this type of message is not taken from packets")
        if isinstance(message, Direct):
            self._open_direct(packet, message, hops, now)
        return message

    def _open_direct(self, packet: Packet, message: Direct, hops: int, now: float) -> None:
        if not packet.sealed or packet.kind != "tell" or message.id != packet.id:
            raise RemoteProtocolError("a direct message is sealed, and of its packet's id")
        payload = unpack(message.payload, message.encoding, message.blob)
        size = Body(message.payload, message.encoding, message.blob).size
        if size > self._config.max_payload:
            raise RemoteProtocolError(
                f"its payload has {size} bytes: too large for this peer, which takes {self._config.max_payload}"
            )
        self.seen.add(_Key(packet.from_, packet.id), None, now + REMEMBERED, now)
        self._deliver(packet.from_, message, payload, now, verified=True, hops=hops)

    def _ack(self, packet: Packet, path: tuple[PeerId, ...]) -> None:
        ack = Packet(
            id=packet.id,
            kind="ack",
            from_=self._me,
            to=packet.from_,
            attempt=packet.attempt,
            waits=packet.waits,
        )
        self._respond(ack, path)

    def _refuse(self, packet: Packet, path: tuple[PeerId, ...], reason: str) -> None:
        self.packets.refused += 1
        refusal = Packet(
            id=packet.id,
            kind="refusal",
            from_=self._me,
            to=packet.from_,
            attempt=packet.attempt,
            carry=reason.encode("utf-8", "replace")[:_MAX_REASON],
        )
        self._respond(refusal, path)

    def answer(self, way: ReturnPath, message: Message) -> None:
        """The answer to one."""
        key = _Key(way.peer, way.packet_id)
        if key not in self.asked:
            return  # it took so long that nobody waits any more
        asked = self.asked[key]
        answer = Packet(
            id=way.packet_id,
            kind="answer",
            from_=self._me,
            to=way.peer,
            attempt=asked.attempt,
            carry=encode(message),
            waits=asked.waits,
        )
        if is_urgent(answer):  # a large one is rather made anew, should the question be repeated
            asked.answer = answer
        self.packets.answers += 1
        self._respond(answer, way.path)

    # --- direct messages from neighbours ------------------------------------------------------------------------------

    def direct(self, sender: RemotePeer, message: Direct, now: float) -> None:
        """A direct message came over a link."""
        if sender.version == 0:
            self._deliver(sender.peer_id, message, message.payload, now, verified=sender.verified)
        else:
            self._direct(sender, message, now)

    def _direct(self, sender: RemotePeer, message: Direct, now: float) -> None:
        if message.id is None:
            self._blame(sender.peer_id, "a direct message without an id")
            return
        key = _Key(sender.peer_id, message.id)
        if key in self.seen:
            self.counts.duplicates += 1
            self._ack_direct(sender.peer_id, message.id)
            return
        try:
            payload = unpack(message.payload, message.encoding, message.blob)
        except RemoteProtocolError as error:
            self._blame(sender.peer_id, str(error))
            return
        self.seen.add(key, None, now + REMEMBERED, now)
        self._ack_direct(sender.peer_id, message.id)
        self._deliver(sender.peer_id, message, payload, now, verified=sender.verified)

    def _deliver(
        self, origin: PeerId, message: Direct, payload: Payload, now: float, *, verified: bool, hops: int = 1
    ) -> None:
        self.counts.received += 1
        timestamp = self._wall(now) if message.timestamp is None else message.timestamp / 1000
        message_id = message.id or self._rng.randbytes(16).hex()
        self._do(Emit(DirectReceived(origin, payload, message_id, timestamp, verified, hops)))

    def _ack_direct(self, peer: PeerId, message_id: str) -> None:
        self._do(SendFrame((peer,), DirectAck(id=message_id), urgent=True))

    def _blame(self, peer: PeerId, reason: str) -> None:
        self.counts.blamed += 1
        self._do(DropLink(peer, reason, blame=True))
