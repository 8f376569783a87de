"""Peers that the application blocks or disconnects, and broadcasts that its validators turn down."""

import logging
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from p2pmesh import (
    BlockListError,
    ConfigError,
    MeshClosed,
    MeshConfig,
    MessageReceived,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    PeerUnreachable,
    Verdict,
    open_mesh,
)
from p2pmesh.simulation import simulated_meshes
from tests.harness.cluster import Cluster, at_rest, linked, until


def waiting(stream):
    items = []
    while True:
        try:
            items.append(stream.receive_nowait())
        except trio.WouldBlock:
            return items


def payloads(stream):
    return [message.payload for message in waiting(stream)]


@asynccontextmanager
async def meshes(count=5, max_peers=3, **options):
    async with simulated_meshes(count, seed=1, max_peers=max_peers, **options) as world:
        await at_rest(*world.meshes)
        yield world


# --- block ------------------------------------------------------------------------------------------------------------


async def test_the_link_to_a_peer_that_is_blocked_is_closed_and_never_comes_again(autojump_clock):
    async with meshes(6) as world:
        victim = world.meshes[0]
        bully = next(mesh for mesh in world.meshes if mesh.peer_id == victim.peers[0])
        async with victim.events() as events, bully.events() as theirs:
            await victim.block(bully.peer_id)
            assert bully.peer_id not in victim.peers
            await trio.sleep(300)
            ends = [e for e in waiting(events) if getattr(e, "peer_id", None) == bully.peer_id]
            assert [type(e) for e in ends] == [PeerDisconnected]
            assert "blocked" in ends[0].reason
            assert not any("blocked" in str(e) for e in waiting(theirs)), "nobody tells it"
        assert victim.blocked == (bully.peer_id,)
        assert world.islands() == 1
        assert victim.peers
        assert bully.peers


async def test_a_blocked_peer_finds_no_way_in(autojump_clock):
    async with meshes(5) as world:
        victim, bully = world.meshes[0], world.meshes[3]
        await victim.block(bully.peer_id)
        with pytest.raises(PeerUnreachable):
            await bully.connect(victim.peer_id)
        with pytest.raises(PeerRefused, match="takes nothing from this peer"):
            await bully.send(victim.peer_id, "hey")
        async with victim.messages() as inbox:
            await world.meshes[2].send(victim.peer_id, "hello")
            assert payloads(inbox) == ["hello"]
        assert bully.peer_id not in victim.peers


@pytest.mark.parametrize("call", ["send", "connect"])
async def test_a_blocked_peer_is_not_called_either(autojump_clock, call):
    async with meshes(4) as world:
        victim, bully, *_ = world.meshes
        await victim.block(bully.peer_id)
        calls = {"send": lambda: victim.send(bully.peer_id, 1), "connect": lambda: victim.connect(bully.peer_id)}
        before = trio.current_time()
        with pytest.raises(PeerUnreachable, match="unblock"):
            await calls[call]()
        assert trio.current_time() == before


async def test_what_a_blocked_peer_broadcasts_is_not_delivered_and_nobody_is_blamed(autojump_clock):
    async with meshes(8) as world:
        victim, bully, other = world.meshes[0], world.meshes[4], world.meshes[5]
        await victim.block(bully.peer_id)
        await at_rest(*world.meshes)
        opened = victim.snapshot()["links"]["opened"]
        async with victim.subscribe() as heard, other.subscribe() as elsewhere:
            for n in range(5):
                await bully.broadcast("t", n)
                await other.broadcast("t", -n)
                await trio.sleep(1)
            await trio.sleep(60)
            assert payloads(heard) == [0, -1, -2, -3, -4]
            assert payloads(elsewhere) == [0, 1, 2, 3, 4]
        after = victim.snapshot()
        assert after["moderation"]["blocked"] == 5, "each is looked at once, whoever else has it"
        assert after["links"]["opened"] == opened
        assert not any(mesh.snapshot()["links"]["protocol_errors"] for mesh in world.meshes)


async def test_a_blocked_peer_does_not_speak_through_one_that_passes_it_on(autojump_clock):
    """A line: what comes by the one in the middle goes no further than to it."""
    async with Cluster() as world, world.peer(1, max_peers=1) as a, world.peer(2, max_peers=2) as b:
        await linked(a, b)
        async with world.peer(3, max_peers=1) as c:
            await linked(a, b, c)
            await b.block(a.peer_id)
            await until(lambda: a.peer_id not in b.peers)
            assert c.peer_id in b.peers
            async with c.subscribe() as heard:
                await b.broadcast("t", "mine")
                await trio.sleep(5)
                assert payloads(heard) == ["mine"]


