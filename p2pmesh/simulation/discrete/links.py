"""The links of bare nodes: a model of what the link keeper and the link session make of a path, without their tasks.

An attempt makes its description after a moment; an answered offer opens on both sides, one after the other; a frame is
an event of its own; a graceful close is seen by the other side at once and answered. A far end that falls silent, by a
crash, a freeze or a partition, is given up when the keepalive of a real session would give it up: `keepalive_idle` and
then `keepalive_pings` times `keepalive_interval` after it was last heard. Before that it is suspected: `doubt_after`
and two round trips after something is sent to it, or after the first ping if nothing is. Pings that are answered change
nothing and are not simulated, so an idle link costs nothing.

What is sent into silence is not lost but late, as on a real link: it arrives when the path heals, if the link still
exists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol, TypeAlias

import attrs
from attrs import define, frozen

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import LinkDown, LinkLost, LinkRecovered, LinkSuspected, LinkUp, LocalSignal, RemotePeer
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.simulation.discrete.kernel import Kernel, Peer
from p2pmesh.simulation.discrete.traffic import parse, size_of
from p2pmesh.simulation.model.conditioner import Break, Path
from p2pmesh.simulation.model.sdp_stub import describe, parse_description
from p2pmesh.simulation.model.trace import Mark
from p2pmesh.wire.messages import PROTOCOL_VERSION, Description, Facts, IceCandidate, Message

DESCRIBE: Final = 0.010
"""Seconds that it takes to make a description: about what aiortc takes on one machine."""
ROUND_TRIPS_TO_OPEN: Final = 3
"""ICE checks, DTLS and SCTP, from the answer's arrival to the open channel."""
CHECK_EVERY: Final = 1.0
"""Seconds between checks of a path that does not pass: ICE goes on checking until the attempt's time is over."""


@frozen
class Close:
    """In place of a frame: the sender has closed the link, or has seen that the receiver did."""

    reason: str
    answers: bool


CLOSE: Final = Close("closed by the peer", answers=False)
CLOSED: Final = Close("closed", answers=True)

Cargo: TypeAlias = Message | Close | bytes
"""What a link carries: messages as they are, and bytes that are none."""


class LinkOwner(Peer, Protocol):
    """What links need of the node that has them."""

    identity: Identity
    peer_id: PeerId
    config: MeshConfig
    health: LocalHealth
    links: BareLinks
    pace: float

    def report(self, event: Input) -> None:
        """An input for the cores."""

    def arrive(self, end: End, cargo: Cargo) -> None:
        """Something came over a link."""

    def arrive_in_turn(self, end: End, cargo: Cargo) -> None:
        """As `arrive`, once all that came before is done."""


class Attempt:
    """A link in the making, at one side; `lost` is what its owner had lost of its time when it was last looked at."""

    __slots__ = (
        "answers",
        "done",
        "far_fingerprint",
        "far_token",
        "fingerprint",
        "lost",
        "owner",
        "peer",
        "remote",
        "token",
    )

    def __init__(self, owner: LinkOwner, peer: PeerId, remote: RemotePeer | None, offer: Description | None) -> None:
        self.owner: LinkOwner = owner
        self.lost: float = owner.health.lost
        self.peer: PeerId = peer
        self.remote: RemotePeer | None = remote
        self.answers: Description | None = offer
        self.done: bool = False
        self.token: str = ""
        self.fingerprint: bytes = b""
        self.far_token: str = ""
        self.far_fingerprint: bytes = b""


class End:
    """One end of an open link.

    Attributes:
      path: leads to the far end.
      held: what came while nothing could come in, in order; None while all comes in.
      blamed: the far end broke the protocol.
      closing: why this end is being closed; None while it is open.
      heard: when something last came over the link.
      silences: how often the far end fell silent or was heard again, which tells stale alarms from current ones.
      asked: something was sent into the present silence.
      suspected: the cores were told of that.
    """

    __slots__ = (
        "arrive",
        "asked",
        "blamed",
        "closing",
        "far",
        "far_number",
        "gone",
        "heard",
        "held",
        "owner",
        "path",
        "peer",
        "silences",
        "suspected",
    )

    far: End

    def __init__(self, owner: LinkOwner, peer: PeerId, far_number: int, path: Path, now: float) -> None:
        self.owner: LinkOwner = owner
        self.arrive: Callable[[End, Cargo], None] = owner.arrive
        self.far_number: int = far_number
        self.peer: PeerId = peer
        self.path: Path = path
        self.gone: bool = False
        self.blamed: bool = False
        self.closing: str | None = None
        self.heard: float = now
        self.held: deque[Cargo] | None = deque()  # until it is open
        self.silences: int = 0
        self.asked: bool = False
        self.suspected: bool = False


