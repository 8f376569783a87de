"""What the demo knows of its peers, and what follows from it. Plain data: no processes, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from attrs import define, field, frozen

from p2pmesh.cli.demo.protocol import Measured, Progress

CUT_OFF: Final = 2
"""The half of the peers that loses the signaling server, too, while they are parted."""


@frozen
class Plan:
    """All that a view shows."""

    peers: int
    messages: int
    """Broadcasts that each peer sends."""
    max_peers: int
    payload: int
    rate: float
    timeout: float
    seed: str | None
    kill_server: bool = False
    """The last peer comes when the signaling server is gone."""
    partition: float | None = None
    """Seconds for which two halves of the peers can't reach each other."""

    @property
    def founders(self) -> int:
        """Peers that join while there is a signaling server for all."""
        return self.peers - 1 if self.kill_server else self.peers

    def half_of(self, number: int) -> int:
        """Which side of a partition the peer with this number is on, 1 or 2."""
        return 1 if number <= (self.peers + 1) // 2 else CUT_OFF

    @property
    def directs(self) -> int:
        """Ordered pairs of peers: each sends one direct message to each other."""
        return self.peers * (self.peers - 1)

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
    """Counted from 1."""
    pid: int | None = None
    ready: bool = False
    peer_id: str | None = None
    """Known once it has joined."""
    links: tuple[str, ...] = ()
    progress: Progress = field(factory=Progress)
    measured: Measured | None = None
    """Known once it was stopped."""
    is_severed: bool = False
    """It sends nothing to the other half of the peers."""
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
    newcomer_s: float | None = None
    """Seconds until the peer that came without a server had its links."""
    door: str | None = None
    """The one peer that the newcomer found without the mesh."""
    islands_seen: int | None = None
    """Islands at the end of the partition."""
    healed_s: float | None = None
    """Seconds from then until there was one island."""
    caught_up_s: float | None = None
    """Seconds from then until every peer had everything."""
    errors: list[str] = field(factory=list)

    @property
    def links(self) -> list[tuple[str, str]]:
        """Pairs of peers that both say that there is a link between them."""
        said = {peer.peer_id: set(peer.links) for peer in self.peers if peer.peer_id is not None}
        return [(a, b) for a in said for b in said if a < b and b in said[a] and a in said[b]]

    def islands(self) -> list[set[str]]:
        """The peers that have joined, in groups that reach one another over links."""
        neighbours: dict[str, list[str]] = {peer.peer_id: [] for peer in self.peers if peer.peer_id is not None}
        for a, b in self.links:
            neighbours[a].append(b)
            neighbours[b].append(a)
        groups: list[set[str]] = []
        for first in neighbours:
            if any(first in group for group in groups):
                continue
            reached, frontier = {first}, [first]
            while frontier:
                new = [peer for peer in neighbours[frontier.pop()] if peer not in reached]
                reached.update(new)
                frontier += new
            groups.append(reached)
        return groups

    def is_connected(self, count: int) -> bool:
        """Whether so many peers are there, each reachable from each other over links."""
        groups = self.islands()
        return len(groups) == 1 and len(groups[0]) == count

    @property
    def ring_gaps(self) -> int:
        """How many peers that have joined lack a link to the next one on the ring: with none, all routes lead on."""
        ring = sorted(peer.peer_id for peer in self.peers if peer.peer_id is not None)
        linked = {frozenset(link) for link in self.links}
        return sum(a != b and frozenset((a, b)) not in linked for a, b in zip(ring, ring[1:] + ring[:1], strict=True))

    @property
    def newcomer_links(self) -> list[str]:
        """Links that the newcomer without a server made through the mesh: all but its first."""
        newcomer = self.peers[-1].peer_id
        ends = [b if a == newcomer else a for a, b in self.links if newcomer in {a, b}]
        return [peer for peer in ends if peer != self.door]

    def is_done(self, peer: Peer) -> bool:
        """Whether this peer has sent all of its share, and knows what became of it."""
        return self.is_settled(peer) and peer.progress.direct_done == self.plan.peers - 1

    def is_settled(self, peer: Peer) -> bool:
        """Whether this peer has sent all of its broadcasts, and has their receipts."""
        return len(peer.progress.reached) + peer.progress.lost == self.plan.messages

    @property
    def all_arrived(self) -> bool:
        """Whether everything that was sent is where it should be."""
        return (
            all(self.is_done(peer) for peer in self.peers)
            and self.all_heard
            and self._sum("direct_received") >= self._sum("direct_ok")
        )

    @property
    def all_heard(self) -> bool:
        """Whether all broadcasts are where they should be."""
        return self.delivered == self.plan.deliveries

    @property
    def all_counted(self) -> bool:
        """Whether each receipt counts everybody, too."""
        reached = [count for peer in self.peers for count in peer.progress.reached]
        return reached == [self.plan.peers - 1] * self.plan.broadcasts

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
        measured = [peer.measured for peer in self.peers if peer.measured is not None]
        latency = sorted(ms for one in measured for ms in one.latency_ms)
        return {
            "peers": plan.peers,
            "links": len(self.links),
            "connected_s": None if self.connected_s is None else round(self.connected_s, 3),
            "broadcasts": self._sum("sent"),
            "expected": plan.deliveries,
            "delivered": self.delivered,
            "duplicates": self._sum("duplicates"),
            "latency_ms": {"p50": percentile(latency, 50), "p99": percentile(latency, 99)},
            "direct_total": plan.directs,
            "direct_ok": self._sum("direct_ok"),
            "direct_delivered": self._sum("direct_received"),
            "receipts": {"delivered": delivered, "failed": self._sum("sent") - delivered},
            "offers": {
                "mesh": sum(one.offers_mesh for one in measured),
                "service": sum(one.offers_service for one in measured),
            },
            "newcomer": self._newcomer() if plan.kill_server else None,
            "partition": None if plan.partition is None else self._partition(plan.partition),
            "errors": list(self.errors),
        }

    def _newcomer(self) -> dict[str, Any]:
        return {
            "peer": self.peers[-1].number,
            "linked_s": None if self.newcomer_s is None else round(self.newcomer_s, 3),
            "links_through_mesh": len(self.newcomer_links),
        }

    def _partition(self, seconds: float) -> dict[str, Any]:
        return {
            "seconds": seconds,
            "islands": self.islands_seen or 0,
            "healed_s": None if self.healed_s is None else round(self.healed_s, 3),
            "caught_up_s": None if self.caught_up_s is None else round(self.caught_up_s, 3),
            "leaked": self._sum("leaked"),
            "peers": [
                {
                    "peer": peer.number,
                    "half": self.plan.half_of(peer.number),
                    "expected": self.plan.messages * (self.plan.peers - 1),
                    "delivered": peer.progress.delivered,
                    "after_heal": peer.progress.late,
                }
                for peer in self.peers
            ],
        }


def all_arrived(summary: dict[str, Any]) -> bool:
    """Whether a summary is one of a demo in which nothing went wrong."""
    return (
        not summary["errors"]
        and summary["connected_s"] is not None
        and summary["delivered"] == summary["expected"]
        and summary["duplicates"] == 0
        and summary["direct_delivered"] == summary["direct_ok"] == summary["direct_total"]
        and (summary["newcomer"] is None or summary["newcomer"]["links_through_mesh"] > 0)
        and (summary["partition"] is None or _healed(summary["partition"]))
        and summary["receipts"] == {"delivered": summary["broadcasts"], "failed": 0}
        and summary["broadcasts"] * (summary["peers"] - 1) == summary["expected"]
    )


def _healed(partition: dict[str, Any]) -> bool:
    """Whether there was a partition, through which nothing came, and it is over."""
    return partition["islands"] > 1 and partition["leaked"] == 0 and partition["caught_up_s"] is not None


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least so many percent of the values don't exceed; None if there are none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
