"""Session descriptions as text (SDP, RFC 8866) to facts and back: one data channel section, written anew.

Browsers, aiortc and the original's peers speak SDP; our own peers exchange the facts in it (`Description`). Of a text
nothing is kept but the few attributes that a data channel needs, each of them matched and bounded; other lines are
ignored, however many there are. So nothing that a peer wrote reaches the parser of aiortc, which trusts its input: a
hostile text could make that open codecs, transports and a check for each of hundreds of addresses, or fail in any way.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.fields import MAX_CANDIDATES, MAX_FINGERPRINTS
from p2pmesh.wire.messages import HASH_SIZES, Description, Fingerprint, IceCandidate

_ATTRIBUTES: Final = {
    "ice-ufrag": "ufrag",
    "ice-pwd": "pwd",
    "setup": "role",
    "mid": "mid",
    "sctp-port": "sctpPort",
    "max-message-size": "maxMessage",
}
_REQUIRED: Final = ("ice-ufrag", "ice-pwd", "setup", "mid")
_NUMBERS: Final = frozenset({"sctp-port", "max-message-size"})
_UNSAID_MAX_MESSAGE: Final = 65_536
"""Where a text does not say how large a message may be (RFC 8841, section 6.1)."""
_LARGEST_NUMBER: Final = (1 << 32) - 1

_MEDIA = re.compile(r"m=application [0-9]{1,5} (?:UDP|TCP)/DTLS/SCTP webrtc-datachannel")
_NUMBER = re.compile(r"[0-9]{1,10}")
_FINGERPRINT = re.compile(r"a=fingerprint:([A-Za-z0-9-]{1,16}) +([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){15,63}) *")
# Would end a line for one parser and not for another, so that a fingerprint could hide from us; and halves of pairs.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_CANDIDATE = re.compile(
    r"[A-Za-z0-9+/]{1,64} 1 udp (?P<priority>[0-9]{1,10})"
    r" (?P<host>[0-9A-Fa-f.:]{2,45}|[0-9A-Za-z-]{11,58}\.local) (?P<port>[0-9]{1,5})"
    r" typ (?P<kind>host|srflx|prflx|relay)"
    r"(?: .*)?",
    re.IGNORECASE,
)
_TYPE_PREFERENCES: Final = {"host": 126, "srflx": 100, "relay": 0}


def read_sdp(sdp: str) -> Description:
    """The facts in a text.

    Raises:
      RemoteProtocolError: if it does not describe exactly one data channel section, or could be read in two ways.
    """
    if _FORBIDDEN.search(sdp):
        raise RemoteProtocolError("a description holds what is no text")
    facts: dict[str, object] = {"maxMessage": _UNSAID_MAX_MESSAGE}
    fingerprints: dict[Fingerprint, None] = {}
    candidates: list[str] = []
    complete = False
    sections = 0
    for line in sdp.splitlines():
        name, _, value = line.removeprefix("a=").partition(":")
        if line.lstrip().lower().startswith("a=fingerprint"):
            fingerprints[_fingerprint(line)] = None
        elif line.startswith("m="):
            sections += 1
            if sections > 1 or not _MEDIA.fullmatch(line.rstrip()):
                raise RemoteProtocolError("a description asks for more than one data channel")
        elif not line.startswith("a="):
            continue
        elif name in _ATTRIBUTES:
            facts[_ATTRIBUTES[name]] = _number(name, value.strip()) if name in _NUMBERS else value.strip()
        elif name == "candidate":
            candidates.append(value)
        elif name == "ice-lite":
            facts["lite"] = True
        elif name == "end-of-candidates":
            complete = True
    if not sections:
        raise RemoteProtocolError("a description has no data channel")
    for name in _REQUIRED:
        if _ATTRIBUTES[name] not in facts:
            raise RemoteProtocolError(f"a description has no {name}")
    if not fingerprints:
        raise RemoteProtocolError("a description holds no fingerprint")
    if len(fingerprints) > MAX_FINGERPRINTS:
        raise RemoteProtocolError(f"a description holds more than {MAX_FINGERPRINTS} fingerprints")
    usable = tuple(known for text in candidates if (known := read_candidate(text)))[:MAX_CANDIDATES]
    facts["fingerprints"] = tuple(fingerprints)
    facts["candidates"] = usable
    facts["complete"] = complete and len(usable) == len(candidates)
    try:
        return msgspec.convert(facts, Description)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a malformed description: {error}") from error


def write_sdp(description: Description) -> str:
    """The facts as a text.

    Candidates whose names would have to be looked up are left out, and addresses to which nothing can be sent.
    """
    mid = description.mid
    candidates = [
        f"a=candidate:{text}"
        for number, candidate in enumerate(description.candidates, 1)
        if (text := write_candidate(candidate, number))
    ]
    # Only a full list may end the search: the peer's own checks reveal the addresses that it hides behind names.
    is_complete = description.complete and 0 < len(candidates) == len(description.candidates)
    lines = [
        *("v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", f"a=group:BUNDLE {mid}"),
        *(["a=ice-lite"] if description.lite else []),
        *("m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", f"a=mid:{mid}"),
        f"a=sctp-port:{description.sctp_port}",
        f"a=max-message-size:{description.max_message}",
        *candidates,
        *(["a=end-of-candidates"] if is_complete else []),
        f"a=ice-ufrag:{description.ufrag}",
        f"a=ice-pwd:{description.pwd}",
        *(f"a=fingerprint:{text}" for text in fingerprints_of(description)),
        f"a=setup:{description.role}",
        "",
    ]
    return "\r\n".join(lines)


def fingerprints_of(description: Description) -> tuple[str, ...]:
    """The fingerprints as SDP has them: hash function, space, digits in upper case with colons; sorted, each once."""
    return tuple(sorted({f"{one.hash} {one.value.hex(':').upper()}" for one in description.fingerprints}))


def read_candidate(text: str) -> IceCandidate | None:
    """The facts in a candidate, with or without `candidate:` before it; None if we have no use for it, as for TCP."""
    match = _CANDIDATE.fullmatch(text.removeprefix("a=").removeprefix("candidate:").strip())
    if match is None:
        return None
    port, priority = int(match["port"]), int(match["priority"])
    kind = match["kind"].lower().replace("prflx", "srflx")  # seen by the peer itself rather than by a server
    address = _address(match["host"].lower())
    if address is None or not 0 < port < 1 << 16 or priority > _LARGEST_NUMBER:
        return None
    told = None if priority == _priority(kind) else priority
    return msgspec.convert({"address": address, "port": port, "kind": kind, "priority": told}, IceCandidate)


def write_candidate(candidate: IceCandidate, number: int = 1) -> str | None:
    """A candidate as text without `candidate:`, with `number` as its foundation; None if its address is of no use."""
    address, kind = candidate.address, candidate.kind
    if len(address) not in {4, 16}:
        return None
    ip = ipaddress.ip_address(address)
    if ip.is_multicast or ip.is_unspecified:
        return None
    priority = _priority(kind) if candidate.priority is None else candidate.priority
    return f"{number} 1 udp {priority} {ip} {candidate.port} typ {kind}"


def _address(host: str) -> bytes | None:
    if host.endswith(".local"):
        return host.encode()
    try:
        return ipaddress.ip_address(host).packed
    except ValueError:
        return None


def _priority(kind: str) -> int:
    """RFC 8445, section 5.1.2.1, for the first component and the highest local preference."""
    return (_TYPE_PREFERENCES[kind] << 24) + (65_535 << 8) + 255


def _fingerprint(line: str) -> Fingerprint:
    match = _FINGERPRINT.fullmatch(line)
    value = b"" if match is None else bytes.fromhex(match[2].replace(":", ""))
    if match is None or HASH_SIZES.get(match[1].lower()) != len(value):
        raise RemoteProtocolError("a description holds a malformed fingerprint")
    return msgspec.convert({"hash": match[1].lower(), "value": value}, Fingerprint)


def _number(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise RemoteProtocolError(f"a description has a malformed {name}")
    return min(int(value), _LARGEST_NUMBER)
