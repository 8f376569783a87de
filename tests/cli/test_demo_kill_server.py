"""The signaling service dies for good: the mesh stays, heals and grows without it."""

from __future__ import annotations

import functools

import pytest
import trio

from p2pmesh.simulation import simulate, simulated_meshes
from p2pmesh.transports.memory import MemoryHub, MemoryTransport


def simulated(seed=1):
    """Runs an async test in virtual time, with its tasks in the order of a seed."""

    def decorate(test):
        @functools.wraps(test)
        def run(**arguments):
            simulate(functools.partial(test, **arguments), seed=seed)

        return run

    return decorate


def neighbours(world):
    return {mesh.peer_id: set(mesh.peers) for mesh in world.meshes}


def signaling(mesh):
    return mesh.snapshot()["subsystems"]["signaling"]


async def everybody_hears(world, sender, payload):
    receipt = await sender.broadcast("t", payload)
    await world.delivered(receipt, within=20)


async def settled(world, quiet=20):
    """Until the ring is closed and no link has come or gone for a while."""
    links, since = {}, 0.0

    def calm():
        nonlocal links, since
        before, links = links, neighbours(world)
        if links != before:
            since = trio.current_time()
        return trio.current_time() - since >= quiet and not world.ring_gaps() and world.islands() == 1

    await world.until(calm, within=600)


@simulated()
@pytest.mark.parametrize("abruptly", [False, pytest.param(True, marks=pytest.mark.simulation)])
@pytest.mark.parametrize(("peers", "seconds"), [(6, 40), pytest.param(8, 120, marks=pytest.mark.simulation)])
async def test_without_the_service_links_stay_and_everything_still_arrives(peers, seconds, abruptly):
    async with simulated_meshes(peers, seed=3, max_peers=3) as world:
        await world.linked()
        await settled(world, quiet=seconds / 2)
        before = neighbours(world)
        world.service_down(abruptly=abruptly)
        await trio.sleep(seconds)
        assert neighbours(world) == before
        await everybody_hears(world, world.meshes[0], "still here")
        for sender in world.meshes:
            for receiver in world.meshes:
                if sender is not receiver:
                    with trio.fail_after(10):
                        await sender.send(receiver.peer_id, f"from {sender.peer_id}")
        assert all("joined" not in signaling(mesh)["services"].values() for mesh in world.meshes)


@simulated()
async def test_without_the_service_a_peer_that_loses_a_link_makes_a_new_one_through_the_mesh():
    async with simulated_meshes(8, seed=4, max_peers=4) as world:
        await world.linked()
        await settled(world)
        world.service_down()
        await trio.sleep(5)
        loser = world.meshes[2]
        before = signaling(loser)
        world.break_link(loser, loser.peers[0])
        await trio.sleep(1)
        await settled(world)
        assert all(len(mesh.peers) >= 2 for mesh in world.meshes)
        offers = sum(signaling(mesh)["delivery"]["offers"]["mesh"] for mesh in world.meshes)
        assert offers > 0
        assert signaling(loser)["delivery"]["offers"]["service"] == before["delivery"]["offers"]["service"]
        await everybody_hears(world, loser, "healed")


@simulated()
async def test_without_the_service_the_ring_closes_over_a_peer_that_crashed():
    async with simulated_meshes(7, seed=5, max_peers=4) as world:
        await world.linked()
        await settled(world)
        world.service_down()
        world.crash(3)
        await trio.sleep(10)
        await world.until(lambda: not world.ring_gaps() and world.islands() == 1)
        await everybody_hears(world, world.meshes[0], "closed")


@simulated()
async def test_a_newcomer_with_one_link_needs_no_service_for_the_rest():
    """Its own service knows a single member, and dies as soon as the two are linked."""
    elsewhere = MemoryHub()
    async with simulated_meshes(7, seed=6, max_peers=4) as world:
        both = (MemoryTransport(hub=world.hub), MemoryTransport("memory://elsewhere", hub=elsewhere))
        async with world.peer(*both, max_peers=4) as member:
            await world.linked()
            await settled(world)
            async with world.peer(both[1], max_peers=4) as newcomer:
                await world.until(lambda: newcomer.peers, within=10)
                assert newcomer.peers == (member.peer_id,)
                elsewhere.stop()
                await world.until(lambda: not world.ring_gaps() and len(newcomer.peers) > 1)
                assert "joined" not in signaling(newcomer)["services"].values()
                assert sum(signaling(mesh)["delivery"]["offers"]["service"] for mesh in (newcomer, member)) <= 6
                await everybody_hears(world, newcomer, "I am new")
                far = next(mesh for mesh in world.meshes if mesh.peer_id not in {*newcomer.peers, newcomer.peer_id})
                with trio.fail_after(10):
                    await far.send(newcomer.peer_id, "welcome")
                    await newcomer.send(far.peer_id, "thank you")


@simulated()
async def test_the_service_is_joined_again_when_it_comes_back():
    async with simulated_meshes(4, seed=7, max_peers=3) as world:
        await world.linked()
        world.service_down()
        await trio.sleep(60)
        world.service_up()
        await world.until(
            lambda: all(list(signaling(mesh)["services"].values()) == ["joined"] for mesh in world.meshes), within=60
        )
        (newcomer,) = await world.join(1, max_peers=3)
        await world.linked(newcomer)
