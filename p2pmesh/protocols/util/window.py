"""What is on its way and has not ended yet: a sliding window of messages, and a table of calls to another core.

A `Window` is bounded in number and in bytes: broadcasts to a neighbour, direct messages to a peer and pulls of what was
missed each keep one. Nothing larger than the bytes of a window could ever be sent otherwise, so an empty one takes one
of any size. A `CallTable` is bounded in number and in time: the outcome of a call is a notice, and notices can be lost,
since every inbox is bounded; so a call whose outcome stays away ends by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.timers import Timers

K = TypeVar("K")
V = TypeVar("V")


class Window(Generic[K, V]):
    """Entries on their way, oldest first, with the bytes of each."""

    __slots__ = ("_entries", "_most", "_most_bytes", "bytes")

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


OUTCOME_GRACE = 5.0
"""Seconds after a call's own time-out until its outcome counts as lost: it comes from this process, in milliseconds."""


class CallTable(Generic[V]):
    """Calls that have not ended, each with a number that is never used twice, oldest first."""

    __slots__ = ("_last", "_limit", "_open", "_patience", "_timers", "lost")

    def __init__(self, limit: float, timeout: float, health: LocalHealth | None = None) -> None:
        """Make one for `limit` calls at once that are to end within `timeout` seconds."""
        self._limit = limit
        self._patience = timeout + OUTCOME_GRACE
        self._open: dict[int, V] = {}
        self._timers: Timers[int] = Timers(health)
        self._last = 0
        self.lost: int = 0
        """Calls whose outcome never came."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_full(self) -> bool:
        return len(self._open) >= self._limit

    def values(self) -> list[V]:
        return list(self._open.values())

    def open(self, value: V, now: float) -> int:
        """Begin a call, whether or not the table is full. Returns its number."""
        self._last += 1
        self._open[self._last] = value
        self._timers.wait(self._last, now + self._patience)
        return self._last

    def close(self, call: int) -> V | None:
        """End a call; None if it has ended already."""
        self._timers.cancel(call)
        return self._open.pop(call, None)

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def pop_overdue(self, now: float) -> dict[int, V]:
        """End the calls whose outcome has stayed away, and return them by their numbers."""
        overdue = self._timers.pop_due(now)
        self.lost += len(overdue)
        return {call: self._open.pop(call) for call in overdue}
