"""How good the overlay is: each figure that it should reach, over several seeds, with what it should be beside it.

    python benchmarks/overlay.py --json                      # everything, 10 seeds: hours
    python benchmarks/overlay.py --quick                     # 100 peers, one seed: a minute or two
    python benchmarks/overlay.py --section routes rest --seeds 3 --links 5

Bare peers in virtual time, on links of 50 ms. For each size and seed one mesh is built; each section then measures in
a process forked from there, so that none disturbs another. With `--json` each line is an object: one for each
section, size and seed (`figures`, `bars` with what each should be and whether it `met` that, `wall_s`, `peak_mib`; or
`skipped` or `error`), and last the `summary`, with the smallest, mean and largest of each figure that has a bar. The
exit status is 1 if a bar was not met or a section failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from threading import Lock
from time import perf_counter
from typing import Any

from p2pmesh.simulation import BareNetwork

sys.path.append(str(Path(__file__).parent.parent))  # run as a script, it has a part beside it

from benchmarks.overlay_measures import (
    QUICK,
    SECTIONS,
    SETTLE,
    CanNotRun,
    Figures,
    Section,
    Size,
    growth,
    joins,
    new_network,
    storm,
)

HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""As in `benchmarks/simulation.py`."""
LARGE = 1000

# --- one mesh ---------------------------------------------------------------------------------------------------------


def work(size: Size, seed: int, sections: list[str], limit: int, *, dht: bool) -> None:
    """Build one mesh and measure what is asked for; prints a line for each section."""
    gc.disable()
    peers, max_peers = size
    net, notes = new_network(peers, max_peers, seed, dht=dht)
    line = Line(size, seed, limit, notes)
    if "storm" in sections:
        line.forked("storm", lambda: (storm(net, peers), net))
    if "growth" in sections:
        line.forked("growth", lambda: (growth(net, peers), net))
    others = [name for name in sections if name not in ("storm", "growth")]
    if not others:
        return
    began = perf_counter()
    figures = joins(net, peers)
    if "joins" in others:
        line.write("joins", figures | {"events": net.events}, perf_counter() - began, net)
    measures = [name for name in others if name != "joins"]
    if not measures:
        return
    net.run(max(0.0, SETTLE - figures["looked_for_s"]))
    for name in measures:
        line.measured(name, net)


