"""Links over WebRTC data channels: aiortc in an asyncio loop of ours on top of Trio.

One `RTCPeerConnection` for each link, with a single ordered, reliable channel that the offerer opens. A description
leaves with the candidates that are there after `LinkConfig.gathering_timeout`; what a server says later is trickled,
and candidates that a peer trickles are taken. No server is contacted unless `LinkConfig.ice_servers` names one. A
machine with no address but loopback gathers that.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self

import trio
from msgspec import structs

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.errors import MeshError, RemoteProtocolError
from p2pmesh.keyspace import PeerId, short
from p2pmesh.links.link import Attempt, AttemptFailed, Dialer, Link
from p2pmesh.links.session_link import SessionLink
from p2pmesh.links.webrtc.address_policy import MAX_TAKEN, AddressPolicy
from p2pmesh.links.webrtc.carrier import SDP_ERRORS, WebRTCCarrier
from p2pmesh.links.webrtc.event_loop import LinkLoop, open_link_loop, refuse_other_loops
from p2pmesh.links.webrtc.server_pool import Gathering, ServerPool
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.messages import Description, Facts, IceCandidate
from p2pmesh.wire.sdp import read_candidate, read_sdp, write_candidate, write_sdp

MAX_PREFERRED = 4
"""Local addresses remembered that have proven good: one for each signaling service, mostly."""

logger: Final = logging.getLogger(__name__)


class Intake:
    """The candidates that are taken of one peer: its description's, and those that it trickles."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._taken = 0

    def of(self, description: Description) -> Description:
        """The description with those candidates that are taken."""
        chosen = self._policy.choose(description.candidates, MAX_TAKEN - self._taken)
        self._taken += len(chosen)
        is_all = len(chosen) == len(description.candidates)
        return structs.replace(description, candidates=chosen, complete=description.complete and is_all)

    def takes(self, candidate: IceCandidate) -> bool:
        """Whether this one is taken, too."""
        is_taken = self._taken < MAX_TAKEN and self._policy.takes(candidate)
        self._taken += is_taken
        return is_taken


class WebRTCAttempt(Attempt):
    """A connection that is being set up."""

    def __init__(
        self,
        peer_id: PeerId,
        description: Description,
        carrier: WebRTCCarrier,
        config: LinkConfig,
        max_frame: int,
        intake: Intake,
    ) -> None:
        self._peer_id = peer_id
        self._description = description
        self._carrier: WebRTCCarrier | None = carrier
        self._config = config
        self._max_frame = max_frame
        self._intake = intake
        self._feeding = trio.Lock()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def description(self) -> Description:
        return self._description

    async def feed(self, signal: Facts) -> None:
        async with self._feeding:
            if self._carrier is None:
                return
            if isinstance(signal, IceCandidate):
                await self._try(write_candidate(signal) if self._intake.takes(signal) else None)
            elif self._description.is_offer:
                try:
                    await self._carrier.take_answer(write_sdp(self._intake.of(signal)))
                except SDP_ERRORS as error:
                    raise AttemptFailed(f"the answer can't be used: {_kind(error)}") from error

    async def _try(self, candidate: str | None) -> None:
        if candidate is None or self._carrier is None:
            return
        try:
            await self._carrier.take_candidate(candidate)
        except (AttemptFailed, *SDP_ERRORS) as error:  # what becomes of the attempt, `opened` tells
            logger.debug("a candidate of %s can't be used: %s", short(self._peer_id), _kind(error))

    def trickle(self, tell: Callable[[IceCandidate], None]) -> None:
        if self._carrier is not None:
            self._carrier.trickle(lambda text: tell(found) if (found := read_candidate(text)) else None)

    @property
    def trouble(self) -> str:
        return self._carrier.trouble if self._carrier is not None else ""

    async def opened(self, peer: RemotePeer) -> Link:
        carrier = self._carrier
        if carrier is None:
            raise AttemptFailed("the attempt was closed")
        await carrier.decided.wait()
        if not carrier.is_open:
            reason = str(carrier.error or "the peer closed the connection")
            raise AttemptFailed(reason, hopeless=carrier.is_hopeless)
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
        self._servers = ServerPool(self._config.ice_servers)
        self._preferred: dict[str, None] = {}

    async def __aenter__(self) -> Self:
        refuse_other_loops()
        self._loop = await self._stack.enter_async_context(open_link_loop())
        self._servers.look_up(self._loop)
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

    @property
    def connections(self) -> int:
        """How many are open, or being opened or closed."""
        return len(self._carriers)

    @property
    def counts(self) -> Mapping[str, int]:
        return {"datagrams_dropped": self._loop.datagrams_dropped if self._loop is not None else 0}

    def prefer(self, address: str) -> None:
        self._preferred.pop(address, None)
        self._preferred = {address: None, **self._preferred}
        while len(self._preferred) > MAX_PREFERRED:
            self._preferred.popitem()

    async def offer(self, peer: PeerId) -> Attempt:
        carrier = self._new_carrier()
        return await self._begin(peer, "offer", carrier, carrier.make_offer, self._intake())

    async def answer(self, peer: PeerId, offer: Description) -> Attempt:
        carrier = self._new_carrier()
        intake = self._intake()
        sdp = write_sdp(intake.of(offer))
        return await self._begin(peer, "answer", carrier, partial(carrier.make_answer, sdp), intake)

    def _intake(self) -> Intake:
        return Intake(AddressPolicy(self._config, local=self._preferred))

    async def _begin(
        self,
        peer: PeerId,
        kind: Literal["offer", "answer"],
        carrier: WebRTCCarrier,
        describe: Callable[[Gathering], Awaitable[str]],
        intake: Intake,
    ) -> Attempt:
        async with AsyncExitStack() as unless_begun:
            unless_begun.push_async_callback(carrier.aclose)
            gathering = await self._servers.gathering(
                carrier.loop, self._config.gathering_timeout, tuple(self._preferred)
            )
            try:
                facts = read_sdp(await describe(gathering))
            except (RemoteProtocolError, *SDP_ERRORS) as error:
                raise AttemptFailed(f"the {kind} can't be made: {_kind(error)}") from error
            except AttemptFailed:
                raise
            except Exception as error:  # of aiortc or below it: one attempt is lost, and not the mesh
                logger.exception("the %s can't be made", kind)
                raise AttemptFailed(f"the {kind} can't be made: {error!r:.100}") from error
            unless_begun.pop_all()
        # One is enough, and browsers make no other: aiortc adds two longer ones.
        fingerprints = tuple(one for one in facts.fingerprints if one.hash == "sha-256")
        facts = structs.replace(facts, fingerprints=fingerprints, complete=not carrier.is_gathering)
        return WebRTCAttempt(peer, facts, carrier, self._config, self._max_frame, intake)

    def _new_carrier(self) -> WebRTCCarrier:
        if self._loop is None:
            raise trio.ClosedResourceError
        carrier = WebRTCCarrier(self._loop, self._config, self._forget)
        self._carriers[carrier] = None
        return carrier

    def _forget(self, carrier: WebRTCCarrier) -> None:
        self._carriers.pop(carrier, None)


def _kind(error: Exception) -> str:
    """An error about a description: our own text, and of another's the kind, since it may quote what is private."""
    return str(error) if isinstance(error, MeshError | AttemptFailed) else type(error).__name__
