"""The 160-bit space that peer ids and keys live in, with its two distances.

Kademlia measures by XOR (Maymounkov and Mazieres 2002, section 2.1), Chord by the way clockwise round a circle (Stoica
et al. 2001, section 4.1). Both run over the same ids: 40 lower-case hexadecimal digits, as the original project writes
them, so that comparing two ids as text and comparing them as numbers is the same thing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from random import Random
from typing import NewType

from p2pmesh.checks import shown
from p2pmesh.errors import InvalidPeerId

ID_BITS = 160
ID_DIGITS = ID_BITS // 4
RING_SIZE = 1 << ID_BITS

PeerId = NewType("PeerId", str)
"""A peer's id: 40 lower-case hexadecimal digits. Make one with `parse_peer_id`, or take it from an `Identity`."""

_PEER_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


def is_peer_id(text: str) -> bool:
    """Whether `text` is 40 lower-case hexadecimal digits."""
    return _PEER_ID.fullmatch(text) is not None


def parse_peer_id(text: str) -> PeerId:
    """Check that `text` is a peer id.

    Raises:
      InvalidPeerId: if it is not 40 lower-case hexadecimal digits.
    """
    if not isinstance(text, str) or not is_peer_id(text):
        raise InvalidPeerId(f"a peer id is {ID_DIGITS} lower-case hexadecimal digits, not {shown(text)}")
    return PeerId(str.__str__(text))


def short(peer_id: str) -> str:
    """The first eight digits, as logs and tables show an id."""
    return peer_id[:8]


def xor_distance(a: PeerId, b: PeerId) -> int:
    """Kademlia's distance: symmetric, and different for each pair seen from one id."""
    return int(a, 16) ^ int(b, 16)


def ring_distance(start: PeerId, end: PeerId) -> int:
    """Chord's distance: how far `end` lies clockwise of `start`, from 0 to `RING_SIZE - 1`."""
    return (int(end, 16) - int(start, 16)) % RING_SIZE


def between(start: PeerId, middle: PeerId, end: PeerId) -> bool:
    """Whether `middle` lies clockwise strictly between `start` and `end`.

    Where those are one id that is the whole circle but the id itself.
    """
    if start < end:
        return start < middle < end
    return middle > start or middle < end


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


def random_place(rng: Random) -> PeerId:
    """A place drawn at random: of ids that crowd somewhere, it is hardly ever next to one."""
    return PeerId(f"{rng.getrandbits(ID_BITS):0{ID_DIGITS}x}")


def _way(me: PeerId, peer: PeerId, *, clockwise: bool) -> int:
    return ring_distance(me, peer) if clockwise else ring_distance(peer, me)


def bracket(
    me: PeerId,
    peer: PeerId,
    predecessors: Sequence[PeerId],
    successors: Sequence[PeerId],
    links: Sequence[PeerId],
    limit: int,
) -> list[PeerId]:
    """The neighbours of `me` as `peer` sees them; none if our place is not between peers that it names."""
    row = [*reversed(predecessors), peer, *successors]
    if len(set(row)) < limit:  # the mesh is small, or the peer is new in it and knows few
        return list(ring_neighbours(me, [other for other in (*row, *links) if other != me]))
    if me in row:
        place = row.index(me)  # what lies beyond us, it knows from us
        return [row[place - 1]] if row.index(peer) < place else [row[place + 1]]
    for one, other in pairwise(row):
        if ring_distance(one, me) < ring_distance(one, other):
            return [one, other]
    return []
