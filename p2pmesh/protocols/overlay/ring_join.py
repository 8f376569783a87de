"""Ring join: how a peer finds its place on the ring, by looking its own id up (Chord, section 4: `join`).

While its neighbours on the ring don't take it for theirs, a peer looks its own id up, ever more rarely: the peer
nearest to it knows who is next to it. A leaf, with its one slot, asks for a place beside whoever is nearest.

Where many die at once, that is not enough. A peer that has lost several in a row on one side finds nobody by its own
id but its neighbours on the other side, who know of that side what it told them itself; and some long link, now the
nearest that it has there, may agree to be next to it, having lost all in between, too. So the ring is *torn* on a
side from when the peer next to us there is gone, until somebody from its list is linked; or until the peer nearest to
the end of that list, which is looked up, knows nobody between us and whoever is next to us now.

In: what the successor lists and answers say. Out: what to look up and when, and who is next to us.
"""

from __future__ import annotations

import random

from p2pmesh.keyspace import PeerId, between, bracket, predecessor, successor
from p2pmesh.protocols.overlay.slots import Slots
from p2pmesh.protocols.overlay.successor_list import SuccessorLists
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.wire.overlay import FindSuccessor, SuccessorFound

FIRST_LOOK_UP = 1.5
"""Seconds for neighbours on the ring to find each other by what they hear: two links, and a round of news."""
LOOK_UP_CAP = 60.0
"""Seconds between look-ups at most."""
SERVICE_AFTER = 3
"""Look-ups that change nothing, until the services are asked."""


class RingJoin:
    """The search of one peer for its place; of a leaf if `is_leaf`, with one slot only."""

    def __init__(self, me: PeerId, lists: SuccessorLists, slots: Slots, *, is_leaf: bool) -> None:
        self._me = me
        self._lists = lists
        self._slots = slots
        self.is_leaf: bool = is_leaf
        self._looked = 0
        self._torn: dict[bool, PeerId] = {}
        """The sides, clockwise or not, on which the ring is torn, with the end of the list that we had."""
        self._key = me
        self._backoff = Backoff(FIRST_LOOK_UP, LOOK_UP_CAP)
        self.look_ups: int = 0

    def is_placed(self) -> bool:
        """Whether those next to us see it as we do."""
        if not self.is_leaf:
            self._mend()
            return not self._torn and self._lists.is_agreed()
        home = next(iter(self._slots.settled_members()), None)
        told = None if home is None else self._slots[home].told
        if home is None or told is None:
            return False
        return home in bracket(self._me, home, told.predecessors, told.successors, told.links, self._lists.limit)

    def placed(self) -> None:
        """We are: the next time we are not, we look soon."""
        self._looked = 0

    def delay(self, rng: random.Random) -> float:
        """Seconds until we look for it."""
        return self._backoff.delay(self._looked + 1, rng)

    def question(self) -> FindSuccessor:
        """What to look up: our id, and in turn with it the ends of what is torn."""
        keys = (*self._torn.values(), self._me)
        self._key = keys[self._looked % len(keys)]
        self._looked += 1
        self.look_ups += 1
        return FindSuccessor(key=self._key, leaf=self.is_leaf)

    def wants_services(self) -> bool:
        """Whether looking has helped so little that services are to be asked."""
        return self._looked >= SERVICE_AFTER

    def next_to_us(self, answerer: PeerId, found: SuccessorFound) -> tuple[PeerId, ...]:
        """Whose neighbours we are, as the peer nearest to the key says: a predecessor and a successor, if it knows."""
        self._mend_by((answerer, *found.successors, *found.predecessors))
        return tuple(bracket(self._me, answerer, found.predecessors, found.successors, (), self._lists.limit))

    # --- where the ring is torn ---------------------------------------------------------------------------------------

    def tear(self, lost: tuple[PeerId, ...], *, clockwise: bool) -> None:
        """The peer next to us on that side, the first of this list, is gone."""
        self._mend()
        if not self.is_leaf and len(lost) > 1:
            self._torn.setdefault(clockwise, lost[-1])

    def _mend(self) -> None:
        """Somebody from the list, or nearer, is linked."""
        for clockwise, end in list(self._torn.items()):
            peer = self._next(clockwise)
            if peer is not None and (peer == end or self._is_before(peer, end, clockwise)):
                del self._torn[clockwise]

    def _mend_by(self, named: tuple[PeerId, ...]) -> None:
        """These are at the end of the list: nobody was missed, if none of them is nearer than the peer next to us."""
        others = [peer for peer in named if peer != self._me]
        for clockwise, end in list(self._torn.items()):
            nearest, peer = (successor if clockwise else predecessor)(self._me, others), self._next(clockwise)
            if end == self._key and nearest and peer and not self._is_before(nearest, peer, clockwise):
                del self._torn[clockwise]

    def _next(self, clockwise: bool) -> PeerId | None:
        return next(iter(self._lists.successors if clockwise else self._lists.predecessors), None)

    def _is_before(self, one: PeerId, other: PeerId, clockwise: bool) -> bool:
        """Whether, from us on to that side, one peer comes before the other."""
        return between(self._me, one, other) if clockwise else between(other, one, self._me)
