"""What the demo knows of its peers, and what it makes of it. Plain data: no processes, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from p2pmesh.cli.demo_control import Progress


@frozen
class Plan:
    """What is to be shown."""

    peers: int
    messages: int
    """Broadcasts that each peer sends."""
    max_peers: int
    payload: int
    rate: float
    timeout: float
    seed: str | None

    @property
    def broadcasts(self) -> int:
        return self.peers * self.messages

    @property
    def deliveries(self) -> int:
        return self.broadcasts * (self.peers - 1)


@define
class Peer:
    """One peer process, as far as it has told."""

    number: int
    """From 1, as people count."""
    pid: int | None = None
    ready: bool = False
    peer_id: str | None = None
    """Known once it has joined."""
    links: tuple[str, ...] = ()
    progress: Progress = field(factory=Progress)
    latency_ms: list[float] | None = None
    """Known once it was stopped."""
    ended: bool = False

    @property
    def name(self) -> str:
        return f"peer {self.number}"


@define
class Stage:
    """All of them."""

    plan: Plan
    peers: list[Peer] = field(factory=list)
    connected_s: float | None = None
    errors: list[str] = field(factory=list)

    @property
    def links(self) -> list[tuple[str, str]]:
        """Pairs of peers that both say that there is a link between them."""
        said = {peer.peer_id: set(peer.links) for peer in self.peers if peer.peer_id is not None}
        return [(a, b) for a in said for b in said if a < b and b in said[a] and a in said[b]]

    @property
    def is_connected(self) -> bool:
        """Whether there is a way over links from each peer to each other one."""
        ids = [peer.peer_id for peer in self.peers if peer.peer_id is not None]
        if len(ids) < self.plan.peers:
            return False
        neighbours: dict[str, list[str]] = {peer: [] for peer in ids}
        for a, b in self.links:
            neighbours[a].append(b)
            neighbours[b].append(a)
        reached, frontier = {ids[0]}, [ids[0]]
        while frontier:
            new = [peer for peer in neighbours[frontier.pop()] if peer not in reached]
            reached.update(new)
            frontier += new
        return len(reached) == len(ids)

    def is_done(self, peer: Peer) -> bool:
        """Whether this peer has sent all of its share, and knows what became of it."""
        progress = peer.progress
        settled = len(progress.reached) + progress.lost
        return settled == self.plan.messages and progress.direct_done == progress.direct_planned

    @property
    def all_arrived(self) -> bool:
        """Whether everything that was sent is where it should be."""
        return (
            all(self.is_done(peer) for peer in self.peers)
            and self.delivered == self.plan.deliveries
            and self._sum("direct_received") >= self._sum("direct_planned")
        )

    @property
    def delivered(self) -> int:
        return self._sum("delivered")

    def _sum(self, count: str) -> int:
        return sum(getattr(peer.progress, count) for peer in self.peers)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        plan, others = self.plan, self.plan.peers - 1
        settled = [reached for peer in self.peers for reached in peer.progress.reached]
        delivered = sum(reached == others for reached in settled)
        latency = sorted(ms for peer in self.peers for ms in peer.latency_ms or ())
        return {
            "peers": plan.peers,
            "links": len(self.links),
            "connected_s": None if self.connected_s is None else round(self.connected_s, 3),
            "broadcasts": self._sum("sent"),
            "expected": plan.deliveries,
            "delivered": self.delivered,
            "duplicates": self._sum("duplicates"),
            "latency_ms": {"p50": percentile(latency, 50), "p99": percentile(latency, 99)},
            "direct_sent": self._sum("direct_planned"),
            "direct_delivered": self._sum("direct_received"),
            "receipts": {"delivered": delivered, "failed": self._sum("sent") - delivered},
            "errors": list(self.errors),
        }


def all_arrived(summary: dict[str, Any]) -> bool:
    """Whether a summary is one of a demo in which nothing went wrong."""
    return (
        not summary["errors"]
        and summary["connected_s"] is not None
        and summary["delivered"] == summary["expected"]
        and summary["duplicates"] == 0
        and summary["direct_delivered"] == summary["direct_sent"]
        and summary["receipts"] == {"delivered": summary["broadcasts"], "failed": 0}
        and summary["broadcasts"] * (summary["peers"] - 1) == summary["expected"]
    )


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least so many percent of the values don't exceed; None if there are none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
