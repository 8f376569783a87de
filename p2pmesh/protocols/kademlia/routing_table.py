"""Kademlia's routing table: up to k contacts for each power of two of XOR distance, and the peers around us.

Maymounkov and Mazieres 2002, sections 2.2 and 2.4, but nothing is asked to fill it or to keep it up. A peer is a
contact once it has spoken itself: by a link, a request or an answer. It counts for as long as it is a neighbour, and
for `KademliaConfig.contact_lasts` after it has spoken last: what is older may be gone, and there is always somebody
who knows better. For besides contacts there are the peers next to us on the ring, as the overlay hears of them from
our neighbours, always up to date. The k peers nearest to an id share a prefix, so they lie together on the ring, and
each of them knows those around it.

Ids near a place can be ground: twenty of them in a second, as near to a key as no honest peer is, would be all that
hold it and all that anybody names. But they lie closer together than chance does. The peers around us say how many
there are in all, and so how many should be how near to any place; of more than `crowd_limit` those nearest are enough,
and others count for the rest (`spread`).

In: peers that spoke, failed to answer or are gone; neighbours; the peers around us. Out: the peers nearest to an id.
State: k contacts for each of 160 buckets, the neighbours, the peers around us (two lists of
`ChordConfig.successors`), and `KademliaConfig.silent` silent peers.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from itertools import pairwise

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import ID_BITS, RING_SIZE, PeerId, ring_distance
from p2pmesh.protocols.util.limits import LruTable

SILENCE_REMEMBERED = 60.0
"""Seconds for which a peer that didn't answer is neither asked nor named, though others name it."""
CROWD = 5
CROWD_FACTOR = 4
"""So many peers are believed within any distance, and so many times those that should be there: by chance there are
more in one place of a hundred thousand."""
FEWEST_AROUND = 8
"""Peers around us from which on they say how many there are in all."""


def crowd_limit(distance: int, density: float) -> float:
    """How many peers can be within that distance of a place, if so many are to be expected for each id of the space.

    None can be too many where that is not known (0).
    """
    return CROWD + CROWD_FACTOR * distance * density if density else math.inf


def spread(ranked: Iterable[tuple[int, PeerId]], count: int, density: float) -> list[PeerId]:
    """Of peers by their distance, nearest first, so many: the nearest, of an improbable crowd a part.

    The rest of the crowd comes in where there are no others.
    """
    chosen: list[tuple[int, PeerId]] = []
    crowd: list[tuple[int, PeerId]] = []
    for distance, peer in ranked:
        if len(chosen) == count:
            break
        (chosen if len(chosen) < crowd_limit(distance, density) else crowd).append((distance, peer))
    return [peer for _, peer in sorted([*chosen, *crowd[: count - len(chosen)]])]


