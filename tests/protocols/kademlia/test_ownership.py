"""Whose value it is: keys that one peer owns, keys that all share, and values that were taken back.

What others publish, replay, forge or date wrongly changes nothing for those whose value it is.
"""

import attrs
import pytest
from msgspec import structs

from p2pmesh.config import KademliaConfig
from p2pmesh.errors import KeyFull, PeerRefused
from p2pmesh.identity import Identity, SignatureMemo
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.kademlia import records
from p2pmesh.protocols.kademlia.records import DELETED, key_id, owned_id, sign_record
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.overlay import DhtRecord, FindValue, NodesFound, StoreValue, ValueStored
from tests.harness.kademlia import DhtNet, Peer
from tests.harness.virtual_time import NETWORK, identity

CONFIG = KademliaConfig(k=6)
KEY = "key"
PLACE = key_id(KEY)
MALLORY = identity(900)
ANYTHING = KademliaConfig(max_ttl=1e9, max_value=64 * 1024)


@pytest.fixture(autouse=True)
def _memo():
    with SignatureMemo():
        yield


@pytest.fixture
def net():
    return DhtNet(24, config=CONFIG)


def record(
    net: DhtNet,
    by: Identity = MALLORY,
    value="mallory's",
    *,
    place: PeerId = PLACE,
    at=0.0,
    ttl=600.0,
    name: PeerId | None = None,
    network: bytes = NETWORK,
) -> DhtRecord:
    timestamp = int((EPOCH + net.now + at) * 1000)
    return sign_record(by, place, value, timestamp, ttl, ANYTHING, network, name=name).record


def store(peer: Peer, net: DhtNet, value: DhtRecord, by: Identity = MALLORY) -> ValueStored:
    answer = net.ask(by, peer, StoreValue(record=value))
    assert isinstance(answer, ValueStored)
    return answer


def store_everywhere(net: DhtNet, value: DhtRecord, by: Identity = MALLORY) -> list[ValueStored]:
    return [store(peer, net, value, by) for peer in net.living()]


def held(net: DhtNet, publisher: PeerId, place: PeerId = PLACE) -> list[DhtRecord]:
    """What the peers have of this publisher, one each."""
    asks = [net.ask(MALLORY, peer, FindValue(key=place, publisher=publisher)) for peer in net.living()]
    return [answer.record for answer in asks if isinstance(answer, NodesFound) and answer.record is not None]


def near(net: DhtNet, place: PeerId) -> Peer:
    return net.by_id[net.closest(place)[0]]


# --- owned keys -------------------------------------------------------------------------------------------------------


def test_a_value_under_an_owned_key_is_its_owners_alone(net):
    alice, bob = net.peers[0], net.peers[9]
    assert net.outcome(alice, net.put(alice, KEY, "mine", owned=True)) == CONFIG.k
    assert net.outcome(bob, net.put(bob, KEY, "bob's", owned=True)) == CONFIG.k
    for reader in net.peers[:12]:
        found = net.outcome(reader, net.get(reader, KEY, owner=alice.id))
        assert (found.value, found.publisher, found.rule) == ("mine", alice.id, "owner")
    assert net.outcome(bob, net.get(bob, KEY)) is None, "the shared key of that name is another one"
    place = owned_id(alice.id, PLACE)
    assert {peer.id for peer in net.peers if peer.core.snapshot()["store"]["values"]} >= set(net.closest(place))


def test_nobody_else_can_write_under_an_owned_key_or_fill_it(net):
    alice, reader = net.peers[0], net.peers[9]
    place = owned_id(alice.id, PLACE)
    forged = record(net, place=place, name=PLACE)
    assert {(one.held, one.reason) for one in store_everywhere(net, forged)} == {
        (False, "the key is owned by another peer")
    }
    for number in range(2 * CONFIG.key_values):  # under the same place, as if it were a shared key's
        throwaway = identity(1000 + number)
        store_everywhere(net, record(net, throwaway, place=place, at=200.0), throwaway)
    assert net.outcome(alice, net.put(alice, KEY, "mine", owned=True)) == CONFIG.k
    assert net.outcome(reader, net.get(reader, KEY, owner=alice.id)).value == "mine"


