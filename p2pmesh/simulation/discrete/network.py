"""A network of bare peers: all their cores, one queue of events, virtual time, no Trio. Built for 10,000 peers.

    net = BareNetwork(seed=7, config=MeshConfig(max_peers=5))
    for _ in range(20):
        net.add()
        net.run(0.1)
    net.run(30)
    hello = net.publish(net.nodes[0], "hello")
    net.run(5)
    assert hello.count == 19

Each peer is composed as the runtime composes it, from the same wiring table; links and the signaling service are
modelled (`links`, `service`), and so are the faults that the methods of `BareNetwork` make. A run is a function of its
seed and of what its caller does: `trace.digest()` is the same in every process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from p2pmesh.config import MeshConfig
from p2pmesh.events import DirectReceived, Event, MessageDelivered, MessageFailed, MessageReceived, Payload, TransportUp
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Progress, Reply, WallClock
from p2pmesh.protocols.inputs import DhtFindNode, DhtGet, DhtPut, Publish
from p2pmesh.server.config import ServerConfig
from p2pmesh.simulation.discrete.call_log import Call, CallLog, Sending
from p2pmesh.simulation.discrete.delivery_log import Broadcast, DeliveryLog
from p2pmesh.simulation.discrete.kernel import Kernel
from p2pmesh.simulation.discrete.links import End
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.discrete.service import BareService
from p2pmesh.simulation.faults.adversary import EVERY, Adversary
from p2pmesh.simulation.faults.hostile_peer import Plot
from p2pmesh.simulation.model.conditioner import Conditions
from p2pmesh.simulation.model.event_queue import EPOCH
from p2pmesh.simulation.model.obstacles import Cut, Nat, without
from p2pmesh.simulation.model.trace import Mark
from p2pmesh.simulation.model.violations import InvariantViolated, Violation

MOST_PEERS: Final = 1_000_000
"""That the service takes: simulations should not end at the limits of a real server's memory."""

Listener: TypeAlias = Callable[[BareNode, Event], None]


