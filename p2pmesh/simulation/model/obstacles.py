"""What stands between peers: partitions, and address translators that refuse strangers. Peers are numbers here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from attrs import frozen

Nat: TypeAlias = Literal["open", "cone", "symmetric"]
"""How a peer's address translator treats strangers. A peer behind a symmetric one reaches only open peers."""


@frozen
class Cut:
    """A partition: nothing passes between peers of different sides, or only from the first side to the others.

    Peers on no side are on side `rest` or, if that is None, reach all others.
    """

    sides: dict[int, int]
    one_way: bool = False
    rest: int | None = 0
    keeps_service: bool = False
    """Whether all sides reach the signaling service; else only side 0 does."""

    def stops(self, sender: int, receiver: int) -> bool:
        """Whether packets from one peer to the other get lost."""
        here, there = self.sides.get(sender, self.rest), self.sides.get(receiver, self.rest)
        if here is None or there is None or here == there:
            return False
        return not (self.one_way and here == 0)

    def spares_service(self, peer: int) -> bool:
        """Whether packets pass between a peer and the signaling service all the same."""
        return self.keeps_service or self.sides.get(peer, self.rest) in {0, None}


def without(cuts: Iterable[Cut], cut: Cut | None) -> list[Cut]:
    """These partitions without that one; with None, no partition."""
    return [other for other in cuts if cut is not None and other is not cut]


def let_link(a: Nat, b: Nat) -> bool:
    """Whether a link can be opened from behind one address translator to behind another."""
    return "symmetric" not in {a, b} or "open" in {a, b}
