"""A network in memory: the links that WebRTC gives, with latency, bandwidth and faults of the caller's choice.

    async with SimNetwork(random.Random(1), Conditions(latency=Constant(0.02))) as network:
        alice, bob = network.dialer(ALICE), network.dialer(BOB)

Dialers of one network open links to each other by the same offers and answers as over WebRTC, whose descriptions bear
fingerprints that are checked when the link opens. Under `trio.testing.MockClock` hours pass in no time; whatever
happens by itself happens in one task, at instants that the seed and the callers determine.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Protocol, Self

import trio

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.keyspace import PeerId, short
from p2pmesh.links.link import Attempt, AttemptFailed, Dialer, Link, LinkError
from p2pmesh.links.session_link import SessionLink
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.simulation.full.carrier import SimCarrier
from p2pmesh.simulation.model.conditioner import Conditions, Constant, Path, luck_of
from p2pmesh.simulation.model.obstacles import Cut
from p2pmesh.simulation.model.reachability import Reachability
from p2pmesh.simulation.model.sdp_stub import describe, parse_description
from p2pmesh.wire.messages import Description, Facts, IceCandidate

NEARBY: Final = Conditions(latency=Constant(0.010), jitter=0.0)
"""All peers 10 ms apart, and nothing ever lost."""
ROUND_TRIPS_TO_OPEN: Final = 3
"""ICE checks, DTLS and SCTP, from the answer's arrival to the open channel."""
CHECK_EVERY: Final = 1.0
"""Seconds between ICE checks of an attempt whose peers can't reach each other."""
CHECKS_END: Final = 30.0
"""Seconds until ICE gives up such an attempt."""


class LinkWatcher(Protocol):
    """Hears of every end of a link at the moment it opens or closes."""

    def link_opened(self, owner: SimDialer, peer: PeerId) -> None: ...

    def link_closed(self, owner: SimDialer, peer: PeerId) -> None: ...


