"""Test vectors of the wire: what another implementation checks itself against.

`python -m p2pmesh.cli.vectors` writes `p2pmesh/wire/vectors.json`, which the package ships; with `--check` it only says
whether the file is as it would write it. Everything follows from seeds that stand in the file. `docs/protocol.md` says
what its sections hold. Messages are made from their types, so a new one needs nothing here.
"""

from __future__ import annotations

import json
import re
import string
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from attrs import define
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import inspect, msgpack
from msgspec.structs import replace

from p2pmesh.config import KademliaConfig, LinkConfig, network_of
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity, SignatureMemo
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast import validation
from p2pmesh.protocols.kademlia.records import DELETED, key_id, owned_id, sign_record
from p2pmesh.protocols.link.session import LinkSession
from p2pmesh.protocols.routing import packets
from p2pmesh.protocols.routing.forwarding_table import trail_id
from p2pmesh.protocols.routing.sealed_box import SEAL_SIZE, contact_of, seal_with
from p2pmesh.protocols.signaling.handshake import sign_answer, sign_join, sign_offer
from p2pmesh.wire import packet_format as channel
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Description, Direct, DirectAck, Fingerprint, Gossip, GossipAck, GossipData, Offer
from p2pmesh.wire.overlay import FindSuccessor, Packet
from p2pmesh.wire.packing import NUMBERS, forms
from p2pmesh.wire.sdp import read_sdp, write_sdp

ROOM = "vectors"
NETWORK = network_of(ROOM)
NOW = 1_700_000_000_000
LARGEST = 2048
"""Bytes of a malformed frame that is worth its place in the file."""

Json = dict[str, Any]


def identity(name: str) -> Identity:
    """The peer of a name: its seed is the SHA-256 of it."""
    return Identity.from_seed(sha256(name.encode()).digest())


ALICE, BOB = identity("alice"), identity("bob")


# --- messages from their types ----------------------------------------------------------------------------------------


@define
class Example:
    """Makes values of types, none like another, from a counter."""

    numbers: Iterator[int]

    def digits(self, size: int) -> str:
        return sha256(str(next(self.numbers)).encode()).hexdigest()[:size]

    def message(self, kind: type[msgspec.Struct], *, full: bool) -> Any:
        """A message with its required fields, or with all."""
        info = cast("inspect.StructType", inspect.type_info(kind))
        return kind(**{field.name: self.value(field.type) for field in info.fields if full or field.required})

    def value(self, kind: inspect.Type) -> Any:
        match kind:
            case inspect.StrType(pattern=str() as pattern):
                return self.digits(int(re.split(r"[{,}]", pattern)[1]))  # an alphabet has them all
            case inspect.StrType(min_length=1):  # an id of a message
                return self.digits(32)
            case inspect.StrType(max_length=high):
                return self.digits(min(high or 8, 8))
            case inspect.BytesType(min_length=low):
                return bytes.fromhex(self.digits(2 * (low or 5)).ljust(2 * (low or 5), "0"))
            case inspect.IntType(ge=low, le=high, lt=above):
                most = high if high is not None else 1000 if above is None else above - 1
                return min(most, (low or 0) + next(self.numbers))
            case inspect.BoolType():
                return True
            case inspect.LiteralType(values=values):
                return values[-1]
            case inspect.AnyType():
                return self.digits(8)
            case inspect.UnionType(types=types):
                return self.value(next(one for one in types if not isinstance(one, inspect.NoneType)))
            case inspect.VarTupleType(item_type=item):
                return (self.value(item), self.value(item))
            case inspect.StructType(cls=cls):
                return self.message(cls, full=True)
            case _:
                raise AssertionError(f"no example of {kind}")


def message_vectors() -> Iterator[Json]:
    """Each type of message with its required fields alone, and with all of its fields."""
    for kind, number in NUMBERS.items():
        if kind is Gossip:
            yield from map(message_vector, (unproven_gossip(), gossip()))
            continue
        least, full = (Example(count(100 * number)).message(kind, full=full) for full in (False, True))
        yield from map(message_vector, [least] if least == full else [least, full])


def message_vector(message: Any) -> Json:
    """A message as JSON, and as a frame."""
    return {
        "type": type(message).__struct_config__.tag,
        "number": NUMBERS[type(message)],
        "message": json.loads(encode(message, text=True)),
        "frame": encode(message).hex(),
    }


# --- what is signed and sealed ----------------------------------------------------------------------------------------


