"""Fix fingers: where long links should lead, and when a peer looks for them.

Distances follow the harmonic law, with which greedy routes are shortest (Kleinberg, The small-world phenomenon,
2000): a key is drawn, and a link sought to a peer near it. In a mesh at rest nearly all slots are taken, so the peer at
the key names those of its neighbours that have a free slot, if it has none itself (`find_successor`).

All slots are filled while the mesh takes a newcomer in: the newcomer seeks, and so does a peer that had to give up a
link for that. When a link is lost because a peer has gone, others are sought only once fewer than a third of the long
links are left, since newcomers will fill the slots; so a departure costs the mesh few new links. Ten searches in a
row that come to nothing are enough; then only a change makes a peer seek again. A long link that is open needs no
fixing: it stays, wherever the ring has grown since.

In: what becomes of slots, links and searches. Out: what to look up and when, and whom to dial.
"""

from __future__ import annotations

import math
import random

from attrs import define

from p2pmesh.config import ChordConfig
from p2pmesh.keyspace import ID_DIGITS, RING_SIZE, PeerId, nearness
from p2pmesh.protocols.overlay.slots import Slots
from p2pmesh.protocols.overlay.successor_list import SuccessorLists
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.wire.overlay import FindSuccessor

NEAREST = 2
"""Places on the ring that a long link should span at least: the next one has a link of its own."""
REPAIRED = 5.0
"""Seconds in which the ring is closed again around a peer that has gone: only then its neighbours see which of their
links are long ones."""
CANDIDATES = 4
"""Peers that one search gives to dial, one after the other."""


def draw_key(me: PeerId, size: int, rng: random.Random) -> PeerId:
    """A place to link to, at a distance by the harmonic law, in a mesh of so many peers."""
    least = min(NEAREST / max(size, 1), 0.25)
    share = math.exp(rng.uniform(math.log(least), math.log(0.5)))
    way = int(share * RING_SIZE) * rng.choice((1, -1))
    return _as_id(int(me, 16) + way)


def _as_id(place: int) -> PeerId:
    return PeerId(f"{place % RING_SIZE:0{ID_DIGITS}x}")


@define
class _Counts:
    searches: int = 0
    vain: int = 0


class FingerSearch:
    """The search of one peer for long links.

    Attributes:
      is_on: whether long links are sought.
    """

    def __init__(
        self,
        me: PeerId,
        max_peers: int,
        lists: SuccessorLists,
        slots: Slots,
        config: ChordConfig,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._lists = lists
        self._slots = slots
        self._most = max(0, max_peers - 2)
        self._config = config
        self._backoff = Backoff(config.search_first, config.search_cap)
        self._rng = rng
        self._free = max_peers
        self._far = 0
        self._key = me
        self._failures = 0
        self._not_before = 0.0
        self._dialing = False
        self._target = self._most
        self._merging_until = -math.inf
        self._is_asking = False
        self.is_on: bool = self._most > 0
        self.counts: _Counts = _Counts()

    # --- what happens -------------------------------------------------------------------------------------------------

    def slots_changed(self, *, displaced: bool, now: float) -> bool:
        """Slots may have been taken or got free; `displaced` if a newcomer took our place with a neighbour.

        Returns:
          Whether it makes a difference to searching. If not, a search that has enough is not over yet: what we have
          now is not sure to stay while rings merge.
        """
        before, self._free = self._free, max(0, self._slots.free())
        if displaced and self._most:
            self._target = self._most if now > self._merging_until else self._enough()
            self._start(now + REPAIRED)
        elif self._free > before and self._dialing:  # the dial failed, as it seems
            self._failed(now)
        return displaced or self._free != before

    def settle_for_less(self, until: float) -> None:
        """Two rings become one: slots are passed from hand to hand, and get free at the end.

        Only what is needed is sought, then.
        """
        self._merging_until = until
        if self._most:
            self._target = self._enough()
            self._start(until)

    def links_changed(self, now: float) -> None:
        """A link has come or gone, or it has turned out to be a long one."""
        before, self._far = self._far, len(self._lists.far())
        if self._far > before:
            self._dialing, self._failures = False, 0
            self._not_before = now
        elif self._far < before and not self.is_on and self._far < self._enough():
            self._target = self._enough()
            self._start(now + REPAIRED)

    def found(self, candidates: tuple[PeerId, ...], now: float) -> tuple[PeerId, ...]:
        """The look-up gave these peers, if any: which of them to dial, the nearest to the key first."""
        self._is_asking = False
        strangers = [peer for peer in dict.fromkeys(candidates) if peer != self._me and not self._slots.is_link(peer)]
        if not strangers:
            self._failed(now)
            return ()
        self._dialing = True
        self._not_before = now + self._config.dial_patience
        return tuple(sorted(strangers, key=lambda peer: nearness(peer, self._key))[:CANDIDATES])

    # --- what to do ---------------------------------------------------------------------------------------------------

    def next_search(self, now: float) -> float | None:
        """When to search next; None for not before something changes."""
        if self._is_asking or not self.is_on or not self._slots.members():
            return None
        if self._far >= self._target:
            self.is_on = False
            return None
        if self._free <= self._lists.kept_free():
            return None
        return max(now, self._not_before)

    def question(self, now: float) -> FindSuccessor | None:
        """What to ask now; None if it is not the time."""
        if self._dialing:  # and that came to nothing in its time
            self._failed(now)
        due = self.next_search(now)
        if due is None or due > now:
            return None
        self._key = draw_key(self._me, self._lists.size(), self._rng)
        self.counts.searches += 1
        self._is_asking = True
        return FindSuccessor(key=self._key, seeks_link=True)

    def _enough(self) -> int:
        """A third of the long links, rounded up: what is sought at once when others have gone."""
        return -(-self._most // 3)

    def _start(self, at: float) -> None:
        self.is_on = True
        self._failures = 0
        self._not_before = max(at, self._merging_until)

    def _failed(self, now: float) -> None:
        self._dialing = False
        self.counts.vain += 1
        self._failures += 1
        self._not_before = now + self._backoff.delay(self._failures, self._rng)
        if self._failures >= self._config.searches:
            self.is_on = False
