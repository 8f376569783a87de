"""The driver, the calls and the bus, each on its own."""

import gc
import itertools
import math
import random
import weakref
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from p2pmesh.config import SignalingConfig
from p2pmesh.errors import ConfigError, LocalProtocolError, MeshClosed, PeerUnreachable, TransportError
from p2pmesh.events import Lagged, MessageReceived, PeerFailed
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Reply
from p2pmesh.protocols.inputs import (
    CancelCall,
    Leave,
    LinkDown,
    LinkLost,
    PeerGone,
    PeersFound,
    ServiceDown,
    ServiceUp,
    Signaled,
)
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.receipts import Delivered, OpenReceipts
from p2pmesh.runtime.bus import Bus
from p2pmesh.runtime.calls import Calls
from p2pmesh.runtime.driver import MAX_NOTICES, Driver
from p2pmesh.runtime.services import Service
from p2pmesh.runtime.supervisor import Retry, supervise
from p2pmesh.transports.transport import Transport
from p2pmesh.wire.signaling import Leave as SignalingLeave
from p2pmesh.wire.signaling import ServiceError

PEER = PeerId("a" * 40)


class Recorder:
    """A core that remembers what it was given."""

    def __init__(self, deadline=math.inf):
        self.seen = []
        self.expired = []
        self.deadline = deadline

    def handle(self, event, now):
        self.seen.append(event)
        return [event]

    def next_deadline(self):
        return self.deadline

    def expire(self, now):
        self.expired.append(now)
        self.deadline = math.inf
        return []

    def snapshot(self):
        return {"seen": len(self.seen)}


async def test_a_driver_handles_puts_in_order_and_dispatches_effects(nursery):
    core, done = Recorder(), []
    driver = Driver(core, done.extend, inbox_size=2)
    await nursery.start(driver.run)
    for n in range(5):
        await driver.put(n)
    await trio.testing.wait_all_tasks_blocked()
    assert core.seen == done == [0, 1, 2, 3, 4]


async def test_putting_waits_while_the_inbox_is_full():
    driver = Driver(Recorder(), lambda effects: None, inbox_size=1)
    await driver.put(1)
    with trio.move_on_after(0) as scope:
        await driver.put(2)
    assert scope.cancelled_caught


async def test_posting_never_waits_and_comes_before_what_is_queued(nursery):
    core = Recorder()
    driver = Driver(core, lambda effects: None, inbox_size=1)
    await driver.put("queued")
    driver.post("posted")
    await nursery.start(driver.run)
    await trio.testing.wait_all_tasks_blocked()
    assert core.seen == ["posted", "queued"]


async def test_what_waits_in_an_inbox_is_handled_before_anything_is_flushed(nursery):
    done = []
    driver = Driver(Recorder(), done.extend, inbox_size=10, flush=lambda: done.append("flush"))
    for n in range(5):
        assert driver.put_nowait(n)
    await nursery.start(driver.run)
    await trio.testing.wait_all_tasks_blocked()
    assert done == [0, 1, 2, 3, 4, "flush"]


async def test_a_driver_that_is_full_takes_nothing_at_once():
    driver = Driver(Recorder(), lambda effects: None, inbox_size=1)
    assert driver.put_nowait(1)
    assert not driver.put_nowait(2)


async def test_a_driver_expires_its_core_at_the_deadline_and_not_before(autojump_clock, nursery):
    core = Recorder(deadline=trio.current_time() + 5)
    driver = Driver(core, lambda effects: None, inbox_size=1)
    await nursery.start(driver.run)
    await trio.sleep(4.9)
    assert not core.expired
    await trio.sleep(0.2)
    assert core.expired == [pytest.approx(5, abs=0.01)]


async def test_notices_are_bounded_but_changes_of_state_always_get_in(nursery):
    core = Recorder()
    driver = Driver(core, lambda effects: None, inbox_size=1)
    for _ in range(MAX_NOTICES + 10):
        driver.post(PeerGone(PEER))
    changes = [LinkDown(PEER, "gone"), LinkLost(PEER, "no"), ServiceDown("one", "cut"), CancelCall(1), Leave()]
    for change in changes:
        driver.post(change)
    assert driver.snapshot()["inbox"]["dropped"] == 10
    await nursery.start(driver.run)
    await driver.caught_up()
    assert core.seen == [PeerGone(PEER)] * MAX_NOTICES + changes


async def test_a_bug_in_a_subsystem_names_it():
    async def broken(*, task_status):
        task_status.started()
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await supervise("gossip", broken)
    assert caught.value.__notes__ == ["in p2pmesh subsystem 'gossip'"]


