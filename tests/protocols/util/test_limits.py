"""Bounds: exactly as much is kept as they say, and what goes first."""

from __future__ import annotations

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.limits import ExpiringSet, LruTable, RateLimiter, TokenBucket

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
