"""The signaling server over real loopback sockets."""

import datetime
import errno
import ipaddress
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import attrs
import click
import pytest
import trio
import trio.testing
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from p2pmesh.cli.serve import serve
from p2pmesh.errors import ConfigError
from p2pmesh.server.app import SignalingServer, open_signaling_server
from p2pmesh.server.config import ServerConfig
from p2pmesh.server.http import Response
from p2pmesh.server.listening import accept_all, open_listeners
from p2pmesh.server.presence import Order, Presence

HOST = "127.0.0.1"
A, B, C = "a" * 40, "b" * 40, "c" * 40
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
RUN_SERVE = "from p2pmesh.cli.serve import serve; serve(auto_envvar_prefix='P2PMESH_SERVE')"


class Legacy:
    """A client of the original project: plain JSON, no rooms, no version."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send_message(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.connection.get_message())
        return message

    async def close_code(self) -> int:
        """Read to the end, which the server is about to make."""
        try:
            while True:
                await self.connection.get_message()
        except ConnectionClosed as closed:
            return closed.reason.code if closed.reason is not None else 0

    async def join(self, peer: str) -> None:
        """Join, and be sure that it is done."""
        await self.send(type="join", peerId=peer)
        await self.send(type="signal", to="f" * 40)
        while (await self.receive())["type"] != "error":
            pass


@asynccontextmanager
async def legacy(
    server: SignalingServer, peer: str = "", *, tls: ssl.SSLContext | None = None, path: str = "/"
) -> AsyncGenerator[Legacy]:
    tcp = await dial(server)
    async with tcp, trio.open_nursery() as nursery:  # trio-websocket leaves the socket open if the server closes first
        stream = trio.SSLStream(tcp, tls, server_hostname=server.host) if tls else tcp
        async with await wrap_client_stream(nursery, stream, server.host, path) as connection:
            client = Legacy(connection)
            if peer:
                await client.join(peer)
            yield client


async def dial(server: SignalingServer, *, receive_buffer: int = 0) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await sock.connect((server.host, server.port))
    return trio.SocketStream(sock)


async def upgraded(server: SignalingServer, *, receive_buffer: int = 0) -> trio.SocketStream:
    """A WebSocket client that does nothing of its own accord."""
    stream = await dial(server, receive_buffer=receive_buffer)
    await stream.send_all(UPGRADE)
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
    return stream


async def to_the_end(stream: trio.SocketStream) -> bytes:
    """All that the server says until it closes."""
    with trio.fail_after(5):
        try:
            return b"".join([bytes(chunk) async for chunk in stream])
        except trio.BrokenResourceError:
            return b""


async def exchange(server: SignalingServer, request: bytes) -> tuple[int, str]:
    """Status and text that a plain HTTP request is answered with."""
    async with await dial(server) as stream:
        await stream.send_all(request)
        head, _, body = (await to_the_end(stream)).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def get(server: SignalingServer, path: str, method: str = "GET") -> tuple[int, str]:
    return await exchange(server, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([final << 7 | opcode]) + size + bytes(4) + payload


# --- the original's clients -------------------------------------------------------------------------------------------


async def test_legacy_clients_meet_signal_and_part() -> None:
    async with open_signaling_server() as server, legacy(server, A) as first:
        async with legacy(server) as second:
            await second.send(type="join", peerId=B)
            assert await second.receive() == {"type": "bootstrap_peers", "peers": [{"id": A}]}
            assert await first.receive() == {"type": "peer_joined", "peerId": B}
            offer = {"type": "offer", "sdp": "v=0\r\n"}
            await second.send(type="signal", to=A, **{"from": "c" * 40}, signal=offer, extra=[1])
            assert await first.receive() == {"type": "signal", "to": A, "from": B, "signal": offer, "extra": [1]}
            await second.send(type="leave", peerId=B)
            assert await second.close_code() == 1000
        assert await first.receive() == {"type": "peer_left", "peerId": B}


async def test_any_path_and_binary_frames_will_do() -> None:
    async with open_signaling_server() as server, legacy(server, path="/any/path?x=1") as client:
        await client.connection.send_message(json.dumps({"type": "join", "peerId": A, "version": 1}).encode())
        assert await client.receive() == {"type": "bootstrap_peers", "peers": []}


async def test_a_closed_socket_is_a_leave() -> None:
    async with open_signaling_server() as server, legacy(server, A) as first:
        async with legacy(server, B):
            assert (await first.receive())["type"] == "peer_joined"
        assert await first.receive() == {"type": "peer_left", "peerId": B}


async def test_a_takeover_closes_the_old_socket_and_leaves_the_new_one_reachable() -> None:
    async with open_signaling_server() as server, legacy(server, B) as friend, legacy(server, A) as old:
        async with legacy(server, A) as new:
            assert (await old.receive())["message"] == "Another client joined with your ID."
            assert await old.close_code() == 1008
            assert [(await friend.receive())["type"] for _ in range(2)] == ["peer_joined", "peer_joined"]
            await friend.send(type="signal", to=A, signal={})
            assert (await new.receive())["from"] == B


async def test_messages_that_crash_the_original_are_answered() -> None:
    async with open_signaling_server() as server, legacy(server) as client:
        for text in ("null", "[]", "x", b"\xff"):
            await client.connection.send_message(text)
            assert (await client.receive())["code"] == "bad_message"
        await client.join(A)


# --- HTTP on the same port --------------------------------------------------------------------------------------------


async def test_health_metrics_and_pages_share_the_port() -> None:
    pages = {"/hello": lambda: Response(200, b"<p>hi", "text/html")}
    async with open_signaling_server(pages=pages) as server, legacy(server, A):
        assert await get(server, "/healthz") == (200, "ok\n")
        assert await get(server, "/hello?x=1") == (200, "<p>hi")
        assert (await get(server, "/"))[0] == 426
        assert (await get(server, "/nothing"))[0] == 404
        assert await get(server, "/healthz", "HEAD") == (200, "")
        assert (await get(server, "/healthz", "POST"))[0] == 405
        status, text = await get(server, "/metrics")
    assert status == 200
    assert re.search(r"^p2pmesh_server_members 1\.0$", text, re.MULTILINE)
    assert re.search(r"^p2pmesh_server_joins_total 1\.0$", text, re.MULTILINE)
    assert re.search(r'^p2pmesh_server_errors_total\{code="not_found"\} 1\.0$', text, re.MULTILINE)


async def test_two_servers_in_one_process_count_apart() -> None:
    async with open_signaling_server() as one, open_signaling_server() as other, legacy(one, A):
        assert "members 1.0" in (await get(one, "/metrics"))[1]
        assert "members 0.0" in (await get(other, "/metrics"))[1]


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00" * 4 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
        (UPGRADE.replace(b"Version: 13", b"Version: 8"), 400),
        (UPGRADE[:-2] + b"Content-Length: 5\r\n\r\nhello", 400),
        (UPGRADE[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_requests_that_make_no_sense_are_refused(request_head: bytes, status: int) -> None:
    async with open_signaling_server() as server:
        assert (await exchange(server, request_head))[0] == status
        assert await get(server, "/healthz") == (200, "ok\n")


async def test_frames_sent_along_with_the_upgrade_request_are_read() -> None:
    async with open_signaling_server(config=ServerConfig(close_timeout=0.05)) as server, await dial(server) as stream:
        await stream.send_all(UPGRADE + frame(1, b'{"type":"leave"}'))
        assert (await to_the_end(stream)).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Upgrade\r\n", b"Upgrade, caf\xe9\r\n"),
        (b"Host: x", "Host: m\u00fcnchen.example".encode()),
        (b"Host: x", b"Host: xn--\xff.example"),
        (b"Host: x", b"Host: xn--zzzzzzzz99999.example"),
        (b"Host: x", b"Host: a..example"),
        (b"Host: x", b"Host: " + b"a" * 70),
        (b"Host: x", b"Host: "),
        (b"Host: x\r\n", b""),
        (b"HTTP/1.1\r\nHost: x", b"HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Version: 13", b"Version: \xff"),
        (b"Key: AAAA", b"Key: \xff"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: x; y=\xe9\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nOrigin: http://\xff:\xff\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nX-Forwarded-For: \xff, ::ffff:1.2.3.4%\xe9, [\r\n\r\n"),
        (b"\r\n\r\n", b'\r\nForwarded: for="[::1"; host=\xff, for=\r\n\r\n'),
    ],
)
async def test_heads_that_libraries_choke_on_are_answered_and_nothing_else_happens(old: bytes, new: bytes) -> None:
    async with open_signaling_server() as server, legacy(server, A) as other:
        async with await dial(server) as stream:
            await stream.send_all(UPGRADE.replace(old, new, 1))
            assert (await stream.receive_some()).startswith((b"HTTP/1.1 101", b"HTTP/1.1 400", b"HTTP/1.1 403"))
        await other.send(type="nonsense")
        assert (await other.receive())["code"] == "unknown_type"
        assert server.snapshot()["failures"] == {}


async def test_whatever_else_is_raised_ends_one_connection_is_counted_and_logged_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def page() -> Response:
        raise RuntimeError("a bug in a page")

    async with open_signaling_server(pages={"/bug": page}) as server, legacy(server, A):
        for _ in range(30):
            async with await dial(server) as stream:
                await stream.send_all(b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await to_the_end(stream) == b""
        assert server.snapshot()["failures"] == {"connection": 30}
        assert server.snapshot()["members"] == 1
        status, metrics = await get(server, "/metrics")
    assert (status, 'failures_total{where="connection"} 30.0' in metrics) == (200, True)
    assert 1 <= sum("a bug in a page" in record.getMessage() for record in caplog.records) <= 10


async def test_a_bug_that_a_message_or_the_time_meets_ends_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    received = Presence.received

    def stumble(presence: Presence, client: int, data: str | bytes, now: float) -> list[Order]:
        if "stone" in str(data):
            raise RuntimeError("a bug")
        return received(presence, client, data, now)

    def expire(presence: Presence, now: float) -> list[Order]:
        raise RuntimeError("another")

    monkeypatch.setattr(Presence, "received", stumble)
    monkeypatch.setattr(Presence, "expire", expire)
    config = ServerConfig(ping_interval=0.1, ping_timeout=5)
    async with open_signaling_server(config=config) as server, legacy(server, A) as other:
        async with await upgraded(server) as one:
            await one.send_all(frame(1, b"stone"))
            await to_the_end(one)
        with trio.fail_after(5):
            while server.snapshot()["failures"].keys() != {"connection", "time-outs"}:
                await trio.sleep(0.01)
        await other.send(type="nonsense")
        assert (await other.receive())["code"] == "unknown_type"
        assert server.snapshot()["failures"]["connection"] == 1


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://x", 101),
        ("https://X:8443", 101),
        ("https://app.example", 101),
        ("https://evil.example", 403),
        ("https://x.evil.example", 403),
        ("https://evil.example@x", 403),
        ("https://app.example.evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_pages_of_other_hosts_may_not_connect_unless_allowed(origin: str, status: int) -> None:
    config = ServerConfig(allowed_origins=("https://app.example",))
    async with open_signaling_server(config=config) as server, await dial(server) as stream:
        await stream.send_all(UPGRADE[:-2] + f"Origin: {origin}\r\n\r\n".encode())
        assert (await stream.receive_some()).startswith(f"HTTP/1.1 {status}".encode())


async def test_all_origins_can_be_allowed() -> None:
    config = ServerConfig(allowed_origins=("*",))
    async with open_signaling_server(config=config) as server, await dial(server) as stream:
        await stream.send_all(UPGRADE[:-2] + b"Origin: null\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")


async def test_health_and_metrics_may_have_an_address_of_their_own() -> None:
    async with open_signaling_server(status=("127.0.0.1", 0)) as server, legacy(server, A):
        assert (await get(server, "/healthz"))[0] == (await get(server, "/metrics"))[0] == 404
        assert server.status_url is not None
        apart = attrs.evolve(server, port=int(server.status_url.rpartition(":")[2]))
        assert apart.port != server.port
        assert await get(apart, "/healthz") == (200, "ok\n")
        assert "members 1.0" in (await get(apart, "/metrics"))[1]
        assert (await get(apart, "/"))[0] == 404
        assert (await exchange(apart, UPGRADE))[0] == 404


# --- proxies ----------------------------------------------------------------------------------------------------------


async def ask(server: SignalingServer, *headers: str, before: bytes = b"") -> int:
    """The status that a proxy's request for a page is answered with."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return (await exchange(server, before + f"GET /healthz HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()))[0]


