r"""Packets: messages on their way over several links: what is signed, what they may carry, which are malformed.

The origin's signature (Ed25519, RFC 8032) covers, with `field(x)` the length of `x` in bytes as a 32-bit big-endian
number and then `x`::

    b"p2pmesh packet v1\0"
    field(network: see `p2pmesh.wire.canonical`)
    field(id)
    field(kind)
    field(from: 40 lower-case hexadecimal digits)
    field(to)
    field(nearest: b"\1" or b"\0")
    field(timestamp, 64 bits)
    field(sealed: b"\1" or b"\0")
    field(carry)

It proves the origin if the key's SHA-256 begins with the origin's id. Only the receiver checks it. Between neighbours
a packet that nobody relayed needs none: the link proves who sent it.

Pure functions of packets; no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from msgspec import structs

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.routing.forwarding_table import trail_id
from p2pmesh.wire.canonical import covered, number, text
from p2pmesh.wire.codec import decode
from p2pmesh.wire.fields import TrailId
from p2pmesh.wire.messages import Answer, Direct, GossipReceipts, LinkRejected, Message, Offer
from p2pmesh.wire.overlay import (
    ContactReply,
    ContactRequest,
    FindBeyond,
    FindNode,
    FindSuccessor,
    FindValue,
    FoundBeyond,
    NodesFound,
    Packet,
    StoreValue,
    SuccessorFound,
    ValueStored,
)

CARRIED_TYPES: Mapping[type[Message], Subsystem] = {
    Direct: Subsystem.ROUTING,
    ContactRequest: Subsystem.ROUTING,
    ContactReply: Subsystem.ROUTING,
    Offer: Subsystem.SIGNALING,
    Answer: Subsystem.SIGNALING,
    LinkRejected: Subsystem.SIGNALING,
    FindSuccessor: Subsystem.OVERLAY,
    SuccessorFound: Subsystem.OVERLAY,
    FindNode: Subsystem.KADEMLIA,
    FindValue: Subsystem.KADEMLIA,
    NodesFound: Subsystem.KADEMLIA,
    StoreValue: Subsystem.KADEMLIA,
    ValueStored: Subsystem.KADEMLIA,
    FindBeyond: Subsystem.ISLANDS,
    FoundBeyond: Subsystem.ISLANDS,
    GossipReceipts: Subsystem.RECEIPTS,
}
"""What a packet may carry, and the core that gets it at the receiver. All else is refused."""

SMALL_SIZE = 4096
"""Bytes. Packets that carry no more, and nothing sealed, overtake payloads: calls, answers, acks, offers."""

SEEN_FOR = 600.0
"""Seconds for which the id of what was delivered is remembered: far beyond what its sender's retries take."""

REQUESTS = ("tell", "ask")
"""Kinds that want a response."""

MAX_REASON = 200
"""Bytes of a refusal's reason."""

_DOMAIN = b"p2pmesh packet v1\0"

ResponseKind: TypeAlias = Literal["ack", "answer", "refusal", "miss", "busy", "ready"]


def signed(packet: Packet, identity: Identity, network: bytes) -> Packet:
    """The same packet with its origin's key and signature."""
    packet = structs.replace(packet, from_=identity.peer_id, key=identity.public_key)
    return structs.replace(packet, signature=identity.sign(_covered(packet, network)))


def is_proven(packet: Packet, network: bytes) -> bool:
    """Whether it carries its origin's signature, and that is right in this network."""
    if packet.key is None or packet.signature is None:
        return False
    return verify(packet.key, packet.signature, _covered(packet, network))


def is_small(packet: Packet) -> bool:
    """Whether it takes no time worth mentioning to be sent."""
    return len(packet.carry) <= SMALL_SIZE


def is_urgent(packet: Packet) -> bool:
    """Whether it overtakes payloads on a link."""
    return not packet.sealed and is_small(packet)


def received(packet: Packet, sender: PeerId) -> Packet:
    """A packet as it came from this neighbour, with its origin, whatever it says of that itself."""
    return structs.replace(packet, from_=sender if packet.key is None else peer_id_of(packet.key))


def origin_of(packet: Packet) -> PeerId:
    """The origin of a packet of ours, or one `received`."""
    if packet.from_ is None:
        raise AssertionError(packet)
    return packet.from_


def response_to(request: Packet, kind: ResponseKind, me: PeerId, **fields: Any) -> Packet:
    """A response of ours."""
    return Packet(id=request.id, kind=kind, from_=me, to=origin_of(request), attempt=request.attempt, **fields)


def visited_by(packet: Packet, path: tuple[TrailId, ...]) -> tuple[TrailId, ...]:
    """Where a packet that came through these relays does not go again."""
    return (trail_id(origin_of(packet)), *path, *packet.tried)


def is_returned(packet: Packet, sender: PeerId) -> bool:
    """Whether this neighbour gives back a packet that it got from us."""
    return trail_id(sender) in packet.tried


def path_to_us(packet: Packet, sender: PeerId) -> tuple[TrailId, ...]:
    """The relays that a packet has come through, its origin not among them."""
    is_known = sender == packet.from_ or is_returned(packet, sender)
    return packet.path if is_known else (*packet.path, trail_id(sender))


def content(carry: bytes) -> Message | None:
    """The message in a packet; None if it is of a type that packets don't carry, or that we don't know.

    Raises:
      RemoteProtocolError: if it is malformed.
    """
    if not carry or carry[0] < 0x80:
        raise RemoteProtocolError("a packet that carries no message")
    message = decode(carry)
    return message if type(message) in CARRIED_TYPES else None  # type: ignore[return-value]  # so not Unknown


def refusal_of(response: Packet) -> str:
    """Why a receiver would not take a packet, in words."""
    if response.kind != "refusal":
        return f"{short(origin_of(response))} answered what was not asked"
    return f"{short(origin_of(response))} refused it: {response.carry[:MAX_REASON].decode('utf-8', 'replace')}"


def _covered(packet: Packet, network: bytes) -> bytes:
    return covered(
        _DOMAIN,
        network,
        text(packet.id),
        packet.kind.encode(),
        origin_of(packet).encode(),
        packet.to.encode(),
        b"\1" if packet.nearest else b"\0",
        number(packet.timestamp),
        b"\1" if packet.sealed else b"\0",
        packet.carry,
    )
