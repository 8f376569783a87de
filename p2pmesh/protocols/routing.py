"""Direct messages: from one peer to one other, acknowledged by the receiver, delivered at most once.

To neighbours only: a peer that is in the mesh but has no link to us is `NotANeighbour`. A message is repeated until the
receiver's ack comes, the link goes, or the retries end; the receiver forgets ids long after its sender has stopped.
On each link there is a window of unacknowledged messages, and a bound on all of them; what is above waits, and so does
its caller.

Peers of the original project acknowledge nothing: a message to them is done once it is handed to the link.

Inputs: LinkUp, LinkDown, Received (Direct, DirectAck), PeersFound, PeerGone, SendDirect, Forget, Leave.
Effects: SendFrame, DropLink, Emit (DirectReceived), Reply.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import define, field

from p2pmesh.config import MeshConfig, RoutingConfig
from p2pmesh.errors import MeshClosed, MeshError, NotANeighbour, PeerUnreachable, RemoteProtocolError
from p2pmesh.events import DirectReceived, Payload
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import (
    DropLink,
    Effect,
    Effects,
    Emit,
    Forget,
    Input,
    Leave,
    LinkDown,
    LinkUp,
    PeerGone,
    PeersFound,
    Received,
    RemotePeer,
    Reply,
    SendDirect,
    SendFrame,
    WallClock,
)
from p2pmesh.protocols.seen import SeenTable
from p2pmesh.protocols.timers import Backoff, Timers
from p2pmesh.wire.messages import Direct, DirectAck, Message
from p2pmesh.wire.payloads import Body, legacy_direct, pack, unpack

REMEMBERED = 600.0
"""Seconds that a direct message's id is remembered: far beyond what a sender's retries take."""


@define(eq=False)
class _Pending:
    """A direct message of ours that its receiver has not acknowledged yet."""

    call: int
    message: Direct
    size: int
    attempts: int = 0


@define(eq=False)
class _Route:
    """The way to one peer: as yet, a link."""

    peer: RemotePeer
    waiting: OrderedDict[int, Body] = field(factory=OrderedDict)
    """Calls that wait for the window."""
    flight: dict[str, _Pending] = field(factory=dict)
    flight_bytes: int = 0


@define
class _Counts:
    sent: int = 0
    retried: int = 0
    acked: int = 0
    unreachable: int = 0
    received: int = 0
    duplicates: int = 0
    blamed: int = 0


class RoutingCore:
    """The direct messages of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._me = identity.peer_id
        self._config: RoutingConfig = config.routing
        self._max_payload = config.max_payload
        self._most_known = config.topology.known_peers
        # Both are said of a link, not of what it carries: what is queued is not lost.
        self._window_bytes = config.broadcast.window_bytes
        self._slowest_link = config.broadcast.slowest_link
        self._rng = rng
        self._wall = wall
        self._backoff = Backoff(self._config.ack_timeout, REMEMBERED / 4)
        self._routes: dict[PeerId, _Route] = {}
        self._known: OrderedDict[PeerId, None] = OrderedDict()  # said to be in the mesh
        self._seen: SeenTable[tuple[PeerId, str], None] = SeenTable(self._config.seen_ids)
        self._pending = 0
        self._timers: Timers[tuple[PeerId, str]] = Timers()
        self._counts = _Counts()
        self._left = False
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:
            case LinkUp(peer):
                self._link_up(peer)
            case LinkDown(peer, reason):
                self._link_down(peer, reason)
            case Received(peer, message):
                self._received(peer, message, now)
            case PeersFound(peers):
                self._found(peers)
            case PeerGone(peer):
                self._known.pop(peer, None)
            case SendDirect(call, peer, payload):
                self._send_direct(call, peer, payload, now)
            case Forget(call):
                self._forget(call)
            case Leave():
                self._leave()
            case _:
                pass  # for other cores
        return self._finish(now)

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for peer, message_id in self._timers.pop_due(now):
            self._retry(self._routes[peer], message_id, now)
        return self._finish(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            **attrs.asdict(self._counts),
            "pending": self._pending,
            "waiting": sum(len(route.waiting) for route in self._routes.values()),
            "known": len(self._known),
            "seen_ids": len(self._seen),
            "seen_ids_forgotten": self._seen.forgotten,
        }

    def _finish(self, now: float) -> Effects:
        for route in self._routes.values():
            self._pump(route, now)
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    # --- links and who is known ---------------------------------------------------------------------------------------

    def _link_up(self, peer: RemotePeer) -> None:
        self._link_down(peer.peer_id, "it was replaced by a new one")
        self._routes[peer.peer_id] = _Route(peer)

    def _link_down(self, peer: PeerId, reason: str) -> None:
        route = self._routes.pop(peer, None)
        if route is None:
            return
        self._known.pop(peer, None)  # it may have left altogether; who sees it will say so
        self._cut_off(route, PeerUnreachable, f"the link to {short(peer)} closed before it acknowledged: {reason}")

    def _cut_off(self, route: _Route, error: type[MeshError], reason: str) -> None:
        """Fail all that is open, each call with an error of its own."""
        for message_id in tuple(route.flight):
            self._done(route, message_id, error(reason))
        for call in route.waiting:
            self._counts.unreachable += 1
            self._do(Reply(call, error=error(reason)))
        route.waiting.clear()

    def _found(self, peers: Sequence[PeerId]) -> None:
        for peer in peers:
            self._known[peer] = None
            self._known.move_to_end(peer)
        while len(self._known) > self._most_known:
            self._known.popitem(last=False)

    # --- messages of ours ---------------------------------------------------------------------------------------------

    def _send_direct(self, call: int, peer: PeerId, payload: Payload, now: float) -> None:
        try:
            route = self._route_to(peer)
            body = pack(payload, self._max_payload)
        except MeshError as error:
            self._do(Reply(call, error=error))
            return
        if route.peer.version == 0:
            self._counts.sent += 1
            self._do(SendFrame((peer,), Direct(payload=legacy_direct(body))))
            self._do(Reply(call))
            return
        route.waiting[call] = body

    def _route_to(self, peer: PeerId) -> _Route:
        if self._left:
            raise MeshClosed("the mesh was left")
        if peer == self._me:
            raise PeerUnreachable("that is this peer itself: send to another")
        route = self._routes.get(peer)
        if route is not None:
            return route
        self._counts.unreachable += 1
        if peer in self._known:
            raise NotANeighbour(f"{short(peer)} is in the mesh, but no link leads to it")
        raise PeerUnreachable(f"no peer {short(peer)} is known: it has left, or was never in this mesh")

    def _pump(self, route: _Route, now: float) -> None:
        """Let out what waits while there is room."""
        while route.waiting and self._has_room(route, next(iter(route.waiting.values())).size):
            call, body = route.waiting.popitem(last=False)
            message = Direct(
                id=self._rng.randbytes(16).hex(),
                payload=body.payload,
                encoding=body.encoding,
                blob=body.blob,
                timestamp=int(self._wall(now) * 1000),
            )
            route.flight[str(message.id)] = _Pending(call, message, body.size)
            route.flight_bytes += body.size
            self._pending += 1
            self._counts.sent += 1
            self._transmit(route, str(message.id), now)

    def _has_room(self, route: _Route, size: int) -> bool:
        if len(route.flight) >= self._config.window or self._pending >= self._config.pending:
            return False
        return not route.flight or route.flight_bytes + size <= self._window_bytes

    def _transmit(self, route: _Route, message_id: str, now: float) -> None:
        pending = route.flight[message_id]
        pending.attempts += 1
        wait = self._backoff.delay(pending.attempts, self._rng) + route.flight_bytes / self._slowest_link
        self._timers.set((route.peer.peer_id, message_id), now + wait)
        self._do(SendFrame((route.peer.peer_id,), pending.message))

    def _retry(self, route: _Route, message_id: str, now: float) -> None:
        attempts = route.flight[message_id].attempts
        if attempts > self._config.retries:
            peer = short(route.peer.peer_id)
            self._done(route, message_id, PeerUnreachable(f"{peer} has not acknowledged any of {attempts} attempts"))
            return
        self._counts.retried += 1
        self._transmit(route, message_id, now)

    def _done(self, route: _Route, message_id: str, error: MeshError | None) -> None:
        pending = self._drop(route, message_id)
        if error is None:
            self._counts.acked += 1
        else:
            self._counts.unreachable += 1
        self._do(Reply(pending.call, error=error))

    def _drop(self, route: _Route, message_id: str) -> _Pending:
        pending = route.flight.pop(message_id)
        route.flight_bytes -= pending.size
        self._pending -= 1
        self._timers.cancel((route.peer.peer_id, message_id))
        return pending

    def _forget(self, call: int) -> None:
        """Nobody waits any more: it is not sent, or not again."""
        for route in self._routes.values():
            route.waiting.pop(call, None)
            for message_id in [key for key, pending in route.flight.items() if pending.call == call]:
                self._drop(route, message_id)

    def _leave(self) -> None:
        self._left = True
        for route in self._routes.values():
            self._cut_off(route, MeshClosed, "the mesh was left before the receiver acknowledged")

    # --- what neighbours send -----------------------------------------------------------------------------------------

    def _received(self, peer: PeerId, message: Message, now: float) -> None:
        route = self._routes.get(peer)
        if route is None:
            return  # its link has just ended
        match message:
            case Direct() if route.peer.version == 0:
                self._deliver(route.peer, message, message.payload, now)
            case Direct():
                self._direct(route.peer, message, now)
            case DirectAck(id=message_id) if message_id in route.flight:
                self._done(route, message_id, None)
            case _:
                pass

    def _direct(self, sender: RemotePeer, message: Direct, now: float) -> None:
        if message.id is None:
            self._blame(sender, "a direct message without an id")
            return
        key = (sender.peer_id, message.id)
        if key in self._seen:
            self._counts.duplicates += 1
            self._ack(sender, message.id)
            return
        try:
            payload = unpack(message.payload, message.encoding, message.blob)
        except RemoteProtocolError as error:
            self._blame(sender, str(error))
            return
        self._seen.add(key, None, now + REMEMBERED, now)
        self._ack(sender, message.id)
        self._deliver(sender, message, payload, now)

    def _deliver(self, sender: RemotePeer, message: Direct, payload: Payload, now: float) -> None:
        self._counts.received += 1
        timestamp = self._wall(now) if message.timestamp is None else message.timestamp / 1000
        message_id = message.id or self._rng.randbytes(16).hex()
        self._do(Emit(DirectReceived(sender.peer_id, payload, message_id, timestamp, sender.verified)))

    def _ack(self, sender: RemotePeer, message_id: str) -> None:
        self._do(SendFrame((sender.peer_id,), DirectAck(id=message_id), urgent=True))

    def _blame(self, sender: RemotePeer, reason: str) -> None:
        self._counts.blamed += 1
        self._do(DropLink(sender.peer_id, reason, blame=True))
