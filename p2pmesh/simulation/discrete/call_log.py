"""What applications of bare peers asked for and got, broadcasts aside: direct messages, and calls of the DHT.

hello = net.send(net.nodes[0], net.nodes[7].peer_id, "hello")
net.run(5)
assert hello.ok and hello.arrivals == 1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from p2pmesh.errors import MeshClosed, MeshError
from p2pmesh.events import DirectReceived, Payload
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Reply
from p2pmesh.protocols.inputs import SendDirect
from p2pmesh.protocols.notices import Input
from p2pmesh.simulation.discrete.kernel import Kernel, Peer
from p2pmesh.simulation.model.trace import Mark


class Caller(Peer, Protocol):
    """The peer whose application calls."""

    peer_id: PeerId
    is_leaving: bool

    def report(self, event: Input) -> None:
        """An input for its cores."""


class Call:
    """One call of a peer's application.

    Attributes:
      node: the number of the peer that called.
      at: when; `done_at`, when the call returned, None before.
      value: what it returned; `error`, what it raised.
    """

    __slots__ = ("at", "done_at", "error", "node", "value")

    def __init__(self, node: int, at: float) -> None:
        self.node: int = node
        self.at: float = at
        self.done_at: float | None = None
        self.value: Any = None
        self.error: MeshError | None = None

    def __repr__(self) -> str:
        state = "waits" if self.done_at is None else f"{self.error!r}" if self.error else "ok"
        return f"<{type(self).__name__} of n{self.node} at {self.at:.3f} s: {state}>"

    @property
    def ok(self) -> bool:
        """Whether it returned, and raised nothing."""
        return self.done_at is not None and self.error is None

    @property
    def failed(self) -> bool:
        """Whether it raised."""
        return self.error is not None

    @property
    def took(self) -> float | None:
        """Seconds until it returned."""
        return None if self.done_at is None else self.done_at - self.at


class Sending(Call):
    """One direct message.

    Attributes:
      to: the receiver.
      arrived_at: when the receiver's application first got it, None before.
      hops: links it came over, as the receiver says.
      arrivals: how often peers with the receiver's id got it: more than 1 is wrong, unless the receiver was restarted.
      got_by: the numbers of those peers.
    """

    __slots__ = ("arrivals", "arrived_at", "got_by", "hops", "to")

    def __init__(self, node: int, at: float, to: PeerId) -> None:
        super().__init__(node, at)
        self.to: PeerId = to
        self.arrived_at: float | None = None
        self.hops: int | None = None
        self.arrivals: int = 0
        self.got_by: set[int] = set()

    @property
    def arrived(self) -> bool:
        """Whether the receiver's application has it."""
        return self.arrived_at is not None


class CallLog:
    """All calls of a simulation.

    Attributes:
      sendings: the direct messages, in the order in which they were called for.
      twice: deliveries that were one too many, as (time, peer, message id).
      strangers: direct messages that a peer got, and that no application of this simulation called for.
    """

    def __init__(self, net: Kernel) -> None:
        self._net = net
        self._open: dict[int, Call] = {}
        self._last = 0
        self._by_content: dict[tuple[PeerId, PeerId, bytes], list[Sending]] = {}
        self._by_id: dict[tuple[PeerId, str], Sending] = {}
        self.sendings: list[Sending] = []
        self.twice: list[tuple[float, int, str]] = []
        self.strangers: int = 0

    def next_number(self) -> int:
        """A number for a call."""
        self._last += 1
        return self._last

    def make(self, node: Caller, request: Callable[[int], Input]) -> Call:
        """Let a peer's application call, now."""
        call = Call(node.number, self._net.now)
        self._begin(node, call, request)
        return call

    def send(self, node: Caller, to: PeerId, payload: Payload) -> Sending:
        """Let a peer's application send a direct message, now."""
        sending = Sending(node.number, self._net.now, to)
        self.sendings.append(sending)
        self._by_content.setdefault((node.peer_id, to, _content(payload)), []).append(sending)
        self._begin(node, sending, lambda call: SendDirect(call, to, payload))
        return sending

    def _begin(self, node: Caller, call: Call, request: Callable[[int], Input]) -> None:
        number = self.next_number()
        self._open[number] = call
        self._net.after(0.0, self._ask, node, (number, request(number)))

    def _ask(self, node: Caller, asked: tuple[int, Input]) -> None:
        number, request = asked
        if node.is_running and not node.is_leaving:
            self._net.mark(Mark.CALL, node.number, -1)
            node.report(request)
        else:
            self.replied(Reply(number, error=MeshClosed("this peer is gone")))

    def replied(self, reply: Reply) -> bool:
        """Note that a call returned; False if it is none of these."""
        call = self._open.pop(reply.call, None)
        if call is None:
            return False
        call.done_at, call.value, call.error = self._net.now, reply.value, reply.error
        return True

    def received(self, node: Caller, event: DirectReceived) -> None:
        """A peer's application gets a direct message."""
        net, peer = self._net, node.peer_id
        net.mark(Mark.DIRECT, node.number, -1, event.hops)
        sending = self._by_id.get((event.origin, event.message_id)) or self._unseen(peer, event)
        if sending is None:
            self.strangers += 1
            return
        self._by_id[event.origin, event.message_id] = sending
        sending.arrivals += 1
        if node.number in sending.got_by:
            self.twice.append((net.now, node.number, event.message_id))
        sending.got_by.add(node.number)
        if sending.arrived_at is None:
            sending.arrived_at, sending.hops = net.now, event.hops

    def _unseen(self, receiver: PeerId, event: DirectReceived) -> Sending | None:
        """The first message of this content that has not arrived; if all have, the last, which comes under a new id."""
        alike = self._by_content.get((event.origin, receiver, _content(event.payload)), [])
        return next((sending for sending in alike if not sending.arrived), alike[-1] if alike else None)


def _content(payload: Payload) -> bytes:
    return b"b" + payload if isinstance(payload, bytes) else b"j" + msgspec.json.encode(payload, order="sorted")


__all__ = ["Call", "CallLog", "Sending"]
