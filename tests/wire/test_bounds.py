"""Each bound in the types of the wire, at its edge: the last value that fits is taken, the next one is refused."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, get_args

import pytest
from msgspec import inspect, msgpack, structs

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.codec import decode, decode_signaling, encode
from p2pmesh.wire.messages import Message, Unknown
from p2pmesh.wire.packing import forms
from p2pmesh.wire.signaling import BootstrapPeers, SignalingMessage

PATTERNS = {
    r"\A[A-Za-z0-9+/]{4,256}\Z": ("a" * 256, "a" * 257, "a" * 3, "aaa a", "aaaa\n"),
    r"\A[A-Za-z0-9+/]{22,256}\Z": ("a" * 256, "a" * 257, "a" * 21, "a" * 21 + "-", "a" * 22 + "\n"),
    r"\A[!-~]{1,32}\Z": ("~" * 32, "~" * 33, "", "a b", "a\n", "é"),
}
"""For each pattern but those of digits a text that fits, and some that do not."""


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def texts_of(pattern: str) -> tuple[str, ...]:
    """A text that fits, and some that do not."""
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    digits = int(pattern.removeprefix(r"\A[0-9a-f]{").removesuffix(r"}\Z"))
    fits = "a" * digits
    return fits, fits[1:], fits + "a", "A" * digits, "g" * digits, fits + "\n", ""


def least(kind: inspect.Type) -> Any:
    """A small value of a type, as JSON has it."""
    match kind:
        case inspect.StrType(pattern=str(pattern)):
            return texts_of(pattern)[0]
        case inspect.StrType(min_length=low):
            return "x" * (low or 0)
        case inspect.BytesType(min_length=low):
            return base64.b64encode(bytes(low or 0)).decode()
        case inspect.IntType(ge=low):
            return low or 0
        case inspect.BoolType():
            return True
        case inspect.NoneType() | inspect.AnyType():
            return None
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.UnionType(types=types):
            return least(types[0])
        case inspect.VarTupleType(item_type=item, min_length=low):
            return [least(item)] * (low or 0)
        case inspect.StructType():
            return least_struct(kind)
        case _:
            raise AssertionError(kind)


def least_struct(kind: inspect.StructType) -> dict[str, Any]:
    fields = {field.encode_name: least(field.type) for field in kind.fields if field.required}
    return {str(kind.tag_field): kind.tag, **fields} if kind.tag_field else fields


class Edge(NamedTuple):
    where: str
    fits: Any
    does_not: Any


def edges(kind: inspect.Type) -> Iterator[Edge]:
    """Values at the bounds of a type, and of all that it contains."""
    match kind:
        case inspect.StrType(pattern=str(pattern)):
            fits, *others = texts_of(pattern)
            for wrong in others:
                yield Edge("pattern", fits, wrong)
        case inspect.StrType(min_length=low, max_length=high):
            assert high is not None or low is None
            if high is not None:
                yield Edge("longest", "é" * high, "é" * (high + 1))
            if low:
                yield Edge("shortest", "x" * low, "x" * (low - 1))
        case inspect.BytesType(min_length=low, max_length=high):
            for size, other in ((low, -1), (high, 1)):
                if size is not None:
                    yield Edge("bytes", *(base64.b64encode(bytes(n)).decode() for n in (size, size + other)))
        case inspect.IntType(ge=low, le=high, lt=above):
            highest = high if above is None else above - 1
            if low is not None:
                yield Edge("least", low, low - 1)
            if highest is not None:
                yield Edge("most", highest, highest + 1)
        case inspect.UnionType(types=types):
            for one in types:
                yield from edges(one)
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            assert high is not None, "a list without a bound"
            yield Edge("list", [least(item)] * high, [least(item)] * (high + 1))
            if low:
                yield Edge("shortest list", [least(item)] * low, [least(item)] * (low - 1))
            for where, fits, does_not in edges(item):
                yield Edge(f"[]{where}", [fits], [does_not])
        case inspect.StructType(fields=fields):
            for field in fields:
                for where, fits, does_not in edges(field.type):
                    whole = least_struct(kind)
                    name = field.encode_name
                    yield Edge(f".{name}{where}", whole | {name: fits}, whole | {name: does_not})
                if field.required:
                    whole, name = least_struct(kind), field.encode_name
                    yield Edge(f".{name} missing", whole, {key: whole[key] for key in whole if key != name})
        case _:
            pass


def all_edges(union: Any) -> list[Any]:
    # Entries of bootstrap_peers are read one by one, so that one bad id does not spoil the list: tested by itself.
    kinds = [kind for kind in get_args(union) if kind is not BootstrapPeers]
    return [
        pytest.param(fits, does_not, id=f"{kind.__struct_config__.tag}{where}")
        for kind in kinds
        for where, fits, does_not in edges(inspect.type_info(kind))
    ]


@pytest.mark.parametrize(("fits", "does_not"), all_edges(Message))
def test_a_frame_at_a_bound_is_read_and_beyond_it_refused(fits: dict[str, Any], does_not: dict[str, Any]) -> None:
    assert not isinstance(decode(dumps(fits).encode()), Unknown)
    with pytest.raises(RemoteProtocolError):
        decode(dumps(does_not).encode())


@pytest.mark.parametrize(("fits", "does_not"), all_edges(SignalingMessage))
def test_a_signaling_message_at_a_bound_is_read_and_beyond_it_refused(
    fits: dict[str, Any], does_not: dict[str, Any]
) -> None:
    assert not isinstance(decode_signaling(dumps(fits)), Unknown)
    with pytest.raises(RemoteProtocolError):
        decode_signaling(dumps(does_not))


# --- packed -----------------------------------------------------------------------------------------------------------


def least_packed(kind: inspect.Type) -> Any:
    match kind:
        case inspect.StructType():
            return packed_entries(kind)
        case inspect.BytesType(min_length=low):
            return bytes(low or 0)
        case inspect.UnionType(types=types):
            return least_packed(types[0])
        case inspect.VarTupleType(item_type=item, min_length=low):
            return [least_packed(item)] * (low or 0)
        case _:
            return least(kind)


def packed_entries(kind: inspect.StructType, change: tuple[int, Any] | None = None) -> list[Any]:
    """The entries of an array, as few as there may be, with one of them changed."""
    required = [at for at, field in enumerate(kind.fields, 1) if field.required]
    last = max([0, *required, *(() if change is None else (change[0] + 1,))])
    entries = [least_packed(field.type) if field.required else field.default for field in kind.fields[:last]]
    if change is not None:
        entries[change[0]] = change[1]
    return entries if kind.tag is None else [kind.tag, *entries]


HANGS_ON_ANOTHER = {("_GossipForm", "beforemost"), ("_GossipForm", "contentmost")}
"""Bounds that fit only with another value of another field: see `test_codec`."""


def packed_edges(kind: inspect.Type) -> Iterator[Edge]:
    match kind:
        case inspect.BytesType(min_length=low, max_length=high):
            if low:
                yield Edge("shortest", bytes(low), bytes(low - 1))
            if high is not None:
                yield Edge("longest", bytes(high), bytes(high + 1))
        case inspect.LiteralType(values=values):
            yield Edge("choice", len(values) - 1, len(values))
            yield Edge("first choice", 0, -1)
        case inspect.UnionType(types=types):
            for one in types:
                yield from packed_edges(one)
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            assert high is not None, "a list without a bound"
            yield Edge("list", [least_packed(item)] * high, [least_packed(item)] * (high + 1))
            if low:
                yield Edge("shortest list", [least_packed(item)] * low, [least_packed(item)] * (low - 1))
            for where, fits, does_not in packed_edges(item):
                yield Edge(f"[]{where}", [fits], [does_not])
        case inspect.StructType(cls=cls, fields=fields):
            for at, field in enumerate(fields):
                for where, fits, does_not in packed_edges(field.type):
                    if (cls.__name__, field.name + where) not in HANGS_ON_ANOTHER:
                        yield Edge(
                            f".{field.name}{where}", *(packed_entries(kind, (at, value)) for value in (fits, does_not))
                        )
            whole = packed_entries(kind)
            if any(field.required for field in fields):
                yield Edge(" one field missing", whole, whole[:-1])
        case _:
            yield from edges(kind)


def all_packed_edges() -> list[Any]:
    found = [(form, edge) for form in forms() for edge in packed_edges(inspect.type_info(form))]
    return [pytest.param(edge.fits, edge.does_not, id=f"{form.__name__}{edge.where}") for form, edge in found]


@pytest.mark.parametrize(("fits", "does_not"), all_packed_edges())
def test_a_packed_frame_at_a_bound_is_read_and_beyond_it_refused(fits: list[Any], does_not: list[Any]) -> None:
    received = decode(msgpack.encode(fits))
    assert not isinstance(received, Unknown)
    assert decode(encode(received)) == received
    with pytest.raises(RemoteProtocolError):
        decode(msgpack.encode(does_not))


BLOBS = [
    (form, at, field.type)
    for form in forms()
    for at, field in enumerate(inspect.type_info(form).fields)  # type: ignore[attr-defined]
    if isinstance(field.type, inspect.BytesType) and not field.type.min_length and field.type.max_length
]


@pytest.mark.parametrize(
    ("form", "at", "kind"), [pytest.param(*one, id=f"{one[0].__name__} {one[1]}") for one in BLOBS]
)
def test_a_blob_of_ids_holds_whole_ones(form: Any, at: int, kind: inspect.BytesType) -> None:
    info = inspect.type_info(form)
    assert isinstance(info, inspect.StructType)

    def message_with(size: int) -> Any:
        return decode(msgpack.encode(packed_entries(info, (at, bytes(size)))))

    assert kind.max_length is not None
    sizes = [size for size in (1, 6, 16, 20) if kind.max_length % size == 0]
    assert sizes
    for size in sizes:
        with suppress(RemoteProtocolError):
            tuples = [value for value in structs.astuple(message_with(size)) if isinstance(value, tuple) and value]
            assert [len(value) for value in tuples] == [1]
            if size > 1:
                with pytest.raises(RemoteProtocolError):
                    message_with(size + 1)
            return
    pytest.fail("no blob of one id is read")
