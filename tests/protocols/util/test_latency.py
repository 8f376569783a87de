"""What time-outs are made of."""

from __future__ import annotations

import math

import pytest

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.latency import CATCH_UP, LATE, RECENT, LocalHealth, RoundTripTime, RoundTripTimes

A, B, C = (PeerId(digit * 40) for digit in "abc")


def test_a_round_trip_is_smoothed_as_rfc_6298_says():
    time = RoundTripTime()
    assert (time.measured, time.deviation, time.mean(7.0), time.expected(7.0)) == (None, 0.0, 7.0, 7.0)
    time.sample(1.0)
    assert (time.measured, time.deviation, time.expected()) == (1.0, 0.5, 3.0)
    time.sample(3.0)
    assert time.deviation == pytest.approx(0.75 * 0.5 + 0.25 * 2.0)
    assert time.measured == pytest.approx(7 / 8 * 1.0 + 1 / 8 * 3.0)
    assert time.expected(deviations=2) == pytest.approx(1.25 + 2 * 0.875)
    assert (time.shortest, RoundTripTime().shortest) == (1.0, math.inf)


def test_a_peer_that_has_not_answered_yet_is_taken_for_the_average_of_all():
    times = RoundTripTimes(2)
    assert times.of(A) is None
    times.sample(A, 1.0)
    times.sample(B, 3.0)
    assert [times.of(peer).measured for peer in (A, B)] == [1.0, 3.0]
    assert times.of(C).measured == pytest.approx(1.25)
    assert times.of(B).deviation == times.of(C).deviation, "of its own spread one answer says nothing"
    times.sample(A, 5.0)
    assert times.of(A).measured == pytest.approx(1.5)
    times.sample(C, 1.0)
    assert len(times) == 2
    assert times.of(B).measured not in (3.0, None), "the least recently heard is forgotten"


def test_what_is_a_little_late_loses_no_time():
    health = LocalHealth()
    health.note(due=10.0, now=10.0 + LATE)
    assert (health.lost, health.is_poor(10.1)) == (0.0, False)


def test_a_stop_is_lost_time_and_what_it_takes_to_catch_up_too():
    health = LocalHealth()
    health.note(due=10.0, now=70.0)
    assert health.lost == 60.0 + CATCH_UP
    assert health.is_poor(70.0 + RECENT - 0.01)
    assert not health.is_poor(70.0 + RECENT)


def test_time_that_two_timers_have_lost_is_lost_once():
    health = LocalHealth()
    for due in (10.0, 12.0, 19.0):
        health.note(due, now=20.0)
    assert health.lost == 10.0 + CATCH_UP


def test_in_a_loop_that_is_always_late_each_turn_counts_as_time_in_which_we_listened():
    health, now, turns = LocalHealth(), 100.0, 30
    for _ in range(turns):
        health.note(due=now + 0.01, now=now + 2.0)
        now += 2.0
    listened = 2.0 * turns - health.lost
    assert listened == pytest.approx(LATE * turns, abs=2 * CATCH_UP), "so a dead peer is noticed, though late"
