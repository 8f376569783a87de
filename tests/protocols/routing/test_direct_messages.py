"""Direct messages to peers without a link: sealed, once, with an answer in every case."""

from __future__ import annotations

import random
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2pmesh.config import MeshConfig, RoutingConfig
from p2pmesh.errors import MeshClosed, PeerUnreachable, RemoteProtocolError
from p2pmesh.identity import peer_id_of
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.inputs import CancelCall, Leave, LinkUp, Received, RemotePeer, SendDirect
from p2pmesh.protocols.routing.direct_sender import AHEAD
from p2pmesh.protocols.routing.packets import content, signed
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.protocols.routing.sealed_box import SEAL_SIZE, Contacts, contact_of, is_contact_of, seal, unseal
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Direct, Message
from p2pmesh.wire.overlay import ContactReply, ContactRequest, Packet
from tests.harness.examples import examples
from tests.harness.routing import Node, RouteNet, origin, ring, small_world
from tests.harness.virtual_time import NETWORK, identity, remote, virtual_wall

ALICE, BOB, EVE = identity(0), identity(1), identity(2)


def error_of(net: RouteNet, number: int, call: int) -> str:
    error = net.nodes[number].replies[call].error
    assert isinstance(error, PeerUnreachable), error
    return str(error)


def packets(net: RouteNet, kind: str) -> list[tuple[int, int, Packet]]:
    return [(a, b, m) for a, b, m in net.sent if isinstance(m, Packet) and m.kind == kind]


# --- any peer can be written to ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [2, 3, 5])
@pytest.mark.parametrize("peers", [9, pytest.param(16, marks=pytest.mark.simulation)])
def test_every_peer_can_write_to_every_other(peers, links):
    net = RouteNet(peers, small_world(peers, links))
    calls = [(a, b, net.send(a, b, f"{a} to {b}")) for a, b in permutations(range(peers), 2)]
    net.run(30)
    assert all(net.nodes[a].replies[call].error is None for a, _, call in calls)
    for node in net.nodes:
        assert sorted(str(event.payload) for event in node.directs) == sorted(
            f"{a} to {node.number}" for a in range(peers) if a != node.number
        )
        assert all(event.verified and event.origin != node.id for event in node.directs)
    assert not any(node.blamed for node in net.nodes)


@pytest.mark.parametrize("payload", [b"\0bytes", {"a": [1, None, "ü"]}, "text", 0, None, b"x" * 1024 * 1024])
def test_any_payload_arrives_as_it_was_sent(payload):
    net = RouteNet(8, ring(8))
    call = net.send(0, 3, payload)
    net.run(5)
    assert net.nodes[0].replies[call].error is None
    (event,) = net.nodes[3].directs
    assert (event.payload, event.origin, event.timestamp) == (payload, net.nodes[0].id, EPOCH)


def test_the_contact_record_is_asked_for_once():
    net = RouteNet(8, ring(8))
    for text in ("one", "two", "three"):
        net.send(0, 3, text)
    net.run(5)
    net.send(0, 3, "four")
    net.send(3, 0, "back")  # whose record came with the question
    net.run(5)
    asked, answered = ({packet.id: packet for *_, packet in packets(net, kind)} for kind in ("ask", "answer"))
    assert list(asked) == list(answered)
    for packet in (*asked.values(), *answered.values()):
        assert packet.key is not None
        message = content(packet.carry)
        assert isinstance(message, ContactRequest | ContactReply)
        assert message.contact.serial // 1000 == int(EPOCH)
        assert is_contact_of(message.contact, peer_id_of(packet.key), NETWORK)
    assert len(asked) == 1
    assert [event.payload for event in net.nodes[3].directs] == ["one", "two", "three", "four"]


@examples(20)
@given(loss=st.floats(0, 0.05), seed=st.integers(0, 1000))
def test_a_message_arrives_at_most_once_and_every_call_is_answered(loss, seed):
    net = RouteNet(20, small_world(20, 4, seed))
    rng = random.Random(seed)
    net.meddle = lambda _sender, _receiver, message: None if rng.random() < loss else message
    calls = [(a, net.send(a, (a + 9) % 20, a)) for a in range(20)]
    net.run(120)
    assert all(len(node.directs) <= 1 for node in net.nodes)
    for a, call in calls:
        assert net.nodes[a].replies[call].error is None
        assert [event.payload for event in net.nodes[(a + 9) % 20].directs] == [a]


