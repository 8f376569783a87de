"""What hostile peers send that nobody asked for, each a function that makes one frame for one neighbour.

All of it is well-formed, and where a signature belongs there is a good one: by the peer's own key, or a throw-away one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from p2pmesh.config import KademliaConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast import validation
from p2pmesh.protocols.kademlia.records import sign_record
from p2pmesh.protocols.routing.sealed_box import contact_of
from p2pmesh.protocols.signaling.handshake import sign_offer
from p2pmesh.simulation.faults.hostile_peer import HostilePeer, invented, name, packet, stranger
from p2pmesh.simulation.model.sdp_stub import describe
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import (
    LEAF,
    Direct,
    Gossip,
    GossipData,
    GossipDigest,
    GossipGraft,
    GossipHave,
    GossipHistory,
    GossipIHave,
    GossipReceipts,
    GossipWant,
    Message,
    Offer,
    Receipt,
)
from p2pmesh.wire.overlay import (
    ContactRequest,
    FindBeyond,
    FindNode,
    FindSuccessor,
    FindValue,
    Merge,
    Stabilise,
    StoreValue,
)
from p2pmesh.wire.signaling import PeerSignal

Maker: TypeAlias = Callable[[HostilePeer, PeerId], Message]
"""Makes a frame for a neighbour."""

_EVER: Final = (1 << 53) - 1
"""Milliseconds: any age."""
_TTL: Final = 60_000
"""Milliseconds that a flusher's broadcasts live: as long as those of others, which they are to push out."""


# --- floods -----------------------------------------------------------------------------------------------------------


def unasked(peer: HostilePeer, _: PeerId) -> Message:
    """A direct message, an offer of a broadcast that doesn't exist, or a receipt for nothing."""
    rng = peer.rng
    match rng.randrange(3):
        case 0:
            return Direct(id=name(rng), payload="flood", encoding="text")
        case 1:
            return GossipIHave(ids=(name(rng),))
        case _:
            lie = Receipt(id=name(rng), count=rng.getrandbits(20), settled=True)
            return GossipReceipts(number=rng.getrandbits(31), receipts=(lie,))


def _broadcast(peer: HostilePeer, of: Identity) -> Message:
    data = GossipData(
        id="",
        topic="flood",
        payload="x",
        encoding="text",
        origin_peer_id=of.peer_id,
        timestamp=peer.wall_ms,
        ttl=_TTL,
        series=peer.rng.getrandbits(40) + 1,
        sequence=1,
        hops=0,
        receipts=peer.rng.random() < 0.5,
    )
    return Gossip(data=validation.signed(data, of, peer.network))


def own_broadcast(peer: HostilePeer, _: PeerId) -> Message:
    """A broadcast, in a series of its own."""
    return _broadcast(peer, peer.identity)


def strange_broadcast(peer: HostilePeer, _: PeerId) -> Message:
    """A broadcast of a throw-away origin."""
    return _broadcast(peer, stranger(peer.rng))


def direct(peer: HostilePeer, _: PeerId) -> Message:
    """A direct message."""
    return Direct(id=name(peer.rng), payload="flood", encoding="text", timestamp=peer.wall_ms)


def replayed(peer: HostilePeer, _: PeerId) -> Message:
    """What somebody has passed on before, as it was."""
    return peer.rng.choice(peer.plot.captured) if peer.plot.captured else Stabilise()


def contact(peer: HostilePeer, to: PeerId) -> Message:
    """A throw-away peer's request for a contact record, with its own."""
    of = stranger(peer.rng)
    return packet(peer, to, ContactRequest(contact=contact_of(of, 1 << 20, peer.wall_ms, peer.network)), of=of)


def question(peer: HostilePeer, to: PeerId) -> Message:
    """A throw-away peer's question for the receiver."""
    return packet(peer, to, FindNode(target=invented(peer.rng, 1)[0]), of=stranger(peer.rng))


