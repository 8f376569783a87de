"""Keeps the links: opens, reads and writes them, reports when they are up and down.

Which links there should be is the overlay core's decision, carried out here. Each attempt and each open
link is a task in the keeper's nursery: a reader that waits for the subsystems (backpressure up to the peer, by the
link's credits), a writer that drains the link's outbox, and the link's own keepalive. Sending
never waits: a full outbox drops and counts, and one that stays full ends the link.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import attrs
import trio
from attrs import define, field

from p2pmesh.config import LinkConfig
from p2pmesh.errors import LocalProtocolError, RemoteProtocolError
from p2pmesh.keyspace import PeerId, short
from p2pmesh.links.link import (
    Attempt,
    AttemptFailed,
    Dialer,
    Link,
    LinkError,
    LinkProtocolError,
    LinkTimedOut,
    listening_for,
    local_health,
)
from p2pmesh.protocols.inputs import (
    NO_SLOT,
    LinkDown,
    LinkLoad,
    LinkLost,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    LocalSignal,
    RemotePeer,
    Unsent,
)
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.util.limits import FRAME, READ, Payment, WorkBudget
from p2pmesh.protocols.wiring import SELDOM
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Description, Direct, Facts, IceCandidate, Message, Unknown

logger: Final = logging.getLogger(__name__)

FEED = 32
"""Signals that may wait for one attempt: an answer and the candidates of a trickling peer; more are dropped."""
ATTEMPTS_PER_SECOND = 2.0
"""Attempts that are begun: each costs some 50 ms of a core, and others can cause them. `ATTEMPTS_AT_ONCE`, and twice
`max_peers`, may begin together; beyond that they wait for their turn."""
ATTEMPTS_AT_ONCE = 10
READ_AT_ONCE = 32
"""Frames handed up before other tasks get their turn, while the subsystems have room."""

Report: TypeAlias = Callable[[Input], None]
Deliver: TypeAlias = Callable[[PeerId, Message], Awaitable[None]]


@define
class _Attempting:
    """An attempt under way."""

    scope: trio.CancelScope
    feed: trio.MemorySendChannel[tuple[RemotePeer, Facts]]
    trouble: str = ""


@define
class _Lane:
    """What waits to be sent over a link, in one of its two lanes."""

    urgent: bool
    frames: deque[tuple[bytes, Message]] = field(factory=deque)
    wake: trio.Event = field(factory=trio.Event)
    full_since: float | None = None


@define
class _Open:
    """An open link, and what waits for it."""

    link: Link
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    lanes: tuple[_Lane, _Lane] = field(factory=lambda: (_Lane(urgent=False), _Lane(urgent=True)))
    ended: trio.Event = field(factory=trio.Event)
    closing: bool = False
    why: str | None = None
    blamed: bool = False


class _Pace:
    """How fast something is done: so often a second, and `at_once` times together."""

    def __init__(self, per_second: float, at_once: float) -> None:
        self._step = 1 / per_second
        self._ahead = at_once / per_second
        self._turn = -math.inf

    def next_turn(self, now: float) -> float | None:
        """It was done: when the next may be; None for now."""
        self._turn = max(self._turn, now - self._ahead) + self._step
        return self._turn if self._turn > now else None


@define
class _Counts:
    attempts: int = 0
    opened: int = 0
    failed: int = 0
    closed: int = 0
    frames_dropped: int = 0
    frames_unsent: int = 0
    frames_too_large: int = 0
    unknown_messages: int = 0
    protocol_errors: int = 0
    signals_dropped: int = 0


class LinkKeeper:
    """The links of one mesh, at most `max_peers` of them, attempts included."""

    def __init__(
        self,
        dialer: Dialer,
        config: LinkConfig,
        max_peers: int,
        report: Report,
        deliver: Deliver,
        probe: Callable[[], Message],
        share: float,
    ) -> None:
        self._dialer = dialer
        self._probe = probe
        self._config = config
        self._max_peers = max_peers
        self._report = report
        self._deliver = deliver
        self._attempts: dict[PeerId, _Attempting] = {}
        self._pace = _Pace(ATTEMPTS_PER_SECOND, ATTEMPTS_AT_ONCE + 2 * max_peers)
        self._turn = trio.Lock()
        self._next_attempt: float | None = None
        self._budget = WorkBudget(2 * max_peers, share)
        self._links: dict[PeerId, _Open] = {}
        self._unflushed: dict[Link, None] = {}
        self._counts = _Counts()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all links until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # --- the overlay's orders -----------------------------------------------------------------------------------------

    def want(self, peer: PeerId) -> None:
        """Offer a link to `peer`. Ends in `LinkUp` or `LinkLost`."""
        self._begin(peer, None, None)

    def accept(self, remote: RemotePeer, offer: Description) -> None:
        """Answer this offer, instead of whatever attempt at the same peer is under way."""
        self._begin(remote.peer_id, remote, offer)

    def feed(self, remote: RemotePeer, signal: Facts) -> None:
        """An answer or candidate for an attempt."""
        attempting = self._attempts.get(remote.peer_id)
        if attempting is None:
            self._counts.signals_dropped += 1
            return
        try:
            attempting.feed.send_nowait((remote, signal))
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._counts.signals_dropped += 1

    def drop(self, peer: PeerId, reason: str, *, blame: bool = False) -> None:
        """Close the link to `peer` once its outbox is written, or end the attempt at it."""
        if blame:
            self._counts.protocol_errors += 1
            logger.warning("closing the link to %s: %s", short(peer), reason)
        attempting = self._attempts.pop(peer, None)
        if attempting is not None:
            attempting.scope.cancel(reason)
        entry = self._links.get(peer)
        if entry is None or entry.closing:
            return
        entry.closing, entry.why, entry.blamed = True, entry.why or reason, blame
        patience = 0.0 if blame else self._config.close_timeout
        entry.scope.deadline = min(entry.scope.deadline, trio.current_time() + patience)
        for lane in entry.lanes:
            lane.wake.set()

    def send(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool, patient: bool = False) -> None:
        """Queue a message for open links, to leave with the next `flush`; encoded once per encoding, not per link."""
        frames: dict[bool, bytes] = {}
        for peer in peers:
            entry = self._links.get(peer)
            if entry is None or (entry.closing and not urgent):
                self._counts.frames_unsent += 1
                continue
            text = entry.link.peer.version == 0
            frame = frames.get(text)
            if frame is None:
                frame = frames[text] = encode(message, text=text)
            self._queue(entry, frame, message, urgent=urgent, patient=patient)

    def inspect(self, peer: PeerId) -> None:
        """Report how much waits in the link to this peer, if there is one."""
        entry = self._links.get(peer)
        if entry is not None:
            stats, frames = entry.link.stats, entry.lanes[0].frames
            waiting = sum(len(frame) for frame, _ in frames) + stats.queued_bytes + stats.buffered_bytes
            left = stats.bytes_sent - stats.buffered_bytes
            self._report(LinkLoad(peer, len(frames), waiting, left))

    def flush(self) -> None:
        """Let what was queued go: what a core sends to a peer while it works off its inbox travels together."""
        if not self._unflushed:
            return
        links, self._unflushed = self._unflushed, {}
        for link in links:
            link.flush()

    def snapshot(self) -> dict[str, Any]:
        """Statistics of the keeper and of each link."""
        return {
            **attrs.asdict(self._counts, recurse=False),
            **self._dialer.counts,
            "budget": self._budget.snapshot(),
            "attempting": sorted(self._attempts),
            "open": {peer: attrs.asdict(entry.link.stats, recurse=False) for peer, entry in self._links.items()},
        }

    async def drained(self) -> None:
        """Wait until every link is closed."""
        while self._links:
            await next(iter(self._links.values())).ended.wait()

    # --- attempts -----------------------------------------------------------------------------------------------------

    def _begin(self, peer: PeerId, remote: RemotePeer | None, offer: Description | None) -> None:
        previous = self._attempts.pop(peer, None)
        if previous is not None:
            previous.scope.cancel("replaced by another attempt")
        if peer in self._links or len(self._links) + len(self._attempts) >= self._max_peers:
            # An attempt that the overlay has just dropped may have opened in the same moment, and is being closed.
            self._report(LinkLost(peer, NO_SLOT))
            return
        if self._nursery is None:
            raise LocalProtocolError("the link keeper is not running")
        sender, receiver = trio.open_memory_channel[tuple[RemotePeer, Facts]](FEED)
        attempting = _Attempting(trio.CancelScope(), sender)
        self._attempts[peer] = attempting
        self._counts.attempts += 1
        self._nursery.start_soon(
            self._attempt, peer, remote, offer, attempting, receiver, name=f"p2pmesh link to {short(peer)}"
        )

    async def _attempt(
        self,
        peer: PeerId,
        remote: RemotePeer | None,
        offer: Description | None,
        attempting: _Attempting,
        signals: trio.MemoryReceiveChannel[tuple[RemotePeer, Facts]],
    ) -> None:
        """One attempt, and the life of the link that it becomes."""
        link, reason, hopeless = None, "", False
        with attempting.scope, signals:
            async with listening_for(self._config.connect_timeout):
                try:
                    async with self._turn:  # one that is given up while it waits takes no turn
                        if self._next_attempt is not None:
                            await trio.sleep_until(self._next_attempt)
                        self._next_attempt = self._pace.next_turn(trio.current_time())
                    link = await self._open(peer, remote, offer, signals, attempting)
                except AttemptFailed as error:
                    reason, hopeless = str(error), error.hopeless
        if not reason:
            why = attempting.trouble and f": {attempting.trouble}"
            reason = f"no link within {self._config.connect_timeout:g} s{why}"
        mine = self._attempts.get(peer) is attempting
        if mine:
            del self._attempts[peer]
        if link is None:
            if mine:
                self._counts.failed += 1
                logger.debug("no link to %s: %s", short(peer), reason)
                self._report(LinkLost(peer, reason, hopeless))
            return
        if mine:
            await self._keep(link)
        else:  # dropped or replaced in the very moment it opened; nothing was sent over it
            await trio.aclose_forcefully(link)

    async def _open(
        self,
        peer: PeerId,
        remote: RemotePeer | None,
        offer: Description | None,
        signals: trio.MemoryReceiveChannel[tuple[RemotePeer, Facts]],
        attempting: _Attempting,
    ) -> Link:
        attempt = await (self._dialer.offer(peer) if offer is None else self._dialer.answer(peer, offer))
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # given up meanwhile: its offer must not go out any more
            self._report(LocalSignal(peer, attempt.description))
            attempt.trickle(lambda candidate: self._report(LocalSignal(peer, candidate)))
            while remote is None:
                sender, signal = await signals.receive()
                await attempt.feed(signal)
                if isinstance(signal, Description):
                    remote = sender
            return await self._open_while_feeding(attempt, remote, signals)
        finally:
            attempting.trouble = attempt.trouble
            with trio.move_on_after(self._config.close_timeout, shield=True):
                await attempt.aclose()

    async def _open_while_feeding(
        self,
        attempt: Attempt,
        remote: RemotePeer,
        signals: trio.MemoryReceiveChannel[tuple[RemotePeer, Facts]],
    ) -> Link:
        link: Link | None = None
        failure: AttemptFailed | None = None
        async with AsyncExitStack() as unless_given:
            async with trio.open_nursery() as nursery:

                async def feed() -> None:
                    async for _, signal in signals:
                        if isinstance(signal, IceCandidate):
                            await attempt.feed(signal)

                nursery.start_soon(feed)
                try:
                    link = await attempt.opened(remote)
                    unless_given.push_async_callback(trio.aclose_forcefully, link)  # it may be given up in this moment
                except AttemptFailed as error:
                    failure = error
                nursery.cancel_scope.cancel("the attempt is decided")
            unless_given.pop_all()
        if link is None:
            raise failure or AttemptFailed("cancelled")
        return link

    # --- open links ---------------------------------------------------------------------------------------------------

    async def _keep(self, link: Link) -> None:
        peer = link.peer.peer_id
        entry = _Open(link)
        self._links[peer] = entry
        self._counts.opened += 1
        self._report(LinkUp(link.peer))
        link.watch(
            lambda silent: self._report(LinkSuspected(peer) if silent else LinkRecovered(peer)),
            lambda: encode(self._probe(), text=True),
        )
        timed_out: float | None = None
        try:
            with entry.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(link.run)
                    nursery.start_soon(self._write_all, entry)
                    await self._read(entry)
        except* LinkTimedOut as group:
            error = _first(group)
            timed_out, entry.why = error.silent_for, str(error)
        except* (LinkProtocolError, RemoteProtocolError) as group:
            self._counts.protocol_errors += 1
            entry.why, entry.blamed = f"protocol error: {_first(group)}", True
        except* LinkError as group:
            entry.why = entry.why or str(_first(group))
        finally:
            try:
                await self._close(link)  # noqa: ASYNC102  # shielded and bounded inside
            finally:
                del self._links[peer]
                entry.ended.set()
                self._counts.closed += 1
                self._report(LinkDown(peer, entry.why or "closed by the peer", timed_out, entry.blamed))

    async def _close(self, link: Link) -> None:
        with trio.move_on_after(self._config.close_timeout, shield=True):
            await link.aclose()

    async def _read(self, entry: _Open) -> None:
        """Hand frames up, waiting as long as the subsystems do; the peer feels it by its credit."""
        link, rate = entry.link, _Pace(self._config.frames_per_second, self._config.frames_per_second)
        async for frame in link:
            await self._hand_up(link, frame, rate)
            for _ in range(READ_AT_ONCE):
                more = link.receive_nowait()
                if more is None:
                    break
                await self._hand_up(link, more, rate)
        entry.scope.cancel("the peer closed the link")

    async def _hand_up(self, link: Link, frame: bytes, rate: _Pace) -> None:
        message = self._parse(link, frame)
        if message is None or type(message) in SELDOM:
            await self._pay(link.peer.peer_id, FRAME + len(frame) / READ)
        if message is not None:
            await self._deliver(link.peer.peer_id, message)
        until = rate.next_turn(trio.current_time())
        if until is not None:
            await trio.sleep_until(until)

    async def _pay(self, peer: PeerId, units: float) -> None:
        """Pay for a frame that seldom comes: who sends more of them is read as slowly as its own part pays for."""
        if self._budget.spend(peer, units, trio.current_time()) is not Payment.NOW:
            await trio.sleep(units / self._budget.rate)
            self._budget.spend(peer, units, trio.current_time())  # what it has gained meanwhile

    def _parse(self, link: Link, frame: bytes) -> Message | None:
        try:
            message = decode(frame)
        except RemoteProtocolError:
            if link.peer.version == 0:  # the original's peers may send anything at all to their applications
                self._counts.unknown_messages += 1
                return None
            raise
        if isinstance(message, Unknown):
            self._counts.unknown_messages += 1
            return None
        return message

    async def _write_all(self, entry: _Open) -> None:
        """Drain both lanes until the link is to be closed and nothing is left."""
        async with trio.open_nursery() as nursery:
            for lane in entry.lanes:
                nursery.start_soon(self._write, entry, lane)
        entry.scope.cancel(entry.why or "closing")

    async def _write(self, entry: _Open, lane: _Lane) -> None:
        while True:
            while lane.frames:
                frame, message = lane.frames.popleft()
                try:
                    await entry.link.send(frame, urgent=lane.urgent)
                except ValueError:
                    self._too_large(entry.link, frame, message)
                lane.full_since = None
            if entry.closing:
                return
            lane.wake = trio.Event()
            await lane.wake.wait()

    def _queue(self, entry: _Open, frame: bytes, message: Message, *, urgent: bool, patient: bool) -> None:
        lane = entry.lanes[urgent]
        if not lane.frames and self._send_nowait(entry.link, frame, message, urgent=urgent, patient=patient):
            lane.full_since = None
            return
        if len(lane.frames) >= self._config.outbox:
            self._counts.frames_dropped += 1
            if isinstance(message, Direct):  # what else gets lost is repeated by its core's own timers
                self._report(Unsent(entry.link.peer.peer_id, message, len(frame)))
            self._judge_full(entry, lane)
            return
        lane.frames.append((frame, message))
        lane.wake.set()

    def _send_nowait(self, link: Link, frame: bytes, message: Message, *, urgent: bool, patient: bool) -> bool:
        """The short way, past the writer's task, while the link has room."""
        try:
            taken = link.send_nowait(frame, urgent=urgent, patient=patient)
        except ValueError:
            self._too_large(link, frame, message)
            return True
        if taken:
            self._unflushed[link] = None
        return taken

    def _too_large(self, link: Link, frame: bytes, message: Message) -> None:
        """The peer takes smaller frames than we do."""
        self._counts.frames_too_large += 1
        self._report(Unsent(link.peer.peer_id, message, len(frame), link.max_frame))

    def _judge_full(self, entry: _Open, lane: _Lane) -> None:
        now = trio.current_time() - local_health().lost
        lane.full_since = now if lane.full_since is None else lane.full_since
        if now - lane.full_since > self._config.outbox_patience:
            entry.why = entry.why or f"too slow: its queue was full for {self._config.outbox_patience:g} s"
            entry.scope.cancel(entry.why)


def _first(group: BaseExceptionGroup[Any]) -> Any:
    """The first plain exception of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
