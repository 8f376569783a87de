"""A peer of the original and one of ours, or a few: links, messages, refusals and goodbyes, in virtual time."""

import functools
import json

import pytest
import trio

from p2pmesh import MessageReceived, PeerDisconnected, PeerEvicted, PeerTimedOut, PeerUnreachable
from p2pmesh.simulation import simulate, simulated_meshes
from tests.harness.original_gossip import PROBE
from tests.harness.original_network import at_the_originals_server, mixed, originals
from tests.harness.original_peer import Entry, State

SMALLER, LARGER = "00", "ff"


def simulated(test):
    """Runs an async test in virtual time, with its tasks in the order of a seed."""

    @functools.wraps(test)
    def run(**arguments):
        simulate(functools.partial(test, **arguments), seed=1)

    return run


async def linked(world, *originals_):
    """Wait until each of the original's peers has a link that its other side knows of."""
    for one in originals_:
        await world.until(lambda one=one: any(one.peer_id in mesh.peers for mesh in world.meshes) and one.neighbours)


def listen(world):
    """What the applications of our peers get: pairs of their number and the message."""
    heard = []
    world.observe(lambda number, event: heard.append((number, event)) if isinstance(event, MessageReceived) else None)
    return heard


def unanswered(js):
    """Whom this peer of the original has sent an offer, seconds ago, and has heard nothing from."""
    offers = {peer: entry.since for peer, entry in js.entries.items() if entry.state is State.OFFERING}
    return [peer for peer, since in offers.items() if since < js.now - 3.0]


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["ours", "original's"])
@pytest.mark.parametrize("first", ["ours", "original"])
@pytest.mark.parametrize("start", [SMALLER, LARGER])
@simulated
async def test_ours_and_the_originals_link_whoever_is_smaller_and_whoever_comes_first(start, first, server):
    async with simulated_meshes(0, seed=1, config=mixed()) as world, originals(world) as crowd:
        if server == "original's":
            at_the_originals_server(world)
        if first == "ours":
            await world.join(config=mixed())
            await trio.sleep(3)
        js = await crowd.join(start)
        if first == "original":
            await trio.sleep(3)
            await world.join(config=mixed())
        began = trio.current_time()
        await linked(world, js)
        assert trio.current_time() - began < 5
        (mesh,) = world.meshes
        assert mesh.peers == (js.peer_id,)
        assert js.neighbours == [mesh.peer_id]
        await trio.sleep(120)
        assert mesh.peers == (js.peer_id,), "it is a link that stays"
        assert not js.zombies


@pytest.mark.parametrize("seed", [3, 4, 5])
@simulated
async def test_none_of_the_originals_is_left_alone_by_a_mesh_that_is_full(seed):
    """Ours take each other's slots first, and no link is old enough yet to be given up for a newcomer of ours."""
    async with simulated_meshes(6, seed=seed, config=mixed()) as world, originals(world) as crowd:
        some = [await crowd.join(f"{place * 85:02x}") for place in range(3)]
        await world.until(lambda: all(js.neighbours for js in some), within=3)
        await trio.sleep(30)
        lonely = [js for js in some if not js.neighbours]
        assert not lonely


