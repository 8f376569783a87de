"""`SessionLink` and its carrier: what passes between them, and what passes no more once the link is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pmesh.config import LinkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import LinkError, LinkProtocolError
from p2pmesh.links.session_link import Carrier, SessionLink
from p2pmesh.protocols.inputs import RemotePeer

CONFIG = LinkConfig(close_timeout=1.0)
MAX_FRAME = 100_000


class Wire(Carrier):
    """A carrier that keeps what it is given until `carry`, as long as it is not closed."""

    def __init__(self, link_to: Callable[[], SessionLink]) -> None:
        self._link_to = link_to
        self.packets: list[bytes | str] = []
        self.is_closed = False

    def send_packet(self, packet: bytes | str) -> None:
        if self.is_closed:
            raise LinkError("the wire is cut")
        self.packets.append(packet)

    def carry(self, count: int | None = None) -> None:
        """Let the oldest packets arrive."""
        for _ in range(len(self.packets) if count is None else count):
            self._link_to().packet_received(self.packets.pop(0))

    @property
    def buffered(self) -> int:
        return sum(map(len, self.packets))

    @property
    def max_packet(self) -> int:
        return 16_384

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.carry()

    async def aclose(self) -> None:
        self.is_closed = True
        await trio.lowlevel.checkpoint()


class Pair:
    """Two links that only `carry` brings together."""

    def __init__(self) -> None:
        wires = Wire(lambda: self.right), Wire(lambda: self.left)
        self.left, self.right = (
            SessionLink(wire, RemotePeer(PeerId(name * 40), verified=True, version=1), CONFIG, MAX_FRAME)
            for wire, name in zip(wires, "ba", strict=True)
        )
        self.out, self.back = wires
        self.carry()

    def carry(self) -> None:
        while self.out.packets or self.back.packets:
            self.out.carry()
            self.back.carry()


async def over_by_the_peers_close(pair: Pair) -> type[Exception]:
    pair.right.carrier_closed(None)
    return trio.EndOfChannel


async def over_by_a_failure(pair: Pair) -> type[Exception]:
    pair.right.carrier_closed(LinkError("a mouse bit the wire"))
    return LinkError


async def over_by_what_the_peer_sent(pair: Pair) -> type[Exception]:
    pair.right.packet_received(b"\xff\xff\xff\xff")
    return LinkProtocolError


async def over_by_our_close(pair: Pair) -> type[Exception]:
    await trio.aclose_forcefully(pair.right)
    return trio.ClosedResourceError


ENDINGS: list[Any] = [over_by_the_peers_close, over_by_a_failure, over_by_what_the_peer_sent, over_by_our_close]


@pytest.mark.parametrize("end", ENDINGS)
async def test_packets_after_the_link_is_over_change_nothing(autojump_clock: MockClock, end: Any) -> None:
    pair = Pair()
    await pair.left.send(b"late")
    assert pair.right.send_nowait(b"unflushed")
    error = await end(pair)
    pair.back.packets.clear()
    before = pair.right.stats
    pair.out.carry()
    pair.right.packet_received(b"\xff\xff\xff\xff")
    pair.right.drained()
    pair.right.flush()
    pair.right.carrier_closed(LinkError("a second time"))
    with pytest.raises(error) as caught:
        await pair.right.receive()
    assert "second time" not in str(caught.value)
    assert pair.right.receive_nowait() is None
    assert pair.right.stats == before
    assert not pair.back.packets, "it answers"
    with pytest.raises((LinkError, trio.ClosedResourceError)):
        await pair.right.send(b"")
    assert not pair.right.send_nowait(b"")


async def test_what_came_before_the_end_can_be_taken_after_it(autojump_clock: MockClock) -> None:
    pair = Pair()
    await pair.left.send(b"in time")
    pair.out.carry()
    pair.right.carrier_closed(LinkError("a mouse bit the wire"))
    assert pair.right.receive_nowait() == b"in time"
    with pytest.raises(LinkError, match="mouse"):
        await pair.right.receive()


async def test_a_carrier_that_closes_in_the_middle_of_a_frame_is_an_error(autojump_clock: MockClock) -> None:
    pair = Pair()
    await pair.left.send(bytes(50_000))
    pair.out.carry(2)
    pair.right.carrier_closed(None)
    with pytest.raises(LinkError, match="middle"):
        await pair.right.receive()


async def test_a_carrier_that_is_gone_when_something_is_sent_fails_the_link(autojump_clock: MockClock) -> None:
    pair = Pair()
    pair.out.is_closed = True
    with pytest.raises(LinkError, match="cut"):
        await pair.left.send(b"into nothing")
    with pytest.raises(LinkError, match="cut"):
        await pair.left.receive()


async def test_closing_flushes_what_was_sent_and_closes_the_carrier(autojump_clock: MockClock) -> None:
    pair = Pair()
    await pair.left.send(b"last words")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.left.aclose)
        await trio.testing.wait_all_tasks_blocked()
        pair.carry()
        assert await pair.right.receive() == b"last words"
        with pytest.raises(trio.EndOfChannel):
            await pair.right.receive()
        start = trio.current_time()
        await pair.right.aclose()
        pair.carry()
    assert trio.current_time() == start
    assert pair.out.is_closed
    assert pair.back.is_closed


async def test_closing_towards_a_peer_that_says_nothing_ends_in_time(autojump_clock: MockClock) -> None:
    pair = Pair()
    start = trio.current_time()
    await pair.left.aclose()
    assert trio.current_time() - start == pytest.approx(CONFIG.close_timeout)
    assert pair.out.is_closed
