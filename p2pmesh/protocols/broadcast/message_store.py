"""The broadcasts that are alive here: kept for retries, grafts and neighbours to come, bounded by number and by bytes.

In go new messages; out come those that have to be forgotten for them, the oldest first.
State: at most `BroadcastConfig.history` messages and `history_bytes`, or one message if that alone is larger.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field
from msgspec import structs

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import GossipData

ENVELOPE = 512
"""Bytes that a broadcast takes besides its payload, about."""

MAX_HOLDERS = 64
"""Neighbours, past ones included, that are remembered to have one broadcast; forgetting one costs an offer too many."""

TREE_DIGITS = 8
"""First digits of an origin's id that name its tree; ids of its broadcasts begin with them."""


SUM_SIZE = 8
"""Bytes of the sum of a set of broadcasts."""


class Due(Enum):
    """Why a timer of the broadcast core is set."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__

    EXPIRY = "a message's time is over"
    RETRY = "an ack stays away"
    ACKS = "acks have waited for company"
    ANNOUNCE = "announcements have waited for company"
    GRAFT = "an announced message stays away"
    FIRST_DIGEST = "a new link"
    DIGEST_AGAIN = "no answer to a digest"
    PULL_AGAIN = "what was pulled has not come"
    ROUND = "the periodic comparison"


NOBODY = PeerId("")
BroadcastTimers: TypeAlias = Timers[tuple[Due, PeerId, str]]
"""The core's one heap: why, and which neighbour and message it is about, `NOBODY` and an empty id where it is about
none."""


@define(eq=False)
class StoredMessage:
    """One broadcast, as it came, and what is known of its way."""

    data: GossipData
    parent: PeerId | None
    """The neighbour that gave it to us first; None for our own."""
    hops: int
    """Links it has crossed, by the best that was said."""
    since: float
    """When it came."""
    born: float
    """When it was sent, by the best that was said; never after it came."""
    ttl: float
    size: int
    """Of the payload, in bytes."""
    relayed_by: tuple[PeerId, ...] = ()
    """What the original's peers are told: the peers that had it already."""
    went_out: bool = False
    """Whether it was sent to any neighbour yet."""
    _holders: dict[PeerId, None] = field(factory=dict)
    _askers: dict[PeerId, int] = field(factory=dict)
    _digest: int | None = None

    @property
    def digest(self) -> int:
        """What it adds to the sum of a set: the first 64 bits of the SHA-256 of its id."""
        if self._digest is None:
            digest = sha256(self.data.id.encode("utf-8", "surrogatepass")).digest()
            self._digest = int.from_bytes(digest[:SUM_SIZE], "big")
        return self._digest

    @property
    def tree(self) -> str:
        """The name of its origin's tree."""
        return tree_of(self.data.origin_peer_id)

    def is_held_by(self, peer: PeerId) -> bool:
        """Whether this peer is known to have it."""
        return peer in (self.parent, self.data.origin_peer_id) or peer in self._holders

    def held_by(self, peer: PeerId) -> None:
        """Note that this peer has it."""
        if len(self._holders) < MAX_HOLDERS:
            self._holders[peer] = None

    def asked_by(self, peer: PeerId) -> int:
        """Note that this neighbour asks for it. Returns how often it has."""
        if peer not in self._askers and len(self._askers) >= MAX_HOLDERS:
            return MAX_HOLDERS
        self._askers[peer] = self._askers.get(peer, 0) + 1
        return self._askers[peer]

    @property
    def expires(self) -> float:
        """Until when it is passed on."""
        return self.born + self.ttl

    def age(self, now: float) -> int:
        """Milliseconds for which peers have kept it, us included."""
        return max(0, int((now - self.born) * 1000))

    def outgoing(self, now: float) -> GossipData:
        """What a neighbour is sent."""
        return structs.replace(self.data, hops=self.hops, age=self.age(now), relayed_by=())


def tree_of(name: str) -> str:
    """The name of an origin's tree, from the origin's id or the id of one of its broadcasts."""
    return name[:TREE_DIGITS]


class MessageStore:
    """Broadcasts by id, the oldest first."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.bytes: int = 0
        self.dropped: int = 0
        """Messages that had to go before their time."""
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._messages: OrderedDict[str, StoredMessage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[StoredMessage]:
        return iter(self._messages.values())

    def get(self, message_id: str) -> StoredMessage | None:
        return self._messages.get(message_id)

    def add(self, message: StoredMessage) -> list[StoredMessage]:
        """Keep one more. Returns those that had to go for it, the oldest first, never itself."""
        messages = self._messages
        messages[message.data.id] = message
        self.bytes += message.size + ENVELOPE
        dropped = []
        while (len(messages) > self._limit or self.bytes > self._limit_bytes) and len(messages) > 1:
            oldest = next(iter(messages.values()))
            self.remove(oldest)
            dropped.append(oldest)
        self.dropped += len(dropped)
        return dropped

    def remove(self, message: StoredMessage) -> None:
        """Forget one that is here."""
        del self._messages[message.data.id]
        self.bytes -= message.size + ENVELOPE


def payload_size(data: GossipData) -> int:
    """Bytes of a broadcast's payload as it is kept, about."""
    if data.blob is not None:
        return len(data.blob)
    return len(data.payload) if isinstance(data.payload, str) else 8
