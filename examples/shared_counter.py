"""A counter that every peer may raise and that all agree on: each peer has a share, and the count is their sum.

Shares only grow, so messages may arrive in any order and more than once without harm (a grow-only counter, Shapiro et
al. 2011): what a mesh with at-most-once delivery and retries is made for.

Run it: python examples/shared_counter.py
"""

import trio

from p2pmesh import Mesh, PeerConnected, open_mesh, open_signaling_server

TOPIC = "counter"


class Counter:
    """One peer's view of the count."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._shares: dict[str, int] = {mesh.peer_id: 0}
        self.changed = trio.Event()

    @property
    def value(self) -> int:
        return sum(self._shares.values())

    async def add(self, amount: int) -> None:
        """Raise our share and tell everybody."""
        self._shares[self._mesh.peer_id] += amount
        await self.announce()

    async def announce(self) -> None:
        """Tell our share again, for peers that have joined since."""
        await self._mesh.broadcast(TOPIC, self._shares[self._mesh.peer_id])

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Learn the others' shares."""
        async with self._mesh.subscribe(TOPIC) as shares:
            task_status.started()
            async for share in shares:
                if isinstance(share.payload, int):
                    self._shares[share.origin] = max(share.payload, self._shares.get(share.origin, 0))
                    self.changed.set()
                    self.changed = trio.Event()

    async def greet(self) -> None:
        """Bring newcomers up to date."""
        async with self._mesh.events() as events:
            async for event in events:
                if isinstance(event, PeerConnected):
                    await self.announce()


async def peer(url: str, number: int, goal: int) -> None:
    """Add our number, and wait until the count is what it must be."""
    async with open_mesh(url, room="counter") as mesh, trio.open_nursery() as nursery:
        counter = Counter(mesh)
        await nursery.start(counter.listen)
        nursery.start_soon(counter.greet)
        await counter.add(number)
        while counter.value < goal:
            await counter.changed.wait()
        print(f"peer {number} counts {counter.value}")
        await trio.sleep(1)  # the others may still need our share passed on
        nursery.cancel_scope.cancel()


async def main() -> None:
    """Three peers count to six together."""
    async with open_signaling_server() as server, trio.open_nursery() as nursery:
        for number in (1, 2, 3):
            nursery.start_soon(peer, server.url, number, 6)


trio.run(main)