class RoutingTable:
    """The peers that one peer knows.

    Bucket number i holds contacts at distances from 2**i to 2**(i + 1) - 1, so each is half of what is left of the id
    space.
    """

    def __init__(self, me: PeerId, config: KademliaConfig, blocked: Container[PeerId] = frozenset()) -> None:
        self._me = me
        self._blocked = blocked
        self._number = int(me, 16)
        self._k = config.k
        self._lasts = config.contact_lasts
        self._buckets: dict[int, dict[PeerId, float]] = {}  # when each contact spoke last, the latest at the end
        self._neighbours: dict[PeerId, None] = {}
        self._ring: dict[PeerId, None] = {}
        self._silent: LruTable[float] = LruTable(config.silent)
        self.density: float = 0.0
        """Peers for each id of the space, going by those around us on the ring; 0 if there are too few to say."""

    @property
    def is_alone(self) -> bool:
        """Whether we have no neighbour."""
        return not self._neighbours

    def linked(self, peer: PeerId) -> None:
        """There is a link to this peer."""
        self._neighbours[peer] = None
        self._silent.pop(peer)

    def unlinked(self, peer: PeerId, now: float) -> None:
        """The link is gone, but the peer may be there."""
        if peer in self._neighbours:
            del self._neighbours[peer]
            self.heard(peer, now)

    def around(self, ring: Sequence[PeerId]) -> list[tuple[int, PeerId]]:
        """These are the peers around us on the ring; those that were not before, with how many lie between us."""
        before = self._ring
        self._ring = dict.fromkeys(sorted(set(ring) - {self._me}, key=lambda peer: ring_distance(self._me, peer)))
        places = [0, *(ring_distance(self._me, peer) for peer in self._ring), RING_SIZE]
        span = RING_SIZE - max(there - here for here, there in pairwise(places))
        self.density = len(self._ring) / span if len(self._ring) >= FEWEST_AROUND else 0.0
        last = len(self._ring) - 1
        return [(min(place, last - place), peer) for place, peer in enumerate(self._ring) if peer not in before]

    def asked(self, peer: PeerId, now: float) -> None:
        """This peer has asked us something: we know that it is still there, if we know it."""
        if peer in self._buckets.get(self._index(peer), {}):
            self.heard(peer, now)

    def heard(self, peer: PeerId, now: float) -> None:
        """This peer has answered us, or was a neighbour."""
        self._silent.pop(peer)
        index = self._index(peer)
        if index < 0:
            return
        bucket = self._buckets.setdefault(index, {})
        bucket.pop(peer, None)
        if len(bucket) == self._k:
            oldest = next(iter(bucket))
            if not self._has_lapsed(bucket[oldest], now):
                return
            del bucket[oldest]
        bucket[peer] = now

    def gone(self, peer: PeerId, now: float) -> None:
        """This peer has not answered, or its link fell silent."""
        self._silent.put(peer, now + SILENCE_REMEMBERED)
        self._buckets.get(self._index(peer), {}).pop(peer, None)

    def is_silent(self, peer: PeerId, now: float) -> bool:
        """Whether it has not answered lately, or must not be asked."""
        return peer in self._blocked or (self._silent.get(peer) or -math.inf) > now

    def closest(self, target: PeerId, count: int, now: float, *, without: PeerId | None = None) -> list[PeerId]:
        """The peers nearest to an id that we know, nearest first, as `spread` has them."""
        return spread(self._ranked(target, now, without), count, self.density)

    def is_among(self, target: PeerId, count: float, now: float) -> bool:
        """Whether at most so many of them are nearer to an id than we are, of an improbable crowd a part."""
        ours, nearer = self._number ^ int(target, 16), 0
        for distance, _ in self._ranked(target, now):
            if distance >= ours or nearer > count:
                break
            nearer += nearer < crowd_limit(distance, self.density)
        return nearer <= count

    def snapshot(self) -> dict[str, object]:
        """How full the buckets are, the nearest first, by the bits that their peers share with us."""
        buckets = {str(ID_BITS - 1 - index): len(self._buckets[index]) for index in sorted(self._buckets)}
        return {
            "contacts": sum(buckets.values()),
            "buckets": {shared: count for shared, count in buckets.items() if count},
            "neighbours": len(self._neighbours),
            "around": len(self._ring),
        }

    def _index(self, peer: PeerId) -> int:
        return (self._number ^ int(peer, 16)).bit_length() - 1

    def _ranked(self, target: PeerId, now: float, without: PeerId | None = None) -> list[tuple[int, PeerId]]:
        """All that we know, by distance: what a request of others costs, so it is written for speed."""
        goal, lapsed = int(target, 16), now - self._lasts
        known = {**self._neighbours, **self._ring}
        for bucket in self._buckets.values():
            known.update({peer: None for peer, seen in bucket.items() if seen > lapsed})
        if without is not None:
            known.pop(without, None)
        if self._silent:
            known = {peer: None for peer in known if not self.is_silent(peer, now)}
        return sorted([(int(peer, 16) ^ goal, peer) for peer in known])

    def _has_lapsed(self, seen: float, now: float) -> bool:
        return seen <= now - self._lasts
