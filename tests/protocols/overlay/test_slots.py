"""The overlay core and its slots: long links, leaves, bridges, and what makes room for what."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2pmesh.config import LinkConfig, SignalingConfig, TopologyConfig
from p2pmesh.protocols.core import AcceptOffer, DropLink, SendFrame
from p2pmesh.protocols.inputs import Connect, Leave, LinkDown, LinkLost, LinkUp, PeersFound, Received, RemotePeer
from p2pmesh.protocols.notices import MergeStarted, OpenBridge, Rejected, RejectOffer, RouteSucceeded
from p2pmesh.protocols.overlay.admission import MOST_PROMISES, Admission
from p2pmesh.protocols.overlay.passive_view import DEPARTED_LASTS, PATIENCE, PassiveView
from p2pmesh.protocols.overlay.slots import BRIDGE_HOLDS, SLOW, Slots
from p2pmesh.wire.messages import BRIDGE, LEAF, LONG, PINNED, RING, Goodbye, ReconnectionData
from p2pmesh.wire.overlay import FindSuccessor, SuccessorFound
from tests.harness.overlay import ALL, ME, Peer, at, offered, says

# --- long links -------------------------------------------------------------------------------------------------------


def test_peers_for_a_long_link_are_dialed_one_after_the_other_until_one_opens():
    peer = Peer(max_peers=4).linked(0x70, 0x90).settled(0x70, 0x90).searched(0x10, 0x20, 0x30)
    (first,) = peer.dialed
    (second,) = peer.feed(Rejected(first, "max_peers_reached")).dialed
    assert {first, second} < {at(0x10), at(0x20), at(0x30)}
    assert first != second
    assert peer.feed(LinkUp(RemotePeer(second, True, 1))).dialed == []
    assert peer.feed(LinkDown(second, "reset")).dialed == []


def test_what_was_found_long_ago_is_not_dialed():
    peer = Peer(max_peers=3).linked(0x70, 0x90).settled(0x70, 0x90).searched(0x10, 0x20)
    (first,) = peer.dialed
    assert peer.wait(60).feed(LinkLost(first, "no answer")).dialed == []


def test_a_slot_that_the_ring_needs_is_not_taken_by_a_long_link():
    peer = Peer(max_peers=3, unverified=True).linked(0x70, 0x90).settled(0x70, 0x90)
    search = peer.searching()
    peer.feed(LinkDown(at(0x90), "reset")).feed(offered(0x20, version=0))
    assert peer.feed(RouteSucceeded(search.call, at(0x10), SuccessorFound(welcome=True))).dialed == []


def welcomed(peer, place):
    """The peer, which has told a leaf at this place that it is welcome."""
    assert peer.asked(FindSuccessor(key=at(place), leaf=True), place).welcome
    return peer


def test_who_was_promised_a_link_gets_the_place_of_the_longest_one_that_has_settled():
    peer = Peer(max_peers=5).linked(0x70, 0x90, 0x00, 0xC0).linked(0x20).settled(0x70, 0x90, 0x00, 0xC0, 0x20)
    assert [told.reason for told in peer.feed(offered(0x30, links=2)).told] == ["max_peers_reached"]
    welcomed(peer, 0x30).feed(offered(0x30, links=2))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x00)]
    peer.feed(LinkDown(at(0x00), "closed"))
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x30)]


def test_a_promise_holds_once_and_not_for_long():
    peer = welcomed(Peer(max_peers=3).linked(0x70, 0x90, 0x00).settled(0x70, 0x90, 0x00), 0x30).wait(16)
    assert peer.feed(offered(0x30, links=2)).got(DropLink) == []
    welcomed(peer, 0x30).feed(offered(0x30, links=2))
    assert len(peer.got(DropLink)) == 1


@pytest.mark.parametrize("purpose", [PINNED, BRIDGE])
def test_who_calls_for_a_link_gets_the_place_of_a_long_one_that_has_settled(purpose):
    peer = Peer(max_peers=5).linked(0x70, 0x90, 0x00, 0xC0).linked(0x20).feed(offered(0x30, links=2, purpose=purpose))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x00)]
    peer.feed(LinkDown(at(0x00), "closed"))
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x30)]


@pytest.mark.parametrize("purpose", [RING, LONG, LEAF, "whatever", None])
def test_no_other_purpose_costs_a_link(purpose):
    peer = Peer(max_peers=5).linked(0x70, 0x90, 0x00, 0xC0, 0x20)
    assert peer.feed(offered(0x30, links=2, purpose=purpose)).got(DropLink) == []


def test_who_calls_for_a_link_never_gets_one_of_the_ring_or_one_that_has_not_settled():
    ring = Peer(max_peers=2).linked(0x70, 0x90).feed(offered(0x30, links=1, purpose=PINNED))
    assert ring.got(DropLink) == []
    young = Peer(max_peers=3).linked(0x70, 0x90).feed(offered(0x00, links=1)).up(0x00)
    assert young.feed(offered(0x30, links=1, purpose=PINNED)).got(DropLink) == []


def test_an_unverified_peer_calls_in_vain():
    peer = Peer(max_peers=3, unverified=True).linked(0x70, 0x90, 0x00)
    offer = offered(0x30, links=1, purpose=PINNED)
    offer = replace(offer, peer=replace(offer.peer, verified=False))
    assert peer.feed(offer).got(DropLink) == []


def test_those_who_call_for_links_push_out_each_other_rather_than_all_long_links():
    peer = Peer(max_peers=6).linked(0x70, 0x90, 0x00, 0x20, 0x40, 0xC0)
    for place in range(0x28, 0x3C, 2):
        peer.feed(offered(place, links=3, purpose=PINNED))
        assert peer.feed(offered(place + 1, links=3, purpose=PINNED)).got(DropLink) == [], "rarely"
        for gone in peer.core.snapshot()["closing"]:
            peer.feed(LinkDown(gone, "closed"))
        peer.up(place).wait(30)
    assert len(set(peer.links) & {at(0x70), at(0x90), at(0x00), at(0x20), at(0x40), at(0xC0)}) == 4
    assert at(0x3A) in peer.links


def test_a_leafs_first_offer_disturbs_nobody_on_the_ring():
    full = Peer(max_peers=2).linked(0x70, 0x90)
    assert full.feed(offered(0x88, links=0, purpose=LEAF)).got(DropLink) == []
    assert len(full.feed(offered(0x8C, links=0, purpose=RING)).got(DropLink)) == 1
    free = Peer(max_peers=4).linked(0x70, 0x90).feed(offered(0x88, links=0, purpose=LEAF)).up(0x88)
    assert free.core.snapshot()["leaves"] == [at(0x88)]
    assert set(free.core.snapshot()["ring"]) == {at(0x70), at(0x90)}


def test_who_comes_next_to_us_does_not_cost_us_the_neighbour_on_its_other_side():
    peer = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0).feed(offered(0x90, links=1))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0xF0)]


def test_all_are_told_of_each_other_when_we_leave():
    peer = Peer(max_peers=4).linked(0x70, 0x90, 0x00).feed(Leave())
    told = {frame.peers[0]: frame.message.peers for frame in peer.got(SendFrame)}
    assert told.keys() == {at(0x70), at(0x90), at(0x00)}
    assert at(0x90) in told[at(0x70)]
    assert at(0x70) in told[at(0x90)]


def test_promises_are_bounded():
    admission = Admission(ME, 3, Slots(ME, 3), TopologyConfig())
    for place in range(100):
        admission.promise(at(place), 0.0, leaf=True)
    assert [place for place in range(100) if admission.is_leaf(at(place))] == list(range(100 - MOST_PROMISES, 100))


def test_a_superfluous_link_is_closed_by_the_lower_id_and_missed_by_nobody():
    lower = Peer(max_peers=4).placed().wait(1)
    lower.up(0x84, says(0x84, ring=[*ALL, 0x84], links=[0x80, 0x88]))
    assert lower.got(DropLink) == [DropLink(at(0x88), "the ring is closed without this link")]
    higher = Peer(max_peers=4).placed().wait(1)
    higher.up(0x7C, says(0x7C, ring=[*ALL, 0x7C], links=[0x80, 0x78]))
    assert higher.got(DropLink) == []
    assert higher.feed(LinkDown(at(0x78), "closed by the peer")).wait(0.4).dialed == []


def test_a_link_that_the_application_wants_is_never_superfluous():
    peer = Peer(max_peers=4).placed().feed(Connect(1, at(0x88))).wait(1)
    peer.up(0x84, says(0x84, ring=[*ALL, 0x84], links=[0x80, 0x88]))
    assert peer.got(DropLink) == []


# --- the ring ---------------------------------------------------------------------------------------------------------


def test_a_real_offer_is_not_kept_out_by_a_dial_to_somebody_nearer_who_may_not_be_there():
    peer = Peer(max_peers=3).linked(0x70, 0x10).found(0x85)
    assert peer.dialed == [at(0x85)]
    peer.feed(offered(0x90, links=2))
    assert [type(told) for told in peer.told if isinstance(told, RejectOffer)] == [
        RejectOffer
    ]  # it takes its dial back
    assert [effect.peer.peer_id for effect in peer.got(AcceptOffer)] == [at(0x90)]


def test_the_slot_of_a_link_that_is_being_closed_goes_to_who_is_missing_on_the_ring():
    peer = Peer(max_peers=3).linked(0x70, 0x90, 0x10)
    peer.feed(Received(at(0x90), Goodbye(reason="bye", peers=(at(0xA0),))))
    assert peer.got(DropLink) == [DropLink(at(0x90), "bye")]  # and no other link
    assert peer.feed(LinkDown(at(0x90), "closed")).dialed == [at(0xA0)]


def test_who_said_goodbye_is_not_believed_to_be_there_because_others_say_so():
    peer = Peer(max_peers=3).linked(0x70, 0x90)
    peer.feed(Received(at(0x90), Goodbye(reason="bye"))).feed(LinkDown(at(0x90), "closed"))
    for source in ("ring", "hearsay"):
        assert peer.found(0x90, source=source).dialed == []
    assert at(0x90) not in peer.wait(DEPARTED_LASTS / 2).dialed
    assert len(peer.feed(offered(0x90, links=0)).got(AcceptOffer)) == 1


def test_who_fell_silent_is_not_dialed_because_neighbours_that_have_not_noticed_name_it():
    peer = Peer(max_peers=3).linked(0x70, 0x90).feed(LinkDown(at(0x90), "silent", 5.0))
    assert peer.found(0x90, source="ring").dialed == []


# --- leaves -----------------------------------------------------------------------------------------------------------


def test_a_leaf_is_no_neighbour_on_the_ring_and_gives_way_to_one():
    peer = Peer(max_peers=2).linked(0x70, 0x88).hear(0x88, says(0x88, leaf=True, ring=()))
    assert peer.core.snapshot()["leaves"] == [at(0x88)]
    peer.found(0x90)
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x88)]


def test_peers_of_the_original_and_unproven_ones_are_leaves():
    peer = Peer(max_peers=4).linked(0x70, 0x90).linked(0x81, version=0)
    peer.feed(offered(0x82, links=1)).feed(LinkUp(RemotePeer(at(0x82), False, 1)))
    assert peer.core.snapshot()["leaves"] == [at(0x81), at(0x82)]
    assert peer.core.snapshot()["ring"] == [at(0x90), at(0x70)]


def test_a_leaf_that_was_promised_a_place_takes_no_neighbours_place():
    peer = Peer(max_peers=3).linked(0x70, 0x90, 0x10).settled(0x70, 0x90, 0x10)
    assert peer.asked(FindSuccessor(key=at(0x81), leaf=True), 0x81).welcome
    peer.feed(offered(0x81, links=0))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x10)]


def test_a_leaf_moves_to_a_better_place_that_it_has_looked_up():
    welcome = SuccessorFound(welcome=True)
    leaf = Peer(max_peers=1).linked(0x10).hear(0x10, says(0x10))
    leaf.feed(RouteSucceeded(leaf.placing().call, at(0x78), welcome))
    assert [drop.peer for drop in leaf.got(DropLink)] == [at(0x10)]
    assert leaf.feed(LinkDown(at(0x10), "closed")).dialed == [at(0x78)]
    leaf.up(0x78, says(0x78, ring=[*ALL, 0x7C]))
    assert leaf.feed(RouteSucceeded(leaf.placing().call, at(0x10), welcome)).got(DropLink) == []


def test_a_leaf_that_is_linked_to_a_leaf_looks_for_somebody_else():
    leaf = Peer(max_peers=1).linked(0x10).found(0x20)
    assert leaf.got(DropLink) == []
    leaf.hear(0x10, says(0x10, leaf=True, ring=()))
    assert [drop.peer for drop in leaf.got(DropLink)] == [at(0x10)]
    assert leaf.feed(LinkDown(at(0x10), "closed")).dialed == [at(0x20)]


# --- bridges ----------------------------------------------------------------------------------------------------------


def test_a_bridge_is_opened_in_place_of_the_longest_link():
    peer = Peer(max_peers=3).linked(0x70, 0x90, 0x10).feed(OpenBridge(at(0x30)))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x10)]
    assert peer.feed(LinkDown(at(0x10), "closed")).dialed == [at(0x30)]
    peer.up(0x30).wait(60).found(0x88)
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x30)]  # the ring needs its place


def test_a_bridge_costs_no_neighbour_on_the_ring_and_is_built_once():
    peer = Peer(max_peers=2).linked(0x70, 0x90).feed(OpenBridge(at(0x30)))
    assert peer.effects == []
    free = Peer(max_peers=3).linked(0x70, 0x90).feed(OpenBridge(at(0x30)))
    assert free.dialed == [at(0x30)]
    assert free.feed(OpenBridge(at(0x30))).effects == []
    assert free.feed(OpenBridge(ME)).effects == []


@pytest.mark.parametrize("theirs", [False, True])
def test_a_bridge_keeps_its_slot_for_a_while(theirs):
    peer = Peer(max_peers=3).linked(0x70, 0x90, 0x10)
    peer.feed(offered(0x30, links=2, purpose=BRIDGE) if theirs else OpenBridge(at(0x30)))
    peer.feed(LinkDown(at(0x10), "closed")).up(0x30).wait(BRIDGE_HOLDS - 1)
    assert peer.feed(offered(0x88, links=1)).got(DropLink) == []
    peer.wait(1)
    assert [drop.peer for drop in peer.feed(offered(0x89, links=1)).got(DropLink)] == [at(0x30)]


def test_who_is_settled_takes_the_place_of_the_neighbour_on_its_other_side():
    peer = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0).feed(offered(0x90, links=2))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0xB0)]


def test_while_rings_merge_a_dial_costs_a_neighbour_on_the_ring_rather_than_a_long_link():
    alone = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0).found(0x90)
    assert [drop.peer for drop in alone.got(DropLink)] == [at(0xF0)]
    merging = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0)
    merging.feed(MergeStarted(merging.now + 5)).found(0x90)
    assert [drop.peer for drop in merging.got(DropLink)] == [at(0xB0)]
    over = Peer(max_peers=3).linked(0x70, 0xB0, 0xF0)
    over.feed(MergeStarted(over.now + 5)).wait(6).found(0x90)
    assert [drop.peer for drop in over.got(DropLink)] == [at(0xF0)]


def test_a_place_on_the_ring_that_another_took_is_no_long_link_to_be_made_good():
    peer = Peer(max_peers=5).placed()
    for place in (0x20, 0x40, 0xC0):
        peer.up(place, says(place))
    eviction = ReconnectionData(reason="make_room", peers=(), timestamp=1)
    peer.wait(5).hear(0x88, eviction).feed(LinkDown(at(0x88), "closed by the peer"))
    assert not [route for route in peer.in_vain().wait(60).routes() if route.message.seeks_link]


def test_an_attempt_is_not_slow_before_a_service_could_help():
    assert SignalingConfig().mesh_timeout + 1 < SLOW < LinkConfig().connect_timeout


def test_a_slow_attempt_does_not_keep_us_from_the_next_on_the_ring():
    dialing = Peer(max_peers=4).linked(0x70, 0xB0).found(0x90)
    assert dialing.dialed == [at(0x90)]
    assert dialing.found(0xA0).dialed == []
    assert dialing.wait(SLOW).dialed == [at(0xA0)]
    full = Peer(max_peers=3).linked(0x70, 0xB0).feed(offered(0x90, links=2))
    assert full.feed(offered(0xA0, links=2)).got(DropLink) == []
    assert [drop.peer for drop in full.wait(SLOW).feed(offered(0xA1, links=2)).got(DropLink)] == [at(0x90)]


# --- known peers ------------------------------------------------------------------------------------------------------


def test_a_contact_list_full_of_made_up_ids_costs_no_link_and_washes_out():
    peer = Peer(max_peers=3).linked(0x70, 0x90, 0x10)
    lies = tuple(f"80{number:038x}" for number in range(1, 65))
    peer.feed(PeersFound(lies, "hearsay"))
    for _ in range(600):
        for liar in peer.wait(1).dialed:
            peer.feed(LinkLost(liar, "no answer"))
    assert peer.links == [at(0x70), at(0x90), at(0x10)]
    assert peer.got(SendFrame) == []


def test_a_peer_that_failed_too_often_is_forgotten_by_those_who_have_links():
    known = PassiveView(ME, TopologyConfig(), random.Random(1))
    known.learn([at(1), at(2)], "bootstrap", 0.0)
    for _ in range(PATIENCE):
        assert list(known) == [at(1), at(2)]
        known.missed(at(1), 0.0, may_forget=True)
        known.missed(at(2), 0.0, may_forget=False)
    assert list(known) == [at(2)]


def test_a_peer_without_links_dials_at_once_whom_a_service_names_though_its_link_just_ended():
    peer = Peer(max_peers=3).linked(0x70).wait(30)
    peer.feed(LinkDown(at(0x70), "silent", 5.0))
    assert peer.dialed == []
    assert peer.feed(PeersFound((at(0x70),), "bootstrap")).dialed == [at(0x70)]


def test_a_peer_with_links_lets_those_rest_that_fell_silent():
    peer = Peer(max_peers=3).linked(0x70, 0x90).settled(0x70, 0x90).wait(30)
    peer.feed(LinkDown(at(0x70), "silent", 5.0))
    assert peer.feed(PeersFound((at(0x70),), "bootstrap")).dialed == []


# --- peers to which no address leads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asks",
    [
        pytest.param(lambda peer: peer.feed(PeersFound((at(0x85),), "ring")), id="a neighbour names it"),
        pytest.param(lambda peer: peer.feed(PeersFound((at(0x85),), "beyond")), id="it was found at its place"),
        pytest.param(lambda peer: peer.feed(PeersFound((at(0x85),), "bootstrap")), id="a service names it"),
        pytest.param(lambda peer: peer.feed(OpenBridge(at(0x85))), id="a bridge is wanted"),
        pytest.param(lambda peer: peer.feed(MergeStarted(1e9)).feed(PeersFound((at(0x85),), "ring")), id="a merge"),
        pytest.param(lambda peer: peer.searched(0x85), id="a search found it"),
        pytest.param(lambda peer: peer.wait(30), id="time passes"),
    ],
)
def test_a_peer_to_which_no_address_leads_is_not_dialed_again_whatever_asks(asks):
    peer = Peer(max_peers=5).linked(0x70, 0x90).settled(0x70, 0x90)
    assert peer.feed(PeersFound((at(0x85),), "ring")).dialed == [at(0x85)]
    peer.feed(LinkLost(at(0x85), "our addresses are IPv4 and the peer's IPv6", hopeless=True))
    assert asks(peer).dialed == []
    peer.wait(2 * TopologyConfig().retry_cap)
    assert at(0x85) in peer.dialed or at(0x85) in peer.feed(PeersFound((at(0x85),), "ring")).dialed


def test_it_is_dialed_again_once_a_link_to_it_has_opened():
    peer = Peer(max_peers=5).linked(0x70, 0x90).settled(0x70, 0x90)
    peer.feed(PeersFound((at(0x85),), "ring")).feed(LinkLost(at(0x85), "no address", hopeless=True))
    peer.feed(offered(0x85)).feed(LinkUp(RemotePeer(at(0x85), True, 1)))
    peer.feed(LinkDown(at(0x85), "reset")).wait(TopologyConfig().retry_first + 0.1)
    assert at(0x85) in [*peer.dialed, *peer.feed(PeersFound((at(0x85),), "ring")).dialed]


def test_the_table_of_those_peers_has_a_bound():
    known = PassiveView(ME, TopologyConfig(known_peers=4), random.Random(1))
    for place in range(6):
        known.despair(at(place), 0.0)
    assert [known.may_dial(at(place), 1.0) for place in range(6)] == [True, True, False, False, False, False]


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "times"), [({"blamed": True}, 1), ({"timed_out": 5.0}, 2)])
def test_among_links_that_may_be_given_up_one_with_a_score_below_zero_goes_first(bad, times):
    peer = Peer(max_peers=5).linked(0x70, 0x90, 0x00, 0xC0, 0x20).settled(0x70, 0x90, 0x00, 0xC0, 0x20)
    for _ in range(times):
        peer.feed(LinkDown(at(0xC0), "it ended", **bad)).linked(0xC0).settled(0xC0)
    peer.wait(60)
    assert peer.core.snapshot()["scores"][at(0xC0)]["score"] < 0
    welcomed(peer, 0x30).feed(offered(0x30, links=2))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0xC0)]


def test_a_neighbour_on_the_ring_stays_whatever_its_score():
    peer = Peer(max_peers=5).linked(0x70, 0x90, 0x00, 0xC0, 0x20).settled(0x70, 0x90, 0x00, 0xC0, 0x20)
    peer.feed(LinkDown(at(0x90), "it ended", blamed=True)).linked(0x90).settled(0x90).wait(60)
    welcomed(peer, 0x30).feed(offered(0x30, links=2))
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x00)]
