"""One peer of a mesh in a process of its own: orders come as JSON lines on stdin, what happens goes to stdout.

Each line out has "at" (monotonic seconds, the same clock for all processes of a machine) and "ev": the name of an event
of the mesh with its fields, or one of those below. The end of stdin ends it as "leave" does. Orders:

    {"do": "broadcast", "count": 100, "rate": 20, "size": 500, "ttl": 60, "tag": "a"}    rate 0: as fast as it goes
    {"do": "hush"}                                                     end all broadcasts, for good
    {"do": "send", "to": [ids], "size": 100, "tag": "d", "deadline": 40}    a message to each, one after another
    {"do": "flood", "to": id, "seconds": 3, "size": 1024, "at_once": 64}    throughput of direct messages
    {"do": "pings", "to": id, "count": 200, "seconds": 30}             how long `send` takes, which awaits the receipt
    {"do": "state", "all": false, "tag": "a"}, {"do": "leave"}
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import trio

from p2pmesh import DirectReceived, IceServer, Mesh, MeshError, MessageReceived, open_mesh

HEAD = struct.Struct(">dI8s")
"""What a payload begins with: when it was sent, its number, its tag."""
FLOOD = b"flood"
QUIET = {"MessageReceived", "DirectReceived", "MessageDelivered"}
"""Events that are told otherwise, or counted alone."""
BUFFER = 100_000
"""Items that may wait for us: what a slow machine makes us drop would look like a loss."""


def tell(ev: str, **what: Any) -> None:
    sys.stdout.write(json.dumps({"at": round(time.monotonic(), 4), "ev": ev, **what}) + "\n")
    sys.stdout.flush()


def resources() -> dict[str, Any]:
    """What this process takes: MiB of memory, descriptors, tasks, seconds of CPU."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    times = os.times()
    return {
        "rss": round(resident, 2),
        "fds": len(os.listdir("/proc/self/fd")),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "cpu": round(times.user + times.system, 2),
    }


