"""Signaling over WebSocket (`ws://`, `wss://`), with trio-websocket.

What is done here that trio-websocket leaves to its users: every failure becomes one `TransportError` that says the
cause and the way out, an end during the handshake is noticed, a silent server is pinged and given up, closing is
bounded and certain, and the nursery of the library's reader stays out of sight.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import cast

import h11
import trio
import trio_websocket
import wsproto.utilities

from p2pmesh.checks import instance, number, text
from p2pmesh.errors import TransportError
from p2pmesh.transports.address import Address, checked_headers
from p2pmesh.transports.connection import NO_GOODBYE, TextConnection, ending
from p2pmesh.transports.diagnostics import CLOSED_EARLY, TOO_MUCH, why_no_tls, why_rejected, why_unreachable
from p2pmesh.transports.registry import TransportKind
from p2pmesh.transports.transport import Connection, Transport

MAX_MESSAGE = 1024 * 1024
"""Characters of one message; a larger one ends the connection. The codec takes less and skips what lies between, so an
oversized message that a service relays does not so easily end the connections of others."""
MAX_HANDSHAKE = 64 * 1024
"""Bytes of an answer to the handshake: a rejection may carry a page of text."""
QUEUE = 16
"""Received messages that wait to be taken; then the service has to wait."""
PING_AFTER = 20.0
"""Seconds of silence before a ping: proxies and address translators drop what is idle for 30 to 60 s."""
PING_PATIENCE = 10.0
"""Seconds for anything to come back; then the service is given up, 30 s after it was last heard."""
CLOSE_TIMEOUT = 1.0
"""Seconds for the closing handshake; then the connection is cut."""

_READER_ERRORS = (trio_websocket.HandshakeError, wsproto.utilities.ProtocolError, h11.ProtocolError, UnicodeError)
"""What a server can make trio-websocket's reader raise."""


class WebSocketTransport(Transport):
    """A signaling service at a `ws://` or `wss://` URL."""

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        max_message: int = MAX_MESSAGE,
        ping_after: float = PING_AFTER,
        ping_patience: float = PING_PATIENCE,
    ) -> None:
        """Describe the service; nothing is contacted yet.

        Args:
          url: where it is. User name and password in it are sent as basic authentication, and never shown.
          name: tells it apart from others; its URL without secrets if left out.
          ssl_context: for `wss://`, where the authorities that the system trusts are not enough.
          headers: sent with the handshake.
          max_message: characters of one message; a larger one ends the connection.
          ping_after: seconds of silence before the service is pinged.
          ping_patience: seconds that a ping may remain unanswered.

        Raises:
          ConfigError: if the URL, a header or another option makes no sense.
        """
        self._address = Address.parse(url)
        self._headers = checked_headers({} if headers is None else headers) + self._address.authorization
        self._name = text("the name of a transport", "" if name is None else name) or self._address.public
        self._ssl_context = instance("ssl_context", ssl_context, ssl.SSLContext | None)
        self._max_message: int = number("max_message", max_message, low=1, whole=True)
        self._ping_after: float = number("ping_after", ping_after, low=0)
        self._ping_patience: float = number("ping_patience", ping_patience, low=0)

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"WebSocketTransport({self._address.public!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection, None]:
        """Open a connection; leaving the block closes it. Has no time-out of its own.

        Raises:
          TransportError: if the service can't be reached; the text says why and what to do.
        """
        stream = await self._open_stream()
        carrier = _Carrier(stream, self._ping_after, self._ping_patience)
        try:
            async with _open_quiet_nursery() as nursery:
                socket = await nursery.start(self._carry, carrier, name=f"websocket {self._name}")
                connection = _WebSocketConnection(self._address.public, socket, carrier)
                connection.local_host = _local_host(stream)
                try:
                    carrier.shield()
                    yield connection
                finally:
                    await connection.aclose()
        finally:
            await trio.aclose_forcefully(carrier)

    async def _open_stream(self) -> trio.abc.Stream:
        address = self._address
        try:
            tcp = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            raise TransportError(f"can't reach {address.public}: {why_unreachable(error)}") from error
        if not address.secure:
            return tcp
        async with AsyncExitStack() as unless_secured:
            unless_secured.push_async_callback(trio.aclose_forcefully, tcp)
            try:
                context = self._ssl_context or ssl.create_default_context()
                tls = trio.SSLStream(tcp, context, server_hostname=address.host, https_compatible=True)
                await tls.do_handshake()
            except trio.BrokenResourceError as error:
                raise TransportError(f"can't reach {address.public}: {why_no_tls(error)}") from error
            unless_secured.pop_all()
        return tls

    async def _carry(
        self, carrier: _Carrier, *, task_status: trio.TaskStatus[trio_websocket.WebSocketConnection]
    ) -> None:
        """Shake hands, then run the library's reader; its errors end here, as a fault for `receive` to tell."""
        try:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as handshake:
                    carrier.on_end = handshake.cancel  # the library would wait on
                    socket = await self._shake_hands(nursery, carrier)
                    carrier.opened(nursery.cancel_scope, ping=lambda: nursery.start_soon(_ping, socket, carrier))
                    task_status.started(socket)
                if handshake.cancelled_caught:
                    nursery.cancel_scope.cancel("the handshake failed")
        except* _READER_ERRORS as group:
            carrier.fault = why_rejected(group) if carrier.reading is None else "it broke the WebSocket protocol"
        finally:
            carrier.unread()
        if carrier.reading is None:
            raise TransportError(f"can't reach {self._address.public}: {carrier.fault or CLOSED_EARLY}")

    async def _shake_hands(self, nursery: trio.Nursery, carrier: _Carrier) -> trio_websocket.WebSocketConnection:
        return await trio_websocket.wrap_client_stream(
            nursery,
            cast("trio.SocketStream", carrier),  # any stream will do; its types name two
            self._address.host_header,
            self._address.resource,
            extra_headers=list(self._headers),
            message_queue_size=QUEUE,
            max_message_size=self._max_message,
            receive_buffer_size=None,
        )


