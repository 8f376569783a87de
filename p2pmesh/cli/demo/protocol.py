"""What the demo and its peer processes tell each other: JSON lines, orders on stdin, reports on stdout."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Join the mesh and listen. The first order."""

    urls: tuple[str, ...]
    """Of signaling servers."""
    peers: int
    """How many there will be, this one included."""
    max_peers: int
    messages: int
    """Broadcasts that each peer sends."""
    payload: int
    """Size of each."""
    seed: str | None
    """Makes identity and randomness of this peer repeatable."""
    partition: bool = False
    """A `Cut` will follow."""


class Talk(msgspec.Struct, frozen=True, tag="talk"):
    """Send so many broadcasts, and one direct message to each of these peers."""

    messages: int
    rate: float
    """Broadcasts in a second."""
    peers: list[str] = []
    ttl: float | None = None
    """Of the broadcasts; None for the library's own."""


class Cut(msgspec.Struct, frozen=True, tag="cut"):
    """From now on nothing you send reaches these peers. Report `Severed`."""

    peers: list[str]
    server: bool
    """Neither can you reach the signaling server."""


class Heal(msgspec.Struct, frozen=True, tag="heal"):
    """You can reach everybody again."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Report what was measured, leave and end. The last order."""


Order: TypeAlias = Join | Talk | Cut | Heal | Stop


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process has started and waits for orders."""


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The signaling server has let us in, and we listen."""

    peer_id: str


class Links(msgspec.Struct, frozen=True, tag="links"):
    """Our links are these now."""

    peers: list[str]


class Severed(msgspec.Struct, frozen=True, tag="severed"):
    """The cut is made."""


class Progress(msgspec.Struct, tag="progress"):
    """How far sending and receiving have come."""

    sent: int = 0
    """Broadcasts."""
    reached: list[int] = []
    """For each broadcast that has settled as delivered, or at all if there is a cut: how many peers have it by now."""
    lost: int = 0
    """Broadcasts that have settled as failed."""
    delivered: int = 0
    """Broadcasts of others that arrived, each once."""
    duplicates: int = 0
    """Arrivals beyond the first."""
    direct_done: int = 0
    """Direct messages that were acknowledged or given up."""
    direct_ok: int = 0
    """Of these, how many were acknowledged."""
    direct_received: int = 0
    late: int = 0
    """Deliveries that came after the order to heal."""
    leaked: int = 0
    """Deliveries from beyond the cut while it lasted."""


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """The last report, once stopped."""

    latency_ms: list[float]
    """From send to receive, of each delivery."""
    offers_mesh: int = 0
    """Offers of links that went through the mesh."""
    offers_service: int = 0
    """Offers that went by a signaling server."""


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Something went wrong; the text says what."""

    text: str


Report: TypeAlias = Ready | Joined | Links | Severed | Progress | Measured | Trouble

ORDERS: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
REPORTS: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encode(message: Order | Report) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"
