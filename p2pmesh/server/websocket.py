"""The server's end of one WebSocket connection (RFC 6455), over wsproto.

Sending never waits: what can't go at once is kept, up to a bound, and a client that lets more pile up is cut off. So
one slow client holds up nobody. All that waits goes out in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from p2pmesh.protocols.util.limits import TokenBucket
from p2pmesh.server.config import ServerConfig

_CHUNK: Final = 16 * 1024
_POLICY: Final = 1008
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class UpgradeRefused(Exception):
    """The request for an upgrade lacks what RFC 6455 wants."""


class WebSocket:
    """One client's connection: `post` and `close` are orders, `run` carries them out and reads."""

    def __init__(self, stream: trio.abc.Stream, config: ServerConfig) -> None:
        self._stream = stream
        self._config = config
        self._ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._message = bytearray()
        self._outbox = bytearray()
        self._in_flight = 0
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._noise = TokenBucket(config.messages_per_second, config.message_burst, trio.current_time())
        self._heard = trio.current_time()
        self._pinged: float | None = None
        self._ending = False
        self.dropped: str | None = None
        """Why this side cut the connection, if it did."""

    def accept(self, headers: list[tuple[bytes, bytes]], target: str, leftovers: bytes) -> None:
        """Answer the upgrade request whose head was read, with what came after it.

        Raises:
          UpgradeRefused: if it is no proper one.
        """
        try:
            self._ws.initiate_upgrade_connection(headers, target)
            if not any(isinstance(event, Request) for event in self._ws.events()):
                raise UpgradeRefused("not a WebSocket request")
            self._put(self._ws.send(AcceptConnection()))
            if leftovers:
                self._ws.receive_data(leftovers)
        except (RemoteProtocolError, LocalProtocolError) as error:
            raise UpgradeRefused(str(error)) from error

    def post(self, text: str) -> None:
        """Send a message, soon. Ignored once the connection is closing."""
        if self._ws.state is ConnectionState.OPEN:
            self._put(self._ws.send(TextMessage(text)))

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; what was posted goes first. It is cut short when it takes too long."""
        if self._ws.state is ConnectionState.OPEN:
            self._put(self._ws.send(CloseConnection(code, reason)))
            self._end_soon()

    def keep_alive(self, now: float) -> None:
        """Ping a client that has been silent, and drop one that stays so. Called every now and then."""
        if self._pinged is not None:
            if now - self._pinged >= self._config.ping_timeout:
                self._drop("silent")
        elif now - self._heard >= self._config.ping_interval and self._ws.state is ConnectionState.OPEN:
            self._pinged = now
            self._put(self._ws.send(Ping()))

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        """Read and write until the connection has ended. A message that is too long comes cut, one byte too long."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read(on_message)
                self._end_soon()
                self._ending = True
                self._wake.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, on_message: Callable[[bytes], None]) -> None:
        try:
            while self._handle_events(on_message):
                data = await self._stream.receive_some(_CHUNK)
                self._heard, self._pinged = trio.current_time(), None
                self._ws.receive_data(bytes(data) or None)
        except _BROKEN:
            self._scope.cancel("broken")
        except (RemoteProtocolError, LocalProtocolError):
            self._drop("protocol error")

    def _handle_events(self, on_message: Callable[[bytes], None]) -> bool:
        """Take what has arrived; whether there may be more."""
        for event in self._ws.events():
            match event:
                case TextMessage():
                    self._take(event.data.encode(), event, on_message)
                case BytesMessage():
                    self._take(bytes(event.data), event, on_message)
                case Ping() | Pong():
                    if isinstance(event, Ping) and self._ws.state is ConnectionState.OPEN:
                        self._put(self._ws.send(event.response()))
                    self._count_noise()
                case CloseConnection():
                    if self._ws.state is ConnectionState.REMOTE_CLOSING:
                        self._put(self._ws.send(event.response()))
                    self.close(event.code, event.reason or "")  # open still: the client broke the protocol
                    return False
                case Event():
                    pass
        return True

    def _take(self, data: bytes, event: TextMessage | BytesMessage, on_message: Callable[[bytes], None]) -> None:
        self._message += data
        limit = self._config.max_message + 1
        if event.message_finished or len(self._message) >= limit:
            message, self._message = bytes(self._message[:limit]), bytearray()
            on_message(message)
        elif event.frame_finished:
            self._count_noise()

    def _count_noise(self) -> None:
        """Count a frame that ends no message, which costs time too; a client that floods us with them is closed."""
        self._noise.take(trio.current_time())
        if self._noise.is_flooded:
            self.close(_POLICY, "flood")

    # --- writing ------------------------------------------------------------------------------------------------------

    def _put(self, data: bytes) -> None:
        self._outbox += data
        self._wake.set()
        if len(self._outbox) + self._in_flight > self._config.outbox:
            self._drop("slow")

    async def _write(self) -> None:
        try:
            while not self._ending:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._outbox:
                    data, self._outbox = self._outbox, bytearray()
                    self._in_flight = len(data)
                    await self._stream.send_all(data)
                    self._in_flight = 0
        except _BROKEN:
            self._scope.cancel("broken")

    def _end_soon(self) -> None:
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._config.close_timeout)

    def _drop(self, why: str) -> None:
        self.dropped = self.dropped or why
        self._scope.cancel(why)
