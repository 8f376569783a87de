"""aiortc made robust and fast from outside: the ICE connection and the SCTP association of one link, re-classed.

Each override does one thing, says why, and leaves the rest to aiortc's own method. What is overridden are internals of
aiortc 1.14 to 1.16 and aioice 0.10: `known()` checks that they are there, and where they are not aiortc serves as it is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import aioice.ice
import aiortc
import aiortc.rtcsctptransport as sctp
from aiortc.rtcsctptransport import DataChunk, InboundStream, RTCSctpTransport

from p2pmesh.links.webrtc_loop import RECEIVE_BUFFER, DatagramTransport

logger: Final = logging.getLogger(__name__)

PACE = 0.02
"""Between ICE checks, as aioice has it; RFC 8445's Ta is 50 ms, and at least 5."""
LOOPBACK = "127.0.0.1"
MAX_WAITING_DATAGRAMS = 4096
"""Datagrams that may wait for DTLS. It is quick: more than this is a flood from a stranger, who need not be the peer."""

CWND_CAP = 128 * 1024
"""Bytes in flight on a short path: with small datagrams this just fits the receive buffer that Linux grants by default."""
CWND_CAP_FAR = 1024 * 1024
"""Bytes in flight at most, on a long path."""
CWND_RATE = 20 * 1024 * 1024
"""Bytes per second of round trip that may be in flight between the two caps: faster than the whole stack is."""
CHUNK_COST = 512
"""The kernel charges a small datagram for about this much of its buffers, and so must the window."""
SACK_AFTER = 2 * sctp.USERDATA_MAX_LENGTH
SACK_AFTER_WHEN_BUSY = 4 * sctp.USERDATA_MAX_LENGTH
"""Bytes received that call for an acknowledgement, small chunks counted as above; more while others wait already."""
SACK_DELAY = 0.02
"""For what comes alone, unless something goes back meanwhile, which takes the acknowledgement along. RFC 9260 allows 0.2 s."""
ROOM_FOR_SACK = sctp.USERDATA_MAX_LENGTH - 64
"""Data up to this size shares its packet with an acknowledgement."""
BURSTS = 4
"""Times four packets that may be sent upon one acknowledgement: with fewer of them, aiortc's single burst throttles."""
MAX_AHEAD = 16_384
"""Chunks that may arrive ahead of a missing one; the rest is dropped and sent again."""
MAX_UNFINISHED = 8 * 1024 * 1024
"""Bytes of unfinished messages that may wait beyond the window that aiortc advertises, which it does not enforce."""


class IceConnection(aioice.ice.Connection):
    """aioice's connection, which also works without a network, and goes on as soon as it is connected."""

    async def get_component_candidates(
        self, component: int, addresses: list[str], *args: Any, **kwargs: Any
    ) -> list[aioice.Candidate]:
        """Gather; on a machine with no address but loopback, gather that, so that its processes can connect."""
        if not addresses and not self._is_relay_only():
            addresses = [LOOPBACK]
        candidates = await super().get_component_candidates(component, addresses, *args, **kwargs)
        for protocol in self._protocols:
            self._divert(protocol)
        return candidates

    def _is_relay_only(self) -> bool:
        return self._transport_policy is not aioice.TransportPolicy.ALL

    def _divert(self, protocol: aioice.ice.StunProtocol) -> None:
        """Take DTLS past the STUN parser, which fails on it by an exception; and no more than we can hold."""
        transport = cast("object", protocol.transport)
        if not isinstance(transport, DatagramTransport):
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        queue, component = self._queue, protocol.local_candidate.component

        def received(data: bytes, address: tuple[Any, ...]) -> None:
            if not 19 < data[0] < 64:  # RFC 7983
                protocol.datagram_received(data, address)
            elif queue.qsize() < MAX_WAITING_DATAGRAMS:
                queue.put_nowait((data, component))

        transport.divert(received)

    _is_nominated: asyncio.Future[None] | None = None

    async def connect(self) -> None:
        """Connect; aioice would sleep out 20 ms after each check, also when it has succeeded long before."""
        if self._local_candidates_end and self.remote_username is not None and self.remote_password is not None:
            await self._check_pairs()
        await super().connect()

    async def _check_pairs(self) -> None:
        """What `connect` begins with, in a pace that success interrupts. It finds all that done and returns at once."""
        for remote_candidate in self._remote_candidates:
            self._pair_remote_candidate(remote_candidate)
        self.sort_check_list()
        self._unfreeze_initial()
        self._early_checks_done = True
        while self._early_checks:
            self.check_incoming(*self._early_checks.popleft())
        self._is_nominated = asyncio.get_running_loop().create_future()
        while self._check_periodic():
            await asyncio.wait([self._is_nominated], timeout=PACE)

    def _check_list_maybe_complete(self) -> bool:
        is_complete = super()._check_list_maybe_complete()
        if is_complete and self._is_nominated is not None and not self._is_nominated.done():
            self._is_nominated.set_result(None)
        return is_complete

    async def get_event(self) -> aioice.ice.ConnectionEvent | None:
        """As aioice's; but aiortc asks again for ever, without a pause, when the answer is that all is over already."""
        return aioice.ice.ConnectionClosed() if self._closed else await super().get_event()