def test_a_large_message_on_a_slow_way_is_not_taken_for_lost():
    net = RouteNet(8, ring(8))
    net.send(0, 3, "small")  # after which answers are expected soon
    net.run(5)
    net.latency = 1.0
    call = net.send(0, 3, b"x" * 1024 * 1024)
    net.run(20)
    assert net.nodes[0].replies[call].error is None
    assert len([1 for a, _, packet in packets(net, "tell") if a == 0 and len(packet.carry) > 1000]) == 1


@pytest.mark.parametrize("size", [10, 100_000])
def test_direct_messages_to_peers_without_a_link_do_not_overtake_and_calls_do(size):
    core = RoutingCore(ALICE, MeshConfig(), random.Random(1), virtual_wall)
    core.handle(LinkUp(remote(EVE)), 0.0)
    (question,) = core.handle(SendDirect(1, B, b"x" * size), 0.0)
    assert isinstance(question, SendFrame)
    assert isinstance(question.message, Packet)
    assert question.urgent
    record = ContactReply(contact=contact_of(BOB, 1024 * 1024, 0, NETWORK))
    answer = Packet(id=question.message.id, kind="answer", from_=B, to=A, carry=encode(record))
    (message,) = core.handle(Received(EVE.peer_id, signed(answer, BOB, NETWORK)), 0.1)
    assert isinstance(message, SendFrame)
    assert not message.urgent


def test_a_large_message_is_waited_for_longer():
    config = MeshConfig(routing=RoutingConfig(patience=2.0))
    for size in (1, int(config.broadcast.slowest_link)):
        net = RouteNet(8, ring(8), config=config)
        net.send(0, 3, "first")
        net.run(3)
        net.meddle = lambda _sender, _receiver, _message: None
        call = net.send(0, 3, b"x" * size)
        patience = 2 + size / config.broadcast.slowest_link
        net.run(patience - 0.01)
        assert call not in net.nodes[0].replies
        net.run(0.02)
        assert "no answer" in error_of(net, 0, call)


def test_a_receiver_whose_record_does_not_come_is_given_up():
    net = RouteNet(8, ring(8), config=MeshConfig(routing=RoutingConfig(patience=2.0)))
    net.meddle = lambda _sender, _receiver, _message: None
    call = net.send(0, 3)
    net.run(1.99)
    assert call not in net.nodes[0].replies
    net.run(0.02)
    assert "no answer" in error_of(net, 0, call)
    assert net.nodes[0].count("direct_sender.unreachable") == 1


# --- links come and go ------------------------------------------------------------------------------------------------


def test_a_message_whose_link_ends_goes_on_over_a_route_and_is_delivered_once():
    for lost in ("direct", "direct_ack"):
        net = RouteNet(8, ring(8))
        net.meddle = lambda _a, _b, message, lost=lost: None if message.__struct_config__.tag == lost else message
        call = net.send(0, 1, "hello")
        net.run(0.3)
        assert call not in net.nodes[0].replies
        net.cut(0, 1)
        net.run(5)
        assert net.nodes[0].replies[call].error is None
        assert [event.payload for event in net.nodes[1].directs] == ["hello"]
        assert net.nodes[0].count("direct_sender.continued") == 1


def test_a_message_under_way_takes_a_new_link_to_its_receiver():
    net = RouteNet(8, ring(8))
    net.send(0, 4, "first")
    net.run(5)
    net.meddle = lambda _a, _b, _message: None
    call = net.send(0, 4, "second")
    net.meddle = lambda _a, _b, message: message
    net.link(0, 4)
    net.run(0.2)
    assert net.nodes[0].replies[call].error is None


@pytest.mark.parametrize(("verified", "continued"), [(True, 1), (False, 0)])
def test_a_message_goes_on_over_a_route_if_its_receiver_is_a_member(verified, continued):
    net = RouteNet(4, ring(4))
    net.feed(net.nodes[0], LinkUp(RemotePeer(net.nodes[1].id, verified, 1)))
    net.meddle = lambda _sender, _receiver, message: None if isinstance(message, Direct) else message
    call = net.send(0, 1)
    net.run(0.1)
    net.cut(0, 1, "gone away")
    net.run(3)
    assert net.nodes[0].count("direct_sender.continued") == len(net.nodes[1].directs) == continued
    if not continued:
        assert "closed before it acknowledged: gone away" in error_of(net, 0, call)


