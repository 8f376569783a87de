"""What a simulation came to: figures for a table and for JSON, and the data behind its plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from p2pmesh.keyspace import RING_SIZE
from p2pmesh.simulation.discrete.invariants import expected, islands, members, ring_cycles
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.traffic import PAYLOAD

CURVE_POINTS = 101
"""Points of the curve of delivery over time: one for each percent, and the first."""


@frozen(kw_only=True)
class Picture:
    """The data behind the plots."""

    curve: Sequence[tuple[float, float]] = ()
    """Delivery over time: (seconds since the call, share of all deliveries that were made by then)."""
    hops: Mapping[int, int] = field(factory=dict)
    """Deliveries by the number of links that they crossed."""
    latencies: Sequence[float] = ()
    """Of every delivery, in seconds, sorted; thinned out to some thousands."""
    positions: Mapping[int, float] = field(factory=dict)
    """Each member's place on the ring of ids, from 0 to 1."""
    edges: Sequence[tuple[int, int]] = ()
    """The overlay's links, as pairs of members."""
    traffic: Mapping[str, int] = field(factory=dict)
    """Frames sent, by kind of message."""


@frozen(kw_only=True)
class Report:
    """The figures of one simulation."""

    scenario: str
    peers: int
    max_peers: int
    seed: int
    virtual_s: float
    """Simulated seconds, all phases together."""
    wall_s: float
    events: int
    trace_hash: str
    joined: int
    """Members with a link at the end."""
    ring_cycles: int
    """1 if following each peer's nearest neighbour clockwise leads once round all of them."""
    islands: int
    broadcasts: int
    expected: int
    """Deliveries that should have been made: to peers that were members when it was sent, and stayed."""
    delivered: int
    """How many of these were made."""
    redundancy: float
    """Payload copies received for each delivery, less the one that it takes."""
    last_hop: Mapping[str, float]
    """Hops of the last delivery of a broadcast: their mean and max."""
    latency_s: Mapping[str, float]
    receipts_exact: int
    """Broadcasts whose receipt, at the end, says exactly how many peers have it."""
    control_bytes_per_peer_s: float
    """Bytes but those of broadcasts, over links and to and from the service, per peer and second, without keepalive."""
    violations: tuple[str, ...]
    account: str = field(default="", repr=False)
    """Seed, plan and the end of the trace at the first violation."""
    plan: str = field(default="", repr=False)
    picture: Picture = field(default=Picture(), repr=False)

    @property
    def reliability(self) -> float:
        """Of the deliveries that should have been made, the share that was; 1 if there were none."""
        return self.delivered / self.expected if self.expected else 1.0

    def to_json(self) -> dict[str, Any]:
        """The figures in terms that JSON can carry; without the picture."""
        return {
            "scenario": self.scenario,
            "peers": self.peers,
            "max_peers": self.max_peers,
            "seed": self.seed,
            "virtual_s": round(self.virtual_s, 3),
            "wall_s": round(self.wall_s, 3),
            "events": self.events,
            "trace_hash": self.trace_hash,
            "joined": self.joined,
            "ring_cycles": self.ring_cycles,
            "islands": self.islands,
            "broadcasts": self.broadcasts,
            "expected": self.expected,
            "delivered": self.delivered,
            "reliability": self.reliability,
            "redundancy": round(self.redundancy, 4),
            "last_hop": dict(self.last_hop),
            "latency_s": {name: round(value, 4) for name, value in self.latency_s.items()},
            "receipts_exact": self.receipts_exact,
            "control_bytes_per_peer_s": round(self.control_bytes_per_peer_s, 1),
            "violations": list(self.violations),
        }


def report_on(
    net: BareNetwork, *, scenario: str, peers: int, max_peers: int, wall_s: float, without: Sequence[int] = ()
) -> Report:
    """The figures of a network as it is now; peers in `without` don't count."""
    log, inside = net.delivery_log, members(net, without)
    should = did = 0
    for broadcast in log:
        numbers = expected(net, broadcast, without)
        should += len(numbers)
        did += sum(broadcast.has(number) for number in numbers)
    taken = [broadcast for broadcast in log if broadcast.message_id is not None]
    made = log.deliveries
    last_hops = [broadcast.last_hop for broadcast in taken if broadcast.count]
    latencies = sorted(log.latencies)
    lived = sum(min(node.until, net.now) - node.since for node in net.nodes)
    return Report(
        scenario=scenario,
        peers=peers,
        max_peers=max_peers,
        seed=net.seed,
        virtual_s=net.now,
        wall_s=wall_s,
        events=net.events,
        trace_hash=net.trace.digest(),
        joined=sum(bool(node.links.ends) for node in inside),
        ring_cycles=ring_cycles(net),
        islands=len(islands(net, without)),
        broadcasts=len(taken),
        expected=should,
        delivered=did,
        redundancy=net.traffic.arrived[PAYLOAD] / made - 1 if made else 0.0,
        last_hop={"mean": sum(last_hops) / len(last_hops) if last_hops else 0.0, "max": max(last_hops, default=0)},
        latency_s={"p50": _quantile(latencies, 0.50), "p99": _quantile(latencies, 0.99)},
        receipts_exact=sum(broadcast.reached == broadcast.count for broadcast in taken),
        control_bytes_per_peer_s=(net.traffic.control_bytes + net.service.bytes) / lived if lived else 0.0,
        violations=tuple(map(str, net.violations)),
        account=net.account,
        plan="" if net.plan is None else str(net.plan),
        picture=Picture(
            curve=[(_quantile(latencies, point / 100), point / 100) for point in range(CURVE_POINTS)]
            if latencies
            else [],
            hops=dict(sorted(log.hops.items())),
            latencies=latencies[:: max(1, len(latencies) // 5000)],
            positions={node.number: int(node.peer_id, 16) / RING_SIZE for node in inside},
            edges=list(net.edges()),
            traffic=net.traffic.by_name(),
        ),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed; 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
