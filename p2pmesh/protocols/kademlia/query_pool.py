"""The lookups under way: who is asked, what they answer, the values found, and the bounds on all of it.

Each begins at the nearest contacts that we know, and, by a route to whoever is next to the target on the ring, at its very
place: there the peers know their neighbourhood, however old our contacts are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from attrs import define, field

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.kademlia.lookup import Lookup
from p2pmesh.protocols.kademlia.records import BadRecord, VerifiedRecord, check
from p2pmesh.protocols.kademlia.routing_table import RoutingTable
from p2pmesh.protocols.kademlia.rpc import RpcClient, RpcCounts
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import KademliaCall

RESERVE = 3
"""A lookup begins with so many times k contacts: it asks the nearest, and the others if many of those turn out to be gone."""
CHORES = 4
"""Lookups at once that keep house: enough for thousands of values an hour."""

Finish: TypeAlias = Callable[["Query", float], None]


@define(eq=False)
class Query:
    """One lookup, for peers or for a value, and what it is for."""

    lookup: Lookup
    finish: Finish
    """Called once when it is done, unless it is cancelled."""
    value: bool = False
    publisher: PeerId | None = None
    newer_than: int | None = None
    chore: bool = False
    """Whether it keeps house: those wait for each other, and for nobody's call."""
    quorum: int | None = None
    """It ends early once so many peers gave the value; None for never."""
    found: dict[PeerId, VerifiedRecord] = field(factory=dict)
    """Who gave which value."""
    holders: list[PeerId] = field(factory=list)
    """Who says that it has the version that we have."""
    calls: dict[int, None] = field(factory=dict)
    homing: bool = False
    """Whether the request to whoever is next to the target is out."""

    @property
    def newest(self) -> VerifiedRecord | None:
        """The newest value that was found."""
        return max(self.found.values(), key=_age, default=None)


def _age(checked: VerifiedRecord) -> tuple[int, PeerId]:
    return checked.record.timestamp, checked.publisher


class QueryPool:
    """All lookups of one peer."""

    def __init__(
        self,
        me: PeerId,
        config: KademliaConfig,
        table: RoutingTable,
        caller: RpcClient,
        counts: RpcCounts,
        wall: Callable[[float], float],
        contact_answered: Callable[[PeerId, bool, float], None],
    ) -> None:
        self._me = me
        self._config = config
        self._table = table
        self._caller = caller
        self._counts = counts
        self._wall = wall
        self._contact_answered = contact_answered
        self._running: dict[int, Query] = {}
        self._waiting: deque[Query] = deque()
        self._chores: deque[Query] = deque()
        self._chores_running = 0
        self._limits: Timers[int] = Timers()
        self._last = 0
        self.done: int = 0
        self.asked: int = 0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Lookups that have not begun."""
        return len(self._waiting) + len(self._chores)

    def look_up(self, target: PeerId) -> Lookup:
        """A new lookup, for a `Query`; its contacts are added when it begins."""
        return Lookup(target, self._me, self._config.k, self._config.alpha)

    def begin(self, search: Query, now: float) -> None:
        """Start a lookup, now or once others are done."""
        (self._chores if search.chore else self._waiting).append(search)
        self._fill(now)

    def cancel(self, search: Query, now: float) -> None:
        """Nobody wants to know any more."""
        for queue in (self._waiting, self._chores):
            if search in queue:
                queue.remove(search)
                return
        number = next((number for number, other in self._running.items() if other is search), None)
        if number is not None:
            self._drop(number)
            self._fill(now)

    def cancel_all(self) -> None:
        """None of them matters any more."""
        self._waiting.clear()
        self._chores.clear()
        for number in list(self._running):
            self._drop(number)

    def next_deadline(self) -> float:
        """When a lookup has taken too long."""
        return self._limits.next_deadline()

    def expire(self, now: float) -> None:
        """End those that have taken too long with what they have."""
        for number in self._limits.pop_due(now):
            self._end(number, now)

    # --- running ------------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        while self._chores and self._chores_running < CHORES:
            self._chores_running += 1
            self._start(self._chores.popleft(), now)
        while self._waiting and len(self._running) - self._chores_running < self._config.lookups:
            self._start(self._waiting.popleft(), now)

    def _start(self, search: Query, now: float) -> None:
        self._last += 1
        number, target = self._last, search.lookup.target
        self._running[number] = search
        self._limits.set(number, now + self._config.lookup_timeout)
        self._table.touch(target, now)
        for contact in self._table.closest(target, RESERVE * self._config.k):
            search.lookup.add_contact(contact)
        search.homing = True
        self._ask(number, search, target, now, nearest=True)
        self._go_on(number, now)

    def _go_on(self, number: int, now: float) -> None:
        search = self._running.get(number)
        if search is None:
            return
        for peer in search.lookup.ask():
            self._ask(number, search, peer, now)
        has_quorum = search.quorum is not None and len(search.found) >= search.quorum
        if has_quorum or (search.lookup.is_done and (search.lookup.is_full or not search.homing)):
            self._end(number, now)

    def _ask(self, number: int, search: Query, to: PeerId, now: float, *, nearest: bool = False) -> None:
        def outcome(peer: PeerId | None, reply: KademliaCall | None, now: float) -> None:
            search.calls.pop(call, None)
            if nearest:
                search.homing = False
            if peer is not None:
                self._contact_answered(peer, reply is not None, now)
            self._take(search, peer, reply, now)
            self._go_on(number, now)

        def slowness(peer: PeerId, now: float) -> None:
            search.lookup.slow(peer)
            self._go_on(number, now)

        call = self._caller.ask(to, self._request(search), outcome, now, nearest=nearest, slowness=slowness)
        search.calls[call] = None
        self.asked += 1

    def _request(self, search: Query) -> KademliaCall:
        target = search.lookup.target
        if not search.value:
            return KademliaCall(type="FIND_NODE", id=self._me, target_id=target)
        return KademliaCall(
            type="FIND_VALUE", id=self._me, key=target, publisher=search.publisher, newer_than=search.newer_than
        )

    def _take(self, search: Query, peer: PeerId | None, reply: KademliaCall | None, now: float) -> None:
        """What a peer has answered, or not."""
        if peer is None:
            return
        if reply is None:
            search.lookup.failed(peer)
            return
        search.lookup.answered(peer, [other for other in reply.peers if not self._table.is_silent(other, now)])
        if not search.value:
            return
        if reply.stored:
            search.holders.append(peer)
        if reply.record is None:
            return
        try:
            checked = check(reply.record, self._wall(now), self._config)
        except BadRecord:
            self._counts.refused += 1
            return
        asked_for = checked.record.key == search.lookup.target and search.publisher in {None, checked.publisher}
        if asked_for:
            search.found[peer] = checked
        else:
            self._counts.refused += 1

    def _end(self, number: int, now: float) -> None:
        search = self._drop(number)
        self.done += 1
        search.finish(search, now)
        self._fill(now)

    def _drop(self, number: int) -> Query:
        search = self._running.pop(number)
        self._chores_running -= search.chore
        self._limits.cancel(number)
        for call in search.calls:
            self._caller.cancel(call)
        search.calls.clear()
        return search
