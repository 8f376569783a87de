"""Receipts: how many peers have a broadcast, counted back along the way it took.

An echo algorithm (Chang 1982, after Segall's propagation of information with feedback, 1983), made to last when links
and peers don't. The peer that gave us a message first is our parent; one that took it from us as new is our child; so
each message has a tree, rooted at its origin. A peer whose children have all settled tells its parent how many peers
have the message by way of it, itself included; while some have not, it passes on what it has now and then.

**Never too many.** Think of a token that each peer makes when it gets a message, once. Tokens move towards the
origin, and `reached` is how many have come there. What a peer tells another is the number of tokens that it has
handed to it *in total*, so a receipt lost, doubled or late does no harm; the other takes what that is more than it
had. A peer never tells all others together of more than its own token and those it has taken. So over all peers, what
is handed on is at most what is made plus what is taken, and what is taken at most what is handed on: all that comes
to the origin was made by a peer which has the message. That needs no order, no clocks and no tree without loops, and
it holds while links and peers come and go. One token moves without a receipt: the origin counts who has acknowledged
the message to it. Such a peer's parent is the origin, to which alone it tells anything, and its total begins at 1
either way.

**Nearly all.** The parent stays the parent when the link to it ends, and is told by a route instead. What was told
and not noted then is in doubt, and is told again as it was, nothing more, until it is noted. Where no route finds the
parent, what comes later goes to the origin from then on, by a route; what is in doubt, the *debt*, goes on being told
to the parent now and then, for it may be beyond a partition. If it is dead, or has restarted and forgotten (its epoch
tells), that is lost, and what it had not yet passed on: the tokens that were on their way through it in that moment,
and they are on their way for about as long as the message took. A peer that leaves politely passes on its own first.

**Settled** is a broadcast once all children have answered, were given up on, or its ttl is over. A child whose link has
ended may still answer by a route, for `patience`. Where that took long, answers get lost and repeated, and more may be
on their way: then nothing must change for a while, too. The application is told once: delivered, if at least one peer
has it, or failed. That is true for ever: a broadcast that nobody took fails when its ttl is over, not before, because a
link may open; or as soon as all neighbours have refused it for good, and then it is withdrawn, so that nobody who comes
gets it after all. Where a peer got it late and by another way than first, both ways are waited for until the one has
told that it counts there. One that may be with somebody when we leave is left undecided. Counting goes on after that,
and `Progress` tells.

All children of a broadcast are believed for no more peers than there can be: `MeshSize` says how many there are, with
room for its being wrong, and what exceeds it counts once the mesh is found to be larger. That is waited for, for
`patience`; then the application is told who told most (`ReceiptDisputed`). A neighbour that has told of several times
as many as are believed when the ttl ends has lied, and its link is closed; more than `most` is a lie at once. Peers of
the original project acknowledge nothing and are not counted.

*Evidence.* A neighbour that says it has a broadcast of ours already has it, by whatever way: so many peers have it at
least, though those that would have counted them are dead.

Inputs: LinkUp, LinkDown, Refused, Received, RoutedReceived, ChildrenAdded, ChildSettled, RouteSucceeded,
RouteFailed, MeshSize, Leave.
Effects: SendFrame, DropLink, Emit (MessageDelivered, MessageFailed, ReceiptDisputed), Progress, Notify routing (Route,
RouteReply) and broadcast (Withdraw).
Messages: GossipReceipts, over links and routes.
Config: ReceiptsConfig.
State: a tally for each broadcast until `linger` after its ttl, at most `table` of ours and as many of others, each
with at most `tally.MOST_CHILDREN` children and a few timers; the ids of those pushed out; the outbox.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import asdict, define

from p2pmesh.config import MeshConfig, ReceiptsConfig
from p2pmesh.events import ReceiptDisputed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import DropLink, Effects, Emit, Notify, SendFrame, WallClock
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkUp, Received, RemotePeer, Subsystem
from p2pmesh.protocols.notices import (
    ChildrenAdded,
    ChildSettled,
    Input,
    MeshSize,
    Refused,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
    Withdraw,
)
from p2pmesh.protocols.receipts.outbox import Batch, Outbox, Via
from p2pmesh.protocols.receipts.tally import LIE, Child, Own, Relayed, Tally, TallyDue, TallyTimer, believable
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.limits import ExpiringSet
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import GossipReceipts, Receipt

LATE = 0.25
"""Seconds after which a neighbour's answer that it had a broadcast already shows that this came there late."""
HAND_OVER = 1.0
"""Seconds until a child that has it by another way is not waited for: there it is told at once, but over some links."""


