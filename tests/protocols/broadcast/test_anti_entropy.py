"""Anti-entropy: what one peer lacks and its neighbour has is found, with little said where both have the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.inputs import LinkUp, ServiceUp, Subsystem, WantHistory
from p2pmesh.protocols.util.limits import BURST
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Gossip, GossipDigest, GossipHave, GossipHistory, GossipIHave, GossipWant
from tests.harness.broadcast import ALICE, BOB, ME, Bare, aged, broadcast_config, gossip, id_of
from tests.harness.core import IDENTITIES, Net, line
from tests.harness.examples import examples
from tests.harness.virtual_time import remote

SYNC = (GossipDigest, GossipHave, GossipWant)


def said(net: Net, *kinds: type[Any]) -> list[Any]:
    return [entry[3] for entry in net.trace if len(entry) == 5 and isinstance(entry[3], kinds)]


# --- digests ----------------------------------------------------------------------------------------------------------


@examples(40)
@given(common=st.integers(0, 600), left=st.integers(0, 40), right=st.integers(0, 40))
def test_what_two_differ_in_is_found_however_many_frames_it_takes(common, left, right):
    """A digest, a list of all that one has, and what that lacks."""
    one, other = Bare(broadcast_config(window=1000)), Bare(broadcast_config(window=1000))
    for bare in (one, other):
        bare.up(ALICE, BOB)
    for number in range(common + left + right):
        message = gossip(message_id=f"m{number}", sequence=number)
        if number < common + left:
            one.hear(BOB, message)
        if number < common or number >= common + left:
            other.hear(BOB, message)
    one.hear(ALICE, digest(7))
    lists = [message for _, message in one.sent(GossipHave)]
    assert all(len(message.ids) <= 256 for message in lists)
    wanted: list[str] = []
    named: list[str] = []
    for message in lists:
        other.hear(ALICE, message)
        wanted += [message_id for _, want in other.sent(GossipWant) for message_id in want.ids]
        named += [message_id for _, have in other.sent(GossipHave) for message_id in have.ids]
    assert len(wanted) == len(set(wanted)) <= left
    assert other.count("anti_entropy.pulling") == left
    assert len(named) == len(set(named)) == right


def digest(count, within=1000, **fields):
    return GossipDigest(count=count, sum=bytes(8), within=within, **fields)


def test_equal_sets_of_any_size_are_one_small_sum():
    sizes = set[int]()
    for size in (300, 900):
        bare = Bare(broadcast_config(publish_room=5000))
        bare.up(BOB)
        for number in range(size):
            bare.hear(BOB, gossip(message_id=f"m{number}", sequence=number))
        bare.up(ALICE)
        bare.wait(0.3)
        sizes |= {len(encode(message)) for peers, message in bare.sent(GossipDigest) if peers == (ALICE.peer_id,)}
    assert len(sizes) == 1
    assert max(sizes) < 100


def test_a_peer_that_has_nothing_is_told_of_all():
    bare = Bare()
    bare.up(ALICE)
    bare.hear(ALICE, gossip())
    bare.hear(ALICE, GossipHave(within=1000))
    assert [message.ids for _, message in bare.sent(GossipHave)] == [(id_of(gossip()),)]


def test_a_hostile_digest_is_answered_with_bounded_frames():
    bare = Bare(broadcast_config(publish_room=5000))
    bare.up(ALICE)
    for number in range(600):
        bare.hear(ALICE, gossip(message_id=f"m{number}"))
    bare.hear(ALICE, digest(2**32 - 1))
    assert sum(len(message.ids) for _, message in bare.sent(GossipHave)) == 600
    for after, until in (("z", None), (None, "0"), ("z", "0"), ("\ud800", None)):
        bare.hear(ALICE, GossipHave(within=2**52, after=after, until=until))
        assert bare.sent(GossipHave) == []
    bare.hear(ALICE, GossipHave(within=2**52, beyond=2**52))
    for _, message in (*bare.sent(GossipHave), *bare.sent(GossipDigest)):
        assert encode(message)


# --- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", [1, 50, 700])
def test_who_was_cut_off_catches_up_on_a_new_link(missed):
    net = Net(3, line(2), latency=(0.01, 0.02), config=broadcast_config(window=1000))
    for _ in range(missed):
        net.published(0)
    net.run_until(10)
    net.link(1, 2)
    net.run_until(14)
    assert len(net.nodes[2].received) == missed
    assert sum(isinstance(entry[3], Gossip) for entry in net.trace if len(entry) == 5) == 2 * missed
    wants = said(net, GossipWant)
    assert max(len(message.ids) for message in wants) <= 64  # type: ignore[union-attr]


def test_what_fell_through_is_found_within_the_period():
    net = Net(2, line(2), config=broadcast_config(retries=0))
    net.lose = lambda _sender, _receiver, message: isinstance(message, Gossip | GossipIHave) and net.now < 12
    message_id = net.published(0, ttl=120)
    net.run_until(12)
    assert net.nodes[1].received == []
    assert net.snapshots(Subsystem.BROADCAST)[0]["eager_push"]["given_up"] > 0
    net.run_until(70)
    assert [m.message_id for m in net.nodes[1].received] == [message_id]


def test_at_rest_nothing_is_said():
    net = Net(3, line(3))
    net.published(0)
    net.run_until(100)
    net.trace.clear()
    net.run_until(1000)
    assert said(net, *SYNC) == []


def test_equal_neighbours_say_one_sum_each_round_however_much_they_have():
    net = Net(2, line(2), config=broadcast_config(window=1000))
    for _ in range(300):
        net.published(0, ttl=600)
    net.run_until(10)
    net.trace.clear()
    net.run_until(310)
    digests = said(net, GossipDigest)
    assert 14 <= len(digests) <= 28
    assert said(net, GossipHave) == []
    assert all(len(encode(message)) < 100 for message in digests)


def test_what_is_pulled_is_asked_from_one_neighbour_only_and_again_if_it_does_not_come():
    bare = Bare()
    bare.up(ALICE, BOB)
    ids = tuple(f"m{number}" for number in range(100))
    bare.hear(ALICE, GossipHave(ids=ids))
    assert [m.ids for _, m in bare.sent(GossipWant)] == [ids[:64]]
    bare.hear(BOB, GossipHave(ids=ids))
    assert [m.ids for _, m in bare.sent(GossipWant)] == [()]
    bare.wait_until(5.5)
    assert [m.ids for _, m in bare.sent(GossipWant)] == [ids[:64]]
    bare.wait_until(60)
    assert bare.count("anti_entropy.pulling") == 0


def test_a_neighbour_that_names_what_it_never_sends_does_not_keep_it_from_us():
    bare = Bare()
    bare.up(ALICE, BOB)
    ids = ("m1", "m2")
    bare.hear(ALICE, GossipHave(ids=ids))
    bare.hear(BOB, GossipHave(ids=ids))
    bare.wait_until(20)
    assert [peers for peers, _ in bare.sent(GossipDigest)] == [(BOB.peer_id,)]
    bare.hear(ALICE, GossipHave(ids=ids))
    assert [m.ids for _, m in bare.sent(GossipWant)] == [()], "it had its time"
    bare.hear(BOB, GossipHave(ids=ids))
    assert [m.ids for _, m in bare.sent(GossipWant)] == [ids]


def test_what_was_pulled_is_announced_rather_than_pushed_unless_it_is_still_on_its_way():
    bare = Bare()
    bare(ServiceUp("net"))
    bare.wait_until(10)
    bare.up(ALICE, BOB)
    old, young = aged(3, now=10, message_id="m1"), aged(1, now=10, message_id="m2")
    bare.hear(ALICE, GossipHave(ids=(id_of(old), id_of(young))))
    bare.hear(ALICE, old)
    assert len(bare.delivered()) == 1
    assert bare.sent(Gossip) == []
    bare.wait_until(10.3)
    assert [peers for peers, _ in bare.sent(GossipIHave)] == [(BOB.peer_id,)]
    bare.hear(ALICE, young)
    assert [peers for peers, _ in bare.sent(Gossip)] == [(BOB.peer_id,)], "who is below us must not wait for it"


def test_the_lower_id_has_the_first_word_and_who_has_nothing_says_nothing():
    first, second = sorted([ME, ALICE], key=lambda identity: identity.peer_id)
    for me, other, when in ((first, second, 0.0), (second, first, 0.3)):
        bare = Bare(identity=me)
        bare.up(other)
        bare.wait_until(10)
        assert bare.sent(GossipDigest) == []
        bare = Bare(identity=me)
        bare.up(BOB)
        bare.hear(BOB, gossip(BOB))
        bare.up(other)
        bare.wait_until(when)
        assert [peers for peers, _ in bare.sent(GossipDigest)][-1:] == [(other.peer_id,)]


def test_neighbours_that_began_at_different_times_come_to_an_end():
    for wait in (0.0, 0.5, 1.5, 10.0):
        net = Net(2, latency=(0.04, 0.3), seed=int(wait * 10))
        net.restart(1)
        net.published(0)
        net.run_until(wait)
        net.feed(net.nodes[1], ServiceUp("net"), Subsystem.BROADCAST)
        net.published(1)
        net.link(0, 1)
        net.run_until(wait + 50)
        assert len(said(net, GossipDigest)) <= 16


@pytest.mark.parametrize(
    "question",
    [
        lambda age: digest(5, within=age),
        lambda age: GossipHave(within=age),
        lambda age: GossipHave(within=age, after="!"),
        lambda age: GossipHistory(within=age),
    ],
    ids=["digest", "have", "have after", "history"],
)
def test_what_is_asked_again_and_again_is_answered_later_and_then_ends_the_link(question):
    """Ten neighbours that do all they can cost less than a tenth of a core, and none of them anybody else's answers."""
    bare = Bare(MeshConfig(max_peers=12))
    bare.up(*IDENTITIES[1:12])
    for number in range(1000):
        bare.hear(BOB, gossip(message_id=f"m{number}"))
    bare.wait(1)
    *enemies, honest = IDENTITIES[2:12]
    answered, dropped = 0, set()
    for _ in range(1000):
        for enemy in enemies:
            if enemy not in dropped:
                bare.hear(enemy, question(int(bare.now * 1000) + 500))
                answered += bool(bare.sent(GossipHave))
                dropped |= {enemy for _ in bare.dropped()}
        bare.wait(0.01)
    assert answered < 0.08 * 1e6 * (10 + BURST) / 1000
    assert dropped == set(enemies)
    bare.hear(honest, question(int(bare.now * 1000) + 500))
    assert sum(len(message.ids) for _, message in bare.sent(GossipHave)) == 1000


