"""Broadcasts between bare cores: who gets what, how often, and what is bounded."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.errors import InvalidPayload, MeshClosed, PayloadTooLarge
from p2pmesh.identity import Identity
from p2pmesh.protocols.broadcast.validation import is_proven, signed
from p2pmesh.protocols.core import Notify, Reply, SendFrame
from p2pmesh.protocols.inputs import CancelCall, Leave, LinkDown, Publish, Received, Subsystem
from p2pmesh.protocols.notices import ChildrenAdded, ChildSettled, Refused
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import (
    Gossip,
    GossipAck,
    GossipData,
    GossipDigest,
    GossipGraft,
    GossipHave,
    GossipHistory,
    GossipIHave,
    GossipWant,
)
from tests.harness.broadcast import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    ME,
    NAMES,
    Bare,
    aged,
    broadcast_config,
    gossip,
    id_of,
    original,
)
from tests.harness.core import IDENTITIES, Net, connected, line
from tests.harness.examples import examples
from tests.harness.virtual_time import NETWORK

SLOW = examples(40)
LENIENT = MeshConfig(links=LinkConfig(allow_unverified=True))


# --- the whole mesh ---------------------------------------------------------------------------------------------------


@SLOW
@given(
    size=st.integers(2, 14),
    extra=st.integers(0, 14),
    loss=st.floats(0, 0.6),
    loss_ends=st.floats(0, 8),
    seed=st.integers(0, 2**32),
)
def test_every_broadcast_reaches_every_other_peer_exactly_once_when_loss_ends(size, extra, loss, loss_ends, seed):
    rng = random.Random(seed)
    net = Net(size, connected(size, extra, rng), seed=seed)
    net.lose = lambda *_: net.now < loss_ends and rng.random() < loss
    sent = {net.published(rng.randrange(size)) for _ in range(3)}
    net.run_until(70)
    for node in net.nodes:
        own = {m for m in sent if node.progress[m] or node.outcomes(m)}
        assert sorted(m.message_id for m in node.received) == sorted(sent - own)
        assert all(m.verified and m.payload == "hello" for m in node.received)


@SLOW
@given(size=st.integers(2, 12), extra=st.integers(0, 12), loss=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_nothing_is_delivered_twice_under_lasting_loss_and_flapping_links(size, extra, loss, seed):
    rng = random.Random(seed)
    edges = connected(size, extra, rng)
    net = Net(size, edges, seed=seed)
    net.lose = lambda *_: rng.random() < loss
    for _ in range(6):
        net.publish(rng.randrange(size))
        a, b = rng.choice(edges)
        net.at(net.now + 0.3, partial(net.cut, a, b))
        net.at(net.now + 0.6, partial(net.link, a, b))
        net.run(1)
    net.run(200)  # a call may wait for most of a minute, its broadcast lives for one, and late copies are kept for one
    for node in net.nodes:
        ids = [m.message_id for m in node.received]
        assert len(ids) == len(set(ids))
    for snapshot in net.snapshots(Subsystem.BROADCAST):
        assert snapshot["eager_push"]["in_flight"] == snapshot["eager_push"]["backlog"] == 0
        assert snapshot["store"]["messages"] == 0


@SLOW
@given(size=st.integers(2, 14), extra=st.integers(0, 6), max_hops=st.integers(1, 10), seed=st.integers(0, 2**32))
def test_no_broadcast_goes_further_than_its_hop_limit(size, extra, max_hops, seed):
    net = Net(size, connected(size, extra, random.Random(seed)), seed=seed, latency=(0.01, 0.01))
    net.published(0, max_hops=max_hops)
    net.run_until(1)
    assert all(m.hops <= max_hops for node in net.nodes for m in node.received)
    hops = {m.hops for node in net.nodes for m in node.received}
    assert hops == set(range(1, len(hops) + 1))


def test_hop_limit_ends_a_line_exactly_there():
    net = Net(6, line(6))
    net.published(0, max_hops=3)
    net.run_until(5)
    assert [[m.hops for m in node.received] for node in net.nodes] == [[], [1], [2], [3], [], []]


def test_a_message_is_not_taken_after_its_ttl_however_it_travelled():
    net = Net(3, line(2))
    net.published(0, ttl=10)
    net.at(9.0, lambda: net.link(1, 2))
    net.run_until(30)
    assert len(net.nodes[2].received) == 1
    late = Net(3, line(2))
    late.published(0, ttl=10)
    late.at(10.5, lambda: late.link(1, 2))
    late.run_until(30)
    assert len(late.nodes[2].received) == 0


def test_age_ends_a_message_even_where_the_clocks_would_allow_it():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.wait_until(100)
    bare.hear(ALICE, gossip(age=60_000))
    assert bare.acks() == [("m1", True)]
    assert bare.delivered() == []
    bare.hear(BOB, gossip(age=50_000))
    assert len(bare.delivered()) == 1
    assert bare.count("store.messages") == 1
    bare.wait_until(109)
    bare.hear(CAROL, GossipGraft(ids=(id_of(gossip()),)))
    bare.up(CAROL)
    bare.hear(CAROL, GossipGraft(ids=(id_of(gossip()),)))
    assert len(bare.sent(Gossip)) == 1
    bare.wait_until(111)
    bare.up(DAVE)
    bare.wait_until(112)
    bare.hear(DAVE, GossipGraft(ids=(id_of(gossip()),)))
    assert bare.sent(Gossip) == bare.sent(GossipDigest) == []
    bare.wait_until(161)
    assert bare.count("store.messages") == 0, "which it is kept for, since its age may be a lie"


def test_a_message_published_alone_waits_for_the_first_link():
    net = Net(3, [(1, 2)])
    message_id = net.published(0, {"n": 1})
    net.run_until(20)
    net.link(0, 1)
    net.run_until(25)
    assert [[m.message_id for m in node.received] for node in net.nodes[1:]] == [[message_id]] * 2
    assert net.nodes[2].received[0].payload == {"n": 1}


def test_what_an_island_said_reaches_the_far_end_of_the_mesh_that_it_becomes_part_of():
    net = Net(30, [(0, 1), *((number, number + 1) for number in range(2, 29))])
    message_id = net.published(0)
    net.run_until(3)
    net.link(1, 2)
    net.run_until(50)
    assert [m.message_id for m in net.nodes[29].received] == [message_id]


def test_a_message_crosses_to_the_other_part_after_a_heal_even_if_the_offer_is_lost():
    net = Net(4, [(0, 1), (2, 3)])
    message_id = net.published(0)
    net.run_until(3)
    net.lose = lambda *_: net.now < 6
    net.link(1, 2)
    net.run_until(30)
    assert [m.message_id for m in net.nodes[3].received] == [message_id]


def test_a_new_link_between_peers_that_have_it_all_costs_one_question_and_no_payload():
    net = Net(3, [(0, 1), (1, 2)])
    for _ in range(20):
        net.published(0)
    net.run_until(5)
    start = len(net.trace)
    net.link(0, 2)
    net.run_until(10)
    messages = [entry[3] for entry in net.trace[start:] if len(entry) == 5]
    digest, answer = (message for message in messages if isinstance(message, GossipDigest | GossipHave | GossipWant))
    assert isinstance(digest, GossipDigest)
    assert digest.count == 20
    assert answer == GossipWant()
    assert not any(isinstance(message, Gossip) for message in messages)


def test_the_same_seed_gives_the_same_trace():
    def trace(seed: int) -> list[Any]:
        rng = random.Random(seed)
        net = Net(9, connected(9, 6, rng), seed=seed)
        net.lose = lambda *_: net.now < 4 and rng.random() < 0.3
        for number in range(9):
            net.published(number, {"from": number})
        net.at(2, lambda: net.kill(3))
        net.run_until(70)
        return net.trace

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


# --- a broadcast of ours ----------------------------------------------------------------------------------------------


def test_publish_replies_first_then_tells_the_receipts_then_sends():
    bare = Bare()
    bare.up(ALICE, BOB)
    reply, started, frame = bare(Publish(7, "chat", {"a": [1]}))
    assert isinstance(reply, Reply)
    assert isinstance(started, Notify)
    children = (ALICE.peer_id, BOB.peer_id)
    assert started.input == ChildrenAdded(reply.value, None, children, 60.0, 0, ME.peer_id, "chat", started=0.0)
    assert isinstance(frame, SendFrame)
    assert frame.peers == (ALICE.peer_id, BOB.peer_id)
    data = frame.message.data  # type: ignore[union-attr]
    assert is_proven(data, NETWORK)
    assert (data.hops, data.payload, data.encoding, data.ttl, data.max_hops) == (0, '{"a":[1]}', "json", 60_000, 255)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (Publish(1, "chat", {1, 2}), InvalidPayload),  # type: ignore[arg-type]
        (Publish(1, "chat", b"x" * 101), PayloadTooLarge),
    ],
)
def test_what_can_not_be_broadcast_is_refused_before_anything_is_sent(event, error):
    bare = Bare(MeshConfig(max_payload=100))
    bare.up(ALICE)
    (reply,) = bare(event)
    assert isinstance(reply.error, error)


def test_publish_waits_while_a_link_has_a_long_backlog_and_goes_on_in_order():
    bare = Bare(broadcast_config(window=2, publish_room=2))
    bare.up(ALICE, BOB)
    ids = []
    for call in range(1, 7):
        bare(Publish(call, "chat", call))
        ids += [reply.value for reply in bare.replies.values()]
    assert bare.count("publisher.waiting") == 2
    assert bare(CancelCall(5)) == []
    bare.hear(ALICE, GossipAck(new=(ids[0],)))
    assert [m.data.payload for _, m in bare.sent(Gossip)] == ["3"]
    assert bare.count("publisher.waiting") == 1, "the fullest link decides"
    bare.hear(BOB, GossipAck(new=(ids[0],)))
    assert list(bare.replies) == [6]


def test_a_lone_neighbour_that_acknowledges_nothing_holds_publishers_back_until_its_link_ends():
    bare = Bare(broadcast_config(window=2, publish_room=2))
    bare.up(ALICE)
    calls = iter(range(1000))
    while not bare.count("publisher.waiting"):
        bare(Publish(next(calls), "chat", "x"))
    bare.wait_until(5)
    assert bare.count("publisher.waiting") == 1
    bare(LinkDown(ALICE.peer_id, "timed out"))
    assert bare.count("publisher.waiting") == 0


def test_publishers_wait_for_a_link_that_is_slower_than_others_but_not_for_one_that_does_not_move():
    bare = Bare(broadcast_config(window=2, publish_room=2, slow_patience=10, ack_timeout=60.0))
    bare.up(ALICE, BOB)
    unanswered = []
    for call in range(20):
        bare(Publish(call, "chat", call))
        unanswered += sent_to(bare, ALICE)
        _flush(bare, BOB)
    waiting = bare.count("publisher.waiting")
    assert waiting > 10
    bare.wait(9.0)
    bare.hear(ALICE, GossipAck(new=(unanswered.pop(0),)))
    _flush(bare, BOB)
    bare.wait(9.9)
    bare(CancelCall(999))  # any input
    assert bare.count("publisher.waiting") >= waiting - 1
    bare.wait(0.2)
    bare(CancelCall(999))
    _flush(bare, BOB)
    assert bare.count("publisher.waiting") == 0


def test_a_neighbour_gets_its_turn_once_it_moves_again():
    bare = Bare(broadcast_config(window=2, publish_room=2))
    bare.up(ALICE, BOB)
    unanswered = []
    for call in range(20):
        bare(Publish(call, "chat", call))
        unanswered += sent_to(bare, ALICE)
        _flush(bare, BOB)
    while unanswered:
        bare.hear(ALICE, GossipAck(new=(unanswered.pop(0),)))
        unanswered += sent_to(bare, ALICE)
        _flush(bare, BOB)
    assert (
        bare.count("eager_push.in_flight") == bare.count("eager_push.backlog") == bare.count("publisher.waiting") == 0
    )
    bare(Publish(99, "chat", "x"))
    assert bare.sent(Gossip)[0][0] == (ALICE.peer_id, BOB.peer_id)


def test_while_ours_wait_what_a_frame_costs_grows_with_the_links_and_no_faster():
    def cost(links: int) -> int:
        """Calls that it takes to find that an ack is worth nothing."""
        bare = Bare(broadcast_config(publish_room=2, window=2))
        bare.up(*(Identity.from_seed(bytes([number]) * 32) for number in range(links - 1)), ALICE)
        for call in range(20):
            bare(Publish(call, "chat", call))
        assert bare.count("publisher.waiting") > 10
        calls = 0

        def count(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        bare.core.handle(Received(ALICE.peer_id, GossipAck(new=("x",))), 0.0)
        sys.setprofile(before)
        return calls

    assert cost(40) < 6 * cost(10)


@pytest.mark.parametrize("others_are_slow", [False, True])
def test_a_link_that_is_left_behind_is_given_up_unless_all_are_slow(others_are_slow):
    bare = Bare(broadcast_config(window=8, publish_room=2, slow_patience=10, ack_timeout=60.0))
    bare.up(ALICE, BOB, DAVE)
    dropped = []
    unanswered, late = [], []
    for number in range(100):
        bare.hear(DAVE, gossip(CAROL, message_id=f"m{number}"))
        dropped += bare.dropped()
        unanswered += sent_to(bare, ALICE)
        late.append(sent_to(bare, BOB))
        if len(late) > (4 if others_are_slow else 0):  # a second later
            _flush(bare, BOB, late.pop(0))
        if number % 2 and unanswered:  # one in half a second is not enough
            bare.hear(ALICE, GossipAck(had=(unanswered.pop(0),)))
            unanswered += sent_to(bare, ALICE)
        bare.wait(0.25)
    assert [(drop.peer, drop.blame) for drop in dropped] == ([] if others_are_slow else [(ALICE.peer_id, False)])
    assert all(drop.reason.startswith("too slow") for drop in dropped)


def sent_to(bare: Bare, neighbour: Identity) -> list[str]:
    """What this neighbour has just got as a copy or an offer."""
    copies = [message.data.id for peers, message in bare.sent(Gossip) if neighbour.peer_id in peers]
    offers = [message.ids[0] for peers, message in bare.sent(GossipIHave) if neighbour.peer_id in peers]
    return copies + offers


def _flush(bare: Bare, neighbour: Identity, sent: Sequence[str] | None = None) -> list[str]:
    """Acknowledge for this neighbour what it got, or has just got, and all that follows."""
    ids: list[str] = []
    unanswered = sent_to(bare, neighbour) if sent is None else list(sent)
    while unanswered:
        ids.append(unanswered.pop(0))
        bare.hear(neighbour, GossipAck(new=(ids[-1],)))
        unanswered += sent_to(bare, neighbour)
    return ids


def test_leaving_fails_the_broadcasts_that_wait_and_those_to_come():
    bare = Bare(broadcast_config(window=1, publish_room=1))
    bare.up(ALICE)
    for call in (1, 2, 3):
        bare(Publish(call, "chat", call))
    bare(Leave())
    assert isinstance(bare.replies[3].error, MeshClosed)
    bare(Publish(4, "chat", 4))
    assert isinstance(bare.replies[4].error, MeshClosed)


def test_without_receipts_nothing_is_told_and_the_flag_is_signed():
    bare = Bare()
    bare.up(ALICE)
    bare(Publish(1, "chat", 1, receipts=False))
    data = bare.sent(Gossip)[0][1].data
    assert bare.told == []
    assert is_proven(data, NETWORK)
    assert not is_proven(structs.replace(data, receipts=True), NETWORK)


def test_our_own_broadcast_that_comes_back_is_a_duplicate():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare(Publish(1, "chat", 1))
    data = bare.sent(Gossip)[0][1].data
    bare.hear(ALICE, GossipAck(new=(data.id,)))
    bare.hear(ALICE, Gossip(data=structs.replace(data, hops=2)))
    assert bare.acks() == [(data.id, True)]
    bare.hear(BOB, gossip(ME, message_id="from an earlier life"))
    assert bare.delivered() == []
    assert bare.acks() == [("from an earlier life", True)]


# --- hops -------------------------------------------------------------------------------------------------------------


def test_an_unacknowledged_hop_is_retried_with_growing_pauses_and_then_given_up():
    bare = Bare()
    bare.up(ALICE)
    bare(Publish(1, "chat", 1, ttl=600))
    times = []
    for _ in range(6):
        bare.effects = []
        while not any(isinstance(e, SendFrame | Notify) and not _is_digest(e) for e in bare.effects):
            bare.now = bare.core.next_deadline()
            bare.effects = bare.core.expire(bare.now)
        times.append(bare.now)
    pauses = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses)), pauses
    assert [type(event) for event in bare.told] == [ChildSettled]
    assert bare.told[0].adopted is False  # type: ignore[union-attr]
    assert bare.count("eager_push.given_up") == 1
    assert bare.count("eager_push.retried") == 5
    assert bare.sent(Gossip) == []


def _is_digest(effect: object) -> bool:
    return isinstance(effect, SendFrame) and isinstance(effect.message, GossipDigest)


def test_retries_carry_the_age_of_the_message():
    bare = Bare()
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    bare.wait_until(1.0)
    (_, retry), *_ = bare.sent(Gossip)
    assert 500 <= retry.data.age <= 1000


def test_an_ack_is_waited_for_longer_when_much_is_in_flight():
    bare = Bare(broadcast_config(slowest_link=1000.0))
    bare.up(ALICE)
    bare(Publish(1, "chat", b"x" * 10_000))
    bare.wait_until(10)
    assert bare.sent(Gossip) == []
    bare.wait_until(12)
    assert bare.sent(Gossip) != []


def test_a_late_ack_still_counts():
    bare = Bare(broadcast_config(retries=0))
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    message_id = bare.replies[1].value
    bare.wait_until(2)
    assert bare.told == [ChildSettled(message_id, ALICE.peer_id, False)]
    bare.hear(ALICE, GossipAck(new=(message_id,)))
    assert bare.told == [ChildSettled(message_id, ALICE.peer_id, True, is_there=True)]
    bare.hear(ALICE, GossipAck(new=(message_id,)))
    assert bare.told == []


def test_a_repeated_copy_from_whom_we_have_it_is_acknowledged_as_new():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip())
    assert bare.acks() == [("m1", False)]
    bare.hear(ALICE, gossip())
    assert bare.acks() == [("m1", False)]


def test_copies_that_cross_are_each_others_acks():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip())
    assert [peers for peers, _ in bare.sent(Gossip)] == [(BOB.peer_id,)]
    bare.hear(BOB, gossip(hops=3))
    assert bare.acks() == []
    assert bare.told == [ChildSettled(id_of(gossip()), BOB.peer_id, False, is_there=True)]
    assert bare.count("eager_push.in_flight") == 0


def test_if_our_copy_was_lost_where_two_crossed_the_repeated_one_is_acknowledged():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip())
    bare.hear(BOB, gossip(hops=3))
    bare.hear(BOB, gossip(hops=3))
    assert bare.acks() == [("m1", True)]


def test_a_copy_of_what_still_waits_for_the_window_is_acknowledged_and_spares_ours():
    bare = Bare(broadcast_config(window=1))
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(message_id="m1"))
    bare.hear(ALICE, gossip(message_id="m2"))
    assert bare.count("eager_push.backlog") == 1
    bare.hear(BOB, gossip(message_id="m2"))
    assert bare.acks() == [("m2", True)]
    assert bare.count("eager_push.backlog") == 0


def test_an_announcement_of_what_still_waits_for_the_window_spares_ours():
    bare = Bare(broadcast_config(window=1))
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(message_id="m1"))
    bare.hear(ALICE, gossip(message_id="m2"))
    assert bare.count("eager_push.backlog") == 1
    bare.hear(BOB, GossipIHave(ids=(id_of(gossip(message_id="m2")),)))
    assert bare.told == [ChildSettled(id_of(gossip(message_id="m2")), BOB.peer_id, adopted=False, is_there=True)]
    assert bare.count("eager_push.backlog") == 0
    bare.hear(BOB, GossipAck(new=(id_of(gossip(message_id="m1")),)))
    assert bare.sent(Gossip) == []


def test_an_offer_of_what_is_on_its_way_there_as_a_copy_stands_for_the_ack():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip())
    assert [peers for peers, _ in bare.sent(Gossip)] == [(BOB.peer_id,)]
    bare.hear(BOB, GossipIHave(ids=(id_of(gossip()),), offer=True))
    assert bare.acks() == bare.sent(GossipGraft) == []
    assert bare.told == [ChildSettled(id_of(gossip()), BOB.peer_id, adopted=False, is_there=True)]
    bare.wait_until(5)
    assert bare.sent(Gossip) == bare.sent(GossipIHave) == []


def test_a_graft_of_what_is_on_its_way_as_a_copy_brings_no_other():
    bare = Bare()
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    assert bare.hear(ALICE, GossipGraft(ids=(bare.replies[1].value,))) == []


def test_a_new_broadcast_goes_as_a_copy_or_as_an_offer_to_each_link_and_never_as_both():
    bare = Bare(broadcast_config(push_above=2))  # where no tree says more, offers alone
    bare.up(ALICE, BOB, CAROL)
    bare.hear(ALICE, gossip())
    assert (bare.sent(Gossip), [peers for peers, _ in bare.sent(GossipIHave)]) == (
        [],
        [(BOB.peer_id, CAROL.peer_id)],
    )
    bare.hear(BOB, GossipAck(new=(id_of(gossip()),)))
    bare.hear(ALICE, gossip(message_id="m2"))
    assert [peers for peers, _ in bare.sent(Gossip)] == [(BOB.peer_id,)]
    assert [peers for peers, _ in bare.sent(GossipIHave)] == [(CAROL.peer_id,)]


def test_a_link_that_ends_settles_its_hops():
    bare = Bare(broadcast_config(window=1))
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    bare(Publish(2, "chat", 2))
    bare(LinkDown(ALICE.peer_id, "gone"))
    assert [(type(e), e.adopted) for e in bare.told] == [(ChildSettled, False)] * 2  # type: ignore[union-attr]
    assert bare.count("eager_push.in_flight") == bare.count("eager_push.backlog") == 0


def test_what_went_to_a_peer_that_is_gone_without_an_answer_is_offered_to_others():
    bare = Bare(broadcast_config(push_above=2.0))
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    message_id = bare.replies[1].value
    bare(LinkDown(ALICE.peer_id, "gone"))
    bare.up(BOB)
    ((peers, offer),) = bare.sent(GossipIHave)
    assert (peers, offer.ids, offer.offer) == ((BOB.peer_id,), (message_id,), True)
    bare.hear(BOB, GossipAck(prune=(message_id,)))
    assert bare.told == [ChildSettled(message_id, BOB.peer_id, adopted=False, is_there=True)]
    bare(LinkDown(BOB.peer_id, "gone"))
    bare.up(CAROL)
    assert bare.sent(GossipIHave) == [], "somebody has it"


@pytest.mark.parametrize("reason", ["", "too large"])
def test_who_refuses_a_broadcast_does_not_have_it(reason):
    bare = Bare()
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    message_id = bare.replies[1].value
    bare.hear(ALICE, GossipAck(refused=(message_id,), reason=reason))
    told = list(bare.told)
    bare.hear(ALICE, GossipAck(had=(message_id,)))
    assert [event.is_there for event in (*told, *bare.told) if isinstance(event, ChildSettled)] == [False]
    assert [event.reason for event in told if isinstance(event, Refused)] == [reason] * bool(reason)
    bare.wait(30)
    assert bare.sent(Gossip) == []


def test_an_origin_learns_that_what_it_sent_before_us_is_not_here():
    bare = Bare()
    bare.up(ALICE)
    bare.wait(1)
    bare.hear(ALICE, aged(5, now=1))
    ((_, ack),) = [one for one in bare.sent(GossipAck) if one[1].refused]
    assert (len(ack.refused), ack.reason) == (1, "")


def test_what_becomes_due_in_the_same_instant_does_no_harm():
    bare = Bare()
    bare.up(ALICE, BOB)
    for call in range(5):
        bare(Publish(call, "chat", call, ttl=2))
    bare.now = 100.0
    bare.core.expire(100.0)
    bare.wait_until(1000)
    assert bare.count("store.messages") == bare.count("eager_push.in_flight") == 0


# --- what neighbours send ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["text", {"a": [1.5, None]}, b"\0\xff", 1e300])
@pytest.mark.parametrize("text", [True, False])
def test_a_proof_survives_either_encoding(payload, text):
    bare = Bare()
    bare.up(ALICE)
    bare(Publish(1, "ch\u00e4t", payload))
    ((_, message),) = bare.sent(Gossip)
    received = decode(encode(message, text=text))
    other = Bare(identity=BOB)
    other.up(ME)
    assert isinstance(received, Gossip)
    other.hear(ME, received)
    (event,) = other.delivered()
    assert (event.payload, event.verified) == (payload, True)


def forged(data: GossipData) -> list[GossipData]:
    other = signed(structs.replace(data, payload="other"), ALICE, NETWORK)
    return [
        structs.replace(data, payload="changed"),
        structs.replace(data, topic="changed"),
        structs.replace(data, ttl=600_000),
        structs.replace(data, max_hops=255),
        structs.replace(data, timestamp=data.timestamp + 1),
        structs.replace(data, encoding="json"),
        structs.replace(data, id="m2"),
        structs.replace(data, origin_peer_id=BOB.peer_id),
        structs.replace(data, key=BOB.public_key),
        structs.replace(data, key=None),
        structs.replace(data, signature=None),
        structs.replace(data, signature=other.signature),
        structs.replace(data, ttl=None),
    ]


@pytest.mark.parametrize("number", range(13))
@pytest.mark.parametrize("config", [MeshConfig(), LENIENT])
def test_a_wrong_proof_closes_the_link_it_came_from_and_goes_no_further(number, config):
    bare = Bare(config)
    bare.up(BOB, CAROL)
    bad = forged(gossip().data)[number]
    bare.hear(BOB, Gossip(data=bad))
    assert [(drop.peer, drop.blame) for drop in bare.dropped()] == [(BOB.peer_id, True)]
    assert bare.sent(Gossip) == bare.delivered() == []
    bare.hear(CAROL, gossip(message_id=bad.id))
    assert len(bare.delivered()) == 1, "a forgery must not shadow the real one"


def test_a_signed_payload_that_contradicts_itself_closes_the_link():
    bare = Bare()
    bare.up(ALICE)
    bare.hear(ALICE, gossip(payload="{", encoding="json"))
    assert bare.dropped()[0].blame
    assert bare.delivered() == []


def test_an_id_stands_for_one_content_and_no_other_message_can_take_it():
    bare = Bare()
    bare.up(ALICE, BOB)
    real, other = gossip(), gossip(CAROL, payload="other")
    assert real.data.id != other.data.id
    bare.hear(BOB, Gossip(data=structs.replace(other.data, id=real.data.id)))
    assert bare.delivered() == []
    assert bare.dropped()[0].blame
    bare.hear(ALICE, real)
    assert [m.payload for m in bare.delivered()] == ["hi"]
    bare.hear(BOB, Gossip(data=structs.replace(other.data, id=real.data.id)))
    assert bare.delivered() == [], "dedupe looks no further than the id"


def test_an_unproven_message_does_not_stand_in_the_way_of_the_proven_one_with_its_id():
    bare = Bare(LENIENT)
    bare.up(ALICE, version=0)
    bare.up(BOB, CAROL)
    real = gossip()
    bare.hear(ALICE, original(message_id=real.data.id, payload="fake"))
    assert [(m.payload, m.verified) for m in bare.delivered()] == [("fake", False)]
    bare.hear(BOB, real)
    assert [(m.payload, m.verified) for m in bare.delivered()] == [("hi", True)]
    assert bare.sent(Gossip)[0][0] == (CAROL.peer_id,)
    bare.hear(CAROL, real)
    assert bare.delivered() == []


def test_what_an_original_relayed_is_not_delivered_again_with_its_proof():
    bare = Bare(LENIENT)
    bare.up(ALICE, version=0)
    bare.up(BOB)
    real = gossip(payload='{"a":1}', encoding="json")
    bare.hear(ALICE, original(message_id=real.data.id, payload='{"a":1}'))
    assert len(bare.delivered()) == 1
    bare.hear(BOB, real)
    assert bare.delivered() == []


def test_unproven_messages_are_refused_without_blame_unless_the_config_allows_them():
    strict, lenient = Bare(), Bare(LENIENT)
    for bare in (strict, lenient):
        bare.up(ALICE, BOB)
        bare.hear(ALICE, gossip(sign=False))
        assert bare.dropped() == []
    assert strict.acks() == [("m1", True)]
    assert (strict.delivered(), strict.count("refused.unproven")) == ([], 1)
    assert [m.verified for m in lenient.delivered()] == [False]
    assert [peers for peers, _ in lenient.sent(Gossip)] == [(BOB.peer_id,)]


def test_an_unverified_identity_broadcasts_without_proof():
    bare = Bare(LENIENT, Identity.unverified("ab" * 20))
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    data = bare.sent(Gossip)[0][1].data
    assert data.key is data.signature is None


@pytest.mark.parametrize(
    ("fields", "counter"),
    [
        ({"timestamp": int((EPOCH - 361) * 1000)}, "expired"),
        ({"timestamp": int((EPOCH + 301) * 1000)}, "expired"),
        ({"ttl": 0}, "expired"),
        ({"ttl": 2**52, "timestamp": int((EPOCH - 901) * 1000)}, "expired"),
    ],
)
def test_what_came_too_late_is_acknowledged_and_goes_no_further(fields, counter):
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(**fields))
    assert bare.acks() == [("m1", True)]
    assert bare.delivered() == bare.sent(Gossip) == []
    assert bare.count(f"refused.{counter}") == 1
    bare.hear(BOB, gossip())
    assert len(bare.delivered()) == 1


def test_a_wrong_clock_within_the_skew_changes_nothing():
    for offset in (-350, -299, 299):
        bare = Bare()
        bare.up(ALICE)
        bare.hear(ALICE, gossip(timestamp=int((EPOCH + offset) * 1000)))
        assert len(bare.delivered()) == 1


def test_an_id_is_remembered_for_as_long_as_any_copy_could_be_accepted():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(timestamp=int((EPOCH + 300) * 1000)))
    for now in range(1, 1400, 50):
        bare.wait_until(now)
        bare.hear(BOB, gossip(message_id=f"other {now}", timestamp=int((EPOCH + now) * 1000)))
        bare.hear(BOB, gossip(timestamp=int((EPOCH + 300) * 1000)))
        assert bare.delivered() == []


def test_acks_and_answers_overtake_payloads():
    bare = Bare()
    bare.up(ALICE, BOB)
    effects = [e for e in bare.hear(ALICE, gossip()) if isinstance(e, SendFrame)]
    assert {type(e.message): e.urgent for e in effects} == {GossipAck: True, Gossip: False}
    (answer,) = bare.hear(BOB, GossipHave(ids=(id_of(gossip()), "m2")))
    assert (answer.urgent, answer.message) == (True, GossipWant(ids=("m2",)))
    (answer,) = bare.hear(BOB, GossipIHave(ids=("m3",)))
    assert (answer.urgent, answer.message) == (True, GossipGraft(ids=("m3",)))


def test_messages_of_a_link_that_has_ended_are_ignored():
    bare = Bare()
    for message in (
        gossip(),
        GossipAck(new=("x",)),
        GossipIHave(ids=("x",)),
        GossipGraft(ids=("x",)),
        GossipDigest(count=1, sum=bytes(8), within=1),
        GossipHave(ids=("x",)),
        GossipWant(ids=("x",)),
        GossipHistory(within=1),
    ):
        assert bare.hear(ALICE, message) == []


def test_acks_and_questions_out_of_the_blue_are_ignored():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip())
    bare.hear(BOB, GossipAck(new=("m1",)))
    for message in (GossipAck(new=("m1",)), GossipAck(new=("x",)), GossipAck(), GossipWant(ids=("x", "m1"))):
        assert bare.hear(BOB, message) == []


def acks_until_cut(**lists: Any) -> int:
    bare = Bare()
    bare.up(ALICE)
    for number in range(20_000):
        bare.hear(ALICE, GossipAck(**lists))
        if bare.dropped():
            return number
    raise AssertionError("it may go on for ever")


@pytest.mark.parametrize("kind", ["new", "had", "prune", "refused"])
def test_acks_of_what_was_never_sent_are_paid_for_by_the_id(kind):
    short, long = acks_until_cut(**{kind: ("x",)}), acks_until_cut(**{kind: tuple(f"x{n}" for n in range(256))})
    assert short > 4 * long


# --- the original's peers ---------------------------------------------------------------------------------------------


def test_an_original_gets_its_own_form_and_no_ack_is_awaited():
    bare = Bare(LENIENT)
    bare.up(ALICE, version=0)
    bare(Publish(1, "chat", {"a": 1}))
    ((peers, message),) = bare.sent(Gossip)
    data = message.data
    assert peers == (ALICE.peer_id,)
    assert message.delivery_id == f"{data.id}_1"
    assert message.requires_ack is False
    assert (data.payload, data.relayed_by, data.signature) == ('{"a":1}', (ME.peer_id,), None)
    assert data.encoding is data.key is data.ttl is None
    assert bare.told == [ChildrenAdded(data.id, None, (), 60.0, 1, ME.peer_id, "chat", started=0.0)]
    assert bare.count("eager_push.in_flight") == 0


def test_what_came_far_is_not_too_far_for_an_original():
    bare = Bare(LENIENT)
    bare.up(ALICE)
    bare.up(BOB, version=0)
    bare.hear(ALICE, gossip(hops=30))
    told = {message.data.hops for peers, message in bare.sent(Gossip) if peers == (BOB.peer_id,)}
    assert told == {5}


def test_links_to_originals_are_counted_with_the_others():
    bare = Bare(LENIENT)
    bare.up(ALICE, version=0)
    bare.up(BOB, CAROL)
    assert (bare.count("links"), bare.count("legacy.links")) == (3, 1)


def test_an_originals_broadcast_is_passed_on_unproven_and_spares_whom_it_names():
    bare = Bare(LENIENT)
    bare.up(ALICE, BOB, version=0)
    bare.up(CAROL)
    dave = IDENTITIES[5]
    bare.up(dave, version=0)
    relayed_by = (CAROL.peer_id, dave.peer_id)
    bare.hear(ALICE, original(origin=IDENTITIES[8], payload='{"x":2}', hops=2, relayed_by=relayed_by))
    (event,) = bare.delivered()
    assert (event.payload, event.verified, event.hops) == ({"x": 2}, False, 3)
    sent = dict(bare.sent(Gossip))
    assert list(sent) == [(CAROL.peer_id,), (BOB.peer_id,)], "the hint holds for originals only"
    plain = sent[BOB.peer_id,]
    assert plain.data.relayed_by == (*relayed_by, ALICE.peer_id)
    assert plain.data.hops == 3
    assert plain.delivery_id is None
    assert sent[CAROL.peer_id,].data.receipts is False
    assert bare.acks() == []
    assert bare.told == []


def test_an_original_is_never_blamed_for_what_it_relays():
    bare = Bare(LENIENT)
    bare.up(ALICE, version=0)
    bare.up(BOB)
    bare.hear(ALICE, original(origin=CAROL, signature=b"s" * 64))
    assert [m.verified for m in bare.delivered()] == [False]
    assert bare.sent(Gossip)[0][1].data.signature is None
    bare.hear(ALICE, original(message_id="m2", blob=b"x", payload="y"))
    assert bare.effects == []


def test_an_originals_probe_is_answered_to_it_alone():
    bare = Bare(LENIENT)
    bare.up(ALICE, version=0)
    bare.up(BOB)
    bare.now = 2.5
    (answer,) = bare.hear(ALICE, original(topic="__gossip_connectivity_probe", payload='{"probeId":"q"}'))
    assert answer.peers == (ALICE.peer_id,)
    data = answer.message.data
    assert data.topic == "__gossip_connectivity_response"
    assert '"originalProbe":"{\\"probeId\\":\\"q\\"}"' in data.payload
    assert ME.peer_id in data.payload
    assert data.relayed_by == (ME.peer_id,)
    assert bare.hear(ALICE, original(topic="__gossip_connectivity_response")) == []
    assert bare.hear(BOB, gossip(topic="__gossip_connectivity_probe")) == []
    (long,) = bare.hear(ALICE, original(topic="__gossip_connectivity_probe", payload="x" * 100_000))
    assert '"originalProbe":null' in long.message.data.payload


def test_an_original_gets_what_was_published_before_anybody_was_there():
    bare = Bare(LENIENT)
    bare(Publish(1, "chat", "one"))
    bare(Publish(2, "chat", "two"))
    bare.up(ALICE, version=0)
    assert [m.data.payload for _, m in bare.sent(Gossip)] == ["one", "two"]
    bare.up(BOB, version=0)
    assert bare.sent(Gossip) == []


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "payload", "kept"),
    [({"history": 5}, "x", 5), ({"history_bytes": 1024 * 1024}, "x" * 300_000, 3)],
)
def test_history_is_bounded_and_what_goes_is_given_up(fields, payload, kept):
    bare = Bare(broadcast_config(window=3, publish_room=2000, **fields))
    bare.up(ALICE)
    settled = []
    for call in range(12):
        bare(Publish(call, "chat", payload))
        settled += [event for event in bare.told if isinstance(event, ChildSettled)]
    assert bare.count("store.messages") == kept
    assert bare.count("store.bytes") <= 1024 * 1024
    assert bare.count("store.dropped") == len(settled) == 12 - kept
    assert bare.count("eager_push.in_flight") + bare.count("eager_push.backlog") == kept


def test_window_and_backlog_are_bounded_and_the_oldest_in_the_backlog_goes():
    bare = Bare(broadcast_config(window=4, backlog=6))
    bare.up(ALICE, BOB)
    settled = []
    sent = []
    for number in range(20):
        bare.hear(ALICE, gossip(message_id=f"m{number}"))
        settled += [event.message_id for event in bare.told if isinstance(event, ChildSettled)]
        sent += sent_to(bare, BOB)
    assert (bare.count("eager_push.in_flight"), bare.count("eager_push.backlog")) == (4, 6)
    assert [NAMES[message_id] for message_id in settled] == [f"m{number}" for number in range(4, 14)]
    assert bare.count("eager_push.backlog_dropped") == 10
    assert [NAMES[one] for one in _flush(bare, BOB, sent)] == [f"m{number}" for number in (*range(4), *range(14, 20))]


def test_the_window_is_bounded_in_bytes_but_takes_one_message_of_any_size():
    bare = Bare(broadcast_config(window_bytes=1024))
    bare.up(ALICE)
    bare(Publish(1, "chat", b"x" * 5000))
    assert bare.count("eager_push.in_flight") == 1
    bare(Publish(2, "chat", b"x"))
    assert (bare.count("eager_push.in_flight"), bare.count("eager_push.backlog")) == (1, 1)


def test_a_long_life_leaves_nothing_behind():
    net = Net(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)])
    for number in range(200):
        net.published(number % 5)
        net.run(0.2)
    net.run(100)
    for node in net.nodes:
        core = node.cores[Subsystem.BROADCAST]
        snapshot = core.snapshot()
        assert snapshot["store"]["messages"] == snapshot["store"]["bytes"] == snapshot["eager_push"]["in_flight"] == 0
        assert len(node.received) == 160
        assert core.next_deadline() == math.inf
