"""One end of a bare connection: aiortc's data channel, or our link without a mesh, to compare a whole mesh with.

    python -m tests.netlab.bare aiortc|link offerer|answerer

Lines of JSON on stdin and stdout: descriptions first, then the offerer is told what to do:

    {"do": "flood", "size": 1024, "seconds": 3}     as fast as it goes; the answerer tells what arrived
    {"do": "pings", "count": 200, "seconds": 5}     there and back
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

HIGH, LOW = 256 * 1024, 64 * 1024
"""Bytes of a flood that wait in aiortc's channel: no more than high, then until low."""
PATIENCE = 60.0
"""Seconds until the connection is open."""
PING, END = b"P", b"E"
"""What messages begin with that are sent back; an end is of a flood."""


class Ends(Protocol):
    """What both connections can do."""

    async def send(self, message: bytes) -> None: ...
    async def receive(self) -> bytes: ...


def tell(ev: str, **what: Any) -> None:
    sys.stdout.write(json.dumps({"at": time.monotonic(), "ev": ev, **what}) + "\n")
    sys.stdout.flush()


class Meter:
    """The answerer's side: echoes pings, counts the rest."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.bytes = 0

    def take(self, message: bytes) -> bytes | None:
        """Count it; what is to be sent back."""
        now = time.monotonic()
        if message[:1] == PING:
            return message
        if message[:1] == END:
            elapsed = self.ended - self.began
            tell("arrived", MB_per_s=round(self.bytes / elapsed / 1e6, 3) if elapsed else 0.0)
            self.began = self.ended = 0.0
            self.bytes = 0
            return message
        if self.began:
            self.bytes += len(message)  # of all but the first, which only starts the clock
        else:
            self.began = now
        self.ended = now
        return None


async def answer(ends: Ends) -> None:
    meter = Meter()
    while True:
        echo = meter.take(await ends.receive())
        if echo is not None:
            await ends.send(echo)


async def offer(ends: Ends, hear: Callable[[], Awaitable[Any]]) -> None:
    while True:
        order = await hear()
        deadline = time.monotonic() + order["seconds"]
        if order["do"] == "flood":
            body = b"x" * order["size"]
            while time.monotonic() < deadline:
                await ends.send(body)
            await ends.send(END)
            await ends.receive()
            tell("flooded")
        else:
            times: list[float] = []
            while len(times) < order["count"] and time.monotonic() < deadline:
                began = time.perf_counter()
                await ends.send(PING * 100)
                await ends.receive()
                times.append(round((time.perf_counter() - began) * 1e3, 2))
            tell("pinged", ms=times)


class Channel:
    """aiortc's channel, with a bound to what waits in it."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self.low = asyncio.Event()

    def use(self, channel: Any) -> None:
        self.channel = channel
        channel.bufferedAmountLowThreshold = LOW
        channel.on("message", self.inbox.put_nowait)
        channel.on("bufferedamountlow", self.low.set)
        if channel.readyState == "open":
            self.opened.set_result(None)
        else:
            channel.on("open", lambda: self.opened.set_result(None))

    async def send(self, message: bytes) -> None:
        if self.channel.bufferedAmount >= HIGH:
            self.low.clear()
            await self.low.wait()
        self.channel.send(message)
        await asyncio.sleep(0)

    async def receive(self) -> bytes:
        return await self.inbox.get()


async def aiortc(role: str) -> None:
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    lines: asyncio.StreamReader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def hear() -> Any:
        line = await lines.readline()
        if not line:
            raise SystemExit
        return json.loads(line)

    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    ends = Channel()
    if role == "offerer":
        ends.use(connection.createDataChannel("bare"))
        await connection.setLocalDescription(await connection.createOffer())
        tell("description", sdp=connection.localDescription.sdp)
        began = time.monotonic()
        await connection.setRemoteDescription(RTCSessionDescription((await hear())["sdp"], "answer"))
    else:
        connection.on("datachannel", ends.use)
        began = time.monotonic()
        await connection.setRemoteDescription(RTCSessionDescription((await hear())["sdp"], "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        tell("description", sdp=connection.localDescription.sdp)
    await asyncio.wait_for(ends.opened, PATIENCE)
    tell("open", s=round(time.monotonic() - began, 2))
    await (offer(ends, hear) if role == "offerer" else answer(ends))


async def link(role: str) -> None:
    from p2pmesh.keyspace import PeerId
    from p2pmesh.links.webrtc.dialer import WebRTCDialer
    from p2pmesh.protocols.inputs import RemotePeer
    from p2pmesh.wire.messages import PROTOCOL_VERSION
    from p2pmesh.wire.sdp import read_sdp, write_sdp

    stdin, buffer = trio.lowlevel.FdStream(os.dup(0)), b""

    async def hear() -> Any:
        nonlocal buffer
        while b"\n" not in buffer:
            data = await stdin.receive_some(65536)
            if not data:
                raise SystemExit
            buffer += data
        line, _, buffer = buffer.partition(b"\n")
        return json.loads(line)

    peer = RemotePeer(PeerId("0" * 40), verified=False, version=PROTOCOL_VERSION)
    async with WebRTCDialer() as dialer, trio.open_nursery() as nursery:
        if role == "offerer":
            attempt = await dialer.offer(peer.peer_id)
            tell("description", sdp=write_sdp(attempt.description))
            began = time.monotonic()
            await attempt.feed(read_sdp((await hear())["sdp"]))
        else:
            attempt = await dialer.answer(peer.peer_id, read_sdp((await hear())["sdp"]))
            tell("description", sdp=write_sdp(attempt.description))
            began = time.monotonic()
        with trio.fail_after(PATIENCE):
            opened = await attempt.opened(peer)
        tell("open", s=round(time.monotonic() - began, 2))
        await nursery.start(opened.run)
        await (offer(opened, hear) if role == "offerer" else answer(opened))


if __name__ == "__main__":
    side, end = sys.argv[1:]
    if side == "aiortc":
        asyncio.run(aiortc(end))
    else:
        trio.run(link, end)
