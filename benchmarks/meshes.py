"""Full meshes in virtual time: real `open_mesh` peers join, settle and broadcast; wall time of each phase, and memory.

python benchmarks/meshes.py --json                # 300 peers, 20 broadcasts: within a minute
python benchmarks/meshes.py --peers 50
"""

from __future__ import annotations

import argparse
import json
import resource
from time import perf_counter, process_time
from typing import Any

import trio

from p2pmesh.simulation import World, simulate, simulated_meshes

SETTLE = 20.0
BROADCAST_EVERY = 0.5


class Stopwatch:
    """Wall seconds between its laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.laps[name] = round(now - self._since, 2)
        self._since = now


async def broadcast(world: World, count: int) -> list[int]:
    """Broadcasts from as many peers; what their receipts came to."""
    receipts = []
    for number in range(count):
        receipts.append(await world.meshes[number % len(world.meshes)].broadcast("bench", number))
        await trio.sleep(BROADCAST_EVERY)
    outcomes = [await receipt.settled() for receipt in receipts]
    for receipt in receipts:
        await world.delivered(receipt)
    return [outcome.reached for outcome in outcomes]


async def measure(peers: int, max_peers: int, broadcasts: int, seed: int) -> dict[str, Any]:
    """One run, from the first join to the last goodbye."""
    watch = Stopwatch()
    async with simulated_meshes(peers, seed=seed, max_peers=max_peers) as world:
        watch.lap("join")
        await trio.sleep(SETTLE)
        watch.lap("settle")
        islands, gaps = world.islands(), len(world.ring_gaps())
        reached = await broadcast(world, broadcasts)
        watch.lap("broadcast")
        virtual, digest = trio.current_time(), world.digest()
    watch.lap("leave")
    return {
        "peers": peers,
        "max_peers": max_peers,
        "broadcasts": broadcasts,
        "seed": seed,
        "wall_s": round(sum(watch.laps.values()), 2),
        "phases_s": watch.laps,
        "virtual_s": round(virtual, 3),
        "islands": islands,
        "ring_gaps": gaps,
        "receipts_exact": sum(count == peers - 1 for count in reached),
        "trace_hash": digest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=300)
    parser.add_argument("--max-peers", type=int, default=5)
    parser.add_argument("--broadcasts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    began = process_time()
    figures = simulate(measure, options.peers, options.max_peers, options.broadcasts, options.seed, seed=options.seed)
    figures["cpu_s"] = round(process_time() - began, 2)
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<16}{value}")


if __name__ == "__main__":
    main()
