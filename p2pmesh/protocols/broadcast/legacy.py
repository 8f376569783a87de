"""What is special for neighbours of the original project.

They acknowledge nothing, prove nothing and know no trees, and are let in by `LinkConfig.allow_unverified` alone. Each
gets a broadcast once, with the original's fields alone, in the form that its relays expect; what they send is taken
without a proof, which they can't relay. They can't say what they lack either, so on a new link they get what has gone
to nobody yet. In go stored messages and probes; out come messages in the original's form. No state.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import StoredMessage
from p2pmesh.wire.messages import Gossip, GossipData
from p2pmesh.wire.payloads import Body, legacy, pack

PROBE = "__gossip_connectivity_probe"
PROBE_RESPONSE = "__gossip_connectivity_response"

MAX_HOPS_TOLD = 5
"""Hops that they are told of at most. They drop what has crossed more than ten links, which is few in a large mesh;
with half of that they may relay it among themselves. It does not go in circles, since each peer passes on an id
once."""
MAX_ECHOED = 1024
"""Characters of a probe that are sent back; a longer one is answered without its content."""


def in_original_form(message: StoredMessage) -> Gossip:
    """A broadcast as the original writes it: without proof, since it would relay the signature and not the key."""
    data = message.data
    plain = GossipData(
        id=data.id,
        topic=data.topic,
        payload=legacy(Body(data.payload, data.encoding, data.blob, message.size)),
        origin_peer_id=data.origin_peer_id,
        signature=None,
        timestamp=data.timestamp,
        hops=min(message.hops, MAX_HOPS_TOLD),
        relayed_by=message.relayed_by,
    )
    return Gossip(data=plain, delivery_id=f"{data.id}_1" if message.parent is None else None)


def without_proof(data: GossipData) -> GossipData:
    """What one of them sends: it relays no key, so what it relays proves nothing, and nobody counts below it."""
    return structs.replace(data, key=None, signature=None, receipts=False)


def without_known(message: StoredMessage, originals: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Those of them that may lack it: the way it says it came is a hint that only those it names are spared for."""
    return tuple([one for one in originals if one not in message.relayed_by and not message.is_held_by(one)])


def have_same_content(one: GossipData, other: GossipData) -> bool:
    """Whether two with one id are the same broadcast, if one of them came through the original's peers."""
    try:
        return one.topic == other.topic and _plain(one) == _plain(other)
    except RemoteProtocolError:
        return True  # nothing that could replace anything


def _plain(data: GossipData) -> str:
    return str(legacy(Body(data.payload, data.encoding, data.blob, 0)))


def probe(me: PeerId, message_id: str, timestamp: int) -> Gossip:
    """Is somebody there? For one neighbour, which answers it and passes it on to nobody."""
    data = GossipData(
        id=message_id, topic=PROBE, payload="", origin_peer_id=me, timestamp=timestamp, hops=0, relayed_by=(me,)
    )
    return Gossip(data=data)


def probe_response(probe: GossipData, me: PeerId, message_id: str, timestamp: int) -> Gossip:
    """The answer to "is somebody there?", for the neighbour that asked alone."""
    echo = probe.payload if len(str(probe.payload)) <= MAX_ECHOED else None
    content = pack({"originalProbe": echo, "respondingPeer": me, "timestamp": timestamp}, 8 * MAX_ECHOED)
    data = GossipData(
        id=message_id,
        topic=PROBE_RESPONSE,
        payload=content.payload,
        origin_peer_id=me,
        timestamp=timestamp,
        hops=0,
        relayed_by=(me,),
    )
    return Gossip(data=data)
