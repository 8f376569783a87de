"""Numbers that an origin gives to its broadcasts, so that who wants them in order can see what is missing."""

from __future__ import annotations

from collections import OrderedDict

MOST_TOPICS = 4096
"""Whose numbers are remembered; a topic that was silent for longer than so many others begins a new series."""


class Numbering:
    """The numbers of one origin: each topic has its own, so that who wants one topic is not kept waiting for another.

    A series is named by the time it began, by the origin's clock, and never twice: what belongs to a later one was sent later.
    """

    def __init__(self) -> None:
        self._topics: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._last_series = -1

    def __len__(self) -> int:
        return len(self._topics)

    def next(self, topic: str, milliseconds: int) -> tuple[int, int]:
        """Series and number, from 1, of the next broadcast of a topic; `milliseconds` is the wall time."""
        series, number = self._topics.pop(topic, (0, 0))
        if not number:
            series = self._last_series = max(milliseconds, self._last_series + 1)
        if len(self._topics) >= MOST_TOPICS:
            self._topics.popitem(last=False)
        self._topics[topic] = series, number + 1
        return series, number + 1