def test_a_reader_believes_no_holder_that_gives_anothers_value_for_an_owned_one(net):
    alice, reader = net.peers[0], net.peers[9]
    place = owned_id(alice.id, PLACE)
    net.outcome(alice, net.put(alice, KEY, "mine", owned=True))
    lies = [
        record(net, place=place, name=PLACE),
        record(net, place=place, at=100.0),
        record(net, alice.identity, "of another key", place=owned_id(alice.id, key_id("other")), name=key_id("other")),
        record(net, alice.identity, "of another mesh", place=place, name=PLACE, network=b"another"),
        structs.replace(record(net, alice.identity, "forged", place=place, name=PLACE), payload="for sure"),
    ]
    liars = [peer for peer in net.closest(place) if peer not in {alice.id, reader.id}][: len(lies) - 1]
    for liar, lie in zip(liars, lies, strict=False):
        net.by_id[liar].lies = lambda asker, request, lie=lie: NodesFound(record=lie)
    assert net.outcome(reader, net.get(reader, KEY, owner=alice.id)).value == "mine"
    assert reader.stats["lookups"]["bad_records"] == len(liars)


# --- shared keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.0, CONFIG.clock_skew - 1, -500.0], ids=["now", "from the future", "dated back"])
def test_no_clock_wins_a_shared_key(net, at):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "alice's"))
    net.run(10.0)
    store_everywhere(net, record(net, at=at))
    found = net.outcome(reader, net.get(reader, KEY))
    assert (found.value, found.publisher, found.rule) == ("alice's", alice.id, "first")
    assert net.outcome(reader, net.get(reader, KEY, MALLORY.peer_id)).value == "mallory's", "which is there"


def test_who_was_first_stays_first_with_a_new_value_and_after_all_holders_were_replaced(net):
    alice, bob = net.peers[:2]
    net.outcome(alice, net.put(alice, KEY, "old"))
    net.outcome(bob, net.put(bob, KEY, "bob's"))
    net.outcome(alice, net.put(alice, KEY, "new"))
    for peer in [one for one in net.peers[2:] if one.id in net.closest(PLACE, 12)]:
        net.add()
        net.run(20.0)
        net.kill(peer)
        net.run(20.0)
    reader = net.peers[-1]
    assert net.outcome(reader, net.get(reader, KEY)).value == "new"


def test_holders_that_put_their_own_first_are_outvoted():
    net = DhtNet(30, config=KademliaConfig(k=10))
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, KEY, "alice's"))
    lie = record(net, at=100.0)
    liars = net.closest(PLACE)[1:10:4]  # three of ten
    for liar in liars:
        if liar != alice.id:
            net.by_id[liar].lies = lambda asker, request: NodesFound(peers=tuple(liars), record=lie)
    for reader in net.living():
        if reader.lies is None:
            assert net.outcome(reader, net.get(reader, KEY)).value == "alice's"


def test_all_values_under_a_shared_key_are_found_by_their_publishers(net):
    publishers = net.peers[:5]
    for number, peer in enumerate(publishers):
        net.outcome(peer, net.put(peer, KEY, {"number": number}))
    for reader in (net.peers[2], net.peers[12]):
        found = net.outcome(reader, net.get_all(reader, KEY))
        assert {who: value.value["number"] for who, value in found.items()} == {
            peer.id: number for number, peer in enumerate(publishers)
        }
        assert {value.rule for value in found.values()} == {"publisher"}
    assert net.outcome(reader, net.get_all(reader, "nothing")) == {}
    assert reader.stats["calls"]["open"] == 0


def test_publishers_that_liars_name_cost_a_reader_no_more_than_a_full_key():
    net = DhtNet(24, config=attrs.evolve(CONFIG, key_values=4))
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "alice's"))
    for number, liar in enumerate(net.closest(PLACE)[:2]):
        if liar not in {alice.id, reader.id}:
            named = tuple(identity(2000 + 64 * number + one).peer_id for one in range(64))
            net.by_id[liar].lies = lambda asker, request, named=named: NodesFound(publishers=named)
    before = reader.stats["lookups"]["done"]
    found = net.outcome(reader, net.get_all(reader, KEY), within=200.0)
    assert list(found) == [alice.id]
    assert reader.stats["lookups"]["done"] - before <= 1 + 4


def test_a_cancelled_get_all_leaves_nothing_behind(net):
    for peer in net.peers[:3]:
        net.outcome(peer, net.put(peer, KEY, "value"))
    reader = net.peers[9]
    for lookups in (1, 2):  # while it looks for the publishers, and while it looks for their values
        call = net.get_all(reader, KEY)
        while reader.stats["lookups"]["running"] < lookups:
            net.step()
        assert call not in reader.replies
        net.forget(reader, call)
        stats = reader.stats
        assert (stats["calls"]["open"], stats["lookups"]["running"], stats["rpc"]["pending"]) == (0, 0, 0)


