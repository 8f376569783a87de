"""Receipts: how many peers have a broadcast, counted back along the way it took.

An echo algorithm (Chang 1982, after Segall's propagation of information with feedback, 1983). Who gave a peer a message
first is its parent; who took it from a peer as new is its child; so each message has a tree, rooted at its origin. A peer
whose children have all answered tells its parent how many peers have the message by way of it, itself included. What
changes later it tells as the new whole count, so that a receipt lost or doubled does no harm. Receipts are acknowledged
and repeated until they are.

What counts is proof, never hope: a child counts once it has acknowledged the message, and then for what it last said, also
after its link has ended. Each peer has one parent, so none is counted twice. Peers of the original project acknowledge
nothing and are not counted.

A broadcast is settled once all children have answered, were given up on, or its ttl is over. The origin's application is
told once: delivered, if at least one peer has it, or failed; a broadcast that nobody took fails after `grace`, not at
once, because a first link may be about to open. Counting goes on after that, and `Progress` tells.

Inputs: LinkUp, LinkDown, Received (GossipReceipt, GossipReceiptAck), Originated, Forwarded, HopSettled, Leave.
Effects: SendFrame, Emit (MessageDelivered, MessageFailed), Progress.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, TypeAlias

import attrs
from attrs import define, field

from p2pmesh.config import MeshConfig, ReceiptsConfig
from p2pmesh.events import MessageDelivered, MessageFailed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    Effect,
    Effects,
    Emit,
    Forwarded,
    HopSettled,
    Input,
    Leave,
    LinkDown,
    LinkUp,
    Originated,
    Progress,
    Received,
    SendFrame,
    WallClock,
)
from p2pmesh.protocols.timers import Backoff, Timers
from p2pmesh.wire.messages import GossipReceipt, GossipReceiptAck, Message

MOST_CHILDREN = 256
"""Of one broadcast, past neighbours included; more are not counted."""


@define(eq=False)
class _Child:
    count: int = 0
    """Peers that have it by way of this one, as far as is known."""
    settled: bool = False
    """Whether no answer is waited for."""


@define(eq=False)
class _Tally:
    """One broadcast, ours or another's, and what our children say of it."""

    message_id: str
    expires: float
    children: dict[PeerId, _Child] = field(factory=dict)
    below: int = 0
    """Peers that have it by way of us: the sum of the children's counts."""
    awaited: int = 0
    """Children that are not settled."""

    @property
    def is_settled(self) -> bool:
        return not self.awaited

    def sent_to(self, peer: PeerId) -> None:
        """It goes to this peer: an answer is waited for."""
        child = self.children.get(peer)
        if child is None:
            if len(self.children) >= MOST_CHILDREN:
                return
            child = self.children[peer] = _Child(settled=True)
        self.update(child, child.count, settled=False)

    def update(self, child: _Child, count: int, *, settled: bool) -> None:
        """What is known of a child has changed."""
        self.below += count - child.count
        self.awaited += child.settled - settled
        child.count, child.settled = count, settled


@define(eq=False)
class _Own(_Tally):
    topic: str = ""
    started: float = 0.0
    silent: int = 0
    """Peers it went to that can't acknowledge it."""
    is_over: bool = False
    is_decided: bool = False
    """Whether the application was told how it ended."""
    told: tuple[int, bool] = (0, False)


@define(eq=False)
class _Relayed(_Tally):
    parent: PeerId = field(kw_only=True)
    sent: tuple[int, bool] | None = None
    is_noted: bool = False
    """Whether the parent has acknowledged what was sent last."""
    attempts: int = 0


class _Due(Enum):
    """Why a tally is looked at."""

    __hash__ = object.__hash__  # members are few and unique, and hashed for each timer: `Enum` hashes their names anew

    EXPIRY = "its ttl is over"
    DROP = "nothing is on its way any more"
    GRACE = "nobody took it for long enough"
    REPORT = "tell the parent, or tell it again"


_Timer: TypeAlias = tuple[_Due, str]


@define
class _Counts:
    delivered: int = 0
    failed: int = 0
    sent: int = 0
    resent: int = 0
    received: int = 0
    strays: int = 0
    implausible: int = 0
    dropped: int = 0


