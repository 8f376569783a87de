"""How a signal gets to its peer, through the mesh or by a signaling service, and the next way where one fails.

An offer goes through the mesh while we have a link into it, else by the service that knows the peer, else by any other:
each is tried once. An answer or a rejection goes first the way its offer came, since a newcomer can't be found by its
id yet, and a service that brought the offer knows where to bring the answer.

A way has failed when routing says so, which it does in `mesh_timeout` at the latest; when a service says that the peer
is not there; or when the service itself is down. An offer or answer without any way left is lost, and the overlay
hears of it at once, instead of waiting until the attempt's time is over. A signal may arrive twice, by two ways: its
receiver holds it against what it has heard before.

In: signals, outcomes of routes, links, where peers were seen. Out: `Step`s, which the core carries out. State: one
offer or answer for each of `remembered_offers` peers, at most `SignalingConfig.routes` routes, and where and how
`remembered_peers` peers were seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from attrs import asdict, define, field
from msgspec import Struct

from p2pmesh.config import SignalingConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import NOT_FOUND, CancelRoute, ReturnPath, Route
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.protocols.util.window import CallTable
from p2pmesh.wire.fields import MAX_REASON
from p2pmesh.wire.messages import Message
from p2pmesh.wire.signaling import SignalingMessage

NO_WAY = "no way to it: no signaling service is up, and no link leads into the mesh"
REACHED_FOR: Final = 20.0
"""Seconds for which it is remembered how a peer was reached: until it is dialed, once or twice."""


class Kind(Enum):
    """What a signal is, by the name that statistics use."""

    OFFER = "offers"
    ANSWER = "answers"
    REJECTION = "rejections"
    CANDIDATES = "candidates"


class ByService(Struct, frozen=True):
    """A signal came by this service."""

    transport: str


class ByMesh(Struct, frozen=True):
    """A signal came through the mesh, and this is the way back."""

    way: ReturnPath


Came: TypeAlias = ByService | ByMesh


@define(eq=False)
class OutgoingSignal:
    """A signal on its way, as it goes through the mesh and as it goes by a service."""

    to: PeerId
    kind: Kind
    routed: Message
    served: SignalingMessage
    way: ReturnPath | None = None
    """The recorded way through the mesh, if it has one."""
    first: str | None = None
    """The service to be tried before all else."""
    mesh_only: bool = False
    """Whether no service is worth asking."""
    call: int | None = None
    """Of the route that is under way."""
    through_mesh: bool = False
    """Whether that way was tried."""
    services: list[str] = field(factory=list)
    """Those that were tried, the last one last."""
    answered: bool = False
    failure: str = ""
    """What became of the last way that failed."""

    def along(self, came: Came | None) -> OutgoingSignal:
        """Let it go first the way that something came."""
        match came:
            case ByMesh(way):
                self.way = way
            case ByService(transport):
                self.first = transport
            case None:
                pass
        return self

    def after(self, other: OutgoingSignal | None) -> OutgoingSignal:
        """Let it go first the way that another signal went last."""
        if other is not None:
            self.way = other.way
            self.first = other.services[-1] if other.services else other.first
        return self


class ToService(NamedTuple):
    """Give a service this message."""

    transport: str
    message: SignalingMessage


class Lost(NamedTuple):
    """No way is left for this offer or answer."""

    signal: OutgoingSignal
    reason: str


Step: TypeAlias = ToService | Route | CancelRoute | Lost


@define
class KindCounts:
    """Signals of one kind: all, those that arrived through the mesh, went to a service first, or had no way left."""

    sent: int = 0
    mesh: int = 0
    service: int = 0
    lost: int = 0


class SignalDelivery:
    """The ways to other peers, and the signals that are on them."""

    def __init__(self, config: SignalingConfig, services: Mapping[str, None]) -> None:
        """Make one; `services` is a view of those that have let us in."""
        self._services = services
        self._mesh: dict[PeerId, None] = {}
        """Neighbours that pass our messages on."""
        self._seen = LruTable[tuple[str, ...]](config.remembered_peers)
        """The services that each peer was seen on, the latest last."""
        self._originals = LruTable[None](config.remembered_peers)
        self._reached = LruTable[tuple[Came, float]](config.remembered_offers)
        """How peers were reached lately, and until when that counts."""
        self._open = LruTable[OutgoingSignal](config.remembered_offers)
        self._timeout = config.mesh_timeout
        self._routes = CallTable[OutgoingSignal](config.routes, config.mesh_timeout)
        self._counts = {kind: KindCounts() for kind in Kind}
        self._fallbacks = 0

    def snapshot(self) -> dict[str, int | dict[str, int]]:
        return {
            "remembered_peers": len(self._seen),
            "reached": len(self._reached),
            "open": len(self._open),
            "routes": len(self._routes),
            "lost_routes": self._routes.lost,
            "fallbacks": self._fallbacks,
            **{kind.value: asdict(counts) for kind, counts in self._counts.items()},
        }

    # --- what ways there are ------------------------------------------------------------------------------------------

    @property
    def into_mesh(self) -> bool:
        """Whether a neighbour passes our messages on."""
        return bool(self._mesh)

    def link_up(self, remote: RemotePeer) -> None:
        self.heard(remote)
        if remote.is_member:
            self._mesh[remote.peer_id] = None

    def link_down(self, peer: PeerId) -> None:
        self._mesh.pop(peer, None)

    def seen(self, peer: PeerId, transport: str) -> None:
        """The peer is on this service."""
        others = tuple(name for name in self._seen.get(peer) or () if name != transport)
        self._seen.put(peer, (*others, transport))

    def unseen(self, peer: PeerId, transport: str) -> bool:
        """Forget that the peer was on this service. Returns whether it is still on another."""
        left = tuple(name for name in self._seen.get(peer) or () if name != transport)
        if left:
            self._seen.put(peer, left)
        else:
            self._seen.pop(peer)
        return bool(left)

    def heard(self, remote: RemotePeer) -> None:
        """The peer itself said which version it speaks: the mesh does not carry to the original's."""
        if remote.version == 0:
            self._originals.put(remote.peer_id, None)
        else:
            self._originals.pop(remote.peer_id)

    def is_original(self, peer: PeerId) -> bool:
        """Whether it is said to be one of the original's."""
        return peer in self._originals

    def reached(self, peer: PeerId, came: Came, now: float) -> None:
        """Remember how a peer was reached."""
        self._reached.put(peer, (came, now + REACHED_FOR))

    def way_to(self, peer: PeerId, now: float) -> Came | None:
        """How a peer was reached lately."""
        came, until = self._reached.get(peer) or (None, now)
        return came if now < until else None

    def service_for(self, peer: PeerId, without: list[str]) -> str | None:
        """The service on which the peer was seen last, else any: it may be there unseen."""
        left = [name for name in self._services if name not in without]
        seen = [name for name in reversed(self._seen.get(peer) or ()) if name in left]
        return next(iter((*seen, *left)), None)

    # --- signals ------------------------------------------------------------------------------------------------------

    def send(self, signal: OutgoingSignal, now: float) -> list[Step]:
        """Send a signal by the best way. An offer or answer takes the place of any other to the same peer."""
        steps: list[Step] = []
        self._counts[signal.kind].sent += 1
        if signal.kind in {Kind.OFFER, Kind.ANSWER}:
            steps += self.take_back(signal.to)
            self._open.put(signal.to, signal)
        return steps + self._next_or_lost(signal, now)

    def under_way(self, peer: PeerId) -> OutgoingSignal | None:
        """The offer or answer to this peer."""
        return self._open.get(peer)

    def answered(self, peer: PeerId) -> list[Step]:
        """What we sent this peer has evidently come."""
        signal = self._open.get(peer)
        if signal is None:
            return []
        signal.answered = True
        self._counts[signal.kind].mesh += signal.call is not None
        return self._cancel(signal)

    def was_brought_by_service(self, peer: PeerId) -> bool:
        """Whether our offer did not come through the mesh, and did by a service."""
        signal = self._open.get(peer)
        return signal is not None and signal.kind is Kind.OFFER and signal.through_mesh and bool(signal.services)

    def take_back(self, peer: PeerId) -> list[Step]:
        """Whatever is under way to this peer is not to be tried any further."""
        signal = self._open.pop(peer)
        return [] if signal is None else self._cancel(signal)

    # --- what becomes of them -----------------------------------------------------------------------------------------

    def arrived(self, call: int) -> None:
        """A route has come to its end."""
        signal = self._routes.close(call)
        if signal is not None:
            signal.call = None
            self._counts[signal.kind].mesh += 1

    def unrouted(self, call: int, reason: str, now: float) -> list[Step]:
        """A route has failed."""
        signal = self._routes.close(call)
        return [] if signal is None else self._fall_back(signal, reason, now)

    def not_found(self, peer: PeerId, transport: str, now: float) -> list[Step] | None:
        """The peer is not on this service. None if that concerns no signal of ours."""
        self.unseen(peer, transport)
        signal = self._open.get(peer)
        if signal is None:
            return None
        if signal.call is not None or signal.answered or signal.services[-1:] != [transport]:
            return []
        signal.failure = NOT_FOUND
        return self._next_or_lost(signal, now)

    def service_down(self, transport: str, now: float) -> list[Step]:
        """A service is gone. What we gave it last may never arrive: that goes another way, if there is one."""
        steps: list[Step] = []
        for signal in self._open.values():
            if signal.services[-1:] == [transport] and signal.call is None and not signal.answered:
                steps += self._next(signal, now) or []
        return steps

    def next_deadline(self) -> float:
        return self._routes.next_deadline()

    def expire(self, now: float) -> list[Step]:
        """Give up routes of whose outcome nothing was heard."""
        overdue = self._routes.pop_overdue(now)
        return [step for signal in overdue for step in self._fall_back(signal, "nothing was heard of it", now)]

    # --- ways ---------------------------------------------------------------------------------------------------------

    def _fall_back(self, signal: OutgoingSignal, reason: str, now: float) -> list[Step]:
        signal.call = None
        signal.failure = signal.failure or f"no route to it: {reason}"[:MAX_REASON]
        self._fallbacks += 1
        return self._next_or_lost(signal, now)

    def _next_or_lost(self, signal: OutgoingSignal, now: float) -> list[Step]:
        steps = self._next(signal, now)
        if steps is not None:
            return steps
        self._counts[signal.kind].lost += 1
        if self._open.get(signal.to) is not signal:
            return []
        self._open.pop(signal.to)
        return [Lost(signal, signal.failure or NO_WAY)]

    def _next(self, signal: OutgoingSignal, now: float) -> list[Step] | None:
        """Send it the next way; None if there is none left."""
        first = None if signal.mesh_only else signal.first
        if first is not None and first in self._services and first not in signal.services:
            return self._serve(signal, first)
        may_route = bool(self._mesh) and not signal.through_mesh and not self._routes.is_full
        if may_route and (signal.way is not None or signal.to not in self._originals):
            return self._route(signal, now)
        service = None if signal.mesh_only else self.service_for(signal.to, without=signal.services)
        if service is not None:
            return self._serve(signal, service)
        return self._route(signal, now) if may_route else None  # that it is the original's may be a service's lie

    def _route(self, signal: OutgoingSignal, now: float) -> list[Step]:
        signal.call, signal.through_mesh = self._routes.open(signal, now), True
        route = Route(
            owner=Subsystem.SIGNALING,
            call=signal.call,
            to=signal.to,
            message=signal.routed,
            way=signal.way,
            timeout=self._timeout,
        )
        return [route]

    def _serve(self, signal: OutgoingSignal, transport: str) -> list[Step]:
        self._counts[signal.kind].service += not signal.services
        signal.services.append(transport)
        return [ToService(transport, signal.served)]

    def _cancel(self, signal: OutgoingSignal) -> list[Step]:
        if signal.call is None:
            return []
        call, signal.call = signal.call, None
        self._routes.close(call)
        return [CancelRoute(Subsystem.SIGNALING, call)]
