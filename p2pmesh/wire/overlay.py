"""Messages of the overlay: packets, the ring, bridges between islands, and the DHT. See `messages`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from p2pmesh.wire.fields import (
    MAX_VALUE,
    SEARCH,
    Count,
    Hops,
    Id,
    MessageId,
    Milliseconds,
    Part,
    PeerIds,
    PublicKey,
    Reason,
    RingList,
    Signature,
    Tagged,
    Trail,
)

# --- routes -----------------------------------------------------------------------------------------------------------


class Contact(Part, frozen=True, kw_only=True):
    """A peer's contact record, signed by it; its id is that of the key. See `p2pmesh.protocols.routing.sealed_box`."""

    key: PublicKey
    box: PublicKey
    """Its X25519 key, for which messages to it are sealed."""
    version: Annotated[int, Meta(ge=1, lt=1 << 16)]
    serial: Milliseconds
    """Of two records of a peer the one with the higher serial counts."""
    max_payload: Count
    """The largest payload that it takes."""
    signature: Signature


class Packet(Tagged, frozen=True, kw_only=True, tag="packet"):
    """A message on its way over several links; see `p2pmesh.protocols.routing.packets`.

    The origin signs `id`, `kind`, `to`, `nearest`, `timestamp`, `sealed` and `carry`; relays change the others.
    """

    id: MessageId
    kind: Literal["tell", "ask", "ack", "answer", "refusal", "miss", "busy", "ready"]
    """`tell` wants an `ack`, `ask` an `answer`, both with its id. The receiver may send a `refusal` of either, and a
    peer that knows no way on a `miss`, which is a hint that nobody signs. For a direct message there may be no room:
    it is `busy`, and then `ready` for it."""
    to: Id
    carry: bytes = b""
    """The message inside, encoded; then sealed if it says so. Of a refusal the reason."""
    path: Trail = ()
    """Relays that a request came through, neither its origin nor its sender among them, nor dead ends. Of a response
    those since it had to leave its route."""
    key: PublicKey | None = None
    """The origin's; left out with the signature where the origin's link to the receiver says as much."""
    signature: Signature | None = None
    timestamp: Milliseconds = 0
    """When a request was made."""
    route: Trail = ()
    """Peers through which it shall go, as far as that works."""
    attempt: Hops = 0
    """Of the same packet, from 0 on; later ones go other ways. In a response, which attempt it is to."""
    nearest: bool = False
    """It is for the peer whose id is nearest to `to` on the ring, never for its origin."""
    tried: Trail = ()
    """Dead ends. Is its sender among them, it gives the packet back."""
    search: Hops = SEARCH
    """Links that it may still cross without coming nearer."""
    sealed: bool = False
    from_: Id | None = None
    """The origin. Never on the wire: it is the key's owner or, without a key, the sender."""


class ContactRequest(Tagged, frozen=True, kw_only=True, tag="contact_request"):
    """Asks for the receiver's contact record, and brings the sender's."""

    contact: Contact


class ContactReply(Tagged, frozen=True, kw_only=True, tag="contact_reply"):
    contact: Contact


# --- the ring ---------------------------------------------------------------------------------------------------------


class Neighbours(Tagged, frozen=True, kw_only=True, tag="neighbours"):
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
    """Its successors and predecessors on the ring, as far as it knows them, nearest first."""


class Stabilise(Tagged, frozen=True, kw_only=True, tag="stabilise"):
    """My last `Neighbours` to you has this serial; without one: send me yours."""

    serial: Count | None = None


class FindSuccessor(Tagged, frozen=True, kw_only=True, tag="find_successor"):
    """Who is at this place of the ring? Routed to whoever is nearest to it."""

    key: Id
    seeks_link: bool = False
    """The sender has a free slot for a long link: it may be named to others that seek one."""
    leaf: bool = False
    """It has one slot only, and seeks its place: a long link may be given up for it."""