async def test_limits_count_the_customers_of_a_trusted_proxy() -> None:
    config = ServerConfig(connect_burst=1, connects_per_second=0.1)
    async with open_signaling_server(config=config) as server:
        for customer in ("198.51.100.1", "198.51.100.2", "2001:db8:0:1::1", "[2001:db8:0:2::1]:443"):
            assert await ask(server, f"X-Forwarded-For: {customer}") == 200
        assert await ask(server, "X-Forwarded-For: 203.0.113.9, 198.51.100.1") == 429
        assert await ask(server, 'Forwarded: for="[2001:db8:0:1:ffff::]:80";proto=https') == 429  # one /64
        assert server.snapshot()["refused"] == 2


async def test_what_strangers_say_of_their_address_is_not_believed() -> None:
    config = ServerConfig(connect_burst=1, connects_per_second=0.1, proxy_headers=("192.0.2.1",))
    async with open_signaling_server(config=config) as server:
        assert await ask(server, "X-Forwarded-For: 198.51.100.1") == 200
        async with await dial(server) as second:
            assert await to_the_end(second) == b""


async def test_clients_behind_a_proxy_have_places_of_their_own() -> None:
    config = ServerConfig(clients_per_address=1, spare_per_address=1)
    async with open_signaling_server(config=config) as server, AsyncExitStack() as stack:
        for number, status in ((1, 101), (2, 101), (3, 101), (1, 101), (1, 429)):
            stream = await stack.enter_async_context(await dial(server))
            await stream.send_all(UPGRADE[:-2] + f"X-Forwarded-For: 198.51.100.{number}\r\n\r\n".encode())
            assert (await stream.receive_some()).startswith(f"HTTP/1.1 {status}".encode())


