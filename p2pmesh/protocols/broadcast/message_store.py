"""The broadcasts that are alive here: kept for retries, grafts and neighbours to come, bounded by number and by bytes.

Where there is no room, a message of whoever takes most of it has to go, the oldest: of the origin that takes most, if
that is more than an eighth of all, or else of the neighbour by which most came. So nobody's flood pushes out what
others sent, nor does one of many origins that nobody knows push out what came by other neighbours.

In go new messages; out come those that have to be forgotten for them, and what is of a certain age or has certain ids,
in time that follows from how much that is.
State: at most `BroadcastConfig.history` messages and `history_bytes`, or one message if that alone is larger.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from enum import Enum
from hashlib import sha256
from itertools import accumulate
from operator import attrgetter, xor
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field
from msgspec import structs

from p2pmesh.events import MessageReceived, Payload
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import GossipData

ENVELOPE = 512
"""Bytes that a broadcast takes besides its payload, about."""

MAX_HOLDERS = 64
"""Neighbours, past ones included, that are remembered to have one broadcast; forgetting one costs an offer too many."""

ANY_HOPS = 255
"""The limit that is none; and the most hops that the wire can carry, which stand for all that are more."""

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
    PUBLISH = "our own rate"


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

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is ours and went out, and no neighbour is known to have it."""
        return self.parent is None and self.data.receipts and self.went_out and not self._holders

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
    def may_cross_more(self) -> bool:
        """Whether it has not come as far as it may."""
        limit = self.data.max_hops
        return self.hops < limit or limit == ANY_HOPS

    @property
    def expires(self) -> float:
        """Until when it is passed on."""
        return self.born + self.ttl

    def age(self, now: float) -> int:
        """Milliseconds for which peers have kept it, us included."""
        return max(0, int((now - self.born) * 1000))

    def event(self, payload: Payload, *, verified: bool, age: float) -> MessageReceived:
        """What the application is told."""
        return MessageReceived(
            topic=self.data.topic,
            payload=payload,
            origin=self.data.origin_peer_id,
            message_id=self.data.id,
            timestamp=self.data.timestamp / 1000,
            hops=self.hops,
            verified=verified,
            series=self.data.series,
            sequence=self.data.sequence,
            age=age,
        )

    def outgoing(self, now: float) -> GossipData:
        """What a neighbour is sent."""
        return structs.replace(self.data, hops=self.hops, age=self.age(now), relayed_by=())


def tree_of(name: str) -> str:
    """The name of an origin's tree, from the origin's id or the id of one of its broadcasts."""
    return name[:TREE_DIGITS]


LARGE = 1 / 8
"""Of all room: an origin that takes more makes room for others before they do."""


@define(eq=False)
class _Share:
    """What is of one origin, or came by one neighbour."""

    weight: int = 0
    messages: dict[str, StoredMessage] = field(factory=dict)