class Line:
    """Writes the lines of one mesh."""

    def __init__(
        self, size: Size, seed: int, limit: int, notes: list[str], sections: Mapping[str, Section] = SECTIONS
    ) -> None:
        self._size = size
        self._sections = sections
        self._notes = notes
        self._seed = seed
        self._limit = limit

    def measured(self, section: str, net: BareNetwork) -> None:
        """Measure a section on a copy of this mesh."""
        measure, rng = self._sections[section].measure, random.Random(f"{section} {self._seed}")
        assert measure is not None, section
        self.forked(section, lambda: (measure(net, rng), net))

    def forked(self, section: str, measure: Callable[[], tuple[Figures, BareNetwork]]) -> None:
        """Measure in a child, which leaves our own mesh as it is."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                self._print(section, error=f"ended by signal {os.WTERMSIG(status)}: {self._limit} s are over?")
            return
        signal.alarm(self._limit)
        began = perf_counter()
        try:
            figures, net = measure()
        except CanNotRun as reason:
            self._print(section, skipped=str(reason))
        except Exception as error:  # whatever it is: its line says so, and the other sections go on
            traceback.print_exc()
            self._print(section, error=f"{type(error).__name__}: {error}"[:200])
        else:
            self.write(section, figures, perf_counter() - began, net)
        sys.stdout.flush()
        os._exit(0)

    def write(self, section: str, figures: Figures, wall: float, net: BareNetwork) -> None:
        """The line of a section that could be measured."""
        bars = {
            name: {bar.sense: bar.value, "is": _round(figures.get(name)), "met": bar.met(figures.get(name))}
            for name, bar in self._sections[section].bars(self._size[1]).items()
        }
        more: Figures = {"notes": self._notes} if self._notes else {}
        if net.violations:
            more["violations"] = [str(violation) for violation in net.violations[:5]]
        self._print(
            section,
            met=all(bar["met"] for bar in bars.values()),
            bars=bars,
            figures=_round(figures),
            **more,
            wall_s=round(wall, 1),
            virtual_s=round(net.now, 1),
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        )

    def _print(self, section: str, **fields: Any) -> None:
        peers, max_peers = self._size
        print(json.dumps({"section": section, "peers": peers, "max_peers": max_peers, "seed": self._seed, **fields}))
        sys.stdout.flush()


def _round(value: Any) -> Any:
    match value:
        case float():
            return round(value, 5)
        case dict():
            return {key: _round(item) for key, item in value.items()}
        case list():
            return [_round(item) for item in value]
        case _:
            return value


# --- all of them ------------------------------------------------------------------------------------------------------


def meshes(
    options: argparse.Namespace, sections: Mapping[str, Section] = SECTIONS, quick: Sequence[Size] = QUICK
) -> Iterator[tuple[Size, int, list[str]]]:
    """The meshes to build, each with the sections that are measured on it; the small ones first."""
    wanted: dict[Size, list[str]] = {}
    for name in options.section or sections:
        for size in quick if options.quick else sections[name].sizes:
            wanted.setdefault(size, []).append(name)
    for seed in range(1, options.seeds + 1):
        for size, names in sorted(wanted.items()):
            if (not options.links or size[1] in options.links) and (not options.peers or size[0] in options.peers):
                yield size, seed, names


class Runs:
    """Measures meshes, each in a process of its own, and prints their lines as they come."""

    def __init__(
        self, tell: Callable[[dict[str, Any]], None], limit: int, *, dht: bool, script: str = __file__
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self._script = script
        self._tell = tell
        self._limit = limit
        self._dht = dht
        self._lock = Lock()
        self._running: list[subprocess.Popen[str]] = []

    def one(self, size: Size, seed: int, names: list[str]) -> None:
        """Measure one mesh."""
        command = [sys.executable, self._script, "--work", json.dumps([size, seed, names]), "--limit", str(self._limit)]
        command += [] if self._dht else ["--without-dht"]
        environment = os.environ | (HUGE_PAGES if size[0] >= LARGE else {})
        told = set()
        # A session of its own, so that it can be ended with all that it has forked.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process:
            self._running.append(process)
            assert process.stdout is not None
            for text in process.stdout:
                line = json.loads(text)
                told.add(line["section"])
                self._take(line)
        if process.returncode:
            about = {"peers": size[0], "max_peers": size[1], "seed": seed, "error": f"exit status {process.returncode}"}
            for name in names:
                if name not in told:
                    self._take({"section": name, **about})

    def _take(self, line: dict[str, Any]) -> None:
        with self._lock:
            self.lines.append(line)
            self._tell(line)

    def end(self) -> None:
        """End all that still runs."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def summary(lines: list[dict[str, Any]], sections: Mapping[str, Section] = SECTIONS) -> list[dict[str, Any]]:
    """Each figure that has a bar, over all seeds."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["section"], line["peers"], line["max_peers"]), []).append(line)
    order = list(sections)
    rows = []
    for (section, peers, links), group in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        about = {"section": section, "peers": peers, "max_peers": links, "seeds": len(group)}
        failed = [str(line.get("error") or line.get("skipped")) for line in group if "bars" not in line]
        if failed:
            rows.append({**about, "met": False, "missing": len(failed), "because": failed[0]})
        measured = [line["bars"] for line in group if "bars" in line]
        for figure in measured[0] if measured else ():
            bars = [bars[figure] for bars in measured]
            found = [bar["is"] for bar in bars if bar["is"] is not None]
            (sense, value), *_ = bars[0].items()
            spread = {"min": min(found), "mean": round(mean(found), 5), "max": max(found)} if found else {}
            met = all(bar["met"] for bar in bars)
            rows.append({
                **about,
                "figure": figure,
                sense: value,
                **spread,
                "unknown": len(bars) - len(found),
                "met": met,
            })
    return rows


def constant_in_size(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much more a join costs the service in the largest mesh than in the smallest: 1.25 times, at most."""
    costs: dict[int, dict[int, list[float]]] = {}
    for line in lines:
        if line["section"] == "service" and "figures" in line:
            by_size = costs.setdefault(line["max_peers"], {})
            by_size.setdefault(line["peers"], []).append(line["figures"]["messages_per_join"])
    rows = []
    for links, by_size in sorted(costs.items()):
        small, large = min(by_size), max(by_size)
        if small < large:
            ratio = round(mean(by_size[large]) / mean(by_size[small]), 3)
            about = {"section": "service", "peers": large, "max_peers": links, "seeds": len(by_size[large])}
            figure = {"figure": f"messages_per_join against {small} peers", "at_most": 1.25, "mean": ratio}
            rows.append({**about, **figure, "met": ratio <= 1.25})
    return rows