@simulated
async def test_a_peer_of_the_original_that_dies_is_missed_as_soon_as_one_of_ours():
    async with simulated_meshes(1, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        gone = []
        world.observe(lambda number, event: gone.append(event) if isinstance(event, PeerDisconnected) else None)
        await trio.sleep(60)
        assert gone == []
        world.network.freeze(js.peer_id)
        died = trio.current_time()
        await world.until(lambda: gone)
        assert trio.current_time() - died < 10
        assert [(type(event), event.peer_id) for event in gone] == [(PeerTimedOut, js.peer_id)]


@simulated
async def test_a_mesh_that_wants_proofs_turns_the_originals_peers_down():
    async with simulated_meshes(1, seed=1) as world, originals(world) as crowd:
        smaller, larger = await crowd.join(SMALLER), await crowd.join(LARGER)
        await trio.sleep(60)
        (mesh,) = world.meshes
        assert not mesh.peers
        assert mesh.peer_id in smaller.rejections
        for js in (smaller, larger):
            assert mesh.peer_id not in js.neighbours
            assert not unanswered(js)


@simulated
async def test_an_offer_from_the_wrong_side_is_answered():
    """Its discovery offers to everybody it knows of, whichever id is smaller."""
    async with simulated_meshes(1, seed=1, config=mixed()) as world, originals(world) as crowd:
        (mesh,) = world.meshes
        js = await crowd.join(LARGER)
        await linked(world, js)
        world.network.break_link(mesh.peer_id, js.peer_id)
        js._request(mesh.peer_id, initiator=True)
        assert js.entries[mesh.peer_id].state is State.OFFERING
        await world.until(lambda: js.neighbours == [mesh.peer_id], within=10)


@pytest.mark.parametrize("start", [SMALLER, LARGER])
@simulated
async def test_of_offers_that_cross_the_originals_is_answered(start):
    """It drops ours in silence, and would wait for ever."""
    async with simulated_meshes(0, seed=1) as world, originals(world) as crowd:
        js = await crowd.join(start, gathering=1.5)  # a slow STUN server
        who = world.identity(5)
        js._request(who.peer_id, initiator=True)
        (mesh,) = await world.join(identity=who, config=mixed())
        await linked(world, js)
        assert js.lost_offers == [mesh.peer_id], "ours was out"
        assert mesh.peers == (js.peer_id,)
        assert trio.current_time() < 5


@pytest.mark.parametrize("start", [SMALLER, LARGER])
@simulated
async def test_an_application_can_ask_for_a_link_to_one(start):
    async with simulated_meshes(2, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(start)
        for mesh in world.meshes:
            with trio.fail_after(20):
                await mesh.connect(js.peer_id)
            assert js.peer_id in mesh.peers


@pytest.mark.parametrize("start", [SMALLER, LARGER])
@simulated
async def test_every_offer_gets_an_answer_or_a_rejection(start):
    """One without a reply makes the original deaf to us for the rest of its life."""
    async with simulated_meshes(4, seed=1, max_peers=3, config=mixed()) as world, originals(world) as crowd:
        await world.until(lambda: all(mesh.peer_count == 3 for mesh in world.meshes))
        comers = [await crowd.join(start) for _ in range(6)]
        await trio.sleep(30)
        assert not [unanswered(js) for js in comers if unanswered(js)]
        assert any(js.rejections for js in comers)


@simulated
async def test_a_full_peer_names_its_neighbours_to_whom_it_turns_down():
    async with simulated_meshes(3, seed=1, max_peers=2, config=mixed()) as world, originals(world) as crowd:
        await world.until(lambda: all(mesh.peer_count == 2 for mesh in world.meshes))
        await trio.sleep(30)
        ids = {mesh.peer_id for mesh in world.meshes}
        js = await crowd.join(SMALLER)
        await trio.sleep(20)
        rejections = [signal for signal in js.signals if signal["type"] == "connection_rejected"]
        for rejection in rejections:
            assert rejection["reason"]
            assert rejection["maxPeers"] == 2
            assert isinstance(rejection["alternativePeers"], list)
            assert set(rejection["alternativePeers"]) <= ids - {rejection["from"]}, "neighbours only"
            assert len(rejection["alternativePeers"]) <= 3
        assert rejections
        assert any(rejection["alternativePeers"] for rejection in rejections)


@simulated
async def test_one_without_a_link_is_let_in_for_a_long_link():
    """It can't say that it has none; so one of them has a place with each of us, beside the ring."""
    async with simulated_meshes(4, seed=1, max_peers=3, config=mixed()) as world, originals(world) as crowd:
        await world.until(lambda: all(mesh.peer_count == 3 for mesh in world.meshes))
        await trio.sleep(30)
        js = await crowd.join(SMALLER)
        await linked(world, js)
        await trio.sleep(60)
        assert js.neighbours
        assert not world.ring_gaps()


@simulated
async def test_one_that_we_give_up_is_told_whom_to_try_instead():
    async with simulated_meshes(2, seed=1, max_peers=2, config=mixed()) as world, originals(world) as crowd:
        await world.linked()
        js = await crowd.join(SMALLER)
        await linked(world, js)
        await world.join(6, every=1.0, max_peers=2, config=mixed())
        await world.until(lambda: js.evictions, within=60)
        for _, notice in js.evictions:
            assert notice["reason"]
            assert isinstance(notice["timestamp"], int)
            assert notice["peers"]


@simulated
async def test_one_that_gives_us_up_is_believed_and_not_bothered():
    """An original that is full gives its farthest link away, and says so, or not."""
    evicted = []
    async with simulated_meshes(0, seed=1) as world, originals(world) as crowd:
        world.observe(lambda number, event: evicted.append(event) if isinstance(event, PeerEvicted) else None)
        js = await crowd.join("80", max_peers=2)
        await world.join(7, every=2.0, config=mixed())
        await world.until(lambda: any(event.peer_id == js.peer_id for event in evicted))
        assert {event.reason for event in evicted if event.peer_id == js.peer_id} == {"kademlia_optimization"}
        await trio.sleep(30)
        before = len(js.signals)
        await trio.sleep(30)
        assert len(js.signals) - before <= 15, "it is not asked again and again"
        await world.linked(within=1)


@simulated
async def test_an_offer_that_one_never_heard_back_from_is_cured_when_we_come_again():
    """It waits for ever for our answer, and drops our offers meanwhile, unless it is told that there will be none."""
    async with simulated_meshes(0, seed=1) as world, originals(world) as crowd:
        js = await crowd.join(LARGER)
        who = world.identity(5)
        js.entries[who.peer_id] = Entry(State.OFFERING, js.now)  # what a crash of ours left behind
        js._offer(who.peer_id)
        await trio.sleep(1)
        (mesh,) = await world.join(identity=who, config=mixed())
        await world.until(lambda: js.neighbours == [mesh.peer_id], within=60)


@simulated
async def test_one_that_is_linked_gets_no_second_offer():
    """It would take it for a renegotiation of the link that it has."""
    async with simulated_meshes(4, seed=1, config=mixed()) as world, originals(world) as crowd:
        some = [await crowd.join(f"{place * 60:02x}") for place in range(4)]
        await linked(world, *some)
        await trio.sleep(60)
        assert not [js.zombies for js in some if js.zombies]


# --- messages ---------------------------------------------------------------------------------------------------------


@simulated
async def test_broadcasts_pass_both_ways_once_each():
    async with simulated_meshes(3, seed=1, config=mixed()) as world, originals(world) as crowd:
        heard = listen(world)
        near, far = await crowd.join(SMALLER), await crowd.join(LARGER)
        await linked(world, near, far)
        await world.linked()
        payloads = ["text", {"a": [1, None]}, [1, 2], 5, 1.5, True, None, ""]
        for payload in payloads:
            await world.meshes[0].broadcast("ours", payload)
        for payload in payloads:
            near.broadcast("theirs", payload)
        await trio.sleep(5)
        for js in (near, far):
            ours = [message for message in js.delivered if message["topic"] == "ours"]
            assert [message["data"] for message in ours] == payloads
            assert {message["from"] for message in ours} == {world.meshes[0].peer_id}
        assert [message["data"] for message in far.delivered if message["topic"] == "theirs"] == payloads
        for number in range(3):
            theirs = [event for who, event in heard if who == number and event.topic == "theirs"]
            assert [event.payload for event in theirs] == payloads
            assert {event.origin for event in theirs} == {near.peer_id}
            assert not any(event.verified for event in theirs)


@simulated
async def test_a_broadcast_reaches_the_application_of_an_original_once_however_often_it_comes():
    async with simulated_meshes(4, seed=1, config=mixed(max_peers=6)) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        for mesh in world.meshes:
            with trio.fail_after(20):
                await mesh.connect(js.peer_id)
        receipt = await world.meshes[0].broadcast("t", "hello")
        await trio.sleep(5)
        assert [message["data"] for message in js.delivered] == ["hello"]
        assert js.delivered[0]["messageId"] == receipt.message_id
        assert (await receipt.settled()).reached == 3, "an original acknowledges nothing, and is not counted"


@simulated
async def test_bytes_and_large_payloads_end_no_link_to_an_original():
    async with simulated_meshes(1, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        (mesh,) = world.meshes
        await mesh.broadcast("t", b"\x00\xff")
        await mesh.broadcast("t", "x" * 200_000)
        await mesh.broadcast("t", "x" * 400_000)
        await mesh.broadcast("t", "after")
        await trio.sleep(5)
        assert [message["data"] for message in js.delivered] == ["AP8=", "x" * 200_000, "after"]
        assert mesh.peers == (js.peer_id,)


@simulated
async def test_direct_messages_pass_both_ways():
    async with simulated_meshes(1, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        (mesh,) = world.meshes
        async with mesh.messages() as inbox:
            for payload in ("text", {"a": [1]}, 0, None):
                await mesh.send(js.peer_id, payload)
                js.send(mesh.peer_id, payload)
                message = await inbox.receive()
                assert (message.origin, message.payload) == (js.peer_id, payload)
            await trio.sleep(1)
        assert js.messages == [
            (mesh.peer_id, {"type": "direct", "payload": payload}) for payload in ("text", {"a": [1]}, 0, None)
        ]


@simulated
async def test_a_message_to_an_original_that_is_no_neighbour_fails_plainly():
    """Nobody relays it: the original's protocol has no such thing."""
    async with simulated_meshes(2, seed=1, max_peers=1, config=mixed()) as world, originals(world) as crowd:
        await world.linked()
        js = await crowd.join("80")
        await trio.sleep(5)
        assert not js.neighbours
        with trio.fail_after(60), pytest.raises(PeerUnreachable):
            await world.meshes[0].send(js.peer_id, "hello")


@simulated
async def test_a_probe_is_answered_for_whoever_asks():
    async with simulated_meshes(1, seed=1, config=mixed()) as world, originals(world) as crowd:
        heard = listen(world)
        js = await crowd.join(SMALLER)
        await linked(world, js)
        js.broadcast(PROBE, "are you there?")
        await trio.sleep(1)
        ((peer, answer),) = js.probes_answered
        assert peer == world.meshes[0].peer_id
        assert answer["originalProbe"] == "are you there?"
        assert answer["respondingPeer"] == peer
        assert not heard, "probes are no news"


@simulated
async def test_they_are_sent_nothing_but_what_they_know():
    """Whatever the overlay of ours is busy with: what is none of theirs stays among us."""
    async with simulated_meshes(4, seed=1, config=mixed()) as world, originals(world) as crowd:
        some = [await crowd.join(f"{place * 60:02x}") for place in range(4)]
        await linked(world, *some)
        await world.linked()
        for mesh in world.meshes:
            await mesh.broadcast("t", mesh.peer_id)
        for js in some:
            js.broadcast("t", js.peer_id)
        await trio.sleep(45)
        await world.leave(0)
        await trio.sleep(5)
        for js in some:
            assert js.received.keys() <= {"gossip", "direct", "reconnection_data"}


@simulated
async def test_what_an_original_sends_that_is_no_message_of_ours_ends_no_link():
    async with simulated_meshes(1, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        (mesh,) = world.meshes
        for odd in (
            '"text"',
            "5",
            "null",
            "[]",
            "{}",
            '{"type":"chat"}',
            "no JSON",
            '{"type":"broadcast","topic":"t"}',
        ):
            js._send(mesh.peer_id, odd)
        rpc = {"type": "FIND_NODE", "id": js.peer_id, "rpcId": "c" * 40, "targetId": mesh.peer_id}
        js._send(mesh.peer_id, json.dumps({"type": "kademlia_rpc", "message": rpc}))
        await trio.sleep(10)
        assert mesh.peers == (js.peer_id,)


# --- the end ----------------------------------------------------------------------------------------------------------


@simulated
async def test_an_original_that_leaves_is_gone_at_once():
    async with simulated_meshes(2, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        js.leave()
        await trio.sleep(1)
        assert not any(js.peer_id in mesh.peers for mesh in world.meshes)
        await world.linked()


@simulated
async def test_an_original_that_is_killed_is_missed_when_ice_gives_it_up():
    async with simulated_meshes(2, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        js.kill()
        await trio.sleep(31)
        assert not any(js.peer_id in mesh.peers for mesh in world.meshes)
        await world.linked()


@simulated
async def test_ours_that_leave_tell_the_originals_whom_to_try_instead():
    async with simulated_meshes(3, seed=1, config=mixed()) as world, originals(world) as crowd:
        await world.linked()
        js = await crowd.join(SMALLER, max_peers=2)
        await linked(world, js)
        (neighbour, *_) = js.neighbours
        await world.leave(neighbour)
        assert neighbour not in js.neighbours
        assert neighbour in {peer for peer, _ in js.evictions}
        await world.until(lambda: set(js.neighbours) & {mesh.peer_id for mesh in world.meshes}, within=90)


@simulated
async def test_an_original_that_comes_again_with_its_id_is_linked_again():
    async with simulated_meshes(2, seed=1, config=mixed()) as world, originals(world) as crowd:
        js = await crowd.join(SMALLER)
        await linked(world, js)
        js.kill()
        again = await crowd.join(js.peer_id)
        await linked(world, again)
        assert again.neighbours
