"""What joins cost the signaling service, in meshes of bare peers."""

from __future__ import annotations

from functools import reduce
from operator import getitem

import pytest

from p2pmesh.config import KademliaConfig, MeshConfig
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.simulation import BareNetwork, Conditions, Constant
from p2pmesh.simulation.discrete.invariants import ring_cycles, ring_gaps
from p2pmesh.simulation.discrete.traffic import Traffic
from p2pmesh.wire.codec import decode
from p2pmesh.wire.messages import Answer, LinkRejected, Offer
from p2pmesh.wire.overlay import Packet


def counted(net, path):
    """The sum of a number of all snapshots, by its dotted path."""
    snapshots = [node.cores[Subsystem.SIGNALING].snapshot() for node in net.living()]
    return sum(reduce(getitem, path.split("."), snapshot) for snapshot in snapshots)


def grow(net, count):
    """So many more peers; gives what each of them cost the service, in and out together."""
    before = net.service.sent + net.service.received
    for _ in range(count):
        net.add()
        net.run(0.5)
    return (net.service.sent + net.service.received - before) / count


@pytest.mark.parametrize("few", [5, pytest.param(10, marks=pytest.mark.simulation)])
def test_a_join_costs_the_service_the_same_in_a_larger_mesh_and_then_everything_goes_through_the_mesh(few):
    net = BareNetwork(seed=5, config=MeshConfig(max_peers=5))
    grow(net, few - 2)
    small = grow(net, few)
    grow(net, few + 2)
    large = grow(net, few)
    assert large <= 1.25 * small
    assert max(small, large) <= 16
    net.run(20)
    joins, offers = len(net.nodes), counted(net, "delivery.offers.mesh")
    assert counted(net, "joins") <= 1.2 * joins
    assert counted(net, "delivery.offers.service") <= 1.5 * joins  # one, the first, has no other way
    assert offers > joins
    net.service.stop()
    broken = [end for node in net.living()[::10] for end in list(node.links.ends.values())[:1]]
    for end in broken:
        net.break_link(end)
    served = counted(net, "delivery.offers.service")
    net.run(15)
    assert counted(net, "delivery.offers.mesh") > offers
    assert counted(net, "delivery.offers.service") == served


def test_an_offer_through_the_mesh_is_one_packet_and_what_answers_it_another(monkeypatch):
    packets, count = [], Traffic.sent

    def sent(traffic, message, copies):
        if isinstance(message, Packet):
            packets.append((message, type(decode(message.carry)) if message.carry else None))
        return count(traffic, message, copies)

    net = BareNetwork(seed=5, config=MeshConfig(max_peers=5, kademlia=KademliaConfig(enabled=False)))
    grow(net, 6)
    monkeypatch.setattr(Traffic, "sent", sent)
    grow(net, 6)
    offers = {packet.id for packet, carried in packets if carried is Offer}
    assert len(offers) >= 12
    repeated = {packet.id for packet, carried in packets if carried is Offer and packet.attempt}
    assert len(repeated) <= 0.2 * len(offers)  # those whose answer waits for a slot
    answered = {packet.id for packet, carried in packets if carried in {Answer, LinkRejected}}
    assert len(answered & offers) >= 0.8 * len(offers)
    assert not [packet for packet, _ in packets if packet.kind == "ack" and packet.id in offers]
    assert max(len(packet.carry) for packet, carried in packets if carried in {Offer, Answer}) <= 300


@pytest.mark.parametrize("seed", range(3))
def test_where_packets_come_late_offers_go_through_the_mesh_all_the_same(seed):
    conditions = Conditions(latency=Constant(0.02), loss=0.2)
    net = BareNetwork(seed=seed, config=MeshConfig(max_peers=5), conditions=conditions, strict=False)
    grow(net, 12)
    net.run(20)
    assert ring_cycles(net) == 1
    assert not ring_gaps(net)
    assert counted(net, "delivery.offers.mesh") >= 2 * len(net.nodes)
    assert counted(net, "delivery.offers.service") <= 3 * len(net.nodes)
