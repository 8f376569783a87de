"""What `benchmarks/gossip.py` measures: each measure takes a copy of a mesh at rest, and returns its figures.

`SECTIONS` says of each which meshes it is for and what its figures should come to, `PUBLISHED` what others have come
to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import mean
from typing import Final

import attrs

from benchmarks.gossip_trees import one_sender, random_senders
from benchmarks.overlay_measures import (
    Figures,
    Section,
    Size,
    at_least,
    at_most,
    becomes_whole,
    churn,
    new_network,
    share,
    steady,
)
from p2pmesh.events import MessageDelivered
from p2pmesh.simulation import BareNetwork, BareNode, Broadcast, Cut, assemble, read_meter
from p2pmesh.simulation.discrete.invariants import islands, ring_cycles, ring_gaps
from p2pmesh.simulation.discrete.links import End
from p2pmesh.simulation.discrete.traffic import NAMES
from p2pmesh.wire.packet_format import HEADER_SIZE, PING, PONG, u32_record

SETTLE: Final = 300.0
"""Seconds until the assembled mesh has come to rest."""
SOON, LATE = 10.0, 60.0
"""Seconds within which a broadcast is everywhere, once all is well and while the mesh mends."""
MENDED: Final = 120.0
"""Seconds after a failure by which the mesh is one again, even with 80% dead."""
LOST_FRAMES, STALL, STALLED, STALL_EVERY = 0.05, 1.0, 0.1, 5.0
"""Of all frames; seconds that a stall lasts; of the links that stall; seconds from stall to stall."""
QUIET: Final = 180.0
CHURN_FOR: Final = 120.0
PARTED: Final = 60.0
PARTED_TTL: Final = 180.0
"""Seconds that broadcasts of a partition live: well beyond its end."""
LOOK_EVERY: Final = 0.5


def new_mesh(size: Size, seed: int) -> tuple[BareNetwork, list[str]]:
    """A mesh at rest, and what is unusual about it."""
    peers, max_peers = size
    net, notes = new_network(peers, max_peers, seed, dht=False)
    assemble(net, peers, settle=SETTLE)
    return net, [*notes, "the mesh was assembled: its peers did not join one by one"]


# --- what is sent while something happens -----------------------------------------------------------------------------


class Volley:
    """Broadcasts from now on, one a second, and how many peers each had reached after so many seconds.

    Attributes:
      sent: the broadcasts.
      notes: for each of these times, of each broadcast: itself, how many have it, and how many its origin counted.
    """

    def __init__(
        self,
        net: BareNetwork,
        choose: Callable[[], BareNode],
        count: int,
        *,
        after: float = 0.0,
        look_after: Iterable[float] = (),
        ttl: float | None = None,
    ) -> None:
        self._net = net
        self._choose = choose
        self._ttl = ttl
        self.sent: list[Broadcast] = []
        self.notes: dict[float, list[tuple[Broadcast, int, int]]] = {seconds: [] for seconds in look_after}
        for number in range(count):
            net.after(after + number, self._send, None)

    def _send(self, *_: object) -> None:
        broadcast = self._net.publish(self._choose(), ttl=self._ttl)
        self.sent.append(broadcast)
        for seconds in self.notes:
            self._net.after(seconds, self._note, broadcast, seconds)

    def _note(self, broadcast: Broadcast, seconds: float) -> None:
        self.notes[seconds].append((broadcast, broadcast.count, broadcast.reached))

    def reach(self, name: str, peers: int, seconds: float | None = None) -> Figures:
        """The mean and the worst share of the peers, senders aside, that had a broadcast after so long, or by now."""
        counts = [one.count for one in self.sent] if seconds is None else [count for _, count, _ in self.notes[seconds]]
        shares = [count / max(1, peers - 1) for count in counts]
        return {name: mean(shares), f"{name}_worst": min(shares)}


def books(net: BareNetwork) -> Figures:
    """What must be zero in any case."""
    return {
        "delivered_twice": len(net.delivery_log.twice),
        "counted_too_many": sum(broadcast.reached > broadcast.count for broadcast in net.delivery_log),
    }


# --- deaths -----------------------------------------------------------------------------------------------------------


def deaths(net: BareNetwork, rng: random.Random, part: float) -> Figures:
    """A part of the peers die at once, and others broadcast from that moment on, one a second."""
    before, left = read_meter(net), die(net, rng, part)
    first = Volley(net, lambda: rng.choice(left), 30, look_after=(SOON, LATE))
    later = Volley(net, lambda: rng.choice(left), 10, after=MENDED, look_after=(SOON,))
    net.run(MENDED)
    shape = {f"{name}_after_{MENDED:g}s": value for name, value in shape_of(net).items()}
    opened = (read_meter(net) - before).links_opened
    net.run(10 + LATE)
    return {
        "survivors": len(left),
        **first.reach("reach_within_60s", len(left), LATE),
        **first.reach("reach_within_10s", len(left), SOON),
        **later.reach("reach_within_10s_once_mended", len(left), SOON),
        **shape,
        "links_opened_per_survivor": opened / len(left),
        **books(net),
    }


def mass_failure(net: BareNetwork, rng: random.Random, part: float, within: float) -> Figures:
    """A part of the peers die at once: when the others are one ring, and how far a broadcast 30 s later gets."""
    left = die(net, rng, part)
    volley = Volley(net, lambda: rng.choice(left), 10, after=30.0, look_after=(SOON,))
    whole = becomes_whole(net, within)
    net.run(LATE + SOON)
    return {
        "survivors": len(left),
        **whole,
        **volley.reach("reach", len(left)),
        **volley.reach("reach_within_10s", len(left), SOON),
        **books(net),
    }


def die(net: BareNetwork, rng: random.Random, part: float) -> list[BareNode]:
    """Crash so many at once, and return the others."""
    for node in rng.sample(net.nodes, round(part * len(net.nodes))):
        net.stop(node)
    return net.living()


def shape_of(net: BareNetwork) -> Figures:
    return {"ring_gaps": len(ring_gaps(net)), "ring_cycles": ring_cycles(net), "islands": len(islands(net))}


# --- bad links --------------------------------------------------------------------------------------------------------


def loss(net: BareNetwork, rng: random.Random) -> Figures:
    """Every link loses frames for good, as none of WebRTC's does, and some stall again and again."""
    net.conditions = attrs.evolve(net.conditions, loss=LOST_FRAMES, reliable=False)
    net.condition(net.nodes, None)
    links = [end for node in net.nodes for end in node.links.ends.values() if node.number < end.far_number]
    for end in rng.sample(links, round(STALLED * len(links))):
        net.after(STALL_EVERY * rng.random(), _stall, end)
    before = read_meter(net)
    volley = Volley(net, lambda: rng.choice(net.nodes), 30, look_after=(SOON,))
    net.run(30 + LATE)
    lasted, volley_figures = read_meter(net) - before, volley.reach("reliability", len(net.nodes))
    return {
        **volley_figures,
        **volley.reach("reach_within_10s", len(net.nodes), SOON),
        "last_delivery_s": max(broadcast.last_at - broadcast.at for broadcast in volley.sent),
        "exact_receipts": share(broadcast.reached == broadcast.count for broadcast in volley.sent),
        "frames_per_delivery": lasted.frames / max(1, sum(broadcast.count for broadcast in volley.sent)),
        "links_opened": lasted.links_opened,
        **books(net),
    }


