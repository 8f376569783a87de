"""Session descriptions of the simulated network: as much SDP as signaling needs, and a token that finds the attempt."""

from __future__ import annotations

from typing import Final

from p2pmesh.wire.messages import Signal

_SDP: Final = "v=0\r\na=fingerprint:sha-256 {fingerprint}\r\na=sim-token:{token}\r\n"


def describe(token: str, fingerprint: str) -> str:
    """The SDP of an attempt."""
    return _SDP.format(token=token, fingerprint=fingerprint)


def parse_description(signal: Signal) -> tuple[str, str]:
    """Token and fingerprint; both empty if it is no description of the simulated network."""
    token = fingerprint = ""
    for line in (signal.sdp or "").splitlines():
        if line.startswith("a=sim-token:"):
            token = line.removeprefix("a=sim-token:")
        elif line.startswith("a=fingerprint:sha-256 "):
            fingerprint = line.removeprefix("a=fingerprint:sha-256 ").upper()
    return (token, fingerprint) if token and fingerprint else ("", "")
