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
    "linked_s": Limit(9, today=5.8),
    "caught_up_s": Limit(45, today=34.6),
    "frames": Limit(17_000, today=12_300),
    "bytes": Limit(7_000_000, today=4_753_000),
}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))])
def test_a_peer_that_was_cut_off_catches_up_on_1500_broadcasts(seed):
    check(catch_up(mesh(6, seed), [0], 1500), ONE_OF_SIX)


@pytest.mark.simulation
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_halves_catch_up_on_1500_broadcasts(seed):
    """Links fall behind here: what they drop is found by the next comparison, half a minute later."""
    check(catch_up(mesh(6, seed), [0, 1, 2], 1500), HALVES)


@pytest.mark.simulation
@pytest.mark.xfail(strict=False, reason="what waits in the backlog of a slow link is refused once asked for too often")
@pytest.mark.parametrize("seed", [3])
def test_two_halves_with_as_few_links_as_can_be_catch_up_on_1500_broadcasts(seed):
    check(catch_up(mesh(6, seed, max_peers=3), [0, 1, 2], 1500), HALVES)
