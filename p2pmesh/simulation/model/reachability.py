"""Which peers reach which: partitions of any shape, frozen peers, and address translators that refuse strangers."""

from __future__ import annotations

from collections.abc import Iterable

from p2pmesh.keyspace import PeerId
from p2pmesh.simulation.model.obstacles import Cut, Nat, let_link, without


class Reachability:
    """What stands between peers, all of it at the same time. Cuts name peers by their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[PeerId, int] = {}
        self._cuts: list[Cut] = []
        self._frozen: set[PeerId] = set()
        self._nats: dict[PeerId, Nat] = {}

    def number(self, peer: PeerId, number: int | None = None) -> int:
        """The number of a peer: this one from now on, or the one it has, or the next."""
        if number is not None:
            self._numbers[peer] = number
        return self._numbers.setdefault(peer, len(self._numbers))

    def split(self, sides: Iterable[Iterable[PeerId]], *, one_way: bool, keeps_service: bool) -> Cut:
        """A partition between these sides; peers on none of them are one more."""
        side_of = {self.number(peer): number for number, side in enumerate(sides) for peer in side}
        return Cut(side_of, one_way=one_way, rest=-1, keeps_service=keeps_service)

    def between(self, some: Iterable[PeerId], others: Iterable[PeerId], *, one_way: bool) -> Cut:
        """A partition between these two groups; all other peers reach both."""
        side_of = {self.number(peer): 1 for peer in others} | {self.number(peer): 0 for peer in some}
        return Cut(side_of, one_way=one_way, rest=None, keeps_service=True)

    def add(self, cut: Cut) -> None:
        self._cuts.append(cut)

    def remove(self, cut: Cut | None) -> None:
        """End this cut, or with None all of them."""
        self._cuts = without(self._cuts, cut)

    def freeze(self, peer: PeerId) -> None:
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self._frozen.discard(peer)

    def behind(self, peer: PeerId, nat: Nat) -> None:
        """Put a peer behind an address translator of this kind."""
        self._nats[peer] = nat

    def passes(self, source: PeerId, target: PeerId) -> bool:
        """Whether a packet from one peer gets to another."""
        if self._frozen and (source in self._frozen or target in self._frozen):
            return False
        if not self._cuts:
            return True
        here, there = self._numbers[source], self._numbers[target]
        return not any(cut.stops(here, there) for cut in self._cuts)

    def can_link(self, a: PeerId, b: PeerId) -> bool:
        """Whether a link can be opened: packets must pass both ways, and not be refused as a stranger's."""
        if not (self.passes(a, b) and self.passes(b, a)):
            return False
        return let_link(self._nats.get(a, "open"), self._nats.get(b, "open"))

    def reaches_service(self, peer: PeerId) -> bool:
        """Whether packets pass between a peer and the signaling service."""
        if peer in self._frozen:
            return False
        number = self.number(peer)
        return all(cut.spares_service(number) for cut in self._cuts)