def test_a_message_that_goes_on_over_a_route_is_not_repeated_over_the_link():
    net = RouteNet(8, ring(8))
    net.meddle = lambda _sender, _receiver, _message: None
    call = net.send(0, 1)
    net.run(0.1)
    net.cut(0, 1)
    net.meddle = lambda _sender, _receiver, message: message
    net.run(60)
    assert net.nodes[0].replies[call].error is None
    assert [isinstance(message, Direct) for _, _, message in net.sent].count(True) == 1


# --- relays -----------------------------------------------------------------------------------------------------------


def test_relays_can_not_read_a_message():
    net = RouteNet(8, ring(8))
    net.send(0, 3, "attack at dawn")
    net.run(5)
    (event,) = net.nodes[3].directs
    assert event.payload == "attack at dawn"
    boxes = packets(net, "tell")
    assert [(a, b) for a, b, _ in boxes] == [(0, 1), (1, 2), (2, 3)]
    for sender, _, packet in boxes:
        assert b"dawn" not in encode(packet)
        with pytest.raises(RemoteProtocolError):
            content(packet.carry)
        for relay in (net.nodes[1], net.nodes[2]):
            with pytest.raises(RemoteProtocolError, match="does not open"):
                unseal(
                    packet.carry,
                    relay.identity.box_key(),
                    origin(net.nodes[sender].id, packet),
                    packet.to,
                    packet.id,
                    NETWORK,
                )


def forge(packet: Packet, relay: Node) -> list[Packet]:
    """What a relay could make of a sealed packet."""
    flipped = bytes([packet.carry[-1] ^ 1])
    as_own = structs.replace(packet, path=())
    return [
        structs.replace(packet, carry=packet.carry[:-1] + flipped),
        structs.replace(packet, id="f" * 32),
        structs.replace(packet, sealed=False),
        signed(structs.replace(packet, carry=packet.carry[:-1] + flipped), relay.identity, NETWORK),
        signed(as_own, relay.identity, NETWORK),
        signed(structs.replace(as_own, id="f" * 32), relay.identity, NETWORK),
    ]


@pytest.mark.parametrize("which", range(6))
def test_relays_can_not_alter_a_message_or_pass_it_off_as_their_own(which):
    net = RouteNet(8, ring(8))
    net.send(0, 3, "first")  # so that nothing but the message is under way
    net.run(5)

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message:
        is_message = isinstance(message, Packet) and message.sealed and sender.number == 2
        return forge(message, sender)[which] if is_message else message  # type: ignore[arg-type]

    net.meddle = meddle
    call = net.send(0, 3, "second")
    net.run(20)
    assert [(event.origin, event.payload) for event in net.nodes[3].directs] == [
        (net.nodes[0].id, "first"),
        (net.nodes[0].id, "second"),  # the other way round the ring
    ]
    assert net.nodes[0].replies[call].error is None


def test_relays_can_not_have_a_message_delivered_again():
    net = RouteNet(8, ring(8))
    net.send(0, 3, "once")
    net.run(5)
    message = next(packet for a, _, packet in packets(net, "tell") if a == 2)
    for wait in (0, 100, 1000):
        net.run(wait)
        net.inject(net.nodes[2], net.nodes[3], message)
        net.run(1)
    assert [event.payload for event in net.nodes[3].directs] == ["once"]


def test_relays_can_not_put_their_own_key_into_a_contact_record():
    net = RouteNet(8, ring(8))

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message:
        if sender.number == 1 and isinstance(message, Packet) and message.kind == "answer":
            own = ContactReply(contact=contact_of(sender.identity, 1000, 0, NETWORK))
            return signed(structs.replace(message, carry=encode(own)), sender.identity, NETWORK)
        return message

    net.meddle = meddle
    call = net.send(0, 3, "secret")
    net.run(20)
    assert net.nodes[0].count("requests.stray_responses") > 0
    assert net.nodes[0].replies[call].error is None
    assert [event.payload for event in net.nodes[3].directs] == ["secret"]


