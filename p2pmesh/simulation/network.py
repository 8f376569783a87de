"""A network in memory: the same links as over WebRTC, with latency, bandwidth and faults of the caller's choice.

    async with SimNetwork(random.Random(1), latency=0.02) as network:
        alice, bob = network.dialer(ALICE), network.dialer(BOB)

Dialers of one network open links to each other by the same offers and answers as over WebRTC, whose descriptions bear
fingerprints that are checked when the link opens. Under `trio.testing.MockClock` hours pass in no time; all that happens
by itself happens in one task, at instants that the seed and the callers determine.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Self

import trio

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.keyspace import PeerId, short
from p2pmesh.links.carried import Carrier, SessionLink
from p2pmesh.links.link import Attempt, AttemptFailed, Dialer, Link, LinkError
from p2pmesh.protocols.core import RemotePeer
from p2pmesh.wire.fragments import MAX_PACKET
from p2pmesh.wire.messages import Signal

FLIGHT = 128 * 1024
"""Bytes under way that have not arrived, for one direction of a link: what a congestion window allows."""
CHECK_EVERY = 1.0
"""Between ICE checks of an attempt whose peers can't reach each other."""
CHECKS_END = 30.0
"""Until ICE gives up such an attempt."""


class SimNetwork:
    """An async context manager; links live no longer than its block."""

    def __init__(
        self, rng: random.Random, *, latency: float = 0.010, open_delay: float = 0.030, bandwidth: float = math.inf
    ) -> None:
        """Make a network.

        Args:
          rng: draws tokens and fingerprints.
          latency: seconds from one peer to another.
          open_delay: seconds from the answer's arrival to an open link.
          bandwidth: bytes per second in each direction of each link.
        """
        self.rng = rng
        self.latency = latency
        self.open_delay = open_delay
        self.bandwidth = bandwidth
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._alarm: trio.CancelScope | None = None
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self._attempts: dict[str, SimAttempt] = {}
        self._carriers: dict[SimCarrier, None] = {}  # in the order they were made
        self._frozen: set[PeerId] = set()
        self._sides: dict[PeerId, int] = {}

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

    def dialer(self, peer_id: PeerId, config: LinkConfig | None = None, max_frame: int | None = None) -> SimDialer:
        """The dialer of a peer, with the config of its links and the largest frame they take."""
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
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        """End `freeze`."""
        self._frozen.discard(peer)
        self._release()

    def partition(self, *sides: Iterable[PeerId]) -> None:
        """Let nothing pass, in silence, between peers of different sides until `heal`; who is not named is a side too."""
        self._sides = {peer: number for number, side in enumerate(sides) for peer in side}
        self._release()

    def heal(self) -> None:
        """End `partition`."""
        self.partition()

    def reachable(self, a: PeerId, b: PeerId) -> bool:
        """Whether packets pass between two peers."""
        return a not in self._frozen and b not in self._frozen and self._sides.get(a, -1) == self._sides.get(b, -1)

    # --- what is there ------------------------------------------------------------------------------------------------

    def links(self) -> Iterator[tuple[PeerId, PeerId]]:
        """Who holds an open end of a link to whom, in the order they were opened."""
        return ((carrier.owner, carrier.far.owner) for carrier in self._carriers)

    def attempts(self) -> int:
        """How many attempts are neither opened nor closed."""
        return len(self._attempts)

    # --- for the other classes of this module -------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something later; what is due at one instant is done in the order it was asked for."""
        heapq.heappush(self._events, (time, next(self._order), action))
        if self._alarm is not None and time < self._alarm.deadline:
            self._alarm.deadline = time

    def register(self, token: str, attempt: SimAttempt) -> None:
        self._attempts[token] = attempt

    def unregister(self, token: str) -> None:
        self._attempts.pop(token, None)

    def forget(self, carrier: SimCarrier) -> None:
        self._carriers.pop(carrier, None)

    def owned_by(self, dialer: SimDialer) -> tuple[list[SimAttempt], list[SimCarrier]]:
        """The attempts and carriers of a dialer."""
        attempts = [attempt for attempt in self._attempts.values() if attempt.dialer is dialer]
        return attempts, [carrier for carrier in self._carriers if carrier.dialer is dialer]

    def connect(self, offerer: SimAttempt, give_up: float) -> None:
        """Open a link between two attempts that have each other's description, if the network lets them."""
        if offerer.settled:
            return
        answerer = self._attempts.get(offerer.far_token)
        now = trio.current_time()
        if answerer is None or not self.reachable(offerer.dialer.peer_id, answerer.dialer.peer_id):
            if now < give_up:
                self.at(now + CHECK_EVERY, partial(self.connect, offerer, give_up))
                return
            for attempt in (offerer, answerer):
                if attempt is not None:
                    attempt.fail("no path to the peer: all ICE checks failed")
        elif offerer.far_fingerprint != answerer.fingerprint or answerer.far_fingerprint != offerer.fingerprint:
            for attempt in (offerer, answerer):
                attempt.fail("the DTLS handshake failed: the certificate is not the one of the description")
        else:
            near, far = SimCarrier(self, offerer.dialer), SimCarrier(self, answerer.dialer)
            near.far, far.far = far, near
            for attempt, carrier in ((offerer, near), (answerer, far)):
                self._carriers[carrier] = None
                attempt.succeed(carrier)

    async def _run(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._events[0][0] if self._events else math.inf) as self._alarm:
                await trio.sleep_forever()
            while self._events and self._events[0][0] <= trio.current_time():
                heapq.heappop(self._events)[2]()

    def _release(self) -> None:
        for carrier in self._carriers:
            self.at(trio.current_time(), carrier.release)


