"""What must hold in every simulation: watched while it runs, and checked when it has come to rest.

    net = BareNetwork(seed=1)
    watch(net)  # safety: at most once, links within the cap, structures within their bounds
    ...
    check_ring(net), check_islands(net), check_delivery(net)  # liveness: by a deadline after the faults have stopped

Each check reports what is wrong to `net.violate`, which raises if the network is strict.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from p2pmesh.keyspace import PeerId
from p2pmesh.simulation.discrete.delivery_log import Broadcast
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.model.bounds import LOOK_EVERY, bounds_of

LOOK_AT: Final = 20
"""Peers whose snapshots are taken in one check, in turn: the cost must not grow with the number of peers."""

MOST_BELIEVED: Final = 1024
"""Peers that one hostile neighbour can make an origin count in a small mesh."""

# --- safety -----------------------------------------------------------------------------------------------------------


def watch(net: BareNetwork) -> None:
    """Watch a network for what must never happen, from now on."""
    net.after(LOOK_EVERY, _look, net, 0)


def _look(net: BareNetwork, turn: int) -> None:
    check_at_most_once(net)
    check_receipts(net)
    living = net.living()
    for offset in range(min(LOOK_AT, len(living))):
        check_bounds(net, living[(turn + offset) % len(living)])
    net.after(LOOK_EVERY, _look, net, turn + LOOK_AT)


def check_at_most_once(net: BareNetwork) -> None:
    """No application got a broadcast or a direct message twice."""
    twice = net.delivery_log.twice + net.call_log.twice
    net.delivery_log.twice, net.call_log.twice = [], []
    for time, number, message_id in twice:
        net.violate("at most once", f"n{number} delivered {message_id[:8]} again at {time:.3f} s")


def check_receipts(net: BareNetwork) -> None:
    """No origin believes that more peers have its broadcast than truly do; where some lie, than there may be by far."""
    lies = MOST_BELIEVED * net.config.max_peers if net.plot.allies else 0
    for broadcast in net.delivery_log:
        if broadcast.reached > broadcast.count + lies:
            counts = f"{broadcast.reached} peers counted, {broadcast.count} have it"
            net.violate("receipts", f"the broadcast of n{broadcast.origin} at {broadcast.at:.3f} s: {counts}")


def check_bounds(net: BareNetwork, node: BareNode) -> None:
    """Every structure of a peer's cores is within the bound that its config sets."""
    snapshot = node.snapshot()
    for name, value, bound in bounds_of(snapshot["subsystems"], node.config):
        if value > bound:
            net.violate("bounds", f"n{node.number}: {name} is {value:g}, {bound:g} is allowed")
    open_links, taken = len(node.links.ends), len(node.links.ends) + len(node.links.attempts)
    if taken > node.config.max_peers:
        net.violate("link cap", f"n{node.number} has {open_links} links and {taken - open_links} attempts")


# --- liveness ---------------------------------------------------------------------------------------------------------


def members(net: BareNetwork, without: Collection[int] = ()) -> list[BareNode]:
    """The peers that are in the mesh now: running, once let in by the service, and not leaving."""
    return [
        node
        for node in net.living()
        if not node.is_frozen and not node.is_leaving and node.joined_at <= net.now and node.number not in without
    ]


def islands(net: BareNetwork, without: Collection[int] = ()) -> list[list[int]]:
    """The members in groups that reach each other over links that both sides hold, the largest group first.

    Groups that consist of peers `without` which it goes are left out.
    """
    inside = {node.peer_id: node for node in members(net)}
    left = dict.fromkeys(inside)
    groups = []
    for first in inside:
        if first not in left:
            continue
        del left[first]
        group, found = [first], 0
        while found < len(group):
            for peer, end in inside[group[found]].links.ends.items():
                if peer in left and not end.far.gone:
                    del left[peer]
                    group.append(peer)
            found += 1
        numbers = [inside[peer].number for peer in group]
        if not set(numbers) <= set(without):
            groups.append(numbers)
    return sorted(groups, key=len, reverse=True)


