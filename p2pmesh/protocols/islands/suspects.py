"""Suspects: peers that fell silent, and may stand on another island now. Bookkeeping, bounded, no decisions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from attrs import define

from p2pmesh.keyspace import PeerId


@define
class Suspect:
    """A peer whose link broke without a word, or that a service names."""

    since: float
    named: bool = False
    """Whether a service has just named it: perhaps nobody else here knows of it."""
    missing: bool = False
    """Whether it was looked for, and is not at its place on our ring."""
    asked_at: float = -1.0
    """When the services were asked for it last."""
    said_dead: int = 0
    """How often they knew nothing of it."""


class Suspects:
    """The suspects of one peer, in the order in which they fell silent."""

    def __init__(self, limit: int, lasts: float) -> None:
        self._limit = limit
        self._lasts = lasts
        self._suspects: OrderedDict[PeerId, Suspect] = OrderedDict()

    def __len__(self) -> int:
        return len(self._suspects)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(list(self._suspects))

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._suspects

    def get(self, peer: PeerId) -> Suspect | None:
        return self._suspects.get(peer)

    def add(self, peer: PeerId, now: float, *, named: bool = False) -> PeerId | None:
        """Take it for a suspect. Gives the oldest one if that had to make room."""
        self._suspects.pop(peer, None)
        self._suspects[peer] = Suspect(now, named)
        return self._suspects.popitem(last=False)[0] if len(self._suspects) > self._limit else None

    def drop(self, peer: PeerId) -> Suspect | None:
        """It is none any more."""
        return self._suspects.pop(peer, None)

    def drop_old(self, now: float) -> list[PeerId]:
        """Drop those who fell silent too long ago to come back."""
        old = [peer for peer, suspect in self._suspects.items() if suspect.since <= now - self._lasts]
        for peer in old:
            del self._suspects[peer]
        return old

    def missing(self) -> list[PeerId]:
        """Those that are not on our ring, the one first for which the services were asked the longest time ago."""
        found = [(suspect.asked_at, peer) for peer, suspect in self._suspects.items() if suspect.missing]
        return [peer for _, peer in sorted(found)]
