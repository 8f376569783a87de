"""Signaling: joining the services, and bringing offers and answers to their peers, each with its proof.

A mesh may use several signaling services at once; they are equal. A service is *down*, *joining* or *joined*. It is joined
once it answers with `bootstrap_peers`, or has not refused for `join_grace`: the original's server answers nothing to the
first peer. While we have no link into the mesh, joins are repeated, ever more rarely: each brings fresh peers and
announces us again. With one link the mesh itself is asked, and offers go through it (`p2pmesh.protocols.signaling.delivery`), so that
services are not needed any more; the topology may still ask for fresh peers.

Offers and answers are signed on their way out and checked on their way in (`p2pmesh.protocols.signaling.handshake`), so all that
the topology and the link layer see has been checked. A service is not trusted: what it forges may waste an attempt of
ours, but never ends in a link to somebody else, and a false answer does not end an attempt. What comes over a route was
signed by its origin, who counts as the sender whatever else the message says.

Takes: ServiceUp, ServiceDown, Signaled, RoutedReceived, RouteSucceeded, RouteFailed, Received, LocalSignal, SetLinkPurpose, RejectOffer, AskForOffer,
FindPeers, PingViaService, RouteHint, LinkUp, LinkDown, LinkLost, Leave.
Gives: SendSignaling, ServiceRefused, FeedSignal, SendFrame(RelayFailure), Notify(ROUTING, Route | CancelRoute),
Notify(OVERLAY, ServiceUp and ServiceDown (joined, and no more) | Offered | Rejected | PeersFound | PeerGone),
Notify(ISLANDS, ServicePeers | ServicePong | PingedViaService | LinkedViaService),
Emit(TransportUp | TransportDown | PeerFailed).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, assert_never

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Effects, Notify, SendFrame, SendSignaling
from p2pmesh.protocols.inputs import (
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    LocalSignal,
    PeerGone,
    PeersFound,
    Received,
    ServiceDown,
    ServiceUp,
    Signaled,
    Source,
    Subsystem,
)
from p2pmesh.protocols.notices import (
    INITIATOR_CONFLICT,
    NOT_FOUND,
    AskForOffer,
    FindPeers,
    Input,
    PingViaService,
    Rejected,
    RejectOffer,
    RoutedReceived,
    RouteFailed,
    RouteHint,
    RouteSucceeded,
    ServicePeers,
    SetLinkPurpose,
)
from p2pmesh.protocols.signaling.delivery import ByMesh, ByService, Came, Kind, OutgoingSignal, SignalDelivery
from p2pmesh.protocols.signaling.offer_answer import MAX_ALTERNATIVES, OfferAnswer
from p2pmesh.protocols.signaling.service_probes import ServiceProbes
from p2pmesh.protocols.signaling.service_sessions import ServiceSessions
from p2pmesh.protocols.util.lru_table import LruTable
from p2pmesh.protocols.util.rate_limiter import RateLimiter
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire import signaling as wire
from p2pmesh.wire.fields import MAX_SIGNALS_IN_BATCH
from p2pmesh.wire.messages import LinkRejected, RelayBatch, RelayFailure, RelaySignal, Signal

_NOT_FOUND = re.compile(r"Peer ([0-9a-f]{40}) not found")
_REPLACED = "Another client joined with your ID"  # the original's server has texts only

LOOP, TOO_LONG, NOT_FOR_YOU = "Relay loop detected", "Relay path too long", "Peer not connected"
"""Reasons of `relay_failure`, in the original's words."""
MOST_RELAYS = 3
"""Peers of the original that a signal passes."""


