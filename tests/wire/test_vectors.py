"""The test vectors that the package ships: what the code makes of their seeds, and what it says of each of them."""

from __future__ import annotations

import json
from importlib.resources import files
from operator import itemgetter
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2pmesh.cli.vectors import NETWORK, new_session, text
from p2pmesh.config import network_of
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.protocols.broadcast import validation
from p2pmesh.protocols.kademlia.records import key_id, owned_id
from p2pmesh.protocols.routing import packets
from p2pmesh.protocols.routing.sealed_box import SEAL_SIZE, unseal
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Description, Gossip
from p2pmesh.wire.overlay import Packet
from p2pmesh.wire.packet_format import parse_packet
from p2pmesh.wire.packing import NUMBERED, NUMBERS
from p2pmesh.wire.sdp import read_sdp, write_sdp

SHIPPED = (files("p2pmesh.wire") / "vectors.json").read_text(encoding="utf-8")
VECTORS: dict[str, Any] = json.loads(SHIPPED)
hexadecimal = bytes.fromhex


def test_the_file_is_what_its_command_writes() -> None:
    assert text() == SHIPPED, "run python -m p2pmesh.cli.vectors"


def test_networks_and_keys_follow_from_texts() -> None:
    for row in VECTORS["networks"]:
        assert network_of(row["room"]).hex() == row["network"]
    for row in VECTORS["dht_keys"]:
        assert key_id(row["text"]) == row["key"]
        assert owned_id(row["owner"], row["key"]) == row["owned"]


def test_identities_follow_from_seeds() -> None:
    for row in VECTORS["identities"]:
        identity = Identity.from_seed(hexadecimal(row["seed"]))
        assert (identity.public_key.hex(), identity.peer_id) == (row["key"], row["id"])
        assert peer_id_of(identity.public_key) == row["id"]
        assert identity.box_key().private_bytes_raw().hex() == row["box_private"]
        assert identity.box_key().public_key().public_bytes_raw().hex() == row["box"]


def test_signatures_are_right_and_say_of_what_and_where() -> None:
    kinds = {row["kind"] for row in VECTORS["signatures"]}
    deletion = "record that deletes an owned value"
    assert kinds == {"offer", "answer", "join", "packet", "contact", "gossip", "gossip of bytes", "record", deletion}
    for row in VECTORS["signatures"]:
        key, signature, covered = (hexadecimal(row[name]) for name in ("key", "signature", "covered"))
        assert verify(key, signature, covered)
        assert not verify(key, signature, covered + b"x")
        network = b"\0\0\0\x07vectors" if row["kind"] == "join" else b"\0\0\0\x10" + NETWORK
        assert covered.partition(b"\0")[2].startswith(network)


