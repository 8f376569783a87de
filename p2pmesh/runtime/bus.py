"""Events to the application: each subscriber has a queue of its own, and a slow one harms nobody else.

A full queue drops its oldest item, and the subscriber is told how many it missed: in an event stream by a `Lagged` in
its place, for a subscription to messages by `Subscription.missed` and by a `Lagged` in the event streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from p2pmesh.events import Event, Lagged
from p2pmesh.subscription import Subscription

T = TypeVar("T")


class _EventStream(Subscription[Event]):
    """All events; what it missed stands in its place in the stream."""

    def _take(self) -> Event:
        if self._lagging:
            missed, self._lagging = self._lagging, 0
            return Lagged(missed)
        return self._items.popleft()


class Bus:
    """Fans events out to the subscribers, in one synchronous step, never waiting."""

    def __init__(self) -> None:
        self._sinks: dict[int, tuple[Subscription[object], Callable[[Event], bool]]] = {}
        self._count = 0
        self._ended = False
        self._taps: list[Callable[[Event], None]] = []

    def tap(self, hear: Callable[[Event], None]) -> None:
        """Call `hear` with every event from now on, as it happens; for observers that must not miss any."""
        self._taps.append(hear)

    def publish(self, event: Event) -> None:
        """Give `event` to each subscriber that wants it."""
        for hear in self._taps:
            hear(event)
        for subscription, wants in tuple(self._sinks.values()):
            if wants(event):
                subscription._offer(event)

    def close(self) -> None:
        """End all streams, after what waits in them."""
        self._ended = True
        for subscription, _ in self._sinks.values():
            subscription._end()

    @contextmanager
    def events(self, capacity: int) -> Iterator[Subscription[Event]]:
        """A stream of all events."""
        with self.attach(_EventStream(capacity), lambda event: True) as stream:
            yield stream

    @contextmanager
    def messages(
        self, kind: type[T], wants: Callable[[T], bool], capacity: int, topic: str | None
    ) -> Iterator[Subscription[T]]:
        """A stream of the events of one kind that `wants` lets through."""
        stream = Subscription[T](capacity, self.lagging(topic))
        with self.attach(stream, lambda event: isinstance(event, kind) and wants(event)):
            yield stream

    def lagging(self, topic: str | None) -> Callable[[int], None]:
        """A callback for a subscription to a topic, or to all, that has dropped messages: tells the event streams."""
        return lambda missed: self.publish(Lagged(missed, topic))

    @contextmanager
    def attach(self, stream: Subscription[T], wants: Callable[[Event], bool]) -> Iterator[Subscription[T]]:
        """Feed a stream with the events that it wants."""
        self._count += 1
        key = self._count
        self._sinks[key] = (stream, wants)  # type: ignore[assignment]  # it only gets what `wants` lets through
        if self._ended:
            stream._end()
        try:
            yield stream
        finally:
            del self._sinks[key]
            stream.close()
