"""Meshes of which a fifth works against the others, in as many ways, while everything else goes wrong as well."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.hostile import measure, plan_of
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.plan import FaultPlan, Hostile


def outcome(seed, *kinds, **options):
    defaults = {"peers": 30, "hostile": 6, "max_peers": 5, "adversary": [kind.value for kind in kinds], "calm": False}
    return measure(seed, Namespace(**defaults | options))


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [100, 101])
def test_nothing_is_violated_and_all_honest_peers_are_served(seed):
    result = outcome(seed)
    assert not result["violations"], result["account"]
    assert result["sends"] == 1


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [kind for kind in Adversary if kind is not Adversary.GHOST])
def test_with_nothing_but_hostile_peers_every_broadcast_reaches_every_honest_one(kind):
    result = outcome(3, kind, calm=True, peers=12, hostile=3)
    assert not result["violations"], result["account"]
    assert result["delivered"] == result["expected"] > 0


@pytest.mark.simulation
def test_the_same_seed_gives_the_same_run():
    small = {"peers": 8, "hostile": 3, "max_peers": 4}
    first = outcome(5, **small)
    assert first["kinds"]
    assert first["trace_hash"] == outcome(5, **small)["trace_hash"] != outcome(6, **small)["trace_hash"]


def test_as_many_peers_are_hostile_as_it_says_each_in_another_way():
    plan = plan_of(1, 30, 6, list(Adversary), calm=False)
    hostile = [fault for fault in plan.faults if isinstance(fault, Hostile)]
    assert len({fault.does for fault in hostile}) == len({fault.peers for fault in hostile}) == 6
    assert len(plan.faults) > 6
    assert FaultPlan.parse(str(plan)) == plan
    assert len(plan_of(1, 30, 6, list(Adversary), calm=True).faults) == 6


def test_every_kind_is_explained():
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text("utf-8")
    missing = [kind.value for kind in Adversary if f"`{kind.value}`" not in text]
    assert not missing
