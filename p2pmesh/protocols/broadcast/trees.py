"""Which neighbours get a broadcast as a copy, and which only hear of it: a spanning tree for each origin.

Plumtree (Leitao, Pereira, Rodrigues: Epidemic Broadcast Trees, SRDS 2007) grows one tree for all origins: good while one
peer sends, but from elsewhere the way leads up to the middle of the tree and down again, twice as far as a flood goes.
Here each origin that was heard lately has a tree of its own, and the first broadcast of an origin grows it:

- Near its origin a broadcast meets hardly anybody who has it, so copies are sent over all links. How far that goes on shows in
  the acks; see `NoveltyEstimate`.
- Beyond that, a broadcast is *offered*: announced over all links at once, and asked for by who lacks it from who announced
  it first. That brings no redundant copies, and ways as short as a flood's, for two more times the latency of these hops.
- Who took a broadcast as new, copy or offer, is a child in its origin's tree from now on, and gets copies. Who had it has
  pruned the link for that origin: it gets announcements, which need no answer and may wait.

Simulated with 10,000 peers, a ring with 3 long links each, 10 to 100 ms apart, 9 links wide: with a new origin each time 0.24
redundant copies for each delivery once the acks have taught enough (after some ten broadcasts), the last hop the 13th; a flood's
last is the 17th, since it follows the fastest way and not the shortest. On average a broadcast is there after 0.46 s, a
flood after 0.32 s. One tree for all origins is published with 0.59 and a 19th hop. With one origin: 0.001
redundant copies after twenty broadcasts, the last hop the 12th, on average after 0.33 s.

What is known of a tree here: the neighbour that it reaches us by (`parent`), children, and pruned links. Links that open
later start pruned: who has no parent in a tree asks for the first thing that it hears of, and is a child then.

The parent is kept while it lives, even if others are first now and then, and who sends us copies besides is pruned. A
neighbour takes its place that is still first when nobody was pruned for `HOLD`: all know by then whom they send copies to, so
whatever is under way comes by one of the two, and the old parent is pruned after the new one has proved itself. Without that
pause two broadcasts that overtake each other prune both, and what follows at once comes only when it is asked for.

Trees are many, so sets of links are numbers in which each link has a bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

from attrs import define

from p2pmesh.keyspace import PeerId

HOLD = 1.0
"""Seconds that a prune and the acks after it take, on a bad link."""


@define(eq=False)
class Tree:
    """An origin's tree, as it is seen from here."""

    parent: PeerId | None
    """Who its broadcasts come from; None if they are ours, or nobody is known."""
    heard_at: float
    children: int = 0
    """Links that get copies."""
    pruned: int = 0
    """Links that get announcements."""
    pruned_at: float = -math.inf
    """When we last had a neighbour pruned, or asked one for copies."""
    swapped_at: float = -math.inf
    """When a shorter way was tried last."""

    def add_child(self, bit: int) -> None:
        self.children |= bit
        self.pruned &= ~bit

    def prune(self, bit: int) -> None:
        self.pruned |= bit
        self.children &= ~bit


class Trees:
    """The trees of the origins heard last."""

    def __init__(self, limit: int, life: float) -> None:
        self._limit = limit
        self._life = life
        self._trees: OrderedDict[str, Tree] = OrderedDict()

    def __len__(self) -> int:
        return len(self._trees)

    def __iter__(self) -> Iterator[Tree]:
        return iter(self._trees.values())

    def get(self, name: str, now: float) -> Tree | None:
        """The tree of an origin, unless that was silent for too long."""
        tree = self._trees.get(name)
        if tree is None or now - tree.heard_at > self._life:
            return None
        return tree

    def grown(self, name: str, parent: PeerId | None, now: float) -> Tree:
        """The tree of an origin that something new has come from, by this neighbour."""
        tree = self.get(name, now)
        if tree is None:
            tree = self._trees[name] = Tree(parent, now)
            if len(self._trees) > self._limit:
                self._trees.popitem(last=False)
        self._trees.move_to_end(name)
        tree.heard_at = now
        if tree.parent is None or now - tree.pruned_at >= HOLD:
            tree.parent = parent
        return tree

    def link_up(self, bit: int) -> None:
        for tree in self._trees.values():
            tree.prune(bit)

    def link_down(self, peer: PeerId, bit: int) -> None:
        for tree in self._trees.values():
            tree.children &= ~bit
            tree.pruned &= ~bit
            if tree.parent == peer:
                tree.parent = None


REMEMBERED = 16.0
"""Answers, about, that a share is counted over."""
NEARBY = 0.5
"""What an answer counts for where it is all the more to be expected: who had it after so many hops would have it after one
more, and who lacked it would have lacked it after one less."""


class NoveltyEstimate:
    """How likely somebody is to lack a broadcast that has come so many hops: the share of those who did, lately.

    Counted over copies and offers alike, where no tree said whom to send to, so it goes on learning whatever follows from
    it. After more hops than were ever seen what holds for the most seen holds; after fewer, all are taken to lack it.
    """

    def __init__(self) -> None:
        self._counted: list[float] = [0.0]
        self._lacked: list[float] = [0.0]

    def learn(self, hops: int, *, new: bool) -> None:
        """Somebody has answered to a broadcast that had come so many hops here."""
        while len(self._counted) <= hops + 1:
            self._counted.append(0.0)
            self._lacked.append(0.0)
        self._count(hops, 1.0, new=new)
        self._count(max(0, hops - 1) if new else hops + 1, NEARBY, new=new)

    def share(self, hops: int) -> float:
        """The share of neighbours that lack it."""
        counted = self._counted
        hops = min(hops, len(counted) - 1)
        while not counted[hops]:
            if hops == 0:
                return 1.0
            hops -= 1
        return self._lacked[hops] / counted[hops]

    def _count(self, hops: int, weight: float, *, new: bool) -> None:
        if self._counted[hops] + weight > REMEMBERED:
            left = (REMEMBERED - weight) / self._counted[hops]
            self._counted[hops] *= left
            self._lacked[hops] *= left
        self._counted[hops] += weight
        if new:
            self._lacked[hops] += weight


HALF_LIFE = 7.0


class FailurePressure:
    """How much goes wrong around us: a number that grows with each failure and halves every 7 s.

    A tree is thin: where it is broken, what is under way waits for somebody to notice. So while links fail, each broadcast
    goes to as many links more, beyond the tree, as failures count; all pruned ones at the most. When all is well it
    keeps to the tree.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._at = 0.0

    def add(self, weight: float, now: float) -> None:
        """Something went wrong; or, with a weight below zero, it turned out that it had not."""
        self._level = max(0.0, min(self.level(now) + weight, 16.0))
        self._at = now

    def level(self, now: float) -> float:
        if not self._level:
            return 0.0
        return self._level * math.exp2((self._at - now) / HALF_LIFE)
