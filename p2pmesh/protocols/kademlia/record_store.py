"""The values that this peer holds for others: bounded in number and bytes, in all, for each publisher and for each key.

They stay until they expire (Maymounkov and Mazieres 2002, section 2.5). Where there is no room, the values whose keys
are farthest from our id go first, since others are nearer to them than we are.

In: verified records, the time. Out: what became of a record.
State: the values, bounded by `KademliaConfig.stored_values`, `stored_bytes`, `publisher_values`, `publisher_bytes` and
`key_values`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TypeAlias

from attrs import define

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.kademlia.records import VerifiedRecord
from p2pmesh.protocols.util.timers import Timers

RecordKey: TypeAlias = tuple[PeerId, PeerId]
"""Key and publisher: each publisher has a value of its own under a key."""


class StoreResult(Enum):
    """What became of a value that was to be stored."""

    NEW = "new"
    KNOWN = "known"
    """It was here already, in this version."""
    OUTDATED = "outdated"
    """There is a newer one here, which stays."""
    KEY_FULL = "the key is full"
    """As many publishers as there may be have a value under its key."""
    PUBLISHER_FULL = "its publisher has no more room"
    FULL = "the store is full"
    """Its place is farther away than that of all that is here."""


@define(eq=False)
class Stored:
    """A value that is held here."""

    verified: VerifiedRecord
    radius: int | None = None
    """How far from the key the k-th nearest peer is, as far as we know; None if there are fewer."""

    @property
    def record_key(self) -> RecordKey:
        return self.verified.record.key, self.verified.publisher


@define
class _Share:
    """What one publisher has here."""

    values: int = 0
    size: int = 0


class RecordStore:
    """The values held by one peer."""

    def __init__(self, me: PeerId, config: KademliaConfig) -> None:
        self.size: int = 0
        """Bytes of all values."""
        self.turns: Timers[RecordKey] = Timers()
        """When each is republished from here: forgotten with it."""
        self._me = me
        self._config = config
        self._keys: dict[PeerId, dict[PeerId, Stored]] = {}
        self._shares: dict[PeerId, _Share] = {}
        self._count = 0
        self._expiry: Timers[RecordKey] = Timers()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Stored]:
        for values in self._keys.values():
            yield from values.values()

    def get(self, record_key: RecordKey) -> Stored | None:
        """The value of this publisher under this key."""
        key, publisher = record_key
        return self._keys.get(key, {}).get(publisher)

    def newest(self, key: PeerId, publisher: PeerId | None = None) -> Stored | None:
        """The newest value under this key, or that of one publisher."""
        values = self._keys.get(key)
        if not values:
            return None
        if publisher is not None:
            return values.get(publisher)
        return max(values.values(), key=lambda stored: (stored.verified.record.timestamp, stored.verified.publisher))

    def put(self, verified: VerifiedRecord, until: float) -> StoreResult:
        """Store a value, which replaces an older one of the same publisher under the same key."""
        old = self.get((verified.record.key, verified.publisher))
        if old is not None and old.verified.record.timestamp > verified.record.timestamp:
            return StoreResult.OUTDATED
        if old is not None and old.verified.record == verified.record:
            return StoreResult.KNOWN
        excess = self._excess(verified, old)
        if excess is not None:
            return excess
        leaving = self._make_room(verified, old)
        if leaving is None:
            return StoreResult.FULL
        for stored in leaving if old is None else [*leaving, old]:
            self.remove(stored.record_key)
        self._insert(Stored(verified), until)
        return StoreResult.NEW

    def remove(self, record_key: RecordKey) -> None:
        """Forget a value."""
        key, publisher = record_key
        values = self._keys[key]
        stored = values.pop(publisher)
        if not values:
            del self._keys[key]
        self._expiry.cancel(record_key)
        self.turns.cancel(record_key)
        share = self._shares[publisher]
        share.values -= 1
        share.size -= stored.verified.size
        if not share.values:
            del self._shares[publisher]
        self._count -= 1
        self.size -= stored.verified.size

    def next_deadline(self) -> float:
        """When the next value expires."""
        return self._expiry.next_deadline()

    def expire(self, now: float) -> None:
        """Forget the values that have expired."""
        for record_key in self._expiry.pop_due(now):
            self.remove(record_key)

    def snapshot(self) -> dict[str, object]:
        return {"values": self._count, "bytes": self.size}

    # --- bounds -------------------------------------------------------------------------------------------------------

    def _insert(self, stored: Stored, until: float) -> None:
        key, publisher = stored.record_key
        self._keys.setdefault(key, {})[publisher] = stored
        share = self._shares.setdefault(publisher, _Share())
        share.values += 1
        share.size += stored.verified.size
        self._count += 1
        self.size += stored.verified.size
        self._expiry.set(stored.record_key, until)

    def _excess(self, verified: VerifiedRecord, old: Stored | None) -> StoreResult | None:
        """Whether its publisher, or its key, may not have one more."""
        share = self._shares.get(verified.publisher, _Share())
        size = share.size + verified.size - (old.verified.size if old else 0)
        if size > self._config.publisher_bytes or (old is None and share.values >= self._config.publisher_values):
            return StoreResult.PUBLISHER_FULL
        is_full = old is None and len(self._keys.get(verified.record.key, ())) >= self._config.key_values
        return StoreResult.KEY_FULL if is_full else None

    def _make_room(self, verified: VerifiedRecord, old: Stored | None) -> list[Stored] | None:
        """The values to let go because they are less at home here than this one; None if that does not help."""
        count = self._count + (old is None) - self._config.stored_values
        size = self.size + verified.size - (old.verified.size if old else 0) - self._config.stored_bytes
        leaving: list[Stored] = []
        if count <= 0 and size <= 0:
            return leaving
        distance = xor_distance(self._me, verified.record.key)
        others = [stored for stored in self if stored is not old]
        for stored in sorted(others, key=lambda stored: (self._distance(stored), stored.record_key), reverse=True):
            if self._distance(stored) <= distance:
                return None
            leaving.append(stored)
            count -= 1
            size -= stored.verified.size
            if count <= 0 and size <= 0:
                return leaving
        return None

    def _distance(self, stored: Stored) -> int:
        return xor_distance(self._me, stored.verified.record.key)
