"""What broadcasts do where there is more to do than can be done: nothing twice, and nobody is blamed for it."""

from __future__ import annotations

from p2pmesh.protocols.broadcast.eager_push import SLUGGISH_AFTER, SLUGGISH_WITH
from p2pmesh.protocols.broadcast.lazy_push import BROKEN_FOR, MAX_BROKEN
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.inputs import Publish
from p2pmesh.protocols.notices import Input
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


def test_publish_waits_for_a_neighbour_that_is_slow_though_another_is_not():
    bare = Bare(broadcast_config(ack_timeout=30.0))
    bare.up(ALICE, BOB)
    ids = busy(bare)
    bare.hear(BOB, GossipAck(new=tuple(ids)))
    bare.wait_until(SLUGGISH_AFTER + 1.1)
    assert not publish(bare, 100), "else it would lose what it can't take in time"
    bare.hear(ALICE, GossipAck(new=tuple(ids)))
    assert 100 in bare.replies


def test_what_others_send_does_not_keep_our_own_from_going_out():
    bare = Bare(broadcast_config(ack_timeout=30.0))
    bare.up(ALICE, BOB)
    for number in range(40):
        bare.hear(BOB, gossip(CAROL, message_id=f"m{number}"))
    bare.wait_until(SLUGGISH_AFTER + 1.1)
    assert publish(bare, 1)
    assert not publish(bare, 2), "one at a time"


def test_what_was_lost_on_a_link_does_not_make_it_slow():
    bare = Bare(broadcast_config(ack_timeout=30.0))
    bare.up(ALICE)
    ids = busy(bare)
    bare.wait(0.01)
    assert publish(bare, 99)
    ids += [message.data.id for _, message in bare.sent(Gossip)]
    bare.hear(ALICE, GossipAck(new=(ids[-1],)))  # links keep their order, so what was sent before is not on its way
    bare.wait_until(SLUGGISH_AFTER + 1.2)
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
    bare.health.note(bare.core.next_deadline(), until)
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


def announce(bare: Bare, name: str) -> list[tuple[str, ...]]:
    """Let Alice announce many broadcasts that she does not send. Gives what she is asked for."""
    ids = tuple(id_of(gossip(CAROL, message_id=f"{name} {number}")) for number in range(MAX_BROKEN + 10))
    bare.hear(ALICE, GossipIHave(ids=ids, hops=1, size=10))
    return [graft.ids for _, graft in bare.sent(GossipGraft)]


def test_who_never_sends_what_it_announces_is_not_blamed_but_asked_no_more_until_something_comes():
    bare = Bare()
    bare.up(ALICE)
    announce(bare, "late")
    bare.wait_until(1.0)
    assert bare.count("graft.unkept") >= MAX_BROKEN
    assert announce(bare, "later"), "for a second it may be slow"
    bare.wait_until(BROKEN_FOR + 5)
    assert announce(bare, "in vain") == []
    assert bare.core._scores.snapshot([ALICE.peer_id])[ALICE.peer_id]["failures"] == 1
    bare.hear(ALICE, gossip(CAROL, message_id="late 1"))
    assert announce(bare, "welcome")
    bare.wait_until(BROKEN_FOR + 30)
    assert bare.dropped() == []


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
