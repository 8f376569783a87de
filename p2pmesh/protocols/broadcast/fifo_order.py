"""Order: each origin's broadcasts of a topic in the order in which they were sent, for one subscription.

What arrives before something that was sent earlier is held back until that has come, for `patience` at the most: then
it is delivered all the same, and what is missing below it is given up on. So nothing waits longer than `patience` for
what is lost, nothing is delivered twice or after what was sent later, and all that is given up on is told, as a
`MessagesSkipped` just before what follows it.

What an origin sent before we began to listen is not waited for; but whether the first thing that we hear was sent
before or after another one on its way can't be known, so it is held back for `start`, unless it is the origin's very
first. When an origin begins a new series, as it does when it starts anew, what is held of the last one is delivered
and it counts from 1; which of two is the later one, series say, and ages where its clock was set back. What has no
number, as from the original's peers, is delivered as it comes.

In goes what arrives, with the time; out comes what is to be delivered now. No core of the mesh: the runtime asks it.
State: at most `SubscriptionConfig.held` broadcasts and `origins` streams. Above that, what has waited longest is
delivered without what it waits for, and the origin that was silent longest is forgotten.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TypeAlias

from attrs import define, field

from p2pmesh.config import SubscriptionConfig
from p2pmesh.events import MessageReceived, MessagesSkipped
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.timers import Timers

RUNS_APART = 5.0
"""Seconds by which a broadcast of an earlier series was sent later than all of the last one, if its origin has started
anew since with its clock set back: more than ages err by, since time on links is left out of them."""

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
    sent: float = -math.inf
    """When the last that is known of it was sent, by our clock."""
    held: dict[int, tuple[float, MessageReceived]] = field(factory=dict)
    """What came too early, and when, by number, the oldest first."""


class FifoOrder:
    """Puts broadcasts in order. What its methods return is to be delivered now, in that order."""

    def __init__(self, config: SubscriptionConfig) -> None:
        self._config = config
        self._streams: OrderedDict[_Key, _Stream] = OrderedDict()
        self._timers: Timers[_Key] = Timers()
        self._waiting: dict[tuple[_Key, int], None] = {}  # all that is held back, the oldest first

    def next_deadline(self) -> float:
        """When `expire` wants to be called."""
        return self._timers.next_deadline()

    @property
    def held(self) -> int:
        """Broadcasts that are held back."""
        return len(self._waiting)

    @property
    def origins(self) -> int:
        """Origins and topics whose place is remembered."""
        return len(self._streams)

    def add(self, event: MessageReceived, now: float) -> _Items:
        """Take a broadcast that has arrived."""
        if event.series is None or event.sequence is None:
            return [event]
        key = event.origin, event.topic
        items: _Items = []
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(event.series, 1 if event.sequence == 1 else None)
            if len(self._streams) > self._config.origins:
                items += self._drain(*self._streams.popitem(last=False))
        elif event.series != stream.series and self._is_later(event, stream, now):
            items += self._drain(key, stream)
            stream = self._streams[key] = _Stream(event.series, 1)
        if event.series == stream.series:
            stream.sent = max(stream.sent, now - event.age)
        self._streams.move_to_end(key)
        return items + self._take(key, stream, event, event.sequence, now)

    def _is_later(self, event: MessageReceived, stream: _Stream, now: float) -> bool:
        """Whether it is of a later run of its origin: by its series, unless the origin's clock was set back since."""
        apart = now - event.age - stream.sent
        return apart > -RUNS_APART if event.series is not None and event.series > stream.series else apart > RUNS_APART

    def expire(self, now: float) -> _Items:
        """Deliver what has waited for long enough."""
        items: _Items = []
        for key in self._timers.pop_due(now):
            stream = self._streams[key]
            while stream.held and self._deadline(stream) <= now:
                items += self._give_up(key, stream)
            self._rearm(key, stream)
        return items

    def drain(self) -> _Items:
        """Deliver all that is held back: nothing comes any more."""
        return [item for key, stream in self._streams.items() for item in self._drain(key, stream)]

    def _take(self, key: _Key, stream: _Stream, event: MessageReceived, number: int, now: float) -> _Items:
        if stream.next is None and number == 1:
            stream.next = 1
        if event.series != stream.series or (stream.next is not None and number < stream.first):
            return [MessagesSkipped(*key, 1)]  # it was sent before all that could wait for it
        if number in stream.held or (stream.next is not None and number < stream.next):
            return []
        stream.held[number] = now, event
        self._waiting[key, number] = None
        items = self._deliver_next(key, stream)
        self._rearm(key, stream)
        if len(self._waiting) > self._config.held:
            longest, _ = next(iter(self._waiting))
            items += self._give_up(longest, self._streams[longest])
            self._rearm(longest, self._streams[longest])
        return items

    def _deadline(self, stream: _Stream) -> float:
        """When the oldest that is held back has waited for long enough."""
        since, _ = next(iter(stream.held.values()))
        return since + (self._config.start if stream.next is None else self._config.patience)

    def _rearm(self, key: _Key, stream: _Stream) -> None:
        if stream.held:
            self._timers.set(key, self._deadline(stream))
        else:
            self._timers.cancel(key)

    def _deliver(self, key: _Key, stream: _Stream, number: int) -> MessageReceived:
        del self._waiting[key, number]
        stream.next = number + 1
        return stream.held.pop(number)[1]

    def _deliver_next(self, key: _Key, stream: _Stream) -> _Items:
        """All that follows without a gap."""
        items: _Items = []
        while stream.next is not None and stream.next in stream.held:
            items.append(self._deliver(key, stream, stream.next))
        return items

    def _give_up(self, key: _Key, stream: _Stream) -> _Items:
        """Wait no longer for what is missing before the oldest that is held back."""
        if stream.next is None:
            stream.next = stream.first = min(stream.held)
            return self._deliver_next(key, stream)
        return self._deliver_up_to(key, stream, next(iter(stream.held))) + self._deliver_next(key, stream)

    def _deliver_up_to(self, key: _Key, stream: _Stream, last: int) -> _Items:
        items: _Items = []
        for number in sorted(number for number in stream.held if number <= last):
            if stream.next is not None and stream.next < number:
                items.append(MessagesSkipped(*key, number - stream.next))
            items.append(self._deliver(key, stream, number))
        return items

    def _drain(self, key: _Key, stream: _Stream) -> _Items:
        self._timers.cancel(key)
        return self._deliver_up_to(key, stream, max(stream.held)) if stream.held else []
