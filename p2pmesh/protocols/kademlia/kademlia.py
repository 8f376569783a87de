"""The DHT: who is nearest to a key, and values that the k nearest peers hold.

Kademlia (Maymounkov and Mazieres, "A Peer-to-peer Information System Based on the XOR Metric", 2002).

Every peer keeps contacts (`routing_table`), answers requests, and looks ids up by asking peers that are ever nearer
to them (`lookup`). Requests (`rpc`) and answers go by way of the routing core, to neighbours or not. Values
(`record_store`) are signed by their publishers (`records`) and kept where they belong though peers come and go
(`republish`). At rest a peer does next to nothing: it looks itself up once an hour, and the peers that it asks learn
of it by that.

Each request has a purpose and each lookup a goal, plain values that say here what is to be done with what comes of
it: see `_conclude` and `_finish`.

Inputs: LinkUp, LinkDown, Received, RoutedReceived, RouteSucceeded, RouteFailed, DhtPut, DhtGet, DhtFindNode,
CancelCall, Leave.
Effects: Notify routing (Route, CancelRoute, RouteReply), Reply.
Messages: KademliaRpc, over routes only, with the calls PING, FIND_NODE, FIND_VALUE and STORE and their replies.
Config: KademliaConfig.
State: the neighbours; the calls of the application, until they end or are cancelled; the peers being pinged, at most
one for each contact; a rate for each of `KademliaConfig.requesters` peers; and that of the parts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from attrs import asdict, define, field
from msgspec import Struct

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError, IdentityError, MeshClosed, MeshError, PeerUnreachable
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, is_peer_id
from p2pmesh.protocols.core import Effects, Notify, Reply, WallClock
from p2pmesh.protocols.inputs import (
    CancelCall,
    DhtFindNode,
    DhtGet,
    DhtPut,
    Leave,
    LinkDown,
    LinkUp,
    Received,
    RemotePeer,
    Subsystem,
)
from p2pmesh.protocols.kademlia.lookup import Query, QueryPool, WantedValue
from p2pmesh.protocols.kademlia.records import BadRecord, VerifiedRecord, key_id, sign_record, verify_record
from p2pmesh.protocols.kademlia.republish import HandOver, Republish, Republisher
from p2pmesh.protocols.kademlia.routing_table import Neighbourhood, RoutingTable
from p2pmesh.protocols.kademlia.rpc import REPLIES, Outcome, RpcClient, Slow
from p2pmesh.protocols.notices import (
    CancelRoute,
    Input,
    ReturnPath,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.util.limits import RateLimiter
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import DhtRecord, KademliaCall, KademliaRpc

REPAIRED = 3
"""Peers that gave an old value and are sent the new one, at most, by one `get`."""

Call: TypeAlias = DhtPut | DhtGet | DhtFindNode


# --- what a lookup is for ---------------------------------------------------------------------------------------------


class FindNeighbours(Struct, frozen=True):
    """Know our k nearest, and be known to them."""


class FillBucket(Struct, frozen=True):
    """Have contacts at some distance from us."""


@define(eq=False)
class PutValue:
    """A `put`: the nearest are looked for, and then asked to hold it."""

    call: int
    verified: VerifiedRecord
    holders: int = 0
    """Peers that hold it, ourselves among them if we do."""
    pending: dict[int, None] = field(factory=dict)
    """Requests to hold it, under way."""


class GetValue(Struct, frozen=True):
    """A `get`, with the value that is here."""

    call: int
    local: VerifiedRecord | None


class FindNode(Struct, frozen=True):
    """A `find_node`."""

    call: int


Goal: TypeAlias = FindNeighbours | FillBucket | Republish | PutValue | GetValue | FindNode


# --- what a request is for --------------------------------------------------------------------------------------------


class Ping(Struct, frozen=True):
    """Is this contact still there?"""

    contact: PeerId


class Step(NamedTuple):
    """A step of a lookup."""

    query: Query[Goal]
    is_entry: bool


class Store(Struct, frozen=True):
    """Have a value held by one more peer."""

    put: PutValue | None = None


Purpose: TypeAlias = Ping | Step | Store


@define
class RequestCounts:
    """Requests of other peers."""

    received: int = 0
    flooded: int = 0
    """Above a peer's rate, not answered."""
    refused: int = 0
    """Requests that are none, and values that were not taken."""
    unasked: int = 0
    """Replies that were not asked for."""


