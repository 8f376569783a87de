"""docs/snapshot.md has a row for every key that `Mesh.snapshot()` gives, and no other rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.simulation import simulate, simulated_meshes

PAGE = (Path(__file__).parents[2] / "docs" / "snapshot.md").read_text(encoding="utf-8")
ANY = "<name>"
CORES = [subsystem.value for subsystem in Subsystem]
INBOX = {"inbox.handled", "inbox.dropped", "inbox.waiting", "inbox.senders_waiting"}


# --- the page ---------------------------------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    found = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


SECTIONS = sections()


def documented(section: str) -> set[str]:
    """The keys of a section's rows, each with a meaning."""
    keys: list[str] = []
    for line in SECTIONS.get(section, "").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        names = re.findall(r"`([^`]+)`", cells[0]) if cells else []
        if not names:
            continue
        assert all(cells[1:]), f"{names[0]} has no meaning"
        keys += [name.removeprefix("subsystems.").removeprefix(f"{section}.") for name in names]
    assert len(keys) == len(set(keys)), "a key has two rows"
    return set(keys)


# --- the snapshot -----------------------------------------------------------------------------------------------------


def flattened(snapshot: Mapping[str, Any], rows: set[str], path: str = "") -> Iterator[str]:
    """The keys of a nested dictionary with dots; those of a dictionary that the page calls one of many are `<name>`."""
    for key, value in snapshot.items():
        name = ANY if any(is_below(row, f"{path}{ANY}") for row in rows) else key
        if isinstance(value, Mapping) and f"{path}{name}" not in rows:
            yield from flattened(value, rows, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def is_below(row: str, path: str) -> bool:
    return row == path or row.startswith(f"{path}.")


@pytest.fixture(scope="module")
def snapshots() -> list[dict[str, Any]]:
    """Those of five peers that have used all there is."""
    taken: list[dict[str, Any]] = []

    async def use_everything() -> None:
        async with simulated_meshes(5, seed=1, max_peers=3) as world:
            await world.linked()
            one, other = world.meshes[0], world.meshes[3]
            receipt = await one.broadcast("news", "hello")
            await receipt.settled()
            await one.send(other.peer_id, "hello")
            await one.dht.put("key", "value")
            await other.dht.get("key")
            await trio.sleep(5)
            taken.extend(mesh.snapshot() for mesh in world.meshes)

    simulate(use_everything, seed=1)
    return taken


# --- one against the other --------------------------------------------------------------------------------------------


def compare(section: str, found: Iterable[Mapping[str, Any]], besides: Iterable[str] = ()) -> None:
    rows = documented(section)
    keys = {key for one in found for key in flattened(one, rows)} - set(besides)
    assert not keys - rows, f"keys without a row in section {section}"
    unseen = {row for row in rows - keys if ANY not in row}  # there may be none of those
    assert not unseen, f"rows of section {section} without a key"


def test_the_top_level_is_documented(snapshots):
    head, inbox = SECTIONS["Top level"].split("\n\nThe dictionary of each core", 1)
    assert set(re.findall(r"^\| `(.+?)`", head, flags=re.MULTILINE)) == set(snapshots[0])
    assert set(re.findall(r"^\| `(.+?)`", inbox, flags=re.MULTILINE)) == INBOX


SHELL = ["links", "transports", "moderation"]


@pytest.mark.parametrize("section", SHELL)
def test_what_the_shell_counts_is_documented(section, snapshots):
    compare(section, [snapshot[section] for snapshot in snapshots])


@pytest.mark.parametrize("core", CORES)
def test_what_a_core_counts_is_documented(core, snapshots):
    compare(core, [snapshot["subsystems"][core] for snapshot in snapshots], INBOX)


def test_every_section_is_about_something():
    known = {"Top level", *SHELL, *CORES}
    assert not set(SECTIONS) - known
    assert known <= set(SECTIONS)