def test_a_full_shared_key_is_an_error_of_its_own_that_names_the_way_out():
    net = DhtNet(24, config=attrs.evolve(CONFIG, key_values=3))
    for number in range(3):
        store_everywhere(net, record(net, identity(1000 + number)), identity(1000 + number))
    alice = net.peers[0]
    with pytest.raises(KeyFull, match=r"3 publishers have a value under it; .*owned=True") as raised:
        net.outcome(alice, net.put(alice, KEY, "late"))
    assert isinstance(raised.value, PeerRefused)
    assert net.outcome(alice, net.put(alice, KEY, "late", owned=True)) == CONFIG.k


def test_one_liar_that_says_full_is_not_believed(net):
    alice = net.peers[0]
    for liar in net.closest(PLACE)[:2]:
        net.by_id[liar].lies = lambda asker, request: (
            ValueStored(reason="full", full=True) if isinstance(request, StoreValue) else NodesFound()
        )
    assert net.outcome(alice, net.put(alice, KEY, "value")) >= CONFIG.k - 2


# --- sequence numbers, and values that are taken back -----------------------------------------------------------------


def test_a_value_that_was_deleted_is_gone_and_no_relay_brings_it_back(net):
    alice, reader = net.peers[0], net.peers[9]
    for owned, place in ((False, PLACE), (True, owned_id(alice.id, PLACE))):
        net.outcome(alice, net.put(alice, KEY, "regretted", owned=owned))
        old = held(net, alice.id, place)[0]
        assert net.outcome(alice, net.delete(alice, KEY, owned=owned)) == CONFIG.k
        owner = alice.id if owned else None
        assert net.outcome(reader, net.get(reader, KEY, owner=owner)) is None
        assert net.outcome(alice, net.get(alice, KEY, alice.id, owner=owner)) is None
        late = net.add()
        net.run(20.0)
        store_everywhere(net, old)
        for one in (reader, late):
            assert net.outcome(one, net.get(one, KEY, alice.id, owner=owner)) is None
    assert net.outcome(reader, net.get_all(reader, KEY)) == {}
    net.run(2 * 86_400.0)  # the value would have expired by now
    assert net.outcome(reader, net.get(reader, KEY)) is None


def test_what_is_put_after_a_deletion_counts(net):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, 1))
    net.outcome(alice, net.delete(alice, KEY))
    net.outcome(alice, net.put(alice, KEY, 2))
    assert net.outcome(reader, net.get(reader, KEY)).value == 2


def test_an_earlier_run_s_value_is_deleted_by_a_later_run(net):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "old", owned=True))
    net.restart(alice)
    net.run(5.0)
    net.outcome(alice, net.delete(alice, KEY, owned=True))
    assert net.outcome(reader, net.get(reader, KEY, owner=alice.id)) is None


def test_the_next_publisher_is_first_once_the_first_has_deleted_his(net):
    alice, bob, reader = net.peers[0], net.peers[5], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "alice's"))
    net.outcome(bob, net.put(bob, KEY, "bob's"))
    net.outcome(alice, net.delete(alice, KEY))
    assert net.outcome(reader, net.get(reader, KEY)).value == "bob's"


def test_nobody_deletes_the_value_of_another(net):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "alice's"))
    net.outcome(alice, net.put(alice, KEY, "alice's", owned=True))
    place = owned_id(alice.id, PLACE)
    store_everywhere(net, record(net, MALLORY, DELETED, at=1.0))
    in_her_name = structs.replace(record(net, MALLORY, DELETED, at=1.0), publisher_key=alice.identity.public_key)
    assert not any(answer.held for answer in store_everywhere(net, in_her_name))
    store_everywhere(net, record(net, MALLORY, DELETED, place=place, at=1.0))
    assert net.outcome(reader, net.get(reader, KEY)).value == "alice's"
    assert net.outcome(reader, net.get(reader, KEY, owner=alice.id)).value == "alice's"


def test_a_short_lived_value_keeps_the_long_lived_one_that_it_replaced_from_coming_back(net):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "long", ttl=86_400.0))
    old = held(net, alice.id)[0]
    net.outcome(alice, net.put(alice, KEY, "short", ttl=60.0))
    late = net.add()
    net.run(100.0)
    store_everywhere(net, old)
    assert not any(store(net.by_id[holder], net, old).held for holder in net.closest(PLACE))
    for one in (reader, late, alice):
        assert net.outcome(one, net.get(one, KEY)) is None


