"""The SCTP association: when acknowledgements wait, what takes them along, what is sent again, what is bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import aiortc.rtcsctptransport as sctp
import pytest
from aiortc.rtcsctptransport import AbortChunk, DataChunk, SackChunk

from p2pmesh.links.webrtc import sctp_patch
from tests.harness.sctp import FIRST, Association, data, now, with_association

FULL = sctp.USERDATA_MAX_LENGTH
KIB = 1024


# --- acknowledgements -------------------------------------------------------------------------------------------------


def test_an_acknowledgement_that_waits_goes_along_with_data() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST)
        assert here.sent == []
        here.send()
        ((sack, chunk),) = here.sent
        assert isinstance(sack, SackChunk)
        assert (sack.cumulative_tsn, sack.gaps, sack.duplicates) == (FIRST, [], [])
        assert chunk.user_data == bytes(100)
        here.send()
        assert here.kinds[1:] == [[DataChunk]]
        await asyncio.sleep(1)
        assert len(here.sent) == 2, "and it is not told again"

    with_association(test)


def test_without_data_to_go_with_it_leaves_alone_after_a_while() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST)
        await asyncio.sleep(0.01)
        assert here.sent == []
        await asyncio.sleep(0.19)  # RFC 9260 asks for 0.2 s
        ((sack,),) = here.sent
        assert sack.cumulative_tsn == FIRST
        here.send()
        assert here.kinds[1:] == [[DataChunk]]

    with_association(test)


def test_what_comes_after_data_took_an_acknowledgement_along_waits_for_its_own_time() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST)
        await asyncio.sleep(0.09)
        here.send()
        await here.get(FIRST + 1)
        await asyncio.sleep(0.05)
        assert len(here.sent) == 1
        await asyncio.sleep(0.15)
        assert here.sent[1][0].cumulative_tsn == FIRST + 1

    with_association(test)


def test_much_data_is_acknowledged_at_once() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST, FULL)
        await asyncio.sleep(0)
        assert here.sent == []
        await here.get(FIRST + 1, FULL)
        await asyncio.sleep(0)
        assert here.kinds == [[SackChunk]]

    with_association(test)


def test_what_is_read_in_one_go_is_acknowledged_together() -> None:
    async def test(here: Association) -> None:
        for number in range(FIRST, FIRST + 7):
            await here.get(number, FULL)
        assert here.sent == []
        await asyncio.sleep(0)
        assert here.kinds == [[SackChunk]]
        for number in range(FIRST + 7, FIRST + 15):
            await here.get(number, FULL)
        assert here.kinds == [[SackChunk]] * 2, "but not all of a flood"

    with_association(test)


def test_an_answer_at_once_takes_the_acknowledgement_along() -> None:
    async def test(here: Association) -> None:
        here.channel.on("message", lambda message: here.send())
        await here.get(FIRST)
        assert here.kinds == [[SackChunk, DataChunk]]
        await asyncio.sleep(1)
        assert here.kinds == [[SackChunk, DataChunk]]

    with_association(test)


def test_what_is_missing_is_told_at_once_and_in_full() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST)
        await here.get(FIRST + 2)
        ((sack,),) = here.sent
        assert (sack.cumulative_tsn, sack.gaps) == (FIRST, [(2, 2)])
        here.send()
        assert here.kinds[1:] == [[DataChunk]], "a short form would say nothing of the gap"
        await here.get(FIRST + 1)
        assert [len(message) for message in here.received] == [100] * 3

    with_association(test)


def test_what_comes_twice_is_told_at_once() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST)
        await here.get(FIRST)
        ((sack,),) = here.sent
        assert (sack.cumulative_tsn, sack.duplicates) == (FIRST, [FIRST])

    with_association(test)


def test_data_with_an_acknowledgement_is_no_larger_than_a_packet_may_be() -> None:
    async def test(here: Association) -> None:
        here.send(FULL)
        full = here.sizes[0]
        bundled = 0
        for count, size in enumerate(range(FULL - 100, FULL + 1), 1):
            await here.acknowledge(count)
            await here.get(FIRST + count - 1)
            here.send(size)
            bundled += here.kinds[-1] == [SackChunk, DataChunk]
            await asyncio.sleep(0.2)
            assert here.kinds[-1] in ([SackChunk, DataChunk], [SackChunk]), "after data that fills its packet"
        assert max(here.sizes) <= full
        assert 0 < bundled < 100

    with_association(test)


def test_the_other_side_takes_both_out_of_one_packet() -> None:
    async def test(here: Association) -> None:
        here.send()
        assert not here.sctp.is_idle
        await here.hear(here.sack(1), data(FIRST, 100))
        assert here.sctp.is_idle
        assert here.received == [bytes(100)]
        await asyncio.sleep(1)
        assert here.sent[-1][0].cumulative_tsn == FIRST

    with_association(test)


def test_a_closed_association_acknowledges_nothing_any_more() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST)
        await here.sctp.stop()
        await asyncio.sleep(10)
        assert here.kinds == [[AbortChunk]]

    with_association(test)


# --- what a peer can make us keep -------------------------------------------------------------------------------------


def test_data_too_far_ahead_of_what_is_missing_is_dropped() -> None:
    async def test(here: Association) -> None:
        await here.get(FIRST + 1000)
        assert here.sent[-1][0].gaps == [(1001, 1001)]
        await here.get(FIRST + 70_000)
        await here.get(FIRST + 1001)
        assert here.sent[-1][0].gaps == [(1001, 1002)]

    with_association(test)


def test_a_message_without_end_ends_the_association(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sctp_patch, "MAX_UNFINISHED", 100_000)
    closed: list[str] = []

    async def test(here: Association) -> None:
        here.channel.on("close", lambda: closed.append("closed"))
        for number in range(1300):  # the window that aiortc advertises has room for 900
            await here.hear(data(FIRST + number, FULL, is_last=False))
            if closed:
                break
        await asyncio.sleep(1)
        assert here.kinds[-1] == [AbortChunk], "and nothing is acknowledged after it"
        assert 900 < number < 1100

    with_association(test)


# --- sending again, by RFC 9260, section 6.3 --------------------------------------------------------------------------


def test_what_is_not_acknowledged_is_sent_again_after_the_timeout() -> None:
    async def test(here: Association) -> None:
        here.send()
        await asyncio.sleep(10)
        assert here.data_sent == [(0, 0), (pytest.approx(3), 0), (pytest.approx(6), 0), (pytest.approx(9), 0)]
        await here.acknowledge(1)
        await asyncio.sleep(100)
        assert len(here.data_sent) == 4

    with_association(test)


def test_the_timeout_follows_the_round_trips_and_counts_from_the_last_acknowledgement() -> None:
    async def test(here: Association) -> None:
        here.send()
        await asyncio.sleep(1)
        here.send()
        await asyncio.sleep(1)
        await here.acknowledge(1)  # a round trip of 2 s: from now on 2 + 4 * 1 s
        await asyncio.sleep(10)
        assert here.data_sent[:3] == [(0, 0), (pytest.approx(1), 1), (pytest.approx(8), 1)]

    with_association(test)


def test_quick_round_trips_make_it_a_second() -> None:
    async def test(here: Association) -> None:
        for count in range(1, 30):
            here.send()
            await asyncio.sleep(0.01)
            await here.acknowledge(count)
        here.send()
        sent = now()
        await asyncio.sleep(1.5)
        assert here.data_sent[-2:] == [(pytest.approx(sent), 29), (pytest.approx(sent + 1), 29)]

    with_association(test)


def test_a_later_send_does_not_put_off_the_timeout_of_an_earlier_one() -> None:
    async def test(here: Association) -> None:
        here.send()
        for _ in range(5):
            await asyncio.sleep(0.5)
            here.send()
        await asyncio.sleep(0.6)
        assert [number for _, number in here.data_sent].count(0) == 2

    with_association(test)


def test_what_three_reports_miss_is_sent_again_at_once_and_nothing_else() -> None:
    async def test(here: Association) -> None:
        for _ in range(5):
            here.send()
        for last in (2, 3, 4):
            await here.acknowledge(1, (2, last))
        assert [number for _, number in here.data_sent] == [0, 1, 2, 3, 4, 1]
        assert now() == 0
        await here.acknowledge(5)
        assert here.sctp.is_idle

    with_association(test)


def test_what_could_not_leave_leaves_with_the_acknowledgements() -> None:
    async def test(here: Association) -> None:
        for _ in range(10):
            here.send(FULL)
        first = len(here.data_sent)
        assert 0 < first < 10
        acknowledged = 0
        while len(here.data_sent) < 10:
            acknowledged += 1
            await here.acknowledge(acknowledged)
        assert here.channel.bufferedAmount == 0
        assert [number for _, number in here.data_sent] == list(range(10))

    with_association(test)


def test_whoever_waits_for_it_to_be_idle_is_called_once_when_all_is_acknowledged() -> None:
    async def test(here: Association) -> None:
        called: list[float] = []
        assert here.sctp.is_idle
        for _ in range(3):
            here.send(FULL)
        here.send(FULL)  # more than the first window has
        here.sctp.call_when_idle(lambda: called.append(now()))
        await here.acknowledge(2)
        assert not here.sctp.is_idle
        await asyncio.sleep(0.5)
        assert called == []
        await here.acknowledge(4)
        assert here.sctp.is_idle
        assert called == [0.5]
        here.send()
        await here.acknowledge(5)
        assert called == [0.5]

    with_association(test)


# --- the window -------------------------------------------------------------------------------------------------------


async def most_in_flight(here: Association, round_trip: float, size: int, total: int) -> int:
    """Bytes under way at most, while the peer acknowledges each packet half a round trip after it came."""
    loop = asyncio.get_running_loop()
    in_flight = most = acknowledged = 0
    tasks: set[asyncio.Task[None]] = set()

    def arrived(count: int, size: int) -> None:
        nonlocal in_flight, acknowledged
        in_flight -= size
        acknowledged = max(acknowledged, count)
        task = loop.create_task(here.acknowledge(acknowledged))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def took(chunks: list[Any]) -> None:
        nonlocal in_flight, most
        for chunk in chunks:
            if isinstance(chunk, DataChunk):
                in_flight += len(chunk.user_data)
                most = max(most, in_flight)
                count = (chunk.tsn - here.first_sent) % 2**32 + 1
                loop.call_later(round_trip, arrived, count, len(chunk.user_data))

    here.below.on_packet = took
    for _ in range(total // size):
        here.send(size)
    while not here.sctp.is_idle:
        await asyncio.sleep(round_trip)
    return most


@pytest.mark.parametrize(("round_trip", "least", "cap"), [(0.001, 100 * KIB, 130 * KIB), (0.02, 350 * KIB, 415 * KIB)])
def test_the_window_grows_with_the_length_of_the_path_to_what_buffers_hold(
    round_trip: float, least: int, cap: int
) -> None:
    async def test(here: Association) -> None:
        assert least < await most_in_flight(here, round_trip, 16 * KIB, 10_000 * KIB) <= cap

    with_association(test, window=16 << 20)


def test_the_window_is_that_of_the_shortest_round_trip() -> None:
    async def test(here: Association) -> None:
        here.send()
        await asyncio.sleep(1)
        await here.acknowledge(1)
        assert 100 * KIB < await most_in_flight(here, 0.001, 16 * KIB, 10_000 * KIB) <= 130 * KIB

    with_association(test, window=16 << 20)


def test_the_window_has_a_cap_however_long_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sctp_patch, "CWND_CAP_FAR", 200 * KIB)

    async def test(here: Association) -> None:
        assert 150 * KIB < await most_in_flight(here, 0.1, 16 * KIB, 4_000 * KIB) <= 205 * KIB

    with_association(test, window=16 << 20)


def test_small_chunks_count_for_what_they_cost() -> None:
    async def test(here: Association) -> None:
        assert await most_in_flight(here, 0.001, 64, 128 * KIB) <= 130 * KIB * 64 // 512

    with_association(test, window=16 << 20)


def test_a_full_packet_fits_the_smallest_path_of_ipv6():
    ipv6, udp, relayed, dtls, head, chunk = 40, 8, 4, 37, 12, 16  # RFC 8200, 768, 8656; DTLS 1.2 with AES-GCM; RFC 9260
    assert ipv6 + udp + relayed + dtls + head + chunk + sctp.USERDATA_MAX_LENGTH <= 1280


@pytest.mark.parametrize("body", [bytes(4), b"\0\7\0\3", b"\0\7\0\4\0\0\0\0"])
def test_a_parameter_shorter_than_its_head_is_malformed(body):
    with pytest.raises(ValueError, match="shorter"):
        sctp.decode_params(body)


def test_parameters_are_read_as_they_were_written():
    params = [(7, b"cookie"), (0x8008, b"\xc0\x82"), (13, b"")]
    assert sctp.decode_params(sctp.encode_params(params)) == params
