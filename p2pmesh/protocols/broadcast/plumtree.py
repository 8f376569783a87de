"""Which links are eager and which are lazy: a spanning tree for each origin.

Plumtree (Leitao, Pereira, Rodrigues: Epidemic Broadcast Trees, SRDS 2007) grows one tree for all origins: good while
one peer sends, but from elsewhere the way leads up to the middle of the tree and down again, twice as far as a flood
goes. Here each origin that was heard lately has a tree of its own, and the first broadcast of an origin grows it:

- Near its origin a broadcast meets hardly anybody who has it, so copies are sent over all links. How far that goes on
  shows in the acks; see `NoveltyEstimate`.
- Beyond that, a broadcast is *offered*: announced over all links at once, and a peer that lacks it asks the one that
  announced it first. That brings no redundant copies, and ways as short as a flood's, for two more times the latency
  of these hops.
- A neighbour that took a broadcast as new, copy or offer, is a child in its origin's tree from now on: its link is
  eager, and gets copies. One that had it has pruned the link for that origin: it is lazy, and gets announcements,
  which need no answer and may wait. A graft makes a link eager again.

Simulated with 10,000 peers, a ring with 3 long links each, 10 to 100 ms apart, 9 links wide: with a new origin each
time 0.24 redundant copies for each delivery once the acks have taught enough (after some ten broadcasts), the last
hop the 13th; a flood's last is the 17th, since it follows the fastest way and not the shortest. On average a
broadcast is there after 0.46 s, a flood after 0.32 s. One tree for all origins is published with 0.59 and a 19th hop.
With one origin: 0.001 redundant copies after twenty broadcasts, the last hop the 12th, on average after 0.33 s.

What is known of a tree here: the neighbour that it reaches us by (`parent`), eager links and lazy links. Links that
open later start lazy: a peer without a parent in a tree asks for the first thing that it hears of, and is a child
then.

The parent is kept while it lives, even if others are first now and then, and a peer that sends us copies besides is
pruned. A neighbour takes its place that is still first when nobody was pruned for `HOLD`: all know by then whom they
send copies to, so whatever is under way comes by one of the two. Without that pause two broadcasts that overtake each
other prune both, and what follows at once comes only when it is asked for.

In go new messages with the links that lack them, and what acks teach; out come `Targets`, and the kind of ack that an
offer or a duplicate deserves.
State: at most `BroadcastConfig.trees` trees, in which sets of links are numbers in which each link has a bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attrs import asdict, define

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import AckKind, SendWindow
from p2pmesh.protocols.broadcast.message_store import StoredMessage

HOLD = 1.0
"""Seconds that a prune and the acks after it take, on a bad link."""
BUSY_WITH = 8
"""Unacknowledged broadcasts of a link that gets no more than its trees bring: so many are no sign of a loss but of
much to do, and what comes late because of that must not cause more of it."""
REMEMBERED = 16.0
"""Answers, about, that a share is counted over."""
NEARBY = 0.5
"""What an answer counts for where it is all the more to be expected: a peer that had it after so many hops would have
it after one more, and one that lacked it would have lacked it after one less."""


class Targets(NamedTuple):
    """The links that a broadcast goes on by."""

    eager: Sequence[SendWindow]
    """Get a copy."""
    offered: Sequence[SendWindow]
    """Get an offer: an announcement to be answered."""
    lazy: Sequence[SendWindow]
    """Get an announcement, soon."""


@define(eq=False)
class Tree:
    """An origin's tree, as it is seen from here."""

    parent: PeerId | None
    """The neighbour that its broadcasts come from; None if they are ours, or none is known."""
    heard_at: float
    eager: int = 0
    """Links that get copies: to children."""
    lazy: int = 0
    """Links that get announcements."""
    pruned_at: float = -math.inf
    """When we last had a neighbour pruned."""

    def graft(self, bit: int) -> None:
        self.eager |= bit
        self.lazy &= ~bit

    def prune(self, bit: int) -> None:
        self.lazy |= bit
        self.eager &= ~bit


class NoveltyEstimate:
    """How likely somebody is to lack a broadcast that has come so many hops: the share of those who did, lately.

    Counted over copies and offers alike, where no tree said whom to send to, so it goes on learning whatever follows
    from it. After more hops than were ever seen, what holds for the most seen holds; after fewer, all are taken to
    lack it.
    """

    def __init__(self) -> None:
        self._counted: list[float] = [0.0]
        self._lacked: list[float] = [0.0]

    def learn(self, hops: int, *, new: bool) -> None:
        """Note an answer to a broadcast that had come so many hops here."""
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


@define
class PlumtreeCounts:
    """What became of trees, since the start."""

    grafted: int = 0
    pruned: int = 0


