"""What became of every broadcast: which peers have it, when, after how many hops, and what its origin was told."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator

from p2pmesh.errors import MeshError
from p2pmesh.events import MessageDelivered, MessageFailed, MessageReceived
from p2pmesh.protocols.core import Progress, Reply


class Broadcast:
    """One broadcast.

    Attributes:
      origin: the number of the peer that called.
      at: when it called; `expires`, when its ttl is over.
      message_id: None until the mesh has taken it; `error`, if it did not.
      count: peers that have it, the origin not counted.
      last_hop: hops of the delivery that came last.
      reached: how many its origin believes to have it, lately.
      outcome: what its origin's application was told.
    """

    __slots__ = (
        "_got",
        "at",
        "count",
        "error",
        "expires",
        "last_at",
        "last_hop",
        "message_id",
        "origin",
        "outcome",
        "reached",
    )

    def __init__(self, origin: int, at: float, expires: float) -> None:
        self.origin: int = origin
        self.at: float = at
        self.expires: float = expires
        self.message_id: str | None = None
        self.error: MeshError | None = None
        self._got = bytearray()
        self.count: int = 0
        self.last_at: float = at
        self.last_hop: int = 0
        self.reached: int = 0
        self.outcome: MessageDelivered | MessageFailed | None = None

    def has(self, number: int) -> bool:
        """Whether this peer's application got it."""
        return number < len(self._got) and self._got[number] > 0

    def times(self, number: int) -> int:
        """How often this peer's application got it."""
        return self._got[number] if number < len(self._got) else 0

    def deliver(self, number: int, now: float, hops: int, *, counts: bool = True) -> bool:
        """Note that a peer got it; False if it had it already. For newcomers that catch up, `counts` is off."""
        if number >= len(self._got):
            self._got.extend(bytes(max(number + 1 - len(self._got), len(self._got))))
        self._got[number] = min(self._got[number] + 1, 255)
        if self._got[number] > 1:
            return False
        self.count += 1
        if counts:
            self.last_at, self.last_hop = now, hops
        return True


class DeliveryLog:
    """All broadcasts of a simulation, in the order in which they were called for.

    `twice` lists deliveries that were one too many, as (time, peer, message id).
    """

    def __init__(self) -> None:
        self.broadcasts: list[Broadcast] = []
        self.deliveries: int = 0
        self.latencies: array[float] = array("f")
        """Seconds since the call, of each delivery to a peer that was in the mesh when it was made."""
        self.hops: Counter[int] = Counter()
        """Links that each of these deliveries crossed, and how many crossed so many."""
        self.twice: list[tuple[float, int, str]] = []
        self.strangers: int = 0
        """Deliveries of broadcasts that no application of this simulation called for."""
        self._calls: dict[int, Broadcast] = {}
        self._ids: dict[str, Broadcast] = {}

    def __iter__(self) -> Iterator[Broadcast]:
        return iter(self.broadcasts)

    def called(self, call: int, broadcast: Broadcast) -> None:
        """The application of a peer calls."""
        self.broadcasts.append(broadcast)
        self._calls[call] = broadcast

    def replied(self, reply: Reply) -> None:
        """The call returns."""
        broadcast = self._calls.pop(reply.call, None)
        if broadcast is None:
            return
        if reply.error is not None:
            broadcast.error = reply.error
            broadcast.expires = -math.inf
            return
        broadcast.message_id = str(reply.value)
        self._ids[broadcast.message_id] = broadcast

    def delivered(self, now: float, number: int, joined_at: float, event: MessageReceived) -> None:
        """The application of a peer gets one; the peer is in the mesh since `joined_at`."""
        broadcast = self._ids.get(event.message_id)
        if broadcast is None:
            self.strangers += 1
            return
        was_there = joined_at <= broadcast.at
        if not broadcast.deliver(number, now, event.hops, counts=was_there):
            self.twice.append((now, number, event.message_id))
            return
        self.deliveries += 1
        if was_there:
            self.latencies.append(now - broadcast.at)
            self.hops[event.hops] += 1

    def progress(self, effect: Progress) -> None:
        """The origin learns how many have it."""
        broadcast = self._ids.get(effect.message_id)
        if broadcast is not None:
            broadcast.reached = effect.reached

    def settled(self, event: MessageDelivered | MessageFailed) -> None:
        """The origin's application is told how it ended."""
        broadcast = self._ids.get(event.message_id)
        if broadcast is not None:
            broadcast.outcome = event
