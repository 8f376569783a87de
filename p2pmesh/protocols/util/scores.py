"""What a peer's neighbours have been worth to it: one table of evidence for all its cores.

After gossipsub's scores (v1.1, Vyzovitis et al. 2020), of which it keeps the parts that can't be had by waiting: first
deliveries (P2), failures to deliver (P3b, with the threshold of P7), and what nobody may send (P4). What speaks against
a peer counts squared, and one failure not at all, since it may have been the network between: a bad moment is soon
outweighed, a habit is not. All of it is forgotten with a half-life, links or not, so that a peer does not come back
clean by reconnecting.

The score only ever counts against a peer: among links that may be given up, one below zero goes first. So a mesh of
honest peers is as it would be without.

State: `limit` peers, the least recently heard of forgotten first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from attrs import define

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.limits import LruTable

HALF_LIFE = 300.0
"""Seconds in which half of all evidence is forgotten: longer than it takes to come back with a clean face, and short
enough to forgive a bad night's network by the morning."""
MOST_FIRST = 20.0
"""First deliveries that count: credit for an hour's good work would pay for too much."""
FAILURE_WEIGHT = 2.0
FAULT_WEIGHT = 10.0
"""What the square of failures and faults counts against deliveries: a network fails now and then, an honest program
makes no faults. Five failures or two faults at once outweigh any credit."""
FORGIVEN = 1.0
"""Failures that count for nothing: a partition is one of each peer beyond it."""

Evidence: TypeAlias = Literal["first", "failures", "faults"]
"""Broadcasts that the peer brought before anybody else; that it fell silent, or did not send what it had announced;
and that it broke the protocol, or brought or made a broadcast that the application rejects."""


@define
class _Record:
    at: float
    first: float = 0.0
    failures: float = 0.0
    faults: float = 0.0

    def fade(self, now: float) -> None:
        left = 0.5 ** ((now - self.at) / HALF_LIFE)
        self.at = now
        self.first *= left
        self.failures *= left
        self.faults *= left

    @property
    def score(self) -> float:
        against = FAILURE_WEIGHT * max(0.0, self.failures - FORGIVEN) ** 2 + FAULT_WEIGHT * self.faults**2
        return min(self.first, MOST_FIRST) - against


class Scores:
    """The table."""

    def __init__(self, limit: int = 256) -> None:
        self._records = LruTable[_Record](limit)

    def add(self, peer: PeerId, evidence: Evidence, now: float) -> None:
        """Take note of one thing more that speaks for a peer, or against it."""
        record = self._records.get(peer) or _Record(now)
        record.fade(now)
        setattr(record, evidence, getattr(record, evidence) + 1)
        self._records.put(peer, record)

    def debt(self, peer: PeerId, now: float) -> float:
        """By how much a peer's score is below zero: 0 for most."""
        record = self._records.get(peer)
        if record is None:
            return 0.0
        record.fade(now)
        return max(0.0, -record.score)

    def snapshot(self, peers: Iterable[PeerId]) -> dict[PeerId, dict[str, float]]:
        """The scores of these peers, and what they are made of, as of the last time that each was looked at."""
        records = {peer: self._records.get(peer) or _Record(0.0) for peer in peers}
        return {
            peer: {
                "score": round(record.score, 2),
                "first": round(record.first, 2),
                "failures": round(record.failures, 2),
                "faults": round(record.faults, 2),
            }
            for peer, record in records.items()
        }
