"""Every message that two peers exchange over a link, as one typed union.

Names and fields follow the original project where it has them; `docs/protocol.md` says what each one means. Fields of
ours that it does not know are optional, so one union describes both. Structs are frozen: what one link decoded may be
sent on over others. Bounds stand in the types, and decoding checks them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from p2pmesh.identity import PUBLIC_KEY_SIZE, SIGNATURE_SIZE
from p2pmesh.keyspace import PeerId

PROTOCOL_VERSION = 1
"""What our offers and answers announce; 0 stands for the original, which announces nothing."""

MAX_ID = 128
MAX_TOPIC = 256
MAX_REASON = 256
MAX_SDP = 64 * 1024
MAX_PEERS_IN_LIST = 64
MAX_SIGNALS_IN_BATCH = 32
MAX_IDS_IN_LIST = 256
MAX_VALUE = 64 * 1024
MAX_RING_LIST = 16
MAX_TRAIL = 256
MAX_RECEIPTS = 64

Id: TypeAlias = Annotated[PeerId, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
PeerIds: TypeAlias = Annotated[tuple[Id, ...], Meta(max_length=MAX_PEERS_IN_LIST)]
Trail: TypeAlias = Annotated[tuple[Id, ...], Meta(max_length=MAX_TRAIL)]
RingList: TypeAlias = Annotated[tuple[Id, ...], Meta(max_length=MAX_RING_LIST)]
MessageId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
MessageIds: TypeAlias = Annotated[tuple[MessageId, ...], Meta(max_length=MAX_IDS_IN_LIST)]
Topic: TypeAlias = Annotated[str, Meta(max_length=MAX_TOPIC)]
Reason: TypeAlias = Annotated[str, Meta(max_length=MAX_REASON)]
Milliseconds: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]
Hops: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
HopCounts: TypeAlias = Annotated[tuple[Hops, ...], Meta(max_length=MAX_IDS_IN_LIST)]
Prefix: TypeAlias = Annotated[str, Meta(max_length=16)]
Trees: TypeAlias = Annotated[tuple[Annotated[str, Meta(max_length=8)], ...], Meta(max_length=MAX_PEERS_IN_LIST)]
PublicKey: TypeAlias = Annotated[bytes, Meta(min_length=PUBLIC_KEY_SIZE, max_length=PUBLIC_KEY_SIZE)]
Signature: TypeAlias = Annotated[bytes, Meta(min_length=SIGNATURE_SIZE, max_length=SIGNATURE_SIZE)]
Mark: TypeAlias = Annotated[str, Meta(max_length=32)]
Purpose: TypeAlias = Annotated[str, Meta(max_length=16)]
Scalar: TypeAlias = str | int | float | bool | None


class _Part(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A piece of a message."""


class _Message(_Part, frozen=True, kw_only=True, tag_field="type"):
    """A message: its `type` field tells which."""


# --- signals: what WebRTC peers tell each other before they have a link -----------------------------------------------


class Handshake(_Part, frozen=True, kw_only=True):
    """Our proof inside an offer or answer; see `p2pmesh.protocols.handshake` for what the signature covers."""

    version: Annotated[int, Meta(ge=1, lt=1 << 16)]
    key: PublicKey
    signature: Signature
    links: Count | None = None
    """Open links of the sender when it signed: one that has none is let in even by peers that are full."""
    purpose: Purpose | None = None
    """What the sender of an offer wants the link for: see `RING` and the other purposes. Unknown ones count as none."""


RING, LONG, LEAF, BRIDGE, PINNED = "ring", "long", "leaf", "bridge", "pinned"
"""Purposes of a link: next to each other on the ring; a long one; of a peer that may have this one only; between islands;
wanted by the application."""


class Candidate(_Part, frozen=True, kw_only=True):
    """A trickled ICE candidate, as browsers write it. Python peers send none: their descriptions carry all candidates."""

    candidate: Annotated[str, Meta(max_length=1024)] = ""
    sdp_mid: Annotated[str, Meta(max_length=64)] | None = None
    sdp_m_line_index: Annotated[int, Meta(ge=0, lt=64)] | None = None


class Signal(_Part, frozen=True, kw_only=True):
    """An offer, an answer or a candidate; other types belong to simple-peer's internals and are ignored."""

    type: Annotated[str, Meta(max_length=32)]
    sdp: Annotated[str, Meta(max_length=MAX_SDP)] | None = None
    candidate: Candidate | None = None
    p2pmesh: Handshake | None = None


# --- broadcast --------------------------------------------------------------------------------------------------------


