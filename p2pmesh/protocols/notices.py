"""What the cores of one peer tell each other, and with it all inputs that there are. See `core`."""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import FromOutside, RemotePeer, Subsystem, Value
from p2pmesh.wire.fields import Trail, TrailId
from p2pmesh.wire.messages import Description, LinkPurpose, Message, RejectReason


class Offered(Value, frozen=True):
    """An offer that was checked: this peer wants a link. Goes to the overlay, which answers it in every case."""

    peer: RemotePeer
    description: Description
    links: int | None = None
    """How many open links it says it has; None from a peer of the original."""
    purpose: str | None = None
    """What it wants the link for; unknown ones count as none."""


class SetLinkPurpose(Value, frozen=True):
    """The next offer to this peer says that the link is for this purpose. Goes to signaling, before the `WantLink`."""

    peer: PeerId
    purpose: LinkPurpose
    is_besieged: bool = False
    """We lack links that lead into the mesh, whatever others we have: so the offer says that we have none."""


FULL: Final = "max_peers_reached"
INITIATOR_CONFLICT: Final = "initiator_conflict"
"""The original's words for having no room, and for wanting to make the offer oneself."""
CANCELLED: Final = "cancelled"
"""The maker of an offer takes it back."""
NO_ATTEMPT: Final = "no_attempt"
"""An answer came for which there is no offer any more."""
NOT_FOUND = "not found"
"""No service knows the peer."""


class Rejected(Value, frozen=True):
    """This peer turned our offer down, or asks us to make the offer ourselves. Goes to the overlay."""

    peer: PeerId
    reason: str
    alternatives: tuple[PeerId, ...] = ()
    offer_instead: bool = False


class RejectOffer(Value, frozen=True):
    """Turn down this peer's offer, or take back ours: tell it, with peers that may have room. Goes to signaling.

    With `INITIATOR_CONFLICT` it asks a peer of the original project, which takes offers from smaller ids only, to make
    the offer itself: that goes by a service, and ends no attempt of ours.
    """

    peer: PeerId
    reason: RejectReason
    alternatives: tuple[PeerId, ...] = ()


class FindPeers(Value, frozen=True):
    """The overlay lost a link that it needs: ask the services for fresh peers, soon. Goes to signaling."""


class ChildrenAdded(Value, frozen=True):
    """The broadcast core passed a message on to these peers. Goes to receipts.

    Children are the peers that got a copy, and those that were offered one and have to answer: a `ChildSettled` follows
    for each. A lazy peer is none; if it grafts the message later, even after everything was settled, another
    `ChildrenAdded` names it. The first notice for a broadcast of ours comes when that is sent, even if there is nobody
    to send it to, and after the `Reply` that names its id.
    """

    message_id: str
    parent: PeerId | None
    """The peer that gave it to us; None for our own."""
    children: tuple[PeerId, ...]
    expires: float
    silent: int = 0
    """Peers of the original that it went to besides, which can't acknowledge it."""
    origin: PeerId | None = None
    """Its maker. Where the parent is lost, receipts go there."""
    topic: str = ""
    started: float | None = None
    """When the application called, in the first notice for a broadcast of ours; None in all others."""


class ChildSettled(Value, frozen=True):
    """A child of a broadcast has answered, or was given up on. Goes to receipts.

    `adopted` says that it took the message as new. A child that did not may still do so: an ack may be late, and a peer
    that gets it elsewhere may ask us after all.
    """

    message_id: str
    child: PeerId
    adopted: bool
    is_there: bool = False
    """Whether it said that it has the message, from us or from elsewhere."""


class Refused(Value, frozen=True):
    """This neighbour will never take a broadcast. Goes to receipts, beside a `ChildSettled` if it was to answer."""

    message_id: str
    peer: PeerId
    reason: str


class Withdraw(Value, frozen=True):
    """The application was told that nobody can have this broadcast of ours: so nobody gets it. Goes to broadcast."""

    message_id: str


class ReturnPath(Value, frozen=True):
    """The path back to the peer that a routed message came from."""

    peer: PeerId
    packet_id: str
    path: Trail
    """The peers it came through, the origin first; we are not in it. Nobody signs it: any but the last may be made up,
    and that as well, where the neighbour that brought it claims to give it back."""
    by: PeerId = PeerId("")
    """The neighbour that brought it, for sure, where that matters."""

    @property
    def bringer(self) -> str:
        """Who pays for what it causes."""
        return self.by or self.path[-1]


