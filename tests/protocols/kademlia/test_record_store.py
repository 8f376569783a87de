"""What a peer holds for others: each bound, driven to it."""

import attrs
import pytest

from p2pmesh.config import KademliaConfig, MeshConfig
from p2pmesh.errors import ConfigError
from p2pmesh.identity import Identity, SignatureMemo
from p2pmesh.keyspace import PeerId, xor_distance
from p2pmesh.protocols.kademlia.record_store import RecordStore, StoreResult
from p2pmesh.protocols.kademlia.records import DELETED, VerifiedRecord, key_id, sign_record
from tests.harness.kademlia import TOLD_AFTER, DhtNet
from tests.harness.virtual_time import NETWORK, identity

ME = PeerId("0" * 40)
CONFIG = KademliaConfig(stored_values=8, publisher_values=3, key_values=2, publisher_bytes=4096, stored_bytes=8192)


@pytest.fixture(autouse=True)
def _memo():
    with SignatureMemo():
        yield


def value(
    key: str, by: Identity, *, size: int = 10, timestamp: int = 1000, ttl: float = 100.0, near: PeerId | None = None
) -> VerifiedRecord:
    return sign_record(by, near or key_id(key), b"x" * size, timestamp, ttl, KademliaConfig(), NETWORK)


@pytest.fixture
def store():
    return RecordStore(ME, CONFIG, lambda now: now + 1.0)


def fill(store: RecordStore, count: int, *, size: int = 10) -> list[VerifiedRecord]:
    values = [value(f"key {number}", identity(number), size=size) for number in range(count)]
    for one in values:
        assert store.put(one, 0.0) is StoreResult.NEW
    return values


def test_a_newer_value_replaces_an_older_one_and_not_the_other_way(store):
    alice = identity(1)
    old, new = value("key", alice, timestamp=1), value("key", alice, timestamp=2, size=20)
    assert store.put(old, 0.0) is StoreResult.NEW
    assert store.put(old, 0.0) is StoreResult.KNOWN
    assert store.put(new, 0.0) is StoreResult.NEW
    assert store.put(old, 0.0) is StoreResult.OUTDATED
    assert (len(store), store.size) == (1, 20)


def test_a_publisher_has_so_many_values_and_no_more(store):
    alice, bob = identity(1), identity(2)
    results = [store.put(value(f"key {number}", alice), 0.0) for number in range(4)]
    assert results == [StoreResult.NEW] * 3 + [StoreResult.PUBLISHER_FULL]
    assert store.put(value("key 0", alice, timestamp=2000), 0.0) is StoreResult.NEW
    assert store.put(value("key 9", bob), 0.0) is StoreResult.NEW


def test_a_publisher_has_so_many_bytes_and_no_more(store):
    alice = identity(1)
    assert store.put(value("a", alice, size=4000), 0.0) is StoreResult.NEW
    assert store.put(value("b", alice, size=97), 0.0) is StoreResult.PUBLISHER_FULL
    assert store.put(value("b", alice, size=96), 0.0) is StoreResult.NEW
    assert store.put(value("b", alice, size=97, timestamp=2000), 0.0) is StoreResult.PUBLISHER_FULL


def test_a_key_has_so_many_publishers_and_no_more(store):
    results = [store.put(value("key", identity(number)), 0.0) for number in range(3)]
    assert results == [StoreResult.NEW, StoreResult.NEW, StoreResult.KEY_FULL]


def test_when_it_is_full_the_farthest_gives_way_to_what_is_nearer(store):
    values = fill(store, 8)
    ranked = sorted(values, key=lambda one: xor_distance(ME, one.record.key))
    keys = sorted((f"new {number}" for number in range(50)), key=lambda key: xor_distance(ME, key_id(key)))
    assert store.put(value(keys[-1], identity(30)), 0.0) is StoreResult.FULL
    assert store.put(value(keys[0], identity(31)), 0.0) is StoreResult.NEW
    assert len(store) == 8
    assert store.first(ranked[-1].record.key, 0.0) is None
    assert store.first(ranked[0].record.key, 0.0) is not None


