"""Bad cables: one link against bare aiortc, and a mesh of six under the same conditions.

Each peer's cable is bad in its outgoing direction, as with netem on its interface: a round trip takes twice the delay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from tests.netlab.lab import Lab, LabError, PeerProcess, Process
from tests.netlab.verdict import (
    LINK_ENDS,
    Case,
    Report,
    all_entered,
    all_linked,
    judge_broadcasts,
    percentile,
    reasons,
    timeouts,
)

URL = "ws://10.9.0.2:8080"
CONDITIONS: dict[str, dict[str, float]] = {
    "clean": {},
    "delay20": {"delay": 20},
    "delay100": {"delay": 100},
    "loss1": {"loss": 1},
    "loss5": {"loss": 5},
    "loss20": {"loss": 20},
    "10mbit": {"rate": 10_000, "queue": 200},
    "1mbit": {"rate": 1_000, "queue": 500},
    "reorder": {"reorder": 10, "late": 5},
    "reorder-hard": {"delay": 20, "reorder": 25, "late": 20},
    "dup": {"dup": 10},
    "delay50loss2": {"delay": 50, "loss": 2},
    "1mbit-loss20": {"rate": 1_000, "queue": 500, "loss": 20},
}
SIDES = ("aiortc", "link", "mesh")
SIZES = (1024, 65536)
"""Bytes of the messages of a flood."""
PINGS = 60.0
"""Seconds for direct messages after a flood, of which much may still wait before them: 4 MiB at 1 Mbit/s take 34 s."""
LOSSY = 20.0
"""Per cent of loss with which SCTP may carry so little that a flood lasts for longer than that."""
OPENED = 10.0
"""Seconds until a link is open, whatever the cable: it takes a dozen packets each way, of which some are lost."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=["single", "many"], help="default: both")
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS), choices=CONDITIONS, metavar="CONDITION",
                        help=", ".join(CONDITIONS))  # fmt: skip
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES, help="what a single link is of")
    parser.add_argument("--seconds", type=float, default=3, help="of each flood; of broadcasts, at least 10")


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    chosen: dict[str, Case] = {}
    if options.what != "many":
        for condition in options.conditions:
            for side in options.sides:
                measure = partial(mesh, condition) if side == "mesh" else partial(bare, side)
                chosen[f"single {condition} {side}"] = partial(single, condition, measure, options.seconds)
    if options.what != "single":
        for condition in options.conditions:
            chosen[f"many {condition}"] = partial(many, condition, max(options.seconds, 10))
    return chosen


def single(condition: str, measure: Any, seconds: float, lab: Lab, report: Report) -> None:
    for cable in lab.lan(2, bad=True):
        cable.set("up", **CONDITIONS[condition])
    lab.serve()
    measure(lab, report, seconds)


class Bare(Process):
    """A process of `bare.py`."""

    def __init__(self, lab: Lab, space: str, side: str, role: str) -> None:
        command = lab.spaces[space].command(sys.executable, "-m", "tests.netlab.bare", side, role)
        super().__init__(lab, role, command)

    def hear(self, kind: str, timeout: float, since: float = 0) -> dict[str, Any]:
        """Its line of a kind. Raises LabError if it does not come."""
        lines = self.wait(kind, timeout, since=since)
        if not lines:
            raise LabError(f"{self.name} told nothing of {kind!r} within {timeout:g} s; see {self.err}")
        return lines[-1]


def bare(side: str, lab: Lab, report: Report, seconds: float) -> None:
    offerer, answerer = Bare(lab, "p1", side, "offerer"), Bare(lab, "p2", side, "answerer")
    answerer.write(json.dumps(offerer.hear("description", 30)))
    offerer.write(json.dumps(answerer.hear("description", 30)))
    report["open_s"] = offerer.hear("open", 60)["s"]
    for size in SIZES:
        since = time.monotonic()
        offerer.write(json.dumps({"do": "flood", "size": size, "seconds": seconds}))
        report[f"{size}_MB_per_s"] = answerer.hear("arrived", seconds + 40, since)["MB_per_s"]
        offerer.hear("flooded", 40, since)
    offerer.write(json.dumps({"do": "pings", "count": 200, "seconds": 5}))
    report["ping_ms"] = spread(offerer.hear("pinged", 40)["ms"])


def mesh(condition: str, lab: Lab, report: Report, seconds: float) -> None:
    """Messages go through or wait; the link stays, however slow."""
    peers = [lab.peer(name, URL) for name in ("p1", "p2")]
    entered = all_entered(peers)
    linked = all_linked(peers, timeout=60)
    report.due_within("open_s", linked and round(max(0, linked - entered), 2), OPENED)
    if not linked:
        return
    sender, receiver = peers
    for size in SIZES:
        since = time.monotonic()
        sender.do("flood", to=receiver.id, size=size, seconds=seconds)
        flooded = sender.wait("flooded", seconds + 40, since=since)
        report[f"{size}_MB_per_s"] = flooded[0]["MB_per_s"] if flooded else None
        report.due_none(f"{size}_error", flooded[0]["error"] if flooded else "it does not end")
    sender.do("pings", to=receiver.id, count=200, seconds=PINGS)
    pinged = sender.wait("pinged", PINGS + 15)
    times = pinged[0]["ms"] if pinged else []
    report["ping_ms"] = spread(times)
    report.due_none("ping_error", pinged[0]["error"] if pinged else "it does not end")
    can = CONDITIONS[condition].get("loss", 0) < LOSSY
    report.due(bool(times) or not can, f"no direct message was acknowledged within {PINGS:g} s")
    judge_link(report, peers)


def judge_link(report: Report, peers: list[PeerProcess]) -> None:
    report.due_none("timed_out", timeouts(peers))
    report.due_none("ends", reasons(peers, *LINK_ENDS))


def spread(times: list[float]) -> dict[str, float | None]:
    return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "max": percentile(times, 1)}


def many(condition: str, seconds: float, lab: Lab, report: Report) -> None:
    """Six peers, linked before the cables become bad: everything arrives once, receipts are exact, nobody times out."""
    cables = lab.lan(6, bad=True)
    lab.serve()
    peers = [lab.peer(f"p{i}", URL) for i in range(1, 7)]
    all_entered(peers)
    all_linked(peers, 2)
    for cable in cables:
        cable.set("up", **CONDITIONS[condition])
    for peer in peers:
        peer.do("broadcast", count=int(seconds * 2), rate=2, size=500, tag="many")
    for peer in peers:
        peer.wait("broadcast_done", seconds + 60)
    judge_broadcasts(report, peers, "many")
    report.due_none("timed_out", timeouts(peers))
    report["ends"] = reasons(peers, *LINK_ENDS)
