"""The values that this peer holds for others: bounded in number and bytes, in all, for each publisher and for each key.

Values whose place is here stay until they expire; those that came by a far peer's favour, as copies on the path, go first when
there is no room, then those whose keys are farthest from our id, since others are nearer to them than we are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeAlias

from attrs import define, field

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
    FULL = "full"


@define(eq=False)
class Stored:
    """A value that is held here."""

    checked: VerifiedRecord
    until: float
    cached: bool
    """Whether it is but a copy on the path: not republished, not handed on."""
    radius: int | None = None
    """How far from the key the k-th nearest peer is, as far as we know; None if there are fewer."""
    changes: int = 0
    """Peers that came or went among the k nearest since somebody last saw to it."""

    @property
    def slot(self) -> RecordKey:
        return self.checked.record.key, self.checked.publisher


@define
class _Share:
    """What one publisher has here."""

    values: int = 0
    size: int = 0


@define
class RecordStore:
    """The values held by one peer."""

    me: PeerId
    config: KademliaConfig
    gone: Callable[[RecordKey], None]
    """Told of each value that is forgotten, or replaced."""
    size: int = 0
    """Bytes of all values."""
    _keys: dict[PeerId, dict[PeerId, Stored]] = field(factory=dict)
    _shares: dict[PeerId, _Share] = field(factory=dict)
    _count: int = 0
    _expiry: Timers[RecordKey] = field(factory=Timers)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Stored]:
        for values in self._keys.values():
            yield from values.values()

    def get(self, slot: RecordKey) -> Stored | None:
        """The value of this publisher under this key."""
        return self._keys.get(slot[0], {}).get(slot[1])

    def newest(self, key: PeerId, publisher: PeerId | None = None) -> Stored | None:
        """The newest value under this key, or that of one publisher."""
        values = self._keys.get(key)
        if not values:
            return None
        if publisher is not None:
            return values.get(publisher)
        return max(values.values(), key=lambda stored: (stored.checked.record.timestamp, stored.checked.publisher))

    def put(self, checked: VerifiedRecord, until: float, *, cached: bool) -> StoreResult:
        """Store a value, which replaces an older one of the same publisher under the same key."""
        slot = (checked.record.key, checked.publisher)
        old = self.get(slot)
        if old is not None and old.checked.record.timestamp > checked.record.timestamp:
            return StoreResult.OUTDATED
        if old is not None and old.checked.record == checked.record:
            self._prolong(old, until, cached=cached)
            return StoreResult.KNOWN
        if not self._has_share(checked, old) or not self._make_room(checked, old):
            return StoreResult.FULL
        if old is not None:
            self.remove(slot)
        self._insert(Stored(checked, until, cached))
        return StoreResult.NEW

    def remove(self, slot: RecordKey) -> None:
        """Forget a value."""
        values = self._keys[slot[0]]
        stored = values.pop(slot[1])
        if not values:
            del self._keys[slot[0]]
        self._expiry.cancel(slot)
        self.gone(slot)
        share = self._shares[slot[1]]
        share.values -= 1
        share.size -= stored.checked.size
        if not share.values:
            del self._shares[slot[1]]
        self._count -= 1
        self.size -= stored.checked.size

    def demote(self, stored: Stored, until: float) -> None:
        """This value's place is elsewhere now: keep it as a copy, no longer than until then."""
        stored.cached = True
        stored.until = min(stored.until, until)
        self._expiry.set(stored.slot, stored.until)

    def next_expiry(self) -> float:
        """When the next value expires."""
        return self._expiry.next_deadline()

    def expire(self, now: float) -> None:
        """Forget what has expired."""
        for slot in self._expiry.pop_due(now):
            self.remove(slot)

    # --- bounds -------------------------------------------------------------------------------------------------------

    def _prolong(self, stored: Stored, until: float, *, cached: bool) -> None:
        """The same value came again: a copy may have become ours to hold."""
        stored.cached = stored.cached and cached
        if until > stored.until:
            stored.until = until
            self._expiry.set(stored.slot, until)

    def _insert(self, stored: Stored) -> None:
        key, publisher = stored.slot
        self._keys.setdefault(key, {})[publisher] = stored
        share = self._shares.setdefault(publisher, _Share())
        share.values += 1
        share.size += stored.checked.size
        self._count += 1
        self.size += stored.checked.size
        self._expiry.set(stored.slot, stored.until)

    def _has_share(self, checked: VerifiedRecord, old: Stored | None) -> bool:
        """Whether its publisher, and its key, may have one more."""
        share = self._shares.get(checked.publisher, _Share())
        size = share.size + checked.size - (old.checked.size if old else 0)
        if size > self.config.publisher_bytes:
            return False
        if old is not None:
            return True
        under_key = len(self._keys.get(checked.record.key, ()))
        return share.values < self.config.publisher_values and under_key < self.config.key_values

    def _make_room(self, checked: VerifiedRecord, old: Stored | None) -> bool:
        """Let go of what is less at home here than this value, if that helps."""
        count = self._count + (old is None) - self.config.stored_values
        size = self.size + checked.size - (old.checked.size if old else 0) - self.config.stored_bytes
        if count <= 0 and size <= 0:
            return True
        rank = (False, xor_distance(self.me, checked.record.key))
        ranked = sorted(((self._rank(stored), stored.slot) for stored in self if stored is not old), reverse=True)
        leaving = []
        for other, slot in ranked:
            if other <= rank:
                return False
            leaving.append(slot)
            stored = self._keys[slot[0]][slot[1]]
            count -= 1
            size -= stored.checked.size
            if count <= 0 and size <= 0:
                for gone in leaving:
                    self.remove(gone)
                return True
        return False

    def _rank(self, stored: Stored) -> tuple[bool, int]:
        return stored.cached, xor_distance(self.me, stored.slot[0])
