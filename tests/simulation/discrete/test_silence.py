"""Bare peers doubt who is silent, when real links would."""

import pytest

from p2pmesh.config import MeshConfig
from p2pmesh.protocols.inputs import LinkRecovered, LinkSuspected, Subsystem
from p2pmesh.simulation.discrete.network import BareNetwork

ROUTING = list(Subsystem).index(Subsystem.ROUTING)


def mesh(count):
    """A mesh, and what its routing cores are told of silence, each with the time and the number of the peer."""
    net = BareNetwork(seed=1, config=MeshConfig(max_peers=4))
    told = []
    for _ in range(count):
        overhear(net.add(), told)
        net.run(0.1)
    net.run(12)
    assert not told, "who answers is not doubted"
    return net, told


def overhear(node, told):
    handle = node._handles[ROUTING]

    def hear(event, now):
        if isinstance(event, LinkSuspected | LinkRecovered):
            told.append((now, node.number, event))
        return handle(event, now)

    node._handles[ROUTING] = hear


def neighbours_of(net, node):
    return [other for other in net.nodes if node.peer_id in other.links.ends]


def when_doubted(net, neighbour, peer_id):
    """If it is sent something now."""
    return net.now + neighbour.config.links.doubt_after + 4 * neighbour.links.ends[peer_id].path.base


def test_a_crashed_neighbour_is_doubted_soon_after_something_was_sent_to_it():
    net, told = mesh(6)
    victim = net.nodes[2]
    neighbours = neighbours_of(net, victim)
    net.stop(victim)
    due = {}
    for node in neighbours:
        net.send(node, victim.peer_id, "are you there?")
        due[node.number] = when_doubted(net, node, victim.peer_id)
    net.run(10)
    assert {number: now for now, number, _ in told} == pytest.approx(due)
    assert [event for _, _, event in told] == [LinkSuspected(victim.peer_id)] * len(neighbours)


def test_a_crashed_neighbour_to_whom_nothing_is_sent_is_doubted_after_the_first_ping(monkeypatch):
    net, told = mesh(6)
    victim = net.nodes[2]
    monkeypatch.setattr(type(victim.links), "send", lambda *_args, **_kwargs: None)  # nobody says anything any more
    crashed, idle = net.now, victim.config.links.keepalive_idle
    heard = {
        node.number: crashed - (crashed - node.links.ends[victim.peer_id].heard) % idle
        for node in neighbours_of(net, victim)
    }
    after = {node.number: when_doubted(net, node, victim.peer_id) - crashed for node in neighbours_of(net, victim)}
    net.stop(victim)
    net.run(idle + 0.9)
    assert {number: now for now, number, _ in told} == pytest.approx({n: heard[n] + idle + after[n] for n in heard})


def test_a_frozen_peer_is_doubted_and_heard_again_when_it_goes_on():
    net, told = mesh(8)
    node = net.nodes[0]
    neighbours = neighbours_of(net, node)
    net.freeze(node)
    for other in neighbours:
        net.send(other, node.peer_id, "into silence")
    net.run(1.5)
    assert [event for *_, event in told] == [LinkSuspected(node.peer_id)] * len(neighbours)
    del told[:]
    net.thaw(node)
    thawed = net.now
    net.run(2)
    assert told == [(thawed, other.number, LinkRecovered(node.peer_id)) for other in neighbours]


def test_who_is_stopped_while_it_doubts_a_frozen_peer_is_told_all_the_same_when_that_goes_on():
    net, told = mesh(6)
    node = net.nodes[0]
    doubter = neighbours_of(net, node)[0]
    net.freeze(node)
    net.send(doubter, node.peer_id, "into silence")
    net.run(1)
    assert (doubter.number, LinkSuspected(node.peer_id)) in [(number, event) for _, number, event in told]
    del told[:]
    net.freeze(doubter)
    net.run(0.5)
    net.thaw(doubter)
    net.run(0.5)
    net.thaw(node)
    net.run(1)
    assert [event for _, number, event in told if number == doubter.number and event.peer == node.peer_id] == [
        LinkRecovered(node.peer_id)
    ]
