"""One peer's neighbourhood is full of peers that work against it: whether it still gets through. In virtual time.

python benchmarks/eclipse.py --json                      # 20, 30 and 40 peers, 3, 6 and 8 links, all kinds, 10 seeds
python benchmarks/eclipse.py --peers 30 --links 3 --kinds after before --seeds 3

The attackers are three for each link that a peer may have. They hold those of 20,000 keys whose ids are nearest to the
victim's, half of them on each side, take part as others do, acknowledge what they get, and pass nothing on: no
broadcast and no packet of others. They call the victim for links all the time. Kinds:

after   they come to a mesh at rest.
before  they are there, and the victim comes.
again   as `after`, and each of them crashes every 5 to 15 s, and comes again.
watch   as `after`, but half of them hold keys ground beside the peers that the victim has links to, looked up and
        ground anew every 30 s.
mute    as `after`, but they don't even acknowledge broadcasts.

Every 10 s for 5 minutes the victim broadcasts and sends to one of the others, and one of the others broadcasts and
sends to it. Of each run:

from_victim, to_victim       the share of broadcasts that all honest peers, or the victim, had within 30 s
send_from, send_to           the share of direct messages that were there within 30 s
honest                       the share of broadcasts between others that reached all the others within 30 s
alone_s                      seconds in which the victim had no link to an honest peer, in all
own_s                        seconds in which it had no link of its own choice
suspected                    whether the victim's application was told

`ok` of a row: runs of all its seeds in which the first four were 1. The exit status is 1 if a run was not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias, get_args

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, nearness, ring_distance
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.inputs import Connect
from p2pmesh.simulation import BareNetwork, BareNode, Conditions, Constant, Sending
from p2pmesh.simulation.discrete.delivery_log import Broadcast
from p2pmesh.wire.messages import Gossip, GossipAck
from p2pmesh.wire.overlay import Packet

Kind: TypeAlias = Literal["after", "before", "again", "watch", "mute"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

KEYS: Final = 20_000
ATTACKERS_PER_LINK: Final = 3
ATTACKER_LINKS: Final = 10
REST: Final = 60.0
LASTS: Final = 300.0
ROUND: Final = 10.0
IN_TIME: Final = 30.0
CALLS_EVERY: Final = 3.0
WATCHES_EVERY: Final = 30.0


@cache
def pool(seed: int = 0, keys: int = KEYS) -> tuple[tuple[PeerId, bytes], ...]:
    """Ground keys: ids with the seeds of their keys, in the order of the ids."""
    seeds = (sha256(f"ground {seed} {number}".encode()).digest() for number in range(keys))
    return tuple(sorted((Identity.from_seed(one).peer_id, one) for one in seeds))


def beside(keys: Sequence[tuple[PeerId, bytes]], place: PeerId, count: int) -> list[Identity]:
    """So many identities next to a place, half of them on each side, the nearest first."""
    ids = [peer for peer, _ in keys]
    after = sorted(ids, key=lambda peer: ring_distance(place, peer))
    chosen = {*after[: (count + 1) // 2], *after[len(after) - count // 2 :]}
    near = sorted((pair for pair in keys if pair[0] in chosen), key=lambda pair: nearness(place, pair[0]))
    return [Identity.from_seed(seed) for _, seed in near]


class BlackHole:
    """What an attacker does: as its cores ask, but for what others want passed on."""

    value = "black hole"

    def __init__(self, *, mute: bool = False) -> None:
        self._mute = mute

    def lets_pass(self, frame: SendFrame, peer: BareNode) -> bool:
        match frame.message:
            case Packet(from_=origin):
                return origin == peer.peer_id
            case Gossip(data=data):
                return data.origin_peer_id == peer.peer_id
            case GossipAck():
                return not self._mute
            case _:
                return True

    def twisted(self, message: Any, _: BareNode) -> Any:
        return message

    def act(self, _: BareNode) -> None:
        pass


class Siege:
    """A mesh with a victim, and the attackers around it."""

    def __init__(self, kind: Kind, peers: int, max_peers: int, seed: int, keys: Sequence[tuple[PeerId, bytes]]) -> None:
        self.kind = kind
        self.rng = random.Random(f"siege {seed}")
        self.keys = keys
        config = MeshConfig(max_peers=max_peers)
        self.net = BareNetwork(seed, config=config, conditions=Conditions(latency=Constant(0.05)), strict=False)
        self.attackers: list[BareNode] = []
        self._count = ATTACKERS_PER_LINK * max_peers
        identity = Identity.from_seed(self.rng.randbytes(32))
        victim = None if kind == "before" else self.net.add(identity=identity)
        for _ in range(peers - 1):
            self.net.add()
            self.net.run(0.1)
        self.others: list[BareNode] = [node for node in self.net.nodes if node is not victim]
        self.net.run(REST)
        self._besiege(identity.peer_id)
        if victim is None:
            self.net.run(REST)
        self.victim: BareNode = victim or self.net.add(identity=identity)
        if kind == "before":
            self.net.run(IN_TIME)
        self.net.after(0.0, self._call, self.victim)
        if kind == "watch":
            self.net.after(WATCHES_EVERY, self._watch, self.victim)

    def _besiege(self, place: PeerId) -> None:
        links = [] if self.kind != "watch" else self.net.nodes[0].peers
        count = self._count // 2 if links else self._count
        for identity in beside(self.keys, place, count):
            self._add(identity)
        self._beset(links)

    def _add(self, identity: Identity) -> None:
        node = self.net.add(identity=identity, config=MeshConfig(max_peers=ATTACKER_LINKS))
        node.hostile = BlackHole(mute=self.kind == "mute")  # type: ignore[assignment]
        self.attackers.append(node)
        if self.kind == "again":
            self.net.after(self.rng.uniform(5.0, 15.0), self._crash, node)
        self.net.run(0.5)

    def _crash(self, node: BareNode, _: object) -> None:
        self.net.stop(node)
        self.attackers.remove(node)
        self.net.after(1.0, self._come_again, node)

    def _come_again(self, node: BareNode, _: object) -> None:
        again = self.net.add(identity=node.identity, config=node.config)
        again.hostile = node.hostile
        self.attackers.append(again)
        self.net.after(self.rng.uniform(5.0, 15.0), self._crash, again)

    def _call(self, victim: BareNode, _: object = None) -> None:
        for node in self.attackers:
            self.net.call_log.make(node, lambda call: Connect(call, victim.peer_id))
        self.net.after(CALLS_EVERY, self._call, victim)

    def _watch(self, victim: BareNode, _: object) -> None:
        """Leave the peers that the victim had links to, and come to those that it has links to now."""
        fixed = self._count // 2
        for node in self.attackers[fixed:]:
            self.net.stop(node)
        del self.attackers[fixed:]
        self.net.after(1.0, self._beset_now, victim)
        self.net.after(WATCHES_EVERY, self._watch, victim)

    def _beset_now(self, victim: BareNode, _: object) -> None:
        self._beset(victim.peers)

    def _beset(self, links: Sequence[PeerId]) -> None:
        hostile = {node.peer_id for node in self.attackers}
        honest = [peer for peer in links if peer not in hostile]
        for peer in honest:
            for identity in beside(self.keys, peer, (self._count // 2) // len(honest)):
                if identity.peer_id not in {node.peer_id for node in self.attackers}:
                    node = self.net.add(identity=identity, config=MeshConfig(max_peers=ATTACKER_LINKS))
                    node.hostile = BlackHole()  # type: ignore[assignment]
                    self.attackers.append(node)
                    self.net.call_log.make(node, lambda call, peer=peer: Connect(call, peer))  # type: ignore[misc]


def besieged(
    kind: Kind,
    peers: int,
    max_peers: int,
    seed: int,
    *,
    lasts: float = LASTS,
    keys: Sequence[tuple[PeerId, bytes]] = (),
) -> dict[str, Any]:
    """One run."""
    siege = Siege(kind, peers, max_peers, seed, keys or pool())
    net, victim, others, rng = siege.net, siege.victim, siege.others, siege.rng
    told: list[str] = []
    net.listeners.append(lambda node, event: told.append(type(event).__name__) if node is victim else None)
    began = net.now
    rounds: list[tuple[float, tuple[Sending, Sending], list[bool]]] = []
    honest_ids = {node.peer_id for node in others}
    alone = unchosen = 0
    while net.now < began + lasts:
        one, other, speaker = rng.choice(others), rng.choice(others), rng.choice(others)
        sends = net.send(victim, one.peer_id), net.send(other, victim.peer_id)
        casts = net.publish(victim), net.publish(speaker)
        begun = net.now
        for _ in range(int(ROUND)):
            net.run(1.0)
            alone += not honest_ids & set(victim.peers)
            unchosen += not victim.snapshot()["subsystems"]["overlay"].get("chosen")
        rounds.append((begun, sends, []))
        net.at(begun + IN_TIME, _count, (siege, casts, rounds[-1][2]), None)
    net.run(IN_TIME)
    figures: dict[str, Any] = {"kind": kind, "peers": peers, "max_peers": max_peers, "seed": seed}
    for place, name in enumerate(("from_victim", "to_victim", "honest")):
        figures[name] = _share([found[place] for _, _, found in rounds])
    for place, name in enumerate(("send_from", "send_to")):
        arrived = [sends[place].arrived_at for _, sends, _ in rounds]
        figures[name] = _share([
            at is not None and at <= begun + IN_TIME for at, (begun, _, _) in zip(arrived, rounds, strict=True)
        ])
    figures |= {"alone_s": alone, "own_s": unchosen, "suspected": "EclipseSuspected" in told}
    figures["ok"] = all(figures[name] == 1 for name in ("from_victim", "to_victim", "send_from", "send_to"))
    return figures


def _count(asked: tuple[Siege, tuple[Broadcast, Broadcast], list[bool]], _: object) -> None:
    siege, (mine, theirs), found = asked
    numbers = [node.number for node in siege.others]
    found.append(all(mine.has(number) for number in numbers))
    found.append(theirs.has(siege.victim.number))
    found.append(all(theirs.has(number) for number in numbers if number != theirs.origin))


def _share(values: list[bool]) -> float:
    return round(sum(values) / len(values), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[20, 30, 40])
    parser.add_argument("--links", type=int, nargs="+", default=[3, 6, 8])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        for max_peers in options.links:
            for peers in options.peers:
                seeds = range(options.first, options.first + options.seeds)
                runs = [besieged(kind, peers, max_peers, seed) for seed in seeds]
                row = {"kind": kind, "peers": peers, "max_peers": max_peers, "seeds": len(runs)}
                row |= {"ok": sum(run["ok"] for run in runs), "runs": runs}
                rows.append(row)
                if not options.json:
                    print(f"{kind:<7} {peers} peers, {max_peers} links: {row['ok']} of {len(runs)} ok", flush=True)
                    for run in runs:
                        if not run["ok"]:
                            print("        ", {name: run[name] for name in list(run)[3:]}, flush=True)
    if options.json:
        print(json.dumps({"keys": KEYS, "attackers_per_link": ATTACKERS_PER_LINK, "rows": rows}))
    return 0 if all(row["ok"] == row["seeds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
