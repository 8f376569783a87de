"""The DHT's requests to other peers: each ends in an answer, or in none (Maymounkov and Mazieres 2002, section 2.3).

A request goes by way of the routing core, which ends each in one `RouteSucceeded` or `RouteFailed`. The shell drops
such notices while a core is thousands of them behind (`runtime.driver`), so a request whose outcome does not come
ends by itself (`CallTable`). That says nothing about the peer.

In: requests with the purpose they have, outcomes of their routes, the time. Out: the `Route` to be taken; what became
of a request, with its purpose, which only the core understands.
State: the requests under way, as many as the core has lookups and values to store for.
"""

from __future__ import annotations

import math
from typing import Final, Generic, NamedTuple, TypeVar

from attrs import asdict, define

from p2pmesh.config import KademliaConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.notices import Route, RouteFailed, RouteSucceeded
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.window import CallTable
from p2pmesh.wire.overlay import FindNode, FindValue, NodesFound, StoreValue, ValueStored

P = TypeVar("P")

Request = FindNode | FindValue | StoreValue
Answer = NodesFound | ValueStored

ANSWERS: Final[dict[type[Request], type[Answer]]] = {
    FindNode: NodesFound,
    FindValue: NodesFound,
    StoreValue: ValueStored,
}


class Outcome(NamedTuple, Generic[P]):
    """The end of a request."""

    number: int
    purpose: P
    peer: PeerId | None
    """The peer that answered, or did not; None if a request to whichever is nearest got no answer."""
    answer: Answer | None
    """None for no answer, or a wrong one."""
    is_lost: bool = False
    """Whether nothing is known of it: the peer may have answered."""
    refusal: str = ""
    """Why the peer would not have it, now or later."""


@define
class RpcCounts:
    """Requests of ours, and what became of them."""

    sent: int = 0
    answered: int = 0
    unanswered: int = 0
    bad_replies: int = 0
    """Answers of another type."""


class _Pending(NamedTuple, Generic[P]):
    purpose: P
    to: PeerId | None
    """None if it went to whichever peer is nearest."""
    answer: type[Answer]


class RpcClient(Generic[P]):
    """The requests under way, by their numbers."""

    def __init__(self, config: KademliaConfig, health: LocalHealth | None = None) -> None:
        self.counts: RpcCounts = RpcCounts()
        self._timeout = config.rpc_timeout
        self._pending = CallTable[_Pending[P]](math.inf, config.rpc_timeout, health)

    def start(self, purpose: P, to: PeerId, request: Request, now: float, *, nearest: bool = False) -> Route:
        """Give the route for a request to a peer, or with `nearest` to whichever is next to that id on the ring.

        Its `call` is the request's number.
        """
        self.counts.sent += 1
        number = self._pending.open(_Pending(purpose, None if nearest else to, ANSWERS[type(request)]), now)
        return Route(
            owner=Subsystem.KADEMLIA,
            call=number,
            to=to,
            message=request,
            nearest=nearest,
            answered=True,
            timeout=self._timeout,
            doubtful=True,
        )

    def cancel(self, number: int) -> bool:
        """Forget a request; whether it was under way."""
        return self._pending.close(number) is not None

    def succeeded(self, event: RouteSucceeded) -> Outcome[P] | None:
        """Take an answer; None if its request is over already."""
        pending = self._pending.close(event.call)
        if pending is None:
            return None
        answer = event.message
        if not isinstance(answer, NodesFound | ValueStored) or not isinstance(answer, pending.answer):
            self.counts.bad_replies += 1
            return Outcome(event.call, pending.purpose, pending.to, None)
        self.counts.answered += 1
        return Outcome(event.call, pending.purpose, event.peer, answer)

    def failed(self, event: RouteFailed) -> Outcome[P] | None:
        """End a request that got no answer in its time; None if it is over already."""
        number, refusal = event.call, event.reason if event.is_refusal else ""
        pending = self._pending.close(number)
        if pending is None:
            return None
        self.counts.unanswered += 1
        return Outcome(number, pending.purpose, pending.to, None, refusal=refusal)

    def next_deadline(self) -> float:
        """When a request is lost."""
        return self._pending.next_deadline()

    def expire(self, now: float) -> list[Outcome[P]]:
        """Requests that are given up because their outcome is lost."""
        return [
            Outcome(number, pending.purpose, pending.to, None, is_lost=True)
            for number, pending in self._pending.pop_overdue(now).items()
        ]

    def snapshot(self) -> dict[str, int]:
        return {"pending": len(self._pending), "lost": self._pending.lost, **asdict(self.counts)}