class _Recorder(SignatureMemo):
    """Knows what was signed."""

    signed: tuple[bytes, bytes, bytes]

    def note(self, public_key: bytes, signature: bytes, data: bytes, *, outcome: bool) -> None:
        self.signed = public_key, signature, data
        super().note(public_key, signature, data, outcome=outcome)


def gossip(**changes: Any) -> Gossip:
    """A broadcast of Alice's."""
    data = GossipData(
        id="",
        topic="chat",
        payload="hello",
        encoding="text",
        origin_peer_id=ALICE.peer_id,
        timestamp=NOW,
        hops=1,
        ttl=60_000,
        max_hops=32,
        series=NOW - 1000,
        sequence=3,
        age=20,
    )
    return Gossip(data=validation.signed(replace(data, **changes), ALICE, NETWORK))


def unproven_gossip() -> Gossip:
    """A broadcast of a peer of the original, passed on."""
    original = PeerId(string.digits * 4)
    data = GossipData(id="original-1", topic="chat", payload=1.5, origin_peer_id=original, timestamp=NOW, hops=2)
    return Gossip(data=replace(data, receipts=False))


def description(role: Literal["actpass", "active"], byte: int) -> Description:
    """As little of a description as can be signed."""
    return Description(ufrag="ufrag", pwd="p" * 22, fingerprints=(Fingerprint(value=bytes([byte]) * 32),), role=role)


def packet(**changes: Any) -> Packet:
    """A packet from Alice to Bob."""
    example = Packet(
        id="0f" * 16,
        kind="ask",
        from_=ALICE.peer_id,
        to=BOB.peer_id,
        timestamp=NOW,
        carry=encode(FindSuccessor(key=BOB.peer_id)),
    )
    return packets.signed(replace(example, **changes), ALICE, NETWORK)


def deletion() -> msgspec.Struct:
    """A record under an owned key that says that there is no value any more."""
    name = key_id("key")
    place = owned_id(ALICE.peer_id, name)
    return sign_record(ALICE, place, DELETED, NOW, 600.0, KademliaConfig(), NETWORK, name=name, kept=700.0).record


def signature_vectors() -> Iterator[Json]:
    """One signature of each kind, with the bytes that it covers."""
    offer = Offer(description=description("actpass", 0xA1), links=2, purpose="ring")
    answer = description("active", 0xB2)
    makers: dict[str, Callable[[], msgspec.Struct]] = {
        "offer": lambda: sign_offer(ALICE, BOB.peer_id, offer, network=NETWORK),
        "answer": lambda: sign_answer(BOB, ALICE.peer_id, answer, offer.description, network=NETWORK),
        "join": lambda: sign_join(ALICE, ROOM, NOW),
        "packet": packet,
        "contact": lambda: contact_of(ALICE, 1 << 20, NOW, NETWORK),
        "gossip": gossip,
        "gossip of bytes": lambda: gossip(payload=None, encoding=None, blob=b"\x00\xff"),
        "record": lambda: sign_record(ALICE, key_id("key"), {"a": 1}, NOW, 600.0, KademliaConfig(), NETWORK).record,
        "record that deletes an owned value": deletion,
    }
    for kind, make in makers.items():
        with _Recorder() as recorder:
            made = make()
        key, signature, covered = recorder.signed
        yield {
            "kind": kind,
            "signed": json.loads(msgspec.json.encode(made)),
            "covered": covered.hex(),
            "key": key.hex(),
            "signature": signature.hex(),
        }


def box_vectors() -> Iterator[Json]:
    """Sealed boxes, with the one-time key that a sender forgets."""
    receiver = BOB.box_key().public_key().public_bytes_raw()
    for size, name in enumerate(("empty", "one", "two")):
        once = sha256(f"box {name}".encode()).digest()
        plain = b"x" * size if size < 2 else encode(Direct(id="0f" * 16, payload="hi", encoding="text"))
        key = X25519PrivateKey.from_private_bytes(once)
        sealed = seal_with(key, plain, receiver, ALICE.peer_id, BOB.peer_id, "0f" * 16, NETWORK)
        yield {
            "once": once.hex(),
            "receiver": receiver.hex(),
            "from": ALICE.peer_id,
            "to": BOB.peer_id,
            "packet": "0f" * 16,
            "plain": plain.hex(),
            "sealed": sealed.hex(),
        }


