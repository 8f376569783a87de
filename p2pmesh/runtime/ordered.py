"""A subscription that gets each origin's broadcasts in the order in which they were sent."""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pmesh.config import SubscriptionConfig
from p2pmesh.events import MessageReceived, MessagesSkipped
from p2pmesh.protocols.broadcast.fifo_order import FifoOrder
from p2pmesh.subscription import Subscription


class OrderedSubscription(Subscription[MessageReceived]):
    """Holds back what arrives too early, for a bounded time. It needs no task: its reader looks at the time."""

    def __init__(
        self,
        capacity: int,
        config: SubscriptionConfig,
        on_lag: Callable[[int], None],
        on_skip: Callable[[MessagesSkipped], None],
    ) -> None:
        super().__init__(capacity, on_lag)
        self._ordering = FifoOrder(config)
        self._on_skip = on_skip

    async def receive(self) -> MessageReceived:
        """The next item, as any other subscription gives it."""
        item = await super().receive()
        if self._ordering.held:
            self._readers.unpark()  # another task that shares this stream is to wait for that now
        return item

    def receive_nowait(self) -> MessageReceived:
        """The next item, if one is waiting and its time has come."""
        self._let_go()
        return super().receive_nowait()

    def _offer(self, item: MessageReceived) -> None:
        if self._closed or self._ended:
            return
        self._let_go()
        deadline = self._ordering.next_deadline()
        self._deliver(self._ordering.add(item, trio.current_time()))
        if self._ordering.next_deadline() < deadline:
            self._readers.unpark()  # to wait for that

    def _end(self) -> None:
        if not self._ended:
            self._deliver(self._ordering.drain())
        super()._end()

    async def _park(self) -> None:
        with trio.CancelScope(deadline=self._ordering.next_deadline()):
            await self._readers.park()

    def _let_go(self) -> None:
        """Deliver what has waited for long enough."""
        now = trio.current_time()
        if not self._ended and self._ordering.next_deadline() <= now:
            self._deliver(self._ordering.expire(now))

    def _deliver(self, items: list[MessageReceived | MessagesSkipped]) -> None:
        for item in items:
            if isinstance(item, MessagesSkipped):
                self._skip(item.count)
                self._on_skip(item)
            else:
                super()._offer(item)
