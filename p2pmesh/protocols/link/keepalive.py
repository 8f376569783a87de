"""Whether the peer of a link is still there: when to ping it, when to doubt it, and when to give it up.

- Silence: a peer that says nothing for `keepalive_idle` is pinged, up to `keepalive_pings` times, and then given up.
  On a link at rest both ends hear the last packet at about the same time, so the wait is jittered: the end that waits
  less pings, the other hears that and begins to wait anew, and one ping serves both.
- Our own lateness: if our process lags, or was stopped, we doubt ourselves first. What counts as silence is time in
  which we listened, by `LocalHealth`, to which our own late timers are noted: so all times here, but round trips, are
  less by what was lost.
- Doubt: a peer of which nothing is heard after something was sent to it is pinged after half of `doubt_after`, and
  `silent` when the rest of that and two round trips are over, long before it is given up: what has another way need not
  wait so long.
- A carrier that is slow is not held against the peer: while our packets still leave, counting starts anew.

In: packets that came or left, pongs, the time. Out: whether a ping is due, whether the peer is silent, for how long
when it is to be given up; round trips. State: a few times, and `PINGS_REMEMBERED` pings. Couplings: `ping_due` must be
looked at after `expire`.
"""

from __future__ import annotations

import math
from collections import deque

from p2pmesh.config import LinkConfig
from p2pmesh.protocols.util.latency import LocalHealth, RoundTripTime

PINGS_REMEMBERED = 8
"""Unanswered pings whose round trip can still be measured."""
MEASURE_EVERY = 15.0
"""Seconds after which a link that is never silent is pinged, for the sake of its round trip time."""
JITTER = 0.2
"""Share of `keepalive_idle` by which the wait may be shorter: far more than a round trip, so pings rarely cross."""
FIRST_ROUND_TRIP = 0.5
"""Seconds that a round trip is taken for as long as none was measured: two of them are RFC 6298's first second."""


class Keepalive:
    """What one end of a link knows of the other end's life."""

    def __init__(self, config: LinkConfig, now: float, health: LocalHealth | None = None) -> None:
        self._config = config
        self._health = health or LocalHealth()
        now -= self._health.lost
        self._heard_at = now
        self._idle = config.keepalive_idle
        self._pinged_at = now
        self._unanswered = 0
        self._left_carrier = 0
        self._asked_at = math.inf
        self._left_since_asked = 0
        self._probed = False
        self._is_over = False
        self._token = 0
        self._pings: deque[tuple[int, float]] = deque(maxlen=PINGS_REMEMBERED)
        self.ping_due: bool = True
        """Whether a ping is to be sent; the first packet carries one."""
        self.silent: bool = False
        """Nothing was heard since something was sent to it, though it was pinged: it may be dead."""
        self.round_trip: RoundTripTime = RoundTripTime()
        self.pings_sent: int = 0

    # --- what is heard and sent ---------------------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """A packet came."""
        self._heard_at = now - self._health.lost
        self._idle = self._config.keepalive_idle * (1 - JITTER * (now * 1000 % 1))  # the microseconds are random enough
        self._unanswered = 0
        self._asked_at = math.inf
        self._probed = self.silent = False

    def asked(self, now: float) -> None:
        """Something was sent to which the peer should say something soon, if only that it is there."""
        if self._asked_at == math.inf:
            self._asked_at = now - self._health.lost
            self._left_since_asked = 0

    def measure(self, now: float) -> bool:
        """Have a ping sent if there was none for long. Returns whether that is so."""
        if now - self._health.lost - self._pinged_at <= MEASURE_EVERY:
            return False
        self._ping(now - self._health.lost)
        return True

    def next_ping(self, now: float) -> int:
        """The token of the ping that is sent now."""
        self.ping_due = False
        self.pings_sent += 1
        self._token = (self._token + 1) & 0xFFFFFFFF
        self._pings.append((self._token, now))
        return self._token

    def pong(self, token: int, now: float) -> None:
        """The peer has answered a ping."""
        for ping in self._pings:
            if ping[0] == token:
                self.round_trip.sample(now - ping[1])
                self._pings.remove(ping)
                return

    def end(self) -> None:
        """One side has said all that it will say: silence means nothing any more."""
        self._is_over = True

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        return min(self._silence_ends(), self._doubt_ends()) + self._health.lost

    def expire(self, now: float, left_carrier: int, buffered: int) -> float | None:
        """Do what is due.

        Args:
          now: the time.
          left_carrier: bytes of our packets that have left the carrier.
          buffered: bytes that it still holds.

        Returns:
          None, or for how long the peer has been silent, if it is to be given up.
        """
        self._health.note(self.next_deadline(), now)
        lost = self._health.lost
        listened = now - lost
        self._heard_at = min(self._heard_at, listened)  # it may have been heard before what was lost was noted
        if now >= self._doubt_ends() + lost:  # just as `next_deadline` adds it up
            self._doubt(listened, left_carrier, buffered)
        if now < self._silence_ends() + lost:
            return None
        if buffered and left_carrier > self._left_carrier:
            self._unanswered = 0  # our ping is still on its way out, and the peer takes what is before it
        self._left_carrier = left_carrier
        if self._unanswered >= self._config.keepalive_pings:
            return listened - self._heard_at
        self._unanswered += 1
        self._ping(listened)
        self.asked(now)
        return None

    def _doubt(self, now: float, left_carrier: int, buffered: int) -> None:
        """The peer has said nothing: ping it, or take it for silent."""
        if buffered and left_carrier > self._left_since_asked:  # the peer takes what is before it
            self._asked_at, self._left_since_asked, self._probed = now, left_carrier, False
        elif not self._probed:
            self._probed = True
            if not self._unanswered:
                self._ping(now)
        else:
            self.silent = True

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        self.ping_due = True

    def _silence_ends(self) -> float:
        if self._is_over:
            return math.inf
        if self._unanswered:
            return self._pinged_at + self._config.keepalive_interval
        return self._heard_at + self._idle

    def _doubt_ends(self) -> float:
        """When the peer should have said something, or, once it was pinged, when it must have."""
        if self.silent or self._is_over:
            return math.inf
        if not self._probed:
            return self._asked_at + self._config.doubt_after / 2
        return self._asked_at + self._config.doubt_after + 2 * self.round_trip.mean(FIRST_ROUND_TRIP)
