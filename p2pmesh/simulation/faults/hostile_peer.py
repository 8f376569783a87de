"""What an adversary needs of the peer that it has taken over, and what such peers know of each other."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from attrs import Factory, define
from msgspec import structs

from p2pmesh.identity import Identity
from p2pmesh.keyspace import ID_BITS, PeerId
from p2pmesh.protocols.routing.packets import signed
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import Packet
from p2pmesh.wire.signaling import SignalingMessage

CAPTURED: Final = 256
"""Messages that are kept to play them again."""


@define
class Plot:
    """What the hostile peers of one simulation know: those that work together know what others have to find out.

    Attributes:
      everybody: the ids of all peers that ever came.
      allies: those of the hostile ones.
      captured: what of others some of them have passed on, to play it again.
    """

    everybody: list[PeerId] = Factory(list)
    allies: list[PeerId] = Factory(list)
    captured: deque[Message] = Factory(lambda: deque(maxlen=CAPTURED))

    def victims(self) -> list[PeerId]:
        """The ids of all others."""
        allies = set(self.allies)
        return [peer for peer in self.everybody if peer not in allies]


class HostilePeer(Protocol):
    """A peer that an adversary has taken over, and its network."""

    @property
    def identity(self) -> Identity:
        """Its keys."""

    @property
    def peer_id(self) -> PeerId:
        """Its id."""

    @property
    def network(self) -> bytes:
        """What signatures name."""

    @property
    def wall_ms(self) -> int:
        """Its wall clock."""

    @property
    def rng(self) -> random.Random:
        """Draws what it does."""

    @property
    def peers(self) -> Sequence[PeerId]:
        """Its neighbours."""

    @property
    def plot(self) -> Plot:
        """What it knows besides."""

    def send_frame(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool) -> None:
        """Send a message to neighbours."""

    def send_bytes(self, peer: PeerId, frame: bytes) -> None:
        """Send a neighbour bytes that are no message."""

    def tell_service(self, message: SignalingMessage) -> None:
        """Send a message to its service."""

    def court(self, peer: PeerId) -> None:
        """Want a link to a peer, for good, as an application may."""


def invented(rng: random.Random, count: int) -> tuple[PeerId, ...]:
    """Ids that no peer has."""
    return tuple(PeerId(f"{rng.getrandbits(ID_BITS):040x}") for _ in range(count))


def crowd(rng: random.Random, peer: PeerId, count: int) -> tuple[PeerId, ...]:
    """Ids that no peer has, as near to this one as no honest ids are, in the order of the ring."""
    gaps = sorted(rng.getrandbits(ID_BITS - 40) + 1 for _ in range(count))
    return tuple(PeerId(f"{(int(peer, 16) + gap) % (1 << ID_BITS):040x}") for gap in gaps)


def name(rng: random.Random) -> str:
    """An id for a message."""
    return f"{rng.getrandbits(128):032x}"


def stranger(rng: random.Random) -> Identity:
    """A throw-away identity."""
    return Identity.from_seed(rng.randbytes(32))


def packet(peer: HostilePeer, to: PeerId, message: Message, *, of: Identity | None = None, **fields: Any) -> Packet:
    """A packet with a message in it, as one of this identity that has come to the peer, by default its own."""
    whole = Packet(id=name(peer.rng), kind="ask", to=to, timestamp=peer.wall_ms, carry=encode(message), **fields)
    return structs.replace(signed(whole, of or peer.identity, peer.network), from_=None)
