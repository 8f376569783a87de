"""The DHT among liars: what honest peers do with made-up ids, floods, forged values and answers that nobody asked
for."""

import json

import attrs
import pytest
from msgspec import structs

from p2pmesh.config import KademliaConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import SignatureMemo
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.core import Notify
from p2pmesh.protocols.kademlia.records import key_id, sign_record, signed_bytes
from p2pmesh.protocols.notices import ReturnPath, RoutedReceived, RouteFailed, RouteSucceeded
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.overlay import DhtRecord, FindNode, FindValue, NodesFound, StoreValue, ValueStored
from tests.harness.kademlia import DhtNet, reply_of
from tests.harness.virtual_time import NETWORK, identity, remote

CONFIG = KademliaConfig(k=4)
ROOMY = attrs.evolve(CONFIG, max_value=64 * 1024)
STRANGER = identity(900)


@pytest.fixture(autouse=True)
def _memo():
    with SignatureMemo():
        yield


@pytest.fixture
def net():
    return DhtNet(20, config=CONFIG)


def record(net, *, key="key", value="value", by=STRANGER, at=0.0, ttl=600.0, config=ROOMY) -> DhtRecord:
    timestamp = int((EPOCH + net.now + at) * 1000)
    return sign_record(by, key_id(key), value, timestamp, ttl, config, NETWORK).record


def store(net, peer, value, by=STRANGER):
    answer = net.ask(by, peer, StoreValue(record=value))
    assert isinstance(answer, ValueStored)
    return answer.held


def holder(net, key="key"):
    return net.by_id[net.closest(key_id(key))[0]]


# --- lookups ----------------------------------------------------------------------------------------------------------


def made_up(target: PeerId) -> tuple[PeerId, ...]:
    """Ids next to a target, which nobody has."""
    return tuple(PeerId(f"{int(target, 16) ^ number:040x}") for number in range(1, 21))


def test_a_peer_that_answers_every_lookup_with_itself_holds_none_up():
    net = DhtNet(40, config=KademliaConfig(k=10))
    for liar in net.peers[1::4]:
        liar.lies = lambda asker, request, me=liar.id: NodesFound(peers=(me, me, asker))
    reader = net.peers[0]
    for number in range(20):
        target = key_id(str(number))
        started = net.now
        found = net.outcome(reader, net.find(reader, target))
        assert len(set(found) & set(net.closest(target))) >= 9, "though who knew of one may have been a liar"
        assert net.now - started < 5


def test_made_up_ids_are_asked_and_die_out():
    net = DhtNet(40, config=KademliaConfig(k=10))
    for liar in net.peers[1::5]:
        liar.lies = lambda asker, request: NodesFound(peers=made_up(request.target))
    known = {peer.id for peer in net.peers}
    reader = net.peers[0]
    for number in range(10):
        target = key_id(str(number))
        started = net.now
        found = set(net.outcome(reader, net.find(reader, target)))
        assert found <= known
        assert len(found & set(net.closest(target))) >= 9, "though who knew of one may have been a liar"
        assert net.now - started < CONFIG.lookup_timeout
    for peer in net.peers[0], net.peers[2]:
        for number in range(10):
            answer = net.ask(net.peers[3].identity, peer, FindNode(target=key_id(str(number))))
            assert set(answer.peers) <= known, "an id that nobody has is nobody's contact"


def test_a_value_is_found_though_every_fourth_peer_says_there_is_none():
    net = DhtNet(40, config=KademliaConfig(k=8))
    for liar in net.peers[1::4]:
        liar.lies = lambda asker, request: (
            ValueStored(held=True) if isinstance(request, StoreValue) else NodesFound(same=True)
        )
    honest = net.peers[0]
    for number in range(20):
        net.outcome(honest, net.put(honest, str(number), number))
        reader = net.peers[4 + 4 * (number % 9)]
        assert net.outcome(reader, net.get(reader, str(number))).value == number


def test_a_forged_value_is_not_believed_and_the_true_one_found(net):
    alice, reader = net.peers[0], net.peers[7]
    net.outcome(alice, net.put(alice, "key", "true"))
    forged = structs.replace(record(net, value="true"), payload="forged")
    elsewhere = record(net, key="other", value="elsewhere")
    for number, peer in enumerate(net.closest(key_id("key"))[:2]):
        if peer != reader.id:
            net.by_id[peer].lies = lambda asker, request, lie=(forged, elsewhere)[number]: NodesFound(record=lie)
    found = net.outcome(reader, net.get(reader, "key"))
    assert (found.value, found.publisher) == ("true", alice.id)
    assert reader.stats["lookups"]["bad_records"] >= 1


