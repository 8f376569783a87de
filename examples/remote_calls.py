"""Calls from peer to peer over direct messages: an answer carries the number of its question.

Run it: python examples/remote_calls.py
"""

import itertools

import trio

from p2pmesh import Mesh, PeerConnected, PeerId, open_mesh, open_signaling_server


class Caller:
    """Asks other peers, and waits for their answers."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._numbers = itertools.count()
        self._waiting: dict[int, trio.MemorySendChannel[object]] = {}

    async def call(self, peer: PeerId, question: str) -> object:
        """Ask `peer`; put a deadline of your own around it."""
        number = next(self._numbers)
        sender, receiver = trio.open_memory_channel[object](1)
        self._waiting[number] = sender
        try:
            await self._mesh.send(peer, {"number": number, "question": question})
            return await receiver.receive()
        finally:
            del self._waiting[number]

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer questions, and take answers."""
        async with self._mesh.messages() as inbox:
            task_status.started()
            async for message in inbox:
                match message.payload:
                    case {"number": int(number), "question": str(question)}:
                        await self._mesh.send(message.origin, {"number": number, "answer": question.upper()})
                    case {"number": int(number), "answer": answer} if number in self._waiting:
                        self._waiting[number].send_nowait(answer)
                    case _:
                        pass  # somebody else's protocol


async def serve(url: str) -> None:
    """Answer until cancelled."""
    async with open_mesh(url) as mesh:
        await Caller(mesh).listen()


async def main() -> None:
    """Ask a peer something."""
    async with open_signaling_server() as server, trio.open_nursery() as nursery:
        nursery.start_soon(serve, server.url)
        async with open_mesh(server.url) as mesh, mesh.events() as events, trio.open_nursery() as listening:
            caller = Caller(mesh)
            await listening.start(caller.listen)
            async for event in events:
                if isinstance(event, PeerConnected):
                    with trio.fail_after(5):
                        print("answer:", await caller.call(event.peer_id, "how are you?"))
                    break
            listening.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


trio.run(main)