def _stall(end: End, _: object) -> None:
    if end.gone:
        return
    net = end.owner.links.net
    for side in (end, end.far):
        side.path.stall(net.now + STALL)
    net.after(STALL_EVERY, _stall, end)


# --- rest -------------------------------------------------------------------------------------------------------------


def rest(net: BareNetwork, rng: random.Random) -> Figures:
    """Nothing happens. Frames are counted with their headers, and keepalive as often as an idle link has it."""
    before, sizes = read_meter(net), list(net.traffic.bytes)
    net.run(QUIET)
    cost, peers = read_meter(net) - before, len(net.nodes)
    by_kind = {
        name: (after - size) / peers / QUIET
        for name, after, size in zip(NAMES, net.traffic.bytes, sizes, strict=True)
        if after != size
    }
    links = sum(len(node.links.ends) for node in net.nodes) / 2 / peers
    keepalive = links * (len(u32_record(PING, 0)) + len(u32_record(PONG, 0))) / net.config.links.keepalive_idle
    frames = cost.frames / peers / QUIET
    return {
        "control_bytes_per_peer_per_s": sum(by_kind.values()) + frames * HEADER_SIZE + keepalive,
        "of_keepalive": keepalive,
        "of_frames": by_kind,
        "frames_per_peer_per_s": frames,
        "service_messages_per_peer_per_minute": cost.service_messages / peers / QUIET * 60,
        "links_opened": cost.links_opened,
    }


