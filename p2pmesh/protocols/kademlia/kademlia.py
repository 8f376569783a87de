"""The DHT: who is nearest to a key, and values that the k nearest peers hold.

Kademlia (Maymounkov and Mazieres, "A Peer-to-peer Information System Based on the XOR Metric", 2002).

Every peer keeps contacts (`routing_table`), answers requests, and looks ids up by asking peers that are ever nearer
to them (`lookup`). Requests (`rpc`) and answers go by way of the routing core, to neighbours or not. Values
(`record_store`) are signed by their publishers (`records`) and kept where they belong though peers come and go
(`republish`). Nothing is asked for its own sake: neither to find a newcomer's place nor to keep contacts fresh. The
overlay knows who is around us on the ring, and a lookup that comes near its target is told by the peers there. So a
DHT that nobody uses costs nothing.

Each request has a purpose and each lookup a goal, plain values that say here what is to be done with what comes of
it: see `_conclude` and `_finish`.

Inputs: LinkUp, LinkDown, PeersFound (from the overlay: the peers around us on the ring), RoutedReceived,
RouteSucceeded, RouteFailed, Blocked, DhtPut, DhtGet, DhtGetAll, DhtFindNode, CancelCall, Leave.
Effects: Notify routing (Route, CancelRoute, RouteReply), Reply.
Messages: FindNode, FindValue and their answer NodesFound, StoreValue and its answer ValueStored, over routes only.
Config: KademliaConfig.
State: the calls of the application, until they end or are cancelled; a rate for each of `KademliaConfig.requesters`
peers, and a budget for each neighbour that brings them; and that of the parts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from attrs import asdict, define, field
from msgspec import Struct

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError, IdentityError, KeyFull, MeshClosed, MeshError, PeerRefused, PeerUnreachable
from p2pmesh.events import PayloadLike
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effects, Notify, Reply, WallClock
from p2pmesh.protocols.inputs import (
    Blocked,
    CancelCall,
    DhtFindNode,
    DhtGet,
    DhtGetAll,
    DhtPut,
    Leave,
    LinkDown,
    LinkUp,
    PeersFound,
    RemotePeer,
    Subsystem,
)
from p2pmesh.protocols.kademlia.lookup import Query, QueryPool, WantedValue
from p2pmesh.protocols.kademlia.records import (
    DELETED,
    BadRecord,
    DhtValue,
    VerifiedRecord,
    check_record,
    check_signature,
    key_id,
    owned_id,
    sign_record,
)
from p2pmesh.protocols.kademlia.republish import HandOver, Refusal, Republish, Republisher
from p2pmesh.protocols.kademlia.routing_table import RoutingTable
from p2pmesh.protocols.kademlia.rpc import Answer, Outcome, Request, RpcClient
from p2pmesh.protocols.notices import (
    CancelRoute,
    Input,
    ReturnPath,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.limits import BYTES, VERIFY, Payment, RateLimiter, WorkBudget
from p2pmesh.protocols.util.timers import Stamps, Timers
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import DhtRecord, FindNode, FindValue, NodesFound, StoreValue, ValueStored
from p2pmesh.wire.payloads import Body

SEARCH = 100.0
"""Units that it costs to find the peers nearest to an id, and whether we are one: see `WorkBudget`."""
MOST_NAMED = 64
"""Publishers that one answer names."""
REPAIRED = 3
"""Peers that gave an old value and are sent the new one, at most, by one `get`."""

Call: TypeAlias = DhtPut | DhtGet | DhtGetAll | DhtFindNode


# --- what a lookup is for ---------------------------------------------------------------------------------------------


@define(eq=False)
class PutValue:
    """A `put`: the nearest are looked for, and then asked to hold it."""

    call: int
    verified: VerifiedRecord
    holders: int = 0
    """Peers that hold it, ourselves among them if we do."""
    refusals: Counter[Refusal] = field(factory=Counter)
    """Why peers would not hold it, now or later, and how many."""
    is_ours_too: bool = False
    """Whether we are one of the nearest."""
    pending: dict[int, None] = field(factory=dict)
    """Requests to hold it, under way."""


@define(eq=False)
class GetAll:
    """A `get_all`: whoever has a value is looked for, and then the value of each."""

    call: int
    values: dict[PeerId, DhtValue] = field(factory=dict)
    left: int = 0
    """Publishers whose values are yet to come."""
    queries: list[Query[Goal]] = field(factory=list)


class GetValue(Struct, frozen=True):
    """A `get`, with what is held here and what we published ourselves."""

    call: int
    publisher: PeerId | None
    held: VerifiedRecord | None
    own: VerifiedRecord | None
    part_of: GetAll | None = None


class FindPeers(Struct, frozen=True):
    """A `find_node`."""

    call: int


Goal: TypeAlias = Republish | PutValue | GetValue | GetAll | FindPeers


# --- what a request is for --------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A step of a lookup."""

    query: Query[Goal]
    is_entry: bool


