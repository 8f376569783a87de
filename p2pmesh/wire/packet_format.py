r"""What a data channel message between two peers of ours is: a *packet*, a row of records that fill it exactly.

Frames (whole messages) travel in two lanes, bulk and urgent. Small frames share a packet, large ones are cut into
fragments over several. Packets are binary messages of 1 to 262,144 bytes (ours: 16 KiB and a header). Numbers are
unsigned and big-endian. A record:

| offset | size   | field   |                                             |
|--------|--------|---------|---------------------------------------------|
| 0      | 1      | kind    | one of the table below                      |
| 1      | 3      | length  | of the body, in bytes                       |
| 4      | length | body    |                                             |

| kind | name   | body                        | meaning                                                              |
|------|--------|-----------------------------|----------------------------------------------------------------------|
| 0, 1 | FRAME  | any                         | a whole frame, bulk (0) or urgent (1)                                |
| 2, 3 | START  | u32 total, then 512 or more | the first fragment of a frame of `total` bytes, bulk (2), urgent (3) |
| 4, 5 | MORE   | 1 or more                   | its next fragment; every one but the last has 512 bytes or more      |
| 6, 7 | CREDIT | u64 limit, below 2^53       | the receiver may be charged up to `limit` in all, bulk (6), urgent (7) |
| 8    | HELLO  | u32 max_frame               | the largest frame that the sender of this takes                      |
| 9    | PING   | u32 token                   | to be answered by PONG at once, however busy the application is      |
| 10   | PONG   | u32 token                   | of the last PING                                                     |
| 11   | END    | none                        | nothing more will come; answered with END, then either side closes   |

Rules, whose breach ends the link:

- The first record of the first packet of each side is HELLO; it comes once. Before the peer's HELLO a side sends only
  HELLO, CREDIT, PING, PONG and END.
- In each lane the fragments of one frame are not mixed with other frames; those of the two lanes may be.
- A frame of n bytes is charged n + 64 to its lane as its first record is sent. Both sides start at 0 and count for
  ever; a sender never charges above the last CREDIT of that lane, which starts at 0 and never falls. The receiver
  grants more as its application takes frames: so it bounds what waits unread, small frames too.
- After END nothing follows. Frames that wait in the side that gets it are dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from p2pmesh.errors import RemoteProtocolError

MAX_PACKET = 262_144
"""Bytes that WebRTC stacks carry and announce (`a=max-message-size`)."""
MIN_FRAGMENT = 512
"""A frame in fragments smaller than this would cost its receiver many times its size in memory."""
FRAME_COST = 64
"""Bytes charged for a frame besides its length: what an empty one costs its receiver to hold."""
MAX_CREDIT = (1 << 53) - 1
"""The largest whole number that a browser counts to."""

MAX_U32 = (1 << 32) - 1

FRAME, START, MORE, CREDIT = 0, 2, 4, 6
"""Kinds that name a lane: add the lane."""
HELLO, PING, PONG, END = 8, 9, 10, 11
BULK, URGENT = 0, 1
"""The lanes."""

HEADER_SIZE = 4
START_SIZE = HEADER_SIZE + 4
"""Of a START record without its fragment."""

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_LENGTH = 0xFFFFFF
_SIZES = {CREDIT: 8, CREDIT + 1: 8, HELLO: 4, PING: 4, PONG: 4, END: 0}

pack_u32: Callable[[int], bytes] = _U32.pack


def frame_header(lane: int, size: int) -> bytes:
    """What comes before a whole frame."""
    return pack_u32(lane << 24 | size)


def start_header(lane: int, total: int, size: int) -> bytes:
    """What comes before the first fragment, of `size` bytes, of a frame of `total`."""
    return pack_u32((START + lane) << 24 | size + 4) + pack_u32(total)


def more_header(lane: int, size: int) -> bytes:
    """What comes before a further fragment."""
    return pack_u32((MORE + lane) << 24 | size)


def credit_record(lane: int, limit: int) -> bytes:
    """A CREDIT."""
    return pack_u32((CREDIT + lane) << 24 | 8) + _U64.pack(limit)


def u32_record(kind: int, value: int) -> bytes:
    """A HELLO, PING or PONG."""
    return pack_u32(kind << 24 | 4) + pack_u32(value)


END_RECORD = pack_u32(END << 24)


def parse_packet(packet: bytes) -> list[tuple[int, bytes]]:
    """Cut a packet into records of kind and body.

    Known kinds, lengths that fit, and the sizes of bodies are checked; what a record may say when is the session's
    matter.

    Raises:
      RemoteProtocolError: for anything else.
    """
    size = len(packet)
    if not 0 < size <= MAX_PACKET:
        raise RemoteProtocolError(f"a packet of {size} bytes: 1 to {MAX_PACKET} are allowed")
    records: list[tuple[int, bytes]] = []
    append, header = records.append, _U32.unpack_from
    at = 0
    try:
        while at < size:
            (word,) = header(packet, at)
            kind = word >> 24
            start = at + 4
            at = start + (word & _LENGTH)
            body = packet[start:at]
            if kind > 1:
                _check_body(kind, body)
            append((kind, body))
    except struct.error:
        raise RemoteProtocolError("a packet ends within the header of a record") from None
    if at != size:  # only the last record can reach beyond the end
        raise RemoteProtocolError("a record is longer than the rest of its packet")
    return records


def _check_body(kind: int, body: bytes) -> None:
    expected = _SIZES.get(kind)
    if expected is not None:
        if len(body) != expected:
            raise RemoteProtocolError(f"a record of kind {kind} has {len(body)} bytes instead of {expected}")
    elif kind > END:
        raise RemoteProtocolError(f"a record of unknown kind {kind}")
    elif len(body) < (4 + MIN_FRAGMENT if kind < MORE else 1):
        raise RemoteProtocolError(f"a fragment of only {len(body)} bytes")


def read_u32(body: bytes) -> int:
    """The number in a HELLO, PING or PONG, or the total that a START begins with."""
    (value,) = _U32.unpack_from(body)
    return int(value)


def read_u64(body: bytes) -> int:
    """The number in a CREDIT."""
    (value,) = _U64.unpack(body)
    return int(value)


class Reassembly:
    """The frame of one lane that has begun to arrive in fragments, if any."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.missing: int = 0
        """Bytes still to come; 0 when no frame is under way."""
        self.held: int = 0
        """Bytes that are here."""

    def start(self, total: int, chunk: bytes) -> None:
        """Begin a frame; the caller has bounded `total`."""
        if len(chunk) >= total:
            raise RemoteProtocolError(f"the first fragment of a frame of {total} bytes has {len(chunk)}")
        self._chunks.append(chunk)
        self.held = len(chunk)
        self.missing = total - self.held

    def more(self, chunk: bytes) -> bytes | None:
        """Add a fragment. The frame, if that was its last."""
        size = len(chunk)
        if size > self.missing:
            raise RemoteProtocolError(f"a fragment of {size} bytes where {self.missing} are missing")
        if size < MIN_FRAGMENT and size != self.missing:
            raise RemoteProtocolError(f"a fragment of only {size} bytes")
        self._chunks.append(chunk)
        self.held += size
        self.missing -= size
        if self.missing:
            return None
        frame = b"".join(self._chunks)
        self._chunks.clear()
        self.held = 0
        return frame
