"""`open_mesh` and `Mesh`, whole peers over simulated links in virtual time."""

import json
import socket

import pytest
import trio
import trio.testing

from p2pmesh import (
    ConfigError,
    Delivered,
    Failed,
    Identity,
    InvalidPayload,
    InvalidPeerId,
    JoinRefused,
    Lagged,
    LocalProtocolError,
    MeshClosed,
    MeshConfig,
    MessageDelivered,
    PayloadTooLarge,
    PeerConnected,
    PeerDisconnected,
    PeerTimedOut,
    PeerUnreachable,
    TransportDown,
    TransportUnavailable,
    TransportUp,
    open_mesh,
)
from p2pmesh.server.config import ServerConfig
from p2pmesh.transports.memory import MemoryHub, MemoryTransport
from tests.harness.cluster import Cluster, at_rest, is_connected, linked, until
from tests.harness.virtual_time import virtual_wall


async def collect(channel, into):
    async for item in channel:
        into.append(item)


async def test_two_peers_find_each_other_and_talk(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        async with bob.subscribe("chat") as chat, alice.messages() as inbox:
            await linked(alice, bob)
            assert alice.peers == (bob.peer_id,)
            receipt = await alice.broadcast("chat", {"text": "hello"})
            message = await chat.receive()
            assert (message.origin, message.payload, message.verified) == (alice.peer_id, {"text": "hello"}, True)
            outcome = await receipt.settled()
            assert isinstance(outcome, Delivered)
            assert outcome.reached == 1
            await bob.send(alice.peer_id, b"\x00bytes")
            assert (await inbox.receive()).payload == b"\x00bytes"


@pytest.mark.parametrize("count", [3, 6, pytest.param(9, marks=pytest.mark.simulation)])
async def test_everybody_gets_every_broadcast_once_and_receipts_are_exact(autojump_clock, count):
    async with Cluster(seed=count) as world:
        meshes = await world.join(count)
        await at_rest(*meshes)
        async with trio.open_nursery() as nursery:
            received = [[] for _ in meshes]
            for mesh, items in zip(meshes, received, strict=True):
                await nursery.start(_collect_broadcasts, mesh, items)
            receipts = [await mesh.broadcast("t", n) for n, mesh in enumerate(meshes)]
            outcomes = [await receipt.settled() for receipt in receipts]
            assert [outcome.reached for outcome in outcomes] == [count - 1] * count
            for n, items in enumerate(received):
                assert sorted(items) == [m for m in range(count) if m != n]
            nursery.cancel_scope.cancel()


async def _collect_broadcasts(mesh, into, *, task_status):
    async with mesh.subscribe() as messages:
        task_status.started()
        async for message in messages:
            into.append(message.payload)


@pytest.mark.parametrize("max_peers", [2, 3])
@pytest.mark.parametrize(("peers", "seconds"), [(7, 15), pytest.param(10, 30, marks=pytest.mark.simulation)])
async def test_max_peers_is_never_exceeded_and_newcomers_get_in(autojump_clock, peers, seconds, max_peers):
    async with Cluster(seed=7) as world, trio.open_nursery() as nursery:
        worst = 0

        async def watch():
            nonlocal worst
            while True:
                held = {}
                for owner, _ in world.network.links():
                    held[owner] = held.get(owner, 0) + 1
                worst = max([worst, *held.values()])
                await trio.sleep(0.02)

        nursery.start_soon(watch)
        meshes = await world.join(peers, max_peers=max_peers)
        await linked(*meshes, timeout=120)
        await trio.sleep(seconds)
        assert is_connected(meshes)
        assert worst <= max_peers
        nursery.cancel_scope.cancel()


async def test_rooms_keep_meshes_apart(autojump_clock):
    async with Cluster() as world, world.peer(1, room="a") as alice, world.peer(2, room="b") as bob:
        await trio.sleep(30)
        assert not alice.peers
        assert not bob.peers


async def test_a_leaving_peer_says_goodbye(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        async with alice.events() as events:
            async with world.peer(2) as bob:
                await linked(alice, bob)
            with trio.fail_after(1):
                while not isinstance(event := await events.receive(), PeerDisconnected):
                    pass
            assert event.peer_id == bob.peer_id
            assert not alice.peers


async def test_a_silent_peer_is_given_up_within_about_five_seconds_and_told_once(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        async with alice.events() as events:
            start = trio.current_time()
            world.network.freeze(bob.peer_id)
            await until(lambda: not alice.peers, timeout=10)
            assert 4 <= trio.current_time() - start <= 6.5
            await trio.sleep(20)
            ends = [
                event
                for event in _waiting(events)
                if isinstance(event, PeerDisconnected) and event.peer_id == bob.peer_id
            ]
            assert [type(event) for event in ends] == [PeerTimedOut]


async def test_packets_go_round_a_silent_peer_before_it_is_given_up_until_it_speaks_again(autojump_clock):
    async with Cluster() as world:
        alice, bob, carol = await world.join(3)
        await linked(alice, bob, carol)

        def shunned():
            return alice.snapshot()["subsystems"]["routing"]["forwarding_table"]["shunned"]

        assert not shunned()
        start = trio.current_time()
        world.network.freeze(bob.peer_id)
        with trio.fail_after(2):
            await alice.send(carol.peer_id, "hello")
        with trio.move_on_after(1):
            await alice.send(bob.peer_id, "are you there?")
        await until(shunned, timeout=3)
        assert bob.peer_id in alice.peers
        assert trio.current_time() - start < 2.5
        world.network.thaw(bob.peer_id)
        await until(lambda: not shunned(), timeout=1)
        assert bob.peer_id in alice.peers


def _waiting(stream):
    items = []
    while True:
        try:
            items.append(stream.receive_nowait())
        except trio.WouldBlock:
            return items


async def test_links_live_on_without_the_service_and_it_is_joined_again(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        async with alice.events() as events, bob.subscribe("t") as topic:
            world.hub.stop(abruptly=True)
            await trio.sleep(30)
            assert alice.peers == (bob.peer_id,)
            await alice.broadcast("t", "still here")
            assert (await topic.receive()).payload == "still here"
            world.hub.start()
            await trio.sleep(60)
            told = [type(event) for event in _waiting(events) if isinstance(event, TransportUp | TransportDown)]
            assert told == [TransportDown, TransportUp]
        async with world.peer(3) as carol:
            await linked(alice, bob, carol)


async def test_a_mesh_over_two_services_lives_while_one_does(autojump_clock):
    other = MemoryHub()
    async with Cluster() as world:
        both = [MemoryTransport(hub=world.hub, name="one"), MemoryTransport(hub=other, name="two")]
        other.stop()
        async with world.peer(1, transports=both) as alice, world.peer(2) as bob:
            await linked(alice, bob)
            other.start()
            world.hub.stop()
            await trio.sleep(60)
            only = [MemoryTransport(hub=other, name="two")]
            async with world.peer(3, transports=only) as carol:
                await linked(alice, bob, carol)


async def test_a_lost_link_is_replaced(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        world.network.break_link(alice.peer_id, bob.peer_id)
        await until(lambda: not alice.peers)
        await linked(alice, bob)


async def test_peers_that_join_at_the_same_moment_get_one_link_each_way(autojump_clock):
    async with Cluster() as world, trio.open_nursery() as nursery:
        meshes = []

        async def live(number):
            async with world.peer(number) as mesh:
                meshes.append(mesh)
                await trio.sleep_forever()

        for number in range(1, 7):
            nursery.start_soon(live, number)
        await until(lambda: len(meshes) == 6)
        await linked(*meshes)
        held = list(world.network.links())
        assert len(held) == len(set(held))
        nursery.cancel_scope.cancel()


async def test_connect_opens_a_link_to_a_peer_of_ones_choice_and_keeps_it(autojump_clock):
    async with Cluster() as world, world.peer(1, max_peers=1) as alice, world.peer(2) as bob:
        await linked(alice, bob)
        async with world.peer(3) as carol:
            await alice.connect(carol.peer_id)
            assert alice.peers == (carol.peer_id,)
            await trio.sleep(60)
            assert alice.peers == (carol.peer_id,)
            await alice.connect(carol.peer_id)
        with pytest.raises(PeerUnreachable), trio.fail_after(120):
            await alice.connect(world.identity(99).peer_id)


async def test_sending_to_nobody_says_so(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        with pytest.raises(PeerUnreachable, match=world.identity(50).peer_id[:8]):
            await alice.send(world.identity(50).peer_id, "hello?")
        with pytest.raises(PeerUnreachable):
            await alice.send(alice.peer_id, "hello me")
        with pytest.raises(InvalidPeerId):
            await alice.send("nobody", "hello")
        await bob.leave()
        await until(lambda: not alice.peers)
        with pytest.raises(PeerUnreachable):
            await alice.send(bob.peer_id, "gone?")


async def test_a_message_to_a_peer_without_a_link_is_brought_by_others(autojump_clock):
    async with Cluster(seed=3) as world:
        meshes = await world.join(6, max_peers=2)
        await linked(*meshes)
        await trio.sleep(30)
        alice = meshes[0]
        strangers = [mesh for mesh in meshes[1:] if mesh.peer_id not in alice.peers]
        assert strangers
        for stranger in strangers:
            async with stranger.messages() as inbox:
                with trio.fail_after(10):
                    await alice.send(stranger.peer_id, {"hello": b"there".hex()})
                message = await inbox.receive()
            assert (message.origin, message.verified) == (alice.peer_id, True)
            assert message.payload == {"hello": b"there".hex()}


async def test_bad_payloads_are_refused_before_anything_is_sent(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        async with bob.subscribe() as messages, bob.messages() as inbox:
            for send in (lambda p: alice.broadcast("t", p), lambda p: alice.send(bob.peer_id, p)):
                with pytest.raises(PayloadTooLarge, match="1048576"):
                    await send(b"x" * (1024 * 1024 + 1))
                with pytest.raises(InvalidPayload, match="set"):
                    await send({"a": {1, 2}})
                with pytest.raises(InvalidPayload):
                    await send(float("nan"))
            await trio.sleep(5)
            assert not _waiting(messages)
            assert not _waiting(inbox)


@pytest.mark.parametrize(
    "payload", [b"x" * 1024 * 1024, {"deep": [1, None, "ü", {"x": True}]}, "", b"", 0, None, "{", 1.5]
)
async def test_any_payload_up_to_the_limit_arrives_as_it_was_sent(autojump_clock, payload):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        async with bob.subscribe() as messages, bob.messages() as inbox:
            await alice.broadcast("t", payload)
            assert (await messages.receive()).payload == payload
            await alice.send(bob.peer_id, payload)
            assert (await inbox.receive()).payload == payload


async def test_a_broadcast_to_nobody_fails(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        async with alice.events() as events:
            receipt = await alice.broadcast("t", "anybody?", ttl=20)
            with trio.fail_after(30):
                outcome = await receipt.settled()
            assert isinstance(outcome, Failed)
            assert outcome.reached == 0
            assert not [event for event in _waiting(events) if isinstance(event, MessageDelivered)]


async def test_a_broadcast_reaches_those_who_come_and_ask_for_it_while_its_ttl_lasts(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        receipt = await alice.broadcast("t", "early", ttl=120)
        async with receipt.updates() as updates:
            async with world.peer(2) as bob, bob.subscribe("t", history=60) as topic:
                assert (await topic.receive()).payload == "early"
                assert await updates.receive() == 0
                assert await updates.receive() == 1


async def test_a_slow_subscriber_is_told_and_slows_nobody(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        async with bob.subscribe("t", buffer=3) as slow, bob.subscribe("t") as quick, bob.events() as events:
            for n in range(10):
                await (await alice.broadcast("t", n)).settled()
            assert [m.payload for m in _waiting(quick)] == list(range(10))
            assert [m.payload for m in _waiting(slow)] == [7, 8, 9]
            assert slow.missed == 7
            assert Lagged(7, "t") in _waiting(events)


async def test_streams_end_when_the_mesh_is_left(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        receipt = await alice.broadcast("t", "to nobody")
        async with alice.events() as events, alice.subscribe() as topic, alice.messages() as inbox:
            async with receipt.updates() as counts:
                await alice.leave()
                await alice.leave()
                with trio.fail_after(1):
                    for stream in (events, topic, inbox, counts):
                        async for _ in stream:
                            pass
        with trio.fail_after(1):
            async with receipt.updates() as counts:
                assert [count async for count in counts] == [0]


async def enter(manager):
    async with manager:
        pass


AFTER_LEAVING = {
    "broadcast": lambda mesh, peer: mesh.broadcast("t", 1),
    "send": lambda mesh, peer: mesh.send(peer, 1),
    "connect": lambda mesh, peer: mesh.connect(peer),
    "subscribe": lambda mesh, peer: enter(mesh.subscribe("t")),
    "ordered": lambda mesh, peer: enter(mesh.subscribe("t", ordered=True, history=5)),
    "events": lambda mesh, peer: enter(mesh.events()),
    "messages": lambda mesh, peer: enter(mesh.messages()),
    "dht.put": lambda mesh, peer: mesh.dht.put("key", 1),
    "dht.get": lambda mesh, peer: mesh.dht.get("key"),
    "dht.find_node": lambda mesh, peer: mesh.dht.find_node(peer),
}


@pytest.mark.parametrize("call", AFTER_LEAVING.values(), ids=AFTER_LEAVING.keys())
async def test_after_leaving_a_call_says_that_the_mesh_is_closed(autojump_clock, call):
    async with Cluster() as world:
        async with world.peer(1) as alice, world.peer(2) as bob:
            await linked(alice, bob)
            await alice.leave()
            with pytest.raises(MeshClosed):
                await call(alice, bob.peer_id)
        with pytest.raises(MeshClosed):
            await call(bob, alice.peer_id)  # whose block has ended
        assert bob.snapshot()["peer_id"] == bob.peer_id


async def test_leaving_ends_what_waits_for_receipts(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        world.network.freeze(bob.peer_id)
        receipt, silent = await alice.broadcast("t", 1), await alice.broadcast("t", 1, receipts=False)
        await alice.leave()
        with trio.fail_after(1), pytest.raises(MeshClosed, match="before this broadcast had settled"):
            await receipt.settled()  # the frozen one may have it, and bring it to others
        with pytest.raises(LocalProtocolError):
            await silent.settled()


@pytest.mark.parametrize("topic", [5, b"t", "x" * 257, "\ud800"])
async def test_what_can_t_be_a_topic_is_refused_and_harms_no_link(autojump_clock, topic):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        with pytest.raises(LocalProtocolError, match="topic"):
            await enter(alice.subscribe(topic, history=60))
        with pytest.raises(LocalProtocolError, match="topic"):
            await alice.broadcast(topic, 1)
        await trio.sleep(5)
        assert bob.snapshot()["links"]["protocol_errors"] == 0
        assert alice.peers == (bob.peer_id,)


@pytest.mark.parametrize("buffer", [0, -1, 1.5, float("nan"), "many"])
async def test_what_can_t_be_a_buffer_is_refused(autojump_clock, buffer):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        for stream in (alice.events, alice.subscribe, alice.messages):
            with pytest.raises(ConfigError, match="buffer"):
                await enter(stream(buffer=buffer))


@pytest.mark.parametrize("history", [-1, float("nan"), float("inf"), "all"])
async def test_what_can_t_be_a_time_of_history_is_refused(autojump_clock, history):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        with pytest.raises(ConfigError, match="history"):
            await enter(alice.subscribe("t", history=history))


async def test_a_snapshot_can_be_written_as_json(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        text = json.dumps(alice.snapshot())
        assert bob.peer_id in text


async def test_without_a_service_that_answers_open_mesh_says_why(autojump_clock):
    hub = MemoryHub()
    hub.stop()
    async with Cluster() as world:
        with pytest.raises(TransportUnavailable, match="stopped"):
            async with world.peer(1, transports=[MemoryTransport(hub=hub)]):
                pytest.fail("not reached")


async def test_a_service_that_refuses_us_is_a_refusal_that_says_what_to_do(autojump_clock):
    strict = MemoryTransport(
        "memory://strict", hub=MemoryHub(config=ServerConfig(join_token="sesame"), wall=virtual_wall)
    )
    down = MemoryHub()
    down.stop()
    async with Cluster() as world:
        with pytest.raises(JoinRefused, match=r"memory://strict refused us: .*token.*; set MeshConfig\.join_token"):
            async with world.peer(1, transports=[strict]):
                pytest.fail("not reached")
        with pytest.raises(TransportUnavailable, match=r"join_token.*stopped|stopped.*join_token") as caught:
            async with world.peer(1, transports=[strict, MemoryTransport(hub=down, name="down")]):
                pytest.fail("not reached")
        assert type(caught.value) is TransportUnavailable
        async with world.peer(1, transports=[strict], config=MeshConfig(join_token="sesame")):
            pass


async def test_a_server_that_is_not_there_says_how_to_start_one():
    async with Cluster() as world:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            url = f"ws://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(TransportUnavailable, match=f"can't reach {url}: .*p2pmesh serve"):
                async with open_mesh(url, dialer=world.network.dialer(world.identity(1).peer_id)):
                    pytest.fail("not reached")


async def test_peers_that_the_program_names_are_tried_too(autojump_clock):
    bob = Cluster().identity(2).peer_id
    async with Cluster() as world, world.peer(1, bootstrap_peers=[bob]) as alice:
        await until(lambda: alice.snapshot()["subsystems"]["overlay"]["link_manager"]["dialed"])


async def test_a_peer_without_links_takes_leave_of_its_service(autojump_clock):
    for seed in range(8):
        async with Cluster(seed=seed) as world, world.peer(1) as alice:
            await alice.leave()
            assert alice.snapshot()["transports"]["hub"]["sent"] == 2  # a join and a leave


async def test_a_mesh_can_be_left_by_many_at_once_and_while_calls_wait(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        ended = []

        async def talk():
            try:
                while True:
                    await alice.broadcast("t", b"x" * 200_000, receipts=False)
            except MeshClosed:
                ended.append("talk")

        async def leave():
            await alice.leave()
            ended.append("leave")

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(talk)
                await trio.sleep(1)
                for _ in range(3):
                    nursery.start_soon(leave)
        assert ended.count("talk") == 60
        await until(lambda: not list(world.network.links()))


async def test_a_peer_that_takes_smaller_payloads_keeps_its_link(autojump_clock):
    async with Cluster() as world, world.peer(1) as alice, world.peer(2, config=MeshConfig(max_payload=1000)) as bob:
        await linked(alice, bob)
        async with bob.subscribe() as topic:
            await alice.broadcast("t", b"x" * 200_000)
            with pytest.raises(PeerUnreachable):
                await alice.send(bob.peer_id, b"x" * 200_000)
            assert alice.peers == (bob.peer_id,)
            await alice.broadcast("t", "short")
            assert (await topic.receive()).payload == "short"


async def test_options_that_make_no_sense_are_refused(autojump_clock):
    with pytest.raises(ConfigError, match="transport"):
        async with open_mesh():
            pass
    with pytest.raises(ConfigError, match="ws"):
        async with open_mesh("http://localhost:8080"):
            pass
    with pytest.raises(ConfigError, match="max_peers"):
        async with open_mesh("memory://x", max_peers=0):
            pass
    for room in (5, "x" * 129, "\ud800"):
        with pytest.raises(ConfigError, match="room"):
            async with open_mesh("memory://x", room=room):
                pass
    for token in ("x" * 1025, "\ud800"):
        with pytest.raises(ConfigError, match="token"):
            async with open_mesh("memory://x", config=MeshConfig(join_token=token)):
                pass
    with pytest.raises(InvalidPeerId):
        async with open_mesh("memory://x", bootstrap_peers=["nobody"]):
            pass
    with pytest.raises(ConfigError, match="receive_window"):
        MeshConfig(max_payload=64 * 1024 * 1024)


async def test_a_second_peer_with_the_same_identity_takes_the_place_of_the_first(autojump_clock):
    async with Cluster() as world:
        identity = world.identity(1)
        async with world.peer(1) as first, first.events() as events:
            await trio.sleep(1)
            async with world.peer(11, identity=identity):
                await trio.sleep(3)
                down = [event for event in _waiting(events) if isinstance(event, TransportDown)]
                assert len(down) == 1
                assert "joined with your ID" in down[0].reason or "id" in down[0].reason


async def test_unverified_peers_are_let_in_only_where_that_is_allowed(autojump_clock):
    stranger = Identity.unverified("0" * 39 + "1")
    async with Cluster() as world, world.peer(1) as alice:
        async with world.peer(2, identity=stranger) as bob:
            await trio.sleep(30)
            assert not alice.peers
            assert not bob.peers
    async with Cluster() as world, world.peer(1, allow_unverified=True) as alice:
        async with world.peer(2, identity=stranger, allow_unverified=True) as bob, alice.events() as events:
            await linked(alice, bob)
            assert PeerConnected(bob.peer_id, verified=False) in _waiting(events)


async def test_the_body_s_error_comes_out_and_nothing_is_left(autojump_clock):
    async with Cluster() as world:
        with pytest.RaisesGroup(ValueError):
            async with world.peer(1):
                raise ValueError
        await trio.sleep(1)
        assert not list(world.network.links())


@pytest.mark.parametrize("instant", [n * 0.004 for n in range(40)] + [0.5, 1, 2, 5])
async def test_cancelled_at_any_instant_nothing_is_left(autojump_clock, instant):
    async with Cluster(seed=1) as world, world.peer(1) as alice:
        start = trio.current_time()
        with trio.move_on_after(instant):
            async with world.peer(2) as bob, bob.subscribe() as messages:
                await linked(alice, bob)
                await bob.broadcast("t", b"x" * 300_000)
                await bob.send(alice.peer_id, b"y" * 300_000)
                await messages.receive()
        assert trio.current_time() - start < instant + 1  # nobody waits for what can't come any more
        await until(lambda: not alice.peers, timeout=10)
        assert not list(world.network.links())
        assert world.network.attempts() <= 1  # alice may be trying to reach bob
    assert not world.network.attempts()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living <= 4
