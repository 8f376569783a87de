"""How long answers take, and how late we are ourselves: what time-outs are made of.

Round trips are smoothed, mean and deviation (Jacobson and Karels 1988; RFC 6298, section 2). `RoundTripTime` measures
one path. `RoundTripTimes` measures each of many peers, and takes the average of all for a peer that has not answered
yet.

A process without its share of the processor finds its timers late, and all that others sent it late by as much. So it
waits longer for others by as long as it did not listen itself (Lifeguard's local health: Dadgar, Phillips, Currey
2018): whoever drives cores and links notes in `LocalHealth` how late it is, and `Timers.wait` and `Keepalive` count by
that.
"""

from __future__ import annotations

import math

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.limits import LruTable

NEARLY_ALL = 4
"""Mean deviations within which nearly every answer comes (RFC 6298's K)."""


class RoundTripTime:
    """The round-trip time of one path, in seconds."""

    __slots__ = ("deviation", "measured", "shortest")

    def __init__(self) -> None:
        self.shortest: float = math.inf
        self.measured: float | None = None
        """The mean; None before the first sample."""
        self.deviation: float = 0.0
        """The mean deviation; 0 before the first sample."""

    def sample(self, seconds: float) -> None:
        """Take one measurement into account."""
        self.shortest = min(self.shortest, seconds)
        if self.measured is None:
            self.start(seconds, seconds / 2)
            return
        self.deviation += (abs(seconds - self.measured) - self.deviation) / 4
        self.measured += (seconds - self.measured) / 8

    def start(self, mean: float, deviation: float) -> None:
        """Begin anew from a mean and a deviation that are known otherwise."""
        self.measured, self.deviation = mean, deviation

    def mean(self, unknown: float) -> float:
        """The mean; `unknown` before the first sample."""
        return unknown if self.measured is None else self.measured

    def expected(self, unknown: float = 0.0, deviations: float = NEARLY_ALL) -> float:
        """Time within which nearly every answer comes: so many mean deviations above the mean."""
        return unknown if self.measured is None else self.measured + deviations * self.deviation


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


LATE = 0.1
"""Seconds: above what a busy moment makes of a timer. At most so much of each turn of our loop counts as listened."""
CATCH_UP = 0.5
"""Seconds to read what has come while the process was stopped."""
RECENT = 5.0
"""Seconds for which time that was lost shows that there is too much to do."""


class LocalHealth:
    """How much time our own process has lost: one for all in it that wait for others.

    Time in which we did not do what was due is no silence of others, since what they say waits unread. So whoever
    waits for others counts by `lost`: a second of waiting takes ten turns of our loop, however long they are, and after
    a stop what has come is read first.
    """

    __slots__ = ("_until", "lost")

    def __init__(self) -> None:
        self.lost: float = 0.0
        """Seconds lost so far."""
        self._until = -math.inf

    def note(self, due: float, now: float) -> None:
        """Take note that something was due then and is looked at now. What overlaps counts once."""
        late = now - max(due, self._until + LATE)
        if late > LATE:
            self.lost += late if self.is_poor(now) else late + CATCH_UP
            self._until = now

    def is_poor(self, now: float) -> bool:
        """Whether time was lost recently."""
        return now < self._until + RECENT
