"""The passive view: peers that are said to be in the mesh, and what speaks for and against each.

HyParView's name and idea (Leitao et al., 2007): besides its links a peer knows some others, the stock for repair.
What stands in it is hearsay, ids that a service or a peer named; what we tried ourselves counts more. All that is
known of a peer is *evidence*, each kind with a time until which it holds; `POLICY` says how long that is, and what it
means for dialing. `SOURCES` says what each source's word is worth.

In: who says what of whom, and how attempts went. Out: which peers may be dialed, which are worth a link, which may be
named.

State: `TopologyConfig.known_peers` peers, and as many that are not believed to be there.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

from attrs import Factory, define

from p2pmesh.config import TopologyConfig
from p2pmesh.keyspace import PeerId, between
from p2pmesh.protocols.inputs import Source
from p2pmesh.protocols.util.timers import Backoff

TRUST = 3
"""Attempts at a peer that may fail in a row before it stops being worth a link of ours, or is forgotten if said to be
gone: an attempt may fail by bad luck, three don't."""
PATIENCE = 8
PROVEN_PATIENCE = 12
"""Attempts in a row that may fail before a peer is forgotten by one that has links: some two minutes; and about five
if a link to it has worked before."""
HEARSAY_WAITS = 3.0
"""Seconds until a peer that was only named is dialed, and half as long again at most: by then we know our place, and
it is mostly somebody else's."""


class Evidence(IntEnum):
    """What may be known of a peer, besides attempts that failed."""

    VOUCHED = 0
    """Somebody that should know said that it is there, and did not just name it."""
    FOUND = 1
    """We have just found it at its place ourselves: it is as good as certain that there will be a link to it."""
    PROVEN = 2
    """A link to it has opened before."""
    LEAF = 3
    """It is no part of the ring: it may have one link only, or does not prove who it is."""
    GONE = 4
    """It is said to have left, but we have reason to doubt that."""
    CUT_SHORT = 5
    """The last attempt at it had to give way before it came to anything."""
    UNREACHABLE = 6
    """Attempts at it failed `TRUST` times in a row, or more."""
    RESTING = 7
    """It is not to be tried yet, without that being held against it."""
    DEPARTED = 8
    """It said goodbye."""
    SILENT = 9
    """Its link fell silent."""


class Rule(NamedTuple):
    """What a kind of evidence means while it holds. None: nothing."""

    lasts: float
    """Seconds, where nothing refutes it before."""
    worth_a_link: bool | None = None
    """Whether a link may be given up so that it can be tried (needed for that: True; forbids it: False)."""
    named: bool | None = None
    """Whether it may be named to others."""


POLICY: Mapping[Evidence, Rule] = {
    # If it does not come by then, it may be gone: giving up a link for it could break the mesh.
    Evidence.VOUCHED: Rule(20.0, worth_a_link=True, named=True),
    # While it lasts, a link on the ring may be given up for it rather than a long one.
    Evidence.FOUND: Rule(20.0),
    # Tried again a tier sooner, and remembered longer.
    Evidence.PROVEN: Rule(math.inf),
    # Never dialed for a place on the ring.
    Evidence.LEAF: Rule(math.inf),
    # Forgotten if attempts fail. Ends when somebody names it again, or it speaks itself.
    Evidence.GONE: Rule(math.inf, worth_a_link=False, named=False),
    # If that happens again, nobody vouches for it any more: else one that is gone could cost us a link each time.
    Evidence.CUT_SHORT: Rule(math.inf),
    # What kept it away may have healed by then. Doubled with each failure more, for a peer that a service announces and
    # nobody can reach costs its neighbours a link each time.
    Evidence.UNREACHABLE: Rule(300.0, worth_a_link=False),
    # Not dialed before that. How long, depends on why: a failure, a moment for its own offer, a place that is taken.
    Evidence.RESTING: Rule(0.0),
    # Others that say it is there are not believed, until lists that name it have washed out; nor is it named to others.
    Evidence.DEPARTED: Rule(60.0, named=False),
    # Likewise, until all its neighbours have noticed.
    Evidence.SILENT: Rule(15.0, named=False),
}

