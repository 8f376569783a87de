"""aiortc's SCTP association (RFC 9260) made robust and fast from outside. `aiortc_patch` re-classes it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import struct
from collections.abc import Callable
from typing import Final, cast

import aiortc
import aiortc.rtcsctptransport as sctp
from aiortc.rtcsctptransport import DataChunk, RTCSctpTransport

from p2pmesh.links.webrtc.eager_coroutine import start_now
from p2pmesh.links.webrtc.event_loop import LinkLoop

logger: Final = logging.getLogger(__name__)

CWND_CAP = 128 * 1024
"""Bytes in flight on a short path: in small datagrams they just fit the receive buffer that Linux grants by default."""
CWND_CAP_FAR = 1024 * 1024
"""Bytes in flight at most, on a long path."""
CWND_RATE = 20 * 1024 * 1024
"""Bytes per second of round trip that may be in flight between the two caps: faster than the whole stack is."""
CHUNK_COST = 512
"""The kernel charges a small datagram for about this much of its buffers, and so must the window."""
SACK_AFTER = 2 * sctp.USERDATA_MAX_LENGTH
"""Bytes received that call for an acknowledgement; small chunks count as `CHUNK_COST`."""
SACK_AFTER_WHEN_BUSY = 8 * sctp.USERDATA_MAX_LENGTH
"""The same while more may be there to read."""
SACK_DELAY = 0.1
"""Seconds that an acknowledgement waits for data to go along with: longer than our frames wait for company
(`LinkConfig.patience`), so that most do. RFC 9260 recommends 0.2 s at most."""
ROOM_FOR_SACK = sctp.USERDATA_MAX_LENGTH - 64
"""Data up to this size shares its packet with an acknowledgement."""
BURSTS = 4
"""Bursts of four packets that may be sent upon one acknowledgement: aiortc's single one throttles."""
MAX_AHEAD = 16_384
"""Chunks that may arrive ahead of a missing one; the rest is dropped and sent again."""
MAX_UNFINISHED = 8 * 1024 * 1024
"""Bytes of unfinished messages that may wait beyond the window that aiortc advertises, which it does not enforce."""


