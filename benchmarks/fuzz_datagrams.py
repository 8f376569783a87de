"""Mutated datagrams to an open link, to TURN clients and to an SCTP association: what came through, and what broke.

    python benchmarks/fuzz_datagrams.py --json                        # 100,000 datagrams: some seconds
    python benchmarks/fuzz_datagrams.py --datagrams 1000000           # some minutes

Each starts as STUN of every kind, a TURN server's words, DTLS records or SCTP chunks, gets one to four mutations, and
comes from a stranger or in the name of the peer. Now and then the link has to carry a frame both ways. The exit status
is 1 if anything got past the guards, if the link ended or if memory grew.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import traceback
from collections import deque
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import aioice.ice
import aioice.stun as stun
import aiortc.rtcsctptransport as sctp
import trio
from google_crc32c import value as crc32c

from p2pmesh.config import LinkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.links.webrtc.carrier import WebRTCCarrier
from p2pmesh.links.webrtc.dialer import WebRTCDialer
from p2pmesh.links.webrtc.eager_coroutine import start_now
from p2pmesh.links.webrtc.event_loop import DatagramTransport, LinkLoop
from p2pmesh.links.webrtc.ice_patch import IceConnection, _TurnByTcp, _TurnByUdp
from p2pmesh.links.webrtc.sctp_patch import SctpTransport
from p2pmesh.protocols.inputs import RemotePeer

BATCH = 500
"""Datagrams between two looks at the link."""
GROWTH = 16.0
"""MiB that the process may grow by after the first tenth."""
STRANGER = ("192.0.2.66", 6666)
PATIENT = LinkConfig(keepalive_idle=300)
TAG = 77


class Source:
    """A socket that gives what it is told to, and sends nothing."""

    def __init__(self, datagrams: list[tuple[bytes, Any]]) -> None:
        self._datagrams = deque(datagrams)

    def recvfrom(self, _size: int) -> tuple[bytes, Any]:
        if not self._datagrams:
            raise BlockingIOError
        return self._datagrams.popleft()

    def sendto(self, _data: bytes, _address: Any) -> None:
        """Answers to strangers go nowhere."""


class Below:
    """What lies below an association and below a TURN client."""

    state = "connected"
    _role = "client"

    def _register_data_receiver(self, _receiver: object) -> None: ...

    def _unregister_data_receiver(self, _receiver: object) -> None: ...

    async def _send_data(self, _packet: bytes) -> None: ...

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default or STRANGER

    def sendto(self, *_: object) -> None: ...

    def write(self, _data: bytes) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool:
        return False


class Fuzz:
    """One run against one end of a link."""

    def __init__(self, seed: int, link: Any, loop: LinkLoop) -> None:
        self._rng = random.Random(seed)
        self._link, self._loop = link, loop
        carrier = cast("WebRTCCarrier", link.carrier)
        self._ice = cast("IceConnection", carrier._ice)
        pair = self._ice._nominated[1]
        self._host, self._peer = pair.protocol, pair.remote_addr
        self._transport = cast("DatagramTransport", cast("object", self._host.transport))
        self._stun = [bytes(message) for message in self._messages()]
        self._records = [self._rng.randbytes(48), b"\x15\xfe\xfd" + bytes(8) + b"\x00\x02\x02\x28"]
        self._chunks = [bytes(chunk) for chunk in _chunks()]
        self._association: SctpTransport | None = None
        self._udp, self._tcp = self._turn(_TurnByUdp), self._turn(_TurnByTcp)
        self.raised: list[str] = []
        loop.set_exception_handler(lambda _loop, context: self._note(context.get("exception") or context["message"]))

    def _note(self, error: object) -> None:
        steps = traceback.extract_tb(error.__traceback__) if isinstance(error, BaseException) else []
        self.raised.append(" < ".join([repr(error), *(f"{step.name}:{step.lineno}" for step in reversed(steps))]))

    def record(self) -> None:
        """Keep some of what the peer sends, to be mutated."""
        received = self._transport._received

        def noting(data: bytes, address: Any) -> None:
            if len(self._records) < 16:
                self._records.append(data)
            received(data, address)

        self._transport.divert(noting)

    def batch(self) -> None:
        """Feed one. To be called as the loop calls back."""
        rng = self._rng
        asked = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        question = self._loop.create_task(self._host.request(asked, STRANGER, retransmissions=0))
        question.add_done_callback(lambda task: task.cancelled() or task.exception())
        datagrams = []
        for number in range(BATCH):
            data = self._mutated(rng.choice(self._records if number % 5 == 4 else self._stun))
            if number % 7 == 6:  # as if it answered a question of ours
                data = data[:8] + asked.transaction_id + data[20:]
            datagrams.append((data, self._peer if rng.random() < 0.3 else STRANGER))
        sock, self._transport._sock = self._transport._sock, cast("Any", Source(datagrams))
        try:
            for _ in range(BATCH):
                self._transport._gulp()
        finally:
            self._transport._sock = sock
        for data, address in datagrams[: BATCH // 4]:
            self._udp.datagram_received(data, address)
            self._tcp.data_received(data)
            waiting = getattr(self._tcp, "buffer", b"")
            if waiting[2:4] > b"\x08" or len(waiting) > 4096:  # it waits for what never comes, or was aborted
                self._tcp = self._turn(_TurnByTcp)
        for _ in range(BATCH // 4):
            start_now(self._sctp()._handle_data(self._packet()))
        question.cancel()

    def _sctp(self) -> SctpTransport:
        known = self._association
        if known is None or known._association_state is known.State.CLOSED:
            self._association = known = SctpTransport(cast("Any", Below()))
            known.tune(self._loop)
            known._local_verification_tag, known._last_received_tsn, known._remote_port = TAG, 1, 5000
            known._set_state(known.State.ESTABLISHED)
        return known

    def _packet(self) -> bytes:
        body = b"".join(self._mutated(self._rng.choice(self._chunks)) for _ in range(self._rng.randrange(1, 4)))
        head = struct.pack("!HHL", 5000, 5000, TAG)
        return head + struct.pack("<L", crc32c(head + bytes(4) + body)) + body

    def _turn(self, kind: Any) -> Any:
        client = kind(STRANGER, "ann", "secret", 600, 500)
        client.loop, client.transport = self._loop, Below()
        client.receiver = aioice.ice.StunProtocol(self._ice)
        client.receiver.local_candidate, client.receiver.transport = self._host.local_candidate, Below()
        client.channel_to_peer[0x4000] = self._peer
        client.peer_to_channel[self._peer] = 0x4000
        return client

    def _messages(self) -> list[stun.Message]:
        ice = self._ice
        key, name = ice.local_password.encode(), f"{ice.local_username}:{ice.remote_username}"
        found: list[stun.Message] = []
        for method in stun.Method:
            for kind in stun.Class:
                message = stun.Message(method, kind)
                message.attributes.update({
                    "USERNAME": name,
                    "PRIORITY": 1,
                    "XOR-MAPPED-ADDRESS": STRANGER,
                    "XOR-PEER-ADDRESS": self._peer,
                    "XOR-RELAYED-ADDRESS": STRANGER,
                    "LIFETIME": 600,
                    "DATA": b"data",
                    "ERROR-CODE": (401, "no"),
                    "REALM": "realm",
                    "NONCE": b"nonce",
                    "ICE-CONTROLLED" if ice.ice_controlling else "ICE-CONTROLLING": 1,
                })
                if len(found) % 2:
                    message.add_message_integrity(key if method is not stun.Method.BINDING else b"wrong")
                found.append(message)
        return found

    def _mutated(self, data: bytes) -> bytes:
        rng = self._rng
        for _ in range(rng.randrange(5)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(7):
                case 0 | 1 if at < len(data):  # a bit
                    data = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
                case 2:  # cut off, with the length that STUN wants half of the time
                    data = data[:at]
                    if at >= 20 and rng.random() < 0.5:
                        data = data[:2] + struct.pack("!H", at - 20) + data[4:]
                case 3:  # an attribute with a length of its own
                    attribute = rng.choice(stun.ATTRIBUTES)[0]
                    body = rng.randbytes(rng.randrange(12))
                    data = data + struct.pack("!HH", attribute, rng.choice([len(body), 0, 3, 0xFFFF])) + body
                    data = data[:2] + struct.pack("!H", max(0, len(data) - 20)) + data[4:]
                case 4:  # a length that lies
                    data = data[:at] + b"\xff\xff" + data[at + 2 :]
                case 5:
                    data = data[:at] + data[at : at + 8] * rng.randrange(3) + data[at:]
                case _:
                    data = data[:at] + rng.randbytes(1 + rng.randrange(6)) + data[at + rng.randrange(3) :]
        return data[:1500]


def _chunks() -> list[sctp.Chunk]:
    found: list[Any] = [kind() for kind in sctp.CHUNK_TYPES.values()]
    for chunk in found:
        if isinstance(chunk, sctp.DataChunk):
            chunk.tsn, chunk.user_data, chunk.protocol = 2, b"data", 53
        elif isinstance(chunk, sctp.SackChunk):
            chunk.gaps, chunk.duplicates = [(1, 2)], [1]
        elif hasattr(chunk, "params"):
            chunk.params = [(13, bytes(12)), (14, bytes(8)), (0x8008, b"\xc0\x82"), (7, b"cookie")]
    return found


async def measure(datagrams: int, seed: int) -> dict[str, Any]:
    """Run, and say what came of it."""
    ours, theirs = (RemotePeer(PeerId(letter * 40), verified=True, version=1) for letter in "ab")
    async with WebRTCDialer(PATIENT) as alice, WebRTCDialer(PATIENT) as bob, trio.open_nursery() as nursery:
        offering = await alice.offer(theirs.peer_id)
        answering = await bob.answer(ours.peer_id, offering.description)
        await offering.feed(answering.description)
        sender, target = await offering.opened(theirs), await answering.opened(ours)
        for link in (sender, target):
            await nursery.start(link.run)
        loop = cast("LinkLoop", bob._loop)
        dropped = loop.datagrams_dropped
        fuzz = Fuzz(seed, target, loop)
        fuzz.record()
        began, resident, batches, frames = perf_counter(), 0.0, max(1, datagrams // BATCH), 0
        for number in range(batches):
            await _there_and_back(sender, target)
            frames += 1
            loop.call_now(fuzz.batch)
            await trio.lowlevel.checkpoint()
            if number == batches // 10:
                resident = _resident()
        await _there_and_back(sender, target)
        seconds = perf_counter() - began
        row = {
            "datagrams": batches * BATCH,
            "seed": seed,
            "dropped": loop.datagrams_dropped - dropped,
            "raised_otherwise": len(fuzz.raised),
            "frames": frames,
            "grown_mib": round(_resident() - resident, 1),
            "seconds": round(seconds, 1),
            "broken": fuzz.raised[:10],
        }
        nursery.cancel_scope.cancel("enough")
    return row


async def _there_and_back(one: Any, other: Any) -> None:
    with trio.fail_after(10):
        await one.send(b"there")
        await other.receive()
        await other.send(b"and back")
        await one.receive()


def _resident() -> float:
    """MiB."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) / 256 if statm.exists() else 0.0


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datagrams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    row = trio.run(partial(measure, options.datagrams, options.seed))
    print(json.dumps(row) if options.json else "\n".join(f"{name:20} {value}" for name, value in row.items()))
    sys.exit(bool(row["raised_otherwise"] or row["grown_mib"] > GROWTH))


if __name__ == "__main__":
    main()
