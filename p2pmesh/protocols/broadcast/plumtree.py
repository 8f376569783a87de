"""How a broadcast goes on from here: as a copy, an offer or an announcement, by its origin's tree; see `tree` for why.

An ack tells what a copy or an offer was worth, and that is how trees grow: `new` makes a child, `prune` ends being one. A
graft makes a child, too. Who gets a broadcast twice prunes the link that it came by second, unless that is its parent by
now: so of two broadcasts that overtake each other, each may come by another way, and one parent is left.

A way that would be much shorter shows in an announcement with far fewer hops: its sender is asked for copies, too, and once
they are first for a while becomes the parent, as `tree` says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import zip_longest

from attrs import define

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import EagerPush, tell_receipts
from p2pmesh.protocols.broadcast.graft import GraftScheduler
from p2pmesh.protocols.broadcast.hop_acks import AckKind, HopAcks
from p2pmesh.protocols.broadcast.lazy_push import LazyPush
from p2pmesh.protocols.broadcast.message_store import MessageStore, StoredMessage, tree_of
from p2pmesh.protocols.broadcast.send_window import SendWindow
from p2pmesh.protocols.broadcast.trees import FailurePressure, NoveltyEstimate, Tree, Trees
from p2pmesh.protocols.effects import DropLink, Effect, SendFrame
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.notices import ChildrenAdded
from p2pmesh.protocols.util.local_health import LocalHealth
from p2pmesh.wire.messages import GossipAck, GossipGraft, GossipIHave

SWAP_PAUSE = 5.0
"""Seconds between tries of a shorter way in one tree."""
SWAP_WITHIN = 2.0
"""Seconds after a broadcast came in which what others say of its way is taken for the way that the next will take."""
STILL_SPREADING = 2.0
"""Seconds in which a broadcast is still on its way: one that a new neighbour had first goes on by the tree, and its receipts
with it. Older ones are what we missed, and others hardly have: they are announced only."""
MOST_SERVED = 6
"""Times that one neighbour gets one broadcast for the asking."""
STRAYS = 1000
STRAYS_IN = 10.0
"""A neighbour that asks for so many broadcasts in this time that are not here, or that it got already, is sent away."""
LOST_UNREST = 1.0
CLOSED_UNREST = 0.5
"""What the end of a link adds to unrest, if it fell silent and if it was closed."""
BUSY_WITH = 8
"""Unacknowledged broadcasts of a link that gets no more than its trees bring: so many are no sign of a loss but of much to do,
and what comes late because of that must not cause more of it."""


@define
class TreeCounts:
    """What became of trees, since the start."""

    grafted: int = 0
    pruned: int = 0
    swapped: int = 0
    strays: int = 0


@define
class _Strays:
    since: float
    count: int = 0


class Plumtree:
    """The links to neighbours that speak our protocol, and all that goes over them unless it is asked for."""

    def __init__(
        self,
        config: BroadcastConfig,
        rng: random.Random,
        history: MessageStore,
        do: Callable[[Effect], None],
    ) -> None:
        self.counts: TreeCounts = TreeCounts()
        self.unrest: FailurePressure = FailurePressure()
        self.trees: Trees = Trees(config.trees, config.tree_life)
        self.reach: NoveltyEstimate = NoveltyEstimate()
        self.lag: LocalHealth = LocalHealth()
        self.hops: EagerPush = EagerPush(config, rng, history, self.unrest, self.lag, do)
        self.acks: HopAcks = HopAcks(config.ack_delay, do)
        self.announcements: LazyPush = LazyPush(config, rng, history, self.unrest, do)
        self.awaited: GraftScheduler = GraftScheduler(config, self.hops, self.unrest, self.lag, do)
        self._config = config
        self._history = history
        self._do = do
        self._strays: dict[PeerId, _Strays] = {}

    def next_deadline(self) -> float:
        """When `expire` wants to be called."""
        return min(
            self.hops.next_deadline(),
            self.acks.next_deadline(),
            self.announcements.due,
            self.awaited.next_deadline(),
        )

    def expire(self, now: float) -> None:
        """Do what is due."""
        self.lag.note(self.next_deadline(), now)
        self.hops.expire(now)
        self.awaited.expire(now)
        self.announcements.flush(now)

    def up(self, peer: RemotePeer) -> None:
        """A link is open."""
        link = self.hops.up(peer)
        self.trees.link_up(link.bit)

    def down(self, peer: PeerId, now: float, *, was_lost: bool) -> None:
        """It has ended."""
        link = self.hops.down(peer)
        if link is None:
            return
        self.unrest.add(LOST_UNREST if was_lost else CLOSED_UNREST, now)
        self.trees.link_down(peer, link.bit)
        self.acks.down(peer)
        self.announcements.down(peer)
        self.awaited.down(peer, now)
        self._strays.pop(peer, None)

    # --- sending ------------------------------------------------------------------------------------------------------

    def spread(self, kept: StoredMessage, now: float, *, may_go_on: bool, was_pulled: bool, silent: int) -> int:
        """A broadcast is new here, and may go on. Gives how many neighbours hear of it."""
        tree = self.trees.grown(kept.tree, kept.parent, now)
        parent = None if kept.parent is None or tree.parent != kept.parent else self.hops.get(kept.parent)
        if parent is not None:
            tree.prune(parent.bit)
        is_old = was_pulled and kept.age(now) > STILL_SPREADING * 1000
        links = [link for link in self.hops if not kept.is_held_by(link.peer.peer_id)] if may_go_on else []
        nobody: list[SendWindow] = []
        copies, offers, told = (nobody, nobody, links) if is_old else self._sorted(tree, links, kept.hops, now)
        self._tell_forwarded(kept, [*copies, *offers], silent)
        if copies:
            self.hops.copy(kept, copies, now)
        if offers:
            self.hops.offer(kept, offers, now)
        if told:
            self.announcements.add(kept, told, now)
        return len(links)

    def _sorted(
        self, tree: Tree, links: Sequence[SendWindow], hops: int, now: float
    ) -> tuple[list[SendWindow], list[SendWindow], list[SendWindow]]:
        """Who gets a copy, who an offer, and who only hears of it."""
        copies: list[SendWindow] = []
        offers: list[SendWindow] = []
        told: list[SendWindow] = []
        extra = 0 if self.hops.is_overloaded(now) else int(self.unrest.level(now))
        strangers = copies if extra or self.reach.share(hops) >= self._config.push_above else offers
        for link in links:
            if tree.children & link.bit:
                copies.append(link)
            elif not tree.pruned & link.bit:
                strangers.append(link)
            elif extra > 0 and link.flight < BUSY_WITH:
                extra -= 1
                copies.append(link)
            else:
                told.append(link)
        return copies, offers, told

    def _tell_forwarded(self, kept: StoredMessage, links: Sequence[SendWindow], silent: int = 0) -> None:
        children = tuple([link.peer.peer_id for link in links])
        origin = kept.data.origin_peer_id
        tell_receipts(
            self._do, kept, ChildrenAdded(kept.data.id, kept.parent, children, kept.expires, silent, origin=origin)
        )

    def serve(
        self, link: SendWindow, ids: Sequence[str], may_go_on: Callable[[StoredMessage], bool], now: float
    ) -> None:
        """A neighbour asks for these."""
        peer = link.peer.peer_id
        for message_id in ids:
            kept = self._history.get(message_id)
            if kept is None or kept.parent == peer or not may_go_on(kept) or kept.asked_by(peer) > MOST_SERVED:
                self._stray(peer, now)
                continue
            if message_id not in link:
                self._tell_forwarded(kept, [link])
            self.hops.grafted(link, kept, now)

    def _stray(self, peer: PeerId, now: float) -> None:
        self.counts.strays += 1
        strays = self._strays.get(peer)
        if strays is None or now - strays.since > STRAYS_IN:
            strays = self._strays[peer] = _Strays(now)
        strays.count += 1
        if strays.count == STRAYS:
            self._do(DropLink(peer, "it asks for broadcasts that are not here", blame=True))

    # --- what neighbours say ------------------------------------------------------------------------------------------

    def acked(self, link: SendWindow, ack: GossipAck, now: float) -> None:
        """What copies and offers of ours were worth."""
        for verdict, ids in ((AckKind.NEW, ack.new), (AckKind.HAD, ack.had), (AckKind.PRUNE, ack.prune)):
            for message_id in ids:
                kept = self._history.get(message_id)
                if kept is None:
                    continue
                # What crossed an announcement was settled by that, but whether it prunes only the ack tells.
                if self.hops.acked(link, kept, new=verdict is AckKind.NEW, now=now) or verdict is AckKind.PRUNE:
                    self._learn(link, kept, verdict, now)

    def _learn(self, link: SendWindow, kept: StoredMessage, verdict: AckKind, now: float) -> None:
        tree = self.trees.get(kept.tree, now)
        if tree is None or not (tree.children | tree.pruned) & link.bit:
            self.reach.learn(kept.hops, new=verdict is AckKind.NEW)
        if tree is None or verdict is AckKind.HAD:
            return
        if verdict is AckKind.NEW:
            tree.add_child(link.bit)
        else:
            self.counts.pruned += 1
            tree.prune(link.bit)

    def duplicate(
        self, link: SendWindow, message_id: str, tree_name: str, came_from: PeerId | None, now: float
    ) -> None:
        """A copy or an offer of what is here.

        Two that cross on a link stand for each other's acks; from whom we have it, our ack was lost.
        """
        peer = link.peer.peer_id
        kept = self._history.get(message_id)
        if came_from == peer:
            self.acks.add(peer, message_id, AckKind.NEW, now)
            return
        tree = self.trees.get(tree_name, now)
        is_parent = tree is not None and tree.parent == peer
        if tree is not None and not is_parent:
            tree.pruned_at = now
        if kept is not None and self.hops.crossed(link, kept, now):
            self._learn(link, kept, AckKind.PRUNE, now)
            return
        self.acks.add(peer, message_id, AckKind.HAD if is_parent else AckKind.PRUNE, now)
        if kept is not None:
            self.hops.spare(peer, kept)

    def arrived(self, peer: PeerId, kept: StoredMessage, now: float) -> None:
        """A neighbour has sent what is new here."""
        self.acks.add(peer, kept.data.id, AckKind.NEW, now)
        others, offerers = self.awaited.arrived(peer, kept.data.id, now)
        for other in others:
            kept.held_by(other)
        tree = self.trees.get(kept.tree, now)
        for other in offerers:
            is_parent = tree is not None and tree.parent == other
            self.acks.add(other, kept.data.id, AckKind.HAD if is_parent else AckKind.PRUNE, now)

    def announced(
        self, link: SendWindow, heard: GossipIHave, who_gave: Callable[[str], tuple[bool, PeerId | None]], now: float
    ) -> None:
        """A neighbour has these, and sends none of them unasked."""
        for message_id, hops in zip_longest(heard.ids, heard.hops[: len(heard.ids)], fillvalue=255):
            is_seen, giver = who_gave(str(message_id))
            if not is_seen:
                self._await(link, str(message_id), heard, now)
            elif heard.offer:
                self.duplicate(link, str(message_id), tree_of(str(message_id)), giver, now)
            else:
                self._heard_of(link, str(message_id), int(hops), now)

    def _await(self, link: SendWindow, message_id: str, heard: GossipIHave, now: float) -> None:
        tree = self.trees.get(tree_of(message_id), now)
        parent = self.hops.get(tree.parent) if tree is not None and tree.parent is not None else None
        if parent is link:
            parent = None
        self.awaited.announced(link, message_id, heard, parent, now)

    def _heard_of(self, link: SendWindow, message_id: str, hops: int, now: float) -> None:
        """A neighbour announces what we have."""
        kept = self._history.get(message_id)
        if kept is None:
            return
        if not self.hops.crossed(link, kept, now):
            self.hops.spare(link.peer.peer_id, kept)
        if kept.hops - (hops + 1) >= self._config.swap_hops and now - kept.since <= SWAP_WITHIN:
            self._swap(link, kept, now)

    def _swap(self, link: SendWindow, kept: StoredMessage, now: float) -> None:
        """By this neighbour it would have been much shorter."""
        tree, peer = self.trees.get(kept.tree, now), link.peer.peer_id
        if tree is None or tree.parent is None or tree.parent != kept.parent or tree.parent == peer:
            return
        if self.hops.get(tree.parent) is None:  # one of the original's, which knows no trees
            return
        if now - tree.swapped_at < SWAP_PAUSE or not self.awaited.keeps_promises(peer):
            return
        self.counts.swapped += 1
        self._do(SendFrame((peer,), GossipGraft(trees=(kept.tree,)), urgent=True))
        tree.swapped_at = tree.pruned_at = now
        tree.prune(link.bit)

    def grafted(
        self, link: SendWindow, graft: GossipGraft, may_go_on: Callable[[StoredMessage], bool], now: float
    ) -> None:
        """A neighbour wants to be our child."""
        for name in dict.fromkeys([*map(tree_of, graft.ids), *graft.trees]):
            tree = self.trees.get(name, now)
            if tree is not None and tree.parent != link.peer.peer_id:
                self.counts.grafted += 1
                tree.add_child(link.bit)
        self.serve(link, graft.ids, may_go_on, now)
