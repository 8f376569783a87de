"""What was signed in one room counts for nothing in another: every kind of signature names the network."""

from __future__ import annotations

import random
from contextlib import closing
from itertools import starmap
from typing import Any

import pytest
from msgspec import structs

from p2pmesh.config import KademliaConfig, MeshConfig, network_of
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import PeerFailed
from p2pmesh.identity import Identity
from p2pmesh.protocols.broadcast import validation
from p2pmesh.protocols.core import DropLink
from p2pmesh.protocols.inputs import LinkUp, Received
from p2pmesh.protocols.kademlia.records import BadRecord, check_signature, key_id, sign_record
from p2pmesh.protocols.notices import RoutedReceived
from p2pmesh.protocols.routing import packets, sealed_box
from p2pmesh.protocols.routing.routing import RoutingCore
from p2pmesh.protocols.routing.sealed_box import Contacts, contact_of, is_contact_of, seal, unseal
from p2pmesh.protocols.signaling.handshake import sign_answer, sign_offer, verify_answer, verify_offer
from p2pmesh.simulation.discrete import kernel
from p2pmesh.simulation.discrete.network import EPOCH, BareNetwork
from p2pmesh.simulation.model.signatures import StandInSignatures
from p2pmesh.wire.canonical import covered
from p2pmesh.wire.codec import encode
from p2pmesh.wire.overlay import FindSuccessor, Packet
from tests.harness.broadcast import Bare, gossip
from tests.harness.one_core import OneCore
from tests.harness.signaling import BOB, ME, Peer, description, from_peer
from tests.harness.signaling import offer as signaling_offer
from tests.harness.virtual_time import identity, remote, virtual_wall

HERE, THERE = network_of("here"), network_of("there")
CAROL = identity(77)
NOW = int(EPOCH * 1000)


def test_rooms_and_keys_make_networks() -> None:
    networks = list(starmap(network_of, (("",), ("a",), ("ab",), ("a", b"b"), ("", b"ab"), ("�",))))
    assert len(set(networks)) == len(networks)
    assert {len(network) for network in networks} == {16}
    assert MeshConfig(room="a").network == network_of("a")
    assert MeshConfig().network == network_of("")


def test_an_offer() -> None:
    offer = sign_offer(BOB, ME.peer_id, signaling_offer(2), network=THERE)
    assert verify_offer(offer, BOB.peer_id, ME.peer_id, network=THERE)[0].verified
    with pytest.raises(RemoteProtocolError):
        verify_offer(offer, BOB.peer_id, ME.peer_id, network=HERE)
    assert Peer(room="there").join().signaled(from_peer(BOB, offer)).told
    peer = Peer(room="here").join().signaled(from_peer(BOB, offer))
    assert peer.told == []
    assert isinstance(peer.events[0], PeerFailed)


def test_an_answer() -> None:
    offer = description("offer", 2)
    answer = sign_answer(BOB, ME.peer_id, description("answer", 3), offer, network=THERE)
    assert verify_answer(answer, offer, BOB.peer_id, ME.peer_id, network=THERE)[0].verified
    with pytest.raises(RemoteProtocolError):
        verify_answer(answer, offer, BOB.peer_id, ME.peer_id, network=HERE)


def test_a_broadcast() -> None:
    message = gossip(CAROL, sign=False)
    message = structs.replace(message, data=validation.signed(message.data, CAROL, THERE))
    assert validation.is_proven(message.data, THERE)
    assert not validation.is_proven(message.data, HERE)
    for room, taken in (("there", True), ("here", False)):
        bare = Bare(MeshConfig(room=room))
        bare.up(BOB)
        bare.hear(BOB, message)
        assert (bool(bare.delivered()), bool(bare.dropped())) == (taken, not taken)


def test_a_packet() -> None:
    packet = Packet(
        id="0a" * 16,
        kind="ask",
        from_=CAROL.peer_id,
        to=ME.peer_id,
        timestamp=NOW,
        carry=encode(FindSuccessor(key=ME.peer_id)),
    )
    packet = packets.signed(packet, CAROL, THERE)
    assert packets.is_proven(packet, THERE)
    assert not packets.is_proven(packet, HERE)
    for room, taken in (("there", True), ("here", False)):
        core = OneCore(RoutingCore(ME, MeshConfig(room=room), random.Random(1), virtual_wall))
        core.feed(LinkUp(remote(BOB))).feed(Received(BOB.peer_id, packet))
        assert any(isinstance(told, RoutedReceived) for told in core.told) == taken
        assert bool(core.got(DropLink)) is False, "a neighbour does not look at what it passes on"


def test_a_contact_record() -> None:
    contact = contact_of(BOB, 1000, NOW, THERE)
    assert is_contact_of(contact, BOB.peer_id, THERE)
    assert not is_contact_of(contact, BOB.peer_id, HERE)
    assert Contacts(ME, 1000, 8, THERE).learn(BOB.peer_id, contact)
    assert not Contacts(ME, 1000, 8, HERE).learn(BOB.peer_id, contact)


def test_a_sealed_box() -> None:
    box = ME.box_key()
    sealed = seal(b"x", box.public_key().public_bytes_raw(), BOB.peer_id, ME.peer_id, "m", THERE)
    assert unseal(sealed, box, BOB.peer_id, ME.peer_id, "m", THERE) == b"x"
    with pytest.raises(RemoteProtocolError):
        unseal(sealed, box, BOB.peer_id, ME.peer_id, "m", HERE)


def test_a_value_of_the_dht() -> None:
    config = KademliaConfig()
    made: Any = sign_record(BOB, key_id("key"), "value", NOW, 600.0, config, THERE)
    check_signature(made.record, THERE)
    with pytest.raises(BadRecord):
        check_signature(made.record, HERE)


def test_whatever_a_mesh_signs_verifies_and_seals_names_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    signed: list[bytes] = []
    verified: list[bytes] = []
    boxes: list[bytes] = []

    class Recorder(StandInSignatures):
        def sign(self, identity: Identity, data: bytes) -> bytes:
            signed.append(data)
            return super().sign(identity, data)

        def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
            verified.append(data)
            assert super().verify(public_key, signature, data), data
            return True

    def recorded(domain: bytes, network: bytes, *values: bytes) -> bytes:
        boxes.append(covered(domain, network, *values))
        return boxes[-1]

    monkeypatch.setattr(kernel, "StandInSignatures", Recorder)
    monkeypatch.setattr(sealed_box, "covered", recorded)
    with closing(BareNetwork(3, config=MeshConfig(room="here", max_peers=3))) as net:
        for _ in range(10):
            net.add()
            net.run(5)
        for node in net.nodes:
            net.publish(node, "hello")
            net.send(node, net.nodes[(node.number + 5) % 10].identity.peer_id, "hello")
            net.put(node, f"key {node.number}", "value")
        net.run(30)
    domains = {b"signal", b"gossip", b"packet", b"contact", b"dht record"}
    for seen, expected in ((signed, domains), (verified, domains), (boxes, {b"box", b"contact"})):
        named = {data[8:].partition(b" v1\0")[0] for data in seen}
        assert named - {b"join"} == expected
        for data in seen:
            is_join = data.startswith(b"p2pmesh join v1\0")
            assert data.partition(b"\0")[2].startswith(b"\0\0\0\x04here" if is_join else b"\0\0\0\x10" + HERE)