async def test_who_is_unblocked_may_come_again(autojump_clock):
    async with meshes(3) as world:
        victim, bully, _ = world.meshes
        await victim.block(bully.peer_id)
        await trio.sleep(30)
        await bully.broadcast("t", "before")
        await trio.sleep(5)
        await victim.unblock(bully.peer_id)
        async with victim.subscribe() as heard:
            await victim.connect(bully.peer_id)
            await bully.broadcast("t", "after")
            await trio.sleep(60)
            assert payloads(heard) == ["after"]
        assert not victim.blocked


async def test_a_blocked_neighbour_on_the_ring_costs_nothing_at_rest(autojump_clock):
    """Its place on the ring is next to ours, and neither of us may look for it for ever."""
    async with meshes(8) as world:
        ring = sorted(world.meshes, key=lambda mesh: mesh.peer_id)
        await ring[0].block(ring[1].peer_id)
        await trio.sleep(120)

        def sent():
            return [sum(link["packets_sent"] for link in mesh.snapshot()["links"]["open"].values()) for mesh in ring]

        def dialed():
            return sum(mesh.snapshot()["links"]["attempts"] for mesh in ring)

        before, dials = sent(), dialed()
        await trio.sleep(300)
        assert dialed() - dials < 100, "they go on to try, as any peer with a slot to spare"
        assert max(b - a for a, b in zip(before, sent(), strict=True)) < 4 * 300
        for mesh in ring[2:]:
            with trio.fail_after(10):
                await mesh.send(ring[0].peer_id, 1)
                await ring[0].send(mesh.peer_id, 1)
            with trio.fail_after(10):
                await mesh.send(ring[1].peer_id, 1)


async def test_an_attempt_under_way_ends_when_its_peer_is_blocked(autojump_clock):
    async with meshes(6, max_peers=2) as world:
        victim = world.meshes[0]
        bully = next(mesh for mesh in world.meshes[1:] if mesh.peer_id not in victim.peers)
        errors = []

        async def connect():
            try:
                await victim.connect(bully.peer_id)
            except PeerUnreachable as error:
                errors.append(str(error))

        world.freeze(bully)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            await trio.sleep(0.5)
            with trio.fail_after(1):
                await victim.block(bully.peer_id)
        assert errors
        assert "blocked" in errors[0]
        world.thaw(bully)
        await trio.sleep(60)
        assert bully.peer_id not in victim.peers


async def test_one_cant_block_oneself(autojump_clock):
    async with meshes(1) as world:
        with pytest.raises(ConfigError, match="itself"):
            await world.meshes[0].block(world.meshes[0].peer_id)


async def test_a_full_block_list_refuses_more_and_forgets_nobody(autojump_clock):
    async with meshes(1, config=MeshConfig(max_blocked=2)) as world:
        mesh = world.meshes[0]
        for digit in "ab":
            await mesh.block(digit * 40)
        await mesh.block("a" * 40)
        with pytest.raises(BlockListError, match="max_blocked"):
            await mesh.block("c" * 40)
        assert mesh.blocked == ("a" * 40, "b" * 40)


async def test_a_block_list_with_a_path_outlives_the_mesh(autojump_clock, tmp_path):
    path = tmp_path / "blocked"
    async with simulated_meshes(0, seed=1) as world:
        async with world.peer(block_list=path) as mesh:
            assert not path.exists()
            await mesh.block("a" * 40)
            await mesh.block("b" * 40)
            await mesh.unblock("a" * 40)
        async with world.peer(block_list=str(path)) as mesh:
            assert mesh.blocked == ("b" * 40,)
    assert [file.name for file in tmp_path.iterdir()] == ["blocked"]


async def test_a_blocked_peer_is_blocked_from_the_start(autojump_clock, tmp_path):
    async with Cluster() as world, world.peer(1) as bully, world.peer(2) as other:
        (tmp_path / "blocked").write_text(bully.peer_id)
        async with world.peer(3, block_list=tmp_path / "blocked") as victim, victim.events() as events:
            await linked(victim, other)
            await trio.sleep(60)
            assert {e.peer_id for e in waiting(events) if isinstance(e, PeerConnected)} <= {other.peer_id}


async def test_a_damaged_block_list_is_told_before_anything_is_joined(autojump_clock, tmp_path):
    (tmp_path / "blocked").write_text("a" * 40 + "\nnobody\n")
    with pytest.raises(BlockListError, match=r"^the block list .* line 2 .*remove it$"):
        async with open_mesh("memory://nowhere", block_list=tmp_path / "blocked"):
            pass


