"""Kademlia's routing table: up to k contacts for each power of two of XOR distance, and the peers around us.

Maymounkov and Mazieres 2002, sections 2.2 and 2.4, but nothing is asked to fill it or to keep it up. A peer is a
contact once it has spoken itself: by a link, a request or an answer. It counts for as long as it is a neighbour, and
for `KademliaConfig.contact_lasts` after it has spoken last: what is older may be gone, and there is always somebody
who knows better. For besides contacts there are the peers next to us on the ring, as the overlay hears of them from
our neighbours, always up to date. The k peers nearest to an id share a prefix, so they lie together on the ring, and
each of them knows those around it.

In: peers that spoke, failed to answer or are gone; neighbours; the peers around us. Out: the peers nearest to an id.
State: k contacts for each of 160 buckets, the neighbours, the peers around us (two lists of
`ChordConfig.successors`), and `KademliaConfig.silent` silent peers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import ID_BITS, PeerId, ring_distance
from p2pmesh.protocols.util.limits import LruTable

SILENCE_REMEMBERED = 60.0
"""Seconds for which a peer that didn't answer is neither asked nor named, though others name it."""


class RoutingTable:
    """The peers that one peer knows.

    Bucket number i holds contacts at distances from 2**i to 2**(i + 1) - 1, so each is half of what is left of the id
    space.
    """

    def __init__(self, me: PeerId, config: KademliaConfig) -> None:
        self._me = me
        self._number = int(me, 16)
        self._k = config.k
        self._lasts = config.contact_lasts
        self._buckets: dict[int, dict[PeerId, float]] = {}  # when each contact spoke last, the latest at the end
        self._neighbours: dict[PeerId, None] = {}
        self._ring: dict[PeerId, None] = {}
        self._silent: LruTable[float] = LruTable(config.silent)

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
        """Whether it has not answered lately."""
        return (self._silent.get(peer) or -math.inf) > now

    def closest(self, target: PeerId, count: int, now: float, *, without: PeerId | None = None) -> list[PeerId]:
        """The peers nearest to an id that we know, nearest first."""
        goal = int(target, 16)
        known = (peer for peer in self._known(now) if peer != without)
        return heapq.nsmallest(count, known, key=lambda peer: int(peer, 16) ^ goal)

    def nearer(self, target: PeerId, now: float) -> int:
        """How many of them are nearer to an id than we are."""
        goal = int(target, 16)
        ours = self._number ^ goal
        return sum(int(peer, 16) ^ goal < ours for peer in self._known(now))

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

    def _known(self, now: float) -> list[PeerId]:
        known = {**self._neighbours, **self._ring}
        for bucket in self._buckets.values():
            known.update((peer, None) for peer, seen in bucket.items() if not self._has_lapsed(seen, now))
        return [peer for peer in known if not self.is_silent(peer, now)]

    def _has_lapsed(self, seen: float, now: float) -> bool:
        return seen <= now - self._lasts
