"""A flat LAN: how soon it forms, broadcasts, and direct messages between all pairs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from tests.netlab.lab import Lab
from tests.netlab.verdict import Case, Report, all_entered, all_linked, judge_broadcasts, judge_directs, timeouts

URL = "ws://10.9.0.2:8080"
LINKED = 2.0
"""Seconds after the last has joined until all have a link."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--max-peers", type=int, default=3, help="links of each")
    parser.add_argument("--rate", type=float, default=20, help="broadcasts a second, of all together")
    parser.add_argument("--seconds", type=float, default=10)


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    def lan(lab: Lab, report: Report) -> None:
        lab.lan(options.peers)
        lab.serve()
        began = time.monotonic()
        peers = [lab.peer(f"p{i}", URL, max_peers=options.max_peers) for i in range(1, options.peers + 1)]
        entered = all_entered(peers)
        report["all_entered_s"] = round(entered - began, 2)
        linked = all_linked(peers)
        report.due_within("all_linked_s", linked and round(max(0, linked - entered), 2), LINKED)
        rate = options.rate / len(peers)
        for peer in peers:
            peer.do("broadcast", count=max(1, int(options.seconds * rate)), rate=rate, tag="lan")
        for peer in peers:
            peer.wait("broadcast_done", options.seconds + 70)
        judge_broadcasts(report, peers, "lan")
        judge_directs(report, peers)
        report["links"] = [peer.links for peer in peers]
        report.due_none("timed_out", timeouts(peers))

    return {"lan": lan}
