"""What is on its way: bounded in number, bytes and time."""

from __future__ import annotations

import math

from p2pmesh.protocols.util.window import OUTCOME_GRACE, CallTable, Window

# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_window_is_bounded_in_number_and_in_bytes():
    window = Window[int, str](3, 100)
    assert window.has_room(1000), "an empty one takes a message of any size"
    window.add(1, "a", 40)
    assert window.has_room(60)
    assert not window.has_room(61)
    window.add(2, "b", 0)
    window.add(3, "c", 0)
    assert not window.has_room(0)
    assert (len(window), list(window), window.oldest(), window.bytes) == (3, [1, 2, 3], "a", 40)


def test_what_has_ended_makes_room_once():
    window = Window[int, str](1, 100)
    window.add(1, "a", 40)
    assert (window.pop(1), window.pop(1), window.get(1)) == ("a", None, None)
    assert 1 not in window
    assert window.bytes == 0
    assert window.has_room(100)


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_ends_once_under_its_own_number():
    calls = CallTable[str](2, 10.0)
    assert calls.next_deadline() == math.inf
    first, second = calls.open("a", 0.0), calls.open("b", 1.0)
    assert calls.is_full
    assert (calls.close(first), calls.close(first), calls.values()) == ("a", None, ["b"])
    assert not calls.is_full
    assert calls.open("c", 1.0) not in {first, second}


def test_a_call_whose_outcome_stays_away_ends_by_itself():
    calls = CallTable[str](2, 10.0)
    late, _ = calls.open("a", 0.0), calls.open("b", 1.0)
    assert calls.next_deadline() == 10.0 + OUTCOME_GRACE
    assert calls.pop_overdue(9.9 + OUTCOME_GRACE) == {}
    assert calls.pop_overdue(10.0 + OUTCOME_GRACE) == {1: "a"}
    assert (len(calls), calls.lost, calls.close(late)) == (1, 1, None)
    assert calls.pop_overdue(100.0) == {2: "b"}
    assert calls.next_deadline() == math.inf
