"""The codec: what goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import gc
import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import peer_id_of
from p2pmesh.keyspace import PeerId
from p2pmesh.wire.codec import MAX_DEPTH, MAX_SIGNALING, decode, decode_signaling, encode, encode_signaling, is_too_deep
from p2pmesh.wire.messages import (
    Direct,
    DirectAck,
    Goodbye,
    Gossip,
    GossipData,
    GossipReceipts,
    GossipWant,
    Message,
    ReconnectionData,
    Unknown,
)
from p2pmesh.wire.overlay import Packet
from p2pmesh.wire.packing import NUMBERS
from p2pmesh.wire.signaling import SignalingMessage
from tests.harness.examples import examples

A = PeerId("0a" * 20)
B = PeerId("b1" * 20)
GOSSIP = Gossip(
    data=GossipData(
        id="msg-1", topic="chat", payload="hi", origin_peer_id=A, timestamp=1_700_000_000_000, hops=2, relayed_by=(A, B)
    )
)
GOODBYE = Goodbye(reason="bye", peers=(A,))

# --- any message at all, made from the types themselves ---------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53), 1 << 53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def strategy_of(kind: inspect.Type, anything: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a type as msgspec describes it, up to its bounds."""
    match kind:
        case inspect.StrType(pattern=str() as pattern):
            return st.from_regex(pattern.replace("256}", "40}"))
        case inspect.StrType(min_length=low, max_length=high):
            return st.text(min_size=low or 0, max_size=min(high or 40, 40))
        case inspect.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=high or 40)
        case inspect.IntType(ge=low, le=high, lt=above):
            bounds = (low, high if above is None else above - 1)
            return st.integers(*((-(1 << 53), 1 << 53) if bounds == (None, None) else bounds))
        case inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return anything
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.UnionType(types=types):
            return st.one_of(*(strategy_of(one, anything) for one in types))
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            assert high is not None, "every list of the protocol is bounded"
            return st.lists(strategy_of(item, anything), min_size=low or 0, max_size=min(high, 5)).map(tuple)
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{one.name: strategy_of(one.type, anything) for one in fields})
        case _:
            raise AssertionError(f"no strategy for {kind}")


def any_message(union: Any, anything: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*(strategy_of(inspect.type_info(kind), anything) for kind in get_args(union)))


scalars = json_values.filter(lambda value: not isinstance(value, list | dict))


@st.composite
def packed_gossips(draw: st.DrawFn) -> Gossip:
    """Broadcasts as peers of ours send them: nothing in them contradicts, and nothing is for the original's peers."""
    any_data = draw(strategy_of(inspect.type_info(GossipData), scalars))
    body = draw(
        st.tuples(st.none(), st.none(), st.binary(max_size=40))
        | st.tuples(st.text(max_size=40), st.sampled_from(["text", "json"]), st.none())
        | st.tuples(scalars, st.none(), st.none())
    )
    changes: dict[str, Any] = dict(zip(("payload", "encoding", "blob"), body, strict=True))
    if any_data.key is None or any_data.signature is None:
        changes |= {"key": None, "signature": None}
    else:
        changes |= {
            "origin_peer_id": peer_id_of(any_data.key),
            "ttl": any_data.ttl or draw(st.sampled_from([0, 60_000])),
            "max_hops": any_data.max_hops or draw(st.sampled_from([0, 64])),
        }
    return Gossip(data=msgspec.structs.replace(any_data, relayed_by=(), **changes))


def without_contradiction(message: Message) -> Message:
    """The id of an origin with a proof follows from its key, which is then not there without a signature."""
    if not isinstance(message, Packet):
        return message
    if message.key is None or message.signature is None:
        return msgspec.structs.replace(message, key=None, signature=None)
    return msgspec.structs.replace(message, from_=peer_id_of(message.key))


others = any_message(Message, scalars).filter(lambda message: not isinstance(message, Gossip))
packed_messages = others.map(without_contradiction) | packed_gossips()
text_messages = any_message(Message, json_values)
signaling_messages = any_message(SignalingMessage, json_values)


@given(packed_messages)
def test_any_message_survives_message_pack(message: Message) -> None:
    assert decode(encode(message)) == message


