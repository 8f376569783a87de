"""Leads the demo through its stages: a signaling server, the peer processes, and their orders."""

from __future__ import annotations

import contextlib
import os
import subprocess  # ruff: ignore[suspicious-subprocess-import]
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import msgspec
import trio
from attrs import define, field

from p2pmesh.cli.demo.protocol import (
    REPORTS,
    Cut,
    Heal,
    Join,
    Joined,
    Links,
    Measured,
    Order,
    Progress,
    Ready,
    Report,
    Severed,
    Stop,
    Talk,
    Trouble,
    encode,
)
from p2pmesh.cli.demo.report import CUT_OFF, Peer, Plan, Stage
from p2pmesh.cli.demo.server import ServerProcess, open_server_process
from p2pmesh.cli.line_reader import lines_of
from p2pmesh.cli.sanitize import printable
from p2pmesh.server.app import open_signaling_server

REST = 0.5
"""Seconds without a change of links after which the mesh is at rest: receipts are exact, and no neighbour is given up
for a better one while it is talked to."""
REST_SHARE = 0.5
"""Share of the time that the peers took to connect which is waited for rest as well: a busy machine takes longer for
each further link, too."""
QUIET = 0.2
"""Seconds without news after which no duplicate is on its way any more; a delivery takes some milliseconds."""
LEAVE_TIMEOUT = 5.0
LEAVE_EACH = 0.5
"""Seconds for the last reports and goodbyes, and those added for each peer that has to share a processor. The library's
own limit for leaving is 4 s, and a process takes some tenths of a second to end."""
SPEECH = 0.8
"""Share of a partition over which its broadcasts are spread, so that all are sent by its end."""
HEALING = 60.0
"""Seconds for which a broadcast is offered beyond the end of the partition in which it was sent."""
KILL_AFTER = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_PROCESSORS = os.cpu_count() or 1
_FRAME_OF_GROUPS = " \t\r|+-"
"""What tracebacks of exception groups draw around their lines."""
_LAST_WORDS = 1000
"""Characters of a failed process's last line that are shown."""


@define
class _Process:
    """A peer's process, and the pipe to and from it."""

    peer: Peer
    process: trio.Process
    last_words: deque[str] = field(factory=lambda: deque(maxlen=2))

    async def order(self, order: Order) -> None:
        """Give an order. That a process has gone shows elsewhere, by its end."""
        stdin = cast("trio.abc.SendStream", self.process.stdin)  # a pipe, as all three
        with contextlib.suppress(trio.BrokenResourceError):
            await stdin.send_all(encode(order))


