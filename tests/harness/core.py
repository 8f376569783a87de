"""A mesh of bare message cores in virtual time: a graph of links with latency and loss, from one seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshError
from p2pmesh.events import DirectReceived, MessageDelivered, MessageFailed, MessageReceived
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.broadcast import BroadcastCore
from p2pmesh.protocols.core import Core, DropLink, Effect, Emit, Notify, Progress, Reply
from p2pmesh.protocols.inputs import Publish, SendDirect, ServiceUp, Subsystem
from p2pmesh.protocols.notices import ReturnPath, Route, RoutedReceived, RouteFailed, RouteReply, RouteSucceeded
from p2pmesh.protocols.receipts.receipts import ReceiptsCore
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.wire.messages import Message
from tests.harness.linked_net import LinkedNet, LinkedNode
from tests.harness.virtual_time import remote, virtual_wall

IDENTITIES = [Identity.from_seed(bytes([number]) * 32) for number in range(40)]


@attrs.define(eq=False)
class Node(LinkedNode):
    """One peer's message cores, and how far its broadcasts have come."""

    progress: dict[str, list[Progress]] = attrs.field(factory=lambda: defaultdict(list))

    @property
    def received(self) -> list[MessageReceived]:
        return self.of(MessageReceived)

    @property
    def directs(self) -> list[DirectReceived]:
        return self.of(DirectReceived)

    def outcomes(self, message_id: str) -> list[MessageDelivered | MessageFailed]:
        return [event for event in self.of(MessageDelivered, MessageFailed) if event.message_id == message_id]

    def reached(self, message_id: str) -> int:
        return self.progress[message_id][-1].reached if self.progress[message_id] else 0


