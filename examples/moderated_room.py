"""A chat room that keeps order: what is no message is passed on by nobody, and whoever shouts is blocked.

Run it: python examples/moderated_room.py
"""

import trio

from p2pmesh import Mesh, MessageReceived, PeerDisconnected, Verdict, open_mesh, open_signaling_server


def in_order(message: MessageReceived) -> Verdict:
    """What each peer of this room asks of a message before it passes it on."""
    match message.payload:
        case {"text": str(text)} if len(text) <= 200:
            return Verdict.ACCEPT
    return Verdict.REJECT


async def read(mesh: Mesh, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Print what is said, until somebody says goodbye."""
    mesh.validate("room", in_order)
    async with mesh.subscribe("room") as room:
        task_status.started()
        async for message in room:
            match message.payload:
                case {"text": "goodbye"}:
                    return
                case {"text": str(text)}:
                    print("ann reads:", text)
                    if text.isupper():
                        await mesh.block(message.origin)
                        print("ann has blocked", len(mesh.blocked))
                case _:
                    raise AssertionError("the validator lets nothing else through")


async def main() -> None:
    """Ann reads, Bob is polite, and Mallory is not."""
    async with (
        open_signaling_server() as server,
        open_mesh(server.url, room="chat") as ann,
        open_mesh(server.url, room="chat") as bob,
        open_mesh(server.url, room="chat") as mallory,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(read, ann)
        await mallory.linked(2)
        async with mallory.events() as events:
            for payload in ("not even a message", {"text": "hello"}, {"text": "BUY NOW"}):
                await mallory.broadcast("room", payload)
            async for event in events:
                if isinstance(event, PeerDisconnected) and event.peer_id == ann.peer_id:
                    break
        await mallory.broadcast("room", {"text": "by way of Bob"})
        await (await bob.broadcast("room", {"text": "it is quiet here"})).settled()
        await bob.broadcast("room", {"text": "goodbye"})


trio.run(main)
