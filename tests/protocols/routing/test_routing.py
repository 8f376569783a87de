"""Direct messages between bare cores: to the neighbour, once, with an answer in every case."""

from __future__ import annotations

import itertools
import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import MeshConfig
from p2pmesh.errors import InvalidPayload, MeshClosed, PayloadTooLarge, PeerBusy, PeerRefused, PeerUnreachable
from p2pmesh.events import DirectReceived, Lagged
from p2pmesh.protocols.core import DropLink, Emit, InspectLink, SendFrame
from p2pmesh.protocols.inputs import (
    CancelCall,
    InboxRead,
    Leave,
    LinkDown,
    LinkLoad,
    LinkUp,
    Received,
    SendDirect,
    Subsystem,
    Unsent,
)
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.messages import Direct, DirectAck, Message
from p2pmesh.wire.overlay import Packet
from tests.harness.core import IDENTITIES, Net
from tests.harness.examples import examples
from tests.harness.one_core import OneCore
from tests.harness.routing import counted
from tests.harness.virtual_time import remote, virtual_wall

ME, ALICE, BOB = IDENTITIES[:3]
A, B = ALICE.peer_id, BOB.peer_id


class Bare(OneCore[RoutingCore]):
    """One routing core, and its effects sorted by kind."""

    def __init__(
        self,
        *,
        max_payload: int = 1024 * 1024,
        window_bytes: int = 2048 * 1024,
        direct_inbox: int = 256,
        direct_inbox_bytes: int = 2**24,
        **fields: object,
    ) -> None:
        config = MeshConfig(max_payload=max_payload, direct_inbox=direct_inbox, direct_inbox_bytes=direct_inbox_bytes)
        config = attrs.evolve(
            config,
            routing=attrs.evolve(config.routing, **fields),  # type: ignore[arg-type]
            broadcast=attrs.evolve(config.broadcast, window_bytes=window_bytes),
        )
        super().__init__(RoutingCore(ME, config, random.Random(1), virtual_wall))

    load = (0, 0, 0)
    """Of each link, as `LinkLoad` tells."""

    def feed(self, event):
        super().feed(event)
        return self._inspected()

    def wait_until(self, end):
        gathered = []
        while (due := self.core.next_deadline()) <= end:
            super().wait_until(due)
            gathered += self._inspected().effects
        super().wait_until(end)
        self.effects = gathered
        return self

    def _inspected(self):
        """The links say how loaded they are."""
        effects = self.effects
        while inspected := [effect for effect in effects if isinstance(effect, InspectLink)]:
            effects = [effect for effect in effects if not isinstance(effect, InspectLink)]
            for effect in inspected:
                effects += self.core.handle(LinkLoad(effect.peer, *self.load), self.now)
        self.effects = effects
        return self

    def up(self, *identities, version: int = 1) -> None:
        for identity in identities:
            self(LinkUp(remote(identity, version)))

    def hear(self, peer, message: Message) -> list[Any]:
        return self(Received(peer, message))

    def sent(self) -> list[Any]:
        return [frame.message for frame in self.got(SendFrame)]

    def count(self, name: str) -> int:
        return counted(self.core, name)

    def delivered(self) -> list[DirectReceived]:
        return [event for event in self.events if isinstance(event, DirectReceived)]


@examples(40)
@given(loss=st.floats(0, 0.7), loss_ends=st.floats(0, 3), seed=st.integers(0, 2**32))
def test_every_message_arrives_exactly_once_when_loss_ends(loss, loss_ends, seed):
    rng = random.Random(seed)
    net = Net(3, [(0, 1), (1, 2)], seed=seed)
    net.lose = lambda *_: net.now < loss_ends and rng.random() < loss
    calls = [net.send(0, net.nodes[1].id, number) for number in range(10)]
    calls += [net.send(2, net.nodes[1].id, number) for number in range(10, 20)]
    net.run_until(60)
    assert sorted(int(str(m.payload)) for m in net.nodes[1].directs) == list(range(20))
    assert all(net.nodes[0 if call <= 10 else 2].replies[call].error is None for call in calls)


