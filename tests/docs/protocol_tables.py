"""The tables of docs/protocol.md that follow from the code: field by field, the layouts of frames, and the examples.

`PYTHONPATH=. python -m tests.docs.protocol_tables` brings the page up to date. What a field means stays as it stands
there; where the code has a new field, message or object, its cell is empty, and a test fails until it is written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, inspect, structs

from p2pmesh.cli.vectors import vectors
from p2pmesh.keyspace import ID_DIGITS
from p2pmesh.wire.fields import Hops, MessageId, Part, Scalar
from p2pmesh.wire.messages import (
    Candidate,
    Description,
    Fingerprint,
    Gossip,
    GossipData,
    Handshake,
    IceCandidate,
    Message,
    Receipt,
    Signal,
)
from p2pmesh.wire.overlay import Contact, DhtRecord
from p2pmesh.wire.packing import MESSAGE_ID_FORM, NUMBERS, forms
from p2pmesh.wire.signaling import KnownPeer, SignalingMessage

PATH = Path(__file__).parents[2] / "docs" / "protocol.md"

OBJECTS: dict[str, type[msgspec.Struct]] = {
    "signal": Signal,
    "candidate": Candidate,
    "handshake": Handshake,
    "description": Description,
    "fingerprint": Fingerprint,
    "ice candidate": IceCandidate,
    "known peer": KnownPeer,
    "broadcast": GossipData,
    "contact": Contact,
    "receipt": Receipt,
    "record": DhtRecord,
}
OBJECT_NAMES = {kind: name for name, kind in OBJECTS.items()}
EXAMPLES = ("goodbye", "gossip_ack", "gossip", "direct_ack")
"""Messages whose frames the page shows."""


def messages_of(union: Any) -> dict[str, type[msgspec.Struct]]:
    return {kind.__struct_config__.tag: kind for kind in get_args(union)}


CHAPTERS: dict[str, dict[str, type[msgspec.Struct]]] = {
    "Signaling messages": {f"`{name}`": kind for name, kind in messages_of(SignalingMessage).items()},
    "Link messages": {f"`{name}`": kind for name, kind in messages_of(Message).items()},
    "Objects inside messages": OBJECTS,
}
"""Which structs have a section, by the heading of the chapter and of the section."""

# --- types of fields, as the page writes them -------------------------------------------------------------------------


ALPHABETS = {
    r"\A[A-Za-z0-9+/]{4,256}\Z": "ice(4..256)",
    r"\A[A-Za-z0-9+/]{22,256}\Z": "ice(22..256)",
    r"\A[!-~]{1,32}\Z": "token(32)",
}


def digits_of(pattern: str) -> int:
    """How many hexadecimal digits it wants."""
    return int(pattern.partition("{")[2].partition("}")[0])


def notation(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types=types):
            return notation_of_union(types)
        case inspect.StrType(pattern=str() as pattern):
            if pattern in ALPHABETS:
                return ALPHABETS[pattern]
            digits = digits_of(pattern)
            return "id" if digits == ID_DIGITS else f"digits({digits})"
        case inspect.StrType(min_length=1, max_length=128):
            return "message id"
        case inspect.StrType(min_length=low, max_length=high):
            return f"text({high})" if low is None else f"text({low}..{high})"
        case inspect.BytesType(max_length=None):
            return "bytes"
        case inspect.BytesType(min_length=low, max_length=high):
            return f"bytes({high})" if low == high else f"bytes({low or 0}..{high})"
        case inspect.IntType():
            return notation_of_number(kind)
        case inspect.FloatType():
            return "number"
        case inspect.BoolType():
            return "bool"
        case inspect.AnyType():
            return "json"
        case inspect.LiteralType(values=values):
            return " or ".join(json.dumps(value) for value in sorted(map(str, values)))
        case inspect.VarTupleType(item_type=item, max_length=high):
            return f"list({notation(item)}, {high})"
        case inspect.StructType(cls=cls):
            return object_name(cls)
        case _:
            raise AssertionError(f"no notation for {kind}")


def object_name(kind: type[msgspec.Struct]) -> str:
    return OBJECT_NAMES.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


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
            assert high is not None
            return f"int({low if low is not None else -high}..{high})"


def absence(field: inspect.Field) -> str:
    if field.required:
        return "required"
    default = field.default_factory() if field.default is NODEFAULT else field.default
    if isinstance(default, bytes):
        default = default.decode()
    return "null" if default is None else f"`{json.dumps(default)}`"


def rows_of(kind: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """Name, type and default of each field."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return [(field.encode_name, notation(field.type), absence(field)) for field in info.fields]


def field_table(kind: type[msgspec.Struct], meanings: dict[str, str]) -> str:
    lines = ["| field | type | if absent | meaning |", "| --- | --- | --- | --- |"]
    for name, type_, default in rows_of(kind):
        lines.append(f"| `{name}` | `{type_}` | {default} | {meanings.get(name, '')} |")
    return "\n".join(lines) + "\n"


# --- layouts ----------------------------------------------------------------------------------------------------------


