"""Order: each origin's broadcasts of a topic in the order in which they were sent, for one subscription.

What arrives before something that was sent earlier is held back until that has come, for `patience` at the most: then it is
delivered all the same, and what is missing below it is given up on. So nothing waits longer than `patience` for what is lost,
nothing is delivered twice or after what was sent later, and all that is given up on is told, as a `MessagesSkipped` just
before what follows it.

What an origin sent before we began to listen is not waited for; but whether the first thing that we hear was sent before
or after another one on its way can't be known, so it is held back for `start`, unless it is the origin's very first. When
an origin begins a new series, as it does when it starts anew, what is held of the last one is delivered and it counts from 1.

Both the broadcasts held back and the origins remembered are bounded: above that, what waits longest is delivered without
what it waits for, and who was silent longest is forgotten. What has no number, as from the original's peers, is delivered
as it comes.

No core of the mesh: the runtime asks it, with the time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from attrs import define, field

from p2pmesh.config import SubscriptionConfig
from p2pmesh.events import MessageReceived, MessagesSkipped
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.timers import Timers

_Key: TypeAlias = tuple[PeerId, str]
_Items: TypeAlias = list[MessageReceived | MessagesSkipped]


@define(eq=False)
class _Stream:
    """One origin's broadcasts of one topic."""

    series: int
    next: int | None = None
    """The number to be delivered next; None before it is known where to begin."""
    first: int = 1
    """The number that was delivered first."""
    held: dict[int, tuple[float, MessageReceived]] = field(factory=dict)
    """What came too early, and when, by number, the oldest first."""


class FifoOrder:
    """Puts broadcasts in order. What its methods return is to be delivered now, in that order."""

    def __init__(self, config: SubscriptionConfig) -> None:
        self._config = config
        self._streams: OrderedDict[_Key, _Stream] = OrderedDict()
        self._timers: Timers[_Key] = Timers()
        self._waiting: dict[tuple[_Key, int], None] = {}  # all that is held back, the oldest first
        self.next_deadline: Callable[[], float] = self._timers.next_deadline
        """When `expire` wants to be called."""

    @property
    def held(self) -> int:
        """Broadcasts that are held back."""
        return len(self._waiting)

    @property
    def origins(self) -> int:
        """Origins and topics whose place is remembered."""
        return len(self._streams)

    def add(self, event: MessageReceived, now: float) -> _Items:
        """A broadcast has arrived."""
        if event.series is None or event.sequence is None:
            return [event]
        key = event.origin, event.topic
        out: _Items = []
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(event.series, 1 if event.sequence == 1 else None)
            self._make_room(out)
        elif event.series > stream.series:
            self._drain(key, stream, out)
            stream = self._streams[key] = _Stream(event.series, 1)
        self._streams.move_to_end(key)
        self._take(key, stream, event, event.sequence, now, out)
        return out

    def expire(self, now: float) -> _Items:
        """Do what is due."""
        out: _Items = []
        for key in self._timers.pop_due(now):
            stream = self._streams[key]
            while stream.held and self._deadline(stream) <= now:
                self._give_up(key, stream, out)
            self._rearm(key, stream)
        return out

    def drain(self) -> _Items:
        """Nothing comes any more: all that is held back."""
        out: _Items = []
        for key, stream in self._streams.items():
            self._drain(key, stream, out)
        return out

    def _take(self, key: _Key, stream: _Stream, event: MessageReceived, number: int, now: float, out: _Items) -> None:
        if stream.next is None and number == 1:
            stream.next = 1
        if event.series != stream.series or (stream.next is not None and number < stream.first):
            out.append(MessagesSkipped(*key, 1))  # it was sent before all that could wait for it
            return
        if number in stream.held or (stream.next is not None and number < stream.next):
            return
        stream.held[number] = now, event
        self._waiting[key, number] = None
        self._deliver_next(key, stream, out)
        self._rearm(key, stream)
        if len(self._waiting) > self._config.held:
            longest, _ = next(iter(self._waiting))
            self._give_up(longest, self._streams[longest], out)
            self._rearm(longest, self._streams[longest])

    def _deadline(self, stream: _Stream) -> float:
        """When the oldest that is held back has waited for long enough."""
        if not stream.held:
            return math.inf
        since, _ = next(iter(stream.held.values()))
        return since + (self._config.start if stream.next is None else self._config.patience)

    def _rearm(self, key: _Key, stream: _Stream) -> None:
        if stream.held:
            self._timers.set(key, self._deadline(stream))
        else:
            self._timers.cancel(key)

    def _deliver(self, key: _Key, stream: _Stream, number: int, out: _Items) -> None:
        out.append(stream.held.pop(number)[1])
        del self._waiting[key, number]
        stream.next = number + 1

    def _deliver_next(self, key: _Key, stream: _Stream, out: _Items) -> None:
        """All that follows without a gap."""
        while stream.next is not None and stream.next in stream.held:
            self._deliver(key, stream, stream.next, out)

    def _give_up(self, key: _Key, stream: _Stream, out: _Items) -> None:
        """Deliver the oldest that is held back, and all before it."""
        if stream.next is None:
            stream.next = stream.first = min(stream.held)
        else:
            self._deliver_up_to(key, stream, next(iter(stream.held)), out)
        self._deliver_next(key, stream, out)

    def _deliver_up_to(self, key: _Key, stream: _Stream, last: int, out: _Items) -> None:
        for number in sorted(number for number in stream.held if number <= last):
            if stream.next is not None and stream.next < number:
                out.append(MessagesSkipped(*key, number - stream.next))
            self._deliver(key, stream, number, out)

    def _drain(self, key: _Key, stream: _Stream, out: _Items) -> None:
        if stream.held:
            self._deliver_up_to(key, stream, max(stream.held), out)
        self._timers.cancel(key)

    def _make_room(self, out: _Items) -> None:
        if len(self._streams) > self._config.origins:
            key, stream = self._streams.popitem(last=False)
            self._drain(key, stream, out)
