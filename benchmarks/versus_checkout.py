"""This checkout against another of this project, interleaved in one run: links, broadcast, the simulator.

    git worktree add ../before COMMIT
    python benchmarks/versus_checkout.py ../before --json [--rounds N] [--only broadcast links simulator]

Absolute figures vary with the machine, ratios of one run hardly do. Each round runs a benchmark of both checkouts, the
order turned each time, each with the code of its own tree; the ratio is that of the medians, ours to theirs. Prints one
JSON object: for each figure `ours` and `theirs` (the rounds, in order), `ratio`, and whether `less` or `more` is
better. With four rounds: about ten minutes for all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent.parent
TIMEOUT = 900
"""Seconds for one run of one benchmark."""


class Figure(NamedTuple):
    """A number out of what a benchmark prints."""

    name: str
    better: str
    path: tuple[str | int, ...]
    """Where it stands in the JSON."""

    def of(self, report: Any) -> float:
        for key in self.path:
            report = report[key]
        return float(report)


class Benchmark(NamedTuple):
    """One that both checkouts have, and what of it is compared."""

    command: list[str]
    figures: list[Figure]


BENCHMARKS = {
    "broadcast": Benchmark(
        ["benchmarks/broadcast.py", "--json", "--peers", "8", "--rate", "100", "--seconds", "12"],
        [
            Figure("cpu_ms_per_delivery", "less", ("cpu_ms_per_delivery",)),
            Figure("p50_ms", "less", ("p50_ms",)),
        ],
    ),
    "links": Benchmark(
        ["benchmarks/links.py", "--json", "--rounds", "1"],
        [
            Figure("ping_p50_us", "less", ("ours", "ping_p50_us")),
            Figure("messages_100B", "more", ("ours", "messages_100B")),
            Figure("throughput_1KiB", "more", ("ours", "throughput_1KiB")),
            Figure("throughput_16KiB", "more", ("ours", "throughput_16KiB")),
        ],
    ),
    "simulator": Benchmark(
        ["benchmarks/simulation.py", "--json", "--sizes", "100"],
        [
            Figure("events_per_s", "more", ("runs", 0, "events_per_s")),
            Figure("wall_s", "less", ("runs", 0, "wall_s")),
        ],
    ),
}


def run(checkout: Path, benchmark: Benchmark) -> Mapping[str, Any]:
    """One run, with that checkout's code and nothing of ours."""
    done = subprocess.run(
        [sys.executable, *benchmark.command],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    report: Mapping[str, Any] = json.loads(done.stdout)
    return report


def compare(other: Path, names: list[str], rounds: int) -> dict[str, Any]:
    """All figures of these benchmarks, interleaved."""
    result: dict[str, Any] = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        reports: dict[Path, list[Mapping[str, Any]]] = {HERE: [], other: []}
        for turn in range(rounds):
            for checkout in (HERE, other) if turn % 2 == 0 else (other, HERE):
                reports[checkout].append(run(checkout, benchmark))
        for figure in benchmark.figures:
            ours, theirs = ([figure.of(report) for report in reports[checkout]] for checkout in (HERE, other))
            ratio = statistics.median(ours) / statistics.median(theirs)
            result[f"{name}.{figure.name}"] = {
                "ours": ours,
                "theirs": theirs,
                "ratio": round(ratio, 3),
                "better": figure.better,
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args()
    result = compare(options.checkout.resolve(), options.only, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    for name, figure in result.items():
        print(f"{name:>32}: {figure['ratio']:6.3f}  ({figure['better']} is better)")


if __name__ == "__main__":
    main()
