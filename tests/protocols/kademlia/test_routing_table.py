"""The DHT's contacts: who gets into a bucket, who goes, and who is nearest."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import ID_BITS, PeerId, xor_distance
from p2pmesh.protocols.kademlia.routing_table import RoutingTable

ME = PeerId("0" * 40)
CONFIG = KademliaConfig(k=3, replacements=2, silent=4)


def far(number: int) -> PeerId:
    """A peer of the farthest half of the id space."""
    return PeerId(f"{(1 << 159) + number:040x}")


def near(number: int) -> PeerId:
    return PeerId(f"{number:040x}")


@pytest.fixture
def table():
    return RoutingTable(ME, CONFIG)


@pytest.fixture
def full(table):
    for number in range(3):
        table.heard(far(number), float(number))
    return table


def test_who_speaks_becomes_a_contact_once(table):
    assert table.heard(far(1), 0.0)
    assert not table.heard(far(1), 1.0)
    assert list(table) == [far(1)]


def test_we_are_no_contact_of_ours(table):
    assert not table.heard(ME, 0.0)
    assert len(table) == 0
    assert ME not in table


def test_a_full_bucket_keeps_its_old_contacts_and_lets_the_newcomer_wait(full):
    assert full.heard(far(9), 10.0)
    assert far(9) not in full
    assert len(full) == 3
    assert not full.heard(far(9), 11.0), "it is not new a second time"


def test_the_least_recently_seen_is_doubted_for_a_newcomer_once_it_was_silent_for_long(full):
    full.heard(far(0), 50.0)
    full.heard(far(9), 60.0)
    assert full.in_doubt(far(9), 60.0) is None
    assert full.in_doubt(far(9), 120.9) is None
    assert full.in_doubt(far(9), 121.0) == far(1), "two minutes after it spoke last"


def test_who_fails_to_answer_makes_room_for_who_waited_last(full):
    full.heard(far(8), 10.0)
    full.heard(far(9), 11.0)
    assert full.failed(far(1), 12.0)
    assert far(1) not in full
    assert far(9) in full
    assert len(full) == 3


def test_nobody_waits_in_line_beyond_the_bound(full):
    for number in range(10, 20):
        full.heard(far(number), 10.0)
    assert full.snapshot()["replacements"] == 2


def test_without_replacement_a_contact_may_fail_once_and_is_not_named_meanwhile(full):
    assert not full.failed(far(1), 5.0)
    assert far(1) in full
    assert far(1) not in full.closest(ME, 3)
    full.heard(far(1), 6.0)
    assert far(1) in full.closest(ME, 3)
    assert not full.failed(far(1), 7.0)
    assert full.failed(far(1), 8.0)
    assert far(1) not in full


def test_who_is_gone_counts_as_silent_for_a_while_unless_it_speaks(table):
    table.heard(far(1), 0.0)
    table.remove(far(1), 0.0)
    assert table.is_silent(far(1), 59.9)
    assert not table.is_silent(far(1), 60.0)
    table.remove(far(2), 0.0)
    table.heard(far(2), 1.0)
    assert not table.is_silent(far(2), 2.0)


def test_the_memory_of_silent_peers_is_bounded(table):
    for number in range(20):
        table.failed(far(number), 0.0)
    assert sum(table.is_silent(far(number), 1.0) for number in range(20)) == 4


def test_an_empty_bucket_is_forgotten(table):
    table.heard(far(1), 0.0)
    table.remove(far(1), 0.0)
    assert table.snapshot() == {"contacts": 0, "buckets": {}, "replacements": 0}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, (1 << ID_BITS) - 1), max_size=60, unique=True),
    st.integers(0, (1 << ID_BITS) - 1),
    st.integers(1, 30),
)
def test_the_nearest_contacts_are_the_nearest_contacts(numbers, goal, count):
    table = RoutingTable(ME, KademliaConfig(k=20))
    for number in numbers:
        table.heard(near(number), 0.0)
    target = near(goal)
    ranked = sorted(table, key=lambda peer: xor_distance(peer, target))
    assert table.closest(target, count) == ranked[:count]
    assert table.nearer(target) == sum(xor_distance(peer, target) < xor_distance(ME, target) for peer in table)


def test_only_buckets_beyond_the_k_nearest_that_nobody_looked_into_go_stale(table):
    for number in (1, 2, 3):
        table.heard(near(number), 0.0)
    table.heard(near(1 << 100), 0.0)
    table.heard(far(1), 0.0)
    assert table.stale(10.0) == [159, 100]
    table.touch(far(77), 20.0)
    assert table.stale(10.0) == [100]


def test_the_nearest_bucket_that_is_not_half_full_is_thin():
    table = RoutingTable(ME, KademliaConfig(k=4))
    assert table.thin() is None
    for number in range(4):
        table.heard(near(8 + number), 0.0)
    assert table.thin() == 4
    for index in range(4, 159):
        table.heard(near(1 << index), 0.0)
        table.heard(near((1 << index) + 1), 0.0)
    assert table.thin() == 159
    table.heard(far(1), 0.0)
    table.heard(far(2), 0.0)
    assert table.thin() is None


@given(st.integers(0, 159), st.integers(0, 99))
def test_a_random_id_of_a_bucket_lies_in_it(index, seed):
    table = RoutingTable(ME, CONFIG)
    assert table.index(table.random_id(index, random.Random(seed))) == index
