"""Broadcasts from us to each neighbour: windows, acks, retries. What becomes of each hop is told to the receipts.

A link that falls behind while others don't is taken out of all trees: until its backlog is gone it gets offers only, and asks
for what it can't get elsewhere. If it stays behind, or acknowledges nothing at all, for `slow_patience`, it is closed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from attrs import define
from msgspec import structs

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import MessageStore, StoredMessage
from p2pmesh.protocols.broadcast.send_window import InFlight, SendWindow
from p2pmesh.protocols.broadcast.trees import FailurePressure
from p2pmesh.protocols.effects import DropLink, Effect, Notify, SendFrame
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import BroadcastStarted, ChildrenAdded, ChildSettled
from p2pmesh.protocols.util.local_health import LocalHealth
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.wire.messages import Gossip, GossipIHave

RETRY_UNREST = 0.25
DEAF_AFTER = 5
"""Attempts at one broadcast after which a link that brings no acks at all is given up: 15 to 30 s."""
DEAF_TO = 3
"""Unacknowledged broadcasts that it takes for that: a single one may be too large for that neighbour."""


@define
class EagerPushCounts:
    """What hops came to, since the start."""

    sent: int = 0
    offered: int = 0
    retried: int = 0
    acked: int = 0
    given_up: int = 0
    backlog_dropped: int = 0
    fell_behind: int = 0
    evicted: int = 0


class _Retry(NamedTuple):
    """Due when an ack stays away."""

    peer: PeerId
    message_id: str


class EagerPush:
    """The links to neighbours that acknowledge, and every broadcast on its way over one of them.

    What is in a link's window or backlog is in the history: who takes it from there calls `give_up` first.
    """

    def __init__(
        self,
        config: BroadcastConfig,
        rng: random.Random,
        history: MessageStore,
        unrest: FailurePressure,
        lag: LocalHealth,
        do: Callable[[Effect], None],
    ) -> None:
        self.counts: EagerPushCounts = EagerPushCounts()
        self._lag = lag
        self._config = config
        self._rng = rng
        self._history = history
        self._unrest = unrest
        self._do = do
        self._backoff = Backoff(config.ack_timeout, config.max_ttl)
        self._links: dict[PeerId, SendWindow] = {}
        self._timers: Timers[_Retry] = Timers()
        self.next_deadline: Callable[[], float] = self._timers.next_deadline
        """When `expire` wants to be called."""

    def __iter__(self) -> Iterator[SendWindow]:
        return iter(self._links.values())

    def __len__(self) -> int:
        return len(self._links)

    def get(self, peer: PeerId) -> SendWindow | None:
        return self._links.get(peer)

    def are_congested(self, now: float) -> bool:
        """Whether who makes new broadcasts should wait.

        Not for neighbours that are as good as gone, nor for one that is slower than all others.
        """
        links = self._steady()
        return any(link.is_full for link in links) or (bool(links) and all(link.is_sluggish(now) for link in links))

    def is_overloaded(self, now: float) -> bool:
        """Whether there is so much to do that nothing should be done twice."""
        return self._lag.is_high(now) or any(link.is_sluggish(now) for link in self._links.values())

    def _steady(self) -> list[SendWindow]:
        alive = [link for link in self._links.values() if not link.is_stalled]
        return [link for link in alive if link.behind_since is None] or alive

    def up(self, peer: RemotePeer) -> SendWindow:
        """A link is open."""
        taken = 0
        for link in self._links.values():
            taken |= link.bit
        link = self._links[peer.peer_id] = SendWindow(peer, self._config, ~taken & (taken + 1))
        return link

    def down(self, peer: PeerId) -> SendWindow | None:
        """It has ended: nothing on it will be acknowledged."""
        link = self._links.pop(peer, None)
        for message_id in () if link is None else link.ids():
            self._timers.cancel(_Retry(peer, message_id))
            self._tell_settled(self._history[message_id], peer, adopted=False)
        return link

    def copy(self, kept: StoredMessage, links: Sequence[SendWindow], now: float) -> None:
        """Send it over these links, or let it wait for their windows."""
        ready = [link for link in links if self._launch(link, kept, now, offered=link.behind_since is not None)]
        copies = tuple([link.peer.peer_id for link in ready if link.behind_since is None])
        if copies:
            self._send(copies, kept, now)
        if len(copies) < len(ready):
            self._send_offer(tuple([link.peer.peer_id for link in ready if link.behind_since is not None]), kept)

    def offer(self, kept: StoredMessage, links: Sequence[SendWindow], now: float) -> None:
        """Offer it over these links, or let it wait for their windows."""
        ready = tuple([link.peer.peer_id for link in links if self._launch(link, kept, now, offered=True)])
        if ready:
            self._send_offer(ready, kept)

    def grafted(self, link: SendWindow, kept: StoredMessage, now: float) -> bool:
        """The neighbour asks for it. Whether it was not on its way there already, as a copy or an offer."""
        message_id, hop = kept.data.id, link.hop(kept.data.id)
        was_offered = hop is not None and hop.offered
        if hop is not None and not was_offered:
            return False
        was_parked = hop is None and message_id in link
        if was_offered:
            link.heard(message_id, now)
            self._timers.cancel(_Retry(link.peer.peer_id, message_id))
        link.settle(message_id)
        if self._launch(link, kept, now, offered=False):
            self._send((link.peer.peer_id,), kept, now)
        return not (was_offered or was_parked)

    def acked(self, link: SendWindow, kept: StoredMessage, *, new: bool, now: float) -> bool:
        """A neighbour has it. A late ack counts too; one that was never asked for changes nothing, and gives False."""
        peer, message_id = link.peer.peer_id, kept.data.id
        if message_id in link:
            link.heard(message_id, now)
        elif kept.is_held_by(peer):
            return False
        kept.held_by(peer)
        self.counts.acked += 1
        self._settle(link, kept, adopted=new, now=now)
        return True

    def crossed(self, link: SendWindow, kept: StoredMessage, now: float) -> bool:
        """A neighbour's copy or announcement came. Whether ours is on its way there, so that neither needs an ack.

        If ours is lost the neighbour sends again, and then finds none on its way.
        """
        if link.hop(kept.data.id) is None:
            return False
        link.lives(now)
        kept.held_by(link.peer.peer_id)
        self.counts.acked += 1
        self._settle(link, kept, adopted=False, now=now)
        return True

    def spare(self, peer: PeerId, kept: StoredMessage) -> None:
        """This neighbour turned out to have it: it need not be sent, unless it is on its way."""
        kept.held_by(peer)
        link = self._links.get(peer)
        if link is not None and link.unpark(kept.data.id):
            self._tell_settled(kept, peer, adopted=False)

    def give_up(self, kept: StoredMessage, now: float) -> None:
        """Its time is over, or there is no room for it."""
        for link in self._links.values():
            if kept.data.id in link:
                self.counts.given_up += 1
                self._settle(link, kept, adopted=False, now=now)

    def expire(self, now: float) -> None:
        """Repeat what was not acknowledged, up to a limit."""
        for retry in self._timers.pop_due(now):
            link = self._links[retry.peer]
            hop = link.hop(retry.message_id)
            if hop is None:
                continue
            if self._lag.is_late and not hop.was_put_off:
                hop.was_put_off = True
                self._timers.set(retry, now + self._config.ack_timeout)
                continue
            self._retry(link, hop, self._history[retry.message_id], now)

    def _launch(self, link: SendWindow, kept: StoredMessage, now: float, *, offered: bool) -> bool:
        if link.launch(kept.data.id, 0 if offered else kept.size, now, offered=offered):
            self._await_ack(link, kept, 1, now)
            return True
        dropped = link.park(kept.data.id, kept.size)
        if dropped is not None:
            self.counts.backlog_dropped += 1
            self._tell_settled(self._history[dropped], link.peer.peer_id, adopted=False)
        if link.is_full:
            self.judge(now)
        return False

    def judge(self, now: float) -> None:
        """See which links are behind: more waits for them than should, while for another nothing waits."""
        if all(link.backlog for link in self._links.values()):
            return  # it is we who are fast
        for link in self._links.values():
            if link.is_full:
                self._is_behind(link, now)

    def _is_behind(self, link: SendWindow, now: float) -> None:
        if link.behind_since is None:
            self.counts.fell_behind += 1
            link.behind_since = now
        elif now - link.behind_since > self._config.slow_patience:
            self._evict(link, f"too slow: behind for {self._config.slow_patience:g} s")

    def _evict(self, link: SendWindow, reason: str) -> None:
        if link.is_given_up:
            return
        link.is_given_up = True
        self.counts.evicted += 1
        self._do(DropLink(link.peer.peer_id, reason))

    def _pump(self, link: SendWindow, now: float) -> None:
        while (message_id := link.relaunch(now)) is not None:
            kept = self._history[message_id]
            self._await_ack(link, kept, 1, now)
            if link.behind_since is None:
                self._send((link.peer.peer_id,), kept, now)
            else:
                self._send_offer((link.peer.peer_id,), kept)
        if not link.backlog:
            link.behind_since = None

    def _await_ack(self, link: SendWindow, kept: StoredMessage, attempts: int, now: float) -> None:
        wait = self._backoff.delay(attempts, self._rng) + link.patience() + self._lag.patience(now)
        self._timers.set(_Retry(link.peer.peer_id, kept.data.id), now + wait)

    def _send(self, peers: tuple[PeerId, ...], kept: StoredMessage, now: float) -> None:
        self.counts.sent += len(peers)
        data = structs.replace(kept.data, hops=kept.hops, age=kept.age(now), relayed_by=())
        self._do(SendFrame(peers, Gossip(data=data)))

    def _send_offer(self, peers: tuple[PeerId, ...], kept: StoredMessage) -> None:
        self.counts.offered += len(peers)
        offer = GossipIHave(ids=(kept.data.id,), hops=(kept.hops,), size=kept.size, offer=True)
        self._do(SendFrame(peers, offer, urgent=True))

    def _retry(self, link: SendWindow, hop: InFlight, kept: StoredMessage, now: float) -> None:
        self._unrest.add(RETRY_UNREST, now)
        silence = 0.0 if link.heard_at is None else now - link.heard_at
        is_deaf = link.is_stalled and hop.attempts >= DEAF_AFTER and link.flight >= DEAF_TO
        if is_deaf and silence > self._config.slow_patience:
            self._evict(link, f"too slow: no ack for {silence:.0f} s")
        if hop.attempts > self._config.retries:
            self.counts.given_up += 1
            self._settle(link, kept, adopted=False, now=now)
            return
        self.counts.retried += 1
        self._await_ack(link, kept, link.repeat(hop, now), now)
        if hop.offered:
            self._send_offer((link.peer.peer_id,), kept)
        else:
            self._send((link.peer.peer_id,), kept, now)

    def _settle(self, link: SendWindow, kept: StoredMessage, *, adopted: bool, now: float) -> None:
        """A hop is decided: that makes room for the next."""
        self._timers.cancel(_Retry(link.peer.peer_id, kept.data.id))
        link.settle(kept.data.id)
        self._tell_settled(kept, link.peer.peer_id, adopted=adopted)
        if link.backlog:
            self._pump(link, now)

    def _tell_settled(self, kept: StoredMessage, peer: PeerId, *, adopted: bool) -> None:
        tell_receipts(self._do, kept, ChildSettled(kept.data.id, peer, adopted))


def tell_receipts(
    do: Callable[[Effect], None], kept: StoredMessage, event: BroadcastStarted | ChildrenAdded | ChildSettled
) -> None:
    """Tell the receipts core, unless the origin wants none."""
    if kept.data.receipts:
        do(Notify(Subsystem.RECEIPTS, event))
