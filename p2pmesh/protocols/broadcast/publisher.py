"""Broadcasts of ours: checked when the application asks, let out while the links can take them, numbered and signed.

Who asks waits here for room on the links, in the order of the calls: this is the backpressure on those who make new
broadcasts.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pmesh.errors import MeshClosed, MeshError
from p2pmesh.identity import Identity
from p2pmesh.protocols.broadcast.eager_push import EagerPush, tell_receipts
from p2pmesh.protocols.broadcast.limits import BroadcastLimits, Draft
from p2pmesh.protocols.broadcast.message_store import StoredMessage
from p2pmesh.protocols.broadcast.numbering import Numbering
from p2pmesh.protocols.broadcast.signature import signed
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Effect, Reply
from p2pmesh.protocols.inputs import Publish
from p2pmesh.protocols.notices import BroadcastStarted
from p2pmesh.wire.messages import GossipData


class Publisher:
    """What the application has asked us to send, and has not gone out yet."""

    def __init__(
        self,
        identity: Identity,
        rules: BroadcastLimits,
        hops: EagerPush,
        wall: WallClock,
        send: Callable[[StoredMessage, float], None],
        do: Callable[[Effect], None],
    ) -> None:
        """Make it; `send` takes each broadcast whose turn has come."""
        self.published: int = 0
        """How many went out, since the start."""
        self._identity = identity
        self._rules = rules
        self._hops = hops
        self._wall = wall
        self._send = send
        self._do = do
        self._drafts: dict[int, Draft] = {}
        self._numbering = Numbering()
        self._left = False

    def __len__(self) -> int:
        return len(self._drafts)

    def ask(self, event: Publish, now: float) -> None:
        """The application asks for one."""
        try:
            if self._left:
                raise MeshClosed("the mesh was left")
            self._drafts[event.call] = self._rules.draft(event, now)
        except MeshError as error:
            self._do(Reply(event.call, error=error))

    def forget(self, call: int) -> None:
        """Nobody waits for this one any more: it is not sent."""
        self._drafts.pop(call, None)

    def admit(self, now: float) -> None:
        """Let out what waits, in the order of the calls, while the links can take it."""
        if self._hops.are_congested(now):
            self._hops.judge(now)
        while self._drafts and not self._hops.are_congested(now):
            call = next(iter(self._drafts))
            self._originate(call, self._drafts.pop(call), now)

    def leave(self) -> None:
        """Nothing is sent any more."""
        self._left = True
        for call in self._drafts:
            self._do(Reply(call, error=MeshClosed("the mesh was left before the broadcast could be sent")))
        self._drafts.clear()

    def _originate(self, call: int, draft: Draft, now: float) -> None:
        self.published += 1
        me, milliseconds = self._identity.peer_id, int(self._wall(now) * 1000)
        series, sequence = self._numbering.next(draft.topic, milliseconds)
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
            relayed_by=(),
        )
        data = signed(data, self._identity)
        kept = StoredMessage(
            data=data,
            parent=None,
            hops=0,
            since=now,
            expires=now + draft.ttl,
            size=draft.body.size,
            relayed_by=(me,),
        )
        self._do(Reply(call, value=data.id))
        tell_receipts(self._do, kept, BroadcastStarted(data.id, data.topic, kept.expires, draft.called))
        self._send(kept, now)
