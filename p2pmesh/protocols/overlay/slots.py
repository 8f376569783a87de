"""Slots: what each of the `max_peers` places for a link is taken by, and which of them could be given up.

The topology's bookkeeping, without its decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, ItemsView, Iterator
from enum import Enum
from typing import TypeAlias

from attrs import define

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.notices import Offered
from p2pmesh.protocols.util.ring_geometry import nearness, ring_neighbours
from p2pmesh.wire.messages import PINNED


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
BRIDGE_HOLDS = 30.0
"""Seconds for which a bridge keeps its slot: it has to open, to be confirmed, and to carry what both sides ask each other."""
SLOW = 5.0
"""Seconds after which an attempt mostly comes to nothing: it does not count as a neighbour on the ring any more. Else peers
behind a cut in the network, of which a service goes on to bring offers, would keep us from our neighbours on this side. An
offer along a bridge may go 27 links, and its answer too, which takes 3 s; one that fails in the mesh goes by a service after
as long (`mesh_timeout`). Given up a moment before it opens, it would be tried again, for ever."""

Heir: TypeAlias = Offered | PeerId
"""Who gets the slot of a link that is given up: an offer to answer, or a peer to dial."""


def heir_id(next_occupant: Heir) -> PeerId:
    """The peer that the slot goes to."""
    return next_occupant.peer.peer_id if isinstance(next_occupant, Offered) else next_occupant


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
    leaf: bool = False
    """The peer is no part of the ring."""
    vacant: bool = False
    """The peer has slots free, as it says."""
    spare: bool = False
    """The link was one of the ring, which is closed without it."""
    called: str | None = None
    """The peer's offer named a purpose for which we let it in: a bridge, or that its application wants this link."""
    held_until: float = -math.inf
    """It is a bridge between islands, and not given up before that: by then they have merged, or it was none."""
    replaced: bool = False
    """Their offer came while one of ours was under way, whose end may still be reported."""
    farewell: str | None = None
    """Why the link ends, where we know better than the link layer."""
    next_occupant: Heir | None = None
    evicted_us: bool = False
    """The peer said that it gives us up."""
    spliced: bool = False
    """It was next to us on the ring then, so who took our place there takes its place here."""
    said_goodbye: bool = False
    """The peer said that it leaves the mesh."""
    given_up: bool = False
    """We gave it up: no loss to be made good."""


