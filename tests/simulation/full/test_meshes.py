"""Whole meshes in a box: faults do what they say, invariants are watched, and the same seed gives the same trace."""

import functools
import operator
import os
import subprocess
import sys

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pmesh import ConfigError, MeshClosed, MessageReceived, PeerDisconnected, PeerTimedOut, TransportUnavailable
from p2pmesh.simulation import (
    Adversary,
    Bad,
    BareNetwork,
    Churn,
    Conditions,
    Constant,
    Crash,
    FaultPlan,
    Freeze,
    Hostile,
    InvariantViolated,
    JoinStorm,
    LogNormal,
    Nat,
    Outage,
    Partition,
    Restart,
    Slow,
    simulate,
    simulated_meshes,
)
from tests.harness.cluster import at_rest


def simulated(seed=1):
    """Runs an async test in virtual time, with its tasks in the order of a seed."""

    def decorate(test):
        @functools.wraps(test)
        def run(**arguments):
            simulate(functools.partial(test, **arguments), seed=seed)

        return run

    return decorate


# --- a world ----------------------------------------------------------------------------------------------------------


@simulated()
async def test_peers_join_link_and_hear_each_other():
    async with simulated_meshes(8, seed=1, max_peers=4) as world:
        await at_rest(*world.meshes)
        receipt = await world.meshes[3].broadcast("t", "hello")
        await world.delivered(receipt, within=5)
        assert set(world.holders(receipt.message_id)) == set(range(8)) - {3}
        assert (await receipt.settled()).reached == 7
        await world.until(lambda: not world.ring_gaps())
        assert world.islands() == 1
        assert len(world.trace(10_000)) > 8


@simulated()
async def test_what_happens_in_the_block_comes_out_as_it_is_with_the_seed():
    with pytest.raises(KeyError) as caught:
        async with simulated_meshes(2, seed=77):
            raise KeyError("mine")
    assert "seed: 77" in caught.value.__notes__[0]
    assert "join" in caught.value.__notes__[0]


@simulated()
async def test_an_application_runs_on_each_peer_for_as_long_as_that_lives():
    alive = []

    async def app(mesh, name):
        alive.append(name)
        try:
            await trio.sleep_forever()
        finally:
            alive.remove(name)

    async with simulated_meshes(3) as world:
        for number in range(3):
            world.start(number, app, f"app {number}")
        await trio.sleep(1)
        assert sorted(alive) == ["app 0", "app 1", "app 2"]
        world.crash(1)
        await world.leave(2)
        assert alive == ["app 0"]
        with pytest.raises(ConfigError, match="gone"):
            world.start(1, app, "late")
    assert not alive


@simulated()
async def test_what_an_application_raises_comes_out_in_a_group():
    async def app(mesh):
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with simulated_meshes(2) as world:
            world.start(0, app)
            await trio.sleep_forever()


@simulated()
async def test_a_peer_that_is_none_of_this_world_is_refused():
    async with simulated_meshes(2) as world:
        for who in (2, -1, "f" * 40):
            with pytest.raises(ConfigError, match="no peer"):
                world.crash(who)


@simulated()
async def test_waiting_for_what_does_not_come_says_what_is_missing():
    async with simulated_meshes(3) as world:
        await world.linked()
        with pytest.raises(trio.TooSlowError, match="not within 5 s"):
            await world.until(lambda: False, within=5)
        world.freeze(2)
        receipt = await world.meshes[0].broadcast("t", 1)
        with pytest.raises(trio.TooSlowError, match="n2 lack"):
            await world.delivered(receipt, within=2)


# --- faults -----------------------------------------------------------------------------------------------------------


@simulated()
async def test_nothing_passes_a_partition_and_all_arrives_after_the_heal():
    async with simulated_meshes(6, seed=2, max_peers=4) as world:
        await world.linked()
        world.partition(range(3))
        await trio.sleep(15)
        assert world.islands() > 1
        receipt = await world.meshes[0].broadcast("t", "to all", ttl=300)
        await trio.sleep(15)
        assert set(world.holders(receipt.message_id)) == {1, 2}
        world.heal()
        await world.delivered(receipt, within=120)
        await world.linked()


