"""DHT cores in virtual time, over routes that are perfect but for what a test breaks.

The ring is perfect, too: each peer is told of the eight on either side a second after they come or go.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs

from p2pmesh.config import KademliaConfig, MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, ring_distance, xor_distance
from p2pmesh.protocols.core import Effect, Notify
from p2pmesh.protocols.inputs import (
    CancelCall,
    DhtFindNode,
    DhtGet,
    DhtGetAll,
    DhtPut,
    Leave,
    LinkDown,
    LinkUp,
    PeersFound,
    Subsystem,
)
from p2pmesh.protocols.kademlia.kademlia import KademliaCore
from p2pmesh.protocols.kademlia.records import DELETED
from p2pmesh.protocols.notices import (
    CancelRoute,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import DhtRecord, FindNode, FindValue, NodesFound
from tests.harness.virtual_time import Net, Node, identity, remote, virtual_wall

Behaviour = Callable[[PeerId, Any], Message | None]
"""What a liar answers to a request."""
TOLD_AFTER = 1.0
STRANGER = identity(999)
"""Asks a peer that has no other neighbour to do so."""


@attrs.define(eq=False)
class Peer(Node):
    lies: Behaviour | None = None
    asked: list[tuple[PeerId, Any]] = attrs.field(factory=list)
    """Requests that have come."""
    links: dict[PeerId, None] = attrs.field(factory=dict)
    around: tuple[PeerId, ...] = ()
    """The peers around it on the ring, as it was told."""

    @property
    def core(self) -> KademliaCore:
        core = self.cores[Subsystem.KADEMLIA]
        assert isinstance(core, KademliaCore)
        return core

    @property
    def stats(self) -> dict[str, Any]:
        return dict(self.core.snapshot())


class DhtNet(Net[Peer]):
    """Peers that all reach each other by routes. `lose(sender, receiver, message)` says whether a message gets lost."""

    def __init__(
        self,
        size: int = 0,
        *,
        seed: int = 0,
        config: KademliaConfig | None = None,
        latency: tuple[float, float] = (0.05, 0.3),
        settle: float = 100.0,
    ) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.config = config or KademliaConfig()
        self.latency = latency
        self.lose: Callable[[PeerId, PeerId, Any], bool] = lambda *_: False
        self.lose_outcome: Callable[[PeerId, Any], bool] = lambda *_: False
        """Whether the notice of what became of this peer's request is dropped."""
        self.peers: list[Peer] = []
        self.by_id: dict[PeerId, Peer] = {}
        self._pending: dict[tuple[PeerId, int], Message] = {}
        for _ in range(size):
            self.add()
            self.run(0.2)
        self.run(settle if size else 0.0)

    # --- peers --------------------------------------------------------------------------------------------------------

    def add(
        self, *, config: KademliaConfig | None = None, link: Peer | None = None, who: Identity | None = None
    ) -> Peer:
        who = who or identity(len(self.peers) + 1)
        peer = Peer(who, {Subsystem.KADEMLIA: self._core(who, config)})
        living = self.living()
        self.peers.append(peer)
        self.by_id[peer.id] = peer
        neighbour = link or (self.rng.choice(living) if living else None)
        if neighbour is not None:
            self.link(peer, neighbour)
        self.later(TOLD_AFTER, self._tell_ring)
        return peer

    def _tell_ring(self) -> None:
        ring = sorted(peer.id for peer in self.living() if peer.links)
        reach = min(8, len(ring) - 1)
        for place, peer in enumerate(ring):
            around = tuple(ring[(place + way) % len(ring)] for way in range(-reach, reach + 1) if way)
            self._tell(self.by_id[peer], around)

    def _tell(self, peer: Peer, around: tuple[PeerId, ...]) -> None:
        if around != peer.around:
            peer.around = around
            self.feed(peer, PeersFound(around, "ring"))

    def _core(self, who: Identity, config: KademliaConfig | None = None) -> KademliaCore:
        rng = random.Random(self.rng.getrandbits(64))
        return KademliaCore(who, MeshConfig(kademlia=config or self.config), rng, virtual_wall)

    def restart(self, peer: Peer, config: KademliaConfig | None = None) -> None:
        """Its process ends, and another one begins which knows nothing but has the same links."""
        peer.cores[Subsystem.KADEMLIA] = self._core(peer.identity, config)
        for other in list(peer.links):
            self.link(peer, self.by_id[other])
        peer.around = ()
        self.later(TOLD_AFTER, self._tell_ring)

    def living(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.alive]

    def link(self, a: Peer, b: Peer) -> None:
        a.links[b.id] = b.links[a.id] = None
        self.feed(a, LinkUp(remote(b.identity)))
        self.feed(b, LinkUp(remote(a.identity)))

    def kill(self, peer: Peer) -> None:
        peer.alive = False
        self.later(TOLD_AFTER, self._tell_ring)

    def unlink(self, a: Peer, b: Peer, timed_out: float | None = None) -> None:
        del a.links[b.id], b.links[a.id]
        self.feed(a, LinkDown(b.id, "gone", timed_out))
        self.feed(b, LinkDown(a.id, "gone", timed_out))

    def leave(self, peer: Peer) -> None:
        self.feed(peer, Leave())
        self.kill(peer)

    # --- calls --------------------------------------------------------------------------------------------------------

    def put(self, peer: Peer, key: str, value: Any, ttl: float | None = None, *, owned: bool = False) -> int:
        return self.call(peer, lambda call: DhtPut(call, key, value, ttl, owned))

    def delete(self, peer: Peer, key: str, *, owned: bool = False) -> int:
        return self.call(peer, lambda call: DhtPut(call, key, DELETED, None, owned))

    def get(self, peer: Peer, key: str, publisher: PeerId | None = None, *, owner: PeerId | None = None) -> int:
        return self.call(peer, lambda call: DhtGet(call, key, owner or publisher, owner is not None))

    def get_all(self, peer: Peer, key: str) -> int:
        return self.call(peer, lambda call: DhtGetAll(call, key))

    def find(self, peer: Peer, target: PeerId) -> int:
        return self.call(peer, lambda call: DhtFindNode(call, target))

    def forget(self, peer: Peer, call: int) -> None:
        self.feed(peer, CancelCall(call))

    def outcome(self, peer: Peer, call: int, within: float = 60.0) -> Any:
        """What a call returns; raises what it raises."""
        end = self.now + within
        while call not in peer.replies and self.now < end and self.step(end):
            pass
        reply = peer.replies[call]
        if reply.error is not None:
            raise reply.error
        return reply.value

    # --- what is true -------------------------------------------------------------------------------------------------

    def closest(self, target: PeerId, count: int | None = None) -> list[PeerId]:
        everybody = sorted((peer.id for peer in self.living()), key=lambda peer: xor_distance(peer, target))
        return everybody[: self.config.k if count is None else count]

    def holders(self, key: PeerId) -> list[PeerId]:
        """The peers that give the value under a key."""
        return [peer.id for peer in self.living() if self.value_at(peer, key)]

    def value_at(self, peer: Peer, key: PeerId) -> DhtRecord | None:
        """What a peer has under a key, as it tells one of its neighbours."""
        answer = self.ask(self._neighbour(peer), peer, FindValue(key=key))
        assert isinstance(answer, NodesFound)
        return answer.record

    def knows(self, peer: Peer, other: PeerId) -> bool:
        """Whether a peer knows this one, as it tells one of its neighbours."""
        answer = self.ask(self._neighbour(peer, but=other), peer, FindNode(target=other))
        assert isinstance(answer, NodesFound)
        return other in answer.peers

    def _neighbour(self, peer: Peer, *, but: PeerId | None = None) -> Identity:
        return next((self.by_id[other].identity for other in peer.links if other != but), STRANGER)

    # --- the machine --------------------------------------------------------------------------------------------------

    def ask(self, sender: Identity, receiver: Peer, request: Message, *, version: int = 1) -> Message | None:
        """Let a stranger ask, and give what is answered, at once."""
        way = ReturnPath(sender.peer_id, "stranger", (sender.peer_id,))
        effects = receiver.core.handle(RoutedReceived(remote(sender, version), request, way), self.now)
        answers = [reply.message for reply in map(reply_of, effects) if reply is not None]
        self.carry_out(receiver, [effect for effect in effects if reply_of(effect) is None])
        assert len(answers) <= 1
        return answers[0] if answers else None

    def do(self, peer: Peer, effect: Effect) -> None:
        match effect:
            case Notify(_, Route() as route):
                self._route(peer, route)
            case Notify(_, CancelRoute(_, call)):
                self._pending.pop((peer.id, call), None)
            case Notify(_, RouteReply(way, message)):
                self._answer(peer, way, message)
            case _:
                super().do(peer, effect)

    def _route(self, sender: Peer, route: Route) -> None:
        request = self._pending[sender.id, route.call] = route.message
        self.later(route.timeout, lambda: self._end(sender, RouteFailed(route.call, "no answer")))
        to = self._ring_nearest(route.to, sender.id) if route.nearest else route.to
        receiver = self.by_id.get(to) if to else None
        if receiver is None or self.lose(sender.id, receiver.id, request):
            return
        way = ReturnPath(sender.id, str(route.call), (sender.id,))
        routed = RoutedReceived(remote(sender.identity), request, way)
        self.later(self.rng.uniform(*self.latency), lambda: self._arrive(receiver, routed))

    def _arrive(self, receiver: Peer, routed: RoutedReceived) -> None:
        if not receiver.alive:
            return
        receiver.asked.append((routed.peer.peer_id, routed.message))
        if receiver.lies is None:
            self.feed(receiver, routed)
            return
        answer = receiver.lies(routed.peer.peer_id, routed.message)
        if answer is not None:
            self._answer(receiver, routed.way, answer)

    def _answer(self, sender: Peer, way: ReturnPath, message: Message) -> None:
        asker = self.by_id.get(way.peer)
        if asker is None or self.lose(sender.id, asker.id, message):
            return
        arrived = RouteSucceeded(int(way.packet_id), sender.id, message)
        self.later(self.rng.uniform(*self.latency), lambda: self._end(asker, arrived))

    def _end(self, asker: Peer, outcome: RouteSucceeded | RouteFailed) -> None:
        request = self._pending.pop((asker.id, outcome.call), None)
        if request is not None and not self.lose_outcome(asker.id, request):
            self.feed(asker, outcome)

    def _ring_nearest(self, key: PeerId, but: PeerId) -> PeerId | None:
        others = [peer.id for peer in self.living() if peer.id != but]

        def way(peer: PeerId) -> int:
            return min(ring_distance(peer, key), ring_distance(key, peer))

        return min(others, key=way, default=None)


def reply_of(effect: Effect) -> RouteReply | None:
    """The answer that is sent back by the way of a request."""
    return effect.input if isinstance(effect, Notify) and isinstance(effect.input, RouteReply) else None