Purpose: TypeAlias = Step | PutValue | None
"""A step of a lookup; to have the value of a `put` held; or to have another value held, for which nobody waits."""


@define
class RequestCounts:
    """Requests of other peers."""

    received: int = 0
    flooded: int = 0
    """Above a peer's rate, not answered."""
    unpaid: int = 0
    """Above the budget of the neighbour that brought them, not answered."""
    refused: int = 0
    """Requests of peers that do not take part, and values that were not taken."""
    unasked: int = 0
    """What is no request."""


@define
class CallCounts:
    """What the application asked for, and got."""

    puts: int = 0
    hits: int = 0
    misses: int = 0
    finds: int = 0


class KademliaCore:
    """The DHT, one peer of it."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        health: LocalHealth | None = None,
        blocked: Container[PeerId] = frozenset(),
    ) -> None:
        self._identity = identity
        self._me = me = identity.peer_id
        self._config = settings = config.kademlia
        self._network = config.network
        self._rng = rng
        self._wall = wall
        self._blocked = blocked
        self._effects: Effects = []
        self._left = False
        self._limiter = RateLimiter(settings.requesters, settings.requests_per_second, settings.request_burst)
        self._budget = WorkBudget(2 * config.max_peers, config.work.kademlia)
        self._table = RoutingTable(me, settings, blocked)
        self._rpc: RpcClient[Purpose] = RpcClient(settings, health)
        self._queries: QueryPool[Goal] = QueryPool(me, settings, self._table, wall, config.network, blocked)
        self._republisher = Republisher(me, settings, rng, wall, self._table)
        self._timers: Timers[int] = Timers()  # calls that wait for a first link
        self._calls: dict[int, Call | Query[Goal] | PutValue | GetAll] = {}  # by how far they are
        self._stamps = Stamps(wall)
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
            case RouteFailed():
                self._conclude(self._rpc.failed(event), now)
            case LinkUp(peer):
                self._on_link_up(peer, now)
            case LinkDown():
                self._on_link_down(event, now)
            case PeersFound(peers) if self._is_on:
                self._republisher.around(self._table.around(peers), now)
            case DhtPut() | DhtGet() | DhtGetAll() | DhtFindNode():
                self._on_call(event, now)
            case Blocked(peer):
                self._republisher.disown(peer)
            case CancelCall(call):
                self._on_cancel_call(call, now)
            case Leave():
                self._on_leave()
            case _:
                pass  # for other cores; what comes over links is none of ours
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
        for call in self._timers.pop_due(now):
            self._begin_early(call, now)
        for outcome in self._rpc.expire(now):
            self._conclude(outcome, now)
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
            "budget": self._budget.snapshot(),
            "store": self._republisher.store.snapshot(),
            "republish": self._republisher.snapshot(),
            "calls": {"open": len(self._calls), **asdict(self._call_counts)},
        }

    @property
    def _is_on(self) -> bool:
        return self._config.enabled and not self._left

    def _take(self) -> Effects:
        effects, self._effects = self._effects, []
        return effects

    # --- requests of others -------------------------------------------------------------------------------------------

    def _on_routed_received(self, peer: RemotePeer, message: Message, way: ReturnPath, now: float) -> None:
        if not self._is_on:
            return
        self._requests.received += 1
        if not self._limiter.take(peer.peer_id, now):
            self._requests.flooded += 1
            return
        if peer.version == 0 or peer.peer_id == self._me:
            self._requests.refused += 1
            return
        if not self._is_paid(way, SEARCH + VERIFY * isinstance(message, StoreValue), now):
            return
        answer: Answer
        match message:
            case FindNode(target=target):
                answer = NodesFound(peers=self._nearest(target, peer.peer_id, now))
            case FindValue():
                answer = self._on_find_value(message, peer.peer_id, now)
            case StoreValue(record=record):
                answer = self._on_store_value(record, peer.peer_id, now)
            case _:
                self._requests.unasked += 1
                return
        if isinstance(answer, NodesFound) and answer.record is not None:
            size = Body(answer.record.payload, answer.record.encoding, answer.record.blob).size
            if not self._is_paid(way, size / BYTES, now):
                return
        self._effects.append(Notify(Subsystem.ROUTING, RouteReply(way, answer)))
        self._table.asked(peer.peer_id, now)

    def _is_paid(self, way: ReturnPath, units: float, now: float) -> bool:
        """Whether the neighbour that brought a request may cause so much work: ids to ask under are free."""
        is_paid = self._budget.spend(way.bringer, units, now) is Payment.NOW
        self._requests.unpaid += not is_paid
        return is_paid

    def _nearest(self, target: PeerId, asker: PeerId, now: float) -> tuple[PeerId, ...]:
        return tuple(self._table.closest(target, self._config.k, now, without=asker))

    def _on_find_value(self, asked: FindValue, asker: PeerId, now: float) -> NodesFound:
        peers = self._nearest(asked.key, asker, now)
        if asked.all_publishers:
            return NodesFound(
                peers=peers, publishers=tuple(self._republisher.store.publishers(asked.key, now)[:MOST_NAMED])
            )
        stored = self._republisher.held(asked.key, asked.publisher, now)
        if stored is None:
            return NodesFound(peers=peers)
        record = stored.verified.record
        if asked.newer_than is None or record.timestamp > asked.newer_than:
            return NodesFound(peers=peers, record=record)
        if record.timestamp < asked.newer_than:
            return NodesFound(peers=peers, older_until=int(stored.verified.forgotten * 1000))
        self._republisher.republished_by(asker, stored, now)
        return NodesFound(peers=peers, same=True)

    def _on_store_value(self, record: DhtRecord, giver: PeerId, now: float) -> ValueStored:
        try:
            checked = check_record(record, self._wall(now), self._config, self._blocked)
            refusal = self._republisher.keep(checked, now, giver, lambda: check_signature(record, self._network))
        except BadRecord as error:
            refusal = Refusal(str(error))
        if refusal is None:
            return ValueStored(held=True)
        self._requests.refused += 1
        return ValueStored(reason=refusal.reason, full=refusal.full)

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, peer: RemotePeer, now: float) -> None:
        if not peer.is_member or not self._is_on:
            return  # the original's peers answer nothing, and routes lead to verified peers only
        was_alone = self._table.is_alone
        self._table.linked(peer.peer_id)
        if was_alone:
            self._republisher.joined(now)
            for call in [call for call, state in self._calls.items() if isinstance(state, Call)]:
                self._begin_early(call, now)

    def _on_link_down(self, event: LinkDown, now: float) -> None:
        self._table.unlinked(event.peer, now)
        if event.timed_out is not None:
            self._table.gone(event.peer, now)  # it fell silent: it has not just lost its link to us

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
        elif self._table.is_alone:
            self._calls[event.call] = event
            self._timers.set(event.call, now + self._config.rpc_timeout)
        else:
            self._begin(event, now)

    def _on_cancel_call(self, call: int, now: float) -> None:
        self._timers.cancel(call)
        match self._calls.pop(call, None):
            case Query() as query:
                self._cancel(self._queries.cancel(query))
                self._start_queries(now)
            case PutValue(pending=pending):
                self._cancel(pending)
            case GetAll(queries=queries):
                for query in queries:
                    self._cancel(self._queries.cancel(query))
                self._start_queries(now)
            case _:
                pass  # it had not begun, or is over

    def _on_leave(self) -> None:
        self._left = True
        for call in list(self._calls):
            self._timers.cancel(call)
            self._reply(call, error=MeshClosed("the mesh was left before this call was done"))
        self._queries.cancel_all()
        self._rpc = RpcClient(self._config)
        self._republisher.stop()

    def _begin_early(self, call: int, now: float) -> None:
        """Begin a call that has waited for a link long enough, with what there is."""
        event = self._calls.pop(call)
        self._timers.cancel(call)
        if isinstance(event, Call):
            self._begin(event, now)

    def _begin(self, event: Call, now: float) -> None:
        match event:
            case DhtPut():
                self._put(event, now)
            case DhtGet():
                name = key_id(event.key)
                key = name if not event.owned else owned_id(event.publisher or self._me, name)
                self._get(event.call, key, event.publisher, now)
            case DhtGetAll(call, key=name):
                self._look_up(key_id(name), GetAll(call), now, WantedValue(all_publishers=True))
            case DhtFindNode(call, target):
                self._call_counts.finds += 1
                self._look_up(target, FindPeers(call), now)

    def _put(self, event: DhtPut, now: float) -> None:
        name = key_id(event.key)
        key = owned_id(self._me, name) if event.owned else name
        if event.value is DELETED:
            ttl = self._config.max_ttl  # an earlier run of ours may have put one that lives so long
        else:
            ttl = self._config.ttl if event.ttl is None else event.ttl
            self._call_counts.puts += 1
        before = self._republisher.published(key)
        until = 0.0 if before is None else before.forgotten
        verified = self._signed(key, event.value, ttl, until, now, name if event.owned else None)
        # On the way it is seen whether an earlier run of ours has signed a later one, before the clock was set back.
        wanted = WantedValue(self._me, newer_than=verified.record.timestamp)
        self._look_up(key, PutValue(event.call, verified), now, wanted)

    def _signed(
        self,
        key: PeerId,
        value: PayloadLike | Body,
        ttl: float,
        until: float,
        now: float,
        name: PeerId | None,
    ) -> VerifiedRecord:
        """A record of ours which replaces one that could be brought back until that wall time."""
        timestamp = self._stamps.next(now)
        left = min(until - timestamp / 1000, self._config.max_ttl)
        kept = left if left > ttl else 0.0
        settings, network = self._config, self._network
        return sign_record(self._identity, key, value, timestamp, ttl, settings, network, name=name, kept=kept)

    def _place(self, put: PutValue, query: Query[Goal], now: float) -> None:
        """Have a value of ours held by the peers nearest to its key, which are known now."""
        nearest = query.lookup.closest_and_us
        newer = query.newest
        is_late = newer is not None and self._stamps.exceed(newer.record.timestamp, now)
        until = max(query.older_until, put.verified.forgotten, newer.forgotten if newer is not None else 0.0)
        if is_late or until > put.verified.forgotten:
            record = put.verified.record
            body = Body(record.payload, record.encoding, record.blob)
            put.verified = self._signed(record.key, body, record.ttl / 1000, until, now, record.name)
        put.is_ours_too = self._me in nearest
        self._calls[put.call] = put
        self._store(put.verified, [peer for peer in nearest if peer != self._me], now, put)
        if not put.pending:
            self._end_put(put, now)

    def _end_put(self, put: PutValue, now: float) -> None:
        """All have answered that were asked to hold a value, or failed to. We hold it unless all others refused it."""
        if put.is_ours_too and (put.holders or not put.refusals):
            refusal = self._republisher.keep(put.verified, now, self._me)
            put.holders += refusal is None
            if refusal is not None and refusal.reason:
                put.refusals[refusal] += 1
        if put.holders:
            self._republisher.publish(put.verified, now)
            self._reply(put.call, put.holders)
            return
        self._stamps.forget()
        text = "none of the peers nearest to this key took the value: "
        if not put.refusals:
            self._reply(put.call, error=PeerUnreachable(text + "try again"))
            return
        [(refusal, _)] = put.refusals.most_common(1)
        if refusal.full:
            text += f"{refusal.reason}; nobody else can fill one of your own (owned=True)"
            self._reply(put.call, error=KeyFull(text))
        else:
            self._reply(put.call, error=PeerRefused(text + refusal.reason))

    def _get(self, call: int, key: PeerId, publisher: PeerId | None, now: float, part_of: GetAll | None = None) -> None:
        stored = self._republisher.held(key, publisher, now)
        held = None if stored is None else stored.verified
        own = self._republisher.published(key) if publisher in {None, self._me} else None
        get, wall, quorum = GetValue(call, publisher, held, own, part_of), self._wall(now), self._config.quorum
        if own is not None and publisher is not None and own.forgotten > wall:
            self._found(get, own if own.is_live(wall) else None)
        elif held is not None and held.is_live(wall) and quorum == 1:
            self._found(get, held)
        else:
            wanted = WantedValue(publisher, quorum=quorum, held=held)
            self._look_up(key, get, now, wanted)

    def _got(self, get: GetValue, query: Query[Goal], now: float) -> None:
        """Reply with a value, give it to a near peer that lacks it, and the newest ones to those that gave older."""
        wall = self._wall(now)
        newest = {verified.publisher: verified for verified in query.ranked(get.held, get.own)}
        best = next((verified for verified in newest.values() if verified.is_live(wall)), None)
        if best is not None:
            self._store(best, [peer for peer in query.lookup.closest if peer not in query.found][:1], now)
        repaired = 0
        for peer, verified in query.found.items():
            newer = newest[verified.publisher]
            if newer.record.timestamp > verified.record.timestamp and newer.forgotten > wall and repaired < REPAIRED:
                repaired += 1
                self._store(newer, [peer], now)
        self._found(get, best)

    def _found(self, get: GetValue, verified: VerifiedRecord | None) -> None:
        """What a `get` has found, or that there is nothing."""
        value = None if verified is None else verified.to_value("publisher" if get.publisher else "first")
        if get.part_of is None:
            self._reply_found(get.call, value)
            return
        if value is not None:
            get.part_of.values[value.publisher] = value
        get.part_of.left -= 1
        if not get.part_of.left:
            self._reply_found(get.call, get.part_of.values)

    def _get_each(self, whole: GetAll, query: Query[Goal], now: float) -> None:
        """Look for the value of each publisher under a key; those of the most whom most peers name: liars name any."""
        key, named = query.lookup.target, query.named
        named.update(self._republisher.store.publishers(key, now))
        if self._republisher.published(key) is not None:
            named[self._me] += self._config.k
        wanted = [one for one in named if one not in self._blocked]
        publishers = sorted(wanted, key=lambda one: (-named[one], one))[: self._config.key_values]
        if not publishers:
            self._reply_found(whole.call, whole.values)
            return
        self._calls[whole.call] = whole
        whole.left = len(publishers)
        for publisher in publishers:
            self._get(whole.call, key, publisher, now, whole)

    def _reply_found(self, call: int, found: DhtValue | dict[PeerId, DhtValue] | None) -> None:
        self._call_counts.hits += bool(found)
        self._call_counts.misses += not found
        self._reply(call, found)

    def _reply_refused(self, call: int, query: Query[Goal]) -> None:
        self._reply(call, error=PeerRefused(f"nobody who was asked answers: {query.refusal}"))

    def _reply(self, call: int, value: object = None, error: MeshError | None = None) -> None:
        self._calls.pop(call, None)
        self._effects.append(Reply(call, value, error))

    # --- lookups ------------------------------------------------------------------------------------------------------

    def _look_up(self, target: PeerId, goal: Goal, now: float, wanted: WantedValue | None = None) -> None:
        """Start a lookup, now or once others are done."""
        query = self._queries.add(target, goal, wanted, is_background=isinstance(goal, Republish))
        if isinstance(goal, GetValue) and goal.part_of is not None:
            goal.part_of.queries.append(query)
        elif not isinstance(goal, Republish):
            self._calls[goal.call] = query
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
        number = self._request(Step(query, is_entry), to, query.request, now)
        self._queries.sent(query, number, is_entry=is_entry)

    def _finish(self, query: Query[Goal], now: float) -> None:
        """End a lookup, and do what it was for with what it has found."""
        self._cancel(self._queries.end(query))
        match query.goal:
            case PutValue(call=call) | GetValue(call, held=None, own=None, part_of=None) if query.is_refused:
                self._reply_refused(call, query)
            case GetAll(call=call) | FindPeers(call=call) if query.is_refused:
                self._reply_refused(call, query)
            case Republish(verified):
                self._store(verified, self._republisher.lacking(verified, query, now), now)
            case PutValue() as put:
                self._place(put, query, now)
            case GetValue() as get:
                self._got(get, query, now)
            case GetAll() as whole:
                self._get_each(whole, query, now)
            case FindPeers(call):
                self._reply(call, tuple(query.lookup.closest_and_us))
        self._start_queries(now)

    # --- requests of ours ---------------------------------------------------------------------------------------------

    def _request(self, purpose: Purpose, to: PeerId, request: Request, now: float) -> int:
        """Send a request; its number."""
        nearest = isinstance(purpose, Step) and purpose.is_entry
        route = self._rpc.start(purpose, to, request, now, nearest=nearest)
        self._effects.append(Notify(Subsystem.ROUTING, route))
        return route.call

    def _store(
        self, verified: VerifiedRecord, peers: Iterable[PeerId], now: float, put: PutValue | None = None
    ) -> None:
        """Ask these peers to hold a value."""
        for peer in peers:
            number = self._request(put, peer, StoreValue(record=verified.record), now)
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
        purpose, peer, answer = outcome.purpose, outcome.peer, outcome.answer
        if peer is not None and answer is not None:
            self._table.heard(peer, now)
        elif peer is not None and not outcome.is_lost and not self._table.is_alone:
            self._table.gone(peer, now)  # while we have no link, no peer is to blame for not answering
        match purpose:
            case Step(query, is_entry):
                query.requests.pop(outcome.number, None)
                query.refusal = outcome.refusal or query.refusal
                query.is_entering = query.is_entering and not is_entry
                if peer is not None:
                    self._queries.take(query, peer, answer if isinstance(answer, NodesFound) else None, now)
                self._advance(query, now)
            case PutValue() as put:
                if isinstance(answer, ValueStored):
                    put.holders += answer.held
                    if answer.reason and not answer.held:
                        put.refusals[Refusal(answer.reason, answer.full)] += 1
                elif outcome.refusal:
                    put.refusals[Refusal(outcome.refusal)] += 1
                del put.pending[outcome.number]
                if not put.pending:
                    self._end_put(put, now)
            case None:
                pass
