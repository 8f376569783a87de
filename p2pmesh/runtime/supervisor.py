"""How the tasks of a mesh end: what is ours crashes loudly, what the network breaks is tried again.

An exception that leaves a subsystem is a bug of this library: it gets a note with the subsystem's name and leaves
`open_mesh`. Links and signaling services fail all the time; `Retry` paces how they are tried again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from p2pmesh.protocols.util.timers import Backoff


async def supervise(  # noqa: ASYNC128  # the task that it runs does
    name: str,
    task: Callable[..., Awaitable[None]],
    *args: object,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a subsystem's task; an exception that leaves it gets a note with its name."""
    try:
        await task(*args, task_status=task_status)
    except Exception as error:
        error.add_note(f"in p2pmesh subsystem {name!r}")
        raise


class Retry:
    """Paces attempts at something that fails: jittered, doubling, starting over after a success."""

    def __init__(self, backoff: Backoff, rng: random.Random) -> None:
        self._backoff = backoff
        self._rng = rng
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    async def wait(self, *, refused: bool = False) -> None:
        """Wait after a failure; the longest wait at once if there is no hope in hurrying."""
        self._failures = max(self._failures + 1, 64 if refused else 1)
        await trio.sleep(self._backoff.delay(self._failures, self._rng))