def test_boxes_open() -> None:
    identities = {row["id"]: row for row in VECTORS["identities"]}
    for row in VECTORS["boxes"]:
        own = X25519PrivateKey.from_private_bytes(hexadecimal(identities[row["to"]]["box_private"]))
        sealed, plain = hexadecimal(row["sealed"]), hexadecimal(row["plain"])
        assert len(sealed) == len(plain) + SEAL_SIZE
        assert unseal(sealed, own, row["from"], row["to"], row["packet"], NETWORK) == plain
        for wrong in (sealed[:-1], sealed + b"x", sealed[:20], b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
            with pytest.raises(RemoteProtocolError):
                unseal(wrong, own, row["from"], row["to"], row["packet"], NETWORK)


@pytest.mark.parametrize("row", VECTORS["malformed_boxes"], ids=itemgetter("why"))
def test_what_was_not_sealed_for_this_packet_does_not_open(row: dict[str, Any]) -> None:
    identities = {one["id"]: one for one in VECTORS["identities"]}
    own = X25519PrivateKey.from_private_bytes(hexadecimal(identities[row["to"]]["box_private"]))
    with pytest.raises(RemoteProtocolError):
        unseal(hexadecimal(row["sealed"]), own, row["from"], row["to"], row["packet"], hexadecimal(row["network"]))


def test_every_message_is_there_and_reads_as_it_says() -> None:
    assert {row["number"] for row in VECTORS["messages"]} == set(NUMBERS.values())
    for row in VECTORS["messages"]:
        frame = hexadecimal(row["frame"])
        message = decode(frame)
        assert message == decode(json.dumps(row["message"]).encode())
        assert encode(message).hex() == row["frame"]  # type: ignore[arg-type]
        assert NUMBERED[row["number"]] == row["type"]
        assert msgspec.msgpack.decode(frame)[0] == row["number"]


def test_signed_messages_prove_their_origin() -> None:
    found = [decode(hexadecimal(row["frame"])) for row in (*VECTORS["messages"], *VECTORS["trails"])]
    gossips = [one.data for one in found if isinstance(one, Gossip) and one.data.key]
    assert gossips
    assert all(validation.is_proven(data, NETWORK) for data in gossips)
    trails = [decode(hexadecimal(row["frame"])) for row in VECTORS["trails"]]
    assert all(
        isinstance(packet, Packet) and packets.is_proven(packets.received(packet, row["sender"]), NETWORK)
        for packet, row in zip(trails, VECTORS["trails"], strict=True)
    )


def test_trails_say_which_way_a_packet_has_come() -> None:
    for row in VECTORS["trails"]:
        packet = decode(hexadecimal(row["frame"]))
        assert isinstance(packet, Packet)
        packet = packets.received(packet, row["sender"])
        assert list(packets.path_to_us(packet, row["sender"])) == row["path_to_us"], row["why"]


def test_trails_are_those_of_the_key_that_signed_whatever_origin_they_name() -> None:
    (row,) = (row for row in VECTORS["trails"] if "from" in row["message"])
    packet = decode(hexadecimal(row["frame"]))
    assert isinstance(packet, Packet)
    assert packet.from_ is not None
    origin = packets.received(packet, row["sender"]).from_
    assert origin not in {packet.from_, row["sender"]}
    assert origin == peer_id_of(packet.key or b"")


def test_descriptions_are_the_facts_of_a_text_and_make_a_text() -> None:
    for row in VECTORS["descriptions"]:
        facts = msgspec.convert(row["facts"], Description, str_keys=True)
        assert facts == read_sdp(row["sdp"])
        assert write_sdp(facts) == row["written"]


@pytest.mark.parametrize("row", VECTORS["malformed_descriptions"], ids=itemgetter("why"))
def test_what_is_no_description_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        read_sdp(row["sdp"])


def test_packets_of_the_channel_are_records() -> None:
    for row in VECTORS["channel"]:
        records = [{"kind": kind, "body": body.hex()} for kind, body in parse_packet(hexadecimal(row["packet"]))]
        assert records == row["records"]


@pytest.mark.parametrize("row", VECTORS["malformed_channel"], ids=itemgetter("why"))
def test_what_is_no_packet_of_the_channel_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_packet(hexadecimal(row["packet"]))


@pytest.mark.parametrize("row", VECTORS["malformed_sessions"], ids=itemgetter("why"))
def test_a_packet_of_the_channel_that_must_not_come_ends_the_session(row: dict[str, Any]) -> None:
    *before, last = map(hexadecimal, row["packets"])
    session = new_session()
    for packet in before:
        session.receive_packet(packet, 0.0)
    with pytest.raises(RemoteProtocolError):
        session.receive_packet(last, 0.0)


def test_what_is_no_message_is_refused() -> None:
    whys = {row["why"].rpartition(": ")[2] for row in VECTORS["malformed_messages"]}
    assert {
        *("too short", "too long", "wrong type", "nested", "too many", "too few fields", "out of range"),
        *("no length that it may have", "a character that it may not have", "an id of 32 digits as text"),
    } <= whys
    for row in VECTORS["malformed_messages"]:
        with pytest.raises(RemoteProtocolError):
            decode(hexadecimal(row["frame"]))
