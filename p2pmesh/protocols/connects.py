"""Connects: calls of the application that wait for a link to a peer of its choice."""

from __future__ import annotations

from p2pmesh.errors import MeshError
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effects, Reply


class Connects:
    """The calls of one peer, each answered once by a `Reply` that goes to `out`."""

    def __init__(self) -> None:
        self._calls: dict[int, PeerId] = {}
        self.out: Effects = []

    def wait(self, call: int, peer: PeerId) -> None:
        """The call is answered when there is a link to this peer, or can be none."""
        self._calls[call] = peer

    def want(self, peer: PeerId) -> bool:
        """Whether a call waits for a link to this peer."""
        return peer in self._calls.values()

    def cancel(self, call: int) -> PeerId | None:
        """Nobody waits for this call any more. Gives its peer, if no other call wants that."""
        peer = self._calls.pop(call, None)
        return None if peer is None or self.want(peer) else peer

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
        for call in [call for call, wanted in self._calls.items() if wanted == peer]:
            del self._calls[call]
            self.reply(call, error)
