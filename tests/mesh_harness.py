"""Many peers with bare topology, chord and signaling cores, one modelled signaling server, modelled links, virtual time.

Links are a model of the link keeper: an attempt makes its description after a moment, an answered offer opens on both
sides at slightly different times, a dropped link goes down on both. At every step the keeper checks the cap. Routes are
ideal: what is reached over links gets the message, and the answer comes back.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from attrs import define, field

from p2pmesh.config import MeshConfig
from p2pmesh.events import PeerConnected, PeerDisconnected, PeerTimedOut
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, ring_distance, xor_distance
from p2pmesh.protocols.chord import ChordCore
from p2pmesh.protocols.core import (
    AcceptOffer,
    Answer,
    Arrived,
    Core,
    DropLink,
    Effects,
    Emit,
    FeedSignal,
    Input,
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    LocalSignal,
    Received,
    RemotePeer,
    Reply,
    Route,
    Routed,
    SendFrame,
    SendSignaling,
    ServiceDown,
    ServiceRefused,
    ServiceUp,
    Signaled,
    Subsystem,
    Tell,
    Unrouted,
    WantLink,
    Way,
)
from p2pmesh.protocols.ring import nearness
from p2pmesh.protocols.signaling import SignalingCore
from p2pmesh.protocols.topology import TopologyCore
from p2pmesh.protocols.wiring import OWNERS
from p2pmesh.wire import signaling as wire
from p2pmesh.wire.messages import Message, Signal

SERVICE = "service"
ATTEMPT_TIMEOUT = 15.0


@define(eq=False)
class Attempt:
    remote: RemotePeer | None
    answered: bool = False


@define(eq=False)
class Node:
    net: Net
    identity: Identity
    config: MeshConfig
    topology: TopologyCore
    signaling: SignalingCore
    chord: ChordCore
    attempts: dict[PeerId, Attempt] = field(factory=dict)
    links: dict[PeerId, float] = field(factory=dict)
    closing: dict[PeerId, str] = field(factory=dict)
    alive: bool = True
    events: list[object] = field(factory=list)
    replies: list[Reply] = field(factory=list)
    opened: int = 0
    woken: float = -1.0

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def cores(self) -> dict[Subsystem, Core]:
        return {
            Subsystem.TOPOLOGY: self.topology,
            Subsystem.SIGNALING: self.signaling,
            Subsystem.CHORD: self.chord,
        }

    def feed(self, event: Input, *cores: Subsystem) -> None:
        if not self.alive:
            return
        for core in cores or tuple(self.cores):
            self.carry_out(self.cores[core].handle(event, self.net.now))
        self.net.wake(self)

    def tick(self) -> None:
        if not self.alive:
            return
        self.woken = -1.0
        for core in self.cores.values():
            if core.next_deadline() <= self.net.now:
                self.carry_out(core.expire(self.net.now))
        self.net.wake(self)

    def carry_out(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case WantLink(peer):
                    self.begin(peer, None)
                case AcceptOffer(remote, signal):
                    self.begin(remote.peer_id, remote)
                case FeedSignal(remote, signal):
                    attempt = self.attempts.get(remote.peer_id)
                    if attempt is not None and attempt.remote is None and signal.type == "answer":
                        attempt.remote = remote
                        self.net.open_link(self, remote, attempt)
                case DropLink(peer, reason):
                    self.drop(peer, reason)
                case SendSignaling(_, message):
                    if self.alive:
                        self.net.later(self.net.latency(), partial(self.net.server.on, self, message))
                case SendFrame(peers, message):
                    for peer in peers:
                        if peer in self.links:
                            self.net.frame(self, peer, message)
                case Tell(Subsystem.ROUTING, Route() as route):
                    self.net.route(self, route)
                case Tell(Subsystem.ROUTING, Answer() as answer):
                    self.net.answer(self, answer)
                case Tell(subsystem, told):
                    if subsystem in self.cores:
                        self.feed(told, subsystem)
                case Emit(event):
                    self.events.append(event)
                case Reply():
                    self.replies.append(effect)
                case ServiceRefused():
                    raise AssertionError(effect)
                case _:
                    raise AssertionError(effect)
            self.check()

    def check(self) -> None:
        taken = len(self.attempts) + len(self.links)
        assert taken <= self.config.max_peers, (self.peer_id, taken)

    def begin(self, peer: PeerId, remote: RemotePeer | None) -> None:
        assert peer not in self.links, "a second link to the same peer"
        if self.attempts.pop(peer, None) is not None:
            assert remote is not None, "a second offer to the same peer"
        attempt = self.attempts[peer] = Attempt(remote)
        kind = "offer" if remote is None else "answer"

        def describe() -> None:
            if self.attempts.get(peer) is attempt:
                self.describe(peer, kind)

        def give_up() -> None:
            if self.attempts.get(peer) is attempt:
                self.lose(peer, "no link in time")

        self.net.later(0.01, describe)
        self.net.later(ATTEMPT_TIMEOUT, give_up)

    def describe(self, peer: PeerId, kind: str) -> None:
        digits = ":".join(f"{self.net.rng.randrange(256):02X}" for _ in range(32))
        self.feed(LocalSignal(peer, Signal(type=kind, sdp=f"a=fingerprint:sha-256 {digits}\r\n")), Subsystem.SIGNALING)

    def lose(self, peer: PeerId, reason: str) -> None:
        del self.attempts[peer]
        self.feed(LinkLost(peer, reason))

    def drop(self, peer: PeerId, reason: str) -> None:
        self.attempts.pop(peer, None)
        if peer in self.links and peer not in self.closing:
            self.closing[peer] = reason
            self.net.later(0.005, lambda: self.net.cut(self, peer, reason))

    def connected(self) -> list[PeerId]:
        return list(self.links)


@define(eq=False)
class Server:
    """Tells a joiner the XOR-nearest peers and its ring neighbours, and those of the joiner; or as the original does."""

    net: Net
    nearest: int = 5
    original: bool = False
    up: bool = True
    members: dict[PeerId, Node] = field(factory=dict)

    def on(self, node: Node, message: wire.SignalingMessage) -> None:
        if not self.up or not node.alive:
            return
        match message:
            case wire.Join():
                self.join(node)
            case wire.Leave():
                self.remove(node)
            case wire.PeerSignal() | wire.ConnectionRejected() | wire.SignalRejected():
                self.relay(node, message)
            case _:
                raise AssertionError(message)

    def join(self, node: Node) -> None:
        self.members.pop(node.peer_id, None)
        others = list(self.members)
        near = sorted(others, key=lambda other: xor_distance(node.peer_id, other))[: self.nearest]
        if not self.original and others:
            near.append(min(others, key=lambda other: ring_distance(node.peer_id, other)))
            near.append(min(others, key=lambda other: ring_distance(other, node.peer_id)))
        near = list(dict.fromkeys(near))
        self.members[node.peer_id] = node
        if near or not self.original:
            self.send(node, wire.BootstrapPeers(peers=tuple(wire.KnownPeer(id=peer) for peer in near)))
        for other in others if self.original else near:
            self.send(self.members[other], wire.PeerJoined(peer_id=node.peer_id))

    def remove(self, node: Node) -> None:
        if self.members.pop(node.peer_id, None) is not None:
            for other in self.members.values():
                self.send(other, wire.PeerLeft(peer_id=node.peer_id))

    def relay(self, node: Node, message: wire.PeerSignal | wire.ConnectionRejected | wire.SignalRejected) -> None:
        target = None if message.to is None else self.members.get(message.to)
        if target is None:
            self.send(node, wire.ServiceError(message=f"Peer {message.to} not found."))
        else:
            assert message.from_ == node.peer_id
            self.send(target, message)

    def send(self, node: Node, message: wire.SignalingMessage) -> None:
        at = self.net.fifo(("server", node.peer_id), self.net.latency())

        def arrive() -> None:
            if self.up:
                node.feed(Signaled(SERVICE, message), Subsystem.SIGNALING)

        self.net.at(at, arrive)


class Net:
    def __init__(self, seed: int, *, original_server: bool = False, attempt_loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.nodes: dict[PeerId, Node] = {}
        self.server = Server(self, original=original_server)
        self.attempt_loss = attempt_loss
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._last: dict[object, float] = {}
        self._ways = 0
        self._asked: dict[str, Route] = {}

    # --- time ---

    def at(self, when: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), what))

    def later(self, delay: float, what: Callable[[], object]) -> None:
        self.at(self.now + delay, what)

    def latency(self) -> float:
        return self.rng.uniform(0.002, 0.02)

    def fifo(self, key: object, delay: float) -> float:
        self._last[key] = when = max(self._last.get(key, 0.0), self.now + delay)
        return when

    def wake(self, node: Node) -> None:
        deadline = min(core.next_deadline() for core in node.cores.values())
        if deadline < float("inf") and deadline != node.woken and node.alive:
            node.woken = deadline
            self.at(max(deadline, self.now), node.tick)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        steps = 0
        while self._queue and self._queue[0][0] <= end:
            when, _, what = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            what()
            steps += 1
            assert steps < 2_000_000, "it does not come to rest"
        self.now = end

    # --- peers ---

    def add(self, config: MeshConfig, identity: Identity | None = None) -> Node:
        identity = identity or Identity.from_seed(self.rng.randbytes(32))

        def wall(now: float) -> float:
            return 1.7e9 + now

        topology = TopologyCore(identity, config, random.Random(self.rng.getrandbits(64)), wall)
        signaling = SignalingCore(identity, config, random.Random(self.rng.getrandbits(64)), wall)
        chord = ChordCore(identity, config, random.Random(self.rng.getrandbits(64)), wall)
        node = Node(self, identity, config, topology, signaling, chord)
        self.nodes[node.peer_id] = node
        node.feed(ServiceUp(SERVICE), Subsystem.SIGNALING)
        return node

    def leave(self, node: Node) -> None:
        node.feed(Leave())
        self.run(1.0)
        assert not node.links
        assert not node.attempts
        self.kill(node)

    def kill(self, node: Node) -> None:
        """The process is gone without a word; others notice after five seconds, the server at once."""
        node.alive = False
        node.attempts.clear()
        del self.nodes[node.peer_id]
        self.server.remove(node)
        for peer in list(node.links):
            other = self.nodes.get(peer)
            if other is not None:
                self.later(5.0, partial(self.down, other, node.peer_id, "silent", 5.0))

    def set_service(self, up: bool) -> None:
        self.server.up = up
        self.server.members.clear()
        for node in list(self.nodes.values()):
            node.feed(ServiceUp(SERVICE) if up else ServiceDown(SERVICE, "cut"), Subsystem.SIGNALING)

    # --- links ---

    def open_link(self, offerer: Node, remote: RemotePeer, attempt: Attempt) -> None:
        answerer = self.nodes.get(remote.peer_id)
        if answerer is None or self.rng.random() < self.attempt_loss:
            return
        theirs = answerer.attempts.get(offerer.peer_id)
        if theirs is None or theirs.remote is None:
            return
        version = 1

        def up(node: Node, peer: PeerId, mine: Attempt, other: Node) -> None:
            if node.attempts.get(peer) is not mine or not other.alive:
                return
            del node.attempts[peer]
            node.links[peer] = self.now
            node.opened += 1
            node.check()
            node.feed(LinkUp(RemotePeer(peer, True, version)))
            self.later(0.1, partial(check, node, peer, other))

        def check(node: Node, peer: PeerId, other: Node) -> None:
            """The other side may have given up in the meantime: then the carrier closes."""
            if peer in node.links and node.peer_id not in other.links:
                self.cut(node, peer, "closed")

        self.later(self.latency(), lambda: up(offerer, remote.peer_id, attempt, answerer))
        self.later(self.latency(), lambda: up(answerer, offerer.peer_id, theirs, offerer))

    def cut(self, node: Node, peer: PeerId, reason: str) -> None:
        other = self.nodes.get(peer)
        self.down(node, peer, reason)
        if other is not None:
            at = self.fifo((node.peer_id, peer), self.latency())
            self.at(at, lambda: self.down(other, node.peer_id, "closed by the peer"))

    def down(self, node: Node, peer: PeerId, reason: str, timed_out: float | None = None) -> None:
        if node.links.pop(peer, None) is not None and (node.alive):
            node.closing.pop(peer, None)
            node.feed(LinkDown(peer, reason, timed_out))

    def frame(self, node: Node, peer: PeerId, message: Message) -> None:
        other = self.nodes.get(peer)
        if other is None:
            return
        at = self.fifo((node.peer_id, peer), self.latency())

        def arrive() -> None:
            if node.peer_id in other.links:
                owner = OWNERS[type(message)]
                if owner in other.cores:
                    other.feed(Received(node.peer_id, message), owner)

        self.at(at, arrive)

    # --- routes ---

    def route(self, node: Node, route: Route) -> None:
        there = [peer for peer in self.reached(node.peer_id) if peer != node.peer_id]
        target = min(there, key=lambda peer: nearness(peer, route.to), default=None)
        if target is None or (target != route.to and not route.nearest):
            self.later(1.0, lambda: node.feed(Unrouted(route.call, "no way"), route.owner))
            return
        other = self.nodes[target]
        self._ways += 1
        way = Way(node.peer_id, str(self._ways), (node.peer_id,))
        if route.answered:
            self._asked[way.packet_id] = route

        def arrive() -> None:
            other.feed(
                Routed(RemotePeer(node.peer_id, True, 1), route.message, way),
                OWNERS[type(route.message)] or route.owner,
            )
            if not route.answered:
                self.later(0.1, lambda: node.feed(Arrived(route.call, target, 3), route.owner))

        self.later(0.1, arrive)

    def answer(self, node: Node, answer: Answer) -> None:
        route, asker = self._asked.pop(answer.way.packet_id), self.nodes.get(answer.way.peer)
        if asker is not None:
            arrived = Arrived(route.call, node.peer_id, 3, answer.message)
            self.later(0.1, lambda: asker.feed(arrived, route.owner))

    def reached(self, peer: PeerId) -> list[PeerId]:
        found = dict.fromkeys([peer])
        queue = [peer]
        while queue:
            for other in self.nodes[queue.pop()].links:
                if other in self.nodes and other not in found:
                    found[other] = None
                    queue.append(other)
        return list(found)

    # --- what tests look at ---

    def islands(self) -> int:
        left, count = set(self.nodes), 0
        while left:
            count += 1
            reached = [left.pop()]
            while reached:
                for peer in self.nodes[reached.pop()].links:
                    if peer in left:
                        left.remove(peer)
                        reached.append(peer)
        return count

    def check_symmetric(self) -> None:
        for node in self.nodes.values():
            for peer in node.links:
                assert node.peer_id in self.nodes[peer].links

    def check_events(self) -> None:
        """Each `PeerConnected` is followed by one `PeerDisconnected` or `PeerTimedOut`, and none comes without."""
        for node in self.nodes.values():
            up: set[PeerId] = set()
            for event in node.events:
                match event:
                    case PeerConnected(peer):
                        assert peer not in up
                        up.add(peer)
                    case PeerDisconnected(peer) | PeerTimedOut(peer):
                        up.remove(peer)
                    case _:
                        pass
            assert up == set(node.links)

    def opened(self) -> int:
        return sum(node.opened for node in self.nodes.values())
