"""Bare peers: composed as the runtime composes them, over links and a service that behave as real ones."""

import os
import random
import subprocess
import sys

import attrs
import pytest

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.events import PeerConnected, PeerDisconnected, PeerTimedOut, TransportDown
from p2pmesh.identity import Identity, SignatureMemo, verify
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.simulation import scenario
from p2pmesh.simulation.discrete import network as bare
from p2pmesh.simulation.discrete.fault_injector import FaultInjector
from p2pmesh.simulation.discrete.invariants import (
    check_at_most_once,
    check_bounds,
    check_delivery,
    check_islands,
    check_nothing_left,
    check_ring,
    islands,
    ring_cycles,
    watch,
)
from p2pmesh.simulation.discrete.network import BareNetwork, Cut, InvariantViolated
from p2pmesh.simulation.faults import plan as faults
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.model import conditioner
from p2pmesh.simulation.model.conditioner import Conditions, Constant


def mesh(count, *, seed=1, max_peers=4, settle=12.0, **options):
    net = BareNetwork(seed, config=MeshConfig(max_peers=max_peers), **options)
    watch(net)
    for _ in range(count):
        net.add()
        net.run(0.1)
    net.run(settle)
    return net


def timeline(net):
    events = []
    net.listeners.append(lambda node, event: events.append((net.now, node.number, event)))
    return events


def of(events, kind, number):
    return [(time, event) for time, who, event in events if who == number and isinstance(event, kind)]


# --- a quiet mesh -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [15, pytest.param(30, marks=pytest.mark.simulation)])
def test_a_quiet_mesh_is_one_ring_and_delivers_everything_once(peers):
    net = mesh(peers)
    check_ring(net)
    check_islands(net)
    assert ring_cycles(net) == 1
    sent = [net.publish(net.nodes[number], f"hello {number}") for number in range(5)]
    net.run(10)
    assert [broadcast.count for broadcast in sent] == [peers - 1] * 5
    assert [broadcast.reached for broadcast in sent] == [peers - 1] * 5
    assert all(broadcast.outcome.reached == peers - 1 for broadcast in sent)
    check_delivery(net)
    for node in net.nodes:
        check_bounds(net, node)
    net.close()
    check_nothing_left(net)


def test_frames_through_the_codec_change_nothing():
    def run(**options):
        net = mesh(8, **options)
        net.publish(net.nodes[3], {"a": [1, 2.5, None, "x"]})
        net.publish(net.nodes[4], b"bytes")
        net.run(5)
        assert [broadcast.count for broadcast in net.delivery_log] == [7, 7]
        return net.trace.digest()

    assert run() == run(encode_frames=True)


SCRIPT = """
from p2pmesh.config import MeshConfig
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.faults.plan import FaultPlan
from p2pmesh.simulation.discrete.fault_injector import FaultInjector
net = BareNetwork(3, config=MeshConfig(max_peers=4))
for _ in range(15):
    net.add()
    net.run(0.1)
FaultInjector(net, FaultPlan.generate(5, peers=15, seconds=30, hostile=True))
for number in range(15):
    net.publish(net.nodes[number], "x")
    net.run(3)
print(net.trace.digest(), net.events)
"""


@pytest.mark.simulation
def test_the_same_seed_gives_the_same_trace_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "77")
    }
    assert len(outputs) == 1


def test_another_seed_gives_another_trace():
    assert mesh(5, seed=1).trace.digest() != mesh(5, seed=2).trace.digest()


@pytest.mark.parametrize("peers", [10, pytest.param(40, marks=pytest.mark.simulation)])
def test_the_service_counts_what_a_join_costs(peers):
    net = mesh(peers)
    before = net.service.received
    net.add()
    net.run(2)
    assert 1 <= net.service.received - before < 60


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_crash_is_noticed_when_the_keepalive_would():
    net = mesh(6)
    events = timeline(net)
    victim = net.nodes[2]
    neighbours = [node for node in net.nodes if victim.peer_id in node.links.ends]
    crashed = net.now
    net.stop(victim)
    net.run(10)
    for node in neighbours:
        [(time, event)] = of(events, PeerTimedOut, node.number)
        assert event.peer_id == victim.peer_id
        assert 5.0 - net.config.links.keepalive_idle <= time - crashed <= 5.0 + 1e-6, (
            "it was heard at most so long before"
        )
        assert event.silent_for == pytest.approx(5.0)