def test_a_black_hole_on_the_way_is_bypassed():
    net = RouteNet(30, small_world(30, 4))

    def meddle(sender: Node, _receiver: Node, message: Message) -> Message | None:
        relays = isinstance(message, Packet) and origin(sender.id, message) != sender.id
        return None if sender.number == 11 and relays else message

    net.meddle = meddle
    calls = [(a, net.send(a, b)) for a in range(30) for b in [(a * 7 + 3) % 30] if 11 not in (a, b) and a != b]
    net.run(40)
    assert all(net.nodes[a].replies[call].error is None for a, call in calls)


# --- who can not be written to ----------------------------------------------------------------------------------------


def test_a_peer_that_is_not_there_is_unreachable_within_seconds():
    net = RouteNet(20, small_world(20, 4))
    net.run(30)  # while links are new, it may be that nobody knows a way yet
    call = net.call(net.nodes[0], lambda call: SendDirect(call, identity(999).peer_id, "hello?"))
    net.run(20)
    reason = error_of(net, 0, call)
    assert "no route" in reason
    assert identity(999).peer_id[:8] in reason


def test_a_peer_that_was_heard_of_lately_is_not_given_up_while_nobody_knows_a_way_to_it():
    """As while slots rotate: its links are gone, and new ones come."""
    for silence, patient in ((0, True), (100, False)):
        net = RouteNet(12, ring(12))
        net.send(6, 0)
        net.run(20)
        for other in (5, 7):
            net.cut(6, other)
        net.link(5, 7)
        net.run(silence)
        call = net.send(0, 6)
        net.run(15)
        assert (call in net.nodes[0].replies) is not patient
        net.link(6, 9)
        net.run(14)
        assert (net.nodes[0].replies[call].error is None) is patient
        assert len(net.nodes[6].directs) == patient


def test_a_payload_that_is_too_large_for_its_receiver_says_so():
    net = RouteNet(8, ring(8), configs={3: MeshConfig(max_payload=1000)})
    call = net.send(0, 3, b"x" * 1001)
    fits = net.send(0, 3, b"x" * 1000)
    net.run(5)
    assert "too large" in error_of(net, 0, call)
    assert net.nodes[0].replies[fits].error is None


def test_a_message_that_ignores_the_limit_is_refused():
    net = RouteNet(8, ring(8), configs={3: MeshConfig(max_payload=1000)})
    alice, bob = net.nodes[0], net.nodes[3]
    boast = ContactRequest(contact=contact_of(bob.identity, 2000, 0, NETWORK))
    net.route(3, alice.id, boast, answered=True)
    net.run(5)
    call = net.send(0, 3, b"x" * 1500)
    net.run(5)
    assert "too large" in error_of(net, 0, call)
    assert bob.directs == []


def test_a_call_that_is_forgotten_is_not_repeated():
    net = RouteNet(8, ring(8), config=MeshConfig(routing=RoutingConfig(window=2)))
    net.meddle = lambda _sender, _receiver, _message: None
    calls = [net.send(0, 3, "a"), net.send(0, 3, "b"), net.send(0, 3, "c")]
    net.run(0.5)
    for call in calls:
        net.feed(net.nodes[0], CancelCall(call))
    sent = len(net.sent)
    net.run(60)
    assert len(net.sent) == sent
    assert net.nodes[0].replies == {}
    for path in ("direct_sender.in_flight", "direct_sender.waiting", "requests.in_flight", "timers"):
        assert net.nodes[0].count(path) == 0


def test_who_leaves_answers_all_calls():
    net = RouteNet(8, ring(8))
    calls = [net.send(0, 3), net.send(0, 4), net.send(0, 1)]
    net.feed(net.nodes[0], Leave())
    assert all(isinstance(net.nodes[0].replies[call].error, MeshClosed) for call in calls)
    net.run(60)
    assert net.nodes[3].directs == net.nodes[4].directs == []


def test_a_window_holds_for_each_receiver_and_a_bound_for_all():
    net = RouteNet(12, ring(12), config=MeshConfig(routing=RoutingConfig(window=3, pending=5)))
    calls = [net.send(0, 4 + number % 3, str(number)) for number in range(30)]
    for _ in range(200):
        assert net.nodes[0].count("direct_sender.in_flight") <= 5
        net.run(0.1)
    assert all(net.nodes[0].replies[call].error is None for call in calls)
    assert [len(net.nodes[number].directs) for number in (4, 5, 6)] == [10, 10, 10]