class ReceiptsCore:
    """The receipts of one peer: for its own broadcasts, and for those it passes on."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        del identity, wall  # receipts are neither signed nor dated
        self._config: ReceiptsConfig = config.receipts
        self._rng = rng
        self._backoff = Backoff(self._config.retry_first, self._config.retry_cap)
        self._links: dict[PeerId, None] = {}
        self._own: dict[str, _Own] = {}
        self._relayed: dict[str, _Relayed] = {}
        self._timers: Timers[_Timer] = Timers()
        self._counts = _Counts()
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:  # the most frequent first
            case HopSettled(message_id, child, adopted):
                self._hop_settled(message_id, child, adopted=adopted, now=now)
            case Received(peer, message):
                self._received(peer, message, now)
            case Forwarded():
                self._forwarded(event, now)
            case Originated():
                self._originated(event, now)
            case LinkUp(peer):
                self._link_up(peer.peer_id, now)
            case LinkDown(peer):
                self._link_down(peer, now)
            case Leave():
                self._leave(now)
            case _:
                pass  # for other cores
        return self._take()

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for due, message_id in self._timers.pop_due(now):
            tally = self._own.get(message_id) or self._relayed.get(message_id)
            if tally is None:
                continue
            match due:
                case _Due.EXPIRY:
                    self._close(tally, now)
                    self._timers.set((_Due.DROP, message_id), now + self._config.linger)
                case _Due.DROP:
                    self._forget(tally)
                case _Due.GRACE:
                    self._changed(tally, now)
                case _Due.REPORT:
                    self._report(tally, now)
        return self._take()

    def snapshot(self) -> Mapping[str, Any]:
        return {
            **attrs.asdict(self._counts),
            "own": len(self._own),
            "undecided": sum(not own.is_decided for own in self._own.values()),
            "relayed": len(self._relayed),
        }

    def _take(self) -> Effects:
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    # --- what the broadcast core tells --------------------------------------------------------------------------------

    def _originated(self, event: Originated, now: float) -> None:
        if event.message_id in self._own:
            return
        if len(self._own) >= self._config.table:
            self._push_out(next(iter(self._own.values())), now)
        started = now if event.started is None else event.started
        self._own[event.message_id] = _Own(event.message_id, event.expires, topic=event.topic, started=started)
        self._timers.set((_Due.EXPIRY, event.message_id), event.expires)

    def _forwarded(self, event: Forwarded, now: float) -> None:
        tally = self._tally_of(event, now)
        if tally is None:
            return
        if isinstance(tally, _Own):
            tally.silent += event.silent
        for peer in event.children:
            tally.sent_to(peer)
        self._changed(tally, now)

    def _tally_of(self, event: Forwarded, now: float) -> _Tally | None:
        if event.parent is None:
            return self._own.get(event.message_id)
        tally = self._relayed.get(event.message_id)
        if tally is None:
            if len(self._relayed) >= self._config.table:
                self._push_out(next(iter(self._relayed.values())), now)
            tally = self._relayed[event.message_id] = _Relayed(event.message_id, event.expires, parent=event.parent)
            self._timers.set((_Due.EXPIRY, event.message_id), event.expires)
        return tally

    def _hop_settled(self, message_id: str, peer: PeerId, *, adopted: bool, now: float) -> None:
        tally = self._own.get(message_id) or self._relayed.get(message_id)
        child = tally.children.get(peer) if tally else None
        if tally is None or child is None:
            return
        if not adopted:
            tally.update(child, child.count, settled=True)
        elif child.count == 0:
            tally.update(child, 1, settled=peer not in self._links)
        self._changed(tally, now)

    # --- links and what comes over them -------------------------------------------------------------------------------

    def _link_up(self, peer: PeerId, now: float) -> None:
        self._links[peer] = None
        for tally in self._relayed.values():
            if tally.parent == peer and not tally.is_noted and tally.sent is not None:
                self._report(tally, now)

    def _link_down(self, peer: PeerId, now: float) -> None:
        """Children that went stand for what they last said; who is to be told waits for the link to come back."""
        self._links.pop(peer, None)
        for tally in self._tallies():
            child = tally.children.get(peer)
            if child is not None and not child.settled:
                tally.update(child, child.count, settled=True)
                self._changed(tally, now)

    def _received(self, peer: PeerId, message: Message, now: float) -> None:
        match message:
            case GossipReceipt(id=message_id, count=count, settled=settled):
                self._do(SendFrame((peer,), GossipReceiptAck(id=message_id, count=count, settled=settled), urgent=True))
                self._answered(peer, message, now)
            case GossipReceiptAck(id=message_id, count=count, settled=settled):
                relayed = self._relayed.get(message_id)
                if relayed is not None and relayed.parent == peer and relayed.sent == (count, settled):
                    relayed.is_noted = True
                    self._timers.cancel((_Due.REPORT, message_id))
                    self._changed(relayed, now)
            case _:
                pass

    def _answered(self, peer: PeerId, receipt: GossipReceipt, now: float) -> None:
        tally = self._own.get(receipt.id) or self._relayed.get(receipt.id)
        child = tally.children.get(peer) if tally else None
        if tally is None or child is None:
            self._counts.strays += 1  # we have forgotten it, or never sent it there
            return
        self._counts.received += 1
        if receipt.count > self._config.most:
            self._counts.implausible += 1
        count = min(receipt.count, self._config.most)
        tally.update(child, count, settled=receipt.settled or now >= tally.expires)
        self._changed(tally, now)

    # --- what follows -------------------------------------------------------------------------------------------------

    def _changed(self, tally: _Tally, now: float) -> None:
        if isinstance(tally, _Own):
            self._judge(tally, now)
        elif isinstance(tally, _Relayed):
            self._consider(tally, now)

    def _judge(self, own: _Own, now: float) -> None:
        """Our own: tell the application how far it is, and once how it ended."""
        reached, settled = own.below, own.is_settled
        patient_until = own.started + self._config.grace
        final = settled and (reached > 0 or own.is_over or now >= patient_until)
        if own.told != (reached, final):
            own.told = reached, final
            self._do(Progress(own.message_id, reached, final))
        if own.is_decided:
            return
        if final:
            self._decide(own, now)
        elif settled:
            self._timers.set((_Due.GRACE, own.message_id), patient_until)

    def _decide(self, own: _Own, now: float) -> None:
        own.is_decided = True
        self._timers.cancel((_Due.GRACE, own.message_id))
        if own.below:
            self._counts.delivered += 1
            self._do(Emit(MessageDelivered(own.message_id, own.topic, own.below, now - own.started)))
        else:
            self._counts.failed += 1
            self._do(Emit(MessageFailed(own.message_id, own.topic, _why_nobody(own), 0)))

    def _consider(self, relayed: _Relayed, now: float) -> None:
        """Another's: tell the parent at once what is settled, and now and then what is not."""
        if relayed.sent == _state(relayed):
            return
        due = (_Due.REPORT, relayed.message_id)
        is_first_change = relayed.attempts > 0 or due not in self._timers
        relayed.is_noted = False
        relayed.attempts = 0
        if relayed.is_settled:
            self._report(relayed, now)
        elif is_first_change:
            self._timers.set(due, now + self._config.interim)

    def _report(self, tally: _Tally, now: float) -> None:
        if not isinstance(tally, _Relayed) or tally.is_noted:
            return
        state = _state(tally)
        if state != tally.sent:
            self._counts.sent += 1
        else:
            self._counts.resent += 1
        tally.sent = state
        if tally.parent not in self._links:
            return
        tally.attempts += 1
        count, settled = state
        self._do(
            SendFrame((tally.parent,), GossipReceipt(id=tally.message_id, count=count, settled=settled), urgent=True)
        )
        self._timers.set((_Due.REPORT, tally.message_id), now + self._backoff.delay(tally.attempts, self._rng))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _close(self, tally: _Tally, now: float) -> None:
        """Nobody is waited for any more; what still comes counts."""
        if isinstance(tally, _Own):
            tally.is_over = True
        for child in tally.children.values():
            tally.update(child, child.count, settled=True)
        self._changed(tally, now)

    def _push_out(self, tally: _Tally, now: float) -> None:
        """Make room: settle it as it stands."""
        self._counts.dropped += 1
        self._close(tally, now)
        self._forget(tally)

    def _forget(self, tally: _Tally) -> None:
        for due in _Due:
            self._timers.cancel((due, tally.message_id))
        self._own.pop(tally.message_id, None)
        self._relayed.pop(tally.message_id, None)

    def _leave(self, now: float) -> None:
        for tally in self._tallies():
            self._close(tally, now)

    def _tallies(self) -> Iterator[_Tally]:
        yield from self._own.values()
        yield from self._relayed.values()


def _state(relayed: _Relayed) -> tuple[int, bool]:
    return 1 + relayed.below, relayed.is_settled


def _why_nobody(own: _Own) -> str:
    if own.children:
        return "no neighbour has taken it"
    if own.silent:
        return f"it went only to peers that can't acknowledge it ({own.silent} of the original project)"
    return "there is no link to any peer"
