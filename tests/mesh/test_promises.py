"""What a call's return means, and what events promise: whole peers over simulated links in virtual time."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import trio

from p2pmesh import ConfigError, MeshClosed, PeerConnected, PeerDisconnected, PeerEvicted, PeerTimedOut
from p2pmesh.simulation import simulated_meshes
from tests.harness.cluster import Cluster

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
