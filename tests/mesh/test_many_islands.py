"""However many peers and islands there are, no storm of bridges or links goes with their becoming one ring."""

import pytest

from p2pmesh.protocols.islands.bridge_merge import TRIED_FOR
from p2pmesh.simulation import read_meter
from p2pmesh.simulation.discrete.invariants import islands, ring_gaps
from tests.mesh.test_islands import Parted

pytestmark = pytest.mark.simulation


def test_ten_islands_become_one_ring_without_a_storm_of_links():
    mesh = Parted(30)
    mesh.cut(*[3] * 9, keeps_service=True, seconds=45)
    assert len(islands(mesh.net)) >= 10
    needed, before = len(ring_gaps(mesh.net)), read_meter(mesh.net)
    assert mesh.heals_within(60)
    mesh.net.run(30)
    opened = (read_meter(mesh.net) - before).links_opened
    assert opened <= 3 * needed, "the ring's, and some long ones that everybody has slots for again"


@pytest.mark.parametrize("peers", [20, 80])
def test_bridges_that_are_tried_are_as_many_for_four_times_the_peers(peers):
    apart = 60.0
    mesh = Parted(peers)
    mesh.cut(peers // 2, keeps_service=True, seconds=apart)
    assert mesh.heals_within(30)
    mesh.net.run(15)
    rounds = 1 + (apart + 30 + 15) / TRIED_FOR
    assert 1 <= mesh.total("detection.bridges") <= 2 * 2 * rounds, (
        "one at a time on each side, or two that begin at once"
    )