class SctpTransport(RTCSctpTransport):
    """aiortc's association with fewer acknowledgements, a window that the kernel's buffers hold, and bounds."""

    _unacknowledged = 0
    _late_sack: asyncio.TimerHandle | None = None
    _shortest_round_trip: float | None = None
    _when_idle: list[Callable[[], None]]
    _datagrams: asyncio.Queue[Any]

    def tune(self) -> None:
        """Prepare what the overrides need; called once, on an association that has not started."""
        self._when_idle = []
        self._datagrams = cast("Any", self.transport.transport)._connection._queue

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        """Bound what waits for missing chunks and for the end of messages: aiortc takes all that comes."""
        self._unacknowledged += max(len(chunk.user_data), CHUNK_COST)
        if self._last_received_tsn is not None and MAX_AHEAD < (chunk.tsn - self._last_received_tsn) % 2**32 < 2**31:
            return
        if self._advertised_rwnd < -MAX_UNFINISHED:
            logger.info("the peer sends on and on without finishing a message: association aborted")
            await self._abort()
            self._set_state(self.State.CLOSED)
            return
        await super()._receive_data_chunk(chunk)

    def _mark_received(self, tsn: int) -> bool:
        """In order and nothing missing, as nearly always: no need to sort and filter."""
        last = self._last_received_tsn
        if last is not None and tsn == (last + 1) % 2**32 and not self._sack_misordered and not self._sack_duplicates:
            self._last_received_tsn = tsn
            return False
        return super()._mark_received(tsn)

    async def _send_sack(self) -> None:
        """Acknowledge every other packet, or later while more of them wait already (RFC 9260, section 6.2).

        Half of aiortc's work is acknowledgements, and it does them before the application hears of the message. A loss is
        reported at once, so that it is repaired soon.
        """
        enough = SACK_AFTER if self._datagrams.empty() else SACK_AFTER_WHEN_BUSY
        if self._unacknowledged < enough and not self._sack_misordered and not self._sack_duplicates:
            if self._late_sack is None:
                self._late_sack = asyncio.get_running_loop().call_later(SACK_DELAY, self._ask_for_sack)
            return
        await self._send_sack_now()

    async def _send_chunk(self, chunk: sctp.Chunk) -> None:
        """Take an acknowledgement that waits along with data: a packet of its own costs as much as a message does."""
        if self._late_sack is not None and self._can_take_sack_along(chunk):
            self._late_sack.cancel()
            self._late_sack = None
            self._unacknowledged = 0
            self._sack_needed = False
            chunk = cast("sctp.Chunk", _Bundle(self._plain_sack(), cast("DataChunk", chunk)))
        await super()._send_chunk(chunk)

    def _can_take_sack_along(self, chunk: sctp.Chunk) -> bool:
        is_small = isinstance(chunk, DataChunk) and len(chunk.user_data) <= ROOM_FOR_SACK
        return is_small and self._sack_needed and not self._sack_misordered and not self._sack_duplicates

    def _plain_sack(self) -> sctp.SackChunk:
        """All has come so far, in order."""
        sack = sctp.SackChunk()
        sack.cumulative_tsn = self._last_received_tsn
        sack.advertised_rwnd = max(0, self._advertised_rwnd)
        return sack

    async def _send_sack_now(self) -> None:
        self._unacknowledged = 0
        if self._sack_needed and self.transport.state == "connected":
            await super()._send_sack()

    def _ask_for_sack(self) -> None:
        self._late_sack = None
        if self._sack_needed:
            asyncio.ensure_future(self._send_sack_now())  # ruff: ignore[asyncio-dangling-task] - its owner holds it

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state is self.State.CLOSED and self._late_sack is not None:
            self._late_sack.cancel()
            self._late_sack = None

    # --- sending ------------------------------------------------------------------------------------------------------

    def _flight_size_increase(self, chunk: DataChunk) -> None:
        """Count a small chunk for what it costs the kernel, else a flow of them overruns the peer's buffer."""
        if not chunk._sent_count:
            chunk._book_size = max(chunk._book_size, CHUNK_COST)
        super()._flight_size_increase(chunk)

    def _update_rto(self, R: float) -> None:  # ruff: ignore[invalid-argument-name] - as the base class has it
        super()._update_rto(R)
        if self._shortest_round_trip is None or self._shortest_round_trip > R:
            self._shortest_round_trip = R

    async def _receive_sack_chunk(self, chunk: sctp.SackChunk) -> None:
        """Cap the window: aiortc's grows until the peer's receive buffer overflows, and the recovery costs seconds."""
        await super()._receive_sack_chunk(chunk)
        far = int((self._shortest_round_trip or 0) * CWND_RATE)
        self._cwnd = min(self._cwnd, max(CWND_CAP, min(far, CWND_CAP_FAR)))
        for _ in range(BURSTS - 1):
            if self._fast_recovery_exit is not None or self._flight_size >= self._cwnd:
                break
            await self._data_channel_flush()
            await self._transmit()
        if self._when_idle and self.is_idle:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

    @property
    def is_idle(self) -> bool:
        """Whether the peer has acknowledged all that was sent."""
        return not (self._sent_queue or self._outbound_queue or self._data_channel_queue)

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        """Call back once, when the association has become idle."""
        self._when_idle.append(callback)


