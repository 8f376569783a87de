"""Every number that can be tuned, in one frozen config for each subsystem, with its reason beside it.

Times are seconds, sizes are bytes. Make variants with `attrs.evolve`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

import attrs
from attrs import field, frozen

from p2pmesh.checks import flag_field, instance, shown, text_field
from p2pmesh.checks import number_field as _number
from p2pmesh.errors import ConfigError
from p2pmesh.ice_servers import IceServer as IceServer
from p2pmesh.ice_servers import IceServersLike as IceServersLike
from p2pmesh.ice_servers import ice_servers_of, ice_urls_of

KIB = 1024
MIB = 1024 * KIB

MAX_ROOM = 128
MAX_TOKEN = 1024
"""Characters of a room's name and of a join token, as signaling services take them."""
MAX_K = 64
"""Peers that one answer of the DHT can carry."""


def network_of(room: str, key: bytes = b"") -> bytes:
    r"""The network that each signature names: 16 bytes that follow from the room, and the mesh's key if it has one.

    They are the first of SHA-256 of `b"p2pmesh network v1\0"`, the length of the room's name in UTF-8 as a 32-bit
    big-endian number, the name, and likewise the key, which no mesh has yet.
    """
    name = room.encode("utf-8", "surrogatepass")
    fields = b"".join(len(value).to_bytes(4, "big") + value for value in (name, key))
    return sha256(b"p2pmesh network v1\0" + fields).digest()[:16]


IPAddress: TypeAlias = IPv4Address | IPv6Address
AllowAddresses: TypeAlias = tuple[IPv4Network | IPv6Network, ...] | Callable[[IPAddress], bool] | None


def _allow_addresses(value: object) -> AllowAddresses:
    if value is None or callable(value):
        return value
    try:
        if isinstance(value, tuple):
            return tuple(ip_network(one) for one in value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        "LinkConfig.allow_addresses is a tuple of networks such as 10.0.0.0/8, or a function of an address, not"
        f" {shown(value)}"
    )


@frozen(kw_only=True)
class LinkConfig:
    """Links to neighbours."""

    ice_servers: tuple[IceServer, ...] = field(default=(), converter=ice_servers_of)
    """None by default: peers on one machine or one network need none, and nothing is contacted unasked. URLs, and what
    a browser takes (`{"urls": [...]}`), do as well; all of them are asked."""
    gathering_timeout: float = _number(0.75, low=0.05)
    """An offer or answer waits this long at most for names and for STUN and TURN servers, and leaves with the addresses
    that are there: one lost datagram is asked for again after 0.5 s, and two peers that wait one after the other
    still link within 2 s. What is found later is told afterwards."""
    allow_unverified: bool = flag_field(default=False)
    """Link to peers that can't prove their id, such as the original's. Off: else a lying signaling server could drop
    the proofs of two verified peers and put itself between them."""
    allow_addresses: AllowAddresses = field(default=None, converter=_allow_addresses)
    """Addresses of peers that anything is sent to: networks, or a function of an `ipaddress` address. By default all
    but loopback, unless a service or nothing else is reached over it, and link-local ones of networks that this machine
    is not in. Multicast, broadcast and reserved addresses and ports below 1024 are never taken."""
    relay_only: bool = flag_field(default=False)
    """For privacy: peers learn the addresses of TURN servers only, and all data goes through these. Needs one in
    `ice_servers`."""
    connect_timeout: float = _number(15.0, low=0.1)
    """For one attempt, offer to open channel; the original's transports use 15 s."""
    close_timeout: float = _number(2.0, low=0.01)
    """For a graceful close; after that it is forced."""
    packet_size: int = _number(16 * KIB, low=1 * KIB)
    """Largest data channel message between peers of ours: what every WebRTC stack carries without trouble."""
    coalesce_size: int = _number(16 * KIB, low=0)
    """Small frames that wait together are sent as one packet up to this size."""
    coalesce_delay: float = _number(0.001, low=0)
    """A small frame waits for company this long at most, and only just after another packet left: as fine as a timer
    is."""
    patience: float = _number(0.05, low=0)
    """Acks and counts wait this long at most for a packet that goes to the same peer anyway: about as long as TCP
    delays its acks (RFC 1122 section 4.2.3.2 allows 0.5 s). A packet costs a WebRTC stack far more than what is in
    it."""
    high_water: int = _number(256 * KIB, low=1 * KIB)
    """Stop writing while the data channel has this much buffered."""
    low_water: int = _number(64 * KIB, low=0)
    """Go on writing once it has drained to this."""
    receive_window: int = _number(2 * MIB, low=64 * KIB)
    """Credit given to the sender: how much may wait unread. Must hold the largest frame."""
    keepalive_idle: float = _number(3.0, low=0.05)
    """Ping after this long without a packet from the peer, or up to a fifth less, so that one end pings for both."""
    keepalive_interval: float = _number(1.0, low=0.05)
    """Between further pings."""
    keepalive_pings: int = _number(2, low=1)
    """Unanswered pings until the peer is given up: about 5 s after it fell silent, against 33 s of ICE consent. More of
    them in the same time find no more: a ping that is lost is sent again after SCTP's 1 s, and holds up the next."""
    doubt_after: float = _number(0.5, low=0.05)
    """A peer that says nothing for so long, and two round trips, after something was sent to it is doubted: the link
    stays, but packets go another way. It is pinged after half of that time."""
    outbox: int = _number(256, low=1)
    """Frames that may wait for one link, control and data each."""
    outbox_patience: float = _number(10.0, low=0.1)
    """A link whose outbox stays full this long is given up."""
    frames_per_second: float = _number(20_000.0, low=1)
    """A neighbour that sends more is read more slowly, which its credit makes it feel."""

    def __attrs_post_init__(self) -> None:
        if self.relay_only and not any(url.kind == "turn" for url in ice_urls_of(self.ice_servers)):
            raise ConfigError(
                "LinkConfig.relay_only needs a TURN server in LinkConfig.ice_servers, such as turn:host:3478"
            )


