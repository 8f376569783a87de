"""Floods: of one member, of many origins that are thrown away, of what was delivered before. They harm nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.events import OriginThrottled
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.origins import WINDOW, Origins
from p2pmesh.protocols.broadcast.validation import Refusal
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.inputs import Publish
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.messages import Gossip, GossipAck, GossipData, GossipHave, GossipWant
from tests.harness.broadcast import ALICE, BOB, CAROL, Bare, broadcast_config, gossip, id_of
from tests.harness.examples import examples

MIB = 1024 * 1024
SERIES = int(EPOCH * 1000)


def numbered(number: int, origin: Identity = CAROL, **fields: Any) -> Gossip:
    return gossip(origin, message_id=f"n{number}", series=SERIES, sequence=number, **fields)


def data(origin: int, number: int = 1, topic: str = "t", series: int = 1) -> GossipData:
    peer = PeerId(f"{origin:040x}")
    return GossipData(id="x", topic=topic, origin_peer_id=peer, timestamp=0, hops=0, series=series, sequence=number)


# --- what was there is not taken again ----------------------------------------------------------------------------


@pytest.mark.parametrize("topics", [1, 3])
def test_a_flood_of_ids_has_nothing_delivered_again(topics):
    bare = Bare(broadcast_config(seen_ids=50))
    bare.up(ALICE, BOB)
    old = numbered(1, ALICE)
    bare.hear(ALICE, old)
    for number in range(1, 500):
        bare.hear(BOB, numbered(number, topic=f"{number % topics}"))
    bare.wait(61)
    bare.hear(BOB, old)
    assert bare.delivered() == []
    assert bare.count("refused.seen") == 1
    assert bare.acks() == [("n1", True)]


def test_what_is_still_kept_is_known_though_its_id_is_forgotten():
    bare = Bare(broadcast_config(seen_ids=50))
    bare.up(ALICE, BOB, CAROL)
    bare.hear(ALICE, numbered(1, ALICE))
    kept = id_of(numbered(1, ALICE))
    for number in range(1, 60):
        bare.hear(BOB, numbered(number))
    bare.hear(CAROL, numbered(1, ALICE))
    assert bare.count("received.duplicates") == 1
    assert kept in {message.data.id for message in bare.core._store}


@examples(100)
@given(st.lists(st.one_of(st.integers(1, 40), st.integers(1, 3 * WINDOW), st.integers(2**40, 2**40 + 9)), max_size=60))
def test_no_number_is_taken_twice_and_none_refused_that_lies_in_the_window(numbers):
    origins = Origins(broadcast_config().broadcast)
    seen = set[int]()
    for number in numbers:
        refusal = origins.refusal(PeerId("n"), data(1, number), 0.0)[0]
        if number in seen:
            assert refusal is Refusal.SEEN
        elif number > max(seen, default=0) - WINDOW:
            assert refusal is None
        if refusal is None:
            origins.add(PeerId("n"), data(1, number), 1, 100.0, 0.0)
            seen.add(number)


def test_numbers_are_forgotten_once_no_copy_could_be_accepted_any_more():
    origins = Origins(broadcast_config().broadcast)
    origins.add(PeerId("n"), data(1), 1, 100.0, 0.0)
    origins.add(PeerId("n"), data(1, 2), 1, 200.0, 50.0)
    assert origins.refusal(PeerId("n"), data(2), 150.0)[0] is None
    assert origins.refusal(PeerId("n"), data(1), 150.0)[0] is Refusal.SEEN
    assert origins.refusal(PeerId("n"), data(2), 201.0)[0] is None
    assert len(origins) == 0
    assert origins.refusal(PeerId("n"), data(1), 201.0)[0] is None


# --- quotas -----------------------------------------------------------------------------------------------------------


def test_origins_that_are_thrown_away_take_half_of_the_room_and_a_part_of_the_rest():
    origins = Origins(broadcast_config(seen_ids=320).broadcast)
    liar, honest = PeerId("liar"), PeerId("honest")

    def taken(neighbour: PeerId, origin: int, topic: str = "t") -> bool:
        if origins.refusal(neighbour, data(origin, topic=topic), 0.0)[0] is not None:
            return False
        origins.add(neighbour, data(origin, topic=topic), 1, 100.0, 0.0)
        return True

    assert sum(taken(liar, number) for number in range(1000)) == 160
    assert sum(taken(honest, number) for number in range(1000, 2000)) == 20
    assert sum(taken(PeerId(f"{number}"), 7, f"{number}") for number in range(100)) == 19, "no origin has more either"
    assert taken(honest, 1, "t") is False
    assert origins.refusal(honest, data(1005, 2), 0.0)[0] is None, "who is known may go on"
    assert sum(taken(PeerId(f"{number}"), 3000 + number) for number in range(1000)) == 320 - 160 - 20 - 19
    assert len(origins) == 320
    assert taken(liar, 9999) is False


@pytest.mark.parametrize(("size", "sent"), [(1, 4200), (MIB, 80)])
def test_one_members_flood_is_refused_above_its_rate_and_leaves_what_others_sent(size, sent):
    bare = Bare()
    bare.up(ALICE, BOB)
    bare.hear(ALICE, numbered(1, ALICE))
    events, refused = [], 0
    for number in range(1, sent):
        bare.hear(BOB, numbered(number, payload="x" * size))
        events += bare.events
        refused += sum(len(ack.refused) for _, ack in bare.sent(GossipAck))
    throttled = [event for event in events if isinstance(event, OriginThrottled)]
    assert [(event.origin, event.limit) for event in throttled] == [(CAROL.peer_id, 64.0)]
    assert bare.count("refused.throttled") >= 10
    assert refused == 0, "the neighbour is not its origin"
    assert bare.core._store.get(id_of(numbered(1, ALICE))) is not None
    bare.wait(2)
    bare.hear(BOB, numbered(sent, payload="x"))
    assert len(bare.delivered()) == 1, "what comes later is taken again"
    bare.hear(BOB, numbered(sent - 1, payload="x" * size))
    assert len(bare.delivered()) == 1, "and so is what was refused, if it comes again"


def test_an_origin_next_to_us_is_told_that_it_sends_too_much():
    bare = Bare(broadcast_config(origin_burst=2))
    bare.up(CAROL)
    for number in range(1, 6):
        bare.hear(CAROL, numbered(number))
    ((_, ack),) = [one for one in bare.sent(GossipAck) if one[1].refused]
    assert ack.reason == "more than 64 broadcasts a second"


def test_what_was_pulled_and_is_too_much_is_pulled_again_later():
    bare = Bare(broadcast_config(origin_burst=1, origin_rate=1.0))
    bare.up(ALICE)
    bare.hear(ALICE, numbered(1))
    bare.hear(ALICE, numbered(2))
    late = numbered(3)
    bare.hear(ALICE, GossipHave(ids=(late.data.id,)))
    assert [want.ids for _, want in bare.sent(GossipWant)] == [(late.data.id,)]
    bare.hear(ALICE, late)
    assert bare.delivered() == []
    bare.wait(20)
    bare.hear(ALICE, GossipHave(ids=(late.data.id,)))
    assert [want.ids for _, want in bare.sent(GossipWant)] == [(late.data.id,)]
    bare.hear(ALICE, late)
    assert len(bare.delivered()) == 1


# --- our own ----------------------------------------------------------------------------------------------------------


def test_our_own_broadcasts_wait_so_that_nobody_refuses_them():
    config = broadcast_config(origin_rate=10.0, origin_burst=20, publish_room=1000)
    one, other = Bare(config), Bare(config, identity=ALICE)
    one.up(ALICE)
    other.up(one.core._publisher._identity)
    gone = 0
    for call in range(40):
        one(Publish(call, "chat", "x"))
        gone += len(one.replies)
        _carry(one, other)
    assert gone == 15
    for _ in range(40):
        one.wait(0.1)
        other.wait(0.1)
        gone += len(one.replies)
        _carry(one, other)
    assert gone == 40
    assert other.count("received.delivered") == 40
    assert other.count("refused.throttled") == 0


def _carry(one: Bare, other: Bare) -> None:
    for effect in one.got(SendFrame):
        if isinstance(effect.message, Gossip) and effect.message.data.id not in other.core._seen:
            other.hear(one.core._publisher._identity, effect.message)
            ack = GossipAck(new=(effect.message.data.id,))
            one.core._on_ack(one.core._links[ALICE.peer_id], ack, one.now)
