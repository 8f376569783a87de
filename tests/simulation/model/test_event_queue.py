"""The calendar gives events in the order of their times, whatever is added while they happen."""

from heapq import heappop

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.simulation.model.event_queue import EventQueue

times = st.one_of(st.floats(0, 5), st.integers(0, 20).map(lambda number: number / 256))


def take(calendar, until):
    heap = calendar.due(until)
    return None if heap is None else heappop(heap)


def nothing(a, b):
    del a, b


@given(st.lists(times))
def test_events_come_in_order_and_ties_as_they_were_added(added):
    calendar = EventQueue()
    for number, time in enumerate(added):
        calendar.add(time, nothing, number, None)
    assert len(calendar) == len(added)
    came = []
    while (entry := take(calendar, 10.0)) is not None:
        came.append((entry[0], entry[3]))
    assert came == sorted((time, number) for number, time in enumerate(added))
    assert len(calendar) == 0


@given(st.lists(st.tuples(times, st.floats(0, 2)), min_size=1), st.lists(st.floats(0, 8), max_size=20))
def test_what_is_added_on_the_way_comes_in_its_turn_and_nothing_comes_early(pairs, stops):
    calendar, now = EventQueue(), 0.0
    left = [(time, delay) for time, delay in pairs]
    for time, delay in left:
        calendar.add(time, nothing, delay, None)
    count = 0
    for until in [*sorted(stops), 20.0]:
        while (entry := take(calendar, until)) is not None:
            assert now <= entry[0] <= until
            now, count = entry[0], count + 1
            if entry[3] is not None:
                calendar.add(now + entry[3], nothing, None, None)
        now = max(now, until)
    assert count == 2 * len(pairs)
