"""Pinned links: links that the application wants to certain peers, and its calls that wait for them.

Room is made for them, and they are not given up for others. A peer that is full is asked again for a while; a peer of the
original is given time to make the offer that it wants to make itself.

In: calls, and what becomes of attempts. Out: what to do next for a peer, and which calls to answer.

State: one entry for each call that waits.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from attrs import frozen

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.overlay.dial_policy import Dial, Swap
from p2pmesh.protocols.overlay.slots import Slots, State

PERSISTS = 15.0
"""Seconds in which a peer that turns us down for want of room is asked again: longer than it takes until one of its links is
old enough to be given up, and as long as an attempt lasts."""
ROOM_COMES = 4.0
"""Seconds until a peer that was full is asked again."""
OFFER_COMES = 2.0
"""Seconds given to a peer of the original to make its offer; it takes 0.2 to 0.5 s."""


@frozen
class Ask:
    """Ask this peer for its offer: it would turn ours down."""

    peer: PeerId


@frozen
class GiveUp:
    """There can be no link to this peer: its calls fail."""

    peer: PeerId
    reason: str


Step: TypeAlias = Dial | Swap | Ask | GiveUp


class PinnedLinks:
    """The links that the application of one peer wants."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._calls: dict[int, PeerId] = {}
        self._since: dict[PeerId, float] = {}
        self._awaited: dict[PeerId, float] = {}
        """Until when calls wait though no attempt of ours is under way."""

    # --- calls --------------------------------------------------------------------------------------------------------

    def wait(self, call: int, peer: PeerId, now: float) -> None:
        """The call is answered when there is a link to this peer, or can be none."""
        self._calls[call] = peer
        self._since.setdefault(peer, now)

    def want(self, peer: PeerId) -> bool:
        """Whether a call waits for a link to this peer."""
        return peer in self._calls.values()

    def settle(self, peer: PeerId) -> list[int]:
        """The calls that are to be answered, now that there is a link to this peer, or can be none."""
        self._awaited.pop(peer, None)
        self._since.pop(peer, None)
        calls = [call for call, wanted in self._calls.items() if wanted == peer]
        for call in calls:
            del self._calls[call]
        return calls

    def settle_all(self) -> list[int]:
        """All calls: there won't be any link."""
        return [call for peer in dict.fromkeys(self._calls.values()) for call in self.settle(peer)]

    def cancel(self, call: int) -> None:
        """Nobody waits for this call any more; if no other call does, the link to its peer is one like others."""
        peer = self._calls.pop(call, None)
        if peer is None or self.want(peer):
            return
        self._awaited.pop(peer, None)
        self._since.pop(peer, None)
        slot = self._slots.get(peer)
        if slot is not None:
            slot.pinned = False

    # --- patience -----------------------------------------------------------------------------------------------------

    def hold(self, peer: PeerId, until: float) -> None:
        """Calls for this peer wait until then for its own offer, or for another try, whatever becomes of ours."""
        if self.want(peer):
            self._awaited[peer] = until

    def is_held(self, peer: PeerId) -> bool:
        """Whether calls for it wait although our attempt is over."""
        return peer in self._awaited

    def may_go_on(self, peer: PeerId, now: float) -> bool:
        """Whether another try is worth it."""
        return now < self._since.get(peer, -math.inf) + PERSISTS

    def overdue(self, now: float) -> list[PeerId]:
        """Peers for which that time is over, and that we still have no slot for."""
        late = [peer for peer, until in self._awaited.items() if until <= now]
        for peer in late:
            del self._awaited[peer]
        held = self._slots.held()
        return [peer for peer in late if peer not in held]

    def next_overdue(self) -> float:
        """When the next of them is."""
        return min(self._awaited.values(), default=math.inf)

    # --- what to do ---------------------------------------------------------------------------------------------------

    def step(self, peer: PeerId, now: float, *, can_dial: bool, must_offer: bool) -> Step | None:
        """What to do for a link to this peer; None if it is under way."""
        slot = self._slots.get(peer)
        if slot is not None and slot.state is not State.CLOSING:
            slot.pinned = True
            return None
        if slot is None and peer in self._slots.held():
            return None  # it gets a slot as soon as one is closed
        if not can_dial:
            return GiveUp(peer, "no signaling service is up")
        if must_offer:
            self.hold(peer, now + OFFER_COMES)
            return Ask(peer)
        if slot is not None and slot.next_occupant is None:
            return Swap(peer, peer)
        if slot is None and self._slots.free() > 0:
            return Dial(peer)
        loser = None if slot is not None else self.loser_to(peer, now)
        return GiveUp(peer, "none of ours can be given up") if loser is None else Swap(loser, peer)

    def loser_to(self, peer: PeerId, now: float) -> PeerId | None:
        """The link given up for it. The application may have one of the ring for its own, if there is no other."""
        ring = self._slots.ring(peer)
        return next(iter((*self._slots.expendable(now, ring), *self._slots.expendable(now, ()))), None)
