"""The shipped scenarios run without violations; what is none is refused with a clear message."""

import json

import attrs
import pytest

from p2pmesh.errors import ConfigError
from p2pmesh.simulation.discrete.invariants import members
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.model.obstacles import Cut
from p2pmesh.simulation.scenario import HELD, SCENARIOS, Run, load_scenario, parse_scenario, run

KEYS = {
    "peers", "max_peers", "seed", "virtual_s", "wall_s", "events", "trace_hash", "joined", "ring_cycles", "islands",
    "broadcasts", "expected", "delivered", "reliability", "redundancy", "last_hop", "latency_s", "receipts_exact",
    "control_bytes_per_peer_s", "violations",
}  # fmt: skip


SHORT = attrs.evolve(load_scenario("quiet"), settle=10.0, broadcasts=5, rest=10.0)


@pytest.mark.simulation
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_runs_without_violations(name):
    report = run(load_scenario(name), peers=24, max_peers=5, seed=1)
    assert report.violations == (), report.account
    assert report.reliability == 1.0
    assert report.ring_cycles == 1
    assert report.islands == 1
    assert report.expected > 0
    figures = report.to_json()
    assert set(figures) >= KEYS
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.simulation
def test_a_report_is_a_function_of_the_seed():
    def figures(seed):
        report = run(load_scenario("churn"), peers=12, max_peers=4, seed=seed).to_json()
        del report["wall_s"]
        return report

    assert figures(3) == figures(3)
    assert figures(3)["trace_hash"] != figures(4)["trace_hash"]


def test_hostile_peers_are_dealt_the_kinds_that_there_are():
    def kinds(plan):
        return sorted(fault.does.value for fault in plan.faults for _ in fault.peers)

    hostile = load_scenario("hostile")
    assert len(set(kinds(hostile.plan(30, 1)))) == 6
    assert kinds(hostile.plan(30, 1)) != kinds(hostile.plan(30, 2))
    assert {kind for seed in range(40) for kind in kinds(hostile.plan(30, seed))} == {kind.value for kind in Adversary}
    assert kinds(hostile.against([Adversary.LIAR]).plan(30, 1)) == ["liar"] * 6
    assert kinds(load_scenario("quiet").against([Adversary.AGES, Adversary.HOPS], 0.1).plan(40, 1)) == [
        "ages", "ages", "hops", "hops",
    ]  # fmt: skip


@pytest.mark.simulation
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", Adversary)
def test_where_a_fifth_is_hostile_in_one_way_the_others_get_every_broadcast(kind):
    report = run(load_scenario("quiet").against([kind]), peers=30, max_peers=5, seed=1)
    assert report.violations == (), report.account
    assert report.reliability == 1.0


def test_a_report_carries_what_plots_need():
    report = run(attrs.evolve(SHORT, broadcasts=20), peers=10, max_peers=4, seed=2)
    picture = report.picture
    assert picture.curve[-1][1] == 1.0
    assert [share for _, share in picture.curve] == sorted(share for _, share in picture.curve)
    assert sum(picture.hops.values()) == report.delivered == report.expected
    assert picture.latencies == sorted(picture.latencies)
    assert report.latency_s["p50"] in [pytest.approx(seconds) for seconds, _ in picture.curve]
    assert len(picture.positions) == 10
    assert all(0 <= at < 1 for at in picture.positions.values())
    assert 9 <= len(picture.edges) <= 20
    assert picture.traffic["gossip"] > 0
    assert report.receipts_exact == report.broadcasts == 23
    assert report.last_hop["max"] == max(picture.hops)
    assert report.redundancy > 0


def test_progress_is_told():
    told = []
    run(SHORT, peers=4, progress=lambda phase, done: told.append((phase, done)))
    assert list(dict.fromkeys(phase for phase, _ in told)) == ["join", "settle", "rage", "rest", "probe", "done"]
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1] == ("done", 1.0)


def test_a_mesh_that_is_broken_is_reported():
    broken = Run(attrs.evolve(SHORT, rest=1.0), peers=8, max_peers=4)
    for phase in broken.phases():
        if phase == "rage":
            for node in members(broken.net)[:3]:
                broken.net.stop(node)
    report = broken.report()
    assert report.violations
    assert "seed: 0" in report.account


def test_rest_is_over_once_the_mesh_lives_and_lasts_in_full_if_it_does_not():
    def rests(*, harmed):
        scenario = attrs.evolve(SHORT, rest=30.0, probes=0)
        this, began = Run(scenario, peers=8, max_peers=4), 0.0
        for phase in this.phases():
            if phase == "rage":
                began = this.net.now
                if harmed:
                    this.net.cut(Cut({node.number: node.number % 2 for node in this.net.nodes}))
            if phase == "rest":
                began = this.net.now - began
        return began

    assert rests(harmed=False) == pytest.approx(HELD)
    assert rests(harmed=True) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("summary = ", "no TOML"),
        ("speed = 3", "a field 'speed'"),
        ("broadcasts = -1", "broadcasts must be"),
        ('settle = "long"', "settle must be"),
        ("[conditions]\nluck = 1", "no 'luck'"),
        ("[conditions]\nloss = 7", "between 0 and 1"),
        ('[conditions]\nlatency = { kind = "warp" }', "no kind of latency"),
        ('[conditions]\nlatency = { kind = "uniform" }', "missing"),
        ("faults = 3", "array of tables"),
        ('[[faults]]\nkind = "meteor"\nat = 1', "no kind of fault"),
        ('[[faults]]\nkind = "crash"\nat = 1\nshare = 3', "between 0 and 1"),
        ('[[faults]]\nkind = "crash"', "bad crash"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_scenario(text, name="mine")


def test_an_unknown_scenario_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="quiet, join-storm"):
        load_scenario("noisy")
    with pytest.raises(ConfigError, match="No such file"):
        load_scenario(tmp_path / "mine.toml")


def test_a_scenario_comes_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'summary = "mine"\nsettle = 10\nrest = 15\nbroadcasts = 2\n'
        '[[faults]]\nkind = "crash"\nat = 1\npeers = [0, 1, 2]\n'
    )
    scenario = load_scenario(path)
    assert scenario.name == "mine"
    assert run(scenario, peers=6, max_peers=3).joined == 3
    with pytest.raises(ConfigError, match="3 peers, but there are 2"):
        run(scenario, peers=2)


@pytest.mark.parametrize("peers", [-1, 0, 1])
def test_a_mesh_of_none_or_one_is_refused(peers):
    with pytest.raises(ConfigError, match="2 peers or more"):
        run(load_scenario("quiet"), peers=peers)
