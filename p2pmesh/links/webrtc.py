"""Links over WebRTC data channels: aiortc in an asyncio loop of ours on top of Trio.

One `RTCPeerConnection` for each link, with a single ordered, reliable channel that the offerer opens. Descriptions are
complete: all candidates are inside, nothing is trickled; candidates that a peer trickles are taken. No server is
contacted unless `LinkConfig.ice_servers` names one. A machine with no address but loopback gathers that.

How aiortc is kept in bounds: each connection owns the asyncio tasks and sockets that its code starts (`Owner`), so closing
it leaves none behind, whenever it comes; its unhandled errors fail it and nothing else; `close()` runs shielded from
cancellation, against a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self, cast

import aiortc
import attrs
import trio
import trio_asyncio
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.sdp import candidate_from_sdp

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.errors import ConfigError, RemoteProtocolError
from p2pmesh.keyspace import PeerId
from p2pmesh.links.carried import Carrier, SessionLink
from p2pmesh.links.link import Attempt, AttemptFailed, Dialer, Link, LinkError, LinkProtocolError
from p2pmesh.links.webrtc_loop import LinkLoop, Owner, open_link_loop, owner_of_context
from p2pmesh.links.webrtc_sdp import MAX_CANDIDATES, clean_candidate, clean_description
from p2pmesh.links.webrtc_tuning import SctpTransport, tune
from p2pmesh.protocols.core import RemotePeer
from p2pmesh.wire.messages import Signal

logger = logging.getLogger(__name__)

LARGEST_MESSAGE = 256 * 1024
"""To a peer that says it takes messages of any size; what aiortc and browsers announce themselves."""
CANCEL_GRACE = 1.0
"""For cancelled asyncio tasks to end, in seconds; they only clean up after themselves."""

_SDP_ERRORS = (
    ValueError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)
"""What aiortc raises over a description that does not fit; most can't happen after `clean_description`."""


class WebRTCCarrier(Carrier):
    """One peer connection and its data channel, from the first description to the end. An `Owner`."""

    def __init__(self, loop: LinkLoop, config: LinkConfig, forget: Callable[[WebRTCCarrier], None]) -> None:
        self._loop = loop
        self._config = config
        self._forget = forget
        self._connection: aiortc.RTCPeerConnection | None = None
        self._channel: aiortc.RTCDataChannel | None = None
        self._link: SessionLink | None = None
        self._early: list[bytes | str] = []
        self._early_bytes = 0
        self._is_closing = False
        self._has_ended = False
        self._trickled = 0
        self.error: LinkError | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.sockets: set[asyncio.BaseTransport] = set()
        self.decided = trio.Event()
        """The channel is open, or the connection has ended."""
        self._gone = trio.Event()
        self._closer: asyncio.Task[Any] | None = None

    # --- opening ------------------------------------------------------------------------------------------------------

    async def make_offer(self) -> str:
        """Begin a connection; gives the offer."""
        return cast(str, await self._run(self._make_offer()))

    async def make_answer(self, offer: str) -> str:
        """Begin a connection that the peer offers; gives the answer."""
        return cast(str, await self._run(self._make_answer(offer)))

    async def take_answer(self, answer: str) -> None:
        """Go on with the peer's answer; a second one is ignored."""
        connection = self._connection
        if connection is not None and connection.signalingState == "have-local-offer":
            await self._run(connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer")))

    async def take_candidate(self, candidate: str) -> None:
        """Try an address of the peer's too, up to a number of them."""
        connection = self._connection
        if connection is None or connection.remoteDescription is None or self._trickled >= MAX_CANDIDATES:
            return
        self._trickled += 1
        parsed = candidate_from_sdp(candidate)
        parsed.sdpMLineIndex = 0
        parsed.sdpMid = connection.sctp.mid if connection.sctp is not None else None
        await self._run(connection.addIceCandidate(parsed))

    def attach(self, link: SessionLink) -> None:
        """From now on, tell `link` what happens, and first what has happened already."""
        self._link = link
        early, self._early = self._early, []
        for packet in early:
            link.packet_received(packet)
        if self._has_ended:
            link.carrier_closed(self.error)

    async def _make_offer(self) -> str:
        connection = self._new_connection()
        self._use(connection.createDataChannel(secrets.token_hex(20)))
        tune(connection)
        await connection.setLocalDescription(await connection.createOffer())
        return cast(str, connection.localDescription.sdp)

    async def _make_answer(self, offer: str) -> str:
        connection = self._new_connection()
        connection.on("datachannel", self._on_channel)
        await connection.setRemoteDescription(aiortc.RTCSessionDescription(offer, "offer"))
        tune(connection)
        await connection.setLocalDescription(await connection.createAnswer())
        return cast(str, connection.localDescription.sdp)

    def _new_connection(self) -> aiortc.RTCPeerConnection:
        servers = [aiortc.RTCIceServer(**attrs.asdict(server)) for server in self._config.ice_servers]
        self._connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._on_state)
        return self._connection

    async def _run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run asyncio code of this connection's from Trio."""
        try:
            return await trio_asyncio.run_aio_future(self._start(coro, self))
        except asyncio.CancelledError:  # not by Trio, which has its own: by our `_close`
            raise AttemptFailed("the attempt was closed") from None

    def _start(self, coro: Coroutine[Any, Any, Any], owner: Owner | None) -> asyncio.Task[Any]:
        token = owner_of_context.set(owner)
        try:
            return self._loop.create_task(coro)
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
            self._link.packet_received(packet)
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
                self._end(
                    LinkError("the connection failed: the peer can't be reached, or its certificate is not its own")
                )
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
            self._loop.call_now(channel.send, packet)
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
        if self._loop.is_running():
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
            closing = self._loop.create_task(self._connection.close())
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
            cast(Any, transport).abort()
        self.sockets.clear()

    def _closed(self) -> None:
        self._has_ended = True
        self._forget(self)
        self._gone.set()