@given(text_messages)
def test_any_message_survives_json(message: Message) -> None:
    assert decode(encode(message, text=True)) == message


@given(signaling_messages)
def test_any_signaling_message_survives(message: SignalingMessage) -> None:
    assert decode_signaling(encode_signaling(message)) == message
    assert decode_signaling(encode_signaling(message).encode()) == message


@pytest.mark.parametrize("text", [False, True])
def test_a_decoded_direct_message_has_its_public_type(text: bool) -> None:
    assert type(decode(encode(Direct(payload="x"), text=text))) is Direct


# --- garbage ----------------------------------------------------------------------------------------------------------


def survives(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        message = parse(data)
    except RemoteProtocolError:
        return
    assert isinstance(message, msgspec.Struct)


@given(st.binary(max_size=200))
@examples(500)
def test_arbitrary_bytes_do_no_harm(data: bytes) -> None:
    survives(decode, data)
    survives(decode_signaling, data)


@given(st.text(max_size=200) | json_values.map(json.dumps))
def test_arbitrary_text_does_no_harm(text: str) -> None:
    survives(decode, text.encode(errors="replace"))
    survives(lambda _: decode_signaling(text), b"")


@st.composite
def mutated(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    frame = bytearray(draw(frames))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if at < len(frame):
                frame[at] ^= draw(st.integers(1, 255))
            case "cut":
                del frame[at : at + draw(st.integers(1, 8))]
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                frame[at:at] = frame[at : at + 16]
    return bytes(frame)


@given(mutated(packed_messages.map(encode) | text_messages.map(lambda message: encode(message, text=True))))
@examples(500)
def test_damaged_frames_do_no_harm(frame: bytes) -> None:
    survives(decode, frame)


@given(mutated(signaling_messages.map(lambda message: encode_signaling(message).encode())))
def test_damaged_signaling_does_no_harm(data: bytes) -> None:
    survives(decode_signaling, data)


@given(
    packed_messages, st.recursive(st.binary() | st.dates() | st.floats(), lambda inner: st.lists(inner), max_leaves=3)
)
def test_fields_of_the_wrong_type_do_no_harm(message: Message, wrong: object) -> None:
    tree = msgspec.to_builtins(message)
    for name in tree:
        survives(decode, msgspec.json.encode({**tree, name: wrong}))
    entries = msgspec.msgpack.decode(encode(message))
    for at in range(len(entries)):
        survives(decode, msgspec.msgpack.encode([*entries[:at], wrong, *entries[at + 1 :]]))


# --- what is known, unknown and wrong ---------------------------------------------------------------------------------


def packed(kind: type[msgspec.Struct], *entries: object) -> bytes:
    return msgspec.msgpack.encode([NUMBERS[kind], *entries])


def test_a_message_of_unknown_type_is_unknown() -> None:
    assert decode(b'{"type":"from_the_future","data":[1,{"a":null}]}') == Unknown("from_the_future")
    assert decode(msgspec.msgpack.encode([1000, "data", [1, {"a": None}]])) == Unknown("1000")
    assert decode(msgspec.msgpack.encode([0])) == Unknown("0")


def test_fields_that_a_later_version_adds_at_the_end_are_ignored() -> None:
    entries = msgspec.msgpack.decode(encode(GOODBYE))
    assert decode(msgspec.msgpack.encode([*entries, 5, {"a": [b"x"]}])) == GOODBYE


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"null",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"hello there",
        b" ",
        b"\xef\xbb\xbf{}",
        b"\xc0",
        b"\x80",
        b"\x90",
        b'{"type":5}',
        b'{"type":null}',
        b'{"type":"direct"} {"type":"direct"}',
        b'{"type":"' + b"x" * 65 + b'"}',
        b'{"type":"gossip"}',
        b'{"type":"direct","payload":NaN}',
        b'{"type":"direct","payload":1e999}',
        b'{"type":"direct","payload":' + b"9" * 5000 + b"}",
        b'{"type":"direct","payload":"\\ud800"}',
        b'{"type":"direct","payload":"\xff"}',
        b'{"type":"direct_ack","id":""}',
        b'{"type":"direct_ack","id":"' + b"x" * 129 + b'"}',
        b'{"type":"gossip_receipts","receipts":[{"id":"x","count":-1}]}',
        b'{"type":"gossip_receipts","receipts":[{"id":"x","count":1.5}]}',
        b'{"type":"gossip_receipts","receipts":[{"id":"x","count":4294967296}]}',
        msgspec.msgpack.encode({"type": "direct", "payload": "a map"}),
        packed(Direct, [1]),
        packed(Direct, {"a": 1}),
        packed(Direct, b"bytes"),
        packed(Direct, float("nan")),
        packed(Direct, msgspec.msgpack.Ext(5, b"1234")),
        packed(Direct, None) + b"\x00",  # more follows
        packed(Direct, 5)[:-1],
        bytes([0x92, NUMBERS[Direct]]) + b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        bytes([0x92, NUMBERS[Direct]]) + b"\xa1\xff",  # not UTF-8
        bytes([0xDD, 0, 0, 0, 2, NUMBERS[Direct]]) + b"\x05",  # an array with a longer header than it can need
        packed(DirectAck),
        packed(DirectAck, b"x" * 15),
        packed(DirectAck, b"x" * 17),
        packed(DirectAck, "x"),
        packed(DirectAck, ["x", "y"]),
        packed(DirectAck, [[]]),
        packed(DirectAck, ["0a" * 16]),  # 32 digits that 16 bytes would say
        packed(GossipWant, b"x" * 17),
        packed(GossipWant, ["0a" * 16, "1b" * 16]),
        packed(GossipWant, []),
        packed(GossipReceipts, None, [[bytes(16), -1]]),
        packed(GossipReceipts, None, [[bytes(16), 1.0]]),
        packed(GossipReceipts, None, [[bytes(16)]]),
        packed(GossipReceipts, None, [bytes(16), 1]),
        packed(Goodbye, "", bytes(39)),
        packed(Packet, bytes(16), 0, bytes(32), bytes(20)),
        packed(Packet, bytes(16), 0, bytes(95), bytes(20)),
        b"\x91\xff",  # a number below 0
        b"\x91\xc3",
        b"\x91\xa1x",
        b"\x91\xcf" + b"\xff" * 8,
    ],
)
def test_what_is_no_message_is_the_peers_fault(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(frame)


def plain_gossip(body: bytes) -> bytes:
    """A packed broadcast of an original's peer."""
    return packed(Gossip, "chat", 3, body, ["msg-1"], bytes.fromhex(A), 1_700_000_000_000, 2)


@pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-1e999", b"Infinity", b"[1]", b"", b"1 1", b'"\xff"'])
def test_a_broadcast_of_no_scalar_and_no_finite_number_is_refused(number: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(plain_gossip(number))


@pytest.mark.parametrize(
    "change",
    [
        {"content": 8},
        {"content": -1},
        {"content": 1, "body": b"\xff"},
        {"body": "text"},
        {"origin": bytes(21)},
        {"origin": bytes(32)},
        {"origin": bytes(95)},
        {"before": 1_700_000_000_001},
        {"before": 1_700_000_000_000 - (1 << 53)},
        {"id": b"short"},
    ],
    ids=str,
)
def test_a_broadcast_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    fields = {
        "topic": "chat",
        "content": 0,
        "body": b"x",
        "id": bytes(16),
        "origin": bytes(20),
        "timestamp": 1_700_000_000_000,
        "hops": 2,
        "age": 0,
        "sequence": 1,
        "before": 5,
    }
    received = decode(packed(Gossip, *fields.values()))
    assert isinstance(received, Gossip)
    assert received.data.series == 1_699_999_999_995
    with pytest.raises(RemoteProtocolError):
        decode(packed(Gossip, *(fields | change).values()))


def test_what_only_the_originals_peers_need_stays_away_from_ours() -> None:
    data = msgspec.structs.replace(GOSSIP.data, relayed_by=())
    assert decode(encode(msgspec.structs.replace(GOSSIP, delivery_id="msg-1_1", requires_ack=True))) == Gossip(
        data=data
    )


def gossip_of(payload: Any) -> Gossip:
    return msgspec.structs.replace(GOSSIP, data=msgspec.structs.replace(GOSSIP.data, payload=payload))


@pytest.mark.parametrize("number", [10**20, -(10**20), 2**64])
def test_a_number_beyond_64_bits_arrives_as_the_double_it_is_in_javascript(number: int) -> None:
    received = decode(encode(gossip_of(number), text=True))
    assert received == gossip_of(float(number))
    assert isinstance(received, Gossip)
    sent_on = msgspec.structs.replace(received, data=msgspec.structs.replace(received.data, relayed_by=()))
    assert decode(encode(received)) == sent_on, "it can be sent on in either encoding"


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 0, 1.5, True])
def test_other_numbers_arrive_as_they_are(number: float) -> None:
    received = decode(encode(gossip_of(number), text=True))
    assert isinstance(received, Gossip)
    assert received.data.payload == number
    assert type(received.data.payload) is type(number)


