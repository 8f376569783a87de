"""What of a peer's session description reaches aiortc: one data channel section, written anew from what was checked.

aiortc's parser trusts its input. A hostile description could make it open codecs, transports and a check for each of
hundreds of addresses, or fail in any way. So nothing of the peer's text is passed on; the description that aiortc sees
is put together from the few attributes that a data channel needs, each of them matched and bounded. The fingerprints
are the very ones that the peer's signature covers.
"""

from __future__ import annotations

import ipaddress
import re

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocols.signaling.handshake import fingerprints
from p2pmesh.wire.messages import Signal

MAX_CANDIDATES = 32
"""Each of them is checked from each of our addresses; browsers with several interfaces offer about a dozen."""

_PATTERNS = {
    "ice-ufrag": re.compile(r"[A-Za-z0-9+/]{4,256}"),
    "ice-pwd": re.compile(r"[A-Za-z0-9+/]{22,256}"),
    "setup": re.compile(r"actpass|active|passive"),
    "mid": re.compile(r"[!-~]{1,32}"),
    "sctp-port": re.compile(r"[0-9]{1,5}"),
    "max-message-size": re.compile(r"[0-9]{1,10}"),
}
_REQUIRED = ("ice-ufrag", "ice-pwd", "setup", "mid")
_MEDIA = re.compile(r"m=application [0-9]{1,5} (?:UDP|TCP)/DTLS/SCTP webrtc-datachannel")
_CANDIDATE = re.compile(
    r"(?P<foundation>[A-Za-z0-9+/]{1,64}) (?P<component>1) (?P<transport>udp) (?P<priority>[0-9]{1,10})"
    r" (?P<host>[0-9A-Fa-f.:]{2,45}) (?P<port>[0-9]{1,5}) typ (?P<type>host|srflx|relay)(?: .*)?",
    re.IGNORECASE,
)


def clean_description(signal: Signal) -> str:
    """The description in an offer or answer, reduced to what a data channel needs.

    Raises:
      RemoteProtocolError: if it does not describe exactly one data channel section, or is malformed.
    """
    attributes: dict[str, str] = {}
    candidates: list[str] = []
    is_lite = is_complete = False
    sections = 0
    for line in (signal.sdp or "").splitlines():
        name, _, value = line.removeprefix("a=").partition(":")
        if line.startswith("m="):
            sections += 1
            if sections > 1 or not _MEDIA.fullmatch(line.rstrip()):
                raise RemoteProtocolError("a description asks for more than one data channel")
        elif not line.startswith("a="):
            continue
        elif name in _PATTERNS:
            attributes[name] = _checked(name, value.strip())
        elif name == "candidate":
            candidates.append(value.strip())
        elif name == "ice-lite":
            is_lite = True
        elif name == "end-of-candidates":
            is_complete = True
    if not sections:
        raise RemoteProtocolError("a description has no data channel")
    for name in _REQUIRED:
        if name not in attributes:
            raise RemoteProtocolError(f"a description has no {name}")
    usable = [known for candidate in candidates if (known := clean_candidate(candidate))][:MAX_CANDIDATES]
    # Only a full list may end the search: the peer's own checks reveal the addresses that it hides behind names.
    is_complete = is_complete and bool(usable) and len(usable) == len(candidates)
    return _written(signal, attributes, usable, is_lite=is_lite, is_complete=is_complete)


def clean_candidate(text: str) -> str | None:
    """A candidate as `foundation component udp priority address port typ type`; None if we have no use for it.

    TCP is not spoken. Names (`*.local`, by which browsers hide their addresses) are not looked up.
    """
    match = _CANDIDATE.fullmatch(text.removeprefix("a=").removeprefix("candidate:").strip())
    if match is None or int(match["port"]) > 65_535 or int(match["port"]) == 0 or int(match["priority"]) >= 1 << 32:
        return None
    try:
        address = ipaddress.ip_address(match["host"])
    except ValueError:
        return None
    if address.is_multicast or address.is_unspecified:
        return None
    return f"{match['foundation']} 1 udp {match['priority']} {address} {match['port']} typ {match['type'].lower()}"


def _checked(name: str, value: str) -> str:
    if not _PATTERNS[name].fullmatch(value):
        raise RemoteProtocolError(f"a description has a malformed {name}")
    return value


def _written(
    signal: Signal, attributes: dict[str, str], candidates: list[str], *, is_lite: bool, is_complete: bool
) -> str:
    mid = attributes["mid"]
    lines = ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", f"a=group:BUNDLE {mid}"]
    if is_lite:
        lines.append("a=ice-lite")
    lines += ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", f"a=mid:{mid}"]
    lines.append(f"a=sctp-port:{attributes.get('sctp-port', '5000')}")
    if "max-message-size" in attributes:
        lines.append(f"a=max-message-size:{attributes['max-message-size']}")
    lines += [f"a=candidate:{candidate}" for candidate in candidates]
    if is_complete:
        lines.append("a=end-of-candidates")
    lines += [f"a=ice-ufrag:{attributes['ice-ufrag']}", f"a=ice-pwd:{attributes['ice-pwd']}"]
    lines += [f"a=fingerprint:{fingerprint}" for fingerprint in fingerprints(signal)]
    lines.append(f"a=setup:{attributes['setup']}")
    return "\r\n".join(lines) + "\r\n"
