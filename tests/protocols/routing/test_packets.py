"""Routes between bare cores: any peer is reached, once, whatever some relays do."""

from __future__ import annotations

import random
from itertools import pairwise, permutations
from zlib import crc32

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import msgpack, structs

from p2pmesh.config import MeshConfig, RoutingConfig, WorkConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.keyspace import RING_SIZE, PeerId
from p2pmesh.protocols.core import Notify, SendFrame
from p2pmesh.protocols.inputs import LinkUp, Received, RemotePeer, Subsystem
from p2pmesh.protocols.notices import CancelRoute, MeshSize, ReturnPath, RouteFailed, RouteReply, RouteSucceeded
from p2pmesh.protocols.routing import forwarding_table, packets, receiver, relay, routing
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable, pick, trail_id, wandering
from p2pmesh.protocols.routing.packets import content, is_urgent, signed
from p2pmesh.protocols.routing.relay import MOST_SENT, SPREAD_BURST
from p2pmesh.protocols.util.limits import BURST, FRAME
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.fields import EVERYWHERE, MAX_TRAIL, SEARCH
from p2pmesh.wire.messages import GossipWant, Message
from p2pmesh.wire.overlay import Packet
from tests.harness.examples import examples
from tests.harness.routing import Node, RouteNet, origin, ring, rpc, small_world
from tests.harness.virtual_time import NETWORK, identity

KEYS = st.integers(0, RING_SIZE - 1).map(lambda number: PeerId(f"{number:040x}"))


STRANGERS = tuple(trail_id(identity(1000 + number).peer_id) for number in range(300))
STRANGER, TO = identity(1999), identity(1299).peer_id
TOO_MANY = STRANGERS[: MAX_TRAIL + 1]
ME = trail_id(RouteNet(10).nodes[0].id)


def with_config(**fields: object) -> MeshConfig:
    return MeshConfig(routing=RoutingConfig(**fields))  # type: ignore[arg-type]


def gap(a: PeerId, b: PeerId) -> int:
    apart = (int(a, 16) - int(b, 16)) % RING_SIZE
    return min(apart, RING_SIZE - apart)


def arrived(net: RouteNet, number: int, call: int) -> RouteSucceeded:
    outcome = net.nodes[number].outcomes[call]
    assert isinstance(outcome, RouteSucceeded), outcome
    return outcome


def why_not(net: RouteNet, number: int, call: int) -> str:
    outcome = net.nodes[number].outcomes[call]
    assert isinstance(outcome, RouteFailed), outcome
    return outcome.reason


def is_ack(message: Message) -> bool:
    return isinstance(message, Packet) and message.kind == "ack"


def nobody_is_blamed(net: RouteNet) -> bool:
    return not any(node.blamed for node in net.nodes)


# --- any peer is reached ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [2, 3, 5, 8])
@pytest.mark.parametrize("peers", [12, pytest.param(24, marks=pytest.mark.simulation)])
def test_every_peer_reaches_every_other_and_gets_its_answer(peers, links):
    net = RouteNet(peers, small_world(peers, links))
    calls = [(a, b, net.route(a, net.nodes[b].id, answered=True)) for a, b in permutations(range(peers), 2)]
    net.run(30)
    for a, b, call in calls:
        outcome = arrived(net, a, call)
        assert outcome.peer == net.nodes[b].id
        assert outcome.message == rpc("answer", net.nodes[b].id)
    assert nobody_is_blamed(net)
    assert net.total("requests.in_flight") == 0


def test_a_route_without_an_answer_ends_with_arrival():
    net = RouteNet(10, ring(10))
    call = net.route(0, net.nodes[5].id)
    net.run(5)
    assert arrived(net, 0, call) == RouteSucceeded(call, net.nodes[5].id)
    (routed,) = net.nodes[5].routed
    assert (routed.peer.peer_id, routed.peer.verified) == (net.nodes[0].id, True)
    assert routed.peer.public_key == net.nodes[0].identity.public_key
    assert routed.way.path == tuple(trail_id(net.nodes[a].id) for a, _, one in net.sent if not is_ack(one))
    assert (net.nodes[5].count("receiver.delivered"), net.nodes[5].count("receiver.hops")) == (1, 5)


@examples(40)
@given(key=KEYS, links=st.sampled_from([2, 3, 5]), seed=st.integers(0, 100), asker=st.integers(0, 39))
def test_what_is_for_a_key_goes_to_the_peer_nearest_to_it_but_never_to_the_asker(key, links, seed, asker):
    net = RouteNet(40, small_world(40, links, seed))
    call = net.route(asker, key, nearest=True, answered=True)
    net.run(20)
    others = sorted((node.id for node in net.nodes if node.number != asker), key=lambda peer: gap(peer, key))
    me = net.nodes[asker].id
    # Who is itself the nearest parts its two sides of the ring: then either is as good.
    good = others[:2] if gap(me, key) < gap(others[1], key) else others[:1]
    assert arrived(net, asker, call).peer in good


def test_what_is_for_a_key_is_begun_by_way_of_the_nearest_neighbour_even_if_that_leads_nowhere_else():
    net = RouteNet(10)
    leaf = net.nodes[4]
    relay, asker = sorted((net.nodes[3], net.nodes[5]), key=lambda node: gap(node.id, leaf.id))
    for a, b in ((asker, leaf), (asker, relay), (relay, net.nodes[8])):
        net.link(a.number, b.number)
    call = net.route(asker.number, leaf.id, nearest=True)
    net.run(2)
    assert arrived(net, asker.number, call).peer == leaf.id
    assert net.total("requests.retried") == 0


def test_answers_walk_the_path_back():
    net = RouteNet(12, ring(12))
    call = net.route(0, net.nodes[4].id, answered=True)
    net.run(5)
    assert arrived(net, 0, call).peer == net.nodes[4].id
    hops = [(a, b, message.kind) for a, b, message in net.sent]
    assert hops[:4] == [(0, 1, "ask"), (1, 2, "ask"), (2, 3, "ask"), (3, 4, "ask")]
    net.route(0, net.nodes[4].id)
    net.run(5)
    counts = {"launched": 2, "retried": 0, "acked": 1, "answered": 1, "failed": 0, "stray_responses": 0}
    assert {name: net.nodes[0].count(f"requests.{name}") for name in counts} == counts
    hops = hops[:8]
    assert hops[4:] == [(4, 3, "answer"), (3, 2, "answer"), (2, 1, "answer"), (1, 0, "answer")]
    one, two = trail_id(net.nodes[1].id), trail_id(net.nodes[2].id)
    assert [message.route for *_, message in net.sent[4:8] if isinstance(message, Packet)] == [
        (two, one),
        (one,),
        (),
        (),
    ]


