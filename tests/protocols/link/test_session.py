"""What goes on inside a link, with no carrier and no clock but the test's own."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import KIB, LinkConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocols.link.legacy_session import MAX_TEXT, LegacySession
from p2pmesh.protocols.link.session import MOST_CONTROL, LinkSession
from p2pmesh.protocols.util.latency import CATCH_UP, LocalHealth
from p2pmesh.wire import packet_format as f
from tests.harness.examples import examples

CONFIG = LinkConfig(packet_size=2 * KIB, coalesce_size=1 * KIB, receive_window=64 * KIB)
MAX_FRAME = 20_000
TWO_ROUND_TRIPS = 1.0
"""As long as none was measured: RFC 6298's first second."""
HELLO = f.u32_record(f.HELLO, MAX_FRAME)
GRANT = f.credit_record(f.BULK, 1 << 40) + f.credit_record(f.URGENT, 1 << 40)


def session(config: LinkConfig = CONFIG, max_frame: int = MAX_FRAME, now: float = 0.0) -> LinkSession:
    return LinkSession(config, max_frame, f.MAX_PACKET, now)


def greeted(config: LinkConfig = CONFIG, now: float = 0.0) -> LinkSession:
    """A session that has had the peer's first packet, and sent its own."""
    one = session(config, now=now)
    one.receive_packet(HELLO + GRANT, now)
    assert one.next_packet(now) is not None
    return one


def kinds(packet: bytes | None) -> list[int]:
    return [] if packet is None else [kind for kind, _ in f.parse_packet(packet)]


def packets(one: LinkSession, now: float) -> list[bytes]:
    return list(iter(lambda: one.next_packet(now, hold=False), None))


def talk(left: LinkSession, right: LinkSession, now: float) -> None:
    """Exchange packets until neither has more to say."""
    moved = True
    while moved:
        moved = False
        for sender, receiver in ((left, right), (right, left)):
            for packet in packets(sender, now):
                receiver.receive_packet(packet, now)
                moved = True


def read_all(one: LinkSession) -> list[bytes]:
    return list(iter(one.take, None))


# --- frames -----------------------------------------------------------------------------------------------------------

FRAMES = st.lists(
    st.tuples(st.booleans(), st.one_of(st.integers(0, 200), st.integers(1900, 2100), st.integers(0, MAX_FRAME))),
    max_size=60,
)


@examples(150)
@given(FRAMES, FRAMES, st.randoms(use_true_random=False), st.sampled_from([0, 300, 2048]))
def test_frames_arrive_in_the_order_of_their_lane_once_under_any_schedule(
    from_left: list[tuple[bool, int]], from_right: list[tuple[bool, int]], rng: random.Random, coalesce: int
) -> None:
    config = evolve(CONFIG, coalesce_size=coalesce)
    ends = (session(config), session(config))
    todo = tuple(
        deque((urgent, (b"%d" % n).ljust(size, b".")[:size]) for n, (urgent, size) in enumerate(frames))
        for frames in (from_left, from_right)
    )
    expected = tuple([frame for lane in (True, False) for urgent, frame in frames if urgent is lane] for frames in todo)
    wires: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
    taken: tuple[list[bytes], list[bytes]] = ([], [])
    now = 0.0
    steps = itertools.count()

    def step(which: int, action: int) -> None:
        one = ends[which]
        if action == 0 and todo[which] and one.has_room(urgent=todo[which][0][0]):
            urgent, frame = todo[which].popleft()
            one.check(frame)
            one.queue(frame, urgent=urgent)
        elif action == 1 and (packet := one.next_packet(now)) is not None:
            assert 0 < len(packet) <= config.packet_size + f.START_SIZE
            wires[which].append(packet)
        elif action == 2 and wires[1 - which]:
            one.receive_packet(wires[1 - which].popleft(), now)
        elif action == 3 and (frame_taken := one.take()) is not None:
            taken[1 - which].append(frame_taken)
        # Both lanes full and one frame begun in each is all that a peer can make us hold.
        assert one.unread_bytes <= 2 * config.receive_window
        assert one.queued_bytes <= 2 * (config.packet_size + MAX_FRAME + f.HEADER_SIZE)
        assert one.send_credit >= 0

    for _ in range(rng.randrange(400)):
        now += rng.choice([0.0, 0.0005, 0.01])
        step(rng.randrange(2), rng.randrange(4))
    while any(todo) or any(map(len, wires)) or any(len(t) < len(e) for t, e in zip(taken, expected, strict=True)):
        now += 0.001
        for which, action in itertools.product((0, 1), range(4)):
            step(which, action)
        assert next(steps) < 5000, "the sessions wait for each other"

    sent = (from_left, from_right)
    for which in (0, 1):
        assert sorted(taken[which]) == sorted(expected[which])
        for lane in (True, False):
            in_lane = [
                (b"%d" % n).ljust(size, b".")[:size] for n, (urgent, size) in enumerate(sent[which]) if urgent is lane
            ]
            rest = iter(taken[which])
            assert all(frame in rest for frame in in_lane), "the lane's order is lost"