def test_a_goodbye_is_noticed_at_once():
    net = mesh(6)
    events = timeline(net)
    leaver = net.nodes[2]
    neighbours = [node for node in net.nodes if leaver.peer_id in node.links.ends]
    left = net.now
    leaver.leave()
    net.run(3)
    assert not leaver.is_alive
    for node in neighbours:
        times = [time for time, event in of(events, PeerDisconnected, node.number) if event.peer_id == leaver.peer_id]
        assert len(times) == 1
        assert times[0] - left < 1.0


def test_a_short_freeze_is_survived_and_a_long_one_is_not():
    net = mesh(8)
    events = timeline(net)
    node = net.nodes[0]
    before = node.peers
    net.freeze(node)
    net.run(2.5)
    net.thaw(node)
    net.run(2)
    assert node.peers == before
    net.freeze(node)
    net.run(20)
    assert all(node.peer_id not in other.links.ends for other in net.nodes[1:])
    net.thaw(node)
    net.run(60)
    assert of(events, PeerDisconnected | PeerTimedOut, 0)
    check_ring(net)


def test_a_frozen_peer_gets_nothing_until_it_thaws():
    net = mesh(8)
    node = net.nodes[7]
    net.freeze(node)
    hello = net.publish(net.nodes[0], "hello")
    net.run(2)
    assert hello.count == 6
    net.thaw(node)
    net.run(2)
    assert hello.has(7)
    check_at_most_once(net)


def test_a_listener_may_change_the_network_in_the_middle_of_a_peers_turn():
    net = mesh(8, settle=15)
    net.freeze(net.nodes[7])
    net.publish(net.nodes[0], "waits for the frozen peer")
    net.run(0.5)

    def thaw(node, event):
        if isinstance(event, PeerConnected):  # its other cores have not heard of the link yet
            net.thaw(net.nodes[7])

    net.listeners.append(thaw)
    newcomer = net.add(config=MeshConfig(max_peers=1))
    net.run(3)
    hello = net.publish(newcomer, "hello")
    net.run(5)
    assert hello.count == hello.reached == 8


def test_what_is_sent_into_a_short_silence_arrives_after_it():
    net = mesh(8)
    cut = Cut({0: 1}, keeps_service=True)
    net.cut(cut)
    hello = net.publish(net.nodes[1], "hello")
    net.run(1.5)
    assert not hello.has(0)
    net.heal(cut)
    net.run(0.5)
    assert hello.has(0)
    check_at_most_once(net)


@pytest.mark.parametrize(("peers", "healing"), [(10, 60), pytest.param(20, 120, marks=pytest.mark.simulation)])
def test_a_partition_parts_and_heals(peers, healing):
    net = mesh(peers)
    net.cut(Cut({number: number % 2 for number in range(peers)}, keeps_service=True))
    net.run(15)
    assert len(islands(net)) >= 2
    assert all(a % 2 == b % 2 for a, b in net.edges())
    here, there = net.publish(net.nodes[0], "here", ttl=300), net.publish(net.nodes[1], "there", ttl=300)
    net.run(5)
    assert not any(here.has(number) for number in range(1, peers, 2))
    assert not any(there.has(number) for number in range(0, peers, 2))
    net.heal()
    net.run(healing)
    check_islands(net)
    check_ring(net)
    check_delivery(net)
    assert (here.count, there.count) == (peers - 1, peers - 1)


def test_a_one_way_partition_ends_links_by_silence_on_the_deaf_side():
    net = mesh(4, max_peers=3)
    events = timeline(net)
    net.cut(Cut({0: 0, 1: 1, 2: 1, 3: 1}, one_way=True, keeps_service=True))  # nothing comes back to n0
    net.run(8)
    assert of(events, PeerTimedOut, 0)
    assert not net.nodes[0].peers


