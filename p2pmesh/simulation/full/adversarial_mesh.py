"""A whole mesh that works against the others: its own cores run on, and their hands do what a `Adversary` makes of it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import trio

from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh
from p2pmesh.protocols.effects import SendFrame
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.faults.adversary import EVERY, Adversary
from p2pmesh.wire.messages import Message
from p2pmesh.wire.signaling import SignalingMessage


class AdversarialMesh:
    """Stands between a mesh and its links and services. A `Adversary` takes it for a bare node."""

    def __init__(self, mesh: Mesh, hostility: Adversary, rng: random.Random) -> None:
        self._node = mesh._node
        self._hostility = hostility
        self._send = self._node.keeper.send
        self.net: SimpleNamespace = SimpleNamespace(rng=rng)
        self.peer_id: PeerId = mesh.peer_id
        self.links: SimpleNamespace = SimpleNamespace(send=self._send, transmit=self._transmit, ends=_Same())
        cast("Any", self._node.keeper).send = self._send_or_not
        for service in self._node.services.values():
            cast("Any", service).send = _Twisted(self, service.send)

    @property
    def peers(self) -> list[PeerId]:
        return list(self._node.keeper._links)

    async def run(self, _: Mesh) -> None:
        """Do mischief until cancelled."""
        await trio.sleep(self.net.rng.random() * EVERY)
        while True:
            self._hostility.act(cast("BareNode", self))
            self._node.keeper.flush()
            await trio.sleep(EVERY)

    def twisted(self, message: SignalingMessage) -> SignalingMessage:
        return self._hostility.twisted(message, cast("BareNode", self))

    def _send_or_not(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool, patient: bool = False) -> None:
        if self._hostility.lets_pass(SendFrame(peers, message, urgent, patient), cast("BareNode", self)):
            self._send(peers, message, urgent=urgent, patient=patient)

    def _transmit(self, peer: PeerId, frame: bytes) -> None:
        entry = self._node.keeper._links.get(peer)
        if entry is not None:
            self._node.keeper._queue(entry, frame, urgent=True, patient=False)


class _Twisted:
    def __init__(self, rogue: AdversarialMesh, send: Any) -> None:
        self._rogue = rogue
        self._send = send

    def __call__(self, message: SignalingMessage) -> None:
        self._send(self._rogue.twisted(message))


class _Same:
    """Ends of links go by the peers that they lead to."""

    def __getitem__(self, peer: PeerId) -> PeerId:
        return peer
