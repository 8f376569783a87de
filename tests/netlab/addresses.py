"""Addresses: IPv6, many interfaces, names that don't resolve, servers that don't answer."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.netlab.lab import Lab, PeerProcess
from tests.netlab.verdict import Case, Report, all_entered, all_linked, reasons

LINKED = 1.0
"""Seconds until two peers link, however many addresses they have."""
TOLD = 40.0
"""Seconds until joining fails where the server can't be reached."""


def pair(lab: Lab, report: Report, url: str) -> None:
    """Two peers: how soon they link, and how many candidates they offered."""
    peers = [lab.peer(f"p{i}", url, env={"DEBUG": "1"}) for i in (1, 2)]
    entered = all_entered(peers)
    linked = all_linked(peers, timeout=30)
    report.due_within("linked_s", linked and round(max(0, linked - entered), 2), LINKED)
    report["join_s"] = [line["s"] for peer in peers for line in peer.of("entered")]
    report["failures"] = reasons(peers, "PeerFailed")
    report["candidates"], report["checks"] = candidates(peers)


def candidates(peers: Sequence[PeerProcess]) -> tuple[int, int]:
    """By what was logged: the most candidates of one description, and how many checks began."""
    logs = [peer.err.read_text(errors="replace") for peer in peers]
    descriptions = [sdp for log in logs for sdp in re.findall(r"v=0.*?(?=\n20\d\d-|\Z)", log, re.DOTALL)]
    most = max((sdp.count("a=candidate") for sdp in descriptions), default=0)
    return most, sum(log.count("-> State.IN_PROGRESS") for log in logs)


def lan(*, v4: bool = True, v6: bool = False, more: int = 0, route: bool = False, same: bool = False,
        after: bool = False) -> Case:  # fmt: skip
    """Two peers of a LAN.

    `more` addresses of each lead nowhere; they come in the system's list before the one that does, or `after` it. With
    a `route`, what is sent to the other's is lost without an answer. `same`: both have the same, as containers do.
    """

    def case(lab: Lab, report: Report) -> None:
        lab.lan(2, v4=v4, v6=v6)
        for number, name in enumerate(("p1", "p2"), 1):
            space = lab.spaces[name]
            place = lab.bridge(space, "docker0") if after else "lo"
            for i in range(more):
                space.add_address(place, f"172.{20 if same else 20 + number}.{i}.{1 if same else number}/24")
            if route:
                space("ip route add default via 10.9.0.2")
        server = lab.spaces["srv"]
        server("iptables -A FORWARD -j DROP; iptables -A INPUT -p udp -j DROP")
        server("sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0")
        lab.serve("srv", "::" if v6 else "0.0.0.0")
        pair(lab, report, "ws://[fd00:9::2]:8080" if v6 else "ws://10.9.0.2:8080")

    return case


def unreachable(url: str, *words: str, resolver: str | None = None) -> Case:
    """One peer that can't reach the server by this address: joining fails, with one of these words."""

    def case(lab: Lab, report: Report) -> None:
        lab.lan(1)
        lab.spaces["srv"]("iptables -A INPUT -p udp -j DROP; iptables -A INPUT -p tcp --dport 9 -j DROP")
        if resolver:
            folder = Path("/etc/netns") / lab.spaces["p1"].name  # `ip netns exec` puts it in the place of /etc
            folder.mkdir(parents=True)
            (folder / "resolv.conf").write_text(f"nameserver {resolver}\n")
        peer = lab.peer("p1", url)
        peer.wait("ended", 60)
        errors = [line["error"] for line in peer.of("ended")]
        report["errors"] = errors
        report.due_within("told_s", next((line["s"] for line in peer.of("ended")), None), TOLD)
        told = bool(errors) and any(word in errors[0].lower() for word in words)
        report.due(told, f"the error does not say why: none of {', '.join(words)}")

    return case


CASES: dict[str, Case] = {
    "v4-no-route": lan(),
    "v6-only": lan(v4=False, v6=True),
    "dual": lan(v6=True),
    "ten": lan(more=10),
    "ten-gateway": lan(more=10, route=True),
    "thirty-gateway": lan(more=30, route=True),
    "sixty-gateway": lan(more=60, route=True),
    "ten-after": lan(more=10, route=True, after=True),
    "sixty-after": lan(more=60, route=True, after=True),
    "ten-same": lan(more=10, route=True, same=True),
    "name-unknown": unreachable("ws://nowhere.invalid:8080", "resol", "name"),
    "name-server-silent": unreachable("ws://nowhere.invalid:8080", "resol", "name", "no answer", resolver="10.9.0.2"),
    "server-silent": unreachable("ws://10.9.0.2:9", "no answer", "timed out"),
    "server-refuses": unreachable("ws://10.9.0.2:8081", "refused"),
    "server-absent": unreachable("ws://10.9.0.99:8080", "no answer", "route", "unreachable"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    return {name: CASES[name] for name in options.cases or CASES}
