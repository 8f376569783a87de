"""Peers that work against the mesh, within what a peer can do: it holds its own key, and sends what it likes.

A hostile peer runs the same cores as the others, and does its mischief on top, so that it is let in and stays in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

from msgspec.structs import replace

from p2pmesh.keyspace import ID_BITS, PeerId
from p2pmesh.protocols.core import SendFrame
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import (
    Direct,
    Goodbye,
    Gossip,
    GossipData,
    GossipHave,
    GossipIHave,
    GossipReceipts,
    Message,
    Receipt,
    ReconnectionData,
)
from p2pmesh.wire.signaling import ConnectionRejected, SignalingMessage

EVERY: Final = 0.5
"""Seconds between two acts of mischief of one peer."""
FLOOD: Final = 50
"""Frames in one act of a flooder."""
GARBAGE_EVERY: Final = 10
"""Acts of a peer for one piece of garbage, which ends its link at once: more would leave no link to send it over."""


class HostilePeer(Protocol):
    """What an adversary needs of the peer that it has taken over, and of its network."""

    @property
    def peer_id(self) -> PeerId:
        """Its id."""

    @property
    def rng(self) -> random.Random:
        """Draws what it does."""

    @property
    def peers(self) -> Sequence[PeerId]:
        """Its neighbours."""

    def send_frame(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool) -> None:
        """Send a message to neighbours."""

    def send_bytes(self, peer: PeerId, frame: bytes) -> None:
        """Send a neighbour bytes that are no message."""


class Adversary(Enum):
    """What a hostile peer does."""

    GARBAGE = "garbage"
    """Sends bytes that are no messages."""
    LIAR = "liar"
    """Names peers that don't exist where it should name contacts."""
    DROPPER = "dropper"
    """Acknowledges broadcasts of others and passes none on."""
    FLOODER = "flooder"
    """Sends what no peer asked for: direct messages, offers of broadcasts that don't exist, receipts for nothing."""
    AGES = "ages"
    """Says of others' broadcasts that their time is over, or nearly so."""
    HOPS = "hops"
    """Says of others' broadcasts that they have come as far as they may, or nearly so."""

    def lets_pass(self, frame: SendFrame, peer: HostilePeer) -> bool:
        """Whether the peer sends what its cores ask it to."""
        match frame.message:
            case Gossip(data=GossipData(origin_peer_id=origin)) if self is Adversary.DROPPER:
                return origin == peer.peer_id
            case Gossip(data=data) if self in _ON_THE_WAY and data.origin_peer_id != peer.peer_id:
                copy = Gossip(data=replace(data, **self._way_of(data.ttl or 0, data.max_hops, peer.rng)))
                peer.send_frame(frame.peers, copy, urgent=frame.urgent)
                return False
            case GossipIHave() as heard if self in _ON_THE_WAY:
                twisted = replace(heard, **self._way_of(60_000, 255, peer.rng))
                peer.send_frame(frame.peers, twisted, urgent=frame.urgent)
                return False
            case ReconnectionData() | Goodbye() as message if self is Adversary.LIAR:
                lie = replace(message, peers=invented(peer.rng, 3))
                peer.send_frame(frame.peers, lie, urgent=frame.urgent)
                return False
            case _:
                return True

    def twisted(self, message: SignalingMessage, peer: HostilePeer) -> SignalingMessage:
        """What the peer makes of a message to others by way of the service."""
        if self is Adversary.LIAR and isinstance(message, ConnectionRejected):
            return replace(message, alternative_peers=invented(peer.rng, 3))
        return message

    def act(self, peer: HostilePeer) -> None:
        """Do one act of mischief. Called every `EVERY` seconds."""
        rng = peer.rng
        neighbours = peer.peers
        if not neighbours or self in {Adversary.LIAR, Adversary.DROPPER, *_ON_THE_WAY}:
            return
        target = rng.choice(neighbours)
        if self is Adversary.FLOODER:
            for _ in range(FLOOD):
                peer.send_frame((target,), _unasked(rng), urgent=True)
        elif rng.randrange(GARBAGE_EVERY) == 0:
            peer.send_bytes(target, _garbage(rng))

    def _way_of(self, ttl: int, max_hops: int, rng: random.Random) -> dict[str, int]:
        """What it says of a broadcast's way: the end of it, the last moment before, or the last third."""
        if self is Adversary.AGES:
            return {"age": max(0, ttl - rng.choice((0, 1, 100, ttl // 3)))}
        return {"hops": max(0, max_hops - rng.choice((0, 1, 2, max_hops // 3)))}


_ON_THE_WAY: Final = (Adversary.AGES, Adversary.HOPS)


def invented(rng: random.Random, count: int) -> tuple[PeerId, ...]:
    """Ids that no peer has."""
    return tuple(PeerId(f"{rng.getrandbits(ID_BITS):040x}") for _ in range(count))


def _unasked(rng: random.Random) -> Direct | GossipIHave | GossipReceipts:
    name = f"{rng.getrandbits(128):032x}"
    match rng.randrange(3):
        case 0:
            return Direct(id=name, payload="flood", encoding="text")
        case 1:
            return GossipIHave(ids=(name,))
        case _:
            lie = Receipt(id=name, count=rng.getrandbits(20), settled=True)
            return GossipReceipts(number=rng.getrandbits(31), receipts=(lie,))


def _garbage(rng: random.Random) -> bytes:
    """Random bytes, a message cut short, or a message with a field of the wrong type."""
    match rng.randrange(3):
        case 0:
            return rng.randbytes(rng.randrange(1, 64))
        case 1:
            frame = encode(GossipHave(ids=("x" * 32,)))
            return frame[: rng.randrange(1, len(frame))]
        case _:
            return b'{"type":"gossip","data":{"id":[]}}'