def test_comparing_what_is_the_same_costs_next_to_nothing():
    bare = Bare()
    bare.up(ALICE, BOB)
    for number in range(1000):
        bare.hear(BOB, gossip(message_id=f"m{number}"))
    bare.wait(5)
    ((_, same),) = [one for one in bare.wait(60).sent(GossipDigest) if one[0] == (BOB.peer_id,)][:1]
    for _ in range(100):
        bare.hear(BOB, same)
        assert [want.ids for _, want in bare.sent(GossipWant)] == [()] or bare.sent(GossipHave)
    assert not bare.dropped()


# --- what is refused --------------------------------------------------------------------------------------------------


def pull(bare: Bare, neighbour: Identity, messages: Sequence[Gossip]) -> list[str]:
    """A neighbour names these, and sends all that is asked for. Gives the ids that were."""
    by_id = {id_of(message): message for message in messages}
    waiting: list[str] = []
    asked: list[str] = []
    bare.hear(neighbour, GossipHave(ids=tuple(by_id)))
    while True:
        waiting += [message_id for _, message in bare.sent(GossipWant) for message_id in message.ids]
        if not waiting:
            return asked
        asked.append(waiting.pop(0))
        bare.hear(neighbour, by_id[asked[-1]])


FAR_CLOCK = gossip(timestamp=int((EPOCH - 200) * 1000))
"""A fresh broadcast of a peer whose clock is behind ours: its age can be lied about."""

