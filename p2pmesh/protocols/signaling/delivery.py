"""How an offer gets to its peer, through the mesh or by a signaling service, and the next way where one fails.

An offer goes through the mesh while we have a link into it, else by the service that knows the peer, else by any other:
each is tried once. Through the mesh it is a request, and the answer or the rejection is the reply: routing repeats it,
another way each time, and replies walk back the path of the copy that came. So only offers need ways: what answers one
goes back where it came from, and does so again if it comes again.

A way has failed when routing says so, in `mesh_timeout` or a little later; when a service says that the peer
is not there; or when the service itself is down. An offer without any way left is lost, and the overlay hears of it at
once, instead of waiting until the attempt's time is over. An offer may arrive twice, by two ways.

In: offers, outcomes of routes, links, where peers were seen. Out: `Step`s, which the core carries out. State: one offer
for each of `remembered_offers` peers, at most `SignalingConfig.routes` routes, and where and how `remembered_peers`
peers were seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from attrs import asdict, define, field
from msgspec import Struct

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import CANCELLED, NOT_FOUND, CancelRoute, ReturnPath, Route
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.protocols.util.window import CallTable
from p2pmesh.wire.fields import MAX_REASON
from p2pmesh.wire.messages import IceCandidate, LinkRejected, Message, Offer

NO_WAY = "no way to it: no signaling service is up, and no link leads into the mesh"
REACHED_FOR: Final = 20.0
"""Seconds for which it is remembered how a peer was reached: until it is dialed, once or twice."""


class ByService(Struct, frozen=True):
    """A signal came by this service."""

    transport: str


class ByMesh(Struct, frozen=True):
    """A signal came through the mesh, and this is the way back."""

    way: ReturnPath


Came: TypeAlias = ByService | ByMesh


@define(eq=False)
class OwnOffer:
    """An offer of ours, until its attempt ends."""

    to: PeerId
    offer: Offer
    mark: bytes
    way: ReturnPath | None = None
    """The recorded way through the mesh, if it has one."""
    first: str | None = None
    """The service to be tried before all else."""
    call: int | None = None
    """Of the route that is under way."""
    through_mesh: bool = False
    """Whether that way was tried."""
    services: list[str] = field(factory=list)
    """Those that were tried, the last one last."""
    answered_by: RemotePeer | None = None
    early: list[IceCandidate] = field(factory=list)
    """Candidates that came before the answer."""
    candidates: int = 0
    """That came."""
    failure: str = ""
    """What became of the last way that failed."""

    @property
    def service(self) -> str | None:
        """The service that has it, unless it is on its way through the mesh."""
        return self.services[-1] if self.services and self.call is None else None


class ToService(NamedTuple):
    """Give a service this offer, or tell by it that the offer is taken back."""

    transport: str
    offer: OwnOffer
    taken_back: bool = False


class Lost(NamedTuple):
    """No way is left for this offer."""

    offer: OwnOffer
    reason: str


Step: TypeAlias = ToService | Route | CancelRoute | Lost


@define
class OfferCounts:
    """Offers: all, those that were answered through the mesh, went to a service first, or had no way left."""

    sent: int = 0
    mesh: int = 0
    service: int = 0
    lost: int = 0
    fallbacks: int = 0
    """That the mesh did not bring."""


class OfferDelivery:
    """The ways to other peers, and the offers that are on them."""

    def __init__(self, config: MeshConfig, services: Mapping[str, None]) -> None:
        """Make one; `services` is a view of those that have let us in."""
        signaling = config.signaling
        self._services = services
        self._mesh: dict[PeerId, None] = {}
        """Neighbours that pass our messages on."""
        self._seen = LruTable[tuple[str, ...]](signaling.remembered_peers)
        """The services that each peer was seen on, the latest last."""
        self._originals = LruTable[None](signaling.remembered_peers)
        self._reached = LruTable[tuple[Came, float]](signaling.remembered_offers)
        """How peers were reached lately, and until when that counts."""
        self._open = LruTable[OwnOffer](signaling.remembered_offers)
        self._timeout = signaling.mesh_timeout + config.links.gathering_timeout * bool(config.links.ice_servers)
        self._routes = CallTable[OwnOffer | None](signaling.routes, self._timeout)
        """None for what nobody waits for."""
        self._counts = OfferCounts()

    def snapshot(self) -> dict[str, Any]:
        return {
            "remembered_peers": len(self._seen),
            "reached": len(self._reached),
            "open": len(self._open),
            "routes": len(self._routes),
            "lost_routes": self._routes.lost,
            "offers": asdict(self._counts),
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

    # --- offers -------------------------------------------------------------------------------------------------------

    def own(self, peer: PeerId) -> OwnOffer | None:
        """Our offer to this peer."""
        return self._open.get(peer)

    def send(self, offer: OwnOffer, now: float) -> list[Step]:
        """Send an offer by the best way. It takes the place of any other to the same peer."""
        steps = self.close(offer.to)
        self._counts.sent += 1
        self._open.put(offer.to, offer)
        return steps + self._next_or_lost(offer, now)

    def answered(self, offer: OwnOffer, remote: RemotePeer) -> list[Step]:
        """Its answer has come."""
        offer.answered_by = remote
        self.heard(remote)
        return self._cancel(offer)

    def was_brought_by_service(self, peer: PeerId) -> bool:
        """Whether our offer did not come through the mesh, and did by a service."""
        offer = self._open.get(peer)
        return offer is not None and offer.through_mesh and bool(offer.services)

    def close(self, peer: PeerId) -> list[Step]:
        """The attempt is over: what is under way to this peer is not to be tried any further."""
        offer = self._open.pop(peer)
        return [] if offer is None else self._cancel(offer)

    def take_back(self, offer: OwnOffer, now: float) -> list[Step]:
        """Tell its peer that an offer counts no more, by the way that it went."""
        if offer.service is not None:
            return [ToService(offer.service, offer, taken_back=True)]
        return self.tell(offer.to, LinkRejected(reason=CANCELLED, about=offer.mark), offer.way, now)

    def tell(self, peer: PeerId, message: Message, way: ReturnPath | None, now: float) -> list[Step]:
        """Bring a peer something through the mesh that nobody waits to have arrived, nor looks for it everywhere.

        It saves the peer a slot that it holds for an attempt; where it does not come, the offer has mostly not, either.
        """
        if self._routes.is_full:
            return []
        call = self._routes.open(None, now)
        return [Route(Subsystem.SIGNALING, call, peer, message, way=way, timeout=self._timeout, doubtful=True)]

    # --- what becomes of them -----------------------------------------------------------------------------------------

    def routed(self, call: int) -> OwnOffer | None:
        """A route has come to its end. The offer that it brought, if that is still wanted."""
        offer = self._routes.close(call)
        if offer is not None:
            offer.call = None
            self._counts.mesh += 1
        return offer

    def unrouted(self, call: int, reason: str, now: float) -> list[Step]:
        """A route has failed."""
        return self._fall_back(self._routes.close(call), reason, now)

    def not_found(self, peer: PeerId, transport: str, now: float) -> list[Step] | None:
        """The peer is not on this service. None if that concerns no offer of ours."""
        self.unseen(peer, transport)
        offer = self._open.get(peer)
        if offer is None:
            return None
        if offer.answered_by is not None or offer.service != transport:
            return []
        offer.failure = NOT_FOUND
        return self._next_or_lost(offer, now)

    def service_down(self, transport: str, now: float) -> list[Step]:
        """A service is gone. What we gave it last may never arrive: that goes another way, if there is one."""
        steps: list[Step] = []
        for offer in self._open.values():
            if offer.service == transport and offer.answered_by is None:
                steps += self._next(offer, now) or []
                offer.services.remove(transport)
        return steps

    def service_up(self, now: float) -> list[Step]:
        """A service is there: offers that wait for one go by it."""
        waiting = [offer for offer in self._open.values() if not (offer.services or offer.call or offer.answered_by)]
        return [step for offer in waiting for step in self._next(offer, now) or ()]

    def next_deadline(self) -> float:
        return self._routes.next_deadline()

    def expire(self, now: float) -> list[Step]:
        """Give up routes of whose outcome nothing was heard."""
        overdue = self._routes.pop_overdue(now).values()
        return [step for offer in overdue for step in self._fall_back(offer, "nothing was heard of it", now)]

    # --- ways ---------------------------------------------------------------------------------------------------------

    def _fall_back(self, offer: OwnOffer | None, reason: str, now: float) -> list[Step]:
        if offer is None:
            return []
        offer.call = None
        offer.failure = offer.failure or f"no route to it: {reason}"[:MAX_REASON]
        self._counts.fallbacks += 1
        return self._next_or_lost(offer, now)

    def _next_or_lost(self, offer: OwnOffer, now: float) -> list[Step]:
        steps = self._next(offer, now)
        if steps is not None:
            return steps
        self._counts.lost += 1
        self._open.pop(offer.to)
        return [Lost(offer, offer.failure or NO_WAY)]

    def _next(self, offer: OwnOffer, now: float) -> list[Step] | None:
        """Send it the next way; None if there is none left."""
        first = offer.first
        if first is not None and first in self._services and first not in offer.services:
            return self._serve(offer, first)
        may_route = bool(self._mesh) and not offer.through_mesh and not self._routes.is_full
        if may_route and (offer.way is not None or offer.to not in self._originals):
            return self._ask(offer, now)
        service = self.service_for(offer.to, without=offer.services)
        if service is not None:
            return self._serve(offer, service)
        return self._ask(offer, now) if may_route else None  # that it is the original's may be a service's lie

    def _ask(self, offer: OwnOffer, now: float) -> list[Step]:
        call = offer.call = self._routes.open(offer, now)
        offer.through_mesh = True
        route = Route(
            owner=Subsystem.SIGNALING,
            call=call,
            to=offer.to,
            message=offer.offer,
            answered=True,
            way=offer.way,
            timeout=self._timeout,
        )
        return [route]

    def _serve(self, offer: OwnOffer, transport: str) -> list[Step]:
        self._counts.service += not offer.services
        offer.services.append(transport)
        return [ToService(transport, offer)]

    def _cancel(self, offer: OwnOffer) -> list[Step]:
        if offer.call is None:
            return []
        call, offer.call = offer.call, None
        self._routes.close(call)
        return [CancelRoute(Subsystem.SIGNALING, call)]