class Plumtree:
    """Decides how a broadcast goes on from here."""

    def __init__(self, config: BroadcastConfig, links: Mapping[PeerId, SendWindow]) -> None:
        self.counts: PlumtreeCounts = PlumtreeCounts()
        self._config = config
        self._links = links
        self._trees: OrderedDict[str, Tree] = OrderedDict()  # by origins, the one heard last at the end
        self._novelty = NoveltyEstimate()

    def snapshot(self) -> dict[str, int]:
        return {"trees": len(self._trees), **asdict(self.counts)}

    def up(self, link: SendWindow) -> None:
        """Begin with a link: it is lazy in every tree."""
        for tree in self._trees.values():
            tree.prune(link.bit)

    def down(self, link: SendWindow) -> None:
        """Forget a link that has ended."""
        for tree in self._trees.values():
            tree.eager &= ~link.bit
            tree.lazy &= ~link.bit
            if tree.parent == link.peer.peer_id:
                tree.parent = None

    def targets(self, message: StoredMessage, links: Sequence[SendWindow], extra: int, now: float) -> Targets:
        """Sort the links by which a new broadcast goes on; `extra` lazy ones get copies, because much goes wrong."""
        tree = self._grown(message, now)
        eager: list[SendWindow] = []
        offered: list[SendWindow] = []
        lazy: list[SendWindow] = []
        is_new_to_most = extra or self._novelty.share(message.hops) >= self._config.push_above
        unsorted = eager if is_new_to_most else offered
        for link in links:
            if tree.eager & link.bit:
                eager.append(link)
            elif not tree.lazy & link.bit:
                unsorted.append(link)
            elif extra > 0 and len(link.in_flight) < BUSY_WITH:
                extra -= 1
                eager.append(link)
            else:
                lazy.append(link)
        return Targets(eager, offered, lazy)

    def all_lazy(self, message: StoredMessage, links: Sequence[SendWindow], now: float) -> Targets:
        """Announce a broadcast that is no news: hardly any neighbour lacks it."""
        self._grown(message, now)
        return Targets((), (), links)

    def _tree(self, name: str, now: float) -> Tree | None:
        """The tree of an origin, unless that was silent for too long."""
        tree = self._trees.get(name)
        return tree if tree is not None and now - tree.heard_at <= self._config.tree_life else None

    def _grown(self, message: StoredMessage, now: float) -> Tree:
        """The tree of an origin that something new has come from."""
        tree = self._tree(message.tree, now)
        if tree is None:
            tree = self._trees[message.tree] = Tree(message.parent, now)
            if len(self._trees) > self._config.trees:
                self._trees.popitem(last=False)
        self._trees.move_to_end(message.tree)
        tree.heard_at = now
        if tree.parent is None or now - tree.pruned_at >= HOLD:
            tree.parent = message.parent
        parent = None if message.parent is None or tree.parent != message.parent else self._links.get(message.parent)
        if parent is not None:
            tree.prune(parent.bit)
        return tree

    def parent_of(self, tree_name: str, now: float) -> SendWindow | None:
        """The link to the parent in a tree, if there is one."""
        tree = self._tree(tree_name, now)
        return None if tree is None or tree.parent is None else self._links.get(tree.parent)

    def learn(self, link: SendWindow, message: StoredMessage, kind: AckKind, now: float) -> None:
        """Grow the tree by what a copy or an offer of ours was worth."""
        tree = self._tree(message.tree, now)
        if tree is None or not (tree.eager | tree.lazy) & link.bit:
            self._novelty.learn(message.hops, new=kind is AckKind.NEW)
        if tree is None or kind is AckKind.HAD:
            return
        if kind is AckKind.NEW:
            tree.graft(link.bit)
        else:
            self.counts.pruned += 1
            tree.prune(link.bit)

    def ack_for_offer(self, peer: PeerId, tree_name: str, now: float) -> AckKind:
        """What to say to a neighbour whose offer was not taken up: only the parent is to go on."""
        tree = self._tree(tree_name, now)
        return AckKind.HAD if tree is not None and tree.parent == peer else AckKind.PRUNE

    def ack_for_duplicate(self, peer: PeerId, tree_name: str, now: float) -> AckKind:
        """What to say to a neighbour that has sent what we had. Parents stay for a while after a prune."""
        kind, tree = self.ack_for_offer(peer, tree_name, now), self._tree(tree_name, now)
        if kind is AckKind.PRUNE and tree is not None:
            tree.pruned_at = now
        return kind

    def grafted(self, link: SendWindow, tree_name: str, now: float) -> None:
        """Make a neighbour a child that wants to be one."""
        tree = self._tree(tree_name, now)
        if tree is not None and tree.parent != link.peer.peer_id:
            self.counts.grafted += 1
            tree.graft(link.bit)
