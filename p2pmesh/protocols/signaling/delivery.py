"""Ways: how a signal gets to its peer, through the mesh or by a signaling service, and the next way where one fails.

What is sent is a *letter*. An offer goes through the mesh while we have a link into it, else by the service that knows
the peer, else by any other: each is tried once. An answer or a rejection goes first the way its offer came, since a
newcomer can't be found by its id yet, and a service that brought the offer knows where to bring the answer.

A way has failed when routing says so, which it does in `mesh_timeout` at the latest; when a service says that the peer is
not there; or when the service itself is down. An offer or answer without any way left is lost, and the topology hears of
it at once, instead of waiting until the attempt's time is over. A letter may arrive twice, by two ways: whoever gets it
holds it against what it has heard before.

Gives: SendSignaling, Notify(ROUTING, Route | CancelRoute), Notify(ISLANDS, LinkedViaService).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from attrs import define, field, frozen

from p2pmesh.config import SignalingConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effects, Notify, SendSignaling
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import NOT_FOUND, CancelRoute, ReturnPath, Route, SeenViaService, Sighting
from p2pmesh.protocols.util.lru_table import LruTable
from p2pmesh.wire.fields import MAX_REASON
from p2pmesh.wire.messages import Message
from p2pmesh.wire.signaling import SignalingMessage

NO_WAY = "no way to it: no signaling service is up, and no link leads into the mesh"


class Kind(Enum):
    """What a letter is, by the name that statistics use."""

    OFFER = "offers"
    ANSWER = "answers"
    REJECTION = "rejections"
    CANDIDATES = "candidates"


@frozen
class ByService:
    """A signal came by this service."""

    transport: str


@frozen
class ByMesh:
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
    call: int | None = None
    """Of the route that is under way."""
    through_mesh: bool = False
    """Whether that way was tried."""
    services: list[str] = field(factory=list)
    """Those that were tried, the last one last."""
    mesh_only: bool = False
    """Whether no service is worth asking."""
    answered: bool = False
    why: str = ""
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
        """Let it go first the way that another letter went last."""
        if other is not None:
            self.way = other.way
            self.first = other.services[-1] if other.services else other.first
        return self


class SignalDelivery:
    """All that a peer knows of ways, and the letters that are out."""

    def __init__(
        self, config: SignalingConfig, counts: Counter[str], on_lost: Callable[[OutgoingSignal, str], Effects]
    ) -> None:
        """Make it; `on_lost` is asked what to do when an offer or answer has no way left."""
        self._config = config
        self._counts = counts
        self._on_lost = on_lost
        self._mesh: dict[PeerId, None] = {}
        self._services: dict[str, None] = {}
        self._seen = LruTable[tuple[str, ...]](config.remembered_peers)
        self._originals = LruTable[None](config.remembered_peers)
        self._open = LruTable[OutgoingSignal](config.remembered_offers)
        self._routes: dict[int, OutgoingSignal] = {}
        self._last_call = 0

    def snapshot(self) -> dict[str, int]:
        return {
            "remembered_peers": len(self._seen),
            "open_letters": len(self._open),
            "routes": len(self._routes),
        }

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def services(self) -> list[str]:
        """Those that have let us in."""
        return list(self._services)

    @property
    def into_mesh(self) -> bool:
        """Whether a neighbour passes our messages on."""
        return bool(self._mesh)

    def link_up(self, remote: RemotePeer) -> None:
        """A link is open."""
        self.heard(remote)
        if remote.is_member:
            self._mesh[remote.peer_id] = None

    def link_down(self, peer: PeerId) -> None:
        self._mesh.pop(peer, None)

    def service_up(self, transport: str) -> None:
        """A service has let us in."""
        self._services[transport] = None

    def service_down(self, transport: str) -> Effects:
        """A service is gone. What we gave it last may never arrive: that goes another way, if there is one."""
        self._services.pop(transport, None)
        effects: Effects = []
        for letter in self._open.values():
            if letter.services[-1:] == [transport] and letter.call is None and not letter.answered:
                effects += self._next(letter) or []
        return effects

    def seen(self, peer: PeerId, transport: str) -> None:
        """The peer is on this service."""
        others = tuple(name for name in self._seen.get(peer) or () if name != transport)
        self._seen.put(peer, (*others, transport))

    def unseen(self, peer: PeerId, transport: str) -> tuple[str, ...]:
        """Forget that the peer was on this service; gives those that are left."""
        left = tuple(name for name in self._seen.get(peer) or () if name != transport)
        if left:
            self._seen.put(peer, left)
        else:
            self._seen.pop(peer)
        return left

    def heard(self, remote: RemotePeer) -> None:
        """The peer itself said which version it speaks: the mesh does not carry to the original's."""
        if remote.version == 0:
            self._originals.put(remote.peer_id, None)
        else:
            self._originals.pop(remote.peer_id)

    def is_original(self, peer: PeerId) -> bool:
        """Whether it is said to be one of the original's."""
        return peer in self._originals

    # --- letters ------------------------------------------------------------------------------------------------------

    def send(self, letter: OutgoingSignal) -> Effects:
        """Send a letter by the best way. An offer or answer takes the place of any other to the same peer."""
        effects: Effects = []
        self._counts[letter.kind.value] += 1
        if letter.kind in {Kind.OFFER, Kind.ANSWER}:
            effects += self.take_back(letter.to)
            self._open.put(letter.to, letter)
        return effects + self._next_or_lost(letter)

    def send_served(self, peer: PeerId, message: SignalingMessage) -> Effects:
        """Send what only a service can bring."""
        service = self._service_for(peer, without=[])
        if service is None:
            self._counts["unsendable"] += 1
            return []
        return [SendSignaling(service, message)]

    def out(self, peer: PeerId) -> OutgoingSignal | None:
        """The offer or answer to this peer that is out."""
        return self._open.get(peer)

    def answered(self, peer: PeerId) -> Effects:
        """What we sent this peer has evidently come."""
        letter = self._open.get(peer)
        if letter is None:
            return []
        letter.answered = True
        if letter.call is None:
            return []
        self._counts[f"{letter.kind.value}_mesh"] += 1
        return self._cancel(letter)

    def tell_strange(self, peer: PeerId) -> Effects:
        """A link to it is open: say so if our offer did not come through the mesh, and did by a service."""
        letter = self._open.get(peer)
        if letter is None or letter.kind is not Kind.OFFER or not letter.through_mesh or not letter.services:
            return []
        return [Notify(Subsystem.ISLANDS, SeenViaService(peer, Sighting.LINKED))]

    def take_back(self, peer: PeerId) -> Effects:
        """Whatever is out to this peer is not to be tried any further."""
        letter = self._open.pop(peer)
        return [] if letter is None else self._cancel(letter)

    def arrived(self, call: int) -> None:
        """A route has come to its end."""
        letter = self._routes.pop(call, None)
        if letter is not None:
            letter.call = None
            self._counts[f"{letter.kind.value}_mesh"] += 1

    def unrouted(self, call: int, reason: str) -> Effects:
        """A route has failed."""
        letter = self._routes.pop(call, None)
        if letter is None:
            return []
        letter.call = None
        letter.why = letter.why or f"no route to it: {reason}"[:MAX_REASON]
        self._counts["fallbacks"] += 1
        return self._next_or_lost(letter)

    def not_found(self, peer: PeerId, transport: str) -> Effects | None:
        """The peer is not on this service. None if no letter of ours is concerned."""
        self.unseen(peer, transport)
        letter = self._open.get(peer)
        if letter is None:
            return None
        if letter.call is not None or letter.answered or letter.services[-1:] != [transport]:
            return []
        letter.why = NOT_FOUND
        return self._next_or_lost(letter)

    def _next_or_lost(self, letter: OutgoingSignal) -> Effects:
        effects = self._next(letter)
        if effects is not None:
            return effects
        self._counts[f"{letter.kind.value}_lost"] += 1
        if self._open.get(letter.to) is not letter:
            return []
        self._open.pop(letter.to)
        return self._on_lost(letter, letter.why or NO_WAY)

    def _next(self, letter: OutgoingSignal) -> Effects | None:
        """Send it the next way; None if there is none left."""
        first = None if letter.mesh_only else letter.first
        if first is not None and first in self._services and first not in letter.services:
            return self._serve(letter, first)
        may_route = self._may_route(letter)
        if may_route and (letter.way is not None or letter.to not in self._originals):
            return self._route(letter)
        service = None if letter.mesh_only else self._service_for(letter.to, without=letter.services)
        if service is not None:
            return self._serve(letter, service)
        return self._route(letter) if may_route else None  # that it is the original's may be a service's lie

    def _may_route(self, letter: OutgoingSignal) -> bool:
        return bool(self._mesh) and not letter.through_mesh and len(self._routes) < self._config.routes

    def _route(self, letter: OutgoingSignal) -> Effects:
        self._last_call += 1
        letter.call, letter.through_mesh = self._last_call, True
        self._routes[letter.call] = letter
        route = Route(
            owner=Subsystem.SIGNALING,
            call=letter.call,
            to=letter.to,
            message=letter.routed,
            way=letter.way,
            timeout=self._config.mesh_timeout,
        )
        return [Notify(Subsystem.ROUTING, route)]

    def _serve(self, letter: OutgoingSignal, transport: str) -> Effects:
        if not letter.services:
            self._counts[f"{letter.kind.value}_service"] += 1
        letter.services.append(transport)
        return [SendSignaling(transport, letter.served)]

    def _service_for(self, peer: PeerId, without: list[str]) -> str | None:
        """The service on which the peer was seen last, else any: it may be there unseen."""
        left = [name for name in self._services if name not in without]
        seen = [name for name in reversed(self._seen.get(peer) or ()) if name in left]
        return next(iter((*seen, *left)), None)

    def _cancel(self, letter: OutgoingSignal) -> Effects:
        if letter.call is None:
            return []
        call, letter.call = letter.call, None
        del self._routes[call]
        return [Notify(Subsystem.ROUTING, CancelRoute(Subsystem.SIGNALING, call))]
