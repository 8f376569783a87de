"""What a link is, and what opens one: the contracts that WebRTC and the simulator both fulfil.

One contract suite (`tests/harness/link_contract.py`) runs against every implementation. A link carries *frames*: whole
messages, as bytes, in order, each once. How frames become packets of the carrier (lanes, coalescing, fragments,
credits, keepalive) is decided by the sans-IO core `p2pmesh.protocols.link.session`, the same for every carrier.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self

import trio
from attrs import frozen

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.wire.messages import Description, Facts, IceCandidate

_HEALTH: Final = trio.lowlevel.RunVar[LocalHealth]("p2pmesh local health")


def local_health() -> LocalHealth:
    """How late this Trio run is: one measure for all the meshes and links in it."""
    try:
        return _HEALTH.get()
    except LookupError:
        health = LocalHealth()
        _HEALTH.set(health)
        return health


@asynccontextmanager
async def listening_for(seconds: float) -> AsyncGenerator[None]:
    """Cancel the block after so many seconds; those that this process lost don't count (`LocalHealth`)."""
    health = local_health()
    begun, lost = trio.current_time(), health.lost
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            due = begun + seconds
            while due > trio.current_time():
                await trio.sleep_until(due)
                due = begun + seconds + health.lost - lost
            nursery.cancel_scope.cancel("its time is over")

        nursery.start_soon(watch)
        yield  # ruff: ignore[fallible-context-manager] - what the block raises ends the nursery
        nursery.cancel_scope.cancel("it is done")


class LinkError(trio.BrokenResourceError):
    """The link has failed; `args[0]` says why, for people."""


class LinkTimedOut(LinkError):
    """The peer fell silent."""

    def __init__(self, silent_for: float) -> None:
        super().__init__(f"nothing heard for {silent_for:.1f} s")
        self.silent_for = silent_for


class LinkProtocolError(LinkError):
    """The peer sent what the protocol forbids."""


class AttemptFailed(Exception):
    """A link could not be opened; the text says why, for people.

    It is `hopeless` if the next attempt will fail too, since no address of ours can send to any of the peer's.
    """

    def __init__(self, reason: str, *, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


@frozen(kw_only=True)
class LinkStats:
    """Counts since the link opened, and what waits now."""

    bytes_sent: int = 0
    bytes_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    pings_sent: int = 0
    queued_bytes: int = 0
    """Taken by `send`, not yet with the carrier."""
    buffered_bytes: int = 0
    """With the carrier, and not gone yet."""
    unread_bytes: int = 0
    """Received, not yet taken by `receive`."""
    send_credit: int = 0
    """What the peer lets us send before it reads on."""
    round_trip: float | None = None
    """Seconds, smoothed, from pings; None before the first answer."""


class Link(trio.abc.Channel[bytes]):
    """An open link to one peer. Made by an `Attempt`.

    One task may send bulk frames, one urgent ones, and one may receive at a time, else `trio.BusyResourceError`.
    """

    @property
    @abc.abstractmethod
    def peer(self) -> RemotePeer:
        """Who is at the other end."""

    @property
    @abc.abstractmethod
    def max_frame(self) -> int:
        """The largest frame that both sides take, in bytes."""

    @property
    @abc.abstractmethod
    def stats(self) -> LinkStats: ...

    @abc.abstractmethod
    async def send(self, value: bytes, *, urgent: bool = False) -> None:
        """Queue a frame; waits while the link is full (the peer's credit is used up, or the carrier is behind).

        Cancelled while it waits, the frame is not sent. `urgent` frames overtake the others; they have a credit of
        their own, so that bulk frames never hold them up.

        Raises:
          ValueError: if the frame is larger than the link carries.
          trio.ClosedResourceError: if this side closed the link.
          LinkError: if the link has failed or the peer closed it.
        """

    def send_nowait(self, value: bytes, *, urgent: bool = False, patient: bool = False) -> bool:
        """Queue a frame if there is room at once; False, and nothing is done, if only `send` can tell.

        It leaves at the next `flush`, or, if it is `patient`, with whatever leaves first for this peer, within
        `LinkConfig.patience`.

        Raises:
          ValueError: if the frame is larger than the link carries.
        """
        del value, urgent, patient
        return False

    def flush(self) -> None:
        """Let what `send_nowait` queued go. Never waits."""
        return

    @abc.abstractmethod
    async def receive(self) -> bytes:
        """The next frame; urgent ones first. What arrived before the link failed can still be received.

        Raises:
          trio.EndOfChannel: if the peer closed the link, after all that arrived was received.
          trio.ClosedResourceError: if this side closed the link.
          LinkTimedOut, LinkProtocolError, LinkError: if the link has failed.
        """

    def receive_nowait(self) -> bytes | None:
        """The next frame, if one is here; None if there is none, or if only `receive` can tell."""
        return None

    def watch(self, on_silence: Callable[[bool], None], probe: Callable[[], bytes] | None = None) -> None:
        """Have `on_silence` called with True when the peer falls silent, and with False when it is heard again.

        A peer is silent that has said nothing since something was sent to it, not even to a ping
        (`LinkConfig.doubt_after`). The link goes on. Links that can't tell never call. `probe` makes the frame that
        asks a peer of the original, which knows no pings, whether it is there.
        """
        del on_silence, probe

    @abc.abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link's timers: keepalive, and sending what was held back. Returns when the link has ended.

        The link's owner runs this in a task of its own. Without it the link works, but does not notice that its peer
        fell silent, and sends each small frame by itself. A failure does not raise here but in `send` and
        `receive`.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close: what was sent is flushed for a bounded time first. Closes for certain, also when cancelled."""


class Attempt(trio.abc.AsyncResource):
    """A link in the making: it has a description for the peer, and waits for the peer's own.

    `aclose` gives everything up that has not become a link; it is harmless after `opened` returned.
    """

    @property
    @abc.abstractmethod
    def peer_id(self) -> PeerId: ...

    @property
    @abc.abstractmethod
    def description(self) -> Description:
        """Our offer or answer, to be brought to the peer."""

    def trickle(self, tell: Callable[[IceCandidate], None]) -> None:
        """Have this called with each address that is found later, to be brought to the peer too. It must not raise."""
        del tell

    @property
    def trouble(self) -> str:
        """What stands in the way, for people, as far as it can be told; empty if that is nothing in particular."""
        return ""

    @abc.abstractmethod
    async def feed(self, signal: Facts) -> None:
        """Take the peer's answer or a candidate; what does not fit is ignored.

        Raises:
          AttemptFailed: if the answer can't be used.
        """

    @abc.abstractmethod
    async def opened(self, peer: RemotePeer) -> Link:
        """Wait until the link is open. The link belongs to the caller from then on. No time-out of its own.

        Raises:
          AttemptFailed: if it can't be opened any more.
        """


class Dialer(trio.abc.AsyncResource):
    """Opens links of one kind for one mesh: an async context manager, entered before the first attempt."""

    async def __aenter__(self) -> Self:
        return self

    def prefer(self, address: str) -> None:
        """Take this local address first from now on: a signaling service was reached from it."""
        del address

    @property
    def counts(self) -> Mapping[str, int]:
        """Statistics of what lies below the links: always the same keys."""
        return {"datagrams_dropped": 0}

    @abc.abstractmethod
    async def offer(self, peer: PeerId) -> Attempt:
        """Begin a link to `peer`."""

    @abc.abstractmethod
    async def answer(self, peer: PeerId, offer: Description) -> Attempt:
        """Begin a link that `peer` offered.

        Raises:
          AttemptFailed: if the offer can't be used.
        """
