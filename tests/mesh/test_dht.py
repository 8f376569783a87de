"""`Mesh.dht` as a program uses it, on simulated links."""

import pytest
import trio

from p2pmesh import ConfigError, DhtValue, InvalidPeerId, KademliaConfig, MeshClosed, MeshConfig, PayloadTooLarge
from p2pmesh.keyspace import xor_distance
from tests.harness.cluster import Cluster, linked

KEY = "the answer"


async def test_what_one_mesh_puts_another_gets(autojump_clock):
    async with Cluster(seed=5) as world:
        meshes = await world.join(6, max_peers=3)
        await linked(*meshes)
        await trio.sleep(20)
        assert await meshes[0].dht.put(KEY, {"is": [42]}) == 6
        for mesh in meshes:
            found = await mesh.dht.get(KEY)
            assert isinstance(found, DhtValue)
            assert (found.value, found.publisher) == ({"is": [42]}, meshes[0].peer_id)
            assert await mesh.dht.get(KEY, publisher=mesh.peer_id) == (found if mesh is meshes[0] else None)
        assert await meshes[1].dht.get("another") is None
        nearest = await meshes[2].dht.find_node(meshes[4].peer_id)
        everybody = [mesh.peer_id for mesh in meshes]
        assert list(nearest) == sorted(everybody, key=lambda peer: xor_distance(peer, meshes[4].peer_id))
        assert meshes[3].snapshot()["subsystems"]["kademlia"]["store"]["values"] == 1


async def test_owned_and_shared_keys_and_taking_values_back(autojump_clock):
    async with Cluster(seed=5) as world:
        meshes = await world.join(6, max_peers=3)
        await linked(*meshes)
        await trio.sleep(20)
        alice, bob, carol = meshes[:3]
        for mesh, value in ((alice, "alice's"), (bob, "bob's")):
            await mesh.dht.put(KEY, value)
            await mesh.dht.put(KEY, f"{value} own", owned=True)
        for mesh in meshes:
            assert (await mesh.dht.get(KEY)).value == "alice's", "the first"
            assert (await mesh.dht.get(KEY, owner=bob.peer_id)).value == "bob's own"
            assert {who: found.value for who, found in (await mesh.dht.get_all(KEY)).items()} == {
                alice.peer_id: "alice's",
                bob.peer_id: "bob's",
            }
        assert await carol.dht.get(KEY, owner=carol.peer_id) is None
        assert await alice.dht.delete(KEY) == 6
        assert await bob.dht.delete(KEY, owned=True) == 6
        assert (await carol.dht.get(KEY)).value == "bob's"
        assert await carol.dht.get(KEY, owner=bob.peer_id) is None
        assert (await carol.dht.get(KEY, owner=alice.peer_id)).value == "alice's own"


async def test_k_is_an_option_of_open_mesh(autojump_clock):
    async with Cluster(seed=5) as world:
        meshes = await world.join(6, max_peers=3, kademlia_k=2)
        await linked(*meshes)
        await trio.sleep(20)
        assert await meshes[0].dht.put(KEY, b"bytes") == 2
        assert len(await meshes[0].dht.find_node("0" * 40)) == 2


async def test_the_largest_value_crosses_the_mesh(autojump_clock):
    async with Cluster(seed=5) as world:
        meshes = await world.join(5, max_peers=2)
        await linked(*meshes)
        await trio.sleep(90)
        value = bytes(range(256)) * 64
        assert await meshes[0].dht.put(KEY, value) == 5
        assert (await meshes[3].dht.get(KEY, publisher=meshes[0].peer_id)).value == value


async def test_bad_calls_are_refused(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        with pytest.raises(PayloadTooLarge):
            await alice.dht.put(KEY, "x" * 16_385)
        for ttl in (0, float("nan"), "a day"):
            with pytest.raises(ConfigError, match="ttl"):
                await alice.dht.put(KEY, "x", ttl=ttl)
        with pytest.raises(ConfigError):
            await alice.dht.get(17)
        with pytest.raises(InvalidPeerId):
            await alice.dht.get(KEY, publisher="bob")
        with pytest.raises(InvalidPeerId):
            await alice.dht.find_node("bob")
        with pytest.raises(ConfigError, match="not both"):
            await alice.dht.get(KEY, owner=bob.peer_id, publisher=bob.peer_id)
        for wrong in ("yes", 1):
            with pytest.raises(ConfigError, match="owned"):
                await alice.dht.delete(KEY, owned=wrong)


async def test_a_mesh_may_do_without_a_dht(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2, config=MeshConfig(kademlia=KademliaConfig(enabled=False)))
        await linked(alice, bob)
        with pytest.raises(ConfigError, match="enabled"):
            await alice.dht.get(KEY)


async def test_after_leaving_calls_raise(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        await alice.leave()
        with pytest.raises(MeshClosed):
            await alice.dht.get(KEY)


async def test_a_cancelled_call_leaves_nothing_behind(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        with trio.move_on_after(0.001) as scope:
            await alice.dht.get(KEY)
        assert scope.cancelled_caught
        await trio.sleep(0.1)
        stats = alice.snapshot()["subsystems"]["kademlia"]
        assert (stats["calls"]["open"], stats["lookups"]["running"]) == (0, 0)
