"""Who is in a room, in the order of their ids: finds the nearest by XOR and the neighbours on the ring.

Ids stand in one sorted list. All ids with a common prefix are neighbours in it, so the k XOR-nearest to any point are
found by narrowing one range by bisection, about k log n steps, whatever the room's size.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from p2pmesh.keyspace import ID_DIGITS, PeerId


class Room:
    """The members of one room: peer ids, each with the number of its client."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._clients: dict[PeerId, int] = {}
        self._keys: list[int] = []

    def __len__(self) -> int:
        return len(self._clients)

    def client(self, peer: str) -> int | None:
        """The client that holds this id; None for ids that are not here."""
        return self._clients.get(PeerId(peer))

    def holder(self, peer: PeerId) -> int:
        """The client that holds this id, which is here."""
        return self._clients[peer]

    def put(self, peer: PeerId, client: int) -> None:
        """Let this client hold this id, instead of any other."""
        if peer not in self._clients:
            insort(self._keys, int(peer, 16))
        self._clients[peer] = client

    def remove(self, peer: PeerId) -> None:
        """Take a member out."""
        del self._clients[peer]
        del self._keys[bisect_left(self._keys, int(peer, 16))]

    def neighbours(self, peer: PeerId, nearest: int) -> list[PeerId]:
        """The members nearest to `peer` by XOR, nearest first, then its ring successor and predecessor; each once."""
        key = int(peer, 16)
        found = [other for other in self._nearest(key, nearest + 1) if other != key][:nearest]
        found += self._ring(key)
        return [PeerId(f"{other:0{ID_DIGITS}x}") for other in dict.fromkeys(found)]

    def ring(self, peer: PeerId) -> list[PeerId]:
        """The members next to `peer` on the ring: its successor and its predecessor, which may be the same one."""
        return [PeerId(f"{other:0{ID_DIGITS}x}") for other in self._ring(int(peer, 16))]

    def _nearest(self, key: int, count: int) -> list[int]:
        found: list[int] = []
        ranges = [(0, len(self._keys))]
        while ranges and len(found) < count:
            low, high = ranges.pop()
            if high - low <= count - len(found):
                found += sorted(self._keys[low:high], key=key.__xor__)
                continue
            # All ids of this range agree above the highest bit that differs, which parts them in a near and a far half.
            last = self._keys[high - 1]
            bit = (self._keys[low] ^ last).bit_length() - 1
            middle = bisect_left(self._keys, last >> bit << bit, low, high)
            halves = [(low, middle), (middle, high)]
            ranges += halves if key >> bit & 1 else reversed(halves)
        return found

    def _ring(self, key: int) -> list[int]:
        keys = self._keys
        at = bisect_left(keys, key)
        here = at < len(keys) and keys[at] == key
        if len(keys) == here:
            return []
        successor = keys[(at + here) % len(keys)]
        return [successor, keys[at - 1]]