class SuccessorFound(Tagged, frozen=True, kw_only=True, tag="successor_found"):
    """The answer of the peer nearest to the key."""

    successors: RingList = ()
    predecessors: RingList = ()
    vacant: RingList = ()
    """Peers with free slots for long links that the sender knows of."""
    welcome: bool = False
    """Whether the sender takes a link that the asker offers soon."""


# --- islands ----------------------------------------------------------------------------------------------------------


class Merge(Tagged, frozen=True, kw_only=True, tag="merge"):
    """News of a bridge to another island, flooded from its near end. To its far end, without a path: we are two."""

    id: MessageId
    bridge: Id
    """The far end."""
    path: PeerIds = ()
    """The near end, and all peers that it came through since, the sender last."""
    wanted: bool = False
    """The bridge is only being tried: no other peer of this island tries another meanwhile."""


class FindBeyond(Tagged, frozen=True, kw_only=True, tag="find_beyond"):
    """Who is at this place of the ring, on your side of the bridge? Routed to the far end."""

    key: Id


class FoundBeyond(Tagged, frozen=True, kw_only=True, tag="found_beyond"):
    """The answer to `find_beyond`."""

    peer: Id
    """The peer nearest to the key, not counting the link that the question came over."""
    successors: RingList = ()
    predecessors: RingList = ()
    """Its successors and predecessors on the ring, as it says."""


# --- DHT --------------------------------------------------------------------------------------------------------------


class DhtRecord(Part, frozen=True, kw_only=True):
    """A value in the DHT, signed by its publisher: `p2pmesh.protocols.kademlia.records` says over what."""

    key: Id
    """The place of the key: of a shared one the hash of the application's, of an owned one as `name` says."""
    payload: Annotated[str, Meta(max_length=MAX_VALUE)] | None = None
    encoding: Literal["text", "json"] | None = None
    blob: bytes | None = None
    """A value of bytes, instead of `payload`. With neither there is none any more: it was deleted."""
    timestamp: Milliseconds
    """When it was published, by the publisher's clock, and its sequence number: of two by one publisher, the newer one
    counts."""
    ttl: Milliseconds
    """For which the value lives."""
    publisher_key: PublicKey
    signature: Signature
    name: Id | None = None
    """The hash of the application's key, where that is owned by the publisher: then the place is made of both."""
    kept: Milliseconds = 0
    """For which older ones must not come back, if that is longer."""


class FindNode(Tagged, frozen=True, kw_only=True, tag="find_node"):
    """Name the peers nearest to an id by XOR. Answered by `NodesFound`."""

    target: Id


class FindValue(Tagged, frozen=True, kw_only=True, tag="find_value"):
    """Give a value under a key, and name the peers nearest to it. Answered by `NodesFound`."""

    key: Id
    publisher: Id | None = None
    """Only a value of this publisher; else of the one who has had one here for longest."""
    newer_than: Milliseconds | None = None
    """Only a value with a later timestamp; a peer that has this one says `same`."""
    all_publishers: bool = False
    """Name all who have a value under the key."""


class NodesFound(Tagged, frozen=True, kw_only=True, tag="nodes_found"):
    """The answer to `find_node` and to `find_value`."""

    peers: PeerIds = ()
    """The peers nearest to the target that the sender knows or has heard of, nearest first, without the asker."""
    record: DhtRecord | None = None
    same: bool = False
    """Whether the sender has the version that the asker has."""
    publishers: PeerIds = ()
    """All who have a value under the key, the one who has had it here for longest first, if they were asked for."""
    older_until: Milliseconds = 0
    """Until when the older version that the sender has could be brought back, by its publisher's clock."""


class StoreValue(Tagged, frozen=True, kw_only=True, tag="store_value"):
    """Hold this value. Answered by `ValueStored`."""

    record: DhtRecord


class ValueStored(Tagged, frozen=True, kw_only=True, tag="value_stored"):
    """The answer to `store_value`."""

    held: bool = False
    reason: Reason = ""
    """Why it is not, for people."""
    full: bool = False
    """Whether that is because as many publishers share the key as may."""
