"""What a call's return means, and what events promise: whole peers over simulated links in virtual time."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import trio
import trio.lowlevel

from p2pmesh import (
    ConfigError,
    Delivered,
    DirectReceived,
    Failed,
    KademliaConfig,
    KeyFull,
    LinkConfig,
    MeshClosed,
    MeshConfig,
    PeerBusy,
    PeerConnected,
    PeerDisconnected,
    PeerEvicted,
    PeerRefused,
    PeerTimedOut,
    PeerUnreachable,
    RoutingConfig,
)
from p2pmesh.simulation import Conditions, Constant, simulated_meshes
from tests.harness.cluster import Cluster


def waiting(stream):
    items = []
    while True:
        try:
            items.append(stream.receive_nowait())
        except trio.WouldBlock:
            return items


# --- one end for each link --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in range(2, 13))])
async def test_over_random_lives_each_link_that_opens_ends_once(autojump_clock, seed):
    rng = random.Random(seed)
    up: defaultdict[int, set[str]] = defaultdict(set)
    ends = []
    left = {}

    def hear(number, event):
        match event:
            case PeerConnected(peer):
                assert peer not in up[number]
                up[number].add(peer)
            case PeerDisconnected(peer):
                up[number].remove(peer)
                ends.append(type(event))
            case _:
                pass

    async with simulated_meshes(0, seed=seed, max_peers=rng.choice((2, 3))) as world:
        world.observe(hear)
        await world.join(7, every=0.5)
        for _ in range(12):
            await trio.sleep(rng.uniform(0.5, 8))
            alive = [mesh for mesh in world.meshes if mesh not in left]
            mesh = rng.choice(alive)
            match rng.randrange(5):
                case 0 if len(alive) > 3:
                    left[mesh] = None
                    await mesh.leave()
                case 1 if mesh.peers:
                    world.break_link(mesh, rng.choice(mesh.peers))
                case 2:
                    world.freeze(mesh)
                    await trio.sleep(rng.uniform(1, 12))
                    world.thaw(mesh)
                case 3:
                    with trio.move_on_after(5):
                        await mesh.connect(rng.choice([other for other in alive if other is not mesh]).peer_id)
                case _:
                    await world.join(1)
        for number, mesh in enumerate(world.meshes):
            assert up[number] == set(mesh.peers)
        meshes = world.meshes
    assert not any(mesh.peers for mesh in meshes)
    assert not any(up.values())
    assert {PeerDisconnected} < {*ends} <= {PeerDisconnected, PeerTimedOut, PeerEvicted}


# --- the first link ---------------------------------------------------------------------------------------------------


async def test_linked_waits_for_so_many_neighbours(autojump_clock):
    async with simulated_meshes(1, seed=1) as world:
        (alice,) = world.meshes
        with trio.move_on_after(20) as scope:
            await alice.linked()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.join, 2)
            await alice.linked(2)
            assert alice.peer_count == 2
        await alice.linked()


@pytest.mark.parametrize("count", [0, -1, 4, 1.0, True, "1", None])
async def test_a_count_of_links_that_can_never_be_is_refused(autojump_clock, count):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        with pytest.raises(ConfigError, match="from 1 to max_peers"):
            await alice.linked(count)


async def test_who_waits_for_links_is_told_when_the_mesh_is_left(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)

        async def wait():
            with pytest.raises(MeshClosed):
                await alice.linked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            await alice.leave()
        with pytest.raises(MeshClosed):
            await alice.linked()


@pytest.mark.parametrize("call", ["send", "connect", "put", "get", "find_node", "broadcast"])
async def test_calls_that_are_made_at_once_wait_for_a_first_link(autojump_clock, call):
    async with simulated_meshes(3, seed=1) as world:
        alice, *_ = world.meshes
        await world.linked()
        await alice.dht.put("k", 1)
        async with world.peer() as late:
            assert not late.peers
            with trio.fail_after(10):
                match call:
                    case "send":
                        await late.send(alice.peer_id, 1)
                    case "connect":
                        await late.connect(alice.peer_id)
                        assert alice.peer_id in late.peers
                    case "put":
                        assert await late.dht.put("other", 1) >= 3
                    case "get":
                        found = await late.dht.get("k")
                        assert found is not None
                    case "find_node":
                        assert len(await late.dht.find_node(alice.peer_id)) >= 3
                    case _:
                        outcome = await (await late.broadcast("t", 1)).settled()
                        assert outcome.reached == 3


async def test_calls_of_the_first_of_all_wait_for_the_second(autojump_clock):
    async with simulated_meshes(1, seed=1) as world:
        (alice,) = world.meshes
        second = world.identity(1).peer_id
        done = []

        async def call(what, *args):
            await what(*args)
            done.append(what)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, alice.send, second, 1)
                await trio.sleep(4)
                nursery.start_soon(call, alice.connect, second)
                nursery.start_soon(call, alice.dht.put, "k", 1)
                assert not done
                await world.join(1)
        assert len(done) == 3


# --- the inbox --------------------------------------------------------------------------------------------------------


def small(patience: float = 30.0, **fields) -> MeshConfig:
    return MeshConfig(routing=RoutingConfig(patience=patience), **fields)


async def test_what_comes_before_anybody_listens_waits_for_the_first_stream(autojump_clock):
    async with simulated_meshes(2, seed=1) as world:
        await world.linked()
        alice, bob = world.meshes
        for number in range(5):
            await alice.send(bob.peer_id, number)
        async with bob.messages() as inbox, bob.messages() as second:
            await alice.send(bob.peer_id, 5)
            assert [(await inbox.receive()).payload for _ in range(6)] == [0, 1, 2, 3, 4, 5]
            assert (await second.receive()).payload == 5


@pytest.mark.parametrize("is_linked", [True, False])
async def test_a_full_inbox_makes_senders_wait_and_at_their_deadline_it_is_busy(autojump_clock, is_linked):
    async with simulated_meshes(
        2 if is_linked else 7, seed=3, max_peers=3 if is_linked else 2, config=small(5.0)
    ) as world:
        await world.linked()
        await trio.sleep(20)
        alice = world.meshes[0]
        bob = next(mesh for mesh in world.meshes[1:] if (mesh.peer_id in alice.peers) is is_linked)
        outcomes = {}

        async def send(number):
            outcome = None
            try:
                await alice.send(bob.peer_id, number)
            except PeerBusy as error:
                outcome = type(error)
            outcomes[number] = outcome

        async with trio.open_nursery() as nursery, bob.messages(buffer=3) as inbox:
            for number in range(6):
                nursery.start_soon(send, number)
                await trio.sleep(0.2)
            assert outcomes == dict.fromkeys(range(3))
            assert (await inbox.receive()).payload == 0
            await trio.sleep(0.5)
            assert len(outcomes) == 4, "one that waited was asked for at once"
            await trio.sleep(10)
            assert sorted(outcomes) == list(range(6))
            assert list(outcomes.values()).count(PeerBusy) == 2
            taken = {number for number, outcome in outcomes.items() if outcome is None}
            read = {0, *[(await inbox.receive()).payload for _ in range(3)]}
            assert read == taken
            with pytest.raises(trio.WouldBlock):
                inbox.receive_nowait()
            for _ in range(2):
                await send(99)
                assert (await inbox.receive()).payload == 99


async def test_a_slow_reader_slows_its_senders_to_its_own_pace(autojump_clock):
    async with simulated_meshes(3, seed=1) as world:
        await world.linked()
        alice, bob, carol = world.meshes
        got = []

        async def read():
            async with bob.messages(buffer=4) as inbox:
                async for message in inbox:
                    got.append((message.origin, message.payload))
                    await trio.sleep(0.1)

        async def send(mesh):
            async with trio.open_nursery() as sending:
                for number in range(40):
                    sending.start_soon(mesh.send, bob.peer_id, number)

        began = trio.current_time()
        async with trio.open_nursery() as reading:
            reading.start_soon(read)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, alice)
                nursery.start_soon(send, carol)
            assert 7 < trio.current_time() - began < 12, "as fast as it reads"
            await trio.sleep(2)
            reading.cancel_scope.cancel()
        assert sorted(got) == sorted((mesh.peer_id, number) for mesh in (alice, carol) for number in range(40))
        busy = alice.snapshot()["subsystems"]["routing"]["direct_sender"]["busy"]
        assert busy < 200, "who waits does not ask all the time"


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_streams_come_and_go_what_was_acknowledged_is_read(autojump_clock, seed):
    rng = random.Random(seed)
    config = small(patience=4.0, direct_inbox=4)
    async with simulated_meshes(2, seed=seed, config=config) as world, trio.open_nursery() as nursery:
        await world.linked()
        alice, bob = world.meshes
        acknowledged, read = set(), defaultdict(list)
        streams = {}

        async def send():
            for number in range(120):
                try:
                    await alice.send(bob.peer_id, number)
                except PeerBusy:
                    continue
                acknowledged.add(number)

        async def stream(key, *, task_status):
            async with bob.messages(buffer=rng.choice((None, 1, 3))) as inbox:
                with trio.CancelScope() as scope:
                    streams[key] = scope
                    task_status.started()
                    async for message in inbox:
                        read[key].append(message.payload)
                        await trio.sleep(rng.uniform(0, 0.5))
            del streams[key]

        nursery.start_soon(send)
        for key in range(25):
            await trio.sleep(rng.uniform(0, 2))
            if streams and rng.random() < 0.6:
                streams[rng.choice(list(streams))].cancel()
            if rng.random() < 0.7:
                await nursery.start(stream, key)
        await trio.sleep(100)
        for scope in list(streams.values()):
            scope.cancel()
        await trio.sleep(1)
        await nursery.start(stream, "last")
        await trio.sleep(20)
        assert len(acknowledged) > 20
        assert {number for numbers in read.values() for number in numbers} == acknowledged
        for numbers in read.values():
            assert len(numbers) == len({*numbers})
        nursery.cancel_scope.cancel()


async def test_who_only_watches_events_gets_direct_messages_there_and_holds_nobody_up(autojump_clock):
    async with simulated_meshes(2, seed=1, config=small(direct_inbox=4)) as world:
        await world.linked()
        alice, bob = world.meshes
        async with bob.events(buffer=100) as events:
            for number in range(20):
                await alice.send(bob.peer_id, number)
            seen = [event.payload for event in waiting(events) if isinstance(event, DirectReceived)]
            assert seen == list(range(20))
            async with bob.messages() as inbox:
                assert [(await inbox.receive()).payload for _ in range(4)] == [16, 17, 18, 19]


async def test_who_leaves_acknowledges_nothing_any_more(autojump_clock):
    async with simulated_meshes(2, seed=1, config=small(patience=3.0)) as world:
        await world.linked()
        alice, bob = world.meshes
        async with trio.open_nursery() as nursery:

            async def send():
                with pytest.raises(PeerUnreachable):
                    await alice.send(bob.peer_id, "late")

            nursery.start_soon(bob.leave)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(send)


# --- slow links -------------------------------------------------------------------------------------------------------


def sender(mesh):
    return mesh.snapshot()["subsystems"]["routing"]["direct_sender"]


async def test_a_link_that_is_slow_but_gets_on_is_waited_for_and_nothing_is_repeated(autojump_clock):
    conditions = Conditions(latency=Constant(0.05), bandwidth=12_000, loss=0.2)
    async with simulated_meshes(2, seed=1, conditions=conditions) as world:
        await world.linked()
        alice, bob = world.meshes
        async with bob.messages() as inbox:
            began = trio.current_time()
            await alice.send(bob.peer_id, bytes(1_000_000))
            assert trio.current_time() - began > 60
            assert len((await inbox.receive()).payload) == 1_000_000
        assert sender(alice)["retried"] == 0
        assert alice.peers == (bob.peer_id,)


async def test_what_was_cancelled_and_still_waits_in_the_link_holds_later_sends_back(autojump_clock):
    conditions = Conditions(latency=Constant(0.05), bandwidth=20_000)
    async with simulated_meshes(2, seed=1, conditions=conditions) as world:
        await world.linked()
        alice, bob = world.meshes
        sent = alice.snapshot()["links"]["open"][bob.peer_id]["bytes_sent"]
        async with bob.messages() as inbox, trio.open_nursery() as nursery:
            for _ in range(20):
                with trio.move_on_after(0.5):
                    await alice.send(bob.peer_id, bytes(900_000))
            load = alice.snapshot()["links"]["open"][bob.peer_id]
            assert load["bytes_sent"] + load["queued_bytes"] - sent < 3_000_000, "no more than its window"
            for number in range(3):
                nursery.start_soon(alice.send, bob.peer_id, number)
            with trio.fail_after(200):
                got = [(await inbox.receive()).payload for _ in range(5)]
            assert sorted(payload for payload in got if isinstance(payload, int)) == [0, 1, 2]
        assert sender(alice)["retried"] == sender(alice)["unreachable"] == 0


async def test_a_peer_that_takes_nothing_any_more_is_given_up(autojump_clock):
    """Its link lives, but nothing that we send gets read: there is no credit for more."""
    async with simulated_meshes(2, seed=1, config=small(patience=5.0)) as world:
        await world.linked()
        alice, bob = world.meshes
        stuck = trio.Event()

        async def deliver(*_):
            await stuck.wait()

        bob._node.keeper._deliver = deliver
        began = trio.current_time()
        with pytest.raises(PeerUnreachable, match="has not acknowledged"):
            await alice.send(bob.peer_id, "hello")
        assert 5 <= trio.current_time() - began < 12
        stuck.set()


# --- broadcasts -------------------------------------------------------------------------------------------------------


async def test_what_everybody_gets_later_has_not_failed(autojump_clock):
    """Alone for a moment, as after a sleep or with all links lost, is no failure."""
    async with simulated_meshes(3, seed=1) as world:
        await world.linked()
        alice = world.meshes[0]
        cut = world.partition([alice], world.meshes[1:], keeps_service=False)
        await world.until(lambda: not alice.peers)
        receipt = await alice.broadcast("t", "later", ttl=60)
        await trio.sleep(25)
        assert receipt.outcome is None
        world.heal(cut)
        with trio.fail_after(35):
            outcome = await receipt.settled()
        assert isinstance(outcome, Delivered)
        await world.delivered(receipt)


async def test_a_broadcast_that_nobody_takes_has_failed_when_its_ttl_is_over(autojump_clock):
    async with simulated_meshes(1, seed=1) as world:
        (alice,) = world.meshes
        receipt = await alice.broadcast("t", "nobody", ttl=20)
        with trio.move_on_after(19.9):
            await receipt.settled()
        assert receipt.outcome is None
        with trio.fail_after(0.2):
            assert isinstance(await receipt.settled(), Failed)


async def test_what_is_too_large_for_all_neighbours_fails_at_once_and_reaches_nobody_later(autojump_clock):
    large = MeshConfig(max_payload=2**22, links=LinkConfig(receive_window=2**23))
    async with simulated_meshes(2, seed=1) as world, world.peer(config=large) as big:
        await big.linked(2)
        began = trio.current_time()
        receipt = await big.broadcast("t", bytes(2**21), ttl=60)
        outcome = await receipt.settled()
        assert trio.current_time() - began < 1
        assert isinstance(outcome, Failed)
        assert "too large" in outcome.reason
        with pytest.raises(PeerRefused, match="too large"):
            await big.send(world.meshes[0].peer_id, bytes(2**21))
        async with world.peer(config=large) as other, other.subscribe("t") as news:
            await trio.sleep(30)
            assert not waiting(news)
        assert len(big.peers) == 2, "it cost no link"


async def test_a_payload_goes_to_those_who_take_it_and_not_to_others(autojump_clock):
    large = MeshConfig(max_payload=2**22, links=LinkConfig(receive_window=2**23))
    async with simulated_meshes(1, seed=1) as world, world.peer(config=large) as big:
        await big.linked()
        async with world.peer(config=large) as other, other.subscribe("t") as news:
            await big.linked(2)
            receipt = await big.broadcast("t", bytes(2**21))
            outcome = await receipt.settled()
            assert outcome.reached == 1
            assert len((await news.receive()).payload) == 2**21


# --- the DHT ----------------------------------------------------------------------------------------------------------


async def test_a_key_that_is_full_refuses_a_value_at_once_and_says_so(autojump_clock):
    config = MeshConfig(kademlia=KademliaConfig(key_values=2))
    async with simulated_meshes(4, seed=1, config=config) as world:
        await world.linked()
        await trio.sleep(5)
        for mesh in world.meshes[:2]:
            assert await mesh.dht.put("key", 1) == 4
        for _ in range(2):
            with trio.fail_after(3), pytest.raises(KeyFull, match="the key is full: 2 publishers"):
                await world.meshes[2].dht.put("key", 1)
        assert await world.meshes[1].dht.put("key", 2) == 4, "who is there may have another in its place"
        assert await world.meshes[2].dht.put("key", 1, owned=True) == 4, "nobody else fills one of its own"


@pytest.mark.parametrize("ahead", [3600, -3600])
async def test_a_clock_that_is_wrong_is_told_by_sends_and_the_dht(autojump_clock, ahead):
    async with simulated_meshes(8, seed=2, max_peers=2) as world:
        await world.linked()
        await trio.sleep(20)
        alice = world.meshes[0]
        await world.meshes[1].dht.put("key", 1)
        stranger = next(mesh for mesh in world.meshes[1:] if mesh.peer_id not in alice.peers)
        world.set_clock(alice, ahead)
        with trio.fail_after(3), pytest.raises(PeerRefused, match="clock"):
            await alice.send(stranger.peer_id, "hello")
        if ahead > 0:
            with trio.fail_after(8), pytest.raises(PeerRefused, match="clock"):
                await alice.dht.put("other", 1)


@pytest.mark.parametrize("size", [1_100_000, 2_000_000])
async def test_a_payload_that_fits_the_link_and_not_the_receiver_is_refused_too(autojump_clock, size):
    large = MeshConfig(max_payload=2**22, links=LinkConfig(receive_window=2**23))
    async with simulated_meshes(1, seed=1) as world, world.peer(config=large) as big:
        await big.linked()
        small_one, _ = world.meshes
        began = trio.current_time()
        with pytest.raises(PeerRefused, match="large"):
            await big.send(small_one.peer_id, bytes(size))
        outcome = await (await big.broadcast("t", bytes(size))).settled()
        assert isinstance(outcome, Failed)
        assert "large" in outcome.reason
        assert trio.current_time() - began < 2
        assert big.peer_count == 1


async def test_a_broadcast_whose_clock_all_refuse_fails_at_once_and_says_so(autojump_clock):
    async with simulated_meshes(3, seed=1) as world:
        await world.linked()
        alice = world.meshes[0]
        world.set_clock(alice, -3600)
        with trio.fail_after(3):
            outcome = await (await alice.broadcast("t", 1)).settled()
        assert isinstance(outcome, Failed)
        assert "clock" in outcome.reason
