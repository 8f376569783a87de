"""The contract of the sans-IO cores: inputs go in with a time, effects come out.

A core is plain synchronous code that owns its state and its timers. It never waits, never looks at a clock, never draws
from global randomness: time comes with each call, `random.Random`, identity and config with the constructor. So a core's
run is a function of its seed, and the same core is driven by Trio over WebRTC links, by the simulator in virtual time,
and bare by a property test.

Who drives a core promises to call `handle` for each input and `expire` once `next_deadline` has come, with times that
never go backwards, and to carry out the effects of one call in their order before it makes the next.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

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
    ROUTING = "routing"
    BROADCAST = "broadcast"
    RECEIPTS = "receipts"


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
    """The broadcast core sent a message on to these peers; `parent` gave it to us, None for our own."""

    message_id: str
    parent: PeerId | None
    children: tuple[PeerId, ...]
    expires: float
    silent: int = 0
    """Peers it went to besides, who can't acknowledge it: the original's."""


@frozen
class HopSettled:
    """A hop of a broadcast is decided: the child took it as new, had it already, or was given up on."""

    message_id: str
    child: PeerId
    adopted: bool


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
    | Rejected
    | RejectOffer
    | AskForOffer
    | FindPeers
    | Connect
    | Publish
    | SendDirect
    | Forget
    | Originated
    | Forwarded
    | HopSettled
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


# --- building blocks --------------------------------------------------------------------------------------------------

K = TypeVar("K", bound=Hashable)


class Timers(Generic[K]):
    """The timers of a core: one heap, at most one deadline for each key, ties in the order they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._armed: dict[K, int] = {}  # which entry of the heap counts, by its order
        self._count = 0

    def __len__(self) -> int:
        return len(self._armed)

    def __contains__(self, key: K) -> bool:
        return key in self._armed

    def set(self, key: K, deadline: float) -> None:
        """Arm `key`, or move it."""
        self._count += 1
        self._armed[key] = self._count
        heapq.heappush(self._heap, (deadline, self._count, key))
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._armed):
            self._heap = [entry for entry in self._heap if self._armed.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Disarm `key`; nothing happens if it is not armed."""
        self._armed.pop(key, None)

    def next_deadline(self) -> float:
        """When the next timer is due; `math.inf` if none is armed."""
        heap, armed = self._heap, self._armed
        while heap:
            deadline, order, key = heap[0]
            if armed.get(key) == order:
                return deadline
            heapq.heappop(heap)
        return math.inf

    def pop_due(self, now: float) -> list[K]:
        """Disarm and give the keys whose deadline has come, earliest first."""
        due = []
        while self.next_deadline() <= now:
            key = heapq.heappop(self._heap)[2]
            del self._armed[key]
            due.append(key)
        return due


@frozen
class Backoff:
    """Jittered exponential back-off: full jitter over the upper half, so that peers which failed together part ways."""

    first: float
    cap: float
    factor: float = 2.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after that many failures in a row (1 or more)."""
        ceiling = min(self.cap, self.first * self.factor ** min(failures - 1, 64))
        return ceiling * rng.uniform(0.5, 1.0)
