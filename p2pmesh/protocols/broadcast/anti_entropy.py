"""Anti-entropy: neighbours compare what they have, and get what they lack.

After Demers et al. (Epidemic algorithms for replicated database maintenance, PODC 1987). On each new link, and every
30 s, jittered, with one neighbour after the other, while there is anything: what is alive here is summed up in a number
and an exclusive or, and sent; a neighbour that has the same says so in an empty `gossip_want`, and that is all. Else it
lists what it has, is told what it lacks of the other's, and each pulls what it lacks in pieces: at most `pull_window`
on their way at once, each from one neighbour only. What comes so is announced to the other neighbours, not pushed: they
may have it. (Finer sums, as in Merkle trees, save less than 5% of all bytes while 50 broadcasts a second are sent over
links that lose every tenth frame, and nothing at rest.)

*Pulls that come to nothing.* A broadcast that was pulled and then refused leaves the window at once, and is not
pulled from that neighbour again (`refused`). One that does not come at all holds the window up for `pull_timeout`;
after three times what is left of that neighbour's is forgotten, and looked for with all others at once, which may
have named it in vain while it was expected from there. It is not asked for there again for `digest_every`. So a peer
that does not answer a `gossip_want`, or not in full (as `BroadcastCore._serve` does with what it has forgotten or has
served too often), stalls its asker for `pull_timeout` seconds.

*Newcomers.* What was sent before a peer began is not for it: it does not ask for it, is not told of it, refuses it if
it comes all the same, and passes none of it on. Only where the application asks for history (`WantHistory`) up to
three neighbours are asked, by topic, for what they keep: `ttl` limits how far back that goes. Ages tell, not clocks,
so what counts is the time for which relays have kept a broadcast. Of two peers the younger one decides what is
compared.

The periodic comparison leaves out what is younger than 5 s, which is on its way by the tree.

In go neighbours' sums and lists, and what became of what was pulled; out come messages for neighbours (`Said`).
State: for each neighbour at most `MAX_TO_PULL` ids to pull; at most `MAX_WANTED` wishes for history and `MAX_TO_PULL`
refusals.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from attrs import asdict, define

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import SendWindow
from p2pmesh.protocols.broadcast.message_store import (
    NOBODY,
    SUM_SIZE,
    BroadcastTimers,
    Due,
    MessageStore,
    StoredMessage,
)
from p2pmesh.protocols.broadcast.validation import BroadcastLimits
from p2pmesh.protocols.util.limits import FRAME, ExpiringSet
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.wire.fields import MAX_IDS_IN_LIST
from p2pmesh.wire.messages import GossipDigest, GossipHave, GossipHistory, GossipWant

ON_ITS_WAY = 5_000
"""Milliseconds of age from which the periodic comparison counts."""
EARLY = 1_000
"""Milliseconds before a peer began that count as after: ages leave out the time on links."""
EACH = 1.0
"""Units of work (`util.limits`) for each broadcast that is looked at: to name it takes a third more."""
MAX_TO_PULL = 4096
"""Ids known to be lacking from one neighbour; more are found the next time."""
MAX_PULLS = 3
"""Times that something is asked for in vain before what a neighbour has is forgotten."""
TURN = 0.3
"""Seconds for which the peer with the higher id leaves the first word on a new link to the other."""
MAX_WANTED = 64
"""Topics whose history is wanted at once; the oldest wishes beyond that are dropped."""
HISTORY_FROM = 3
"""Neighbours asked for history."""

_ROUND = (Due.ROUND, NOBODY, "")

Said: TypeAlias = list[tuple[PeerId, GossipDigest | GossipHave | GossipWant | GossipHistory]]
"""Messages for neighbours."""


@define
class AntiEntropyCounts:
    """What comparing came to, since the start."""

    digests: int = 0
    pulled: int = 0
    refused: int = 0
    history_asked: int = 0


@define(eq=False)
class _Pull:
    """What is pulled from one neighbour."""

    waiting: dict[str, None]
    asked: dict[str, None]
    attempts: int = 1


@define(eq=False)
class _Wanted:
    """History that the application asked for."""

    topic: str | None
    until: float
    """In the time of `now`: what was sent earlier is not asked for."""
    left: int = HISTORY_FROM


class AntiEntropy:
    """What this peer and its neighbours have, and how that becomes the same."""

    def __init__(
        self,
        me: PeerId,
        config: BroadcastConfig,
        rng: random.Random,
        timers: BroadcastTimers,
        store: MessageStore,
        links: Mapping[PeerId, SendWindow],
        limits: BroadcastLimits,
    ) -> None:
        self.counts: AntiEntropyCounts = AntiEntropyCounts()
        self._me = me
        self._config = config
        self._rng = rng
        self._timers = timers
        self._store = store
        self._links = links
        self._limits = limits
        self._backoff = Backoff(config.ack_timeout, config.max_ttl)
        self._has_begun = False
        self._began = 0.0
        self._attempts: dict[PeerId, int] = {}
        self._said_at: dict[PeerId, float] = {}
        self._pulls: dict[PeerId, _Pull] = {}
        self._sources: dict[str, PeerId] = {}  # of what is asked for, or about to be
        self._refused: ExpiringSet[tuple[PeerId, str], float] = ExpiringSet(MAX_TO_PULL)
        self._wanted: list[_Wanted] = []
        self._last_round: PeerId | None = None

    def __len__(self) -> int:
        return len(self._sources)

    def snapshot(self) -> dict[str, int]:
        """What is pulled now, wishes for history, and what comparing came to."""
        return {"pulling": len(self), "wanted_topics": len(self._wanted), **asdict(self.counts)}

    # --- which broadcasts are ours to have ----------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Begin to live, if it has not begun yet: what was sent before is not for us."""
        if not self._has_begun:
            self._has_begun, self._began = True, now

    def is_before_us(self, topic: str, age: float, now: float) -> bool:
        """Whether a broadcast was sent before we began, and nobody has asked for it."""
        if age * 1000 <= self._lifetime(now):
            return False
        sent = now - age
        return not any(wanted.topic in {None, topic} and wanted.until <= sent for wanted in self._wanted)

    def want_history(self, topic: str | None, seconds: float, now: float) -> Said:
        """Ask for what was sent before we began. A wish for the same topic replaces the last one."""
        seconds = min(seconds, self._config.max_ttl)
        others = [one for one in self._wanted if one.topic != topic and now - one.until <= 2 * self._config.max_ttl]
        wanted = _Wanted(topic, now - seconds)
        self._wanted = [*others, wanted][-MAX_WANTED:]
        self._refused = ExpiringSet(MAX_TO_PULL)  # what was too old may be welcome now
        return [said for peer in self._links for said in self._ask_history(wanted, peer, now)]

    def _ask_history(self, wanted: _Wanted, peer: PeerId, now: float) -> Said:
        beyond, within = self._lifetime(now), int((now - wanted.until) * 1000)
        if not wanted.left or within <= beyond:
            return []
        wanted.left -= 1
        self.counts.history_asked += 1
        return [(peer, GossipHistory(topic=wanted.topic, beyond=beyond, within=within))]

    def _lifetime(self, now: float) -> int:
        """Milliseconds of age that a broadcast may have here."""
        return int((now - self._began) * 1000) + EARLY

    def _ages(self, beyond: int, within: int, passed: int, now: float) -> tuple[int, int]:
        """What a neighbour compares, as of now; nothing is older here than we are."""
        lifetime = self._lifetime(now)
        return min(_aged(beyond, passed), lifetime), min(within + passed, lifetime)

    # --- when ---------------------------------------------------------------------------------------------------------

    def up(self, peer: PeerId, now: float) -> Said:
        """Begin with a link that is open now. The peer with the lower id has the first word."""
        self._timers.set((Due.FIRST_DIGEST, peer, ""), now if self._me < peer else now + TURN)
        return [said for wanted in self._wanted for said in self._ask_history(wanted, peer, now)]

    def down(self, peer: PeerId) -> None:
        """Forget a link that has ended."""
        self._attempts.pop(peer, None)
        self._said_at.pop(peer, None)
        for due in (Due.FIRST_DIGEST, Due.DIGEST_AGAIN):
            self._timers.cancel((due, peer, ""))
        self._drop_pull(peer)

    def expire(self, due: Due, peer: PeerId, now: float) -> Said:
        """Have the first word on a new link, or repeat what was not answered, a few times."""
        if due is Due.PULL_AGAIN:
            return self._pull_again(peer, now)
        if due is Due.ROUND:
            return self._next_round(now)
        return self._compare(peer, 0, now) if self._attempts.get(peer, 0) <= self._config.retries else []

    def see_to_rounds(self, now: float) -> None:
        """Compare with neighbours every now and then, while there is anything."""
        if _ROUND not in self._timers:
            self._timers.set(_ROUND, now + self._config.digest_every * self._rng.uniform(0.75, 1.25))

    def _next_round(self, now: float) -> Said:
        """Compare with the neighbour whose turn it is."""
        if not len(self._store):
            return []  # the next message starts it again
        self.see_to_rounds(now)
        peers = list(self._links)
        if not peers:
            return []
        place = peers.index(self._last_round) + 1 if self._last_round in peers else 0
        self._last_round = peers[place % len(peers)]
        return self._compare(self._last_round, ON_ITS_WAY, now)

    def _compare(self, peer: PeerId, beyond: int, now: float, *, lacking: bool = False) -> Said:
        within = self._lifetime(now)
        ours = self._store.places(beyond, within, now)
        if ours.start == ours.stop and not lacking:
            return []  # a neighbour that has something asks us
        self._attempts[peer] = self._attempts.get(peer, 0) + 1
        self._timers.wait((Due.DIGEST_AGAIN, peer, ""), now + self._backoff.delay(self._attempts[peer], self._rng))
        self._said_at[peer] = now
        return [(peer, self._summed(ours, beyond, within))]

    def _summed(self, ours: slice, beyond: int, within: int) -> GossipDigest:
        self.counts.digests += 1
        total = self._store.sum_of(ours).to_bytes(SUM_SIZE, "big")
        return GossipDigest(count=ours.stop - ours.start, sum=total, within=within, beyond=beyond)

    # --- what neighbours say ------------------------------------------------------------------------------------------

    def price(self, asked: GossipDigest | GossipHave | GossipHistory, now: float) -> float:
        """What an answer costs at the most: by the broadcasts that are looked at, or named where sums differ."""
        if isinstance(asked, GossipHave):
            return FRAME + EACH * self._store.count(asked.after, asked.until) if asked.within else FRAME
        places = self._store.places(asked.beyond, asked.within, now)
        count: int = places.stop - places.start
        if isinstance(asked, GossipDigest) and (count, self._store.sum_of(places)) == _sum(asked):
            return FRAME
        return FRAME + EACH * count

    def answer(
        self, peer: PeerId, asked: GossipDigest | GossipHave | GossipHistory, lacked: Iterable[str], now: float
    ) -> Said:
        """Compare what a neighbour says of what it has, and name what it asks for."""
        match asked:
            case GossipDigest():
                return self._digest(peer, asked, now)
            case GossipHave():
                return self._have(peer, asked, lacked, now)
            case GossipHistory():
                return self._history(peer, asked, now)

    def _digest(self, peer: PeerId, theirs: GossipDigest, now: float) -> Said:
        """Compare a neighbour's sum with ours."""
        passed = self._answered(peer, now)
        self._timers.cancel((Due.FIRST_DIGEST, peer, ""))
        if peer < self._me:
            self._said_at.pop(peer, None)  # if both have begun at once, it leads
        beyond, within = self._ages(theirs.beyond, theirs.within, passed, now)
        ours = self._store.places(beyond, within, now)
        said = self._summed(ours, beyond, within)
        if within + EARLY < theirs.within:  # we are younger
            return [(peer, said)]
        if (said.count, said.sum) == (theirs.count, theirs.sum):
            return [(peer, GossipWant())]
        return _list(peer, [message.data.id for message in self._store.at(ours)], beyond, within)

    def _have(self, peer: PeerId, theirs: GossipHave, lacked: Iterable[str], now: float) -> Said:
        """Pull what a neighbour names and we lack, and name what it lacks where it names all."""
        passed = self._answered(peer, now)
        said: Said = []
        if theirs.within:
            beyond, within = self._ages(theirs.beyond, theirs.within, passed, now)
            theirs_too = set(theirs.ids)
            ours = [
                message
                for message in self._store.named(theirs.after, theirs.until)
                if message.data.id not in theirs_too
            ]
            said += _name(peer, self._alive(ours, beyond, within, now))
        pull = self._pulls.get(peer)
        for message_id in lacked:
            if message_id in self._sources or self._is_refused(peer, message_id, now):
                continue
            pull = pull or self._pulls.setdefault(peer, _Pull({}, {}))
            if len(pull.waiting) < MAX_TO_PULL:
                pull.waiting[message_id] = None
                self._sources[message_id] = peer
        if pull is None or not pull.waiting:
            said.append((peer, GossipWant()))
        elif not pull.asked:
            said += self._ask(peer, pull, now)
        return said

    def _is_refused(self, peer: PeerId, message_id: str, now: float) -> bool:
        return (peer, message_id) in self._refused and now < self._refused[peer, message_id]

    def want(self, peer: PeerId, now: float) -> bool:
        """Note that a neighbour has asked for what it lacks. Returns whether that ends a comparison."""
        self._answered(peer, now)
        return self._said_at.pop(peer, None) is not None

    def _history(self, peer: PeerId, asked: GossipHistory, now: float) -> Said:
        """Name to a neighbour what was sent before it began."""
        there = self._store.at(self._store.places(asked.beyond, asked.within, now))
        ours = [message for message in there if asked.topic in {None, message.data.topic}]
        return _name(peer, self._alive(ours, asked.beyond, asked.within, now))

    def _alive(self, ours: Iterable[StoredMessage], beyond: int, within: int, now: float) -> list[str]:
        """The ids of those of them that a neighbour may lack, and that are of such an age."""
        return [
            message.data.id
            for message in ours
            if beyond <= message.age(now) <= within and self._limits.may_go_on(message, now)
        ]

    def _answered(self, peer: PeerId, now: float) -> int:
        """Milliseconds since we said what is answered: by so much all has aged, what it was about too.

        The peer that began a comparison corrects for that, and the other answers in the same terms.
        """
        self._attempts.pop(peer, None)
        self._timers.cancel((Due.DIGEST_AGAIN, peer, ""))
        if peer not in self._said_at:
            return 0
        passed, self._said_at[peer] = now - self._said_at[peer], now
        return min(int(passed * 1000), EARLY)

    # --- what we lack -------------------------------------------------------------------------------------------------

    def arrived(self, message_id: str, now: float) -> tuple[bool, Said]:
        """Note that a broadcast has come. Returns whether that is because it was pulled, and what to pull next."""
        peer = self._sources.get(message_id)
        if peer is None:
            return False, []
        was_pulled = message_id in self._pulls[peer].asked
        self.counts.pulled += was_pulled
        return was_pulled, self._took(peer, message_id, now)

    def refused(self, peer: PeerId, message_id: str, now: float, *, lasts: float = math.inf) -> Said:
        """Note that what was pulled was refused. It is not soon pulled from there again, but may be from elsewhere."""
        if self._sources.get(message_id) != peer:
            return []
        self.counts.refused += 1
        until = now + min(lasts, self._config.max_ttl)
        self._refused.discard((peer, message_id))
        self._refused.add((peer, message_id), until, until, now)
        return self._took(peer, message_id, now)

    def _took(self, peer: PeerId, message_id: str, now: float) -> Said:
        """Free a place of a neighbour's window, and pull more once half of it is free."""
        del self._sources[message_id]
        pull = self._pulls[peer]
        pull.asked.pop(message_id, None)
        pull.waiting.pop(message_id, None)
        pull.attempts = 1
        return self._ask(peer, pull, now) if len(pull.asked) <= self._config.pull_window // 2 else []

    def _ask(self, peer: PeerId, pull: _Pull, now: float) -> Said:
        more = list(pull.waiting)[: self._config.pull_window - len(pull.asked)]
        for message_id in more:
            del pull.waiting[message_id]
            pull.asked[message_id] = None
        if not pull.asked:
            self._drop_pull(peer)
            return []
        self._timers.wait((Due.PULL_AGAIN, peer, ""), now + self._config.pull_timeout)
        return _wants(peer, more)

    def _pull_again(self, peer: PeerId, now: float) -> Said:
        pull = self._pulls[peer]
        if pull.attempts >= MAX_PULLS:
            until = now + self._config.digest_every
            for message_id in pull.asked:
                self._refused.add((peer, message_id), until, until, now)
            self._drop_pull(peer)
            others = [other for other in self._links if other != peer]  # which may have named it, too, in vain
            return [said for other in others for said in self._compare(other, 0, now, lacking=True)]
        pull.attempts += 1
        self._timers.wait((Due.PULL_AGAIN, peer, ""), now + self._config.pull_timeout)
        return _wants(peer, list(pull.asked))

    def _drop_pull(self, peer: PeerId) -> None:
        pull = self._pulls.pop(peer, None)
        if pull is None:
            return
        self._timers.cancel((Due.PULL_AGAIN, peer, ""))
        for message_id in (*pull.asked, *pull.waiting):
            self._sources.pop(message_id, None)


def _sum(digest: GossipDigest) -> tuple[int, int]:
    return digest.count, int.from_bytes(digest.sum, "big")


def _aged(age: int, passed: int) -> int:
    return age + passed if age else 0


def _list(peer: PeerId, ids: Sequence[str], beyond: int, within: int) -> Said:
    """All that we have, in as many frames as it takes; each says from where to where it goes."""
    frames = _frames(sorted(ids)) or [()]
    ends = [None, *(frame[-1] for frame in frames[:-1]), None]
    return [
        (peer, GossipHave(ids=some, within=within, beyond=beyond, after=ends[place], until=ends[place + 1]))
        for place, some in enumerate(frames)
    ]


def _name(peer: PeerId, ids: Sequence[str]) -> Said:
    return [(peer, GossipHave(ids=some)) for some in _frames(ids)]


def _wants(peer: PeerId, ids: Sequence[str]) -> Said:
    return [(peer, GossipWant(ids=some)) for some in _frames(ids)]


def _frames(ids: Sequence[str]) -> list[tuple[str, ...]]:
    """As many in each as a frame may list."""
    return [tuple(ids[start : start + MAX_IDS_IN_LIST]) for start in range(0, len(ids), MAX_IDS_IN_LIST)]