V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x01\x7f\0\0\x01\0\x01\0\x02"
V1 = b"PROXY TCP4 198.51.100.1 127.0.0.1 1 2\r\n"


@pytest.mark.parametrize("header", [V1, V2])
async def test_limits_count_whom_the_proxy_protocol_names(header: bytes) -> None:
    config = ServerConfig(connect_burst=1, connects_per_second=0.1, proxy_protocol=("127.0.0.0/8",))
    async with open_signaling_server(config=config) as server:
        assert await ask(server, before=header) == 200
        async with await dial(server) as again:
            await again.send_all(header)
            assert await to_the_end(again) == b""
        assert await ask(server, before=V1.replace(b"100.1", b"100.2")) == 200
        for other in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", V1.replace(b"TCP4", b"TCP9"), b"\r\n\r\n\0\r\nQUIT\nxxxx"):
            async with await dial(server) as without:
                await without.send_all(other)
                without.socket.shutdown(socket.SHUT_WR)
                assert await to_the_end(without) == b""
        assert server.snapshot()["refused"] == 4
        assert server.snapshot()["failures"] == {}


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_head_that_dribbles_in_is_cut_off() -> None:
    async with open_signaling_server(config=ServerConfig(head_timeout=0.1)) as server, await dial(server) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost:")
        assert await to_the_end(stream) == b""
        assert server.snapshot()["refused"] == 1


