"""The ways of offers, answers and rejections: through the mesh, by a service, and the next one where one fails."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest

from p2pmesh.config import IceServer, LinkConfig, SignalingConfig, WorkConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import FeedSignal, Notify
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkLost, LinkUp, LocalSignal, RemotePeer, ServiceDown, Subsystem
from p2pmesh.protocols.notices import (
    FULL,
    NOT_FOUND,
    Offered,
    Rejected,
    RejectOffer,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    SetLinkPurpose,
)
from p2pmesh.protocols.routing.forwarding_table import trail_id
from p2pmesh.protocols.signaling.delivery import NO_WAY
from p2pmesh.protocols.signaling.handshake import mark_of, sign_answer, sign_offer, verify_answer, verify_offer
from p2pmesh.protocols.signaling.offer_answer import MAX_ALTERNATIVES, MAX_TRICKLED, SAME_OFFER
from p2pmesh.protocols.util.window import OUTCOME_GRACE
from p2pmesh.wire.messages import PINNED, Answer, DirectAck, IceCandidate, LinkRejected, Offer
from p2pmesh.wire.signaling import (
    BootstrapPeers,
    ConnectionRejected,
    KnownPeer,
    PeerSignal,
    PeerSignals,
    ServiceError,
    SignalRejected,
)
from tests.harness.signaling import (
    BOB,
    CANDIDATE,
    CAROL,
    EVE,
    ME,
    ORIGINAL,
    Peer,
    answer,
    answered,
    bare,
    description,
    from_peer,
    offer,
    routed,
    way_back,
)
from tests.harness.virtual_time import NETWORK, remote

OFFER, ANSWER = description("offer", 1), description("answer", 1)
HIS_OFFER, HIS_ANSWER = description("offer", 2), description("answer", 2)
OFFERED = routed(BOB, offer(2))
SERVED = from_peer(BOB, sign_offer(BOB, ME.peer_id, offer(2), network=NETWORK))
NOT_HERE = ServiceError(message=f"Peer {BOB.peer_id} not found.", code="not_found", to=BOB.peer_id)


def offering(*services):
    """A peer with one link into the mesh, whose offer to Bob is on its way through it."""
    peer = Peer()
    if services:
        peer.join(*services)
    return peer.in_mesh().feed(LocalSignal(BOB.peer_id, OFFER))


# --- offers -----------------------------------------------------------------------------------------------------------


def test_with_one_link_into_the_mesh_an_offer_goes_through_it_and_its_answer_is_the_reply():
    peer = offering("one")
    (route,) = peer.routes
    assert peer.sent == []
    assert (route.owner, route.to, route.way) == (Subsystem.SIGNALING, BOB.peer_id, None)
    assert (route.answered, route.timeout) == (True, peer.config.signaling.mesh_timeout)
    assert route.message == Offer(description=OFFER, links=1)
    assert peer.feed(answered(route, answer(2))).effects == [FeedSignal(RemotePeer(BOB.peer_id, True, 1), HIS_ANSWER)]
    assert peer.feed(answered(route, answer(3))).effects == []
    assert (
        peer.counts("delivery.offers.sent"),
        peer.counts("delivery.offers.mesh"),
        peer.counts("delivery.offers.service"),
    ) == (1, 1, 0)


def test_an_answerer_may_wait_for_an_ice_server_that_says_nothing():
    links = LinkConfig(ice_servers=(IceServer(urls="stun:192.0.2.1"),))
    (route,) = Peer(links=links).in_mesh().feed(LocalSignal(BOB.peer_id, OFFER)).routes
    assert route.timeout == SignalingConfig().mesh_timeout + links.gathering_timeout


@pytest.mark.parametrize(
    ("peer", "service"),
    [
        pytest.param(lambda: Peer().join("one", "two").feed(LocalSignal(BOB.peer_id, OFFER)), "one", id="our offer's"),
        pytest.param(lambda: Peer().join("one", "two").signaled(SERVED, "two"), "two", id="their offer's"),
        pytest.param(lambda: offering("one"), "one", id="any, if the offer went through the mesh"),
        pytest.param(lambda: Peer().join("one").in_mesh().feed(OFFERED), "one", id="any, if the offer came through it"),
        pytest.param(lambda: offering(), None, id="none"),
        pytest.param(lambda: Peer().join("one"), None, id="no attempt"),
    ],
)
def test_an_address_that_is_found_late_is_told_by_a_service(peer, service):
    peer = peer()
    peer.feed(LocalSignal(BOB.peer_id, IceCandidate(address=bytes([192, 0, 2, 7]), port=5, kind="srflx")))
    told = [(by, message.signal.candidate.candidate.split()[-4:]) for by, message in peer.sent]
    assert told == ([(service, ["192.0.2.7", "5", "typ", "srflx"])] if service else [])
    assert peer.counts("messages.untold_candidates") == (service is None)


@pytest.mark.parametrize("reply", [None, Answer(description=OFFER), offer(2)])
def test_a_reply_that_is_no_answer_is_none(reply):
    peer = offering("one")
    (route,) = peer.routes
    assert peer.feed(answered(route, reply)).effects == []
    assert peer.counts("messages.ignored") == 1


@pytest.mark.parametrize("neighbour", [RemotePeer(CAROL.peer_id, False, 0), RemotePeer(CAROL.peer_id, False, 1)])
def test_without_a_verified_neighbour_of_ours_there_is_no_way_through_the_mesh(neighbour):
    peer = Peer().join().feed(LinkUp(neighbour)).feed(LocalSignal(BOB.peer_id, OFFER))
    assert [type(message) for _, message in peer.sent] == [PeerSignal]
    assert peer.routes == []
    peer.in_mesh().feed(LinkDown(CAROL.peer_id, "gone")).feed(LocalSignal(BOB.peer_id, OFFER))
    assert peer.routes == []


def test_an_offer_that_no_route_brings_tries_each_service_once_the_one_that_knows_the_peer_first():
    peer = Peer().join("one", "two", "three")
    peer.signaled(BootstrapPeers(peers=(KnownPeer(id=BOB.peer_id),)), "two")
    (route,) = peer.in_mesh().feed(LocalSignal(BOB.peer_id, OFFER)).routes
    peer.feed(RouteFailed(route.call, "nobody knows it"))
    tried = []
    while peer.sent:
        ((service, message),) = peer.sent
        assert verify_offer(message.signal, ME.peer_id, BOB.peer_id, network=NETWORK)[1] == OFFER
        tried.append(service)
        peer.signaled(NOT_HERE, service)
    assert tried == ["two", "one", "three"]
    assert peer.told == [Rejected(BOB.peer_id, NOT_FOUND)]
    assert peer.signaled(NOT_HERE, "one").told == [Rejected(BOB.peer_id, NOT_FOUND)]  # of something else
    assert (
        peer.counts("delivery.offers.fallbacks"),
        peer.counts("delivery.offers.lost"),
        peer.counts("delivery.offers.service"),
    ) == (1, 1, 1)


def test_an_offer_says_what_it_is_for():
    peer = Peer().in_mesh().feed(SetLinkPurpose(BOB.peer_id, PINNED))
    assert peer.effects == []
    purposes = []
    for _ in range(2):
        (route,) = peer.feed(LocalSignal(BOB.peer_id, OFFER)).routes
        purposes.append(route.message.purpose)
    assert purposes == [PINNED, None]


@pytest.mark.parametrize("allowed", [True, False])
def test_an_offer_that_a_service_brought_and_nobody_answered_is_taken_back_where_originals_are_let_in(allowed):
    peer = Peer(links=LinkConfig(allow_unverified=allowed)).join("one").feed(LocalSignal(BOB.peer_id, OFFER))
    peer.feed(LinkLost(BOB.peer_id, "no answer in time"))
    taken_back = [message for _, message in peer.sent if isinstance(message, ConnectionRejected)]
    assert [message.reason for message in taken_back] == (["cancelled"] if allowed else [])


def test_with_every_service_down_an_offer_that_no_route_brings_is_lost_at_once():
    peer = offering()
    (route,) = peer.routes
    assert peer.feed(RouteFailed(route.call, "nobody knows it")).told == [
        Rejected(BOB.peer_id, "no route to it: nobody knows it")
    ]
    assert Peer().feed(LocalSignal(BOB.peer_id, OFFER)).told == [Rejected(BOB.peer_id, NO_WAY)]


def test_services_that_go_down_do_not_stop_signaling_through_the_mesh():
    peer = offering("one").feed(ServiceDown("one", "cut"))
    assert len(peer.feed(LocalSignal(EVE.peer_id, OFFER)).routes) == 1
    assert [type(told) for told in peer.feed(OFFERED).told] == [Offered]
    assert len(peer.feed(LocalSignal(BOB.peer_id, ANSWER)).replies) == 1


def test_an_offer_that_was_given_to_a_service_which_went_down_goes_another_way_if_there_is_one():
    peer = Peer().join("one").feed(LocalSignal(BOB.peer_id, OFFER)).in_mesh()
    (route,) = peer.feed(ServiceDown("one", "cut")).routes
    assert route.to == BOB.peer_id
    alone = Peer().join("one").feed(LocalSignal(BOB.peer_id, OFFER)).feed(ServiceDown("one", "cut"))
    assert [type(told) for told in alone.told] == [ServiceDown]  # it may have arrived


def test_a_peer_of_the_original_is_offered_to_by_a_service():
    peer = Peer(links=LinkConfig(allow_unverified=True)).join().in_mesh()
    peer.signaled(from_peer(ORIGINAL, bare("offer", 3))).feed(RejectOffer(ORIGINAL.peer_id, "closing"))
    peer.feed(LocalSignal(ORIGINAL.peer_id, OFFER))
    assert peer.routes == []
    assert len(peer.sent) == 1


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(LinkLost(BOB.peer_id, "given up"), id="lost"),
        pytest.param(LinkUp(remote(BOB)), id="linked"),
        pytest.param(RejectOffer(BOB.peer_id, "cancelled"), id="taken back"),
        pytest.param(LocalSignal(BOB.peer_id, description("offer", 5)), id="replaced"),
    ],
)
def test_the_end_of_an_attempt_is_the_end_of_its_route(end):
    peer = offering("one")
    (route,) = peer.routes
    assert peer.feed(end).cancelled == [route.call]
    assert peer.feed(RouteFailed(route.call, "too late")).effects == []


def test_an_answer_that_a_service_brings_ends_the_route():
    peer = offering("one")
    (route,) = peer.routes
    peer.signaled(from_peer(BOB, sign_answer(BOB, ME.peer_id, HIS_ANSWER, OFFER, network=NETWORK)))
    assert peer.cancelled == [route.call]
    assert len(peer.got(FeedSignal)) == 1
    assert peer.feed(RouteFailed(route.call, "too late")).effects == []
    assert peer.signaled(NOT_HERE).told == []


def test_an_offer_that_is_taken_back_is_taken_back_on_its_way():
    peer = offering("one")
    mark = mark_of(OFFER)
    (rejection, _) = peer.feed(RejectOffer(BOB.peer_id, "cancelled")).asked
    assert rejection.doubtful  # it is not looked for everywhere
    assert (rejection.message.reason, rejection.message.about) == ("cancelled", mark)
    assert peer.feed(RouteFailed(rejection.call, "x")).effects == []  # nor had the offer come
    peer = offering("one")
    peer.feed(RouteFailed(peer.routes[0].call, "x")).feed(RejectOffer(BOB.peer_id, "cancelled"))
    ((_, rejection),) = peer.sent
    assert (rejection.reason, rejection.about) == ("cancelled", mark)


# --- answers and rejections -------------------------------------------------------------------------------------------


def test_an_answer_is_the_reply_to_the_offer_and_goes_again_where_that_comes_again():
    peer = Peer().join().in_mesh().feed(OFFERED)
    assert peer.told == [Offered(remote(BOB), HIS_OFFER, 0)]
    assert peer.feed(OFFERED).effects == []
    assert peer.feed(LocalSignal(BOB.peer_id, ANSWER)).effects == [
        Notify(Subsystem.ROUTING, RouteReply(way_back(BOB), answer(1)))
    ]
    ((service, message),) = peer.signaled(SERVED).sent
    assert service == "one"
    assert verify_answer(message.signal, HIS_OFFER, ME.peer_id, BOB.peer_id, network=NETWORK)[1] == ANSWER
    again = RoutedReceived(remote(BOB), offer(2), way_back(BOB, CAROL.peer_id))
    assert peer.feed(again).replies == [(way_back(BOB, CAROL.peer_id), answer(1))]
    assert peer.counts("offer_answer.repeated_offers") == 3


def test_what_came_by_a_service_is_answered_by_that_service_even_with_links_into_the_mesh():
    peer = Peer().join("one", "two").in_mesh().signaled(SERVED, "one")
    peer.signaled(BootstrapPeers(peers=(KnownPeer(id=BOB.peer_id),)), "two")
    assert [service for service, _ in peer.feed(LocalSignal(BOB.peer_id, ANSWER)).sent] == ["one"]
    assert [service for service, _ in peer.feed(RejectOffer(BOB.peer_id, "closing")).sent] == ["one"]
    peer.signaled(from_peer(BOB, sign_offer(BOB, ME.peer_id, offer(3), network=NETWORK)), "one")
    peer.feed(ServiceDown("one", "cut")).feed(LocalSignal(BOB.peer_id, ANSWER))
    assert [service for service, _ in peer.sent] == ["two"]
    peer.feed(ServiceDown("two", "cut")).feed(RejectOffer(BOB.peer_id, "closing"))
    assert peer.sent == []
    assert peer.counts("messages.unsendable") == 1


def test_an_answer_whose_offerer_left_the_service_ends_the_attempt_at_once():
    peer = Peer().join("one", "two").signaled(SERVED, "one").feed(LocalSignal(BOB.peer_id, ANSWER))
    assert peer.signaled(NOT_HERE, "two").told == []  # it has no say in it
    assert peer.signaled(NOT_HERE, "one").told == [Rejected(BOB.peer_id, NOT_FOUND)]


def test_a_rejection_is_the_reply_to_the_offer_and_goes_the_way_that_came():
    peer = Peer().join().in_mesh().feed(OFFERED).feed(RejectOffer(BOB.peer_id, "max_peers_reached", (EVE.peer_id,)))
    ((way, message),) = peer.replies
    assert way == way_back(BOB)
    assert (message.reason, message.alternative_peers) == ("max_peers_reached", (EVE.peer_id,))
    assert peer.sent == []
    ((service, message),) = peer.signaled(SERVED).sent
    assert (service, message.reason, message.about) == ("one", "max_peers_reached", mark_of(HIS_OFFER))


def test_an_answer_that_we_think_better_of_is_taken_back_by_a_message_of_its_own():
    peer = Peer().in_mesh().feed(OFFERED).feed(LocalSignal(BOB.peer_id, ANSWER))
    peer.feed(RejectOffer(BOB.peer_id, "max_peers_reached"))
    (route,) = peer.routes
    assert (peer.replies, route.answered, route.way) == ([], False, way_back(BOB))
    assert route.message == LinkRejected(reason="max_peers_reached", about=mark_of(HIS_OFFER))
    other = offering()
    other.feed(answered(other.routes[0], answer(2)))
    told = other.feed(routed(BOB, LinkRejected(reason="max_peers_reached", about=mark_of(OFFER)))).told
    assert told == [Rejected(BOB.peer_id, "max_peers_reached")]


def test_a_rejection_through_the_mesh_ends_the_attempt_and_its_alternatives_are_bounded():
    peer = offering()
    (route,) = peer.routes
    made_up = tuple(f"{n:040x}" for n in range(64))
    full = LinkRejected(reason="max_peers_reached", alternative_peers=(ME.peer_id, BOB.peer_id, *made_up))
    peer.feed(answered(route, full))
    assert peer.told == [Rejected(BOB.peer_id, "max_peers_reached", made_up[:MAX_ALTERNATIVES])]
    assert peer.feed(answered(route, full)).effects == []
    assert peer.feed(routed(BOB, full)).effects == []
    assert peer.counts("offer_answer.stray_rejections") == 1


def test_a_rejection_of_an_earlier_offer_does_not_end_the_present_attempt():
    peer = offering()
    late = LinkRejected(reason="closing", about=mark_of(description("offer", 9)))
    assert peer.feed(routed(BOB, late)).effects == []
    late = LinkRejected(reason="closing", about=mark_of(OFFER))
    assert peer.feed(routed(BOB, late)).told == [Rejected(BOB.peer_id, "closing")]


@pytest.mark.parametrize(
    "lie",
    [
        ConnectionRejected(from_=BOB.peer_id, reason="max_peers_reached"),
        ConnectionRejected(from_=BOB.peer_id, reason="max_peers_reached", about=bytes(8)),
        SignalRejected(from_=BOB.peer_id, reason="initiator_conflict", correct_initiator=BOB.peer_id),
        NOT_HERE,
    ],
)
def test_a_service_can_not_end_an_attempt_whose_offer_it_never_saw(lie):
    peer = offering("one")
    (route,) = peer.routes
    assert peer.signaled(lie).effects == []
    assert len(peer.feed(answered(route, answer(2))).got(FeedSignal)) == 1


def test_a_rejection_by_a_service_counts_if_it_names_the_offer_that_went_through_the_mesh():
    peer = offering("one").signaled(ConnectionRejected(from_=BOB.peer_id, reason="full", about=mark_of(OFFER)))
    assert peer.told == [Rejected(BOB.peer_id, "full")]


# --- twice, and at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("mesh", "one"), ("one", "mesh")])
def test_an_offer_that_comes_by_both_ways_is_one_attempt_and_answered_the_last_way(order):
    peer = Peer().join().in_mesh()
    by = {"mesh": lambda: peer.feed(OFFERED), "one": lambda: peer.signaled(SERVED)}
    assert len(by[order[0]]().told) == 1
    assert by[order[1]]().told == []
    peer.feed(LocalSignal(BOB.peer_id, ANSWER))
    assert (len(peer.replies), len(peer.sent)) == ((0, 1) if order[0] == "mesh" else (1, 0))


def test_when_offers_cross_the_one_that_is_answered_takes_the_place_of_ours():
    peer = offering("one")
    (ours,) = peer.routes
    answering = peer.feed(OFFERED).feed(LocalSignal(BOB.peer_id, ANSWER))
    assert answering.cancelled == [ours.call]
    assert answering.replies == [(way_back(BOB), answer(1))]
    assert peer.feed(RouteFailed(ours.call, "x")).effects == []
    assert peer.feed(answered(ours, answer(2))).effects == []


def test_once_theirs_is_answered_an_answer_to_our_offer_that_a_service_brings_comes_too_late():
    peer = Peer().join().feed(LocalSignal(BOB.peer_id, OFFER)).signaled(SERVED).feed(LocalSignal(BOB.peer_id, ANSWER))
    peer.signaled(from_peer(BOB, sign_answer(BOB, ME.peer_id, HIS_ANSWER, OFFER, network=NETWORK)))
    assert peer.got(FeedSignal) == []
    assert [(message.reason, message.about) for _, message in peer.sent] == [("no_attempt", mark_of(HIS_ANSWER))]
    assert peer.counts("offer_answer.unasked_answers") == 1


def test_an_offer_of_ours_that_is_lost_does_not_end_the_attempt_that_theirs_began():
    low = next(
        one for one in map(Identity.from_seed, (bytes([n]) * 32 for n in range(256))) if one.peer_id < ME.peer_id
    )
    peer = Peer().in_mesh().feed(LocalSignal(low.peer_id, OFFER))
    (ours,) = peer.routes
    peer.feed(routed(low, offer(2)))
    assert peer.feed(RouteFailed(ours.call, "x")).effects == []
    assert len(peer.feed(LocalSignal(low.peer_id, ANSWER)).replies) == 1


def test_with_an_offer_of_ours_that_is_taken_back_theirs_that_crossed_it_is_turned_down():
    peer = offering().feed(OFFERED).feed(RejectOffer(BOB.peer_id, "cancelled"))
    (route,) = peer.routes
    assert (route.message.reason, route.message.about, route.way) == ("cancelled", mark_of(OFFER), None)
    assert [(way, message.reason) for way, message in peer.replies] == [(way_back(BOB), "max_peers_reached")]


# --- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_that_a_service_brings_reach_the_attempt_and_are_bounded():
    peer = Peer().join().in_mesh().feed(OFFERED)
    batch = PeerSignals(from_=BOB.peer_id, signals=(CANDIDATE,) * 30)
    fed = [len(peer.signaled(batch).got(FeedSignal)) for _ in range(4)]
    assert sum(fed) == MAX_TRICKLED
    assert peer.signaled(from_peer(BOB, CANDIDATE)).effects == []


# --- hostile peers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        routed(ME, offer(2)),
        routed(ORIGINAL, offer(2)),
        routed(BOB, DirectAck(id="a")),
        routed(BOB, answer(2)),
        routed(BOB, Offer(description=HIS_ANSWER)),
    ],
)
def test_only_what_its_origin_signed_for_us_counts(event):
    peer = Peer().in_mesh()
    assert peer.feed(event).effects == []
    assert peer.counts("messages.ignored") == 1


def test_an_offer_with_somebody_elses_proof_goes_no_further():
    peer = Peer().join().signaled(from_peer(EVE, sign_offer(BOB, ME.peer_id, offer(2), network=NETWORK)))
    assert peer.told == []
    assert peer.counts("offer_answer.false_offers") == 1


def test_a_flood_of_offers_from_one_peer_is_cut_off_and_others_are_still_heard():
    peer = Peer(signaling=SignalingConfig(offer_burst=3, offers_per_second=0.5)).join().in_mesh()

    told = [len(peer.feed(routed(BOB, offer(n))).told) for n in range(6)]
    assert told == [1, 1, 1, 0, 0, 0]
    assert len(peer.feed(routed(EVE, offer(1))).told) == 1
    peer.now += 2
    assert len(peer.feed(routed(BOB, offer(7))).told) == 1
    assert peer.feed(routed(BOB, offer(8))).told == []
    assert peer.counts("offer_answer.excess_offers") == 4


def test_a_service_that_floods_in_a_peers_name_does_not_silence_it_in_the_mesh():
    peer = Peer(signaling=SignalingConfig(offer_burst=3)).join().in_mesh()
    for n in range(10):
        forged = msgspec.structs.replace(SERVED.signal, sdp=bare("offer", 90 + n).sdp)
        peer.signaled(from_peer(BOB, forged))
    assert peer.counts("offer_answer.excess_offers") == 7
    assert len(peer.feed(OFFERED).told) == 1


@pytest.mark.parametrize("evil_way", ["a service", "the same service", "the mesh"])
@pytest.mark.parametrize("honest_way", ["a service", "the mesh"])
def test_an_offer_under_way_is_answered_however_many_others_come(evil_way, honest_way):
    peer = Peer().join("one", "two").in_mesh()
    if honest_way == "a service":
        peer.signaled(from_peer(BOB, sign_offer(BOB, ME.peer_id, offer(1), network=NETWORK)), "one")
    else:
        peer.feed(RoutedReceived(remote(BOB), offer(1), way_back(BOB, trail_id(CAROL.peer_id))))
    assert len(peer.told) == 1
    others = [Identity.from_seed(n.to_bytes(32, "big")) for n in range(200, 500)]
    for other in others:
        if evil_way == "the mesh":
            peer.feed(RoutedReceived(remote(other), offer(2), way_back(other, trail_id(EVE.peer_id))))
        else:
            transport = "one" if evil_way == "the same service" else "two"
            peer.signaled(from_peer(other, sign_offer(other, ME.peer_id, offer(2), network=NETWORK)), transport)
    assert len(peer.feed(RoutedReceived(remote(CAROL), offer(3), way_back(CAROL))).told) == 1, "another way is open"
    assert peer.core.snapshot()["offer_answer"]["heard_offers"] <= 64
    peer.feed(LocalSignal(BOB.peer_id, description("answer", 1)))
    assert len(peer.sent) + len(peer.replies) == 1


def test_offers_that_were_decided_make_room_for_others():
    peer = Peer().in_mesh()
    for n in range(300, 600):
        other = Identity.from_seed(n.to_bytes(32, "big"))
        assert len(peer.feed(routed(other, offer(n))).told) == 1
        peer.feed(RejectOffer(other.peer_id, FULL))
        assert len(peer.replies) == 1


def test_an_offer_that_nobody_decides_is_not_under_way_for_ever():
    peer = Peer().in_mesh()
    for n in range(300, 364):
        peer.feed(routed(Identity.from_seed(n.to_bytes(32, "big")), offer(n)))
        peer.feed(LinkUp(remote(CAROL)))
    peer.wait(SAME_OFFER + 1)
    assert len(peer.feed(routed(BOB, offer(1))).told) == 1


def test_what_a_service_brings_is_paid_for_and_another_service_is_still_heard():
    peer = Peer(work=WorkConfig(signaling=0.001)).join("one", "two")
    told = 0
    for n in range(300, 400):
        other = Identity.from_seed(n.to_bytes(32, "big"))
        signal = sign_offer(other, ME.peer_id, offer(1), network=NETWORK)
        told += len(peer.signaled(from_peer(other, signal), "one").told)
        peer.feed(RejectOffer(other.peer_id, FULL))
    assert 0 < told == 100 - peer.counts("offer_answer.unpaid") < 30
    signal = sign_offer(BOB, ME.peer_id, offer(1), network=NETWORK)
    assert len(peer.signaled(from_peer(BOB, signal), "two").told) == 1


def test_tables_stay_bounded_and_what_the_mesh_has_no_room_for_goes_by_a_service():
    config = SignalingConfig(remembered_peers=10, remembered_offers=20, routes=4)
    peer = Peer(signaling=config).join().in_mesh()
    peers = [Identity.from_seed(n.to_bytes(32, "big")) for n in range(100, 130)]
    sent = 0
    for number, other in enumerate(peers):
        sent += len(peer.feed(LocalSignal(other.peer_id, description("offer", number))).sent)
        peer.feed(routed(other, offer(number)))
    snapshot = peer.core.snapshot()
    assert snapshot["delivery"]["routes"] == 4
    assert sent >= 26
    assert (snapshot["offer_answer"]["heard_offers"], snapshot["delivery"]["open"]) == (20, 20)
    assert peer.wait(1).core.snapshot()["delivery"]["routes"] <= 4


def test_a_signal_whose_routes_outcome_is_lost_goes_the_next_way_and_makes_room_for_another():
    peer = Peer(signaling=SignalingConfig(routes=1)).join("one").in_mesh().feed(LocalSignal(BOB.peer_id, OFFER))
    (route,) = peer.routes
    assert peer.wait(peer.config.signaling.mesh_timeout + OUTCOME_GRACE - 0.1).sent == []
    assert [message.to for _, message in peer.wait(0.2).sent] == [BOB.peer_id]
    assert (peer.counts("delivery.routes"), peer.counts("delivery.lost_routes")) == (0, 1)
    assert peer.feed(RouteFailed(route.call, "late")).effects == []
    assert len(peer.feed(LocalSignal(EVE.peer_id, OFFER)).routes) == 1


def test_an_offer_whose_only_routes_outcome_is_lost_is_told_of():
    peer = offering()
    peer.wait(peer.config.signaling.mesh_timeout + OUTCOME_GRACE)
    assert peer.told == [Rejected(BOB.peer_id, "no route to it: nothing was heard of it")]


def test_nothing_is_routed_or_sent_any_more_once_the_mesh_is_left():
    peer = offering("one").feed(Leave())
    assert peer.wait(100).effects == []
    assert peer.core.next_deadline() == math.inf


def test_a_call_number_is_never_used_twice():
    peer = Peer().in_mesh()
    calls = [peer.feed(LocalSignal(BOB.peer_id, description("offer", n))).routes[0].call for n in range(9)]
    assert all(later > earlier for earlier, later in itertools.pairwise(calls))


def test_a_service_that_comes_up_when_there_is_a_link_into_the_mesh_is_joined_once():
    assert Peer(max_peers=5).in_mesh().join("one").wait(600).effects == []


def test_asking_the_services_again_stops_with_the_first_link_into_the_mesh_and_starts_when_the_last_is_gone():
    peer = Peer(max_peers=5).join().feed(LinkUp(RemotePeer(ORIGINAL.peer_id, False, 0)))
    assert len(peer.wait(5).sent) == 1
    assert peer.in_mesh().wait(600).effects == []
    assert peer.in_mesh(BOB).feed(LinkDown(CAROL.peer_id, "gone")).wait(600).effects == []
    assert len(peer.feed(LinkDown(BOB.peer_id, "gone")).wait(5).sent) == 1


def test_every_lost_letter_is_told_once():
    peer = offering("one")
    (route,) = peer.routes
    peer.feed(RouteFailed(route.call, "x")).signaled(NOT_HERE)
    assert peer.told == [Rejected(BOB.peer_id, NOT_FOUND)]
    assert [
        effect for effect in peer.feed(ServiceDown("one", "cut")).got(Notify) if isinstance(effect.input, Rejected)
    ] == []
