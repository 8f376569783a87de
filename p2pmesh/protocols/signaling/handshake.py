r"""Proofs of identity: what a peer signs inside its offers, its answers and its joins.

A WebRTC link is as trustworthy as the DTLS fingerprints that came through the signaling service. So each side signs the
fingerprints of its description together with who it talks to: a service that swaps them, or plays an offer or answer to
somebody else, is found out.

What is signed
==============
`field(x)` is the length of `x` in bytes as a 32-bit big-endian number, followed by `x`.
`list(xs)` is the number of elements as a 32-bit big-endian number, followed by `field(x)` for each. Text is UTF-8.
Signatures are Ed25519 (RFC 8032).

An offer or answer, in `Signal.p2pmesh.signature`::

    b"p2pmesh signal v1\0"
    field(network: see `p2pmesh.wire.canonical`)
    field(protocol version: 16-bit big-endian)
    field(kind: b"offer" or b"answer")
    field(peer id of the sender: 40 lower-case hexadecimal digits)
    field(peer id of the receiver)
    field(open links of the sender: 32-bit big-endian; empty if `links` is absent)
    field(purpose of the link; empty if `purpose` is absent)
    list(fingerprints of this description)
    list(fingerprints of the offer that is answered; the empty list in an offer)

The fingerprints of a description are those of *all* its `a=fingerprint:` lines, wherever they stand, each written as
the hash function in lower case, one space, and the hexadecimal digits in upper case with colons; sorted, duplicates
removed. Over a route an offer or answer needs no such proof: the packet's signature covers it, and both ids.

A join, in `Join.signature`::

    b"p2pmesh join v1\0"
    field(room)
    field(peer id)
    field(timestamp, milliseconds since 1970: 64-bit big-endian)

What it proves
==============
A key belongs to an id if the id is the first 160 bits of the key's SHA-256. Only then a peer counts as verified; a good
signature by another key says only that the peer speaks our protocol. A signal without a proof comes from a peer of the
original project. A join's signature can be replayed while its timestamp is fresh, so it keeps strangers from an id, not
one service from posing as its client at another; links don't depend on it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.canonical import covered, fields, number, text
from p2pmesh.wire.messages import PROTOCOL_VERSION, Description, Handshake, Offer, Signal
from p2pmesh.wire.sdp import fingerprints_of, read_sdp, write_sdp
from p2pmesh.wire.signaling import Join

Kind: TypeAlias = Literal["offer", "answer"]

_SIGNAL_DOMAIN = b"p2pmesh signal v1\0"
_JOIN_DOMAIN = b"p2pmesh join v1\0"


def sign_offer(identity: Identity, to: PeerId, offer: Offer, *, network: bytes) -> Signal:
    """The offer as a service carries it, with our proof that it is for `to`."""
    return _signal("offer", identity, to, offer.description, (), network, offer.links, offer.purpose)


def sign_answer(identity: Identity, to: PeerId, answer: Description, offer: Description, *, network: bytes) -> Signal:
    """The answer as a service carries it, with our proof that it is for this very offer of `to`."""
    return _signal("answer", identity, to, answer, fingerprints_of(offer), network)


def verify_offer(signal: Signal, sender: PeerId, receiver: PeerId, *, network: bytes) -> tuple[RemotePeer, Description]:
    """Who makes this offer, which came to `receiver` in the name of `sender`, and what it describes.

    Raises:
      RemoteProtocolError: if the proof in it is false, or it is no offer.
    """
    return _verify("offer", signal, sender, receiver, (), network)


def verify_answer(
    answer: Signal, offer: Description, sender: PeerId, receiver: PeerId, *, network: bytes
) -> tuple[RemotePeer, Description]:
    """Who answers `receiver`'s `offer`, in the name of `sender`, and what the answer describes.

    Raises:
      RemoteProtocolError: if the proof in it is false or for another offer, or it is no answer.
    """
    return _verify("answer", answer, sender, receiver, fingerprints_of(offer), network)


def mark_of(description: Description) -> bytes:
    """What tells this offer from others in a rejection: 8 bytes of the SHA-256 of its ICE user name, `:` and password.

    Whoever has not seen the offer can't make it up.
    """
    return hashlib.sha256(f"{description.ufrag}:{description.pwd}".encode()).digest()[:8]


def sign_join(identity: Identity, room: str, wall_ms: int, *, token: str | None = None) -> Join:
    """The join of `room`, signed; unsigned if no key backs the identity's id."""
    join = Join(peer_id=identity.peer_id, room=room, token=token, version=PROTOCOL_VERSION)
    if not identity.verified:
        return join
    signature = identity.sign(_join_bytes(room, identity.peer_id, wall_ms))
    return msgspec.structs.replace(join, public_key=identity.public_key, timestamp=wall_ms, signature=signature)


def verify_join(join: Join) -> bool:
    """Whether the owner of the id signed this join. Whether its timestamp is fresh is for the caller to say."""
    if join.public_key is None or join.timestamp is None or join.signature is None:
        return False
    if peer_id_of(join.public_key) != join.peer_id:
        return False
    return verify(join.public_key, join.signature, _join_bytes(join.room or "", join.peer_id, join.timestamp))


def _signal(
    kind: Kind,
    identity: Identity,
    to: PeerId,
    description: Description,
    offered: tuple[str, ...],
    network: bytes,
    links: int | None = None,
    purpose: str | None = None,
) -> Signal:
    own = fingerprints_of(description)
    data = _signal_bytes(network, PROTOCOL_VERSION, kind, identity.peer_id, to, links, purpose, own, offered)
    proof = Handshake(
        version=PROTOCOL_VERSION,
        key=identity.public_key,
        signature=identity.sign(data),
        links=links,
        purpose=purpose,
    )
    return Signal(type=kind, sdp=write_sdp(description), p2pmesh=proof)


def _verify(
    kind: Kind, signal: Signal, sender: PeerId, receiver: PeerId, offered: tuple[str, ...], network: bytes
) -> tuple[RemotePeer, Description]:
    description = read_sdp(signal.sdp or "")
    if signal.type != kind or description.is_offer != (kind == "offer"):
        raise RemoteProtocolError(f"expected an {kind}, not a signal of type {signal.type!r} as {description.role}")
    proof = signal.p2pmesh
    if proof is None:
        return RemotePeer(sender, verified=False, version=0), description
    own = fingerprints_of(description)
    data = _signal_bytes(network, proof.version, kind, sender, receiver, proof.links, proof.purpose, own, offered)
    if not verify(proof.key, proof.signature, data):
        raise RemoteProtocolError(f"the signature of the {kind} is false: its fingerprints or its parties were changed")
    return RemotePeer(sender, peer_id_of(proof.key) == sender, proof.version, proof.key), description


def _signal_bytes(
    network: bytes,
    version: int,
    kind: Kind,
    sender: PeerId,
    receiver: PeerId,
    links: int | None,
    purpose: str | None,
    own: tuple[str, ...],
    offered: tuple[str, ...],
) -> bytes:
    said = covered(
        _SIGNAL_DOMAIN,
        network,
        struct.pack(">H", version),
        kind.encode(),
        sender.encode(),
        receiver.encode(),
        b"" if links is None else struct.pack(">I", links),
        text(purpose or ""),
    )
    return said + _list(own) + _list(offered)


def _join_bytes(room: str, peer_id: PeerId, wall_ms: int) -> bytes:
    return _JOIN_DOMAIN + fields(text(room), peer_id.encode(), number(wall_ms))


def _list(items: Sequence[str]) -> bytes:
    return struct.pack(">I", len(items)) + fields(*map(str.encode, items))