class BareNetwork(Kernel):
    """A simulated network, and all that is in it. Clock, randomness, records and obstacles are those of its `Kernel`.

    Attributes:
      config: of peers, where `add` names no other.
      nodes: every peer that ever was, by number.
      service: the signaling service.
      delivery_log: what became of broadcasts.
      call_log: what became of direct messages and other calls.
      plot: what hostile peers know of each other and of all.
      listeners: called with each event that a peer emits to its application.
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
        sample_sizes: bool = False,
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
          encode_frames: put each frame through the codec, as bytes, as a real link does. Slower; should change nothing.
          sample_sizes: measure some messages of each kind and let them stand for all, in counts of bytes. Faster.
          trace_kept: events of the trace that can be read afterwards, at least.
        """
        super().__init__(
            seed,
            conditions=conditions or Conditions(),
            service_latency=service_latency,
            strict=strict,
            encode_frames=encode_frames,
            sample_sizes=sample_sizes,
            trace_kept=trace_kept,
        )
        self.config: MeshConfig = config or MeshConfig()
        self.nodes: list[BareNode] = []
        self.listeners: list[Listener] = []
        self.delivery_log: DeliveryLog = DeliveryLog()
        self.call_log: CallLog = CallLog(self)
        self.plot: Plot = Plot()
        self._identities = random.Random(f"identities {seed}")
        server = server or ServerConfig(max_clients=MOST_PEERS, clients_per_room=MOST_PEERS)
        rng = random.Random(self.rng.getrandbits(64))
        self.service: BareService = BareService(self, server, rng, lambda now: EPOCH + now)

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
        """Start a peer. It joins by way of the service, unless its caller sees to that (`joins=False`)."""
        identity = identity or Identity.from_seed(self._identities.randbytes(32))
        number = len(self.nodes)
        rng, wall = random.Random(self.rng.getrandbits(64)), _wall_clock(clock_offset)
        node = BareNode(self, self.service, self, number, identity, config or self.config, wall, rng)
        self.nodes.append(node)
        self.plot.everybody.append(node.peer_id)
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
        call = self.call_log.next_number()
        lifetime = node.config.broadcast.ttl if ttl is None else ttl
        broadcast = Broadcast(node.number, self.now, self.now + lifetime)
        self.delivery_log.called(call, broadcast)
        self.after(0.0, self._publish, node, Publish(call, topic, payload, ttl))
        return broadcast

    def send(self, node: BareNode, to: PeerId, payload: Payload = "") -> Sending:
        """Let a peer's application send a direct message, now; without a payload, one of its own."""
        return self.call_log.send(node, to, f"message {len(self.call_log.sendings)}" if payload == "" else payload)

    def put(self, node: BareNode, key: str, value: Payload, *, ttl: float | None = None) -> Call:
        """Let a peer's application put a value into the DHT, now."""
        return self.call_log.make(node, lambda call: DhtPut(call, key, value, ttl))

    def get(self, node: BareNode, key: str, *, publisher: PeerId | None = None) -> Call:
        """Let a peer's application look for a value in the DHT, now."""
        return self.call_log.make(node, lambda call: DhtGet(call, key, publisher))

    def find_node(self, node: BareNode, target: PeerId) -> Call:
        """Let a peer's application look for the peers nearest to an id, now."""
        return self.call_log.make(node, lambda call: DhtFindNode(call, target))

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
        node.stop(reason)

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
        """Let a frozen peer go on."""
        if node.is_alive and node.is_frozen:
            self.mark(Mark.FAULT, node.number, -1, "thaw")
            node.thaw()
            self.refresh()

    def cut(self, cut: Cut) -> None:
        """Put a partition in force, besides those that are."""
        self.mark(Mark.FAULT, -1, -1, "cut")
        self.cuts.append(cut)
        self.refresh()

    def heal(self, cut: Cut | None = None) -> None:
        """End a partition, or all of them."""
        self.mark(Mark.FAULT, -1, -1, "heal")
        self.cuts[:] = without(self.cuts, cut)
        self.refresh()

    def turn_hostile(self, node: BareNode, adversary: Adversary) -> None:
        """Let a peer work against the others from now on."""
        self.mark(Mark.FAULT, node.number, -1, adversary.value)
        node.hostile, node.plot = adversary, self.plot
        self.plot.allies.append(node.peer_id)
        self.after(self.rng.random() * EVERY, self._act, node)

    def condition(self, nodes: Iterable[BareNode], conditions: Conditions | None) -> None:
        """Give the links of these peers conditions of their own, or with None those of all others again."""
        for node in nodes:
            if conditions is None:
                self.special_conditions.pop(node.number, None)
            else:
                self.special_conditions[node.number] = conditions
            for end in node.links.ends.values():
                for side in (end, end.far):
                    here, there = side.owner.number, side.far.owner.number
                    side.path.change(self.conditions_of(here, there), self.base(here, there))

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

    # --- applications: what nodes report ------------------------------------------------------------------------------

    def emitted(self, node: BareNode, event: Event) -> None:
        """An event goes to a peer's application."""
        match event:
            case MessageReceived():
                self.mark(Mark.DELIVER, node.number, -1, event.hops)
                self.delivery_log.delivered(self.now, node.number, node.joined_at, event)
            case MessageDelivered() | MessageFailed():
                self.mark(Mark.SETTLE, node.number, -1, event.reached)
                self.delivery_log.settled(event)
            case DirectReceived():
                self.call_log.received(node, event)
            case TransportUp():
                node.joined_at = min(node.joined_at, self.now)
            case _:
                pass
        for listener in self.listeners:
            listener(node, event)

    def progressed(self, progress: Progress) -> None:
        """The origin of a broadcast learns how many peers have it."""
        self.delivery_log.progress(progress)

    def replied(self, reply: Reply) -> None:
        """A call of a peer's application returns."""
        if not self.call_log.replied(reply):
            self.delivery_log.replied(reply)

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


__all__ = ["EPOCH", "BareNetwork", "Cut", "InvariantViolated", "Listener", "Violation"]
