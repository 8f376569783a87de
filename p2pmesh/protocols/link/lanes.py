"""The lanes of a link: frames on their way to packets, and out of them again, within the credit. See `session`.

Credit as in HTTP/2 (RFC 9113, section 5.2), but in absolute numbers, so that a lost or repeated grant would do no harm.

In: frames to send, records that came, credit. Out: records for a packet, frames to take, whether a grant is due. State:
an outgoing lane holds what its session lets in; an incoming one at most its window, and the frame that has begun.
"""

from __future__ import annotations

from collections import deque

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.packet_format import (
    FRAME_COST,
    HEADER_SIZE,
    MAX_CREDIT,
    MIN_FRAGMENT,
    START_SIZE,
    Reassembly,
    frame_header,
    more_header,
    read_u32,
    start_header,
)

GRANT_SHARE = 4
"""Credit is renewed when a quarter of the window was read: seldom enough to cost nothing, soon enough not to stall."""


class OutgoingLane:
    """A lane towards the peer."""

    def __init__(self, lane: int, packet_size: int, coalesce_size: int) -> None:
        self._lane = lane
        self._packet_size = packet_size
        self._coalesce_size = coalesce_size
        self._frames: deque[bytes] = deque()
        self.begun: int = 0
        """Bytes of the first frame that were sent already."""
        self._spent = 0
        self.limit = 0
        self.queued: int = 0
        """Bytes that wait, headers included, so that empty frames count too."""
        self.frames_sent: int = 0

    @property
    def credit(self) -> int:
        return self.limit - self._spent

    def append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.queued += len(frame) + HEADER_SIZE

    def clear(self) -> None:
        self._frames.clear()
        self.begun = self.queued = 0

    def fill(self, parts: list[bytes | memoryview], used: int) -> int:
        """Move what fits and has credit into a packet that has `used` bytes already. Gives the bytes used then."""
        frames, largest = self._frames, self._packet_size - HEADER_SIZE
        while frames:
            room = (self._coalesce_size if used else self._packet_size) - used
            large = len(frames[0]) > largest
            taken = self._fragment(frames[0], parts, room) if large else self._whole(parts, room)
            if not taken:
                break
            used += taken
        return used

    def _whole(self, parts: list[bytes | memoryview], room: int) -> int:
        """Move the whole frames that fit, one after the other. Gives the bytes used."""
        frames, lane, coalesce_size = self._frames, self._lane, self._coalesce_size
        used = count = 0
        credit = self.limit - self._spent
        while frames:
            size = len(frames[0])
            credit -= size + FRAME_COST
            if used + size + HEADER_SIZE > room or credit < 0:
                break
            parts.extend((frame_header(lane, size), frames.popleft()))
            used += size + HEADER_SIZE
            count += 1
            room = min(room, coalesce_size)
        self._spent += used + count * (FRAME_COST - HEADER_SIZE)
        self.frames_sent += count
        self.queued -= used
        return used

    def _fragment(self, frame: bytes, parts: list[bytes | memoryview], room: int) -> int:
        """Move as much of a large frame as fits. Gives the bytes used."""
        sent, total = self.begun, len(frame)
        header_size = HEADER_SIZE if sent else START_SIZE
        size = min(room - header_size, total - sent)
        if size < min(MIN_FRAGMENT, total - sent):
            return 0
        if sent:
            parts.append(more_header(self._lane, size))
        elif self._spent + total + FRAME_COST > self.limit:  # begun only when all of it may be sent: no stop on the way
            return 0
        else:
            self._spent += total + FRAME_COST
            self.frames_sent += 1
            parts.append(start_header(self._lane, total, size))
        parts.append(memoryview(frame)[sent : sent + size])
        self.begun += size
        self.queued -= size
        if self.begun == total:
            self._frames.popleft()
            self.begun = 0
            self.queued -= HEADER_SIZE
        return header_size + size


class IncomingLane:
    """A lane from the peer."""

    def __init__(self, window: int, max_frame: int) -> None:
        # Less the share that is not granted yet, it must hold the largest frame, or the peer could wait for ever.
        cost = max_frame + FRAME_COST
        self._max_frame = max_frame
        self._window = max(window, cost + cost // (GRANT_SHARE - 1) + GRANT_SHARE)
        self._share = self._window // GRANT_SHARE
        self._charged = 0
        self._taken = 0
        self._granted = 0
        self._reassembly = Reassembly()
        self.frames: deque[bytes] = deque()
        """What waits to be taken."""
        self.unread: int = 0
        self.frames_received: int = 0
        self.grant_due: bool = True
        self.discard: bool = False
        """Nobody will read any more: what comes counts as read."""

    @property
    def held(self) -> int:
        """Bytes in memory: whole frames and the begun one."""
        return self.unread + self._reassembly.held

    @property
    def frame_begun(self) -> bool:
        return self._reassembly.missing > 0

    def grant(self) -> int:
        """The limit to tell the peer."""
        self._granted = min(self._taken + self._window, MAX_CREDIT)
        self.grant_due = False
        return self._granted

    def frame(self, frame: bytes) -> None:
        """A whole frame came."""
        size = len(frame)
        self._charge(size)
        if self._reassembly.missing:
            raise RemoteProtocolError("a frame between the fragments of another one of its lane")
        self._add(frame, size)

    def start(self, body: bytes) -> None:
        """The first fragment of a frame came."""
        if self._reassembly.missing:
            raise RemoteProtocolError("a frame begins before the last one of its lane has ended")
        total = read_u32(body)
        self._charge(total)
        self._reassembly.start(total, body[4:])

    def more(self, body: bytes) -> None:
        """A further fragment came."""
        frame = self._reassembly.more(body)
        if frame is not None:
            self._add(frame, len(frame))

    def take(self) -> bytes:
        """The next frame."""
        frame = self.frames.popleft()
        size = len(frame)
        self.unread -= size
        self._read(size)
        return frame

    def drop_all(self) -> None:
        """Read and forget all frames, and those to come."""
        self.discard = True
        while self.frames:
            self.take()

    def _charge(self, size: int) -> None:
        if size > self._max_frame:
            raise RemoteProtocolError(f"a frame of {size} bytes: at most {self._max_frame} are taken")
        self._charged += size + FRAME_COST
        if self._charged > self._granted:
            raise RemoteProtocolError(f"credit overrun by {self._charged - self._granted} bytes")

    def _add(self, frame: bytes, size: int) -> None:
        self.frames_received += 1
        if self.discard:
            self._read(size)
            return
        self.frames.append(frame)
        self.unread += size

    def _read(self, size: int) -> None:
        self._taken += size + FRAME_COST
        if self._taken + self._window - self._granted >= self._share:
            self.grant_due = True