@pytest.mark.parametrize(
    "limits", [{"max_clients": 1, "spare_connections": 1}, {"clients_per_address": 1, "spare_per_address": 1}]
)
async def test_connections_are_bounded_before_they_have_said_a_word(limits: dict[str, Any]) -> None:
    async with open_signaling_server(config=ServerConfig(**limits)) as server:
        async with await dial(server), await dial(server):
            async with await dial(server) as third:
                assert await to_the_end(third) == b""
            assert server.snapshot()["connections"] == 2
            assert server.snapshot()["refused"] == 1


async def test_connects_from_one_address_are_limited() -> None:
    config = ServerConfig(connect_burst=2, connects_per_second=0.1, proxy_headers=())
    async with open_signaling_server(config=config) as server:
        for _ in range(2):
            assert await get(server, "/healthz") == (200, "ok\n")
        async with await dial(server) as third:
            assert await to_the_end(third) == b""
        assert server.snapshot()["refused"] == 1


async def test_a_full_server_says_so_and_closes() -> None:
    async with open_signaling_server(config=ServerConfig(max_clients=1)) as server, legacy(server, A):
        async with legacy(server) as second:
            assert (await second.receive())["code"] == "full"
            assert await second.close_code() == 1013


async def test_a_message_without_end_is_cut_off_at_the_limit() -> None:
    config = ServerConfig(max_message=2048, message_burst=1000)
    async with open_signaling_server(config=config) as server, await upgraded(server) as stream:
        await stream.send_all(frame(1, b"x" * 1500, final=False) + frame(0, b"x" * 1500, final=False))
        said = await stream.receive_some()
        assert b"too_large" in said
        while b"\x88" not in said:  # a close frame
            said += await stream.receive_some()
        assert (1009).to_bytes(2, "big") in said


