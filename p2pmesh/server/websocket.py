"""The server's end of one WebSocket connection (RFC 6455), over wsproto.

Sending never waits: what can't go at once is kept, up to a bound, so that one slow client holds up nobody. All that
waits goes out in one write. What one client sends another fills no more than a share of that bound, all of that no more
than the bound itself, and all clients of a server no more than its `Backlog`: above it the sender is refused, and the
receiver stays. Only a client that takes nothing for a while, or has no room for the server's own words, is cut off.

Once this side has said goodbye nothing is parsed any more. What still comes is thrown away unread until the client
ends, too, since a connection that is closed with bytes unread loses the last ones that it sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from p2pmesh.protocols.util.limits import TokenBucket
from p2pmesh.server.config import KIB, ServerConfig

_CHUNK: Final = 16 * KIB
_PIECE: Final = 64 * KIB
"""Bytes of one write. A client that takes less within `ping_timeout` is cut off: 4 KiB/s by default."""
_RESERVE: Final = 16 * KIB
"""What the server itself may say to a client whose outbox is full: some 150 messages. And what a client is sent by
another, if it has read all before, though the backlog is full: no offer is larger."""
_LAST: Final = 256 * KIB
"""Bytes that a client may have under way when it is closed, and a piece of less counts for 1 KiB; one that sends on is
cut off."""
_TINY: Final = 512
"""No network cuts a message into pieces so small: who sends such ones keeps the server busy with nothing."""
_POLICY: Final = 1008
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Backlog:
    """What all clients of one server make it keep: what they have not read yet, and what they have said by half.

    Of each there may be `limit` bytes. Above it nothing more is kept for who does not keep up, and of those that are in
    the middle of a message the one that has been for longest is cut off.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._halves: dict[WebSocket, None] = {}
        """Clients in the middle of a message, in the order in which they began it."""
        self.unread: int = 0
        self.unfinished: int = 0

    @property
    def is_full(self) -> bool:
        """Whether as much is unread as may be."""
        return self.unread >= self._limit

    def begun(self, client: WebSocket, size: int) -> None:
        """A client has said so much more of a message that goes on."""
        self._halves[client] = None
        self.unfinished += size
        if self.unfinished > self._limit:
            longest = next(iter(self._halves))
            del self._halves[longest]
            longest.drop("backlog")

    def finished(self, client: WebSocket, size: int) -> None:
        """What a client had said of a message is not kept any more."""
        self._halves.pop(client, None)
        self.unfinished -= size


