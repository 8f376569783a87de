"""Signaling: joining the services, and bringing offers and answers to their peers, each with its proof.

WebRTC leaves signaling to the application (RFC 8825, section 3); the proofs are ours, after RFC 8827's advice to bind a
session to an identity by its fingerprints.

A mesh may use several signaling services at once; they are equal, and needed by newcomers above all: with one link into
the mesh, the mesh itself is asked for peers, and offers go through it. The overlay may still ask for fresh peers.

Cores and our own wire know descriptions as facts; only services carry their text. What comes by a service is checked
here: a service is not trusted, and what it forges may waste an attempt of ours, but never ends in a link to somebody
else, and a false answer does not end an attempt. What comes over a route was signed by its origin, description and all.

Inputs: ServiceUp, ServiceDown, Signaled, RoutedReceived, RouteSucceeded, RouteFailed, LocalSignal,
  SetLinkPurpose, RejectOffer, PingViaService, RouteHint, FindPeers, LinkUp, LinkDown, LinkLost, Leave.
Effects: SendSignaling, ServiceRefused, ServiceUnanswering, FeedSignal, Emit (TransportUp, TransportDown, PeerFailed);
  Notify to routing (Route, RouteReply, CancelRoute), overlay (ServiceUp and ServiceDown (of joined services only),
  Offered, Rejected, PeersFound, PeerGone) and islands (ServicePeers, SeenViaService).
Messages: all that a service sends, `join` and `leave`; in packets `offer`, `answer` and `link_rejected`.
Config: SignalingConfig; `max_peers`, `room`, `join_token`; `allow_unverified` and `ice_servers` of LinkConfig.
State: the links, and purposes of links (`remembered_offers`); the parts name theirs, and their bounds.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from attrs import asdict, define

from p2pmesh.config import MeshConfig
from p2pmesh.events import PeerFailed, TransportDown, TransportUp
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    Effects,
    Emit,
    FeedSignal,
    Notify,
    SendSignaling,
    ServiceRefused,
    ServiceUnanswering,
    WallClock,
)
from p2pmesh.protocols.inputs import (
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    LocalSignal,
    PeerGone,
    PeersFound,
    RemotePeer,
    ServiceDown,
    ServiceUp,
    Signaled,
    Source,
    Subsystem,
)
from p2pmesh.protocols.notices import (
    CANCELLED,
    INITIATOR_CONFLICT,
    NOT_FOUND,
    CancelRoute,
    FindPeers,
    Input,
    Offered,
    PingViaService,
    Rejected,
    RejectOffer,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteHint,
    RouteReply,
    RouteSucceeded,
    SeenViaService,
    ServicePeers,
    SetLinkPurpose,
    Sighting,
)
from p2pmesh.protocols.signaling.delivery import ByMesh, ByService, Lost, OfferDelivery, OwnOffer, Step, ToService
from p2pmesh.protocols.signaling.handshake import mark_of, sign_offer
from p2pmesh.protocols.signaling.offer_answer import AnswerHeard, Decision, Feed, OfferAnswer, Response
from p2pmesh.protocols.signaling.service_sessions import (
    Change,
    Closed,
    Opened,
    SendJoin,
    ServicePings,
    ServiceSessions,
    Unanswering,
)
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.wire import signaling as wire
from p2pmesh.wire.messages import (
    PROTOCOL_VERSION,
    Answer,
    Candidate,
    Description,
    Facts,
    IceCandidate,
    LinkRejected,
    Offer,
    Signal,
)
from p2pmesh.wire.sdp import write_candidate

_NOT_FOUND = re.compile(r"Peer ([0-9a-f]{40}) not found")
_REPLACED = "Another client joined with your ID"  # the original's server has texts only


@define
class SignalingCounts:
    """Messages that have no place here, and those that no service could bring."""

    ignored: int = 0
    unsendable: int = 0
    untold_candidates: int = 0


class SignalingCore:
    """The signaling of one peer: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._network = config.network
        self._config = config
        self._wall = wall
        self._links: dict[PeerId, int] = {}
        """Neighbours, with their versions."""
        self._sessions = ServiceSessions(identity, config, rng, wall)
        self._pings = ServicePings()
        self._delivery = OfferDelivery(config, self._sessions.joined_services)
        self._offers = OfferAnswer(identity, config)
        self._purposes = LruTable[SetLinkPurpose](config.signaling.remembered_offers)
        self._counts = SignalingCounts()
        self._errors = dict.fromkeys((*wire.ERROR_CODES, "other"), 0)
        """Errors of services, by their codes; those that we don't know count as one."""
        self._leaving = False
        self._effects: Effects = []

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        if self._leaving:
            return []
        match event:
            case ServiceUp():
                self._apply([self._sessions.up(event.transport, now)], now)
            case ServiceDown():
                self._apply([self._sessions.down(event.transport, event.reason)], now)
            case Signaled():
                self._on_signaled(event.transport, event.message, now)
            case RoutedReceived():
                self._on_routed_received(event, now)
            case RouteSucceeded():
                self._on_route_succeeded(event, now)
            case RouteFailed():
                self._carry_out(self._delivery.unrouted(event.call, event.reason, now), now)
            case LocalSignal():
                self._on_local_signal(event.peer, event.signal, now)
            case SetLinkPurpose():
                self._purposes.put(event.peer, event)
            case RejectOffer():
                self._on_reject_offer(event, now)
            case PingViaService():
                self._on_ping_via_service(event.peer)
            case RouteHint():
                self._on_route_hint(event, now)
            case FindPeers():
                self._sessions.refresh(now)
            case LinkUp():
                self._on_link_up(event.peer, now)
            case LinkDown():
                self._on_link_down(event, now)
            case LinkLost():
                self._on_link_lost(event.peer, now)
            case Leave():
                self._on_leave()
            case _:
                return []
        return self._take()

    def next_deadline(self) -> float:
        if self._leaving:
            return math.inf
        return min(self._sessions.next_deadline(), self._delivery.next_deadline())

    def expire(self, now: float) -> Effects:
        if self._leaving:
            return []
        self._apply(self._sessions.expire(now), now)
        self._carry_out(self._delivery.expire(now), now)
        return self._take()

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "services": self._sessions.phases(),
            "joins": self._sessions.joins,
            "errors": dict(self._errors),
            "messages": asdict(self._counts),
            "delivery": self._delivery.snapshot(),
            "offer_answer": self._offers.snapshot(),
            "pings": self._pings.snapshot(),
        }

    def _take(self) -> Effects:
        effects, self._effects = self._effects, []
        return effects

    # --- from the services --------------------------------------------------------------------------------------------

    def _on_signaled(self, transport: str, message: wire.SignalingMessage, now: float) -> None:
        if not self._sessions.is_open(transport):
            self._counts.ignored += 1
            return
        self._sessions.heard(transport)
        match message:
            case wire.BootstrapPeers():
                self._on_bootstrap_peers(transport, tuple(known.id for known in message.peers), now)
            case wire.PeerJoined():
                self._found(transport, (message.peer_id,), "joined")
            case wire.PeerLeft():
                self._on_peer_left(transport, message.peer_id)
            case wire.ServiceError():
                self._on_error(transport, message, now)
            case (
                wire.PeerSignal() | wire.PeerSignals() | wire.ConnectionRejected() | wire.SignalRejected() | wire.Ack()
            ):
                self._on_relayed(transport, message, now)
            case wire.Join() | wire.Leave():
                self._counts.ignored += 1
            case _:
                assert_never(message)

    def _on_bootstrap_peers(self, transport: str, peers: tuple[PeerId, ...], now: float) -> None:
        others = tuple(peer for peer in peers if peer != self._me)
        let_us_in = not self._sessions.is_joined(transport)  # else we only asked for more peers
        self._apply(self._sessions.answered(transport, now), now)
        self._found(transport, others, "bootstrap")
        if others and let_us_in:
            self._tell(Subsystem.ISLANDS, ServicePeers(transport, others))

    def _on_peer_left(self, transport: str, peer: PeerId) -> None:
        if peer != self._me and not self._delivery.unseen(peer, transport):
            self._tell(Subsystem.OVERLAY, PeerGone(peer))

    def _on_error(self, transport: str, error: wire.ServiceError, now: float) -> None:
        missing = _NOT_FOUND.search(error.message)
        code = error.code or ("not_found" if missing else "replaced" if _REPLACED in error.message else "other")
        self._errors[code if code in self._errors else "other"] += 1
        if code == "not_found":
            peer = error.to or (PeerId(missing[1]) if missing else None)
            if peer is not None:
                self._on_not_found(transport, peer, now)
            return
        if error.later_than is not None and (join := self._sessions.outdated(transport, error.later_than, now)):
            self._apply([join], now)
            return
        refusal = self._sessions.failed(transport, code, error.message)
        if refusal is not None:
            self._effects.append(ServiceRefused(transport, refusal))
            self._apply([self._sessions.down(transport, refusal)], now)

    def _on_not_found(self, transport: str, peer: PeerId, now: float) -> None:
        """A peer that we sent something is not on this service: it may be on another."""
        steps = self._delivery.not_found(peer, transport, now)
        self._carry_out(steps or (), now)
        if peer in self._pings:
            if self._pings.not_found(peer, transport):
                self._tell(Subsystem.ISLANDS, SeenViaService(peer, Sighting.ABSENT))
        elif steps is None and self._may_end(peer, transport):
            self._close(peer, now)
            self._tell(Subsystem.OVERLAY, Rejected(peer, NOT_FOUND))

    def _may_end(self, peer: PeerId, transport: str) -> bool:
        """Whether a service that does not know this peer has a say in what is under way."""
        heard = self._offers.live(peer)
        return heard is None or heard.came == ByService(transport)

    def _on_relayed(
        self,
        transport: str,
        message: wire.PeerSignal | wire.PeerSignals | wire.ConnectionRejected | wire.SignalRejected | wire.Ack,
        now: float,
    ) -> None:
        """A message of another peer, by way of a service."""
        sender = message.from_
        if sender is None or sender == self._me or message.to not in {None, self._me}:
            self._counts.ignored += 1
            return
        self._delivery.seen(sender, transport)
        came = ByService(transport)
        self._apply(self._sessions.joined(transport, now), now)  # a service brings nothing to peers it has not let in
        match message:
            case wire.PeerSignal():
                self._hear(came, sender, (message.signal,), now)
            case wire.PeerSignals():
                self._hear(came, sender, message.signals, now)
            case wire.ConnectionRejected():
                rejected = Rejected(sender, message.reason, message.alternative_peers or ())
                self._hear_rejection(transport, rejected, message.about, now)
            case wire.SignalRejected():
                instead = message.correct_initiator == self._me
                rejected = Rejected(sender, message.reason or INITIATOR_CONFLICT, offer_instead=instead)
                self._hear_rejection(transport, rejected, None, now)
            case wire.Ack():
                self._on_ack(came, sender, now, answers=message.answers)
            case _:
                assert_never(message)

    def _on_ack(self, came: ByService, sender: PeerId, now: float, *, answers: bool) -> None:
        """A ping of another peer, or the answer to ours."""
        if answers and self._pings.pong(sender):
            self._delivery.reached(sender, came, now)
            self._tell(Subsystem.ISLANDS, SeenViaService(sender, Sighting.ANSWERED))
        elif not answers and self._pings.answers(sender, now):
            self._delivery.reached(sender, came, now)
            pong = wire.Ack(to=sender, from_=self._me, answers=True)
            self._effects.append(SendSignaling(came.transport, pong))

    # --- from other peers, through the mesh ---------------------------------------------------------------------------

    def _on_routed_received(self, event: RoutedReceived, now: float) -> None:
        sender, came = event.peer.peer_id, ByMesh(event.way)
        if sender == self._me or not (event.peer.verified or self._config.links.allow_unverified):
            self._counts.ignored += 1
            return
        match event.message:
            case Offer(description=description, links=links, purpose=purpose) if description.is_offer:
                if not self._offers.is_excess(came, sender, now):
                    offered = Offered(event.peer, description, links, purpose)
                    self._obey(self._offers.hear_offer(came, offered, now), now)
            case LinkRejected(reason=reason, alternative_peers=others, about=about):
                self._hear_rejection(None, Rejected(sender, reason, others), about, now)
            case _:
                self._counts.ignored += 1

    def _on_route_succeeded(self, event: RouteSucceeded, now: float) -> None:
        """A reply to an offer of ours; its packet names the offer's, and its origin signed it."""
        own = self._delivery.routed(event.call)
        if own is None:
            return
        match event.message:
            case Answer(description=description) if not description.is_offer:
                self._obey(AnswerHeard(own, RemotePeer(event.peer, True, PROTOCOL_VERSION), description), now)
            case LinkRejected(reason=reason, alternative_peers=others):
                self._hear_rejection(None, Rejected(event.peer, reason, others), own.mark, now)
            case _:
                self._counts.ignored += 1

    # --- from our own link layer --------------------------------------------------------------------------------------

    def _on_local_signal(self, peer: PeerId, signal: Facts, now: float) -> None:
        if isinstance(signal, IceCandidate):
            self._trickle(peer, signal)
            return
        if signal.is_offer:
            self._offer(peer, signal, now)
            return
        response = self._offers.answer(peer, signal)
        if response is None:
            self._tell(Subsystem.OVERLAY, Rejected(peer, "its offer is no longer known"))
            return
        self._carry_out(self._delivery.close(peer), now)  # its offer has taken the place of ours
        self._respond(response, now)

    def _trickle(self, peer: PeerId, candidate: IceCandidate) -> None:
        """Tell a late candidate by a service; one that can't be told is one address less."""
        heard, own, text = self._offers.live(peer), self._delivery.own(peer), write_candidate(candidate)
        came = heard.came if heard is not None else ByService(own.service) if own is not None and own.service else None
        service = came.transport if isinstance(came, ByService) else self._delivery.service_for(peer, without=[])
        if service is None or text is None or (heard is None and own is None):
            self._counts.untold_candidates += 1
            return
        trickled = Candidate(candidate=f"candidate:{text}", sdp_m_line_index=0)
        signal = Signal(type="candidate", candidate=trickled)
        self._effects.append(SendSignaling(service, wire.PeerSignal(to=peer, from_=self._me, signal=signal)))

    def _offer(self, peer: PeerId, description: Description, now: float) -> None:
        said = self._purposes.pop(peer)
        links = len(self._links) if said is None or not said.is_besieged else 0
        offer = Offer(description=description, links=links, purpose=None if said is None else said.purpose)
        came = self._delivery.way_to(peer, now)
        way, first = (came.way, None) if isinstance(came, ByMesh) else (None, came.transport if came else None)
        self._carry_out(self._delivery.send(OwnOffer(peer, offer, mark_of(description), way, first), now), now)

    # --- from other cores ---------------------------------------------------------------------------------------------

    def _on_reject_offer(self, event: RejectOffer, now: float) -> None:
        peer = event.peer
        if event.reason == INITIATOR_CONFLICT:
            self._ask_for_offer(peer)
            return
        own = self._delivery.own(peer)
        if event.reason == CANCELLED and own is not None:
            self._carry_out(self._delivery.take_back(own, now), now)
        response = self._offers.reject(peer, event.reason, event.alternatives)
        self._close(peer, now)
        if response is not None:
            self._respond(response, now)

    def _ask_for_offer(self, peer: PeerId) -> None:
        """Ask a peer of the original to make the offer: only a service can bring that."""
        service = self._delivery.service_for(peer, without=[])
        if service is None:
            self._counts.unsendable += 1
            return
        ask = wire.SignalRejected(to=peer, from_=self._me, reason=INITIATOR_CONFLICT, correct_initiator=peer)
        self._effects.append(SendSignaling(service, ask))

    def _on_ping_via_service(self, peer: PeerId) -> None:
        services = tuple(self._sessions.joined_services)
        self._pings.ping(peer, services)
        self._effects += [SendSignaling(service, wire.Ack(to=peer, from_=self._me)) for service in services]

    def _on_route_hint(self, event: RouteHint, now: float) -> None:
        for peer in event.peers:
            self._delivery.reached(peer, ByMesh(ReturnPath(peer, "", (peer, *event.path))), now)

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        peer = remote.peer_id
        self._links[peer] = remote.version
        self._delivery.link_up(remote)
        self._sessions.seek(now, wanted=self._wants_services())
        if self._delivery.was_brought_by_service(peer):
            self._tell(Subsystem.ISLANDS, SeenViaService(peer, Sighting.LINKED))
        self._close(peer, now)

    def _on_link_down(self, event: LinkDown, now: float) -> None:
        self._links.pop(event.peer, None)
        self._delivery.link_down(event.peer)
        self._sessions.seek(now, wanted=self._wants_services())
        if not self._links and event.timed_out is not None:
            self._apply(self._sessions.doubt(now), now)

    def _on_link_lost(self, peer: PeerId, now: float) -> None:
        own = self._delivery.own(peer)
        # An original that once offered us a link, and never heard of us, takes no offer until it is told something.
        if self._config.links.allow_unverified and own is not None and own.service and own.answered_by is None:
            self._carry_out(self._delivery.take_back(own, now), now)
        self._close(peer, now)

    def _wants_services(self) -> bool:
        """Whether links have to come by way of services: with one link into the mesh, the mesh itself can be asked."""
        return not self._delivery.into_mesh and len(self._links) < self._config.max_peers

    def _on_leave(self) -> None:
        self._leaving = True
        self._effects += [SendSignaling(name, wire.Leave(peer_id=self._me)) for name in self._sessions.joined_services]

    # --- what the parts decided ---------------------------------------------------------------------------------------

    def _hear(self, came: ByService, sender: PeerId, signals: Iterable[Signal], now: float) -> None:
        for signal in signals:
            own, linked = self._delivery.own(sender), sender in self._links
            self._obey(self._offers.hear(came, sender, signal, own, now, linked=linked), now)

    def _obey(self, verdict: Decision, now: float) -> None:
        match verdict:
            case None:
                pass
            case Offered(peer=remote):
                self._delivery.heard(remote)
                self._tell(Subsystem.OVERLAY, verdict)
            case AnswerHeard(own, remote, answer):
                self._carry_out(self._delivery.answered(own, remote), now)
                self._effects.append(FeedSignal(remote, answer))
                self._effects += [FeedSignal(remote, candidate) for candidate in own.early]
            case Feed(remote, candidate):
                self._effects.append(FeedSignal(remote, candidate))
            case Response():
                self._respond(verdict, now)
            case PeerFailed():
                self._effects.append(Emit(verdict))
            case _:
                assert_never(verdict)

    def _hear_rejection(self, transport: str | None, rejected: Rejected, about: bytes | None, now: float) -> None:
        own = self._delivery.own(rejected.peer)
        turned_down = self._offers.hear_rejection(transport, rejected, about, own)
        if turned_down is None:
            return
        if turned_down.ends:
            self._close(rejected.peer, now)
        self._tell(Subsystem.OVERLAY, turned_down.rejected)

    def _found(self, transport: str, peers: tuple[PeerId, ...], source: Source) -> None:
        others = tuple(peer for peer in peers if peer != self._me)
        for peer in others:
            self._delivery.seen(peer, transport)
        if others:
            self._tell(Subsystem.OVERLAY, PeersFound(others, source))

    def _close(self, peer: PeerId, now: float) -> None:
        """No attempt with this peer is under way any more."""
        self._offers.close(peer)
        self._carry_out(self._delivery.close(peer), now)

    def _respond(self, response: Response, now: float) -> None:
        """Say something to an offer, the way that it came."""
        peer, came, message, changed = response
        if isinstance(came, ByMesh):
            if changed:
                self._carry_out(self._delivery.tell(peer, message, came.way, now), now)
            else:
                self._tell(Subsystem.ROUTING, RouteReply(came.way, message))
            return
        service = came.transport if came and self._sessions.is_joined(came.transport) else None
        service = service or self._delivery.service_for(peer, without=[])
        if service is None:
            self._counts.unsendable += 1
        else:
            self._effects.append(SendSignaling(service, self._offers.served(peer, message)))

    def _carry_out(self, steps: Iterable[Step], now: float) -> None:
        for step in steps:
            match step:
                case ToService(transport, own, taken_back):
                    self._effects.append(SendSignaling(transport, self._served(own, taken_back=taken_back)))
                case Route() | CancelRoute():
                    self._tell(Subsystem.ROUTING, step)
                case Lost(own, reason):
                    self._lost(own, reason, now)
                case _:
                    assert_never(step)

    def _served(self, own: OwnOffer, *, taken_back: bool) -> wire.PeerSignal | wire.ConnectionRejected:
        if taken_back:
            return self._offers.served(own.to, LinkRejected(reason=CANCELLED, about=own.mark))
        signal = sign_offer(self._identity, own.to, own.offer, network=self._network)
        return wire.PeerSignal(to=own.to, from_=self._me, signal=signal)

    def _lost(self, own: OwnOffer, reason: str, now: float) -> None:
        """No way is left for an offer of ours."""
        peer = own.to
        if self._offers.live(peer) is None:  # else theirs, which has come since, may still be answered
            self._close(peer, now)
            self._tell(Subsystem.OVERLAY, Rejected(peer, reason))

    def _apply(self, changes: Iterable[Change], now: float) -> None:
        """Tell of services that come and go."""
        for change in changes:
            match change:
                case SendJoin(transport, join):
                    self._effects.append(SendSignaling(transport, join))
                case Opened(transport, is_news):
                    self._tell(Subsystem.OVERLAY, ServiceUp(transport))
                    self._carry_out(self._delivery.service_up(now), now)
                    if is_news:
                        self._effects.append(Emit(TransportUp(transport)))
                case Closed(transport, reason, was_joined, is_news):
                    if was_joined:
                        self._tell(Subsystem.OVERLAY, ServiceDown(transport, reason))
                    if is_news:
                        self._effects.append(Emit(TransportDown(transport, reason)))
                    self._carry_out(self._delivery.service_down(transport, now), now)
                case Unanswering(transport):
                    self._effects.append(ServiceUnanswering(transport))
                case _:
                    assert_never(change)

    def _tell(self, subsystem: Subsystem, notice: Input) -> None:
        self._effects.append(Notify(subsystem, notice))
