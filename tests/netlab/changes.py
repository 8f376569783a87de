"""Networks that change under a mesh which broadcasts all the time: what is lost, and how long healing takes.

A broadcast is due at everybody whom it can reach once the fault is healed: its ttl has to last for `CATCH_UP` more.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TypeAlias

from tests.netlab import nat
from tests.netlab.lab import Lab, PeerProcess, until
from tests.netlab.verdict import (
    LINK_ENDS,
    Case,
    Report,
    all_entered,
    all_linked,
    arrivals,
    hush,
    reasons,
    untrue_failures,
)

Act: TypeAlias = Callable[[PeerProcess], object]

URL = "ws://10.9.0.2:8080"
TTL = 60.0
CATCH_UP = 15.0
"""Seconds after the fault in which peers that were apart find each other again and compare what they have."""
BEFORE = 5.0
"""Seconds of broadcasts before the fault."""
NOTICED = 7.0
"""Seconds until a peer that changed its address is in the mesh again: 5 s to notice the silence, 2 s to link."""
PERIOD = 1.0
"""Seconds between the broadcasts of each peer."""


class Watch:
    """Peers that broadcast, and on which of two sides of a fault each is."""

    def __init__(self, peers: Sequence[PeerProcess], ttl: float = TTL) -> None:
        self.peers, self.ttl = peers, ttl
        all_entered(peers)
        all_linked(peers, min(2, len(peers) - 1))
        for peer in peers:
            peer.do("broadcast", count=10**9, rate=1 / PERIOD, size=200, tag="t", ttl=ttl)
        time.sleep(BEFORE)
        self.fault = self.heal = time.monotonic()

    def struck(self) -> None:
        """The fault is there: what is sent from now on meets it."""
        self.fault = self.heal = time.monotonic()

    def healed(self) -> None:
        self.heal = time.monotonic()

    def judge(
        self, report: Report, one: Sequence[PeerProcess], two: Sequence[PeerProcess], crossed: float | None = None
    ) -> None:
        """Everything due arrives once; something sent after the fault crosses within `crossed` seconds of it."""
        hush([*one, *two])
        until(lambda: not any(self.missing(one, two).values()), self.ttl)
        report["fault_s"] = round(self.heal - self.fault, 1)
        report.due_none("missing", self.missing(one, two))
        report.due_none("twice", sum(arrivals(peer, "t")[1] for peer in (*one, *two)))
        report.due_none("said_to_have_failed_but_arrived", untrue_failures((*one, *two), "t"))
        report["sent"] = sum(len(peer.of("sent")) for peer in (*one, *two))
        later = {"1to2": self.after_fault(one, two), "2to1": self.after_fault(two, one)}
        caught_up = [x["at"] - self.heal for lines in later.values() for sent, x in lines if sent < self.heal < x["at"]]
        report["all_caught_up_s"] = round(max(caught_up), 2) if caught_up else None
        for way, lines in later.items():
            first = min((x["at"] - self.fault for _, x in lines), default=None)
            if crossed is not None:
                report.due_within(f"crossed_{way}_s", first and round(first, 2), crossed)
            elif first is not None:
                report[f"crossed_{way}_s"] = round(first, 2)
        for side, peers in (("one", one), ("two", two)):
            events = Counter(ev for peer in peers for ev in peer.read() for x in peer.of(ev, since=self.fault))
            report[f"events_{side}"] = {ev: count for ev, count in events.items() if ev[0].isupper()}
            report[f"links_{side}"] = [peer.links for peer in peers]
        report["reasons"] = reasons((*one, *two), "PeerFailed", *LINK_ENDS, since=self.fault)
        alone = [peer.name for peer in (*one, *two) if not peer.links]
        report.due(not alone, f"still without a link: {alone}")

    def missing(self, one: Sequence[PeerProcess], two: Sequence[PeerProcess]) -> dict[str, int]:
        """What is due and has not come, by its way and when it was sent."""
        found: Counter[str] = Counter()
        has = {peer.id: arrivals(peer, "t")[0] for peer in (*one, *two)}
        for (source, senders), (target, receivers) in product((("1", one), ("2", two)), repeat=2):
            for sender in senders:
                for x in sender.of("sent"):
                    if source != target and x["at"] < self.heal and x["at"] + self.ttl < self.heal + CATCH_UP:
                        continue
                    when = "before" if x["at"] < self.fault else "during" if x["at"] < self.heal else "after"
                    lost = sum((sender.id, x["n"]) not in has[peer.id] for peer in receivers if peer is not sender)
                    if lost:
                        found[f"{source}to{target} {when}"] += lost
        return dict(found)

    def after_fault(
        self, senders: Sequence[PeerProcess], receivers: Sequence[PeerProcess]
    ) -> list[tuple[float, dict[str, float]]]:
        """What was sent after the fault and crossed: when it was sent, and how it arrived."""
        sent = {(peer.id, x["n"]): x["at"] for peer in senders for x in peer.of("sent", since=self.fault)}
        return [(sent[key], line) for peer in receivers for key, line in arrivals(peer, "t")[0].items() if key in sent]


def lan(lab: Lab, count: int, ttl: float = TTL) -> Watch:
    lab.lan(count)
    lab.serve()
    return Watch([lab.peer(f"p{i}", URL) for i in range(1, count + 1)], ttl)


def single(act: Act, undo: Act, seconds: float, *, after: float = 30, crossed: float | None = None) -> Case:
    """Something happens to one of five peers, p3, and is undone."""

    def case(lab: Lab, report: Report) -> None:
        watch = lan(lab, 5)
        victim = watch.peers[2]
        others = [peer for peer in watch.peers if peer is not victim]
        act(victim)
        watch.struck()
        time.sleep(seconds)
        watch.healed()
        undo(victim)
        time.sleep(after)
        watch.judge(report, others, [victim] * victim.lives, crossed)
        if victim.lives:
            others[0].do("send", to=[victim.id], tag="after", deadline=35)
            sent = others[0].wait("sent_direct", 40)
            report["direct_after"] = [(x["error"], x["s"]) for x in sent]
            report.due(bool(sent) and sent[0]["error"] is None, "the direct message after it was not delivered")

    return case


def interface(state: str) -> Act:
    return lambda peer: peer.space(f"ip link set eth0 {state}")


def roam(peer: PeerProcess) -> None:
    """Another address, as in another network; connections over the old one are dead."""
    peer.space("ip addr add 10.9.0.33/24 dev eth0 && ip addr del 10.9.0.13/24 dev eth0")
    peer.space("ip addr add 10.9.0.33/24 dev eth0", check=False)  # it went with the first, where it was its secondary


def nothing(_: PeerProcess) -> None:
    pass


def partition(seconds: float, *, ways: str = "both", server: bool = True, ttl: float = 120, after: float = 45) -> Case:
    """Two halves of six; `server`: whether the second still reaches the server."""

    def case(lab: Lab, report: Report) -> None:
        watch = lan(lab, 6, ttl)
        one, two = watch.peers[:3], watch.peers[3:]
        hidden = [f"10.9.0.{10 + i}" for i in (1, 2, 3)]
        for peer in two:
            rules = [f"INPUT -s {address}" for address in hidden]
            if ways == "both":
                rules += [f"OUTPUT -d {address}" for address in hidden]
            if not server:
                rules += ["INPUT -s 10.9.0.2", "OUTPUT -d 10.9.0.2"]
            for rule in rules:
                peer.space(f"iptables -A {rule} -j DROP")
        watch.struck()
        time.sleep(seconds)
        watch.healed()
        for peer in two:
            peer.space("iptables -F")
        time.sleep(after)
        watch.judge(report, one, two)

    return case


def server_gone(seconds: float) -> Case:
    """The server dies, and comes again with nothing in its memory."""

    def case(lab: Lab, report: Report) -> None:
        lab.lan(5)
        server = lab.serve()
        watch = Watch([lab.peer(f"p{i}", URL) for i in range(1, 6)])
        peers = list(watch.peers)
        server.kill()
        watch.struck()
        time.sleep(seconds)
        lab.cable(lab.space("p9"), "eth0", lab.spaces["hub"], "br0", ["10.9.0.19/24"])
        if seconds > 10:
            late = lab.peer("p9", URL, "late")
            late.wait("ended", 30)
            report["joining_without_server"] = [(x["error"][:300], x["s"]) for x in late.of("ended")]
            report.due(bool(late.of("ended")), "joining without a server neither works nor ends")
        watch.healed()
        lab.serve(name="server-again")
        newcomer = lab.peer("p9", URL, "newcomer")
        newcomer.wait("PeerConnected", 60)
        linked = [round(x["at"] - watch.heal, 1) for x in newcomer.of("PeerConnected")]
        report["newcomer_linked_s"] = linked[:1]
        report.due(bool(linked), "a newcomer gets no link")
        until(lambda: all(peer.of("TransportUp", since=watch.fault) for peer in peers), 60)
        up = [[round(x["at"] - watch.heal, 1) for x in peer.of("TransportUp", since=watch.fault)] for peer in peers]
        report["transport_up_s"] = up
        report.due(all(up), "not all have joined again")
        watch.judge(report, peers[:2], peers[2:])

    return case


def rebind(how: str) -> Case:
    """The NAT of one peer forgets its mappings and uses new ports from then on."""

    def case(lab: Lab, report: Report) -> None:
        nat.build(lab, "full" if how == "full" else "cone", "cone", "cone", "cone", turn=True)
        ice = json.dumps(nat.SETS["both" if how == "turn" else "stun"])
        watch = Watch([lab.peer(f"p{i}", nat.URL, ice=ice) for i in (1, 2, 3, 4)])
        router = lab.spaces["r1"]
        masquerade = "iptables -t nat -F POSTROUTING; iptables -t nat -A POSTROUTING -o wan -j MASQUERADE"
        router(f"{masquerade} --random-fully; conntrack -F")
        watch.struck()
        time.sleep(1)
        router(masquerade)
        watch.healed()
        time.sleep(30)
        watch.judge(report, watch.peers[1:], watch.peers[:1], NOTICED + PERIOD)

    return case


def kill(number: int) -> Act:
    return lambda peer: peer.kill(number)


CASES: dict[str, Case] = {
    "down10": single(interface("down"), interface("up"), 10),
    "down40": single(interface("down"), interface("up"), 40),
    "roam": single(roam, nothing, 1, crossed=NOTICED + PERIOD),
    "stop20": single(kill(signal.SIGSTOP), kill(signal.SIGCONT), 20),
    "stop120": single(kill(signal.SIGSTOP), kill(signal.SIGCONT), 120),
    "kill": single(kill(signal.SIGKILL), nothing, 1),
    "restart": server_gone(2),
    "server60": server_gone(60),
    "partition": partition(60),
    "partition-server": partition(60, server=False),
    "partition-ttl60": partition(60, ttl=60),
    "oneway": partition(60, ways="one"),
    "rebind": rebind("cone"),
    "rebind-full": rebind("full"),
    "rebind-turn": rebind("turn"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    return {name: CASES[name] for name in options.cases or CASES}
