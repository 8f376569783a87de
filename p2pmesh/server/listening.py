"""The sockets that a server listens on, and taking connections from them whatever the system runs out of.

One port for all addresses of a host name, also where the system chooses it; "::" takes IPv4 too.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import trio

from p2pmesh.errors import ConfigError

_BACKLOG: Final = 65_535
"""Connections that wait to be taken; systems cut it to what they allow."""
_PAUSE: Final = 0.1
"""Seconds until a connection is taken again after that failed: descriptors or memory may be free by then."""
_TRIES: Final = 16
"""Ports that the system chooses until one is free for all addresses of a host."""
_ABSENT: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
EVERYWHERE: Final = ("", "::")
"""Hosts that mean every network, of both families."""
_EVERY_IPV4: Final = "0.0.0.0"  # ruff: ignore[hardcoded-bind-all-interfaces] - where it was asked for

_Address: TypeAlias = tuple[Any, ...]
"""A socket's address without its port: the host, and for IPv6 maybe more."""
_Place: TypeAlias = tuple[socket.AddressFamily, _Address]


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on all addresses of `host`, on one port; 0 for one that is free for all.

    Raises:
      ConfigError: if this is no host name.
      OSError: if it can't.
    """
    places = await _resolve(host)
    for attempt in range(_TRIES):
        try:
            return await _bind_all(places, port)
        except OSError as error:
            if port != 0 or error.errno != errno.EADDRINUSE or attempt == _TRIES - 1:
                raise
    raise AssertionError  # the last attempt returns or raises


async def accept_all(
    listener: trio.SocketListener,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    connections: trio.Nursery,
    failed: Callable[[Exception], None],
) -> None:
    """Take connections until cancelled, each to a task in `connections`, which closes it in the end.

    No descriptors, no memory for a socket: the connections that wait are taken later, and `failed` is told.
    """

    async def serve_and_close(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        finally:
            await trio.aclose_forcefully(stream)

    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except (OSError, MemoryError) as error:
                failed(error)
                await trio.sleep(_PAUSE)
                continue
            connections.start_soon(serve_and_close, stream, name="signaling server: connection")


async def _resolve(host: str) -> list[_Place]:
    if host in EVERYWHERE and socket.has_dualstack_ipv6():
        return [(socket.AF_INET6, ("::",))]
    if not host:
        return [(socket.AF_INET, (_EVERY_IPV4,))]
    try:
        found = await trio.socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except ValueError as error:  # the C library takes no such text, or IDNA doesn't
        raise ConfigError(f"{host!r:.100} is no host name: {error}") from None
    return list(dict.fromkeys((family, (address[0], *address[2:])) for family, _, _, _, address in found))


async def _bind_all(places: list[_Place], port: int) -> list[trio.SocketListener]:
    """One listener for each place, all on one port; a family that this machine does not have is left out."""
    async with AsyncExitStack() as unless_all:
        listeners: list[trio.SocketListener] = []
        absent: OSError | None = None
        for family, address in places:
            try:
                listener = _bind(family, address, port)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
                continue
            unless_all.push_async_callback(listener.aclose)
            listeners.append(listener)
            port = listener.socket.getsockname()[1]
        if not listeners and absent is not None:
            raise absent
        unless_all.pop_all()
    return listeners


def _bind(family: socket.AddressFamily, address: _Address, port: int) -> trio.SocketListener:
    dual = address[0] == "::" and socket.has_dualstack_ipv6()
    name = (address[0], port, *address[1:])
    sock = socket.create_server(name, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
