"""Links over real WebRTC, on the real clock: what the contract leaves open, and what can go wrong below."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aioice.ice
import aioice.stun
import aiortc
import pytest
import trio
import trio_asyncio
from msgspec import structs

from p2pmesh.config import IceServer, LinkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import AttemptFailed, LinkError, LinkProtocolError, LinkTimedOut
from p2pmesh.links.webrtc import aiortc_patch, event_loop, ice_patch, sctp_patch
from p2pmesh.links.webrtc.dialer import WebRTCDialer
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import PROTOCOL_VERSION, Description, IceCandidate, Offer
from p2pmesh.wire.sdp import read_sdp, write_sdp
from tests.harness import link_contract
from tests.harness.webrtc import below, loop_of

pytestmark = pytest.mark.webrtc

ALICE, BOB = PeerId("a" * 40), PeerId("b" * 40)
QUICK = LinkConfig(keepalive_idle=0.3, keepalive_interval=0.1, keepalive_pings=3)


def remote(peer_id: PeerId, version: int = PROTOCOL_VERSION) -> RemotePeer:
    return RemotePeer(peer_id, verified=True, version=version)


async def connect(dialer: WebRTCDialer, other: WebRTCDialer, version: int = PROTOCOL_VERSION) -> tuple[Any, Any]:
    """A pair of links, not running."""
    offering = await dialer.offer(BOB)
    answering = await other.answer(ALICE, offering.description)
    await offering.feed(answering.description)
    return await offering.opened(remote(BOB, version)), await answering.opened(remote(ALICE, version))


@asynccontextmanager
async def linked(
    config: LinkConfig = QUICK, version: int = PROTOCOL_VERSION, max_frame: int | None = None
) -> AsyncGenerator[tuple[Any, Any]]:
    """Two links, running, closed in the end."""
    with trio.fail_after(20):
        async with (
            WebRTCDialer(config, max_frame) as alice,
            WebRTCDialer(config, max_frame) as bob,
            trio.open_nursery() as nursery,
        ):
            links = await connect(alice, bob, version)
            for link in links:
                await nursery.start(link.run)
            try:
                yield links
            finally:
                nursery.cancel_scope.cancel()


def open_sockets() -> int:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return sum(target.startswith("socket:") for target in found)


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_frames_pass_both_ways_whatever_their_size() -> None:
    async with linked() as (alice, bob):
        for size in (0, 1, 1000, 16_000, 70_000, 1_000_000):
            frame = random.Random(size).randbytes(size)
            await alice.send(frame)
            assert await bob.receive() == frame
            await bob.send(frame)
            assert await alice.receive() == frame


async def test_what_is_sent_before_close_arrives() -> None:
    async with linked() as (alice, bob):
        frames = [bytes([number]) * 5000 for number in range(50)]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for frame in frames:
                    await alice.send(frame)
                await alice.aclose()

            assert [frame async for frame in bob] == frames


async def test_descriptions_are_complete_and_name_no_server() -> None:
    async with WebRTCDialer(QUICK) as dialer:
        attempt = await dialer.offer(BOB)
        assert attempt.peer_id == BOB
        description = attempt.description
        assert description.is_offer
        assert description.candidates
        assert description.complete
        assert {candidate.kind for candidate in description.candidates} == {"host"}
        assert [len(fingerprint.value) for fingerprint in description.fingerprints] == [32]
        assert len(encode(Offer(description=description))) < 400
        await attempt.aclose()


async def test_a_machine_without_network_offers_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: [])
    async with linked() as (alice, bob):
        await alice.send(b"over loopback")
        assert await bob.receive() == b"over loopback"


async def test_trickled_candidates_are_taken() -> None:
    async with WebRTCDialer(QUICK) as alice, WebRTCDialer(QUICK) as bob:
        offering = await alice.offer(BOB)
        answering = await bob.answer(ALICE, without_candidates(offering.description))
        for candidate in answering.description.candidates:
            await offering.feed(candidate)  # before the answer
        await offering.feed(without_candidates(answering.description))
        for candidate in offering.description.candidates:
            await answering.feed(candidate)
        await answering.feed(IceCandidate(address=b"0f9a6d5c-7c1f-4a34.local", port=9))
        with trio.fail_after(10):
            await offering.opened(remote(BOB))
            await answering.opened(remote(ALICE))


def without_candidates(description: Description) -> Description:
    return structs.replace(description, candidates=(), complete=False)


async def test_a_certificate_that_is_not_the_announced_one_opens_nothing() -> None:
    async with WebRTCDialer(QUICK) as alice, WebRTCDialer(QUICK) as bob, WebRTCDialer(QUICK) as mallory:
        offering = await alice.offer(BOB)
        answering = await bob.answer(ALICE, offering.description)
        other = await mallory.answer(ALICE, offering.description)
        forged = structs.replace(answering.description, fingerprints=other.description.fingerprints)
        await offering.feed(forged)
        with trio.fail_after(10), pytest.raises(AttemptFailed, match="certificate"):
            await offering.opened(remote(BOB))


async def test_useless_descriptions_fail_the_attempt() -> None:
    async with WebRTCDialer(QUICK) as dialer:
        attempt = await dialer.offer(BOB)
        with pytest.raises(AttemptFailed):
            await attempt.feed(attempt.description)  # no answer
        with pytest.raises(AttemptFailed):
            await attempt.feed(structs.replace(attempt.description, mid="7", role="active"))
        await attempt.aclose()
        with pytest.raises(AttemptFailed):
            await attempt.opened(remote(BOB))


# --- legacy -----------------------------------------------------------------------------------------------------------


async def test_a_peer_of_version_0_gets_one_text_message_for_each_frame() -> None:
    async with trio_asyncio.open_loop() as loop:
        got: list[str | bytes] = []
        both = trio.Event()
        connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))

        def take(message: str | bytes) -> None:
            got.append(message)
            if len(got) == 2:
                both.set()

        @connection.on("datachannel")
        def on_channel(channel: aiortc.RTCDataChannel) -> None:
            channel.on("message", take)
            channel.send('{"type":"hi"}')

        async with WebRTCDialer(QUICK) as dialer, trio.open_nursery() as nursery:
            attempt = await dialer.offer(BOB)
            answer = await trio_asyncio.aio_as_trio(bare_answer)(connection, write_sdp(attempt.description))
            await attempt.feed(read_sdp(answer))
            with trio.fail_after(10):
                link = await attempt.opened(remote(BOB, version=0))
                await nursery.start(link.run)
                assert await link.receive() == b'{"type":"hi"}'
                await link.send(b'{"a":1}')
                await link.send(b'{"a":2}', urgent=True)
                await link.aclose()
                await both.wait()
            nursery.cancel_scope.cancel()
        assert sorted(got) == ['{"a":1}', '{"a":2}']
        await trio_asyncio.aio_as_trio(connection.close)()
        await settle(loop)


async def bare_answer(connection: aiortc.RTCPeerConnection, offer: str) -> str:
    await connection.setRemoteDescription(aiortc.RTCSessionDescription(offer, "offer"))
    await connection.setLocalDescription(await connection.createAnswer())
    return connection.localDescription.sdp


async def settle(loop: Any) -> None:
    """Bare aiortc leaves tasks behind; end them."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    await loop.synchronize()


