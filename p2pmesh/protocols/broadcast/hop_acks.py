"""Acks of broadcasts, several to one neighbour in a frame.

After a pause the first ack goes at once, so that a lone broadcast is not held up; what follows within `ack_delay` waits for
company, unless a copy goes to the same neighbour, or so many wait that its window may be running out. An ack says what a
copy was worth: `new`, `had`, or `prune`, which asks not to be sent its origin's broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING

from attrs import define, field

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effect, SendFrame
from p2pmesh.wire.messages import GossipAck

MOST_WAITING = 16
"""Acks that wait for one neighbour: a quarter of its window, by default."""


class AckKind(Enum):
    """What a neighbour's copy or offer was worth."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__

    NEW = "new"
    HAD = "had"
    PRUNE = "prune"


@define(eq=False)
class _Waiting:
    due: float
    verdicts: dict[str, AckKind] = field(factory=dict)


class HopAcks:
    """What is to be acknowledged to each neighbour."""

    def __init__(self, delay: float, do: Callable[[Effect], None]) -> None:
        self._delay = delay
        self._do = do
        self._waiting: dict[PeerId, _Waiting] = {}
        self._sent_at: dict[PeerId, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, peer: PeerId, message_id: str, verdict: AckKind, now: float) -> None:
        """Acknowledge this, soon. What is said last of a broadcast counts."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            due = max(now, self._sent_at.get(peer, -math.inf) + self._delay)
            waiting = self._waiting[peer] = _Waiting(due)
        waiting.verdicts[message_id] = verdict
        if len(waiting.verdicts) >= MOST_WAITING:
            waiting.due = now

    def go_along(self, peers: Iterable[PeerId], now: float) -> None:
        """Something goes to these neighbours: what they are to be told goes with it."""
        for peer in peers:
            waiting = self._waiting.get(peer)
            if waiting is not None:
                waiting.due = now

    def down(self, peer: PeerId) -> None:
        """The link has ended."""
        self._waiting.pop(peer, None)
        self._sent_at.pop(peer, None)

    def next_deadline(self) -> float:
        """When `flush` wants to be called."""
        if not self._waiting:
            return math.inf
        return min(waiting.due for waiting in self._waiting.values())

    def flush(self, now: float) -> None:
        """Send what is due."""
        for peer in [peer for peer, waiting in self._waiting.items() if waiting.due <= now]:
            verdicts = self._waiting.pop(peer).verdicts
            self._sent_at[peer] = now
            self._do(SendFrame((peer,), _ack(verdicts), urgent=True, patient=True))


def _ack(verdicts: dict[str, AckKind]) -> GossipAck:
    sorted_ids: dict[AckKind, list[str]] = {verdict: [] for verdict in AckKind}
    for message_id, verdict in verdicts.items():
        sorted_ids[verdict].append(message_id)
    return GossipAck(
        new=tuple(sorted_ids[AckKind.NEW]),
        had=tuple(sorted_ids[AckKind.HAD]),
        prune=tuple(sorted_ids[AckKind.PRUNE]),
    )
