"""ICE servers: names are looked up for a bounded time, what does not answer rests, and each trouble is told once."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.abc

from p2pmesh.ice_servers import IceServer
from p2pmesh.links.webrtc.server_pool import LOOK_UP_TIMEOUT, LOOKED_UP_LASTS, RESTS, Gathering, ServerPool

WITHIN = 0.75


class Names(trio.abc.HostnameResolver):
    """A name service in virtual time."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.error: Exception | None = None
        self.addresses = {socket.AF_INET: "192.0.2.1"}
        self.asked: list[float] = []

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *more: int):
        self.asked.append(trio.current_time())
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return [(known, more[0], 0, "", (address, port)) for known, address in self.addresses.items()]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
async def names() -> Names:
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)  # of this run alone
    return names


class Loop:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.run_trio_task = nursery.start_soon


@asynccontextmanager
async def pooled(*urls: str) -> AsyncGenerator[tuple[ServerPool, Any]]:
    async with trio.open_nursery() as nursery:
        pool, loop = ServerPool([IceServer(urls=url) for url in urls]), cast("Any", Loop(nursery))

        async def gather() -> Gathering:
            return await pool.gathering(loop, WITHIN, ())

        try:
            yield pool, gather
        finally:
            nursery.cancel_scope.cancel()


def found(gathering: Gathering) -> list[tuple[tuple[str, int], ...]]:
    return [server.addresses for server in gathering.servers]


async def test_an_address_needs_no_name_service(autojump_clock: object, names: Names) -> None:
    async with pooled("stun:192.0.2.9:7", "stun:[2001:db8::1]") as (_, gather):
        assert found(await gather()) == [(("192.0.2.9", 7),), (("2001:db8::1", 3478),)]
        assert names.asked == []


async def test_a_name_is_looked_up_once_and_again_after_a_while(autojump_clock: object, names: Names) -> None:
    names.addresses[socket.AF_INET6] = "2001:db8::7"
    async with pooled("stun:here") as (_, gather):
        for _ in range(3):
            assert sorted(found(await gather())[0]) == [("192.0.2.1", 3478), ("2001:db8::7", 3478)]
        assert len(names.asked) == 1
        names.delay, names.addresses = 5.0, {socket.AF_INET: "192.0.2.2"}
        await trio.sleep(LOOKED_UP_LASTS)
        began = trio.current_time()
        assert len(found(await gather())[0]) == 2, "the old ones do meanwhile"
        assert trio.current_time() == began
        await trio.sleep(6)
        assert found(await gather()) == [(("192.0.2.2", 3478),)]


async def test_a_slow_name_is_waited_for_once_and_used_when_it_is_known(autojump_clock: object, names: Names) -> None:
    names.delay = 3.0
    async with pooled("stun:slow", "stun:192.0.2.9") as (pool, gather):
        began = trio.current_time()
        assert found(await gather()) == [(("192.0.2.9", 3478),)]
        assert trio.current_time() == began + WITHIN
        await gather()
        assert trio.current_time() == began + WITHIN
        await trio.sleep(3)
        assert len(found(await gather())) == 2
        assert pool.trouble == ""
        assert len(names.asked) == 1


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "not known"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (RuntimeError("can't start new thread"), "thread"),
        (UnicodeError("label too long"), "label"),
        (None, "without any address"),
    ],
)
async def test_a_name_that_fails_rests_and_is_told_once(
    autojump_clock: object, names: Names, caplog: pytest.LogCaptureFixture, error: Exception | None, word: str
) -> None:
    names.error, names.addresses = error, {}
    async with pooled("stun:nowhere") as (pool, gather):
        for _ in range(3):
            assert found(await gather()) == []
        assert len(names.asked) == 1
        assert word in pool.trouble
        assert "stun:nowhere:3478" in pool.trouble
        await trio.sleep(RESTS)
        await gather()
        assert len(names.asked) == 2
        assert len(caplog.records) == 1
        names.error, names.addresses = None, {socket.AF_INET: "192.0.2.1"}
        await trio.sleep(RESTS)
        assert len(found(await gather())) == 1
        assert pool.trouble == ""


async def test_a_name_that_hangs_is_given_up(
    autojump_clock: object, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    names.delay = 1000.0
    async with pooled("stun:hangs") as (pool, gather):
        await gather()
        await trio.sleep(LOOK_UP_TIMEOUT)
        assert "not resolved within" in pool.trouble
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        await gather()
        assert len(names.asked) == 1


async def test_a_server_that_fails_rests_and_one_that_answers_is_forgiven(autojump_clock: object, names: Names) -> None:
    async with pooled("stun:192.0.2.1", "stun:192.0.2.2") as (pool, gather):
        first, second = (await gather()).servers
        pool.failed(first, "did not answer")
        first.is_slow = True
        assert (await gather()).servers == (second,)
        await trio.sleep(RESTS)
        assert (await gather()).servers == (first, second)
        pool.answered(first, in_time=False)
        assert first.is_slow
        pool.answered(first, in_time=True)
        assert not first.is_slow
        assert pool.trouble == ""
