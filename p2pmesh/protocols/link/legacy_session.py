"""What goes on inside a link to a peer of the original project: each frame is one text message, and that is all.

There is no credit: a peer that sends faster than we read is cut off, since nothing could slow it. A peer that says
nothing is asked by a broadcast that only it gets, its own kind of ping (`probe`); if it has ever answered one, it is
given up as any other once it no longer does. Same inputs and outputs as `LinkSession`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from p2pmesh.config import LinkConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocols.link.keepalive import Keepalive
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.wire.packet_format import BULK, FRAME_COST, HEADER_SIZE, URGENT

MAX_TEXT = 262_144
"""The largest message that the original's peers take."""
ANSWER = b"__gossip_connectivity_response"
"""The topic of an answer to a probe; some other message that has it in it is a sign of life as well."""


class LegacySession:
    """One end of a link to a peer of the original project."""

    peer_ended = False
    frame_begun = False
    round_trip: float | None = None
    send_credit = 0

    def __init__(self, config: LinkConfig, now: float, health: LocalHealth) -> None:
        self.probe: Callable[[], bytes] | None = None
        """Makes the frame that asks the peer whether it is there. Without it nothing is asked."""
        self._keepalive = Keepalive(config, now, health)
        self._answers = False
        """Whether it has ever answered such a frame: only then its silence says anything."""
        self._window = config.receive_window
        self._room = config.packet_size
        self._out: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._in: deque[bytes] = deque()
        self._queued = [0, 0]
        self._finishing = False
        self.unread_bytes: int = 0
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self.packets_sent: int = 0
        self.packets_received: int = 0

    @property
    def max_frame(self) -> int:
        return MAX_TEXT

    def check(self, frame: bytes) -> None:
        """Raise `ValueError` for a frame that can't be sent."""
        if len(frame) > MAX_TEXT:
            raise ValueError(f"a frame of {len(frame)} bytes: this peer takes at most {MAX_TEXT}")
        frame.decode()

    def has_room(self, *, urgent: bool) -> bool:
        """Whether a frame may be queued: while less than a packet waits in its lane."""
        return self._queued[urgent] < self._room

    def queue(self, frame: bytes, *, urgent: bool, patient_until: float | None = None) -> None:
        """Queue a frame that passed `check`, when there is room. Each is one message: none gains by waiting."""
        del patient_until
        self._out[urgent].append(frame)
        self._queued[urgent] += len(frame) + HEADER_SIZE

    def take(self) -> bytes | None:
        """The next frame that came; None if there is none."""
        if not self._in:
            return None
        frame = self._in.popleft()
        self.unread_bytes -= len(frame)
        return frame

    @property
    def credit_due(self) -> bool:
        """Never: the original's peers know no credit."""
        return False

    @property
    def silent(self) -> bool:
        """Never told: nothing that waits for them could go another way."""
        return False

    def finish(self) -> None:
        """Send what is queued. What the peer still sends is dropped."""
        self._finishing = True
        self._keepalive.end()
        self._in.clear()
        self.unread_bytes = 0

    @property
    def finished(self) -> bool:
        return self._finishing and not any(self._out)

    def receive_packet(self, packet: bytes | str, now: float) -> None:
        """Take a message from the carrier.

        Raises:
          RemoteProtocolError: if it is none that can be read, or more wait already than we hold.
        """
        try:
            frame = packet.encode() if isinstance(packet, str) else packet
        except UnicodeEncodeError as error:
            raise RemoteProtocolError(f"a text message that is no text: {error.reason}") from None
        if len(frame) > MAX_TEXT:
            raise RemoteProtocolError(f"a message of {len(frame)} bytes: at most {MAX_TEXT} are taken")
        self.packets_received += 1
        self.bytes_received += len(frame)
        self._keepalive.heard(now)
        self._answers = self._answers or ANSWER in frame
        if self._finishing or not frame:
            return
        if self.unread_bytes + len(self._in) * FRAME_COST > self._window:
            raise RemoteProtocolError("it sends faster than it is read, and knows no credit that would slow it")
        self._in.append(frame)
        self.unread_bytes += len(frame)

    def next_packet(self, now: float, *, hold: bool = True) -> str | None:
        """The next message for the carrier, which must be sent, urgent ones first; None if there is nothing to send."""
        if self._keepalive.ping_due and self.probe is not None and not self._finishing:
            self._keepalive.next_ping(now)
            self._out[URGENT].appendleft(self.probe())
            self._queued[URGENT] += len(self._out[URGENT][0]) + HEADER_SIZE
        lane = URGENT if self._out[URGENT] else BULK
        if not self._out[lane]:
            return None
        frame = self._out[lane].popleft()
        self._queued[lane] -= len(frame) + HEADER_SIZE
        self.packets_sent += 1
        self.bytes_sent += len(frame)
        return frame.decode()

    def next_deadline(self) -> float:
        return math.inf if self.probe is None else self._keepalive.next_deadline()

    def expire(self, now: float, buffered: int = 0) -> float | None:
        silent_for = self._keepalive.expire(now, self.bytes_sent - buffered, buffered)
        if silent_for is not None and not self._answers:
            self._keepalive.heard(now)
            return None
        return silent_for

    @property
    def pings_sent(self) -> int:
        return self._keepalive.pings_sent

    @property
    def queued_bytes(self) -> int:
        return sum(self._queued)

    @property
    def frames_sent(self) -> int:
        return self.packets_sent

    @property
    def frames_received(self) -> int:
        return self.packets_received
