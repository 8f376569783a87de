"""Seeking: when a peer looks for long links, and when it lets that be.

All slots are filled while the mesh takes a newcomer in: who has just come seeks, and who had to give up a link for that.
When a link is lost because a peer has gone, others are sought only once fewer than a third of the long links are left, since
newcomers will fill the slots; so a departure costs the mesh few new links. Ten searches in a row that come to nothing are
enough; then there is a pause.
"""

from __future__ import annotations

import math
import random

from p2pmesh.config import ChordConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.overlay.finger_keys import draw_key, levels, snap
from p2pmesh.protocols.overlay.successor_list import SuccessorLists
from p2pmesh.protocols.util.ring_geometry import nearness
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.wire.overlay import FindSuccessor

MOST_PAUSES = 6
"""Pauses in a row, each twice as long as the one before, after which only a change makes a peer seek again."""
REPAIRED = 5.0
"""Seconds in which the ring is closed again around a peer that has gone: only then its neighbours see which of their links
are long ones."""
CANDIDATES = 4
"""Peers that one search gives the topology to dial, one after the other."""


class FingerSearch:
    """The search of one peer for long links.

    Attributes:
      call: the look-up that is under way.
      is_on: whether long links are sought, now or after a pause.
    """

    def __init__(self, me: PeerId, max_peers: int, config: ChordConfig, rng: random.Random) -> None:
        self._me = me
        self._slots = max(0, max_peers - 2)
        self._config = config
        self._backoff = Backoff(config.search_first, config.search_cap)
        self._rng = rng
        self._free = max_peers
        self._far = 0
        self._key = me
        self._failures = 0
        self._pauses = 0
        self._not_before = 0.0
        self._dialing = False
        self._joins = True
        self._target = self._slots
        self._merging_until = -math.inf
        self.call: int | None = None
        self.is_on: bool = self._slots > 0

    # --- what happens -------------------------------------------------------------------------------------------------

    def slots_changed(self, free: int, *, displaced: bool, now: float) -> None:
        """So many slots nothing takes now."""
        rose, self._free = free > self._free, free
        if displaced and self._slots:
            self._target = self._slots if now > self._merging_until else self._enough()
            self._start(now + REPAIRED)
        elif rose and self._dialing:  # the dial failed, as it seems
            self._failed(now)

    def settle_for_less(self, until: float) -> None:
        """Two rings become one: slots are passed from hand to hand, and get free at the end.

        Only what is needed is sought, then.
        """
        self._merging_until = until
        self._target = self._enough()
        self._not_before = max(self._not_before, until)

    def links_changed(self, view: SuccessorLists, now: float) -> None:
        """A link has come or gone, or it has turned out to be a long one."""
        before, self._far = self._far, len(view.far())
        if self._far > before:
            self._dialing, self._failures, self._pauses = False, 0, 0
            self._not_before = now
        elif self._far < before and not self.is_on and self._far < self._enough():
            self._target = self._enough()
            self._start(now + REPAIRED)

    def nothing_found(self, now: float) -> None:
        """The look-up came to nothing."""
        self.call = None
        self._failed(now)

    def found(self, candidates: tuple[PeerId, ...], view: SuccessorLists, now: float) -> tuple[PeerId, ...]:
        """The look-up gave these peers: which of them to dial, the nearest to the key first."""
        self.call = None
        strangers = [peer for peer in dict.fromkeys(candidates) if peer != self._me and peer not in view.neighbours]
        if not strangers:
            self._failed(now)
            return ()
        self._dialing = True
        self._not_before = now + self._config.dial_patience
        return tuple(sorted(strangers, key=lambda peer: nearness(peer, self._key))[:CANDIDATES])

    # --- what to do ---------------------------------------------------------------------------------------------------

    def next_search(self, view: SuccessorLists, now: float) -> float | None:
        """When to search next; None for not before something changes."""
        if self.call is not None or not self.is_on or not any(it.speaks for it in view.neighbours.values()):
            return None
        if self._far >= self._target:
            self.is_on = self._joins = False
            return None
        if self._free <= view.kept_free():
            return None
        return max(now, self._not_before)

    def question(self, view: SuccessorLists, now: float) -> FindSuccessor | None:
        """What to ask now; None if it is not the time."""
        if self._dialing:  # and that came to nothing in its time
            self._failed(now)
        due = self.next_search(view, now)
        if due is None or due > now:
            return None
        size = view.size()
        self._key = draw_key(self._me, size, self._rng)
        key = snap(self._key, self._failures % levels(size), size)
        return FindSuccessor(key=key, seeks_link=True, joins=self._joins)

    def _enough(self) -> int:
        """A third of the long links, rounded up: what is sought at once when others have gone."""
        return -(-self._slots // 3)

    def _worth_a_pause(self) -> int:
        """Two thirds of what is wanted, rounded up: with fewer long links, searches that came to nothing are taken up again."""
        return -(-2 * self._target // 3)

    def _start(self, at: float) -> None:
        self.is_on = True
        self._failures = self._pauses = 0
        self._not_before = max(at, self._merging_until)

    def _failed(self, now: float) -> None:
        self._dialing = False
        self._failures += 1
        if self._failures < self._config.searches:
            self._not_before = now + self._backoff.delay(self._failures, self._rng)
            return
        self._joins = False
        self._failures = 0
        self._pauses += 1
        self.is_on = self._pauses <= MOST_PAUSES and self._far < self._worth_a_pause()
        pause = self._config.fix_fingers_every * 2.0 ** (self._pauses - 1)
        self._not_before = now + pause * self._rng.uniform(0.8, 1.2)
