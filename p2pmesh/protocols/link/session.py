"""What goes on inside one link: lanes, credits, fragments, keepalive, and a clean end. Each end has a session.

The carrier below brings packets over, whole, in order, each once; `p2pmesh.wire.packet_format` says what is in them.

- Two lanes: urgent frames overtake bulk ones, between the fragments of large bulk frames too.
- Small frames that come in quick succession share a packet: the first goes at once, what follows within
  `coalesce_delay` waits for company, unless the peer has been heard since (then this is a conversation, and latency
  counts).
- Patient frames (acks, counts: nobody's latency hangs on them) wait up to `patience` for a packet that leaves anyway.
- Credits: the receiver says how much it may be charged in all, in each lane, and says more as its application takes
  frames. So a slow receiver stops its sender, and what waits unread is bounded whatever the peer does.
- Keepalive: see `keepalive`.

Inputs: `queue`, `finish`, `receive_packet`, `expire`. Outputs, to be asked for after each input: `next_packet`, `take`,
`next_deadline`. Times are monotonic seconds. The original's peers know none of this: `LegacySession` stands in for
them.
Config: `LinkConfig`. State: in each lane, frames of one packet and one more to send, and `receive_window` bytes to
take.
"""

from __future__ import annotations

import math

from p2pmesh.config import LinkConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocols.link.keepalive import Keepalive
from p2pmesh.protocols.link.lanes import IncomingLane, OutgoingLane
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.limits import TokenBucket
from p2pmesh.wire.packet_format import (
    BULK,
    CREDIT,
    END,
    END_RECORD,
    HEADER_SIZE,
    HELLO,
    MAX_CREDIT,
    MAX_PACKET,
    MAX_U32,
    MIN_FRAGMENT,
    MORE,
    PING,
    PONG,
    START,
    START_SIZE,
    URGENT,
    credit_record,
    parse_packet,
    read_u32,
    read_u64,
    u32_record,
)

MOST_CONTROL = 16
"""Records in one packet that are no part of a frame: a peer of ours sends six at most."""
FRAMELESS_PER_SECOND = 20.0
FRAMELESS_AT_ONCE = 500.0
"""Packets that end no frame, and are small: a peer of ours sends two or three a second, and more for what it gets."""
CREDIT_FOR = 512
"""Bytes of ours for which a peer may send one more: it gives credit for a quarter of its `receive_window` at once,
which 64 tiny frames may take of the smallest."""


