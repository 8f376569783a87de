"""What hostile neighbours can make a peer do: its processor time and its longest pause, by kind of frame and rate.

    python benchmarks/burners.py                 # minutes
    python benchmarks/burners.py --kind history --rate 1000

A peer has ten neighbours and a full history. For ten virtual seconds each of the ten sends it frames of one kind, so
many a second. `core` is the share of a core that this takes the peer: the time in its protocols, and to decode what
comes and encode what it sends, whatever links take besides; `pause_ms`, the longest time that one frame or one
deadline took. `links` are the neighbours that it still has: a rate above its budget costs a neighbour the link. The
bars: at most 30% of a core, no pause above 50 ms. Processor times are of this machine, and a little longer where
others work on it.

Each line is a JSON object, the last the worst of all. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from time import thread_time
from typing import Any, Final, cast

from p2pmesh.config import MeshConfig
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.discrete.prebuilt import assemble
from p2pmesh.simulation.faults import mischief
from p2pmesh.simulation.faults.mischief import Maker
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Message

NEIGHBOURS: Final = 10
LASTS: Final = 10
"""Virtual seconds."""
TURNS: Final = 10
"""In a second, in each of which every neighbour sends its share."""
HISTORY: Final = 4096
"""Live broadcasts that the peer has, of as many origins as neighbours."""
CORE: Final = 0.3
PAUSE_MS: Final = 50.0
RATES: Final = (20, 200, 1000)
KINDS: Final[dict[str, Maker]] = {
    make.__name__: make for make in (*mischief.BURN, *mischief.FLUSH, mischief.unasked, mischief.offer)
}


class Meter:
    """The processor time of what one node does."""

    def __init__(self, node: BareNode) -> None:
        self.total = 0.0
        self.longest = 0.0
        node._handles[:] = map(self._timed, node._handles)
        node._expires[:] = map(self._timed, node._expires)
        node.links = cast("Any", _Encoding(node.links, self))

    def take(self, began: float) -> None:
        """Count what has been done since then."""
        took = thread_time() - began
        self.total += took
        self.longest = max(self.longest, took)

    def _timed(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = thread_time()
            try:
                return act(*args)
            finally:
                self.take(began)

        return timed


class _Encoding:
    """The links of a node, where each message that it sends is encoded, and that counts."""

    def __init__(self, links: Any, meter: Meter) -> None:
        self._links = links
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._links, name)

    def send(self, peers: tuple[Any, ...], message: Message, *, urgent: bool) -> None:
        began = thread_time()
        encode(message)
        self._meter.take(began)
        self._links.send(peers, message, urgent=urgent)


def besieged() -> BareNetwork:
    """A network in which all are neighbours, with a full history; from then on signatures are true ones."""
    net = BareNetwork(1, config=MeshConfig(max_peers=NEIGHBOURS), strict=False)
    assemble(net, 1 + NEIGHBOURS)
    for number in range(HISTORY):
        net.publish(net.nodes[1 + number % NEIGHBOURS], f"broadcast {number}", ttl=600)
        net.run(0.01)
    net.run(20)
    cast("Any", net).signatures = nullcontext()
    return net


def measure(job: tuple[str, int]) -> dict[str, Any]:
    """One kind of frame at one rate, from each neighbour."""
    kind, rate = job
    net, make = _NETS[0], KINDS[kind]
    victim, *others = net.nodes
    history = victim.snapshot()["subsystems"]["broadcast"]["store"]["messages"]
    meter = Meter(victim)
    gc.collect()
    gc.disable()
    for _ in range(LASTS * TURNS):
        for other in others:
            if victim.peer_id not in other.links.ends:
                continue
            for _ in range(rate // TURNS):
                frame = encode(make(other, victim.peer_id))
                began = thread_time()
                message = decode(frame)
                meter.take(began)
                other.links.send((victim.peer_id,), cast("Message", message), urgent=True)
        net.run(1 / TURNS)
    return {
        "kind": kind,
        "rate": rate,
        "core": round(meter.total / LASTS, 3),
        "pause_ms": round(1000 * meter.longest, 1),
        "links": len(victim.peers),
        "history": history,
    }


_NETS: Final[list[BareNetwork]] = []
"""The one network, which each measurement finds as it was: it has a process of its own, forked with that."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append", help="of frames, by default all")
    parser.add_argument("--rate", type=int, action="append", help=f"of each neighbour, by default {RATES}")
    options = parser.parse_args()
    jobs = [(kind, rate) for kind in options.kind or KINDS for rate in options.rate or RATES]
    _NETS.append(besieged())
    results = []
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for result in pool.imap(measure, jobs):
            results.append(result)
            print(json.dumps(result), flush=True)
    core, pause = max(one["core"] for one in results), max(one["pause_ms"] for one in results)
    ok = core <= CORE and pause <= PAUSE_MS
    print(json.dumps({"core": core, "pause_ms": pause, "ok": ok}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