def form(hint: Any) -> str:
    """What a field of this type is in an array."""
    if hint in (MessageId, MESSAGE_ID_FORM):
        return "message id"
    if hint == Scalar or hint is Any:
        return "scalar"
    if get_origin(hint) is Literal:
        return "choice(" + ", ".join(map(str, get_args(hint))) + ")"
    if NoneType in get_args(hint):
        (inner,) = (one for one in get_args(hint) if one is not NoneType)
        return form(inner) + "?"
    if isinstance(hint, type) and issubclass(hint, Part):
        return object_name(hint)
    bare = getattr(hint, "__origin__", hint)
    if get_origin(bare) is tuple:
        item, most = get_args(bare)[0], hint.__metadata__[0].max_length
        if item == MessageId:
            return f"message ids({most})"
        if item == Hops:
            return f"blob(1, {most})"
        inner = form(item)
        is_digits = inner.startswith("bytes(") and isinstance(inspect.type_info(item), inspect.StrType)
        return f"blob({inner[6:-1]}, {most})" if is_digits else f"list({inner}, {most})"
    (kind,) = inspect.multi_type_info([hint])
    match kind:
        case inspect.StrType(pattern=str() as pattern) if pattern not in ALPHABETS:
            return f"bytes({digits_of(pattern) // 2})"
        case _:
            return notation(kind)


def layout(kind: type[msgspec.Struct]) -> str:
    """The fields of an array, in order; those in brackets may be absent from the end."""
    hints = get_type_hints(kind, include_extras=True)
    fields = structs.fields(kind)
    last = max((at for at, field in enumerate(fields, 1) if field.required), default=0)
    cells = [f"`{field.name.strip('_')}` {form(hints[field.name])}" for field in fields]
    required, rest = cells[:last], cells[last:]
    text = ", ".join(required)
    return f"{text}{', ' if text and rest else ''}{'[' + ', '.join(rest) + ']' if rest else ''}"


def parts_of(kind: type[msgspec.Struct], found: dict[type[msgspec.Struct], None]) -> None:
    """The parts inside a struct, the innermost first."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    stack: list[Any] = [field.type for field in info.fields]
    while stack:
        match stack.pop():
            case inspect.UnionType(types=types):
                stack.extend(types)
            case inspect.VarTupleType(item_type=item):
                stack.append(item)
            case inspect.StructType(cls=cls) if cls not in found:
                parts_of(cls, found)
                found[cls] = None


def layouts() -> str:
    lines = ["| number | message | fields |", "| --- | --- | --- |"]
    gossip_form = forms()[NUMBERS[Gossip] - 1]
    found: dict[type[msgspec.Struct], None] = {}
    for kind, number in NUMBERS.items():
        fields = layout(gossip_form if kind is Gossip else kind)
        lines.append(f"| {number} | `{kind.__struct_config__.tag}` | {fields} |")
        if kind is not Gossip:
            parts_of(kind, found)
    lines += ["", "| part | fields |", "| --- | --- |"]
    lines += [f"| {object_name(kind)} | {layout(kind)} |" for kind in found]
    return "\n".join(lines) + "\n"


def examples() -> str:
    lines = ["```"]
    for row in vectors()["messages"]:
        if row["type"] in EXAMPLES and len(row["frame"]) <= 1000:
            lines += [json.dumps(row["message"]), "    " + row["frame"], ""]
    return "\n".join(lines[:-1]) + "\n```\n"


# --- the page ---------------------------------------------------------------------------------------------------------

_TABLE = re.compile(r"^\| field \|.*\n\|[ |-]+\|\n((?:\|.*\n)*)", flags=re.MULTILINE)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def with_table(section: str, kind: type[msgspec.Struct]) -> str:
    """A section with its table brought up to date."""
    match = _TABLE.search(section)
    if match is None:
        return section.rstrip("\n") + "\n\n" + field_table(kind, {}) + "\n" if rows_of(kind) else section
    meanings = {row[0].strip("`"): row[3] for row in map(cells, match[1].splitlines())}
    return section[: match.start()] + field_table(kind, meanings) + section[match.end() :]


def with_sections(chapter: str, kinds: dict[str, type[msgspec.Struct]]) -> str:
    """A chapter with a section for each kind and no other, in the order in which they stand."""
    head, *pieces = re.split(r"^### (.+)\n", chapter, flags=re.MULTILINE)
    sections = dict(zip(pieces[::2], pieces[1::2], strict=True))
    present = [name for name in sections if name in kinds]
    absent = [name for name in kinds if name not in sections]
    text = head
    for name in present + absent:
        text += f"### {name}\n" + with_table(sections.get(name, "\n"), kinds[name])
    return text


def render(page: str) -> str:
    """The page with all that follows from the code."""
    first, *pieces = re.split(r"^(## .+\n)", page, flags=re.MULTILINE)
    text = first
    for heading, chapter in zip(pieces[::2], pieces[1::2], strict=True):
        kinds = CHAPTERS.get(heading[3:].strip())
        text += heading + (chapter if kinds is None else with_sections(chapter, kinds))
    for name, block in {"layouts": layouts(), "examples": examples()}.items():
        mark = f"<!-- {name}: by tests/docs/protocol_tables.py -->\n"
        before, _, rest = text.partition(mark)
        _, _, after = rest.partition("<!-- end -->\n")
        text = before + mark + block + "<!-- end -->\n" + after
    return text


if __name__ == "__main__":
    PATH.write_text(render(PATH.read_text(encoding="utf-8")), encoding="utf-8")
