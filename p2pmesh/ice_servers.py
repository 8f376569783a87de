"""STUN and TURN servers as an application names them: every legal form of URL, and a reason for what can't work.

RFC 7064 and 7065 say how the URLs look, the WebRTC API (`RTCIceServer`) what comes with them. What is refused here
would otherwise fail much later, at a peer that can't be reached.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, cast

from attrs import field, frozen

from p2pmesh.errors import ConfigError

MAX_URLS = 32
"""Addresses of servers: each is asked for each link."""
MAX_CREDENTIAL = 512
"""Bytes of a user name or password (RFC 8489, section 14.3)."""

_URL: Final = re.compile(
    r"(?P<scheme>stuns?|turns?):(?P<host>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@%]+)(?::(?P<port>[0-9]*))?(?:\?(?P<query>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_QUERY: Final = re.compile(r"transport=(?P<transport>udp|tcp)", re.IGNORECASE)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_KEYS: Final = frozenset({"urls", "url", "username", "credential", "credentialType"})
_PASSWORD: Final = re.compile(r"(?<=:)([^:@?]*):[^?]*@")
"""What some write there, and is not to be shown."""
_FORM = "an address looks like stun:host:port or turn:host:port?transport=udp"


def _without_lists(urls: str | list[str] | tuple[str, ...]) -> str | tuple[str, ...]:
    return tuple(urls) if isinstance(urls, list) else urls


@frozen(kw_only=True)
class IceServer:
    """A STUN or TURN server: `stun:host:port`, or `turn:host:port?transport=udp` with user name and credential.

    `urls` may be several of one server, as a list. `LinkConfig` checks it.
    """

    urls: str | tuple[str, ...] = field(converter=_without_lists)
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


IceServersLike: TypeAlias = str | IceServer | Mapping[str, Any] | Iterable[str | IceServer | Mapping[str, Any]]
"""One server or several: URLs, `IceServer`s, or what a browser takes: `{"urls": ..., "username": ..., ...}`."""


@frozen
class IceUrl:
    """One address of a server, taken apart."""

    kind: Literal["stun", "turn"]
    host: str
    port: int
    transport: Literal["udp", "tcp"] = "udp"
    secure: bool = False
    username: str = ""
    credential: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = f"?transport={self.transport}" if self.kind == "turn" else ""
        return f"{self.kind}{'s' if self.secure else ''}:{host}:{self.port}{query}"

    @property
    def is_numeric(self) -> bool:
        """Whether there is no name to be looked up."""
        return _address(self.host) is not None


def ice_servers_of(value: IceServersLike) -> tuple[IceServer, ...]:
    """The servers that an application names, in whichever form.

    Raises:
      ConfigError: if one of them is malformed, or can't work.
    """
    if isinstance(value, str | IceServer | Mapping):
        entries: list[Any] = [value]
    else:
        try:
            entries = list(value)
        except TypeError:
            raise ConfigError(f"ice_servers is a list of servers, not {value!r:.60}") from None
    servers = tuple(_server(entry) for entry in entries)
    count = len(ice_urls_of(servers))
    if count > MAX_URLS:
        raise ConfigError(f"{count} addresses of ICE servers; at most {MAX_URLS} are asked for each link")
    return servers


def ice_urls_of(servers: Iterable[IceServer]) -> tuple[IceUrl, ...]:
    """All their addresses, each once, in their order.

    Raises:
      ConfigError: if one of them is malformed, or can't work.
    """
    return tuple(dict.fromkeys(_parse(url, server) for server in servers for url in _urls(server)))


def _server(entry: Any) -> IceServer:
    if isinstance(entry, str):
        return IceServer(urls=entry)
    if isinstance(entry, IceServer):
        return entry
    if not isinstance(entry, Mapping):
        raise ConfigError(f'an ICE server is a URL, an IceServer or a dict with "urls", not a {type(entry).__name__}')
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise ConfigError(f"an ICE server has {', '.join(sorted(_KEYS))}, but no {unknown[0]!r:.60}")
    if entry.get("credentialType", "password") != "password":
        raise ConfigError(f"credentials of ICE servers are passwords, not {entry['credentialType']!r:.60}")
    urls = entry.get("urls", entry.get("url"))
    if urls is None:
        raise ConfigError('an ICE server needs "urls"')
    return IceServer(urls=urls, username=entry.get("username"), credential=entry.get("credential"))


def _urls(server: IceServer) -> tuple[str, ...]:
    urls = (server.urls,) if isinstance(server.urls, str) else server.urls
    if not isinstance(urls, tuple) or not urls or not all(isinstance(url, str) for url in urls):
        raise ConfigError(f"the urls of an ICE server are text, or a list of texts, not {urls!r:.60}")
    return urls


def _parse(url: str, server: IceServer) -> IceUrl:
    def refuse(why: str) -> ConfigError:
        place = _PASSWORD.sub(r"\1:...@", url)
        return ConfigError(f"{place!r:.100} is no address of an ICE server that can be used: {why}")

    match = _URL.fullmatch(url)
    if match is None:
        raise refuse("it has a // too much" if "://" in url else _FORM)
    scheme, query = match["scheme"].lower(), match["query"]
    host = _host(match["host"])
    if host is None:
        raise refuse(f"there is no host {match['host']!r:.60}")
    port = int(match["port"].lstrip("0")[:6] or 0) if match["port"] else 5349 if scheme.endswith("s") else 3478
    if not 0 < port < 1 << 16:
        raise refuse("a port is a number from 1 to 65535")
    if scheme == "stuns":
        raise refuse("STUN over TLS is not supported, use stun: (nothing secret is in it)")
    if scheme == "stun":
        if query is not None:
            raise refuse("stun: has no ?transport")
        return IceUrl("stun", host, port)
    transport = _QUERY.fullmatch(query) if query is not None else None
    if query is not None and transport is None:
        raise refuse("what may follow is ?transport=udp or ?transport=tcp")
    carrier = transport["transport"].lower() if transport else "tcp" if scheme == "turns" else "udp"
    if scheme == "turns" and carrier == "udp":
        raise refuse("TURN over DTLS is not supported, use turns: with ?transport=tcp")
    for what, text in (("user name", server.username), ("credential", server.credential)):
        if not isinstance(text, str) or not text:
            said = "empty" if isinstance(text, str) else "missing" if text is None else "no text"
            raise refuse(f"TURN needs a user name and a credential, and the {what} is {said}")
        if not _is_sendable(text):
            raise refuse(f"its {what} is no text of at most {MAX_CREDENTIAL} bytes")
    return IceUrl(
        "turn",
        host,
        port,
        cast("Literal['udp', 'tcp']", carrier),
        secure=scheme == "turns",
        username=cast("str", server.username),
        credential=cast("str", server.credential),
    )


def _host(text: str) -> str | None:
    """A name in ASCII or an address, without brackets; None for what is neither."""
    if text.startswith("["):
        address = _address(text[1:-1])
        return str(address) if address is not None and address.version == 6 and _is_a_place(address) else None
    address = _address(text)
    if address is not None:
        return str(address) if _is_a_place(address) else None
    try:
        name = text.encode("idna").decode() if not text.isascii() else text
    except UnicodeError:
        return None
    labels = name.removesuffix(".").split(".")
    is_name = len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()
    return name.lower() if is_name else None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_a_place(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not (address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255")


def _is_sendable(text: str) -> bool:
    try:
        return len(text.encode()) <= MAX_CREDENTIAL
    except UnicodeEncodeError:
        return False
