"""How good broadcasts are: each figure over several seeds, with what it should be and what is published.

    python benchmarks/gossip.py --json                       # everything, 10 seeds: hours
    python benchmarks/gossip.py --quick                      # 200 peers, one seed: some minutes
    python benchmarks/gossip.py --section one_sender partition --seeds 3

Bare peers in virtual time, on links of 50 ms, without Kademlia. For each size and seed one mesh is assembled, not
joined peer by peer (`p2pmesh.simulation.assemble`); each section then measures in a process forked from there, so
that none disturbs another. Output, options and exit status are those of `benchmarks/overlay.py`; each row says
besides what is `published` of the protocols that this one is held against.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # run as a script, it has parts beside it

from benchmarks.gossip_measures import PUBLISHED, QUICK, SECTIONS, new_mesh
from benchmarks.overlay import Line, Runs, carry_out, meshes, show, summary
from benchmarks.overlay_measures import Size

GROWS_BY = 1.1
"""Control traffic at rest in the largest mesh, against the smallest: at most so many times."""


def work(size: Size, seed: int, sections: list[str], limit: int) -> None:
    """Assemble one mesh and measure what is asked for; prints a line for each section."""
    gc.disable()
    began = perf_counter()
    net, notes = new_mesh(size, seed)
    notes.append(f"assembled in {perf_counter() - began:.0f} s, {net.events} events, {net.now:.0f} virtual seconds")
    line = Line(size, seed, limit, notes, SECTIONS)
    for name in sections:
        line.measured(name, net)


def constant_at_rest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much more control traffic a peer has at rest in the largest mesh than in the smallest."""
    name, costs = "control_bytes_per_peer_per_s", dict[int, list[float]]()
    for line in lines:
        if line["section"] == "rest" and "figures" in line:
            costs.setdefault(line["peers"], []).append(line["figures"][name])
    if len(costs) < 2:
        return []
    small, large = min(costs), max(costs)
    ratio = round(mean(costs[large]) / mean(costs[small]), 3)
    about = {"section": "rest", "peers": large, "max_peers": 5, "seeds": len(costs[large])}
    figure = {"figure": f"{name} against {small} peers", "at_most": GROWS_BY, "mean": ratio, "met": ratio <= GROWS_BY}
    return [{**about, **figure}]


def with_published(row: dict[str, Any]) -> dict[str, Any]:
    """A row, or a line with its bars, with what others have come to beside it."""
    published = PUBLISHED.get(row["section"], {})
    if row.get("figure") in published:
        return {**row, "published": published[row["figure"]]}
    return {**row, "published": dict(published)} if published and "bars" in row else row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="200 peers and one seed")
    parser.add_argument("--seeds", type=int, help="how many: 1 and up (default 10)")
    parser.add_argument("--section", nargs="+", choices=list(SECTIONS), help="only these")
    parser.add_argument("--peers", type=int, nargs="+", help="meshes of so many peers, whatever a section is meant for")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--limit", type=int, default=3600, help="seconds that a section may take (default %(default)s)")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        (peers, links), seed, names = options.work
        work((peers, links), seed, names, options.limit)
        return
    options.seeds = options.seeds or (1 if options.quick else 10)
    options.links = None
    sizes = QUICK
    if options.peers:  # a choice of sizes, rather than a choice among those that sections have
        sizes, options.quick, options.peers = tuple((peers, 5) for peers in options.peers), True, None
    began = perf_counter()
    runs = Runs(
        lambda line: print(json.dumps(with_published(line)) if options.json else show(line), flush=True),
        options.limit,
        dht=True,
        script=__file__,
    )
    carry_out(runs, meshes(options, SECTIONS, sizes), options.jobs)
    rows = [with_published(row) for row in summary(runs.lines, SECTIONS) + constant_at_rest(runs.lines)]
    met = all(row["met"] for row in rows)
    if options.json:
        wall = round(perf_counter() - began, 1)
        print(json.dumps({"summary": rows, "met": met, "wall_s": wall, "python": sys.version.split()[0]}))
    else:
        for row in rows:
            print(show(row) + (f"   published: {row['published']}" if "published" in row else ""))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
