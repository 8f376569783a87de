"""A peer that does over its links what no mesh would: its program has the links themselves in hand."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2pmesh import Identity, Mesh, open_mesh
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import Attempt, Dialer, Link, LinkStats
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.transports.memory import MemoryTransport
from p2pmesh.wire.messages import Description, Facts
from tests.harness.virtual_time import virtual_wall


class Rogue:
    """A mesh and its open links, by peer."""

    def __init__(self, mesh: Mesh, links: dict[PeerId, RogueLink]) -> None:
        self.mesh = mesh
        self.peer_id = mesh.peer_id
        self.links = links


class RogueLink(Link):
    """Stands between a mesh and its link. What the program sends goes out by `say`, past the mesh."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.is_mute = False
        """What the mesh sends is dropped."""
        self.is_deaf = False
        """Nothing is read any more after the next frame."""

    async def say(self, frame: bytes) -> None:
        """Send a frame of any kind."""
        await self._link.send(frame)

    @property
    def peer(self) -> RemotePeer:
        return self._link.peer

    @property
    def max_frame(self) -> int:
        return self._link.max_frame

    @property
    def stats(self) -> LinkStats:
        return self._link.stats

    async def send(self, value: bytes, *, urgent: bool = False) -> None:
        if self.is_mute:
            await trio.lowlevel.checkpoint()
        else:
            await self._link.send(value, urgent=urgent)

    async def receive(self) -> bytes:
        if self.is_deaf:
            await trio.sleep_forever()
        return await self._link.receive()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._link.run(task_status=task_status)

    async def aclose(self) -> None:
        await self._link.aclose()


class _Dialer(Dialer):
    def __init__(self, dialer: Dialer, links: dict[PeerId, RogueLink]) -> None:
        self._dialer = dialer
        self._links = links

    async def offer(self, peer: PeerId) -> Attempt:
        return _Attempt(await self._dialer.offer(peer), self._links)

    async def answer(self, peer: PeerId, offer: Description) -> Attempt:
        return _Attempt(await self._dialer.answer(peer, offer), self._links)

    async def aclose(self) -> None:
        await self._dialer.aclose()


class _Attempt(Attempt):
    def __init__(self, attempt: Attempt, links: dict[PeerId, RogueLink]) -> None:
        self._attempt = attempt
        self._links = links

    @property
    def peer_id(self) -> PeerId:
        return self._attempt.peer_id

    @property
    def description(self) -> Description:
        return self._attempt.description

    async def feed(self, signal: Facts) -> None:
        await self._attempt.feed(signal)

    async def opened(self, peer: RemotePeer) -> Link:
        link = self._links[peer.peer_id] = RogueLink(await self._attempt.opened(peer))
        return link

    async def aclose(self) -> None:
        await self._attempt.aclose()


@asynccontextmanager
async def open_rogue(world: Any, identity: Identity) -> AsyncGenerator[Rogue]:
    """A rogue peer of this `Cluster`, while the block runs."""
    links: dict[PeerId, RogueLink] = {}
    async with open_mesh(
        MemoryTransport(hub=world.hub, name="hub"),
        identity=identity,
        dialer=_Dialer(world.network.dialer(identity.peer_id), links),
        rng=random.Random(identity.peer_id),
        wall_clock=virtual_wall,
    ) as mesh:
        yield Rogue(mesh, links)