async def test_retries_back_off_and_start_over_after_a_success(autojump_clock):
    retry = Retry(Backoff(first=1, cap=8), random.Random(1))

    async def waited(**options):
        start = trio.current_time()
        await retry.wait(**options)
        return trio.current_time() - start

    for ceiling in (1, 2, 4, 8, 8):
        assert ceiling / 2 <= await waited() <= ceiling
    retry.succeeded()
    assert await waited() <= 1
    assert 4 <= await waited(refused=True) <= 8


async def test_calls_get_their_replies_and_errors(nursery):
    calls = Calls()

    def effects(commands):
        for call, answer in commands:
            calls.resolve(Reply(call, error=answer) if isinstance(answer, Exception) else Reply(call, value=answer))

    driver = Driver(Recorder(), effects, inbox_size=0)
    await nursery.start(driver.run)
    assert await calls.make(driver, lambda call: (call, "done")) == "done"
    assert await calls.make(driver, lambda call: (call, 3), lambda value: value + 1) == 4
    with pytest.raises(PeerUnreachable, match="far away"):
        await calls.make(driver, lambda call: (call, PeerUnreachable("far away")))


async def test_a_cancelled_call_is_forgotten(nursery):
    core, calls = Recorder(), Calls()
    driver = Driver(core, lambda effects: None, inbox_size=1)
    await nursery.start(driver.run)
    with trio.move_on_after(0.01):
        await calls.make(driver, lambda call: ("command", call))
    await trio.testing.wait_all_tasks_blocked()
    assert core.seen == [("command", 1), CancelCall(1)]
    calls.resolve(Reply(1, value="too late"))


async def test_a_call_that_is_cancelled_before_its_turn_never_happens(nursery):
    core, calls = Recorder(), Calls()
    driver = Driver(core, lambda effects: None, inbox_size=1)
    with trio.move_on_after(0.01):
        await calls.make(driver, lambda call: ("command", call))
    await nursery.start(driver.run)
    await trio.testing.wait_all_tasks_blocked()
    assert core.seen == [CancelCall(1)]


async def test_a_call_that_is_done_does_not_end_as_cancelled(nursery):
    calls = Calls()
    outer = trio.CancelScope()

    def effects(commands):
        for call in commands:
            calls.resolve(Reply(call, value="done"))
            outer.cancel("too late")

    driver = Driver(Recorder(), effects, inbox_size=1)
    await nursery.start(driver.run)
    answers = []
    with outer:
        answers.append(await calls.make(driver, lambda call: call))
    assert answers == ["done"]


async def test_calls_that_wait_for_room_end_with_the_mesh(nursery):
    calls = Calls()
    driver = Driver(Recorder(), lambda effects: None, inbox_size=1)  # nobody runs it any more
    closed = []

    async def waiting():
        with pytest.raises(MeshClosed):
            await calls.make(driver, lambda call: call)
        closed.append(True)

    for _ in range(3):
        nursery.start_soon(waiting)
    await trio.testing.wait_all_tasks_blocked()
    assert driver.snapshot()["inbox"]["senders_waiting"] == 2
    calls.close()
    await trio.testing.wait_all_tasks_blocked()
    assert len(closed) == 3


async def test_a_driver_has_caught_up_once_all_that_was_posted_is_handled(nursery):
    core = Recorder()
    driver = Driver(core, lambda effects: None, inbox_size=1)
    await driver.caught_up()
    driver.post("posted")
    await nursery.start(driver.run)
    await driver.caught_up()
    assert core.seen == ["posted"]


async def test_calls_end_with_the_mesh(nursery):
    calls = Calls()
    driver = Driver(Recorder(), lambda effects: None, inbox_size=1)

    async def waiting():
        with pytest.raises(MeshClosed):
            await calls.make(driver, lambda call: call)

    nursery.start_soon(waiting)
    await trio.testing.wait_all_tasks_blocked()
    calls.close()
    with pytest.raises(MeshClosed):
        await calls.make(driver, lambda call: call)


def message(topic, n):
    return MessageReceived(topic, n, PEER, str(n), 0.0, 1, True)


async def test_subscribers_get_what_they_want_and_no_more():
    bus = Bus()
    with bus.messages(MessageReceived, lambda m: m.topic == "a", 10, "a") as only_a, bus.events(10) as everything:
        bus.publish(message("a", 1))
        bus.publish(message("b", 2))
        bus.publish(PeerFailed(PEER, "no"))
        bus.close()
        assert [m.payload async for m in only_a] == [1]
        assert len([event async for event in everything]) == 3


