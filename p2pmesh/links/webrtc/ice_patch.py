"""aioice's ICE agent (RFC 8445) made robust and quick from outside. `aiortc_patch` re-classes it.

**Gathering** asks all servers at once and is over by a deadline; what they say later is told later (RFC 8838). Of many
local addresses those come first that have proven good, and no more than `MAX_ADDRESSES` are used.

**Checks** begin with the pairs that are likely to work, and there are never more than `MAX_PAIRS`: all pairs would take
time, and sockets' worth of packets, with the square of the addresses. Checks of addresses that never answered come out
of a budget of the whole process (`address_policy`).

**Datagrams** come from anybody. What is malformed is dropped and counted, and only addresses that have passed a check
get as far as DTLS.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Protocol, cast

import aioice
import aioice.ice
import aioice.stun
import aioice.turn
import ifaddr
from aioice.candidate import candidate_foundation, candidate_priority

from p2pmesh.links.webrtc.address_policy import MAX_TAKEN
from p2pmesh.links.webrtc.eager_coroutine import start_guarded
from p2pmesh.links.webrtc.event_loop import RECEIVE_BUFFER, DatagramTransport, LinkLoop
from p2pmesh.links.webrtc.server_pool import OURS, PATIENCE, Gathering, Server

logger: Final = logging.getLogger(__name__)

PACE = 0.005
"""Seconds between checks: the least that RFC 8445 allows (section 14.2); a check is a datagram of 100 bytes."""
UNREACHABLE = "the peer can't be reached, or its certificate is not its own"
IDLE = 0.05
"""Seconds until it is looked again whether there is something to check; what comes by itself is checked at once."""
LOOPBACK = "127.0.0.1"
MAX_ADDRESSES = 5
"""Local addresses that are used, a socket each. More are virtual ones of containers, mostly, and no peer takes more."""
MAX_REFLEXIVE = 2
"""Addresses that STUN servers saw and that are told: of each family one."""
MAX_ASKING = 4
"""Local addresses from which a STUN server is asked: those behind one router get the same answer."""
MAX_PAIRS = 100
"""Pairs of addresses that are checked; as RFC 8445 recommends (section 6.1.2.5)."""
MAX_WAITING_DATAGRAMS = 4096
"""Datagrams that may wait for DTLS. It is quick: more than this is a flood."""
GRACE = 0.05
"""Seconds for further servers of a kind once one has answered: most say the same."""
TRIES = 3
"""Further questions to a STUN server; see `PATIENCE`."""
TRIES_UNPROVEN = 4
"""Times that a check is sent again to an address that never answered: after 0.5, 1.5, 3.5 and 7.5 s."""


class Dtls(Protocol):
    """What takes the peer's data."""

    def decrypted(self, datagram: bytes) -> Coroutine[Any, Any, None] | None:
        """What is left to do for a datagram; None if it has to go through the queue."""


