"""docs/architecture.md is true: the files that it names are there, and a broadcast goes the way that it tells."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import trio
import trio.testing

from p2pmesh.simulation import simulate, simulated_meshes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = ["The way of a broadcast", "The way of a direct message", "The way of `dht.get`"]
MOST_FILES = 16
"""From `mesh.broadcast` to the neighbour's wire."""


def chapter(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def paths(text: str) -> list[str]:
    """Paths between backquotes, with those of the table of packages."""
    named = re.findall(r"`((?:p2pmesh|tests|docs|examples|benchmarks)/[\w./-]*)`", text)
    for folder, modules in re.findall(r"^\| `(p2pmesh/protocols/\w+/)` \| (.+) \|$", text, flags=re.MULTILINE):
        named += [folder + module for module in re.findall(r"`(\w+\.py)`", modules)]
    return list(dict.fromkeys(named))


def missing(named: list[str]) -> list[str]:
    return [path for path in named if not (ROOT / path).exists()]


def modules(named: list[str]) -> list[str]:
    return [path for path in named if path.endswith(".py")]


def test_every_file_of_the_page_is_there():
    named = paths(PAGE)
    absent = missing(named)
    assert not absent
    assert len(named) > 80


def test_every_file_of_the_map_is_there():
    drawn = set(re.findall(r"(\w+\.py)\b", chapter("The map").split("```")[1]))
    assert len(drawn) > 15
    assert not drawn - {path.name for path in (ROOT / "p2pmesh").rglob("*.py")}


def test_every_module_of_the_protocols_is_in_the_table_of_packages():
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "p2pmesh" / "protocols").glob("*/*.py")}
    unnamed = sorted(there - set(paths(chapter("The map"))))
    assert not [path for path in unnamed if not path.endswith("/__init__.py")]


@pytest.mark.parametrize("walk", WALKS)
def test_every_file_of_a_walk_is_there(walk):
    named = paths(chapter(walk))
    absent = missing(named)
    assert not absent
    assert len(named) >= 10


def steps(walk: str) -> list[str]:
    return modules(paths("\n".join(re.findall(r"^\d+\. .*(?:\n   .*)*", chapter(walk), flags=re.MULTILINE))))


def test_a_broadcast_crosses_few_files_on_its_way_out():
    assert len(steps(WALKS[0])) <= MOST_FILES


def test_a_broadcast_goes_the_way_of_the_page():
    """Every file whose code runs between the call and the wire is a step of the walk, or named on its side."""
    entered = files_entered_by_a_broadcast()
    out, _, back = chapter(WALKS[0]).partition("\nAt the neighbour")
    assert back
    named = paths(out)
    assert not [path for path in entered if not path.startswith(tuple(named))], "files that the page does not name"
    real = {"p2pmesh/links/webrtc/carrier.py"}  # the simulation has another
    assert not set(steps(WALKS[0])) - set(entered) - real, "steps that are none"


def files_entered_by_a_broadcast() -> list[str]:
    entered: dict[str, None] = {}

    def look(frame: FrameType, what: str, _: object) -> None:
        name = frame.f_code.co_filename
        if what != "call" or not name.startswith(str(ROOT / "p2pmesh")):
            return
        path = Path(name).relative_to(ROOT).as_posix()
        if path.startswith("p2pmesh/simulation/full/carrier"):
            sys.setprofile(None)  # it is on the wire
        elif not path.startswith("p2pmesh/simulation/"):
            entered[path] = None

    async def broadcast() -> None:
        async with simulated_meshes(3, seed=1) as world:
            await world.linked()
            await trio.sleep(30)
            sys.setprofile(look)
            try:
                await world.meshes[0].broadcast("news", "hello")
                await trio.testing.wait_all_tasks_blocked()
            finally:
                sys.setprofile(None)

    simulate(broadcast, seed=1)
    return list(entered)


@pytest.mark.parametrize(
    "change",
    [
        "a message",
        "a config field",
        "an event",
        "a transport",
        "a fault",
        "a scenario",
        "a metric",
        "a command",
        "a core",
        "an optional dependency",
    ],
)
def test_the_likeliest_changes_have_a_place(change):
    row = re.search(rf"^\| {change} \| (.+) \|$", chapter("To change X, go to Y"), flags=re.MULTILINE)
    assert row is not None
    assert "/" in row[1]


def test_a_word_of_the_glossary_is_explained_once():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", chapter("Glossary"), flags=re.MULTILINE)
    words = [word.strip() for cell, _ in rows if cell not in {"word", "---"} for word in cell.split(", ")]
    assert len(words) > 80
    assert sorted(words) == sorted(set(words))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
