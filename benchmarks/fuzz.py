"""Mutated frames through the codec and a link session, and descriptions: how many were refused; nothing else raised.

    python benchmarks/fuzz.py --json                         # 100,000 frames: some seconds
    python benchmarks/fuzz.py --frames 10000000              # some minutes

Each starts as one of the shipped test vectors, packed or as JSON, gets one to four mutations (bits flipped, cut off,
spliced with another, types changed, lengths that lie, repetitions), and goes through a session to the codec; every
eighth time the packet of the channel is mutated, too, and every sixteenth time an SDP goes through its parser. What is
decoded is encoded again and must come back as it was.
The exit status is 1 if anything but `RemoteProtocolError` was raised.
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.resources import files
from time import perf_counter
from typing import Any

from p2pmesh.config import LinkConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocols.link.session import LinkSession
from p2pmesh.wire import packet_format as channel
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Unknown
from p2pmesh.wire.sdp import read_sdp, write_sdp

MAX_FRAME = 1 << 20
SHOWN = 10
"""Frames that are printed if they broke something."""
HEADERS = bytes([
    0x80,
    0x90,
    0xA0,
    0xC0,
    0xC1,
    0xC2,
    0xC4,
    0xC7,
    0xCA,
    0xCF,
    0xD3,
    0xD4,
    0xD9,
    0xDB,
    0xDC,
    0xDD,
    0xDF,
    0xE0,
])
"""First bytes of MessagePack's types."""
LENGTHS = (
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xdd\x00\x10\x00\x00",
    b"\xdf\x00\x01\x00\x00",
    b"\xdc\xff\xff",
)
CONFIG = LinkConfig()
HELLO = channel.u32_record(channel.HELLO, MAX_FRAME)


class Fuzz:
    """Counts of one run."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._random = self._rng.random
        vectors = json.loads((files("p2pmesh.wire") / "vectors.json").read_text(encoding="utf-8"))
        good = [*vectors["messages"], *vectors["trails"]]
        frames = [bytes.fromhex(row["frame"]) for row in good] + [json.dumps(row["message"]).encode() for row in good]
        bad = [bytes.fromhex(row["frame"]) for row in vectors["malformed_messages"]]
        self._frames = frames * (1 + 3 * len(bad) // len(frames)) + bad
        self._packets = [bytes.fromhex(row["packet"]) for row in vectors["channel"]]
        rows = [*vectors["descriptions"], *vectors["malformed_descriptions"]]
        self._texts = [row["sdp"].encode() for row in rows]
        self._session = self._new_session()
        self.counts: dict[str, int] = dict.fromkeys(
            (
                *("decoded", "unknown", "refused", "packets", "packets_refused"),
                *("descriptions", "descriptions_refused", "raised_otherwise"),
            ),
            0,
        )
        self.broken: list[str] = []

    def run(self, frames: int) -> None:
        """Try so many."""
        for number in range(frames):
            frame = self._mutated(self._frames[self._below(len(self._frames))])
            try:
                self._through_session(frame, damaged=number % 8 == 7)
                if number % 16 == 15:
                    frame = self._mutated(self._rng.choice(self._texts))
                    self._through_parser(frame.decode("utf-8", "surrogateescape"))
            except Exception as error:  # that is what is looked for
                self.counts["raised_otherwise"] += 1
                if len(self.broken) < SHOWN:
                    self.broken.append(f"{type(error).__name__}: {error}: {frame.hex()}")
                self._session = self._new_session()

    def _through_session(self, frame: bytes, *, damaged: bool) -> None:
        self.counts["packets"] += 1
        packet = channel.frame_header(self._below(2), len(frame)) + frame
        if damaged:
            packet = self._mutated(self._rng.choice([packet, *self._packets]))
        session = self._session
        try:
            session.receive_packet(packet, 0.0)
            if session.credit_due:
                session.next_packet(0.0)
        except RemoteProtocolError:
            self.counts["packets_refused"] += 1
            self._session = session = self._new_session()
        while (taken := session.take()) is not None:
            self._through_codec(taken)
        if session.peer_ended:
            self._session = self._new_session()

    def _through_codec(self, frame: bytes) -> None:
        try:
            message = decode(frame, limit=MAX_FRAME)
        except RemoteProtocolError:
            self.counts["refused"] += 1
            return
        if isinstance(message, Unknown):
            self.counts["unknown"] += 1
            return
        self.counts["decoded"] += 1
        text = frame[0] < 0x80
        again = decode(encode(message, text=text))
        if again != message:
            raise AssertionError(f"comes back as {again}")

    def _through_parser(self, sdp: str) -> None:
        self.counts["descriptions"] += 1
        try:
            facts = read_sdp(sdp)
        except RemoteProtocolError:
            self.counts["descriptions_refused"] += 1
            return
        again = read_sdp(write_sdp(facts))
        if (again.ufrag, again.pwd, again.role, again.mid) != (facts.ufrag, facts.pwd, facts.role, facts.mid):
            raise AssertionError(f"comes back as {again}")

    def _mutated(self, frame: bytes) -> bytes:
        below = self._below
        for _ in range(1 + below(below(4) + 1)):
            at = below(len(frame) + 1)
            match below(10):
                case 0 | 1 | 2 | 3 if at < len(frame):  # a bit
                    frame = frame[:at] + bytes((frame[at] ^ 1 << below(8),)) + frame[at + 1 :]
                case 4:  # cut off, or out
                    frame = frame[:at] + (frame[at + 1 + below(8) :] if below(2) else b"")
                case 5:  # another's end
                    other = self._frames[below(len(self._frames))]
                    frame = frame[:at] + other[below(len(other) + 1) :]
                case 6:  # another type
                    frame = frame[:at] + HEADERS[(chosen := below(len(HEADERS))) : chosen + 1] + frame[at + 1 :]
                case 7:  # a length that lies
                    frame = frame[:at] + LENGTHS[below(len(LENGTHS))] + frame[at:]
                case 8:  # some of it again
                    frame = frame[:at] + frame[at : at + 1 + below(32)] * (1 + below(4)) + frame[at:]
                case _:
                    frame = frame[:at] + self._rng.randbytes(1 + below(4)) + frame[at:]
        return frame

    def _below(self, limit: int) -> int:
        """As `randrange`, which takes three times as long."""
        return int(self._random() * limit)

    @staticmethod
    def _new_session() -> LinkSession:
        session = LinkSession(CONFIG, MAX_FRAME, channel.MAX_PACKET, 0.0)
        session.receive_packet(HELLO, 0.0)
        while session.next_packet(0.0) is not None:
            pass
        return session


def measure(frames: int, seed: int) -> dict[str, Any]:
    """Run, and say what came of it."""
    fuzz = Fuzz(seed)
    began = perf_counter()
    fuzz.run(frames)
    seconds = perf_counter() - began
    rate = round(frames / seconds)
    return {
        "frames": frames,
        "seed": seed,
        **fuzz.counts,
        "seconds": round(seconds, 1),
        "frames_per_second": rate,
        "broken": fuzz.broken,
    }


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    row = measure(options.frames, options.seed)
    if options.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:20} {value}")
    raise SystemExit(1 if row["raised_otherwise"] else 0)


if __name__ == "__main__":
    main()
