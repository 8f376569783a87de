"""What neighbours that flood cost a peer: each kind of frame that is cheap to make, at several rates.

    python benchmarks/burners.py --json [--neighbours 10] [--seconds 20] [--only packets ...]
    python benchmarks/burners.py --json --links [--seconds 10] [--only packets ...]

By default the cores of one peer, and the decoding and encoding of their frames, in this process: its time is virtual,
its CPU real. With `--links` a peer in a process of its own, over real WebRTC links, and the floods in two others: what
the carrier costs is in it.

For each kind of frame and each rate (frames a second of each neighbour; one that loses its link comes back a second
later): `core`, the share of a core that it costs in all; `worst_ms`, the CPU of the longest single input, or with
`--links` of the longest turn of the event loop, in milliseconds; `cut`, the links that ended for it; `answer`, bytes
sent for each byte that came. `limit` is the highest share over all rates: neighbours at their limit cost no more,
however fast they send. With `--links`, `rest` is what as many quiet neighbours cost.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import trio
from msgspec import structs

from p2pmesh import Identity, MeshConfig, open_mesh
from p2pmesh.config import network_of
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.validation import signed as signed_broadcast
from p2pmesh.protocols.core import DropLink, Emit, Notify, Reply, SendFrame
from p2pmesh.protocols.inputs import InboxRead, LinkDown, LinkUp, Publish, Received, RemotePeer, Subsystem
from p2pmesh.protocols.routing.packets import signed
from p2pmesh.protocols.routing.sealed_box import contact_of
from p2pmesh.protocols.util.limits import FRAME, READ, Payment, WorkBudget
from p2pmesh.protocols.wiring import OWNERS, SELDOM, audience_of, build_cores
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import (
    Description,
    Direct,
    DirectAck,
    Fingerprint,
    Gossip,
    GossipAck,
    GossipData,
    GossipDigest,
    GossipGraft,
    GossipHave,
    GossipHistory,
    GossipIHave,
    GossipWant,
    IceCandidate,
    Message,
    Offer,
)
from p2pmesh.wire.overlay import (
    ContactRequest,
    DhtRecord,
    FindNode,
    FindSuccessor,
    FindValue,
    Packet,
    Stabilise,
    StoreValue,
)

ROOM = "burners"
NETWORK = network_of(ROOM)
EPOCH = 1_700_000_000.0
HISTORY = 2000
"""Broadcasts that the peer keeps: what is asked for has something to find."""
RATES = (50, 200, 450, 2000)
POOL = 500
"""Frames of each kind that are made beforehand, and sent again and again."""


class Maker:
    """Makes the frames of one hostile neighbour."""

    def __init__(self, evil: Identity, victim: PeerId, ids: tuple[str, ...], wall_ms: int) -> None:
        self.evil = evil
        self.victim = victim
        self.ids = ids
        self.wall_ms = wall_ms
        self._rng = random.Random(evil.peer_id)

    def name(self) -> str:
        return self._rng.randbytes(16).hex()

    def peer(self) -> PeerId:
        return PeerId(self._rng.randbytes(20).hex())

    def some(self, count: int) -> tuple[str, ...]:
        return tuple(self._rng.sample(self.ids, min(count, len(self.ids))))

    def packet(self, carry: bytes, kind: str = "ask", to: PeerId | None = None, **fields: Any) -> Packet:
        packet = Packet(id=self.name(), kind=kind, to=to or self.victim, timestamp=self.wall_ms, carry=carry, **fields)  # type: ignore[arg-type]
        return signed(packet, self.evil, NETWORK)

    def offer(self) -> Message:
        description = Description(
            ufrag="ufrag",
            pwd=self._rng.randbytes(11).hex(),
            fingerprints=(Fingerprint(value=self._rng.randbytes(32)),),
            role="actpass",
            candidates=(IceCandidate(address=bytes([192, 0, 2, 1]), port=9),),
        )
        stranger = Identity.generate()
        packet = Packet(
            id=self.name(),
            kind="ask",
            from_=stranger.peer_id,
            to=self.victim,
            timestamp=self.wall_ms,
            carry=encode(Offer(description=description)),
        )
        return signed(packet, stranger, NETWORK)

    def store(self) -> Message:
        record = DhtRecord(
            key=self.peer(),
            payload="x" * 1000,
            encoding="text",
            timestamp=self.wall_ms,
            ttl=60_000,
            publisher_key=self.evil.public_key,
            signature=bytes(64),
        )
        return self.packet(encode(StoreValue(record=record)))

    def broadcast(self, *, true: bool) -> Message:
        data = GossipData(
            id=self.name(),
            topic="t",
            payload="x",
            encoding="text",
            origin_peer_id=self.evil.peer_id,
            timestamp=self.wall_ms,
            ttl=60_000,
            series=1,
            sequence=1,
            hops=0,
        )
        data = signed_broadcast(data, self.evil, NETWORK)
        return Gossip(data=data if true else structs.replace(data, payload="y"))


WITHIN = 2**53 - 1
KINDS: dict[str, Callable[[Maker], Message]] = {
    "packets to pass on": lambda make: make.packet(b"x" * 100, "tell", make.peer()),
    "packets to the nearest": lambda make: make.packet(b"x" * 100, "tell", make.peer(), nearest=True),
    "packets of garbage": lambda make: make.packet(b"x" * 100, "tell"),
    "false signatures": lambda make: structs.replace(make.packet(b"x" * 100, "tell"), id=make.name()),
    "sealed garbage": lambda make: make.packet(make._rng.randbytes(200), "tell", sealed=True),
    "contact requests": lambda make: make.packet(
        encode(ContactRequest(contact=contact_of(make.evil, 1000, 1, NETWORK)))
    ),
    "offers": Maker.offer,
    "find_node": lambda make: make.packet(encode(FindNode(target=make.peer()))),
    "find_value": lambda make: make.packet(encode(FindValue(key=make.peer()))),
    "find_successor": lambda make: make.packet(encode(FindSuccessor(key=make.peer()))),
    "store": Maker.store,
    "stray acks": lambda make: DirectAck(id=make.name()),
    "the same direct message": lambda make: Direct(id="m", payload="x", encoding="text", timestamp=make.wall_ms),
    "stabilise": lambda make: Stabilise(),
    "gossip_history": lambda make: GossipHistory(within=WITHIN),
    "gossip_have": lambda make: GossipHave(ids=tuple(make.name() for _ in range(256)), within=WITHIN),
    "gossip_digest": lambda make: GossipDigest(count=1, sum=bytes(8), within=WITHIN),
    "gossip_want": lambda make: GossipWant(ids=make.some(200)),
    "gossip_graft": lambda make: GossipGraft(ids=make.some(200)),
    "gossip_ihave": lambda make: GossipIHave(ids=tuple(make.name() for _ in range(256))),
    "gossip_ack": lambda make: GossipAck(new=(make.name(),)),
    "long gossip_ack": lambda make: GossipAck(had=tuple(make.name() for _ in range(256))),
    "refusals": lambda make: GossipAck(refused=tuple(make.name() for _ in range(256)), reason="x" * 200),
    "the same broadcast": lambda make: make.broadcast(true=True),
    "false broadcasts": lambda make: make.broadcast(true=False),
}


# --- the cores alone --------------------------------------------------------------------------------------------------


class Victim:
    """The cores of one peer, its virtual clock, and the CPU that they take."""

    def __init__(self, neighbours: int) -> None:
        self.identity = Identity.from_seed(bytes([255]) * 32)
        config = MeshConfig(room=ROOM, max_peers=neighbours + 2)
        self.cores = build_cores(self.identity, config, random.Random(1), lambda now: EPOCH + now)
        self.now = 0.0
        self.cpu = self.worst = 0.0
        self.bytes_out = 0
        self.read = 0
        self.cut: set[PeerId] = set()
        self.reader = WorkBudget(2 * config.max_peers, config.work.links)
        self.unread_until: dict[PeerId, float] = {}
        self.ids: list[str] = []
        self.evils = [Identity.from_seed(bytes([number + 1]) * 32) for number in range(neighbours)]
        for evil in self.evils:
            self.link(evil)
        for number in range(HISTORY):
            self.feed(Publish(number, "t", b"x" * 100, 300.0), None)
        self.pass_time(5.0)

    def link(self, evil: Identity) -> None:
        self.feed(LinkUp(RemotePeer(evil.peer_id, True, 1, evil.public_key)), None)

    def hear(self, evil: Identity, frame: bytes) -> None:
        """Take a frame of a neighbour."""
        begun = time.thread_time()
        message = decode(frame)
        if type(message) in SELDOM:  # as the reader of a link does
            units = FRAME + len(frame) / READ
            if self.reader.spend(evil.peer_id, units, self.now) is not Payment.NOW:
                self.unread_until[evil.peer_id] = self.now + units / self.reader.rate
        owner = OWNERS.get(type(message))  # type: ignore[arg-type]
        if owner is not None:
            self.feed(Received(evil.peer_id, message), owner)  # type: ignore[arg-type]
        spent = time.thread_time() - begun
        self.cpu += spent
        self.worst = max(self.worst, spent)

    def feed(self, event: Any, owner: Subsystem | None) -> None:
        waiting = [(owner, event)] if owner is not None else [(one, event) for one in audience_of(event)]
        while waiting:
            subsystem, event = waiting.pop(0)
            for effect in self.cores[subsystem].handle(event, self.now):
                self._carry_out(effect, waiting)

    def pass_time(self, seconds: float) -> None:
        """Let timers ring."""
        end = self.now + seconds
        begun = time.thread_time()
        while (due := min(core.next_deadline() for core in self.cores.values())) <= end:
            self.now = max(self.now, due)
            for core in self.cores.values():
                if core.next_deadline() <= self.now:
                    waiting: list[tuple[Subsystem, Any]] = []
                    for effect in core.expire(self.now):
                        self._carry_out(effect, waiting)
                    for subsystem, event in waiting:
                        self.feed(event, subsystem)
        self.cpu += time.thread_time() - begun
        self.now = end

    def _carry_out(self, effect: Any, waiting: list[tuple[Subsystem, Any]]) -> None:
        match effect:
            case SendFrame(peers, message):
                self.bytes_out += len(encode(message)) * len(peers)
            case Notify(subsystem, event):
                waiting.append((subsystem, event))
            case DropLink(peer):
                self.cut.add(peer)
            case Reply(_, str() as message_id):
                self.ids.append(message_id)
            case Emit(event) if type(event).__name__ == "DirectReceived":
                self.read += 1
                waiting.append((Subsystem.ROUTING, InboxRead(self.read, 256)))
            case _:
                pass


def flood_cores(kind: str, rate: int, neighbours: int, seconds: float) -> dict[str, Any]:
    """What `rate` such frames a second of each neighbour cost."""
    victim = Victim(neighbours)
    pools = []
    for evil in victim.evils:
        make = Maker(evil, victim.identity.peer_id, tuple(victim.ids) or ("0" * 32,), int((EPOCH + victim.now) * 1000))
        pools.append([encode(KINDS[kind](make)) for _ in range(POOL)])
    victim.cpu = victim.worst = 0.0
    victim.bytes_out = bytes_in = cut = sent = 0
    away: dict[PeerId, float] = {}
    step = 0.02
    for turn in range(int(seconds / step)):
        for evil, pool in zip(victim.evils, pools, strict=True):
            if away.get(evil.peer_id, 0.0) > victim.now:
                continue
            if away.pop(evil.peer_id, None) is not None:
                victim.link(evil)
            for number in range(int(turn * step * rate), int((turn + 1) * step * rate)):
                if victim.unread_until.get(evil.peer_id, 0.0) > victim.now:
                    break  # what it sends waits at its own end
                victim.hear(evil, pool[number % POOL])
                bytes_in += len(pool[number % POOL])
                sent += 1
                if evil.peer_id in victim.cut:
                    break
            if evil.peer_id in victim.cut:
                victim.cut.clear()
                victim.feed(LinkDown(evil.peer_id, "flood"), None)
                away[evil.peer_id] = victim.now + 1.0
                cut += 1
        victim.pass_time(step)
    return {
        "core": round(victim.cpu / seconds, 4),
        "worst_ms": round(victim.worst * 1e3, 2),
        "cut": cut,
        "answer": round(victim.bytes_out / max(1, bytes_in), 2),
        "frames": sent,
    }


# --- over real links --------------------------------------------------------------------------------------------------


class Turns(trio.abc.Instrument):
    """The CPU of the longest turn of the event loop."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._begun = time.thread_time()

    def after_io_wait(self, timeout: float) -> None:
        self._begun = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self.worst = max(self.worst, time.thread_time() - self._begun)


