"""Payloads and secrets never show in logs, not even at DEBUG, nor in what a `repr` says of what may end in one."""

import logging
from contextlib import suppress

import pytest
import trio

from p2pmesh import (
    ConfigError,
    DhtValue,
    DirectReceived,
    IceServer,
    LinkConfig,
    MeshConfig,
    MeshError,
    MessageReceived,
    PeerId,
    ServerConfig,
    TransportConfig,
    Verdict,
    open_mesh,
    open_signaling_server,
)
from p2pmesh.identity import Identity
from p2pmesh.protocols.inputs import DhtPut, Publish, Received, SendDirect
from p2pmesh.simulation import simulated_meshes
from p2pmesh.wire.codec import decode, decode_signaling, encode
from p2pmesh.wire.messages import Candidate, Direct, Gossip, GossipData, Message, Signal
from p2pmesh.wire.overlay import DhtRecord, Packet
from p2pmesh.wire.payloads import Body, pack
from p2pmesh.wire.signaling import Join
from tests.harness.cluster import Cluster, at_rest, linked, until
from tests.harness.rogue import open_rogue

MARK = "s3cr3t"
PAYLOADS = (f"text {MARK}", {"list": [MARK], MARK: 1}, f"bytes {MARK}".encode())
A = PeerId("a" * 40)


@pytest.fixture
def log(caplog):
    """All that is logged, by whomever: every record with its arguments and its traceback, as a handler would see it."""
    caplog.set_level(logging.DEBUG)

    def read():
        told = [caplog.text, *(repr(record.args) for record in caplog.records)]
        assert caplog.records, "nothing was logged at all"
        return "\n".join(told)

    return read


async def test_no_payload_shows_in_what_meshes_log(autojump_clock, log):
    config = MeshConfig(join_token=MARK)
    async with simulated_meshes(6, seed=1, max_peers=2, config=config) as world:
        await at_rest(*world.meshes)
        mesh, *others = world.meshes
        others[0].validate("t", lambda message: Verdict.ACCEPT)
        others[1].validate("t", lambda message: {}[message.payload[:5]])
        for payload in PAYLOADS:
            await mesh.broadcast("t", payload)
            await others[2].dht.put(f"key {MARK}", payload)
            await others[3].dht.get(f"key {MARK}")
            for other in others:  # neighbours, and others
                await mesh.send(other.peer_id, payload)
        world.crash(others[-1])
        with suppress(MeshError):
            with trio.move_on_after(20):
                await mesh.send(others[-1].peer_id, MARK)
        await trio.sleep(60)
        for mesh in world.meshes:
            str(mesh.snapshot())
    assert MARK not in log()


