"""Broadcasts of ours against py-libp2p's gossipsub: ten peers, signed, on loopback, side by side in one run.

    python benchmarks/versus_libp2p.py --json [--quick] [--mode one|each] [--libp2p PYTHON]

Two set-ups: all peers in *one* process, and *each* in a process of its own. In both, rates climb a ladder: at each
rung all peers together send so many 100-byte broadcasts a second for some seconds, ours and theirs taking turns,
until a side no longer delivers everything. What is compared is the highest rate with everything delivered, and the
CPU time per delivery (user and system, of all peers' processes, at that rate). Ours runs over WebRTC data channels,
theirs over TCP with Noise and Yamux.

py-libp2p needs an environment of its own (its dependencies don't go together with ours). `--libp2p` names its
interpreter; without it one is made beside the system's temporary files, by `pip install libp2p`.

JSON: {"peers": 10, "size": 100, "one": {"ours": SIDE, "libp2p": SIDE, "rate_ratio": ..., "cpu_ratio": ...}, "each":
...} where SIDE is {"formed_s": until all are linked and a first broadcast of each has arrived everywhere, "rate":
highest rate with all delivered, "cpu_ms_per_delivery": at that rate, "p50_ms", "p99_ms": at that rate,
"cpu_ms_per_delivery_5": "p50_ms_5": "p99_ms_5": at 5 a second, "rungs": [[rate, share delivered, CPU ms per delivery,
p99 ms], ...]}. `cpu_ratio` is ours over theirs, below 1 in our favour.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

PEERS = 10
SIZE = 100
TOPIC = "bench"
DRAIN = 3.0
"""Seconds after the last broadcast of a rung in which it may still arrive."""
ENOUGH = 0.9999
LADDERS = {
    "ours": [5, 50, 100, 150, 200, 250, 300, 400, 500, 650, 800, 1000, 1300],
    "libp2p": [5, 10, 15, 20, 25, 30, 40, 60, 80],
}
LINKS = 3
"""Links of each peer of ours; theirs dial as many, and accept all that come, within gossipsub's usual degree of 6."""


# --- the parent -------------------------------------------------------------------------------------------------------


