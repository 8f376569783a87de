"""Routing: one message to one peer, neighbour or not, and direct messages on top of it.

A *packet* carries a message over several links. It goes greedily round the ring (`routes`), is relayed by peers that need
keep nothing of it (`relay`), and is repeated, another way each time, until its receiver has answered or acknowledged it
(`errands`); responses walk its path back. The origin signs it (`packets`), and the receiver delivers it once. A packet with
`nearest` goes to the peer whose id is nearest to a key.

Direct messages (`directs`) go to a neighbour over its link, and to others sealed for them alone (`letters`, `sealing`).
What comes for us, `inbox` takes.
Peers of the original project acknowledge nothing: a message to them is done once it is handed to the link.

Only verified peers of our protocol relay, or are reached by packets.

Inputs: LinkUp, LinkDown, LinkSuspected, LinkRecovered, Received (Direct, DirectAck, Packet), NeighbourLinks, MeshSize, Route, CancelRoute,
RouteReply, SendDirect, CancelCall, Leave.
Effects: SendFrame, DropLink, Emit (DirectReceived), Reply, Notify (who asked: RouteSucceeded, RouteFailed; whom it concerns: RoutedReceived).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs
from attrs import define
from msgspec import structs

from p2pmesh.config import MeshConfig, RoutingConfig
from p2pmesh.errors import MeshClosed, MeshError, PeerUnreachable, RemoteProtocolError
from p2pmesh.events import Payload
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import DropLink, Effect, Effects, Notify, Reply, SendFrame
from p2pmesh.protocols.inputs import (
    CancelCall,
    Leave,
    LinkDown,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    Received,
    RemotePeer,
    SendDirect,
)
from p2pmesh.protocols.notices import (
    CancelRoute,
    Input,
    MeshSize,
    NeighbourLinks,
    Route,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.routing.contacts import Contacts
from p2pmesh.protocols.routing.direct_sender import Directs, Repeat
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable
from p2pmesh.protocols.routing.letters import Letters, refusal_of
from p2pmesh.protocols.routing.packets import REQUESTS, content, is_proven, is_returned, is_urgent, signed, trail_error
from p2pmesh.protocols.routing.receiver import Receiver
from p2pmesh.protocols.routing.relay import Relay
from p2pmesh.protocols.routing.requests import PendingRequest, RequestDue, Requests
from p2pmesh.protocols.util.rate_limiter import RateLimiter
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.codec import encode
from p2pmesh.wire.fields import SEARCH
from p2pmesh.wire.messages import PROTOCOL_VERSION, Direct, DirectAck
from p2pmesh.wire.overlay import Packet
from p2pmesh.wire.payloads import legacy_direct, pack


@define
class _Counts:
    """What became of packets that were nobody's."""

    dropped_unproven: int = 0
    bad_signature: int = 0
    dropped_loop: int = 0
    """Each of these ended the link that it came by."""
    dropped_stranger: int = 0


