"""WebSocket: the contract against the real server, and one test for each way in which a server can misbehave."""

import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import pytest
import trio
import trio_websocket
from trio.testing import wait_all_tasks_blocked

from p2pmesh.errors import ConfigError, TransportError
from p2pmesh.server.app import SignalingServer, open_signaling_server
from p2pmesh.transports import websocket
from p2pmesh.transports.address import Address, public_url
from p2pmesh.transports.connection import TextConnection
from p2pmesh.transports.websocket import WebSocketTransport
from p2pmesh.wire.messages import Signal
from p2pmesh.wire.signaling import Join, PeerJoined, PeerSignal
from tests.harness.transport_contract import ALICE, BOB, TransportContract, join, until_gone

Certificate: TypeAlias = tuple[ssl.SSLContext, ssl.SSLContext]
Handler: TypeAlias = Callable[[Any], Awaitable[object]]


class RealServer:
    def __init__(self, nursery: trio.Nursery, certificate: Certificate | None = None) -> None:
        self._nursery = nursery
        self._tls = certificate and certificate[0]
        self._trust = certificate and certificate[1]
        self._server: SignalingServer
        self._port = 0

    @property
    def transport(self) -> WebSocketTransport:
        scheme = "ws" if self._tls is None else "wss"
        return WebSocketTransport(f"{scheme}://127.0.0.1:{self._port}", ssl_context=self._trust)

    async def start(self) -> None:
        self._server, self._stopping, self._stopped = await self._nursery.start(self._serve)
        self._port = self._server.port

    async def stop(self) -> None:
        self._stopping.set()
        await self._stopped.wait()

    def clients(self) -> int:
        return int(self._server.snapshot()["clients"])

    async def _serve(self, task_status):
        stopping, stopped = trio.Event(), trio.Event()
        async with open_signaling_server(port=self._port, tls=self._tls) as server:
            task_status.started((server, stopping, stopped))
            await stopping.wait()
        stopped.set()


class TestContract(TransportContract):
    @pytest.fixture
    async def service(self, nursery):
        service = RealServer(nursery)
        await service.start()
        return service


class TestContractOverTls(TransportContract):
    @pytest.fixture
    async def service(self, nursery, certificate):
        service = RealServer(nursery, certificate)
        await service.start()
        return service


# --- servers of our own making ----------------------------------------------------------------------------------------


@asynccontextmanager
async def tcp_server(handler: Handler) -> AsyncGenerator[str, None]:
    """Serves each connection with `handler(stream)`; gives the URL."""

    async def handle(stream):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        try:
            yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        finally:
            nursery.cancel_scope.cancel()


def websocket_server(handler: Handler) -> AbstractAsyncContextManager[str]:
    """Serves each connection with `handler(socket)`, after the handshake."""

    async def handle(stream):
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            with suppress(trio_websocket.ConnectionClosed):
                await handler(await request.accept())
            nursery.cancel_scope.cancel()

    return tcp_server(handle)


def http_server(response: bytes) -> AbstractAsyncContextManager[str]:
    """Answers each request with these bytes, and leaves the connection open."""

    async def handle(stream):
        await stream.receive_some()
        await stream.send_all(response)
        await stream.receive_some()

    return tcp_server(handle)


async def fail_to_connect(url: str, **options: Any) -> str:
    with trio.fail_after(5):
        with pytest.raises(TransportError) as caught:
            async with WebSocketTransport(url, **options).connect():
                pytest.fail("connected")
    text = str(caught.value)
    assert "\n" not in text
    return text


async def fail_to_receive(url: str, **options: Any) -> str:
    with trio.fail_after(5):
        async with WebSocketTransport(url, **options).connect() as connection:
            with pytest.raises(TransportError) as caught:
                await connection.receive()
    text = str(caught.value)
    assert "\n" not in text
    assert url in text
    return text


# --- can't reach it ---------------------------------------------------------------------------------------------------


async def test_refused_says_how_to_start_a_server():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{closed.getsockname()[1]}"
        text = await fail_to_connect(url)
    assert text == f"can't reach {url}: connection refused; is the server running? start one with: p2pmesh serve"


async def test_refused_by_every_address_of_a_name_says_so_too():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "connection refused" in await fail_to_connect(f"ws://localhost:{closed.getsockname()[1]}")


async def test_an_unknown_host_says_so(monkeypatch):
    async def no_such_name(*_args, **_kwargs):
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", no_such_name)
    assert "no such host" in await fail_to_connect("ws://nowhere.invalid")


async def test_a_server_that_closes_at_once():
    async def close(stream):
        await stream.aclose()

    async with tcp_server(close) as url:
        assert "closed the connection before it answered" in await fail_to_connect(url)


