"""Ordered subscriptions, and those that ask for history: what waits, for how long, and who hears of it."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from p2pmesh.config import SubscriptionConfig
from p2pmesh.errors import ConfigError
from p2pmesh.events import Event, Lagged, MessageReceived, MessagesSkipped
from p2pmesh.keyspace import PeerId
from p2pmesh.runtime.bus import Bus
from p2pmesh.runtime.ordered import OrderedSubscription
from tests.harness.cluster import Cluster, linked

ALICE = PeerId("a" * 40)
CONFIG = SubscriptionConfig(patience=5.0, start=0.5)


def said(number: int) -> MessageReceived:
    return MessageReceived("chat", number, ALICE, str(number), 0.0, 1, True, series=1, sequence=number)


class Listening:
    """A bus with one ordered subscription, and what was told besides."""

    def __init__(self, capacity: int = 10) -> None:
        self.bus = Bus()
        self.told: list[Event] = []
        self.bus.tap(self.told.append)
        self.stream = OrderedSubscription(
            capacity, CONFIG, lambda missed: self.bus.publish(Lagged(missed, "chat")), self.bus.publish
        )

    def attach(self):
        return self.bus.attach(self.stream, lambda event: isinstance(event, MessageReceived))

    def hear(self, *numbers: int) -> None:
        for number in numbers:
            self.bus.publish(said(number))

    def skipped(self) -> list[Event]:
        return [event for event in self.told if isinstance(event, MessagesSkipped)]


async def test_a_reader_gets_what_was_sent_in_its_order():
    listening = Listening()
    with listening.attach():
        listening.hear(1, 4, 3, 2)
        assert [(await listening.stream.receive()).payload for _ in range(4)] == [1, 2, 3, 4]
        assert listening.stream.skipped == 0


async def test_a_reader_that_waits_gets_what_follows_a_gap_when_patience_ends(autojump_clock):
    listening = Listening()
    with listening.attach():
        async with trio.open_nursery() as nursery:

            async def speak():
                await trio.sleep(1)
                listening.hear(1, 3)

            nursery.start_soon(speak)
            assert (await listening.stream.receive()).payload == 1
            assert (await listening.stream.receive()).payload == 3
        assert trio.current_time() == pytest.approx(6, abs=0.01)
        assert listening.stream.skipped == 1
        assert listening.skipped() == [MessagesSkipped(ALICE, "chat", 1)]


async def test_who_looks_without_waiting_gets_what_has_waited_long_enough(autojump_clock):
    listening = Listening()
    with listening.attach():
        listening.hear(1, 3)
        assert listening.stream.receive_nowait().payload == 1
        with pytest.raises(trio.WouldBlock):
            listening.stream.receive_nowait()
        await trio.sleep(5)
        assert listening.stream.receive_nowait().payload == 3


async def test_tasks_that_share_a_stream_all_get_what_was_held_back(autojump_clock):
    listening = Listening()
    with listening.attach():
        got = []

        async def read():
            got.append((await listening.stream.receive()).payload)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            listening.hear(1, 3)
            await trio.sleep(1)
            listening.hear(5)
        assert sorted(got) == [1, 3, 5]
        assert trio.current_time() == pytest.approx(6, abs=0.01)


async def test_at_the_end_what_is_held_back_is_delivered_and_a_slow_reader_is_told():
    listening = Listening(capacity=2)
    with listening.attach():
        listening.hear(1, 2, 3, 5)
        listening.bus.close()
        assert [message.payload async for message in listening.stream] == [3, 5]
        assert listening.stream.missed == 2
        assert Lagged(2, "chat") in listening.told


async def test_an_ordered_subscription_of_a_mesh(autojump_clock):
    async with Cluster() as world:
        alice, bob = await world.join(2)
        await linked(alice, bob)
        async with bob.subscribe("t", ordered=True) as ordered, bob.subscribe() as everything:
            for number in range(5):
                await alice.broadcast("t", number)
                await alice.broadcast("other", number)
            with trio.fail_after(10):
                got = [await ordered.receive() for _ in range(5)]
                await everything.receive()
        assert [message.payload for message in got] == list(range(5))
        assert [message.sequence for message in got] == [1, 2, 3, 4, 5]
        assert len({message.series for message in got}) == 1


async def test_a_newcomer_gets_history_where_it_asks_for_it(autojump_clock):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        await alice.broadcast("t", "early", ttl=120)
        await trio.sleep(20)
        async with world.peer(2) as bob, bob.subscribe("t", history=60) as past, bob.subscribe("t") as present:
            await linked(alice, bob)
            with trio.fail_after(20):
                assert (await past.receive()).payload == "early"
            await alice.broadcast("t", "now")
            with trio.fail_after(20):
                assert (await past.receive()).payload == "now"
                assert (await present.receive()).payload == "now"


@pytest.mark.parametrize("history", [-1, math.inf, math.nan, "all"])
async def test_history_is_a_number_of_seconds(autojump_clock, history):
    async with Cluster() as world:
        (alice,) = await world.join(1)
        with pytest.raises(ConfigError, match="history must be a number"):
            async with alice.subscribe("t", history=history):
                pass
