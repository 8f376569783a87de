"""Crowd: peers that are improbably close to us on the ring, as ids are that somebody made for the purpose.

Ids are hashes of keys, so peers lie on the ring as by chance. Who wants all links of a peer makes keys until enough of
their ids are next to its own: 20,000 keys take a second, and give ids that are hundreds of times as dense as those of
a mesh of 30. (A puzzle for each id that made those an hour's work of 100 cores would be 18 s of one at every honest
peer's first start, and minutes on a phone, while a few hundred keys would still do in a mesh of 30.) Seen from the
other end, that density is its weakness: a scan statistic tells it from chance (Kulldorff, A spatial scan statistic,
1997). Of the peers that we met ourselves, those nearest to us are as many as make the least probable count for a
Poisson process of the density elsewhere; if that is less probable than `IMPROBABLE`, they are a crowd. What is nearer
than its furthest belongs to it from then on.

Peers of a crowd are no part of our ring, and get no slot. What we hear of the density elsewhere comes from neighbours
that are not of it themselves: those of our own choice, or else all across the ring; the least dense counts, since those
of a crowd say that it is like that everywhere.

In: who was met, how many peers there are elsewhere. Out: who belongs to it. State: a distance, what was known last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from p2pmesh.keyspace import RING_SIZE, PeerId, nearness

IMPROBABLE = math.log(1e-6)
"""Logarithm of the probability below which a count is no chance: in a million peers, one or so sees a crowd in it."""
DENSE = 32
"""Times the density elsewhere that a crowd has at least: so many times may what we know of that be out of date."""
REMEMBERED = 120.0
"""Seconds for which the last known density holds when nobody is left who tells."""


class Crowd:
    """The crowd around one peer, if there is one.

    Attributes:
      size: peers in it, when that was looked at last.
      mesh_size: peers in the mesh, as far as others say.
    """

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._radius = -1
        self.mesh_size: int = 0
        self._known_at = -math.inf
        self.size: int = 0

    def __contains__(self, peer: PeerId) -> bool:
        return self._radius >= 0 and nearness(self._me, peer) <= self._radius

    def look(self, met: Iterable[PeerId], mesh_size: int | None, now: float) -> bool:
        """Look whether these peers crowd around us, in a mesh of this size elsewhere. Whether they do and did not."""
        if mesh_size is not None:
            self.mesh_size, self._known_at = mesh_size, now
        elif now > self._known_at + REMEMBERED:
            return False
        was_there = self._radius >= 0
        distances = sorted(nearness(self._me, peer) for peer in met)
        per_step = 2 * max(self.mesh_size, len(distances)) / RING_SIZE
        least = IMPROBABLE
        self._radius, self.size = -1, 0
        for count, distance in enumerate(distances, 1):
            expected = distance * per_step
            if expected * DENSE > count:
                continue
            chance = _log_tail(count, expected)
            if chance < least:
                least, self._radius, self.size = chance, distance, count
        return self._radius >= 0 and not was_there


def _log_tail(count: int, expected: float) -> float:
    """Logarithm of the most that the probability of so many can be where so many are expected (Chernoff)."""
    return count * (1 + math.log(max(expected, 1e-300) / count)) - expected
