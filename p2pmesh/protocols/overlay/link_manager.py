"""Holdings: the links and attempts of one peer, and the orders that open, hand on and end them.

The topology decides; what it decides is carried out here, so that each slot is freed, and each call answered, once.
"""

from __future__ import annotations

import math
import random
from collections import Counter

from p2pmesh.config import MeshConfig
from p2pmesh.errors import PeerUnreachable
from p2pmesh.events import PeerConnected, PeerDisconnected, PeerFailed, PeerTimedOut
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import AcceptOffer, DropLink, Effects, Emit, Notify, SendFrame, WantLink
from p2pmesh.protocols.inputs import NO_SLOT, LinkDown, RemotePeer, Subsystem
from p2pmesh.protocols.notices import (
    CANCELLED,
    FULL,
    INITIATOR_CONFLICT,
    NO_ATTEMPT,
    FindPeers,
    LinkBroken,
    Offered,
    RejectOffer,
    SetLinkPurpose,
)
from p2pmesh.protocols.overlay.admission import CALLS, Admission, purpose_of
from p2pmesh.protocols.overlay.connects import Connects
from p2pmesh.protocols.overlay.dial_policy import DialPolicy
from p2pmesh.protocols.overlay.passive_view import PassiveView
from p2pmesh.protocols.overlay.slots import ATTEMPTS, BRIDGE_HOLDS, Heir, Slot, Slots, State, heir_id
from p2pmesh.protocols.util.ring_geometry import nearness, ring_neighbours
from p2pmesh.wire.messages import BRIDGE, LEAF, LONG, PINNED, RING, Goodbye, ReconnectionData

TAKEN_BACK = frozenset({CANCELLED, NO_ATTEMPT})
"""Rejections that concern the other side's offer, not ours."""
NOT_A_FAILURE = frozenset({FULL, NO_SLOT, "already_linked", "closing", INITIATOR_CONFLICT, "leaving", *TAKEN_BACK})
"""Reasons that belong to the ordinary course of things: the application does not hear of them."""
GIVES_UP_AFTER = 5.0
"""Seconds after the end of its time until an attempt is ended of which the link layer says nothing."""


