"""The signaling core: joins, and what of the offers and answers gets through."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from p2pmesh.config import LinkConfig, SignalingConfig
from p2pmesh.events import PeerFailed, TransportDown, TransportUp
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import FeedSignal, Notify, ServiceRefused, ServiceUnanswering
from p2pmesh.protocols.inputs import (
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    LocalSignal,
    PeerGone,
    PeersFound,
    RemotePeer,
    ServiceDown,
    ServiceUp,
)
from p2pmesh.protocols.notices import INITIATOR_CONFLICT, FindPeers, Offered, Rejected, RejectOffer
from p2pmesh.protocols.signaling.delivery import NO_WAY
from p2pmesh.protocols.signaling.handshake import sign_answer, sign_offer, verify_answer, verify_join, verify_offer
from p2pmesh.protocols.signaling.offer_answer import FAILURE_EVERY, MAX_EARLY, SAME_OFFER
from p2pmesh.protocols.signaling.service_sessions import REJOIN_FIRST
from p2pmesh.protocols.signaling.signaling import SignalingCore
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.messages import Signal
from p2pmesh.wire.sdp import read_candidate
from p2pmesh.wire.signaling import (
    ERROR_CODES,
    JOIN_REFUSALS,
    BootstrapPeers,
    ConnectionRejected,
    Join,
    KnownPeer,
    PeerJoined,
    PeerLeft,
    PeerSignal,
    PeerSignals,
    ServiceError,
    SignalRejected,
)
from p2pmesh.wire.signaling import Leave as LeaveMessage
from tests.harness.signaling import BOB, CANDIDATE, CAROL, EVE, ME, ORIGINAL, Peer, bare, description, from_peer, offer
from tests.harness.virtual_time import NETWORK

# --- services ---------------------------------------------------------------------------------------------------------


def test_a_service_is_joined_with_a_signed_join_and_is_up_at_its_first_answer():
    peer = Peer(room="demo").feed(ServiceUp("one"))
    ((transport, join),) = peer.sent
    assert transport == "one"
    assert isinstance(join, Join)
    assert (join.peer_id, join.room, join.token) == (ME.peer_id, "demo", "secret")
    assert join.timestamp == EPOCH * 1000
    assert verify_join(join)
    peer.signaled(BootstrapPeers(peers=(KnownPeer(id=BOB.peer_id), KnownPeer(id=ME.peer_id))))
    assert peer.events == [TransportUp("one")]
    assert peer.told == [ServiceUp("one"), PeersFound((BOB.peer_id,), "bootstrap")]


def test_a_silent_service_counts_as_joined_after_a_grace_and_is_asked_once_more():
    peer = Peer().feed(ServiceUp("one")).wait(0.9)
    assert peer.effects == []
    assert peer.wait(0.2).events == [TransportUp("one")]
    peer.wait(1.0)
    assert [type(message) for _, message in peer.sent] == [Join]
    assert peer.wait(2.0).sent == []


def test_a_service_that_answered_is_not_asked_twice():
    assert Peer().join().wait(2.4).sent == []


@pytest.mark.parametrize("code", sorted(JOIN_REFUSALS))
def test_a_refusal_ends_the_attempt_to_join(code):
    peer = Peer().feed(ServiceUp("one")).signaled(ServiceError(message="go away", code=code))
    (refused,) = peer.got(ServiceRefused)
    assert refused.transport == "one"
    assert refused.reason.startswith(f"one refused us: {ERROR_CODES[code]}; ")
    assert "'go away'" in refused.reason
    assert peer.events == [TransportDown("one", refused.reason)]
    assert peer.feed(ServiceDown("one", "closed")).effects == []
    assert peer.wait(10).effects == []


def test_a_refusal_for_a_reason_that_we_do_not_know_is_one_too():
    peer = Peer().feed(ServiceUp("one")).signaled(ServiceError(message="no", code="wrong_moon"))
    (refused,) = peer.got(ServiceRefused)
    assert "'wrong_moon'" in refused.reason
    assert peer.events == [TransportDown("one", refused.reason)]


def timestamps(peer):
    joins = [message for _, message in peer.sent]
    assert all(verify_join(join) for join in joins)
    return [join.timestamp for join in joins]


def outdated(than):
    return ServiceError(message="old", code="clock_skew", later_than=than)


def test_joins_are_signed_ever_later_whatever_the_clock_does():
    peer = Peer().join()
    peer.clock_is_off = -300.0
    peer.feed(ServiceDown("one", "cut"))
    (timestamp,) = timestamps(peer.feed(ServiceUp("one")))
    assert timestamp == EPOCH * 1000 + 1
    peer.clock_is_off = 5.0
    peer.feed(ServiceDown("one", "cut"))
    assert timestamps(peer.feed(ServiceUp("one"))) == [(EPOCH + 5) * 1000]


def test_a_service_that_has_a_later_join_of_us_gets_one_that_is_later_still():
    """Of an earlier run, before the clock was set back."""
    peer = Peer().feed(ServiceUp("one"))
    told = int(EPOCH + 300) * 1000
    assert timestamps(peer.signaled(outdated(told))) == [told + 1]
    assert peer.events == []
    assert peer.signaled(BootstrapPeers()).events == [TransportUp("one")]
    peer.feed(ServiceDown("one", "cut"))
    assert timestamps(peer.feed(ServiceUp("one"))) == [told + 2]


def test_it_gets_one_such_join_on_each_connection():
    peer = Peer().feed(ServiceUp("one")).signaled(outdated(int(EPOCH) * 1000 + 7))
    assert len(peer.signaled(outdated(int(EPOCH) * 1000 + 70)).got(ServiceRefused)) == 1
    peer.feed(ServiceDown("one", "refused")).feed(ServiceUp("one"))
    assert timestamps(peer.signaled(outdated(int(EPOCH) * 1000 + 700))) == [EPOCH * 1000 + 701]


def test_it_gets_none_of_a_day_to_come():
    peer = Peer().feed(ServiceUp("one")).signaled(outdated(int(EPOCH + 86_400) * 1000))
    assert peer.sent == []
    (refused,) = peer.got(ServiceRefused)
    assert "set this machine's clock" in refused.reason


def test_a_clock_that_was_ahead_and_is_set_right_is_believed_once_a_join_was_refused():
    peer = Peer()
    peer.clock_is_off = 3600.0
    peer.feed(ServiceUp("one")).signaled(ServiceError(message="ahead", code="clock_skew"))
    peer.clock_is_off = 0.0
    peer.feed(ServiceDown("one", "refused"))
    assert timestamps(peer.feed(ServiceUp("one"))) == [EPOCH * 1000]


@pytest.mark.parametrize(
    "error",
    [
        ServiceError(message="x", code="replaced"),
        ServiceError(message="x", code="id_taken"),
        ServiceError(message="Another client joined with your ID."),
    ],
)
def test_losing_the_id_ends_a_joined_service(error):
    peer = Peer().join().signaled(error)
    assert [refused.transport for refused in peer.got(ServiceRefused)] == ["one"]
    assert [type(event) for event in peer.events] == [TransportDown]
    assert [type(told) for told in peer.told] == [ServiceDown]


def alone(*services, timed_out=5.0):
    """A peer whose last link has ended."""
    peer = Peer().join(*services).in_mesh().wait(60)
    return peer.feed(LinkDown(CAROL.peer_id, "gone", timed_out))


def test_when_the_last_link_falls_silent_the_services_are_joined_again_at_once_and_have_to_answer():
    peer = alone("one", "two")
    assert [(service, type(message)) for service, message in peer.sent] == [("one", Join), ("two", Join)]
    peer.signaled(BootstrapPeers(), "two")
    assert peer.wait(0.9).got(ServiceUnanswering) == []
    assert peer.wait(0.2).got(ServiceUnanswering) == [ServiceUnanswering("one")]
    peer.feed(ServiceDown("one", "dead")).feed(ServiceUp("one")).signaled(BootstrapPeers())
    assert peer.wait(60).got(ServiceUnanswering) == [], "once is enough"


def test_a_link_that_is_not_the_last_or_was_closed_casts_no_doubt_on_services():
    assert alone("one", timed_out=None).wait(2).got(ServiceUnanswering) == []
    peer = Peer().join("one").in_mesh().in_mesh(BOB).wait(60).feed(LinkDown(CAROL.peer_id, "gone", 5.0))
    assert peer.sent == []
    assert peer.wait(2).got(ServiceUnanswering) == []


def test_an_offer_that_a_dead_connection_swallowed_is_sent_again_over_the_next():
    peer = alone("one").feed(LocalSignal(BOB.peer_id, description("offer", 1)))
    assert [type(message) for _, message in peer.sent] == [PeerSignal]
    peer.wait(1.1).feed(ServiceDown("one", "dead"))
    peer.feed(ServiceUp("one")).signaled(BootstrapPeers())
    assert [type(message) for _, message in peer.sent] == [PeerSignal]


def test_other_errors_of_a_joined_service_are_only_counted():
    peer = Peer().join()
    for code in ("full", "rate_limited", "no such code", None):
        assert peer.signaled(ServiceError(message="hm", code=code)).effects == []
    assert peer.counts("errors.other") == 2


def test_a_hostile_service_can_not_make_statistics_grow():
    peer = Peer().join()
    names = peer.core.snapshot()["errors"].keys()
    for number in range(100):
        peer.signaled(ServiceError(message=f"error {number}", code=f"code {number}"))
    assert peer.core.snapshot()["errors"].keys() == names == {*ERROR_CODES, "other"}
    assert peer.counts("errors.other") == 100


def test_a_service_that_names_only_ourselves_names_nobody():
    peer = Peer().feed(ServiceUp("one")).signaled(BootstrapPeers(peers=(KnownPeer(id=ME.peer_id),)))
    assert [told.input for told in peer.got(Notify)] == [ServiceUp("one")]
    assert peer.counts("delivery.remembered_peers") == 0


def test_an_outage_is_told_once():
    peer = Peer()
    assert peer.feed(ServiceDown("one", "refused")).events == [TransportDown("one", "refused")]
    assert peer.feed(ServiceDown("one", "refused")).events == []
    assert peer.join().events == [TransportUp("one")]
    assert peer.feed(ServiceDown("one", "cut")).events == [TransportDown("one", "cut")]
    assert peer.told == [ServiceDown("one", "cut")]
    assert peer.feed(ServiceUp("one")).feed(ServiceDown("one", "cut")).effects == []


def test_joins_are_repeated_ever_more_rarely_until_there_are_links_enough():
    peer = Peer(max_peers=1).join()
    times = [peer.now for _ in range(300) if peer.wait(1).sent]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert REJOIN_FIRST / 2 <= times[0] <= REJOIN_FIRST + 1
    assert 25 <= max(gaps) <= peer.config.signaling.rejoin_every + 1
    assert len(times) <= 14
    peer.feed(LinkUp(RemotePeer(BOB.peer_id, True, 1)))
    assert peer.wait(300).effects == []
    peer.feed(LinkDown(BOB.peer_id, "gone"))
    assert len(peer.wait(REJOIN_FIRST).sent) == 1


def test_the_topology_can_ask_for_peers_but_not_in_a_hurry():
    peer = Peer(max_peers=1).join("one", "two").feed(LinkUp(RemotePeer(BOB.peer_id, True, 1)))
    for _ in range(10):
        peer.feed(FindPeers())
    assert [transport for transport, _ in peer.wait(REJOIN_FIRST).sent] == ["one", "two"]
    peer.feed(FindPeers())
    assert peer.wait(2 * REJOIN_FIRST - 0.1).sent == []
    assert len(peer.wait(0.2).sent) == 2


def test_a_topology_that_asks_all_the_time_is_heard_ever_more_rarely_until_it_has_been_content():
    peer = Peer(max_peers=1).join().feed(LinkUp(RemotePeer(BOB.peer_id, True, 1)))
    times = [peer.now for _ in range(600) if peer.feed(FindPeers()).wait(1).sent]
    assert len(times) <= 14
    assert times[-1] - times[-2] == pytest.approx(peer.config.signaling.rejoin_every, abs=1.1)
    peer.wait(200)
    assert len(peer.feed(FindPeers()).wait(0.1).sent) == 1
    assert peer.feed(FindPeers()).wait(2 * REJOIN_FIRST - 0.2).sent == []


def test_leaving_tells_the_joined_services_and_nothing_follows():
    peer = Peer().join("one").feed(ServiceUp("two")).feed(Leave())
    assert peer.sent == [("one", LeaveMessage(peer_id=ME.peer_id))]
    assert peer.signaled(from_peer(BOB, sign_offer(BOB, ME.peer_id, offer(1), network=NETWORK))).effects == []
    assert peer.wait(100).effects == []


def test_announcements_are_hints_for_the_topology():
    peer = Peer().join()
    assert peer.signaled(PeerJoined(peer_id=BOB.peer_id)).told == [PeersFound((BOB.peer_id,), "joined")]
    assert peer.signaled(PeerJoined(peer_id=ME.peer_id)).told == []
    assert peer.signaled(PeerLeft(peer_id=BOB.peer_id)).told == [PeerGone(BOB.peer_id)]


def test_a_peer_is_gone_when_it_left_the_last_service_that_had_it():
    peer = Peer().join("one", "two")
    for transport in ("one", "two"):
        peer.signaled(PeerJoined(peer_id=BOB.peer_id), transport)
    assert peer.signaled(PeerLeft(peer_id=BOB.peer_id), "two").told == []
    assert peer.signaled(PeerLeft(peer_id=BOB.peer_id), "one").told == [PeerGone(BOB.peer_id)]


# --- our offers -------------------------------------------------------------------------------------------------------


def test_an_offer_is_signed_with_our_links_and_its_answer_fed():
    peer = Peer().join().feed(LinkUp(RemotePeer(ORIGINAL.peer_id, False, 0)))
    sent = peer.dial(BOB.peer_id)
    assert sent.p2pmesh.links == 1
    remote, facts = verify_offer(sent, ME.peer_id, BOB.peer_id, network=NETWORK)
    assert (remote.verified, facts) == (True, description("offer", 1))
    answer = sign_answer(BOB, ME.peer_id, description("answer", 2), description("offer", 1), network=NETWORK)
    peer.signaled(from_peer(BOB, answer))
    assert peer.effects == [FeedSignal(RemotePeer(BOB.peer_id, True, 1, BOB.public_key), description("answer", 2))]
    assert peer.signaled(from_peer(BOB, answer)).effects == []


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda true: bare("answer", 9), id="proof left out"),
        pytest.param(lambda true: msgspec.structs.replace(true, sdp=bare("answer", 9).sdp), id="swapped"),
        pytest.param(
            lambda true: sign_answer(
                EVE, ME.peer_id, description("answer", 9), description("offer", 1), network=NETWORK
            ),
            id="other key",
        ),
        pytest.param(
            lambda true: sign_answer(
                BOB, ME.peer_id, description("answer", 2), description("offer", 9), network=NETWORK
            ),
            id="other offer",
        ),
        pytest.param(lambda true: Signal(type="answer", sdp="garbage"), id="garbage"),
    ],
)
def test_a_false_answer_is_ignored_and_the_true_one_still_counts(lie):
    peer = Peer().join()
    peer.dial(BOB.peer_id)
    true = sign_answer(BOB, ME.peer_id, description("answer", 2), description("offer", 1), network=NETWORK)
    assert peer.signaled(from_peer(BOB, lie(true))).effects == []
    assert len(peer.signaled(from_peer(BOB, true)).got(FeedSignal)) == 1
    assert peer.counts("offer_answer.false_answers") + peer.counts("offer_answer.unverified_answers") == 1


def test_an_answer_that_nobody_waits_for_frees_its_sender():
    peer = Peer().join()
    peer.dial(BOB.peer_id)
    answer = from_peer(
        BOB, sign_answer(BOB, ME.peer_id, description("answer", 2), description("offer", 1), network=NETWORK)
    )
    peer.feed(LinkLost(BOB.peer_id, "too late")).signaled(answer)
    ((_, message),) = peer.sent
    assert isinstance(message, ConnectionRejected)
    assert message.reason == "no_attempt"
    peer.feed(LinkUp(RemotePeer(BOB.peer_id, True, 1)))
    assert peer.signaled(answer).effects == []


def test_an_offer_goes_by_the_service_that_knows_the_peer():
    peer = Peer().join("one", "two")
    peer.signaled(PeerJoined(peer_id=BOB.peer_id), "two")
    assert peer.feed(LocalSignal(BOB.peer_id, description("offer", 1))).sent[0][0] == "two"
    peer.feed(ServiceDown("two", "cut"))
    assert peer.feed(LocalSignal(BOB.peer_id, description("offer", 1))).sent[0][0] == "one"


def test_an_offer_tries_the_services_one_by_one_until_the_peer_is_found_on_none():
    peer = Peer().join("one", "two")
    sent = peer.dial(BOB.peer_id)
    missing = ServiceError(message=f"Peer {BOB.peer_id} not found.")
    assert peer.signaled(missing, "one").sent[0] == (
        "two",
        PeerSignal(to=BOB.peer_id, from_=ME.peer_id, signal=sent),
    )
    coded = ServiceError(code="not_found", to=BOB.peer_id)
    assert peer.signaled(coded, "two").told == [Rejected(BOB.peer_id, "not found")]


def test_without_a_service_an_attempt_fails_at_once():
    peer = Peer().feed(ServiceUp("one"))
    peer.feed(LocalSignal(BOB.peer_id, description("offer", 1)))
    assert peer.told == [Rejected(BOB.peer_id, NO_WAY)]
    assert peer.sent == []


def test_rejections_reach_the_topology():
    peer = Peer().join()
    peer.dial(BOB.peer_id)
    peer.signaled(
        ConnectionRejected(from_=BOB.peer_id, reason="max_peers_reached", alternative_peers=(EVE.peer_id, ME.peer_id))
    )
    assert peer.told == [Rejected(BOB.peer_id, "max_peers_reached", (EVE.peer_id,))]
    for initiator, instead in ((ME.peer_id, True), (BOB.peer_id, False), (None, False)):
        peer.signaled(SignalRejected(from_=BOB.peer_id, correct_initiator=initiator))
        assert peer.told == [Rejected(BOB.peer_id, "initiator_conflict", offer_instead=instead)]


# --- offers to us -----------------------------------------------------------------------------------------------------


def test_a_good_offer_reaches_the_topology_and_our_answer_is_bound_to_it():
    peer = Peer().join()
    his = sign_offer(BOB, ME.peer_id, offer(2, links=3, purpose="ring"), network=NETWORK)
    peer.signaled(from_peer(BOB, his))
    remote = RemotePeer(BOB.peer_id, True, 1, BOB.public_key)
    assert peer.told == [Offered(remote, description("offer", 2), 3, "ring")]
    peer.feed(LocalSignal(BOB.peer_id, description("answer", 1)))
    ((transport, message),) = peer.sent
    assert transport == "one"
    assert verify_answer(message.signal, description("offer", 2), ME.peer_id, BOB.peer_id, network=NETWORK)[0].verified


def test_an_offer_that_comes_by_two_services_counts_once():
    peer = Peer().join("one", "two")
    message = from_peer(BOB, sign_offer(BOB, ME.peer_id, offer(2), network=NETWORK))
    assert peer.signaled(message, "one").told
    assert peer.signaled(message, "two").effects == []
    peer.now += SAME_OFFER
    assert peer.signaled(message, "two").told


def test_a_false_offer_is_dropped_and_told_but_not_over_and_over():
    peer = Peer().join()

    def forged(n):
        true = sign_offer(BOB, ME.peer_id, offer(2), network=NETWORK)
        return from_peer(BOB, msgspec.structs.replace(true, sdp=bare("offer", n).sdp))

    peer.signaled(forged(9))
    assert [event.peer_id for event in peer.events] == [BOB.peer_id]
    assert isinstance(peer.events[0], PeerFailed)
    assert peer.told == []
    assert peer.signaled(forged(8)).effects == []
    peer.now += FAILURE_EVERY
    assert len(peer.signaled(forged(7)).events) == 1
    assert peer.counts("offer_answer.false_offers") == 3


@pytest.mark.parametrize("signal", [bare("offer", 2), sign_offer(ORIGINAL, ME.peer_id, offer(2), network=NETWORK)])
def test_unverified_peers_are_turned_down_unless_allowed(signal):
    peer = Peer().join().signaled(from_peer(ORIGINAL, signal))
    assert peer.told == []
    ((_, message),) = peer.sent
    assert (message.to, message.reason, message.alternative_peers) == (ORIGINAL.peer_id, "unverified_peer", ())
    assert peer.counts("offer_answer.unverified_peers") == 1
    open_minded = Peer(links=LinkConfig(allow_unverified=True)).join().signaled(from_peer(ORIGINAL, signal))
    (offered,) = open_minded.told
    assert not offered.peer.verified


def test_an_offer_turned_down_by_the_topology_is_answered_so():
    peer = Peer(max_peers=4).join().feed(RejectOffer(BOB.peer_id, "max_peers_reached", (EVE.peer_id,)))
    expected = ConnectionRejected(
        to=BOB.peer_id,
        from_=ME.peer_id,
        reason="max_peers_reached",
        max_peers=4,
        alternative_peers=(EVE.peer_id,),
    )
    assert peer.sent == [("one", expected)]


def test_a_peer_of_the_original_is_asked_for_its_offer():
    peer = Peer().join().feed(RejectOffer(BOB.peer_id, INITIATOR_CONFLICT))
    ((_, message),) = peer.sent
    assert (message.to, message.correct_initiator) == (BOB.peer_id, BOB.peer_id)


def test_an_answer_whose_offer_was_forgotten_ends_the_attempt():
    peer = Peer().join().feed(LocalSignal(BOB.peer_id, description("answer", 1)))
    assert peer.sent == []
    assert [type(told) for told in peer.told] == [Rejected]


# --- candidates and noise ---------------------------------------------------------------------------------------------


def test_candidates_wait_for_the_answer_and_strays_are_dropped():
    peer = Peer().join()
    assert peer.signaled(from_peer(BOB, CANDIDATE)).effects == []
    peer.dial(BOB.peer_id)
    for _ in range(MAX_EARLY + 5):
        assert peer.signaled(from_peer(BOB, CANDIDATE)).effects == []
    assert peer.counts("offer_answer.stray_candidates") == 1
    assert peer.counts("offer_answer.excess_candidates") == 5
    answer = sign_answer(BOB, ME.peer_id, description("answer", 2), description("offer", 1), network=NETWORK)
    fed = peer.signaled(from_peer(BOB, answer)).got(FeedSignal)
    candidate = read_candidate(CANDIDATE.candidate.candidate)
    assert [effect.signal for effect in fed] == [description("answer", 2), *[candidate] * MAX_EARLY]
    assert len(peer.signaled(from_peer(BOB, CANDIDATE)).got(FeedSignal)) == 1


def test_a_batch_is_taken_apart():
    peer = Peer().join()
    his = sign_offer(BOB, ME.peer_id, offer(2), network=NETWORK)
    peer.signaled(PeerSignals(from_=BOB.peer_id, signals=(his, CANDIDATE, Signal(type="renegotiate"))))
    assert [type(effect) for effect in peer.effects] == [Notify, FeedSignal]
    assert peer.counts("offer_answer.other_signals") == 1


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [(None, ME.peer_id), (ME.peer_id, ME.peer_id), (BOB.peer_id, EVE.peer_id)],
)
def test_misdirected_messages_are_ignored_and_counted(sender, receiver):
    peer = Peer().join()
    for message in (
        PeerSignal(from_=sender, to=receiver, signal=bare("offer", 1)),
        ConnectionRejected(from_=sender, to=receiver, reason="x"),
        SignalRejected(from_=sender, to=receiver),
    ):
        assert peer.signaled(message).effects == []
    assert peer.counts("messages.ignored") == 3


def test_messages_of_a_service_that_is_down_are_ignored():
    peer = Peer()
    assert peer.signaled(PeerJoined(peer_id=BOB.peer_id)).effects == []
    assert peer.counts("messages.ignored") == 1


def test_memory_is_bounded():
    config = SignalingConfig(remembered_peers=10, remembered_offers=4)
    peer = Peer(signaling=config, links=LinkConfig(allow_unverified=True)).join()
    for n in range(50):
        stranger = Identity.unverified(f"{n:040x}")
        peer.signaled(from_peer(stranger, bare("offer", n)))
        peer.feed(LocalSignal(stranger.peer_id, description("offer", n)))
    snapshot = peer.core.snapshot()
    assert (
        snapshot["delivery"]["remembered_peers"],
        snapshot["offer_answer"]["heard_offers"],
        snapshot["delivery"]["open"],
    ) == (10, 2, 4)


def test_a_lying_service_can_not_put_itself_between_two_verified_peers():
    """It swaps fingerprints both ways, re-signs with a key of its own, and drops the proofs: nothing gets through."""
    mallory = EVE
    alice, bob = Peer().join(), Peer().join()
    bob.core = SignalingCore(BOB, bob.config, random.Random(2), lambda now: EPOCH + now)
    bob.join()
    true = alice.dial(BOB.peer_id)
    for lie in (
        msgspec.structs.replace(true, sdp=bare("offer", 66).sdp),
        relayed(sign_offer(mallory, BOB.peer_id, offer(66), network=NETWORK)),
        bare("offer", 66),
    ):
        bob.signaled(PeerSignal(from_=ME.peer_id, to=BOB.peer_id, signal=lie))
        assert bob.told == []
    bob.signaled(PeerSignal(from_=ME.peer_id, to=BOB.peer_id, signal=true))
    assert [type(told) for told in bob.told] == [Offered]


def relayed(signal: Signal) -> Signal:
    """As a service would relay it: decoded and encoded again."""
    return msgspec.json.decode(msgspec.json.encode(signal), type=Signal)
