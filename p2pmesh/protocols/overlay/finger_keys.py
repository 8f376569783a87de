"""Fingers: where long links should lead, and how two peers with a free slot for one find each other.

Distances follow the harmonic law, with which greedy routes are shortest (Kleinberg, The small-world phenomenon, 2000):
a key is drawn, and a link sought to somebody near it. In a mesh at rest nearly all slots are taken, so there are two ways:

- Who has *just come* is let in by the peer at its key, which gives up a long link for it. So links keep to the law: with
  what is left over alone, 1,000 peers of 3 links that came one by one would need 28 hops instead of 18.
- Who lost a link by that has to find another such peer. Each search is noted by whoever answers it on its *board*, and
  names those who asked before. If one finds nobody, the next one's key is snapped to a grid, an eighth as fine each time
  and at last a single point, so that two who seek meet at the latest there, and mostly where the law would have them.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict

from attrs import define

from p2pmesh.keyspace import ID_BITS, ID_DIGITS, RING_SIZE, PeerId

COARSER = 3
"""Bits by which the grid gets coarser from level to level."""
NEAREST = 2
"""Places on the ring that a long link should span at least: the next one has a link of its own."""


def draw_key(me: PeerId, size: int, rng: random.Random) -> PeerId:
    """A place to link to, at a distance by the harmonic law, in a mesh of so many peers."""
    least = min(NEAREST / max(size, 1), 0.25)
    share = math.exp(rng.uniform(math.log(least), math.log(0.5)))
    way = int(share * RING_SIZE) * rng.choice((1, -1))
    return _as_id(int(me, 16) + way)


def levels(size: int) -> int:
    """Of the grids, until there is a single point."""
    return 1 + max(0, math.ceil((math.log2(max(size, 1)) - 1) / COARSER))


def snap(key: PeerId, level: int, size: int) -> PeerId:
    """The point of the grid that is nearest to `key`: level 0 has none, the last one has a single point."""
    bits = int(math.log2(max(size, 1))) - COARSER * level
    if level == 0:
        return key
    if bits < 1 or level >= levels(size) - 1:
        return _as_id(0)
    step = 1 << (ID_BITS - bits)
    return _as_id((int(key, 16) + step // 2) // step * step)


def _as_id(place: int) -> PeerId:
    return PeerId(f"{place % RING_SIZE:0{ID_DIGITS}x}")


@define
class _Note:
    until: float
    named: int = 0


class RendezvousBoard:
    """Peers that asked here for a long link, the last ones last. Bounded.

    Args:
      limit: of peers on it.
      lasts: seconds that one stays on it.
      most_named: times that one is named to others, who have linked to it then, or could not.
    """

    def __init__(self, limit: int, lasts: float, most_named: int = 2) -> None:
        self._limit = limit
        self._lasts = lasts
        self._most_named = most_named
        self._notes: OrderedDict[PeerId, _Note] = OrderedDict()

    def __len__(self) -> int:
        return len(self._notes)

    def note(self, peer: PeerId, now: float) -> None:
        """It asks."""
        self._notes.pop(peer, None)
        self._notes[peer] = _Note(now + self._lasts)
        while len(self._notes) > self._limit:
            self._notes.popitem(last=False)

    def strike(self, peer: PeerId) -> None:
        """It is gone, or has what it wanted."""
        self._notes.pop(peer, None)

    def name(self, most: int, now: float, *, without: PeerId) -> list[PeerId]:
        """Some of those that still wait, the last ones first: they are the likeliest to be there."""
        while self._notes and next(iter(self._notes.values())).until <= now:
            self._notes.popitem(last=False)
        named = [peer for peer in reversed(self._notes) if peer != without][:most]
        for peer in named:
            self._notes[peer].named += 1
            if self._notes[peer].named >= self._most_named:
                del self._notes[peer]
        return named
