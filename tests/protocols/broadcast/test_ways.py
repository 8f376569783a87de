"""What no signature covers: relays that lie about ages, hops, sizes and answers, and peers whose clocks are wrong."""

import math

import pytest
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.events import MessageFailed
from p2pmesh.protocols.inputs import WantHistory
from p2pmesh.protocols.notices import ChildrenAdded
from p2pmesh.simulation import BareNetwork, Conditions, Constant
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.wire.messages import Gossip, GossipAck, GossipGraft, GossipHave, GossipHistory, GossipIHave, GossipWant
from tests.harness.broadcast import ALICE, BOB, CAROL, Bare, aged, broadcast_config, gossip, id_of

AHEAD = int((EPOCH - 200) * 1000)
"""The timestamp of a fresh broadcast where our clock is 200 s ahead of its origin's: it proves nothing of its age."""


def fresh(age=0, hops=0):
    return gossip(timestamp=AHEAD, age=age, hops=hops)


# --- ages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [1_000, 59_999, 60_000, 10**9])
def test_a_fresh_broadcast_is_as_young_as_its_timestamp_whatever_relays_say(age):
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(age=age))
    assert [event.age for event in bare.delivered()] == [0]
    assert [message.data.age for _, message in bare.sent(Gossip)] == [0]
    bare.wait_until(59)
    assert bare.count("store.messages") == 1
    bare.wait_until(62)
    assert bare.count("store.messages") == 0


def test_an_age_below_what_the_timestamp_allows_is_not_believed_either():
    bare = Bare()
    bare.now = 1000.0
    bare.up(ALICE)
    bare.now = 1345.0
    bare.hear(ALICE, gossip(timestamp=int((EPOCH + 1000) * 1000)))
    assert [event.age for event in bare.delivered()] == [45]
    bare.hear(ALICE, gossip(message_id="m2", timestamp=int((EPOCH + 984) * 1000)))
    assert bare.count("refused.expired") == 1


@pytest.mark.parametrize("timestamp", [EPOCH + 10, EPOCH + 299])
def test_where_our_clock_is_behind_ages_tell(timestamp):
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(timestamp=int(timestamp * 1000), age=61_000))
    assert bare.count("refused.expired") == 1
    bare.hear(ALICE, gossip(timestamp=int(timestamp * 1000), age=500))
    assert [event.age for event in bare.delivered()] == [0.5]


@pytest.mark.parametrize("wall", [0.0, 10 * EPOCH])
def test_a_peer_without_a_clock_goes_by_ages_alone_if_its_config_says_so(wall):
    bare = Bare(broadcast_config(clock_skew=math.inf if wall else 10 * EPOCH))
    bare.core._limits._wall = lambda now: wall + now
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(age=61_000))
    assert bare.count("refused.expired") == 1
    bare.hear(ALICE, gossip(age=500))
    assert [event.age for event in bare.delivered()] == [0.5]
    bare.wait_until(59)
    bare.hear(BOB, GossipGraft(ids=(id_of(gossip()),)))
    assert [message.data.age for _, message in bare.sent(Gossip)] == [59_500]
    bare.wait_until(62)
    assert bare.count("store.messages") == 0


def test_what_is_refused_for_its_age_is_taken_from_the_next():
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    bare.hear(ALICE, fresh(age=60_000))
    assert (bare.delivered(), bare.count("refused.expired")) == ([], 1)
    bare.hear(BOB, fresh())
    assert len(bare.delivered()) == 1


@pytest.mark.parametrize("better", ["copy", "offer", "announcement"])
@pytest.mark.parametrize("dead", [False, True])
def test_a_lower_age_extends_what_is_kept_and_all_are_told_who_believed_the_lie(better, dead):
    bare = Bare()
    bare.now = 100.0
    bare.up(ALICE, BOB, CAROL)
    bare.hear(ALICE, WANTED)
    bare(WantHistory(None, 600))
    bare.hear(ALICE, fresh(age=59_000))
    assert len(bare.delivered()) == 1
    assert {message.data.age for _, message in bare.sent(Gossip)} == {59_000}
    for peer in (BOB, CAROL):
        bare.hear(peer, GossipAck(new=(id_of(fresh()),)))
    bare.wait(3 if dead else 0.5)
    bare.hear(CAROL, GossipGraft(ids=(id_of(fresh()),)))
    assert len(bare.sent(Gossip)) == (not dead)
    passed = 3500 if dead else 1000
    heard = GossipIHave(ids=(id_of(fresh()),), age=passed, offer=better == "offer")
    bare.hear(BOB, fresh(age=passed) if better == "copy" else heard)
    assert bare.delivered() == []
    ((peers, told),) = bare.sent(GossipIHave)
    assert peers == (ALICE.peer_id, BOB.peer_id, CAROL.peer_id)
    assert told.age <= 4000
    bare.wait(50)
    bare.hear(CAROL, GossipGraft(ids=(id_of(fresh()),)))
    assert len(bare.sent(Gossip)) == 1
    bare.wait(10)
    assert bare.count("store.messages") == 0


