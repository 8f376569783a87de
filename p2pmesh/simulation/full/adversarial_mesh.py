"""A whole mesh that works against the others: its cores run on, and an `Adversary` decides what leaves them."""

from __future__ import annotations

import random
from typing import Any, cast

import trio

from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh
from p2pmesh.protocols.core import SendFrame
from p2pmesh.simulation.faults.adversary import EVERY, Adversary
from p2pmesh.wire.messages import Goodbye, Message
from p2pmesh.wire.signaling import SignalingMessage


class AdversarialMesh:
    """Stands between a mesh and its links and services. For its adversary it is the `HostilePeer`."""

    def __init__(self, mesh: Mesh, adversary: Adversary, rng: random.Random) -> None:
        self._keeper = mesh._node.keeper
        self._adversary = adversary
        self._send = self._keeper.send
        self.rng: random.Random = rng
        self.peer_id: PeerId = mesh.peer_id
        cast("Any", self._keeper).send = self._send_or_not
        for service in mesh._node.services.values():
            cast("Any", service).send = _Twisted(self, service.send)

    @property
    def peers(self) -> list[PeerId]:
        return list(self._keeper._links)

    async def run(self, _: Mesh) -> None:
        """Do mischief until cancelled."""
        await trio.sleep(self.rng.random() * EVERY)
        while True:
            self._adversary.act(self)
            self._keeper.flush()
            await trio.sleep(EVERY)

    def twisted(self, message: SignalingMessage) -> SignalingMessage:
        """What the adversary makes of a message to a service."""
        return self._adversary.twisted(message, self)

    def send_frame(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool) -> None:
        self._send(peers, message, urgent=urgent)

    def send_bytes(self, peer: PeerId, frame: bytes) -> None:
        entry = self._keeper._links.get(peer)
        if entry is not None:
            self._keeper._queue(entry, frame, Goodbye(reason="in place of these bytes"), urgent=True, patient=False)

    def _send_or_not(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool, patient: bool = False) -> None:
        if self._adversary.lets_pass(SendFrame(peers, message, urgent, patient), self):
            self._send(peers, message, urgent=urgent, patient=patient)


class _Twisted:
    """The `send` of a service, with an adversary before it."""

    def __init__(self, hostile: AdversarialMesh, send: Any) -> None:
        self._hostile = hostile
        self._send = send

    def __call__(self, message: SignalingMessage) -> None:
        self._send(self._hostile.twisted(message))
