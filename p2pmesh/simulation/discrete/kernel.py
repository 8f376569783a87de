"""What the parts of a bare network share: clock, events, randomness, records, and what stands between its peers.

Links, service, nodes and the call log are given the kernel, and know nothing of what is built from them
(`network.BareNetwork`, which is a kernel with peers).
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop
from typing import Any, Protocol

from p2pmesh.simulation.discrete.traffic import NAMES, Traffic
from p2pmesh.simulation.model.conditioner import Conditions, Path, luck_of
from p2pmesh.simulation.model.event_queue import Action, EventQueue
from p2pmesh.simulation.model.obstacles import Cut, Nat, let_link
from p2pmesh.simulation.model.signatures import StandInSignatures
from p2pmesh.simulation.model.trace import Mark, Trace
from p2pmesh.simulation.model.violations import TRACE_LINES, InvariantViolated, Violation, reproduction


class Peer(Protocol):
    """What the kernel sees of a peer."""

    number: int
    is_alive: bool

    @property
    def is_running(self) -> bool:
        """Whether its process lives and is not stopped."""


class Kernel:
    """Time and everything in it.

    Attributes:
      seed: of all randomness; `rng`, the generator that draws it.
      now: virtual seconds.
      events: how many were carried out.
      event_queue: those to come; `schedule` adds one, as `at` does, without a call in between.
      conditions: of links, unless `special_conditions` has others for a peer, by its number.
      service_latency: seconds to the service, one way.
      encode_frames: whether each frame goes through the codec.
      signatures: in force while time passes; to be put in force by what gives cores an input in between.
      attempts: links in the making, of all peers, by token. Their class is the links' affair.
      cuts: the partitions in force; `nats`, the address translators that are not open, by number of peer.
      traffic: counts frames; `arrived` is its list of that name, one look-up nearer.
      trace: what happened; `log` takes an event for it: its time and kind, from whom, to whom, and a detail.
      violations: what went wrong. With `strict`, the first is raised.
      plan: what a failure prints beside the seed.
      account: what the first violation printed.
    """

    __slots__ = (
        "account",
        "arrived",
        "attempts",
        "conditions",
        "cuts",
        "encode_frames",
        "event_queue",
        "events",
        "log",
        "nats",
        "now",
        "plan",
        "rng",
        "schedule",
        "seed",
        "service_latency",
        "signatures",
        "special_conditions",
        "strict",
        "trace",
        "traffic",
        "violations",
    )  # slots: an instance's dict is slower above 30 names, and every event looks some up

    def __init__(
        self,
        seed: int,
        *,
        conditions: Conditions,
        service_latency: float,
        strict: bool,
        encode_frames: bool,
        sample_sizes: bool,
        trace_kept: int,
    ) -> None:
        self.seed: int = seed
        self.conditions: Conditions = conditions
        self.service_latency: float = service_latency
        self.strict: bool = strict
        self.encode_frames: bool = encode_frames
        self.plan: object = None
        self.account: str = ""
        self.now: float = 0.0
        self.events: int = 0
        self.rng: random.Random = random.Random(seed)
        self.event_queue: EventQueue = EventQueue()
        self.schedule: Callable[[float, Action, Any, Any], None] = self.event_queue.add
        self.attempts: dict[str, Any] = {}
        self.cuts: list[Cut] = []
        self.nats: dict[int, Nat] = {}
        self.special_conditions: dict[int, Conditions] = {}
        self.violations: list[Violation] = []
        self.traffic: Traffic = Traffic(samples=sample_sizes)
        self.arrived: list[int] = self.traffic.arrived
        self.trace: Trace = Trace(NAMES, trace_kept)
        self.log: Callable[[tuple[float, float, float, float, float]], None] = self.trace.log
        self.signatures: StandInSignatures = StandInSignatures()

    # --- time ---------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.run_until(self.now + seconds)

    def run_until(self, time: float) -> None:
        """Let time pass until then; what is due at that instant happens."""
        due, trace = self.event_queue.due, self.trace
        events = 0
        with self.signatures, collector_paused():
            try:
                while (heap := due(time)) is not None:
                    while heap and heap[0][0] <= time:
                        self.now, _, action, a, b = heappop(heap)
                        action(a, b)
                        events += 1
                        if not events & 1023:
                            trace.roll()
            finally:
                self.events += events
        self.now = max(self.now, time)

    def at(self, time: float, action: Action, a: Any, b: Any = None) -> None:
        """Do something later; what is due at one instant is done in the order it was asked for."""
        self.schedule(time, action, a, b)

    def after(self, seconds: float, action: Action, a: Any, b: Any = None) -> None:
        """Do something in so many seconds."""
        self.schedule(self.now + seconds, action, a, b)

    # --- records ------------------------------------------------------------------------------------------------------

    def mark(self, kind: Mark, a: int, b: int, detail: str | float = 0) -> None:
        """Note an event in the trace."""
        number = self.trace.note(detail) if isinstance(detail, str) else detail
        self.log((self.now, kind, a, b, number))

    def violate(self, invariant: str, what: str) -> None:
        """Note that an invariant does not hold.

        Raises:
          InvariantViolated: if the network is strict.
        """
        violation = Violation(self.now, invariant, what)
        self.violations.append(violation)
        if self.strict or not self.account:
            trace = self.trace.tail(TRACE_LINES)
            self.account = "\n".join([str(violation), *reproduction(self.seed, self.plan, trace)])
        if self.strict:
            raise InvariantViolated(self.account)

    # --- between peers ------------------------------------------------------------------------------------------------

    def path(self, sender: Peer, receiver: Peer) -> Path:
        """One direction of a new link."""
        here, there = sender.number, receiver.number
        return Path(self.conditions_of(here, there), self.base(here, there), self.rng)

    def base(self, a: int, b: int) -> float:
        """Latency from one peer to another."""
        return self.conditions_of(a, b).latency.between(a, b, luck_of(self.seed, a, b))

    def conditions_of(self, a: int, b: int) -> Conditions:
        """What a link between two peers is like."""
        if not self.special_conditions:
            return self.conditions
        return self.special_conditions.get(a) or self.special_conditions.get(b) or self.conditions

    def passes(self, sender: Peer, receiver: Peer) -> bool:
        """Whether packets of one running peer come to another."""
        if not sender.is_running or not receiver.is_running:
            return False
        return not any(cut.stops(sender.number, receiver.number) for cut in self.cuts)

    def can_link(self, a: Peer, b: Peer) -> bool:
        """Whether two peers can open a link now."""
        if not (self.passes(a, b) and self.passes(b, a)):
            return False
        return let_link(self.nats.get(a.number, "open"), self.nats.get(b.number, "open"))

    def reaches_service(self, peer: Peer) -> bool:
        """Whether packets pass between a peer and the signaling service."""
        return all(cut.spares_service(peer.number) for cut in self.cuts)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cycle collector: it walks all peers again and again, and what a run makes has no cycles.

    `Kernel.run` does it by itself; around many short runs, do it once.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
