"""Which ids have been seen: remembered longer than what they stand for, bounded by time and by number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ExpiringSet(Generic[K, V]):
    """Ids and a small fact about each, the oldest forgotten first.

    An id is kept until its own time is over, unless more than `limit` come first; those are counted as `forgotten`.
    """

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
        """Remember a new id until that time; what was first said of an id that is known stays."""
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
