"""Who a connection comes from: the address of its socket, or what a proxy says that is trusted to.

A proxy tells its customer's address by headers, `X-Forwarded-For` or `Forwarded` (RFC 7239), or before the first byte
of the connection, by the PROXY protocol, version 1 or 2 (haproxy's proxy-protocol.txt). Anybody can write either: only
that of a trusted address counts, and of a list of addresses only the part that trusted ones wrote. The packages for
the PROXY protocol are made for asyncio; what is needed of it is the 60 lines below.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final

import h11

from p2pmesh.server.addresses import Address, Networks, read_address
from p2pmesh.server.http import header_values

_HOPS: Final = 32
"""Proxies in a row that are looked through: a longer list is nobody's but an attacker's."""
_FORWARDED_FOR: Final = re.compile(r'(?:^|[;,\s])for="?([^",;\s]+)', re.IGNORECASE)
_FORWARDED_HOST: Final = re.compile(r'(?:^|[;,\s])host="?([^",;\s]+)', re.IGNORECASE)

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_START: Final = 15
"""Bytes that the shortest header has: `PROXY UNKNOWN` and its line's end."""
_V1_SIZE: Final = 107
_V2_HEAD: Final = 16
_V2_REST: Final = 4096
"""What follows the head of version 2: addresses, and extensions such as a name or a certificate's facts."""
_V2_FAMILIES: Final = {1: 4, 2: 16}
"""Bytes of an address of a family."""


class BadProxyHeader(Exception):
    """What a trusted proxy began a connection with is no header of the PROXY protocol."""


def customer(proxy: Address, request: h11.Request, trusted: Networks) -> Address:
    """Who is behind a trusted proxy, as the headers of its request say.

    It is the proxy itself if they say nothing that can be believed: where both kinds of headers are there and don't
    agree, the customer wrote one of them, and the proxy let it pass.
    """
    plain = b",".join(header_values(request, b"x-forwarded-for")).decode("latin-1")
    formal = b",".join(header_values(request, b"forwarded")).decode("latin-1")
    said = []
    if plain:
        said.append(_nearest(proxy, plain.split(","), trusted))
    if formal:
        said.append(_nearest(proxy, _FORWARDED_FOR.findall(formal), trusted))
    return said[0] if said and all(other == said[0] for other in said) else proxy


def hosts(request: h11.Request, *, forwarded: bool) -> list[bytes]:
    """What the client calls this server: its `Host`, and what a proxy says it was, if that is to be believed."""
    found = header_values(request, b"host")
    if forwarded:
        found += header_values(request, b"x-forwarded-host")
        formal = b",".join(header_values(request, b"forwarded")).decode("latin-1")
        found += [host.encode("latin-1") for host in _FORWARDED_HOST.findall(formal)]
    return found


def _nearest(proxy: Address, hops: list[str], trusted: Networks) -> Address:
    """The last address that is no proxy of ours. What comes before it was written by who knows."""
    found = proxy
    for hop in reversed(hops[-_HOPS:]):
        address = read_address(hop)
        if address is None:
            return found
        found = address
        if address not in trusted:
            return found
    return found


async def read_proxy_header(receive: Callable[[int], Awaitable[bytes]]) -> Address | None:
    """Take the header of the PROXY protocol that a connection begins with, and no byte more.

    Args:
      receive: gives the next bytes of the connection, at most so many and at least one; none at its end.

    Returns:
      whom the proxy speaks for; None if that is itself, as in its health checks.

    Raises:
      BadProxyHeader: if there is none.
    """
    head = await _exactly(receive, _START)
    if head.startswith(_V1):
        while not head.endswith(b"\n"):
            if len(head) >= _V1_SIZE:
                raise BadProxyHeader("no end of line")
            head += await _exactly(receive, 1)
        return parse_v1(head)
    head += await _exactly(receive, _V2_HEAD - _START)
    size = int.from_bytes(head[14:16], "big")
    if not head.startswith(_V2) or size > _V2_REST:
        raise BadProxyHeader("no PROXY protocol")
    return parse_v2(head, await _exactly(receive, size))


def parse_v1(line: bytes) -> Address | None:
    """Whom a line of version 1 names; None for itself.

    Raises:
      BadProxyHeader: if it is malformed.
    """
    match line.removesuffix(b"\r\n").split(b" "):
        case [b"PROXY", b"UNKNOWN", *_]:
            return None
        case [b"PROXY", b"TCP4" | b"TCP6" as family, source, _, _, _]:
            address = read_address(source.decode("latin-1"))
            if address is not None and (b":" in source) == (family == b"TCP6"):
                return address
        case _:
            pass
    raise BadProxyHeader("malformed PROXY line")


def parse_v2(head: bytes, rest: bytes) -> Address | None:
    """Whom a header of version 2 names: its first 16 bytes, and what they say follows. None for itself.

    Raises:
      BadProxyHeader: if it is malformed.
    """
    version, command = head[12] >> 4, head[12] & 15
    if version != 2 or command > 1:
        raise BadProxyHeader("unknown version or command")
    size = _V2_FAMILIES.get(head[13] >> 4)
    if command == 0 or size is None:  # itself; or a family that has no IP addresses
        return None
    if len(rest) < 2 * size + 4:
        raise BadProxyHeader("addresses are missing")
    return read_address(str(ip_address(rest[:size])))


async def _exactly(receive: Callable[[int], Awaitable[bytes]], size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = bytes(await receive(size - len(data)))
        if not chunk:
            raise BadProxyHeader("the connection ended")
        data += chunk
    return data
