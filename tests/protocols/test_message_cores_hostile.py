"""Whatever neighbours say, in whatever order: the message cores neither raise nor grow."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import BroadcastConfig, LinkConfig, MeshConfig, ReceiptsConfig, RoutingConfig
from p2pmesh.protocols.broadcast.validation import signed
from p2pmesh.protocols.core import Notify, Reply, SendFrame
from p2pmesh.protocols.inputs import LinkDown, LinkUp, Publish, Received, SendDirect, Subsystem, WantHistory
from p2pmesh.protocols.notices import MeshSize
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.protocols.wiring import OWNERS
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import (
    Direct,
    DirectAck,
    Gossip,
    GossipAck,
    GossipData,
    GossipDigest,
    GossipGraft,
    GossipHave,
    GossipHistory,
    GossipIHave,
    GossipReceipts,
    GossipWant,
    Receipt,
)
from tests.harness.core import IDENTITIES, Net
from tests.harness.examples import examples
from tests.harness.virtual_time import NETWORK, remote

CONFIG = MeshConfig(
    max_peers=3,
    max_payload=10_000,
    links=LinkConfig(allow_unverified=True),
    broadcast=BroadcastConfig(
        window=2, backlog=3, seen_ids=6, history=4, greeting=3, publish_room=2, announced=4, trees=3
    ),
    receipts=ReceiptsConfig(table=3),
    routing=RoutingConfig(pending=3, window=2, seen_ids=4),
)
NEIGHBOURS = IDENTITIES[1:5]
numbers = st.sampled_from([0, 1, 5, 60_000, 2**53 - 1])
REAL = [
    signed(
        GossipData(
            id="",
            topic="chat",
            payload="hi",
            encoding="text",
            origin_peer_id=NEIGHBOURS[number % 2].peer_id,
            timestamp=int(EPOCH * 1000),
            ttl=600_000,
            max_hops=32,
            series=1,
            sequence=number,
            hops=0,
        ),
        NEIGHBOURS[number % 2],
        NETWORK,
    )
    for number in range(6)
]
ids = st.sampled_from([*(f"m{number}" for number in range(4)), *(data.id for data in REAL)])
many_ids = st.lists(ids, max_size=6).map(tuple)
scalars = st.sampled_from([None, True, 3, 1.5, "", "hi", "{", '{"a":1}'])
encodings = st.sampled_from([None, "text", "json"])
blobs = st.sampled_from([None, b"", b"blob"])
peers = st.sampled_from(IDENTITIES[:6])

data = st.builds(
    GossipData,
    id=ids,
    topic=st.sampled_from(["chat", "__gossip_connectivity_probe", "__gossip_connectivity_response"]),
    payload=scalars,
    encoding=encodings,
    blob=blobs,
    origin_peer_id=peers.map(lambda peer: peer.peer_id),
    signature=st.sampled_from([None, b"s" * 64]),
    key=st.sampled_from([None, NEIGHBOURS[0].public_key]),
    timestamp=st.sampled_from([0, int(EPOCH * 1000), 2**53 - 1]),
    hops=st.sampled_from([0, 1, 31, 255]),
    relayed_by=st.lists(peers.map(lambda peer: peer.peer_id), max_size=3).map(tuple),
    ttl=st.none() | numbers,
    max_hops=st.sampled_from([0, 1, 32, 255]),
    receipts=st.booleans(),
    series=st.sampled_from([None, 1]),
    sequence=st.sampled_from([None, 1, 2]),
    age=numbers,
)
by_somebody = st.builds(
    lambda made, peer: signed(made_by(made, peer), peer, NETWORK), data, st.sampled_from(NEIGHBOURS)
)


def made_by(made: GossipData, peer) -> GossipData:
    """The same by this origin, so that its signature is right."""
    fields = {name: getattr(made, name) for name in made.__struct_fields__}
    return GossipData(**{**fields, "origin_peer_id": peer.peer_id, "timestamp": int(EPOCH * 1000), "age": 0})


receipts = st.builds(Receipt, id=ids, count=st.sampled_from([0, 1, 2, 2**32 - 1]), settled=st.booleans())
messages = st.one_of(
    st.builds(Gossip, data=data),
    st.builds(Gossip, data=by_somebody),
    st.builds(Gossip, data=st.sampled_from(REAL)),
    st.builds(GossipAck, new=many_ids, had=many_ids, prune=many_ids),
    st.builds(
        GossipIHave,
        ids=many_ids,
        hops=st.sampled_from([0, 1, 31, 255]),
        age=st.sampled_from([0, 60_000, 2**53 - 1]),
        size=st.sampled_from([0, 2**32 - 1]),
        offer=st.booleans(),
    ),
    st.builds(GossipGraft, ids=many_ids),
    st.builds(
        GossipDigest,
        count=st.sampled_from([0, 1, 40, 2**32 - 1]),
        sum=st.just(bytes(8)),
        beyond=numbers,
        within=numbers,
    ),
    st.builds(
        GossipHave,
        ids=many_ids,
        within=numbers,
        beyond=numbers,
        after=st.none() | ids,
        until=st.none() | ids,
    ),
    st.builds(GossipHistory, topic=st.sampled_from([None, "chat"]), beyond=numbers, within=numbers),
    st.builds(GossipWant, ids=many_ids),
    st.builds(
        GossipReceipts,
        number=st.none() | st.integers(0, 9),
        receipts=st.lists(receipts, max_size=3).map(tuple),
        noted=st.lists(st.integers(0, 20), max_size=3).map(tuple),
        unknown=many_ids,
        epoch=st.sampled_from([None, 0, 1, 2**32 - 1]),
        ask=st.booleans(),
    ),
    st.builds(
        Direct, payload=scalars, id=st.none() | ids, encoding=encodings, blob=blobs, timestamp=st.none() | numbers
    ),
    st.builds(DirectAck, id=ids),
)
steps = st.one_of(
    st.tuples(st.sampled_from(NEIGHBOURS), messages),
    st.tuples(st.sampled_from(NEIGHBOURS), st.sampled_from(["up", "original", "down"])),
    st.tuples(st.sampled_from(NEIGHBOURS), st.sampled_from(["publish", "send", "history"])),
    st.tuples(st.none(), st.sampled_from([0.1, 1.0, 30.0, 1000.0])),
)


@examples(150)
@given(script=st.lists(steps, max_size=60), seed=st.integers(0, 1000))
def test_no_input_raises_or_passes_a_bound_and_all_that_is_sent_can_be_read(script, seed):
    net = Net(1, seed=seed, config=CONFIG)
    node = net.nodes[0]
    now, calls = 0.0, 0
    for neighbour, step in script:
        inputs: list[Any] = []
        match step:
            case float():
                until = now + step
                while (deadline := min(core.next_deadline() for core in node.cores.values())) <= until:
                    now = max(now, deadline)
                    for subsystem, core in node.cores.items():
                        _carry_on(node.cores, core.expire(now), now, subsystem)
                now = until
            case "up" | "original":
                inputs = [(subsystem, LinkUp(remote(neighbour, int(step == "up")))) for subsystem in node.cores]
            case "down":
                inputs = [(subsystem, LinkDown(neighbour.peer_id, "gone")) for subsystem in node.cores]
            case "publish":
                inputs = [(Subsystem.BROADCAST, Publish(calls := calls + 1, "chat", {"n": calls}))]
            case "history":
                inputs = [(Subsystem.BROADCAST, WantHistory("chat", 60.0)), (Subsystem.BROADCAST, MeshSize(9))]
            case "send":
                inputs = [(Subsystem.ROUTING, SendDirect(calls := calls + 1, neighbour.peer_id, b"x"))]
            case message:
                inputs = [(OWNERS[type(message)], Received(neighbour.peer_id, message))]
        for subsystem, event in inputs:
            _carry_on(node.cores, node.cores[subsystem].handle(event, now), now, subsystem)
        _check_bounds(net)


def _carry_on(cores, effects, now, subsystem) -> None:
    for effect in effects:
        if isinstance(effect, Notify):
            _carry_on(cores, cores[effect.subsystem].handle(effect.input, now), now, effect.subsystem)
        elif isinstance(effect, SendFrame):
            assert effect.peers
            for text in (False, True):
                assert decode(encode(effect.message, text=text)) is not None
        elif isinstance(effect, Reply):
            assert subsystem in {Subsystem.BROADCAST, Subsystem.ROUTING}


def _check_bounds(net: Net) -> None:
    (broadcast,), (receipts,), (routing,) = (
        net.snapshots(subsystem) for subsystem in (Subsystem.BROADCAST, Subsystem.RECEIPTS, Subsystem.ROUTING)
    )
    assert broadcast["seen"]["ids"] <= 6
    assert broadcast["store"]["messages"] <= 4
    assert broadcast["eager_push"]["in_flight"] <= 2 * len(NEIGHBOURS)
    assert broadcast["eager_push"]["backlog"] <= 3 * len(NEIGHBOURS)
    assert broadcast["graft"]["awaited"] <= 4 * len(NEIGHBOURS)
    assert broadcast["plumtree"]["trees"] <= 3
    assert receipts["own"] <= 3
    assert receipts["relayed"] <= 3
    assert routing["direct_sender"]["in_flight"] <= 3
    assert routing["receiver"]["seen_ids"] <= 4
    others = [core for subsystem, core in net.nodes[0].cores.items() if subsystem is not Subsystem.BROADCAST]
    timers = broadcast["timers"] + sum(len(timers_of(core)) for core in others)
    assert timers <= 4 * (2 * len(NEIGHBOURS) + 4 + 4 * 6 + 3) + 7 * len(NEIGHBOURS)


def timers_of(core: Any) -> Timers[Any]:
    timers: Timers[Any] = core._timers
    return timers
