"""What every link does, whatever carries it: checks that each implementation's tests run on connected pairs of links.

A `Connect` opens a pair, runs both links' `run` beside it, and closes both at the end. Real carriers run on the real
clock, so a check that has to see that nothing happens waits `A_WHILE`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import pytest
import trio
import trio.testing
from attrs import evolve, frozen

from p2pmesh.config import KIB, MIB, LinkConfig, MeshConfig
from p2pmesh.links.link import Link, LinkError

A_WHILE = 0.3
PATIENCE = 20.0
MAX_FRAME = MeshConfig().max_frame
NARROW = LinkConfig(receive_window=64 * KIB, high_water=64 * KIB, low_water=16 * KIB, close_timeout=0.5)


@frozen
class Pair:
    """Two ends of one link, opened with frames up to `MAX_FRAME`."""

    left: Link
    right: Link
    break_off: Callable[[], None] | None = None
    """Breaks the connection at once, if the carrier can do that."""


class Connect(Protocol):
    def __call__(self, config: LinkConfig = ...) -> AbstractAsyncContextManager[Pair]: ...


def frame_of(number: int, size: int) -> bytes:
    """A frame that tells which one it is, if it is large enough."""
    return (b"%d:" % number).ljust(size, b".")[:size]


MIXED = [frame_of(n, (0, 1, 100, 1000, 5000, 16_380, 16_381, 40_000)[n % 8]) for n in range(120)]


async def send_all(link: Link, frames: list[bytes], *, urgent: bool = False) -> None:
    for frame in frames:
        await link.send(frame, urgent=urgent)


async def receive_some(link: Link, count: int) -> list[bytes]:
    frames: list[bytes] = []
    with trio.fail_after(PATIENCE):
        while len(frames) < count:
            frames.append(await link.receive())
    return frames


async def repeat(call: Callable[[], Awaitable[object]]) -> None:
    """Call until it raises."""
    while True:
        await call()


async def fill(link: Link, size: int, limit: int = 10_000, *, urgent: bool = False) -> int:
    """Send frames of a size until the link takes no more for a while. Gives how many it took."""
    sent = 0
    with trio.move_on_after(A_WHILE) as scope:
        while sent < limit:
            await link.send(frame_of(sent, size), urgent=urgent)
            sent += 1
            scope.deadline = trio.current_time() + A_WHILE
    if scope.cancelled_caught:
        return sent
    raise AssertionError(f"{limit} frames of {size} bytes went into a link that nobody reads")


async def check_frames_arrive_in_order_once(connect: Connect) -> None:
    for urgent in (False, True):
        async with connect() as pair, trio.open_nursery() as nursery:
            for sender, receiver in ((pair.left, pair.right), (pair.right, pair.left)):
                nursery.start_soon(partial(send_all, sender, MIXED, urgent=urgent))
                assert await receive_some(receiver, len(MIXED)) == MIXED


async def check_both_lanes_keep_their_own_order(connect: Connect) -> None:
    bulk = [b"b" + frame for frame in MIXED]
    urgent = [b"u" + frame for frame in MIXED]
    async with connect() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(send_all, pair.left, bulk)
        nursery.start_soon(partial(send_all, pair.left, urgent, urgent=True))
        frames = await receive_some(pair.right, 2 * len(MIXED))
    assert [frame for frame in frames if frame[:1] == b"b"] == bulk
    assert [frame for frame in frames if frame[:1] == b"u"] == urgent


async def check_large_frames_cross(connect: Connect) -> None:
    frames = [frame_of(0, MAX_FRAME), frame_of(1, MIB), frame_of(2, MIB + 1)]
    async with connect() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(send_all, pair.left, frames)
        nursery.start_soon(send_all, pair.right, frames)
        assert await receive_some(pair.right, 3) == frames
        assert await receive_some(pair.left, 3) == frames


async def check_a_frame_too_large_is_refused_and_harms_nothing(connect: Connect) -> None:
    async with connect() as pair:
        for urgent in (False, True):
            with pytest.raises(ValueError, match="at most"):
                await pair.left.send(bytes(MAX_FRAME + 1), urgent=urgent)
        assert pair.left.stats.frames_sent == 0
        await pair.left.send(b"after")
        assert await receive_some(pair.right, 1) == [b"after"]


async def check_urgent_frames_overtake_bulk_ones(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        sent = await fill(pair.left, 10_000)
        with trio.fail_after(PATIENCE):
            await pair.left.send(b"urgent", urgent=True)
        await trio.sleep(A_WHILE)
        assert await receive_some(pair.right, 1) == [b"urgent"]
        assert await receive_some(pair.right, sent) == [frame_of(n, 10_000) for n in range(sent)]


async def check_a_slow_receiver_stops_its_sender(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        sent = await fill(pair.left, 1000)
        # The receiver's window, here a third more than the largest frame, and about a packet in the sender.
        assert sent * 1000 <= MAX_FRAME * 4 // 3 + 2 * NARROW.packet_size
        assert pair.right.stats.unread_bytes <= MAX_FRAME * 4 // 3 + KIB
        assert pair.left.stats.queued_bytes <= 2 * NARROW.packet_size
        assert pair.left.stats.send_credit < 2 * KIB
        assert await receive_some(pair.right, sent) == [frame_of(n, 1000) for n in range(sent)]
        await pair.left.send(b"more")
        assert await receive_some(pair.right, 1) == [b"more"]


async def check_a_slow_receiver_is_not_taken_for_dead(connect: Connect) -> None:
    config = evolve(NARROW, keepalive_idle=0.2, keepalive_interval=0.1, keepalive_pings=3)
    async with connect(config) as pair:
        sent = await fill(pair.left, 10_000)
        await trio.sleep(1.2)  # more than twice of what a silent one has
        assert await receive_some(pair.right, sent) == [frame_of(n, 10_000) for n in range(sent)]
        assert pair.left.stats.pings_sent > 1
        assert pair.left.stats.round_trip is not None


async def check_what_was_sent_arrives_before_the_end(connect: Connect) -> None:
    async with connect() as pair, trio.open_nursery() as nursery:
        await send_all(pair.left, MIXED)
        nursery.start_soon(pair.left.aclose)
        assert await receive_some(pair.right, len(MIXED)) == MIXED
        with trio.fail_after(PATIENCE), pytest.raises(trio.EndOfChannel):
            await pair.right.receive()
        with pytest.raises(LinkError):
            await pair.right.send(b"too late")


class Flow:
    """Numbered frames of one size, each told from all others: how many went in, how many came out in their order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.received = 0

    async def send(self, link: Link) -> None:
        """Send until that raises."""
        while True:
            await link.send(frame_of(self.taken, self.size))
            self.taken += 1

    async def send_until(self, link: Link, error: type[Exception]) -> None:
        with pytest.raises(error):
            await self.send(link)

    async def receive(self, link: Link, count: float = math.inf) -> None:
        """Receive so many, or until that raises; each is whole, and none is missing."""
        with trio.fail_after(PATIENCE):
            while self.received < count:
                assert await link.receive() == frame_of(self.received, self.size)
                self.received += 1


