"""A sliding window: what was sent and is not acknowledged yet, bounded in number and in bytes.

Broadcasts to a neighbour, direct messages to a peer and pulls of what was missed each keep one. Nothing larger than the bytes
of a window could ever be sent otherwise, so a window that is empty takes one of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Window(Generic[K, V]):
    """Entries on their way, oldest first, with the bytes of each."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._entries: dict[K, tuple[V, int]] = {}
        self.bytes: int = 0
        """Of all entries."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def values(self) -> list[V]:
        """All entries, oldest first."""
        return [value for value, _ in self._entries.values()]

    def oldest(self) -> V:
        """The entry that was added first."""
        return next(iter(self._entries.values()))[0]

    def has_room(self, size: int) -> bool:
        """Whether one of `size` bytes may be added."""
        if len(self._entries) >= self._most:
            return False
        return not self.bytes or self.bytes + size <= self._most_bytes

    def add(self, key: K, value: V, size: int) -> None:
        """Add one, which is not there, whether or not there is room."""
        self._entries[key] = (value, size)
        self.bytes += size

    def pop(self, key: K) -> V | None:
        """Take one out; None if it is not there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.bytes -= entry[1]
        return entry[0]
