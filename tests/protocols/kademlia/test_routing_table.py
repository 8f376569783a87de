"""The DHT's contacts: who gets into a bucket, who goes, and who is nearest."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import ID_BITS, PeerId, xor_distance
from p2pmesh.protocols.kademlia.routing_table import CROWD, RoutingTable

ME = PeerId("0" * 40)
CONFIG = KademliaConfig(k=3, silent=4, contact_lasts=300.0)


def far(number: int) -> PeerId:
    """A peer of the farthest half of the id space."""
    return PeerId(f"{(1 << 159) + number:040x}")


def near(number: int) -> PeerId:
    return PeerId(f"{number:040x}")


def known(table: RoutingTable, now: float) -> list[PeerId]:
    return table.closest(ME, 100, now)


@pytest.fixture
def table():
    return RoutingTable(ME, CONFIG)


@pytest.fixture
def full(table):
    for number in range(3):
        table.heard(far(number), float(number))
    return table


# --- contacts ---------------------------------------------------------------------------------------------------------


def test_who_speaks_becomes_a_contact_once(table):
    table.heard(far(1), 0.0)
    table.heard(far(1), 1.0)
    assert known(table, 1.0) == [far(1)]
    assert table.snapshot()["contacts"] == 1


def test_we_are_no_contact_of_ours(table):
    table.heard(ME, 0.0)
    table.around([ME, near(1)])
    assert known(table, 0.0) == [near(1)]


def test_who_was_not_heard_of_for_long_counts_no_more_until_it_speaks(table):
    table.heard(far(1), 0.0)
    assert known(table, 299.9) == [far(1)]
    assert known(table, 300.0) == []
    table.heard(far(1), 400.0)
    assert known(table, 699.9) == [far(1)]


def test_a_full_bucket_keeps_its_old_contacts_while_they_speak_now_and_then(full):
    full.heard(far(9), 10.0)
    assert known(full, 10.0) == [far(0), far(1), far(2)]


def test_a_newcomer_takes_the_place_of_the_contact_that_has_lapsed_longest_ago(full):
    full.heard(far(0), 50.0)
    full.heard(far(9), 301.0)
    assert known(full, 301.0) == [far(0), far(2), far(9)]
    assert full.snapshot()["contacts"] == 3


def test_a_bucket_of_many_does_not_take_the_place_of_another(full):
    full.heard(near(1), 10.0)
    assert full.snapshot()["buckets"] == {"159": 1, "0": 3}


# --- those who are gone -----------------------------------------------------------------------------------------------


def test_who_does_not_answer_is_no_contact_any_more(full):
    full.gone(far(1), 5.0)
    assert known(full, 5.0) == [far(0), far(2)]


def test_who_is_gone_counts_as_silent_for_a_while_unless_it_speaks(table):
    table.heard(far(1), 0.0)
    table.gone(far(1), 0.0)
    assert table.is_silent(far(1), 59.9)
    assert not table.is_silent(far(1), 60.0)
    table.gone(far(2), 0.0)
    table.heard(far(2), 1.0)
    assert not table.is_silent(far(2), 2.0)
    table.gone(far(3), 0.0)
    table.linked(far(3))
    assert not table.is_silent(far(3), 2.0)


def test_who_is_silent_is_not_named_though_the_ring_names_it(table):
    table.around([far(1), near(1)])
    table.gone(far(1), 0.0)
    assert known(table, 59.9) == [near(1)]
    assert known(table, 60.0) == [near(1), far(1)]


def test_the_memory_of_silent_peers_is_bounded(table):
    for number in range(20):
        table.gone(far(number), 0.0)
    assert sum(table.is_silent(far(number), 1.0) for number in range(20)) == 4


# --- neighbours, and the peers around us ------------------------------------------------------------------------------


def test_a_neighbour_counts_for_as_long_as_it_is_one_and_then_as_if_it_had_just_spoken(table):
    assert table.is_alone
    table.linked(far(1))
    assert not table.is_alone
    assert known(table, 10_000.0) == [far(1)]
    table.unlinked(far(1), 10_000.0)
    assert table.is_alone
    assert known(table, 10_299.0) == [far(1)]
    assert known(table, 10_300.0) == []


def test_a_link_that_ends_makes_no_contact_of_a_peer_that_was_no_neighbour(table):
    table.unlinked(far(1), 0.0)
    assert known(table, 0.0) == []


def test_of_the_peers_around_us_those_that_were_not_before_are_told_with_how_many_are_between(table):
    ring = [far(0), far(1), near(1), near(2), near(3)]
    assert table.around(ring[1:]) == [(0, near(1)), (1, near(2)), (1, near(3)), (0, far(1))]
    assert table.around(ring) == [(1, far(0))]
    assert table.around(ring[2:]) == []
    assert known(table, 10_000.0) == ring[2:]


# --- who is nearest ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(1, (1 << ID_BITS) - 1), max_size=60, unique=True),
    st.integers(0, (1 << ID_BITS) - 1),
    st.integers(1, 30),
)
def test_the_nearest_that_we_know_are_the_nearest_that_we_know(numbers, goal, count):
    table = RoutingTable(ME, KademliaConfig(k=64))
    peers, target = [near(number) for number in numbers], near(goal)
    for place, peer in enumerate(peers):
        if place % 3 == 0:
            table.heard(peer, 0.0)
        elif place % 3 == 1:
            table.linked(peer)
    table.around(peers[2::3])
    ranked = sorted(peers, key=lambda peer: xor_distance(peer, target))
    assert table.closest(target, count, 0.0) == ranked[:count]
    nearer = sum(xor_distance(peer, target) < xor_distance(ME, target) for peer in peers)
    assert [table.is_among(target, one, 0.0) for one in (nearer - 0.1, nearer, nearer + 1)] == [False, True, True]


# --- crowds -----------------------------------------------------------------------------------------------------------


def around_us(table: RoutingTable, gap: int, count: int = 16) -> None:
    """Put so many peers around us on the ring, with such gaps between them."""
    table.around([near(number * gap % (1 << ID_BITS)) for number in range(-count // 2, count // 2 + 1) if number])


def test_the_peers_around_us_say_how_many_there_are(table):
    assert table.density == 0
    around_us(table, 1 << 150, 6)
    assert table.density == 0, "too few to say"
    around_us(table, 1 << 150)
    assert table.density * (1 << 150) == pytest.approx(1.0)


def test_of_an_improbable_crowd_near_a_place_a_part_is_named():
    table = RoutingTable(ME, KademliaConfig(k=64))
    target = far(0)
    crowd = [far(1 + number) for number in range(30)]
    others = [far((1 << 152) * (1 + number)) for number in range(40)]
    for peer in [*crowd, *others]:
        table.linked(peer)
    assert table.closest(target, 20, 0.0) == crowd[:20], "nobody knows how many there should be"
    around_us(table, 1 << 152)
    assert table.closest(target, 20, 0.0) == [*crowd[:CROWD], *others[: 20 - CROWD]]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1 << 30), st.sampled_from([20, 100, 300]))
def test_by_chance_hardly_ever_is_there_a_crowd(seed, size):
    rng = random.Random(seed)
    peers = sorted({near(rng.getrandbits(ID_BITS)) for _ in range(size)})
    me = rng.choice(peers)
    table = RoutingTable(me, KademliaConfig(k=64))
    place = peers.index(me)
    table.around([peers[(place + way) % len(peers)] for way in range(-8, 9) if way])
    peers.remove(me)
    for peer in peers:
        table.linked(peer)
    misses = 0
    for _ in range(20):
        target = near(rng.getrandbits(ID_BITS))
        ranked = sorted(peers, key=lambda peer: xor_distance(peer, target))
        misses += table.closest(target, 20, 0.0) != ranked[:20]
    assert misses <= 1
