"""Broadcasts for neighbours of the original project: its fields alone, in the form its relays expect."""

from __future__ import annotations

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import StoredMessage
from p2pmesh.wire.messages import Gossip, GossipData
from p2pmesh.wire.payloads import Body, legacy, pack

PROBE = "__gossip_connectivity_probe"
PROBE_RESPONSE = "__gossip_connectivity_response"

MOST_HOPS_TOLD = 5
"""They drop what has crossed more than ten links, which is few in a large mesh: so they are told of no more than half of that, and
may relay it among themselves. It does not go in circles, since each peer passes on an id once."""
MOST_ECHOED = 1024
"""A longer probe is answered without its content."""


def for_originals(kept: StoredMessage) -> Gossip:
    """A broadcast as the original writes it: without proof, since it would relay the signature and not the key."""
    data = kept.data
    plain = GossipData(
        id=data.id,
        topic=data.topic,
        payload=legacy(Body(data.payload, data.encoding, data.blob, kept.size)),
        origin_peer_id=data.origin_peer_id,
        signature=None,
        timestamp=data.timestamp,
        hops=min(kept.hops, MOST_HOPS_TOLD),
        relayed_by=kept.relayed_by,
    )
    return Gossip(data=plain, delivery_id=f"{data.id}_1" if kept.parent is None else None)


def have_same_content(one: GossipData, other: GossipData) -> bool:
    """Whether two with the same id are the same broadcast, as far as one that came through the original's peers can be."""
    try:
        return one.topic == other.topic and _plain(one) == _plain(other)
    except RemoteProtocolError:
        return True  # nothing that could replace anything


def _plain(data: GossipData) -> str:
    return str(legacy(Body(data.payload, data.encoding, data.blob, 0)))


def probe_response(probe: GossipData, me: PeerId, message_id: str, timestamp: int) -> Gossip:
    """The answer to "is somebody there?", for the neighbour that asked alone."""
    echo = probe.payload if len(str(probe.payload)) <= MOST_ECHOED else None
    content = pack({"originalProbe": echo, "respondingPeer": me, "timestamp": timestamp}, 8 * MOST_ECHOED)
    data = GossipData(
        id=message_id,
        topic=PROBE_RESPONSE,
        payload=content.payload,
        origin_peer_id=me,
        timestamp=timestamp,
        hops=0,
        relayed_by=(),
    )
    return Gossip(data=data)