class SimCarrier(Carrier):
    """One end of a simulated data channel."""

    far: SimCarrier

    def __init__(self, network: SimNetwork, dialer: SimDialer) -> None:
        self.dialer = dialer
        self.owner = dialer.peer_id
        self._network = network
        self._link: SessionLink | None = None
        self._before_link: list[Callable[[SessionLink], None]] = []
        self._outbox: deque[bytes | str] = deque()
        self._buffered = 0
        self._in_flight = 0
        self._leaving = False
        self._free_at = -math.inf
        self._arrives_at = -math.inf
        self._held: deque[tuple[bytes | str | None, int]] = deque()
        self._gone = False
        self._idle = trio.lowlevel.ParkingLot()

    def attach(self, link: SessionLink) -> None:
        """Give the end to its link, with all that has happened so far."""
        self._link = link
        for happened in self._before_link:
            happened(link)
        self._before_link.clear()

    @property
    def buffered(self) -> int:
        return self._buffered

    @property
    def max_packet(self) -> int:
        return MAX_PACKET

    def send_packet(self, packet: bytes | str) -> None:
        if self._gone:
            raise LinkError("the channel is closed")
        size = _size(packet)
        if size > MAX_PACKET:
            raise ValueError(f"a packet of {size} bytes: at most {MAX_PACKET} are carried")
        self._outbox.append(packet)
        self._buffered += size
        self._transmit()

    async def flush(self) -> None:
        while not self._gone and (self._buffered or self._in_flight):
            await self._idle.park()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if not self._gone:
            self._go()
            self._network.at(self._arrival(), partial(self.far.arrive, None, 0))
        await trio.lowlevel.checkpoint()

    def fail(self, error: LinkError) -> None:
        """Both ends are gone, and their links know why."""
        for end in (self, self.far):
            end.lose(error)

    def arrive(self, packet: bytes | str | None, size: int) -> None:
        """A packet, or None for the peer's closing, comes in."""
        if self._gone:
            return
        if self._held or not self._network.reachable(self.owner, self.far.owner):
            self._held.append((packet, size))
        elif packet is None:
            self.lose(None)
        else:
            self.far.arrived(size)
            self._tell(partial(_receive, packet))

    def release(self) -> None:
        """What was held may pass again, if it may."""
        held, self._held = self._held, deque()
        for packet, size in held:
            self.arrive(packet, size)

    def _transmit(self) -> None:
        """Let packets leave as fast as bandwidth and congestion window allow."""
        while self._outbox and not self._leaving:
            size = _size(self._outbox[0])
            if self._in_flight and self._in_flight + size > FLIGHT:
                return
            now = trio.current_time()
            self._free_at = max(now, self._free_at) + size / self._network.bandwidth
            self._leaving = True
            if self._free_at > now:
                self._network.at(self._free_at, self._leave_and_go_on)
            else:
                self._leave()

    def _leave_and_go_on(self) -> None:
        if not self._gone:
            self._leave()
            self._transmit()

    def _leave(self) -> None:
        packet = self._outbox.popleft()
        size = _size(packet)
        self._leaving = False
        self._buffered -= size
        self._in_flight += size
        self._network.at(self._arrival(), partial(self.far.arrive, packet, size))
        if self._buffered <= self.dialer.config.low_water < self._buffered + size:
            self._tell(SessionLink.drained)

    def _arrival(self) -> float:
        self._arrives_at = max(self._arrives_at, trio.current_time() + self._network.latency)
        return self._arrives_at

    def arrived(self, size: int) -> None:
        """The far end has so much of what was under way."""
        self._in_flight -= size
        self._transmit()
        if not self._buffered and not self._in_flight:
            self._idle.unpark_all()

    def lose(self, error: LinkError | None) -> None:
        """This end is gone: the peer closed the channel (None), or it failed."""
        if not self._gone:
            self._go()
            self._tell(partial(_closed, error))

    def _go(self) -> None:
        self._gone = True
        self._outbox.clear()
        self._held.clear()
        self._buffered = 0
        self._network.forget(self)
        self._idle.unpark_all()

    def _tell(self, what: Callable[[SessionLink], None]) -> None:
        if self._link is None:
            self._before_link.append(what)
        else:
            what(self._link)


