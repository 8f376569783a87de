"""One peer connection of aiortc and its data channel, from the first description to the end, as a link's carrier.

How aiortc is kept in bounds: a connection owns the asyncio tasks and sockets that its code starts (`Owner`), so closing
it leaves none behind, whenever that comes; its unhandled errors fail it and nothing else; `close()` runs shielded from
cancellation, against a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final

import aiortc
import trio
import trio_asyncio
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.sdp import candidate_from_sdp

from p2pmesh.config import LinkConfig
from p2pmesh.links.link import AttemptFailed, LinkError, LinkProtocolError
from p2pmesh.links.session_link import Carrier, SessionLink
from p2pmesh.links.webrtc.aiortc_patch import tune
from p2pmesh.links.webrtc.event_loop import LinkLoop, Owner, owner_of_context
from p2pmesh.links.webrtc.ice_patch import UNREACHABLE, IceConnection
from p2pmesh.links.webrtc.sctp_patch import SctpTransport
from p2pmesh.links.webrtc.server_pool import Gathering

logger: Final = logging.getLogger(__name__)

LARGEST_MESSAGE = 256 * 1024
"""Bytes of a message to a peer that takes messages of any size; what aiortc and browsers announce themselves."""
CANCEL_GRACE = 1.0
"""Seconds for cancelled asyncio tasks to end; they only clean up after themselves."""

SDP_ERRORS = (
    ValueError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)
"""What aiortc raises over a description that does not fit; most can't happen to what `p2pmesh.wire.sdp` writes."""