def ring_gaps(net: BareNetwork, without: Collection[int] = ()) -> list[tuple[int, int]]:
    """Members that have no link to the one that follows them on the ring of ids, with that one.

    Gaps at peers `without` don't count.
    """
    ordered = sorted(members(net), key=lambda node: node.peer_id)
    if len(ordered) < 2:
        return []
    pairs = zip(ordered, ordered[1:] + ordered[:1], strict=True)
    gaps = [(node.number, after.number) for node, after in pairs if after.peer_id not in node.links.ends]
    return [gap for gap in gaps if not set(gap) & set(without)]


def ring_cycles(net: BareNetwork) -> int:
    """Cycles of the walk from each member to its nearest neighbour clockwise: 1 if the ring is whole."""
    inside = {node.peer_id: node for node in members(net)}
    follows: dict[PeerId, PeerId] = {}
    for peer, node in inside.items():
        neighbours = [other for other in node.links.ends if other in inside]
        if neighbours:  # ids compare as text as they do as numbers
            follows[peer] = min((other for other in neighbours if other > peer), default=min(neighbours))
    cycles, walked = 0, dict[PeerId, int]()
    for number, start in enumerate(inside):
        at: PeerId | None = start
        while at is not None and at not in walked:
            walked[at] = number
            at = follows.get(at)
        cycles += at is not None and walked[at] == number
    return cycles


def check_ring(net: BareNetwork, without: Collection[int] = ()) -> None:
    """Each member has a link to the next on the ring, so the ring is one cycle. Gaps at peers `without` don't count."""
    gaps = ring_gaps(net, without)
    if gaps:
        shown = ", ".join(f"n{a}-n{b}" for a, b in gaps[:5])
        net.violate("one ring", f"{len(gaps)} of the ring's links are missing: {shown}")


def check_islands(net: BareNetwork, without: Collection[int] = ()) -> None:
    """The members are one connected graph. Peers `without` need not be part of it."""
    groups = islands(net, without)
    if len(groups) > 1:
        net.violate(
            "one island", f"{len(groups)} islands, of {', '.join(str(len(group)) for group in groups[:6])} peers"
        )


def expected(net: BareNetwork, broadcast: Broadcast, without: Collection[int] = ()) -> list[int]:
    """The peers that should have a broadcast: members when it was made that still are."""
    if broadcast.message_id is None:
        return []
    return [
        node.number
        for node in members(net, without)
        if node.joined_at <= broadcast.at and node.number != broadcast.origin
    ]


def check_delivery(
    net: BareNetwork, *, quiet_since: float = 0.0, within: float = 30.0, without: Collection[int] = ()
) -> None:
    """Each broadcast whose ttl outlasted the faults by long enough has reached every member that should have it.

    Except one that went with the peers that had it: there is nobody left to get it from.

    Args:
      net: the network.
      quiet_since: when the faults stopped.
      within: seconds that delivery may take after that; broadcasts whose ttl ended before are not asked for.
      without: peers that don't count.
    """
    living = [node for node in net.living() if node.number not in without]
    for broadcast in net.delivery_log:
        if broadcast.expires < quiet_since + within or net.now < max(broadcast.at, quiet_since) + within:
            continue
        if not any(node.number == broadcast.origin or broadcast.has(node.number) for node in living):
            continue  # it went with the peers that had it
        missing = [number for number in expected(net, broadcast, without) if not broadcast.has(number)]
        if missing:
            shown = ", ".join(f"n{number}" for number in missing[:6])
            what = f"the broadcast of n{broadcast.origin} at {broadcast.at:.3f} s has not reached"
            net.violate("exactly once", f"{what} {len(missing)} peers: {shown}")


def check_nothing_left(net: BareNetwork) -> None:
    """Nothing is left after `net.close()`: no process, link, attempt or connection."""
    left = {
        "peers": len(net.living()),
        "ends of links": net.ends(),
        "attempts": len(net.attempts) + sum(len(node.links.attempts) for node in net.nodes),
        "connections to the service": net.service.lines,
    }
    remaining = [f"{count} {name}" for name, count in left.items() if count]
    if remaining:
        net.violate("nothing left", f"after everybody left: {', '.join(remaining)}")
