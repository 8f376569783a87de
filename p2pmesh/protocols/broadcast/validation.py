r"""What a broadcast may be: its options and limits, and the origin's signature.

In goes what the application asks for, or a neighbour's message; out come a checked draft, seconds of life left, and
whether a proof is right.
State: none.

*Hops.* Unless its caller says otherwise, a broadcast crosses as many links as it takes: it goes over each once, and
ends at peers that have seen it. A limit is for callers that want to reach what is near only.

*Age.* A broadcast lives for `ttl` from its first sending. Clocks of peers may differ by `clock_skew`, which is longer
than most broadcasts live, so relays tell how long they have kept it: its `age`, which no signature covers. A relay
that lies must not make others drop, forget or withhold a broadcast. So an age counts for no more than the time since
the signed timestamp, and for no less than that allows with the clocks as wrong as they may be. Where the timestamp
lies in our future, the clocks differ by we don't know how much, and only ages tell: so peers with a wrong clock work
as well as their neighbours are honest, and one that has none at all does with a `clock_skew` of years. A clock that
is behind can make a broadcast live longer, by no more than `clock_skew`, and never longer than `ttl` from when it
came.

Where that leaves a lie, a better copy mends it. A broadcast that is refused for its age is not *seen*; one that is kept
is kept for `ttl` from when it came, whatever its age, and passed on while its age allows. None is refused for its hops:
they say whether it goes on, and a relay that means to keep it from us need not send it. The lowest age
and the fewest hops that any copy or announcement tells of count. One that seemed to have come late or far when it came
(`is_doubtful`) is announced anew once it turns out that it had not, since the peers that got it from us believe what
we told them. And a peer that is told something doubtful of a broadcast is told what we know of it.

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
SHA-256 of the same bytes: 16 bytes. So an id stands for one content, and nobody can make another broadcast that passes
for it.

The signature proves the origin if the key's SHA-256 begins with the origin's id, the broadcast's id is right, and no
signed field is absent. What changes on the way (`hops`, `relayedBy`, `age`) it does not cover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import (
    ANY_HOPS,
    NOBODY,
    TREE_DIGITS,
    BroadcastTimers,
    Due,
    MessageStore,
    StoredMessage,
    payload_size,
    tree_of,
)
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import Publish
from p2pmesh.wire.canonical import covered, number, text
from p2pmesh.wire.messages import GossipData, GossipIHave
from p2pmesh.wire.payloads import Body, pack

RESERVED_TOPICS = "__gossip_connectivity"
"""Topics that begin so are the original's own traffic: they reach no application."""

ID_DIGITS = 32
"""Hexadecimal digits of a broadcast's id. The 96 bits of a hash in it are for an origin alone to search for two
broadcasts that share one, which takes 2^48 tries and harms nobody but their readers."""

CLOCKS_AGREE = 5.0
"""Seconds by which a timestamp may be in our future before it shows that clocks differ."""

SPREADS_IN = 2.0
"""Seconds in which a broadcast is still on its way. One that is older came late: to a peer that catches up, or by its
relays' account."""

TOO_MUCH_FOR = 10.0
"""Seconds for which what was too much just now is taken to be so."""

_DOMAIN = b"p2pmesh gossip v1\0"


