"""What the conditioner does to frames: exactly what a link of that kind may do, and the same for the same seed."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import ConfigError
from p2pmesh.simulation.model.conditioner import (
    Arrival,
    Break,
    Conditions,
    Constant,
    LogNormal,
    Measured,
    Path,
    Uniform,
    luck_of,
)


def path(seed=1, base=0.05, **fields):
    return Path(Conditions(**{"jitter": 0.0, **fields}), base, random.Random(seed))


def test_a_plain_path_adds_its_latency():
    plain = path(base=0.03)
    assert plain.plain
    assert plain.arrival(10.0) == pytest.approx(10.03)
    assert plain.send(11.0, 100) == (Arrival(pytest.approx(11.03)),)


def test_jitter_never_reorders():
    jittery = path(jitter=0.5)
    times = [jittery.arrival(number * 0.001) for number in range(200)]
    assert times == sorted(times)
    assert all(0.05 <= time - number * 0.001 <= 0.55 + 0.2 for number, time in enumerate(times))


def test_bandwidth_lets_frames_wait_for_each_other():
    narrow = path(bandwidth=1000.0, base=0.0)
    assert [narrow.send(0.0, 500)[0].time for _ in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert narrow.queued(1.5) == pytest.approx(0.5)
    assert narrow.queued(3.0) == 0.0


def test_what_a_reliable_link_loses_comes_late_and_in_order():
    bad = path(loss=0.5, base=0.02)
    decisions = [bad.send(number * 0.01, 100) for number in range(300)]
    assert all(len(decision) == 1 for decision in decisions)
    times = [decision[0].time for decision in decisions]
    assert times == sorted(times)
    assert any(time > number * 0.01 + 0.2 for number, time in enumerate(times))


def test_an_unreliable_link_loses_its_share():
    bad = path(loss=0.3, reliable=False)
    lost = sum(bad.send(float(number), 100) == () for number in range(2000))
    assert 500 < lost < 700


def test_only_an_unordered_link_reorders():
    with pytest.raises(ConfigError, match="ordered=False"):
        Conditions(reorder=0.1)
    wild = path(reorder=0.5, ordered=False)
    times = [wild.send(number * 0.01, 10)[0].time for number in range(200)]
    assert times != sorted(times)


def test_corruption_duplication_and_breaks_happen_where_they_are_marked():
    wild = path(corrupt=0.2, duplicate=0.2)
    decisions = [wild.send(float(number), 10) for number in range(1000)]
    assert 100 < sum(len(decision) == 2 for decision in decisions) < 300
    assert 100 < sum(decision[0].corrupted for decision in decisions) < 300
    fragile = path(breaks=1.0)
    assert fragile.send(3.0, 10) == Break(3.0)


@given(
    seed=st.integers(0, 2**32),
    frames=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 70_000)), max_size=40),
    loss=st.floats(0, 0.9),
    jitter=st.floats(0, 1),
    bandwidth=st.sampled_from([math.inf, 1e3, 1e6]),
)
def test_an_ordered_reliable_link_delivers_each_frame_once_in_order_and_never_early(
    seed, frames, loss, jitter, bandwidth
):
    some = path(seed, loss=loss, jitter=jitter, bandwidth=bandwidth, base=0.01)
    again = path(seed, loss=loss, jitter=jitter, bandwidth=bandwidth, base=0.01)
    now, last = 0.0, 0.0
    for wait, size in frames:
        now += wait
        decision = some.send(now, size)
        assert decision == again.send(now, size)
        assert len(decision) == 1
        assert decision[0].time >= max(last, now + 0.01)
        last = decision[0].time


@pytest.mark.parametrize(
    ("latency", "low", "high"),
    [
        (Constant(0.1), 0.1, 0.1),
        (Uniform(0.01, 0.02), 0.01, 0.02),
        (LogNormal(0.04, 0.6, 0.5), 0.0, 0.5),
        (Measured([[0.001, 0.08], [0.09, 0.002]]), 0.001, 0.09),
    ],
)
def test_latencies_stay_within_their_bounds_and_are_the_same_each_time(latency, low, high):
    for a in range(30):
        for b in range(30):
            luck = luck_of(5, a, b)
            assert 0 <= luck < 1
            assert luck == luck_of(5, b, a)
            assert low <= latency.between(a, b, luck) <= high
            assert latency.between(a, b, luck) == latency.between(a, b, luck)


def test_a_log_normal_latency_has_its_median_in_the_middle():
    latency = LogNormal(0.04, 0.6)
    found = sorted(latency.between(a, b, luck_of(1, a, b)) for a in range(60) for b in range(a))
    assert found[len(found) // 2] == pytest.approx(0.04, rel=0.1)


def test_measured_latencies_may_differ_each_way():
    latency = Measured([[0.001, 0.08], [0.09, 0.002]])
    assert latency.between(0, 1, 0.5) == 0.08
    assert latency.between(3, 2, 0.5) == 0.09


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1),
        lambda: Measured([[1, 2]]),
        lambda: Measured([]),
        lambda: Measured([[-1]]),
        lambda: Conditions(loss=2),
        lambda: Conditions(bandwidth=0),
        lambda: Conditions(jitter=math.nan),
    ],
)
def test_conditions_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigError):
        make()
