"""What a peer knows of how many have one broadcast: its own, and those that it passes on.

See `receipts` for the algorithm: each child counts for as many peers as it has told of in total.

In: children, what they tell, the end of waiting. Out: how many have it, whether that is settled, what the application
is told, what the peer upstream is told.
State: at most `MOST_CHILDREN` children; upstream and what it was told last; what a lost parent may not have heard.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field
from msgspec import Struct

from p2pmesh.events import MessageDelivered, MessageFailed
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effects, Emit, Progress
from p2pmesh.wire.messages import Receipt

MOST_CHILDREN = 1024
"""Of one broadcast, past neighbours included, and at its origin those whose parents were lost; more are not counted."""
ROOM = 4
"""Times as many peers as `MeshSize` says are believed: it is measured on a few distances of a random ring."""
FEWEST = 16
"""Believed in any case: few are counted exactly, but not while links come and go."""
SWIFT = 1.0
"""Seconds: an answer that takes longer was lost and repeated on its way, or the peer that it is of."""
QUIET_SHARE = 0.5
QUIET_MOST = 1.5
"""Of the time that it took to settle, and seconds at the most, for which nothing may change then: what else is on its
way was lost as often."""
LIE = 8
"""Times as many as are believed make a liar: honest peers whose `MeshSize` differs must never blame each other."""


class TallyDue(Enum):
    """Why a tally is looked at."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__  # hashed for each timer: `Enum` hashes the names of its members anew

    EXPIRY = "its ttl is over"
    DROP = "nothing is on its way any more"
    QUIET = "nothing has changed for long enough"
    INTERIM = "pass on what there is"
    PATIENCE = "children without a link have had their time"
    DOUBT = "nothing bears out what is in doubt"


TallyTimer: TypeAlias = tuple[TallyDue, str]


def believable(peers: int, most: int) -> int:
    """The peers that all children may tell of and be believed, in a mesh of about so many; never more than `most`."""
    return min(most, max(FEWEST, ROOM * peers))


@define(eq=False)
class Child:
    """A peer that counts for us."""

    claimed: int = 0
    """What it has told in total."""
    count: int = 0
    """What of that is believed."""
    has_settled: bool = False
    """What it last said of those below it."""
    settled: bool = True
    """Whether no answer is waited for."""
    since: float = 0.0
    """When it became one."""
    waits_until: float = math.inf
    """Without a link to it: how long an answer is waited for."""
    hands_over: bool = False
    """Whether it counts elsewhere by now, and waits until that is known."""


@define(eq=False)
class Tally:
    """One broadcast, ours or another's, and what our children say of it."""

    message_id: str
    expires: float
    children: dict[PeerId, Child] = field(factory=dict)
    below: int = 0
    """Peers that have it by way of us: the sum of the children's counts, as far as there can be so many."""
    counts: int = 0
    claims: int = 0
    """What the children count for, and what they have told, all together."""
    awaited: int = 0
    """Children that are not settled."""
    is_over: bool = False
    """Whether its ttl is: no child is waited for any more."""
    doubt_ends: float = math.inf
    """Until when it may turn out that there are as many peers as children told of; infinite while nothing is in doubt,
    and in the past once that was told."""

    @property
    def is_settled(self) -> bool:
        return not self.awaited

    def is_at_least(self, count: int) -> None:
        """So many have it, whatever children say."""
        self.below = max(self.below, count)

    def child(self, peer: PeerId) -> Child | None:
        """This child, a new one if there is room."""
        child = self.children.get(peer)
        if child is None and len(self.children) < MOST_CHILDREN:
            child = self.children[peer] = Child()
        return child

    def settle(self, child: Child) -> None:
        """It is not waited for."""
        self.awaited -= not child.settled
        child.settled, child.waits_until = True, math.inf

    def wait_for(self, child: Child, until: float = math.inf, *, hands_over: bool = False) -> None:
        """An answer of it is waited for."""
        if not self.is_over:
            self.awaited += child.settled
            child.settled, child.waits_until, child.hands_over = False, until, hands_over

    def overdue(self, now: float) -> list[PeerId]:
        """Children without a link that have had their time; they are waited for no longer than others."""
        overdue = [peer for peer, child in self.children.items() if child.waits_until <= now]
        for peer in overdue:
            self.children[peer].waits_until = math.inf
        return overdue

    @property
    def next_overdue(self) -> float:
        """When the next child without a link has had its time."""
        return min((child.waits_until for child in self.children.values()), default=math.inf)

    def close(self) -> None:
        """Wait for no child any more; what still comes counts."""
        self.is_over = True
        for child in self.children.values():
            self.settle(child)

    def take(self, child: Child, claim: int, most: int) -> None:
        """It has told so many in total; no more than `most` are believed, of it and of all children, for now."""
        self.claims += max(0, claim - child.claimed)
        child.claimed = max(child.claimed, claim)
        count = max(child.count, min(child.claimed, most))
        self.counts += count - child.count
        child.count = count
        self.below = max(self.below, min(self.counts, most))

    def believe(self, most: int) -> None:
        """So many may be believed by now."""
        for child in self.children.values():
            self.take(child, child.claimed, most)

    @property
    def is_in_doubt(self) -> bool:
        """Whether children have told of more than is believed."""
        return self.claims > self.below

    def largest(self) -> tuple[PeerId, Child]:
        """The child that told of most."""
        return max(self.children.items(), key=lambda item: item[1].claimed)


