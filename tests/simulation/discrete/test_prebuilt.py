"""Assembled meshes: what stands at once is what the overlay at rest would have, and lives on as that does."""

import random
from itertools import pairwise

import attrs
import pytest

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError
from p2pmesh.keyspace import RING_SIZE, PeerId
from p2pmesh.simulation import BareNetwork, Conditions, Constant, Graph, LogNormal, assemble, read_meter
from p2pmesh.simulation.discrete.invariants import check_bounds, check_islands, check_ring, members, ring_cycles, watch
from p2pmesh.simulation.discrete.prebuilt import links_at_rest


def empty(*, seed=1, max_peers=5, **options):
    config = MeshConfig(max_peers=max_peers)
    config = attrs.evolve(config, kademlia=attrs.evolve(config.kademlia, enabled=False))
    return BareNetwork(seed, config=config, **options)


def assembled(count, **options):
    net = empty(**options)
    watch(net)
    assemble(net, count)
    return net


def ids(count, seed=1):
    rng = random.Random(seed)
    return sorted(PeerId(f"{rng.getrandbits(160):040x}") for _ in range(count))


@pytest.mark.parametrize(("count", "max_peers"), [(1, 5), (2, 5), (3, 2), (4, 3), (7, 8), (12, 2), (12, 3), (12, 8)])
def test_the_ring_is_closed_and_nobody_has_more_links_than_allowed(count, max_peers):
    net = assembled(count, max_peers=max_peers)
    assert len(members(net)) == count
    check_ring(net)
    check_islands(net)
    assert ring_cycles(net) == (count > 1)
    assert max(len(node.links.ends) for node in net.nodes) <= max_peers
    for node in net.nodes:
        check_bounds(net, node)


def test_all_slots_are_taken_and_no_link_opens_any_more():
    net = assembled(20)
    assert sum(len(node.links.ends) for node in net.nodes) >= 19 * 5
    before = read_meter(net)
    net.run(90)
    after = read_meter(net) - before
    assert after.links_opened == after.attempts_failed == 0
    assert not after.service_messages


@pytest.mark.parametrize("latency", [Constant(0.0), Constant(0.05), LogNormal(0.08)])
def test_no_link_is_taken_for_one_of_the_ring_and_given_up_however_far_apart_peers_are(latency):
    net = assembled(20, conditions=Conditions(latency=latency))
    assert sum(node.snapshot()["subsystems"]["overlay"]["superfluous"] for node in net.nodes) == 0


@pytest.mark.parametrize("peers", [30, pytest.param(60, marks=pytest.mark.simulation)])
def test_cores_are_as_after_ordinary_joins(peers):
    net = assembled(peers)
    ring = sorted(node.peer_id for node in net.nodes)
    for node in net.nodes:
        overlay = node.snapshot()["subsystems"]["overlay"]
        lists = overlay["successor_list"]
        place = ring.index(node.peer_id)
        assert lists["agreed"]
        assert lists["successors"] == [ring[(place + step) % peers] for step in range(1, 9)]
        assert overlay["passive_view"]["known"] > peers // 3
    newcomer = net.add()
    net.run(30)
    assert len(newcomer.peers) >= 2
    check_ring(net)
    sent = net.publish(newcomer, "hello")
    stranger = next(node for node in net.nodes if node.peer_id not in (newcomer.peer_id, *newcomer.peers))
    sending = net.send(newcomer, stranger.peer_id)
    net.run(5)
    assert sent.count == peers
    assert sending.ok
    net.stop(stranger)
    net.run(30)
    check_ring(net)


@pytest.mark.parametrize("peers", [24, pytest.param(40, marks=pytest.mark.simulation)])
def test_long_links_lead_where_those_of_a_mesh_that_grew_do(peers):
    grown = empty(max_peers=4)
    for _ in range(peers):
        grown.add()
        grown.run(0.1)
    grown.run(20)
    one, other = (Graph.of(net).greedy_hops(1000, random.Random(1)) for net in (grown, assembled(peers, max_peers=4)))
    assert one.arrived == other.arrived == 1000
    assert other.mean == pytest.approx(one.mean, rel=0.2)


def test_the_lengths_of_long_links_follow_the_harmonic_law():
    count = 2000
    ring = ids(count)
    links = list(links_at_rest(ring, 6, random.Random(1)))
    assert links[:count] == [(one, (one + 1) % count) for one in range(count)]
    spans = [abs(int(ring[one], 16) - int(ring[other], 16)) for one, other in links[count:]]
    shares = sorted(min(span, RING_SIZE - span) / RING_SIZE for span in spans)
    for low, high in pairwise([
        2 / count,
        16 / count,
        128 / count,
        0.5,
    ]):  # each is eight times as far as the one before
        assert sum(low <= share < high for share in shares) / len(shares) == pytest.approx(1 / 3, abs=0.08)


def test_no_two_peers_are_linked_twice_and_nobody_to_itself():
    links = list(links_at_rest(ids(50), 8, random.Random(1)))
    assert len({frozenset(link) for link in links}) == len(links)
    assert all(one != other for one, other in links)


def test_the_same_seed_assembles_the_same_mesh():
    one, same, another = (assembled(10, seed=seed).trace.digest() for seed in (1, 1, 2))
    assert one == same != another


def test_only_an_empty_network_is_assembled_and_only_if_peers_may_have_two_links():
    with pytest.raises(ConfigError):
        assemble(assembled(3), 5)
    with pytest.raises(ConfigError):
        assembled(5, max_peers=1)
    assert len(assembled(2, max_peers=1).nodes[0].peers) == 1
