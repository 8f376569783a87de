"""The `traffic` section of `benchmarks/costs.py`: what bare peers send in virtual time, by kind of message."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from p2pmesh.config import MeshConfig
from p2pmesh.simulation import BareNetwork, Conditions, Constant
from p2pmesh.simulation.discrete.traffic import Traffic, size_of
from p2pmesh.wire.codec import decode
from p2pmesh.wire.messages import Gossip, Message
from p2pmesh.wire.overlay import Packet

LATENCY: Final = 0.05
JOIN_EVERY: Final = 0.05
JOIN_EVERY_OF_MANY: Final = 0.02
MANY: Final = 5_000
AFTER_JOINS: Final = 60.0
REST: Final = 600.0
REST_OF_MANY: Final = 60.0
VALUES: Final = 100
STORED: Final = 3600.0
"""Seconds: holders see to a value once in an hour."""

BROADCAST: Final = Gossip.__name__
DHT: Final = ("FindNode", "FindValue", "NodesFound", "StoreValue", "ValueStored")
"""What its packets carry."""
RESPONSES: Final = ("ack", "miss", "refusal")
"""Packets that carry no message."""


def kind_of(message: Message) -> str:
    """A message's kind; of a packet, what it carries."""
    if not isinstance(message, Packet):
        return type(message).__name__
    if message.sealed:
        return f"packet {message.kind} sealed"
    if message.kind in RESPONSES:
        return f"packet {message.kind}"
    return f"packet {message.kind} {type(decode(message.carry)).__name__}"


class Kinds(Traffic):
    """Traffic since `begin`, with packets told apart by what they carry."""

    __slots__ = ("frames_of", "sizes")

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Forget what was counted."""
        self.sizes: Counter[str] = Counter()
        self.frames_of: Counter[str] = Counter()

    def sent(self, message: Message, copies: int) -> None:
        """A message goes to so many peers."""
        super().sent(message, copies)
        kind, size = kind_of(message), size_of(message)
        self.sizes[kind] += size * copies
        self.frames_of[kind] += copies

    @property
    def control(self) -> int:
        """Bytes of all that is no broadcast."""
        return self.sizes.total() - self.sizes[BROADCAST]

    @property
    def dht_share(self) -> float:
        """Of them, the part that is the DHT's requests and answers."""
        return sum(size for kind, size in self.sizes.items() if kind.endswith(DHT)) / max(1, self.control)

    def per(self, count: float) -> dict[str, float]:
        """Bytes by kind, the most first."""
        return {kind: round(size / count, 1) for kind, size in self.sizes.most_common()}

    def means(self) -> dict[str, int]:
        """Bytes of a packet, by kind."""
        return {
            kind: round(size / self.frames_of[kind])
            for kind, size in self.sizes.most_common()
            if kind.startswith("packet")
        }


def traffic(peers: int, max_peers: int, seed: int) -> dict[str, Any]:
    """One mesh: its joins, its rest, its rest with values in the DHT, one broadcast."""
    config = MeshConfig(max_peers=max_peers)
    net = BareNetwork(seed, config=config, conditions=Conditions(latency=Constant(LATENCY)), strict=False)
    kinds = net.traffic = Kinds()
    net.arrived = kinds.arrived
    for _ in range(peers):
        net.add()
        net.run(JOIN_EVERY_OF_MANY if peers >= MANY else JOIN_EVERY)
    net.run(AFTER_JOINS)
    figures: dict[str, Any] = {
        "section": "traffic",
        "peers": peers,
        "max_peers": max_peers,
        "seed": seed,
        "join_bytes": round(kinds.control / peers),
        "join_events": round(net.events / peers),
        "join_kinds": kinds.per(peers),
        "packets": kinds.means(),
    }
    rest = REST_OF_MANY if peers >= MANY else REST
    kinds.begin()
    net.run(rest)
    figures["rest_bytes_per_s"] = round(kinds.control / peers / rest, 1)
    figures["rest_dht_share"] = round(kinds.dht_share, 3)
    figures["rest_kinds"] = kinds.per(peers * rest)
    kinds.begin()
    net.publish(net.nodes[0], b"x" * 100)
    net.run(1.0)
    figures["broadcast_100"] = round(kinds.sizes[BROADCAST] / kinds.frames_of[BROADCAST])
    if peers < MANY:
        figures |= with_values(net, kinds, peers)
    return figures


def with_values(net: BareNetwork, kinds: Kinds, peers: int) -> dict[str, Any]:
    """Values come into the DHT, and stay there at rest."""
    kinds.begin()
    for number in range(VALUES):
        net.put(net.rng.choice(net.nodes), f"key {number}", "x" * 64)
    net.run(AFTER_JOINS)
    packets = {kind: size for kind, size in kinds.means().items() if kind.endswith(DHT)}
    kinds.begin()
    net.run(STORED)
    return {"dht_packets": packets, "stored_bytes_per_s": round(kinds.control / peers / STORED, 1)}
