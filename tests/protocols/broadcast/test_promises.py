"""What broadcasts promise beside the main road: one look at each proof, topics, names taken in vain, black holes."""

from __future__ import annotations

from contextlib import suppress

import trio

from p2pmesh.events import MessageDelivered, MessageFailed
from p2pmesh.protocols.broadcast import validation
from p2pmesh.protocols.inputs import LinkDown
from p2pmesh.receipts import Delivered, Failed
from p2pmesh.wire.messages import Gossip, GossipAck, GossipIHave
from tests.harness.broadcast import ALICE, BOB, CAROL, DAVE, ME, Bare, gossip, id_of
from tests.harness.cluster import Cluster, at_rest
from tests.harness.core import Net, line


def test_a_proof_is_looked_at_once_however_many_copies_come(monkeypatch):
    looked = []

    def verify(key, signature, covered):
        looked.append(signature)
        return really(key, signature, covered)

    really = validation.verify
    monkeypatch.setattr(validation, "verify", verify)
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    for neighbour in (ALICE, BOB, CAROL, ALICE):
        bare.hear(neighbour, gossip())
    assert len(looked) == 1
    assert bare.count("received.duplicates") == 3


def test_a_broadcast_in_our_own_name_that_this_process_never_sent_ends_here():
    bare = Bare()
    bare.up(ALICE, BOB)
    for sign in (True, False):  # of an earlier process of ours, or of somebody who makes it up
        bare.hear(ALICE, gossip(ME, message_id=f"m{sign}", sign=sign))
        assert bare.acks() == [(f"m{sign}", True)]
        assert bare.delivered() == bare.sent(Gossip) == bare.dropped() == []


def test_announcements_hurry_while_links_fail():
    def announced_within(seconds: float, *, failing: bool) -> bool:
        bare = Bare()
        bare.up(BOB, CAROL, DAVE)
        bare.hear(BOB, gossip())
        bare.hear(CAROL, GossipAck(prune=(id_of(gossip()),)))
        bare.now = 0.02
        bare.hear(DAVE, GossipAck(prune=(id_of(gossip()),)))
        bare.now = 60.0
        if failing:
            bare(LinkDown(DAVE.peer_id, "gone"))
        bare.hear(BOB, gossip(message_id="m2", timestamp=gossip().data.timestamp + 60_000))
        bare.wait_until(60.0 + seconds)
        return bool(bare.sent(GossipIHave))

    assert not announced_within(0.1, failing=False)
    assert announced_within(0.3, failing=False)
    assert announced_within(0.1, failing=True), "half a round-trip, of 0.2 s as long as none was measured"


def test_a_receipt_shows_that_who_takes_broadcasts_passes_none_on():
    net = Net(4, line(4))
    hole = net.nodes[2].id
    net.lose = lambda sender, receiver, message: sender == hole and isinstance(message, Gossip | GossipIHave)
    sent = net.published(0, ttl=20)
    net.run_until(30)
    assert net.deliveries(sent) == 2
    (outcome,) = net.nodes[0].outcomes(sent)
    assert isinstance(outcome, MessageDelivered)
    assert outcome.reached == net.nodes[0].progress[sent][-1].reached == 2


# --- as an application sees it ----------------------------------------------------------------------------------------


async def test_a_subscription_gets_its_topic_alone_and_that_of_none_gets_all(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await at_rest(alice, bob)
        async with bob.subscribe("news") as news, bob.subscribe("sport") as sport, bob.subscribe() as everything:
            for topic in ("news", "sport", "weather"):
                await (await alice.broadcast(topic, topic)).settled()
            assert [message.topic for message in waiting(everything)] == ["news", "sport", "weather"]
            assert [message.payload for message in waiting(news)] == ["news"]
            assert [message.payload for message in waiting(sport)] == ["sport"]


async def test_events_say_what_the_receipts_say(autojump_clock):
    async with Cluster() as world, world.peer(1) as alice, alice.events() as events:
        failed = await (await alice.broadcast("t", "to nobody")).settled()
        async with world.peer(2) as bob:
            await at_rest(alice, bob)
            delivered = await (await alice.broadcast("t", "to bob")).settled()
        told = [event for event in waiting(events) if isinstance(event, MessageDelivered | MessageFailed)]
    assert isinstance(failed, Failed)
    assert isinstance(delivered, Delivered)
    first, second = told
    assert (first.reason, first.reached) == (failed.reason, failed.reached)
    assert (second.reached, second.elapsed) == (delivered.reached, delivered.elapsed) == (1, second.elapsed)


def waiting(stream):
    """What can be had of a stream at once."""
    items = []
    with suppress(trio.WouldBlock):
        while True:
            items.append(stream.receive_nowait())
    return items
