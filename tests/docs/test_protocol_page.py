"""The protocol page says what the code does: every message, field, type, default, limit and error code."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import attrs
import msgspec
import pytest
from msgspec import NODEFAULT, inspect

from p2pmesh.wire import packet_format as fragments
from p2pmesh.wire.messages import Candidate, GossipData, Handshake, Message, Receipt, Signal
from p2pmesh.wire.overlay import Contact, DhtRecord, KademliaCall
from p2pmesh.wire.signaling import ERROR_CODES, JOIN_REFUSALS, KnownPeer, SignalingMessage

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")

OBJECTS: dict[str, type[msgspec.Struct]] = {
    "signal": Signal,
    "candidate": Candidate,
    "handshake": Handshake,
    "known peer": KnownPeer,
    "broadcast": GossipData,
    "contact": Contact,
    "receipt": Receipt,
    "rpc": KademliaCall,
    "record": DhtRecord,
}
OBJECT_NAMES = {kind: name for name, kind in OBJECTS.items()}

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


def messages_of(union: Any) -> dict[str, type[msgspec.Struct]]:
    return {kind.__struct_config__.tag: kind for kind in get_args(union)}


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


# --- the types, as the page writes them -------------------------------------------------------------------------------


def notation(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types=types):
            return notation_of_union(types)
        case inspect.StrType(pattern=str()):
            return "id"
        case inspect.StrType(min_length=low, max_length=high):
            return f"text({high})" if low is None else f"text({low}..{high})"
        case inspect.BytesType(max_length=None):
            return "bytes"
        case inspect.BytesType(min_length=low, max_length=high):
            assert low == high
            return f"bytes({high})"
        case inspect.IntType():
            return notation_of_number(kind)
        case inspect.BoolType():
            return "bool"
        case inspect.AnyType():
            return "json"
        case inspect.LiteralType(values=values):
            return " or ".join(json.dumps(value) for value in sorted(map(str, values)))
        case inspect.VarTupleType(item_type=item, max_length=high):
            return f"list({notation(item)}, {high})"
        case inspect.StructType(cls=cls):
            return OBJECT_NAMES[cls]
        case _:
            raise AssertionError(f"no notation for {kind}")


def notation_of_union(types: tuple[inspect.Type, ...]) -> str:
    some = [one for one in types if not isinstance(one, inspect.NoneType)]
    if {type(one) for one in some} == {inspect.StrType, inspect.IntType, inspect.FloatType, inspect.BoolType}:
        return "scalar"
    assert len(some) == 1 < len(types)
    return notation(some[0]) + "?"


def notation_of_number(kind: inspect.IntType) -> str:
    highest = kind.le if kind.lt is None else kind.lt - 1
    match kind.ge, highest:
        case 0, 9007199254740991:
            return "ms"
        case 0, 4294967295:
            return "u32"
        case low, high:
            assert low is not None
            assert high is not None
            return f"int({low}..{high})"


def absence(field: inspect.Field) -> str:
    if field.required:
        return "required"
    default = field.default_factory() if field.default is NODEFAULT else field.default
    if isinstance(default, bytes):
        default = default.decode()
    return "null" if default is None else f"`{json.dumps(default)}`"


# --- the page against the code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "kind"), EVERYTHING)
def test_every_field_is_described_as_it_is(section: str | None, kind: type[msgspec.Struct]) -> None:
    assert section is not None, "the page does not describe it"
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    expected = [(field.encode_name, notation(field.type), absence(field)) for field in info.fields]
    table = rows(section)
    assert [(bare(name), bare(type_), default) for name, type_, default, _ in table] == expected
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