class GossipData(_Part, frozen=True, kw_only=True):
    """A broadcast. `hops`, `relayed_by` and `age` change on the way; all the rest is the origin's and signed.

    The fields that the original's peers can't do without have no default, so they are always written.
    """

    id: MessageId
    topic: Topic
    payload: Scalar = None
    origin_peer_id: Id
    signature: Signature | None = None
    timestamp: Milliseconds
    hops: Hops
    relayed_by: PeerIds
    encoding: Literal["text", "json"] | None = None
    """How `payload` is to be read: as it stands, or as JSON text. None from the original's peers, and beside a `blob`."""
    blob: bytes | None = None
    """A payload of bytes, instead of `payload`."""
    key: PublicKey | None = None
    ttl: Milliseconds | None = None
    max_hops: Hops | None = None
    receipts: bool = True
    """Whether the origin wants to know how many peers have it."""
    series: Milliseconds | None = None
    """Tells apart the counts that an origin has begun for a topic: the time it did, by its clock."""
    sequence: Milliseconds | None = None
    """Which of its broadcasts with that topic in that series this is, from 1."""
    age: Milliseconds = 0
    """How long it has been kept by the peers it passed: it ends at `ttl`, whatever their clocks say."""


class Gossip(_Message, frozen=True, kw_only=True, tag="gossip"):
    data: GossipData
    delivery_id: Annotated[str, Meta(max_length=MAX_ID + 32)] | None = None
    requires_ack: bool = False


class GossipAck(_Message, frozen=True, kw_only=True, tag="gossip_ack"):
    """This neighbour has these broadcasts. From the original's peers it never comes."""

    new: MessageIds = ()
    """It took them from us as new."""
    had: MessageIds = ()
    """It had them already: nothing more will come from it."""
    prune: MessageIds = ()
    """It had them already, or gets them elsewhere, and wants no more copies of their origins' broadcasts from us."""


class Receipt(_Part, frozen=True, kw_only=True):
    """How many peers have a broadcast by way of the sender, itself included, as far as it tells this receiver."""

    id: MessageId
    count: Count
    """In all so far."""
    settled: bool = True
    """Whether everybody below has answered."""


class GossipReceipts(_Message, frozen=True, kw_only=True, tag="gossip_receipts"):
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


class GossipIHave(_Message, frozen=True, kw_only=True, tag="gossip_ihave"):
    """This neighbour has these broadcasts, and sends those that it is asked for by `GossipGraft`."""

    ids: MessageIds
    hops: HopCounts = ()
    """Links that each has crossed to get there."""
    size: Count = 0
    """Bytes of the largest payload."""
    offer: bool = False
    """Whether an answer is waited for: a `GossipGraft`, or a `GossipAck` from who has it."""


class GossipGraft(_Message, frozen=True, kw_only=True, tag="gossip_graft"):
    """Send these broadcasts, which you have announced, and from now on copies of all that their origins broadcast."""

    ids: MessageIds = ()
    trees: Trees = ()
    """More origins, by the first digits of their ids, whose broadcasts are wanted as copies from now on."""


class GossipPrune(_Message, frozen=True, kw_only=True, tag="gossip_prune"):
    """Send no copies of these origins' broadcasts: this neighbour gets them elsewhere."""

    trees: Trees


class DigestPart(_Part, frozen=True, kw_only=True):
    """The sum of what a peer has below a prefix of keys: see `p2pmesh.protocols.digests`."""

    prefix: Prefix
    count: Count
    sum: Annotated[bytes, Meta(min_length=8, max_length=8)]


class GossipDigest(_Message, frozen=True, kw_only=True, tag="gossip_digest"):
    """What is alive here, summed up: broadcasts of at least `beyond` and at most `within` of age."""

    parts: Annotated[tuple[DigestPart, ...], Meta(max_length=MAX_IDS_IN_LIST)]
    beyond: Milliseconds = 0
    within: Milliseconds


class GossipHave(_Message, frozen=True, kw_only=True, tag="gossip_have"):
    """Broadcasts that are alive here. Answered by `GossipWant` in every case."""

    ids: MessageIds = ()
    prefixes: Annotated[tuple[Prefix, ...], Meta(max_length=MAX_IDS_IN_LIST)] = ()
    """These are all that this neighbour has below these prefixes."""
    beyond: Milliseconds = 0
    within: Milliseconds = 0


class GossipWant(_Message, frozen=True, kw_only=True, tag="gossip_want"):
    """Those of them that this neighbour lacks: they are sent to it."""

    ids: MessageIds = ()


class GossipHistory(_Message, frozen=True, kw_only=True, tag="gossip_history"):
    """Name the live broadcasts of this topic, or of all, of at least `beyond` and at most `within` of age."""

    topic: Topic | None = None
    beyond: Milliseconds = 0
    within: Milliseconds


