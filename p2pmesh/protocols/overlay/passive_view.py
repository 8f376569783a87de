"""The passive view: peers that are said to be in the mesh, and what speaks for and against each.

HyParView's name and idea (Leitao et al., 2007): besides its links a peer knows some others, the stock for repair.
What stands in it is hearsay, ids that a service or a peer named; what we tried ourselves counts more. `SOURCES` says
what each source's word is worth.

In: who says what of whom, and how attempts went. Out: which peers may be dialed, which are worth a link, which may be
named.

State: `TopologyConfig.known_peers` peers, as many that are not believed to be there, and as many that can't be reached.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from attrs import define

from p2pmesh.config import TopologyConfig
from p2pmesh.keyspace import PeerId, between
from p2pmesh.protocols.inputs import Source
from p2pmesh.protocols.overlay.crowd import Crowd
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.protocols.util.timers import Backoff

TRUST = 3
"""Attempts at a peer that may fail in a row before it stops being worth a link of ours: an attempt may fail by bad
luck, three don't."""
PATIENCE = 8
"""Attempts in a row that may fail before a peer is forgotten by one that has links: some two minutes."""
HEARSAY_WAITS = 3.0
"""Seconds until a peer that was only named is dialed, and half as long again at most: by then we know our place, and
it is mostly somebody else's."""
FOUND_LASTS = 20.0
"""Seconds for which a link on the ring may be given up for a peer found at its place, rather than a long one."""
DEPARTED_LASTS = 60.0
"""Seconds for which nobody is believed that a peer is there that said goodbye: lists that name it have washed out."""
SILENT_LASTS = 15.0
"""Likewise for a peer whose link fell silent: until all its neighbours have noticed."""

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
    "joined": Word(vouches=False),  # it makes an offer itself, for which it gets `TopologyConfig.announced_grace`
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
    leaf: bool = False
    """It is no part of the ring, as it said: it may have one link only, or does not prove who it is."""
    vouched: bool = False
    """A source that should know said that it is there, and did not just name it."""
    rests_until: float = -math.inf
    """Not to be tried before, without that being held against it."""
    found_until: float = -math.inf
    """We have just found it at its place ourselves: it is as good as certain that there will be a link to it."""

    @property
    def is_leaf(self) -> bool:
        return self.leaf or self.version == 0

    @property
    def is_worth_a_link(self) -> bool:
        """Whether to give up a link to try this peer: it could break the mesh for a peer that isn't there."""
        return self.vouched and self.misses < TRUST


