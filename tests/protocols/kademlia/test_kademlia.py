"""The DHT among honest peers: join, find, put, get, upkeep."""

import itertools
import math
import random
from typing import Any, TypeVar

import attrs
import pytest

from p2pmesh.config import KademliaConfig, MeshConfig
from p2pmesh.errors import ConfigError, IdentityError, MeshClosed, PeerUnreachable
from p2pmesh.identity import Identity, SignatureMemo
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.core import Notify, Reply
from p2pmesh.protocols.inputs import (
    DhtFindNode,
    DhtGet,
    DhtPut,
    Leave,
    LinkDown,
    LinkUp,
    PeersFound,
    RemotePeer,
    Subsystem,
)
from p2pmesh.protocols.kademlia.kademlia import KademliaCore
from p2pmesh.protocols.kademlia.records import DhtValue, key_id, sign_record
from p2pmesh.protocols.notices import CancelRoute, ReturnPath, Route, RoutedReceived, RouteSucceeded
from p2pmesh.simulation import BareNetwork
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.overlay import DhtRecord, FindNode, FindValue, NodesFound, StoreValue, ValueStored
from tests.harness.kademlia import DhtNet, reply_of
from tests.harness.virtual_time import NETWORK, identity, remote, virtual_wall

SMALL = KademliaConfig(k=4)


@pytest.fixture(autouse=True)
def _memo():
    with SignatureMemo():
        yield


@pytest.fixture
def net():
    return DhtNet(20, config=SMALL)


def peer_of_bucket(me: PeerId, index: int, number: int) -> Identity:
    """The peer with that number of those whose distance from us has so many bits."""
    return next(
        itertools.islice(
            (one for n in itertools.count(500) if bucket(me, (one := identity(n)).peer_id) == index), number % 4, None
        )
    )


