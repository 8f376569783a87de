r"""Values in the DHT: the key they lie under, their publisher's signature, and when they count.

An application's key is any text; its name is the first 160 bits of SHA-256 over ``b"p2pmesh dht key v1\0"`` and the
text in UTF-8. Under a *shared* key, whose place in the id space is its name, any peer may publish. An *owned* key is
one of one peer: its place is the first 160 bits of SHA-256 over ``b"p2pmesh dht owned key v1\0"``, that peer's id and
the name, so that nobody else can publish there. `field(x)` is the length of `x` in bytes as a 32-bit big-endian number,
followed by `x`. The signature is Ed25519 over::

    b"p2pmesh dht record v1\0"
    field(network: see `p2pmesh.wire.canonical`)
    field(key: 40 lower-case hexadecimal digits)
    field(timestamp, 64 bits big-endian)
    field(ttl, likewise)
    field(kept, likewise)
    field(name of an owned key, or nothing)
    field(b"text", b"json", b"blob" or b"deleted")
    field(the value: its text, its JSON text, or its bytes; nothing where it is deleted)

The publisher is the peer whose id belongs to the key that signed. Of its records under one key the one with the latest
timestamp counts: that is their sequence number, and no clock but its own has a say in it. Where none is left to live,
because it was deleted or its ttl is over before that of the one it replaced, the record stays for as long as that one
could be brought back (`kept`).

In: values of ours to sign, records of others to check. Out: a `VerifiedRecord`, or the error that says what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Literal

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
_OWNED_DOMAIN = b"p2pmesh dht owned key v1\0"
_RECORD_DOMAIN = b"p2pmesh dht record v1\0"
_NO_SIGNATURE = bytes(64)
DELETED = Body()
"""In place of a value: there is none any more. JSON's null is one."""


@frozen
class DhtValue:
    """A value found in the DHT, and whose it is: `publisher` signed it."""

    value: Payload = field(repr=unshown)
    publisher: PeerId
    published: float
    """When, by the publisher's clock, in seconds since 1970."""
    expires: float
    """When it is forgotten, by the same clock."""
    rule: Literal["owner", "publisher", "first"] = field(default="first", eq=False)
    """Why it is this one. `owner`: only its owner can write under this key. `publisher`: it is that of the publisher
    asked for. `first`: several may have one, and the peers that hold them have held this publisher's for longest, as
    most of those say that were asked; no clock has a say in that."""


class BadRecord(RemoteProtocolError):
    """A record that must not be taken: it proves nothing, has expired, or is too large."""


class VerifiedRecord(Struct, frozen=True):
    """A record whose limits were checked, and its signature where that is not left to be done, with its publisher."""

    record: DhtRecord
    publisher: PeerId
    size: int

    @property
    def expires(self) -> float:
        """When its value does, in seconds since 1970."""
        return (self.record.timestamp + self.record.ttl) / 1000

    @property
    def forgotten(self) -> float:
        """When nothing that it replaced can come back, in seconds since 1970."""
        return (self.record.timestamp + max(self.record.ttl, self.record.kept)) / 1000

    def is_live(self, wall: float) -> bool:
        """Whether there is a value in it at that wall time: neither deleted nor expired."""
        return self.expires > wall and not is_deletion(self.record)

    def to_value(self, rule: Literal["publisher", "first"] = "publisher") -> DhtValue:
        """The value as the application gets it."""
        record = self.record
        value = unpack(record.payload, record.encoding, record.blob)
        published = record.timestamp / 1000
        return DhtValue(value, self.publisher, published, self.expires, rule if record.name is None else "owner")


def key_id(key: str) -> PeerId:
    """The name of an application's key, which is the place of the shared key in the id space."""
    return _digest(_KEY_DOMAIN + text(key))


def owned_id(owner: PeerId, name: PeerId) -> PeerId:
    """The place of the key with that name which is owned by this peer."""
    return _digest(_OWNED_DOMAIN + owner.encode() + name.encode())


def _digest(data: bytes) -> PeerId:
    return PeerId(hashlib.sha256(data).digest()[: ID_BITS // 8].hex())


def is_deletion(record: DhtRecord) -> bool:
    """Whether it says that there is no value any more."""
    return record.payload is None and record.encoding is None and record.blob is None


def sign_record(
    identity: Identity,
    key: PeerId,
    value: PayloadLike | Body,
    timestamp: int,
    ttl: float,
    config: KademliaConfig,
    network: bytes,
    *,
    name: PeerId | None = None,
    kept: float = 0.0,
) -> VerifiedRecord:
    """Make a record of ours; with `name`, under the key that we own of that name."""
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
        name=name,
        kept=int(kept * 1000),
    )
    record = structs.replace(bare, signature=identity.sign(signed_bytes(bare, network)))
    return VerifiedRecord(record, identity.peer_id, body.size)


def check_record(
    record: DhtRecord, wall: float, config: KademliaConfig, blocked: Container[PeerId] = frozenset()
) -> VerifiedRecord:
    """Check a record that a peer sent, at that wall time, but for what costs most: see `check_signature`.

    Raises:
      BadRecord: if it must not be taken.
    """
    size = Body(record.payload, record.encoding, record.blob).size
    if size > config.max_value:
        raise BadRecord(f"a value of {size} bytes, where {config.max_value} is the limit")
    if record.timestamp / 1000 > wall + config.clock_skew:
        ahead = record.timestamp / 1000 - wall
        raise BadRecord(f"it is of {ahead:.0f} s in the future, by the clock here: is its publisher's right?")
    longest = max(record.ttl, record.kept)
    if longest / 1000 > config.max_ttl:
        raise BadRecord(f"it shall live for {longest / 1000:.0f} s, where {config.max_ttl:.0f} is the limit")
    if (record.timestamp + longest) / 1000 <= wall:
        raise BadRecord("it has expired, by the clock here: is its publisher's right?")
    publisher = peer_id_of(record.publisher_key)
    if publisher in blocked:
        raise BadRecord("nothing of this publisher is taken here")
    if record.name is not None and record.key != owned_id(publisher, record.name):
        raise BadRecord("the key is owned by another peer")
    return VerifiedRecord(record, publisher, size)


def check_signature(record: DhtRecord, network: bytes) -> None:
    """Check that its publisher signed this record, for this network, and that it carries what it says.

    Raises:
      BadRecord: if not. Honest peers pass no such record on.
    """
    if not verify(record.publisher_key, record.signature, signed_bytes(record, network)):
        raise BadRecord("a bad signature")
    if is_deletion(record):
        return
    try:
        unpack(record.payload, record.encoding, record.blob)
    except RemoteProtocolError as error:
        raise BadRecord(str(error)) from error
    if record.blob is None and record.encoding is None:
        raise BadRecord("a value that is none")


def signed_bytes(record: DhtRecord, network: bytes) -> bytes:
    """What the signature of a record covers."""
    if record.blob is not None:
        kind, body = b"blob", record.blob
    elif is_deletion(record):
        kind, body = b"deleted", b""
    else:
        kind, body = str(record.encoding).encode(), text(record.payload or "")
    numbers = (number(record.timestamp), number(record.ttl), number(record.kept))
    name = (record.name or "").encode()
    return covered(_RECORD_DOMAIN, network, record.key.encode(), *numbers, name, kind, body)
