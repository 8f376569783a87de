"""Order: whatever arrives in whatever order, each origin's broadcasts come out in the order sent, soon, each once."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import SubscriptionConfig
from p2pmesh.events import MessageReceived, MessagesSkipped
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.fifo_order import FifoOrder
from p2pmesh.protocols.broadcast.publisher import MAX_TOPICS, Numbering
from p2pmesh.protocols.util.timers import Stamps

ALICE, BOB = PeerId("a" * 40), PeerId("b" * 40)
CONFIG = SubscriptionConfig(patience=5.0, start=0.5, held=8, origins=4)


def said(number: int | None, origin: PeerId = ALICE, *, series: int | None = 1, topic: str = "chat") -> MessageReceived:
    return MessageReceived(
        topic=topic,
        payload=number,
        origin=origin,
        message_id=f"{origin[:1]} {series} {number}",
        timestamp=0.0,
        hops=1,
        verified=True,
        series=series,
        sequence=number,
    )


def skipped(count: int, origin: PeerId = ALICE, topic: str = "chat") -> MessagesSkipped:
    return MessagesSkipped(origin, topic, count)


def test_what_arrives_in_order_is_delivered_at_once():
    ordering = FifoOrder(CONFIG)
    assert [ordering.add(said(number), 0.0) for number in (1, 2, 3)] == [[said(1)], [said(2)], [said(3)]]
    assert (ordering.held, ordering.next_deadline()) == (0, math.inf)


def test_what_arrives_early_waits_for_what_was_sent_before():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    assert ordering.add(said(4), 0.0) == ordering.add(said(3), 0.1) == []
    assert ordering.add(said(2), 0.2) == [said(2), said(3), said(4)]


def test_a_gap_is_waited_for_no_longer_than_patience_and_told():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    ordering.add(said(4), 1.0)
    ordering.add(said(5), 2.0)
    ordering.add(said(7), 3.0)
    assert ordering.next_deadline() == 6.0
    assert ordering.expire(5.9) == []
    assert ordering.expire(6.0) == [skipped(2), said(4), said(5)]
    assert ordering.next_deadline() == 8.0
    assert ordering.add(said(3), 7.0) == []  # given up on, and said so already
    assert ordering.expire(8.0) == [skipped(1), said(7)]


def test_of_an_origin_that_was_there_before_the_first_heard_waits_a_moment_for_others_on_their_way():
    ordering = FifoOrder(CONFIG)
    assert ordering.add(said(57), 0.0) == ordering.add(said(56), 0.1) == []
    assert ordering.expire(0.5) == [said(56), said(57)]
    assert ordering.add(said(58), 0.6) == [said(58)]
    assert ordering.add(said(54), 0.7) == [skipped(1)]


def test_the_very_first_of_an_origin_waits_for_nothing():
    ordering = FifoOrder(CONFIG)
    assert ordering.add(said(2), 0.0) == []
    assert ordering.add(said(1), 0.1) == [said(1), said(2)]


def test_an_origin_that_starts_anew_is_heard_from_the_beginning():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    ordering.add(said(3), 0.0)
    assert ordering.add(said(2, series=9), 0.1) == [skipped(1), said(3)]
    assert ordering.add(said(1, series=9), 0.2) == [said(1, series=9), said(2, series=9)]
    assert ordering.add(said(4), 0.3) == [skipped(1)]


def test_origins_and_topics_don_t_wait_for_each_other():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    ordering.add(said(3), 0.0)
    assert ordering.add(said(1, BOB), 0.0) == [said(1, BOB)]
    assert ordering.add(said(1, topic="news"), 0.0) == [said(1, topic="news")]


def test_what_has_no_number_passes():
    ordering = FifoOrder(CONFIG)
    assert ordering.add(said(None, series=None), 0.0) == [said(None, series=None)]


def test_of_too_many_held_back_the_one_that_waits_longest_is_delivered():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    ordering.add(said(1, BOB), 0.0)
    ordering.add(said(9), 0.0)
    for number in range(3, 10):
        assert ordering.add(said(number, BOB), 0.1) == []
    assert ordering.add(said(10, BOB), 0.2) == [skipped(7), said(9)]
    assert ordering.held == 8


def test_of_too_many_origins_the_one_that_was_silent_longest_is_forgotten():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1, topic="old"), 0.0)
    ordering.add(said(3, topic="old"), 0.0)
    for number in range(3):
        ordering.add(said(1, topic=f"{number}"), 0.0)
    assert ordering.add(said(1, topic="one more"), 0.0) == [
        skipped(1, topic="old"),
        said(3, topic="old"),
        said(1, topic="one more"),
    ]
    assert (ordering.origins, ordering.held, ordering.next_deadline()) == (4, 0, math.inf)


def test_at_the_end_all_that_is_held_back_is_delivered():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    ordering.add(said(3), 0.0)
    ordering.add(said(4), 0.0)
    ordering.add(said(8, BOB), 0.0)
    assert ordering.drain() == [skipped(1), said(3), said(4), said(8, BOB)]


arrivals = st.lists(
    st.tuples(st.sampled_from([ALICE, BOB]), st.integers(1, 2), st.integers(1, 12), st.floats(0, 3)), max_size=60
)


@settings(deadline=None)
@given(arrivals=arrivals)
def test_any_arrivals_come_out_in_order_once_and_in_time(arrivals):
    ordering = FifoOrder(CONFIG)
    now, out, came = 0.0, [], {}
    for origin, series, number, pause in arrivals:
        while ordering.next_deadline() <= now + pause:
            now, pause = ordering.next_deadline(), now + pause - ordering.next_deadline()
            out += [(now, item) for item in ordering.expire(now)]
        now += pause
        sent = 100.0 * series + number - 1000.0
        event = attrs.evolve(said(number, origin, series=series), age=now - sent)
        came.setdefault(event.message_id, now)
        out += [(now, item) for item in ordering.add(event, now)]
        assert ordering.held <= CONFIG.held
    while (deadline := ordering.next_deadline()) < math.inf:
        out += [(deadline, item) for item in ordering.expire(deadline)]
    assert ordering.held == 0
    delivered = [(at, item) for at, item in out if isinstance(item, MessageReceived)]
    for origin in (ALICE, BOB):
        places = [(item.series, item.sequence) for _, item in delivered if item.origin == origin]
        assert places == sorted(set(places))
    assert all(at - came[item.message_id] <= CONFIG.patience + 1e-6 for at, item in delivered)
    assert all(item.count > 0 for _, item in out if isinstance(item, MessagesSkipped))


@settings(deadline=None)
@given(order=st.permutations(range(1, 9)), lost=st.sets(st.integers(1, 7)))
def test_all_that_was_sent_is_delivered_or_told_as_skipped(order, lost):
    ordering = FifoOrder(SubscriptionConfig(patience=5.0, start=5.0))
    out = [item for number in order if number not in lost for item in ordering.add(said(number), 0.0)]
    out += ordering.expire(5.0) + ordering.expire(10.0)
    delivered = [item.sequence for item in out if isinstance(item, MessageReceived)]
    assert delivered == [number for number in range(1, 9) if number not in lost]
    gone = sum(item.count for item in out if isinstance(item, MessagesSkipped))
    first = 1 if 1 not in lost else min(delivered)
    assert gone == 9 - first - len(delivered)


@pytest.mark.parametrize("clock", [[5, 5, 5], [5, 4, 3]], ids=["stands", "goes back"])
def test_numbers_are_by_topic_and_no_series_comes_twice(clock):
    numbering = Numbering(Stamps(lambda now: now / 1000))
    assert [numbering.next("a", 5), numbering.next("b", clock[1]), numbering.next("a", 7)] == [(5, 1), (6, 1), (5, 2)]
    for number in range(MAX_TOPICS):
        numbering.next(f"{number}", clock[2])
    assert len(numbering) == MAX_TOPICS
    series, number = numbering.next("a", clock[2])
    assert series > 5
    assert number == 1


def test_an_origin_that_starts_anew_with_its_clock_set_back_is_heard():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1, series=9), 0.0)
    ordering.add(said(3, series=9), 1.0)
    assert ordering.add(said(1, series=4), 20.0) == [skipped(1), said(3, series=9), said(1, series=4)]
    straggler = attrs.evolve(said(2, series=9), age=20.5)
    assert ordering.add(straggler, 21.0) == [skipped(1)]
    assert ordering.add(said(2, series=4), 22.0) == [said(2, series=4)]


def test_a_number_below_the_first_that_there_can_be_is_told_as_skipped():
    ordering = FifoOrder(CONFIG)
    ordering.add(said(1), 0.0)
    assert ordering.add(said(0), 0.0) == [skipped(1)]
