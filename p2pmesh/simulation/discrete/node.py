"""One bare peer: all of its cores, composed by the one wiring table, and what carries out their effects. No Trio.

What the runtime does with tasks and inboxes happens here in one go: an input goes to its core, the core's effects are
carried out in their order, and notices to other cores of the same peer follow, until none is left.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Protocol, assert_never

from p2pmesh.config import MeshConfig
from p2pmesh.events import DirectReceived, Event
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    AcceptOffer,
    Core,
    DropLink,
    Effects,
    Emit,
    FeedSignal,
    InspectLink,
    Notify,
    Progress,
    Reply,
    SendFrame,
    SendSignaling,
    ServiceRefused,
    ServiceUnanswering,
    WallClock,
    WantLink,
)
from p2pmesh.protocols.inputs import Connect, InboxRead, Leave, LinkLoad, Received, Subsystem
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.wiring import AUDIENCE, OWNERS, build_cores
from p2pmesh.simulation.discrete.kernel import Kernel
from p2pmesh.simulation.discrete.links import BareLinks, Cargo, End
from p2pmesh.simulation.discrete.service import BareService, Line
from p2pmesh.simulation.discrete.traffic import KINDS
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.hostile_peer import Plot
from p2pmesh.simulation.model.trace import Mark
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Message
from p2pmesh.wire.signaling import SignalingMessage

_PLACES: Final = {subsystem: place for place, subsystem in enumerate(Subsystem)}
_ROUTING: Final = _PLACES[Subsystem.ROUTING]
_AUDIENCE: Final = {kind: tuple(_PLACES[subsystem] for subsystem in who) for kind, who in AUDIENCE.items()}
_OWNERS: Final = {
    kind: (None if owner is None else _PLACES[owner], KINDS[kind], Mark.MESSAGE + KINDS[kind])
    for kind, owner in OWNERS.items()
}
"""The wiring table by the places of cores in a list, which are found faster than members of an enum, with the number by
which the traffic knows each kind of message."""


NO_PLOT: Final = Plot()
"""That of peers which are not hostile."""


class Application(Protocol):
    """What hears what nodes tell their applications: the network that made them."""

    def emitted(self, node: BareNode, event: Event) -> None:
        """An event goes to a node's application."""

    def progressed(self, progress: Progress) -> None:
        """The origin of a broadcast learns how many peers have it."""

    def replied(self, reply: Reply) -> None:
        """A call of an application returns."""


