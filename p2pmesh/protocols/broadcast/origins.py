"""What each origin has sent: no number of it is taken twice, and not more of them than one origin may send.

An origin numbers its broadcasts, by topic and series, and signs the numbers. So what was seen is a *window* for each
such stream: the highest number, and which of the 4,096 up to it were there; what lies below counts as seen. It is kept
until no copy of any of them could be accepted any more. Ids, by which announcements name broadcasts, are remembered
elsewhere, as long as there is room; where one was forgotten, the window knows better. (What is not signed has no such
window: anybody may send it again under another id.)

A stream that there is no room for is refused, with all that is in it: nothing is forgotten for it. Ids cost nothing, so
half of the room is divided: no neighbour that brought more than its part of it brings more, and no origin has more.

Each origin has a rate, `BroadcastConfig.origin_rate`, by which large payloads count as several. That is what histories
can keep for `ttl`; what is above would only push out its own. Publishers keep to three quarters of the burst, so that
what is held up on its way and comes all at once is not refused.

In go broadcasts with the neighbours they came from; out comes why one is refused.
State: at most `BroadcastConfig.seen_ids` windows of up to 512 bytes, and a time for each origin that has one.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, TypeAlias

from attrs import define

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.validation import Refusal
from p2pmesh.wire.messages import GossipData

WINDOW: Final = 4096
"""Numbers below the highest that may still come: as many broadcasts as a history holds, of which any may be missing."""
PART: Final = 1 / 16
"""Of all streams, for one neighbour or one origin, once half of them is taken."""
LONGEST: Final = 86_400.0
"""Seconds for which numbers are remembered at the most, where clocks may be so wrong that nothing is ever too old."""
PIECE: Final = 16 * 1024
"""Bytes of a payload that count as a broadcast: a history's, by its messages."""
OURS: Final = 0.75
"""Of a burst for ourselves."""
TOLD_EVERY: Final = 60.0
"""Seconds until the application is told again that an origin is throttled."""

_BITS: Final = (1 << WINDOW) - 1
_Key: TypeAlias = tuple[PeerId, str, int]


class Pace:
    """The rate of one origin, by the virtual scheduling of ITU-T I.371: one time stands for a bucket of tokens."""

    __slots__ = ("_burst", "_free_at", "_per_second")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst / per_second
        self._free_at = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until another is in time."""
        return max(0.0, self._free_at - self._burst - now)

    def take(self, size: int, now: float) -> None:
        """Count one with so large a payload."""
        self._free_at = max(self._free_at, now) + (1 + size // PIECE) / self._per_second


@define(eq=False)
class _Stream:
    """One topic of an origin, in one series."""

    neighbour: PeerId
    """That brought the first of it."""
    until: float
    top: int
    seen: int = 1
    """A bit for each number from the highest downwards."""

    def has(self, number: int) -> bool:
        behind = self.top - number
        return behind >= 0 and (behind >= WINDOW or bool(self.seen >> behind & 1))

    def add(self, number: int) -> None:
        ahead = number - self.top
        if ahead <= 0:
            self.seen |= 1 << -ahead
        else:
            self.seen = (self.seen << ahead & _BITS | 1) if ahead < WINDOW else 1
            self.top = number


@define(eq=False)
class _Origin:
    pace: Pace
    streams: int = 0
    told_at: float = -math.inf
    """When the application was told last that it is throttled."""


class Origins:
    """The streams of all origins but ourselves."""

    def __init__(self, config: BroadcastConfig) -> None:
        self._config = config
        self._limit = config.seen_ids
        self._streams: dict[_Key, _Stream] = {}
        self._due: list[tuple[float, _Key]] = []  # a heap: when to see whether a stream's time is over
        self._origins: dict[PeerId, _Origin] = {}
        self._brought: dict[PeerId, int] = {}  # streams, by neighbours

    def __len__(self) -> int:
        return len(self._streams)

    def pace(self, *, ours: bool = False) -> Pace:
        """The rate of an origin of which nothing came yet."""
        return Pace(self._config.origin_rate, self._config.origin_burst * (OURS if ours else 1))

    def refusal(self, sender: PeerId, data: GossipData, now: float) -> tuple[Refusal | None, str]:
        """Why a broadcast that says it is signed is not taken, if it isn't; and what its origin is told."""
        origin = self._origins.get(data.origin_peer_id)
        stream = self._streams.get(_key_of(data))
        if stream is None:
            self._forget(now)
            if len(self._streams) >= self._limit / 2 and (
                len(self._streams) >= self._limit
                or self._brought.get(sender, 0) >= self._limit * PART
                or (origin is not None and origin.streams >= self._limit * PART)
            ):
                return Refusal.CROWDED, "too many origins and topics"
        elif stream.has(data.sequence or 0):
            return Refusal.SEEN, ""
        if origin is not None and origin.pace.wait(now) > 0:
            return Refusal.THROTTLED, f"more than {self._config.origin_rate:g} broadcasts a second"
        return None, ""

    def is_news(self, origin: PeerId, now: float) -> bool:
        """Whether the application is to be told that this one is throttled."""
        one = self._origins[origin]
        if now < one.told_at + TOLD_EVERY:
            return False
        one.told_at = now
        return True

    def add(self, sender: PeerId, data: GossipData, size: int, until: float, now: float) -> None:
        """Note a broadcast that is its origin's and was not refused."""
        key, number, until = _key_of(data), data.sequence or 0, min(until, now + LONGEST)
        origin = self._origins.get(data.origin_peer_id)
        if origin is None:
            origin = self._origins[data.origin_peer_id] = _Origin(self.pace())
        origin.pace.take(size, now)
        stream = self._streams.get(key)
        if stream is None:
            self._streams[key] = _Stream(sender, until, number)
            heapq.heappush(self._due, (until, key))
            origin.streams += 1
            self._brought[sender] = self._brought.get(sender, 0) + 1
        else:
            stream.add(number)
            stream.until = max(stream.until, until)

    def _forget(self, now: float) -> None:
        """Forget the streams whose time is over."""
        while self._due and self._due[0][0] <= now:
            _, key = heapq.heappop(self._due)
            stream = self._streams[key]
            if stream.until > now:
                heapq.heappush(self._due, (stream.until, key))
                continue
            del self._streams[key]
            self._origins[key[0]].streams -= 1
            if not self._origins[key[0]].streams:
                del self._origins[key[0]]
            self._brought[stream.neighbour] -= 1
            if not self._brought[stream.neighbour]:
                del self._brought[stream.neighbour]


def _key_of(data: GossipData) -> _Key:
    return data.origin_peer_id, data.topic, data.series or 0
