"""Bytes to messages and back: the one place where what somebody else sent is parsed.

Peers of ours exchange MessagePack arrays (`packing`); the original's peers, and every signaling service, JSON text.
Both decode into the same typed unions, whose types hold the bounds of every string, list and number. Whatever the
input, the only error out of here is `RemoteProtocolError`, after time and memory linear in its size:

- The frame's own size is the caller's to bound: a link knows its limit before a frame is whole. `limit` is for others.
- MessagePack carries scalars only where JSON may carry anything (`Direct.payload`).
- Nesting ends at `MAX_DEPTH`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Generic, TypeVar, get_args

import msgspec
from attrs import frozen
from msgspec import Meta, Struct
from msgspec.structs import replace

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.messages import Direct, Gossip, GossipData, Message, Unknown
from p2pmesh.wire.packing import ARRAYS, NUMBERED, number_of, pack, portable, unpack
from p2pmesh.wire.signaling import MAX_BOOTSTRAP, BootstrapPeers, KnownPeer, SignalingMessage

MAX_DEPTH = 100
"""Lists in maps in lists: deeper than people write, far from where recursion over them would fail."""
MAX_TYPE = 64
"""Characters of a message's `type`."""
MAX_SIGNALING = 256 * 1024
"""Bytes of a signaling message: descriptions have some thousand, API Gateway carries half of it."""
FIRST_PACKED = 0x80
"""The first byte of a frame that is no text."""
_SHOWN = 200
"""Characters of a parser's complaint that are passed on: it may quote the input."""

_CONTAINERS = (list, dict)

M = TypeVar("M")


class _Header(Struct):
    """What a message of any version has."""

    type: Annotated[str, Meta(max_length=MAX_TYPE)]


class _LooseHeader(Struct):
    type: Annotated[str, Meta(max_length=MAX_TYPE)] = ""


class _LooseBootstrap(Struct):
    peers: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=MAX_BOOTSTRAP)]


def _tags(union: object) -> frozenset[str]:
    return frozenset(kind.__struct_config__.tag for kind in get_args(union))


@frozen
class _Form(Generic[M]):
    """One union as JSON."""

    types: frozenset[str]
    messages: msgspec.json.Decoder[M]
    headers: msgspec.json.Decoder[Any]


_TEXT: _Form[Message] = _Form(_tags(Message), msgspec.json.Decoder(Message), msgspec.json.Decoder(_Header))
_SERVICE: _Form[SignalingMessage] = _Form(
    _tags(SignalingMessage), msgspec.json.Decoder(SignalingMessage), msgspec.json.Decoder(_LooseHeader)
)
_loose_bootstrap = msgspec.json.Decoder(_LooseBootstrap)
_known_peer = msgspec.json.Decoder(KnownPeer)
_PARSER_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_to_text = msgspec.json.Encoder()


# --- links ------------------------------------------------------------------------------------------------------------


def encode(message: Message, *, text: bool = False) -> bytes:
    """A message as a frame: packed, or with `text` JSON as the original's peers read it."""
    if not text:
        return pack(message)
    match message:
        case Gossip(data=GossipData(payload=None)):
            tree = msgspec.to_builtins(message)
            tree["data"]["payload"] = None  # the original tells null from missing
            return _to_text.encode(tree)
        case Direct(payload=None):
            return _to_text.encode({**msgspec.to_builtins(message), "payload": None})
        case _:
            return _to_text.encode(message)


def decode(frame: bytes, *, limit: int | None = None) -> Message | Unknown:
    """The message of a frame, whichever of the two encodings it has: a packed one never starts like JSON text.

    The original's peers may send any text over a link; what is not a JSON object with a `type` is an error here, and
    the caller, which knows where it comes from, may choose to overlook it.

    Raises:
      RemoteProtocolError: if it is not a well-formed message within all bounds.
    """
    _check_size(frame, limit)
    if frame[0] >= FIRST_PACKED:
        return _unpacked(frame)
    decoded: Message | Unknown = _decode(frame, _TEXT)
    return _checked(decoded)


