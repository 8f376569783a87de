"""One lookup, step by step: it comes nearer, ends, and can't be held up."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import ID_BITS, PeerId, xor_distance
from p2pmesh.protocols.kademlia.lookup import LIES, Lookup
from p2pmesh.protocols.kademlia.routing_table import CROWD, RoutingTable

TARGET = PeerId("0" * 40)
ME = PeerId("f" * 40)


def peer(distance: int) -> PeerId:
    return PeerId(f"{distance:040x}")


def lookup(*contacts: int, k: int = 3, alpha: int = 2) -> Lookup:
    new = Lookup(TARGET, ME, k, alpha)
    for contact in contacts:
        new.add_contact(peer(contact))
    return new


def run(search: Lookup, answers, limit: int = 10_000) -> None:
    """Let everybody who is asked answer what `answers` says; None for silence."""
    for _ in range(limit):
        asked = search.ask()
        if not asked:
            break
        for one in asked:
            named = answers(one)
            if named is None:
                search.failed(one)
            else:
                search.answered(one, named)
    assert search.is_done


def test_without_contacts_it_is_done_at_once():
    assert lookup().is_done
    assert lookup().closest == []


def test_it_asks_alpha_peers_at_once_the_nearest_first():
    search = lookup(90, 70, 80)
    assert search.ask() == [peer(70), peer(80)]
    assert search.ask() == []


def test_once_nothing_comes_nearer_all_the_k_nearest_are_asked_at_once():
    search = lookup(10, 20, 30, 40, 50, k=5, alpha=2)
    assert search.ask() == [peer(10), peer(20)]
    search.answered(peer(10))
    assert search.ask() == [peer(30)]
    search.answered(peer(20))
    assert search.ask() == [peer(40), peer(50)]


def test_where_all_answer_nobody_but_the_k_nearest_is_asked():
    search = lookup(*range(10, 200, 10), k=3)
    run(search, lambda one: [peer(number) for number in range(10, 200, 10)])
    assert search.asked == 3
    assert search.closest == [peer(10), peer(20), peer(30)]


def test_for_each_peer_that_is_dead_one_more_is_asked():
    search = lookup(*range(10, 200, 10), k=3)
    dead = {peer(10), peer(30)}
    run(search, lambda one: None if one in dead else [])
    assert search.asked == 5
    assert search.closest == [peer(20), peer(40), peer(50)]


def test_it_ends_when_the_k_nearest_that_answer_have_answered():
    search = lookup(10, 20, 30, 40)
    dead = {peer(10)}
    run(search, lambda one: None if one in dead else [])
    assert search.closest == [peer(20), peer(30), peer(40)]


def test_a_peer_that_names_itself_or_us_does_not_hold_it_up():
    search = lookup(10, 20, 30)
    run(search, lambda one: [one, ME])
    assert search.closest == [peer(10), peer(20), peer(30)]
    assert search.asked == 3


def test_made_up_ids_die_out():
    liar = peer(50)
    made_up = [peer(number) for number in range(1, 9)]
    honest = [peer(20), peer(30), peer(40)]
    search = lookup(20, 30, 50, k=3)
    run(search, lambda one: made_up if one == liar else None if one in made_up else honest)
    assert search.closest == honest


def test_who_names_many_ids_that_do_not_answer_is_not_listened_to_any_more():
    liar = peer(100)
    search = lookup(100, k=20)
    asked_dead = []

    def answers(one):
        if one == liar:
            return [peer(number) for number in range(1, 40)]
        asked_dead.append(one)
        return None

    run(search, answers)
    assert LIES <= len(asked_dead) <= LIES + 1, "with two at once, one more may be under way"
    assert search.closest == [liar]


def test_what_an_honest_peer_names_is_asked_though_a_liar_names_it_too():
    liar, honest = peer(100), peer(110)
    search = lookup(100, 110, k=20)
    real = peer(99)
    dead = [peer(number) for number in range(1, 15)]
    run(search, lambda one: [*dead, real] if one == liar else [real] if one == honest else None if one in dead else [])
    assert search.closest == [real, liar, honest]


def test_a_peer_that_names_nearer_and_nearer_ids_for_ever_ends_at_the_bound():
    search = lookup(1 << 159, k=3)
    run(search, lambda one: [peer(max(int(one, 16) - 1 - number, 1)) for number in range(3)])
    assert search.asked == 60


def test_an_answer_nobody_waits_for_changes_nothing():
    search = lookup(10)
    search.ask()
    search.answered(peer(10), [])
    search.answered(peer(10), [peer(1)])
    assert search.is_done
    search.failed(peer(77))
    assert search.closest == [peer(10)]


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.integers(30, 120), st.sampled_from([0, 0, 0.2, 0.4]))
def test_with_full_buckets_the_true_nearest_that_live_are_found(seed, size, dying):
    rng = random.Random(seed)
    k = 8
    peers = [peer(rng.getrandbits(ID_BITS)) for _ in range(size)]
    dead = {one for one in peers if rng.random() < dying}
    living = [one for one in peers if one not in dead]
    if not living:
        return

    tables = {one: RoutingTable(one, KademliaConfig(k=k)) for one in living}
    for table in tables.values():
        for other in rng.sample(peers, size):
            table.heard(other, 0.0)
    search = Lookup(TARGET, ME, k, 3)
    for one in rng.sample(living, min(5, len(living))):
        search.add_contact(one)
    run(search, lambda one: None if one in dead else tables[one].closest(TARGET, k, 0.0))
    found = search.closest
    assert set(found) <= set(living)
    assert search.asked <= 60
    if not dead:
        assert found == sorted(peers, key=lambda one: xor_distance(one, TARGET))[:k]


def test_of_what_a_peer_names_only_the_first_k_count():
    """A peer may name at most k: otherwise one answer would make us ask many."""
    search = lookup(100, k=3, alpha=3)
    search.ask()
    search.answered(peer(100), [peer(number) for number in range(90, 80, -1)])
    assert search.ask() == [peer(88), peer(89), peer(90)]


# --- paths, and crowds ------------------------------------------------------------------------------------------------


def test_a_liar_holds_up_its_own_path_only():
    search = lookup(100, 110, k=8)
    assert search.ask() == [peer(100), peer(110)]
    search.answered(peer(110), [peer(60), peer(70)])
    search.answered(peer(100), [peer(number) for number in range(1, 6)])
    assert search.ask() == [peer(1), peer(60)], "one that it named, and one of another path"
    search.answered(peer(60), [peer(50), peer(1)])
    assert search.ask() == [peer(50)]
    search.failed(peer(1))
    assert search.ask() == [peer(2)], "its own goes on"


def test_each_peer_is_asked_once_and_on_one_path():
    rng = random.Random(3)
    peers = [peer(rng.getrandbits(ID_BITS)) for _ in range(200)]
    search = Lookup(TARGET, ME, 20, 3)
    for one in peers[:6]:
        search.add_contact(one)
    asked = []
    while batch := search.ask():
        asked += batch
        for one in batch:
            search.answered(one, sorted(rng.sample(peers, 40))[:20])
    assert len(asked) == len(set(asked)) == search.asked


def test_ids_that_were_ground_keep_nobody_else_out():
    step = 1 << 150
    ground = [peer(1 + number) for number in range(60)]
    honest = [peer(step * (1 + number)) for number in range(40)]
    search = Lookup(TARGET, ME, 20, 3, density=1 / step)
    for one in honest[-6:]:
        search.add_contact(one)
    run(search, lambda one: ground[:20] if one in ground else [*ground[:CROWD], *honest[:15]])
    assert len(search.closest) == 20
    assert search.closest[:CROWD] == ground[:CROWD]
    assert search.closest[CROWD:] == honest[:15]


def test_where_nobody_else_is_the_whole_crowd_counts():
    search = Lookup(TARGET, ME, 20, 3, density=1 / (1 << 150))
    ground = [peer(1 + number) for number in range(12)]
    search.add_contact(ground[0])
    run(search, lambda one: ground)
    assert search.closest == ground
