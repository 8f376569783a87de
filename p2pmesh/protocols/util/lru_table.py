"""What was learned of peers, in bounded tables: the least recently renewed goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from p2pmesh.keyspace import PeerId

V = TypeVar("V")


class LruTable(Generic[V]):
    """A bounded table of peers."""

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
        """All that is known, the least recently renewed first."""
        return list(self._items.values())


class RateLimiter:
    """How often each peer may do something: so many times at once, and then at a rate. The forgotten start afresh."""

    def __init__(self, limit: int, per_second: float, burst: float) -> None:
        self._left = LruTable[tuple[float, float]](limit)
        self._per_second = per_second
        self._burst = burst

    def __len__(self) -> int:
        return len(self._left)

    def take(self, peer: PeerId, now: float) -> bool:
        """Whether it may once more."""
        left, at = self._left.get(peer) or (self._burst, now)
        left = min(self._burst, left + (now - at) * self._per_second)
        allowed = left >= 1.0
        self._left.put(peer, (left - allowed, now))
        return allowed

    def forget(self, peer: PeerId) -> None:
        """It starts afresh."""
        self._left.pop(peer)
