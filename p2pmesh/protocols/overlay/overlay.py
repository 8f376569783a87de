"""The overlay: which links this peer has. One owner of its neighbours, on the ring and across it.

Stoica et al., Chord, 2001, for the ring of ids (section 4); Kleinberg, The small-world phenomenon, 2000, for the links
across; Leitao et al., HyParView, 2007, for the peers that are known besides.

Each peer wants the two peers next to it on the ring, and in its other slots long links, to peers found by the
harmonic law (`fix_fingers`). As long as of any two neighbours on the ring one knows the other, the ring closes, so
the mesh is one graph; and since a link on the ring is given up only for one that is nearer, it comes to rest.

**Slots.** There are never more than `max_peers` (`slots`). A peer that lets a newcomer in while full (`admission`)
first gives up a link, tells the loser of the newcomer (`reconnection_data`), and hands the slot on when the link is
really down. The loser, if it was next to us on the ring, finds its new neighbour in the newcomer: an edge of the ring
is spliced open. Links next to us on the ring and links that the application wants stay. A peer that is turned down is
told of others nearer to its place, so a newcomer that knows one peer gets there step by step. Of offers that cross,
the lower id's wins; a peer of the original drops ours, so its offer wins.

**Leaves** are no part of the ring: peers that may have one link only, that don't prove who they are, and those of the
original project. They get what slots are left, and give way to the ring.

**Join.** A newcomer dials one peer first, and opens its other links through the mesh; a peer that hears of a newcomer
leaves it the first dial. So a join costs the service a few messages, however large the mesh is, and services are
asked for peers only without a link left, or if our place is not found (`ring_join`).

**Stabilise.** Neighbours that take part tell each other who they are linked to, who follows and goes before them on the
ring, and whether they have slots free (`successor_list`). A peer named so is dialed if it is nearer on the ring than
those we have (`dial_policy`). A link to a neighbour on the ring is *superfluous* once a newcomer between the two is
linked to both: the lower id gives it up, unless the mesh is so small that slots are left over anyway.

Inputs: LinkUp, LinkDown, LinkLost, Received, RoutedReceived, RouteSucceeded, RouteFailed, ServiceUp and ServiceDown
  (from signaling: joined, and no more), PeersFound, PeerGone, Offered, Rejected, Connect, Disconnect, CancelCall,
  OpenBridge, MergeStarted, Leave.
Effects: WantLink, AcceptOffer, DropLink, SendFrame, Reply, Notify(SIGNALING, SetLinkPurpose | RejectOffer |
  FindPeers), Notify(ROUTING, Route | RouteReply | NeighbourLinks), Notify(ISLANDS, LinkBroken),
  Notify(ROUTING and RECEIPTS and ISLANDS, MeshSize), Notify(KADEMLIA, PeersFound),
  Emit(PeerConnected | PeerDisconnected | PeerTimedOut | PeerFailed | PeerEvicted).
Messages: ReconnectionData, Goodbye, Neighbours, Stabilise; over routes FindSuccessor and its answer SuccessorFound.
Config: TopologyConfig, ChordConfig, `MeshConfig.max_peers`, `LinkConfig.allow_unverified` and `connect_timeout`.
State: that of its parts, two look-ups under way, one timer of each kind.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterable, Mapping
from typing import Any, Literal

from attrs import asdict, define
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshClosed, MeshError, PeerUnreachable
from p2pmesh.events import EclipseSuspected, Event, PeerConnected, PeerFailed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import AcceptOffer, DropLink, Effects, Emit, Notify, Reply, SendFrame, WallClock, WantLink
from p2pmesh.protocols.inputs import (
    NO_SLOT,
    CancelCall,
    Connect,
    Disconnect,
    Leave,
    LinkDown,
    LinkLost,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    PeerGone,
    PeersFound,
    Received,
    RemotePeer,
    ServiceDown,
    ServiceUp,
    Subsystem,
)
from p2pmesh.protocols.notices import (
    CANCELLED,
    FULL,
    INITIATOR_CONFLICT,
    FindPeers,
    Input,
    LinkBroken,
    MergeStarted,
    MeshSize,
    NeighbourLinks,
    Offered,
    OpenBridge,
    Rejected,
    RejectOffer,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
    SetLinkPurpose,
)
from p2pmesh.protocols.overlay.dial_policy import Ask, Dial, GiveUp, PinnedLinks, Step, Swap
from p2pmesh.protocols.overlay.find_successor import SuccessorLookup
from p2pmesh.protocols.overlay.fix_fingers import FingerSearch
from p2pmesh.protocols.overlay.link_manager import NOT_A_FAILURE, Admit, LinkManager, Refuse, Replace
from p2pmesh.protocols.overlay.passive_view import PassiveView, Said
from p2pmesh.protocols.overlay.ring_join import RingJoin
from p2pmesh.protocols.overlay.slots import ATTEMPTS, Occupant, Slot, Slots, State
from p2pmesh.protocols.overlay.successor_list import Stabilisation, SuccessorLists
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.scores import Scores
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.protocols.util.window import CallTable
from p2pmesh.wire.messages import Goodbye, Message, ReconnectionData, RejectReason
from p2pmesh.wire.overlay import FindSuccessor, Neighbours, Stabilise, SuccessorFound

QUIET = (Received, RoutedReceived, RouteSucceeded, RouteFailed, PeersFound)
"""Frequent inputs that mostly leave the slots as they are. If they do change what is to be dialed, handlers say so."""

Timer = Literal["balance", "tell", "stabilise", "place", "search"]
LookUp = Literal["place", "search"]
"""What was looked up: our place, or a peer for a long link; one of each at once."""


@define
class _Counts:
    ignored: int = 0
    superfluous: int = 0


class OverlayCore:
    """The overlay of one peer: see the module."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        health: LocalHealth | None = None,
        blocked: Container[PeerId] = frozenset(),
        scores: Scores | None = None,
    ) -> None:
        self._me = me = identity.peer_id
        self._allow_unverified = config.links.allow_unverified
        self._config = config.chord
        self._rng = rng
        self._wall = wall
        self._blocked = blocked
        self._scores = scores or Scores()
        self._slots = slots = Slots(me, config.max_peers, self._scores)
        self._passive = PassiveView(me, config.topology, rng, blocked, serves_originals=self._allow_unverified)
        self._pins = PinnedLinks(slots)
        self._links = LinkManager(me, config, slots, self._passive, self._pins, rng)
        self._links.policy.health = health or self._links.policy.health
        self._lists = lists = SuccessorLists(me, config.chord.successors, slots)
        self._stabilisation = Stabilisation(me, config.max_peers, lists, slots)
        self._join = RingJoin(me, lists, slots, is_leaf=config.max_peers < 2)
        self._fingers = FingerSearch(me, config.max_peers, lists, slots, config.chord, rng)
        self._lookup = SuccessorLookup(config, lists, slots)
        self._timers = Timers[Timer](health)
        self._calls = CallTable[LookUp](2, config.chord.search_timeout, health)
        self._counts = _Counts()
        self._leaving = False
        self._unbalanced = False
        """Something has happened since we looked what to dial."""
        self._displaced = False
        """A newcomer took the place of ours with a neighbour, since we looked which slots are free."""
        self._row_told: tuple[PeerId, ...] = ()
        self._effects: Effects = []

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        self._unbalanced = not isinstance(event, QUIET)
        match event:
            case LinkUp(remote):
                self._on_link_up(remote, now)
            case LinkDown():
                self._on_link_down(event, now)
            case LinkSuspected(peer) | LinkRecovered(peer) if peer in self._slots:
                self._slots[peer].silent = isinstance(event, LinkSuspected)
            case LinkLost():
                self._on_link_lost(event, now)
            case Received(peer, message):
                self._on_received(peer, message, now)
            case RoutedReceived():
                self._on_routed_received(event, now)
            case RouteSucceeded(call) | RouteFailed(call):
                self._look_up_ended(self._calls.close(call), event, now)
            case ServiceUp(transport):
                self._links.services[transport] = None
            case ServiceDown(transport):
                self._links.services.pop(transport, None)
            case PeersFound(peers, source):
                self._learn(peers, source, now)
            case PeerGone(peer) if peer not in self._slots:
                self._passive.departed(peer, now)
            case Offered():
                self._on_offered(event, now)
            case Rejected():
                self._on_rejected(event, now)
            case Connect(call, peer):
                self._on_connect(call, peer, now)
            case Disconnect(call, peer):
                self._on_disconnect(call, peer, now)
            case CancelCall(call):
                self._pins.cancel(call)
            case OpenBridge(peer) if not self._leaving:
                self._follow(self._links.bridge(peer, now), now)
            case MergeStarted(until) if not self._leaving:
                self._on_merge_started(until, now)
            case Leave():
                self._on_leave(now)
            case _:
                return []
        return self._take(now)

    def next_deadline(self) -> float:
        return min(self._timers.next_deadline(), self._calls.next_deadline())

    def expire(self, now: float) -> Effects:
        for look_up in self._calls.pop_overdue(now).values():
            self._look_up_ended(look_up, None, now)
        for timer in self._timers.pop_due(now):
            match timer:
                case "balance":
                    self._unbalanced = True
                case "tell":
                    self._tell_changes()
                case "stabilise":
                    self._stabilise(now)
                case "place":
                    self._look_for_place(now)
                case "search":
                    self._search(now)
        return self._take(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            **self._slots.snapshot(),
            **asdict(self._counts),
            "scores": self._scores.snapshot(self._slots.are(State.OPEN)),
            "lost_outcomes": self._calls.lost,
            "link_manager": asdict(self._links.counts),
            "passive_view": {"known": len(self._passive)},
            "successor_list": {**self._lists.snapshot(), "missed": self._stabilisation.missed},
            "ring_join": {"look_ups": self._join.look_ups},
            "fix_fingers": {"seeks": self._fingers.is_on, **asdict(self._fingers.counts)},
            "find_successor": {"answered": self._lookup.answered},
        }

    def _take(self, now: float) -> Effects:
        if self._unbalanced and not self._leaving:
            self._balance(now)
        effects, self._effects = self._effects, []
        return effects

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        peer = remote.peer_id
        self._emit(PeerConnected(peer, remote.verified))
        if self._links.opened(remote, now, leaving=self._leaving):
            self._reply(self._pins.settle(peer))
        else:
            self._close(peer, NO_SLOT)
        if not remote.is_member or self._leaving:
            return
        self._send(*self._stabilisation.announcement(peer))
        self._tell_soon(now)
        if "stabilise" not in self._timers:
            self._timers.set("stabilise", now + self._config.stabilise_every * self._rng.uniform(0.5, 1.5))

    def _on_link_down(self, event: LinkDown, now: float) -> None:
        peer, slot = event.peer, self._links.ended(event, now)
        if event.blamed:
            self._scores.add(peer, "faults", now)
        elif event.timed_out is not None:
            self._scores.add(peer, "failures", now)
        if slot is None:
            return
        self._emit(slot.end_of_link(event))
        if not (slot.said_goodbye or slot.evicted_us or slot.given_up):
            self._notify(Subsystem.ISLANDS, LinkBroken(peer))
        if slot.next_occupant is not None:
            self._hand_over(slot.next_occupant, now)
        elif not slot.given_up:
            self._displaced = slot.evicted_us and not slot.spliced
            if not self._leaving and not self._slots.are(State.OPEN, State.ANSWERING):
                self._notify(Subsystem.SIGNALING, FindPeers())
        self._close_ring_over(peer, slot, now)

    def _close_ring_over(self, lost: PeerId, slot: Slot, now: float) -> None:
        """If a peer next to us is gone, the next in its list takes its place, or one of the others."""
        self._stabilisation.link_ended(lost)
        rows = ((self._lists.successors, True), (self._lists.predecessors, False))
        self._lists.refresh(now)
        for row, clockwise in rows:
            if row[:1] != (lost,) or slot.evicted_us:
                continue
            self._join.tear(row, clockwise=clockwise)
            self._learn_strangers(row[1:2], "ring", now)
            self._learn_strangers(row[2:], "list", now)
        self._ring_changed(now)

    def _on_link_lost(self, event: LinkLost, now: float) -> None:
        slot = self._links.attempt_failed(event.peer, now, hopeless=event.hopeless)
        if slot is not None:
            self._attempt_ended(event.peer, slot, event.reason)

    def _attempt_ended(self, peer: PeerId, slot: Slot, reason: str) -> None:
        if self._pins.is_held(peer):  # another follows
            return
        if slot.pinned or reason not in NOT_A_FAILURE:
            self._emit(PeerFailed(peer, reason))
        self._reply(self._pins.settle(peer), PeerUnreachable(f"no link to {short(peer)}: {reason}"))

    # --- what neighbours say ------------------------------------------------------------------------------------------

    def _on_received(self, peer: PeerId, message: Message, now: float) -> None:
        slot = self._slots.get(peer)
        match message:
            case ReconnectionData() if slot is not None:
                self._on_reconnection_data(peer, slot, message, now)
            case Goodbye() if slot is not None:
                self._on_goodbye(peer, slot, message, now)
            case Neighbours() if slot is not None and slot.is_member and not self._leaving:
                self._on_neighbours(peer, slot, message, now)
            case Stabilise() if slot is not None and slot.is_member and not self._leaving:
                self._on_stabilise(peer, slot, message, now)
            case _:
                self._counts.ignored += 1

    def _on_reconnection_data(self, peer: PeerId, slot: Slot, said: ReconnectionData, now: float) -> None:
        self._unbalanced = True
        self._passive.learn(said.peers, "alternative", now)
        if slot.evicted_us:
            return
        slot.evicted_us, slot.spliced = True, peer in self._slots.ring()
        slot.farewell = slot.farewell or said.reason
        slot.alternatives = tuple(other for other in said.peers if other != self._me)
        if slot.spliced:
            self._passive.urge(said.peers[:1], now)

    def _on_goodbye(self, peer: PeerId, slot: Slot, said: Goodbye, now: float) -> None:
        self._unbalanced = True
        self._passive.learn(said.peers, "ring", now)
        slot.said_goodbye = True
        if slot.state is State.OPEN:
            self._close(peer, said.reason)
            slot.given_up = False

    def _on_neighbours(self, peer: PeerId, slot: Slot, said: Neighbours, now: float) -> None:
        before, slot.told = slot.told, said
        if slot.leaf != said.leaf:
            slot.leaf, self._unbalanced = said.leaf, True
            self._passive.of(peer).leaf = said.leaf
        self._lists.refresh(now)
        if before is None or before.links != said.links:
            self._notify(Subsystem.ROUTING, NeighbourLinks(peer, said.links))
        near, hearsay = self._stabilisation.named(peer, before, said)
        self._learn_strangers(near, "ring", now)
        self._learn(hearsay, "hearsay", now)
        for other in self._lists.superfluous(now):
            self._give_up_spare(other)
        self._ring_changed(now)

    def _on_stabilise(self, peer: PeerId, slot: Slot, said: Stabilise, now: float) -> None:
        if said.serial is None:
            self._send(*self._stabilisation.announcement(peer))
        if self._stabilisation.has_missed(slot, said):
            self._send((peer,), Stabilise())

    # --- look-ups: what others ask, and what became of ours -----------------------------------------------------------

    def _on_routed_received(self, event: RoutedReceived, now: float) -> None:
        asker, question = event.peer.peer_id, event.message
        if not isinstance(question, FindSuccessor) or self._leaving:
            self._counts.ignored += 1
            return
        if question.key == asker and not question.leaf:
            self._learn((asker,), "joined", now)  # it will make us an offer, if we are next to it
        answer = self._lookup.answer(asker, question, now)
        if answer.welcome:
            self._links.admission.promise(asker, now, leaf=question.leaf)
        self._notify(Subsystem.ROUTING, RouteReply(event.way, answer))

    def _look_up_ended(self, look_up: LookUp | None, outcome: RouteSucceeded | RouteFailed | None, now: float) -> None:
        """A look-up has ended; without an outcome if that was lost."""
        match look_up, outcome:
            case "place", RouteSucceeded(peer=answerer, message=SuccessorFound() as found):
                self._place_found(answerer, found, now)
            case "place", _:
                self._see_to_place(now)
            case "search", RouteSucceeded(peer=answerer, message=SuccessorFound() as found):
                self._search_answered(answerer, found, now)
            case "search", _:
                self._fingers.found((), now)
                self._set_search(now)
            case _:
                pass  # it was not ours, or has ended before

    # --- offers and rejections ----------------------------------------------------------------------------------------

    def _on_offered(self, event: Offered, now: float) -> None:
        if event.peer.peer_id in self._blocked:
            self._reject(event.peer, FULL)  # which is no news to it, and names it others
            return
        self._passive.heard(event.peer.peer_id, event.peer.version)
        self._look_for_crowd(now)
        match Refuse("leaving") if self._leaving else self._links.offered(event, now):
            case Admit(loser, occupant):
                if loser is None:
                    self._hand_over(occupant, now)
                else:
                    self._give_way(loser, occupant, now)
            case Refuse(reason):
                self._reject(event.peer, reason)
            case Replace(reason):
                self._close(event.peer.peer_id, reason)
            case None:
                pass

    def _on_rejected(self, event: Rejected, now: float) -> None:
        slot = self._links.rejected(event, now)
        if slot is not None:
            self._drop(event.peer, event.reason)
            self._attempt_ended(event.peer, slot, event.reason)

    # --- what the application and other cores want --------------------------------------------------------------------

    def _on_connect(self, call: int, peer: PeerId, now: float) -> None:
        slot = self._slots.get(peer)
        if self._leaving:
            self._reply([call], MeshClosed("the mesh is being left"))
        elif peer == self._me:
            self._reply([call], PeerUnreachable("a peer has no link to itself"))
        elif slot is not None and slot.state is State.OPEN:
            slot.pinned = True
            self._reply([call])
        else:
            self._pins.wait(call, peer, now)
            self._passive.learn((peer,), "wanted", now)
            self._follow(self._links.pin(peer, now), now)

    def _on_disconnect(self, call: int, peer: PeerId, now: float) -> None:
        """End the link to a peer, the attempt at it, and all that waits for one."""
        reason = "we have blocked it" if peer in self._blocked else "we were told to disconnect"
        slot, due = self._slots.get(peer), self._slots.due_to(peer)
        if due is not None:
            due.next_occupant = None
        if slot is not None and slot.state in ATTEMPTS:
            self._end_attempt(peer, slot, reason, now)
        elif slot is not None:
            slot.pinned = False
            if slot.state is State.OPEN:
                self._close(peer, reason)
        if peer in self._blocked:
            self._passive.forget(peer)
        self._reply(self._pins.settle(peer), PeerUnreachable(f"no link to {short(peer)}: {reason}"))
        self._reply([call])
        self._links.policy.filling.reset()
        if not self._leaving and not self._slots.are(State.OPEN, State.ANSWERING):
            self._notify(Subsystem.SIGNALING, FindPeers())

    def _on_merge_started(self, until: float, now: float) -> None:
        self._slots.merging_until = until
        self._passive.forgive()
        self._fingers.settle_for_less(until)
        self._set_search(now)

    def _on_leave(self, now: float) -> None:
        self._leaving = True
        self._timers, self._calls = Timers(), CallTable(0, 0.0)
        self._reply(self._pins.settle_all(), MeshClosed("the mesh is being left"))
        for peer in self._slots.are(State.OPEN):  # all are told before any is closed: they are told of each other
            alternatives = self._links.alternatives(peer)
            if self._slots[peer].version == 0:
                self._say_evicted(peer, "leaving", alternatives, now)
            else:
                self._send((peer,), Goodbye(reason="left the mesh", peers=alternatives))
        for peer, slot in list(self._slots.items()):
            slot.next_occupant = None
            if slot.state is State.OPEN:
                self._close(peer, "we left the mesh")
            elif slot.state in ATTEMPTS:
                self._slots.pop(peer, None)
                self._drop(peer, "we leave the mesh")

    # --- slots: taken, handed on, freed -------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        """Dial what is missing, and come back when there may be more to do."""
        self._unbalanced = False
        for peer in self._pins.overdue(now):
            self._follow(self._links.pin(peer, now, again=True), now)
        moment = self._pins.next_overdue()
        if self._links.can_dial():
            while (step := self._links.step(now)) is not None:
                self._follow(step, now)
            moment = min(moment, self._links.policy.look_again)
        if moment < math.inf:
            self._timers.set("balance", max(moment, now))
        else:
            self._timers.cancel("balance")
        if self._fingers.slots_changed(displaced=self._displaced, now=now):
            self._set_search(now)
        self._displaced = False

    def _follow(self, step: Step | None, now: float) -> None:
        match step:
            case Dial(peer):
                self._dial(peer, now)
            case Swap(loser, peer):
                self._give_way(loser, self._links.occupant(peer), now)
            case Ask(peer):
                if self._allow_unverified:
                    self._notify(Subsystem.SIGNALING, RejectOffer(peer, INITIATOR_CONFLICT))
            case GiveUp(peer, reason):
                self._reply(self._pins.settle(peer), PeerUnreachable(f"no link to {short(peer)}: {reason}"))
            case None:
                pass

    def _dial(self, peer: PeerId, now: float, *, made_room: bool = False) -> None:
        purpose = self._links.dial(peer, now, made_room=made_room)
        self._notify(Subsystem.SIGNALING, SetLinkPurpose(peer, purpose, is_besieged=self._links.policy.is_besieged()))
        self._effects.append(WantLink(peer))

    def _reject(self, remote: RemotePeer, reason: RejectReason) -> None:
        alternatives = self._links.reject(remote)
        self._notify(Subsystem.SIGNALING, RejectOffer(remote.peer_id, reason, alternatives))

    def _give_way(self, loser: PeerId, occupant: Occupant, now: float) -> None:
        """Let `occupant` have the slot of `loser`: at once if that is an attempt, else when its link is down."""
        slot = self._slots[loser]
        if slot.state in ATTEMPTS:
            self._end_attempt(loser, slot, "given up for another peer", now)
            self._hand_over(occupant, now)
            return
        slot.next_occupant = occupant
        if slot.state is State.OPEN:
            self._say_evicted(loser, "make_room", self._links.evict(loser, occupant), now)
            self._close(loser, "given up for another peer")

    def _end_attempt(self, peer: PeerId, slot: Slot, reason: str, now: float) -> None:
        self._links.cancel(peer, now)
        self._drop(peer, reason)
        self._notify(Subsystem.SIGNALING, RejectOffer(peer, CANCELLED if slot.state is State.DIALING else FULL))

    def _hand_over(self, occupant: Occupant, now: float) -> None:
        offer = occupant.offer
        if offer is not None:
            self._links.answer(occupant, offer, now)
            self._effects.append(AcceptOffer(offer.peer, offer.description))
        elif self._links.can_dial():
            self._dial(occupant.peer, now, made_room=True)
        else:
            self._reply(self._pins.settle(occupant.peer), PeerUnreachable("no signaling service is up"))

    def _say_evicted(self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...], now: float) -> None:
        self._send((peer,), ReconnectionData(reason=reason, peers=alternatives, timestamp=int(self._wall(now) * 1000)))

    def _close(self, peer: PeerId, reason: str) -> None:
        self._links.close(self._slots[peer], reason)
        self._drop(peer, reason)

    def _give_up_spare(self, peer: PeerId) -> None:
        """The link was one of the ring, which is closed without it: the lower id gives it up, unless it is wanted."""
        slot = self._slots[peer]
        if slot.state is State.OPEN and not slot.pinned and peer not in self._slots.ring() and self._me < peer:
            self._unbalanced = True
            self._counts.superfluous += 1
            self._close(peer, "the ring is closed without this link")

    # --- the ring -----------------------------------------------------------------------------------------------------

    def _ring_changed(self, now: float) -> None:
        if self._leaving:
            return
        self._tell_soon(now)
        self._see_to_place(now)
        self._fingers.links_changed(now)
        self._set_search(now)

    def _look_for_crowd(self, now: float) -> None:
        crowd, size = self._slots.crowd, self._lists.size_elsewhere()
        if crowd.look(self._passive.met(), size, now):
            self._emit(EclipseSuspected(crowd.size, crowd.mesh_size))
            self._lists.refresh(now)
            self._unbalanced = True
        if not self._links.policy.is_besieged():
            for peer in self._slots.crowded():
                if not self._slots[peer].pinned:
                    self._close(peer, "it crowds around our id")

    def _tell_soon(self, now: float) -> None:
        if "tell" not in self._timers:
            self._timers.set("tell", now + self._config.tell_delay * self._rng.uniform(0.7, 1.3))

    def _tell_changes(self) -> None:
        size = self._lists.new_size()
        if size is not None:
            for subsystem in (Subsystem.ROUTING, Subsystem.RECEIPTS, Subsystem.ISLANDS):
                self._notify(subsystem, MeshSize(size))
        row = (*reversed(self._lists.predecessors), *self._lists.successors)
        if row != self._row_told:
            self._row_told = row
            self._notify(Subsystem.KADEMLIA, PeersFound(row, "ring"))
        news = self._stabilisation.changes()
        if news is not None:
            self._send(*news)

    def _stabilise(self, now: float) -> None:
        for peer, check in self._stabilisation.checks():
            self._send((peer,), check)
        if self._slots.links():
            self._timers.set("stabilise", now + self._config.stabilise_every * self._rng.uniform(0.9, 1.1))

    # --- our place ----------------------------------------------------------------------------------------------------

    def _see_to_place(self, now: float) -> None:
        """While our neighbours on the ring are not sure, our place is looked for."""
        if self._join.is_placed():
            self._timers.cancel("place")
            self._join.placed()
        elif "place" not in self._timers and "place" not in self._calls.values():
            self._timers.set("place", now + self._join.delay(self._rng))

    def _look_for_place(self, now: float) -> None:
        if self._join.is_placed() or not self._slots.members():
            return
        self._look_up("place", self._join.question(), now)
        if self._join.wants_services():
            self._notify(Subsystem.SIGNALING, FindPeers())

    def _place_found(self, answerer: PeerId, found: SuccessorFound, now: float) -> None:
        if self._join.is_leaf:
            if found.welcome and not self._slots.is_link(answerer):
                self._unbalanced |= self._links.policy.far_found((answerer,), now)
        else:
            near = self._join.next_to_us(answerer, found)
            self._learn_strangers(near or [answerer], "ring", now)
        self._learn((answerer, *found.successors, *found.predecessors), "hearsay", now)
        self._see_to_place(now)

    # --- long links ---------------------------------------------------------------------------------------------------

    def _set_search(self, now: float) -> None:
        """See when the next key is to be looked up, if any."""
        at = self._fingers.next_search(now)
        if at is None:
            self._timers.cancel("search")
        else:
            self._timers.set("search", at)

    def _search(self, now: float) -> None:
        question = self._fingers.question(now)
        if question is not None:
            self._look_up("search", question, now)
        self._set_search(now)

    def _search_answered(self, answerer: PeerId, found: SuccessorFound, now: float) -> None:
        peers = self._fingers.found(((answerer,) if found.welcome else ()) + found.vacant, now)
        if peers:
            self._unbalanced |= self._links.policy.far_found(peers, now)
        self._learn((answerer,), "hearsay", now)
        self._set_search(now)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _look_up(self, look_up: LookUp, question: FindSuccessor, now: float) -> None:
        """Ask the peer nearest to a key."""
        call, timeout = self._calls.open(look_up, now), self._config.search_timeout
        route = Route(Subsystem.OVERLAY, call, question.key, question, nearest=True, answered=True, timeout=timeout)
        crowd = tuple(self._slots.crowded())
        self._notify(Subsystem.ROUTING, structs.replace(route, avoid=crowd) if crowd else route)

    def _learn(self, peers: Iterable[PeerId], source: Said, now: float) -> None:
        others = tuple(dict.fromkeys(peer for peer in peers if peer != self._me))
        is_news = bool(others) and self._passive.learn(others, source, now)
        if source == "bootstrap" and not self._slots.are(State.OPEN):
            self._passive.wake(others[:1])  # one link leads to the others
            is_news = True
        if is_news:
            self._links.policy.filling.reset()
            self._unbalanced = True

    def _learn_strangers(self, peers: Iterable[PeerId], source: Said, now: float) -> None:
        self._learn([peer for peer in peers if not self._slots.is_link(peer)], source, now)

    def _send(self, peers: tuple[PeerId, ...], message: Message) -> None:
        self._effects.append(SendFrame(peers, message, urgent=True))

    def _notify(self, subsystem: Subsystem, notice: Input) -> None:
        self._effects.append(Notify(subsystem, notice))

    def _emit(self, event: Event) -> None:
        self._effects.append(Emit(event))

    def _drop(self, peer: PeerId, reason: str) -> None:
        self._effects.append(DropLink(peer, reason))

    def _reply(self, calls: list[int], error: MeshError | None = None) -> None:
        self._effects.extend(Reply(call, error=error) for call in calls)
