"""Placing: how a peer finds its place on the ring.

While its neighbours on the ring don't take it for theirs, a peer looks its own id up, ever more rarely: whoever is nearest to
it knows who is next to it. A leaf, with its one slot, asks for a place beside whoever is nearest.
"""

from __future__ import annotations

import random

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import RingAgreed
from p2pmesh.protocols.ring import RingView, bracket
from p2pmesh.protocols.timers import Backoff
from p2pmesh.wire.overlay import FindSuccessor, Neighbours, SuccessorFound

FIRST = 1.5
"""Seconds for neighbours on the ring to find each other by what they hear: two links, and a round of news."""
CAP = 60.0
SERVICE_AFTER = 3
"""Look-ups that change nothing, until the services are asked."""


class Placing:
    """The search of one peer for its place.

    Attributes:
      call: the look-up that is under way.
    """

    def __init__(self, me: PeerId, view: RingView, successors: int, *, is_leaf: bool) -> None:
        self._me = me
        self._view = view
        self._successors = successors
        self._is_leaf = is_leaf
        self._looked = 0
        self._agreed: tuple[PeerId, PeerId] | None = None
        self._backoff = Backoff(FIRST, CAP)
        self.call: int | None = None

    def is_placed(self) -> bool:
        """Whether those next to us see it as we do."""
        if not self._is_leaf:
            return self._view.is_agreed()
        home = next(iter(self._view.members()), None)
        told = None if home is None else self._view.neighbours[home].told
        return told is not None and home is not None and home in bracket(self._me, home, told, self._successors)

    def placed(self) -> RingAgreed | None:
        """We are: next to whom, if that is news."""
        self._looked = 0
        before = self._agreed
        self._agreed = None if self._is_leaf else (self._view.predecessors[0], self._view.successors[0])
        return None if self._agreed in (None, before) else RingAgreed(*self._agreed)

    def delay(self, rng: random.Random) -> float:
        """Seconds until we look for it."""
        return self._backoff.delay(self._looked + 1, rng)

    def question(self) -> FindSuccessor:
        """What to look up."""
        self._looked += 1
        return FindSuccessor(key=self._me, joins=self._is_leaf, leaf=self._is_leaf)

    def wants_services(self) -> bool:
        """Whether looking has helped so little that services are to be asked."""
        return self._looked >= SERVICE_AFTER

    def next_to_us(self, answerer: PeerId, found: SuccessorFound) -> tuple[PeerId, ...]:
        """Whose neighbours we are, as who is nearest to us says: a predecessor and a successor, if it knows."""
        said = Neighbours(serial=0, successors=found.successors, predecessors=found.predecessors)
        return tuple(bracket(self._me, answerer, said, self._successors))