# --- hostile peers ----------------------------------------------------------------------------------------------------


async def test_a_second_data_channel_ends_the_link() -> None:
    async with linked() as (alice, bob):
        under = below(alice)
        under.loop.call_now(under.connection.createDataChannel, "another")
        with pytest.raises(LinkProtocolError, match="second"):
            await bob.receive()


async def test_a_message_without_end_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sctp_patch, "MAX_UNFINISHED", 100_000)
    async with linked() as (alice, bob):
        monkeypatch.setattr(aiortc.rtcsctptransport, "SCTP_DATA_LAST_FRAG", 0)
        sender = below(alice).send_message(3_000_000)
        with pytest.raises((LinkError, trio.EndOfChannel)):
            await bob.receive()
        sender.cancel()


# --- the end of a peer ------------------------------------------------------------------------------------------------


async def test_the_peers_close_is_seen_at_once() -> None:
    async with linked() as (alice, bob):
        await bob.aclose()
        with trio.fail_after(1), pytest.raises(trio.EndOfChannel):
            await alice.receive()
        with pytest.raises(LinkError):
            await alice.send(b"")


@asynccontextmanager
async def peer_process(config: LinkConfig) -> AsyncGenerator[tuple[trio.Process, Any]]:
    """A link to a peer in a process of its own, which answers the first frame."""
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tests.links.webrtc.test_links"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            async with WebRTCDialer(config) as dialer, trio.open_nursery() as nursery:
                attempt = await dialer.offer(BOB)
                assert process.stdin is not None
                await process.stdin.send_all(write_sdp(attempt.description).encode() + b"\0")
                answer = await hear(process.stdout)
                await attempt.feed(read_sdp(answer))
                link = await attempt.opened(remote(BOB))
                await nursery.start(link.run)
                await link.send(b"ping")
                assert await link.receive() == b"ping"
                yield process, link
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.move_on_after(5, shield=True):
                await process.wait()


