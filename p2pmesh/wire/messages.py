"""Every message that two peers exchange over a link, as one typed union.

Names and fields follow the original project where it has them; `docs/protocol.md` says what each one means. Fields of
ours that it does not know are optional, so one union describes both. Structs are frozen: what one link decoded may be
sent on over others.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from p2pmesh.wire.fields import (
    MAX_CANDIDATES,
    MAX_FINGERPRINTS,
    MAX_ID,
    MAX_RECEIPTS,
    MAX_SDP,
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
    FindNode,
    FindSuccessor,
    FindValue,
    FoundBeyond,
    Merge,
    Neighbours,
    NodesFound,
    Packet,
    Stabilise,
    StoreValue,
    SuccessorFound,
    ValueStored,
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


LinkPurpose: TypeAlias = Literal["ring", "long", "leaf", "bridge", "pinned"]
RING: Final = "ring"
LONG: Final = "long"
LEAF: Final = "leaf"
BRIDGE: Final = "bridge"
PINNED: Final = "pinned"
"""Purposes of a link: between ring neighbours; a long one; the only one that a peer may have; between islands; wanted
by the application."""


class Candidate(Part, frozen=True, kw_only=True):
    """A trickled ICE candidate, as browsers write it. Python peers send those that a server told them late."""

    candidate: Annotated[str, Meta(max_length=1024)] = ""
    sdp_mid: Annotated[str, Meta(max_length=64)] | None = None
    sdp_m_line_index: Annotated[int, Meta(ge=0, lt=64)] | None = None


class Signal(Part, frozen=True, kw_only=True):
    """An offer, an answer or a candidate by a service; other types are simple-peer's internals and are ignored."""

    type: Annotated[str, Meta(max_length=32)]
    sdp: Annotated[str, Meta(max_length=MAX_SDP)] | None = None
    candidate: Candidate | None = None
    p2pmesh: Handshake | None = None


# --- descriptions: the facts in an SDP --------------------------------------------------------------------------------


HASH_SIZES: Final = {"sha-256": 32, "sha-384": 48, "sha-512": 64, "sha-224": 28, "sha-1": 20}
"""Bytes of a fingerprint, by its hash function (RFC 8122)."""


class Fingerprint(Part, frozen=True, kw_only=True):
    """The hash of a DTLS certificate."""

    value: Annotated[bytes, Meta(min_length=20, max_length=64)]
    hash: Literal["sha-256", "sha-384", "sha-512", "sha-224", "sha-1"] = "sha-256"


class IceCandidate(Part, frozen=True, kw_only=True):
    """An address at which a peer may be reached over UDP."""

    address: Annotated[bytes, Meta(min_length=4, max_length=64)]
    """Of 4 bytes for IPv4 and 16 for IPv6; else a name that hides one (`*.local`, RFC 8828)."""
    port: Annotated[int, Meta(ge=1, lt=1 << 16)]
    kind: Literal["host", "srflx", "relay"] = "host"
    priority: Count | None = None
    """None for the one that follows from `kind`: RFC 8445, section 5.1.2.1, with the highest local preference."""


class Description(Part, frozen=True, kw_only=True):
    """What a peer has to know of another to open a WebRTC connection with one data channel: an SDP without its text."""

    ufrag: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{4,256}\Z")]
    pwd: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{22,256}\Z")]
    fingerprints: Annotated[tuple[Fingerprint, ...], Meta(min_length=1, max_length=MAX_FINGERPRINTS)]
    role: Literal["actpass", "active", "passive"]
    """In the DTLS handshake: an offer leaves it open, an answer does not."""
    candidates: Annotated[tuple[IceCandidate, ...], Meta(max_length=MAX_CANDIDATES)] = ()
    complete: bool = True
    """Whether these are all candidates: else more may be trickled."""
    max_message: Count = 262_144
    """Bytes of a message that is taken; 0 for any size."""
    mid: Annotated[str, Meta(pattern=r"\A[!-~]{1,32}\Z")] = "0"
    """Of the media section: an answer has its offer's."""
    sctp_port: Annotated[int, Meta(ge=0, lt=1 << 16)] = 5000
    lite: bool = False
    """Whether it leaves all checks to its peer (RFC 8445, section 2.5)."""

    @property
    def is_offer(self) -> bool:
        return self.role == "actpass"


Facts: TypeAlias = Description | IceCandidate
"""What a link layer is fed of its peer's: the answer to an offer, and candidates that are trickled."""


class Offer(Tagged, frozen=True, kw_only=True, tag="offer"):
    """Over a route: a link is wanted. The receiver replies with an `Answer` or a `LinkRejected`.

    The packet's signature proves whose it is, as that of the reply proves which offer it is for.
    """

    description: Description
    links: Count = 0
    """Open links of the sender: one that has none is let in even by peers that are full."""
    purpose: LinkPurpose | None = None


class Answer(Tagged, frozen=True, kw_only=True, tag="answer"):
    """Over a route: the reply to an `Offer`."""

    description: Description


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
    refused: MessageIds = ()
    """It will never take these of ours."""
    reason: Reason = ""
    """Why, for people."""


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
    """What became of a `Direct` with this id."""

    id: MessageId
    outcome: Literal["taken", "busy", "ready", "refused"] = "taken"
    """The application's inbox has it; it is full, so wait; it was full and has room now, so send it again; it is not
    taken, now or later."""
    reason: Reason = ""
    """Why it is refused, for people."""


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


RejectReason: TypeAlias = Literal[
    "max_peers_reached",
    "cancelled",
    "already_linked",
    "closing",
    "leaving",
    "unverified_peer",
    "no_attempt",
    "initiator_conflict",
]


class LinkRejected(Tagged, frozen=True, kw_only=True, tag="link_rejected"):
    """Over a route: no link, as the reply to an `Offer`; or by itself, when its sender thinks better of it."""

    reason: RejectReason
    alternative_peers: PeerIds = ()
    about: Mark | None = None
    """Which offer, where this is no reply: see `signaling.handshake.mark_of`."""


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
    | Offer
    | Answer
    | Neighbours
    | Stabilise
    | FindSuccessor
    | SuccessorFound
    | Merge
    | FindBeyond
    | FoundBeyond
    | FindNode
    | FindValue
    | NodesFound
    | StoreValue
    | ValueStored
)
