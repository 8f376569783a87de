"""The protocol page says what the code does: every message, field, type, default, limit and error code."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import attrs
import msgspec
import pytest

from p2pmesh.cli.vectors import vectors
from p2pmesh.wire import packet_format as fragments
from p2pmesh.wire.messages import Message
from p2pmesh.wire.signaling import ERROR_CODES, JOIN_REFUSALS, SignalingMessage
from tests.docs.protocol_tables import OBJECTS, PATH, messages_of, render, rows_of

PAGE = PATH.read_text(encoding="utf-8")

Row = list[str]


# --- reading the page -------------------------------------------------------------------------------------------------


def parts(text: str, level: int) -> dict[str, str]:
    """The parts under headings of one level, by heading."""
    found = re.split(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)[1:]
    headings = found[::2]
    assert len(headings) == len(set(headings)), "a heading comes twice"
    return dict(zip(headings, found[1::2], strict=True))


def rows(text: str) -> list[Row]:
    """The rows of the first table, without its head."""
    table = re.search(r"^\|.*\n\|[ |-]+\|\n((?:\|.*\n)*)", text, flags=re.MULTILINE)
    assert table is not None, "no table"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[1].splitlines()]


def bare(cell: str) -> str:
    """What stands between backquotes."""
    match = re.fullmatch(r"`(.+)`", cell)
    assert match is not None, f"{cell} is not in backquotes"
    return match[1]


CHAPTERS = parts(PAGE, 2)


def described(chapter: str, names: dict[str, type[msgspec.Struct]], *, quoted: bool) -> list[Any]:
    sections = parts(CHAPTERS[chapter], 3)
    return [
        pytest.param(sections.get(f"`{name}`" if quoted else name), kind, id=f"{chapter}: {name}")
        for name, kind in names.items()
    ]


EVERYTHING = [
    *described("Signaling messages", messages_of(SignalingMessage), quoted=True),
    *described("Link messages", messages_of(Message), quoted=True),
    *described("Objects inside messages", OBJECTS, quoted=False),
]


# --- the page against the code ----------------------------------------------------------------------------------------


def test_the_page_is_what_its_command_writes() -> None:
    assert render(PAGE) == PAGE, "run PYTHONPATH=. python -m tests.docs.protocol_tables"


def test_every_section_of_the_test_vectors_is_described() -> None:
    described = [bare(name) for name, _ in rows(CHAPTERS["Test vectors"])]
    assert described == [name for name in vectors() if name != "about"]


@pytest.mark.parametrize(("section", "kind"), EVERYTHING)
def test_every_field_is_described_as_it_is(section: str | None, kind: type[msgspec.Struct]) -> None:
    assert section is not None, "the page does not describe it"
    table = rows(section)
    assert [(bare(name), bare(type_), default) for name, type_, default, _ in table] == rows_of(kind)
    assert all(meaning for *_, meaning in table)


@pytest.mark.parametrize(
    ("chapter", "union"),
    [("Signaling messages", SignalingMessage), ("Link messages", Message)],
    ids=["signaling", "link"],
)
def test_no_message_is_described_that_does_not_exist(chapter: str, union: Any) -> None:
    assert {bare(heading) for heading in parts(CHAPTERS[chapter], 3)} == set(messages_of(union))


def test_every_object_inside_messages_is_described_and_no_other() -> None:
    assert set(parts(CHAPTERS["Objects inside messages"], 3)) == set(OBJECTS)


def test_error_codes_are_those_of_the_service() -> None:
    table = rows(parts(CHAPTERS["Signaling"], 3)["Error codes"])
    assert [bare(code) for code, _, _ in table] == list(ERROR_CODES)
    assert {bare(code) for code, refuses, _ in table if refuses == "yes"} == JOIN_REFUSALS


def test_kinds_of_records_are_those_of_packets() -> None:
    table = rows(CHAPTERS["Packets"].split("\nFrames travel", 1)[1])
    lanes = {"FRAME", "START", "MORE", "CREDIT"}
    for kinds, name, _, meaning in table:
        first = getattr(fragments, bare(name))
        expected = [first, first + 1] if bare(name) in lanes else [first]
        assert [int(kind) for kind in kinds.split(",")] == expected
        if bare(name) in lanes:
            assert meaning.endswith(f"bulk ({first + fragments.BULK}) or urgent ({first + fragments.URGENT})")
    kinds_in_order = [bare(name) for _, name, _, _ in table]
    assert kinds_in_order == ["FRAME", "START", "MORE", "CREDIT", "HELLO", "PING", "PONG", "END"]


UNITS = {"": 1, "s": 1, "KiB": 1024, "MiB": 1024 * 1024}


def amount(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * UNITS[unit]


def value_of(path: str) -> Any:
    """A constant of a module, or the default of a config's field."""
    parent, name = path.rsplit(".", 1)
    try:
        return getattr(import_module(parent), name)
    except ModuleNotFoundError:
        module, config = parent.rsplit(".", 1)
        return getattr(attrs.fields(getattr(import_module(module), config)), name).default


@pytest.mark.parametrize(("value", "where"), [(value, bare(where)) for _, value, where in rows(CHAPTERS["Limits"])])
def test_limits_are_those_of_the_code(value: str, where: str) -> None:
    assert amount(value) == pytest.approx(float(value_of(where)))


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_links_lead_to_headings() -> None:
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)}
    targets = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert targets <= headings
    assert {anchor(chapter) for chapter in CHAPTERS} - {"objects-inside-messages"} <= targets | {"link-messages"}
