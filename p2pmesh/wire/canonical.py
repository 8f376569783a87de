"""The bytes that a signature covers, or that a key is made of: fields, each after its length.

So no two rows of fields make the same bytes, whatever is in them. Each signature covers a domain, which says what is
signed, and the network: what was signed in one mesh counts for nothing in another.
"""

from __future__ import annotations

import struct

_length = struct.Struct(">I").pack
_long = struct.Struct(">Q").pack


def fields(*values: bytes) -> bytes:
    """Each value after its length in bytes, a 32-bit big-endian number."""
    return b"".join([_length(len(value)) + value for value in values])


def covered(domain: bytes, network: bytes, *values: bytes) -> bytes:
    """What a signature covers: a domain, which ends with a zero byte, then the network and the values as fields."""
    return domain + fields(network, *values)


def number(value: int) -> bytes:
    """A number as 64 bits, big-endian."""
    return _long(value)


def text(value: str) -> bytes:
    """A text in UTF-8. Never raises: half a surrogate pair is written as if it were a character."""
    return value.encode("utf-8", "surrogatepass")