class SimNetwork:
    """An async context manager; links live no longer than its block. `reachability` says which peers reach which."""

    def __init__(
        self, rng: random.Random, conditions: Conditions = NEARBY, *, watcher: LinkWatcher | None = None
    ) -> None:
        """Make a network.

        Args:
          rng: draws tokens, fingerprints, distances and accidents.
          conditions: what links are like, unless `condition` says otherwise of a peer.
          watcher: hears of all links.
        """
        self.rng = rng
        self.reachability: Reachability = Reachability()
        self.passes: Callable[[PeerId, PeerId], bool] = self.reachability.passes
        self._conditions = conditions
        self._special: dict[PeerId, Conditions] = {}
        self.watcher = watcher
        self._distance_seed = rng.getrandbits(64)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._alarm: trio.CancelScope | None = None
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self._attempts: dict[str, SimAttempt] = {}
        self._carriers: dict[SimCarrier, SimDialer] = {}  # in the order they were opened

    async def __aenter__(self) -> Self:
        self._nursery = await self._nursery_manager.__aenter__()
        self._nursery.start_soon(self._run, name="simulated network")
        return self

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Awaitable[bool | None]:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel("the simulated network is closed")
        return self._nursery_manager.__aexit__(kind, error, traceback)

    def dialer(
        self,
        peer_id: PeerId,
        config: LinkConfig | None = None,
        max_frame: int | None = None,
        number: int | None = None,
    ) -> SimDialer:
        """The dialer of a peer, with the config of its links and the largest frame they take.

        Its number, by default the next one, says how far it is from others, and names it in a `Cut`.
        """
        self.reachability.number(peer_id, number)
        return SimDialer(
            self, peer_id, config or LinkConfig(), MeshConfig().max_frame if max_frame is None else max_frame
        )

    # --- faults -------------------------------------------------------------------------------------------------------

    def break_link(self, a: PeerId, b: PeerId, reason: str = "the connection broke") -> None:
        """Break the open links between two peers; what is under way is lost, and both sides notice at once."""
        for carrier in [carrier for carrier in self._carriers if {carrier.owner, carrier.far.owner} == {a, b}]:
            carrier.fail(LinkError(reason))

    def freeze(self, peer: PeerId) -> None:
        """Let nothing pass to or from a peer, in silence, until `thaw`: its packets wait. The peer itself goes on."""
        self.reachability.freeze(peer)

    def thaw(self, peer: PeerId) -> None:
        """End `freeze`."""
        self.reachability.thaw(peer)
        self._release()

    def partition(self, *sides: Iterable[PeerId], one_way: bool = False, keeps_service: bool = True) -> Cut:
        """Let nothing pass, in silence, between peers of different sides until `heal`; peers not named are a side too.

        Args:
          sides: peers that stay together.
          one_way: packets of the first side come through to the others all the same.
          keeps_service: all reach the signaling service; else the first side only.
        """
        return self.cut(self.reachability.split(sides, one_way=one_way, keeps_service=keeps_service))

    def part(self, some: Iterable[PeerId], others: Iterable[PeerId], *, one_way: bool = False) -> Cut:
        """Let nothing pass, in silence, between these two groups until `heal`; all other peers reach both."""
        return self.cut(self.reachability.between(some, others, one_way=one_way))

    def cut(self, cut: Cut) -> Cut:
        """Put a partition in force, besides those that are."""
        self.reachability.add(cut)
        return cut

    def heal(self, cut: Cut | None = None) -> None:
        """End a partition, or all of them."""
        self.reachability.remove(cut)
        self._release()

    def condition(self, peer: PeerId, conditions: Conditions | None) -> None:
        """Set what this peer's links are like from now on; None: like all others. The worse of two peers counts."""
        if conditions is None:
            self._special.pop(peer, None)
        else:
            self._special[peer] = conditions
        for carrier in self._carriers:
            if peer in {carrier.owner, carrier.far.owner}:
                carrier.path.change(*self._path_between(carrier.owner, carrier.far.owner))

    # --- what is there ------------------------------------------------------------------------------------------------

    def links(self) -> Iterator[tuple[PeerId, PeerId]]:
        """The open ends of links, as owner and far peer, in the order they were opened."""
        return ((carrier.owner, carrier.far.owner) for carrier in self._carriers)

    def attempts(self) -> int:
        """Attempts that are neither opened nor closed."""
        return len(self._attempts)

    # --- for the other classes of this package ------------------------------------------------------------------------

    def at(self, time: float, action: Callable[..., None], *args: Any) -> None:
        """Do something later; what is due at one instant is done in the order it was asked for."""
        heapq.heappush(self._events, (time, next(self._order), action, args))
        if self._alarm is not None and time < self._alarm.deadline:
            self._alarm.deadline = time

    def register(self, token: str, attempt: SimAttempt) -> None:
        self._attempts[token] = attempt

    def unregister(self, token: str) -> None:
        self._attempts.pop(token, None)

    def opened(self, carrier: SimCarrier, dialer: SimDialer) -> None:
        self._carriers[carrier] = dialer
        if self.watcher is not None:
            self.watcher.link_opened(dialer, carrier.far.owner)

    def forget(self, carrier: SimCarrier) -> None:
        dialer = self._carriers.pop(carrier, None)
        if dialer is not None and self.watcher is not None:
            self.watcher.link_closed(dialer, carrier.far.owner)

    def owned_by(self, dialer: SimDialer) -> tuple[list[SimAttempt], list[SimCarrier]]:
        """The attempts and carriers of a dialer."""
        attempts = [attempt for attempt in self._attempts.values() if attempt.dialer is dialer]
        return attempts, [carrier for carrier, owner in self._carriers.items() if owner is dialer]

    def prepare(self, offerer: SimAttempt) -> None:
        """Open the link of an offerer that has its answer, after some round trips."""
        answerer = self._attempts.get(offerer.far_token)
        near = offerer.dialer.peer_id
        base = 0.0 if answerer is None else self._path_between(near, answerer.dialer.peer_id)[1]
        now = trio.current_time()
        self.at(now + ROUND_TRIPS_TO_OPEN * 2 * base, self._connect, offerer, now + CHECKS_END)

    def _connect(self, offerer: SimAttempt, give_up: float) -> None:
        """Open a link between two attempts that have each other's description, if the network lets them."""
        if offerer.settled:
            return
        answerer = self._attempts.get(offerer.far_token)
        if answerer is None or not self.reachability.can_link(offerer.dialer.peer_id, answerer.dialer.peer_id):
            self._check_again(offerer, answerer, give_up)
        elif offerer.far_fingerprint != answerer.fingerprint or answerer.far_fingerprint != offerer.fingerprint:
            for attempt in (offerer, answerer):
                attempt.fail("the DTLS handshake failed: the certificate is not the one of the description")
        else:
            self._open(offerer, answerer)

    def _check_again(self, offerer: SimAttempt, answerer: SimAttempt | None, give_up: float) -> None:
        now = trio.current_time()
        if now < give_up:
            self.at(now + CHECK_EVERY, self._connect, offerer, give_up)
            return
        for attempt in (offerer, answerer):
            if attempt is not None:
                attempt.fail("no path to the peer: all ICE checks failed")

    def _open(self, offerer: SimAttempt, answerer: SimAttempt) -> None:
        """Open the offerer's end now, and the answerer's when it can have heard of that."""
        near, far = offerer.dialer, answerer.dialer
        here, there = self._carrier(near, far.peer_id), self._carrier(far, near.peer_id)
        here.far, there.far = there, here
        offerer.succeed(here)
        self.at(trio.current_time() + here.path.base, answerer.succeed, there)

    def _carrier(self, owner: SimDialer, far: PeerId) -> SimCarrier:
        path = Path(*self._path_between(owner.peer_id, far), self.rng)
        return SimCarrier(self, owner.peer_id, path, owner.config.low_water)

    def _path_between(self, a: PeerId, b: PeerId) -> tuple[Conditions, float]:
        """What the path from one peer to another is like, and its latency: the worse of the two peers' own."""
        here, there = self.reachability.number(a), self.reachability.number(b)
        luck = luck_of(self._distance_seed, here, there)

        def latency(conditions: Conditions) -> float:
            return conditions.latency.between(here, there, luck)

        options = [self._special.get(a, self._conditions), self._special.get(b, self._conditions)]
        if options[0] is options[1]:
            return options[0], latency(options[0])
        worst = max(options, key=lambda one: (one is not self._conditions, latency(one), one.loss, -one.bandwidth))
        return worst, latency(worst)

    async def _run(self) -> None:
        events = self._events
        while True:
            with trio.CancelScope(deadline=events[0][0] if events else math.inf) as self._alarm:
                await trio.sleep_forever()
            now = trio.current_time()
            while events and events[0][0] <= now:
                _, _, action, args = heapq.heappop(events)
                action(*args)

    def _release(self) -> None:
        now = trio.current_time()
        for carrier in self._carriers:
            self.at(now, carrier.release)