def test_a_packet_that_is_sent_by_a_known_way_names_what_is_left_of_it():
    net = RouteNet(10, ring(10))
    one, two, three = (trail_id(net.nodes[number].id) for number in (1, 2, 3))
    net.route(0, net.nodes[3].id, way=ReturnPath(net.nodes[3].id, "x", (three, two, one)))
    net.run(1)
    tells = [message for *_, message in net.sent if isinstance(message, Packet) and message.kind == "tell"]
    assert [message.route for message in tells] == [(two,), (), ()]


@pytest.mark.parametrize(("answered", "kind"), [(True, "answer"), (False, "ack")])
def test_a_request_that_comes_again_is_answered_again_and_not_delivered_again(answered, kind):
    net = RouteNet(10, ring(10))
    net.route(0, net.nodes[3].id, answered=answered)
    net.run(1)
    (request,) = [message for a, b, message in net.sent if (a, b) == (2, 3)]
    net.inject(net.nodes[2], net.nodes[3], structs.replace(request, attempt=1))
    net.run(1)
    responses = [message for a, b, message in net.sent if (a, b) == (3, 2) and isinstance(message, Packet)]
    assert [(message.kind, message.attempt) for message in responses] == [(kind, 0), (kind, 1)]
    assert len(net.nodes[3].routed) == 1
    assert (net.nodes[3].count("receiver.delivered"), net.nodes[3].count("receiver.duplicates")) == (1, 1)
    assert net.nodes[3].count("receiver.answers") == int(answered)


def test_an_answer_finds_another_way_if_its_path_has_broken():
    net = RouteNet(12, [*ring(12), (2, 8)])
    call = net.route(0, net.nodes[4].id, answered=True)
    net.at(0.19, lambda: net.cut(1, 2))
    net.run(20)
    assert arrived(net, 0, call).peer == net.nodes[4].id
    answers = [(a, b, one) for a, b, one in net.sent if isinstance(one, Packet) and one.kind == "answer"]
    assert [(a, b) for a, b, _ in answers[:7]] == [(4, 3), (3, 2), (2, 8), (8, 9), (9, 10), (10, 11), (11, 0)]
    path = [trail_id(net.nodes[number].id) for number in (3, 2, 8, 9, 10)]
    assert [one.path for *_, one in answers[:7]] == [(), (), *(tuple(path[:number]) for number in range(1, 5)), ()]
    assert [len(one.route) for *_, one in answers[:7]] == [2, 1, 0, 0, 0, 0, 0]
    assert len(net.nodes[4].routed) == 1


def test_a_peer_that_can_not_be_found_yet_is_answered_by_its_way():
    net = RouteNet(30, [(a, b) for a, b in small_world(30, 4) if 7 not in (a, b)])
    far = 20
    net.link(7, far, tell=False)  # a newcomer, of which nobody has heard
    call = net.route(7, net.nodes[3].id)
    net.run(3)
    arrived(net, 7, call)
    way = net.nodes[3].routed[0].way
    call = net.route(3, net.nodes[7].id, way=way, answered=True)
    net.run(3)
    assert arrived(net, 3, call).peer == net.nodes[7].id
    assert net.total("requests.retried") == 0


def test_a_way_that_is_gone_does_not_keep_a_packet_from_arriving():
    net = RouteNet(20, small_world(20, 4))
    nowhere = ReturnPath(net.nodes[9].id, "x", (trail_id(net.nodes[9].id), *STRANGERS[:2]))
    call = net.route(0, net.nodes[9].id, way=nowhere)
    net.run(5)
    arrived(net, 0, call)


def test_every_other_attempt_goes_by_the_known_way():
    net = RouteNet(20, small_world(20, 4))
    nobody, by = identity(1299).peer_id, trail_id(net.nodes[1].id)
    net.route(0, nobody, way=ReturnPath(nobody, "x", (trail_id(nobody), STRANGERS[0], by)), timeout=30.0)
    net.run(30)
    by_way = {one.attempt: bool(one.route) for a, _, one in net.sent if a == 0 and isinstance(one, Packet)}
    assert len(by_way) > 3
    assert by_way == {attempt: attempt % 2 == 0 for attempt in by_way}


def test_a_packet_turns_back_where_there_is_no_way_on():
    net = RouteNet(10, [(0, 4), (4, 3), (3, 2), (0, 8), (8, 9), (9, 1), (1, 5)])
    call = net.route(0, net.nodes[5].id, answered=True)
    net.run(10)
    arrived(net, 0, call)
    assert net.total("relay.given_back") == 3
    assert net.total("requests.retried") == 0
    assert nobody_is_blamed(net)


# --- who can not be reached -------------------------------------------------------------------------------------------


def test_without_a_link_a_route_ends_at_once():
    net = RouteNet(2)
    call = net.route(0, net.nodes[1].id)
    assert "no link" in why_not(net, 0, call)
    call = net.route(0, net.nodes[0].id)
    assert "itself" in why_not(net, 0, call)


@pytest.mark.parametrize("links", [2, 4])
def test_where_nobody_knows_a_way_the_asker_hears_of_it_before_its_time_is_over(links):
    net = RouteNet(40, small_world(40, links))
    call = net.route(0, identity(1000).peer_id, timeout=60)
    net.run(45)
    assert "no route" in why_not(net, 0, call)
    crossed = sum(isinstance(message, Packet) and message.kind != "miss" for _, _, message in net.sent)
    assert crossed <= 4 * MAX_TRAIL
    assert nobody_is_blamed(net)