class SignalingCore:
    """The signaling of one peer: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._config = config
        self._wall = wall
        self._timers = Timers[PeerId]()
        """Of batches of candidates."""
        self._links: dict[PeerId, int] = {}
        """Neighbours, with their versions."""
        self._counts = Counter[str]()
        self._ways = SignalDelivery(config.signaling, self._counts, self._on_lost)
        self._joining = ServiceSessions(identity, config, rng, wall, self._ways, self._counts)
        self._introductions = OfferAnswer(identity, config, self._ways, self._counts)
        self._probes = ServiceProbes(self._me, config.signaling, self._ways, self._counts)
        self._batches = LruTable[list[Signal]](config.signaling.remembered_offers)
        self._purposes = LruTable[str](config.signaling.remembered_offers)
        self._refusals = RateLimiter(config.max_peers, 1.0, 10.0)
        self._leaving = False

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        if self._leaving:
            return []
        match event:
            case ServiceUp():
                return self._joining.up(event.transport, now)
            case ServiceDown():
                return self._joining.down(event.transport, event.reason)
            case Signaled():
                return self._on_signaled(event.transport, event.message, now)
            case RoutedReceived():
                return self._on_routed(event, now)
            case RouteSucceeded():
                self._ways.arrived(event.call)
                return []
            case RouteFailed():
                return self._ways.unrouted(event.call, event.reason)
            case Received():
                return self._on_received(event, now)
            case LocalSignal():
                return self._on_local_signal(event.peer, event.signal, now)
            case SetLinkPurpose():
                self._purposes.put(event.peer, event.purpose)
                return []
            case RejectOffer():
                return self._on_reject_offer(event)
            case AskForOffer():
                return self._on_ask_for_offer(event.peer)
            case PingViaService():
                return self._probes.ask(event.peer)
            case RouteHint():
                return self._probes.acquainted(event, now)
            case FindPeers():
                self._joining.refresh(now)
                return []
            case LinkUp() | LinkDown() | LinkLost():
                return self._on_link(event, now)
            case Leave():
                return self._on_leave()
            case _:
                return []

    def next_deadline(self) -> float:
        return min(self._timers.next_deadline(), self._joining.next_deadline())

    def expire(self, now: float) -> Effects:
        effects = self._joining.expire(now)
        for peer in self._timers.pop_due(now):
            effects += self._send_batch(peer, now)
        return effects

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "services": self._joining.phases(),
            **self._ways.snapshot(),
            **self._introductions.snapshot(),
            **self._probes.snapshot(),
            **{name: self._counts[name] for name in sorted(self._counts)},
        }

    def _on_leave(self) -> Effects:
        self._leaving = True
        self._timers = Timers()
        self._joining.end()
        return [SendSignaling(name, wire.Leave(peer_id=self._me)) for name in self._ways.services]

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link(self, event: LinkUp | LinkDown | LinkLost, now: float) -> Effects:
        match event:
            case LinkUp():
                peer = event.peer.peer_id
                self._links[peer] = event.peer.version
                self._ways.link_up(event.peer)
                self._joining.seek(now, wanted=self._wants_services())
                told = self._ways.tell_strange(peer)
                return [*told, *self._ways.answered(peer), *self._introductions.close(peer)]
            case LinkDown():
                self._links.pop(event.peer, None)
                self._ways.link_down(event.peer)
                self._joining.seek(now, wanted=self._wants_services())
                return []
            case LinkLost():
                return [*self._introductions.tell_silent(event.peer), *self._introductions.close(event.peer)]

    def _wants_services(self) -> bool:
        """Whether links have to come by way of services: with one link into the mesh, the mesh itself can be asked."""
        return not self._ways.into_mesh and len(self._links) < self._config.max_peers

    # --- from the services --------------------------------------------------------------------------------------------

    def _on_signaled(self, transport: str, message: wire.SignalingMessage, now: float) -> Effects:
        if not self._joining.is_open(transport):
            return self._ignore("after_down")
        match message:
            case wire.BootstrapPeers():
                found = tuple(known.id for known in message.peers if known.id != self._me)
                fresh = bool(found) and not self._joining.is_joined(transport)  # else we only asked for more peers
                named = [Notify(Subsystem.ISLANDS, ServicePeers(transport, found))] if fresh else []
                return [*self._joining.answered(transport, now), *self._found(transport, found, "bootstrap"), *named]
            case wire.PeerJoined():
                return self._found(transport, (message.peer_id,), "joined")
            case wire.PeerLeft():
                return self._on_peer_left(transport, message.peer_id)
            case wire.ServiceError():
                return self._on_error(transport, message)
            case (
                wire.PeerSignal() | wire.PeerSignals() | wire.ConnectionRejected() | wire.SignalRejected() | wire.Ack()
            ):
                return self._on_relayed(transport, message, now)
            case wire.Join() | wire.Leave():
                return self._ignore("unexpected")
            case _:
                assert_never(message)

    def _found(self, transport: str, peers: tuple[PeerId, ...], source: Source) -> Effects:
        others = tuple(peer for peer in peers if peer != self._me)
        for peer in others:
            self._ways.seen(peer, transport)
        return [Notify(Subsystem.OVERLAY, PeersFound(others, source))] if others else []

    def _on_peer_left(self, transport: str, peer: PeerId) -> Effects:
        if peer == self._me:
            return self._ignore("from_ourselves")
        left = self._ways.unseen(peer, transport)
        return [] if left else [Notify(Subsystem.OVERLAY, PeerGone(peer))]

    def _on_error(self, transport: str, error: wire.ServiceError) -> Effects:
        missing = _NOT_FOUND.search(error.message)
        code = error.code or ("not_found" if missing else "replaced" if _REPLACED in error.message else None)
        self._counts[f"error_{code}" if code in wire.ERROR_CODES else "error_other"] += 1
        if code == "not_found":
            peer = error.to or (PeerId(missing[1]) if missing else None)
            return [] if peer is None else self._on_not_found(transport, peer)
        return self._joining.failed(transport, code, error.message)

    def _on_not_found(self, transport: str, peer: PeerId) -> Effects:
        """The peer of an offer is not on this service: it may be on another."""
        if self._probes.is_out(peer):
            return [*(self._ways.not_found(peer, transport) or ()), *self._probes.not_found(peer, transport)]
        effects = self._ways.not_found(peer, transport)
        if effects is not None or self._introductions.answering(peer):
            return effects or []
        return [*self._introductions.close(peer), Notify(Subsystem.OVERLAY, Rejected(peer, NOT_FOUND))]

    # --- from other peers, by way of a service ------------------------------------------------------------------------

    def _on_relayed(
        self,
        transport: str,
        message: wire.PeerSignal | wire.PeerSignals | wire.ConnectionRejected | wire.SignalRejected | wire.Ack,
        now: float,
    ) -> Effects:
        sender = message.from_
        if sender is None:
            return self._ignore("without_sender")
        if sender == self._me:
            return self._ignore("from_ourselves")
        if message.to not in {None, self._me}:
            return self._ignore("for_others")
        self._ways.seen(sender, transport)
        came = ByService(transport)
        effects = self._joining.joined(transport, now)  # a service brings nothing to those whom it has not let in
        match message:
            case wire.PeerSignal():
                return [*effects, *self._hear(came, sender, message.signal, now)]
            case wire.PeerSignals():
                for signal in message.signals:
                    effects += self._hear(came, sender, signal, now)
                return effects
            case wire.ConnectionRejected():
                rejected = Rejected(sender, message.reason, message.alternative_peers or ())
                return effects + self._introductions.hear_rejection(came, rejected, message.about)
            case wire.SignalRejected():
                instead = message.correct_initiator == self._me
                rejected = Rejected(sender, message.reason or INITIATOR_CONFLICT, offer_instead=instead)
                return effects + self._introductions.hear_rejection(came, rejected, None)
            case wire.Ack():
                return effects + self._probes.hear(came, sender, now, answers=message.answers)
            case _:
                assert_never(message)

    # --- from other peers, through the mesh ---------------------------------------------------------------------------

    def _on_routed(self, event: RoutedReceived, now: float) -> Effects:
        sender, came = event.peer.peer_id, ByMesh(event.way)
        if sender == self._me:
            return self._ignore("from_ourselves")
        if not event.peer.verified and not self._config.links.allow_unverified:
            return self._ignore("unverified_origins")
        match event.message:
            case RelaySignal(from_=named) | RelayBatch(from_=named) if named != sender:
                return self._ignore("in_others_names")
            case RelaySignal(to=receiver) if receiver != self._me:
                return self._ignore("for_others")
            case RelaySignal(signal=signal):
                return self._hear(came, sender, signal, now)
            case RelayBatch(signals=signals):
                return [effect for signal in signals for effect in self._hear(came, sender, signal, now)]
            case LinkRejected() as rejected:
                said = Rejected(sender, rejected.reason, rejected.alternative_peers)
                return self._introductions.hear_rejection(came, said, rejected.about)
            case _:
                return self._ignore("unexpected")

    def _on_received(self, event: Received, now: float) -> Effects:
        """Something that should have come over a route came from a neighbour, as the original's peers send it."""
        match event.message:
            case LinkRejected(alternative_peers=peers):
                others = tuple(peer for peer in peers if peer != self._me)[:MAX_ALTERNATIVES]
                return [Notify(Subsystem.OVERLAY, PeersFound(others, "rejection"))] if others else []
            case RelaySignal() as relayed if self._links.get(event.peer) == 0:
                self._counts["relays_refused"] += 1
                if not self._refusals.take(event.peer, now):
                    return []
                wall_ms = int(self._wall(now) * 1000)
                return [SendFrame((event.peer,), _refusal(relayed, event.peer, self._me, wall_ms))]
            case _:
                return self._ignore("unrouted")

    def _hear(self, came: Came, sender: PeerId, signal: Signal, now: float) -> Effects:
        return self._introductions.hear(came, sender, signal, now, linked=sender in self._links)

    # --- to other peers -----------------------------------------------------------------------------------------------

    def _on_local_signal(self, peer: PeerId, signal: Signal, now: float) -> Effects:
        match signal.type:
            case "offer":
                letter = self._introductions.offer(peer, signal, len(self._links), self._purposes.pop(peer))
                return self._ways.send(letter.along(self._probes.way_to(peer, now)))
            case "answer":
                answer = self._introductions.answer(peer, signal)
                if answer is None:
                    return [Notify(Subsystem.OVERLAY, Rejected(peer, "its offer is no longer known"))]
                return self._ways.send(answer)
            case "candidate":
                return self._on_local_candidate(peer, signal, now)
            case _:
                return self._ignore("own_signals")

    def _on_local_candidate(self, peer: PeerId, candidate: Signal, now: float) -> Effects:
        """Candidates come in swarms: they wait for each other a little, and travel together."""
        batch = self._batches.get(peer)
        if batch is None:
            batch = []
            self._batches.put(peer, batch)
            self._timers.set(peer, now + self._config.signaling.batch_delay)
        batch.append(candidate)
        enough = min(self._config.signaling.batch_size, MAX_SIGNALS_IN_BATCH)
        return self._send_batch(peer, now) if len(batch) >= enough else []

    def _send_batch(self, peer: PeerId, now: float) -> Effects:
        self._timers.cancel(peer)
        batch = self._batches.pop(peer)
        letter = self._introductions.candidates(peer, tuple(batch or ()), int(self._wall(now) * 1000))
        if not batch or letter is None:
            return self._ignore("late_candidates")
        self._counts["batched"] += len(batch)
        return self._ways.send(letter)

    def _on_reject_offer(self, event: RejectOffer) -> Effects:
        letters = self._introductions.rejections(event.peer, event.reason, event.alternatives)
        closed = self._introductions.close(event.peer)
        return [*closed, *(effect for letter in letters for effect in self._ways.send(letter))]

    def _on_ask_for_offer(self, peer: PeerId) -> Effects:
        ask = wire.SignalRejected(to=peer, from_=self._me, reason=INITIATOR_CONFLICT, correct_initiator=peer)
        return self._ways.send_served(peer, ask)

    def _on_lost(self, letter: OutgoingSignal, reason: str) -> Effects:
        """No way is left for an offer or answer of ours."""
        if letter.kind is Kind.OFFER and self._introductions.answering(letter.to):
            again = self._introductions.offer_again(letter)
            return [] if again is None else self._ways.send(again)
        return [*self._introductions.close(letter.to), Notify(Subsystem.OVERLAY, Rejected(letter.to, reason))]

    def _ignore(self, why: str) -> Effects:
        self._counts[f"ignored_{why}"] += 1
        return []


def _refusal(relayed: RelaySignal, sender: PeerId, me: PeerId, wall_ms: int) -> RelayFailure:
    """What tells a peer of the original that we relay nothing for it: its peers would throw away what we pass on."""
    path = relayed.relay_path
    reason = LOOP if me in path else TOO_LONG if len(path) >= MOST_RELAYS else NOT_FOR_YOU
    return RelayFailure(from_=me, to=sender, target_peer=relayed.to, reason=reason, timestamp=wall_ms)