SPOILT = {
    "cut off": lambda frame: frame.removesuffix(frame[-3:]),
    "another id": lambda frame: frame.replace(b"d" * 16, b"e" * 16),
    "text": lambda frame: b'{"type":"gossip","data":{"payload":"' + MARK.encode() + b'","encoding":"' + b'json"}}',
    "in the wrong place": lambda frame: b'{"type":"gossip_ack","new":"' + MARK.encode() + b'"}',
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
async def test_no_payload_shows_in_what_is_said_of_a_neighbour_that_is_blamed(autojump_clock, log, spoil):
    gossip = Gossip(
        data=GossipData(
            id="d" * 32, topic="t", payload=MARK, encoding="text", origin_peer_id=A, key=bytes(32),
            signature=bytes(64), timestamp=1_700_000_000_000, ttl=60_000, max_hops=10, hops=0, relayed_by=(),
        )
    )  # fmt: skip
    async with Cluster() as world, world.peer(1) as victim, open_rogue(world, world.identity(2)) as rogue:
        await linked(victim, rogue.mesh)
        await rogue.links[victim.peer_id].say(spoil(encode(gossip)))
        await until(lambda: victim.snapshot()["links"]["protocol_errors"])
    assert MARK not in log()


def test_no_repr_tells_a_payload_or_a_secret():
    server = IceServer(urls="turn:here", username="me", credential=MARK)
    body = pack(MARK, 100)
    signal = Signal(type="offer", sdp=MARK, candidate=Candidate(candidate=MARK))
    data = GossipData(
        id="d" * 32, topic="t", payload=MARK, encoding="text", origin_peer_id=A, timestamp=1, max_hops=10, hops=0,
        relayed_by=(),
    )  # fmt: skip
    record = DhtRecord(
        key=A, payload=MARK, encoding="text", timestamp=1, ttl=1, publisher_key=bytes(32), signature=bytes(64)
    )
    packet = Packet(id="d" * 32, kind="tell", from_=A, to=A, timestamp=1, carry=MARK.encode())
    things = [
        MessageReceived("t", MARK, A, "id", 1.0, 1, True),
        DirectReceived(A, {"a": MARK}, "id", 1.0, True),
        DhtValue(MARK.encode(), A, 1.0, 2.0),
        MeshConfig(join_token=MARK, links=LinkConfig(ice_servers=[server])),
        ServerConfig(join_token=MARK),
        TransportConfig("websocket", options={"headers": {"authorization": MARK}}),
        Publish(1, "t", MARK), SendDirect(1, A, MARK), DhtPut(1, "k", MARK), body, Body(None, None, MARK.encode()),
        Publish(1, "t", body), Gossip(data=data), Received(A, Gossip(data=data)), record, packet, signal,
        Direct(payload=MARK), Join(peer_id=A, token=MARK), Identity.from_seed(MARK.encode().ljust(32)),
    ]  # fmt: skip
    for thing in things:
        assert MARK not in repr(thing), type(thing)
        assert type(thing).__name__ in repr(thing)


def test_a_repr_tells_all_else():
    data = decode(encode(Direct(payload=MARK, id="d" * 32, encoding="text")))
    assert isinstance(data, Message)
    assert repr(data) == f"Direct(payload=<str>, id={'d' * 32!r}, encoding='text', blob=None, timestamp=None)"
    join = decode_signaling(b'{"type":"join","peerId":"%s","room":"here"}' % A.encode())
    assert "room='here'" in repr(join)


def test_a_payload_that_is_refused_is_not_quoted():
    for payload in (f"{MARK}\udc00", [MARK, {1, 2}], {"a": (MARK, object())}):
        with pytest.raises(MeshError) as caught:
            pack(payload, 100)
        assert MARK not in str(caught.value)
    with pytest.raises(MeshError) as caught:
        pack(MARK * 100, 100)
    assert MARK not in str(caught.value)


def test_a_password_in_the_address_of_an_ice_server_is_not_quoted():
    for url in (f"turn:me:{MARK}@here", f"turn://me:{MARK}@here"):
        with pytest.raises(ConfigError) as caught:
            LinkConfig(ice_servers=[{"urls": url, "username": "me", "credential": MARK}])
        assert MARK not in str(caught.value)


@pytest.mark.webrtc
async def test_no_payload_and_no_password_shows_in_what_real_links_and_a_real_server_log(log):
    """Not even in what the libraries below say, whatever the application lets them say."""
    ice = IceServer(urls="turn:127.0.0.1:9", username="me", credential=MARK)
    config = MeshConfig(join_token=MARK, links=LinkConfig(ice_servers=[ice]))
    async with (
        open_signaling_server(config=ServerConfig(join_token=MARK)) as server,
        open_mesh(server.url, config=config) as alice,
        open_mesh(f"{server.url}/?key={MARK}", config=config) as bob,
        bob.subscribe() as topic,
    ):
        await linked(alice, bob)
        for payload in PAYLOADS:
            await alice.broadcast("t", payload)
            await topic.receive()
            await alice.send(bob.peer_id, payload)
            await alice.dht.put("key", payload)
    assert MARK not in log()
