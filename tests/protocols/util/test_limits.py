"""Bounds: exactly as much is kept as they say, and what goes first."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import WorkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.limits import (
    BURST,
    FLOOD,
    LEAST,
    ExpiringSet,
    LruTable,
    Novelty,
    Payment,
    RateLimiter,
    SenderWindows,
    TokenBucket,
    WorkBudget,
)

A, B, C = (PeerId(digit * 40) for digit in "abc")

# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_holds_as_many_as_its_bound_and_forgets_what_was_not_renewed_for_longest():
    table = LruTable[int](2)
    table.put(A, 1)
    table.put(B, 2)
    assert (len(table), table.values()) == (2, [1, 2])
    table.put(A, 3)
    table.put(C, 4)
    assert (A in table, B in table, table.values()) == (True, False, [3, 4])
    assert (table.pop(C), table.pop(C), table.get(C), len(table)) == (4, None, None, 1)


def test_looking_an_entry_up_does_not_renew_it():
    table = LruTable[int](2)
    table.put(A, 1)
    table.put(B, 2)
    assert table.get(A) == 1
    table.put(C, 3)
    assert A not in table


# --- ids --------------------------------------------------------------------------------------------------------------


def test_an_id_is_kept_until_its_time_and_then_makes_room():
    seen = ExpiringSet[str, int](2)
    seen.add("a", 1, until=10.0, now=0.0)
    seen.add("b", 2, until=20.0, now=0.0)
    assert (len(seen), seen.forgotten) == (2, 0)
    seen.add("c", 3, until=30.0, now=10.0)
    assert ("a" in seen, "b" in seen, seen["c"], seen.forgotten) == (False, True, 3, 0)


def test_an_id_that_has_to_go_before_its_time_is_counted():
    seen = ExpiringSet[str, int](1)
    seen.add("a", 1, until=10.0, now=0.0)
    seen.add("b", 2, until=10.0, now=9.9)
    assert ("a" in seen, "b" in seen, seen.forgotten) == (False, True, 1)


def test_a_known_id_keeps_its_first_fact_and_costs_nobody_a_place():
    seen = ExpiringSet[str, int](1)
    seen.add("a", 1, until=10.0, now=0.0)
    seen.add("a", 2, until=99.0, now=0.0)
    assert (seen["a"], seen.forgotten) == (1, 0)
    seen.discard("a")
    seen.discard("a")
    assert "a" not in seen


# --- rates ------------------------------------------------------------------------------------------------------------


def test_a_bucket_starts_full_and_fills_at_its_rate_up_to_its_burst():
    bucket = TokenBucket(rate=2.0, burst=3.0, now=0.0)
    assert [bucket.take_if_there(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take_if_there(0.4)
    assert bucket.take_if_there(0.5)
    assert not bucket.take_if_there(0.9)
    assert [bucket.take_if_there(100.0) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_may_be_overdrawn_and_is_flooded_beyond_one_more_burst():
    bucket = TokenBucket(rate=1.0, burst=2.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, False, False]
    assert not bucket.is_flooded
    assert not bucket.take(0.0)
    assert bucket.is_flooded
    assert bucket.take(4.0)


def test_each_peer_has_a_rate_of_its_own_and_the_least_recent_starts_afresh():
    limiter = RateLimiter(2, per_second=1.0, burst=1.0)
    assert [limiter.take(A, 0.0), limiter.take(A, 0.0), limiter.take(B, 0.0)] == [True, False, True]
    assert limiter.take(C, 0.0)
    assert len(limiter) == 2
    assert limiter.take(A, 0.0), "it was forgotten for C"
    limiter.forget(A)
    assert limiter.take(A, 0.0)


# --- work -------------------------------------------------------------------------------------------------------------

SHARE = 0.1
ALL = SHARE * 1e6
"""Units a second that all keys may cause."""


def paid(budget, key, units, now, times):
    return sum(units for _ in range(times) if budget.spend(key, units, now) is Payment.NOW)


def test_a_neighbour_may_cause_its_own_part_and_what_nobody_else_needs():
    budget = WorkBudget(4, SHARE)
    own, common = ALL / 2 / 4, ALL / 2
    assert paid(budget, A, 100, 0.0, 100_000) == pytest.approx(BURST * (own + common), abs=200)
    assert paid(budget, A, 100, 1.0, 100_000) == pytest.approx(own + common, abs=200)


def test_nobody_uses_up_what_is_another_ones():
    budget = WorkBudget(4, SHARE)
    for now in range(60):
        paid(budget, A, 10, now, 20_000)
        paid(budget, B, 10, now, 20_000)
        assert paid(budget, C, 100, now, 120) == 12_000, "each second, whatever the others do"


def test_who_goes_on_beyond_its_budget_is_refused_first_and_then_too_much():
    budget = WorkBudget(4, SHARE)
    verdicts = [budget.spend(A, 100, 0.0) for _ in range(6000)]
    now, later = verdicts.count(Payment.NOW), verdicts.count(Payment.LATER)
    assert verdicts == [Payment.NOW] * now + [Payment.LATER] * later + [Payment.TOO_MUCH] * (6000 - now - later)
    assert later * 100 == pytest.approx(FLOOD * ALL, abs=200)
    assert budget.snapshot() == {"keys": 1, "later": 6000 - now, "too_much": 6000 - now - later}


def test_who_asks_for_little_more_than_it_gets_is_never_too_much():
    budget = WorkBudget(4, SHARE)
    own = ALL / 2 / 4
    for second in range(1000):
        paid(budget, B, 100, second, 2000)  # takes all that is common
        verdicts = [budget.spend(A, own / 10, second) for _ in range(15)]
        assert Payment.TOO_MUCH not in verdicts


def test_coming_back_gains_nothing_and_one_more_than_there_is_room_for_pays_from_what_is_common():
    budget = WorkBudget(1, SHARE)
    paid(budget, A, 100, 0.0, 10_000)
    assert budget.spend(B, 100, 0.0) is Payment.LATER
    assert budget.spend(A, 100, 0.0) is not Payment.NOW
    assert len(budget) == 1
    assert budget.spend(B, 100, 100.0) is Payment.NOW
    assert budget.spend(A, 100, 100.0) is Payment.NOW, "from what is common: the place is taken"
    assert len(budget) == 1


def test_however_many_share_each_may_ask_for_something():
    budget = WorkBudget(1000, SHARE)
    paid(budget, A, 100, 0.0, 100_000)
    assert budget.spend(B, LEAST, 0.0) is Payment.NOW


def test_what_neighbours_may_cause_by_default_is_less_than_a_third_of_a_core():
    assert sum(attrs.astuple(WorkConfig())) + WorkConfig().links < 1 / 3, "that of links is paid twice"


spends = st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(1, 20_000), st.floats(0, 2)), max_size=80)


@given(st.integers(1, 3), st.floats(0.001, 1), spends)
def test_no_key_and_not_all_of_them_together_ever_cause_more_than_their_rate_and_burst(keys, share, asked):
    budget = WorkBudget(keys, share)
    common, own = share * 1e6 / 2, share * 1e6 / 2 / keys
    now, by_key = 0.0, dict.fromkeys([A, B, C], 0.0)
    for key, units, wait in asked:
        now += wait
        by_key[key] += units if budget.spend(key, units, now) is Payment.NOW else 0
        slack = 1e-6 * (1 + now) * 1e6
        assert by_key[key] <= (own + common) * (now + BURST) + LEAST + slack
        assert sum(by_key.values()) <= (own * keys + common) * (now + BURST) + LEAST * keys + slack
        assert len(budget) <= keys


@given(st.floats(0.001, 1), spends)
def test_what_is_within_its_own_rate_is_paid_for_whatever_the_others_ask_for(share, asked):
    budget = WorkBudget(3, share)
    own = share * 1e6 / 2 / 3
    now = 0.0
    for key, units, wait in asked:
        now += 0.01 + wait
        budget.spend(A if key == C else key, units * 100, now)
        assert budget.spend(C, own * 0.01, now) is Payment.NOW


# --- windows of senders -----------------------------------------------------------------------------------------------

takes = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(0, 6), st.floats(-8, 8), st.sampled_from("xyz"), st.floats(0, 3)),
    max_size=120,
)


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 3), takes)
def test_nothing_is_ever_taken_twice_and_no_more_is_remembered_than_the_bound(limit, each, parts, messages):
    windows = SenderWindows(limit, each, parts, lasts=10.0)
    taken, now = set(), 100.0
    sent: dict[tuple[str, int], float] = {}
    for sender, number, ahead, by, wait in messages:
        now += wait
        at = sent.setdefault((sender, number), now + ahead)
        if abs(at - now) > 10.0:
            continue  # its taker refuses it
        novelty = windows.judge(sender, str(number), at, by, now)
        assert (novelty is Novelty.NEW) <= ((sender, number) not in taken)
        if novelty is Novelty.NEW:
            windows.add(sender, str(number), at, by, now)
            taken.add((sender, number))
        assert len(windows) <= limit


@given(st.integers(8, 60), takes)
def test_what_one_neighbour_brings_never_keeps_out_what_another_brings(limit, messages):
    windows = SenderWindows(limit, each=8, parts=2, lasts=10.0)
    now = 100.0
    for sender, number, ahead, _, wait in messages:
        now += wait
        if windows.judge(sender, str(number), now + ahead, "x", now) is Novelty.NEW:
            windows.add(sender, str(number), now + ahead, "x", now)
    assert windows.judge("honest", "0", now, "y", now) is Novelty.NEW
    windows.add("honest", "0", now, "y", now)
    assert windows.judge("honest", "0", now, "x", now) is Novelty.KNOWN


def test_a_sender_is_not_shut_out_by_the_neighbour_that_brought_its_first():
    windows = SenderWindows(40, each=20, parts=2, lasts=10.0)
    windows.add("honest", "first", 0.0, "x", 0.0)
    for number in range(9):
        windows.add(f"evil {number}", "a", 0.0, "x", 0.0)
    assert windows.judge("evil", "new", 1.0, "x", 1.0) is Novelty.FULL
    assert windows.judge("honest", "next", 1.0, "y", 1.0) is Novelty.NEW
    windows.add("honest", "next", 1.0, "y", 1.0)
    assert windows.judge("honest", "first", 0.0, "x", 1.0) is Novelty.KNOWN


def test_a_full_window_gives_up_what_is_earliest_and_takes_nothing_that_is_as_early():
    windows = SenderWindows(1000, each=3, parts=1, lasts=100.0)
    for number, at in enumerate([5.0, 1.0, 3.0, 4.0]):
        windows.add("a", str(number), at, "x", 6.0)
    asked = [("1", 1.0), ("9", 1.0), ("9", 1.5), ("2", 3.0)]
    verdicts = [windows.judge("a", name, at, "x", 6.0) for name, at in asked]
    assert verdicts == [Novelty.OLD, Novelty.OLD, Novelty.NEW, Novelty.KNOWN]


def test_what_is_too_old_to_be_taken_makes_room():
    windows = SenderWindows(4, each=2, parts=1, lasts=10.0)
    for number in range(2):
        windows.add(f"{number}", "a", 0.0, "x", 0.0)
    assert windows.judge("new", "a", 5.0, "x", 5.0) is Novelty.FULL
    assert windows.judge("new", "a", 15.1, "x", 15.1) is Novelty.NEW
    assert len(windows) == 0