def bucket(me: PeerId, peer: PeerId) -> int:
    return xor_distance(me, peer).bit_length()


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [40, pytest.param(80, marks=pytest.mark.simulation)])
def test_every_lookup_finds_the_true_nearest_peers(peers):
    net = DhtNet(peers, seed=2, config=KademliaConfig(k=8))
    for number in range(peers * 3 // 4):
        target = PeerId(f"{net.rng.getrandbits(160):040x}")
        peer = net.peers[number]
        assert list(net.outcome(peer, net.find(peer, target))) == net.closest(target)


def test_joins_and_rest_cost_nothing_while_nobody_uses_the_dht(net):
    for _ in range(10):
        net.add()
        net.run(1.0)
    net.kill(net.peers[3])
    net.run(4 * 3600.0)
    assert [peer.stats["rpc"]["sent"] for peer in net.peers] == [0] * 30


def test_over_a_real_ring_nothing_is_sent_until_somebody_asks_and_then_the_nearest_are_found():
    net = BareNetwork(seed=3, config=MeshConfig(max_peers=3, kademlia=KademliaConfig(k=8)))
    for _ in range(24):
        net.add()
        net.run(0.5)
    net.run(60.0)
    dht = [node.cores[Subsystem.KADEMLIA].snapshot() for node in net.nodes]
    assert [one["rpc"]["sent"] for one in dht] == [0] * 24
    assert [one["routing_table"]["around"] for one in dht] == [16] * 24
    target = key_id("key")
    call = net.find_node(net.nodes[5], target)
    net.run(30.0)
    nearest = sorted((node.peer_id for node in net.nodes), key=lambda peer: xor_distance(peer, target))
    assert list(call.value) == nearest[:8]


def test_a_newcomer_is_found_and_finds_though_nobody_has_asked_anything_before(net):
    net.run(4 * 3600.0)
    newcomer = net.add()
    net.run(2.0)
    for asker, target in ((net.peers[0], newcomer.id), (newcomer, net.peers[7].id)):
        assert list(net.outcome(asker, net.find(asker, target))) == net.closest(target)


def test_without_links_nothing_happens():
    net = DhtNet()
    alone = net.add()
    net.run(100_000.0)
    assert alone.stats["rpc"]["sent"] == 0


def test_when_all_links_are_lost_contacts_are_kept(net):
    peer = net.peers[3]
    neighbours = list(peer.links)
    for other in neighbours:
        net.unlink(peer, net.by_id[other])
    net.lose = lambda sender, receiver, message: sender == peer.id
    contacts = peer.stats["routing_table"]["contacts"]
    for other in neighbours:
        net.outcome(peer, net.find(peer, other))
    assert peer.stats["routing_table"]["contacts"] == contacts
    assert all(net.knows(peer, other) for other in neighbours)


def test_with_one_neighbour_that_does_not_answer_calls_do_not_wait_for_a_link():
    net = DhtNet(2, config=SMALL)
    peer, other = net.peers
    net.lose = lambda sender, receiver, message: receiver == other.id
    assert net.outcome(peer, net.find(peer, other.id)) == (peer.id,)
    started = net.now
    assert net.outcome(peer, net.find(peer, other.id)) == (peer.id,)
    assert net.now - started <= SMALL.rpc_timeout + 0.1, "the time of the request to whichever is nearest, and no more"


def test_a_neighbour_that_fell_silent_is_no_contact_any_more(net):
    a, b = net.peers[:2]
    net.unlink(a, b, timed_out=5.0)
    assert not net.knows(a, b.id)


def test_a_link_that_is_closed_costs_no_contact(net):
    a, b = net.peers[:2]
    net.unlink(a, b)
    assert net.knows(a, b.id)


def test_peers_of_the_original_and_unverified_ones_are_no_contacts():
    net = DhtNet(1, settle=0.0)
    net.feed(net.peers[0], LinkUp(remote(identity(99), version=0)))
    net.feed(net.peers[0], LinkUp(RemotePeer(PeerId("a" * 40), False, 1)))
    assert net.peers[0].stats["routing_table"]["neighbours"] == 0


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", "", {"a": [1, None, "ü"]}, None, b"\x00\xff", b"", 17, [], True])
def test_what_one_puts_another_gets_with_its_publisher(net, value):
    alice, bob = net.peers[0], net.peers[7]
    published = EPOCH + net.now
    assert net.outcome(alice, net.put(alice, "answer", value)) == 4
    found = net.outcome(bob, net.get(bob, "answer"))
    assert isinstance(found, DhtValue)
    assert (found.value, found.publisher) == (value, alice.id)
    assert type(found.value) is type(value)
    assert found.published == pytest.approx(published, abs=0.01)
    assert found.expires == pytest.approx(found.published + SMALL.ttl)


def test_the_k_nearest_peers_hold_a_value(net):
    net.outcome(net.peers[0], net.put(net.peers[0], "key", 1))
    assert sorted(net.holders(key_id("key"))) == sorted(net.closest(key_id("key")))


def test_a_key_under_which_nothing_lies_gives_none(net):
    peer = net.peers[0]
    assert net.outcome(peer, net.get(peer, "nothing")) is None
    assert peer.stats["calls"]["misses"] == 1


def test_of_several_publishers_the_first_to_come_is_found_or_the_one_that_is_asked_for(net):
    alice, bob, carol = net.peers[:3]
    net.outcome(alice, net.put(alice, "key", "alice's"))
    net.outcome(bob, net.put(bob, "key", "bob's"))
    first = net.outcome(carol, net.get(carol, "key"))
    assert (first.value, first.rule) == ("alice's", "first")
    of_bob = net.outcome(carol, net.get(carol, "key", bob.id))
    assert (of_bob.value, of_bob.rule) == ("bob's", "publisher")
    assert net.outcome(carol, net.get(carol, "key", carol.id)) is None


def test_what_is_put_later_replaces_what_was_there(net):
    alice, bob = net.peers[0], net.peers[9]
    for number in range(3):
        net.outcome(alice, net.put(alice, "key", number))
    found = net.outcome(bob, net.get(bob, "key"))
    assert found.value == 2
    assert all(net.by_id[holder].stats["store"]["values"] == 1 for holder in net.holders(key_id("key")))


def test_of_two_values_put_at_once_the_second_is_newer():
    core, neighbours = bare_core(4, k=4)
    sent = []
    for call in (1, 2):
        sent += routes(core.handle(DhtPut(call, "key", f"value {call}"), 1.0))
    stored = [request.record for _, request in of_type(drive(core, sent, neighbours[0], 1.0), StoreValue)]
    times = {record.payload: record.timestamp for record in stored}
    assert times["value 1"] < times["value 2"]


def test_a_get_mends_what_is_out_of_date(net):
    alice, bob = net.peers[0], net.add(config=attrs.evolve(SMALL, quorum=4))
    net.run(10.0)
    net.outcome(alice, net.put(alice, "key", "old"))
    late = next(peer for peer in net.holders(key_id("key")) if peer not in {alice.id, bob.id})
    net.lose = lambda sender, receiver, message: receiver == late and isinstance(message, StoreValue)
    net.outcome(alice, net.put(alice, "key", "new"))
    net.lose = lambda *_: False
    assert net.outcome(bob, net.get(bob, "key")).value == "new"
    net.run(2.0)
    assert net.value_at(net.by_id[late], key_id("key")).payload == "new"


def test_a_get_leaves_a_copy_at_the_nearest_peer_that_lacked_the_value(net):
    alice, bob = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, "key", 1))
    nearest = next(peer for peer in net.closest(key_id("key")) if peer != bob.id)
    net.restart(net.by_id[nearest])
    assert nearest not in net.holders(key_id("key"))
    net.outcome(bob, net.get(bob, "key"))
    net.run(2.0)
    assert nearest in net.holders(key_id("key"))


