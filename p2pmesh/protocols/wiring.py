"""How the cores of one peer fit together: who they are, and who gets which input.

The one wiring table: the Trio runtime and the simulator's bare nodes both build peers from it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.broadcast.broadcast import BroadcastCore
from p2pmesh.protocols.core import Core, WallClock
from p2pmesh.protocols.inputs import (
    Connect,
    DhtFindNode,
    DhtGet,
    DhtPut,
    Leave,
    LinkDown,
    LinkLost,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    LocalSignal,
    PeerGone,
    PeersFound,
    Publish,
    SendDirect,
    ServiceDown,
    ServiceUp,
    Signaled,
    Subsystem,
    WantHistory,
)
from p2pmesh.protocols.islands.islands import IslandsCore
from p2pmesh.protocols.kademlia.kademlia import KademliaCore
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.overlay.overlay import OverlayCore
from p2pmesh.protocols.receipts.receipts import ReceiptsCore
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.protocols.signaling.signaling import SignalingCore
from p2pmesh.wire.messages import (
    Direct,
    DirectAck,
    Goodbye,
    Gossip,
    GossipAck,
    GossipDigest,
    GossipGraft,
    GossipHave,
    GossipHistory,
    GossipIHave,
    GossipReceipts,
    GossipWant,
    LinkRejected,
    Message,
    ReconnectionData,
    RelayAck,
    RelayBatch,
    RelayFailure,
    RelaySignal,
)
from p2pmesh.wire.overlay import (
    ContactReply,
    ContactRequest,
    FindBeyond,
    FindNode,
    FindSuccessor,
    FindValue,
    FoundBeyond,
    KademliaRpc,
    Merge,
    Neighbours,
    NodesFound,
    Packet,
    Stabilise,
    StoreValue,
    SuccessorFound,
    ValueStored,
)

EVERYBODY = tuple(Subsystem)

AUDIENCE: Mapping[type[Input], tuple[Subsystem, ...]] = {
    LinkUp: EVERYBODY,
    LinkDown: EVERYBODY,
    LinkSuspected: (Subsystem.ROUTING,),
    LinkRecovered: (Subsystem.ROUTING,),
    Leave: EVERYBODY,
    LinkLost: (Subsystem.OVERLAY, Subsystem.SIGNALING),
    ServiceUp: (Subsystem.SIGNALING, Subsystem.BROADCAST),  # for it the first is the beginning
    ServiceDown: (Subsystem.SIGNALING,),
    Signaled: (Subsystem.SIGNALING,),
    LocalSignal: (Subsystem.SIGNALING,),
    PeersFound: (Subsystem.OVERLAY,),
    PeerGone: (Subsystem.OVERLAY,),
    Connect: (Subsystem.OVERLAY,),
    Publish: (Subsystem.BROADCAST,),
    WantHistory: (Subsystem.BROADCAST,),
    SendDirect: (Subsystem.ROUTING,),
    DhtPut: (Subsystem.KADEMLIA,),
    DhtGet: (Subsystem.KADEMLIA,),
    DhtFindNode: (Subsystem.KADEMLIA,),
}
"""Who gets an input that the shell makes. What cores tell each other names its receiver."""

OWNERS: Mapping[type[Message], Subsystem | None] = {
    Gossip: Subsystem.BROADCAST,
    GossipAck: Subsystem.BROADCAST,
    GossipIHave: Subsystem.BROADCAST,
    GossipGraft: Subsystem.BROADCAST,
    GossipDigest: Subsystem.BROADCAST,
    GossipHave: Subsystem.BROADCAST,
    GossipWant: Subsystem.BROADCAST,
    GossipHistory: Subsystem.BROADCAST,
    GossipReceipts: Subsystem.RECEIPTS,
    Direct: Subsystem.ROUTING,
    DirectAck: Subsystem.ROUTING,
    Packet: Subsystem.ROUTING,
    ContactRequest: None,  # these two come inside packets only
    ContactReply: None,
    ReconnectionData: Subsystem.OVERLAY,
    Goodbye: Subsystem.OVERLAY,
    LinkRejected: Subsystem.SIGNALING,
    Neighbours: Subsystem.OVERLAY,
    Stabilise: Subsystem.OVERLAY,
    FindSuccessor: Subsystem.OVERLAY,
    SuccessorFound: Subsystem.OVERLAY,
    RelaySignal: Subsystem.SIGNALING,
    RelayAck: None,
    RelayFailure: None,
    RelayBatch: Subsystem.SIGNALING,
    KademliaRpc: Subsystem.KADEMLIA,
    FindNode: None,  # these five come inside packets only
    FindValue: None,
    NodesFound: None,
    StoreValue: None,
    ValueStored: None,
    Merge: Subsystem.ISLANDS,
    FindBeyond: None,  # these two come inside packets only
    FoundBeyond: None,
}
"""The core that gets a neighbour's message; None for those that this version understands and ignores."""


def build_cores(identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> dict[Subsystem, Core]:
    """All cores of one peer, each with randomness of its own, so that one core's draws don't change another's."""

    def own() -> random.Random:
        return random.Random(rng.getrandbits(64))

    return {
        Subsystem.SIGNALING: SignalingCore(identity, config, own(), wall),
        Subsystem.OVERLAY: OverlayCore(identity, config, own(), wall),
        Subsystem.ROUTING: RoutingCore(identity, config, own(), wall),
        Subsystem.BROADCAST: BroadcastCore(identity, config, own(), wall),
        Subsystem.RECEIPTS: ReceiptsCore(identity, config, own(), wall),
        Subsystem.KADEMLIA: KademliaCore(identity, config, own(), wall),
        Subsystem.ISLANDS: IslandsCore(identity, config, own(), wall),
    }
