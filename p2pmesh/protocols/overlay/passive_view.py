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
from p2pmesh.keyspace import PeerId, between
from p2pmesh.protocols.util.timers import Backoff

TRUST = 3
"""Attempts at a peer that may fail in a row before it stops being worth a link of ours, or is forgotten if said to be gone:
an attempt may fail by bad luck, three don't."""
PATIENCE = 8
PROVEN_PATIENCE = 12
"""Attempts in a row that may fail before a peer is forgotten by somebody who has links: some two minutes; and about five if a
link to it has worked before."""
DEPARTED = 60.0
"""Seconds for which a peer that said goodbye is not believed to be there: until lists that name it have washed out."""
SILENT = 15.0
"""Seconds for which one is not that fell silent: until all its neighbours have noticed."""
FORGIVEN = 300.0
"""Seconds after the last failed attempt until a peer is worth a link again, as what kept it away may have healed; doubled
with each failure more, for a peer that a service announces and nobody can reach costs its neighbours a link each time."""
VOUCHED = 20.0
"""Seconds for which it counts that somebody said of a peer that it is there: if it does not come by then, it may be gone."""


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
    leaf: bool = False
    """It is no part of the ring: it may have one link only, or does not prove who it is."""
    vouched: float = -math.inf
    """Until when it counts that somebody said it was there who should know, and did not just name it."""
    sure: float = -math.inf
    """Until when it is as good as there: we have just found it at its place ourselves."""
    proven: bool = False
    """A link to it has opened before: tried again sooner, and remembered longer."""
    cut_short: bool = False
    """The last attempt at it had to give way before it came to anything."""


