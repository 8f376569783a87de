r"""What a broadcast may be: its options and limits, and the origin's signature.

In goes what the application asks for, or a neighbour's message; out come a checked draft, seconds of life left, and
whether a proof is right.
State: the hop limit, which follows the size of the mesh.

*Hops.* Unless its caller says otherwise, a broadcast may cross `16 + 4 log2(peers)` links, and 64 in any case. Trees
grow from first arrivals and are as deep as the mesh is wide: a ring with one long link for each of 1,000 peers is 15
links wide, one with three for each of 10,000 is 9 wide (measured). Four times that leaves room for repairs, which go
roundabout ways; a message that goes in circles ends at dedupe, not here. Few peers are no reason for less than 64:
they may be an island that becomes part of a large mesh within the message's ttl, where it is handed from neighbour to
neighbour. With `max_peers` below 3 there is nothing but the ring, which is half as wide as it is long. While the size
of the mesh is unknown, 4,096 peers are assumed.

*Signature.* `field(x)` is the length of `x` in bytes as a 32-bit big-endian number, followed by `x`. Text is UTF-8,
numbers are 64-bit big-endian. The signature is Ed25519 (RFC 8032) over::

    b"p2pmesh gossip v1\0"
    field(network: see `p2pmesh.wire.canonical`)
    field(topic)
    field(origin's peer id: 40 lower-case hexadecimal digits)
    field(series)
    field(sequence)
    field(timestamp)
    field(ttl)
    field(maxHops)
    field(receipts: b"\1" or b"\0")
    field(b"text", b"json" or b"blob")
    field(the payload: its text, its JSON text, or its bytes)

The broadcast's id is the first 8 digits of the origin's id, followed by the first 24 hexadecimal digits of the
SHA-256 of the same bytes. So an id stands for one content, and nobody can make another broadcast that passes for it.

The signature proves the origin if the key's SHA-256 begins with the origin's id, the broadcast's id is right, and no
signed field is absent. What changes on the way (`hops`, `relayedBy`, `age`) it does not cover.
"""

from __future__ import annotations

import math
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError, LocalProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.protocols.broadcast.message_store import StoredMessage, tree_of
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import Publish
from p2pmesh.wire.canonical import DEFAULT_NETWORK, covered, number, text
from p2pmesh.wire.fields import MAX_TOPIC
from p2pmesh.wire.messages import GossipData
from p2pmesh.wire.payloads import Body, pack

RESERVED_TOPICS = "__gossip_connectivity"
"""Topics that begin so are the original's own traffic: they reach no application."""

MAX_WIRE_HOPS = 255
"""Hops that the wire can carry."""

HOPS_UNKNOWN = 64
"""Links that a broadcast may cross if nothing else is said, in a mesh whose size is unknown: `16 + 4 log2(4096)`."""

_DOMAIN = b"p2pmesh gossip v1\0"


class Refusal(Enum):
    """Why a neighbour's message is neither delivered nor passed on; the values are keys of `snapshot()`."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__

    OURS = "ours"
    """In our name, but not of this process."""
    TOO_FAR = "too_far"
    EXPIRED = "expired"
    BEFORE_US = "before_us"
    """Sent before we began, and the application has not asked for it."""
    TOO_LARGE = "too_large"
    UNPROVEN = "unproven"
    WRONG = "wrong"
    """Its proof or its payload is: the neighbour should have looked, and its link is closed."""


class Draft(Struct, frozen=True):
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
        self._max_hops = min(config.broadcast.max_hops or HOPS_UNKNOWN, MAX_WIRE_HOPS)
        self._wall = wall

    def mesh_size(self, peers: int) -> None:
        """About so many peers are in the mesh."""
        if self._config.max_hops is None:
            hops = 16 + 4 * math.log2(max(2, peers)) if self._has_long_links else 16 + peers / 2
            self._max_hops = min(max(math.ceil(hops), HOPS_UNKNOWN), MAX_WIRE_HOPS)

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
        if not isinstance(max_hops, int) or not 1 <= max_hops <= MAX_WIRE_HOPS:
            raise ConfigError(f"max_hops must be a whole number from 1 to {MAX_WIRE_HOPS}, not {max_hops!r:.60}")
        return Draft(event.topic, pack(event.payload, self._max_payload), ttl, max_hops, event.receipts, now)

    def may_come(self, data: GossipData) -> bool:
        """Whether it has not come too far."""
        return data.hops < (self._max_hops if data.max_hops is None else data.max_hops)

    def may_go_on(self, message: StoredMessage) -> bool:
        """Whether a neighbour would not find that it has come too far."""
        return message.hops < (self._max_hops if message.data.max_hops is None else message.data.max_hops)

    def lifetime(self, data: GossipData, now: float) -> float:
        """Seconds that it has left: its ttl less its age, within what its timestamp allows."""
        return min(self._ttl(data) - data.age / 1000, self.acceptable_for(data, now))

    def acceptable_for(self, data: GossipData, now: float) -> float:
        """Seconds until no copy is accepted any more, whatever it says of its age; none if it is from the future."""
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


def signed(data: GossipData, identity: Identity, network: bytes = DEFAULT_NETWORK) -> GossipData:
    """The same broadcast with its id, and its origin's key and signature if a key can prove that origin."""
    signable = _covered(data, network)
    message_id = _id_of(data, signable)
    if not identity.verified:
        return structs.replace(data, id=message_id)
    return structs.replace(data, id=message_id, key=identity.public_key, signature=identity.sign(signable))


def is_signed(data: GossipData) -> bool:
    """Whether it claims a proof, right or wrong."""
    return data.key is not None or data.signature is not None


def is_proven(data: GossipData, network: bytes = DEFAULT_NETWORK) -> bool:
    """Whether it carries its origin's signature in this network, and that and the id are right."""
    if data.key is None or data.signature is None or None in (data.ttl, data.max_hops, data.series, data.sequence):
        return False
    signable = _covered(data, network)
    if data.id != _id_of(data, signable) or peer_id_of(data.key) != data.origin_peer_id:
        return False
    return verify(data.key, data.signature, signable)


def _id_of(data: GossipData, signable: bytes) -> str:
    return tree_of(data.origin_peer_id) + sha256(signable).hexdigest()[:24]


def _covered(data: GossipData, network: bytes) -> bytes:
    if data.blob is not None:
        kind, body = b"blob", data.blob
    else:
        kind, body = str(data.encoding).encode(), text(str(data.payload))
    return covered(
        _DOMAIN,
        network,
        text(data.topic),
        text(data.origin_peer_id),
        number(data.series or 0),
        number(data.sequence or 0),
        number(data.timestamp),
        number(data.ttl or 0),
        number(data.max_hops or 0),
        b"\1" if data.receipts else b"\0",
        kind,
        body,
    )
