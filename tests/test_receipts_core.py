"""Receipts between bare cores: the count is what is true, once all is quiet, and never more."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import MeshConfig
from p2pmesh.events import MessageDelivered, MessageFailed
from p2pmesh.protocols.core import (
    Emit,
    Forwarded,
    HopSettled,
    Input,
    Leave,
    LinkDown,
    LinkUp,
    Originated,
    Progress,
    Received,
    SendFrame,
    Subsystem,
)
from p2pmesh.protocols.receipts import MOST_CHILDREN, ReceiptsCore
from p2pmesh.wire.messages import GossipAck, GossipReceipt, GossipReceiptAck, Message
from tests.core_harness import EPOCH, IDENTITIES, Net, clique, connected, line, remote

ME, ALICE, BOB, CAROL = IDENTITIES[:4]
A, B, C = ALICE.peer_id, BOB.peer_id, CAROL.peer_id
SLOW = settings(max_examples=40, deadline=None)


class Bare:
    """One receipts core, and its effects sorted by kind."""

    def __init__(self, **fields: object) -> None:
        config = MeshConfig()
        config = attrs.evolve(config, receipts=attrs.evolve(config.receipts, **fields))  # type: ignore[arg-type]
        self.core = ReceiptsCore(ME, config, random.Random(1), lambda now: EPOCH + now)
        self.now = 0.0
        self.effects: list[Any] = []

    def __call__(self, event: Input) -> list[Any]:
        self.effects = self.core.handle(event, self.now)
        return self.effects

    def up(self, *identities) -> None:
        for identity in identities:
            self(LinkUp(remote(identity)))

    def got(self, peer, message: Message) -> list[Any]:
        return self(Received(peer, message))

    def wait(self, until: float) -> list[Any]:
        effects = []
        while self.core.next_deadline() <= until:
            self.now = max(self.now, self.core.next_deadline())
            effects += self.core.expire(self.now)
        self.now = until
        self.effects = effects
        return effects

    def ours(self, *children, silent: int = 0, message_id: str = "m", ttl: float = 60.0) -> None:
        self(Originated(message_id, "chat", self.now + ttl, self.now))
        self(Forwarded(message_id, None, children, self.now + ttl, silent))

    def progress(self) -> list[tuple[int, bool]]:
        return [(effect.reached, effect.settled) for effect in self.effects if isinstance(effect, Progress)]

    def outcomes(self) -> list[Any]:
        return [effect.event for effect in self.effects if isinstance(effect, Emit)]

    def receipts(self) -> list[tuple[Any, ...]]:
        return [
            (effect.peers, effect.message.count, effect.message.settled)
            for effect in self.effects
            if isinstance(effect, SendFrame) and isinstance(effect.message, GossipReceipt)
        ]


# --- the whole mesh -----------------------------------------------------------------------------------------------------


@SLOW
@given(size=st.integers(2, 30), extra=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_at_rest_every_other_peer_is_counted_exactly_once(size, extra, seed):
    rng = random.Random(seed)
    net = Net(size, connected(size, extra, rng), seed=seed)
    origin = rng.randrange(size)
    message_id = net.published(origin)
    net.run(5)
    node = net.nodes[origin]
    (outcome,) = node.outcomes(message_id)
    assert isinstance(outcome, MessageDelivered)
    assert outcome.reached == size - 1
    assert node.progress[message_id][-1] == Progress(message_id, size - 1, True)
    assert outcome.elapsed < size * 0.15


@SLOW
@given(
    size=st.integers(2, 14),
    extra=st.integers(0, 14),
    loss=st.floats(0, 0.6),
    loss_ends=st.floats(0, 6),
    seed=st.integers(0, 2**32),
)
def test_counts_are_exact_once_loss_has_ended(size, extra, loss, loss_ends, seed):
    rng = random.Random(seed)
    net = Net(size, connected(size, extra, rng), seed=seed)
    net.lose = lambda *_: net.now < loss_ends and rng.random() < loss
    sent = {origin: net.published(origin) for origin in range(min(3, size))}
    net.run(75)
    for origin, message_id in sent.items():
        assert net.nodes[origin].reached(message_id) == size - 1
        assert len(net.nodes[origin].outcomes(message_id)) == 1
    assert all(snapshot["own"] == snapshot["relayed"] == 0 for snapshot in net.snapshots(Subsystem.RECEIPTS))


@SLOW
@given(size=st.integers(3, 14), extra=st.integers(0, 14), loss=st.floats(0, 0.7), seed=st.integers(0, 2**32))
def test_a_count_is_never_above_the_truth_while_links_and_peers_die_and_come_back(size, extra, loss, seed):
    rng = random.Random(seed)
    edges = connected(size, extra, rng)
    net = Net(size, edges, seed=seed)
    net.lose = lambda *_: rng.random() < loss
    sent = {origin: net.published(origin, ttl=20) for origin in range(3)}
    for _ in range(12):
        net.run(net.now + rng.uniform(0, 0.3))
        if rng.random() < 0.5:
            net.kill(rng.randrange(size))
        else:
            net.link(*rng.choice(edges))
        for origin, message_id in sent.items():
            have = sum(any(m.message_id == message_id for m in node.received) for node in net.nodes)
            assert net.nodes[origin].reached(message_id) <= have
    net.run(60)
    for origin, message_id in sent.items():
        have = sum(any(m.message_id == message_id for m in node.received) for node in net.nodes)
        assert net.nodes[origin].reached(message_id) <= have
        (outcome,) = net.nodes[origin].outcomes(message_id)
        assert isinstance(outcome, MessageDelivered if outcome.reached else MessageFailed)


def test_counting_goes_up_a_line_and_through_a_clique():
    for edges, size in ((line(12), 12), (clique(8), 8)):
        net = Net(size, edges)
        message_id = net.published(0)
        net.run(5)
        assert net.nodes[0].reached(message_id) == size - 1


def test_peers_that_join_later_are_counted_as_an_update_and_told_once():
    net = Net(4, [(0, 1), (2, 3)])
    message_id = net.published(0)
    net.run(2)
    (outcome,) = net.nodes[0].outcomes(message_id)
    assert outcome.reached == 1
    net.link(1, 2)
    net.run(6)
    assert net.nodes[0].reached(message_id) == 3
    assert net.nodes[0].progress[message_id][-1].settled
    assert net.nodes[0].outcomes(message_id) == [outcome]


def test_alone_in_the_mesh_a_broadcast_fails_after_the_grace_and_later_arrivals_still_count():
    net = Net(2)
    message_id = net.published(0)
    net.run(4.9)
    assert net.nodes[0].outcomes(message_id) == []
    net.run(5.1)
    (outcome,) = net.nodes[0].outcomes(message_id)
    assert outcome == MessageFailed(message_id, "chat", "there is no link to any peer", 0)
    net.link(0, 1)
    net.run(7)
    assert net.nodes[0].progress[message_id] == [
        Progress(message_id, 0, True),
        Progress(message_id, 0, False),
        Progress(message_id, 1, False),
        Progress(message_id, 1, True),
    ]
    assert net.nodes[0].outcomes(message_id) == [outcome]


def test_a_link_within_the_grace_makes_it_a_delivery():
    net = Net(2)
    message_id = net.published(0)
    net.run(3)
    net.link(0, 1)
    net.run(10)
    (outcome,) = net.nodes[0].outcomes(message_id)
    assert isinstance(outcome, MessageDelivered)
    assert (outcome.reached, 3 < outcome.elapsed < 4) == (1, True)


def test_without_receipts_no_receipt_travels():
    net = Net(5, clique(5))
    net.published(0, receipts=False)
    net.run(5)
    assert all(len(node.received) == 1 for node in net.nodes[1:])
    assert not any(isinstance(entry[3], GossipReceipt) for entry in net.trace if len(entry) == 5)
    assert net.nodes[0].events == []


def test_a_peer_stuck_far_down_does_not_hide_the_others():
    net = Net(5, line(5))
    stuck = net.nodes[4].id
    net.lose = lambda sender, receiver, message: sender == stuck and isinstance(message, GossipAck | GossipReceipt)
    message_id = net.published(0, ttl=20)
    net.run(4)
    assert net.nodes[0].outcomes(message_id) == []
    assert net.nodes[0].reached(message_id) == 3
    net.run(30)
    (outcome,) = net.nodes[0].outcomes(message_id)
    assert outcome.reached == 3


# --- the origin ---------------------------------------------------------------------------------------------------------


def test_the_origin_sees_each_change_and_is_told_once():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.ours(A, B)
    bare.now = 1.0
    bare(HopSettled("m", A, adopted=True))
    assert bare.progress() == [(1, False)]
    bare(HopSettled("m", B, adopted=False))
    assert bare.progress() == bare.outcomes() == []
    bare.now = 2.0
    bare.got(A, GossipReceipt(id="m", count=4))
    assert bare.progress() == [(4, True)]
    assert bare.outcomes() == [MessageDelivered("m", "chat", 4, 2.0)]
    bare.got(A, GossipReceipt(id="m", count=6))
    assert (bare.progress(), bare.outcomes()) == ([(6, True)], [])


@pytest.mark.parametrize(
    ("children", "silent", "reason"),
    [
        ((), 0, "there is no link to any peer"),
        ((), 2, "it went only to peers that can't acknowledge it (2 of the original project)"),
        ((A,), 1, "no neighbour has taken it"),
    ],
)
def test_a_broadcast_that_nobody_has_fails_with_the_reason(children, silent, reason):
    bare = Bare()
    bare.up(ALICE)
    bare.ours(*children, silent=silent)
    for child in children:
        bare(HopSettled("m", child, adopted=False))
    bare.wait(10)
    assert bare.outcomes() == [MessageFailed("m", "chat", reason, 0)]


def test_a_child_that_never_answers_settles_when_the_ttl_ends():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.ours(A, B)
    bare(HopSettled("m", A, adopted=True))
    bare.wait(59.9)
    assert bare.outcomes() == []
    bare.wait(60)
    assert bare.outcomes() == [MessageDelivered("m", "chat", 1, 60.0)]
    bare.got(A, GossipReceipt(id="m", count=3, settled=False))
    assert bare.progress() == [(3, True)]
    bare.wait(71)
    assert bare.core.snapshot()["own"] == 0


def test_a_dead_link_counts_what_it_last_said():
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    bare.ours(A, B, C)
    bare.got(A, GossipReceipt(id="m", count=5, settled=False))
    bare(HopSettled("m", B, adopted=True))
    bare(LinkDown(A, "gone"))
    bare(LinkDown(B, "gone"))
    assert bare.progress() == bare.outcomes() == []
    bare(LinkDown(C, "gone"))
    assert bare.outcomes()[0].reached == 6


def test_an_ack_that_is_told_after_the_link_went_does_not_wait_for_more():
    bare = Bare()
    bare.up(ALICE)
    bare.ours(A)
    bare(LinkDown(A, "gone"))
    bare(HopSettled("m", A, adopted=True))
    assert bare.outcomes()[0].reached == 1


def test_leaving_settles_everything_as_it_stands():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.ours(A, B)
    bare(HopSettled("m", A, adopted=True))
    bare.ours(B, message_id="n")
    bare(Leave())
    assert bare.outcomes() == [
        MessageDelivered("m", "chat", 1, 0.0),
        MessageFailed("n", "chat", "no neighbour has taken it", 0),
    ]


# --- between ------------------------------------------------------------------------------------------------------------


def test_a_leaf_answers_at_once_and_repeats_until_the_parent_has_noted_it():
    bare = Bare()
    bare.up(ALICE)
    bare(Forwarded("m", A, (), 60.0))
    assert bare.receipts() == [((A,), 1, True)]
    bare.wait(4)
    assert len(bare.receipts()) in {2, 3}
    bare.got(A, GossipReceiptAck(id="m", count=1))
    assert bare.wait(59) == []


def test_only_the_ack_of_the_last_count_ends_the_repeats():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare(Forwarded("m", A, (B,), 60.0))
    bare.got(B, GossipReceipt(id="m", count=2))
    assert bare.receipts() == [((A,), 3, True)]
    for wrong in (GossipReceiptAck(id="m", count=2), GossipReceiptAck(id="m", count=3, settled=False)):
        bare.got(A, wrong)
    bare.got(B, GossipReceiptAck(id="m", count=3))
    bare.wait(2)
    assert bare.receipts() != []


def test_a_count_that_grows_unsettled_is_passed_on_now_and_then():
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    bare(Forwarded("m", A, (B, C), 60.0))
    bare(HopSettled("m", B, adopted=True))
    bare.got(B, GossipReceipt(id="m", count=7))
    assert bare.receipts() == []
    bare.wait(0.5)
    assert bare.receipts() == [((A,), 8, False)]
    bare(HopSettled("m", C, adopted=False))
    assert bare.receipts() == [((A,), 8, True)]


def test_what_the_parent_missed_is_told_when_its_link_is_back():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare(Forwarded("m", A, (B,), 60.0))
    bare(LinkDown(A, "gone"))
    bare.got(B, GossipReceipt(id="m", count=1))
    bare.wait(20)
    assert bare.receipts() == []
    bare.up(ALICE)
    assert bare.receipts() == [((A,), 2, True)]


def test_every_receipt_is_acknowledged_also_one_that_means_nothing_here():
    bare = Bare()
    bare.up(ALICE)
    (ack,) = bare.got(A, GossipReceipt(id="unknown", count=3, settled=False))
    assert (ack.message, ack.urgent) == (GossipReceiptAck(id="unknown", count=3, settled=False), True)
    assert bare.core.snapshot()["strays"] == 1


# --- bounds -------------------------------------------------------------------------------------------------------------


def test_counts_that_can_not_be_are_cut_and_those_of_strangers_ignored():
    bare = Bare(most=100)
    bare.up(ALICE, BOB)
    bare.ours(A)
    bare.got(B, GossipReceipt(id="m", count=50))
    assert bare.progress() == []
    bare.got(A, GossipReceipt(id="m", count=2**31))
    assert bare.progress() == [(100, True)]
    assert bare.core.snapshot()["implausible"] == 1


def test_the_table_is_bounded_and_the_oldest_is_settled_as_it_stands():
    bare = Bare(table=10)
    bare.up(ALICE, BOB)
    settled = []
    for number in range(25):
        bare(Originated(f"own {number}", "chat", 60.0))
        settled += bare.outcomes()
        bare(Forwarded(f"own {number}", None, (A,), 60.0))
        bare(HopSettled(f"own {number}", A, adopted=number % 2 == 0))
        bare(Forwarded(f"other {number}", A, (B,), 60.0))
        assert len(bare.receipts()) == (number >= 10)
    snapshot = bare.core.snapshot()
    assert (snapshot["own"], snapshot["relayed"], snapshot["dropped"]) == (10, 10, 30)
    assert [event.message_id for event in settled] == [f"own {number}" for number in range(15)]
    assert {type(event) for event in settled[::2]} == {MessageDelivered}
    bare.wait(100)
    assert bare.core.snapshot()["own"] == bare.core.snapshot()["relayed"] == len(bare.core._timers) == 0


def test_children_of_one_broadcast_are_bounded():
    bare = Bare()
    bare.up(ALICE)
    bare.ours(A)
    for number in range(2 * MOST_CHILDREN):
        bare(Forwarded("m", None, (f"{number:040x}",), 60.0))  # type: ignore[arg-type]
    assert len(bare.core._own["m"].children) == MOST_CHILDREN
