"""Neighbours that fall silent: packets find their way round them without waiting for their origin."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import pytest
from msgspec import structs

from p2pmesh.events import DirectReceived
from p2pmesh.protocols.inputs import LinkRecovered, LinkSuspected, Subsystem
from p2pmesh.protocols.notices import CancelRoute, RouteSucceeded
from p2pmesh.protocols.routing.packets import signed
from p2pmesh.protocols.routing.relay import ResendBuffer
from p2pmesh.wire.codec import encode
from p2pmesh.wire.fields import SEARCH
from p2pmesh.wire.overlay import Packet
from tests.harness.routing import RouteNet, ring, rpc
from tests.harness.virtual_time import NETWORK, virtual_wall

LATENCY = 0.05
BUFFERED_PACKETS, BUFFERED_BYTES = 64, 256 * 1024
"""What docs/protocol.md says that a peer keeps for each neighbour."""
CHORDED = [*ring(12), (1, 5), (2, 9)]
"""From 0 to 3 it goes by 1 and 2, and back likewise; round 2 by 5, round 1 by 9."""


def go_dead(net: RouteNet, dead: Collection[int]) -> None:
    """Nothing comes from these peers or to them, and nobody is told."""
    net.meddle = lambda sender, receiver, message: None if {sender.number, receiver.number} & {*dead} else message


def suspect(net: RouteNet, number: int, other: int) -> None:
    net.feed(net.nodes[number], LinkSuspected(net.nodes[other].id))


def recover(net: RouteNet, number: int, other: int) -> None:
    net.feed(net.nodes[number], LinkRecovered(net.nodes[other].id))


def forsake(net: RouteNet, number: int, call: int) -> None:
    """The origin does nothing more for a packet of its own."""
    net.feed(net.nodes[number], CancelRoute(Subsystem.KADEMLIA, call))


def packets(net: RouteNet, *kinds: str) -> list[tuple[int, int, Packet]]:
    return [(a, b, one) for a, b, one in net.sent if isinstance(one, Packet) and one.kind in kinds]


def hops(net: RouteNet, *kinds: str) -> list[tuple[int, int]]:
    return [(a, b) for a, b, _ in packets(net, *kinds)]


def pass_by(net: RouteNet, sender: int, receiver: int, **fields: object) -> None:
    """A packet from 0 to 3 comes over a link, for once without an origin that repeats it."""
    who = net.nodes
    packet = Packet(
        id="p",
        kind="tell",
        from_=who[0].id,
        to=who[3].id,
        timestamp=int(virtual_wall(net.now) * 1000),
        carry=encode(rpc("hello", who[0].id)),
    )
    net.inject(who[sender], who[receiver], signed(structs.replace(packet, **fields), who[0].identity, NETWORK))


def arrived_at_first(net: RouteNet, number: int, call: int) -> bool:
    return isinstance(net.nodes[number].outcomes.get(call), RouteSucceeded) and net.total("requests.retried") == 0


# --- what a silent neighbour was given goes another way ---------------------------------------------------------------


def test_what_a_relay_gave_to_a_silent_neighbour_goes_round_it():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {2})
    call = net.route(0, net.nodes[3].id)
    net.run(0.2)
    assert hops(net, "tell") == [(0, 1), (1, 2)]
    suspect(net, 1, 2)
    net.run(1)
    assert hops(net, "tell")[2:] == [(1, 5), (5, 4), (4, 3)]
    assert arrived_at_first(net, 0, call)
    assert net.nodes[1].count("relay.sent_round") == net.total("relay.sent_round") == 1


def test_what_goes_round_a_silent_neighbour_is_not_brought_to_it_by_others():
    net = RouteNet(12, [*ring(12), (1, 6), (2, 6)], latency=LATENCY)
    go_dead(net, {2})
    net.route(0, net.nodes[3].id)
    net.run(0.2)
    suspect(net, 1, 2)
    net.run(1)
    assert hops(net, "tell")[1:] == [(1, 2), (1, 6), (6, 5), (5, 4), (4, 3)]


def test_a_packet_of_our_own_goes_round_a_silent_neighbour_in_the_same_attempt():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {1})
    call = net.route(0, net.nodes[3].id)
    net.run(0.2)
    suspect(net, 0, 1)
    net.run(1)
    assert hops(net, "tell")[:2] == [(0, 1), (0, 11)]
    assert arrived_at_first(net, 0, call)
    assert {packet.attempt for _, _, packet in packets(net, "tell")} == {0}
    assert net.total("relay.sent_round") == 0, "a request sees to it itself, and once"


def test_a_direct_message_goes_round_a_silent_neighbour_in_the_same_attempt():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    net.send(0, 3, "first")  # so that each has the other's contact
    net.run(5)
    go_dead(net, {1})
    net.send(0, 3, "second")
    before = net.total("requests.retried")
    suspect(net, 0, 1)
    suspect(net, 2, 1)
    net.run(1)
    assert [event.payload for event in net.nodes[3].of(DirectReceived)] == ["first", "second"]
    assert net.total("requests.retried") == before


@pytest.mark.parametrize(("dead", "at"), [(2, 3), (1, 2)], ids=["who answers", "who relays the answer"])
def test_a_response_goes_round_a_silent_neighbour(dead, at):
    net = RouteNet(12, CHORDED, latency=LATENCY)
    call = net.route(0, net.nodes[3].id, answered=True)
    net.at(0.16 + 0.05 * (3 - at) - 0.02, lambda: go_dead(net, {dead}))
    net.run(0.5)
    assert hops(net, "ask", "answer")[-1] == (at, dead)
    suspect(net, at, dead)
    net.run(1)
    assert arrived_at_first(net, 0, call)
    assert net.nodes[at].count("relay.sent_round") == 1
    assert len(net.nodes[3].routed) == 1


def test_what_was_given_back_to_a_silent_neighbour_goes_back_past_it():
    net = RouteNet(10, [(0, 4), (4, 3), (3, 2), (4, 2), (0, 8), (8, 9), (9, 1), (1, 5)], latency=LATENCY)
    net.at(0.14, lambda: go_dead(net, {3}))
    call = net.route(0, net.nodes[5].id)
    net.run(0.4)
    assert hops(net, "tell") == [(0, 4), (4, 3), (3, 2), (2, 3)], "2 is a dead end"
    suspect(net, 2, 3)
    net.run(1)
    assert hops(net, "tell")[4:] == [(2, 4), (4, 0), (0, 8), (8, 9), (9, 1), (1, 5)]
    assert arrived_at_first(net, 0, call)
    assert net.nodes[2].count("relay.sent_round") == 1
    assert not any(node.blamed for node in net.nodes)


def test_what_is_given_back_goes_past_who_is_silent_already():
    net = RouteNet(10, [(0, 4), (4, 3), (3, 2), (4, 2), (0, 8), (8, 9), (9, 1), (1, 5)], latency=LATENCY)
    net.at(0.14, lambda: suspect(net, 2, 3))
    call = net.route(0, net.nodes[5].id)
    net.run(1)
    assert hops(net, "tell") == [(0, 4), (4, 3), (3, 2), (2, 4), (4, 0), (0, 8), (8, 9), (9, 1), (1, 5)]
    assert arrived_at_first(net, 0, call)
    assert net.total("relay.sent_round") == 0


def test_what_looks_for_the_nearest_to_a_key_does_not_go_round():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {2})
    net.run(1)
    pass_by(net, 0, 1, nearest=True)
    net.run(0.1)
    assert hops(net, "tell") == [(1, 2)]
    suspect(net, 1, 2)
    net.run(1)
    assert hops(net, "tell") == [(1, 2)], "it would end at the wrong peer"
    assert net.total("relay.sent_round") == 0


def test_copies_of_one_attempt_that_end_in_a_miss_each_count_as_one():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    who = net.nodes
    net.meddle = lambda _sender, _receiver, message: None
    net.route(0, who[3].id)
    ((_, first, packet),) = packets(net, "tell")
    net.meddle = lambda _sender, _receiver, message: message
    for _ in range(2):
        miss = Packet(id=packet.id, kind="miss", to=who[0].id)
        net.inject(who[first], who[0], miss)
    net.run(0.1)
    assert who[0].count("requests.missed") == 1


def test_copies_that_a_silent_neighbour_passed_on_all_the_same_are_delivered_once():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    call = net.route(0, net.nodes[3].id)
    net.run(0.12)  # it is past the neighbour
    suspect(net, 1, 2)
    net.run(5)
    assert sorted(a for a, b in hops(net, "tell") if b == 3) == [2, 4]
    assert arrived_at_first(net, 0, call)
    assert len(net.nodes[3].routed) == 1
    assert not any(node.blamed for node in net.nodes)


@pytest.mark.parametrize(("ago", "is_late"), [(1.9, False), (2.1, True)])
def test_only_what_a_silent_neighbour_was_given_lately_goes_round_it(ago, is_late):
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {2})
    net.run(10)
    pass_by(net, 0, 1)
    net.run(LATENCY + ago)
    suspect(net, 1, 2)
    net.run(1)
    assert len(net.nodes[3].routed) == net.total("relay.sent_round") == (not is_late)


@pytest.mark.parametrize(("ago", "is_late"), [(0.2, False), (0.3, True)])
def test_what_a_neighbour_was_given_just_before_its_link_ended_goes_round_it(ago, is_late):
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {2})
    net.run(10)
    pass_by(net, 0, 1)
    net.run(LATENCY + ago)
    net.cut(1, 2)
    net.run(1)
    assert len(net.nodes[3].routed) == net.nodes[1].count("relay.sent_round") == (not is_late)


def test_what_went_round_a_silent_neighbour_does_not_do_so_again_when_its_link_ends():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {2})
    pass_by(net, 0, 1)
    net.run(0.1)
    suspect(net, 1, 2)
    net.cut(1, 2)
    net.run(1)
    assert net.nodes[1].count("relay.sent_round") == 1
    assert [b for a, b in hops(net, "tell") if a == 1] == [2, 5]


# --- a silent neighbour is gone round ---------------------------------------------------------------------------------


def test_a_silent_neighbour_is_gone_round_until_it_is_heard_again():
    net = RouteNet(12, CHORDED, latency=LATENCY)

    def first_hops() -> list[tuple[int, int]]:
        del net.sent[:]
        call = net.route(0, net.nodes[3].id)
        net.run(3)
        assert arrived_at_first(net, 0, call)
        return hops(net, "tell")[:2]

    assert first_hops() == [(0, 1), (1, 2)]
    suspect(net, 1, 2)
    assert first_hops() == [(0, 1), (1, 5)]
    suspect(net, 0, 1)
    assert first_hops()[0] == (0, 11)
    recover(net, 1, 2)
    recover(net, 0, 1)
    assert first_hops() == [(0, 1), (1, 2)]


def test_answers_leave_their_path_where_it_has_fallen_silent():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    net.at(0.16, lambda: suspect(net, 2, 1))
    call = net.route(0, net.nodes[3].id, answered=True)
    net.run(1)
    assert hops(net, "answer")[:2] == [(3, 2), (2, 9)]
    assert arrived_at_first(net, 0, call)
    assert net.total("relay.sent_round") == 0


def test_a_packet_for_the_silent_neighbour_itself_still_goes_to_it():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    call = net.route(0, net.nodes[2].id)
    net.run(0.06)
    suspect(net, 1, 2)
    own = net.route(1, net.nodes[2].id)
    suspect(net, 1, 2)
    net.run(1)
    assert arrived_at_first(net, 0, call)
    assert arrived_at_first(net, 1, own)
    assert hops(net, "tell") == [(0, 1), (1, 2), (1, 2)]
    assert net.total("relay.sent_round") == 0


def test_when_all_neighbours_are_silent_they_are_used_all_the_same():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    for other in (11, 1):
        suspect(net, 0, other)
    call = net.route(0, net.nodes[3].id)
    net.run(1)
    assert hops(net, "tell")[0] == (0, 1)
    assert arrived_at_first(net, 0, call)


def test_when_all_neighbours_are_silent_nothing_goes_round():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {1, 11})
    suspect(net, 0, 11)
    net.route(0, net.nodes[3].id)
    suspect(net, 0, 1)
    assert hops(net, "tell") == [(0, 1)]


def test_once_one_of_them_is_heard_again_what_the_others_were_given_goes_round():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {1, 11})
    suspect(net, 0, 11)
    call = net.route(0, net.nodes[3].id)
    net.run(0.1)
    suspect(net, 0, 1)
    go_dead(net, {1})
    recover(net, 0, 11)
    net.run(1)
    assert hops(net, "tell")[:2] == [(0, 1), (0, 11)]
    assert arrived_at_first(net, 0, call)


def test_a_neighbour_whose_link_ended_in_silence_is_used_once_it_is_back():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    suspect(net, 0, 1)
    net.cut(0, 1)
    net.link(0, 1)
    net.route(0, net.nodes[3].id)
    assert hops(net, "tell") == [(0, 1)]


def test_silence_of_who_is_no_neighbour_changes_nothing():
    net = RouteNet(12, CHORDED, latency=LATENCY)
    suspect(net, 0, 6)
    recover(net, 0, 7)
    suspect(net, 0, 11)  # if 6 counted, these two would be as many as all neighbours are
    net.route(0, net.nodes[10].id)
    assert hops(net, "tell") == [(0, 1)]


# --- bounds -----------------------------------------------------------------------------------------------------------


def carrying(size: int, number: int = 0) -> Packet:
    nobody = rpc("", RouteNet(1).nodes[0].id).record.key
    return Packet(id=str(number), kind="tell", from_=nobody, to=nobody, carry=bytes(size))


def left_of(sizes: list[int]) -> list[str]:
    buffer = ResendBuffer()
    for number, size in enumerate(sizes):
        buffer.add(carrying(size, number), now=0)
    assert len(buffer) <= BUFFERED_PACKETS
    return [packet.id for packet in buffer.take_all(0)]


def test_of_what_is_kept_the_oldest_goes_when_there_is_too_much():
    assert left_of([1] * (BUFFERED_PACKETS + 3)) == [str(number) for number in range(3, BUFFERED_PACKETS + 3)]
    half = BUFFERED_BYTES // 2
    assert left_of([half] * 2) == ["0", "1"]
    assert left_of([half, half, 1]) == ["1", "2"]
    assert left_of([1, 2, BUFFERED_BYTES + 1]) == ["2"]
    assert left_of([BUFFERED_BYTES + 1, 1]) == ["1"]


def test_what_is_kept_is_given_once_and_makes_room():
    buffer = ResendBuffer()
    buffer.add(carrying(BUFFERED_BYTES), now=0)
    assert len(buffer.take_all(0)) == 1
    assert (len(buffer), buffer.take_all(0)) == (0, [])
    buffer.add(carrying(1, 1), now=1)
    buffer.add(carrying(BUFFERED_BYTES - 1, 2), now=2)
    assert len(buffer) == 2
    buffer.add(carrying(0, 3), now=3.5)
    assert [packet.id for packet in buffer.take_all(0)] == ["2", "3"]


@pytest.mark.parametrize(
    ("sizes", "left"), [([0] * (BUFFERED_PACKETS + 9), BUFFERED_PACKETS), ([BUFFERED_BYTES // 4] * 6, 4)]
)
def test_what_may_go_round_a_neighbour_is_bounded(sizes, left):
    net = RouteNet(12, CHORDED, latency=LATENCY)
    go_dead(net, {2})
    for number, size in enumerate(sizes):
        pass_by(net, 0, 1, id=str(number), carry=bytes(size))
    net.run(0.1)
    assert net.nodes[1].count("relay.relayed") == len(sizes)
    assert net.nodes[1].count("relay.buffered") == left
    suspect(net, 1, 2)
    assert net.nodes[1].count("relay.sent_round") == left


def test_of_a_neighbour_that_is_gone_nothing_is_kept():
    net = RouteNet(12, ring(12), latency=LATENCY)
    go_dead(net, {2})
    pass_by(net, 0, 1)
    net.run(0.1)
    assert net.nodes[1].count("relay.buffered") == 1
    net.cut(1, 2)
    net.cut(1, 0)
    assert net.nodes[1].count("relay.buffered") == 0
    assert net.nodes[1].count("relay.buffers") == 0


# --- how far a packet is looked for -----------------------------------------------------------------------------------


def along_a_line(way: list[int], target: int, *, doubtful: bool = False) -> RouteNet:
    """A packet takes this way, the only one there is, and its first attempt ends."""
    net = RouteNet(80, list(pairwise(way)), latency=0.001)
    call = net.route(way[0], net.nodes[target].id, doubtful=doubtful)
    while not net.nodes[way[0]].outcomes and not net.total("requests.missed"):
        net.run(0.01)
    forsake(net, way[0], call)
    return net


def test_a_search_that_comes_nearer_may_go_on():
    away, nearer = list(range(42, 20, -1)), list(range(56, 42, -1))
    way = [10, *away, *nearer, 60]
    net = along_a_line(way, 60)
    assert hops(net, "tell") == list(pairwise(way))
    assert len(way) - 2 > SEARCH > max(len(away), len(nearer))
    assert len(net.nodes[60].routed) == 1


@pytest.mark.parametrize(("doubtful", "search"), [(False, SEARCH), (True, 4)])
def test_a_search_that_comes_no_nearer_ends_in_a_miss(doubtful, search):
    net = along_a_line([59, *range(58, 18, -1)], 60, doubtful=doubtful)
    assert net.nodes[59].count("requests.missed") == 1
    assert net.total("relay.dropped_hops") == net.nodes[58 - search].count("relay.dropped_hops") == 1
    assert len(hops(net, "tell")) == 1 + search


def test_dead_ends_count_as_links_of_the_search():
    ways = [[59, *range(first, first - 6, -1)] for first in range(57, 20, -6)]
    edges = [(10, 59), *(pair for way in ways for pair in pairwise(way))]
    net = RouteNet(80, edges, latency=0.001)
    net.route(10, net.nodes[60].id)
    while not net.total("requests.missed"):
        net.run(0.01)
    visited = {b for _, b in hops(net, "tell")} - {10, 59}
    assert len(visited) == SEARCH < sum(len(way) - 1 for way in ways)
