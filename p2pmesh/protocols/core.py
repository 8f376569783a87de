"""The contract of the sans-IO cores: inputs go in with a time, effects come out.

A core is plain synchronous code that owns its state and its timers. It never waits, never looks at a clock, never draws
from global randomness: time comes with each call, `random.Random`, identity and config with the constructor. So a core's
run is a function of its seed, and the same core is driven by Trio over WebRTC links, by the simulator in virtual time,
and bare by a property test.

Who drives a core promises to call `handle` for each input and `expire` once `next_deadline` has come, with times that
never go backwards, and to carry out the effects of one call in their order before it makes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from attrs import field, frozen

from p2pmesh.errors import MeshError
from p2pmesh.events import Event, Payload
from p2pmesh.keyspace import PeerId
from p2pmesh.wire.messages import Message, Signal
from p2pmesh.wire.signaling import SignalingMessage

WallClock: TypeAlias = Callable[[float], float]
"""Gives the wall time (seconds since 1970) of a monotonic instant; passed in where a message carries a timestamp."""


class Subsystem(Enum):
    """The cores of one peer, by the names that logs, tasks and `Mesh.snapshot()` use."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__  # each is the only one of its name, and `Enum` hashes that name anew each time

    SIGNALING = "signaling"
    TOPOLOGY = "topology"
    CHORD = "chord"
    ROUTING = "routing"
    BROADCAST = "broadcast"
    RECEIPTS = "receipts"
    KADEMLIA = "kademlia"
    ISLANDS = "islands"


@frozen
class RemotePeer:
    """Who is at the other end of a link."""

    peer_id: PeerId
    verified: bool
    """Whether it proved that it holds the key of its id."""
    version: int
    """Its protocol version: 0 for a peer of the original project, which speaks JSON text and knows no extras."""
    public_key: bytes | None = field(default=None, repr=False)


# --- inputs -----------------------------------------------------------------------------------------------------------


@frozen
class LinkUp:
    """A link is open. Goes to every core."""

    peer: RemotePeer


@frozen
class LinkDown:
    """An open link has ended. Goes to every core, once for each `LinkUp`."""

    peer: PeerId
    reason: str
    timed_out: float | None = None
    """Seconds of silence, if that is what ended it."""


@frozen
class LinkLost:
    """An attempt at a link, wanted or accepted, has failed. Goes to the topology."""

    peer: PeerId
    reason: str


NO_SLOT = "no slot left"
"""The reason of a `LinkLost` that nobody is to blame for: a link that was just given up has opened in the same moment."""


@frozen
class Received:
    """A message from a neighbour. Goes to the core that owns its type."""

    peer: PeerId
    message: Message


@frozen
class ServiceUp:
    """A connection to a signaling service is open (we have not joined yet). Goes to signaling."""

    transport: str


@frozen
class ServiceDown:
    """It is closed again, or could not be opened."""

    transport: str
    reason: str


@frozen
class Signaled:
    """A message from a signaling service. Goes to signaling."""

    transport: str
    message: SignalingMessage


@frozen
class LocalSignal:
    """Our own link layer has an offer or answer for this peer. Goes to signaling."""

    peer: PeerId
    signal: Signal


@frozen
class PeersFound:
    """These peers are said to be in the mesh. A hint: goes to the topology and to routing."""

    peers: tuple[PeerId, ...]
    source: str


@frozen
class PeerGone:
    """This peer is said to have left. A hint: goes to the topology and to routing."""

    peer: PeerId


@frozen
class Offered:
    """An offer that was checked: this peer wants a link. Goes to the topology, which answers it in every case."""

    peer: RemotePeer
    signal: Signal


@frozen
class Intend:
    """The next offer to this peer says that the link is for this purpose. Goes to signaling, before the `WantLink`."""

    peer: PeerId
    purpose: str


@frozen
class Rejected:
    """This peer turned our offer down, or asks us to make the offer ourselves. Goes to the topology."""

    peer: PeerId
    reason: str
    alternatives: tuple[PeerId, ...] = ()
    offer_instead: bool = False


