"""Kademlia's routing table: up to k contacts for each power of two of XOR distance, and peers to replace them.

Maymounkov and Mazieres 2002, sections 2.2 and 4.1. A peer is a contact once it has spoken itself: by a link, a
request or an answer. What others say of it is a hint for a lookup, and nothing else, so made-up ids never get in
here. In each bucket those heard from least recently stand first: they are the ones to be pinged when a newcomer finds
it full, and the newcomer waits in a replacement cache. Old contacts that answer stay, because a peer that has been
there for long will be there for longer.

In: peers that spoke, failed to answer or are gone. Out: the contacts nearest to an id, a contact to ping, buckets to
refresh; from `Neighbourhood`, when to look ourselves up again.
State: k contacts and `KademliaConfig.replacements` for each of 160 buckets, `KademliaConfig.silent` silent peers, and
the ids of the k nearest.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from attrs import define, field

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import ID_BITS, ID_DIGITS, RING_SIZE, PeerId, xor_distance
from p2pmesh.protocols.util.limits import LruTable

FAILURES = 2
"""Unanswered requests in a row until a contact goes, if no peer waits for its place: one answer may just be lost."""
DOUBTED_AFTER = 120.0
"""Seconds of silence after which a contact may be pinged for the sake of a newcomer."""
SILENCE_REMEMBERED = 60.0
"""Seconds for which a peer that didn't answer is left out of what others name."""


@define(eq=False)
class Contact:
    """A peer that has spoken to us."""

    peer_id: PeerId
    number: int
    seen: float
    failures: int = 0


@define(eq=False)
class _Bucket:
    contacts: OrderedDict[PeerId, Contact] = field(factory=OrderedDict)
    """Those heard from least recently stand first."""
    waiting: OrderedDict[PeerId, Contact] = field(factory=OrderedDict)
    """The replacement cache: the peer heard from last stands last, and gets the next free place."""
    refreshed: float = 0.0


class RoutingTable:
    """The contacts of one peer.

    Bucket number i holds peers at distances from 2**i to 2**(i + 1) - 1, so each is half of what is left of the id
    space.
    """

    def __init__(self, me: PeerId, config: KademliaConfig) -> None:
        self._me = int(me, 16)
        self._k = config.k
        self._most_waiting = config.replacements
        self._buckets: dict[int, _Bucket] = {}
        self._silent: LruTable[float] = LruTable(config.silent)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self._buckets.get(self.index(peer))
        return bucket is not None and peer in bucket.contacts

    def __iter__(self) -> Iterator[PeerId]:
        for index in sorted(self._buckets):
            yield from self._buckets[index].contacts

    def index(self, peer: PeerId) -> int:
        """The number of the bucket that this id belongs in; -1 for our own."""
        return (self._me ^ int(peer, 16)).bit_length() - 1

    # --- which peers are there ----------------------------------------------------------------------------------------

    def heard(self, peer: PeerId, now: float) -> bool:
        """This peer has spoken to us; whether it is new to us."""
        self._silent.pop(peer)
        number = int(peer, 16)
        index = (self._me ^ number).bit_length() - 1
        if index < 0:
            return False
        bucket = self._buckets.get(index)
        if bucket is None:
            bucket = self._buckets[index] = _Bucket(refreshed=now)
        contact = bucket.contacts.get(peer)
        if contact is not None:
            contact.seen, contact.failures = now, 0
            bucket.contacts.move_to_end(peer)
            return False
        contact = bucket.waiting.pop(peer, None)
        is_new = contact is None
        contact = contact or Contact(peer, number, now)
        contact.seen = now
        if len(bucket.contacts) < self._k:
            bucket.contacts[peer] = contact
            self._size += 1
            return is_new
        bucket.waiting[peer] = contact
        if len(bucket.waiting) > self._most_waiting:
            bucket.waiting.popitem(last=False)
        return is_new

    def in_doubt(self, peer: PeerId, now: float) -> PeerId | None:
        """The contact to ping because this peer waits for a place: the one silent longest, if that is long."""
        bucket = self._buckets.get(self.index(peer))
        if bucket is None or peer not in bucket.waiting:
            return None
        oldest = next(iter(bucket.contacts.values()))
        return oldest.peer_id if oldest.seen <= now - DOUBTED_AFTER else None

    def failed(self, peer: PeerId, now: float) -> bool:
        """This peer has not answered; whether it was a contact and is none any more."""
        bucket = self._buckets.get(self.index(peer))
        contact = None if bucket is None else bucket.contacts.get(peer)
        if bucket is None or contact is None:
            if bucket is not None:
                bucket.waiting.pop(peer, None)
            self._silent.put(peer, now + SILENCE_REMEMBERED)
            return False
        contact.failures += 1
        if contact.failures < FAILURES and not bucket.waiting:
            return False
        return self.remove(peer, now)

    def remove(self, peer: PeerId, now: float) -> bool:
        """This peer is gone; whether it was a contact. The last to wait for its place gets it."""
        self._silent.put(peer, now + SILENCE_REMEMBERED)
        index = self.index(peer)
        bucket = self._buckets.get(index)
        if bucket is None:
            return False
        bucket.waiting.pop(peer, None)
        if bucket.contacts.pop(peer, None) is None:
            return False
        self._size -= 1
        if bucket.waiting:
            newest, contact = bucket.waiting.popitem()
            bucket.contacts[newest] = contact
            self._size += 1
        elif not bucket.contacts:
            del self._buckets[index]
        return True

    def is_silent(self, peer: PeerId, now: float) -> bool:
        """Whether it has not answered lately."""
        until = self._silent.get(peer)
        return until is not None and until > now

    def without_silent(self, peers: Sequence[PeerId], now: float) -> Sequence[PeerId]:
        """These peers but for those that have not answered lately."""
        if not len(self._silent):
            return peers
        return [peer for peer in peers if not self.is_silent(peer, now)]

    # --- which peers are near -----------------------------------------------------------------------------------------

    def closest(self, target: PeerId, count: int, *, without: PeerId | None = None) -> list[PeerId]:
        """The contacts nearest to an id, nearest first; those that failed to answer last time are left out."""
        goal = int(target, 16)
        found: list[PeerId] = []
        for index in self._nearest_first(goal):
            contacts = self._buckets[index].contacts.values()
            ranked = sorted((contact.number ^ goal, contact.peer_id) for contact in contacts if contact.failures == 0)
            found += [peer for _, peer in ranked if peer != without]
            if len(found) >= count:
                break
        return found[:count]

    def _nearest_first(self, goal: int) -> list[int]:
        """The buckets in the order of their distance from an id.

        Where our distance from it has a one, the contacts of that bucket have a zero and are nearer than we are, the
        more so the higher it is; where it has a zero they are farther, the less so the lower it is.
        """
        distance = self._me ^ goal
        ones = [index for index in self._buckets if distance >> index & 1]
        zeros = [index for index in self._buckets if not distance >> index & 1]
        return sorted(ones, reverse=True) + sorted(zeros)

    def nearer(self, target: PeerId) -> int:
        """How many contacts are nearer to an id than we are."""
        goal = int(target, 16)
        distance = self._me ^ goal
        return sum(len(bucket.contacts) for index, bucket in self._buckets.items() if distance >> index & 1)

    # --- refreshing ---------------------------------------------------------------------------------------------------

    def touch(self, target: PeerId, now: float) -> None:
        """Something was looked up in the bucket of this id."""
        bucket = self._buckets.get(self.index(target))
        if bucket is not None:
            bucket.refreshed = now

    def stale(self, before: float) -> list[int]:
        """Buckets in which nothing was looked up since then; farthest first, without those that hold our k nearest.

        To look ourselves up is to refresh the latter.
        """
        inner = self._neighbourhood()
        return [i for i in sorted(self._buckets, reverse=True) if i > inner and self._buckets[i].refreshed <= before]

    def thin(self) -> int | None:
        """The nearest bucket that is not half full, beyond those that hold our k nearest; None if there is none."""
        for index in range(self._neighbourhood() + 1, ID_BITS):
            bucket = self._buckets.get(index)
            if bucket is None or len(bucket.contacts) < self._k // 2:
                return index
        return None

    def _neighbourhood(self) -> int:
        """The outermost bucket that one of our k nearest is in; the outermost of all if there are fewer contacts."""
        count = 0
        for index in sorted(self._buckets):
            count += len(self._buckets[index].contacts)
            if count >= self._k:
                return index
        return ID_BITS - 1

    def random_id(self, index: int, rng: random.Random) -> PeerId:
        """An id in a bucket."""
        distance = 1 << index | rng.getrandbits(index) if index else 1
        return PeerId(f"{self._me ^ distance:0{ID_DIGITS}x}")

    def snapshot(self) -> dict[str, object]:
        """How full the buckets are, the nearest first, by the bits that their peers share with us."""
        return {
            "contacts": self._size,
            "buckets": {str(ID_BITS - 1 - i): len(self._buckets[i].contacts) for i in sorted(self._buckets)},
            "replacements": sum(len(bucket.waiting) for bucket in self._buckets.values()),
        }


