"""The worlds of this suite: `simulated_meshes`, with peers whose numbers and ids each test chooses."""

from contextlib import AsyncExitStack, asynccontextmanager

import trio

from p2pmesh import Identity
from p2pmesh.simulation import simulated_meshes


class Cluster:
    """A simulated world. Peers have the same ids in each run, whatever the seed. Leaving it checks its invariants."""

    def __init__(self, seed=0):
        self._stack = AsyncExitStack()
        self._seed = seed

    async def __aenter__(self):
        self.simulated = await self._stack.enter_async_context(simulated_meshes(seed=self._seed))
        self.network, self.hub = self.simulated.network, self.simulated.hub
        return self

    async def __aexit__(self, *exc):
        return await self._stack.__aexit__(*exc)  # noqa: ASYNC102  # as bounded as what it closes

    def identity(self, number):
        return Identity.from_seed(bytes([number]) * 32)

    @asynccontextmanager
    async def peer(self, number, *, transports=(), identity=None, **options):
        async with self.simulated.peer(*transports, identity=identity or self.identity(number), **options) as mesh:
            yield mesh

    async def join(self, count, **options):
        """That many peers, which stay until the world's end."""
        return [
            mesh for n in range(count) for mesh in await self.simulated.join(identity=self.identity(n + 1), **options)
        ]


async def until(condition, timeout=60.0, step=0.05):  # noqa: ASYNC109  # of a test's own clock
    """Wait in virtual time until `condition()` holds."""
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110  # any condition at all
            await trio.sleep(step)


async def linked(*meshes, timeout=60.0):  # noqa: ASYNC109
    """Wait until the links between these meshes make one connected graph."""
    await until(lambda: is_connected(meshes), timeout)


async def at_rest(*meshes, quiet=3.0, timeout=120.0):  # noqa: ASYNC109
    """Wait until the links between these meshes make one connected graph and have not changed for a while."""
    with trio.fail_after(timeout):
        before = None
        while before != (before := [mesh.peers for mesh in meshes]) or not is_connected(meshes):
            await trio.sleep(quiet)


def is_connected(meshes):
    links = {mesh.peer_id: mesh.peers for mesh in meshes}
    reached, frontier = set(), [meshes[0].peer_id]
    while frontier:
        peer = frontier.pop()
        if peer not in reached and peer in links:
            reached.add(peer)
            frontier += [other for other in links[peer] if peer in links.get(other, ())]
    return len(reached) == len(meshes)