def malformed_box_vectors() -> Iterator[Json]:
    """Boxes that don't open: each is one of `box_vectors`, changed."""
    whole = list(box_vectors())[-1]
    sealed = bytes.fromhex(whole["sealed"])
    changes: dict[str, Json] = {
        "empty": {"sealed": ""},
        "too short": {"sealed": sealed[: SEAL_SIZE - 1].hex()},
        "cut off": {"sealed": sealed[:-1].hex()},
        "too long": {"sealed": (sealed + b"x").hex()},
        "altered": {"sealed": (sealed[:40] + bytes([sealed[40] ^ 1]) + sealed[41:]).hex()},
        "another tag": {"sealed": (sealed[:-1] + bytes([sealed[-1] ^ 1])).hex()},
        "another one-time key": {"sealed": (bytes([sealed[0] ^ 1]) + sealed[1:]).hex()},
        "a one-time key of low order": {"sealed": (bytes(32) + sealed[32:]).hex()},
        "another sender": {"from": BOB.peer_id},
        "another packet": {"packet": "1f" * 16},
        "another network": {"network": network_of("").hex()},
    }
    for why, change in changes.items():
        yield {"why": why, **whole, "network": NETWORK.hex(), **change}


def identity_vectors() -> Iterator[Json]:
    """Keys and ids that follow from a seed."""
    for name in ("alice", "bob"):
        one = identity(name)
        box = one.box_key()
        yield {
            "seed": sha256(name.encode()).hexdigest(),
            "key": one.public_key.hex(),
            "id": one.peer_id,
            "box_private": box.private_bytes_raw().hex(),
            "box": box.public_key().public_bytes_raw().hex(),
        }


# --- the channel ------------------------------------------------------------------------------------------------------


def channel_vectors() -> Iterator[Json]:
    """Packets of a data channel, and the records that they are."""
    frame = bytes(range(256)) * 5
    first, second, last = frame[:512], frame[512:1024], frame[1024:]
    hello = channel.u32_record(channel.HELLO, 1 << 20)
    start = channel.start_header(channel.BULK, len(frame), len(first)) + first
    more = channel.more_header(channel.BULK, len(second)) + second
    yield from map(
        _channel_vector,
        (
            hello + channel.credit_record(channel.BULK, 1 << 21) + channel.credit_record(channel.URGENT, 1 << 21),
            channel.frame_header(channel.BULK, 3) + b"abc" + channel.frame_header(channel.URGENT, 0),
            start + more + channel.more_header(channel.BULK, len(last)) + last,
            start + channel.frame_header(channel.URGENT, 1) + b"x" + more,
            channel.u32_record(channel.PING, 7) + channel.u32_record(channel.PONG, (1 << 32) - 1),
            channel.END_RECORD,
        ),
    )


def _channel_vector(raw: bytes) -> Json:
    records = [{"kind": kind, "body": body.hex()} for kind, body in channel.parse_packet(raw)]
    return {"packet": raw.hex(), "records": records}


def malformed_channel_vectors() -> Iterator[Json]:
    """What is no packet of a data channel."""
    for why, raw in {
        "empty": b"",
        "ends within a header": b"\x00\x00\x00",
        "a record longer than its packet": channel.frame_header(channel.BULK, 4) + b"abc",
        "an unknown kind": b"\x0c\x00\x00\x00",
        "a HELLO of 3 bytes": b"\x08\x00\x00\x03abc",
        "a HELLO of 5 bytes": b"\x08\x00\x00\x05abcde",
        "a CREDIT of 4 bytes": b"\x06\x00\x00\x04abcd",
        "an END with a body": b"\x0b\x00\x00\x01a",
        "a START whose fragment has 511 bytes": channel.start_header(channel.BULK, 1000, 511) + bytes(511),
        "a MORE of nothing": channel.more_header(channel.BULK, 0),
    }.items():
        try:
            channel.parse_packet(raw)
        except RemoteProtocolError:
            yield {"why": why, "packet": raw.hex()}
            continue
        raise AssertionError(f"taken: {why}")


HELLO = channel.u32_record(channel.HELLO, 1 << 20)
START = channel.start_header(channel.BULK, 1200, 512) + bytes(512)
MORE = channel.more_header(channel.BULK, 512) + bytes(512)
CREDIT = channel.credit_record(channel.BULK, 1 << 20)
FRAME = channel.frame_header(channel.BULK, 0)


