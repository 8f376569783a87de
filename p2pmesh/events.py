"""What a mesh tells its application: frozen events, one class for each thing that can happen.

`Mesh.events()` delivers all of them; `Mesh.subscribe()` only `MessageReceived`, `Mesh.messages()` only
`DirectReceived`.

A link's life is a `PeerConnected` and then exactly one `PeerDisconnected` of the same peer, whatever ends the link: a
silent death is a `PeerTimedOut` and an eviction a `PeerEvicted`, which are kinds of it, and what is open when the mesh
is left ends before the stream does. So a set that adds at the one and removes at the other is `Mesh.peers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from attrs import field, frozen
from typing_extensions import TypeAliasType

from p2pmesh.checks import unshown
from p2pmesh.keyspace import PeerId

JsonValue = TypeAliasType("JsonValue", "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None")
"""What JSON can carry."""
Payload = TypeAliasType("Payload", JsonValue | bytes)
"""What a message arrives with: anything JSON can carry, or bytes."""
JsonLike = TypeAliasType("JsonLike", "str | int | float | bool | Sequence[JsonLike] | Mapping[str, JsonLike] | None")
"""What can be sent as JSON: sequences arrive as lists, mappings as dicts."""
PayloadLike = TypeAliasType("PayloadLike", JsonLike | bytes | bytearray | memoryview)
"""What a message can be sent with: anything that JSON can carry, or bytes."""


@frozen
class PeerConnected:
    """A link to this peer is open."""

    peer_id: PeerId
    verified: bool
    """Whether the peer proved that it holds the key of its id."""


@frozen
class PeerDisconnected:
    """The link to this peer has ended, by either side, for the reason given: the end of what `PeerConnected` began."""

    peer_id: PeerId
    reason: str


@frozen
class PeerTimedOut(PeerDisconnected):
    """It has ended because the peer fell silent without a word."""

    silent_for: float
    """Seconds since it was last heard."""


@frozen
class PeerEvicted(PeerDisconnected):
    """It has ended because the peer gave it up, and told us of others."""

    alternatives: tuple[PeerId, ...]


@frozen
class PeerFailed:
    """A link to this peer could not be opened."""

    peer_id: PeerId
    reason: str


@frozen
class MessageReceived:
    """A broadcast arrived."""

    topic: str
    payload: Payload = field(repr=unshown)
    origin: PeerId
    message_id: str
    timestamp: float
    """When the origin sent it, by its own clock, in seconds since 1970."""
    hops: int
    """Links it crossed: 1 from a neighbour."""
    verified: bool
    """Whether the origin's signature was there and right."""
    series: int | None = None
    """Which of the origin's counts for this topic `sequence` belongs to: one for each run of it, later ones have higher
    numbers. None from the original's peers."""
    sequence: int | None = None
    """Which of the origin's broadcasts with this topic in that series it is, from 1."""
    age: float = 0.0
    """Seconds since the origin sent it, as its relays counted them: time on links is left out."""


@frozen
class DirectReceived:
    """A direct message to this peer alone arrived."""

    origin: PeerId
    payload: Payload = field(repr=unshown)
    message_id: str
    timestamp: float
    """When the sender sent it, by its own clock, in seconds since 1970."""
    verified: bool
    hops: int = 1
    """How many links it came over."""


@frozen
class MessageDelivered:
    """A broadcast of ours has settled: `reached` other peers have it."""

    message_id: str
    topic: str
    reached: int
    elapsed: float
    """Seconds from the call of `broadcast`."""


@frozen
class MessageFailed:
    """A broadcast of ours has reached nobody and won't: its ttl is over, or nobody takes what is so large."""

    message_id: str
    topic: str
    reason: str
    reached: int


@frozen
class IslandSuspected:
    """Part of the mesh seems to be out of reach."""

    peer_id: PeerId
    reason: str


@frozen
class EclipseSuspected:
    """Peers crowd around our id more densely than chance has it: somebody may be trying to cut us off.

    They get no links, as far as it depends on us, and we keep those of our own choice.
    """

    peers: int
    """How many they are, of those that we met."""
    mesh_size: int
    """Peers that the mesh has, as it looks from elsewhere."""


@frozen
class IslandHealed:
    """Two islands are one mesh again."""

    duration: float
    """Seconds since the suspicion."""
    bridge: PeerId


@frozen
class TransportUp:
    """A signaling transport is connected and joined."""

    name: str


@frozen
class TransportDown:
    """A signaling transport is not connected; it is being retried. Links live on without it."""

    name: str
    reason: str


@frozen
class Lagged:
    """A subscriber was too slow: its oldest items were dropped."""

    missed: int
    topic: str | None = None
    """The topic of the subscription that lags, None for a stream that is not bound to one."""


@frozen
class MessagesSkipped:
    """An ordered subscription gave up on broadcasts that stayed away: it won't deliver them any more."""

    origin: PeerId
    topic: str
    count: int


@frozen
class OriginThrottled:
    """A peer broadcasts more than one may: what is above the limit is refused here. Told at most once a minute."""

    origin: PeerId
    limit: float
    """Broadcasts a second: `BroadcastConfig.origin_rate`."""


@frozen
class ReceiptDisputed:
    """A peer told of more peers that have a broadcast than the mesh can have: it lies, or passes on a lie."""

    peer_id: PeerId
    message_id: str
    claimed: int
    """Peers that it told of."""
    believed: int
    """Peers that count, of this one and of all others that told of the broadcast."""


Event: TypeAlias = (
    PeerConnected
    | PeerDisconnected
    | PeerTimedOut
    | PeerFailed
    | PeerEvicted
    | MessageReceived
    | DirectReceived
    | MessageDelivered
    | MessageFailed
    | IslandSuspected
    | IslandHealed
    | EclipseSuspected
    | TransportUp
    | TransportDown
    | Lagged
    | MessagesSkipped
    | OriginThrottled
    | ReceiptDisputed
)