def test_what_is_just_as_far_does_not_give_way(store):
    values = fill(store, 8)
    farthest = max(values, key=lambda one: xor_distance(ME, one.record.key))
    same_key = sign_record(identity(60), farthest.record.key, b"x", 1000, 100.0, KademliaConfig(), NETWORK)
    assert store.put(same_key, 0.0) is StoreResult.FULL


def test_bytes_are_bounded_too_and_several_may_have_to_give_way(store):
    fill(store, 8, size=1000)
    near = min((f"new {number}" for number in range(200)), key=lambda key: xor_distance(ME, key_id(key)))
    assert store.put(value(near, identity(31), size=4000), 0.0) is StoreResult.NEW
    assert store.size <= CONFIG.stored_bytes
    assert len(store) == 5


def test_nothing_is_given_up_for_what_does_not_fit_anyway(store):
    fill(store, 8, size=1000)
    far = max((f"new {number}" for number in range(200)), key=lambda key: xor_distance(ME, key_id(key)))
    assert store.put(value(far, identity(31), size=4000), 0.0) is StoreResult.FULL
    assert len(store) == 8


def test_what_has_expired_is_forgotten_with_all_that_was_counted_of_it(store):
    fill(store, 3)
    later = value("later", identity(0), ttl=200.0)
    store.put(later, 0.0)
    assert store.next_deadline() == 100.0
    store.expire(100.0)
    assert [one.verified for one in store] == [later]
    store.expire(200.0)
    assert (len(store), store.size, list(store)) == (0, 0, [])
    for number in range(3):  # nor is anything left of what its publisher had
        assert store.put(value(f"new {number}", identity(0), size=1300), 0.0) is StoreResult.NEW


def test_only_the_latest_of_our_own_values_are_seen_to():
    net = DhtNet(5)
    peer = net.add(config=KademliaConfig(publications=3, stored_values=1))
    net.run(10.0)
    for number in range(5):
        net.outcome(peer, net.put(peer, str(number), number))
    assert peer.stats["republish"]["published"] == 3
    asks = []
    for number in range(5):
        before = peer.stats["rpc"]["sent"]
        assert net.outcome(peer, net.get(peer, str(number), peer.id)).value == number
        asks.append(peer.stats["rpc"]["sent"] > before)
    assert asks[2:] == [False] * 3, "these it has itself"
    assert any(asks[:2])


def test_what_gives_way_is_not_seen_to_any_more():
    net = DhtNet(3)
    peer = net.add(config=KademliaConfig(stored_values=4))
    net.run(10.0)
    for number in range(20):
        net.outcome(net.peers[1], net.put(net.peers[1], str(number), number))
    assert peer.stats["store"]["values"] == 4
    assert peer.stats["republish"]["turns"] == 4


def test_handovers_that_wait_are_bounded():
    net = DhtNet(3, config=KademliaConfig(handovers=5))
    peer = net.peers[0]
    for number in range(12):
        net.outcome(peer, net.put(peer, str(number), number))
    net.add(link=peer)
    net.run(TOLD_AFTER)
    assert peer.stats["republish"]["handovers"] == 5
    assert peer.stats["republish"]["handovers_dropped"] == 7


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"k": 65}, {"alpha": 0}, {"max_value": 64 * 1024 + 1}, {"ttl": 8 * 86_400.0}, {"quorum": 0}]
)
def test_configs_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        KademliaConfig(**wrong)


def test_the_edges_of_the_config_are_taken():
    attrs.evolve(MeshConfig(), kademlia=KademliaConfig(k=64, max_value=64 * 1024, ttl=7 * 86_400.0))


# --- many new publishers, and places near us --------------------------------------------------------------------------

CROWDED = KademliaConfig(stored_values=64, stored_bytes=64 * 4096, publisher_values=8, max_value=4096)
HOUR = CROWDED.republish


def crowd() -> RecordStore:
    return RecordStore(ME, CROWDED, lambda now: now + 1.0)


def at(place: int) -> PeerId:
    """A place so far from us."""
    return PeerId(f"{place:040x}")


def lasting(by: Identity, place: int, size: int = 10) -> VerifiedRecord:
    return value("", by, size=size, ttl=86_400.0, near=at(place))


