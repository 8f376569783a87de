r"""Sealed boxes: what only its receiver can read, and the contact records that say for which key to seal.

A box is the sender's one-time X25519 public key (32 bytes), then AES-256-GCM (NIST SP 800-38D), which WebCrypto has in
every browser, over the message, its tag of 16 bytes last, with an all-zero nonce and no further data. The same nonce
each time does no harm, since no key seals twice: it is made of a private key that is drawn for one box and forgotten.
The key is HKDF-SHA256 (RFC 5869), without salt, of the X25519 shared secret, with this `info`, in which `field(x)` is
the length of `x` in bytes as a 32-bit big-endian number, then `x`::

    b"p2pmesh box v1\0"
    field(network: see `p2pmesh.wire.canonical`)
    field(the one-time public key)
    field(the receiver's public key)
    field(sender's peer id: 40 lower-case hexadecimal digits)
    field(receiver's peer id)
    field(id of the packet)

So a box opens for nobody else, in no other packet, and under no other sender's name; the signature of the packet
around it proves that the sender made it. As in HPKE's base mode (RFC 9180), whoever gets hold of the receiver's key
can open what was sealed for it before.

A contact record's signature covers::

    b"p2pmesh contact v1\0"
    field(network)
    field(box)
    field(version, 64 bits)
    field(serial, 64 bits)
    field(maxPayload, 64 bits)

State: our own record, and those of `RoutingConfig.remembered_routes` peers that we write to.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import PUBLIC_KEY_SIZE, Identity, peer_id_of, verify
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.wire.canonical import covered, number, text
from p2pmesh.wire.messages import PROTOCOL_VERSION
from p2pmesh.wire.overlay import Contact

SEAL_SIZE = PUBLIC_KEY_SIZE + 16
"""Bytes that a box has more than what is in it."""

_BOX = b"p2pmesh box v1\0"
_CONTACT = b"p2pmesh contact v1\0"
_NONCE = bytes(12)


def seal(plain: bytes, box: bytes, sender: PeerId, receiver: PeerId, packet_id: str, network: bytes) -> bytes:
    """Seal bytes for the owner of the X25519 public key `box`.

    Raises:
      RemoteProtocolError: if nothing can be sealed for that key.
    """
    return seal_with(X25519PrivateKey.generate(), plain, box, sender, receiver, packet_id, network)


def seal_with(
    once: X25519PrivateKey,
    plain: bytes,
    box: bytes,
    sender: PeerId,
    receiver: PeerId,
    packet_id: str,
    network: bytes,
) -> bytes:
    """As `seal`, with a one-time key that the caller has drawn and never uses again: for test vectors."""
    public = once.public_key().public_bytes_raw()
    info = covered(_BOX, network, public, box, sender.encode(), receiver.encode(), text(packet_id))
    return public + _cipher(once, box, info).encrypt(_NONCE, plain, None)


def unseal(
    sealed: bytes,
    box: X25519PrivateKey,
    sender: PeerId,
    receiver: PeerId,
    packet_id: str,
    network: bytes,
) -> bytes:
    """Open a box.

    Raises:
      RemoteProtocolError: if it was not sealed for us by this sender in this packet of this network.
    """
    if len(sealed) < SEAL_SIZE:
        raise RemoteProtocolError("a sealed message that is shorter than its seal")
    once, rest = sealed[:PUBLIC_KEY_SIZE], sealed[PUBLIC_KEY_SIZE:]
    own = box.public_key().public_bytes_raw()
    info = covered(_BOX, network, once, own, sender.encode(), receiver.encode(), text(packet_id))
    try:
        return _cipher(box, once, info).decrypt(_NONCE, rest, None)
    except InvalidTag as error:
        raise RemoteProtocolError("a sealed message that does not open") from error


def contact_of(identity: Identity, max_payload: int, wall_ms: int, network: bytes) -> Contact:
    """Make our own record."""
    box = identity.box_key().public_key().public_bytes_raw()
    signature = identity.sign(_covered(box, PROTOCOL_VERSION, wall_ms, max_payload, network))
    return Contact(
        key=identity.public_key,
        box=box,
        version=PROTOCOL_VERSION,
        serial=wall_ms,
        max_payload=max_payload,
        signature=signature,
    )


def is_contact_of(contact: Contact, peer: PeerId, network: bytes) -> bool:
    """Whether a record is this peer's in this network, by its own signature."""
    signable = _covered(contact.box, contact.version, contact.serial, contact.max_payload, network)
    return peer_id_of(contact.key) == peer and verify(contact.key, contact.signature, signable)


class Contacts:
    """Our own contact record, and a bounded number of others', those used last."""

    def __init__(self, identity: Identity, max_payload: int, limit: int, network: bytes) -> None:
        self._identity = identity
        self._max_payload = max_payload
        self._network = network
        self._own: Contact | None = None
        self._records = LruTable[Contact](limit)

    def __len__(self) -> int:
        return len(self._records)

    def own(self, wall_ms: int) -> Contact:
        """Our own record, made when it is first asked for."""
        if self._own is None:
            self._own = contact_of(self._identity, self._max_payload, wall_ms, self._network)
        return self._own

    def get(self, peer: PeerId) -> Contact | None:
        """This peer's record, if we have it."""
        contact = self._records.get(peer)
        if contact is not None:
            self._records.put(peer, contact)
        return contact

    def learn(self, peer: PeerId, contact: Contact) -> bool:
        """Keep a record unless we have a newer one. Whether it is really this peer's."""
        stored = self._records.get(peer)
        if contact == stored:
            return True
        if not is_contact_of(contact, peer, self._network):
            return False
        self._records.put(peer, contact if stored is None or stored.serial < contact.serial else stored)
        return True


def _cipher(own: X25519PrivateKey, other: bytes, info: bytes) -> AESGCM:
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # a point of low order: the secret would be none
        raise RemoteProtocolError("an X25519 key that nobody can share a secret with") from error
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(secret))


def _covered(box: bytes, version: int, serial: int, max_payload: int, network: bytes) -> bytes:
    return covered(_CONTACT, network, box, number(version), number(serial), number(max_payload))
