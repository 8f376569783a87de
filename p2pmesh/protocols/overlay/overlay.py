"""Topology: which links this peer has.

Each peer wants the two peers next to it on the ring of ids (Stoica et al., Chord, 2001), and in its other slots long links,
to peers that chord finds by the harmonic law (`p2pmesh.protocols.overlay.chord`). Who is next to us we hear from neighbours, from a
service, from chord. As long as of any two neighbours on the ring one knows the other, the ring closes, so the mesh is one
graph; and since a link on the ring is given up only for one that is nearer, it comes to rest.

Slots
=====
A *slot* is an attempt of ours (dialing), one of theirs (answering), an open link, or a link that is being closed. There
are never more than `max_peers`. So whoever lets a newcomer in while full first gives up a link, tells the loser of the
newcomer (`reconnection_data`), and hands the slot on to its *heir* when the link is really down. The loser, if it was
next to us on the ring, finds its new neighbour in the newcomer: an edge of the ring is spliced open.

Who is let in when all slots are taken: a peer that is nearer on the ring than those we have, always; one to whom chord has
promised a link, for a long one that has settled; one without any link, for a link off the ring, and rarely. Links next to us on
the ring and links that the application wants (`Connect`) stay. Who is turned down is told of peers nearer to its place, so a
newcomer that knows one peer gets there step by step.

*Leaves* are no part of the ring: peers that may have one link only, that don't prove who they are, and those of the
original project. They get what slots are left, and give way to the ring.

A newcomer dials one peer first. Its other links it opens through the mesh. A peer that hears of a newcomer leaves it the first
dial; so a join costs the service a few messages, however large the mesh is. Services are asked for peers only by who
has no link left.

Offers that cross: the lower id's offer wins. A peer of the original drops ours, so its offer wins. An offer over a link that
has been open for a while comes from a peer that has been restarted: it gets a new one.

Takes: LinkUp, LinkDown, LinkLost, Received, ServiceUp and ServiceDown (from signaling: joined, and no more), PeersFound,
PeerGone, Offered, Rejected, Connect, OpenBridge, MergeStarted, Introduced, FarPeers, Welcome, RingStable, Superfluous, CancelCall, Leave.
Gives: WantLink, AcceptOffer, DropLink, SendFrame(ReconnectionData | Goodbye), Reply,
Notify(SIGNALING, SetLinkPurpose | RejectOffer | FindPeers), Notify(CHORD, Vacancies | EvictedBy), Notify(ISLANDS, LinkBroken),
Emit(PeerConnected | PeerDisconnected | PeerTimedOut | PeerFailed | PeerEvicted).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, Literal, assert_never

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshClosed
from p2pmesh.events import PeerEvicted
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import DropLink, Effects, Emit, Notify
from p2pmesh.protocols.inputs import (
    CancelCall,
    Connect,
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    PeerGone,
    PeersFound,
    Received,
    ServiceDown,
    ServiceUp,
    Subsystem,
)
from p2pmesh.protocols.notices import (
    FULL,
    INITIATOR_CONFLICT,
    NOT_FOUND,
    EvictedBy,
    FarPeers,
    Input,
    Introduced,
    MergeStarted,
    Offered,
    OpenBridge,
    Rejected,
    RingStable,
    Superfluous,
    Vacancies,
    Welcome,
)
from p2pmesh.protocols.overlay.dial_policy import Dial, Swap
from p2pmesh.protocols.overlay.link_manager import TAKEN_BACK, LinkManager
from p2pmesh.protocols.overlay.passive_view import VOUCHED
from p2pmesh.protocols.overlay.pinned_links import OFFER_COMES, ROOM_COMES, PinnedLinks
from p2pmesh.protocols.overlay.slots import ATTEMPTS, Slot, State
from p2pmesh.protocols.util.ring_geometry import ring_neighbours
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import Goodbye, ReconnectionData

HEARSAY = 3.0
"""Seconds until a peer that was only named is dialed: by then we know our place, and it is mostly somebody else's."""
TAKES_OVER = 15.0
"""A verified offer over a link that has been open so long comes from a peer that was restarted; an offer that was under way
when the link opened is older than an attempt lasts."""


