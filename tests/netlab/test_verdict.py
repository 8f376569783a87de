"""The judges of the experiments notice what is missing, what came twice, and what was said that is not true."""

import json
from types import SimpleNamespace

import pytest

from tests.netlab import soak
from tests.netlab.__main__ import EXPERIMENTS, main, parse
from tests.netlab.changes import Watch
from tests.netlab.lab import LabError
from tests.netlab.soak import Soak, growth_an_hour
from tests.netlab.verdict import (
    Report,
    attempt,
    judge_broadcasts,
    judge_directs,
    percentile,
    uneven_links,
    untrue_failures,
)


class Told:
    """A process of which all is known that it will tell."""

    lives = True
    links = 1

    def __init__(self, name, *lines):
        self.name = self.id = name
        self.space = SimpleNamespace(name=f"-{name.partition('.')[0]}")
        self.lines = [{"at": 100.0, **line} for line in lines]

    def of(self, *kinds, since=0):
        return [line for line in self.lines if line["ev"] in kinds and line["at"] >= since]

    def wait(self, kind, timeout=0, count=1, since=0):
        return self.of(kind, since=since)

    def do(self, what, **order):
        pass


def entered(at=0.0):
    return {"ev": "entered", "at": at}


def sent(n, at=100.0):
    return {"ev": "sent", "n": n, "tag": "soak", "at": at, "waited": 0.0}


def got(origin, n, at=100.0):
    return {"ev": "got", "o": origin, "n": n, "tag": "soak", "ms": 5.0, "at": at, "hops": 1}


def receipt(n, reached, kind="Delivered"):
    return {"ev": "receipt", "n": n, "tag": "soak", "kind": kind, "reached": reached, "elapsed": 0.1}


def broadcasts(*peers):
    report = Report("broadcasts")
    judge_broadcasts(report, peers, "soak", patience=0)
    return report


def test_broadcasts_that_all_have_once_are_what_is_due():
    a, b = Told("a", sent(0), sent(1), receipt(0, 1), receipt(1, 1)), Told("b", got("a", 0), got("a", 1))
    assert broadcasts(a, b).failed == []


def test_a_missing_broadcast_is_noticed():
    a, b = Told("a", sent(0), sent(1), receipt(0, 1), receipt(1, 1)), Told("b", got("a", 1))
    assert broadcasts(a, b).failed == ["missing: 1"]


def test_a_broadcast_that_came_twice_is_noticed():
    a, b = Told("a", sent(0), receipt(0, 1)), Told("b", got("a", 0), got("a", 0))
    assert broadcasts(a, b).failed == ["twice: 1"]


@pytest.mark.parametrize("receipts", [[], [receipt(0, 0)], [receipt(0, 1, "Failed")]])
def test_a_receipt_that_is_not_true_is_noticed(receipts):
    a, b = Told("a", sent(0), *receipts), Told("b", got("a", 0))
    assert broadcasts(a, b).failed == ["receipts: 0 of 1 tell of all peers"]


def test_a_broadcast_said_to_have_reached_nobody_that_somebody_has_is_noticed():
    a, b = Told("a", sent(0), receipt(0, 0, "Failed"), sent(1), receipt(1, 0, "Failed")), Told("b", got("a", 0))
    assert untrue_failures([a, b], "soak") == 1


def test_nothing_sent_is_no_success():
    assert broadcasts(Told("a"), Told("b")).failed == ["nothing was sent"]


def directs(*peers):
    report = Report("directs")
    judge_directs(report, peers, tag="soak", patience=0)
    return report.failed


def sent_direct(to, error=None, n=0, at=100.0):
    return {"ev": "sent_direct", "to": to, "n": n, "tag": "soak", "error": error, "s": 0.1, "at": at}


def direct(origin, n=0):
    return {"ev": "direct", "o": origin, "n": n, "tag": "soak", "ms": 5.0, "hops": 1}


def test_direct_messages_that_fail_or_are_lost_or_come_twice_are_noticed():
    b = Told("b", sent_direct("a"), direct("a"))
    assert directs(Told("a", sent_direct("b"), direct("b")), b) == []
    assert directs(Told("a", sent_direct("b"), direct("b"), direct("b")), b) == ["directs_twice: 1"]
    assert directs(Told("a", sent_direct("b")), b) == ["direct messages: 1 were acknowledged and did not arrive"]
    failed = directs(Told("a", sent_direct("b", "PeerUnreachable"), direct("b")), b)
    assert failed == ["directs_failed: [('a', 'b', 'PeerUnreachable', 0.1)]"]


# --- networks that change ---------------------------------------------------------------------------------------------


def watch(peers, fault, heal, ttl=60.0):
    watch = Watch.__new__(Watch)
    watch.peers, watch.ttl, watch.fault, watch.heal = peers, ttl, fault, heal
    return watch


def test_what_ends_its_ttl_before_the_fault_is_healed_is_not_due():
    late, early = sent(1, at=130.0) | {"tag": "t"}, sent(0, at=100.0) | {"tag": "t"}
    a, b = Told("a", early, late), Told("b")
    assert watch([a, b], fault=90.0, heal=160.0).missing([a], [b]) == {"1to2 during": 1}
    assert watch([a, b], fault=90.0, heal=160.0).missing([a, b], []) == {"1to1 during": 2}  # on one side it is
    assert watch([a, b], fault=90.0, heal=160.0, ttl=120.0).missing([a], [b]) == {"1to2 during": 2}


# --- the soak ---------------------------------------------------------------------------------------------------------