@pytest.mark.parametrize("links", [2, 4])
def test_a_peer_that_may_well_be_gone_is_looked_for_near_its_place_only(links):
    def search(*, doubtful: bool) -> tuple[float, int]:
        net = RouteNet(40, small_world(40, links))
        call = net.route(0, identity(1000).peer_id, timeout=60, doubtful=doubtful)
        while call not in net.nodes[0].outcomes:
            net.run(0.1)
        assert "no route" in why_not(net, 0, call)
        assert nobody_is_blamed(net)
        return net.now, sum(isinstance(message, Packet) and message.kind != "miss" for _, _, message in net.sent)

    (soon, few), (late, many) = search(doubtful=True), search(doubtful=False)
    assert soon < late / 2
    assert few < many / 3


def test_a_peer_that_may_well_be_gone_is_reached_if_it_is_there():
    net = RouteNet(24, small_world(24, 3))
    for a, b in permutations(range(24), 2):
        net.route(a, net.nodes[b].id, answered=True, doubtful=True)
    net.run(10)
    assert all(isinstance(outcome, RouteSucceeded) for node in net.nodes for outcome in node.outcomes.values())


def test_nobody_makes_others_search_for_longer_than_all_do():
    def crossed(search: int) -> int:
        net = RouteNet(200, small_world(200, 4))
        net.meddle = lambda _sender, _receiver, message: (
            structs.replace(message, search=search) if isinstance(message, Packet) else message
        )
        call = net.route(0, identity(1000).peer_id, timeout=60)
        net.run(20)
        assert "no route" in why_not(net, 0, call)
        return sum(isinstance(message, Packet) and message.kind != "miss" for _, _, message in net.sent)

    assert crossed(SEARCH - 20) < crossed(SEARCH) == crossed(EVERYWHERE - 1)


