"""Payloads: what an application sends is what the other side's gets, or the reason is plain before anything is sent."""

from __future__ import annotations

import base64
import enum
import gc
import json
import time
from collections import OrderedDict, defaultdict
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import InvalidPayload, PayloadTooLarge, RemoteProtocolError
from p2pmesh.wire.codec import MAX_DEPTH
from p2pmesh.wire.payloads import MAX_INTEGER_BITS, Body, legacy, legacy_direct, pack, unpack

LIMIT = 1 << 20

unicode = st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | unicode,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(unicode, inner, max_size=4),
    max_leaves=15,
)


def carried(payload: Any) -> Any:
    body = pack(payload, LIMIT)
    return unpack(body.payload, body.encoding, body.blob)


def same(a: Any, b: Any) -> bool:
    """Equal, and 1, 1.0 and True are three."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@given(json_values)
def test_what_json_can_carry_arrives_as_it_was(payload: Any) -> None:
    assert same(carried(payload), payload)


@given(st.binary())
def test_bytes_arrive_as_they_were(payload: bytes) -> None:
    for form in (payload, bytearray(payload), memoryview(payload)):
        assert carried(form) == payload
        assert type(carried(form)) is bytes


@pytest.mark.parametrize("text", ["", "hi", '{"a": 1}', "[1]", "null", "5", '"quoted"', "\u20ac\x00\U0001f600"])
def test_a_string_stays_a_string_whatever_it_looks_like(text: str) -> None:
    assert carried(text) == text
    assert pack(text, LIMIT) == Body(text, "text")


def test_tuples_arrive_as_lists() -> None:
    class Point(NamedTuple):
        x: int
        y: int

    assert carried({"a": (1, (2,)), "b": Point(1, 2)}) == {"a": [1, [2]], "b": [1, 2]}
    assert carried((1, 2)) == [1, 2]


def test_subclasses_arrive_as_what_they_extend() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    class Float(float): ...

    assert carried(Colour.RED) == "red"
    assert carried([Colour.RED, Level.HIGH, Float(1.5)]) == ["red", 3, 1.5]
    assert pack(Float(2.5), LIMIT) == Body("2.5", "json")
    assert carried(OrderedDict(a=defaultdict(int, b=1))) == {"a": {"b": 1}}


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"a": [1, 2, 3, {4}]}, r"^payload\['a'\]\[3\] is a set: payloads are"),
        ({"a": {"b": object()}}, r"^payload\['a'\]\['b'\] is an object"),
        (object(), "^payload is an object"),
        ({1, 2}, "^payload is a set"),
        (1j, "^payload is a complex"),
        ({"a": b"x"}, r"^payload\['a'\] is a bytes: bytes can be a whole payload"),
        (float("nan"), "^payload is nan"),
        ([1.0, float("-inf")], r"^payload\[1\] is -inf"),
        ({"a": {5: 1}}, r"^payload\['a'\] has the key 5, an int"),
        ({None: 1}, "^payload has the key None"),
        ({(1,): 1}, "^payload has the key"),
        ("\ud800", "^payload has half a surrogate pair"),
        (["a\udfff"], r"^payload\[0\] has half a surrogate pair"),
        ({"\ud800": 1}, "^the key .* of payload has half a surrogate pair"),
        ([1 << MAX_INTEGER_BITS], r"^payload\[0\] is an integer of more than 1023 bits"),
        ({"x" * 100: {1}}, r"^payload\['x{1,40}\] is a set"),
    ],
)
def test_what_json_can_not_carry_is_named(payload: Any, complaint: str) -> None:
    with pytest.raises(InvalidPayload, match=complaint):
        pack(payload, LIMIT)


def test_the_largest_integers_arrive() -> None:
    largest = (1 << MAX_INTEGER_BITS) - 1
    assert carried([largest, -largest]) == [largest, -largest]
    assert carried(largest) == largest


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_ends_at_the_limit() -> None:
    assert carried(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidPayload, match="deeper than 100"):
            pack(nested(depth), LIMIT)


def test_a_payload_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    with pytest.raises(InvalidPayload, match="contains itself"):
        pack(loop, LIMIT)


@pytest.mark.parametrize(
    ("fits", "too_large"),
    [
        (b"x" * 10, b"x" * 11),
        (memoryview(b"x" * 10), memoryview(b"x" * 11)),
        ("x" * 10, "x" * 11),
        ("\u20ac" * 3, "\u20ac" * 4),
        ([1000, 200], [1000, 2000]),
        ({"abcd": 1}, {"abcde": 1}),
        (1_234_567_890, 12_345_678_901),
    ],
)
def test_the_limit_counts_the_bytes_of_the_payload(fits: Any, too_large: Any) -> None:
    assert pack(fits, 10).size <= 10
    with pytest.raises(
        PayloadTooLarge, match=r"the payload has (at least )?1[12] bytes, the limit is 10 \(MeshConfig.max_payload\)"
    ):
        pack(too_large, 10)


@given(json_values)
def test_a_payload_of_exactly_the_limit_fits(payload: Any) -> None:
    size = pack(payload, LIMIT).size
    assert pack(payload, size).size == size
    with pytest.raises(PayloadTooLarge):
        pack(payload, size - 1)


def test_a_small_object_that_becomes_large_is_found_out_early() -> None:
    doubling: list[Any] = [1]
    for _ in range(MAX_DEPTH - 1):
        doubling = [doubling, doubling]  # 2**99 numbers
    with pytest.raises(PayloadTooLarge):
        pack(doubling, 10_000)
    with pytest.raises(PayloadTooLarge):
        pack(["\u20ac" * 1000] * 1_000_000, 10_000)
    with pytest.raises(PayloadTooLarge):
        pack([{"k" * 1000: None}] * 1_000_000, 10_000)


# --- received ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5, 1.5, True, False, None, "", "text"])
def test_scalars_of_the_original_arrive_as_they_are(value: Any) -> None:
    received = unpack(value, None, None)
    assert received == value
    assert type(received) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1]}', {"a": [1]}),
        ("[]", []),
        ("[not json", "[not json"),
        ("{'a': 1}", "{'a': 1}"),
        ("[NaN]", "[NaN]"),
        (" [1]", " [1]"),
        ("5", "5"),
        ('"x"', '"x"'),
        ("[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_string_of_the_original_is_json_if_it_looks_like_it_and_is(text: str, value: Any) -> None:
    assert unpack(text, None, None) == value


@pytest.mark.parametrize(
    ("payload", "encoding", "blob"),
    [
        ("x", None, b"x"),
        (0, None, b"x"),
        (None, "text", b"x"),
        (None, "json", b"x"),
        (None, "text", None),
        (5, "text", None),
        (5, "json", None),
        ("", "json", None),
        ("nonsense", "json", None),
        ("[1] [2]", "json", None),
        ("NaN", "json", None),
        ("1e999", "json", None),
        ('"\\ud800"', "json", None),
        ("9" * 5000, "json", None),
        ("[" * 101 + "]" * 101, "json", None),
        ("[" * 100_000, "json", None),
    ],
)
def test_a_body_that_contradicts_itself_is_the_peers_fault(payload: Any, encoding: Any, blob: bytes | None) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(payload, encoding, blob)


@given(st.none() | st.text() | st.integers(), st.sampled_from([None, "text", "json"]), st.none() | st.binary())
def test_whatever_a_body_holds_it_is_a_payload_or_the_peers_fault(payload: Any, encoding: Any, blob: Any) -> None:
    with suppress(RemoteProtocolError):
        unpack(payload, encoding, blob)
    with suppress(RemoteProtocolError):
        legacy(Body(payload, encoding, blob))


# --- for the original's peers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "broadcast", "direct"),
    [
        ("text", "text", "text"),
        ('{"a": 1}', '{"a": 1}', '{"a": 1}'),
        ({"a": [1, None]}, '{"a":[1,null]}', {"a": [1, None]}),
        ([], "[]", []),
        (5, 5, 5),
        (1.5, 1.5, 1.5),
        (True, True, True),
        (None, None, None),
        (b"\x00\xff", "AP8=", "AP8="),
        (b"", "", ""),
    ],
)
def test_the_original_gets_what_it_knows(payload: Any, broadcast: Any, direct: Any) -> None:
    body = pack(payload, LIMIT)
    assert legacy(body) == broadcast
    assert type(legacy(body)) is type(broadcast)
    assert legacy_direct(body) == direct


@given(json_values.filter(lambda value: not isinstance(value, str)))
def test_the_original_reads_all_json_but_strings_as_it_was(payload: Any) -> None:
    assert same(unpack(legacy(pack(payload, LIMIT)), None, None), payload)


@given(st.binary())
def test_the_original_gets_bytes_as_base64(payload: bytes) -> None:
    text = legacy(pack(payload, LIMIT))
    assert isinstance(text, str)
    assert base64.b64decode(text, validate=True) == payload


@pytest.mark.parametrize("payload", [5, None, "x", "[1]"])
def test_what_came_from_the_original_goes_back_to_it_unchanged(payload: Any) -> None:
    assert legacy(Body(payload)) == payload


# --- time -------------------------------------------------------------------------------------------------------------


def seconds(payload: Any) -> float:
    best = float("inf")
    gc.disable()  # what it takes depends on all else that lives in this process
    try:
        for _ in range(5):
            start = time.thread_time()
            carried(payload)
            best = min(best, time.thread_time() - start)
    finally:
        gc.enable()
    return best


@pytest.mark.parametrize(
    "make",
    [
        lambda size: [1] * size,
        lambda size: [[]] * size,
        lambda size: {str(n): n for n in range(size)},
        lambda size: "\u20ac" * size * 8,
        lambda size: b"x" * size * 8,
    ],
)
def test_time_is_linear_in_the_size(make: Any) -> None:
    is_linear = (seconds(make(40_000)) < 0.001 + seconds(make(5_000)) * 8 * 3 for _ in range(4))
    assert any(is_linear), "eight times the size; quadratic would be 64 times the time, whatever else the machine does"