class Slots:
    """The slots of one peer, by the peer at the other end, in the order in which they were taken."""

    def __init__(self, me: PeerId, limit: int, is_leaf: Callable[[PeerId | Offered], bool]) -> None:
        """Make them; `is_leaf` says of a peer, or of who makes an offer, whether it is no part of the ring."""
        self._me = me
        self._limit = limit
        self._is_leaf = is_leaf
        self._slots: dict[PeerId, Slot] = {}
        self.merging_until: float = -math.inf
        """Until then our ring and another become one, so peers that come into it are at their places."""

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

    def state(self, peer: PeerId) -> State | None:
        slot = self._slots.get(peer)
        return None if slot is None else slot.state

    def since(self, peer: PeerId) -> float:
        """Since when its slot is in the state that it is in."""
        slot = self._slots.get(peer)
        return math.inf if slot is None else slot.since

    def free(self) -> int:
        """Slots that nothing takes; below 0 if a link opened that had none."""
        return self._limit - len(self._slots)

    def are(self, *states: State) -> list[PeerId]:
        """The peers whose slots are in one of these states."""
        return [peer for peer, slot in self._slots.items() if slot.state in states]

    def held(self) -> list[PeerId]:
        """Peers that we have, attempt, or are about to attempt."""
        heirs = [heir_id(slot.next_occupant) for slot in self._slots.values() if slot.next_occupant is not None]
        return [*self.are(State.OPEN, *ATTEMPTS), *heirs]

    def guests(self) -> list[PeerId]:
        """Peers that are no part of the ring."""
        return [peer for peer, slot in self._slots.items() if slot.leaf]

    def closing(self) -> PeerId | None:
        """A peer whose slot gets free soon, without an heir."""
        for peer, slot in self._slots.items():
            if slot.state is State.CLOSING and slot.next_occupant is None:
                return peer
        return None

    def due_to(self, peer: PeerId) -> Slot | None:
        """The slot that this peer is the heir of."""
        for slot in self._slots.values():
            if slot.next_occupant is not None and heir_id(slot.next_occupant) == peer:
                return slot
        return None

    def on_ring(self, now: float = -math.inf) -> list[PeerId]:
        """Peers that we have, attempt, or are about to attempt, and that are part of the ring; without slow attempts."""
        held = [
            peer
            for peer, slot in self._slots.items()
            if not slot.leaf and slot.state is not State.CLOSING and not _is_slow(slot, now)
        ]
        heirs = [
            slot.next_occupant
            for slot in self._slots.values()
            if slot.next_occupant is not None and not self._is_leaf(slot.next_occupant)
        ]
        return held + [heir_id(next_occupant) for next_occupant in heirs]

    def next_slow(self, now: float) -> float:
        """When the next attempt turns slow."""
        turns = (slot.since + SLOW for slot in self._slots.values() if slot.state in ATTEMPTS)
        return min((moment for moment in turns if moment > now), default=math.inf)

    def ring(self, *newcomers: PeerId) -> tuple[PeerId, ...]:
        """Those of the held peers and `newcomers` whose links keep the mesh one: our neighbours on the ring.

        A peer that may have one link only keeps the one it has.
        """
        if self._limit < 2:
            return tuple(self.are(State.OPEN))
        return ring_neighbours(self._me, [*self.on_ring(), *newcomers])

    def ring_at_hand(self, now: float, *newcomers: PeerId) -> tuple[PeerId, ...]:
        """As `ring`, but without those that we only dial: they may not be there, and an offer proves that its maker is.

        Nor are those counted that have made one and don't get through.
        """
        if self._limit < 2:
            return self.ring()
        there = [
            peer
            for peer, slot in self._slots.items()
            if slot.state in (State.OPEN, State.ANSWERING) and not slot.leaf and not _is_slow(slot, now)
        ]
        offers = [slot.next_occupant for slot in self._slots.values() if isinstance(slot.next_occupant, Offered)]
        heirs = [heir_id(offer) for offer in offers if not self._is_leaf(offer)]
        return ring_neighbours(self._me, [*there, *heirs, *newcomers])

    def kept_for_ring(self) -> int:
        """Slots to be left for neighbours on the ring that we lack."""
        return 0 if self._limit < 2 else max(0, 2 - len(ring_neighbours(self._me, self.on_ring())))

    def expendable(self, now: float, ring: Collection[PeerId], *, uncertain: bool = False) -> list[PeerId]:
        """Slots that may be given up while those of `ring` stay, the least useful first.

        That is: attempts; links that were of the ring and are not any more; long links, the longest first, since the
        shorter ones are what is rarer; guests at last, for whom this may be the only link. While it is `uncertain` that
        the ring is closed by who comes into it, who is next to us now is kept, if there are others.
        """
        were_next = self.ring()
        kept = self.ring_at_hand(now) if uncertain and self._limit > 2 else ()
        found = []
        for peer, slot in self._slots.items():
            if slot.state is State.CLOSING or slot.pinned or slot.held_until > now or peer in ring or peer in kept:
                continue
            found.append((_worth(slot, was_next=peer in were_next), -nearness(self._me, peer), peer))
        return [peer for _, _, peer in sorted(found)]

    def far(self, now: float, settled: float) -> list[PeerId]:
        """Long links opened before `settled` that may be given up, the longest first."""
        ring = self.ring()
        return [
            peer
            for peer in self.expendable(now, ring)
            if (slot := self._slots[peer]).state is State.OPEN and not slot.leaf and slot.since <= settled
        ]


def _is_slow(slot: Slot, now: float) -> bool:
    return slot.state in ATTEMPTS and slot.since + SLOW <= now


def _worth(slot: Slot, *, was_next: bool) -> int:
    match slot.state:
        case State.DIALING:
            return 0
        case State.ANSWERING:
            return 1
        case _ if slot.leaf:
            return 4
        case _:
            return 2 if slot.spare or was_next or slot.called == PINNED else 3
