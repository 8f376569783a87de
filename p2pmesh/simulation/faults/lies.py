"""What hostile peers make of what their cores send: a table for each kind of lie, by the type of message.

Each entry takes a message, the peer and the receiver, and gives what is sent in its place; None for nothing. A peer's
own word about itself is here as well as what it passes on: nobody but the sender stands for either. What an origin
signs is not, but for what the liar signs itself.

Messages in packets of its own are twisted before they are signed, so a table need not care how a message travels: its
entry for packets is for those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import tree_of
from p2pmesh.protocols.routing.forwarding_table import trail_id
from p2pmesh.protocols.routing.packets import REQUESTS, origin_of, received
from p2pmesh.simulation.faults.hostile_peer import HostilePeer, crowd, invented, name
from p2pmesh.wire.messages import (
    Goodbye,
    Gossip,
    GossipAck,
    GossipData,
    GossipDigest,
    GossipHave,
    GossipIHave,
    GossipReceipts,
    GossipWant,
    LinkRejected,
    Message,
    Receipt,
    ReconnectionData,
)
from p2pmesh.wire.overlay import (
    FoundBeyond,
    Merge,
    Neighbours,
    NodesFound,
    Packet,
    Stabilise,
    SuccessorFound,
    ValueStored,
)

Lie: TypeAlias = Callable[[Any, HostilePeer, PeerId], Message | None]
Lies: TypeAlias = Mapping[type, Lie]

_LONG: Final = 60_000
"""Milliseconds: how long a liar says that it has kept what it announces, about."""
_MANY: Final = (1, 7, 30, 1024, 1 << 31)
"""Counts that a liar tells of."""


# --- broadcasts -------------------------------------------------------------------------------------------------------


def _of_others(data: GossipData, peer: HostilePeer) -> bool:
    return data.origin_peer_id != peer.peer_id


def _end(peer: HostilePeer, limit: int) -> int:
    """The end of what a broadcast may be, the last moment before, or the last third."""
    return max(0, limit - peer.rng.choice((0, 1, 2, 100, limit // 3)))


def _aged(message: Gossip, peer: HostilePeer, _: PeerId) -> Message:
    data = message.data
    return replace(message, data=replace(data, age=_end(peer, data.ttl or 0))) if _of_others(data, peer) else message


def _far(message: Gossip, peer: HostilePeer, _: PeerId) -> Message:
    data = message.data
    return replace(message, data=replace(data, hops=_end(peer, data.max_hops))) if _of_others(data, peer) else message


def _kept(message: Gossip, peer: HostilePeer, _: PeerId) -> Message | None:
    return None if _of_others(message.data, peer) else message


def _only_own(message: GossipIHave, peer: HostilePeer, _: PeerId) -> Message | None:
    ids = tuple(one for one in message.ids if one.startswith(tree_of(peer.peer_id)))
    return replace(message, ids=ids) if ids else None


def _ack(message: GossipAck, peer: HostilePeer, _: PeerId) -> Message:
    ids = (*message.new, *message.had, *message.prune)
    match peer.rng.randrange(4):
        case 0:
            return GossipAck(prune=ids)
        case 1:
            return GossipAck(refused=ids, reason="no")
        case 2:
            return GossipAck(had=ids)
        case _:
            return GossipAck(new=tuple(name(peer.rng) for _ in ids))


def _receipts(message: GossipReceipts, peer: HostilePeer, _: PeerId) -> Message:
    rng = peer.rng
    lies = tuple(
        Receipt(id=one.id, count=rng.choice((one.count, *_MANY)), settled=rng.random() < 0.5)
        for one in message.receipts
    )
    unknown = message.unknown if rng.random() < 0.5 else tuple(one.id for one in message.receipts)
    return replace(message, receipts=lies, unknown=unknown)


def _digest(message: GossipDigest, peer: HostilePeer, _: PeerId) -> Message:
    return replace(message, count=peer.rng.choice((0, message.count, *_MANY)), sum=peer.rng.randbytes(8))


def _have(message: GossipHave, peer: HostilePeer, _: PeerId) -> Message:
    ids = peer.rng.choice(((), message.ids[::2], tuple(name(peer.rng) for _ in range(64))))
    return replace(message, ids=ids, after=None, until=None)


def _want(message: GossipWant, peer: HostilePeer, _: PeerId) -> Message:
    return GossipWant(ids=peer.rng.choice(((), (*message.ids, name(peer.rng))[:64])))


# --- who is where -----------------------------------------------------------------------------------------------------


def _names(peer: HostilePeer, to: PeerId, most: int = 3) -> tuple[PeerId, ...]:
    """Peers that don't exist, anywhere or all in one place, its allies, or none."""
    rng = peer.rng
    match rng.randrange(4):
        case 0:
            return invented(rng, most)
        case 1:
            return crowd(rng, rng.choice((peer.peer_id, to)), most)
        case 2:
            return tuple(peer.plot.allies[:most])
        case _:
            return ()


def _contacts(message: ReconnectionData | Goodbye, peer: HostilePeer, _: PeerId) -> Message:
    return replace(message, peers=invented(peer.rng, 3))


def _alternatives(message: LinkRejected, peer: HostilePeer, _: PeerId) -> Message:
    return replace(message, alternative_peers=invented(peer.rng, 3))


def _neighbours(message: Neighbours, peer: HostilePeer, to: PeerId) -> Message:
    return replace(
        message,
        links=_names(peer, to, 8),
        free=peer.rng.choice((0, 1, 1000)),
        leaf=peer.rng.random() < 0.1,
        successors=_names(peer, to, 8),
        predecessors=_names(peer, to, 8),
    )


