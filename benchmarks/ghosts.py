"""Newcomers to a service that is full of ghosts: how long each takes to its first link. Virtual time.

    python benchmarks/ghosts.py                        # 10 seeds for each size: minutes
    python benchmarks/ghosts.py --max-peers 3 --seeds 1 --honest 40

A service has `--honest` members, and 250 that joined, signed, and never answer, each from an address of its own. Five
newcomers come, one after another; `first_link_s` is how long each took to its first link, which should be 5 at most.

Each line is a JSON object, one for each run. The exit status is 1 if a newcomer took longer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from time import process_time
from typing import Any, Final

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import ServiceUp
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.signaling.handshake import sign_join
from p2pmesh.simulation.discrete.network import EPOCH, BareNetwork
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.discrete.service import Line

JOIN_EVERY: Final = 0.2
REST: Final = 60.0
"""Seconds that a mesh has before anything happens."""
GHOSTS: Final = 250
GHOST_NUMBERS: Final = 1_000_000
"""From which ghosts are numbered: they are no peers of the network."""
NEWCOMERS: Final = 5
FIRST_LINK: Final = 5.0
"""Seconds to a newcomer's first link, at most."""
PATIENCE: Final = 60.0
"""Seconds until a newcomer is given up."""
NICE: Final = 10
"""Others work here, too."""


class Ghost:
    """A client of the service that joins, and does nothing else: peers by the hundred would take too long."""

    def __init__(self, net: BareNetwork, number: int) -> None:
        self.number = number
        self.config = net.config
        self.is_alive = self.is_running = True
        self.is_frozen = self.is_leaving = False
        self.line: Line | None = None
        self.service_failures = 0
        self._net = net
        self._identity = Identity.from_seed(random.Random(f"ghost {net.seed} {number}").randbytes(32))
        net.service.dial(self)

    def report(self, event: Input) -> None:
        """Join as soon as the service is there."""
        if isinstance(event, ServiceUp):
            wall_ms = int((EPOCH + self._net.now) * 1000)
            self._net.service.send(self, sign_join(self._identity, self.config.room, wall_ms))


def mesh(seed: int, honest: int, max_peers: int) -> BareNetwork:
    """A mesh at rest."""
    net = BareNetwork(seed, config=MeshConfig(max_peers=max_peers), strict=False)
    for _ in range(honest):
        net.add()
        net.run(JOIN_EVERY)
    net.run(REST)
    return net


def measure(job: tuple[int, int, int]) -> dict[str, Any]:
    """One run."""
    seed, honest, max_peers = job
    began = process_time()
    net = mesh(seed, honest, max_peers)
    members = {node.peer_id for node in net.nodes}
    for number in range(GHOSTS):
        Ghost(net, GHOST_NUMBERS + number)
    net.run(REST)
    took = []
    for _ in range(NEWCOMERS):
        took.append(_until_linked(net, net.add(), members))
        members.add(net.nodes[-1].peer_id)
    return {
        "seed": seed,
        "honest": honest,
        "max_peers": max_peers,
        "first_link_s": took,
        "ok": max(took) <= FIRST_LINK and not net.violations,
        "violations": list(map(str, net.violations)),
        "cpu_s": round(process_time() - began, 1),
    }


def _until_linked(net: BareNetwork, node: BareNode, members: set[PeerId]) -> float:
    began = net.now
    while not members & set(node.peers) and net.now < began + PATIENCE:
        net.run(0.1)
    return round(net.now - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--honest", type=int, nargs="+", default=[20, 40], help="honest peers, before newcomers")
    parser.add_argument("--max-peers", type=int, nargs="+", default=[3, 6, 8], help="links of each of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--nice", type=int, default=NICE, help="how far all else goes first")
    options = parser.parse_args()
    jobs = [
        (seed, honest, max_peers)
        for max_peers in options.max_peers
        for honest in options.honest
        for seed in range(options.first, options.first + options.seeds)
    ]
    failed = 0
    with ProcessPoolExecutor(options.workers, initializer=os.nice, initargs=(options.nice,)) as pool:
        for result in pool.map(measure, jobs):
            failed += not result["ok"]
            print(json.dumps(result), flush=True)
    print(json.dumps({"runs": len(jobs), "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