def test_a_neighbour_that_does_not_relay_gets_direct_messages_over_its_link():
    net = RouteNet(4, ring(4))
    original = net.nodes[1]
    net.feed(net.nodes[0], LinkUp(RemotePeer(original.id, False, 0)))
    call = net.send(0, 1, "plain")
    assert net.nodes[0].replies[call].error is None
    assert net.sent[-1] == (0, 1, Direct(payload="plain"))
    call = net.send(2, 1, "by the others")  # who have a link to it as one of ours
    net.run(5)
    assert net.nodes[2].replies[call].error is None


# --- boxes and records ------------------------------------------------------------------------------------------------

A, B, E = ALICE.peer_id, BOB.peer_id, EVE.peer_id
BOX = BOB.box_key().public_key().public_bytes_raw()


@given(plain=st.binary(max_size=100), packet_id=st.text(min_size=1, max_size=10))
def test_a_box_opens_for_its_receiver_only_and_in_its_packet_only(plain, packet_id):
    sealed = seal(plain, BOX, A, B, packet_id, NETWORK)
    assert len(sealed) == len(plain) + SEAL_SIZE
    assert unseal(sealed, BOB.box_key(), A, B, packet_id, NETWORK) == plain
    for key, sender, receiver, name in (
        (EVE.box_key(), A, B, packet_id),
        (BOB.box_key(), E, B, packet_id),
        (BOB.box_key(), A, E, packet_id),
        (BOB.box_key(), A, B, packet_id + "x"),
    ):
        with pytest.raises(RemoteProtocolError):
            unseal(sealed, key, sender, receiver, name, NETWORK)


@given(sealed=st.binary(max_size=100))
def test_what_is_no_box_does_not_open(sealed):
    for wrong in (sealed, bytes(32) + sealed, b"\1" + bytes(31) + sealed):
        with pytest.raises(RemoteProtocolError):
            unseal(wrong, BOB.box_key(), A, B, "id", NETWORK)


def test_for_a_key_of_low_order_nothing_is_sealed():
    with pytest.raises(RemoteProtocolError):
        seal(b"x", bytes(32), A, B, "id", NETWORK)


def test_two_boxes_of_the_same_message_have_nothing_in_common():
    assert seal(b"x" * 50, BOX, A, B, "id", NETWORK)[:40] != seal(b"x" * 50, BOX, A, B, "id", NETWORK)[:40]


def test_a_contact_record_is_its_owners_or_none():
    contact = contact_of(BOB, 1000, 5, NETWORK)
    assert is_contact_of(contact, B, NETWORK)
    assert not is_contact_of(contact, A, NETWORK)
    eve = contact_of(EVE, 1000, 5, NETWORK)
    for change in ({"box": eve.box}, {"max_payload": 1}, {"serial": 6}, {"version": 2}, {"key": eve.key}):
        assert not is_contact_of(structs.replace(contact, **change), B, NETWORK)


def test_an_identity_has_one_box_key_for_ever_and_no_other_has_it():
    assert BOB.box_key().private_bytes_raw() == identity(1).box_key().private_bytes_raw()
    assert BOB.box_key().private_bytes_raw() not in {EVE.box_key().private_bytes_raw(), (1).to_bytes(32, "big")}


def test_a_newer_record_takes_the_place_of_an_older_one_and_their_number_is_bounded():
    contacts = Contacts(ALICE, 1000, limit=3, network=NETWORK)
    old, new = contact_of(BOB, 1000, 5, NETWORK), contact_of(BOB, 1000, 6, NETWORK)
    for record in (old, new, old):
        assert contacts.learn(B, record)
    assert contacts.get(B) == new
    for number in range(10):
        contacts.learn(identity(number).peer_id, contact_of(identity(number), 1, 1, NETWORK))
    assert len(contacts) == 3


def test_of_contact_records_those_used_last_are_kept():
    contacts = Contacts(ALICE, 1000, limit=2, network=NETWORK)
    for one in (BOB, EVE):
        contacts.learn(one.peer_id, contact_of(one, 1, 1, NETWORK))
    assert contacts.get(B) is not None
    contacts.learn(A, contact_of(ALICE, 1, 1, NETWORK))
    assert contacts.get(B) is not None
    assert contacts.get(E) is None


