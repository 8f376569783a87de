"""Signaling: joining the services, and bringing offers and answers to their peers, each with its proof.

A mesh may use several signaling services at once; they are equal. A service is *down*, *joining* or *joined*. It is joined
once it answers with `bootstrap_peers`, or has not refused for `join_grace`: the original's server answers nothing to the
first peer. While we have fewer links than we want, joins are repeated, ever more rarely: each brings fresh peers and
announces us again.

Offers and answers are signed on their way out and checked on their way in (`p2pmesh.protocols.handshake`), so all that
the topology and the link layer see has been checked. A service is not trusted: what it forges may waste an attempt of
ours, but never ends in a link to somebody else, and a false answer does not end an attempt.

Takes: ServiceUp, ServiceDown, Signaled, LocalSignal, RejectOffer, AskForOffer, FindPeers, LinkUp, LinkDown, LinkLost, Leave.
Gives: SendSignaling, ServiceRefused, FeedSignal,
Tell(TOPOLOGY, ServiceUp and ServiceDown (joined, and no more) | Offered | Rejected),
Tell(TOPOLOGY and ROUTING, PeersFound | PeerGone),
Emit(TransportUp | TransportDown | PeerFailed).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any, assert_never

from attrs import define, frozen

from p2pmesh.config import MeshConfig
from p2pmesh.events import TransportDown, TransportUp
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    AskForOffer,
    Effects,
    Emit,
    FindPeers,
    Input,
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    LocalSignal,
    PeerGone,
    PeersFound,
    Rejected,
    RejectOffer,
    SendSignaling,
    ServiceDown,
    ServiceRefused,
    ServiceUp,
    Signaled,
    Subsystem,
    Tell,
    WallClock,
)
from p2pmesh.protocols.handshake import sign_join
from p2pmesh.protocols.introductions import Introductions, Recent
from p2pmesh.protocols.timers import Backoff, Timers
from p2pmesh.wire import signaling as wire
from p2pmesh.wire.messages import Signal

REJOIN_FIRST = 5.0
"""Seconds until a join is repeated while links are missing: longer than attempts usually take. The original's advice."""

_NOT_FOUND = re.compile(r"Peer ([0-9a-f]{40}) not found")
_REPLACED = "Another client joined with your ID"  # the original's server has texts only


_ADVICE = {
    "bad_join": "is its version of the protocol ours?",
    "bad_token": "set MeshConfig.join_token to the token that it wants",
    "clock_skew": "set this machine's clock",
    "id_taken": "use another identity, or the one that this id belongs to",
    "replaced": "give each running peer an identity of its own",
    "full": "try again later, or another service",
}
"""What to do about a refusal, by its code."""


class _Phase(Enum):
    DOWN = "down"
    JOINING = "joining"
    JOINED = "joined"


@define
class _Service:
    """A signaling service, as far as we know."""

    phase: _Phase = _Phase.DOWN
    told_up: bool | None = None
    """What the application heard of it last."""
    answered: bool = False
    """Whether it answered our first join: the original's server may not."""


@frozen
class _Timer:
    kind: str
    transport: str = ""


