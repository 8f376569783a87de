"""What a mesh has cost so far: read the meter before and after, and take the difference.

before = read_meter(net)
net.run(60)
assert (read_meter(net) - before).links_opened == 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import field, frozen

from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.simulation.discrete.network import BareNetwork

BY_MESH: Final = "mesh"
BY_SERVICE: Final = "service"
"""How the signaling core calls the offers that it sent through the mesh, and those that it sent by a service."""


@frozen(kw_only=True)
class Reading:
    """Counters of a whole network since it began; or, as the difference of two readings, in the time between them."""

    at: float
    """Virtual seconds."""
    links_opened: float
    """Links that opened: the two ends of one count a half each."""
    attempts_failed: int
    service_in: int
    """Messages that peers sent to the signaling service."""
    service_out: int
    """Messages that it sent, and that peers got."""
    service_kinds: Mapping[str, int] = field(repr=False)
    """Both, by direction and kind."""
    offers_mesh: int
    """Offers that went through the mesh."""
    offers_service: int
    """Offers that went by way of a signaling service."""
    frames: int
    """Messages that peers sent over links."""
    frame_kinds: Mapping[str, int] = field(repr=False)
    events: int

    def __sub__(self, before: Reading) -> Reading:
        earlier = attrs.asdict(before, recurse=False)
        return Reading(**{
            name: _less(value, earlier[name]) for name, value in attrs.asdict(self, recurse=False).items()
        })

    @property
    def service_messages(self) -> int:
        """In and out."""
        return self.service_in + self.service_out

    @property
    def mesh_share(self) -> float | None:
        """Of all offers, the share that went through the mesh; None if there were none."""
        offers = self.offers_mesh + self.offers_service
        return self.offers_mesh / offers if offers else None


def read_meter(net: BareNetwork) -> Reading:
    """What has happened in a network so far."""
    offers = [node.cores[Subsystem.SIGNALING].snapshot()["delivery"]["offers"] for node in net.nodes]
    kinds = {f"in {kind}": count for kind, count in sorted(net.service.kinds_in.items())}
    kinds |= {f"out {kind}": count for kind, count in sorted(net.service.kinds_out.items())}
    return Reading(
        at=net.now,
        links_opened=sum(node.links.counts.opened for node in net.nodes) / 2,
        attempts_failed=sum(node.links.counts.failed for node in net.nodes),
        service_in=net.service.sent,
        service_out=net.service.received,
        service_kinds=kinds,
        offers_mesh=sum(counts[BY_MESH] for counts in offers),
        offers_service=sum(counts[BY_SERVICE] for counts in offers),
        frames=sum(net.traffic.frames),
        frame_kinds=net.traffic.by_name(),
        events=net.events,
    )


def _less(after: Any, before: Any) -> Any:
    if isinstance(after, Mapping):
        return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    return after - before


__all__ = ["BY_MESH", "BY_SERVICE", "Reading", "read_meter"]