# --- receipts ---------------------------------------------------------------------------------------------------------


def receipts(net: BareNetwork, rng: random.Random) -> Figures:
    """Broadcasts at rest: whether the origin is told of all others, and of nobody else."""
    others = len(net.nodes) - 1
    volley = Volley(net, lambda: rng.choice(net.nodes), 20, look_after=(SOON,))
    net.run(20 + SOON + 1)
    told = [one.outcome for one in volley.sent]
    delivered = [outcome for outcome in told if isinstance(outcome, MessageDelivered)]
    return {
        "exact": share(one.reached == one.count == others for one in volley.sent),
        "exact_as_settled": share(isinstance(one, MessageDelivered) and one.reached == others for one in told),
        "settled_after_s": mean(one.elapsed for one in delivered) if delivered else None,
        "settled_after_s_max": max((one.elapsed for one in delivered), default=None),
        "fewest": min(one.reached for one in volley.sent),
        **books(net),
    }


def receipts_churn(net: BareNetwork, rng: random.Random) -> Figures:
    """Broadcasts while a tenth of the peers are replaced each minute: how many that got one are counted."""
    ahead: set[str | None] = set()
    churn(net, len(net.nodes), CHURN_FOR)
    volley = Volley(net, lambda: rng.choice(steady(net)), round(CHURN_FOR), look_after=(SOON,))
    ends = net.now + CHURN_FOR + LATE + SOON
    while net.now < ends:
        net.run(LOOK_EVERY)
        ahead.update(one.message_id for one in volley.sent if one.reached > one.count)
    stayed = [note for note in volley.notes[SOON] if net.nodes[note[0].origin].until > note[0].at + SOON]
    return {
        "broadcasts": len(stayed),
        "counted_within_10s": sum(told for _, _, told in stayed) / sum(count for _, count, _ in stayed),
        "counted_within_10s_worst": min(told / max(1, count) for _, count, told in stayed),
        "counted_at_the_end": sum(note[0].reached for note in stayed) / sum(note[0].count for note in stayed),
        "ever_counted_too_many": len(ahead),
        **books(net),
    }


# --- a partition ------------------------------------------------------------------------------------------------------