def carry_out(runs: Runs, todo: Iterable[tuple[Size, int, list[str]]], jobs: int) -> None:
    """Measure all these meshes, so many at once."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    pool = ThreadPoolExecutor(jobs)
    try:
        for done in [pool.submit(runs.one, *mesh) for mesh in todo]:
            done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runs.end()


def show(line: dict[str, Any]) -> str:
    head = f"{line['section']:<13}{line['peers']:>6} peers {line['max_peers']:>2} links"
    if "figure" in line:
        bar = f"at most {line['at_most']:g}" if "at_most" in line else f"at least {line['at_least']:g}"
        spread = "  ".join(f"{name} {line[name]:g}" for name in ("min", "mean", "max") if name in line)
        return f"{head}  {'met   ' if line['met'] else 'FAILED'} {line['figure']} {bar}: {spread}"
    if "bars" in line:
        bars = ", ".join(f"{name} {bar['is']}{'' if bar['met'] else ' (!)'}" for name, bar in line["bars"].items())
        return f"{head}  seed {line['seed']:<3} {bars}  [{line['wall_s']:g} s, {line['peak_mib']} MiB]"
    return f"{head}  {line.get('because') or line.get('skipped') or line.get('error')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="100 peers and one seed")
    parser.add_argument("--seeds", type=int, help="how many: 1 and up (default 10)")
    parser.add_argument("--section", nargs="+", choices=list(SECTIONS), help="only these")
    parser.add_argument("--peers", type=int, nargs="+", help="only meshes of so many peers")
    parser.add_argument("--links", type=int, nargs="+", help="only meshes with so many links for each peer")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--limit", type=int, default=3600, help="seconds that a section may take (default %(default)s)")
    parser.add_argument(
        "--without-dht", action="store_true", help="switch Kademlia off: faster, and not the real thing"
    )
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        (peers, links), seed, names = options.work
        work((peers, links), seed, names, options.limit, dht=not options.without_dht)
        return
    options.seeds = options.seeds or (1 if options.quick else 10)
    began = perf_counter()
    runs = Runs(
        lambda line: print(json.dumps(line) if options.json else show(line), flush=True),
        options.limit,
        dht=not options.without_dht,
    )
    carry_out(runs, meshes(options), options.jobs)
    rows = summary(runs.lines) + constant_in_size(runs.lines)
    met = all(row["met"] for row in rows)
    if options.json:
        wall = round(perf_counter() - began, 1)
        print(json.dumps({"summary": rows, "met": met, "wall_s": wall, "python": sys.version.split()[0]}))
    else:
        print(*(show(row) for row in rows), sep="\n")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
