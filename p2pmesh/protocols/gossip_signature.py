r"""The origin's signature on a broadcast: what it covers, and when it proves something.

`field(x)` is the length of `x` in bytes as a 32-bit big-endian number, followed by `x`. Text is UTF-8, numbers are 64-bit
big-endian. The signature is Ed25519 (RFC 8032) over::

    b"p2pmesh gossip v1\0"
    field(id)
    field(topic)
    field(origin's peer id: 40 lower-case hexadecimal digits)
    field(timestamp)
    field(ttl)
    field(maxHops)
    field(receipts: b"\1" or b"\0")
    field(b"text", b"json" or b"blob")
    field(the payload: its text, its JSON text, or its bytes)

It proves the origin if the key's SHA-256 begins with the origin's id, and no signed field is absent. What changes on the way (`hops`, `relayedBy`,
`age`) it does not cover.
"""

from __future__ import annotations

import struct

from msgspec import structs

from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.wire.messages import GossipData

_DOMAIN = b"p2pmesh gossip v1\0"
_length = struct.Struct(">I").pack
_long = struct.Struct(">Q").pack


def signed(data: GossipData, identity: Identity) -> GossipData:
    """The same broadcast with its origin's key and signature; as it is if no key can prove that origin."""
    if not identity.verified:
        return data
    return structs.replace(data, key=identity.public_key, signature=identity.sign(_covered(data)))


def is_signed(data: GossipData) -> bool:
    """Whether it claims a proof, right or wrong."""
    return data.key is not None or data.signature is not None


def is_proven(data: GossipData) -> bool:
    """Whether it carries its origin's signature, and that is right."""
    if data.key is None or data.signature is None or data.ttl is None or data.max_hops is None:
        return False
    return peer_id_of(data.key) == data.origin_peer_id and verify(data.key, data.signature, _covered(data))


def _covered(data: GossipData) -> bytes:
    if data.blob is not None:
        kind, body = b"blob", data.blob
    else:
        kind, body = str(data.encoding).encode(), _text(str(data.payload))
    fields = (
        _text(data.id),
        _text(data.topic),
        _text(data.origin_peer_id),
        _number(data.timestamp),
        _number(data.ttl or 0),
        _number(data.max_hops or 0),
        b"\1" if data.receipts else b"\0",
        kind,
        body,
    )
    return _DOMAIN + b"".join([_length(len(value)) + value for value in fields])


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # never raises, whatever a peer sent


def _number(number: int) -> bytes:
    return _long(number)