REFUSED: dict[str, Callable[[str], Gossip]] = {
    "ours": lambda name: gossip(ME, message_id=name),
    "expired": lambda name: gossip(message_id=name, ttl=0),
    "before_us": lambda name: aged(30, message_id=name),
    "too_large": lambda name: gossip(message_id=name, payload="x" * 101),
    "unproven": lambda name: gossip(message_id=name, sign=False),
    "wrong": lambda name: Gossip(data=structs.replace(gossip(message_id=name).data, payload="forged")),
}


@pytest.mark.parametrize("why", REFUSED)
def test_broadcasts_that_are_refused_do_not_keep_others_from_being_pulled(why):
    bare = Bare(MeshConfig(max_payload=100))
    bare.up(ALICE, BOB)
    refused = [REFUSED[why](f"m{number}") for number in range(150)]
    good = gossip(message_id="good")
    asked = pull(bare, ALICE, [*refused, good])
    assert len(asked) == 151
    assert bare.count("received.delivered") == 1
    assert bare.count(f"refused.{why}") == bare.count("anti_entropy.refused") == 150
    assert bare.count("anti_entropy.pulling") == 0
    bare.wait_until(6)
    assert bare.sent(GossipWant) == [], "nothing is waited for"
    assert pull(bare, ALICE, refused) == [], "nor asked for again there"


