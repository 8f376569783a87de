"""The compact form of messages between peers of ours: MessagePack arrays, made from the structs and their types.

A message is an array: the number of its type, then its fields in their order, as far as the last one that differs from
its default. What a field becomes follows from its type alone, so a new message needs nothing but its struct:

| in the struct | in the array |
| --- | --- |
| text of exactly 2n hexadecimal digits (`Id`) | n bytes |
| `MessageId` | 16 bytes if it is 32 digits, else an array of one text |
| a tuple of such digits, of `MessageId`, of numbers up to 255 | one blob, each at its place |
| a `Literal` of texts | which one, from 0 |
| a `Part` | an array of its fields, cut off in the same way |
| anything else | as it is, so `Any` is a scalar only |

In: messages, and bytes that a peer sent. Out: bytes, and messages within all bounds. msgspec's decoder checks the
bounds as it reads *forms*, array-like twins of the structs; what is left to do is to turn bytes into digits. A
broadcast, which is nearly all that a busy mesh sends, has a form of its own: see `_GossipForm`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, Union, cast, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo
from msgspec.structs import fields as fields_of

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import PUBLIC_KEY_SIZE, SIGNATURE_SIZE, peer_id_of
from p2pmesh.keyspace import ID_BITS, PeerId
from p2pmesh.wire.fields import Count, Hops, MessageId, Milliseconds, Part, Scalar, Topic
from p2pmesh.wire.messages import Gossip, GossipData, Message

ARRAYS: Final = frozenset({*range(0x90, 0xA0), 0xDC})
"""What a packed message can begin with: an array of MessagePack of up to 65,535 entries. JSON text never does."""

NUMBERS: Final[dict[type[Struct], int]] = {kind: number for number, kind in enumerate(get_args(Message), 1)}
"""Of each type of message: its place in the union `Message`."""
NUMBERED: Final[dict[int, str]] = {number: str(kind.__struct_config__.tag) for kind, number in NUMBERS.items()}
"""The names of those types in JSON."""

_MESSAGE_ID_SIZE = 16
_ID_SIZE = ID_BITS // 8

_Convert: TypeAlias = Callable[[Any], Any]


class _Form(NamedTuple):
    """How values of one type are written: what msgspec reads, and how to get there and back if that differs."""

    type: Any
    pack: _Convert | None = None
    unpack: _Convert | None = None


def portable(value: Scalar) -> Scalar:
    """A scalar that may be sent on in either encoding: of a number beyond 64 bits the double that JavaScript holds.

    Raises:
      RemoteProtocolError: if it is a number that is not finite.
    """
    if not isinstance(value, int | float):
        return value
    try:
        if not math.isfinite(value):
            raise RemoteProtocolError("a bad message: its payload is not a finite number")
        return value if -(1 << 63) <= value < 1 << 64 else float(value)
    except OverflowError as error:
        raise RemoteProtocolError("a bad message: its payload is a number beyond all bounds") from error


# --- texts of digits --------------------------------------------------------------------------------------------------

_DIGITS = re.compile(r"\\A\[0-9a-f\]\{(\d+)\}\\Z")
"""The pattern of a text that is so many hexadecimal digits."""
_MESSAGE_DIGITS = 2 * _MESSAGE_ID_SIZE


def _bytes(low: int, high: int) -> Any:
    return Annotated[bytes, Meta(min_length=low, max_length=high)]


def _digits_of(hint: Any) -> int | None:
    """How many hexadecimal digits a text of this type is, if that is known."""
    for meta in getattr(hint, "__metadata__", ()):
        match = _DIGITS.fullmatch(meta.pattern or "")
        if match is not None:
            return int(match[1])
    return None


def _join(texts: Sequence[str]) -> bytes:
    return bytes.fromhex("".join(texts))


@cache
def _splitter(size: int) -> Callable[[bytes], tuple[str, ...]]:
    digits = 2 * size

    def split(blob: bytes) -> tuple[str, ...]:
        if len(blob) == size:
            return (blob.hex(),)
        if len(blob) % size:
            raise RemoteProtocolError(f"a list of {size} bytes for each entry that has {len(blob)}")
        text = blob.hex()
        return tuple([text[at : at + digits] for at in range(0, len(text), digits)])

    return split


_split_message_ids = _splitter(_MESSAGE_ID_SIZE)


def _pack_message_ids(ids: Sequence[str]) -> bytes | Sequence[str]:
    for one in ids:
        if len(one) != _MESSAGE_DIGITS:
            return ids
    text = "".join(ids)
    try:
        blob = bytes.fromhex(text)
    except ValueError:
        return ids
    return blob if blob.hex() == text else ids


def _unpack_message_ids(ids: bytes | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(ids, bytes):
        return _split_message_ids(ids)
    if isinstance(_pack_message_ids(ids), bytes):
        raise RemoteProtocolError("ids of messages as text that bytes would say")
    return ids


def _pack_message_id(message_id: str) -> bytes | Sequence[str]:
    if len(message_id) == _MESSAGE_DIGITS:
        try:
            raw = bytes.fromhex(message_id)
        except ValueError:
            return (message_id,)
        if raw.hex() == message_id:
            return raw
    return (message_id,)


def _unpack_message_id(message_id: bytes | tuple[str, ...]) -> str:
    return message_id.hex() if isinstance(message_id, bytes) else _unpack_message_ids(message_id)[0]


MESSAGE_ID_FORM: Any = (
    _bytes(_MESSAGE_ID_SIZE, _MESSAGE_ID_SIZE) | Annotated[tuple[MessageId, ...], Meta(min_length=1, max_length=1)]
)
"""No `tuple[MessageId]`: in a union with bytes that ends msgspec's decoder with a segmentation fault (0.22)."""


