"""How far this process is behind: what comes late to its own timers has no right to call others slow.

A process without its share of the processor finds its timers late, and all that others sent it late by as much. So it
waits longer for its neighbours by what its timers were late recently; and what is due in a moment that comes very late
is put off once, because what it waits for may lie in the inbox (Lifeguard's local health: Dadgar, Phillips, Currey
2018).
"""

from __future__ import annotations

import math

HALF_LIFE = 2.0
"""Seconds in which the lateness that is remembered halves: a busy moment is over in a few."""
LATE = 0.1
"""Seconds: above what a busy moment makes of a timer."""
MOST = 1.0
"""Seconds that are believed: a process that was stopped for a minute is not slow for one after that."""
ROOM = 4
"""Factor from lateness to patience: an answer takes many turns of the processes on its way, and each is late."""


class LocalHealth:
    """How late timers were recently, in seconds: the most, halved every 2 s."""

    def __init__(self) -> None:
        self.is_late: bool = False
        """Whether the last timers came very late."""
        self._level = 0.0
        self._at = 0.0

    def note(self, due: float, now: float) -> None:
        """Take note that timers which were due then are looked at now."""
        late = min(max(0.0, now - due), MOST)
        self.is_late = late > LATE
        if late > self._now(now):
            self._level, self._at = late, now

    def patience(self, now: float) -> float:
        """Seconds to wait longer for others."""
        return ROOM * self._now(now)

    def is_high(self, now: float) -> bool:
        """Whether timers have come very late recently."""
        return self._now(now) > LATE

    def _now(self, now: float) -> float:
        if not self._level:
            return 0.0
        return self._level * math.exp2((self._at - now) / HALF_LIFE)
