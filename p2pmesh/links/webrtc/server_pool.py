"""The STUN and TURN servers of one dialer: where they are, which of them are asked, and what is wrong with the others.

Names are looked up in Trio, beside everything else: a dial waits for them as long as for the servers themselves, and no
longer. A server that did not answer one dial in time is asked by the next, but not waited for; once it is certain that
it does not answer it rests for a minute. What is wrong with it is logged once, and told with links that fail.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from attrs import define, field, frozen

from p2pmesh.ice_servers import IceServer, IceUrl, ice_urls_of

if TYPE_CHECKING:
    from p2pmesh.links.webrtc.event_loop import LinkLoop

logger: Final = logging.getLogger(__name__)

LOOK_UP_TIMEOUT = 10.0
"""Seconds for a name: what a resolver needs that asks a second name server after the first."""
LOOKED_UP_LASTS = 300.0
"""Seconds until a name is looked up again: services move, and the system's own cache knows how long it may keep it."""
PATIENCE = 5.0
"""Seconds for a server to answer: four times a question, after 0, 0.5, 1.5 and 3.5 s."""
RESTS = 60.0
"""Seconds for which a server that did not answer is not asked."""
OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Errors of this machine, which say nothing about a server."""


@define(eq=False)
class Server:
    """One address of a server, as far as we know."""

    url: IceUrl
    addresses: tuple[tuple[str, int], ...] = ()
    """Where it is: one of IPv4, one of IPv6."""
    looked_up_at: float = -math.inf
    looking_up: trio.Event | None = None
    is_slow: bool = False
    """A dial has waited for it in vain, so others don't."""
    rests_until: float = -math.inf
    trouble: str = ""
    told: str = field(default="", repr=False)
    """The trouble that was logged last."""


@frozen
class Gathering:
    """What a connection needs to gather its addresses."""

    pool: ServerPool
    servers: tuple[Server, ...]
    until: float
    """When its offer or answer leaves."""
    preferred: tuple[str, ...] = ()
    """Local addresses that have proven good."""


class ServerPool:
    """The servers of one dialer."""

    def __init__(self, servers: Iterable[IceServer]) -> None:
        self._servers = [Server(url) for url in ice_urls_of(servers)]
        for server in self._servers:
            if server.url.is_numeric:
                server.addresses = ((server.url.host, server.url.port),)
                server.looked_up_at = math.inf

    @property
    def trouble(self) -> str:
        """What is wrong with servers, for people; empty if nothing is."""
        return "; ".join(f"{server.url} {server.trouble}" for server in self._servers if server.trouble)

    async def gathering(self, loop: LinkLoop, within: float, preferred: tuple[str, ...]) -> Gathering:
        """Look names up that are not known; gives those servers that can be asked now."""
        until = trio.current_time() + within
        await trio.lowlevel.checkpoint()
        self.look_up(loop)
        awaited = [one for one in self._servers if one.looking_up is not None and not (one.addresses or one.is_slow)]
        with trio.move_on_at(until):
            for server in awaited:
                while server.looking_up is not None:
                    await server.looking_up.wait()
        for server in awaited:
            server.is_slow |= server.looking_up is not None
        now = trio.current_time()
        servers = tuple(server for server in self._servers if server.addresses and server.rests_until <= now)
        return Gathering(self, servers, until, preferred)

    def look_up(self, loop: LinkLoop) -> None:
        """Have names looked up that are not known."""
        now = trio.current_time()
        for server in self._servers:
            if server.looking_up is None and max(server.looked_up_at + LOOKED_UP_LASTS, server.rests_until) <= now:
                server.looking_up = trio.Event()
                cast("Any", loop).run_trio_task(self._look_up, server)

    async def _look_up(self, server: Server) -> None:
        trouble = f"has a name that is not resolved within {LOOK_UP_TIMEOUT:g} s: is there a name server?"
        found: list[Any] = []
        try:
            with trio.move_on_after(LOOK_UP_TIMEOUT):
                found = await trio.socket.getaddrinfo(server.url.host, server.url.port, type=socket.SOCK_DGRAM)
                trouble = "has a name without any address"
        except (OSError, UnicodeError, RuntimeError) as error:  # RuntimeError: no thread can be started
            trouble = f"has a name that is not resolved: {getattr(error, 'strerror', None) or error}"
        finally:
            if server.looking_up is not None:
                server.looking_up.set()
                server.looking_up = None
        by_family = {family: (str(address[0]), int(address[1])) for family, _, _, _, address in reversed(found)}
        if by_family:
            server.addresses, server.looked_up_at = tuple(by_family.values()), trio.current_time()
            if server.trouble.startswith("has a name"):
                server.trouble = server.told = ""
        elif not server.addresses:
            self.failed(server, trouble)

    def answered(self, server: Server, *, in_time: bool) -> None:
        """The server has given us an address."""
        server.trouble = server.told = ""
        server.rests_until = -math.inf
        server.is_slow &= not in_time

    def failed(self, server: Server, trouble: str) -> None:
        """The server gives us none, for a reason that continues "it ..."."""
        server.trouble = trouble
        server.rests_until = trio.current_time() + RESTS
        if server.told != trouble:
            server.told = trouble
            logger.warning("ICE server %s %s; it is left out, and tried again after %g s", server.url, trouble, RESTS)
