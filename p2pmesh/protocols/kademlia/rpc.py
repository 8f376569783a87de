"""The DHT's requests to other peers: each ends in an answer, or in none (Maymounkov and Mazieres 2002, section 2.3).

A request goes by way of the routing core, which ends each in one `RouteSucceeded` or `RouteFailed`. The shell drops
such notices while a core is thousands of them behind (`runtime.driver`), so a request whose outcome does not come
ends here: nobody waits for ever. That says nothing about the peer.

In: requests with the purpose they have, outcomes of their routes, the time. Out: the `Route` to be taken; what became
of a request, with its purpose, which only the core understands.
State: the requests under way, each for at most `LOST_AFTER` times the time-out of a request.
"""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from attrs import asdict, define

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.notices import Route, RouteSucceeded
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import KademliaCall, KademliaRpc

P = TypeVar("P")

LOST_AFTER = 2.0
"""Times `KademliaConfig.rpc_timeout`: routing ends a route within one, and may itself be late on a busy machine."""
REPLIES: Final = {
    "PING": "PONG",
    "FIND_NODE": "FIND_NODE_REPLY",
    "FIND_VALUE": "FIND_VALUE_REPLY",
    "STORE": "STORE_REPLY",
}
"""The types of requests and of their answers: the original's names."""


class Outcome(NamedTuple, Generic[P]):
    """The end of a request."""

    number: int
    purpose: P
    peer: PeerId | None
    """The peer that answered, or did not; None if a request to whichever is nearest got no answer."""
    reply: KademliaCall | None
    """None for no answer, or a wrong one."""
    is_lost: bool = False
    """Whether nothing is known of it: the peer may have answered."""


class Slow(NamedTuple, Generic[P]):
    """A request that takes long."""

    purpose: P
    peer: PeerId


Event: TypeAlias = Outcome[P] | Slow[P]


@define
class RpcCounts:
    """Requests of ours, and what became of them."""

    sent: int = 0
    answered: int = 0
    unanswered: int = 0
    bad_replies: int = 0
    """Answers of another type or from another peer."""
    lost: int = 0
    """Requests of which routing never told the outcome."""


@define(eq=False)
class _Request(Generic[P]):
    purpose: P
    to: PeerId | None
    """None if it went to whichever peer is nearest."""
    reply_type: str
    is_hurried: bool
    """Whether it is to be told of once it takes long."""
    lost_at: float


class RpcClient(Generic[P]):
    """The requests under way, by their numbers."""

    def __init__(self, config: KademliaConfig) -> None:
        self.counts: RpcCounts = RpcCounts()
        self._config = config
        self._requests: dict[int, _Request[P]] = {}
        self._timers: Timers[int] = Timers()  # each for when its request becomes slow, and then for when it is lost
        self._last = 0

    def __len__(self) -> int:
        return len(self._requests)

    def start(
        self, purpose: P, to: PeerId, call: KademliaCall, now: float, *, nearest: bool = False, hurried: bool = False
    ) -> Route:
        """Give the route for a request to a peer, or with `nearest` to whichever is next to that id on the ring.

        Its `call` is the request's number. Where it is `hurried`, `expire` tells when it becomes slow.
        """
        self._last += 1
        self.counts.sent += 1
        is_hurried = hurried and not nearest
        lost_at = now + LOST_AFTER * self._config.rpc_timeout
        self._requests[self._last] = _Request(purpose, None if nearest else to, REPLIES[call.type], is_hurried, lost_at)
        self._timers.set(self._last, now + self._config.rpc_slow if is_hurried else lost_at)
        return Route(
            owner=Subsystem.KADEMLIA,
            call=self._last,
            to=to,
            message=KademliaRpc(message=call),
            nearest=nearest,
            answered=True,
            timeout=self._config.rpc_timeout,
            doubtful=True,
        )

    def cancel(self, number: int) -> bool:
        """Forget a request; whether it was under way."""
        return self._pop(number) is not None

    def cancel_all(self) -> list[int]:
        """Forget all requests; those that were under way."""
        return [number for number in list(self._requests) if self.cancel(number)]

    def succeeded(self, event: RouteSucceeded) -> Outcome[P] | None:
        """Take an answer; None if its request is over already."""
        request = self._pop(event.call)
        if request is None:
            return None
        reply = event.message.message if isinstance(event.message, KademliaRpc) else None
        is_from_receiver = request.to is None or request.to == event.peer
        if reply is None or reply.type != request.reply_type or reply.id != event.peer or not is_from_receiver:
            self.counts.bad_replies += 1
            return Outcome(event.call, request.purpose, request.to, None)
        self.counts.answered += 1
        return Outcome(event.call, request.purpose, event.peer, reply)

    def failed(self, number: int) -> Outcome[P] | None:
        """End a request that got no answer in its time; None if it is over already."""
        request = self._pop(number)
        if request is None:
            return None
        self.counts.unanswered += 1
        return Outcome(number, request.purpose, request.to, None)

    def next_deadline(self) -> float:
        """When a request becomes slow, or is lost."""
        return self._timers.next_deadline()

    def expire(self, now: float) -> list[Event[P]]:
        """Requests that have become slow, and those that are given up because their outcome is lost."""
        events: list[Event[P]] = []
        for number in self._timers.pop_due(now):
            request = self._requests[number]
            if request.is_hurried and request.to is not None:
                request.is_hurried = False
                self._timers.set(number, request.lost_at)
                events.append(Slow(request.purpose, request.to))
            else:
                del self._requests[number]
                self.counts.lost += 1
                events.append(Outcome(number, request.purpose, request.to, None, is_lost=True))
        return events

    def snapshot(self) -> dict[str, int]:
        return {"pending": len(self._requests), **asdict(self.counts)}

    def _pop(self, number: int) -> _Request[P] | None:
        request = self._requests.pop(number, None)
        if request is not None:
            self._timers.cancel(number)
        return request
