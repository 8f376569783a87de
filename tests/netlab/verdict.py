"""What an experiment found, and what was due."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from tests.netlab.lab import Lab, LabError, Line, PeerProcess, until

LINK_ENDS = ("PeerDisconnected", "PeerTimedOut", "PeerEvicted")
"""Events of which exactly one ends what a `PeerConnected` began."""


class Report:
    """Figures of one case, and what was due and did not come."""

    def __init__(self, case: str, slack: float = 1.0) -> None:
        self.case, self.slack = case, slack
        self.figures: dict[str, Any] = {}
        self.failed: list[str] = []

    def __setitem__(self, name: str, figure: Any) -> None:
        self.figures[name] = figure

    def __getitem__(self, name: str) -> Any:
        return self.figures[name]

    def due(self, holds: bool, otherwise: str) -> None:
        """Note a failure unless this holds."""
        if not holds:
            self.failed.append(otherwise)

    def due_within(self, name: str, seconds: float | None, limit: float) -> None:
        """Note a figure that has to come, within a limit times the slack."""
        self[name] = seconds
        limit *= self.slack
        if seconds is None:
            self.failed.append(f"{name}: never")
        elif seconds > limit:
            self.failed.append(f"{name}: {seconds:g} s instead of {limit:g} s")

    def due_none(self, name: str, found: Any) -> None:
        """Note a figure that has to be 0 or empty."""
        self[name] = found
        if found:
            self.failed.append(f"{name}: {str(found)[:200]}")

    def as_json(self) -> dict[str, Any]:
        return {"case": self.case, **self.figures, "failed": self.failed}


Case: TypeAlias = Callable[[Lab, Report], None]
"""Builds its network in a lab, watches, and reports."""


def attempt(title: str, case: Case, *, logs: str | None = None, slack: float = 1.0) -> Report:
    """Run a case in a lab of its own. Errors and tracebacks in what processes logged are failures too."""
    report = Report(title, slack)
    with Lab(title.replace(" ", "-").replace("+", "-"), logs=logs, slack=slack) as lab:
        try:
            case(lab, report)
        except LabError as error:
            report.failed.append(str(error))
        found = complaints(lab)
        report["complaints"] = found
        wrong = [line for line in found if line.startswith(("ERROR", "Traceback"))]
        report.due(not wrong, f"errors in logs: {wrong}")
        report.due_none("crashed", crashes(lab))
        report.due_none("links_without_one_end", [x for peer in lab.peers.values() for x in uneven_links(peer)])
        report["logs"] = str(lab.folder)
    return report


# --- waiting for what is due ------------------------------------------------------------------------------------------


def all_entered(peers: Iterable[PeerProcess], timeout: float = 60) -> float:
    """Wait until all have joined; the moment when the last had. Raises LabError if one does not."""
    moments: list[float] = []
    for peer in peers:
        peer.wait("entered", timeout)
        assert peer.id
        moments.append(peer.of("entered")[0]["at"])
    return max(moments)


def all_linked(peers: Sequence[PeerProcess], count: int = 1, timeout: float = 40) -> float | None:
    """Wait until each has so many links; the moment when the last first had them, None if that does not come."""
    if not until(lambda: all(peer.links >= count for peer in peers), timeout):
        return None
    now = time.monotonic()
    moments = [min((x["at"] for x in peer.of("PeerConnected") if x["links"] >= count), default=now) for peer in peers]
    return max(moments)


def hush(peers: Iterable[PeerProcess]) -> None:
    """End the broadcasts of those who live, and wait until they have ended."""
    living = [peer for peer in peers if peer.lives]
    for peer in living:
        peer.do("hush")
    for peer in living:
        peer.wait("broadcast_done", 60)


# --- what arrived -----------------------------------------------------------------------------------------------------


def percentile(values: Iterable[float], part: float) -> float | None:
    """The smallest value that so large a part of them does not exceed, None without values."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(part * len(ordered)) - 1)], 3) if ordered else None


def arrivals(peer: PeerProcess, tag: str) -> tuple[dict[tuple[str, int], Line], int]:
    """The broadcasts with a tag that a peer has, each as it first came, and how many came again."""
    first: dict[tuple[str, int], Line] = {}
    twice = 0
    for line in peer.of("got"):
        if line["tag"] == tag:
            twice += (line["o"], line["n"]) in first
            first.setdefault((line["o"], line["n"]), line)
    return first, twice


def untrue_failures(peers: Sequence[PeerProcess], tag: str) -> int:
    """How many broadcasts were said to have reached nobody, and are there."""
    somewhere = {key for peer in peers for key in arrivals(peer, tag)[0]}
    return sum(
        x["kind"] == "Failed" and x["reached"] == 0 and (peer.id, x["n"]) in somewhere
        for peer in peers
        for x in peer.of("receipt")
        if x["tag"] == tag
    )


def absent(peers: Sequence[PeerProcess], tag: str) -> int:
    """How many broadcasts with a tag are still missing, at all the others."""
    sent = {peer.id: [x["n"] for x in peer.of("sent") if x["tag"] == tag] for peer in peers}
    missing = 0
    for peer in peers:
        has, _ = arrivals(peer, tag)
        missing += sum((origin, n) not in has for origin, numbers in sent.items() if origin != peer.id for n in numbers)
    return missing


