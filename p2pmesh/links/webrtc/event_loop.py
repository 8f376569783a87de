"""The asyncio loop that aiortc lives in, on top of Trio, made fast enough not to be felt.

trio-asyncio's loop spends a memory channel hop and a cancel scope on each callback, and an epoll round trip on each
datagram: alone that costs half of aiortc's throughput. `open_link_loop` gives the same loop with these paths replaced:

* callbacks wait in a deque and run in batches, timers in a heap, and the loop's task parks only when there is nothing;
* a datagram socket is read until it is empty, up to a bound, whenever it is readable, and what that wakes runs at once;
* `call_now` runs a callback from a Trio task with everything it queues, without any switch of tasks.

What it replaces are internals of trio-asyncio 0.16; where they look different the stock loop serves (`is_fast`).
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import logging
import math
import socket
from _asyncio import _get_running_loop as _running_loop  # trio-asyncio hides that of a host in all other places
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import sniffio
import trio
import trio_asyncio

from p2pmesh.errors import ConfigError
from p2pmesh.links.webrtc.address_policy import CheckBudget, check_budget

if TYPE_CHECKING:
    StockLoop = asyncio.SelectorEventLoop
else:
    StockLoop = trio_asyncio.TrioEventLoop

logger: Final = logging.getLogger(__name__)

CALLBACKS_AT_ONCE = 256
"""Callbacks run before other Trio tasks get their turn: some milliseconds at most."""
DATAGRAMS_AT_ONCE = 64
"""Datagrams read from one socket before others get their turn."""
LARGEST_DATAGRAM = 2048
"""Above what DTLS and STUN put in one; asyncio's 256 KiB buffer is costly to allocate for each."""
RECEIVE_BUFFER = 4 << 20
"""Asked of the kernel, which grants what its limits allow: a burst that waits here is not lost."""
SEND_BUFFER = 1 << 20
CANCELLED_TIMERS = 64
"""Cancelled timers that may stay in the heap: SCTP restarts its timer with each acknowledgement."""

running_loop: ContextVar[asyncio.AbstractEventLoop | None] = trio_asyncio.current_loop


class Owner(Protocol):
    """What the asyncio tasks, sockets and errors of one connection belong to."""

    tasks: set[asyncio.Task[Any]]
    sockets: set[asyncio.DatagramTransport]

    def failed(self, error: BaseException | None, message: str) -> None:
        """Something of the owner's raised and nobody took it."""


owner_of_context: ContextVar[Owner | None] = ContextVar("owner_of_context", default=None)
"""Inherited by every asyncio task and callback that a connection starts, so that none can outlive it unseen."""


class OwnedTask(asyncio.Task[Any]):
    """A task that remembers whose it is, until the garbage collector reports it."""

    owner: Owner | None = None


