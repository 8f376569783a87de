"""Peers that can't all reach each other: whether the mesh carries what they have to say."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, starmap

from tests.netlab import nat
from tests.netlab.lab import Lab, PeerProcess, until
from tests.netlab.verdict import (
    Case,
    Report,
    all_entered,
    all_linked,
    judge_broadcasts,
    judge_directs,
    reasons,
    timeouts,
)

URL = "ws://10.9.0.2:8080"
LINKED = 40.0
"""Seconds until each has had a link."""
TTL = 60.0
"""How long broadcasts are kept for those who are not linked just now: the default of the config."""
SETTLE = 12.0
"""Seconds until what began as islands is one mesh."""
TALK = 30.0
"""Seconds of broadcasts, one a second from each."""
FAILED_DIALS = 12
"""Failures that two peers which can't link may count in a minute, both together: 6 attempts, ever further apart."""


def judge(report: Report, peers: Sequence[PeerProcess], impossible: int) -> None:
    """Broadcasts for a while, then direct messages between all pairs.

    `impossible` pairs of peers can never link. Where few can link to all, some take turns at it: receipts count whom a
    broadcast reaches at once, and need not tell of all.
    """
    entered = all_entered(peers)
    began = time.monotonic()
    until(lambda: all(peer.of("PeerConnected") for peer in peers), LINKED)
    linked = [peer.of("PeerConnected")[0]["at"] for peer in peers if peer.of("PeerConnected")]
    report.due(len(linked) == len(peers), f"{len(linked)} of {len(peers)} had a link within {LINKED:g} s")
    report["all_linked_s"] = round(max([entered, *linked]) - entered, 1)
    time.sleep(SETTLE)
    for peer in peers:
        peer.do("broadcast", count=int(TALK), rate=1, size=200, tag="b")
    for peer in peers:
        peer.wait("broadcast_done", TALK + 70)
    judge_broadcasts(report, peers, "b", patience=TTL, exact=False)
    judge_directs(report, peers)
    report["hops"] = dict(Counter(x["hops"] for peer in peers for x in peer.of("direct")))
    for peer in peers:
        peer.do("state")
    until(lambda: all(peer.of("state") for peer in peers), 10)
    names = {peer.id: peer.name for peer in peers}
    report["links"] = {peer.name: sorted(names[x] for x in peer.of("state")[-1]["peers"]) for peer in peers}
    minutes = (time.monotonic() - began) / 60
    report["watched_s"] = round(minutes * 60)
    failed = sum(len(peer.of("PeerFailed")) for peer in peers)
    report["failed_dials"] = failed
    limit = FAILED_DIALS * max(1, minutes) * impossible
    report.due(failed <= limit, f"{failed} failed dials: more than {limit:.0f} for {impossible} pairs that can't link")
    report["reasons"] = reasons(peers, "PeerFailed", "PeerDisconnected")
    report.due_none("timed_out", timeouts(peers))


def nats(*kinds: str, ice: str = "stun", max_peers: int = 3) -> Case:
    def case(lab: Lab, report: Report) -> None:
        nat.build(lab, *kinds)
        servers = json.dumps(nat.SETS[ice])
        peers = [lab.peer(f"p{i}", nat.URL, ice=servers, max_peers=max_peers) for i in range(1, len(kinds) + 1)]
        impossible = sum(not nat.can_link(f"{a}+{b}", ice) for a, b in combinations(kinds, 2))
        judge(report, peers, impossible)

    return case


def hermit(lab: Lab, report: Report, count: int = 6) -> None:
    """Nobody reaches the last peer but the first."""
    lab.lan(count)
    lab.serve()
    for i in range(2, count):
        for rule in (f"INPUT -s 10.9.0.{10 + i}", f"OUTPUT -d 10.9.0.{10 + i}"):
            lab.spaces[f"p{count}"](f"iptables -A {rule} -j DROP")
    peers = [lab.peer(f"p{i}", URL) for i in range(1, count)]
    all_entered(peers)
    all_linked(peers, 2)  # the last comes when the others have their links
    judge(report, [*peers, lab.peer(f"p{count}", URL)], count - 2)


def families(lab: Lab, report: Report) -> None:
    """p1 and p2 have IPv4 alone, p3 and p4 IPv6 alone, p5 has both: those of two servers meet through it."""
    lab.lan(5, v6=True)
    for version, names in ((6, ("p1", "p2")), (4, ("p3", "p4"))):
        for name in names:
            lab.spaces[name](f"ip -{version} addr flush dev eth0")
    lab.serve("srv", "10.9.0.2")
    lab.serve("srv", "fd00:9::2", name="server6")
    v4, v6 = URL, "ws://[fd00:9::2]:8080"
    urls = {"p1": v4, "p2": v4, "p3": v6, "p4": v6, "p5": f"{v4},{v6}"}
    judge(report, list(starmap(lab.peer, urls.items())), 4)


CASES: dict[str, Callable[[Lab, Report], None]] = {
    "two-symmetric-and-public": nats("symmetric", "symmetric", "public"),
    "mixed": nats("symmetric", "symmetric", "symmetric", "cone", "cone", "public"),
    "mixed-wide": nats("symmetric", "symmetric", "symmetric", "cone", "cone", "public", max_peers=5),
    "all-symmetric-turn": nats("symmetric", "symmetric", "symmetric", "symmetric", ice="turn"),
    "hermit": hermit,
    "families": families,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    return {name: CASES[name] for name in options.cases or CASES}
