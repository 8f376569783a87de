"""The signaling server on real sockets: WebSocket, `/healthz` and `/metrics` on one port, with or without TLS.

A request's head is read with h11 and then answered as a page or handed to wsproto. Chosen by measurement, each on one
core around the same `Presence` (CPU of a connect with join / of a relayed offer / memory of a client): this 1.1 ms,
0.05 ms, 21 KB; trio-websocket 1.5 ms, 0.20 ms, 28 KB; Hypercorn with its Trio worker 1.8 ms, 0.16 to 0.28 ms, 31 KB.
The difference is tasks and hand-overs: here a client is two tasks and a byte buffer, and what waits goes out in one
write. `benchmarks/server.py` measures on.

What goes wrong with a client ends that client's connection, whatever it is: libraries raise more than they declare, and
each connection has a guard that counts and goes on. Of what the system runs out of, connections that wait are taken
later. Only what is wrong at the start comes out of `open_signaling_server`.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, Self

import trio
from attrs import field, frozen

from p2pmesh.checks import in_trio, instance, number, shown, text
from p2pmesh.errors import ConfigError
from p2pmesh.keyspace import is_peer_id
from p2pmesh.protocols.util.limits import RateLimiter, TokenBucket
from p2pmesh.server.addresses import Address, Networks, Places, counted_as, read_address
from p2pmesh.server.bans import Bans, ban_of
from p2pmesh.server.config import ServerConfig
from p2pmesh.server.http import (
    BadRequest,
    HttpConnection,
    Page,
    Response,
    accept_upgrade,
    answer,
    check_origin,
    wants_websocket,
)
from p2pmesh.server.listening import accept_all, open_listeners
from p2pmesh.server.metrics import Metrics
from p2pmesh.server.presence import Close, Order, Presence, Send
from p2pmesh.server.proxies import BadProxyHeader, customer, hosts, read_proxy_header
from p2pmesh.server.websocket import Backlog, WebSocket

_GOING_AWAY: Final = 1001
_LAST_PORT: Final = 65_535
_HOUSEKEEPING: Final = 1.0
"""Seconds between looks at the clock: exact enough for time-outs of tens of seconds, and cheap for 10,000 clients."""
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # ruff: ignore[hardcoded-bind-all-interfaces] - not bound here, only shown as something to dial

_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
_LINGER: Final = 64 * 1024
"""Bytes of a request that are read after it was refused, so that the client can read why."""
_COMPLAINTS: Final = (10, 10.0)
"""Warnings at once, and seconds until there may be one more: who can cause them can cause many."""

_log = logging.getLogger(__name__)


class _Sockets:
    """Brings clients and `Presence` together."""

    def __init__(
        self,
        config: ServerConfig,
        tls: ssl.SSLContext | None,
        pages: Mapping[str, Page],
        bans: Bans | None = None,
        *,
        status_apart: bool = False,
    ) -> None:
        self._config = config
        self._tls = tls
        self.bans: Bans = bans or Bans(config)
        self._presence = Presence(config, random.Random(), _wall, self.bans.may_join)
        self._clients: dict[int, WebSocket] = {}
        self._addresses: dict[int, Address | None] = {}
        self._numbers = itertools.count(1)
        rates = RateLimiter(config.remembered_addresses, config.connects_per_second, config.connect_burst)
        self._connections = Places(
            config.max_clients + config.spare_connections, config.clients_per_address + config.spare_per_address, rates
        )
        self._status_connections = Places(config.spare_connections, config.spare_connections, rates)
        self._backlog = Backlog(config.backlog)
        self._proxies = Networks(config.proxy_headers)
        self._proxies_by_protocol = Networks(config.proxy_protocol)
        self._refused = 0
        self._dropped: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._complaints = TokenBucket(1 / _COMPLAINTS[1], _COMPLAINTS[0], -math.inf)
        self._left = trio.Event()
        self._closing = False
        self._status: dict[str, Page] = {
            "/healthz": lambda: Response(200, b"ok\n"),
            "/metrics": Metrics(self.snapshot).page,
        }
        self._pages: dict[str, Page] = {
            "/": lambda: Response(426, b"this is a p2pmesh signaling server: connect by WebSocket\n"),
            **({} if status_apart else self._status),
            **pages,
        }

    def snapshot(self) -> dict[str, Any]:
        return self._presence.snapshot() | {
            "connections": self._connections.taken,
            "backlog": self._backlog.unread + self._backlog.unfinished,
            "refused": self._refused,
            "banned": self.bans.turned_away,
            "dropped": dict(sorted(self._dropped.items())),
            "failures": dict(sorted(self._failures.items())),
        }

    async def keep_house(self) -> None:
        """Act on time-outs, for ever."""
        while True:
            await trio.sleep(min(_HOUSEKEEPING, self._config.ping_interval / 4, self._config.ping_timeout / 4))
            now = trio.current_time()
            try:
                self._carry_out(self._presence.expire(now))
            except Exception as error:  # ruff: ignore[blind-except] - as in `serve`
                self._failed("time-outs", error)
            for client in self._clients.values():
                try:
                    client.keep_alive(now)
                except Exception as error:  # ruff: ignore[blind-except] - as in `serve`
                    self._failed("time-outs", error)
                    client.drop("error")

    async def say_goodbye(self) -> None:
        """Close every client, and wait until they are gone."""
        self._closing = True
        for client in list(self._clients.values()):
            client.close(_GOING_AWAY, "server shutting down")
        while self._clients:
            self._left = trio.Event()
            await self._left.wait()

    def kick(self, whom: str) -> int:
        """Close the clients of an id or a network; gives how many."""
        networks = Networks(() if is_peer_id(whom) else (whom,))
        numbers = {number for number, address in self._addresses.items() if address in networks}
        orders = self._presence.kick(lambda number, peer: number in numbers or peer == whom)
        self._carry_out(orders)
        return sum(isinstance(order, Close) for order in orders)

    def accept_failed(self, error: Exception) -> None:
        """The system has no descriptor or no memory for one more connection."""
        self._failed("accept", error)

    async def serve(self, tcp: trio.SocketStream) -> None:
        """One connection, from its first byte to its last; the listener's task closes the socket in the end.

        Whatever goes wrong with it, also what no library declares, ends it alone.
        """
        try:
            with _Guest(self._connections, _peer_of(tcp)) as guest:
                await self._serve_guest(tcp, guest)
        except* _BROKEN:
            pass  # gone before it could be served: its own affair
        except* (_TurnedAway, BadProxyHeader):
            self._refused += 1
        except* Exception as group:  # ruff: ignore[blind-except] - that is what the guard is for
            self._failed("connection", group)

    async def serve_status(self, tcp: trio.SocketStream) -> None:
        """One connection to the address that only `/healthz` and `/metrics` have."""
        try:
            with (
                _Guest(self._status_connections, _peer_of(tcp)) as guest,
                trio.move_on_after(self._config.head_timeout),
            ):
                guest.enter(by_rate=False)
                stream = await self._encrypted(tcp)
                http = HttpConnection(stream, self._config.head_size)
                try:
                    request = await http.request()
                    response = None if request is None else answer(request, self._status)
                except BadRequest as error:
                    response = error.response
                if response is not None:
                    await self._respond(http, tcp, response)
        except* (*_BROKEN, _TurnedAway):
            pass
        except* Exception as group:  # ruff: ignore[blind-except] - that is what the guard is for
            self._failed("connection", group)

    async def _serve_guest(self, tcp: trio.SocketStream, guest: _Guest) -> None:
        with trio.move_on_after(self._config.head_timeout) as scope:
            speaks_first = guest.address in self._proxies_by_protocol
            guest.enter(by_rate=not speaks_first and guest.address not in self._proxies)
            if speaks_first:
                address = await read_proxy_header(tcp.receive_some)
                guest.speaks_for(address, by_rate=address not in self._proxies)
            stream = await self._encrypted(tcp)
            client = await self._upgrade(stream, tcp, guest)
        if scope.cancelled_caught:
            raise _TurnedAway
        if client is not None:
            await self._serve_client(client, guest)
            with trio.move_on_after(self._config.close_timeout):
                await _aclose(stream)

    async def _upgrade(self, stream: trio.abc.Stream, tcp: trio.SocketStream, guest: _Guest) -> WebSocket | None:
        """Read a request, and answer it if it is for a page."""
        http = HttpConnection(stream, self._config.head_size)
        turned_away = False
        try:
            request = await http.request()
            if request is None:
                return None
            proxy = guest.address if guest.address in self._proxies else None
            if proxy is not None:
                guest.speaks_for(customer(proxy, request, self._proxies), by_rate=True)
            if wants_websocket(request):
                accepted = accept_upgrade(request)
                self._check_address(guest.address)
                check_origin(request, hosts(request, forwarded=proxy is not None), self._config.allowed_origins)
                return WebSocket(stream, tcp, self._config, self._backlog, accepted, http.leftovers())
            response = answer(request, self._pages)
        except BadRequest as error:
            response = error.response
        except _TurnedAway:
            turned_away = True
        if turned_away:  # without a place, so it is not waited for
            await http.respond(Response(429, b"too many connections from this address: try again later\n"))
            raise _TurnedAway
        await self._respond(http, tcp, response)
        await _aclose(stream)
        return None

    def _check_address(self, address: Address | None) -> None:
        if not self.bans.may_connect(address):
            raise BadRequest(Response(403, b"this address may not connect\n"))

    async def _respond(self, http: HttpConnection, tcp: trio.SocketStream, response: Response) -> None:
        """Answer, and wait for the client to end: what is closed with bytes unread loses the last ones it sent."""
        await http.respond(response)
        if isinstance(tcp, trio.abc.HalfCloseableStream):
            await tcp.send_eof()
        with trio.move_on_after(self._config.close_timeout):
            left = _LINGER
            while left > 0 and (data := await tcp.receive_some(left)):
                left -= len(data)

    async def _encrypted(self, tcp: trio.SocketStream) -> trio.abc.Stream:
        if self._tls is None:
            return tcp
        stream = trio.SSLStream(tcp, self._tls, server_side=True, https_compatible=True)
        await stream.do_handshake()
        return stream

    async def _serve_client(self, client: WebSocket, guest: _Guest) -> None:
        number, address = next(self._numbers), guest.name
        self._clients[number] = client
        self._addresses[number] = guest.address

        def on_message(message: bytes) -> None:
            self._carry_out(self._presence.received(number, message, trio.current_time()))

        try:
            self._carry_out(self._presence.connected(number, address, trio.current_time()))
            if self._closing:
                client.close(_GOING_AWAY, "server shutting down")
            await client.run(on_message)
        finally:
            del self._clients[number], self._addresses[number]
            self._left.set()
            if client.dropped is not None:
                self._dropped[client.dropped] += 1
                _log.debug("client %d from %s dropped: %s", number, address, client.dropped)
            self._carry_out(self._presence.disconnected(number, trio.current_time()))

    def _carry_out(self, orders: Iterable[Order]) -> None:
        for order in orders:
            client = self._clients.get(order.client)
            if client is None:
                continue
            match order:
                case Send(text=text, sender=sender):
                    if not client.post(text, sender):
                        self._carry_out(self._presence.undelivered(sender, order.client))
                case Close(code=code, reason=reason):
                    client.close(code, reason)

    def _failed(self, where: str, error: BaseException) -> None:
        self._failures[where] += 1
        if self._complaints.take_if_there(trio.current_time()):
            _log.warning("signaling server: %s: %r; going on", where, error, exc_info=error)


@frozen
class SignalingServer:
    """A running server, as `open_signaling_server` gives it."""

    host: str
    """The address that it listens on."""
    port: int
    url: str
    """What a client on this machine opens: `ws://...`, or `wss://...`."""
    _snapshot: Callable[[], dict[str, Any]] = field(repr=False)
    _sockets: _Sockets = field(repr=False)
    status_url: str | None = None
    """Where `/healthz` and `/metrics` are: `http://...`, or `https://...`."""

    def snapshot(self) -> dict[str, Any]:
        """Statistics that JSON can carry."""
        return self._snapshot()

    @property
    def bans(self) -> tuple[str, ...]:
        """Ids and networks that are kept out."""
        return tuple(self._sockets.bans)

    def kick(self, *, peer_id: str | None = None, address: str | None = None) -> int:
        """Close connections at once: those that hold this id, or that come from this address or network.

        They may come again. Returns how many there were.

        Raises:
          ConfigError: if it is not exactly one of the two, or is malformed.
        """
        return self._sockets.kick(ban_of(peer_id, address))

    def ban(self, *, peer_id: str | None = None, address: str | None = None) -> int:
        """Keep an id, or an address or network, out until `unban`, and close the connections that are there.

        An id costs nothing to make: against a stranger ban the address, or allow ids (`ServerConfig.allow_ids`). Bans
        outlast the server if `open_signaling_server` was given `bans`. Returns how many connections were closed.

        Raises:
          ConfigError: if it is not exactly one of the two, or is malformed.
          OSError: if the file of bans can't be written; the ban holds until the server is closed.
        """
        ban = ban_of(peer_id, address)
        closed = self._sockets.kick(ban)
        self._sockets.bans.add(ban)
        return closed

    def unban(self, *, peer_id: str | None = None, address: str | None = None) -> bool:
        """Lift a ban, in the words in which it was made. Returns whether there was one.

        Raises:
          ConfigError: if it is not exactly one of the two, or is malformed.
          OSError: if the file of bans can't be written.
        """
        return self._sockets.bans.remove(ban_of(peer_id, address))


class _TurnedAway(Exception):
    """A connection that there is no place for, or that does not say in time what it wants."""


class _Guest:
    """Whom a connection is from, and the place that it has. Leaving the block frees it."""

    def __init__(self, places: Places, address: Address | None) -> None:
        self._places = places
        self._has_place = False
        self.address = address
        self.name: str = counted_as(address)
        """What it counts for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_place:
            self._places.free(self.name)

    def enter(self, *, by_rate: bool) -> None:
        """Take a place; `by_rate` unless it is a proxy's, which may have to speak for many first.

        Raises:
          _TurnedAway: if there is none.
        """
        self._has_place = self._places.take(self.name, trio.current_time() if by_rate else None)
        if not self._has_place:
            raise _TurnedAway

    def speaks_for(self, address: Address | None, *, by_rate: bool) -> None:
        """A proxy's connection counts for its customer now; for the proxy itself if that is all that is known.

        Raises:
          _TurnedAway: if there is no place for this one.
        """
        self._places.free(self.name)
        self._has_place = False
        self.address = address or self.address
        self.name = counted_as(self.address)
        self.enter(by_rate=by_rate)


