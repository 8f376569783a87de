"""Slots: what each of the `max_peers` places for a link is taken by, and which of them could be given up.

The topology's bookkeeping, without its decisions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, ItemsView, Iterator
from enum import Enum
from typing import TypeAlias

from attrs import define

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Offered
from p2pmesh.protocols.known import ring_neighbours
from p2pmesh.protocols.timers import Backoff


class State(Enum):
    """What a slot is taken by."""

    DIALING = "dialing"
    """An attempt by an offer of ours."""
    ANSWERING = "answering"
    """An attempt by an offer of theirs."""
    OPEN = "open"
    CLOSING = "closing"
    """A link that is on its way down, and holds its place until it is."""


ATTEMPTS = (State.DIALING, State.ANSWERING)

Heir: TypeAlias = Offered | PeerId
"""Who gets the slot of a link that is given up: an offer to answer, or a peer to dial."""


def heir_id(heir: Heir) -> PeerId:
    """The peer that the slot goes to."""
    return heir.peer.peer_id if isinstance(heir, Offered) else heir


@define
class Slot:
    """The place of one link."""

    state: State
    since: float
    pinned: bool = False
    """The application wants it."""
    made_room: bool = False
    """Another link was given up for this attempt."""
    version: int = 0
    farewell: str | None = None
    """Why the link ends, where we know better than the link layer."""
    heir: Heir | None = None
    evicted_us: bool = False
    """The peer said that it gives us up."""
    said_goodbye: bool = False
    """The peer said that it leaves the mesh."""
    given_up: bool = False
    """We gave it up: no loss to be made good."""


class Slots:
    """The slots of one peer, by the peer at the other end, in the order in which they were taken."""

    def __init__(self, me: PeerId, limit: int) -> None:
        self._me = me
        self._limit = limit
        self._slots: dict[PeerId, Slot] = {}

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._slots)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._slots

    def __setitem__(self, peer: PeerId, slot: Slot) -> None:
        self._slots[peer] = slot

    def get(self, peer: PeerId) -> Slot | None:
        return self._slots.get(peer)

    def pop(self, peer: PeerId) -> Slot | None:
        return self._slots.pop(peer, None)

    def items(self) -> ItemsView[PeerId, Slot]:
        return self._slots.items()

    def free(self) -> int:
        """Slots that nothing takes; below 0 if a link opened that had none."""
        return self._limit - len(self._slots)

    def are(self, *states: State) -> list[PeerId]:
        """The peers whose slots are in one of these states."""
        return [peer for peer, slot in self._slots.items() if slot.state in states]

    def held(self) -> list[PeerId]:
        """Peers that we have, attempt, or are about to attempt."""
        heirs = [heir_id(slot.heir) for slot in self._slots.values() if slot.heir is not None]
        return [*self.are(State.OPEN, *ATTEMPTS), *heirs]

    def due_to(self, peer: PeerId) -> Slot | None:
        """The slot that this peer is the heir of."""
        for slot in self._slots.values():
            if slot.heir is not None and heir_id(slot.heir) == peer:
                return slot
        return None

    def ring(self, *newcomers: PeerId) -> tuple[PeerId, ...]:
        """Those of the held peers and `newcomers` whose links keep the mesh one: our neighbours on the ring.

        A peer that may have one link only keeps the one it has.
        """
        if self._limit < 2:
            return tuple(self.are(State.OPEN))
        return ring_neighbours(self._me, [*self.held(), *newcomers])

    def expendable(self, ring: Collection[PeerId]) -> list[PeerId]:
        """Slots that may be given up while those of `ring` stay, the least useful first: attempts, then the youngest links."""
        order = {State.DIALING: 0, State.ANSWERING: 1, State.OPEN: 2}
        found = [
            (order[slot.state], -slot.since, peer)
            for peer, slot in self._slots.items()
            if slot.state in order and not slot.pinned and peer not in ring
        ]
        return [peer for _, _, peer in sorted(found)]


@define
class Pace:
    """Lets something happen again ever later while it fails."""

    backoff: Backoff
    rng: random.Random
    failures: int = 0
    not_before: float = -math.inf

    def failed(self, now: float) -> None:
        self.failures += 1
        self.not_before = now + self.backoff.delay(self.failures, self.rng)

    def reset(self) -> None:
        self.failures, self.not_before = 0, -math.inf