class LinkManager:
    """What one peer holds.

    Attributes:
      slots: who has which slot.
      known: peers that are said to be there.
      connects: calls that wait for a link.
      admission: who is let in.
      needs: what is missing.
      services: signaling services that are up.
      leaving: whether the mesh is being left: nothing is dialed any more.
      displaced: whether the last link was lost to a newcomer, and chord has not heard of it.
      bridge_to: a peer that is about to be dialed as a bridge to its island.
      counts: for statistics.
      out: the orders.
    """

    def __init__(self, me: PeerId, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._me = me
        self._max_peers = config.max_peers
        self._config = config.topology
        self._attempt_limit = config.links.connect_timeout + GIVES_UP_AFTER
        self._rng = rng
        self._wall = wall
        self._allow_unverified = config.links.allow_unverified
        self.slots: Slots = Slots(me, config.max_peers, self.is_leaf)
        self.known: PassiveView = PassiveView(me, self._config, rng)
        self.connects: Connects = Connects()
        self.admission: Admission = Admission(me, config.max_peers, self.slots, self._config)
        self.needs: DialPolicy = DialPolicy(me, config.max_peers, self.slots, self.known, self._config, rng)
        self.services: dict[str, None] = {}
        self.leaving: bool = False
        self.displaced: bool = False
        self.bridge_to: PeerId | None = None
        self.counts: Counter[str] = Counter()
        self.out: Effects = self.connects.out

    # --- links ---------------------------------------------------------------------------------------------------------

    def opened(self, remote: RemotePeer, now: float) -> None:
        peer = remote.peer_id
        self.counts["opened"] += 1
        self.out.append(Emit(PeerConnected(peer, remote.verified)))
        slot = self.slots.get(peer)
        leaf = remote.version == 0 or not remote.verified or (slot is not None and slot.leaf)
        self.known.linked(peer, remote.version, leaf=leaf)
        if slot is None:  # it opened while we gave it up
            self.counts["surplus"] += 1
            room = self.slots.free() > 0 and not self.leaving
            slot = self.slots[peer] = Slot(State.OPEN if room else State.CLOSING, now, version=remote.version)
            if not room:
                self.close(peer, slot, NO_SLOT)
            return
        slot.state, slot.since, slot.version, slot.leaf = State.OPEN, now, remote.version, leaf
        if slot.made_room:
            self.needs.room_making.reset()
        self.connects.linked(peer)

    def ended(self, event: LinkDown, now: float) -> None:
        slot = self.slots.pop(event.peer)
        if slot is None:
            return
        self.counts["closed"] += 1
        self.needs.link_ended(now)
        if event.timed_out is None:
            self.out.append(Emit(PeerDisconnected(event.peer, slot.farewell or event.reason)))
        else:
            self.out.append(Emit(PeerTimedOut(event.peer, event.timed_out)))
        if slot.said_goodbye:
            self.known.departed(event.peer, now)
        else:
            soon = event.timed_out is None and not slot.evicted_us
            pause = self._config.retry_first if soon else self._config.min_link_age
            self.known.pause(event.peer, now + pause * self._rng.uniform(0.5, 1.0))
            self.known.doubt(event.peer)
            if not slot.evicted_us and not slot.given_up:
                self.out.append(Notify(Subsystem.ISLANDS, LinkBroken(event.peer)))
            if event.timed_out is not None:
                self.known.fell_silent(event.peer, now)
        if slot.next_occupant is not None and not self.leaving:
            self._hand_over(slot.next_occupant, now)
        elif not slot.given_up:
            self.needs.filling.reset()
            self.displaced = slot.evicted_us and not slot.spliced
            if not self.leaving and not self.slots.are(State.OPEN, State.ANSWERING):
                self.out.append(Notify(Subsystem.SIGNALING, FindPeers()))

    def attempt_failed(self, peer: PeerId, reason: str, now: float) -> None:
        slot = self.slots.get(peer)
        if slot is None or slot.state not in ATTEMPTS:
            return
        if slot.replaced and slot.since == now:  # that was the attempt of ours which gave way just now
            slot.replaced = False
            return
        self.slots.pop(peer)
        self.counts["failed"] += 1
        self.known.missed(peer, now, may_forget=bool(self.slots.are(State.OPEN)))
        self.needs.filling.failed(now)
        if slot.made_room:
            self.needs.room_making.failed(now)
        if self.connects.is_held(peer):
            return
        if slot.pinned or reason not in NOT_A_FAILURE:
            self.out.append(Emit(PeerFailed(peer, reason)))
        self.connects.fail(peer, PeerUnreachable(f"no link to {short(peer)}: {reason}"))

    def end_overdue(self, now: float) -> float:
        """End answers of which the link layer has long said nothing. When to look again."""
        moment = math.inf
        for peer in self.slots.are(State.ANSWERING):
            due = self.slots.since(peer) + self._attempt_limit
            if due <= now:
                self.out.append(DropLink(peer, "no link in time"))
                self.attempt_failed(peer, "no link in time", now)
            else:
                moment = min(moment, due)
        return moment

    # --- attempts ------------------------------------------------------------------------------------------------------

    def can_dial(self) -> bool:
        """Offers go through the mesh, or by a service."""
        return bool(self.services) or bool(self.slots.are(State.OPEN))

    def ask_or_dial(self, peer: PeerId, now: float) -> None:
        """Try to get a link to this peer. One of the original with the smaller id must make the offer itself."""
        if not self.has_to_offer(peer):
            self.dial(peer, now)
            return
        self.known.missed(peer, now)
        self.ask(peer)

    def has_to_offer(self, peer: PeerId) -> bool:
        """Whether it is one of the original, and would turn an offer of ours down."""
        return self.known.version(peer) == 0 and (peer < self._me or not self._allow_unverified)

    def ask(self, peer: PeerId) -> None:
        """Ask a peer of the original for its offer, if we take those."""
        if self._allow_unverified:
            self.out.append(Notify(Subsystem.SIGNALING, RejectOffer(peer, INITIATOR_CONFLICT)))

    def dial(self, peer: PeerId, now: float, *, made_room: bool = False) -> None:
        purpose = self._purpose_of(peer, now)
        slot = Slot(State.DIALING, now, self.connects.want(peer), made_room, leaf=self.known.is_leaf(peer))
        slot.held_until = now + BRIDGE_HOLDS if purpose == BRIDGE else -math.inf
        self.slots[peer] = slot
        self.counts["dialed"] += 1
        self.out.append(Notify(Subsystem.SIGNALING, SetLinkPurpose(peer, purpose)))
        self.out.append(WantLink(peer))

    def _purpose_of(self, peer: PeerId, now: float) -> str:
        """What a link to this peer would be for."""
        if self._max_peers < 2:
            return LEAF
        if self.connects.want(peer):
            return PINNED
        if peer == self.bridge_to:
            self.bridge_to = None
            return BRIDGE
        return RING if peer in self.slots.ring_at_hand(now, peer) else LONG  # who is nearer and dialed may be dead

    def accept(self, offer: Offered, now: float) -> None:
        peer = offer.peer.peer_id
        previous, purpose = self.slots.get(peer), purpose_of(offer)
        self.slots[peer] = Slot(
            State.ANSWERING,
            now,
            pinned=self.connects.want(peer),
            leaf=self.is_leaf(offer),
            called=purpose if purpose in CALLS else None,
            held_until=now + BRIDGE_HOLDS if purpose == BRIDGE else -math.inf,
            replaced=previous is not None and previous.state is State.DIALING,
        )
        self.counts["accepted"] += 1
        self.out.append(AcceptOffer(offer.peer, offer.signal))

    def reject(self, remote: RemotePeer, reason: str, now: float) -> None:
        self.counts["rejected"] += 1
        alternatives = self._alternatives(remote.peer_id, now, only_links=remote.version == 0)
        self.out.append(Notify(Subsystem.SIGNALING, RejectOffer(remote.peer_id, reason, alternatives)))

    # --- ends ----------------------------------------------------------------------------------------------------------

    def close(self, peer: PeerId, slot: Slot, reason: str) -> None:
        slot.state, slot.given_up = State.CLOSING, True
        slot.farewell = slot.farewell or reason
        self.out.append(DropLink(peer, reason))

    def give_way(self, loser: PeerId, next_occupant: Heir, now: float) -> None:
        """Let `next_occupant` have the slot of `loser`: at once if that is an attempt, else when its link is down."""
        slot = self.slots.get(loser)
        if slot is None:
            return
        if slot.state in ATTEMPTS:
            self.slots.pop(loser)
            self.counts["cancelled"] += 1
            self.known.cut_short(loser, now + self._config.retry_first)
            self.out.append(DropLink(loser, "given up for another peer"))
            reason = CANCELLED if slot.state is State.DIALING else FULL
            self.out.append(Notify(Subsystem.SIGNALING, RejectOffer(loser, reason)))
            self._hand_over(next_occupant, now)
            return
        slot.next_occupant = next_occupant
        if slot.state is State.CLOSING:
            return
        self.counts["evicted"] += 1
        peers = tuple(dict.fromkeys((heir_id(next_occupant), *self._alternatives(loser, now, only_links=True))))
        self._say_evicted(loser, "make_room", peers[: max(1, self._config.alternatives)], now)
        self.close(loser, slot, "given up for another peer")

    def _hand_over(self, next_occupant: Heir, now: float) -> None:
        if isinstance(next_occupant, Offered):
            self.accept(next_occupant, now)
        elif self.can_dial():
            self.dial(next_occupant, now, made_room=True)
        else:
            self.connects.fail(next_occupant, PeerUnreachable("no signaling service is up"))

    def _say_evicted(self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...], now: float) -> None:
        notice = ReconnectionData(reason=reason, peers=alternatives, timestamp=int(self._wall(now) * 1000))
        self.out.append(SendFrame((peer,), notice, urgent=True))

    def say_goodbye(self, peer: PeerId, slot: Slot, now: float) -> None:
        alternatives = self._alternatives(peer, now, only_links=True)
        if slot.version == 0:
            self._say_evicted(peer, "leaving", alternatives, now)
        else:
            self.out.append(SendFrame((peer,), Goodbye(reason="left the mesh", peers=alternatives), urgent=True))

    # --- views ---------------------------------------------------------------------------------------------------------

    def is_open(self, peer: PeerId) -> bool:
        return self.slots.state(peer) is State.OPEN

    def is_leaf(self, next_occupant: Heir) -> bool:
        """Whether this peer, or who makes this offer, is no part of the ring, as far as we know."""
        peer = heir_id(next_occupant)
        if isinstance(next_occupant, Offered):
            if next_occupant.peer.version == 0 or not next_occupant.peer.verified:
                return True
            purpose = purpose_of(next_occupant)
            if purpose in {LEAF, RING, LONG}:
                return purpose == LEAF
        return self.admission.is_leaf(peer) or self.known.is_leaf(peer)

    def _alternatives(self, peer: PeerId, now: float, *, only_links: bool) -> tuple[PeerId, ...]:
        """Peers that may have room for `peer`: those next to its place on the ring first, then our nearest neighbours."""
        links = [other for other in self.slots.are(State.OPEN) if other != peer]
        known = [] if only_links else [other for other in self.known.in_good_standing(now) if other != peer]
        near = sorted(links, key=lambda other: nearness(other, peer))
        vacant = [other for other in near if (slot := self.slots.get(other)) is not None and slot.vacant]
        ranked = dict.fromkeys((*ring_neighbours(peer, [*links, *known]), *vacant, *near))
        return tuple(ranked)[: self._config.alternatives]
