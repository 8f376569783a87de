"""Find successor: the answers of a peer to those that look up a key which it is nearest to.

The other side of `ring_join` and `fix_fingers`. An answer names the peers around the key (Chord, section 4). A peer
that seeks a long link is welcome if there is a slot, or hears of others that may have one; the *board* remembers who
asked before.

State: the board, `ChordConfig.board` peers for `board_lasts` seconds.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId, nearness
from p2pmesh.protocols.overlay.slots import Slots
from p2pmesh.protocols.overlay.successor_list import SuccessorLists
from p2pmesh.wire.fields import MAX_RING_LIST
from p2pmesh.wire.overlay import FindSuccessor, SuccessorFound

MOST_NAMED = 3
"""Peers from the board in one answer."""


@define
class _Counts:
    answered: int = 0


class SuccessorLookup:
    """The answers of one peer."""

    def __init__(self, config: MeshConfig, lists: SuccessorLists, slots: Slots) -> None:
        self._max_peers = config.max_peers
        self._min_link_age = config.topology.min_link_age
        self._lists = lists
        self._slots = slots
        self._made_room_at = -self._min_link_age
        self.board: RendezvousBoard = RendezvousBoard(config.chord.board, config.chord.board_lasts)
        self.counts: _Counts = _Counts()

    def answer(self, asker: PeerId, question: FindSuccessor, now: float) -> SuccessorFound:
        """What to say. If it says `welcome`, the asker has to be let in."""
        self.counts.answered += 1
        welcome = (question.seeks_link or question.leaf) and self._welcomes(asker, question, now)
        found = SuccessorFound(
            successors=self._lists.successors,
            predecessors=self._lists.predecessors,
            vacant=self._vacant(asker, question, now) if question.seeks_link and not welcome else (),
            welcome=welcome,
        )
        if question.seeks_link:
            self.board.note(asker, now)
        return found

    def _vacant(self, asker: PeerId, question: FindSuccessor, now: float) -> tuple[PeerId, ...]:
        """Peers that may have a slot for a long link: those that asked here before, and neighbours that say so."""
        free = [peer for peer, slot in self._slots.links() if slot.vacant]
        near = sorted(free, key=lambda peer: nearness(peer, question.key))
        named = self.board.name(MOST_NAMED, now, without=asker)
        return tuple(peer for peer in dict.fromkeys((*named, *near)) if peer != asker)[:MAX_RING_LIST]

    def _welcomes(self, asker: PeerId, question: FindSuccessor, now: float) -> bool:
        """Whether there is a slot, or a settled long link can be given up: for newcomers and leaves, and rarely."""
        if self._max_peers < 3 or self._slots.is_link(asker):
            return False
        if self._slots.free() > self._lists.kept_free():
            return True
        settled = now - self._min_link_age
        if not question.joins or self._made_room_at > settled:
            return False
        if not any(self._slots[peer].since <= settled for peer in self._lists.far()):
            return False
        self._made_room_at = now
        return True


@define
class _Note:
    until: float
    named: int = 0


class RendezvousBoard:
    """Peers that asked here for a long link, the last ones last. Bounded.

    Args:
      limit: of peers on it.
      lasts: seconds that one stays on it.
      most_named: times that one is named to others, which have linked to it then, or could not.
    """

    def __init__(self, limit: int, lasts: float, most_named: int = 2) -> None:
        self._limit = limit
        self._lasts = lasts
        self._most_named = most_named
        self._notes: OrderedDict[PeerId, _Note] = OrderedDict()

    def __len__(self) -> int:
        return len(self._notes)

    def note(self, peer: PeerId, now: float) -> None:
        """It asks."""
        self._notes.pop(peer, None)
        self._notes[peer] = _Note(now + self._lasts)
        while len(self._notes) > self._limit:
            self._notes.popitem(last=False)

    def strike(self, peer: PeerId) -> None:
        """It is gone, or has what it wanted."""
        self._notes.pop(peer, None)

    def name(self, most: int, now: float, *, without: PeerId) -> list[PeerId]:
        """Some of those that still wait, the last ones first: they are the likeliest to be there."""
        while self._notes and next(iter(self._notes.values())).until <= now:
            self._notes.popitem(last=False)
        named = [peer for peer in reversed(self._notes) if peer != without][:most]
        for peer in named:
            self._notes[peer].named += 1
            if self._notes[peer].named >= self._most_named:
                del self._notes[peer]
        return named
