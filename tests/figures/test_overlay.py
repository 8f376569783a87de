"""How soon the overlay is one ring again, what that costs, and what it costs when nothing happens."""

import random

import pytest

from tests.figures.measures import Limit, check, healing, joins, mesh, newcomer, rest

JOINS = {  # of 30 peers, ten a second
    "whole_s": Limit(7, today=3.7),
    "frames": Limit(5_300, today=3_520),
    "bytes": Limit(1_300_000, today=849_600),
    "links_opened": Limit(110, today=78),
    "service_messages": Limit(420, today=312),
}
NEWCOMER = {  # to 30 peers at rest
    "whole_s": Limit(2, today=1.3),
    "frames": Limit(510, today=339),
    "bytes": Limit(125_000, today=82_350),
    "links_opened": Limit(12, today=7),
    "service_messages": Limit(13, today=9),
}
HEALING = {  # of 12 peers in two halves
    "whole_s": Limit(15, today=11.4),
    "frames": Limit(1_500, today=1_000),
    "bytes": Limit(380_000, today=253_400),
    "links_opened": Limit(24, today=14),
}
REST = {  # of 20 peers
    "frames_per_peer_per_s": Limit(0.2, today=0.135),
    "bytes_per_peer_per_s": Limit(0.6, today=0.405),
    "links_opened": Limit(2, today=0),
    "service_messages": Limit(0, today=0),
}
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))]


@pytest.mark.parametrize("seed", SEEDS)
def test_joins_settle(seed):
    check(joins(seed, 30), JOINS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_newcomer_finds_its_place(seed):
    check(newcomer(mesh(30, seed)), NEWCOMER)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_partition_heals(seed):
    check(healing(mesh(12, seed), random.Random(seed)), HEALING)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mesh_at_rest_is_quiet(seed):
    check(rest(mesh(20, seed, settle=300), 120), REST)
