"""A simulated peer's way to a signaling service in memory: it can be held, when the peer is frozen, and cut."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from p2pmesh.errors import TransportError
from p2pmesh.transports.memory import MemoryHub, MemoryTransport
from p2pmesh.transports.transport import Connection, Transport
from p2pmesh.wire.signaling import SignalingMessage


class ServiceTransport(Transport):
    """A transport to a `MemoryHub`. What is sent while it is held waits, on both sides."""

    def __init__(self, hub: MemoryHub) -> None:
        self._inner = MemoryTransport(hub=hub, name="hub")
        self._open = trio.Event()
        self._open.set()
        self._cut = False

    @property
    def name(self) -> str:
        return self._inner.name

    def hold(self) -> None:
        """Let nothing pass until `resume`."""
        if self._open.is_set():
            self._open = trio.Event()

    def resume(self) -> None:
        """End `hold`."""
        self._open.set()

    def cut(self) -> None:
        """End the open connection at its next message, and open none any more."""
        self._cut = True
        self.resume()

    async def passed(self) -> None:
        """Wait while it is held.

        Raises:
          TransportError: if it is cut.
        """
        await self._open.wait()
        if self._cut:
            raise TransportError("this peer has crashed")

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection, None]:
        await self.passed()
        async with self._inner.connect() as connection:
            yield _HeldConnection(connection, self)


class _HeldConnection(trio.abc.Channel[SignalingMessage]):
    def __init__(self, inner: Connection, transport: ServiceTransport) -> None:
        self._inner = inner
        self._transport = transport

    async def send(self, value: SignalingMessage) -> None:
        await self._transport.passed()
        await self._inner.send(value)

    async def receive(self) -> SignalingMessage:
        message = await self._inner.receive()
        await self._transport.passed()
        return message

    async def aclose(self) -> None:
        await self._inner.aclose()