class SignalingCore:
    """The signaling of one peer: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._config = config
        self._rng = rng
        self._wall = wall
        self._services: dict[str, _Service] = {}
        self._timers = Timers[_Timer]()
        self._links: dict[PeerId, None] = {}
        self._rejoins = 0
        self._last_join = -REJOIN_FIRST
        self._routes = Recent[tuple[str, ...]](config.signaling.remembered_peers)
        self._counts = Counter[str]()
        self._introductions = Introductions(identity, config, self._counts)
        self._leaving = False

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        if self._leaving:
            return []
        match event:
            case ServiceUp():
                return self._on_service_up(event.transport, now)
            case ServiceDown():
                return self._on_service_down(event.transport, event.reason)
            case Signaled():
                return self._on_signaled(event.transport, event.message, now)
            case LocalSignal():
                return self._on_local_signal(event.peer, event.signal)
            case RejectOffer():
                return self._on_reject_offer(event)
            case AskForOffer():
                ask = wire.SignalRejected(
                    to=event.peer, from_=self._me, reason="initiator_conflict", correct_initiator=event.peer
                )
                return self._send(event.peer, ask)
            case FindPeers():
                self._timers.set(_Timer("refresh"), max(now, self._last_join + REJOIN_FIRST))
                return []
            case LinkUp():
                self._links[event.peer.peer_id] = None
                self._introductions.close(event.peer.peer_id)
                if len(self._links) >= self._config.max_peers:
                    self._timers.cancel(_Timer("rejoin"))
                return []
            case LinkDown():
                self._links.pop(event.peer, None)
                self._seek_peers_again(now)
                return []
            case LinkLost():
                self._introductions.close(event.peer)
                return []
            case Leave():
                return self._on_leave()
            case _:
                return []

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        effects: Effects = []
        for timer in self._timers.pop_due(now):
            match timer.kind:
                case "grace":
                    effects += self._on_joined(timer.transport, now)
                case "again":
                    if not self._services[timer.transport].answered:
                        effects += self._join(timer.transport, now)
                case "refresh":
                    effects += self._join_all(now)
                case "rejoin":
                    self._rejoins += 1
                    effects += self._join_all(now)
                    self._arm_rejoin(now)
                case _:
                    raise AssertionError(timer)
        return effects

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "services": {name: service.phase.value for name, service in self._services.items()},
            "remembered_peers": len(self._routes),
            "own_offers": len(self._introductions.own),
            "heard_offers": len(self._introductions.heard),
            **{name: self._counts[name] for name in sorted(self._counts)},
        }

    # --- services -----------------------------------------------------------------------------------------------------

    def _on_service_up(self, transport: str, now: float) -> Effects:
        service = self._services.setdefault(transport, _Service())
        service.phase = _Phase.JOINING
        service.answered = False
        self._timers.cancel(_Timer("again", transport))
        self._timers.set(_Timer("grace", transport), now + self._config.signaling.join_grace)
        return self._join(transport, now)

    def _on_service_down(self, transport: str, reason: str) -> Effects:
        service = self._services.setdefault(transport, _Service())
        effects: Effects = []
        if service.phase is _Phase.JOINED:
            effects.append(Tell(Subsystem.TOPOLOGY, ServiceDown(transport, reason)))
        if service.told_up is not False:
            effects.append(Emit(TransportDown(transport, reason)))
        service.phase, service.told_up = _Phase.DOWN, False
        self._timers.cancel(_Timer("grace", transport))
        self._timers.cancel(_Timer("again", transport))
        return effects

    def _on_joined(self, transport: str, now: float) -> Effects:
        service = self._services[transport]
        if service.phase is not _Phase.JOINING:
            return []
        service.phase = _Phase.JOINED
        self._timers.cancel(_Timer("grace", transport))
        if not service.answered:
            # The first peer on the original's server hears nothing, and one whose older socket the server is about to
            # forget is forgotten with it. Once more, then, as its peers advise.
            self._timers.set(_Timer("again", transport), now + self._rng.uniform(0.5, 1.0))
        self._seek_peers_again(now)
        effects: Effects = [Tell(Subsystem.TOPOLOGY, ServiceUp(transport))]
        if not service.told_up:
            service.told_up = True
            effects.append(Emit(TransportUp(transport)))
        return effects

    def _join(self, transport: str, now: float) -> Effects:
        self._last_join = now
        self._counts["joins"] += 1
        wall_ms = int(self._wall(now) * 1000)
        join = sign_join(self._identity, self._config.room, wall_ms, token=self._config.join_token)
        return [SendSignaling(transport, join)]

    def _join_all(self, now: float) -> Effects:
        return [effect for name in self._joined() for effect in self._join(name, now)]

    def _joined(self) -> list[str]:
        return [name for name, service in self._services.items() if service.phase is _Phase.JOINED]

    def _seek_peers_again(self, now: float) -> None:
        self._rejoins = 0
        self._arm_rejoin(now)

    def _arm_rejoin(self, now: float) -> None:
        if len(self._links) < self._config.max_peers and self._joined():
            backoff = Backoff(REJOIN_FIRST, self._config.signaling.rejoin_every)
            self._timers.set(_Timer("rejoin"), now + backoff.delay(self._rejoins + 1, self._rng))

    def _on_leave(self) -> Effects:
        self._leaving = True
        self._timers = Timers()
        return [SendSignaling(name, wire.Leave(peer_id=self._me)) for name in self._joined()]

    # --- from the services --------------------------------------------------------------------------------------------

    def _on_signaled(self, transport: str, message: wire.SignalingMessage, now: float) -> Effects:
        service = self._services.get(transport)
        if service is None or service.phase is _Phase.DOWN:
            return self._ignore("after_down")
        match message:
            case wire.BootstrapPeers():
                service.answered = True
                found = tuple(known.id for known in message.peers)
                return [*self._on_joined(transport, now), *self._found(transport, found, "bootstrap")]
            case wire.PeerJoined():
                return self._found(transport, (message.peer_id,), "joined")
            case wire.PeerLeft():
                return self._on_peer_left(transport, message.peer_id)
            case wire.ServiceError():
                return self._on_error(transport, service, message)
            case wire.PeerSignal() | wire.PeerSignals() | wire.ConnectionRejected() | wire.SignalRejected():
                return self._on_relayed(transport, message, now)
            case wire.Join() | wire.Leave():
                return self._ignore("unexpected")
            case _:
                assert_never(message)

    def _found(self, transport: str, peers: tuple[PeerId, ...], source: str) -> Effects:
        others = tuple(peer for peer in peers if peer != self._me)
        for peer in others:
            self._seen(peer, transport)
        return _hint(PeersFound(others, source)) if others else []

    def _on_peer_left(self, transport: str, peer: PeerId) -> Effects:
        if peer == self._me:
            return self._ignore("from_ourselves")
        left = self._unseen(peer, transport)
        return [] if left else _hint(PeerGone(peer))

    def _on_error(self, transport: str, service: _Service, error: wire.ServiceError) -> Effects:
        missing = _NOT_FOUND.search(error.message)
        code = error.code or ("not_found" if missing else "replaced" if _REPLACED in error.message else None)
        self._counts[f"error_{code}" if code in wire.ERROR_CODES else "error_other"] += 1
        if code == "not_found":
            peer = error.to or (PeerId(missing[1]) if missing else None)
            return [] if peer is None else self._on_not_found(transport, peer)
        joining = service.phase is _Phase.JOINING
        if code not in wire.JOIN_REFUSALS or not (joining or code in {"replaced", "id_taken"}):
            return []
        said = f" (it says {error.message!r:.200})" if error.message else ""
        reason = f"{transport} refused us: {wire.ERROR_CODES[code]}; {_ADVICE[code]}{said}"
        return [ServiceRefused(transport, reason), *self._on_service_down(transport, reason)]

    def _on_not_found(self, transport: str, peer: PeerId) -> Effects:
        """The peer of an offer is not on this service: it may be on another."""
        self._unseen(peer, transport)
        own = self._introductions.own.get(peer)
        if own is not None and own.answered_by is None:
            other = self._way_to(peer, without=own.tried)
            if other is not None:
                own.tried.append(other)
                return [SendSignaling(other, wire.PeerSignal(to=peer, from_=self._me, signal=own.signed))]
        self._introductions.close(peer)
        return [Tell(Subsystem.TOPOLOGY, Rejected(peer, "not found"))]

    # --- from other peers, by way of a service ------------------------------------------------------------------------

    def _on_relayed(
        self,
        transport: str,
        message: wire.PeerSignal | wire.PeerSignals | wire.ConnectionRejected | wire.SignalRejected,
        now: float,
    ) -> Effects:
        sender = message.from_
        if sender is None:
            return self._ignore("without_sender")
        if sender == self._me:
            return self._ignore("from_ourselves")
        if message.to not in {None, self._me}:
            return self._ignore("for_others")
        self._seen(sender, transport)
        effects = self._on_joined(transport, now)  # a service brings nothing to those whom it has not let in
        match message:
            case wire.PeerSignal():
                return [*effects, *self._hear(transport, sender, message.signal, now)]
            case wire.PeerSignals():
                for signal in message.signals:
                    effects += self._hear(transport, sender, signal, now)
                return effects
            case wire.ConnectionRejected():
                alternatives = tuple(peer for peer in message.alternative_peers or () if peer != self._me)
                self._introductions.close(sender)
                return [*effects, Tell(Subsystem.TOPOLOGY, Rejected(sender, message.reason, alternatives))]
            case wire.SignalRejected():
                self._introductions.close(sender)
                instead = message.correct_initiator == self._me
                reason = message.reason or "initiator_conflict"
                return [*effects, Tell(Subsystem.TOPOLOGY, Rejected(sender, reason, offer_instead=instead))]
            case _:
                assert_never(message)

    def _hear(self, transport: str, sender: PeerId, signal: Signal, now: float) -> Effects:
        return self._introductions.hear(transport, sender, signal, now, linked=sender in self._links)

    # --- to other peers -----------------------------------------------------------------------------------------------

    def _on_local_signal(self, peer: PeerId, signal: Signal) -> Effects:
        transport = self._way_to(peer)
        if transport is None:
            self._counts["unsendable"] += 1
            return [Tell(Subsystem.TOPOLOGY, Rejected(peer, "no signaling service is up"))]
        signed = self._introductions.sign(peer, signal, transport, len(self._links))
        if signed is None:
            return [Tell(Subsystem.TOPOLOGY, Rejected(peer, "its offer is no longer known"))]
        return [SendSignaling(transport, wire.PeerSignal(to=peer, from_=self._me, signal=signed))]

    def _on_reject_offer(self, event: RejectOffer) -> Effects:
        self._introductions.close(event.peer)
        self._counts["offers_rejected"] += 1
        return self._send(event.peer, self._introductions.rejection(event.peer, event.reason, event.alternatives))

    def _send(self, peer: PeerId, message: wire.SignalingMessage) -> Effects:
        transport = self._way_to(peer)
        if transport is None:
            self._counts["unsendable"] += 1
            return []
        return [SendSignaling(transport, message)]

    def _way_to(self, peer: PeerId, without: list[str] | None = None) -> str | None:
        """The service on which the peer was seen last, else any: it may be there unseen."""
        joined = [name for name in self._joined() if name not in (without or ())]
        seen = [name for name in reversed(self._routes.get(peer) or ()) if name in joined]
        return next(iter((*seen, *joined)), None)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _seen(self, peer: PeerId, transport: str) -> None:
        others = tuple(name for name in self._routes.get(peer) or () if name != transport)
        self._routes.put(peer, (*others, transport))

    def _unseen(self, peer: PeerId, transport: str) -> tuple[str, ...]:
        """Forget that the peer was on this service; gives those that are left."""
        left = tuple(name for name in self._routes.get(peer) or () if name != transport)
        if left:
            self._routes.put(peer, left)
        else:
            self._routes.pop(peer)
        return left

    def _ignore(self, why: str) -> Effects:
        self._counts[f"ignored_{why}"] += 1
        return []


def _hint(hint: PeersFound | PeerGone) -> Effects:
    """Who is there concerns those who link and those who route."""
    return [Tell(Subsystem.TOPOLOGY, hint), Tell(Subsystem.ROUTING, hint)]