async def test_a_server_that_closes_after_the_request():
    async def close(stream):
        await stream.receive_some()

    async with tcp_server(close) as url:
        assert "closed the connection before it answered" in await fail_to_connect(url)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: bm90IHlvdXJzISEhISEhISE=\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
    ],
)
async def test_a_server_of_another_kind(answer):
    async with http_server(answer) as url:
        assert "does not speak WebSocket" in await fail_to_connect(url)


@pytest.mark.parametrize(
    ("status", "advice"),
    [(404, "no signaling service has this path"), (403, "token"), (503, "try later"), (301, "has moved"), (418, "418")],
)
async def test_an_http_status_is_named(status, advice):
    async with http_server(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\nsorry" % status) as url:
        text = await fail_to_connect(url)
    assert f"HTTP {status}" in text
    assert advice in text


async def test_an_endless_answer_to_the_handshake_is_cut():
    async def pour(stream):
        await stream.send_all(b"HTTP/1.1 404 X\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 10_000)

    async with tcp_server(pour) as url:
        assert "answers with more than" in await fail_to_connect(url)


async def test_a_server_that_never_answers_waits_for_the_callers_time_out():
    accepted, gone = trio.Event(), trio.Event()

    async def be_silent(stream):
        while await stream.receive_some():
            accepted.set()
        gone.set()

    async with tcp_server(be_silent) as url:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def give_up():
                    await accepted.wait()
                    await trio.sleep(0.05)
                    scope.cancel()

                nursery.start_soon(give_up)
                async with WebSocketTransport(url, ping_after=0.001, ping_patience=0.001).connect():
                    pytest.fail("connected")
        assert scope.cancelled_caught
        await gone.wait()


# --- it fails ---------------------------------------------------------------------------------------------------------


async def test_an_end_without_a_goodbye_is_a_failure():
    async def cut(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)

    async with tcp_server(cut) as url:
        assert "ended without a word" in await fail_to_receive(url)


async def test_a_server_that_closes_right_after_the_handshake_ends_the_channel():
    async with websocket_server(lambda socket: socket.aclose()) as url:
        async with WebSocketTransport(url).connect() as connection:
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()


async def test_the_reason_of_a_close_is_told():
    async with websocket_server(lambda socket: socket.aclose(1008, "no\nsuch room")) as url:
        text = await fail_to_receive(url)
    assert text == f"{url} closed the connection with code 1008: 'no\\nsuch room'"


async def test_a_close_with_a_reason_fails_sends_too():
    async with websocket_server(lambda socket: socket.aclose(1013, "full")) as url:
        async with WebSocketTransport(url).connect() as connection:
            with pytest.raises(TransportError, match="full"):
                await connection.receive()
            with pytest.raises(TransportError, match="full"):
                await connection.send(Join(peer_id=ALICE))


@pytest.mark.parametrize("garbage", ["hello", "<html></html>", "null", "[1]", "{", "", b"\xff\xfe\x00", b"\x00" * 100])
async def test_garbage_is_no_signaling_service(garbage):
    async def say(socket):
        await socket.send_message(garbage)
        await socket.get_message()

    async with websocket_server(say) as url:
        assert "sends no signaling messages" in await fail_to_receive(url)


async def test_frames_that_break_the_protocol_end_the_connection():
    async def break_it(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            await stream.send_all(b"\xff" * 64)
            await trio.sleep_forever()

    async with tcp_server(break_it) as url:
        assert "code 1002" in await fail_to_receive(url)


async def test_text_that_is_not_utf8_ends_the_connection():
    async def break_it(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            await stream.send_all(b"\x81\x02\xff\xff")
            await trio.sleep_forever()

    async with tcp_server(break_it) as url:
        assert "code 1007" in await fail_to_receive(url)


@pytest.mark.parametrize("fragments", [1, 5])
async def test_a_message_above_the_limit_ends_the_connection(fragments):
    size = 5000 // fragments

    async def say_too_much(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            for number in range(fragments):
                first, last = number == 0, number == fragments - 1
                await stream.send_all(bytes([last << 7 | first, 126]) + size.to_bytes(2, "big") + b" " * size)
            await trio.sleep_forever()

    async with tcp_server(say_too_much) as url:
        assert "code 1009" in await fail_to_receive(url, max_message=4999)


# --- it does not fail -------------------------------------------------------------------------------------------------


async def test_messages_that_are_not_for_us_are_skipped_and_counted(caplog):
    caplog.set_level(logging.DEBUG, logger="p2pmesh")

    async def say(socket):
        await socket.send_message('{"type":"from_the_future"}')
        await socket.send_message('{"type":"signal","signal":5}')
        await socket.send_message('{"message":"Forbidden"}')
        await socket.send_message('{"type":"peer_joined","peerId":"' + "x" * 300_000 + '"}')
        await socket.send_message('{"type":"signal","signal":' + "[" * 50_000 + "]" * 50_000 + "}")
        await socket.send_message('{"type":"peer_joined","peerId":"' + ALICE + '"}')
        await socket.get_message()

    async with websocket_server(say) as url, WebSocketTransport(url).connect() as connection:
        assert await connection.receive() == PeerJoined(peer_id=ALICE)
        assert isinstance(connection, TextConnection)
        assert connection.skipped == 5
    assert "skipped" in caplog.text


async def test_messages_in_binary_frames_are_read():
    async def say(socket):
        await socket.send_message(b'{"type":"peer_joined","peerId":"' + ALICE.encode() + b'"}')
        await socket.get_message()

    async with websocket_server(say) as url, WebSocketTransport(url).connect() as connection:
        assert await connection.receive() == PeerJoined(peer_id=ALICE)


async def test_a_message_in_the_handshakes_own_packet_is_received():
    async def say(stream):
        async with trio.open_nursery() as nursery:
            tail = b'\x81\x46{"type":"peer_joined","peerId":"' + ALICE.encode() + b'"}'
            glued = Glued(stream, tail[:1] + bytes([len(tail) - 2]) + tail[2:])
            await (await trio_websocket.wrap_server_stream(nursery, glued)).accept()
            await trio.sleep_forever()

    async with tcp_server(say) as url, WebSocketTransport(url).connect() as connection:
        assert await connection.receive() == PeerJoined(peer_id=ALICE)


class Glued(trio.abc.Stream):
    """Puts a tail on the first thing that is sent."""

    def __init__(self, stream: trio.abc.Stream, tail: bytes) -> None:
        self._stream, self._tail = stream, tail

    async def send_all(self, data):
        tail, self._tail = self._tail, b""
        await self._stream.send_all(bytes(data) + tail)

    async def wait_send_all_might_not_block(self):
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None):
        return await self._stream.receive_some(max_bytes)

    async def aclose(self):
        await self._stream.aclose()


async def test_a_service_that_waits_for_us_to_read_is_not_taken_for_dead():
    sent = 0

    async def pour(socket):
        nonlocal sent
        for _ in range(250):
            await socket.send_message('{"type":"peer_joined","peerId":"' + ALICE + '"}' + " " * 100_000)
            sent += 1
        await socket.get_message()

    async with websocket_server(pour) as url:
        async with WebSocketTransport(url, ping_after=0.05, ping_patience=0.25).connect() as connection:
            await trio.sleep(0.4)
            assert sent < 250, "nothing held the service back"
            for _ in range(250):
                await connection.receive()


# --- liveness ---------------------------------------------------------------------------------------------------------


async def test_a_silent_server_is_pinged_and_its_pong_keeps_it(monkeypatch):
    answered, enough = 0, trio.Event()
    ping = trio_websocket.WebSocketConnection.ping

    async def counted(socket, payload=None):
        nonlocal answered
        await ping(socket, payload)
        answered += 1
        if answered == 3:
            enough.set()

    monkeypatch.setattr(trio_websocket.WebSocketConnection, "ping", counted)
    async with websocket_server(lambda socket: socket.get_message()) as url:
        transport = WebSocketTransport(url, ping_after=0.01, ping_patience=5)
        async with transport.connect() as connection, trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)
            with trio.fail_after(5):
                await enough.wait()
            nursery.cancel_scope.cancel()


async def test_a_dead_server_is_noticed():
    async def shake_hands_and_die(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    async with tcp_server(shake_hands_and_die) as url:
        text = await fail_to_receive(url, ping_after=0.04, ping_patience=0.02)
    assert text == f"lost {url}: it fell silent, nothing heard for 0.06 s"


# --- closing and cancelling -------------------------------------------------------------------------------------------


async def test_closing_towards_a_dead_server_is_bounded(monkeypatch):
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.05)
    gone = trio.Event()

    async def shake_hands_and_die(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            nursery.cancel_scope.cancel()
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        gone.set()

    async with tcp_server(shake_hands_and_die) as url:
        with trio.fail_after(2):
            async with WebSocketTransport(url).connect():
                pass
            await gone.wait()


async def test_a_send_cancelled_half_way_breaks_the_connection_instead_of_the_framing():
    async def read_nothing(stream):
        async with trio.open_nursery() as nursery:
            await (await trio_websocket.wrap_server_stream(nursery, stream)).accept()
            nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    message = PeerSignal(to=ALICE, signal=Signal(type="offer", sdp="x" * 60_000))
    async with tcp_server(read_nothing) as url:
        async with WebSocketTransport(url).connect() as connection:
            with trio.move_on_after(0.2) as scope:
                while True:
                    await connection.send(message)
            assert scope.cancelled_caught
            with pytest.raises(TransportError):
                await connection.send(message)


async def test_the_server_hears_a_goodbye():
    codes = []

    async def listen(socket):
        with suppress(trio_websocket.ConnectionClosed):
            await socket.get_message()
        codes.append(socket.closed.code)

    async with websocket_server(listen) as url:
        async with WebSocketTransport(url).connect():
            pass
        await wait_all_tasks_blocked(0.01)
    assert codes == [1000]


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1: the server's context, and a client's that trusts it."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(self_signed())
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=path)


def self_signed() -> bytes:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "p2pmesh test")])
    now = datetime.now(UTC)
    certificate = (
        x509
        .CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)


