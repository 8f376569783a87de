"""The broadcasts that are alive here: kept for retries and for neighbours to come, bounded by number and by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from attrs import define, field

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.set_reconciliation import key_of
from p2pmesh.wire.messages import GossipData

ENVELOPE = 512
"""Bytes that a broadcast takes besides its payload, about."""

MOST_HOLDERS = 64
"""Neighbours, past ones included, that are remembered to have one broadcast; forgetting one costs an offer too many."""

TREE_DIGITS = 8


@define(eq=False)
class StoredMessage:
    """One broadcast, as it came, and what is known of its way."""

    data: GossipData
    parent: PeerId | None
    """Who gave it to us first; None for our own."""
    hops: int
    """Links it has crossed."""
    since: float
    expires: float
    size: int
    """Of the payload, in bytes."""
    relayed_by: tuple[PeerId, ...] = ()
    """What the original's peers are told: who had it already."""
    went_out: bool = False
    """Whether it was sent to any neighbour yet."""
    _holders: dict[PeerId, None] = field(factory=dict)
    _askers: dict[PeerId, int] = field(factory=dict)
    _key: str = ""

    @property
    def key(self) -> str:
        """Its place in digests."""
        if not self._key:
            self._key = key_of(self.data.id)
        return self._key

    @property
    def tree(self) -> str:
        """By which trees know its origin."""
        return tree_of(self.data.origin_peer_id)

    def is_held_by(self, peer: PeerId) -> bool:
        """Whether this peer is known to have it."""
        return peer in (self.parent, self.data.origin_peer_id) or peer in self._holders

    def held_by(self, peer: PeerId) -> None:
        """Note that this peer has it."""
        if len(self._holders) < MOST_HOLDERS:
            self._holders[peer] = None

    def asked_by(self, peer: PeerId) -> int:
        """Note that this neighbour asks for it. Gives how often it has."""
        if peer not in self._askers and len(self._askers) >= MOST_HOLDERS:
            return MOST_HOLDERS
        self._askers[peer] = self._askers.get(peer, 0) + 1
        return self._askers[peer]

    def age(self, now: float) -> int:
        """Milliseconds that peers have kept it, us included."""
        return self.data.age + max(0, int((now - self.since) * 1000))


def tree_of(name: str) -> str:
    """By which trees know an origin: the first digits of its id, with which the ids of its broadcasts begin, too."""
    return name[:TREE_DIGITS]


class MessageStore:
    """Broadcasts by id, the oldest first."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, StoredMessage] = OrderedDict()
        self.bytes: int = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, message_id: str) -> StoredMessage:
        return self._kept[message_id]

    def get(self, message_id: str) -> StoredMessage | None:
        return self._kept.get(message_id)

    def add(self, kept: StoredMessage) -> None:
        """Keep one more; `overflow` then says which must go."""
        self._kept[kept.data.id] = kept
        self.bytes += kept.size + ENVELOPE

    def overflow(self) -> str | None:
        """The oldest, if there is too much; never the only one."""
        too_much = len(self._kept) > self._limit or self.bytes > self._limit_bytes
        return next(iter(self._kept)) if too_much and len(self._kept) > 1 else None

    def remove(self, message_id: str) -> StoredMessage | None:
        kept = self._kept.pop(message_id, None)
        if kept is not None:
            self.bytes -= kept.size + ENVELOPE
        return kept

    def __iter__(self) -> Iterator[StoredMessage]:
        return iter(self._kept.values())

    def newest_first(self) -> Iterator[StoredMessage]:
        return reversed(self._kept.values())


def payload_size(data: GossipData) -> int:
    """Bytes of a broadcast's payload as it is kept, about."""
    if data.blob is not None:
        return len(data.blob)
    return len(data.payload) if isinstance(data.payload, str) else 8
