"""Limits on how often something happens: token buckets (Turner 1986; RFC 2697), one alone or one for each peer.

A bucket holds up to `burst` tokens and gains `rate` a second. `TokenBucket` may be overdrawn by one more burst, so that
its owner can tell a quick taker from one that floods. `RateLimiter` keeps a bounded number of buckets and never
overdraws.
"""

from __future__ import annotations

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.lru_table import LruTable


class TokenBucket:
    """One rate. A taker that overdraws it by a whole burst is flooding."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token. Whether it was there; if not, the bucket is overdrawn."""
        self._tokens = self._level(now) - 1
        self._at = now
        return self._tokens >= 0

    def take_if_there(self, now: float) -> bool:
        """Take one token if it is there, and nothing otherwise."""
        level = self._level(now)
        is_there = level >= 1
        self._tokens, self._at = level - is_there, now
        return is_there

    @property
    def is_flooded(self) -> bool:
        """Whether it is overdrawn by a whole burst."""
        return self._tokens < -self._burst

    def _level(self, now: float) -> float:
        return min(self._burst, self._tokens + (now - self._at) * self._rate)


class RateLimiter:
    """A rate for each peer. Of more than `limit` peers the least recent are forgotten, and start afresh."""

    def __init__(self, limit: int, per_second: float, burst: float) -> None:
        self._buckets = LruTable[TokenBucket](limit)
        self._per_second = per_second
        self._burst = burst

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, peer: PeerId, now: float) -> bool:
        """Whether this peer may do it once more."""
        bucket = self._buckets.get(peer) or TokenBucket(self._per_second, self._burst, now)
        self._buckets.put(peer, bucket)
        return bucket.take_if_there(now)

    def forget(self, peer: PeerId) -> None:
        """Let this peer start afresh."""
        self._buckets.pop(peer)
