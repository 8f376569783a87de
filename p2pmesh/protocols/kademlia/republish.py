"""Keeps values where they belong: with the k peers nearest to their key, though peers come and go.

Maymounkov and Mazieres 2002, section 2.5, and what it lacks where peers come and go by the minute:

- A holder looks for the k holders of each value once an hour or so, and gives it to those that lack it; the others
  see that and skip their turn. The publisher does likewise for as long as it is there.
- Between those, when a peer comes to be around us on the ring that is among the k nearest to a value, those next to it
  hand it the value: with a tenth of all peers replaced each minute, an hour is too long.
- A peer that knows well more than k peers that are nearer takes no value, and forgets it at its turn to republish.

In: verified records, peers that come to be around us on the ring, what a lookup for the holders found, the time.
Out: whether a record is held, the values to hand to a peer, the values whose holders are to be looked for, the peers
that lack a value.
State: the store, `KademliaConfig.publications` values of our own, a timer for each of these,
`KademliaConfig.handovers` values that wait to be handed over.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from attrs import asdict, define
from msgspec import Struct

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.kademlia.lookup import Query
from p2pmesh.protocols.kademlia.record_store import RecordKey, RecordStore, Stored, StoreResult
from p2pmesh.protocols.kademlia.records import VerifiedRecord
from p2pmesh.protocols.kademlia.routing_table import RoutingTable
from p2pmesh.protocols.util.timers import Timers

HOLDER_SLACK = 1.25
"""A factor: a peer holds a value while it knows no more than this times k that are nearer; some may be gone."""
HANDOVER_REACH = 2
"""Peers on either side of a newcomer that hand it values: the one next to it may be new itself, or not know of it."""
HANDOVER_PACE = 1 / 16
"""Seconds for each value that waits to be handed over: a newcomer gets thousands in minutes, and no link is swamped."""
SETTLING = 2.0
"""Seconds until a newcomer is handed values, or brings its own, jittered by half: routes should lead to it by then."""


class Refusal(NamedTuple):
    """Why a value is not held."""

    reason: str
    """For people; "" if others are nearer to its place."""
    full: bool = False
    """Whether as many publishers share its key as may."""


class HandOver(Struct, frozen=True):
    """Ask this peer to hold a value."""

    verified: VerifiedRecord
    peer: PeerId


class Republish(Struct, frozen=True):
    """Look for the holders of a value, and then ask `Republisher.lacking` which peers are to be given it."""

    verified: VerifiedRecord


Upkeep: TypeAlias = HandOver | Republish


@define
class RepublishCounts:
    """What was done for values of others, and for ours."""

    republished: int = 0
    skipped: int = 0
    """Turns that another holder took."""
    handed_over: int = 0
    handovers_dropped: int = 0


class Republisher:
    """The values of one peer, held for others and published by itself."""

    def __init__(
        self, me: PeerId, config: KademliaConfig, rng: random.Random, wall: WallClock, table: RoutingTable
    ) -> None:
        self.store: RecordStore = RecordStore(me, config, wall)
        self.counts: RepublishCounts = RepublishCounts()
        self._me = me
        self._config = config
        self._rng = rng
        self._wall = wall
        self._table = table
        self._published: OrderedDict[PeerId, VerifiedRecord] = OrderedDict()  # ours by their keys, the latest last
        self._own_turns: Timers[PeerId] = Timers()  # of those, by their keys
        self._handovers: Timers[tuple[RecordKey, PeerId]] = Timers()

    # --- values -------------------------------------------------------------------------------------------------------

    def keep(
        self, verified: VerifiedRecord, now: float, giver: PeerId, prove: Callable[[], None] = lambda: None
    ) -> Refusal | None:
        """Hold a value that this peer gave until it expires. None if it is held; else why not.

        What is costly to check of it, `prove` does, which raises if it must not be taken. What is refused or here
        already does not need it.
        """
        if verified.forgotten <= self._wall(now):
            return Refusal("it has expired, by the clock here")
        result = self.store.judge(verified, now)
        if result is None:
            if not self._is_at_home(verified.record.key, now):
                return Refusal("")
            prove()
            result = self.store.put(verified, now)
        stored = self.store.get((verified.record.key, verified.publisher))
        if stored is None or result not in {StoreResult.NEW, StoreResult.KNOWN}:
            return self._why_not(result)
        if result is StoreResult.KNOWN:
            self.republished_by(giver, stored, now)
        else:
            self._measure(stored, now)
            self._turn_done(stored, now)
        return None

    def _why_not(self, result: StoreResult) -> Refusal:
        config = self._config
        match result:
            case StoreResult.KEY_FULL:
                reason = f"the key is full: {config.key_values} publishers have a value under it"
            case StoreResult.PUBLISHER_FULL:
                most = f"{config.publisher_values} values and {config.publisher_bytes} bytes"
                reason = f"its publisher has as much here as it may have: {most}"
            case StoreResult.OUTDATED:
                reason = "there is a newer value of its publisher: is its clock right?"
            case _:
                reason = f"the store is full: {config.stored_values} values and {config.stored_bytes} bytes"
        return Refusal(reason, full=result is StoreResult.KEY_FULL)

    def _is_at_home(self, key: PeerId, now: float) -> bool:
        return self._table.is_among(key, self._config.k * HOLDER_SLACK, now)

    def republished_by(self, peer: PeerId, stored: Stored, now: float) -> None:
        """This peer looks for the holders of a value right now: if it is one itself, we need not."""
        if _is_within(stored, peer):
            self._turn_done(stored, now, skipped=True)

    def publish(self, verified: VerifiedRecord, now: float) -> None:
        """Republish a value of ours from now on."""
        key = verified.record.key
        self._published[key] = verified
        self._published.move_to_end(key)
        self._own_turns.set(key, self._next_turn(now))
        if len(self._published) > self._config.publications:
            self._own_turns.cancel(self._published.popitem(last=False)[0])

    def published(self, key: PeerId) -> VerifiedRecord | None:
        """What we have published under this key, if we see to it."""
        return self._published.get(key)

    def held(self, key: PeerId, publisher: PeerId | None, now: float) -> Stored | None:
        """What we hold under this key, of one publisher or of the one that has had a value here for longest."""
        return self.store.first(key, now) if publisher is None else self.store.get((key, publisher))

    def disown(self, publisher: PeerId) -> None:
        """Hold nothing of this publisher any more."""
        for stored in [stored for stored in self.store if stored.verified.publisher == publisher]:
            self.store.remove(stored.record_key)

    def joined(self, now: float) -> None:
        """We have just come into the mesh: the values that we published before are to be found there soon."""
        for key in self._published:
            self._own_turns.set(key, now + SETTLING * self._rng.uniform(0.5, 1.5))

    # --- peers that come and go ---------------------------------------------------------------------------------------

    def around(self, came: Sequence[tuple[int, PeerId]], now: float) -> None:
        """These peers have come to be around us on the ring; so many lie between us and each.

        Each gets the values that it should hold from the peers next to it. Which those are is seen at their time: to
        look at all at once would take long, and who is next to us is easily said.
        """
        near = [peer for between, peer in came if between < HANDOVER_REACH]
        settled = now + SETTLING * self._rng.uniform(0.5, 1.5)
        for stored in self.store if near else ():
            for peer in near:
                if _is_within(stored, peer):
                    self._hand_over(stored.record_key, peer, settled)

    def _measure(self, stored: Stored, now: float) -> None:
        """Find out how near to the key a holder has to be."""
        key = stored.verified.record.key
        nearest = self._table.closest(key, self._config.k, now)
        stored.radius = xor_distance(nearest[-1], key) if len(nearest) == self._config.k else None

    def _hand_over(self, record_key: RecordKey, peer: PeerId, settled: float) -> None:
        """Hand it over then, or later if more wait; those under one key in the order in which they came here."""
        waiting = len(self._handovers)
        if waiting >= self._config.handovers:
            self.counts.handovers_dropped += 1
        else:
            self._handovers.set((record_key, peer), settled + waiting * HANDOVER_PACE)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When something is due."""
        timers = (self.store, self.store.turns, self._own_turns, self._handovers)
        return min(one.next_deadline() for one in timers)

    def expire(self, now: float) -> list[Upkeep]:
        """Forget what has expired; what is to be handed over and republished now."""
        self.store.expire(now)
        upkeep: list[Upkeep] = []
        for record_key, peer in self._handovers.pop_due(now):
            stored = self.store.get(record_key)
            if stored is None or self._table.is_silent(peer, now):
                continue
            self._measure(stored, now)
            if _is_within(stored, peer):
                self.counts.handed_over += 1
                upkeep.append(HandOver(stored.verified, peer))
        for record_key in self.store.turns.pop_due(now):
            stored = self.store.get(record_key)
            if stored is not None:
                self._turn_done(stored, now)
                upkeep.append(self._republish(stored.verified))
        for key in self._own_turns.pop_due(now):
            if self._published[key].forgotten <= self._wall(now):
                del self._published[key]
            else:
                self._own_turns.set(key, self._next_turn(now))
                upkeep.append(self._republish(self._published[key]))
        return upkeep

    def stop(self) -> None:
        """Hand over and republish nothing any more."""
        self._handovers, self._own_turns, self.store.turns = Timers(), Timers(), Timers()

    def snapshot(self) -> dict[str, Any]:
        return {
            **asdict(self.counts),
            "published": len(self._published),
            "handovers": len(self._handovers),
            "turns": len(self.store.turns) + len(self._own_turns),
        }

    # --- republishing -------------------------------------------------------------------------------------------------

    def _next_turn(self, now: float) -> float:
        return now + self._config.republish * self._rng.uniform(0.75, 1.25)

    def _turn_done(self, stored: Stored, now: float, *, skipped: bool = False) -> None:
        """A peer has seen to a value just now, we or another holder: our next turn comes later."""
        self.counts.skipped += skipped
        self.store.turns.set(stored.record_key, self._next_turn(now))

    def _republish(self, verified: VerifiedRecord) -> Republish:
        self.counts.republished += 1
        return Republish(verified)

    def lacking(self, verified: VerifiedRecord, query: Query[Any], now: float) -> list[PeerId]:
        """The peers to be given a value, of the k nearest that a lookup has found: none if it found a newer one."""
        newer = query.newest
        if newer is not None and newer.record.timestamp > verified.record.timestamp:
            self.keep(newer, now, self._me)
            return []  # its turn comes
        key = verified.record.key
        nearest = query.lookup.closest_and_us
        stored = self.store.get((key, verified.publisher))
        if stored is not None and len(nearest) == self._config.k:
            stored.radius = xor_distance(nearest[-1], key)
        if stored is not None and not self._is_at_home(key, now):
            self.store.remove(stored.record_key)
        return [peer for peer in nearest if peer != self._me and peer not in query.holders]


def _is_within(stored: Stored, peer: PeerId) -> bool:
    """Whether this peer is near enough to a value to hold it."""
    return stored.radius is None or xor_distance(peer, stored.verified.record.key) <= stored.radius