def test_what_is_refused_from_one_neighbour_is_pulled_from_another():
    bare = Bare()
    bare.up(ALICE, BOB)
    aged_copy = Gossip(data=structs.replace(FAR_CLOCK.data, age=61_000))
    assert pull(bare, ALICE, [aged_copy]) == [id_of(FAR_CLOCK)]
    assert bare.delivered() == []
    assert pull(bare, BOB, [FAR_CLOCK]) == [id_of(FAR_CLOCK)]
    assert bare.count("received.delivered") == 1


def test_what_was_too_old_is_pulled_from_the_same_neighbour_once_history_is_wanted():
    bare = Bare()
    bare.up(ALICE)
    old = aged(30)
    assert pull(bare, ALICE, [old]) == [id_of(old)]
    assert pull(bare, ALICE, [old]) == []
    bare(WantHistory("chat", 60))
    assert pull(bare, ALICE, [old]) == [id_of(old)]
    assert bare.count("received.delivered") == 1


def test_a_refusal_of_what_is_pulled_from_another_neighbour_changes_nothing():
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, GossipHave(ids=(id_of(FAR_CLOCK),)))
    bare.hear(BOB, Gossip(data=structs.replace(FAR_CLOCK.data, age=61_000)))
    assert bare.count("anti_entropy.pulling") == 1
    bare.hear(ALICE, FAR_CLOCK)
    assert bare.count("anti_entropy.pulled") == 1


def test_pulls_are_bounded_by_their_config():
    bare = Bare(broadcast_config(pull_window=4, pull_timeout=2.0))
    bare.up(ALICE)
    ids = tuple(f"m{number}" for number in range(10))
    bare.hear(ALICE, GossipHave(ids=ids))
    assert [message.ids for _, message in bare.sent(GossipWant)] == [ids[:4]]
    bare.wait_until(1.9)
    assert bare.sent(GossipWant) == []
    bare.wait_until(2.1)
    assert [message.ids for _, message in bare.sent(GossipWant)] == [ids[:4]]


# --- newcomers --------------------------------------------------------------------------------------------------------


def late(seconds: float = 20.0, **fields: Any) -> tuple[Net, str]:
    """Two peers with a broadcast, and a third that begins later."""
    net = Net(3, line(2), **fields)
    old = net.published(0, topic="chat", ttl=600)
    net.run_until(seconds)
    net.feed(net.restart(2), ServiceUp("net"), Subsystem.BROADCAST)
    return net, old


def test_a_newcomer_gets_nothing_from_before_its_time():
    net, old = late()
    net.link(1, 2)
    new = net.published(0)
    net.run_until(100)
    assert [m.message_id for m in net.nodes[2].received] == [new]
    named = [message for message in said(net, GossipHave) if old in message.ids]  # type: ignore[union-attr]
    assert named == []