def new_session() -> LinkSession:
    """The receiver of channel packets: it takes frames of up to 16 KiB, and grants 64 KiB for each lane."""
    session = LinkSession(LinkConfig(receive_window=1 << 16), 1 << 14, channel.MAX_PACKET, 0.0)
    session.next_packet(0.0)  # with its HELLO and CREDIT
    return session


def malformed_session_vectors() -> Iterator[Json]:
    """Rows of well-formed packets of which the last must not come when it comes."""
    for why, packets_ in {
        "a frame before HELLO": [FRAME],
        "a second HELLO": [HELLO, HELLO],
        "a HELLO again in one packet": [HELLO + HELLO],
        "a MORE without a START": [HELLO, MORE],
        "a START within a frame": [HELLO, START, START],
        "a FRAME within a frame": [HELLO, START, FRAME],
        "a MORE beyond the end": [HELLO, START, MORE, MORE],
        "a fragment of 511 bytes that is not the last": [HELLO, START, channel.more_header(0, 511) + bytes(511)],
        "a START of a whole frame": [HELLO, channel.start_header(channel.BULK, 512, 512) + bytes(512)],
        "a START beyond the limit": [HELLO, channel.start_header(channel.BULK, (1 << 14) + 1, 512) + bytes(512)],
        "frames beyond the credit": [HELLO, FRAME * 1024, FRAME],
        "credit that falls": [HELLO, CREDIT, channel.credit_record(channel.BULK, (1 << 20) - 1)],
        "credit of 2^53": [HELLO, channel.credit_record(channel.BULK, 1 << 53)],
        "END within a frame": [HELLO, START, channel.END_RECORD],
        "a record after END": [HELLO, channel.END_RECORD, FRAME],
    }.items():
        if not is_cut_off(packets_):
            raise AssertionError(f"taken: {why}")
        yield {"why": why, "packets": [packet_.hex() for packet_ in packets_]}


def is_cut_off(packets_: list[bytes]) -> bool:
    """Whether the last of these packets ends a session, and none before."""
    session = new_session()
    *before, last = packets_
    for one in before:
        session.receive_packet(one, 0.0)
    try:
        session.receive_packet(last, 0.0)
    except RemoteProtocolError:
        return True
    return False


# --- malformed frames -------------------------------------------------------------------------------------------------


def least(kind: inspect.Type) -> Any:
    """A small value of a type, as MessagePack has it."""
    match kind:
        case inspect.StructType():
            return entries(kind)
        case inspect.BytesType(min_length=low):
            return bytes(low or 0)
        case inspect.StrType(min_length=low):
            return "x" * (low or 0)
        case inspect.UnionType(types=types):
            return least(types[0])
        case inspect.VarTupleType(item_type=item, min_length=low):
            return [least(item)] * (low or 0)
        case inspect.IntType(ge=low):
            return low or 0
        case inspect.BoolType():
            return True
        case inspect.LiteralType(values=values):
            return values[0]
        case _:
            return None


def entries(kind: inspect.StructType, change: tuple[int, Any] | None = None) -> list[Any]:
    """The entries of an array, as few as there may be, with one of them changed."""
    last = max((at for at, field in enumerate(kind.fields, 1) if field.required), default=0)
    if change is not None:
        last = max(last, change[0] + 1)
    found = [least(field.type) if field.required else field.default for field in kind.fields[:last]]
    if change is not None:
        found[change[0]] = change[1]
    return found if kind.tag is None else [kind.tag, *found]


def beyond(kind: inspect.Type) -> Iterator[tuple[str, Any]]:
    """What a type does not take, and why."""
    match kind:
        case inspect.BytesType(min_length=low, max_length=high):
            if low:
                yield "too short", bytes(low - 1)
            if high is not None:
                yield "too long", bytes(high + 1)
                yield "wrong type", 5
                yield "no length that it may have", bytes((low or 0) + 1)
        case inspect.StrType(pattern=str()):
            yield "too short", "x"
            yield "too long", "x" * 257
            yield "wrong type", 5
            yield "a character that it may not have", "x" * 22 + "\u00e9"
        case inspect.StrType(min_length=low, max_length=high):
            if low:
                yield "too short", "x" * (low - 1)
            if high is not None:
                yield "too long", "x" * (high + 1)
                yield "wrong type", 5
        case inspect.IntType(ge=low, gt=above, le=high, lt=below):
            if low is not None or above is not None:
                yield "out of range", (above or 0) if low is None else low - 1
            yield "out of range", (below or 0) if high is None else high + 1
            yield "wrong type", "5"
        case inspect.BoolType():
            yield "wrong type", 1
        case inspect.LiteralType(values=values):
            yield "out of range", len(values)
            yield "wrong type", "x"
        case inspect.UnionType(types=types):
            for one in types:
                yield from beyond(one)
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            yield "too many", [least(item)] * ((high or 0) + 1)
            yield "too few", [least(item)] * ((low or 0) - 1) if low else {}
            for why, value in beyond(item):
                yield why, [value]
            yield "nested", [[[least(item)]]]
        case inspect.StructType(fields=fields):
            for at, field in enumerate(fields):
                for why, value in beyond(field.type):
                    yield f"{field.name}: {why}", entries(kind, (at, value))
            if any(field.required for field in fields):
                yield "too few fields", entries(kind)[:-1]
        case _:
            return


