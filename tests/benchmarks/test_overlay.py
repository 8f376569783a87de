"""`benchmarks/overlay.py`: its measures run, and its summary says what was met."""

import random

import pytest

from benchmarks.overlay import constant_in_size, summary
from benchmarks.overlay_measures import (
    SECTIONS,
    CanNotRun,
    at_least,
    at_most,
    growth,
    joins,
    new_network,
    routes,
    service,
)
from benchmarks.overlay_measures import dht as lookups


def line(section="joins", *, seed=1, is_=5.0, met=True, peers=100, **more):
    bars = {"whole_after_s": {"at_most": 30.0, "is": is_, "met": met}}
    return {"section": section, "peers": peers, "max_peers": 3, "seed": seed, "bars": bars, **more}


def test_a_bar_is_met_up_to_its_value_and_never_by_what_is_not_known():
    assert at_most(3).met(3)
    assert not at_most(3).met(3.1)
    assert at_least(0.9).met(0.9)
    assert not at_least(0.9).met(0.89)
    assert not at_most(3).met(None)


def test_the_summary_has_the_spread_over_seeds_and_is_met_if_each_seed_is():
    (row,) = summary([line(), line(seed=2, is_=7.0)])
    assert (row["min"], row["mean"], row["max"], row["at_most"], row["seeds"], row["met"]) == (5, 6, 7, 30, 2, True)
    (row,) = summary([line(), line(seed=2, is_=None, met=False)])
    assert not row["met"]
    assert row["unknown"] == 1


def test_what_could_not_be_measured_is_not_met_and_says_why():
    skipped = {"section": "dht", "peers": 100, "max_peers": 3, "seed": 1, "skipped": "it is off"}
    (row,) = summary([skipped])
    assert not row["met"]
    assert row["because"] == "it is off"


@pytest.mark.parametrize(("cost", "met"), [(10.0, True), (15.0, False)])
def test_the_cost_of_a_join_is_held_against_that_in_a_smaller_mesh(cost, met):
    lines = [
        line("service", figures={"messages_per_join": 9.0}),
        line("service", peers=1000, figures={"messages_per_join": cost}),
    ]
    (row,) = constant_in_size(lines)
    assert row["met"] is met


def test_measures_take_a_mesh_and_give_every_figure_that_has_a_bar():
    net, notes = new_network(6, 4, 1, dht=False)
    assert notes
    measured = {"joins": joins(net, 6)}
    assert measured["joins"]["members"] == 6
    net.run(60)
    for measure in (routes, service):
        measured[measure.__name__] = measure(net, random.Random(1))
    measured["growth"] = growth(new_network(6, 4, 1, dht=False)[0], 6)
    assert measured["growth"]["service_offers_per_join"] <= 1
    for name, figures in measured.items():
        assert not set(SECTIONS[name].bars(4)) - set(figures)
    assert measured["routes"]["arrived"] == 1
    with pytest.raises(CanNotRun, match="switched off"):
        lookups(net, random.Random(1))
