"""Bounded memory: a table that forgets the least recently renewed, and a set whose members expire.

`LruTable` holds what was learned of peers: when it is full, the entry that was not renewed for longest goes.
`ExpiringSet` holds ids that were seen, each until a time of its own: what a promise rests on is not forgotten before
that, unless more come than its bound, and those are counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from p2pmesh.keyspace import PeerId

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruTable(Generic[V]):
    """A bounded table of peers, the least recently renewed forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[PeerId, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._items

    def get(self, peer: PeerId) -> V | None:
        return self._items.get(peer)

    def put(self, peer: PeerId, value: V) -> None:
        self._items[peer] = value
        self._items.move_to_end(peer)
        if len(self._items) > self._limit:
            self._items.popitem(last=False)

    def pop(self, peer: PeerId) -> V | None:
        return self._items.pop(peer, None)

    def values(self) -> list[V]:
        """All entries, the least recently renewed first."""
        return list(self._items.values())


class ExpiringSet(Generic[K, V]):
    """Ids, each with a small fact and the time until which it is remembered.

    An id is kept until its own time is over, unless more than `limit` are added first; those are counted as
    `forgotten`.
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
