"""The signaling server on real sockets: WebSocket, `/healthz` and `/metrics` on one port, with or without TLS.

A request's head is read with h11 and then answered as a page or handed to wsproto. Chosen by measurement, each on one
core around the same `Presence` (CPU of a connect with join / of a relayed offer / memory of a client): this 1.1 ms,
0.05 ms, 21 KB; trio-websocket 1.5 ms, 0.20 ms, 28 KB; Hypercorn with its Trio worker 1.8 ms, 0.16 to 0.28 ms, 31 KB.
The difference is tasks and hand-overs: here a client is two tasks and a byte buffer, and what waits goes out in one
write. `benchmarks/server.py` measures on.

What goes wrong with a client ends that client's connection. What is wrong with the server itself comes out of
`open_signaling_server`, in an exception group.
"""

from __future__ import annotations

import ipaddress
import itertools
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio
from attrs import field, frozen

from p2pmesh.server.config import ServerConfig
from p2pmesh.server.http import BadRequest, HttpConnection, Page, Response, answer, wants_websocket
from p2pmesh.server.metrics import Metrics
from p2pmesh.server.presence import Close, Order, Presence, Send
from p2pmesh.server.websocket import UpgradeRefused, WebSocket

_GOING_AWAY: Final = 1001
_HOUSEKEEPING: Final = 1.0
"""Seconds between looks at the clock: exact enough for time-outs of tens of seconds, and cheap for 10,000 clients."""
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # ruff: ignore[hardcoded-bind-all-interfaces] - not bound here, only shown as something to dial

_log = logging.getLogger(__name__)


@frozen
class SignalingServer:
    """A running server, as `open_signaling_server` gives it."""

    host: str
    """The address that it listens on."""
    port: int
    url: str
    """What a client on this machine opens: `ws://...`, or `wss://...`."""
    _snapshot: Callable[[], dict[str, Any]] = field(repr=False)

    def snapshot(self) -> dict[str, Any]:
        """Statistics that JSON can carry."""
        return self._snapshot()


class _Sockets:
    """Brings clients and `Presence` together."""

    def __init__(self, config: ServerConfig, tls: ssl.SSLContext | None, pages: Mapping[str, Page]) -> None:
        self._config = config
        self._tls = tls
        self._presence = Presence(config, random.Random(), _wall)
        self._clients: dict[int, WebSocket] = {}
        self._numbers = itertools.count(1)
        self._connections = 0
        self._addresses: Counter[str] = Counter()
        self._refused = 0
        self._dropped: Counter[str] = Counter()
        self._left = trio.Event()
        self._closing = False
        self._pages = {
            "/": lambda: Response(426, b"this is a p2pmesh signaling server: connect by WebSocket\n"),
            "/healthz": lambda: Response(200, b"ok\n"),
            "/metrics": Metrics(self.snapshot).page,
        } | dict(pages)

    def snapshot(self) -> dict[str, Any]:
        return self._presence.snapshot() | {
            "connections": self._connections,
            "refused": self._refused,
            "dropped": dict(sorted(self._dropped.items())),
        }

    async def keep_house(self) -> None:
        """Act on time-outs, for ever."""
        while True:
            await trio.sleep(min(_HOUSEKEEPING, self._config.ping_interval / 4, self._config.ping_timeout / 4))
            now = trio.current_time()
            self._carry_out(self._presence.expire(now))
            for client in self._clients.values():
                client.keep_alive(now)

    async def say_goodbye(self) -> None:
        """Close every client, and wait until they are gone."""
        self._closing = True
        for client in list(self._clients.values()):
            client.close(_GOING_AWAY, "server shutting down")
        while self._clients:
            self._left = trio.Event()
            await self._left.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, from its first byte to its last; the listener's task closes the socket in the end."""
        address = _address_of(stream)
        if not self._has_place(address):
            self._refused += 1
            return
        self._connections += 1
        self._addresses[address] += 1
        try:
            await self._serve_stream(stream, address)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone before it could be served: its own affair
        finally:
            self._connections -= 1
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def _has_place(self, address: str) -> bool:
        config = self._config
        return (
            self._connections < config.max_clients + config.spare_connections
            and self._addresses[address] < config.clients_per_address + config.spare_per_address
        )

    async def _serve_stream(self, tcp: trio.SocketStream, address: str) -> None:
        with trio.move_on_after(self._config.head_timeout) as scope:
            stream = await self._encrypted(tcp)
            http = HttpConnection(stream, self._config.head_size)
            try:
                request = await http.request()
                if request is None:
                    return
                if not wants_websocket(request):
                    await http.respond(answer(request, self._pages))
                    await _aclose(stream)
                    return
                client = WebSocket(stream, self._config)
                client.accept(list(request.headers), request.target.decode("ascii", "replace"), http.leftovers())
            except BadRequest as error:
                await http.respond(error.response)
                return
            except UpgradeRefused as error:
                await http.respond(Response(400, f"{error}\n".encode()))
                return
        if scope.cancelled_caught:
            self._refused += 1
            return
        await self._serve_client(client, address)
        with trio.move_on_after(self._config.close_timeout):
            await _aclose(stream)

    async def _encrypted(self, tcp: trio.SocketStream) -> trio.abc.Stream:
        if self._tls is None:
            return tcp
        stream = trio.SSLStream(tcp, self._tls, server_side=True, https_compatible=True)
        await stream.do_handshake()
        return stream

    async def _serve_client(self, client: WebSocket, address: str) -> None:
        number = next(self._numbers)
        self._clients[number] = client
        self._carry_out(self._presence.connected(number, address, trio.current_time()))
        if self._closing:
            client.close(_GOING_AWAY, "server shutting down")

        def on_message(message: bytes) -> None:
            self._carry_out(self._presence.received(number, message, trio.current_time()))

        try:
            await client.run(on_message)
        finally:
            del self._clients[number]
            self._carry_out(self._presence.disconnected(number, trio.current_time()))
            self._left.set()
            if client.dropped is not None:
                self._dropped[client.dropped] += 1
                _log.debug("client %d from %s dropped: %s", number, address, client.dropped)

    def _carry_out(self, orders: Iterable[Order]) -> None:
        for order in orders:
            client = self._clients.get(order.client)
            if client is None:
                continue
            match order:
                case Send(text=text):
                    client.post(text)
                case Close(code=code, reason=reason):
                    client.close(code, reason)


