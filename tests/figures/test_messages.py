"""How long broadcasts, receipts and direct messages take, and what they put on the wire."""

import random

import pytest

from tests.figures.measures import Limit, broadcasts, check, mesh, send_past_a_death, sends

BROADCASTS = {  # among 30 peers, the first that ten of them make
    "delivered_s": Limit(0.87, today=0.47),
    "settled_s": Limit(2.2, today=1.32),
    "frames_per_delivery": Limit(10.5, today=7.15),
    "bytes_per_delivery": Limit(1_400, today=961),
}
SENDS = {  # among 30 peers
    "took_per_hop_s": Limit(0.32, today=0.213),
    "hops_mean": Limit(5, today=3.4),
    "frames_per_hop": Limit(10, today=4.96),
    "bytes_per_hop": Limit(5_500, today=2_729),
}
PAST_A_DEATH = {  # among 20 peers
    "took_s": Limit(2.0, today=0.69),
    "frames": Limit(110, today=58),
    "bytes": Limit(70_000, today=36_190),
}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))])
def test_broadcasts_are_delivered_and_their_receipts_settle(seed):
    check(broadcasts(mesh(30, seed), 10), BROADCASTS)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))])
def test_direct_messages_take_one_round_trip_for_each_link(seed):
    check(sends(mesh(30, seed, dht=False), random.Random(seed), 10), SENDS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_direct_message_finds_a_way_past_a_relay_that_died_silently(seed):
    check(send_past_a_death(mesh(20, seed, dht=False), random.Random(seed)), PAST_A_DEATH)