@pytest.mark.parametrize("noise", [frame(9, b""), frame(10, b""), frame(0, b"", final=False)])
async def test_a_flood_of_frames_that_say_nothing_is_closed(noise: bytes) -> None:
    config = ServerConfig(message_burst=5, messages_per_second=1, close_timeout=0.1)
    async with open_signaling_server(config=config) as server, await upgraded(server) as stream:
        await stream.send_all(frame(1, b"{", final=False) + noise * 20)
        assert b"flood" in await to_the_end(stream)


async def test_a_client_that_goes_on_after_the_goodbye_is_cut_and_nothing_of_it_is_read() -> None:
    config = ServerConfig(message_burst=5, messages_per_second=1, close_timeout=60)
    async with open_signaling_server(config=config) as server, await upgraded(server) as stream:
        await stream.send_all(frame(1, b"{}") * 20)
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(frame(1, b"{}") * 20_000)
        assert server.snapshot()["received"] < 20


async def test_a_message_in_crumbs_is_a_flood() -> None:
    config = ServerConfig(message_burst=5, messages_per_second=1, close_timeout=0.1)
    async with open_signaling_server(config=config) as server, await upgraded(server) as stream:
        whole = frame(1, b'{"pad": "' + b"x" * 100 + b'"}')
        with suppress(trio.BrokenResourceError):
            for byte in whole:
                await stream.send_all(bytes((byte,)))
                await trio.testing.wait_all_tasks_blocked()
        assert b"flood" in await to_the_end(stream)


async def test_what_clients_leave_half_said_is_bounded_in_all() -> None:
    config = ServerConfig(backlog=1024 * 1024, **FREELY)
    async with open_signaling_server(config=config) as server, AsyncExitStack() as stack, legacy(server, A) as other:
        for _ in range(12):
            stream = await stack.enter_async_context(await upgraded(server))
            with suppress(trio.BrokenResourceError):
                await stream.send_all(frame(1, b"x" * 60_000, final=False) + frame(0, b"x" * 60_000, final=False))
        await other.send(type="nonsense")
        assert (await other.receive())["code"] == "unknown_type"
        with trio.fail_after(5):
            while not server.snapshot()["dropped"] or server.snapshot()["backlog"] > 1024 * 1024:
                await trio.sleep(0.01)
        assert server.snapshot()["dropped"].keys() == {"backlog"}


async def test_what_waits_for_clients_is_bounded_in_all_and_who_reads_notices_nothing() -> None:
    config = ServerConfig(backlog=1024 * 1024, **FREELY)
    async with open_signaling_server(config=config) as server, AsyncExitStack() as stack:
        busy = await stack.enter_async_context(legacy(server, A))
        reader = await stack.enter_async_context(legacy(server, C))
        for number in range(8):
            stream = await stack.enter_async_context(await upgraded(server, receive_buffer=4096))
            peer = f"{number:040x}"
            await stream.send_all(frame(1, json.dumps({"type": "join", "peerId": peer, "version": 1}).encode()))
            assert (await stream.receive_some())[:1] == b"\x81"
            await fill(server, busy, peer)
        assert 1024 * 1024 <= server.snapshot()["backlog"] < 1024 * 1024 + 64 * 1024
        for _ in range(3):
            await busy.send(type="signal", to=C, pad="x" * 10_000)
            while (await reader.receive())["type"] != "signal":
                pass
        assert server.snapshot()["dropped"] == {}


async def fill(server: SignalingServer, sender: Legacy, receiver: str, *, size: int = 60_000) -> dict[str, Any]:
    """Send to a client that does not read until the server takes no more for it; what it says then."""
    with trio.fail_after(10):
        while True:
            await sender.send(type="signal", to=receiver, pad="x" * size)
            with trio.move_on_after(0.002):
                if (message := await sender.receive())["type"] == "error":
                    return message