@pytest.mark.parametrize("before", [True, False])
def test_history_comes_to_who_asks_for_it(before):
    net, old = late()
    if before:
        net.feed(net.nodes[2], WantHistory("chat", 60), Subsystem.BROADCAST)
    net.link(1, 2)
    if not before:
        net.feed(net.nodes[2], WantHistory("chat", 60), Subsystem.BROADCAST)
    net.run_until(30)
    (message,) = net.nodes[2].received
    assert message.message_id == old
    assert 19 < message.age < 21


@pytest.mark.parametrize(("topic", "seconds"), [("other", 60), ("chat", 10)])
def test_history_of_other_topics_or_longer_ago_does_not_come(topic, seconds):
    net, _ = late()
    net.link(1, 2)
    net.feed(net.nodes[2], WantHistory(topic, seconds), Subsystem.BROADCAST)
    net.run_until(100)
    assert net.nodes[2].received == []


def test_three_neighbours_at_most_are_asked_for_history():
    bare = Bare()
    bare(ServiceUp("net"))
    bare.now = 5.0
    bare(WantHistory(None, 60))
    asked = 0
    for number in range(6):
        bare(LinkUp(remote(ALICE if number % 2 else BOB)))
        asked += len(bare.sent(GossipHistory))
    assert asked == 3 == bare.count("anti_entropy.history_asked")


def test_what_comes_unasked_from_before_our_time_is_refused_and_may_come_later():
    bare = Bare()
    bare.up(ALICE)
    bare.hear(ALICE, aged(30))
    assert bare.acks() == [("m1", True)]
    assert bare.delivered() == []
    assert bare.count("refused.before_us") == 1
    bare(WantHistory("chat", 60))
    bare.hear(ALICE, aged(30))
    assert len(bare.delivered()) == 1


def test_a_repeated_wish_for_history_replaces_the_last_one_and_no_other():
    bare = Bare()
    bare(ServiceUp("net"))
    bare.now = 5.0
    bare(WantHistory("chat", 20))
    bare(WantHistory("news", 20))
    bare(WantHistory("chat", 60))
    assert bare.count("anti_entropy.wanted_topics") == 2
    bare.up(ALICE)
    asked = {message.topic: message.within for _, message in bare.sent(GossipHistory)}
    assert asked == {"chat": 60_000, "news": 20_000}
    assert len(bare.sent(GossipHistory)) == 2
    bare(WantHistory("chat", 60))
    assert len(bare.sent(GossipHistory)) == 1, "a repeated wish is asked for anew"
    bare.hear(ALICE, aged(15, now=5, topic="news"))
    assert len(bare.delivered()) == 1


def test_a_wish_for_history_is_forgotten_when_nothing_can_be_so_old():
    bare = Bare()
    bare(WantHistory("chat", 600))
    bare.now = 601.0
    bare(WantHistory("news", 600))
    assert bare.count("anti_entropy.wanted_topics") == 1


def test_wants_of_history_are_bounded():
    bare = Bare()
    for number in range(1000):
        bare(WantHistory(f"t{number}", 60))
    assert bare.count("anti_entropy.wanted_topics") == 64


@examples(30)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 128))
def test_two_that_were_parted_have_the_same_soon_after(seed, size):
    rng = random.Random(seed)
    net = Net(2, seed=seed)
    sent: list[set[str]] = [set(), set()]
    for _ in range(size):
        number = rng.randrange(2)
        sent[number].add(net.published(number))
    net.link(0, 1)
    net.run_until(5)
    for own, other, node in zip(sent, reversed(sent), net.nodes, strict=True):
        assert {message.message_id for message in node.received} == other - own
    assert [snapshot["store"]["messages"] for snapshot in net.snapshots(Subsystem.BROADCAST)] == [size, size]


MOST = (1 << 53) - 1


def test_ages_beyond_all_bounds_are_not_handed_on():
    bare = Bare()
    bare(ServiceUp("net"))
    bare.wait_until(10)
    bare.up(ALICE)
    bare.hear(ALICE, gossip())
    bare.hear(ALICE, digest(1, beyond=MOST, within=MOST))
    said = [message for kind in (GossipDigest, GossipHave) for _, message in bare.sent(kind)]
    assert said
    assert all(message.beyond <= 20_000 for message in said)