async def test_wss_works_with_a_context_that_trusts_the_server(certificate):
    server_context, client_context = certificate
    async with open_signaling_server(tls=server_context) as server:
        # Silence is cancelled out of reading again and again: TLS has to survive that.
        transport = WebSocketTransport(server.url, ssl_context=client_context, ping_after=0.005, ping_patience=1)
        async with transport.connect() as alice, transport.connect() as bob:
            await join(alice, ALICE)
            await trio.sleep(0.1)
            await join(bob, BOB)
            assert await alice.receive() == PeerJoined(peer_id=BOB)


async def test_an_untrusted_certificate_says_what_to_do(certificate):
    async with open_signaling_server(tls=certificate[0]) as server:
        text = await fail_to_connect(server.url)
    assert "certificate is not trusted (self-signed certificate)" in text
    assert "ssl_context" in text


async def test_wss_to_a_server_without_tls():
    async with open_signaling_server() as server:
        assert "did you mean ws://?" in await fail_to_connect(server.url.replace("ws://", "wss://"))


async def test_ws_to_a_server_with_tls(certificate):
    async with open_signaling_server(tls=certificate[0]) as server:
        text = await fail_to_connect(server.url.replace("wss://", "ws://"))
    assert "can't reach" in text


# --- addresses --------------------------------------------------------------------------------------------------------


