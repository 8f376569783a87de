"""Carries out fault plans on whole meshes: each fault is a task that waits for its time, begins it, and ends it."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol, assert_never

import trio

from p2pmesh.errors import TransportUnavailable
from p2pmesh.identity import Identity
from p2pmesh.mesh import Mesh
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.grinding import ground
from p2pmesh.simulation.faults.hostile_peer import Plot
from p2pmesh.simulation.faults.plan import (
    Bad,
    Churn,
    Crash,
    Fault,
    FaultPlan,
    Freeze,
    Hostile,
    JoinStorm,
    Nat,
    Outage,
    Partition,
    Peers,
    Restart,
    Slow,
)
from p2pmesh.simulation.full.network import SimNetwork
from p2pmesh.simulation.model.conditioner import Conditions, Constant
from p2pmesh.simulation.model.obstacles import Cut

FEWEST: Final = 2
"""Peers that faults leave alive: one peer is no mesh."""
TRY_AGAIN: Final = 1.0
"""Seconds until a newcomer that could not reach the service is started again."""


class Stage(Protocol):
    """The world that faults happen to. Its methods are documented in `World`."""

    @property
    def seed(self) -> int: ...
    @property
    def network(self) -> SimNetwork: ...
    @property
    def meshes(self) -> Sequence[Mesh]: ...
    @property
    def plot(self) -> Plot: ...
    async def join(self, *, clock_offset: float = 0.0) -> Sequence[Mesh]: ...
    async def leave(self, who: Mesh, /) -> None: ...
    def crash(self, who: Mesh, /) -> None: ...
    async def restart(self, who: Mesh, /, *, fresh: bool, identity: Identity | None = None) -> Mesh: ...
    def freeze(self, *who: Mesh) -> None: ...
    def thaw(self, *who: Mesh) -> None: ...
    def cut(self, cut: Cut, /) -> Cut: ...
    def heal(self, cut: Cut, /) -> None: ...
    def condition(self, who: Mesh, conditions: Conditions | None, /) -> None: ...
    def service_down(self) -> None: ...
    def service_up(self) -> None: ...
    def turn_hostile(self, who: Mesh, adversary: Adversary, /) -> None: ...


class FaultReplay:
    """The faults of one plan, on a stage."""

    def __init__(self, stage: Stage, plan: FaultPlan) -> None:
        self._stage = stage
        self._plan = plan
        self._rng = random.Random(f"replay {stage.seed}")
        self._outages = 0

    async def run(self) -> None:
        """Let the faults happen, and return when the last is over."""
        async with trio.open_nursery() as nursery:
            start = trio.current_time()
            for fault in self._plan.faults:
                nursery.start_soon(self._carry_out, fault, start + fault.at)

    async def _carry_out(self, fault: Fault, at: float) -> None:
        await trio.sleep_until(at)
        match fault:
            case Partition():
                await self._part(fault)
            case Crash():
                for mesh in self._named(fault.peers):
                    self._crash(mesh)
            case Freeze():
                await self._freeze(fault)
            case Slow():
                async with trio.open_nursery() as nursery:
                    for mesh in self._named(fault.peers):
                        nursery.start_soon(self._slow_down, mesh, fault)
            case Restart():
                await self._restart(fault)
            case JoinStorm():
                await self._storm(fault)
            case Churn():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._arrivals, fault)
                    nursery.start_soon(self._departures, fault)
                    await trio.sleep(fault.seconds)
            case Outage():
                await self._outage(fault)
            case Bad():
                await self._spoil(fault)
            case Nat():
                for mesh in self._named(fault.peers):
                    self._stage.network.reachability.behind(mesh.peer_id, fault.type)
            case Hostile():
                await self._turn(self._named(fault.peers), fault.does)
            case _:
                assert_never(fault)

    def _named(self, numbers: Peers) -> list[Mesh]:
        """The peers that these numbers stand for: counted round among those that are there."""
        meshes = self._stage.meshes
        return list(dict.fromkeys(meshes[number % len(meshes)] for number in numbers)) if meshes else []

    def _crash(self, mesh: Mesh) -> bool:
        if len(self._stage.meshes) <= FEWEST:
            return False
        self._stage.crash(mesh)
        return True

    async def _part(self, fault: Partition) -> None:
        number = self._stage.network.reachability.number
        sides = {number(mesh.peer_id): side for side, who in enumerate(fault.sides) for mesh in self._named(who)}
        rest = None if fault.partial else 0
        cut = self._stage.cut(Cut(sides, one_way=fault.one_way, rest=rest, keeps_service=fault.keeps_service))
        await trio.sleep(fault.seconds)
        self._stage.heal(cut)

    async def _freeze(self, fault: Freeze) -> None:
        meshes = self._named(fault.peers)
        self._stage.freeze(*meshes)
        await trio.sleep(fault.seconds)
        self._stage.thaw(*meshes)

    async def _slow_down(self, mesh: Mesh, fault: Slow) -> None:
        """Let one peer stop and go."""
        ends = trio.current_time() + fault.seconds
        while trio.current_time() + (pause := self._pause(1 / fault.runs)) < ends:
            await trio.sleep(pause)
            self._stage.freeze(mesh)
            await trio.sleep(self._pause(1 / fault.stops))
            self._stage.thaw(mesh)

    async def _restart(self, fault: Restart) -> None:
        meshes = [mesh for mesh in self._named(fault.peers) if self._crash(mesh)]
        await trio.sleep(fault.seconds)
        for mesh in meshes:
            await _patiently(partial(self._stage.restart, mesh, fresh=fault.fresh))

    async def _turn(self, meshes: list[Mesh], adversary: Adversary) -> None:
        if not adversary.comes_anew:
            for mesh in meshes:
                self._stage.turn_hostile(mesh, adversary)
            return
        meshes = [mesh for mesh in meshes if self._crash(mesh)]
        for mesh, identity in zip(meshes, self._identities(adversary, len(meshes)), strict=True):
            await _patiently(partial(self._come_anew, mesh, identity, adversary))

    async def _come_anew(self, mesh: Mesh, identity: Identity | None, adversary: Adversary) -> None:
        self._stage.turn_hostile(await self._stage.restart(mesh, fresh=True, identity=identity), adversary)

    def _identities(self, adversary: Adversary, count: int) -> Sequence[Identity | None]:
        """Of those that come: ground near one of the others, or drawn as anybody's."""
        plot = self._stage.plot
        victims = [mesh.peer_id for mesh in self._stage.meshes if mesh.peer_id not in plot.allies]
        if adversary is not Adversary.GRINDER or not victims:
            return [None] * count
        return ground(self._rng.choice(victims), count, plot.everybody)

    async def _storm(self, fault: JoinStorm) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(fault.count):
                nursery.start_soon(_patiently, partial(self._stage.join, clock_offset=fault.clock_offset))
                await trio.sleep(fault.seconds / fault.count)

    async def _outage(self, fault: Outage) -> None:
        self._outages += 1
        self._stage.service_down()
        await trio.sleep(fault.seconds)
        self._outages -= 1
        if not self._outages:
            self._stage.service_up()

    async def _spoil(self, fault: Bad) -> None:
        bad = Conditions(
            latency=Constant(fault.latency),
            jitter=fault.latency / 4,
            loss=fault.loss,
            bandwidth=fault.bandwidth,
            breaks=fault.breaks,
        )
        meshes = self._named(fault.peers)
        for mesh in meshes:
            self._stage.condition(mesh, bad)
        await trio.sleep(fault.seconds)
        for mesh in meshes:
            self._stage.condition(mesh, None)

    async def _arrivals(self, fault: Churn) -> None:
        ends = trio.current_time() + fault.seconds
        async with trio.open_nursery() as nursery:
            while trio.current_time() + (pause := self._pause(fault.arrivals)) < ends:
                await trio.sleep(pause)
                nursery.start_soon(_patiently, self._stage.join)

    async def _departures(self, fault: Churn) -> None:
        ends = trio.current_time() + fault.seconds
        while trio.current_time() + (pause := self._pause(fault.departures)) < ends:
            await trio.sleep(pause)
            meshes = self._stage.meshes
            if len(meshes) <= FEWEST:
                continue
            mesh = self._rng.choice(meshes)
            if self._rng.random() < fault.crashes:
                self._stage.crash(mesh)
            else:
                await self._stage.leave(mesh)

    def _pause(self, rate: float) -> float:
        """Seconds until the next event of a Poisson process."""
        return self._rng.expovariate(rate) if rate > 0 else math.inf


async def _patiently(join: Callable[[], Awaitable[object]]) -> None:
    """Join as a program does that is started again and again while no service can be reached."""
    while True:
        try:
            await join()
        except TransportUnavailable:
            await trio.sleep(TRY_AGAIN)
        else:
            return
