"""What joins cost the signaling service, in meshes of bare peers."""

from __future__ import annotations

from functools import reduce
from operator import getitem

import pytest

from p2pmesh.config import MeshConfig
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.simulation import BareNetwork


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
