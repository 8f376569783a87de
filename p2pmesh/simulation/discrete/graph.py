"""The overlay as a graph, at one moment: how many hops the ideal greedy walk and the shortest path take on it.

What routing achieves can be compared with this: it is computed from the links as they are, without a single message.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from attrs import frozen

from p2pmesh.keyspace import RING_SIZE
from p2pmesh.simulation.discrete.invariants import members
from p2pmesh.simulation.discrete.network import BareNetwork


@frozen
class Hops:
    """Walks between many pairs of peers."""

    walks: int
    arrived: int
    mean: float
    """Of those that arrived."""
    most: int


class Graph:
    """The members of a network and their open links. Peers are the numbers of the network's nodes."""

    def __init__(self, places: Mapping[int, int], links: Mapping[int, Sequence[int]]) -> None:
        """Make a graph.

        Args:
          places: where each peer stands on the ring of ids.
          links: its neighbours.
        """
        self.places: dict[int, int] = dict(places)
        self.links: dict[int, list[int]] = {peer: [far for far in links[peer] if far in places] for peer in places}
        self._nearby: dict[int, tuple[list[int], list[tuple[int, int, int]]]] = {}

    @classmethod
    def of(cls, net: BareNetwork) -> Graph:
        """The overlay as it is now."""
        inside = {node.number: node for node in members(net)}
        places = {number: int(node.peer_id, 16) for number, node in inside.items()}
        links = {
            number: [end.far_number for end in node.links.ends.values() if not end.far.gone]
            for number, node in inside.items()
        }
        return cls(places, links)

    def greedy(self, start: int, to: int) -> int | None:
        """Hops of the greedy walk, on which each peer knows its neighbours and theirs. None if it goes in circles."""
        target, at, walked = self.places[to], start, set[int]()
        while at != to:
            walked.add(at)
            after = self._next(at, target)
            if after is None or after in walked:
                return None
            at = after
        return len(walked)

    def _next(self, at: int, target: int) -> int | None:
        """The neighbour that is nearest to the target on the ring, or that has the neighbour that is."""
        places, nearby = self._known_to(at)
        if not places:
            return None
        here = bisect_left(places, target)
        around = (nearby[here - 1], nearby[here % len(nearby)])  # the nearest is one of the two on its sides
        return min(around, key=lambda one: _apart(one[0], target))[2]

    def _known_to(self, peer: int) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Places on the ring that a peer knows of, sorted, with the hops to each and the first neighbour on the way."""
        known = self._nearby.get(peer)
        if known is None:
            ways: dict[int, tuple[int, int, int]] = {}
            for neighbour in self.links[peer]:
                ways[self.places[neighbour]] = (self.places[neighbour], 1, neighbour)
            for neighbour in self.links[peer]:
                for far in self.links[neighbour]:
                    if far != peer:
                        ways.setdefault(self.places[far], (self.places[far], 2, neighbour))
            places = sorted(ways)
            known = self._nearby[peer] = places, [ways[place] for place in places]
        return known

    def greedy_hops(self, pairs: int, rng: random.Random) -> Hops:
        """Greedy walks between so many random pairs of different peers."""
        peers = list(self.places)
        drawn = [rng.sample(peers, 2) for _ in range(pairs)] if len(peers) > 1 else []
        found = [hops for start, to in drawn if (hops := self.greedy(start, to)) is not None]
        return Hops(len(drawn), len(found), sum(found) / len(found) if found else 0.0, max(found, default=0))

    def shortest_hops(self, starts: int, rng: random.Random) -> Hops:
        """The shortest paths from so many random peers to all others: no routing can do better."""
        peers = list(self.places)
        total = reached = most = 0
        chosen = rng.sample(peers, min(starts, len(peers)))
        for start in chosen:
            seen, shell, depth = {start}, [start], 0
            while shell:
                shell = [far for far in dict.fromkeys(f for peer in shell for f in self.links[peer]) if far not in seen]
                seen.update(shell)
                depth += 1
                total += depth * len(shell)
                most = max(most, depth if shell else 0)
            reached += len(seen) - 1
        return Hops(len(chosen) * (len(peers) - 1), reached, total / reached if reached else 0.0, most)


def _apart(a: int, b: int) -> int:
    """How far two places on the ring are from each other, the shorter way round."""
    clockwise = (b - a) % RING_SIZE
    return min(clockwise, RING_SIZE - clockwise)


__all__ = ["Graph", "Hops"]