def test_a_peer_that_knows_well_more_than_k_that_are_nearer_takes_no_value():
    net = DhtNet(1, config=SMALL, settle=0.0)
    peer = net.peers[0]
    contacts = [peer_of_bucket(peer.id, 160 - number // 4, number) for number in range(16)]
    for contact in contacts:
        net.feed(peer, LinkUp(remote(contact)))
    taken = {}
    for number in range(300):
        key = key_id(f"key {number}")
        nearer = sum(xor_distance(one.peer_id, key) < xor_distance(peer.id, key) for one in contacts)
        record = sign_record(contacts[0], key, "value", int((EPOCH + net.now) * 1000), 3600.0, SMALL, NETWORK).record
        answer = net.ask(contacts[0], peer, StoreValue(record=record))
        taken[nearer] = answer.held
        net.run(1.0)
    assert set(taken) >= {4, 8, 12}
    assert taken == {nearer: nearer <= 1.25 * 4 for nearer in taken}


def test_a_value_is_forgotten_when_its_ttl_is_over(net):
    alice, bob = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, "key", 1, ttl=60.0))
    net.run(50.0)
    assert net.outcome(bob, net.get(bob, "key")).value == 1
    net.run(15.0)
    assert net.outcome(bob, net.get(bob, "key")) is None
    assert net.holders(key_id("key")) == []


def test_our_own_value_expires_for_us_too(net):
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, "key", 1, ttl=60.0))
    net.run(61.0)
    assert net.outcome(alice, net.get(alice, "key")) is None
    assert net.outcome(alice, net.get(alice, "key", alice.id)) is None


def test_what_we_have_published_ourselves_is_got_without_asking(net):
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, "key", 1))
    before = alice.stats["rpc"]["sent"]
    assert net.outcome(alice, net.get(alice, "key", alice.id)).value == 1
    assert alice.stats["rpc"]["sent"] == before


def test_a_lonely_peer_keeps_its_value_and_hands_it_to_those_who_come():
    net = DhtNet(config=SMALL)
    alice = net.add()
    call = net.put(alice, "key", 1)
    net.run(10.0)
    assert net.outcome(alice, call) == 1
    bob = net.add(link=alice)
    net.run(20.0)
    assert net.outcome(bob, net.get(bob, "key")).value == 1
    assert len(net.holders(key_id("key"))) == 2


def test_a_call_before_the_first_link_waits_for_it():
    net = DhtNet(10, config=SMALL)
    net.outcome(net.peers[0], net.put(net.peers[0], "key", 1))
    newcomer = DhtNet.add(net)
    for other in list(newcomer.links):
        net.unlink(newcomer, net.by_id[other])
    call = net.get(newcomer, "key")
    net.run(1.0)
    assert call not in newcomer.replies
    net.link(newcomer, net.peers[3])
    assert net.outcome(newcomer, call).value == 1


# --- bad calls --------------------------------------------------------------------------------------------------------