def partition(net: BareNetwork, rng: random.Random, *, keeps_service: bool) -> Figures:
    """The network falls into two halves for a while, both broadcast, and it heals.

    `links_beyond_the_ring` are all links that open in the two minutes after it heals, whatever for, less those between
    neighbours on the whole ring that had none then, against all links before the cut. Long links that who was left
    alone by the cut opens on its return are among them.
    """
    links, peers = read_meter(net).links_opened, len(net.nodes)
    far = rng.sample(net.nodes, peers // 2)
    sides = {node.number: 1 for node in far}
    near = [node for node in net.nodes if node.number not in sides]
    start = sum(1 for _ in net.edges())
    cut = Cut(sides, keeps_service=keeps_service)
    net.cut(cut)
    volleys = [Volley(net, partial(rng.choice, side), round(PARTED), after=0.5, ttl=PARTED_TTL) for side in (near, far)]
    net.run(PARTED)
    parted = {f"{name}_before_it_heals": value for name, value in shape_of(net).items()}
    need, repaired = len(ring_gaps(net)), read_meter(net).links_opened
    net.heal(cut)
    sent = [broadcast for volley in volleys for broadcast in volley.sent]
    whole_at, all_at, late = watch_healing(net, sent)
    opened = read_meter(net).links_opened - repaired
    return {
        "whole_after_s": whole_at,
        "everything_everywhere_after_s": all_at,
        "reach_60s_after": mean(late) / (peers - 1),
        "reach_60s_after_worst": min(late) / (peers - 1),
        "links_beyond_the_ring": (opened - need) / start,
        "links_opened_to_heal": opened,
        "ring_needs": need,
        "links": start,
        "links_opened_while_parted": repaired - links,
        **parted,
        **{f"{name}_at_the_end": value for name, value in shape_of(net).items()},
        "exact_receipts": share(broadcast.reached == broadcast.count for broadcast in sent),
        **books(net),
    }


def watch_healing(net: BareNetwork, sent: list[Broadcast]) -> tuple[float | None, float | None, list[int]]:
    """Seconds until one ring and one island, for good; until all have everything; and who had what after a minute."""
    healed, others, late = net.now, len(net.nodes) - 1, list[int]()
    whole_at = all_at = None
    for look in range(1, round(2 * LATE / LOOK_EVERY) + 1):
        net.run_until(healed + look * LOOK_EVERY)
        after = net.now - healed
        if shape_of(net) != {"ring_gaps": 0, "ring_cycles": 1, "islands": 1}:
            whole_at = None
        elif whole_at is None:
            whole_at = after
        if all_at is None and all(broadcast.count == others for broadcast in sent):
            all_at = after
        if look == round(LATE / LOOK_EVERY):
            late = [broadcast.count for broadcast in sent]
    return whole_at, all_at, late


# --- the sections -----------------------------------------------------------------------------------------------------

MANY: Final[tuple[Size, ...]] = ((10_000, 5),)
SOME: Final[tuple[Size, ...]] = ((1000, 5),)
QUICK: Final[tuple[Size, ...]] = ((200, 5),)


def _deaths(percent: int, reached: float) -> Section:
    return Section(
        MANY,
        partial(deaths, part=percent / 100),
        lambda links: {"reach_within_60s": at_least(reached), "reach_within_10s_once_mended": at_least(0.999)},
    )


def _mass_failure(percent: int, within: float, reached: float) -> Section:
    return Section(
        MANY,
        partial(mass_failure, part=percent / 100, within=within),
        lambda links: {"whole_after_s": at_most(within), "reach": at_least(reached)},
    )


def _partition(*, keeps_service: bool) -> Section:
    return Section(
        SOME,
        partial(partition, keeps_service=keeps_service),
        lambda links: {
            "whole_after_s": at_most(30),
            "everything_everywhere_after_s": at_most(LATE),
            "links_beyond_the_ring": at_most(0.05),
        },
    )


SECTIONS: dict[str, Section] = {
    "one_sender": Section(
        MANY,
        one_sender,
        lambda links: {"reliability": at_least(1), "redundancy": at_most(0.05), "last_hop_ratio": at_most(1.3)},
    ),
    "random_senders": Section(
        MANY,
        random_senders,
        lambda links: {"reliability": at_least(1), "redundancy": at_most(0.5), "last_hop_ratio": at_most(1.5)},
    ),
    "deaths_30": _deaths(30, 1.0),
    "deaths_50": _deaths(50, 1.0),
    "deaths_80": _deaths(80, 0.995),
    "deaths_90": _deaths(90, 0.99),
    "loss": Section(SOME, loss, lambda links: {"reliability": at_least(1)}),
    "rest": Section(((100, 5), *MANY), rest, lambda links: {"control_bytes_per_peer_per_s": at_most(300)}),
    "receipts": Section(
        ((10, 5), (100, 5), *SOME, *MANY),
        receipts,
        lambda links: {"exact": at_least(1), "exact_as_settled": at_least(1)},
    ),
    "receipts_churn": Section(
        SOME,
        receipts_churn,
        lambda links: {"counted_within_10s": at_least(0.99), "ever_counted_too_many": at_most(0)},
    ),
    "partition": _partition(keeps_service=False),
    "partition_with_service": _partition(keeps_service=True),
    "mass_failure_50": _mass_failure(50, 60, 0.999),
    "mass_failure_80": _mass_failure(80, 120, 0.99),
}

PUBLISHED: Final[Mapping[str, Mapping[str, str]]] = {
    "one_sender": {
        "redundancy": "near 0 after the first broadcasts (Plumtree, SRDS 2007)",
        "last_hop_ratio": "1.03: the 9th hop against 8.75 of a flood (Plumtree, simulated again)",
    },
    "random_senders": {
        "redundancy": "0.59 (Plumtree, simulated again)",
        "last_hop_ratio": "2.2: the 19th hop against 8.75 of a flood (Plumtree, simulated again)",
    },
    **{
        f"deaths_{percent}": {"reach_within_60s": f"{reached} (HyParView, DSN 2007: active view 5, passive view 30)"}
        for percent, reached in ((30, "close to 1"), (50, "close to 1"), (80, "close to 1"), (90, "above 0.9"))
    },
}
