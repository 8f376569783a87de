"""What lies below a WebRTC link: the one place of the tests that reaches into the link layer and aiortc."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import aiortc
import aiortc.rtcsctptransport
from attrs import frozen

from p2pmesh.links.webrtc.carrier import WebRTCCarrier
from p2pmesh.links.webrtc.dialer import WebRTCDialer
from p2pmesh.links.webrtc.event_loop import LinkLoop, owner_of_context


@frozen
class Below:
    """The parts below a link."""

    carrier: WebRTCCarrier
    loop: LinkLoop
    connection: aiortc.RTCPeerConnection
    association: Any
    ice: Any

    def start_task(self, coro: Any) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this link's connection."""
        token = owner_of_context.set(self.carrier)
        try:
            return self.loop.create_task(coro)
        finally:
            owner_of_context.reset(token)

    def send_message(self, size: int) -> asyncio.Task[Any]:
        """Send a binary message past the data channel."""
        binary = aiortc.rtcsctptransport.WEBRTC_BINARY
        return self.loop.create_task(self.association._send(0, binary, bytes(size)))

    def watch_queue(self, note: Callable[[bytes], object]) -> None:
        """Note each datagram that has to wait for DTLS from now on."""
        queue = self.ice._queue
        put = queue.put_nowait

        def noting(item: tuple[bytes, int]) -> None:
            note(item[0])
            put(item)

        queue.put_nowait = noting

    def cut(self) -> None:
        """Close its sockets."""
        for transport in list(self.carrier.sockets):
            transport.abort()


def below(link: Any) -> Below:
    """The parts below this link."""
    carrier = cast("WebRTCCarrier", link.carrier)
    connection = carrier._connection
    assert connection is not None
    assert connection.sctp is not None
    ice = cast("Any", connection.sctp.transport.transport)._connection
    return Below(carrier, carrier.loop, connection, connection.sctp, ice)


def loop_of(dialer: WebRTCDialer) -> LinkLoop:
    loop = dialer._loop
    assert loop is not None
    return loop
