"""`benchmarks/gossip.py`: its measures find what is there, and its summary says what was met and what is published."""

import random

import pytest

from benchmarks.gossip import constant_at_rest, with_published
from benchmarks.gossip_measures import PUBLISHED, SECTIONS, Volley
from benchmarks.gossip_trees import flood_from
from benchmarks.overlay import summary
from benchmarks.overlay_measures import new_network
from p2pmesh.simulation import Graph, assemble
from p2pmesh.simulation.model.conditioner import Conditions, Constant, Path


def mesh(peers, seed=1):
    net, _ = new_network(peers, 5, seed, dht=False)
    assemble(net, peers)
    return net


@pytest.mark.parametrize(
    "name",
    [
        "one_sender",
        "receipts",
        "partition",
        *(
            pytest.param(name, marks=pytest.mark.simulation)
            for name in ("loss", "rest", "deaths_30", "mass_failure_50")
        ),
    ],
)
def test_a_measure_takes_a_mesh_and_gives_every_figure_that_has_a_bar(name):
    section = SECTIONS[name]
    figures = section.measure(mesh(8), random.Random(1))
    assert set(section.bars(5)) <= set(figures)
    assert not figures.get("delivered_twice")
    assert all(figures[figure] is not None for figure in section.bars(5))


@pytest.mark.simulation
@pytest.mark.parametrize("name", ["random_senders", "receipts_churn", "partition_with_service", "deaths_90"])
def test_the_longer_measures_do_too(name):
    section = SECTIONS[name]
    figures = section.measure(mesh(30), random.Random(1))
    assert set(section.bars(5)) <= set(figures)


def test_an_ideal_flood_goes_breadth_first_where_all_links_take_equally_long():
    net = mesh(20)
    graph = Graph.of(net)
    for node in net.nodes[:5]:
        hops, seconds = flood_from(net, node)
        seen, shell, depth = {node.number}, [node.number], -1
        while shell:
            shell = list({far for peer in shell for far in graph.links[peer]} - seen)
            seen.update(shell)
            depth += 1
        assert hops == depth
        assert seconds == pytest.approx(0.05 * depth)


def test_a_volley_notes_who_had_what_when():
    net = mesh(10)
    volley = Volley(net, lambda: net.nodes[0], 3, after=1.0, look_after=(0.0, 5.0))
    net.run(0.9)
    assert not volley.sent
    net.run(10)
    assert [one.count for one in volley.sent] == [9, 9, 9]
    assert [count for _, count, _ in volley.notes[0.0]] == [0, 0, 0]
    assert [(count, told) for _, count, told in volley.notes[5.0]] == [(9, 9)] * 3
    assert volley.reach("all", 10) == {"all": 1.0, "all_worst": 1.0}
    assert volley.reach("half", 19, 5.0) == {"half": 0.5, "half_worst": 0.5}


def test_what_is_sent_into_a_stall_comes_in_order_at_its_end():
    path = Path(Conditions(latency=Constant(0.1), jitter=0.0), 0.1, random.Random(1))
    assert path.arrival(1.0) == pytest.approx(1.1)
    path.stall(3.0)
    assert [path.arrival(time) for time in (1.5, 2.0, 2.95)] == [3.0, 3.0, pytest.approx(3.05)]


def test_rows_say_what_is_published_and_lines_too():
    bars = {"redundancy": {"at_most": 0.05, "is": 0.01, "met": True}}
    line = {"section": "one_sender", "peers": 100, "max_peers": 5, "seed": 1, "bars": bars}
    (row,) = summary([line], SECTIONS)
    assert with_published(row)["published"] == PUBLISHED["one_sender"]["redundancy"]
    assert with_published(line)["published"] == PUBLISHED["one_sender"]
    assert with_published({"section": "loss", "bars": {}}) == {"section": "loss", "bars": {}}
    for name, figures in PUBLISHED.items():
        assert set(figures) <= set(SECTIONS[name].bars(5))


@pytest.mark.parametrize(("large", "met"), [(30.0, True), (40.0, False)])
def test_control_traffic_must_not_grow_with_the_mesh(large, met):
    costs = [(100, 30.0), (10_000, large)]
    lines = [
        {"section": "rest", "peers": peers, "figures": {"control_bytes_per_peer_per_s": cost}} for peers, cost in costs
    ]
    (row,) = constant_at_rest(lines)
    assert row["met"] is met
    assert constant_at_rest(lines[:1]) == []
