"""Mutated request heads, frames and TLS records through the signaling server: what came of them; nothing went wrong.

    python benchmarks/fuzz_server.py --json                                   # some seconds
    python benchmarks/fuzz_server.py --heads 1000000 --frames 10000000 --handshakes 10000     # an hour

All go through `serve`, as connections do, over a stream in memory that gives them out in chunks of any size. Frames
carry good messages, mutated ones and garbage, in good frames and mutated ones, on connections with all limits on rates
lifted. The exit status is 1 if the guard of a connection had to catch anything, if anything came past it, if anything
is left of a connection, or if memory grew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import random
import ssl
import tempfile
import traceback
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pmesh.server.app import _Sockets
from p2pmesh.server.config import ServerConfig

SHOWN = 10
"""Faults that are printed."""
GROWTH = 16
"""MiB that memory may grow by after the first tenth, which fills tables and caches."""
AT_ONCE = 8
"""Connections whose frames take turns."""
CONFIG = ServerConfig(
    connects_per_second=1e9,
    connect_burst=1_000_000_000,
    messages_per_second=1e9,
    message_burst=1_000_000_000,
    joins_per_minute=1e9,
    join_burst=1_000_000_000,
    proxy_protocol=("192.0.2.0/24",),
    remembered_joins=1024,
    remembered_addresses=1024,
)
KEY = b64encode(bytes(16))
UPGRADE = [
    b"Host: x",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + KEY,
]
HEAD = b"GET / HTTP/1.1\r\n" + b"\r\n".join(UPGRADE) + b"\r\n\r\n"
OTHERS = [
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 1,1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Expect: 100-continue",
    b"Origin: null",
    b"Origin: http://x",
    b"Origin: http://[::1]:80",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=99",
    b"Sec-WebSocket-Protocol: a, b",
    b"Host: y",
    b"Host: xn--a",
    b"Connection: close",
    b"Upgrade: h2c",
    b"Cookie: a=b",
    b"Trailer: x",
    b"TE: trailers",
    b"X-Forwarded-For: 192.0.2.1, [2001:db8::1]:80, unknown",
    b'Forwarded: for="[2001:db8::1]:4711";host=x;proto=https, for=_hidden',
    b"X-Forwarded-Host: x",
]
LINES = [
    *[b"GET / HTTP/1.1"] * 4,
    b"GET /metrics HTTP/1.1",
    b"GET / HTTP/1.0",
    b"HEAD /healthz HTTP/1.1",
    b"POST / HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET http://a/ HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"GET /\xff HTTP/1.1",
    b"GET / HTTP/9.9",
]
PROXY_HEADERS = [
    b"PROXY TCP4 198.51.100.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + bytes(36),
    b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0",
]
SPICE = [b"\xff", b"\0", b"\r\n", b" ", b":", b",", b";", b'"', b"xn--", b"\t", b"[", b"a" * 300]
IDS = [f"{number:040x}" for number in range(32)]
PROXY, DIRECT, LOCAL = "192.0.2.1", "198.51.100.7", "127.0.0.1"
"""Where connections come from: with a header of the PROXY protocol, without, and from a proxy that writes headers."""


class Address:
    """What `serve` asks a stream's socket for."""

    def __init__(self, host: str) -> None:
        self._host = host

    def getpeername(self) -> tuple[str, int]:
        return self._host, 1


class Given(trio.abc.HalfCloseableStream):
    """A client that sends what it was given, whatever it is answered."""

    def __init__(self, chunks: list[bytes], host: str, *, takes_turns: bool = False) -> None:
        self._takes_turns = takes_turns
        self.socket = Address(host)
        self.said = b""
        self._chunks = chunks[::-1]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._takes_turns:
            await trio.lowlevel.checkpoint()
        if not self._chunks:
            return b""
        chunk = self._chunks.pop()
        if max_bytes is not None and len(chunk) > max_bytes:
            self._chunks.append(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        return chunk

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.said = self.said or bytes(data[:12])

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Tls(Given):
    """A client that shakes hands over TLS; what it sends is mutated on the way, sooner or later."""

    def __init__(self, context: ssl.SSLContext, mutate: Callable[[bytes], bytes], when: int) -> None:
        super().__init__([], DIRECT)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="x")
        self._mutate = mutate
        self._when = when
        self._step = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._chunks:
            self._advance()
        return await super().receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._in.write(data)

    def _advance(self) -> None:
        self._step += 1
        try:
            self._tls.do_handshake()
            self._tls.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        except ssl.SSLError:
            pass
        data = self._out.read()
        if data and self._step >= self._when:
            data = self._mutate(data)
        self._chunks = [data] if data else []


