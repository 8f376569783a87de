"""Receipts: how many peers have a broadcast, counted back along the way it took.

An echo algorithm (Chang 1982, after Segall's propagation of information with feedback, 1983), made to last when links and
peers don't. Who gave a peer a message first is its parent; who took it from a peer as new is its child; so each message has
a tree, rooted at its origin. A peer whose children have all settled tells its parent how many peers have the message by way
of it, itself included; while some have not, it passes on what it has now and then, and each handful at once.

**Never too many.** Think of a token that each peer makes when it gets a message, once. Tokens move towards the origin, and
`reached` is how many have come there. What a peer tells another is the number of tokens that it has handed to it *in total*,
so a receipt lost, doubled or late does no harm; the other takes what that is more than it had. A peer never tells all others
together of more than its own token and those it has taken. So over all peers, what is handed on is at most what is made
plus what is taken, and what is taken at most what is handed on: all that comes to the origin was made by a peer which has
the message. That needs no order, no clocks and no tree without loops, and it holds while links and peers come and go.
One token moves without a receipt: the origin counts who has acknowledged the message to it. Such a peer's parent is the
origin, to which alone it tells anything, and its total begins at 1 either way.

**Nearly all.** The parent stays who it is when the link to it ends; where it can't be told any more, the origin is told, by a
route: see `receipt_upstream`. A death costs the tokens that were on their way through the dead peer in that moment, and they
are on their way for about as long as the message took; and who leaves politely passes on its own first.

**Settled** is a broadcast once all children have answered, were given up on, or its ttl is over. A child whose link has
ended may still answer by a route, for `patience`. The application is told once: delivered, if at least one peer has it, or
failed; a broadcast that nobody took fails after `grace`, not at once, because a first link may be about to open. Counting
goes on after that, and `Progress` tells.

Who tells of more peers than there can be is believed for no more than that: `MeshSize` says how many there are, with room
for its being wrong, and what exceeds it counts once the mesh is found to be larger. If it never is, a neighbour that has
told of several times as many when the ttl ends has lied, and its link is closed; more than `most` is a lie at once. Peers
of the original project acknowledge nothing and are not counted.

Inputs: LinkUp, LinkDown, Received and RoutedReceived (GossipReceipts), ChildrenAdded, ChildSettled, RouteSucceeded, RouteFailed, MeshSize,
Leave. Effects: SendFrame, DropLink, Emit (MessageDelivered, MessageFailed), Progress, Notify to routing (Route, RouteReply).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from attrs import define

from p2pmesh.config import MeshConfig, ReceiptsConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import DropLink, Effect, Effects, Emit
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkUp, Received
from p2pmesh.protocols.notices import (
    ChildrenAdded,
    ChildSettled,
    Input,
    MeshSize,
    RoutedReceived,
    RouteFailed,
    RouteSucceeded,
)
from p2pmesh.protocols.receipts.outbox import Outbox
from p2pmesh.protocols.receipts.parent_link import ParentLink
from p2pmesh.protocols.receipts.tally import LIE, Child, CountDue, Own, Relayed, Tally, TallyTimer, believable
from p2pmesh.protocols.util.lru_table import ExpiringSet
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import GossipReceipts, Receipt


@define
class _Counts:
    delivered: int = 0
    failed: int = 0
    received: int = 0
    strays: int = 0
    implausible: int = 0
    dropped: int = 0


class ReceiptsCore:
    """The receipts of one peer: for its own broadcasts, and for those it passes on."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        del identity, wall  # receipts are neither signed nor dated
        self._config: ReceiptsConfig = config.receipts
        self._post = Outbox(self._config, rng, self._do, self._write)
        self._own: dict[str, Own] = {}
        self._relayed: dict[str, Relayed] = {}
        self._pushed_out: ExpiringSet[str, None] = ExpiringSet(self._config.table)  # a second token must not be made
        self._most = self._config.most
        self._timers: Timers[TallyTimer] = Timers()
        self._upstream = ParentLink(self._config, self._post, self._relayed, self._timers)
        self._counts = _Counts()
        self._left = False
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:  # the most frequent first
            case ChildSettled(message_id, child, adopted):
                self._hop_settled(message_id, child, adopted=adopted, now=now)
            case Received(peer, GossipReceipts() as message):
                self._received(peer, message, now)
            case ChildrenAdded():
                self._forwarded(event, now)
            case LinkUp(peer):
                self._post.link_up(peer)
            case LinkDown(peer, timed_out=silence):
                self._link_down(peer, is_silent=silence is not None, now=now)
            case RoutedReceived(peer, GossipReceipts(number=int() as number) as message, way) if peer.verified:
                is_here = message.to == self._post.epoch
                unknown = self._take_receipts(peer.peer_id, message.receipts, now, is_here=is_here, is_proven=True)
                self._post.answer_routed(way, number, unknown)
            case RouteSucceeded(call, peer, message=GossipReceipts() as message):
                self._post.arrived(call)
                self._upstream.answered(peer, message, now)
            case RouteSucceeded(call) | RouteFailed(call):
                self._upstream.unrouted(call, now)
            case MeshSize(peers):
                self._resized(peers, now)
            case Leave():
                self._leave(now)
            case _:
                pass  # for other cores
        return self._take(now)

    def next_deadline(self) -> float:
        return min(self._timers.next_deadline(), self._post.next_deadline())

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for due, message_id in self._timers.pop_due(now):
            tally = self._tally(message_id)
            if tally is None:
                continue
            match due:
                case CountDue.EXPIRY:
                    self._blame_liars(tally)
                    self._close(tally, now)
                    self._timers.set((CountDue.DROP, message_id), now + self._config.linger)
                case CountDue.DROP:
                    self._forget(tally)
                case CountDue.GRACE:
                    self._changed(tally, now)
                case CountDue.INTERIM if isinstance(tally, Relayed):
                    self._post.tell(tally.upstream, message_id, tally.epoch, now)
                case CountDue.INTERIM:
                    pass
                case CountDue.PATIENCE:
                    self._end_waiting(tally, now)
        self._post.expire(now)
        return self._take(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            **attrs.asdict(self._counts, recurse=False),
            "parents_lost": self._upstream.lost,
            **attrs.asdict(self._post.counts, recurse=False),
            "own": len(self._own),
            "undecided": sum(not own.is_decided for own in self._own.values()),
            "relayed": len(self._relayed),
            "boxes": len(self._post),
        }

    def _take(self, now: float) -> Effects:
        self._post.flush(now, everything=self._left)
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _tally(self, message_id: str) -> Tally | None:
        return self._own.get(message_id) or self._relayed.get(message_id)

    def _tallies(self) -> Iterator[Tally]:
        yield from self._own.values()
        yield from self._relayed.values()

    # --- what the broadcast core tells --------------------------------------------------------------------------------

    def _originated(self, event: ChildrenAdded, started: float, now: float) -> None:
        if event.message_id in self._own:
            return
        if len(self._own) >= self._config.table:
            self._push_out(next(iter(self._own.values())), now)
        self._own[event.message_id] = Own(event.message_id, event.expires, topic=event.topic, started=started)
        self._timers.set((CountDue.EXPIRY, event.message_id), event.expires)

    def _forwarded(self, event: ChildrenAdded, now: float) -> None:
        tally = self._tally_of(event, now)
        if tally is None:
            return
        if isinstance(tally, Own):
            tally.silent += event.silent
        for peer in event.children:
            child = tally.child(peer)
            if child is not None:
                self._await(tally, child, peer, now)
        self._changed(tally, now)

    def _tally_of(self, event: ChildrenAdded, now: float) -> Tally | None:
        if event.parent is None:
            if event.started is not None:
                self._originated(event, event.started, now)
            return self._own.get(event.message_id)
        tally = self._relayed.get(event.message_id)
        if tally is None and event.message_id not in self._pushed_out:
            if len(self._relayed) >= self._config.table:
                self._push_out(next(iter(self._relayed.values())), now)
            tally = Relayed(event.message_id, event.expires, upstream=event.parent, origin=event.origin)
            tally.epoch = self._post.epoch_of(event.parent)
            self._relayed[event.message_id] = tally
            self._timers.set((CountDue.EXPIRY, event.message_id), event.expires)
        return tally

    def _hop_settled(self, message_id: str, peer: PeerId, *, adopted: bool, now: float) -> None:
        tally = self._tally(message_id)
        child = tally.children.get(peer) if tally else None
        if tally is None or child is None:
            return
        if not adopted or child.has_settled:
            tally.settle(child)
        else:
            self._await(tally, child, peer, now)
        if adopted and isinstance(tally, Own):
            tally.take(child, 1, self._most)
        self._changed(tally, now)

    def _await(self, tally: Tally, child: Child, peer: PeerId, now: float) -> None:
        """An answer of this child is waited for; if it is no neighbour, for a while."""
        if self._post.has_link(peer):
            tally.wait_for(child)
            return
        tally.wait_for(child, now + self._config.patience)
        if (CountDue.PATIENCE, tally.message_id) not in self._timers:
            self._timers.set((CountDue.PATIENCE, tally.message_id), now + self._config.patience)

    def _end_waiting(self, tally: Tally, now: float) -> None:
        """Children whose links have not come back in time stand for what they last said."""
        later = tally.end_waiting(now, self._post.has_link)
        if later < tally.expires:
            self._timers.set((CountDue.PATIENCE, tally.message_id), later)
        self._changed(tally, now)

    # --- links and what comes over them, and over routes --------------------------------------------------------------

    def _link_down(self, peer: PeerId, *, is_silent: bool, now: float) -> None:
        """Children that went may still answer by a route, and a parent that went is told by one, if it may be alive."""
        self._post.link_down(peer)
        for tally in self._tallies():
            child = tally.children.get(peer)
            if child is not None and not child.settled:
                self._await(tally, child, peer, now)
        self._upstream.link_down(peer, now, is_silent=is_silent)

    def _received(self, peer: PeerId, message: GossipReceipts, now: float) -> None:
        if not self._post.has_link(peer):
            return  # it has just ended
        if message.epoch is not None:
            self._upstream.introduced(peer, message.epoch, now)
        if message.ask:
            self._post.introduce(peer)
        if message.number is not None:
            is_proven = self._post.is_verified(peer)
            unknown = self._take_receipts(peer, message.receipts, now, is_here=True, is_proven=is_proven)
            self._post.answer(peer, message.number, unknown, now)
        self._upstream.answered(peer, message, now)

    def _take_receipts(
        self, peer: PeerId, receipts: Sequence[Receipt], now: float, *, is_here: bool, is_proven: bool
    ) -> list[str]:
        """What a peer tells; `is_here`, whether it means this process. Those that we don't count for it."""
        unknown = []
        for receipt in receipts:
            tally, child = self._counted(peer, receipt.id, is_here=is_here, is_proven=is_proven)
            if tally is None or child is None:
                self._counts.strays += 1  # we have forgotten it, or never sent it there
                unknown.append(receipt.id)
            elif receipt.count > self._config.most:
                self._blame(peer)
            else:
                self._counts.received += 1
                self._hear(tally, child, peer, receipt, now)
        return unknown

    def _counted(
        self, peer: PeerId, message_id: str, *, is_here: bool, is_proven: bool
    ) -> tuple[Tally | None, Child | None]:
        """What this peer may count for: of ours whatever it likes, of others' what it has from us."""
        own = self._own.get(message_id)
        if own is not None:
            return own, own.child(peer) if is_proven else own.children.get(peer)
        relayed = self._relayed.get(message_id) if is_here else None
        return relayed, relayed.children.get(peer) if relayed else None

    def _hear(self, tally: Tally, child: Child, peer: PeerId, receipt: Receipt, now: float) -> None:
        tally.take(child, receipt.count, self._most)
        child.has_settled = receipt.settled
        if receipt.settled:
            tally.settle(child)
        else:
            self._await(tally, child, peer, now)
        self._changed(tally, now)

    # --- what follows -------------------------------------------------------------------------------------------------

    def _changed(self, tally: Tally, now: float) -> None:
        if isinstance(tally, Own):
            self._judge(tally, now)
        elif isinstance(tally, Relayed):
            self._upstream.consider(tally, now)

    def _judge(self, own: Own, now: float) -> None:
        """Our own: tell the application."""
        for effect in own.judge(now, self._config.grace):
            if isinstance(effect, Emit):
                self._counts.delivered += own.below > 0
                self._counts.failed += not own.below
            self._do(effect)
        if own.is_settled and not own.is_decided:
            self._timers.set((CountDue.GRACE, own.message_id), own.started + self._config.grace)

    def _write(self, peer: PeerId, message_id: str) -> Receipt | None:
        relayed = self._relayed.get(message_id)
        return relayed.write(peer, self._most) if relayed else None

    # --- too many -----------------------------------------------------------------------------------------------------

    def _resized(self, peers: int, now: float) -> None:
        """The mesh is so large: what was not believed of receipts may be so now."""
        self._most = self._upstream.most = believable(peers, self._config.most)
        for tally in self._tallies():
            doubted = [child for child in tally.children.values() if child.claimed > child.count]
            for child in doubted:
                tally.take(child, child.claimed, self._most)
            if doubted:
                self._changed(tally, now)

    def _blame_liars(self, tally: Tally) -> None:
        """Neighbours that have told of far more peers than there are, and nothing has borne them out."""
        for peer, child in tally.children.items():
            if child.claimed > LIE * self._most:
                self._blame(peer)

    def _blame(self, peer: PeerId) -> None:
        self._counts.implausible += 1
        if self._post.has_link(peer):
            self._do(DropLink(peer, "receipts of more peers than there are", blame=True))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _close(self, tally: Tally, now: float) -> None:
        tally.close()
        self._changed(tally, now)

    def _push_out(self, tally: Tally, now: float) -> None:
        """Make room: settle it as it stands."""
        self._counts.dropped += 1
        self._close(tally, now)
        self._post.flush(now, everything=True)
        self._pushed_out.add(tally.message_id, None, tally.expires, now)
        self._forget(tally)

    def _forget(self, tally: Tally) -> None:
        for due in CountDue:
            self._timers.cancel((due, tally.message_id))
        if isinstance(tally, Relayed):
            self._upstream.pay(tally)
            self._post.forget(tally.upstream, tally.message_id)
        self._own.pop(tally.message_id, None)
        self._relayed.pop(tally.message_id, None)

    def _leave(self, now: float) -> None:
        self._left = self._upstream.is_leaving = True
        for tally in self._tallies():
            self._close(tally, now)
