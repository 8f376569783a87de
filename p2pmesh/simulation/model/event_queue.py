"""What is to happen when: the events of a simulation, in the order of their times.

One heap of all events would be simple, but each push and pop compares its way through memory that no cache holds once
there are some ten thousand events. So only the events of the current moment lie in a heap; those to come lie in
unsorted lists, one for each stretch of time, until their turn comes (a calendar queue: Brown 1988, with a heap for each
day).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final, TypeAlias

EPOCH: Final = 1_700_000_000.0
"""Wall time at the start of every simulation, in seconds since 1970."""
DAYS_PER_SECOND: Final = 256
"""Stretches of time in a virtual second: some hundred events each, when 10,000 peers are busy."""

Action: TypeAlias = Callable[[Any, Any], object]
Entry: TypeAlias = tuple[float, int, Action, Any, Any]


class EventQueue:
    """Events by time; those of one time in the order in which they were added."""

    __slots__ = ("_ahead", "_days", "_next_order", "_today", "_today_is")

    def __init__(self) -> None:
        self._today: list[Entry] = []  # a heap: all events up to the end of the day
        self._today_is = -1
        self._days: dict[int, list[Entry]] = {}
        self._ahead: list[int] = []  # a heap: the days to come that have events
        self._next_order = itertools.count().__next__

    def __len__(self) -> int:
        return len(self._today) + sum(map(len, self._days.values()))

    def add(self, time: float, action: Action, a: Any, b: Any) -> None:
        """Add an event: `action(a, b)` at this time, which must be finite."""
        entry = (time, self._next_order(), action, a, b)
        day = int(time * DAYS_PER_SECOND)
        if day <= self._today_is:
            heappush(self._today, entry)
            return
        events = self._days.get(day)
        if events is None:
            self._days[day] = [entry]
            heappush(self._ahead, day)
        else:
            events.append(entry)

    def due(self, time: float) -> list[Entry] | None:
        """A heap whose first event is the next of all, if that is due by this time; else None.

        The caller may pop that event, and ask again.
        """
        if not self._today:
            if not self._ahead or self._ahead[0] > time * DAYS_PER_SECOND:
                return None
            self._today_is = heappop(self._ahead)
            self._today = self._days.pop(self._today_is)
            heapify(self._today)
        return self._today if self._today[0][0] <= time else None
