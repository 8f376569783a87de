"""The test vectors that the package ships: what the code makes of their seeds, and what it says of each of them."""

from __future__ import annotations

import json
from importlib.resources import files
from operator import itemgetter
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2pmesh.cli.vectors import NETWORK, text
from p2pmesh.config import network_of
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity, peer_id_of, verify
from p2pmesh.protocols.broadcast import validation
from p2pmesh.protocols.kademlia.records import key_id
from p2pmesh.protocols.routing import packets
from p2pmesh.protocols.routing.sealed_box import SEAL_SIZE, unseal
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Gossip
from p2pmesh.wire.overlay import Packet
from p2pmesh.wire.packet_format import parse_packet
from p2pmesh.wire.packing import NUMBERED, NUMBERS

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


def test_identities_follow_from_seeds() -> None:
    for row in VECTORS["identities"]:
        identity = Identity.from_seed(hexadecimal(row["seed"]))
        assert (identity.public_key.hex(), identity.peer_id) == (row["key"], row["id"])
        assert peer_id_of(identity.public_key) == row["id"]
        assert identity.box_key().private_bytes_raw().hex() == row["box_private"]
        assert identity.box_key().public_key().public_bytes_raw().hex() == row["box"]


def test_signatures_are_right_and_say_of_what_and_where() -> None:
    kinds = {row["kind"] for row in VECTORS["signatures"]}
    assert kinds == {"offer", "answer", "join", "packet", "contact", "gossip", "gossip of bytes", "record"}
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


def test_packets_of_the_channel_are_records() -> None:
    for row in VECTORS["channel"]:
        records = [{"kind": kind, "body": body.hex()} for kind, body in parse_packet(hexadecimal(row["packet"]))]
        assert records == row["records"]


@pytest.mark.parametrize("row", VECTORS["malformed_channel"], ids=itemgetter("why"))
def test_what_is_no_packet_of_the_channel_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_packet(hexadecimal(row["packet"]))


def test_what_is_no_message_is_refused() -> None:
    whys = {row["why"].rpartition(": ")[2] for row in VECTORS["malformed_messages"]}
    assert {"too short", "too long", "wrong type", "nested", "too many", "too few fields", "out of range"} <= whys
    for row in VECTORS["malformed_messages"]:
        with pytest.raises(RemoteProtocolError):
            decode(hexadecimal(row["frame"]))
