"""Wall clocks that are wrong, or are set while a mesh runs: what others refuse for that is told as what it is."""

import pytest
import trio

from p2pmesh import PeerRefused, PeerUnreachable
from tests.harness.cluster import Cluster, at_rest, linked


async def crowd(world, offset, count=4):
    """One peer whose clock is fast by so much, and so many others whose clocks are right."""
    others = await world.join(count)
    (mesh,) = await world.simulated.join(identity=world.identity(99), clock_offset=offset)
    await at_rest(*others, mesh)
    return mesh, others


@pytest.mark.parametrize(("offset", "said"), [(3600.0, "it is of 3600 s in the future"), (-3600.0, "it has expired")])
async def test_the_dht_says_that_our_clock_is_wrong_and_goes_on_once_it_is_right(autojump_clock, offset, said):
    async with Cluster() as world:
        mesh, others = await crowd(world, offset)
        with pytest.raises(PeerRefused, match=f"{said}, by the clock here"):
            await mesh.dht.put("key", "wrong", ttl=60)
        world.simulated.set_clock(mesh, 0.0)
        assert await mesh.dht.put("key", "right") > 1
        assert (await others[0].dht.get("key")).value == "right"


@pytest.mark.parametrize("back", [0.5, 200.0])
async def test_a_value_that_is_put_after_the_clock_was_set_back_replaces_the_one_before(autojump_clock, back):
    async with Cluster() as world:
        others = await world.join(4)
        identity = world.identity(99)
        async with world.peer(99, clock_offset=0.0) as mesh:
            await linked(mesh, *others)
            await mesh.dht.put("key", "first")
        async with world.peer(99, clock_offset=-back) as mesh:
            await linked(mesh, *others)
            assert await mesh.dht.put("key", "second") == 5
        found = await others[0].dht.get("key", publisher=identity.peer_id)
        assert found.value == "second"


async def test_a_send_over_others_says_that_the_clocks_differ(autojump_clock):
    async with Cluster() as world:
        mesh, others = await crowd(world, 3600.0, 8)
        far = next(other.peer_id for other in others if other.peer_id not in mesh.peers)
        with pytest.raises(PeerUnreachable, match=r"3600 s .*clock"), trio.fail_after(60):
            await mesh.send(far, "text")
        world.simulated.set_clock(mesh, 0.0)
        with trio.fail_after(60):
            await mesh.send(far, "text")


async def test_where_most_are_no_neighbours_the_dht_tells_what_they_refuse(autojump_clock):
    async with Cluster() as world:
        mesh, others = await crowd(world, 3600.0, 12)
        await others[0].dht.put("key", "value")
        with pytest.raises(PeerUnreachable, match="clock"):
            await mesh.dht.put("mine", "wrong")
        world.simulated.set_clock(mesh, 0.0)
        assert (await mesh.dht.get("key")).value == "value"
