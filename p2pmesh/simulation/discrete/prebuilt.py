"""Large meshes at once: peers whose links stand already, as the overlay at rest has them.

    net = BareNetwork(seed=7, config=MeshConfig(max_peers=5))
    assemble(net, 10_000)

Ten thousand peers that join one after another take a quarter of an hour. Where joining is not what is measured, the
mesh is put together instead: a link between each two neighbours on the ring, and long links by the law that the overlay
draws fingers by, within `max_peers`. All open in one moment, and both ends are told of them as of any others; then each
peer joins the signaling service. From there on everything takes its ordinary course: neighbours exchange their
neighbours, successor lists fill, and peers with a free slot look for a link, until no link
opens any more.

What such peers lack is a past: none was ever turned away, evicted or missed, and each knows only the peers that it has
heard of since.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from p2pmesh.errors import ConfigError
from p2pmesh.keyspace import RING_SIZE, PeerId
from p2pmesh.protocols.overlay.fix_fingers import draw_key
from p2pmesh.simulation.discrete.invariants import check_islands, check_ring
from p2pmesh.simulation.discrete.kernel import collector_paused
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.node import BareNode

SETTLE: Final = 40.0
"""Seconds until successor lists are full."""
LOOK_EVERY: Final = 10.0
"""Seconds without a new link after which the mesh counts as at rest."""
REST_WITHIN: Final = 300.0
"""Seconds after which a mesh counts as at rest in any case: peers with a free slot look ever more rarely for a link."""
JOIN_WITHIN: Final = 10.0
"""Seconds within which all of them join the service."""


def assemble(net: BareNetwork, peers: int, *, settle: float = SETTLE) -> list[BareNode]:
    """Start so many peers whose links stand already, and wait until the mesh is at rest.

    Args:
      net: without peers so far.
      peers: how many.
      settle: seconds until the first look whether the mesh is at rest; the longer, the more others each peer knows.

    Returns:
      The peers. They form one ring; anything else is a violation.

    Raises:
      ConfigError: if `max_peers` leaves no ring, or the network is not empty.
    """
    limit = net.config.max_peers
    if net.nodes or (limit < 2 and peers > 2):
        raise ConfigError("a mesh is assembled in an empty network, of peers that may have two links or more")
    rng = random.Random(net.rng.getrandbits(64))
    with collector_paused():
        nodes = [net.add(joins=False) for _ in range(peers)]
        _link(net, sorted(nodes, key=lambda node: node.peer_id), rng)
        for node in nodes:
            net.after(JOIN_WITHIN * rng.random(), _join, node)
        _settle(net, settle)
    check_ring(net)
    check_islands(net)
    return nodes


def _link(net: BareNetwork, ordered: list[BareNode], rng: random.Random) -> None:
    """Open all links, those of the ring first: a long link must not be taken for one of the ring."""
    links = [
        (ordered[one], ordered[other])
        for one, other in links_at_rest([n.peer_id for n in ordered], net.config.max_peers, rng)
    ]
    of_the_ring = len(ordered) if len(ordered) > 2 else len(links)
    heard = net.conditions.jitter + max(
        (net.base(one.number, other.number) for one, other in links[:of_the_ring]), default=0.0
    )
    for one, other in links[of_the_ring:]:
        one.links.establish(other, silent_for=heard)
    for one, other in links[:of_the_ring]:
        one.links.establish(other)


def _join(node: BareNode, _: object) -> None:
    node.service.dial(node)


def _settle(net: BareNetwork, seconds: float) -> None:
    net.run(seconds)
    ends, opened = net.now + REST_WITHIN, -1
    while net.now < ends and opened != (opened := _opened(net)):
        net.run(LOOK_EVERY)


def _opened(net: BareNetwork) -> int:
    return sum(node.links.counts.opened for node in net.nodes)


# --- which links ------------------------------------------------------------------------------------------------------


def links_at_rest(ids: Sequence[PeerId], limit: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """Links as the overlay has them at rest: the ring, and long links by the harmonic law.

    Args:
      ids: of peers, in the order of the ring.
      limit: links that each may have.
      rng: draws the keys that long links are for.

    Yields:
      Pairs of peers, by their index in `ids`; the ring first.
    """
    links = _Links(ids, limit)
    for one in range(len(ids)):
        other = (one + 1) % len(ids)
        if one != other and not links.are_linked(one, other):
            yield links.link(one, other)
    seekers = list(links.vacant)
    while seekers:
        rng.shuffle(seekers)
        served = []
        for one in seekers:  # one link each in a round, so that no peer draws all its keys while there is most choice
            found = links.seek(one, draw_key(ids[one], len(ids), rng)) if links.is_vacant(one) else None
            if found is not None:
                served.append(one)
                yield links.link(one, found)
        seekers = [one for one in served if links.is_vacant(one)]


class _Links:
    """The links so far, and the peers with a free slot."""

    def __init__(self, ids: Sequence[PeerId], limit: int) -> None:
        self._places = [int(peer, 16) for peer in ids]
        self._limit = limit
        self._linked: list[set[int]] = [set() for _ in ids]
        self.vacant = list(range(len(ids)))

    def are_linked(self, one: int, other: int) -> bool:
        return other in self._linked[one]

    def is_vacant(self, one: int) -> bool:
        return len(self._linked[one]) < self._limit

    def link(self, one: int, other: int) -> tuple[int, int]:
        for end, far in ((one, other), (other, one)):
            self._linked[end].add(far)
            if not self.is_vacant(end):
                del self.vacant[bisect_left(self.vacant, end)]
        return one, other

    def seek(self, one: int, key: PeerId) -> int | None:
        """The peer nearest to the key of those with a free slot and no link to `one`."""
        place, count = int(key, 16), len(self.vacant)
        above = bisect_left(self.vacant, place, key=self._places.__getitem__)
        below = above - 1
        for _ in range(count):
            up, down = self.vacant[above % count], self.vacant[below % count]
            if (self._places[up] - place) % RING_SIZE < (place - self._places[down]) % RING_SIZE:
                found, above = up, above + 1
            else:
                found, below = down, below - 1
            if found != one and found not in self._linked[one]:
                return found
        return None


__all__ = ["assemble", "links_at_rest"]
