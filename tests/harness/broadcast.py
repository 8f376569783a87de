"""One broadcast core between neighbours that a test plays: what it is told, and what it makes of that."""

from __future__ import annotations

import random
import zlib
from typing import Any

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.events import MessageReceived
from p2pmesh.identity import Identity
from p2pmesh.protocols.broadcast.broadcast import BroadcastCore
from p2pmesh.protocols.broadcast.validation import signed
from p2pmesh.protocols.core import DropLink, SendFrame
from p2pmesh.protocols.inputs import LinkUp, Received
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.messages import Gossip, GossipAck, GossipData, Message
from tests.harness.core import IDENTITIES
from tests.harness.one_core import OneCore
from tests.harness.virtual_time import NETWORK, remote, virtual_wall

ME, ALICE, BOB, CAROL, DAVE = IDENTITIES[:5]


def broadcast_config(*, base: MeshConfig | None = None, **fields: object) -> MeshConfig:
    base = base or MeshConfig()
    return attrs.evolve(base, broadcast=attrs.evolve(base.broadcast, **fields))  # type: ignore[arg-type]


class Bare(OneCore[BroadcastCore]):
    """Its effects sorted by kind."""

    def __init__(self, config: MeshConfig | None = None, identity: Identity = ME, *, ack_delay: float = 0) -> None:
        config = broadcast_config(base=config, ack_delay=ack_delay)
        self.health = LocalHealth()
        super().__init__(BroadcastCore(identity, config, random.Random(1), virtual_wall, self.health))

    def count(self, name: str) -> int:
        """What the snapshot says; the names of nested dictionaries with dots."""
        found: Any = self.core.snapshot()
        for key in name.split("."):
            found = found[key]
        return int(found)

    def up(self, *identities: Identity, version: int = 1) -> None:
        for identity in identities:
            self(LinkUp(remote(identity, version)))

    def hear(self, identity: Identity, message: Message) -> list[Any]:
        return self(Received(identity.peer_id, message))

    def sent(self, kind: type) -> list[Any]:
        return [(e.peers, e.message) for e in self.got(SendFrame) if isinstance(e.message, kind)]

    def acks(self) -> list[tuple[str, bool]]:
        """What was acknowledged, by name, and whether it was refused or there already."""
        return [
            (NAMES.get(message_id, message_id), verdict != "new")
            for _, message in self.sent(GossipAck)
            for verdict in ("new", "had", "prune", "refused")
            for message_id in getattr(message, verdict)
        ]

    def delivered(self) -> list[MessageReceived]:
        return [event for event in self.events if isinstance(event, MessageReceived)]

    def dropped(self) -> list[DropLink]:
        return self.got(DropLink)


NAMES: dict[str, str] = {}
"""What tests call the messages that they make: ids follow from content."""


def gossip(origin: Identity = ALICE, *, message_id: str = "m1", sign: bool = True, **fields: object) -> Gossip:
    data = {
        "id": message_id,
        "series": int(EPOCH * 1000) + zlib.crc32(message_id.encode()),  # each in one of its own
        "sequence": 1,
        "topic": "chat",
        "payload": "hi",
        "encoding": "text",
        "origin_peer_id": origin.peer_id,
        "timestamp": int(EPOCH * 1000),
        "hops": 0,
        "ttl": 60_000,
        "max_hops": 32,
        **fields,
    }
    made = GossipData(**data)  # type: ignore[arg-type]
    if sign:
        made = signed(made, origin, NETWORK)
        NAMES[made.id] = message_id
    return Gossip(data=made)


def aged(seconds: float, *, now: float = 0.0, **fields: Any) -> Gossip:
    """A broadcast that was sent so long before `now`, as its timestamp and its relays say."""
    return gossip(age=int(seconds * 1000), timestamp=int((EPOCH + now - seconds) * 1000), **fields)


def id_of(message: Gossip) -> str:
    return message.data.id


def original(**fields: Any) -> Gossip:
    """A broadcast as an original's peer sends it."""
    plain: dict[str, Any] = {"encoding": None, "ttl": None, "max_hops": 255, "series": None, "sequence": None}
    return gossip(sign=False, **{**plain, **fields})
