"""Many peers with bare overlay and signaling cores, one modelled signaling server, modelled links, virtual time.

Links are a model of the link keeper: an attempt makes its description after a moment, an answered offer opens on both
sides at slightly different times, a dropped link goes down on both. At every step the keeper checks the cap. Routes are
ideal: what is reached over links gets the message, and the answer comes back.
"""

from __future__ import annotations

import random
from functools import partial

from attrs import define, field

from p2pmesh.config import MeshConfig
from p2pmesh.events import PeerConnected, PeerDisconnected, PeerTimedOut
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Core
from p2pmesh.protocols.effects import (
    AcceptOffer,
    DropLink,
    Effect,
    FeedSignal,
    Notify,
    SendFrame,
    SendSignaling,
    WantLink,
)
from p2pmesh.protocols.inputs import (
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    LocalSignal,
    Received,
    RemotePeer,
    ServiceDown,
    ServiceUp,
    Subsystem,
)
from p2pmesh.protocols.notices import Input, ReturnPath, Route, RoutedReceived, RouteFailed, RouteReply, RouteSucceeded
from p2pmesh.protocols.overlay.overlay import OverlayCore
from p2pmesh.protocols.signaling.signaling import SignalingCore
from p2pmesh.protocols.util.ring_geometry import nearness
from p2pmesh.protocols.wiring import OWNERS
from p2pmesh.wire.messages import Message, Signal
from tests.harness import virtual_time
from tests.harness.modelled_server import SERVICE, ModelledServer
from tests.harness.virtual_time import virtual_wall

ATTEMPT_TIMEOUT = 15.0


@define(eq=False)
class Attempt:
    remote: RemotePeer | None


@define(eq=False)
class Node(virtual_time.Node):
    """A peer and its model of a link keeper."""

    net: Net = field(kw_only=True)
    config: MeshConfig = field(kw_only=True)
    attempts: dict[PeerId, Attempt] = field(factory=dict)
    links: dict[PeerId, float] = field(factory=dict)
    closing: dict[PeerId, str] = field(factory=dict)
    opened: int = 0

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def overlay(self) -> OverlayCore:
        core = self.cores[Subsystem.OVERLAY]
        assert isinstance(core, OverlayCore)
        return core

    def feed(self, event: Input, *owners: Subsystem) -> None:
        self.net.feed(self, event, *owners)

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


class Net(virtual_time.Net[Node]):
    def __init__(self, seed: int, *, original_server: bool = False, attempt_loss: float = 0.0) -> None:
        super().__init__(now=100.0)
        self.rng = random.Random(seed)
        self.nodes: dict[PeerId, Node] = {}
        self.server = ModelledServer(self, original=original_server)
        self.attempt_loss = attempt_loss
        self._ways = 0
        self._asked: dict[str, Route] = {}

    def latency(self) -> float:
        return self.rng.uniform(0.002, 0.02)

    def do(self, node: Node, effect: Effect) -> None:
        match effect:
            case WantLink(peer):
                node.begin(peer, None)
            case AcceptOffer(remote):
                node.begin(remote.peer_id, remote)
            case FeedSignal(remote, signal):
                attempt = node.attempts.get(remote.peer_id)
                if attempt is not None and attempt.remote is None and signal.type == "answer":
                    attempt.remote = remote
                    self.open_link(node, remote, attempt)
            case DropLink(peer, reason):
                node.drop(peer, reason)
            case SendSignaling(_, message):
                if node.alive:
                    self.later(self.latency(), partial(self.server.on, node, message))
            case SendFrame(peers, message):
                for peer in peers:
                    if peer in node.links:
                        self.frame(node, peer, message)
            case Notify(Subsystem.ROUTING, Route() as route):
                self.route(node, route)
            case Notify(Subsystem.ROUTING, RouteReply() as answer):
                self.answer(node, answer)
            case Notify(subsystem, told):
                if subsystem in node.cores:
                    self.feed(node, told, subsystem)
            case _:
                super().do(node, effect)
        node.check()

    # --- peers ---

    def add(self, config: MeshConfig, identity: Identity | None = None) -> Node:
        identity = identity or Identity.from_seed(self.rng.randbytes(32))

        def own() -> random.Random:
            return random.Random(self.rng.getrandbits(64))

        cores: dict[Subsystem, Core] = {
            Subsystem.OVERLAY: OverlayCore(identity, config, own(), virtual_wall),
            Subsystem.SIGNALING: SignalingCore(identity, config, own(), virtual_wall),
        }
        node = Node(identity, cores, net=self, config=config)
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

        def up(node: Node, peer: PeerId, mine: Attempt, other: Node) -> None:
            if node.attempts.get(peer) is not mine or not other.alive:
                return
            del node.attempts[peer]
            node.links[peer] = self.now
            node.opened += 1
            node.check()
            node.feed(LinkUp(RemotePeer(peer, True, 1)))
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
            closed = partial(self.down, other, node.peer_id, "closed by the peer")
            self.in_order((node.peer_id, peer), self.latency(), closed)

    def down(self, node: Node, peer: PeerId, reason: str, timed_out: float | None = None) -> None:
        if node.links.pop(peer, None) is not None and node.alive:
            node.closing.pop(peer, None)
            node.feed(LinkDown(peer, reason, timed_out))

    def frame(self, node: Node, peer: PeerId, message: Message) -> None:
        other = self.nodes.get(peer)
        if other is None:
            return

        def arrive() -> None:
            if node.peer_id in other.links:
                owner = OWNERS[type(message)]
                if owner in other.cores:
                    other.feed(Received(node.peer_id, message), owner)

        self.in_order((node.peer_id, peer), self.latency(), arrive)

    # --- routes ---

    def route(self, node: Node, route: Route) -> None:
        there = [peer for peer in self.reached(node.peer_id) if peer != node.peer_id]
        target = min(there, key=lambda peer: nearness(peer, route.to), default=None)
        if target is None or (target != route.to and not route.nearest):
            self.later(1.0, lambda: node.feed(RouteFailed(route.call, "no way"), route.owner))
            return
        other = self.nodes[target]
        self._ways += 1
        way = ReturnPath(node.peer_id, str(self._ways), (node.peer_id,))
        if route.answered:
            self._asked[way.packet_id] = route

        def arrive() -> None:
            other.feed(
                RoutedReceived(RemotePeer(node.peer_id, True, 1), route.message, way),
                OWNERS[type(route.message)] or route.owner,
            )
            if not route.answered:
                self.later(0.1, lambda: node.feed(RouteSucceeded(route.call, target, 3), route.owner))

        self.later(0.1, arrive)

    def answer(self, node: Node, answer: RouteReply) -> None:
        route, asker = self._asked.pop(answer.way.packet_id), self.nodes.get(answer.way.peer)
        if asker is not None:
            arrived = RouteSucceeded(route.call, node.peer_id, 3, answer.message)
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
        left, count = dict.fromkeys(self.nodes), 0
        while left:
            count += 1
            for peer in self.reached(next(iter(left))):
                left.pop(peer, None)
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