@define
class ReceiptCounts:
    """What became of broadcasts, and what others told of them."""

    delivered: int = 0
    failed: int = 0
    received: int = 0
    strays: int = 0
    """Receipts for what we have forgotten, or never sent there."""
    implausible: int = 0
    disputed: int = 0
    """Broadcasts of which children told too much, and nothing bore it out."""
    dropped: int = 0
    """Broadcasts settled before their time, to make room."""
    parents_lost: int = 0


class ReceiptsCore:
    """The receipts of one peer: for its own broadcasts, and for those it passes on."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        health: LocalHealth | None = None,
    ) -> None:
        del identity, wall  # receipts are neither signed nor dated
        self._config: ReceiptsConfig = config.receipts
        self._outbox = Outbox(self._config, rng, health)
        self._own: dict[str, Own] = {}
        self._relayed: dict[str, Relayed] = {}
        self._pushed_out: ExpiringSet[str, None] = ExpiringSet(self._config.table)  # a second token must not be made
        self._most = self._config.most  # peers that we believe, or tell of
        self._timers: Timers[TallyTimer] = Timers(health)
        self._counts = ReceiptCounts()
        self._left = False
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:  # the most frequent first
            case ChildSettled():
                self._on_child_settled(event, now)
            case Received(peer, GossipReceipts() as message):
                self._on_gossip_receipts(peer, message, now)
            case ChildrenAdded():
                self._on_children_added(event, now)
            case Refused():
                self._on_refused(event, now)
            case LinkUp(peer):
                self._on_link_up(peer)
            case LinkDown(peer, timed_out=silence):
                self._on_link_down(peer, is_silent=silence is not None, now=now)
            case RoutedReceived(peer, GossipReceipts(number=int() as number) as message, way) if peer.verified:
                self._on_routed_receipts(peer.peer_id, number, message, way, now)
            case RouteSucceeded(call, peer, message=GossipReceipts() as message):
                self._outbox.route_ended(call)
                self._on_noted(peer, message, now)
            case RouteSucceeded(call) | RouteFailed(call):
                self._on_route_failed(call, now)
            case MeshSize(peers):
                self._on_mesh_size(peers, now)
            case Leave():
                self._on_leave(now)
            case _:
                pass  # for other cores
        return self._take(now)

    def next_deadline(self) -> float:
        return min(self._timers.next_deadline(), self._outbox.next_deadline())

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for due, message_id in self._timers.pop_due(now):
            tally = self._tally(message_id)
            if tally is None:
                continue
            match due:
                case TallyDue.EXPIRY:
                    self._blame_liars(tally)
                    self._close(tally, now)
                    self._timers.set((TallyDue.DROP, message_id), now + self._config.linger)
                case TallyDue.DROP:
                    self._forget(tally)
                case TallyDue.QUIET:
                    self._changed(tally, now)
                case TallyDue.INTERIM if isinstance(tally, Relayed):
                    self._outbox.tell(tally.upstream, message_id, tally.epoch, now)
                case TallyDue.INTERIM:
                    pass
                case TallyDue.PATIENCE:
                    self._end_waiting(tally, now)
                case TallyDue.DOUBT:
                    self._end_doubt(tally, now)
        self._outbox.expire(now)
        return self._take(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "own": len(self._own),
            "undecided": sum(not own.is_decided for own in self._own.values()),
            "relayed": len(self._relayed),
            "counts": asdict(self._counts),
            "outbox": self._outbox.snapshot(),
        }

    def _take(self, now: float) -> Effects:
        """The effects, with what the outbox has for those whose turn it is."""
        self._flush(now, everything=self._left)
        effects, self._effects = self._effects, []
        return effects

    # --- what the broadcast core tells --------------------------------------------------------------------------------

    def _on_child_settled(self, event: ChildSettled, now: float) -> None:
        tally, peer, adopted = self._tally(event.message_id), event.child, event.adopted
        if isinstance(tally, Own) and event.is_there:
            tally.is_with(peer)
        child = tally.children.get(peer) if tally else None
        if tally is None:
            return
        if child is not None:
            if not (adopted or child.settled or self._outbox.has_link(peer)):
                child.hands_over = True  # it may have taken it, and tell us by a route
            elif adopted and not child.has_settled:
                self._await(tally, child, peer, now)
            elif adopted or child.settled or now - child.since < LATE:
                tally.settle(child)
            else:  # it came late by another way, whose peers may have told that all is settled
                self._hand_over(tally, child, now)
            if adopted and isinstance(tally, Own):
                tally.take(child, 1, self._most)
        self._changed(tally, now)

    def _on_refused(self, event: Refused, now: float) -> None:
        own = self._own.get(event.message_id)
        if own is None:
            return
        own.refusals[event.peer] = f"{short(event.peer)} refused it: {event.reason}"
        child = own.children.get(event.peer)
        if child is not None:
            own.settle(child)
        self._changed(own, now)

    def _on_children_added(self, event: ChildrenAdded, now: float) -> None:
        if event.started is not None:
            self._begin(event, event.started, now)
        tally = self._tally_of(event, now)
        if tally is None:
            return
        if isinstance(tally, Own):
            tally.silent += event.silent
        for peer in event.children:
            child = tally.child(peer)
            if child is not None:
                child.since = now
                self._await(tally, child, peer, now)
        self._changed(tally, now)

    def _begin(self, event: ChildrenAdded, started: float, now: float) -> None:
        """A broadcast of ours has begun."""
        if event.message_id in self._own:
            return
        if len(self._own) >= self._config.table:
            decided = (own for own in self._own.values() if own.is_decided)
            self._push_out(next(decided, None) or next(iter(self._own.values())), now)
        self._own[event.message_id] = Own(event.message_id, event.expires, topic=event.topic, started=started)
        self._timers.set((TallyDue.EXPIRY, event.message_id), event.expires)

    # --- receipts of others, and what they have noted -----------------------------------------------------------------

    def _on_gossip_receipts(self, peer: PeerId, message: GossipReceipts, now: float) -> None:
        if not self._outbox.has_link(peer):
            return  # it has just ended
        if message.epoch is not None:
            self._on_epoch(peer, message.epoch, now)
        if message.ask:
            self._introduce_ourselves(peer)
        if message.number is not None:
            is_proven = self._outbox.is_verified(peer)
            unknown = self._take_receipts(peer, message.receipts, now, is_here=True, is_proven=is_proven)
            self._outbox.answer(peer, message.number, unknown, now)
        self._on_noted(peer, message, now)

    def _on_routed_receipts(
        self, peer: PeerId, number: int, message: GossipReceipts, way: ReturnPath, now: float
    ) -> None:
        is_here = message.to == self._outbox.epoch
        unknown = self._take_receipts(peer, message.receipts, now, is_here=is_here, is_proven=True)
        answer = GossipReceipts(noted=(number,), unknown=tuple(unknown))
        self._effects.append(Notify(Subsystem.ROUTING, RouteReply(way, answer)))

    def _on_epoch(self, peer: PeerId, epoch: int, now: float) -> None:
        """A neighbour says which process it is: another one has forgotten what its predecessor was told."""
        known = self._outbox.epoch_of(peer)
        if known is not None:
            if known != epoch:
                self._effects.append(DropLink(peer, "a link leads to one process, and it tells of two", blame=True))
            return
        for relayed in self._relayed.values():
            if relayed.debt is not None and relayed.debt.peer == peer and relayed.debt.epoch != epoch:
                self._drop_debt(relayed)
            if relayed.upstream == peer and relayed.upstream != relayed.origin:
                if relayed.epoch is None:
                    relayed.epoch = epoch
                elif relayed.epoch != epoch:
                    self._lose_parent(relayed, now)
        self._outbox.introduced(peer, epoch)

    def _on_noted(self, peer: PeerId, message: GossipReceipts, now: float) -> None:
        """This peer has noted what we told it, but for what is unknown to it: there it is no parent any more."""
        for message_id in self._outbox.noted(peer, message.noted, now):
            relayed = self._relayed.get(message_id)
            if relayed is None:
                continue
            if relayed.debt is not None and relayed.debt.peer == peer:
                self._drop_debt(relayed)
            if relayed.upstream != peer:
                continue
            relayed.is_noted = True
            if message_id in message.unknown:
                self._lose_parent(relayed, now)
            else:
                self._tell_upstream(relayed, now)

    # --- links and routes ---------------------------------------------------------------------------------------------

    def _on_link_up(self, peer: RemotePeer) -> None:
        if peer.version == 0:
            return  # the original's peers tell nothing
        self._introduce_ourselves(peer.peer_id)
        self._outbox.link_up(peer)

    def _on_link_down(self, peer: PeerId, *, is_silent: bool, now: float) -> None:
        """Children that went may still answer by a route, and a parent that went is told by one, if it may be alive."""
        self._outbox.link_down(peer)
        for tally in self._tallies():
            child = tally.children.get(peer)
            if child is not None and not child.settled:
                self._await(tally, child, peer, now)
        for relayed in self._relayed.values():
            if relayed.upstream == peer and (relayed.epoch is None or (is_silent and relayed.is_noted)):
                self._lose_parent(relayed, now)

    def _on_route_failed(self, call: int, now: float) -> None:
        """A peer can't be reached. As a parent it is lost; as an origin it is tried again."""
        peer = self._outbox.route_failed(call, now)
        if peer is None or self._outbox.has_link(peer):
            return
        for relayed in self._relayed.values():
            if relayed.upstream == peer:
                self._lose_parent(relayed, now, keep_debt=True)

    def _on_mesh_size(self, peers: int, now: float) -> None:
        """The mesh is so large: what was not believed of receipts may be so now."""
        self._most = believable(peers, self._config.most)
        for tally in self._tallies():
            if tally.is_in_doubt:
                tally.believe(self._most)
                self._changed(tally, now)

    def _on_leave(self, now: float) -> None:
        self._left = True
        for tally in self._tallies():
            if not isinstance(tally, Own) or tally.below or not (tally.children or tally.silent):
                self._close(tally, now)

    # --- tallies ------------------------------------------------------------------------------------------------------

    def _tally(self, message_id: str) -> Tally | None:
        return self._own.get(message_id) or self._relayed.get(message_id)

    def _tallies(self) -> Iterator[Tally]:
        yield from self._own.values()
        yield from self._relayed.values()

    def _tally_of(self, event: ChildrenAdded, now: float) -> Tally | None:
        if event.parent is None:
            return self._own.get(event.message_id)
        tally = self._relayed.get(event.message_id)
        if tally is None and event.message_id not in self._pushed_out:
            if len(self._relayed) >= self._config.table:
                self._push_out(next(iter(self._relayed.values())), now)
            tally = Relayed(event.message_id, event.expires, upstream=event.parent, origin=event.origin)
            tally.epoch = self._outbox.epoch_of(event.parent)
            self._relayed[event.message_id] = tally
            self._timers.set((TallyDue.EXPIRY, event.message_id), event.expires)
        return tally

    def _await(self, tally: Tally, child: Child, peer: PeerId, now: float) -> None:
        """An answer of this child is waited for; if it is no neighbour, for a while."""
        if self._outbox.has_link(peer):
            tally.wait_for(child)
            return
        tally.wait_for(child, now + self._config.patience)
        if (TallyDue.PATIENCE, tally.message_id) not in self._timers:
            self._timers.wait((TallyDue.PATIENCE, tally.message_id), now + self._config.patience)

    def _hand_over(self, tally: Tally, child: Child, now: float) -> None:
        """Wait until it is known elsewhere that this child counts there."""
        tally.wait_for(child, now + HAND_OVER, hands_over=True)
        if (TallyDue.PATIENCE, tally.message_id) in self._timers:
            self._timers.cancel((TallyDue.PATIENCE, tally.message_id))
        self._timers.wait((TallyDue.PATIENCE, tally.message_id), tally.next_overdue)

    def _end_waiting(self, tally: Tally, now: float) -> None:
        """Children whose links have not come back in time stand for what they last said."""
        for peer in tally.overdue(now):
            child = tally.children[peer]
            if child.hands_over or not self._outbox.has_link(peer):
                tally.settle(child)
        later = tally.next_overdue
        if later < tally.expires:
            self._timers.set((TallyDue.PATIENCE, tally.message_id), later)
        self._changed(tally, now)

    def _take_receipts(
        self, peer: PeerId, receipts: Sequence[Receipt], now: float, *, is_here: bool, is_proven: bool
    ) -> list[str]:
        """Take what a peer tells; `is_here`, whether it means this process. Those that we don't count for it."""
        unknown = []
        for receipt in receipts:
            tally, child = self._counted(peer, receipt.id, is_here=is_here, is_proven=is_proven)
            if tally is None or child is None:
                self._counts.strays += 1
                unknown.append(receipt.id)
            elif receipt.count > self._config.most:
                self._blame(peer)
            else:
                self._counts.received += 1
                self._take_receipt(tally, child, peer, receipt, now)
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

    def _take_receipt(self, tally: Tally, child: Child, peer: PeerId, receipt: Receipt, now: float) -> None:
        tally.take(child, receipt.count, self._most)
        if tally.is_in_doubt and tally.doubt_ends == math.inf:
            tally.doubt_ends = now + self._config.patience
            self._timers.set((TallyDue.DOUBT, tally.message_id), tally.doubt_ends)
        child.has_settled = receipt.settled
        if receipt.settled:
            tally.settle(child)
        else:
            self._await(tally, child, peer, now)
        self._changed(tally, now)

    def _close(self, tally: Tally, now: float) -> None:
        tally.close()
        self._changed(tally, now)

    def _push_out(self, tally: Tally, now: float) -> None:
        """Make room: settle it as it stands."""
        self._counts.dropped += 1
        self._close(tally, now)
        self._flush(now, everything=True)
        self._pushed_out.add(tally.message_id, None, tally.expires, now)
        self._forget(tally)

    def _forget(self, tally: Tally) -> None:
        for due in TallyDue:
            self._timers.cancel((due, tally.message_id))
        if isinstance(tally, Relayed):
            self._drop_debt(tally)
            self._outbox.forget(tally.upstream, tally.message_id)
        self._own.pop(tally.message_id, None)
        self._relayed.pop(tally.message_id, None)

    # --- too many -----------------------------------------------------------------------------------------------------

    def _end_doubt(self, tally: Tally, now: float) -> None:
        """Nothing has borne out what was told of too many: the application hears of who told most."""
        if tally.is_in_doubt:
            self._counts.disputed += 1
            peer, child = tally.largest()
            self._effects.append(Emit(ReceiptDisputed(peer, tally.message_id, child.claimed, tally.below)))
        else:
            tally.doubt_ends = math.inf
        self._changed(tally, now)

    def _blame_liars(self, tally: Tally) -> None:
        """Neighbours that have told of far more peers than there are, and nothing has borne them out."""
        for peer, child in tally.children.items():
            if child.claimed > LIE * self._most:
                self._blame(peer)

    def _blame(self, peer: PeerId) -> None:
        self._counts.implausible += 1
        if self._outbox.has_link(peer):
            self._effects.append(DropLink(peer, "receipts of more peers than there are", blame=True))

    # --- what follows: the application is told, or the peer upstream --------------------------------------------------

    def _changed(self, tally: Tally, now: float) -> None:
        if isinstance(tally, Own):
            self._judge(tally, now)
        elif isinstance(tally, Relayed):
            self._tell_upstream(tally, now)

    def _judge(self, own: Own, now: float) -> None:
        """Our own: tell the application."""
        is_certain = self._is_refused(own)
        if is_certain and own.is_settled and not own.below and not own.is_decided:
            self._effects.append(Notify(Subsystem.BROADCAST, Withdraw(own.message_id)))
        for effect in own.judge(now, is_certain=is_certain):
            if isinstance(effect, Emit):
                self._counts.delivered += own.below > 0
                self._counts.failed += not own.below
            self._effects.append(effect)
        if own.is_settled and own.below and now < own.quiet_at:
            self._timers.set((TallyDue.QUIET, own.message_id), own.quiet_at)

    def _is_refused(self, own: Own) -> bool:
        """Whether every neighbour will never take it, those of the original's included."""
        refusals, outbox = own.refusals, self._outbox
        silent = sum(not outbox.has_link(peer) for peer in refusals)
        return bool(refusals) and silent >= own.silent and all(peer in refusals for peer in outbox.neighbours())

    def _tell_upstream(self, relayed: Relayed, now: float) -> None:
        """Tell upstream at once what is settled, and now and then what is not; one thing after the other."""
        interim = (TallyDue.INTERIM, relayed.message_id)
        state = relayed.state(self._most)
        if not relayed.is_noted or state == relayed.sent or not state[0]:
            return
        if relayed.is_settled or self._left or (relayed.sent is not None and relayed.sent[1]):  # or it no longer is
            self._timers.cancel(interim)
            self._outbox.tell(relayed.upstream, relayed.message_id, relayed.epoch, now)
        elif interim not in self._timers:
            self._timers.set(interim, now + self._config.interim)

    def _lose_parent(self, relayed: Relayed, now: float, *, keep_debt: bool = False) -> None:
        """The parent can't be told any more; with `keep_debt`, it may be back one day."""
        if not relayed.has_lost_parent_for:
            return
        self._counts.parents_lost += 1
        parent = relayed.upstream
        relayed.turn_to_origin(keep_debt=keep_debt)
        if relayed.debt is None:
            self._outbox.forget(parent, relayed.message_id)
        self._tell_upstream(relayed, now)

    def _drop_debt(self, relayed: Relayed) -> None:
        """What was in doubt is noted, or the peer that was told it is no more."""
        if relayed.debt is not None:
            self._outbox.forget(relayed.debt.peer, relayed.message_id)
            relayed.debt = None

    # --- the outbox ---------------------------------------------------------------------------------------------------

    def _introduce_ourselves(self, peer: PeerId) -> None:
        """Tell a neighbour our epoch."""
        self._send(peer, GossipReceipts(epoch=self._outbox.epoch))

    def _flush(self, now: float, *, everything: bool = False) -> None:
        """Send each peer what its turn is for; what it is told is written in the moment it leaves."""
        ripe = self._outbox.take_ripe(everything=everything)
        while ripe:
            for peer in ripe:
                batch = self._outbox.batch(peer)
                if batch is not None:
                    self._send_batch(peer, batch, now)
            ripe = self._outbox.take_ripe()

    def _send_batch(self, peer: PeerId, batch: Batch, now: float) -> None:
        receipts = {}
        for message_id in batch.message_ids:
            relayed = self._relayed.get(message_id)
            receipt = relayed.write(peer, self._most) if relayed else None
            if receipt is not None:
                receipts[message_id] = receipt
        if batch.via is Via.QUESTION:
            self._effects.append(SendFrame((peer,), GossipReceipts(ask=True), urgent=True))
        message = self._outbox.pack(peer, batch, receipts, now)
        if message is None:
            return
        if batch.via is not Via.ROUTE:
            self._send(peer, message)
        elif message.number is not None:
            timeout = self._config.route_timeout
            route = Route(Subsystem.RECEIPTS, message.number, peer, message, answered=True, timeout=timeout)
            self._effects.append(Notify(Subsystem.ROUTING, route))

    def _send(self, peer: PeerId, message: GossipReceipts) -> None:
        self._effects.append(SendFrame((peer,), message, urgent=True, patient=True))