def test_a_partial_partition_leaves_the_way_round():
    net = mesh(9)
    net.cut(Cut({0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}, rest=None, keeps_service=True))
    net.run(60)
    check_islands(net)
    hello = net.publish(net.nodes[0], "hello")
    net.run(10)
    assert hello.count == 8


def test_two_peers_behind_symmetric_translators_never_link():
    net = BareNetwork(config=MeshConfig(max_peers=4))
    hidden = [net.add(nat="symmetric") for _ in range(3)]
    net.run(5)
    assert not any(node.peers for node in hidden)
    bridge = net.add()
    net.run(60)
    assert set(bridge.peers) == {node.peer_id for node in hidden}


def test_a_slow_link_makes_frames_wait_and_one_that_is_hopeless_is_given_up():
    net = mesh(3, max_peers=2)
    events = timeline(net)
    slow = Conditions(latency=Constant(0.2), jitter=0.0, bandwidth=2000.0)
    net.condition([net.nodes[0]], slow)
    net.publish(net.nodes[0], b"x" * 2000)
    net.run(0.5)
    assert net.delivery_log.broadcasts[0].count == 0
    net.run(2)
    assert net.delivery_log.broadcasts[0].count == 2
    for _ in range(40):
        net.publish(net.nodes[0], b"x" * 2000)
    net.run(20)
    assert any("too slow" in event.reason for _, event in of(events, PeerDisconnected, 0))


def test_corrupted_frames_end_their_link():
    net = mesh(4, max_peers=3)
    events = timeline(net)
    net.condition(net.nodes[:1], Conditions(corrupt=1.0))
    net.publish(net.nodes[0], "x")
    net.run(2)
    assert any("protocol error" in event.reason for _, _, event in events if isinstance(event, PeerDisconnected))


def test_the_cap_is_watched():
    net = mesh(4, max_peers=2)
    node = net.nodes[0]
    while len(node.links.ends) + len(node.links.attempts) < 2:
        node.links.begin(Identity.generate().peer_id)
    with pytest.raises(InvariantViolated, match="link cap"):
        node.links.begin(Identity.generate().peer_id)


# --- the service ------------------------------------------------------------------------------------------------------


def test_the_mesh_outlives_the_service_and_comes_back_to_it():
    net = mesh(10)
    events = timeline(net)
    net.service.stop()
    net.run(30)
    check_islands(net)
    assert all(of(events, TransportDown, node.number) for node in net.nodes)
    hello = net.publish(net.nodes[0], "hello")
    net.run(2)
    assert hello.count == 9
    net.service.start()
    net.run(40)
    assert net.service.lines == 10
    net.add()
    net.run(30)
    check_ring(net)


def test_a_restart_with_the_same_identity_takes_its_place_back():
    net = mesh(8)
    old = net.nodes[3]
    new = net.restart(old)
    assert new.peer_id == old.peer_id
    net.run(60)
    check_ring(net)
    hello = net.publish(net.nodes[0], "hello")
    net.run(5)
    assert hello.has(new.number)
    assert net.restart(new, fresh=True).peer_id != old.peer_id


def test_clocks_may_differ():
    net = BareNetwork(config=MeshConfig(max_peers=4))
    for number in range(8):
        net.add(clock_offset=(-1) ** number * 60.0)
        net.run(0.1)
    net.run(20)
    sent = [net.publish(node, "hello") for node in net.nodes]
    net.run(10)
    assert [broadcast.count for broadcast in sent] == [7] * 8


# --- hostile peers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostility", list(Adversary))
@pytest.mark.parametrize(("peers", "seconds"), [(8, 10), pytest.param(12, 30, marks=pytest.mark.simulation)])
def test_a_hostile_peer_harms_no_others(peers, seconds, hostility):
    net = mesh(peers, encode_frames=True)  # so all that it sends must be well-formed
    FaultInjector(net, faults.FaultPlan([faults.Hostile(at=0, peers=(5,), does=hostility)]))
    net.run(seconds)
    enemies = [node.number for node in net.nodes if node.hostile]
    assert enemies
    sent = []
    for number in range(4):
        sent.append(net.publish(net.nodes[number], f"hello {number}"))
        net.run(2)
    net.run(seconds)
    check_islands(net, without=enemies)
    check_delivery(net, without=enemies)
    for node in net.living():
        check_bounds(net, node)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_prints_seed_plan_and_trace():
    net = mesh(5, seed=42)
    net.plan = "the plan"
    with pytest.raises(InvariantViolated) as caught:
        net.violate("some invariant", "it broke")
    text = str(caught.value)
    for part in ("some invariant at", "it broke", "seed: 42", "the plan", "link-up"):
        assert part in text
    assert all(len(line) < 120 for line in text.splitlines())