def test_frames_that_come_in_quick_succession_share_packets() -> None:
    one = greeted(now=10.0)
    one.receive_packet(f.u32_record(f.PONG, 1), 30.0)
    one.queue(b"first", urgent=False)
    assert kinds(one.next_packet(30.0)) == [f.PING, f.FRAME]  # at once; the ping measures an old link
    for _ in range(3):
        one.queue(b"next", urgent=False)
        assert one.next_packet(30.0) is None
    assert one.next_deadline() == pytest.approx(30.0 + CONFIG.coalesce_delay)
    assert kinds(one.next_packet(one.next_deadline())) == [f.FRAME] * 3


def test_held_frames_leave_when_the_peer_is_heard_or_a_packet_is_full_or_nobody_keeps_time() -> None:
    one = greeted()
    one.queue(b"held", urgent=False)
    assert one.next_packet(0.0) is None
    one.receive_packet(f.u32_record(f.PONG, 99), 0.0)
    assert kinds(one.next_packet(0.0)) == [f.FRAME]
    one.queue(bytes(CONFIG.coalesce_size), urgent=False)
    assert kinds(one.next_packet(0.0)) == [f.FRAME]
    one.queue(b"held", urgent=False)
    assert one.next_packet(0.0) is None
    assert kinds(one.next_packet(0.0, hold=False)) == [f.FRAME]


def test_no_packet_of_several_frames_is_larger_than_coalesce_size() -> None:
    one = greeted()
    for _ in range(30):
        one.queue(bytes(100), urgent=False)
    sizes = [len(packet) for packet in packets(one, 1.0)]
    assert len(sizes) == 4
    assert max(sizes) <= CONFIG.coalesce_size


def test_urgent_frames_slip_between_the_fragments_of_a_large_one() -> None:
    one, other = session(), session()
    talk(one, other, 0.0)
    one.queue(bytes(MAX_FRAME), urgent=False)
    first = one.next_packet(1.0)
    assert kinds(first) == [f.START]
    one.queue(b"urgent", urgent=True)
    second = one.next_packet(1.0)
    assert kinds(second)[0] == f.FRAME + f.URGENT
    for packet in (first, second, *packets(one, 1.0)):
        assert packet is not None
        other.receive_packet(packet, 1.0)
    assert read_all(other) == [b"urgent", bytes(MAX_FRAME)]


def test_a_large_frame_is_begun_once_all_of_it_may_be_sent() -> None:
    one = session()
    cost = MAX_FRAME + f.FRAME_COST
    one.receive_packet(HELLO + f.credit_record(f.BULK, cost - 1), 0.0)
    one.next_packet(0.0)
    one.queue(bytes(MAX_FRAME), urgent=False)
    assert one.next_packet(1.0, hold=False) is None
    one.receive_packet(f.credit_record(f.BULK, cost), 1.0)
    assert kinds(one.next_packet(1.0, hold=False)) == [f.START]


