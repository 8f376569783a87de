"""N routing cores on a graph of links, in virtual time; each peer knows the neighbours of its neighbours."""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.events import DirectReceived
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    Answer,
    Arrived,
    DropLink,
    Effects,
    Emit,
    Input,
    LinkDown,
    LinkUp,
    MeshSize,
    Received,
    RemotePeer,
    Reply,
    Route,
    Routed,
    SendDirect,
    SendFrame,
    Subsystem,
    Tell,
    Unrouted,
    Vicinity,
)
from p2pmesh.protocols.routing import RoutingCore
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import KademliaCall, KademliaRpc

EPOCH = 1_700_000_000.0


@cache
def identity(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "big"))


def rpc(text: str, peer: PeerId) -> KademliaRpc:
    """A message that may travel."""
    return KademliaRpc(message=KademliaCall(type="PING", id=peer, rpc_id=text))


@attrs.define(eq=False)
class Node:
    """One peer's routing core, and what came out of it. It answers every question with the same words."""

    number: int
    identity: Identity
    core: RoutingCore
    links: dict[PeerId, None] = attrs.field(factory=dict)
    routed: list[Routed] = attrs.field(factory=list)
    outcomes: dict[int, Arrived | Unrouted] = attrs.field(factory=dict)
    replies: dict[int, Reply] = attrs.field(factory=dict)
    directs: list[DirectReceived] = attrs.field(factory=list)
    blamed: list[tuple[PeerId, str]] = attrs.field(factory=list)
    wakeup: float = math.inf
    answers: bool = True

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def packets(self) -> dict[str, int]:
        return self.core.snapshot()["packets"]  # type: ignore[no-any-return]


class RouteNet:
    """Peers numbered round the ring. `meddle(sender, receiver, message)` gives what arrives instead, None for nothing."""

    def __init__(
        self,
        size: int,
        edges: Iterable[tuple[int, int]] = (),
        *,
        seed: int = 0,
        config: MeshConfig | None = None,
        latency: float = 0.05,
        encode_frames: bool = True,
    ) -> None:
        self.now = 0.0
        self.latency = latency
        self.rng = random.Random(seed)
        self.meddle: Callable[[Node, Node, Message], Message | None] = lambda _sender, _receiver, message: message
        self.sent: list[tuple[int, int, Message]] = []
        self.keep_sent = True
        self._encode = encode_frames
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._calls = 0
        config = config or MeshConfig()
        who = sorted((identity(number) for number in range(size)), key=lambda one: one.peer_id)
        self.nodes = [
            Node(number, one, RoutingCore(one, config, random.Random(f"{seed} {number}"), lambda now: EPOCH + now))
            for number, one in enumerate(who)
        ]
        self.by_id = {node.id: node for node in self.nodes}
        for node in self.nodes:
            self.tell(node, MeshSize(size))
        for a, b in edges:
            self.link(a, b, tell=False)
        for node in self.nodes:
            self._tell_vicinity(node)

    # --- what a test does -----------------------------------------------------------------------------------------------

    def link(self, a: int, b: int, *, tell: bool = True) -> None:
        one, other = self.nodes[a], self.nodes[b]
        if other.id in one.links or a == b:
            return
        for node, peer in ((one, other), (other, one)):
            node.links[peer.id] = None
            self.tell(node, LinkUp(RemotePeer(peer.id, True, 1, peer.identity.public_key)))
        if tell:
            self._tell_vicinity(one)
            self._tell_vicinity(other)

    def cut(self, a: int, b: int) -> None:
        one, other = self.nodes[a], self.nodes[b]
        for node, peer in ((one, other), (other, one)):
            if node.links.pop(peer.id, ...) is not ...:
                self.tell(node, LinkDown(peer.id, "cut"))
                self._tell_vicinity(node)

    def kill(self, number: int) -> None:
        for peer in list(self.nodes[number].links):
            self.cut(number, self.by_id[peer].number)

    def route(self, number: int, to: PeerId, message: Message | None = None, **options: Any) -> int:
        self._calls += 1
        message = rpc("hello", self.nodes[number].id) if message is None else message
        self.tell(self.nodes[number], Route(Subsystem.KADEMLIA, self._calls, to, message, **options))
        return self._calls

    def send(self, number: int, other: int, payload: Any = "hello") -> int:
        self._calls += 1
        self.tell(self.nodes[number], SendDirect(self._calls, self.nodes[other].id, payload))
        return self._calls

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, action))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until

    def total(self, name: str) -> int:
        return sum(node.packets[name] for node in self.nodes)

    # --- the machinery --------------------------------------------------------------------------------------------------

    def tell(self, node: Node, event: Input) -> None:
        self._carry_out(node, node.core.handle(event, self.now))
        self._schedule(node)

    def _tell_vicinity(self, node: Node) -> None:
        for peer in node.links:
            self.tell(self.by_id[peer], Vicinity(node.id, tuple(node.links)))

    def _schedule(self, node: Node) -> None:
        deadline = node.core.next_deadline()
        if deadline < node.wakeup:
            node.wakeup = deadline
            self.at(max(deadline, self.now), lambda: self._wake(node, deadline))

    def _wake(self, node: Node, deadline: float) -> None:
        if node.wakeup != deadline:
            return
        node.wakeup = math.inf
        self._carry_out(node, node.core.expire(self.now))
        self._schedule(node)

    def _carry_out(self, node: Node, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case SendFrame(peers, message):
                    for peer in peers:
                        self._transmit(node, self.by_id[peer], message)
                case Tell(_, Routed() as routed):
                    node.routed.append(routed)
                    if node.answers:
                        self.tell(node, Answer(routed.way, rpc("answer", node.id)))
                case Tell(_, Arrived() | Unrouted() as outcome):
                    assert outcome.call not in node.outcomes
                    node.outcomes[outcome.call] = outcome
                case Reply(call):
                    assert call not in node.replies
                    node.replies[call] = effect
                case Emit(DirectReceived() as event):
                    node.directs.append(event)
                case DropLink(peer, reason, True):
                    node.blamed.append((peer, reason))
                    self.cut(node.number, self.by_id[peer].number)
                case _:
                    raise AssertionError(effect)

    def _transmit(self, sender: Node, receiver: Node, message: Message) -> None:
        if self.keep_sent:
            self.sent.append((sender.number, receiver.number, message))
        if receiver.id not in sender.links:
            return
        arriving = self.meddle(sender, receiver, message)
        if arriving is not None:
            self.inject(sender, receiver, arriving)

    def inject(self, sender: Node, receiver: Node, message: Message) -> None:
        """Something arrives over a link, from this side of it."""
        if self._encode:
            message = decode(encode(message))  # type: ignore[assignment]

        def arrive() -> None:
            if receiver.id in sender.links:
                self.tell(receiver, Received(sender.id, message))

        self.at(self.now + self.latency, arrive)


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
