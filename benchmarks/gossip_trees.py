"""What broadcasts cost at rest, one at a time, and how far they go, beside an ideal flood on the same graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from statistics import mean
from typing import Final

from attrs import frozen

from benchmarks.overlay_measures import Figures, share
from p2pmesh.events import Event, MessageReceived
from p2pmesh.simulation import BareNetwork, BareNode, Broadcast, read_meter
from p2pmesh.simulation.discrete.traffic import PAYLOAD

WARM_UP, MEASURED = 20, 20
"""Broadcasts until the trees have grown, and those that are measured then."""
APART: Final = 3.0
"""Seconds between two of them, so that all copies of one were sent before the next; a flood takes one at most."""
AFTERWARDS: Final = 30.0
"""Seconds until receipts are looked at."""


@frozen
class Sent:
    """What became of one broadcast."""

    broadcast: Broadcast
    copies: int
    """Copies of its payload that went over links."""
    last_hop: int
    """Links on the longest way that it took to anybody."""
    flood_hop: int
    """Links that a flood from the same peer would have crossed to the last peer."""
    flood_time: float


def one_sender(net: BareNetwork, rng: random.Random) -> Figures:
    """The same peer broadcasts, again and again."""
    sender = rng.choice(net.nodes)
    return spread(net, lambda: sender)


def random_senders(net: BareNetwork, rng: random.Random) -> Figures:
    """A random peer broadcasts, another each time."""
    return spread(net, lambda: rng.choice(net.nodes))


def spread(net: BareNetwork, choose: Callable[[], BareNode]) -> Figures:
    """Broadcasts one after another, and what the later ones cost."""
    others = len(net.nodes) - 1
    longest = watch_hops(net)
    sent = [broadcast_alone(net, choose(), longest) for _ in range(WARM_UP)]
    before, net.delivery_log.latencies[:] = read_meter(net), net.delivery_log.latencies[:0]
    measured = [broadcast_alone(net, choose(), longest) for _ in range(MEASURED)]
    cost, took = read_meter(net) - before, sorted(net.delivery_log.latencies)
    net.run(AFTERWARDS)
    last, flood = mean(one.last_hop for one in measured), mean(one.flood_hop for one in measured)
    return {
        "reliability": mean(one.broadcast.count / others for one in measured),
        "redundancy": redundancy(measured),
        "redundancy_of_the_first": redundancy(sent[:1]),
        "redundancy_while_the_trees_grew": redundancy(sent),
        "last_hop": last,
        "last_hop_max": max(one.last_hop for one in measured),
        "flood_last_hop": flood,
        "last_hop_ratio": last / flood,
        "last_delivery_s": mean(one.broadcast.last_at - one.broadcast.at for one in measured),
        "flood_last_delivery_s": mean(one.flood_time for one in measured),
        "took_p50_s": took[len(took) // 2],
        "took_p99_s": took[len(took) * 99 // 100],
        "frames_per_delivery": cost.frames / max(1, sum(one.broadcast.count for one in measured)),
        "exact_receipts": share(one.broadcast.reached == others for one in [*sent, *measured]),
        "delivered_twice": len(net.delivery_log.twice),
    }


def broadcast_alone(net: BareNetwork, sender: BareNode, longest: Mapping[str, int]) -> Sent:
    """One broadcast, and nothing else meanwhile."""
    before, flood = net.traffic.frames[PAYLOAD], flood_from(net, sender)
    broadcast = net.publish(sender)
    net.run(APART)
    copies, message_id = net.traffic.frames[PAYLOAD] - before, broadcast.message_id or ""
    return Sent(broadcast, copies, longest.get(message_id, 0), *flood)


def redundancy(sent: Iterable[Sent]) -> float:
    """Copies for each delivery, beyond the one that it takes: the relative message redundancy of Plumtree's authors."""
    rows = list(sent)
    return sum(one.copies for one in rows) / max(1, sum(one.broadcast.count for one in rows)) - 1


def watch_hops(net: BareNetwork) -> dict[str, int]:
    """The most links that each broadcast crosses on its way to anybody, from now on, by its id."""
    longest: dict[str, int] = {}

    def hear(_: BareNode, event: Event) -> None:
        if isinstance(event, MessageReceived) and event.hops > longest.get(event.message_id, 0):
            longest[event.message_id] = event.hops

    net.listeners.append(hear)
    return longest


def flood_from(net: BareNetwork, sender: BareNode) -> tuple[int, float]:
    """Links that an ideal flood, without jitter, crosses to the peer that it reaches last, and the seconds until then.

    It goes the fastest way to each, and of equally fast ones the shortest; where all links take equally long, that is
    breadth first.
    """
    done: set[int] = set()
    front = [(0.0, 0, sender.number)]
    most, last = 0, 0.0
    while front:
        time, hops, at = heappop(front)
        if at in done:
            continue
        done.add(at)
        last, most = time, max(most, hops)
        for end in net.nodes[at].links.ends.values():
            if end.far_number not in done:
                heappush(front, (round(time + end.path.base, 9), hops + 1, end.far_number))
    return most, last
