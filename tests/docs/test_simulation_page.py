"""docs/simulation.md tells the truth: its examples run, its tables name what is there."""

import inspect
import re
from pathlib import Path

import pytest

import p2pmesh.simulation
from p2pmesh.simulation import SCENARIOS, World, parse_scenario, run

PAGE = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = [text for kind, text in BLOCKS if kind == "python"]


def execute(example):
    names = {"__name__": "example"}
    exec(compile(example, "docs/simulation.md", "exec"), names)
    for name, thing in list(names.items()):
        if name.startswith("test_"):
            thing()


@pytest.mark.simulation
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_example_runs_as_printed(example):
    execute(example)


SMALLER = {
    "simulated_meshes(20, ": "simulated_meshes(6, ",
    "world.meshes[:10]": "world.meshes[:3]",
    "max_examples=3": "max_examples=1",
    "peers=20": "peers=6",
    "range(20)": "range(6)",
    "nodes[19]": "nodes[5]",
    "count == 18": "count == 4",
    "graph.shortest_hops(20,": "graph.shortest_hops(6,",
    "assemble(net, 40)": "assemble(net, 12)",
    "hello.reached == 39": "hello.reached == 11",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_example_runs_with_fewer_peers(example):
    for printed, smaller in SMALLER.items():
        assert printed in PAGE
        example = example.replace(printed, smaller)
    execute(example)


def test_a_test_of_a_chat_with_20_peers_and_a_partition_takes_less_than_25_lines():
    lines = [line for line in EXAMPLES[0].splitlines() if line.strip()]
    assert len(lines) < 25
    assert "simulated_meshes(20" in EXAMPLES[0]
    assert "partition" in EXAMPLES[0]


@pytest.mark.parametrize("peers", [8, pytest.param(20, marks=pytest.mark.simulation)])
def test_the_scenario_of_the_page_runs(peers):
    (text,) = [text for kind, text in BLOCKS if kind == "toml"]
    report = run(parse_scenario(text, name="page"), peers=peers, max_peers=4)
    assert not report.violations


def test_the_page_names_every_method_of_a_world_and_every_scenario():
    inner = {"account", "check", "checkable", "cut", "hub", "identity", "network", "seed"}
    methods = {name for name, _ in inspect.getmembers(World) if not name.startswith("_")} - inner
    assert not [name for name in methods if not re.search(rf"`{name}\b", PAGE)]
    assert not [name for name in SCENARIOS if f"`{name}`" not in PAGE]


@pytest.mark.parametrize("name", p2pmesh.simulation.__all__)
def test_every_public_name_of_the_simulation_is_there_and_documented(name):
    thing = getattr(p2pmesh.simulation, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing)
