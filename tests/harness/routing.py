"""N routing cores on a graph of links, in virtual time; each peer knows the neighbours of its neighbours."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.events import DirectReceived
from p2pmesh.identity import peer_id_of
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Core, DropLink, Effect, Emit, Notify
from p2pmesh.protocols.inputs import SendDirect, Subsystem
from p2pmesh.protocols.notices import (
    MeshSize,
    NeighbourLinks,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import DhtRecord, Packet, StoreValue
from tests.harness.linked_net import LinkedNet, LinkedNode
from tests.harness.virtual_time import identity, virtual_wall


def rpc(text: str, peer: PeerId) -> StoreValue:
    """A message that may travel."""
    nobody, unsigned = bytes(32), bytes(64)
    record = DhtRecord(key=peer, payload=text, timestamp=0, ttl=0, publisher_key=nobody, signature=unsigned)
    return StoreValue(record=record)


def origin(sender: PeerId, packet: Packet) -> PeerId:
    """The origin of a packet that this peer sends."""
    return sender if packet.key is None else peer_id_of(packet.key)


def counted(core: Core, path: str) -> int:
    """What the core's statistics say under this dotted path."""
    value: Any = core.snapshot()
    for key in path.split("."):
        value = value[key]
    return int(value)


@attrs.define(eq=False)
class Node(LinkedNode):
    """One peer's routing core, and what came out of it. It answers every question with the same words."""

    number: int = attrs.field(kw_only=True)
    routed: list[RoutedReceived] = attrs.field(factory=list)
    outcomes: dict[int, RouteSucceeded | RouteFailed] = attrs.field(factory=dict)
    blamed: list[tuple[PeerId, str]] = attrs.field(factory=list)
    answers: bool = True

    @property
    def core(self) -> RoutingCore:
        core = self.cores[Subsystem.ROUTING]
        assert isinstance(core, RoutingCore)
        return core

    @property
    def directs(self) -> list[DirectReceived]:
        return self.of(DirectReceived)

    def count(self, path: str) -> int:
        return counted(self.core, path)


class RouteNet(LinkedNet[Node]):
    """Peers numbered round the ring. `meddle(sender, receiver, message)` gives what arrives instead, None for nothing.

    Of some peers the config is another, or the clock is fast by so many seconds.
    """

    def __init__(
        self,
        size: int,
        edges: Iterable[tuple[int, int]] = (),
        *,
        seed: int = 0,
        config: MeshConfig | None = None,
        configs: Mapping[int, MeshConfig] | None = None,
        clocks: Mapping[int, float] | None = None,
        latency: float = 0.05,
    ) -> None:
        who = sorted((identity(number) for number in range(size)), key=lambda one: one.peer_id)
        common, own, fast = config or MeshConfig(), configs or {}, clocks or {}

        def core(number: int) -> RoutingCore:
            def wall(now: float) -> float:
                return virtual_wall(now) + fast.get(number, 0.0)

            return RoutingCore(who[number], own.get(number, common), random.Random(f"{seed} {number}"), wall)

        super().__init__([Node(who[n], {Subsystem.ROUTING: core(n)}, number=n) for n in range(size)])
        self.latency = latency
        self.meddle: Callable[[Node, Node, Message], Message | None] = lambda _sender, _receiver, message: message
        self.sent: list[tuple[int, int, Message]] = []
        for node in self.nodes:
            self.feed(node, MeshSize(size))
        for a, b in edges:
            self.link(a, b, tell=False)
        for node in self.nodes:
            self._tell_links(node)

    # --- what a test does ---------------------------------------------------------------------------------------------

    def link(self, a: int, b: int, *, tell: bool = True) -> None:
        super().link(a, b)
        if tell:
            self._tell_links(self.nodes[a], self.nodes[b])

    def route(self, number: int, to: PeerId, message: Message | None = None, **options: Any) -> int:
        node = self.nodes[number]
        message = rpc("hello", node.id) if message is None else message
        return self.call(node, lambda call: Route(Subsystem.KADEMLIA, call, to, message, **options))

    def send(self, number: int, other: int, payload: Any = "hello") -> int:
        return self.call(self.nodes[number], lambda call: SendDirect(call, self.nodes[other].id, payload))

    def total(self, path: str) -> int:
        return sum(node.count(path) for node in self.nodes)

    # --- the machinery ------------------------------------------------------------------------------------------------

    def _tell_links(self, *nodes: Node) -> None:
        for node in nodes:
            for peer in node.links:
                self.feed(self.by_id[peer], NeighbourLinks(node.id, tuple(node.links)))

    def part(self, one: Node, other: Node, reason: str) -> None:
        super().part(one, other, reason)
        self._tell_links(one, other)

    def do(self, node: Node, effect: Effect) -> None:
        match effect:
            case Notify(_, RoutedReceived() as routed):
                node.routed.append(routed)
                if node.answers:
                    self.feed(node, RouteReply(routed.way, rpc("answer", node.id)))
            case Notify(_, RouteSucceeded() | RouteFailed() as outcome):
                assert outcome.call not in node.outcomes
                node.outcomes[outcome.call] = outcome
            case DropLink(peer, reason, True):
                node.blamed.append((peer, reason))
                self.part(node, self.by_id[peer], reason)
            case Emit(event) if not isinstance(event, DirectReceived):
                raise AssertionError(effect)
            case _:
                super().do(node, effect)

    def transmit(self, sender: Node, receiver: Node, message: Message) -> None:
        self.sent.append((sender.number, receiver.number, message))
        arriving = self.meddle(sender, receiver, message) if receiver.id in sender.links else None
        if arriving is not None:
            self.inject(sender, receiver, arriving)

    def inject(self, sender: Node, receiver: Node, message: Message) -> None:
        """Something arrives over a link, from this side of it."""
        self.deliver(sender, receiver, decode(encode(message)), self.latency)  # type: ignore[arg-type]


def ring(size: int) -> list[tuple[int, int]]:
    return [(number, (number + 1) % size) for number in range(size)]


def small_world(size: int, links: int, seed: int = 0) -> list[tuple[int, int]]:
    """A ring, and long links by the harmonic law, so that each peer has about so many links."""
    rng = random.Random(seed)
    edges = dict.fromkeys(ring(size))
    degree: defaultdict[int, int] = defaultdict(lambda: 2)
    for number in rng.sample(range(size), size):
        for _ in range(20 * links):
            if degree[number] >= links:
                break
            other = (number + rng.choice((-1, 1)) * int(math.exp(rng.random() * math.log(size / 2)))) % size
            taken = (number, other) in edges or (other, number) in edges or number == other
            if not taken and degree[other] < links:
                edges[number, other] = None
                degree[number] += 1
                degree[other] += 1
    return list(edges)