@frozen
class RejectOffer:
    """Turn down this peer's offer, or take back ours: tell it, with peers that may have room. Goes to signaling."""

    peer: PeerId
    reason: str
    alternatives: tuple[PeerId, ...] = ()


@frozen
class AskForOffer:
    """Ask this peer of the original project to offer us a link: it takes offers from smaller ids only. Goes to signaling."""

    peer: PeerId


@frozen
class FindPeers:
    """The topology lost a link that it needs: ask the services for fresh peers, soon. Goes to signaling."""


@frozen
class Connect:
    """The application wants a link to this peer, and keeps it. Answered by `Reply` once it is open. Goes to the topology."""

    call: int
    peer: PeerId


@frozen
class Publish:
    """The application broadcasts. Answered by `Reply` with the message id once it is out, or waits under backpressure."""

    call: int
    topic: str
    payload: Payload
    ttl: float | None = None
    max_hops: int | None = None
    receipts: bool = True


@frozen
class WantHistory:
    """The application wants what was broadcast before we came, as far as neighbours still keep it. Goes to broadcast.

    What comes is delivered as `MessageReceived` like anything else, to all subscriptions of its topic: who asked for less
    tells by its `age`. Nothing of that age is delivered without having been asked for.
    """

    topic: str | None
    """None for all topics."""
    seconds: float
    """How far back."""


@frozen
class SendDirect:
    """The application sends to one peer. Answered by `Reply` once that peer has it, or can't be reached."""

    call: int
    peer: PeerId
    payload: Payload


@frozen
class Forget:
    """The caller of this call was cancelled: no reply is wanted."""

    call: int


@frozen
class Originated:
    """The broadcast core tells the receipts core of a broadcast of ours. A `Forwarded` follows, and the `Reply` was before."""

    message_id: str
    topic: str
    expires: float
    started: float | None = None
    """When the application called; None for now."""


@frozen
class Forwarded:
    """The broadcast core sent a message on to these peers; `parent` gave it to us, None for our own.

    Children are those who got a copy, and those who were offered one and have to answer: for each a `HopSettled` follows.
    Who was told of the message besides, without having to answer, is none; if it asks for the message later, even after
    everything was settled, another `Forwarded` names it.
    """

    message_id: str
    parent: PeerId | None
    children: tuple[PeerId, ...]
    expires: float
    silent: int = 0
    """Peers it went to besides, who can't acknowledge it: the original's."""
    origin: PeerId | None = None
    """Who made it. Where the parent is lost, its receipts go there."""


@frozen
class HopSettled:
    """A hop of a broadcast is decided: the child took it as new, had or gets it elsewhere, or was given up on.

    A child that was not `adopted` may still become so: an ack may be late, and who gets it elsewhere may ask us after all.
    """

    message_id: str
    child: PeerId
    adopted: bool


@frozen
class Way:
    """The way back to the peer that a routed message came from."""

    peer: PeerId
    packet_id: str
    path: tuple[PeerId, ...]
    """The peers it came through, the origin first; we are not in it."""


@frozen
class Route:
    """Bring a message to a peer, neighbour or not. Ends in one `Arrived` or `Unrouted` for the asker. Goes to routing."""

    owner: Subsystem
    """Who asks."""
    call: int
    """The asker's number for it."""
    to: PeerId
    """A peer; or, with `nearest`, any key: then it goes to the peer next to that on the ring, never to the asker itself."""
    message: Message
    nearest: bool = False
    answered: bool = False
    """Whether the receiver sends an `Answer`, which `Arrived` brings; else arrival alone counts."""
    way: Way | None = None
    """To be tried first: for peers who can't be found by their id yet, since they have just come."""
    avoid: tuple[PeerId, ...] = ()
    """Peers that it must not pass."""
    timeout: float = 10.0


@frozen
class CancelRoute:
    """Nobody wants to know any more. Goes to routing."""

    owner: Subsystem
    call: int


