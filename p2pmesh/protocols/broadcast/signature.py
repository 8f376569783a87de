r"""The origin's signature on a broadcast: what it covers, and when it proves something.

`field(x)` is the length of `x` in bytes as a 32-bit big-endian number, followed by `x`. Text is UTF-8, numbers are 64-bit
big-endian. The signature is Ed25519 (RFC 8032) over::

    b"p2pmesh gossip v1\0"
    field(topic)
    field(origin's peer id: 40 lower-case hexadecimal digits)
    field(series)
    field(sequence)
    field(timestamp)
    field(ttl)
    field(maxHops)
    field(receipts: b"\1" or b"\0")
    field(b"text", b"json" or b"blob")
    field(the payload: its text, its JSON text, or its bytes)

The broadcast's id is the first 8 digits of the origin's id, followed by the first 32 hexadecimal digits of the SHA-256 of
the same bytes. So an id stands for one content, and nobody can make another broadcast that passes for it.

The signature proves the origin if the key's SHA-256 begins with the origin's id, the broadcast's id is right, and no
signed field is absent. What changes on the way (`hops`, `relayedBy`, `age`) it does not cover.
"""

from __future__ import annotations

from hashlib import sha256

from msgspec import structs

from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.protocols.broadcast.message_store import tree_of
from p2pmesh.wire.canonical import fields, number, text
from p2pmesh.wire.messages import GossipData

_DOMAIN = b"p2pmesh gossip v1\0"


def signed(data: GossipData, identity: Identity) -> GossipData:
    """The same broadcast with its id, and its origin's key and signature if a key can prove that origin."""
    covered = _covered(data)
    message_id = _id_of(data, covered)
    if not identity.verified:
        return structs.replace(data, id=message_id)
    return structs.replace(data, id=message_id, key=identity.public_key, signature=identity.sign(covered))


def is_signed(data: GossipData) -> bool:
    """Whether it claims a proof, right or wrong."""
    return data.key is not None or data.signature is not None


def is_proven(data: GossipData) -> bool:
    """Whether it carries its origin's signature, and that and the id are right."""
    if data.key is None or data.signature is None or None in (data.ttl, data.max_hops, data.series, data.sequence):
        return False
    covered = _covered(data)
    if data.id != _id_of(data, covered) or peer_id_of(data.key) != data.origin_peer_id:
        return False
    return verify(data.key, data.signature, covered)


def _id_of(data: GossipData, covered: bytes) -> str:
    return tree_of(data.origin_peer_id) + sha256(covered).hexdigest()[:32]


def _covered(data: GossipData) -> bytes:
    if data.blob is not None:
        kind, body = b"blob", data.blob
    else:
        kind, body = str(data.encoding).encode(), text(str(data.payload))
    return _DOMAIN + fields(
        text(data.topic),
        text(data.origin_peer_id),
        number(data.series or 0),
        number(data.sequence or 0),
        number(data.timestamp),
        number(data.ttl or 0),
        number(data.max_hops or 0),
        b"\1" if data.receipts else b"\0",
        kind,
        body,
    )
