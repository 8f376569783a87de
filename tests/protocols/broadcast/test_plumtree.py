"""Trees: who gets copies, who is told, and how that heals and resists."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import FailurePressure
from p2pmesh.protocols.broadcast.plumtree import BUSY_WITH, NoveltyEstimate
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.inputs import LinkDown, Publish
from p2pmesh.protocols.notices import ChildrenAdded, ChildSettled
from p2pmesh.wire.messages import Gossip, GossipAck, GossipGraft, GossipIHave, Message
from tests.harness.broadcast import ALICE, BOB, CAROL, DAVE, ME, Bare, broadcast_config, gossip, id_of
from tests.harness.core import Net, Node, clique, connected


def copies(net: Net, start: int = 0) -> int:
    return sum(isinstance(entry[3], Gossip) for entry in net.trace[start:] if len(entry) == 5)


def flood(net: Net, sender: int, times: int = 1) -> int:
    """Broadcast, and give the copies per delivery."""
    start = len(net.trace)
    for _ in range(times):
        net.published(sender)
        net.run(2)
    return copies(net, start)


# --- the whole mesh ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_after_the_first_broadcasts_of_an_origin_there_are_no_redundant_copies(seed):
    net = Net(20, connected(20, 30, random.Random(seed)), seed=seed)
    flood(net, 0, 5)
    assert flood(net, 0, 10) <= 10 * 19 + 2
    assert all(len(node.received) == 15 for node in net.nodes[1:])


def test_each_origin_has_a_tree_of_its_own():
    net = Net(12, connected(12, 14, random.Random(1)))
    for origin in range(12):
        flood(net, origin, 3)
    start = len(net.trace)
    for origin in range(12):
        net.published(origin)
        net.run(2)
    assert copies(net, start) <= 12 * 11 + 4


def test_where_copies_are_seldom_new_they_are_offered_before_they_are_sent():
    net = Net(30, clique(12) + [(number % 12, number) for number in range(12, 30)])
    for origin in range(25):
        flood(net, origin)
    redundant = flood(net, 25) - 29
    assert redundant < 15, "a flood would have 120"
    assert all(len(node.received) == 26 for node in net.nodes[26:])


def test_a_broken_tree_is_mended_from_announcements():
    net = Net(12, connected(12, 16, random.Random(4)), seed=4)
    flood(net, 0, 4)
    parents = [parent_of(net, node) for node in net.nodes[1:]]
    victim = net.by_id[max(set(parents) - {net.nodes[0].id}, key=parents.count)]
    number = net.nodes.index(victim)
    for other in range(12):
        net.cut(number, other)
    net.link(number, 0)  # it stays, but nobody is below it any more
    sent = net.published(0)
    net.run(3)
    assert all(sent in {m.message_id for m in node.received} for node in net.nodes[1:])


def parent_of(net: Net, node: Node) -> PeerId:
    """The neighbour to which this node has last said that a copy was new."""
    acks = [entry for entry in net.trace if len(entry) == 5 and isinstance(entry[3], GossipAck)]
    parents: list[PeerId] = [receiver for _, sender, receiver, ack, _ in acks if sender == node.id and ack.new]
    return parents[-1]


def test_a_peer_that_takes_broadcasts_and_passes_none_on_is_left_out_of_the_tree():
    net = Net(4, [(0, 1), (1, 2), (0, 3), (3, 2)], latency=(0.01, 0.012))
    flood(net, 0, 3)
    child = net.nodes[2]
    liar = parent_of(net, child)
    net.lose = lambda sender, receiver, message: sender == liar and isinstance(message, Gossip)
    flood(net, 0)
    assert len(child.received) == 4
    start = len(net.trace)
    sent = net.published(0)
    net.run(0.1)
    assert sent in {m.message_id for m in child.received}, "by the other way, at once"
    assert not any(isinstance(entry[3], GossipGraft) for entry in net.trace[start:] if len(entry) == 5)


# --- what becomes of a copy -------------------------------------------------------------------------------------------


def test_who_took_a_copy_is_a_child_and_who_had_it_is_told():
    bare = Bare()
    bare.up(BOB, CAROL, DAVE)
    bare.hear(BOB, gossip())
    assert [peers for peers, _ in bare.sent(Gossip)] == [(CAROL.peer_id, DAVE.peer_id)]
    bare.hear(CAROL, GossipAck(new=(id_of(gossip()),)))
    bare.hear(DAVE, GossipAck(prune=(id_of(gossip()),)))
    bare.hear(BOB, gossip(message_id="m2"))
    assert [peers for peers, _ in bare.sent(Gossip)] == [(CAROL.peer_id,)]
    bare.wait_until(0.3)
    ((peers, announced),) = bare.sent(GossipIHave)
    assert (peers, announced.ids) == ((DAVE.peer_id,), (id_of(gossip(message_id="m2")),))
    assert (announced.hops, announced.size, announced.offer) == (1, 2, False)
    assert 100 <= announced.age <= 250


def test_announcements_wait_for_company():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    bare.hear(CAROL, GossipAck(prune=(id_of(gossip()),)))
    for number in range(10):
        bare.hear(BOB, gossip(message_id=f"n{number}"))
    bare.wait_until(0.3)
    ((_, announced),) = bare.sent(GossipIHave)
    assert len(announced.ids) == 10


def test_a_second_copy_prunes_the_link_unless_it_comes_from_the_parent():
    bare = Bare()
    bare.up(BOB, CAROL)
    first, second = gossip(), gossip(message_id="m2")
    bare.hear(BOB, first)
    bare.hear(CAROL, second)  # overtook: Carol is the parent now
    bare.hear(CAROL, GossipAck(had=(id_of(first),)))
    bare.hear(CAROL, first)
    assert [ack for _, ack in bare.sent(GossipAck)] == [GossipAck(had=(id_of(first),))]
    bare.hear(BOB, GossipAck(had=(id_of(second),)))
    bare.hear(BOB, second)
    assert [ack for _, ack in bare.sent(GossipAck)] == [GossipAck(prune=(id_of(second),))]


def test_what_is_announced_is_asked_for_at_once_without_a_parent_and_after_a_while_with_one():
    bare = Bare()
    bare.up(BOB, CAROL, DAVE)
    first = gossip()
    (graft,) = bare.hear(CAROL, GossipIHave(ids=(id_of(first),)))
    assert graft.message == GossipGraft(ids=(id_of(first),))
    bare.hear(BOB, first)
    later = id_of(gossip(message_id="later"))
    assert bare.hear(CAROL, GossipIHave(ids=(later,))) == []
    assert bare.hear(DAVE, GossipIHave(ids=(later,))) == []
    bare.wait(0.29)
    assert bare.sent(GossipGraft) == []
    bare.wait(0.02)
    assert bare.sent(GossipGraft) == [((CAROL.peer_id,), GossipGraft(ids=(later,)))]
    bare.wait(0.4)
    assert ((DAVE.peer_id,), GossipGraft(ids=(later,))) in bare.sent(GossipGraft), "then the second"


def test_when_the_parent_goes_its_broadcasts_are_asked_for_elsewhere_at_once():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    later = id_of(gossip(message_id="later"))
    bare.hear(CAROL, GossipIHave(ids=(later,)))
    bare(LinkDown(BOB.peer_id, "gone"))
    assert bare.sent(GossipGraft) == [((CAROL.peer_id,), GossipGraft(ids=(later,)))]


def test_a_graft_brings_the_broadcast_tells_the_receipts_and_makes_a_child():
    bare = Bare()
    bare.up(BOB, CAROL)
    message_id = id_of(gossip())
    bare.hear(BOB, gossip())
    bare.hear(CAROL, GossipAck(prune=(message_id,)))
    assert bare.told == [ChildSettled(message_id, CAROL.peer_id, adopted=False, is_there=True)]
    bare.hear(CAROL, GossipGraft(ids=(message_id,)))
    ((_, copy),) = bare.sent(Gossip)
    assert copy.data.id == message_id
    (forwarded,) = bare.told
    assert isinstance(forwarded, ChildrenAdded)
    assert forwarded.children == (CAROL.peer_id,)
    bare.hear(CAROL, GossipAck(new=(message_id,)))
    assert bare.told == [ChildSettled(message_id, CAROL.peer_id, adopted=True, is_there=True)]
    bare.hear(BOB, gossip(message_id="m2"))
    assert [peers for peers, _ in bare.sent(Gossip)] == [(CAROL.peer_id,)]


def test_an_offer_is_answered_by_a_graft_or_an_ack():
    bare = Bare()
    bare.up(BOB, CAROL, DAVE)
    message_id = id_of(gossip())
    bare.hear(BOB, GossipIHave(ids=(message_id,), offer=True))
    assert bare.sent(GossipGraft) == [((BOB.peer_id,), GossipGraft(ids=(message_id,)))]
    bare.hear(CAROL, GossipIHave(ids=(message_id,), offer=True))
    assert bare.sent(GossipAck) == [], "it may be she who is asked in the end"
    bare.hear(BOB, gossip())
    acks = [((BOB.peer_id,), GossipAck(new=(message_id,))), ((CAROL.peer_id,), GossipAck(prune=(message_id,)))]
    assert bare.sent(GossipAck) == acks
    bare.hear(DAVE, GossipAck(new=(message_id,)))
    bare.hear(DAVE, GossipIHave(ids=(message_id,), offer=True))
    assert bare.acks() == [("m1", True)]


def test_an_offer_without_answer_is_repeated_a_bounded_number_of_times_and_settled():
    bare = Bare(broadcast_config(retries=2, push_above=2))
    bare.up(ALICE)
    bare(Publish(1, "chat", 1))
    assert bare.sent(Gossip) == []
    ((_, offer),) = bare.sent(GossipIHave)
    assert offer.offer
    bare.wait_until(59)
    repeated = [(peers, structs.replace(message, age=0)) for peers, message in bare.sent(GossipIHave)]
    assert repeated == [((ALICE.peer_id,), offer)] * 2
    assert [event.adopted for event in bare.told if isinstance(event, ChildSettled)] == [False]


def answer(bare, sender, message):
    """What a neighbour is told that its copy was worth."""
    bare.hear(sender, message)
    verdicts = [name for _, ack in bare.sent(GossipAck) for name in ("new", "had", "prune") if getattr(ack, name)]
    return verdicts or ["crossed"]


def test_two_broadcasts_that_overtake_each_other_leave_one_who_sends_the_next():
    bare = Bare()
    bare.up(BOB, CAROL)
    first, second = gossip(message_id="m0"), gossip(message_id="m1")
    assert answer(bare, BOB, first) == ["new"]
    assert answer(bare, CAROL, first) == ["crossed"], "which prunes"
    assert answer(bare, CAROL, second) == ["new"]
    assert answer(bare, BOB, second) == ["had"], "Carol may have stopped after the first"


def test_an_offer_of_the_parent_is_taken_before_any_other():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    message_id = id_of(gossip(message_id="m2"))
    bare.hear(CAROL, GossipIHave(ids=(message_id,), offer=True))
    assert bare.sent(GossipGraft) == []
    bare.hear(BOB, GossipIHave(ids=(message_id,), offer=True))
    assert bare.sent(GossipGraft) == [((BOB.peer_id,), GossipGraft(ids=(message_id,)))]


def test_grafts_and_prunes_are_heeded():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    bare.hear(CAROL, GossipAck(prune=(id_of(gossip()),)))
    bare.hear(BOB, gossip(message_id="m2"))
    assert bare.sent(Gossip) == []
    bare.hear(CAROL, GossipGraft(ids=(id_of(gossip(message_id="m2")), "unheard")))
    assert [peers for peers, _ in bare.sent(Gossip)] == [(CAROL.peer_id,)]
    bare.hear(BOB, gossip(message_id="m3"))
    assert [peers for peers, _ in bare.sent(Gossip)] == [(CAROL.peer_id,)]


def test_a_new_link_is_told_first_so_that_joining_costs_no_copies():
    bare = Bare()
    bare.up(BOB)
    bare.hear(BOB, gossip())
    bare.up(CAROL)
    bare.hear(BOB, gossip(message_id="m2"))
    assert bare.sent(Gossip) == []
    bare.wait_until(0.3)
    assert [peers for peers, _ in bare.sent(GossipIHave)] == [(CAROL.peer_id,)]


def test_while_links_fail_copies_go_beyond_the_tree_and_when_all_is_well_again_they_do_not():
    bare = Bare()
    bare.up(BOB, CAROL, DAVE)
    bare.hear(BOB, gossip())
    for peer in (CAROL, DAVE):
        bare.hear(peer, GossipAck(prune=(id_of(gossip()),)))
    for number, timed_out in enumerate((None, 5.0)):
        bare.up(ME)
        bare(LinkDown(ME.peer_id, "gone", timed_out))
        bare.hear(BOB, gossip(message_id=f"n{number}"))
        assert len(bare.sent(Gossip)) == number, "one that was closed in order is not enough"
    bare.wait_until(30)
    bare.hear(BOB, gossip(message_id="calm"))
    assert bare.sent(Gossip) == []


def test_after_a_long_silence_an_origin_has_no_tree():
    bare = Bare(broadcast_config(tree_life=60))
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    bare.hear(CAROL, GossipAck(prune=(id_of(gossip()),)))
    bare.wait_until(70)
    bare.hear(BOB, gossip(message_id="m2", timestamp=gossip().data.timestamp + 70_000))
    assert [(peers, message.offer) for peers, message in bare.sent(GossipIHave)] == [((CAROL.peer_id,), True)]


# --- learning ---------------------------------------------------------------------------------------------------------


def test_reach_is_learnt_by_hops_and_carries_over_to_more():
    reach = NoveltyEstimate()
    assert reach.share(0) == reach.share(9) == 1
    for _ in range(50):
        reach.learn(2, new=True)
        reach.learn(4, new=False)
    assert reach.share(1) == reach.share(2) == pytest.approx(1)
    assert reach.share(4) == reach.share(5) == reach.share(200) == 0
    for _ in range(100):
        reach.learn(4, new=True)
    assert reach.share(4) > 0.9


def test_in_unrest_pruned_links_get_copies_but_not_while_much_is_unacknowledged_on_them():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    bare.hear(CAROL, GossipAck(prune=(id_of(gossip()),)))
    for _ in range(4):
        bare.up(ME)
        bare(LinkDown(ME.peer_id, "gone", timed_out=5.0))
    copied = []
    for number in range(BUSY_WITH + 3):
        bare.hear(BOB, gossip(message_id=f"more {number}"))
        copied += [message.data.id for peers, message in bare.sent(Gossip) if peers == (CAROL.peer_id,)]
    assert len(copied) == BUSY_WITH
    bare.hear(CAROL, GossipAck(prune=(copied[0],)))
    bare.hear(BOB, gossip(message_id="after an ack"))
    assert [peers for peers, _ in bare.sent(Gossip)] == [(CAROL.peer_id,)]


def test_unrest_halves_and_is_bounded():
    unrest = FailurePressure()
    unrest.add(2, 0.0)
    assert unrest.level(7.0) == pytest.approx(1)
    for _ in range(1000):
        unrest.add(1, 8.0)
    assert unrest.level(8.0) == 16


def test_trees_are_bounded_and_the_origin_silent_for_longest_is_forgotten():
    bare = Bare(broadcast_config(trees=3))
    bare.up(BOB, CAROL)
    origins = [Identity.from_seed(bytes([number]) * 32) for number in range(100, 110)]
    for origin in origins:
        bare.hear(BOB, gossip(origin, message_id="first"))
        bare.hear(BOB, gossip(origins[0], message_id=origin.peer_id))
    assert bare.count("plumtree.trees") == 3
    asked = []
    for origin in (origins[0], origins[7], origins[9]):
        bare.hear(CAROL, GossipIHave(ids=(id_of(gossip(origin, message_id="next")),)))
        asked.append(len(bare.sent(GossipGraft)))
    assert asked == [0, 1, 0], "only without a tree, and so without a parent, at once"


# --- hostile neighbours -----------------------------------------------------------------------------------------------


def test_a_flood_of_announcements_fills_a_bounded_table_and_crowds_nobody_out():
    bare = Bare(broadcast_config(announced=100))
    bare.up(BOB, CAROL)
    for number in range(50):
        bare.hear(BOB, GossipIHave(ids=tuple(f"fake {number} {n}" for n in range(20))))
    assert bare.count("graft.awaited") == 100
    assert bare.count("graft.ignored") == 900
    (graft,) = bare.hear(CAROL, GossipIHave(ids=("real",)))
    assert graft.message == GossipGraft(ids=("real",))


def test_what_is_refused_of_one_neighbour_is_asked_for_of_the_next_at_once_and_breaks_no_promise():
    bare = Bare()
    bare.up(BOB, CAROL)
    refused = gossip(ttl=0)
    message_id = id_of(refused)
    bare.hear(BOB, GossipIHave(ids=(message_id,)))
    bare.hear(CAROL, GossipIHave(ids=(message_id,)))
    bare.hear(BOB, refused)
    assert bare.sent(GossipGraft) == [((CAROL.peer_id,), GossipGraft(ids=(message_id,)))]
    bare.hear(CAROL, refused)
    assert bare.count("graft.awaited") == 0
    bare.wait_until(10)
    assert bare.sent(GossipGraft) == []
    assert bare.count("graft.unkept") == 0


def test_who_announces_what_it_does_not_send_is_asked_last_and_then_no_more():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, GossipIHave(ids=("fake",)))
    bare.wait_until(0.5)
    bare.hear(ALICE, gossip())
    bare.hear(DAVE, gossip())
    for number in range(80):
        bare.hear(BOB, GossipIHave(ids=(f"fake {number}",)))
        bare.wait(0.5)
        assert bare.dropped() == [], "it may be slow"
    assert bare.count("graft.ignored") > 0
    assert bare.count("graft.awaited") <= 80
    bare.wait(60)
    assert bare.count("graft.awaited") == 0


def test_grafts_for_what_nobody_has_are_counted_and_lead_to_nothing():
    bare = Bare()
    bare.up(BOB)
    for number in range(10):
        assert bare.hear(BOB, GossipGraft(ids=(f"x{number}",))) == []
    assert bare.count("eager_push.strays") == 10


def test_the_same_broadcast_is_served_to_one_neighbour_a_few_times_only():
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, gossip())
    message_id = id_of(gossip())
    served = 0
    for _ in range(50):
        bare.hear(CAROL, GossipAck(new=(message_id,)))
        bare.hear(CAROL, GossipGraft(ids=(message_id,)))
        served += len(bare.sent(Gossip))
    assert served == 6


def test_hop_counts_that_lie_neither_stop_a_broadcast_nor_keep_it_going():
    bare = Bare()
    bare.up(BOB, CAROL, DAVE)
    bare.hear(BOB, gossip(hops=255))
    assert len(bare.delivered()) == 1
    assert bare.sent(Gossip) == []
    bare.hear(CAROL, gossip(hops=0))
    assert [peers for peers, _ in bare.sent(GossipIHave)] == [(BOB.peer_id, CAROL.peer_id, DAVE.peer_id)]
    for _ in range(5):
        bare.hear(DAVE, gossip(hops=0))
        assert bare.delivered() == []
        assert not [peers for peers, _ in bare.sent(Gossip) if DAVE.peer_id not in peers]


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": "[" * 5000 + "]" * 5000, "encoding": "json"},
        {"payload": "1e999", "encoding": "json"},
        {"payload": "9" * 5000, "encoding": "json"},
    ],
)
def test_a_payload_bomb_closes_the_link(fields):
    bare = Bare()
    bare.up(ALICE)
    bare.hear(ALICE, gossip(**fields))
    assert [drop.blame for drop in bare.dropped()] == [True]
    assert bare.delivered() == []


def test_a_payload_above_the_limit_is_refused_and_counted():
    bare = Bare(MeshConfig(max_payload=1000))
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(payload="x" * 1001))
    assert bare.acks() == [("m1", True)]
    assert bare.delivered() == bare.sent(Gossip) == []
    assert bare.count("refused.too_large") == 1


# --- acks -------------------------------------------------------------------------------------------------------------


def test_the_first_ack_goes_at_once_and_those_that_follow_together():
    bare = Bare(ack_delay=MeshConfig().broadcast.ack_delay)
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(message_id="m0"))
    assert bare.acks() == [("m0", False)]
    for number in range(1, 6):
        bare.hear(ALICE, gossip(message_id=f"m{number}"))
        assert bare.acks() == []
    bare.wait_until(0.03)
    frames: list[tuple[Any, Message]] = bare.sent(GossipAck)
    assert len(frames) == 1
    assert bare.acks() == [(f"m{number}", False) for number in range(1, 6)]
    assert all(e.patient for e in bare.effects if isinstance(e, SendFrame) and isinstance(e.message, GossipAck))