@frozen(kw_only=True)
class SignalingConfig:
    """Signaling services."""

    join_grace: float = _number(1.0, low=0)
    """A service that answers nothing to a join for this long is taken to have accepted it: the original's server does
    not answer the first peer."""
    open_timeout: float = _number(10.0, low=0.1)
    """For one connection to a service; as the original."""
    retry_first: float = _number(0.5, low=0.01)
    retry_cap: float = _number(30.0, low=0.01)
    """Between attempts to reach a service, jittered and doubled."""
    rejoin_every: float = _number(60.0, low=1)
    """While there is no link into the mesh: ask for fresh peers, first after 5 s, doubling up to this."""
    outbox: int = _number(256, low=1)
    """Messages that may wait for one service."""
    remembered_peers: int = _number(1024, low=1)
    """Peers of which we remember the services that they are on."""
    remembered_offers: int = _number(64, low=1)
    """Offers kept, of ours and of others each, until they are answered: far more than links are attempted at once."""
    mesh_timeout: float = _number(3.0, low=0.1)
    """An offer that was not answered through the mesh by then goes by a service: 20 links of 50 ms, there and back, are
    2 s. With `LinkConfig.ice_servers` it is `LinkConfig.gathering_timeout` more: so long an answerer waits for them."""
    routes: int = _number(128, low=1)
    """Offers under way through the mesh; more go by a service."""
    offers_per_second: float = _number(1.0, low=0.01)
    offer_burst: float = _number(10.0, low=1)
    """Offers of one peer that are looked at; more are dropped. A peer of ours makes one a second at most, and ever
    fewer."""


@frozen(kw_only=True)
class TopologyConfig:
    """Which links this peer has."""

    retry_first: float = _number(1.0, low=0.01)
    retry_cap: float = _number(60.0, low=0.01)
    """Between attempts at the same peer, jittered and doubled."""
    dials_at_once: int = _number(3, low=1)
    """Attempts of ours at a time: they take slots, and most of them succeed."""
    known_peers: int = _number(256, low=1)
    """Peers remembered besides the links; HyParView's passive view is 30 for 10,000 peers, ids are small."""
    alternatives: int = _number(3, low=1)
    """Ids told to a peer that is rejected or evicted; as the original."""
    min_link_age: float = _number(10.0, low=0)
    """A link younger than this is not given up for a newcomer, nor more than one in this time, so that links don't
    thrash."""
    announced_grace: float = _number(4.0, low=0)
    """A peer that just joined gets this long to make its offer before we make ours: it was told of us, too, and finds
    us through the mesh once it has its first link."""


