"""Signaling servers that the demo can kill: each a process of its own, which ends with the demo at the latest."""

from __future__ import annotations

import subprocess  # ruff: ignore[suspicious-subprocess-import]
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, cast

import trio

from p2pmesh.cli.line_reader import LineReader, lines_of
from p2pmesh.server.app import open_signaling_server

COMMAND: Final = "demo-server"
STARTS_WITHIN: Final = 30.0
"""Seconds until a server has to listen: a process takes one to start, a busy machine ten times that."""


async def run_server() -> None:
    """Serve, and say where, until our stdin ends."""
    async with open_signaling_server() as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        await LineReader(sys.stdin.fileno()).read()


class ServerProcess:
    """A signaling server in a process of its own."""

    def __init__(self, process: trio.Process, url: str) -> None:
        self.url = url
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def open_server_process() -> AsyncGenerator[ServerProcess]:
    """Start one; it ends with the block, if it was not killed before.

    Raises:
      trio.TooSlowError, trio.EndOfChannel: if it does not come up.
    """
    command = [sys.executable, "-m", "p2pmesh", COMMAND]
    run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(run)
        try:
            said, words = trio.open_memory_channel[str](1)
            nursery.start_soon(_listen, cast("trio.abc.ReceiveStream", process.stdout), said)
            with trio.fail_after(STARTS_WITHIN):
                url = await words.receive()
            yield ServerProcess(process, url)
        finally:
            process.kill()


async def _listen(stdout: trio.abc.ReceiveStream, said: trio.MemorySendChannel[str]) -> None:
    async with said:
        await lines_of(stdout, lambda line: said.send_nowait(line.decode()))
