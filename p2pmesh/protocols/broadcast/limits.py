"""What a broadcast may be: the options of `Mesh.broadcast`, and how long and how far a message goes.

Unless its caller says otherwise, a broadcast may cross `16 + 4 log2(peers)` links, and 64 in any case. Trees grow from first
arrivals, and are as deep as the mesh is wide; a ring with one long link for each of 1,000 peers is 15 links wide, with
three for each of 10,000 it is 9 (measured). So this is four times what is needed and more, for repairs go roundabout ways;
a message that goes in circles ends at dedupe, not here. Few peers are no reason for less than 64: they may be an island that
becomes part of a large mesh within the message's ttl, where it is handed from neighbour to neighbour. With `max_peers` below
3 there is nothing but the ring, and it is half as wide as it is long. Not knowing the size of the mesh, we take it for 4,096
peers.
"""

from __future__ import annotations

import math

from attrs import frozen

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError, LocalProtocolError
from p2pmesh.protocols.broadcast.message_store import StoredMessage
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import Publish
from p2pmesh.wire.fields import MAX_TOPIC
from p2pmesh.wire.messages import GossipData
from p2pmesh.wire.payloads import Body, pack

RESERVED_TOPICS = "__gossip_connectivity"
"""Topics that begin so are the original's own traffic: they reach no application."""

MOST_HOPS = 255
"""What the wire carries."""

HOPS_UNKNOWN = 64
"""Links that a broadcast may cross, of somebody who does not say, in a mesh of who knows how many."""


@frozen
class Draft:
    """A broadcast of ours that was checked and waits for room on the links."""

    topic: str
    body: Body
    ttl: float
    max_hops: int
    receipts: bool
    called: float


class BroadcastLimits:
    """The bounds of one peer's config, applied to one message at a time."""

    def __init__(self, config: MeshConfig, wall: WallClock) -> None:
        self._config = config.broadcast
        self._max_payload = config.max_payload
        self._has_long_links = config.max_peers > 2
        self._max_hops = min(config.broadcast.max_hops or HOPS_UNKNOWN, MOST_HOPS)
        self._wall = wall

    def mesh_size(self, peers: int) -> None:
        """About so many peers are in the mesh."""
        if self._config.max_hops is None:
            hops = 16 + 4 * math.log2(max(2, peers)) if self._has_long_links else 16 + peers / 2
            self._max_hops = min(max(math.ceil(hops), HOPS_UNKNOWN), MOST_HOPS)

    def draft(self, event: Publish, now: float) -> Draft:
        """Check what the application asks for.

        Raises:
          ConfigError: if `ttl` or `max_hops` is out of range.
          LocalProtocolError: if the topic is too long, reserved or no text.
          InvalidPayload: if no message can carry the payload.
          PayloadTooLarge: if it is too large.
        """
        _check_topic(event.topic)
        ttl = self._config.ttl if event.ttl is None else event.ttl
        if not isinstance(ttl, int | float) or not 0 < ttl <= self._config.max_ttl:
            raise ConfigError(f"ttl must be above 0 and at most {self._config.max_ttl:g} s, not {ttl!r:.60}")
        max_hops = self._max_hops if event.max_hops is None else event.max_hops
        if not isinstance(max_hops, int) or not 1 <= max_hops <= MOST_HOPS:
            raise ConfigError(f"max_hops must be a whole number from 1 to {MOST_HOPS}, not {max_hops!r:.60}")
        return Draft(event.topic, pack(event.payload, self._max_payload), ttl, max_hops, event.receipts, now)

    def may_come(self, data: GossipData) -> bool:
        """Whether it has not come too far."""
        return data.hops < (self._max_hops if data.max_hops is None else data.max_hops)

    def may_go_on(self, kept: StoredMessage) -> bool:
        """Whether a neighbour of ours would not find that it has come too far."""
        return kept.hops < (self._max_hops if kept.data.max_hops is None else kept.data.max_hops)

    def lifetime(self, data: GossipData, now: float) -> float:
        """Seconds that it has left: its ttl less its age, within what its timestamp allows."""
        return min(self._ttl(data) - data.age / 1000, self.acceptable_for(data, now))

    def acceptable_for(self, data: GossipData, now: float) -> float:
        """Seconds until no copy of it is accepted any more, whatever it says of its age; none if it is from the future."""
        sent, wall, skew = data.timestamp / 1000, self._wall(now), self._config.clock_skew
        return sent + self._ttl(data) + skew - wall if sent <= wall + skew else 0.0

    def _ttl(self, data: GossipData) -> float:
        return self._config.ttl if data.ttl is None else min(data.ttl / 1000, self._config.max_ttl)


def _check_topic(topic: str) -> None:
    if not isinstance(topic, str) or len(topic) > MAX_TOPIC:
        raise LocalProtocolError(f"a topic is a string of at most {MAX_TOPIC} characters, not {topic!r:.60}")
    if topic.startswith(RESERVED_TOPICS):
        raise LocalProtocolError(f"topics that begin with {RESERVED_TOPICS!r} are reserved: choose another")
    try:
        topic.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"a topic is text that UTF-8 can carry, not {topic!r:.60}") from error