def store(peer: HostilePeer, to: PeerId) -> Message:
    """A throw-away publisher's value, right where the receiver is."""
    of = stranger(peer.rng)
    key = PeerId(to[:8] + invented(peer.rng, 1)[0][8:])
    record = sign_record(of, key, "flood", peer.wall_ms, 3600, KademliaConfig(), peer.network).record
    return packet(peer, to, StoreValue(record=record), of=of)


def offer(peer: HostilePeer, to: PeerId) -> Message:
    """A throw-away peer's offer of a link, as one that has none."""
    description = describe(f"{peer.rng.getrandbits(64):016x}", peer.rng.randbytes(32), "actpass")
    return packet(peer, to, Offer(description=description, links=0, purpose=LEAF), of=stranger(peer.rng))


def signal(peer: HostilePeer, to: PeerId) -> PeerSignal:
    """An offer of a link by way of the service, each another one."""
    description = describe(f"{peer.rng.getrandbits(64):016x}", peer.rng.randbytes(32), "actpass")
    made = sign_offer(peer.identity, to, Offer(description=description, links=0, purpose=LEAF), network=peer.network)
    return PeerSignal(to=to, signal=made)


# --- small frames that cause work -------------------------------------------------------------------------------------


def history(peer: HostilePeer, _: PeerId) -> Message:
    """Asks for the names of all broadcasts."""
    return GossipHistory(within=_EVER)


def have(peer: HostilePeer, _: PeerId) -> Message:
    """Says to have nothing at all."""
    return GossipHave(within=_EVER)


def digest(peer: HostilePeer, _: PeerId) -> Message:
    """Says to have other broadcasts."""
    return GossipDigest(count=peer.rng.getrandbits(12), sum=peer.rng.randbytes(8), within=_EVER)


def unknown(peer: HostilePeer, _: PeerId) -> Message:
    """Names, asks for, or grafts broadcasts that don't exist."""
    ids = tuple(name(peer.rng) for _ in range(16))
    return peer.rng.choice((GossipHave(ids=ids), GossipWant(ids=ids), GossipGraft(ids=ids), GossipIHave(ids=ids)))


def stabilise(peer: HostilePeer, _: PeerId) -> Message:
    """Asks for all links."""
    return Stabilise()


def merge(peer: HostilePeer, _: PeerId) -> Message:
    """News of a bridge to nowhere."""
    return Merge(id=name(peer.rng), bridge=invented(peer.rng, 1)[0], path=(peer.peer_id,))


def epoch(peer: HostilePeer, _: PeerId) -> Message:
    """Asks which process this is."""
    return GossipReceipts(ask=True)


def search(peer: HostilePeer, to: PeerId) -> Message:
    """A packet for the nearest to anywhere, which crosses the mesh and is answered."""
    key = invented(peer.rng, 1)[0]
    return packet(peer, key, FindSuccessor(key=key, seeks_link=True), nearest=True)


def query(peer: HostilePeer, to: PeerId) -> Message:
    """A question to the DHT's core of the receiver."""
    key = invented(peer.rng, 1)[0]
    inside = peer.rng.choice((FindNode(target=key), FindValue(key=key), FindBeyond(key=key)))
    return packet(peer, to, inside)


def nowhere(peer: HostilePeer, _: PeerId) -> Message:
    """A packet to a peer that doesn't exist, which is looked for."""
    return packet(peer, invented(peer.rng, 1)[0], FindNode(target=peer.peer_id))


FLUSH: Final[tuple[Maker, ...]] = (own_broadcast, strange_broadcast, direct, contact, question, store)
BURN: Final[tuple[Maker, ...]] = (
    history, have, digest, unknown, stabilise, merge, epoch, search, query, nowhere,
)  # fmt: skip


def garbage(peer: HostilePeer) -> bytes:
    """Random bytes, a message cut short, or a message with a field of the wrong type."""
    match peer.rng.randrange(3):
        case 0:
            return peer.rng.randbytes(peer.rng.randrange(1, 64))
        case 1:
            frame = encode(GossipHave(ids=("x" * 32,)))
            return frame[: peer.rng.randrange(1, len(frame))]
        case _:
            return b'{"type":"gossip","data":{"id":[]}}'
