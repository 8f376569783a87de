"""Fault plans: a seed makes them, they print, they come back from what they print, and the mesh survives them."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError
from p2pmesh.simulation.discrete.fault_injector import FaultInjector
from p2pmesh.simulation.discrete.invariants import (
    check_delivery,
    check_islands,
    check_nothing_left,
    check_ring,
    members,
    watch,
)
from p2pmesh.simulation.discrete.network import BareNetwork, InvariantViolated
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.plan import (
    KINDS,
    Bad,
    Churn,
    Crash,
    FaultPlan,
    Freeze,
    Hostile,
    JoinStorm,
    Nat,
    Outage,
    Partition,
    Restart,
    Slow,
)

PEERS = 10
RAGE = 30.0


def seconds(most=RAGE):
    return st.integers(0, int(most * 10)).map(lambda tenths: tenths / 10)


def some(most=PEERS):
    return st.lists(st.integers(0, PEERS - 1), min_size=1, max_size=most, unique=True).map(tuple)


sides = st.lists(st.integers(0, 1), min_size=PEERS, max_size=PEERS).map(
    lambda where: tuple(tuple(n for n, side in enumerate(where) if side == s) for s in (0, 1))
)
faults = st.one_of(
    st.builds(
        Partition, at=seconds(), seconds=seconds(15), sides=sides, one_way=st.booleans(), keeps_service=st.booleans()
    ),
    st.builds(Crash, at=seconds(), peers=some(3)),
    st.builds(Freeze, at=seconds(), seconds=seconds(15), peers=some(3)),
    st.builds(Slow, at=seconds(), seconds=seconds(15), peers=some()),
    st.builds(Restart, at=seconds(), seconds=seconds(10), peers=some(3), fresh=st.booleans()),
    st.builds(JoinStorm, at=seconds(), count=st.integers(1, 5)),
    st.builds(Churn, at=seconds(), seconds=seconds(15), arrivals=st.just(0.3), departures=st.just(0.2)),
    st.builds(Outage, at=seconds(), seconds=seconds(15)),
    st.builds(Bad, at=seconds(), seconds=seconds(15), peers=some(4), breaks=st.sampled_from([0.0, 0.01])),
    st.builds(Nat, at=seconds(), peers=some(4)),
)
plans = st.lists(faults, max_size=6).map(FaultPlan)

BREAKS_AS_IT_OPENS = """
0.0 freeze seconds=0.0 peers=[0]
5.0 partition seconds=9.1 sides=[[2,3,4,6,8,9],[0,1,5,7]]
14.5 join-storm count=1
16.6 bad-links seconds=11.4 peers=[3]
18.2 bad-links seconds=11.9 peers=[3,1] breaks=0.01
30.0 churn seconds=0.0 arrivals=0.3 departures=0.2
""".strip()


def survive(plan, seed, *, peers=PEERS, max_peers=4, rest=90):
    """The two phases: safety while the faults rage, liveness by a deadline after that."""
    net = BareNetwork(seed, config=MeshConfig(max_peers=max_peers))
    net.plan = plan
    watch(net)
    for _ in range(peers):
        net.add()
        net.run(0.1)
    net.run(10)
    injector = FaultInjector(net, plan)
    ends = net.now + max(RAGE, plan.ends)
    while net.now < ends:
        if origins := members(net):
            net.publish(net.rng.choice(origins), "while it rages", ttl=300)
        net.run(3)
    injector.end()
    quiet_since = net.now
    net.run(rest)
    enemies = [node.number for node in net.nodes if node.hostile]
    check_islands(net, without=enemies)
    check_ring(net, without=enemies)
    for node in members(net, enemies)[:2]:
        net.publish(node, "at rest")
    net.run(20)
    check_delivery(net, quiet_since=quiet_since, within=20, without=enemies)
    net.close()
    check_nothing_left(net)
    return net


@pytest.mark.simulation
@settings(max_examples=12)
@given(plan=plans, seed=st.integers(0, 1000))
@example(FaultPlan([Outage(at=0, seconds=20), Crash(at=1, peers=(0, 1, 2))]), 0)
@example(FaultPlan.parse(BREAKS_AS_IT_OPENS), 249)
def test_the_mesh_survives_any_plan(plan, seed):
    survive(plan, seed)


@pytest.mark.simulation
@pytest.mark.parametrize("seed", range(6))
def test_the_mesh_survives_what_seeds_generate(seed):
    survive(FaultPlan.generate(seed, peers=PEERS, seconds=RAGE, hostile=seed % 2 == 1), seed)


@pytest.mark.simulation
def test_a_run_is_replayed_by_its_seed_and_printed_plan():
    plan = FaultPlan.generate(11, peers=5, seconds=RAGE)
    first = survive(plan, 4, peers=5, rest=45)
    again = survive(FaultPlan.parse(str(plan)), 4, peers=5, rest=45)
    assert first.trace.digest() == again.trace.digest()
    assert first.events == again.events


@given(plans)
def test_a_plan_comes_back_from_what_it_prints(plan):
    assert FaultPlan.parse(str(plan)) == plan
    assert eval(repr(plan)) == plan  # a test of the repr
    assert len(str(plan).splitlines()) == len(plan.faults)


@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans())
def test_generated_plans_make_sense_and_are_the_same_for_the_same_seed(seed, peers, hostile):
    plan = FaultPlan.generate(seed, peers=peers, seconds=60, hostile=hostile)
    plan.check(peers)
    assert plan == FaultPlan.generate(seed, peers=peers, seconds=60, hostile=hostile)
    assert FaultPlan.parse(str(plan)) == plan
    assert plan.ends <= 60
    assert hostile or not any(isinstance(fault, Hostile) for fault in plan.faults)


def test_seeds_reach_every_kind_of_fault():
    kinds = {type(f) for seed in range(40) for f in FaultPlan.generate(seed, peers=9, seconds=9, hostile=True).faults}
    assert kinds == set(KINDS.values())


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "1.0 meteor",
        "1.0 crash",
        "1.0 crash peers=3",
        "1.0 crash peers=[1] size=3",
        "x crash peers=[1]",
        "1.0 crash peers=[",
        '1.0 hostile peers=[1] does="cheer"',
    ],
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ConfigError):
        FaultPlan.parse(text)


def test_more_faults_than_peers_are_refused():
    with pytest.raises(ConfigError, match="4 peers, but there are 3"):
        FaultPlan([Crash(at=1, peers=(0, 1, 2, 3))]).check(3)
    with pytest.raises(ConfigError, match="negative"):
        FaultPlan([Crash(at=-1, peers=(0,))]).check(3)


def test_a_failure_prints_a_plan_that_can_be_replayed():
    plan = FaultPlan([Crash(at=2, peers=(1,)), Hostile(at=3, peers=(0,), does=Adversary.LIAR)])
    net = BareNetwork(5)
    net.plan = plan
    with pytest.raises(InvariantViolated) as caught:
        net.violate("x", "y")
    text = str(caught.value).split("plan:\n")[1].split("\ntrace:")[0]
    assert FaultPlan.parse(text) == plan


def test_an_end_is_put_to_all_faults():
    plan = FaultPlan([
        Partition(at=0, seconds=999, sides=((0, 1, 2), (3, 4, 5))),
        Freeze(at=0, seconds=999, peers=(6,)),
        Slow(at=0, seconds=999, peers=(5, 6)),
        Outage(at=0, seconds=999),
        Bad(at=0, seconds=999, peers=(7,)),
        Nat(at=0, peers=(8,)),
        Churn(at=0, seconds=999, arrivals=1, departures=1),
    ])
    net = BareNetwork(1, config=MeshConfig(max_peers=4))
    for _ in range(PEERS):
        net.add()
        net.run(0.1)
    injector = FaultInjector(net, plan)
    net.run(10)
    injector.end()
    count = len(net.nodes)
    net.run(60)
    assert len(net.nodes) == count
    assert not net.cuts
    assert not net.special_conditions
    assert net.service.is_up
    assert not any(node.is_frozen for node in net.living())
    check_ring(net)
    assert math.isinf(net.nodes[members(net)[0].number].until)
