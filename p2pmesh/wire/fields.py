"""What messages are made of: fields with their bounds, and the two kinds of structs.

Bounds stand in the types, and decoding checks them.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from p2pmesh.checks import unshown
from p2pmesh.identity import PUBLIC_KEY_SIZE, SIGNATURE_SIZE
from p2pmesh.keyspace import PeerId

MAX_ID = 128
MAX_TOPIC = 256
MAX_REASON = 256
MAX_SDP = 64 * 1024
MAX_FINGERPRINTS = 16
MAX_CANDIDATES = 32
MAX_PEERS_IN_LIST = 64
MAX_SIGNALS_IN_BATCH = 32
MAX_IDS_IN_LIST = 256
MAX_VALUE = 64 * 1024
MAX_RING_LIST = 16
MAX_TRAIL = 256
"""Peers in each trail of a packet, and in all of them: no packet crosses more links."""
TRAIL_DIGITS = 12
"""Hexadecimal digits of an id by which a trail names a peer: 6 bytes, so that strangers share them by intent only."""
MAX_RECEIPTS = 64
SEARCH = 32
"""Links that a packet may cross without coming nearer to its target, dead ends included; it may cross as many again
once it has come nearer. On a whole ring, where it comes no nearer is where its target is, or is not."""
EVERYWHERE = 255
"""As `search`: the packet goes to all neighbours of all relays, and is passed on once by each."""

Id: TypeAlias = Annotated[PeerId, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
PeerIds: TypeAlias = Annotated[tuple[Id, ...], Meta(max_length=MAX_PEERS_IN_LIST)]
TrailId: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}\Z")]
Trail: TypeAlias = Annotated[tuple[TrailId, ...], Meta(max_length=MAX_TRAIL)]
RingList: TypeAlias = Annotated[tuple[Id, ...], Meta(max_length=MAX_RING_LIST)]
MessageId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
MessageIds: TypeAlias = Annotated[tuple[MessageId, ...], Meta(max_length=MAX_IDS_IN_LIST)]
Topic: TypeAlias = Annotated[str, Meta(max_length=MAX_TOPIC)]
Reason: TypeAlias = Annotated[str, Meta(max_length=MAX_REASON)]
Milliseconds: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]
Hops: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
PublicKey: TypeAlias = Annotated[bytes, Meta(min_length=PUBLIC_KEY_SIZE, max_length=PUBLIC_KEY_SIZE)]
Signature: TypeAlias = Annotated[bytes, Meta(min_length=SIGNATURE_SIZE, max_length=SIGNATURE_SIZE)]
Mark: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=8)]
Purpose: TypeAlias = Annotated[str, Meta(max_length=16)]
Scalar: TypeAlias = str | int | float | bool | None


def is_text(value: object, longest: int) -> bool:
    """Whether a field can carry `value`: a string of at most `longest` characters that UTF-8 can write."""
    if not isinstance(value, str) or len(value) > longest:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


UNSHOWN: Final = frozenset({"payload", "value", "token", "sdp", "candidate", "ufrag", "pwd"})
"""Fields of which a `repr` tells the kind alone, as of all bytes: payloads and secrets are for no log."""


def shown_of(struct: Struct) -> str:
    """The `repr` of a message or an input, without payloads and secrets."""
    texts = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        is_hidden = isinstance(value, bytes) or (name in UNSHOWN and value is not None)
        texts.append(f"{name}={unshown(value) if is_hidden else repr(value)}")
    return f"{type(struct).__name__}({', '.join(texts)})"


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A piece of a message."""

    __repr__ = shown_of


class Tagged(Part, frozen=True, kw_only=True, tag_field="type"):
    """A message: its `type` field tells which."""