class BareNode:
    """A peer of a `BareNetwork`, which makes it.

    Attributes:
      number: in the order in which peers came; traces and fault plans name it by that.
      identity: its keys.
      health: how late it is.
      pace: seconds that each thing takes that comes over a link; 0 for none.
      since: when it was started; `until`, when its process ended.
      joined_at: when a signaling service first let it in; infinite before.
      hostile: what it does against the others, if anything; `plot`, what it then knows of them.
      line: its connection to the service; `service_failures`, in a row. Both are the service's affair.
      directs_read: direct messages that its application has got.
      ignored: messages that no core has a use for.
    """

    __slots__ = (
        "_busy_until",
        "_deadlines",
        "_expires",
        "_handles",
        "_inputs",
        "_stopped_at",
        "_wakes",
        "application",
        "config",
        "cores",
        "directs_read",
        "health",
        "hostile",
        "identity",
        "ignored",
        "is_alive",
        "is_frozen",
        "is_leaving",
        "joined_at",
        "line",
        "links",
        "net",
        "number",
        "pace",
        "peer_id",
        "plot",
        "service",
        "service_failures",
        "since",
        "until",
        "wall",
    )

    def __init__(
        self,
        net: Kernel,
        service: BareService,
        application: Application,
        number: int,
        identity: Identity,
        config: MeshConfig,
        wall: WallClock,
        rng: random.Random,
    ) -> None:
        self.net: Kernel = net
        self.service: BareService = service
        self.application: Application = application
        self.number: int = number
        self.identity: Identity = identity
        self.peer_id: PeerId = identity.peer_id
        self.config: MeshConfig = config
        self.wall: WallClock = wall
        self.health: LocalHealth = LocalHealth()
        self.cores: Mapping[Subsystem, Core] = build_cores(identity, config, rng, wall, self.health)
        ordered = [self.cores[subsystem] for subsystem in Subsystem]
        self._handles = [core.handle for core in ordered]
        self._deadlines = [core.next_deadline for core in ordered]
        self._expires = [core.expire for core in ordered]
        self._wakes = [math.inf] * len(ordered)
        self._stopped_at = 0.0
        self._busy_until = 0.0
        self.pace: float = 0.0
        self._inputs: deque[tuple[int, Input]] = deque()  # that wait for cores, by the cores' places
        self.links: BareLinks = BareLinks(net, self, config.max_peers)
        self.line: Line | None = None
        self.service_failures: int = 0
        self.is_alive: bool = True
        self.is_frozen: bool = False
        self.is_leaving: bool = False
        self.since: float = net.now
        self.until: float = math.inf
        self.joined_at: float = math.inf
        self.hostile: Adversary | None = None
        self.plot: Plot = NO_PLOT
        self.ignored: int = 0
        self.directs_read: int = 0

    def __repr__(self) -> str:
        return f"<peer n{self.number} {self.peer_id[:8]}>"

    @property
    def is_running(self) -> bool:
        """Whether its process lives and is not stopped."""
        return self.is_alive and not self.is_frozen

    @property
    def peers(self) -> list[PeerId]:
        """Its neighbours, in the order in which they came."""
        return list(self.links.ends)

    @property
    def rng(self) -> random.Random:
        """What draws the acts of a hostile peer: the network's generator."""
        return self.net.rng

    @property
    def network(self) -> bytes:
        """What signatures name."""
        return self.config.network

    @property
    def wall_ms(self) -> int:
        """Its wall clock."""
        return int(self.wall(self.net.now) * 1000)

    def snapshot(self) -> dict[str, Any]:
        """Statistics, in the shape of `Mesh.snapshot`."""
        return {
            "peer_id": self.peer_id,
            "room": self.config.room,
            "max_peers": self.config.max_peers,
            "peers": self.peers,
            "subsystems": {subsystem.value: dict(core.snapshot()) for subsystem, core in self.cores.items()},
            "links": self.links.snapshot(),
            "transports": {self.service.name: self.service.snapshot_of(self)},
            "moderation": {},  # nobody here blocks or validates
            "ignored_messages": self.ignored,
        }

    # --- inputs -------------------------------------------------------------------------------------------------------

    def report(self, event: Input) -> None:
        """An input from the network or the application, for the cores that it concerns."""
        inputs = self._inputs
        for place in _AUDIENCE[type(event)]:
            inputs.append((place, event))
        self._drain()

    def arrive(self, end: End, cargo: Cargo) -> None:
        """Take what came over a link. Nearly every event of a simulation is one of these, hence no calls in between."""
        if end.gone:
            return
        if end.held is not None:
            end.held.append(cargo)
            return
        net = self.net
        now = end.heard = net.now
        owner = _OWNERS.get(type(cargo))  # type: ignore[arg-type]
        if owner is None:
            self.links.take_odd(end, cargo)
            return
        if end.closing is not None:  # what comes while we close is dropped
            return
        if net.encode_frames:
            cargo = decode(encode(cargo))  # type: ignore[arg-type, assignment]
        place, kind, mark = owner
        net.arrived[kind] += 1
        net.log((now, mark, end.far_number, self.number, 0.0))
        if place is None:
            self.ignored += 1
            return
        effects = self._handles[place](Received(end.peer, cargo), now)  # type: ignore[arg-type]
        if effects:
            self._carry_out(effects)
            if self._inputs:
                self._drain()
        deadline = self._deadlines[place]()
        if deadline < self._wakes[place]:
            self._wake_at(place, deadline)

    def arrive_in_turn(self, end: End, cargo: Cargo) -> None:
        """Take what came once all that came before is done, at the pace of this peer."""
        turn = max(self.net.now, self._busy_until) + self.pace
        self._busy_until = turn
        self.net.at(turn, self.arrive, end, cargo)

    def work_at(self, pace: float) -> None:
        """Have each thing that comes take so many seconds from now on."""
        self.pace = pace
        for end in self.links.ends.values():
            end.arrive = self.arrive_in_turn if pace else self.arrive

    def _drain(self) -> None:
        """Give the cores the inputs that wait for them, and those that follow."""
        inputs, now, handles = self._inputs, self.net.now, self._handles
        touched = 0
        while inputs:
            place, event = inputs.popleft()
            touched |= 1 << place
            effects = handles[place](event, now)
            if effects:
                self._carry_out(effects)
        while touched:
            place = touched.bit_length() - 1
            touched ^= 1 << place
            deadline = self._deadlines[place]()
            if deadline < self._wakes[place]:
                self._wake_at(place, deadline)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _wake_at(self, place: int, deadline: float) -> None:
        self._wakes[place] = deadline
        self.net.at(max(deadline, self.net.now), self._wake, place, deadline)

    def _wake(self, place: int, deadline: float) -> None:
        """Wake a core at its deadline, unless that was put off. An earlier deadline makes this one void."""
        if self._wakes[place] != deadline:
            return
        self._wakes[place] = math.inf
        if not self.is_running:
            return
        net = self.net
        if self._deadlines[place]() <= net.now:
            net.log((net.now, Mark.EXPIRE, self.number, -1, place))
            effects = self._expires[place](net.now)
            if effects:
                self._carry_out(effects)
            if self._inputs:
                self._drain()
        deadline = self._deadlines[place]()
        if deadline < self._wakes[place]:
            self._wake_at(place, deadline)

    def freeze(self) -> None:
        """Stop the process: it does nothing, and does not know it."""
        self.is_frozen = True
        self._stopped_at = self.net.now
        for end in self.links.ends.values():
            if end.held is None:
                end.held = deque()

    def thaw(self) -> None:
        """Let it go on. What it should have done meanwhile it does now; what came meanwhile it finds waiting."""
        self.is_frozen = False
        self.health.note(self._stopped_at, self.net.now)
        for place, next_deadline in enumerate(self._deadlines):
            deadline = next_deadline()
            if deadline < self._wakes[place]:
                self._wake_at(place, deadline)
        for end in list(self.links.ends.values()):
            if end.held is None:
                continue
            if self.net.passes(end.far.owner, self):
                self.links.release(end)
            else:
                self.links.await_contact(end, self.net.now)  # a session that slept doubts itself first

    # --- the end ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Say goodbye; after `leave_timeout` the process ends."""
        if not self.is_running or self.is_leaving:
            return
        self.is_leaving = True
        self.report(Leave())
        self.net.after(self.config.leave_timeout, self._left, None)

    def _left(self, *_: object) -> None:
        self.stop("left")

    def stop(self, reason: str) -> None:
        """End the process: the kernel closes its connection to the service, and its links fall silent."""
        if not self.is_alive:
            return
        self.net.mark(Mark.STOP, self.number, -1, reason)
        self.is_alive = False
        self.until = self.net.now
        self.links.vanish()
        self.service.vanish(self)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case SendFrame():
                    if self.hostile is None or self.hostile.lets_pass(effect, self):
                        self.links.send(effect.peers, effect.message, urgent=effect.urgent)
                case Notify():
                    self._inputs.append((_PLACES[effect.subsystem], effect.input))
                case Emit():
                    self.application.emitted(self, effect.event)
                    if isinstance(effect.event, DirectReceived):  # an application that reads at once
                        self.directs_read += 1
                        self._inputs.append((_ROUTING, InboxRead(self.directs_read, self.config.direct_inbox)))
                case InspectLink():
                    end = self.links.ends.get(effect.peer)
                    waiting = 0.0 if end is None else 1000 * end.path.queued(self.net.now)  # as if 1 kB/s: what counts
                    self._inputs.append((_ROUTING, LinkLoad(effect.peer, 0, int(waiting), int(1000 * self.net.now))))
                case Progress():
                    self.application.progressed(effect)
                case Reply():
                    self.application.replied(effect)
                case WantLink():
                    self.links.begin(effect.peer)
                case AcceptOffer():
                    self.links.begin(effect.peer.peer_id, effect.peer, effect.description)
                case FeedSignal():
                    self.links.feed(effect.peer, effect.signal)
                case DropLink():
                    self.links.drop(effect.peer, effect.reason, blame=effect.blame)
                case SendSignaling():
                    if self.hostile is None:
                        self.service.send(self, effect.message)
                    elif (said := self.hostile.twisted(effect.message, self)) is not None:
                        self.service.send(self, said)
                case ServiceRefused():
                    self.service.refuse(self, effect.reason)
                case ServiceUnanswering():
                    pass  # lines carry again here once the service is reached: another would do no better
                case _:
                    assert_never(effect)

    # --- what an adversary makes it do --------------------------------------------------------------------------------

    def send_frame(self, peers: tuple[PeerId, ...], message: Message, *, urgent: bool) -> None:
        """Send a message to neighbours, whatever the cores think of it."""
        self.links.send(peers, message, urgent=urgent)

    def send_bytes(self, peer: PeerId, frame: bytes) -> None:
        """Send a neighbour bytes that are no message."""
        self.links.transmit(self.links.ends[peer], frame)

    def tell_service(self, message: SignalingMessage) -> None:
        """Send a message to the service, whatever the cores think of it."""
        self.service.send(self, message)

    def court(self, peer: PeerId) -> None:
        """Want a link to a peer, as if the application had called for it."""
        self.report(Connect(-1, peer))