def test_a_value_of_just_the_limit_is_put(net):
    assert net.outcome(net.peers[0], net.put(net.peers[0], "key", b"x" * SMALL.max_value)) == 4


@pytest.mark.parametrize("call", [DhtPut(1, "key", 1), DhtGet(1, "key"), DhtFindNode(1, PeerId("0" * 40))])
def test_an_unverified_identity_takes_no_part(call):
    core = KademliaCore(Identity.unverified("a" * 40), MeshConfig(), DhtNet().rng, lambda now: now)
    core.handle(LinkUp(remote(identity(1))), 0.0)
    (reply,) = core.handle(call, 0.0)
    assert isinstance(reply, Reply)
    assert isinstance(reply.error, IdentityError)


def test_a_put_that_nobody_takes_fails(net):
    key = next(f"key {n}" for n in range(100) if net.peers[0].id not in net.closest(key_id(f"key {n}")))
    net.lose = lambda sender, receiver, message: isinstance(message, StoreValue)
    with pytest.raises(PeerUnreachable):
        net.outcome(net.peers[0], net.put(net.peers[0], key, 1))
    assert net.peers[0].stats["republish"]["published"] == 0


def test_a_mesh_without_dht_says_so_and_answers_nobody():
    net = DhtNet(5, config=SMALL)
    off = net.add(config=KademliaConfig(enabled=False))
    net.run(10.0)
    with pytest.raises(ConfigError, match="enabled"):
        net.outcome(off, net.get(off, "key"))
    assert off.stats["rpc"]["sent"] == 0
    peer = net.peers[0]
    assert off.id not in net.outcome(peer, net.find(peer, off.id))


def test_a_cancelled_call_is_forgotten_with_all_its_requests(net):
    peer = net.peers[0]
    calls = [net.get(peer, "key"), net.put(peer, "key", 1), net.find(peer, key_id("x"))]
    for call in calls:
        net.forget(peer, call)
    assert (peer.stats["calls"]["open"], peer.stats["rpc"]["pending"], peer.stats["lookups"]["running"]) == (0, 0, 0)
    net.run(20.0)
    assert not peer.replies


def test_a_put_that_is_cancelled_while_it_is_stored_ends_quietly(net):
    peer = net.peers[0]
    call = net.put(peer, "key", 1)
    while not any(isinstance(asked, StoreValue) for other in net.peers for _, asked in other.asked):
        net.step()
    net.forget(peer, call)
    assert peer.stats["rpc"]["pending"] == 0
    net.run(20.0)
    assert not peer.replies


def test_leaving_ends_all_calls_and_all_activity(net):
    peer = net.peers[0]
    calls = [net.get(peer, "key"), net.put(peer, "key", 1)]
    net.leave(peer)
    for call in calls:
        assert isinstance(peer.replies[call].error, MeshClosed)
    assert peer.stats["rpc"]["pending"] == 0


def test_no_more_lookups_run_at_once_than_allowed_and_the_others_follow():
    net = DhtNet(10, config=attrs.evolve(SMALL, lookups=2))
    peer = net.peers[0]
    calls = [net.get(peer, f"key {number}") for number in range(7)]
    assert (peer.stats["lookups"]["running"], peer.stats["lookups"]["waiting"]) == (2, 5)
    net.forget(peer, calls[-1])
    assert peer.stats["lookups"]["waiting"] == 4
    assert [net.outcome(peer, call) for call in calls[:-1]] == [None] * 6


# --- upkeep -----------------------------------------------------------------------------------------------------------


def test_a_newcomer_next_to_a_key_is_handed_the_value(net):
    net.outcome(net.peers[0], net.put(net.peers[0], "key", 1))
    for _ in range(20):
        net.add()
        net.run(1.0)
    net.run(30.0)
    nearest = net.closest(key_id("key"))
    assert set(nearest) - {peer.id for peer in net.peers[:20]}, "some of them are new"
    assert set(nearest) <= set(net.holders(key_id("key")))


def test_values_outlive_all_who_held_them_first(net):
    alice = net.peers[0]
    keys = [f"key {number}" for number in range(10)]
    for key in keys:
        net.outcome(alice, net.put(alice, key, key))
    first = list(net.peers)
    for peer in first:
        net.add()
        net.run(20.0)
        net.kill(peer)
        net.run(20.0)
    reader = net.living()[0]
    assert [net.outcome(reader, net.get(reader, key)).value for key in keys] == keys


