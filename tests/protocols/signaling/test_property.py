"""Whatever comes, in any order: the signaling core raises nothing, keeps its bounds, and loses no offer in silence."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import LinkConfig, SignalingConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import SendSignaling
from p2pmesh.protocols.inputs import LinkDown, LinkLost, LinkUp, LocalSignal, ServiceDown, ServiceUp, Signaled
from p2pmesh.protocols.notices import (
    CancelRoute,
    FindPeers,
    Offered,
    Rejected,
    RejectOffer,
    Route,
    RouteFailed,
    RouteSucceeded,
)
from p2pmesh.protocols.signaling.handshake import mark_of, sign_answer, sign_offer
from p2pmesh.wire.messages import LinkRejected
from p2pmesh.wire.signaling import (
    BootstrapPeers,
    ConnectionRejected,
    PeerLeft,
    PeerSignal,
    ServiceError,
    SignalRejected,
)
from tests.harness.examples import examples
from tests.harness.signaling import CANDIDATE, ME, Peer, answer, description, from_peer, offer, routed
from tests.harness.virtual_time import NETWORK, remote

OTHERS = [Identity.from_seed(bytes([n]) * 32) for n in range(40, 46)]
SERVICES = ["one", "two"]
CONFIG = SignalingConfig(remembered_peers=4, remembered_offers=3, routes=2, offer_burst=4, mesh_timeout=1e6)

others = st.sampled_from(OTHERS)
services = st.sampled_from(SERVICES)
numbers = st.integers(0, 9)
reasons = st.sampled_from(["max_peers_reached", "cancelled", "no_attempt", "closing"])


@functools.cache
def offer_of(other, number):
    return sign_offer(other, ME.peer_id, offer(number), network=NETWORK)


@functools.cache
def answer_of(other, number):
    return sign_answer(other, ME.peer_id, description("answer", number), description("offer", number), network=NETWORK)


EVENTS = st.one_of(
    st.builds(lambda other: LinkUp(remote(other)), others),
    st.builds(lambda other: LinkDown(other.peer_id, "gone"), others),
    st.builds(lambda other: LinkLost(other.peer_id, "lost"), others),
    st.builds(lambda other, n: LocalSignal(other.peer_id, description("offer", n)), others, numbers),
    st.builds(lambda other, n: LocalSignal(other.peer_id, description("answer", n)), others, numbers),
    st.builds(lambda other, reason: RejectOffer(other.peer_id, reason), others, reasons),
    st.builds(lambda other, n: routed(other, offer(n)), others, numbers),
    st.builds(lambda other, n: routed(other, answer(n)), others, numbers),
    st.builds(lambda name, other: Signaled(name, from_peer(other, CANDIDATE)), services, others),
    st.builds(lambda other, reason: routed(other, LinkRejected(reason=reason)), others, reasons),
    st.builds(
        lambda other, n: routed(other, LinkRejected(reason="closing", about=mark_of(description("offer", n)))),
        others,
        numbers,
    ),
    st.builds(ServiceUp, services),
    st.builds(ServiceDown, services, st.just("cut")),
    st.builds(lambda name: Signaled(name, BootstrapPeers()), services),
    st.builds(lambda name, other, n: Signaled(name, from_peer(other, offer_of(other, n))), services, others, numbers),
    st.builds(lambda name, other, n: Signaled(name, from_peer(other, answer_of(other, n))), services, others, numbers),
    st.builds(lambda name, other: Signaled(name, PeerLeft(peer_id=other.peer_id)), services, others),
    st.builds(lambda name, other: Signaled(name, ConnectionRejected(from_=other.peer_id)), services, others),
    st.builds(lambda name, other: Signaled(name, SignalRejected(from_=other.peer_id)), services, others),
    st.builds(lambda name, other: Signaled(name, ServiceError(code="not_found", to=other.peer_id)), services, others),
    st.builds(RouteSucceeded, numbers, st.just(OTHERS[0].peer_id), st.none() | st.builds(answer, numbers)),
    st.builds(
        lambda call, reason: RouteSucceeded(call, OTHERS[0].peer_id, LinkRejected(reason=reason)), numbers, reasons
    ),
    st.builds(RouteFailed, numbers, st.just("x")),
    st.just(FindPeers()),
)


@examples(150)
@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.1, 5.0])), max_size=60))
def test_any_sequence_of_events_keeps_the_bounds_and_ends_each_route_once(events):
    peer = Peer(signaling=CONFIG, links=LinkConfig(allow_unverified=True))
    under_way = set()
    for event, pause in events:
        if isinstance(event, RouteSucceeded | RouteFailed):
            if event.call not in under_way:
                peer.feed(event)
                assert peer.effects == []
                continue
            under_way.discard(event.call)
        for asked in [*peer.feed(event).asked, *peer.wait(pause).asked]:
            match asked:
                case Route(call=call):
                    assert call not in under_way
                    under_way.add(call)
                case CancelRoute(call=call):
                    under_way.remove(call)
                case _:
                    pass
        snapshot = peer.core.snapshot()
        assert snapshot["delivery"]["routes"] == len(under_way) <= CONFIG.routes
        assert snapshot["delivery"]["remembered_peers"] <= CONFIG.remembered_peers
        for table in ("offer_answer.heard_offers", "delivery.open"):
            assert peer.counts(table) <= CONFIG.remembered_offers


@given(
    st.lists(services, unique=True),
    st.booleans(),
    st.lists(st.tuples(others, numbers), max_size=8, unique_by=lambda made: made[0].peer_id),
)
def test_an_offer_that_nothing_brings_is_told_once_and_every_way_was_tried_once(names, in_mesh, offers):
    peer = Peer()
    for name in names:
        peer.join(name)
    if in_mesh:
        peer.in_mesh()
    for other, number in offers:
        ways, told = [], []
        peer.feed(LocalSignal(other.peer_id, description("offer", number)))
        while True:
            told += [event for event in peer.told if isinstance(event, Rejected)]
            routes, sent = peer.routes, peer.got(SendSignaling)
            ways += ["mesh" for _ in routes] + [effect.transport for effect in sent]
            if routes:
                peer.feed(RouteFailed(routes[0].call, "nobody knows it"))
            elif sent:
                assert isinstance(sent[0].message, PeerSignal)
                peer.signaled(ServiceError(code="not_found", to=other.peer_id), sent[0].transport)
            else:
                break
        assert [event.peer for event in told] == [other.peer_id]
        assert sorted(ways) == sorted([*names, *["mesh"] * in_mesh])
    assert peer.core.snapshot()["delivery"]["open"] == 0


@given(st.lists(st.tuples(st.booleans(), numbers), min_size=1, max_size=12))
def test_an_offer_counts_once_by_whichever_ways_it_comes(arrivals):
    peer = Peer(signaling=SignalingConfig(offer_burst=100)).join("one").in_mesh()
    other, last = OTHERS[0], None
    for by_mesh, number in arrivals:
        served = Signaled("one", from_peer(other, offer_of(other, number)))
        peer.feed(routed(other, offer(number)) if by_mesh else served)
        offered = [event for event in peer.told if isinstance(event, Offered)]
        assert len(offered) == (number != last)
        last = number
