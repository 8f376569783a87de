"""What broadcasts do where there is more to do than can be done: nothing twice, and nobody is blamed for it."""

from __future__ import annotations

import pytest

from p2pmesh.protocols.broadcast.eager_push import SLUGGISH_AFTER, SLUGGISH_WITH
from p2pmesh.protocols.broadcast.lazy_push import BROKEN_FOR, MAX_BROKEN
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.inputs import Publish
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.util.latency import LATE, MOST, ROOM, LocalHealth
from p2pmesh.wire.messages import Gossip, GossipAck, GossipGraft, GossipIHave
from tests.harness.broadcast import ALICE, BOB, CAROL, Bare, broadcast_config, gossip, id_of

A, B, C = ALICE.peer_id, BOB.peer_id, CAROL.peer_id


def publish(bare: Bare, call: int) -> bool:
    """Whether it went out at once."""
    return call in bare_replies(bare, Publish(call, "chat", f"text {call}"))


def bare_replies(bare: Bare, event: Input) -> dict[int, object]:
    bare(event)
    return dict(bare.replies)


def busy(bare: Bare) -> list[str]:
    """Publish until there is enough under way to judge by. Gives the ids."""
    ids = []
    for call in range(SLUGGISH_WITH):
        assert publish(bare, call)
        ids += [message.data.id for peers, message in bare.sent(Gossip) if A in peers]
    return ids


# --- publishers feel it -----------------------------------------------------------------------------------------------


def test_publish_waits_while_acks_take_far_longer_than_they_could():
    bare = Bare(broadcast_config(ack_timeout=30.0))
    bare.up(ALICE)
    ids = busy(bare)
    bare.wait_until(SLUGGISH_AFTER + 1.1)  # with no ack measured, a second's round trip is possible
    assert not publish(bare, 100)
    bare.hear(ALICE, GossipAck(new=tuple(ids[:2])))
    assert 100 in bare.replies


def test_publish_waits_for_no_single_neighbour_that_is_slow_as_long_as_another_is_not():
    bare = Bare(broadcast_config(ack_timeout=30.0))
    bare.up(ALICE, BOB)
    ids = busy(bare)
    bare.hear(BOB, GossipAck(new=tuple(ids)))
    bare.wait_until(SLUGGISH_AFTER + 1.1)
    assert publish(bare, 100)


def test_a_few_missing_acks_hold_nobody_back():
    bare = Bare(broadcast_config(ack_timeout=30.0))
    bare.up(ALICE)
    assert publish(bare, 0)
    bare.wait_until(5.0)
    assert publish(bare, 1)


# --- what is late is not repeated, nor asked for elsewhere ------------------------------------------------------------


def sleep_until(bare: Bare, until: float) -> list[SendFrame]:
    """The process gets no time until then, and does all that is due at once."""
    bare.now = until
    return [effect for effect in bare.core.expire(until) if isinstance(effect, SendFrame)]


def test_after_a_sleep_nothing_is_repeated_before_what_came_meanwhile_could_be_read():
    bare = Bare()
    bare.up(ALICE)
    assert publish(bare, 0)
    assert not [frame for frame in sleep_until(bare, 5.0) if isinstance(frame.message, Gossip)]
    assert bare.count("eager_push.retried") == 0
    bare.wait_until(15.0)
    assert bare.count("eager_push.retried") > 0


def test_after_a_sleep_nobody_is_asked_for_what_may_have_come_meanwhile():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(CAROL, message_id="first"))  # her parent in this tree is Alice now
    missing = id_of(gossip(CAROL, message_id="second"))
    bare.hear(BOB, GossipIHave(ids=(missing,), hops=(1,), size=10))
    assert not [frame for frame in sleep_until(bare, 5.0) if isinstance(frame.message, GossipGraft)]
    bare.wait_until(15.0)
    assert bare.count("graft.asked") > 0


def test_a_late_ack_of_something_repeated_teaches_how_late_acks_are():
    bare = Bare(broadcast_config(ack_timeout=1.0))
    bare.up(ALICE)
    for call in range(20):
        began = bare.now
        publish(bare, call)
        ((_, message),) = bare.sent(Gossip)
        repeated = bare.count("eager_push.retried")
        while bare.now < began + 2.5 and bare.count("eager_push.retried") == repeated:
            bare.wait(0.01)
        bare.hear(ALICE, GossipAck(new=(message.data.id,)))
    assert bare.count("eager_push.retried") < 10


def test_who_is_slow_to_send_what_it_announced_is_not_blamed_for_seconds_of_it():
    bare = Bare()
    bare.up(ALICE)
    ids = tuple(id_of(gossip(CAROL, message_id=f"late {number}")) for number in range(MAX_BROKEN + 10))
    bare.hear(ALICE, GossipIHave(ids=ids, hops=(1,) * len(ids), size=10))
    bare.wait_until(1.0)
    assert bare.count("graft.unkept") >= MAX_BROKEN
    assert bare.dropped() == []
    late = tuple(id_of(gossip(CAROL, message_id=f"later {number}")) for number in range(MAX_BROKEN + 10))
    bare.wait_until(BROKEN_FOR + 5)
    bare.hear(ALICE, GossipIHave(ids=late, hops=(1,) * len(late), size=10))
    bare.wait_until(BROKEN_FOR + 10)
    assert [drop.peer for drop in bare.dropped()] == [A]


# --- acks cost next to nothing ----------------------------------------------------------------------------------------


def test_an_ack_goes_along_with_a_copy_for_the_same_neighbour():
    bare = Bare(ack_delay=10.0)
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(CAROL, message_id="a"))
    bare.hear(ALICE, gossip(CAROL, message_id="b"))
    assert ("b", False) not in bare.acks()
    publish(bare, 1)
    assert bare.acks() == [("b", False)]


def test_acks_do_not_wait_until_the_neighbours_window_is_full():
    bare = Bare(ack_delay=10.0)
    bare.up(ALICE)
    told = 0
    for number in range(40):
        bare.hear(ALICE, gossip(CAROL, message_id=f"m{number}"))
        told += len(bare.acks())
    assert told >= 24


# --- lag --------------------------------------------------------------------------------------------------------------


def test_lag_is_the_most_that_timers_were_late_and_is_forgotten():
    lag = LocalHealth()
    lag.note(10.0, 10.0)
    assert (lag.is_late, lag.patience(10.0)) == (False, 0)
    lag.note(10.0, 11.0)
    assert (lag.is_late, lag.is_high(11.0), lag.patience(11.0)) == (True, True, ROOM * MOST)
    lag.note(12.0, 12.0)
    assert not lag.is_late
    assert lag.patience(13.0) == pytest.approx(ROOM * MOST / 2)
    assert not lag.is_high(11.0 + 20 * LATE * 10)
