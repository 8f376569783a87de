"""Meshes with hostile neighbours, over many seeds: what is violated, what honest peers get, and what it costs.

    python benchmarks/hostile.py --seeds 1000          # hours: a line for each seed that went wrong, and a summary
    python benchmarks/hostile.py --seeds 20 --adversary grinder --adversary ghost
    python benchmarks/hostile.py --first 17 --seeds 1  # that seed again, with the account of what went wrong

Each run is a mesh of `--peers` (30) bare peers in virtual time, of which `--hostile` (6) turn against the others, each
in another way, while faults that the seed draws go on: partitions, crashes, freezes, restarts, newcomers, outages, bad
links. Safety is watched all the time. At rest all honest peers must be one island and one ring and have every
broadcast whose ttl outlasts the faults; `--calm` leaves all other faults out, and then every broadcast must be
everywhere.

Then honest peers send each other direct messages, and get values that honest peers put. Each line is a JSON object:
`violations`, of the invariants; `delivery`, of the broadcasts that honest peers should have the share that they got;
`sends`, `puts` and `gets`, the shares of those calls that succeeded; `cpu_s`, processor seconds. The exit status is 1
if anything was violated, or missed in a calm run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter, process_time
from typing import Any, Final

import attrs

from p2pmesh.simulation.discrete.invariants import check_at_most_once, members
from p2pmesh.simulation.discrete.kernel import collector_paused
from p2pmesh.simulation.faults.adversary import Adversary, adversary_of
from p2pmesh.simulation.faults.plan import FaultPlan, Hostile
from p2pmesh.simulation.report import report_on
from p2pmesh.simulation.scenario import Run, load_scenario

FAULTS: Final = 4
"""Of other kinds, in the time of a run."""
RAGE: Final = 20.0
"""Seconds in which they begin and end."""
CALLS: Final = 12
"""Direct messages between honest peers, and as many look-ups, at rest."""
CALL_WITHIN: Final = 30.0
"""Seconds that they may take."""
NICE: Final = 10
"""Others work here, too."""


def plan_of(seed: int, peers: int, hostile: int, kinds: list[Adversary], *, calm: bool) -> FaultPlan:
    """Faults that a seed draws, and hostile peers: among the last third, as those whose processes end."""
    rng = random.Random(f"hostile {seed}")
    order = rng.sample(kinds, len(kinds))
    third = max(hostile, peers // 3)
    numbers = [peers - 1 - number for number in rng.sample(range(third), hostile)]
    turns = [
        Hostile(at=round(rng.uniform(0, 2), 3), peers=(number,), does=order[turn % len(order)])
        for turn, number in enumerate(numbers)
    ]
    faults = () if calm else FaultPlan.generate(seed, peers=peers, seconds=RAGE, faults=FAULTS).faults
    return FaultPlan([*turns, *faults], seed=seed)


def measure(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    began = process_time()
    kinds = [adversary_of(name) for name in options.adversary] or list(Adversary)
    scenario = attrs.evolve(load_scenario("quiet"), broadcasts=20, broadcast_every=1.0, rest=90.0, ttl=60.0)
    plan = plan_of(seed, options.peers, options.hostile, kinds, calm=options.calm)
    run = Run(scenario, peers=options.peers, max_peers=options.max_peers, seed=seed, plan=plan)
    net = run.net
    with collector_paused():
        for _ in run.phases():
            pass
        hostile = [node.number for node in net.nodes if node.hostile]
        honest = members(net, hostile)
        rng = random.Random(f"calls {seed}")
        pairs = [rng.sample(honest, 2) for _ in range(CALLS)]
        sends = [net.send(a, b.peer_id) for a, b in pairs]
        puts = [net.put(a, f"key {number}", number) for number, (a, _) in enumerate(pairs)]
        net.run(CALL_WITHIN)
        gets = [net.get(b, f"key {number}", publisher=a.peer_id) for number, (a, b) in enumerate(pairs)]
        net.run(CALL_WITHIN)
        check_at_most_once(net)
        report = report_on(net, scenario="hostile", peers=options.peers, max_peers=options.max_peers, wall_s=0.0,
                           without=hostile)  # fmt: skip
    return {
        "seed": seed,
        "violations": list(map(str, net.violations)),
        "expected": report.expected,
        "delivered": report.delivered,
        "sends": sum(bool(send.ok) and send.arrivals == 1 for send in sends) / CALLS,
        "puts": sum(bool(put.ok) for put in puts) / CALLS,
        "gets": sum(bool(get.ok) and get.value is not None for get in gets) / CALLS,
        "kinds": sorted({node.hostile.value for node in net.nodes if node.hostile}),
        "trace_hash": report.trace_hash,
        "events": report.events,
        "cpu_s": round(process_time() - began, 2),
        "account": net.account,
    }


def results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs, on as many cores as there are, after everything else that runs on them."""
    seeds = range(options.first, options.first + options.seeds)
    if options.workers == 1:
        yield from (measure(seed, options) for seed in seeds)
        return
    with ProcessPoolExecutor(options.workers, initializer=os.nice, initargs=(options.nice,)) as pool:
        yield from pool.map(measure, seeds, [options] * len(seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--peers", type=int, default=30)
    parser.add_argument("--hostile", type=int, default=6, help="how many of the peers")
    parser.add_argument("--max-peers", type=int, default=5)
    parser.add_argument("--adversary", action="append", default=[], help="a kind of them; by default all")
    parser.add_argument("--calm", action="store_true", help="no other faults")
    parser.add_argument("--all", action="store_true", help="a line for each seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--nice", type=int, default=NICE, help="how far all else goes first")
    options = parser.parse_args()
    began, done, bad, all_kinds = perf_counter(), [], 0, set[str]()
    for result in results(options):
        done.append(result)
        all_kinds |= set(result["kinds"])
        missed = options.calm and result["delivered"] < result["expected"]
        bad += bool(result["violations"] or missed)
        account = result.pop("account")
        if options.all or result["violations"] or missed or result["sends"] < 1:
            print(json.dumps(result), flush=True)
            if options.seeds == 1:
                print(account, file=sys.stderr)
    expected = sum(one["expected"] for one in done)
    share = {name: round(sum(one[name] for one in done) / len(done), 5) for name in ("sends", "puts", "gets")}
    print(json.dumps({
        "seeds": options.seeds, "first": options.first, "peers": options.peers, "hostile": options.hostile,
        "max_peers": options.max_peers, "calm": options.calm, "kinds": sorted(all_kinds),
        "bad_seeds": bad, "violations": sum(len(one["violations"]) for one in done),
        "delivery": sum(one["delivered"] for one in done) / expected if expected else 1.0, **share,
        "cpu_s": round(sum(one["cpu_s"] for one in done), 1), "wall_s": round(perf_counter() - began, 1),
    }))  # fmt: skip
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
