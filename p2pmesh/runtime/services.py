"""Keeps the connections to the signaling services: one task each, reconnecting for as long as the mesh lives."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import attrs
import trio
from attrs import define

from p2pmesh.config import SignalingConfig
from p2pmesh.errors import TransportError
from p2pmesh.protocols.inputs import ServiceDown, ServiceUp, Signaled
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.runtime.supervisor import Retry
from p2pmesh.transports.transport import Connection, Transport
from p2pmesh.wire.signaling import SignalingMessage

logger: Final = logging.getLogger(__name__)

STEADY = 5.0
"""Seconds after which a connection counts as a success: one that ends at once must not be retried in a hurry."""
PROBE_EVERY = 1.0
"""Seconds between attempts to connect to a service that does not answer."""
UNANSWERING = "it does not answer: the connection is opened anew"


@define
class _Counts:
    connected: int = 0
    sent: int = 0
    received: int = 0
    dropped: int = 0
    """Messages for a service that is down or does not read."""


class Service:
    """One signaling service: `run` keeps a connection to it, `send` queues for it."""

    def __init__(
        self,
        transport: Transport,
        config: SignalingConfig,
        rng: random.Random,
        deliver: Callable[[Input], Awaitable[None]],
        prefer: Callable[[str], None],
    ) -> None:
        """Make it.

        `deliver` takes what happens in its order: a service's last words come before its `ServiceDown`. `prefer` takes
        the address of this machine that has led to it.
        """
        self.transport = transport
        self.name: str = transport.name
        self._config = config
        self._deliver = deliver
        self._prefer = prefer
        self._retry = Retry(Backoff(config.retry_first, config.retry_cap), rng)
        self._counts = _Counts()
        self._outbox: trio.MemorySendChannel[SignalingMessage] | None = None
        self._scope: trio.CancelScope | None = None
        self._connection: Connection | None = None
        self._refused: str | None = None
        self._is_dead = False
        self._is_probing = False
        self._nursery: trio.Nursery | None = None
        self._unwritten = 0
        self._drained = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, carry messages both ways, and connect again, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                reason = await self._session()
                logger.debug("signaling service %s: %s", self.name, reason)
                await self._deliver(ServiceDown(self.name, reason))
                if not self._is_dead:
                    await self._retry.wait(refused=self._refused is not None)

    def send(self, message: SignalingMessage) -> None:
        """Queue a message; dropped and counted if the service is down or does not take them."""
        if self._outbox is None:
            self._counts.dropped += 1
            return
        try:
            self._outbox.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._counts.dropped += 1
        else:
            self._unwritten += 1

    def refuse(self, reason: str) -> None:
        """The service turned us away: end the connection, and take the longest wait before the next."""
        self._refused = reason
        if self._scope is not None:
            self._scope.cancel(reason)

    def reopen(self) -> None:
        """The service does not answer: its connection may be dead, and is replaced if another can be opened."""
        if self._nursery is not None and self._scope is not None and not self._is_probing:
            self._is_probing = True
            self._nursery.start_soon(self._probe, self._scope, self._counts.received)

    async def _probe(self, scope: trio.CancelScope, heard: int) -> None:
        """Try to connect anew, until that works, or the service is heard over the connection that there is."""
        while self._scope is scope and self._counts.received == heard:
            opened = False
            with trio.move_on_after(self._config.open_timeout), suppress(TransportError):
                async with self.transport.connect() as another:
                    opened = True
                    _abort(another)
            if opened and self._scope is scope and self._counts.received == heard:
                self._is_dead = True
                _abort(self._connection)
                scope.cancel(UNANSWERING)
                break
            await trio.sleep(PROBE_EVERY)
        self._is_probing = False

    async def drained(self) -> None:
        """Wait until all that was queued is written, or lost with its connection."""
        await trio.lowlevel.checkpoint()
        while self._unwritten:
            await self._drained.park()

    def snapshot(self) -> dict[str, Any]:
        return {**attrs.asdict(self._counts, recurse=False), "up": self._outbox is not None}

    async def _session(self) -> str:
        """One connection, from its opening to its end, which is told as text."""
        self._refused, self._is_dead = None, False
        reason = f"no answer within {self._config.open_timeout:g} s"
        with trio.CancelScope() as self._scope:
            self._scope.deadline = trio.current_time() + self._config.open_timeout
            try:
                async with self.transport.connect() as connection:
                    self._scope.deadline = float("inf")
                    reason = await self._carry(connection)
            except TransportError as error:
                reason = str(error)
        self._scope = self._connection = None
        return self._refused or (UNANSWERING if self._is_dead else reason)

    async def _carry(self, connection: Connection) -> str:
        self._counts.connected += 1
        self._connection = connection
        local_host = getattr(connection, "local_host", None)
        if local_host is not None:
            self._prefer(local_host)
        since = trio.current_time()
        sender, receiver = trio.open_memory_channel[SignalingMessage](self._config.outbox)
        self._outbox = sender
        reason = "the service closed the connection"
        try:
            with sender, receiver:
                await self._deliver(ServiceUp(self.name))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, connection, receiver)
                    async for message in connection:
                        self._counts.received += 1
                        await self._deliver(Signaled(self.name, message))
                    nursery.cancel_scope.cancel(reason)
        except* TransportError as group:
            reason = str(group.exceptions[0])
        finally:
            self._outbox = None
            self._unwritten = 0
            self._drained.unpark_all()
        if trio.current_time() - since >= STEADY:
            self._retry.succeeded()
        return reason

    async def _write(self, connection: Connection, outbox: trio.MemoryReceiveChannel[SignalingMessage]) -> None:
        async for message in outbox:
            await connection.send(message)
            self._counts.sent += 1
            self._unwritten -= 1
            self._drained.unpark_all()


def _abort(connection: Connection | None) -> None:
    """Have it close without a goodbye, if it knows how to."""
    abort = getattr(connection, "abort", None)
    if abort is not None:
        abort()