class _WebSocketConnection(TextConnection):
    def __init__(self, address: str, socket: trio_websocket.WebSocketConnection, carrier: _Carrier) -> None:
        super().__init__(address)
        self._socket = socket
        self._carrier = carrier
        self._closed = False

    async def aclose(self) -> None:
        """Say goodbye, for a bounded moment, then close for certain."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True) as goodbye:
                self._carrier.when_unread(goodbye.cancel)  # no answer would be seen
                await self._socket.aclose()
        finally:
            self._carrier.release()
        await trio.aclose_forcefully(self._carrier)

    def abort(self) -> None:
        self._carrier.release()

    async def _send_text(self, text: str) -> None:
        self._check_open()
        try:
            await self._socket.send_message(text)
        except trio_websocket.ConnectionClosed as closed:
            error = self._ending(closed.reason)
            if isinstance(error, trio.EndOfChannel):
                error = TransportError(str(error))
            raise error from closed

    async def _receive_text(self) -> str | bytes:
        self._check_open()
        try:
            return await self._socket.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise self._ending(closed.reason) from closed

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this side closed the connection")

    def _ending(self, reason: trio_websocket.CloseReason | None) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("this side closed the connection")
        if self._carrier.fault:
            return TransportError(f"lost {self.address}: {self._carrier.fault}")
        if reason is None:
            return ending(self.address, NO_GOODBYE, None)
        return ending(self.address, reason.code, reason.reason)


class _Carrier(trio.abc.Stream):
    """The stream under a WebSocket. Sees what trio-websocket does not tell: an early end, silence, half a frame."""

    def __init__(self, stream: trio.abc.Stream, ping_after: float, ping_patience: float) -> None:
        self.on_end: Callable[[], object] = lambda: None
        self.fault: str | None = None
        """What ended it, if this side knows better than a close code."""
        self.reading: trio.CancelScope | None = None
        """The reader's, once the handshake is over."""
        self.pinging = False
        self._is_read = True
        self._on_unread: Callable[[], object] = lambda: None
        self._stream = stream
        self._ping_after = ping_after
        self._ping_patience = ping_patience
        self._ping: Callable[[], None] = lambda: None
        self._heard = 0
        self._torn = False

    def opened(self, reading: trio.CancelScope, ping: Callable[[], None]) -> None:
        """The handshake is over: from now on, silence is followed by `ping`, and an end is the reader's to see."""
        self.reading = reading
        self.on_end = lambda: None
        self._ping = ping

    def shield(self) -> None:
        """Let the reader go on until `release`: closing needs it, most of all when everything around is cancelled."""
        if self.reading is not None:
            self.reading.shield = True

    def release(self) -> None:
        """End the reader."""
        if self.reading is not None:
            self.reading.cancel("the connection is closed")

    def unread(self) -> None:
        """The reader has ended."""
        self._is_read = False
        self._on_unread()

    def when_unread(self, call: Callable[[], object]) -> None:
        """Call this once the reader has ended, or now if it has."""
        self._on_unread = call
        if not self._is_read:
            call()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._hear(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.on_end()
            raise
        self._heard += len(data)
        if self.reading is None and self._heard > MAX_HANDSHAKE:
            self.fault = TOO_MUCH
            data = b""
        if not data:
            self.on_end()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._torn:
            raise trio.BrokenResourceError("a send was cancelled half-way")
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await self._stream.send_all(data)
        except trio.Cancelled:
            self._torn = True  # half a frame may be out, nothing can follow it
            raise
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.on_end()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.on_end()
        await self._stream.aclose()

    async def _hear(self, max_bytes: int | None) -> bytes | bytearray:
        """Receive. Counts only time spent waiting here, so a slow application is not taken for a dead server."""
        while True:
            with trio.move_on_after(self._ping_after):
                return await self._stream.receive_some(max_bytes)
            if self.reading is not None:  # else the time-out is the caller's
                break
        self._ping()
        with trio.move_on_after(self._ping_patience):
            return await self._stream.receive_some(max_bytes)
        self.fault = f"it fell silent, nothing heard for {self._ping_after + self._ping_patience:g} s"
        raise trio.BrokenResourceError(self.fault)


def _local_host(stream: trio.abc.Stream) -> str | None:
    below = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    return str(below.socket.getsockname()[0]) if isinstance(below, trio.SocketStream) else None


async def _ping(socket: trio_websocket.WebSocketConnection, carrier: _Carrier) -> None:
    """Ping once; a ping that is still unanswered speaks for the next one too."""
    if carrier.pinging:
        return
    carrier.pinging = True
    with suppress(trio_websocket.ConnectionClosed):
        await socket.ping(b"p2pmesh")
    carrier.pinging = False


@asynccontextmanager
async def _open_quiet_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery that ends with its block, and lets what the block raises out as it is, in no group.

    For children that raise nothing, but for bugs: those come out in a group.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:  # whatever it is, it goes on: to be known again in the nursery's group
                raised = error
                raise
            finally:
                nursery.cancel_scope.cancel("the block has ended")
    except BaseExceptionGroup as group:
        if raised is None or group.split(lambda error: error is raised or isinstance(error, trio.Cancelled))[1]:
            raise
    if raised is not None:
        raise raised


KIND = TransportKind(WebSocketTransport, schemes=("ws", "wss"))
