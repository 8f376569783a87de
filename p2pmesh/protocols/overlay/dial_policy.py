"""Dial policy: which links a peer lacks, and whom to dial for them.

A peer without any link tries one first, and then several at once, in the order in which they were named: a service
names first whom it has seen to answer.

Then the ring: any known peer that is nearer on it than all that we have or attempt. Then company: a peer with fewer
than two links takes whom it can get. Then long links, to peers that a search has found. A link is given up for a dial
only if somebody that should know has vouched for that peer, and rarely if such dials fail: it could be one that is
long gone (`DialPolicy`).

And links that the application wants to certain peers (`PinnedLinks`): room is made for them, and they are not given
up for others. A peer that is full is asked again for a while; a peer of the original is given time to make its own
offer.

In: the slots, the passive view, what searches found, calls of the application. Out: one step after the other, when to
look again, and which calls to answer.

State: four peers that a search has found; one entry for each call that waits.
"""

from __future__ import annotations

import math
import random
from typing import TypeAlias

from msgspec import Struct

from p2pmesh.config import TopologyConfig
from p2pmesh.keyspace import PeerId, nearness, predecessor, random_place, ring_neighbours, successor
from p2pmesh.protocols.overlay.passive_view import PassiveView
from p2pmesh.protocols.overlay.slots import ATTEMPTS, Slots, State
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.timers import Backoff, RetryPacer

HEDGE = 2.0
"""Seconds that the first dial of a peer without links has for itself."""
FAR_LASTS = 5.0
"""Seconds for which what a search has found for a long link is worth dialing."""
COMPANY = 2
"""Links that a peer wants at least, wherever they lead."""
BESIEGED = 3
"""Likewise, besides those of a crowd around it: each of two would be cut off by two more that crowd around it."""
PERSISTS = 15.0
"""Seconds in which a peer that turns us down for want of room is asked again: longer than it takes until one of its
links is old enough to be given up, and as long as an attempt lasts."""
ROOM_COMES = 4.0
"""Seconds until a peer that was full is asked again."""
OFFER_COMES = 2.0
"""Seconds given to a peer of the original to make its offer; it takes 0.2 to 0.5 s."""


class Dial(Struct, frozen=True):
    """Dial this peer."""

    peer: PeerId


class Swap(Struct, frozen=True):
    """Give this link up, if it is not being closed anyway, and dial that peer instead."""

    loser: PeerId
    peer: PeerId


class Ask(Struct, frozen=True):
    """Ask this peer for its offer: it is one of the original, and would turn ours down."""

    peer: PeerId


class GiveUp(Struct, frozen=True):
    """There can be no link to this peer: calls that wait for it fail."""

    peer: PeerId
    reason: str


Step: TypeAlias = Dial | Swap | Ask | GiveUp


