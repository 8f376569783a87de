"""Lines out of a file descriptor or a stream of bytes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import trio

_CHUNK = 65_536
"""Read at once: what a pipe holds on Linux."""


class LineSplitter:
    """Cuts arriving bytes into lines, without their line ends."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = b"".join((*self._parts, whole[0]))
            self._parts.clear()
        self._parts.append(rest)
        return whole

    def rest(self) -> bytes:
        """The rest after the last line end."""
        return b"".join(self._parts)


class LineReader:
    """Lines of a file descriptor, one at a time, without blocking Trio.

    Reads in a thread: a file can't be waited for, and a pipe set to non-blocking would be so for its other users too.
    By descriptor: an abandoned thread must not hold the lock of `sys.stdin` when the interpreter shuts down.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._splitter = LineSplitter()
        self._lines: deque[bytes] = deque()
        self._ended = False

    async def read(self) -> bytes | None:
        """The next line, None once there are no more."""
        await trio.lowlevel.checkpoint()
        while not self._lines and not self._ended:
            data = await trio.to_thread.run_sync(os.read, self._descriptor, _CHUNK, abandon_on_cancel=True)
            self._lines.extend(self._splitter.feed(data))
            if not data:
                self._ended = True
                if rest := self._splitter.rest():
                    self._lines.append(rest)
        return self._lines.popleft() if self._lines else None


async def lines_of(stream: trio.abc.ReceiveStream, handle: Callable[[bytes], None]) -> None:
    """Hand each line of a stream to `handle`, until it ends."""
    splitter = LineSplitter()
    async for data in stream:
        for line in splitter.feed(bytes(data)):
            handle(line)
    if rest := splitter.rest():
        handle(rest)
