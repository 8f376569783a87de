"""The values that this peer holds for others: bounded in number and bytes, in all, for each publisher and for each key.

They stay until they expire (Maymounkov and Mazieres 2002, section 2.5). Where there is no room, the publisher that has
most here gives up what is farthest from our id for one that has less. Among those who have little the farthest goes,
since others are nearer to it than we are, but only while it is new: identities and places near us can be had for
nothing, so many new ones displace nothing that was here before them.

In: records, the time. Out: what became of a record.
State: the values, bounded by `KademliaConfig.stored_values`, `stored_bytes`, `publisher_values`, `publisher_bytes` and
`key_values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TypeAlias

from attrs import define, field

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.core import WallClock
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
    """Nothing that is here may give way to it."""


@define(eq=False)
class Stored:
    """A value that is held here, or the fact that there is none any more."""

    verified: VerifiedRecord
    until: float
    """When it is forgotten."""
    since: float
    """When its publisher came to have a value under its key here."""
    distance: int
    """From its key to our id."""
    radius: int | None = None
    """How far from the key the k-th nearest peer is, as far as we know; None if there are fewer."""

    @property
    def record_key(self) -> RecordKey:
        return self.verified.record.key, self.verified.publisher


@define
class _Share:
    """What one publisher has here."""

    values: dict[PeerId, Stored] = field(factory=dict)
    """By their keys."""
    size: int = 0


class RecordStore:
    """The values held by one peer."""

    def __init__(self, me: PeerId, config: KademliaConfig, wall: WallClock) -> None:
        self.size: int = 0
        """Bytes of all values."""
        self.turns: Timers[RecordKey] = Timers()
        """When each is republished from here: forgotten with it."""
        self._me = me
        self._config = config
        self._wall = wall
        self._keys: dict[PeerId, dict[PeerId, Stored]] = {}
        self._shares: dict[PeerId, _Share] = {}
        self._count = 0
        self._expiry: Timers[RecordKey] = Timers()
        self._heavy: Timers[PeerId] = Timers()  # publishers by what they have, the most first, if it is much
        self._new: Timers[RecordKey] = Timers()  # values that may give way, the farthest first

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Stored]:
        for values in self._keys.values():
            yield from values.values()

    def get(self, record_key: RecordKey) -> Stored | None:
        """The value of this publisher under this key."""
        key, publisher = record_key
        return self._keys.get(key, {}).get(publisher)

    def first(self, key: PeerId, now: float) -> Stored | None:
        """The value under this key of the publisher that has had one here for longest; else that there is none."""
        values, wall = self._keys.get(key, {}).values(), self._wall(now)
        return next((stored for stored in values if stored.verified.is_live(wall)), next(iter(values), None))

    def publishers(self, key: PeerId, now: float) -> list[PeerId]:
        """Who has a value under this key, the one that has had it here for longest first."""
        wall = self._wall(now)
        return [who for who, stored in self._keys.get(key, {}).items() if stored.verified.is_live(wall)]

    def judge(self, verified: VerifiedRecord, now: float) -> StoreResult | None:
        """What becomes of a record whatever room there is; None if that depends on it."""
        old = self.get((verified.record.key, verified.publisher))
        if old is None or old.verified.record.timestamp < verified.record.timestamp:
            return self._excess(verified, old, now)
        return StoreResult.KNOWN if old.verified.record == verified.record else StoreResult.OUTDATED

    def put(self, verified: VerifiedRecord, now: float) -> StoreResult:
        """Store a value, which replaces an older one of the same publisher under the same key.

        It is remembered for as long as that one would have been, so that nobody can bring that back.
        """
        judged = self.judge(verified, now)
        if judged is not None:
            return judged
        record_key = verified.record.key, verified.publisher
        old = self.get(record_key)
        leaving = self._make_room(verified, old, now)
        if leaving is None:
            return StoreResult.FULL
        for gone in dict.fromkeys([*leaving, *self._spent(verified, old, now)]):
            self.remove(gone)
        until = now + verified.forgotten - self._wall(now)
        distance = xor_distance(self._me, verified.record.key)
        if old is None:
            self._insert(Stored(verified, until, now, distance))
        else:
            self._count_out(old)
            self._insert(Stored(verified, max(until, old.until), old.since, distance))
        return StoreResult.NEW

    def remove(self, record_key: RecordKey) -> None:
        """Forget a value."""
        key, publisher = record_key
        values = self._keys[key]
        self._count_out(values.pop(publisher))
        if not values:
            del self._keys[key]
        for timers in (self._expiry, self.turns, self._new):
            timers.cancel(record_key)

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

    def _insert(self, stored: Stored) -> None:
        key, publisher = stored.record_key
        self._keys.setdefault(key, {})[publisher] = stored  # in the place of its predecessor
        share = self._shares.setdefault(publisher, _Share())
        share.values[key] = stored
        share.size += stored.verified.size
        self._count += 1
        self.size += stored.verified.size
        self._expiry.set(stored.record_key, stored.until)
        self._new.set(stored.record_key, -stored.distance)
        self._rank(publisher)

    def _count_out(self, stored: Stored) -> None:
        key, publisher = stored.record_key
        share = self._shares[publisher]
        del share.values[key]
        share.size -= stored.verified.size
        if not share.values:
            del self._shares[publisher]
        self._count -= 1
        self.size -= stored.verified.size
        self._rank(publisher)

    def _rank(self, publisher: PeerId) -> None:
        weight = self._weight(publisher)
        if weight > self._config.max_value:
            self._heavy.set(publisher, -weight)
        else:
            self._heavy.cancel(publisher)

    def _weight(self, publisher: PeerId, values: int = 0, size: int = 0) -> int:
        """The bytes that a publisher has here, with these: each value counts as one of mean size at least.

        Whatever one value has, nobody has less: otherwise many with small ones would displace a large one.
        """
        share = self._shares.get(publisher, _Share())
        mean = self._config.stored_bytes // self._config.stored_values
        return max(self._config.max_value, share.size + size, (len(share.values) + values) * mean)

    def _excess(self, verified: VerifiedRecord, old: Stored | None, now: float) -> StoreResult | None:
        """Whether its publisher, or its key, may not have one more. Only its owner has a value under an owned key."""
        spent = self._spent(verified, old, now)
        theirs = self._shares.get(verified.publisher, _Share()).values
        left = [one.verified.size for one in theirs.values() if one is not old and one.record_key not in spent]
        settings = self._config
        if len(left) >= settings.publisher_values or sum(left) + verified.size > settings.publisher_bytes:
            return StoreResult.PUBLISHER_FULL
        key = verified.record.key
        is_full = self._is_shared_out(verified, old) and not any(place == key for place, _ in spent)
        return StoreResult.KEY_FULL if is_full else None

    def _is_shared_out(self, verified: VerifiedRecord, old: Stored | None) -> bool:
        """Whether a new value would be one more under a shared key than there may be."""
        if old is not None or verified.record.name is not None:
            return False
        values = self._keys.get(verified.record.key, {}).values()
        return sum(stored.verified.record.name is None for stored in values) >= self._config.key_values

    def _spent(self, verified: VerifiedRecord, old: Stored | None, now: float) -> dict[RecordKey, None]:
        """Records without a value that give way: the first under a full key, and all of a publisher with many."""
        wall, share = self._wall(now), self._shares.get(verified.publisher, _Share())
        others: list[Stored] = []
        if self._is_shared_out(verified, old):
            values = self._keys[verified.record.key].values()
            others = [stored for stored in values if not stored.verified.is_live(wall)][:1]
        is_many = len(share.values) >= self._config.publisher_values
        if is_many or share.size + verified.size > self._config.publisher_bytes:
            own = share.values.values()
            others += [stored for stored in own if stored is not old and not stored.verified.is_live(wall)]
        return {stored.record_key: None for stored in others}

    def _make_room(self, verified: VerifiedRecord, old: Stored | None, now: float) -> list[RecordKey] | None:
        """The values that give way to this one; None if too few would."""
        values, size = int(old is None), verified.size - (old.verified.size if old else 0)
        excess = max(self._count + values - self._config.stored_values, 0)
        bytes_over = max(self.size + size - self._config.stored_bytes, 0)
        if not excess and not bytes_over:
            return []
        weight = self._weight(verified.publisher, values, size)
        candidates: Iterable[Stored] = ()
        if self._heavy.next_deadline() < -weight:
            heaviest = self._heavy.pop_due(self._heavy.next_deadline())
            for publisher in heaviest:
                self._rank(publisher)
            candidates = sorted(self._shares[heaviest[0]].values.values(), key=lambda stored: -stored.distance)
        elif weight <= self._config.max_value:
            candidates = self._new_beyond(xor_distance(self._me, verified.record.key), now)
        leaving: list[Stored] = []
        for stored in candidates:
            if stored is not old:
                leaving.append(stored)
                bytes_over -= stored.verified.size
            if excess <= len(leaving) and bytes_over <= 0:
                break
        for stored in leaving if old is None else [*leaving, old]:
            self._new.set(stored.record_key, -stored.distance)
        return [stored.record_key for stored in leaving] if excess <= len(leaving) and bytes_over <= 0 else None

    def _new_beyond(self, distance: int, now: float) -> Iterator[Stored]:
        """The new values that are farther away than that, the farthest first. Those taken lose their rank."""
        while -self._new.next_deadline() > distance:
            tied = [self._keys[key][publisher] for key, publisher in self._new.pop_due(self._new.next_deadline())]
            new = [stored for stored in tied if stored.since > now - self._config.republish]
            for stored in new[1:]:
                self._new.set(stored.record_key, -stored.distance)
            yield from new[:1]
