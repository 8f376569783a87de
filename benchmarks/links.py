"""Our link against bare aiortc on plain asyncio: set-up, throughput, round trip; memory under a slow receiver.

    python benchmarks/links.py --json [--quick] [--rounds N]
    python benchmarks/links.py --memory [--megabytes N]

Each end of each pair is a process of its own, for importing trio_asyncio slows asyncio in the same process. The ends
tell each other their descriptions, and when to stop, over a socket pair. Rounds of the two sides alternate, and
medians are compared: absolute figures vary with the machine, ratios of one run hardly do. Of throughputs (messages/s,
MB/s) a ratio above 1 is in our favour; of times (ping, set-up) one below 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES = {"messages_100B": 100, "throughput_1KiB": 1024, "throughput_16KiB": 16 * 1024, "throughput_64KiB": 64 * 1024}
PING_SIZE = 100
WARM_UP = 20
HIGH_WATER, LOW_WATER = 256 * 1024, 64 * 1024
MIB = 1024 * 1024


# --- the parent -------------------------------------------------------------------------------------------------------


def run_pair(side: str, plan: dict[str, Any], timeout: float = 60) -> list[dict[str, Any]]:
    """Run both ends; gives what they print: the offerer (which sends), then the answerer (which receives)."""
    ends = socket.socketpair()
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--end", side, role, str(end.fileno()), json.dumps(plan)],
            pass_fds=[end.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        for role, end in zip(("offerer", "answerer"), ends, strict=True)
    ]
    for end in ends:
        end.close()
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise SystemExit(f"an end of {side} failed")
    return [json.loads(output) for output in outputs]


def compare(rounds: int, seconds: float, pings: int, patience: float = math.inf) -> dict[str, Any]:
    """Both sides, interleaved; no round begins after `patience` seconds. Ratios are medians over the rounds."""
    began = time.perf_counter()
    plan = {"seconds": seconds, "pings": pings}
    results: dict[str, list[dict[str, float]]] = {"ours": [], "aiortc": []}
    for number in range(rounds):
        if number and time.perf_counter() - began > patience:
            break
        for side in ("ours", "aiortc") if number % 2 == 0 else ("aiortc", "ours"):
            sender, receiver = run_pair(side, plan)
            results[side].append(sender | receiver)
    ratios = {}
    for name, key in {**{name: name for name in SIZES}, "ping_p50": "ping_p50_us", "setup": "setup_ms"}.items():
        pairs = zip(results["ours"], results["aiortc"], strict=True)
        ratios[name] = round(statistics.median(ours[key] / theirs[key] for ours, theirs in pairs), 2)
    medians = {
        side: {key: round(statistics.median(result[key] for result in found), 2) for key in found[0]}
        for side, found in results.items()
    }
    return {"ratios": ratios, **medians, "rounds": len(results["ours"])}


def memory(megabytes: int) -> dict[str, Any]:
    """A receiver that pauses again and again; neither end may grow."""
    sender, receiver = run_pair("memory", {"megabytes": megabytes}, timeout=3600)
    return {"sent_MiB": megabytes, "sender": sender, "receiver": receiver}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within 40 s")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--memory", action="store_true", help="memory of both ends while a slow receiver is sent 1 GB")
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--end", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.end:
        side, role, fd, plan = options.end
        print(json.dumps(run_end(side, role, socket.socket(fileno=int(fd)), json.loads(plan))))
        return
    if options.memory:
        report = memory(options.megabytes)
    elif options.quick:
        report = compare(options.rounds or 3, seconds=0.4, pings=500, patience=22)
    else:
        report = compare(options.rounds or 5, seconds=1.5, pings=1000)
    if options.json or options.memory:
        print(json.dumps(report, indent=None if options.json else 2))
        return
    for name, ratio in report["ratios"].items():
        print(f"{name:>18}: {ratio:6.2f}")


# --- one end ----------------------------------------------------------------------------------------------------------


def run_end(side: str, role: str, control: socket.socket, plan: dict[str, Any]) -> dict[str, Any]:
    if side == "aiortc":
        import asyncio

        return asyncio.run(aiortc_end(role, control, plan))
    import trio

    return trio.run(our_end if side == "ours" else memory_end, role, control, plan)


def percentiles(times: list[float]) -> dict[str, float]:
    times = sorted(times[WARM_UP:])
    return {"ping_p50_us": times[len(times) // 2] * 1e6, "ping_p99_us": times[len(times) * 99 // 100] * 1e6}


class Meter:
    """Counts what arrives in a time that begins with the first message."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begin = 0.0
        self._messages = self._bytes = 0
        self._elapsed = 0.0

    def count(self, size: int) -> bool:
        """Count a message; True once the time is over."""
        now = time.perf_counter()
        if not self._begin:
            self._begin = now
            return False
        self._messages += 1
        self._bytes += size
        self._elapsed = now - self._begin
        return self._elapsed >= self._seconds

    def result(self, name: str) -> float:
        return self._messages / self._elapsed if name.startswith("messages") else self._bytes / self._elapsed / 1e6