class SimAttempt(Attempt):
    """A simulated link in the making."""

    far_token: str
    far_fingerprint: bytes

    def __init__(self, dialer: SimDialer, peer_id: PeerId, far: Description | None) -> None:
        rng = dialer.network.rng
        self.dialer = dialer
        self.token: str = f"{rng.getrandbits(64):016x}"
        self.fingerprint: bytes = rng.randbytes(32)
        self.far_token, self.far_fingerprint = ("", b"") if far is None else _parse(far)
        self._peer_id = peer_id
        self._description = describe(self.token, self.fingerprint, "actpass" if far is None else "active")
        self._settled = trio.Event()
        self._failure: str | None = None
        self._carrier: SimCarrier | None = None
        dialer.network.register(self.token, self)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def description(self) -> Description:
        return self._description

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    async def feed(self, signal: Facts) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(signal, IceCandidate) or self.far_token or self.settled:
            return
        self.far_token, self.far_fingerprint = _parse(signal)
        self.dialer.network.prepare(self)

    async def opened(self, peer: RemotePeer) -> Link:
        await self._settled.wait()
        carrier, self._carrier = self._carrier, None
        if carrier is None:
            raise AttemptFailed(self._failure or "the link was taken already")
        link = SessionLink(carrier, peer, self.dialer.config, self.dialer.max_frame)
        carrier.attach(link)
        return link

    async def aclose(self) -> None:
        self.fail("the attempt was given up")
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            await carrier.aclose()
        else:
            await trio.lowlevel.checkpoint()

    def succeed(self, carrier: SimCarrier) -> None:
        """Take the open channel, if it is still wanted."""
        if self.settled:
            if not self.dialer.crashed:
                carrier.hang_up()
            return
        if carrier.is_gone:
            self.fail("the connection broke while it opened")
            return
        self._carrier = carrier
        self.dialer.network.opened(carrier, self.dialer)
        self._settle()

    def fail(self, reason: str) -> None:
        """Give the attempt up."""
        if not self.settled:
            self._failure = reason
            self._settle()

    def _settle(self) -> None:
        self.dialer.network.unregister(self.token)
        self._settled.set()


class SimDialer(Dialer):
    """Opens links of one peer over a `SimNetwork`. Made by `SimNetwork.dialer`."""

    def __init__(self, network: SimNetwork, peer_id: PeerId, config: LinkConfig, max_frame: int) -> None:
        self.network = network
        self.peer_id = peer_id
        self.config = config
        self.max_frame = max_frame
        self.crashed: bool = False

    async def offer(self, peer: PeerId) -> Attempt:
        await trio.lowlevel.checkpoint()
        return self._begin(peer, None)

    async def answer(self, peer: PeerId, offer: Description) -> Attempt:
        await trio.lowlevel.checkpoint()
        return self._begin(peer, offer)

    async def aclose(self) -> None:
        """End what this dialer has begun and not closed."""
        attempts, carriers = self.network.owned_by(self)
        for attempt in attempts:
            attempt.fail("the dialer is closed")
        for carrier in carriers:
            carrier.fail(LinkError(f"{short(self.peer_id)} has closed its dialer"))
        await trio.lowlevel.checkpoint()

    def crash(self) -> None:
        """End the peer in this moment, without a word: its links fall silent."""
        self.crashed = True
        attempts, carriers = self.network.owned_by(self)
        for attempt in attempts:
            attempt.fail(_CRASHED)
        for carrier in carriers:
            carrier.lose(LinkError(_CRASHED))

    def _begin(self, peer: PeerId, far: Description | None) -> Attempt:
        if self.crashed:
            raise AttemptFailed(_CRASHED)
        return SimAttempt(self, peer, far)


_CRASHED: Final = "this peer has crashed"


def _parse(description: Description) -> tuple[str, bytes]:
    """Token and fingerprint of a description."""
    token, fingerprint = parse_description(description)
    if not token:
        raise AttemptFailed("this is no description of the simulated network")
    return token, fingerprint
