"""Link manager: how slots are taken, handed on and freed, so that each is freed once, and what is learned by it.

In: offers, rejections, what becomes of attempts and links. Out: what to do with an offer, what to do next for links
that are missing or wanted, and which slot has been freed. State: the services that are up; all else stands in its
parts.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from attrs import define

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId, nearness, ring_neighbours
from p2pmesh.protocols.inputs import NO_SLOT, LinkDown, RemotePeer
from p2pmesh.protocols.notices import CANCELLED, FULL, INITIATOR_CONFLICT, NO_ATTEMPT, NOT_FOUND, Offered, Rejected
from p2pmesh.protocols.overlay.admission import CALLS, Admission, purpose_of
from p2pmesh.protocols.overlay.dial_policy import (
    OFFER_COMES,
    ROOM_COMES,
    Ask,
    Dial,
    DialPolicy,
    GiveUp,
    PinnedLinks,
    Step,
    Swap,
)
from p2pmesh.protocols.overlay.passive_view import SILENT_LASTS, PassiveView
from p2pmesh.protocols.overlay.slots import ATTEMPTS, BRIDGE_HOLDS, PROVEN, SHAKEN, Occupant, Slot, Slots, State
from p2pmesh.wire.messages import BRIDGE, LEAF, LONG, PINNED, RING, LinkPurpose, RejectReason

TAKEN_BACK = frozenset({CANCELLED, NO_ATTEMPT})
"""Rejections that concern the other side's offer, not ours."""
NOT_A_FAILURE = frozenset({FULL, NO_SLOT, "already_linked", "closing", INITIATOR_CONFLICT, "leaving", *TAKEN_BACK})
"""Reasons that belong to the ordinary course of things: the application does not hear of them."""
RESTARTED = 15.0
"""Seconds: a verified offer over a link that has been open so long comes from a peer that was restarted; an offer
that was under way when the link opened is older than an attempt lasts."""


@define
class _Counts:
    dialed: int = 0
    accepted: int = 0
    rejected: int = 0
    turned_down: int = 0
    glare: int = 0
    opened: int = 0
    surplus: int = 0
    failed: int = 0
    cancelled: int = 0
    evicted: int = 0
    closed: int = 0


class Admit(NamedTuple):
    """Let the maker of an offer have the slot of `loser`; None for one that is free, or its own."""

    loser: PeerId | None
    occupant: Occupant


class Refuse(NamedTuple):
    """Turn the offer down."""

    reason: RejectReason


class Replace(NamedTuple):
    """Close the link that we have to the maker of the offer, which gets the slot again then."""

    reason: str


