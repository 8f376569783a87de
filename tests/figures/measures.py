"""What the tests of figures measure: something happens to a mesh, and it is timed and metered, in virtual time.

Every link has a latency of 50 ms and no jitter to speak of, so that a figure is a count of round trips and of waiting
times, and nothing else. `pytest -rP tests/figures` prints the figures as they are now.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from p2pmesh.config import MeshConfig
from p2pmesh.simulation import BareNetwork, BareNode, Conditions, Constant
from p2pmesh.simulation.discrete.cost_meter import read_meter
from p2pmesh.simulation.discrete.delivery_log import Broadcast
from p2pmesh.simulation.discrete.invariants import islands, ring_cycles, ring_gaps
from p2pmesh.simulation.discrete.network import Cut
from p2pmesh.simulation.discrete.traffic import NAMES
from p2pmesh.simulation.model.trace import Mark

LATENCY = 0.05
MAX_PEERS = 4
JOIN_EVERY = 0.1
LOOK_EVERY = 0.1
STAYS = 10.0
"""Seconds that a mesh has to stay whole to count as settled."""
PACKET = Mark.MESSAGE + NAMES.index("packet")

Figures: TypeAlias = dict[str, float]


class Limit(NamedTuple):
    """The most that a figure may be, and what it was when that was written down: the worst of the seeds."""

    most: float
    today: float


def check(figures: Figures, limits: Mapping[str, Limit]) -> None:
    """Compare all figures with their limits, and name every one that is above."""
    print(", ".join(f"{name} {figure:.4g}" for name, figure in figures.items()))  # noqa: T201
    above = [
        f"{name} is {figures[name]:.4g}, at most {limit.most:g} ({limit.today:g} when the limit was set)"
        for name, limit in limits.items()
        if not figures[name] <= limit.most
    ]
    assert not above, "; ".join(above)
    assert set(limits) == set(figures)


# --- building ---------------------------------------------------------------------------------------------------------


def new_network(seed: int, *, max_peers: int = MAX_PEERS) -> BareNetwork:
    return BareNetwork(seed, config=MeshConfig(max_peers=max_peers), conditions=Conditions(latency=Constant(LATENCY)))


def add_peers(net: BareNetwork, count: int) -> None:
    for _ in range(count):
        net.add()
        net.run(JOIN_EVERY)


def mesh(count: int, seed: int, *, max_peers: int = MAX_PEERS, settle: float = 20.0) -> BareNetwork:
    """A mesh at rest."""
    net = new_network(seed, max_peers=max_peers)
    add_peers(net, count)
    net.run(settle)
    return net


# --- timing and metering ----------------------------------------------------------------------------------------------


def is_one_island(net: BareNetwork) -> bool:
    return len(islands(net)) == 1


def is_whole(net: BareNetwork) -> bool:
    """Whether the members are one ring and one island."""
    return not ring_gaps(net) and ring_cycles(net) == 1 and is_one_island(net)


def seconds_until(net: BareNetwork, happens: Callable[[], bool], within: float) -> float:
    """Seconds until something holds, from now; infinite if it does not within that time."""
    began = net.now
    while net.now < began + within:
        net.run(LOOK_EVERY)
        if happens():
            return net.now - began
    return float("inf")


def seconds_until_whole(net: BareNetwork, within: float) -> float:
    """Seconds until the mesh is one ring and one island, and stays so."""
    began, whole_at = net.now, float("inf")
    while net.now < began + within + STAYS:
        net.run(LOOK_EVERY)
        whole_at = min(whole_at, net.now - began) if is_whole(net) else float("inf")
        if net.now - began >= whole_at + STAYS:
            break
    return whole_at


class Meter:
    """What the network has carried since the meter was made."""

    def __init__(self, net: BareNetwork) -> None:
        self._net = net
        self._before = read_meter(net)
        self._frames = list(net.traffic.frames)
        self._bytes = list(net.traffic.bytes)

    def read(self) -> Figures:
        spent = read_meter(self._net) - self._before
        return {
            **self.frames_and_bytes(),
            "links_opened": spent.links_opened,
            "service_messages": spent.service_messages,
        }

    def frames_and_bytes(self, kinds: str = "") -> Figures:
        """Of the messages whose names begin like this."""
        traffic, wanted = self._net.traffic, [name.startswith(kinds) for name in NAMES]
        return {
            "frames": sum(
                now - then for now, then, is_in in zip(traffic.frames, self._frames, wanted, strict=True) if is_in
            ),
            "bytes": sum(
                now - then for now, then, is_in in zip(traffic.bytes, self._bytes, wanted, strict=True) if is_in
            ),
        }


# --- what happens -----------------------------------------------------------------------------------------------------


def catch_up(net: BareNetwork, far: Iterable[int], missed: int, *, within: float = 120.0) -> Figures:
    """Some peers are cut off while every side broadcasts what the others miss; the cut heals, and all get everything.

    `caught_up_s` counts from the first link between the sides, since its time depends on the pause between two
    tries.
    """
    cut = Cut(dict.fromkeys(far, 1), keeps_service=False)
    net.cut(cut)
    net.run(20)
    sent = publish_by_turns(net, net.nodes, missed)
    net.run(1)
    assert all(broadcast.count < len(net.nodes) - 1 for broadcast in sent)
    meter = Meter(net)
    net.heal(cut)
    linked = seconds_until(net, lambda: is_one_island(net), within)
    caught_up = seconds_until(net, lambda: have_all(net, sent), within)
    return {"linked_s": linked, "caught_up_s": caught_up, **meter.frames_and_bytes()}


def publish_by_turns(net: BareNetwork, nodes: list[BareNode], count: int) -> list[Broadcast]:
    """Broadcasts of one peer after the other, 50 a second, which live for five minutes."""
    sent = []
    for number in range(count):
        sent.append(net.publish(nodes[number % len(nodes)], f"missed {number}", ttl=300.0))
        net.run(0.02)
    return sent


def have_all(net: BareNetwork, sent: Iterable[Broadcast]) -> bool:
    return all(broadcast.count == len(net.nodes) - 1 for broadcast in sent)


def joins(seed: int, peers: int) -> Figures:
    """Peers join one after the other; seconds from the last join until the ring is whole, and all that it cost."""
    net = new_network(seed)
    meter = Meter(net)
    add_peers(net, peers)
    whole = seconds_until_whole(net, 60)
    return {"whole_s": whole, **meter.read()}


def newcomer(net: BareNetwork) -> Figures:
    """One more peer comes to a mesh at rest."""
    meter = Meter(net)
    net.add()
    whole = seconds_until_whole(net, 60)
    return {"whole_s": whole, **meter.read()}


def healing(net: BareNetwork, rng: random.Random) -> Figures:
    """The network falls into two halves for half a minute; seconds from its end until there is one ring again."""
    cut = Cut({node.number: 1 for node in rng.sample(net.nodes, len(net.nodes) // 2)}, keeps_service=False)
    net.cut(cut)
    net.run(30)
    assert not is_one_island(net)
    meter = Meter(net)
    net.heal(cut)
    whole = seconds_until_whole(net, 120)
    figures = meter.read()
    del figures["service_messages"]
    return {"whole_s": whole, **figures}


def rest(net: BareNetwork, seconds: float) -> Figures:
    """Nothing happens: what each peer sends all the same."""
    meter = Meter(net)
    net.run(seconds)
    figures, peers = meter.read(), len(net.nodes)
    return {
        "frames_per_peer_per_s": figures["frames"] / peers / seconds,
        "bytes_per_peer_per_s": figures["bytes"] / peers / seconds,
        "links_opened": figures["links_opened"],
        "service_messages": figures["service_messages"],
    }


def broadcasts(net: BareNetwork, count: int) -> Figures:
    """A broadcast each second, at rest: the last delivery, the receipt, and the traffic for each delivery."""
    meter, sent = Meter(net), list[Broadcast]()
    for number in range(count):
        sent.append(net.publish(net.nodes[number % len(net.nodes)], "hello"))
        net.run(1)
    net.run(5)
    others, spent = len(net.nodes) - 1, meter.frames_and_bytes("gossip")
    assert [broadcast.reached for broadcast in sent] == [others] * count
    return {
        "delivered_s": max(broadcast.last_at - broadcast.at for broadcast in sent),
        "settled_s": max(elapsed(broadcast) for broadcast in sent),
        "frames_per_delivery": spent["frames"] / count / others,
        "bytes_per_delivery": spent["bytes"] / count / others,
    }


def elapsed(broadcast: Broadcast) -> float:
    outcome: Any = broadcast.outcome
    return float("inf") if outcome is None else outcome.elapsed


def sends(net: BareNetwork, rng: random.Random, count: int) -> Figures:
    """Direct messages to peers that are no neighbours: seconds for each link on their way, and back."""
    meter, took_per_hop, hops = Meter(net), list[float](), 0
    for _ in range(count):
        sender, receiver = strangers(net, rng)
        sending = net.send(sender, receiver.peer_id)
        net.run(2)
        assert sending.ok
        assert sending.hops is not None
        hops += sending.hops
        took_per_hop.append((sending.took or 0.0) / sending.hops)
    spent = meter.frames_and_bytes("packet")
    return {
        "took_per_hop_s": max(took_per_hop),
        "hops_mean": hops / count,
        "frames_per_hop": spent["frames"] / hops,
        "bytes_per_hop": spent["bytes"] / hops,
    }


def send_past_a_death(net: BareNetwork, rng: random.Random) -> Figures:
    """The neighbour by which a direct message went dies without a word, and another message is sent at once."""
    sender, receiver, relay = relayed(net, rng)
    net.stop(relay)
    meter = Meter(net)
    sending = net.send(sender, receiver.peer_id)
    net.run(5)
    assert sending.ok
    return {"took_s": sending.took or 0.0, **meter.frames_and_bytes("packet")}


def relayed(net: BareNetwork, rng: random.Random) -> tuple[BareNode, BareNode, BareNode]:
    """A sender, a receiver, and the neighbour by which the sender's direct messages go there, as one of them shows."""
    while True:
        sender, receiver = strangers(net, rng)
        log, first_hops = net.log, list[int]()

        def overhear(event: tuple[float, float, float, float, float], sender: BareNode = sender) -> None:
            if event[1] == PACKET and event[2] == sender.number:
                first_hops.append(int(event[3]))  # noqa: B023
            log(event)  # noqa: B023

        net.log = overhear
        sending = net.send(sender, receiver.peer_id)
        net.run(3)
        net.log = log
        if sending.ok and first_hops:
            return sender, receiver, net.nodes[first_hops[0]]


def strangers(net: BareNetwork, rng: random.Random) -> tuple[BareNode, BareNode]:
    """Two peers that have no link to each other."""
    while True:
        sender, receiver = rng.sample(net.living(), 2)
        if receiver.peer_id not in sender.peers:
            return sender, receiver
