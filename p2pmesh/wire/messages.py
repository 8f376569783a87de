"""Every message that two peers exchange over a link, as one typed union.

Names and fields follow the original project where it has them; `docs/protocol.md` says what each one means. Fields of
ours that it does not know are optional, so one union describes both. Structs are frozen: what one link decoded may be
sent on over others.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from p2pmesh.wire.fields import (
    MAX_ID,
    MAX_RECEIPTS,
    MAX_SDP,
    MAX_SIGNALS_IN_BATCH,
    Count,
    Hops,
    Id,
    Mark,
    MessageId,
    MessageIds,
    Milliseconds,
    Part,
    PeerIds,
    PublicKey,
    Purpose,
    Reason,
    Scalar,
    Signature,
    Tagged,
    Topic,
)
from p2pmesh.wire.overlay import (
    ContactReply,
    ContactRequest,
    FindBeyond,
    FindSuccessor,
    FoundBeyond,
    KademliaRpc,
    Merge,
    Neighbours,
    Packet,
    Stabilise,
    SuccessorFound,
)

PROTOCOL_VERSION = 1
"""What our offers and answers announce; 0 stands for the original, which announces nothing."""


# --- signals: what WebRTC peers tell each other before they have a link -----------------------------------------------


class Handshake(Part, frozen=True, kw_only=True):
    """Our proof inside an offer or answer; `p2pmesh.protocols.signaling.handshake` says what the signature covers."""

    version: Annotated[int, Meta(ge=1, lt=1 << 16)]
    key: PublicKey
    signature: Signature
    links: Count | None = None
    """Open links of the sender when it signed: one that has none is let in even by peers that are full."""
    purpose: Purpose | None = None
    """What the sender of an offer wants the link for: see `RING` and the other purposes. Unknown ones count as none."""


RING, LONG, LEAF, BRIDGE, PINNED = "ring", "long", "leaf", "bridge", "pinned"
"""Purposes of a link: between ring neighbours; a long one; the only one that a peer may have; between islands; wanted
by the application."""


class Candidate(Part, frozen=True, kw_only=True):
    """A trickled ICE candidate, as browsers write it. Python peers send none: their descriptions have them all."""

    candidate: Annotated[str, Meta(max_length=1024)] = ""
    sdp_mid: Annotated[str, Meta(max_length=64)] | None = None
    sdp_m_line_index: Annotated[int, Meta(ge=0, lt=64)] | None = None


class Signal(Part, frozen=True, kw_only=True):
    """An offer, an answer or a candidate; other types belong to simple-peer's internals and are ignored."""

    type: Annotated[str, Meta(max_length=32)]
    sdp: Annotated[str, Meta(max_length=MAX_SDP)] | None = None
    candidate: Candidate | None = None
    p2pmesh: Handshake | None = None


# --- broadcast --------------------------------------------------------------------------------------------------------


class GossipData(Part, frozen=True, kw_only=True):
    """A broadcast. `hops`, `age` and `relayed_by` change on the way; all the rest is the origin's and signed.

    `hops`, which the original's peers can't do without, has no default, so it is always written.
    """

    id: MessageId
    topic: Topic
    payload: Scalar = None
    origin_peer_id: Id
    signature: Signature | None = None
    timestamp: Milliseconds
    hops: Hops
    encoding: Literal["text", "json"] | None = None
    """How to read `payload`: as it stands, or as JSON text. None from the original's peers, and beside a `blob`."""
    blob: bytes | None = None
    """A payload of bytes, instead of `payload`."""
    key: PublicKey | None = None
    ttl: Milliseconds | None = None
    series: Milliseconds | None = None
    """Tells apart the counts that an origin has begun for a topic: the time it did, by its clock."""
    sequence: Milliseconds | None = None
    """Which of its broadcasts with that topic in that series this is, from 1."""
    age: Milliseconds = 0
    """How long the peers that it passed say they have kept it: see `p2pmesh.protocols.broadcast.validation`."""
    max_hops: Hops = 255
    """Links that it may cross; 255 is no limit."""
    receipts: bool = True
    """Whether the origin wants to know how many peers have it."""
    relayed_by: PeerIds = ()
    """Between the original's peers alone: who had it already."""


class Gossip(Tagged, frozen=True, kw_only=True, tag="gossip"):
    data: GossipData
    delivery_id: Annotated[str, Meta(max_length=MAX_ID + 32)] | None = None
    requires_ack: bool = False


class GossipAck(Tagged, frozen=True, kw_only=True, tag="gossip_ack"):
    """This neighbour has these broadcasts. From the original's peers it never comes."""

    new: MessageIds = ()
    """It took them from us as new."""
    had: MessageIds = ()
    """It had them already: nothing more will come from it."""
    prune: MessageIds = ()
    """It had them already, or gets them elsewhere, and wants no more copies of their origins' broadcasts from us."""


class Receipt(Part, frozen=True, kw_only=True):
    """How many peers have a broadcast by way of the sender, itself included, as far as it tells this receiver."""

    id: MessageId
    count: Count
    """In all so far."""
    settled: bool = True
    """Whether all peers below have answered."""


class GossipReceipts(Tagged, frozen=True, kw_only=True, tag="gossip_receipts"):
    """Receipts for a peer, and which of its own were noted."""

    number: Count | None = None
    """Of this message, if it has receipts: to be noted."""
    receipts: Annotated[tuple[Receipt, ...], Meta(max_length=MAX_RECEIPTS)] = ()
    noted: Annotated[tuple[Count, ...], Meta(max_length=MAX_RECEIPTS)] = ()
    """Numbers of messages whose receipts the sender has noted: they need not be sent again."""
    unknown: MessageIds = ()
    """Broadcasts in them that the sender does not count for the receiver."""
    epoch: Count | None = None
    """Tells the processes apart that the sender has had: drawn at random by each."""
    to: Count | None = None
    """Which process of the receiver the receipts are for; over routes only, since a link leads to one process."""
    ask: bool = False
    """Whether the receiver is to tell its `epoch`."""


