"""Lookups: the peers nearest to an id, asked step by step, nearer each time.

Maymounkov and Mazieres 2002, section 2.3. A `Lookup` keeps the peers it has heard of in the order of their distance,
and asks from the front: alpha at a time while answers bring nearer peers, and all that are left of the k nearest once
they don't. It is done when the k nearest of those that do answer have answered. Liars can't hold it up: what they name
is only asked, never believed. An id that somebody made up does not answer and drops out, and a peer that names many
such ids is not listened to any more. The number of requests is bounded whatever is said. Ids that were ground to be
near the target are too many to be there by chance, and do not keep others out (`routing_table.spread`). While answers
bring nearer peers, the alpha requests go along as many paths, each of a contact of ours and of those named on it, that
share no peer (S/Kademlia: Baumgart and Mies, "S/Kademlia: A Practicable Approach Towards Secure Key-Based Routing",
2007): a liar holds up its own only.

A `Query` is a lookup with what it is for and the values it found. It begins at the nearest contacts that we know and,
by a route to whichever peer is next to the target on the ring, at its very place: there the peers know their
neighbourhood, however old our contacts are.

In: contacts, answers and their absence, the time. Out: the peers to ask, whether it is done, the queries that may
begin or have taken too long.
State: of a query at most `MOST_ASKED` peers asked and k times as many heard of; `KademliaConfig.lookups` queries of
the application and `BACKGROUND_QUERIES` others at once, the rest in line.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Container, Iterator, Sequence
from enum import Enum, auto
from heapq import merge
from typing import Generic, TypeVar

from attrs import asdict, define, field
from msgspec import Struct

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.kademlia.records import BadRecord, VerifiedRecord, check_record, check_signature
from p2pmesh.protocols.kademlia.routing_table import CROWD, RoutingTable, spread
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import DhtRecord, FindNode, FindValue, NodesFound

G = TypeVar("G")

LIES = 4
"""Dead peers named in excess of living ones until a peer is not listened to. Of honest peers, one that names as many
right after a fifth of the mesh has died is one in a thousand, and others name the same."""
MOST_ASKED = 60
MOST_ASKED_PER_K = 5
"""Peers that one lookup asks at most, whichever is more: an honest one asks the k nearest, those on the way and the
dead."""
RESERVE = 3
"""Times k contacts that a lookup begins with: it asks the nearest, and the others if many of those turn out to be
gone."""
BACKGROUND_QUERIES = 4
"""Queries for upkeep at once: enough for thousands of values an hour."""


class _State(Enum):
    FRESH = auto()
    ASKED = auto()
    ANSWERED = auto()
    FAILED = auto()


@define(eq=False)
class _Candidate:
    peer: PeerId
    state: _State = _State.FRESH
    sources: list[PeerId] = field(factory=list)
    """Peers that named it; none if it is a contact of our own."""
    paths: set[int] = field(factory=set)
    """Paths on which it was named."""
    asked_on: int = -1


class Lookup:
    """One lookup: says which peers to ask, and takes what they answer."""

    def __init__(self, target: PeerId, me: PeerId, k: int, alpha: int, density: float = 0.0) -> None:
        self.target = target
        self.density = density
        """See `RoutingTable.density`."""
        self._goal = int(target, 16)
        self._me = me
        self._k = k
        self._alpha = alpha
        self._most = max(MOST_ASKED_PER_K * k, MOST_ASKED)
        self._candidates: dict[PeerId, _Candidate] = {}
        self._order: list[tuple[int, PeerId]] = []
        self._trust: dict[PeerId, int] = {}
        """For each source, living peers less dead ones."""
        self.asks_afar: bool = False
        """Whether one path leaves out the very nearest, who may all be one liar."""
        self._contacts = 0
        self.asked: int = 0
        """Peers asked so far."""
        self._stale = 0
        """Answers in a row that brought nothing nearer."""

    # --- what comes in ------------------------------------------------------------------------------------------------

    def add_contact(self, peer: PeerId) -> None:
        """A peer that we know ourselves."""
        self._add(peer)

    def answered(self, peer: PeerId, named: Sequence[PeerId] = ()) -> None:
        """This peer has answered, and named others."""
        if peer not in self._candidates:
            self._add(peer)
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.state is _State.ANSWERED:
            return  # we ourselves, or it has answered before
        candidate.state = _State.ANSWERED
        self._judge(candidate, 1)
        nearest = self._order[0][0]
        for other in named[: self._k]:
            self._add(other, peer)
        self._stale = 0 if self._order[0][0] < nearest else self._stale + 1

    def failed(self, peer: PeerId) -> None:
        """This peer has not answered."""
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.state in {_State.ANSWERED, _State.FAILED}:
            return
        candidate.state = _State.FAILED
        self._judge(candidate, -1)

    def _add(self, peer: PeerId, source: PeerId | None = None) -> None:
        if peer == self._me:
            return
        candidate = self._candidates.get(peer)
        if candidate is None:
            candidate = self._candidates[peer] = _Candidate(peer)
            insort(self._order, (int(peer, 16) ^ self._goal, peer))
            if source is not None:
                candidate.sources.append(source)
        elif source is None:
            candidate.sources.clear()
        elif candidate.sources:
            candidate.sources.append(source)
        if source is None:
            candidate.paths.add(self._contacts % self._alpha)
            self._contacts += 1
        elif source in self._candidates:
            candidate.paths |= self._candidates[source].paths

    def _judge(self, candidate: _Candidate, merit: int) -> None:
        for source in candidate.sources:
            self._trust[source] = self._trust.get(source, 0) + merit

    # --- what follows -------------------------------------------------------------------------------------------------

    def ask(self) -> list[PeerId]:
        """The peers to ask now, which count as asked."""
        near = self._near()
        busy = [candidate.asked_on for candidate in near if candidate.state is _State.ASKED]
        fresh = [candidate for candidate in near if candidate.state is _State.FRESH]
        if self._stale < self._alpha:
            free = [path for path in range(self._alpha) if path not in busy]
            chosen = self._one_each(near, fresh, free[: max(self._alpha - len(busy), 0)])
        else:
            chosen = fresh[: self._k - len(busy)]
        chosen = chosen[: max(self._most - self.asked, 0)]
        for candidate in chosen:
            candidate.state = _State.ASKED
        self.asked += len(chosen)
        return [candidate.peer for candidate in chosen]

    def _one_each(self, near: list[_Candidate], fresh: list[_Candidate], paths: list[int]) -> list[_Candidate]:
        """The nearest on each of these paths; where one has none left, the nearest of all."""
        chosen: list[_Candidate] = []
        for path in paths:
            left = [candidate for candidate in fresh if candidate not in chosen]
            if self.asks_afar and path == self._alpha - 1:
                left = [candidate for candidate in near[CROWD:] if candidate in left] or left
            one = next((candidate for candidate in left if path in candidate.paths), next(iter(left), None))
            if one is not None:
                one.asked_on = path
                chosen.append(one)
        return [candidate for candidate in fresh if candidate in chosen]

    @property
    def is_done(self) -> bool:
        """Whether no peer is left to ask or to wait for."""
        spent = self.asked >= self._most
        return not any(
            candidate.state is _State.ASKED or (candidate.state is _State.FRESH and not spent)
            for candidate in self._near()
        )

    def is_afar(self, peer: PeerId) -> bool:
        """Whether a peer is not one of the very nearest, or there are no others."""
        near = [candidate.peer for candidate in self._near()]
        return len(near) <= CROWD or peer not in near[:CROWD]

    @property
    def is_full(self) -> bool:
        """Whether k peers have answered."""
        return len(self.closest) == self._k

    @property
    def closest(self) -> list[PeerId]:
        """The nearest peers that have answered, nearest first, at most k, as `spread` has them."""
        return spread(self._answered(), self._k, self.density)

    @property
    def closest_and_us(self) -> list[PeerId]:
        """The k nearest peers likewise, ourselves among them if we are."""
        ours = (int(self._me, 16) ^ self._goal, self._me)
        return spread(merge(self._answered(), [ours]), self._k, self.density)

    def _answered(self) -> Iterator[tuple[int, PeerId]]:
        return ((far, peer) for far, peer in self._order if self._candidates[peer].state is _State.ANSWERED)

    def _near(self) -> list[_Candidate]:
        """The k nearest that have not failed, as `spread` has them, without those that only liars name."""
        living = ((far, peer) for far, peer in self._order if not self._is_out(self._candidates[peer]))
        return [self._candidates[peer] for peer in spread(living, self._k, self.density)]

    def _is_out(self, candidate: _Candidate) -> bool:
        fresh = candidate.state is _State.FRESH
        return candidate.state is _State.FAILED or (fresh and self._is_doubtful(candidate))

    def _is_doubtful(self, candidate: _Candidate) -> bool:
        sources = candidate.sources
        return bool(sources) and all(self._trust.get(source, 0) <= -LIES for source in sources)


class WantedValue(Struct, frozen=True):
    """What a value must be to be found."""

    publisher: PeerId | None = None
    """The peer that must have signed it; None for any."""
    newer_than: int | None = None
    """The version that we have."""
    quorum: int | None = None
    """The query ends early once so many peers gave the newest value of the publisher, or, if any will do, once so many
    more put one publisher first than any other; None for never."""
    held: VerifiedRecord | None = None
    """What we would give ourselves: a vote like others."""
    all_publishers: bool = False
    """Whether all publishers are wanted."""


@define(eq=False)
class Query(Generic[G]):
    """One lookup, for peers or for a value, and what it is for."""

    lookup: Lookup
    goal: G
    """What is to be done with what it finds: the core's business."""
    wanted: WantedValue | None
    """None if it is for peers only."""
    is_background: bool
    """Whether it is upkeep: those wait for each other, and no call of the application waits for them."""
    found: dict[PeerId, VerifiedRecord] = field(factory=dict)
    """Values, by the peers that gave them."""
    named: Counter[PeerId] = field(factory=Counter)
    """Publishers, by how many peers named them."""
    holders: list[PeerId] = field(factory=list)
    """Peers that say they have the version that we have."""
    older_until: float = 0.0
    """Until when an older version than ours could be brought back, as peers say; in seconds since 1970."""
    requests: dict[int, None] = field(factory=dict)
    """Under way, by their numbers."""
    refusal: str = ""
    """Why a peer would not answer, if one would not."""
    is_entering: bool = False
    """Whether the request to whichever peer is next to the target is out."""

    @property
    def is_refused(self) -> bool:
        """Whether all that anybody has said is that he would not answer."""
        return bool(self.refusal) and not self.lookup.closest

    @property
    def newest(self) -> VerifiedRecord | None:
        """The newest value that was found."""
        return max(self.found.values(), key=_version, default=None)

    def ranked(self, held: VerifiedRecord | None, own: VerifiedRecord | None) -> list[VerifiedRecord]:
        """The newest record of each publisher, that which most peers put first in front.

        We are one of them, with what we hold; what we published is no vote. A liar has one vote, and ties go by the
        publisher's id: no clock has a say.
        """
        records = [*self.found.values(), *([] if held is None else [held])]
        votes = Counter(verified.publisher for verified in records)
        known = sorted([*records, *([] if own is None else [own])], key=_version)
        newest = {verified.publisher: verified for verified in known}
        return sorted(newest.values(), key=lambda verified: (-votes[verified.publisher], verified.publisher))

    @property
    def is_done(self) -> bool:
        wanted = self.wanted
        if wanted is not None and wanted.quorum is not None and self._lead(wanted.held) >= wanted.quorum:
            # The very nearest may all be one liar, who gives what was replaced long ago.
            is_enough = wanted.held is not None or wanted.quorum == 1 or any(map(self.lookup.is_afar, self.found))
        else:
            is_enough = False
        return is_enough or (self.lookup.is_done and (self.lookup.is_full or not self.is_entering))

    def _lead(self, held: VerifiedRecord | None) -> int:
        """How many more peers put the publisher first that most do than any other, with the newest of his values."""
        records = [*self.found.values(), *([] if held is None else [held])]
        newest = {verified.publisher: verified.record for verified in sorted(records, key=_version)}
        votes = Counter(one.publisher for one in records if one.record.timestamp == newest[one.publisher].timestamp)
        most = [count for _, count in votes.most_common(2)]
        return most[0] - sum(most[1:]) if most else 0

    @property
    def request(self) -> FindNode | FindValue:
        """What it asks each peer."""
        target, wanted = self.lookup.target, self.wanted
        if wanted is None:
            return FindNode(target=target)
        return FindValue(
            key=target,
            publisher=wanted.publisher,
            newer_than=wanted.newer_than,
            all_publishers=wanted.all_publishers,
        )


