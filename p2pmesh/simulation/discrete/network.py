"""A network of bare peers: all the cores of each, one heap of events, virtual time, and no Trio. Built for 10,000 peers.

    net = BareNetwork(seed=7, config=MeshConfig(max_peers=5))
    for _ in range(20):
        net.add()
        net.run(0.1)
    net.run(30)
    hello = net.publish(net.nodes[0], "hello")
    net.run(5)
    assert hello.count == 19

Each peer is composed as the runtime composes it, from the same wiring table; links and the signaling service are modelled
(`bare_links`, `bare_service`), and so are the faults that the methods of `BareNetwork` make. A run is a function of its seed
and of what its caller does: `trace.digest()` is the same in every process.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from heapq import heappop
from typing import Any, Final, TypeAlias

from attrs import frozen

from p2pmesh.config import MeshConfig
from p2pmesh.events import Event, Payload
from p2pmesh.identity import Identity, SignatureMemo
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Reply
from p2pmesh.protocols.inputs import DhtFindNode, DhtGet, DhtPut, Publish
from p2pmesh.server.config import ServerConfig
from p2pmesh.simulation.discrete.call_log import Call, CallLog, Sending
from p2pmesh.simulation.discrete.delivery_log import Broadcast, DeliveryLog
from p2pmesh.simulation.discrete.links import Attempt, End
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.discrete.service import BareService
from p2pmesh.simulation.discrete.traffic import NAMES, Traffic
from p2pmesh.simulation.faults.adversary import EVERY, Adversary
from p2pmesh.simulation.model.conditioner import Conditions, Path, luck_of
from p2pmesh.simulation.model.event_queue import Action, EventQueue
from p2pmesh.simulation.model.obstacles import Cut, Nat, let_link, without
from p2pmesh.simulation.model.trace import Mark, Trace

EPOCH: Final = 1_700_000_000.0
"""Wall time at the start of every simulation, in seconds since 1970."""
MOST_PEERS: Final = 1_000_000
"""That the service takes: simulations should not end at the limits of a real server's memory."""
TRACE_LINES: Final = 60
"""Of the trace, in a failure's message."""

Listener: TypeAlias = Callable[[BareNode, Event], None]


class InvariantViolated(AssertionError):
    """Something happened in a simulation that must not. The message says what it takes to see it again."""


@frozen
class Violation:
    """Which invariant, when, and how."""

    time: float
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.time:.3f} s: {self.what}"


