"""Pings by way of the services, ways to peers beyond a bridge, and rejections that come late."""

from __future__ import annotations

from p2pmesh.protocols.core import FeedSignal, Notify
from p2pmesh.protocols.inputs import LinkUp, LocalSignal, ServiceUp, Subsystem
from p2pmesh.protocols.notices import PingViaService, RouteFailed, RouteHint, SeenViaService, ServicePeers, Sighting
from p2pmesh.protocols.signaling.handshake import mark_of, sign_offer
from p2pmesh.wire.messages import LinkRejected
from p2pmesh.wire.signaling import Ack, BootstrapPeers, ConnectionRejected, KnownPeer, ServiceError
from tests.harness.signaling import BOB, CAROL, EVE, ME, Peer, answer, answered, description, from_peer, offer, routed
from tests.harness.virtual_time import NETWORK, remote

# --- rejections that come late ----------------------------------------------------------------------------------------


def test_who_takes_its_own_offer_back_may_answer_ours_still():
    peer = Peer().join().in_mesh().feed(routed(BOB, offer(7)))
    (ours,) = peer.feed(LocalSignal(BOB.peer_id, description("offer", 1))).routes
    peer.feed(routed(BOB, LinkRejected(reason="cancelled", about=mark_of(description("offer", 7)))))
    assert [event.reason for event in peer.told] == ["cancelled"]
    peer.feed(answered(ours, answer(2)))
    assert [effect.peer.peer_id for effect in peer.got(FeedSignal)] == [BOB.peer_id]
    assert peer.feed(LocalSignal(BOB.peer_id, description("answer", 1))).replies == [], (
        "theirs can't be answered any more"
    )


def test_an_answer_that_came_too_late_does_not_end_a_newer_attempt():
    peer = Peer().join()
    for n in (7, 8):
        peer.signaled(from_peer(BOB, sign_offer(BOB, ME.peer_id, offer(n), network=NETWORK)))
        peer.feed(LocalSignal(BOB.peer_id, description("answer", n)))
    late, newest = (
        ConnectionRejected(from_=BOB.peer_id, reason="no_attempt", about=mark_of(description("answer", n)))
        for n in (7, 8)
    )
    assert not peer.signaled(late).told
    assert peer.signaled(newest).told


# --- pings ------------------------------------------------------------------------------------------------------------


def islands_told(peer):
    return [effect.input for effect in peer.got(Notify) if effect.subsystem is Subsystem.ISLANDS]


def test_all_services_are_asked_for_a_peer_and_one_answer_is_enough():
    peer = Peer().join("one", "two").feed(PingViaService(BOB.peer_id))
    assert [transport for transport, _ in peer.sent] == ["one", "two"]
    assert {message for _, message in peer.sent} == {Ack(to=BOB.peer_id, from_=ME.peer_id)}
    answer = Ack(to=ME.peer_id, from_=BOB.peer_id, answers=True)
    assert islands_told(peer.signaled(answer, "two")) == [SeenViaService(BOB.peer_id, Sighting.ANSWERED)]
    assert not islands_told(peer.signaled(answer, "one"))


def test_a_peer_is_not_there_once_no_service_knows_it():
    peer = Peer().join("one", "two").feed(PingViaService(BOB.peer_id))
    missing = ServiceError(message="no", code="not_found", to=BOB.peer_id)
    assert not islands_told(peer.signaled(missing, "one"))
    assert islands_told(peer.signaled(missing, "two")) == [SeenViaService(BOB.peer_id, Sighting.ABSENT)]
    assert not peer.told


def test_who_is_asked_for_answers_but_not_for_ever():
    peer = Peer().join()
    asks = Ack(to=ME.peer_id, from_=BOB.peer_id)
    assert not islands_told(peer.signaled(asks))
    assert [message for _, message in peer.sent] == [Ack(to=BOB.peer_id, from_=ME.peer_id, answers=True)]
    assert sum(len(peer.signaled(asks).sent) for _ in range(20)) == 2


def test_without_a_service_nobody_is_asked():
    assert not Peer().in_mesh().feed(PingViaService(BOB.peer_id)).effects


def test_an_offer_goes_by_the_service_that_reached_the_peer():
    peer = Peer().join().in_mesh().feed(PingViaService(BOB.peer_id))
    peer.signaled(Ack(to=ME.peer_id, from_=BOB.peer_id, answers=True))
    peer.feed(LocalSignal(BOB.peer_id, description("offer", 1)))
    assert [transport for transport, _ in peer.sent] == ["one"]
    assert not peer.routes


def test_an_offer_to_a_peer_beyond_a_bridge_goes_over_that():
    peer = Peer().join().in_mesh().feed(RouteHint((BOB.peer_id,), (EVE.peer_id, CAROL.peer_id)))
    peer.feed(LocalSignal(BOB.peer_id, description("offer", 1)))
    (route,) = peer.routes
    assert route.way.path == (BOB.peer_id, EVE.peer_id, CAROL.peer_id)
    peer.wait(30).feed(LocalSignal(BOB.peer_id, description("offer", 2)))
    assert peer.routes[-1].way is None


def test_a_link_that_a_service_brought_where_the_mesh_did_not_is_a_strangers():
    peer = Peer().join().in_mesh()
    peer.feed(LocalSignal(BOB.peer_id, description("offer", 1)))
    (route,) = peer.routes
    peer.feed(RouteFailed(route.call, "nobody knows it"))
    assert islands_told(peer.feed(LinkUp(remote(BOB)))) == [SeenViaService(BOB.peer_id, Sighting.LINKED)]


def test_whom_a_service_names_as_it_lets_us_in_is_told_and_not_when_more_are_asked_for():
    peer = Peer().feed(ServiceUp("one"))
    bootstrap = BootstrapPeers(peers=(KnownPeer(id=BOB.peer_id),))
    assert islands_told(peer.signaled(bootstrap)) == [ServicePeers("one", (BOB.peer_id,))]
    assert not islands_told(peer.signaled(bootstrap))
