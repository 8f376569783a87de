"""What every transport must do, run against each one: subclass `TransportContract` and give it a `service` fixture."""

from typing import Protocol

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from p2pmesh.errors import TransportError
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.transports.transport import Connection, Transport
from p2pmesh.wire.messages import Signal
from p2pmesh.wire.signaling import BootstrapPeers, Join, PeerJoined, PeerLeft, PeerSignal, ServiceError

ALICE = Identity.from_seed(b"a" * 32).peer_id
BOB = Identity.from_seed(b"b" * 32).peer_id


class Service(Protocol):
    """A signaling service that a test can take down."""

    @property
    def transport(self) -> Transport: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def clients(self) -> int:
        """How many connections the service holds."""


async def join(connection: Connection, peer_id: PeerId) -> BootstrapPeers:
    await connection.send(Join(peer_id=peer_id, version=1))
    answer = await connection.receive()
    assert isinstance(answer, BootstrapPeers)
    return answer


async def until_gone(service: Service, clients: int = 0) -> None:
    """Wait until the service has noticed who left; over sockets that takes a moment."""
    with trio.fail_after(5):
        while service.clients() != clients:
            await wait_all_tasks_blocked(0.001)


class TransportContract:
    async def test_a_join_is_answered(self, service):
        async with service.transport.connect() as connection:
            assert await join(connection, ALICE) == BootstrapPeers(peers=())

    async def test_peers_learn_of_each_other_and_relay_signals(self, service):
        async with service.transport.connect() as alice, service.transport.connect() as bob:
            await join(alice, ALICE)
            found = await join(bob, BOB)
            assert [peer.id for peer in found.peers] == [ALICE]
            assert await alice.receive() == PeerJoined(peer_id=BOB)

            offer = Signal(type="offer", sdp="v=0 ü €")
            await bob.send(PeerSignal(to=ALICE, signal=offer))
            received = await alice.receive()
            assert (received.from_, received.signal) == (BOB, offer)

    async def test_messages_keep_their_order(self, service):
        async with service.transport.connect() as alice, service.transport.connect() as bob:
            await join(alice, ALICE)
            await join(bob, BOB)
            await alice.receive()
            for number in range(30):
                await bob.send(PeerSignal(to=ALICE, signal=Signal(type="offer", sdp=str(number))))
            assert [(await alice.receive()).signal.sdp for _ in range(30)] == [str(number) for number in range(30)]

    async def test_leaving_the_block_tells_the_service(self, service):
        async with service.transport.connect() as alice:
            await join(alice, ALICE)
            async with service.transport.connect() as bob:
                await join(bob, BOB)
                await alice.receive()
            assert await alice.receive() == PeerLeft(peer_id=BOB)

    async def test_what_the_service_refuses_comes_as_a_message(self, service):
        async with service.transport.connect() as connection:
            await join(connection, ALICE)
            await connection.send(PeerSignal(to=BOB, signal=Signal(type="offer")))
            error = await connection.receive()
            assert isinstance(error, ServiceError)
            assert (error.code, error.to) == ("not_found", BOB)

    async def test_the_channel_ends_when_the_service_closes(self, service):
        async with service.transport.connect() as connection:
            await join(connection, ALICE)
            await service.stop()
            for _ in range(2):
                with pytest.raises(trio.EndOfChannel):
                    await connection.receive()
            with pytest.raises(TransportError):
                await connection.send(Join(peer_id=ALICE))

    async def test_a_waiting_receive_sees_the_service_close(self, service):
        async def wait_for_the_end(connection: Connection) -> None:
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()

        async with service.transport.connect() as connection, trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_the_end, connection)
            await wait_all_tasks_blocked()
            await service.stop()

    async def test_a_service_that_is_down_is_a_transport_error_that_names_it(self, service):
        await service.stop()
        with pytest.raises(TransportError, match="can't reach") as caught:
            async with service.transport.connect():
                pytest.fail("connected to nothing")
        assert service.transport.name in str(caught.value)

    async def test_a_transport_connects_again_after_an_outage(self, service):
        for _ in range(2):
            async with service.transport.connect() as connection:
                await join(connection, ALICE)
                await service.stop()
                with pytest.raises(trio.EndOfChannel):
                    await connection.receive()
            await service.start()
        async with service.transport.connect() as connection:
            assert await join(connection, ALICE) == BootstrapPeers(peers=())

    async def test_connections_of_one_transport_are_independent(self, service):
        ids = [Identity.from_seed(bytes([number]) * 32).peer_id for number in range(12)]
        joined = 0

        async def be(peer_id: PeerId) -> None:
            nonlocal joined
            async with service.transport.connect() as connection:
                await connection.send(Join(peer_id=peer_id, version=1))
                while not isinstance(await connection.receive(), BootstrapPeers):
                    pass
                joined += 1

        async with trio.open_nursery() as nursery:
            for peer_id in ids:
                nursery.start_soon(be, peer_id)
        assert joined == len(ids)
        await until_gone(service)

    async def test_closing_twice_is_harmless_and_nothing_works_afterwards(self, service):
        async with service.transport.connect() as connection:
            await connection.aclose()
            await connection.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await connection.receive()
            with pytest.raises(trio.ClosedResourceError):
                await connection.send(Join(peer_id=ALICE))
        await until_gone(service)

    async def test_closing_wakes_a_waiting_receive(self, service):
        async def receive(connection: Connection) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.receive()

        async with service.transport.connect() as connection, trio.open_nursery() as nursery:
            nursery.start_soon(receive, connection)
            await wait_all_tasks_blocked()
            await connection.aclose()

    async def test_an_error_in_the_block_comes_out_as_it_is(self, service):
        error = ValueError("the block's own")

        async def fail() -> None:
            async with service.transport.connect() as connection:
                await join(connection, ALICE)
                raise error

        with pytest.raises(ValueError, match="the block's own") as caught:
            await fail()
        assert caught.value is error
        await until_gone(service)

    async def test_a_transport_error_in_the_block_is_in_no_group(self, service):
        async def send_on() -> None:
            async with service.transport.connect() as connection:
                await service.stop()
                while True:
                    await connection.send(Join(peer_id=ALICE))

        with pytest.raises(TransportError):
            await send_on()

    async def test_a_cancelled_receive_loses_nothing(self, service):
        async with service.transport.connect() as alice, service.transport.connect() as bob:
            await join(alice, ALICE)
            with trio.move_on_after(0) as scope:
                await alice.receive()
            assert scope.cancelled_caught
            await join(bob, BOB)
            assert await alice.receive() == PeerJoined(peer_id=BOB)

    async def test_a_cancelled_block_leaves_nothing(self, service):
        async with trio.open_nursery() as nursery:

            async def hold(task_status: trio.TaskStatus[None]) -> None:
                async with service.transport.connect() as connection:
                    await join(connection, ALICE)
                    task_status.started()
                    await connection.receive()

            await nursery.start(hold)
            assert service.clients() == 1
            nursery.cancel_scope.cancel()
        await until_gone(service)

    async def test_connecting_can_be_cancelled_at_any_step(self, service):
        """One more step of the scheduler is let happen each time, until it gets through."""
        through = False
        steps = 0
        while not through:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, scope, steps)
                    async with service.transport.connect():
                        through = True
                        scope.cancel()
            steps += 1
        await until_gone(service)

    async def test_sending_and_receiving_are_checkpoints(self, service):
        async with service.transport.connect() as connection:
            with assert_checkpoints():
                await connection.send(Join(peer_id=ALICE, version=1))
            with assert_checkpoints():
                await connection.receive()
            with assert_checkpoints():
                await connection.aclose()


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()