class Neighbourhood:
    """The k nearest peers: when to look for them again.

    Soon after the first link, again after a minute, then after twice as long each time for as long as nothing has
    changed among them, and sooner once one of them comes or goes.
    """

    def __init__(self, me: PeerId, config: KademliaConfig, rng: random.Random, table: RoutingTable) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._table = table
        self._nearest: frozenset[PeerId] = frozenset()
        self._radius = RING_SIZE  # the distance of the k-th nearest when we last looked
        self._interval = config.refresh_first
        self._next_look = 0.0

    @property
    def is_unknown(self) -> bool:
        """Whether we have never found any peer."""
        return not self._nearest

    def linked(self, now: float) -> float:
        """There is a first link: when to look."""
        self._interval = self._config.refresh_first
        self._next_look = now + self._config.join_lookup * self._rng.uniform(0.5, 1.5)
        return self._next_look

    def looked(self, now: float) -> float:
        """We have looked ourselves up: when to look again."""
        ranked = self._table.closest(self._me, self._config.k)
        nearest = frozenset(ranked)
        self._radius = xor_distance(self._me, ranked[-1]) if len(ranked) == self._config.k else RING_SIZE
        if not self.is_unknown:
            is_same = nearest == self._nearest
            self._interval = min(2 * self._interval, self._config.refresh) if is_same else self._restless
        self._nearest = nearest
        self._next_look = now + self._interval * self._rng.uniform(0.75, 1.25)
        return self._next_look

    def changed(self, peer: PeerId, now: float) -> float | None:
        """This peer came or went: when to look, if that is sooner than planned because it is one of the k nearest."""
        soon = now + self._restless * self._rng.uniform(0.75, 1.25)
        if not self._nearest or soon >= self._next_look or xor_distance(self._me, peer) > self._radius:
            return None
        self._interval = self._restless
        self._next_look = soon
        return soon

    @property
    def _restless(self) -> float:
        """Seconds between looks while the neighbourhood changes."""
        return min(2 * self._config.refresh_first, self._config.refresh)
