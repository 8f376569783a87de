r"""Values in the DHT: the key they lie under, their publisher's signature, and when they count.

An application's key is any text; the DHT's is the first 160 bits of SHA-256 over ``b"p2pmesh dht key v1\0"`` and the
text in UTF-8. `field(x)` is the length of `x` in bytes as a 32-bit big-endian number, followed by `x`. The signature
is Ed25519 over::

    b"p2pmesh dht record v1\0"
    field(network: see `p2pmesh.wire.canonical`)
    field(key: 40 lower-case hexadecimal digits)
    field(timestamp, 64 bits big-endian)
    field(ttl, likewise)
    field(b"text", b"json" or b"blob")
    field(the value: its text, its JSON text, or its bytes)

The publisher is the peer whose id belongs to the key that signed.

In: values of ours to sign, records of others to check. Out: a `VerifiedRecord`, or the error that says what is wrong.
"""

from __future__ import annotations

import hashlib

from attrs import field, frozen
from msgspec import Struct, structs

from p2pmesh.checks import unshown
from p2pmesh.config import KademliaConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import Payload, PayloadLike
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.keyspace import ID_BITS, PeerId
from p2pmesh.wire.canonical import covered, number, text
from p2pmesh.wire.overlay import DhtRecord
from p2pmesh.wire.payloads import Body, pack, unpack

_KEY_DOMAIN = b"p2pmesh dht key v1\0"
_RECORD_DOMAIN = b"p2pmesh dht record v1\0"
_NO_SIGNATURE = bytes(64)


@frozen
class DhtValue:
    """A value found in the DHT, and whose it is: `publisher` signed it."""

    value: Payload = field(repr=unshown)
    publisher: PeerId
    published: float
    """When, by the publisher's clock, in seconds since 1970."""
    expires: float
    """When it is forgotten, by the same clock."""


class BadRecord(RemoteProtocolError):
    """A record that must not be taken: it proves nothing, has expired, or is too large."""


class VerifiedRecord(Struct, frozen=True):
    """A record whose signature and limits were checked, with its publisher and its size."""

    record: DhtRecord
    publisher: PeerId
    size: int

    @property
    def expires(self) -> float:
        """In seconds since 1970."""
        return (self.record.timestamp + self.record.ttl) / 1000

    def to_value(self) -> DhtValue:
        """The value as the application gets it."""
        record = self.record
        value = unpack(record.payload, record.encoding, record.blob)
        return DhtValue(value, self.publisher, self.record.timestamp / 1000, self.expires)


def key_id(key: str) -> PeerId:
    """The place of an application's key in the id space."""
    digest = hashlib.sha256(_KEY_DOMAIN + text(key)).digest()
    return PeerId(digest[: ID_BITS // 8].hex())


def sign_record(
    identity: Identity,
    key: PeerId,
    value: PayloadLike | Body,
    timestamp: int,
    ttl: float,
    config: KademliaConfig,
    network: bytes,
) -> VerifiedRecord:
    """Make a record of ours."""
    body = pack(value, config.max_value)
    bare = DhtRecord(
        key=key,
        payload=None if body.payload is None else str(body.payload),
        encoding=body.encoding,
        blob=body.blob,
        timestamp=timestamp,
        ttl=int(ttl * 1000),
        publisher_key=identity.public_key,
        signature=_NO_SIGNATURE,
    )
    record = structs.replace(bare, signature=identity.sign(signed_bytes(bare, network)))
    return VerifiedRecord(record, identity.peer_id, body.size)


def verify_record(record: DhtRecord, wall: float, config: KademliaConfig, network: bytes) -> VerifiedRecord:
    """Check a record that a peer of this network sent, at that wall time.

    Raises:
      BadRecord: if it must not be taken.
    """
    size = Body(record.payload, record.encoding, record.blob).size
    if size > config.max_value:
        raise BadRecord(f"a value of {size} bytes, where {config.max_value} is the limit")
    if record.timestamp / 1000 > wall + config.clock_skew:
        ahead = record.timestamp / 1000 - wall
        raise BadRecord(f"it is of {ahead:.0f} s in the future, by the clock here: is its publisher's right?")
    if record.ttl / 1000 > config.max_ttl:
        raise BadRecord(f"it shall live for {record.ttl / 1000:.0f} s, where {config.max_ttl:.0f} is the limit")
    if (record.timestamp + record.ttl) / 1000 <= wall:
        raise BadRecord("it has expired, by the clock here: is its publisher's right?")
    if not verify(record.publisher_key, record.signature, signed_bytes(record, network)):
        raise BadRecord("a bad signature")
    try:
        unpack(record.payload, record.encoding, record.blob)
    except RemoteProtocolError as error:
        raise BadRecord(str(error)) from error
    if record.blob is None and record.encoding is None:
        raise BadRecord("a value that is none")
    return VerifiedRecord(record, peer_id_of(record.publisher_key), size)


def signed_bytes(record: DhtRecord, network: bytes) -> bytes:
    """What the signature of a record covers."""
    if record.blob is not None:
        kind, body = b"blob", record.blob
    else:
        kind, body = str(record.encoding).encode(), text(record.payload or "")
    return covered(
        _RECORD_DOMAIN, network, record.key.encode(), number(record.timestamp), number(record.ttl), kind, body
    )