async def be_victim(url: str, neighbours: int) -> None:
    """Print our id; then, for each line that comes, what happened since the last."""
    turns = Turns()
    config = MeshConfig(max_peers=neighbours + 2)
    async with open_mesh(url, room=ROOM, config=config, identity=Identity.from_seed(bytes([255]) * 32)) as mesh:
        print(json.dumps({"peer_id": mesh.peer_id}), flush=True)
        lines = trio.wrap_file(sys.stdin)
        await lines.readline()
        receipts = [await mesh.broadcast("t", b"x" * 100, ttl=300) for _ in range(200)]
        print(json.dumps({"ids": [receipt.message_id for receipt in receipts]}), flush=True)
        trio.lowlevel.add_instrument(turns)
        cpu, at, closed = time.process_time(), time.monotonic(), 0
        while await lines.readline():
            share = (time.process_time() - cpu) / (time.monotonic() - at)
            links = mesh.snapshot()["links"]
            told = {"core": round(share, 4), "worst_ms": round(turns.worst * 1e3, 1), "cut": links["closed"] - closed}
            print(json.dumps({**told, "links": len(mesh.peers)}), flush=True)
            cpu, at, closed, turns.worst = time.process_time(), time.monotonic(), links["closed"], 0.0


async def be_evil(url: str, victim: PeerId, seeds: list[int]) -> None:
    """Flood as each line says."""
    flood: tuple[str, int] | None = None
    ids: tuple[str, ...] = ("0" * 32,)

    async def attack(seed: int) -> None:
        identity = Identity.from_seed(bytes([seed]) * 32)
        async with open_mesh(url, room=ROOM, max_peers=3, identity=identity) as mesh:
            with trio.move_on_after(20):
                await mesh.connect(victim)
            pool: list[Message] = []
            made = None
            while True:
                await trio.sleep(0.05)
                if flood is None:
                    continue
                if made != flood:
                    make = Maker(identity, victim, ids, int(time.time() * 1000))
                    made, pool = flood, [KINDS[flood[0]](make) for _ in range(POOL)]
                if victim in mesh.peers:
                    for message in random.sample(pool, min(POOL, flood[1] // 20 or 1)):
                        mesh._node.keeper.send((victim,), message, urgent=False)
                    mesh._node.keeper.flush()

    async with trio.open_nursery() as nursery:
        for seed in seeds:
            nursery.start_soon(attack, seed)
        async for line in trio.wrap_file(sys.stdin):
            told = json.loads(line)
            ids = tuple(told.get("ids") or ids)
            flood = tuple(told["flood"]) if told.get("flood") else None
        nursery.cancel_scope.cancel()


def flood_links(kinds: list[str], rates: list[int], neighbours: int, seconds: float) -> dict[str, Any]:
    """As `flood_cores`, of real processes."""
    command = [sys.executable, "-m", "p2pmesh", "serve", "--port", "0", "--json"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True)]

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, *arguments]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    def ask(process: subprocess.Popen[str], line: str) -> Any:
        tell(process, line)
        return json.loads(process.stdout.readline())  # type: ignore[union-attr]

    def tell(process: subprocess.Popen[str], line: str) -> None:
        process.stdin.write(line + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]

    try:
        url = json.loads(processes[0].stdout.readline())["url"]  # type: ignore[union-attr]
        victim = start("--victim", url, "--neighbours", str(neighbours))
        peer_id = json.loads(victim.stdout.readline())["peer_id"]  # type: ignore[union-attr]
        half = neighbours // 2
        lots = [list(range(1, half + 1)), list(range(half + 1, neighbours + 1))]
        evils = [start("--evil", url, peer_id, json.dumps(lot)) for lot in lots if lot]
        time.sleep(15)
        ids = ask(victim, "")["ids"]
        for evil in evils:
            tell(evil, json.dumps({"ids": ids}))
        time.sleep(5)
        ask(victim, "")
        time.sleep(seconds)
        results: dict[str, Any] = {"rest": ask(victim, "")}
        for kind in kinds:
            rows = {}
            for rate in rates:
                for evil in evils:
                    tell(evil, json.dumps({"flood": [kind, rate]}))
                time.sleep(3.0)
                ask(victim, "")
                time.sleep(seconds)
                rows[str(rate)] = ask(victim, "")
                for evil in evils:
                    tell(evil, json.dumps({}))
                time.sleep(3.0)
            results[kind] = with_limit(rows)
            print(kind, results[kind], file=sys.stderr, flush=True)
        return results
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


