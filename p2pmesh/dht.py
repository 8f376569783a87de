"""`Mesh.dht`: values that the mesh keeps under keys, and the peers that are nearest to an id."""

from __future__ import annotations

from p2pmesh.events import PayloadLike
from p2pmesh.keyspace import PeerId, parse_peer_id
from p2pmesh.protocols.inputs import DhtFindNode, DhtGet, DhtPut, Subsystem
from p2pmesh.protocols.kademlia.records import DhtValue
from p2pmesh.runtime import arguments
from p2pmesh.runtime.node import Node

__all__ = ["Dht", "DhtValue"]


class Dht:
    """The distributed hash table of a mesh. Got from `Mesh.dht`.

    Values lie with the peers that are nearest to their key at the time, and outlive their publisher's stay. Only peers
    with a verified identity take part. Any of them may publish under any key: each publisher has a value of its own
    there, signed, that nobody else can change.

    Each call may be cancelled; one that is made before there is any link waits a few seconds for it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    async def put(self, key: str, value: PayloadLike, *, ttl: float | None = None) -> int:
        """Publish a value under a key, in place of the one that we published there before.

        Args:
          key: Any text.
          value: Bytes, or anything that JSON can carry, up to `KademliaConfig.max_value` bytes encoded.
          ttl: Seconds that it lives, from 1. Default: `KademliaConfig.ttl`.

        Returns:
          How many peers hold it now, `KademliaConfig.k` if there are so many; we may be one of them.

        Raises:
          PayloadTooLarge, InvalidPayload, ConfigError: before anything is sent.
          IdentityError: if our identity is unverified.
          PeerRefused: if no peer takes it, now or later; the text says why: the key is full, or our clock is wrong.
          PeerUnreachable: if no peer took it.
          MeshClosed: if the mesh was left.
        """
        record = arguments.put(self._node.config.kademlia, key, value, ttl)
        held: int = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtPut(call, *record)
        )
        return held

    async def get(self, key: str, *, publisher: str | None = None) -> DhtValue | None:
        """Look up the newest value under a key, of anybody, or of one publisher.

        Returns:
          The value and who published it, or None if the peers nearest to the key hold none that is valid.

        Raises:
          InvalidPeerId: if the publisher is no id.
          ConfigError: if the key is not text.
          IdentityError: if our identity is unverified.
          PeerRefused: if nobody would answer; the text says why: our clock is wrong, say.
          MeshClosed: if the mesh was left.
        """
        name = arguments.dht_key(key)
        whose = None if publisher is None else parse_peer_id(publisher)
        found: DhtValue | None = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtGet(call, name, whose)
        )
        return found

    async def find_node(self, target: str) -> tuple[PeerId, ...]:
        """The peers nearest to an id by XOR, nearest first, up to `KademliaConfig.k`; ourselves among them if we are.

        Raises:
          InvalidPeerId: if the target is no id.
          IdentityError: if our identity is unverified.
          MeshClosed: if the mesh was left.
        """
        goal = parse_peer_id(target)
        nearest: tuple[PeerId, ...] = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtFindNode(call, goal)
        )
        return nearest
