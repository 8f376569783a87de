"""One peer of the demo: a process that does what the orders on its stdin say, and reports on its stdout."""

from __future__ import annotations

import gc
import hashlib
import importlib
import random
import sys
import time
from typing import Any, Final

import trio

from p2pmesh.cli.demo.partition import Switch
from p2pmesh.cli.demo.protocol import (
    ORDERS,
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
from p2pmesh.cli.errors import leaves, one_line
from p2pmesh.cli.line_reader import LineReader
from p2pmesh.config import MeshConfig, SignalingConfig
from p2pmesh.errors import MeshError
from p2pmesh.events import DirectReceived, MessageReceived, PeerConnected, PeerDisconnected, PeerTimedOut
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, parse_peer_id, short
from p2pmesh.mesh import Mesh, open_mesh
from p2pmesh.receipts import Delivered, Receipt
from p2pmesh.subscription import Subscription

TOPIC = "demo"
CONFIG: Final = MeshConfig(signaling=SignalingConfig(retry_cap=4.0))
"""With shorter pauses between tries to reach a server: a demo has less time than a mesh that lasts."""
REPORT_PAUSE = 0.1
"""Seconds between reports of progress: what a live view can show."""
_SLACK = 64
"""Room in a subscription beyond what is expected: for duplicates, which must be seen."""


async def run_peer() -> None:
    """Follow the orders until the last; end at once when nobody is there to give them any more."""
    orders = LineReader(sys.stdin.fileno())
    _warm_up()
    try:
        _say(Ready())
        await _follow(orders)
    except* BrokenPipeError:  # the demo itself is gone
        pass
    except* MeshError as group:
        _say(Trouble(one_line(*leaves(group))))


def _warm_up() -> None:
    """Import what the first link needs now, rather than while all peers connect."""
    importlib.import_module("p2pmesh.transports.websocket")
    gc.freeze()  # else the collector goes through all of that, and once more for half a second as the process ends


async def _follow(orders: LineReader) -> None:
    join = await _order(orders)
    if not isinstance(join, Join):
        return
    identity, rng = seeded(join.seed)
    switch = Switch(join.urls) if join.partition else None
    async with open_mesh(
        *(switch.transports if switch else join.urls),
        room=TOPIC,
        max_peers=join.max_peers,
        identity=identity,
        config=CONFIG,
        rng=rng,
        dialer=switch.dialer if switch else None,
    ) as mesh:
        await _Talker(mesh, join, switch).run(orders)


async def _order(orders: LineReader) -> Order:
    """The next order; `Stop` once nobody is there to give any."""
    line = await orders.read()
    return Stop() if line is None else ORDERS.decode(line)


def seeded(seed: str | None) -> tuple[Identity | None, random.Random | None]:
    """The identity and the randomness that follow from a seed, or None and None for new ones."""
    if seed is None:
        return None, None
    return Identity.from_seed(hashlib.sha256(seed.encode()).digest()), random.Random(seed)


class _Talker:
    """Sends this peer's share, and counts what arrives."""

    def __init__(self, mesh: Mesh, plan: Join, switch: Switch | None) -> None:
        self._mesh = mesh
        self._plan = plan
        self._switch = switch
        self._progress = Progress()
        self._changed = trio.Event()
        self._heard: set[tuple[PeerId, int]] = set()
        self._latency_ms: list[float] = []

    async def run(self, orders: LineReader) -> None:
        mesh, plan = self._mesh, self._plan
        buffer = plan.messages * (plan.peers - 1) + _SLACK
        async with (
            mesh.events(buffer=1024) as events,
            mesh.subscribe(TOPIC, buffer=buffer) as messages,
            mesh.messages(buffer=plan.peers + _SLACK) as directs,
            trio.open_nursery() as nursery,
        ):
            _say(Joined(mesh.peer_id))
            nursery.start_soon(self._report_links, events)
            nursery.start_soon(self._receive, messages)
            nursery.start_soon(self._receive_direct, directs)
            nursery.start_soon(self._report)
            while not isinstance(order := await _order(orders), Stop):
                self._obey(order, nursery)
            _say(self._progress)
            _say(self._measured())
            nursery.cancel_scope.cancel("the demo is over")

    def _obey(self, order: Order, nursery: trio.Nursery) -> None:
        match order:
            case Talk():
                nursery.start_soon(self._send, order)
            case Cut() if self._switch is not None:
                self._switch.cut(map(parse_peer_id, order.peers), server=order.server)
                _say(Severed())
            case Heal() if self._switch is not None:
                self._switch.heal()
            case _:
                _say(Trouble(f"an order out of place: {order}"))

    def _measured(self) -> Measured:
        offers = self._mesh.snapshot()["subsystems"]["signaling"]["delivery"]["offers"]
        return Measured(
            self._latency_ms,
            offers_mesh=offers["mesh"],
            offers_service=offers["service"],
        )

    async def _report_links(self, events: Subscription[Any]) -> None:
        _say(Links(list(self._mesh.peers)))
        async for event in events:
            match event:
                case PeerTimedOut():
                    if self._switch is None or event.peer_id not in self._switch.cut_from:
                        _say(Trouble(f"lost {short(event.peer_id)}: silent for {event.silent_for:.1f} s"))
                    _say(Links(list(self._mesh.peers)))
                case PeerConnected() | PeerDisconnected():
                    _say(Links(list(self._mesh.peers)))
                case _:
                    pass

    async def _send(self, talk: Talk) -> None:
        others = [peer for peer in talk.peers if peer != self._mesh.peer_id]
        async with trio.open_nursery() as nursery:
            for peer in others:
                nursery.start_soon(self._send_direct, peer)
            start = trio.current_time()
            for number in range(talk.messages):
                await trio.sleep_until(start + number / talk.rate)
                receipt = await self._mesh.broadcast(TOPIC, self._payload(number), ttl=talk.ttl)
                self._progress.sent += 1
                self._changed.set()
                nursery.start_soon(self._settle, receipt)

    def _payload(self, number: int) -> Any:
        """A JSON object of the size that was asked for, or the smallest possible."""
        padding = self._plan.payload - len(f'{{"sent":{_now():.6f},"number":{number},"padding":""}}')
        return {"sent": round(_now(), 6), "number": number, "padding": "." * padding}

    async def _settle(self, receipt: Receipt) -> None:
        outcome = await receipt.settled()
        self._changed.set()
        if not isinstance(outcome, Delivered) and self._switch is None:
            self._progress.lost += 1
            return
        reached = self._progress.reached
        place = len(reached)
        reached.append(outcome.reached)
        if self._switch is not None:
            async with receipt.updates() as counts:  # of those, too, who were out of reach: at first that may be all
                async for count in counts:
                    reached[place] = count
                    self._changed.set()

    async def _send_direct(self, peer: str) -> None:
        try:
            await self._mesh.send(peer, {"hello": self._mesh.peer_id})
            self._progress.direct_ok += 1
        except MeshError as error:
            _say(Trouble(f"no direct message to {short(peer)}: {error}"))
        self._progress.direct_done += 1
        self._changed.set()

    async def _receive(self, messages: Subscription[MessageReceived]) -> None:
        async for message in messages:
            match message.payload:
                case {"number": int(number), "sent": float(sent)}:
                    self._count(message.origin, number, sent)
                case _:
                    _say(Trouble(f"a strange broadcast from {short(message.origin)}"))

    def _count(self, origin: PeerId, number: int, sent: float) -> None:
        self._changed.set()
        if (origin, number) in self._heard:
            self._progress.duplicates += 1
            return
        self._heard.add((origin, number))
        self._progress.delivered += 1
        if self._switch is not None:
            self._progress.late += self._switch.is_healed
            self._progress.leaked += not self._switch.is_healed and origin in self._switch.cut_from
        self._latency_ms.append(round((_now() - sent) * 1000, 3))

    async def _receive_direct(self, directs: Subscription[DirectReceived]) -> None:
        async for _ in directs:
            self._progress.direct_received += 1
            self._changed.set()

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            _say(self._progress)
            await trio.sleep(REPORT_PAUSE)


def _say(report: Report) -> None:
    sys.stdout.buffer.write(encode(report))
    sys.stdout.buffer.flush()


def _now() -> float:
    return time.time()  # ruff: ignore[banned-api]  # all processes of the demo share one machine, and its clock
