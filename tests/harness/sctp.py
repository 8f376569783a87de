"""An SCTP association under test, its peer played by hand packet by packet, on an event loop whose time only jumps.

The one place of the tests that knows what aiortc's association expects of the DTLS transport below it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, cast

import aiortc.rtcsctptransport as sctp
import pytest
from aiortc import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcsctptransport import CookieAckChunk, DataChunk, InitAckChunk, InitChunk, SackChunk

from p2pmesh.links.webrtc.sctp_patch import SctpTransport

PORT = 5000
PEER_TAG = 77
FIRST = 10
"""The number of the peer's first chunk."""


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "all wait, and nothing is going to happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    """Where nothing is left to do, it is the next timer's time at once."""

    def __init__(self) -> None:
        self._selector_of_time = _JumpingSelector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now


class Dtls:
    """What lies below an association: keeps the packets that it sends, each with its time."""

    state = "connected"
    _role = "client"

    def __init__(self) -> None:
        self.packets: list[tuple[float, bytes]] = []
        self.on_packet: Callable[[list[Any]], object] = lambda chunks: None
        self.receiver: Any = None

    def _register_data_receiver(self, receiver: object) -> None:
        self.receiver = receiver

    def _unregister_data_receiver(self, receiver: object) -> None:
        self.receiver = None

    async def _send_data(self, packet: bytes) -> None:
        self.packets.append((now(), packet))
        self.on_packet(chunks_of(packet))


class Association:
    """An association and its one data channel. What its peer sent so far is all that comes before number `FIRST`."""

    def __init__(self) -> None:
        self.below = Dtls()
        self.sctp = SctpTransport(cast("Any", self.below))
        self.sctp.tune(cast("Any", asyncio.get_running_loop()))
        self.channel = RTCDataChannel(
            cast("Any", self.sctp), RTCDataChannelParameters(label="test", negotiated=True, id=0)
        )
        self.received: list[bytes] = []
        self.channel.on("message", self.received.append)
        self._tag = 0
        self.first_sent = 0
        """The number of the association's own first chunk."""

    async def open(self, window: int) -> None:
        """Shake hands: the peer grants a window that the association's may grow to."""
        await self.sctp.start(None, PORT)
        ((init,),) = self.sent
        assert isinstance(init, InitChunk)
        self._tag, self.first_sent = init.initiate_tag, init.initial_tsn
        answer = InitAckChunk()
        answer.initiate_tag, answer.initial_tsn, answer.advertised_rwnd = PEER_TAG, FIRST, window
        answer.outbound_streams = answer.inbound_streams = 1
        answer.params.append((sctp.SCTP_STATE_COOKIE, b"cookie"))
        await self.hear(answer)
        await self.hear(CookieAckChunk())
        assert self.channel.readyState == "open"
        self.below.packets.clear()

    # --- the peer -----------------------------------------------------------------------------------------------------

    async def hear(self, *chunks: Any) -> None:
        """A packet with these chunks arrives."""
        body = chunks[0] if len(chunks) == 1 else _Chunks(chunks)
        await self.below.receiver._handle_data(sctp.serialize_packet(PORT, PORT, self._tag, cast("Any", body)))

    async def get(self, number: int, size: int = 100) -> None:
        """The peer's chunk with this number arrives: a whole message."""
        await self.hear(data(number, size))

    async def acknowledge(self, count: int, *gaps: tuple[int, int]) -> None:
        """The peer has got the first `count` chunks, and beyond them those in `gaps`, counted from there."""
        await self.hear(self.sack(count, *gaps))

    def sack(self, count: int, *gaps: tuple[int, int]) -> SackChunk:
        chunk = SackChunk()
        chunk.cumulative_tsn = (self.first_sent + count - 1) % 2**32
        chunk.advertised_rwnd = 1 << 20
        chunk.gaps = list(gaps)
        return chunk

    # --- the association ----------------------------------------------------------------------------------------------

    def send(self, size: int = 100) -> None:
        self.channel.send(bytes(size))

    @property
    def sent(self) -> list[list[Any]]:
        """The chunks in each packet since it is open."""
        return [chunks_of(packet) for _, packet in self.below.packets]

    @property
    def kinds(self) -> list[list[type]]:
        return [[type(chunk) for chunk in chunks] for chunks in self.sent]

    @property
    def data_sent(self) -> list[Any]:
        """When which chunk was sent, counted from 0."""
        return [
            (time, (chunk.tsn - self.first_sent) % 2**32)
            for time, packet in self.below.packets
            for chunk in chunks_of(packet)
            if isinstance(chunk, DataChunk)
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(packet) for _, packet in self.below.packets]


class _Chunks:
    def __init__(self, chunks: tuple[Any, ...]) -> None:
        self._chunks = chunks

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self._chunks))


def chunks_of(packet: bytes) -> list[Any]:
    return sctp.parse_packet(packet)[3]


def data(number: int, size: int, *, is_last: bool = True) -> DataChunk:
    """A chunk of the peer's: a message of its own, or the first part of one."""
    chunk = DataChunk(flags=sctp.SCTP_DATA_FIRST_FRAG | (sctp.SCTP_DATA_LAST_FRAG if is_last else 0))
    chunk.tsn, chunk.stream_id, chunk.stream_seq, chunk.protocol = (
        number,
        0,
        (number - FIRST) % 2**16,
        sctp.WEBRTC_BINARY,
    )
    chunk.user_data = bytes(size)
    return chunk


def now() -> float:
    return asyncio.get_running_loop().time()


def with_association(test: Callable[[Association], Awaitable[None]], window: int = 1 << 20) -> None:
    """Run a test with an open association, in time that jumps."""

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sctp, "time", _Clock)
            here = Association()
            await here.open(window)
            await test(here)
            await here.sctp.stop()

    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        runner.run(run())


class _Clock:
    """Stands for the module `time` in aiortc, which measures round trips by it."""

    time = staticmethod(now)
