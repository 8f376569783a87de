"""The signaling service of bare nodes: the real server's decisions (`Presence`), without its sockets.

Messages cross as the text that would go over a WebSocket, so what the server counts, it counts truly.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from p2pmesh.config import MeshConfig
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import ServiceDown, ServiceUp, Signaled
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.util.timers import Backoff
from p2pmesh.server.config import ServerConfig
from p2pmesh.server.presence import Close, Order, Presence, Send
from p2pmesh.simulation.discrete.kernel import Kernel, Peer
from p2pmesh.simulation.model.trace import Mark
from p2pmesh.wire.codec import decode_signaling, encode_signaling
from p2pmesh.wire.messages import Unknown
from p2pmesh.wire.signaling import SignalingMessage

STEADY: Final = 5.0
"""Seconds after which a connection counts as a success, as in the runtime."""
REFUSED: Final = 64
"""Failures that a refusal counts for: the longest wait at once, as in the runtime."""
SILENCE: Final = 45.0
"""Seconds until both sides of a connection notice that nothing passes: a ping after 30 s, and 15 s for the pong."""


class Client(Peer, Protocol):
    """What the service needs of a node, and keeps there: its line, and how often in a row that failed."""

    config: MeshConfig
    is_frozen: bool
    is_leaving: bool
    line: Line | None
    service_failures: int

    def report(self, event: Input) -> None:
        """An input for the cores."""


class Line:
    """A node's connection to the service."""

    __slots__ = ("down_at", "failed", "held", "node", "number", "since", "up_at")

    def __init__(self, node: Client, number: int, now: float) -> None:
        self.node: Client = node
        self.number: int = number
        self.since: float = now
        self.failed: bool = False
        self.up_at: float = now
        self.down_at: float = now
        self.held: deque[str | None] | None = None
        """Texts, or None for the end, that wait for a node that is frozen or out of reach."""


