"""What is kept of broadcasts where there is no room for all, and how what is there is summed up."""

from __future__ import annotations

from functools import reduce
from operator import xor

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import MessageStore, StoredMessage
from p2pmesh.wire.messages import GossipData
from tests.harness.examples import examples

MIB = 1024 * 1024


def peer(number: int) -> PeerId:
    return PeerId(f"{number:040x}")


def stored(
    number: int, origin: int = 1, parent: int | None = 2, size: int = 10, born: float = 0.0, max_hops: int = 255
) -> StoredMessage:
    data = GossipData(
        id=f"{number * 7919 % 65_521:032x}",
        topic="t",
        origin_peer_id=peer(origin),
        timestamp=0,
        hops=0,
        max_hops=max_hops,
    )
    return StoredMessage(data, None if parent is None else peer(parent), 1, born, born, 60.0, size)


@examples(100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "retire", "revise", "sum"]),
            st.integers(0, 60),
            st.integers(0, 10_000),
            st.integers(0, 10_000),
        )
    )
)
def test_sums_are_those_of_all_that_is_passed_on_and_of_such_an_age(steps):
    store = MessageStore(40, MIB)
    alive: dict[str, StoredMessage] = {}
    for what, number, one, other in steps:
        message = store.get(stored(number).data.id)
        match what:
            case "add" if message is None:
                message = stored(number, number % 5, number % 3, born=one / 1000, max_hops=2 if number % 4 else 1)
                for dropped in store.add(message):
                    alive.pop(dropped.data.id, None)
                if message.may_cross_more:
                    alive[message.data.id] = message
            case "remove" if message is not None:
                store.remove(message)
                alive.pop(message.data.id, None)
            case "retire" if message is not None:
                store.retire(message)
                alive.pop(message.data.id, None)
            case "revise" if message is not None:
                store.revise(message, number % 3, other / 1000)
                alive.pop(message.data.id, None)
                if message.may_cross_more:
                    alive[message.data.id] = message
        places = store.places(min(one, other), max(one, other), 10.0)
        there = [each for each in alive.values() if min(one, other) <= each.age(10.0) <= max(one, other)]
        assert {each.data.id for each in store.at(places)} == {each.data.id for each in there}
        assert store.sum_of(places) == reduce(xor, (each.digest for each in there), 0)
        assert [each.data.id for each in store.named(None, None)] == sorted(each.data.id for each in store)


def test_a_flood_of_one_origin_pushes_out_its_own():
    """Though it came by several neighbours, and what others sent by one, and is more."""
    store = MessageStore(200, 200 * MIB)
    others = [stored(number, origin=number % 10 + 5, parent=3) for number in range(150)]
    for message in others:
        store.add(message)
    flood = [stored(number, origin=1, parent=number % 4) for number in range(200, 600)]
    for message in flood:
        store.add(message)
        assert store.get(message.data.id) is message
    assert all(store.get(message.data.id) is message for message in others)
    assert len(store) == 200
    assert store.dropped == 350


def test_large_broadcasts_push_out_large_ones():
    store = MessageStore(4096, 64 * MIB)
    small = [stored(number, origin=1) for number in range(1000)]
    large = [stored(number, origin=2, size=MIB) for number in range(1000, 1100)]
    for message in (*small, *large):
        store.add(message)
    assert all(store.get(message.data.id) is message for message in small)
    assert store.bytes <= 64 * MIB


def test_many_origins_by_one_neighbour_leave_what_came_by_others():
    store = MessageStore(100, 100 * MIB)
    others = [stored(number, origin=number, parent=3) for number in range(40)]
    ours = [stored(number, origin=9, parent=None) for number in range(40, 50)]
    for message in (*others, *ours):
        store.add(message)
    for number in range(1000, 6000):
        store.add(stored(number, origin=number, parent=2))
    assert all(store.get(message.data.id) is message for message in (*others, *ours))
    assert store.ours() == ours


def test_one_that_is_larger_than_all_room_is_kept_alone():
    store = MessageStore(100, MIB)
    store.add(stored(1))
    huge = stored(2, size=2 * MIB)
    assert len(store.add(huge)) == 1
    assert list(store) == [huge]
    store.remove(huge)
    assert (len(store), store.bytes, store.ours()) == (0, 0, [])