class LinkSession:
    """One end of a link between two peers of ours."""

    def __init__(
        self, config: LinkConfig, max_frame: int, max_packet: int, now: float, health: LocalHealth | None = None
    ) -> None:
        self._config = config
        self._max_frame = min(max_frame, MAX_U32)
        self.max_frame: int = self._max_frame
        """The largest frame that both sides take."""
        # The header on top: frames and fragments of round sizes should not leave a few bytes for one more packet.
        packet_size = min(config.packet_size + START_SIZE, max_packet, MAX_PACKET)
        self._room = packet_size
        self._coalesce_size = min(config.coalesce_size, packet_size)
        self._out = tuple(OutgoingLane(lane, packet_size, self._coalesce_size) for lane in (BULK, URGENT))
        self._in = tuple(IncomingLane(config.receive_window, self._max_frame) for _ in (BULK, URGENT))
        self._control_due = True
        self._hello_sent = False
        self._peer_max_frame: int | None = None
        self._pong: int | None = None
        self._hold_until = -math.inf
        self._held = False
        self._impatient = False
        self._patience_ends = math.inf
        self._finishing = False
        self._end_sent = False
        self.peer_ended: bool = False
        """The peer sent all it will ever send."""
        self._keepalive = Keepalive(config, now, health)
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self.packets_sent: int = 0
        self.packets_received: int = 0
        self._frameless = TokenBucket(FRAMELESS_PER_SECOND, FRAMELESS_AT_ONCE, now)
        self._credited = 0  # of `bytes_sent`

    # --- what the application does ------------------------------------------------------------------------------------

    def check(self, frame: bytes) -> None:
        """Raise `ValueError` for a frame that can't be sent."""
        if len(frame) > self.max_frame:
            raise ValueError(f"a frame of {len(frame)} bytes: this link carries at most {self.max_frame}")

    def has_room(self, *, urgent: bool) -> bool:
        """Whether a frame may be queued: while less than a packet waits in its lane."""
        return self._peer_max_frame is not None and self._out[urgent].queued < self._room

    def queue(self, frame: bytes, *, urgent: bool, patient_until: float | None = None) -> None:
        """Queue a frame that passed `check`, when there is room.

        One with `patient_until` waits for company until then, and leaves with the next packet that anything else
        causes.
        """
        self._out[urgent].append(frame)
        if patient_until is None:
            self._impatient = True
        elif patient_until < self._patience_ends:
            self._patience_ends = patient_until

    def take(self) -> bytes | None:
        """The next frame that came, urgent ones first; None if there is none."""
        bulk, urgent = self._in
        lane = urgent if urgent.frames else bulk
        if not lane.frames:
            return None
        frame = lane.take()
        if lane.grant_due:
            self._control_due = True
        return frame

    @property
    def credit_due(self) -> bool:
        """Whether what was taken has earned the peer credit that should be sent."""
        return self._control_due

    def finish(self) -> None:
        """Send what is queued, then the end. What the peer still sends is dropped."""
        self._finishing = True
        for lane in self._in:
            lane.drop_all()
        self._control_due = True

    @property
    def finished(self) -> bool:
        """Both sides have sent all and said so."""
        return self._end_sent and self.peer_ended

    @property
    def frame_begun(self) -> bool:
        """Whether part of a frame is here, and the rest is not."""
        return any(lane.frame_begun for lane in self._in)

    # --- packets ------------------------------------------------------------------------------------------------------

    def receive_packet(self, packet: bytes | str, now: float) -> None:
        """Take a packet from the carrier.

        Raises:
          RemoteProtocolError: if the peer breaks the protocol; the session is of no use after that.
        """
        if isinstance(packet, str):
            raise RemoteProtocolError("a text message where packets are binary")
        records = parse_packet(packet)
        self.packets_received += 1
        self.bytes_received += len(packet)
        self._keepalive.heard(now)
        self._hold_until = -math.inf
        lanes = self._in
        before = lanes[BULK].frames_received + lanes[URGENT].frames_received
        control = 0
        for kind, body in records:
            if self.peer_ended:
                raise RemoteProtocolError("a record after the end")
            if self._peer_max_frame is None and kind != HELLO:
                raise RemoteProtocolError("the first record is no HELLO")
            if kind < START:
                lanes[kind].frame(body)
            elif kind < MORE:
                lanes[kind - START].start(body)
            elif kind < CREDIT:
                lanes[kind - MORE].more(body)
            else:
                control += 1
                self._receive_control(kind, body, now)
        if control > MOST_CONTROL:
            raise RemoteProtocolError(f"{control} records in one packet that are no part of a frame")
        if self._finishing and any(lane.grant_due for lane in lanes):
            self._control_due = True
        if len(packet) < MIN_FRAGMENT and lanes[BULK].frames_received + lanes[URGENT].frames_received == before:
            self._on_frameless(now)

    def _on_frameless(self, now: float) -> None:
        """A small packet that ends no frame: a ping, or credit, which peers give for what we send."""
        self._frameless.give(now, (self.bytes_sent - self._credited) / CREDIT_FOR)
        self._credited = self.bytes_sent
        if not self._frameless.take_if_there(now):
            raise RemoteProtocolError("a flood of packets that bring nothing")

    def next_packet(self, now: float, *, hold: bool = True) -> bytes | None:
        """The next packet for the carrier, which must be sent; None if there is nothing to send now.

        Args:
          now: the time.
          hold: whether small frames may be held back for company; then `expire` has to be called in time.
        """
        bulk, urgent = self._out
        queued = bulk.queued + urgent.queued
        if not (queued or self._control_due or self._finishing) or self._end_sent:
            return None
        if self._keepalive.measure(now):
            self._control_due = True
        if hold and queued < self._coalesce_size and now < self._held_back() and not self._pressing():
            self._held = True
            return None
        self._held = False
        parts: list[bytes | memoryview] = []
        used = self._fill_control(parts, now) if self._control_due else 0
        if queued:
            used = bulk.fill(parts, urgent.fill(parts, used))
        if self._finishing and not bulk.queued and not urgent.queued and used + HEADER_SIZE <= self._room:
            parts.append(END_RECORD)
            self._end_sent = True
            self._keepalive.end()
            used += HEADER_SIZE
        if not used:
            return None
        self._hold_until = now + self._config.coalesce_delay
        self._impatient = queued > 0 and bulk.queued + urgent.queued > 0
        self._patience_ends = math.inf
        self.packets_sent += 1
        self.bytes_sent += used
        if queued:
            self._keepalive.asked(now)
        return b"".join(parts)

    def _held_back(self) -> float:
        """When the frames that are queued have waited long enough for company."""
        return self._hold_until if self._impatient else max(self._hold_until, self._patience_ends)

    def _pressing(self) -> bool:
        """Whether something waits that should not wait for company."""
        return self._control_due or self._finishing or self._out[BULK].begun > 0 or self._out[URGENT].begun > 0

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `expire` wants to be called next."""
        due = self._keepalive.next_deadline()
        return min(self._held_back(), due) if self._held else due

    def expire(self, now: float, buffered: int = 0) -> float | None:
        """Do what is due. Ask for `next_packet` afterwards.

        Args:
          now: the time.
          buffered: bytes of our packets that the carrier still holds.

        Returns:
          None, or for how long the peer has been silent, if it is to be given up.
        """
        silent_for = self._keepalive.expire(now, self.bytes_sent - buffered, buffered)
        self._control_due |= self._keepalive.ping_due
        return silent_for

    # --- statistics ---------------------------------------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Nothing was heard since something was sent to the peer, though it was pinged: it may be dead."""
        return self._keepalive.silent

    @property
    def round_trip(self) -> float | None:
        """Seconds that a ping takes, smoothed; None before the first."""
        return self._keepalive.round_trip.measured

    @property
    def pings_sent(self) -> int:
        return self._keepalive.pings_sent

    @property
    def queued_bytes(self) -> int:
        return self._out[BULK].queued + self._out[URGENT].queued

    @property
    def unread_bytes(self) -> int:
        return self._in[BULK].held + self._in[URGENT].held

    @property
    def frames_sent(self) -> int:
        return self._out[BULK].frames_sent + self._out[URGENT].frames_sent

    @property
    def frames_received(self) -> int:
        return self._in[BULK].frames_received + self._in[URGENT].frames_received

    @property
    def send_credit(self) -> int:
        """Of the bulk lane."""
        return self._out[BULK].credit

    # --- control records ----------------------------------------------------------------------------------------------

    def _fill_control(self, parts: list[bytes | memoryview], now: float) -> int:
        """Put what is due into a packet; all of it together is below 64 bytes."""
        self._control_due = False
        if not self._hello_sent:
            self._hello_sent = True
            parts.append(u32_record(HELLO, self._max_frame))
        for number, lane in enumerate(self._in):
            if lane.grant_due:
                parts.append(credit_record(number, lane.grant()))
        if self._pong is not None:
            parts.append(u32_record(PONG, self._pong))
            self._pong = None
        if self._keepalive.ping_due:
            parts.append(u32_record(PING, self._keepalive.next_ping(now)))
        return sum(map(len, parts))

    def _receive_control(self, kind: int, body: bytes, now: float) -> None:
        if kind == HELLO:
            if self._peer_max_frame is not None:
                raise RemoteProtocolError("a second HELLO")
            self._peer_max_frame = read_u32(body)
            self.max_frame = min(self._max_frame, self._peer_max_frame)
        elif kind == PING:
            self._pong = read_u32(body)  # of several, the last is enough: a flood of pings piles nothing up
            self._control_due = True
        elif kind == PONG:
            self._keepalive.pong(read_u32(body), now)
        elif kind == END:
            self._end()
        else:
            self._credit(self._out[kind - CREDIT], read_u64(body))

    def _credit(self, lane: OutgoingLane, limit: int) -> None:
        if not lane.limit <= limit <= MAX_CREDIT:
            raise RemoteProtocolError(f"credit of {limit} after {lane.limit}")
        lane.limit = limit

    def _end(self) -> None:
        if self.frame_begun:
            raise RemoteProtocolError("the end comes in the middle of a frame")
        self.peer_ended = True
        self._keepalive.end()
        for lane in self._out:
            lane.clear()
        self._finishing = self._control_due = True
