"""The application's calls into the cores: a command goes in, the caller waits for the core's reply."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import trio
from attrs import define, field

from p2pmesh.errors import MeshClosed
from p2pmesh.protocols.core import Reply
from p2pmesh.protocols.inputs import CancelCall
from p2pmesh.protocols.notices import Input
from p2pmesh.runtime.driver import Driver


@define
class _Call:
    entering: trio.CancelScope = field(factory=trio.CancelScope)
    """Around the wait for room in the inbox, which nobody empties once the mesh is left."""
    done: trio.Event = field(factory=trio.Event)
    value: Any = None
    error: Exception | None = None
    on_reply: Callable[[Any], Any] | None = None


class Calls:
    """The calls that wait for a reply."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Call] = {}
        self._count = 0
        self._closed = False

    async def make(
        self, driver: Driver, command: Callable[[int], Input], on_reply: Callable[[Any], Any] | None = None
    ) -> Any:
        """Send a command and wait for its reply. `on_reply` turns the value into the result, at once when it comes.

        Cancelled, the core is told to forget the call.

        Raises:
          MeshError: what the core replies with; `MeshClosed` if the mesh is left first.
          Exception: what the core raises over it: a bug of this library.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise MeshClosed("this mesh was left: open a new one")
        self._count += 1
        number, call = self._count, _Call(on_reply=on_reply)
        self._waiting[number] = call
        try:
            with call.entering:
                await driver.request(command(number), lambda: number in self._waiting, partial(self._fail, number))
            if not call.done.is_set():  # what is done must not end as cancelled
                await call.done.wait()
        except trio.Cancelled:
            driver.post(CancelCall(number))
            raise
        finally:
            self._waiting.pop(number, None)
        if call.error is not None:
            raise call.error
        return call.value

    def resolve(self, reply: Reply) -> None:
        """The core's answer; nobody may be waiting for it any more."""
        call = self._waiting.pop(reply.call, None)
        if call is None:
            return
        call.error = reply.error
        if reply.error is None:
            call.value = reply.value if call.on_reply is None else call.on_reply(reply.value)
        call.done.set()

    def _fail(self, number: int, error: Exception) -> None:
        error.add_note("p2pmesh failed over this call, which is a bug in it; the mesh goes on")
        if (call := self._waiting.pop(number, None)) is not None:
            call.error = error
            call.done.set()

    def close(self) -> None:
        """No replies come any more."""
        self._closed = True
        for call in self._waiting.values():
            call.error = MeshClosed("the mesh was left before this call was done")
            call.done.set()
            call.entering.cancel("the mesh was left")
        self._waiting.clear()
