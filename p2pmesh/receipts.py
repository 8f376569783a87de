"""What `Mesh.broadcast` returns: how many peers have the message, now and in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias
from weakref import WeakValueDictionary

import trio
from attrs import frozen

from p2pmesh.errors import LocalProtocolError, MeshClosed
from p2pmesh.subscription import Subscription


@frozen
class Delivered:
    """The broadcast has settled: every peer that took it has answered for itself and those behind it."""

    reached: int
    """Other peers that have it, each counted once."""
    elapsed: float
    """Seconds since `broadcast` was called."""


@frozen
class Failed:
    """Nobody has it and nobody will: its ttl is over, or all neighbours have refused it for good, as too large."""

    reason: str
    reached: int


Outcome: TypeAlias = Delivered | Failed

UPDATES = 16
"""Counts that may wait for one reader of `Receipt.updates`; only the newest ones matter."""


class Receipt:
    """Tells how many peers have a broadcast. Made by `Mesh.broadcast`; costs nothing when nobody looks at it."""

    def __init__(self, message_id: str, topic: str, *, enabled: bool) -> None:
        self.message_id = message_id
        self.topic = topic
        self._enabled = enabled
        self._reached = 0
        self._outcome: Outcome | None = None
        self._done = trio.Event()
        self._watchers: dict[int, Subscription[int]] = {}
        self._count = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"Receipt({self.message_id!r}, reached={self._reached}, outcome={self._outcome!r})"

    @property
    def reached(self) -> int:
        """Other peers known to have it so far."""
        return self._reached

    @property
    def outcome(self) -> Outcome | None:
        """The result, None while it is open."""
        return self._outcome

    async def settled(self) -> Outcome:
        """Wait until the broadcast has settled: when all have answered, and at the end of its ttl at the latest.

        What it says is true for ever. That nobody has it can be said at the end of the ttl only: set a deadline to know
        sooner how things stand, or see `updates`. Cancelling it changes nothing.

        Raises:
          MeshClosed: if the mesh was left while it might still reach somebody.
          LocalProtocolError: if the broadcast was sent with `receipts=False`, so that nobody will answer.
        """
        if not self._enabled:
            await trio.lowlevel.checkpoint()
            raise LocalProtocolError("nobody answers a broadcast that was sent with receipts=False")
        await self._done.wait()
        if self._outcome is None:
            raise MeshClosed("the mesh was left before this broadcast had settled")
        return self._outcome

    @asynccontextmanager
    async def updates(self) -> AsyncIterator[trio.abc.ReceiveChannel[int]]:
        """A stream of the count as it grows, later arrivals included; it starts with the count there is now.

        It ends when the mesh is left.
        """
        self._count += 1
        number, stream = self._count, Subscription[int](UPDATES)
        self._watchers[number] = stream
        stream._offer(self._reached)
        if self._closed:
            stream._end()
        try:
            yield stream
        finally:
            del self._watchers[number]
            stream.close()

    def _progress(self, reached: int) -> None:
        if reached == self._reached:
            return
        self._reached = reached
        for stream in self._watchers.values():
            stream._offer(reached)

    def _settle(self, outcome: Outcome) -> None:
        self._progress(outcome.reached)
        self._outcome = self._outcome or outcome
        self._done.set()

    def _close(self) -> None:
        self._closed = True
        self._done.set()
        for stream in self._watchers.values():
            stream._end()


class OpenReceipts:
    """The receipts of one mesh that somebody still holds, by message id: what the cores count arrives here."""

    def __init__(self) -> None:
        self._receipts: WeakValueDictionary[str, Receipt] = WeakValueDictionary()

    def new(self, message_id: str, topic: str, *, enabled: bool) -> Receipt:
        """The receipt of a broadcast that just went out."""
        receipt = self._receipts[message_id] = Receipt(message_id, topic, enabled=enabled)
        return receipt

    def progress(self, message_id: str, reached: int) -> None:
        """So many peers have it by now."""
        receipt = self._receipts.get(message_id)
        if receipt is not None:
            receipt._progress(reached)

    def settle(self, message_id: str, outcome: Outcome) -> None:
        """It has settled; the count may still grow."""
        receipt = self._receipts.get(message_id)
        if receipt is not None:
            receipt._settle(outcome)

    def close(self) -> None:
        """No counts come any more."""
        for receipt in list(self._receipts.values()):
            receipt._close()
