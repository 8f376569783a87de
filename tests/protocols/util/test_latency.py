"""What time-outs are made of."""

from __future__ import annotations

import math

import pytest

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.latency import LocalHealth, RoundTripTime, RoundTripTimes

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


def test_lateness_is_remembered_and_halves():
    health = LocalHealth()
    assert (health.patience(0.0), health.is_high(0.0), health.is_late) == (0.0, False, False)
    health.note(due=10.0, now=10.4)
    assert (health.is_late, health.is_high(10.4), health.patience(10.4)) == (True, True, pytest.approx(1.6))
    assert health.patience(12.4) == pytest.approx(0.8)
    assert health.is_high(14.3)
    assert not health.is_high(14.5)


def test_what_was_less_late_than_is_remembered_changes_only_the_last_moment():
    health = LocalHealth()
    health.note(due=10.0, now=10.4)
    health.note(due=10.4, now=10.45)
    assert not health.is_late
    assert health.patience(10.4) == pytest.approx(1.6)
    health.note(due=11.0, now=10.9)
    assert not health.is_late


def test_a_process_that_was_stopped_for_long_is_patient_for_a_moment_only():
    health = LocalHealth()
    health.note(due=0.0, now=600.0)
    assert health.patience(600.0) == pytest.approx(4.0)
    assert health.patience(620.0) < 0.01
