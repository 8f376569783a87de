"""A mesh of bare cores in virtual time: a graph of links with latency and loss, one seeded heap of events."""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshError
from p2pmesh.events import DirectReceived, Event, MessageDelivered, MessageFailed, MessageReceived
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast import BroadcastCore
from p2pmesh.protocols.core import (
    Answer,
    Arrived,
    Core,
    DropLink,
    Effects,
    Emit,
    Input,
    LinkDown,
    LinkUp,
    Progress,
    Publish,
    Received,
    RemotePeer,
    Reply,
    Route,
    Routed,
    SendDirect,
    SendFrame,
    ServiceUp,
    Subsystem,
    Tell,
    Unrouted,
    Way,
)
from p2pmesh.protocols.receipts import ReceiptsCore
from p2pmesh.protocols.routing import RoutingCore
from p2pmesh.protocols.wiring import OWNERS
from p2pmesh.wire.messages import Message

EPOCH = 1_700_000_000.0

IDENTITIES = [Identity.from_seed(bytes([number]) * 32) for number in range(40)]


def remote(identity: Identity, version: int = 1) -> RemotePeer:
    return RemotePeer(identity.peer_id, identity.verified and version > 0, version, identity.public_key)


@attrs.define(eq=False)
class Node:
    """One peer's cores, and what came out of them."""

    identity: Identity
    cores: dict[Subsystem, Core]
    events: list[tuple[float, Event]] = attrs.field(factory=list)
    replies: dict[int, Reply] = attrs.field(factory=dict)
    progress: dict[str, list[Progress]] = attrs.field(factory=lambda: defaultdict(list))
    wakeup: float = math.inf

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    def of(self, *kinds: type) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kinds)]

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


