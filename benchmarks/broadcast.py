"""Broadcasts over real WebRTC links under a steady load: a process for each peer, on loopback.

    python benchmarks/broadcast.py --json                 # 8 peers, 3 links each, 100 broadcasts/s of 200 bytes, 30 s
    python benchmarks/broadcast.py --json --kill-every 5  # the same while a process is replaced every 5 s

All peers send in turn. Afterwards each peer is asked what it has: with `--kill-every` what counts is what those who
stayed to the end have of what those who stayed have sent; peers that come to replace the killed ones only fill their
places.

JSON: {"peers", "stayed", "rate", "size", "seconds", "kills", "sent", "delivered": share of what should have come that
came, "missing", "duplicates": to the application, "copies_per_delivery": payloads that crossed a link for each that
was new, "packets_per_delivery", "frames_per_delivery": over the links that are open at the end,
"cpu_ms_per_delivery": user and system, all processes that stayed, "p50_ms", "p99_ms": from the call of `broadcast`,
waiting for its turn included, "exact": share of receipts that counted all others at the end, "load": of the machine}.
Where some were killed, "exact" and what is counted on links mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

TOPIC = "bench"
DRAIN = 5.0
"""Seconds after the last broadcast in which it may still arrive."""
JOINED = 6.0
"""Seconds in which the mesh comes to rest before the load."""
TIMEOUT = 60.0


# --- the parent -------------------------------------------------------------------------------------------------------


class Peer:
    """One peer's process."""

    def __init__(self, number: int, url: str, options: argparse.Namespace) -> None:
        self.number = number
        plan = {"number": number, "url": url, "links": options.links, "size": options.size}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"peer {self.number} ended before its time")
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def signaling_server() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "p2pmesh", "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"]
    finally:
        server.terminate()
        server.wait()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    with signaling_server() as url:
        peers = [Peer(number, url, options) for number in range(options.peers)]
        victims: list[Peer] = []
        try:
            for peer in peers:
                peer.answer()
            start = time.time() + JOINED
            rate = options.rate / options.peers
            for peer in peers:
                peer.order({
                    "start": start,
                    "offset": peer.number / options.rate,
                    "rate": rate,
                    "seconds": options.seconds,
                })
            kills = kill_some(options, peers, victims, url, start) if options.kill_every else 0
            time.sleep(max(0.0, start + options.seconds + DRAIN - time.time()))
            stayed = [peer for peer in peers if peer.number < options.peers]
            for peer in stayed:
                peer.order({"report": [peer.number for peer in stayed]})
            answers = [peer.answer() for peer in stayed]
        finally:
            for peer in [*peers, *victims]:
                peer.kill()
    return {**report(options, answers), "kills": kills}


