"""One end of a simulated data channel: packets leave along a `Path`, and come in when the network lets them.

What waits does so where it would with WebRTC: bytes that have not left are `buffered`, bytes under way are bounded by a
window like that of congestion control, and what can't come in (a partition, a frozen peer) waits in order until it can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import trio

from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import LinkError
from p2pmesh.links.session_link import Carrier, SessionLink
from p2pmesh.simulation.model.conditioner import Break, Path
from p2pmesh.wire.packet_format import MAX_PACKET

FLIGHT: Final = 128 * 1024
"""Bytes under way, for one direction of a link: what a congestion window allows."""


class Medium(Protocol):
    """What a carrier needs of its network."""

    def at(self, time: float, action: Callable[..., None], *args: Any) -> None:
        """Do something at this time."""

    @property
    def passes(self) -> Callable[[PeerId, PeerId], bool]:
        """Whether a packet from one peer gets to another now."""

    def forget(self, carrier: SimCarrier) -> None:
        """This carrier is gone."""


class SimCarrier(Carrier):
    """One end. `far` is the other, `path` leads there."""

    far: SimCarrier

    def __init__(self, medium: Medium, owner: PeerId, path: Path, low_water: int) -> None:
        self.owner = owner
        self.path = path
        self._medium = medium
        self._low_water = low_water
        self._link: SessionLink | None = None
        self._before_link: list[Callable[[SessionLink], None]] = []
        self._outbox: deque[bytes | str] = deque()
        self._buffered = 0
        self._in_flight = 0
        self._leaving = False
        self._last_arrival = 0.0
        self._held: deque[tuple[bytes | str | None, int]] = deque()
        self._gone = False
        self._why = "the channel is closed"
        self._idle = trio.lowlevel.ParkingLot()

    def attach(self, link: SessionLink) -> None:
        """Give this end to its link, with all that has happened so far."""
        self._link = link
        for happened in self._before_link:
            happened(link)
        self._before_link.clear()

    # --- the contract of a carrier ------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        return self._buffered

    @property
    def max_packet(self) -> int:
        return MAX_PACKET

    def send_packet(self, packet: bytes | str) -> None:
        if self._gone:
            raise LinkError(self._why)
        size = size_of(packet)
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
        self.hang_up()
        await trio.lowlevel.checkpoint()

    # --- its ends -----------------------------------------------------------------------------------------------------

    @property
    def is_gone(self) -> bool:
        """Whether nothing passes any more."""
        return self._gone

    def hang_up(self) -> None:
        """Close this end. The far one hears of it after all that left before."""
        if not self._gone:
            self._go()
            now = trio.current_time()
            self._medium.at(max(self._last_arrival, now + self.path.base), self.far.arrive, None, 0)

    def fail(self, error: LinkError) -> None:
        """Lose both ends, and tell their links why."""
        for end in (self, self.far):
            end.lose(error)

    def lose(self, error: LinkError | None) -> None:
        """Lose this end: the peer closed the channel (None), or the channel failed."""
        if not self._gone:
            self._why = self._why if error is None else str(error)
            self._go()
            self._tell(partial(_closed, error))

    def _go(self) -> None:
        self._gone = True
        self._outbox.clear()
        self._held.clear()
        self._buffered = 0
        self._medium.forget(self)
        self._idle.unpark_all()

    # --- packets in ---------------------------------------------------------------------------------------------------

    def arrive(self, packet: bytes | str | None, size: int) -> None:
        """A packet, or None for the peer's closing, comes in."""
        if self._gone:
            return
        if self._held or not self._medium.passes(self.far.owner, self.owner):
            self._held.append((packet, size))
        elif packet is None:
            self.lose(None)
        else:
            self.far.arrived(size)
            if self._link is not None:
                self._link.packet_received(packet)
            else:
                self._before_link.append(partial(_receive, packet))

    def release(self) -> None:
        """Let pass what was held, as far as it may."""
        held, self._held = self._held, deque()
        for packet, size in held:
            self.arrive(packet, size)

    # --- packets out --------------------------------------------------------------------------------------------------

    def _transmit(self) -> None:
        """Let packets leave as fast as bandwidth and congestion window allow."""
        while self._outbox and not self._leaving:
            packet = self._outbox[0]
            size = size_of(packet)
            if self._in_flight and self._in_flight + size > FLIGHT:
                return
            self._outbox.popleft()
            self._in_flight += size
            now = trio.current_time()
            if self.path.plain:
                self._due(self.path.arrival(now), packet, size)
            else:
                self._send_with_care(packet, size, now)
            if self._gone:
                return
            waits = self.path.queued(now)
            if waits > 0:
                self._leaving = True
                self._medium.at(now + waits, self._left_at_last, size)
            else:
                self._left(size)

    def _send_with_care(self, packet: bytes | str, size: int, now: float) -> None:
        decision = self.path.send(now, size)
        if isinstance(decision, Break):
            self.fail(LinkError("the connection broke"))
            return
        if not decision:  # lost for good: the window does not wait for it
            self._medium.at(now + self.path.base, self.arrived, size)
        for copy, arrival in enumerate(decision):
            self._due(arrival.time, garbled(packet) if arrival.corrupted else packet, 0 if copy else size)

    def _due(self, time: float, packet: bytes | str, size: int) -> None:
        self._last_arrival = max(self._last_arrival, time)
        self._medium.at(time, self.far.arrive, packet, size)

    def _left_at_last(self, size: int) -> None:
        if not self._gone:
            self._leaving = False
            self._left(size)
            self._transmit()

    def _left(self, size: int) -> None:
        self._buffered -= size
        if self._buffered <= self._low_water < self._buffered + size:
            self._tell(SessionLink.drained)

    def arrived(self, size: int) -> None:
        """The far end has got so many of the bytes under way."""
        self._in_flight -= size
        if self._outbox:
            self._transmit()
        if not self._buffered and not self._in_flight and self._idle:
            self._idle.unpark_all()

    def _tell(self, what: Callable[[SessionLink], None]) -> None:
        if self._link is None:
            self._before_link.append(what)
        else:
            what(self._link)


def garbled(packet: bytes | str) -> bytes | str:
    """What corruption makes of a packet: something that begins like nothing a link sends."""
    return "\0" + packet[1:] if isinstance(packet, str) else b"\xff" + packet[1:]


def size_of(packet: bytes | str) -> int:
    """Bytes of a packet on its way."""
    return len(packet.encode() if isinstance(packet, str) else packet)


def _receive(packet: bytes | str, link: SessionLink) -> None:
    link.packet_received(packet)


def _closed(error: LinkError | None, link: SessionLink) -> None:
    link.carrier_closed(error)