@pytest.mark.parametrize(("size", "links"), [(40, 3), (100, 4), (200, 5)])
def test_the_answer_to_who_never_was_is_not_looked_for_by_the_whole_mesh(size, links):
    """One frame of a throw-away origin, and all that it makes others send."""
    crossed = []
    for number in range(5):
        net = RouteNet(size, small_world(size, links))
        by, to = net.nodes[number], net.nodes[(7 * number + size // 2) % size]
        packet = Packet(id="x", kind="ask", to=to.id, timestamp=int(EPOCH * 1000), carry=encode(rpc("x", by.id)))
        net.inject(by, net.by_id[min(by.links)], signed(packet, identity(1000 + number), NETWORK))
        net.run(20)
        assert len(to.routed) == 1
        crossed.append(len(net.sent))
    assert max(crossed) <= SEARCH


def test_on_an_island_the_whole_of_it_is_searched_and_no_more():
    net = RouteNet(12, [*[(a, b) for a in range(6) for b in range(a)], (6, 7)])
    call = net.route(0, net.nodes[7].id, timeout=60)
    net.run(10)
    assert "no route" in why_not(net, 0, call)
    assert net.total("requests.stuck") == 4


def test_a_route_ends_in_time_if_nobody_answers():
    net = RouteNet(10, ring(10))
    net.nodes[3].answers = False
    call = net.route(0, net.nodes[3].id, answered=True, timeout=7.5)
    net.run(7.4)
    assert call not in net.nodes[0].outcomes
    net.run(0.2)
    assert "no answer" in why_not(net, 0, call)


def test_a_cancelled_route_is_not_repeated_and_ends_in_silence():
    net = RouteNet(10, ring(10))
    net.meddle = lambda _sender, _receiver, _message: None
    call = net.route(0, net.nodes[3].id)
    net.feed(net.nodes[0], CancelRoute(Subsystem.KADEMLIA, call))
    sent = len(net.sent)
    net.run(60)
    assert len(net.sent) == sent
    assert net.nodes[0].outcomes == {}


# --- faults -----------------------------------------------------------------------------------------------------------


@examples(25)
@given(loss=st.floats(0, 0.05), seed=st.integers(0, 1000))
def test_lost_frames_are_made_good_and_nothing_arrives_twice(loss, seed):
    net = RouteNet(30, small_world(30, 4, seed))
    rng = random.Random(seed)
    net.meddle = lambda _sender, _receiver, message: None if rng.random() < loss else message
    calls = [(a, net.route(a, net.nodes[(a + 13) % 30].id, timeout=60)) for a in range(30)]
    net.run(90)
    for a, call in calls:
        arrived(net, a, call)
    assert all(len(node.routed) == 1 for node in net.nodes)


def black_holes(net: RouteNet, holes: set[int]) -> None:
    """These take part in everything, and drop all that they should relay."""

    def meddle(sender: Node, receiver: Node, message: Message) -> Message | None:
        own = isinstance(message, Packet) and origin(sender.id, message) == sender.id
        return None if sender.number in holes and not own else message

    net.meddle = meddle


def test_the_way_round_a_peer_that_drops_all_it_should_relay_is_found():
    for seed in range(5):
        net = RouteNet(40, small_world(40, 4, seed))
        hole = seed * 7
        black_holes(net, {hole})
        calls = [
            (a, net.route(a, net.nodes[b].id, answered=True, timeout=60))
            for a in range(40)
            for b in (random.Random(a).randrange(40),)
            if a != b and hole not in (a, b)
        ]
        net.run(60)
        for a, call in calls:
            arrived(net, a, call)


def test_links_that_end_on_the_way_are_noticed_at_once():
    net = RouteNet(12, ring(12))
    net.meddle = lambda sender, _receiver, message: None if sender.number == 0 else message
    call = net.route(0, net.nodes[2].id)
    net.meddle = lambda _sender, _receiver, message: message
    net.cut(0, 1)
    net.run(1.05)
    assert arrived(net, 0, call).peer == net.nodes[2].id


def test_a_new_link_to_the_receiver_is_used_at_once():
    net = RouteNet(12, ring(12))
    net.meddle = lambda _sender, _receiver, _message: None
    call = net.route(0, net.nodes[6].id)
    net.meddle = lambda _sender, _receiver, message: message
    net.link(0, 6)
    net.run(0.2)
    assert arrived(net, 0, call).peer == net.nodes[6].id
    assert net.sent[-2][:2] == (0, 6)


def test_attempts_wait_for_as_long_as_answers_take():
    net = RouteNet(60, ring(60), latency=0.1)
    calls = [net.route(0, net.nodes[20].id) for _ in range(1)]
    net.run(20)
    before = net.total("requests.retried")
    calls += [net.route(0, net.nodes[21].id), net.route(0, net.nodes[20].id)]
    net.run(20)
    assert all(isinstance(net.nodes[0].outcomes[call], RouteSucceeded) for call in calls)
    assert net.total("requests.retried") == before


def attempts_of(net: RouteNet, number: int, seconds: float) -> list[float]:
    """Seconds between the attempts that a peer makes while nothing of its own arrives."""
    times: dict[int, float] = {}

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message | None:
        if sender.number != number or not isinstance(message, Packet):
            return message
        times.setdefault(message.attempt, net.now)
        return None

    net.meddle = meddle
    net.run(seconds)
    return [after - before for before, after in pairwise(times.values())]


def are_about(waits: list[float], expected: list[float]) -> bool:
    return len(waits) == len(expected) and all(
        0.9 * most <= wait <= 1.1 * most for wait, most in zip(waits, expected, strict=True)
    )


def lost(net: RouteNet, number: int) -> None:
    net.meddle = lambda sender, _receiver, message: None if sender.number == number else message


def test_while_nothing_is_known_of_answers_attempts_wait_as_long_as_over_a_link_and_then_up_to_four_times():
    net = RouteNet(10, ring(10))
    lost(net, 0)
    net.route(0, net.nodes[3].id, timeout=100)
    assert are_about(attempts_of(net, 0, 13), [2, 4, 4])  # the first attempt was before


def test_where_ways_are_long_attempts_wait_longer():
    net = RouteNet(10, ring(10))
    lost(net, 0)
    net.feed(net.nodes[0], MeshSize(10_000))  # of which ways may take 256 links
    net.route(0, net.nodes[3].id, timeout=100)
    net.run(0.88 * 256 / 64)
    assert net.total("requests.retried") == 0
    net.run(0.24 * 256 / 64)
    assert net.total("requests.retried") == 1


def test_once_answers_are_known_attempts_wait_for_a_little_longer_than_those_took():
    net = RouteNet(10, ring(10), latency=0.1)
    for _ in range(40):  # until they are known not to vary
        net.route(0, net.nodes[3].id)
        net.run(1)
    lost(net, 0)
    net.route(0, net.nodes[3].id, timeout=100)
    assert are_about(attempts_of(net, 0, 9), [1.2, 2.4, 2.4])


def test_answers_that_come_sooner_than_that_do_not_hurry_attempts_beyond_a_limit():
    net = RouteNet(10, ring(10), latency=0.001)
    for _ in range(40):
        net.route(0, net.nodes[3].id)
        net.run(1)
    lost(net, 0)
    net.route(0, net.nodes[3].id, timeout=100)
    assert are_about(attempts_of(net, 0, 4), [0.6, 1.2, 1.2])


def test_direct_messages_are_repeated_sooner():
    net = RouteNet(10, ring(10), latency=0.001)
    for _ in range(40):
        net.send(0, 3)
        net.run(1)
    lost(net, 0)
    net.send(0, 3)
    assert are_about(attempts_of(net, 0, 4), [0.3, 0.6, 1.2, 1.2])


def test_attempts_take_each_first_hop_in_turn_and_begin_again_after_the_last():
    net = RouteNet(10, [*ring(10), (0, 5)])
    lost(net, 0)
    net.route(0, net.nodes[3].id, timeout=100)
    net.run(20)
    first_hops = [b for a, b, _ in net.sent if a == 0]
    assert sorted(first_hops[:3]) == [1, 5, 9]
    assert first_hops[3:6] == first_hops[:3]


def test_attempts_that_find_no_way_are_made_ever_later():
    net = RouteNet(10, ring(10))
    call = net.route(0, net.nodes[5].id, avoid=(net.nodes[1].id, net.nodes[9].id), timeout=60)
    net.run(0.3 + 0.6 + 1.2 - 0.01)
    assert call not in net.nodes[0].outcomes
    assert net.nodes[0].count("requests.stuck") == 3
    net.run(0.02)
    assert "no route: 4 attempts" in why_not(net, 0, call)
    assert net.sent == []


@pytest.mark.parametrize(("size", "urgent", "sealed"), [(4096, True, False), (4097, False, False), (1, False, True)])
def test_small_packets_that_are_not_sealed_overtake(size, urgent, sealed):
    packet = Packet(id="p", kind="tell", to=TO, carry=bytes(size), sealed=sealed)
    assert is_urgent(packet) == urgent


def test_a_large_packet_is_waited_for_as_long_as_it_takes_to_send():
    net = RouteNet(10, ring(10))
    lost(net, 0)
    second = int(MeshConfig().broadcast.slowest_link)
    net.route(0, net.nodes[3].id, rpc("x" * second, net.nodes[0].id), timeout=60)
    net.route(0, net.nodes[4].id, timeout=60)  # which is queued behind
    net.run(1.88)
    assert net.total("requests.retried") == 0
    net.run(0.24)
    assert net.total("requests.retried") == 2


def test_a_response_to_an_attempt_that_was_never_made_is_one_all_the_same():
    net = RouteNet(10, ring(10))

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message:
        is_ack = sender.number == 1 and isinstance(message, Packet) and message.kind == "ack"
        return structs.replace(message, attempt=message.attempt + 1) if is_ack else message  # type: ignore[union-attr]

    net.meddle = meddle
    call = net.route(0, net.nodes[3].id)
    net.run(0.5)
    arrived(net, 0, call)


@given(
    packet_id=st.text(min_size=1, max_size=8),
    attempt=st.integers(0, 9),
    ranked=st.lists(KEYS, max_size=6, unique=True),
)
def test_the_next_hop_of_a_repeated_packet_is_the_first_of_three_with_the_parity_of_its_attempt(
    packet_id, attempt, ranked
):
    packet = Packet(id=packet_id, kind="tell", to=TO, attempt=attempt)

    def parity(peer: PeerId) -> int:
        return crc32(f"{packet_id} {-(-attempt // 2)} {peer}".encode()) % 2

    assume(not wandering(packet))
    choices = [peer for peer in ranked[:3] if parity(peer) == attempt % 2] if attempt else []
    assert pick(ranked, packet) == next(iter([*choices, *ranked]), None)


def test_late_attempts_go_by_lot_so_that_peers_at_all_places_near_the_receiver_dont_decide():
    table, peers = ForwardingTable(STRANGER.peer_id), [identity(number) for number in range(20)]
    for one in peers:
        table.link_up(RemotePeer(one.peer_id, True, 1))

    def nexts(attempt: int) -> set[PeerId]:
        packets = [Packet(id=f"{number:032x}", kind="tell", to=TO, attempt=attempt) for number in range(60)]
        assert all(wandering(packet) for packet in packets)
        return {table.by_lot(packet, ())[0] for packet in packets}

    assert min(len(nexts(attempt)) for attempt in (3, 4, 6, 7)) > 15
    assert not any(wandering(Packet(id="a", kind="tell", to=TO, attempt=attempt)) for attempt in (0, 1, 2, 5, 8))
    assert not wandering(Packet(id="a", kind="tell", to=TO, attempt=3, nearest=True))
    said = [peers[3].peer_id, peers[7].peer_id]
    for peer in said:
        table.set_links(peer, (TO,))
    assert nexts(3) == nexts(7) == set(said)
    assert len(nexts(4)) > 15


# --- all ways at once -------------------------------------------------------------------------------------------------


def complete(size: int) -> RouteNet:
    return RouteNet(size, [(a, b) for a in range(size) for b in range(a)])


def everywhere(number: int, carry: bytes = b"") -> Packet:
    packet = Packet(id=f"{number}", kind="tell", to=TO, attempt=3, search=EVERYWHERE, carry=carry)
    return signed(packet, STRANGER, NETWORK)


def test_what_goes_everywhere_each_relay_passes_on_once_however_many_bring_it():
    net = complete(6)
    for sender in net.nodes[1:3]:
        net.inject(sender, net.nodes[0], everywhere(0))
    net.run(1)
    assert [node.count("relay.spread") for node in net.nodes] == [1, 0, 1, 1, 1, 1]  # the second has had it
    assert sum(isinstance(message, Packet) and message.kind == "tell" for _, _, message in net.sent) <= 5 * 5


@pytest.mark.parametrize("carry", [b"", b"x" * 5000])
def test_a_neighbour_has_few_packets_sent_everywhere_and_none_that_are_large(carry):
    net = complete(6)
    for number in range(30):
        net.inject(net.nodes[1], net.nodes[0], everywhere(number, carry=carry))
    net.run(1)
    assert net.nodes[0].count("relay.spread") == (0 if carry else int(SPREAD_BURST))
    assert not any(node.blamed for node in net.nodes)


# --- what relays may not do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"carry": encode(rpc("forged", identity(1).peer_id))},
        {"id": "another"},
        {"timestamp": int(EPOCH * 1000) + 1},
        {"kind": "ask"},
        {"signature": bytes(64)},
        {"key": None},
        {"signature": None},
        {"key": None, "signature": None},
    ],
    ids=lambda change: " and ".join(change),
)
def test_what_a_relay_alters_is_dropped_and_the_packet_arrives_another_way(change):
    net = RouteNet(10, ring(10))

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message:
        is_tell = isinstance(message, Packet) and message.kind == "tell"
        return structs.replace(message, **change) if sender.number == 2 and is_tell else message

    net.meddle = meddle
    call = net.route(0, net.nodes[4].id, timeout=30)
    net.run(1)
    assert net.nodes[4].routed == []
    dropped = ("packets.bad_signature", "packets.dropped_unproven")
    assert sum(net.total(path) for path in dropped) == 1
    net.run(30)
    arrived(net, 0, call)
    (routed,) = net.nodes[4].routed
    assert routed.message == rpc("hello", net.nodes[0].id)
    assert nobody_is_blamed(net)