class Net(LinkedNet[Node]):
    """N peers and the links between them. `lose(sender, receiver, message)` says whether a frame is lost."""

    def __init__(
        self,
        size: int,
        edges: Iterable[tuple[int, int]] = (),
        *,
        seed: int = 0,
        config: MeshConfig | None = None,
        latency: tuple[float, float] = (0.01, 0.05),
        lose: Callable[[PeerId, PeerId, Message], bool] = lambda *_: False,
    ) -> None:
        self.rng = random.Random(seed)
        self.config = config or MeshConfig()
        super().__init__([self._node(IDENTITIES[number]) for number in range(size)])
        self.trace: list[tuple[Any, ...]] = []
        self.latency = latency
        self.lose = lose
        self.past: list[Node] = []
        self.routes: list[tuple[float, PeerId, Route]] = []
        self._open_routes: dict[str, tuple[Node, Route]] = {}
        for node in self.nodes:
            self.feed(node, ServiceUp("net"), Subsystem.BROADCAST)  # they live from now on
        for a, b in edges:
            self.link(a, b)

    def _node(self, identity: Identity) -> Node:
        def own() -> random.Random:
            return random.Random(self.rng.getrandbits(64))

        cores: dict[Subsystem, Core] = {
            Subsystem.BROADCAST: BroadcastCore(identity, self.config, own(), virtual_wall),
            Subsystem.RECEIPTS: ReceiptsCore(identity, self.config, own(), virtual_wall),
            Subsystem.ROUTING: RoutingCore(identity, self.config, own(), virtual_wall),
        }
        return Node(identity, cores)

    # --- what a test does ---------------------------------------------------------------------------------------------

    def restart(self, number: int) -> Node:
        """Its process ends, and another one with the same identity begins, which knows nothing."""
        self.kill(number)
        old = self.nodes[number]
        old.alive = False
        self.past.append(old)
        self.nodes[number] = self.by_id[old.id] = new = self._node(old.identity)
        return new

    def is_connected(self) -> bool:
        return all(self._is_reachable(self.nodes[0].id, node.id) for node in self.nodes)

    def deliveries(self, message_id: str) -> int:
        """How many processes have delivered it to their applications."""
        return sum(any(m.message_id == message_id for m in node.received) for node in [*self.nodes, *self.past])

    def publish(self, number: int, payload: object = "hello", topic: str = "chat", **options: object) -> int:
        def event(call: int) -> Publish:
            return Publish(call, topic, payload, **options)  # type: ignore[arg-type]

        return self.call(self.nodes[number], event, Subsystem.BROADCAST)

    def published(self, number: int, payload: object = "hello", topic: str = "chat", **options: object) -> str:
        """Publish, and give the id at once."""
        call = self.publish(number, payload, topic, **options)
        return str(self.reply(number, call).value)

    def send(self, number: int, peer: PeerId, payload: Any) -> int:
        return self.call(self.nodes[number], lambda call: SendDirect(call, peer, payload), Subsystem.ROUTING)

    def reply(self, number: int, call: int) -> Reply:
        return self.nodes[number].replies[call]

    def error(self, number: int, call: int) -> MeshError | None:
        return self.reply(number, call).error

    def snapshots(self, subsystem: Subsystem) -> list[Any]:
        return [node.cores[subsystem].snapshot() for node in self.nodes]

    # --- the machinery ------------------------------------------------------------------------------------------------

    def do(self, node: Node, effect: Effect) -> None:
        match effect:
            case Notify(Subsystem.ROUTING, Route() as route):
                self._route(node, route)
            case Notify(Subsystem.ROUTING, RouteReply(way, message)):
                self._answer(node, way, message)
            case Notify(subsystem, event):
                self.feed(node, event, subsystem)
            case Progress(message_id):
                node.progress[message_id].append(effect)
            case DropLink(peer, reason):
                self.part(node, self.by_id[peer], reason)
            case _:
                if isinstance(effect, Emit):
                    self.trace.append((self.now, node.id, effect.event))
                super().do(node, effect)

    def transmit(self, sender: Node, receiver: Node, message: Message) -> None:
        lost = receiver.id not in sender.links or self.lose(sender.id, receiver.id, message)
        self.trace.append((self.now, sender.id, receiver.id, message, lost))
        if not lost:
            self.deliver(sender, receiver, message, self.rng.uniform(*self.latency))

    def _route(self, node: Node, route: Route) -> None:
        """What routing makes of it: it arrives if there is a way of links now and when it gets there."""
        self.routes.append((self.now, node.id, route))
        number = len(self.routes)

        def there() -> None:
            target = self.by_id.get(route.to)
            if target is None or not self._is_reachable(node.id, route.to):
                if str(number) in self._open_routes:
                    self.later(0.5, there)
                return
            way = ReturnPath(node.id, str(number), ())
            self.feed(target, RoutedReceived(remote(node.identity), route.message, way), route.owner)

        def over() -> None:
            if self._open_routes.pop(str(number), None):
                self.feed(node, RouteFailed(route.call, "nobody knows a way"), route.owner)

        self._open_routes[str(number)] = node, route
        self.later(4 * self.latency[1], there)
        self.later(route.timeout, over)

    def _answer(self, node: Node, way: ReturnPath, message: Message) -> None:
        def back() -> None:
            if not self._is_reachable(node.id, way.peer):
                return
            asker, route = self._open_routes.pop(way.packet_id, (None, None))
            if asker is not None and route is not None:
                self.feed(asker, RouteSucceeded(route.call, node.id, message), route.owner)

        self.later(4 * self.latency[1], back)

    def _is_reachable(self, one: PeerId, other: PeerId) -> bool:
        found, fresh = {one}, {one}
        while fresh:
            fresh = {there for here in fresh for there in self.by_id[here].links} - found
            found |= fresh
        return other in found


def line(size: int) -> list[tuple[int, int]]:
    return [(number, number + 1) for number in range(size - 1)]


def clique(size: int) -> list[tuple[int, int]]:
    return [(a, b) for b in range(size) for a in range(b)]


def connected(size: int, extra: int, rng: random.Random) -> list[tuple[int, int]]:
    """A random tree and some edges more."""
    edges = {(rng.randrange(number), number): None for number in range(1, size)}
    for _ in range(extra):
        a, b = rng.randrange(size), rng.randrange(size)
        if a != b:
            edges[min(a, b), max(a, b)] = None
    return list(edges)