def test_a_network_that_is_not_strict_collects_violations():
    net = BareNetwork(strict=False)
    net.violate("a", "one")
    net.violate("b", "two")
    assert [violation.invariant for violation in net.violations] == ["a", "b"]
    assert "one" in net.account


def test_what_is_wrong_is_found():
    net = mesh(12)
    first = net.nodes[0]
    ring = sorted(net.nodes, key=lambda node: node.peer_id)
    after = ring[(ring.index(first) + 1) % 12]
    first.links.down(first.links.ends[after.peer_id], "sabotage")
    with pytest.raises(InvariantViolated, match="one ring"):
        check_ring(net)
    hello = net.publish(net.nodes[1], "hello")
    net.run(5)
    hello._got[3] = 0
    with pytest.raises(InvariantViolated, match="exactly once"):
        check_delivery(net, within=1)
    net.delivery_log.twice.append((1.0, 2, "abc"))
    with pytest.raises(InvariantViolated, match="at most once"):
        check_at_most_once(net)
    with pytest.raises(InvariantViolated, match="nothing left"):
        check_nothing_left(net)
    tight = attrs.evolve(net.config, broadcast=attrs.evolve(net.config.broadcast, seen_ids=1))
    net.publish(net.nodes[1], "hello")
    net.run(1)
    net.nodes[2].config = tight
    with pytest.raises(InvariantViolated, match="seen_ids"):
        check_bounds(net, net.nodes[2])
    for node in net.nodes[1:]:
        net.stop(node)
    net.add()
    net.run(1)


def test_islands_are_found():
    net = mesh(10)
    net.cut(Cut(dict.fromkeys(range(5), 1)))
    net.run(20)
    with pytest.raises(InvariantViolated, match="one island"):
        check_islands(net)


# --- signatures -------------------------------------------------------------------------------------------------------


def test_the_memo_of_signatures_tells_right_from_wrong_and_is_bounded():
    identity = Identity.from_seed(bytes(32))
    with SignatureMemo(limit=4) as memo:
        good = identity.sign(b"data")
        assert verify(identity.public_key, good, b"data")
        assert not verify(identity.public_key, good, b"other")
        assert not verify(identity.public_key, bytes(64), b"data")
        assert not verify(identity.public_key, good, b"other")
        for number in range(20):
            verify(identity.public_key, good, str(number).encode())
        assert len(memo) == 4
        assert verify(identity.public_key, good, b"data")
    assert verify(identity.public_key, good, b"data")


def test_links_config_decides_when_silence_ends_a_link():
    config = MeshConfig(max_peers=3, links=LinkConfig(keepalive_idle=1.0, keepalive_interval=0.5, keepalive_pings=2))
    net = BareNetwork(config=config)
    events = timeline(net)
    one, other = net.add(), net.add()
    net.run(10)
    assert of(events, PeerConnected, one.number)
    assert isinstance(one.links.ends[other.peer_id].owner.identity, Identity)
    net.stop(other)
    stopped = net.now
    net.run(5)
    [(time, event)] = of(events, PeerTimedOut, one.number)
    assert 1.0 <= time - stopped <= 2.0
    assert RemotePeer(event.peer_id, verified=True, version=1).peer_id == other.peer_id


# --- documentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [bare, conditioner, faults, pytest.param(scenario, marks=pytest.mark.simulation)])
def test_the_examples_of_the_modules_run(module):
    lines = module.__doc__.splitlines()
    code = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    assert code
    exec(code, {**vars(bare), **vars(module), "random": random})