def test_a_number_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="bounds"):
        decode(encode(gossip_of(10**400), text=True))


def test_complaints_quote_little_of_the_input() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(b'{"type":"' + b"x" * 100_000 + b'"}')
    assert len(str(caught.value)) < 300


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_frame_above_the_limit_is_refused() -> None:
    frame = encode(GOODBYE)
    assert decode(frame, limit=len(frame)) == GOODBYE
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode(frame, limit=len(frame) - 1)


def test_signaling_above_the_limit_is_refused_and_counted_in_bytes() -> None:
    filler = "\u20ac" * (MAX_SIGNALING // 3)
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode_signaling(f'{{"type":"new","x":"{filler}"}}')
    assert decode_signaling(f'{{"type":"new","x":"{filler[:-10]}"}}') == Unknown("new")


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


@pytest.mark.parametrize("more", [0, 1])
def test_nesting_ends_at_the_limit(more: int) -> None:
    fine, wrong = nested(MAX_DEPTH - more), nested(MAX_DEPTH + 1 + more)
    assert not is_too_deep(fine)
    assert is_too_deep(wrong)
    assert decode(encode(Direct(payload=fine), text=True)) == Direct(payload=fine)
    with pytest.raises(RemoteProtocolError, match="deeper"):
        decode(encode(Direct(payload=wrong), text=True))


DEEP = 200_000


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"direct","payload":' + b"[" * DEEP,
        b'{"type":"direct","payload":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"type":"direct","payload":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b'{"type":"direct","nobody_reads":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"type":"gossip","data":' + b"[" * DEEP,
        b"[" * DEEP,
        bytes([0x92, NUMBERS[Direct]]) + b"\x91" * DEEP,
        bytes([0x92, NUMBERS[Direct]]) + b"\x81\xa1a" * DEEP + b"\xc0",
        bytes([0x97, NUMBERS[Direct], *[0xC0] * 5]) + b"\x91" * DEEP + b"\xc0",
        b"\x92\x7f" + b"\x91" * DEEP + b"\xc0",
        b"\x91" * DEEP,
    ],
)
def test_bottomless_nesting_is_refused(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(frame)
    with pytest.raises(RemoteProtocolError):
        decode_signaling(frame, limit=len(frame))


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xdb", b"\xc6"])
@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        bytes([0x92, NUMBERS[Direct]]),
        bytes([0x95, NUMBERS[Direct], 0xC0, 0xC0, 0xC0]),
        bytes([0x97, NUMBERS[Direct], *[0xC0] * 5]),
        bytes([0x93, NUMBERS[Goodbye], 0xA0]),
        bytes([0x93, NUMBERS[GossipReceipts], 0xC0]),
        b"\x92\x7f",
    ],
)
def test_a_declared_length_takes_no_memory(prefix: bytes, header: bytes) -> None:
    frame = prefix + header + struct.pack(">I", 0xFFFFFFFF)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(frame)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_every_list_ends_at_its_limit() -> None:
    for peers, fine in ((64, True), (65, False)):
        frame = json.dumps({"type": "reconnection_data", "reason": "", "peers": [A] * peers, "timestamp": 1}).encode()
        if fine:
            assert isinstance(decode(frame), ReconnectionData)
            continue
        with pytest.raises(RemoteProtocolError, match="peers"):
            decode(frame)