def kill_some(options: argparse.Namespace, peers: list[Peer], victims: list[Peer], url: str, start: float) -> int:
    """Replace a peer every so often; half of the first ones stay."""
    kills = 0
    replaced = list(range(options.peers // 2, options.peers))
    at = start + options.kill_every
    while at < start + options.seconds:
        time.sleep(max(0.0, at - time.time()))
        place = replaced[kills % len(replaced)]
        peers[place].kill()
        victims.append(peers[place])
        peers[place] = Peer(options.peers + kills, url, options)
        kills += 1
        at += options.kill_every
    return kills


def report(options: argparse.Namespace, answers: list[dict[str, Any]]) -> dict[str, Any]:
    sent = {answer["number"]: answer["sent"] for answer in answers}
    expected = sum(sum(sent.values()) - answer["sent"] for answer in answers)
    got = sum(answer["got"] for answer in answers)
    heard = sum(answer["heard"] for answer in answers)
    latencies = sorted(x for answer in answers for x in answer["latencies_ms"]) or [0.0]

    def per_delivery(name: str) -> float:
        return float(round(sum(answer[name] for answer in answers) / max(1, heard), 3))

    return {
        "peers": options.peers,
        "stayed": len(answers),
        "rate": options.rate,
        "size": options.size,
        "seconds": options.seconds,
        "sent": sum(sent.values()),
        "delivered": round(got / max(1, expected), 6),
        "missing": expected - got,
        "duplicates": sum(answer["duplicates"] for answer in answers),
        "copies_per_delivery": per_delivery("copies"),
        "packets_per_delivery": per_delivery("packets"),
        "frames_per_delivery": per_delivery("frames"),
        "cpu_ms_per_delivery": per_delivery("cpu_ms"),
        "p50_ms": round(latencies[len(latencies) // 2], 1),
        "p99_ms": round(latencies[len(latencies) * 99 // 100], 1),
        "exact": round(sum(answer["exact"] for answer in answers) / max(1, sum(sent.values())), 4),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--links", type=int, default=3, help="max_peers of each")
    parser.add_argument("--rate", type=float, default=100.0, help="broadcasts a second, of all peers together")
    parser.add_argument("--size", type=int, default=200, help="bytes of each")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        import trio  # not in the parent: it has to be light

        trio.run(work, json.loads(options.worker))
        return
    print(json.dumps(measure(options), indent=None if options.json else 2))


# --- a peer's process -------------------------------------------------------------------------------------------------


def message(number: int, count: int, size: int) -> bytes:
    """A payload: origin, number and time."""
    return f"{number:04x}{count:08x}{time.time_ns():016x}".encode().ljust(size, b".")


class Heard:
    """What one peer has heard."""

    def __init__(self) -> None:
        self.marks: dict[bytes, float] = {}
        self.duplicates = 0

    def hear(self, data: bytes) -> None:
        mark = data[:12]
        if mark in self.marks:
            self.duplicates += 1
        else:
            self.marks[mark] = (time.time_ns() - int(data[12:28], 16)) / 1e6

    def of(self, numbers: list[int]) -> list[float]:
        """Latencies of what these peers have sent."""
        return [latency for mark, latency in self.marks.items() if int(mark[:4], 16) in numbers]


async def work(plan: dict[str, Any]) -> None:
    """Be a peer, as the orders on stdin say."""
    import trio

    from p2pmesh import open_mesh

    heard, receipts = Heard(), list[Any]()

    async def listen(subscription: Any) -> None:
        async for broadcast in subscription:
            heard.hear(broadcast.payload)

    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(open_mesh(plan["url"], room="bench", max_peers=plan["links"]))
        subscription = await stack.enter_async_context(mesh.subscribe(TOPIC, buffer=100_000))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(listen, subscription)
        _say({})
        start = await _next_order()
        if start is not None:
            await trio.sleep(max(0.0, start["start"] - time.time()))
            before, cpu = _figures(mesh), _cpu()
            nursery.start_soon(_send, mesh, plan, start, receipts)
            finish = await _next_order()
            if finish is not None:
                others, after = finish["report"], _figures(mesh)
                latencies = heard.of(others)
                _say({
                    "number": plan["number"],
                    "sent": len(receipts),
                    "got": len(latencies),
                    "heard": len(heard.marks),
                    "duplicates": heard.duplicates,
                    "cpu_ms": 1000 * (_cpu() - cpu),
                    "latencies_ms": [round(x, 2) for x in latencies],
                    "exact": sum(receipt.reached == len(others) - 1 for receipt in receipts),
                    **{name: after[name] - before[name] for name in after},
                })
        await _next_order()  # until the parent closes the pipe
        nursery.cancel_scope.cancel()


async def _send(mesh: Any, plan: dict[str, Any], order: dict[str, Any], receipts: list[Any]) -> None:
    import trio

    start = trio.current_time() + order["offset"]
    for count in range(round(order["rate"] * order["seconds"])):
        await trio.sleep_until(start + count / order["rate"])
        receipts.append(await mesh.broadcast(TOPIC, message(plan["number"], count, plan["size"])))


def _figures(mesh: Any) -> dict[str, int]:
    """What was sent so far over the links that are open, and the copies received."""
    snapshot = mesh.snapshot()
    links, counts = snapshot["links"]["open"].values(), snapshot["subsystems"]["broadcast"]["received"]
    return {
        "packets": sum(link["packets_sent"] for link in links),
        "frames": sum(link["frames_sent"] for link in links),
        "copies": counts["delivered"] + counts["duplicates"],
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


async def _next_order() -> dict[str, Any] | None:
    import trio

    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return json.loads(line) if line else None


if __name__ == "__main__":
    main()
