"""Whatever packets neighbours send, in whatever order: the routing core neither raises nor grows, and what it sends
can be read."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2pmesh.config import MeshConfig, RoutingConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import DropLink, Notify, SendFrame
from p2pmesh.protocols.inputs import (
    InboxRead,
    LinkDown,
    LinkLoad,
    LinkUp,
    Received,
    RemotePeer,
    SendDirect,
    Subsystem,
    Unsent,
)
from p2pmesh.protocols.notices import (
    MeshSize,
    NeighbourLinks,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.routing.forwarding_table import trail_id
from p2pmesh.protocols.routing.packets import signed
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.protocols.routing.sealed_box import contact_of, seal
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Direct, DirectAck, Goodbye, Message
from p2pmesh.wire.overlay import ContactReply, ContactRequest, Packet
from tests.harness.examples import examples
from tests.harness.routing import RouteNet, counted, rpc, small_world
from tests.harness.virtual_time import NETWORK, identity

CONFIG = MeshConfig(
    max_peers=4,
    max_payload=1000,
    routing=RoutingConfig(pending=3, window=2, seen_ids=4, requests=5, remembered_routes=3, waiting=3),
    direct_inbox=5,
)
BOUNDS = {
    "direct_sender.in_flight": 3,
    "receiver.seen_ids": 4,
    "receiver.inbox.unread": 5,
    "receiver.inbox.waiting": 3,
    "receiver.questions": 3,
    "requests.in_flight": 5,
    "contacts": 3,
    "links": 4,
    "forwarding_table.relays": 4,
    "relay.buffers": 4,
    "relay.rates": 4,
    "timers": 3 + 5,
}
PEOPLE = [identity(number) for number in range(8)]
ME, NEIGHBOURS = PEOPLE[0], PEOPLE[1:5]
BOX = ME.box_key().public_key().public_bytes_raw()

people = st.sampled_from(PEOPLE)
ids = people.map(lambda one: one.peer_id)
names = st.sampled_from([f"m{number}" for number in range(6)])
trails = st.lists(ids.map(trail_id), max_size=5, unique=True).map(tuple)
links = st.lists(ids, max_size=5, unique=True).map(tuple)
inner: st.SearchStrategy[Message] = st.one_of(
    st.builds(rpc, names, ids),
    st.builds(Direct, id=names, payload=st.just("x"), encoding=st.sampled_from([None, "text", "json"])),
    people.map(lambda one: ContactRequest(contact=contact_of(one, 1000, 1, NETWORK))),
    people.map(lambda one: ContactReply(contact=contact_of(one, 1000, 1, NETWORK))),
    st.just(Goodbye(reason="")),
)


@st.composite
def packets(draw: Any) -> Packet:
    origin = draw(people)
    packet_id = draw(names)
    sealed = draw(st.booleans())
    carry = draw(st.one_of(inner.map(encode), st.binary(max_size=40)))
    if sealed and draw(st.booleans()):
        carry = seal(carry, BOX, origin.peer_id, ME.peer_id, packet_id, NETWORK)
    packet = Packet(
        id=packet_id,
        kind=draw(st.sampled_from(["tell", "ask", "ack", "answer", "refusal", "miss", "busy", "ready"])),
        from_=origin.peer_id,
        to=draw(st.one_of(st.just(ME.peer_id), ids)),
        nearest=draw(st.booleans()),
        timestamp=draw(st.sampled_from([0, int(EPOCH * 1000)])),
        sealed=sealed,
        carry=carry,
        attempt=draw(st.sampled_from([0, 1, 255])),
        path=draw(trails),
        tried=draw(trails),
        route=draw(trails),
    )
    if draw(st.booleans()):
        packet = structs.replace(packet, path=packet.path[:3], tried=())
    return signed(packet, origin, NETWORK) if draw(st.booleans()) else packet


OUTCOMES = ("taken", "busy", "ready", "refused")
neighbours = st.sampled_from(NEIGHBOURS)
steps = st.one_of(
    st.tuples(neighbours, packets()),
    st.tuples(neighbours, packets()),
    st.tuples(
        neighbours,
        st.sampled_from([
            "up",
            "original",
            "down",
            "send",
            "send",
            "route",
            "near",
            *OUTCOMES,
            "load",
            "empty",
            "unsent",
            "too large",
            "read",
        ]),
    ),
    st.tuples(neighbours, st.sampled_from([*OUTCOMES, "send", "load", "empty", "unsent", "too large", "read"])),
    st.tuples(neighbours, links),
    st.tuples(st.none(), st.sampled_from([0.1, 1.0, 30.0, 1000.0])),
)


class Shell:
    """Carries out what the core wants, as far as it concerns the core itself, and remembers calls that are open."""

    def __init__(self, seed: int) -> None:
        self.core = RoutingCore(ME, CONFIG, random.Random(seed), lambda now: EPOCH + now)
        self.now = 0.0
        self.calls = 0
        self.open: set[int] = set()
        self.answered: set[int] = set()
        self.last = Direct(id="none")

    def do(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case SendFrame(peers, message):
                    assert peers
                    assert decode(encode(message)) == message
                    if isinstance(message, Direct):
                        self.last = message
                    elif isinstance(message, Packet) and message.kind == "tell":
                        self.last = Direct(id=message.id)
                case Notify(_, RoutedReceived(_, _, way)):
                    self.do(self.core.handle(RouteReply(way, rpc("yes", ME.peer_id)), self.now))
                case Notify(_, RouteSucceeded() | RouteFailed() as outcome):
                    assert outcome.call in self.open
                    self.open.remove(outcome.call)
                case DropLink(peer):
                    self.do(self.core.handle(LinkDown(peer, "blamed"), self.now))
                case _:
                    pass

    def wait(self, until: float) -> None:
        while (deadline := self.core.next_deadline()) <= until:
            self.now = max(self.now, deadline)
            self.do(self.core.expire(self.now))
        self.now = until

    def input_of(self, neighbour: Any, step: Any) -> Any:
        match step:
            case "up" | "original":
                return LinkUp(RemotePeer(neighbour.peer_id, step == "up", int(step == "up"), neighbour.public_key))
            case "taken" | "busy" | "ready" | "refused":
                return Received(neighbour.peer_id, DirectAck(id=self.last.id or "none", outcome=step))
            case "load" | "empty":
                return LinkLoad(neighbour.peer_id, 0, 100 * (step == "load"), self.calls)
            case "unsent" | "too large":
                return Unsent(neighbour.peer_id, self.last, 100, None if step == "unsent" else 10)
            case "read":
                return InboxRead(self.calls, self.calls % 3)
            case "down":
                return LinkDown(neighbour.peer_id, "gone")
            case "send":
                self.calls += 1
                return SendDirect(10_000 + self.calls, neighbour.peer_id, "x")
            case "route" | "near":
                self.calls += 1
                self.open.add(self.calls)
                return Route(
                    Subsystem.OVERLAY,
                    self.calls,
                    neighbour.peer_id,
                    rpc("hi", ME.peer_id),
                    nearest=step == "near",
                    answered=self.calls % 2 == 0,
                )
            case tuple():
                return NeighbourLinks(neighbour.peer_id, step)
            case packet:
                return Received(neighbour.peer_id, packet)


@examples(150)
@given(script=st.lists(steps, max_size=40), seed=st.integers(0, 1000))
def test_no_packet_raises_or_passes_a_bound_and_every_route_ends_once(script, seed):
    shell = Shell(seed)
    shell.do(shell.core.handle(MeshSize(8), 0.0))
    for neighbour in NEIGHBOURS[:2]:
        shell.do(shell.core.handle(shell.input_of(neighbour, "up"), 0.0))
    for neighbour, step in script:
        if isinstance(step, float):
            shell.wait(shell.now + step)
        else:
            shell.do(shell.core.handle(shell.input_of(neighbour, step), shell.now))
        for path, bound in BOUNDS.items():
            assert counted(shell.core, path) <= bound, path
    shell.wait(shell.now + 1000)
    assert shell.open == set()
    for path in ("direct_sender.in_flight", "requests.in_flight", "timers"):
        assert counted(shell.core, path) == 0, path


def test_a_peer_that_says_it_is_linked_to_everybody_is_no_obstacle():
    """It draws packets to itself and drops them: they find another way."""
    net = RouteNet(30, small_world(30, 4))
    liar = net.nodes[15]
    everybody: tuple[PeerId, ...] = tuple(node.id for node in net.nodes)
    for peer in liar.links:
        net.feed(net.by_id[peer], NeighbourLinks(liar.id, everybody))
    net.meddle = lambda sender, _receiver, message: None if sender is liar else message
    calls = [(a, net.route(a, net.nodes[(a + 7) % 30].id, timeout=30)) for a in range(30)]
    net.run(40)
    failed = [a for a, call in calls if not isinstance(net.nodes[a].outcomes[call], RouteSucceeded)]
    assert set(failed) <= {15, 15 - 7}


def test_who_brought_a_request_is_not_what_that_says_of_its_way():
    core = RoutingCore(ME, MeshConfig(max_peers=4), random.Random(1), lambda now: EPOCH + now)
    neighbour, other = NEIGHBOURS[:2]
    core.handle(LinkUp(RemotePeer(neighbour.peer_id, True, 1)), 0.0)
    framed, own = (trail_id(other.peer_id),), (trail_id(neighbour.peer_id),)
    told = []
    for number, (path, tried, by) in enumerate([
        ((), (), neighbour), (framed, (), neighbour), (framed, own, neighbour), ((), (), other), (framed, own, other),
    ]):  # fmt: skip
        packet = Packet(
            id=f"{number}", kind="ask", from_=by.peer_id, to=ME.peer_id, timestamp=int(EPOCH * 1000),
            carry=encode(rpc("x", by.peer_id)), path=path, tried=tried,
        )  # fmt: skip
        effects = core.handle(Received(neighbour.peer_id, signed(packet, by, NETWORK)), 0.0)
        told += [effect.input for effect in effects if isinstance(effect, Notify)]
    assert [one.way.bringer for one in told if isinstance(one, RoutedReceived)] == [neighbour.peer_id] * 5