def test_a_relay_that_puts_its_own_key_into_a_packet_is_found_out_by_the_receiver():
    net = RouteNet(10, ring(10))

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message:
        is_tell = isinstance(message, Packet) and message.kind == "tell"
        return structs.replace(message, key=sender.identity.public_key) if sender.number == 2 and is_tell else message

    net.meddle = meddle
    call = net.route(0, net.nodes[4].id, timeout=30)
    net.run(30)
    assert net.nodes[4].count("packets.bad_signature") > 0
    arrived(net, 0, call)


def test_an_answer_that_a_relay_makes_up_is_dropped():
    net = RouteNet(10, ring(10))

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message:
        if sender.number == 1 and isinstance(message, Packet) and message.kind == "answer":
            forged = structs.replace(message, carry=encode(rpc("lie", sender.id)))
            return signed(forged, sender.identity, NETWORK)
        return message

    net.meddle = meddle
    call = net.route(0, net.nodes[3].id, answered=True, timeout=30)
    net.run(1)
    assert net.nodes[0].count("requests.stray_responses") == 1
    net.run(30)
    assert arrived(net, 0, call).message == rpc("answer", net.nodes[3].id)


def test_replies_that_nobody_asked_for_change_nothing():
    net = RouteNet(10, ring(10))
    call = net.route(0, net.nodes[5].id, answered=True)
    packet = next(message for _, _, message in net.sent if isinstance(message, Packet))
    liar = net.nodes[1]
    for kind in ("ack", "answer", "refusal"):
        for packet_id in (packet.id, "unheard of"):
            reply = Packet(id=packet_id, kind=kind, to=net.nodes[0].id, carry=encode(rpc("lie", liar.id)))
            net.inject(liar, net.nodes[0], reply)
    net.inject(liar, net.nodes[0], Packet(id="unheard of", kind="miss", to=net.nodes[0].id))
    net.run(10)
    assert arrived(net, 0, call).message == rpc("answer", net.nodes[5].id)
    assert net.nodes[0].count("requests.stray_responses") == 7
    assert nobody_is_blamed(net)