def judge_broadcasts(
    report: Report, peers: Sequence[PeerProcess], tag: str, *, patience: float = 30, exact: bool = True
) -> None:
    """Each broadcast with a tag is due at each other peer, once; with `exact`, its receipt tells of all of them."""
    sent = sum(x["tag"] == tag for peer in peers for x in peer.of("sent"))

    def receipts() -> list[Line]:
        return [x for peer in peers for x in peer.of("receipt") if x["tag"] == tag]

    until(lambda: absent(peers, tag) == 0 and len(receipts()) == sent, patience)
    report.due_none("said_to_have_failed_but_arrived", untrue_failures(peers, tag))
    found = [arrivals(peer, tag) for peer in peers]
    times = [x["ms"] for first, _ in found for x in first.values()]
    settled = receipts()
    full = sum(x["kind"] == "Delivered" and x["reached"] == len(peers) - 1 for x in settled)
    report["sent"] = sent
    report.due(sent > 0, "nothing was sent")
    report.due_none("missing", absent(peers, tag))
    report.due_none("twice", sum(twice for _, twice in found))
    report["ms"] = {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "max": percentile(times, 1)}
    report["receipts"] = len(settled)
    report["receipts_full"] = full
    report.due(full == sent or not exact, f"receipts: {full} of {sent} tell of all peers")
    report["receipt_s"] = {"p50": percentile((x["elapsed"] for x in settled), 0.5),
                           "p99": percentile((x["elapsed"] for x in settled), 0.99)}  # fmt: skip


def judge_directs(report: Report, peers: Sequence[PeerProcess], *, tag: str = "pair", patience: float = 60) -> None:
    """A direct message from each to each other: all are due, once."""
    names = {peer.id: peer.name for peer in peers}
    for peer in peers:
        peer.do("send", to=[other for other in names if other != peer.id], tag=tag, deadline=40)
    for peer in peers:
        until(lambda: sum(x["tag"] == tag for x in peer.of("sent_direct")) >= len(peers) - 1, patience)  # noqa: B023
    sent = [(peer.name, x) for peer in peers for x in peer.of("sent_direct") if x["tag"] == tag]
    due = len(peers) * (len(peers) - 1)
    arrived = Counter((peer.id, x["o"], x["n"]) for peer in peers for x in peer.of("direct") if x["tag"] == tag)
    report["directs"] = len(sent)
    report.due(len(sent) == due, f"direct messages: {len(sent)} of {due} calls have returned")
    report.due_none("directs_failed", [(name, names[x["to"]], x["error"], x["s"]) for name, x in sent if x["error"]])
    untrue = sum(x["error"] is None for _, x in sent) - len(arrived)
    report.due(untrue <= 0, f"direct messages: {untrue} were acknowledged and did not arrive")
    report.due_none("directs_twice", sum(count - 1 for count in arrived.values()))
    report["direct_s"] = {"p50": percentile((x["s"] for _, x in sent), 0.5),
                          "max": percentile((x["s"] for _, x in sent), 1)}  # fmt: skip


def timeouts(peers: Iterable[PeerProcess], since: float = 0) -> int:
    """How many links were given up because the other side seemed silent."""
    return sum(len(peer.of("PeerTimedOut", since=since)) for peer in peers)


def crashes(lab: Lab) -> dict[str, str]:
    """Peers whose mesh ended by an error after they had joined, and the error."""
    told = [(peer.name, peer.of("entered"), peer.of("ended")) for peer in lab.peers.values()]
    return {name: ended[0]["error"][:200] for name, entered, ended in told if entered and ended}


def uneven_links(peer: PeerProcess) -> list[tuple[str, str, int]]:
    """Neighbours for which the links that began, less those that ended, are not one or none: how many they are."""
    open_links = Counter(x["peer_id"] for x in peer.of("PeerConnected"))
    open_links.subtract(x["peer_id"] for x in peer.of(*LINK_ENDS))
    return [(peer.name, neighbour, count) for neighbour, count in open_links.items() if count not in {0, 1}]


def reasons(peers: Iterable[PeerProcess], *kinds: str, since: float = 0) -> dict[str, int]:
    """The most frequent reasons that events of these kinds gave."""
    found = Counter(str(x.get("reason", x["ev"]))[:100] for peer in peers for x in peer.of(*kinds, since=since))
    return dict(found.most_common(8))


def complaints(lab: Lab) -> dict[str, int]:
    """Warnings, errors and tracebacks in what processes logged, and how often."""
    found: Counter[str] = Counter()
    for path in sorted(lab.folder.glob("*.err")):
        for line in path.read_text(errors="replace").splitlines():
            for level in ("WARNING", "ERROR"):
                if f" {level} " in line:
                    found[f"{level} {line.partition(f' {level} ')[2][:110]}"] += 1
            if "Traceback (most recent call last)" in line:
                found["Traceback"] += 1
    return dict(found)
