"""Neighbourhood on the ring of ids (Stoica et al., Chord, 2001, section 4). Pure functions of ids.

Ids in text form compare as the numbers that they stand for, so most of this needs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

from p2pmesh.keyspace import RING_SIZE, PeerId, ring_distance
from p2pmesh.wire.overlay import Neighbours


def successor(me: PeerId, peers: Collection[PeerId]) -> PeerId | None:
    """The one of `peers` that comes next after `me` clockwise, `me` itself included."""
    return min([peer for peer in peers if peer >= me] or peers, default=None)


def predecessor(me: PeerId, peers: Collection[PeerId]) -> PeerId | None:
    """The one of `peers` that comes last before `me` clockwise, `me` itself included."""
    return max([peer for peer in peers if peer <= me] or peers, default=None)


def ring_neighbours(me: PeerId, peers: Collection[PeerId]) -> tuple[PeerId, ...]:
    """Successor and predecessor of `me` among `peers`: two, or one that is both, or none."""
    return tuple(dict.fromkeys(peer for peer in (successor(me, peers), predecessor(me, peers)) if peer is not None))


def nearness(me: PeerId, peer: PeerId) -> int:
    """How far apart two peers are on the ring, the shorter way."""
    way = ring_distance(me, peer)
    return min(way, RING_SIZE - way)


def onward(me: PeerId, first: PeerId, said: Iterable[PeerId], limit: int, *, clockwise: bool) -> list[PeerId]:
    """`first` and the peers that it names after itself, seen from `me`, up to where they come round or go back."""
    found, far = [first], _way(me, first, clockwise=clockwise)
    for peer in said:
        way = _way(me, peer, clockwise=clockwise)
        if way <= far:
            break
        found.append(peer)
        far = way
    return found[:limit]


def _way(me: PeerId, peer: PeerId, *, clockwise: bool) -> int:
    return ring_distance(me, peer) if clockwise else ring_distance(peer, me)


def bracket(me: PeerId, peer: PeerId, said: Neighbours, limit: int) -> list[PeerId]:
    """The neighbours of `me` as `peer` sees them; none if our place is not between peers that it names."""
    row = [*reversed(said.predecessors), peer, *said.successors]
    if len(set(row)) < limit:  # the mesh is small, or the peer is new in it and knows few
        return list(ring_neighbours(me, [other for other in (*row, *said.links) if other != me]))
    if me in row:
        place = row.index(me)  # what lies beyond us, it knows from us
        return [row[place - 1]] if row.index(peer) < place else [row[place + 1]]
    for one, other in pairwise(row):
        if ring_distance(one, me) < ring_distance(one, other):
            return [one, other]
    return []