@frozen
class Answer:
    """The answer to a routed message that asked for one. Goes to routing."""

    way: Way
    message: Message


@frozen
class Routed:
    """A message that came over a route, from `peer`, who signed it. Goes to the core that owns its type."""

    peer: RemotePeer
    message: Message
    way: Way


@frozen
class Arrived:
    """What `Route` asked for has reached `peer`. Goes to the asker."""

    call: int
    peer: PeerId
    hops: int
    message: Message | None = None
    """The answer, if there was to be one."""


@frozen
class Unrouted:
    """What `Route` asked for could not be done in its time. Goes to the asker."""

    call: int
    reason: str


@frozen
class Vicinity:
    """The neighbours of a neighbour, as it says. Goes to routing."""

    peer: PeerId
    links: tuple[PeerId, ...]


@frozen
class Bridge:
    """Open a link to this peer now, if need be in place of a long one: between islands. Goes to the topology.

    Ends in `LinkUp`, or `LinkLost`, or nothing. It may be given up later, when a link on the ring needs its place.
    """

    peer: PeerId


@frozen
class Vanished:
    """The link to this peer broke without a word. Goes to islands."""

    peer: PeerId


@frozen
class Stranger:
    """A link that the mesh did not bring about, but a service did: is it another island's? Goes to islands."""

    peer: PeerId


@frozen
class Named:
    """A service named these peers, who are on it: they should be in our mesh. Goes to islands."""

    transport: str
    peers: tuple[PeerId, ...]


@frozen
class Probe:
    """Ask the services for this peer. Ends in `Probed`, or nothing. Goes to signaling."""

    peer: PeerId


@frozen
class Probed:
    """Whether this peer answers by way of a service; not, if none of them knows it. Goes to islands."""

    peer: PeerId
    alive: bool


@frozen
class Hailed:
    """This peer asks for us by way of a service: it does not find us in the mesh. Goes to islands."""

    peer: PeerId


@frozen
class Acquainted:
    """These peers are reached by this path: whom they were heard of from first, our neighbour last. Goes to signaling."""

    peers: tuple[PeerId, ...]
    path: tuple[PeerId, ...]


@frozen
class Vacancies:
    """So many slots nothing takes. Goes to chord, when it has changed, and after each `FarPeers`."""

    free: int
    displaced: bool = False
    """Whether the last link was lost to a newcomer, rather than by a peer that is gone."""


@frozen
class Introduced:
    """A neighbour said of itself whether it is a leaf, and how many slots it has free. Goes to the topology."""

    peer: PeerId
    leaf: bool
    free: int


@frozen
class FarPeers:
    """Peers for a long link, the best first: one of them is dialed, if there is a slot. Goes to the topology."""

    peers: tuple[PeerId, ...]


@frozen
class Welcome:
    """This peer was promised a link: its offer is let in, if need be in place of a long link. Goes to the topology."""

    peer: PeerId
    leaf: bool = False


@frozen
class RingAgreed:
    """Nobody is between us and these two, as they say themselves, or who is nearest to us. Goes to the topology."""

    before: PeerId
    after: PeerId


@frozen
class Superfluous:
    """The link to this peer was one of the ring, and the ring is closed without it now. Goes to the topology."""

    peer: PeerId


@frozen
class MeshSize:
    """About so many peers are in the mesh, ourselves included, by the density of the ring.

    Goes to routing, broadcast and receipts.
    """

    peers: int


@frozen
class DhtPut:
    """The application stores a value. Answered by `Reply` with the number of peers that hold it. Goes to the DHT."""

    call: int
    key: str
    value: Payload
    ttl: float | None = None


@frozen
class DhtGet:
    """The application looks a value up. Answered by `Reply` with a `DhtValue`, or None. Goes to the DHT."""

    call: int
    key: str
    publisher: PeerId | None = None


@frozen
class DhtFindNode:
    """The application looks for the peers nearest to a key by XOR. Answered by `Reply` with their ids. Goes to the DHT."""

    call: int
    target: PeerId