class Contestant:
    """One side's peers, in one process or in ten."""

    def __init__(self, side: str, mode: str, python: str) -> None:
        groups = [list(range(PEERS))] if mode == "one" else [[number] for number in range(PEERS)]
        self.server = None
        began = time.perf_counter()
        url = ""
        if side == "ours":
            self.server = subprocess.Popen(
                [sys.executable, "-m", "p2pmesh", "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
            )
            assert self.server.stdout is not None
            url = json.loads(self.server.stdout.readline())["url"]
        self.processes = [
            subprocess.Popen(
                [python, __file__, "--worker", side, json.dumps(group), url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for group in groups
        ]
        addresses = [address for some in self._answers() for address in some]
        self._order({"connect": addresses})
        self._answers()
        self.formed_s = time.perf_counter() - began

    def load(self, rate: float, seconds: float) -> dict[str, float]:
        """One rung."""
        self._order({"rate": rate, "seconds": seconds, "start": time.time() + 0.5})
        answers = self._answers()
        sent, got = sum(a["sent"] for a in answers), sum(a["got"] for a in answers)
        planned = round(rate * seconds / PEERS) * PEERS
        latencies = sorted(x for a in answers for x in a["latencies_ms"]) or [0.0]
        return {
            "rate": rate,
            "delivered": got / (planned * (PEERS - 1)) if sent == planned else 0.0,
            "duplicates": sum(a["duplicates"] for a in answers),
            "cpu_ms": 1000 * sum(a["cpu_s"] for a in answers) / max(1, got),
            "p50_ms": latencies[len(latencies) // 2],
            "p99_ms": latencies[len(latencies) * 99 // 100],
        }

    def close(self) -> None:
        """End what was started."""
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.server is not None:
            self.server.terminate()
            self.server.wait()

    def _order(self, order: dict[str, Any]) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def _answers(self) -> list[Any]:
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("a peer's process ended before its time")
            answers.append(json.loads(line))
        return answers


def compare(mode: str, seconds: float, python: str) -> dict[str, Any]:
    """Climb both ladders, taking turns."""
    contestants = {
        "ours": Contestant("ours", mode, sys.executable),
        "libp2p": Contestant("libp2p", mode, python),
    }
    rungs: dict[str, list[dict[str, float]]] = {side: [] for side in contestants}
    ladders = {side: list(rates) for side, rates in LADDERS.items()}
    try:
        while any(ladders.values()):
            for side, contestant in contestants.items():
                if not ladders[side]:
                    continue
                rung = contestant.load(ladders[side].pop(0), seconds)
                if rung["delivered"] < ENOUGH:  # once more: one slow moment of the machine is no limit
                    rung = contestant.load(rung["rate"], seconds)
                rungs[side].append(rung)
                print(f"{mode} {side}: {json.dumps(rung)}", file=sys.stderr)
                if rung["delivered"] < ENOUGH:
                    ladders[side].clear()
    finally:
        for contestant in contestants.values():
            contestant.close()
    report: dict[str, Any] = {
        side: _summary(contestant.formed_s, rungs[side]) for side, contestant in contestants.items()
    }
    ours, theirs = report["ours"], report["libp2p"]
    report["rate_ratio"] = round(ours["rate"] / theirs["rate"], 2) if theirs["rate"] else None
    report["cpu_ratio"] = round(ours["cpu_ms_per_delivery"] / theirs["cpu_ms_per_delivery"], 3)
    return report


def _summary(formed_s: float, rungs: list[dict[str, float]]) -> dict[str, Any]:
    whole = [rung for rung in rungs if rung["delivered"] >= ENOUGH]
    best = whole[-1] if whole else rungs[0]
    return {
        "formed_s": round(formed_s, 2),
        "rate": best["rate"] if whole else 0,
        "cpu_ms_per_delivery": round(best["cpu_ms"], 3),
        "p50_ms": round(best["p50_ms"], 1),
        "p99_ms": round(best["p99_ms"], 1),
        "cpu_ms_per_delivery_5": round(rungs[0]["cpu_ms"], 3),
        "p50_ms_5": round(rungs[0]["p50_ms"], 1),
        "p99_ms_5": round(rungs[0]["p99_ms"], 1),
        "rungs": [[r["rate"], round(r["delivered"], 4), round(r["cpu_ms"], 3), round(r["p99_ms"], 1)] for r in rungs],
    }


def libp2p_python() -> str:
    """An interpreter that has py-libp2p; made once."""
    home = Path(tempfile.gettempdir()) / f"p2pmesh-versus-libp2p-{os.getuid()}"
    python = home / "bin" / "python"
    if (
        subprocess.run([python, "-c", "import libp2p"], capture_output=True, check=False).returncode
        if python.exists()
        else True
    ):
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "libp2p"], check=True, stdout=sys.stderr)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="shorter rungs")
    parser.add_argument("--mode", choices=["one", "each"], help="only this set-up")
    parser.add_argument("--libp2p", metavar="PYTHON", help="an interpreter that has py-libp2p")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    python = options.libp2p or libp2p_python()
    report: dict[str, Any] = {"peers": PEERS, "size": SIZE}
    for mode in [options.mode] if options.mode else ["one", "each"]:
        report[mode] = compare(mode, 2.0 if options.quick else 5.0, python)
    print(json.dumps(report, indent=None if options.json else 2))


# --- the peers' processes ---------------------------------------------------------------------------------------------


class Tally:
    """What one peer sent and heard in one rung."""

    def __init__(self) -> None:
        self.sent = 0
        self.heard: set[bytes] = set()
        self.duplicates = 0
        self.latencies_ms: list[float] = []

    def hear(self, data: bytes) -> None:
        """A broadcast arrived."""
        mark = data[:24]
        if mark in self.heard:
            self.duplicates += 1
            return
        self.heard.add(mark)
        self.latencies_ms.append((time.time_ns() - int(data[8:24], 16)) / 1e6)


def message(number: int, count: int) -> bytes:
    """A payload of 100 bytes: origin, number and time."""
    return f"{number:02x}{count:06x}{time.time_ns():016x}".encode().ljust(SIZE, b".")


def work(side: str, group: str, url: str) -> None:
    """Be some peers, as the orders on stdin say."""
    import trio  # not in the parent: it has to be light

    trio.run(_ours if side == "ours" else _libp2p, json.loads(group), url)


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


async def _next_order() -> dict[str, Any] | None:
    import trio

    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return json.loads(line) if line else None


async def _loads(publishers: list[Any], tallies: list[Tally], group: list[int]) -> None:
    """Carry out the rungs that are ordered."""
    import trio

    while (order := await _next_order()) is not None:
        for tally in tallies:
            tally.__init__()  # type: ignore[misc]
        count = round(order["rate"] * order["seconds"] / PEERS)
        await trio.sleep(max(0.0, order["start"] - time.time()))
        before = resource.getrusage(resource.RUSAGE_SELF)
        with trio.move_on_after(order["seconds"] + DRAIN):
            async with trio.open_nursery() as nursery:
                for number, publish, tally in zip(group, publishers, tallies, strict=True):
                    nursery.start_soon(_send, number, publish, tally, count, order["rate"] / PEERS)
                while any(  # noqa: ASYNC110  # what many tasks count
                    tally.sent < count or len(tally.heard) < count * (PEERS - 1) for tally in tallies
                ):
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        await trio.sleep(0.3)  # duplicates come late
        _say({
            "sent": sum(tally.sent for tally in tallies),
            "got": sum(len(tally.heard) for tally in tallies),
            "duplicates": sum(tally.duplicates for tally in tallies),
            "cpu_s": cpu,
            "latencies_ms": [round(x, 2) for tally in tallies for x in tally.latencies_ms],
        })


async def _send(number: int, publish: Any, tally: Tally, count: int, rate: float) -> None:
    import trio

    start = trio.current_time() + (number / PEERS) / rate
    for sent in range(count):
        await trio.sleep_until(start + sent / rate)
        await publish(message(number, sent))
        tally.sent += 1


async def _warm_up(publishers: list[Any], tallies: list[Tally], group: list[int]) -> None:
    """Wait until a broadcast of each peer has arrived at each; late ones are told again."""
    import trio

    seen: list[set[bytes]] = [set() for _ in tallies]
    count = 0
    while any(len(froms) < PEERS - 1 for froms in seen) or count < 3:
        for number, publish in zip(group, publishers, strict=True):
            await publish(message(number, count))
        count += 1
        await trio.sleep(0.5)
        for froms, tally in zip(seen, tallies, strict=True):
            froms.update(mark[:2] for mark in tally.heard)
    await trio.sleep(2.0)  # others may still need ours
    _say({})


async def _ours(group: list[int], url: str) -> None:
    from contextlib import AsyncExitStack

    import trio

    from p2pmesh import open_mesh

    tallies = [Tally() for _ in group]

    async def listen(subscription: Any, tally: Tally) -> None:
        async for heard in subscription:
            tally.hear(heard.payload)

    async with AsyncExitStack() as stack:
        meshes = [await stack.enter_async_context(open_mesh(url, room="bench", max_peers=LINKS)) for _ in group]
        nursery = await stack.enter_async_context(trio.open_nursery())
        for mesh, tally in zip(meshes, tallies, strict=True):
            subscription = await stack.enter_async_context(mesh.subscribe(TOPIC, buffer=100_000))
            nursery.start_soon(listen, subscription, tally)
        _say([mesh.peer_id for mesh in meshes])
        publishers = [lambda data, mesh=mesh: mesh.broadcast(TOPIC, data) for mesh in meshes]
        await _next_order()  # to connect: the mesh has done that
        await _warm_up(publishers, tallies, group)
        await _loads(publishers, tallies, group)
        nursery.cancel_scope.cancel()


async def _libp2p(group: list[int], url: str) -> None:
    import logging
    import random
    from contextlib import AsyncExitStack

    import trio
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    del url
    logging.disable(logging.CRITICAL)
    tallies = [Tally() for _ in group]
    publishers: list[Any] = []

    async def listen(subscription: Any, tally: Tally, me: bytes) -> None:
        while True:
            heard = await subscription.get()
            if heard.from_id != me:
                tally.hear(heard.data)

    async with AsyncExitStack() as stack:
        hosts = []
        nursery = await stack.enter_async_context(trio.open_nursery())
        for tally in tallies:
            address = Multiaddr("/ip4/127.0.0.1/tcp/0")
            host = new_host(key_pair=create_new_key_pair())
            await stack.enter_async_context(host.run(listen_addrs=[address]))
            router = GossipSub(
                protocols=[TProtocol("/meshsub/1.1.0")],
                degree=6,
                degree_low=4,
                degree_high=12,
                heartbeat_interval=1,
                spam_protection_enabled=False,  # else ten messages a second and topic are the end
                eclipse_protection_enabled=False,  # all are on one address here
            )
            pubsub = Pubsub(host, router)
            await stack.enter_async_context(background_trio_service(pubsub))
            await stack.enter_async_context(background_trio_service(router))
            await pubsub.wait_until_ready()
            subscription = await pubsub.subscribe(TOPIC)
            nursery.start_soon(listen, subscription, tally, host.get_id().to_bytes())
            hosts.append(host)
            publishers.append(lambda data, pubsub=pubsub: pubsub.publish(TOPIC, data))
        _say([str(host.get_addrs()[0]) for host in hosts])
        order = await _next_order()
        assert order is not None
        addresses = order["connect"]
        for number, host in zip(group, hosts, strict=True):
            others = [address for place, address in enumerate(addresses) if place != number]
            chosen = random.Random(number).sample(others, LINKS)
            for address in [addresses[(number + 1) % PEERS], *chosen]:  # a ring, so that all hang together
                await host.connect(info_from_p2p_addr(Multiaddr(address)))
        await _warm_up(publishers, tallies, group)
        await _loads(publishers, tallies, group)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main()
