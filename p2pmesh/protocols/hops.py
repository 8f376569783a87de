"""Broadcasts from us to each neighbour: windows, acks, retries. What becomes of each hop is told to the receipts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from attrs import define
from msgspec import structs

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effect, Forwarded, HopSettled, Originated, RemotePeer, SendFrame, Subsystem, Tell
from p2pmesh.protocols.history import History, Kept
from p2pmesh.protocols.outflow import Outflow
from p2pmesh.protocols.timers import Backoff, Timers
from p2pmesh.wire.messages import Gossip


@define
class HopCounts:
    """What hops came to, since the start."""

    sent: int = 0
    retried: int = 0
    acked: int = 0
    given_up: int = 0
    backlog_dropped: int = 0


class _Retry(NamedTuple):
    """Due when an ack stays away."""

    peer: PeerId
    message_id: str


class Hops:
    """The links to neighbours that acknowledge, and every broadcast on its way over one of them.

    What is in a link's window or backlog is in the history: who takes it from there calls `give_up` first.
    """

    def __init__(
        self, config: BroadcastConfig, rng: random.Random, history: History, do: Callable[[Effect], None]
    ) -> None:
        self.counts: HopCounts = HopCounts()
        self._config = config
        self._rng = rng
        self._history = history
        self._do = do
        self._backoff = Backoff(config.ack_timeout, config.max_ttl)
        self._links: dict[PeerId, Outflow] = {}
        self._timers: Timers[_Retry] = Timers()
        self.next_deadline: Callable[[], float] = self._timers.next_deadline
        """When `expire` wants to be called."""

    def __iter__(self) -> Iterator[Outflow]:
        return iter(self._links.values())

    def __len__(self) -> int:
        return len(self._links)

    def get(self, peer: PeerId) -> Outflow | None:
        return self._links.get(peer)

    @property
    def are_congested(self) -> bool:
        """Whether who makes new broadcasts should wait: the fullest link decides."""
        return any(link.is_congested for link in self._links.values())

    def up(self, peer: RemotePeer) -> Outflow:
        """A link is open."""
        link = self._links[peer.peer_id] = Outflow(peer, self._config)
        return link

    def down(self, peer: PeerId) -> None:
        """It has ended: nothing on it will be acknowledged."""
        link = self._links.pop(peer, None)
        for message_id in () if link is None else link.ids():
            self._timers.cancel(_Retry(peer, message_id))
            self._tell_settled(self._history[message_id], peer, adopted=False)

    def spread(self, kept: Kept, links: Sequence[Outflow], now: float) -> None:
        """Send it over these links, or let it wait for their windows."""
        ready = tuple(link.peer.peer_id for link in links if self._launch(link, kept, now))
        if ready:
            self._send(ready, kept, now)

    def acked(self, link: Outflow, message_id: str, *, duplicate: bool, now: float) -> None:
        """A neighbour has it. A late ack counts too, one that was never asked for changes nothing."""
        kept = self._history.get(message_id)
        peer = link.peer.peer_id
        if kept is None or (message_id not in link and kept.is_held_by(peer)):
            return
        if message_id in link:
            link.heard(message_id, now)
        kept.held_by(peer)
        self.counts.acked += 1
        self._settle(link, kept, adopted=not duplicate, now=now)

    def crossed(self, peer: PeerId, message_id: str, now: float) -> bool:
        """A neighbour's copy came. Whether ours is on its way there, so that neither needs an ack.

        If ours is lost the neighbour sends again, and then finds none on its way.
        """
        link = self._links.get(peer)
        if link is None or not link.is_flying(message_id):
            return False
        kept = self._history[message_id]
        link.lives()
        kept.held_by(peer)
        self.counts.acked += 1
        self._settle(link, kept, adopted=False, now=now)
        return True

    def spare(self, peer: PeerId, kept: Kept) -> None:
        """This neighbour turned out to have it: it need not be sent, unless it is on its way."""
        kept.held_by(peer)
        link = self._links.get(peer)
        if link is not None and link.unpark(kept.data.id):
            self._tell_settled(kept, peer, adopted=False)

    def give_up(self, kept: Kept, now: float) -> None:
        """Its time is over, or there is no room for it."""
        for link in self._links.values():
            if kept.data.id in link:
                self.counts.given_up += 1
                self._settle(link, kept, adopted=False, now=now)

    def expire(self, now: float) -> None:
        """Repeat what was not acknowledged, up to a limit."""
        for retry in self._timers.pop_due(now):
            self._retry(self._links[retry.peer], self._history[retry.message_id], now)

    def _launch(self, link: Outflow, kept: Kept, now: float) -> bool:
        if link.launch(kept.data.id, kept.size, now):
            self._await_ack(link, kept, 1, now)
            return True
        dropped = link.park(kept.data.id, kept.size)
        if dropped is not None:
            self.counts.backlog_dropped += 1
            self._tell_settled(self._history[dropped], link.peer.peer_id, adopted=False)
        return False

    def _pump(self, link: Outflow, now: float) -> None:
        while (message_id := link.relaunch(now)) is not None:
            kept = self._history[message_id]
            self._await_ack(link, kept, 1, now)
            self._send((link.peer.peer_id,), kept, now)

    def _await_ack(self, link: Outflow, kept: Kept, attempts: int, now: float) -> None:
        wait = self._backoff.delay(attempts, self._rng) + link.patience()
        self._timers.set(_Retry(link.peer.peer_id, kept.data.id), now + wait)

    def _send(self, peers: tuple[PeerId, ...], kept: Kept, now: float) -> None:
        self.counts.sent += len(peers)
        data = structs.replace(kept.data, hops=kept.hops, age=kept.age(now), relayed_by=())
        self._do(SendFrame(peers, Gossip(data=data)))

    def _retry(self, link: Outflow, kept: Kept, now: float) -> None:
        if link.hop(kept.data.id).attempts > self._config.retries:
            self.counts.given_up += 1
            self._settle(link, kept, adopted=False, now=now)
            return
        self.counts.retried += 1
        self._await_ack(link, kept, link.repeat(kept.data.id), now)
        self._send((link.peer.peer_id,), kept, now)

    def _settle(self, link: Outflow, kept: Kept, *, adopted: bool, now: float) -> None:
        """A hop is decided: that makes room for the next."""
        self._timers.cancel(_Retry(link.peer.peer_id, kept.data.id))
        link.settle(kept.data.id)
        self._tell_settled(kept, link.peer.peer_id, adopted=adopted)
        if link.backlog:
            self._pump(link, now)

    def _tell_settled(self, kept: Kept, peer: PeerId, *, adopted: bool) -> None:
        tell_receipts(self._do, kept, HopSettled(kept.data.id, peer, adopted))


def tell_receipts(do: Callable[[Effect], None], kept: Kept, event: Originated | Forwarded | HopSettled) -> None:
    """Tell the receipts core, unless the origin wants none."""
    if kept.data.receipts:
        do(Tell(Subsystem.RECEIPTS, event))