FAR = 1 << 159
"""From here on honest values lie; nearer to us, what was ground."""


def test_who_has_much_displaces_nothing_of_those_who_have_little():
    store = crowd()
    honest = [lasting(identity(number), FAR + number) for number in range(10)]
    for one in honest:
        assert store.put(one, 0.0) is StoreResult.NEW
    for place in range(160):
        store.put(lasting(identity(100 + place // 8), 1 + place), 1.0)
    assert len(store) == 64
    assert all(store.get((one.record.key, one.publisher)) for one in honest)


def test_into_a_store_full_of_a_few_publishers_values_others_still_come():
    store = crowd()
    for place in range(64):
        assert store.put(lasting(identity(100 + place // 8), 1 + place), 0.0) is StoreResult.NEW
    honest = [lasting(identity(number), FAR + number, size=4000) for number in range(10)]
    for one in honest:
        assert store.put(one, 1.0) is StoreResult.NEW
    assert all(store.get((one.record.key, one.publisher)) for one in honest)
    shares = [sum(one.verified.publisher == identity(100 + number).peer_id for one in store) for number in range(8)]
    assert max(shares) - min(shares) <= 1, "who has most gives way"


def test_what_was_there_for_an_hour_is_displaced_by_nothing_that_is_only_nearer():
    store = crowd()
    old = [lasting(identity(number), FAR + number) for number in range(60)]
    for one in old:
        store.put(one, 0.0)
    new = [lasting(identity(number), FAR + number) for number in range(60, 64)]
    for one in new:
        store.put(one, HOUR)
    flood = [lasting(identity(1000 + number), 1 + number) for number in range(100)]
    results = [store.put(one, HOUR + 1.0) for one in flood]
    assert all(store.get((one.record.key, one.publisher)) for one in old)
    assert results.count(StoreResult.NEW) == len(new), "new ones give way to nearer ones"
    assert {store.put(one, HOUR + 2.0) for one in new} == {StoreResult.FULL}


def test_one_large_value_is_no_more_than_many_small_ones_of_others():
    store = crowd()
    large = lasting(identity(1), FAR, size=4096)
    store.put(large, 0.0)
    for number in range(200):
        store.put(lasting(identity(100 + number), 1 + number), HOUR)
    assert store.get((large.record.key, large.publisher)) is not None


def test_a_publisher_that_has_most_may_renew_what_it_has_in_a_full_store():
    store = crowd()
    for place in range(64):
        store.put(lasting(identity(100 + place // 8), 1 + place), 0.0)
    newer = value("", identity(100), timestamp=2000, ttl=86_400.0, near=at(1))
    assert store.put(newer, 1.0) is StoreResult.NEW
    assert len(store) == 64


def test_what_was_deleted_gives_way_to_one_more_publisher_under_a_full_key():
    store = RecordStore(ME, CONFIG, lambda now: now + 1.0)
    deletion = sign_record(identity(1), key_id("key"), DELETED, 1000, 100.0, KademliaConfig(), NETWORK)
    assert store.put(deletion, 0.0) is StoreResult.NEW
    assert [store.put(value("key", identity(number)), 0.0) for number in (2, 3)] == [StoreResult.NEW] * 2
    assert store.put(value("key", identity(4)), 0.0) is StoreResult.KEY_FULL
    assert store.publishers(key_id("key"), 0.0) == [identity(2).peer_id, identity(3).peer_id]


def test_what_a_publisher_has_that_is_no_value_any_more_takes_no_room_from_its_values():
    """A liar can make us remember for days what we replaced, so that must cost us nothing."""
    store = RecordStore(ME, CONFIG, lambda now: now + 1.0)
    for number in range(CONFIG.publisher_values):
        kept = sign_record(
            identity(1), key_id(f"old {number}"), b"x", 1000, 1.0, KademliaConfig(), NETWORK, kept=86_400.0
        )
        assert store.put(kept, 0.0) is StoreResult.NEW
    assert store.put(value("new", identity(1)), 0.5) is StoreResult.PUBLISHER_FULL
    assert store.put(value("new", identity(1)), 1.5) is StoreResult.NEW
    assert len(store) == 1