async def hear(stream: Any) -> str:
    text = b""
    while not text.endswith(b"\0"):
        text += await stream.receive_some()
    return text[:-1].decode()


async def be_the_peer() -> None:
    """What the other process does."""
    stdin, stdout = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    async with WebRTCDialer() as dialer, trio.open_nursery() as nursery:
        attempt = await dialer.answer(ALICE, read_sdp(await hear(stdin)))
        await stdout.send_all(write_sdp(attempt.description).encode() + b"\0")
        link = await attempt.opened(remote(ALICE))
        await nursery.start(link.run)
        await link.send(await link.receive())
        await trio.sleep_forever()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_silent_death_is_noticed_when_the_keepalive_runs_out(sign: signal.Signals) -> None:
    config = LinkConfig(keepalive_idle=0.8, keepalive_interval=0.4, keepalive_pings=3, doubt_after=0.2)
    told: list[bool] = []
    async with peer_process(config) as (process, link):
        link.watch(told.append)
        began = trio.current_time()
        process.send_signal(sign)
        with pytest.raises(LinkTimedOut):
            await link.receive()
        assert told == [True], "and it was doubted before"
        assert 0.8 < trio.current_time() - began < 2.0 + 2.0
        began = trio.current_time()
        await link.aclose()
        assert trio.current_time() - began < 1


# --- nothing is left behind -------------------------------------------------------------------------------------------


async def test_cancelling_at_any_instant_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(7)
    before = open_sockets()
    async with WebRTCDialer(QUICK) as alice, WebRTCDialer(QUICK) as bob:
        idle = len(asyncio.all_tasks(loop_of(alice))), len(asyncio.all_tasks(loop_of(bob)))
        for _ in range(60):
            with trio.fail_after(10):
                with trio.move_on_after(rng.uniform(0, 0.04)):
                    await set_up_and_close(alice, bob)
                for dialer, tasks in zip((alice, bob), idle, strict=True):
                    assert not dialer.connections
                    assert len(asyncio.all_tasks(loop_of(dialer))) == tasks
        assert open_sockets() - before <= 8  # the loops' own
    assert open_sockets() == before
    assert not caplog.records