def test_what_a_relay_repeats_is_not_delivered_again_not_even_much_later():
    net = RouteNet(10, ring(10))
    call = net.route(0, net.nodes[3].id)
    net.run(5)
    arrived(net, 0, call)
    packet = next(m for a, b, m in net.sent if (a, b) == (2, 3) and isinstance(m, Packet) and m.kind == "tell")
    net.inject(net.nodes[2], net.nodes[3], packet)
    net.run(1000)
    net.inject(net.nodes[2], net.nodes[3], packet)
    for other in range(20):  # so many others that its id is forgotten
        net.route(4, net.nodes[3].id, rpc(str(other), net.nodes[4].id))
    net.run(5)
    net.inject(net.nodes[2], net.nodes[3], packet)
    net.run(5)
    assert [routed.peer.peer_id for routed in net.nodes[3].routed].count(net.nodes[0].id) == 1


def test_a_clock_that_is_far_off_is_told_to_its_owner():
    net = RouteNet(10, ring(10), clocks={0: -3600})
    call = net.route(0, net.nodes[3].id)
    net.run(5)
    assert "clock" in why_not(net, 0, call)
    assert net.nodes[3].routed == []


def test_a_message_that_does_not_travel_is_refused():
    net = RouteNet(10, ring(10))
    call = net.route(0, net.nodes[3].id, GossipWant())
    net.run(5)
    assert "refused" in why_not(net, 0, call)
    assert net.nodes[3].count("receiver.refused") == 1


# --- trails that no honest neighbour sends ----------------------------------------------------------------------------


def strange(to: PeerId = TO, **fields: object) -> Packet:
    """A packet whose origin is far away."""
    return signed(Packet(id="p", kind="tell", to=to, **fields), STRANGER, NETWORK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "trails",
    [
        {"path": (ME,)},
        {"path": (STRANGERS[1], ME), "tried": STRANGERS[2:3]},
        {"tried": (ME,)},
        {"path": STRANGERS[:200], "tried": STRANGERS[200:257]},
        {"path": STRANGERS[:1], "route": STRANGERS[1:257]},
        {"path": STRANGERS[:MAX_TRAIL]},
    ],
    ids=["was here", "was here before", "dead end", "long trail", "long route", "full path"],
)
def test_a_packet_with_a_trail_that_leads_nowhere_ends_and_nobody_is_blamed(trails):
    net = RouteNet(10, ring(10))
    assert trail_id(net.nodes[0].id) == ME
    net.inject(net.nodes[1], net.nodes[0], strange(**trails))
    net.run(1)
    assert net.total("relay.relayed") == 0
    assert net.nodes[0].count("packets.dropped_loop") + net.nodes[0].count("relay.dropped_hops") == 1
    assert nobody_is_blamed(net)


@pytest.mark.parametrize("trail", ["path", "tried"])
@pytest.mark.parametrize("number", [0, 1, 2, 9])
def test_who_has_the_first_digits_of_its_id_in_a_trail_is_passed_by_but_reached(trail, number):
    """As if somebody had made ids until one began so; here the receiver, a relay, its neighbour or the last hop."""
    net = RouteNet(10, ring(10))
    liar, receiver = net.nodes[4], net.nodes[0]
    packet = strange(receiver.id, timestamp=int(EPOCH * 1000), carry=encode(rpc("hello", TO)))
    net.inject(liar, net.nodes[3], structs.replace(packet, **{trail: (trail_id(net.nodes[number].id),)}))
    net.run(2)
    assert [routed.peer.peer_id for routed in receiver.routed] == [STRANGER.peer_id]
    assert nobody_is_blamed(net)


@examples(15)
@given(seed=st.integers(0, 1000), links=st.sampled_from([2, 3, 5]), digits=st.sampled_from([1, 2]))
def test_where_many_share_their_first_digits_peers_are_reached_and_nobody_is_blamed(seed, links, digits):
    def coarse(peer: str) -> str:
        return peer[:digits].ljust(12, "0")

    with pytest.MonkeyPatch.context() as patch:
        for module in (forwarding_table, packets, receiver, relay, routing):
            patch.setattr(module, "trail_id", coarse)
        outcomes = []
        for _ in range(2):
            net = RouteNet(24, small_world(24, links, seed), seed=seed)
            calls = [(a, net.route(a, net.nodes[(a + 9) % 24].id, answered=True, timeout=60)) for a in range(24)]
            net.run(60)
            assert nobody_is_blamed(net)
            outcomes.append([(a, b, one.kind, one.path) for a, b, one in net.sent if isinstance(one, Packet)])
            found = [a for a, call in calls if isinstance(net.nodes[a].outcomes[call], RouteSucceeded)]
            assert len(found) >= (20 if digits == 2 and links > 2 else 0)
        assert outcomes[0] == outcomes[1]


def test_of_neighbours_that_share_their_first_digits_a_trail_names_the_lowest():
    low, high = (PeerId(f"{'ab' * 6}{end:028x}") for end in (1, 2))
    for order in permutations((low, high)):
        table = ForwardingTable(PeerId("0" * 40))
        for peer in order:
            table.link_up(RemotePeer(peer, True, 1))
        assert table.neighbour(trail_id(high)) == low
        assert table.along((trail_id(high),), TO, ()) == (low, ())
        assert table.along((trail_id(high),), high, ()) == (high, ()), "its receiver is named in full"
        table.link_down(low)
        assert table.neighbour(trail_id(low)) == high
        table.link_down(high)
        assert table.neighbour(trail_id(low)) is None


def test_a_packet_that_is_given_back_by_who_never_had_it_goes_on():
    net = RouteNet(10, ring(10))
    sender = net.nodes[1]
    nobody = PeerId(f"{int(net.nodes[0].id, 16) ^ 1:040x}")  # so that the search may go on
    net.inject(sender, net.nodes[0], strange(nobody, path=STRANGERS[:1], tried=(trail_id(sender.id),)))
    net.run(0.06)
    assert [(a, b) for a, b, _ in net.sent] == [(0, 9)]
    assert nobody_is_blamed(net)