class TopologyCore:
    """The topology of one peer: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._me = identity.peer_id
        self._config = config.topology
        self._rng = rng
        self._held = LinkManager(self._me, config, rng, wall)
        self._slots, self._known = self._held.slots, self._held.known
        self._pins = PinnedLinks(self._me, self._held)
        self._out, self._counts = self._held.out, self._held.counts
        self._timers = Timers[Literal["check"]]()
        self._told_free = config.max_peers

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        match event:
            case LinkUp():
                self._held.opened(event.peer, now)
            case LinkDown():
                self._held.ended(event, now)
            case LinkLost():
                self._held.attempt_failed(event.peer, event.reason, now)
            case Received():
                self._on_received(event, now)
            case ServiceUp():
                self._held.services[event.transport] = None
            case ServiceDown():
                self._held.services.pop(event.transport, None)
            case PeersFound():
                if not self._on_peers_found(event, now):
                    return []
            case Introduced():
                self._on_introduced(event)
            case FarPeers():
                self._held.needs.far_found(event.peers, now)
                self._told_free = -1  # which asks for an answer
            case Welcome():
                self._held.admission.promise(event.peer, now, leaf=event.leaf)
                return []
            case RingStable():
                self._known.shelve(event.before, event.after, now)
                return []
            case Superfluous():
                self._on_superfluous(event.peer)
            case MergeStarted():
                self._slots.merging_until = event.until
                self._known.forgive()
            case OpenBridge():
                self._on_bridge(event.peer, now)
            case PeerGone():
                self._on_peer_gone(event.peer, now)
            case Offered():
                self._on_offered(event, now)
            case Rejected():
                self._on_rejected(event, now)
            case Connect():
                self._pins.connect(event.call, event.peer, now)
            case CancelCall():
                self._pins.forget(event.call)
            case Leave():
                self._on_leave(now)
            case _:
                return []
        return self._finish(now)

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        return self._finish(now) if self._timers.pop_due(now) else []

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "links": self._slots.are(State.OPEN),
            "attempts": self._slots.are(*ATTEMPTS),
            "closing": self._slots.are(State.CLOSING),
            "pinned": [peer for peer, slot in self._slots.items() if slot.pinned],
            "ring": list(ring_neighbours(self._me, [p for p in self._slots.on_ring() if self._held.is_open(p)])),
            "leaves": [peer for peer, slot in self._slots.items() if slot.leaf],
            "known": len(self._known),
            **{name: self._counts[name] for name in sorted(self._counts)},
        }

    def _finish(self, now: float) -> Effects:
        if not self._held.leaving:
            self._balance(now)
            free = max(0, self._slots.free())
            if free != self._told_free or self._held.displaced:
                self._out.append(Notify(Subsystem.CHORD, Vacancies(free, self._held.displaced)))
                self._told_free, self._held.displaced = free, False
        effects = list(self._out)
        self._out.clear()
        return effects

    # --- what others say ----------------------------------------------------------------------------------------------

    def _on_offered(self, event: Offered, now: float) -> None:
        remote, peer = event.peer, event.peer.peer_id
        self._known.heard(peer, remote.version)
        if self._held.leaving:
            self._held.reject(remote, "leaving", now)
            return
        slot = self._slots.get(peer)
        if slot is not None:
            self._on_offered_again(event, slot, now)
            return
        closing = self._slots.due_to(peer)
        if closing is not None:
            closing.next_occupant = event
            return
        if self._slots.free() > 0:
            self._held.accept(event, now)
            return
        loser = self._slots.closing() or self._loser_to(event, now)
        if loser is None:
            self._held.reject(remote, FULL, now)
            return
        self._held.give_way(loser, event, now)

    def _loser_to(self, offer: Offered, now: float) -> PeerId | None:
        peer = offer.peer.peer_id
        if self._held.connects.want(peer):
            return self._pins.loser_to(peer, now)
        return self._held.admission.loser_to(offer, now, leaf=self._held.is_leaf(offer))

    def _on_offered_again(self, event: Offered, slot: Slot, now: float) -> None:
        match slot.state:
            case State.OPEN if event.peer.verified and slot.since <= now - TAKES_OVER:
                slot.next_occupant = event
                self._held.close(event.peer.peer_id, slot, "it has been started anew")
            case State.OPEN:
                self._held.reject(event.peer, "already_linked", now)
            case State.CLOSING if (
                slot.next_occupant is None and event.peer.verified and not self._slots.due_to(event.peer.peer_id)
            ):
                slot.next_occupant = event
            case State.CLOSING:
                self._held.reject(event.peer, "closing", now)
            case State.DIALING if event.peer.version > 0 and self._me < event.peer.peer_id:
                self._counts["glare"] += 1  # it will answer ours
            case State.DIALING | State.ANSWERING:
                self._held.accept(event, now)

    def _on_rejected(self, event: Rejected, now: float) -> None:
        peer = event.peer
        self._known.learn(event.alternatives, now=now, vouched=now + VOUCHED)
        closing = self._slots.due_to(peer)
        if closing is not None and isinstance(closing.next_occupant, Offered):
            closing.next_occupant = None
        slot = self._slots.get(peer)
        attempting = slot is not None and slot.state in ATTEMPTS
        its_turn = event.reason == INITIATOR_CONFLICT and not event.offer_instead
        if its_turn:
            self._held.connects.hold(peer, now + OFFER_COMES)
        elif attempting and event.reason == FULL and self._held.connects.may_go_on(peer, now):
            self._held.connects.hold(peer, now + ROOM_COMES * self._rng.uniform(0.75, 1.25))
        if slot is not None and event.reason in TAKEN_BACK and slot.state is not State.ANSWERING:
            return
        if attempting and slot is not None:
            slot.replaced = False  # this attempt is what ends, not the one that gave way to it
            self._counts["turned_down"] += 1
            self._out.append(DropLink(peer, event.reason))
            self._held.attempt_failed(peer, event.reason, now)
        if event.offer_instead:
            self._known.pause(peer, now)
        elif its_turn:
            self._known.heard(peer, 0)
            self._known.pause(peer, now + OFFER_COMES)
        elif event.reason == NOT_FOUND and (slot is None or attempting):
            self._known.forget(peer)

    def _on_peer_gone(self, peer: PeerId, now: float) -> None:
        if peer in self._slots:
            self._known.mark_gone(peer)
        else:
            self._known.departed(peer, now)

    def _on_peers_found(self, event: PeersFound, now: float) -> bool:
        """Whether there is news."""
        match event.source:
            case "joined":
                news = self._known.learn(
                    event.peers,
                    now + self._config.announced_grace * self._rng.uniform(0.75, 1.0),
                    vouched=now + VOUCHED,
                )
            case "beyond":
                self._known.learn(event.peers, vouched=now + VOUCHED)
                self._known.be_sure(event.peers, now + VOUCHED)
                news = True
            case "hearsay":
                later = now + HEARSAY * self._rng.uniform(1.0, 1.5)
                news = self._known.learn(event.peers, later, now, vouched=-math.inf)
            case "list":
                self._known.learn(event.peers, now=now, vouched=-math.inf)
                self._known.urge(event.peers, now)
                news = True
            case "ring":
                self._known.learn(event.peers, now=now, vouched=now + VOUCHED)
                self._known.urge(event.peers, now)
                news = True
            case "config" | "bootstrap" | "rejection":
                news = self._known.learn(event.peers, vouched=now + VOUCHED)
            case _:
                assert_never(event.source)
        if news:
            self._held.needs.filling.reset()
        return news

    def _on_introduced(self, event: Introduced) -> None:
        slot = self._slots.get(event.peer)
        if slot is None:
            return
        slot.vacant = event.free > 0
        leaf = event.leaf or slot.version == 0
        if leaf != slot.leaf:
            slot.leaf = leaf
            self._known.introduced(event.peer, leaf=leaf)

    def _on_superfluous(self, peer: PeerId) -> None:
        slot = self._slots.get(peer)
        if slot is None or slot.state is not State.OPEN or slot.pinned or peer in self._slots.ring():
            return
        slot.spare = True
        if self._me < peer:
            self._counts["superfluous"] += 1
            self._held.close(peer, slot, "the ring is closed without this link")

    def _on_bridge(self, peer: PeerId, now: float) -> None:
        if self._held.leaving or peer == self._me or peer in self._slots or peer in self._slots.held():
            return
        self._known.learn((peer,), vouched=now + VOUCHED)
        self._held.bridge_to = peer
        if self._slots.free() > 0:
            self._held.dial(peer, now)
            return
        loser = next(iter(self._slots.expendable(now, self._slots.ring())), None)
        if loser is not None:
            self._held.give_way(loser, peer, now)

    def _on_received(self, event: Received, now: float) -> None:
        slot = self._slots.get(event.peer)
        if slot is None:
            return
        match event.message:
            case ReconnectionData():
                self._known.learn(event.message.peers, now=now, vouched=now + VOUCHED)
                if slot.evicted_us:
                    return
                slot.evicted_us, slot.spliced = True, event.peer in self._slots.ring()
                self._out.append(Notify(Subsystem.CHORD, EvictedBy(event.peer)))
                slot.farewell = slot.farewell or f"gave us up: {event.message.reason}"
                if slot.spliced:
                    self._known.urge(event.message.peers[:1], now)
                others = tuple(peer for peer in event.message.peers if peer != self._me)
                self._out.append(Emit(PeerEvicted(event.peer, event.message.reason, others)))
            case Goodbye():
                self._known.learn(event.message.peers, now=now, vouched=now + VOUCHED)
                self._known.urge(event.message.peers, now)
                slot.said_goodbye = True
                if slot.state is State.OPEN:
                    self._held.close(event.peer, slot, event.message.reason)
                    slot.given_up = False
            case _:
                self._counts["ignored"] += 1

    # --- the end -------------------------------------------------------------------------------------------------------

    def _on_leave(self, now: float) -> None:
        self._held.leaving = True
        self._timers.cancel("check")
        self._held.connects.fail_all(MeshClosed("the mesh is being left"))
        for peer, slot in list(self._slots.items()):
            if slot.state is State.OPEN:  # all are told before any is closed: they are told of each other
                self._held.say_goodbye(peer, slot, now)
        for peer, slot in list(self._slots.items()):
            slot.next_occupant = None
            if slot.state is State.OPEN:
                self._held.close(peer, slot, "we left the mesh")
            elif slot.state in ATTEMPTS:
                self._slots.pop(peer)
                self._out.append(DropLink(peer, "we leave the mesh"))

    # --- what is missing ----------------------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        """Dial what is missing, and come back when there may be more to do."""
        for peer in self._held.connects.overdue(now):
            self._pins.go_on(peer, now)
        moment = min(self._held.end_overdue(now), self._held.connects.next_overdue())
        if self._held.can_dial():
            while (step := self._held.needs.step(now)) is not None:
                match step:
                    case Dial(peer):
                        self._held.ask_or_dial(peer, now)
                    case Swap(loser, peer):
                        self._held.give_way(loser, peer, now)
            moment = min(moment, self._held.needs.look_again)
        if moment < math.inf:
            self._timers.set("check", max(moment, now))
        else:
            self._timers.cancel("check")
