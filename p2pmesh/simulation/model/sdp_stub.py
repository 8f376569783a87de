"""Session descriptions of the simulated network: the facts of a real one, with a token in it that finds the attempt."""

from __future__ import annotations

from typing import Final, Literal

from p2pmesh.wire.messages import Description, Fingerprint, IceCandidate

_PREFIX: Final = "simulated"
_CANDIDATES: Final = (
    IceCandidate(address=b"\n\0\0\1", port=50_000),
    IceCandidate(address=b"\xfd" + bytes(15), port=50_001),
)
"""As many as a machine has without any server: they are never used, but count in what offers cost."""


def describe(token: str, fingerprint: bytes, role: Literal["actpass", "active"]) -> Description:
    """The description of an attempt."""
    return Description(
        ufrag=token[:4],
        pwd=_PREFIX + token,
        fingerprints=(Fingerprint(value=fingerprint),),
        role=role,
        candidates=_CANDIDATES,
    )


def parse_description(description: Description) -> tuple[str, bytes]:
    """Token and fingerprint; both empty if it is no description of the simulated network."""
    token = description.pwd.removeprefix(_PREFIX)
    return ("", b"") if token == description.pwd else (token, description.fingerprints[0].value)