@pytest.mark.parametrize(
    "bad",
    [
        lambda net: structs.replace(record(net), signature=bytes(64)),
        lambda net: record(net, at=-700.0),
        lambda net: record(net, value=b"x" * (CONFIG.max_value + 1)),
        lambda net: record(net, key="other"),
    ],
    ids=["bad signature", "expired", "too large", "of another key"],
)
def test_a_bad_value_in_an_answer_is_none(net, bad):
    lie = bad(net)
    for liar in net.peers[1:]:
        liar.lies = lambda asker, request: NodesFound(record=lie)
    reader = net.peers[0]
    assert net.outcome(reader, net.get(reader, "key")) is None
    assert reader.stats["lookups"]["bad_records"] >= CONFIG.k
    assert reader.stats["store"]["values"] == 0


@pytest.mark.parametrize("lie", [ValueStored(held=True), FindNode(target=STRANGER.peer_id)], ids=["stored", "request"])
def test_answers_of_another_type_count_as_no_answer(net, lie):
    for liar in net.peers[1:10]:
        liar.lies = lambda asker, request: lie
    reader = net.peers[0]
    found = net.outcome(reader, net.find(reader, key_id("key")))
    assert not {peer.id for peer in net.peers[1:10]} & set(found)
    assert reader.stats["rpc"]["bad_replies"] > 0


def test_an_answer_that_was_not_asked_for_changes_nothing(net):
    peer = net.peers[0]
    lie = NodesFound(peers=made_up(peer.id))
    before = peer.stats["routing_table"]
    way = ReturnPath(STRANGER.peer_id, "x", (STRANGER.peer_id,))
    assert peer.core.handle(RouteSucceeded(10_000, STRANGER.peer_id, lie), net.now) == []
    assert peer.core.handle(RouteFailed(10_001, "why"), net.now) == []
    assert peer.core.handle(RoutedReceived(remote(STRANGER), lie, way), net.now) == []
    assert peer.stats["routing_table"] == before
    assert not net.knows(peer, STRANGER.peer_id)
    assert peer.stats["requests"]["unasked"] == 1


@pytest.mark.parametrize("helpers", [0, 12], ids=["alone", "named by a fifth of the mesh"])
def test_ids_that_were_ground_near_a_key_capture_neither_puts_nor_gets(helpers):
    net = DhtNet(60, config=KademliaConfig())
    place = key_id("key")
    ground = sorted(
        (identity(number) for number in range(2000, 5000)), key=lambda one: xor_distance(one.peer_id, place)
    )
    gang = [net.add(who=who).id for who in ground[:20]]
    net.run(60.0)
    assert net.closest(place) == gang, "nobody honest is as near"
    liars = [*gang, *(peer.id for peer in net.peers[1 : 1 + helpers])]

    def lie(asker, request):
        if isinstance(request, StoreValue):
            return ValueStored(held=True)
        return NodesFound(peers=tuple(sorted(gang, key=lambda one: xor_distance(one, asker))))

    for liar in liars:
        net.by_id[liar].lies = lie
    honest = [peer for peer in net.peers if peer.id not in liars]
    for peer in honest[:10]:
        net.outcome(peer, net.find(peer, place))
    net.outcome(honest[0], net.put(honest[0], "key", "value"))
    for reader in honest[1::6]:
        assert net.outcome(reader, net.get(reader, "key")).value == "value"


def test_the_peers_nearest_to_a_key_can_not_bring_back_what_was_replaced_or_deleted():
    net = DhtNet(40, config=KademliaConfig())
    place = key_id("key")
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, "key", "old"))
    old = net.value_at(holder(net), place)
    nearest = net.closest(place)
    liars = [peer for peer in nearest[:5] if peer != alice.id]
    for liar in liars:
        net.by_id[liar].lies = lambda asker, request: NodesFound(peers=tuple(liars), record=old)
    readers = [peer for peer in net.peers[1:] if peer.lies is None and peer.id not in nearest]
    net.outcome(alice, net.put(alice, "key", "new"))
    assert {net.outcome(one, net.get(one, "key", alice.id)).value for one in readers[:10]} == {"new"}
    net.outcome(alice, net.delete(alice, "key"))
    assert {net.outcome(one, net.get(one, "key", alice.id)) for one in readers[:10]} == {None}
    assert {net.outcome(one, net.get(one, "key")) for one in readers[:10]} == {None}


