"""Keeps values where they belong: with the k peers nearest to their key, though peers come and go.

- A holder looks for the k holders of each value once an hour or so, and gives it to those that lack it; the others see that
  and skip their turn (Maymounkov and Mazieres 2002, section 2.5). The publisher does likewise for as long as it is there.
- Between those, when a peer comes that is now among the k nearest, or one of them is lost, the holders next to the key hand
  the value to who should have it: with a tenth of all peers replaced each minute, an hour is too long. Once half of them
  have changed, its turn comes at once.
- A peer that is not among the k nearest keeps a value for a while only, the shorter the farther off it is.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable

from attrs import define

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.kademlia.query_pool import Query, QueryPool
from p2pmesh.protocols.kademlia.record_store import RecordKey, RecordStore, Stored, StoreResult
from p2pmesh.protocols.kademlia.records import VerifiedRecord
from p2pmesh.protocols.kademlia.routing_table import RoutingTable
from p2pmesh.protocols.kademlia.rpc import RpcClient
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import KademliaCall

SHORTEST = 30.0
"""Seconds; a copy that would be kept for less is not taken."""
SLACK = 1.25
"""A peer holds a value for good while it knows no more than k times this that are nearer: some of those may be gone."""
PUSHERS = 3
"""So many holders, those nearest to the key, hand it to a newcomer: the nearest may not know of it yet, or be gone."""
PACE = 0.5
BATCH = 8
"""Values handed on at once, and seconds until the next ones: a newcomer gets thousands in minutes, and no link is swamped."""
HASTE = 60.0
"""Seconds within which a holder sees to a value once half of the k nearest peers have changed; then the others skip it."""
SETTLING = 2.0
"""Seconds until a newcomer is handed values, jittered by half: routes should lead to it by then."""


@define
class RepublishCounts:
    """What was done for values of others, and for ours."""

    republished: int = 0
    skipped: int = 0
    """Times that another holder was faster."""
    handed_over: int = 0
    handovers_dropped: int = 0


class Republish:
    """The values of one peer, held for others and published by itself."""

    def __init__(
        self,
        me: PeerId,
        config: KademliaConfig,
        rng: random.Random,
        wall: Callable[[float], float],
        table: RoutingTable,
        caller: RpcClient,
        searches: QueryPool,
        answered: Callable[[PeerId, bool, float], None],
    ) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._wall = wall
        self._table = table
        self._caller = caller
        self._searches = searches
        self._answered = answered
        self.store: RecordStore = RecordStore(me, config, self._gone)
        self.published: OrderedDict[PeerId, VerifiedRecord] = OrderedDict()
        """Our own values by their keys, the latest last."""
        self.counts: RepublishCounts = RepublishCounts()
        self._due: Timers[RecordKey] = Timers()
        self._handovers: OrderedDict[tuple[RecordKey, PeerId], None] = OrderedDict()
        self._next_batch: float | None = None

    # --- values -------------------------------------------------------------------------------------------------------

    def keep(self, checked: VerifiedRecord, now: float) -> bool:
        """Hold a value, if there is room; as long as it lives if its place is here, else for a while. Whether it is held."""
        left = checked.expires - self._wall(now)
        beyond = self._table.nearer(checked.record.key) - int(self._config.k * SLACK)
        if beyond >= 0:
            left = min(left, self._config.cache_time * 0.5 ** (beyond / self._config.k))
        if left <= 0 or (beyond >= 0 and left < SHORTEST):
            return False
        verdict = self.store.put(checked, now + left, cached=beyond >= 0)
        if verdict in {StoreResult.OUTDATED, StoreResult.FULL}:
            return False
        stored = self.store.get((checked.record.key, checked.publisher))
        if stored is not None and not stored.cached:
            if verdict is StoreResult.KNOWN:
                self.counts.skipped += 1
            self._measure(stored)
            stored.changes = 0
            self._put_off(stored.slot, now)
        return True

    def seen_held(self, stored: Stored, by: PeerId, now: float) -> None:
        """This peer sees to the same value right now: if it is a holder itself, we need not."""
        if not stored.cached and _is_within(stored, by):
            self.counts.skipped += 1
            stored.changes = 0
            self._put_off(stored.slot, now)

    def publish(self, checked: VerifiedRecord, now: float) -> None:
        """See to a value of ours from now on."""
        key = checked.record.key
        self.published[key] = checked
        self.published.move_to_end(key)
        self._put_off((key, self._me), now)
        if len(self.published) > self._config.publications:
            oldest, _ = self.published.popitem(last=False)
            if self.store.get((oldest, self._me)) is None:
                self._due.cancel((oldest, self._me))

    def local(self, key: PeerId, publisher: PeerId | None, now: float) -> VerifiedRecord | None:
        """The newest value that we have ourselves."""
        stored = self.store.newest(key, publisher)
        own = self.published.get(key) if publisher in {None, self._me} else None
        known = [checked for checked in (stored.checked if stored else None, own) if checked is not None]
        valid = [checked for checked in known if checked.expires > self._wall(now)]
        return max(valid, key=lambda checked: checked.record.timestamp, default=None)

    def hurry(self, now: float) -> None:
        """We have just come into the mesh: the values that we published before are to be found there soon."""
        for key in self.published:
            self._due.set((key, self._me), now + SETTLING * self._rng.uniform(0.5, 1.5))

    # --- peers that come and go ---------------------------------------------------------------------------------------

    def newcomer(self, peer: PeerId, now: float) -> None:
        """We have just heard of this peer: it gets the values that it is near enough to hold, from those nearest to them."""
        for stored in self.store:
            if stored.cached or not _is_within(stored, peer):
                continue
            self._measure(stored)
            self._note_change(stored, now)
            if _is_within(stored, peer) and self._is_pusher(stored, peer):
                self._hand_over(stored.slot, peer, now)

    def lost(self, peer: PeerId, now: float) -> None:
        """This contact is gone: the next one takes its place with the values that it held."""
        for stored in self.store:
            if stored.cached or not _is_within(stored, peer):
                continue
            self._measure(stored)
            self._note_change(stored, now)
            nearest = self._table.closest(stored.slot[0], self._config.k)
            if nearest and self._is_pusher(stored, peer):
                self._hand_over(stored.slot, nearest[-1], now)

    def _note_change(self, stored: Stored, now: float) -> None:
        """Many changes, and it is time to see to it: what was handed on may not have arrived, or nobody felt responsible."""
        stored.changes += 1
        if stored.changes == max(self._config.k // 2, 1):
            self._due.set(stored.slot, now + HASTE * self._rng.random())

    def _measure(self, stored: Stored) -> None:
        """Find out how near to the key a holder has to be."""
        key = stored.slot[0]
        nearest = self._table.closest(key, self._config.k)
        stored.radius = xor_distance(nearest[-1], key) if len(nearest) == self._config.k else None

    def _is_pusher(self, stored: Stored, peer: PeerId) -> bool:
        key = stored.slot[0]
        nearest = self._table.closest(key, PUSHERS, without=peer)
        return len(nearest) < PUSHERS or xor_distance(self._me, key) < xor_distance(nearest[-1], key)

    def _hand_over(self, slot: RecordKey, peer: PeerId, now: float) -> None:
        self._handovers[slot, peer] = None
        if len(self._handovers) > self._config.handovers:
            self._handovers.popitem(last=False)
            self.counts.handovers_dropped += 1
        if self._next_batch is None:
            self._next_batch = now + SETTLING * self._rng.uniform(0.5, 1.5)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When something is due."""
        first = min(self.store.next_expiry(), self._due.next_deadline())
        return first if self._next_batch is None else min(first, self._next_batch)

    def expire(self, now: float) -> None:
        """Forget, hand over and republish what is due."""
        self.store.expire(now)
        if self._next_batch is not None and self._next_batch <= now:
            self._hand_on(now)
        for slot in self._due.pop_due(now):
            self._republish(slot, now)

    def stop(self) -> None:
        """Do nothing any more."""
        self._handovers.clear()
        self._next_batch = None
        for slot in [*(stored.slot for stored in self.store), *((key, self._me) for key in self.published)]:
            self._due.cancel(slot)

    def _hand_on(self, now: float) -> None:
        for _ in range(min(BATCH, len(self._handovers))):
            (slot, peer), _ = self._handovers.popitem(last=False)
            stored = self.store.get(slot)
            if stored is not None and not self._table.is_silent(peer, now):
                self.counts.handed_over += 1
                self.place(stored.checked, (peer,), now)
        self._next_batch = now + PACE if self._handovers else None

    # --- republishing -------------------------------------------------------------------------------------------------

    def _put_off(self, slot: RecordKey, now: float) -> None:
        self._due.set(slot, now + self._config.republish * self._rng.uniform(0.75, 1.25))

    def _gone(self, slot: RecordKey) -> None:
        """The store has let go of a value: we see to it no more, unless it is our own."""
        if slot[1] != self._me or slot[0] not in self.published:
            self._due.cancel(slot)

    def _republish(self, slot: RecordKey, now: float) -> None:
        stored = self.store.get(slot)
        own = self.published.get(slot[0]) if slot[1] == self._me else None
        checked = own or (stored.checked if stored is not None and not stored.cached else None)
        if checked is None:
            return
        if checked.expires <= self._wall(now):
            self.published.pop(slot[0], None)
            return
        self.counts.republished += 1
        search = Query(
            self._searches.look_up(slot[0]),
            lambda search, now: self._spread(checked, search, now),
            value=True,
            publisher=slot[1],
            newer_than=checked.record.timestamp,
            chore=True,
        )
        if stored is not None:
            stored.changes = 0
        self._put_off(slot, now)
        self._searches.begin(search, now)

    def _spread(self, checked: VerifiedRecord, search: Query, now: float) -> None:
        """The k nearest are known: those get the value that lack it."""
        newer = search.newest
        if newer is not None and newer.record.timestamp > checked.record.timestamp:
            self.keep(newer, now)
            return  # its turn comes
        key = checked.record.key
        everybody = sorted([*search.lookup.closest, self._me], key=lambda peer: xor_distance(peer, key))
        nearest = everybody[: self._config.k]
        stored = self.store.get((key, checked.publisher))
        if stored is not None and len(nearest) == self._config.k:
            stored.radius = xor_distance(nearest[-1], key)
            if self._me not in nearest:
                self.store.demote(stored, now + self._config.cache_time)
        has_it = {self._me, *search.holders}
        self.place(checked, [peer for peer in nearest if peer not in has_it], now)

    def place(
        self,
        checked: VerifiedRecord,
        peers: Iterable[PeerId],
        now: float,
        done: Callable[[int, float], None] | None = None,
    ) -> list[int]:
        """Ask these peers to hold a value; `done` is told how many do, once all have answered or failed to.

        Returns the numbers of the requests.
        """
        peers = list(peers)
        held, left = 0, len(peers)

        def outcome(peer: PeerId | None, reply: KademliaCall | None, now: float) -> None:
            nonlocal held, left
            if peer is not None:
                self._answered(peer, reply is not None, now)
            held += reply is not None and reply.stored
            left -= 1
            if left == 0 and done is not None:
                done(held, now)

        call = KademliaCall(type="STORE", id=self._me, record=checked.record)
        numbers = [self._caller.ask(peer, call, outcome, now) for peer in peers]
        if not peers and done is not None:
            done(0, now)
        return numbers


def _is_within(stored: Stored, peer: PeerId) -> bool:
    return stored.radius is None or xor_distance(peer, stored.slot[0]) <= stored.radius