def test_urgent_frames_need_no_bulk_credit() -> None:
    one, other = session(), session()
    talk(one, other, 0.0)
    while one.has_room(urgent=False):
        one.queue(bytes(1000), urgent=False)
        talk(one, other, 1.0)
    assert one.send_credit < 1000 + f.FRAME_COST
    assert not one.has_room(urgent=False)
    one.queue(b"urgent", urgent=True)
    talk(one, other, 2.0)
    assert other.take() == b"urgent"


def test_empty_frames_use_up_credit_too() -> None:
    one, other = session(), session()
    talk(one, other, 0.0)
    while one.has_room(urgent=False):
        one.queue(b"", urgent=False)
        talk(one, other, 1.0)
    assert other.frames_received == CONFIG.receive_window // f.FRAME_COST
    assert set(read_all(other)) == {b""}
    talk(one, other, 2.0)
    assert one.queued_bytes == 0


def test_a_frame_larger_than_either_side_takes_is_refused() -> None:
    one, other = session(max_frame=5000), session(max_frame=3000)
    with pytest.raises(ValueError, match="at most 5000"):
        one.check(bytes(5001))
    talk(one, other, 0.0)
    one.check(bytes(3000))
    with pytest.raises(ValueError, match="at most 3000"):
        one.check(bytes(3001))


def test_a_window_just_as_large_as_the_largest_frame_never_locks() -> None:
    size = CONFIG.receive_window
    one, other = session(max_frame=size), session(max_frame=size)
    talk(one, other, 0.0)
    for frame in (bytes(1), bytes(size), bytes(2), bytes(size)):
        one.queue(frame, urgent=False)
        talk(one, other, 1.0)
        assert other.take() == frame


# --- what a peer may not do -------------------------------------------------------------------------------------------


@examples(300)
@given(
    st.lists(st.one_of(st.binary(max_size=100), st.tuples(st.integers(0, 12), st.binary(max_size=700))), max_size=12)
)
def test_whatever_a_peer_sends_only_protocol_errors_come_out(said: list[bytes | tuple[int, bytes]]) -> None:
    one = greeted()
    try:
        for something in said:
            if isinstance(something, bytes):
                one.receive_packet(something, 1.0)
            else:
                kind, body = something
                one.receive_packet(f.frame_header(kind, len(body)) + body, 1.0)
            packets(one, 1.0)
            assert one.unread_bytes <= 2 * CONFIG.receive_window
    except RemoteProtocolError:
        pass


def start(total: int, size: int = 600) -> bytes:
    return f.start_header(f.BULK, total, size) + bytes(size)


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        ("text", "text message"),
        (HELLO, "second HELLO"),
        (f.frame_header(0, MAX_FRAME + 1) + bytes(MAX_FRAME + 1), "at most 20000 are taken"),
        (start(MAX_FRAME + 1), "at most 20000 are taken"),
        (start(600), "first fragment"),
        (start(5000) + start(5000), "begins before"),
        (start(5000) + f.frame_header(0, 0), "between the fragments"),
        (f.more_header(f.BULK, 1) + b"x", "0 are missing"),
        (start(5000) + f.END_RECORD, "middle of a frame"),
        (f.END_RECORD + f.u32_record(f.PING, 1), "after the end"),
        (f.credit_record(f.BULK, 5), "credit of 5"),
        (f.credit_record(f.BULK, 1 << 53), "credit of"),
        ((f.frame_header(0, 0)) * 1100, "credit overrun"),
        (start(20_000) * 2, "begins before"),
    ],
)
def test_each_breach_of_the_protocol_is_named(packet: bytes | str, complaint: str) -> None:
    one = greeted()
    with pytest.raises(RemoteProtocolError, match=complaint):
        one.receive_packet(packet, 1.0)


def test_the_first_record_is_a_hello() -> None:
    with pytest.raises(RemoteProtocolError, match="no HELLO"):
        session().receive_packet(f.u32_record(f.PING, 1), 0.0)


def test_a_flood_of_pings_piles_nothing_up() -> None:
    one = greeted()
    for token in range(400):
        one.receive_packet(f.u32_record(f.PING, token), 1.0)
    assert packets(one, 1.0) == [f.u32_record(f.PONG, 399)]


