"""Packets that are kept for a moment, though they are under way: the way that they have taken may prove to be none.

It is no promise: what is kept is bounded in time, number and bytes, and the origin repeats what nobody acknowledges.
"""

from __future__ import annotations

from collections import deque

from p2pmesh.wire.overlay import Packet

MOST = 64
"""Packets."""
MOST_BYTES = 256 * 1024
"""What they carry in all; one alone may be larger."""


class ResendBuffer:
    """The last packets, each for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._packets: deque[tuple[float, Packet]] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, packet: Packet, now: float) -> None:
        """Keep one more; the oldest go."""
        packets = self._packets
        packets.append((now, packet))
        self._size += len(packet.carry)
        while packets[0][0] < now - self._seconds or self._is_full:
            self._size -= len(packets.popleft()[1].carry)

    def take_all(self, since: float) -> list[tuple[float, Packet]]:
        """What was kept since then and when, in the order in which it came; from now on nothing is."""
        packets, self._packets, self._size = self._packets, deque(), 0
        return [(at, packet) for at, packet in packets if at >= since]

    @property
    def _is_full(self) -> bool:
        return len(self._packets) > MOST or (self._size > MOST_BYTES and len(self._packets) > 1)
