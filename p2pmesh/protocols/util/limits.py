"""Bounds on what others can make us remember, and on how often they may do something.

- `LruTable` holds what was learned of peers, or of addresses: when it is full, the entry that was not renewed for
  longest goes.
- `ExpiringSet` holds ids that were seen, each until a time of its own: what a promise rests on is not forgotten before
  that, unless more come than its bound, and those are counted.
- `TokenBucket` (Turner 1986; RFC 2697) holds up to `burst` tokens and gains `rate` a second. It may be overdrawn by one
  more burst, so that its owner can tell a quick client from one that floods. `RateLimiter` is a bucket for each peer,
  and never overdraws.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruTable(Generic[V]):
    """A bounded table by peers, or other keys of text, the least recently renewed forgotten first."""

    __slots__ = ("_items", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[str, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def get(self, key: str) -> V | None:
        return self._items.get(key)

    def put(self, key: str, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._limit:
            self._items.popitem(last=False)

    def pop(self, key: str) -> V | None:
        return self._items.pop(key, None)

    def values(self) -> list[V]:
        """All entries, the least recently renewed first."""
        return list(self._items.values())


class ExpiringSet(Generic[K, V]):
    """Ids, each with a small fact and the time until which it is remembered.

    An id is kept until its own time is over, unless more than `limit` are added first; those are counted as
    `forgotten`.
    """

    __slots__ = ("_entries", "_limit", "forgotten")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self.forgotten: int = 0
        """Ids that had to go before their time."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __getitem__(self, key: K) -> V:
        return self._entries[key][1]

    def add(self, key: K, value: V, until: float, now: float) -> None:
        """Remember a new id until that time; a known id keeps its first fact."""
        if key in self._entries:
            return
        while self._entries and self._oldest() <= now:
            self._entries.popitem(last=False)
        if len(self._entries) >= self._limit:
            self._entries.popitem(last=False)
            self.forgotten += 1
        self._entries[key] = (until, value)

    def discard(self, key: K) -> None:
        """Forget an id."""
        self._entries.pop(key, None)

    def _oldest(self) -> float:
        return next(iter(self._entries.values()))[0]


class TokenBucket:
    """One rate. A taker that overdraws it by a whole burst is flooding."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, count: int = 1) -> bool:
        """Take one token, or so many. Whether they were there; if not, the bucket is overdrawn."""
        self._tokens = self._level(now) - count
        self._at = now
        return self._tokens >= 0

    def take_if_there(self, now: float) -> bool:
        """Take one token if it is there, and nothing otherwise."""
        level = self._level(now)
        is_there = level >= 1
        self._tokens, self._at = level - is_there, now
        return is_there

    def give_back(self, now: float) -> None:
        """A token was not needed after all."""
        self.take(now, -1)
        self._tokens = min(self._burst, self._tokens)

    @property
    def is_flooded(self) -> bool:
        """Whether it is overdrawn by a whole burst."""
        return self._tokens < -self._burst

    def _level(self, now: float) -> float:
        return min(self._burst, self._tokens + (now - self._at) * self._rate)


class RateLimiter:
    """A rate for each peer or address. Of more than `limit` the least recent are forgotten, and start afresh."""

    __slots__ = ("_buckets", "_burst", "_per_second")

    def __init__(self, limit: int, per_second: float, burst: float) -> None:
        self._buckets = LruTable[TokenBucket](limit)
        self._per_second = per_second
        self._burst = burst

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> bool:
        """Whether this one may do it once more."""
        bucket = self._buckets.get(key) or TokenBucket(self._per_second, self._burst, now)
        self._buckets.put(key, bucket)
        return bucket.take_if_there(now)

    def forget(self, key: str) -> None:
        """Let this one start afresh."""
        self._buckets.pop(key)
