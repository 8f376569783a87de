"""Timers and back-off."""

from __future__ import annotations

import math
import random

import pytest

from p2pmesh.protocols.util.latency import CATCH_UP, LocalHealth
from p2pmesh.protocols.util.timers import Backoff, RetryPacer, Timers


def test_timers_fire_once_the_earliest_first_and_of_one_moment_in_the_order_they_were_set():
    timers = Timers[str]()
    assert timers.next_deadline() == math.inf
    for key, deadline in [("late", 3.0), ("first", 1.0), ("second", 1.0)]:
        timers.set(key, deadline)
    assert timers.next_deadline() == 1.0
    assert timers.pop_due(0.99) == []
    assert timers.pop_due(1.0) == ["first", "second"]
    assert ("first" in timers, "late" in timers, len(timers)) == (False, True, 1)
    assert timers.pop_due(9.0) == ["late"]
    assert timers.pop_due(9.0) == []


def test_a_key_has_one_deadline_the_last_and_none_once_it_is_cancelled():
    timers = Timers[str]()
    timers.set("a", 1.0)
    timers.set("a", 5.0)
    assert (timers.next_deadline(), timers.pop_due(4.0)) == (5.0, [])
    timers.set("a", 2.0)
    assert timers.pop_due(2.0) == ["a"]
    timers.set("a", 3.0)
    timers.cancel("a")
    timers.cancel("a")
    assert (timers.next_deadline(), timers.pop_due(1e9)) == (math.inf, [])


def test_timers_that_are_moved_for_ever_take_no_more_room_and_stay_right():
    timers = Timers[int]()
    for count in range(10_000):
        timers.set(count % 3, float(count))
    assert (len(timers), timers.next_deadline()) == (3, 9997.0)
    assert timers.pop_due(1e9) == [1, 2, 0]


@pytest.mark.parametrize(("failures", "ceiling"), [(1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (10_000, 10.0)])
def test_a_back_off_doubles_up_to_its_cap_and_is_jittered_over_its_upper_half(failures, ceiling):
    rng = random.Random(1)
    delays = [Backoff(2.0, 10.0).delay(failures, rng) for _ in range(500)]
    assert ceiling / 2 <= min(delays) < 0.55 * ceiling
    assert 0.95 * ceiling < max(delays) <= ceiling


def test_a_pacer_waits_ever_longer_until_it_is_reset():
    pacer = RetryPacer(Backoff(2.0, 60.0), random.Random(1))
    assert pacer.not_before < 0
    pacer.failed(100.0)
    assert 101.0 <= pacer.not_before <= 102.0
    pacer.failed(100.0)
    assert (pacer.failures, 102.0 <= pacer.not_before <= 104.0) == (2, True)
    pacer.reset()
    assert (pacer.failures, pacer.not_before) == (0, -math.inf)


def test_a_wait_lasts_longer_by_what_was_lost_since_it_began_and_a_timer_does_not():
    health = LocalHealth()
    timers = Timers[str](health)
    health.note(due=0.0, now=5.0)
    timers.wait("answer", 6.0)
    timers.set("end", 6.0)
    health.note(due=5.0, now=15.0)
    assert timers.pop_due(15.0) == ["end"]
    assert timers.next_deadline() == pytest.approx(16.0, abs=CATCH_UP)
    assert timers.pop_due(16.0 + CATCH_UP) == ["answer"]


def test_a_wait_that_was_cancelled_does_not_come_back():
    health = LocalHealth()
    timers = Timers[str](health)
    timers.wait("answer", 1.0)
    timers.wait("other", 1.0)
    timers.cancel("answer")
    health.note(due=1.0, now=9.0)
    assert (timers.pop_due(9.0), len(timers)) == ([], 1)
    assert timers.pop_due(99.0) == ["other"]