WANTED = GossipAck()


def test_an_age_can_not_extend_a_life_beyond_a_ttl_from_when_it_came():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare(WantHistory(None, 600))
    bare.hear(ALICE, fresh(age=40_000))
    bare.wait_until(10)
    bare.hear(BOB, fresh(age=0))
    bare.wait_until(59)
    assert bare.count("store.messages") == 1
    bare.wait_until(61)
    assert bare.count("store.messages") == 0
    for _ in range(3):
        bare.hear(BOB, fresh(age=0))
        bare.hear(BOB, GossipIHave(ids=(id_of(fresh()),)))
        assert bare.sent(GossipIHave) == bare.delivered() == []


def test_what_seems_dead_is_pulled_once_from_a_neighbour_that_has_it_alive():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare(WantHistory(None, 600))
    bare.hear(ALICE, fresh(age=59_000))
    have = GossipHave(ids=(id_of(fresh()),))
    bare.hear(BOB, have)
    assert bare.sent(GossipWant) == [((BOB.peer_id,), GossipWant())]
    bare.wait_until(2)
    bare.hear(BOB, have)
    assert bare.sent(GossipWant) == [((BOB.peer_id,), GossipWant(ids=have.ids))]
    bare.hear(BOB, fresh(age=59_500))
    bare.hear(BOB, have)
    assert bare.sent(GossipWant) == [((BOB.peer_id,), GossipWant())], "it was no better"
    assert bare.count("anti_entropy.pulling") == 0


def test_history_names_what_a_lie_made_old():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip(age=50_000))
    bare.hear(BOB, GossipHistory(beyond=0, within=10_000))
    assert bare.sent(GossipHave) == [((BOB.peer_id,), GossipHave(ids=(id_of(gossip()),)))]


def test_receipts_count_on_for_as_long_as_a_lie_may_come_out():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare(WantHistory(None, 600))
    bare.hear(ALICE, fresh(age=50_000))
    (added,) = [event for event in bare.told if isinstance(event, ChildrenAdded)]
    assert added.expires == 60


def test_what_is_caught_up_on_late_is_old_still():
    bare = Bare()
    bare.now = 100.0
    bare.up(ALICE, BOB)
    bare(WantHistory(None, 600))
    bare.hear(ALICE, aged(40, now=100))
    assert [event.age for event in bare.delivered()] == [40]
    bare.hear(BOB, aged(40, now=100))
    assert bare.sent(GossipIHave) == []


# --- hops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("better", ["copy", "offer", "announcement"])
def test_fewer_hops_let_a_broadcast_go_on(better):
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    bare.hear(ALICE, gossip(hops=31))
    assert len(bare.delivered()) == 1
    assert bare.sent(Gossip) == [], "it may cross 32 links"
    message_id = id_of(gossip())
    heard = GossipIHave(ids=(message_id,), hops=2, offer=better == "offer")
    bare.hear(BOB, gossip(hops=2) if better == "copy" else heard)
    ((peers, told),) = bare.sent(GossipIHave)
    assert peers == (ALICE.peer_id, BOB.peer_id, CAROL.peer_id)
    assert told.hops == 3
    bare.hear(CAROL, GossipGraft(ids=(message_id,)))
    assert [message.data.hops for _, message in bare.sent(Gossip)] == [3]


def test_a_neighbour_that_was_told_of_too_many_hops_is_told_better():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, gossip())
    message_id = id_of(gossip())
    bare.hear(BOB, gossip(hops=30))
    ((peers, told),) = bare.sent(GossipIHave)
    assert (peers, told.ids, told.hops) == ((BOB.peer_id,), (message_id,), 1)
    bare.hear(BOB, GossipIHave(ids=(message_id,), hops=30))
    assert bare.sent(GossipIHave) == [], "announcements, which may be of many, are not answered"