async def check_closing_while_sending_loses_nothing_that_was_taken(connect: Connect) -> None:
    for flow in (Flow(100), Flow(40_000)):  # many in a packet, and many packets for one
        async with connect() as pair, trio.open_nursery() as nursery:
            nursery.start_soon(flow.send_until, pair.left, trio.ClosedResourceError)
            await flow.receive(pair.right, 50)
            nursery.start_soon(pair.left.aclose)
            with pytest.raises(trio.EndOfChannel):
                await flow.receive(pair.right)
        assert flow.received == flow.taken


async def check_closing_does_not_wait_for_a_peer_that_does_not_read(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        sent, flow = await fill(pair.left, 10_000), Flow(10_000)
        with trio.fail_after(NARROW.close_timeout + PATIENCE):
            await pair.left.aclose()
        with pytest.raises((trio.EndOfChannel, LinkError)):
            await flow.receive(pair.right)
        assert flow.received <= sent


async def check_closing_ends_the_calls_of_both_sides(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        await fill(pair.left, 10_000)
        await fill(pair.right, 10_000)
        raised: list[type[BaseException]] = []

        async def note(call: Callable[[], Awaitable[object]]) -> None:
            with trio.fail_after(PATIENCE):
                try:
                    await repeat(call)
                except (trio.ClosedResourceError, trio.EndOfChannel, LinkError) as error:
                    raised.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, lambda: pair.left.send(bytes(10_000)))
            await trio.sleep(A_WHILE)
            nursery.start_soon(pair.left.aclose)
        assert raised == [trio.ClosedResourceError]
        with trio.fail_after(PATIENCE), pytest.raises(LinkError):
            await repeat(partial(pair.right.send, bytes(10_000)))


async def check_closing_ends_a_receive(connect: Connect) -> None:
    async with connect() as pair, trio.open_nursery() as nursery:

        async def expect(link: Link, error: type[Exception]) -> None:
            with trio.fail_after(PATIENCE), pytest.raises(error):
                await link.receive()

        nursery.start_soon(expect, pair.left, trio.ClosedResourceError)
        nursery.start_soon(expect, pair.right, trio.EndOfChannel)
        await trio.sleep(A_WHILE)
        await pair.left.aclose()


async def check_both_sides_may_close_at_once(connect: Connect) -> None:
    async with connect() as pair:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.left.aclose)
                nursery.start_soon(pair.right.aclose)


async def check_a_closed_link_stays_closed(connect: Connect) -> None:
    async with connect() as pair:
        await pair.left.aclose()
        await pair.left.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await pair.left.send(b"")
        with pytest.raises(trio.ClosedResourceError):
            await pair.left.receive()


