"""Time in a core: one heap of timers, back-off, and the times that are signed.

A timer is *set* for what we do ourselves, and for what is over at a certain time. It is a *wait* where something should
have come from others by then: it lasts longer by all the time that our own process has lost meanwhile (`LocalHealth`).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from attrs import define
from msgspec import Struct

from p2pmesh.protocols.util.latency import LocalHealth

K = TypeVar("K", bound=Hashable)

MOST_BEHIND = 1800.0
"""Seconds that our clock may be behind a time that we are said to have signed: it is wrong by as much as a service
tolerates, and was before, the other way. A signature of a later day would be good for whoever asked for it then."""
_VOID = object()
"""In place of the key of a timer that was moved or disarmed: comparing that is cheaper than finding the key."""


class Timers(Generic[K]):
    """The timers of a core: one heap, at most one deadline for each key, ties in the order they were set."""

    __slots__ = ("_armed", "_count", "_health", "_heap")

    def __init__(self, health: LocalHealth | None = None) -> None:
        self._health = health or LocalHealth()
        self._heap: list[list[Any]] = []  # deadline, order, key (void once it is), and for waits what was lost by then
        self._armed: dict[K, list[Any]] = {}  # the entry of each key
        self._count = 0

    def __len__(self) -> int:
        return len(self._armed)

    def __contains__(self, key: K) -> bool:
        return key in self._armed

    def set(self, key: K, deadline: float) -> None:
        """Arm `key`, or move it."""
        self._arm(key, deadline, None)

    def wait(self, key: K, deadline: float) -> None:
        """Arm `key`, or move it, for something of others: the deadline moves on by what we lose ourselves."""
        self._arm(key, deadline, self._health.lost)

    def _arm(self, key: K, deadline: float, lost: float | None) -> None:
        before = self._armed.get(key)
        if before is not None:
            before[2] = _VOID
        self._count += 1
        entry = self._armed[key] = [deadline, self._count, key, lost]
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._armed):
            self._heap = [entry for entry in self._heap if entry[2] is not _VOID]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Disarm `key`; nothing happens if it is not armed."""
        entry = self._armed.pop(key, None)
        if entry is not None:
            entry[2] = _VOID

    def next_deadline(self) -> float:
        """When the next timer is due; `math.inf` if none is armed."""
        heap = self._heap
        while heap and heap[0][2] is _VOID:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def pop_due(self, now: float) -> list[K]:
        """Disarm and give the keys whose deadline has come, earliest first."""
        due = []
        while self.next_deadline() <= now:
            deadline, _, key, lost = heapq.heappop(self._heap)
            if lost is None or lost == self._health.lost:
                del self._armed[key]
                due.append(key)
            else:
                self._arm(key, deadline + self._health.lost - lost, self._health.lost)
        return due


class Backoff(Struct, frozen=True):
    """Jittered exponential back-off: full jitter over the upper half, so that peers which failed together part ways."""

    first: float
    cap: float

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after that many failures in a row (1 or more)."""
        ceiling = min(self.cap, self.first * 2.0 ** min(failures - 1, 64))
        return ceiling * rng.uniform(0.5, 1.0)


@define
class RetryPacer:
    """Lets something happen again ever later while it fails."""

    backoff: Backoff
    rng: random.Random
    failures: int = 0
    not_before: float = -math.inf

    def failed(self, now: float) -> None:
        self.failures += 1
        self.not_before = now + self.backoff.delay(self.failures, self.rng)

    def reset(self) -> None:
        self.failures, self.not_before = 0, -math.inf


class Stamps:
    """Wall times for what we sign, in milliseconds: each is later than those before, also when the clock is set back.

    Who keeps the latest that a signer has signed so keeps the last. What others refuse for its time corrects them.
    """

    def __init__(self, wall: Callable[[float], float]) -> None:
        self._wall = wall
        self._last = -1

    def next(self, now: float) -> int:
        """The time to sign."""
        self._last = max(self._last + 1, int(self._wall(now) * 1000))
        return self._last

    def exceed(self, told: int, now: float) -> bool:
        """Sign later times than this one, which others have of us; False if no clock may be so far behind."""
        if told > (self._wall(now) + MOST_BEHIND) * 1000:
            return False
        self._last = max(self._last, told)
        return True

    def forget(self) -> None:
        """Others find our times wrong: go by the clock alone, which may have been set right."""
        self._last = -1
