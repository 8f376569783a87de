"""Simulated peers by their ids, with what tests of the overlay do to them and ask of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import attrs

from p2pmesh.config import KademliaConfig, MeshConfig
from p2pmesh.events import Event, PeerConnected, PeerDisconnected
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.simulation.discrete.kernel import Peer
from p2pmesh.simulation.discrete.links import End
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.model.conditioner import Conditions, Uniform
from tests.harness.original_network import OriginalServer

NEAR = Conditions(latency=Uniform(0.001, 0.005), jitter=0.001)


class Node:
    """A peer, and what its application heard."""

    def __init__(self, bare: BareNode) -> None:
        self.bare = bare
        self.peer_id = bare.peer_id
        self.events: list[Event] = []

    @property
    def links(self) -> Mapping[PeerId, End]:
        return self.bare.links.ends

    @property
    def opened(self) -> int:
        return self.bare.links.counts.opened

    @property
    def overlay(self) -> Any:
        return self.bare.cores[Subsystem.OVERLAY]


class LossyNetwork(BareNetwork):
    """A share of attempts at links leads to nothing, until their time is over."""

    attempt_loss = 0.0

    def __init__(self, seed: int) -> None:
        super().__init__(seed, conditions=NEAR, service_latency=0.01)
        self._lost_until: dict[tuple[int, int], float] = {}

    def can_link(self, a: Peer, b: Peer) -> bool:
        pair = min(a.number, b.number), max(a.number, b.number)
        if self.attempt_loss and self.now >= self._lost_until.get(pair, 0.0) and self.rng.random() < self.attempt_loss:
            self._lost_until[pair] = self.now + self.config.links.connect_timeout
        return self.now >= self._lost_until.get(pair, 0.0) and super().can_link(a, b)


class Net:
    """A `BareNetwork` of peers that live. That no peer ever has a link too many is always watched."""

    def __init__(self, seed: int, *, original_server: bool = False, attempt_loss: float = 0.0) -> None:
        self.bare = LossyNetwork(seed)
        self.rng = random.Random(seed)
        self.nodes: dict[PeerId, Node] = {}
        self.attempt_loss = attempt_loss
        self._original_server = original_server
        self.bare.listeners.append(self._on_event)
        if original_server:
            self.bare.service.stop()
            self._start_service()

    @property
    def attempt_loss(self) -> float:
        return self.bare.attempt_loss

    @attempt_loss.setter
    def attempt_loss(self, share: float) -> None:
        self.bare.attempt_loss = share

    def _on_event(self, bare: BareNode, event: Event) -> None:
        node = self.nodes.get(bare.peer_id)
        if node is not None:
            node.events.append(event)

    # --- what happens -------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        self.bare.run(seconds)

    def add(self, config: MeshConfig) -> Node:
        """A peer without Kademlia: a DHT is what most of a small mesh's time would go into."""
        bare = self.bare.add(config=attrs.evolve(config, kademlia=KademliaConfig(enabled=False)))
        node = self.nodes[bare.peer_id] = Node(bare)
        return node

    def leave(self, node: Node) -> None:
        node.bare.leave()
        self.run(1.0)
        assert not set(node.links) & set(self.nodes), "links to peers that are gone have nobody to answer their closing"
        assert not node.bare.links.attempts
        self.kill(node)

    def kill(self, node: Node) -> None:
        """End its process without a word: the server notices at once, its neighbours later."""
        self.bare.stop(node.bare)
        del self.nodes[node.peer_id]

    def cut(self, node: Node, peer: PeerId, reason: str) -> None:
        node.bare.links.break_link(node.links[peer], reason)

    def set_service(self, up: bool) -> None:
        if up:
            self._start_service()
        else:
            self.bare.service.stop()

    def _start_service(self) -> None:
        presence: Any = OriginalServer() if self._original_server else None
        self.bare.service.start(presence)

    # --- what tests look at -------------------------------------------------------------------------------------------

    def islands(self) -> int:
        left, count = dict.fromkeys(self.nodes), 0
        while left:
            count += 1
            frontier = [left.popitem()[0]]
            while frontier:
                near = [other for other in self.nodes[frontier.pop()].links if other in left]
                frontier += near
                left = {peer: None for peer in left if peer not in near}
        return count

    def check_symmetric(self) -> None:
        for node in self.nodes.values():
            for peer in node.links:
                assert node.peer_id in self.nodes[peer].links

    def check_events(self) -> None:
        """Each `PeerConnected` is followed by one `PeerDisconnected` of any kind, and none comes without."""
        for node in self.nodes.values():
            up: set[PeerId] = set()
            for event in node.events:
                match event:
                    case PeerConnected(peer):
                        assert peer not in up
                        up.add(peer)
                    case PeerDisconnected(peer):
                        up.remove(peer)
                    case _:
                        pass
            assert up == set(node.links)
