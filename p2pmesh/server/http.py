"""Just enough HTTP/1.1 for the signaling server's port: one request, then a page or the upgrade to WebSocket.

Each connection carries one request: pages here are small and rarely asked for, and "close" leaves no idle connections.
Headers are compared as the bytes they are: nothing in them is decoded that need not be, so nothing in them can fail to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

import h11
import trio
from attrs import frozen
from wsproto.utilities import generate_accept_token

_CHUNK: Final = 4096
_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
}
_WEBSOCKET_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
"""16 bytes in base64."""
_AUTHORITY: Final = re.compile(rb"(?:[a-z][a-z0-9+.-]*://)?(\[[0-9a-f:.]+\]|[^/:@\[\]]+)(?::[0-9]*)?", re.IGNORECASE)
"""The value of an `Origin` or `Host` header."""
ANY_ORIGIN: Final = "*"


@frozen
class Response:
    """What a page answers."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Page: TypeAlias = Callable[[], Response]
"""Makes the answer to a GET of one path. Synchronous: it must not take long."""


class BadRequest(Exception):
    """A request that is refused, with what it is answered."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.body.decode())
        self.response = response


class HttpConnection:
    """The server's end of one HTTP exchange."""

    def __init__(self, stream: trio.abc.Stream, head_size: int) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=head_size)
        self._bodiless = False

    async def request(self) -> h11.Request | None:
        """The head of the request; None if the client goes without one.

        Raises:
          BadRequest: if it is too long, or is not HTTP.
        """
        while (event := self._next_event()) is h11.NEED_DATA:
            self._h11.receive_data(bytes(await self._stream.receive_some(_CHUNK)))
        if not isinstance(event, h11.Request):
            return None
        self._bodiless = event.method == b"HEAD"
        return event

    def leftovers(self) -> bytes:
        """What the client sent after a request for an upgrade, in advance.

        Raises:
          BadRequest: if the request has a body.
        """
        if not isinstance(self._next_event(), h11.EndOfMessage):
            raise BadRequest(Response(400, b"a request for an upgrade has no body\n"))
        return self._h11.trailing_data[0]

    async def respond(self, response: Response) -> None:
        """Send the answer, the last one of this connection."""
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
            *response.headers,
        ]
        reason = _REASONS.get(response.status, b"")
        head = h11.Response(status_code=response.status, headers=headers, reason=reason)
        parts = (head, h11.Data(data=b"" if self._bodiless else response.body), h11.EndOfMessage())
        await self._stream.send_all(b"".join(self._h11.send(part) or b"" for part in parts))

    def _next_event(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(Response(error.error_status_hint, f"{error}\n".encode())) from error


def wants_websocket(request: h11.Request) -> bool:
    """Whether this is a request for an upgrade to WebSocket."""
    return b"websocket" in _tokens(request, b"upgrade")


def accept_upgrade(request: h11.Request) -> bytes:
    """The answer that begins the WebSocket connection which is asked for (RFC 6455 section 4.2).

    Raises:
      BadRequest: if the request lacks something.
    """
    keys = header_values(request, b"sec-websocket-key")
    if request.method != b"GET" or request.http_version != b"1.1":
        raise _bad_upgrade("is a GET of HTTP/1.1")
    if b"upgrade" not in _tokens(request, b"connection"):
        raise _bad_upgrade("has the header Connection: Upgrade")
    if header_values(request, b"sec-websocket-version") != [b"13"]:
        raise _bad_upgrade("has the header Sec-WebSocket-Version: 13", ("Sec-WebSocket-Version", "13"))
    if len(keys) != 1 or not _WEBSOCKET_KEY.fullmatch(keys[0]):
        raise _bad_upgrade("has one Sec-WebSocket-Key, of 16 bytes in base64")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n"
    ) % generate_accept_token(keys[0])


def check_origin(request: h11.Request, hosts: Collection[bytes], allowed: Collection[str]) -> None:
    """Refuse browsers that run a page of somebody else's: they would open this server's port wherever they can.

    Args:
      request: what is asked.
      hosts: what the client calls this server, as its `Host` header has it.
      allowed: origins, as `https://app.example`, that may connect too; `*` for all.

    Raises:
      BadRequest: if it comes from a page that is neither of this host nor allowed.
    """
    origins = header_values(request, b"origin")
    if not origins or ANY_ORIGIN in allowed:
        return
    own = {_host(host) for host in hosts} - {b""}
    known = {origin.rstrip("/").lower().encode() for origin in allowed}
    if not all(origin.lower() in known or _host(origin) in own for origin in origins):
        raise BadRequest(Response(403, b"pages of this origin may not connect: see the server's allowed origins\n"))


def answer(request: h11.Request, pages: Mapping[str, Page]) -> Response:
    """The page that is asked for."""
    if request.method not in {b"GET", b"HEAD"}:
        return Response(405, b"only GET and HEAD here\n", headers=(("Allow", "GET, HEAD"),))
    path = request.target.partition(b"?")[0].decode("ascii", "replace")
    page = pages.get(path)
    return Response(404, b"no such page\n") if page is None else page()


def header_values(request: h11.Request, name: bytes) -> list[bytes]:
    """The values of all headers of this name, which is in lower case."""
    return [value for key, value in request.headers if key == name]


def _tokens(request: h11.Request, name: bytes) -> set[bytes]:
    values = header_values(request, name)
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _host(value: bytes) -> bytes:
    """The host of an origin or an authority, without its port: whoever serves a host serves its ports."""
    found = _AUTHORITY.fullmatch(value)
    return found[1].lower() if found and value.lower() != b"null" else b""


def _bad_upgrade(wanted: str, *headers: tuple[str, str]) -> BadRequest:
    return BadRequest(Response(400, f"a request for an upgrade {wanted}\n".encode(), headers=headers))