@define
class CallCounts:
    """What the application asked for, and got."""

    puts: int = 0
    hits: int = 0
    misses: int = 0
    finds: int = 0


class _Due(Enum):
    """Our own upkeep."""

    LOOK_OURSELVES_UP = "the neighbourhood may have changed"
    REFRESH_BUCKETS = "nothing was looked up in some for long"


class KademliaCore:
    """The DHT, one peer of it."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = me = identity.peer_id
        self._config = settings = config.kademlia
        self._network = config.network
        self._rng = rng
        self._wall = wall
        self._effects: Effects = []
        self._links: dict[PeerId, None] = {}
        self._left = False
        self._limiter = RateLimiter(settings.requesters, settings.requests_per_second, settings.request_burst)
        self._table = RoutingTable(me, settings)
        self._neighbourhood = Neighbourhood(me, settings, rng, self._table)
        self._rpc: RpcClient[Purpose] = RpcClient(settings)
        self._queries: QueryPool[Goal] = QueryPool(me, settings, self._table, wall, config.network)
        self._republisher = Republisher(me, settings, rng, wall, self._table)
        self._timers: Timers[_Due | int] = Timers()  # those of numbers: calls that wait for a first link
        self._calls: dict[int, Call | Query[Goal] | PutValue] = {}  # by how far they are
        self._pinged: set[PeerId] = set()
        self._last_timestamp = 0
        self._requests = RequestCounts()
        self._call_counts = CallCounts()

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:
            case RoutedReceived(peer, message, way):
                self._on_routed_received(peer, message, way, now)
            case RouteSucceeded():
                self._conclude(self._rpc.succeeded(event), now)
            case RouteFailed(call):
                self._conclude(self._rpc.failed(call), now)
            case LinkUp(peer):
                self._on_link_up(peer, now)
            case LinkDown():
                self._on_link_down(event, now)
            case Received():
                self._requests.unasked += 1  # from the original's peers, or not asked for: ours come by routes
            case DhtPut() | DhtGet() | DhtFindNode():
                self._on_call(event, now)
            case CancelCall(call):
                self._on_cancel_call(call, now)
            case Leave():
                self._on_leave()
            case _:
                pass  # for other cores
        return self._take()

    def next_deadline(self) -> float:
        return min(
            self._timers.next_deadline(),
            self._rpc.next_deadline(),
            self._queries.next_deadline(),
            self._republisher.next_deadline(),
        )

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for due in self._timers.pop_due(now):
            match due:
                case _Due.LOOK_OURSELVES_UP:
                    self._look_ourselves_up(now)
                case _Due.REFRESH_BUCKETS:
                    self._refresh_buckets(now)
                case int():
                    self._begin_early(due, now)
        for event in self._rpc.expire(now):
            match event:
                case Slow(Step(query), peer):
                    query.lookup.slow(peer)
                    self._advance(query, now)
                case Slow():
                    pass  # nothing waits for it
                case Outcome():
                    self._conclude(event, now)
        for query in self._queries.expire(now):
            self._finish(query, now)
        for upkeep in self._republisher.expire(now):
            match upkeep:
                case HandOver(verified, peer):
                    self._store(verified, [peer], now)
                case Republish(verified):
                    wanted = WantedValue(verified.publisher, newer_than=verified.record.timestamp)
                    self._look_up(verified.record.key, upkeep, now, wanted)
        return self._take()

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "enabled": self._config.enabled,
            "routing_table": self._table.snapshot(),
            "lookups": self._queries.snapshot(),
            "rpc": self._rpc.snapshot(),
            "requests": {"requesters": len(self._limiter), **asdict(self._requests)},
            "store": self._republisher.store.snapshot(),
            "republish": self._republisher.snapshot(),
            "calls": {"open": len(self._calls), **asdict(self._call_counts)},
        }

    def _take(self) -> Effects:
        effects, self._effects = self._effects, []
        return effects

    # --- requests of others -------------------------------------------------------------------------------------------

    def _on_routed_received(self, peer: RemotePeer, message: Message, way: ReturnPath, now: float) -> None:
        if not self._is_on or not isinstance(message, KademliaRpc):
            return
        self._requests.received += 1
        if not self._limiter.take(peer.peer_id, now):
            self._requests.flooded += 1
            return
        request = message.message
        if request.type in REPLIES.values():
            self._requests.unasked += 1
            return
        is_proper = request.id == peer.peer_id and peer.version > 0 and peer.peer_id != self._me
        reply = self._answer(request, now) if is_proper else None
        if reply is None:
            self._requests.refused += 1
            return
        self._effects.append(Notify(Subsystem.ROUTING, RouteReply(way, KademliaRpc(message=reply))))
        self._met(peer.peer_id, now)

    def _answer(self, request: KademliaCall, now: float) -> KademliaCall | None:
        """The answer; None for what is no request."""
        match request:
            case KademliaCall(type="PING"):
                return KademliaCall(type="PONG", id=self._me)
            case KademliaCall(type="FIND_NODE", target_id=str() as target):
                return KademliaCall(type="FIND_NODE_REPLY", id=self._me, peers=self._nearest(target, request))
            case KademliaCall(type="FIND_VALUE", key=str() as key) if is_peer_id(key):
                return self._on_find_value(PeerId(key), request, now)
            case KademliaCall(type="STORE", record=DhtRecord() as record):
                return self._on_store(record, now)
            case _:
                return None

    def _nearest(self, target: PeerId, request: KademliaCall) -> tuple[PeerId, ...]:
        return tuple(self._table.closest(target, self._config.k, without=request.id))

    def _on_find_value(self, key: PeerId, request: KademliaCall, now: float) -> KademliaCall:
        peers = self._nearest(key, request)
        stored = self._republisher.store.newest(key, request.publisher)
        record, is_same = None, False
        if stored is not None:
            record = stored.verified.record
            if request.newer_than is not None and record.timestamp <= request.newer_than:
                if record.timestamp == request.newer_than:
                    self._republisher.republished_by(request.id, stored, now)
                    is_same = True
                record = None
        return KademliaCall(type="FIND_VALUE_REPLY", id=self._me, peers=peers, record=record, stored=is_same)

    def _on_store(self, record: DhtRecord, now: float) -> KademliaCall:
        try:
            is_held = self._republisher.keep(verify_record(record, self._wall(now), self._config, self._network), now)
        except BadRecord:
            is_held = False
        self._requests.refused += not is_held
        return KademliaCall(type="STORE_REPLY", id=self._me, stored=is_held)

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, peer: RemotePeer, now: float) -> None:
        if not peer.is_member or not self._is_on:
            return  # the original's peers answer nothing, and routes lead to verified peers only
        was_alone = not self._links
        self._links[peer.peer_id] = None
        self._met(peer.peer_id, now)
        if was_alone:
            self._timers.set(_Due.LOOK_OURSELVES_UP, self._neighbourhood.linked(now))
            self._timers.set(_Due.REFRESH_BUCKETS, now + self._config.refresh * self._rng.uniform(0.75, 1.25))
            for call in [call for call, state in self._calls.items() if isinstance(state, Call)]:
                self._begin_early(call, now)

    def _on_link_down(self, event: LinkDown, now: float) -> None:
        self._links.pop(event.peer, None)
        if event.timed_out is not None and self._table.remove(event.peer, now):
            self._lost(event.peer, now)  # it fell silent: it has not just lost its link to us

    # --- calls of the application -------------------------------------------------------------------------------------

    def _on_call(self, event: Call, now: float) -> None:
        """Begin a call. One that comes before there is any link waits for it, for as long as for an answer."""
        if not self._config.enabled:
            text = "this mesh takes no part in the DHT: open it with KademliaConfig(enabled=True)"
            self._reply(event.call, error=ConfigError(text))
        elif not self._identity.verified:
            text = "an unverified identity takes no part in the DHT: nobody could check what it says"
            self._reply(event.call, error=IdentityError(text))
        elif self._left:
            self._reply(event.call, error=MeshClosed("the mesh was left"))
        elif self._links:
            self._begin(event, now)
        else:
            self._calls[event.call] = event
            self._timers.set(event.call, now + self._config.rpc_timeout)

    def _on_cancel_call(self, call: int, now: float) -> None:
        self._timers.cancel(call)
        match self._calls.pop(call, None):
            case Query() as query:
                self._cancel(self._queries.cancel(query))
                self._start_queries(now)
            case PutValue(pending=pending):
                self._cancel(pending)
            case _:
                pass  # it had not begun, or is over

    def _on_leave(self) -> None:
        self._left = True
        for call in list(self._calls):
            self._timers.cancel(call)
            self._reply(call, error=MeshClosed("the mesh was left before this call was done"))
        self._queries.cancel_all()
        self._cancel(self._rpc.cancel_all())
        self._republisher.stop()
        for due in _Due:
            self._timers.cancel(due)

    def _begin_early(self, call: int, now: float) -> None:
        """Begin a call that has waited for a link long enough, with what there is."""
        event = self._calls.pop(call)
        self._timers.cancel(call)
        if isinstance(event, Call):
            self._begin(event, now)

    def _begin(self, event: Call, now: float) -> None:
        try:
            match event:
                case DhtPut():
                    self._put(event, now)
                case DhtGet():
                    self._get(event, now)
                case DhtFindNode(call, target):
                    self._call_counts.finds += 1
                    self._look_up(target, FindNode(call), now)
        except MeshError as error:
            self._reply(event.call, error=error)

    def _put(self, event: DhtPut, now: float) -> None:
        ttl = self._config.ttl if event.ttl is None else event.ttl
        if not 1 <= ttl <= self._config.max_ttl:
            raise ConfigError(f"a value's ttl is 1 to {self._config.max_ttl:g} seconds, not {ttl!r}")
        key = key_id(event.key)
        # One that is put after another is newer, also within the same millisecond or when the clock was set back.
        self._last_timestamp = max(self._last_timestamp + 1, int(self._wall(now) * 1000))
        verified = sign_record(self._identity, key, event.value, self._last_timestamp, ttl, self._config, self._network)
        self._call_counts.puts += 1
        self._look_up(key, PutValue(event.call, verified), now)

    def _place(self, put: PutValue, query: Query[Goal], now: float) -> None:
        """Have a value of ours held by the peers nearest to its key, which are known now."""
        nearest = query.lookup.closest_and_us
        put.holders += self._me in nearest and self._republisher.keep(put.verified, now)
        self._calls[put.call] = put
        self._store(put.verified, [peer for peer in nearest if peer != self._me], now, put)
        if not put.pending:
            self._end_put(put, now)

    def _end_put(self, put: PutValue, now: float) -> None:
        """All have answered that were asked to hold a value, or failed to."""
        if not put.holders:
            text = "none of the peers nearest to this key took the value: try again"
            self._reply(put.call, error=PeerUnreachable(text))
            return
        self._republisher.publish(put.verified, now)
        self._reply(put.call, put.holders)

    def _get(self, event: DhtGet, now: float) -> None:
        key = key_id(event.key)
        local = self._republisher.local(key, event.publisher, now)
        if local is not None and (local.publisher == event.publisher == self._me or self._config.quorum == 1):
            self._reply_found(event.call, local)
            return
        wanted = WantedValue(event.publisher, quorum=self._config.quorum - (local is not None))
        self._look_up(key, GetValue(event.call, local), now, wanted)

    def _got(self, get: GetValue, query: Query[Goal], now: float) -> None:
        """Reply with the newest value, and give it to a near peer that lacks it and to those that have an older one."""
        known = [verified for verified in (get.local, query.newest) if verified is not None]
        if not known:
            self._call_counts.misses += 1
            self._reply(get.call)
            return
        best = max(known, key=lambda verified: verified.record.timestamp)
        lacking = [peer for peer in query.lookup.closest if peer not in query.found][:1]
        outdated = [
            peer
            for peer, verified in query.found.items()
            if verified.publisher == best.publisher and verified.record.timestamp < best.record.timestamp
        ]
        self._store(best, [*lacking, *outdated[:REPAIRED]], now)
        self._reply_found(get.call, best)

    def _reply_found(self, call: int, verified: VerifiedRecord) -> None:
        self._call_counts.hits += 1
        self._reply(call, verified.to_value())

    def _reply(self, call: int, value: object = None, error: MeshError | None = None) -> None:
        self._calls.pop(call, None)
        self._effects.append(Reply(call, value, error))

    # --- lookups ------------------------------------------------------------------------------------------------------

    def _look_up(self, target: PeerId, goal: Goal, now: float, wanted: WantedValue | None = None) -> None:
        """Start a lookup, now or once others are done."""
        if isinstance(goal, PutValue | GetValue | FindNode):
            self._calls[goal.call] = self._queries.add(target, goal, wanted)
        else:
            self._queries.add(target, goal, wanted, is_background=True)
        self._start_queries(now)

    def _start_queries(self, now: float) -> None:
        while (query := self._queries.start_next(now)) is not None:
            self._step(query, query.lookup.target, now, is_entry=True)
            self._advance(query, now)

    def _advance(self, query: Query[Goal], now: float) -> None:
        """Send the requests that a lookup wants to be sent, and end it once it is done."""
        if query not in self._queries:
            return
        for peer in query.lookup.ask():
            self._step(query, peer, now)
        if query.is_done:
            self._finish(query, now)

    def _step(self, query: Query[Goal], to: PeerId, now: float, *, is_entry: bool = False) -> None:
        number = self._request(Step(query, is_entry), to, query.request(self._me), now)
        self._queries.sent(query, number, is_entry=is_entry)

    def _finish(self, query: Query[Goal], now: float) -> None:
        """End a lookup, and do what it was for with what it has found."""
        self._cancel(self._queries.end(query))
        match query.goal:
            case FindNeighbours():
                self._found_neighbours(now)
            case FillBucket():
                pass
            case Republish(verified):
                self._store(verified, self._republisher.lacking(verified, query, now), now)
            case PutValue() as put:
                self._place(put, query, now)
            case GetValue() as get:
                self._got(get, query, now)
            case FindNode(call):
                self._reply(call, tuple(query.lookup.closest_and_us))
        self._start_queries(now)

    # --- requests of ours ---------------------------------------------------------------------------------------------

    def _request(self, purpose: Purpose, to: PeerId, call: KademliaCall, now: float) -> int:
        """Send a request; its number."""
        is_step = isinstance(purpose, Step)
        nearest = isinstance(purpose, Step) and purpose.is_entry
        route = self._rpc.start(purpose, to, call, now, nearest=nearest, hurried=is_step)
        self._effects.append(Notify(Subsystem.ROUTING, route))
        return route.call

    def _store(
        self, verified: VerifiedRecord, peers: Iterable[PeerId], now: float, put: PutValue | None = None
    ) -> None:
        """Ask these peers to hold a value."""
        for peer in peers:
            call = KademliaCall(type="STORE", id=self._me, record=verified.record)
            number = self._request(Store(put), peer, call, now)
            if put is not None:
                put.pending[number] = None

    def _cancel(self, numbers: Iterable[int]) -> None:
        """Cancel requests whose outcome does not matter any more."""
        for number in numbers:
            if self._rpc.cancel(number):
                self._effects.append(Notify(Subsystem.ROUTING, CancelRoute(Subsystem.KADEMLIA, number)))

    def _conclude(self, outcome: Outcome[Purpose] | None, now: float) -> None:
        """Take the outcome of a request, and do what it was for."""
        if outcome is None:
            return  # it was cancelled
        purpose, peer, reply = outcome.purpose, outcome.peer, outcome.reply
        if isinstance(purpose, Ping):
            self._pinged.discard(purpose.contact)
        if peer is not None and not outcome.is_lost:
            self._judge(peer, now, has_answered=reply is not None)
        match purpose:
            case Step(query, is_entry):
                query.requests.pop(outcome.number, None)
                query.is_entering = query.is_entering and not is_entry
                if peer is not None:
                    self._queries.take(query, peer, reply, now)
                self._advance(query, now)
            case Store(PutValue() as put):
                put.holders += reply is not None and bool(reply.stored)
                del put.pending[outcome.number]
                if not put.pending:
                    self._end_put(put, now)
            case _:
                pass  # the contact was judged, and that is all

    # --- contacts -----------------------------------------------------------------------------------------------------

    @property
    def _is_on(self) -> bool:
        return self._config.enabled and not self._left

    def _judge(self, peer: PeerId, now: float, *, has_answered: bool) -> None:
        """A request to this peer has ended. While we have no link, it is not to blame for not answering."""
        if has_answered:
            self._met(peer, now)
        elif self._links and self._table.failed(peer, now):
            self._lost(peer, now)

    def _met(self, peer: PeerId, now: float) -> None:
        """This peer has spoken to us."""
        if peer == self._me:
            return
        if self._table.heard(peer, now):
            self._republisher.newcomer(peer, now)
            self._look_sooner(peer, now)
        doubtful = self._table.in_doubt(peer, now)
        if doubtful is not None and doubtful not in self._pinged:
            self._pinged.add(doubtful)
            self._request(Ping(doubtful), doubtful, KademliaCall(type="PING", id=self._me), now)

    def _lost(self, peer: PeerId, now: float) -> None:
        """This contact is gone."""
        self._republisher.lost(peer, now)
        self._look_sooner(peer, now)

    # --- our own upkeep -----------------------------------------------------------------------------------------------

    def _look_ourselves_up(self, now: float) -> None:
        """Ask for the peers nearest to us, which learn of us by that."""
        if self._links:
            self._look_up(self._me, FindNeighbours(), now)

    def _found_neighbours(self, now: float) -> None:
        """Fill one bucket more, and look again later.

        The paper has a newcomer look into all buckets at once. One at a time does, as we have neighbours on the ring.
        """
        if self._neighbourhood.is_unknown:
            self._republisher.joined(now)
        else:
            index = self._table.thin()
            if index is not None:
                self._look_into(index, now)
        self._timers.set(_Due.LOOK_OURSELVES_UP, self._neighbourhood.looked(now))

    def _look_sooner(self, peer: PeerId, now: float) -> None:
        soon = self._neighbourhood.changed(peer, now)
        if soon is not None:
            self._timers.set(_Due.LOOK_OURSELVES_UP, soon)

    def _look_into(self, index: int, now: float) -> None:
        self._look_up(self._table.random_id(index, self._rng), FillBucket(), now)

    def _refresh_buckets(self, now: float) -> None:
        for index in self._table.stale(now - self._config.refresh):
            self._look_into(index, now)
        self._timers.set(_Due.REFRESH_BUCKETS, now + self._config.refresh * self._rng.uniform(0.75, 1.25))
