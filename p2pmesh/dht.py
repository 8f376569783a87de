"""`Mesh.dht`: values that the mesh keeps under keys, and the peers that are nearest to an id."""

from __future__ import annotations

from p2pmesh.checks import flag
from p2pmesh.errors import ConfigError
from p2pmesh.events import PayloadLike
from p2pmesh.keyspace import PeerId, parse_peer_id
from p2pmesh.protocols.inputs import DhtFindNode, DhtGet, DhtGetAll, DhtPut, Subsystem
from p2pmesh.protocols.kademlia.records import DELETED, DhtValue
from p2pmesh.runtime import arguments
from p2pmesh.runtime.node import Node

__all__ = ["Dht", "DhtValue"]


class Dht:
    """The distributed hash table of a mesh. Got from `Mesh.dht`.

    Values lie with the peers that are nearest to their key at the time, and outlive their publisher's stay. Only peers
    with a verified identity take part. There are two kinds of keys, and the same text names one of each:

    - *Owned* keys, one for each peer: `put(key, value, owned=True)`, `get(key, owner=peer_id)`. Nobody but their owner
      can write there, displace what it wrote or leave it no room.
    - *Shared* keys: any peer may publish there, each a value of its own, signed, that nobody else can change. But who
      says what, anybody can, and up to `KademliaConfig.key_values` publishers have room: take them for meeting
      strangers, and owned ones for whatever must be yours.

    Of a publisher's values under a key the last one counts, by a number that only grows, and that it signs.

    Each call may be cancelled; one that is made before there is any link waits a few seconds for it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    async def put(self, key: str, value: PayloadLike, *, owned: bool = False, ttl: float | None = None) -> int:
        """Publish a value under a key, in place of the one that we published there before.

        Args:
          key: Any text.
          value: Bytes, or anything that JSON can carry, up to `KademliaConfig.max_value` bytes encoded.
          owned: Under the key of that name which is ours alone, not under the one that all share.
          ttl: Seconds that it lives, from 1. Default: `KademliaConfig.ttl`.

        Returns:
          How many peers hold it now, `KademliaConfig.k` if there are so many; we may be one of them.

        Raises:
          PayloadTooLarge, InvalidPayload, ConfigError: before anything is sent.
          IdentityError: if our identity is unverified.
          KeyFull: if as many others have a value under this shared key as may.
          PeerRefused: if no peer takes it, now or later; the text says why: our clock is wrong, say.
          PeerUnreachable: if no peer took it.
          MeshClosed: if the mesh was left.
        """
        record = arguments.put(self._node.config.kademlia, key, value, ttl, owned)
        held: int = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtPut(call, *record)
        )
        return held

    async def delete(self, key: str, *, owned: bool = False) -> int:
        """Take the value back that we published under a key, in this run or an earlier one.

        Its holders remember that for `KademliaConfig.max_ttl`, so that nobody can bring it back.

        Returns:
          How many peers know now.

        Raises:
          ConfigError, IdentityError, KeyFull, PeerRefused, PeerUnreachable, MeshClosed: as `put`.
        """
        name, mine = arguments.dht_key(key), flag("owned", owned)
        known: int = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtPut(call, name, DELETED, None, mine)
        )
        return known

    async def get(self, key: str, *, owner: str | None = None, publisher: str | None = None) -> DhtValue | None:
        """Look up a value under a key.

        Args:
          key: Any text.
          owner: Under the key of that name which this peer owns.
          publisher: Under the shared key, the value of this peer. If neither is given, any peer's: that of the
            publisher who has had one there for longest, as most of the peers asked say that hold it; later values of
            others, and clocks that are wrong, change nothing. `DhtValue.rule` says which of the three it was.

        Returns:
          The value and who published it, or None if the peers nearest to the key hold none that is valid.

        Raises:
          InvalidPeerId: if owner or publisher is no id.
          ConfigError: if the key is not text, or both owner and publisher are given.
          IdentityError: if our identity is unverified.
          PeerRefused: if nobody would answer; the text says why: our clock is wrong, say.
          MeshClosed: if the mesh was left.
        """
        name = arguments.dht_key(key)
        if owner is not None and publisher is not None:
            raise ConfigError("only its owner publishes under an owned key: give owner, or publisher, not both")
        given = owner if publisher is None else publisher
        whose = None if given is None else parse_peer_id(given)
        found: DhtValue | None = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtGet(call, name, whose, owner is not None)
        )
        return found

    async def get_all(self, key: str) -> dict[PeerId, DhtValue]:
        """Look up the values of all publishers under a shared key, by their publishers.

        Returns:
          Up to `KademliaConfig.key_values`: of more, those that most of the holders name.

        Raises:
          ConfigError: if the key is not text.
          IdentityError: if our identity is unverified.
          PeerRefused: if nobody would answer; the text says why: our clock is wrong, say.
          MeshClosed: if the mesh was left.
        """
        name = arguments.dht_key(key)
        found: dict[PeerId, DhtValue] = await self._node.calls.make(
            self._node.drivers[Subsystem.KADEMLIA], lambda call: DhtGetAll(call, name)
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