FREELY: dict[str, Any] = {"message_burst": 1_000_000, "messages_per_second": 1e6}


async def test_a_flood_costs_its_sender_and_not_the_receiver_that_is_slow() -> None:
    config = ServerConfig(outbox=512 * 1024, outbox_share=256 * 1024, **FREELY)
    async with open_signaling_server(config=config) as server, legacy(server, A) as flooder, legacy(server, C) as other:
        async with await upgraded(server, receive_buffer=4096) as slow:
            await slow.send_all(frame(1, json.dumps({"type": "join", "peerId": B}).encode()))
            assert (await other.receive())["type"] == "peer_joined"
            told = await fill(server, flooder, B)
            assert (told["code"], told["to"]) == ("rate_limited", B)
            assert 128 * 1024 < server.snapshot()["backlog"] <= 256 * 1024 + 64 * 1024
            await other.send(type="signal", to=B, pad="x" * 60_000)  # there is room for others
            await other.send(type="nonsense")
            assert (await other.receive())["code"] == "unknown_type"
            assert server.snapshot()["dropped"] == {}
            assert server.snapshot()["members"] == 3
            received = b""
            while (
                received.count(b"\x81\x7f") + received.count(b"\x81\x7e") < 2
                or b'"from":"' + C.encode() not in received
            ):
                received += await slow.receive_some()
        assert (await other.receive())["type"] == "peer_left"
        assert server.snapshot()["backlog"] == 0


async def test_a_client_that_takes_nothing_for_a_while_is_dropped() -> None:
    config = ServerConfig(ping_interval=60, ping_timeout=0.1, **FREELY)
    async with open_signaling_server(config=config) as server, legacy(server, A) as busy:
        async with await upgraded(server, receive_buffer=4096) as stuck:
            await stuck.send_all(frame(1, json.dumps({"type": "join", "peerId": B}).encode()))
            assert (await busy.receive())["type"] == "peer_joined"
            await fill(server, busy, B)
            while (message := await busy.receive())["type"] == "error":
                pass
            assert message == {"type": "peer_left", "peerId": B}
        assert server.snapshot()["dropped"] == {"slow": 1}
        assert server.snapshot()["backlog"] == 0


async def test_silent_clients_are_pinged_and_only_dead_ones_dropped() -> None:
    config = ServerConfig(ping_interval=0.05, ping_timeout=0.2)
    async with open_signaling_server(config=config) as server, legacy(server, A) as alive:
        async with await upgraded(server) as dead:
            assert b"\x89\x00" in await to_the_end(dead)  # a ping
        assert server.snapshot()["dropped"] == {"silent": 1}
        await alive.send(type="nonsense")
        assert (await alive.receive())["code"] == "unknown_type"


async def test_a_client_that_does_not_join_is_closed() -> None:
    async with open_signaling_server(config=ServerConfig(join_timeout=0.1, ping_interval=0.2)) as server:
        async with legacy(server) as idle:
            assert await idle.close_code() == 1008


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 50, frame(1, b"\xff\xff"), frame(3, b"x"), b"\x81\x05hello", frame(0, b"x")]
)
async def test_a_client_that_breaks_the_protocol_ends_its_own_connection_only(garbage: bytes) -> None:
    async with open_signaling_server() as server, legacy(server, A) as other:
        async with await upgraded(server) as broken:
            await broken.send_all(garbage)
            said = await to_the_end(broken)
            assert said[:1] in {b"\x88", b""}  # a close frame
        await other.send(type="nonsense")
        assert (await other.receive())["code"] == "unknown_type"


