"""A whole mesh that works against the others: its cores run on, and an `Adversary` decides what leaves them."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any, cast

import trio

from p2pmesh.errors import MeshError
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh
from p2pmesh.protocols.core import SendFrame
from p2pmesh.simulation.faults.adversary import EVERY, Adversary
from p2pmesh.simulation.faults.hostile_peer import Plot
from p2pmesh.wire.messages import Goodbye, Message
from p2pmesh.wire.signaling import SignalingMessage


class AdversarialMesh:
    """Stands between a mesh and its links and services. For its adversary it is the `HostilePeer`."""

    def __init__(self, mesh: Mesh, adversary: Adversary, rng: random.Random, plot: Plot) -> None:
        self._mesh = mesh
        self._keeper = mesh._node.keeper
        self._adversary = adversary
        self._send = self._keeper.send
        self._courted: PeerId | None = None
        self.rng: random.Random = rng
        self.plot: Plot = plot
        self.identity: Identity = mesh._node.identity
        self.peer_id: PeerId = mesh.peer_id
        self.network: bytes = mesh._node.config.network
        cast("Any", self._keeper).send = self._send_or_not
        services = mesh._node.services
        self._tell = [service.send for service in services.values()]
        for service in services.values():
            cast("Any", service).send = _Twisted(self, service.send)

    @property
    def peers(self) -> list[PeerId]:
        return list(self._keeper._links)

    @property
    def wall_ms(self) -> int:
        return int(self._mesh._node._wall(trio.current_time()) * 1000)

    async def run(self, _: Mesh) -> None:
        """Do mischief until cancelled."""
        async with trio.open_nursery() as nursery:
            await trio.sleep(self.rng.random() * EVERY)
            while True:
                wanted = self._courted
                self._adversary.act(self)
                self._keeper.flush()
                if wanted is None and self._courted is not None:
                    nursery.start_soon(self._connect, self._courted)
                await trio.sleep(EVERY)

    async def _connect(self, peer: PeerId) -> None:
        with suppress(MeshError):  # it is wanted again
            await self._mesh.connect(peer)
        self._courted = None

    def twisted(self, message: SignalingMessage) -> SignalingMessage | None:
        """What the adversary makes of a message to a service; None for nothing."""
        return self._adversary.twisted(message, self)

    def send_frame(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool) -> None:
        self._send(peers, message, urgent=urgent)

    def send_bytes(self, peer: PeerId, frame: bytes) -> None:
        entry = self._keeper._links.get(peer)
        if entry is not None:
            self._keeper._queue(entry, frame, Goodbye(reason="in place of these bytes"), urgent=True, patient=False)

    def tell_service(self, message: SignalingMessage) -> None:
        for tell in self._tell:
            tell(message)

    def court(self, peer: PeerId) -> None:
        self._courted = peer

    def _send_or_not(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool, patient: bool = False) -> None:
        if self._adversary.lets_pass(SendFrame(peers, message, urgent, patient), self):
            self._send(peers, message, urgent=urgent, patient=patient)


class _Twisted:
    """The `send` of a service, with an adversary before it."""

    def __init__(self, hostile: AdversarialMesh, send: Any) -> None:
        self._hostile = hostile
        self._send = send

    def __call__(self, message: SignalingMessage) -> None:
        said = self._hostile.twisted(message)
        if said is not None:
            self._send(said)
