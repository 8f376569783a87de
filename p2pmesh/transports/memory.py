"""Signaling within one process (`memory://name`), for tests and simulations: the real service, without its sockets.

A `MemoryHub` drives the same `Presence` as the server over WebSocket does, limits and errors included. Messages arrive
at once; time is Trio's, so under a mock clock it is virtual.

A hub is an object to pass around, `MemoryTransport(hub=hub)`, or belongs to a `trio.run` under a name: all that is
opened as `memory://lobby` within one run meets in one hub.
"""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2pmesh.checks import instance, shown, text
from p2pmesh.errors import ConfigError, TransportError
from p2pmesh.protocols.core import WallClock
from p2pmesh.server.config import ServerConfig
from p2pmesh.server.presence import CLOSE_TRY_LATER, Close, Order, Presence, Send
from p2pmesh.transports.connection import NO_GOODBYE, TextConnection, ending
from p2pmesh.transports.registry import TransportKind
from p2pmesh.transports.transport import Connection, Transport

_GOING_AWAY = 1001
_URL = re.compile(r"memory://(?P<hub>[\w.-]*)", re.ASCII)


class MemoryHub:
    """A signaling service in memory. Up from the start."""

    def __init__(
        self,
        *,
        config: ServerConfig | None = None,
        rng: random.Random | None = None,
        wall: WallClock | None = None,
    ) -> None:
        """Make a hub of its own.

        Args:
          config: the service's limits; the server's own by default, but for the clock of signed joins.
          rng: for the service's jitter; seeded if left out.
          wall: the service's wall clock. Left out, the times of signed joins are only compared among themselves.
        """
        self._config = config or ServerConfig(clock_skew=math.inf)
        self._rng = rng or random.Random(0)
        self._wall = wall or (lambda now: now)
        self._presence: Presence | None = None
        self._lines: dict[int, _Line] = {}
        self._last_number = 0
        self._waits: dict[trio.CancelScope, None] = {}
        self.start()

    @property
    def is_up(self) -> bool:
        """Whether connections can be opened."""
        return self._presence is not None

    def start(self) -> None:
        """Bring the service up, knowing nobody, as after a restart. Does nothing if it is up."""
        if self._presence is None:
            self._presence = Presence(self._config, self._rng, self._wall)

    def stop(self, *, abruptly: bool = False) -> None:
        """Take the service down: connections end, with a goodbye or `abruptly` without. Does nothing if it is down."""
        self._presence = None
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.end(NO_GOODBYE if abruptly else _GOING_AWAY, "going away")

    def snapshot(self) -> dict[str, Any]:
        """The service's statistics; empty while it is down."""
        return {} if self._presence is None else self._presence.snapshot()

    # --- what connections call ----------------------------------------------------------------------------------------

    def attach(self) -> _Line:
        """A line to a new client, which may be ended already; it must be detached."""
        if self._presence is None:
            raise TransportError("it is stopped; start it with MemoryHub.start()")
        self._last_number += 1
        line = self._lines[self._last_number] = _Line(self._last_number, self._config.outbox)
        # An address for each: the limit on clients of one address is against strangers.
        self._carry_out(self._presence.connected(line.number, f"memory {line.number}", trio.current_time()))
        return line

    def received(self, line: _Line, text: str) -> None:
        """The client of this line sends a text."""
        if self._presence is not None and line.number in self._lines:
            self._carry_out(self._presence.received(line.number, text, trio.current_time()))

    def detach(self, line: _Line) -> None:
        """The client of this line is gone."""
        if self._presence is not None and self._lines.pop(line.number, None) is not None:
            self._carry_out(self._presence.disconnected(line.number, trio.current_time()))

    async def wait_for(self, line: _Line) -> None:
        """Wait until the line has something. The longest wait keeps the service's time meanwhile: a hub has no task."""
        with trio.CancelScope() as scope:
            self._waits[scope] = None
            self._wind_clock()
            try:
                await line.stirred.wait()
            finally:
                del self._waits[scope]
                self._wind_clock()
        if self._presence is not None:
            self._carry_out(self._presence.expire(trio.current_time()))

    def _wind_clock(self) -> None:
        for scope in self._waits:
            scope.deadline = math.inf if self._presence is None else self._presence.next_deadline()
            break

    def _carry_out(self, orders: Iterable[Order]) -> None:
        todo = deque(orders)
        while todo:
            match todo.popleft():
                case Send(number, text):
                    line = self._lines.get(number)
                    if line is not None and not line.put(text):
                        todo.append(Close(number, CLOSE_TRY_LATER, "too much waits for this client"))
                case Close(number, code, reason):
                    todo.extend(self._end(number, code, reason))
        self._wind_clock()

    def _end(self, number: int, code: int, reason: str) -> list[Order]:
        line = self._lines.pop(number, None)
        if line is None or self._presence is None:
            return []
        line.end(code, reason)
        return self._presence.disconnected(number, trio.current_time())