def test_a_holder_keeps_the_long_lived_one_away_though_its_publisher_forgot_it(net):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "long", ttl=86_400.0))
    old = held(net, alice.id)[0]
    net.restart(alice)
    net.run(5.0)
    net.outcome(alice, net.put(alice, KEY, "short", ttl=60.0))
    net.run(100.0)
    store_everywhere(net, old)
    assert net.outcome(reader, net.get(reader, KEY)) is None


def test_of_two_values_with_one_number_the_one_that_is_there_stays(net):
    peer = near(net, PLACE)
    first, second = record(net, value="first"), record(net, value="second")
    assert store(peer, net, first).held
    assert not store(peer, net, second).held
    assert net.value_at(peer, PLACE) == first


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_what_is_refused_or_here_already_costs_no_signature_check(net, monkeypatch):
    checked: list[DhtRecord] = []

    def check(value: DhtRecord, network: bytes) -> None:
        checked.append(value)

    monkeypatch.setattr("p2pmesh.protocols.kademlia.kademlia.check_signature", check)
    peer = near(net, PLACE)
    for number in range(CONFIG.key_values):
        store(peer, net, record(net, identity(1000 + number)), identity(1000 + number))
    known = record(net, identity(1000), at=1.0)
    assert store(peer, net, known).held
    checked.clear()
    assert store(peer, net, known).held
    refused = [
        record(net, identity(1000)),  # outdated
        record(net, identity(1500), at=CONFIG.clock_skew + 5),
        record(net, identity(1501)),  # the key is full
        record(net, identity(1502), "x" * 20_000),
        record(net, identity(1503), at=-700.0),
        record(net, identity(1504), ttl=1e8),
        record(net, identity(1505), place=owned_id(MALLORY.peer_id, PLACE), name=PLACE),
    ]
    for number, value in enumerate(refused):
        assert not store(peer, net, value, identity(1600 + number)).held
    assert checked == []


def test_a_value_that_all_holders_give_is_checked_once(net, monkeypatch):
    alice, reader = net.peers[0], net.peers[9]
    net.outcome(alice, net.put(alice, KEY, "value"))
    checked = []
    monkeypatch.setattr(
        "p2pmesh.protocols.kademlia.lookup.check_signature", lambda value, network: checked.append(value)
    )
    assert net.outcome(reader, net.get(reader, KEY, alice.id)).value == "value"
    assert len(checked) == 1


def test_who_sends_a_value_again_and_again_does_not_keep_its_holders_from_seeing_to_it(net):
    alice = net.peers[0]
    net.outcome(alice, net.put(alice, KEY, "value"))
    value = held(net, alice.id)[0]
    strangers = [identity(number) for number in range(3000, 3050)]
    far = max(strangers, key=lambda one: xor_distance(one.peer_id, PLACE))
    peer = near(net, PLACE)
    skipped = peer.stats["republish"]["skipped"]
    for _ in range(5):
        assert store(peer, net, value, far).held
        net.run(60.0)
    assert peer.stats["republish"]["skipped"] == skipped


def test_each_field_of_a_record_is_signed(net):
    value = record(net, value="value", name=PLACE, place=owned_id(MALLORY.peer_id, PLACE))
    records.check_signature(value, NETWORK)
    changes = {
        "key": PLACE,
        "payload": "other",
        "encoding": "json",
        "blob": b"value",
        "timestamp": value.timestamp + 1,
        "ttl": value.ttl + 1,
        "publisher_key": identity(5).public_key,
        "name": None,
        "kept": 1,
    }
    assert set(changes) | {"signature"} == set(DhtRecord.__struct_fields__)
    for name, change in changes.items():
        with pytest.raises(records.BadRecord):
            records.check_signature(structs.replace(value, **{name: change}), NETWORK)


def test_a_record_of_another_mesh_is_held_by_nobody(net):
    assert not any(answer.held for answer in store_everywhere(net, record(net, network=b"another")))


def test_a_holder_that_lies_about_an_older_value_changes_neither_a_put_nor_how_long_it_lives(net):
    alice, reader = net.peers[0], net.peers[9]
    for liar in net.closest(PLACE)[:2]:
        net.by_id[liar].lies = lambda asker, request: (
            ValueStored(held=True) if isinstance(request, StoreValue) else NodesFound(older_until=(1 << 53) - 1)
        )
    assert net.outcome(alice, net.put(alice, KEY, "value", ttl=60.0)) == CONFIG.k
    assert net.outcome(reader, net.get(reader, KEY)).value == "value"
    assert {one.kept / 1000 <= CONFIG.max_ttl for one in held(net, alice.id)} == {True}
    net.run(61.0)
    assert net.outcome(reader, net.get(reader, KEY)) is None
    assert net.outcome(alice, net.get(alice, KEY)) is None
