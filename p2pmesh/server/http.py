"""Just enough HTTP/1.1 for the signaling server's port: one request, then a page or the upgrade to WebSocket.

Each connection carries one request: pages here are small and rarely asked for, and "close" leaves no idle connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import h11
import trio
from attrs import frozen

_CHUNK: Final = 4096
_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    426: b"Upgrade Required",
}


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
    """The head of a request can't be read."""

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
    return any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers)


def answer(request: h11.Request, pages: Mapping[str, Page]) -> Response:
    """The page that is asked for."""
    if request.method not in {b"GET", b"HEAD"}:
        return Response(405, b"only GET and HEAD here\n", headers=(("Allow", "GET, HEAD"),))
    path = request.target.partition(b"?")[0].decode("ascii", "replace")
    page = pages.get(path)
    return Response(404, b"no such page\n") if page is None else page()