@frozen(kw_only=True)
class ChordConfig:
    """The ring of ids, and where long links lead."""

    successors: int = _number(8, low=1, high=16)
    """Length of the lists of successors and of predecessors, at most 16: with half of all peers gone at once, one list
    of 256 is all gone."""
    tell_delay: float = _number(0.3, low=0)
    """Neighbours are told of changes after this long, jittered: what changes together is told together."""
    stabilise_every: float = _number(15.0, low=0.1)
    """Between exchanges of successor lists with a neighbour; as the original."""
    search_first: float = _number(0.5, low=0.01)
    search_cap: float = _number(15.0, low=0.01)
    """Between searches that came to nothing, jittered and doubled."""
    searches: int = _number(10, low=1)
    """That may come to nothing in a row, until no more is searched before something changes."""
    search_timeout: float = _number(10.0, low=0.1)
    """For one search: time for a few attempts over routes of 20 links."""
    dial_patience: float = _number(4.0, low=0.1)
    """A link to a peer that was found should have opened by then; else the next is searched."""


@frozen(kw_only=True)
class BroadcastConfig:
    """Broadcasts."""

    ttl: float = _number(60.0, low=0.1)
    """How long a message is offered to peers that lack it."""
    max_ttl: float = _number(600.0, low=0.1)
    """A message from elsewhere lives no longer than this, whatever it says."""
    clock_skew: float = _number(300.0, low=0, high=math.inf)
    """Tolerated between the origin's clock and ours."""
    ack_timeout: float = _number(1.0, low=0.01)
    """Until a copy that is not acknowledged is sent again: well above the round trip of any usable link."""
    retries: int = _number(5, low=0)
    """Of one hop: after 1, 2, 4, ... s, jittered, until the ttl ends."""
    window: int = _number(64, low=1)
    """Unacknowledged messages on one link; more wait."""
    window_bytes: int = _number(2 * MIB, low=1 * KIB)
    """Unacknowledged payload bytes on one link, or one message if it is larger: half a second of a good link, so that a
    message which is only queued is not taken for lost."""
    slowest_link: float = _number(128.0 * KIB, low=1)
    """Bytes per second: an ack is waited for longer by what is in flight at this rate."""
    publish_room: int = _number(16, low=1)
    """A `broadcast` of ours waits while so many messages wait for one link's window: enough to keep it busy."""
    backlog: int = _number(1024, low=1)
    """Messages that wait for one link's window; above it the oldest is dropped and counted."""
    seen_ids: int = _number(65_536, low=1)
    """Origins' topics whose numbers are remembered so that nothing is delivered twice: what is above is refused. And
    ids by which announcements are known."""
    history: int = _number(4096, low=1)
    history_bytes: int = _number(64 * MIB, low=1 * MIB)
    """Messages kept for retries and for peers that lack them, and bytes of their payloads; above either the oldest
    goes of whoever takes most."""
    origin_rate: float = _number(64.0, low=0.1)
    origin_burst: int = _number(4096, low=1)
    """Broadcasts a second of one peer and at once, those of more than 16 KiB counted once more for each 16 KiB: what a
    history can keep for the default `ttl`. A `broadcast` of ours waits for its turn; of others, what is above is
    refused, and told as `OriginThrottled`. The same in the whole mesh, or the strictest decide."""
    greeting: int = _number(256, low=0)
    """Messages that have gone to nobody yet, the newest, for a neighbour of the original project, which can't ask."""
    ack_delay: float = _number(0.05, low=0)
    """Acks to one neighbour go out at most this often, several in a frame, or with a copy that goes there: an ack is
    far from urgent, and a frame costs about as much as a small payload. After a pause the first goes at once."""
    announce_delay: float = _number(0.25, low=0)
    """Announcements to one neighbour wait for more of them at most this long; while links fail, half a round-trip if
    that is less."""
    announced: int = _number(1024, low=1)
    """Announced messages that are waited for, of each neighbour that announced them; those above are ignored."""
    trees: int = _number(128, low=1)
    """Origins whose trees are remembered, those heard last: some 100 bytes each."""
    tree_life: float = _number(300.0, low=0)
    """The tree of an origin that is silent for longer is forgotten: links have changed meanwhile."""
    push_above: float = _number(0.6, low=0)
    """Without a tree, a copy is sent where at least this share of such copies was new lately, else offered. See
    `NoveltyEstimate`."""
    digest_every: float = _number(30.0, low=0.1)
    """Between comparisons with one neighbour of what both have."""
    pull_window: int = _number(64, low=1)
    """Missed broadcasts that are asked for at once of one neighbour: what its window for us holds by default; of more,
    the rest would wait in its backlog and be asked for again."""
    pull_timeout: float = _number(5.0, low=0.1)
    """What was asked for and has not come is asked for again after this long, twice. A full window of 2 MiB takes a
    slow link this long and more; a neighbour that leaves out a single thing stalls what else we miss for as long, see
    `serve_limit`."""
    serve_limit: int = _number(6, low=1)
    """Times that one neighbour gets one broadcast for the asking: the first and its repetitions, by a graft (3) and for
    comparisons (3). What it asks for beyond that is left out without a word, which stalls its pulls for its
    `pull_timeout`."""
    slow_patience: float = _number(10.0, low=0.1)
    """A link that acknowledges nothing for this long is not waited for while others move; one for which something has
    waited for longer, while others acknowledge at once what came later, is given up; as `outbox_patience`."""