class Demo:
    """One run. `stage` is what is known so far, for display."""

    def __init__(self, plan: Plan, *, debug: bool = False) -> None:
        self.stage: Stage = Stage(plan, [Peer(number) for number in range(1, plan.peers + 1)])
        self._debug = debug
        self._processes: list[_Process] = []
        self._changed = trio.Event()
        self._failed = False
        self._stopping = False
        self._scope = trio.CancelScope()
        self._last_start = 0.0
        self._servers: tuple[ServerProcess, ...] = ()
        self._urls: tuple[str, ...] = ()

    async def run(self) -> None:
        """Run it from start to end. What goes wrong is noted in `stage.errors`; nothing is left running."""
        plan = self.stage.plan
        timeout = plan.timeout + (plan.partition or 0.0)
        async with self._serve(), trio.open_nursery() as nursery:
            with trio.move_on_after(timeout) as self._scope:
                await self._start(nursery)
                await self._connect()
                await self._come_to_rest()
                if plan.kill_server:
                    await self._go_on_without_servers()
                    await self._come_to_rest()
                if plan.partition is None:
                    await self._talk(Talk(plan.messages, plan.rate, self._everybody))
                else:
                    await self._part_and_heal(plan.partition)
                    await self._come_to_rest()
                    await self._talk(Talk(0, plan.rate, self._everybody))
            if self._scope.cancelled_caught and not self._failed:
                self._note(f"not done after {timeout:g} s: {self._missing()}")
            await self._stop()
            nursery.cancel_scope.cancel("the demo is over")

    @asynccontextmanager
    async def _serve(self) -> AsyncGenerator[None]:
        """Run the signaling server; if it is to be killed, in a process of its own, and beside it the newcomer's."""
        if not self.stage.plan.kill_server:
            async with open_signaling_server() as server:
                self._urls = (server.url,)
                yield
            return
        async with open_server_process() as server, open_server_process() as door:
            self._servers = (server, door)
            self._urls = (server.url, door.url)
            yield

    async def _start(self, nursery: trio.Nursery) -> None:
        """Start all processes, as many at a time as there are processors: more would slow one another down."""
        for peer in self.stage.peers:
            await self._until(lambda: sum(not peer.ready for peer in self._started) < _PROCESSORS)
            self._last_start = trio.current_time()
            self._processes.append(await nursery.start(self._run_process, peer))
        await self._until(lambda: all(peer.ready for peer in self.stage.peers))

    async def _connect(self) -> None:
        """Let the peers join that do so while there is a signaling server; only the first knows of the newcomer's."""
        plan = self.stage.plan
        for process in self._processes[: plan.founders]:
            await self._join(process, self._urls if process.peer.number == 1 else self._urls[:1])
        await self._until(lambda: self.stage.is_connected(plan.founders))
        self.stage.connected_s = trio.current_time() - self._last_start

    async def _join(self, process: _Process, urls: tuple[str, ...]) -> None:
        plan = self.stage.plan
        seed = None if plan.seed is None else f"{plan.seed}/{process.peer.number}"
        await process.order(
            Join(
                urls,
                plan.peers,
                plan.max_peers,
                plan.messages,
                plan.payload,
                seed,
                partition=plan.partition is not None,
            )
        )

    async def _go_on_without_servers(self) -> None:
        """Kill the signaling server, and let one more peer come.

        It gets one link by a server that only the first peer knows of; then that is killed, too, and the rest is the
        mesh's.
        """
        stage, newcomer = self.stage, self._processes[-1]
        server, door = self._servers
        await server.kill()
        began = trio.current_time()
        stage.door = stage.peers[0].peer_id
        await self._join(newcomer, (door.url,))
        await self._until(lambda: bool(newcomer.peer.links))
        await door.kill()
        await self._until(lambda: bool(stage.newcomer_links) and stage.is_connected(stage.plan.peers))
        stage.newcomer_s = trio.current_time() - began

    async def _come_to_rest(self) -> None:
        """Wait until the ring is closed and nothing changes any more."""
        stage, at_rest = self.stage, False
        while not at_rest:
            await self._until(lambda: not stage.ring_gaps)
            links = stage.links
            with trio.move_on_after(max(REST, REST_SHARE * (stage.connected_s or 0.0))) as scope:
                await self._until(lambda links=links: stage.links != links)  # type: ignore[misc]
            at_rest = scope.cancelled_caught

    async def _part_and_heal(self, seconds: float) -> None:
        """Part the peers into two halves, let each talk among itself, and join them again."""
        stage, plan = self.stage, self.stage.plan
        for process in self._processes:
            half = plan.half_of(process.peer.number)
            beyond = [peer.peer_id for peer in stage.peers if peer.peer_id and plan.half_of(peer.number) != half]
            await process.order(Cut(beyond, server=half == CUT_OFF))
        await self._until(lambda: all(peer.is_severed for peer in stage.peers))
        healing = trio.current_time() + seconds
        await self._order_all(Talk(plan.messages, plan.messages / (SPEECH * seconds), ttl=seconds + HEALING))
        await trio.sleep_until(healing)
        stage.islands_seen = len(stage.islands())
        await self._order_all(Heal())
        await self._until(lambda: stage.is_connected(plan.peers))
        stage.healed_s = trio.current_time() - healing
        await self._until(lambda: stage.all_heard and stage.all_counted)
        stage.caught_up_s = trio.current_time() - healing

    async def _talk(self, talk: Talk) -> None:
        await self._order_all(talk)
        await self._until(lambda: self.stage.all_arrived)
        quiet = False
        while not quiet:
            with trio.move_on_after(QUIET) as scope:
                await self._changed.wait()
            quiet = scope.cancelled_caught

    async def _order_all(self, order: Order) -> None:
        for process in self._processes:
            await process.order(order)

    @property
    def _everybody(self) -> list[str]:
        return [peer.peer_id for peer in self.stage.peers if peer.peer_id is not None]

    async def _stop(self) -> None:
        self._stopping = True
        patience = LEAVE_TIMEOUT + LEAVE_EACH * max(0, len(self._processes) - _PROCESSORS)
        with trio.move_on_after(patience):
            await self._order_all(Stop())
            await self._until(lambda: all(peer.ended for peer in self._started))
        for peer in self._started:
            if not peer.ended:
                self._note(f"{peer.name} (process {peer.pid}) did not end within {patience:g} s of its last order")

    @property
    def _started(self) -> list[Peer]:
        return [process.peer for process in self._processes]

    # --- processes ----------------------------------------------------------------------------------------------------

    async def _run_process(
        self, peer: Peer, *, task_status: trio.TaskStatus[_Process] = trio.TASK_STATUS_IGNORED
    ) -> None:
        command = [sys.executable, "-m", "p2pmesh", *(["--debug"] if self._debug else []), "demo-peer"]
        run = partial(
            trio.run_process,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            deliver_cancel=_end,
        )
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(run)
            peer.pid = process.pid
            known = _Process(peer, process)
            task_status.started(known)
            async with trio.open_nursery() as readers:
                reports, complaints = (
                    cast("trio.abc.ReceiveStream", pipe) for pipe in (process.stdout, process.stderr)
                )
                readers.start_soon(lines_of, reports, partial(self._on_report, known))
                readers.start_soon(lines_of, complaints, partial(self._on_error_line, known))
            status = await process.wait()
        self._on_end(known, status)

    # --- what they say ------------------------------------------------------------------------------------------------

    def _on_error_line(self, known: _Process, line: bytes) -> None:
        text = line.decode(errors="replace")
        if self._debug:
            sys.stderr.write(f"[{known.peer.name}] {text}\n")
        if words := text.strip(_FRAME_OF_GROUPS):
            known.last_words.append(printable(words, _LAST_WORDS))

    def _on_report(self, known: _Process, line: bytes) -> None:
        try:
            self._take(known.peer, REPORTS.decode(line))
        except msgspec.MsgspecError as error:
            self._note(f"{known.peer.name} reported nonsense: {error}")
        self._wake()

    def _take(self, peer: Peer, report: Report) -> None:
        match report:
            case Ready():
                peer.ready = True
            case Joined():
                peer.peer_id = report.peer_id
            case Links():
                if not self._stopping:  # what is left when the others leave says nothing
                    peer.links = tuple(report.peers)
            case Severed():
                peer.is_severed = True
            case Progress():
                peer.progress = report
            case Measured():
                peer.measured = report
            case Trouble():
                self._note(f"{peer.name}: {report.text}")

    def _on_end(self, known: _Process, status: int) -> None:
        peer = known.peer
        peer.ended = True
        if status or not self._stopping:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            words = f": {'; '.join(known.last_words)}" if status > 0 else ""
            self._note(f"{peer.name} (process {peer.pid}) {how}{words}")
            self._failed = True
            self._scope.cancel("a peer is missing: not everything can arrive any more")
        self._wake()

    def _note(self, text: str) -> None:
        self.stage.errors.append(text)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._changed.wait()

    def _missing(self) -> str:
        """What it was waiting for."""
        stage, peers = self.stage, self.stage.peers
        founders = peers[: stage.plan.founders]
        for what, lacking in (
            ("not started", [peer for peer in peers if not peer.ready]),
            ("not let in by the signaling server", [peer for peer in founders if peer.peer_id is None]),
            ("without a link", [peer for peer in founders if not peer.links]),
        ):
            if lacking:
                return f"{what}: {', '.join(peer.name for peer in lacking)}"
        if stage.connected_s is None:
            return "the links are not yet one mesh"
        if stage.plan.kill_server and stage.newcomer_s is None:
            return f"{peers[-1].name} has no link but its first"
        if stage.islands_seen is not None and stage.healed_s is None:
            return f"{len(stage.islands())} islands have not become one mesh again"
        if stage.ring_gaps:
            return f"the ring of ids is not closed: {stage.ring_gaps} links are missing"
        return f"{stage.delivered} of {stage.plan.deliveries} deliveries made"


async def _end(process: trio.Process) -> None:
    process.terminate()
    await trio.sleep(KILL_AFTER)
    process.kill()
