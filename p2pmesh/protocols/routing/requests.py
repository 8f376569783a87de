"""Requests: packets of ours, each sent again and again, another way each time, until its receiver responds.

How long a response is waited for follows from how long others took (RFC 6298), from this receiver or, if it is new,
from all of them; it doubles with each attempt, and grows with the bytes in flight. A response says which attempt it
answers, so a late one counts as what it is.

Where somebody waits for a direct message to arrive, that is too long: a peer in the way of the first attempt may be
dead, and the next goes another way. So these are hurried: repeated sooner, and the second time as soon as the first.
(Not so the calls of other cores: while thousands join, there is enough on the way.) They also wait for a first link,
and are not given up before their deadline where no way is found to a peer that was heard of lately: links come and go,
and rings mend. Where nobody misses the receiver, but all attempts are swallowed, some take all ways at once: peers that
hold all places round a receiver can't keep from it what a way through others is left for.

In: requests to start and cancel, responses, misses, packets given back, links and suspicions, timeouts.
Out: `Attempt` (send it to this neighbour), `GivenUp`, or nothing; of a response, the request that it ends.
State: at most `RoutingConfig.requests` requests, each with a timer; times of answers of
  `RoutingConfig.remembered_routes` peers, and as many that were heard of.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple, TypeAlias

import attrs
from attrs import define, field
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.notices import Route
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable
from p2pmesh.protocols.routing.packets import is_small, origin_of
from p2pmesh.protocols.util.latency import RoundTripTimes
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.fields import EVERYWHERE, TrailId
from p2pmesh.wire.overlay import Packet

_HURRIED_DEVIATIONS = 2
"""Mean deviations that the answer to a hurried request may be late; RFC 6298 waits for 4."""
_DOUBLINGS = 2
"""Times that the wait for a response doubles: then it stays."""
_SHORT_WAY = 64
"""Links. Where ways are no longer, answers are taken to come as soon as over a link; else as much later."""
HEARD_FOR = 60.0
"""Seconds for which a peer that was heard of is taken to be there, though nobody knows a way to it just now."""
JOINING = 30.0
"""Seconds after our first link in which we may be the one whom nobody knows a way from."""
_LONGEST_PAUSE = 4
"""Times that the pause after a miss doubles: to 5 s with the default `RoutingConfig.least_wait`."""
MOST_ATTEMPTS = 64
"""Of one packet, whatever links do meanwhile: the wire counts to 255."""
SPREADS_FROM = 3
"""The first attempt of a hurried request that goes everywhere, if the others were swallowed; then as many on, again."""
_JITTER = 0.1
"""Share by which waits vary, so that requests made together part ways."""


class ResponseTimeout(NamedTuple):
    """The timer of a request: no response has come in time."""

    packet_id: str


class Delivery(NamedTuple):
    """The purpose of a request that brings a direct message, whose id it has, to its recipient."""

    message_id: str


class Inquiry(NamedTuple):
    """The purpose of a request that asks this peer for its contact record."""

    peer: PeerId


Purpose: TypeAlias = Route | Delivery | Inquiry


@define(eq=False)
class PendingRequest:
    """A packet of ours without a response yet."""

    packet: Packet
    deadline: float
    purpose: Purpose
    """Given back with the outcome."""
    route: tuple[TrailId, ...] = ()
    """Hops to try first, where a way is known beforehand."""
    avoid: tuple[TrailId, ...] = ()
    """Peers that it must not pass: dead ends from the start."""
    hurried: bool = False
    """Somebody waits for a direct message."""
    most_misses: int | None = None
    """Misses until it is given up; None for as many as usual."""
    sent: list[float] = field(factory=list)
    """When each attempt began."""
    first_hop: PeerId | None = None
    used: dict[PeerId, None] = field(factory=dict)
    """First hops of earlier attempts."""
    misses: int = 0
    missed: set[int] = field(factory=set)
    """Attempts that ended in a miss, in time or late; copies of one may end in more."""

    @property
    def load(self) -> int:
        """Bytes that it takes time to send."""
        return 0 if is_small(self.packet) else len(self.packet.carry)


class Attempt(NamedTuple):
    """Send this packet of ours to this neighbour."""

    first_hop: PeerId
    packet: Packet


class GivenUp(NamedTuple):
    """The request for this purpose has failed."""

    purpose: Purpose
    reason: str


Decision: TypeAlias = Attempt | GivenUp | None
"""What to do about a request; None to wait."""


@define
class RequestCounts:
    """What became of packets of ours."""

    launched: int = 0
    retried: int = 0
    acked: int = 0
    answered: int = 0
    failed: int = 0
    missed: int = 0
    stuck: int = 0
    stray_responses: int = 0


class Requests:
    """All packets of ours that wait for a response."""

    def __init__(
        self, config: MeshConfig, rng: random.Random, table: ForwardingTable, timers: Timers[NamedTuple]
    ) -> None:
        self.counts: RequestCounts = RequestCounts()
        self._config = config.routing
        self._slowest_link = config.broadcast.slowest_link
        self._rng = rng
        self._table = table
        self._timers = timers
        self._times = RoundTripTimes(config.routing.remembered_routes)
        self._heard = LruTable[float](config.routing.remembered_routes)
        self._linked_at = -math.inf  # our first link, of those there are
        self._bytes = 0  # of large packets in flight
        self._requests: dict[str, PendingRequest] = {}
        self._by_call: dict[tuple[Subsystem, int], str] = {}

    def snapshot(self) -> dict[str, int]:
        """What became of requests, and how many wait for a response."""
        return {**attrs.asdict(self.counts), "in_flight": len(self._requests)}

    def of_ours(self, packet: Packet) -> Packet | None:
        """The packet of ours that this is an attempt of, with that attempt; None if it is none, or over."""
        request = self._requests.get(packet.id)
        return None if request is None else structs.replace(request.packet, attempt=packet.attempt)

    def heard(self, peer: PeerId, now: float) -> None:
        """This peer is in the mesh, or was a moment ago."""
        self._heard.put(peer, now)

    def start(self, request: PendingRequest, now: float) -> Decision:
        """Make the first attempt."""
        if len(self._requests) >= self._config.requests:
            self.counts.failed += 1
            return GivenUp(request.purpose, f"{len(self._requests)} packets are under way already: try again later")
        self._requests[request.packet.id] = request
        self._bytes += request.load
        if isinstance(request.purpose, Route):
            self._by_call[request.purpose.owner, request.purpose.call] = request.packet.id
        self.counts.launched += 1
        return self._attempt(request, now)

    def cancel(self, packet_id: str) -> None:
        """End a request, if there is one: nobody waits for it any more."""
        request = self._requests.get(packet_id)
        if request is not None:
            self._remove(request)

    def cancel_route(self, owner: Subsystem, call: int) -> None:
        """As `cancel`, by who asked."""
        self.cancel(self._by_call.get((owner, call), ""))

    def give_up_all(self, reason: str) -> list[GivenUp]:
        """End all of them."""
        return [self._give_up(request, reason) for request in list(self._requests.values())]

    def timed_out(self, packet_id: str, now: float) -> Decision:
        """No response came in time."""
        request = self._requests[packet_id]
        attempts = len(request.sent)
        swallowed = request.hurried and 2 * request.misses < attempts < MOST_ATTEMPTS  # a peer that is gone is missed
        if now < request.deadline and self._may_go_on(request, attempts < self._config.attempts or swallowed, now):
            self.counts.retried += attempts > 0
            return self._attempt(request, now)
        if not attempts:
            return self._give_up(request, self._no_link(request))
        lost = f", and nobody knew a way to {short(request.packet.to)}" if request.misses else ""
        return self._give_up(request, f"no answer to {attempts} attempts in {now - request.sent[0]:.1f} s{lost}")

    def responded(self, response: Packet, now: float) -> Purpose | None:
        """End the request that a proven response belongs to. Its purpose; None if there is none."""
        request = self._requests.get(response.id)
        if request is None or not (request.packet.nearest or response.from_ == request.packet.to):
            self.counts.stray_responses += 1
            return None
        if response.attempt < len(request.sent) and is_small(request.packet):
            self._times.sample(origin_of(response), now - request.sent[response.attempt])
        if response.kind == "answer":
            self.counts.answered += 1
        elif response.kind == "ack":
            self.counts.acked += 1
        self._remove(request)
        return request.purpose

    def missed(self, packet_id: str, attempt: int, now: float) -> Decision:
        """A peer on the way knows no way on: that may change in a moment, so once more, but not for ever."""
        request = self._requests.get(packet_id)
        if request is None or attempt >= len(request.sent) or attempt in request.missed:
            self.counts.stray_responses += 1
            return None
        request.missed.add(attempt)
        if attempt != len(request.sent) - 1:
            self.counts.stray_responses += 1
            return None
        self.counts.missed += 1
        return self._miss(request, now)

    def given_back(self, packet: Packet, now: float) -> Decision:
        """A neighbour gives a packet of ours back: it is a dead end, so another way is next."""
        request = self._requests.get(packet.id)
        if request is None or packet.attempt != len(request.sent) - 1:
            self.counts.stray_responses += 1
            return None
        return self._launch(request, packet.tried) or self._stuck(request, now)

    def link_up(self, peer: PeerId, now: float) -> list[Decision]:
        """Use a new link to a receiver at once, and the first one to anybody."""
        if len(self._table) == 1:
            self._linked_at = now
        return [
            self._retry(request, now)
            for request in list(self._requests.values())
            if (request.packet.to == peer and not request.packet.nearest and request.first_hop != peer)
            or request.first_hop is None
        ]

    def link_down(self, peer: PeerId, now: float) -> list[Decision]:
        """Repeat what went out over a link that has ended: it may be lost."""
        self.heard(peer, now)
        return [self._retry(request, now) for request in list(self._requests.values()) if request.first_hop == peer]

    def link_suspected(self, peer: PeerId) -> list[Decision]:
        """Send what went out by a neighbour that fell silent by another, in the same attempt."""
        return [
            self._launch(request, request.avoid)
            for request in self._requests.values()
            if request.first_hop == peer and (request.packet.to != peer or request.packet.nearest)
        ]

    def _retry(self, request: PendingRequest, now: float) -> Decision:
        if len(request.sent) >= self._config.attempts:
            return None
        self.counts.retried += len(request.sent) > 0
        return self._attempt(request, now)

    def _may_go_on(self, request: PendingRequest, is_fresh: bool, now: float) -> bool:
        """Whether to try again: while there was not much yet, and to a peer that should be there until the deadline."""
        if is_fresh or not request.hurried:
            return is_fresh
        heard = self._heard.get(request.packet.to)
        is_there = heard is not None and now < heard + HEARD_FOR
        return (is_there or now < self._linked_at + JOINING) and len(request.sent) < MOST_ATTEMPTS

    def _attempt(self, request: PendingRequest, now: float) -> Decision:
        if not self._table and request.hurried:
            request.first_hop = None  # `link_up` goes on
            self._timers.set(ResponseTimeout(request.packet.id), request.deadline)
            return None
        wait = self._response_time(request) * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        wait += self._bytes / self._slowest_link  # what is queued is not lost
        request.sent.append(now)
        self._timers.wait(ResponseTimeout(request.packet.id), min(now + wait, request.deadline))
        if not self._table:
            return self._give_up(request, self._no_link(request))
        return self._launch(request, request.avoid) or self._stuck(request, now)

    def _no_link(self, request: PendingRequest) -> str:
        what = "the key" if request.packet.nearest else short(request.packet.to)
        return f"no route to {what}: there is no link to anybody who could bring it"

    def _response_time(self, request: PendingRequest) -> float:
        """Seconds in which a response to the next attempt should come (RFC 6298's retransmission timeout)."""
        attempt, times = len(request.sent), self._times.of(request.packet.to)
        if times is None:
            expected = self._config.ack_timeout * max(1.0, self._table.longest_way() / _SHORT_WAY)
        elif request.hurried:
            expected = max(self._config.least_wait, times.expected(deviations=_HURRIED_DEVIATIONS))
            attempt = max(0, attempt - 1)
        else:
            expected = max(self._config.least_wait, times.expected())
        return expected * 2.0 ** min(attempt, _DOUBLINGS)

    def _launch(self, request: PendingRequest, tried: tuple[TrailId, ...]) -> Attempt | None:
        """Send it by the best first hop that was not taken yet; None if there is none."""
        packet = request.packet
        attempt = len(request.sent) - 1
        route = request.route if attempt % 2 == 0 and tried == request.avoid else ()
        ahead = None if packet.nearest else self._table.along(route, packet.to, tried)
        first = self._first_hop(request, tried) if ahead is None else ahead[0]
        if first is None:
            return None
        request.first_hop = first
        request.used[first] = None
        rest = () if ahead is None else ahead[1]
        search = EVERYWHERE if self._goes_everywhere(request, attempt) else packet.search
        return Attempt(first, structs.replace(packet, attempt=attempt, tried=tried, route=rest, search=search))

    @staticmethod
    def _goes_everywhere(request: PendingRequest, attempt: int) -> bool:
        """Whether an attempt takes all ways at once: few before it were even missed, so somebody swallows them."""
        is_late = attempt >= SPREADS_FROM and attempt % SPREADS_FROM == 0
        return is_late and request.hurried and 4 * len(request.missed) < attempt and is_small(request.packet)

    def _first_hop(self, request: PendingRequest, tried: tuple[TrailId, ...]) -> PeerId | None:
        """The best that was not taken yet.

        For a key only those on our side of it, if there are any: on the other it would end at once.
        """
        packet, table = request.packet, self._table
        nearer = table.nearer(packet.to, (), tried, leaves=True) if packet.nearest else []
        ranked = nearer or table.ranked(packet.to, tried)
        fresh = [peer for peer in ranked if peer not in request.used]
        if not fresh:
            request.used.clear()
        return next(iter(fresh or ranked), None)

    def _stuck(self, request: PendingRequest, now: float) -> GivenUp | None:
        """No neighbour is left to try."""
        self.counts.stuck += 1
        return self._miss(request, now)

    def _miss(self, request: PendingRequest, now: float) -> GivenUp | None:
        request.misses += 1
        if not self._may_go_on(request, request.misses < (request.most_misses or self._config.misses), now):
            what = "a way on" if request.packet.nearest else f"a way to {short(request.packet.to)}"
            return self._give_up(request, f"no route: {request.misses} attempts, and nobody knew {what}")
        pause = self._config.least_wait * 2 ** min(request.misses - 1, _LONGEST_PAUSE)
        self._timers.set(ResponseTimeout(request.packet.id), min(now + pause, request.deadline))
        return None

    def _give_up(self, request: PendingRequest, reason: str) -> GivenUp:
        self._remove(request)
        self.counts.failed += 1
        return GivenUp(request.purpose, reason)

    def _remove(self, request: PendingRequest) -> None:
        del self._requests[request.packet.id]
        self._bytes -= request.load
        if isinstance(request.purpose, Route):
            self._by_call.pop((request.purpose.owner, request.purpose.call), None)
        self._timers.cancel(ResponseTimeout(request.packet.id))
