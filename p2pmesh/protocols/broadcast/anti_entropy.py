"""Anti-entropy: neighbours compare what they have, and get what they lack.

On each new link, and every 30 s, jittered, with one neighbour after the other, while there is anything: what is alive here
is summed up (`digests`) and sent; a neighbour that has the same says so in an empty `gossip_want`, and that is all. Else
finer sums go to and fro until what is lacking is known by its ids, and is asked for in pieces: at most 64 on their way at
once, each from one neighbour only. What comes so is announced to the other neighbours, not pushed: they may have it.

*Newcomers.* What was sent before a peer began is not for it: it does not ask for it, is not told of it, refuses it if it
comes all the same, and passes none of it on. Only where the application asks for history (`WantHistory`) up to three neighbours
are asked, by topic, for what they keep: `ttl` limits how far back that goes. Ages tell, not clocks, so what counts
is the time that relays have kept a broadcast. Of two peers the younger one decides what is compared.

The periodic comparison leaves out what is younger than 5 s, which is on its way by the tree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from attrs import define

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import EagerPush
from p2pmesh.protocols.broadcast.message_store import MessageStore, StoredMessage
from p2pmesh.protocols.broadcast.set_reconciliation import Digest
from p2pmesh.protocols.effects import Effect, SendFrame
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.wire.fields import MAX_IDS_IN_LIST
from p2pmesh.wire.messages import DigestPart, GossipDigest, GossipHave, GossipHistory, GossipWant

ON_ITS_WAY = 5_000
"""Milliseconds of age from which the periodic comparison counts."""
EARLY = 1_000
"""Milliseconds before a peer began that count as after: ages leave out the time on links."""
DIGESTS = 32
DIGESTS_IN = 10.0
"""Digests of one neighbour that are looked at in so many seconds: it takes a few, and each costs a look at all we have."""
PIECE = 64
"""Broadcasts asked for at once: a window of a link."""
MOST_TO_PULL = 4096
"""Known to lack from one neighbour; more are found the next time."""
PULL_TIMEOUT = 5.0
"""Seconds until what was asked for is asked for again."""
TURN = 0.3
"""Seconds that the peer with the higher id leaves the first word on a new link to the other."""
MOST_WANTED = 64
"""Topics whose history is wanted at once; the oldest wishes beyond that are dropped."""
HISTORY_FROM = 3
"""Neighbours asked for history."""


class _Due(Enum):
    """Why a neighbour is turned to."""

    __hash__ = object.__hash__

    FIRST = "a new link"
    AGAIN = "no answer to a digest"
    PULL = "something asked for has not come"
    ROUND = "the periodic comparison"


_Timer = tuple[_Due, PeerId]
_ROUND: _Timer = (_Due.ROUND, PeerId(""))


@define
class SyncCounts:
    """What comparing came to, since the start."""

    digests: int = 0
    digests_ignored: int = 0
    pulled: int = 0
    history_asked: int = 0


@define(eq=False)
class _Pull:
    """What is asked for from one neighbour."""

    waiting: dict[str, None]
    asked: dict[str, None]
    attempts: int = 0


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
        history: MessageStore,
        hops: EagerPush,
        is_seen: Callable[[str], bool],
        may_go_on: Callable[[StoredMessage], bool],
        do: Callable[[Effect], None],
    ) -> None:
        self.counts: SyncCounts = SyncCounts()
        self._me = me
        self._config = config
        self._rng = rng
        self._history = history
        self._hops = hops
        self._is_seen = is_seen
        self._may_go_on = may_go_on
        self._do = do
        self._backoff = Backoff(config.ack_timeout, config.max_ttl)
        self._began: float | None = None
        self._attempts: dict[PeerId, int] = {}
        self._said_at: dict[PeerId, float] = {}
        self._heard: dict[PeerId, tuple[float, int]] = {}
        self._pulls: dict[PeerId, _Pull] = {}
        self._sources: dict[str, PeerId] = {}  # of what is asked for, or about to be
        self._wanted: list[_Wanted] = []
        self._last_round: PeerId | None = None
        self._timers: Timers[_Timer] = Timers()
        self.next_deadline: Callable[[], float] = self._timers.next_deadline
        """When `expire` wants to be called."""

    def __len__(self) -> int:
        return len(self._sources)

    # --- which broadcasts are ours to have ----------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """This peer lives; the first time counts."""
        if self._began is None:
            self._began = now

    def is_before_us(self, topic: str, age: int, now: float) -> bool:
        """Whether a broadcast was sent before we began, and nobody has asked for it."""
        if age <= self._lifetime(now):
            return False
        sent = now - age / 1000
        return not any(wanted.topic in {None, topic} and wanted.until <= sent for wanted in self._wanted)

    def want_history(self, topic: str | None, seconds: float, now: float) -> None:
        """The application asks for what was sent before we began."""
        seconds = min(seconds, self._config.max_ttl)
        others = [one for one in self._wanted if one.topic != topic and now - one.until <= 2 * self._config.max_ttl]
        wanted = _Wanted(topic, now - seconds)
        self._wanted = [*others, wanted][-MOST_WANTED:]
        for link in self._hops:
            self._ask_history(wanted, link.peer.peer_id, now)

    def _ask_history(self, wanted: _Wanted, peer: PeerId, now: float) -> None:
        beyond, within = self._lifetime(now), int((now - wanted.until) * 1000)
        if not wanted.left or within <= beyond:
            return
        wanted.left -= 1
        self.counts.history_asked += 1
        self._do(SendFrame((peer,), GossipHistory(topic=wanted.topic, beyond=beyond, within=within), urgent=True))

    def _lifetime(self, now: float) -> int:
        """Milliseconds of age that a broadcast may have here."""
        return 0 if self._began is None else int((now - self._began) * 1000) + EARLY

    def _ages(self, beyond: int, within: int, passed: int, now: float) -> tuple[int, int]:
        """What a neighbour compares, as of now; nothing is older here than we are."""
        lifetime = self._lifetime(now)
        return min(_aged(beyond, passed), lifetime), min(within + passed, lifetime)

    # --- when ---------------------------------------------------------------------------------------------------------

    def up(self, peer: PeerId, now: float) -> None:
        """A link is open. The peer with the lower id has the first word."""
        self._timers.set((_Due.FIRST, peer), now if self._me < peer else now + TURN)
        for wanted in self._wanted:
            self._ask_history(wanted, peer, now)

    def down(self, peer: PeerId) -> None:
        """It has ended."""
        self._attempts.pop(peer, None)
        self._said_at.pop(peer, None)
        self._heard.pop(peer, None)
        for due in (_Due.FIRST, _Due.AGAIN):
            self._timers.cancel((due, peer))
        self._drop_pull(peer)

    def keep_going(self, now: float) -> None:
        """There is something to compare: see to it that it is, every now and then."""
        if _ROUND not in self._timers:
            self._timers.set(_ROUND, now + self._config.digest_every * self._rng.uniform(0.75, 1.25))

    def expire(self, now: float) -> None:
        """Do what is due."""
        for due, peer in self._timers.pop_due(now):
            match due:
                case _Due.FIRST:
                    self._compare(peer, 0, now)
                case _Due.AGAIN:
                    if self._attempts.get(peer, 0) <= self._config.retries:
                        self._compare(peer, 0, now)
                case _Due.PULL:
                    self._pull_again(peer, now)
                case _Due.ROUND:
                    self._next_round(now)

    def _next_round(self, now: float) -> None:
        if not len(self._history):
            return  # `keep_going` starts it again
        self.keep_going(now)
        peers = [link.peer.peer_id for link in self._hops]
        if peers:
            place = peers.index(self._last_round) + 1 if self._last_round in peers else 0
            self._last_round = peers[place % len(peers)]
            self._compare(self._last_round, ON_ITS_WAY, now)

    def _compare(self, peer: PeerId, beyond: int, now: float) -> None:
        within = self._lifetime(now)
        digest = self._digest(beyond, within, now)
        if not len(digest):
            return  # who has something asks us
        self._attempts[peer] = self._attempts.get(peer, 0) + 1
        self._timers.set((_Due.AGAIN, peer), now + self._backoff.delay(self._attempts[peer], self._rng))
        self._said_at[peer] = now
        self._say(peer, [digest.root()], beyond, within)

    def _say(self, peer: PeerId, parts: Sequence[DigestPart], beyond: int, within: int) -> None:
        self.counts.digests += 1
        self._do(SendFrame((peer,), GossipDigest(parts=tuple(parts), beyond=beyond, within=within), urgent=True))

    def _digest(self, beyond: int, within: int, now: float) -> Digest:
        return Digest(
            (kept.key, kept.data.id)
            for kept in self._history
            if beyond <= kept.age(now) <= within and self._may_go_on(kept)
        )

    # --- what neighbours say ------------------------------------------------------------------------------------------

    def digest(self, peer: PeerId, theirs: GossipDigest, now: float) -> None:
        """A neighbour sums up what it has."""
        if self._is_too_much(peer, now):
            self.counts.digests_ignored += 1
            return
        passed = self._answered(peer, now)
        self._timers.cancel((_Due.FIRST, peer))
        is_whole = len(theirs.parts) == 1 and not theirs.parts[0].prefix
        if is_whole and peer < self._me:
            self._said_at.pop(peer, None)  # if both have begun at once, it leads
        beyond, within = self._ages(theirs.beyond, theirs.within, passed, now)
        ours = self._digest(beyond, within, now)
        if is_whole and within + EARLY < theirs.within:  # we are younger
            self._say(peer, [ours.root()], beyond, within)
            return
        finer, listed, lacking = ours.compared(theirs.parts)
        if finer:
            self._say(peer, finer, beyond, within)
        if listed:
            self._list(peer, ours, listed, beyond, within)
        self._name(peer, ours.ids(lacking) if lacking else ())
        if not (finer or listed or lacking):
            self._do(SendFrame((peer,), GossipWant(), urgent=True))

    def _is_too_much(self, peer: PeerId, now: float) -> bool:
        since, count = self._heard.get(peer, (now, 0))
        if now - since > DIGESTS_IN:
            since, count = now, 0
        self._heard[peer] = since, count + 1
        return count >= DIGESTS

    def have(self, peer: PeerId, theirs: GossipHave, now: float) -> None:
        """A neighbour names what it has."""
        passed = self._answered(peer, now)
        if theirs.prefixes:
            ours = self._digest(*self._ages(theirs.beyond, theirs.within, passed, now), now)
            told = set(theirs.ids)
            self._name(peer, [message_id for message_id in ours.ids(theirs.prefixes) if message_id not in told])
        pull = self._pulls.get(peer)
        for message_id in theirs.ids:
            kept = self._history.get(message_id)
            if kept is not None:
                self._hops.spare(peer, kept)
            elif not self._is_seen(message_id) and message_id not in self._sources:
                pull = pull or self._pulls.setdefault(peer, _Pull({}, {}))
                if len(pull.waiting) < MOST_TO_PULL:
                    pull.waiting[message_id] = None
                    self._sources[message_id] = peer
        if pull is None or not pull.waiting:
            self._do(SendFrame((peer,), GossipWant(), urgent=True))
        elif not pull.asked:
            self._ask(peer, pull, now)

    def wanted(self, peer: PeerId, now: float) -> None:
        """A neighbour has asked for what it lacks, maybe nothing."""
        self._answered(peer, now)
        self._said_at.pop(peer, None)  # the end of a comparison

    def history(self, peer: PeerId, asked: GossipHistory, now: float) -> None:
        """A neighbour asks for what was sent before it began."""
        self._name(
            peer,
            [
                kept.data.id
                for kept in self._history
                if asked.topic in {None, kept.data.topic}
                and asked.beyond <= kept.age(now) <= asked.within
                and self._may_go_on(kept)
            ],
        )

    def _answered(self, peer: PeerId, now: float) -> int:
        """Gives the milliseconds since we said what is answered: by so much all has aged, what it was about too.

        Who began a comparison corrects for that, and the other answers in the same terms.
        """
        self._attempts.pop(peer, None)
        self._timers.cancel((_Due.AGAIN, peer))
        if peer not in self._said_at:
            return 0
        passed, self._said_at[peer] = now - self._said_at[peer], now
        return min(int(passed * 1000), EARLY)

    def _list(self, peer: PeerId, ours: Digest, prefixes: Sequence[str], beyond: int, within: int) -> None:
        """All that we have below these prefixes, as many of them in a frame as fit."""
        some: list[str] = []
        ids: list[str] = []
        for prefix in prefixes:
            more = ours.ids([prefix])[:MAX_IDS_IN_LIST]
            if some and len(ids) + len(more) > MAX_IDS_IN_LIST:
                self._do(SendFrame((peer,), _have(ids, some, beyond, within), urgent=True))
                some, ids = [], []
            some.append(prefix)
            ids += more
        self._do(SendFrame((peer,), _have(ids, some, beyond, within), urgent=True))

    def _name(self, peer: PeerId, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), MAX_IDS_IN_LIST):
            self._do(SendFrame((peer,), _have(ids[start : start + MAX_IDS_IN_LIST]), urgent=True))

    # --- what we lack -------------------------------------------------------------------------------------------------

    def arrived(self, message_id: str, now: float) -> bool:
        """A broadcast has come. Whether that is because we asked for it here."""
        peer = self._sources.pop(message_id, None)
        if peer is None:
            return False
        pull = self._pulls[peer]
        was_asked = message_id in pull.asked
        pull.asked.pop(message_id, None)
        pull.waiting.pop(message_id, None)
        pull.attempts = 0
        self.counts.pulled += was_asked
        if len(pull.asked) <= PIECE // 2:
            self._ask(peer, pull, now)
        return was_asked

    def _ask(self, peer: PeerId, pull: _Pull, now: float) -> None:
        more = list(pull.waiting)[: PIECE - len(pull.asked)]
        for message_id in more:
            del pull.waiting[message_id]
            pull.asked[message_id] = None
        if not pull.asked:
            self._drop_pull(peer)
            return
        if more:
            self._do(SendFrame((peer,), GossipWant(ids=tuple(more)), urgent=True))
        self._timers.set((_Due.PULL, peer), now + PULL_TIMEOUT)

    def _pull_again(self, peer: PeerId, now: float) -> None:
        pull = self._pulls[peer]
        pull.attempts += 1
        if pull.attempts > 2:
            self._drop_pull(peer)  # the next comparison finds it again, here or elsewhere
            return
        self._do(SendFrame((peer,), GossipWant(ids=tuple(pull.asked)), urgent=True))
        self._timers.set((_Due.PULL, peer), now + PULL_TIMEOUT)

    def _drop_pull(self, peer: PeerId) -> None:
        pull = self._pulls.pop(peer, None)
        if pull is None:
            return
        self._timers.cancel((_Due.PULL, peer))
        for message_id in (*pull.asked, *pull.waiting):
            self._sources.pop(message_id, None)


def _aged(age: int, passed: int) -> int:
    return age + passed if age else 0


def _have(ids: Iterable[str], prefixes: Iterable[str] = (), beyond: int = 0, within: int = 0) -> GossipHave:
    return GossipHave(ids=tuple(ids), prefixes=tuple(prefixes), beyond=beyond, within=within)