class PassiveView:
    """The table. Peers are kept in the order in which they were last heard of."""

    def __init__(
        self,
        me: PeerId,
        config: TopologyConfig,
        rng: random.Random,
        blocked: Container[PeerId] = frozenset(),
        *,
        serves_originals: bool = False,
    ) -> None:
        """Make an empty view.

        With `serves_originals` a link is given up for a peer that has joined: one of the original may wait for that.
        """
        self._me = me
        self._blocked = blocked
        self._limit = config.known_peers
        self._backoff = Backoff(config.retry_first, config.retry_cap)
        self._config = config
        self._rng = rng
        self._peers: OrderedDict[PeerId, Known] = OrderedDict()
        self._absent = LruTable[float](config.known_peers)
        """Until when peers that departed or fell silent are not believed to be there. Most have left the table."""
        self._hopeless = LruTable[float](config.known_peers)
        """Until when peers to which no address leads are not dialed, whoever names them, and forgotten or not."""
        grace = config.announced_grace
        self._sources = {**SOURCES, "joined": Word(vouches=serves_originals, waits=(0.75 * grace, grace))}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def met(self) -> list[PeerId]:
        """Peers that spoke to us themselves, so that they are there."""
        return [peer for peer, known in self._peers.items() if known.version is not None]

    # --- what is said -------------------------------------------------------------------------------------------------

    def learn(self, peers: Iterable[PeerId], source: Said, now: float) -> bool:
        """These peers are said to be there. Whether that is news."""
        word = self._sources[source]
        wait = -math.inf if word.waits is None else now + self._rng.uniform(*word.waits)
        news = word.urges or word.finds
        for peer in peers:
            if peer == self._me or peer in self._blocked or (not word.overrules and self._is_absent(peer, now)):
                continue
            known = self._peers.get(peer)
            if known is None:
                known = self._add(peer)
                known.rests_until = wait
                news = True
            known.vouched |= word.vouches
            if word.finds:
                known.misses = 0
                known.found_until, known.rests_until = now + FOUND_LASTS, -math.inf
            self._peers.move_to_end(peer)
        if word.urges:
            self.urge(peers, now)
        return news

    def heard(self, peer: PeerId, version: int) -> None:
        """The peer itself spoke to us."""
        known = self._peers.get(peer) or self._add(peer)
        known.version = version
        self._absent.pop(peer)
        self._peers.move_to_end(peer)

    def urge(self, peers: Iterable[PeerId], now: float) -> None:
        """These are said to be next to us: they need not wait, unless they have failed too often before."""
        for peer in peers:
            known = self._peers.get(peer)
            if known is not None and known.misses < TRUST and not self._is_absent(peer, now):
                known.rests_until = -math.inf

    def wake(self, peers: Iterable[PeerId]) -> None:
        """These are there, and it was we who were cut off: they need not wait, unless attempts at them failed."""
        for peer in peers:
            known = self._peers.get(peer)
            if known is not None and not known.misses:
                known.rests_until = -math.inf

    # --- how attempts and links went ----------------------------------------------------------------------------------

    def linked(self, peer: PeerId, version: int, *, leaf: bool) -> None:
        """A link to it opened."""
        self.heard(peer, version)
        known = self._peers[peer]
        known.misses, known.leaf = 0, leaf
        self._hopeless.pop(peer)

    def despair(self, peer: PeerId, now: float) -> None:
        """No address leads to it: that may change, but not soon."""
        self._hopeless.put(peer, now + self._config.retry_cap * self._rng.uniform(1, 2))

    def may_dial(self, peer: PeerId, now: float) -> bool:
        """Whether an attempt at it may come to something."""
        return peer not in self._blocked and (self._hopeless.get(peer) or -math.inf) <= now

    def missed(self, peer: PeerId, now: float, *, may_forget: bool) -> None:
        """An attempt at it came to nothing. After too many it may be forgotten, if we have others."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.misses += 1
        known.rests_until = now + self._backoff.delay(known.misses, self._rng)
        if known.misses >= PATIENCE and may_forget:
            del self._peers[peer]

    def forgive(self) -> None:
        """The mesh was cut, and is not any more: failed attempts are held against nobody, the cut may have been why.

        When each is tried again stays as it is: peers next to us will be named again (`urge`), and for the others
        there is no hurry.
        """
        for known in self._peers.values():
            known.misses = 0

    def pause(self, peer: PeerId, until: float) -> None:
        """Don't try it before then, without holding anything against it."""
        known = self._peers.get(peer) or self._add(peer)
        known.rests_until = until

    def departed(self, peer: PeerId, now: float) -> None:
        """It said goodbye: forgotten, and for a while not taken for there because others say so."""
        self.forget(peer)
        self.disbelieve(peer, now + DEPARTED_LASTS)

    def disbelieve(self, peer: PeerId, until: float) -> None:
        """It is probably gone: others may not know yet, and still name it."""
        self._absent.put(peer, until)

    def forget(self, peer: PeerId) -> None:
        self._peers.pop(peer, None)

    def _is_absent(self, peer: PeerId, now: float) -> bool:
        return (self._absent.get(peer) or -math.inf) > now

    # --- what follows -------------------------------------------------------------------------------------------------

    def of(self, peer: PeerId) -> Known:
        """What is known of a peer."""
        return self._peers.get(peer) or Known()

    def ready(self, now: float, without: Collection[PeerId]) -> list[PeerId]:
        """Peers that may be tried now."""
        return [
            peer
            for peer, known in self._peers.items()
            if known.rests_until <= now and peer not in without and self.may_dial(peer, now)
        ]

    def next_ready(self, now: float) -> float:
        """When the next peer may be tried that may not be now."""
        ends = (max(known.rests_until, self._hopeless.get(peer) or -math.inf) for peer, known in self._peers.items())
        return min((end for end in ends if end > now), default=math.inf)

    def nearer(
        self,
        before: PeerId | None,
        after: PeerId | None,
        without: Collection[PeerId],
        now: float,
        *,
        worthy: bool,
        crowd: Crowd,
    ) -> tuple[list[PeerId], float]:
        """Peers nearer to us on the ring than those two, one in each direction; and when the next may be tried.

        If `worthy`, only peers count that are worth a link; those of a crowd never.
        """
        me = self._me
        best_after, best_before, moment = after, before, math.inf
        for peer, known in self._peers.items():
            if peer in without or peer in crowd or peer in self._blocked:
                continue
            if best_before is not None and best_after is not None and not between(best_before, peer, best_after):
                continue  # most peers
            follows = best_after is None or between(me, peer, best_after)
            precedes = best_before is None or between(best_before, peer, me)
            if known.is_leaf or (worthy and not known.is_worth_a_link):
                continue
            rests_until = max(known.rests_until, self._hopeless.get(peer) or -math.inf)
            if rests_until > now:
                moment = min(moment, rests_until)
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
