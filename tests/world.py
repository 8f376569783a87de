"""Whole meshes in virtual time: real `open_mesh`, simulated links, a signaling service in memory."""

import random
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from p2pmesh import Identity, MeshConfig, open_mesh
from p2pmesh.simulation.network import SimNetwork
from p2pmesh.transports.memory import MemoryHub, MemoryTransport

EPOCH = 1_800_000_000.0


def virtual_wall(now):
    return EPOCH + now


class World:
    """A network, a hub, and the peers in them. Peers are numbered, and have the same id in each run."""

    def __init__(self, seed=0, **network):
        self.rng = random.Random(seed)
        self.hub = MemoryHub(rng=random.Random(seed))
        self.network = SimNetwork(random.Random(seed), **network)
        self._stack = AsyncExitStack()

    async def __aenter__(self):
        await self._stack.enter_async_context(self.network)
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(self, *exc):
        self._nursery.cancel_scope.cancel("the world ends")
        return await self._stack.__aexit__(*exc)

    def identity(self, number):
        return Identity.from_seed(bytes([number]) * 32)

    @asynccontextmanager
    async def peer(self, number, *, transports=None, identity=None, links=None, **options):
        identity = identity or self.identity(number)
        config = options.pop("config", None) or MeshConfig()
        if links is not None:
            config = attrs.evolve(config, links=links)
        async with open_mesh(
            *(transports or [MemoryTransport(hub=self.hub, name="hub")]),
            identity=identity,
            config=config,
            dialer=self.network.dialer(identity.peer_id, config.links, config.max_frame),
            rng=random.Random(number),
            wall_clock=virtual_wall,
            **options,
        ) as mesh:
            yield mesh

    async def join(self, count, **options):
        """That many peers, which stay until the world's end."""
        return [await self._nursery.start(self._live, n + 1, options) for n in range(count)]

    async def _live(self, number, options, *, task_status):
        async with self.peer(number, **options) as mesh:
            task_status.started(mesh)
            await trio.sleep_forever()


async def until(condition, timeout=60.0, step=0.05):
    """Wait in virtual time until `condition()` holds."""
    with trio.fail_after(timeout):
        while not condition():
            await trio.sleep(step)


async def linked(*meshes, timeout=60.0):
    """Wait until the links between these meshes make one connected graph."""
    await until(lambda: is_connected(meshes), timeout)


def is_connected(meshes):
    links = {mesh.peer_id: mesh.peers for mesh in meshes}
    reached, frontier = set(), [meshes[0].peer_id]
    while frontier:
        peer = frontier.pop()
        if peer not in reached and peer in links:
            reached.add(peer)
            frontier += [other for other in links[peer] if peer in links.get(other, ())]
    return len(reached) == len(meshes)
