"""`benchmarks/eclipse.py`, shortened: attackers that hold all places next to a peer don't cut it off."""

import pytest

from benchmarks.eclipse import besieged, pool


@pytest.mark.parametrize(
    ("kind", "max_peers", "seed"),
    [
        ("after", 3, 1),
        *(
            pytest.param(kind, max_peers, seed, marks=pytest.mark.simulation)
            for kind in ("after", "again", "mute")
            for max_peers in (3, 6)
            for seed in (2,)
        ),
    ],
)
def test_a_crowd_of_black_holes_cuts_nobody_off(kind, max_peers, seed):
    run = besieged(kind, 20, max_peers, seed, lasts=60.0, keys=pool(keys=4000))
    assert run["ok"], run
    assert run["honest"] == 1
    assert run["suspected"]