VOUCHED, FOUND, PROVEN, LEAF, GONE, CUT_SHORT, UNREACHABLE, RESTING, DEPARTED, SILENT = Evidence
NEEDED_FOR_LINK = tuple(kind for kind, rule in POLICY.items() if rule.worth_a_link is True)
BARS_LINK = tuple(kind for kind, rule in POLICY.items() if rule.worth_a_link is False)
NEEDED_FOR_NAMING = tuple(kind for kind, rule in POLICY.items() if rule.named is True)
BARS_NAMING = tuple(kind for kind, rule in POLICY.items() if rule.named is False)

Said: TypeAlias = Source | Literal["alternative", "wanted", "far"]
"""Who says that a peer is there: as in `PeersFound`; or a peer that has no room for us; or the application or another
core, that want a link to it; or the answer to a search for long links."""


class Word(NamedTuple):
    """What it is worth that a source names a peer."""

    vouches: bool = True
    """The source should know."""
    overrules: bool = True
    """Believed even of a peer that has just gone."""
    urges: bool = False
    """The peer may be next to us: it need not wait to be tried, unless it has failed too often before."""
    finds: bool = False
    """It was found at its place."""
    waits: tuple[float, float] | None = None
    """Seconds, from and to, until a peer that is news is tried."""


SOURCES: Mapping[Said, Word] = {
    "config": Word(),
    "bootstrap": Word(),
    "joined": Word(),  # waits for its own offer: `TopologyConfig.announced_grace`
    "rejection": Word(),
    "wanted": Word(),
    "beyond": Word(finds=True),
    "alternative": Word(overrules=False),
    "ring": Word(overrules=False, urges=True),
    "list": Word(vouches=False, overrules=False, urges=True),
    "hearsay": Word(vouches=False, overrules=False, waits=(HEARSAY_WAITS, 1.5 * HEARSAY_WAITS)),
    "far": Word(vouches=False),
}


@define
class Known:
    """What we know of a peer."""

    misses: int = 0
    """Attempts that failed or were turned down since the last success."""
    version: int | None = None
    """Its protocol version, once it told us."""
    until: list[float] = Factory(lambda: [-math.inf] * len(Evidence))
    """When each kind of evidence ends."""

    def note(self, kind: Evidence, now: float) -> None:
        self.until[kind] = now + POLICY[kind].lasts

    def refute(self, *kinds: Evidence) -> None:
        for kind in kinds:
            self.until[kind] = -math.inf

    def forgive(self) -> None:
        """Attempts that failed are held against it no more."""
        self.misses = 0
        self.until[UNREACHABLE] = -math.inf

    @property
    def is_leaf(self) -> bool:
        return self.until[LEAF] == math.inf or self.version == 0

    def speaks_for(self, needed: tuple[Evidence, ...], barring: tuple[Evidence, ...], now: float) -> bool:
        """Whether all evidence that is needed is there, and none that speaks against it."""
        until = self.until
        for kind in needed:
            if until[kind] <= now:
                return False
        for kind in barring:  # noqa: SIM110  # generators would double the time of a frequent look
            if until[kind] > now:
                return False
        return True