class MemoryTransport(Transport):
    """Opens connections to a `MemoryHub`."""

    def __init__(self, url: str = "memory://", *, name: str | None = None, hub: MemoryHub | None = None) -> None:
        """Name the service; nothing is contacted yet.

        Args:
          url: `memory://` and a name: all transports of one `trio.run` with the same one meet. With a `hub` it is
            a mere label.
          name: tells it apart from others; its URL if left out.
          hub: the service itself.

        Raises:
          ConfigError: if the URL, the name or the hub makes no sense.
        """
        found = _URL.fullmatch(url) if isinstance(url, str) else None
        if found is None:
            raise ConfigError(f"{shown(url)} is no address in memory: memory:// and a name of letters, digits, '-._'")
        self._url = url
        self._hub_name = found["hub"]
        self._name = text("the name of a transport", url if name is None else name) or url
        self._hub = instance("hub", hub, MemoryHub | None)

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"MemoryTransport({self._url!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection, None]:
        """Open a connection; leaving the block closes it.

        Raises:
          TransportError: if the hub is stopped.
        """
        await trio.lowlevel.checkpoint()
        connection = _MemoryConnection(self._url, self._hub or memory_hub(self._hub_name))
        try:
            yield connection
        finally:
            await connection.aclose()


class _MemoryConnection(TextConnection):
    def __init__(self, address: str, hub: MemoryHub) -> None:
        super().__init__(address)
        self._hub = hub
        try:
            self._line = hub.attach()
        except TransportError as error:
            raise TransportError(f"can't reach {address}: {error}") from None
        self._closed = False

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._hub.detach(self._line)
            self._line.end(_GOING_AWAY, "")
        await trio.lowlevel.checkpoint()

    async def _send_text(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._line.ended is not None:
            raise TransportError(str(ending(self.address, *self._line.ended)))
        self._hub.received(self._line, text)

    async def _receive_text(self) -> str:
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._line.texts:
                return self._line.take()
            if self._line.ended is not None:
                raise ending(self.address, *self._line.ended)
            await self._hub.wait_for(self._line)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this side closed the connection")


class _Line:
    """From a hub to one client: what waits for it, up to `limit` bytes, and how it ended."""

    def __init__(self, number: int, limit: int) -> None:
        self.number = number
        self.texts: deque[str] = deque()
        self.ended: tuple[int, str] | None = None
        self.stirred: trio.Event = trio.Event()
        self._size = 0
        self._limit = limit

    def put(self, text: str) -> bool:
        """Let a text wait to be taken; False if too much waits already."""
        size = len(text.encode())
        if self._size + size > self._limit:
            return False
        self._size += size
        self.texts.append(text)
        self.stirred.set()
        return True

    def take(self) -> str:
        text = self.texts.popleft()
        self._size -= len(text.encode())
        if not self.texts and self.ended is None:
            self.stirred = trio.Event()
        return text

    def end(self, code: int, reason: str) -> None:
        if self.ended is None:
            self.ended = (code, reason)
        self.stirred.set()


_hubs: trio.lowlevel.RunVar[dict[str, MemoryHub]] = trio.lowlevel.RunVar("p2pmesh memory hubs")


def memory_hub(name: str = "") -> MemoryHub:
    """The hub of this name in this `trio.run`, made at its first use."""
    try:
        hubs = _hubs.get()
    except LookupError:
        hubs = {}
        _hubs.set(hubs)
    if name not in hubs:
        hubs[name] = MemoryHub(rng=random.Random(name))
    return hubs[name]


KIND = TransportKind(MemoryTransport, schemes=("memory",))