@simulated()
async def test_a_side_can_lose_the_service_too():
    async with simulated_meshes(4) as world:
        await world.linked()
        world.partition([0, 1], keeps_service=False)
        with pytest.raises(TransportUnavailable):
            await world.restart(2)
        world.heal()
        await world.linked()


@simulated()
async def test_one_way_and_partial_partitions_stop_what_they_name_only():
    async with simulated_meshes(3, max_peers=2) as world:
        await world.linked()
        a, b, c = (mesh.peer_id for mesh in world.meshes)
        world.part([0], [1], one_way=True)
        passes = world.network.passes
        assert passes(a, b)
        assert not passes(b, a)
        world.heal()
        cut = world.part([0], [1])
        other = world.partition([2], one_way=True)
        assert not passes(a, b)
        assert not passes(b, a)
        assert passes(c, a)
        assert not passes(a, c)
        world.heal(cut)
        assert passes(a, b)
        assert not passes(b, c)
        world.heal(other)
        assert passes(b, c)


@simulated()
async def test_a_crash_is_silent_and_found_out_within_about_five_seconds():
    async with simulated_meshes(2) as world:
        await world.linked()
        alice, bob = world.meshes
        async with alice.events() as events:
            start = trio.current_time()
            world.crash(bob)
            await world.until(lambda: not alice.peers, within=10)
            assert 2.5 < trio.current_time() - start < 6
            ends = [event async for event in taken(events) if isinstance(event, PeerDisconnected | PeerTimedOut)]
            assert [type(event) for event in ends] == [PeerTimedOut]
        assert world.meshes == (alice,)
        with pytest.raises(MeshClosed):
            await bob.broadcast("t", 1)


async def taken(stream):
    while True:
        try:
            yield stream.receive_nowait()
        except trio.WouldBlock:
            return


@simulated()
async def test_a_crash_in_any_moment_of_joining_leaves_nothing():
    async with simulated_meshes(3, seed=5) as world:
        for instant in range(0, 130, 10):
            (mesh,) = await world.join()
            await trio.sleep(instant / 1000)
            world.crash(mesh)
        await trio.sleep(40)
        assert len(world.meshes) == 3
        assert world.network.attempts() == 0
        await world.linked()


@simulated()
async def test_a_peer_comes_back_as_it_was_or_as_somebody_new():
    async with simulated_meshes(4) as world:
        await world.linked()
        before = world.meshes[1].peer_id
        same = await world.restart(1)
        assert same.peer_id == before
        await world.linked()
        fresh = await world.restart(same, fresh=True)
        assert fresh.peer_id != before
        await world.linked()
        assert len(world.meshes) == 4


@simulated()
async def test_what_was_sent_to_a_frozen_peer_waits_for_the_thaw():
    async with simulated_meshes(2) as world:
        await world.linked()
        async with world.meshes[1].messages() as inbox:
            world.freeze(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.meshes[0].send, world.meshes[1].peer_id, "wait")
                await trio.sleep(2)
                with pytest.raises(trio.WouldBlock):
                    inbox.receive_nowait()
                world.thaw(1)
                assert (await inbox.receive()).payload == "wait"


@simulated()
async def test_a_mesh_lives_without_its_service_and_newcomers_wait_for_it():
    async with simulated_meshes(5) as world:
        await at_rest(*world.meshes)
        world.service_down()
        await trio.sleep(30)
        receipt = await world.meshes[0].broadcast("t", 1)
        await world.delivered(receipt)
        world.service_up()
        await trio.sleep(30)
        await world.join()
        await world.linked()


@simulated()
async def test_peers_behind_symmetric_nats_link_by_way_of_those_that_are_open():
    async with simulated_meshes(2, nat="symmetric") as world:
        await trio.sleep(40)
        assert world.islands() == 2
        await world.join(2)
        await world.linked()
        symmetric = {mesh.peer_id for mesh in world.meshes[:2]}
        assert not [pair for pair in world.network.links() if set(pair) <= symmetric]


@simulated()
async def test_a_clock_that_is_wrong_is_seen_in_timestamps_and_nowhere_else():
    async with simulated_meshes(3, clock_offset=100) as world:
        await world.linked()
        world.set_clock(1, -50)
        async with world.meshes[0].subscribe() as messages:
            for number, offset in ((1, -50), (2, 100)):
                before = trio.current_time()
                await world.meshes[number].broadcast("t", number)
                message = await messages.receive()
                assert isinstance(message, MessageReceived)
                assert message.timestamp - 1_700_000_000 == pytest.approx(before + offset, abs=0.01)