class SctpTransport(RTCSctpTransport):
    """aiortc's association with fewer acknowledgements, a window that the kernel's buffers hold, and bounds."""

    _unacknowledged = 0
    _sack_is_next = False
    _sack_due: float | None = None
    _sack_alarm: asyncio.TimerHandle | None = None
    _t3_due = 0.0
    _t3_alarm: asyncio.TimerHandle | None = None
    _t3_alarm_set = -math.inf
    _t3_is_rare = False
    _is_repairing = False
    _shortest_round_trip: float | None = None
    _when_idle: list[Callable[[], None]]
    _clock: LinkLoop

    def tune(self, loop: LinkLoop) -> None:
        """Prepare what the overrides need; called once, on an association that has not started."""
        self._when_idle = []
        self._clock = loop

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def _handle_data(self, data: bytes) -> None:
        """Drop what aiortc fails on: a packet that is malformed, or makes no sense at this moment."""
        try:
            await super()._handle_data(data)
        except Exception as error:
            self._clock.drop_datagram(error)

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        """Bound what waits for missing chunks and for the end of messages: aiortc takes all that comes."""
        self._unacknowledged += max(len(chunk.user_data), CHUNK_COST)
        if self._last_received_tsn is not None and MAX_AHEAD < (chunk.tsn - self._last_received_tsn) % 2**32 < 2**31:
            return
        if self._advertised_rwnd < -MAX_UNFINISHED:
            logger.info("the peer sends on and on without finishing a message: association aborted")
            await self._abort()
            self._set_state(self.State.CLOSED)
            self._sack_needed = False
            return
        await super()._receive_data_chunk(chunk)

    def _mark_received(self, tsn: int) -> bool:
        """Skip sorting and filtering where nothing is missing, as nearly always."""
        last = self._last_received_tsn
        if last is not None and tsn == (last + 1) % 2**32 and not self._sack_misordered and not self._sack_duplicates:
            self._last_received_tsn = tsn
            return False
        return super()._mark_received(tsn)

    async def _send_sack(self) -> None:
        """Acknowledge every other packet, or all that were read in one go (RFC 9260, section 6.2).

        Half of aiortc's work is acknowledgements, and it does them before the application hears of the message. A loss
        is reported at once, so that it is repaired soon.
        """
        if self._sack_misordered or self._sack_duplicates or self._unacknowledged >= SACK_AFTER_WHEN_BUSY:
            await self._send_sack_now()
        elif self._unacknowledged >= SACK_AFTER:
            if not self._sack_is_next:
                self._sack_is_next = True
                self._clock.call_soon(self._send_next_sack)
        elif self._sack_due is None:
            self._sack_due = self._clock.time() + SACK_DELAY
            if self._sack_alarm is None:
                self._sack_alarm = self._clock.call_at(self._sack_due, self._ask_for_sack)

    def _send_next_sack(self) -> None:
        """Acknowledge what was read in one go, unless data that we sent meanwhile took that along."""
        self._sack_is_next = False
        if self._unacknowledged >= SACK_AFTER:
            start_now(self._send_sack_now())

    async def _send_chunk(self, chunk: sctp.Chunk) -> None:
        """Take an acknowledgement that waits along with data: a packet of its own costs as much as a message does."""
        if self._sack_needed and self._can_take_sack_along(chunk):
            self._sack_due = None
            self._unacknowledged = 0
            self._sack_needed = False
            chunk = cast("sctp.Chunk", _Bundle(self._plain_sack(), cast("DataChunk", chunk)))
        await super()._send_chunk(chunk)

    def _can_take_sack_along(self, chunk: sctp.Chunk) -> bool:
        is_small = isinstance(chunk, DataChunk) and len(chunk.user_data) <= ROOM_FOR_SACK
        return is_small and not self._sack_misordered and not self._sack_duplicates

    def _plain_sack(self) -> sctp.SackChunk:
        """An acknowledgement of all that came, nothing missing."""
        sack = sctp.SackChunk()
        sack.cumulative_tsn = self._last_received_tsn
        sack.advertised_rwnd = max(0, self._advertised_rwnd)
        return sack

    async def _send_sack_now(self) -> None:
        self._unacknowledged = 0
        self._sack_due = None
        if self._sack_needed and self.transport.state == "connected":
            await super()._send_sack()

    def _ask_for_sack(self) -> None:
        """Acknowledge if that is due: most timers outlive what they were set for, which went along with data."""
        self._sack_alarm = None
        if self._sack_due is None:
            return
        if self._sack_due > self._clock.time():
            self._sack_alarm = self._clock.call_at(self._sack_due, self._ask_for_sack)
        else:
            self._sack_due = None
            start_now(self._send_sack_now())

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state is self.State.CLOSED:
            self._sack_due = None
            for alarm in (self._sack_alarm, self._t3_alarm):
                if alarm is not None:
                    alarm.cancel()

    # --- sending ------------------------------------------------------------------------------------------------------

    def _data_channel_send(self, channel: aiortc.RTCDataChannel, data: bytes | str) -> None:
        """Send at once, without a task for each message; what can't leave yet leaves upon an acknowledgement."""
        largest = getattr(self, "_remote_max_message_size", 0)
        if not isinstance(data, bytes) or not data or 0 < largest < len(data):
            super()._data_channel_send(channel, data)
            return
        channel._addBufferedAmount(len(data))
        self._data_channel_queue.append((channel, sctp.WEBRTC_BINARY, data))
        if not self._outbound_queue:
            start_now(self._data_channel_flush())

    async def _transmit(self) -> None:
        """Skip looking through all that is in flight where nothing is to be sent again, as nearly always."""
        if self._is_repairing or self._forward_tsn_chunk is not None:
            await super()._transmit()
            self._is_repairing = any(chunk._retransmit for chunk in self._sent_queue)
        elif self._outbound_queue:
            await super()._transmit()

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
        if chunk.gaps:
            self._is_repairing = True
            chunk.gaps = self._plausible(chunk.gaps)
        await super()._receive_sack_chunk(chunk)
        far = int((self._shortest_round_trip or 0) * CWND_RATE)
        self._cwnd = min(self._cwnd, max(CWND_CAP, min(far, CWND_CAP_FAR)))
        for _ in range(BURSTS - 1):
            has_more = self._outbound_queue or self._data_channel_queue or self._is_repairing
            if not has_more or self._fast_recovery_exit is not None or self._flight_size >= self._cwnd:
                break
            await self._data_channel_flush()
            await self._transmit()
        if self._when_idle and self.is_idle:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

    def _plausible(self, gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The reports that can be true: in order, of what was sent. aiortc counts each number of each one."""
        found, last, limit = [], 0, len(self._sent_queue)
        for first, end in gaps:
            if last < first <= end <= limit:
                found.append((first, end))
                last = end
        return found

    # The retransmission timer starts anew with nearly each packet: only its deadline moves, and its alarm checks
    # that. On a link at rest, where it starts with a ping, the alarm is cancelled too, and nothing wakes for it.

    def _t3_start(self) -> None:
        self._t3_due = self._clock.time() + self._rto
        if self._t3_alarm is None or self._t3_alarm.when() > self._t3_due:
            self._set_t3_alarm()
        self._t3_handle = self._t3_alarm

    def _t3_restart(self) -> None:
        self._t3_start()

    def _t3_cancel(self) -> None:
        self._t3_handle = None
        if self._t3_is_rare and self._t3_alarm is not None:
            self._t3_alarm.cancel()
            self._t3_alarm = None

    def _set_t3_alarm(self) -> None:
        if self._t3_alarm is not None:
            self._t3_alarm.cancel()
        now = self._clock.time()
        self._t3_is_rare = now - self._t3_alarm_set > self._rto
        self._t3_alarm_set = now
        self._t3_alarm = self._clock.call_at(self._t3_due, self._look_at_t3)

    def _look_at_t3(self) -> None:
        self._t3_alarm = None
        if self._t3_handle is None:
            return
        if self._t3_due > self._clock.time():
            self._set_t3_alarm()
            self._t3_handle = self._t3_alarm
        else:
            self._t3_expired()

    def _t3_expired(self) -> None:
        self._is_repairing = True
        super()._t3_expired()

    @property
    def window(self) -> int:
        """Bytes that may be in flight."""
        return self._cwnd

    @property
    def is_idle(self) -> bool:
        """Whether the peer has acknowledged all that was sent."""
        return not (self._sent_queue or self._outbound_queue or self._data_channel_queue)

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        """Call back once, when the association has become idle."""
        self._when_idle.append(callback)


def decode_params(body: bytes) -> list[tuple[int, bytes]]:
    """As aiortc's, which goes round for ever at a length of nothing.

    Raises:
      ValueError: if a length lies.
    """
    params: list[tuple[int, bytes]] = []
    at = 0
    while at <= len(body) - 4:
        kind, length = struct.unpack_from("!HH", body, at)
        if length < 4:
            raise ValueError("an SCTP parameter is shorter than its head")
        params.append((kind, body[at + 4 : at + length]))
        at += length + sctp.padl(length)
    return params


if list(inspect.signature(sctp.decode_params).parameters) == ["body"]:
    sctp.decode_params = decode_params  # the parser has no other seam; other users of aiortc are better off, too


class _Bundle:
    """Two chunks in one packet; RFC 9260, section 6.10: control chunks first."""

    def __init__(self, sack: sctp.SackChunk, data: DataChunk) -> None:
        self._chunks = sack, data

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self._chunks))

    def __repr__(self) -> str:
        return " + ".join(map(str, self._chunks))