async def test_a_list_that_cant_be_written_holds_all_the_same(autojump_clock, tmp_path):
    async with meshes(3) as world, world.peer(block_list=tmp_path / "gone" / "blocked") as mesh:
        await mesh.linked()
        peer = mesh.peers[0]
        with pytest.raises(BlockListError, match="can't write"):
            await mesh.block(peer)
        assert peer in mesh.blocked
        assert peer not in mesh.peers


@pytest.mark.parametrize("call", ["block", "unblock", "disconnect"])
async def test_after_leave_nobody_is_blocked(autojump_clock, call):
    async with meshes(2) as world:
        mesh, other = world.meshes
        await mesh.leave()
        with pytest.raises(MeshClosed):
            await getattr(mesh, call)(other.peer_id)
        with pytest.raises(MeshClosed):
            mesh.validate("t", None)


@pytest.mark.parametrize("call", ["block", "disconnect"])
async def test_leaving_ends_the_wait_for_a_link_to_close(autojump_clock, call):
    async with meshes(2) as world:
        mesh, other = world.meshes
        world.freeze(other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(mesh, call), other.peer_id)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                await mesh.leave()


# --- disconnect -------------------------------------------------------------------------------------------------------


async def test_disconnect_closes_a_link_and_gives_up_what_connect_wanted(autojump_clock):
    async with meshes(8) as world:
        mesh = world.meshes[0]
        other = next(peer for peer in world.meshes[1:] if peer.peer_id not in mesh.peers)
        await mesh.connect(other.peer_id)
        assert other.peer_id in mesh.snapshot()["subsystems"]["overlay"]["pinned"]
        async with mesh.events() as events:
            await mesh.disconnect(other.peer_id)
            assert other.peer_id not in mesh.peers
            assert other.peer_id not in mesh.snapshot()["subsystems"]["overlay"]["pinned"]
            ends = [e for e in waiting(events) if isinstance(e, PeerDisconnected)]
            assert [(e.peer_id, e.reason) for e in ends] == [(other.peer_id, "we were told to disconnect")]
        await mesh.connect(other.peer_id)
        assert other.peer_id in mesh.peers


async def test_who_is_disconnected_may_come_again(autojump_clock):
    async with meshes(2) as world:
        mesh, other = world.meshes
        await mesh.disconnect(other.peer_id)
        assert not mesh.peers
        await world.linked(within=60)


async def test_to_disconnect_a_stranger_does_nothing(autojump_clock):
    async with meshes(2) as world:
        mesh, other = world.meshes
        await mesh.disconnect("f" * 40)
        await mesh.disconnect(mesh.peer_id)
        assert mesh.peers == (other.peer_id,)


# --- validators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Verdict.IGNORE, Verdict.REJECT])
async def test_what_a_validator_turns_down_is_neither_delivered_nor_passed_on(autojump_clock, verdict):
    """A line of three: the one in the middle judges for the one behind it."""
    async with Cluster() as world, world.peer(1, max_peers=1) as a, world.peer(2, max_peers=2) as b:
        await linked(a, b)
        async with world.peer(3, max_peers=1) as c:
            await linked(a, b, c)
            b.validate("t", lambda message: verdict if message.payload == "bad" else Verdict.ACCEPT)
            async with b.subscribe() as middle, c.subscribe() as behind:
                for payload in ("good", "bad", "better"):
                    await a.broadcast("t", payload)
                await a.broadcast("another", "bad")
                await trio.sleep(90)
                assert payloads(middle) == ["good", "better", "bad"]
                assert payloads(behind) == ["good", "better", "bad"]
            counts = b.snapshot()["moderation"]
            assert counts["accepted"] == 2
            assert counts["ignored" if verdict is Verdict.IGNORE else "rejected"] == 1
            assert set(a.peers) == {b.peer_id}, "and the link stays"


@pytest.mark.parametrize(("verdict", "below"), [(Verdict.IGNORE, False), (Verdict.REJECT, True)])
async def test_a_rejection_costs_the_score_of_the_neighbour_and_of_the_origin(autojump_clock, verdict, below):
    async with Cluster() as world, world.peer(1, max_peers=1) as a, world.peer(2, max_peers=2) as b:
        await linked(a, b)
        async with world.peer(3, max_peers=1) as c:
            await linked(a, b, c)
            c.validate("t", lambda message: verdict)
            await a.broadcast("t", "bad")
            await a.broadcast("fine", "good")
            await trio.sleep(5)
            score = c.snapshot()["subsystems"]["overlay"]["scores"][b.peer_id]
            assert (score["score"] < 0) == below
            assert score["first"] > 0.9
            assert score["faults"] == pytest.approx(int(below), abs=0.1)
            assert b.peer_id in c.peers, "one is no reason to part"
            await b.leave()
            await until(lambda: a.peer_id in c.peers)
            score = c.snapshot()["subsystems"]["overlay"]["scores"][a.peer_id]
            assert (score["score"] < 0) == below