@frozen(kw_only=True)
class ReceiptsConfig:
    """Who has a broadcast."""

    table: int = _number(8192, low=1)
    """Broadcasts of ours that are counted, and as many of others; above it the oldest is settled as it stands."""
    interim: float = _number(0.5, low=0.01)
    """How often a count that grows but is not settled is passed on: seldom while all is well, since hundreds of peers
    have answered by then; with the half of it a death loses hardly less, and there is a fifth more to send."""
    coalesce: float = _number(0.05, low=0)
    """A peer that was told something just now is told more only after this, all at once."""
    note_delay: float = _number(0.2, low=0)
    """Answers, for which nobody waits, wait this long for company: well below `retry_first`."""
    patience: float = _number(5.0, low=0)
    """A child whose link has ended may answer by another way for so long."""
    route_timeout: float = _number(3.0, low=0.1)
    """A parent without a link that no route reaches in this time is lost; the origin is tried again."""
    retry_first: float = _number(1.0, low=0.01)
    retry_cap: float = _number(8.0, low=0.01)
    """Until a receipt that we sent is acknowledged: jittered and doubled."""
    linger: float = _number(10.0, low=0)
    """Counting goes on this long after the ttl, for what is still on its way."""
    most: int = _number(1_000_000, low=1)
    """A peer that tells of more than this lies. How many are believed follows from the size of the mesh."""


@frozen(kw_only=True)
class SubscriptionConfig:
    """Subscriptions that want each origin's broadcasts in their order."""

    patience: float = _number(5.0, low=0)
    """A broadcast waits so long for one that was sent before it: a repair by the tree takes a second or two."""
    start: float = _number(0.5, low=0)
    """The first that is heard of an origin waits so long for others on their way: longer than most ways differ."""
    held: int = _number(1024, low=1)
    """Broadcasts held back at once; above it the one that has waited longest is delivered."""
    origins: int = _number(4096, low=1)
    """Origins and topics whose place is remembered."""


@frozen(kw_only=True)
class RoutingConfig:
    """Routes, and direct messages."""

    ack_timeout: float = _number(1.0, low=0.01)
    """For the first attempt; over routes, as long as nothing is known of them."""
    waiting: int = _number(1024, low=1)
    """Messages of others that found our application's inbox full and are asked for once it has room; of more, the first
    come again by themselves, after some seconds."""
    pending: int = _number(1024, low=1)
    """Direct messages of ours that wait for an ack; above it a `send` waits."""
    window: int = _number(64, low=1)
    """Of them to one peer: well below `LinkConfig.outbox`."""
    seen_ids: int = _number(65_536, low=1)
    """Ids remembered so that nothing is delivered twice, of direct messages and of what else came over routes:
    for 10 minutes, and some 300 bytes each. What one neighbour brings can't fill it."""
    patience: float = _number(30.0, low=0.1)
    """Seconds for which a direct message is tried: without an answer, and over a link without progress either."""
    least_wait: float = _number(0.3, low=0.01)
    """Seconds between two attempts over routes at least."""
    attempts: int = _number(10, low=1)
    """Of one packet at most, each another way."""
    misses: int = _number(4, low=1)
    """Peers that know no way on, one each attempt, until there is taken to be none: in the seconds between, a ring
    mends."""
    doubtful_search: int = _number(4, low=0)
    """Links that a packet to a peer that may well be gone crosses from where it comes no nearer."""
    doubtful_misses: int = _number(2, low=1)
    """As `misses`, of such a packet."""
    requests: int = _number(4096, low=1)
    """Packets of ours under way."""
    remembered_routes: int = _number(1024, low=1)
    """Peers whose contact record is kept, and as many whose answers' time is; answers of ours kept for repetitions."""
    clock_skew: float = _number(250.0, low=0)
    """Tolerated between the sender's clock and ours, in a packet: less than half of the time that its id is remembered.
    """


