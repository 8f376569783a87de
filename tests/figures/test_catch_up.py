"""How soon peers that were cut off have everything that they missed, and what that costs."""

import pytest

from tests.figures.measures import Limit, catch_up, check, mesh

ONE_OF_SIX = {
    "linked_s": Limit(11, today=7.3),
    "caught_up_s": Limit(4.5, today=3.0),
    "frames": Limit(8_000, today=5_403),
    "bytes": Limit(3_200_000, today=2_131_143),
}
HALVES = {
    "linked_s": Limit(12, today=7.6),
    "caught_up_s": Limit(4.5, today=2.8),
    "frames": Limit(15_000, today=9_932),
    "bytes": Limit(6_600_000, today=4_382_251),
}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))])
def test_a_peer_that_was_cut_off_catches_up_on_1500_broadcasts(seed):
    check(catch_up(mesh(6, seed), [0], 1500), ONE_OF_SIX)


@pytest.mark.simulation
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("max_peers", [3, 4])
def test_two_halves_catch_up_on_1500_broadcasts(max_peers, seed):
    """Here links fall behind, and get offers only for a while."""
    check(catch_up(mesh(6, seed, max_peers=max_peers), [0, 1, 2], 1500), HALVES)
