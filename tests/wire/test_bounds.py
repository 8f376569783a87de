"""Each bound in the types of the wire, at its edge: the last value that fits is taken, the next one is refused."""

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import pytest
from msgspec import inspect

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.codec import decode, decode_signaling
from p2pmesh.wire.messages import Message, Unknown
from p2pmesh.wire.signaling import BootstrapPeers, SignalingMessage


def digits_of(pattern: str) -> int:
    """How many hexadecimal digits a pattern asks for."""
    return int(pattern[pattern.index("{") + 1 : pattern.index("}")])


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def least(kind: inspect.Type) -> Any:
    """A small value of a type, as JSON has it."""
    match kind:
        case inspect.StrType(pattern=str() as pattern):
            return "a" * digits_of(pattern)
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
        case inspect.VarTupleType():
            return []
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
        case inspect.StrType(pattern=str() as pattern):
            digits = digits_of(pattern)
            right = "a" * digits
            for wrong in (right[1:], right + "a", right.upper(), "g" * digits, right + "\n", ""):
                yield Edge("id", right, wrong)
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
        case inspect.VarTupleType(item_type=item, max_length=high):
            assert high is not None, "a list without a bound"
            yield Edge("list", [least(item)] * high, [least(item)] * (high + 1))
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
