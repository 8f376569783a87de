"""A stream of events or messages: a bounded queue that drops its oldest item, so that a slow reader harms nobody."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from p2pmesh.checks import number

T = TypeVar("T")


class Subscription(trio.abc.ReceiveChannel[T], Generic[T]):
    """A stream of what the mesh tells. Ends when the mesh is left. Several tasks may share it: each item goes to one.

    Items wait in a bounded queue; when it is full the oldest is dropped and counted in `missed`.
    """

    def __init__(self, capacity: int, on_lag: Callable[[int], None] | None = None) -> None:
        self._capacity: int = number("a subscription's buffer", capacity, low=1, whole=True)
        self._on_lag = on_lag
        self._items: deque[T] = deque()
        self._readers = trio.lowlevel.ParkingLot()
        self._lagging = 0
        self._ended = False
        self._closed = False
        self.missed: int = 0
        """Items dropped so far because this subscriber was too slow."""
        self.skipped: int = 0
        """Broadcasts that an ordered subscription has given up on so far."""

    async def receive(self) -> T:
        """The next item.

        Raises:
          trio.EndOfChannel: if the mesh was left and nothing is waiting any more.
          trio.ClosedResourceError: if this subscription was closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                item = self.receive_nowait()
            except trio.WouldBlock:
                await self._park()
                waited = True
            else:
                break
        if not waited:
            # After taking the item: a task that shares this stream must not take it too, while others run.
            await trio.lowlevel.cancel_shielded_checkpoint()
        return item

    def receive_nowait(self) -> T:
        """The next item, if one is waiting.

        Raises:
          trio.WouldBlock: if there is none now. Otherwise as `receive`.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._items:
            return self._take()
        if self._ended:
            raise trio.EndOfChannel
        raise trio.WouldBlock

    async def aclose(self) -> None:
        """Stop listening; what waits is dropped."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop listening; what waits is dropped."""
        self._closed = True
        self._items.clear()
        self._readers.unpark_all()

    async def _park(self) -> None:
        """Wait until there may be something."""
        await self._readers.park()

    def _skip(self, count: int) -> None:
        self.skipped += count

    def _offer(self, item: T) -> None:
        if self._closed or self._ended:
            return
        if len(self._items) >= self._capacity:
            self._items.popleft()
            self._lagging += 1
            self.missed += 1
        self._items.append(item)
        self._readers.unpark()

    def _end(self) -> None:
        self._ended = True
        self._readers.unpark_all()

    def _take(self) -> T:
        if self._lagging and self._on_lag is not None:
            missed, self._lagging = self._lagging, 0
            self._on_lag(missed)
        return self._items.popleft()