@asynccontextmanager
async def open_signaling_server(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    config: ServerConfig | None = None,
    tls: ssl.SSLContext | None = None,
    pages: Mapping[str, Page] | None = None,
    status: tuple[str, int] | None = None,
    bans: str | os.PathLike[str] | None = None,
) -> AsyncGenerator[SignalingServer]:
    """Run a signaling server while the block does.

    Args:
      host: the address to listen on; only this machine reaches the default. `::` and `""` are every network, IPv6 and
        IPv4; a name stands for all its addresses.
      port: the port, the same one for all addresses; 0 for a free one, see `SignalingServer.port`.
      config: limits and the join token.
      tls: with a certificate loaded, to serve `wss` and `https`.
      pages: more pages for the port, by path, beside `/healthz` and `/metrics`.
      status: host and port of their own for `/healthz` and `/metrics`, which the first port does not have then.
      bans: a file that keeps what `SignalingServer.ban` says, an id or a network on each line; made if it is not there.

    Raises:
      ConfigError: if an argument makes no sense.
      OSError: if it can't listen there.

    Resource handling: leaving the block stops listening, closes each client with code 1001, waits for them up to
    `ServerConfig.close_timeout`, and cuts the rest. Nothing is left.
    """
    in_trio("open_signaling_server")
    config = ServerConfig() if config is None else instance("config", config, ServerConfig)
    pages = {} if pages is None else instance("pages", pages, Mapping)
    if tls is not None:
        instance("tls", tls, ssl.SSLContext)
    if status is not None and (not isinstance(status, tuple) or len(status) != 2):
        raise ConfigError(f"status must be a tuple of a host and a port, not {shown(status)}")
    sockets = _Sockets(config, tls, pages, Bans(config, bans), status_apart=status is not None)
    async with AsyncExitStack() as unless_serving:
        listeners = await _listeners(host, port, unless_serving)
        status_listeners = [] if status is None else await _listeners(*status, unless_serving)
        unless_serving.pop_all()
    address, port = listeners[0].socket.getsockname()[:2]
    url = _url("ws", address, port, tls=tls is not None)
    status_address = (status_listeners or listeners)[0].socket.getsockname()[:2]
    status_url = _url("http", *status_address, tls=tls is not None)
    server = SignalingServer(address, port, url, sockets.snapshot, sockets, status_url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.keep_house, name="signaling server: time-outs")
        services = [(listener, sockets.serve) for listener in listeners]
        services += [(listener, sockets.serve_status) for listener in status_listeners]
        listening = await nursery.start(_listen, sockets, services, nursery)
        _log.info("signaling server on %s", server.url)
        try:
            yield server
        finally:
            listening.cancel("signaling server closed")
            with trio.move_on_after(config.close_timeout, shield=True):
                await sockets.say_goodbye()
            nursery.cancel_scope.cancel("signaling server closed")
    _log.info("signaling server on %s closed", server.url)


