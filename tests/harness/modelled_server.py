"""One signaling server for a mesh of bare cores: what it knows of its members, and what it tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from p2pmesh.keyspace import PeerId, ring_distance, xor_distance
from p2pmesh.protocols.inputs import Signaled, Subsystem
from p2pmesh.wire import signaling as wire

if TYPE_CHECKING:
    from tests.harness.mesh import Net, Node

SERVICE = "service"


@define(eq=False)
class ModelledServer:
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
        def arrive() -> None:
            if self.up:
                node.feed(Signaled(SERVICE, message), Subsystem.SIGNALING)

        self.net.in_order(("server", node.peer_id), self.net.latency(), arrive)