@simulated()
async def test_a_slow_and_lossy_peer_still_gets_everything():
    bad = Conditions(latency=Constant(0.4), jitter=0.1, loss=0.1, bandwidth=32 * 1024)
    async with simulated_meshes(5, seed=3) as world:
        await at_rest(*world.meshes)
        world.condition(4, bad)
        receipts = [await world.meshes[0].broadcast("t", bytes(2000)) for _ in range(10)]
        for receipt in receipts:
            await world.delivered(receipt)
        assert (await receipts[-1].settled()).reached == 4
        slowest = max(world.holders(receipts[-1].message_id).items(), key=operator.itemgetter(1))
        assert slowest[0] == 4


@pytest.mark.parametrize(
    "evil",
    [
        {"corrupt": 0.02},
        {"breaks": 0.005},
        pytest.param({"reliable": False, "loss": 0.02}, marks=pytest.mark.simulation),
        pytest.param({"duplicate": 0.05}, marks=pytest.mark.simulation),
    ],
)
@simulated(seed=3)
async def test_links_that_break_their_promise_are_replaced_and_the_mesh_goes_on(evil):
    conditions = Conditions(latency=LogNormal(0.02), **evil)
    async with simulated_meshes(5, seed=4, conditions=conditions, max_peers=4) as world:
        await world.linked()
        receipts = []
        for turn in range(12):
            receipts.append(await world.meshes[turn % 5].broadcast("t", turn, ttl=300))
            await trio.sleep(0.5)
        for mesh in world.meshes:
            world.condition(mesh, Conditions())
        await world.linked()
        for receipt in receipts:
            await world.delivered(receipt, within=200)


@pytest.mark.parametrize("hostility", Adversary)
@simulated(seed=2)
async def test_honest_peers_hear_each_other_beside_hostile_ones(hostility):
    async with simulated_meshes(6, seed=3, max_peers=4) as world:
        await world.linked()
        await world.replay(FaultPlan([Hostile(at=0, peers=(5,), does=hostility)]))
        assert world.plot.allies
        await trio.sleep(15)
        receipt = await world.meshes[0].broadcast("t", 1)
        await world.delivered(receipt, *range(1, 5))


# --- plans ------------------------------------------------------------------------------------------------------------

EVERY_KIND = FaultPlan([
    Partition(at=1, seconds=8, sides=((0, 1, 2), (3, 4))),
    Partition(at=2, seconds=4, sides=((0,), (5,)), one_way=True, partial=True),
    Freeze(at=3, seconds=3, peers=(2,)),
    Slow(at=3, seconds=6, peers=(6, 7)),
    Outage(at=4, seconds=17),
    Bad(at=5, seconds=10, peers=(1, 2), breaks=0.001),
    Nat(at=5, peers=(3,)),
    Crash(at=14, peers=(6,)),
    Restart(at=16, peers=(5,), seconds=2),
    Restart(at=17, peers=(4,), seconds=2, fresh=True),
    JoinStorm(at=18, count=3, seconds=0.5, clock_offset=20.0),
    Churn(at=19, seconds=10, arrivals=0.5, departures=0.3),
    Hostile(at=20, peers=(0,), does=Adversary.LIAR),
])


@pytest.mark.simulation
@simulated()
async def test_a_plan_of_every_kind_of_fault_can_be_replayed():
    async with simulated_meshes(8, seed=6, max_peers=4) as world:
        await world.linked()
        await world.replay(EVERY_KIND)
        assert trio.current_time() >= 29
        world.calm()
        await world.linked()
        receipt = await world.meshes[2].broadcast("t", 1)
        await world.delivered(receipt)
        assert str(world.plan) in "\n".join(world.account())


@simulated()
async def test_a_plan_for_more_peers_than_there_are_is_refused():
    async with simulated_meshes(3) as world:
        with pytest.raises(ConfigError, match="4 peers, but there are 3"):
            await world.replay(FaultPlan([Crash(at=0, peers=(0, 1, 2, 3))]))