@frozen
class Leave:
    """The mesh is being left: say goodbye. Goes to every core."""


Input: TypeAlias = (
    LinkUp
    | LinkDown
    | LinkLost
    | Received
    | ServiceUp
    | ServiceDown
    | Signaled
    | LocalSignal
    | PeersFound
    | PeerGone
    | Offered
    | Intend
    | Rejected
    | RejectOffer
    | AskForOffer
    | FindPeers
    | Connect
    | Publish
    | WantHistory
    | SendDirect
    | Forget
    | Originated
    | Forwarded
    | HopSettled
    | Route
    | CancelRoute
    | Answer
    | Routed
    | Arrived
    | Unrouted
    | Vicinity
    | Bridge
    | Vanished
    | Stranger
    | Named
    | Probe
    | Probed
    | Hailed
    | Acquainted
    | Vacancies
    | Introduced
    | FarPeers
    | Welcome
    | RingAgreed
    | Superfluous
    | MeshSize
    | DhtPut
    | DhtGet
    | DhtFindNode
    | Leave
)

# --- effects ----------------------------------------------------------------------------------------------------------


@frozen
class SendFrame:
    """Send a message over the open links to these peers. Dropped and counted where a link's queue is full or gone."""

    peers: tuple[PeerId, ...]
    message: Message
    urgent: bool = False
    """Overtakes what is not: for acks, repairs and control, never for payloads."""
    patient: bool = False
    """May wait for `LinkConfig.patience` until something else goes to the same peer: for acks and counts."""


@frozen
class WantLink:
    """Open a link to this peer by an offer of ours. Ends in `LinkUp` or `LinkLost`."""

    peer: PeerId


@frozen
class AcceptOffer:
    """Answer this offer. Ends in `LinkUp` or `LinkLost`. Replaces an attempt of ours at the same peer."""

    peer: RemotePeer
    signal: Signal


@frozen
class FeedSignal:
    """An answer or candidate, checked, for the attempt at this peer."""

    peer: RemotePeer
    signal: Signal


@frozen
class DropLink:
    """Close the link to this peer, or end the attempt at it. An open link ends in `LinkDown`, an attempt in silence."""

    peer: PeerId
    reason: str
    blame: bool = False
    """The peer broke the protocol."""


@frozen
class SendSignaling:
    """Send a message to a signaling service. Dropped and counted if it is down."""

    transport: str
    message: SignalingMessage


@frozen
class Tell:
    """An input for another core of this peer."""

    subsystem: Subsystem
    input: Input


@frozen
class Emit:
    """An event for the application."""

    event: Event


@frozen
class Reply:
    """The result of an application's call."""

    call: int
    value: Any = None
    error: MeshError | None = None


@frozen
class Progress:
    """How far a broadcast of ours has come: `reached` other peers are known to have it.

    Comes with every change, also after the one `MessageDelivered` or `MessageFailed` of that broadcast, and never before
    the `Reply` that names its id.
    """

    message_id: str
    reached: int
    settled: bool
    """Whether everybody it went to has answered or was given up on; newcomers may unsettle it again."""


@frozen
class ServiceRefused:
    """This signaling service refuses us for good: its connection is closed and not retried at once."""

    transport: str
    reason: str


Effect: TypeAlias = (
    SendFrame
    | WantLink
    | AcceptOffer
    | FeedSignal
    | DropLink
    | SendSignaling
    | Tell
    | Emit
    | Reply
    | Progress
    | ServiceRefused
)
Effects: TypeAlias = list[Effect]


class Core(Protocol):
    """What every protocol core is."""

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input. Never raises on what a peer may have sent."""

    def next_deadline(self) -> float:
        """When `expire` wants to be called next, in monotonic seconds; `math.inf` for never."""

    def expire(self, now: float) -> Effects:
        """Do what is due at `now`. Calling it early is harmless."""

    def snapshot(self) -> Mapping[str, Any]:
        """Statistics that JSON can carry."""
