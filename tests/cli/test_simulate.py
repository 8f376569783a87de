"""`p2pmesh simulate`: its output, its exit statuses, and its picture."""

import importlib.util
import io
import json

import attrs
import pytest
from click.testing import CliRunner
from rich.console import Console

from p2pmesh.cli import main
from p2pmesh.cli.simulate import view
from p2pmesh.simulation.report import Report
from p2pmesh.simulation.scenario import SCENARIOS, load_scenario

KEYS = {
    "peers", "max_peers", "seed", "virtual_s", "wall_s", "events", "trace_hash", "joined", "ring_cycles", "islands",
    "broadcasts", "expected", "delivered", "reliability", "redundancy", "last_hop", "latency_s", "receipts_exact",
    "control_bytes_per_peer_s", "violations",
}  # fmt: skip
QUICK = """
summary = "short"
settle = 10
broadcasts = 3
rest = 5
probe_within = 5
"""


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text(QUICK)
    return str(path)


def invoke(*args):
    return CliRunner().invoke(main, ["simulate", *map(str, args)])


def test_json_is_one_object_with_every_figure(quick):
    result = invoke(quick, "--peers", 10, "--max-peers", 4, "--seed", 3, "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert set(figures) >= KEYS
    assert (figures["peers"], figures["max_peers"], figures["seed"]) == (10, 4, 3)
    assert figures["joined"] == 10
    assert figures["reliability"] == 1
    assert figures["violations"] == []
    assert set(figures["latency_s"]) == {"p50", "p99"}
    assert set(figures["last_hop"]) == {"mean", "max"}
    assert not result.stderr


def test_the_same_seed_gives_the_same_trace(quick):
    first, second, other = (
        json.loads(invoke(quick, "--peers", 8, "--seed", seed, "--json").stdout)["trace_hash"] for seed in (1, 1, 2)
    )
    assert first == second != other


def test_people_get_a_table(quick):
    result = invoke(quick, "--peers", 10)
    assert result.exit_code == 0
    for text in ("10 peers of 5 links", "1 island", "1 ring", "100.0000%", "none"):
        assert text in result.stdout


def test_the_picture_is_drawn(quick, tmp_path):
    path = tmp_path / "picture.png"
    result = invoke(quick, "--peers", 5, "--plot", path)
    assert result.exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_can_be_drawn_too(tmp_path):
    from p2pmesh.cli.simulate.plot import draw

    draw(report_of([]), tmp_path / "nothing.svg")
    assert (tmp_path / "nothing.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(("terminal", "silent"), [(True, False), (True, True), (False, False)])
def test_a_terminal_is_told_how_long_it_will_take_unless_json_is_wanted(quick, terminal, silent):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=120)
    view.run_with_progress(load_scenario(quick), peers=4, max_peers=3, seed=1, console=console, silent=silent)
    assert bool(shown.getvalue()) == (terminal and not silent)
    if shown.getvalue():
        assert "quick, 4 peers" in shown.getvalue()
        assert "0:00:0" in shown.getvalue()


def report_of(violations):
    return Report(
        scenario="x", peers=2, max_peers=1, seed=0, virtual_s=1.0, wall_s=0.1, events=5, trace_hash="00", joined=2,
        ring_cycles=1, islands=1, broadcasts=0, expected=0, delivered=0, redundancy=0.0, last_hop={"mean": 0, "max": 0},
        latency_s={"p50": 0.0, "p99": 0.0}, receipts_exact=0, control_bytes_per_peer_s=0.0,
        violations=tuple(violations), account="seed: 0\ntrace: ...",
    )  # fmt: skip


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_violations_are_told_and_end_in_status_1(monkeypatch, as_json):
    bad = report_of([f"one island at {n} s: 2 islands" for n in range(12)])
    monkeypatch.setattr(view, "run", lambda scenario, **options: attrs.evolve(bad))
    result = invoke(*as_json)
    assert result.exit_code == 1
    assert "one island at 0 s" in result.stdout
    assert "seed: 0" in result.stderr
    if not as_json:
        assert "2 violations more" in result.stdout


def test_help_names_the_shipped_scenarios():
    text = " ".join(invoke("--help").stdout.split())
    assert all(name in text for name in SCENARIOS)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nosuch"], "no scenario 'nosuch'"),
        (["nosuch.toml"], "nosuch.toml"),
        (["--peers", "0"], "--peers"),
        (["--peers", "1"], "--peers"),
        (["--peers", "3", "--max-peers", "1"], "--max-peers 1"),
        (["--max-peers", "0"], "--max-peers"),
        (["--adversary", "saint"], "no kind of adversary: there are garbage, liar"),
        (["--plot", "x.docx"], "--plot draws .png"),
        (["--plot", "/no/such/directory/x.png"], "no directory"),
    ],
)
def test_bad_input_is_said_in_one_line_with_status_2(args, said):
    result = invoke(*args)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert said in line
    assert not result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not = [toml", "no TOML"),
        ("nonsense = 1", "'nonsense'"),
        ('[[faults]]\nkind = "earthquake"\nat = 1', "'earthquake'"),
        ('[[faults]]\nkind = "crash"\nat = 1\npeers = [0, 1, 2, 3, 4, 5, 6, 7, 8]', "9 peers, but there are 8"),
        ("broadcasts = -1", "broadcasts"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_bad_usage(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    result = invoke(path, "--peers", 8)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert said in line


def test_without_matplotlib_a_picture_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = invoke("--plot", "x.png")
    assert result.exit_code == 2
    assert "pip install 'p2pmesh[plot]'" in result.stderr
