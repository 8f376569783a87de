"""What an application sends, as the three fields that a message carries it in, and back.

| payload | `payload` | `encoding` | `blob` |
| --- | --- | --- | --- |
| bytes | null | none | the bytes |
| a string | the string | `text` | none |
| any other JSON | its JSON text | `json` | none |
| from the original's peers | a scalar; lists and maps as JSON text | none | none |

The original can't tell a string that looks like JSON from JSON; `encoding` can.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeGuard

import msgspec
from attrs import field, frozen

from p2pmesh.checks import unshown
from p2pmesh.errors import InvalidPayload, MeshError, PayloadTooLarge, RemoteProtocolError
from p2pmesh.events import JsonValue, Payload, PayloadLike
from p2pmesh.wire.codec import MAX_DEPTH, is_too_deep
from p2pmesh.wire.fields import Scalar

Encoding: TypeAlias = Literal["text", "json"]

_CONTAINERS = (dict, list, tuple)
_SCALARS = (str, int, float, bytes, bytearray, memoryview)

MAX_INTEGER_BITS = 1023
"""The range of doubles, which other languages read: those lose digits from 53 bits on, peers in Python do not."""


@frozen
class Body:
    """A payload in the form that `Gossip` and `Direct` carry it in."""

    payload: Scalar = field(default=None, repr=unshown)
    encoding: Encoding | None = None
    blob: bytes | None = field(default=None, repr=False)
    size: int = field(eq=False)
    """Bytes of the payload itself: what `MeshConfig.max_payload` limits."""

    @size.default
    def _measure(self) -> int:
        if self.blob is not None:
            return len(self.blob)
        text = self.payload if isinstance(self.payload, str) else _to_text(self.payload)
        return len(text.encode())


def pack(payload: PayloadLike | Body, limit: int) -> Body:
    """Bring a payload into the form that messages carry, unless it is in it. Sequences become lists, mappings dicts.

    Raises:
      InvalidPayload: if it is neither bytes nor something JSON can carry; the text names the part.
      PayloadTooLarge: if it has more than `limit` bytes.
    """
    if isinstance(payload, Body):
        body = payload
    else:
        try:
            body = _packed(payload, limit)
        except (MeshError, MemoryError):
            raise
        except Exception as error:
            raise InvalidPayload(f"the payload can't be read: {error!r:.200}") from error
    _check_size(body.size, limit)
    return body


def _packed(payload: PayloadLike, limit: int) -> Body:
    match payload:
        case bytes() | bytearray() | memoryview():
            _check_size(memoryview(payload).nbytes, limit)
            return Body(blob=bytes(payload))
        case str():
            _check_size(len(payload), limit, "at least ")
            _refuse(_complaint(payload), None)
            return Body(str.__str__(payload), "text")
        case _:
            _check_json(payload, limit)
            return Body(_to_text(payload), "json")


def unpack(payload: Scalar, encoding: Encoding | None, blob: bytes | None) -> Payload:
    """The payload that a message's three fields carry.

    Raises:
      RemoteProtocolError: if they contradict each other, or hold JSON that is none.
    """
    match payload, encoding, blob:
        case None, None, bytes():
            return blob
        case str(), "text", None:
            return payload
        case str(), "json", None:
            return _from_text(payload)
        case str(), None, None:
            return _as_the_original(payload)
        case _, None, None:
            return payload
        case _:
            raise RemoteProtocolError(f"a payload with encoding {encoding!r} that carries something else")


def legacy(body: Body) -> Scalar:
    """What a broadcast to the original's peers has as `payload`.

    They get lists and maps as JSON text, as they send them, and bytes as a string in base64, since they know none.

    Raises:
      RemoteProtocolError: if the body, relayed for another peer, holds JSON that is none.
    """
    value = legacy_direct(body)
    return _to_text(value) if isinstance(value, list | dict) else value


def legacy_direct(body: Body) -> JsonValue:
    """What a direct message to an original's peer has as `payload`: as `legacy`, but lists and maps as they are.

    Raises:
      RemoteProtocolError: if the body holds JSON that is none.
    """
    if body.blob is not None:
        return base64.b64encode(body.blob).decode()
    if body.encoding == "json" and isinstance(body.payload, str):
        return _from_text(body.payload)
    return body.payload


# --- JSON text --------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Subclasses of JSON's scalars, such as NumPy's float64, and any mappings and sequences, as what they are."""
    match value:
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return dict(value)
        case _:
            return list(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def _to_text(value: Any) -> str:
    return _encoder.encode(value).decode()


def _from_text(text: str) -> JsonValue:
    try:
        value: JsonValue = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteProtocolError("a payload that says it is JSON and is not") from error
    if is_too_deep(value):
        raise RemoteProtocolError(f"a payload that nests deeper than {MAX_DEPTH}")
    return value


def _as_the_original(text: str) -> JsonValue:
    if not text.startswith(("{", "[")):
        return text
    try:
        return _from_text(text)
    except RemoteProtocolError:
        return text


# --- what JSON can carry ----------------------------------------------------------------------------------------------


@frozen(eq=False)
class _Container:
    """A list or map inside the payload, and the way to it."""

    value: Mapping[Any, object] | Sequence[object]
    parent: _Container | None = None
    key: object = None
    depth: int = 1

    def items(self) -> Iterable[tuple[object, object]]:
        return self.value.items() if isinstance(self.value, Mapping) else enumerate(self.value)

    def path(self) -> str:
        keys = []
        here = self
        while here.parent is not None:
            keys.append(f"[{here.key!r:.40}]")
            here = here.parent
        return "payload" + "".join(reversed(keys))


def _check_json(payload: object, limit: int) -> None:
    """Refuse what JSON can't carry.

    `size` never overtakes the size of the JSON text, so a small object that becomes large by naming its parts often is
    found out before anything large is built.
    """
    if not _is_container(payload):
        _refuse(_complaint(payload), None)
        return
    size = 0
    stack = [_Container(payload)]
    while stack:
        container = stack.pop()
        if container.depth > MAX_DEPTH:
            raise InvalidPayload(f"the payload nests deeper than {MAX_DEPTH} lists and maps, or contains itself")
        size += 1 + len(container.value)
        _check_size(size, limit, "at least ")
        is_map = isinstance(container.value, Mapping)
        for key, value in container.items():
            if is_map:
                size += _check_key(key, container)
            if _is_container(value):
                stack.append(_Container(value, container, key, container.depth + 1))
            elif isinstance(value, str):
                size += len(value)
                _check_size(size, limit, "at least ")
                _refuse(_complaint(value), container, key)
            elif (complaint := _complaint(value)) is not None:
                _refuse(complaint, container, key)


def _is_container(value: object) -> TypeGuard[Mapping[Any, object] | Sequence[object]]:
    if isinstance(value, _CONTAINERS):
        return True
    return not isinstance(value, _SCALARS) and isinstance(value, Mapping | Sequence)


def _check_key(key: object, container: _Container) -> int:
    if not isinstance(key, str):
        raise InvalidPayload(
            f"{container.path()} has the key {key!r:.40}, {_named(key)}: the keys of JSON's maps are strings"
        )
    if (complaint := _complaint(key)) is not None:
        raise InvalidPayload(f"the key {key!r:.40} of {container.path()} {complaint}")
    return len(key)


def _complaint(value: object) -> str | None:
    """What is wrong with a value that is no container."""
    match value:
        case None | bool():
            return None
        case str():
            return None if _is_unicode(value) else "has half a surrogate pair in it: no UTF-8 can carry that"
        case int():
            return (
                None
                if value.bit_length() <= MAX_INTEGER_BITS
                else f"is an integer of more than {MAX_INTEGER_BITS} bits"
            )
        case float():
            return None if math.isfinite(value) else f"is {value}: JSON knows only finite numbers"
        case bytes() | bytearray() | memoryview():
            return f"is {_named(value)}: bytes can be a whole payload, but not part of one"
        case _:
            return f"is {_named(value)}: payloads are bytes, or JSON made of dict, list, str, int, float, bool and None"


def _refuse(complaint: str | None, container: _Container | None, key: object = None) -> None:
    if complaint is None:
        return
    place = "payload" if container is None else f"{container.path()}[{key!r:.40}]"
    raise InvalidPayload(f"{place} {complaint}")


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _check_size(size: int, limit: int, least: str = "") -> None:
    if size > limit:
        raise PayloadTooLarge(f"the payload has {least}{size} bytes, the limit is {limit} (MeshConfig.max_payload)")