class IceConnection(aioice.ice.Connection):
    """aioice's agent; `gathering` and `loop` are set before it gathers."""

    gathering: Gathering
    loop: LinkLoop
    dtls: Dtls | None = None
    """Takes datagrams as they come, while none waits."""
    on_candidate: Callable[[aioice.Candidate], None] | None = None
    """Called with each address that is found after the description was made."""

    _queries: dict[asyncio.Task[None], Server]
    _answered: dict[Server, None]
    _news: asyncio.Future[None]
    _found: list[aioice.Candidate]
    _is_gathered = False
    _is_held_back = False
    """Whether a check waits for the budget."""
    _is_nominated: asyncio.Future[None] | None = None

    # --- gathering ----------------------------------------------------------------------------------------------------

    async def get_component_candidates(
        self,
        component: int,
        addresses: list[str],
        timeout: int = 5,  # noqa: ASYNC109  # aioice's
    ) -> list[aioice.Candidate]:
        """Gather. On a machine with no address but loopback, gather that, so that its processes can connect.

        Raises:
          OSError: if no socket can be opened.
        """
        del timeout
        is_private = self._transport_policy is aioice.ice.TransportPolicy.RELAY
        usable = [] if is_private else in_order(addresses or [LOOPBACK], self.gathering.preferred)
        hosts = await self._open_sockets(component, usable)
        self._protocols += hosts
        self._found = [host.local_candidate for host in hosts]
        self._answered = {}
        self._news = asyncio.get_running_loop().create_future()
        self._queries = {}
        for server in self.gathering.servers:
            is_stun = server.url.kind == "stun"
            if is_stun and is_private:
                continue
            ask = partial(self._ask_stun, server, hosts) if is_stun else partial(self._ask_turn, server, component)
            self._queries[asyncio.create_task(self._asked(server, ask))] = server
        await self._wait_for_servers()
        self._is_gathered = True
        return list(self._found)

    @property
    def is_gathering(self) -> bool:
        """Whether there may be more addresses."""
        return any(not query.done() for query in getattr(self, "_queries", ()))

    async def _open_sockets(self, component: int, addresses: list[str]) -> list[aioice.ice.StunProtocol]:
        hosts: list[aioice.ice.StunProtocol] = []
        failure: OSError | None = None
        for rank, address in enumerate(addresses):
            try:
                transport, host = await self.loop.create_datagram_endpoint(lambda: _Stun(self), local_addr=(address, 0))
            except OSError as error:
                failure = failure or OSError(error.errno, f"{error.strerror} ({address})")
                continue
            sockname = transport.get_extra_info("sockname")
            host.local_candidate = _candidate("host", component, sockname, priority_of("host", component, rank))
            hosts.append(host)
            self._divert(host)
        if failure is not None:
            if not hosts:
                raise failure
            logger.debug("an address is not used: %s", failure)
        return hosts

    async def _wait_for_servers(self) -> None:
        """Wait for one answer of each kind and a little longer, or until the time is over."""
        while waiting := self._awaited({server.url.kind for server in self._answered}):
            left = self.gathering.until - self.loop.time()
            if left <= 0:
                for query in waiting:
                    self._queries[query].is_slow = True
                return
            if self._news.done():
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.wait([*waiting, self._news], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if others := self._awaited(set()):
            await asyncio.wait(others, timeout=max(0, min(GRACE, self.gathering.until - self.loop.time())))

    def _awaited(self, without: set[str]) -> list[asyncio.Task[None]]:
        return [
            query
            for query, server in self._queries.items()
            if not query.done() and not server.is_slow and server.url.kind not in without
        ]

    async def _asked(self, server: Server, ask: Callable[[], Coroutine[Any, Any, str | None]]) -> None:
        """Ask a server; whatever goes wrong is that server's trouble, and ends nothing."""
        began = self.loop.time()
        trouble: str | None = f"did not answer within {PATIENCE:g} s"
        try:
            trouble = await asyncio.wait_for(ask(), PATIENCE)
        except (TimeoutError, aioice.stun.TransactionTimeout):
            pass
        except asyncio.CancelledError:
            if self.loop.time() > began + PATIENCE / 2 and server.is_slow:
                self.gathering.pool.failed(server, f"did not answer within {self.loop.time() - began:.1f} s")
            raise
        except aioice.stun.TransactionFailed as error:
            trouble = _refusal(error.response)
        except OSError as error:
            if error.errno in OURS:
                logger.debug("ICE server %s could not be asked: %s", server.url, error)
                return
            trouble = f"can't be reached: {error.strerror or error}"
        except Exception as error:  # it parses what the server sends
            logger.debug("ICE server %s", server.url, exc_info=error)
            trouble = f"answers what is not understood: {error!r:.100}"
        if trouble is not None and server not in self._answered:
            self.gathering.pool.failed(server, trouble)
        if self._early_checks_done:  # it may be what the end was waiting for
            self.loop.call_soon(self._look_whether_all_failed)

    async def _ask_stun(self, server: Server, hosts: list[aioice.ice.StunProtocol]) -> str | None:
        """Ask for our address as the server sees it, from each of ours; gives what is wrong with the server."""
        began = self.loop.time()
        waiting: set[asyncio.Task[Exception | None]] = set()
        for address in server.addresses:
            alike = [host for host in hosts if _version(host.local_candidate.host) == _version(address[0])]
            waiting |= {asyncio.create_task(self._reflexive(server, host, address)) for host in alike[:MAX_ASKING]}
        if not waiting:
            return "has no address of a kind that this machine has"
        failure: Exception | None = None
        try:
            while waiting and server not in self._answered:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                failure = next((error for ask in done if (error := ask.result()) is not None), failure)
            if waiting:  # from addresses that don't lead there no answer comes
                await asyncio.wait(waiting, timeout=max(GRACE, self.loop.time() - began))
        finally:
            for ask in waiting:
                ask.cancel()
        if failure is not None and server not in self._answered:
            raise failure
        return None

    async def _reflexive(
        self, server: Server, host: aioice.ice.StunProtocol, address: tuple[str, int]
    ) -> Exception | None:
        """Ask from one of ours. Gives what went wrong: a task that nobody waits for any more must not raise."""
        request = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST)
        try:
            response, _ = await host.request(request, address, retransmissions=TRIES)
            mapped = response.attributes.get("XOR-MAPPED-ADDRESS") or response.attributes["MAPPED-ADDRESS"]
        except Exception as error:
            return error
        base = host.local_candidate
        self._heard_of(server)
        if mapped[1] and not any((known.host, known.port) == mapped for known in self._found):
            priority = candidate_priority(base.component, "srflx")
            self._add(_candidate("srflx", base.component, mapped, priority, (base.host, base.port)))
        return None

    async def _ask_turn(self, server: Server, component: int) -> str | None:
        """Have the server relay for us; gives what is wrong with the server."""
        failure: OSError | None = None
        for address in server.addresses:
            try:
                await self._allocate(server, address, component)
            except OSError as error:
                failure = error
            else:
                return None
        if failure is not None:
            raise failure
        return "has no address"

    async def _allocate(self, server: Server, address: tuple[str, int], component: int) -> None:
        inner = await self._open_turn(server, address)
        transport = aioice.turn.TurnTransport(inner)
        relay = _Stun(self)
        try:
            await transport._connect(relay)
        except BaseException:  # cancelled, too: nobody else knows of this socket
            inner.transport.close()
            raise
        sockname, related = transport.get_extra_info("sockname"), transport.get_extra_info("related_address")
        priority = candidate_priority(component, "relay")
        relay.local_candidate = _candidate("relay", component, sockname, priority, related)
        self._heard_of(server)
        if self._closing or self._check_list_done:
            transport.close()
            return
        self._protocols.append(relay)
        if self._is_gathered:
            for candidate in list(self._remote_candidates):
                self._pair_remote_candidate(candidate)
            self.sort_check_list()
        self._add(relay.local_candidate)

    async def _open_turn(self, server: Server, address: tuple[str, int]) -> Any:
        url, loop = server.url, self.loop
        kind = _TurnByUdp if url.transport == "udp" else _TurnByTcp

        def protocol() -> _TurnByUdp | _TurnByTcp:
            made = kind(
                address,
                url.username,
                url.credential,
                aioice.turn.DEFAULT_ALLOCATION_LIFETIME,
                aioice.turn.DEFAULT_CHANNEL_REFRESH_TIME,
            )
            made.loop = loop
            return made

        if url.transport == "udp":
            _, inner = await loop.create_datagram_endpoint(protocol, remote_addr=address)
            return inner
        secure = {"ssl": ssl.create_default_context(), "server_hostname": url.host} if url.secure else {}
        _, inner = await cast("Any", loop).create_connection(protocol, *address, **secure)
        return inner

    def _heard_of(self, server: Server) -> None:
        self.gathering.pool.answered(server, in_time=not self._is_gathered)
        self._answered[server] = None
        if not self._news.done():
            self._news.set_result(None)

    def _add(self, candidate: aioice.Candidate) -> None:
        """An address was found: part of the description, or told afterwards; no more than a peer takes."""
        is_reflexive = candidate.type == "srflx"
        if len(self._found) >= MAX_TAKEN or (
            is_reflexive and sum(one.type == "srflx" for one in self._found) >= MAX_REFLEXIVE
        ):
            return
        self._found.append(candidate)
        if self._is_gathered and not self._closing and not self._check_list_done:
            self._local_candidates.append(candidate)
            if self.on_candidate is not None:
                self.on_candidate(candidate)

    async def close(self) -> None:
        """Close; what is still asked of servers is not wanted any more."""
        for query in getattr(self, "_queries", ()):
            query.cancel()
        await super().close()

    # --- datagrams ----------------------------------------------------------------------------------------------------

    def _divert(self, host: aioice.ice.StunProtocol) -> None:
        """Take DTLS past the STUN parser, which fails on it by an exception; and no more than we can hold."""
        transport = cast("object", host.transport)
        if not isinstance(transport, DatagramTransport):
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        queue, component = self._queue, host.local_candidate.component
        loop, drop = self.loop, self.loop.drop_datagram
        context = copy_context()  # that of the connection, which owns what is started there
        trusted: object = None

        def received(data: bytes, address: tuple[Any, ...]) -> None:
            nonlocal trusted
            if not 19 < data[0] < 64:  # RFC 7983
                host.datagram_received(data, address)
                return
            if address != trusted:
                if not self._is_known(address):
                    drop("from an address that has passed no check")
                    return
                trusted = address
            packet = self.dtls.decrypted(data) if self.dtls is not None and queue.empty() else None
            if packet is not None:
                start_guarded(packet, loop, context, drop)
            elif queue.qsize() < MAX_WAITING_DATAGRAMS:
                queue.put_nowait((data, component))
            else:
                drop("too many")

        transport.divert(received)

    def _is_known(self, address: tuple[Any, ...]) -> bool:
        host, port = address[:2]
        return any(known.port == port and known._network_host == host for known in self._remote_candidates)

    def data_received(self, data: bytes, component: int) -> None:
        """Take what is no STUN: DTLS that came through a relay, else garbage."""
        if data and 19 < data[0] < 64 and self._queue.qsize() < MAX_WAITING_DATAGRAMS:
            self._queue.put_nowait((data, component))
        else:
            self.loop.drop_datagram("malformed")

    def check_incoming(
        self, message: aioice.stun.Message, addr: tuple[str, int], protocol: aioice.ice.StunProtocol
    ) -> None:
        """Take a check of the peer's, which has proven that it knows our password."""
        if "PRIORITY" not in message.attributes or (
            len(self._remote_candidates) > MAX_PAIRS and not self._is_known(addr)
        ):
            self.loop.drop_datagram("a check without a priority, or one of too many")
        else:
            super().check_incoming(message, addr, protocol)

    # --- checks -------------------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """What stands in the way, as far as we can tell; empty if that is nothing in particular."""
        return "; ".join(filter(None, (self._obstacle(), self.gathering.pool.trouble)))

    @property
    def failure(self) -> str:
        """Why the connection failed."""
        return "; ".join(filter(None, (self._obstacle() or UNREACHABLE, self.gathering.pool.trouble)))

    def _obstacle(self) -> str:
        ours = {_version(candidate.host) for candidate in self._found}
        theirs = {_version(candidate._network_host) for candidate in self._remote_candidates}
        if self.remote_username is None:
            return "the peer did not answer"
        if not theirs:
            return "the peer names no usable address"
        return "" if ours & theirs else f"our addresses are {_families(ours)} and the peer's {_families(theirs)}"

    @property
    def is_hopeless(self) -> bool:
        """Whether no address of ours can send to any of the peer's."""
        ours = {_version(candidate.host) for candidate in self._found}
        theirs = {_version(candidate._network_host) for candidate in self._remote_candidates}
        return bool(theirs) and not ours & theirs and not self._remote_candidates_expected()

    async def connect(self) -> None:
        """Connect; aioice would sleep out 20 ms after each check, also when it has succeeded long before."""
        if self._local_candidates_end and self.remote_username is not None and self.remote_password is not None:
            await self._check_pairs()
        await super().connect()

    async def _check_pairs(self) -> None:
        """What `connect` begins with, in a pace that success interrupts. It finds all that done and returns at once."""
        for remote_candidate in self._remote_candidates:
            self._pair_remote_candidate(remote_candidate)
        self.sort_check_list()
        self._unfreeze_initial()
        self._early_checks_done = True
        while self._early_checks:
            self.check_incoming(*self._early_checks.popleft())
        self._is_nominated = asyncio.get_running_loop().create_future()
        while self._check_periodic():
            await asyncio.wait([self._is_nominated], timeout=PACE if self._has_unchecked() else IDLE)

    def _check_periodic(self) -> bool:
        """Start the next check that the budget allows. Whether there may be more."""
        if self._check_list_done:
            return False
        self._is_held_back = False
        states = aioice.ice.CandidatePair.State
        for state in (states.WAITING, states.FROZEN):
            for pair in self._check_list:
                if pair.state is state:
                    self.check_start_task(pair)
                    if pair.task is not None:
                        return True
        return self._is_held_back or self._remote_candidates_expected()

    def check_start_task(self, pair: aioice.ice.CandidatePair) -> None:
        """Start a check, also one that a check of the peer's triggers; what is not in the budget comes later."""
        if pair.task is None and not self.loop.checks.take(*pair.remote_addr[:2], self.loop.time()):
            self._is_held_back = True
        else:
            super().check_start_task(pair)

    async def check_start(self, pair: aioice.ice.CandidatePair) -> None:
        """Check a pair, and remember who answers."""
        await super().check_start(pair)
        if pair.state is aioice.ice.CandidatePair.State.SUCCEEDED:
            self.loop.checks.answered(*pair.remote_addr[:2], self.loop.time())

    def _remote_candidates_expected(self) -> bool:
        """Whether there may be more pairs to check: also while servers may give us another address."""
        return super()._remote_candidates_expected() or self.is_gathering

    def _look_whether_all_failed(self) -> None:
        if not self._closing and not self._check_list_maybe_complete():
            self._check_list_maybe_fail()

    def _has_unchecked(self) -> bool:
        waits = (aioice.ice.CandidatePair.State.WAITING, aioice.ice.CandidatePair.State.FROZEN)
        return not self._is_held_back and any(pair.state in waits for pair in self._check_list)

    def sort_check_list(self) -> None:
        """Put first what both have found good, then what is in one network; leave the last out if there are many."""
        super().sort_check_list()
        self._check_list.sort(key=_likelihood)
        if len(self._check_list) > MAX_PAIRS:
            fresh = aioice.ice.CandidatePair.State.FROZEN
            self._check_list[MAX_PAIRS:] = [pair for pair in self._check_list[MAX_PAIRS:] if pair.state is not fresh]

    def _check_list_maybe_complete(self) -> bool:
        is_complete = super()._check_list_maybe_complete()
        if is_complete and self._is_nominated is not None and not self._is_nominated.done():
            self._is_nominated.set_result(None)
        return is_complete

    async def get_event(self) -> aioice.ice.ConnectionEvent | None:
        """As aioice's; but aiortc asks again for ever, without a pause, when the answer is that all is over already."""
        return aioice.ice.ConnectionClosed() if self._closed else await super().get_event()


