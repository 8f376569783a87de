"""Which neighbour is next on the way to a peer or key: greedy round the ring, by neighbours and their neighbours.

A packet goes to the neighbour that is nearest to its target, or that has a neighbour which is; never to a peer where it has
been. So it need not come nearer with every hop: where nothing nearer is left it goes on with the best of the rest
for a while, and turns back where there is no rest: a depth-first search in the order of distance, which finds its target also
while the ring is not whole. What is silent is shunned, unless all are. (Manku, Naor, Wieder 2004: looking one step further shortens
greedy routes in small worlds to the best possible.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from zlib import crc32

from attrs import define, field

from p2pmesh.keyspace import RING_SIZE, PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.overlay import Packet

MOST_HOPS = 250
"""Within which a packet's trails fit its type."""
CHOICES = 3
"""A repeated packet may go to one of so many best neighbours: further from the best, it would lose its way in a mesh of few
links."""
_HALF_RING = RING_SIZE // 2
_NO_SIZE = 1000
"""Peers in the mesh as long as nobody has told."""


def _gap(a: int, b: int) -> int:
    """The distance on the ring, whichever way is shorter."""
    apart = abs(a - b)
    return apart if apart <= _HALF_RING else RING_SIZE - apart


@define(eq=False)
class _Neighbour:
    """A peer that relays, and whom it is linked to, as it says."""

    point: int
    beyond: dict[PeerId, int] | None = None
    """Its neighbours and where they are; None as long as it has not told."""


@define(eq=False)
class ForwardingTable:
    """The neighbours that relay for us: verified, and of our protocol."""

    me: PeerId
    least_hops: int
    mesh_size: int = _NO_SIZE
    _relays: dict[PeerId, _Neighbour] = field(factory=dict)
    _silent: set[PeerId] = field(factory=set)
    shunned: frozenset[PeerId] = frozenset()
    """Those who are silent, if not all are: then it is rather us, and nobody else to turn to."""

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._relays

    def __len__(self) -> int:
        return len(self._relays)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._relays)

    def up(self, peer: RemotePeer) -> None:
        """A link is open."""
        if peer.is_member:
            self._relays[peer.peer_id] = _Neighbour(int(peer.peer_id, 16))
            self._shun()

    def down(self, peer: PeerId) -> None:
        """It has ended."""
        self._relays.pop(peer, None)
        self._silent.discard(peer)
        self._shun()

    def silent(self, peer: PeerId) -> None:
        """Nothing is heard of it: what is not for itself goes another way, if there is one."""
        if peer in self._relays:
            self._silent.add(peer)
            self._shun()

    def heard(self, peer: PeerId) -> None:
        """It speaks again."""
        self._silent.discard(peer)
        self._shun()

    def _shun(self) -> None:
        self.shunned = frozenset(self._silent) if len(self._silent) < len(self._relays) else frozenset()

    def told(self, peer: PeerId, links: Collection[PeerId]) -> None:
        """A neighbour says whom it is linked to."""
        neighbour = self._relays.get(peer)
        if neighbour is not None:
            neighbour.beyond = {link: int(link, 16) for link in links if link not in (self.me, peer)}

    def hop_limit(self) -> int:
        """Links that a packet of ours may cross: few enough to end a vain search."""
        return max(self.least_hops, self.longest_way())

    def longest_way(self) -> int:
        """Links that a packet of ours may have to cross, in a mesh of this size: far more than it should."""
        long_links = max(0, len(self._relays) - 2)
        expected = 4 * math.log2(max(2, self.mesh_size)) ** 2 / (long_links + 1) if long_links else self.mesh_size / 2
        return int(min(expected + 16, MOST_HOPS))

    def along(self, route: tuple[PeerId, ...], to: PeerId, visited: Collection[PeerId]) -> tuple[PeerId, ...] | None:
        """What is left of a given route from here, the next hop first, shortened where we can; None if it is lost."""
        if to in self._relays:
            return (to,)
        for place in range(len(route) - 1, -1, -1):
            peer = route[place]
            if peer in self._relays and peer not in visited and peer not in self.shunned:
                return route[place:]
        return None

    def ranked(self, target: PeerId, visited: Collection[PeerId]) -> list[PeerId]:
        """The neighbours through which it may go on, the best first; those that lead nowhere else only if all do."""
        found = self._scored(target, visited)
        return [peer for ends, _, _, peer in found if ends == found[0][0]]

    def nearer(self, key: PeerId, path: tuple[PeerId, ...], tried: Collection[PeerId], *, leaves: bool) -> list[PeerId]:
        """Those through which it comes nearer to the key than we are, and all but the origin of its path; the best first.

        Those that lead nowhere else are `leaves`.
        """
        goal = int(key, 16)
        bar = min(_gap(int(peer, 16), goal) for peer in (*path[1:], self.me))
        scored = self._scored(key, (*path, *tried))
        found = sorted((score, own, peer) for ends, score, own, peer in scored if score < bar and (leaves or not ends))
        return [peer for _, _, peer in found]

    def strayed(self, target: PeerId, path: tuple[PeerId, ...]) -> int:
        """Links that a packet has crossed since it was nearest to its target; where it began does not count."""
        goal = int(target, 16)
        gaps = [_gap(int(peer, 16), goal) for peer in (self.me, *path[:0:-1])]
        return gaps.index(min(gaps))

    def is_nearest(self, key: PeerId, path: tuple[PeerId, ...]) -> bool:
        """Whether we are nearer to the key than all of a path but its origin."""
        goal = int(key, 16)
        own = _gap(int(self.me, 16), goal)
        return all(own < _gap(int(peer, 16), goal) for peer in path[1:])

    def _scored(self, target: PeerId, visited: Collection[PeerId]) -> list[tuple[bool, int, int, PeerId]]:
        """Each neighbour with: whether it leads nowhere else, how near it brings to the target, how near it is itself."""
        goal, gone = int(target, 16), frozenset(visited)
        if self.shunned:
            gone |= self.shunned - {target}
        found = []
        for peer, neighbour in self._relays.items():
            if peer in gone:
                continue
            own = best = _gap(neighbour.point, goal)
            leads_on = neighbour.beyond is None or not own
            for other, point in (neighbour.beyond or {}).items():
                if other not in gone:
                    leads_on = True
                    apart = abs(point - goal)  # as `_gap`, which would take as long again to call
                    best = min(best, apart if apart <= _HALF_RING else RING_SIZE - apart)
            found.append((not leads_on, best, own, peer))
        found.sort()
        return found


def pick(ranked: list[PeerId], packet: Packet) -> PeerId | None:
    """The next hop: the best, but a repeated packet shuns half of all peers, and the other half when it is repeated again.

    So it gets round those who drop what they should relay, all on its way at once, though nobody knows who they are. Which
    half, chance decides for each packet anew, and everybody on its way alike.
    """
    if packet.attempt:
        for peer in ranked[:CHOICES]:
            drawn = crc32(f"{packet.id} {(packet.attempt + 1) // 2} {peer}".encode("utf-8", "surrogatepass"))
            if drawn % 2 == packet.attempt % 2:
                return peer
    return next(iter(ranked), None)