def test_once_an_hour_one_holder_sees_to_a_value_and_the_others_skip_their_turn():
    net = DhtNet(30, config=KademliaConfig(k=8))
    net.outcome(net.peers[0], net.put(net.peers[0], "key", 1))
    net.leave(net.peers[0])
    net.run(1.3 * 3600)
    for peer in net.peers:
        peer.asked.clear()
    before = sum(peer.stats["republish"]["republished"] for peer in net.peers)
    net.run(3 * 3600)
    turns = sum(peer.stats["republish"]["republished"] for peer in net.peers) - before
    assert 2 <= turns <= 8, "not three for each of eight"
    assert sum(isinstance(request, StoreValue) for peer in net.peers for _, request in peer.asked) <= 3, (
        "hardly anybody lacked it"
    )
    assert set(net.closest(key_id("key"))) <= set(net.holders(key_id("key")))


def test_republishing_gives_the_value_to_those_that_lack_it(net):
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, "key", 1))
    for peer in net.closest(key_id("key"))[:2]:
        if peer != alice.id:
            net.restart(net.by_id[peer])
    net.run(1.5 * 3600)
    assert set(net.closest(key_id("key"))) <= set(net.holders(key_id("key")))


def test_a_publisher_sees_to_its_value_until_it_expires():
    net = DhtNet(12, config=attrs.evolve(SMALL, ttl=3 * 3600.0))
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, "key", 1))
    for peer in net.peers:
        if peer is not alice:
            net.restart(peer)
    assert set(net.holders(key_id("key"))) <= {alice.id}
    net.run(1.3 * 3600)
    assert set(net.closest(key_id("key"))) <= set(net.holders(key_id("key")))
    net.run(3 * 3600)
    assert alice.stats["republish"]["published"] == 0