class BareService:
    """One service, up from the start. `name` is what nodes call it."""

    name = "service"

    def __init__(self, net: Kernel, config: ServerConfig, rng: random.Random, wall: WallClock) -> None:
        self._net = net
        self._config = config
        self._rng = rng
        self._wall = wall
        self._presence: Presence | None = None
        self._lines: dict[int, Line] = {}
        self._strangers: dict[int, Callable[[str], Iterable[str]]] = {}
        self._last_number = 0
        self._wakes_at = math.inf
        self.sent: int = 0
        self.received: int = 0
        self.dropped: int = 0
        """Messages that nodes sent, that they received, and that they dropped since the service was down."""
        self.kinds_in: Counter[str] = Counter()
        self.kinds_out: Counter[str] = Counter()
        """Of those that came to the service, and of those that nodes got from it, how many were of each kind."""
        self.bytes: int = 0
        self.start()

    @property
    def is_up(self) -> bool:
        return self._presence is not None

    @property
    def lines(self) -> int:
        """Open connections."""
        return len(self._lines)

    def start(self, presence: Presence | None = None) -> None:
        """Bring it up, knowing nobody; `presence` makes its decisions in place of a new one of the real server."""
        if self._presence is None:
            self._presence = presence or Presence(self._config, self._rng, self._wall)
            self._wakes_at = math.inf

    def stop(self) -> None:
        """Take it down: all connections end at once."""
        self._presence = None
        self._strangers.clear()
        lines, self._lines = self._lines, {}
        for line in lines.values():
            self._send_down(line, None)

    def snapshot(self) -> dict[str, Any]:
        """Its statistics; empty while it is down."""
        return {} if self._presence is None else self._presence.snapshot()

    @staticmethod
    def snapshot_of(node: Client) -> dict[str, Any]:
        """Statistics of a node's connection."""
        return {"up": node.line is not None}

    def stranger(self, address: str, first: str, answers: Callable[[str], Iterable[str]]) -> int:
        """A client that is no node: it says `first`, and to whatever it hears what `answers` gives.

        Returns the number of its connection.
        """
        self._last_number += 1
        number = self._last_number
        if self._presence is not None:
            self._strangers[number] = answers
            self._carry_out(self._presence.connected(number, address, self._net.now))
            self._hear_stranger(number, first)
        return number

    # --- what nodes do ------------------------------------------------------------------------------------------------

    def dial(self, node: Client) -> None:
        """Connect, and connect again whenever that ends."""
        self._net.after(self._net.service_latency, self._connect, node)

    def send(self, node: Client, message: SignalingMessage) -> None:
        """Send a message to the service; dropped if there is no connection."""
        line = node.line
        if line is None or line.failed:
            self.dropped += 1
            return
        self.sent += 1
        self.kinds_in[_kind_of(message)] += 1
        text = encode_signaling(message)
        self.bytes += len(text)
        line.up_at = max(line.up_at, self._net.now + self._net.service_latency)
        self._net.at(line.up_at, self._hear, line, text)

    def refuse(self, node: Client, reason: str) -> None:
        """End the connection of a node that was turned away; it waits long before the next."""
        line = node.line
        if line is not None and not line.failed:
            node.service_failures = REFUSED
            self._net.after(0.0, self._end_from_below, line, reason)

    def vanish(self, node: Client) -> None:
        """The node's process is gone: its kernel closes the connection."""
        line, node.line = node.line, None
        if line is not None and not line.failed:
            line.failed = True
            self._net.after(self._net.service_latency, self._gone, line)

    def refresh(self, line: Line) -> None:
        """The network has changed: let pass what was held, or let the line fall silent."""
        node = line.node
        if line.failed or not node.is_alive:
            return
        if not self._net.reaches_service(node):
            self._net.after(SILENCE, self._silent_for_too_long, line)
        elif line.held is not None and not node.is_frozen:
            held, line.held = line.held, None
            for text in held:
                self._tell(line, text)

    def _silent_for_too_long(self, line: Line, _: object) -> None:
        if not line.failed and not self._net.reaches_service(line.node):
            self._end_from_below(line, f"silent for {SILENCE:g} s")

    # --- what happens -------------------------------------------------------------------------------------------------

    def _connect(self, node: Client, _: object) -> None:
        if not node.is_alive or node.is_leaving or node.line is not None:
            return
        if node.is_frozen:
            self._net.after(1.0, self._connect, node)
            return
        if self._presence is None or not self._net.reaches_service(node):
            node.report(ServiceDown(self.name, "it can't be reached"))
            self._again(node)
            return
        self._last_number += 1
        line = node.line = self._lines[self._last_number] = Line(node, self._last_number, self._net.now)
        # An address for each: the limit on clients of one address is against strangers.
        self._carry_out(self._presence.connected(line.number, f"peer {line.number}", self._net.now))
        node.report(ServiceUp(self.name))

    def _again(self, node: Client) -> None:
        node.service_failures += 1
        config = node.config.signaling
        delay = Backoff(config.retry_first, config.retry_cap).delay(node.service_failures, self._net.rng)
        self._net.after(delay, self._connect, node)

    def _hear(self, line: Line, text: str) -> None:
        """A text arrives at the service."""
        if self._presence is None or line.number not in self._lines:
            return
        if not self._net.reaches_service(line.node):
            return  # lost with its connection, or sent again by the core
        self._net.mark(Mark.SERVICE, line.node.number, -1, "")
        self._carry_out(self._presence.received(line.number, text, self._net.now))

    def _hear_stranger(self, number: int, text: str) -> None:
        if self._presence is not None and number in self._strangers:
            self._carry_out(self._presence.received(number, text, self._net.now))

    def _tell_stranger(self, number: int, text: str) -> None:
        for said in self._strangers[number](text) if number in self._strangers else ():
            self._net.after(self._net.service_latency, self._hear_stranger, number, said)

    def _tell(self, line: Line, text: str | None) -> None:
        """A text arrives at the node; None for the connection's end."""
        node = line.node
        if line.failed or not node.is_alive:
            return
        if line.held is not None or node.is_frozen or not self._net.reaches_service(node):
            line.held = deque() if line.held is None else line.held
            line.held.append(text)
            return
        if text is None:
            self._end_from_below(line, "the service closed the connection")
            return
        self.received += 1
        self.bytes += len(text)
        message = decode_signaling(text)
        self.kinds_out[_kind_of(message)] += 1
        if not isinstance(message, Unknown):
            self._net.mark(Mark.SERVICE, -1, node.number, "")
            node.report(Signaled(self.name, message))

    def _end_from_below(self, line: Line, reason: str) -> None:
        """The node's side of the connection is gone."""
        if line.failed:
            return
        line.failed = True
        node = line.node
        node.line = None
        if self._net.now - line.since >= STEADY and node.service_failures < REFUSED:
            node.service_failures = 0
        self._net.after(self._net.service_latency, self._gone, line)
        node.report(ServiceDown(self.name, reason))
        if not node.is_leaving:
            self._again(node)
        if node.service_failures > REFUSED:
            node.service_failures = 1  # the long wait was for this once

    def _gone(self, line: Line, _: object) -> None:
        """The service notices that a client is gone."""
        if self._presence is not None and self._lines.pop(line.number, None) is not None:
            self._carry_out(self._presence.disconnected(line.number, self._net.now))

    # --- orders -------------------------------------------------------------------------------------------------------

    def _carry_out(self, orders: Iterable[Order]) -> None:
        todo = deque(orders)
        while todo:
            match todo.popleft():
                case Send(number, text):
                    line = self._lines.get(number)
                    if line is not None:
                        self._send_down(line, text)
                    elif number in self._strangers:
                        self._net.after(self._net.service_latency, self._tell_stranger, number, text)
                case Close(number, _, _):
                    line = self._lines.pop(number, None)
                    if self._strangers.pop(number, None) is not None and self._presence is not None:
                        todo.extend(self._presence.disconnected(number, self._net.now))
                    if line is not None and self._presence is not None:
                        self._send_down(line, None)
                        todo.extend(self._presence.disconnected(number, self._net.now))
        self._wind()

    def _send_down(self, line: Line, text: str | None) -> None:
        line.down_at = max(line.down_at, self._net.now + self._net.service_latency)
        self._net.at(line.down_at, self._tell, line, text)

    def _wind(self) -> None:
        if self._presence is None:
            return
        deadline = self._presence.next_deadline()
        if deadline < self._wakes_at:
            self._wakes_at = deadline
            self._net.at(max(deadline, self._net.now), self._expire, deadline)

    def _expire(self, deadline: float, _: object) -> None:
        if self._presence is None or self._wakes_at != deadline:
            return
        self._wakes_at = math.inf
        self._carry_out(self._presence.expire(self._net.now))


def _kind_of(message: SignalingMessage | Unknown) -> str:
    return "unknown" if isinstance(message, Unknown) else str(message.__struct_config__.tag)
