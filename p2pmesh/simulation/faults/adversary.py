"""Peers that work against the mesh, within what a peer can do: it holds its own key, and sends what it likes.

A hostile peer runs the same cores as the others, and does its mischief on top, so that it is let in and stays in.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from p2pmesh.keyspace import ID_BITS, PeerId
from p2pmesh.protocols.effects import SendFrame
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import (
    Direct,
    Goodbye,
    Gossip,
    GossipData,
    GossipHave,
    GossipIHave,
    GossipReceipts,
    Receipt,
    ReconnectionData,
)
from p2pmesh.wire.signaling import ConnectionRejected, SignalingMessage

if TYPE_CHECKING:
    from p2pmesh.simulation.discrete.node import BareNode

EVERY: Final = 0.5
"""Seconds between two acts of mischief of one peer."""
FLOOD: Final = 50
"""Frames in one such act of a flooder."""
GARBAGE_EVERY: Final = 10
"""A peer whose garbage ends its link at once sends it this much more rarely, or it would have no links to send it over."""


class Adversary(Enum):
    """What a hostile peer does."""

    GARBAGE = "garbage"
    """Sends bytes that are no messages."""
    LIAR = "liar"
    """Names peers that don't exist where it should name contacts."""
    DROPPER = "dropper"
    """Acknowledges broadcasts of others and passes none on."""
    FLOODER = "flooder"
    """Sends more than anybody asked for: direct messages, offers of broadcasts that nobody made, receipts for nothing."""

    def lets_pass(self, frame: SendFrame, node: BareNode) -> bool:
        """Whether it sends what its cores ask it to."""
        match frame.message:
            case Gossip(data=GossipData(origin_peer_id=origin)) if self is Adversary.DROPPER:
                return origin == node.peer_id
            case ReconnectionData() | Goodbye() as message if self is Adversary.LIAR:
                lie = replace(message, peers=invented(node.net.rng, 3))
                node.links.send(frame.peers, lie, urgent=frame.urgent)
                return False
            case _:
                return True

    def twisted(self, message: SignalingMessage, node: BareNode) -> SignalingMessage:
        """What it makes of what it should tell others by way of the service."""
        if self is Adversary.LIAR and isinstance(message, ConnectionRejected):
            return replace(message, alternative_peers=invented(node.net.rng, 3))
        return message

    def act(self, node: BareNode) -> None:
        """An act of mischief. Called every `EVERY` seconds."""
        rng = node.net.rng
        peers = node.peers
        if not peers or self in {Adversary.LIAR, Adversary.DROPPER}:
            return
        target = rng.choice(peers)
        if self is Adversary.FLOODER:
            for _ in range(FLOOD):
                node.links.send((target,), _unasked(rng), urgent=True)
        elif rng.randrange(GARBAGE_EVERY) == 0:
            node.links.transmit(node.links.ends[target], _garbage(rng))


def invented(rng: random.Random, count: int) -> tuple[PeerId, ...]:
    """Ids that nobody has."""
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
    """Random bytes, a message cut short, or one with a field that is none."""
    match rng.randrange(3):
        case 0:
            return rng.randbytes(rng.randrange(1, 64))
        case 1:
            frame = encode(GossipHave(ids=("x" * 32,)))
            return frame[: rng.randrange(1, len(frame))]
        case _:
            return b'{"type":"gossip","data":{"id":[]}}'