class Refusal(Enum):
    """Why a neighbour's message is neither delivered nor passed on; the values are keys of `snapshot()`."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__

    OURS = "ours"
    """In our name, but not of this process."""
    EXPIRED = "expired"
    BEFORE_US = "before_us"
    """Sent before we began, and the application has not asked for it."""
    TOO_LARGE = "too_large"
    SEEN = "seen"
    """Its number was there already, though its id is forgotten: it is sent again."""
    THROTTLED = "throttled"
    """Its origin sends more than one may."""
    CROWDED = "crowded"
    """The first of an origin or topic, where there is no room for what comes by this neighbour, or at all."""
    UNPROVEN = "unproven"
    IGNORED = "ignored"
    REJECTED = "rejected"
    """The application turned it down: see `Verdict`. Of a peer that it has blocked it ignores all."""
    WRONG = "wrong"
    """Its proof or its payload is: the neighbour should have looked, and its link is closed."""

    @property
    def lasts(self) -> float:
        """Seconds for which what was pulled and refused is not pulled again."""
        return TOO_MUCH_FOR if self in {Refusal.THROTTLED, Refusal.CROWDED} else math.inf


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
        self._takes_unproven = config.links.allow_unverified
        self._wall = wall

    def draft(self, event: Publish, now: float) -> Draft:
        """What the application asks for, with our defaults."""
        ttl = self._config.ttl if event.ttl is None else event.ttl
        max_hops = ANY_HOPS if event.max_hops is None else event.max_hops
        return Draft(event.topic, pack(event.payload, self._max_payload), ttl, max_hops, event.receipts, now)

    def hops(self, data: GossipData, told: int) -> int:
        """Links that it has crossed here, where a relay tells of so many: it may cross the one to us, if it comes."""
        return min(told + 1, data.max_hops)

    def may_go_on(self, message: StoredMessage, now: float) -> bool:
        """Whether a neighbour would not find that it comes too late or has come too far."""
        return message.may_cross_more and now < message.expires

    def age(self, data: GossipData, told: int, now: float) -> float:
        """Seconds since it was sent, where a relay tells of so many milliseconds; see the head of this module.

        What comes from a future that no clock may be in is too old for anything.
        """
        by_clock = self._wall(now) - data.timestamp / 1000
        if by_clock < -self._config.clock_skew:
            return math.inf
        age = told / 1000 if by_clock < -CLOCKS_AGREE else min(told / 1000, max(0.0, by_clock))
        return max(age, by_clock - self._config.clock_skew)

    def refusal(self, data: GossipData, age: float) -> tuple[Refusal | None, str]:
        """Why a broadcast of such an age is not taken by anybody with our bounds, for people."""
        if age >= self.ttl(data):
            return Refusal.EXPIRED, "it has expired, by the clock here: is yours right?"
        if (size := payload_size(data)) > self._max_payload:
            return Refusal.TOO_LARGE, f"a payload of {size} bytes is too large, where {self._max_payload} is the limit"
        return (None if is_signed(data) or self._takes_unproven else Refusal.UNPROVEN), ""

    def acceptable_for(self, data: GossipData, now: float) -> float:
        """Seconds until no copy is accepted any more, whatever it says of its age; one more for rounded times."""
        return data.timestamp / 1000 + self.ttl(data) + self._config.clock_skew - self._wall(now) + 1.0

    def is_doubtful(self, message: StoredMessage, hops: int, born: float) -> bool:
        """Whether it would have come so late or so far, so sent and by so many hops, that better may be heard of it."""
        limit = message.data.max_hops
        return message.since - born > min(SPREADS_IN, message.ttl / 2) or limit / 2 < min(hops, ANY_HOPS // 2)

    def ttl(self, data: GossipData) -> float:
        """Seconds that it lives."""
        return self._config.ttl if data.ttl is None else min(data.ttl / 1000, self._config.max_ttl)


class Ways:
    """What neighbours tell of the ways of broadcasts that are here, and what they should be told."""

    def __init__(
        self, limits: BroadcastLimits, store: MessageStore, timers: BroadcastTimers, links: Mapping[PeerId, object]
    ) -> None:
        self._limits = limits
        self._store = store
        self._timers = timers
        self._links = links

    def compare(
        self, peer: PeerId, message: StoredMessage, told: GossipData | GossipIHave, now: float
    ) -> tuple[PeerId, ...]:
        """Believe what a neighbour tells if that is better. Returns those to be told what is known now.

        What is mended so is for all, a parent included: they know of it what we believed. If the neighbour knows it
        worse, it is for that one, if it has sent a copy or an offer.
        """
        answers = not isinstance(told, GossipIHave) or told.offer
        born = now - self._limits.age(message.data, told.age, now)
        if self._limits.is_doubtful(message, message.hops, message.born):
            hops = min(message.hops, self._limits.hops(message.data, told.hops))
            self._store.revise(message, hops, max(message.born, min(born, message.since)))
            self._timers.set((Due.EXPIRY, NOBODY, message.data.id), message.expires)
            return () if self._limits.is_doubtful(message, message.hops, message.born) else tuple(self._links)
        return (peer,) if answers and self._limits.is_doubtful(message, told.hops, born) else ()


def signed(data: GossipData, identity: Identity, network: bytes) -> GossipData:
    """The same broadcast with its id, and its origin's key and signature if a key can prove that origin."""
    signable = _covered(data, network)
    message_id = _id_of(data, signable)
    if not identity.verified:
        return structs.replace(data, id=message_id)
    return structs.replace(data, id=message_id, key=identity.public_key, signature=identity.sign(signable))


def is_signed(data: GossipData) -> bool:
    """Whether it claims a proof, right or wrong."""
    return data.key is not None or data.signature is not None


def is_proven(data: GossipData, network: bytes) -> bool:
    """Whether it carries its origin's signature in this network, and that and the id are right."""
    if data.key is None or data.signature is None or None in (data.ttl, data.series, data.sequence):
        return False
    signable = _covered(data, network)
    if data.id != _id_of(data, signable) or peer_id_of(data.key) != data.origin_peer_id:
        return False
    return verify(data.key, data.signature, signable)


def _id_of(data: GossipData, signable: bytes) -> str:
    return tree_of(data.origin_peer_id) + sha256(signable).hexdigest()[: ID_DIGITS - TREE_DIGITS]


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
        number(data.max_hops),
        b"\1" if data.receipts else b"\0",
        kind,
        body,
    )
