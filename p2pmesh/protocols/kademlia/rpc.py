"""The DHT's requests to other peers, each with its answer or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from attrs import define

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effect, Notify
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.notices import CancelRoute, Route, RouteSucceeded
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import KademliaCall, KademliaRpc

REPLIES: Final = {
    "PING": "PONG",
    "FIND_NODE": "FIND_NODE_REPLY",
    "FIND_VALUE": "FIND_VALUE_REPLY",
    "STORE": "STORE_REPLY",
}
"""The types of requests and of their answers: the original's names."""

Outcome: TypeAlias = Callable[[PeerId | None, KademliaCall | None, float], None]
"""Called once with who answered what, and when; with None for what if nobody has."""
Slowness: TypeAlias = Callable[[PeerId, float], None]
"""Called if the answer takes long."""


@define(eq=False)
class _Request:
    to: PeerId | None
    """None if it went to whoever is nearest."""
    reply_type: str
    outcome: Outcome
    slowness: Slowness | None


@define
class RpcCounts:
    """How many requests, out and in, and what became of them."""

    rpcs_out: int = 0
    answered: int = 0
    unanswered: int = 0
    bad_replies: int = 0
    """Answers that were none."""
    unasked: int = 0
    """Replies that nobody asked for."""
    rpcs_in: int = 0
    flooded: int = 0
    """Requests above a peer's rate, not answered."""
    refused: int = 0
    """Requests that are none, and values that were not taken."""


class RpcClient:
    """Sends requests by way of the routing core, and brings each answer to who asked."""

    def __init__(self, config: KademliaConfig, counts: RpcCounts, do: Callable[[Effect], None]) -> None:
        self._config = config
        self._counts = counts
        self._do = do
        self._requests: dict[int, _Request] = {}
        self._slow: Timers[int] = Timers()
        self._last = 0

    def __len__(self) -> int:
        return len(self._requests)

    def ask(
        self,
        to: PeerId,
        call: KademliaCall,
        outcome: Outcome,
        now: float,
        *,
        nearest: bool = False,
        slowness: Slowness | None = None,
    ) -> int:
        """Ask a peer, or with `nearest` whoever is next to that id on the ring; the number can cancel it."""
        self._last += 1
        self._counts.rpcs_out += 1
        self._requests[self._last] = _Request(None if nearest else to, REPLIES[call.type], outcome, slowness)
        if slowness is not None:
            self._slow.set(self._last, now + self._config.rpc_slow)
        route = Route(
            owner=Subsystem.KADEMLIA,
            call=self._last,
            to=to,
            message=KademliaRpc(message=call),
            nearest=nearest,
            answered=True,
            timeout=self._config.rpc_timeout,
            doubtful=True,
        )
        self._do(Notify(Subsystem.ROUTING, route))
        return self._last

    def cancel(self, number: int) -> None:
        """Nobody wants to know any more."""
        if self._requests.pop(number, None) is not None:
            self._slow.cancel(number)
            self._do(Notify(Subsystem.ROUTING, CancelRoute(Subsystem.KADEMLIA, number)))

    def cancel_all(self) -> None:
        """None of them matters any more."""
        for number in list(self._requests):
            self.cancel(number)

    def arrived(self, event: RouteSucceeded, now: float) -> None:
        """An answer; one that was not asked for, or is none, is counted and otherwise ignored."""
        request = self._requests.pop(event.call, None)
        if request is None:
            return  # it was cancelled meanwhile
        self._slow.cancel(event.call)
        reply = _reply_in(event.message)
        right_peer = request.to is None or request.to == event.peer
        if reply is None or reply.type != request.reply_type or reply.id != event.peer or not right_peer:
            self._counts.bad_replies += 1
            request.outcome(request.to, None, now)
            return
        self._counts.answered += 1
        request.outcome(event.peer, reply, now)

    def unrouted(self, number: int, now: float) -> None:
        """No answer has come in its time."""
        request = self._requests.pop(number, None)
        if request is None:
            return
        self._slow.cancel(number)
        self._counts.unanswered += 1
        request.outcome(request.to, None, now)

    def next_deadline(self) -> float:
        """When a request becomes slow."""
        return self._slow.next_deadline()

    def expire(self, now: float) -> None:
        """Say of each request that became slow."""
        for number in self._slow.pop_due(now):
            request = self._requests.get(number)
            if request is not None and request.slowness is not None and request.to is not None:
                request.slowness(request.to, now)


def _reply_in(message: Message | None) -> KademliaCall | None:
    return message.message if isinstance(message, KademliaRpc) else None