class WebSocket:
    """One client's connection: `post` and `close` are orders, `run` carries them out and reads.

    Args:
      stream: the connection, whose upgrade was asked for.
      tcp: what it runs over; the same where it is not encrypted.
      config: the limits.
      backlog: what all clients share.
      accepted: the answer that accepts the upgrade.
      leftovers: what the client sent after the request.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        tcp: trio.abc.Stream,
        config: ServerConfig,
        backlog: Backlog,
        accepted: bytes,
        leftovers: bytes,
    ) -> None:
        self._stream = stream
        self._tcp = tcp
        self._config = config
        self._backlog = backlog
        self._ws = Connection(ConnectionType.SERVER, trailing_data=leftovers)
        self._message = bytearray()
        self._outbox = bytearray()
        self._in_flight = 0
        self._shares: dict[int, int] = {}
        """Bytes in `_outbox` that each other client sent; and of what is being written:"""
        self._shares_in_flight: dict[int, int] = {}
        self._written = 0
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        now = trio.current_time()
        self._noise = TokenBucket(config.messages_per_second, config.message_burst, now)
        self._heard = now
        self._pinged: float | None = None
        self._moved = (0, now)
        """How much was written when it was last more than before."""
        self._is_open = True
        """Whether neither side has said goodbye."""
        self._ending = False
        self.dropped: str | None = None
        """Why this side cut the connection, if it did."""
        self._put(accepted)

    def post(self, text: str, sender: int | None = None) -> bool:
        """Send a message, soon. Ignored once the connection is closing.

        Returns:
          whether it was taken. What another client, `sender`, sends is not if too much waits already.
        """
        if not self._is_open:
            return True
        frame = self._ws.send(TextMessage(text))
        if sender is not None:
            if (self._outbox or self._in_flight or self._backlog.is_full) and not self._has_room(sender, len(frame)):
                return False
            self._shares[sender] = self._shares.get(sender, 0) + len(frame)
        self._put(frame)
        return True

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; what was posted goes first. It is cut short when it takes too long."""
        if self._is_open:
            self._is_open = False
            self._put(self._ws.send(CloseConnection(code, reason)))
            self._end_soon()

    def drop(self, why: str) -> None:
        """Cut the connection."""
        self._is_open = False
        self.dropped = self.dropped or why
        self._scope.cancel(why)

    def keep_alive(self, now: float) -> None:
        """Ping a client that is silent; drop one that stays so, or takes nothing. Called every now and then."""
        patience = self._config.ping_timeout
        if not self._in_flight or self._written != self._moved[0]:
            self._moved = (self._written, now)
        elif now - self._moved[1] >= patience:
            self.drop("slow")
        if self._pinged is not None:
            if now - self._pinged >= patience:
                self.drop("silent")
        elif now - self._heard >= self._config.ping_interval and self._is_open:
            self._pinged = now
            self._put(self._ws.send(Ping()))

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        """Read and write until the connection has ended. A message that is too long comes cut, one byte too long."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read(on_message)
                    self._end_soon()
        finally:
            self._backlog.finished(self, len(self._message))
            self._backlog.unread -= len(self._outbox) + self._in_flight

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, on_message: Callable[[bytes], None]) -> None:
        try:
            while self._is_open and self._handle_events(on_message):
                data = await self._stream.receive_some(_CHUNK)
                self._heard, self._pinged = trio.current_time(), None
                if self._is_open:
                    self._ws.receive_data(bytes(data) or None)
            if self._ws.state is ConnectionState.LOCAL_CLOSING:
                await self._discard()
        except _BROKEN:
            self._scope.cancel("broken")
        except (RemoteProtocolError, LocalProtocolError):
            self.drop("protocol error")

    def _handle_events(self, on_message: Callable[[bytes], None]) -> bool:
        """Take what has arrived; whether there may be more."""
        for event in self._ws.events():
            match event:
                case TextMessage():
                    self._take(event.data.encode(), event, on_message)
                case BytesMessage():
                    self._take(bytes(event.data), event, on_message)
                case Ping():
                    self._put(self._ws.send(event.response()))
                    self._count_noise()
                case Pong():
                    self._count_noise()
                case CloseConnection():
                    if self._ws.state is ConnectionState.OPEN:  # the client broke the protocol
                        self.close(event.code, event.reason or "")
                    elif self._ws.state is ConnectionState.REMOTE_CLOSING:
                        self._put(self._ws.send(event.response()))
                    self._is_open = False
                case Event():
                    pass
            if not self._is_open:
                return False
        return True

    def _take(self, data: bytes, event: TextMessage | BytesMessage, on_message: Callable[[bytes], None]) -> None:
        limit = self._config.max_message + 1
        if event.message_finished and not self._message:
            on_message(data[:limit])
            return
        self._message += data
        self._backlog.begun(self, len(data))
        if event.message_finished or len(self._message) >= limit:
            message, size = bytes(self._message[:limit]), len(self._message)
            self._message = bytearray()
            self._backlog.finished(self, size)
            on_message(message)
        elif event.frame_finished or len(data) < _TINY:
            self._count_noise()

    def _count_noise(self) -> None:
        """Count a frame that ends no message, which costs time too; a client that floods us with them is closed."""
        self._noise.take(trio.current_time())
        if self._noise.is_flooded:
            self.close(_POLICY, "flood")

    async def _discard(self) -> None:
        left = _LAST
        while left > 0 and (data := await self._tcp.receive_some(_CHUNK)):
            left -= max(len(data), KIB)
        if left <= 0:
            self.drop("flood")

    # --- writing ------------------------------------------------------------------------------------------------------

    def _has_room(self, sender: int, size: int) -> bool:
        waiting = len(self._outbox) + self._in_flight
        if self._backlog.is_full:
            return not waiting and size <= _RESERVE
        share = self._shares.get(sender, 0) + self._shares_in_flight.get(sender, 0)
        return share + size <= self._config.outbox_share and waiting + size <= self._config.outbox

    def _put(self, data: bytes) -> None:
        self._outbox += data
        self._backlog.unread += len(data)
        self._wake.set()
        if len(self._outbox) + self._in_flight > self._config.outbox + _RESERVE:
            self.drop("slow")

    async def _write(self) -> None:
        try:
            while not self._ending or self._outbox:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._outbox:
                    await self._write_outbox()
            if isinstance(self._tcp, trio.abc.HalfCloseableStream):
                await self._tcp.send_eof()  # nothing follows a goodbye: so the client need not wait either
        except _BROKEN:
            self._scope.cancel("broken")

    async def _write_outbox(self) -> None:
        data, self._outbox = self._outbox, bytearray()
        self._shares, self._shares_in_flight = self._shares_in_flight, self._shares
        self._in_flight = len(data)
        if len(data) <= _PIECE:
            await self._write_piece(data)
        else:
            with memoryview(data) as view:
                for start in range(0, len(data), _PIECE):
                    await self._write_piece(view[start : start + _PIECE])
        self._shares_in_flight.clear()

    async def _write_piece(self, piece: bytearray | memoryview) -> None:
        await self._stream.send_all(piece)
        self._in_flight -= len(piece)
        self._written += len(piece)
        self._backlog.unread -= len(piece)

    def _end_soon(self) -> None:
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._config.close_timeout)
        self._ending = True
        self._wake.set()