@define
class LinkCounts:
    """What became of a node's links and frames."""

    attempts: int = 0
    opened: int = 0
    failed: int = 0
    closed: int = 0
    frames_dropped: int = 0
    frames_unsent: int = 0
    unknown_messages: int = 0
    protocol_errors: int = 0


class BareLinks:
    """The links of one bare node, at most `limit` of them, attempts included."""

    __slots__ = ("attempts", "counts", "ends", "limit", "net", "node")

    def __init__(self, net: Kernel, node: LinkOwner, limit: int) -> None:
        self.net: Kernel = net
        self.node: LinkOwner = node
        self.limit: int = limit
        self.ends: dict[PeerId, End] = {}
        self.attempts: dict[PeerId, Attempt] = {}
        self.counts: LinkCounts = LinkCounts()

    def snapshot(self) -> dict[str, Any]:
        """Statistics in the shape of the link keeper's; nothing is counted of single links."""
        return {
            **attrs.asdict(self.counts, recurse=False),
            "attempting": sorted(self.attempts),
            "open": {peer: {} for peer in self.ends},
        }

    # --- orders of the cores ------------------------------------------------------------------------------------------

    def begin(self, peer: PeerId, remote: RemotePeer | None = None, offer: Description | None = None) -> None:
        """Offer a link to `peer`, or answer its offer, instead of whatever attempt at it is under way."""
        net = self.net
        previous = self.attempts.pop(peer, None)
        if previous is not None:
            self._finish(previous)
        attempt = self.attempts[peer] = Attempt(self.node, peer, remote, offer)
        self.check_cap(peer)
        self.counts.attempts += 1
        net.after(DESCRIBE, self._describe, attempt)
        net.after(self.node.config.links.connect_timeout, self._time_is_over, attempt)

    def feed(self, remote: RemotePeer, signal: Facts) -> None:
        """Take the answer to an offer of ours."""
        attempt = self.attempts.get(remote.peer_id)
        if attempt is None or attempt.remote is not None or isinstance(signal, IceCandidate):
            return
        attempt.remote = remote
        attempt.far_token, attempt.far_fingerprint = parse_description(signal)
        answerer = self._attempt(attempt.far_token)
        trip = 0.0 if answerer is None else self.net.base(self.node.number, answerer.owner.number)
        self.net.after(ROUND_TRIPS_TO_OPEN * 2 * trip, self._connect, attempt)

    def drop(self, peer: PeerId, reason: str, *, blame: bool = False) -> None:
        """Close the link to `peer` after what was sent, or end the attempt at it."""
        if blame:
            self.counts.protocol_errors += 1
        attempt = self.attempts.pop(peer, None)
        if attempt is not None:
            self._finish(attempt)
        end = self.ends.get(peer)
        if end is None or end.closing is not None:
            return
        end.closing, end.blamed = reason, blame
        self.transmit(end, CLOSE)
        self.net.after(0.0 if blame else self.node.config.links.close_timeout, self._force_close, end)

    def send(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool) -> None:
        """Send a message to neighbours."""
        net = self.net
        now = net.now
        net.traffic.sent(message, len(peers))
        for peer in peers:
            end = self.ends.get(peer)
            if end is None or (end.closing is not None and not urgent):
                self.counts.frames_unsent += 1
                continue
            if end.held is not None:
                self._suspect_later(end)
            path = end.path
            if path.plain:
                far = end.far
                net.schedule(path.arrival(now), far.arrive, far, message)
            else:
                self._send_with_care(end, message)

    # --- carrying -----------------------------------------------------------------------------------------------------

    def transmit(self, end: End, cargo: Cargo) -> None:
        """Send something that is no message: it always arrives, once, after what was sent before."""
        self.net.at(end.path.arrival(self.net.now), end.far.arrive, end.far, cargo)

    def _send_with_care(self, end: End, message: Message) -> None:
        net, links = self.net, self.node.config.links
        waits = end.path.queued(net.now)
        if waits > links.outbox_patience:  # an outbox that is full for so long ends the link
            self.drop(end.peer, f"too slow: its queue was full for {links.outbox_patience:g} s")
            self.counts.frames_dropped += 1
            return
        decision = end.path.send(net.now, size_of(message) if end.path.is_narrow else 0)
        if isinstance(decision, Break):
            self.break_link(end, "the connection broke")
            return
        for arrival in decision:
            cargo = garbled(message) if arrival.corrupted else message
            net.at(arrival.time, end.far.arrive, end.far, cargo)

    def break_link(self, end: End, reason: str) -> None:
        """Let both sides lose the link in this moment, with all that is under way."""
        for side in (end, end.far):
            if not side.gone:
                self.net.after(0.0, self._broken, side, reason)

    def _broken(self, end: End, reason: str) -> None:
        if end.gone:
            return
        links = end.owner.links
        if links.ends.get(end.peer) is end:
            links.down(end, reason)
        else:  # it has not opened yet, and never will
            end.gone = True

    def take_odd(self, end: End, cargo: Cargo) -> None:
        """Take a close, or bytes that should be a message."""
        if isinstance(cargo, Close):
            if not cargo.answers:
                self.transmit(end, CLOSED)
            self.down(end, end.closing or cargo.reason)
        elif isinstance(cargo, bytes) and end.closing is None:
            message = parse(cargo)
            if message is None:
                self.counts.unknown_messages += 1
            elif isinstance(message, str):
                self.fail(end, message)
            else:
                self.node.arrive(end, message)

    def fail(self, end: End, complaint: str) -> None:
        """Close the link of a peer that broke the protocol, at once."""
        self.counts.protocol_errors += 1
        end.blamed = True
        self.transmit(end, CLOSE)
        self.down(end, f"protocol error: {complaint}")

    def down(self, end: End, reason: str, timed_out: float | None = None) -> None:
        """Drop this end, which is gone, and tell the cores."""
        end.gone = True
        end.held = None
        self.counts.closed += 1
        del self.ends[end.peer]
        self.net.mark(Mark.LINK_DOWN, self.node.number, end.far_number, reason)
        self.node.report(LinkDown(end.peer, reason, timed_out, end.blamed))

    def _force_close(self, end: End, _: object) -> None:
        if not end.gone:
            self.down(end, end.closing or "closed")

    # --- silence ------------------------------------------------------------------------------------------------------

    def refresh(self, end: End) -> None:
        """The network has changed: check whether the far end can still be heard."""
        passes = self.net.passes(end.far.owner, end.owner)
        if passes and end.held is not None:
            self.release(end)
        elif not passes and end.held is None:
            end.held = deque()
            # If nothing was to say, it was heard when it answered the last ping.
            links = self.node.config.links
            self.await_contact(end, self.net.now - (self.net.now - end.heard) % links.keepalive_idle)

    def await_contact(self, end: End, heard: float) -> None:
        """Give the far end up when its time is over, counted from when it was last heard."""
        links = self.node.config.links
        end.silences += 1
        end.heard = heard
        patience = links.keepalive_idle + links.keepalive_pings * links.keepalive_interval
        end.asked = False
        self.net.at(max(self.net.now, heard + patience), self._silent_for_too_long, end, end.silences)
        self.net.at(max(self.net.now, heard + links.keepalive_idle), self._ping, end, end.silences)

    def release(self, end: End) -> None:
        """Let what was held come in."""
        held, end.held = end.held, None
        end.silences += 1
        end.heard = self.net.now
        if end.suspected:
            end.suspected = False
            self.node.report(LinkRecovered(end.peer))
        with self.net.signatures:  # a network changes while time stands still, too
            for cargo in held or ():
                end.arrive(end, cargo)

    def _ping(self, end: End, silence: int) -> None:
        if end.silences == silence:
            self._suspect_later(end)

    def _suspect_later(self, end: End) -> None:
        """Something was sent to a far end that is silent: suspect it if it stays silent."""
        if not end.asked:
            end.asked = True
            self.net.after(self.node.config.links.doubt_after + 4 * end.path.base, self._suspect, end, end.silences)

    def _suspect(self, end: End, silence: int) -> None:
        if end.gone or end.suspected or end.silences != silence or end.closing is not None:
            return
        if self.node.is_running:
            end.suspected = True
            self.node.report(LinkSuspected(end.peer))

    def _silent_for_too_long(self, end: End, silence: int) -> None:
        if end.gone or end.silences != silence or not self.node.is_running:
            return
        self.transmit(end, CLOSE)
        seconds = self.net.now - end.heard
        self.down(end, f"silent for {seconds:.1f} s", seconds)

    # --- attempts -----------------------------------------------------------------------------------------------------

    def check_cap(self, peer: PeerId) -> None:
        """See that there is no link more than allowed, nor two to one peer."""
        taken = len(self.ends) + len(self.attempts)
        if taken > self.limit or (peer in self.ends and peer in self.attempts):
            self.net.violate(
                "link cap", f"n{self.node.number} has {taken} links and attempts, {self.limit} are allowed"
            )

    def _describe(self, attempt: Attempt, _: object) -> None:
        if attempt.done or not self.node.is_running:
            return
        if attempt.answers is not None:
            attempt.far_token, attempt.far_fingerprint = parse_description(attempt.answers)
            if not attempt.far_token:
                self._lose(attempt, "this offer is no description of the simulated network")
                return
        rng = self.net.rng
        attempt.token = f"{rng.getrandbits(64):016x}"
        attempt.fingerprint = rng.randbytes(32)
        self.net.attempts[attempt.token] = attempt
        role: Literal["actpass", "active"] = "actpass" if attempt.answers is None else "active"
        self.node.report(LocalSignal(attempt.peer, describe(attempt.token, attempt.fingerprint, role)))

    def _attempt(self, token: str) -> Attempt | None:
        return self.net.attempts.get(token)

    def _connect(self, attempt: Attempt, _: object) -> None:
        """Open the link to the attempt of the other side, if the network lets it pass."""
        if attempt.done:
            return
        net = self.net
        answerer = self._attempt(attempt.far_token)
        if answerer is None or not net.can_link(self.node, answerer.owner):
            net.after(CHECK_EVERY, self._connect, attempt)
            return
        if attempt.far_fingerprint != answerer.fingerprint or answerer.far_fingerprint != attempt.fingerprint:
            for side in (attempt, answerer):
                side.owner.links._lose(side, "the DTLS handshake failed")
            return
        sides = (attempt, answerer)
        near, far = (
            End(side.owner, side.peer, other.owner.number, net.path(side.owner, other.owner), net.now)
            for side, other in (sides, sides[::-1])
        )
        near.far, far.far = far, near
        for side in sides:
            net.attempts.pop(side.token, None)
        self._open(attempt, near)
        net.after(far.path.base, answerer.owner.links._open, answerer, far)

    def _open(self, attempt: Attempt, end: End) -> None:
        if attempt.done or not self.node.is_alive:  # given up in this very moment
            end.gone = True
            if self.node.is_alive:
                self.transmit(end, CLOSE)
            return
        if end.gone:
            self._lose(attempt, "the connection broke as it opened")
            return
        if not self.node.is_running:
            self.net.after(CHECK_EVERY, self._open, attempt, end)
            return
        attempt.done = True
        self.attempts.pop(attempt.peer, None)
        assert attempt.remote is not None  # noqa: S101  # an attempt that connects has its answer
        self._up(end, attempt.remote)

    def _up(self, end: End, remote: RemotePeer) -> None:
        """Take this end, which is open, and tell the cores."""
        self.ends[end.peer] = end
        if self.node.pace:
            end.arrive = self.node.arrive_in_turn
        self.check_cap(end.peer)
        self.counts.opened += 1
        self.net.mark(Mark.LINK_UP, self.node.number, end.far_number)
        self.node.report(LinkUp(remote))
        if end.gone:
            return
        if self.net.passes(end.far.owner, self.node):
            self.release(end)
        else:
            self.await_contact(end, self.net.now)

    def establish(self, other: LinkOwner, *, silent_for: float = 0.0) -> None:
        """Open a link to another peer in this moment, on both sides, without an attempt: for prebuilt meshes.

        Args:
          other: the peer.
          silent_for: nothing comes over the link for so many seconds.
        """
        net, sides = self.net, (self.node, other)
        near, far = (
            End(side, there.peer_id, there.number, net.path(side, there), net.now)
            for side, there in (sides, sides[::-1])
        )
        near.far, far.far = far, near
        for end in (near, far):
            end.path.stall(net.now + silent_for)
            key = end.far.owner.identity.public_key
            end.owner.links._up(end, RemotePeer(end.peer, verified=True, version=PROTOCOL_VERSION, public_key=key))

    def _time_is_over(self, attempt: Attempt, _: object) -> None:
        lost, attempt.lost = self.node.health.lost - attempt.lost, self.node.health.lost
        if lost and not attempt.done:
            self.net.after(lost, self._time_is_over, attempt)
            return
        self._lose(attempt, f"no link within {self.node.config.links.connect_timeout:g} s")

    def _lose(self, attempt: Attempt, reason: str) -> None:
        if attempt.done:
            return
        self._finish(attempt)
        self.attempts.pop(attempt.peer, None)
        if self.node.is_alive:
            self.counts.failed += 1
            self.node.report(LinkLost(attempt.peer, reason))

    def _finish(self, attempt: Attempt) -> None:
        attempt.done = True
        self.net.attempts.pop(attempt.token, None)

    def vanish(self) -> None:
        """Drop everything: the process is gone, and no core is told."""
        for attempt in self.attempts.values():
            self._finish(attempt)
        self.attempts.clear()
        ends, self.ends = self.ends, {}
        for end in ends.values():
            end.gone, end.held = True, None
            if not end.far.gone and end.far.owner.links.ends.get(end.far.peer) is end.far:
                end.far.owner.links.refresh(end.far)


def garbled(message: Message) -> bytes:
    """What a corrupted frame looks like: the first byte of a packed frame turned into one that starts nothing."""
    del message
    return b"\xc1"