# --- bare aiortc ------------------------------------------------------------------------------------------------------


async def aiortc_end(role: str, control: socket.socket, plan: dict[str, Any]) -> dict[str, float]:
    import asyncio

    reader, writer = await asyncio.open_connection(sock=control)

    async def tell(message: Any) -> None:
        writer.write(json.dumps(message).encode() + b"\n")
        await writer.drain()

    async def hear() -> Any:
        return json.loads(await reader.readline())

    results: dict[str, float] = {}
    setups = []
    for name in (*SIZES, "ping"):
        connection, channel, inbox, setup = await aiortc_open(role, tell, hear)
        setups.append(setup)
        if name == "ping":
            if role == "offerer":
                results |= percentiles(await aiortc_pings(channel, inbox, plan["pings"]))
                await tell("done")
            else:
                for _ in range(plan["pings"]):
                    channel.send(await inbox.get())
                await hear()
        elif role == "offerer":
            await aiortc_send(channel, bytes(SIZES[name]), hear)
        else:
            meter = Meter(plan["seconds"])
            while not meter.count(len(await inbox.get())):
                pass
            await tell("stop")
            results[name] = meter.result(name)
        await connection.close()
    if role == "offerer":
        results["setup_ms"] = statistics.median(setups) * 1e3
    writer.close()
    return results


async def aiortc_open(role: str, tell: Any, hear: Any) -> tuple[Any, Any, Any, float]:
    import asyncio

    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    inbox: asyncio.Queue[bytes] = asyncio.Queue()
    opened = asyncio.Event()
    if role == "answerer":
        offer = await hear()
    began = time.perf_counter()
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    if role == "offerer":
        channel = connection.createDataChannel("benchmark")
        channel.on("message", inbox.put_nowait)
        channel.on("open", opened.set)
        await connection.setLocalDescription(await connection.createOffer())
        await tell(connection.localDescription.sdp)
        await connection.setRemoteDescription(RTCSessionDescription(await hear(), "answer"))
        await opened.wait()
        return connection, channel, inbox, time.perf_counter() - began
    channels = []

    def on_channel(channel: Any) -> None:
        channel.on("message", inbox.put_nowait)
        channels.append(channel)
        opened.set()

    connection.on("datachannel", on_channel)
    await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    await connection.setLocalDescription(await connection.createAnswer())
    await tell(connection.localDescription.sdp)
    await opened.wait()
    return connection, channels[0], inbox, time.perf_counter() - began


