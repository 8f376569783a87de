"""Forwarding table: which neighbour is next on the way to a peer or key, greedily round the ring.

Greedy routing with lookahead (Manku, Naor, Wieder 2004: one step of it shortens greedy routes in small worlds to the
best possible). A packet goes to the neighbour that is nearest to its target, or that has a neighbour which is, and
never to a peer it has visited. Not every hop has to bring it nearer: where nothing nearer is left it goes on with the
best of the rest for a while, and turns back where there is no rest. That is a depth-first search in the order of
distance, which finds its target even while the ring is not whole. Suspected neighbours are shunned, unless all are
suspected.

Where a packet was, its trails name by the first digits of ids (`trail_id`). Who shares them with a visited peer may
be passed by; a packet comes to its receiver all the same, whose id it has in full.

In: links and suspicions, what neighbours say of their links, the size of the mesh.
Out: next hops, best first; which neighbours are shunned from now on.
State: an entry for each link to a member, with that neighbour's links.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from zlib import crc32

from attrs import define, field

from p2pmesh.keyspace import ID_DIGITS, RING_SIZE, PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.fields import MAX_TRAIL, TRAIL_DIGITS, TrailId
from p2pmesh.wire.overlay import Packet

CHOICES = 3
"""Best neighbours among which a repeated packet chooses: further from the best, it would lose its way in a mesh of
few links."""
_HALF_RING = RING_SIZE // 2
_UNKNOWN_SIZE = 1000
"""Peers that the mesh is taken to have before the overlay has estimated them."""
_SPARE_HOPS = 16
"""Links above the expected length of a way: packets also go round obstacles."""
_BITS_LEFT = 4 * (ID_DIGITS - TRAIL_DIGITS)
"""Bits of an id that a trail leaves out."""


def trail_id(peer: PeerId | TrailId) -> TrailId:
    """What names a peer in a trail."""
    return peer[:TRAIL_DIGITS]


def _gap(a: int, b: int) -> int:
    """The distance on the ring, whichever way is shorter."""
    apart = abs(a - b)
    return apart if apart <= _HALF_RING else RING_SIZE - apart


def _place(hop: TrailId) -> int:
    """About where a peer of a trail is on the ring."""
    return int(hop, 16) << _BITS_LEFT


@define(eq=False)
class _Neighbour:
    """A peer that relays for us, and its links, as it says."""

    point: int
    links: list[tuple[TrailId, int]] | None = None
    """Its neighbours and their places on the ring; None until it has told."""


@define(eq=False)
class ForwardingTable:
    """The neighbours that relay for us: members of the mesh only."""

    me: PeerId
    mesh_size: int = _UNKNOWN_SIZE
    _neighbours: dict[PeerId, _Neighbour] = field(factory=dict)
    _by_trail_id: dict[TrailId, PeerId] = field(factory=dict)
    _suspected: set[PeerId] = field(factory=set)
    shunned: frozenset[PeerId] = frozenset()
    """The suspected ones, unless all are: then the fault is rather ours, and there is nobody else to turn to."""

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._neighbours

    def __len__(self) -> int:
        return len(self._neighbours)

    # Each of these three gives the peers that are shunned now and were not before: what they were given may be lost.

    def link_up(self, peer: RemotePeer) -> list[PeerId]:
        """Add the peer at the other end of a new link, in place of what was known of it, if it is a member."""
        self._neighbours.pop(peer.peer_id, None)
        self._suspected.discard(peer.peer_id)
        if peer.is_member:
            self._neighbours[peer.peer_id] = _Neighbour(int(peer.peer_id, 16))
        return self._changed()

    def link_suspected(self, peer: PeerId) -> list[PeerId]:
        """Send what is not for this peer itself another way, if there is one."""
        if peer in self._neighbours:
            self._suspected.add(peer)
        return self._shun()

    def link_recovered(self, peer: PeerId) -> list[PeerId]:
        """Trust this peer again."""
        self._suspected.discard(peer)
        return self._shun()

    def link_down(self, peer: PeerId) -> None:
        """Remove a peer whose link has ended."""
        self._neighbours.pop(peer, None)
        self._suspected.discard(peer)
        self._changed()

    def _changed(self) -> list[PeerId]:
        # Of neighbours that share a trail id the lowest: any would do, but all runs have to agree.
        self._by_trail_id = {trail_id(peer): peer for peer in sorted(self._neighbours, reverse=True)}
        return self._shun()

    def _shun(self) -> list[PeerId]:
        before = self.shunned
        all_suspected = len(self._suspected) == len(self._neighbours)
        self.shunned = frozenset() if all_suspected else frozenset(self._suspected)
        return sorted(self.shunned - before)

    def set_links(self, peer: PeerId, links: Collection[PeerId]) -> None:
        """Take note of a neighbour's own neighbours, as it says."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.links = [(trail_id(link), int(link, 16)) for link in links if link not in (self.me, peer)]

    def neighbour(self, hop: TrailId) -> PeerId | None:
        """The neighbour that a trail names, unless it is shunned."""
        peer = self._by_trail_id.get(hop)
        return None if peer in self.shunned else peer

    def longest_way(self) -> int:
        """Links that a packet of ours may have to cross in a mesh of this size: far more than it should.

        Greedy routing with k long links takes about log2(n)^2 / k hops (Kleinberg 2000); on the ring alone, n / 4.
        """
        long_links = max(0, len(self._neighbours) - 2)
        expected = 4 * math.log2(max(2, self.mesh_size)) ** 2 / (long_links + 1) if long_links else self.mesh_size / 2
        return int(min(expected + _SPARE_HOPS, MAX_TRAIL))

    def along(
        self, route: tuple[TrailId, ...], to: PeerId, visited: Collection[TrailId]
    ) -> tuple[PeerId, tuple[TrailId, ...]] | None:
        """The next hop, and the rest of a given route behind it, shortened where possible; None if it is lost."""
        if to in self._neighbours:
            return to, ()
        for place in range(len(route) - 1, -1, -1):
            peer = self.neighbour(route[place])
            if peer is not None and route[place] not in visited:
                return peer, route[place + 1 :]
        return None

    def ranked(self, target: PeerId, visited: Collection[TrailId]) -> list[PeerId]:
        """Neighbours to go on with, best first; those that lead nowhere else only if all do."""
        found = self._scored(target, visited)
        return [peer for ends, _, _, peer in found if ends == found[0][0]]

    def by_lot(self, packet: Packet, visited: Collection[TrailId]) -> list[PeerId]:
        """Neighbours to go on with, by lot; every other attempt takes those that have the receiver for a neighbour."""
        choices, goal = self.ranked(packet.to, visited), int(packet.to, 16)
        if packet.attempt % 2:
            said = {peer: [point for _, point in self._neighbours[peer].links or ()] for peer in choices}
            choices = [peer for peer in choices if goal in said[peer]] or choices
        return sorted(choices, key=lambda peer: _drawn(packet, packet.attempt, peer))

    def nearer(
        self, key: PeerId, path: tuple[TrailId, ...], visited: Collection[TrailId], *, leaves: bool
    ) -> list[PeerId]:
        """Neighbours that lead nearer to the key than we and the path are, best first.

        Those that lead nowhere else only with `leaves`.
        """
        goal = int(key, 16)
        bar = min([_gap(int(self.me, 16), goal), *(_gap(_place(hop), goal) for hop in path)])
        scored = self._scored(key, visited)
        found = sorted((score, own, peer) for ends, score, own, peer in scored if score < bar and (leaves or not ends))
        return [peer for _, _, peer in found]

    def strayed(self, target: PeerId, path: tuple[TrailId, ...]) -> int:
        """Links that a packet has crossed since it was nearest to its target; where it began does not count."""
        goal = int(target, 16)
        gaps = [_gap(int(self.me, 16), goal), *(_gap(_place(hop), goal) for hop in reversed(path))]
        return gaps.index(min(gaps))

    def is_nearest(self, key: PeerId, path: tuple[TrailId, ...], visited: Collection[TrailId]) -> bool:
        """Whether a packet for the peer nearest to a key ends here.

        If nothing nearer is left but it was at a peer that is nearer, it goes back there. Its origin does not count.
        """
        goal = int(key, 16)
        own = _gap(int(self.me, 16), goal)
        if any(_gap(_place(hop), goal) <= own for hop in path):
            return False
        return not self.nearer(key, path, visited, leaves=True)

    def _scored(self, target: PeerId, visited: Collection[TrailId]) -> list[tuple[bool, int, int, PeerId]]:
        """Each neighbour with whether it leads nowhere else, how near it brings to the target, and how near it is."""
        goal, gone = int(target, 16), {*visited, *(trail_id(peer) for peer in self.shunned if peer != target)}
        found = []
        for peer, neighbour in self._neighbours.items():
            if trail_id(peer) in gone:
                continue
            own = best = _gap(neighbour.point, goal)
            leads_on = neighbour.links is None or not own
            for other, point in neighbour.links or ():
                if other not in gone:
                    leads_on = True
                    apart = abs(point - goal)  # as `_gap`, which would take as long again to call
                    best = min(best, apart if apart <= _HALF_RING else RING_SIZE - apart)
            found.append((not leads_on, best, own, peer))
        found.sort()
        return found


def pick(ranked: list[PeerId], packet: Packet) -> PeerId | None:
    """The next hop: the best, unless the packet is a repetition.

    A repeated packet shuns half of all peers, and the other half when it is repeated again. So it gets round those
    that drop what they should relay, all on its way at once, though nobody knows which they are. Which half is drawn
    by the packet's own hash, so that everybody on its way agrees.
    """
    if packet.attempt and not wandering(packet):
        for peer in ranked[:CHOICES]:
            if _drawn(packet, (packet.attempt + 1) // 2, peer) % 2 == packet.attempt % 2:
                return peer
    return next(iter(ranked), None)


def wandering(packet: Packet) -> bool:
    """Whether it goes from peer to peer by lot instead, until it meets a neighbour of its receiver.

    From the third repetition on two of three do: peers that hold all places round the receiver swallow what comes there
    greedily.
    """
    return packet.attempt > 2 and packet.attempt % 3 != 2 and not packet.nearest


def _drawn(packet: Packet, number: int, peer: PeerId) -> int:
    return crc32(f"{packet.id} {number} {peer}".encode("utf-8", "surrogatepass"))