def test_a_flood_of_packets_that_bring_nothing_ends_the_link() -> None:
    one = greeted()

    def flood() -> None:
        for number in range(5000):
            one.receive_packet(f.u32_record(f.PING, 1), 1.0 + number / 100)

    with pytest.raises(RemoteProtocolError, match="that bring nothing"):
        flood()


def test_a_packet_is_no_heap_of_pings() -> None:
    one = greeted()
    one.receive_packet(f.u32_record(f.PING, 1) * MOST_CONTROL, 1.0)
    with pytest.raises(RemoteProtocolError, match="17 records in one packet"):
        one.receive_packet(f.u32_record(f.PING, 1) * (MOST_CONTROL + 1), 1.0)


def test_who_is_sent_much_may_give_credit_for_it() -> None:
    one, other = session(), session()
    now = 0.0
    for _ in range(60_000):
        if one.has_room(urgent=False):
            one.queue(b"x", urgent=False)
        now += 1e-4
        for sender, receiver in ((one, other), (other, one)):
            while (packet := sender.next_packet(now, hold=False)) is not None:
                receiver.receive_packet(packet, now)
                while receiver.take() is not None:
                    pass
    assert other.frames_received > 10_000
    assert one.packets_received > 100


# --- keepalive --------------------------------------------------------------------------------------------------------


def let_time_pass(one: LinkSession, until: float) -> tuple[list[float], float | None]:
    """Keep a session's time. Gives when it pinged, and for how long the peer was silent when it was given up."""
    pinged: list[float] = []
    while (now := one.next_deadline()) <= until:
        silent = one.expire(now)
        if silent is not None:
            return pinged, silent
        if f.PING in kinds(one.next_packet(now)):
            pinged.append(now)
    return pinged, None


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    assert let_time_pass(greeted(), 100.0) == ([3.0, 4.0], 5.0)


def test_a_peer_that_never_said_anything_is_given_up() -> None:
    one = session()
    one.next_packet(0.0)
    assert let_time_pass(one, 100.0)[1] == pytest.approx(5.0)


def test_any_packet_is_a_sign_of_life() -> None:
    one = greeted()
    assert let_time_pass(one, 4.5) == ([3.0, 4.0], None)
    one.receive_packet(f.frame_header(0, 0), 4.5)
    assert let_time_pass(one, 9.4) == ([7.5, 8.5], None)
    assert let_time_pass(one, 100.0) == ([], 5.0)


def test_at_rest_one_end_pings_for_both() -> None:
    ahead, delay = (0.0, 4711.12345678), 0.0123  # the clocks of two machines have nothing in common
    ends = (session(), session(now=ahead[1]))
    under_way: list[tuple[float, int, bytes]] = []
    now = 0.0
    while now < 300.0:
        for number, end in enumerate(ends):
            assert end.expire(now + ahead[number]) is None
            under_way += [(now + delay, 1 - number, packet) for packet in packets(end, now + ahead[number])]
        now = min(end.next_deadline() - ahead[number] for number, end in enumerate(ends)) + 1e-9
        now = min(now, under_way[0][0]) if under_way else now
        while under_way and under_way[0][0] <= now:
            _, number, packet = under_way.pop(0)
            ends[number].receive_packet(packet, now + ahead[number])
    pings = [end.pings_sent for end in ends]
    assert sum(pings) < 300.0 / (0.8 * CONFIG.keepalive_idle) * 1.1, "they seldom cross"
    assert min(pings) > 20, "now the one end pings, now the other: both know the round trip"


def test_pings_are_answered_and_measured_though_nobody_reads() -> None:
    one, other = session(), session()
    for second in range(0, 40, 2):
        if second == 2:
            one.queue(bytes(10_000), urgent=False)
        assert one.expire(second) is None
        for packet in packets(one, second):
            other.receive_packet(packet, second + 0.1)
        for packet in packets(other, second + 0.1):
            one.receive_packet(packet, second + 0.2)
    assert one.round_trip == pytest.approx(0.2)
    assert other.unread_bytes == 10_000


