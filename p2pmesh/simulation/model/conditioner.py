"""What a network does to frames: latency, jitter, bandwidth, loss, and rarer faults. Frames go in, decisions come out.

    path = Path(Conditions(latency=LogNormal(0.04), jitter=0.01), base=0.05, rng=random.Random(1))
    path.send(now=12.0, size=300)    # (Arrival(time=12.057..., corrupted=False),)

Sans-IO: a `Path` is one direction of one link. It is given each frame with its size and the time, and says when the
frame arrives, in what state and how often, or that the link breaks. All randomness comes from the generator passed in.

A link as WebRTC makes it is reliable and ordered: a packet that is lost is sent again, so loss is *delay*, and whatever
was sent after it waits behind it. Only a link marked `reliable=False` loses frames, and only one marked `ordered=False`
lets them overtake each other. Corruption and duplication don't happen to frames of a real link at all (DTLS throws them
out); they are there to try what is above it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple, Protocol, TypeAlias

import attrs
from attrs import field, frozen

from p2pmesh.errors import ConfigError

RETRANSMIT_FLOOR: Final = 0.2
"""Fewest seconds until a lost packet is sent again, as in Linux and usrsctp (RFC 6298's 1 s is for the first)."""
MOST_RETRANSMITS: Final = 10
"""Most losses of a packet in a row: SCTP gives an association up after as many (RFC 9260, Association.Max.Retrans)."""
REORDER_BY: Final = 3.0
"""A frame that is overtaken is at most this many times the latency late."""

_NORMAL = NormalDist()


# --- latencies --------------------------------------------------------------------------------------------------------


class Latency(Protocol):
    """How far apart two peers are. Peers are numbers; `luck`, between 0 and 1, is the same each time for one pair."""

    def between(self, a: int, b: int, luck: float) -> float:
        """Seconds from `a` to `b`."""


def _seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{attribute.name} must be a number of seconds, 0 or more, not {value!r}")


def _share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{attribute.name} is a share: between 0 and 1, not {value!r}")


@frozen
class Constant:
    """All peers are equally far apart."""

    seconds: float = field(validator=_seconds)

    def between(self, a: int, b: int, luck: float) -> float:
        del a, b, luck
        return self.seconds


@frozen
class Uniform:
    """Latencies between two bounds, all equally likely."""

    low: float = field(validator=_seconds)
    high: float = field(validator=_seconds)

    def between(self, a: int, b: int, luck: float) -> float:
        del a, b
        return self.low + (self.high - self.low) * luck


@frozen
class LogNormal:
    """Most peers are near and some are far, as on the Internet: a median, a spread, and a cap."""

    median: float = field(default=0.04, validator=_seconds)
    sigma: float = field(default=0.6, validator=_seconds)
    cap: float = field(default=0.5, validator=_seconds)

    def between(self, a: int, b: int, luck: float) -> float:
        del a, b
        return min(self.cap, self.median * math.exp(self.sigma * _NORMAL.inv_cdf(min(max(luck, 1e-9), 1 - 1e-9))))


def _matrix(rows: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows)


@frozen
class Measured:
    """A matrix of measured one-way delays between regions; peers are spread over the regions in turn."""

    rows: tuple[tuple[float, ...], ...] = field(converter=_matrix)

    def __attrs_post_init__(self) -> None:
        if not self.rows or any(len(row) != len(self.rows) for row in self.rows):
            raise ConfigError("a matrix of latencies is square and not empty")
        if any(not 0 <= cell < math.inf for row in self.rows for cell in row):
            raise ConfigError("latencies are seconds, 0 or more")

    def between(self, a: int, b: int, luck: float) -> float:
        del luck
        return self.rows[a % len(self.rows)][b % len(self.rows)]


def luck_of(seed: int, a: int, b: int) -> float:
    """A number between 0 and 1 that depends on nothing but the seed and the pair: the same both ways, and each time."""
    low, high = (a, b) if a < b else (b, a)
    mixed = (seed * 0x9E3779B97F4A7C15 + low * 0xC2B2AE3D27D4EB4F + high * 0x165667B19E3779F9 + 1) & 0xFFFFFFFFFFFFFFFF
    for _ in range(2):  # the finaliser of splitmix64 (Steele, Lea, Flood 2014)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return (mixed >> 11) / (1 << 53)


# --- conditions -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Conditions:
    """What a link is like, each way. Make variants with `attrs.evolve`."""

    latency: Latency = LogNormal()
    """Of the path, the same for all its frames."""
    jitter: float = field(default=0.005, validator=_seconds)
    """Each frame takes up to this much longer."""
    bandwidth: float = field(default=math.inf)
    """Bytes per second."""
    loss: float = field(default=0.0, validator=_share)
    """Packets that get lost: sent again, and late, unless the link is not `reliable`."""
    reliable: bool = True
    """Off: lost frames stay lost."""
    ordered: bool = True
    """Off: frames may overtake each other."""
    reorder: float = field(default=0.0, validator=_share)
    """Frames that are overtaken by others; needs `ordered=False`."""
    corrupt: float = field(default=0.0, validator=_share)
    """Frames that arrive as garbage."""
    duplicate: float = field(default=0.0, validator=_share)
    """Frames that arrive twice."""
    breaks: float = field(default=0.0, validator=_share)
    """The chance that the link breaks with any one frame."""

    def __attrs_post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ConfigError(f"bandwidth must be above 0, not {self.bandwidth!r}")
        if self.reorder and self.ordered:
            raise ConfigError("frames of an ordered link don't overtake each other: set ordered=False to reorder")

    @property
    def are_plain(self) -> bool:
        """Whether every frame arrives once, whole, in order, after latency and jitter."""
        faulty = self.loss or self.reorder or self.corrupt or self.duplicate or self.breaks
        return not faulty and self.ordered and math.isinf(self.bandwidth)


# --- decisions --------------------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """A frame arrives."""

    time: float
    corrupted: bool = False


class Break(NamedTuple):
    """The link breaks: neither this frame arrives nor any later one."""

    time: float


Decision: TypeAlias = Sequence[Arrival] | Break
"""When a frame arrives: never, once or several times; or the end of the link."""


class Path:
    """One direction of one link.

    `plain` says that only latency and jitter matter: then `arrival` is all there is to ask, and cheap.
    """

    __slots__ = ("_arrives_at", "_conditions", "_free_at", "_jitter", "_random", "_rng", "base", "plain")

    def __init__(self, conditions: Conditions, base: float, rng: random.Random) -> None:
        """Make a path.

        Args:
          conditions: what it is like.
          base: its latency in seconds: `conditions.latency` between the two peers.
          rng: draws jitter and accidents; may be shared.
        """
        self._rng = rng
        self._random = rng.random
        self._arrives_at = -math.inf
        self._free_at = -math.inf
        self.change(conditions, base)

    def change(self, conditions: Conditions, base: float) -> None:
        """Change what it is like from now on. What is under way arrives as it would have."""
        self._conditions = conditions
        self._jitter = conditions.jitter
        self.base: float = base
        self.plain: bool = conditions.are_plain

    def stall(self, until: float) -> None:
        """Let what is sent from now on arrive no earlier than this, if the path keeps the order."""
        self._arrives_at = max(self._arrives_at, until)

    def arrival(self, now: float) -> float:
        """When a frame that is sent now arrives, if the path is plain."""
        time = now + self.base + self._jitter * self._random()
        if time < self._arrives_at:
            return self._arrives_at
        self._arrives_at = time
        return time

    @property
    def is_narrow(self) -> bool:
        """Whether the size of a frame matters."""
        return self._conditions.bandwidth < math.inf

    def queued(self, now: float) -> float:
        """Seconds until what was sent so far has left, if the bandwidth is limited."""
        return max(0.0, self._free_at - now)

    def send(self, now: float, size: int) -> Decision:
        """Send a frame of `size` bytes. Times must not go back."""
        conditions, draw = self._conditions, self._random
        if conditions.breaks and draw() < conditions.breaks:
            return Break(now)
        self._free_at = max(now, self._free_at) + size / conditions.bandwidth
        time = self._free_at + self.base + self._jitter * draw()
        lost = self._losses()
        if lost and not conditions.reliable:
            return ()
        time += self._retransmitted_after(lost)
        if conditions.reorder and draw() < conditions.reorder:
            return self._copies(time + self.base * REORDER_BY * draw())
        if conditions.ordered:
            time = self._arrives_at = max(self._arrives_at, time)
        return self._copies(time)

    def _losses(self) -> int:
        """How often in a row a packet gets lost."""
        losses, loss = 0, self._conditions.loss
        while loss and losses < MOST_RETRANSMITS and self._random() < loss:
            losses += 1
        return losses

    def _retransmitted_after(self, losses: int) -> float:
        """RFC 6298: the first time-out, doubled with each loss more."""
        first = max(RETRANSMIT_FLOOR, 2 * (self.base + self._jitter))
        return first * (2.0**losses - 1)

    def _copies(self, time: float) -> Decision:
        conditions, draw = self._conditions, self._random
        corrupted = bool(conditions.corrupt) and draw() < conditions.corrupt
        if conditions.duplicate and draw() < conditions.duplicate:
            return (Arrival(time, corrupted), Arrival(time, corrupted))
        return (Arrival(time, corrupted),)