def malformed_vectors() -> Iterator[Json]:
    """Frames that are none, of each type of message and field."""
    seen = set()
    for form in forms():
        info = inspect.type_info(form)
        for why, value in beyond(info):
            frame = msgpack.encode(value)
            if len(frame) <= LARGEST and frame not in seen and is_malformed(frame):
                seen.add(frame)
                yield {"type": form.__name__.strip("_").removesuffix("Form"), "why": why, "frame": frame.hex()}
    whole = encode(gossip())
    for why, frame in {
        "empty": b"",
        "a map": b"\x81\xa4type\xa6direct",
        "no number": b"\x90",
        "a number that is none": b"\x91\xa1x",
        "an id of 32 digits as text": msgpack.encode([NUMBERS[DirectAck], ["0f" * 16]]),
        "ids of 32 digits as text": msgpack.encode([NUMBERS[GossipAck], ["0f" * 16, "1f" * 16]]),
        "cut off": whole[:-1],
        "something after the end": whole + b"\x00",
        "an array of 2^32 - 1 entries": b"\xdd\xff\xff\xff\xff",
        "nested without end": b"\x92\x7f" + b"\x91" * 1500,
        "a blob of 2^32 - 1 bytes": bytes([0x92, NUMBERS[Direct]]) + b"\xc6\xff\xff\xff\xff",
    }.items():
        if not is_malformed(frame):
            raise AssertionError(f"taken: {why}")
        yield {"type": "any", "why": why, "frame": frame.hex()}


def is_malformed(frame: bytes) -> bool:
    """Whether a frame is refused."""
    try:
        decode(frame)
    except RemoteProtocolError:
        return True
    return False


# --- trails -----------------------------------------------------------------------------------------------------------


def trail_vectors() -> Iterator[Json]:
    """Packets as a neighbour hands them on, and the way that they have come, their origin not in it."""
    relays = [identity(f"relay {number}").peer_id for number in range(3)]
    first, second, third = map(trail_id, relays)
    trails: dict[str, tuple[PeerId, Json]] = {
        "from its origin": (ALICE.peer_id, {}),
        "relayed once": (relays[0], {}),
        "relayed twice": (relays[1], {"path": (first,)}),
        "with a dead end": (relays[1], {"path": (first,), "tried": (third,)}),
        "given back": (relays[1], {"path": (first,), "tried": (second,)}),
        "a response on its route": (relays[1], {"kind": "answer", "route": (first,)}),
        "named for another origin": (relays[0], {"from_": BOB.peer_id}),
    }
    for why, (sender, trail) in trails.items():
        named = trail.pop("from_", None)
        carried = packet(**trail)
        path = packets.path_to_us(packets.received(carried, sender), sender)
        yield {"why": why, "sender": sender, "path_to_us": path, **message_vector(replace(carried, from_=named))}


# --- descriptions -----------------------------------------------------------------------------------------------------

SHA_256, SHA_1 = "sha-256 " + ":".join(["A1"] * 32), "SHA-1 " + ":".join(["b2"] * 20)
SDP = (
    "v=0",
    "o=- 1 2 IN IP4 127.0.0.1",
    "s=-",
    "t=0 0",
    "a=group:BUNDLE data",
    f"a=fingerprint:{SHA_256}",
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
    "c=IN IP4 0.0.0.0",
    "a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host generation 0",
    "a=candidate:2 1 UDP 2113937151 0f9a6d5c-7c1f-4a34-a4a3-0123456789ab.local 50001 typ host",
    "a=candidate:3 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active",
    "a=candidate:4 1 udp 1694498815 2001:db8::1 50002 typ srflx raddr 0.0.0.0 rport 0",
    "a=ice-ufrag:Ufr4",
    "a=ice-pwd:0123456789abcdefghijAB",
    "a=ice-options:trickle",
    f"a=fingerprint:{SHA_1}",
    "a=setup:actpass",
    "a=mid:data",
)