def test_a_process_that_slept_doubts_itself_first() -> None:
    one = greeted()
    assert one.expire(60.0) is None  # 58 s late: stopped by a debugger, a laptop's lid, a loaded machine
    assert let_time_pass(one, 60.0 + CATCH_UP - 0.01) == ([], None), "what the peer said meanwhile is read first"
    assert let_time_pass(one, 60.0 + CATCH_UP) == ([60.0 + CATCH_UP], None)
    one.receive_packet(f.u32_record(f.PONG, 2), 60.6)
    assert one.expire(60.7) is None
    assert one.next_deadline() > 62.5


def test_a_process_that_slept_still_notices_a_dead_peer() -> None:
    one = greeted()
    assert one.expire(60.0) is None
    assert let_time_pass(one, 62.0)[1] is None
    assert let_time_pass(one, 63.0)[1] == pytest.approx(5.0), "silence counts while we listened"


def test_patience_is_bounded() -> None:
    one, now = greeted(), 0.0
    for _ in range(50):
        now = one.next_deadline() + 30.0
        assert one.expire(now) is None
        one.next_packet(now)
    silent = let_time_pass(one, now + 1000.0)[1]
    assert silent is not None
    assert silent <= 10.0


def test_a_ping_that_waits_in_a_slow_carrier_is_not_held_against_the_peer() -> None:
    one = greeted()
    one.queue(bytes(20_000), urgent=False)
    packets(one, 0.0)
    for step in range(20):  # the carrier gets rid of a little each time
        assert one.expire(one.next_deadline(), buffered=20_000 - 500 * step) is None
        one.next_packet(one.next_deadline())
    left_carrier = one.bytes_sent - 10_000  # and now it is stuck
    while (silent := one.expire(one.next_deadline(), buffered=one.bytes_sent - left_carrier)) is None:
        one.next_packet(one.next_deadline())
    assert silent > 5.0


def test_a_peer_that_says_nothing_to_what_was_sent_is_pinged_and_then_silent() -> None:
    one = greeted()
    one.queue(b"are you there?", urgent=False)
    assert f.PING not in kinds(one.next_packet(1.0))
    assert let_time_pass(one, 1.3) == ([1.0 + CONFIG.doubt_after / 2], None)
    assert not one.silent
    let_time_pass(one, 1.0 + CONFIG.doubt_after + TWO_ROUND_TRIPS)
    assert one.silent
    one.receive_packet(f.frame_header(0, 0), 2.6)
    assert not one.silent


def test_doubt_waits_two_round_trips_that_were_measured() -> None:
    one = session()
    (hello,) = packets(one, 0.0)
    one.receive_packet(HELLO + GRANT + f.u32_record(f.PONG, dict(f.parse_packet(hello))[f.PING][3]), 0.3)
    assert one.round_trip == pytest.approx(0.3)
    one.queue(b"are you there?", urgent=False)
    one.next_packet(1.0)
    let_time_pass(one, 1.0 + CONFIG.doubt_after + 0.59)
    assert not one.silent
    let_time_pass(one, 1.0 + CONFIG.doubt_after + 0.61)
    assert one.silent


def test_where_nothing_is_sent_the_keepalives_first_ping_raises_the_doubt() -> None:
    one = greeted()
    let_time_pass(one, CONFIG.keepalive_idle + CONFIG.doubt_after + TWO_ROUND_TRIPS - 0.01)
    assert not one.silent
    let_time_pass(one, CONFIG.keepalive_idle + CONFIG.doubt_after + TWO_ROUND_TRIPS)
    assert one.silent


def test_doubt_neither_hastens_nor_delays_the_end_of_a_silent_peer() -> None:
    one = greeted()
    for sent_at in (0.5, 1.9, 2.2, 3.4):
        assert let_time_pass(one, sent_at)[1] is None
        one.queue(b"are you there?", urgent=False)
        one.next_packet(sent_at)
    assert let_time_pass(one, 100.0)[1] == pytest.approx(5.0)


