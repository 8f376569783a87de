"""The demo's switch for a network partition: what a peer sends to some others is lost, and so is its signaling server.

It acts where a network would. Datagrams are dropped below WebRTC, so that links fall silent and end by their
time-outs, and nothing that is said about it crosses either; what outlives a short cut goes on where it was. Each side
drops what it sends: when all peers of two groups do, nothing passes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Literal

import trio

from p2pmesh.config import LinkConfig
from p2pmesh.errors import TransportError
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import Attempt
from p2pmesh.links.webrtc.carrier import WebRTCCarrier
from p2pmesh.links.webrtc.dialer import Intake, WebRTCDialer
from p2pmesh.links.webrtc.server_pool import Gathering
from p2pmesh.transports.registry import make_transports
from p2pmesh.transports.transport import Connection, Transport
from p2pmesh.wire.signaling import SignalingMessage


class CutDialer(WebRTCDialer):
    """Opens WebRTC links whose datagrams can be made to vanish, by peer."""

    def __init__(self, config: LinkConfig | None = None) -> None:
        super().__init__(config)
        self._far: dict[WebRTCCarrier, PeerId] = {}
        self._lost: frozenset[PeerId] = frozenset()

    def cut(self, peers: Iterable[PeerId]) -> None:
        """Put these peers out of reach, and no others."""
        self._lost = frozenset(peers)
        for carrier in self._far:
            self._apply(carrier)

    def _apply(self, carrier: WebRTCCarrier) -> None:
        for socket in carrier.sockets:
            if self._far[carrier] in self._lost:
                vars(socket)["sendto"] = _lose
            else:
                vars(socket).pop("sendto", None)  # its class's own again

    async def _begin(
        self,
        peer: PeerId,
        kind: Literal["offer", "answer"],
        carrier: WebRTCCarrier,
        describe: Callable[[Gathering], Awaitable[str]],
        intake: Intake,
    ) -> Attempt:
        self._far[carrier] = peer
        attempt = await super()._begin(peer, kind, carrier, describe, intake)
        if carrier in self._far:
            self._apply(carrier)  # whose sockets are open now, and whose addresses nobody knows yet
        return attempt

    def _forget(self, carrier: WebRTCCarrier) -> None:
        self._far.pop(carrier, None)
        super()._forget(carrier)


def _lose(_data: object, _address: object = None) -> None:
    """Stand-in for the `sendto` of a socket."""


class CutTransport(Transport):
    """Another transport, whose service can be put out of reach."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._connections: set[_CutConnection] = set()
        self.is_cut: bool = False

    @property
    def name(self) -> str:
        return self._transport.name

    def cut(self) -> None:
        """Put the service out of reach, and end the connection to it."""
        self.is_cut = True
        for connection in self._connections:
            connection.interrupt()

    def heal(self) -> None:
        self.is_cut = False

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection]:
        """Connect to the service, if there is a way.

        Raises:
          TransportError: if it is cut off, or as the transport itself.
        """
        if self.is_cut:
            raise cut_off(self)
        async with self._transport.connect() as connection:
            wrapped = _CutConnection(connection, self)
            self._connections.add(wrapped)
            try:
                yield wrapped
            finally:
                self._connections.discard(wrapped)


class _CutConnection(trio.abc.Channel[SignalingMessage]):
    """A connection that fails once its service is cut off."""

    def __init__(self, connection: Connection, transport: CutTransport) -> None:
        self._connection = connection
        self._transport = transport
        self._waiting = trio.CancelScope()
        self._is_interrupted = transport.is_cut

    def interrupt(self) -> None:
        self._is_interrupted = True
        self._waiting.cancel("cut off")

    async def send(self, value: SignalingMessage) -> None:
        if self._is_interrupted:
            raise cut_off(self._transport)
        await self._connection.send(value)

    async def receive(self) -> SignalingMessage:
        if not self._is_interrupted:
            with trio.CancelScope() as self._waiting:
                return await self._connection.receive()
        raise cut_off(self._transport)

    async def aclose(self) -> None:
        await self._connection.aclose()


def cut_off(transport: Transport) -> TransportError:
    """The error of a service that is out of reach."""
    return TransportError(f"{transport.name} is cut off")


class Switch:
    """What one peer of the demo can reach."""

    def __init__(self, urls: Iterable[str]) -> None:
        self.dialer: CutDialer = CutDialer()
        self.transports: list[CutTransport] = [CutTransport(transport) for transport in make_transports(urls)]
        self.cut_from: frozenset[PeerId] = frozenset()
        """Peers that were out of reach at any time."""
        self.is_healed: bool = False

    def cut(self, peers: Iterable[PeerId], *, server: bool) -> None:
        """Put these peers out of reach, and the signaling servers as well, or not."""
        self.cut_from = frozenset(peers)
        self.dialer.cut(self.cut_from)
        if server:
            for transport in self.transports:
                transport.cut()

    def heal(self) -> None:
        """Put everything within reach again."""
        self.is_healed = True
        self.dialer.cut(())
        for transport in self.transports:
            transport.heal()
