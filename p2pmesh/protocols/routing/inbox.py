"""Inbox: what the application has not read yet, and who waits until it has.

A direct message is acknowledged when it is in the application's inbox, and that is bounded. One that finds no room is
turned away with a word, so that its sender waits instead of repeating it, and is asked for again when there is room.

In: messages that are taken and turned away, and how far the application has read. Out: whether there is room, and
whom to ask.
State: sizes of at most `MeshConfig.direct_inbox` messages; at most `RoutingConfig.waiting` senders.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple, TypeAlias

from p2pmesh.config import MeshConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import InboxRead
from p2pmesh.wire.fields import TrailId
from p2pmesh.wire.messages import DirectAck
from p2pmesh.wire.overlay import Packet


class OverLink(NamedTuple):
    """Tell a neighbour."""

    peer: PeerId
    answer: DirectAck


class OverRoute(NamedTuple):
    """Respond through the relays that a request came by."""

    response: Packet
    path: tuple[TrailId, ...]


Invitation: TypeAlias = OverLink | OverRoute
"""How to tell a sender that there is room for a message of its own now."""


class Inbox:
    """The room that is left in the application's inbox, and those who wait for it."""

    def __init__(self, config: MeshConfig) -> None:
        self._most = config.direct_inbox
        self._most_bytes = config.direct_inbox_bytes
        self._most_waiting = config.routing.waiting
        self._unread: deque[int] = deque()
        self._bytes = 0
        self._read = 0
        self._waiting: OrderedDict[tuple[PeerId, str], Invitation] = OrderedDict()

    def snapshot(self) -> dict[str, int]:
        """What waits in it, and for it."""
        return {"unread": len(self._unread), "unread_bytes": self._bytes, "waiting": len(self._waiting)}

    def has_room(self, size: int) -> bool:
        """Whether a message of this size may be put in: of any size if it is empty."""
        if len(self._unread) >= self._most:
            return False
        return not self._unread or self._bytes + size <= self._most_bytes

    def add(self, key: tuple[PeerId, str], size: int) -> None:
        """A message was put in."""
        self._waiting.pop(key, None)
        self._unread.append(size)
        self._bytes += size

    def turn_away(self, key: tuple[PeerId, str], invitation: Invitation) -> None:
        """There was no room for this one. Of too many that wait, the first come again by themselves."""
        if key not in self._waiting and len(self._waiting) >= self._most_waiting:
            self._waiting.popitem(last=False)
        self._waiting[key] = invitation

    def read(self, progress: InboxRead) -> list[Invitation]:
        """The application has read on. Whom there is room for now: as many as there is more of it, in their order."""
        more = progress.messages - self._read + progress.most - self._most
        for _ in range(min(progress.messages - self._read, len(self._unread))):
            self._bytes -= self._unread.popleft()
        self._read, self._most = progress.messages, progress.most
        room = min(more, self._most - len(self._unread), len(self._waiting))
        return [self._waiting.popitem(last=False)[1] for _ in range(room)]
