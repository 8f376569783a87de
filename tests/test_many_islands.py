"""Ten islands at once become one ring, and no storm of links goes with it."""

import pytest

from p2pmesh.simulation import read_meter
from p2pmesh.simulation.invariants import islands, ring_gaps
from tests.test_islands import Parted

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