@pytest.mark.parametrize("peers", [30, pytest.param(60, marks=pytest.mark.simulation)])
def test_after_a_fifth_of_the_peers_died_at_once_values_are_still_found(peers):
    net = DhtNet(peers, config=KademliaConfig(k=8))
    keys = [f"key {number}" for number in range(peers // 2)]
    for key in keys:
        net.outcome(net.peers[0], net.put(net.peers[0], key, key))
    for peer in net.rng.sample(net.peers[1:], peers // 5):
        net.kill(peer)
    for key in keys:
        reader = net.rng.choice(net.living()[1:])
        started = net.now
        assert net.outcome(reader, net.get(reader, key)).value == key
        assert net.now - started < 30


def test_the_dead_are_not_waited_for_again_and_again():
    net = DhtNet(40, config=KademliaConfig(k=8))
    reader = net.peers[0]
    target = key_id("key")
    for peer in net.closest(target, 12)[::2]:
        if peer != reader.id:
            net.kill(net.by_id[peer])
    times = []
    for _ in range(4):
        started = net.now
        assert list(net.outcome(reader, net.find(reader, target))) == net.closest(target)
        times.append(net.now - started)
    assert times[0] > 5, "it has to find out"
    assert times[-1] < 2, "and then knows"


def test_a_lookup_ends_in_its_time_with_what_it_has():
    net = DhtNet(20, config=attrs.evolve(SMALL, lookup_timeout=3.0))
    silent, *_, far = net.closest(key_id("key"), 20)
    reader = net.by_id[far]
    net.lose = lambda sender, receiver, message: receiver == silent
    started = net.now
    found = net.outcome(reader, net.find(reader, key_id("key")))
    assert net.now - started <= 3.0
    assert list(found[:3]) == net.closest(key_id("key"))[1:]
    assert reader.stats["rpc"]["pending"] == 0


def test_the_same_seed_gives_the_same_run():
    def run():
        net = DhtNet(12, seed=4, config=SMALL)
        net.outcome(net.peers[0], net.put(net.peers[0], "key", 1))
        net.run(5000.0)
        return [peer.stats for peer in net.peers]

    assert run() == run()


# --- the pool of lookups ----------------------------------------------------------------------------------------------


def bare_core(count: int = 8, **fields: Any) -> tuple[KademliaCore, list[PeerId]]:
    """A core alone, with so many neighbours."""
    core = KademliaCore(identity(1), MeshConfig(kademlia=KademliaConfig(**fields)), random.Random(1), virtual_wall)
    neighbours = [identity(number) for number in range(2, 2 + count)]
    for neighbour in neighbours:
        core.handle(LinkUp(remote(neighbour)), 0.0)
    return core, [neighbour.peer_id for neighbour in neighbours]


def routes(effects: list[Any]) -> list[Route]:
    return [effect.input for effect in effects if isinstance(effect, Notify) and isinstance(effect.input, Route)]


def answer(core: KademliaCore, route: Route, peer: PeerId, now: float = 1.0, **fields: Any) -> list[Any]:
    reply = ValueStored(held=True) if isinstance(route.message, StoreValue) else NodesFound(**fields)
    return core.handle(RouteSucceeded(route.call, peer, reply), now)


def test_a_get_ends_with_the_quorum_and_cancels_what_is_under_way():
    core, _ = bare_core(quorum=2, alpha=5)
    key = key_id("key")
    record = sign_record(identity(50), key, "value", int(EPOCH * 1000), 3600.0, SMALL, NETWORK).record
    asked = routes(core.handle(DhtGet(1, "key"), 1.0))
    assert len(asked) == 6, "alpha, and whichever peer is next to the key"
    assert not any(isinstance(effect, Reply) for effect in answer(core, asked[1], asked[1].to, record=record))
    assert not any(isinstance(effect, Reply) for effect in answer(core, asked[2], asked[2].to, record=record)), (
        "the very nearest may all be one liar"
    )
    effects = answer(core, asked[5], asked[5].to, record=record)
    (reply,) = [effect for effect in effects if isinstance(effect, Reply)]
    assert reply.value.value == "value"
    cancelled = [effect.input.call for effect in effects if isinstance(getattr(effect, "input", None), CancelRoute)]
    assert {asked[0].call, asked[3].call, asked[4].call} <= set(cancelled)
    assert core.snapshot()["lookups"]["running"] == 0


def test_a_lookup_that_found_fewer_than_k_waits_for_whichever_peer_is_next_to_its_target():
    core, neighbours = bare_core(2)
    entry, *asked = routes(core.handle(DhtFindNode(1, identity(60).peer_id), 1.0))
    assert entry.nearest
    for route in asked:
        assert not any(isinstance(effect, Reply) for effect in answer(core, route, route.to))
    far = identity(61).peer_id
    (reply,) = [effect for effect in answer(core, entry, far) if isinstance(effect, Reply)]
    assert set(reply.value) == {far, *neighbours, identity(1).peer_id}


def test_one_that_found_k_does_not_wait():
    core, _ = bare_core(4, k=2)
    _, *asked = routes(core.handle(DhtFindNode(1, identity(60).peer_id), 1.0))
    replies = [effect for route in asked for effect in answer(core, route, route.to) if isinstance(effect, Reply)]
    assert len(replies) == 1


def test_only_so_many_lookups_for_upkeep_run_at_once_and_they_hinder_no_call():
    core, neighbours = bare_core(lookups=1)
    held = 0
    for number in range(8):
        publisher = identity(70 + number)
        record = sign_record(publisher, key_id("key"), number, int(EPOCH * 1000), 86_400.0, SMALL, NETWORK).record
        way = ReturnPath(publisher.peer_id, "packet", (publisher.peer_id,))
        core.handle(RoutedReceived(remote(publisher), StoreValue(record=record), way), 1.0)
        held += 1
    assert core.snapshot()["store"]["values"] == held
    core.expire(1.0 + 1.3 * 3600)
    lookups = core.snapshot()["lookups"]
    assert lookups["running"] == 4
    assert lookups["waiting"] >= held - 4
    core.handle(DhtFindNode(1, neighbours[0]), 1.0 + 1.3 * 3600)
    assert core.snapshot()["lookups"]["running"] == 5


def test_a_value_that_is_here_counts_for_the_quorum():
    core, _ = bare_core(quorum=2)
    record = record_of(100)
    assert is_stored(core, record, 1.0)
    _, asked, *_ = routes(core.handle(DhtGet(1, "key"), 2.0))
    assert [effect.call for effect in answer(core, asked, asked.to, record=record) if isinstance(effect, Reply)] == [1]


def test_a_peer_that_has_left_does_nothing_any_more():
    core, _ = bare_core()
    core.handle(DhtFindNode(1, identity(60).peer_id), 1.0)
    core.handle(Leave(), 2.0)
    assert core.next_deadline() == math.inf
    core.handle(LinkUp(remote(identity(60))), 3.0)
    assert core.next_deadline() == math.inf


# --- one holder and its values ----------------------------------------------------------------------------------------


def record_of(number: int, *, key: str = "key", at: float = 0.0) -> DhtRecord:
    timestamp = int((EPOCH + at) * 1000)
    return sign_record(
        identity(number), key_id(key), f"by {number} at {at}", timestamp, 86_400.0, SMALL, NETWORK
    ).record


def is_stored(core: KademliaCore, record: DhtRecord, now: float) -> bool:
    publisher = identity(200)
    way = ReturnPath(publisher.peer_id, "packet", (publisher.peer_id,))
    effects = core.handle(RoutedReceived(remote(publisher), StoreValue(record=record), way), now)
    (answer,) = [reply.message for reply in map(reply_of, effects) if reply is not None]
    assert isinstance(answer, ValueStored)
    return answer.held


def until(core: KademliaCore, end: float) -> list[Route]:
    """The requests that it sends until then."""
    sent = []
    while core.next_deadline() <= end:
        sent += routes(core.expire(core.next_deadline()))
    return sent


R = TypeVar("R")


def of_type(sent: list[Route], kind: type[R]) -> list[tuple[PeerId, R]]:
    return [(route.to, route.message) for route in sent if isinstance(route.message, kind)]


def republish_turn(core: KademliaCore) -> tuple[list[Route], float]:
    """The requests of the first lookup for the holders of a value, and when that is."""
    while True:
        now = core.next_deadline()
        sent = routes(core.expire(now))
        if of_type(sent, FindValue):
            return sent, now


def around(core: KademliaCore, *numbers: int, now: float) -> list[Route]:
    """The peers around it on the ring are these."""
    return routes(core.handle(PeersFound(tuple(identity(number).peer_id for number in numbers), "ring"), now))


def drive(core: KademliaCore, sent: list[Route], entry: PeerId, now: float, **fields: Any) -> list[Route]:
    """Answer all requests, and those that follow; all that it sends."""
    everything = []
    while sent:
        everything += sent
        more = []
        for route in sent:
            more += routes(answer(core, route, entry if route.nearest else route.to, now, **fields))
        sent = more
    return everything


def test_a_holder_gives_its_value_to_those_of_the_k_nearest_that_lack_it():
    core, neighbours = bare_core(4, k=4)
    assert is_stored(core, record_of(100), 1.0)
    sent, now = republish_turn(core)
    nearest = sorted([*neighbours, identity(1).peer_id], key=lambda peer: xor_distance(peer, key_id("key")))[:4]
    stores = of_type(drive(core, sent, neighbours[0], now), StoreValue)
    assert {to for to, _ in stores} == set(nearest) - {identity(1).peer_id}


def test_a_holder_gives_its_value_to_nobody_that_has_it():
    core, neighbours = bare_core(4, k=4)
    assert is_stored(core, record_of(100), 1.0)
    sent, now = republish_turn(core)
    assert of_type(drive(core, sent, neighbours[0], now, same=True), StoreValue) == []


def test_a_holder_that_finds_a_newer_value_keeps_that():
    core, neighbours = bare_core(4, k=4)
    assert is_stored(core, record_of(100), 1.0)
    sent, now = republish_turn(core)
    newer = record_of(100, at=60.0)
    assert of_type(drive(core, sent, neighbours[0], now, record=newer), StoreValue) == []
    assert not is_stored(core, record_of(100), now), "it is out of date"
    assert is_stored(core, newer, now)
    assert core.snapshot()["store"]["values"] == 1


def test_a_holder_that_has_come_to_know_well_more_than_k_that_are_nearer_gives_the_value_to_them_and_forgets_it():
    core, neighbours = bare_core(3, k=2)
    assert is_stored(core, record_of(100), 1.0)
    nearer = tuple(PeerId(f"{int(key_id('key'), 16) ^ number:040x}") for number in (1, 2, 3))
    core.handle(PeersFound(nearer, "ring"), 2.0)
    sent, now = republish_turn(core)
    stores = of_type(drive(core, sent, neighbours[0], now), StoreValue)
    assert {to for to, _ in stores} == set(nearer[:2])
    assert core.snapshot()["store"]["values"] == 0
    assert core.snapshot()["republish"]["turns"] == 0


def test_what_was_published_alone_is_brought_into_the_mesh_soon_after_the_first_link():
    core, _ = bare_core(0)
    core.handle(DhtPut(1, "key", "value"), 0.0)
    until(core, 20.0)
    assert core.snapshot()["republish"]["published"] == 1
    neighbour = identity(2)
    core.handle(LinkUp(remote(neighbour)), 100.0)
    found = []
    while core.next_deadline() < 110.0:
        now = core.next_deadline()
        sent = routes(core.expire(now))
        found += of_type(sent, FindValue)
        for route in sent:
            answer(core, route, neighbour.peer_id, now)
    assert {call.key for _, call in found} == {key_id("key")}


def test_nothing_is_handed_to_a_newcomer_that_has_fallen_silent_meanwhile():
    for silent in (False, True):
        core, _ = bare_core(1, k=20)
        assert is_stored(core, record_of(100), 1.0)
        until(core, 50.0)
        newcomer = identity(80)
        around(core, 80, now=50.0)
        if silent:
            core.handle(LinkDown(newcomer.peer_id, "silent", 5.0), 50.1)
        given = [to for to, _ in of_type(until(core, 55.0), StoreValue)]
        assert (newcomer.peer_id in given) is not silent


# --- outcomes that are lost -------------------------------------------------------------------------------------------


def test_a_put_ends_though_the_outcomes_of_its_requests_are_lost(net):
    alice = net.peers[0]
    net.lose_outcome = lambda asker, request: asker == alice.id and isinstance(request, StoreValue)
    call, started = net.put(alice, "key", 1), net.now
    if alice.id in net.closest(key_id("key")):
        assert net.outcome(alice, call) == 1, "it has the value itself"
    else:
        with pytest.raises(PeerUnreachable):
            net.outcome(alice, call)
    assert net.now - started < 2 * SMALL.rpc_timeout + 5
    net.run(20.0)
    assert alice.stats["rpc"]["pending"] == 0
    assert alice.stats["rpc"]["lost"] >= 3


@pytest.mark.parametrize("kind", [FindNode, FindValue])
def test_a_lookup_ends_though_the_outcomes_of_its_requests_are_lost(kind):
    net = DhtNet(20, config=attrs.evolve(SMALL, lookup_timeout=1000.0))
    peer = net.peers[0]
    known = [other.id for other in net.peers[1:] if net.knows(peer, other.id)]
    assert len(known) > 10
    net.lose_outcome = lambda asker, request: asker == peer.id and isinstance(request, kind)
    call = net.find(peer, key_id("key")) if kind is FindNode else net.get(peer, "key")
    started = net.now
    assert net.outcome(peer, call, within=200.0) == ((peer.id,) if kind is FindNode else None)
    assert net.now - started < 100
    net.lose_outcome = lambda *_: False
    net.run(20.0)
    assert peer.stats["rpc"]["pending"] == 0
    assert all(net.knows(peer, other) for other in known), "no peer is to blame"


def test_an_outcome_that_is_late_but_not_lost_counts():
    """Routing may be late itself on a busy machine: a request is given up after twice its time-out, not before."""
    core = KademliaCore(identity(1), MeshConfig(), DhtNet().rng, lambda now: now)
    core.handle(LinkUp(remote(identity(2))), 0.0)
    route = core.handle(DhtFindNode(1, identity(2).peer_id), 0.0)[-1].input
    while core.next_deadline() < 9.9:
        core.expire(core.next_deadline())
    core.handle(RouteSucceeded(route.call, identity(2).peer_id, NodesFound()), 9.9)
    rpc = core.snapshot()["rpc"]
    assert (rpc["answered"], rpc["lost"]) == (1, 0)
