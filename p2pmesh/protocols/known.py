"""The known-peers table: peers that are said to be in the mesh, and how attempts at them went. Bounded.

What stands in it is hearsay: ids that a service or a peer named. Only what we tried ourselves counts for or against one.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator

from attrs import define

from p2pmesh.config import TopologyConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.timers import Backoff

TRUST = 3
"""Attempts at a peer that may fail in a row before it stops being worth a link of ours, or is forgotten if said to be gone:
an attempt may fail by bad luck, three don't."""
FORGIVEN = 300.0
"""Seconds after the last failed attempt until a peer is worth a link again, as what kept it away may have healed; doubled
with each failure more, for a peer that a service announces and nobody can reach costs its neighbours a link each time."""


@define
class Known:
    """What we know of a peer."""

    misses: int = 0
    """Attempts that failed or were turned down since the last success."""
    missed_at: float = -math.inf
    next_try: float = -math.inf
    gone: bool = False
    """Said to have left."""
    version: int | None = None
    """Its protocol version, once it told us."""


class KnownPeers:
    """The table. Peers are kept in the order in which they were last heard of."""

    def __init__(self, me: PeerId, config: TopologyConfig, rng: random.Random) -> None:
        self._me = me
        self._limit = config.known_peers
        self._backoff = Backoff(config.retry_first, config.retry_cap)
        self._rng = rng
        self._peers: OrderedDict[PeerId, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def learn(self, peers: Iterable[PeerId], not_before: float = -math.inf) -> bool:
        """These peers are said to be there, and are not tried before then. Whether one of them is news."""
        news = False
        for peer in peers:
            if peer == self._me:
                continue
            known = self._peers.get(peer)
            if known is None:
                known = self._add(peer)
                known.next_try = not_before
                news = True
            elif known.gone:
                known.gone, known.misses, known.next_try = False, 0, not_before
                news = True
            self._peers.move_to_end(peer)
        return news

    def heard(self, peer: PeerId, version: int) -> None:
        """The peer itself spoke to us."""
        known = self._peers.get(peer) or self._add(peer)
        known.gone, known.version = False, version
        self._peers.move_to_end(peer)

    def linked(self, peer: PeerId, version: int) -> None:
        """A link to it opened."""
        self.heard(peer, version)
        self._peers[peer].misses = 0

    def missed(self, peer: PeerId, now: float) -> None:
        """An attempt at it came to nothing."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.misses += 1
        known.missed_at = now
        known.next_try = now + self._backoff.delay(known.misses, self._rng)
        if known.gone and known.misses >= TRUST:
            del self._peers[peer]

    def pause(self, peer: PeerId, until: float) -> None:
        """Don't try it before then, without holding anything against it."""
        known = self._peers.get(peer) or self._add(peer)
        known.next_try = until

    def mark_gone(self, peer: PeerId) -> None:
        """It is said to have left, but we have reason to doubt it: forgotten if attempts fail."""
        known = self._peers.get(peer)
        if known is not None:
            known.gone = True

    def forget(self, peer: PeerId) -> None:
        self._peers.pop(peer, None)

    def version(self, peer: PeerId) -> int | None:
        known = self._peers.get(peer)
        return None if known is None else known.version

    def ready(self, now: float, without: Collection[PeerId]) -> list[PeerId]:
        """Peers that may be tried now."""
        return [peer for peer, known in self._peers.items() if known.next_try <= now and peer not in without]

    def next_ready(self, now: float) -> float:
        """When the next peer may be tried that may not be now."""
        return min((known.next_try for known in self._peers.values() if known.next_try > now), default=math.inf)

    def misses(self, peer: PeerId) -> int:
        known = self._peers.get(peer)
        return 0 if known is None else known.misses

    def worth_a_link(self, peer: PeerId, now: float) -> bool:
        """Whether to give up a link so that this peer can be tried: it could break the mesh for a peer that isn't there."""
        known = self._peers.get(peer)
        if known is None or known.gone:
            return False
        return known.misses < TRUST or now - known.missed_at > FORGIVEN * 2.0 ** min(known.misses - TRUST, 32)

    def in_good_standing(self) -> list[PeerId]:
        """Peers that nothing speaks against: fit to be named to others."""
        return [peer for peer, known in self._peers.items() if not known.misses and not known.gone]

    def _add(self, peer: PeerId) -> Known:
        if len(self._peers) >= self._limit:
            # Those that failed go first, so that made-up ids don't push out the real ones that we reached.
            failed = (other for other, known in self._peers.items() if known.misses)
            del self._peers[next(failed, next(iter(self._peers)))]
        known = self._peers[peer] = Known()
        return known


# --- the ring ---------------------------------------------------------------------------------------------------------


def successor(me: PeerId, peers: Collection[PeerId]) -> PeerId | None:
    """Whichever of `peers` comes next after `me` clockwise. Ids compare as text as they do as numbers."""
    return min([peer for peer in peers if peer >= me] or peers, default=None)


def predecessor(me: PeerId, peers: Collection[PeerId]) -> PeerId | None:
    """Whichever of `peers` comes last before `me` clockwise."""
    return max([peer for peer in peers if peer <= me] or peers, default=None)


def ring_neighbours(me: PeerId, peers: Collection[PeerId]) -> tuple[PeerId, ...]:
    """Successor and predecessor of `me` among `peers`: two, or one that is both, or none."""
    return tuple(dict.fromkeys(peer for peer in (successor(me, peers), predecessor(me, peers)) if peer is not None))
