"""The space of ids: what its two distances promise."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pmesh.errors import InvalidPeerId
from p2pmesh.keyspace import RING_SIZE, PeerId, between, is_peer_id, parse_peer_id, ring_distance, short, xor_distance

ids = st.integers(0, RING_SIZE - 1).map(lambda number: PeerId(f"{number:040x}"))
LOWEST, HIGHEST = PeerId("0" * 40), PeerId("f" * 40)


@given(ids)
def test_every_id_of_40_hexadecimal_digits_is_one(peer_id: PeerId) -> None:
    assert is_peer_id(peer_id)
    assert parse_peer_id(peer_id) == peer_id
    assert peer_id.startswith(short(peer_id))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 39,
        "a" * 41,
        "A" * 40,
        "g" * 40,
        "a" * 39 + "\n",
        "a" * 40 + "\n",
        " " + "a" * 39,
        "\u0661" * 40,
        "0x" + "a" * 38,
    ],
)
def test_nothing_else_is_an_id(text: str) -> None:
    assert not is_peer_id(text)
    with pytest.raises(InvalidPeerId, match="40 lower-case hexadecimal digits"):
        parse_peer_id(text)


@pytest.mark.parametrize("value", [None, 5, b"a" * 40, ["a" * 40]])
def test_what_is_no_text_is_no_id(value: object) -> None:
    with pytest.raises(InvalidPeerId):
        parse_peer_id(value)  # type: ignore[arg-type]


def test_the_error_quotes_little_of_a_long_text() -> None:
    with pytest.raises(InvalidPeerId) as caught:
        parse_peer_id("x" * 100_000)
    assert len(str(caught.value)) < 200


@given(ids, ids)
def test_ids_order_as_text_as_they_do_as_numbers(a: PeerId, b: PeerId) -> None:
    assert (a < b) == (int(a, 16) < int(b, 16))


# --- XOR: a metric in which each distance from one id belongs to one other --------------------------------------------


@given(ids, ids)
def test_xor_distance_is_symmetric_and_zero_only_to_itself(a: PeerId, b: PeerId) -> None:
    assert xor_distance(a, b) == xor_distance(b, a)
    assert (xor_distance(a, b) == 0) == (a == b)
    assert 0 <= xor_distance(a, b) < RING_SIZE


@given(ids, ids, ids)
def test_xor_distance_knows_no_shorter_detour(a: PeerId, b: PeerId, c: PeerId) -> None:
    assert xor_distance(a, c) <= xor_distance(a, b) + xor_distance(b, c)


@given(ids, ids, ids)
def test_xor_distances_from_one_id_differ(a: PeerId, b: PeerId, c: PeerId) -> None:
    assert (xor_distance(a, b) == xor_distance(a, c)) == (b == c)


# --- the ring: one way round ------------------------------------------------------------------------------------------


@given(ids, ids)
@example(LOWEST, HIGHEST)
def test_there_and_back_is_once_round_the_ring(a: PeerId, b: PeerId) -> None:
    there, back = ring_distance(a, b), ring_distance(b, a)
    assert there + back == (0 if a == b else RING_SIZE)
    assert 0 <= there < RING_SIZE


@given(ids, ids, ids)
def test_ring_distances_add_up_round_the_ring(a: PeerId, b: PeerId, c: PeerId) -> None:
    assert (ring_distance(a, b) + ring_distance(b, c)) % RING_SIZE == ring_distance(a, c)


def test_the_ring_closes_behind_the_highest_id() -> None:
    assert ring_distance(HIGHEST, LOWEST) == 1
    assert ring_distance(LOWEST, HIGHEST) == RING_SIZE - 1


@given(ids, ids, ids)
def test_of_three_ids_each_is_between_the_others_on_one_way_round(a: PeerId, b: PeerId, c: PeerId) -> None:
    if len({a, b, c}) == 3:
        assert between(a, b, c) != between(c, b, a)
        assert between(a, b, c) == between(b, c, a) == between(c, a, b)


@given(ids, ids)
def test_the_ends_are_not_between(a: PeerId, b: PeerId) -> None:
    assert not between(a, a, b)
    assert not between(a, b, b)


@given(ids, ids)
@example(LOWEST, LOWEST)
def test_once_round_the_ring_all_but_the_start_is_between(a: PeerId, b: PeerId) -> None:
    assert between(a, b, a) == (a != b)