class BareNetwork:
    """A simulated network, and all that is in it.

    Attributes:
      now: virtual seconds.
      nodes: every peer that ever was, by number.
      service: the signaling service.
      ledger: the books on broadcasts.
      calls: the books on direct messages and other calls.
      traffic: the books on frames.
      trace: what happened.
      listeners: called with each event that a peer emits to its application.
      violations: what went wrong. With `strict`, the first is raised.
      events: how many events were carried out.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        config: MeshConfig | None = None,
        conditions: Conditions | None = None,
        server: ServerConfig | None = None,
        service_latency: float = 0.02,
        strict: bool = True,
        encode_frames: bool = False,
        trace_kept: int = 8192,
    ) -> None:
        """Make a network without peers.

        Args:
          seed: of all randomness.
          config: of peers, where `add` names no other.
          conditions: of links.
          server: limits of the signaling service; by default a real server's, without bounds on its clients.
          service_latency: seconds to the service, one way.
          strict: raise the first violation; else note all of them.
          encode_frames: put each frame through the codec, as bytes, as a real link does. Slower, and should change nothing.
          trace_kept: events of the trace that can be read afterwards, at least.
        """
        self.seed = seed
        self.config: MeshConfig = config or MeshConfig()
        self.conditions: Conditions = conditions or Conditions()
        self.service_latency = service_latency
        self.strict = strict
        self.plan: object = None
        """What a failure prints beside the seed."""
        self.account: str = ""
        """What the first violation printed."""
        self.now: float = 0.0
        self.events: int = 0
        self.rng: random.Random = random.Random(seed)
        self.nodes: list[BareNode] = []
        self.calendar: EventQueue = EventQueue()
        self.schedule: Callable[[float, Action, Any, Any], None] = self.calendar.add
        self.queue: deque[tuple[int, Any]] = deque()
        self.attempts: dict[str, Attempt] = {}
        self.cuts: list[Cut] = []
        self.nats: dict[int, Nat] = {}
        self.special: dict[int, Conditions] = {}
        self.listeners: list[Listener] = []
        self.violations: list[Violation] = []
        self.traffic: Traffic = Traffic()
        self.arrived: list[int] = self.traffic.arrived
        self.ledger: DeliveryLog = DeliveryLog()
        self.trace: Trace = Trace(NAMES, trace_kept)
        self.log: Callable[[tuple[float, float, float, float, float]], None] = self.trace.log
        """An event for the trace: its time and kind, from whom, to whom, and a detail."""
        self.encode_frames = encode_frames
        self._identities = random.Random(f"identities {seed}")
        self._memo = SignatureMemo()
        self.calls: CallLog = CallLog(self)
        server = server or ServerConfig(max_clients=MOST_PEERS, clients_per_room=MOST_PEERS)
        self.service: BareService = BareService(
            self, server, self.seeded(self.rng.getrandbits(64)), lambda now: EPOCH + now
        )

    # --- what a test does ---------------------------------------------------------------------------------------------

    def add(
        self,
        *,
        identity: Identity | None = None,
        config: MeshConfig | None = None,
        clock_offset: float = 0.0,
        nat: Nat = "open",
        hostile: Adversary | None = None,
        joins: bool = True,
    ) -> BareNode:
        """Start a peer; it joins by way of the service, unless somebody else sees to that."""
        identity = identity or Identity.from_seed(self._identities.randbytes(32))
        number = len(self.nodes)
        seed = self.rng.getrandbits(64)
        node = BareNode(self, number, identity, config or self.config, _wall_clock(clock_offset), seed)
        self.nodes.append(node)
        if nat != "open":
            self.nats[number] = nat
        self.mark(Mark.JOIN, number, -1)
        if joins:
            self.service.dial(node)
        if hostile is not None:
            self.turn_hostile(node, hostile)
        return node

    def publish(
        self, node: BareNode, payload: Payload = "", *, topic: str = "sim", ttl: float | None = None
    ) -> Broadcast:
        """Let a peer's application broadcast, now."""
        call = self.calls.next_number()
        lives = node.config.broadcast.ttl if ttl is None else ttl
        broadcast = Broadcast(node.number, self.now, self.now + lives)
        self.ledger.called(call, broadcast)
        self.after(0.0, self._publish, node, Publish(call, topic, payload, ttl))
        return broadcast

    def send(self, node: BareNode, to: PeerId, payload: Payload = "") -> Sending:
        """Let a peer's application send a direct message, now; without a payload, one of its own."""
        return self.calls.send(node, to, f"message {len(self.calls.sendings)}" if payload == "" else payload)

    def put(self, node: BareNode, key: str, value: Payload, *, ttl: float | None = None) -> Call:
        """Let a peer's application put a value into the DHT, now."""
        return self.calls.make(node, lambda call: DhtPut(call, key, value, ttl))

    def get(self, node: BareNode, key: str, *, publisher: PeerId | None = None) -> Call:
        """Let a peer's application look for a value in the DHT, now."""
        return self.calls.make(node, lambda call: DhtGet(call, key, publisher))

    def find_node(self, node: BareNode, target: PeerId) -> Call:
        """Let a peer's application look for the peers nearest to an id, now."""
        return self.calls.make(node, lambda call: DhtFindNode(call, target))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.run_until(self.now + seconds)

    def run_until(self, time: float) -> None:
        """Let time pass until then; what is due at that instant happens."""
        due, trace = self.calendar.due, self.trace
        events = 0
        with self._memo, collector_paused():
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

    def close(self) -> None:
        """Let every peer leave, and wait until the last process has ended."""
        for node in self.living():
            if node.is_frozen:
                self.thaw(node)
            node.leave()
        leaves = max((node.config.leave_timeout for node in self.nodes), default=0.0)
        self.run(leaves + 10 * self.service_latency)

    # --- faults -------------------------------------------------------------------------------------------------------

    def stop(self, node: BareNode, reason: str = "crashed") -> None:
        """End a peer's process. Its kernel closes the connection to the service; its neighbours have to find out."""
        if not node.is_alive:
            return
        self.mark(Mark.STOP, node.number, -1, reason)
        node.is_alive = False
        node.until = self.now
        node.links.vanish()
        self.service.vanish(node)

    def restart(self, node: BareNode, *, fresh: bool = False) -> BareNode:
        """End a peer's process, and start another with the same identity, or a `fresh` one."""
        self.stop(node)
        return self.add(identity=None if fresh else node.identity, config=node.config, hostile=node.hostile)

    def freeze(self, node: BareNode) -> None:
        """Stop a peer's process as a debugger does, until `thaw`."""
        if node.is_running:
            self.mark(Mark.FAULT, node.number, -1, "freeze")
            node.freeze()
            self.refresh()

    def thaw(self, node: BareNode) -> None:
        """Let it go on."""
        if node.is_alive and node.is_frozen:
            self.mark(Mark.FAULT, node.number, -1, "thaw")
            node.thaw()
            self.refresh()

    def cut(self, cut: Cut) -> None:
        """Part the network."""
        self.mark(Mark.FAULT, -1, -1, "cut")
        self.cuts.append(cut)
        self.refresh()

    def heal(self, cut: Cut | None = None) -> None:
        """End a partition, or all of them."""
        self.mark(Mark.FAULT, -1, -1, "heal")
        self.cuts = without(self.cuts, cut)
        self.refresh()

    def turn_hostile(self, node: BareNode, hostility: Adversary) -> None:
        """From now on this peer works against the others."""
        self.mark(Mark.FAULT, node.number, -1, hostility.value)
        node.hostile = hostility
        self.after(self.rng.random() * EVERY, self._act, node)

    def condition(self, nodes: Iterable[BareNode], conditions: Conditions | None) -> None:
        """Give the links of these peers conditions of their own, or with None those of all others again."""
        for node in nodes:
            if conditions is None:
                self.special.pop(node.number, None)
            else:
                self.special[node.number] = conditions
            for end in node.links.ends.values():
                for side in (end, end.far):
                    here, there = side.owner.number, side.far.owner.number
                    side.path.change(self._conditions_of(here, there), self.base(here, there))

    def break_link(self, end: End) -> None:
        """Break a link; both sides notice at once."""
        end.owner.links.break_link(end, "the connection broke")

    # --- what is there ------------------------------------------------------------------------------------------------

    def living(self) -> list[BareNode]:
        """Peers whose process has not ended, in the order in which they came."""
        return [node for node in self.nodes if node.is_alive]

    def edges(self) -> Iterator[tuple[int, int]]:
        """The open links, each once, as numbers of peers, the smaller first."""
        for node in self.living():
            for end in node.links.ends.values():
                if node.number < end.far.owner.number and not end.far.gone:
                    yield node.number, end.far.owner.number

    def ends(self) -> int:
        """Open ends of links."""
        return sum(len(node.links.ends) for node in self.nodes)

    def violate(self, invariant: str, what: str) -> None:
        """Something is wrong.

        Raises:
          InvariantViolated: if the network is strict.
        """
        violation = Violation(self.now, invariant, what)
        self.violations.append(violation)
        if self.strict or not self.account:
            self.account = self.account_of(violation)
        if self.strict:
            raise InvariantViolated(self.account)

    def account_of(self, violation: Violation) -> str:
        """What it takes to see a violation again: the seed, the plan, and the end of the trace."""
        plan = [] if self.plan is None else ["plan:", str(self.plan)]
        return "\n".join([str(violation), f"seed: {self.seed}", *plan, "trace:", *self.trace.tail(TRACE_LINES)])

    # --- for the parts of the network ---------------------------------------------------------------------------------

    def at(self, time: float, action: Action, a: Any, b: Any = None) -> None:
        """Do something later; what is due at one instant is done in the order it was asked for."""
        self.schedule(time, action, a, b)

    def after(self, seconds: float, action: Action, a: Any, b: Any = None) -> None:
        """Do something in so many seconds."""
        self.schedule(self.now + seconds, action, a, b)

    def replied(self, node: BareNode, reply: Reply) -> None:
        """A call of a peer's application returns."""
        del node
        if not self.calls.replied(reply):
            self.ledger.replied(reply)

    def mark(self, kind: Mark, a: int, b: int, detail: str | float = 0) -> None:
        """Note an event in the trace."""
        number = self.trace.note(detail) if isinstance(detail, str) else detail
        self.log((self.now, kind, a, b, number))

    def seeded(self, seed: int) -> random.Random:
        return random.Random(seed)

    def path(self, sender: BareNode, receiver: BareNode) -> Path:
        """One direction of a new link."""
        here, there = sender.number, receiver.number
        return Path(self._conditions_of(here, there), self.base(here, there), self.rng)

    def base(self, a: int, b: int) -> float:
        """Latency from one peer to another."""
        return self._conditions_of(a, b).latency.between(a, b, luck_of(self.seed, a, b))

    def passes(self, sender: BareNode, receiver: BareNode) -> bool:
        """Whether packets of one running peer come to another."""
        if not sender.is_running or not receiver.is_running:
            return False
        return not any(cut.stops(sender.number, receiver.number) for cut in self.cuts)

    def can_link(self, a: BareNode, b: BareNode) -> bool:
        """Whether two peers can open a link now."""
        if not (self.passes(a, b) and self.passes(b, a)):
            return False
        return let_link(self.nats.get(a.number, "open"), self.nats.get(b.number, "open"))

    def reaches_service(self, node: BareNode) -> bool:
        """Whether packets pass between a peer and the signaling service."""
        return all(cut.spares_service(node.number) for cut in self.cuts)

    def refresh(self) -> None:
        """The network has changed: see what passes now."""
        for node in self.nodes:
            if not node.is_running:
                continue
            for end in list(node.links.ends.values()):
                if not end.gone:
                    node.links.refresh(end)
            if node.line is not None:
                self.service.refresh(node.line)

    def _conditions_of(self, a: int, b: int) -> Conditions:
        if not self.special:
            return self.conditions
        return self.special.get(a) or self.special.get(b) or self.conditions

    def _publish(self, node: BareNode, call: Publish) -> None:
        if node.is_running and not node.is_leaving:
            self.mark(Mark.PUBLISH, node.number, -1)
            node.report(call)

    def _act(self, node: BareNode, _: object) -> None:
        if not node.is_alive or node.hostile is None:
            return
        if node.is_running:
            node.hostile.act(node)
        self.after(EVERY, self._act, node)


def _wall_clock(offset: float) -> WallClock:
    return lambda now: EPOCH + offset + now


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within this block the cycle collector rests: it walks all peers again and again, and what a run makes has no cycles.

    `BareNetwork.run` does it by itself; around many short runs, do it once.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


__all__ = ["BareNetwork", "Cut", "InvariantViolated", "Listener", "Violation"]
