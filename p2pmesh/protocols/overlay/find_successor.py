"""Find successor: the answers of a peer to those that look up a key which it is nearest to.

The other side of `ring_join` and `fix_fingers`. An answer names the peers around the key (Chord, section 4). A peer
that seeks a long link is welcome if there is a slot, or hears of neighbours that have one.

State: when room was made last.
"""

from __future__ import annotations

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId, nearness
from p2pmesh.protocols.overlay.slots import Slots
from p2pmesh.protocols.overlay.successor_list import SuccessorLists
from p2pmesh.wire.fields import MAX_RING_LIST
from p2pmesh.wire.overlay import FindSuccessor, SuccessorFound


class SuccessorLookup:
    """The answers of one peer."""

    def __init__(self, config: MeshConfig, lists: SuccessorLists, slots: Slots) -> None:
        self._max_peers = config.max_peers
        self._min_link_age = config.topology.min_link_age
        self._lists = lists
        self._slots = slots
        self._made_room_at = -self._min_link_age
        self.answered: int = 0

    def answer(self, asker: PeerId, question: FindSuccessor, now: float) -> SuccessorFound:
        """What to say. If it says `welcome`, the asker has to be let in."""
        self.answered += 1
        welcome = (question.seeks_link or question.leaf) and self._welcomes(asker, question, now)
        if question.seeks_link:  # it does not ask for its place
            return SuccessorFound(vacant=() if welcome else self._vacant(asker, question), welcome=welcome)
        return SuccessorFound(successors=self._lists.successors, predecessors=self._lists.predecessors, welcome=welcome)

    def _vacant(self, asker: PeerId, question: FindSuccessor) -> tuple[PeerId, ...]:
        """Neighbours that say they have a slot for a long link."""
        free = [peer for peer, slot in self._slots.links() if slot.vacant and peer != asker]
        return tuple(sorted(free, key=lambda peer: nearness(peer, question.key)))[:MAX_RING_LIST]

    def _welcomes(self, asker: PeerId, question: FindSuccessor, now: float) -> bool:
        """Whether there is a slot, or a settled long link can be given up: for leaves, and rarely."""
        if self._max_peers < 3 or self._slots.is_link(asker):
            return False
        if self._slots.free() > self._lists.kept_free():
            return True
        settled = now - self._min_link_age
        if not question.leaf or self._made_room_at > settled:
            return False
        if not any(self._slots[peer].since <= settled for peer in self._lists.far()):
            return False
        self._made_room_at = now
        return True