async def _listeners(host: str, port: int, unless_serving: AsyncExitStack) -> list[trio.SocketListener]:
    """Open them; they are closed again if what follows fails."""
    listeners = await open_listeners(text("host", host), number("port", port, low=0, high=_LAST_PORT, whole=True))
    for listener in listeners:
        unless_serving.push_async_callback(listener.aclose)
    return listeners


async def _listen(
    sockets: _Sockets,
    services: list[tuple[trio.SocketListener, Callable[[trio.SocketStream], Awaitable[None]]]],
    connections: trio.Nursery,
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take connections until cancelled. What was taken lives on in `connections`."""
    async with trio.open_nursery() as nursery:
        for listener, serve in services:
            nursery.start_soon(accept_all, listener, serve, connections, sockets.accept_failed)
        task_status.started(nursery.cancel_scope)


def _wall(now: float) -> float:
    return time.time() - (trio.current_time() - now)  # ruff: ignore[banned-api] - this is where the clock comes in


def _url(scheme: str, host: str, port: int, *, tls: bool) -> str:
    host = _WILDCARDS.get(host, host)
    return f"{scheme}{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _peer_of(stream: trio.SocketStream) -> Address | None:
    """Where a connection comes from, if that can be told: it may be gone."""
    try:
        return read_address(stream.socket.getpeername()[0])
    except (OSError, IndexError):
        return None


async def _aclose(stream: trio.abc.Stream) -> None:
    """Close in order; a client that is gone already is no error."""
    with suppress(*_BROKEN):
        await stream.aclose()
