"""The loop that drives one core: wait for "an input, or the core's deadline", let the core decide, carry it out.

The core's state belongs to this task alone. Inputs come in two ways. *Upwards*, from the network and the application,
`put` waits while the inbox is full: that is the backpressure. *Sideways*, from other cores and from the link keeper,
`post` never waits: two bounded queues that wait for each other would stop the mesh.

A driver knows when its core wanted to be woken, and so how late this process is: it notes that in `LocalHealth`, which
all that waits for other peers goes by.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import trio
from attrs import frozen

from p2pmesh.links.link import local_health
from p2pmesh.protocols.core import Core, Effects
from p2pmesh.protocols.inputs import (
    CancelCall,
    InboxRead,
    Leave,
    LinkDown,
    LinkLost,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    ServiceDown,
    ServiceUp,
)
from p2pmesh.protocols.notices import Input

MAX_NOTICES = 4096
"""Posted inputs that may wait. A core runs as often as those that post to it, so only a bug or a starved process comes
near. Beyond it inputs are dropped and counted, but never `STATE_CHANGES`. The outcome of a route may be among them, so
each core that waits for one has a time-out of its own (`CallTable`, `LOST_AFTER`)."""
STATE_CHANGES = (
    LinkUp,
    LinkDown,
    LinkSuspected,
    LinkRecovered,
    LinkLost,
    ServiceUp,
    ServiceDown,
    CancelCall,
    InboxRead,
    Leave,
)
"""Inputs without which a core would hold for true what no longer is. As few as links, services and calls."""
BURST = 32
"""Inputs handled before other tasks get their turn: a scheduler round trip for each would cost as much as the core."""


class _Wake:
    """In the inbox: look at the notices."""


@frozen
class _Request:
    """In the inbox: an input that its sender may take back while it waits."""

    event: Input
    is_wanted: Callable[[], bool]
    failed: Callable[[Exception], None]


_WAKE: Final = _Wake()
_Item: TypeAlias = Input | _Request | _Wake
Dispatch: TypeAlias = Callable[[Effects], None]


class Driver:
    """Owns a core. `run` is its task; `put` and `post` are its doors."""

    def __init__(
        self, core: Core, dispatch: Dispatch, inbox_size: int, flush: Callable[[], None] = lambda: None
    ) -> None:
        self._core = core
        self._dispatch = dispatch
        self._flush = flush  # called after all that was handled at once
        self._health = local_health()
        self._due = math.inf  # when something was to be done, as we saw it last
        self._notices: deque[Input] = deque()
        self._behind = trio.lowlevel.ParkingLot()
        self._is_running = False
        self._sender, self._receiver = trio.open_memory_channel[_Item](inbox_size)
        self._handled = 0
        self._dropped = 0

    async def put(self, event: Input) -> None:
        """Hand in an input from the network or the application; waits while the core is behind."""
        await self._sender.send(event)

    def put_nowait(self, event: Input) -> bool:
        """As `put`, if that need not wait; False, and nothing is done, if it must."""
        try:
            self._sender.send_nowait(event)
        except trio.WouldBlock:
            return False
        return True

    async def request(self, event: Input, is_wanted: Callable[[], bool], failed: Callable[[Exception], None]) -> None:
        """As `put`; the core never sees it if it is no longer wanted when its turn comes.

        What the core raises over it is `failed`'s to know, since who asked is to hear of it and nobody else.
        """
        await self._sender.send(_Request(event, is_wanted, failed))

    def post(self, event: Input) -> None:
        """Hand in an input from within this peer, at once."""
        if len(self._notices) >= MAX_NOTICES and not isinstance(event, STATE_CHANGES):
            self._dropped += 1
            return
        self._notices.append(event)
        if len(self._notices) == 1:  # else it is awake, or about to be
            with suppress(trio.WouldBlock):  # a full inbox keeps the driver awake, and notices come first
                self._sender.send_nowait(_WAKE)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive the core until cancelled."""
        self._is_running = True
        task_status.started()
        try:
            while True:
                with trio.CancelScope(deadline=self._core.next_deadline()) as alarm:
                    await self._handle_all(alarm)
                self._finish_turn()
        finally:
            self._is_running = False
            self._behind.unpark_all()

    async def _handle_all(self, alarm: trio.CancelScope) -> None:
        """Handle inputs until the alarm rings.

        One scope for many inputs, since a scope costs as much as what a core does with an input. The alarm only comes
        nearer: a deadline that moved away is looked at when the old one comes.
        """
        while True:
            item = await self._receiver.receive()
            self._take(item)
            self._take_more()
            deadline = self._finish_turn()
            if deadline < alarm.deadline:
                alarm.deadline = deadline

    def _finish_turn(self) -> float:
        """Do what is due, and let go what was sent. Gives the core's next deadline."""
        now = trio.current_time()
        if self._due <= now:
            self._health.note(self._due, now)
        deadline = self._core.next_deadline()
        if deadline <= now:
            self._dispatch(self._core.expire(now))
            deadline = self._core.next_deadline()
        self._due = max(deadline, now)
        self._flush()
        return deadline

    async def caught_up(self) -> None:
        """Wait until all that was posted so far is handled, or never will be because the driver has ended."""
        await trio.lowlevel.checkpoint()
        while self._notices and self._is_running:
            await self._behind.park()

    def snapshot(self) -> dict[str, Any]:
        """The core's statistics, and the inbox's."""
        statistics = self._sender.statistics()
        return {
            **self._core.snapshot(),
            "inbox": {
                "handled": self._handled,
                "dropped": self._dropped,
                "waiting": statistics.current_buffer_used,
                "senders_waiting": statistics.tasks_waiting_send,
            },
        }

    def _take(self, item: _Item) -> None:
        while self._notices:
            self._handle(self._notices.popleft())
        if self._behind:
            self._behind.unpark_all()
        match item:
            case _Wake():
                pass
            case _Request():
                if item.is_wanted():
                    self._answer(item)
            case _:
                self._handle(item)

    def _take_more(self) -> None:
        for _ in range(BURST):
            try:
                item = self._receiver.receive_nowait()
            except trio.WouldBlock:
                return
            self._take(item)

    def _answer(self, request: _Request) -> None:
        self._handled += 1
        try:
            effects = self._core.handle(request.event, trio.current_time())
        except Exception as error:  # ruff: ignore[blind-except] - not swallowed: it goes to who asked
            request.failed(error)
        else:
            self._dispatch(effects)

    def _handle(self, event: Input) -> None:
        self._handled += 1
        self._dispatch(self._core.handle(event, trio.current_time()))