# --- direct messages --------------------------------------------------------------------------------------------------


class Direct(_Message, frozen=True, kw_only=True, tag="direct"):
    """A message for this neighbour alone. From the original's peers only `payload` is there, and it may be any JSON."""

    payload: Any = None
    id: MessageId | None = None
    encoding: Literal["text", "json"] | None = None
    blob: bytes | None = None
    timestamp: Milliseconds | None = None


class DirectAck(_Message, frozen=True, kw_only=True, tag="direct_ack"):
    id: MessageId


# --- routes -----------------------------------------------------------------------------------------------------------


class Contact(_Part, frozen=True, kw_only=True):
    """A peer's contact record, signed by it; its id is that of the key. See `p2pmesh.protocols.sealing`."""

    key: PublicKey
    box: PublicKey
    """Its X25519 key, for which messages to it are sealed."""
    version: Annotated[int, Meta(ge=1, lt=1 << 16)]
    serial: Milliseconds
    """Of two records of a peer the one with the higher serial counts."""
    max_payload: Count
    """The largest payload that it takes."""
    signature: Signature


class Packet(_Message, frozen=True, kw_only=True, tag="packet"):
    """A message on its way over several links; see `p2pmesh.protocols.packets`.

    From `hops` to `route` are the fields that change on the way; the others are the origin's and signed.
    """

    id: MessageId
    kind: Literal["tell", "ask", "ack", "answer", "refusal", "miss"]
    """`tell` wants an `ack`, `ask` an `answer`, both with its id. The receiver may send a `refusal` of either, and a
    peer that knows no way on a `miss`, which is a hint that nobody signs."""
    from_: Id
    to: Id
    nearest: bool = False
    """It is for the peer whose id is nearest to `to` on the ring, never for its origin."""
    timestamp: Milliseconds = 0
    sealed: bool = False
    carry: bytes = b""
    """The message inside, encoded; then sealed if it says so. Of a refusal the reason."""
    key: PublicKey | None = None
    signature: Signature | None = None
    hops: Hops = 0
    """Links that it may cross yet."""
    attempt: Hops = 0
    """Of the same packet, from 0 on; later ones go other ways. In a response, which attempt it is to."""
    path: Trail = ()
    """Peers that it came through, the origin first, without its sender; dead ends are not in it."""
    tried: Trail = ()
    """Dead ends. Is its sender among them, it gives the packet back."""
    route: Trail = ()
    """Peers through which it shall go, as far as that works."""


class ContactRequest(_Message, frozen=True, kw_only=True, tag="contact_request"):
    """Asks for the receiver's contact record, and brings the sender's."""

    contact: Contact


class ContactReply(_Message, frozen=True, kw_only=True, tag="contact_reply"):
    contact: Contact


# --- links ------------------------------------------------------------------------------------------------------------


class ReconnectionData(_Message, frozen=True, kw_only=True, tag="reconnection_data"):
    """Sent just before a link is given up: why, and whom to try instead."""

    reason: Reason
    peers: PeerIds
    timestamp: Milliseconds


class Goodbye(_Message, frozen=True, kw_only=True, tag="goodbye"):
    """This peer leaves the mesh, or closes this link, and says why. Sent only to peers of our protocol version."""

    reason: Reason
    peers: PeerIds = ()
    """Neighbours of the leaver, which may close the gap that it leaves."""


class LinkRejected(_Message, frozen=True, kw_only=True, tag="connection_rejected"):
    """No link for the offer that came over a route. On a link the original never sends it, but reads it."""

    from_: Id | None = None
    reason: Reason = ""
    alternative_peers: PeerIds = ()
    about: Mark | None = None
    """Which offer, by the mark that `p2pmesh.protocols.handshake.mark_of` gives: rejections may come late, by other ways."""


# --- the ring ---------------------------------------------------------------------------------------------------------


class Neighbours(_Message, frozen=True, kw_only=True, tag="neighbours"):
    """What the sender says of itself: replaces what it said before."""

    serial: Count
    """Counts these messages, for `Stabilise`."""
    links: PeerIds = ()
    """Verified peers of this protocol that it has links to, those next to it on the ring first."""
    free: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0
    """Slots without a link, beside those for the ring."""
    leaf: bool = False
    """Whether it has one slot only, and is no part of the ring."""
    successors: RingList = ()
    predecessors: RingList = ()
    """Who follows it on the ring, and who goes before, as far as it knows, the nearest first."""


