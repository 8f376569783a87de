"""Two peers behind NATs of all kinds, with several sets of ICE servers, good and broken: whether and when they link."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import TypeAlias

from tests.netlab.lab import Lab, until
from tests.netlab.verdict import Case, Report, all_entered, all_linked, reasons

IceServers: TypeAlias = list[dict[str, str]]

URL = "ws://203.0.113.2:8080"
STUN = {"urls": "stun:203.0.113.3:3478"}
TURN = {"urls": "turn:203.0.113.3:3478?transport=udp", "username": "ann", "credential": "secret"}
TURN_TCP = {**TURN, "urls": "turn:203.0.113.3:3478?transport=tcp"}
GOOD: dict[str, IceServers] = {
    "none": [],
    "stun": [STUN],
    "turn": [TURN],
    "turn-tcp": [TURN_TCP],
    "both": [STUN, TURN],
}
BROKEN: dict[str, IceServers] = {
    "wrong-password": [STUN, {**TURN, "credential": "wrong"}],
    "wrong-user": [{**TURN, "username": "bob"}],
    "stun-silent": [{"urls": "stun:203.0.113.66:3478"}],
    "stun-refused": [{"urls": "stun:203.0.113.3:9"}],
    "stun-unresolved": [{"urls": "stun:nowhere.invalid:3478"}],
    "turn-silent": [{**TURN, "urls": "turn:203.0.113.66:3478?transport=udp"}],
    "turn-refused": [{**TURN, "urls": "turn:203.0.113.3:9?transport=udp"}],
    "turn-tcp-silent": [{**TURN, "urls": "turn:203.0.113.66:3478?transport=tcp"}],
    "turn-tcp-refused": [{**TURN, "urls": "turn:203.0.113.3:9?transport=tcp"}],
    "turn-unresolved": [{**TURN, "urls": "turn:nowhere.invalid:3478"}],
    "stun-silent-first": [{"urls": "stun:203.0.113.66:3478"}, STUN],
    "turn-silent-first": [{**TURN, "urls": "turn:203.0.113.66:3478"}, TURN],
}
IMPOSSIBLE: dict[str, IceServers] = {
    "no-password": [{"urls": TURN["urls"]}],
    "stuns": [{"urls": "stuns:203.0.113.3:5349"}],
    "port": [{"urls": "stun:203.0.113.3:99999"}],
    "turns-udp": [{**TURN, "urls": "turns:203.0.113.3:5349?transport=udp"}],
}
"""Can't ever work, whatever the network: refused before anything starts."""
SETS = GOOD | BROKEN | IMPOSSIBLE
USABLE = {
    "stun": {"stun", "both", "wrong-password", "stun-silent-first"},
    "turn": {"turn", "turn-tcp", "both", "turn-silent-first"},
}
"""Sets with a STUN or a TURN server that works."""
STRICT = {"cone+symmetric", "symmetric+cone", "symmetric+symmetric"}
"""Pairs of which neither can guess where the other's packets come from."""
LINKED_IN_PUBLIC = 2.0
"""Seconds until two public peers link, whatever their ICE servers do."""
LINKED = 5.0
"""The same where a server has to help."""
WATCH = 10.0
"""Seconds that pairs which can't link are watched."""


def build(lab: Lab, *kinds: str, turn: bool = True) -> None:
    """A public network with a signaling server at .2 and a TURN server at .3; peers p1.. behind NATs of these kinds."""
    wan = lab.space("wan")
    lab.bridge(wan, "br0", "203.0.113.1/24")
    for name, last in (("srv", 2), ("turn", 3)):
        lab.cable(lab.space(name), "eth0", wan, "br0", [f"203.0.113.{last}/24"], gateway="203.0.113.1")
    for number, kind in enumerate(kinds, 1):
        lab.nat(number, kind, wan)
    lab.serve()
    if turn:
        lab.turn("turn", "203.0.113.3")


def can_link(pair: str, ice: str) -> bool:
    """Whether these two can link at all: directly, through a hole that STUN finds, or over a TURN server."""
    return "public" in pair or ice in USABLE["turn"] or (ice in USABLE["stun"] and pair not in STRICT)


def arguments(parser: argparse.ArgumentParser) -> None:
    kinds = "cone, full, symmetric, public"
    parser.add_argument("--pairs", nargs="*", help=f"such as cone+public, of {kinds}")
    parser.add_argument("--sets", nargs="*", choices=SETS, metavar="SET", help=", ".join(SETS))


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    """Pairs behind NATs try the good sets, and a public pair all of them, unless told otherwise."""
    pairs = options.pairs or ["cone+cone", "full+symmetric", "cone+symmetric", "symmetric+symmetric", "public+public"]
    return {
        f"{pair} {ice}": partial(link, pair, ice)
        for pair in pairs
        for ice in options.sets or (SETS if pair == "public+public" else GOOD)
    }


def link(pair: str, ice: str, lab: Lab, report: Report) -> None:
    build(lab, *pair.split("+"))
    peers = [lab.peer(name, URL, ice=json.dumps(SETS[ice])) for name in ("p1", "p2")]
    if ice in IMPOSSIBLE:
        until(lambda: all(peer.of("ended", "entered") for peer in peers), 30)
        errors = [line["error"] for peer in peers for line in peer.of("ended")]
        report["errors"] = errors
        report.due(len(errors) == 2 and all("ConfigError" in error for error in errors), "it is not refused at once")
        return
    entered = all_entered(peers)
    can = can_link(pair, ice)
    linked = all_linked(peers, timeout=25 if can else WATCH)
    seconds = linked and round(max(0, linked - entered), 2)
    if can:
        report.due_within("linked_s", seconds, LINKED_IN_PUBLIC if pair == "public+public" else LINKED)
    else:
        report["linked_s"] = seconds
    report["join_s"] = [line["s"] for peer in peers for line in peer.of("entered")]
    report["failures"] = reasons(peers, "PeerFailed")
    report["watched_s"] = round(time.monotonic() - entered, 1)
