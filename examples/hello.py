"""Two peers in one process: a broadcast, its receipt, and a direct answer.

Run it: python examples/hello.py
"""

import trio

from p2pmesh import open_mesh, open_signaling_server


async def alice(url: str) -> None:
    """Wait for one broadcast and answer its sender alone."""
    async with open_mesh(url, room="demo") as mesh, mesh.subscribe("chat") as chat:
        message = await chat.receive()
        print("alice got", message.payload)
        await mesh.send(message.origin, {"text": "hello yourself"})


async def main() -> None:
    """Start a server and two peers."""
    async with open_signaling_server() as server, trio.open_nursery() as nursery:
        nursery.start_soon(alice, server.url)
        async with open_mesh(server.url, room="demo") as mesh, mesh.messages() as inbox:
            receipt = await mesh.broadcast("chat", {"text": "hello"})
            print(await receipt.settled())
            print("bob got", (await inbox.receive()).payload)


trio.run(main)
