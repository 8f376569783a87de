"""The simulated network keeps the contract of links, and can do what real networks do."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2pmesh.config import KIB, LinkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import AttemptFailed, Link, LinkError, LinkProtocolError, LinkTimedOut
from p2pmesh.links.session_link import SessionLink
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.simulation.full.network import SimDialer, SimNetwork
from p2pmesh.simulation.model.conditioner import Conditions, Constant
from p2pmesh.wire.messages import Description, IceCandidate
from tests.harness.link_contract import CHECKS, Connect, Pair, frame_of, receive_some, repeat, send_all

DEFAULTS = LinkConfig()
LEFT, RIGHT = PeerId("1" * 40), PeerId("2" * 40)


def remote(peer: PeerId, version: int = 1) -> RemotePeer:
    return RemotePeer(peer, True, version)


def network_of_two(seed: int = 1, *, latency: float = 0.010, **conditions: Any) -> SimNetwork:
    return SimNetwork(random.Random(seed), Conditions(latency=Constant(latency), jitter=0.0, **conditions))


async def open_pair(left: SimDialer, right: SimDialer, version: int = 1) -> tuple[Link, Link]:
    async with await left.offer(right.peer_id) as offer, await right.answer(left.peer_id, offer.description) as answer:
        await offer.feed(answer.description)
        return await offer.opened(remote(right.peer_id, version)), await answer.opened(remote(left.peer_id, version))


@asynccontextmanager
async def connected(
    network: SimNetwork, config: LinkConfig | None = None, version: int = 1
) -> AsyncGenerator[tuple[Link, Link]]:
    left, right = await open_pair(network.dialer(LEFT, config), network.dialer(RIGHT, config), version)
    async with left, right, trio.open_nursery() as nursery:
        await nursery.start(left.run)
        await nursery.start(right.run)
        try:
            yield left, right
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connect_sim(config: LinkConfig = DEFAULTS) -> AsyncGenerator[Pair]:
    async with network_of_two() as network:
        async with connected(network, config) as (left, right):
            yield Pair(left, right, lambda: network.break_link(LEFT, RIGHT))
        await trio.sleep(1)
        assert list(network.links()) == []
        assert network.attempts() == 0


@asynccontextmanager
async def connect_slow(config: LinkConfig = DEFAULTS) -> AsyncGenerator[Pair]:
    async with network_of_two(bandwidth=1024 * KIB) as network:
        async with connected(network, config) as (left, right):
            yield Pair(left, right, lambda: network.break_link(LEFT, RIGHT))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("connect", [connect_sim, connect_slow])
async def test_contract(
    check: Callable[[Connect], Awaitable[None]], connect: Connect, autojump_clock: MockClock
) -> None:
    await check(connect)


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_link_opens_after_some_round_trips_and_knows_its_peer(autojump_clock: MockClock) -> None:
    async with network_of_two(latency=0.1) as network:
        start = trio.current_time()
        left, right = await open_pair(network.dialer(LEFT), network.dialer(RIGHT))
        assert trio.current_time() - start == pytest.approx(0.7)
        assert (left.peer.peer_id, right.peer.peer_id) == (RIGHT, LEFT)
        assert list(network.links()) == [(LEFT, RIGHT), (RIGHT, LEFT)]
        await left.aclose()
        await right.aclose()


async def test_frames_that_arrive_before_the_receiver_has_its_link_are_kept(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        offer = await network.dialer(LEFT).offer(RIGHT)
        answer = await network.dialer(RIGHT).answer(LEFT, offer.description)
        await offer.feed(answer.description)
        left = await offer.opened(remote(RIGHT))
        await trio.sleep(5)
        right = await answer.opened(remote(LEFT))
        await left.send(b"early")
        assert await receive_some(right, 1) == [b"early"]
        await trio.aclose_forcefully(left)
        await trio.aclose_forcefully(right)


async def test_a_swapped_fingerprint_opens_nothing(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        offer = await network.dialer(LEFT).offer(RIGHT)
        stranger = await network.dialer(RIGHT).offer(LEFT)
        forged = msgspec.structs.replace(offer.description, fingerprints=stranger.description.fingerprints)
        answer = await network.dialer(RIGHT).answer(LEFT, forged)
        await offer.feed(answer.description)
        for attempt in (offer, answer):
            with pytest.raises(AttemptFailed, match="certificate"):
                await attempt.opened(remote(RIGHT))


async def test_an_offer_that_is_none_of_this_network_is_refused(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        offer = await network.dialer(LEFT).offer(RIGHT)
        broken = msgspec.structs.replace(offer.description, pwd="0" * 22)
        with pytest.raises(AttemptFailed, match="no description"):
            await network.dialer(RIGHT).answer(LEFT, broken)
        with pytest.raises(AttemptFailed, match="no description"):
            await offer.feed(msgspec.structs.replace(broken, role="active"))
        await offer.feed(IceCandidate(address=bytes(4), port=1))  # ignored
        await offer.aclose()
        assert network.attempts() == 0


async def test_an_attempt_across_a_partition_hangs_then_fails_unless_it_heals(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        network.partition([LEFT], [RIGHT])
        start = trio.current_time()
        with pytest.raises(AttemptFailed, match="no path"):
            await open_pair(network.dialer(LEFT), network.dialer(RIGHT))
        assert trio.current_time() - start > 25
        assert network.attempts() == 0
        async with trio.open_nursery() as nursery:

            async def heal_later() -> None:
                await trio.sleep(10)
                network.heal()

            nursery.start_soon(heal_later)
            for link in await open_pair(network.dialer(LEFT), network.dialer(RIGHT)):
                await trio.aclose_forcefully(link)


async def test_cancelling_at_any_instant_of_opening_leaves_nothing(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        for instant in range(60):
            with trio.move_on_after(instant / 1000):
                for link in await open_pair(network.dialer(LEFT), network.dialer(RIGHT)):
                    await trio.aclose_forcefully(link)
            await trio.sleep(1)
            assert network.attempts() == 0
            assert list(network.links()) == []


async def test_closing_a_dialer_ends_what_it_opened(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        async with network.dialer(LEFT) as dialer:
            left, right = await open_pair(dialer, network.dialer(RIGHT))
            waiting = await dialer.offer(RIGHT)
        for link in (left, right):
            with pytest.raises(LinkError, match="closed its dialer"):
                await link.receive()
            await link.aclose()
        with pytest.raises(AttemptFailed, match="dialer is closed"):
            await waiting.opened(remote(RIGHT))
        assert network.attempts() == 0
        assert list(network.links()) == []


async def test_descriptions_follow_from_the_seed(autojump_clock: MockClock) -> None:
    async def describe(seed: int) -> Description:
        async with network_of_two(seed) as network, await network.dialer(LEFT).offer(RIGHT) as offer:
            return offer.description

    assert await describe(7) == await describe(7)
    assert await describe(7) != await describe(8)


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_a_frozen_peer_times_out_after_five_seconds(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network) as (left, right):
        await trio.sleep(1000)
        await left.send(b"still there")
        assert await receive_some(right, 1) == [b"still there"]
        network.freeze(RIGHT)
        start = trio.current_time()
        with pytest.raises(LinkTimedOut) as caught:
            await left.receive()
        assert 1.3 < trio.current_time() - start < 5.1
        assert 4.3 <= caught.value.silent_for <= 5.1, "the wait for the first ping is jittered"
        with pytest.raises(LinkTimedOut):
            await left.send(b"")


async def test_a_peer_that_thaws_in_time_gets_all_that_was_sent(autojump_clock: MockClock) -> None:
    frames = [frame_of(n, 1000) for n in range(50)]
    async with network_of_two() as network, connected(network) as (left, right):
        await trio.sleep(1)
        network.freeze(RIGHT)
        await send_all(left, frames)
        await trio.sleep(2.5)
        network.thaw(RIGHT)
        assert await receive_some(right, len(frames)) == frames


async def test_whoever_watches_a_link_is_told_when_the_peer_falls_silent_and_when_it_speaks_again(
    autojump_clock: MockClock,
) -> None:
    told: list[tuple[float, bool]] = []
    async with network_of_two() as network, connected(network) as (left, right):
        await trio.sleep(1)
        start = trio.current_time()
        left.watch(lambda silent: told.append((round(trio.current_time() - start, 2), silent)))
        await left.send(b"hello")
        assert await receive_some(right, 1) == [b"hello"]
        await trio.sleep(1)
        assert not told, "an answer to a ping is enough"
        network.freeze(RIGHT)
        await left.send(b"are you there?")
        await trio.sleep(1.5)
        network.thaw(RIGHT)
        await trio.sleep(0.5)
        assert [silent for _, silent in told] == [True, False]
        assert 1.5 <= told[0][0] <= 2.0
        assert 2.5 <= told[1][0] <= 2.8
        network.freeze(RIGHT)
        with pytest.raises(LinkTimedOut):
            await left.receive()
        assert [silent for _, silent in told] == [True, False, True]


async def test_a_partition_holds_links_of_different_sides_only(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network) as (left, right):
        network.partition([LEFT, RIGHT])
        await left.send(b"same side")
        assert await receive_some(right, 1) == [b"same side"]
        network.partition([LEFT])
        with pytest.raises(LinkTimedOut):
            await left.receive()
        with pytest.raises(LinkTimedOut):
            await right.receive()


async def test_a_broken_link_says_why_after_what_had_arrived(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network) as (left, right):
        await left.send(b"arrived")
        await trio.sleep(1)
        network.break_link(RIGHT, LEFT, "a mouse bit the wire")
        assert await right.receive() == b"arrived"
        for link in (left, right):
            with pytest.raises(LinkError, match="a mouse bit the wire"):
                await link.receive()


async def test_closing_towards_a_frozen_peer_takes_no_longer_than_its_timeout(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network) as (left, _):
        network.freeze(RIGHT)
        start = trio.current_time()
        await left.aclose()
        assert trio.current_time() - start == pytest.approx(DEFAULTS.close_timeout)


async def test_garbage_from_a_peer_fails_the_link(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network) as (left, right):
        assert isinstance(left, SessionLink)
        assert isinstance(right, SessionLink)
        right.carrier.send_packet(b"\xff\xff\xff\xff")
        with pytest.raises(LinkProtocolError, match="unknown kind 255"):
            await left.receive()
        left.packet_received(b"more")  # harmless
        left.drained()
        left.carrier_closed(None)
        with pytest.raises(LinkProtocolError):
            await left.send(b"")


async def test_bandwidth_bounds_the_rate(autojump_clock: MockClock) -> None:
    async with network_of_two(bandwidth=100 * KIB) as network, connected(network) as (left, right):
        frames = [bytes(10 * KIB)] * 100
        async with trio.open_nursery() as nursery:
            start = trio.current_time()
            nursery.start_soon(send_all, left, frames)
            with trio.fail_after(60):
                for _ in frames:
                    await right.receive()
        assert trio.current_time() - start == pytest.approx(10, rel=0.1)


async def test_a_very_slow_line_is_not_taken_for_a_dead_peer(autojump_clock: MockClock) -> None:
    async with network_of_two(bandwidth=8 * KIB) as network, connected(network) as (left, right):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, left, [bytes(1000)] * 1000)
            with trio.fail_after(600):
                for _ in range(1000):
                    await right.receive()


async def test_loss_on_a_reliable_link_is_delay_and_nothing_else(autojump_clock: MockClock) -> None:
    frames = [frame_of(n, 500) for n in range(200)]
    async with network_of_two(loss=0.2) as network, connected(network) as (left, right):
        async with trio.open_nursery() as nursery:
            start = trio.current_time()
            nursery.start_soon(send_all, left, frames)
            assert await receive_some(right, len(frames)) == frames
            assert trio.current_time() - start > 0.2


@pytest.mark.parametrize("evil", [{"corrupt": 0.2}, {"duplicate": 0.2}, {"reliable": False, "loss": 0.2}])
async def test_what_no_carrier_may_do_ends_the_link_or_is_waited_for_in_vain(
    autojump_clock: MockClock, evil: dict[str, Any]
) -> None:
    async with network_of_two(**evil) as network, connected(network) as (left, right):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_some, left, 300)
            with trio.move_on_after(60), pytest.raises((LinkError, trio.EndOfChannel)):
                await repeat(right.receive)
            assert right.stats.frames_received < 300
            nursery.cancel_scope.cancel()


async def send_some(link: Link, count: int) -> None:
    with suppress(LinkError):
        await send_all(link, [bytes(20_000)] * count)


async def test_a_link_that_breaks_by_itself_says_so_on_both_sides(autojump_clock: MockClock) -> None:
    async with network_of_two(breaks=0.05) as network, connected(network) as (left, right):
        await send_some(left, 300)
        for link in (left, right):
            with pytest.raises(LinkError, match="the connection broke"):
                await repeat(link.receive)


async def test_a_link_that_breaks_before_the_other_side_has_it_opens_there_never(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        offer = await network.dialer(LEFT).offer(RIGHT)
        answer = await network.dialer(RIGHT).answer(LEFT, offer.description)
        await offer.feed(answer.description)
        left = await offer.opened(remote(RIGHT))
        network.break_link(LEFT, RIGHT)
        with pytest.raises(AttemptFailed, match="while it opened"):
            await answer.opened(remote(LEFT))
        assert list(network.links()) == []
        await left.aclose()


async def test_conditions_of_one_peer_can_change_while_its_links_are_open(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network) as (left, right):
        for conditions, takes in ((Conditions(latency=Constant(0.5), jitter=0.0), 0.5), (None, 0.01)):
            network.condition(LEFT, conditions)
            await trio.sleep(1)
            start = trio.current_time()
            await left.send(b"x")
            await right.receive()
            assert trio.current_time() - start == pytest.approx(takes)


async def test_a_crashed_peer_falls_silent_and_its_own_links_are_gone(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, network.dialer(LEFT) as dialer:
        left, right = await open_pair(dialer, network.dialer(RIGHT))
        async with left, right, trio.open_nursery() as nursery:
            await nursery.start(right.run)
            start = trio.current_time()
            dialer.crash()
            with pytest.raises(LinkError, match="crashed"):
                await left.receive()
            assert trio.current_time() == start
            with pytest.raises(AttemptFailed, match="crashed"):
                await dialer.offer(RIGHT)
            with pytest.raises(LinkTimedOut):
                await right.receive()


async def test_symmetric_nats_reach_open_peers_only(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        for nat, other, opens in (("symmetric", "open", True), ("symmetric", "cone", False), ("cone", "cone", True)):
            network.reachability.behind(LEFT, nat)  # type: ignore[arg-type]
            network.reachability.behind(RIGHT, other)  # type: ignore[arg-type]
            assert network.reachability.can_link(LEFT, RIGHT) is opens


# --- the rest of a link's life ----------------------------------------------------------------------------------------


async def test_a_small_frame_held_back_for_company_leaves_in_time(autojump_clock: MockClock) -> None:
    async with network_of_two(latency=0.1) as network, connected(network) as (left, right):
        await trio.sleep(1)
        start = trio.current_time()
        before = right.stats.packets_received
        await send_all(left, [b"at once", b"held", b"held"])
        assert await right.receive() == b"at once"
        assert trio.current_time() - start == pytest.approx(0.1)
        assert await receive_some(right, 2) == [b"held", b"held"]
        assert trio.current_time() - start == pytest.approx(0.1 + DEFAULTS.coalesce_delay)
        assert right.stats.packets_received == before + 2


async def test_a_link_works_though_nobody_runs_it(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        left, right = await open_pair(network.dialer(LEFT), network.dialer(RIGHT))
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(send_all, left, [frame_of(n, 50) for n in range(500)])
            assert await receive_some(right, 500) == [frame_of(n, 50) for n in range(500)]


async def test_run_ends_with_the_link(autojump_clock: MockClock) -> None:
    async with network_of_two() as network:
        left, right = await open_pair(network.dialer(LEFT), network.dialer(RIGHT))
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.run)
                nursery.start_soon(right.run)
                await left.aclose()
        await right.aclose()


async def test_a_link_to_an_originals_peer_carries_text_and_pings_nobody(autojump_clock: MockClock) -> None:
    async with network_of_two() as network, connected(network, version=0) as (left, right):
        await send_all(left, [b'{"n":1}', b'{"n":2}'])
        assert await receive_some(right, 2) == [b'{"n":1}', b'{"n":2}']
        assert right.stats.packets_received == right.stats.frames_received == 2
        await trio.sleep(100)
        assert left.stats.pings_sent == 0
        with pytest.raises(ValueError, match="at most 262144"):
            await left.send(bytes(262_145))
        await left.send(b"goodbye")
        await left.aclose()
        assert await right.receive() == b"goodbye"
        with pytest.raises(trio.EndOfChannel):
            await right.receive()


async def test_memory_stays_flat_while_much_is_sent(autojump_clock: MockClock) -> None:
    peak = 0
    async with network_of_two() as network, connected(network) as (left, right):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, left, [bytes(256 * KIB)] * 128)
            for _ in range(128):
                await trio.sleep(0.01)
                await right.receive()
                peak = max(peak, right.stats.unread_bytes + left.stats.queued_bytes)
    assert peak < DEFAULTS.receive_window + 512 * KIB