# --- signaling services -----------------------------------------------------------------------------------------------


def encode_signaling(message: SignalingMessage) -> str:
    """A message to or from a signaling service, as JSON text."""
    return _to_text.encode(message).decode()


def decode_signaling(data: str | bytes, *, limit: int = MAX_SIGNALING) -> SignalingMessage | Unknown:
    """The message that a signaling service or one of its clients sent.

    A JSON object without `type` is `Unknown("")`: gateways in front of a service report their errors so. From a list of
    peers the entries that are none are left out: the original's server takes and spreads any id.

    Raises:
      RemoteProtocolError: if it is not a JSON object with the fields that its type needs, or larger than `limit` bytes.
    """
    _check_size(data, limit)
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise RemoteProtocolError("not a message: text with half a surrogate pair") from error
    _check_size(raw, limit)
    try:
        return _decode(raw, _SERVICE)
    except RemoteProtocolError:
        if (salvaged := _salvaged_bootstrap(raw)) is None:
            raise
        return salvaged


# --- how --------------------------------------------------------------------------------------------------------------


def is_too_deep(value: Any) -> bool:
    """Whether a JSON value nests more than `MAX_DEPTH` lists and maps."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _CONTAINERS)
        ]
    return bool(level)


def _check_size(data: str | bytes, limit: int | None) -> None:
    if not data:
        raise RemoteProtocolError("an empty frame")
    if limit is not None and len(data) > limit:
        raise RemoteProtocolError(f"a frame of {len(data)} bytes, where {limit} is the limit")


def _decode(raw: bytes, form: _Form[M]) -> M | Unknown:
    try:
        return form.messages.decode(raw)
    except msgspec.ValidationError as error:
        complaint = error
    except _PARSER_ERRORS as error:
        raise RemoteProtocolError(f"not a message: {_shortened(error)}") from error
    try:
        tag: str = form.headers.decode(raw).type
    except _PARSER_ERRORS as error:
        raise RemoteProtocolError(f"not a message: {_shortened(error)}") from error
    if tag in form.types:
        raise RemoteProtocolError(f"a bad {tag!r} message: {_shortened(complaint)}") from complaint
    return Unknown(tag)


def _unpacked(frame: bytes) -> Message | Unknown:
    if frame[0] not in ARRAYS:
        raise RemoteProtocolError("not a message: neither JSON text nor an array")
    try:
        return unpack(frame)
    except msgspec.ValidationError as error:
        complaint = error
    except _PARSER_ERRORS as error:
        raise RemoteProtocolError(f"not a message: {_shortened(error)}") from error
    try:
        number = number_of(frame)
    except _PARSER_ERRORS as error:
        raise RemoteProtocolError(f"not a message: {_shortened(error)}") from error
    if number in NUMBERED:
        raise RemoteProtocolError(f"a bad {NUMBERED[number]!r} message: {_shortened(complaint)}") from complaint
    return Unknown(str(number))


def _salvaged_bootstrap(raw: bytes) -> BootstrapPeers | None:
    peers = []
    try:
        if _SERVICE.headers.decode(raw).type != "bootstrap_peers":
            return None
        entries = _loose_bootstrap.decode(raw).peers
    except _PARSER_ERRORS:
        return None
    for entry in entries:
        with suppress(*_PARSER_ERRORS):
            peers.append(_known_peer.decode(entry))
    return BootstrapPeers(peers=tuple(peers))


def _checked(message: Message | Unknown) -> Message | Unknown:
    """Hold what the types of JSON can't say: depth, and numbers that both encodings can carry."""
    match message:
        case Gossip(data=GossipData(payload=int() | float() as number) as data):
            payload = portable(number)
            return message if payload is number else replace(message, data=replace(data, payload=payload))
        case Direct(payload=float() as number):
            portable(number)
        case Direct(payload=list() | dict() as payload) if is_too_deep(payload):
            raise RemoteProtocolError(f"a bad 'direct' message: its payload nests deeper than {MAX_DEPTH}")
    return message


def _shortened(error: Exception) -> str:
    return str(error)[:_SHOWN]