class MessageStore:
    """Broadcasts by id, the oldest first."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.bytes: int = 0
        self.dropped: int = 0
        """Messages that had to go before their time."""
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._slot = max(1, limit_bytes // limit)  # what a message weighs besides its bytes
        self._messages: dict[str, StoredMessage] = {}
        self._origins: dict[PeerId | None, _Share] = {}
        self._parents: dict[PeerId | None, _Share] = {}
        self._ids: list[str] = []  # sorted
        self._by_birth: list[StoredMessage] = []  # what goes on, the first that was sent first
        self._sums: list[int] = [0]  # of the digests of so many of those; as far as it is known

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[StoredMessage]:
        return iter(self._messages.values())

    def get(self, message_id: str) -> StoredMessage | None:
        return self._messages.get(message_id)

    def ours(self) -> list[StoredMessage]:
        """What we have sent ourselves, the oldest first."""
        share = self._parents.get(None)
        return [] if share is None else list(share.messages.values())

    def count(self, after: str | None, until: str | None) -> int:
        """How many ids come after the one and not after the other."""
        places = self._named(after, until)
        return len(range(places.start, places.stop))

    def named(self, after: str | None, until: str | None) -> list[StoredMessage]:
        """All whose ids come after the one and not after the other, in that order."""
        return [self._messages[message_id] for message_id in self._ids[self._named(after, until)]]

    def _named(self, after: str | None, until: str | None) -> slice:
        start = 0 if after is None else bisect_right(self._ids, after)
        return slice(start, len(self._ids) if until is None else bisect_right(self._ids, until))

    def add(self, message: StoredMessage) -> list[StoredMessage]:
        """Keep one more. Returns those that had to go for it, never itself."""
        message_id = message.data.id
        dropped = []
        while self._messages and (
            len(self._messages) >= self._limit or self.bytes + message.size + ENVELOPE > self._limit_bytes
        ):
            dropped.append(self._least_missed())
            self.remove(dropped[-1])
        self.dropped += len(dropped)
        self._messages[message_id] = message
        insort(self._ids, message_id)
        self.bytes += message.size + ENVELOPE
        for shares, key in self._shares_of(message):
            share = shares.setdefault(key, _Share())
            share.weight += self._slot + message.size
            share.messages[message_id] = message
        if message.may_cross_more:
            self._index(message)
        return dropped

    def remove(self, message: StoredMessage) -> None:
        """Forget one that is here."""
        message_id = message.data.id
        del self._messages[message_id]
        del self._ids[bisect_left(self._ids, message_id)]
        self.bytes -= message.size + ENVELOPE
        for shares, key in self._shares_of(message):
            share = shares[key]
            share.weight -= self._slot + message.size
            del share.messages[message_id]
            if not share.messages:
                del shares[key]
        self.retire(message)

    def _shares_of(self, message: StoredMessage) -> tuple[tuple[dict[PeerId | None, _Share], PeerId | None], ...]:
        return (self._origins, message.data.origin_peer_id), (self._parents, message.parent)

    def _least_missed(self) -> StoredMessage:
        largest = max(self._origins.values(), key=_weight)
        if largest.weight <= LARGE * self._limit_bytes:
            largest = max(self._parents.values(), key=_weight)
        return next(iter(largest.messages.values()))

    # --- what is passed on, by the time it was sent -------------------------------------------------------------------

    def _index(self, message: StoredMessage) -> None:
        place = bisect_right(self._by_birth, message.born, key=_born)
        self._by_birth.insert(place, message)
        del self._sums[place + 1 :]

    def retire(self, message: StoredMessage) -> None:
        """Leave one out of what is passed on, though it may stay here."""
        place = bisect_left(self._by_birth, message.born, key=_born)
        while place < len(self._by_birth) and self._by_birth[place].born == message.born:
            if self._by_birth[place] is message:
                del self._by_birth[place]
                del self._sums[place + 1 :]
                return
            place += 1

    def revise(self, message: StoredMessage, hops: int, born: float) -> None:
        """Believe something else of its way."""
        self.retire(message)
        message.hops, message.born = hops, born
        if message.may_cross_more:
            self._index(message)

    def places(self, beyond: int, within: int, now: float) -> slice:
        """Where what is passed on lies that is of at least and at most so many milliseconds of age."""
        start = bisect_right(self._by_birth, now - (within + 1) / 1000, key=_born)
        return slice(start, max(start, bisect_right(self._by_birth, now - beyond / 1000, key=_born)))

    def at(self, places: slice) -> list[StoredMessage]:
        """What is passed on there, the first that was sent first."""
        return self._by_birth[places]

    def sum_of(self, places: slice) -> int:
        """The exclusive or of all digests there."""
        known = len(self._sums) - 1
        if known < places.stop:
            digests = [message.digest for message in self._by_birth[known : places.stop]]
            self._sums[known:] = accumulate(digests, xor, initial=self._sums[known])
        total: int = self._sums[places.stop] ^ self._sums[places.start]
        return total


_born = attrgetter("born")
_weight = attrgetter("weight")


def payload_size(data: GossipData) -> int:
    """Bytes of a broadcast's payload as it is kept, about."""
    if data.blob is not None:
        return len(data.blob)
    return len(data.payload) if isinstance(data.payload, str) else 8
