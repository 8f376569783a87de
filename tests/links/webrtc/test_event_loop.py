"""The asyncio loop on top of Trio: it keeps asyncio's promises, and its short cuts take nobody's turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import trio
import trio.testing
import trio_asyncio

from p2pmesh.links.webrtc import eager_coroutine, event_loop


async def test_the_loop_keeps_asyncios_promises() -> None:
    async with event_loop.open_link_loop() as loop:
        order: list[str] = []
        over = trio.Event()
        loop.call_later(0.02, order.append, "late")
        loop.call_later(0.01, order.append, "cancelled").cancel()
        loop.call_later(0.005, order.append, "soon")
        loop.call_soon(order.append, "first")
        loop.call_soon(order.append, "second")
        await trio.to_thread.run_sync(loop.call_soon_threadsafe, order.append, "from a thread")
        loop.call_later(0.03, over.set)
        await over.wait()
        assert order[:2] == ["first", "second"]
        assert sorted(order[2:]) == ["from a thread", "late", "soon"]
        assert order.index("soon") < order.index("late")
        assert await trio_asyncio.aio_as_trio(asyncio.sleep)(0.01, "slept") == "slept"
        with trio.move_on_after(0.02) as scope:
            await trio_asyncio.aio_as_trio(asyncio.sleep)(10)
        assert scope.cancelled_caught


async def test_what_is_called_at_once_takes_nobodys_turn() -> None:
    async with event_loop.open_link_loop() as loop:
        order: list[str] = []
        await trio.testing.wait_all_tasks_blocked()
        loop.call_now(lambda: loop.call_soon(order.append, "at once"))
        assert order == ["at once"]
        loop.call_soon(order.append, "in turn")
        loop.call_now(lambda: loop.call_soon(order.append, "after it"))
        assert order == ["at once"]
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["at once", "in turn", "after it"]


async def test_what_starts_now_runs_as_far_as_it_can_and_then_as_a_task() -> None:
    async with event_loop.open_link_loop() as loop:
        order: list[str] = []
        over = trio.Event()

        async def waits() -> None:
            order.append("begun")
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.sleep(10), 0.001)
            order.append("ended")
            over.set()

        loop.call_now(eager_coroutine.start_now, waits())
        assert order == ["begun"]
        await over.wait()
        assert order == ["begun", "ended"]


async def test_what_starts_now_and_fails_fails_its_owner_and_not_its_caller() -> None:
    class Connection:
        def __init__(self) -> None:
            self.tasks: set[Any] = set()
            self.sockets: set[Any] = set()
            self.errors: list[BaseException | None] = []

        def failed(self, error: BaseException | None, message: str) -> None:
            self.errors.append(error)

    async def fails() -> None:
        raise ValueError("at once")

    async with event_loop.open_link_loop() as loop:
        owner = Connection()
        token = event_loop.owner_of_context.set(owner)
        loop.call_now(eager_coroutine.start_now, fails())
        event_loop.owner_of_context.reset(token)
        assert [str(error) for error in owner.errors] == ["at once"]


async def test_many_cancelled_timers_are_forgotten() -> None:
    async with event_loop.open_link_loop() as loop:
        for _ in range(10_000):
            loop.call_later(1000, print).cancel()
        await trio_asyncio.aio_as_trio(asyncio.sleep)(0.001)
        assert isinstance(loop, event_loop.FastLinkLoop)
        assert loop.timers < 1000


async def parked_again(loop: event_loop.LinkLoop, seconds: float) -> int:
    """How often the loop's task goes back to sleep in this time."""
    assert isinstance(loop, event_loop.FastLinkLoop)
    await trio.sleep(0.01)
    parks, park = [], loop._park

    async def counted() -> None:
        parks.append(trio.current_time())
        await park()

    loop._park = counted  # type: ignore[method-assign]
    await trio.sleep(seconds)
    return len(parks)


async def test_a_timer_wakes_the_loop_once() -> None:
    async with event_loop.open_link_loop() as loop:
        fired: list[int] = []
        loop.call_later(0.05, fired.append, 1)
        loop.call_later(0.1, fired.append, 2)
        assert await parked_again(loop, 0.3) == 2
        assert fired == [1, 2]


async def test_nothing_wakes_for_a_cancelled_timer() -> None:
    async with event_loop.open_link_loop() as loop:
        last = loop.call_later(0.1, print)
        next_to_last = loop.call_later(0.05, print)
        kept = loop.call_later(60.0, print)
        last.cancel()
        next_to_last.cancel()
        assert await parked_again(loop, 0.3) == 0
        kept.cancel()
        assert loop.timers == 0  # type: ignore[attr-defined]