def soaked(*peers, killed=None, finish=1000.0, hogs=0):
    made = Soak.__new__(Soak)
    made.options = SimpleNamespace(hogs=hogs)
    made.lives = [soak.Life(peer, True, (killed or {}).get(peer.name)) for peer in peers]
    made.living = {peer.name: life for peer, life in zip(peers, made.lives, strict=True)}
    made.finish = finish
    return made


def test_deliveries_are_due_while_both_live():
    a = Told("a", entered(), sent(0, at=3.0), sent(1, at=50.0), sent(2, at=97.0), sent(3, at=200.0))
    b, late = Told("b", entered(), got("a", 1)), Told("late", entered(195.0))
    made = soaked(a, b, late, killed={"b": 100.0})
    assert [(number, to.peer.name) for _, number, _, to in made.due()] == [(1, "b"), (3, "late")]
    assert made.missing() == [("a", 3, 200.0, "late")]
    slow = soaked(a, b, killed={"b": 60.0}, hogs=1)
    assert list(slow.due()) == []  # it may be on its way when the receiver dies


@pytest.mark.parametrize(
    ("line", "blamed"),
    [
        ({"ev": "PeerDisconnected", "reason": "too slow: behind for 10 s"}, True),
        ({"ev": "PeerDisconnected", "reason": "it announces broadcasts that it does not send"}, True),
        ({"ev": "PeerTimedOut", "silent_for": 5.0}, True),
        ({"ev": "PeerDisconnected", "reason": "the peer closed the connection"}, False),
    ],
)
def test_who_is_blamed_for_being_slow_is_noticed(line, blamed):
    a, b = Told("a", entered(), {**line, "peer_id": "b"}), Told("b", entered())
    report = Report("links")
    soaked(a, b).judge_links(report, 0.0, 1)
    assert bool(report.failed) is blamed
    report = Report("links")
    soaked(a, b, killed={"b": 90.0}).judge_links(report, 0.0, 1)
    assert report.failed == []  # who was killed is silent


def test_direct_messages_to_those_who_were_killed_may_fail():
    a, b = Told("a", entered(), sent_direct("b", "PeerUnreachable", at=100.0)), Told("b", entered())
    for killed, failures in (({}, 1), ({"b": 90.0}, 0), ({"b": 110.0}, 1)):
        report = Report("directs")
        soaked(a, b, killed=killed).judge_directs(report)
        assert len(report.failed) == failures


def test_memory_grows_by_the_slope_of_its_line():
    assert growth_an_hour([(t, 50 + t / 3600 * 3) for t in range(0, 600, 60)]) == pytest.approx(3)
    assert growth_an_hour([(0, 50), (60, 51)]) is None


# --- running ----------------------------------------------------------------------------------------------------------


def test_times_have_limits_that_slack_stretches():
    for slack, seconds, failed in ((1, 2.5, 1), (2, 2.5, 0), (2, None, 1)):
        report = Report("times", slack)
        report.due_within("linked_s", seconds, 2.0)
        assert len(report.failed) == failed


def test_percentiles_are_values_that_were_measured():
    assert [percentile([3, 1, 2, 4], part) for part in (0, 0.5, 0.99, 1)] == [1, 2, 4, 4]
    assert percentile([], 0.5) is None


def test_a_peer_whose_mesh_crashes_is_noticed(tmp_path):
    crashed, refused = Told("a", entered(), {"ev": "ended", "error": "E"}), Told("b", {"ev": "ended", "error": "E"})

    def case(lab, report):
        lab.peers.update(a=crashed, b=refused)

    assert attempt("case", case, logs=str(tmp_path)).failed == ["crashed: {'a': 'E'}"]


def test_links_that_end_twice_or_never_are_noticed():
    begins, ends = {"ev": "PeerConnected", "peer_id": "b"}, {"ev": "PeerTimedOut", "peer_id": "b"}
    assert uneven_links(Told("a", begins, ends, begins)) == []
    assert uneven_links(Told("a", begins, ends, {**ends, "ev": "PeerDisconnected"})) == [("a", "b", -1)]
    assert uneven_links(Told("a", begins, begins)) == [("a", "b", 2)]


def test_errors_in_logs_and_labs_that_fail_are_failures(tmp_path):
    def case(lab, report):
        (lab.folder / "p1.err").write_text("2026 a INFO fine\n2026 a WARNING hm\n2026 a ERROR bad\n")
        (lab.folder / "p2.err").write_text("  + Exception Group Traceback (most recent call last):\n")
        raise LabError("no cable")

    report = attempt("case", case, logs=str(tmp_path))
    assert report["complaints"] == {"WARNING hm": 1, "ERROR bad": 1, "Traceback": 1}
    assert report.failed == ["no cable", "errors in logs: ['ERROR bad', 'Traceback']"]


@pytest.mark.parametrize("failure", [None, "it is late"])
def test_the_exit_status_tells_of_failures(monkeypatch, capsys, failure):
    def case(lab, report):
        report.due(failure is None, str(failure))

    monkeypatch.setattr("tests.netlab.__main__.unable", lambda *_: None)
    monkeypatch.setattr(EXPERIMENTS["lan"], "cases", lambda options: {"lan": case})
    assert main(["lan"]) == (failure is not None)
    assert json.loads(capsys.readouterr().out)["failed"] == [failure] * (failure is not None)


def test_where_no_networks_can_be_made_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr("tests.netlab.__main__.unable", lambda *_: "networks in a box need root")
    assert main(["lan"]) == 2
    assert capsys.readouterr().err == "networks in a box need root\n"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_lists_its_cases(name, capsys):
    assert main([name, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(EXPERIMENTS[name].cases(parse([name]))) > 0