async def test_a_slow_event_stream_loses_its_oldest_and_is_told_in_place():
    bus = Bus()
    with bus.events(2) as events:
        for n in range(5):
            bus.publish(PeersFound((), str(n)))
        assert events.missed == 3
        assert await events.receive() == Lagged(3)
        assert [(await events.receive()).source for _ in range(2)] == ["3", "4"]


async def test_a_slow_subscription_is_counted_and_told_to_event_streams():
    bus = Bus()
    with bus.messages(MessageReceived, lambda m: True, 2, None) as messages, bus.events(10) as events:
        for n in range(5):
            bus.publish(message("t", n))
        assert [(await messages.receive()).payload for _ in range(2)] == [3, 4]
        assert messages.missed == 3
        bus.close()
        assert Lagged(3) in [event async for event in events]


async def test_a_closed_subscription_wakes_its_reader():
    bus = Bus()
    with bus.events(1) as events:
        async with trio.open_nursery() as nursery:

            async def read():
                with pytest.raises(trio.ClosedResourceError):
                    await events.receive()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await events.aclose()


async def test_readers_that_share_a_stream_get_each_item_once(nursery):
    bus = Bus()
    with bus.events(10) as events:
        got = []

        async def read():
            got.extend([event async for event in events])

        for n in range(2):
            bus.publish(PeersFound((), str(n)))
        for _ in range(4):
            nursery.start_soon(read)
        for n in range(2, 30):
            bus.publish(PeersFound((), str(n)))
            await trio.lowlevel.checkpoint()
        bus.close()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(int(event.source) for event in got) == list(range(30))


