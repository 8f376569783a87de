"""Routing: one message to one peer, neighbour or not, and direct messages on top of it.

Greedy routing on a small-world ring with lookahead: Kleinberg, "The small-world phenomenon", 2000; Manku, Naor,
Wieder, "Know thy neighbor's neighbor", 2004.

A *packet* carries a message over several links. The `ForwardingTable` gives its next hops round the ring, and every
peer that it passes is a `Relay`, which has to keep nothing of it. Packets that want a response are `Requests`:
repeated, another way each time, until their receiver responds; responses walk the path back. The origin signs a
packet, and the `Receiver` delivers it once. A packet with `nearest` goes to the peer whose id is nearest to a key.
The `DirectSender` gives direct messages to a neighbour over its link, and to others as packets that are sealed for
them alone. Only members relay, or are reached by packets. Parts return what they decide; `_carry_out` does it.

Inputs: LinkUp, LinkDown, LinkSuspected, LinkRecovered, Received, NeighbourLinks, MeshSize, Route, CancelRoute,
  RouteReply, SendDirect, CancelCall, InboxRead, LinkLoad, Unsent, Leave.
Effects: SendFrame, InspectLink, DropLink, Emit (DirectReceived, Lagged), Reply, Notify (RouteSucceeded or RouteFailed
  to the asker; RoutedReceived).
Messages: `packet`, `direct`, `direct_ack`; inside packets `direct`, `contact_request`, `contact_reply`, and other
  cores' types.
Config: RoutingConfig; `max_peers`, `max_payload`; `window_bytes` and `slowest_link` of BroadcastConfig.
State: the open links; the parts name theirs, and their bounds.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import attrs
from attrs import define
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import DirectReceived
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.core import DropLink, Effects, Emit, InspectLink, Notify, Reply, SendFrame, WallClock
from p2pmesh.protocols.inputs import (
    CancelCall,
    InboxRead,
    Leave,
    LinkDown,
    LinkLoad,
    LinkRecovered,
    LinkSuspected,
    LinkUp,
    Received,
    RemotePeer,
    SendDirect,
    Unsent,
)
from p2pmesh.protocols.notices import (
    CancelRoute,
    Input,
    MeshSize,
    NeighbourLinks,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.routing.direct_sender import (
    AckTimeout,
    Cancel,
    DirectSender,
    Finish,
    Inspect,
    Start,
    Step,
    Transmit,
)
from p2pmesh.protocols.routing.forwarding_table import ForwardingTable, trail_id
from p2pmesh.protocols.routing.inbox import OverLink, OverRoute
from p2pmesh.protocols.routing.packets import (
    CARRIED_TYPES,
    REQUESTS,
    content,
    is_proven,
    is_returned,
    is_urgent,
    origin_of,
    path_to_us,
    received,
    refusal_of,
    signed,
    visited_by,
)
from p2pmesh.protocols.routing.receiver import Receiver
from p2pmesh.protocols.routing.relay import Forward, Originate, Relay
from p2pmesh.protocols.routing.requests import (
    Attempt,
    Delivery,
    GivenUp,
    Inquiry,
    PendingRequest,
    Purpose,
    Requests,
    ResponseTimeout,
)
from p2pmesh.protocols.routing.sealed_box import Contacts
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.limits import FRAME, Payment, WorkBudget
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.codec import encode
from p2pmesh.wire.fields import EVERYWHERE, SEARCH, TrailId
from p2pmesh.wire.messages import PROTOCOL_VERSION, Direct, DirectAck, Message
from p2pmesh.wire.overlay import Packet

BLOCKED = "it takes nothing from this peer"
"""What a peer that is blocked hears of its requests."""

_Decision: TypeAlias = Forward | Originate | Attempt | GivenUp | Step | None
"""What parts decide; None where nothing is to be done."""


@define
class _Counts:
    """What became of packets that came to nobody."""

    dropped_unproven: int = 0
    bad_signature: int = 0
    dropped_loop: int = 0
    dropped_stranger: int = 0
    blocked: int = 0
    """For us, of peers that the application has blocked; those of others are relayed."""


class RoutingCore:
    """The routes and direct messages of one peer."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        health: LocalHealth | None = None,
        blocked: Container[PeerId] = frozenset(),
    ) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._config = config
        self._network = config.network
        self._rng = rng
        self._wall = wall
        self._blocked = blocked
        self._timers: Timers[NamedTuple] = Timers(health)
        self._effects: Effects = []
        self._left = False
        self._links: dict[PeerId, RemotePeer] = {}
        self._table = ForwardingTable(self._me)
        self._relay = Relay(config, self._table)
        self._requests = Requests(config, rng, self._table, self._timers)
        self._contacts = Contacts(identity, config.max_payload, config.routing.remembered_routes, self._network)
        self._direct_sender = DirectSender(config, self._me, rng, wall, self._timers, self._links, self._contacts)
        self._receiver = Receiver(identity, config, rng, wall, self._contacts)
        self._nothing = WorkBudget(2 * config.max_peers, config.work.links)
        self._counts = _Counts()

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:
            case Received(peer, Packet() as packet):
                self._on_packet(peer, packet, now)
            case Received(peer, Direct() as message):
                self._on_direct(peer, message, now)
            case Received(peer, DirectAck() as answer):
                if not self._direct_sender.waits_for(peer, answer.id):
                    self._pay_for_nothing(peer, now)
                self._carry_out(self._direct_sender.answered(peer, answer, now), now)
            case LinkUp(peer):
                self._on_link_up(peer, now)
            case LinkDown(peer, reason):
                self._on_link_down(peer, reason, now)
            case LinkSuspected(peer):
                self._go_round(self._table.link_suspected(peer), now)
            case LinkRecovered(peer):
                self._go_round(self._table.link_recovered(peer), now)
            case NeighbourLinks(peer, links):
                self._table.set_links(peer, links)
                for other in links:
                    self._requests.heard(other, now)
            case MeshSize(peers):
                self._table.mesh_size = peers
            case Route():
                self._on_route(event, now)
            case CancelRoute(owner, call):
                self._requests.cancel_route(owner, call)
            case RouteReply(way, message):
                self._on_route_reply(way, message, now)
            case SendDirect(call, peer, payload):
                self._carry_out(self._direct_sender.send(call, peer, payload), now)
            case CancelCall(call):
                self._carry_out(self._direct_sender.cancel(call), now)
            case LinkLoad():
                self._carry_out(self._direct_sender.link_load(event, now), now)
            case Unsent(message=Direct()):
                self._carry_out(self._direct_sender.unsent(event), now)
            case Unsent(peer, Packet() as packet, limit=int()):
                self._on_unsent(peer, packet, now)
            case InboxRead():
                self._on_inbox_read(event, now)
            case Leave():
                self._on_leave(now)
            case _:
                pass  # for other cores
        return self._take(now)

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        for due in self._timers.pop_due(now):
            match due:
                case AckTimeout(message_id):
                    self._carry_out(self._direct_sender.timed_out(message_id, now), now)
                case ResponseTimeout(packet_id):
                    self._carry_out((self._requests.timed_out(packet_id, now),), now)
                case _:
                    raise AssertionError(due)
        return self._take(now)

    def snapshot(self) -> Mapping[str, Any]:
        table = self._table
        return {
            "links": len(self._links),
            "timers": len(self._timers),
            "contacts": len(self._contacts),
            "packets": attrs.asdict(self._counts),
            "nothing": self._nothing.snapshot(),
            "forwarding_table": {
                "relays": len(table),
                "shunned": len(table.shunned),
            },
            "relay": self._relay.snapshot(),
            "requests": self._requests.snapshot(),
            "direct_sender": self._direct_sender.snapshot(),
            "receiver": self._receiver.snapshot(),
        }

    # --- packets in ---------------------------------------------------------------------------------------------------

    def _on_packet(self, sender: PeerId, packet: Packet, now: float) -> None:
        if self._left or sender not in self._table:
            self._counts.dropped_stranger += 1
            return
        try:
            if not self._relay.admits(sender, packet, now):
                return
        except RemoteProtocolError as error:
            self._effects.append(DropLink(sender, str(error), blame=True))
            return
        packet = received(packet, sender)
        path = path_to_us(packet, sender)
        if packet.to == self._me and not packet.nearest:
            self._on_arrived(sender, packet, path, now)
        elif packet.key is None and packet.kind != "miss":
            self._counts.dropped_unproven += 1  # passed on, it would count as ours
        elif packet.from_ == self._me and is_returned(packet, sender):
            self._carry_out((self._requests.given_back(packet, now),), now)
        elif trail_id(self._me) in (visited := visited_by(packet, path)):
            self._counts.dropped_loop += 1
        elif packet.nearest and self._table.is_nearest(packet.to, path, visited):
            self._on_arrived(sender, packet, path, now)
        else:
            self._carry_out(self._relay.spread(sender, packet, path, now), now)

    def _on_arrived(self, sender: PeerId, packet: Packet, path: tuple[TrailId, ...], now: float) -> None:
        """A packet has come to us as its receiver."""
        if packet.kind == "miss":
            self._carry_out((self._requests.missed(packet.id, packet.attempt, now),), now)
            return
        if packet.key is not None and not is_proven(packet, self._network):
            self._counts.bad_signature += 1
            return
        peer = origin_of(packet)
        if peer in self._blocked:
            self._counts.blocked += 1
            if packet.kind in REQUESTS:
                self._respond(self._receiver.refusal(packet, BLOCKED), path, now)
            elif (purpose := self._requests.responded(packet, now)) is not None:
                self._give_up(purpose, "the peer that answers is blocked here", now)
            return
        if packet.kind not in REQUESTS:
            if self._requests.of_ours(packet) is not None:
                self._relay.refund(sender, packet, now)
            self._on_response(packet, now)
            return
        self._requests.heard(peer, now)
        origin = self._links.get(peer) or RemotePeer(peer, True, PROTOCOL_VERSION, packet.key)
        response, message = self._receiver.request(packet, path, origin, sender, now)
        if response is not None:
            self._respond(response, path, now)
        match message:
            case RoutedReceived():
                self._effects.append(Notify(CARRIED_TYPES[type(message.message)], message))
            case DirectReceived():
                self._effects.append(Emit(message))
            case None:
                pass

    def _on_unsent(self, peer: PeerId, packet: Packet, now: float) -> None:
        """A packet is too large for this neighbour: it goes another way, unless it is a response of ours."""
        own = self._requests.of_ours(packet)
        if own is not None:
            tried = (*packet.tried, trail_id(peer))
            self._carry_out((self._requests.given_back(structs.replace(own, tried=tried), now),), now)
        elif packet.key is not None and (packet := received(packet, peer)).from_ != self._me:
            self._carry_out((self._relay.unsent(packet, peer),), now)

    def _on_response(self, response: Packet, now: float) -> None:
        if response.kind == "ready":
            self._carry_out(self._direct_sender.ready(origin_of(response), response.id, now), now)
            return
        match self._requests.responded(response, now):
            case Route() as route:
                self._effects.append(Notify(route.owner, _outcome(route, response)))
            case Delivery() | Inquiry() as purpose:
                self._carry_out(self._direct_sender.responded(purpose, response, now), now)
            case None if response.kind == "ack":  # to an attempt before one that found the receiver busy
                self._carry_out(self._direct_sender.acknowledged(origin_of(response), response.id), now)
            case None:
                pass

    # --- direct messages in -------------------------------------------------------------------------------------------

    def _on_direct(self, peer: PeerId, message: Direct, now: float) -> None:
        link = self._links.get(peer)
        if link is None or self._left or peer in self._blocked:
            return  # the link has just ended, or is about to; and what nobody will read is not acknowledged
        try:
            answer, event = self._receiver.direct(link, message, now)
        except RemoteProtocolError as error:
            self._effects.append(DropLink(peer, str(error), blame=True))
            return
        if answer is not None:
            self._effects.append(SendFrame((peer,), answer, urgent=True))
        if event is not None:
            self._effects.append(Emit(event))
        else:
            self._pay_for_nothing(peer, now)

    def _pay_for_nothing(self, peer: PeerId, now: float) -> None:
        """A neighbour sent what brings nothing new, as repetitions do: who sends nothing else floods."""
        if self._nothing.spend(peer, FRAME, now) is Payment.TOO_MUCH:
            self._effects.append(DropLink(peer, "a flood of direct messages and acks that bring nothing", blame=True))

    def _on_inbox_read(self, progress: InboxRead, now: float) -> None:
        for invitation in self._receiver.inbox.read(progress):
            match invitation:
                case OverLink(peer, answer):
                    self._effects.append(SendFrame((peer,), answer, urgent=True))
                case OverRoute(response, path):
                    self._respond(response, path, now)

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, link: RemotePeer, now: float) -> None:
        peer = link.peer_id
        replaced, self._links[peer] = self._links.get(peer), link
        shunned = self._table.link_up(link)
        if replaced is not None:
            self._carry_out(self._direct_sender.link_down(replaced, "it was replaced by a new one", now), now)
        if peer in self._table:
            self._relay.link_up(peer)
            self._carry_out(self._requests.link_up(peer, now), now)
        self._go_round(shunned, now)

    def _on_link_down(self, peer: PeerId, reason: str, now: float) -> None:
        self._table.link_down(peer)
        link = self._links.pop(peer, None)
        self._carry_out(self._requests.link_down(peer, now), now)
        self._carry_out(self._relay.link_down(peer, now), now)
        if link is not None:
            self._carry_out(self._direct_sender.link_down(link, reason, now), now)

    def _go_round(self, shunned: list[PeerId], now: float) -> None:
        """Send what these were given, who are shunned from now on, another way: it may be lost.

        While all neighbours are suspected, none is shunned; once one recovers, or another comes, the others are.
        """
        for peer in shunned:
            self._carry_out(self._requests.link_suspected(peer), now)
            self._carry_out(self._relay.link_suspected(peer, now), now)

    # --- what other cores ask for -------------------------------------------------------------------------------------

    def _on_route(self, route: Route, now: float) -> None:
        if self._left or (route.to == self._me and not route.nearest):
            reason = "the mesh was left" if self._left else "that is this peer itself"
            self._effects.append(Notify(route.owner, RouteFailed(route.call, reason)))
            return
        packet = Packet(
            id=self._rng.randbytes(16).hex(),
            kind="ask" if route.answered else "tell",
            from_=self._me,
            to=route.to,
            nearest=route.nearest,
            timestamp=int(self._wall(now) * 1000),
            carry=encode(route.message),
            search=self._config.routing.doubtful_search if route.doubtful else SEARCH,
        )
        request = PendingRequest(
            packet,
            now + route.timeout,
            route,
            route=() if route.way is None else tuple(reversed(route.way.path[1:])),
            avoid=tuple(map(trail_id, route.avoid)),
            most_misses=self._config.routing.doubtful_misses if route.doubtful else None,
        )
        self._carry_out((self._requests.start(request, now),), now)

    def _on_route_reply(self, way: ReturnPath, message: Message, now: float) -> None:
        answer = self._receiver.answer(way, message)
        if answer is not None:
            self._respond(answer, way.path[1:], now)

    def _on_leave(self, now: float) -> None:
        self._left = True
        self._carry_out(self._direct_sender.close("the mesh was left before the receiver acknowledged"), now)
        self._carry_out(self._requests.give_up_all("the mesh was left"), now)

    # --- decisions into effects ---------------------------------------------------------------------------------------

    def _take(self, now: float) -> Effects:
        """The effects so far, and of what may be sent now that there is room."""
        if self._direct_sender.is_held_up:
            self._carry_out(self._direct_sender.pump(now), now)
        effects, self._effects = self._effects, []
        return effects

    def _carry_out(self, decisions: Iterable[_Decision], now: float) -> None:
        """Turn what the parts have decided into effects."""
        effects = self._effects
        for decision in decisions:
            match decision:
                case Forward(peer, packet):
                    self._send(peer, packet, now)
                case Attempt(first_hop, packet):
                    everywhere = packet.search == EVERYWHERE and packet.to not in self._table
                    for peer in self._table.ranked(packet.to, packet.tried) if everywhere else (first_hop,):
                        self._send_own(peer, packet, now)
                case Originate(packet):
                    self._originate(packet, now)
                case Transmit(peer, message):
                    effects.append(SendFrame((peer,), message))
                case Inspect(peer):
                    effects.append(InspectLink(peer))
                case Finish(call, error):
                    effects.append(Reply(call, error=error))
                case Start(request):
                    self._carry_out((self._requests.start(request, now),), now)
                case Cancel(packet_id):
                    self._requests.cancel(packet_id)
                case GivenUp(purpose, reason):
                    self._give_up(purpose, reason, now)
                case None:
                    pass

    def _give_up(self, purpose: Purpose, reason: str, now: float) -> None:
        match purpose:
            case Route(owner, call):
                self._effects.append(Notify(owner, RouteFailed(call, reason)))
            case Delivery() | Inquiry():
                self._carry_out(self._direct_sender.given_up(purpose, reason), now)

    def _respond(self, response: Packet, path: tuple[TrailId, ...], now: float) -> None:
        """Send a response back through the relays that its request came by."""
        self._originate(structs.replace(response, route=tuple(reversed(path))), now)

    def _originate(self, packet: Packet, now: float) -> None:
        """Send a packet of ours to which nobody responds."""
        ahead = self._table.along(packet.route, packet.to, ())
        if ahead is None and packet.kind != "miss" and (ranked := self._table.ranked(packet.to, ())):
            ahead = (ranked[0], ())
        if ahead is not None:
            self._send_own(ahead[0], structs.replace(packet, route=ahead[1]), now)

    def _send_own(self, peer: PeerId, packet: Packet, now: float) -> None:
        """Send a packet of ours: with our signature, unless the link to its receiver says as much."""
        is_receiver = peer == packet.to and not packet.nearest
        self._send(
            peer, packet if is_receiver or packet.kind == "miss" else signed(packet, self._identity, self._network), now
        )

    def _send(self, peer: PeerId, packet: Packet, now: float) -> None:
        if not self._relay.may_give(peer, now):
            return
        self._relay.sent(peer, packet, now)
        self._effects.append(SendFrame((peer,), structs.replace(packet, from_=None), urgent=is_urgent(packet)))


def _outcome(route: Route, response: Packet) -> RouteSucceeded | RouteFailed:
    """What the response to its packet means for a route."""
    if response.kind == "ack" and not route.answered:
        return RouteSucceeded(route.call, origin_of(response))
    if response.kind == "answer" and route.answered:
        try:
            answer = content(response.carry)
        except RemoteProtocolError as error:
            return RouteFailed(route.call, f"a malformed answer from {short(origin_of(response))}: {error}")
        if answer is not None:
            return RouteSucceeded(route.call, origin_of(response), answer)
    return RouteFailed(route.call, refusal_of(response), response.kind == "refusal")