@frozen(kw_only=True)
class KademliaConfig:
    """The DHT. Kademlia's own numbers are those of the paper (Maymounkov and Mazieres 2002) where it names any."""

    enabled: bool = flag_field(default=True)
    """Off: this peer stores and answers nothing, and `Mesh.dht` refuses calls; others do without it."""
    k: int = _number(20, low=1, high=MAX_K)
    """Peers in a bucket, peers that hold a value, peers that a lookup finds. At most 64: what one answer carries."""
    alpha: int = _number(3, low=1)
    """Requests of a lookup at once, while it still comes closer."""
    rpc_timeout: float = _number(5.0, low=0.1)
    """For one request and its answer; as the original."""
    lookup_timeout: float = _number(30.0, low=1)
    """For a lookup as a whole, whatever peers answer."""
    lookups: int = _number(32, low=1)
    """Lookups of the application at once; more wait."""
    quorum: int = _number(3, low=1)
    """A `get` ends once so many peers gave the publisher's newest value: some may be out of date. If any publisher will
    do, once so many more put one publisher first than any other."""
    contact_lasts: float = _number(300.0, low=1)
    """A peer that is no neighbour and was not heard of for so long is no contact any more: those next to it know."""
    republish: float = _number(3600.0, low=1)
    """Holders see to it this often, jittered, that a value has its k holders; one does, and the others skip it."""
    ttl: float = _number(86_400.0, low=1)
    """How long a value lives by default."""
    max_ttl: float = _number(7 * 86_400.0, low=1)
    """No value is taken that says it lives longer."""
    clock_skew: float = _number(300.0, low=0)
    """Tolerated between a publisher's clock and ours."""
    max_value: int = _number(16 * KIB, low=1, high=64 * KIB)
    """Bytes of a value as encoded, at most 64 KiB: k peers keep it, and it crosses many links to them."""
    stored_values: int = _number(4096, low=1)
    stored_bytes: int = _number(16 * MIB, low=1 * KIB)
    """Values of others kept here; above either, the publisher with most gives way, else new values to nearer ones."""
    publisher_values: int = _number(256, low=1)
    publisher_bytes: int = _number(1 * MIB, low=1 * KIB)
    """Of them by one publisher: a sixteenth of all."""
    key_values: int = _number(16, low=1)
    """Publishers under one shared key: one more raises `KeyFull`."""
    publications: int = _number(1024, low=1)
    """Values of our own that we see to; of more, the oldest are left to their holders."""
    requests_per_second: float = _number(20.0, low=0.1)
    request_burst: int = _number(100, low=1)
    """Requests of one peer that are answered: many lookups at once ask each peer a few times."""
    requesters: int = _number(1024, low=1)
    """Peers whose requests are counted."""
    silent: int = _number(256, low=0)
    """Peers remembered, for a minute, as not answering, so that not every lookup waits for them anew."""
    handovers: int = _number(1024, low=1)
    """Values that wait to be handed to a peer that should hold them; those above wait for republishing."""

    def __attrs_post_init__(self) -> None:
        if self.ttl > self.max_ttl:
            raise ConfigError("KademliaConfig.ttl must not be above max_ttl")


@frozen(kw_only=True)
class IslandsConfig:
    """Islands: parts of the mesh that have lost each other."""

    suspects: int = _number(64, low=1)
    """Peers that fell silent and are looked for; of more, the oldest are forgotten."""
    suspect_lasts: float = _number(600.0, low=1)
    """Seconds for which such a peer is looked for; and for which a healing may go on."""
    patience: float = _number(10.0, low=0)
    """Until it is looked for, and half as much again at most: the ring has closed over the ordinary dead by then."""
    lookup_timeout: float = _number(6.0, low=0.1)
    """For one look-up, here or beyond a bridge."""
    probe_every: float = _number(3.0, low=0)
    """An island as a whole asks the services for a missing peer so often, whatever its size: each peer of it, so many
    seconds for each peer that it counts."""
    probe_least: float = _number(5.0, low=0.1)
    """A peer does so at most this often."""
    quiet: float = _number(8.0, low=0)
    """After news of a bridge nobody asks the services for so long: rings of 1,000 peers merge in about this time."""
    seeds: int = _number(256, low=1)
    """Peers on each side of a bridge that look for their place beyond it, about: all of a small island, and of a large
    one no more than one link can carry the questions of in a second."""


