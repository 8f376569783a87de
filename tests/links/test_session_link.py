"""A link over a carrier that does what a test says: what the link makes of packets that come when it is over."""

from __future__ import annotations

import pytest
import trio

from p2pmesh.config import LinkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import LinkError, LinkProtocolError
from p2pmesh.links.session_link import Carrier, SessionLink
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire import packet_format as f

PEER = RemotePeer(PeerId("1" * 40), True, 1)
HELLO = f.u32_record(f.HELLO, 20_000) + f.credit_record(f.BULK, 1 << 40) + f.credit_record(f.URGENT, 1 << 40)
FRAME = f.frame_header(f.BULK, 4) + b"late"


class Wire(Carrier):
    """Keeps what it is given."""

    buffered = 0
    max_packet = f.MAX_PACKET

    def __init__(self) -> None:
        self.sent: list[bytes | str] = []

    def send_packet(self, packet: bytes | str) -> None:
        self.sent.append(packet)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def link_and_wire() -> tuple[SessionLink, Wire]:
    wire = Wire()
    link = SessionLink(wire, PEER, LinkConfig(), 20_000)
    link.packet_received(HELLO)
    return link, wire


async def test_packets_after_a_breach_of_the_protocol_are_not_looked_at() -> None:
    link, wire = await link_and_wire()
    link.packet_received("text")
    received, sent = link.stats.packets_received, len(wire.sent)
    for packet in (FRAME, f.u32_record(f.PING, 1), "text"):
        link.packet_received(packet)
    assert (link.stats.packets_received, len(wire.sent)) == (received, sent)
    with pytest.raises(LinkProtocolError):
        await link.receive()


async def test_packets_after_the_carrier_has_closed_are_not_looked_at() -> None:
    link, wire = await link_and_wire()
    link.packet_received(f.frame_header(f.BULK, 5) + b"early")
    link.carrier_closed(None)
    sent = len(wire.sent)
    link.packet_received(FRAME)
    assert len(wire.sent) == sent
    assert await link.receive() == b"early"
    with pytest.raises(trio.EndOfChannel):
        await link.receive()
    with pytest.raises(LinkError):
        await link.send(b"x")


async def test_a_link_at_rest_wakes_for_its_pings_alone(autojump_clock: trio.testing.MockClock) -> None:
    link, _wire = await link_and_wire()
    wakes, expire = [], link._expire

    def counted() -> None:
        wakes.append(trio.current_time())
        expire()

    link._expire = counted  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        answered = link.stats.pings_sent
        for _ in range(1000):
            await trio.sleep(0.02)
            if link.stats.pings_sent > answered:
                answered = link.stats.pings_sent
                link.packet_received(f.u32_record(f.PONG, answered))
        nursery.cancel_scope.cancel()
    assert 9 <= answered <= 11
    assert len(wakes) <= answered