class Route(Value, frozen=True):
    """Bring a message to a peer, neighbour or not. Ends in one `RouteSucceeded` or `RouteFailed`. Goes to routing."""

    owner: Subsystem
    """The core that asks, and gets the outcome."""
    call: int
    """Its number for it."""
    to: PeerId
    """A peer; or, with `nearest`, any key: then it goes to the peer next to that on the ring, never to ourselves."""
    message: Message
    nearest: bool = False
    answered: bool = False
    """Whether the receiver sends a `RouteReply`, which `RouteSucceeded` brings; else arrival alone counts."""
    way: ReturnPath | None = None
    """To be tried first: for peers that can't be found by their id yet, since they have just come."""
    avoid: tuple[PeerId | TrailId, ...] = ()
    """Peers that it must not pass."""
    timeout: float = 10.0
    """Seconds."""
    doubtful: bool = False
    """The receiver may well be gone, and others will do: it is looked for near its place only, and soon given up."""


class CancelRoute(Value, frozen=True):
    """The asker no longer wants the outcome of this `Route`. Goes to routing."""

    owner: Subsystem
    call: int


class RouteReply(Value, frozen=True):
    """The answer to a routed message that asked for one. Goes to routing."""

    way: ReturnPath
    message: Message


class RoutedReceived(Value, frozen=True):
    """A message that came over a route, from `peer`, which signed it. Goes to the core that owns its type."""

    peer: RemotePeer
    message: Message
    way: ReturnPath


class RouteSucceeded(Value, frozen=True):
    """What `Route` asked for has reached `peer`. Goes to the asker."""

    call: int
    peer: PeerId
    message: Message | None = None
    """The answer, if there was to be one."""


class RouteFailed(Value, frozen=True):
    """What `Route` asked for could not be done in its time. Goes to the asker."""

    call: int
    reason: str
    is_refusal: bool = False
    """The receiver would not have it, now or later."""


class NeighbourLinks(Value, frozen=True):
    """The neighbours of a neighbour, as it tells. Goes to routing."""

    peer: PeerId
    links: tuple[PeerId, ...]


class OpenBridge(Value, frozen=True):
    """Make room for a link to this peer now, if need be in place of a long one: between islands. Goes to the overlay.

    Ends in `LinkUp`, or `LinkLost`, or nothing. It may be given up later, when a link on the ring needs its place.
    """

    peer: PeerId


class MergeStarted(Value, frozen=True):
    """Two rings become one, until about then: our neighbours on the ring change, and the ring is closed all the same.

    Goes to the overlay.
    """

    until: float


class LinkBroken(Value, frozen=True):
    """The link to this peer broke without a word. Goes to islands."""

    peer: PeerId


class ServicePeers(Value, frozen=True):
    """A service named these peers, which are on it: they should be in our mesh. Goes to islands."""

    transport: str
    peers: tuple[PeerId, ...]


class PingViaService(Value, frozen=True):
    """Ask the services for this peer. Ends in `SeenViaService` (ANSWERED or ABSENT), or nothing. Goes to signaling."""

    peer: PeerId


class Sighting(Enum):
    """What the signaling services show of a peer."""

    ANSWERED = "answered"
    """It answered our ping."""
    ABSENT = "absent"
    """None of them knows it."""
    LINKED = "linked"
    """A link to it is open that a service brought about, and the mesh did not."""


class SeenViaService(Value, frozen=True):
    """What the services show of a peer that may be on another island. Goes to islands."""

    peer: PeerId
    sighting: Sighting


class RouteHint(Value, frozen=True):
    """These peers are reached by this path. Goes to signaling."""

    peers: tuple[PeerId, ...]
    path: tuple[PeerId, ...]
    """From the peer that named them to our neighbour."""


class MeshSize(Value, frozen=True):
    """About so many peers are in the mesh, ourselves included, by the density of the ring.

    Goes to routing, broadcast, receipts and islands.
    """

    peers: int


Notice: TypeAlias = (
    Offered
    | SetLinkPurpose
    | Rejected
    | RejectOffer
    | FindPeers
    | ChildrenAdded
    | ChildSettled
    | Refused
    | Withdraw
    | Route
    | CancelRoute
    | RouteReply
    | RoutedReceived
    | RouteSucceeded
    | RouteFailed
    | NeighbourLinks
    | OpenBridge
    | MergeStarted
    | LinkBroken
    | ServicePeers
    | PingViaService
    | SeenViaService
    | RouteHint
    | MeshSize
)

Input: TypeAlias = FromOutside | Notice
"""All that a core may be given."""
