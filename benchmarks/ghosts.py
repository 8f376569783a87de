"""Ghosts: clients that fill a room of the signaling service with made-up ids. How soon has a newcomer its first link?

    python benchmarks/ghosts.py --json                       # simulated: every kind of ghost, 5 seeds, a minute
    python benchmarks/ghosts.py --kinds signed --seeds 20
    python benchmarks/ghosts.py --real --json                # a real server, WebRTC links, 250 WebSocket clients

A mesh of `--peers` comes to rest, `--ghosts` clients join its room, then `--newcomers` peers come, one every
`--every` seconds. Kinds of ghosts: `unsigned` (their joins prove nothing), `signed` (each has a fresh key), `rejecting`
(signed, and they turn every offer down), `fake` (signed, they make each other offers and answer those of all, with
what leads nowhere). Each comes from one address and from 200 networks.

With `--json` each line is an object: one for each kind and seed (`kind`, `networks`, `seed`, `first_link_s`: of each
newcomer, null if it got none within `--within` seconds; `links` that they have at the end), and last the `summary`:
for each kind the `worst_s` and `median_s` of all newcomers, how many had none (`without`), and whether all were `met`
within 5 s. The exit status is 1 if one was not, `fake` aside: against that the figure is told, and nothing promised.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from p2pmesh import Identity, MeshConfig, ServerConfig, open_mesh, open_signaling_server
from p2pmesh.protocols.signaling.handshake import sign_join
from p2pmesh.simulation import BareNetwork, Conditions, Constant
from p2pmesh.simulation.model.event_queue import EPOCH
from p2pmesh.wire.codec import encode_signaling
from p2pmesh.wire.signaling import Join, SignalingMessage

BAR = 5.0
KINDS = ("unsigned", "signed", "rejecting", "fake")
NETWORKS = (1, 200)
PROMISED = ("unsigned", "signed", "rejecting")
LATENCY = 0.05
STEP = 0.05
SETTLE = 30.0


class Ghost:
    """What a ghost says: its join, and what it answers."""

    def __init__(self, kind: str, number: int, rng: random.Random, wall_ms: int, room: str = "") -> None:
        self.kind = kind
        identity = Identity.from_seed(rng.randbytes(32))
        self.peer_id = identity.peer_id
        self.join: SignalingMessage = sign_join(identity, room, wall_ms)
        if kind == "unsigned":
            self.join = Join(peer_id=self.peer_id, room=room, version=1)
        self.address = f"10.9.{number % 200}.1"

    def answers(self, text: str | bytes) -> Iterator[str]:
        """What it says to a message."""
        message = json.loads(text)
        if message["type"] == "bootstrap_peers" and self.kind == "fake":
            for peer in message["peers"]:
                yield self._signal(peer["id"], "offer")
        if message["type"] != "signal" or message["signal"]["type"] != "offer":
            return
        if self.kind == "rejecting":
            yield json.dumps({"type": "connection_rejected", "to": message["from"], "reason": "full"})
        if self.kind == "fake":
            yield self._signal(message["from"], "answer")

    @staticmethod
    def _signal(to: str, kind: str) -> str:
        return json.dumps({"type": "signal", "to": to, "signal": {"type": kind, "sdp": "v=0"}})


# --- simulated --------------------------------------------------------------------------------------------------------


def simulated(options: argparse.Namespace, kind: str, networks: int, seed: int) -> dict[str, Any]:
    """One mesh, with its ghosts and newcomers."""
    config = MeshConfig(max_peers=options.max_peers)
    net = BareNetwork(seed, config=config, conditions=Conditions(latency=Constant(LATENCY)), strict=False)
    for _ in range(options.peers):
        net.add()
        net.run(0.1)
    net.run(SETTLE)
    rng = random.Random(seed)
    for number in range(options.ghosts):
        ghost = Ghost(kind, number, rng, int((EPOCH + net.now) * 1000))
        net.service.stranger(ghost.address if networks > 1 else "10.9.0.1", encode_signaling(ghost.join), ghost.answers)
    net.run(1.0)
    newcomers = []
    taken: list[float | None] = []
    for _ in range(options.newcomers):
        newcomer = net.add()
        newcomers.append(newcomer)
        began = net.now
        while not newcomer.peers and net.now < began + options.within:
            net.run(STEP)
        taken.append(round(net.now - began, 2) if newcomer.peers else None)
        net.run(max(0.0, began + options.every - net.now))
    return {"first_link_s": taken, "links": [len(newcomer.peers) for newcomer in newcomers]}


# --- real -------------------------------------------------------------------------------------------------------------


async def real(options: argparse.Namespace, kind: str, networks: int, seed: int) -> dict[str, Any]:
    """The same over sockets, on this machine."""
    server_config = ServerConfig(clients_per_address=10_000, connect_burst=10_000)
    mesh_config = MeshConfig(max_peers=options.max_peers, room="ghosts")
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_signaling_server(config=server_config))
        for _ in range(options.peers):
            await stack.enter_async_context(open_mesh(server.url, config=mesh_config))
        await trio.sleep(options.settle)
        async with trio.open_nursery() as nursery:
            for number in range(options.ghosts):
                ghost = Ghost(kind, number, rng, _wall_ms(), "ghosts")
                await nursery.start(_haunt, server.url, ghost, networks > 1)
            measured = await _newcomers(options, server.url, mesh_config)
            nursery.cancel_scope.cancel("measured")
    return measured


async def _newcomers(options: argparse.Namespace, url: str, config: MeshConfig) -> dict[str, Any]:
    newcomers = []
    taken: list[float | None] = []
    async with AsyncExitStack() as stack:
        for _ in range(options.newcomers):
            began = trio.current_time()
            newcomer = await stack.enter_async_context(open_mesh(url, config=config))
            newcomers.append(newcomer)
            with trio.move_on_after(options.within):
                while not newcomer.peer_count:  # noqa: ASYNC110  # whichever event tells of the first one
                    await trio.sleep(STEP)
            taken.append(round(trio.current_time() - began, 2) if newcomer.peer_count else None)
            await trio.sleep_until(began + options.every)
        return {"first_link_s": taken, "links": [newcomer.peer_count for newcomer in newcomers]}


async def _haunt(
    url: str, ghost: Ghost, has_network: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """A ghost's connection: behind a proxy of this machine, if it is to come from a network of its own."""
    headers = [(b"X-Forwarded-For", ghost.address.encode())] if has_network else []
    async with open_websocket_url(url, extra_headers=headers) as socket:
        await socket.send_message(encode_signaling(ghost.join))
        task_status.started()
        await _answer(socket, ghost)