def test_a_conversation_needs_no_pings() -> None:
    one, other, now = greeted(), greeted(), 0.0
    for _ in range(100):
        now += 0.2
        one.queue(b"a word", urgent=False)
        talk(one, other, now)
        other.queue(b"and another", urgent=False)
        talk(other, one, now + 0.1)
        assert one.expire(now + 0.15) is None
        assert not one.silent
    assert one.pings_sent <= 1 + now / 15


def test_a_process_that_slept_doubts_itself_before_its_peer() -> None:
    one = greeted()
    one.queue(b"are you there?", urgent=False)
    one.next_packet(1.0)
    one.expire(1.0 + 10.0)
    assert not one.silent, "what the peer said meanwhile may not have been read yet"
    let_time_pass(one, 11.0 + CATCH_UP + CONFIG.doubt_after + TWO_ROUND_TRIPS)
    assert one.silent


def test_a_peer_is_not_doubted_while_what_it_should_answer_still_leaves() -> None:
    one = greeted()
    one.queue(bytes(20_000), urgent=False)
    packets(one, 0.0)
    now = 0.0
    for step in range(10):  # the carrier gets rid of a little each time
        now = one.next_deadline()
        assert one.expire(now, buffered=20_000 - 1000 * step) is None
        one.next_packet(now)
        assert not one.silent
    stuck_at = one.bytes_sent - 11_000
    while not one.silent:
        now = one.next_deadline()
        assert one.expire(now, buffered=one.bytes_sent - stuck_at) is None, "and long before it is given up"
        one.next_packet(now)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_comes_after_all_that_was_queued() -> None:
    one, other = session(), session()
    talk(one, other, 0.0)
    one.queue(bytes(15_000), urgent=False)
    one.queue(b"urgent", urgent=True)
    one.finish()
    talk(one, other, 0.0)
    assert one.finished
    assert other.finished
    assert read_all(other) == [b"urgent", bytes(15_000)]
    assert one.next_deadline() == other.next_deadline() == float("inf")


def test_the_end_fits_a_packet_that_the_last_frames_fill() -> None:
    for size in range(CONFIG.packet_size - 3 * f.HEADER_SIZE, CONFIG.packet_size + 3 * f.HEADER_SIZE):
        one, other = session(), session()
        talk(one, other, 0.0)
        one.queue(bytes(size), urgent=False)
        one.finish()
        talk(one, other, 0.0)
        assert one.finished
        assert read_all(other) == [bytes(size)]


def test_a_side_that_finishes_takes_nothing_more_but_lets_the_peer_finish_too() -> None:
    one, other = session(), session()
    talk(one, other, 0.0)
    while other.has_room(urgent=False):
        other.queue(bytes(1000), urgent=False)
        talk(one, other, 1.0)
    one.finish()
    other.finish()
    talk(one, other, 1.0)
    assert one.finished
    assert other.finished
    assert one.take() is None
    assert one.unread_bytes == other.queued_bytes == 0


# --- the original's peers ---------------------------------------------------------------------------------------------


def legacy() -> LegacySession:
    return LegacySession(CONFIG, 0.0, LocalHealth())


PROBE = b"are you there?"
RESPONSE = '{"topic":"__gossip_connectivity_response"}'


def until_given_up(one: LegacySession, *, answers: int) -> tuple[float | None, int]:
    """When the peer was given up, within a minute, and how many probes it got; it answers the first ones."""
    one.probe = lambda: PROBE
    probes = 0
    now = 0.0
    while now < 60.0:
        while (packet := one.next_packet(now)) is not None:
            assert packet == PROBE.decode()
            probes += 1
            if probes <= answers:
                one.receive_packet(RESPONSE, now)
        now = one.next_deadline()
        if one.expire(now) is not None:
            return now, probes
    return None, probes


def test_an_originals_peer_that_no_longer_answers_probes_is_given_up_like_any_other() -> None:
    given_up, probes = until_given_up(legacy(), answers=3)
    assert given_up is not None
    after = CONFIG.keepalive_idle * 3 + CONFIG.keepalive_interval * CONFIG.keepalive_pings
    assert 0.8 * after <= given_up <= after
    assert probes == 3 + CONFIG.keepalive_pings