class GossipIHave(Tagged, frozen=True, kw_only=True, tag="gossip_ihave"):
    """This neighbour has these broadcasts, and sends those that it is asked for by `GossipGraft`."""

    ids: MessageIds
    size: Count = 0
    """Bytes of the largest payload."""
    hops: Hops = 0
    """Links that each has crossed to get there, at the most."""
    age: Milliseconds = 0
    """How long each has been kept, at the most."""
    offer: bool = False
    """Whether an answer is waited for: a `GossipGraft`, or a `GossipAck` from a peer that has it."""


class GossipGraft(Tagged, frozen=True, kw_only=True, tag="gossip_graft"):
    """Send these broadcasts, which you have announced, and from now on copies of all that their origins broadcast."""

    ids: MessageIds = ()


class GossipDigest(Tagged, frozen=True, kw_only=True, tag="gossip_digest"):
    """What is alive here, summed up: broadcasts of at least `beyond` and at most `within` of age."""

    count: Count
    sum: Annotated[bytes, Meta(min_length=8, max_length=8)]
    """The exclusive or of the first 8 bytes of the SHA-256 of each id."""
    within: Milliseconds
    beyond: Milliseconds = 0


class GossipHave(Tagged, frozen=True, kw_only=True, tag="gossip_have"):
    """Broadcasts that are alive here. Answered by `GossipWant` in every case."""

    ids: MessageIds = ()
    within: Milliseconds = 0
    """Unless it is 0, these are all of at most this age, and of at least `beyond`, that come after `after` and not
    after `until`, in the order of ids as text."""
    beyond: Milliseconds = 0
    after: MessageId | None = None
    until: MessageId | None = None


class GossipWant(Tagged, frozen=True, kw_only=True, tag="gossip_want"):
    """Those of them that this neighbour lacks: they are sent to it."""

    ids: MessageIds = ()


class GossipHistory(Tagged, frozen=True, kw_only=True, tag="gossip_history"):
    """Name the live broadcasts of this topic, or of all, of at least `beyond` and at most `within` of age."""

    topic: Topic | None = None
    beyond: Milliseconds = 0
    within: Milliseconds


# --- direct messages --------------------------------------------------------------------------------------------------


class Direct(Tagged, frozen=True, kw_only=True, tag="direct"):
    """A message for this neighbour alone. From the original's peers only `payload` is there, and it may be any JSON."""

    payload: Any = None
    id: MessageId | None = None
    encoding: Literal["text", "json"] | None = None
    blob: bytes | None = None
    timestamp: Milliseconds | None = None


class DirectAck(Tagged, frozen=True, kw_only=True, tag="direct_ack"):
    id: MessageId


# --- links ------------------------------------------------------------------------------------------------------------


class ReconnectionData(Tagged, frozen=True, kw_only=True, tag="reconnection_data"):
    """Sent just before a link is given up: why, and which peers to try instead."""

    reason: Reason
    peers: PeerIds
    timestamp: Milliseconds


class Goodbye(Tagged, frozen=True, kw_only=True, tag="goodbye"):
    """This peer leaves the mesh, or closes this link, and says why. Sent only to peers of our protocol version."""

    reason: Reason
    peers: PeerIds = ()
    """Neighbours of the leaver, which may close the gap that it leaves."""


class LinkRejected(Tagged, frozen=True, kw_only=True, tag="connection_rejected"):
    """No link for the offer that came over a route. On a link the original never sends it, but reads it."""

    from_: Id | None = None
    reason: Reason = ""
    alternative_peers: PeerIds = ()
    about: Mark | None = None
    """Which offer, by its mark (`signaling.handshake.mark_of`): rejections may come late, by other ways."""


# --- signaling through the mesh ---------------------------------------------------------------------------------------


class RelaySignal(Tagged, frozen=True, kw_only=True, tag="relay_signal"):
    from_: Id
    to: Id
    signal: Signal
    timestamp: Milliseconds = 0
    relay_path: PeerIds = ()


class RelayAck(Tagged, frozen=True, kw_only=True, tag="relay_ack"):
    from_: Id
    to: Id
    original_timestamp: Milliseconds = 0
    received_timestamp: Milliseconds = 0
    relay_path: PeerIds = ()


class RelayFailure(Tagged, frozen=True, kw_only=True, tag="relay_failure"):
    from_: Id
    to: Id
    target_peer: Id | None = None
    reason: Reason = ""
    timestamp: Milliseconds = 0


class RelayBatch(Tagged, frozen=True, kw_only=True, tag="batched_signals"):
    from_: Id
    signals: Annotated[tuple[Signal, ...], Meta(max_length=MAX_SIGNALS_IN_BATCH)] = ()


# --- anything else ----------------------------------------------------------------------------------------------------


class Unknown(Struct, frozen=True):
    """A well-formed message of a type that this version does not know: ignored and counted."""

    type: str


Message: TypeAlias = (
    Gossip
    | GossipAck
    | GossipReceipts
    | GossipIHave
    | GossipGraft
    | GossipDigest
    | GossipHave
    | GossipWant
    | GossipHistory
    | Direct
    | DirectAck
    | Packet
    | ContactRequest
    | ContactReply
    | ReconnectionData
    | Goodbye
    | LinkRejected
    | Neighbours
    | Stabilise
    | FindSuccessor
    | SuccessorFound
    | Merge
    | FindBeyond
    | FoundBeyond
    | RelaySignal
    | RelayAck
    | RelayFailure
    | RelayBatch
    | KademliaRpc
)
