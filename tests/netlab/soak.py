"""A soak: processes of a LAN broadcast and send all the time, while one of them is killed and replaced now and then.

Half of the processes live from beginning to end. The others are killed in turn. With `--hogs`, so many busy processes
take the machine's cores: the mesh may become slow, and nothing may be lost, doubled or blamed for it.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import linear_regression

from attrs import asdict, define, frozen

from tests.netlab.lab import Lab, LabError, PeerProcess, Process, until
from tests.netlab.verdict import (
    LINK_ENDS,
    Case,
    Report,
    all_entered,
    all_linked,
    arrivals,
    hush,
    percentile,
    untrue_failures,
)

URL = "ws://10.9.0.2:8080"
SETTLED = 5.0
"""Seconds after joining, and before being killed, in which a peer is not judged by what it misses or has sent."""
SETTLED_AMONG_HOGS = 15.0
"""The same before being killed, beside busy processes: what is late then is not lost, but comes to a dead peer."""
WARM = 600.0
"""Seconds in which memory may grow: caches fill, and keep what a ttl of a minute and ids of ten ask for."""
ENOUGH = 1800.0
"""Seconds after that from which a growth can be told from noise; below it is reported, not judged."""
GROWTH = 2.0
"""MiB an hour that the memory of a process may grow."""
LINKS_FOR_EACH_KILL = 6.0
"""Links that a death may open: three that the dead had are replaced, and its successor opens three."""
TTL = 60.0
"""Seconds after which a broadcast that has not come may stay away: the default of the config."""
DEADLINE = 40.0
"""Seconds that a direct message may take."""
STATES = 15.0
"""Seconds between two looks at memory."""
LATE = re.compile(r"too slow|behind|does not send|queue was full|lagg|overload|no progress", re.IGNORECASE)
"""Reasons to close a link that blame a peer for being slow."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=float, default=20, help="broadcasts a second, of all together")
    parser.add_argument("--kill-every", type=float, default=30, metavar="SECONDS")
    parser.add_argument("--hogs", type=int, default=0, help="busy processes beside it")


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    def case(lab: Lab, report: Report) -> None:
        Soak(lab, options).run(report)

    return {"soak": case}


@define
class Life:
    """One process in the place of a peer, from joining to being killed."""

    peer: PeerProcess
    is_long: bool
    killed: float | None = None
    entered: float | None = None

    def judged(self, finish: float, settled: float) -> tuple[float, float]:
        """The span in which everything is due, from it and at it; empty if it never joined."""
        if self.entered is None:
            return finish, finish
        return self.entered + SETTLED, finish if self.killed is None else self.killed - settled


@frozen
class Resources:
    """What a process that is alone should not have more of than before."""

    fds: int
    tasks: int

    def exceeds(self, other: Resources) -> bool:
        return self.fds > other.fds or self.tasks > other.tasks