def test_who_only_asks_is_nobodys_contact(net):
    """Ids by the thousand would displace those that answer, and make holders think that others are nearer."""
    peer = holder(net)
    for number in range(100):
        net.ask(identity(2000 + number), peer, FindNode(target=peer.id))
    assert store(net, peer, record(net))
    answer = net.ask(STRANGER, peer, FindNode(target=key_id("key")))
    assert set(answer.peers) <= {one.id for one in net.peers}


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        ValueStored(held=True),
        NodesFound(peers=(STRANGER.peer_id,)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_no_request_is_counted_and_not_answered(net, message):
    peer = net.peers[0]
    assert net.ask(STRANGER, peer, message) is None
    assert peer.stats["requests"]["unasked"] == 1
    assert not net.knows(peer, STRANGER.peer_id)


def test_a_request_that_seems_to_come_from_ourselves_is_not_answered(net):
    peer = net.peers[0]
    assert net.ask(peer.identity, peer, FindNode(target=peer.id)) is None
    assert peer.stats["requests"]["refused"] == 1


def test_a_request_of_a_peer_of_the_original_is_not_answered(net):
    assert net.ask(STRANGER, net.peers[0], FindNode(target=STRANGER.peer_id), version=0) is None


def test_requests_above_a_peers_rate_are_counted_and_not_answered(net):
    peer = net.peers[0]
    find = FindNode(target=STRANGER.peer_id)
    answered = sum(net.ask(STRANGER, peer, find) is not None for _ in range(1000))
    assert answered == CONFIG.request_burst
    assert peer.stats["requests"]["flooded"] == 1000 - answered
    assert net.ask(identity(901), peer, find), "others are answered as ever"
    net.run(1.0)
    assert sum(net.ask(STRANGER, peer, find) is not None for _ in range(100)) == CONFIG.requests_per_second


def test_what_one_neighbour_brings_of_many_askers_is_paid_from_its_budget_and_others_are_answered(net):
    peer = net.peers[0]
    store(net, peer, record(net, key="key", value="x" * 10_000))

    def ask(number, by):
        who = identity(2000 + number)
        way = ReturnPath(who.peer_id, "x", (who.peer_id[:12], by))
        message = (FindNode(target=key_id("a")), FindValue(key=key_id("key")), StoreValue(record=forged))[number % 3]
        return any(map(reply_of, peer.core.handle(RoutedReceived(remote(who), message, way), net.now)))

    forged = structs.replace(record(net, key="key"), signature=bytes(64))
    answered = sum(ask(number, "a" * 12) for number in range(3000))
    assert 100 <= answered <= 1000, "what the neighbour may cause, and what is left for all"
    assert peer.stats["requests"]["unpaid"] >= 2000
    assert all(ask(3000 + number, "b" * 12) for number in range(20)), "which takes nothing from another"


def test_only_so_many_peers_are_measured():
    net = DhtNet(1, config=attrs.evolve(CONFIG, requesters=5), settle=0.0)
    for number in range(20):
        net.ask(identity(1000 + number), net.peers[0], FindNode(target=STRANGER.peer_id))
    assert net.peers[0].stats["requests"]["requesters"] == 5


def test_who_asks_is_told_of_the_nearest_but_not_of_itself(net):
    peer, asker = net.peers[0], net.peers[1]
    answer = net.ask(asker.identity, peer, FindNode(target=asker.id))
    assert len(answer.peers) == CONFIG.k
    assert asker.id not in answer.peers
    assert list(answer.peers) == sorted(answer.peers, key=lambda other: xor_distance(other, asker.id))


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_good_value_is_stored_and_found(net):
    peer = holder(net)
    assert store(net, peer, record(net))
    answer = net.ask(STRANGER, peer, FindValue(key=key_id("key")))
    assert answer.record.payload == "value"


@pytest.mark.parametrize(
    ("what", "bad"),
    [
        ("signature", lambda net: structs.replace(record(net), signature=bytes(64))),
        ("value", lambda net: structs.replace(record(net), payload="forged")),
        ("encoding", lambda net: structs.replace(record(net, value='"json"'), encoding="json")),
        ("key", lambda net: structs.replace(record(net, key="other"), key=key_id("key"))),
        ("timestamp", lambda net: structs.replace(record(net), timestamp=int((EPOCH + net.now) * 1000) + 1)),
        ("ttl", lambda net: structs.replace(record(net), ttl=1_000_000)),
        ("publisher", lambda net: structs.replace(record(net), publisher_key=identity(5).public_key)),
        ("expired", lambda net: record(net, at=-700.0)),
        ("from the future", lambda net: record(net, at=CONFIG.clock_skew + 1)),
        ("lives too long", lambda net: record(net, ttl=CONFIG.max_ttl + 1)),
        ("too large", lambda net: record(net, value=b"x" * (CONFIG.max_value + 1))),
    ],
    ids=lambda thing: thing if isinstance(thing, str) else "",
)
def test_a_bad_value_is_refused_and_counted(net, what, bad):
    peer = holder(net)
    assert not store(net, peer, bad(net))
    assert (peer.stats["store"]["values"], peer.stats["requests"]["refused"]) == (0, 1)


def sign(net, **fields) -> DhtRecord:
    """A value that is signed well, whatever is in it."""
    bare = DhtRecord(
        key=key_id("key"),
        timestamp=int((EPOCH + net.now) * 1000),
        ttl=600_000,
        publisher_key=STRANGER.public_key,
        signature=bytes(64),
        **fields,
    )
    return structs.replace(bare, signature=STRANGER.sign(signed_bytes(bare, NETWORK)))


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": "{no json", "encoding": "json"},
        {"payload": "[" * 500 + "]" * 500, "encoding": "json"},
        {"payload": "text"},
        {"payload": "text", "blob": b"blob"},
        {"encoding": "text"},
    ],
    ids=str,
)
def test_a_value_that_is_none_is_refused_though_it_is_signed(net, fields):
    assert not store(net, holder(net), sign(net, **fields))