class LinkLoop(StockLoop):
    """trio-asyncio's loop with owners. Made from a running stock loop, by `open_link_loop`."""

    is_fast = False
    checks: CheckBudget
    """Of ICE, for all links of this run."""
    datagrams_dropped: int = 0
    """Datagrams from anybody that were malformed, or not the peer's."""

    def drop_datagram(self, why: object) -> None:
        """Count a datagram that goes no further."""
        self.datagrams_dropped += 1
        logger.debug("a datagram is dropped: %r", why)

    def own(self) -> None:
        """Give each task an owner, and report what nobody caught to that owner alone."""
        self.set_task_factory(make_task)
        self.set_exception_handler(report)

    def call_now(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call back from a Trio task as the loop would."""
        token = running_loop.set(self)
        try:
            return callback(*args)
        finally:
            running_loop.reset(token)

    async def create_datagram_endpoint(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        """As asyncio's; the socket belongs to the owner that asks for it."""
        transport, protocol = await super().create_datagram_endpoint(protocol_factory, *args, **kwargs)
        if (owner := owner_of_context.get()) is not None:
            owner.sockets.add(transport)
        return transport, protocol


class FastLinkLoop(LinkLoop):
    """The same with its main loop and its datagram sockets replaced."""

    is_fast = True

    _queue: deque[asyncio.Handle]
    _timers: list[asyncio.TimerHandle]
    _cancelled_timers: int
    _parked: trio.lowlevel.Task | None
    _patience: trio.CancelScope
    _is_calling: bool

    def take_over(self) -> None:
        """Go on where the stock loop, whose task waits for a callback at this moment, has stopped."""
        self._queue = deque()
        self._cancelled_timers = 0
        self._parked = None
        self._patience = trio.CancelScope()
        self._is_calling = False
        stock = cast("Any", self)
        stock._q_send.send_nowait(asyncio.Handle(_nothing, (), self))

    @property
    def timers(self) -> int:
        """How many are kept, cancelled ones included."""
        return len(self._timers)

    # --- what others queue --------------------------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]  # says the same
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._queue_handle(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # says the same
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        cast("Any", self)._token.run_sync_soon(self._queue_handle, handle)
        return handle

    def _queue_handle(self, handle: asyncio.Handle) -> asyncio.Handle:
        cast("Any", self)._check_closed()
        if isinstance(handle, asyncio.TimerHandle):
            heapq.heappush(self._timers, handle)
            if handle.when() < self._patience.deadline:
                self._patience.deadline = handle.when()
            return handle
        self._queue.append(handle)
        if not self._is_calling:
            self._wake()
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Forget the timer that comes next, so that nothing wakes for it; others go in their turn, or all at once."""
        if self._timers and self._timers[0] is handle:
            heapq.heappop(self._timers)
            self._patience.deadline = self._next_timer()
        else:
            self._cancelled_timers += 1

    # --- the main loop ------------------------------------------------------------------------------------------------

    async def _main_loop_one(self, no_wait: bool = False) -> None:
        """One turn of the stock main loop; here, all turns until a deadline ends the wait."""
        self._queue_late_comers()
        if no_wait:
            if not self._queue:
                raise trio.WouldBlock
            self._run_queue()
            return
        self._queue_due_timers()  # before the scope, which would be over at once
        with trio.CancelScope(deadline=self._next_timer()) as self._patience:
            while not cast("Any", self)._stopped.is_set():
                self._run_queue()
                if self._queue:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._park()
                self._queue_due_timers()

    def _queue_late_comers(self) -> None:
        """Take over what reached the stock loop's own queue."""
        while True:
            try:
                handle = cast("Any", self)._q_recv.receive_nowait()
            except trio.WouldBlock:
                return
            self._queue_handle(handle)

    def _next_timer(self) -> float:
        while self._timers and self._timers[0].cancelled():
            heapq.heappop(self._timers)
            self._cancelled_timers -= 1
        return self._timers[0].when() if self._timers else math.inf

    def _queue_due_timers(self) -> None:
        if self._cancelled_timers > CANCELLED_TIMERS and self._cancelled_timers * 2 > len(self._timers):
            self._timers[:] = [timer for timer in self._timers if not timer.cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0
        now = self.time()
        while self._timers and self._timers[0].when() <= now:
            timer = heapq.heappop(self._timers)
            if timer.cancelled():
                self._cancelled_timers -= 1
            else:
                self._queue.append(timer)

    def _run_queue(self) -> None:
        """Run what waits now and what that queues, up to a bound."""
        if self._is_calling:
            return
        self._is_calling = True
        library, sniffio.thread_local.name = sniffio.thread_local.name, "asyncio"
        try:
            for _ in range(CALLBACKS_AT_ONCE):
                if not self._queue:
                    return
                handle = self._queue.popleft()
                if isinstance(handle, trio_asyncio._handles.AsyncHandle):
                    context, run = handle._context, handle._run
                    context.run(cast("Any", self)._nursery.start_soon, run, name=handle._callback)
                elif not handle._cancelled:
                    handle._run()
        finally:
            sniffio.thread_local.name = library
            self._is_calling = False

    async def _park(self) -> None:
        self._parked = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    # --- short cuts ---------------------------------------------------------------------------------------------------

    def call_now(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call back from a Trio task as the loop would, and run what that queues at once.

        Not if other callbacks wait already: they keep their turn, and what is called here comes after them.
        """
        if self._is_calling:
            return callback(*args)
        is_first = not self._queue
        self._is_calling = is_first
        try:
            token = running_loop.set(self)
            try:
                result = callback(*args)
                self._is_calling = False
                if is_first:
                    self._run_queue()
            finally:
                running_loop.reset(token)
        finally:
            self._is_calling = False
            if self._queue:
                self._wake()
        return result

    async def create_datagram_endpoint(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        """As asyncio's, with a faster transport for what ICE asks for: a socket bound to one address."""
        local_addr = args[0] if args else kwargs.get("local_addr")
        others = (*args[1:], *(value for name, value in kwargs.items() if name != "local_addr"))
        if local_addr is None or any(others) or not _is_numeric(local_addr[0]):
            return await super().create_datagram_endpoint(protocol_factory, *args, **kwargs)
        transport = DatagramTransport(self, _bound_socket(*local_addr))
        if (owner := owner_of_context.get()) is not None:
            owner.sockets.add(transport)
        protocol = protocol_factory()
        transport.start(protocol)
        return transport, protocol


class DatagramTransport(asyncio.DatagramTransport):
    """A bound UDP socket, read in gulps by a Trio task of the loop.

    A datagram that the kernel has no room for is dropped, as the network might have done: SCTP sends it again.
    """

    def __init__(self, loop: FastLinkLoop, sock: socket.socket) -> None:
        super().__init__({"socket": sock, "sockname": sock.getsockname(), "peername": None})
        self._loop = loop
        self._sock = sock
        self._protocol: asyncio.DatagramProtocol
        self._received: Callable[[bytes, Any], None]
        self._is_closed = False

    def start(self, protocol: asyncio.DatagramProtocol) -> None:
        """Give all that comes to `protocol`, which may have a faster way to take it."""
        self._protocol = protocol
        self._received = protocol.datagram_received
        protocol.connection_made(self)
        cast("Any", self._loop).run_trio_task(self._read)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def divert(self, received: Callable[[bytes, Any], None]) -> None:
        """Give what comes to `received` from now on."""
        self._received = received

    async def _read(self) -> None:
        running_loop.set(self._loop)
        while not self._is_closed:
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                return
            except (OSError, ValueError) as error:  # no room to watch it; what is deaf must not look open
                logger.debug("a socket can't be read: %s", error)
                self.close()
                return
            self._loop.call_now(self._gulp)

    def _gulp(self) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            if self._is_closed:
                return
            try:
                data, address = self._sock.recvfrom(LARGEST_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # an ICMP answer to what was sent before
                self._protocol.error_received(error)
                return
            if data:
                try:
                    self._received(data, address)
                except Exception as error:  # what a datagram from anybody makes a parser raise is its own fault
                    self._loop.drop_datagram(error)

    def sendto(self, data: Any, addr: Any = None) -> None:
        if self._is_closed:
            return
        try:
            self._sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._protocol.error_received(error)

    def is_closing(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


def refuse_other_loops() -> None:
    """Refuse to start where Trio runs as the guest of another asyncio loop: aiortc's futures would belong to that.

    Raises:
      ConfigError: if it does.
    """
    if _running_loop() is not None:
        raise ConfigError(
            "WebRTC links can't run where Trio is a guest of asyncio: run Trio in a thread of its own, with"
            " await asyncio.to_thread(trio.run, main)"
        )


@asynccontextmanager
async def open_link_loop() -> AsyncGenerator[LinkLoop]:
    """Open an asyncio loop for aiortc in this task: the fast one where trio-asyncio is the one we know."""
    async with trio_asyncio.open_loop() as stock:
        # Re-classed rather than constructed, since open_loop() has no parameter for the class of its loop.
        if can_take_over(stock):
            stock.__class__ = FastLinkLoop
            stock.take_over()
        else:
            logger.warning("this version of trio-asyncio is not known: links will be slower")
            stock.__class__ = LinkLoop
        stock.own()
        stock.checks = check_budget()
        yield cast("LinkLoop", stock)


def can_take_over(loop: Any) -> bool:
    """Whether the loop has all that `FastLinkLoop` relies on, as it relies on it."""
    names = ("_main_loop_one", "_queue_handle", "_check_closed", "run_trio_task")
    return (
        type(loop) is trio_asyncio.TrioEventLoop
        and all(callable(getattr(loop, name, None)) for name in names)
        and isinstance(getattr(loop, "_timers", None), list)
        and hasattr(getattr(loop, "_q_send", None), "send_nowait")
        and hasattr(getattr(loop, "_q_recv", None), "receive_nowait")
        and isinstance(getattr(loop, "_stopped", None), trio.Event)
        and isinstance(getattr(loop, "_nursery", None), trio.Nursery)
        and hasattr(loop, "_token")
        and hasattr(getattr(trio_asyncio, "_handles", None), "AsyncHandle")
        and not hasattr(loop, "_queue")
    )


def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    """Task factory: the task belongs to the owner of the context that starts it."""
    task = OwnedTask(coro, loop=loop, **kwargs)
    owner = owner_of_context.get()
    if owner is not None:
        task.owner = owner
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
    return task


def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler: what nobody caught fails its owner; without an owner it is logged. It never ends the loop."""
    error, message = context.get("exception"), context.get("message", "unhandled error in the event loop")
    owner = _owner_in(context)
    if owner is not None:
        owner.failed(error, message)
    else:
        logger.error("%s, in no link's name", message, exc_info=error)


def _owner_in(context: dict[str, Any]) -> Owner | None:
    for key in ("task", "future"):
        owner = getattr(context.get(key), "owner", None)
        if owner is not None:
            return cast("Owner", owner)
    handle_context = getattr(context.get("handle"), "_context", None)
    return handle_context.get(owner_of_context) if handle_context is not None else None


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bound_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _nothing() -> None:
    """Wakes a loop."""
