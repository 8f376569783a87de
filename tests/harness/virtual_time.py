"""Bare cores in virtual time: one heap of what is due, and peers whose cores are woken at their deadlines."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import attrs

from p2pmesh.config import MeshConfig
from p2pmesh.events import Event
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Core, Effect, Effects, Emit, Reply
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import Input
from p2pmesh.simulation.discrete.network import EPOCH

NETWORK = MeshConfig().network
"""Of a mesh whose config names no room."""
MOST_STEPS = 2_000_000
"""More than any test takes in one run."""


def virtual_wall(now: float) -> float:
    return EPOCH + now


@cache
def identity(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "big"))


def remote(peer: Identity, version: int = 1) -> RemotePeer:
    """How others know it; version 0 is an original's peer."""
    return RemotePeer(peer.peer_id, peer.verified and version > 0, version, peer.public_key)


class VirtualTime:
    """What is due happens in the order of its time, and what is due at once in the order in which it was planned."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._last: dict[object, float] = {}

    def at(self, time: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), action))

    def later(self, delay: float, action: Callable[[], object]) -> None:
        self.at(self.now + delay, action)

    def in_order(self, key: object, delay: float, action: Callable[[], object]) -> None:
        """Later, but not before what was planned before it under the same key."""
        self._last[key] = time = max(self.now + delay, self._last.get(key, 0.0))
        self.at(time, action)

    def run(self, seconds: float) -> None:
        self.run_until(self.now + seconds)

    def run_until(self, end: float) -> None:
        for _ in range(MOST_STEPS):
            if not self.step(end):
                break
        else:
            raise AssertionError("it does not come to rest")
        self.now = max(self.now, end)

    def step(self, end: float = math.inf) -> bool:
        """Whether anything was due by then; the first of it has happened."""
        if not self._heap or self._heap[0][0] > end:
            return False
        time, _, action = heapq.heappop(self._heap)
        assert time >= self.now
        self.now = time
        action()
        return True


@attrs.define(eq=False)
class Node:
    """One peer's cores, and what came out of them for its application."""

    identity: Identity
    cores: dict[Subsystem, Core]
    alive: bool = True
    events: list[Event] = attrs.field(factory=list)
    replies: dict[int, Reply] = attrs.field(factory=dict)
    wakeup: float = math.inf

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]


NodeT = TypeVar("NodeT", bound=Node)


class Net(VirtualTime, Generic[NodeT]):
    """Peers of which every core's deadline is kept to the instant; `do` says what their effects do."""

    def __init__(self, now: float = 0.0) -> None:
        super().__init__(now)
        self._calls = itertools.count(1)

    def feed(self, node: NodeT, event: Input, *owners: Subsystem) -> None:
        """To these cores of a peer; to all, if none is named."""
        for owner in owners or tuple(node.cores):
            if node.alive:
                self.carry_out(node, node.cores[owner].handle(event, self.now))

    def call(self, node: NodeT, make: Callable[[int], Input], *owners: Subsystem) -> int:
        """What an application asks for, by the number that its reply will have."""
        number = next(self._calls)
        self.feed(node, make(number), *owners)
        return number

    def carry_out(self, node: NodeT, effects: Effects) -> None:
        for effect in effects:
            self.do(node, effect)
        self._schedule(node)

    def do(self, node: NodeT, effect: Effect) -> None:
        match effect:
            case Emit(event):
                node.events.append(event)
            case Reply(call):
                assert call not in node.replies, "a call ends once"
                node.replies[call] = effect
            case _:
                raise AssertionError(effect)

    def _schedule(self, node: NodeT) -> None:
        deadline = min(core.next_deadline() for core in node.cores.values())
        if deadline < node.wakeup:
            node.wakeup = deadline
            self.at(max(deadline, self.now), lambda: self._wake(node, deadline))

    def _wake(self, node: NodeT, deadline: float) -> None:
        if node.wakeup != deadline or not node.alive:
            return
        node.wakeup = math.inf
        for core in node.cores.values():
            if core.next_deadline() <= self.now:
                self.carry_out(node, core.expire(self.now))
        self._schedule(node)