async def check_a_cancelled_close_closes(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        await fill(pair.left, 10_000)
        with trio.fail_after(PATIENCE):
            await trio.aclose_forcefully(pair.left)
            with pytest.raises((trio.EndOfChannel, LinkError)):
                await repeat(pair.right.receive)


async def check_a_break_in_mid_message_is_an_error(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        if pair.break_off is None:
            return
        with trio.move_on_after(A_WHILE):
            await repeat(partial(pair.left.send, bytes(MIB)))
        pair.break_off()
        for link in (pair.left, pair.right):
            with trio.fail_after(PATIENCE), pytest.raises(LinkError):
                await repeat(link.receive)
            with trio.fail_after(PATIENCE), pytest.raises(LinkError):
                await link.send(b"")


async def check_a_break_gives_whole_frames_or_none(connect: Connect) -> None:
    for flow in (Flow(100), Flow(300_000)):
        async with connect() as pair, trio.open_nursery() as nursery:
            if pair.break_off is not None:
                nursery.start_soon(flow.send_until, pair.left, LinkError)
                await flow.receive(pair.right, 3)
                pair.break_off()
                with pytest.raises(LinkError):
                    await flow.receive(pair.right)


async def check_a_break_ends_a_send_that_waits(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        if pair.break_off is None:
            return
        await fill(pair.left, 10_000)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Flow(10_000).send_until, pair.left, LinkError)
                await trio.sleep(A_WHILE)
                pair.break_off()


async def check_backpressure_holds_back_urgent_frames_too(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        sent = await fill(pair.left, 1000, urgent=True)
        assert pair.right.stats.unread_bytes <= MAX_FRAME * 4 // 3 + KIB
        assert await receive_some(pair.right, sent) == [frame_of(n, 1000) for n in range(sent)]
        await pair.left.send(b"more", urgent=True)
        assert await receive_some(pair.right, 1) == [b"more"]


async def check_two_sides_that_only_send_do_not_lock_each_other(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        sent = [await fill(link, 10_000) for link in (pair.left, pair.right)]
        async with trio.open_nursery() as nursery:
            for link, count in ((pair.left, sent[0]), (pair.right, sent[1])):
                nursery.start_soon(send_all, link, [frame_of(count + n, 10_000) for n in range(30)])
            for link, count in ((pair.right, sent[0]), (pair.left, sent[1])):
                assert await receive_some(link, count + 30) == [frame_of(n, 10_000) for n in range(count + 30)]


async def check_a_cancelled_send_is_not_sent(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair.left.send(b"never")
        sent = await fill(pair.left, 10_000)  # ends with a cancelled send
        frames = await receive_some(pair.right, sent)
        await pair.left.send(b"last")
        frames += await receive_some(pair.right, 1)
        assert frames == [*(frame_of(n, 10_000) for n in range(sent)), b"last"]


async def check_a_cancelled_receive_loses_nothing(connect: Connect) -> None:
    frames = [frame_of(n, 50) for n in range(200)]
    received: list[bytes] = []
    async with connect() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(send_all, pair.left, frames)
        with trio.fail_after(PATIENCE):
            for turn in range(100_000):
                if len(received) == len(frames):
                    break
                with trio.CancelScope() as scope:
                    if turn % 3 == 0:
                        scope.cancel()
                    else:
                        scope.deadline = trio.current_time() + 0.002
                    received.append(await pair.right.receive())
    assert received == frames


async def check_a_second_sender_or_receiver_is_refused(connect: Connect) -> None:
    async with connect(NARROW) as pair:
        await fill(pair.left, 10_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.left.send, bytes(10_000))
            nursery.start_soon(pair.left.receive)
            await trio.sleep(A_WHILE)
            with pytest.raises(trio.BusyResourceError):
                await pair.left.send(b"")
            with pytest.raises(trio.BusyResourceError):
                await pair.left.receive()
            await pair.left.send(b"urgent", urgent=True)
            nursery.cancel_scope.cancel()


async def check_every_call_is_a_checkpoint(connect: Connect) -> None:
    async with connect() as pair:
        await trio.sleep(A_WHILE)
        with trio.testing.assert_checkpoints():
            await pair.left.send(b"one")
        await pair.left.send(b"two")
        await trio.sleep(A_WHILE)
        with trio.testing.assert_checkpoints():
            assert await pair.right.receive() == b"one"
        with trio.testing.assert_checkpoints():
            await pair.right.aclose()
        with trio.testing.assert_checkpoints():
            await pair.right.aclose()


async def check_statistics_add_up(connect: Connect) -> None:
    async with connect() as pair:
        await send_all(pair.left, MIXED)
        assert await receive_some(pair.right, len(MIXED)) == MIXED
        left, right = pair.left.stats, pair.right.stats
        assert left.frames_sent == right.frames_received == len(MIXED)
        assert left.bytes_sent > sum(map(len, MIXED))
        assert right.bytes_received > sum(map(len, MIXED))
        assert left.queued_bytes == right.unread_bytes == 0


CHECKS = tuple(check for name, check in sorted(globals().items()) if name.startswith("check_"))
