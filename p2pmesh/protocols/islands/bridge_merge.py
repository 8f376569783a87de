"""Links that may join two islands, and the floods of `merge` that make them known on both sides.

A link is *confirmed* by asking its far end who is next to us there, and looking for that peer on our ring: if it is not
at its place, there are two rings (the core does that). Then `merge` floods each side, and some of those that hear it,
as *seeds*, ask the far end who is next to them beyond the bridge, and link to those.

In: links that a service brought about, floods. Out: when to look, what to flood on and where, who of those beyond is
next to us. State: `MAX_FLOODS` floods, `MAX_CASES` links that are looked into twice, and until when nobody asks the
services.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping

from attrs import asdict, define

from p2pmesh.config import IslandsConfig
from p2pmesh.keyspace import PeerId, bracket
from p2pmesh.protocols.islands.recovery import MAX_CASES
from p2pmesh.protocols.util.limits import LruTable, RateLimiter
from p2pmesh.wire.overlay import FoundBeyond, Merge

MAX_PATH = 24
"""Links that `merge` goes: 10,000 peers with 3 links each are 15 from each other at most."""
TRIED_FOR = 25.0
"""Seconds for which one bridge at a time is tried on an island: an attempt lasts 15 s, a confirmation a few more."""
MAX_FLOODS = 64
"""Floods known by their ids, so that each is passed on once: far more than are let pass in the time that one takes."""
FLOODS, FLOOD_EVERY = 3.0, 4.0
"""Floods that a peer starts or passes on at once, and seconds for another: several bridges may open in one moment."""
SPREAD = 1.5
"""Seconds over which seeds look for their places beyond a bridge."""
STRANGE = 3.0
"""Seconds until a stranger's island is looked for: two newcomers may meet by a service, and find their places first."""


@define
class MergeCounts:
    """Floods that were one too many, and peers beyond bridges that we were told of as next to us."""

    floods_dropped: int = 0
    adopted: int = 0


class BridgeMerge:
    """What one peer knows of bridges, its own and others'."""

    def __init__(
        self, me: PeerId, config: IslandsConfig, links: Mapping[PeerId, bool], rng: random.Random, ring_list: int
    ) -> None:
        self._me = me
        self._config = config
        self._links = links
        self._rng = rng
        self._ring_list = ring_list
        self._strangers = LruTable[None](MAX_CASES)
        self._floods: OrderedDict[str, Merge] = OrderedDict()
        self._allowance = RateLimiter(1, 1 / FLOOD_EVERY, FLOODS)
        self.quiet_until: float = -1.0
        """After news of a bridge we ask nobody before then."""
        self.others_try_until: float = -1.0
        """Somebody on this island tries to open a bridge: nobody else asks the services before then."""
        self.counts: MergeCounts = MergeCounts()

    def snapshot(self) -> dict[str, int]:
        return {"floods": len(self._floods), **asdict(self.counts)}

    @property
    def waits_until(self) -> float:
        """Until when no service is asked, and no bridge opened."""
        return max(self.quiet_until, self.others_try_until)

    # --- is it a bridge? ----------------------------------------------------------------------------------------------

    def stranger_pause(self, peer: PeerId) -> float:
        """Seconds until a link to a stranger is looked into. It may just be a newcomer, so it is looked into twice."""
        self._strangers.put(peer, None)
        return STRANGE * self._rng.uniform(0.7, 1.3)

    def second_look(self, far: PeerId) -> float | None:
        """Our place beyond this link is not the one here. Returns seconds until another look; None: it is a bridge."""
        if far not in self._strangers:
            return None
        self._strangers.pop(far)
        return STRANGE * self._rng.uniform(0.5, 1.0)

    # --- floods -------------------------------------------------------------------------------------------------------

    def new(self, far: PeerId, *, wanted: bool = False) -> Merge:
        """A flood of our own, about the bridge to `far`, or the attempt at it."""
        return Merge(id=self._rng.randbytes(16).hex(), bridge=far, wanted=wanted)

    def takes(self, sender: PeerId, merge: Merge) -> bool:
        """Whether a flood is news, and could have come this way."""
        sound = merge.path[-1:] == (sender,) and self._me not in merge.path and len(merge.path) <= MAX_PATH
        return sound and merge.id not in self._floods and merge.bridge != self._me

    def may_flood(self, now: float) -> bool:
        """Whether one more flood may start here or pass."""
        may = self._allowance.take(self._me, now)
        self.counts.floods_dropped += not may
        return may

    def flood(self, merge: Merge, without: tuple[PeerId, ...], now: float) -> tuple[Merge, tuple[PeerId, ...]]:
        """Remember a flood, and be quiet for a while. Returns it as it goes on, and to whom."""
        self._floods[merge.id] = merge
        if len(self._floods) > MAX_FLOODS:
            self._floods.popitem(last=False)
        if merge.wanted:
            self.others_try_until = now + TRIED_FOR
        else:
            self.quiet_until = now + self._config.quiet
        onward = Merge(id=merge.id, bridge=merge.bridge, path=(*merge.path, self._me), wanted=merge.wanted)
        if len(merge.path) >= MAX_PATH:
            return onward, ()
        left_out = {*without, merge.bridge}
        return onward, tuple(peer for peer, is_member in self._links.items() if is_member and peer not in left_out)

    def seed_pause(self, merge: Merge, size: int) -> float | None:
        """Seconds until we look for our place beyond the bridge; None if others do: some hundred seeds are enough."""
        if merge.wanted or self._rng.random() * size >= self._config.seeds:
            return None
        return SPREAD * self._rng.random()

    def path_to(self, flood: str) -> tuple[PeerId, ...] | None:
        """The path from the far end of the bridge that this flood tells of to us; None if it is forgotten."""
        merge = self._floods.get(flood)
        return None if merge is None else (merge.bridge, *merge.path)

    def next_to_us(self, found: FoundBeyond) -> tuple[PeerId, ...]:
        """Those beyond the bridge that are next to us and not linked yet."""
        near = bracket(self._me, found.peer, found.predecessors, found.successors, (), self._ring_list) or [found.peer]
        peers = tuple(peer for peer in near if peer != self._me and peer not in self._links)
        self.counts.adopted += len(peers)
        return peers