class DialPolicy:
    """What one peer lacks.

    Attributes:
      filling: when a peer that has a link may try others for company.
      room_making: when another link may be given up for a dial.
      look_again: after `step` has found nothing to do: when there may be more.
      health: how late we are: attempts cost far more than anything else, so then there is one at a time.
    """

    def __init__(
        self, me: PeerId, max_peers: int, slots: Slots, passive: PassiveView, config: TopologyConfig, rng: random.Random
    ) -> None:
        self._me = me
        self._max_peers = max_peers
        self._slots = slots
        self._passive = passive
        self._config = config
        self._rng = rng
        backoff = Backoff(config.retry_first, config.retry_cap)
        self.filling: RetryPacer = RetryPacer(backoff, rng)
        self.room_making: RetryPacer = RetryPacer(backoff, rng)
        self.look_again: float = math.inf
        self.health: LocalHealth = LocalHealth()
        self._far: list[PeerId] = []
        self._far_until = -math.inf
        self._far_dial: PeerId | None = None
        self._drawn: PeerId | None = None

    def far_found(self, peers: tuple[PeerId, ...], now: float) -> bool:
        """A search found these for a long link, the best first. Whether there is one to dial."""
        self._far_until = now + FAR_LASTS
        others = (peer for peer in peers if peer not in self._slots and peer != self._me)
        self._far = [peer for peer in others if self._passive.may_dial(peer, now)]
        return bool(self._far)

    def step(self, now: float) -> Step | None:
        """What to do next; to be asked again once it is done."""
        self.look_again = math.inf
        if self._slots.are(*ATTEMPTS) and not self._slots.are(State.OPEN):
            return self._entry_step(now)
        return self._ring_step(now) or self._company_step(now) or self._far_step(now)

    def _later(self, moment: float) -> None:
        self.look_again = min(self.look_again, moment)

    def _may_dial(self, now: float) -> bool:
        """Not too many at once; and a peer without any link leaves the first some time for itself."""
        dialing = self._slots.are(State.DIALING)
        if len(dialing) >= (1 if self.health.is_poor(now) else self._config.dials_at_once):
            return False
        if self._slots.are(State.OPEN, State.ANSWERING):
            return True
        return max((self._slots[peer].since for peer in dialing), default=-math.inf) <= now - HEDGE

    # --- the first link -----------------------------------------------------------------------------------------------

    def _entry_step(self, now: float) -> Step | None:
        """Further attempts while none has led to a link: any member will do, and most of those named may be ghosts."""
        since = {peer: self._slots[peer].since for peer in self._slots.are(*ATTEMPTS)}
        moments = [begun + wait for begun in since.values() for wait in (HEDGE, 2 * HEDGE)]
        self._later(min((moment for moment in moments if moment > now), default=math.inf))
        young = sum(begun > now - HEDGE for begun in since.values())
        most = 1 if self.health.is_poor(now) else self._config.dials_at_once
        if now < min(moments) or young >= most:
            return None
        ready = self._passive.ready(now, without={*self._slots.held(), *self._slots})
        if not ready:
            self._later(self._passive.next_ready(now))
            return None
        peer = min(ready, key=lambda one: (self._passive.of(one).misses, self._passive.of(one).is_leaf))
        if self._slots.free() > 0:
            return Dial(peer)
        slow = [one for one, begun in since.items() if begun <= now - 2 * HEDGE and not self._slots[one].pinned]
        return Swap(slow[0], peer) if slow else None

    # --- the ring -----------------------------------------------------------------------------------------------------

    def _ring_step(self, now: float) -> Step | None:
        if self._max_peers < 2:
            return None
        held = self._slots.on_ring(now)
        vouched = [peer for peer in held if not self._is_hearsay(peer)]
        nearer = self._nearer(vouched, now, worthy=True)
        if not nearer and self._slots.free() > 0:
            nearer = self._nearer(held, now, worthy=False)
        if not nearer:
            self._later(self._slots.next_slow(now))
            return None
        if not self._may_dial(now):
            self._later(now + HEDGE)
            return None
        if self._slots.free() > 0:
            return Dial(nearer[0])
        closing = self._slots.closing()
        if closing is not None:
            return Swap(closing, nearer[0])
        if now < self.room_making.not_before:
            self._later(self.room_making.not_before)
            return None
        return next((swap for peer in nearer if (swap := self._swap(peer, vouched, now)) is not None), None)

    def _is_hearsay(self, peer: PeerId) -> bool:
        """Whether it is dialed though nobody vouches for it: that keeps no peer away for which somebody does."""
        return self._slots.state(peer) is State.DIALING and not self._passive.of(peer).is_worth_a_link

    def _nearer(self, held: list[PeerId], now: float, *, worthy: bool) -> list[PeerId]:
        """Known peers that are nearer on the ring than all of those."""
        before, after = predecessor(self._me, held), successor(self._me, held)
        without = {*self._slots, *self._slots.held()}
        found, moment = self._passive.nearer(before, after, without, now, worthy=worthy, crowd=self._slots.crowd)
        self._later(moment)
        return found

    def _swap(self, peer: PeerId, held: list[PeerId], now: float) -> Swap | None:
        if self._slots.crowd.size:  # who lets us in is worth more now than a place on the ring
            losers = self._slots.crowded()
            return Swap(losers[0], peer) if losers else None
        uncertain = now > self._slots.merging_until and self._passive.of(peer).found_until <= now
        losers = self._slots.expendable(now, ring_neighbours(self._me, [*held, peer]), uncertain=uncertain)
        if not losers or losers[0] in self._slots.offering(now):
            return None  # whoever makes an offer is there, and the other may not be
        return Swap(losers[0], peer)

    # --- company ------------------------------------------------------------------------------------------------------

    def _company_step(self, now: float) -> Step | None:
        slots, crowded = self._slots, self._slots.crowded()
        wanted = BESIEGED if slots.crowd.size else COMPANY
        have = sum(peer not in slots.crowd for peer in slots.are(State.OPEN, *ATTEMPTS))
        if have >= min(wanted, self._max_peers) or slots.free() + len(crowded) <= 0:
            return None
        ready = self._ready(now)
        if not ready:
            self._later(self._passive.next_ready(now))
            return None
        if not self._may_dial(now):
            self._later(now + HEDGE)
            return None
        if slots.are(State.OPEN) and now < self.filling.not_before and not slots.crowd.size:
            self._later(self.filling.not_before)
            return None
        place = self._me if self._max_peers < 2 else random_place(self._rng)  # a leaf has its place next to others
        self._drawn = min(ready, key=lambda peer: self._promise_of(peer, place))
        return Dial(self._drawn) if slots.free() > 0 else Swap(crowded[0], self._drawn)

    def is_besieged(self) -> bool:
        """Whether there is a crowd around us, and we lack links to others."""
        slots = self._slots
        return slots.crowd.size > 0 and len(slots.are(State.OPEN)) - len(slots.crowded()) < min(BESIEGED, slots.limit)

    def drew(self, peer: PeerId) -> bool:
        """Whether we chose to dial this peer by lot, wherever it is: see `Slot.chosen`."""
        return peer in {self._drawn, self._far_dial}

    def _ready(self, now: float) -> list[PeerId]:
        ready = self._passive.ready(now, without={*self._slots.held(), *self._slots})
        return [peer for peer in ready if peer not in self._slots.crowd]

    def _promise_of(self, peer: PeerId, place: PeerId) -> tuple[int, bool, int]:
        known = self._passive.of(peer)
        return known.misses, known.is_leaf, nearness(place, peer)

    # --- long links ---------------------------------------------------------------------------------------------------

    def _far_step(self, now: float) -> Step | None:
        if now > self._far_until or (self._far_dial is not None and self._slots.state(self._far_dial) is State.OPEN):
            self._far, self._far_dial = [], None
        if self._max_peers < 2:
            return self._move_step(now)
        if self._far_dial is not None and self._slots.state(self._far_dial) is State.DIALING:
            return None
        while self._far and self._slots.free() > self._slots.kept_for_ring():
            peer = self._far.pop(0)
            if peer not in self._slots and peer not in self._slots.held():
                self._passive.learn((peer,), "far", now)
                self._far_dial = peer
                return Dial(peer)
        return None

    def _move_step(self, now: float) -> Step | None:
        """A leaf gives up its link for a better place: one that was looked up, or any peer that is no leaf."""
        home = next(iter(self._slots.are(State.OPEN)), None)
        slot = None if home is None else self._slots.get(home)
        if home is None or slot is None or slot.pinned:
            return None
        if slot.leaf:
            return self._leave_leaf(home, now)
        if not self._far:
            return None
        peer = self._far.pop(0)
        if nearness(self._me, home) < nearness(self._me, peer):
            return None
        self._passive.learn((peer,), "far", now)
        return Swap(home, peer)

    def _leave_leaf(self, home: PeerId, now: float) -> Step | None:
        """Two leaves that are linked have nobody else: one is tried of whom we don't know that it is another."""
        ready = self._ready(now)
        others = [peer for peer in ready if not (known := self._passive.of(peer)).is_leaf and not known.misses]
        if others:
            return Swap(home, min(others, key=lambda peer: nearness(self._me, peer)))
        self._later(self._passive.next_ready(now))
        return None


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
