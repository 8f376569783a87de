"""What the application asks of the DHT: to put, to get, to find peers. Each call ends in one `Reply`, unless it is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from attrs import define, field

from p2pmesh.config import KademliaConfig
from p2pmesh.errors import ConfigError, MeshClosed, MeshError, PeerUnreachable
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.effects import Effect, Reply
from p2pmesh.protocols.inputs import DhtFindNode, DhtGet, DhtPut
from p2pmesh.protocols.kademlia.query_pool import Query, QueryPool
from p2pmesh.protocols.kademlia.records import VerifiedRecord, key_id, publish
from p2pmesh.protocols.kademlia.republish import Republish
from p2pmesh.protocols.kademlia.rpc import RpcClient
from p2pmesh.protocols.util.timers import Timers

REPAIRED = 3
"""Peers that gave an old value and are sent the new one, at most, by one `get`."""

Call: TypeAlias = DhtPut | DhtGet | DhtFindNode


@define
class CallCounts:
    """What the application asked for, and got."""

    puts: int = 0
    hits: int = 0
    misses: int = 0
    finds: int = 0


@define(eq=False)
class _Open:
    """A call that has begun."""

    search: Query | None = None
    requests: list[int] = field(factory=list)


class DhtCalls:
    """The calls that wait for their end."""

    def __init__(
        self,
        identity: Identity,
        config: KademliaConfig,
        wall: Callable[[float], float],
        caller: RpcClient,
        searches: QueryPool,
        upkeep: Republish,
        do: Callable[[Effect], None],
    ) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._config = config
        self._wall = wall
        self._caller = caller
        self._searches = searches
        self._upkeep = upkeep
        self._do = do
        self.counts: CallCounts = CallCounts()
        self._open: dict[int, _Open] = {}
        self._early: dict[int, Call] = {}
        self._patience: Timers[int] = Timers()
        self._last_timestamp = 0

    def __len__(self) -> int:
        return len(self._open) + len(self._early)

    def take(self, event: Call, now: float, *, has_links: bool) -> None:
        """A call. One that comes before there is any link waits for it, for as long as for an answer."""
        if has_links:
            self._begin(event, now)
            return
        self._early[event.call] = event
        self._patience.set(event.call, now + self._config.rpc_timeout)

    def linked(self, now: float) -> None:
        """There is a link: what has waited for it begins."""
        for call in list(self._early):
            self._patience.cancel(call)
            self._begin(self._early.pop(call), now)

    def forget(self, call: int, now: float) -> None:
        """Nobody waits for this call any more."""
        self._early.pop(call, None)
        self._patience.cancel(call)
        opened = self._open.pop(call, None)
        if opened is None:
            return
        if opened.search is not None:
            self._searches.cancel(opened.search, now)
        for number in opened.requests:
            self._caller.cancel(number)

    def close(self) -> None:
        """The mesh is left: no call comes to its end."""
        for call in [*self._open, *self._early]:
            self._patience.cancel(call)
            self._do(Reply(call, error=MeshClosed("the mesh was left before this call was done")))
        self._open.clear()
        self._early.clear()

    def next_deadline(self) -> float:
        """When a call has waited long enough for a first link."""
        return self._patience.next_deadline()

    def expire(self, now: float) -> None:
        """Begin what has waited long enough, with what there is."""
        for call in self._patience.pop_due(now):
            self._begin(self._early.pop(call), now)

    # --- calls --------------------------------------------------------------------------------------------------------

    def _begin(self, event: Call, now: float) -> None:
        try:
            match event:
                case DhtPut():
                    self._put(event, now)
                case DhtGet():
                    self._get(event, now)
                case DhtFindNode():
                    self._find(event, now)
        except MeshError as error:
            self._reply(event.call, error=error)

    def _search(self, call: int, search: Query, now: float) -> None:
        self._open[call] = _Open(search)
        self._searches.begin(search, now)

    def _reply(self, call: int, value: object = None, error: MeshError | None = None) -> None:
        self._open.pop(call, None)
        self._do(Reply(call, value, error))

    def _nearest(self, target: PeerId, search: Query) -> list[PeerId]:
        """The k nearest peers, ourselves among them if we are."""
        everybody = [*search.lookup.closest, self._me]
        return sorted(everybody, key=lambda peer: xor_distance(peer, target))[: self._config.k]

    def _put(self, event: DhtPut, now: float) -> None:
        ttl = self._config.ttl if event.ttl is None else event.ttl
        if not 1 <= ttl <= self._config.max_ttl:
            raise ConfigError(f"a value's ttl is 1 to {self._config.max_ttl:g} seconds, not {ttl!r}")
        key = key_id(event.key)
        # One that is put after another is newer, also within the same millisecond or when the clock was set back.
        self._last_timestamp = max(self._last_timestamp + 1, int(self._wall(now) * 1000))
        checked = publish(self._identity, key, event.value, self._last_timestamp, ttl, self._config)
        self.counts.puts += 1
        search = Query(self._searches.look_up(key), lambda search, now: self._place(event.call, checked, search, now))
        self._search(event.call, search, now)

    def _place(self, call: int, checked: VerifiedRecord, search: Query, now: float) -> None:
        nearest = self._nearest(checked.record.key, search)
        here = self._me in nearest and self._upkeep.keep(checked, now)

        def placed(held: int, now: float) -> None:
            if held + here == 0:
                self._reply(
                    call, error=PeerUnreachable("none of the peers nearest to this key took the value: try again")
                )
                return
            self._upkeep.publish(checked, now)
            self._reply(call, held + here)

        self._open[call] = opened = _Open()
        opened.requests += self._upkeep.place(checked, [peer for peer in nearest if peer != self._me], now, placed)

    def _get(self, event: DhtGet, now: float) -> None:
        key = key_id(event.key)
        local = self._upkeep.local(key, event.publisher, now)
        if local is not None and (local.publisher == event.publisher == self._me or self._config.quorum == 1):
            self._found(event.call, local)
            return
        search = Query(
            self._searches.look_up(key),
            lambda search, now: self._got(event.call, local, search, now),
            value=True,
            publisher=event.publisher,
            quorum=self._config.quorum - (local is not None),
        )
        self._search(event.call, search, now)

    def _got(self, call: int, local: VerifiedRecord | None, search: Query, now: float) -> None:
        known = [checked for checked in (local, search.newest) if checked is not None]
        if not known:
            self.counts.misses += 1
            self._reply(call)
            return
        best = max(known, key=lambda checked: checked.record.timestamp)
        lacking = [peer for peer in search.lookup.closest if peer not in search.found][:1]
        outdated = [
            peer
            for peer, checked in search.found.items()
            if checked.publisher == best.publisher and checked.record.timestamp < best.record.timestamp
        ]
        self._upkeep.place(best, [*lacking, *outdated[:REPAIRED]], now)
        self._found(call, best)

    def _found(self, call: int, checked: VerifiedRecord) -> None:
        self.counts.hits += 1
        self._reply(call, checked.found())

    def _find(self, event: DhtFindNode, now: float) -> None:
        self.counts.finds += 1
        search = Query(
            self._searches.look_up(event.target),
            lambda search, now: self._reply(event.call, tuple(self._nearest(event.target, search))),
        )
        self._search(event.call, search, now)
