"""A peer-to-peer mesh on Trio: processes linked by WebRTC data channels, with no server in the path of their data.

async with open_mesh("ws://localhost:8080", room="demo") as mesh:
    await mesh.broadcast("chat", {"text": "hello"})
"""

import typing as _typing

from p2pmesh.config import (
    BroadcastConfig,
    ChordConfig,
    IceServer,
    IslandsConfig,
    KademliaConfig,
    LinkConfig,
    MeshConfig,
    ReceiptsConfig,
    RoutingConfig,
    SignalingConfig,
    SubscriptionConfig,
    TopologyConfig,
    WorkConfig,
)
from p2pmesh.dht import Dht, DhtValue
from p2pmesh.errors import (
    BlockListError,
    ConfigError,
    IdentityError,
    InvalidPayload,
    InvalidPeerId,
    JoinRefused,
    KeyFull,
    LocalProtocolError,
    MeshClosed,
    MeshError,
    PayloadTooLarge,
    PeerBusy,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
    TransportError,
    TransportUnavailable,
)
from p2pmesh.events import (
    DirectReceived,
    EclipseSuspected,
    Event,
    IslandHealed,
    IslandSuspected,
    JsonLike,
    JsonValue,
    Lagged,
    MessageDelivered,
    MessageFailed,
    MessageReceived,
    MessagesSkipped,
    OriginThrottled,
    Payload,
    PayloadLike,
    PeerConnected,
    PeerDisconnected,
    PeerEvicted,
    PeerFailed,
    PeerTimedOut,
    ReceiptDisputed,
    TransportDown,
    TransportUp,
)
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh, open_mesh
from p2pmesh.moderation import Validator, Verdict
from p2pmesh.receipts import Delivered, Failed, Receipt
from p2pmesh.subscription import Subscription
from p2pmesh.transports.transport import Transport, TransportConfig

if _typing.TYPE_CHECKING:
    from p2pmesh.server.app import SignalingServer, open_signaling_server
    from p2pmesh.server.config import ServerConfig

    __version__: str

__all__ = [
    "BlockListError",
    "BroadcastConfig",
    "ChordConfig",
    "ConfigError",
    "Delivered",
    "Dht",
    "DhtValue",
    "DirectReceived",
    "EclipseSuspected",
    "Event",
    "Failed",
    "IceServer",
    "Identity",
    "IdentityError",
    "InvalidPayload",
    "InvalidPeerId",
    "IslandHealed",
    "IslandSuspected",
    "IslandsConfig",
    "JoinRefused",
    "JsonLike",
    "JsonValue",
    "KademliaConfig",
    "KeyFull",
    "Lagged",
    "LinkConfig",
    "LocalProtocolError",
    "Mesh",
    "MeshClosed",
    "MeshConfig",
    "MeshError",
    "MessageDelivered",
    "MessageFailed",
    "MessageReceived",
    "MessagesSkipped",
    "OriginThrottled",
    "Payload",
    "PayloadLike",
    "PayloadTooLarge",
    "PeerBusy",
    "PeerConnected",
    "PeerDisconnected",
    "PeerEvicted",
    "PeerFailed",
    "PeerId",
    "PeerRefused",
    "PeerTimedOut",
    "PeerUnreachable",
    "Receipt",
    "ReceiptDisputed",
    "ReceiptsConfig",
    "RemoteProtocolError",
    "RoutingConfig",
    "ServerConfig",
    "SignalingConfig",
    "SignalingServer",
    "Subscription",
    "SubscriptionConfig",
    "TopologyConfig",
    "Transport",
    "TransportConfig",
    "TransportDown",
    "TransportError",
    "TransportUnavailable",
    "TransportUp",
    "Validator",
    "Verdict",
    "WorkConfig",
    "open_mesh",
    "open_signaling_server",
]

if not _typing.TYPE_CHECKING:  # ruff: ignore[non-empty-init-module] - and to a type checker all names would seem to be there

    def __getattr__(name: str) -> object:
        """What few programs need and takes long to import: the signaling server, and the version."""
        if name == "__version__":
            from importlib import metadata

            try:
                value = metadata.version("p2pmesh")
            except metadata.PackageNotFoundError:  # a source tree that was not installed
                value = "0+unknown"
        elif name in __all__:
            from p2pmesh.server import app, config

            value = getattr(config if name == "ServerConfig" else app, name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})
