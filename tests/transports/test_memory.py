"""The service in memory: the contract, and what only it can do."""

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pmesh.errors import ConfigError, TransportError
from p2pmesh.server.config import ServerConfig
from p2pmesh.transports.memory import MemoryHub, MemoryTransport, memory_hub
from p2pmesh.wire.messages import Signal
from p2pmesh.wire.signaling import Join, PeerJoined, PeerSignal, ServiceError
from tests.harness.transport_contract import ALICE, BOB, TransportContract, join


@attrs.frozen
class MemoryService:
    hub: MemoryHub
    transport: MemoryTransport

    async def start(self):
        self.hub.start()

    async def stop(self):
        self.hub.stop()

    def clients(self):
        return self.hub.snapshot()["clients"] if self.hub.is_up else 0


class TestContract(TransportContract):
    @pytest.fixture
    def service(self):
        hub = MemoryHub()
        return MemoryService(hub, MemoryTransport("memory://test", hub=hub))


async def test_one_name_is_one_hub_within_a_run():
    async with MemoryTransport("memory://lobby").connect() as alice, MemoryTransport("memory://lobby").connect() as bob:
        await join(alice, ALICE)
        await join(bob, BOB)
        assert await alice.receive() == PeerJoined(peer_id=BOB)
        async with MemoryTransport("memory://elsewhere").connect() as stranger:
            assert not (await join(stranger, BOB)).peers
    assert memory_hub("lobby").snapshot()["joins"] == 2


def test_a_run_knows_nothing_of_the_one_before():
    async def main():
        await trio.lowlevel.checkpoint()
        hub = memory_hub("lobby")
        before = hub.snapshot()["joins"]
        hub.stop()
        return before, hub

    assert trio.run(main)[0] == trio.run(main)[0] == 0
    assert trio.run(main)[1] is not trio.run(main)[1]


async def test_an_abrupt_stop_is_a_failure_not_an_end():
    hub = MemoryHub()
    async with MemoryTransport(hub=hub).connect() as connection:
        hub.stop(abruptly=True)
        with pytest.raises(TransportError, match="lost memory://"):
            await connection.receive()


async def test_what_arrived_before_the_stop_is_still_received():
    hub = MemoryHub()
    async with MemoryTransport(hub=hub).connect() as connection:
        await connection.send(Join(peer_id=ALICE, version=1))
        hub.stop()
        await connection.receive()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()


async def test_a_restarted_hub_knows_nobody_and_old_connections_stay_ended():
    hub = MemoryHub()
    async with MemoryTransport(hub=hub).connect() as old:
        await join(old, ALICE)
        hub.stop()
        hub.start()
        async with MemoryTransport(hub=hub).connect() as new:
            assert not (await join(new, BOB)).peers
            with pytest.raises(TransportError):
                await old.send(PeerSignal(to=BOB, signal=Signal(type="offer")))
        with pytest.raises(trio.EndOfChannel):
            await old.receive()


def test_the_service_keeps_time_while_somebody_waits():
    async def main():
        config = ServerConfig(join_timeout=30)
        hub = MemoryHub(config=config)
        transport = MemoryTransport(hub=hub)
        async with transport.connect() as member, trio.open_nursery() as nursery:
            await join(member, ALICE)
            nursery.start_soon(member.receive)  # waits first, so it keeps the time for who comes later
            await wait_all_tasks_blocked()
            async with transport.connect() as idle:
                start = trio.current_time()
                with pytest.raises(TransportError, match="no join within 30 s"):
                    await idle.receive()
                assert 30 <= trio.current_time() - start <= 33
            nursery.cancel_scope.cancel()
        assert hub.snapshot()["clients"] == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_who_stops_waiting_hands_the_time_on():
    async def main():
        hub = MemoryHub(config=ServerConfig(join_timeout=30))
        transport = MemoryTransport(hub=hub)
        async with transport.connect() as first, transport.connect() as second:
            await join(first, ALICE)

            async def wait_long():
                with pytest.raises(TransportError, match="no join"):
                    await second.receive()

            async with trio.open_nursery() as nursery:
                with trio.move_on_after(1):
                    nursery.start_soon(wait_long)
                    await first.receive()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_client_that_takes_nothing_is_closed_at_the_bound():
    config = ServerConfig(max_message=1024, outbox=2048, message_burst=1000)
    hub = MemoryHub(config=config)
    transport = MemoryTransport(hub=hub)
    async with transport.connect() as slow, transport.connect() as fast:
        await join(slow, ALICE)
        await join(fast, BOB)
        for _ in range(6):
            await fast.send(PeerSignal(to=ALICE, signal=Signal(type="offer", sdp="x" * 500)))
        assert hub.snapshot()["clients"] == 1
        waiting = []

        async def receive_all() -> None:
            while True:
                waiting.append(await slow.receive())

        with pytest.raises(TransportError, match="too much waits"):
            await receive_all()
        assert 1 <= len(waiting) <= 2048 // 500


async def test_the_limits_are_the_servers():
    hub = MemoryHub(config=ServerConfig(max_clients=1))
    transport = MemoryTransport(hub=hub)
    async with transport.connect(), transport.connect() as refused:
        error = await refused.receive()
        assert isinstance(error, ServiceError)
        assert error.code == "full"
        with pytest.raises(TransportError, match="1013"):
            await refused.receive()


@pytest.mark.parametrize("url", ["memory:/x", "ws://x", "memory://a/b", "memory://a?b", "memory://ü", "", 5])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="memory://"):
        MemoryTransport(url)