class WebRTCAttempt(Attempt):
    """A connection that is being set up."""

    def __init__(
        self, peer_id: PeerId, signal: Signal, carrier: WebRTCCarrier, config: LinkConfig, max_frame: int
    ) -> None:
        self._peer_id = peer_id
        self._signal = signal
        self._carrier: WebRTCCarrier | None = carrier
        self._config = config
        self._max_frame = max_frame
        self._feeding = trio.Lock()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def signal(self) -> Signal:
        return self._signal

    async def feed(self, signal: Signal) -> None:
        async with self._feeding:
            if self._carrier is None:
                return
            if signal.type == "answer" and self._signal.type == "offer":
                try:
                    await self._carrier.take_answer(clean_description(signal))
                except (RemoteProtocolError, *_SDP_ERRORS) as error:
                    raise AttemptFailed(f"the answer can't be used: {error}") from error
            elif signal.type == "candidate" and signal.candidate is not None:
                await self._try(clean_candidate(signal.candidate.candidate))

    async def _try(self, candidate: str | None) -> None:
        if candidate is None or self._carrier is None:
            return
        try:
            await self._carrier.take_candidate(candidate)
        except _SDP_ERRORS as error:
            logger.debug("a candidate of %s can't be used: %s", self._peer_id, error)

    async def opened(self, peer: RemotePeer) -> Link:
        carrier = self._carrier
        if carrier is None:
            raise AttemptFailed("the attempt was closed")
        await carrier.decided.wait()
        if not carrier.is_open:
            raise AttemptFailed(str(carrier.error or "the peer closed the connection"))
        self._carrier = None
        link = SessionLink(carrier, peer, self._config, self._max_frame)
        carrier.attach(link)
        return link

    async def aclose(self) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            await carrier.aclose()
        else:
            await trio.lowlevel.checkpoint()


class WebRTCDialer(Dialer):
    """Opens WebRTC links. To be entered and left in one task; links may be used from any task in between."""

    def __init__(self, config: LinkConfig | None = None, max_frame: int | None = None) -> None:
        self._config = config or LinkConfig()
        self._max_frame = MeshConfig().max_frame if max_frame is None else max_frame
        self._carriers: dict[WebRTCCarrier, None] = {}
        self._loop: LinkLoop | None = None
        self._stack = AsyncExitStack()
        self._check_ice_servers()

    async def __aenter__(self) -> Self:
        self._loop = await self._stack.enter_async_context(open_link_loop())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        finally:
            # The loop is not told of the body's exception: it would come back inside two groups.
            await self._stack.aclose()

    async def aclose(self) -> None:
        """Close all that is open or being opened. Links see it as a failure."""
        self._loop = None
        carriers = list(self._carriers)
        for carrier in carriers:
            carrier.abandon()
        for carrier in carriers:
            await carrier.wait_closed()
        await trio.lowlevel.checkpoint()

    async def offer(self, peer: PeerId) -> Attempt:
        carrier = self._new_carrier()
        return await self._begin(peer, "offer", carrier, carrier.make_offer())

    async def answer(self, peer: PeerId, offer: Signal) -> Attempt:
        try:
            description = clean_description(offer)
        except RemoteProtocolError as error:
            raise AttemptFailed(f"the offer can't be used: {error}") from error
        carrier = self._new_carrier()
        return await self._begin(peer, "answer", carrier, carrier.make_answer(description))

    async def _begin(
        self,
        peer: PeerId,
        kind: Literal["offer", "answer"],
        carrier: WebRTCCarrier,
        description: Coroutine[Any, Any, str],
    ) -> Attempt:
        try:
            sdp = await description
        except _SDP_ERRORS as error:
            await carrier.aclose()
            raise AttemptFailed(f"the {kind} can't be made: {error}") from error
        except BaseException:
            await carrier.aclose()
            raise
        return WebRTCAttempt(peer, Signal(type=kind, sdp=sdp), carrier, self._config, self._max_frame)

    def _new_carrier(self) -> WebRTCCarrier:
        if self._loop is None:
            raise trio.ClosedResourceError
        carrier = WebRTCCarrier(self._loop, self._config, self._forget)
        self._carriers[carrier] = None
        return carrier

    def _forget(self, carrier: WebRTCCarrier) -> None:
        self._carriers.pop(carrier, None)

    def _check_ice_servers(self) -> None:
        for server in self._config.ice_servers:
            try:
                aiortc.rtcicetransport.parse_stun_turn_uri(server.urls)
            except ValueError as error:
                raise ConfigError(f"{server.urls!r} is no address of an ICE server: {error}") from error
