"""Broadcasts of ours: checked when the application asks, numbered and signed when their turn comes.

In go the application's calls; out come messages ready to be sent, in the order of the calls. Calls wait here while
the links have no room, which holds back those who make new broadcasts; whether there is room is for the core to see.
They wait, too, for others not to find that we send too many (`origins`).
State: the calls that wait, bounded by the application's tasks, and the last numbers of at most `MAX_TOPICS` topics.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from p2pmesh.errors import MeshClosed
from p2pmesh.identity import Identity
from p2pmesh.protocols.broadcast.message_store import StoredMessage
from p2pmesh.protocols.broadcast.origins import Origins
from p2pmesh.protocols.broadcast.validation import BroadcastLimits, Draft, signed
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import Publish
from p2pmesh.protocols.util.timers import Stamps
from p2pmesh.wire.messages import GossipData

MAX_TOPICS = 4096
"""Topics whose numbers are remembered; one that was silent for longer than so many others begins a new series."""


class Published(NamedTuple):
    """A broadcast whose turn has come."""

    call: int
    called: float
    """When the application asked for it."""
    message: StoredMessage


class Publisher:
    """What the application has asked us to send, and has not gone out yet."""

    def __init__(
        self, identity: Identity, limits: BroadcastLimits, wall: WallClock, network: bytes, origins: Origins
    ) -> None:
        self.published: int = 0
        """How many went out, since the start."""
        self.last: str = ""
        """The id of the last that did."""
        self._identity = identity
        self._limits = limits
        self._wall = wall
        self._network = network
        self._drafts: dict[int, Draft] = {}
        self._numbering = Numbering(Stamps(wall))
        self._pace = origins.pace(ours=True)
        self._left = False

    def __len__(self) -> int:
        return len(self._drafts)

    def add(self, event: Publish, now: float) -> None:
        """Check one and let it wait for its turn.

        Raises:
          MeshClosed: after `leave`.
          MeshError: as `BroadcastLimits.draft` says.
        """
        if self._left:
            raise MeshClosed("the mesh was left")
        self._drafts[event.call] = self._limits.draft(event, now)

    def forget(self, call: int) -> None:
        """Drop a call that nobody waits for any more: it is not sent."""
        self._drafts.pop(call, None)

    def leave(self) -> list[int]:
        """Send nothing any more. Returns the calls that have waited in vain."""
        self._left = True
        calls = list(self._drafts)
        self._drafts.clear()
        return calls

    def wait(self, now: float) -> float:
        """Seconds until the next one is in time."""
        return self._pace.wait(now)

    def next_message(self, now: float) -> Published:
        """Number and sign the one that has waited for longest."""
        self.published += 1
        call = next(iter(self._drafts))
        draft = self._drafts.pop(call)
        self._pace.take(draft.body.size, now)
        me, milliseconds = self._identity.peer_id, int(self._wall(now) * 1000)
        series, sequence = self._numbering.next(draft.topic, now)
        data = GossipData(
            id="made of the rest",
            topic=draft.topic,
            payload=draft.body.payload,
            encoding=draft.body.encoding,
            blob=draft.body.blob,
            origin_peer_id=me,
            timestamp=milliseconds,
            ttl=max(1, int(draft.ttl * 1000)),
            max_hops=draft.max_hops,
            receipts=draft.receipts,
            series=series,
            sequence=sequence,
            hops=0,
        )
        message = StoredMessage(
            data=signed(data, self._identity, self._network),
            parent=None,
            hops=0,
            since=now,
            born=now,
            ttl=draft.ttl,
            size=draft.body.size,
            relayed_by=(me,),
        )
        self.last = message.data.id
        return Published(call, draft.called, message)


class Numbering:
    """The numbers that one origin gives to its broadcasts.

    They show a subscription that wants broadcasts in order what is missing. Each topic has its own, so that a
    subscription to one is not kept waiting for another. A series is named by the time it began, by the origin's
    clock, and never twice: what belongs to a later one was sent later.
    """

    def __init__(self, stamps: Stamps) -> None:
        self._topics: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._stamps = stamps

    def __len__(self) -> int:
        return len(self._topics)

    def next(self, topic: str, now: float) -> tuple[int, int]:
        """Series and number, from 1, of the next broadcast of a topic."""
        series, number = self._topics.pop(topic, (0, 0))
        if not number:
            series = self._stamps.next(now)
        if len(self._topics) >= MAX_TOPICS:
            self._topics.popitem(last=False)
        self._topics[topic] = series, number + 1
        return series, number + 1
