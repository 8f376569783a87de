"""The slots: what each of the `max_peers` places for a link is taken by, and which of them could be given up.

The one table of neighbours, which all parts look at. The link manager takes and frees slots; what other parts note in
one is theirs alone: `pinned` (pinned links), `next_until` and `spare` (successor lists). A *slot* is an
attempt of ours (dialing), one of theirs (answering), an open link, or a link that is being closed; the latter two are
*neighbours*, and their slots keep what they said of themselves.

State: at most `max_peers` slots, and one more while a link that opened without a slot is being closed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from enum import Enum
from typing import Any

from attrs import define
from msgspec import Struct

from p2pmesh.events import PeerDisconnected, PeerEvicted, PeerTimedOut
from p2pmesh.keyspace import PeerId, nearness, ring_neighbours
from p2pmesh.protocols.inputs import LinkDown
from p2pmesh.protocols.notices import Offered
from p2pmesh.protocols.overlay.crowd import Crowd
from p2pmesh.protocols.util.scores import Scores
from p2pmesh.wire.messages import PINNED
from p2pmesh.wire.overlay import Neighbours


class State(Enum):
    """What a slot is taken by."""

    DIALING = "dialing"
    """An attempt by an offer of ours."""
    ANSWERING = "answering"
    """An attempt by an offer of theirs."""
    OPEN = "open"
    CLOSING = "closing"
    """A link that is on its way down, and holds its place until it is."""


PROVEN = 30.0
"""Seconds after which a link counts as one that lasts."""
SHAKEN = 60.0
"""Seconds after the break of a proven link in which links of our own choice, too, are given up for the ring."""
ATTEMPTS = (State.DIALING, State.ANSWERING)
BRIDGE_HOLDS = 30.0
"""Seconds for which a bridge keeps its slot: it has to open, to be confirmed, and to carry what both sides ask."""
SLOW = 5.0
"""Seconds after which an attempt mostly comes to nothing: it does not count as a neighbour on the ring any more. Else
peers behind a cut in the network, of which a service goes on to bring offers, would keep us from our neighbours on
this side. An offer along a bridge may go 27 links, and its answer too, which takes 3 s; one that fails in the mesh
goes by a service after as long (`mesh_timeout`). Given up a moment before it opens, it would be tried again, for
ever."""


class Occupant(Struct, frozen=True):
    """The peer that gets the slot of a link that is given up: its offer is answered, or it is dialed."""

    peer: PeerId
    leaf: bool
    """It is no part of the ring, as far as we know."""
    offer: Offered | None = None


@define
class Slot:
    """The place of one link."""

    state: State
    since: float
    pinned: bool = False
    """The application wants it."""
    chosen: bool = False
    """We dialed it, and drew the peer ourselves: no newcomer, no caller and no nearness takes it from us."""
    had_none: bool = False
    """The peer had no link when it came."""
    made_room: bool = False
    """Another link was given up for this attempt."""
    version: int = 0
    is_member: bool = False
    """The peer takes part: it has proved its id and speaks our protocol. Others are leaves."""
    leaf: bool = False
    """The peer is no part of the ring."""
    told: Neighbours | None = None
    """What the peer said of itself last."""
    next_until: float = -math.inf
    """When the peer was last next to us on the ring, among our links."""
    silent: bool = False
    """The peer says nothing, and may be dead."""
    spare: bool = False
    """The link was one of the ring, which is closed without it."""
    called: str | None = None
    """The peer's offer named a purpose for which we let it in: a bridge, or that its application wants this link."""
    held_until: float = -math.inf
    """It is a bridge between islands, and not given up before that: by then they have merged, or it was none."""
    farewell: str | None = None
    """Why the link ends, where we know better than the link layer."""
    next_occupant: Occupant | None = None
    evicted_us: bool = False
    alternatives: tuple[PeerId, ...] = ()
    """Whom it told us of, then."""
    """The peer said that it gives us up; it stays where it is on the ring."""
    spliced: bool = False
    """The peer was next to us on the ring then, so the one that took our place there takes its place here."""
    said_goodbye: bool = False
    """The peer said that it leaves the mesh."""
    given_up: bool = False
    """We gave it up: no loss to be made good."""

    @property
    def is_link(self) -> bool:
        """Whether this is a neighbour: a link that is open, or being closed."""
        return self.state is State.OPEN or self.state is State.CLOSING

    @property
    def vacant(self) -> bool:
        """Whether the peer has slots free, as it says."""
        return self.told is not None and self.told.free > 0

    def end_of_link(self, down: LinkDown) -> PeerDisconnected:
        """The one event that ends what `PeerConnected` began."""
        reason = self.farewell or down.reason
        if self.evicted_us:
            return PeerEvicted(down.peer, reason, self.alternatives)
        if down.timed_out is None:
            return PeerDisconnected(down.peer, reason)
        return PeerTimedOut(down.peer, reason, down.timed_out)


