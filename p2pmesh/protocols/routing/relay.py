"""Relaying: what a peer does with packets that are for others. It signs nothing, and has to remember nothing.

A packet carries all that its relays need: where it was, which of that are dead ends, how far it may go. A relay takes as many of
them from each neighbour as it has agreed to, and no more.

For a moment it keeps what may need another way: what it just gave to a neighbour that falls silent goes round that one, and
what found nothing nearer, because the ring is torn here, goes on once a new link mends it (it has gone on searching meanwhile;
the receiver delivers it once).
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from msgspec import structs

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable, pick
from p2pmesh.protocols.routing.packets import REQUESTS
from p2pmesh.protocols.routing.resend_buffer import MOST, ResendBuffer
from p2pmesh.protocols.util.lru_table import ExpiringSet
from p2pmesh.wire.fields import MAX_TRAIL, SEARCH
from p2pmesh.wire.overlay import Packet

SENT_FOR = 2.0
"""Seconds for which it is kept what a neighbour was given: longer than it takes to doubt it."""
IN_FLIGHT = 0.25
"""Seconds: what a neighbour was given so shortly before its link ended, it may not have read."""
PARKED_FOR = 6.0
"""Seconds for which a packet waits for the ring to be mended: about as long as that takes after a crash."""


@define
class RelayCounts:
    """What became of the packets of others."""

    relayed: int = 0
    given_back: int = 0
    sent_round: int = 0
    """Of what a neighbour was given that fell silent or was lost."""
    parked: int = 0
    unparked: int = 0
    dropped_hops: int = 0
    dropped_stuck: int = 0
    dropped_rate: int = 0


class Relay:
    """Sends packets of others on."""

    def __init__(
        self,
        table: ForwardingTable,
        send: Callable[[PeerId, Packet], None],
        respond: Callable[[Packet], None],
    ) -> None:
        self.counts: RelayCounts = RelayCounts()
        self._me = table.me
        self._table = table
        self._send = send
        self._respond = respond
        self._sent: dict[PeerId, ResendBuffer] = {}
        self._parked = ResendBuffer(PARKED_FOR)
        self._parked_once: ExpiringSet[tuple[str, str, int], None] = ExpiringSet(4 * MOST)

    @property
    def kept(self) -> int:
        """Packets that may need another way."""
        return len(self._parked) + sum(map(len, self._sent.values()))

    def is_nearest(self, packet: Packet, path: tuple[PeerId, ...]) -> bool:
        """Whether a packet for the peer nearest to a key ends here.

        If nothing nearer is left, but it has been at somebody nearer, it goes back there.
        """
        table, key = self._table, packet.to
        return table.is_nearest(key, path) and not table.nearer(key, path, packet.tried, leaves=True)

    def sent(self, peer: PeerId, packet: Packet, now: float) -> None:
        """A neighbour was given this, whoever it is from."""
        kept = self._sent.get(peer)
        if kept is not None and not self._is_errand(packet):
            kept.add(packet, now)

    def link_up(self, peer: PeerId, now: float) -> None:
        """A new neighbour."""
        self._sent[peer] = ResendBuffer(SENT_FOR)
        self.unpark(now)

    def unpark(self, now: float) -> None:
        """What is parked may come nearer now."""
        for at, packet in self._parked.take_all(now - PARKED_FOR):
            if self._has_way(packet):
                self.counts.unparked += 1
                self.pass_on(structs.replace(packet, waits=False), packet.path, now)
            else:
                self._parked.add(packet, at)

    def link_silent(self, peer: PeerId, now: float) -> None:
        """What it was just given may never have come to it."""
        self._go_round(peer, now - SENT_FOR, now)

    def link_down(self, peer: PeerId, now: float) -> None:
        """It is gone, and has not read what was under way to it."""
        self._go_round(peer, now - IN_FLIGHT, now)
        self._sent.pop(peer, None)

    def _go_round(self, peer: PeerId, since: float, now: float) -> None:
        """What this neighbour was given since then, and may have had or not, goes another way.

        But for what looks for the nearest to a key: with this peer left out, that might end at the wrong one.
        """
        kept = self._sent.get(peer)
        for _, packet in kept.take_all(since) if kept is not None else ():
            if packet.to != peer and not packet.nearest:
                self.counts.sent_round += 1
                self._send_round(packet, peer, now)

    def _park(self, packet: Packet, now: float) -> None:
        """Keep a copy; once, though it should come back or copies of it pass."""
        key = (packet.id, packet.kind, packet.attempt)
        if key not in self._parked_once:
            self._parked_once.add(key, None, now + PARKED_FOR, now)
            self._parked.add(packet, now)
            self.counts.parked += 1

    def _has_way(self, packet: Packet) -> bool:
        table = self._table
        return packet.to in table or bool(table.nearer(packet.to, packet.path, packet.tried, leaves=False))

    def pass_on(self, packet: Packet, path: tuple[PeerId, ...], now: float) -> None:
        """Send a packet on that came by this path, the last of it our neighbour, or back if there is no way on."""
        if packet.hops == 0:
            self._drop(packet, path)
            return
        visited = (*path, *packet.tried)
        ahead = None if packet.nearest else self._table.along(packet.route, packet.to, visited)
        if ahead is not None:
            self._forward(ahead[0], packet, path, ahead[1:] if ahead[0] != packet.to else ())
            return
        choices = self._table.nearer(packet.to, path, packet.tried, leaves=packet.nearest)
        if not choices and not packet.nearest:
            strayed = self._table.strayed(packet.to, path)
            if packet.waits and not strayed:
                self._park(structs.replace(packet, path=path), now)
            if strayed + len(packet.tried) >= min(packet.search, SEARCH):
                self._drop(packet, path)
                return
            choices = self._table.ranked(packet.to, visited)
        peer = pick(choices, packet)
        if peer is None:
            self._give_back(packet, path)
        else:
            self._forward(peer, packet, path, packet.route)

    def _forward(self, peer: PeerId, packet: Packet, path: tuple[PeerId, ...], route: tuple[PeerId, ...]) -> None:
        if len(path) + len(packet.tried) + len(route) > MAX_TRAIL:
            route = ()
        if len(path) + len(packet.tried) > MAX_TRAIL:
            self._drop(packet, path)
            return
        self.counts.relayed += 1
        self._send(peer, structs.replace(packet, path=path, route=route, hops=packet.hops - 1))

    def _send_round(self, packet: Packet, lost: PeerId, now: float) -> None:
        if packet.from_ == self._me:
            self._respond(packet)
        elif self._me in packet.tried and packet.hops:  # it was given back
            tried = (*(peer for peer in packet.tried if peer != self._me), lost)
            self._give_back(structs.replace(packet, tried=tried), packet.path)
        else:
            self.pass_on(structs.replace(packet, tried=(*packet.tried, lost)), packet.path, now)

    def _is_errand(self, packet: Packet) -> bool:
        """Whether it is a request of ours: those find another way themselves."""
        return packet.from_ == self._me and packet.kind in REQUESTS

    def _give_back(self, packet: Packet, path: tuple[PeerId, ...]) -> None:
        """To the last peer on the path that is a neighbour still; who is not is as good as a dead end."""
        tried = (*packet.tried, self._me)
        while path and (path[-1] not in self._table or path[-1] in self._table.shunned):
            path, tried = path[:-1], (*tried, path[-1])
        if not path or len(path) + len(tried) > MAX_TRAIL:
            self.counts.dropped_stuck += 1
            return
        self.counts.given_back += 1
        self._send(path[-1], structs.replace(packet, path=path[:-1], tried=tried, route=(), hops=packet.hops - 1))

    def _drop(self, packet: Packet, path: tuple[PeerId, ...]) -> None:
        """Tell the origin, if it is a request, that it won't arrive this way."""
        self.counts.dropped_hops += 1
        if packet.kind in REQUESTS:
            route = tuple(reversed(path[1:]))
            miss = Packet(
                id=packet.id, kind="miss", from_=self._me, to=packet.from_, attempt=packet.attempt, route=route
            )
            self._respond(miss)