# --- time -------------------------------------------------------------------------------------------------------------


def adversarial(size: int) -> dict[str, bytes]:
    """Inputs of about `size` bytes, each meant to cost more than its size."""
    text = b'{"type":"direct","payload":'
    packed = bytes([0x92, NUMBERS[Direct]])
    more = bytes([0x97, NUMBERS[Direct], *[0xC0] * 5])
    wanted = bytes([0x92, NUMBERS[GossipWant]])
    blob = bytes([0x95, NUMBERS[Direct], 0xC0, 0xC0, 0xC0])
    return {
        "wide list": text + b"[" + b"1," * (size // 2) + b"1]}",
        "many lists": text + b"[" + b"[]," * (size // 3) + b"1]}",
        "many maps": text + b"[" + b'{"a":{}},' * (size // 9) + b"1]}",
        "different keys": text + b"{" + b",".join(b'"%x":1' % n for n in range(size // 8)) + b"}}",
        "the same key": text + b"{" + b'"a":1,' * (size // 6) + b'"a":1}}',
        "the type last": b"{" + b'"a":1,' * (size // 6) + b'"type":"goodbye"}',
        "many types": b"{" + b'"type":"x",' * (size // 11) + b'"type":"y"}',
        "escapes": text + b'"' + b"\\u00e9" * (size // 6) + b'"}',
        "long text": b'{"type":"goodbye","reason":"' + b"\xc3\xa9" * (size // 2) + b'"}',
        "long id": b'{"type":"peer_joined","peerId":"' + b"a" * size + b'"}',
        "many long numbers": text + b"[" + (b"9" * 4000 + b",") * (size // 4001) + b"1]}",
        "a long fraction": text + b"0." + b"1" * size + b"}",
        "white space": b" " * size + b'{"type":"direct"}',
        "no end": text + b'"' + b"a" * size,
        "packed lists": packed + b"\xdd\xff\xff\xff\xff" * (size // 5),
        "packed keys": more + b"\xdf" + struct.pack(">I", size // 6) + b"\xa4same\x01" * (size // 6),
        "ids": wanted + b"\xc6" + struct.pack(">I", size) + b"x" * size,
        "texts": b"\x92"
        + bytes([NUMBERS[GossipWant]])
        + b"\xdd"
        + struct.pack(">I", size // 2)
        + b"\xa1x" * (size // 2),
        "packed text": packed + b"\xdb" + struct.pack(">I", size) + b"\xc3\xa9" * (size // 2),
        "packed blob": blob + b"\xc6" + struct.pack(">I", size) + b"\x00" * size,
    }


def seconds(parse: Callable[[bytes], object], data: bytes) -> float:
    best = float("inf")
    gc.disable()  # what it takes depends on all else that lives in this process
    try:
        for _ in range(5):
            start = time.thread_time()
            survives(parse, data)
            best = min(best, time.thread_time() - start)
    finally:
        gc.enable()
    return best


@pytest.mark.parametrize("name", adversarial(16))
@pytest.mark.parametrize(
    "parse", [decode, lambda data: decode_signaling(data, limit=1 << 30)], ids=["link", "signaling"]
)
def test_time_is_linear_in_the_size(name: str, parse: Callable[[bytes], object]) -> None:
    short, long = (adversarial(size)[name] for size in (64 * 1024, 512 * 1024))
    is_linear = (seconds(parse, long) < 0.001 + seconds(parse, short) * 8 * 3 for _ in range(4))
    assert any(is_linear), "eight times the size; quadratic would be 64 times the time, whatever else the machine does"


def test_text_is_json_and_the_rest_is_not() -> None:
    assert encode(Goodbye(reason="bye"), text=True) == b'{"type":"goodbye","reason":"bye"}'
    assert encode(Goodbye(reason="bye")) == bytes([0x92, NUMBERS[Goodbye]]) + b"\xa3bye"


def test_a_broadcast_of_100_bytes_fits_a_frame_of_250() -> None:
    data = GossipData(
        id="0a" * 16,
        topic="telemetry",
        blob=bytes(100),
        origin_peer_id=peer_id_of(bytes(32)),
        key=bytes(32),
        signature=bytes(64),
        timestamp=1_700_000_000_000,
        series=1_699_999_000_000,
        sequence=100,
        ttl=60_000,
        max_hops=64,
        hops=3,
        age=90,
        relayed_by=(),
    )
    frame = encode(Gossip(data=data))
    assert len(frame) <= 250
    assert decode(frame) == Gossip(data=data)
