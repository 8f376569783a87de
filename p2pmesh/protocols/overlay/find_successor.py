"""Answering: what a peer says to those who looked up a key that it is nearest to. The other side of `seeking`."""

from __future__ import annotations

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.overlay.finger_keys import RendezvousBoard
from p2pmesh.protocols.overlay.successor_list import SuccessorLists
from p2pmesh.protocols.util.ring_geometry import nearness
from p2pmesh.wire.fields import MAX_RING_LIST
from p2pmesh.wire.overlay import FindSuccessor, SuccessorFound

MOST_NAMED = 3
"""Peers from the board in one answer."""


class SuccessorLookup:
    """The answers of one peer."""

    def __init__(self, config: MeshConfig, view: SuccessorLists) -> None:
        self._max_peers = config.max_peers
        self._min_link_age = config.topology.min_link_age
        self._view = view
        self._made_room_at = -self._min_link_age
        self.board: RendezvousBoard = RendezvousBoard(config.chord.board, config.chord.board_lasts)

    def answer(self, asker: PeerId, question: FindSuccessor, free: int, now: float) -> SuccessorFound:
        """What to say, while so many slots are free. If it says `welcome`, the asker has to be let in."""
        welcome = (question.seeks_link or question.leaf) and self._welcomes(asker, question, free, now)
        found = SuccessorFound(
            successors=self._view.successors,
            predecessors=self._view.predecessors,
            vacant=self._vacant(asker, question, now) if question.seeks_link and not welcome else (),
            welcome=welcome,
        )
        if question.seeks_link:
            self.board.note(asker, now)
        return found

    def _vacant(self, asker: PeerId, question: FindSuccessor, now: float) -> tuple[PeerId, ...]:
        """Peers that may have a slot for a long link: who asked here before, and neighbours that say so."""
        free = [peer for peer, it in self._view.neighbours.items() if it.told is not None and it.told.free > 0]
        near = sorted(free, key=lambda peer: nearness(peer, question.key))
        named = self.board.name(MOST_NAMED, now, without=asker)
        return tuple(peer for peer in dict.fromkeys((*named, *near)) if peer != asker)[:MAX_RING_LIST]

    def _welcomes(self, asker: PeerId, question: FindSuccessor, free: int, now: float) -> bool:
        """Whether there is a slot, or a settled long link can be given up: for newcomers and leaves, and rarely."""
        if self._max_peers < 3 or asker in self._view.neighbours:
            return False
        if free > self._view.kept_free():
            return True
        settled = now - self._min_link_age
        if not question.joins or self._made_room_at > settled:
            return False
        if not any(self._view.neighbours[peer].since <= settled for peer in self._view.far()):
            return False
        self._made_room_at = now
        return True