class PassiveView:
    """The table. Peers are kept in the order in which they were last heard of."""

    def __init__(self, me: PeerId, config: TopologyConfig, rng: random.Random) -> None:
        self._me = me
        self._limit = config.known_peers
        self._backoff = Backoff(config.retry_first, config.retry_cap)
        self._config = config
        self._rng = rng
        self._peers: OrderedDict[PeerId, Known] = OrderedDict()
        self._absent: OrderedDict[PeerId, float] = OrderedDict()
        """Until when peers that departed or fell silent are not believed to be there. Most have left the table."""
        grace = config.announced_grace
        self._sources = {**SOURCES, "joined": Word(waits=(0.75 * grace, grace))}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    # --- what is said -------------------------------------------------------------------------------------------------

    def learn(self, peers: Iterable[PeerId], source: Said, now: float) -> bool:
        """These peers are said to be there. Whether that is news."""
        word = self._sources[source]
        wait = -math.inf if word.waits is None else now + self._rng.uniform(*word.waits)
        news = word.urges or word.finds
        for peer in peers:
            if peer == self._me or (not word.overrules and self._is_absent(peer, now)):
                continue
            known = self._peers.get(peer)
            if known is None:
                known = self._add(peer)
                known.until[RESTING] = wait
                news = True
            elif known.until[GONE] > now:
                known.forgive()
                known.refute(GONE)
                known.until[RESTING] = wait
                news = True
            if word.vouches:
                known.note(VOUCHED, now)
            if word.finds:
                known.note(FOUND, now)
                known.forgive()
                known.refute(RESTING)
            self._peers.move_to_end(peer)
        if word.urges:
            self.urge(peers, now)
        return news

    def heard(self, peer: PeerId, version: int) -> None:
        """The peer itself spoke to us."""
        known = self._peers.get(peer) or self._add(peer)
        known.version = version
        known.refute(GONE)
        self._absent.pop(peer, None)
        self._peers.move_to_end(peer)

    def urge(self, peers: Iterable[PeerId], now: float) -> None:
        """These are said to be next to us: they need not wait, unless they have failed too often before."""
        for peer in peers:
            known = self._peers.get(peer)
            if known is not None and known.misses < TRUST and not self._is_absent(peer, now):
                known.refute(RESTING)

    def note(self, peer: PeerId, kind: Evidence, now: float, *, holds: bool = True) -> None:
        """There is such evidence of a peer that is known, or there is none any more."""
        known = self._peers.get(peer)
        if known is not None:
            known.until[kind] = now + POLICY[kind].lasts if holds else -math.inf

    def settled_between(self, before: PeerId, after: PeerId, now: float) -> None:
        """Nobody is between us and those two: peers there are let be for a while, but for those that have just come."""
        for peer, known in self._peers.items():
            if known.until[LEAF] > now or (known.until[VOUCHED] > now and not known.misses):
                continue
            if between(before, peer, self._me) or between(self._me, peer, after):
                rests = self._config.retry_cap if known.misses else self._config.min_link_age
                known.until[RESTING] = max(known.until[RESTING], now + rests)
                known.refute(VOUCHED)

    # --- how attempts and links went ----------------------------------------------------------------------------------

    def linked(self, peer: PeerId, version: int, *, leaf: bool, now: float) -> None:
        """A link to it opened."""
        self.heard(peer, version)
        known = self._peers[peer]
        known.forgive()
        known.refute(CUT_SHORT)
        known.note(PROVEN, now)
        known.until[LEAF] = math.inf if leaf else -math.inf

    def missed(self, peer: PeerId, now: float, *, may_forget: bool = False) -> None:
        """An attempt at it came to nothing. After too many it may be forgotten, if we have others."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.misses += 1
        proven, gone = known.until[PROVEN] > now, known.until[GONE] > now
        known.until[RESTING] = now + self._backoff.delay(max(1, known.misses - proven), self._rng)
        if known.misses >= TRUST:
            known.until[UNREACHABLE] = now + POLICY[UNREACHABLE].lasts * 2.0 ** min(known.misses - TRUST, 32)
        patience = TRUST if gone else PROVEN_PATIENCE if proven else PATIENCE
        if known.misses >= patience and (gone or may_forget):
            del self._peers[peer]

    def forgive(self) -> None:
        """The mesh was cut, and is not any more: failed attempts are held against nobody, the cut may have been why.

        When each is tried again stays as it is: peers next to us will be named again (`urge`), and for the others
        there is no hurry.
        """
        for known in self._peers.values():
            known.forgive()

    def pause(self, peer: PeerId, until: float) -> None:
        """Don't try it before then, without holding anything against it."""
        known = self._peers.get(peer) or self._add(peer)
        known.until[RESTING] = until

    def cut_short(self, peer: PeerId, now: float) -> None:
        """An attempt at it gave way to another peer. If that happens again, it may be gone for all that we know."""
        self.pause(peer, now + self._config.retry_first)
        known = self._peers[peer]
        if known.until[CUT_SHORT] > now:
            known.refute(VOUCHED)
        known.note(CUT_SHORT, now)

    def departed(self, peer: PeerId, now: float) -> None:
        """It said goodbye: forgotten, and for a while not taken for there because others say so."""
        self.forget(peer)
        self.disbelieve(peer, DEPARTED, now)

    def disbelieve(self, peer: PeerId, kind: Evidence, now: float) -> None:
        """It is probably gone: others may not know yet, and still name it."""
        self._absent.pop(peer, None)
        self._absent[peer] = now + POLICY[kind].lasts
        if len(self._absent) > self._limit:
            self._absent.popitem(last=False)

    def forget(self, peer: PeerId) -> None:
        self._peers.pop(peer, None)

    def _is_absent(self, peer: PeerId, now: float) -> bool:
        return self._absent.get(peer, -math.inf) > now

    # --- what follows -------------------------------------------------------------------------------------------------

    def of(self, peer: PeerId) -> Known:
        """What is known of a peer."""
        return self._peers.get(peer) or Known()

    def ready(self, now: float, without: Collection[PeerId]) -> list[PeerId]:
        """Peers that may be tried now."""
        return [peer for peer, known in self._peers.items() if known.until[RESTING] <= now and peer not in without]

    def next_ready(self, now: float) -> float:
        """When the next peer may be tried that may not be now."""
        return min((end for known in self._peers.values() if (end := known.until[RESTING]) > now), default=math.inf)

    def worth_a_link(self, peer: PeerId, now: float) -> bool:
        """Whether to give up a link to try this peer: it could break the mesh for a peer that isn't there."""
        known = self._peers.get(peer)
        return known is not None and known.speaks_for(NEEDED_FOR_LINK, BARS_LINK, now)

    def in_good_standing(self, now: float) -> list[PeerId]:
        """Peers that somebody vouches for, and nothing speaks against: fit to be named to others."""
        return [
            peer
            for peer, known in self._peers.items()
            if not known.misses
            and known.speaks_for(NEEDED_FOR_NAMING, BARS_NAMING, now)
            and not self._is_absent(peer, now)
        ]

    def nearer(
        self, before: PeerId | None, after: PeerId | None, without: Collection[PeerId], now: float, *, worthy: bool
    ) -> tuple[list[PeerId], float]:
        """Peers nearer to us on the ring than those two, one in each direction; and when the next may be tried.

        If `worthy`, only peers count that are worth a link.
        """
        me = self._me
        best_after, best_before, moment = after, before, math.inf
        for peer, known in self._peers.items():
            if peer in without:
                continue
            if best_before is not None and best_after is not None and not between(best_before, peer, best_after):
                continue  # most peers
            follows = best_after is None or between(me, peer, best_after)
            precedes = best_before is None or between(best_before, peer, me)
            if known.is_leaf or (worthy and not known.speaks_for(NEEDED_FOR_LINK, BARS_LINK, now)):
                continue
            if known.until[RESTING] > now:
                moment = min(moment, known.until[RESTING])
                continue
            if follows:
                best_after = peer
            if precedes:
                best_before = peer
        found = [(best_after, after), (best_before, before)]
        return list(dict.fromkeys(best for best, held in found if best is not None and best != held)), moment

    def _add(self, peer: PeerId) -> Known:
        if len(self._peers) >= self._limit:
            # Those that failed go first, so that made-up ids don't push out the real ones that we reached.
            failed = (other for other, known in self._peers.items() if known.misses)
            del self._peers[next(failed, next(iter(self._peers)))]
        known = self._peers[peer] = Known()
        return known
