"""Coroutines of asyncio that run at once, without a task, for as long as they need not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any


def start_now(coro: Coroutine[Any, Any, None], context: Context | None = None) -> None:
    """Run a coroutine here and now up to its first wait; from there it is a task.

    Most of aiortc's never wait, and a task for each packet costs as much as the packet does. What it raises goes where
    a callback's errors go. To be called from within the loop.
    """
    loop = asyncio.get_running_loop()
    asyncio.Handle(_start, (coro, loop), loop, context)._run()


def start_guarded(
    coro: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: Context,
    failed: Callable[[Exception], None],
) -> None:
    """As `start_now`, but what it raises is told to `failed`, and goes no further."""
    try:
        waits_for = context.run(coro.send, None)
    except StopIteration:
        return
    except Exception as error:
        failed(error)
        return
    context.run(loop.create_task, _guarded(coro, waits_for, failed))


async def _guarded(coro: Coroutine[Any, Any, None], waits_for: Any, failed: Callable[[Exception], None]) -> None:
    try:
        await _Rest(coro, waits_for)
    except Exception as error:
        failed(error)


def _start(coro: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    try:
        waits_for = coro.send(None)
    except StopIteration:
        return
    loop.create_task(_go_on(coro, waits_for))


async def _go_on(coro: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _Rest(coro, waits_for)


class _Rest(Generator[Any, Any, None]):
    """The rest of a coroutine that has begun, and waits for something."""

    def __init__(self, coro: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coro = coro
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def send(self, value: Any) -> Any:
        if self._waits_for is None:
            return self._coro.send(value)
        waits_for, self._waits_for = self._waits_for, None
        return waits_for

    def throw(self, *error: Any) -> Any:
        return self._coro.throw(*error)
