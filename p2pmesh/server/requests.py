"""What a client of the signaling server may say: one text message in, one typed request or refusal out.

What is relayed is not read any deeper than its `type` and `to`, and whether it is an offer or an answer: the other
fields stay the bytes they are, known or not.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
from attrs import frozen

from p2pmesh.keyspace import PeerId, is_peer_id
from p2pmesh.wire.signaling import Join

_KADEMLIA: Final = frozenset({"kademlia_rpc_request", "kademlia_rpc_response"})
_SIGNALS: Final = frozenset({"signal", "batched_signals", "connection_rejected", "signal_rejected"})
_RELAYED: Final = _KADEMLIA | _SIGNALS | {"offer", "answer", "candidate", "ack"}
"""The last four no client of the original sends, but its server relays them."""
_SHOWN: Final = 64
"""Characters of what a client sent that an error repeats."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder()
_join = msgspec.json.Decoder(Join)


class _Signal(msgspec.Struct):
    type: str | None = None


_signal = msgspec.json.Decoder(_Signal)
_signals = msgspec.json.Decoder(list[_Signal])
_encoder = msgspec.json.Encoder()


@frozen
class Refusal:
    """Why a request is refused, as `ServiceError` tells it."""

    code: str
    message: str
    to: PeerId | None = None
    later_than: int | None = None


@frozen
class JoinRequest:
    """A join whose fields are well-formed: signed if it has a timestamp."""

    join: Join


@frozen
class LeaveRequest:
    """The client leaves."""


@frozen
class RelayRequest:
    """A message for another client."""

    kind: str
    to: str
    fields: dict[str, msgspec.Raw]

    def stamped(self, sender: PeerId) -> str:
        """The message as it goes out: from `sender`, whatever its `from` said."""
        stamp = {"from": msgspec.Raw(_encoder.encode(sender))}
        return _encoder.encode(self.fields | stamp).decode()

    def describes(self) -> Literal["offer", "answer", "rejection"] | None:
        """Whether it makes an offer, answers one, or turns one down."""
        if self.kind in {"connection_rejected", "signal_rejected"}:
            return "rejection"
        kinds = self._signal_types() if self.kind in {"signal", "batched_signals"} else [self.kind]
        return "offer" if "offer" in kinds else "answer" if "answer" in kinds else None

    def _signal_types(self) -> list[str | None]:
        try:
            if self.kind == "signal":
                return [_signal.decode(self.fields["signal"]).type]
            return [signal.type for signal in _signals.decode(self.fields["signals"])]
        except (KeyError, msgspec.DecodeError, RecursionError):
            return []

    def not_found(self) -> Refusal:
        """The receiver is not here: in the original's words."""
        peer = f"Peer {self.to:.{_SHOWN}} not found"
        to = PeerId(self.to) if is_peer_id(self.to) else None
        if self.kind == "batched_signals":
            return Refusal("not_found", f"{peer} for batched signals.", to)
        if self.kind in _KADEMLIA:
            return Refusal("not_found", f"{peer} for {self.kind}.", to)
        return Refusal("not_found", f"{peer}.", to)


Request: TypeAlias = JoinRequest | LeaveRequest | RelayRequest | Refusal


def parse_request(data: str | bytes, max_size: int) -> Request:
    """Read a client's message. Never raises: what can't be read is a `Refusal`."""
    try:
        encoded = data.encode() if isinstance(data, str) else data
        if len(encoded) > max_size:
            return Refusal("too_large", f"A message has at most {max_size} bytes.")
        encoded.decode()  # what is relayed unread must be text in the end
        fields = _fields.decode(encoded)
        kind = _value.decode(fields.get("type", b"null"))
    except (UnicodeError, msgspec.DecodeError, RecursionError):
        return Refusal("bad_message", "A message is one JSON object, as text.")
    if not isinstance(kind, str):
        return Refusal("bad_message", "A message has a type, which is a string.")
    if kind == "join":
        return _parse_join(fields, encoded)
    if kind == "leave":
        return LeaveRequest()
    if kind not in _RELAYED:
        return Refusal("unknown_type", f"Unknown message type: {kind:.{_SHOWN}}")
    to = _field(fields, "to")
    if not isinstance(to, str):
        return Refusal("bad_message", f"{kind} needs the receiver's id in to.")
    return RelayRequest(kind, to, fields)


def _parse_join(fields: dict[str, msgspec.Raw], encoded: bytes) -> JoinRequest | Refusal:
    peer = _field(fields, "peerId")
    if not peer:
        return Refusal("bad_join", "peerId is required for join message.")
    if not isinstance(peer, str) or not is_peer_id(peer):
        return Refusal("bad_join", "peerId must be 40 lower-case hexadecimal digits.")
    try:
        join = _join.decode(encoded)
    except (msgspec.DecodeError, RecursionError) as error:
        return Refusal("bad_join", f"Bad join: {error!s:.{2 * _SHOWN}}")
    parts = (join.public_key, join.timestamp, join.signature)
    if len({part is None for part in parts}) > 1:
        return Refusal("bad_join", "A signed join has publicKey, timestamp and signature, all three.")
    return JoinRequest(join)


def _field(fields: dict[str, msgspec.Raw], name: str) -> Any:
    """A field's value; None if it is missing, or holds what can't be read."""
    raw = fields.get(name)
    try:
        return None if raw is None else _value.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