class SimAttempt(Attempt):
    """A simulated link in the making."""

    def __init__(self, dialer: SimDialer, peer_id: PeerId, kind: str, far: Signal | None) -> None:
        rng = dialer.network.rng
        self.dialer = dialer
        self.token = f"{rng.getrandbits(64):016x}"
        self.fingerprint = rng.randbytes(32).hex(":").upper()
        self.far_token, self.far_fingerprint = ("", "") if far is None else _parse(far)
        self._peer_id = peer_id
        self._signal = Signal(type=kind, sdp=_SDP.format(fingerprint=self.fingerprint, token=self.token))
        self._settled = trio.Event()
        self._failure: str | None = None
        self._carrier: SimCarrier | None = None
        dialer.network.register(self.token, self)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def signal(self) -> Signal:
        return self._signal

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    async def feed(self, signal: Signal) -> None:
        await trio.lowlevel.checkpoint()
        if signal.type != "answer" or self._signal.type != "offer" or self.far_token or self.settled:
            return
        self.far_token, self.far_fingerprint = _parse(signal)
        network, now = self.dialer.network, trio.current_time()
        network.at(now + network.open_delay, partial(network.connect, self, now + CHECKS_END))

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
        """The channel is open."""
        self._carrier = carrier
        self._settle()

    def fail(self, reason: str) -> None:
        """It won't open any more."""
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

    async def offer(self, peer: PeerId) -> Attempt:
        await trio.lowlevel.checkpoint()
        return SimAttempt(self, peer, "offer", None)

    async def answer(self, peer: PeerId, offer: Signal) -> Attempt:
        await trio.lowlevel.checkpoint()
        return SimAttempt(self, peer, "answer", offer)

    async def aclose(self) -> None:
        """End what this dialer began and left open."""
        attempts, carriers = self.network.owned_by(self)
        for attempt in attempts:
            attempt.fail("the dialer is closed")
        for carrier in carriers:
            carrier.fail(LinkError(f"{short(self.peer_id)} has closed its dialer"))
        await trio.lowlevel.checkpoint()


_SDP = "v=0\r\na=fingerprint:sha-256 {fingerprint}\r\na=sim-token:{token}\r\n"


def _parse(signal: Signal) -> tuple[str, str]:
    """Token and fingerprint of a description."""
    token = fingerprint = ""
    for line in (signal.sdp or "").splitlines():
        if line.startswith("a=sim-token:"):
            token = line.removeprefix("a=sim-token:")
        elif line.startswith("a=fingerprint:sha-256 "):
            fingerprint = line.removeprefix("a=fingerprint:sha-256 ").upper()
    if not token or not fingerprint:
        raise AttemptFailed(f"this {signal.type} is no description of the simulated network")
    return token, fingerprint


def _size(packet: bytes | str) -> int:
    return len(packet.encode() if isinstance(packet, str) else packet)


def _receive(packet: bytes | str, link: SessionLink) -> None:
    link.packet_received(packet)


def _closed(error: LinkError | None, link: SessionLink) -> None:
    link.carrier_closed(error)
