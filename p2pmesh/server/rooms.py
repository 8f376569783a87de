"""Who is in a room, in the order of their ids, and what speaks for each: whom to name to a joiner.

Ids stand in sorted lists. All ids with a common prefix are neighbours in one, so the k XOR-nearest to any point are
found by narrowing one range by bisection, about k log n steps, whatever the room's size.

Anybody can fill a room with made-up ids (Douceur, The Sybil attack, 2002). What they can't have is what takes time, and
what others see of them: so a room remembers its *elders*, those that were seen to answer an offer, in the order in
which they first did, and never forgets one for another. Members of ours that leave offers unanswered and never answered
any are named last, with the unsigned; no network has more than `SHARE` places in a list while others would do; and some
are drawn by lot. An offer that nobody answers harms only those that never answered, so nobody can talk elders down.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from itertools import islice

from attrs import define, field

from p2pmesh.keyspace import ID_DIGITS, PeerId

ELDERS = 64
"""Members remembered as elders: enough to draw from, and so many that each has little to do."""
ELDERS_OF_NETWORK = 16
"""Of these, from one network: who comes first with one machine leaves places for others."""
OLDEST = 16
"""Elders among which the first to be named is drawn: who floods an old mesh comes too late to be one."""
SHARE = 2
"""Members of one network in a list, its two neighbours on the ring aside, as long as there are others."""
PROMPT = 5.0
"""Seconds for an answer: gathering addresses takes below one, and the way by the service a fraction of that."""
IGNORED = 2
"""Clients whose offers a member may leave unanswered before it is doubted: one may have made an offer that can't be
answered."""
AWAITED = 16
"""Offers remembered for each member until it answers."""
DRAWN = 16
"""Members that are looked at for one that is drawn by lot."""


@define(eq=False)
class Member:
    """A member of a room."""

    client: int
    network: str
    """Where its address is from: a /24 or a /64."""
    is_signed: bool = False
    has_answered: bool = False
    awaited: OrderedDict[PeerId, float] = field(factory=OrderedDict)
    """Who made it an offer, and when, since it answered one."""

    def ignored(self, now: float) -> int:
        """Offers that it should have answered by now."""
        return sum(since + PROMPT <= now for since in self.awaited.values())

    def is_doubtful(self, now: float) -> bool:
        """Whether it never answered anybody, though it was asked."""
        return not self.has_answered and self.ignored(now) >= IGNORED


@define(frozen=True)
class Named:
    """Whom a joiner is told of, each once, the best first of each kind."""

    elders: tuple[PeerId, ...] = ()
    lot: tuple[PeerId, ...] = ()
    nearest: tuple[PeerId, ...] = ()
    ring: tuple[PeerId, ...] = ()

    def all(self, *, original: bool) -> tuple[PeerId, ...]:
        """In the order in which to try them: a peer of ours asks its successor first anyway, as far as it is named."""
        proven, others = (*self.elders, *self.lot), (*self.nearest, *self.ring)
        return (*others, *proven) if original else (*proven, *others)


class Room:
    """The members of one room."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._members: dict[PeerId, Member] = {}
        self._all = _Ids()
        self._likely = _Ids()
        """Signed, and not doubted."""
        self._elders: dict[PeerId, Member] = {}
        """The longest ago first."""

    def __len__(self) -> int:
        return len(self._members)

    @property
    def elders(self) -> Collection[PeerId]:
        """Those that answered, the longest ago first."""
        return self._elders

    def client(self, peer: str) -> int | None:
        """The client that holds this id; None for ids that are not here."""
        member = self._members.get(PeerId(peer))
        return None if member is None else member.client

    def holder(self, peer: PeerId) -> int:
        """The client that holds this id, which is here."""
        return self._members[peer].client

    def put(self, peer: PeerId, member: Member) -> None:
        """Let a member hold this id, instead of any other."""
        if peer in self._members:
            self.remove(peer)
        self._members[peer] = member
        self._all.add(peer)
        if member.is_signed:
            self._likely.add(peer)

    def signed(self, peer: PeerId) -> None:
        """This member has signed its join."""
        member = self._members[peer]
        if not member.is_signed:
            member.is_signed = True
            self._likely.add(peer)

    def remove(self, peer: PeerId) -> None:
        """Take a member out."""
        del self._members[peer]
        self._all.discard(peer)
        self._likely.discard(peer)
        self._elders.pop(peer, None)

    # --- what is seen of them -----------------------------------------------------------------------------------------

    def offered(self, peer: PeerId, by: PeerId, now: float) -> None:
        """A member is made an offer."""
        awaited = self._members[peer].awaited
        awaited.setdefault(by, now)
        if len(awaited) > AWAITED:
            awaited.popitem(last=False)

    def answered(self, peer: PeerId, to: PeerId) -> None:
        """A member answers an offer; if none was made to it, that says nothing."""
        member = self._members[peer]
        if to not in member.awaited:
            return
        member.awaited.clear()
        member.has_answered = True
        if member.is_signed:
            self._likely.add(peer)
        of_network = sum(elder.network == member.network for elder in self._elders.values())
        if len(self._elders) < ELDERS and of_network < ELDERS_OF_NETWORK:
            self._elders.setdefault(peer, member)

    def rejected(self, peer: PeerId, to: PeerId) -> None:
        """A member turns an offer down: it is there, but that helps nobody in."""
        self._members[peer].awaited.pop(to, None)

    # --- whom to name -------------------------------------------------------------------------------------------------

    def name_to(
        self, peer: PeerId, count: int, now: float, rng: random.Random, *, original: bool, told: Collection[PeerId] = ()
    ) -> Named:
        """Whom to name to a joiner: its neighbours on the ring, and `count` others: elders, nearest, and one by lot.

        Args:
          peer: its id.
          count: how many.
          now: the time.
          rng: for what is drawn.
          original: whether the joiner is of the original, which knows no signatures.
          told: whom it was told of before: others are named, where there are others.
        """
        ids = self._all if original else self._trusted(peer, count, now)
        members, picked = self._members, _Picked(self._members, told, without=peer)
        ring = picked.take(ids.ring(peer), 2, freely=True)
        elders = [one for one, member in self._elders.items() if original or member.is_signed]
        later = sorted(_shuffled(elders[OLDEST:], rng), key=lambda one: members[one].ignored(now))
        proven = picked.take([*_shuffled(elders[:OLDEST], rng), *later], count // 2)
        drawn = self._drawn(now, rng, original=original)
        lot = picked.take(drawn, min(1, count - len(proven)))
        near = sorted(ids.nearest(peer, 4 * count), key=lambda one: members[one].is_doubtful(now))
        near += self._all.nearest(peer, 4 * count)
        left = count - len(proven) - len(lot)
        nearest = picked.take(near, left)
        nearest += picked.take(drawn, left - len(nearest))
        nearest += picked.take([*elders, *near], left - len(nearest), freely=True)  # for want of others
        return Named(tuple(proven), tuple(lot), tuple(nearest), tuple(ring))

    def _trusted(self, peer: PeerId, count: int, now: float) -> _Ids:
        """Those that are likely to answer: all that are found not to, near this place, are taken out."""
        while True:
            near = dict.fromkeys((*self._likely.ring(peer), *self._likely.nearest(peer, 4 * count)))
            doubtful = [one for one in near if self._members[one].is_doubtful(now)]
            if not doubtful:
                return self._likely if len(self._likely) > (peer in self._likely) else self._all
            for one in doubtful:
                self._likely.discard(one)

    def _drawn(self, now: float, rng: random.Random, *, original: bool) -> list[PeerId]:
        drawn = dict.fromkeys(self._all.draw(rng) for _ in range(DRAWN if self._members else 0))
        members = self._members
        return sorted(drawn, key=lambda one: (members[one].is_doubtful(now), not (original or members[one].is_signed)))


class _Picked:
    """Members that are named, each once."""

    def __init__(self, members: dict[PeerId, Member], told: Collection[PeerId], *, without: PeerId) -> None:
        self._members = members
        self._told = told
        self._picked = {without}
        self._networks: Counter[str] = Counter()

    def take(self, peers: Iterable[PeerId], count: int, *, freely: bool = False) -> list[PeerId]:
        """The first of these; unless `freely`, none that was told of before, and of no network more than its share."""
        taken: list[PeerId] = []
        for peer in peers:
            if len(taken) >= count:
                break
            network = self._members[peer].network
            if peer in self._picked or not (freely or (peer not in self._told and self._networks[network] < SHARE)):
                continue
            taken.append(peer)
            self._picked.add(peer)
            self._networks[network] += not freely
        return taken


class _Ids:
    """Peer ids in their order."""

    def __init__(self) -> None:
        self._keys: list[int] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, peer: PeerId) -> bool:
        key = int(peer, 16)
        at = bisect_left(self._keys, key)
        return at < len(self._keys) and self._keys[at] == key

    def add(self, peer: PeerId) -> None:
        if peer not in self:
            insort(self._keys, int(peer, 16))

    def discard(self, peer: PeerId) -> None:
        if peer in self:
            del self._keys[bisect_left(self._keys, int(peer, 16))]

    def draw(self, rng: random.Random) -> PeerId:
        return _id(rng.choice(self._keys))

    def nearest(self, peer: PeerId, count: int) -> list[PeerId]:
        """Those nearest to `peer` by XOR, without itself, the nearest first."""
        key = int(peer, 16)
        return [_id(other) for other in islice((one for one in self._nearest(key, count + 1) if one != key), count)]

    def ring(self, peer: PeerId) -> list[PeerId]:
        """Those next to `peer` on the ring: its successor and its predecessor, which may be the same one."""
        keys, key = self._keys, int(peer, 16)
        at = bisect_left(keys, key)
        here = at < len(keys) and keys[at] == key
        if len(keys) == here:
            return []
        return [_id(key) for key in dict.fromkeys((keys[(at + here) % len(keys)], keys[at - 1]))]

    def _nearest(self, key: int, count: int) -> list[int]:
        found: list[int] = []
        ranges = [(0, len(self._keys))]
        while ranges and len(found) < count:
            low, high = ranges.pop()
            if high - low <= count - len(found):
                found += sorted(self._keys[low:high], key=key.__xor__)
                continue
            # All ids of this range agree above the highest bit that differs, which parts them in a near and a far half.
            last = self._keys[high - 1]
            bit = (self._keys[low] ^ last).bit_length() - 1
            middle = bisect_left(self._keys, last >> bit << bit, low, high)
            halves = [(low, middle), (middle, high)]
            ranges += halves if key >> bit & 1 else reversed(halves)
        return found


def _id(key: int) -> PeerId:
    return PeerId(f"{key:0{ID_DIGITS}x}")


def _shuffled(peers: list[PeerId], rng: random.Random) -> list[PeerId]:
    return rng.sample(peers, len(peers))