def test_one_that_never_answers_them_is_kept() -> None:
    given_up, probes = until_given_up(legacy(), answers=0)
    assert given_up is None
    assert probes > 3


def test_one_that_talks_is_not_asked() -> None:
    one = legacy()
    one.probe = lambda: PROBE
    assert one.next_packet(0.0) is not None
    for now in range(20):
        one.receive_packet("{}", float(now))
        assert one.expire(float(now)) is None
        assert one.next_packet(float(now)) is None


def test_nobody_is_asked_before_there_is_a_way_to_ask_nor_after_the_end() -> None:
    one = legacy()
    assert one.next_packet(0.0) is None
    assert one.next_deadline() == math.inf
    one.probe = lambda: PROBE
    one.finish()
    assert one.next_packet(0.0) is None
    assert one.next_deadline() == math.inf


def test_to_the_originals_peers_each_frame_is_a_text_message() -> None:
    one = legacy()
    one.check("grüße".encode())
    one.queue("grüße".encode(), urgent=False)
    one.queue(b"{}", urgent=True)
    assert [one.next_packet(0.0), one.next_packet(0.0), one.next_packet(0.0)] == ["{}", "grüße", None]
    one.receive_packet('{"type":"direct"}', 0.0)
    one.receive_packet("", 0.0)
    one.receive_packet(b"binary", 0.0)
    assert not one.credit_due
    assert not one.silent
    assert [one.take(), one.take(), one.take()] == [b'{"type":"direct"}', b"binary", None]


def test_the_originals_peers_are_sent_no_message_they_cannot_take() -> None:
    one = legacy()
    one.check(bytes(MAX_TEXT))
    with pytest.raises(ValueError, match="at most 262144"):
        one.check(bytes(MAX_TEXT + 1))
    with pytest.raises(ValueError, match="utf-8"):
        one.check(b"\xff")


def flood(one: LegacySession) -> None:
    for _ in range(10_000):
        one.receive_packet("x" * 100, 0.0)


def test_an_originals_peer_that_floods_is_cut_off() -> None:
    one = legacy()
    with pytest.raises(RemoteProtocolError, match="faster than it is read"):
        flood(one)
    assert one.unread_bytes <= CONFIG.receive_window
    with pytest.raises(RemoteProtocolError, match="at most 262144"):
        legacy().receive_packet("x" * (MAX_TEXT + 1), 0.0)
    with pytest.raises(RemoteProtocolError, match="no text"):
        legacy().receive_packet("\ud800", 0.0)


def test_a_text_session_is_finished_when_its_queue_is_sent() -> None:
    one = legacy()
    one.queue(b"last", urgent=False)
    one.receive_packet("unread", 0.0)
    one.finish()
    assert not one.finished
    assert one.next_packet(0.0) == "last"
    assert one.finished
    assert one.take() is None
    assert one.queued_bytes == 0


# --- once it is over --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [f.u32_record(f.PING, 1), f.frame_header(f.BULK, 1) + b"x", f.END_RECORD, GRANT])
def test_nothing_is_taken_from_a_peer_after_its_end(late: bytes) -> None:
    one = greeted()
    one.receive_packet(f.END_RECORD, 1.0)
    with pytest.raises(RemoteProtocolError, match="after the end"):
        one.receive_packet(late, 1.1)
    assert one.take() is None


def test_nothing_is_sent_after_our_end() -> None:
    one = greeted()
    one.finish()
    assert kinds(one.next_packet(1.0))[-1] == f.END
    one.receive_packet(f.u32_record(f.PING, 1), 1.1)
    one.receive_packet(f.frame_header(f.BULK, 1) + b"x", 1.1)
    assert one.next_packet(30.0, hold=False) is None
    assert one.next_deadline() == float("inf")
    assert one.expire(100.0) is None


def test_what_was_queued_for_a_peer_that_has_ended_is_dropped() -> None:
    one = greeted()
    one.queue(b"too late", urgent=False)
    one.receive_packet(f.END_RECORD, 1.0)
    assert one.queued_bytes == 0
    assert kinds(one.next_packet(1.0)) == [f.END]
    assert one.finished