def test_a_stranger_that_asks_for_our_record_with_another_ones_gets_it_and_is_not_believed():
    net = RouteNet(8, ring(8))
    net.route(2, net.nodes[0].id, ContactRequest(contact=contact_of(identity(77), 1, 1, NETWORK)), answered=True)
    net.run(3)
    assert net.nodes[0].count("contacts") == 0
    assert net.nodes[2].outcomes


# --- where most peers swallow what they should relay ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_message_comes_to_its_receiver_where_one_way_is_left_among_many_that_swallow_it(seed):
    way, holes = [0, 20, 12, 26, 10], [number for number in range(1, 30) if number not in {20, 12, 26, 10}]
    rng = random.Random(seed)
    edges = {(min(pair), max(pair)) for pair in pairwise(way)}
    edges |= {(min(a, b), max(a, b)) for a in way for b in rng.sample(holes, 5)}
    edges |= {(min(a, b), max(a, b)) for a, b in pairwise(holes)}
    net = RouteNet(30, sorted(edges), seed=seed)

    def swallow(sender: Node, _receiver: Node, message: Message) -> Message | None:
        relays = isinstance(message, Packet) and sender.number in holes and origin(sender.id, message) != sender.id
        return None if relays else message

    net.meddle = swallow
    for number, other in ((0, 10), (10, 0)):
        call = net.send(number, other, "through")
        net.run(20)
        assert net.nodes[number].replies[call].error is None
        assert [event.payload for event in net.nodes[other].directs] == ["through"]


def test_no_message_goes_everywhere_where_nobody_swallows_any():
    net = RouteNet(40, small_world(40, 4))
    net.run(30)
    calls = [net.send(number, 30, "hello") for number in range(10)]
    lost = net.call(net.nodes[0], lambda call: SendDirect(call, identity(999).peer_id, "hello?"))
    net.run(60)
    assert all(net.nodes[number].replies[call].error is None for number, call in enumerate(calls))
    assert "no route" in error_of(net, 0, lost)
    assert net.total("relay.spread") == 0


# --- what was captured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flood", ["of one sender", "of many senders", "over a link"])
def test_no_flood_makes_a_message_that_was_captured_come_again(flood):
    net = RouteNet(6, ring(6), config=MeshConfig(routing=RoutingConfig(seen_ids=64)))
    victim, evil = net.nodes[0], net.nodes[1]
    net.send(3, 0, "pay me")
    net.run(3)
    captured = next(packet for a, b, packet in packets(net, "tell") if b == 0 and packet.key is not None)
    box = victim.identity.box_key().public_key().public_bytes_raw()
    for number in range(200):
        who, name = evil.identity if flood == "of one sender" else identity(5000 + number), f"{number:032x}"
        direct = Direct(id=name, payload="x", encoding="text", timestamp=int((EPOCH + net.now) * 1000))
        sealed = seal(encode(direct), box, who.peer_id, victim.id, name, NETWORK)
        packet = Packet(id=name, kind="tell", to=victim.id, sealed=True, carry=sealed, timestamp=direct.timestamp)
        net.inject(evil, victim, direct if flood == "over a link" else signed(packet, who, NETWORK))
        net.run(0.1)
    for neighbour in (evil, net.nodes[5]):
        net.inject(neighbour, victim, captured)
        net.run(1)
    assert [event.payload for event in victim.directs].count("pay me") == 1
    call = net.send(4, 0, "hello")  # who wrote nothing yet, and comes the other way
    net.run(10)
    assert net.nodes[4].replies[call].error is None
    assert victim.directs[-1].payload == "hello"


def test_a_sender_is_ahead_of_what_was_lost_by_no_more_than_its_receiver_remembers():
    net = RouteNet(2, ring(2), config=MeshConfig(direct_inbox=10_000))
    lost = []

    def meddle(_sender, _receiver, message):
        if isinstance(message, Direct) and message.payload in {0, "0"}:
            lost.append(message)
            return None
        return message

    net.meddle = meddle
    calls = [net.send(0, 1, number) for number in range(AHEAD + 200)]
    net.run(20)
    assert len(lost) > 3
    assert sum(1 for call in calls if call in net.nodes[0].replies) == AHEAD - 1
    net.meddle = lambda _sender, _receiver, message: message
    net.run(30)
    assert all(net.nodes[0].replies[call].error is None for call in calls)
    assert sorted(int(str(event.payload)) for event in net.nodes[1].directs) == list(range(AHEAD + 200))