async def test_secrets_in_the_url_reach_the_server_but_no_text_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    requests = []

    async def listen(stream):
        requests.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")

    async with tcp_server(listen) as url:
        secret = url.replace("ws://", "ws://user:pass%20word@") + "/room?token=sesame#part"
        transport = WebSocketTransport(secret, headers={"X-Key": "open"})
        texts = [await fail_to_connect(secret, headers={"X-Key": "open"}), repr(transport), transport.name, caplog.text]
    request = requests[0]
    assert request.startswith(b"GET /room?token=sesame HTTP/1.1\r\n")
    assert b"Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in request
    assert b"X-Key: open\r\n" in request
    for text in texts:
        assert not any(word in text for word in ("user", "word", "sesame", "dXNlcj", "open"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://host:80/path", "ws://host:80/path"),
        ("ws://u:p@host/path?q#f", "ws://host/path"),
        ("ws://u:p@x@host?q", "ws://host"),
        ("u:p@host?q", "host"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_url(url, shown):
    assert public_url(url) == shown


@pytest.mark.parametrize(
    ("url", "host", "port", "host_header", "resource"),
    [
        ("ws://host", "host", 80, "host", "/"),
        ("wss://host/a?b=c", "host", 443, "host", "/a?b=c"),
        ("WS://Host:8080?b", "host", 8080, "host:8080", "/?b"),
        ("ws://[::1]:81/", "::1", 81, "[::1]:81", "/"),
        ("ws://bücher.example/ü%20?ü", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/%C3%BC%20?%C3%BC"),
    ],
)
def test_urls_are_taken_apart(url, host, port, host_header, resource):
    address = Address.parse(url)
    assert (address.host, address.port, address.host_header, address.resource) == (host, port, host_header, resource)


@pytest.mark.parametrize(
    "url", ["http://host", "ws://", "ws:host", "host", "", "ws://host:0x1", "ws://host:70000", "ws://a b",
            "ws://a/\r\nX: y", "ws://[::1", "ws://" + "a" * 64, "ws://u:secret@", 5, b"ws://u:secret@host"]
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_its_secrets(url):
    with pytest.raises(ConfigError) as caught:
        WebSocketTransport(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [{"": "x"}, {"a b": "x"}, {"X": "secret\r\nY: z"}, {"X": "secret€"}, {"X": " secret"}, {"X": b"secret"}, {5: "x"}],
)
def test_headers_that_cant_be_sent_are_refused_without_their_values(headers):
    with pytest.raises(ConfigError) as caught:
        WebSocketTransport("ws://host", headers=headers)
    assert "secret" not in str(caught.value)


# --- the server it is made for ----------------------------------------------------------------------------------------


async def test_nothing_is_left_at_the_server_after_a_hundred_connections(nursery):
    service = RealServer(nursery)
    await service.start()
    for _ in range(100):
        async with service.transport.connect():
            pass
    await until_gone(service)
