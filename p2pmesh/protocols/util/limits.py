"""Bounds on what others can make us remember, and on how often they may do something.

- `LruTable` holds what was learned of peers, or of addresses: when it is full, the entry that was not renewed for
  longest goes.
- `ExpiringSet` holds ids that were seen, each until a time of its own: what a promise rests on is not forgotten before
  that, unless more come than its bound, and those are counted.
- `SenderWindows` holds what was taken of each sender, so that nothing is taken twice, whatever others send: where there
  is no room, newcomers are refused.
- `TokenBucket` (Turner 1986; RFC 2697) holds up to `burst` tokens and gains `rate` a second. It may be overdrawn by one
  more burst, so that its owner can tell a quick client from one that floods. `RateLimiter` is a bucket for each peer,
  and never overdraws.
- `WorkBudget` bounds the work that neighbours cause in one core, each of them and all together: who spends gets the
  answer now, later, or too much.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from itertools import islice
from typing import Final, Generic, TypeVar

from attrs import define, field

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SWEEP_EVERY: Final = 10.0
"""Seconds between two looks for what need not be remembered any more, while there is no room."""


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

    def make_room(self, may_go: Callable[[V], bool]) -> bool:
        """Forget what may go, the least recently renewed first, if the table is full. Whether there is room now."""
        if len(self._items) >= self._limit:
            key = next((key for key, value in self._items.items() if may_go(value)), None)
            if key is None:
                return False
            del self._items[key]
        return True

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


class Novelty(enum.Enum):
    """Whether something may be taken of its sender."""

    NEW = "new"
    KNOWN = "known"
    OLD = "old"
    """Not younger than something that was forgotten: it may have been taken."""
    FULL = "full"
    """There is no room to remember it, for what this neighbour brings."""


@define(eq=False)
class _Taken:
    """What was taken of one sender: ids, and the times of all that are remembered, the earliest first."""

    by: str
    floor: float = -math.inf
    newest: float = -math.inf
    ids: set[str] = field(factory=set)
    times: list[tuple[float, str]] = field(factory=list)


class SenderWindows:
    """Ids that were taken of each sender, in a window of time for each, so that nothing is taken twice.

    What is older than `lasts` by its sender's own clock its taker refuses anyway, so nothing older need be remembered.
    Where a sender has more ids than its window holds, the earliest go, and what is not younger than those is refused
    from then on. Nobody's messages make room for another's: what each of `parts` neighbours brings has a part of
    `limit` ids to itself (and as many are left for those that were neighbours before), and above that what is new is
    refused.
    """

    __slots__ = ("_by", "_each", "_lasts", "_limit", "_part", "_swept", "_taken", "refused")

    def __init__(self, limit: int, each: int, parts: int, lasts: float) -> None:
        self._limit = limit
        self._part = max(1, limit // (2 * parts))
        self._each = max(1, min(each, self._part // 2))
        self._lasts = lasts
        self._taken: dict[str, _Taken] = {}
        self._by: Counter[str] = Counter()
        """Ids that each neighbour brought; a sender's count for the one that brought its first."""
        self._swept = -math.inf
        self.refused: int = 0
        """Messages that were old, or for which there was no room."""

    def __len__(self) -> int:
        return self._by.total()

    def judge(self, sender: str, name: str, at: float, by: str, now: float) -> Novelty:
        """Whether a message of this id and time, brought by a neighbour, may be taken. All times are wall times."""
        taken = self._taken.get(sender)
        if taken is not None and name in taken.ids:
            return Novelty.KNOWN
        if taken is not None and self._clamped(at, now) <= taken.floor:
            self.refused += 1
            return Novelty.OLD
        if self._is_full(taken, by):
            self._sweep(now)
            if self._is_full(self._taken.get(sender), by):
                self.refused += 1
                return Novelty.FULL
        return Novelty.NEW

    def add(self, sender: str, name: str, at: float, by: str, now: float) -> None:
        """Take a message that is new."""
        taken = self._taken.get(sender)
        if taken is None:
            taken = self._taken[sender] = _Taken(by)
        elif taken.by != by and self._by[taken.by] >= self._part:  # who filled its part must not shut out who is in it
            self._by[taken.by] -= len(taken.times)
            self._by[by] += len(taken.times)
            taken.by = by
        at = self._clamped(at, now)
        taken.ids.add(name)
        heappush(taken.times, (at, name))
        taken.newest = max(taken.newest, at)
        self._by[taken.by] += 1
        while len(taken.times) > self._room_of(taken) or taken.times[0][0] < now - self._lasts:
            taken.floor, gone = heappop(taken.times)
            taken.ids.discard(gone)
            self._by[taken.by] -= 1

    def _clamped(self, at: float, now: float) -> float:
        """A time that is no use, since the clocks are too far apart, is the time of arrival instead."""
        return at if abs(at - now) <= self._lasts else now

    def _room_of(self, taken: _Taken) -> int:
        """Ids that a sender may have: fewer once its neighbour has used half of its part."""
        return self._each if 2 * self._by[taken.by] <= self._part else max(1, self._each // 16)

    def _is_full(self, taken: _Taken | None, by: str) -> bool:
        if taken is not None and len(taken.times) >= self._room_of(taken):
            return False  # it makes room itself
        if self._by.total() >= self._limit:
            return True
        bringers = {by} if taken is None else {by, taken.by}
        return all(self._by[one] >= self._part for one in bringers)

    def _sweep(self, now: float) -> None:
        """Forget senders of whom nothing may come that was taken; it takes a while, so not too often."""
        if now < self._swept + SWEEP_EVERY:
            return
        self._swept = now
        for sender, taken in list(self._taken.items()):
            if taken.newest < now - self._lasts:
                del self._taken[sender]
                self._by[taken.by] -= len(taken.times)
        self._by = +self._by


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

    def take_if_there(self, now: float, count: float = 1) -> bool:
        """Take one token, or so many, if they are there, and nothing otherwise."""
        level = self._level(now)
        is_there = level >= count
        self._tokens, self._at = level - count * is_there, now
        return is_there

    def give(self, now: float, count: float = 1) -> None:
        """Give one token, or so many, back."""
        self._tokens = min(self._burst, self._level(now) + count)
        self._at = now

    def is_whole(self, now: float) -> bool:
        """Whether it holds a whole burst, as a new one does."""
        return self._level(now) >= self._burst

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


VERIFY: Final = 100.0
"""Units that a signature costs to check, or a key exchange: a unit is a microsecond of one core, about."""
FRAME: Final = 50.0
"""Units that any frame costs to be brought here and looked at, be it for nothing."""
BYTES: Final = 50.0
"""Bytes that cost one unit to be made and sent."""
BURST: Final = 3.0
"""Seconds of an allowance that may be spent at once: what an honest neighbour asks for comes in bursts."""
LEAST: Final = 1000.0
"""Units that an allowance holds at least, however many share: what is asked for once must be payable."""
FLOOD: Final = 2.0
"""A key is too much when it was refused the work of the whole share for so many seconds, beyond its own allowance."""


class Payment(enum.Enum):
    """Whether work is paid for."""

    NOW = "now"
    LATER = "later"
    """Not now: put it off if it is to be done at all, or drop it if its sender repeats it by protocol."""
    TOO_MUCH = "too much"
    """As `LATER`; and it has been refused so much by now that its link should end."""


class WorkBudget:
    """The work that others may cause in one core, in units: microseconds of a core, about.

    `share` is the part of a core that all of it may take. Half of that is split among the keys, mostly neighbours:
    each has an allowance that nobody else can use up. What a key asks for beyond its allowance is paid from the other
    half, while there is some. Units are a price for what came, not a measurement: a slow or busy process owes nobody
    less.

    Nobody is forgotten before its allowance is whole again, so that coming back under the same name gains nothing; who
    comes while there are `keys` others pays from the common half alone.
    """

    __slots__ = ("_common", "_each", "_flood", "_keys", "later", "rate", "too_much")

    def __init__(self, keys: int, share: float) -> None:
        self._keys = keys
        self.rate: float = share * 1e6 / 2 / keys
        """Units a second that are each key's own."""
        self._common = TokenBucket(share * 1e6 / 2, share * 1e6 / 2 * BURST, 0.0)
        self._flood = share * 1e6 * FLOOD
        self._each: OrderedDict[str, tuple[TokenBucket, TokenBucket]] = OrderedDict()
        """The allowance of each key, and what it may still be refused; those that spent last come last."""
        self.later: int = 0
        """Requests that were not paid for."""
        self.too_much: int = 0
        """Of them those that were too much."""

    def __len__(self) -> int:
        return len(self._each)

    def spend(self, key: str, units: float, now: float) -> Payment:
        """Pay for work that this key is about to cause; nothing is taken unless all of it is paid for.

        What is above `BURST` seconds of an allowance and of the common half is never paid for: split it.
        """
        own, refused = self._entry(key, now)
        if (own is not None and own.take_if_there(now, units)) or self._common.take_if_there(now, units):
            return Payment.NOW
        self.later += 1
        if refused is None or refused.take_if_there(now, units):
            return Payment.LATER
        self.too_much += 1
        return Payment.TOO_MUCH

    def refund(self, key: str, units: float, now: float) -> None:
        """What came was asked for by ourselves: it cost this key nothing."""
        entry = self._each.get(key)
        if entry is not None:
            entry[0].give(now, units)

    def snapshot(self) -> dict[str, int]:
        return {"keys": len(self._each), "later": self.later, "too_much": self.too_much}

    def _entry(self, key: str, now: float) -> tuple[TokenBucket | None, TokenBucket | None]:
        entry = self._each.get(key)
        if entry is None:
            if len(self._each) >= self._keys and not self._forget_whole(now):
                return None, None
            own = TokenBucket(self.rate, max(LEAST, self.rate * BURST), now)
            entry = self._each[key] = (own, TokenBucket(self.rate, self._flood, now))
        self._each.move_to_end(key)
        return entry

    def _forget_whole(self, now: float) -> bool:
        """Forget one whose allowance is whole again: it would be none the better for it."""
        for key in islice(self._each, 8):  # those that spent nothing for longest
            if all(bucket.is_whole(now) for bucket in self._each[key]):
                del self._each[key]
                return True
        return False