async def set_up_and_close(alice: WebRTCDialer, bob: WebRTCDialer) -> None:
    offering = await alice.offer(BOB)
    async with offering:
        async with await bob.answer(ALICE, offering.description) as answering:
            await offering.feed(answering.description)
            async with await offering.opened(remote(BOB)) as link:
                async with await answering.opened(remote(ALICE)) as other:
                    await link.send(b"hello")
                    await other.receive()


async def test_a_cancelled_dialer_closes_all_and_lets_the_cancellation_through() -> None:
    before = open_sockets()
    for delay in (0.0, 0.01, 0.03, 0.2):
        with trio.fail_after(10), trio.move_on_after(delay) as scope:
            async with WebRTCDialer(QUICK) as alice, WebRTCDialer(QUICK) as bob:
                await connect(alice, bob)
                await alice.offer(BOB)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert open_sockets() == before


async def test_an_error_in_the_dialers_block_comes_out_plain() -> None:
    async def fail_inside() -> None:
        async with WebRTCDialer(QUICK) as dialer:
            await dialer.offer(BOB)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()


async def test_a_closed_dialer_fails_its_links_and_opens_no_more() -> None:
    async with WebRTCDialer(QUICK) as alice, WebRTCDialer(QUICK) as bob:
        link, other = await connect(alice, bob)
        await alice.aclose()
        with pytest.raises(LinkError, match="link layer"):
            await link.receive()
        with trio.fail_after(2), pytest.raises(trio.EndOfChannel):
            await other.receive()
        with pytest.raises(trio.ClosedResourceError):
            await alice.offer(BOB)
        await link.aclose()


# --- errors below -----------------------------------------------------------------------------------------------------


async def test_an_exception_in_an_asyncio_task_fails_its_own_link_only(caplog: pytest.LogCaptureFixture) -> None:
    async with WebRTCDialer(QUICK) as alice, WebRTCDialer(QUICK) as bob:
        link, _ = await connect(alice, bob)
        hit, _ = await connect(alice, bob)

        async def fail() -> None:  # noqa: ASYNC124  # as aiortc's are
            raise ZeroDivisionError("in a task of aiortc")

        below(hit).start_task(fail())
        with trio.fail_after(5), pytest.raises(LinkError, match="in a task of aiortc"):
            await hit.receive()
        loop_of(alice).create_task(fail())
        loop_of(alice).call_soon(lambda: 1 / 0)
        await link.send(b"still here")
        await trio.sleep(0.05)
        assert "in no link's name" in caplog.text
        await (await alice.offer(BOB)).aclose()


async def test_a_slow_receiver_slows_its_sender() -> None:
    async with linked(max_frame=64 * 1024) as (alice, bob):
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await alice.send(bytes(16 * 1024))
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1)
            stopped_at = sent * 16 * 1024
            await trio.sleep(0.3)
            assert sent * 16 * 1024 == stopped_at
            assert stopped_at < 2 * QUICK.receive_window
            assert bob.stats.unread_bytes <= QUICK.receive_window
            for _ in range(100):
                await bob.receive()
            await trio.sleep(0.3)
            assert sent * 16 * 1024 > stopped_at
            nursery.cancel_scope.cancel()


# --- what we rely on in trio-asyncio and aiortc -----------------------------------------------------------------------


async def test_this_trio_asyncio_and_this_aiortc_are_the_ones_we_know() -> None:
    assert aiortc_patch.lacks() == []
    async with linked() as links:
        for parts in map(below, links):
            assert type(parts.loop) is event_loop.FastLinkLoop
            assert type(parts.association) is sctp_patch.SctpTransport
            assert type(parts.ice) is ice_patch.IceConnection
            assert all(type(transport) is event_loop.DatagramTransport for transport in parts.carrier.sockets)


async def test_without_them_links_are_slower_but_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiortc_patch, "known", lambda: False)
    monkeypatch.setattr(event_loop, "can_take_over", lambda loop: False)
    async with linked() as (alice, bob):
        assert type(below(alice).loop) is event_loop.LinkLoop
        assert type(below(alice).association) is aiortc.RTCSctpTransport
        await alice.send(bytes(300_000))
        assert await bob.receive() == bytes(300_000)
        await alice.aclose()
        with pytest.raises(trio.EndOfChannel):
            await bob.receive()