class PassiveView:
    """The table. Peers are kept in the order in which they were last heard of."""

    def __init__(self, me: PeerId, config: TopologyConfig, rng: random.Random) -> None:
        self._me = me
        self._limit = config.known_peers
        self._backoff = Backoff(config.retry_first, config.retry_cap)
        self._shelved, self._untried = config.retry_cap, config.min_link_age
        self._rng = rng
        self._peers: OrderedDict[PeerId, Known] = OrderedDict()
        self._departed: OrderedDict[PeerId, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def learn(
        self,
        peers: Iterable[PeerId],
        not_before: float = -math.inf,
        now: float = math.inf,
        *,
        vouched: float = math.inf,
    ) -> bool:
        """These peers are said to be there, and are not tried before then. Whether one of them is news.

        Given the time it is, what is said of peers that have just departed is not believed.
        """
        news = False
        for peer in peers:
            if peer == self._me or self._departed.get(peer, -math.inf) > now:
                continue
            known = self._peers.get(peer)
            if known is None:
                known = self._add(peer)
                known.next_try = not_before
                news = True
            elif known.gone:
                known.gone, known.misses, known.next_try = False, 0, not_before
                news = True
            known.vouched = max(known.vouched, vouched)
            self._peers.move_to_end(peer)
        return news

    def heard(self, peer: PeerId, version: int) -> None:
        """The peer itself spoke to us."""
        known = self._peers.get(peer) or self._add(peer)
        known.gone, known.version = False, version
        self._departed.pop(peer, None)
        self._peers.move_to_end(peer)

    def urge(self, peers: Iterable[PeerId], now: float) -> None:
        """These are said to be next to us: they need not wait, unless they have failed too often before."""
        for peer in peers:
            known = self._peers.get(peer)
            if known is not None and known.misses < TRUST and self._departed.get(peer, -math.inf) <= now:
                known.next_try = -math.inf

    def linked(self, peer: PeerId, version: int, *, leaf: bool) -> None:
        """A link to it opened."""
        self.heard(peer, version)
        known = self._peers[peer]
        known.misses, known.leaf, known.proven, known.cut_short = 0, leaf, True, False

    def introduced(self, peer: PeerId, *, leaf: bool) -> None:
        """It said whether it is part of the ring."""
        known = self._peers.get(peer)
        if known is not None:
            known.leaf = leaf

    def missed(self, peer: PeerId, now: float, *, may_forget: bool = False) -> None:
        """An attempt at it came to nothing. After too many it may be forgotten, if we have others."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.misses += 1
        known.missed_at = now
        known.next_try = now + self._backoff.delay(max(1, known.misses - known.proven), self._rng)
        patience = TRUST if known.gone else PROVEN_PATIENCE if known.proven else PATIENCE
        if known.misses >= patience and (known.gone or may_forget):
            del self._peers[peer]

    def forgive(self) -> None:
        """The mesh was cut, and is not any more: attempts that failed are held against nobody, as the cut may have been why.

        When each is tried again stays as it is: who is next to us will be named again (`urge`), and for the others there is
        no hurry.
        """
        for known in self._peers.values():
            known.misses = 0

    def pause(self, peer: PeerId, until: float) -> None:
        """Don't try it before then, without holding anything against it."""
        known = self._peers.get(peer) or self._add(peer)
        known.next_try = until

    def cut_short(self, peer: PeerId, until: float) -> None:
        """An attempt at it gave way to another peer. If that happens again, it may be gone for all that we know.

        Else one that is gone could cost us a link each time, and never be found out.
        """
        self.pause(peer, until)
        known = self._peers[peer]
        if known.cut_short:
            self.doubt(peer)
        known.cut_short = True

    def doubt(self, peer: PeerId) -> None:
        """It may be gone: no link is given up to find out."""
        known = self._peers.get(peer)
        if known is not None:
            known.vouched = -math.inf

    def mark_gone(self, peer: PeerId) -> None:
        """It is said to have left, but we have reason to doubt it: forgotten if attempts fail."""
        known = self._peers.get(peer)
        if known is not None:
            known.gone = True

    def forget(self, peer: PeerId) -> None:
        self._peers.pop(peer, None)

    def fell_silent(self, peer: PeerId, now: float) -> None:
        """It is probably gone: for a while it is not taken for there because others, who don't know yet, say so."""
        self._disbelieve(peer, now + SILENT)

    def departed(self, peer: PeerId, now: float) -> None:
        """It said goodbye: forgotten, and for a while not taken for there because others say so."""
        self.forget(peer)
        self._disbelieve(peer, now + DEPARTED)

    def _disbelieve(self, peer: PeerId, until: float) -> None:
        self._departed.pop(peer, None)
        self._departed[peer] = until
        if len(self._departed) > self._limit:
            self._departed.popitem(last=False)

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

    def be_sure(self, peers: Iterable[PeerId], until: float) -> None:
        """These we have found at their places ourselves."""
        for peer in peers:
            known = self._peers.get(peer)
            if known is not None:
                known.sure, known.misses, known.next_try = until, 0, -math.inf

    def is_sure(self, peer: PeerId, now: float) -> bool:
        """Whether it is as good as certain that there will be a link to it."""
        known = self._peers.get(peer)
        return known is not None and known.sure > now

    def worth_a_link(self, peer: PeerId, now: float) -> bool:
        """Whether to give up a link so that this peer can be tried: it could break the mesh for a peer that isn't there."""
        known = self._peers.get(peer)
        if known is None or known.gone or known.vouched <= now:
            return False
        return known.misses < TRUST or now - known.missed_at > FORGIVEN * 2.0 ** min(known.misses - TRUST, 32)

    def shelve(self, before: PeerId, after: PeerId, now: float) -> None:
        """Nobody is between us and those two: peers there are let be for a while, but for those who have just come."""
        for peer, known in self._peers.items():
            if known.leaf or (known.vouched > now and not known.misses):
                continue
            if between(before, peer, self._me) or between(self._me, peer, after):
                known.next_try = max(known.next_try, now + (self._shelved if known.misses else self._untried))
                known.vouched = -math.inf

    def is_leaf(self, peer: PeerId) -> bool:
        """Whether it is known to be no part of the ring."""
        known = self._peers.get(peer)
        return known is not None and (known.leaf or known.version == 0)

    def nearer(
        self, before: PeerId | None, after: PeerId | None, without: Collection[PeerId], now: float, *, worthy: bool
    ) -> tuple[list[PeerId], float]:
        """Who is nearer to us on the ring than those two, in each direction; and when the next may be tried that may not now.

        If `worthy`, only peers count that are worth a link.
        """
        me = self._me
        best_after, best_before, moment = after, before, math.inf
        for peer, known in self._peers.items():
            if known.leaf or known.version == 0 or peer in without:
                continue
            follows = best_after is None or between(me, peer, best_after)
            precedes = best_before is None or between(best_before, peer, me)
            if not follows and not precedes:
                continue
            if worthy and not self.worth_a_link(peer, now):
                continue
            if known.next_try > now:
                moment = min(moment, known.next_try)
                continue
            if follows:
                best_after = peer
            if precedes:
                best_before = peer
        found = [(best_after, after), (best_before, before)]
        return list(dict.fromkeys(best for best, held in found if best is not None and best != held)), moment

    def in_good_standing(self, now: float) -> list[PeerId]:
        """Peers that somebody vouches for, and nothing speaks against: fit to be named to others."""
        return [
            peer
            for peer, known in self._peers.items()
            if known.vouched > now
            and not known.misses
            and not known.gone
            and self._departed.get(peer, -math.inf) <= now
        ]

    def _add(self, peer: PeerId) -> Known:
        if len(self._peers) >= self._limit:
            # Those that failed go first, so that made-up ids don't push out the real ones that we reached.
            failed = (other for other, known in self._peers.items() if known.misses)
            del self._peers[next(failed, next(iter(self._peers)))]
        known = self._peers[peer] = Known()
        return known