class Fuzz:
    """One run: the server, and what it did."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self._context = server_context()
        self._client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client_context.check_hostname = False
        self._client_context.verify_mode = ssl.CERT_NONE
        self._sockets = _Sockets(CONFIG, None, {})
        self._secure = _Sockets(CONFIG, self._context, {})

    async def heads(self, count: int) -> None:
        """Try so many request heads, each on its own connection."""
        for _ in range(count):
            host = self._rng.choice((DIRECT, DIRECT, LOCAL, PROXY))
            data = self._head() if host != PROXY else self._maybe(self._rng.choice(PROXY_HEADERS)) + self._head()
            stream = Given(self._chunked(data), host)
            await self._serve(self._sockets, stream, data)
            self.counts[f"answered_{stream.said[9:12].decode('ascii', 'replace') or 'nothing'}"] += 1
        self.counts["heads"] += count

    async def frames(self, count: int) -> None:
        """Try so many frames, some on each connection, on some connections at a time: they talk to each other."""

        async def connect() -> None:
            nonlocal count
            while count > 0:
                sent = [frame for _ in range(self._rng.choice((1, 8, 64))) for frame in self._frames()]
                count -= len(sent)
                self.counts["frames"] += len(sent)
                data = b"".join(sent)
                await self._serve(self._sockets, Given([HEAD, *self._chunked(data)], DIRECT, takes_turns=True), data)

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(connect)

    async def handshakes(self, count: int) -> None:
        """Try so many connections over TLS."""
        for _ in range(count):
            kind = self._rng.randrange(4)
            if kind == 0:
                stream = Given(self._chunked(self._rng.randbytes(self._rng.randrange(600))), DIRECT)
            else:
                stream = Tls(self._client_context, self._maybe if kind == 1 else self._mutated, self._rng.randrange(4))
            await self._serve(self._secure, stream, b"")
        self.counts["handshakes"] += count

    def result(self) -> dict[str, Any]:
        plain, secure = self._sockets.snapshot(), self._secure.snapshot()
        left = {name: plain[name] + secure[name] for name in ("clients", "members", "rooms", "connections", "backlog")}
        return {
            **dict(sorted(self.counts.items())),
            "messages": plain["received"],
            "joins": plain["joins"],
            "relayed": plain["relayed"],
            "errors": plain["errors"],
            "dropped": plain["dropped"],
            "failures": sum(plain["failures"].values()) + sum(secure["failures"].values()),
            "left": sum(left.values()),
            "broken": self.broken,
        }

    async def _serve(self, sockets: _Sockets, stream: Given, data: bytes) -> None:
        try:
            await sockets.serve(cast("trio.SocketStream", stream))
        except Exception as error:  # that is what is looked for
            if len(self.broken) < SHOWN:
                self.broken.append(f"{''.join(traceback.format_exception(error)[-3:])}: {data[:2000].hex()}")

    # --- what is sent -------------------------------------------------------------------------------------------------

    def _head(self) -> bytes:
        rng = self._rng
        headers = [header for header in UPGRADE if rng.random() > 0.03]
        headers += [rng.choice(OTHERS) for _ in range(rng.choice((0, 0, 1, 2)))]
        rng.shuffle(headers)
        data = rng.choice(LINES) + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n"
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data = data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
                case 1:
                    data = data[:at] + rng.choice((*SPICE, rng.randbytes(3))) + data[at:]
                case _:
                    data = data[:at] + data[at + 1 :]
        return data + rng.choice((b"", b"", b"hello", b"0\r\n\r\n", rng.randbytes(20), self._frames()[0]))

    def _message(self) -> bytes:
        rng = self._rng
        peer, other = rng.choice(IDS), rng.choice(IDS)
        message: dict[str, Any]
        match rng.randrange(8):
            case 0 | 1 | 2:
                message = {"type": "join", "peerId": peer, "room": rng.choice(("", "", "one")), "version": 1}
            case 3 | 4 | 5:
                message = {"type": "signal", "to": other, "signal": {"type": "offer", "sdp": "x" * rng.randrange(300)}}
            case 6:
                message = {"type": "batched_signals", "to": other, "signals": [rng.random(), None, "\u00e9"]}
            case _:
                message = {
                    "type": rng.choice(("ack", "nonsense", "leave" if rng.random() < 0.1 else "offer")),
                    "to": peer,
                }
        data = json.dumps(message).encode()
        if rng.random() < 0.001:
            data *= 900
        return self._mutated(data) if rng.random() < 0.3 else data

    def _frames(self) -> list[bytes]:
        """One message in one frame or some, control frames among them; few are damaged, or the rest is never read."""
        rng = self._rng
        message, opcode, frames = self._message(), rng.choice((1, 1, 1, 2)), list[bytes]()
        while True:
            if rng.random() < 0.05:
                noise, payload = rng.choices((9, 10, 8, 3), (60, 60, 2, 1))[0], rng.randbytes(rng.randrange(125))
                frames.append(frame(noise, payload))
            cut = rng.randrange(len(message) + 1) if rng.random() < 0.1 else len(message)
            frames.append(frame(opcode, message[:cut], final=cut == len(message)))
            message, opcode = message[cut:], 0
            if not message:
                break
        if rng.random() < 0.02:
            at = rng.randrange(len(frames))
            frames[at] = self._mutated(frames[at])
        return frames

    def _maybe(self, data: bytes) -> bytes:
        return self._mutated(data) if self._rng.random() < 0.5 else data

    def _mutated(self, data: bytes) -> bytes:
        rng = self._rng
        for _ in range(1 + rng.randrange(3)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0 | 1 if at < len(data):
                    data = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
                case 2:
                    data = data[:at] + data[at + 1 + rng.randrange(8) :]
                case 3:
                    data = data[:at] + data[at : at + 1 + rng.randrange(32)] * 3 + data[at:]
                case _:
                    data = data[:at] + rng.randbytes(1 + rng.randrange(4)) + data[at:]
        return data

    def _chunked(self, data: bytes) -> list[bytes]:
        size = self._rng.choice((1 << 16, 1 << 16, 700, 50, 7)) if len(data) < 5000 else 1 << 14
        return [data[start : start + size] for start in range(0, len(data), size)]


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    if len(payload) < 126:
        size = bytes((0x80 | len(payload),))
    elif len(payload) < 1 << 16:
        size = b"\xfe" + len(payload).to_bytes(2, "big")
    else:
        size = b"\xff" + len(payload).to_bytes(8, "big")
    return bytes((final << 7 | opcode,)) + size + bytes(4) + payload


def server_context() -> ssl.SSLContext:
    """TLS with a certificate made up for the run."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.datetime.now(datetime.UTC)
    cert = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(30)
    ).sign(key, hashes.SHA256())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.write_bytes(cert.public_bytes(pem) + key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        context.load_cert_chain(path)
    return context


def memory() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) if os.path.exists("/proc") else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure(heads: int, frames: int, handshakes: int, seed: int) -> dict[str, Any]:
    """Run, and say what came of it."""

    async def run() -> float:
        warm = 0.0
        for share in (10, 0):
            await fuzz.heads(heads // 10 if share else heads - heads // 10)
            await fuzz.frames(frames // 10 if share else frames - frames // 10)
            await fuzz.handshakes(handshakes // 10 if share else handshakes - handshakes // 10)
            warm = warm or memory()
        return memory() - warm

    fuzz = Fuzz(seed)
    began = perf_counter()
    grown = trio.run(run)
    return {
        "seed": seed,
        **fuzz.result(),
        "memory_growth_mib": round(grown, 1),
        "seconds": round(perf_counter() - began, 1),
    }


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--handshakes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    row = measure(options.heads, options.frames, options.handshakes, options.seed)
    if options.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:20} {value}")
    wrong = row["failures"] or row["left"] or row["broken"] or row["memory_growth_mib"] > GROWTH
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