class Net:
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
        self.now = 0.0
        self.rng = random.Random(seed)
        self.trace: list[tuple[Any, ...]] = []
        self.latency = latency
        self.lose = lose
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._calls = 0
        self._links: dict[tuple[PeerId, PeerId], int] = {}  # directed; the number tells incarnations apart
        self.routes: list[tuple[float, PeerId, Route]] = []
        self._open_routes: dict[str, tuple[Node, Route]] = {}
        self._last_arrival: dict[tuple[PeerId, PeerId], float] = {}
        self.config = config or MeshConfig()
        self.past: list[Node] = []
        self.nodes = [self._node(IDENTITIES[number], self.config) for number in range(size)]
        self.by_id = {node.id: node for node in self.nodes}
        for node in self.nodes:
            self.tell(node, Subsystem.BROADCAST, ServiceUp("net"))  # they live from now on
        for a, b in edges:
            self.link(a, b)

    def _node(self, identity: Identity, config: MeshConfig) -> Node:
        def own() -> random.Random:
            return random.Random(self.rng.getrandbits(64))

        def wall(now: float) -> float:
            return EPOCH + now

        cores: dict[Subsystem, Core] = {
            Subsystem.BROADCAST: BroadcastCore(identity, config, own(), wall),
            Subsystem.RECEIPTS: ReceiptsCore(identity, config, own(), wall),
            Subsystem.ROUTING: RoutingCore(identity, config, own(), wall),
        }
        return Node(identity, cores)

    # --- what a test does -----------------------------------------------------------------------------------------------

    def link(self, a: int, b: int) -> None:
        if self.is_linked(a, b):
            return
        one, other = self.nodes[a], self.nodes[b]
        self._order += 1
        self._links[one.id, other.id] = self._links[other.id, one.id] = self._order
        self.feed(one, LinkUp(remote(other.identity)))
        self.feed(other, LinkUp(remote(one.identity)))

    def cut(self, a: int, b: int, reason: str = "cut") -> None:
        self._cut(self.nodes[a].id, self.nodes[b].id, reason)

    def kill(self, number: int) -> None:
        """Its links end, and nothing that it has still under way arrives."""
        dead = self.nodes[number].id
        for one, other in [pair for pair in self._links if pair[0] == dead]:
            self._cut(one, other, "killed")

    def restart(self, number: int) -> None:
        """Its process ends, and another one with the same identity begins, which knows nothing."""
        self.kill(number)
        old = self.nodes[number]
        self.past.append(old)
        self.nodes[number] = self.by_id[old.id] = self._node(old.identity, self.config)

    def is_linked(self, a: int, b: int) -> bool:
        return (self.nodes[a].id, self.nodes[b].id) in self._links

    def is_connected(self) -> bool:
        return all(self._is_reachable(self.nodes[0].id, node.id) for node in self.nodes)

    def deliveries(self, message_id: str) -> int:
        """How many processes have delivered it to their applications."""
        return sum(any(m.message_id == message_id for m in node.received) for node in [*self.nodes, *self.past])

    def publish(self, number: int, payload: object = "hello", topic: str = "chat", **options: object) -> int:
        self._calls += 1
        event = Publish(self._calls, topic, payload, **options)  # type: ignore[arg-type]
        self.tell(self.nodes[number], Subsystem.BROADCAST, event)
        return self._calls

    def published(self, number: int, payload: object = "hello", topic: str = "chat", **options: object) -> str:
        """Publish, and give the id at once."""
        call = self.publish(number, payload, topic, **options)
        return str(self.reply(number, call).value)

    def send(self, number: int, peer: PeerId, payload: object) -> int:
        self._calls += 1
        self.tell(self.nodes[number], Subsystem.ROUTING, SendDirect(self._calls, peer, payload))  # type: ignore[arg-type]
        return self._calls

    def reply(self, number: int, call: int) -> Reply:
        return self.nodes[number].replies[call]

    def error(self, number: int, call: int) -> MeshError | None:
        return self.reply(number, call).error

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, action))

    def run(self, until: float) -> None:
        """Let time pass; every core's deadline is kept to the instant."""
        while self._heap and self._heap[0][0] <= until:
            time, _, action = heapq.heappop(self._heap)
            assert time >= self.now
            self.now = time
            action()
        self.now = until

    def snapshots(self, subsystem: Subsystem) -> list[Any]:
        return [node.cores[subsystem].snapshot() for node in self.nodes]

    # --- the machinery --------------------------------------------------------------------------------------------------

    def feed(self, node: Node, event: Input) -> None:
        for subsystem in node.cores:
            self.tell(node, subsystem, event)

    def tell(self, node: Node, subsystem: Subsystem, event: Input) -> None:
        self._carry_out(node, node.cores[subsystem].handle(event, self.now))
        self._schedule(node)

    def _schedule(self, node: Node) -> None:
        deadline = min(core.next_deadline() for core in node.cores.values())
        if deadline < node.wakeup:
            node.wakeup = deadline
            self.at(max(deadline, self.now), lambda: self._wake(node, deadline))

    def _wake(self, node: Node, deadline: float) -> None:
        if node.wakeup != deadline or self.by_id[node.id] is not node:
            return
        node.wakeup = math.inf
        for core in node.cores.values():
            if core.next_deadline() <= self.now:
                self._carry_out(node, core.expire(self.now))
        self._schedule(node)

    def _carry_out(self, node: Node, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case SendFrame(peers, message):
                    for peer in peers:
                        self._transmit(node.id, peer, message)
                case Tell(Subsystem.ROUTING, Route() as route):
                    self._route(node, route)
                case Tell(Subsystem.ROUTING, Answer(way, message)):
                    self._answer(node, way, message)
                case Tell(subsystem, event):
                    self.tell(node, subsystem, event)
                case Emit(event):
                    self.trace.append((self.now, node.id, event))
                    node.events.append((self.now, event))
                case Reply(call):
                    assert call not in node.replies
                    node.replies[call] = effect
                case Progress(message_id):
                    node.progress[message_id].append(effect)
                case DropLink(peer, reason):
                    self._cut(node.id, peer, reason)
                case _:
                    raise AssertionError(effect)

    def _transmit(self, sender: PeerId, receiver: PeerId, message: Message) -> None:
        pair = (sender, receiver)
        incarnation = self._links.get(pair)
        lost = incarnation is None or self.lose(sender, receiver, message)
        self.trace.append((self.now, sender, receiver, message, lost))
        if lost:
            return
        arrival = max(self.now + self.rng.uniform(*self.latency), self._last_arrival.get(pair, 0.0))
        self._last_arrival[pair] = arrival

        def arrive() -> None:
            owner = OWNERS[type(message)]
            if owner is not None and self._links.get(pair) == incarnation:
                self.tell(self.by_id[receiver], owner, Received(sender, message))

        self.at(arrival, arrive)

    def _route(self, node: Node, route: Route) -> None:
        """What routing makes of it: it arrives if there is a way of links now and when it gets there."""
        self.routes.append((self.now, node.id, route))
        number = len(self.routes)

        def there() -> None:
            target = self.by_id.get(route.to)
            if target is None or not self._is_reachable(node.id, route.to):
                if str(number) in self._open_routes:
                    self.at(self.now + 0.5, there)
                return
            way = Way(node.id, str(number), ())
            self.tell(target, route.owner, Routed(remote(node.identity), route.message, way))

        def over() -> None:
            if self._open_routes.pop(str(number), None) and self.by_id[node.id] is node:
                self.tell(node, route.owner, Unrouted(route.call, "nobody knows a way"))

        self._open_routes[str(number)] = node, route
        self.at(self.now + 4 * self.latency[1], there)
        self.at(self.now + route.timeout, over)

    def _answer(self, node: Node, way: Way, message: Message) -> None:
        def back() -> None:
            if not self._is_reachable(node.id, way.peer):
                return
            asker, route = self._open_routes.pop(way.packet_id, (None, None))
            if asker is not None and route is not None and self.by_id[asker.id] is asker:
                self.tell(asker, route.owner, Arrived(route.call, node.id, 4, message))

        self.at(self.now + 4 * self.latency[1], back)

    def _is_reachable(self, one: PeerId, other: PeerId) -> bool:
        found, fresh = {one}, {one}
        while fresh:
            fresh = {there for here, there in self._links if here in fresh} - found
            found |= fresh
        return other in found

    def _cut(self, one: PeerId, other: PeerId, reason: str) -> None:
        if self._links.pop((one, other), None) is None:
            return
        del self._links[other, one]
        self.feed(self.by_id[one], LinkDown(other, reason))
        self.feed(self.by_id[other], LinkDown(one, reason))


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