class _Bundle:
    """Two chunks in one packet; RFC 9260, section 6.10: control chunks first."""

    def __init__(self, sack: sctp.SackChunk, data: DataChunk) -> None:
        self._chunks = sack, data

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self._chunks))

    def __repr__(self) -> str:
        return " + ".join(map(str, self._chunks))


def tune(connection: aiortc.RTCPeerConnection) -> None:
    """Re-class the parts of a connection that has its data channel transport but has not gathered candidates yet."""
    if not known() or connection.sctp is None:
        return
    ice = cast("Any", connection.sctp.transport.transport)._connection
    if type(ice) is aioice.ice.Connection and type(connection.sctp) is RTCSctpTransport:
        ice.__class__ = IceConnection
        connection.sctp.__class__ = SctpTransport
        cast("SctpTransport", connection.sctp).tune()


_ICE_METHODS = {
    "get_component_candidates": ["self", "component", "addresses", "timeout"],
    "connect": ["self"],
    "_pair_remote_candidate": ["self", "remote_candidate"],
    "sort_check_list": ["self"],
    "_unfreeze_initial": ["self"],
    "check_incoming": ["self", "message", "addr", "protocol"],
    "_check_periodic": ["self"],
    "_check_list_maybe_complete": ["self"],
    "get_event": ["self"],
}
_ICE_STATE = (
    "_local_candidates_end",
    "_remote_candidates",
    "_early_checks",
    "_early_checks_done",
    "_check_list_done",
    "_queue",
    "_protocols",
    "_closed",
    "_transport_policy",
)
_SCTP_METHODS = {
    "_receive_data_chunk": ["self", "chunk"],
    "_mark_received": ["self", "tsn"],
    "_send_sack": ["self"],
    "_flight_size_increase": ["self", "chunk"],
    "_update_rto": ["self", "R"],
    "_receive_sack_chunk": ["self", "chunk"],
    "_abort": ["self"],
    "_send_chunk": ["self", "chunk"],
    "_set_state": ["self", "state"],
    "_data_channel_flush": ["self"],
    "_transmit": ["self"],
}
_SCTP_STATE = (
    "_last_received_tsn",
    "_advertised_rwnd",
    "_sack_misordered",
    "_sack_duplicates",
    "_sack_needed",
    "_cwnd",
    "_flight_size",
    "_fast_recovery_exit",
    "_sent_queue",
    "_outbound_queue",
    "_data_channel_queue",
    "_association_state",
)


def _lacks() -> list[str]:
    """What of the internals that we rely on is not there."""
    missing = []
    for cls, methods, state in (
        (aioice.ice.Connection, _ICE_METHODS, _ICE_STATE),
        (RTCSctpTransport, _SCTP_METHODS, _SCTP_STATE),
    ):
        for name, parameters in methods.items():
            method = getattr(cls, name, None)
            if method is None or list(inspect.signature(method).parameters) != parameters:
                missing.append(f"{cls.__name__}.{name}")
        names = set(cls.__init__.__code__.co_names)
        missing += [f"{cls.__name__}.{name}" for name in state if name not in names]
    if not hasattr(InboundStream, "pop_messages") or not hasattr(DataChunk, "__bytes__"):
        missing.append("InboundStream")
    return missing


_missing: list[str] | None = None


def known() -> bool:
    """Whether this aiortc is one that we know; said once if it is not."""
    global _missing
    if _missing is None:
        _missing = _lacks()
        if _missing:
            logger.warning("this version of aiortc is not known, links will be slower: no %s", ", ".join(_missing))
    return not _missing