def test_packets_from_peers_that_do_not_relay_are_dropped():
    net = RouteNet(4, ring(4))
    stranger = net.nodes[1]
    for verified, version in ((False, 1), (True, 0), (False, 0)):
        peer = RemotePeer(stranger.id, verified, version)
        net.feed(net.nodes[0], LinkUp(peer))
        net.inject(stranger, net.nodes[0], Packet(id="p", kind="tell", to=net.nodes[0].id))
        net.run(1)
    assert net.nodes[0].count("packets.dropped_stranger") == 3
    assert net.nodes[0].routed == []
    call = net.route(0, net.nodes[2].id)
    net.run(5)
    arrived(net, 0, call)
    assert not [1 for a, b, _ in net.sent if (a, b) == (0, 1)], "nothing is relayed by such a peer"


def test_what_nobody_signed_is_its_senders_and_goes_no_further():
    net = RouteNet(10, ring(10))
    sender, carry = net.nodes[1], encode(rpc("hello", TO))
    for to, named in ((net.nodes[0].id, STRANGER.peer_id), (net.nodes[5].id, sender.id), (net.nodes[5].id, None)):
        packet = Packet(id="p", kind="tell", from_=named, to=to, carry=carry)
        net.inject(sender, net.nodes[0], packet)
        net.run(1)
    assert [routed.peer.peer_id for routed in net.nodes[0].routed] == [sender.id]
    assert (net.total("relay.relayed"), net.nodes[0].count("packets.dropped_unproven")) == (0, 2)


def test_an_origin_that_a_packet_names_counts_for_nothing():
    net = RouteNet(10, ring(10))
    packet = strange(net.nodes[0].id, timestamp=int(EPOCH * 1000), carry=encode(rpc("hello", TO)))
    net.inject(net.nodes[1], net.nodes[0], structs.replace(packet, from_=net.nodes[5].id))
    net.run(1)
    assert [routed.peer.peer_id for routed in net.nodes[0].routed] == [STRANGER.peer_id]
    assert not any(isinstance(one, Packet) and one.from_ for *_, one in net.sent)


@pytest.mark.parametrize("trail", ["path", "tried", "route"])
@pytest.mark.parametrize(
    "value",
    [bytes(5), bytes(7), bytes(20), bytes(6 * (MAX_TRAIL + 1)), "a" * 12, 12, None, [], [bytes(6)]],
    ids=["short", "long", "an id", "too many", "text", "number", "nothing", "a list", "nested"],
)
def test_a_trail_of_anything_else_is_malformed(trail, value):
    fields = [field.name for field in structs.fields(Packet)]
    entries = msgpack.decode(encode(structs.replace(strange(), tried=STRANGERS[:1], search=1)))
    entries[1 + fields.index(trail)] = value
    with pytest.raises(RemoteProtocolError):
        decode(msgpack.encode(entries))


@pytest.mark.parametrize(("room", "fits"), [(1, True), (0, False)])
def test_a_packet_whose_trails_are_full_ends_and_its_origin_is_told(room, fits):
    net = RouteNet(10, ring(10))
    origin, sender = net.nodes[2], net.nodes[1]
    nobody = PeerId(f"{int(net.nodes[0].id, 16) ^ 1:040x}")
    packet = Packet(id="p", kind="tell", to=nobody, path=STRANGERS[: MAX_TRAIL - 3 - room], route=STRANGERS[-3:])
    net.inject(sender, net.nodes[0], signed(packet, origin.identity, NETWORK))
    net.run(1)
    sent = [one for a, b, one in net.sent if (a, b) == (0, 9) and isinstance(one, Packet)]
    assert [one.path for one in sent] == ([(*packet.path, trail_id(sender.id))] if fits else [])
    assert net.nodes[0].count("relay.dropped_hops") == (not fits)
    assert nobody_is_blamed(net)


def test_a_miss_goes_no_other_way_than_its_request_came():
    net = RouteNet(8, ring(8))
    miss = Packet(id="p", kind="miss", to=net.nodes[0].id, route=(trail_id(net.nodes[3].id),))
    net.inject(net.nodes[5], net.nodes[4], miss)
    net.run(1)
    assert [(a, b) for a, b, _ in net.sent] == [(4, 3)], "its route ends there"


@pytest.mark.parametrize("carry", [b"", b"{}", b"\x7f", b"\xc1", encode(rpc("hello", TO), text=True)])
def test_what_a_packet_carries_is_a_message_of_our_own_dialect(carry):
    with pytest.raises(RemoteProtocolError):
        content(carry)


def test_what_has_no_way_on_nor_back_ends():
    net = RouteNet(5, [(1, 0), (0, 2)])
    net.at(0.12, lambda: net.cut(0, 1))
    net.route(1, identity(1000).peer_id)
    net.run(0.2)
    assert [(a, b) for a, b, _ in net.sent] == [(1, 0), (0, 2), (2, 0)]
    assert net.nodes[0].count("relay.dropped_stuck") == 1


@pytest.mark.parametrize(("nearest", "is_signed"), [(False, False), (True, True)])
def test_a_packet_is_signed_unless_its_receiver_is_the_neighbour_that_gets_it(nearest, is_signed):
    net = RouteNet(10, ring(10))
    call = net.route(0, net.nodes[1].id, nearest=nearest)
    net.run(1)
    assert arrived(net, 0, call).peer == net.nodes[1].id
    packet = net.sent[0][2]
    assert isinstance(packet, Packet)
    assert (packet.signature is not None) == is_signed


# --- bounds -----------------------------------------------------------------------------------------------------------


WORK = 0.01 * 1e6
"""Units a second, of which half is common and a twelfth is each neighbour's."""
FEW = attrs.evolve(MeshConfig(), work=WorkConfig(routing=0.01))


def flooded(net, flood, victim, count, first=0, **fields):
    """What a victim is sent by a neighbour that relays for others."""
    for number in range(first, first + count):
        packet = Packet(id=str(number), **{"kind": "tell", "to": net.nodes[8].id, **fields})
        net.inject(flood, victim, signed(packet, flood.identity, NETWORK))


