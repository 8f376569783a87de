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
removed.

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
import re
import struct
from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from p2pmesh.errors import LocalProtocolError, RemoteProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.canonical import DEFAULT_NETWORK, field, number, text
from p2pmesh.wire.messages import PROTOCOL_VERSION, Handshake, Signal
from p2pmesh.wire.signaling import Join

Kind: TypeAlias = Literal["offer", "answer"]

_SIGNAL_DOMAIN = b"p2pmesh signal v1\0"
_JOIN_DOMAIN = b"p2pmesh join v1\0"

MAX_FINGERPRINTS = 16
"""In one description: stacks send one for each media section or one for all, and we have a single section."""

_FINGERPRINT = re.compile(r"a=fingerprint:([A-Za-z0-9-]{1,16}) +([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){15,63}) *")
# Would end a line for one parser and not for another, so that a fingerprint could hide from us.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")


def fingerprints(signal: Signal) -> tuple[str, ...]:
    """The DTLS certificate fingerprints of a description, normalised, sorted, each once.

    Raises:
      RemoteProtocolError: if there is none, or one is malformed, or the description could be read in two ways.
    """
    sdp = signal.sdp or ""
    if _FORBIDDEN.search(sdp):
        raise RemoteProtocolError("a description holds control characters")
    found = set[str]()
    for line in sdp.splitlines():
        if not line.lstrip().lower().startswith("a=fingerprint"):
            continue
        match = _FINGERPRINT.fullmatch(line)
        if match is None:
            raise RemoteProtocolError("a description holds a malformed fingerprint")
        found.add(f"{match[1].lower()} {match[2].upper()}")
    if not found:
        raise RemoteProtocolError("a description holds no fingerprint")
    if len(found) > MAX_FINGERPRINTS:
        raise RemoteProtocolError(f"a description holds more than {MAX_FINGERPRINTS} fingerprints")
    return tuple(sorted(found))


def sign_offer(
    identity: Identity,
    to: PeerId,
    signal: Signal,
    *,
    links: int | None = None,
    purpose: str | None = None,
    network: bytes = DEFAULT_NETWORK,
) -> Signal:
    """`signal` with our proof that we offer a link to `to`, the number of `links` that we have, and what it is for.

    Raises:
      LocalProtocolError: if it is no offer with a fingerprint.
    """
    return _sign(identity, "offer", to, signal, (), network, links, purpose)


def sign_answer(
    identity: Identity, to: PeerId, signal: Signal, offer: Signal, *, network: bytes = DEFAULT_NETWORK
) -> Signal:
    """`signal` with our proof that we answer this very offer of `to`.

    Raises:
      LocalProtocolError: if it is no answer with a fingerprint.
      RemoteProtocolError: if the offer has no fingerprint.
    """
    return _sign(identity, "answer", to, signal, fingerprints(offer), network)


def verify_offer(signal: Signal, sender: PeerId, receiver: PeerId, *, network: bytes = DEFAULT_NETWORK) -> RemotePeer:
    """Who makes this offer, which came to `receiver` in the name of `sender`.

    Raises:
      RemoteProtocolError: if the proof in it is false, or it is no offer with a fingerprint.
    """
    return _verify("offer", signal, sender, receiver, (), network)


def verify_answer(
    answer: Signal, offer: Signal, sender: PeerId, receiver: PeerId, *, network: bytes = DEFAULT_NETWORK
) -> RemotePeer:
    """Who answers `receiver`'s `offer`, in the name of `sender`.

    Raises:
      RemoteProtocolError: if the proof in it is false or for another offer, or it is no answer with a fingerprint.
    """
    return _verify("answer", answer, sender, receiver, fingerprints(offer), network)


def mark_of(offer: Signal) -> str:
    """What tells this offer from others in a rejection: the first 16 hexadecimal digits of its description's SHA-256.

    Whoever has not seen the offer can't make it up.
    """
    return hashlib.sha256((offer.sdp or "").encode(errors="surrogatepass")).hexdigest()[:16]


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


def _sign(
    identity: Identity,
    kind: Kind,
    to: PeerId,
    signal: Signal,
    offered: tuple[str, ...],
    network: bytes,
    links: int | None = None,
    purpose: str | None = None,
) -> Signal:
    if signal.type != kind:
        raise LocalProtocolError(f"asked to sign a signal of type {signal.type!r} as an {kind}")
    try:
        own = fingerprints(signal)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"our own {kind} can't be signed: {error}") from error
    data = _signal_bytes(network, PROTOCOL_VERSION, kind, identity.peer_id, to, links, purpose, own, offered)
    proof = Handshake(
        version=PROTOCOL_VERSION,
        key=identity.public_key,
        signature=identity.sign(data),
        links=links,
        purpose=purpose,
    )
    return msgspec.structs.replace(signal, p2pmesh=proof)


def _verify(
    kind: Kind, signal: Signal, sender: PeerId, receiver: PeerId, offered: tuple[str, ...], network: bytes
) -> RemotePeer:
    if signal.type != kind:
        raise RemoteProtocolError(f"expected an {kind}, not a signal of type {signal.type!r}")
    own = fingerprints(signal)
    proof = signal.p2pmesh
    if proof is None:
        return RemotePeer(sender, verified=False, version=0)
    data = _signal_bytes(network, proof.version, kind, sender, receiver, proof.links, proof.purpose, own, offered)
    if not verify(proof.key, proof.signature, data):
        raise RemoteProtocolError(f"the signature of the {kind} is false: its fingerprints or its parties were changed")
    return RemotePeer(sender, peer_id_of(proof.key) == sender, proof.version, proof.key)


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
    return b"".join((
        _SIGNAL_DOMAIN,
        field(network),
        field(struct.pack(">H", version)),
        field(kind.encode()),
        field(sender.encode()),
        field(receiver.encode()),
        field(b"" if links is None else struct.pack(">I", links)),
        field(text(purpose or "")),
        _list(own),
        _list(offered),
    ))


def _join_bytes(room: str, peer_id: PeerId, wall_ms: int) -> bytes:
    return b"".join((
        _JOIN_DOMAIN,
        field(text(room)),
        field(peer_id.encode()),
        field(number(wall_ms)),
    ))


def _list(items: Iterable[str]) -> bytes:
    fields = [field(item.encode()) for item in items]
    return struct.pack(">I", len(fields)) + b"".join(fields)
