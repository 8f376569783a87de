"""The demo's switch for a partition: what it cuts fails as over a network that is cut, and the rest goes on."""

import pytest
import trio
import trio.testing

from p2pmesh.cli.demo.partition import CutDialer, CutTransport
from p2pmesh.config import LinkConfig
from p2pmesh.errors import TransportError
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import LinkTimedOut
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.transports.memory import MemoryHub, MemoryTransport
from p2pmesh.wire.messages import PROTOCOL_VERSION
from p2pmesh.wire.signaling import PeerJoined
from tests.harness.transport_contract import TransportContract, join

ALICE, BOB, CAROL = (PeerId(letter * 40) for letter in "abc")
QUICK = LinkConfig(keepalive_idle=0.3, keepalive_interval=0.1, keepalive_pings=3)
PATIENT = LinkConfig(keepalive_idle=30)
"""More than any of this takes."""

# --- the signaling service --------------------------------------------------------------------------------------------


class MemoryService:
    def __init__(self):
        self.hub = MemoryHub()
        self.transport = CutTransport(MemoryTransport("memory://test", hub=self.hub))

    async def start(self):
        self.hub.start()

    async def stop(self):
        self.hub.stop()

    def clients(self):
        return self.hub.snapshot()["clients"] if self.hub.is_up else 0


class TestContractOfATransportThatIsNotCut(TransportContract):
    @pytest.fixture
    def service(self):
        return MemoryService()


async def test_a_cut_ends_the_connection_and_leaves_that_of_others(autojump_clock):
    service = MemoryService()
    other = CutTransport(MemoryTransport("memory://test", hub=service.hub))
    async with service.transport.connect() as mine, other.connect() as theirs:
        await join(mine, ALICE)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait():
                with pytest.raises(TransportError, match="cut off"):
                    await mine.receive()

            await trio.testing.wait_all_tasks_blocked()
            service.transport.cut()
        with pytest.raises(TransportError, match="cut off"):
            await mine.receive()
        with pytest.raises(TransportError, match="cut off"):
            await join(mine, ALICE)
        await join(theirs, BOB)


async def test_while_it_is_cut_there_is_no_new_connection(autojump_clock):
    service = MemoryService()
    service.transport.cut()
    with pytest.raises(TransportError, match="cut off"):
        async with service.transport.connect():
            pass
    assert service.clients() == 0
    service.transport.heal()
    async with service.transport.connect() as first, service.transport.connect() as second:
        await join(first, ALICE)
        await join(second, BOB)
        assert await first.receive() == PeerJoined(peer_id=BOB)


# --- links ------------------------------------------------------------------------------------------------------------


async def attempts(dialer, me, other, you):
    """Both ends of a link in the making, each with what the other one said."""
    offering = await dialer.offer(you)
    answering = await other.answer(me, offering.description)
    await offering.feed(answering.description)
    return offering, answering


async def connect(dialer, me, other, you, nursery):
    """A pair of links, running."""
    offering, answering = await attempts(dialer, me, other, you)
    links = await offering.opened(verified(you)), await answering.opened(verified(me))
    for link in links:
        await nursery.start(link.run)
    return links


def verified(peer):
    return RemotePeer(peer, verified=True, version=PROTOCOL_VERSION)


@pytest.mark.webrtc
async def test_links_across_a_cut_fall_silent_at_both_ends_and_others_stay():
    with trio.fail_after(50):
        async with CutDialer(QUICK) as alice, CutDialer(QUICK) as bob, CutDialer(QUICK) as carol:
            async with trio.open_nursery() as nursery:
                lost = await connect(alice, ALICE, bob, BOB, nursery)
                there, back = await connect(alice, ALICE, carol, CAROL, nursery)
                alice.cut([BOB])
                bob.cut([ALICE])
                for link in lost:
                    with pytest.raises(LinkTimedOut):
                        await link.receive()
                    await link.aclose()
                await there.send(b"still here")
                assert await back.receive() == b"still here"
                await trio.aclose_forcefully(there)
                await trio.aclose_forcefully(back)


@pytest.mark.webrtc
async def test_no_link_opens_across_a_cut_until_it_is_healed():
    with trio.fail_after(50):
        async with CutDialer(PATIENT) as alice, CutDialer(PATIENT) as bob, trio.open_nursery() as nursery:
            alice.cut([BOB])
            bob.cut([ALICE])
            offering, answering = await attempts(alice, ALICE, bob, BOB)
            async with offering, answering:
                with trio.move_on_after(
                    0.5
                ) as scope:  # five times of what it takes, on a machine with nothing else to do
                    await offering.opened(verified(BOB))
                assert scope.cancelled_caught
            alice.cut([])
            bob.cut([])
            for link in await connect(alice, ALICE, bob, BOB, nursery):
                await trio.aclose_forcefully(link)


@pytest.mark.webrtc
async def test_a_link_that_outlives_a_cut_loses_nothing():
    with trio.fail_after(50):
        async with CutDialer(PATIENT) as alice, CutDialer(PATIENT) as bob, trio.open_nursery() as nursery:
            there, back = await connect(alice, ALICE, bob, BOB, nursery)
            alice.cut([BOB])
            for number in range(3):
                await there.send(bytes([number]))
            with trio.move_on_after(0.3) as scope:
                await back.receive()
            assert scope.cancelled_caught
            alice.cut([])
            assert [await back.receive() for _ in range(3)] == [b"\0", b"\1", b"\2"]
            for link in (there, back):
                await trio.aclose_forcefully(link)