@pytest.mark.simulation
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_after_any_plan_the_mesh_is_one_again_and_delivers(seed):
    async def scenario():
        async with simulated_meshes(8, seed=seed, max_peers=4) as world:
            await world.linked()
            await world.replay(FaultPlan.generate(seed, peers=8, seconds=30))
            world.calm()
            await world.linked(within=180)
            receipt = await world.meshes[0].broadcast("t", "after all")
            await world.delivered(receipt, within=60)

    simulate(scenario, seed=seed)


# --- invariants -------------------------------------------------------------------------------------------------------


async def violated(check, count=2, **options):
    """Does something to a world of that many linked peers; the failure that comes of it, as text."""

    async def do():
        async with simulated_meshes(count, **options) as world:
            await world.linked()
            await check(world)
            assert world.violations

    with pytest.raises(InvariantViolated) as caught:
        await do()
    return str(caught.value)


@simulated()
async def test_a_link_too_many_is_a_violation_that_tells_seed_and_trace():
    async def lower_the_cap(world):
        world._invariants.expect(world._hosts.find(0).dialer, 0)
        world.break_link(0, 1)
        await trio.sleep(30)

    said = await violated(lower_the_cap, seed=8)
    assert "link cap at" in said
    assert "n0 holds 1 links, 0 are allowed" in said
    assert "seed: 8" in said
    assert "link-up" in said


@simulated()
async def test_a_message_told_twice_is_a_violation():
    async def tell_twice(world):
        await trio.lowlevel.checkpoint()
        twice = MessageReceived("t", 1, world.meshes[0].peer_id, "id", 0.0, 1, verified=True)
        for _ in range(2):
            world.meshes[1]._node.bus.publish(twice)

    assert "at most once" in await violated(tell_twice)


@simulated()
async def test_a_rule_of_ones_own_can_be_watched():
    async def forbid_swearing(world):
        def hear(number, event):
            if isinstance(event, MessageReceived) and event.payload == "damn":
                world.violate("no swearing", f"n{number} heard it")

        world.observe(hear)
        await world.delivered(await world.meshes[0].broadcast("t", "damn"))

    assert "no swearing at" in (said := await violated(forbid_swearing))
    assert "n1 heard it" in said


@simulated()
async def test_a_structure_beyond_its_bound_is_a_violation():
    async def exceed(world):
        snapshot = world.meshes[0].snapshot()
        snapshot["subsystems"]["routing"]["receiver"]["seen_ids"] = 10**6
        world.meshes[0].snapshot = lambda: snapshot
        await trio.sleep(3)

    assert "bounds" in (said := await violated(exceed))
    assert "routing.receiver.seen_ids is 1e+06" in said


# --- determinism ------------------------------------------------------------------------------------------------------

_RUN = """
from tests.simulation.full.test_meshes import digest_of
print(digest_of({seed}))
"""


def digest_of(seed):
    async def main():
        async with simulated_meshes(12, seed=seed, conditions=Conditions(), max_peers=4) as world:
            await world.linked()
            await world.replay(FaultPlan.generate(seed, peers=12, seconds=20))
            await world.meshes[0].broadcast("t", 1)
            await trio.sleep(10)
            return world.digest()

    return simulate(main, seed=seed)


@pytest.mark.simulation
def test_the_same_seed_gives_the_same_trace_also_in_another_process():
    here = digest_of(5)
    assert here == digest_of(5)
    assert here != digest_of(6)
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-c", _RUN.format(seed=5)]
    there = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=True)
    assert there.stdout.strip() == here


# --- statistics -------------------------------------------------------------------------------------------------------


@simulated()
async def test_a_bare_peers_snapshot_has_the_shape_of_a_whole_meshs():
    net = BareNetwork(1)
    bare, _ = net.add(), net.add()
    net.run(5)
    async with simulated_meshes(2) as world:
        await world.linked()
        one, other = bare.snapshot(), world.meshes[0].snapshot()
    assert list(one) == list(other)
    assert list(one["subsystems"]) == list(other["subsystems"])
    assert set(one["links"]) <= set(other["links"])
    assert len(one["links"]["open"]) == len(one["peers"]) == 1
    assert [transport["up"] for transport in one["transports"].values()] == [True]
