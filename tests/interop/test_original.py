"""The stand-in for the original's peers does what was recorded of them, and notices what they would not survive."""

import functools
import json
from contextlib import asynccontextmanager

import pytest
import trio

from p2pmesh.simulation import simulate, simulated_meshes
from tests.harness.original_network import at_the_originals_server, check, originals
from tests.harness.original_peer import Entry, State


def simulated(test):
    """Runs an async test in virtual time, with its tasks in the order of a seed."""

    @functools.wraps(test)
    def run(**arguments):
        simulate(functools.partial(test, **arguments), seed=1)

    return run


@asynccontextmanager
async def theirs_alone():
    """The original's server and peers, and none of ours."""
    async with simulated_meshes(0, seed=1) as world, originals(world) as crowd:
        at_the_originals_server(world)
        crowd.until = world.until
        yield crowd


def record(peer):
    """What this peer says to the service from now on."""
    said = []
    say = peer._say
    peer._say = lambda message: (said.append(message), say(message))
    return said


@pytest.mark.parametrize(("first", "second"), [("00", "ff"), ("ff", "00")])
@simulated
async def test_the_one_that_was_there_offers_if_its_id_is_smaller_else_the_newcomer_by_its_discovery(first, second):
    async with theirs_alone() as crowd:
        old, new = await crowd.join(first), await crowd.join(second)
        await crowd.until(lambda: old.neighbours and new.neighbours)
        assert (trio.current_time() < 0.5) == (first < second)
        assert trio.current_time() < 2


@simulated
async def test_an_offer_from_the_larger_id_is_turned_down_and_made_again_from_the_right_side():
    async with theirs_alone() as crowd:
        smaller, larger = await crowd.join("00"), await crowd.join("ff")
        await crowd.until(lambda: smaller.neighbours and larger.neighbours)
        smaller._drop(larger.peer_id)
        await crowd.until(lambda: not larger.neighbours)
        said = record(smaller)
        larger._request(smaller.peer_id, initiator=True)
        await crowd.until(lambda: smaller.neighbours and larger.neighbours)
        conflict, offer = said[:2]
        assert (conflict["type"], conflict["correctInitiator"]) == ("signal_rejected", smaller.peer_id)
        assert offer["signal"]["type"] == "offer"


@simulated
async def test_offers_that_cross_are_both_lost_and_neither_side_ever_notices():
    async with theirs_alone() as crowd:
        one, other = await crowd.join("00", gathering=1.0), await crowd.join("ff", gathering=1.0)
        one.entries.clear()
        other.entries.clear()
        one._request(other.peer_id, initiator=True)
        other._request(one.peer_id, initiator=True)
        await trio.sleep(120)
        assert one.lost_offers
        assert other.lost_offers
        assert not one.neighbours
        assert one.entries[other.peer_id].state is State.OFFERING


@simulated
async def test_who_was_to_offer_and_did_not_is_forgotten_and_who_was_offered_to_never_is():
    async with theirs_alone() as crowd:
        js = await crowd.join("80")
        js.entries["a" * 40] = Entry(State.WAITING, 0.0)
        js.entries["b" * 40] = Entry(State.OFFERING, 0.0)
        await trio.sleep(61)
        assert js.entries.keys() == {"b" * 40}


@simulated
async def test_a_full_one_gives_its_farthest_link_to_a_nearer_peer_with_a_notice():
    async with theirs_alone() as crowd:
        js = await crowd.join("80", max_peers=2)
        far, near = await crowd.join("00"), await crowd.join("81")
        await crowd.until(lambda: len(js.neighbours) == 2)
        nearest = await crowd.join("80ff")
        await crowd.until(lambda: nearest.peer_id in js.neighbours)
        assert far.evictions
        (peer, notice), *_ = far.evictions
        assert peer == js.peer_id
        assert notice["reason"] == "kademlia_optimization"
        assert notice["peers"] == [near.peer_id]