def _version(verified: VerifiedRecord) -> tuple[int, PeerId]:
    return verified.record.timestamp, verified.publisher


@define
class QueryCounts:
    """Lookups, since the start."""

    done: int = 0
    requests: int = 0
    bad_records: int = 0
    """Values in answers that were none, or not those asked for."""


class QueryPool(Generic[G]):
    """All lookups of one peer: those under way, and those that wait for their turn."""

    def __init__(
        self,
        me: PeerId,
        config: KademliaConfig,
        table: RoutingTable,
        wall: WallClock,
        network: bytes,
        blocked: Container[PeerId] = frozenset(),
    ) -> None:
        self.counts: QueryCounts = QueryCounts()
        self._me = me
        self._config = config
        self._table = table
        self._wall = wall
        self._network = network
        self._blocked = blocked
        self._running: dict[Query[G], None] = {}
        self._waiting: deque[Query[G]] = deque()
        self._background: deque[Query[G]] = deque()
        self._limits: Timers[Query[G]] = Timers()

    def __contains__(self, query: Query[G]) -> bool:
        return query in self._running

    def add(
        self, target: PeerId, goal: G, wanted: WantedValue | None = None, *, is_background: bool = False
    ) -> Query[G]:
        """Put a query in line."""
        lookup = Lookup(target, self._me, self._config.k, self._config.alpha)
        query = Query(lookup, goal, wanted, is_background)
        (self._background if is_background else self._waiting).append(query)
        return query

    def start_next(self, now: float) -> Query[G] | None:
        """Begin the next query in line, if there may be one more.

        Its entry is to be requested, by a route to whichever peer is nearest, then what its lookup asks for.
        """
        background = sum(query.is_background for query in self._running)
        if self._background and background < BACKGROUND_QUERIES:
            query = self._background.popleft()
        elif self._waiting and len(self._running) - background < self._config.lookups:
            query = self._waiting.popleft()
        else:
            return None
        self._running[query] = None
        query.lookup.density = self._table.density
        query.lookup.asks_afar = query.wanted is not None and query.wanted.quorum is not None
        self._limits.set(query, now + self._config.lookup_timeout)
        for contact in self._table.closest(query.lookup.target, RESERVE * self._config.k, now):
            query.lookup.add_contact(contact)
        return query

    def sent(self, query: Query[G], number: int, *, is_entry: bool) -> None:
        """A request of this query is under way."""
        query.requests[number] = None
        query.is_entering = query.is_entering or is_entry
        self.counts.requests += 1

    def take(self, query: Query[G], peer: PeerId, answer: NodesFound | None, now: float) -> None:
        """What a peer has answered; None for nothing."""
        if answer is None:
            query.lookup.failed(peer)
            return
        query.lookup.answered(peer, [other for other in answer.peers if not self._table.is_silent(other, now)])
        wanted = query.wanted
        if wanted is None:
            return
        if answer.same:
            query.holders.append(peer)
        query.named.update(set(answer.publishers))
        query.older_until = max(query.older_until, answer.older_until / 1000)
        if answer.record is None:
            return
        try:
            query.found[peer] = self._verified(answer.record, query, wanted, now)
        except BadRecord:
            self.counts.bad_records += 1

    def _verified(self, record: DhtRecord, query: Query[G], wanted: WantedValue, now: float) -> VerifiedRecord:
        for known in query.found.values():
            if known.record == record:
                return known  # a signature is checked once
        verified = check_record(record, self._wall(now), self._config, self._blocked)
        if record.key != query.lookup.target or wanted.publisher not in {None, verified.publisher}:
            raise BadRecord("a value of another key or publisher")
        check_signature(record, self._network)
        return verified

    def end(self, query: Query[G]) -> list[int]:
        """End a query; the requests that are not needed any more."""
        if query in self._running:
            self.counts.done += 1
        return self.cancel(query)

    def cancel(self, query: Query[G]) -> list[int]:
        """Forget a query, under way or in line; the requests that are not needed any more."""
        for queue in (self._waiting, self._background):
            if query in queue:
                queue.remove(query)
        if query not in self._running:
            return []
        del self._running[query]
        self._limits.cancel(query)
        requests = list(query.requests)
        query.requests.clear()
        return requests

    def cancel_all(self) -> None:
        """Forget all of them."""
        self._waiting.clear()
        self._background.clear()
        for query in list(self._running):
            self.cancel(query)

    def next_deadline(self) -> float:
        """When a query has taken too long."""
        return self._limits.next_deadline()

    def expire(self, now: float) -> list[Query[G]]:
        """Queries that have taken too long: they end with what they have."""
        return self._limits.pop_due(now)

    def snapshot(self) -> dict[str, int]:
        waiting = len(self._waiting) + len(self._background)
        return {"running": len(self._running), "waiting": waiting, **asdict(self.counts)}
