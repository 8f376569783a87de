"""How often: a token bucket that may be overdrawn."""

from __future__ import annotations


class TokenBucket:
    """Holds up to `burst` tokens and gains `rate` a second. May be overdrawn by one more burst: who does so is flooding."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one token. What is left: 0 or more if it was there, below 0 if it was not."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        return self._tokens

    @property
    def flooded(self) -> bool:
        """Whether it is overdrawn by a whole burst."""
        return self._tokens < -self._burst