async def test_a_validator_sees_each_broadcast_once_and_as_it_is_delivered(autojump_clock):
    async with meshes(8) as world:
        mesh, other = world.meshes[0], world.meshes[5]
        seen = []
        mesh.validate("t", lambda message: seen.append(message) or Verdict.IGNORE)
        receipt = await other.broadcast("t", {"n": 1})
        await trio.sleep(90)
        (message,) = seen
        assert isinstance(message, MessageReceived)
        assert (message.origin, message.payload, message.verified) == (other.peer_id, {"n": 1}, True)
        assert message.message_id == receipt.message_id
        await mesh.broadcast("t", "mine")
        assert len(seen) == 1, "our own are not judged"


BROKEN = {
    "raises": lambda message: 1 / 0,
    "quotes": lambda message: {}[message.payload],
    "says nothing": lambda message: None,
    "says yes": lambda message: True,
    "a text": lambda message: "accept",
}


@pytest.mark.parametrize("validator", BROKEN.values(), ids=BROKEN.keys())
async def test_a_validator_that_fails_ignores_and_is_told_once_without_the_payload(autojump_clock, caplog, validator):
    caplog.set_level(logging.DEBUG)
    async with meshes(3) as world:
        mesh, other, _ = world.meshes
        mesh.validate("t", validator)
        async with mesh.subscribe() as heard:
            for n in range(3):
                await other.broadcast("t", f"secret {n}")
            await trio.sleep(30)
            assert not waiting(heard)
        counts = mesh.snapshot()["moderation"]
        assert (counts["failed"], counts["ignored"]) == (3, 3)
        assert set(mesh.peers) == {peer.peer_id for peer in world.meshes[1:]}
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "validator" in told[0].getMessage()
    assert "secret" not in caplog.text


async def test_a_validator_is_replaced_and_removed(autojump_clock):
    async with meshes(2) as world:
        mesh, other = world.meshes
        mesh.validate("t", lambda message: Verdict.IGNORE)
        mesh.validate("t", lambda message: Verdict.ACCEPT)
        async with mesh.subscribe() as heard:
            await other.broadcast("t", 1)
            mesh.validate("t", None)
            await other.broadcast("t", 2)
            await trio.sleep(5)
            assert payloads(heard) == [1, 2]
        assert mesh.snapshot()["moderation"]["topics_validated"] == 0


async def judge(message):
    return Verdict.ACCEPT


@pytest.mark.parametrize("odd", [judge, 5, "accept", Verdict.ACCEPT])
async def test_what_is_no_plain_function_is_no_validator(autojump_clock, odd):
    async with meshes(1) as world:
        with pytest.raises(ConfigError, match="validator"):
            world.meshes[0].validate("t", odd)


# --- values of the DHT ------------------------------------------------------------------------------------------------


async def test_values_of_a_blocked_peer_are_neither_kept_nor_found(autojump_clock):
    async with meshes(6) as world:
        victim, bully, other = world.meshes[0], world.meshes[2], world.meshes[4]
        await bully.dht.put("its", "bad")
        await other.dht.put("both", "good")
        await bully.dht.put("both", "bad")
        await trio.sleep(5)
        assert victim.snapshot()["subsystems"]["kademlia"]["store"]["values"] == 3
        await victim.block(bully.peer_id)
        assert victim.snapshot()["subsystems"]["kademlia"]["store"]["values"] == 1
        await bully.dht.put("later", "bad")
        with trio.fail_after(5):
            for key in ("its", "later"):
                assert await victim.dht.get(key) is None
                assert await victim.dht.get(key, publisher=bully.peer_id) is None
                assert not await victim.dht.get_all(key)
            assert (await victim.dht.get("both")).value == "good"
            assert list(await victim.dht.get_all("both")) == [other.peer_id]
        assert victim.snapshot()["subsystems"]["kademlia"]["store"]["values"] == 1
        assert bully.peer_id not in await victim.dht.find_node(bully.peer_id)
        for mesh in (other, bully):
            assert (await mesh.dht.get("its")).value == "bad", "others have not blocked it"
            assert (await mesh.dht.get("later")).value == "bad"
        await victim.unblock(bully.peer_id)
        assert (await victim.dht.get("its")).value == "bad"