async def _answer(socket: WebSocketConnection, ghost: Ghost) -> None:
    while True:
        for said in ghost.answers(await socket.get_message()):
            await socket.send_message(said)


def _wall_ms() -> int:
    return int(time.time() * 1000)


# --- all --------------------------------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    results: dict[str, list[float | None]] = {}
    for kind in options.kinds:
        for networks in NETWORKS:
            for seed in range(1, options.seeds + 1):
                if options.real:
                    measured = trio.run(real, options, kind, networks, seed)
                else:
                    measured = simulated(options, kind, networks, seed)
                line = {"kind": kind, "networks": networks, "seed": seed, **measured}
                print(json.dumps(line) if options.json else _said(line), flush=True)
                results.setdefault(f"{kind} from {networks}", []).extend(measured["first_link_s"])
    summary = {name: _summed(times) for name, times in results.items()}
    if options.json:
        print(json.dumps({"summary": summary}))
    else:
        for name, figures in summary.items():
            print(f"{name}: {figures}")
    return int(any(not figures["met"] for name, figures in summary.items() if name.split()[0] in PROMISED))


def _summed(times: list[float | None]) -> dict[str, Any]:
    linked = [time for time in times if time is not None]
    return {
        "worst_s": max(linked, default=None),
        "median_s": statistics.median(linked) if linked else None,
        "without": len(times) - len(linked),
        "met": len(linked) == len(times) and max(linked, default=0.0) <= BAR,
    }


def _said(line: dict[str, Any]) -> str:
    times = ", ".join("none" if one is None else f"{one:.2f}" for one in line["first_link_s"])
    return f"{line['kind']} from {line['networks']}, seed {line['seed']}: first links after {times} s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, an object for each line")
    parser.add_argument("--real", action="store_true", help="a real server and WebRTC links, in real time")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, help="how many; 5 simulated, 1 real")
    parser.add_argument("--peers", type=int, help="of the mesh; 20 simulated, 8 real")
    parser.add_argument("--max-peers", type=int, default=5)
    parser.add_argument("--ghosts", type=int, default=250)
    parser.add_argument("--newcomers", type=int, default=6)
    parser.add_argument("--every", type=float, default=6.0, help="seconds between newcomers")
    parser.add_argument("--within", type=float, default=60.0, help="seconds until a newcomer is given up")
    parser.add_argument("--settle", type=float, default=8.0, help="seconds for a real mesh to come to rest")
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.real else 5)
    options.peers = options.peers or (8 if options.real else 20)
    return options


if __name__ == "__main__":
    sys.exit(main())