class Stabilise(_Message, frozen=True, kw_only=True, tag="stabilise"):
    """My last `Neighbours` to you has this serial; without one: send me yours."""

    serial: Count | None = None
    peers: RingList = ()
    """Some peers that the receiver may not know of."""


class FindSuccessor(_Message, frozen=True, kw_only=True, tag="find_successor"):
    """Who is at this place of the ring? Routed to whoever is nearest to it."""

    key: Id
    seeks_link: bool = False
    """The sender has a free slot for a long link: it may be named to others who seek one."""
    joins: bool = False
    """It has just come, so that a long link may be given up for it."""
    leaf: bool = False
    """It has one slot only, and seeks its place."""


class SuccessorFound(_Message, frozen=True, kw_only=True, tag="successor_found"):
    """The answer of who is nearest to the key."""

    successors: RingList = ()
    predecessors: RingList = ()
    vacant: RingList = ()
    """Peers with free slots for long links, that the sender of this knows of."""
    welcome: bool = False
    """Whether the sender of this lets the asker in, if that offers it a link soon."""


# --- islands ----------------------------------------------------------------------------------------------------------


class Merge(_Message, frozen=True, kw_only=True, tag="merge"):
    """There is a bridge to another island: flooded from its near end. To its far end, without a path: we are two islands."""

    id: MessageId
    bridge: Id
    """The far end."""
    path: PeerIds = ()
    """The near end, and all that it came through since, the sender last."""
    wanted: bool = False
    """The bridge is only tried so far: nobody else on this island tries another meanwhile."""


class FindBeyond(_Message, frozen=True, kw_only=True, tag="find_beyond"):
    """Who is at this place of the ring, on your side of the bridge? Routed to the far end."""

    key: Id


class FoundBeyond(_Message, frozen=True, kw_only=True, tag="found_beyond"):
    """The answer to `find_beyond`."""

    peer: Id
    """Who is nearest to the key, not by the link that the question came over."""
    successors: RingList = ()
    predecessors: RingList = ()
    """Who follows it on the ring, and who goes before, as it says."""


# --- signaling through the mesh ---------------------------------------------------------------------------------------


class RelaySignal(_Message, frozen=True, kw_only=True, tag="relay_signal"):
    from_: Id
    to: Id
    signal: Signal
    timestamp: Milliseconds = 0
    relay_path: PeerIds = ()


class RelayAck(_Message, frozen=True, kw_only=True, tag="relay_ack"):
    from_: Id
    to: Id
    original_timestamp: Milliseconds = 0
    received_timestamp: Milliseconds = 0
    relay_path: PeerIds = ()


class RelayFailure(_Message, frozen=True, kw_only=True, tag="relay_failure"):
    from_: Id
    to: Id
    target_peer: Id | None = None
    reason: Reason = ""
    timestamp: Milliseconds = 0


class RelayBatch(_Message, frozen=True, kw_only=True, tag="batched_signals"):
    from_: Id
    signals: Annotated[tuple[Signal, ...], Meta(max_length=MAX_SIGNALS_IN_BATCH)] = ()


# --- DHT --------------------------------------------------------------------------------------------------------------


class DhtRecord(_Part, frozen=True, kw_only=True):
    """A value in the DHT, as its publisher signed it; `p2pmesh.protocols.dht_records` says what the signature covers."""

    key: Id
    """The hash of the application's key."""
    payload: Annotated[str, Meta(max_length=MAX_VALUE)] | None = None
    encoding: Literal["text", "json"] | None = None
    blob: bytes | None = None
    """A value of bytes, instead of `payload`."""
    timestamp: Milliseconds
    """When it was published, by the publisher's clock: of two by one publisher, the newer one counts."""
    ttl: Milliseconds
    publisher_key: PublicKey
    signature: Signature


class KademliaCall(_Part, frozen=True, kw_only=True):
    """A request of the DHT, or the answer to one. The original's know nothing from `publisher` on."""

    type: Annotated[str, Meta(max_length=32)]
    id: Id
    rpc_id: Annotated[str, Meta(max_length=MAX_ID)] | None = None
    in_reply_to: Annotated[str, Meta(max_length=MAX_ID)] | None = None
    target_id: Id | None = None
    key: Annotated[str, Meta(max_length=MAX_ID)] | None = None
    publisher: Id | None = None
    """Of `FIND_VALUE`: only a value of this publisher."""
    newer_than: Milliseconds | None = None
    """Of `FIND_VALUE`: only a value with a later timestamp; who has this one says `stored`."""
    record: DhtRecord | None = None
    peers: PeerIds = ()
    stored: bool = False


class KademliaRpc(_Message, frozen=True, kw_only=True, tag="kademlia_rpc"):
    message: KademliaCall


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
    | GossipPrune
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