class RoutingCore:
    """The routes and direct messages of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._config: RoutingConfig = config.routing
        self._max_payload = config.max_payload
        self._rng = rng
        self._wall = wall
        self._timers: Timers[NamedTuple] = Timers()
        self._effects: Effects = []
        self._left = False
        self._table = ForwardingTable(self._me, self._config.least_hops)
        self._relay = Relay(self._table, self._send, self._launch)
        rate = self._config.relay_rate
        self._allowance = RateLimiter(config.max_peers + 1, rate, 2 * rate)
        self._errands = Requests(config, rng, self._table, self._timers, self._send_own)
        self._contacts = Contacts(identity, config.max_payload, self._config.remembered_routes)
        letters = Letters(config, self._me, self._contacts, self._errands, self._new_id, self._wall_ms)
        self._directs = letters.directs = Directs(config, rng, self._timers, letters, self._do, self._wall_ms)
        self._inbox = Receiver(identity, config, rng, wall, self._contacts, self._do, self._respond)
        self._counts = _Counts()
        self._now = 0.0  # the time of the input that is handled

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        self._now = now
        match event:
            case Received(peer, Packet() as packet):
                self._packet(peer, packet, now)
            case Received(peer, Direct() as message):
                link = self._directs.link_of(peer)
                if link is not None:  # it may just have ended
                    self._inbox.direct(link, message, now)
            case Received(peer, DirectAck(id=message_id)):
                self._directs.arrived(peer, message_id)
            case LinkUp(peer):
                self._link_up(peer, now)
            case LinkDown(peer, reason):
                self._link_down(peer, reason, now)
            case LinkSuspected(peer):
                self._link_silent(peer, now)
            case LinkRecovered(peer):
                self._link_heard(peer, now)
            case NeighbourLinks(peer, links):
                self._table.told(peer, links)
            case MeshSize(peers):
                self._table.mesh_size = peers
            case Route():
                self._route(event, now)
            case CancelRoute(owner, call):
                self._errands.cancel_for((owner, call))
            case RouteReply(way, message):
                self._inbox.answer(way, message)
            case SendDirect(call, peer, payload):
                self._send_direct(call, peer, payload)
            case CancelCall(call):
                self._directs.forget(call)
            case Leave():
                self._leave(now)
            case _:
                pass  # for other cores
        return self._finish(now)

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        self._now = now
        for due in self._timers.pop_due(now):
            match due:
                case Repeat() if self._directs.is_in_flight(due):
                    self._directs.repeat(due, now)
                case RequestDue(packet_id) if self._errands.get(packet_id) is not None:
                    self._errands.due(packet_id, now)
                case _:
                    pass  # what came before it has ended it
        return self._finish(now)

    def snapshot(self) -> Mapping[str, Any]:
        inbox, directs = self._inbox, self._directs
        return {
            **attrs.asdict(directs.counts, recurse=False),
            **attrs.asdict(inbox.counts, recurse=False),
            "pending": directs.pending,
            "waiting": directs.waiting,
            "seen_ids": len(inbox.seen),
            "seen_ids_forgotten": inbox.seen.forgotten,
            "packets": {
                **attrs.asdict(inbox.packets, recurse=False),
                **attrs.asdict(self._counts, recurse=False),
                **attrs.asdict(self._relay.counts, recurse=False),
                **attrs.asdict(self._errands.counts, recurse=False),
                "under_way": len(self._errands),
                "kept": self._relay.kept,
                "heard_ids": len(inbox.heard),
                "asked": len(inbox.asked),
                "contacts": len(self._contacts),
                "relays": len(self._table),
                "shunned": len(self._table.shunned),
                "hop_limit": self._table.hop_limit(),
            },
        }

    def _finish(self, now: float) -> Effects:
        self._directs.pump(now)
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _new_id(self) -> str:
        return self._rng.randbytes(16).hex()

    def _wall_ms(self, now: float) -> int:
        return int(self._wall(now) * 1000)

    # --- links --------------------------------------------------------------------------------------------------------

    def _link_up(self, peer: RemotePeer, now: float) -> None:
        before = self._table.shunned
        self._table.down(peer.peer_id)
        self._table.up(peer)
        self._directs.link_up(peer, now)
        if peer.peer_id in self._table:
            self._relay.link_up(peer.peer_id, now)
            self._errands.link_up(peer.peer_id, now)
        self._go_round(before, now)

    def _link_silent(self, peer: PeerId, now: float) -> None:
        before = self._table.shunned
        self._table.silent(peer)
        self._go_round(before, now)

    def _link_heard(self, peer: PeerId, now: float) -> None:
        before = self._table.shunned
        self._table.heard(peer)
        self._go_round(before, now)
        self._relay.unpark(now)

    def _go_round(self, before: frozenset[PeerId], now: float) -> None:
        """What those were given who are shunned now, and were not before, may be lost: it goes another way.

        While all neighbours are silent, none is shunned; once one speaks, or another comes, the others are.
        """
        for peer in sorted(self._table.shunned - before):
            self._errands.link_silent(peer)
            self._relay.link_silent(peer, now)

    def _link_down(self, peer: PeerId, reason: str, now: float) -> None:
        self._table.down(peer)
        self._allowance.forget(peer)
        self._errands.link_down(peer, now)
        self._relay.link_down(peer, now)
        self._directs.link_down(peer, reason, now)

    def _leave(self, now: float) -> None:
        self._left = True
        self._directs.fail_all("the mesh was left before the receiver acknowledged")
        self._errands.fail_all("the mesh was left", now)

    # --- what other cores ask for -------------------------------------------------------------------------------------

    def _route(self, route: Route, now: float) -> None:
        owner, call = route.owner, route.call
        if self._left or (route.to == self._me and not route.nearest):
            reason = "the mesh was left" if self._left else "that is this peer itself"
            self._do(Notify(owner, RouteFailed(call, reason)))
            return
        packet = Packet(
            id=self._new_id(),
            kind="ask" if route.answered else "tell",
            from_=self._me,
            to=route.to,
            nearest=route.nearest,
            timestamp=self._wall_ms(now),
            carry=encode(route.message),
            search=self._config.doubtful_search if route.doubtful else SEARCH,
        )

        def on_arrival(response: Packet, hops: int, _now: float) -> None:
            self._do(Notify(owner, self._outcome(route, response, hops)))

        def on_failure(reason: str, _now: float) -> None:
            self._do(Notify(owner, RouteFailed(call, reason)))

        way = () if route.way is None else tuple(reversed(route.way.path[1:]))
        errand = PendingRequest(
            packet,
            now + route.timeout,
            on_arrival,
            on_failure,
            way=way,
            avoid=route.avoid,
            asker=(owner, call),
            patience=self._config.doubtful_misses if route.doubtful else None,
        )
        self._errands.start(errand, now)

    def _outcome(self, route: Route, response: Packet, hops: int) -> RouteSucceeded | RouteFailed:
        if response.kind == "ack" and not route.answered:
            return RouteSucceeded(route.call, response.from_, hops)
        if response.kind == "answer" and route.answered:
            try:
                answer = content(response.carry)
            except RemoteProtocolError as error:
                return RouteFailed(route.call, f"a malformed answer from {short(response.from_)}: {error}")
            if answer is not None:
                return RouteSucceeded(route.call, response.from_, hops, answer)
        return RouteFailed(route.call, refusal_of(response))

    # --- direct messages of ours --------------------------------------------------------------------------------------

    def _send_direct(self, call: int, peer: PeerId, payload: Payload) -> None:
        try:
            self._check_receiver(peer)
            body = pack(payload, self._max_payload)
        except MeshError as error:
            self._do(Reply(call, error=error))
            return
        link = self._directs.link_of(peer)
        if link is not None and link.version == 0:
            self._directs.counts.sent += 1
            self._do(SendFrame((peer,), Direct(payload=legacy_direct(body))))
            self._do(Reply(call))
            return
        self._directs.add(call, peer, body)

    def _check_receiver(self, peer: PeerId) -> None:
        if self._left:
            raise MeshClosed("the mesh was left")
        if peer == self._me:
            raise PeerUnreachable("that is this peer itself: send to another")
        if self._directs.link_of(peer) is None and not self._table:
            self._directs.counts.unreachable += 1
            raise PeerUnreachable(f"no route to {short(peer)}: there is no link to anybody who could bring it")

    # --- packets out --------------------------------------------------------------------------------------------------

    def _send(self, peer: PeerId, packet: Packet) -> None:
        self._relay.sent(peer, packet, self._now)
        self._do(SendFrame((peer,), packet, urgent=is_urgent(packet)))

    def _send_own(self, peer: PeerId, packet: Packet) -> None:
        """A packet of ours: with our signature, unless the link to its receiver says as much."""
        is_theirs = peer == packet.to and not packet.nearest
        self._send(peer, packet if is_theirs or packet.kind == "miss" else signed(packet, self._identity))

    def _respond(self, response: Packet, path: tuple[PeerId, ...]) -> None:
        """A response goes back the way that its request came."""
        self._launch(structs.replace(response, route=tuple(reversed(path[1:]))))

    def _launch(self, packet: Packet) -> None:
        """A packet of ours that nobody answers."""
        ahead = self._table.along(packet.route, packet.to, ())
        if ahead is None:
            ahead = tuple(self._table.ranked(packet.to, ())[:1])
            route = packet.route if ahead != (packet.to,) else ()
        else:
            route = ahead[1:] if ahead[0] != packet.to else ()
        if ahead:
            self._send_own(ahead[0], structs.replace(packet, hops=self._table.hop_limit(), route=route))

    # --- packets in ---------------------------------------------------------------------------------------------------

    def _packet(self, sender: PeerId, packet: Packet, now: float) -> None:
        if self._left or sender not in self._table:
            self._counts.dropped_stranger += 1
            return
        if not self._allowance.take(sender, now):
            self._relay.counts.dropped_rate += 1
            return
        reason = trail_error(packet, sender, self._me)
        if reason is not None:
            self._counts.dropped_loop += 1
            self._do(DropLink(sender, reason, blame=True))
            return
        is_back = is_returned(packet, sender)
        path = packet.path if is_back else (*packet.path, sender)
        if is_back and packet.from_ == self._me:
            self._errands.returned(packet, now)
        elif self._relay.is_nearest(packet, path) if packet.nearest else packet.to == self._me:
            self._arrived(packet, path, sender, now)
        else:
            self._relay.pass_on(packet, path, now)

    def _arrived(self, packet: Packet, path: tuple[PeerId, ...], sender: PeerId, now: float) -> None:
        if packet.kind == "miss":
            self._errands.missed(packet.id, packet.attempt, now)
            return
        origin = self._origin(packet, path, sender)
        if origin is None:
            return
        if packet.kind in REQUESTS:
            self._inbox.request(packet, path, origin, now)
        else:
            self._errands.responded(packet, len(path), now)

    def _origin(self, packet: Packet, path: tuple[PeerId, ...], sender: PeerId) -> RemotePeer | None:
        """Who a packet is from, proved by its signature, or by the link if it crossed no other; None if by nothing."""
        link = self._directs.link_of(packet.from_)
        if packet.signature is None and packet.key is None:
            if link is not None and path == (sender,):
                return link
            self._counts.dropped_unproven += 1
            return None
        if not is_proven(packet):
            self._counts.bad_signature += 1
            return None
        return link or RemotePeer(packet.from_, True, PROTOCOL_VERSION, packet.key)
