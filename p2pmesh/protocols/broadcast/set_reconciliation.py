"""Sums over sets of broadcasts, by which two peers find what one of them lacks.

Each broadcast has a key of 16 hexadecimal digits, the beginning of the SHA-256 of its id. What a peer has below a
prefix of keys is summed up in their number and the exclusive or of the keys: equal sets have equal sums, however
large they are. Where sums differ, those of the 16 prefixes that are one digit longer follow, or the ids themselves
once there are few: so two sets of n that differ in one broadcast take log16(n) steps. (As Merkle trees, but made of
what is there when it is asked for, since what is alive changes all the time. A peer that makes ids at will can make
sums collide; that keeps its own broadcasts from being found missing, and they are pushed anyway.)

In go keys and ids, and another's sums; out come finer sums and ids to name. State: none beyond one comparison.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import sha256

from p2pmesh.wire.fields import MAX_IDS_IN_LIST
from p2pmesh.wire.messages import DigestPart

DIGITS = "0123456789abcdef"
BEYOND = "g"
"""Comes after all digits."""
KEY_DIGITS = 16
"""Hexadecimal digits of a key: 64 bits, as a sum has."""
FEW = 32
"""So many ids are told rather than summed up once more: a frame of 1.3 kB against 400 bytes and a round-trip."""


def key_of(message_id: str) -> str:
    """The key of a broadcast."""
    return sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_DIGITS]


class Digest:
    """A set of broadcasts, by key."""

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        """Make it of keys and ids."""
        self._ids = dict(sorted(keys))
        self._keys = list(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def root(self) -> DigestPart:
        """The sum of all."""
        return self.part("")

    def part(self, prefix: str) -> DigestPart:
        """The sum of those below a prefix."""
        return _summed(prefix, self._below(prefix))

    def children(self, prefix: str) -> list[DigestPart]:
        """The sums of those below the 16 next longer prefixes."""
        return [self.part(prefix + digit) for digit in DIGITS]

    def ids(self, prefixes: Sequence[str]) -> list[str]:
        """The ids below any of these prefixes."""
        return [self._ids[key] for key in sorted({key for prefix in prefixes for key in self._below(prefix)})]

    def compared(self, parts: Sequence[DigestPart]) -> tuple[list[DigestPart], list[str], list[str]]:
        """Compare another's sums with ours.

        Returns sums that are one digit finer, prefixes to list all ids of, and prefixes below which the other has
        nothing.
        """
        finer: list[DigestPart] = []
        listed: list[str] = []
        lacking: list[str] = []
        for theirs in parts:
            ours = self.part(theirs.prefix)
            if (ours.count, ours.sum) == (theirs.count, theirs.sum):
                continue
            if theirs.count == 0:
                lacking.append(theirs.prefix)
            elif ours.count <= FEW or len(theirs.prefix) >= KEY_DIGITS:
                listed.append(theirs.prefix)
            elif len(finer) + len(DIGITS) <= MAX_IDS_IN_LIST:  # what is beyond is found the next time
                finer += self.children(theirs.prefix)
        return finer, listed, lacking

    def _below(self, prefix: str) -> list[str]:
        """The keys below a prefix, which stand side by side."""
        start = bisect_left(self._keys, prefix)
        return self._keys[start : bisect_left(self._keys, prefix + BEYOND, start)]


def _summed(prefix: str, keys: Sequence[str]) -> DigestPart:
    total = 0
    for key in keys:
        total ^= int(key, 16)
    return DigestPart(prefix=prefix, count=len(keys), sum=total.to_bytes(8, "big"))
