"""What `benchmarks/overlay.py` measures: a mesh is built, and each measure takes a copy of it from there.

A measure takes a network at rest and returns its figures. `SECTIONS` says of each which meshes it is for, and what its
figures should come to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple, TypeAlias

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.simulation import (
    BareNetwork,
    BareNode,
    Call,
    Churn,
    Conditions,
    Constant,
    FaultInjector,
    FaultPlan,
    Graph,
    Sending,
)
from p2pmesh.simulation.discrete.cost_meter import read_meter
from p2pmesh.simulation.discrete.invariants import islands, members, ring_cycles, ring_gaps

LATENCY = 0.05
JOIN_EVERY = 0.05
JOIN_EVERY_OF_MANY = 0.02
GROW_EVERY = 1.0
MANY = 5000
STORM = 10.0
"""Seconds in which all peers of a storm join."""
WITHIN, STORM_WITHIN = 30.0, 120.0
SETTLE = 120.0
"""After the last join, until what is asked of a mesh at rest is measured."""
LOOK_EVERY = 0.5
NEWCOMERS = 30
CHURN = 0.10 / 60
"""Share of the peers that are replaced each second."""
STEADY = 10.0
"""Seconds after which a newcomer counts as a member, and for which a peer has to live on to count as one that stays."""
PATIENCE = 30.0
"""Seconds for a get."""
VALUES = 500

Figures: TypeAlias = dict[str, Any]


class CanNotRun(Exception):
    """Raised where there is nothing to measure."""


class Bar(NamedTuple):
    """What a figure should be, at most or at least."""

    sense: str
    value: float

    def met(self, figure: float | None) -> bool:
        if figure is None:
            return False
        return figure <= self.value if self.sense == "at_most" else figure >= self.value


def at_most(value: float) -> Bar:
    return Bar("at_most", value)


def at_least(value: float) -> Bar:
    return Bar("at_least", value)


# --- building ---------------------------------------------------------------------------------------------------------


def new_network(peers: int, max_peers: int, seed: int, *, dht: bool = True) -> tuple[BareNetwork, list[str]]:
    """A network without peers, and what is unusual about it."""
    config, notes = MeshConfig(max_peers=max_peers), list[str]()
    if not dht:
        config = attrs.evolve(config, kademlia=attrs.evolve(config.kademlia, enabled=False))
        notes.append("Kademlia is switched off")
    net = BareNetwork(seed, config=config, conditions=Conditions(latency=Constant(LATENCY)), strict=False)
    return net, notes


def joins(net: BareNetwork, peers: int) -> Figures:
    """Peers join one after another: seconds from the last until the ring is whole."""
    every = JOIN_EVERY_OF_MANY if peers >= MANY else JOIN_EVERY
    for _ in range(peers):
        net.add()
        net.run(every)
    return {"join_every_s": every, **becomes_whole(net, WITHIN)}


def growth(net: BareNetwork, peers: int) -> Figures:
    """Peers come one by one, each to a mesh that has taken the last one in: which way offers went, and what it cost."""
    for _ in range(peers):
        net.add()
        net.run(GROW_EVERY)
    whole, meter = becomes_whole(net, WITHIN), read_meter(net)
    return {
        "join_every_s": GROW_EVERY,
        "mesh_share": meter.mesh_share,
        "offers_per_join": (meter.offers_mesh + meter.offers_service) / peers,
        "service_offers_per_join": meter.offers_service / peers,
        "messages_per_join": meter.service_messages / peers,
        **whole,
    }


def storm(net: BareNetwork, peers: int) -> Figures:
    """All join within `STORM` seconds."""
    for _ in range(peers):
        net.add()
        net.run(STORM / peers)
    return becomes_whole(net, STORM_WITHIN)


def becomes_whole(net: BareNetwork, within: float) -> Figures:
    """Seconds until one ring and one island, for good: within the time, or, if not, within four times that."""
    began, whole_at = net.now, None
    looks: Iterator[float] = iter(LOOK_EVERY * number for number in range(1, int(4 * within / LOOK_EVERY) + 1))
    shape: Figures = {}
    for after in looks:
        net.run_until(began + after)
        shape = {"ring_cycles": ring_cycles(net), "ring_gaps": len(ring_gaps(net)), "islands": len(islands(net))}
        if shape == {"ring_cycles": 1, "ring_gaps": 0, "islands": 1}:
            whole_at = after if whole_at is None else whole_at
        else:
            whole_at = None
        if after >= within and whole_at is not None:
            break
    return {"whole_after_s": whole_at, **shape, "members": len(members(net)), "looked_for_s": net.now - began}


# --- the service ------------------------------------------------------------------------------------------------------


def service(net: BareNetwork, rng: random.Random) -> Figures:
    """What newcomers to a mesh at rest cost the signaling service, and which way the offers have gone.

    `mesh_share` is of all offers since the first join, 20 a second here. Each newcomer's first offer has to go by a
    service, so it grows with the number of offers for each join: a mesh where peers come one by one makes more
    (`growth`).
    """
    before = read_meter(net)
    for _ in range(NEWCOMERS):
        net.add()
        net.run(1.0)
    net.run(WITHIN)
    after = read_meter(net)
    joined = after - before
    if after.mesh_share is None:
        raise CanNotRun("signaling counts no offers")
    return {
        "messages_per_join": joined.service_messages / NEWCOMERS,
        "in_per_join": joined.service_in / NEWCOMERS,
        "out_per_join": joined.service_out / NEWCOMERS,
        "kinds_per_join": {kind: round(count / NEWCOMERS, 2) for kind, count in joined.service_kinds.items()},
        "messages_per_join_since_the_first": after.service_messages / len(net.nodes),
        "mesh_share": after.mesh_share,
        "mesh_share_of_newcomers": joined.mesh_share,
        "offers": after.offers_mesh + after.offers_service,
        "ring_gaps": len(ring_gaps(net)),
    }


# --- routes -----------------------------------------------------------------------------------------------------------


def routes(net: BareNetwork, rng: random.Random) -> Figures:
    """Direct messages between random pairs, at rest."""
    graph = Graph.of(net)
    ideal, shortest = graph.greedy_hops(2000, rng), graph.shortest_hops(50, rng)
    before, count = read_meter(net), 10 * len(net.nodes)
    sent = []
    for _ in range(count):
        sender, receiver = rng.sample(net.nodes, 2)
        sent.append(net.send(sender, receiver.peer_id))
        net.run(10 / len(net.nodes))
    net.run(30)
    told = any(sending.hops != 1 for sending in sent if sending.arrived) or ideal.mean < 1.01
    hops = [sending.hops for sending in sent if sending.hops is not None] if told else []
    return {
        "sends": count,
        "arrived": share(sending.arrived for sending in sent),
        "confirmed": share(sending.ok for sending in sent),
        "delivered_twice": len(net.call_log.twice),
        "hops_mean": mean(hops) if hops else None,
        "hops_max": max(hops, default=None),
        "greedy_hops_mean": ideal.mean,
        "greedy_arrived": ideal.arrived / ideal.walks,
        "shortest_hops_mean": shortest.mean,
        "shortest_hops_max": shortest.most,
        **times(sent),
        "frames_per_send": (read_meter(net) - before).frames / count,
        "errors": errors(sent),
    }


def churn_routes(net: BareNetwork, rng: random.Random) -> Figures:
    """Direct messages to peers that stay, while a tenth of all are replaced each minute."""
    peers, seconds = len(net.nodes), 300.0
    sent: list[tuple[Sending, BareNode, BareNode]] = []
    churn(net, peers, seconds)
    ends = net.now + seconds
    while net.now < ends:
        sender, receiver = rng.sample(steady(net), 2)
        sent.append((net.send(sender, receiver.peer_id), sender, receiver))
        net.run(100 / peers)
    net.run(30)
    stayed = [one for one, sender, receiver in sent if min(sender.until, receiver.until) > one.at + STEADY]
    late = [one.arrived_at - one.at if one.arrived_at is not None else None for one in stayed]
    net.run(30)
    return {
        "sends": len(sent),
        "to_peers_that_stay": len(stayed),
        "arrived_within_10s": share(after is not None and after <= STEADY for after in late),
        "confirmed_within_10s": share(one.ok and (one.took or 0.0) <= STEADY for one in stayed),
        "delivered_twice": len(net.call_log.twice),
        **times(stayed),
        "errors": errors(stayed),
        "ring_gaps_60s_after": len(ring_gaps(net)),
        "islands_60s_after": len(islands(net)),
    }


# --- the DHT ----------------------------------------------------------------------------------------------------------


def dht(net: BareNetwork, rng: random.Random) -> Figures:
    """Lookups of random ids, at rest: whether they find the nearest of all."""
    need_dht(net)
    k, before, asked = net.config.kademlia.k, read_meter(net), []
    for _ in range(len(net.nodes)):
        node, target = rng.choice(net.nodes), PeerId(f"{rng.getrandbits(160):040x}")
        asked.append((net.find_node(node, target), node, target))
        net.run(20 / len(net.nodes))
    net.run(60)
    frames = (read_meter(net) - before).frames
    everybody = {node.peer_id: int(node.peer_id, 16) for node in members(net)}
    hit = []
    for call, node, target in asked:
        at = int(target, 16)
        nearest = sorted(everybody, key=lambda peer: everybody[peer] ^ at)[: k + 1]
        found = list(call.value) if call.ok else []
        with_asker, without = nearest[:k], [peer for peer in nearest if peer != node.peer_id][:k]
        hit.append(max(len(set(found) & set(true)) / len(true) for true in (with_asker, without)) if found else 0.0)
    return {
        "lookups": len(asked),
        "exact": share(part >= 1 for part in hit),
        "found_of_the_nearest": mean(hit),
        "returned": share(call.done_at is not None for call, _, _ in asked),
        **times([call for call, _, _ in asked]),
        "frames_per_lookup": frames / len(asked),
        "errors": errors([call for call, _, _ in asked]),
    }


def dht_deaths(net: BareNetwork, rng: random.Random) -> Figures:
    """A fifth of the peers die at once; gets, from then on, of values that were put before."""
    need_dht(net)
    puts = put_values(net, rng)
    for node in rng.sample(net.nodes, len(net.nodes) // 5):
        net.stop(node)
    gets = []
    for _ in range(len(net.nodes)):
        gets.append(get_value(net, rng, net.living(), puts))
        net.run(PATIENCE / len(net.nodes))
    net.run(PATIENCE + 1)
    return {"values_put": share(call.ok for call in puts.values()), **got(gets)}


def dht_churn(net: BareNetwork, rng: random.Random) -> Figures:
    """Gets of values that were put once, while a tenth of the peers are replaced each minute, for half an hour."""
    need_dht(net)
    puts, peers, seconds = put_values(net, rng), len(net.nodes), 1800.0
    churn(net, peers, seconds)
    began, gets = net.now, []
    while net.now < began + seconds:
        gets.append(get_value(net, rng, steady(net), puts))
        net.run(1.0)
    net.run(PATIENCE + 1)
    last = [get for get in gets if get[0].at >= began + seconds - 300]
    return {
        "values_put": share(call.ok for call in puts.values()),
        **got(gets),
        "found_in_the_last_5_min": got(last)["found_within_30s"],
        "peers_replaced": len(net.nodes) - peers,
    }


def need_dht(net: BareNetwork) -> None:
    if not net.config.kademlia.enabled:
        raise CanNotRun("Kademlia is switched off")
    probe = net.find_node(net.nodes[0], net.nodes[-1].peer_id)
    net.run(PATIENCE)
    if probe.done_at is None:
        raise CanNotRun("the DHT does not answer")


def put_values(net: BareNetwork, rng: random.Random) -> dict[str, Call]:
    puts = {}
    for number in range(min(VALUES, len(net.nodes))):
        puts[f"key {number}"] = net.put(rng.choice(net.nodes), f"key {number}", f"value of key {number}", ttl=7200.0)
        net.run(0.05)
    net.run(PATIENCE)
    return puts


Get: TypeAlias = tuple[Call, BareNode, str]


def get_value(net: BareNetwork, rng: random.Random, nodes: Sequence[BareNode], puts: Mapping[str, Call]) -> Get:
    node, key = rng.choice(nodes), rng.choice(list(puts))
    return net.get(node, key), node, key


def got(gets: list[Get]) -> Figures:
    """How many gets of askers that stayed had the value in time."""
    stayed = [(call, key) for call, node, key in gets if node.until > call.at + PATIENCE]
    calls = [call for call, _ in stayed]
    found = [
        call.ok and getattr(call.value, "value", None) == f"value of {key}" and (call.took or 0.0) <= PATIENCE
        for call, key in stayed
    ]
    return {"gets": len(stayed), "found_within_30s": share(found), **times(calls), "errors": errors(calls)}


# --- what it costs ----------------------------------------------------------------------------------------------------


def rest(net: BareNetwork, rng: random.Random) -> Figures:
    """Five minutes in which nothing happens."""
    before = read_meter(net)
    net.run(300)
    cost = read_meter(net) - before
    peer_minutes = len(net.nodes) * cost.at / 60
    return {
        "links_opened": cost.links_opened,
        "links_opened_per_peer_per_minute": cost.links_opened / peer_minutes,
        "attempts_failed": cost.attempts_failed,
        "frames_per_peer_per_minute": cost.frames / peer_minutes,
        "frame_kinds": {kind: round(count / peer_minutes, 3) for kind, count in cost.frame_kinds.items()},
        "service_messages_per_peer_per_minute": cost.service_messages / peer_minutes,
        "links_per_peer": mean(len(node.links.ends) for node in net.nodes),
    }


def departures(net: BareNetwork, rng: random.Random) -> Figures:
    """One peer after another goes, by turns with a goodbye and without."""
    opened: list[float] = []
    for number, node in enumerate(rng.sample(net.nodes, 20)):
        before = read_meter(net)
        if number % 2:
            net.stop(node)
        else:
            node.leave()
        net.run(60)
        opened.append((read_meter(net) - before).links_opened)
    return {
        "departures": len(opened),
        "links_opened_most": max(opened),
        "links_opened_mean": mean(opened),
        "after_goodbyes": opened[0::2],
        "after_crashes": opened[1::2],
        "ring_gaps": len(ring_gaps(net)),
        "islands": len(islands(net)),
    }


# --- helpers ----------------------------------------------------------------------------------------------------------


def churn(net: BareNetwork, peers: int, seconds: float) -> None:
    rate = CHURN * peers
    FaultInjector(net, FaultPlan([Churn(at=0.0, seconds=seconds, arrivals=rate, departures=rate, crashes=0.5)]))


def steady(net: BareNetwork) -> list[BareNode]:
    """Members that are not newcomers."""
    return [node for node in members(net) if node.joined_at <= net.now - STEADY]


def share(of: Iterator[bool] | Sequence[bool] | Any) -> float | None:
    all_of = list(of)
    return sum(all_of) / len(all_of) if all_of else None


def times(calls: Sequence[Call]) -> Figures:
    took = sorted(call.took for call in calls if call.ok and call.took is not None)
    if not took:
        return {}
    return {"took_p50_s": took[len(took) // 2], "took_p99_s": took[len(took) * 99 // 100], "took_max_s": took[-1]}


def errors(calls: Sequence[Call]) -> dict[str, int]:
    """Reasons for which calls failed, with their counts."""
    reasons: dict[str, int] = {}
    for call in calls:
        if call.done_at is None or call.error is not None:
            reason = "no reply" if call.error is None else f"{type(call.error).__name__}: {call.error}"[:80]
            reasons[reason] = reasons.get(reason, 0) + 1
    return dict(sorted(reasons.items(), key=lambda item: -item[1])[:5])


# --- the sections -----------------------------------------------------------------------------------------------------

Size: TypeAlias = tuple[int, int]
"""Peers, and links each of them may have."""
JOINED: tuple[Size, ...] = ((100, 3), (1000, 3), (1000, 5), (1000, 8), (10_000, 5), (10_000, 8))
THREE: tuple[Size, ...] = ((1000, 3), (1000, 5), (1000, 8))
HOPS = {3: 21.0, 5: 8.5, 8: 5.5}


class Section(NamedTuple):
    """Which meshes it is for, what measures it, and what the figures should be for so many links."""

    sizes: tuple[Size, ...]
    measure: Callable[[BareNetwork, random.Random], Figures] | None
    bars: Callable[[int], dict[str, Bar]]


SECTIONS: dict[str, Section] = {
    "joins": Section(JOINED, None, lambda links: {"whole_after_s": at_most(WITHIN)}),
    "storm": Section(JOINED, None, lambda links: {"whole_after_s": at_most(STORM_WITHIN)}),
    "growth": Section(THREE, None, lambda links: {"messages_per_join": at_most(16), "mesh_share": at_least(0.9)}),
    "service": Section(
        ((100, 3), (100, 5), (100, 8), *THREE),
        service,
        lambda links: {"messages_per_join": at_most(16), "mesh_share_of_newcomers": at_least(0.9)},
    ),
    "rest": Section(THREE, rest, lambda links: {"links_opened_per_peer_per_minute": at_most(0)}),
    "departures": Section(THREE, departures, lambda links: {"links_opened_most": at_most(3)}),
    "routes": Section(
        THREE,
        routes,
        lambda links: {
            "arrived": at_least(1),
            "hops_mean": at_most(HOPS.get(links, HOPS[3] if links < 5 else HOPS[5])),
            "delivered_twice": at_most(0),
        },
    ),
    "churn_routes": Section(
        THREE, churn_routes, lambda links: {"arrived_within_10s": at_least(0.995), "delivered_twice": at_most(0)}
    ),
    "dht": Section(((1000, 5),), dht, lambda links: {"exact": at_least(1)}),
    "dht_deaths": Section(((1000, 5),), dht_deaths, lambda links: {"found_within_30s": at_least(0.99)}),
    "dht_churn": Section(((1000, 5),), dht_churn, lambda links: {"found_within_30s": at_least(0.99)}),
}
QUICK: tuple[Size, ...] = ((100, 3), (100, 5), (100, 8))
