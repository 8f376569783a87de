"""The machines that simulated peers run on, one for each start of a peer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import trio
from attrs import define, field

from p2pmesh.errors import ConfigError
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh
from p2pmesh.simulation.full.network import SimDialer
from p2pmesh.simulation.full.service_transport import ServiceTransport
from p2pmesh.simulation.model.event_queue import EPOCH

Who: TypeAlias = "Mesh | PeerId | int"
"""A peer, by its mesh, its id or its number."""


@define(eq=False)
class Host:
    """A machine, and the peer on it: its mesh is None before it has joined and after it is gone."""

    number: int
    identity: Identity
    dialer: SimDialer
    transport: ServiceTransport
    options: dict[str, Any]
    """What it was started with, to start it again."""
    clock_offset: float
    mesh: Mesh | None = None
    apps: trio.Nursery | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    leaving: trio.Event = field(factory=trio.Event)
    gone: trio.Event = field(factory=trio.Event)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def is_linked_to(self, other: Host) -> bool:
        return self.mesh is not None and other.peer_id in self.mesh.peers

    def wall_clock(self, now: float) -> float:
        return EPOCH + self.clock_offset + now


class Hosts:
    """All hosts, by number."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []

    def __len__(self) -> int:
        return len(self._hosts)

    def add(self, host: Host) -> None:
        self._hosts.append(host)

    def alive(self) -> list[Host]:
        """Hosts whose peers are there and mean to stay."""
        return [host for host in self._hosts if host.mesh is not None and not host.leaving.is_set()]

    def present(self) -> list[Host]:
        """Hosts whose peers are not gone yet, including those that have not joined."""
        return [host for host in self._hosts if not host.gone.is_set()]

    def find(self, who: Who) -> Host:
        """The host of a peer; of one that was restarted, the latest."""
        if isinstance(who, int):
            if 0 <= who < len(self._hosts):
                return self._hosts[who]
        else:
            peer = who.peer_id if isinstance(who, Mesh) else who
            for host in reversed(self._hosts):
                if host.peer_id == peer:
                    return host
        raise ConfigError(f"there is no peer {who} in this simulation")

    def ids(self, who: Iterable[Who]) -> list[PeerId]:
        return [self.find(one).peer_id for one in who]

    @staticmethod
    def islands(hosts: Iterable[Host]) -> int:
        """The number of parts, without links between them, that these hosts' peers fall into."""
        links = {host.peer_id: host.mesh.peers for host in hosts if host.mesh is not None}
        unseen, islands = dict.fromkeys(links), 0
        while unseen:
            islands += 1
            frontier = [unseen.popitem()[0]]
            while frontier:
                near = frontier.pop()
                found = [far for far in links[near] if far in unseen and near in links[far]]
                for far in found:
                    del unseen[far]
                frontier += found
        return islands

    def ring_gaps(self) -> list[tuple[int, int]]:
        """Peers that have no link to the one that follows them on the ring of ids, with that one."""
        ring = sorted(self.alive(), key=lambda host: host.peer_id)
        pairs = zip(ring, ring[1:] + ring[:1], strict=True)
        return [(a.number, b.number) for a, b in pairs if a is not b and not a.is_linked_to(b)]
