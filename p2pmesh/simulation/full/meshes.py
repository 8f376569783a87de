"""Whole meshes in a box: real `open_mesh`, simulated links, a signaling service in memory, faults at will.

    def test_news_reach_everybody():
        simulate(news_reach_everybody, seed=1)

    async def news_reach_everybody():
        async with simulated_meshes(20, seed=1, max_peers=4) as world:
            await world.linked()
            receipt = await world.meshes[0].broadcast("news", "hello")
            assert (await receipt.settled()).reached == 19

Every peer is what a program would hold, down to the last task; only the carriers below the links and the sockets of the
signaling service are not real. See `docs/simulation.md`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2pmesh.simulation.full.live_invariants import LiveInvariants
from p2pmesh.simulation.full.network import NEARBY, SimNetwork
from p2pmesh.simulation.full.world import World
from p2pmesh.simulation.model.conditioner import Conditions
from p2pmesh.transports.memory import MemoryHub


@asynccontextmanager
async def simulated_meshes(
    count: int = 0, *, seed: int = 0, conditions: Conditions = NEARBY, every: float = 0.0, **options: Any
) -> AsyncGenerator[World, None]:
    """A world of simulated peers. Run it in virtual time: inside `simulate`, or with pytest-trio's `autojump_clock`.

    Args:
      count: peers that join at once; `World.join` brings more.
      seed: of all randomness.
      conditions: what links are like. By default every peer is 10 ms from every other, and nothing gets lost.
      every: seconds between two of those that join.
      options: for each peer, as for `World.peer`; in the first place `max_peers` and `config`.

    Raises:
      InvariantViolated: at the end of the block, if a peer ever had more links than it may, got a message twice, or
        left something behind.

    Error handling:
      What the block raises comes out as it is, with seed and trace as a note. What a part of an application raises that
      was started by `World.start` comes out in an `ExceptionGroup`.
    """
    network = SimNetwork(random.Random(f"network {seed}"), conditions)
    invariants = LiveInvariants(network.reachability)
    network.watcher = invariants
    hub = MemoryHub(rng=random.Random(f"hub {seed}"))
    failure: Exception | None = None
    async with network, trio.open_nursery() as nursery:
        world = World(nursery, network, hub, invariants, seed)
        try:
            nursery.start_soon(invariants.look, world.checkable)
            await world.join(count, every=every, **options)
            yield world
        except Exception as error:  # noqa: BLE001  # raised below, out of the groups of the nurseries
            failure = error
        nursery.cancel_scope.cancel("the simulation ends")
    if hub.snapshot().get("clients"):
        invariants.violate("nothing left", "after everybody left, the service has clients")
    if failure is not None:
        failure.add_note("\n".join(world.account()))
        raise failure
    world.check()