def test_an_older_value_does_not_replace_a_newer_one(net):
    peer = holder(net)
    assert store(net, peer, record(net, value="new"))
    assert not store(net, peer, record(net, value="old", at=-60.0))
    answer = net.ask(STRANGER, peer, FindValue(key=key_id("key")))
    assert answer.record.payload == "new"


def test_nobody_can_replace_the_value_of_another(net):
    peer, mallory = holder(net), identity(950)
    store(net, peer, record(net, value="mine"))
    store(net, peer, record(net, value="mallory's", by=mallory, at=1.0), by=mallory)
    answer = net.ask(mallory, peer, FindValue(key=key_id("key"), publisher=STRANGER.peer_id))
    assert answer.record.payload == "mine"


def test_a_stranger_can_not_make_a_holder_skip_its_turn(net):
    peer = holder(net)
    value = record(net)
    store(net, peer, value)
    net.run(60.0)
    strangers = [identity(number) for number in range(2000, 2050)]
    far = max(strangers, key=lambda one: xor_distance(one.peer_id, key_id("key")))
    ask = FindValue(key=key_id("key"), newer_than=value.timestamp)
    assert net.ask(far, peer, ask) == NodesFound(peers=tuple(net.closest(key_id("key"), 5)[1:]), same=True)
    assert peer.stats["republish"]["skipped"] == 0
    near = min(strangers, key=lambda one: xor_distance(one.peer_id, key_id("key")))
    net.ask(near, peer, ask)
    assert peer.stats["republish"]["skipped"] == 1, "a holder can"


def test_requests_and_answers_go_over_the_wire_as_they_are(net):
    messages = [
        FindNode(target=STRANGER.peer_id),
        FindValue(key=key_id("k"), publisher=STRANGER.peer_id, newer_than=5),
        NodesFound(record=record(net, value=b"x"), peers=made_up(STRANGER.peer_id)),
        NodesFound(same=True),
        StoreValue(record=record(net, value={"a": [1]})),
        ValueStored(held=True),
    ]
    for message in messages:
        assert decode(encode(message)) == message
        assert decode(encode(message, text=True)) == message


@pytest.mark.parametrize(
    "malformed",
    [
        {"type": "find_node"},
        {"type": "find_node", "target": "no id"},
        {"type": "find_value", "key": "a" * 41},
        {"type": "find_value", "key": "a" * 40, "newerThan": -1},
        {"type": "nodes_found", "peers": ["a" * 40] * 65},
        {"type": "nodes_found", "record": []},
        {"type": "store_value"},
        {"type": "value_stored", "held": "yes"},
    ],
    ids=str,
)
def test_what_is_malformed_is_the_senders_fault(malformed):
    with pytest.raises(RemoteProtocolError):
        decode(json.dumps(malformed).encode())


def test_nothing_a_peer_sends_raises():
    """Every request with every combination of the fields it may have, and every answer."""
    net = DhtNet(20, config=attrs.evolve(CONFIG, request_burst=10_000))
    peer = net.peers[0]
    ids = [peer.id, STRANGER.peer_id, PeerId("0" * 40)]
    messages = [
        *(FindNode(target=target) for target in ids),
        *(
            FindValue(key=key, publisher=publisher, newer_than=newer_than)
            for key in ids
            for publisher in (None, *ids)
            for newer_than in (None, 0, (1 << 53) - 1)
        ),
        StoreValue(record=record(net)),
        NodesFound(peers=made_up(peer.id), record=record(net), same=True),
        ValueStored(),
    ]
    for message in messages:
        net.ask(STRANGER, peer, message)
    assert all(isinstance(effect, Notify) for effect in peer.core.expire(net.now))
