"""How the cores of one peer fit together: who they are, and who gets which input.

The one wiring table: the Trio runtime and the simulator's bare nodes both build peers from it.
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping
from typing import get_args

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.moderation import Validator, accept
from p2pmesh.protocols.broadcast.broadcast import BroadcastCore
from p2pmesh.protocols.core import Core, WallClock
from p2pmesh.protocols.inputs import (
    Blocked,
    Connect,
    DhtFindNode,
    DhtGet,
    DhtGetAll,
    DhtPut,
    Disconnect,
    InboxRead,
    Leave,
    LinkDown,
    LinkLoad,
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
    Unsent,
    WantHistory,
)
from p2pmesh.protocols.islands.islands import IslandsCore
from p2pmesh.protocols.kademlia.kademlia import KademliaCore
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.overlay.overlay import OverlayCore
from p2pmesh.protocols.receipts.receipts import ReceiptsCore
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.protocols.signaling.signaling import SignalingCore
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.scores import Scores
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
    Message,
    ReconnectionData,
)
from p2pmesh.wire.overlay import FindSuccessor, Merge, Neighbours, Packet, Stabilise, SuccessorFound

_INPUTS: Mapping[tuple[Subsystem, ...], tuple[type[Input], ...]] = {
    tuple(Subsystem): (LinkUp, LinkDown, Leave),
    (Subsystem.OVERLAY, Subsystem.SIGNALING): (LinkLost,),
    (Subsystem.SIGNALING, Subsystem.BROADCAST): (ServiceUp,),  # for broadcast the first is the beginning
    (Subsystem.SIGNALING,): (ServiceDown, Signaled, LocalSignal),
    (Subsystem.OVERLAY,): (PeersFound, PeerGone, Connect, Disconnect),
    (Subsystem.ROUTING, Subsystem.OVERLAY): (LinkSuspected, LinkRecovered),
    (Subsystem.ROUTING,): (SendDirect, InboxRead, LinkLoad),
    (Subsystem.BROADCAST,): (Publish, WantHistory),
    (Subsystem.KADEMLIA,): (Blocked, DhtPut, DhtGet, DhtGetAll, DhtFindNode),
}
AUDIENCE: Mapping[type[Input], tuple[Subsystem, ...]] = {kind: who for who, kinds in _INPUTS.items() for kind in kinds}
"""Who gets an input that the shell makes. What cores tell each other names its receiver."""

_REPAIR = GossipDigest, GossipHave, GossipWant, GossipHistory
_MESSAGES: Mapping[Subsystem, tuple[type[Message], ...]] = {
    Subsystem.OVERLAY: (ReconnectionData, Goodbye, Neighbours, Stabilise, FindSuccessor, SuccessorFound),
    Subsystem.ROUTING: (Direct, DirectAck, Packet),
    Subsystem.BROADCAST: (Gossip, GossipAck, GossipIHave, GossipGraft, *_REPAIR),
    Subsystem.RECEIPTS: (GossipReceipts,),
    Subsystem.ISLANDS: (Merge,),
}
OWNERS: Mapping[type[Message], Subsystem | None] = {
    **dict.fromkeys(get_args(Message)),
    **{kind: who for who, kinds in _MESSAGES.items() for kind in kinds},
}
"""The core that gets a neighbour's message; None for those that come inside packets only, or say nothing to us."""

SELDOM: frozenset[type[Message]] = frozenset(
    kind for kind, owner in OWNERS.items() if owner in {None, Subsystem.OVERLAY, Subsystem.ISLANDS}
) | {GossipIHave, GossipGraft, *_REPAIR}
"""Messages that neighbours send a few of in a second, or that say nothing to us: the reader of the link counts them.
What the others cost, and what these cost beyond being read, their cores count themselves."""


def audience_of(event: Input) -> tuple[Subsystem, ...]:
    """The cores that get an input that the shell makes."""
    if not isinstance(event, Unsent):
        return AUDIENCE[type(event)]
    owner = OWNERS[type(event.message)]
    return () if owner is None else (owner,)


def build_cores(
    identity: Identity,
    config: MeshConfig,
    rng: random.Random,
    wall: WallClock,
    health: LocalHealth | None = None,
    *,
    blocked: Container[PeerId] = frozenset(),
    judge: Validator = accept,
) -> dict[Subsystem, Core]:
    """All cores of one peer, each with randomness of its own, so that one core's draws don't change another's.

    `blocked` is a view of the peers that the application wants nothing of, and `judge` looks at each broadcast.
    """
    health = health or LocalHealth()
    scores = Scores()

    def own() -> random.Random:
        return random.Random(rng.getrandbits(64))

    return {
        Subsystem.SIGNALING: SignalingCore(identity, config, own(), wall),
        Subsystem.OVERLAY: OverlayCore(identity, config, own(), wall, health, blocked, scores),
        Subsystem.ROUTING: RoutingCore(identity, config, own(), wall, health, blocked),
        Subsystem.BROADCAST: BroadcastCore(identity, config, own(), wall, health, judge, scores),
        Subsystem.RECEIPTS: ReceiptsCore(identity, config, own(), wall, health),
        Subsystem.KADEMLIA: KademliaCore(identity, config, own(), wall, health, blocked),
        Subsystem.ISLANDS: IslandsCore(identity, config, own(), wall, health),
    }