# --- any type ---------------------------------------------------------------------------------------------------------


def _form_of(hint: Any) -> _Form:
    if hint == MessageId:
        return _Form(MESSAGE_ID_FORM, _pack_message_id, _unpack_message_id)
    if hint is Any:
        return _Form(Scalar, unpack=portable)
    if get_origin(hint) in {Union, UnionType}:
        return _optional_form(hint)
    if get_origin(hint) is Literal:
        values = get_args(hint)
        return _Form(Literal[tuple(range(len(values)))], values.index, values.__getitem__)
    if isinstance(hint, type) and issubclass(hint, Part):
        layout = _layout_of(hint)
        return _Form(layout.form, layout.pack, layout.unpack)
    bare = getattr(hint, "__origin__", hint)
    if get_origin(bare) is tuple:
        (meta,) = hint.__metadata__
        return _tuple_form(get_args(bare)[0], meta.min_length or 0, meta.max_length)
    digits = _digits_of(hint)
    if digits is not None:
        return _Form(_bytes(digits // 2, digits // 2), bytes.fromhex, bytes.hex)
    return _Form(hint)


def _optional_form(hint: Any) -> _Form:
    (inner,) = (one for one in get_args(hint) if one is not NoneType)
    kind, pack, unpack = _form_of(inner)
    if pack is None or unpack is None:
        return _Form(kind | None)
    return _Form(
        kind | None,
        lambda value: None if value is None else pack(value),
        lambda value: None if value is None else unpack(value),
    )


def _tuple_form(item: Any, least: int, most: int) -> _Form:
    digits = _digits_of(item)
    bounds = Meta(min_length=least, max_length=most)
    if digits is not None:
        size = digits // 2
        return _Form(_bytes(least * size, most * size), _join, _splitter(size))
    if item == MessageId:
        blob = _bytes(least * _MESSAGE_ID_SIZE, most * _MESSAGE_ID_SIZE)
        return _Form(blob | Annotated[tuple[MessageId, ...], bounds], _pack_message_ids, _unpack_message_ids)
    if item == Hops:
        return _Form(_bytes(least, most), bytes, tuple)
    entry, pack, unpack = _form_of(item)
    whole: Any = Annotated[tuple[entry, ...], bounds]  # type: ignore[valid-type]
    if pack is None or unpack is None:
        return _Form(whole)
    return _Form(
        whole,
        lambda values: [pack(value) for value in values],
        lambda values: tuple([unpack(value) for value in values]),
    )


# --- structs ----------------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    name: str
    form: _Form
    required: bool
    default: Any
    """As the struct has it."""
    packed: Any
    """The default as the array has it."""


def _field_of(field: FieldInfo) -> _Field:
    form = _form_of(field.type)
    default = None if field.required else field.default
    packed = default if form.pack is None or default is None else form.pack(default)
    if isinstance(packed, list):
        packed = tuple(packed)
    return _Field(field.name, form, field.required, default, packed)


class _Layout:
    """How one class of structs is written."""

    def __init__(self, kind: type[Struct], number: int | None) -> None:
        fields = [_field_of(field) for field in fields_of(kind)]
        described = [
            (one.name, one.form.type) if one.required else (one.name, one.form.type, one.packed) for one in fields
        ]
        options: dict[str, Any] = {"frozen": True, "kw_only": True, "array_like": True, "tag": number}
        self.form: Any = msgspec.defstruct(f"_{kind.__name__}Form", described, module=__name__, **options)
        names: dict[str, Any] = {"kind": kind}
        for one in fields:
            names |= {
                f"default_{one.name}": one.default,
                f"packed_{one.name}": one.packed,
                f"pack_{one.name}": one.form.pack,
                f"unpack_{one.name}": one.form.unpack,
            }
        code = [*self._packing(fields, number), *self._unpacking(fields)]
        exec("\n".join(code), names)  # noqa: S102  # as attrs does, for its speed
        self.pack: _Convert = names["pack"]
        """The entries of the array of a struct."""
        self.unpack: _Convert = names["unpack"]
        """The struct of what msgspec has read."""

    def _packing(self, fields: list[_Field], number: int | None) -> Iterator[str]:
        """The code of `pack`: from the end, the first field that differs from its default says how much to write."""
        yield "def pack(message):"
        entries = [] if number is None else [str(number)]
        returns = [f"    return [{', '.join(entries)}]"]
        for one in fields:
            name = one.name
            value = f"message.{name}"
            is_plain = one.default is None or isinstance(one.default, bool)
            equals = f"is {one.default}" if is_plain else f"== default_{name}"
            if one.form.pack is None:
                entries.append(value)
            elif one.required:
                entries.append(f"pack_{name}({value})")
            else:
                entries.append(f"packed_{name} if {value} {equals} else pack_{name}({value})")
            line = f"return [{', '.join(entries)}]"
            if one.required:
                returns = [f"    {line}"]
            else:
                returns.append(f"    if not ({value} {equals}): {line}")
        yield from reversed(returns)

    def _unpacking(self, fields: list[_Field]) -> Iterator[str]:
        yield "def unpack(form):"
        yield "    return kind("
        for one in fields:
            value = f"form.{one.name}"
            if one.form.unpack is None:
                yield f"        {one.name}={value},"
            elif one.required:
                yield f"        {one.name}=unpack_{one.name}({value}),"
            else:
                yield (
                    f"        {one.name}=default_{one.name} if {value} is packed_{one.name}"
                    f" else unpack_{one.name}({value}),"
                )
        yield "    )"


_layouts: dict[type[Struct], _Layout] = {}


def _layout_of(kind: type[Struct]) -> _Layout:
    layout = _layouts.get(kind)
    if layout is None:
        layout = _layouts[kind] = _Layout(kind, NUMBERS.get(kind))
    return layout


# --- broadcasts -------------------------------------------------------------------------------------------------------

_BLOB, _TEXT, _JSON, _PLAIN = range(4)
"""What the bytes of a broadcast's payload are; `_PLAIN`, the JSON text of a scalar from the original's peers."""
_RECEIPTS = 4
_ENCODINGS: Final[tuple[Literal["text", "json"] | None, ...]] = (None, "text", "json", None)
_MAX = 1 << 53
_PROOF_SIZE = PUBLIC_KEY_SIZE + SIGNATURE_SIZE
_USUAL_TTL = 60_000
_ANY_HOPS = 255

_plain_scalar = msgspec.json.Decoder(Scalar).decode
_to_json = msgspec.json.Encoder().encode


class _GossipForm(Struct, frozen=True, array_like=True, tag=NUMBERS[Gossip]):
    """A broadcast, without what follows from something else, and without what only the original's peers need."""

    topic: Topic
    content: Annotated[int, Meta(ge=0, le=7)]
    """What `body` is, plus 4 if the origin wants to know how many peers have it."""
    body: bytes
    id: MESSAGE_ID_FORM
    origin: Annotated[bytes, Meta(min_length=_ID_SIZE, max_length=_PROOF_SIZE)]
    """A key, from which its owner's id follows, and the signature; of an origin that proves nothing the id."""
    timestamp: Milliseconds
    hops: Hops
    age: Milliseconds = 0
    sequence: Milliseconds | None = None
    before: Annotated[int, Meta(gt=-_MAX, lt=_MAX)] | None = None
    """How long before `timestamp` the series began."""
    ttl: Milliseconds | None = None
    """If an origin that proves itself does not say, `_USUAL_TTL`."""
    max_hops: Hops = _ANY_HOPS


def _pack_gossip(message: Gossip) -> list[Any]:
    data = message.data
    encoding, payload, key, signature = data.encoding, data.payload, data.key, data.signature
    if data.blob is not None:
        content, body = _BLOB, data.blob
    elif encoding is not None and isinstance(payload, str):
        content, body = _TEXT if encoding == "text" else _JSON, payload.encode()
    else:
        content, body = _PLAIN, _to_json(payload)
    ttl: int | None = data.ttl
    if key and signature:
        origin = key + signature
        if ttl == _USUAL_TTL:
            ttl = None
    else:
        origin = bytes.fromhex(data.origin_peer_id)
    values: list[Any] = [
        NUMBERS[Gossip],
        data.topic,
        content + _RECEIPTS if data.receipts else content,
        body,
        _pack_message_id(data.id),
        origin,
        data.timestamp,
        data.hops,
        data.age,
        data.sequence,
        None if data.series is None else data.timestamp - data.series,
        ttl,
    ]
    if data.max_hops != _ANY_HOPS:
        return [*values, data.max_hops]
    while values[-1] is None:
        values.pop()
    return values


def _unpack_gossip(form: _GossipForm) -> Gossip:
    content, body, origin, ttl, timestamp = form.content & 3, form.body, form.origin, form.ttl, form.timestamp
    payload: Scalar = None
    blob = key = signature = series = None
    if content == _BLOB:
        blob = body
    elif content == _PLAIN:
        payload = portable(_plain_scalar(body))
    else:
        payload = body.decode()
    if len(origin) == _PROOF_SIZE:
        key, signature = origin[:PUBLIC_KEY_SIZE], origin[PUBLIC_KEY_SIZE:]
        peer = peer_id_of(key)
        if ttl is None:
            ttl = _USUAL_TTL
    elif len(origin) == _ID_SIZE:
        peer = PeerId(origin.hex())
    else:
        raise RemoteProtocolError(f"an origin of {len(origin)} bytes: neither an id nor a key and a signature")
    if form.before is not None:
        series = timestamp - form.before
        if not 0 <= series < _MAX:
            raise RemoteProtocolError("a series that began outside of time")
    data = GossipData(
        id=name.hex() if isinstance(name := form.id, bytes) else _unpack_message_id(name),
        topic=form.topic,
        payload=payload,
        origin_peer_id=peer,
        signature=signature,
        timestamp=timestamp,
        hops=form.hops,
        encoding=_ENCODINGS[content],
        blob=blob,
        key=key,
        ttl=ttl,
        max_hops=form.max_hops,
        receipts=form.content >= _RECEIPTS,
        series=series,
        sequence=form.sequence,
        age=form.age,
    )
    return Gossip(data=data)


# --- messages ---------------------------------------------------------------------------------------------------------


_packers: dict[type[Struct], _Convert] = {Gossip: _pack_gossip}
"""Made as they are needed, since it takes a while; so are these."""
_unpackers: dict[type[Struct], _Convert] = {}


@cache
def forms() -> tuple[type[Struct], ...]:
    """What msgspec reads of each type of message, in the order of their numbers."""
    for kind in NUMBERS:
        if kind is Gossip:
            _unpackers[_GossipForm] = _unpack_gossip
        else:
            layout = _layout_of(kind)
            _unpackers[layout.form] = layout.unpack
    return tuple(_unpackers)


@cache
def _decoder() -> msgspec.msgpack.Decoder[Struct]:
    return msgspec.msgpack.Decoder(cast("Any", reduce(or_, forms())))


class _Header(Struct, array_like=True):
    number: Count


_encode = msgspec.msgpack.Encoder().encode
_header = msgspec.msgpack.Decoder(_Header).decode


def pack(message: Message) -> bytes:
    """The frame of a message."""
    kind = type(message)
    packer = _packers.get(kind)
    if packer is None:
        packer = _packers[kind] = _layout_of(kind).pack
    return _encode(packer(message))


def unpack(frame: bytes) -> Message:
    """The message of a frame.

    Raises:
      RemoteProtocolError, MsgspecError, UnicodeDecodeError, RecursionError: if it is malformed.
    """
    form = _decoder().decode(frame)
    return _unpackers[type(form)](form)  # type: ignore[no-any-return]


def number_of(frame: bytes) -> int:
    """Which type of message a frame says that it is.

    Raises:
      MsgspecError, UnicodeDecodeError, RecursionError: if it does not say.
    """
    return _header(frame).number
