"""Relaying: what a peer does with packets that are for others. It keeps nothing of them, and signs nothing.

A packet carries all that its relays need: where it was, which of that are dead ends, how far it may go. A relay takes as many of
them from each neighbour as it has agreed to, and no more.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from msgspec import structs

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.packets import REQUESTS
from p2pmesh.protocols.routes import SEARCH, RouteTable, pick
from p2pmesh.wire.fields import MAX_TRAIL
from p2pmesh.wire.overlay import Packet


@define
class RelayCounts:
    """What became of the packets of others."""

    relayed: int = 0
    given_back: int = 0
    dropped_hops: int = 0
    dropped_stuck: int = 0
    dropped_rate: int = 0


class Relay:
    """Sends packets of others on."""

    def __init__(
        self,
        table: RouteTable,
        send: Callable[[PeerId, Packet], None],
        respond: Callable[[Packet], None],
    ) -> None:
        self.counts: RelayCounts = RelayCounts()
        self._me = table.me
        self._table = table
        self._send = send
        self._respond = respond

    def is_nearest(self, packet: Packet, path: tuple[PeerId, ...]) -> bool:
        """Whether a packet for the peer nearest to a key ends here.

        If nothing nearer is left, but it has been at somebody nearer, it goes back there.
        """
        table, key = self._table, packet.to
        return table.is_nearest(key, path) and not table.nearer(key, path, packet.tried, leaves=True)

    def pass_on(self, packet: Packet, path: tuple[PeerId, ...]) -> None:
        """Send a packet on that came by this path, the last of it our neighbour, or back if there is no way on."""
        if packet.hops == 0:
            self.counts.dropped_hops += 1
            self._miss(packet, path)
            return
        visited = (*path, *packet.tried)
        ahead = None if packet.nearest else self._table.along(packet.route, packet.to, visited)
        if ahead is not None:
            self._forward(ahead[0], packet, path, ahead[1:] if ahead[0] != packet.to else ())
            return
        choices = self._table.nearer(packet.to, path, packet.tried, leaves=packet.nearest)
        if not choices and not packet.nearest:
            choices = self._table.ranked(packet.to, visited)
            packet = structs.replace(packet, hops=min(packet.hops, packet.search, SEARCH))
        peer = pick(choices, packet)
        if peer is None:
            self._give_back(packet, path)
        else:
            self._forward(peer, packet, path, packet.route)

    def _forward(self, peer: PeerId, packet: Packet, path: tuple[PeerId, ...], route: tuple[PeerId, ...]) -> None:
        if len(path) + len(packet.tried) + len(route) > MAX_TRAIL:
            route = ()
        if len(path) + len(packet.tried) > MAX_TRAIL:
            self.counts.dropped_hops += 1
            self._miss(packet, path)
            return
        self.counts.relayed += 1
        self._send(peer, structs.replace(packet, path=path, route=route, hops=packet.hops - 1))

    def _give_back(self, packet: Packet, path: tuple[PeerId, ...]) -> None:
        """To the last peer on the path that is a neighbour still; who is not is as good as a dead end."""
        tried = (*packet.tried, self._me)
        while path and path[-1] not in self._table:
            path, tried = path[:-1], (*tried, path[-1])
        if not path or len(path) + len(tried) > MAX_TRAIL:
            self.counts.dropped_stuck += 1
            return
        self.counts.given_back += 1
        self._send(path[-1], structs.replace(packet, path=path[:-1], tried=tried, route=(), hops=packet.hops - 1))

    def _miss(self, packet: Packet, path: tuple[PeerId, ...]) -> None:
        """Tell the origin of a request that it won't arrive this way."""
        if packet.kind in REQUESTS:
            route = tuple(reversed(path[1:]))
            miss = Packet(
                id=packet.id, kind="miss", from_=self._me, to=packet.from_, attempt=packet.attempt, route=route
            )
            self._respond(miss)
