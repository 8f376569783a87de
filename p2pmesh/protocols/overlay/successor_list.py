"""Successor lists: the ring as one peer sees it, how many peers there are, and what neighbours tell each other of it.

Stoica et al., Chord, 2001, section 4: a successor list is the successor, and its list without the last. So a list of
ours is made afresh from what the neighbours next to us say of themselves. A peer that dies is struck off by its own
neighbours first, and washes out within some rounds; merging lists with those that were heard before would keep the
dead going round.

`SuccessorLists` is the view, made of the neighbours' slots. `Stabilisation` decides what is said to whom:
`Neighbours` on each new link and when something has changed, and serial numbers to compare now and then.

State: two lists of `ChordConfig.successors` peers, a serial number for each neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import structs

from p2pmesh.keyspace import (
    RING_SIZE,
    PeerId,
    bracket,
    nearness,
    onward,
    predecessor,
    ring_distance,
    ring_neighbours,
    successor,
)
from p2pmesh.protocols.overlay.slots import Slot, Slots
from p2pmesh.wire.fields import MAX_PEERS_IN_LIST
from p2pmesh.wire.overlay import Neighbours, Stabilise

NOTICEABLE = 1.25
"""Factor by which the mesh has to grow or shrink to be news."""
SPLICED = 20.0
"""Seconds in which a newcomer has linked to both peers that it came between. A link that lasts longer is a long one."""


class SuccessorLists:
    """What our neighbours say, put together.

    Args:
      me: whose view it is.
      limit: the length of successor and predecessor lists.
      slots: the neighbours.
    """

    def __init__(self, me: PeerId, limit: int, slots: Slots) -> None:
        self._me = me
        self.limit: int = limit
        self._slots = slots
        self._told_size = 1
        self.next: tuple[PeerId, ...] = ()
        """Our neighbours on the ring, among our links."""
        self.successors: tuple[PeerId, ...] = ()
        self.predecessors: tuple[PeerId, ...] = ()

    def refresh(self, now: float) -> None:
        """A link, or what a neighbour says, has changed."""
        for peer in self.next:
            if self._slots.is_link(peer):
                self._slots[peer].next_until = now
        members = self._slots.settled_members()
        self.next = ring_neighbours(self._me, members)
        self.successors = self._onward(successor(self._me, members), clockwise=True)
        self.predecessors = self._onward(predecessor(self._me, members), clockwise=False)

    def _onward(self, first: PeerId | None, *, clockwise: bool) -> tuple[PeerId, ...]:
        told = None if first is None else self._slots[first].told
        if first is None or told is None:
            return ()
        said = told.successors if clockwise else told.predecessors
        return tuple(onward(self._me, first, said, self.limit, clockwise=clockwise))

    def far(self) -> list[PeerId]:
        """Neighbours that long links lead to."""
        return [peer for peer in self._slots.settled_members() if peer not in self.next]

    def kept_free(self) -> int:
        """Slots that are kept for neighbours on the ring that we lack."""
        return max(0, 2 - len(self.next))

    def is_agreed(self) -> bool:
        """Whether our neighbours on the ring take us for theirs."""
        if not self.successors or not self.predecessors:
            return False
        after, before = self._slots[self.successors[0]].told, self._slots[self.predecessors[0]].told
        return (
            after is not None
            and before is not None
            and after.predecessors[:1] == (self._me,)
            and before.successors[:1] == (self._me,)
        )

    def size(self) -> int:
        """About how many peers are in the mesh, as it looks from our place."""
        return self._size_at(self._me, self.successors, self.predecessors)

    def size_elsewhere(self) -> int | None:
        """Likewise, as it looks from elsewhere: the least that a neighbour says. None if nobody tells.

        Those of our own choice are asked, wherever they are; without any, those that are not next to us.
        """
        members = self._slots.settled_members()
        chosen = [peer for peer in members if self._slots[peer].chosen]
        across = [peer for peer in members if peer not in self.next]
        told = [(peer, self._slots[peer].told) for peer in chosen or across]
        sizes = [self._size_at(peer, said.successors, said.predecessors) for peer, said in told if said is not None]
        return min((size for size in sizes if size > self.limit), default=None)  # others may just have come

    def _size_at(self, place: PeerId, successors: Sequence[PeerId], predecessors: Sequence[PeerId]) -> int:
        """Exact if the lists come round, else by how close together they lie. One list alone says only who is in it."""
        found = {*successors, *predecessors}
        gaps = len(successors) + len(predecessors)
        if len(found) < gaps or len(found) < self.limit or not successors or not predecessors:
            return len(found) + 1
        span = ring_distance(place, successors[-1]) + ring_distance(predecessors[-1], place)
        return max(len(found) + 1, (gaps - 1) * RING_SIZE // max(span, 1))

    def new_size(self) -> int | None:
        """The size, if it differs noticeably from the last that was given here."""
        size, told = self.size(), self._told_size
        if 1 / NOTICEABLE <= size / told <= NOTICEABLE and (size == 1) == (told == 1):
            return None
        self._told_size = size
        return size

    def superfluous(self, now: float) -> list[PeerId]:
        """Links to peers that were next to us a moment ago, now that a peer in between has a link to them. Each once.

        None in a mesh so small that slots are left over anyway.
        """
        found: list[PeerId] = []
        if self.size() <= 2 * self._slots.limit:
            return found
        for peer, slot in self._slots.links():
            if slot.next_until < now - SPLICED or slot.spare or slot.told is None or slot.leaf or peer in self.next:
                continue
            if any(self._closes(middle, peer) for middle in self.next):
                slot.spare = True
                found.append(peer)
        return found

    def _closes(self, middle: PeerId, peer: PeerId) -> bool:
        told = self._slots[middle].told
        return told is not None and peer in told.links and nearness(self._me, middle) < nearness(self._me, peer)

    def snapshot(self) -> dict[str, Any]:
        return {
            "successors": list(self.successors),
            "predecessors": list(self.predecessors),
            "far": self.far(),
            "agreed": self.is_agreed(),
            "size": self.size(),
        }


class Announcement(NamedTuple):
    """What to say, to whom."""

    peers: tuple[PeerId, ...]
    message: Neighbours


class Stabilisation:
    """What one peer says to its neighbours, and whether it has heard what they said."""

    def __init__(self, me: PeerId, max_peers: int, lists: SuccessorLists, slots: Slots) -> None:
        self._me = me
        self._max_peers = max_peers
        self._lists = lists
        self._slots = slots
        self._said: Neighbours | None = None
        self._serial = 0
        self._sent: dict[PeerId, int] = {}
        self.missed: int = 0

    def announcement(self, *peers: PeerId, saying: Neighbours | None = None) -> Announcement:
        """All that we have to say, for these."""
        self._serial = (self._serial + 1) % (1 << 32)
        for peer in peers:
            self._sent[peer] = self._serial
        return Announcement(peers, structs.replace(saying or self._saying(), serial=self._serial))

    def changes(self) -> Announcement | None:
        """What is new: for the neighbours on the ring, and what is not about the ring for all."""
        before, saying = self._said, self._saying()
        self._said = saying
        if saying == before:
            return None
        for_all = before is None or (before.links, before.free) != (saying.links, saying.free)
        audience = [peer for peer in self._slots.members() if for_all or peer in self._lists.next]
        return self.announcement(*audience, saying=saying) if audience else None

    def named(self, peer: PeerId, before: Neighbours | None, said: Neighbours) -> tuple[list[PeerId], list[PeerId]]:
        """Which peers are next to us, as a neighbour sees it, and of which others it may be good to know."""
        near = []
        if not said.leaf:
            near = bracket(self._me, peer, said.predecessors, said.successors, said.links, self._lists.limit)
        lists = (*said.successors, *said.predecessors) if peer in self._lists.next else ()
        old = () if before is None else {*before.links, *before.successors, *before.predecessors}
        return near, [other for other in (*said.links, *lists) if other not in old and other not in near]

    def checks(self) -> list[tuple[PeerId, Stabilise]]:
        """For the neighbours on the ring: the serial number of what they should have heard."""
        return [(peer, Stabilise(serial=self._sent[peer])) for peer in self._lists.next if peer in self._sent]

    def has_missed(self, slot: Slot, said: Stabilise) -> bool:
        """Whether it told us something that did not arrive, and has to be asked for it."""
        if said.serial is None or (slot.told is not None and slot.told.serial == said.serial):
            return False
        self.missed += 1
        return True

    def link_ended(self, peer: PeerId) -> None:
        self._sent.pop(peer, None)

    def _saying(self) -> Neighbours:
        """What we have to say, but for the serial number."""
        lists = self._lists
        free = self._max_peers - len(self._slots.links()) - lists.kept_free()
        links = dict.fromkeys((*(peer for peer in lists.next if self._slots.is_link(peer)), *self._slots.members()))
        return Neighbours(
            serial=0,
            links=tuple(links)[:MAX_PEERS_IN_LIST],
            free=max(0, min(free, 0xFFFF)),
            leaf=self._max_peers < 2,
            successors=lists.successors,
            predecessors=lists.predecessors,
        )