@define(eq=False)
class Own(Tally):
    """A broadcast of ours."""

    topic: str = ""
    started: float = 0.0
    silent: int = 0
    """Peers it went to that can't acknowledge it."""
    is_decided: bool = False
    """Whether the application was told how it ended."""
    told: tuple[int, bool] = (0, False)

    state: tuple[int, bool] = (0, True)
    since: float = 0.0
    """When that became so."""
    refusals: dict[PeerId, str] = field(factory=dict)
    """Neighbours that will never take it, each with why."""
    holders: set[PeerId] = field(factory=set)
    """Neighbours that said they have it, wherever from: `below` is no less than that."""

    @property
    def quiet_at(self) -> float:
        """When it counts as settled, if nothing changes: at once, unless it took so long that answers get lost."""
        took = self.since - self.started
        return self.since if took < SWIFT else self.since + min(QUIET_SHARE * took, QUIET_MOST)

    def is_with(self, peer: PeerId) -> None:
        """A neighbour has said that it has it."""
        if len(self.holders) < MOST_CHILDREN:
            self.holders.add(peer)
            self.is_at_least(len(self.holders))

    def judge(self, now: float, *, is_certain: bool) -> Effects:
        """What the application is to be told: how far it is, and once how it ended.

        That nobody has it is said when its ttl is over, or when it is certain that nobody ever will.
        """
        state = self.below, self.is_settled
        if state != self.state:
            self.state, self.since = state, now
        is_open = self.is_in_doubt and now < self.doubt_ends
        final = self.is_settled and (
            self.is_over or is_certain or (self.below > 0 and now >= self.quiet_at and not is_open)
        )
        effects: Effects = []
        if self.told != (self.below, final):
            self.told = self.below, final
            effects.append(Progress(self.message_id, self.below, final))
        if final and not self.is_decided:
            self.is_decided = True
            effects.append(Emit(self._outcome()))
        return effects

    def _outcome(self) -> MessageDelivered | MessageFailed:
        if self.below:
            return MessageDelivered(self.message_id, self.topic, self.below, self.since - self.started)
        return MessageFailed(self.message_id, self.topic, self._why_nobody(), 0)

    def _why_nobody(self) -> str:
        if self.refusals:
            return next(iter(self.refusals.values()))
        if self.children:
            return "no neighbour has taken it"
        if self.silent:
            return f"it went only to peers that can't acknowledge it ({self.silent} of the original project)"
        return "there is no link to any peer"


class Debt(Struct, frozen=True):
    """What a parent was told that can't be reached now, and may not have heard."""

    peer: PeerId
    epoch: int | None
    count: int
    settled: bool


@define(eq=False)
class Relayed(Tally):
    """A broadcast of another peer.

    What we have to tell goes to `upstream`: the parent, or, where that was lost, the origin.
    """

    upstream: PeerId = field(kw_only=True)
    origin: PeerId | None = None
    epoch: int | None = None
    """The process that the upstream is, as long as that is a relay."""
    before: int = 0
    """What was told to a parent that was lost; it is never told again."""
    sent: tuple[int, bool] | None = None
    """What the upstream was told last: how many in total, and whether they are all."""
    is_noted: bool = True
    """Whether it has noted that."""
    debt: Debt | None = None

    @property
    def has_lost_parent_for(self) -> bool:
        """Whether there is another peer to tell, should the upstream be lost."""
        return self.origin is not None and self.upstream != self.origin

    def state(self, most: int) -> tuple[int, bool]:
        """What the upstream should know, with no more than `most` peers in all."""
        told = self.sent[0] if self.sent else 0
        return max(told, min(1 + self.below, most) - self.before), self.is_settled

    def write(self, peer: PeerId, most: int) -> Receipt | None:
        """What this peer is told now. What is in doubt is told again as it was."""
        if self.debt is not None and self.debt.peer == peer:
            return Receipt(id=self.message_id, count=self.debt.count, settled=self.debt.settled)
        if self.upstream != peer:
            return None
        if self.is_noted:
            state = self.state(most)
            if state == self.sent or not state[0]:
                return None
            self.sent, self.is_noted = state, False
        assert self.sent is not None  # noqa: S101  # else there is nothing that could be in doubt
        count, settled = self.sent
        return Receipt(id=self.message_id, count=count, settled=settled)

    def turn_to_origin(self, *, keep_debt: bool) -> None:
        """The parent is lost: what it was told may be told again to it alone, and the rest goes to the origin."""
        assert self.origin is not None  # noqa: S101  # the caller has asked
        if keep_debt and self.sent and not self.is_noted:
            self.debt = Debt(self.upstream, self.epoch, *self.sent)
        self.before += self.sent[0] if self.sent else 0
        self.upstream, self.epoch = self.origin, None
        self.sent, self.is_noted = None, True
