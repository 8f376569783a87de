"""Connects: calls of the application that wait for a link to a peer of its choice."""

from __future__ import annotations

import math

from p2pmesh.errors import MeshError
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effects, Reply

PERSISTS = 15.0
"""Seconds in which a peer that turns us down for want of room is asked again: longer than it takes until one of its links is
old enough to be given up, and as long as an attempt lasts."""


class Connects:
    """The calls of one peer, each answered once by a `Reply` that goes to `out`."""

    def __init__(self) -> None:
        self._calls: dict[int, PeerId] = {}
        self._since: dict[PeerId, float] = {}
        self._awaited: dict[PeerId, float] = {}
        self.out: Effects = []

    def wait(self, call: int, peer: PeerId, now: float) -> None:
        """The call is answered when there is a link to this peer, or can be none."""
        self._calls[call] = peer
        self._since.setdefault(peer, now)

    def want(self, peer: PeerId) -> bool:
        """Whether a call waits for a link to this peer."""
        return peer in self._calls.values()

    def cancel(self, call: int) -> PeerId | None:
        """Nobody waits for this call any more. Gives its peer, if no other call wants that."""
        peer = self._calls.pop(call, None)
        if peer is None or self.want(peer):
            return None
        self._awaited.pop(peer, None)
        self._since.pop(peer, None)
        return peer

    def hold(self, peer: PeerId, until: float) -> None:
        """Calls for this peer wait until then for its own offer, or for another try, whatever becomes of ours."""
        if self.want(peer):
            self._awaited[peer] = until

    def is_held(self, peer: PeerId) -> bool:
        """Whether calls for it wait although our attempt is over."""
        return peer in self._awaited

    def may_go_on(self, peer: PeerId, now: float) -> bool:
        """Whether another try is worth it."""
        return now < self._since.get(peer, -math.inf) + PERSISTS

    def overdue(self, now: float) -> list[PeerId]:
        """Peers for whom that time is over."""
        late = [peer for peer, until in self._awaited.items() if until <= now]
        for peer in late:
            del self._awaited[peer]
        return late

    def next_overdue(self) -> float:
        """When the next of them is."""
        return min(self._awaited.values(), default=math.inf)

    def linked(self, peer: PeerId) -> None:
        """There is a link to this peer."""
        self._settle(peer, None)

    def fail(self, peer: PeerId, error: MeshError) -> None:
        """There is no link to this peer."""
        self._settle(peer, error)

    def fail_all(self, error: MeshError) -> None:
        """There won't be any link."""
        for peer in dict.fromkeys(self._calls.values()):
            self._settle(peer, error)

    def reply(self, call: int, error: MeshError | None = None) -> None:
        """Answer a call at once."""
        self.out.append(Reply(call, error=error))

    def _settle(self, peer: PeerId, error: MeshError | None) -> None:
        self._awaited.pop(peer, None)
        self._since.pop(peer, None)
        for call in [call for call, wanted in self._calls.items() if wanted == peer]:
            del self._calls[call]
            self.reply(call, error)