@examples(40)
@given(loss=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_under_lasting_loss_a_message_arrives_at_most_once_and_every_call_is_answered(loss, seed):
    rng = random.Random(seed)
    net = Net(2, [(0, 1)], seed=seed)
    net.lose = lambda *_: rng.random() < loss
    calls = [net.send(0, net.nodes[1].id, number) for number in range(10)]
    net.at(3, lambda: net.cut(0, 1))
    net.at(4, lambda: net.link(0, 1))
    calls += [net.send(0, net.nodes[1].id, number) for number in range(10, 20)]
    net.run_until(120)
    payloads = [m.payload for m in net.nodes[1].directs]
    assert len(payloads) == len(set(payloads))
    arrived = {call for call in calls if net.error(0, call) is None}
    assert len(arrived) <= len(payloads)
    assert counted(net.nodes[0].cores[Subsystem.ROUTING], "direct_sender.in_flight") == 0


def test_a_message_is_answered_when_its_receiver_has_it():
    net = Net(2, [(0, 1)])
    call = net.send(0, net.nodes[1].id, {"a": b"x".hex()})
    assert call not in net.nodes[0].replies
    net.run_until(1)
    (message,) = net.nodes[1].directs
    assert (message.origin, message.payload, message.verified) == (net.nodes[0].id, {"a": "78"}, True)
    assert message.timestamp == EPOCH
    assert net.error(0, call) is None


def test_who_can_not_be_reached_is_an_error_that_says_why():
    bare = Bare()
    bare(SendDirect(4, ME.peer_id, "x"))
    assert "itself" in str(bare.replies[4].error)
    bare(SendDirect(1, A, "x"))
    bare.up(BOB)
    bare(LinkDown(B, "it left"))
    bare(SendDirect(5, B, "x"))
    bare.wait(29.9)
    assert not bare.replies, "a first link may come"
    bare.wait(0.2)
    assert isinstance(bare.replies[5].error, PeerUnreachable)
    assert "no link" in str(bare.replies[5].error)
    assert "no answer to 1 attempts" in str(bare.replies[1].error)
    assert bare.count("timers") == 0


def test_what_waits_for_a_first_link_goes_out_over_it():
    bare = Bare()
    bare(SendDirect(1, A, "x"))
    bare(SendDirect(2, B, "y"))
    assert bare.sent() == []
    bare.wait(20)
    bare.up(BOB)
    assert {packet.to for packet in bare.sent()} == {A, B}
    bare(LinkDown(B, "flap"))
    assert not bare.replies
    bare.up(ALICE)
    assert {packet.to for packet in bare.sent()} == {A, B}


@pytest.mark.parametrize(("payload", "error"), [(object(), InvalidPayload), (b"x" * 101, PayloadTooLarge)])
def test_what_can_not_be_sent_is_refused_before_anything_is_sent(payload, error):
    bare = Bare(max_payload=100)
    bare.up(ALICE)
    (reply,) = bare(SendDirect(1, A, payload))
    assert isinstance(reply.error, error)


def test_a_link_that_ends_and_no_other_way_fails_what_is_open_each_call_with_an_error_of_its_own():
    bare = Bare(window=1)
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    bare(SendDirect(2, A, "y"))
    bare(LinkDown(A, "connection lost"))
    replies = bare.wait(61).replies
    assert list(replies) == [1, 2]
    assert bare.count("direct_sender.unreachable") == 2
    assert all(isinstance(reply.error, PeerUnreachable) for reply in replies.values())
    assert replies[1].error is not replies[2].error
    assert (bare.count("direct_sender.in_flight"), bare.count("direct_sender.waiting")) == (0, 0)


def test_retries_back_off_and_end_in_an_error():
    bare = Bare(patience=5.0)
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    effects = bare.wait_until(3).effects
    assert len([e for e in effects if isinstance(e, SendFrame)]) == 2
    bare.wait_until(7.6)
    assert "attempts in" in str(bare.replies[1].error)
    assert (bare.count("direct_sender.in_flight"), bare.count("timers")) == (0, 0)
    assert bare.count("direct_sender.retried") in (2, 3)


def test_a_repeated_message_is_acknowledged_again_and_not_delivered_again():
    bare = Bare()
    bare.up(ALICE, BOB)
    message = Direct(id="m", payload="x", encoding="text", timestamp=1000)
    bare.hear(A, message)
    assert (bare.sent(), len(bare.delivered())) == ([DirectAck(id="m")], 1)
    bare.hear(A, message)
    assert (bare.sent(), bare.delivered()) == ([DirectAck(id="m")], [])
    bare.hear(B, message)
    assert len(bare.delivered()) == 1, "another sender's id is another id"
    assert (bare.count("receiver.directs"), bare.count("receiver.direct_duplicates")) == (2, 1)


@pytest.mark.parametrize(("later", "times"), [(599, 1), (601, 2)])
def test_a_message_is_known_for_as_long_as_its_sender_could_repeat_it(later, times):
    bare = Bare()
    bare.up(ALICE)
    heard = [bare.hear(A, Direct(id="m", payload="x", encoding="text"))]
    bare.wait(later)
    bare.hear(A, Direct(id="other", payload="x", encoding="text"))  # only then what is old is forgotten
    heard.append(bare.hear(A, Direct(id="m", payload="x", encoding="text")))
    assert len([1 for effects in heard for effect in effects if isinstance(effect, Emit)]) == times


def test_a_message_is_still_known_after_a_new_link_to_its_sender():
    bare = Bare()
    bare.up(ALICE)
    message = Direct(id="m", payload="x", encoding="text")
    bare.hear(A, message)
    bare(LinkDown(A, "flap"))
    bare.up(ALICE)
    bare.hear(A, message)
    assert bare.delivered() == []


@pytest.mark.parametrize(
    "message",
    [Direct(payload="x"), Direct(id="m", payload="{", encoding="json"), Direct(id="m", payload=1, encoding="text")],
)
def test_a_message_that_breaks_the_protocol_closes_its_link(message):
    bare = Bare()
    bare.up(ALICE)
    (drop,) = bare.hear(A, message)
    assert isinstance(drop, DropLink)
    assert drop.blame
    assert bare.count("receiver.direct_blamed") == 1


def test_a_forgotten_call_is_not_sent_again_or_at_all():
    bare = Bare(window=1)
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    bare(SendDirect(2, A, "y"))
    bare(SendDirect(3, A, "z"))
    assert bare(CancelCall(2)) == []
    bare(CancelCall(1))
    assert [message.payload for message in bare.sent()] == ["z"]
    bare(CancelCall(3))
    assert bare.wait_until(100).effects == []


def test_leaving_fails_what_is_open_and_what_comes_later():
    bare = Bare()
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    bare(Leave())
    assert isinstance(bare.replies[1].error, MeshClosed)
    assert (bare.count("direct_sender.unreachable"), bare.count("timers")) == (1, 0)
    bare(SendDirect(2, A, "x"))
    assert isinstance(bare.replies[2].error, MeshClosed)


def test_messages_of_a_link_that_has_ended_and_stray_acks_are_ignored():
    bare = Bare()
    assert bare.hear(A, Direct(id="m", payload="x", encoding="text")) == []
    bare.up(ALICE)
    assert bare.hear(A, DirectAck(id="m")) == []
    bare(SendDirect(1, A, "x"))
    message_id = bare.sent()[0].id
    bare.up(BOB)
    assert bare.hear(B, DirectAck(id=message_id)) == []


def test_what_is_queued_on_a_link_is_waited_for():
    bare = Bare()
    bare.up(ALICE)
    slowest = MeshConfig().broadcast.slowest_link
    bare(SendDirect(1, A, b"x" * int(slowest)))  # a second's worth
    bare(SendDirect(2, A, b"x" * int(slowest)))
    assert bare.wait_until(1.49).got(SendFrame) == []
    bare.wait_until(2.0)
    assert [frame.message.id for frame in bare.got(SendFrame)] != []
    assert bare.count("direct_sender.retried") == 1
    bare.wait_until(3.0)
    assert bare.count("direct_sender.retried") == 2


# --- the original's peers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("payload", "plain"), [({"a": [1]}, {"a": [1]}), ("text", "text"), (b"\0", "AA==")])
def test_an_original_gets_the_bare_payload_and_the_call_is_answered_at_once(payload, plain):
    bare = Bare()
    bare.up(ALICE, version=0)
    bare(SendDirect(1, A, payload))
    assert bare.sent() == [Direct(payload=plain)]
    assert bare.replies[1].error is None
    assert bare.count("direct_sender.sent") == 1


def test_a_message_to_an_original_is_done_once_its_link_has_taken_it():
    bare = Bare(window=2)
    bare.up(ALICE, version=0)
    bare.load = (3, 500, 0)
    sent = []
    for call in (1, 2, 3):
        bare(SendDirect(call, A, call))
        sent += bare.sent()
    assert [direct.payload for direct in sent] == [1, 2], "more wait for the window"
    assert not bare.wait(5).replies
    bare(Unsent(A, sent[1], 100))  # its queue was full
    bare.load = (0, 500, 10)
    bare.wait(0.2)
    assert {call: reply.error for call, reply in bare.replies.items()} == {1: None, 2: None, 3: None}
    assert [direct.payload for direct in bare.sent()] == [2, 3]
    assert bare.count("timers") == 0


@pytest.mark.parametrize("version", [0, 1])
def test_what_is_too_large_for_a_link_is_refused_at_once_by_what_and_the_limit(version):
    bare = Bare()
    bare.up(ALICE, version=version)
    bare.load = (1, 1, 1)
    bare(SendDirect(1, A, "x" * 300_000))
    (direct,) = bare.sent()
    bare(Unsent(A, direct, 300_024, 262_144))
    error = bare.replies[1].error
    assert isinstance(error, PeerRefused)
    assert "300024 bytes" in str(error)
    assert "262144" in str(error)
    assert bare.count("timers") == 0


def test_what_is_too_large_for_its_receiver_is_refused_over_a_link_too():
    bare, other = Bare(), Bare(max_payload=1000)
    bare.up(ALICE)
    other.up(BOB)
    bare(SendDirect(1, A, b"x" * 1001))
    other.hear(B, bare.sent()[0])
    assert not other.delivered()
    (answer,) = other.sent()
    bare.hear(A, answer)
    assert isinstance(bare.replies[1].error, PeerRefused)
    assert "1001 bytes: too large for this peer, which takes 1000" in str(bare.replies[1].error)


def test_nothing_is_repeated_while_anything_waits_in_the_link_and_it_gets_on():
    bare = Bare(patience=5.0)
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    for second in range(60):
        bare.load = (0, 1000, second)
        assert bare.wait(1).effects == []
    bare.load = (0, 1000, 60)
    bare.wait(7)
    assert "has not acknowledged" in str(bare.replies[1].error), "it does not get on any more"


def test_what_went_on_over_a_route_is_not_taken_back_by_what_is_told_of_a_new_link():
    bare = Bare(patience=5.0)
    bare.up(ALICE, BOB)
    bare(SendDirect(1, A, "x"))
    bare.core.expire(bare.core.next_deadline())  # its link is asked how it gets on ...
    bare(LinkDown(A, "and is gone"))
    assert {type(message) for message in bare.sent()} == {Packet}
    bare.up(ALICE)
    bare(LinkLoad(A, 0, 0, 0))
    assert bare.sent() == []
    assert isinstance(bare.wait(60).replies[1].error, PeerUnreachable)
    assert (bare.count("direct_sender.in_flight"), bare.count("timers")) == (0, 0)


def test_a_link_that_gets_on_for_ever_without_an_answer_is_not_waited_for_for_ever():
    bare = Bare()
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    for second in range(299):
        bare.load = (0, 1000, second)
        assert bare.wait(1).effects == []
    assert bare.wait(3).replies[1].error is not None


def test_a_full_inbox_says_so_and_then_that_it_has_room_to_as_many_as_it_has_room_for():
    bare = Bare(direct_inbox=2)
    bare.up(ALICE, BOB)
    for number in range(5):
        bare.hear(A if number % 2 else B, Direct(id=f"m{number}", payload="x", encoding="text"))
        outcome = "taken" if number < 2 else "busy"
        assert bare.sent() == [DirectAck(id=f"m{number}", outcome=outcome)]
        assert len(bare.delivered()) == (number < 2)
    bare.hear(B, Direct(id="m2", payload="x", encoding="text"))  # again, and not twice
    assert bare.count("receiver.inbox.waiting") == 3
    bare(InboxRead(1, 2))
    assert [(frame.peers, frame.message.id) for frame in bare.got(SendFrame)] == [((B,), "m2")]
    assert bare.sent() == [DirectAck(id="m2", outcome="ready")]
    bare.hear(B, Direct(id="m2", payload="x", encoding="text"))
    assert bare.sent() == [DirectAck(id="m2")]
    bare(InboxRead(3, 3))
    assert [message.id for message in bare.sent()] == ["m3", "m4"]
    assert bare.count("receiver.inbox.unread") == 0
    bare(InboxRead(3, 0))
    bare.hear(A, Direct(id="m9", payload="x", encoding="text"))
    assert bare.sent() == [DirectAck(id="m9", outcome="busy")]


def test_bytes_in_the_inbox_are_bounded_but_for_a_single_message_and_so_are_those_who_wait():
    bare = Bare(direct_inbox_bytes=100, waiting=3)
    bare.up(ALICE)
    bare.hear(A, Direct(id="m", blob=bytes(1000)))
    assert len(bare.delivered()) == 1
    for number in range(10):
        bare.hear(A, Direct(id=f"m{number}", blob=b"x"))
        assert bare.sent() == [DirectAck(id=f"m{number}", outcome="busy")]
    assert bare.count("receiver.inbox.waiting") == 3
    bare(InboxRead(1, 256))
    assert bare.count("receiver.inbox.unread_bytes") == 0


def test_who_is_busy_is_tried_again_more_and_more_seldom_and_at_once_when_it_says_so():
    bare = Bare(patience=20.0)
    bare.up(ALICE)
    bare(SendDirect(1, A, "x"))
    (direct,) = bare.sent()
    times = [bare.now]
    while bare.now < 19:
        bare.hear(A, DirectAck(id=direct.id, outcome="busy"))
        while not bare.wait_until(bare.core.next_deadline()).got(SendFrame) and not bare.replies:
            pass
        times.append(bare.now)
    assert isinstance(bare.replies[1].error, PeerBusy)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.5 <= gaps[0] <= 1
    assert len(gaps) <= 9
    bare(SendDirect(2, A, "y"))
    (direct,) = bare.sent()
    bare.hear(A, DirectAck(id=direct.id, outcome="busy"))
    bare.hear(B, DirectAck(id=direct.id, outcome="ready"))
    assert bare.sent() == []
    bare.hear(A, DirectAck(id=direct.id, outcome="ready"))
    assert bare.sent() == [direct]
    bare.hear(A, DirectAck(id=direct.id))
    assert bare.replies[2].error is None
    assert bare.count("timers") == 0


def test_what_finds_no_room_and_comes_from_an_original_is_told_as_lost():
    bare = Bare(direct_inbox=1)
    bare.up(ALICE, version=0)
    bare.hear(A, Direct(payload="one"))
    bare.hear(A, Direct(payload="two"))
    assert bare.events == [Lagged(1)]
    assert bare.count("receiver.direct_dropped") == 1


def test_any_json_from_an_original_is_delivered_unverified():
    bare = Bare()
    bare.up(ALICE, version=0)
    bare.now = 3.0
    for payload in ({"a": 1}, [1], "x", 5, None):
        bare.hear(A, Direct(payload=payload))
        (event,) = bare.delivered()
        assert (event.payload, event.verified, event.timestamp) == (payload, False, EPOCH + 3)
        assert bare.sent() == []


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_window_of_a_link_is_bounded_and_moves_with_the_acks_in_order():
    bare = Bare(window=3)
    bare.up(ALICE)
    ids = []
    for call in range(6):
        bare(SendDirect(call, A, str(call)))
        ids += [message.id for message in bare.sent()]
    assert (bare.count("direct_sender.in_flight"), bare.count("direct_sender.waiting")) == (3, 3)
    assert (bare.count("direct_sender.sent"), bare.count("direct_sender.acked")) == (3, 0)
    for call in range(6):
        bare.hear(A, DirectAck(id=ids[call]))
        assert list(bare.replies) == [call]
        ids += [message.id for message in bare.sent()]
    assert (bare.count("direct_sender.in_flight"), bare.count("direct_sender.waiting")) == (0, 0)
    assert (bare.count("direct_sender.sent"), bare.count("direct_sender.acked")) == (6, 6)


def test_all_links_together_are_bounded_and_none_starves():
    bare = Bare(window=3, pending=4)
    bare.up(ALICE, BOB)
    sent = []
    for call in range(6):
        bare(SendDirect(call, A, call))
        sent += [(A, message.id) for message in bare.sent()]
    for call in range(6, 12):
        bare(SendDirect(call, B, call))
        sent += [(B, message.id) for message in bare.sent()]
    assert (bare.count("direct_sender.in_flight"), bare.count("direct_sender.waiting")) == (4, 8)
    answered = 0
    while sent:
        peer, message_id = sent.pop(0)
        effects = bare.hear(peer, DirectAck(id=message_id))
        answered += len(bare.replies)
        sent += [
            (e.peers[0], e.message.id) for e in effects if isinstance(e, SendFrame) and isinstance(e.message, Direct)
        ]
        assert bare.count("direct_sender.in_flight") <= 4
    assert answered == 12


def test_bytes_in_flight_are_bounded_but_for_a_single_message():
    bare = Bare(window_bytes=2048)
    bare.up(ALICE)
    bare(SendDirect(1, A, b"x" * 3000))
    bare(SendDirect(2, A, b"x"))
    assert (bare.count("direct_sender.in_flight"), bare.count("direct_sender.waiting")) == (1, 1)


def test_seen_ids_are_bounded():
    bare = Bare(seen_ids=7)
    bare.up(ALICE)
    for number in range(20):
        bare.hear(A, Direct(id=str(number), payload="x", encoding="text", timestamp=int(EPOCH * 1000) + number))
    assert bare.count("receiver.directs") == 20
    assert 0 < bare.count("receiver.seen_ids") <= 7
    for number in range(20):
        bare.hear(A, Direct(id=str(number), payload="x", encoding="text", timestamp=int(EPOCH * 1000) + number))
    assert bare.count("receiver.directs") == 20, "what was forgotten is older than what may come"


@pytest.mark.parametrize("message", [Direct(id="m", payload="x", encoding="text"), DirectAck(id="stray")])
def test_a_flood_of_what_brings_nothing_ends_the_link(message):
    bare = Bare()
    bare.up(ALICE)
    dropped = []
    for _ in range(6000):
        bare.now += 0.001
        dropped += [effect for effect in bare.hear(A, message) if isinstance(effect, DropLink)]
    assert dropped
    assert dropped[0].blame
    assert "bring nothing" in dropped[0].reason


def test_who_repeats_what_was_lost_floods_nobody():
    bare = Bare()
    bare.up(ALICE)
    for _ in range(60):  # a window, each second, and its acks twice
        bare.now += 1
        for number in range(64):
            assert not [effect for effect in bare.hear(A, DirectAck(id=str(number))) if isinstance(effect, DropLink)]
            message = Direct(id=str(number), payload="x", encoding="text")
            assert not [effect for effect in bare.hear(A, message) if isinstance(effect, DropLink)]