async def aiortc_send(channel: Any, message: bytes, hear: Any) -> None:
    """Send until told to stop, as fast as the channel takes it, in the way that W3C recommends."""
    import asyncio

    low = asyncio.Event()
    channel.bufferedAmountLowThreshold = LOW_WATER
    channel.on("bufferedamountlow", low.set)
    stop = asyncio.ensure_future(hear())
    while not stop.done():
        while channel.bufferedAmount < HIGH_WATER:
            channel.send(message)
        low.clear()
        waiting = asyncio.ensure_future(low.wait())
        await asyncio.wait([waiting, stop], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


async def aiortc_pings(channel: Any, inbox: Any, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        channel.send(bytes(PING_SIZE))
        await inbox.get()
        times.append(time.perf_counter() - began)
    return times


# --- our link ---------------------------------------------------------------------------------------------------------


async def our_end(role: str, control: socket.socket, plan: dict[str, Any]) -> dict[str, float]:
    import trio

    from p2pmesh.links.webrtc.dialer import WebRTCDialer

    results: dict[str, float] = {}
    setups = []
    signaling = Signaling(control)
    async with WebRTCDialer() as dialer:
        for name in (*SIZES, "ping"):
            link, setup = await our_open(role, dialer, signaling)
            setups.append(setup)
            async with trio.open_nursery() as nursery:
                await nursery.start(link.run)
                if name == "ping":
                    if role == "offerer":
                        results |= percentiles(await our_pings(link, plan["pings"]))
                        await signaling.tell("done")
                    else:
                        for _ in range(plan["pings"]):
                            await link.send(await link.receive())
                        await signaling.hear()
                elif role == "offerer":
                    await our_send(link, bytes(SIZES[name]), signaling)
                else:
                    meter = Meter(plan["seconds"])
                    while not meter.count(len(await link.receive())):
                        pass
                    await signaling.tell("stop")
                    results[name] = meter.result(name)
                await trio.aclose_forcefully(link)
                nursery.cancel_scope.cancel()
    if role == "offerer":
        results["setup_ms"] = statistics.median(setups) * 1e3
    return results


class Signaling:
    """Lines of JSON over a socket pair."""

    def __init__(self, control: socket.socket) -> None:
        import trio

        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
        self._buffer = b""

    async def tell(self, message: Any) -> None:
        await self._stream.send_all(json.dumps(message).encode() + b"\n")

    async def hear(self) -> Any:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            if not data:
                raise SystemExit("the other end is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


async def our_open(role: str, dialer: Any, signaling: Signaling) -> tuple[Any, float]:
    from p2pmesh.keyspace import PeerId
    from p2pmesh.protocols.inputs import RemotePeer
    from p2pmesh.wire.messages import PROTOCOL_VERSION
    from p2pmesh.wire.sdp import read_sdp, write_sdp

    peer = RemotePeer(PeerId("0" * 40), verified=False, version=PROTOCOL_VERSION)
    if role == "offerer":
        began = time.perf_counter()
        attempt = await dialer.offer(peer.peer_id)
        await signaling.tell(write_sdp(attempt.description))
        await attempt.feed(read_sdp(await signaling.hear()))
    else:
        offer = read_sdp(await signaling.hear())
        began = time.perf_counter()
        attempt = await dialer.answer(peer.peer_id, offer)
        await signaling.tell(write_sdp(attempt.description))
    return await attempt.opened(peer), time.perf_counter() - began


async def our_send(link: Any, message: bytes, signaling: Signaling) -> None:
    """Send until told to stop, as fast as the link takes it."""
    import trio

    from p2pmesh.links.link import LinkError

    async def send() -> None:
        try:
            while True:
                await link.send(message)
        except LinkError:  # the receiver has what it wants
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await signaling.hear()
        nursery.cancel_scope.cancel()


async def our_pings(link: Any, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await link.send(bytes(PING_SIZE))
        await link.receive()
        times.append(time.perf_counter() - began)
    return times


# --- memory -----------------------------------------------------------------------------------------------------------


async def memory_end(role: str, control: socket.socket, plan: dict[str, Any]) -> dict[str, Any]:
    """Send frames of 16 KiB to a receiver that sleeps for 50 ms after every 4 MiB."""
    import trio

    from p2pmesh.links.webrtc.dialer import WebRTCDialer

    frames = plan["megabytes"] * 64
    samples: list[float] = []
    unread = queued = 0
    async with WebRTCDialer() as dialer:
        link, _ = await our_open(role, dialer, Signaling(control))
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            for number in range(frames):
                if role == "offerer":
                    await link.send(bytes(16 * 1024))
                else:
                    await link.receive()
                    if number % 256 == 0:
                        await trio.sleep(0.05)
                if number % 256 == 0:
                    samples.append(resident())
                    unread, queued = max(unread, link.stats.unread_bytes), max(queued, link.stats.queued_bytes)
            await link.aclose()
            nursery.cancel_scope.cancel()
    tenth = max(1, len(samples) // 10)
    return {
        "MiB_after_a_tenth": round(samples[tenth], 1),
        "MiB_at_the_end": round(samples[-1], 1),
        "MiB_peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "unread_bytes_peak": unread,
        "queued_bytes_peak": queued,
    }


def resident() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


if __name__ == "__main__":
    main()
