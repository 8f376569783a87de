"""Packets between two peers of ours: what is written can be read, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire import packet_format as f

LANES = st.sampled_from([f.BULK, f.URGENT])
U32 = st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(LANES, st.binary(max_size=300)), min_size=1, max_size=20))
def test_whole_frames_are_read_as_written(frames: list[tuple[int, bytes]]) -> None:
    packet = b"".join(f.frame_header(lane, len(frame)) + frame for lane, frame in frames)
    assert f.parse_packet(packet) == frames


@pytest.mark.parametrize(
    ("record", "written"),
    [
        (f.frame_header(f.BULK, 5) + b"frame", "00 000005 6672616d65"),
        (f.frame_header(f.URGENT, 5) + b"frame", "01 000005 6672616d65"),
        (f.start_header(f.BULK, 1000, 512), "02 000204 000003e8"),
        (f.start_header(f.URGENT, 1000, 512), "03 000204 000003e8"),
        (f.more_header(f.BULK, 488), "04 0001e8"),
        (f.more_header(f.URGENT, 488), "05 0001e8"),
        (f.credit_record(f.BULK, 1 << 40), "06 000008 0000010000000000"),
        (f.credit_record(f.URGENT, 1), "07 000008 0000000000000001"),
        (f.u32_record(f.HELLO, 65_536), "08 000004 00010000"),
        (f.u32_record(f.PING, 7), "09 000004 00000007"),
        (f.u32_record(f.PONG, 7), "0a 000004 00000007"),
        (f.END_RECORD, "0b 000000"),
    ],
)
def test_records_are_written_as_the_format_says(record: bytes, written: str) -> None:
    assert record == bytes.fromhex(written)


@given(LANES, U32, st.integers(0, f.MAX_CREDIT))
def test_control_records_are_read_as_written(lane: int, number: int, limit: int) -> None:
    packet = b"".join([
        f.u32_record(f.HELLO, number),
        f.u32_record(f.PING, number),
        f.u32_record(f.PONG, number),
        f.credit_record(lane, limit),
        f.END_RECORD,
    ])
    hello, ping, pong, credit, end = f.parse_packet(packet)
    assert [hello[0], ping[0], pong[0]] == [f.HELLO, f.PING, f.PONG]
    assert {f.read_u32(body) for _, body in (hello, ping, pong)} == {number}
    assert credit[0] == f.CREDIT + lane
    assert f.read_u64(credit[1]) == limit
    assert end == (f.END, b"")


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_well_formed(packet: bytes) -> None:
    try:
        records = f.parse_packet(packet)
    except RemoteProtocolError:
        return
    assert sum(f.HEADER_SIZE + len(body) for _, body in records) == len(packet)
    assert all(kind <= f.END for kind, _ in records)


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (b"", "0 bytes"),
        (bytes(f.MAX_PACKET + 1), "262145 bytes"),
        (b"\0\0", "within the header"),
        (f.frame_header(0, 5) + b"four", "longer than the rest"),
        (f.frame_header(12, 0), "unknown kind 12"),
        (f.frame_header(255, 0), "unknown kind 255"),
        (f.frame_header(f.PING, 3) + b"abc", "3 bytes instead of 4"),
        (f.frame_header(f.CREDIT, 9) + bytes(9), "9 bytes instead of 8"),
        (f.frame_header(f.END, 1) + b"x", "1 bytes instead of 0"),
        (f.frame_header(f.MORE, 0), "only 0 bytes"),
        (f.frame_header(f.START, 515) + bytes(515), "only 515 bytes"),
    ],
)
def test_each_malformed_packet_is_named(packet: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        f.parse_packet(packet)


def test_the_largest_packet_of_the_smallest_records_is_read() -> None:
    packet = bytes(f.MAX_PACKET)  # empty bulk frames throughout
    assert f.parse_packet(packet) == [(f.FRAME, b"")] * (f.MAX_PACKET // f.HEADER_SIZE)


@given(st.binary(min_size=1100, max_size=5000), st.lists(st.integers(f.MIN_FRAGMENT, 2000), max_size=10))
def test_fragments_join_to_their_frame(frame: bytes, sizes: list[int]) -> None:
    reassembly = f.Reassembly()
    reassembly.start(len(frame), frame[: f.MIN_FRAGMENT])
    at = f.MIN_FRAGMENT
    whole = None
    for size in [*sizes, len(frame)]:
        assert reassembly.held == at
        assert reassembly.missing == len(frame) - at
        whole = reassembly.more(frame[at : at + size])
        at += size
        if whole is not None:
            break
    assert whole == frame
    assert reassembly.missing == reassembly.held == 0


def test_fragments_that_do_not_fit_their_frame_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="first fragment"):
        f.Reassembly().start(512, bytes(512))
    reassembly = f.Reassembly()
    with pytest.raises(RemoteProtocolError, match="0 are missing"):
        reassembly.more(b"x")
    reassembly.start(2000, bytes(600))
    with pytest.raises(RemoteProtocolError, match="1400 are missing"):
        reassembly.more(bytes(1401))
    with pytest.raises(RemoteProtocolError, match="only 511 bytes"):
        reassembly.more(bytes(511))