async def test_the_window_is_capped() -> None:
    async with linked() as (alice, bob):
        for _ in range(400):
            await alice.send(bytes(16 * 1024))
            await bob.receive()
        assert below(alice).association.window <= 1024 * 1024


async def test_datagrams_are_taken_as_they_come_and_a_strangers_harm_nobody() -> None:
    async with linked() as (alice, bob):
        for link in (alice, bob):  # the handshake is over when aiortc looks at the first packet after it
            await link.send(b"first")
        assert [await alice.receive(), await bob.receive()] == [b"first", b"first"]
        waiting: list[bytes] = []
        below(bob).watch_queue(waiting.append)
        for number in range(50):
            await alice.send(b"%d" % number)
            assert await bob.receive() == b"%d" % number
        assert waiting == []
        address = next(iter(bob.carrier.sockets)).get_extra_info("sockname")
        with trio.socket.socket(
            trio.socket.AF_INET6 if ":" in address[0] else trio.socket.AF_INET, trio.socket.SOCK_DGRAM
        ) as stranger:
            for junk in (b"\x17", b"\x17\xfe\xfd" + bytes(40), bytes(range(20, 60))):
                await stranger.sendto(junk, address)
        await alice.send(b"still there")
        assert await bob.receive() == b"still there"
        assert waiting == []
        assert below(bob).loop.datagrams_dropped == 3, "a stranger's"


# --- the contract -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def contract_pair(config: LinkConfig = QUICK) -> AsyncGenerator[link_contract.Pair]:
    async with linked(config) as (left, right):

        def break_off() -> None:
            for link in (left, right):
                below(link).cut()

        yield link_contract.Pair(left, right, break_off)


@pytest.mark.parametrize("check", link_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(check: Callable[[link_contract.Connect], Awaitable[None]]) -> None:
    await check(contract_pair)


@asynccontextmanager
async def stun_server(seen_as: tuple[str, int]) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """Tells everybody who asks that this is the address they are seen at."""
    requests: list[bytes] = []
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))

    async def answer() -> None:
        while True:
            data, address = await sock.recvfrom(2048)
            requests.append(data)
            request = aioice.stun.parse_message(data)
            response = aioice.stun.Message(
                request.message_method, aioice.stun.Class.RESPONSE, transaction_id=request.transaction_id
            )
            response.attributes["XOR-MAPPED-ADDRESS"] = seen_as
            await sock.sendto(bytes(response), address)

    with sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            try:
                yield f"stun:127.0.0.1:{sock.getsockname()[1]}", requests
            finally:
                nursery.cancel_scope.cancel("enough")


async def test_a_stun_server_is_asked_and_what_it_says_is_offered() -> None:
    async with stun_server(("192.0.2.7", 4242)) as (url, requests):
        config = LinkConfig(ice_servers=(IceServer(urls=url),))
        async with WebRTCDialer(config) as dialer:
            with trio.fail_after(10):
                attempt = await dialer.offer(BOB)
            assert requests
            assert (
                IceCandidate(address=bytes([192, 0, 2, 7]), port=4242, kind="srflx") in attempt.description.candidates
            )
            await attempt.aclose()


async def test_a_stun_server_that_never_answers_does_not_keep_peers_apart() -> None:
    config = LinkConfig(ice_servers=("stun:127.0.0.1:9",))
    with trio.fail_after(20):
        async with WebRTCDialer(config) as alice, WebRTCDialer() as bob:
            ours, theirs = await connect(alice, bob)
            await ours.send(b"hello")
            assert await theirs.receive() == b"hello"


if __name__ == "__main__":
    trio.run(be_the_peer)
