"""The overlay core and its slots: alone with one input at a time, and by the dozen with faults and departures."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import MeshConfig, TopologyConfig
from p2pmesh.errors import MeshClosed, PeerUnreachable
from p2pmesh.events import PeerConnected, PeerDisconnected, PeerEvicted, PeerFailed, PeerTimedOut
from p2pmesh.keyspace import PeerId, ring_neighbours
from p2pmesh.protocols.core import AcceptOffer, DropLink, Emit, Reply, SendFrame, WantLink
from p2pmesh.protocols.inputs import (
    NO_SLOT,
    CancelCall,
    Connect,
    Leave,
    LinkDown,
    LinkLost,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    PeerGone,
    PeersFound,
    Received,
    RemotePeer,
    ServiceDown,
    ServiceUp,
)
from p2pmesh.protocols.notices import (
    FULL,
    INITIATOR_CONFLICT,
    FindPeers,
    MergeStarted,
    OpenBridge,
    Rejected,
    RejectOffer,
    SetLinkPurpose,
)
from p2pmesh.protocols.overlay.admission import FOUND_A_PLACE
from p2pmesh.protocols.overlay.dial_policy import HEDGE, ROOM_COMES
from p2pmesh.protocols.overlay.passive_view import TRUST, PassiveView
from p2pmesh.wire.messages import BRIDGE, LEAF, LONG, PINNED, RING, Goodbye, ReconnectionData
from tests.harness.examples import examples
from tests.harness.mesh import Net, Node
from tests.harness.overlay import ME, Peer, at, offered

# --- what is wanted ---------------------------------------------------------------------------------------------------


def test_the_neighbours_on_the_ring_are_dialed_first():
    peer = Peer(max_peers=2).found(0x10, 0x70, 0xA0, 0xF0)
    assert peer.dialed == [at(0xA0)]
    assert peer.up(0xA0).dialed == [at(0x70)]


def test_who_has_no_link_dials_one_peer_and_the_next_if_that_takes_long():
    peer = Peer().found(0x10, 0x70, 0xA0)
    assert peer.dialed == [at(0xA0)]
    assert peer.wait(HEDGE - 0.1).dialed == []
    assert peer.wait(0.1).dialed == [at(0x10), at(0x70)]


def test_without_a_link_those_named_are_tried_in_their_order_several_at_once_and_the_slots_are_not_held_up():
    peer = Peer(max_peers=5).found(0x10, 0x20, 0xF0, 0x30, 0x70, 0xA0, 0xC0)
    assert peer.dialed == [at(0xA0)]
    assert peer.wait(HEDGE).dialed == [at(0x10), at(0x20), at(0xF0)]
    assert peer.wait(HEDGE).dialed == [at(0x30), at(0x70)]  # in the last slot, and in that of the first
    assert peer.up(0x20).links == [at(0x20)]


def test_who_may_have_one_link_only_is_not_held_up_by_a_peer_that_does_not_answer():
    peer = Peer(max_peers=1).found(0x70, 0x10)
    assert peer.dialed == [at(0x70)]
    assert peer.wait(2 * HEDGE - 0.1).dialed == []
    assert peer.wait(0.1).dialed == [at(0x10)]


def test_nothing_is_dialed_while_no_service_is_up():
    peer = Peer(online=False).found(0x10)
    assert peer.effects == []
    assert peer.feed(ServiceUp("one")).dialed == [at(0x10)]
    assert Peer().feed(ServiceDown("one", "cut")).found(0x10).dialed == []


def test_a_peer_that_just_joined_gets_a_moment_to_make_its_own_offer():
    peer = Peer().found(0x90, source="joined")
    assert peer.dialed == []
    assert peer.wait(2.0).dialed == []
    assert peer.wait(2.0).dialed == [at(0x90)]


def test_a_peer_that_was_only_named_is_tried_later_than_one_that_is_next_to_us():
    peer = Peer().linked(0x10, 0xF0).found(0x90, source="hearsay")
    assert peer.dialed == []
    assert peer.found(0x90, source="ring").dialed == [at(0x90)]
    assert Peer().linked(0x10, 0xF0).found(0x90, source="hearsay").wait(5.0).dialed == [at(0x90)]


def test_no_link_is_given_up_for_a_peer_that_was_only_named_or_just_lost():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).found(0x90, source="hearsay").wait(60)
    assert peer.dialed == []
    assert peer.links == [at(0x70), at(0xB0)]
    lost = Peer(max_peers=2).linked(0x70, 0x90).feed(LinkDown(at(0x90), "silent", 5.0)).found(0xB0).up(0xB0).wait(60)
    assert lost.links == [at(0x70), at(0xB0)]


def test_no_link_and_no_offer_under_way_is_given_up_for_a_peer_that_a_service_says_has_joined():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).found(0x90, source="joined").wait(60)
    assert peer.dialed == []
    assert peer.links == [at(0x70), at(0xB0)]
    offered_to = Peer(max_peers=2).linked(0xB0).feed(offered(0x70))
    assert offered_to.found(0x90, source="bootstrap").dialed == []


def test_the_rest_of_a_list_is_dialed_one_after_the_other_where_a_slot_is_free_but_no_link_is_given_up():
    peer = Peer(max_peers=4).linked(0x70, 0xF0).found(0x90, 0xA0, source="list")
    assert peer.dialed == [at(0x90)]
    assert peer.feed(LinkLost(at(0x90), "not found")).dialed == [at(0xA0)]
    assert Peer(max_peers=2).linked(0x70, 0xF0).found(0x90, source="list").wait(60).links == [at(0x70), at(0xF0)]


def test_a_dial_on_hearsay_keeps_nobody_away_for_whom_somebody_vouches():
    peer = Peer(max_peers=4).linked(0x70, 0xF0).found(0x88, source="list")
    assert peer.dialed == [at(0x88)]
    assert peer.found(0x98, source="ring").dialed == [at(0x98)]
    assert peer.found(0x90, source="list").dialed == []


def test_an_offer_in_hand_is_not_given_up_to_find_out_whether_a_nearer_peer_is_there():
    peer = Peer(max_peers=3).linked(0x70, 0x20).feed(offered(0x98, links=2)).found(0x90, source="ring")
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x20)]


def test_a_newcomer_through_us_gets_the_place_of_the_longest_link_rather_than_that_of_its_new_neighbour():
    peer = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0).found(0x90)
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0xF0)]


def test_a_newcomer_gets_the_place_of_a_peer_that_says_nothing_rather_than_that_of_one_that_speaks():
    peer = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0)
    peer.feed(LinkSuspected(at(0x70)))
    assert [drop.peer for drop in peer.found(0x90).got(DropLink)] == [at(0x70)]


def test_a_peer_that_speaks_again_keeps_its_place():
    peer = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0)
    peer.feed(LinkSuspected(at(0x70))).feed(LinkRecovered(at(0x70)))
    assert [drop.peer for drop in peer.found(0x90).got(DropLink)] == [at(0xF0)]


@pytest.mark.parametrize(("late", "dials"), [(0.0, 2), (1.0, 1)])
def test_a_process_that_is_late_dials_one_peer_at_a_time(late, dials):
    peer = Peer(max_peers=4).linked(0x70)
    peer.health.note(peer.now - late, peer.now)
    peer.found(0x78, 0x88)
    assert len(peer.core.snapshot()["attempts"]) == dials


def test_a_link_off_the_ring_gives_way_to_a_nearer_peer_only_once_it_is_down():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).found(0x90)
    assert peer.dialed == []
    (frame,) = peer.got(SendFrame)
    assert (frame.peers, frame.message.reason) == ((at(0xB0),), "make_room")
    assert frame.message.peers == (at(0x90), at(0x70))
    assert peer.got(DropLink) == [DropLink(at(0xB0), "given up for another peer")]
    peer.feed(LinkDown(at(0xB0), "closed"))
    assert peer.dialed == [at(0x90)]
    assert peer.events == [PeerDisconnected(at(0xB0), "given up for another peer")]


def test_a_peer_that_is_farther_off_changes_nothing():
    assert Peer(max_peers=2).linked(0x70, 0x90).found(0x10, 0xB0).effects == []


def test_a_failed_peer_is_tried_again_ever_more_rarely():
    peer = Peer(max_peers=1).found(0x10)
    tries = []
    for _ in range(3000):
        if peer.dialed:
            tries.append(peer.now)
            peer.feed(LinkLost(at(0x10), "no answer"))
            assert peer.events == [PeerFailed(at(0x10), "no answer")]
        peer.wait(0.1)
    assert 0.5 <= tries[1] - tries[0] <= 1.2
    assert 30 <= tries[-1] - tries[-2] <= 60.2
    assert len(tries) <= 13


def test_a_lost_link_is_replaced_and_services_are_asked_only_when_none_is_left():
    peer = Peer().linked(0x70, 0x90).feed(LinkDown(at(0x90), "reset"))
    assert FindPeers() not in peer.told
    assert peer.events == [PeerDisconnected(at(0x90), "reset")]
    assert peer.wait(1.0).dialed == [at(0x90)]
    peer.feed(LinkLost(at(0x90), "no answer")).feed(LinkDown(at(0x70), "reset"))
    assert FindPeers() in peer.told


def test_links_are_opened_through_the_mesh_while_no_service_is_up():
    peer = Peer().linked(0x70).feed(ServiceDown("one", "cut")).found(0x90)
    assert peer.dialed == [at(0x90)]


def test_a_peer_that_fell_silent_timed_out():
    peer = Peer().linked(0x70).feed(LinkDown(at(0x70), "silent", timed_out=5.0))
    assert peer.events == [PeerTimedOut(at(0x70), "silent", 5.0)]
    assert peer.feed(LinkDown(at(0x70), "again")).events == []


def test_a_peer_that_left_is_forgotten_unless_it_is_linked():
    peer = Peer(online=False).found(0x10, 0x20).feed(PeerGone(at(0x10)))
    assert peer.feed(ServiceUp("one")).dialed == [at(0x20)]
    peer.up(0x20).feed(PeerGone(at(0x20)))
    assert peer.links == [at(0x20)]


def test_a_peer_that_no_service_knows_is_forgotten():
    peer = Peer().found(0x10).feed(Rejected(at(0x10), "not found"))
    assert peer.got(DropLink) == [DropLink(at(0x10), "not found")]
    assert peer.core.snapshot()["passive_view"]["known"] == 0
    assert peer.wait(100).dialed == []


def test_a_rejection_is_not_the_applications_business_and_its_alternatives_are_tried():
    peer = Peer(max_peers=1).found(0x10).feed(Rejected(at(0x10), "max_peers_reached", (at(0x20),)))
    assert peer.events == []
    assert peer.got(DropLink) == [DropLink(at(0x10), "max_peers_reached")]
    assert peer.dialed == [at(0x20)]


def test_no_link_is_given_up_for_a_peer_that_failed_too_often():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).found(0x90)
    evictions = 0
    for _ in range(60):
        if peer.got(SendFrame):
            evictions += 1
            peer.feed(LinkDown(at(0xB0), "closed")).feed(LinkLost(at(0x90), "no answer"))
            peer.feed(offered(0xB0)).up(0xB0)
        peer.wait(2)
    assert evictions == TRUST


def test_what_failed_before_rings_merge_is_held_against_nobody():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).found(0x90)
    for _ in range(30):
        if peer.got(SendFrame):
            peer.feed(LinkDown(at(0xB0), "closed")).feed(LinkLost(at(0x90), "no answer"))
            peer.feed(offered(0xB0)).up(0xB0)
        peer.wait(2)
    assert peer.found(0x90, source="ring").got(DropLink) == []
    peer.feed(MergeStarted(peer.now + 20))
    assert peer.got(DropLink) == [DropLink(at(0xB0), "given up for another peer")]


def test_the_cap_holds_for_dials_too():
    peer = Peer(max_peers=3, dials_at_once=2).linked(0x70, 0x90).found(0x7F, 0x81, 0x7E)
    assert peer.dialed == [at(0x81)]
    assert len(peer.core.snapshot()["attempts"]) == 1


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_an_offer_is_accepted_while_there_is_room_and_turned_down_after():
    peer = Peer(max_peers=2).linked(0x70, 0x90).feed(offered(0xA0, links=1))
    (rejection,) = peer.told
    assert isinstance(rejection, RejectOffer)
    assert (rejection.peer, rejection.reason) == (at(0xA0), "max_peers_reached")
    assert set(rejection.alternatives) == {at(0x70), at(0x90)}


def test_alternatives_begin_with_those_next_to_the_newcomer():
    peer = Peer(max_peers=5, alternatives=2).linked(0x7F, 0x81, 0x10, 0x30, 0xC0)
    (rejection,) = peer.feed(offered(0x20, links=2)).told
    assert set(rejection.alternatives) == {at(0x10), at(0x30)}


def test_a_nearer_newcomer_is_let_in_when_the_slot_is_really_free():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).feed(offered(0x90, links=1))
    assert peer.got(DropLink) == [DropLink(at(0xB0), "given up for another peer")]
    assert peer.got(AcceptOffer) == []
    peer.feed(LinkDown(at(0xB0), "closed"))
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x90)]
    assert peer.up(0x90).events == [PeerConnected(at(0x90), True)]


def test_a_newcomer_that_changes_its_mind_does_not_get_the_slot():
    peer = Peer(max_peers=2).linked(0x70, 0xB0).feed(offered(0x90, links=1)).feed(Rejected(at(0x90), "cancelled"))
    assert peer.feed(LinkDown(at(0xB0), "closed")).got(AcceptOffer) == []


def test_an_isolated_newcomer_is_let_in_for_a_settled_link_off_the_ring_but_rarely():
    peer = Peer(max_peers=3).linked(0x70, 0x90, 0x10)
    assert peer.feed(offered(0x20, links=1)).got(DropLink) == []
    assert [drop.peer for drop in peer.feed(offered(0x20, links=0)).got(DropLink)] == [at(0x10)]
    peer.feed(LinkDown(at(0x10), "closed")).up(0x20)
    assert peer.feed(offered(0x30, links=0)).got(DropLink) == []  # the only link off the ring is young
    assert peer.wait(11).feed(offered(0x30, links=0)).got(DropLink) == []  # and is left to whom it was given
    assert [drop.peer for drop in peer.wait(FOUND_A_PLACE).feed(offered(0x30, links=0)).got(DropLink)] == [at(0x20)]


def test_an_isolated_newcomer_never_costs_a_link_on_the_ring():
    peer = Peer(max_peers=2).linked(0x70, 0x90)
    assert [type(told) for told in peer.feed(offered(0x20, links=0)).told] == [RejectOffer]
    only = Peer(max_peers=1).linked(0x70)
    assert [type(told) for told in only.feed(offered(0x81, links=0)).told] == [RejectOffer]


def test_an_offer_in_hand_beats_a_dial_when_the_lower_id_offers():
    peer = Peer(max_peers=1).found(0x90)
    assert [type(told) for told in peer.feed(offered(0xA0, links=1)).told] == [RejectOffer]
    peer.feed(offered(0x20, links=1))
    assert peer.told == [RejectOffer(at(0x90), "cancelled")]
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x20)]


def test_of_crossing_offers_the_lower_ids_wins():
    higher = Peer().found(0x90).feed(offered(0x90))
    assert higher.effects == []
    lower = Peer().found(0x10).feed(offered(0x10))
    assert [effect.peer.peer_id for effect in lower.got(AcceptOffer)] == [at(0x10)]
    assert lower.got(DropLink) == []  # accepting replaces our attempt
    assert lower.core.snapshot()["attempts"] == [at(0x10)]


def test_an_offer_of_the_original_always_wins():
    peer = Peer().found(0x90).feed(offered(0x90, version=0))
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x90)]


def test_an_offer_that_was_under_way_when_the_link_opened_does_not_cost_the_link():
    peer = Peer().found(0x90).up(0x90).feed(offered(0x90))
    assert [told.reason for told in peer.told if isinstance(told, RejectOffer)] == ["already_linked"]
    assert peer.links == [at(0x90)]


def test_a_peer_that_was_started_anew_gets_a_link_in_place_of_its_old_one():
    peer = Peer(max_peers=1).linked(0x90).feed(offered(0x90, links=0))
    assert peer.got(DropLink) == [DropLink(at(0x90), "it has been started anew")]
    assert peer.got(AcceptOffer) == []
    peer.feed(LinkDown(at(0x90), "closed"))
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x90)]
    assert peer.up(0x90).links == [at(0x90)]


def test_an_unproven_offer_does_not_cost_an_open_link():
    peer = Peer().linked(0x90).feed(offered(0x90, version=0))
    assert [told.reason for told in peer.told if isinstance(told, RejectOffer)] == ["already_linked"]


def test_an_answer_that_is_taken_for_ended_with_the_attempt_that_gave_way_to_it_gets_its_slot_again():
    peer = Peer().found(0x10).feed(offered(0x10)).feed(LinkLost(at(0x10), "no answer"))
    assert peer.attempts == []
    assert peer.up(0x10).links == [at(0x10)]


def test_a_smaller_peer_of_the_original_is_asked_for_its_offer():
    peer = Peer(unverified=True).linked(0x10, version=0).feed(LinkDown(at(0x10), "closed")).wait(1)
    assert peer.dialed == []
    assert peer.told == [RejectOffer(at(0x10), INITIATOR_CONFLICT)]
    assert len(peer.feed(offered(0x10, version=0)).got(AcceptOffer)) == 1


def test_a_wrong_sided_offer_to_the_original_waits_for_its_own():
    peer = Peer(unverified=True).found(0x10).feed(Rejected(at(0x10), "initiator_conflict"))
    assert peer.core.snapshot()["attempts"] == []
    assert peer.wait(1.5).told == []
    assert peer.wait(1.0).told == [RejectOffer(at(0x10), INITIATOR_CONFLICT)]


def test_a_peer_that_asks_for_our_offer_gets_one():
    peer = Peer().found(0x10).feed(Rejected(at(0x10), "initiator_conflict", offer_instead=True))
    assert peer.dialed == [at(0x10)]


def test_a_link_that_opens_without_a_slot_is_closed():
    peer = Peer(max_peers=1).linked(0x90)
    effects = peer.core.handle(LinkUp(RemotePeer(at(0x10), True, 1)), peer.now)
    assert DropLink(at(0x10), "no slot left") in effects
    assert peer.links == [at(0x90)]
    peer.feed(LinkDown(at(0x10), "closed"))
    assert peer.events == [PeerDisconnected(at(0x10), "no slot left")]


# --- what neighbours say ----------------------------------------------------------------------------------------------


def test_an_eviction_is_told_once_and_its_alternatives_are_tried():
    peer = Peer().linked(0x10)
    notice = Received(at(0x10), ReconnectionData(reason="make_room", peers=(at(0x20), ME), timestamp=1))
    peer.feed(notice)
    assert peer.events == []
    assert peer.dialed == [at(0x20)]
    assert peer.feed(notice).events == []
    peer.feed(LinkDown(at(0x10), "closed by the peer"))
    assert peer.events == [PeerEvicted(at(0x10), "make_room", (at(0x20),))]


def test_a_goodbye_ends_the_link_and_names_who_closes_the_gap():
    peer = Peer().linked(0x10).feed(Received(at(0x10), Goodbye(reason="left the mesh", peers=(at(0x20),))))
    assert peer.got(DropLink) == [DropLink(at(0x10), "left the mesh")]
    assert peer.dialed == [at(0x20)]
    peer.feed(LinkDown(at(0x10), "closed by the peer"))
    assert peer.events == [PeerDisconnected(at(0x10), "left the mesh")]
    assert at(0x10) not in peer.wait(100).dialed


def test_a_rejection_in_the_very_moment_of_an_offer_that_replaced_ours_ends_that_attempt():
    peer = Peer().feed(Connect(0, at(0x10))).feed(offered(0x10)).feed(Rejected(at(0x10), FULL, (), False))
    assert peer.got(DropLink) == [DropLink(at(0x10), FULL)]
    assert peer.core.snapshot()["attempts"] == []


def test_hearsay_from_strangers_is_ignored():
    peer = Peer().feed(Received(at(0x10), Goodbye(reason="x", peers=(at(0x20),))))
    assert peer.effects == []


def test_leaving_says_goodbye_and_wants_nothing_more():
    peer = Peer(max_peers=4).linked(0x10).linked(0x90, version=0).found(0x70).feed(Connect(7, at(0x70)))
    peer.feed(Leave())
    frames = {frame.peers[0]: frame.message for frame in peer.got(SendFrame)}
    assert frames[at(0x10)] == Goodbye(reason="left the mesh", peers=(at(0x90),))
    assert isinstance(frames[at(0x90)], ReconnectionData)
    assert {drop.peer for drop in peer.got(DropLink)} == {at(0x10), at(0x70), at(0x90)}
    assert [type(reply.error) for reply in peer.got(Reply)] == [MeshClosed]
    peer.feed(LinkDown(at(0x10), "closed"))
    assert peer.events == [PeerDisconnected(at(0x10), "we left the mesh")]
    assert peer.effects == [Emit(peer.events[0])]
    assert [told.reason for told in peer.feed(offered(0x20)).told] == ["leaving"]
    assert peer.wait(100).effects == []


# --- what the application wants ---------------------------------------------------------------------------------------


def test_connect_is_answered_when_the_link_is_open():
    peer = Peer(max_peers=1).feed(Connect(1, at(0x10)))
    assert peer.dialed == [at(0x10)]
    assert peer.feed(Connect(2, at(0x10))).effects == []
    assert peer.up(0x10).got(Reply) == [Reply(1), Reply(2)]
    assert peer.feed(Connect(3, at(0x10))).got(Reply) == [Reply(3)]


def test_connect_fails_with_the_attempt():
    peer = Peer().feed(Connect(1, at(0x10))).feed(Rejected(at(0x10), "unverified_peer"))
    (reply,) = peer.got(Reply)
    assert isinstance(reply.error, PeerUnreachable)
    assert "unverified_peer" in str(reply.error)


def test_connect_to_a_peer_that_is_full_is_tried_again_for_a_while():
    peer, tries = Peer().feed(Connect(1, at(0x10))), 1
    while not peer.feed(Rejected(at(0x10), FULL)).got(Reply):
        assert tries < 10
        assert peer.wait(1.25 * ROOM_COMES).dialed == [at(0x10)]
        tries += 1
    (reply,) = peer.got(Reply)
    assert isinstance(reply.error, PeerUnreachable)
    assert 3 <= tries <= 6
    assert peer.wait(60).got(Reply) == []


def test_connect_to_a_smaller_peer_of_the_original_waits_for_its_offer():
    peer = Peer(unverified=True).feed(Connect(1, at(0x10))).feed(Rejected(at(0x10), "initiator_conflict"))
    assert peer.got(Reply) == []
    peer.wait(0.2).feed(offered(0x10, version=0))
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x10)]
    assert peer.up(0x10, version=0).got(Reply) == [Reply(1)]
    assert peer.core.snapshot()["pinned"] == [at(0x10)]
    assert peer.wait(60).got(Reply) == []


def test_connect_asks_a_smaller_peer_of_the_original_that_is_known_for_its_offer_and_gives_up_in_the_end():
    peer = Peer(unverified=True).linked(0x10, version=0).feed(LinkDown(at(0x10), "closed"))
    peer.feed(Connect(1, at(0x10)))
    assert peer.dialed == []
    assert RejectOffer(at(0x10), INITIATOR_CONFLICT) in peer.told
    (reply,) = peer.wait(30).got(Reply)
    assert isinstance(reply.error, PeerUnreachable)


def test_a_mesh_that_wants_proofs_asks_no_peer_of_the_original():
    peer = Peer().found(0x10).feed(Rejected(at(0x10), "initiator_conflict")).wait(60)
    assert peer.dialed == []
    assert RejectOffer(at(0x10), INITIATOR_CONFLICT) not in peer.told


def test_a_peer_of_the_original_that_is_dialed_or_due_takes_nobodys_place_on_the_ring():
    peer = Peer(max_peers=4, unverified=True).linked(0x90, version=0).linked(0x70, 0xB0)
    peer.feed(LinkDown(at(0x90), "closed")).feed(Connect(1, at(0x90)))
    assert at(0x90) in peer.core.snapshot()["attempts"]
    peer.found(0xA0, source="ring")
    assert at(0xA0) in peer.core.snapshot()["attempts"]
    full = Peer(max_peers=3, unverified=True).linked(0x70, 0xB0, 0xF0).feed(offered(0x90, version=0))
    assert [drop.peer for drop in full.got(DropLink)] == [at(0xF0)]
    assert full.found(0xA0, source="ring").core.snapshot()["closing"] == [at(0xF0)]
    assert [effect.peer.peer_id for effect in full.feed(LinkDown(at(0xF0), "closed")).got(AcceptOffer)] == [at(0x90)]


@pytest.mark.parametrize(("pause", "given_up"), [(2.5, [0xF0]), (10.0, [])])
def test_one_of_the_original_that_asks_again_soon_has_no_link_and_gets_one_beside_other_guests(pause, given_up):
    peer = Peer(max_peers=4, unverified=True).linked(0x90, version=0).linked(0x70, 0xB0, 0xF0)
    assert peer.feed(offered(0x10, version=0)).got(DropLink) == []
    peer.wait(pause).feed(offered(0x10, version=0))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(one) for one in given_up]
    again = peer.wait(1).feed(offered(0x20, version=0)).wait(1).feed(offered(0x20, version=0))
    assert (again.got(DropLink) == []) == bool(given_up), "one of them in a while"


@pytest.mark.parametrize(
    ("known", "max_peers", "purpose"),
    [((), 1, LEAF), ((), 3, RING), ((0x70, 0x90), 3, LONG), ((0x70, 0x90), 3, PINNED), ((0x70, 0x90), 3, BRIDGE)],
)
def test_signaling_hears_what_an_offer_is_for(known, max_peers, purpose):
    peer = Peer(max_peers=max_peers).linked(*known)
    match purpose:
        case "pinned":
            peer.feed(Connect(1, at(0x10)))
        case "bridge":
            peer.feed(OpenBridge(at(0x10)))
        case "long":
            peer.settled(*known).searched(0x10)
        case _:
            peer.found(0x10)
    intents = [told for told in peer.told if isinstance(told, SetLinkPurpose)]
    assert intents == [SetLinkPurpose(at(0x10), purpose)]
    assert peer.dialed == [at(0x10)]


@pytest.mark.parametrize("target", [ME, at(0x10)])
def test_connect_fails_at_once_to_ourselves_and_without_a_service(target):
    (reply,) = Peer(online=False).feed(Connect(1, target)).got(Reply)
    assert isinstance(reply.error, PeerUnreachable)


def test_connect_makes_room_and_its_link_stays():
    peer = Peer(max_peers=2).linked(0x70, 0x90).feed(Connect(1, at(0x10)))
    (dropped,) = peer.got(DropLink)
    assert peer.feed(LinkDown(dropped.peer, "closed")).dialed == [at(0x10)]
    assert peer.up(0x10).got(Reply) == [Reply(1)]
    assert peer.core.snapshot()["pinned"] == [at(0x10)]
    peer.wait(60).found(0x7F, 0x81)
    assert at(0x10) not in [drop.peer for drop in peer.got(DropLink)]


def test_connect_fails_when_all_links_are_pinned():
    peer = Peer(max_peers=1).feed(Connect(1, at(0x10))).up(0x10).feed(Connect(2, at(0x20)))
    (reply,) = peer.got(Reply)
    assert isinstance(reply.error, PeerUnreachable)


def test_a_cancelled_connect_gets_no_reply_and_pins_nothing():
    peer = Peer().feed(Connect(1, at(0x10))).feed(CancelCall(1)).up(0x10)
    assert peer.got(Reply) == []
    assert peer.core.snapshot()["pinned"] == []


# --- known peers ------------------------------------------------------------------------------------------------------


def test_known_peers_are_bounded_and_those_that_failed_go_first():
    known = PassiveView(ME, TopologyConfig(known_peers=4), random.Random(1))
    known.learn([at(1), at(2), at(3), at(4)], "bootstrap", 0.0)
    known.missed(at(3), 0.0, may_forget=False)
    known.learn([at(5)], "bootstrap", 0.0)
    assert list(known) == [at(1), at(2), at(4), at(5)]
    known.learn([at(1), at(6), ME], "bootstrap", 0.0)
    assert list(known) == [at(4), at(5), at(1), at(6)]


def test_a_peer_that_failed_too_often_is_worth_no_link_before_it_was_found_or_has_spoken():
    known = PassiveView(ME, TopologyConfig(), random.Random(1))
    for redeem in (
        lambda: known.learn([at(1)], "beyond", 0.0),
        lambda: known.linked(at(1), 1, leaf=False),
        known.forgive,
    ):
        known.learn([at(1)], "bootstrap", 0.0)
        for misses in range(TRUST + 2):
            assert known.of(at(1)).is_worth_a_link == (misses < TRUST)
            known.missed(at(1), 0.0, may_forget=False)
        known.learn([at(1)], "bootstrap", 0.0)
        assert not known.of(at(1)).is_worth_a_link
        redeem()
        assert known.of(at(1)).is_worth_a_link


@given(st.sets(st.integers(0, 255).map(at), min_size=1, max_size=20))
def test_ring_neighbours_are_mutual(peers):
    for peer in peers:
        for neighbour in ring_neighbours(peer, peers - {peer}):
            assert peer in ring_neighbours(neighbour, peers - {neighbour})


# --- whole meshes -----------------------------------------------------------------------------------------------------


def settled(net: Net, seconds: float = 120.0) -> None:
    """Let it settle; then nothing may be closed any more, at most a last hole be filled."""
    net.run(seconds)
    closed = [node.overlay.snapshot()["link_manager"]["closed"] for node in net.nodes.values()]
    net.run(60.0)
    assert closed == [node.overlay.snapshot()["link_manager"]["closed"] for node in net.nodes.values()]
    net.check_symmetric()
    net.check_events()


def check_one_mesh(net: Net, max_peers: int) -> None:
    if max_peers >= 2:
        assert net.islands() == 1
        for node in net.nodes.values():
            assert set(ring_neighbours(node.peer_id, [p for p in net.nodes if p != node.peer_id])) <= set(node.links)
        return
    unpaired = [node for node in net.nodes.values() if not node.links]
    for node in unpaired:  # a peer with one link can't tell others of third ones, so some may never hear of each other
        assert not {other.peer_id for other in unpaired} & set(node.overlay._passive)


@examples(60)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 16),
    max_peers=st.integers(1, 5),
    pause=st.sampled_from([0.0, 0.01, 0.3]),
    original_server=st.booleans(),
)
def test_whoever_joins_in_whatever_order_becomes_one_mesh(seed, count, max_peers, pause, original_server):
    net = Net(seed, original_server=original_server)
    for _ in range(count):
        net.add(MeshConfig(max_peers=max_peers))
        net.run(pause)
    settled(net)
    check_one_mesh(net, max_peers)


@pytest.mark.parametrize(
    ("max_peers", "pause"),
    [
        (2, 0.0),
        *(
            pytest.param(*rest, marks=pytest.mark.simulation)
            for rest in [(5, 0.2), (2, 0.2), (3, 0.0), (3, 0.2), (5, 0.0)]
        ),
    ],
)
def test_thirty_peers_are_one_mesh_within_seconds(max_peers, pause):
    net = Net(30 + max_peers)
    for _ in range(30):
        net.add(MeshConfig(max_peers=max_peers))
        net.run(pause)
    net.run(8.0 if max_peers == 2 else 3.0)  # with two links each, places on the ring are found one after the other
    assert net.islands() == 1
    settled(net)
    check_one_mesh(net, max_peers)
    assert sum(node.opened for node in net.nodes.values()) <= 30 * 3 * max_peers


@examples(30)
@given(
    seed=st.integers(0, 2**32),
    max_peers=st.integers(1, 5),
    original_server=st.booleans(),
    faults=st.lists(
        st.tuples(st.sampled_from(["join", "leave", "kill", "cut", "outage"]), st.floats(0.0, 8.0)), max_size=20
    ),
)
def test_faults_and_departures_are_healed(seed, max_peers, original_server, faults):
    net = Net(seed, original_server=original_server, attempt_loss=0.1)
    config = MeshConfig(max_peers=max_peers)
    for _ in range(6):
        net.add(config)
    for fault, pause in faults:
        net.run(pause)
        inject(net, fault, config)
    net.attempt_loss = 0.0
    settled(net, 240.0)
    check_one_mesh(net, max_peers)


def inject(net: Net, fault: str, config: MeshConfig) -> None:
    node: Node = net.rng.choice(list(net.nodes.values()))
    match fault:
        case "join":
            net.add(config)
        case "leave" if len(net.nodes) > 2:
            net.leave(node)
        case "kill" if len(net.nodes) > 2:
            net.kill(node)
        case "cut" if node.links:
            net.cut(node, net.rng.choice(list(node.links)), "lost")
        case "outage":
            net.set_service(False)
            net.run(2.0)
            net.set_service(True)
        case _:
            pass  # too few are left


def test_a_mesh_at_rest_outlives_its_service():
    net = Net(7)
    for _ in range(12):
        net.add(MeshConfig(max_peers=3))
    settled(net)
    links = {peer: set(node.links) for peer, node in net.nodes.items()}
    net.set_service(False)
    net.run(600.0)
    assert links == {peer: set(node.links) for peer, node in net.nodes.items()}
    newcomer = net.add(MeshConfig(max_peers=3))
    net.set_service(True)
    settled(net)
    assert newcomer.links
    check_one_mesh(net, 3)


def test_the_same_seed_gives_the_same_mesh():
    def run():
        net = Net(11)
        for _ in range(10):
            net.add(MeshConfig(max_peers=3))
        net.run(60.0)
        return [(peer, list(node.links), node.events) for peer, node in net.nodes.items()]

    assert run() == run()


# --- whatever comes ---------------------------------------------------------------------------------------------------

PLACES = st.sampled_from([0x10, 0x40, 0x70, 0x7F, 0x81, 0x90, 0xC0, 0xF0])
PEERS = PLACES.map(at)
LISTS = st.lists(st.one_of(PEERS, st.just(ME)), max_size=4).map(tuple)
REASONS = st.sampled_from(["max_peers_reached", "cancelled", "no_attempt", "not found", "initiator_conflict", "x"])
INPUTS = st.one_of(
    st.builds(PeersFound, LISTS, st.sampled_from(["bootstrap", "joined"])),
    st.builds(PeerGone, PEERS),
    st.builds(offered, PLACES, st.sampled_from([None, 0, 1]), st.sampled_from([0, 1])),
    st.builds(Rejected, PEERS, REASONS, LISTS, st.booleans()),
    st.builds(Received, PEERS, st.builds(Goodbye, reason=st.just("x"), peers=LISTS)),
    st.builds(Received, PEERS, st.builds(ReconnectionData, reason=st.just("x"), peers=LISTS, timestamp=st.just(1))),
    st.builds(LinkLost, PEERS, st.just("x")),
    st.builds(LinkDown, PEERS, st.just("x"), st.sampled_from([None, 5.0])),
    st.builds(Connect, st.integers(0, 9), PEERS),
    st.builds(CancelCall, st.integers(0, 9)),
    st.sampled_from([ServiceUp("one"), ServiceDown("one", "x")]),
    st.sampled_from([0.1, 2.0, 30.0]),  # time goes by
    st.just("opens"),
)


@examples(200)
@given(st.integers(1, 4), st.lists(INPUTS, max_size=60))
def test_whatever_comes_the_cap_holds_and_no_link_is_wanted_twice(max_peers, inputs):
    peer = Peer(max_peers)
    attempts: dict[PeerId, None] = {}
    links: dict[PeerId, None] = {}
    calls: set[int] = set()
    for event in inputs:
        match event:
            case float():
                peer.wait(event)
            case "opens":
                if not attempts:
                    continue
                opening = next(iter(attempts))
                del attempts[opening]
                links[opening] = None
                peer.feed(LinkUp(RemotePeer(opening, True, 1)))
            case LinkLost(lost):
                if attempts.pop(lost, 0) == 0:
                    continue
                peer.feed(event)
            case LinkDown(down):
                if links.pop(down, 0) == 0:
                    continue
                peer.feed(event)
            case Connect(call):
                if call in calls:
                    continue
                calls.add(call)
                peer.feed(event)
            case _:
                peer.feed(event)
        for effect in peer.effects:
            match effect:
                case WantLink(wanted):
                    assert wanted not in attempts
                    assert wanted not in links
                    attempts[wanted] = None
                case AcceptOffer(remote):
                    assert remote.peer_id not in links
                    attempts[remote.peer_id] = None
                case DropLink(dropped):
                    attempts.pop(dropped, None)
                case Reply(call):
                    calls.remove(call)
                case _:
                    pass
            assert len(attempts) + len(links) <= max_peers
        calls -= {event.call} if isinstance(event, CancelCall) else set()
        assert set(peer.core.snapshot()["attempts"]) == set(attempts)
        assert set(peer.core.snapshot()["links"]) | set(peer.core.snapshot()["closing"]) == set(links)


def test_an_attempt_that_found_no_slot_is_nobodys_failure():
    peer = Peer().feed(PeersFound((at(0x10),), "bootstrap"))
    assert not [e for e in peer.feed(LinkLost(at(0x10), NO_SLOT)).effects if isinstance(e, Emit)]
