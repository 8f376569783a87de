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

from msgspec import structs

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.wire.canonical import DEFAULT_NETWORK, covered, number, text
from p2pmesh.wire.codec import decode
from p2pmesh.wire.fields import MAX_TRAIL
from p2pmesh.wire.messages import Answer, Direct, GossipReceipts, LinkRejected, Message, Offer
from p2pmesh.wire.overlay import (
    ContactReply,
    ContactRequest,
    FindBeyond,
    FindNode,
    FindSuccessor,
    FindValue,
    FoundBeyond,
    KademliaRpc,
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
    KademliaRpc: Subsystem.KADEMLIA,
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


def signed(packet: Packet, identity: Identity, network: bytes = DEFAULT_NETWORK) -> Packet:
    """The same packet with its origin's key and signature."""
    return structs.replace(packet, key=identity.public_key, signature=identity.sign(_covered(packet, network)))


def is_proven(packet: Packet, network: bytes = DEFAULT_NETWORK) -> bool:
    """Whether it carries its origin's signature, and that is right in this network."""
    if packet.key is None or packet.signature is None:
        return False
    if peer_id_of(packet.key) != packet.from_:
        return False
    return verify(packet.key, packet.signature, _covered(packet, network))


def is_small(packet: Packet) -> bool:
    """Whether it takes no time worth mentioning to be sent."""
    return len(packet.carry) <= SMALL_SIZE


def is_urgent(packet: Packet) -> bool:
    """Whether it overtakes payloads on a link."""
    return not packet.sealed and is_small(packet)


def is_returned(packet: Packet, sender: PeerId) -> bool:
    """Whether this neighbour gives back a packet that it got from us."""
    return sender in packet.tried


def trail_error(packet: Packet, sender: PeerId, me: PeerId) -> str | None:
    """Say what is wrong with a packet's trails that no honest neighbour would send; None if nothing is."""
    path, tried = packet.path, packet.tried
    visited = {*path, *tried}
    if len(visited) != len(path) + len(tried):
        return "a packet that was at a peer twice"
    if len(visited) + len(packet.route) > MAX_TRAIL:
        return "a packet with a trail that is too long"
    if me in visited or (packet.to in visited and not packet.nearest):
        return "a packet that goes in a circle"
    if is_returned(packet, sender):
        return None if (path[0] if path else me) == packet.from_ else "a packet given back that has another origin"
    if (path[0] if path else sender) != packet.from_:
        return "a packet whose path does not begin at its origin"
    return "a packet that its sender has had before" if sender in path else None


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
        return f"{short(response.from_)} answered what was not asked"
    return f"{short(response.from_)} refused it: {response.carry[:MAX_REASON].decode('utf-8', 'replace')}"


def _covered(packet: Packet, network: bytes) -> bytes:
    return covered(
        _DOMAIN,
        network,
        text(packet.id),
        packet.kind.encode(),
        packet.from_.encode(),
        packet.to.encode(),
        b"\1" if packet.nearest else b"\0",
        number(packet.timestamp),
        b"\1" if packet.sealed else b"\0",
        packet.carry,
    )