async def test_a_connection_that_is_reset_ends_alone() -> None:
    async with open_signaling_server() as server, legacy(server, A) as other:
        async with legacy(server, B):
            assert (await other.receive())["type"] == "peer_joined"
            async with await upgraded(server) as broken:
                broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert (await other.receive())["type"] == "peer_left"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509
        .CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_carries_the_same_and_plain_clients_are_turned_away(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    trust = ssl.create_default_context(cafile=certificate[0])
    async with open_signaling_server(tls=context) as server:
        assert server.url.startswith("wss://127.0.0.1:")
        async with legacy(server, A, tls=trust) as first:
            async with await dial(server) as plain:
                await plain.send_all(UPGRADE)
                assert b"HTTP" not in await to_the_end(plain)
            async with legacy(server, B, tls=trust) as second:
                assert (await first.receive())["type"] == "peer_joined"
                await second.send(type="signal", to=A, signal={"sdp": "x" * 100_000})
                assert len((await first.receive())["signal"]["sdp"]) == 100_000


async def test_garbage_instead_of_tls_ends_its_own_connection(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    trust = ssl.create_default_context(cafile=certificate[0])
    hello, wire = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        trust.wrap_bio(hello, wire, server_hostname="127.0.0.1").do_handshake()
    good = wire.read()
    async with open_signaling_server(tls=context) as server, legacy(server, A, tls=trust) as other:
        for garbage in (b"\xff" * 300, good[:50], good[:40] + b"\0" * 80, good + b"\x17\x03\x03\0\x05hello", b""):
            async with await dial(server) as stream:
                await stream.send_all(garbage)
                stream.socket.shutdown(socket.SHUT_WR)
                await to_the_end(stream)
        await other.send(type="nonsense")
        assert (await other.receive())["code"] == "unknown_type"
        assert server.snapshot()["failures"] == {}


# --- life and death ---------------------------------------------------------------------------------------------------


async def test_shutdown_says_goodbye_and_leaves_nothing() -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        async with open_signaling_server() as server:
            connected = trio.Event()

            async def stay() -> None:
                async with legacy(server, A) as client:
                    connected.set()
                    assert await client.close_code() == 1001

            nursery.start_soon(stay)
            await connected.wait()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    with pytest.raises(OSError, match="failed"):
        await trio.open_tcp_stream(server.host, server.port)
    assert server.snapshot()["clients"] == server.snapshot()["connections"] == 0


async def test_shutdown_does_not_wait_for_clients_that_do_not_answer() -> None:
    with trio.fail_after(2):
        async with open_signaling_server(config=ServerConfig(close_timeout=0.1)) as server:
            upgraded_one, silent_one = await upgraded(server), await dial(server)
    async with upgraded_one, silent_one:
        assert (await to_the_end(upgraded_one))[:1] == b"\x88"  # a close frame
        assert await to_the_end(silent_one) == b""


async def test_cancelling_the_server_cuts_everything_at_once() -> None:
    with trio.fail_after(2):
        with trio.CancelScope() as scope:
            async with open_signaling_server() as server:
                stream = await upgraded(server)
                scope.cancel()
                await trio.sleep_forever()
    async with stream:
        await to_the_end(stream)
    assert server.snapshot()["clients"] == 0


async def test_a_port_in_use_is_a_plain_oserror() -> None:
    async with open_signaling_server() as server:
        with pytest.raises(OSError, match="in use"):
            async with open_signaling_server(port=server.port):
                pytest.fail("two servers on one port")


async def test_an_ipv6_address_is_written_in_brackets() -> None:
    try:
        async with open_signaling_server("::1") as server:
            assert server.url == f"ws://[::1]:{server.port}"
            async with legacy(server, A):
                assert server.snapshot()["members"] == 1
    except OSError:
        pytest.skip("no IPv6 here")


async def test_every_network_is_both_families_on_one_port() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    for host in ("::", ""):
        async with open_signaling_server(host) as server:
            for address in ("127.0.0.1", "::1"):
                assert await get(attrs.evolve(server, host=address), "/healthz") == (200, "ok\n")


async def test_a_name_with_several_addresses_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(socket.AF_INET, ("127.0.0.1",)), (socket.AF_INET, ("127.0.0.2",)), (socket.AF_INET, ("127.0.0.3",))]

    async def resolve(host: str) -> Any:
        del host
        await trio.lowlevel.checkpoint()
        return places

    monkeypatch.setattr("p2pmesh.server.listening._resolve", resolve)
    listeners = await open_listeners("many", 0)
    try:
        assert len({listener.socket.getsockname()[1] for listener in listeners}) == 1
        assert len(listeners) == 3
        with pytest.raises(OSError, match="in use"):
            await open_listeners("many", listeners[1].socket.getsockname()[1])
    finally:
        for listener in listeners:
            await listener.aclose()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), *(OSError(number, "not now") for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EIO))],
)
async def test_what_the_system_lacks_for_a_connection_is_waited_for(error: Exception, autojump_clock: Any) -> None:
    served, failed = trio.Event(), list[Exception]()

    class Listener:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None: ...

        async def accept(self) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            if len(failed) < 50:
                raise error
            if served.is_set():
                await trio.sleep_forever()
            return trio.testing.memory_stream_pair()[0]

    async def serve(stream: trio.SocketStream) -> None:
        await trio.lowlevel.checkpoint()
        served.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_all, cast("trio.SocketListener", Listener()), serve, nursery, failed.append)
        await served.wait()
        nursery.cancel_scope.cancel()
    assert len(failed) == 50
    assert trio.current_time() > 4  # no busy loop


