"""What one core carries of the signaling server: clients held, joins/s, relays/s, server messages per join.

The server runs in a process of its own on one core, the clients in this one on another, over loopback. Clients are as
cheap as can be (constant frames, masked with zeros), so the figures are the server's. Times are of the wall clock;
`*_cpu_ms` is the server process's CPU time for one operation, which a busy machine changes less.

    python benchmarks/server.py --json [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

HOST = "127.0.0.1"
ROOM_SIZES = (10, 100, 1000)
JOINERS = 20
DIALS_AT_ONCE = 32
RELAY_PAIRS = 50
RELAY_WINDOW = 8
"""Relayed messages under way between the two clients of a pair."""
SDP_SIZE = 1500
"""Bytes of an offer with all its candidates, about."""


class Client:
    """A WebSocket client that does no more than it must."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.peer_id = secrets.token_hex(20)
        self._stream = stream
        self._buffer = bytearray()

    @classmethod
    async def open(cls, port: int) -> Client:
        client = cls(await trio.open_tcp_stream(HOST, port))
        await client._stream.send_all(
            b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        while b"\r\n\r\n" not in client._buffer:
            await client._fill()
        head, _, rest = bytes(client._buffer).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        client._buffer[:] = rest
        return client

    def close(self) -> None:
        self._stream.socket.close()

    async def send(self, **message: Any) -> None:
        payload = json.dumps(message).encode()
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        await self._stream.send_all(b"\x81" + size + b"\0\0\0\0" + payload)

    async def receive(self) -> dict[str, Any]:
        """The next message; pings are not answered, no run lasts long enough to be asked twice."""
        while True:
            opcode, payload = await self._frame()
            if opcode == 1:
                message: dict[str, Any] = json.loads(payload)
                return message
            assert opcode == 9, (opcode, payload)

    async def expect(self, kind: str) -> dict[str, Any]:
        while (message := await self.receive())["type"] != kind:
            assert message["type"] != "error", message
        return message

    async def join(self, room: str) -> None:
        await self.send(type="join", peerId=self.peer_id, room=room, version=1)
        await self.expect("bootstrap_peers")

    async def _frame(self) -> tuple[int, bytes]:
        await self._need(2)
        opcode, size, start = self._buffer[0] & 15, self._buffer[1], 2
        if size == 126:
            await self._need(4)
            size, start = int.from_bytes(self._buffer[2:4], "big"), 4
        await self._need(start + size)
        payload = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return opcode, payload

    async def _need(self, size: int) -> None:
        while len(self._buffer) < size:
            await self._fill()

    async def _fill(self) -> None:
        data = await self._stream.receive_some()
        assert data, "the server closed the connection"
        self._buffer += data


class Server:
    """The server's process."""

    def __init__(self, pid: int, port: int) -> None:
        self.port = port
        self._pid = pid

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        pages = Path(f"/proc/{self._pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def metric(self, name: str) -> int:
        stream = await trio.open_tcp_stream(HOST, self.port)
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
            page = b"".join([bytes(chunk) async for chunk in stream]).decode()
        found = re.search(rf"^p2pmesh_server_{name} (\S+)$", page, re.MULTILINE)
        assert found, page
        return int(float(found[1]))


async def each(count: int, action: Callable[[int], Awaitable[None]]) -> None:
    """Do something that many times, `DIALS_AT_ONCE` at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await action(number)

    async with trio.open_nursery() as nursery:
        for _ in range(DIALS_AT_ONCE):
            nursery.start_soon(worker)


async def measure_joins(server: Server, count: int) -> tuple[dict[str, Any], list[Client]]:
    """Connect, upgrade and join, over and over, in one room; all stay."""
    clients: list[Client] = []

    async def join(_: int) -> None:
        client = await Client.open(server.port)
        await client.join("held")
        clients.append(client)

    memory, cpu, start = server.memory_mb(), server.cpu(), time.perf_counter()
    await each(count, join)
    elapsed, cpu = time.perf_counter() - start, server.cpu() - cpu
    result = {
        "clients_held": await server.metric("members"),
        "joins_per_s": round(count / elapsed),
        "join_cpu_ms": round(cpu / count * 1e3, 3),
        "memory_per_client_kb": round((server.memory_mb() - memory) / count * 1e3, 1),
    }
    return result, clients


async def measure_relays(server: Server, clients: list[Client], each_sends: int) -> dict[str, Any]:
    """Pairs send each other signals of the size of an offer; the held clients are there all the while."""
    pairs = list(zip(clients[:RELAY_PAIRS], clients[RELAY_PAIRS : 2 * RELAY_PAIRS], strict=True))
    signal = {"type": "offer", "sdp": "x" * SDP_SIZE}

    async def talk(one: Client, other: Client) -> None:
        for number in range(each_sends + RELAY_WINDOW):
            if number < each_sends:
                await one.send(type="signal", to=other.peer_id, signal=signal)
            if number >= RELAY_WINDOW:
                await other.expect("signal")

    cpu, start = server.cpu(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for one, other in pairs:
            nursery.start_soon(talk, one, other)
    elapsed, cpu = time.perf_counter() - start, server.cpu() - cpu
    count = each_sends * len(pairs)
    return {"relays_per_s": round(count / elapsed), "relay_cpu_ms": round(cpu / count * 1e3, 3)}


async def measure_messages_per_join(server: Server, members: int) -> float:
    """What one more join makes the server send, in a room that has this many members."""
    room = f"room of {members}"
    there: list[Client] = []

    async def join(_: int) -> None:
        client = await Client.open(server.port)
        await client.join(room)
        there.append(client)

    await each(members, join)
    joiners = [await Client.open(server.port) for _ in range(JOINERS)]
    before = await server.metric("sent_total")
    for joiner in joiners:
        await joiner.join(room)
    sent = await server.metric("sent_total") - before
    for client in there + joiners:
        client.close()
    return sent / JOINERS


async def measure(server: Server, *, quick: bool) -> dict[str, Any]:
    joins, clients = await measure_joins(server, 2000 if quick else 4000)
    relays = await measure_relays(server, clients, 100 if quick else 400)
    per_join = {str(size): await measure_messages_per_join(server, size) for size in ROOM_SIZES}
    return joins | relays | {"messages_per_join": per_join, "server_cpu_s": round(server.cpu(), 2)}


async def serve() -> None:
    from p2pmesh.server.app import open_signaling_server
    from p2pmesh.server.config import ServerConfig

    config = ServerConfig(
        clients_per_address=20_000,
        connects_per_second=1e6,
        connect_burst=1_000_000,
        messages_per_second=1e6,
        message_burst=1_000_000,
    )
    async with open_signaling_server(HOST, config=config) as server:
        print(server.port, flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def server_process(command: list[str]) -> AsyncGenerator[Server, None]:
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some()
        yield Server(process.pid, int(line))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def pin(core: int) -> None:
    """Stay on one core, if there are several."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core]})


def raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(*, quick: bool) -> dict[str, Any]:
    async with server_process([sys.executable, __file__, "--serve"]) as server:
        pin(1)
        with trio.fail_after(18 if quick else 55):
            return await measure(server, quick=quick)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the signaling server on one core.")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--quick", action="store_true", help="fewer clients and messages: below 20 s")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    raise_file_limit()
    if arguments.serve:
        pin(0)
        trio.run(serve)
        return
    result = trio.run(lambda: run(quick=arguments.quick))
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24}{value}")


if __name__ == "__main__":
    main()
