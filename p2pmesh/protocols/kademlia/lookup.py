"""One iterative lookup: who is nearest to an id, asked step by step, nearer each time.

It keeps the peers it has heard of in the order of their distance, and asks from the front: alpha at a time while answers
bring nearer peers, and all that are left of the k nearest once they don't (Maymounkov and Mazieres 2002, section 2.3). It is
done when the k nearest of those that do answer have answered.

Liars can't hold it up. What they name is only asked, never believed: an id that somebody made up does not answer and drops
out, and who names many such ids is not listened to any more. The number of requests is bounded whatever is said.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from attrs import define, field

from p2pmesh.keyspace import PeerId

LIES = 4
"""So many more dead peers than living ones, and who named them is not listened to. Of peers that are honest, one that names
as many right after a fifth of the mesh has died is one in a thousand, and others name the same."""


class _State(Enum):
    FRESH = auto()
    ASKED = auto()
    SLOW = auto()
    ANSWERED = auto()
    FAILED = auto()


_WAITS = (_State.ASKED, _State.SLOW)


@define(eq=False)
class _Candidate:
    peer: PeerId
    state: _State = _State.FRESH
    sources: list[PeerId] = field(factory=list)
    """Who named it; nobody if it is a contact of our own."""


class Lookup:
    """A lookup in progress: says whom to ask, and takes what they answer."""

    def __init__(self, target: PeerId, me: PeerId, k: int, alpha: int) -> None:
        self.target = target
        self._goal = int(target, 16)
        self._me = me
        self._k = k
        self._alpha = alpha
        self._most = max(5 * k, 60)
        self._candidates: dict[PeerId, _Candidate] = {}
        self._order: list[tuple[int, PeerId]] = []
        self._trust: dict[PeerId, int] = {}
        """For each source, living peers less dead ones."""
        self._asked = 0
        self._stale = 0
        """Answers in a row that brought nothing nearer."""

    # --- what comes in ------------------------------------------------------------------------------------------------

    def add_contact(self, peer: PeerId) -> None:
        """A peer that we know ourselves."""
        self._add(peer)

    def answered(self, peer: PeerId, named: Sequence[PeerId] = ()) -> None:
        """This peer has answered, and named others."""
        self._add(peer)
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.state is _State.ANSWERED:
            return  # ourselves, or more than was asked
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

    def slow(self, peer: PeerId) -> None:
        """This peer takes its time: another may be asked meanwhile."""
        candidate = self._candidates.get(peer)
        if candidate is not None and candidate.state is _State.ASKED:
            candidate.state = _State.SLOW

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

    def _judge(self, candidate: _Candidate, merit: int) -> None:
        for source in candidate.sources:
            self._trust[source] = self._trust.get(source, 0) + merit

    # --- what follows -------------------------------------------------------------------------------------------------

    def ask(self) -> list[PeerId]:
        """Whom to ask now; they count as asked."""
        near = list(self._near())
        busy = sum(candidate.state is _State.ASKED for candidate in near)
        room = min((self._alpha if self._stale < self._alpha else self._k) - busy, self._most - self._asked)
        chosen = [candidate for candidate in near if candidate.state is _State.FRESH][: max(room, 0)]
        for candidate in chosen:
            candidate.state = _State.ASKED
        self._asked += len(chosen)
        return [candidate.peer for candidate in chosen]

    @property
    def is_done(self) -> bool:
        """Whether there is nobody left to ask or to wait for."""
        spent = self._asked >= self._most
        return not any(
            candidate.state in _WAITS or (candidate.state is _State.FRESH and not spent) for candidate in self._near()
        )

    @property
    def is_full(self) -> bool:
        """Whether k peers have answered."""
        return len(self.closest) == self._k

    @property
    def asked(self) -> int:
        """How many were asked."""
        return self._asked

    @property
    def closest(self) -> list[PeerId]:
        """The nearest peers that have answered, nearest first, at most k."""
        found = []
        for _, peer in self._order:
            if self._candidates[peer].state is _State.ANSWERED:
                found.append(peer)
                if len(found) == self._k:
                    break
        return found

    def _near(self) -> Iterator[_Candidate]:
        """The k nearest that have not failed, without those whom only liars know."""
        count = 0
        for _, peer in self._order:
            candidate = self._candidates[peer]
            if candidate.state is _State.FAILED or (candidate.state is _State.FRESH and self._is_doubtful(candidate)):
                continue
            yield candidate
            count += 1
            if count == self._k:
                return

    def _is_doubtful(self, candidate: _Candidate) -> bool:
        sources = candidate.sources
        return bool(sources) and all(self._trust.get(source, 0) <= -LIES for source in sources)