class WebRTCCarrier(Carrier):
    """One peer connection and its data channel, from the first description to the end. An `Owner`."""

    def __init__(self, loop: LinkLoop, config: LinkConfig, forget: Callable[[WebRTCCarrier], None]) -> None:
        self.loop: LinkLoop = loop
        self._config = config
        self._forget = forget
        self._connection: aiortc.RTCPeerConnection | None = None
        self._ice: IceConnection | None = None
        self._channel: aiortc.RTCDataChannel | None = None
        self._link: SessionLink | None = None
        self._early: list[bytes | str] = []
        self._early_bytes = 0
        self._is_closing = False
        self._has_ended = False
        self._early_candidates: list[str] = []
        self.error: LinkError | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.sockets: set[asyncio.DatagramTransport] = set()
        self.decided: trio.Event = trio.Event()
        """The channel is open, or the connection has ended."""
        self._gone = trio.Event()
        self._closer: asyncio.Task[Any] | None = None

    # --- opening ------------------------------------------------------------------------------------------------------

    async def make_offer(self, gathering: Gathering) -> str:
        """Begin a connection; gives the offer."""
        sdp: str = await self._run(self._make_offer(gathering))
        return sdp

    async def make_answer(self, offer: str, gathering: Gathering) -> str:
        """Begin a connection that the peer offers; gives the answer."""
        sdp: str = await self._run(self._make_answer(offer, gathering))
        return sdp

    @property
    def is_gathering(self) -> bool:
        """Whether there may be addresses to come."""
        return self._ice is not None and self._ice.is_gathering

    @property
    def trouble(self) -> str:
        """What stands in the way of a connection, as far as can be told."""
        return self._ice.trouble if self._ice is not None else ""

    @property
    def is_hopeless(self) -> bool:
        """Whether no address of ours can send to any of the peer's."""
        return self._has_ended and self._ice is not None and self._ice.is_hopeless

    def trickle(self, tell: Callable[[str], None]) -> None:
        """Have this called with each address that is found later, as SDP has it. It must not raise."""
        if self._ice is not None:
            self._ice.on_candidate = lambda candidate: tell(candidate.to_sdp())

    async def take_answer(self, answer: str) -> None:
        """Go on with the peer's answer; a second one is ignored."""
        connection = self._connection
        if connection is None or connection.signalingState != "have-local-offer":
            return
        await self._run(connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer")))
        early, self._early_candidates = self._early_candidates, []
        for candidate in early:
            await self._run(self._add(connection, candidate))

    async def take_candidate(self, candidate: str) -> None:
        """Try an address of the peer's too."""
        connection = self._connection
        if connection is None:
            return
        if connection.remoteDescription is None:
            self._early_candidates.append(candidate)
        else:
            await self._run(self._add(connection, candidate))

    async def _add(self, connection: aiortc.RTCPeerConnection, candidate: str) -> None:
        parsed = candidate_from_sdp(candidate)
        parsed.sdpMLineIndex = 0
        await connection.addIceCandidate(parsed)

    def attach(self, link: SessionLink) -> None:
        """From now on, tell `link` what happens, and first what has happened already."""
        self._link = link
        early, self._early = self._early, []
        for packet in early:
            link.packet_received(packet)
        if self._has_ended:
            link.carrier_closed(self.error)

    async def _make_offer(self, gathering: Gathering) -> str:
        connection = self._new_connection()
        self._use(connection.createDataChannel(secrets.token_hex(20)))
        self._tune(connection, gathering)
        await connection.setLocalDescription(await connection.createOffer())
        return connection.localDescription.sdp

    async def _make_answer(self, offer: str, gathering: Gathering) -> str:
        connection = self._new_connection()
        connection.on("datachannel", self._on_channel)
        await connection.setRemoteDescription(aiortc.RTCSessionDescription(offer, "offer"))
        self._tune(connection, gathering)
        await connection.setLocalDescription(await connection.createAnswer())
        return connection.localDescription.sdp

    def _tune(self, connection: aiortc.RTCPeerConnection, gathering: Gathering) -> None:
        self._ice = tune(connection, self.loop, gathering, relay_only=self._config.relay_only)
        if self._ice is None and self._config.relay_only:
            raise AttemptFailed("this version of aiortc is not known, so LinkConfig.relay_only can't be kept")

    def _new_connection(self) -> aiortc.RTCPeerConnection:
        self._connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self._connection.on("connectionstatechange", self._on_state)
        return self._connection

    async def _run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run asyncio code of this connection's from Trio."""
        try:
            return await trio_asyncio.run_aio_future(self._start(coro, self))
        except asyncio.CancelledError:  # not Trio's, which has its own: our `_close`
            raise AttemptFailed("the attempt was closed") from None  # noqa: ASYNC104
        except (OSError, MemoryError) as error:
            raise AttemptFailed(f"no connection can be made here: {_why(error)}") from error

    def _start(self, coro: Coroutine[Any, Any, Any], owner: Owner | None) -> asyncio.Task[Any]:
        token = owner_of_context.set(owner)
        try:
            return self.loop.create_task(coro)
        finally:
            owner_of_context.reset(token)

    # --- what aiortc tells: never raises into it ----------------------------------------------------------------------

    def _use(self, channel: aiortc.RTCDataChannel) -> None:
        self._channel = channel
        channel.bufferedAmountLowThreshold = self._config.low_water
        channel.on("open", self.decided.set)
        channel.on("message", self._on_message)
        channel.on("bufferedamountlow", self._on_low)
        channel.on("close", self._on_channel_close)
        if channel.readyState == "open":
            self.decided.set()

    def _on_channel(self, channel: aiortc.RTCDataChannel) -> None:
        if self._channel is not None:
            self._end(LinkProtocolError("the peer opened a second data channel"))
        elif not channel.ordered or channel.maxRetransmits is not None or channel.maxPacketLifeTime is not None:
            self._end(LinkProtocolError("the peer opened a data channel that is not ordered and reliable"))
        else:
            self._use(channel)

    def _on_message(self, packet: bytes | str) -> None:
        if self._is_closing or self._has_ended:
            return
        if self._link is not None:
            try:
                self._link.packet_received(packet)
            except Exception as error:  # a bug of ours: below, it would be taken for a malformed datagram
                self.failed(error, "a packet was not taken")
            return
        self._early.append(packet)
        self._early_bytes += len(packet)
        if self._early_bytes > self._config.receive_window:
            self._end(LinkProtocolError("the peer sends more than it was given credit for"))

    def _on_low(self) -> None:
        if self._link is not None and not self._is_closing:
            self._link.drained()

    def _on_channel_close(self) -> None:
        # The association is ended by the peer, or by aiortc itself because what lies below it has.
        sctp = self._connection.sctp if self._connection is not None else None
        is_clean = sctp is not None and sctp.transport.state == "connected"
        self._end(None if is_clean else LinkError("the connection was lost"))

    def _on_state(self) -> None:
        match self._connection.connectionState if self._connection is not None else "closed":
            case "failed":
                why = self._ice.failure if self._ice is not None else UNREACHABLE
                self._end(LinkError(f"the connection failed: {why}"))
            case "closed":
                self._end(None)
            case _:
                pass

    def failed(self, error: BaseException | None, message: str) -> None:
        """An asyncio task or callback of this connection raised. Races of aiortc's teardown do; they harm nobody."""
        if self._is_closing or self._has_ended:
            logger.debug("after the end of a connection: %s", message, exc_info=error)
            return
        logger.error("a connection failed: %s", message, exc_info=error)
        self._end(LinkError(f"internal error: {error or message}"))

    def _end(self, error: LinkError | None) -> None:
        """It is over, unless it was already: tell, and clean up."""
        if self._has_ended:
            return
        self._has_ended = True
        self.error = error
        self.decided.set()
        if self._link is not None and not self._is_closing:
            self._link.carrier_closed(error)
        self.close_soon()

    # --- Carrier ------------------------------------------------------------------------------------------------------

    def send_packet(self, packet: bytes | str) -> None:
        channel = self._channel
        if channel is None or self._is_closing or self._has_ended or channel.readyState != "open":
            raise LinkError("the data channel is closed")
        token = owner_of_context.set(self)
        try:
            self.loop.call_now(channel.send, packet)
        finally:
            owner_of_context.reset(token)

    @property
    def buffered(self) -> int:
        return self._channel.bufferedAmount if self._channel is not None else 0

    @property
    def max_packet(self) -> int:
        connection = self._connection
        if connection is None or connection.sctp is None:
            return LARGEST_MESSAGE
        announced: int = getattr(connection.sctp, "_remote_max_message_size", 65_536)
        return min(announced or LARGEST_MESSAGE, LARGEST_MESSAGE)

    @property
    def is_open(self) -> bool:
        """Whether a link can be made of it."""
        return self._channel is not None and self._channel.readyState == "open" and not self._has_ended

    async def flush(self) -> None:
        sctp = self._connection.sctp if self._connection is not None else None
        drained = trio.Event()
        if self._has_ended or self._is_closing or self._channel is None:
            drained.set()
        elif isinstance(sctp, SctpTransport):
            if sctp.is_idle:
                drained.set()
            else:
                sctp.call_when_idle(drained.set)
                self._channel.on("close", drained.set)
        elif self.buffered:
            self._channel.bufferedAmountLowThreshold = 0
            self._channel.on("bufferedamountlow", drained.set)
            self._channel.on("close", drained.set)
        else:
            drained.set()
        await drained.wait()

    # --- closing ------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        self.close_soon()
        await self.wait_closed()
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> None:
        """Wait until it is gone, for a bounded time, whether cancelled or not."""
        with trio.move_on_after(self._config.close_timeout + 2 * CANCEL_GRACE, shield=True):
            await self._gone.wait()

    def abandon(self) -> None:
        """End it from below: the link layer closes."""
        self._end(LinkError("the link layer was closed"))

    def close_soon(self) -> None:
        """Close without waiting for it."""
        if self._is_closing:
            return
        self._is_closing = True
        self.decided.set()
        if self.loop.is_running():
            self._closer = self._start(self._close(), None)
        else:
            self._closed()

    async def _close(self) -> None:
        """Runs in asyncio, owned by nobody, and is not cancelled: half a `close()` makes all later ones hang."""
        try:
            await self._close_connection()
        finally:
            self._closed()

    async def _close_connection(self) -> None:
        if self._connection is not None:
            closing = self.loop.create_task(self._connection.close())
            await asyncio.wait([closing], timeout=self._config.close_timeout)
            if not closing.done():
                logger.warning("a connection did not close within %g s", self._config.close_timeout)
                closing.cancel()
        strays = [task for task in self.tasks if not task.done()]
        for task in strays:
            task.cancel()
        if strays:
            await asyncio.wait(strays, timeout=CANCEL_GRACE)
        for transport in self.sockets:
            transport.abort()
        self.sockets.clear()

    def _closed(self) -> None:
        self._has_ended = True
        self._forget(self)
        self._gone.set()


def _why(error: OSError | MemoryError) -> str:
    return getattr(error, "strerror", None) or str(error) or "no memory"
