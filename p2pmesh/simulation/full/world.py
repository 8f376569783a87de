"""The world of simulated peers: what a test does to it, and what it sees of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.errors import ConfigError
from p2pmesh.events import Event
from p2pmesh.identity import Identity
from p2pmesh.mesh import Mesh, open_mesh
from p2pmesh.receipts import Receipt
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.hostile_peer import Plot
from p2pmesh.simulation.faults.plan import FaultPlan
from p2pmesh.simulation.full.adversarial_mesh import AdversarialMesh
from p2pmesh.simulation.full.fault_replay import FaultReplay
from p2pmesh.simulation.full.hosts import Host, Hosts, Who
from p2pmesh.simulation.full.live_invariants import LiveInvariants
from p2pmesh.simulation.full.network import SimNetwork
from p2pmesh.simulation.full.service_transport import ServiceTransport
from p2pmesh.simulation.model.conditioner import Conditions
from p2pmesh.simulation.model.obstacles import Cut, Nat
from p2pmesh.simulation.model.trace import Mark
from p2pmesh.simulation.model.violations import TRACE_LINES, InvariantViolated, Violation, reproduction
from p2pmesh.transports.memory import MemoryHub
from p2pmesh.transports.transport import TransportLike

STEP = 0.05
"""Seconds between two checks of a condition that is waited for."""


class World:
    """Everything that is simulated. Made by `simulated_meshes`.

    Methods that take a peer take its `Mesh`, its id, or its number: peers are numbered from 0 in the order in which
    they came, and one that was restarted has a new number.

    Attributes:
      seed: of all randomness.
      network: the links, for what the methods here don't offer.
      hub: the signaling service.
    """

    def __init__(
        self, nursery: trio.Nursery, network: SimNetwork, hub: MemoryHub, invariants: LiveInvariants, seed: int
    ) -> None:
        self.seed = seed
        self.network = network
        self.hub = hub
        self.plan: object = None
        """The plan that was replayed, which a failure prints."""
        self._nursery = nursery
        self._invariants = invariants
        self._rng = random.Random(f"peers {seed}")
        self._hosts = Hosts()
        self.plot: Plot = Plot()
        """What hostile peers know of each other and of all."""
        self._host = self._hosts.find
        self._alive = self._hosts.alive

    def _seeded(self) -> random.Random:
        return random.Random(self._rng.getrandbits(64))

    # --- peers --------------------------------------------------------------------------------------------------------

    @property
    def meshes(self) -> tuple[Mesh, ...]:
        """The peers that are there, in the order in which they came."""
        return tuple(host.mesh for host in self._alive() if host.mesh is not None)

    def identity(self, number: int) -> Identity:
        """The identity that peer `number` has by default."""
        return Identity.from_seed(hashlib.sha256(f"p2pmesh {self.seed} {number}".encode()).digest())

    async def join(self, count: int = 1, *, every: float = 0.0, **options: Any) -> tuple[Mesh, ...]:
        """Let peers join that stay until they leave, crash, or the world ends. Returns when the service let them in.

        Args:
          count: how many.
          every: seconds from one to the next.
          options: as for `peer`.
        """
        joined = []
        for _ in range(count):
            joined.append(await self._nursery.start(self._live, options))
            if every:
                await trio.sleep(every)
        return tuple(joined)

    @asynccontextmanager
    async def peer(
        self,
        *transports: TransportLike,
        identity: Identity | None = None,
        config: MeshConfig | None = None,
        links: LinkConfig | None = None,
        clock_offset: float = 0.0,
        nat: Nat = "open",
        **options: Any,
    ) -> AsyncGenerator[Mesh, None]:
        """A peer that lives in this block; a crash cancels the block.

        Args:
          transports: its signaling services; by default the world's.
          identity: its keys; by default those that follow from seed and number.
          config: its config; `links` replaces the part of that name.
          links: the config of its links.
          clock_offset: seconds by which its wall clock is fast.
          nat: how its address translator treats strangers.
          options: as for `open_mesh`.
        """
        config = config or MeshConfig()
        if links is not None:
            config = attrs.evolve(config, links=links)
        again = {"identity": identity, "config": config, "clock_offset": clock_offset, "nat": nat, **options}
        host = self._new_host(identity, config, again)
        self.network.reachability.behind(host.peer_id, nat)
        try:
            with host.scope:
                async with self._opened(host, transports or (host.transport,), config, options) as mesh:
                    yield mesh
        finally:
            host.mesh = None
            host.leaving.set()
            host.gone.set()
            self._invariants.gone(host.dialer)

    def start(self, who: Who, app: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run `app(mesh, *args)`, a part of an application, on a peer that came by `join`, as long as that lives."""
        host = self._host(who)
        if host.mesh is None or host.apps is None:
            raise ConfigError(f"peer {host.number} is gone, or lives in a block of its own: start tasks there")
        host.apps.start_soon(partial(app, host.mesh, *args))

    async def leave(self, who: Who) -> None:
        """Let a peer leave in peace. Returns when it is gone."""
        host = self._host(who)
        self._invariants.mark(Mark.STOP, host.number, -1, "leaves")
        host.leaving.set()
        if host.mesh is not None:
            await host.mesh.leave()
        await host.gone.wait()

    def crash(self, who: Who) -> None:
        """End a peer in this moment, without a word, and its application with it."""
        host = self._host(who)
        self._invariants.mark(Mark.STOP, host.number, -1, "crashes")
        host.dialer.crash()
        host.transport.cut()
        host.scope.cancel("crashed")
        host.leaving.set()

    async def restart(self, who: Who, *, fresh: bool = False, identity: Identity | None = None) -> Mesh:
        """End a peer as `crash` does, and start another with the same, a `fresh` or a given identity.

        Returns:
          the other's mesh.
        """
        host = self._host(who)
        if not host.gone.is_set():
            self.crash(who)
            await host.gone.wait()
        if identity is None and not fresh:
            identity = host.identity
        options = {**host.options, "identity": identity, "clock_offset": host.clock_offset}
        (mesh,) = await self.join(**options)
        return mesh

    # --- faults -------------------------------------------------------------------------------------------------------

    def freeze(self, *who: Who) -> None:
        """Stop peers in silence until `thaw`: nothing passes to or from them, also to the service, and all of it waits.

        Their own clocks go on, so a peer that is frozen for long finds that all others have fallen silent.
        """
        for host in map(self._host, who):
            self._invariants.mark(Mark.FAULT, host.number, -1, "freeze")
            self.network.freeze(host.peer_id)
        self._hold_transports()

    def thaw(self, *who: Who) -> None:
        """End `freeze`."""
        for host in map(self._host, who):
            self._invariants.mark(Mark.FAULT, host.number, -1, "thaw")
            self.network.thaw(host.peer_id)
        self._hold_transports()

    def partition(self, *sides: Iterable[Who], one_way: bool = False, keeps_service: bool = True) -> Cut:
        """Let nothing pass, in silence, between peers of different sides until `heal`; peers not named are a side too.

        Args:
          sides: peers that stay together.
          one_way: packets of the first side come through to the others all the same.
          keeps_service: all reach the signaling service; else the first side only.
        """
        ids = [self._hosts.ids(side) for side in sides]
        return self.cut(self.network.reachability.split(ids, one_way=one_way, keeps_service=keeps_service))

    def part(self, some: Iterable[Who], others: Iterable[Who], *, one_way: bool = False) -> Cut:
        """Let nothing pass between these two groups until `heal`; all other peers, and the service, reach both."""
        return self.cut(
            self.network.reachability.between(self._hosts.ids(some), self._hosts.ids(others), one_way=one_way)
        )

    def cut(self, cut: Cut) -> Cut:
        """Put a partition in force, besides those that are."""
        self._invariants.mark(Mark.FAULT, -1, -1, "cut")
        self.network.cut(cut)
        self._hold_transports()
        return cut

    def heal(self, cut: Cut | None = None) -> None:
        """End a partition, or all of them."""
        self._invariants.mark(Mark.FAULT, -1, -1, "heal")
        self.network.heal(cut)
        self._hold_transports()

    def break_link(self, a: Who, b: Who, reason: str = "the connection broke") -> None:
        """Break the link between two peers; what is under way is lost, and both sides notice at once."""
        near, far = self._host(a), self._host(b)
        self._invariants.mark(Mark.FAULT, near.number, far.number, "break")
        self.network.break_link(near.peer_id, far.peer_id, reason)

    def condition(self, who: Who, conditions: Conditions | None) -> None:
        """Set what the links of this peer are like from now on: slow, narrow, lossy. None: like those of all others."""
        host = self._host(who)
        self._invariants.mark(Mark.FAULT, host.number, -1, "condition")
        self.network.condition(host.peer_id, conditions)

    def set_clock(self, who: Who, offset: float) -> None:
        """Set by how many seconds a peer's wall clock is fast."""
        host = self._host(who)
        self._invariants.mark(Mark.FAULT, host.number, -1, "clock")
        host.clock_offset = offset

    def service_down(self, *, abruptly: bool = True) -> None:
        """Stop the signaling service, which forgets everybody; with a goodbye to each unless `abruptly`."""
        self._invariants.mark(Mark.FAULT, -1, -1, "service down")
        self.hub.stop(abruptly=abruptly)

    def service_up(self) -> None:
        """Start it again."""
        self._invariants.mark(Mark.FAULT, -1, -1, "service up")
        self.hub.start()

    def turn_hostile(self, who: Who, adversary: Adversary) -> None:
        """From now on this peer works against the others."""
        host = self._host(who)
        if host.mesh is None:
            raise ConfigError(f"peer {host.number} is gone")
        self._invariants.mark(Mark.FAULT, host.number, -1, adversary.value)
        self.plot.allies.append(host.peer_id)
        self.start(who, AdversarialMesh(host.mesh, adversary, self._seeded(), self.plot).run)

    async def replay(self, plan: FaultPlan) -> None:
        """Let the faults of a plan happen, its time beginning now. Returns when the last is over.

        Raises:
          ConfigError: if the plan makes no sense for so many peers.
        """
        plan.check(len(self.meshes))
        self.plan = plan
        await FaultReplay(self, plan).run()

    def calm(self) -> None:
        """End every fault that can end: partitions, freezes, bad links, address translators, outages."""
        self.heal()
        self.thaw(*(host.number for host in self._alive()))
        for host in self._alive():
            self.condition(host.number, None)
            self.network.reachability.behind(host.peer_id, "open")
        self.service_up()

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], object], *, within: float = 60.0) -> None:
        """Wait until `condition()` holds.

        Raises:
          trio.TooSlowError: if it still does not after `within` virtual seconds.
        """
        deadline = trio.current_time() + within
        while not condition():
            if trio.current_time() >= deadline:
                raise trio.TooSlowError(f"not within {within:g} s")
            await trio.sleep(STEP)

    async def linked(self, *who: Who, within: float = 120.0) -> None:
        """Wait until links connect any two of these peers, by default all peers.

        Raises:
          trio.TooSlowError: if they don't after `within` virtual seconds.
        """
        await self.until(lambda: self.islands(*who) == 1, within=within)

    async def delivered(self, broadcast: Receipt | str, *who: Who, within: float = 60.0) -> None:
        """Wait until the applications of these peers, by default of all but its origin, have a broadcast.

        Raises:
          trio.TooSlowError: with the numbers of the peers that lack it, if some do after `within` virtual seconds.
        """
        message_id = broadcast if isinstance(broadcast, str) else broadcast.message_id
        hosts = [self._host(one) for one in who] if who else self._alive()

        def lacking() -> list[int]:
            has_it = {*self._invariants.got(message_id), self._invariants.origin(message_id)}
            return [host.number for host in hosts if host.number not in has_it and not host.leaving.is_set()]

        try:
            await self.until(lambda: not lacking(), within=within)
        except trio.TooSlowError:
            names = ", ".join(f"n{number}" for number in lacking())
            raise trio.TooSlowError(f"after {within:g} s, {names} lack message {message_id}") from None

    # --- what is there ------------------------------------------------------------------------------------------------

    def islands(self, *who: Who) -> int:
        """The number of parts, without links between them, that these peers fall into; by default all peers."""
        return self._hosts.islands([self._host(one) for one in who] if who else self._alive())

    def holders(self, message_id: str) -> dict[int, float]:
        """The numbers of the peers whose application got this broadcast, and when."""
        return dict(self._invariants.got(message_id))

    def ring_gaps(self) -> list[tuple[int, int]]:
        """Peers that have no link to the one that follows them on the ring of ids, with that one."""
        return self._hosts.ring_gaps()

    def observe(self, hear: Callable[[int, Event], None]) -> None:
        """Call `hear(number, event)` with every event that any peer emits, at the moment it happens."""
        self._invariants.listeners.append(hear)

    def violate(self, invariant: str, what: str) -> None:
        """Report that a rule of your own was broken: the simulation ends with it."""
        self._invariants.violate(invariant, what)

    @property
    def violations(self) -> tuple[Violation, ...]:
        """What has happened and must not: links above the cap, a message delivered twice, something left behind."""
        return tuple(self._invariants.violations)

    def trace(self, lines: int = TRACE_LINES) -> list[str]:
        """The last events, one line each."""
        return self._invariants.trace.tail(lines)

    def digest(self) -> str:
        """A hash of all that has happened. Under `simulate` it is the same in each run with the same seeds."""
        return self._invariants.trace.digest()

    def check(self) -> None:
        """Check that nothing happened that must not. Done at the end of every simulation.

        Raises:
          InvariantViolated: with seed, plan and trace, if something did not.
        """
        if self._invariants.violations:
            raise InvariantViolated("\n".join([*map(str, self._invariants.violations), *self.account()]))

    def account(self) -> list[str]:
        """What it takes to see this run again: the seed, the plan, and the end of the trace."""
        return reproduction(self.seed, self.plan, self.trace())

    def checkable(self) -> list[tuple[int, Mesh]]:
        """The peers that are there, with their numbers."""
        return [(host.number, host.mesh) for host in self._alive() if host.mesh is not None]

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _live(self, options: dict[str, Any], *, task_status: trio.TaskStatus[Mesh]) -> None:
        async with self.peer(**options) as mesh:
            host = self._host(mesh)
            async with trio.open_nursery() as host.apps:
                task_status.started(mesh)
                await host.leaving.wait()
                host.apps.cancel_scope.cancel("the peer is leaving")
            host.apps = None

    def _new_host(self, identity: Identity | None, config: MeshConfig, options: dict[str, Any]) -> Host:
        number = len(self._hosts)
        identity = identity or self.identity(number)
        dialer = self.network.dialer(identity.peer_id, config.links, config.max_frame, number)
        host = Host(number, identity, dialer, ServiceTransport(self.hub), options, options["clock_offset"])
        self._hosts.add(host)
        self.plot.everybody.append(identity.peer_id)
        self._hold_transports()
        self._invariants.mark(Mark.JOIN, number)
        self._invariants.expect(dialer, options.get("max_peers") or config.max_peers)
        return host

    @asynccontextmanager
    async def _opened(
        self, host: Host, transports: Iterable[TransportLike], config: MeshConfig, options: dict[str, Any]
    ) -> AsyncGenerator[Mesh, None]:
        async with open_mesh(
            *transports,
            identity=host.identity,
            config=config,
            dialer=host.dialer,
            rng=self._seeded(),
            wall_clock=host.wall_clock,
            **options,
        ) as mesh:
            mesh._node.bus.tap(partial(self._invariants.heard, host.number))
            host.mesh = mesh
            yield mesh

    def _hold_transports(self) -> None:
        for host in self._hosts.present():
            if self.network.reachability.reaches_service(host.peer_id):
                host.transport.resume()
            else:
                host.transport.hold()
