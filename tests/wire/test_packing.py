"""What each type of field becomes in an array: a new message needs nothing but its struct."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.fields import Count, Hops, Id, MessageId, Part
from p2pmesh.wire.messages import Message
from p2pmesh.wire.packing import NUMBERS, _layout_of

PREFIX = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}\Z")]
A, B = "0a" * 20, "b1" * 20


class Inner(Part, frozen=True, kw_only=True):
    name: Annotated[str, Meta(max_length=8)]
    count: Count = 7


class Whole(Part, frozen=True, kw_only=True):
    peer: Id
    kind: Literal["first", "second", "third"]
    trail: Annotated[tuple[PREFIX, ...], Meta(max_length=3)] = ()
    ids: Annotated[tuple[MessageId, ...], Meta(max_length=2)] = ()
    hops: Annotated[tuple[Hops, ...], Meta(max_length=4)] = ()
    inner: Inner | None = None
    more: Annotated[tuple[Inner, ...], Meta(max_length=2)] = ()
    mode: Literal["a", "b"] = "b"
    about: PREFIX | None = None
    flag: bool = False


class Least(Part, frozen=True, kw_only=True):
    trail: Annotated[tuple[PREFIX, ...], Meta(min_length=2, max_length=3)]
    ids: Annotated[tuple[MessageId, ...], Meta(min_length=1, max_length=2)]
    hops: Annotated[tuple[Hops, ...], Meta(min_length=1, max_length=4)]
    more: Annotated[tuple[Inner, ...], Meta(min_length=1, max_length=2)]


LAYOUT = _layout_of(Whole)
DECODER: Any = msgspec.msgpack.Decoder(LAYOUT.form)


def unpack(entries: list[Any]) -> Any:
    return LAYOUT.unpack(DECODER.decode(msgspec.msgpack.encode(entries)))


@pytest.mark.parametrize(
    ("changes", "rest"),
    [
        ({}, []),
        ({"trail": ("0123456789ab", "ffffffffffff")}, [bytes.fromhex("0123456789abffffffffffff")]),
        ({"ids": ("0a" * 16, "b1" * 16)}, [b"", bytes.fromhex("0a" * 16 + "b1" * 16)]),
        ({"ids": ("0a" * 16, "text")}, [b"", ("0a" * 16, "text")]),
        ({"hops": (0, 255)}, [b"", b"", b"\0\xff"]),
        ({"inner": Inner(name="x")}, [b"", b"", b"", ["x"]]),
        ({"more": (Inner(name="x", count=1), Inner(name="y"))}, [b"", b"", b"", None, [["x", 1], ["y"]]]),
        ({"mode": "a"}, [b"", b"", b"", None, (), 0]),
        ({"about": "0123456789ab"}, [b"", b"", b"", None, (), 1, bytes.fromhex("0123456789ab")]),
        ({"flag": True}, [b"", b"", b"", None, (), 1, None, True]),
    ],
    ids=str,
)
def test_a_struct_is_an_array_up_to_the_last_field_that_is_no_default(changes: dict[str, Any], rest: list[Any]) -> None:
    whole = Whole(peer=A, kind="third", **changes)  # type: ignore[arg-type]
    entries = [bytes.fromhex(A), 2, *rest]
    assert LAYOUT.pack(whole) == entries
    assert unpack(entries) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        [bytes(19), 0],
        [bytes(20), 3],
        [bytes(20), 0, bytes(5)],
        [bytes(20), 0, bytes(24)],
        [bytes(20), 0, b"", bytes(17)],
        [bytes(20), 0, b"", bytes(48)],
        [bytes(20), 0, b"", ["0a" * 16]],
        [bytes(20), 0, b"", b"", bytes(5)],
        [bytes(20), 0, b"", b"", b"", []],
        [bytes(20), 0, b"", b"", b"", ["too long a name"]],
        [bytes(20), 0, b"", b"", b"", None, [["x"], ["y"], ["z"]]],
        [bytes(20), 0, b"", b"", b"", None, [], 2],
        [bytes(20), 0, b"", b"", b"", None, [], 0, bytes(7)],
    ],
    ids=str,
)
def test_what_is_out_of_a_fields_bounds_is_refused(wrong: list[Any]) -> None:
    with pytest.raises((RemoteProtocolError, msgspec.ValidationError)):
        unpack(wrong)


@pytest.mark.parametrize(("at", "wrong"), [(0, bytes(6)), (1, b""), (1, []), (2, b""), (3, [])])
def test_a_list_that_is_too_short_is_refused(at: int, wrong: Any) -> None:
    layout = _layout_of(Least)
    decoder: Any = msgspec.msgpack.Decoder(layout.form)
    entries: list[Any] = [bytes(12), bytes(16), b"\0", [["x"]]]
    assert layout.unpack(decoder.decode(msgspec.msgpack.encode(entries))).more == (Inner(name="x"),)
    entries[at] = wrong
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(msgspec.msgpack.encode(entries))


def test_numbers_of_messages_are_their_places_in_the_union() -> None:
    assert list(NUMBERS) == list(Message.__args__)
    assert list(NUMBERS.values()) == list(range(1, len(NUMBERS) + 1))
    assert len(NUMBERS) < 128, "one byte each"