class LinkManager:
    """The links and attempts of one peer.

    Attributes:
      admission: which peers are let in.
      policy: what is missing, and whom to dial for it.
      services: signaling services that are up.
    """

    def __init__(
        self, me: PeerId, config: MeshConfig, slots: Slots, passive: PassiveView, pins: PinnedLinks, rng: random.Random
    ) -> None:
        self._me = me
        self._max_peers = config.max_peers
        self._config = config.topology
        self._allow_unverified = slots.lets_all_in = config.links.allow_unverified
        self._rng = rng
        self._slots = slots
        self._passive = passive
        self._pins = pins
        self.admission: Admission = Admission(me, config.max_peers, slots, self._config)
        self.policy: DialPolicy = DialPolicy(me, config.max_peers, slots, passive, self._config, rng)
        self.services: dict[str, None] = {}
        self._bridge_to: PeerId | None = None
        """A peer that is about to be dialed as a bridge to its island."""
        self.counts: _Counts = _Counts()

    # --- offers and rejections ----------------------------------------------------------------------------------------

    def offered(self, offer: Offered, now: float) -> Admit | Refuse | Replace | None:
        """What becomes of an offer of theirs; None if it has to wait for a slot, or to answer ours."""
        remote, peer = offer.peer, offer.peer.peer_id
        self._passive.heard(peer, remote.version)
        occupant, slot, due = self.occupant(peer, offer), self._slots.get(peer), self._slots.due_to(peer)
        if slot is not None:
            return self._offered_again(remote, occupant, slot, now)
        if due is not None:
            due.next_occupant = occupant
            return None
        if peer in self._slots.crowd and not self._pins.want(peer):
            return Refuse(FULL)
        if self._slots.free() > 0:
            return Admit(None, occupant)
        loser = self._slots.closing()
        if loser is None and self._pins.want(peer):
            loser = self._pins.loser_to(peer, now)
        elif loser is None:
            loser = self.admission.loser_to(offer, now, leaf=occupant.leaf)
        return Refuse(FULL) if loser is None else Admit(loser, occupant)

    def _offered_again(
        self, remote: RemotePeer, occupant: Occupant, slot: Slot, now: float
    ) -> Admit | Refuse | Replace | None:
        peer = occupant.peer
        match slot.state:
            case State.OPEN if remote.verified and slot.since <= now - RESTARTED:
                slot.next_occupant = occupant
                return Replace("it has been started anew")
            case State.OPEN:
                return Refuse("already_linked")
            case State.CLOSING if slot.next_occupant is None and remote.verified and not self._slots.due_to(peer):
                slot.next_occupant = occupant
                return None
            case State.CLOSING:
                return Refuse("closing")
            case State.DIALING if remote.version > 0 and self._me < peer:
                self.counts.glare += 1  # it will answer ours
                return None
            case _:
                return Admit(None, occupant)

    def rejected(self, event: Rejected, now: float) -> Slot | None:
        """Our offer was turned down, or theirs taken back. Gives the slot of the attempt that has ended by that."""
        peer, slot, due = event.peer, self._slots.get(event.peer), self._slots.due_to(event.peer)
        self._passive.learn(event.alternatives, "alternative", now)
        if due is not None and due.next_occupant is not None and due.next_occupant.offer is not None:
            due.next_occupant = None
        attempting = slot is not None and slot.state in ATTEMPTS
        its_turn = event.reason == INITIATOR_CONFLICT and not event.offer_instead
        if its_turn:
            self._pins.hold(peer, now + OFFER_COMES)
        elif (
            attempting and (event.reason == FULL or self._comes_late(event.reason)) and self._pins.may_go_on(peer, now)
        ):
            self._pins.hold(peer, now + ROOM_COMES * self._rng.uniform(0.75, 1.25))
        if slot is not None and event.reason in TAKEN_BACK and slot.state is not State.ANSWERING:
            return None
        if slot is not None and attempting:
            self.counts.turned_down += 1
            self.attempt_failed(peer, now)
        if event.offer_instead:
            self._passive.pause(peer, now)
        elif its_turn:
            self._passive.heard(peer, 0)
            self._passive.pause(peer, now + OFFER_COMES)
        elif event.reason == NOT_FOUND and (slot is None or attempting):
            self._passive.forget(peer)
        return slot if attempting else None

    # --- attempts -----------------------------------------------------------------------------------------------------

    def can_dial(self) -> bool:
        """Offers go through the mesh, or by a service."""
        return bool(self.services) or bool(self._slots.are(State.OPEN))

    def must_offer(self, peer: PeerId) -> bool:
        """Whether it is one of the original, and would turn an offer of ours down."""
        return self._passive.of(peer).version == 0 and (peer < self._me or not self._allow_unverified)

    def step(self, now: float) -> Step | None:
        """What to do next for what is missing; to be asked again once it is done."""
        step = self.policy.step(now)
        if not isinstance(step, Dial) or not self.must_offer(step.peer):
            return step
        self._missed(step.peer, now)
        return Ask(step.peer)

    def pin(self, peer: PeerId, now: float, *, again: bool = False) -> Step | None:
        """What to do next for a link that the application wants."""
        if again and not self._pins.may_go_on(peer, now):
            return GiveUp(peer, "it does not let us in")
        return self._pins.step(peer, now, can_dial=self.can_dial(), must_offer=self.must_offer(peer))

    def bridge(self, peer: PeerId, now: float) -> Step | None:
        """What to do for a bridge to another island."""
        is_held = peer in self._slots or peer in self._slots.held()
        if peer == self._me or is_held or not self._passive.may_dial(peer, now):
            return None
        self._passive.learn((peer,), "wanted", now)
        self._bridge_to = peer
        if self._slots.free() > 0:
            return Dial(peer)
        losers = self._slots.expendable(now, self._slots.ring())
        return Swap(losers[0], peer) if losers else None

    def dial(self, peer: PeerId, now: float, *, made_room: bool = False) -> LinkPurpose:
        """Take a slot for an offer of ours. What its purpose is."""
        purpose = self._purpose_of(peer, now)
        slot = Slot(State.DIALING, now, self._pins.want(peer), self.policy.drew(peer), made_room)
        slot.leaf = self._passive.of(peer).is_leaf
        slot.held_until = now + BRIDGE_HOLDS if purpose == BRIDGE else -math.inf
        self._slots[peer] = slot
        self.counts.dialed += 1
        return purpose

    def _purpose_of(self, peer: PeerId, now: float) -> LinkPurpose:
        """What a link to this peer would be for."""
        if self._max_peers < 2:
            return LEAF
        if self._pins.want(peer):
            return PINNED
        if peer == self._bridge_to:
            self._bridge_to = None
            return BRIDGE
        return RING if peer in self._slots.ring_at_hand(now, peer) else LONG  # one nearer that is dialed may be dead

    def answer(self, occupant: Occupant, offer: Offered, now: float) -> None:
        """Take a slot for this offer of theirs."""
        purpose = purpose_of(offer)
        self._slots[occupant.peer] = Slot(
            State.ANSWERING,
            now,
            pinned=self._pins.want(occupant.peer),
            leaf=occupant.leaf,
            had_none=offer.links == 0,
            called=purpose if purpose in CALLS else None,
            held_until=now + BRIDGE_HOLDS if purpose == BRIDGE else -math.inf,
        )
        self.counts.accepted += 1

    def reject(self, remote: RemotePeer) -> tuple[PeerId, ...]:
        """Turn an offer of theirs down. Which peers to name instead."""
        self.counts.rejected += 1
        return self.alternatives(remote.peer_id)

    def _comes_late(self, reason: str) -> bool:
        """Whether a peer that is not found may just not be there yet, as we ourselves were not a moment ago."""
        return reason == NOT_FOUND and not self._slots.are(State.OPEN)

    def attempt_failed(self, peer: PeerId, now: float, *, hopeless: bool = False) -> Slot | None:
        """Free the slot of an attempt, and give it; None if it was none."""
        slot = self._slots.get(peer)
        if slot is None or slot.state not in ATTEMPTS:
            return None
        self._slots.pop(peer, None)
        self.counts.failed += 1
        self._missed(peer, now)
        if hopeless:
            self._passive.despair(peer, now)
        self.policy.filling.failed(now)
        if slot.made_room:
            self.policy.room_making.failed(now)
        return slot

    def _missed(self, peer: PeerId, now: float) -> None:
        self._passive.missed(peer, now, may_forget=bool(self._slots.are(State.OPEN)))

    # --- links --------------------------------------------------------------------------------------------------------

    def opened(self, remote: RemotePeer, now: float, *, leaving: bool) -> bool:
        """A link is open. Whether there is a slot for it: if not, it has to be closed."""
        peer = remote.peer_id
        self.counts.opened += 1
        slot = self._slots.get(peer)
        if slot is None:  # it opened while we gave it up
            self.counts.surplus += 1
            room = self._slots.free() > 0 and not leaving
            slot = self._slots[peer] = Slot(State.OPEN if room else State.CLOSING, now, self._pins.want(peer))
        else:
            room = True
            slot.state, slot.since = State.OPEN, now
        slot.version, slot.is_member = remote.version, remote.is_member
        slot.leaf = slot.leaf or not remote.is_member
        self._passive.linked(peer, remote.version, leaf=slot.leaf)
        if slot.made_room:
            self.policy.room_making.reset()
        return room

    def close(self, slot: Slot, reason: str) -> None:
        """The link is given up; its slot is free once it is down."""
        slot.state, slot.given_up = State.CLOSING, True
        slot.farewell = slot.farewell or reason

    def cancel(self, peer: PeerId, now: float) -> Slot:
        """Give up an attempt for another peer."""
        self.counts.cancelled += 1
        self._passive.pause(peer, now + self._config.retry_first)
        return self._slots.pop(peer)

    def evict(self, peer: PeerId, occupant: Occupant) -> tuple[PeerId, ...]:
        """Give up a link for another peer. Which peers to name instead."""
        self.counts.evicted += 1
        peers = dict.fromkeys((occupant.peer, *self.alternatives(peer)))
        return tuple(peers)[: self._config.alternatives]

    def ended(self, event: LinkDown, now: float) -> Slot | None:
        """Free the slot of a link that is down, and learn from how it ended. Gives the slot."""
        peer, slot = event.peer, self._slots.pop(event.peer, None)
        if slot is None:
            return None
        self.counts.closed += 1
        if event.timed_out is not None and slot.since <= now - PROVEN:
            self._slots.shaken_until = now + SHAKEN
        if slot.said_goodbye:
            self._passive.departed(peer, now)
        else:
            soon = event.timed_out is None and not slot.evicted_us
            pause = self._config.retry_first if soon else self._config.min_link_age
            self._passive.pause(peer, now + pause * self._rng.uniform(0.5, 1.0))
            self._passive.of(peer).vouched = False
            if event.timed_out is not None:
                self._passive.disbelieve(peer, now + SILENT_LASTS)
        if slot.next_occupant is None and not slot.given_up:
            self.policy.filling.reset()
        return slot

    # --- whom to name -------------------------------------------------------------------------------------------------

    def alternatives(self, peer: PeerId) -> tuple[PeerId, ...]:
        """Neighbours that may have room for `peer`: those next to its place first, then the nearest."""
        links = [other for other in self._slots.are(State.OPEN) if other != peer]
        near = sorted(links, key=lambda other: nearness(other, peer))
        vacant = [other for other in near if self._slots[other].vacant]
        ranked = dict.fromkeys((*ring_neighbours(peer, links), *vacant, *near))
        return tuple(ranked)[: self._config.alternatives]

    def occupant(self, peer: PeerId, offer: Offered | None = None) -> Occupant:
        """This peer, or the maker of this offer, as the next to take a slot."""
        return Occupant(peer, self._is_leaf(peer, offer), offer)

    def _is_leaf(self, peer: PeerId, offer: Offered | None) -> bool:
        """Whether it is no part of the ring, as far as we know."""
        if offer is not None:
            if not offer.peer.is_member:
                return True
            purpose = purpose_of(offer)
            if purpose in {LEAF, RING, LONG}:
                return purpose == LEAF
        return self.admission.is_leaf(peer) or self._passive.of(peer).is_leaf