@frozen(kw_only=True)
class WorkConfig:
    """Work that neighbours may cause here and that nobody here asked for: less than a third of one core, in all.

    Each field is the share of a core for one part. Half of it is split among the neighbours, the rest is for whoever
    needs more. Beyond that, work is put off or dropped, since what is repeated by protocol comes again; a neighbour
    that goes on nevertheless loses its link. Broadcasts and direct messages that are new are not among it: who reads
    them bounds those.
    """

    links: float = _number(0.03, low=0.001)
    """Frames that come to nothing, and reading those that seldom come: searches, announcements, comparisons. As much
    again for direct messages and acks that are repeated."""
    routing: float = _number(0.09, low=0.001)
    """Packets: those to pass on, and those for us."""
    broadcast: float = _number(0.08, low=0.001)
    """What is asked for to be compared, announced or sent again."""
    kademlia: float = _number(0.04, low=0.001)
    """Requests of the DHT."""
    signaling: float = _number(0.04, low=0.001)
    """Offers, answers and candidates, by whatever way they come."""


@frozen(kw_only=True)
class MeshConfig:
    """All of it. The keyword options of `open_mesh` override the fields of the same name."""

    room: str = text_field("", MAX_ROOM)
    """Meshes in different rooms of one signaling service don't meet."""
    max_peers: int = _number(3, low=1)
    """Hard cap on open links; as the original's `createMesh`."""
    max_payload: int = _number(1 * MIB, low=1)
    """Largest payload as encoded; larger ones raise `PayloadTooLarge`."""
    join_token: str | None = text_field(None, MAX_TOKEN, secret=True)
    """Shown to signaling services that ask for one."""
    leave_timeout: float = _number(2.0, low=0)
    """For goodbyes when the mesh is left."""
    event_buffer: int = _number(64, low=1)
    """Items a subscriber may lag behind by default, before the oldest are dropped."""
    direct_inbox: int = _number(256, low=1)
    """Direct messages that may wait for the application, in each stream of them or for the first; then senders wait."""
    direct_inbox_bytes: int = _number(16 * MIB, low=1)
    """Bytes of those; one alone may be larger."""
    max_blocked: int = _number(10_000, low=1, high=1_000_000)
    """Peers that may be blocked at once: the block list refuses more, and forgets none."""
    inbox: int = _number(64, low=1)
    """Inputs that may wait for one subsystem before their senders wait."""
    work: WorkConfig = WorkConfig()
    links: LinkConfig = LinkConfig()
    signaling: SignalingConfig = SignalingConfig()
    topology: TopologyConfig = TopologyConfig()
    chord: ChordConfig = ChordConfig()
    broadcast: BroadcastConfig = BroadcastConfig()
    receipts: ReceiptsConfig = ReceiptsConfig()
    subscriptions: SubscriptionConfig = SubscriptionConfig()
    routing: RoutingConfig = RoutingConfig()
    kademlia: KademliaConfig = KademliaConfig()
    islands: IslandsConfig = IslandsConfig()

    def __attrs_post_init__(self) -> None:
        for part in attrs.fields(MeshConfig):
            if attrs.has(type(part.default)):
                instance(f"MeshConfig.{part.name}", getattr(self, part.name), type(part.default))
        if self.links.receive_window < self.max_frame:
            raise ConfigError(
                f"LinkConfig.receive_window must hold one whole frame: {self.max_frame} bytes for this max_payload"
            )
        if self.links.low_water > self.links.high_water:
            raise ConfigError("LinkConfig.low_water must not be above high_water")

    @property
    def network(self) -> bytes:
        """What each signature names, so that what was signed in one room counts for nothing in another."""
        return network_of(self.room)

    @property
    def max_frame(self) -> int:
        """Largest frame that a link carries: a payload as text in JSON in base64, plus its envelope."""
        return self.max_payload * 3 // 2 + 16 * KIB
