"""Errands: packets of ours, each brought to its receiver again and again, another way each time, until that answers.

How long an answer is waited for follows from how long others took (RFC 6298), from this receiver or, if it is new, from all
of them; it doubles with each attempt, and grows with the bytes that are under way. A response says which attempt it answers,
so late ones count as what they are.

Where somebody waits for a direct message to arrive, that is too long: who is in the way of the first attempt may be dead, and the
next goes another way. So these are repeated sooner, and the second time as soon as the first. (Not so the calls of other cores:
while thousands join, there is enough on the way.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from attrs import define, field
from msgspec import structs

from p2pmesh.config import MeshConfig, RoutingConfig
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable
from p2pmesh.protocols.routing.packets import is_small
from p2pmesh.protocols.util.rtt import RoundTripTimes
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import Packet

_SWINGS = 4
_SWINGS_IF_HURRIED = 2
"""Mean deviations that answers may be late; 4 is RFC 6298's."""
_DOUBLINGS = 2
"""Of the time that an answer is waited for: then it stays."""

_SHORT = 64
"""Where ways are no longer than this, answers don't take longer than over a link; else as much longer."""


class RequestDue(NamedTuple):
    """The timer of an errand."""

    packet_id: str


@define
class RequestCounts:
    """What became of packets of ours."""

    launched: int = 0
    retried: int = 0
    acked: int = 0
    answered: int = 0
    unrouted: int = 0
    missed: int = 0
    stuck: int = 0
    stray_responses: int = 0


@define(eq=False)
class PendingRequest:
    """A packet of ours under way."""

    packet: Packet
    deadline: float
    on_arrival: Callable[[Packet, int, float], None]
    """Called with the response, the hops that it took, and the time."""
    on_failure: Callable[[str, float], None]
    way: tuple[PeerId, ...] = ()
    """The hops of a way that is known beforehand."""
    avoid: tuple[PeerId, ...] = ()
    """Peers that it must not pass: dead ends from the start."""
    asker: tuple[Subsystem, int] | None = None
    sent: list[float] = field(factory=list)
    """When each attempt began."""
    first_hop: PeerId | None = None
    used: dict[PeerId, None] = field(factory=dict)
    """First hops of earlier attempts."""
    misses: int = 0
    missed: int = -1
    """The attempt that ended in a miss last; copies of it may end in others."""
    hurried: bool = False
    """Somebody waits for a direct message."""
    patience: int | None = None
    """Misses until it is given up; None for as many as usual."""

    @property
    def load(self) -> int:
        """Bytes that it takes time to send."""
        return 0 if is_small(self.packet) else len(self.packet.carry)


class _Patience:
    """How long to wait for an answer before the request is repeated another way, by who is to give it."""

    def __init__(self, config: RoutingConfig) -> None:
        self._config = config
        self.times: RoundTripTimes = RoundTripTimes(config.remembered_routes)

    def wait(self, peer: PeerId, longest_way: int, attempt: int, *, hurried: bool) -> float:
        """Seconds to wait for an answer of this peer to an attempt, the first being 0."""
        known = self.times.of(peer)
        if known is None:
            return self._config.ack_timeout * max(1.0, longest_way / _SHORT) * 2.0 ** min(attempt, _DOUBLINGS)
        doublings = min(max(0, attempt - hurried), _DOUBLINGS)
        wait = known.expected(deviations=_SWINGS_IF_HURRIED if hurried else _SWINGS)
        return max(self._config.least_wait, wait) * 2.0**doublings


