"""How long answers take, and how late we are ourselves: what time-outs are made of.

Round trips are smoothed, mean and deviation (Jacobson and Karels 1988; RFC 6298, section 2). `RoundTripTime` measures
one path. `RoundTripTimes` measures each of many peers, and takes the average of all for a peer that has not answered
yet.

A process without its share of the processor finds its timers late, and all that others sent it late by as much. So it
waits longer for its neighbours by what its timers were late recently; and what is due in a moment that comes very late
is put off once, because what it waits for may lie in the inbox (Lifeguard's local health: Dadgar, Phillips, Currey
2018).
"""

from __future__ import annotations

import math

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.limits import LruTable

NEARLY_ALL = 4
"""Mean deviations within which nearly every answer comes (RFC 6298's K)."""


class RoundTripTime:
    """The round-trip time of one path, in seconds."""

    __slots__ = ("_deviation", "_mean", "shortest")

    def __init__(self) -> None:
        self.shortest: float = math.inf
        self._mean: float | None = None
        self._deviation = 0.0

    def sample(self, seconds: float) -> None:
        """Take one measurement into account."""
        self.shortest = min(self.shortest, seconds)
        if self._mean is None:
            self.start(seconds, seconds / 2)
            return
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    def start(self, mean: float, deviation: float) -> None:
        """Begin anew from a mean and a deviation that are known otherwise."""
        self._mean, self._deviation = mean, deviation

    @property
    def measured(self) -> float | None:
        """The mean; None before the first sample."""
        return self._mean

    @property
    def deviation(self) -> float:
        """The mean deviation; 0 before the first sample."""
        return self._deviation

    def mean(self, unknown: float) -> float:
        """The mean; `unknown` before the first sample."""
        return unknown if self._mean is None else self._mean

    def expected(self, unknown: float = 0.0, deviations: float = NEARLY_ALL) -> float:
        """Time within which nearly every answer comes: so many mean deviations above the mean."""
        return unknown if self._mean is None else self._mean + deviations * self._deviation


class RoundTripTimes:
    """The round-trip times of many peers, the least recently heard forgotten first."""

    __slots__ = ("_all", "_each")

    def __init__(self, limit: int) -> None:
        self._all = RoundTripTime()
        self._each = LruTable[RoundTripTime](limit)

    def sample(self, peer: PeerId, seconds: float) -> None:
        """Take one measurement of this peer into account."""
        self._all.sample(seconds)
        own = self._each.get(peer)
        if own is None:  # how much it varies is not known of this peer, but of all
            own = RoundTripTime()
            own.start(seconds, self._all.deviation)
        else:
            own.sample(seconds)
        self._each.put(peer, own)

    def __len__(self) -> int:
        return len(self._each)

    def of(self, peer: PeerId) -> RoundTripTime | None:
        """What is known of this peer, or else of all; None before the first sample."""
        return self._each.get(peer) or (None if self._all.measured is None else self._all)


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