async def test_receive_is_a_checkpoint_on_every_path():
    bus = Bus()
    with bus.events(2) as events:
        bus.publish(PeerFailed(PEER, "no"))
        with trio.testing.assert_checkpoints():
            await events.receive()
        bus.publish(PeerFailed(PEER, "no"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await events.receive()
        assert scope.cancelled_caught
        assert events.receive_nowait() == PeerFailed(PEER, "no")  # the cancelled receive took nothing
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


def test_a_subscription_needs_room():
    with pytest.raises(ConfigError, match="1 or more"), Bus().events(0):
        pass


class Brusque(Transport):
    """A service that says one thing and hangs up."""

    name = "brusque"

    @asynccontextmanager
    async def connect(self):
        sender, receiver = trio.open_memory_channel(1)
        sender.send_nowait(ServiceError(message="go away", code="full"))
        sender.close()
        yield receiver


async def test_what_a_service_says_before_it_hangs_up_comes_before_its_end(autojump_clock, nursery):
    told = []

    async def deliver(event):
        await trio.sleep(1)  # the core is behind
        told.append(event)

    service = Service(Brusque(), SignalingConfig(), random.Random(1), deliver, lambda address: None)
    nursery.start_soon(service.run)
    await trio.sleep(3.2)
    assert [type(event) for event in told] == [ServiceUp, Signaled, ServiceDown]
    nursery.cancel_scope.cancel()


class Deaf(Transport):
    """A service that reads and says nothing, and waits for a goodbye unless it is told that there is none."""

    name = "deaf"

    def __init__(self):
        self.opened = []
        self.is_aborted = trio.Event()

    @asynccontextmanager
    async def connect(self):
        self.opened.append(trio.current_time())
        self.is_aborted = trio.Event()
        try:
            yield self
        finally:
            with trio.move_on_after(1, shield=True):
                await self.is_aborted.wait()

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.sleep_forever()

    def abort(self):
        self.is_aborted.set()


class Unreachable(Deaf):
    """The same, that can't be reached anew, and speaks again after a while."""

    @asynccontextmanager
    async def connect(self):
        if self.opened:
            self.opened.append(trio.current_time())
            raise TransportError("no route")
        async with super().connect() as connection:
            yield connection

    async def __anext__(self):
        await trio.sleep_until(20)
        if len(self.opened) > 20:
            await trio.sleep_forever()
        self.opened += [0.0] * 20
        return ServiceError(message="here I am")


async def test_a_connection_that_may_be_dead_is_kept_while_there_is_no_other(autojump_clock, nursery):
    told, transport = [], Unreachable()

    async def deliver(event):
        told.append(event)

    service = Service(transport, SignalingConfig(), random.Random(1), deliver, lambda address: None)
    nursery.start_soon(service.run)
    await trio.sleep(10)
    service.reopen()
    service.reopen()
    await trio.sleep(30)
    assert [type(event) for event in told] == [ServiceUp, Signaled]
    assert 5 < len([at for at in transport.opened if at]) <= 12
    nursery.cancel_scope.cancel()


async def test_a_connection_that_is_dead_is_opened_anew_at_once(autojump_clock, nursery):
    told, transport = [], Deaf()

    async def deliver(event):
        told.append(event)

    service = Service(transport, SignalingConfig(), random.Random(1), deliver, lambda address: None)
    nursery.start_soon(service.run)
    await trio.sleep(10)
    now = trio.current_time()
    service.reopen()
    await trio.sleep(5)
    assert transport.opened[1:] == [now, now], "to see whether that works, and then in its place"
    assert [type(event) for event in told] == [ServiceUp, ServiceDown, ServiceUp]
    assert "does not answer" in told[1].reason
    nursery.cancel_scope.cancel()


class Slow(Transport):
    """A service that takes a second for each message."""

    name = "slow"

    @asynccontextmanager
    async def connect(self):
        yield self

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.sleep_forever()

    async def send(self, message):
        await trio.sleep(1)


async def test_a_service_is_drained_for_all_who_wait_once_its_outbox_is_written(autojump_clock, nursery):
    async def deliver(event):
        pass

    service = Service(Slow(), SignalingConfig(outbox=2), random.Random(1), deliver, lambda address: None)
    nursery.start_soon(service.run)
    await trio.sleep(0.1)
    await service.drained()
    for _ in range(5):  # one is being written, two wait
        service.send(SignalingLeave(peer_id=PEER))
    assert service.snapshot()["dropped"] == 2
    drained = []

    async def wait():
        await service.drained()
        drained.append(trio.current_time())

    nursery.start_soon(wait)
    nursery.start_soon(wait)
    await trio.sleep(5)
    assert len(drained) == 2
    assert drained == [pytest.approx(3.1, abs=0.05)] * 2
    assert service.snapshot()["sent"] == 3
    nursery.cancel_scope.cancel()


def test_timers_fire_in_order_once_and_can_be_moved():
    timers = Timers()
    timers.set("b", 2.0)
    timers.set("a", 1.0)
    timers.set("c", 3.0)
    timers.set("c", 0.5)
    timers.cancel("b")
    assert timers.next_deadline() == 0.5
    assert timers.pop_due(1.0) == ["c", "a"]
    assert timers.next_deadline() == math.inf
    assert not timers


def test_timers_that_are_moved_over_and_over_take_no_more_room():
    timers = Timers()
    for n in range(10_000):
        timers.set(n % 3, float(n))
    assert len(timers._heap) <= 65


async def test_a_receipt_s_slow_reader_gets_the_newest_counts():
    receipts = OpenReceipts()
    receipt = receipts.new("id", "t", enabled=True)
    async with receipt.updates() as updates:
        for count in range(1, 100):
            receipts.progress("id", count)
        receipts.settle("id", Delivered(99, 1.0))
        receipts.close()
        counts = [count async for count in updates]
    assert counts == list(range(100 - len(counts), 100))
    assert 1 <= len(counts) <= 64
    assert await receipt.settled() == Delivered(99, 1.0)


async def test_a_receipt_that_is_undecided_in_the_end_says_that_the_mesh_is_closed(nursery):
    receipts = OpenReceipts()
    receipt, silent = receipts.new("id", "t", enabled=True), receipts.new("silent", "t", enabled=False)
    receipts.progress("id", 2)

    @nursery.start_soon
    async def wait():
        with pytest.raises(MeshClosed):
            await receipt.settled()

    await trio.testing.wait_all_tasks_blocked()
    receipts.close()
    with pytest.raises(MeshClosed):
        await receipt.settled()
    async with receipt.updates() as updates:
        assert [count async for count in updates] == [2]
    with pytest.raises(LocalProtocolError):
        await silent.settled()


def test_a_receipt_that_nobody_holds_is_forgotten():
    receipts = OpenReceipts()
    receipt = receipts.new("id", "t", enabled=True)
    gone = weakref.ref(receipt)
    del receipt
    gc.collect()
    assert gone() is None
    receipts.progress("id", 1)
    receipts.settle("id", Delivered(1, 1.0))
    receipts.close()


async def test_a_service_that_ends_each_connection_at_once_is_not_asked_in_a_hurry(autojump_clock, nursery):
    asked = []

    async def deliver(event):
        if isinstance(event, ServiceUp):
            asked.append(trio.current_time())

    service = Service(
        Brusque(), SignalingConfig(retry_first=1.0, retry_cap=8.0), random.Random(1), deliver, lambda address: None
    )
    nursery.start_soon(service.run)
    await trio.sleep(60)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[0] <= 1
    assert all(4 <= gap <= 8 for gap in gaps[3:])
    nursery.cancel_scope.cancel()
