"""Relay: sends packets of others on. It signs nothing, and has to remember nothing.

A packet carries all that its relays need: where it was, which of that are dead ends, how far it may go. What each
packet costs is paid from the budget of the neighbour that brings it; what is not paid for is dropped, since its origin
repeats it another way. No peer of ours sends a neighbour more than `MOST_SENT` a second, so who brings twice as many
floods, and loses its link.

For a moment it keeps what it gave to a neighbour, in case that falls silent: then it goes round that one.

In: packets for others, each with the relays it came through; all that was sent to each neighbour; links, suspicions.
Out: `Forward` to a neighbour, `Originate` (a packet of ours to send, a miss for one), or nothing.
State: a resend buffer for each link to a member, and two rates for each link.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, TypeAlias

import attrs
from attrs import define
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable, pick, trail_id, wandering
from p2pmesh.protocols.routing.packets import REQUESTS, is_small, origin_of, response_to, visited_by
from p2pmesh.protocols.util.limits import BURST, BYTES, FRAME, VERIFY, LruTable, Payment, RateLimiter, WorkBudget
from p2pmesh.wire.fields import EVERYWHERE, MAX_TRAIL, SEARCH, TrailId
from p2pmesh.wire.overlay import Packet

MOST_SENT = 250.0
"""Packets a second that a neighbour is given, and `BURST` seconds' worth at once; what is above is as lost on the way.
The busiest links of 300 peers that all join within 3 s carry 30."""
RESPONSE_SEARCH = 4
"""As `SEARCH`, of a response that its route has not brought to its receiver: enough to get round a link that is gone.
What is still lost its origin asks for again, and nobody makes a whole mesh look for an origin that never was."""
SENT_FOR = 2.0
"""Seconds for which what a neighbour was given is kept: longer than it takes to suspect it."""
IN_FLIGHT = 0.25
"""Seconds: what a neighbour was given so shortly before its link ended, it may not have read."""
SPREAD, SPREAD_BURST = 1.0, 10.0
"""Packets a second that go everywhere for one neighbour, and how many at once. More go on as all others do."""
SPREADS = 1024
"""Of those, attempts that are remembered: more than come while one is on its way."""
BUFFERED_PACKETS = 64
"""Packets in one resend buffer. It is no promise: the origin repeats what nobody acknowledges."""
BUFFERED_BYTES = 256 * 1024
"""Bytes that they carry in all; one alone may be larger."""


class Forward(NamedTuple):
    """Send this packet to this neighbour as it is."""

    peer: PeerId
    packet: Packet


class Originate(NamedTuple):
    """Send this packet of ours to its receiver."""

    packet: Packet


Decision: TypeAlias = Forward | Originate | None
"""What becomes of a packet; None where it ends."""


@define
class RelayCounts:
    """What became of the packets of others."""

    relayed: int = 0
    given_back: int = 0
    spread: int = 0
    """Sent to all neighbours."""
    sent_round: int = 0
    """Of what was given to a neighbour that fell silent or was lost."""
    dropped_hops: int = 0
    dropped_stuck: int = 0
    dropped_rate: int = 0
    """Above what a neighbour is given at most."""
    dropped_unpaid: int = 0
    """Above the budget of the neighbour that brought them."""


class ResendBuffer:
    """The last packets that a neighbour was given, each for `SENT_FOR`; the oldest go where there is no room."""

    def __init__(self) -> None:
        self._packets: deque[tuple[float, Packet]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, packet: Packet, now: float) -> None:
        """Keep one more."""
        packets, since = self._packets, now - SENT_FOR
        packets.append((now, packet))
        self._bytes += len(packet.carry)
        while (
            packets[0][0] < since
            or len(packets) > BUFFERED_PACKETS
            or (self._bytes > BUFFERED_BYTES and len(packets) > 1)
        ):
            self._bytes -= len(packets.popleft()[1].carry)

    def take_all(self, since: float) -> list[Packet]:
        """Empty it. What was kept since then, in the order in which it came."""
        packets, self._packets, self._bytes = self._packets, deque(), 0
        return [packet for at, packet in packets if at >= since]


class Relay:
    """Decides where packets of others go next."""

    def __init__(self, config: MeshConfig, table: ForwardingTable) -> None:
        self.counts: RelayCounts = RelayCounts()
        self._me = table.me
        self._table = table
        self._taken, self._given = (
            RateLimiter(config.max_peers + 1, rate, BURST * rate) for rate in (2 * MOST_SENT, MOST_SENT)
        )
        self._spread = RateLimiter(config.max_peers + 1, SPREAD, SPREAD_BURST)
        self._spreads = LruTable[None](SPREADS)
        self._budget = WorkBudget(2 * config.max_peers, config.work.routing)
        self._sent: dict[PeerId, ResendBuffer] = {}

    def snapshot(self) -> dict[str, Any]:
        """What became of packets, and how many are kept since they may need another way."""
        return {
            **attrs.asdict(self.counts),
            "buffers": len(self._sent),
            "buffered": sum(map(len, self._sent.values())),
            "rates": len(self._taken),
            "budget": self._budget.snapshot(),
        }

    def admits(self, sender: PeerId, packet: Packet, now: float) -> bool:
        """Whether what a packet costs here is paid for.

        Raises:
          RemoteProtocolError: if this neighbour brings more of them than any should.
        """
        if not self._taken.take(sender, now):
            raise RemoteProtocolError(f"more than {2 * MOST_SENT:g} packets a second")
        if self._budget.spend(sender, self._price(packet), now) is Payment.NOW:
            return True
        self.counts.dropped_unpaid += 1
        return False

    def refund(self, sender: PeerId, packet: Packet, now: float) -> None:
        """This packet was a response that we have asked for."""
        self._budget.refund(sender, self._price(packet), now)

    def _price(self, packet: Packet) -> float:
        """What it costs to pass a packet on; or to check it, and to respond."""
        is_ours = packet.to == self._me or packet.nearest
        checks = VERIFY * (1 + packet.sealed) if is_ours and packet.key is not None else 0.0
        return 2 * FRAME + checks + len(packet.carry) / BYTES

    def may_give(self, peer: PeerId, now: float) -> bool:
        """Whether a neighbour may be given one more packet."""
        may = self._given.take(peer, now)
        self.counts.dropped_rate += not may
        return may

    def sent(self, peer: PeerId, packet: Packet, now: float) -> None:
        """Take note of what a neighbour was given.

        Not of our requests, which find other ways themselves, nor of misses, which are hints.
        """
        buffer = self._sent.get(peer)
        if buffer is not None and packet.kind != "miss" and not (packet.from_ == self._me and packet.kind in REQUESTS):
            buffer.add(packet, now)

    def link_up(self, peer: PeerId) -> None:
        """Keep what a new neighbour is given."""
        self._sent[peer] = ResendBuffer()

    def link_suspected(self, peer: PeerId, now: float) -> list[Decision]:
        """Send what this neighbour was just given another way: it may never have come to it."""
        return self._go_round(peer, now - SENT_FOR)

    def link_down(self, peer: PeerId, now: float) -> list[Decision]:
        """Send what was under way to a neighbour that is gone another way."""
        self._taken.forget(peer)
        self._spread.forget(peer)
        decisions = self._go_round(peer, now - IN_FLIGHT)
        self._sent.pop(peer, None)
        return decisions

    def unsent(self, packet: Packet, peer: PeerId) -> Decision:
        """This neighbour can't be given a packet after all."""
        return self._send_round(packet, peer)

    def spread(self, sender: PeerId, packet: Packet, path: tuple[TrailId, ...], now: float) -> list[Decision]:
        """Send a packet on that this neighbour brought: to all others, if it wants that and is the first of its kind.

        So it comes to its receiver wherever a way of peers that pass on is left. What is too large for that goes on as
        any other, and what is too much for this neighbour.
        """
        if packet.search != EVERYWHERE or packet.nearest or packet.kind not in REQUESTS or not is_small(packet):
            return [self.pass_on(packet, path)]
        name = f"{packet.from_} {packet.attempt} {packet.id}"
        if name in self._spreads:
            return []
        if not self._spread.take(sender, now):
            return [self.pass_on(packet, path)]
        self._spreads.put(name, None)
        self.counts.spread += 1
        visited = visited_by(packet, path)
        peers = [packet.to] if packet.to in self._table else self._table.ranked(packet.to, visited)
        return [self._forward(peer, packet, path, ()) for peer in peers]

    def pass_on(self, packet: Packet, path: tuple[TrailId, ...]) -> Decision:
        """Send a packet on that came through these relays, or back if there is no way on."""
        visited, is_request = visited_by(packet, path), packet.kind in REQUESTS
        ahead = None if packet.nearest else self._table.along(packet.route, packet.to, visited)
        if ahead is not None:
            # No response comes back to the peers on its route, so it need not say where it was.
            return self._forward(ahead[0], packet, path if is_request else (), ahead[1])
        if packet.kind == "miss":
            return self._drop(packet, path)
        wanders = is_request and wandering(packet)
        choices = [] if wanders else self._table.nearer(packet.to, path, visited, leaves=packet.nearest)
        if not choices and not packet.nearest:
            strayed = len(path) if wanders else self._table.strayed(packet.to, path)
            if strayed + len(packet.tried) >= min(packet.search, SEARCH if is_request else RESPONSE_SEARCH):
                return self._drop(packet, path)
            choices = self._table.by_lot(packet, visited) if wanders else self._table.ranked(packet.to, visited)
        peer = pick(choices, packet)
        if peer is None:
            return self._give_back(packet, path)
        return self._forward(peer, packet, path, packet.route if is_request else ())

    def _go_round(self, peer: PeerId, since: float) -> list[Decision]:
        """Send what this neighbour was given since then, and may have got or not, another way.

        Except what looks for the nearest to a key: with this peer left out, that might end at the wrong one.
        """
        buffer = self._sent.get(peer)
        kept = buffer.take_all(since) if buffer is not None else []
        packets = [packet for packet in kept if packet.to != peer and not packet.nearest]
        self.counts.sent_round += len(packets)
        return [self._send_round(packet, peer) for packet in packets]

    def _send_round(self, packet: Packet, lost: PeerId) -> Decision:
        if packet.from_ == self._me:
            return Originate(packet)
        own, tried = trail_id(self._me), (*packet.tried, trail_id(lost))
        if own in tried:  # it was given back
            tried = tuple(hop for hop in tried if hop != own)
            return self._give_back(structs.replace(packet, tried=tried), packet.path)
        return self.pass_on(structs.replace(packet, tried=tried), packet.path)

    def _forward(self, peer: PeerId, packet: Packet, path: tuple[TrailId, ...], route: tuple[TrailId, ...]) -> Decision:
        if len(path) + len(packet.tried) + len(route) > MAX_TRAIL:
            return self._drop(packet, path)
        self.counts.relayed += 1
        return Forward(peer, structs.replace(packet, path=path, route=route))

    def _give_back(self, packet: Packet, path: tuple[TrailId, ...]) -> Decision:
        """To the last peer on the path that is still a neighbour; one that is not is as good as a dead end."""
        tried = (*packet.tried, trail_id(self._me))
        peer = None
        while path and peer is None:
            peer = self._table.neighbour(path[-1])
            tried = tried if peer is not None else (*tried, path[-1])
            path = path[:-1]
        if peer is None and packet.kind in REQUESTS:
            peer = self._table.neighbour(trail_id(origin_of(packet)))
        if peer is None or len(path) + len(tried) > MAX_TRAIL:
            self.counts.dropped_stuck += 1
            return None
        self.counts.given_back += 1
        return Forward(peer, structs.replace(packet, path=path, tried=tried, route=()))

    def _drop(self, packet: Packet, path: tuple[TrailId, ...]) -> Decision:
        """End a packet here. The origin of a request is told that it won't arrive this way."""
        self.counts.dropped_hops += 1
        if packet.kind not in REQUESTS:
            return None
        return Originate(response_to(packet, "miss", self._me, route=tuple(reversed(path))))