def test_a_server_without_descriptors_serves_again_once_it_has_some() -> None:
    command = f'ulimit -n 40; exec {sys.executable} -c "{RUN_SERVE}" --port 0 --json'
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = (HOST, json.loads(process.stdout.readline())["port"])
        crowd = [socket.create_connection(address) for _ in range(60)]
        assert "Only 40 files" in process.stderr.readline()
        assert "Too many open files" in process.stderr.readline()
        for one in crowd:
            one.close()
        with socket.create_connection(address, 10) as late:
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert late.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"host": 5},
        {"host": "a..b"},
        {"host": "\ud800"},
        {"port": "80"},
        {"port": -1},
        {"port": 65_536},
        {"port": True},
        {"config": {"max_clients": 5}},
        {"tls": "cert.pem"},
        {"pages": ["/x"]},
        {"status": "127.0.0.1:80"},
        {"status": ("127.0.0.1",)},
        {"status": ("127.0.0.1", "80")},
    ],
)
async def test_arguments_that_make_no_sense_are_refused(arguments: Any) -> None:
    with pytest.raises(ConfigError):
        async with open_signaling_server(**arguments):
            pytest.fail("it runs")


# --- the command ------------------------------------------------------------------------------------------------------


def test_serve_prints_its_address_as_json_and_ends_well_on_sigterm() -> None:
    command = [sys.executable, "-c", RUN_SERVE, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert address["url"] == f"ws://{address['host']}:{address['port']}"


def test_serve_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    (tmp_path / "bad.pem").write_text("nothing")
    assert "--key is of no use without --cert" in run(serve, ["--key", "x"]).output
    assert "can't read" in run(serve, ["--cert", str(tmp_path / "missing.pem")]).output
    assert "no PEM certificate" in run(serve, ["--cert", str(tmp_path / "bad.pem")]).output
    assert "can't read /: Is a directory" in run(serve, ["--cert", "/"]).output
    for arguments, says in (
        (["--max-clients", "0"], "--max-clients must be a whole number, 1 or more"),
        (["--ping-interval", "nan"], "--ping-interval must be a number, 0.05 or more"),
        (["--join-token", ""], "--join-token must not be empty"),
        (["--proxy-headers", "10.0.0.0/8,proxy"], "--proxy-headers are IP addresses or networks"),
        (["--proxy-protocol", "10.0.0.1/8"], "--proxy-protocol are IP addresses or networks"),
        (["--allowed-origins", "app.example"], "--allowed-origins are written https://app.example"),
        (["--max-message", "1"], "--max-message must be a whole number, 1024 or more"),
        (["--host", "a..b"], "is no host name"),
        (["--host", "192.0.2.1", "--port", "0"], "can't listen on 192.0.2.1 port 0"),
    ):
        result = run(serve, arguments)
        assert result.exit_code in {1, 2}
        assert says in result.output.splitlines()[-1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(serve, ["--port", str(taken.getsockname()[1])])
    assert "can't listen on 127.0.0.1 port" in result.output
    assert result.exit_code == 1


def test_every_option_of_serve_has_a_variable_and_the_default_that_help_shows() -> None:
    text = CliRunner().invoke(serve, ["--help"], auto_envvar_prefix="P2PMESH_SERVE").output
    config = ServerConfig()
    for parameter in serve.params:
        assert isinstance(parameter, click.Option)
        assert f"P2PMESH_SERVE_{parameter.name}".upper() in text or parameter.envvar == "P2PMESH_JSON"
        if isinstance(parameter.show_default, str):
            value = getattr(config, parameter.name or "")
            assert parameter.show_default == (
                ",".join(value) if isinstance(value, tuple) else str(value).removesuffix(".0")
            )