class Slots(dict[PeerId, Slot]):  # noqa: FURB189  # nothing of a dict is overridden, and a UserDict is slow
    """The slots of one peer, by the peer at the other end, in the order in which they were taken."""

    def __init__(self, me: PeerId, limit: int, scores: Scores | None = None) -> None:
        super().__init__()
        self._me = me
        self._scores = scores or Scores()
        self.limit: int = limit
        self.crowd: Crowd = Crowd(me)
        self.lets_all_in: bool = False
        """Peers that can't prove their ids get links, too."""
        self.merging_until: float = -math.inf
        """Until then our ring and another become one, so peers that come into it are at their places."""

        self.shaken_until: float = -math.inf
        """Until then the ring may have to be closed over others that have gone with a neighbour of ours."""

    # --- neighbours ---------------------------------------------------------------------------------------------------

    def links(self) -> list[tuple[PeerId, Slot]]:
        """Our neighbours: peers that a link leads to, which may be being closed."""
        return [(peer, slot) for peer, slot in self.items() if slot.is_link]

    def is_link(self, peer: PeerId) -> bool:
        """Whether a link leads to this peer."""
        slot = self.get(peer)
        return slot is not None and slot.is_link

    def members(self) -> list[PeerId]:
        """Neighbours that take part."""
        return [peer for peer, slot in self.items() if slot.is_member and slot.is_link]

    def settled_members(self) -> list[PeerId]:
        """Neighbours that are part of the ring, and have said so."""
        return [
            peer
            for peer, slot in self.items()
            if slot.told is not None and not slot.leaf and slot.is_link and peer not in self.crowd
        ]

    def crowded(self) -> list[PeerId]:
        """Open links to peers of a crowd around us."""
        return [peer for peer in self.are(State.OPEN) if peer in self.crowd] if self.crowd.size else []

    # --- places -------------------------------------------------------------------------------------------------------

    def state(self, peer: PeerId) -> State | None:
        slot = self.get(peer)
        return None if slot is None else slot.state

    def free(self) -> int:
        """Slots that nothing takes; below 0 if a link opened that had none."""
        return self.limit - len(self)

    def are(self, *states: State) -> list[PeerId]:
        """The peers whose slots are in one of these states."""
        return [peer for peer, slot in self.items() if slot.state in states]

    def held(self) -> list[PeerId]:
        """Peers that we have, attempt, or are about to attempt."""
        return [*self.are(State.OPEN, *ATTEMPTS), *(occupant.peer for occupant in self._due())]

    def guests(self) -> list[PeerId]:
        """Peers that are no part of the ring."""
        return [peer for peer, slot in self.items() if slot.leaf]

    def closing(self) -> PeerId | None:
        """A peer whose slot gets free soon, and is promised to nobody."""
        for peer, slot in self.items():
            if slot.state is State.CLOSING and slot.next_occupant is None:
                return peer
        return None

    def due_to(self, peer: PeerId) -> Slot | None:
        """The slot that this peer gets next."""
        for slot in self.values():
            if slot.next_occupant is not None and slot.next_occupant.peer == peer:
                return slot
        return None

    def _due(self) -> list[Occupant]:
        return [slot.next_occupant for slot in self.values() if slot.next_occupant is not None]

    # --- the ring -----------------------------------------------------------------------------------------------------

    def on_ring(self, now: float = -math.inf) -> list[PeerId]:
        """Peers of the ring that we have, attempt, or are about to attempt; without slow attempts."""
        held = [
            peer
            for peer, slot in self.items()
            if not slot.leaf and slot.state is not State.CLOSING and not _is_slow(slot, now) and peer not in self.crowd
        ]
        return held + [occupant.peer for occupant in self._due() if not occupant.leaf]

    def offering(self, now: float) -> list[PeerId]:
        """Peers whose offers we answer, and that may still get through."""
        return [peer for peer, slot in self.items() if slot.state is State.ANSWERING and not _is_slow(slot, now)]

    def next_slow(self, now: float) -> float:
        """When the next attempt turns slow."""
        turns = (slot.since + SLOW for slot in self.values() if slot.state in ATTEMPTS)
        return min((moment for moment in turns if moment > now), default=math.inf)

    def ring(self, *newcomers: PeerId) -> tuple[PeerId, ...]:
        """Those of the held peers and `newcomers` whose links keep the mesh one: our neighbours on the ring.

        A peer that may have one link only keeps the one it has.
        """
        if self.limit < 2:
            return tuple(self.are(State.OPEN))
        return ring_neighbours(self._me, [*self.on_ring(), *newcomers])

    def ring_at_hand(self, now: float, *newcomers: PeerId) -> tuple[PeerId, ...]:
        """As `ring`, but without those that we only dial: they may not be there, and an offer proves that its maker is.

        Nor are those counted that have made one and don't get through.
        """
        if self.limit < 2:
            return self.ring()
        there = [
            peer
            for peer, slot in self.items()
            if slot.state in (State.OPEN, State.ANSWERING)
            and not slot.leaf
            and not _is_slow(slot, now)
            and peer not in self.crowd
        ]
        due = [occupant.peer for occupant in self._due() if occupant.offer is not None and not occupant.leaf]
        return ring_neighbours(self._me, [*there, *due, *newcomers])

    def kept_for_ring(self) -> int:
        """Slots to be left for neighbours on the ring that we lack."""
        return 0 if self.limit < 2 else max(0, 2 - len(ring_neighbours(self._me, self.on_ring())))

    def own(self, now: float = math.inf) -> list[PeerId]:
        """Links of our own choice that nobody else's coming takes, the oldest first: half of those across the ring.

        None just now, if a proven link has broken: then the ring needs all there is. Nor any where peers of the
        original are let in, whose only link they might take: who is not verified need not even grind ids.
        """
        if now < self.shaken_until or self.lets_all_in:
            return []
        chosen = [peer for peer, slot in self.items() if slot.chosen and slot.state is State.OPEN]
        return chosen[: max(1, (self.limit - 2) // 2)]

    # --- what may be given up -----------------------------------------------------------------------------------------

    def expendable(self, now: float, ring: Collection[PeerId], *, uncertain: bool = False) -> list[PeerId]:
        """Slots that may be given up while those of `ring` stay, the least useful first.

        That is: links to peers that are silent, or whose score is below zero; attempts; links that were of the ring and
        are not any more; long links, the longest first, since the shorter ones are what is rarer; guests at last, for
        whom this may be the only link. While it is `uncertain` whether the ring is closed by the peer that comes into
        it, the one that is next to us now is kept, if there are others.
        """
        were_next = self.ring()
        kept = {*self.own(now), *(self.ring_at_hand(now) if uncertain and self.limit > 2 else ())}
        found = []
        for peer, slot in self.items():
            if slot.state is State.CLOSING or slot.pinned or slot.held_until > now:
                continue
            if not slot.silent and (peer in ring or peer in kept):
                continue
            debt = self._scores.debt(peer, now)
            worth = -1 if debt else 0 if peer in self.crowd else _worth(slot, was_next=peer in were_next)
            found.append((worth, -debt, -nearness(self._me, peer), peer))
        if uncertain and not found and self.own(now):
            return self.expendable(now, ring)
        return [peer for *_, peer in sorted(found)]

    def far(self, now: float, settled: float) -> list[PeerId]:
        """Long links opened before `settled` that may be given up, the longest first."""
        ring = self.ring()
        return [
            peer
            for peer in self.expendable(now, ring)
            if (slot := self[peer]).state is State.OPEN and not slot.leaf and slot.since <= settled
        ]

    def snapshot(self) -> dict[str, Any]:
        open_links = self.are(State.OPEN)
        return {
            "links": open_links,
            "attempts": self.are(*ATTEMPTS),
            "closing": self.are(State.CLOSING),
            "chosen": self.own(),
            "crowd": self.crowd.size,
            "pinned": [peer for peer, slot in self.items() if slot.pinned],
            "leaves": self.guests(),
            "ring": list(ring_neighbours(self._me, [peer for peer in self.on_ring() if peer in open_links])),
        }


def _is_slow(slot: Slot, now: float) -> bool:
    return slot.state in ATTEMPTS and slot.since + SLOW <= now


def _worth(slot: Slot, *, was_next: bool) -> int:
    match slot.state:
        case _ if slot.silent:
            return -1
        case State.DIALING:
            return 0
        case State.ANSWERING:
            return 1
        case _ if slot.leaf:
            return 4
        case _:
            return 2 if slot.spare or was_next or slot.called == PINNED else 3