class Peer:
    def __init__(self, mesh: Mesh, state_every: float) -> None:
        self.mesh = mesh
        self.state_every = state_every
        self.hushed = trio.Event()

    # --- what happens -------------------------------------------------------------------------------------------------

    async def events(self) -> None:
        async with self.mesh.events(buffer=BUFFER) as events:
            async for event in events:
                name = type(event).__name__
                if name not in QUIET:
                    tell(name, **attrs.asdict(event), links=self.mesh.peer_count)

    async def broadcasts(self) -> None:
        async with self.mesh.subscribe(buffer=BUFFER) as stream:
            async for message in stream:
                self.got("got", message)

    async def directs(self) -> None:
        async with self.mesh.messages(buffer=BUFFER) as stream:
            async for message in stream:
                self.got("direct", message)

    @staticmethod
    def got(ev: str, message: MessageReceived | DirectReceived) -> None:
        assert isinstance(message.payload, bytes)
        sent, number, tag = HEAD.unpack_from(message.payload)
        if (tag := tag.rstrip(b"\0")) != FLOOD:
            elapsed = round((time.monotonic() - sent) * 1e3, 2)
            tell(ev, o=message.origin, n=number, tag=tag.decode(), ms=elapsed, hops=message.hops)

    async def states(self) -> None:
        while self.state_every:
            await self.do_state({})
            await trio.sleep(self.state_every)

    # --- what is asked for --------------------------------------------------------------------------------------------

    async def orders(self) -> None:
        stdin = trio.lowlevel.FdStream(os.dup(0))
        buffer = b""
        async with trio.open_nursery() as nursery:
            while data := await stdin.receive_some(65536):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    if order["do"] == "leave":
                        nursery.cancel_scope.cancel()
                        return
                    nursery.start_soon(getattr(self, "do_" + order["do"]), order)
            nursery.cancel_scope.cancel()

    @staticmethod
    def payload(number: int, tag: str, size: int) -> bytes:
        return HEAD.pack(time.monotonic(), number, tag.encode()[:8]).ljust(size, b"x")

    async def do_broadcast(self, order: dict[str, Any]) -> None:
        rate, tag = order.get("rate", 20), order["tag"]
        async with trio.open_nursery() as settling:
            due = trio.current_time()
            for number in range(order.get("count", 1)):
                if self.hushed.is_set():
                    break
                began = time.monotonic()
                payload = self.payload(number, tag, order.get("size", 500))
                receipt = await self.mesh.broadcast("load", payload, ttl=order.get("ttl"))
                tell("sent", n=number, tag=tag, waited=round(time.monotonic() - began, 4))
                settling.start_soon(self.settle, receipt, number, tag)
                if rate:
                    due += 1 / rate
                    with trio.move_on_at(due):
                        await self.hushed.wait()
            tell("broadcast_done", tag=tag)

    async def settle(self, receipt: Any, number: int, tag: str) -> None:
        result = await receipt.settled()
        tell(
            "receipt", n=number, tag=tag, kind=type(result).__name__, reached=result.reached,
            reason=getattr(result, "reason", None), elapsed=round(getattr(result, "elapsed", 0), 3),
        )  # fmt: skip

    async def do_hush(self, order: dict[str, Any]) -> None:
        self.hushed.set()

    async def do_send(self, order: dict[str, Any]) -> None:
        tag, deadline = order.get("tag", "d"), order.get("deadline", 40)
        for number, to in enumerate(order["to"]):
            began = time.monotonic()
            error = None
            with trio.move_on_after(deadline) as scope:
                try:
                    await self.mesh.send(to, self.payload(number, tag, order.get("size", 100)))
                except Exception as problem:  # whatever it is, it is what we want to know
                    error = f"{type(problem).__name__}: {problem}"
            if scope.cancelled_caught:
                error = f"not within {deadline} s"
            tell("sent_direct", to=to, n=number, tag=tag, error=error, s=round(time.monotonic() - began, 3))

    async def do_flood(self, order: dict[str, Any]) -> None:
        body = HEAD.pack(0, 0, FLOOD).ljust(order["size"], b"x")
        sent = 0
        began = time.monotonic()

        async def keep_on() -> None:
            nonlocal sent
            while True:
                await self.mesh.send(order["to"], body)
                sent += 1

        problem = None
        try:
            with trio.move_on_after(order.get("seconds", 3)):
                async with trio.open_nursery() as nursery:
                    for _ in range(order.get("at_once", 64)):
                        nursery.start_soon(keep_on)
        except ExceptionGroup as error:
            problem = repr(error.exceptions[0])
        rate = sent / (time.monotonic() - began)
        tell("flooded", per_s=round(rate, 1), MB_per_s=round(rate * order["size"] / 1e6, 3), error=problem)

    async def do_pings(self, order: dict[str, Any]) -> None:
        times: list[float] = []
        error = None
        with trio.move_on_after(order.get("seconds", 30)):
            for number in range(order.get("count", 200)):
                began = time.monotonic()
                try:
                    await self.mesh.send(order["to"], self.payload(number, "ping", 100))
                except Exception as problem:  # whatever it is, it is what we want to know
                    error = repr(problem)
                    break
                times.append(round((time.monotonic() - began) * 1e3, 2))
        tell("pinged", ms=times, error=error)

    async def do_state(self, order: dict[str, Any]) -> None:
        more = {"snapshot": self.mesh.snapshot()} if order.get("all") else {}
        tell("state", tag=order.get("tag"), **resources(), peers=list(self.mesh.peers), **more)


async def main(options: argparse.Namespace) -> None:
    urls = options.url.split(",")
    began = time.monotonic()
    try:
        servers = [IceServer(**server) for server in json.loads(options.ice)]
        async with open_mesh(*urls, room="net", max_peers=options.max_peers, ice_servers=servers) as mesh:
            tell("entered", id=mesh.peer_id, s=round(time.monotonic() - began, 3))
            peer = Peer(mesh, options.state_every)
            async with trio.open_nursery() as nursery:
                for task in (peer.events, peer.broadcasts, peer.directs, peer.states):
                    nursery.start_soon(task)
                await peer.orders()
                nursery.cancel_scope.cancel()
        tell("left")
    except Exception as error:
        tell("ended", error=f"{type(error).__name__}: {error}", s=round(time.monotonic() - began, 3))
        if isinstance(error, MeshError):  # told in words; of others one wants the traceback
            sys.exit(1)
        raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of one signaling server or, with commas, of several")
    parser.add_argument("--max-peers", type=int, default=3)
    parser.add_argument("--ice", default="[]", help="a JSON list of {urls, username, credential}")
    parser.add_argument(
        "--state-every", type=float, default=0, help="tell of memory, files and tasks so often, in seconds"
    )
    logging.basicConfig(
        level=logging.DEBUG if os.environ.get("DEBUG") else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    trio.run(main, parser.parse_args())