def test_hops_that_fall_and_fall_are_told_of_once():
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    bare.hear(ALICE, gossip(hops=31))
    told = 0
    for hops in range(30, -1, -1):
        bare.hear(BOB, GossipIHave(ids=(id_of(gossip()),), hops=hops))
        told += len(bare.sent(GossipIHave))
    assert told == 1


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.parametrize("offset", [400.0, -400.0])
def test_a_broadcast_that_is_refused_for_its_time_fails_for_the_clock_and_counts_for_nobody(offset, loss):
    net = BareNetwork(3, config=MeshConfig(max_peers=3), conditions=Conditions(latency=Constant(0.05)))
    for _ in range(5):
        net.add()
        net.run(0.1)
    wrong = net.add(clock_offset=offset)
    net.run(15)
    net.condition(net.nodes, Conditions(latency=Constant(0.05), loss=loss))
    sent = [net.publish(wrong, ttl=30.0) for _ in range(20)]
    net.run(60)
    assert [one.count for one in sent] == [0] * 20
    assert [type(one.outcome) for one in sent] == [MessageFailed] * 20
    assert all("clock" in one.outcome.reason for one in sent)


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_who_says_that_what_it_announces_is_huge_and_does_not_send_it_is_not_waited_for_long():
    bare = Bare()
    bare.up(ALICE, BOB, CAROL)
    message_id = id_of(gossip())
    bare.hear(ALICE, GossipIHave(ids=(message_id,), size=2**32 - 1))
    assert [peers for peers, _ in bare.sent(GossipGraft)] == [(ALICE.peer_id,)]
    bare.wait(0.1)
    bare.hear(BOB, GossipIHave(ids=(message_id,), size=2))
    bare.wait(0.5)
    assert [peers for peers, _ in bare.sent(GossipGraft)] == [(BOB.peer_id,)]


def test_where_all_say_so_the_largest_that_there_can_be_is_waited_for():
    bare = Bare()
    bare.up(ALICE, BOB)
    message_id = id_of(gossip())
    for neighbour in (ALICE, BOB):
        bare.hear(neighbour, GossipIHave(ids=(message_id,), size=2**32 - 1))
    bare.wait(7.9)
    assert bare.sent(GossipGraft) == []
    bare.wait(1)
    assert [peers for peers, _ in bare.sent(GossipGraft)] == [(BOB.peer_id,)]


# --- meshes with liars ------------------------------------------------------------------------------------------------

LIARS = [Adversary.AGES, Adversary.HOPS]


@pytest.mark.parametrize("lie", LIARS)
@pytest.mark.parametrize("clocks", [0.0, 250.0])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in range(2, 11))])
def test_where_a_fifth_of_the_peers_lie_about_ways_all_others_get_every_broadcast(seed, lie, clocks):
    net = BareNetwork(seed, config=MeshConfig(max_peers=5), conditions=Conditions(latency=Constant(0.05)))
    for _ in range(40):
        net.add(clock_offset=net.rng.uniform(-clocks / 2, clocks / 2))
        net.run(0.1)
    net.run(15)
    liars = net.rng.sample(range(40), 8)
    for number in liars:
        net.turn_hostile(net.nodes[number], lie)
    honest = [node for node in net.nodes if node.number not in liars]
    sent = []
    for _ in range(10):
        sent.append(net.publish(net.rng.choice(honest)))
        net.run(1)
    net.run(50)
    missed = [sum(not one.has(node.number) for node in honest if node.number != one.origin) for one in sent]
    assert missed == [0] * 10
    assert not net.delivery_log.twice
    assert all(one.reached <= one.count for one in sent)


class Promises:
    """Announces at once what it has, says of it what keeps others waiting for longest, and never sends it."""

    value = "promises"

    def lets_pass(self, frame, peer):
        match frame.message:
            case Gossip(data=data) if data.origin_peer_id != peer.peer_id:
                word = GossipIHave(ids=(data.id,), size=2**32 - 1, offer=peer.rng.random() < 0.5)
                peer.send_frame(frame.peers, word, urgent=True)
                return False
            case GossipIHave() as heard if heard.size < 2**32 - 1:
                peer.send_frame(frame.peers, structs.replace(heard, size=2**32 - 1), urgent=True)
                return False
            case _:
                return True

    def twisted(self, message, peer):
        return message

    def act(self, peer):
        """No more than that."""


def last_deliveries(seed, lie):
    """How long each of ten broadcasts took to reach all honest peers, if a fifth of the peers does this."""
    net = BareNetwork(seed, config=MeshConfig(max_peers=5), conditions=Conditions(latency=Constant(0.05)))
    for _ in range(30):
        net.add()
        net.run(0.1)
    net.run(15)
    liars = net.rng.sample(range(30), 6)
    for number in liars:
        net.turn_hostile(net.nodes[number], lie)
    honest = [node for node in net.nodes if node.number not in liars]
    sent, took = [], []
    for _ in range(10):
        one = net.publish(net.rng.choice(honest))
        began = net.now
        while net.now < began + 60 and not all(one.has(node.number) for node in honest if node.number != one.origin):
            net.run(0.1)
        sent.append(one)
        took.append(net.now - began)
    assert not net.delivery_log.twice
    assert lie is Adversary.COUNTS or all(one.reached <= one.count for one in sent)
    return took


LIES = {
    "acks": Adversary.ACKS,
    "digests": Adversary.DIGESTS,
    "counts": Adversary.COUNTS,
    "promises": Promises(),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in range(2, 11))])
def test_a_fifth_of_liars_does_no_more_harm_than_a_fifth_of_droppers(seed, lie):
    assert max(last_deliveries(seed, LIES[lie])) <= 2 * max(last_deliveries(seed, Adversary.DROPPER)) + 1