class Soak:
    def __init__(self, lab: Lab, options: argparse.Namespace) -> None:
        self.lab = lab
        self.options = options
        self.dice = random.Random(1)
        self.lives: list[Life] = []
        self.living: dict[str, Life] = {}
        self.finish = 0.0

    def run(self, report: Report) -> None:
        options = self.options
        self.lab.lan(options.peers)
        self.lab.serve()
        first = self.begin(1)
        all_entered([first.peer])
        time.sleep(SETTLED)
        alone = resources(first.peer)
        for number in range(2, options.peers + 1):
            self.begin(number)
        peers = [life.peer for life in self.lives]
        all_entered(peers)
        all_linked(peers)
        hogs = [Process(self.lab, f"hog{n}", ["sh", "-c", "while :; do :; done"]) for n in range(options.hogs)]
        for life in self.lives:
            self.talk(life)
        began = time.monotonic()
        kills = self.work(began)
        hush([life.peer for life in self.living.values()])
        self.finish = time.monotonic()
        until(lambda: not any(self.missing()), TTL)
        report["minutes"] = round((self.finish - began) / 60, 1)
        report["kills"] = kills
        report["hogs"] = len(hogs)
        self.judge_deliveries(report)
        self.judge_directs(report)
        self.judge_links(report, began, kills)
        self.judge_memory(report, began)
        for hog in hogs:
            hog.stop()
        self.judge_rest(report, first, alone)

    # --- at work ------------------------------------------------------------------------------------------------------

    def begin(self, number: int) -> Life:
        space = f"p{number}"
        count = sum(life.peer.space.name.endswith(f"-{space}") for life in self.lives)
        peer = self.lab.peer(space, URL, f"{space}.{count}", state_every=STATES)
        life = Life(peer, number <= self.options.peers // 2)
        self.living[space] = life
        self.lives.append(life)
        return life

    def talk(self, life: Life) -> None:
        life.peer.do(
            "broadcast", count=10**9, rate=self.options.rate / self.options.peers, size=500, tag="soak", ttl=TTL
        )

    def work(self, began: float) -> int:
        """Send a direct message a second, and kill and replace a process now and then; how many were killed."""
        options = self.options
        kill_at, kills = began + options.kill_every, 0
        short = range(options.peers // 2 + 1, options.peers + 1)
        while (now := time.monotonic()) < began + options.minutes * 60:
            time.sleep(1)
            ready = [life.peer for life in self.living.values() if life.peer.of("entered")]
            if len(ready) > 1:
                sender, receiver = self.dice.sample(ready, 2)
                sender.do("send", to=[receiver.id], tag=f"d{int(now - began)}", deadline=DEADLINE)
            if now > kill_at:
                kill_at += options.kill_every
                number = short[kills % len(short)]
                kills += 1
                old = self.living[f"p{number}"]
                old.killed = time.monotonic()
                old.peer.kill()
                self.talk(self.begin(number))
        return kills

    # --- judging ------------------------------------------------------------------------------------------------------

    def joined(self) -> Iterator[Life]:
        for life in self.lives:
            entered = life.peer.of("entered")
            if entered:
                life.entered = entered[0]["at"]
                yield life

    def due(self) -> Iterator[tuple[Life, int, float, Life]]:
        """Each delivery that is due: who sent, its number, when, and to whom."""
        lives = list(self.joined())
        settled = SETTLED_AMONG_HOGS if self.options.hogs else SETTLED
        spans = [(life, *life.judged(self.finish, settled)) for life in lives]
        for sender, since, last in spans:
            for x in sender.peer.of("sent"):
                if since <= x["at"] <= last:
                    for life, first, end in spans:
                        if life is not sender and first <= x["at"] <= end:
                            yield sender, x["n"], x["at"], life

    def missing(self) -> list[tuple[str, int, float, str]]:
        has = {life.peer.name: arrivals(life.peer, "soak")[0] for life in self.joined()}
        return [
            (sender.peer.name, number, round(at, 1), life.peer.name)
            for sender, number, at, life in self.due()
            if (sender.peer.id, number) not in has[life.peer.name]
        ]

    def judge_deliveries(self, report: Report) -> None:
        lives = list(self.joined())
        report["due"] = sum(1 for _ in self.due())
        report.due(report["due"] > 0, "nothing was due")
        lost = self.missing()
        report.due_none("missing", len(lost))
        report["lost"] = lost[:20]
        found = [arrivals(life.peer, "soak") for life in lives]
        report.due_none("twice", sum(twice for _, twice in found))
        delays = [x["ms"] for first, _ in found for x in first.values()]
        report["ms"] = {f"p{100 * part:g}": percentile(delays, part) for part in (0.5, 0.9, 0.99, 0.999, 1)}
        waited = [x["waited"] for life in lives for x in life.peer.of("sent")]
        report["publisher_waited_s"] = {"p99": percentile(waited, 0.99), "max": percentile(waited, 1)}
        receipts = [x for life in lives for x in life.peer.of("receipt")]
        report["receipts"] = len(receipts)
        report["receipts_failed"] = sum(x["kind"] != "Delivered" for x in receipts)
        report.due_none("said_to_have_failed_but_arrived", untrue_failures([life.peer for life in lives], "soak"))
        report["reached"] = dict(sorted(Counter(x["reached"] for x in receipts).items()))
        joining = [life.peer.name for life in self.living.values() if life.entered is None]
        report["never_joined"] = joining

    def judge_directs(self, report: Report) -> None:
        """None fails whose receiver lives all the time, and what was acknowledged has arrived, once."""
        lives = {life.peer.id: life for life in self.joined()}
        sent = [x for life in lives.values() for x in life.peer.of("sent_direct")]
        arrived = Counter((life.peer.id, x["o"], x["tag"]) for life in lives.values() for x in life.peer.of("direct"))
        failed, untrue = [], []
        for origin, life in lives.items():
            for x in life.peer.of("sent_direct"):
                receiver = lives[x["to"]]
                if receiver.killed is not None and receiver.killed < x["at"]:
                    continue
                if x["error"] is not None:
                    failed.append((life.peer.name, receiver.peer.name, x["error"], x["s"], round(x["at"], 1)))
                elif (receiver.peer.id, origin, x["tag"]) not in arrived:
                    untrue.append((life.peer.name, receiver.peer.name, x["tag"]))
        report["directs"] = len(sent)
        report.due_none("directs_failed", failed)
        report.due_none("directs_acknowledged_but_lost", untrue)
        report.due_none("directs_twice", sum(count - 1 for count in arrived.values()))
        report["directs_s"] = {f"p{100 * part:g}": percentile((x["s"] for x in sent), part) for part in (0.5, 0.99, 1)}

    def judge_links(self, report: Report, began: float, kills: int) -> None:
        """Links end where a process was killed, or because there were better ones; nobody is blamed for being slow."""
        lives = {life.peer.id: life for life in self.joined()}
        ends: Counter[str] = Counter()
        blamed: Counter[str] = Counter()
        for life in lives.values():
            for x in life.peer.of(*LINK_ENDS, since=began):
                other = lives.get(x["peer_id"])
                dead = other is None or (other.killed is not None and other.killed <= x["at"])
                reason = str(x.get("reason", x["ev"]))
                ends[("killed: " if dead else "") + reason[:100]] += 1
                if not dead and (x["ev"] == "PeerTimedOut" or LATE.search(reason)):
                    blamed[reason[:100]] += 1
        report["ends"] = dict(ends.most_common(12))
        report.due_none("blamed", dict(blamed))
        opened = sum(len(life.peer.of("PeerConnected", since=began)) for life in lives.values()) / 2
        report["links_opened"] = opened
        report["links_opened_for_each_kill"] = round(opened / kills, 1) if kills else None
        most = LINKS_FOR_EACH_KILL * max(1, kills)
        report.due(opened <= most, f"{opened:g} links were opened for {kills} kills: more than {most:g}")

    def judge_memory(self, report: Report, began: float) -> None:
        """The memory of those who lived all the time, by a line through what it was after the first minutes."""
        spent = self.finish - began
        growth = {}
        states = defaultdict(list)
        for life in self.joined():
            if life.is_long:
                told = [x for x in life.peer.of("state") if began + WARM <= x["at"] <= self.finish]
                growth[life.peer.name] = growth_an_hour([(x["at"], x["rss"]) for x in told])
                for x in life.peer.of("state")[:: max(1, int(60 / STATES))]:
                    states[life.peer.name].append([x["rss"], x["fds"], x["tasks"], x["cpu"]])
        report["growth_MiB_an_hour"] = growth
        report["rss_fds_tasks_cpu"] = dict(states)
        if spent >= WARM + ENOUGH:
            worst = max((one for one in growth.values() if one is not None), default=0.0)
            report.due(worst < GROWTH, f"memory grows by {worst:g} MiB an hour")

    def judge_rest(self, report: Report, first: Life, alone: Resources) -> None:
        """When all the others have left, the first has the descriptors and tasks again that it began with."""
        others = [life.peer for life in self.living.values() if life is not first]
        for peer in others:
            peer.do("leave")
        for peer in others:
            peer.wait("left", 30)
            peer.stop()
        deadline = time.monotonic() + 90
        while (now := resources(first.peer)).exceeds(alone) and time.monotonic() < deadline:
            time.sleep(1)
        report["alone_before_and_after"] = [asdict(alone), asdict(now)]
        report.due(not now.exceeds(alone), f"descriptors or tasks are left: {now} after {alone}")


def resources(peer: PeerProcess) -> Resources:
    """What this peer takes now."""
    began = time.monotonic()
    peer.do("state", tag="asked")
    if not until(lambda: any(x["tag"] == "asked" for x in peer.of("state", since=began)), 30):
        raise LabError(f"{peer.name} does not tell its state")
    told = next(x for x in peer.of("state", since=began) if x["tag"] == "asked")
    return Resources(told["fds"], told["tasks"])


def growth_an_hour(samples: Sequence[tuple[float, float]]) -> float | None:
    """The slope of a line through (seconds, MiB), in MiB an hour; None with too few samples."""
    if len(samples) < 4:
        return None
    return round(linear_regression(*zip(*samples, strict=True)).slope * 3600, 2)