class Requests:
    """All packets of ours that wait for a response."""

    def __init__(
        self,
        config: MeshConfig,
        rng: random.Random,
        table: ForwardingTable,
        timers: Timers[NamedTuple],
        post: Callable[[PeerId, Packet], None],
    ) -> None:
        self.counts: RequestCounts = RequestCounts()
        self._config = config.routing
        self._slowest_link = config.broadcast.slowest_link
        self._rng = rng
        self._table = table
        self._timers = timers
        self._post = post
        self._patience = _Patience(config.routing)
        self._bytes = 0  # under way, in large packets
        self._errands: dict[str, PendingRequest] = {}
        self._by_asker: dict[tuple[Subsystem, int], str] = {}

    def __len__(self) -> int:
        return len(self._errands)

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(self._errands.values())

    def get(self, packet_id: str) -> PendingRequest | None:
        """The errand of this packet, if it waits for a response still."""
        return self._errands.get(packet_id)

    def start(self, errand: PendingRequest, now: float) -> None:
        """Bring a packet to its receiver."""
        if len(self._errands) >= self._config.errands:
            self.counts.unrouted += 1
            errand.on_failure(f"{len(self._errands)} packets are under way already: try again later", now)
            return
        self._errands[errand.packet.id] = errand
        self._bytes += errand.load
        if errand.asker is not None:
            self._by_asker[errand.asker] = errand.packet.id
        self.counts.launched += 1
        self._attempt(errand, now)

    def cancel(self, packet_id: str) -> None:
        """Nobody waits for it any more."""
        if packet_id in self._errands:
            self._drop(packet_id)

    def cancel_for(self, asker: tuple[Subsystem, int]) -> None:
        """As `cancel`, by who asked."""
        packet_id = self._by_asker.get(asker)
        if packet_id is not None:
            self._drop(packet_id)

    def fail_all(self, reason: str, now: float) -> None:
        """End all of them."""
        while self._errands:
            self._fail(next(iter(self._errands.values())), reason, now)

    def due(self, packet_id: str, now: float) -> None:
        """No response came in time."""
        errand = self._errands[packet_id]
        attempts = len(errand.sent)
        if now >= errand.deadline or attempts >= self._config.attempts:
            self._fail(errand, f"no answer to {attempts} attempts in {now - errand.sent[0]:.1f} s", now)
            return
        self.counts.retried += 1
        self._attempt(errand, now)

    def responded(self, response: Packet, hops: int, now: float) -> bool:
        """A proven response came. Whether there is an errand that it belongs to."""
        errand = self._errands.get(response.id)
        if errand is None or not (errand.packet.nearest or response.from_ == errand.packet.to):
            self.counts.stray_responses += 1
            return False
        if response.attempt < len(errand.sent) and is_small(errand.packet):
            self._patience.times.sample(response.from_, now - errand.sent[response.attempt])
        self._drop(response.id)
        if response.kind == "answer":
            self.counts.answered += 1
        elif response.kind == "ack":
            self.counts.acked += 1
        errand.on_arrival(response, hops, now)
        return True

    def missed(self, packet_id: str, attempt: int, now: float) -> None:
        """A peer on the way knows no way on: that may change in a moment, so once more, but not for ever."""
        errand = self._errands.get(packet_id)
        if errand is None or attempt != len(errand.sent) - 1 or attempt == errand.missed:
            self.counts.stray_responses += 1
            return
        errand.missed = attempt
        self.counts.missed += 1
        self._miss(errand, now)

    def returned(self, packet: Packet, now: float) -> None:
        """A neighbour gives a packet of ours back: it is a dead end. By another way, then."""
        errand = self._errands.get(packet.id)
        if errand is None or packet.attempt != len(errand.sent) - 1:
            self.counts.stray_responses += 1
            return
        if packet.hops == 0 or not self._launch(errand, packet.tried, packet.hops - 1):
            self.counts.stuck += 1
            self._miss(errand, now)

    def link_up(self, peer: PeerId, now: float) -> None:
        """A link to it: who waits for a way to it need not wait any longer."""
        for errand in list(self._errands.values()):
            if errand.packet.to == peer and not errand.packet.nearest and errand.first_hop != peer:
                self._again(errand, now)

    def link_down(self, peer: PeerId, now: float) -> None:
        """What went out by it may be lost."""
        for errand in list(self._errands.values()):
            if errand.first_hop == peer:
                self._again(errand, now)

    def link_silent(self, peer: PeerId) -> None:
        """What went out by it goes out by another, in the same attempt."""
        for errand in self._errands.values():
            if errand.first_hop == peer and (errand.packet.to != peer or errand.packet.nearest):
                self._launch(errand, errand.avoid, self._table.hop_limit())

    def _again(self, errand: PendingRequest, now: float) -> None:
        if errand.packet.id in self._errands and len(errand.sent) < self._config.attempts:
            self.counts.retried += 1
            self._attempt(errand, now)

    def _attempt(self, errand: PendingRequest, now: float) -> None:
        attempt = len(errand.sent)
        errand.sent.append(now)
        longest = self._table.longest_way()
        wait = self._patience.wait(errand.packet.to, longest, attempt, hurried=errand.hurried)
        wait *= self._rng.uniform(0.9, 1.1)
        wait += self._bytes / self._slowest_link  # what is queued is not lost
        self._timers.set(RequestDue(errand.packet.id), min(now + wait, errand.deadline))
        if not self._table:
            self._fail(errand, "there is no link to anybody who could bring it", now)
        elif not self._launch(errand, errand.avoid, self._table.hop_limit()):
            self.counts.stuck += 1
            self._miss(errand, now)

    def _launch(self, errand: PendingRequest, tried: tuple[PeerId, ...], hops: int) -> bool:
        """Send it out by the best first hop that was not taken yet. Whether there is one."""
        packet = errand.packet
        attempt = len(errand.sent) - 1
        way = errand.way if attempt % 2 == 0 and tried == errand.avoid else ()
        ahead = None if packet.nearest else self._table.along(way, packet.to, tried)
        first = self._first_hop(errand, tried) if ahead is None else ahead[0]
        if first is None:
            return False
        errand.first_hop = first
        errand.used[first] = None
        route = () if ahead is None or first == packet.to else ahead[1:]
        self._post(first, structs.replace(packet, attempt=attempt, hops=hops, tried=tried, route=route))
        return True

    def _first_hop(self, errand: PendingRequest, tried: tuple[PeerId, ...]) -> PeerId | None:
        """The best that was not taken yet. For a key only those on our side of it: from the other it would end at once."""
        packet, table = errand.packet, self._table
        towards = table.nearer(packet.to, (), tried, leaves=True) if packet.nearest else []
        ranked = towards or table.ranked(packet.to, tried)
        fresh = [peer for peer in ranked if peer not in errand.used]
        if not fresh:
            errand.used.clear()
        return next(iter(fresh or ranked), None)

    def _miss(self, errand: PendingRequest, now: float) -> None:
        errand.misses += 1
        if errand.misses >= (errand.patience or self._config.misses):
            what = "a way on" if errand.packet.nearest else f"a way to {short(errand.packet.to)}"
            self._fail(errand, f"no route: {errand.misses} attempts, and nobody knew {what}", now)
            return
        pause = self._config.least_wait * 2 ** (errand.misses - 1)
        self._timers.set(RequestDue(errand.packet.id), min(now + pause, errand.deadline))

    def _fail(self, errand: PendingRequest, reason: str, now: float) -> None:
        self._drop(errand.packet.id)
        self.counts.unrouted += 1
        errand.on_failure(reason, now)

    def _drop(self, packet_id: str) -> None:
        errand = self._errands.pop(packet_id)
        self._bytes -= errand.load
        if errand.asker is not None:
            self._by_asker.pop(errand.asker, None)
        self._timers.cancel(RequestDue(packet_id))
