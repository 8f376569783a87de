"""How fast the simulator is: bare peers join one after another, settle, and broadcast; wall time, events, memory.

    python benchmarks/simulation.py --json            # 100, 1,000 and 10,000 peers, 100 broadcasts each: minutes
    python benchmarks/simulation.py --quick           # 100 and 300 peers: seconds

Each size runs in a process of its own, so that the peak of memory is its own, with the cycle collector off: a run makes
no cycles, and the collector would walk all peers again and again. The process takes its memory from glibc's malloc in
huge pages: thousands of peers are visited in no order, so most of what an event costs beyond its code are misses of the
translation buffer. `us_per_event` is the CPU time of one event in a phase; it should not grow with the number of peers,
and `cost_ratio` says how much more the largest size pays than the one before it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
from time import perf_counter, process_time
from typing import Any

from p2pmesh.config import MeshConfig
from p2pmesh.simulation.discrete.invariants import check_islands, check_ring, islands, ring_cycles
from p2pmesh.simulation.discrete.network import BareNetwork

SIZES = (100, 1_000, 10_000)
QUICK = (100, 300)
JOIN_EVERY = 0.01
SETTLE = 30.0
BROADCAST_EVERY = 0.5
DELIVERY = 10.0
HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Python's own allocator has no way to ask for them. Elsewhere than with glibc 2.35 and later these change nothing."""

LARGE = 1000
"""From this size on huge pages pay; a small mesh is faster with Python's own allocator."""


class Phase:
    """Events and seconds of one phase."""

    def __init__(self, net: BareNetwork) -> None:
        self.net, self.events, self.wall, self.cpu = net, net.events, perf_counter(), process_time()

    def figures(self) -> dict[str, float]:
        events, wall, cpu = self.net.events - self.events, perf_counter() - self.wall, process_time() - self.cpu
        return {
            "events": events,
            "wall_s": round(wall, 2),
            "events_per_s": round(events / wall),
            "us_per_event": round(1e6 * cpu / max(1, events), 2),
        }


def measure(peers: int, broadcasts: int, seed: int) -> dict[str, Any]:
    """One size, in this process."""
    gc.disable()
    began = perf_counter()
    config = MeshConfig(max_peers=5)
    net = BareNetwork(seed, config=config, strict=False)
    phase = Phase(net)
    for _ in range(peers):
        net.add()
        net.run(JOIN_EVERY)
    join = phase.figures()
    phase = Phase(net)
    net.run(SETTLE)
    check_ring(net)
    check_islands(net)
    settle = phase.figures()
    phase = Phase(net)
    for _ in range(broadcasts):
        net.publish(net.rng.choice(net.nodes), "x" * 64)
        net.run(BROADCAST_EVERY)
    net.run(DELIVERY)
    broadcast = phase.figures()
    wall = perf_counter() - began
    expected = broadcasts * (peers - 1)
    delivered = sum(one.count for one in net.delivery_log)
    return {
        "peers": peers,
        "max_peers": 5,
        "broadcasts": broadcasts,
        "wall_s": round(wall, 2),
        "virtual_s": round(net.now, 2),
        "events": net.events,
        "events_per_s": round(net.events / wall),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "join": join,
        "settle": settle,
        "broadcast": broadcast,
        "reliability": delivered / expected if expected else 1.0,
        "receipts_exact": sum(one.reached == one.count for one in net.delivery_log),
        "hops_max": max(net.delivery_log.hops, default=0),
        "islands": len(islands(net)),
        "ring_cycles": ring_cycles(net),
        "violations": [str(violation) for violation in net.violations],
        "trace_hash": net.trace.digest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(map(str, QUICK))} peers")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of peers")
    parser.add_argument("--broadcasts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.broadcasts, options.seed)))
        return
    runs = []
    for size in options.sizes or (QUICK if options.quick else SIZES):
        command = [sys.executable, __file__, "--one", str(size), "--seed", str(options.seed)]
        command += ["--broadcasts", str(options.broadcasts)]
        environment = os.environ | (HUGE_PAGES if size >= LARGE else {})
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        runs.append(json.loads(done.stdout))
        if not options.json:
            show(runs[-1])
    result: dict[str, Any] = {"python": sys.version.split()[0], "runs": runs}
    if len(runs) > 1:
        small, large = runs[-2:]
        ratios = {
            phase: round(large[phase]["us_per_event"] / small[phase]["us_per_event"], 3)
            for phase in ("join", "settle", "broadcast")
        }
        result["cost_ratio"] = {"of": [large["peers"], small["peers"]], **ratios}
    print(json.dumps(result, indent=2) if options.json else f"cost per event: {result.get('cost_ratio')}")


def show(run: dict[str, Any]) -> None:
    print(
        f"{run['peers']:>6} peers: {run['wall_s']:8.1f} s  {run['events']:>10} events  "
        f"{run['events_per_s']:>7} events/s  {run['broadcast']['us_per_event']:6.1f} us/event  "
        f"{run['peak_mib']:>6} MiB  reliability {run['reliability']:.4f}"
    )


if __name__ == "__main__":
    main()
