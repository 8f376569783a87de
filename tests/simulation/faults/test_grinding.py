"""Keys that are ground: true ones, as near as so many tries bring them."""

import random

from p2pmesh.identity import peer_id_of
from p2pmesh.keyspace import RING_SIZE, nearness
from p2pmesh.simulation.faults.grinding import TRIES, ground
from p2pmesh.simulation.faults.hostile_peer import invented


def test_ground_ids_are_true_and_nearer_than_honest_ones_come():
    (victim,) = invented(random.Random(1), 1)
    identities = ground(victim, 9)
    assert all(peer_id_of(one.public_key) == one.peer_id for one in identities)
    assert {one.peer_id < victim for one in identities} == {True, False}
    distances = [nearness(victim, one.peer_id) for one in identities]
    assert distances == sorted(distances)
    assert distances[-1] < RING_SIZE / TRIES * 20


def test_nobody_gets_an_id_that_is_taken():
    (victim,) = invented(random.Random(2), 1)
    first = [one.peer_id for one in ground(victim, 5)]
    assert [one.peer_id for one in ground(victim, 10)][:5] == first
    assert not set(first) & {one.peer_id for one in ground(victim, 5, first)}
