"""The inbox: direct messages that were acknowledged, until the application has read them. Nothing in it gets lost.

Each open stream of `Mesh.messages()` gives out every message. What comes while none is open waits for the first one,
and what one that is closed has not given out goes to the others that have not had it, or waits. How much may wait is
bounded: the routing core is told of each change, and turns away what there is no room for, so that its sender waits.
An open stream of `Mesh.events()` gives direct messages out too: beside one, and with no stream of messages, those that
wait give way, the oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from p2pmesh.config import MeshConfig
from p2pmesh.events import DirectReceived
from p2pmesh.protocols.inputs import InboxRead
from p2pmesh.subscription import Subscription

TELL_SHARE = 4
"""The core is told once a quarter of what it takes to be unread was read: what waits for room hardly waits longer."""


class InboxStream(Subscription[DirectReceived]):
    """One stream of direct messages: it holds back senders instead of dropping anything."""

    def __init__(self, inbox: Inbox, capacity: int, since: int) -> None:
        super().__init__(capacity)
        self._inbox = inbox
        self._since = since

    @property
    def since(self) -> int:
        """How many messages had come before it was opened."""
        return self._since

    @property
    def room(self) -> int:
        """How many more may wait; below 0 if more do."""
        return self._capacity - len(self._items)

    def close(self) -> None:
        """Stop listening; what waits goes to other streams, or to the next."""
        unread = list(self._items)
        super().close()
        self._inbox.closed(self, unread)

    def put(self, *messages: DirectReceived, first: bool = False) -> None:
        """Let these wait too, before or after the others."""
        if first:
            self._items.extendleft(reversed(messages))
        else:
            self._items.extend(messages)
        for _ in messages:
            self._readers.unpark()

    def _take(self) -> DirectReceived:
        message = super()._take()
        self._inbox.tell()
        return message


class Inbox:
    """The direct messages of one peer that wait to be read."""

    def __init__(self, config: MeshConfig, report: Callable[[InboxRead], None]) -> None:
        self._capacity = config.direct_inbox
        self._report = report
        self._streams: list[InboxStream] = []  # the oldest first
        self._waiting: deque[DirectReceived] = deque()
        self._watchers = 0
        self._came = 0
        self._told = InboxRead(0, self._capacity)
        self._ended = False

    def put(self, message: DirectReceived) -> None:
        """One was acknowledged."""
        self._came += 1
        for stream in self._streams:
            stream.put(message)
        if not self._streams:
            self._waiting.append(message)
            if self._watchers and len(self._waiting) > self._capacity:
                self._waiting.popleft()
        self.tell()

    @contextmanager
    def open(self, capacity: int | None) -> Iterator[InboxStream]:
        """A stream of what comes from now on; the first has what waits, too."""
        stream = InboxStream(self, self._capacity if capacity is None else capacity, self._came)
        if not self._streams:
            stream.put(*self._waiting)
            self._waiting.clear()
        self._streams.append(stream)
        if self._ended:
            stream._end()
        self.tell(at_once=True)
        try:
            yield stream
        finally:
            stream.close()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Messages are read by a stream of events meanwhile, too."""
        self._watchers += 1
        self.tell(at_once=True)
        try:
            yield
        finally:
            self._watchers -= 1
            self.tell(at_once=True)

    def close(self) -> None:
        """End all streams, after what waits in them."""
        self._ended = True
        for stream in self._streams:
            stream._end()

    def closed(self, stream: InboxStream, unread: list[DirectReceived]) -> None:
        """A stream is closed that had not given out these: nobody may miss them."""
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        if not self._streams:
            self._waiting.extend(unread)
        else:
            first = self._streams[0]  # it has had what came since it was opened
            missed = len(unread) - (self._came - first.since)
            first.put(*unread[: max(0, missed)], first=True)
        self.tell(at_once=True)

    def tell(self, *, at_once: bool = False) -> None:
        """Tell the core how far all have read, if that is news that matters."""
        if self._streams:
            unread = max(len(stream._items) for stream in self._streams)
            room = min(stream.room for stream in self._streams)
        else:
            unread = 0 if self._watchers else len(self._waiting)
            room = self._capacity - unread
        messages = max(self._told.messages, self._came - unread)
        believed = self._came - self._told.messages
        if at_once or 0 < believed <= TELL_SHARE * (messages - self._told.messages):
            self._told = InboxRead(messages, max(0, self._came - messages + room))
            self._report(self._told)
