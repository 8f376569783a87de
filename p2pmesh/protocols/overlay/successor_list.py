"""The successor lists: the ring as one peer sees it, and how many peers there are. Bookkeeping, no decisions.

What a list says of other peers is hearsay, so a list of ours is made afresh from what the neighbours next to us say of
themselves: our successor, then its successors. A peer that dies is struck off by its own neighbours first, and washes out
within some rounds; merging lists with those that were heard before would keep the dead going round (Stoica et al., Chord,
2001, section 4: a successor list is the successor, and its list without the last).
"""

from __future__ import annotations

import math

from attrs import define

from p2pmesh.keyspace import RING_SIZE, PeerId, ring_distance
from p2pmesh.protocols.util.ring_geometry import nearness, onward, predecessor, ring_neighbours, successor
from p2pmesh.wire.fields import MAX_PEERS_IN_LIST
from p2pmesh.wire.overlay import Neighbours

FRESH = 2.0
"""Seconds for which a list holds that is not renewed with each change."""
SPLICED = 20.0
"""Seconds in which a newcomer has linked to both of those that it came between; a link that outlived that is a long one now."""


@define
class Neighbour:
    """A peer at the other end of a link."""

    since: float
    speaks: bool
    """Whether it takes part: verified, and of our protocol. Others are leaves."""
    told: Neighbours | None = None
    """What it said of itself last."""
    told_at: float = -math.inf
    next_from: float = -math.inf
    """Since when it is next to us on the ring, among our links."""
    next_until: float = -math.inf
    """When it was last next to us on the ring, among our links."""
    gives_up: bool = False
    """It said that it gives this link up; it stays where it is on the ring."""
    spare: bool = False
    """Whether it was next to us, and the ring is closed without this link."""


class SuccessorLists:
    """What our neighbours say, put together.

    Args:
      me: whose view it is.
      limit: the length of successor and predecessor lists.
    """

    def __init__(self, me: PeerId, limit: int) -> None:
        self._me = me
        self._limit = limit
        self.neighbours: dict[PeerId, Neighbour] = {}
        self.next: tuple[PeerId, ...] = ()
        """Our neighbours on the ring, among our links."""
        self.successors: tuple[PeerId, ...] = ()
        self.predecessors: tuple[PeerId, ...] = ()

    def refresh(self, now: float) -> None:
        """A link or what a neighbour says has changed."""
        for peer in self.next:
            if peer in self.neighbours:
                self.neighbours[peer].next_until = now
        members, were_next = self.members(), self.next
        self.next = ring_neighbours(self._me, members)
        for peer in self.next:
            if peer not in were_next:
                self.neighbours[peer].next_from = now
        self.successors = self._onward(successor(self._me, members), clockwise=True)
        self.predecessors = self._onward(predecessor(self._me, members), clockwise=False)

    def members(self) -> list[PeerId]:
        """Neighbours that are part of the ring."""
        return [peer for peer, it in self.neighbours.items() if it.told is not None and not it.told.leaf]

    def far(self) -> list[PeerId]:
        """Neighbours that long links lead to."""
        return [peer for peer in self.members() if peer not in self.next]

    def kept_free(self) -> int:
        """Slots that are kept for neighbours on the ring that we lack."""
        return max(0, 2 - len(self.next))

    def links(self) -> tuple[PeerId, ...]:
        """Neighbours that take part, as we tell others, those next to us first."""
        taking_part = (peer for peer, it in self.neighbours.items() if it.speaks)
        return tuple(dict.fromkeys((*self.next, *taking_part)))[:MAX_PEERS_IN_LIST]

    def outdated(self) -> list[PeerId]:
        """Neighbours on the ring whose lists are from when they were not next to us, and heard of our changes only."""
        them = ((peer, self.neighbours[peer]) for peer in self.next if peer in self.neighbours)
        return [peer for peer, it in them if it.told_at < it.next_from - FRESH]

    def _onward(self, first: PeerId | None, *, clockwise: bool) -> tuple[PeerId, ...]:
        told = None if first is None else self.neighbours[first].told
        if first is None or told is None:
            return ()
        said = told.successors if clockwise else told.predecessors
        return tuple(onward(self._me, first, said, self._limit, clockwise=clockwise))

    def is_agreed(self) -> bool:
        """Whether our neighbours on the ring take us for theirs."""
        if not self.successors or not self.predecessors:
            return False
        after, before = self.neighbours[self.successors[0]].told, self.neighbours[self.predecessors[0]].told
        return (
            after is not None
            and before is not None
            and after.predecessors[:1] == (self._me,)
            and before.successors[:1] == (self._me,)
        )

    def size(self) -> int:
        """About how many peers are in the mesh: exact if the lists come round, else by how close together they lie."""
        found = {*self.successors, *self.predecessors}
        if len(found) < len(self.successors) + len(self.predecessors) or len(found) < self._limit:
            return len(found) + 1
        span = ring_distance(self._me, self.successors[-1]) + ring_distance(self.predecessors[-1], self._me)
        gaps = len(self.successors) + len(self.predecessors)
        return max(len(found) + 1, (gaps - 1) * RING_SIZE // max(span, 1))

    def superfluous(self, now: float) -> list[PeerId]:
        """Links to peers that were next to us a moment ago, now that somebody is there who has a link to them."""
        found = []
        for peer, it in self.neighbours.items():
            if it.next_until < now - SPLICED or it.spare or it.told is None or it.told.leaf or peer in self.next:
                continue
            if any(self._closes(middle, peer) for middle in self.next):
                it.spare = True
                found.append(peer)
        return found

    def _closes(self, middle: PeerId, peer: PeerId) -> bool:
        told = self.neighbours[middle].told
        return told is not None and peer in told.links and nearness(self._me, middle) < nearness(self._me, peer)


def sure_of(row: tuple[PeerId, ...], outdated: list[PeerId]) -> tuple[PeerId, ...]:
    """What is told of a list of ours: if it was made from outdated ones, those who have gone since may stand in it."""
    return row[:1] if row and row[0] in outdated else row
