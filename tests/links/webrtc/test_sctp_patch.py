"""Acknowledgements of the SCTP association: when they wait, what takes them along, and what they never wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import aiortc.rtcsctptransport as sctp
from aiortc.rtcsctptransport import DataChunk, SackChunk

from p2pmesh.links.webrtc.sctp_patch import MAX_AHEAD, ROOM_FOR_SACK, SACK_DELAY, SctpTransport

FULL = sctp.USERDATA_MAX_LENGTH
PATIENCE = 100 * SACK_DELAY


class Dtls:
    """What lies below an association: keeps the packets that it sends."""

    state = "connected"

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.sent = asyncio.Event()

    async def _send_data(self, packet: bytes) -> None:
        self.packets.append(packet)
        self.sent.set()


class Association:
    """An association that has got everything up to number 9."""

    def __init__(self) -> None:
        self.below = Dtls()
        self.sctp = SctpTransport(cast("Any", self.below))
        self.sctp.tune()
        self.sctp._remote_port = 5000
        self.sctp._last_received_tsn = 9

    async def get(self, tsn: int, size: int = 100) -> None:
        packet = sctp.serialize_packet(5000, 5000, self.sctp._local_verification_tag, data(tsn, size))
        await self.sctp._handle_data(packet)

    async def send(self, size: int = 100) -> None:
        await self.sctp._send_chunk(data(1, size))

    @property
    def sent(self) -> list[list[Any]]:
        """The chunks in each packet."""
        return [sctp.parse_packet(packet)[3] for packet in self.below.packets]

    @property
    def kinds(self) -> list[list[type]]:
        return [[type(chunk) for chunk in chunks] for chunks in self.sent]

    @property
    def waits(self) -> bool:
        return self.sctp._sack_due is not None


def data(tsn: int, size: int) -> DataChunk:
    chunk = DataChunk(flags=sctp.SCTP_DATA_FIRST_FRAG | sctp.SCTP_DATA_LAST_FRAG)
    chunk.tsn, chunk.stream_id, chunk.stream_seq, chunk.protocol = tsn, 0, tsn % 2**16, sctp.WEBRTC_BINARY
    chunk.user_data = bytes(size)
    return chunk


def with_association(test: Callable[[Association], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(Association())

    asyncio.run(run())


def test_an_acknowledgement_that_waits_goes_along_with_data() -> None:
    async def test(here: Association) -> None:
        await here.get(10)
        assert here.waits
        assert here.sent == []
        await here.send()
        ((sack, chunk),) = here.sent
        assert isinstance(sack, SackChunk)
        assert (sack.cumulative_tsn, sack.gaps, sack.duplicates) == (10, [], [])
        assert chunk.user_data == bytes(100)
        assert not here.waits
        await here.send()
        assert here.kinds[1:] == [[DataChunk]]

    with_association(test)


def test_without_data_to_go_with_it_leaves_alone_after_a_while() -> None:
    async def test(here: Association) -> None:
        await here.get(10)
        await asyncio.wait_for(here.below.sent.wait(), PATIENCE)
        ((sack,),) = here.sent
        assert sack.cumulative_tsn == 10
        await here.send()
        assert here.kinds[1:] == [[DataChunk]]

    with_association(test)


def test_much_data_is_acknowledged_at_once() -> None:
    async def test(here: Association) -> None:
        await here.get(10, FULL)
        await asyncio.sleep(0)
        assert here.sent == []
        await here.get(11, FULL)
        await asyncio.sleep(0)
        assert here.kinds == [[SackChunk]]

    with_association(test)


def test_what_is_read_in_one_go_is_acknowledged_together() -> None:
    async def test(here: Association) -> None:
        for tsn in range(10, 17):
            await here.get(tsn, FULL)
        assert here.sent == []
        await asyncio.sleep(0)
        assert here.kinds == [[SackChunk]]
        for tsn in range(17, 25):
            await here.get(tsn, FULL)
        assert here.kinds == [[SackChunk]] * 2, "but not all of a flood"

    with_association(test)


def test_an_answer_at_once_takes_the_acknowledgement_along() -> None:
    async def test(here: Association) -> None:
        async def answer(stream_id: int, pp_id: int, data: bytes) -> None:
            await here.send()

        here.sctp._get_inbound_stream(0).sequence_number = 10
        here.sctp._receive = answer  # type: ignore[method-assign]
        await here.get(10)
        assert here.kinds == [[SackChunk, DataChunk]]
        assert not here.waits

    with_association(test)


def test_what_is_not_acknowledged_is_sent_again_after_the_timeout_and_its_timer_started_last() -> None:
    async def test(here: Association) -> None:
        here.sctp._association_state = here.sctp.State.ESTABLISHED
        here.sctp._rto = 0.1
        loop = asyncio.get_running_loop()
        began = loop.time()
        await here.sctp._send(0, sctp.WEBRTC_BINARY, bytes(100))
        await asyncio.sleep(0.05)
        here.sctp._t3_restart()
        here.below.sent.clear()
        await asyncio.wait_for(here.below.sent.wait(), PATIENCE)
        assert loop.time() - began >= 0.149
        first, again = (chunks[0] for chunks in here.sent)
        assert (first.tsn, first.user_data) == (again.tsn, again.user_data)
        sack = SackChunk()
        sack.cumulative_tsn = first.tsn
        await here.sctp._receive_sack_chunk(sack)
        await asyncio.sleep(0.25)
        assert len(here.sent) == 2
        here.sctp._set_state(here.sctp.State.CLOSED)

    with_association(test)


def test_what_is_missing_is_told_at_once_and_in_full() -> None:
    async def test(here: Association) -> None:
        await here.get(10)
        await here.get(12)
        ((sack,),) = here.sent
        assert (sack.cumulative_tsn, sack.gaps) == (10, [(2, 2)])
        await here.send()
        assert here.kinds[1:] == [[DataChunk]], "a short form would say nothing of the gap"

    with_association(test)


def test_what_comes_twice_is_told_at_once() -> None:
    async def test(here: Association) -> None:
        await here.get(10)
        await here.get(10)
        ((sack,),) = here.sent
        assert (sack.cumulative_tsn, sack.duplicates) == (10, [10])

    with_association(test)


def test_data_with_an_acknowledgement_is_no_larger_than_a_packet_may_be() -> None:
    async def test(here: Association) -> None:
        await here.send(FULL)
        await here.get(10)
        await here.send(ROOM_FOR_SACK)
        full, bundled = map(len, here.below.packets)
        assert here.kinds == [[DataChunk], [SackChunk, DataChunk]]
        assert bundled <= full

    with_association(test)


def test_data_that_fills_its_packet_goes_alone_and_the_acknowledgement_after_it() -> None:
    async def test(here: Association) -> None:
        await here.get(10)
        await here.send(ROOM_FOR_SACK + 1)
        assert here.kinds == [[DataChunk]]
        here.below.sent.clear()
        await asyncio.wait_for(here.below.sent.wait(), PATIENCE)
        assert here.kinds == [[DataChunk], [SackChunk]]

    with_association(test)


def test_the_other_side_takes_both_out_of_one_packet() -> None:
    async def test(here: Association) -> None:
        there = Association()
        here.sctp._remote_verification_tag = there.sctp._local_verification_tag
        await here.get(10)
        await here.sctp._send_chunk(data(10, 100))
        acknowledged: list[int] = []

        async def note(chunk: SackChunk) -> None:
            acknowledged.append(chunk.cumulative_tsn)

        there.sctp._receive_sack_chunk = note  # type: ignore[method-assign]
        await there.sctp._handle_data(here.below.packets[0])
        assert acknowledged == [10]
        assert there.sctp._last_received_tsn == 10

    with_association(test)


def test_data_too_far_ahead_of_what_is_missing_is_dropped() -> None:
    async def test(here: Association) -> None:
        await here.get(9 + MAX_AHEAD + 1)
        assert here.sctp._sack_misordered == set()
        await here.get(9 + MAX_AHEAD)
        assert here.sctp._sack_misordered == {9 + MAX_AHEAD}

    with_association(test)


def test_a_closed_association_acknowledges_nothing_any_more() -> None:
    async def test(here: Association) -> None:
        await here.get(10)
        here.sctp._set_state(here.sctp.State.CLOSED)
        assert not here.waits

    with_association(test)
