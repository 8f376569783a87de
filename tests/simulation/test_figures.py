"""What a simulation can be asked for: calls of applications, what they cost, and the overlay as a graph."""

import random

import pytest

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshClosed, PeerUnreachable
from p2pmesh.events import DirectReceived
from p2pmesh.keyspace import RING_SIZE
from p2pmesh.protocols.core import Reply
from p2pmesh.simulation import BareNetwork, BareNode, Graph, InvariantViolated, read_meter
from p2pmesh.simulation.discrete.invariants import check_at_most_once


def mesh(count, *, seed=1, max_peers=4, settle=20.0):
    net = BareNetwork(seed, config=MeshConfig(max_peers=max_peers))
    for _ in range(count):
        net.add()
        net.run(0.1)
    net.run(settle)
    return net


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_direct_message_to_a_neighbour_arrives_once_and_the_books_say_when():
    net = mesh(4)
    node = net.nodes[0]
    called = net.now
    sending = net.send(node, node.peers[0], {"to": "you"})
    assert not sending.arrived
    net.run(2)
    assert sending.ok
    assert sending.arrivals == 1
    assert sending.hops == 1
    assert called < sending.arrived_at <= sending.done_at
    assert sending.took == sending.done_at - called
    assert net.call_log.strangers == 0


def test_a_direct_message_to_nobody_fails_and_its_call_says_why():
    net = mesh(3)
    sending = net.send(net.nodes[0], net.nodes[0].peer_id, "me")
    net.run(30)
    assert sending.failed
    assert isinstance(sending.error, PeerUnreachable)
    assert not sending.arrived


def test_two_equal_messages_are_two_in_the_books():
    net = mesh(2)
    sent = [net.send(net.nodes[0], net.nodes[1].peer_id, "same") for _ in range(2)]
    net.run(2)
    assert [sending.arrivals for sending in sent] == [1, 1]


def test_a_call_of_a_peer_that_is_gone_fails_at_once():
    net = mesh(3)
    net.stop(net.nodes[0])
    calls = [net.send(net.nodes[0], net.nodes[1].peer_id), net.put(net.nodes[0], "key", "value")]
    net.run(0)
    assert all(isinstance(call.error, MeshClosed) for call in calls)


def test_a_direct_message_that_comes_a_second_time_is_a_violation():
    net = mesh(2)
    sending = net.send(net.nodes[0], net.nodes[1].peer_id, "once")
    net.run(2)
    for message_id in ("again", "another"):
        event = DirectReceived(net.nodes[0].peer_id, "once", message_id, 0.0, verified=True)
        net.call_log.received(net.nodes[1], event)
    assert sending.arrivals == 3
    with pytest.raises(InvariantViolated, match="at most once"):
        check_at_most_once(net)


def test_a_direct_message_that_nobody_sent_is_a_strangers():
    net = mesh(2)
    net.call_log.received(net.nodes[1], DirectReceived(net.nodes[0].peer_id, "who?", "id", 0.0, verified=True))
    assert net.call_log.strangers == 1


def test_calls_of_the_dht_reach_its_core_and_return_what_it_replies(monkeypatch):
    net = BareNetwork(1)
    node = net.add()
    calls = [net.put(node, "key", "value", ttl=5), net.get(node, "key"), net.find_node(node, node.peer_id)]
    asked = []
    monkeypatch.setattr(BareNode, "report", lambda _, request: asked.append(request))
    net.run(0)
    assert [type(request).__name__ for request in asked] == ["DhtPut", "DhtGet", "DhtFindNode"]
    for request, value in zip(asked, (3, None, (node.peer_id,)), strict=True):
        net.replied(Reply(request.call, value))
    assert [call.value for call in calls] == [3, None, (node.peer_id,)]
    assert all(call.ok for call in calls)


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_meter_counts_links_and_service_messages_between_two_readings():
    net = mesh(5)
    rest = read_meter(net)
    assert rest.links_opened >= 5
    net.run(5)
    nothing = read_meter(net) - rest
    assert nothing.at == pytest.approx(5)
    assert nothing.links_opened == 0
    before = read_meter(net)
    net.add()
    net.run(5)
    joined = read_meter(net) - before
    assert joined.links_opened >= 1
    assert joined.service_in + joined.service_out == joined.service_messages == sum(joined.service_kinds.values())
    assert joined.service_kinds["in join"] == 1
    assert joined.frames == sum(joined.frame_kinds.values())


# --- the graph --------------------------------------------------------------------------------------------------------


def ring(count, extra=()):
    links = {peer: [(peer - 1) % count, (peer + 1) % count] for peer in range(count)}
    for a, b in extra:
        links[a].append(b)
        links[b].append(a)
    return Graph({peer: peer * RING_SIZE // count for peer in range(count)}, links)


def test_a_greedy_walk_round_a_bare_ring_goes_the_shorter_way():
    graph = ring(20)
    assert graph.greedy(0, 0) == 0
    assert graph.greedy(0, 1) == 1
    assert graph.greedy(0, 10) == 10
    assert graph.greedy(0, 17) == 3


def test_a_greedy_walk_takes_the_long_link_of_a_neighbour():
    graph = ring(20, extra=[(1, 11)])
    assert graph.greedy(0, 10) == 3
    assert graph.greedy(19, 10) == 9  # it knows its neighbours' neighbours only


def test_a_greedy_walk_that_can_not_arrive_ends():
    graph = ring(20)
    graph = Graph(
        graph.places, {peer: [far for far in links if {peer, far} != {4, 5}] for peer, links in graph.links.items()}
    )
    assert graph.greedy(0, 5) is None
    assert Graph({0: 0, 1: 5}, {0: [], 1: []}).greedy(0, 1) is None


def test_hops_of_many_walks_and_the_shortest_paths():
    graph = ring(10)
    shortest = graph.shortest_hops(10, random.Random(1))
    assert shortest.walks == shortest.arrived == 90
    assert shortest.mean == pytest.approx(25 / 9)
    assert shortest.most == 5
    greedy = graph.greedy_hops(500, random.Random(1))
    assert greedy.walks == greedy.arrived == 500
    assert greedy.most == 5
    assert greedy.mean == pytest.approx(25 / 9, abs=0.2)


def test_the_graph_of_a_mesh_has_its_open_links_and_greedy_walks_arrive():
    net = mesh(12)
    graph = Graph.of(net)
    assert sorted({tuple(sorted((a, b))) for a, links in graph.links.items() for b in links}) == sorted(net.edges())
    assert graph.greedy_hops(50, random.Random(1)).arrived == 50


def test_a_snapshot_shows_a_peers_place_in_the_overlay():
    net = mesh(12)
    order = sorted(node.peer_id for node in net.nodes)
    for node in net.nodes:
        snapshot, place = node.snapshot()["subsystems"], order.index(node.peer_id)
        overlay, lists = snapshot["overlay"], snapshot["overlay"]["successor_list"]
        around = order[place + 1 :] + order[:place]
        assert set(overlay["links"]) == set(node.peers)
        assert set(overlay["ring"]) == {around[0], around[-1]}
        assert set(lists["far"]) <= set(node.peers) - {around[0], around[-1]}
        assert lists["successors"] == around[: len(lists["successors"])]
        assert lists["predecessors"] == around[::-1][: len(lists["predecessors"])]
        assert 6 <= lists["size"] <= 24