class _Stun(aioice.ice.StunProtocol):
    async def request(
        self,
        request: aioice.stun.Message,
        addr: tuple[str, int],
        integrity_key: bytes | None = None,
        retransmissions: int | None = None,
    ) -> tuple[aioice.stun.Message, tuple[str, int]]:
        """As aioice's, but an address that never answered is not asked as often."""
        checks = cast("IceConnection", self.receiver).loop.checks
        if retransmissions is None and not checks.has_answered(*addr[:2]):
            retransmissions = TRIES_UNPROVEN
        return await super().request(request, addr, integrity_key, retransmissions)

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        try:
            super().datagram_received(data, addr)
        except Exception as error:  # what a datagram from anybody makes a parser raise is that datagram's fault
            cast("IceConnection", self.receiver).loop.drop_datagram(error)


class _TurnByUdp(aioice.turn.TurnClientUdpProtocol):
    loop: LinkLoop

    def datagram_received(self, data: bytes | str, addr: tuple[str, int]) -> None:
        try:
            super().datagram_received(data, addr)
        except Exception as error:  # likewise
            self.loop.drop_datagram(error)


class _TurnByTcp(aioice.turn.TurnClientTcpProtocol):
    loop: LinkLoop

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as error:  # nothing that follows in this stream can be understood
            self.loop.drop_datagram(error)
            self.transport.abort()


