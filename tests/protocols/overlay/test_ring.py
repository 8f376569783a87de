"""The overlay core on the ring: what it makes of what neighbours say, what it says, and how it looks for long links."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import ChordConfig
from p2pmesh.keyspace import RING_SIZE, PeerId, bracket, nearness, onward, ring_distance
from p2pmesh.protocols.core import DropLink, SendFrame
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkLost, Received, Subsystem
from p2pmesh.protocols.notices import (
    FindPeers,
    MergeStarted,
    MeshSize,
    NeighbourLinks,
    Route,
    RouteFailed,
    RouteSucceeded,
)
from p2pmesh.protocols.overlay.fix_fingers import REPAIRED, draw_key
from p2pmesh.protocols.overlay.passive_view import HEARSAY_WAITS
from p2pmesh.wire.fields import MAX_RING_LIST
from p2pmesh.wire.messages import ReconnectionData
from p2pmesh.wire.overlay import FindSuccessor, Neighbours, Stabilise, SuccessorFound
from tests.harness.examples import examples
from tests.harness.overlay import ALL, ME, Peer, at, finds, offered, says


def searches(peer):
    """Look-ups for long links, among what was just asked."""
    return [route for route in peer.routes() if route.message.seeks_link]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_new_neighbour_is_told_at_once_and_the_others_soon():
    peer = Peer(4).placed()
    peer.up(0x20)
    ((peers, message),) = peer.sent(Neighbours)
    assert peers == (at(0x20),)
    assert message.links[:2] == (at(0x88), at(0x78))
    assert message.successors == tuple(at(0x88 + 8 * n) for n in range(8))
    assert message.predecessors[0] == at(0x78)
    assert not message.leaf
    ((everybody, later),) = peer.wait(0.5).sent(Neighbours)
    assert set(everybody) == {at(0x88), at(0x78), at(0x20)}
    assert set(later.links) == set(everybody)


def test_slots_that_the_ring_needs_are_not_told_as_free():
    (*_, (_, message)) = Peer(5).up(0x20, says(0x20)).wait(1).sent(Neighbours)
    assert message.free == 3, "of four, one is for the other neighbour on the ring"
    (*_, (_, message)) = Peer(5).placed().up(0x20, says(0x20)).wait(1).sent(Neighbours)
    assert message.free == 2


def test_changes_that_come_together_are_told_together_and_no_change_is_not_told():
    peer = Peer(max_peers=8).placed().wait(1)
    peer.up(0x20).up(0x30).up(0x40)
    assert len(peer.wait(1).sent(Neighbours)) == 1
    peer.hear(0x20, says(0x20, links=[0x28])).hear(0x30, says(0x30))
    assert peer.wait(5).sent(Neighbours) == []


def test_lists_alone_are_told_to_the_neighbours_on_the_ring_only():
    peer = Peer(4).placed().up(0x20, says(0x20)).wait(1)
    peer.hear(0x88, says(0x88, ring=[*ALL, 0x9C]))
    ((peers, message),) = peer.wait(1).sent(Neighbours)
    assert set(peers) == {at(0x88), at(0x78)}
    assert at(0x9C) in message.successors


def test_peers_of_the_original_and_those_that_prove_nothing_are_told_nothing_and_not_named():
    peer = Peer(4).placed().up(0x20, version=0).up(0x30, verified=False)
    assert peer.sent(Neighbours) == []
    ((peers, message),) = peer.wait(1).sent(Neighbours)
    assert at(0x20) not in (*peers, *message.links)
    assert at(0x30) not in (*peers, *message.links)
    assert peer.hear(0x20, says(0x20)).effects == []


def test_routing_hears_of_the_neighbours_of_neighbours_and_leaves_are_known_as_such():
    peer = Peer(4).up(0x20, says(0x20, links=[0x10, 0x30], free=2, leaf=True))
    assert peer.notices(NeighbourLinks) == [NeighbourLinks(at(0x20), (at(0x10), at(0x30)))]
    assert peer.snap()["leaves"] == [at(0x20)]
    assert peer.hear(0x20, says(0x20, links=[0x10, 0x30], free=2, leaf=True)).notices(NeighbourLinks) == []


def test_neighbours_on_the_ring_compare_serial_numbers_and_a_lost_message_is_asked_for():
    peer = Peer(4).placed().up(0x20, says(0x20)).wait(1)
    beats = peer.wait(20).sent(Stabilise)
    assert {peers for peers, _ in beats} == {(at(0x88),), (at(0x78),)}
    assert all(message.serial is not None for _, message in beats)
    assert peer.hear(0x88, Stabilise(serial=1)).effects == []
    assert peer.hear(0x88, Stabilise(serial=2)).sent(Stabilise) == [((at(0x88),), Stabilise())]
    ((peers, _),) = peer.hear(0x88, Stabilise()).sent(Neighbours)
    assert peers == (at(0x88),)


def test_at_rest_there_is_next_to_nothing_to_say():
    peer = Peer(4).placed().up(0x20, says(0x20, links=[0x28])).wait(60)
    frames = [effect for effect in peer.wait(600).effects if isinstance(effect, SendFrame)]
    assert len(frames) <= 100
    assert not [frame for frame in frames if isinstance(frame.message, Neighbours)]


# --- the ring ---------------------------------------------------------------------------------------------------------


def test_who_is_next_to_us_by_the_lists_of_a_neighbour_is_dialed_and_the_others_are_remembered():
    peer = Peer(4).up(0x90, says(0x90, links=[0x10], ring=[place for place in ALL if place != 0x80]))
    assert set(peer.dialed) == {at(0x88), at(0x78)}
    assert peer.known == 1 + 2 * 8 + 1, "itself, those in its lists, and its other neighbour"


def test_what_a_neighbour_says_of_the_ring_beyond_us_it_has_from_us():
    assert Peer(4).up(0x90, says(0x90)).dialed == [at(0x88)]


def test_lists_that_our_place_is_not_in_say_nothing_of_it():
    peer = Peer(4).up(0x20, says(0x20))
    assert peer.dialed == []
    assert peer.known == 17


def test_only_lists_of_neighbours_on_the_ring_are_remembered():
    peer = Peer(4).placed()
    known = peer.known
    assert peer.up(0x20, says(0x20)).known == known + 1
    assert peer.hear(0x20, says(0x20, ring=[*ALL, 0x24])).known == known + 1
    assert peer.hear(0x88, says(0x88, ring=[*ALL, 0xA4])).known == known + 2


def test_the_next_in_the_list_is_dialed_when_a_neighbour_on_the_ring_dies():
    peer = Peer(4).placed().wait(1)
    assert peer.feed(LinkDown(at(0x88), "silent", 5.0)).dialed == [at(0x90)]


def test_the_rest_of_the_list_is_dialed_too_as_the_next_may_have_died_with_it():
    peer = Peer(4).placed().wait(HEARSAY_WAITS / 2).feed(LinkDown(at(0x88), "silent", 5.0)).wait(1)
    assert peer.feed(LinkLost(at(0x90), "no answer")).dialed == [at(0x98)]
    assert peer.feed(LinkLost(at(0x98), "no answer")).dialed == [at(0xA0)]


def test_where_a_long_link_dies_nobody_is_dialed_in_its_place():
    peer = Peer(4).placed().up(0x20, says(0x20)).wait(1)
    assert peer.feed(LinkDown(at(0x20), "silent", 5.0)).wait(1).dialed == []


def torn():
    """A peer whose successor has died, and a far one that has lost all in between: they take each other for next."""
    peer = Peer(4).placed().up(0x20, says(0x20)).wait(3).feed(LinkDown(at(0x88), "silent", 5.0)).in_vain()
    return peer.hear(0x20, says(0x20, ring=[place for place in ALL if 0x20 <= place <= 0x80]))


def test_where_the_ring_is_torn_nothing_is_agreed_and_the_end_of_the_list_is_looked_up_in_turn_with_our_place():
    peer = torn()
    assert peer.lists()["agreed"]
    peer.feed(RouteFailed(peer.placing(at(0xC0)).call, "no way")).placing(ME)


def test_who_is_at_the_end_of_the_list_says_who_comes_before_it_and_is_next_to_us():
    peer = torn()
    left = [place for place in ALL if not 0x80 < place < 0xB0]
    end = peer.placing(at(0xC0))
    peer.in_vain().feed(RouteSucceeded(end.call, at(0xC8), finds(0xC8, left)))
    assert peer.dialed == [at(0xB0)]
    peer.up(0xB0, says(0xB0, ring=left))
    assert not [route for route in peer.wait(300).routes() if route.message.key in {ME, at(0xC0)}]


def test_the_ring_is_torn_no_more_if_who_is_at_the_end_of_the_list_knows_nobody_in_between():
    peer = torn()
    left = [place for place in ALL if 0x20 <= place <= 0x80]
    peer.feed(RouteSucceeded(peer.placing(at(0xC0)).call, at(0x20), finds(0x20, left)))
    assert not [route for route in peer.wait(300).routes() if route.message.key in {ME, at(0xC0)}]


def test_who_knows_one_neighbour_of_ours_does_not_settle_our_place():
    peer = Peer(4).up(0x20, says(0x20, ring=(0x20,)))
    place = peer.found(0x90).in_vain().placing(ME)
    peer.in_vain().feed(RouteSucceeded(place.call, at(0x20), SuccessorFound()))
    assert at(0x90) in peer.wait(10).dialed


def test_the_next_in_the_list_is_not_dialed_when_a_neighbour_on_the_ring_gives_us_up():
    peer = Peer(4).placed().wait(1).hear(0x88, ReconnectionData(reason="make_room", peers=(), timestamp=1))
    assert peer.feed(LinkDown(at(0x88), "closed by the peer")).dialed == []


def test_only_who_took_our_place_beside_a_neighbour_is_dialed_before_its_time():
    peer = Peer(4).placed().wait(5).found(0x86, 0x84, source="hearsay")
    assert peer.dialed == []
    notice = ReconnectionData(reason="make_room", peers=(at(0x86), at(0x84)), timestamp=1)
    assert peer.hear(0x88, notice).dialed == [at(0x86)]


def test_a_place_that_neighbours_do_not_confirm_is_looked_up_ever_more_rarely_and_then_the_services_are_asked():
    peer = Peer(4).up(0x20, says(0x20))
    looked, asked = [], []
    for _ in range(300):
        for route in peer.wait(1).routes():
            if route.message.key == ME:
                looked.append(peer.now)
                asked += peer.notices(FindPeers)
                assert (route.nearest, route.answered) == (True, True)
            peer.feed(RouteFailed(route.call, "no way"))
    assert 5 <= len(looked) <= 12
    assert len(asked) == len(looked) - 2
    assert looked[-1] - looked[-2] > looked[1] - looked[0]


def test_who_answers_the_look_up_of_our_place_says_who_is_next_to_us():
    peer = Peer(4).up(0x20, says(0x20))
    ring = [place for place in ALL if place != 0x80]
    peer.feed(RouteSucceeded(peer.placing(ME).call, at(0x90), finds(0x90, ring)))
    assert set(peer.dialed) == {at(0x88), at(0x78)}


def test_a_place_that_is_confirmed_is_not_looked_up():
    peer = Peer(4).placed()
    assert peer.lists()["agreed"]
    assert [route for route in peer.wait(300).routes() if route.message.key == ME] == []


def test_a_link_is_superfluous_once_a_newcomer_sits_between_and_has_it_too():
    peer = Peer(4).placed().wait(1)
    ring = [*ALL, 0x84]
    peer.up(0x84, says(0x84, ring=ring, links=[0x80]))
    assert peer.got(DropLink) == []
    peer.hear(0x84, says(0x84, ring=ring, links=[0x80, 0x88], serial=2))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x88)]
    assert peer.hear(0x84, says(0x84, ring=ring, links=[0x80, 0x88], serial=3)).got(DropLink) == []


def test_in_a_small_mesh_no_link_is_superfluous():
    ring = [0x00, 0x40, 0x80, 0x84, 0x88, 0xC0]
    peer = Peer(4).up(0x88, says(0x88, ring=ring)).up(0x40, says(0x40, ring=ring))
    assert peer.up(0x84, says(0x84, ring=ring, links=[0x80, 0x88])).got(DropLink) == []


def test_leaves_are_no_part_of_the_ring():
    peer = Peer(4).placed().up(0x81, says(0x81, leaf=True, links=[0x80]))
    assert peer.lists()["successors"][0] == at(0x88)
    assert at(0x81) in peer.wait(1).sent(Neighbours)[0][1].links


@pytest.mark.parametrize(("ring", "size"), [([0x80, 0x88, 0x90, 0x10], 4), (ALL, 32)])
def test_the_size_of_the_mesh_is_told_by_how_close_together_the_ring_is(ring, size):
    places = sorted(ring)
    mine = places.index(0x80)
    after, before = places[(mine + 1) % len(places)], places[mine - 1]
    peer = Peer(4).up(after, says(after, ring=ring)).up(before, says(before, ring=ring))
    told = peer.wait(1).notices(MeshSize)
    assert {tell.peers for tell in told} == {size} if size < 9 else all(abs(tell.peers - size) <= 3 for tell in told)
    assert len({tell.peers for tell in told}) == 1
    assert told
    assert peer.hear(after, says(after, ring=ring, serial=2)).wait(5).notices(MeshSize) == []


# --- long links -------------------------------------------------------------------------------------------------------


def searching(**config) -> tuple[Peer, Route]:
    """A peer that has its neighbours on the ring, and its first search for a long link."""
    peer = Peer(3, chord=ChordConfig(**config)).placed()
    return peer, peer.searching()


def with_long_links():
    """A peer whose slots are all taken, three of them by long links."""
    peer = Peer(5).placed()
    for place in (0x20, 0x40, 0xC0):
        peer.up(place, says(place))
    return peer.wait(5)


def displaced(peer, place):
    """The neighbour at this place gives our link up for a newcomer."""
    peer.hear(place, ReconnectionData(reason="make_room", peers=(), timestamp=1))
    return peer.feed(LinkDown(at(place), "closed by the peer"))


def test_a_newcomer_looks_for_a_long_link():
    _, route = searching()
    assert (route.nearest, route.answered, route.owner) == (True, True, Subsystem.OVERLAY)
    assert route.message.seeks_link


def test_who_welcomes_us_is_dialed_and_then_nothing_more_is_searched():
    peer, route = searching()
    peer.feed(RouteSucceeded(route.call, at(0x20), SuccessorFound(welcome=True)))
    assert peer.dialed == [at(0x20)]
    peer.up(0x20, says(0x20))
    assert peer.wait(600).routes() == []
    assert not peer.snap()["fix_fingers"]["seeks"]


def test_a_dial_that_failed_is_followed_by_another_search_but_not_for_ever():
    peer, route = searching()
    found = 1
    for _ in range(200):
        peer.feed(RouteSucceeded(route.call, at(0x20), SuccessorFound(welcome=True))).in_vain()
        routes = searches(peer.wait(5))
        route = routes[-1] if routes else route
        found += len(routes)
    assert found == ChordConfig().searches


def test_a_departure_that_leaves_enough_long_links_starts_no_search():
    peer = with_long_links()
    assert searches(peer.feed(LinkDown(at(0x20), "gone")).wait(600)) == []
    assert searches(peer.feed(LinkDown(at(0x40), "gone")).wait(600)) == []
    assert searches(peer.feed(LinkDown(at(0xC0), "gone")).wait(REPAIRED - 1)) == []
    assert len(searches(peer.wait(1))) == 1


def test_a_link_that_is_long_again_once_the_ring_is_closed_needs_no_other():
    peer = Peer(max_peers=3).placed().up(0xC0, says(0xC0)).wait(5)
    peer.feed(LinkDown(at(0x88), "gone")).wait(1)
    left = [place for place in ALL if place != 0x88]
    peer.hear(0x78, says(0x78, ring=left, serial=2)).up(0x90, says(0x90, ring=left))
    assert searches(peer.wait(600)) == []


def test_who_gave_way_to_a_newcomer_looks_for_another_long_link():
    assert len(searches(displaced(with_long_links(), 0x20).wait(6))) == 1


def test_while_rings_merge_few_long_links_are_made_good_and_only_afterwards():
    peer = with_long_links()
    peer.feed(MergeStarted(peer.now + 20))
    assert searches(displaced(peer, 0x20).wait(8)) == []
    peer.feed(LinkDown(at(0x40), "gone"))
    assert searches(displaced(peer, 0xC0).wait(11)) == []
    assert searches(peer.wait(3))


def test_a_look_up_of_whose_outcome_nothing_is_heard_is_made_again():
    placing = Peer(2, chord=ChordConfig(search_timeout=10.0)).up(0x20, says(0x20))
    lost = placing.placing(ME)
    assert placing.wait(13).routes() == [], "routing may still say what became of it"
    again = placing.placing(ME)
    assert again.call != lost.call
    assert placing.feed(RouteSucceeded(lost.call, at(0x90), finds(0x90))).dialed == [], "too late"
    peer, lost = searching(search_timeout=10.0)
    assert peer.wait(13).routes() == []
    again = peer.searching()
    assert again.call != lost.call
    assert peer.feed(RouteSucceeded(lost.call, at(0x20), SuccessorFound(welcome=True))).dialed == []
    assert peer.feed(RouteSucceeded(again.call, at(0x20), SuccessorFound(welcome=True))).dialed == [at(0x20)]
    assert peer.snap()["lost_outcomes"] == placing.snap()["lost_outcomes"] == 1


def test_a_look_up_that_was_answered_is_not_taken_for_lost():
    peer, route = searching()
    peer.feed(RouteSucceeded(route.call, at(0x20), SuccessorFound(welcome=True))).up(0x20, says(0x20)).wait(60)
    assert peer.snap()["lost_outcomes"] == peer.snap()["fix_fingers"]["vain"] == 0
    placing = Peer(2).up(0x20, says(0x20))
    found = finds(0x90, [place for place in ALL if place != 0x80])
    placing.feed(RouteSucceeded(placing.placing(ME).call, at(0x90), found))
    placing.feed(LinkDown(at(0x20), "closed")).placed().wait(60)
    assert placing.snap()["lost_outcomes"] == 0


def test_slots_for_the_ring_are_not_given_to_long_links():
    assert searches(Peer(3, unverified=True).up(0x20, says(0x20)).up(0x21, version=0).wait(30)) == []


def test_a_leaf_is_welcome_where_a_settled_long_link_can_be_given_up_but_rarely():
    peer = Peer(max_peers=3).placed().up(0x20, says(0x20))
    question = FindSuccessor(key=at(0x81), leaf=True)
    assert not peer.asked(question, 0x10).welcome  # it is young yet
    peer.wait(20)
    assert not peer.asked(FindSuccessor(key=at(0x81), seeks_link=True), 0x10).welcome
    assert peer.asked(question, 0x18).welcome
    assert not peer.asked(question, 0x28).welcome
    assert peer.wait(20).asked(question, 0x28).welcome


def test_neighbours_with_free_slots_are_named():
    peer = Peer(3).placed().up(0x20, says(0x20, free=1))
    answer = peer.asked(FindSuccessor(key=at(0x81), seeks_link=True), 0x10)
    assert answer.vacant == (at(0x20),)
    assert answer.successors == answer.predecessors == (), "it does not ask for its place"


def test_who_looks_up_its_own_place_is_expected_to_come_and_dialed_if_it_does_not():
    peer = Peer(4).placed()
    answer = peer.asked(FindSuccessor(key=at(0x82)), 0x82)
    assert answer.successors[0] == at(0x88)
    assert peer.wait(2.9).dialed == []
    assert peer.wait(1.2).dialed == [at(0x82)]


@given(st.integers(0, 2**32), st.sampled_from([2, 30, 1000, 100_000]))
def test_keys_follow_the_harmonic_law(seed, size):
    rng = random.Random(seed)
    ways = sorted(nearness(ME, draw_key(ME, size, rng)) for _ in range(200))
    assert ways[-1] <= RING_SIZE // 2
    assert ways[0] >= RING_SIZE // max(size, 8)
    if size >= 1000:  # as many in the nearer half by logarithm as in the farther
        middle = int(RING_SIZE / size**0.5)
        assert 60 <= sum(way < middle for way in ways) <= 140


# --- whatever comes ---------------------------------------------------------------------------------------------------


def test_a_peer_that_answers_every_look_up_with_itself_gets_one_offer_for_each_and_is_done_with():
    peer, route = searching()
    liar = at(0x20)
    for _ in range(100):
        lie = SuccessorFound(welcome=True, vacant=(liar, ME), successors=(liar, ME))
        assert set(peer.feed(RouteSucceeded(route.call, liar, lie)).dialed) <= {liar}
        routes = peer.in_vain().wait(20).routes()  # the pause is longer
        if not routes:
            break
        route = routes[-1]
    assert peer.snap()["fix_fingers"]["searches"] <= 15
    assert peer.lists()["agreed"]  # the ring is what its neighbours say


def test_made_up_peers_are_passed_on_as_hints_and_kept_nowhere():
    peer = Peer(4).placed().wait(1)
    lies = [PeerId(f"{number:040x}") for number in range(1, 65)]
    for serial in range(2, 50):
        peer.hear(0x88, Neighbours(serial=serial, links=tuple(lies), successors=tuple(lies[:16]), predecessors=(ME,)))
    assert len(peer.lists()["successors"]) <= 8
    assert peer.lists()["successors"][0] == at(0x88)
    assert peer.dialed == []
    assert peer.known <= 256


def test_lists_that_go_round_in_circles_end_where_they_turn_back():
    assert onward(ME, at(0x88), [at(0x90), at(0x84), at(0xA0)], 8, clockwise=True) == [at(0x88), at(0x90)]
    assert onward(ME, at(0x88), [ME, at(0x90)], 8, clockwise=True) == [at(0x88)]
    assert set(bracket(ME, at(0x20), (at(0x90),), (at(0x90), at(0x90)), (), 2)) <= {at(0x20), at(0x90)}


def test_answers_that_nobody_asked_for_are_ignored():
    peer = Peer(4).placed()
    lie = SuccessorFound(welcome=True, vacant=(at(1),), successors=(at(0x81),))
    assert peer.feed(RouteSucceeded(99, at(0x20), lie)).effects == []
    assert peer.feed(RouteFailed(99, "x")).effects == []
    assert peer.hear(0x88, lie).effects == []
    assert peer.hear(0x20, says(0x20)).effects == []  # not a neighbour


def test_nothing_is_said_after_leaving():
    peer, route = searching()
    peer.feed(Leave())
    assert peer.feed(RouteFailed(route.call, "too late")).feed(MergeStarted(peer.now + 1)).wait(100).effects == []
    assert peer.up(0x20).sent(Neighbours) == []


PLACES = st.integers(0, 255)
LISTS = st.lists(PLACES.map(at), max_size=MAX_RING_LIST).map(tuple)
SAID = st.builds(
    Neighbours,
    serial=st.integers(0, 3),
    links=LISTS,
    free=st.integers(0, 65535),
    leaf=st.booleans(),
    successors=LISTS,
    predecessors=LISTS,
)
FOUND = st.builds(SuccessorFound, successors=LISTS, predecessors=LISTS, vacant=LISTS, welcome=st.booleans())
QUESTION = st.builds(FindSuccessor, key=PLACES.map(at), seeks_link=st.booleans(), leaf=st.booleans())
SOME = st.sampled_from([0x10, 0x78, 0x7F, 0x81, 0x88, 0xF0])
EVENTS = st.one_of(
    st.tuples(st.just("up"), SOME, st.booleans()),
    st.tuples(st.just("down"), SOME, st.booleans()),
    st.builds(Received, SOME.map(at), st.one_of(SAID, FOUND, st.builds(Stabilise, serial=st.integers(0, 3)))),
    st.builds(RouteSucceeded, st.integers(1, 20), PLACES.map(at), st.one_of(st.none(), FOUND)),
    st.builds(RouteFailed, st.integers(1, 20), st.just("x")),
    st.builds(lambda place, question: (place, question), PLACES, QUESTION),
    st.sampled_from([0.1, 3.0, 100.0]),
)


@examples(150)
@given(st.integers(1, 5), st.lists(EVENTS, max_size=50))
def test_whatever_comes_all_that_is_said_is_in_bounds(max_peers, events):
    peer = Peer(max_peers)
    linked: dict[int, None] = {}
    for event in events:
        match event:
            case "up", place, proven:
                slots = peer.core.snapshot()
                taken = sum(len(slots[part]) for part in ("links", "attempts", "closing"))
                if place in linked or (taken >= max_peers and at(place) not in slots["attempts"]):
                    continue  # no link opens without a slot: the link keeper sees to that
                linked[place] = None
                peer.up(place, verified=proven)
            case "down", place, _:
                if linked.pop(place, 0) == 0:
                    continue
                peer.feed(LinkDown(at(place), "x"))
            case float():
                peer.wait(event)
            case (int() as place, FindSuccessor() as question):
                if at(place) == ME:
                    continue
                answer = peer.asked(question, place)
                assert len(answer.vacant) <= MAX_RING_LIST
                assert len(answer.vacant) <= len(linked)
                assert at(place) not in answer.vacant
            case _:
                peer.feed(event)
        for _, message in peer.sent(Neighbours):
            assert ME not in (*message.links, *message.successors, *message.predecessors)
            assert len(message.successors) <= 8
            ways = [ring_distance(ME, other) for other in message.successors]
            assert ways == sorted(set(ways))
        assert ME not in peer.dialed
        assert peer.core.next_deadline() > peer.now - 1


@pytest.mark.parametrize("row", ["successors", "predecessors"])
def test_neighbours_may_know_the_ring_on_one_side_only(row):
    peer = Peer(5).placed().linked(0x20, 0xC0)
    for place in (0x20, 0xC0):
        peer.hear(place, Neighbours(serial=2, **{row: getattr(says(place), row)}))
    assert peer.feed(offered(0x82)).links
