"""How soon peers that were cut off have everything that they missed, and what that costs."""

import pytest

from tests.figures.measures import Limit, catch_up, check, mesh

ONE_OF_SIX = {
    "linked_s": Limit(11, today=5.8),
    "caught_up_s": Limit(3.5, today=2.3),
    "frames": Limit(6_500, today=4_295),
    "bytes": Limit(1_300_000, today=841_900),
}
HALVES = {
    "linked_s": Limit(12, today=6.7),
    "caught_up_s": Limit(4, today=2.6),
    "frames": Limit(13_000, today=8_842),
    "bytes": Limit(2_800_000, today=1_862_000),
}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))])
def test_a_peer_that_was_cut_off_catches_up_on_1500_broadcasts(seed):
    check(catch_up(mesh(6, seed), [0], 1500), ONE_OF_SIX)


@pytest.mark.simulation
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("max_peers", [3, 4])
def test_two_halves_catch_up_on_1500_broadcasts(max_peers, seed):
    """Here links fall behind for a while."""
    check(catch_up(mesh(6, seed, max_peers=max_peers), [0, 1, 2], 1500), HALVES)