def in_order(addresses: list[str], preferred: tuple[str, ...]) -> list[str]:
    """The local addresses that are used, the best first: those that lead to the service, then those that lead out."""
    if len(addresses) < 2:
        return addresses
    leading = [*preferred, *(_leads_out(version) for version in (4, 6))]
    turns = _turns() if len(addresses) > MAX_ADDRESSES else {}

    def rank(address: str) -> tuple[int, bool, int]:
        place = leading.index(address) if address in leading else len(leading)
        return place, ipaddress.ip_address(address).is_link_local, turns.get(address, 0)

    ranked = sorted(dict.fromkeys(addresses), key=rank)
    if len(ranked) <= MAX_ADDRESSES:
        return ranked
    kept = ranked[: MAX_ADDRESSES - 1]
    missing = [address for address in ranked[MAX_ADDRESSES - 1 :] if _version(address) not in map(_version, kept)]
    return [*kept, *(missing or ranked[MAX_ADDRESSES - 1 :])[:1]]  # some of each kind


def _leads_out(version: int) -> str:
    """The local address from which the world would be reached; nothing is sent."""
    family, far = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((far, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return ""


def _turns() -> dict[str, int]:
    """Of each address its place among those of its interface: of many, one of each interface comes first."""
    return {
        ip.ip if isinstance(ip.ip, str) else ip.ip[0]: turn
        for adapter in ifaddr.get_adapters()
        for turn, ip in enumerate(adapter.ips)
    }


def priority_of(kind: str, component: int, rank: int) -> int:
    """RFC 8445, section 5.1.2.1, with less preference for each further address."""
    return candidate_priority(component, kind, 65_535 - 256 * rank)


def _likelihood(pair: aioice.ice.CandidatePair) -> int:
    """How soon to try it: 0 for the first choices of both, 1 within a network, 2 for all else."""
    local, remote = pair.local_candidate, pair.remote_candidate
    if local.type != "host" or remote.type == "prflx":
        return 2
    first = candidate_priority(1, "host")
    if local.priority == first and remote.priority == first:
        return 0
    return 1 if _network(local.host) == _network(remote._network_host) else 2


def _network(host: str) -> bytes:
    """The usual network of an address, as far as one can tell from outside."""
    packed = ipaddress.ip_address(host).packed
    return packed[:3] if len(packed) == 4 else packed[:8]


def _version(host: str) -> int:
    return 6 if ":" in host else 4


def _families(versions: set[int]) -> str:
    return " and ".join(f"IPv{version}" for version in sorted(versions)) or "none"


def _candidate(
    kind: str, component: int, address: tuple[Any, ...], priority: int, related: tuple[str, int] | None = None
) -> aioice.Candidate:
    host, port = address[:2]
    return aioice.Candidate(
        foundation=candidate_foundation(kind, "udp", (related or address)[0]),
        component=component,
        transport="udp",
        priority=priority,
        host=host,
        port=port,
        type=kind,
        related_address=related[0] if related else None,
        related_port=related[1] if related else None,
    )


def _refusal(response: aioice.stun.Message) -> str:
    code, said = response.attributes.get("ERROR-CODE", (0, ""))
    if code in {401, 441}:
        return "refuses the user name or the credential"
    return f"refuses with error {code}" + (f" ({said!r:.60})" if said else "")