def _place(message: SuccessorFound, peer: HostilePeer, to: PeerId) -> Message:
    successors, predecessors, vacant = (_names(peer, to, 8) for _ in range(3))
    return SuccessorFound(successors=successors, predecessors=predecessors, vacant=vacant, welcome=True)


def _beyond(message: FoundBeyond, peer: HostilePeer, to: PeerId) -> Message:
    successors, predecessors = (_names(peer, to, 8) for _ in range(2))
    return FoundBeyond(peer=invented(peer.rng, 1)[0], successors=successors, predecessors=predecessors)


def _stabilise(message: Stabilise, peer: HostilePeer, _: PeerId) -> Message:
    return Stabilise(serial=peer.rng.choice((None, 0, 1 << 31)))


def _merge(message: Merge, peer: HostilePeer, _: PeerId) -> Message:
    return replace(message, bridge=invented(peer.rng, 1)[0], wanted=peer.rng.random() < 0.5)


# --- packets ----------------------------------------------------------------------------------------------------------


def is_own(message: Packet, peer: HostilePeer) -> bool:
    """Whether a packet that the peer sends is its own."""
    return origin_of(received(message, peer.peer_id)) == peer.peer_id


def _trails(message: Packet, peer: HostilePeer, to: PeerId) -> Message:
    rng = peer.rng
    strange = tuple(map(trail_id, invented(rng, rng.choice((0, 3, 200)))))
    match rng.randrange(7):
        case 0:
            return replace(message, path=strange)
        case 1:
            return replace(message, tried=(*map(trail_id, invented(rng, 3)), *map(trail_id, peer.plot.everybody[:40])))
        case 2:
            return replace(message, route=strange)
        case 3:
            return replace(message, search=rng.choice((0, 255)), attempt=rng.choice((0, 255)))
        case 4:
            return replace(message, path=(), tried=(), route=())
        case 5:
            return replace(message, key=None, signature=None)
        case _:
            return replace(message, path=(trail_id(to), *strange[:3]))


def _missed(message: Packet, peer: HostilePeer, _: PeerId) -> Message | None:
    """Says to all, in place of passing a request on, that there is no way."""
    if message.kind not in REQUESTS:
        return message
    origin = origin_of(received(message, peer.peer_id))
    for attempt in range(3):
        miss = Packet(id=message.id, kind="miss", to=origin, attempt=attempt)
        peer.send_frame(tuple(peer.peers), miss, urgent=True)
    return None


# --- replay -----------------------------------------------------------------------------------------------------------


def _captured(message: Gossip | Packet, peer: HostilePeer, _: PeerId) -> Message:
    peer.plot.captured.append(message)
    return message


# --- the DHT ----------------------------------------------------------------------------------------------------------


def _found(message: NodesFound, peer: HostilePeer, to: PeerId) -> Message:
    rng = peer.rng
    peers = tuple(peer.plot.allies[:8]) if rng.random() < 0.5 else _names(peer, to, 20)
    return NodesFound(peers=peers, same=rng.random() < 0.3)


def _held(message: ValueStored, peer: HostilePeer, _: PeerId) -> Message:
    return ValueStored(held=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def _nothing(message: Message, peer: HostilePeer, _: PeerId) -> Message | None:
    return None


def _half(table: Lies) -> Lies:
    """For peers of even ids, and half of the time."""

    def one(lie: Lie) -> Lie:
        def sometimes(message: Any, peer: HostilePeer, to: PeerId) -> Message | None:
            return message if int(to[-1], 16) % 2 or peer.rng.random() < 0.5 else lie(message, peer, to)

        return sometimes

    return {kind: one(lie) for kind, lie in table.items()}


AGES: Final[Lies] = {
    Gossip: _aged,
    GossipIHave: lambda message, peer, _: replace(message, age=_end(peer, _LONG)),
}
HOPS: Final[Lies] = {
    Gossip: _far,
    GossipIHave: lambda message, peer, _: replace(message, hops=_end(peer, 255)),
}
CONTACTS: Final[Lies] = {ReconnectionData: _contacts, Goodbye: _contacts, LinkRejected: _alternatives}
RING: Final[Lies] = {
    Neighbours: _neighbours,
    SuccessorFound: _place,
    FoundBeyond: _beyond,
    Stabilise: _stabilise,
    Merge: _merge,
}
ACKS: Final[Lies] = {GossipAck: _ack}
COUNTS: Final[Lies] = {GossipReceipts: _receipts}
DIGESTS: Final[Lies] = {GossipDigest: _digest, GossipHave: _have, GossipWant: _want}
TRAILS: Final[Lies] = {Packet: _trails}
MISSES: Final[Lies] = {Packet: _missed}
DROPS: Final[Lies] = {Gossip: _kept}
BLACK_HOLE: Final[Lies] = {
    Gossip: _kept,
    GossipIHave: _only_own,
    GossipHave: lambda message, peer, _: replace(message, ids=()),
    Packet: _nothing,
    Merge: _nothing,
}
GREY_HOLE: Final[Lies] = _half(BLACK_HOLE)
DHT: Final[Lies] = {NodesFound: _found, ValueStored: _held}
ECLIPSE: Final[Lies] = {
    **BLACK_HOLE,
    Neighbours: lambda message, peer, _: replace(
        message, links=tuple(peer.plot.allies[:8]), successors=tuple(peer.plot.allies[:8]), predecessors=()
    ),
    **DHT,
}
REPLAY: Final[Lies] = {Gossip: _captured, Packet: _captured}
SILENCE: Final[Lies] = dict.fromkeys(Message.__args__, _nothing)
