"""Two signaling services, and one peer on both: what was two meshes becomes one. Whole meshes, in virtual time."""

import trio

from p2pmesh.simulation import simulate, simulated_meshes
from p2pmesh.transports.memory import MemoryHub, MemoryTransport


def test_meshes_of_two_services_become_one_by_a_peer_that_is_on_both():
    simulate(meshes_of_two_services, seed=1)


async def meshes_of_two_services():
    one, two = MemoryHub(), MemoryHub()
    async with simulated_meshes(seed=1) as world, trio.open_nursery() as nursery:

        async def live(hubs, *, task_status):
            transports = (MemoryTransport(hub=hub, name=f"service {number}") for number, hub in enumerate(hubs))
            async with world.peer(*transports, max_peers=4):
                task_status.started()
                await trio.sleep_forever()

        for hub in [one] * 4 + [two] * 4:
            await nursery.start(live, [hub])
            await trio.sleep(0.2)
        await trio.sleep(30)
        assert world.islands() == 2
        await nursery.start(live, [one, two])
        await world.until(lambda: world.islands() == 1 and not world.ring_gaps(), within=45)
        receipt = await world.meshes[0].broadcast("t", "to all")
        await world.delivered(receipt, within=5)
        nursery.cancel_scope.cancel()