async def _listen(
    sockets: _Sockets,
    listeners: list[trio.SocketListener],
    connections: trio.Nursery,
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take connections until cancelled. What was taken lives on in `connections`."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await trio.serve_listeners(sockets.serve, listeners, handler_nursery=connections)


@asynccontextmanager
async def open_signaling_server(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    config: ServerConfig | None = None,
    tls: ssl.SSLContext | None = None,
    pages: Mapping[str, Page] | None = None,
) -> AsyncGenerator[SignalingServer]:
    """Run a signaling server while the block does.

    Args:
      host: the address to listen on; only this machine reaches the default.
      port: the port; 0 for a free one, see `SignalingServer.port`.
      config: limits and the join token.
      tls: with a certificate loaded, to serve `wss` and `https`.
      pages: more pages for the port, by path, beside `/healthz` and `/metrics`.

    Raises:
      OSError: if it can't listen there.

    Resource handling: leaving the block stops listening, closes each client with code 1001, waits for them up to
    `ServerConfig.close_timeout`, and cuts the rest. Nothing is left.
    """
    config = config or ServerConfig()
    sockets = _Sockets(config, tls, pages or {})
    listeners = await trio.open_tcp_listeners(port, host=host)
    address, port = listeners[0].socket.getsockname()[:2]
    server = SignalingServer(address, port, _url(address, port, tls=tls is not None), sockets.snapshot)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.keep_house, name="signaling server: time-outs")
        listening = await nursery.start(_listen, sockets, listeners, nursery)
        _log.info("signaling server on %s", server.url)
        try:
            yield server
        finally:
            listening.cancel("signaling server closed")
            with trio.move_on_after(config.close_timeout, shield=True):
                await sockets.say_goodbye()
            nursery.cancel_scope.cancel("signaling server closed")
    _log.info("signaling server on %s closed", server.url)


def _wall(now: float) -> float:
    return time.time() - (trio.current_time() - now)  # ruff: ignore[banned-api] - this is where the clock comes in


def _url(host: str, port: int, *, tls: bool) -> str:
    host = _WILDCARDS.get(host, host)
    return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"


def _address_of(stream: trio.SocketStream) -> str:
    """The address that a client counts for: an IPv6 customer has at least a /64 to choose from."""
    try:
        address = ipaddress.ip_address(stream.socket.getpeername()[0].partition("%")[0])
    except (OSError, ValueError):
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


async def _aclose(stream: trio.abc.Stream) -> None:
    """Close in order; a client that is gone already is no error."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.aclose()
