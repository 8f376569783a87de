"""WebSocket URLs, taken apart once: what to connect to, what to say in the handshake, what may be shown to people."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Self, TypeAlias
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from attrs import field, frozen

from p2pmesh.checks import instance, shown, text
from p2pmesh.errors import ConfigError

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

_PORTS = {"ws": 80, "wss": 443}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_URL_SAFE = "/%:=&?~#+!$,;'@()*[]-._"
"""Left as they are in a path: what is quoted already stays so."""


@frozen
class Address:
    """Where a service is. Only `public` may be shown: the rest can hold secrets."""

    public: str
    secure: bool
    host: str
    port: int
    host_header: str
    resource: str = field(repr=False)
    authorization: Headers = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a `ws://` or `wss://` URL apart.

        Raises:
          ConfigError: if it is none, or lacks a host.
        """
        text("a URL", url, secret=True)
        place = public_url(url)
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("idna").decode()
        except ValueError as error:
            raise ConfigError(f"{place!r:.100} is no valid URL: its host or port is malformed") from error
        if parts.scheme not in _PORTS:
            raise ConfigError(f"{place!r:.100} is no WebSocket URL: it has to start with ws:// or wss://")
        if not host or _has_odd_characters(url):
            raise ConfigError(f"{place!r:.100} is no valid URL: ws://host:port is what it should look like")
        bracketed = f"[{host}]" if ":" in host else host
        return cls(
            public=place,
            secure=parts.scheme == "wss",
            host=host,
            port=port or _PORTS[parts.scheme],
            host_header=f"{bracketed}:{port}" if port else bracketed,
            resource=_resource(parts),
            authorization=_authorization(parts),
        )


def checked_headers(headers: Mapping[str, str]) -> Headers:
    """Header fields as bytes.

    Raises:
      ConfigError: if a name or value can't stand in an HTTP request. Values are not shown: they are often secret.
    """
    for name, value in instance("headers", headers, Mapping).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{shown(name)} can't be the name of an HTTP header")
        if not isinstance(value, str):
            raise ConfigError(f"the value of the HTTP header {name!r} is not text")
        if not _HEADER_VALUE.fullmatch(value) or value != value.strip():
            raise ConfigError(f"the value of the HTTP header {name!r} has characters that can't stand there")
    return tuple((name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items())


def public_url(url: str) -> str:
    """The part of a URL that may be shown: neither user info nor query, where tokens are."""
    head = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = head.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _has_odd_characters(url: str) -> bool:
    return any(character <= " " or character == "\x7f" for character in url)


def _resource(parts: SplitResult) -> str:
    query = f"?{parts.query}" if parts.query else ""
    return quote(f"{parts.path or '/'}{query}", safe=_URL_SAFE)


def _authorization(parts: SplitResult) -> Headers:
    if parts.username is None and parts.password is None:
        return ()
    pair = unquote_to_bytes(parts.username or "") + b":" + unquote_to_bytes(parts.password or "")
    return ((b"Authorization", b"Basic " + base64.b64encode(pair)),)