# --- all --------------------------------------------------------------------------------------------------------------


def with_limit(rows: dict[str, Any]) -> dict[str, Any]:
    limits = {key: max(row[key] for row in rows.values()) for key in ("core", "worst_ms")}
    return {"limit": limits["core"], "worst_ms": limits["worst_ms"], "rates": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--only", nargs="+", metavar="KIND", default=[""], help="the kinds whose names begin so")
    parser.add_argument("--victim", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--evil", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.victim:
        return trio.run(be_victim, options.victim, options.neighbours)
    if options.evil:
        url, victim, seeds = options.evil
        return trio.run(be_evil, url, PeerId(victim), json.loads(seeds))
    kinds = [kind for kind in KINDS if kind.startswith(tuple(options.only))]
    if not kinds:
        parser.error("no such kind; there are: " + ", ".join(KINDS))
    if options.links:
        results = flood_links(kinds, options.rates, options.neighbours, options.seconds)
    else:
        results = {}
        for kind in kinds:
            rows = {str(rate): flood_cores(kind, rate, options.neighbours, options.seconds) for rate in options.rates}
            results[kind] = with_limit(rows)
            if not options.json:
                print(f"{kind:24} {results[kind]['limit']:7.1%} {results[kind]['worst_ms']:6.1f} ms", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    return None


if __name__ == "__main__":
    main()