@simulated
async def test_a_full_one_turns_a_farther_peer_down_and_names_its_neighbours():
    async with theirs_alone() as crowd:
        js = await crowd.join("80", max_peers=2)
        near = [await crowd.join("80"), await crowd.join("81")]
        await crowd.until(lambda: len(js.neighbours) == 2)
        said = record(js)
        await crowd.join("7f")
        await trio.sleep(0.1)
        (rejection,) = [message for message in said if message["type"] == "connection_rejected"]
        assert (rejection["reason"], rejection["maxPeers"]) == ("max_peers_reached", 2)
        assert set(rejection["alternativePeers"]) == {one.peer_id for one in near}


@simulated
async def test_eight_of_them_hear_each_other_by_flooding_once_each():
    async with theirs_alone() as crowd:
        for _ in range(8):
            await crowd.join(max_peers=3)
            await trio.sleep(2)
        await trio.sleep(60)
        origin = crowd.all[3]
        reached, frontier = set(), [origin]
        while frontier:
            peer = frontier.pop()
            reached.add(peer.peer_id)
            frontier += [js for js in crowd.all if js.peer_id in set(peer.neighbours) - reached]
        origin.broadcast("t", {"a": 1})
        await trio.sleep(1)
        for js in crowd.all:
            got = [message["data"] for message in js.delivered]
            assert got == ([{"a": 1}] if js.peer_id in reached and js is not origin else [])
        assert len(reached) > 4


@simulated
async def test_a_message_passes_ten_hops_and_no_more():
    async with theirs_alone() as crowd:
        js = await crowd.join()
        data = {
            "id": "m",
            "topic": "t",
            "payload": 1,
            "originPeerId": "a" * 40,
            "timestamp": js.wall_ms,
            "relayedBy": [],
        }
        js.heard("b" * 40, json.dumps({"type": "gossip", "data": {**data, "hops": 10}}))
        assert not js.delivered
        js.heard("b" * 40, json.dumps({"type": "gossip", "data": {**data, "hops": 9}}))
        assert [message["hops"] for message in js.delivered] == [10]


@pytest.mark.parametrize(
    "deadly",
    [
        {"type": "gossip"},
        {"type": "gossip", "data": {"id": "m", "topic": "t", "hops": 0, "timestamp": 0}},
        {"type": "gossip", "data": {"id": "m", "topic": "t", "hops": 0, "timestamp": 0, "relayedBy": "a" * 40}},
        {"type": "reconnection_data", "reason": "x"},
        {"type": "reconnection_data", "reason": "x", "peers": ["A" * 40]},
        {"type": "optimized_relay_signal"},
    ],
)
@simulated
async def test_what_would_end_its_process_is_noticed(deadly):
    async with theirs_alone() as crowd:
        js = await crowd.join()
        js.heard("a" * 40, json.dumps(deadly))
        with pytest.raises(AssertionError, match="died"):
            check([js])
        js.deaths.clear()


@pytest.mark.parametrize(
    "deadly",
    [
        None,
        {"type": "bootstrap_peers", "peers": [{"id": "a" * 39}]},
        {"type": "bootstrap_peers", "peers": [{"id": "g" * 40}]},
        {"type": "peer_joined", "peerId": 5},
        {"type": "connection_rejected", "from": "a" * 40, "alternativePeers": [{"id": "a" * 40}]},
        {"type": "connection_rejected", "from": "a" * 40},
    ],
)
@simulated
async def test_what_would_end_its_process_is_noticed_from_the_service(deadly):
    async with theirs_alone() as crowd:
        js = await crowd.join()
        js.signaled(json.dumps(deadly))
        with pytest.raises(AssertionError, match="died"):
            check([js])
        js.deaths.clear()


@pytest.mark.parametrize("odd", ["\x01\x02", '{"type":"goodbye"}', '{"type":"direct_ack","id":"x"}', "[1]", '"text"'])
@simulated
async def test_what_would_land_in_its_application_is_noticed(odd):
    async with theirs_alone() as crowd:
        js = await crowd.join()
        js.heard("a" * 40, odd)
        with pytest.raises(AssertionError, match="would see"):
            check([js])
        js.strays.clear()


@pytest.mark.parametrize("quiet", ["null", "0", '""', "false", '{"type":"gossip_ack"}', '{"type":"kademlia_rpc"}'])
@simulated
async def test_what_it_swallows_is_nobodys_business(quiet):
    async with theirs_alone() as crowd:
        js = await crowd.join()
        js.heard("a" * 40, quiet)
        check([js])
        assert not js.messages
