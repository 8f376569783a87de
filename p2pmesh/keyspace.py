"""The 160-bit space that peer ids and keys live in, with its two distances.

Kademlia measures by XOR (Maymounkov and Mazieres 2002, section 2.1), Chord by the way clockwise round a circle (Stoica
et al. 2001, section 4.1). Both run over the same ids: 40 lower-case hexadecimal digits, as the original project writes
them, so that comparing two ids as text and comparing them as numbers is the same thing.
"""

from __future__ import annotations

import re
from typing import NewType

from p2pmesh.errors import InvalidPeerId

ID_BITS = 160
ID_DIGITS = ID_BITS // 4
RING_SIZE = 1 << ID_BITS

PeerId = NewType("PeerId", str)
"""A peer's id: 40 lower-case hexadecimal digits. Make one with `parse_peer_id`, or take it from an `Identity`."""

_PEER_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


def is_peer_id(text: str) -> bool:
    """Whether `text` is 40 lower-case hexadecimal digits."""
    return _PEER_ID.fullmatch(text) is not None


def parse_peer_id(text: str) -> PeerId:
    """Check that `text` is a peer id.

    Raises:
      InvalidPeerId: if it is not 40 lower-case hexadecimal digits.
    """
    if not isinstance(text, str) or not is_peer_id(text):
        raise InvalidPeerId(f"a peer id is {ID_DIGITS} lower-case hexadecimal digits, not {text!r:.60}")
    return PeerId(text)


def short(peer_id: str) -> str:
    """The first eight digits, as logs and tables show an id."""
    return peer_id[:8]


def xor_distance(a: PeerId, b: PeerId) -> int:
    """Kademlia's distance: symmetric, and different for each pair seen from one id."""
    return int(a, 16) ^ int(b, 16)


def ring_distance(start: PeerId, end: PeerId) -> int:
    """Chord's distance: how far `end` lies clockwise of `start`, from 0 to `RING_SIZE - 1`."""
    return (int(end, 16) - int(start, 16)) % RING_SIZE


def between(start: PeerId, middle: PeerId, end: PeerId) -> bool:
    """Whether `middle` lies clockwise strictly between `start` and `end`.

    Where those are one id that is the whole circle but the id itself.
    """
    if start < end:
        return start < middle < end
    return middle > start or middle < end
