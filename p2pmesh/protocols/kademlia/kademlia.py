"""The DHT: who is nearest to a key, and values that the k nearest peers hold (Maymounkov and Mazieres 2002).

This core keeps the contacts, answers the requests of others, and looks after itself; lookups (`dht_searches`), the values'
upkeep (`dht_upkeep`) and the application's calls (`dht_calls`) are parts of it. Its requests go to peers by way of the routing
core, neighbours or not, and so do its answers. At rest it does next to nothing: it looks itself up once an hour.

Every peer keeps knowing its neighbourhood: it looks itself up soon after its first link, again after a minute, then after
twice as long each time as long as nothing has changed among the k nearest, and sooner once one of them comes or goes. Peers
that it asks learn of it by that.

Inputs: LinkUp, LinkDown, Received, RoutedReceived, RouteSucceeded, RouteFailed, DhtPut, DhtGet, DhtFindNode, CancelCall, Leave.
Effects: Notify (Route, CancelRoute, RouteReply to ROUTING), Reply.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError, IdentityError, MeshClosed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import RING_SIZE, PeerId, is_peer_id, xor_distance
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Effect, Effects, Notify, Reply
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
from p2pmesh.protocols.kademlia.calls import Call, DhtCalls
from p2pmesh.protocols.kademlia.query_pool import Query, QueryPool
from p2pmesh.protocols.kademlia.records import BadRecord, check
from p2pmesh.protocols.kademlia.republish import Republish
from p2pmesh.protocols.kademlia.routing_table import RoutingTable
from p2pmesh.protocols.kademlia.rpc import REPLIES, RpcClient, RpcCounts
from p2pmesh.protocols.notices import Input, ReturnPath, RoutedReceived, RouteFailed, RouteReply, RouteSucceeded
from p2pmesh.protocols.util.rate_limiter import RateLimiter
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import DhtRecord, KademliaCall, KademliaRpc

_Chore: TypeAlias = Literal["ourselves", "buckets"]


class KademliaCore:
    """The DHT, one peer of it."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = me = identity.peer_id
        self._config = settings = config.kademlia
        self._rng = rng
        self._wall = wall
        self._effects: Effects = []
        self._links: dict[PeerId, None] = {}
        self._left = False
        self._counts = RpcCounts()
        self._allowances = RateLimiter(settings.requesters, settings.requests_per_second, settings.request_burst)
        self._table = RoutingTable(me, settings)
        self._caller = RpcClient(settings, self._counts, self._do)
        self._searches = QueryPool(me, settings, self._table, self._caller, self._counts, wall, self._answered)
        self._upkeep = Republish(me, settings, rng, wall, self._table, self._caller, self._searches, self._answered)
        self._calls = DhtCalls(identity, settings, wall, self._caller, self._searches, self._upkeep, self._do)
        self._timers: Timers[_Chore] = Timers()
        self._parts = (self._timers, self._caller, self._searches, self._upkeep, self._calls)
        self._nearest: frozenset[PeerId] = frozenset()
        self._radius = RING_SIZE  # how far off the k-th nearest was when we last looked
        self._next_look = 0.0
        self._interval = settings.refresh_first
        self._pinged: set[PeerId] = set()

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:
            case RoutedReceived(peer, message, way):
                self._routed(peer, message, way, now)
            case RouteSucceeded():
                self._caller.arrived(event, now)
            case RouteFailed(call):
                self._caller.unrouted(call, now)
            case LinkUp(peer):
                self._link_up(peer, now)
            case LinkDown():
                self._link_down(event, now)
            case Received():
                self._counts.unasked += 1  # the original's, or not asked for: ours come by routes
            case DhtPut() | DhtGet() | DhtFindNode():
                self._call(event, now)
            case CancelCall(call):
                self._calls.forget(call, now)
            case Leave():
                self._leave()
            case _:
                pass  # for other cores
        return self._finish()

    def next_deadline(self) -> float:
        return min(part.next_deadline() for part in self._parts)

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for chore in self._timers.pop_due(now):
            match chore:
                case "ourselves":
                    self._look_ourselves_up(now)
                case "buckets":
                    self._refresh_buckets(now)
        self._caller.expire(now)
        self._searches.expire(now)
        self._upkeep.expire(now)
        self._calls.expire(now)
        return self._finish()

    def snapshot(self) -> Mapping[str, Any]:
        store = self._upkeep.store
        return {
            "enabled": self._config.enabled,
            **self._table.snapshot(),
            **attrs.asdict(self._counts, recurse=False),
            **attrs.asdict(self._calls.counts, recurse=False),
            **attrs.asdict(self._upkeep.counts, recurse=False),
            "calls": len(self._calls),
            "lookups": self._searches.done,
            "lookups_running": len(self._searches),
            "lookups_waiting": self._searches.waiting,
            "asked": self._searches.asked,
            "requests": len(self._caller),
            "stored": len(store),
            "stored_bytes": store.size,
            "cached": sum(stored.cached for stored in store),
            "published": len(self._upkeep.published),
        }

    def _finish(self) -> Effects:
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    @property
    def _is_on(self) -> bool:
        return self._config.enabled and not self._left

    # --- contacts -----------------------------------------------------------------------------------------------------

    def _link_up(self, peer: RemotePeer, now: float) -> None:
        if peer.version == 0 or not peer.verified or not self._is_on:
            return  # the original's peers answer nothing, and routes lead to verified peers only
        was_alone = not self._links
        self._links[peer.peer_id] = None
        self._met(peer.peer_id, now)
        if was_alone:
            self._interval = self._config.refresh_first
            self._look_at(now + self._config.join_lookup * self._rng.uniform(0.5, 1.5))
            self._timers.set("buckets", now + self._config.refresh * self._rng.uniform(0.75, 1.25))
            self._calls.linked(now)

    def _link_down(self, event: LinkDown, now: float) -> None:
        self._links.pop(event.peer, None)
        if event.timed_out is not None and self._table.remove(event.peer, now):
            self._lost(event.peer, now)  # it fell silent: it is not our link alone that it has lost

    def _met(self, peer: PeerId, now: float) -> None:
        """This peer has spoken to us."""
        if peer == self._me:
            return
        if self._table.heard(peer, now):
            self._upkeep.newcomer(peer, now)
            self._look_sooner(peer, now)
        doubtful = self._table.in_doubt(peer, now)
        if doubtful is not None and doubtful not in self._pinged:
            self._ping(doubtful, now)

    def _ping(self, peer: PeerId, now: float) -> None:
        def outcome(_: PeerId | None, reply: KademliaCall | None, now: float) -> None:
            self._pinged.discard(peer)
            self._answered(peer, reply is not None, now)

        self._pinged.add(peer)
        self._caller.ask(peer, KademliaCall(type="PING", id=self._me), outcome, now)

    def _answered(self, peer: PeerId, has_answered: bool, now: float) -> None:
        """A request to this peer has ended. Without any link it is not the peer's fault that it did not answer."""
        if has_answered:
            self._met(peer, now)
        elif self._links and self._table.failed(peer, now):
            self._lost(peer, now)

    def _lost(self, peer: PeerId, now: float) -> None:
        """This contact is gone."""
        self._upkeep.lost(peer, now)
        self._look_sooner(peer, now)

    # --- our own upkeep -----------------------------------------------------------------------------------------------

    def _look_ourselves_up(self, now: float) -> None:
        """Ask for the peers nearest to us, who learn of us by that, and again once it may have changed."""
        if self._links:
            self._searches.begin(Query(self._searches.look_up(self._me), self._found_ourselves, chore=True), now)

    def _found_ourselves(self, search: Query, now: float) -> None:
        del search
        is_first = not self._nearest
        ranked = self._table.closest(self._me, self._config.k)
        nearest = frozenset(ranked)
        self._radius = xor_distance(self._me, ranked[-1]) if len(ranked) == self._config.k else RING_SIZE
        if is_first:
            self._upkeep.hurry(now)
        elif nearest == self._nearest:
            self._interval = min(2 * self._interval, self._config.refresh)
        else:
            self._interval = self._restless
        if not is_first:
            self._fill_a_bucket(now)
        self._nearest = nearest
        self._look_at(now + self._interval * self._rng.uniform(0.75, 1.25))

    def _look_sooner(self, peer: PeerId, now: float) -> None:
        """One of the k nearest came or went: who had nothing to do for an hour begins to look again."""
        soon = now + self._restless * self._rng.uniform(0.75, 1.25)
        if self._nearest and soon < self._next_look and xor_distance(self._me, peer) <= self._radius:
            self._interval = self._restless
            self._look_at(soon)

    def _look_at(self, time: float) -> None:
        self._next_look = time
        self._timers.set("ourselves", time)

    @property
    def _restless(self) -> float:
        """Seconds between looks while the neighbourhood changes."""
        return min(2 * self._config.refresh_first, self._config.refresh)

    def _fill_a_bucket(self, now: float) -> None:
        """The paper has a newcomer look into all of them at once; one at a time does, as we have neighbours on the ring."""
        index = self._table.thin()
        if index is not None:
            self._look_into(index, now)

    def _look_into(self, index: int, now: float) -> None:
        target = self._table.random_id(index, self._rng)
        self._searches.begin(Query(self._searches.look_up(target), lambda search, now: None, chore=True), now)

    def _refresh_buckets(self, now: float) -> None:
        for index in self._table.stale(now - self._config.refresh):
            self._look_into(index, now)
        self._timers.set("buckets", now + self._config.refresh * self._rng.uniform(0.75, 1.25))

    # --- requests of others -------------------------------------------------------------------------------------------

    def _routed(self, peer: RemotePeer, message: Message, way: ReturnPath, now: float) -> None:
        if not self._is_on or not isinstance(message, KademliaRpc):
            return
        self._counts.rpcs_in += 1
        if not self._allowances.take(peer.peer_id, now):
            self._counts.flooded += 1
            return
        request = message.message
        if request.type in REPLIES.values():
            self._counts.unasked += 1
            return
        if request.id != peer.peer_id or peer.version == 0 or peer.peer_id == self._me:
            self._counts.refused += 1
            return
        reply = self._reply_to(request, now)
        if reply is None:
            self._counts.refused += 1
            return
        self._do(Notify(Subsystem.ROUTING, RouteReply(way, KademliaRpc(message=reply))))
        self._met(peer.peer_id, now)

    def _reply_to(self, request: KademliaCall, now: float) -> KademliaCall | None:
        """The answer; None for what is no request."""
        match request:
            case KademliaCall(type="PING"):
                return KademliaCall(type="PONG", id=self._me)
            case KademliaCall(type="FIND_NODE", target_id=str() as target):
                peers = tuple(self._table.closest(target, self._config.k, without=request.id))
                return KademliaCall(type="FIND_NODE_REPLY", id=self._me, peers=peers)
            case KademliaCall(type="FIND_VALUE", key=str() as key) if is_peer_id(key):
                return self._value_reply(PeerId(key), request, now)
            case KademliaCall(type="STORE", record=DhtRecord() as record):
                return self._store_reply(record, now)
            case _:
                return None

    def _value_reply(self, key: PeerId, request: KademliaCall, now: float) -> KademliaCall:
        peers = tuple(self._table.closest(key, self._config.k, without=request.id))
        stored = self._upkeep.store.newest(key, request.publisher)
        if stored is None:
            return KademliaCall(type="FIND_VALUE_REPLY", id=self._me, peers=peers)
        record = stored.checked.record
        if request.newer_than is not None and record.timestamp <= request.newer_than:
            if record.timestamp == request.newer_than:
                self._upkeep.seen_held(stored, request.id, now)
                return KademliaCall(type="FIND_VALUE_REPLY", id=self._me, peers=peers, stored=True)
            return KademliaCall(type="FIND_VALUE_REPLY", id=self._me, peers=peers)
        return KademliaCall(type="FIND_VALUE_REPLY", id=self._me, peers=peers, record=record)

    def _store_reply(self, record: DhtRecord, now: float) -> KademliaCall:
        try:
            is_held = self._upkeep.keep(check(record, self._wall(now), self._config), now)
        except BadRecord:
            is_held = False
        if not is_held:
            self._counts.refused += 1
        return KademliaCall(type="STORE_REPLY", id=self._me, stored=is_held)

    # --- the application ----------------------------------------------------------------------------------------------

    def _call(self, event: Call, now: float) -> None:
        if not self._config.enabled:
            text = "this mesh takes no part in the DHT: open it with KademliaConfig(enabled=True)"
            self._do(Reply(event.call, error=ConfigError(text)))
        elif not self._identity.verified:
            text = "an unverified identity takes no part in the DHT: nobody could check what it says"
            self._do(Reply(event.call, error=IdentityError(text)))
        elif self._left:
            self._do(Reply(event.call, error=MeshClosed("the mesh was left")))
        else:
            self._calls.take(event, now, has_links=bool(self._links))

    def _leave(self) -> None:
        self._left = True
        self._calls.close()
        self._searches.cancel_all()
        self._caller.cancel_all()
        self._upkeep.stop()
        self._timers.cancel("ourselves")
        self._timers.cancel("buckets")