def test_what_a_neighbour_s_packets_cost_is_bounded_and_others_are_not_held_up_by_it():
    net = RouteNet(10, ring(10), config=FEW)
    victim, flood = net.nodes[0], net.nodes[1]
    for second in range(10):
        flooded(net, flood, victim, 400, 400 * second)
        net.run(1.0)
    cost = 2 * FRAME  # of each, and it gets no more than its own part and what is common
    most = WORK * (1 / 2 + 1 / 12) * (10 + BURST) / cost
    assert most * 0.8 < 4000 - victim.count("relay.dropped_unpaid") <= most
    assert victim.blamed == []
    calls = [net.route(2, net.nodes[9].id) for _ in range(10)]
    flooded(net, flood, victim, 400, 9000)
    net.run(5)
    for call in calls:
        arrived(net, 2, call)


def test_signatures_are_paid_for_before_they_are_checked():
    net = RouteNet(10, ring(10), config=FEW)
    victim, flood = net.nodes[0], net.nodes[1]
    flooded(net, flood, victim, 900, kind="ask", to=victim.id)
    net.run(1.0)
    checked = victim.count("receiver.refused")
    assert checked == int((WORK / 2) * BURST / 200) + int(WORK / 12 * BURST / 200)
    assert victim.count("relay.dropped_unpaid") == 900 - checked


def test_answers_that_were_asked_for_cost_their_neighbour_nothing():
    net = RouteNet(4, ring(4), config=FEW)
    for _ in range(40):
        calls = [net.route(0, net.nodes[2].id, answered=True) for _ in range(4)]
        net.run(1)
        for call in calls:
            arrived(net, 0, call)
    assert net.nodes[0].count("relay.dropped_unpaid") == 0


def test_a_neighbour_that_brings_more_packets_than_any_sends_loses_its_link():
    net = RouteNet(10, ring(10))
    victim, flood = net.nodes[0], net.nodes[1]
    flooded(net, flood, victim, int(2 * MOST_SENT * BURST))
    net.run(0.06)
    assert victim.blamed == []
    flooded(net, flood, victim, 100, 9000)
    net.run(0.06)
    assert {(peer, reason) for peer, reason in victim.blamed} == {(flood.id, "more than 500 packets a second")}


def test_a_peer_gives_no_neighbour_more_packets_than_one_may_be_given_whoever_they_are_from():
    net = RouteNet(10, ring(10), config=attrs.evolve(MeshConfig(), work=WorkConfig(routing=100.0)))
    net.link(1, 5)
    relay = net.nodes[1]
    for second in range(20):
        for source in (net.nodes[0], net.nodes[5]):  # each as much as it may without being told off
            flooded(net, source, relay, 450, 450 * second, to=net.nodes[2].id)
        net.run(1.0)
    assert relay.blamed == []
    assert net.nodes[2].blamed == []
    assert relay.count("relay.dropped_rate") > 0


def test_packets_under_way_are_bounded():
    net = RouteNet(10, ring(10), config=with_config(requests=5))
    calls = [net.route(0, net.nodes[5].id) for _ in range(8)]
    assert net.nodes[0].count("requests.in_flight") == 5
    assert all("under way already" in why_not(net, 0, call) for call in calls[5:])
    net.run(5)
    for call in calls[:5]:
        arrived(net, 0, call)


def test_what_is_remembered_of_others_is_bounded():
    net = RouteNet(6, ring(6), config=with_config(remembered_routes=4, seen_ids=5))
    for number in range(30):
        net.route(number % 3, net.nodes[4].id, answered=number % 2 == 0)
        net.run(2)
    receiver = net.nodes[4]
    assert receiver.count("receiver.questions") <= 4
    assert receiver.count("receiver.seen_ids") <= 5


def test_neighbours_that_lead_nowhere_else_come_last_but_for_packets_of_their_own():
    me, leaf, relay = (PeerId(f"{place:012x}".ljust(40, "0")) for place in (0, 100, 200))
    target, other = (PeerId(f"{place:012x}".ljust(40, "0")) for place in (101, 300))
    table = ForwardingTable(me)
    for peer in (leaf, relay):
        table.link_up(RemotePeer(peer, True, 1))
    table.set_links(relay, (me, other))
    assert table.ranked(target, ()) == [leaf, relay], "it has not told of its links yet"
    for links in ((), (me,), (me, leaf), (target,)):
        table.set_links(leaf, links)
        assert table.ranked(target, ()) == ([leaf, relay] if target in links else [relay])
        assert table.ranked(leaf, ())[0] == leaf
    table.set_links(leaf, ())
    assert table.nearer(target, (), (), leaves=True) == [leaf, relay]
    assert table.nearer(target, (), (), leaves=False) == [relay]
    assert table.ranked(target, (trail_id(relay),)) == [leaf], "all the others are dead ends"


def test_the_same_seed_gives_the_same_trace():
    def trace(seed: int) -> list[tuple[int, int, str, int]]:
        net = RouteNet(30, small_world(30, 4), seed=seed)
        rng = random.Random(1)
        net.meddle = lambda _sender, _receiver, message: None if rng.random() < 0.2 else message
        for a in range(30):
            net.route(a, net.nodes[(a + 11) % 30].id, answered=True)
        net.run(20)
        return [(a, b, m.kind, m.attempt) for a, b, m in net.sent if isinstance(m, Packet)]

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_a_question_under_way_is_not_forgotten_for_those_that_another_neighbour_brings():
    asker, evil, me = identity(1), identity(2), identity(3)
    config = attrs.evolve(MeshConfig(), work=WorkConfig(routing=1000.0))
    core = routing.RoutingCore(me, config, random.Random(1), lambda now: EPOCH + now)
    for neighbour in (asker, evil):
        core.handle(LinkUp(RemotePeer(neighbour.peer_id, True, 1, neighbour.public_key)), 0.0)

    def ask(name, who, now):
        carry = encode(rpc("?", who.peer_id))
        packet = Packet(id=name, kind="ask", to=me.peer_id, timestamp=int(EPOCH * 1000), carry=carry)
        effects = core.handle(Received(who.peer_id, signed(packet, who, NETWORK)), now)
        return next(effect.input for effect in effects if isinstance(effect, Notify))

    question = ask("the one", asker, 0.0)
    for number in range(1400):
        ask(str(number), evil, number / 400)
    effects = core.handle(RouteReply(question.way, rpc("!", me.peer_id)), 4.0)
    assert [effect.peers for effect in effects if isinstance(effect, SendFrame)] == [(asker.peer_id,)]