def description_vectors() -> Iterator[Json]:
    """Texts, the facts in them, and what is written of those."""
    full = "a=sctp-port:5001", "a=max-message-size:262144", "a=ice-lite", "a=end-of-candidates"
    answer = [line.replace("actpass", "active") for line in SDP if "candidate" not in line and "SHA-1" not in line]
    for lines in (SDP, (*SDP, *full), (*answer, SDP[8], *full)):
        text = "".join(f"{line}\r\n" for line in lines)
        facts = read_sdp(text)
        yield {"sdp": text, "facts": json.loads(msgspec.json.encode(facts)), "written": write_sdp(facts)}


def malformed_description_vectors() -> Iterator[Json]:
    """Texts that are refused."""
    changes: dict[str, tuple[str, str]] = {
        f"no {name}": (f"a={name}", f"b={name}") for name in ("ice-ufrag", "ice-pwd", "setup", "mid", "fingerprint")
    }
    changes |= {
        "no data channel": ("m=", "x="),
        "two sections": ("c=", f"{SDP[6]}\r\nc="),
        "audio": ("m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "m=audio 9 UDP/TLS/RTP/SAVPF 0"),
        "a user name of 3 characters": ("Ufr4", "Ufr"),
        "a password with a space": (string.digits, "01234 56789"),
        "a role that is none": ("actpass", "holdconn"),
        "a fingerprint of another length": (":A1:A1", ":A1"),
        "a fingerprint of no digits": ("A1:A1", "G1:A1"),
        "a fingerprint of an unknown hash": ("sha-256", "sha-257"),
        "a fingerprint of MD5": (SHA_256, "md5 " + ":".join(["A1"] * 16)),
        "a fingerprint that hides": ("a=mid", f"\u2028a=fingerprint:{SHA_1}\r\na=mid"),
        "a control character": ("s=-", "s=\0"),
        "a port of SCTP that is none": ("a=mid", "a=sctp-port:65536\r\na=mid"),
    }
    whole = "".join(f"{line}\r\n" for line in SDP)
    for why, (old, new) in changes.items():
        text = whole.replace(old, new)
        try:
            read_sdp(text)
        except RemoteProtocolError:
            yield {"why": why, "sdp": text}
            continue
        raise AssertionError(f"taken: {why}")


# --- the file ---------------------------------------------------------------------------------------------------------


def vectors() -> Json:
    """All of them."""
    return {
        "about": "Test vectors of p2pmesh, wire version 1: see docs/protocol.md. Bytes are in hexadecimal digits; "
        "those in JSON messages are in base64. Seeds of identities are the SHA-256 of their names.",
        "networks": [{"room": room, "network": network_of(room).hex()} for room in ("", ROOM, "\u00e9t\u00e9")],
        "identities": list(identity_vectors()),
        "dht_keys": [
            {"text": text, "key": key_id(text), "owner": ALICE.peer_id, "owned": owned_id(ALICE.peer_id, key_id(text))}
            for text in ("", "key", "\u00e9t\u00e9")
        ],
        "signatures": list(signature_vectors()),
        "boxes": list(box_vectors()),
        "messages": list(message_vectors()),
        "trails": list(trail_vectors()),
        "descriptions": list(description_vectors()),
        "channel": list(channel_vectors()),
        "malformed_messages": list(malformed_vectors()),
        "malformed_boxes": list(malformed_box_vectors()),
        "malformed_descriptions": list(malformed_description_vectors()),
        "malformed_channel": list(malformed_channel_vectors()),
        "malformed_sessions": list(malformed_session_vectors()),
    }


def text() -> str:
    """The file: one vector a line."""
    sections = []
    for name, value in vectors().items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            sections.append(f"{json.dumps(name)}: [\n{rows}\n]")
        else:
            sections.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def main() -> None:
    """Write the file, or compare it."""
    path = Path(str(files("p2pmesh.wire"))) / "vectors.json"
    if "--check" in sys.argv[1:]:
        raise SystemExit(0 if path.read_text(encoding="utf-8") == text() else f"{path} is not what it should be")
    path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
