"""One peer, put together: the cores, their drivers, the links, the services and the bus, in one nursery.

This is the only place where effects are carried out.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, Final, assert_never

import trio

from p2pmesh.config import MeshConfig
from p2pmesh.errors import JoinRefused, MeshClosed, TransportUnavailable
from p2pmesh.events import (
    DirectReceived,
    Event,
    MessageDelivered,
    MessageFailed,
    PeerConnected,
    PeerDisconnected,
    TransportDown,
    TransportUp,
)
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, short
from p2pmesh.links.link import Dialer, local_health
from p2pmesh.protocols.broadcast.legacy import probe
from p2pmesh.protocols.core import (
    AcceptOffer,
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
from p2pmesh.protocols.inputs import Blocked, Disconnect, Leave, PeersFound, Received, Subsystem
from p2pmesh.protocols.notices import Input
from p2pmesh.protocols.wiring import OWNERS, audience_of, build_cores
from p2pmesh.receipts import Delivered, Failed, OpenReceipts
from p2pmesh.runtime.bus import Bus
from p2pmesh.runtime.calls import Calls
from p2pmesh.runtime.driver import Driver
from p2pmesh.runtime.inbox import Inbox
from p2pmesh.runtime.linkkeeper import LinkKeeper
from p2pmesh.runtime.moderation import BlockList, Moderator
from p2pmesh.runtime.services import Service
from p2pmesh.runtime.supervisor import supervise
from p2pmesh.transports.transport import Transport
from p2pmesh.wire.messages import Message

logger: Final = logging.getLogger(__name__)


class Node:
    """The running parts of one peer. `Mesh` is its face."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        transports: Sequence[Transport],
        dialer: Dialer,
        rng: random.Random,
        wall: WallClock,
        blocked: BlockList,
    ) -> None:
        self.identity = identity
        self.config = config
        self.bus: Bus = Bus()
        self.inbox: Inbox = Inbox(config, self._report)
        self.calls: Calls = Calls()
        self.peers: dict[PeerId, bool] = {}
        """The neighbours, and whether each is verified, in the order in which they came."""
        self.receipts: OpenReceipts = OpenReceipts()
        self.blocked = blocked
        self.moderator: Moderator = Moderator(identity.peer_id, blocked)
        cores = build_cores(identity, config, rng, wall, local_health(), blocked=blocked, judge=self.moderator.judge)
        self.drivers: dict[Subsystem, Driver] = {
            subsystem: Driver(core, self._dispatch, config.inbox, self._flush) for subsystem, core in cores.items()
        }
        self._rng = rng
        self._wall = wall
        self.keeper: LinkKeeper = LinkKeeper(
            dialer, config.links, config.max_peers, self._report, self._deliver, self._make_probe, config.work.links
        )
        self.services: dict[str, Service] = {
            transport.name: Service(transport, config.signaling, rng, self._deliver_signaled, dialer.prefer)
            for transport in transports
        }
        self._startup = _Startup(tuple(self.services))
        self._linked = trio.lowlevel.ParkingLot()
        self._unlinked = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self._ignored = 0

    async def start(self, nursery: trio.Nursery, bootstrap_peers: Sequence[PeerId]) -> None:
        """Start every subsystem; returns when a signaling service has let us in.

        Raises:
          TransportUnavailable: if each of them failed once, with all their reasons; `JoinRefused` if each refused us.
        """
        await self._start(nursery, "links", self.keeper.run)
        for subsystem, driver in self.drivers.items():
            await self._start(nursery, subsystem.value, driver.run)
        for name, service in self.services.items():
            await self._start(nursery, f"transport {name}", service.run)
        if bootstrap_peers:
            self._report(PeersFound(tuple(bootstrap_peers), "config"))
        await self._startup.wait()

    async def linked(self, count: int) -> None:
        """Wait until there are so many neighbours.

        Raises:
          MeshClosed: if the mesh is left first.
        """
        while len(self.peers) < count:
            if self._is_closed:
                raise MeshClosed("the mesh was left before it had so many links")
            await self._linked.park()
        await trio.lowlevel.checkpoint()

    async def disconnect(self, peer: PeerId) -> None:
        """Close the link to a peer, and wait until it is closed.

        Raises:
          MeshClosed: if the mesh is left before the overlay hears of it.
        """
        if peer in self.blocked:
            self._report(Blocked(peer))
        await self.calls.make(self.drivers[Subsystem.OVERLAY], lambda call: Disconnect(call, peer))
        await self.drivers[Subsystem.KADEMLIA].caught_up()
        while peer in self.peers:  # for as long as a close takes; when the mesh is left, it has none
            await self._unlinked.park()

    async def leave(self) -> None:
        """Say goodbye to neighbours and services, and wait for as long as `leave_timeout` until all is said."""
        self._report(Leave())
        with trio.move_on_after(self.config.leave_timeout):
            for driver in self.drivers.values():
                await driver.caught_up()
            await self.keeper.drained()
            for service in self.services.values():
                await service.drained()

    def close(self) -> None:
        """Nothing comes any more: end what waits, and the links whose end nobody will tell of."""
        for peer in list(self.peers):
            self._emit(PeerDisconnected(peer, "the mesh was left"))
        self._is_closed = True
        self._linked.unpark_all()
        self.calls.close()
        self.bus.close()
        self.inbox.close()
        self.receipts.close()

    def snapshot(self) -> dict[str, Any]:
        """Statistics of everything, in terms that JSON can carry."""
        return {
            "peer_id": self.identity.peer_id,
            "room": self.config.room,
            "max_peers": self.config.max_peers,
            "peers": list(self.peers),
            "subsystems": {subsystem.value: driver.snapshot() for subsystem, driver in self.drivers.items()},
            "links": self.keeper.snapshot(),
            "transports": {name: service.snapshot() for name, service in self.services.items()},
            "moderation": self.moderator.snapshot(),
            "ignored_messages": self._ignored,
        }

    async def _start(self, nursery: trio.Nursery, name: str, task: Any) -> None:
        task_name = f"p2pmesh {short(self.identity.peer_id)} {name}"
        await nursery.start(supervise, name, task, name=task_name)

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _report(self, event: Input) -> None:
        """Post an input of the shell to the subsystems that it concerns."""
        for subsystem in audience_of(event):
            self.drivers[subsystem].post(event)

    async def _deliver(self, peer: PeerId, message: Message) -> None:
        """Hand a neighbour's message to its subsystem; the link's reader waits until that has room."""
        owner = OWNERS[type(message)]
        if owner is None:
            self._ignored += 1
            return
        driver, event = self.drivers[owner], Received(peer, message)
        if not driver.put_nowait(event):
            await driver.put(event)

    async def _deliver_signaled(self, event: Input) -> None:
        await self.drivers[Subsystem.SIGNALING].put(event)

    def _make_probe(self) -> Message:
        return probe(self.identity.peer_id, self._rng.randbytes(16).hex(), int(self._wall(trio.current_time()) * 1000))

    # --- effects ------------------------------------------------------------------------------------------------------

    def _dispatch(self, effects: Effects) -> None:
        for effect in effects:
            match effect:  # the most frequent first
                case Notify():
                    self.drivers[effect.subsystem].post(effect.input)
                case SendFrame():
                    self.keeper.send(effect.peers, effect.message, urgent=effect.urgent, patient=effect.patient)
                case Emit():
                    self._emit(effect.event)
                case WantLink():
                    self.keeper.want(effect.peer)
                case AcceptOffer():
                    self.keeper.accept(effect.peer, effect.description)
                case FeedSignal():
                    self.keeper.feed(effect.peer, effect.signal)
                case DropLink():
                    self.keeper.drop(effect.peer, effect.reason, blame=effect.blame)
                case SendSignaling():
                    self.services[effect.transport].send(effect.message)
                case ServiceRefused():
                    self.services[effect.transport].refuse(effect.reason)
                    self._startup.refused(effect.transport)
                case ServiceUnanswering():
                    self.services[effect.transport].reopen()
                case Reply():
                    self.calls.resolve(effect)
                case InspectLink():
                    self.keeper.inspect(effect.peer)
                case Progress():
                    self.receipts.progress(effect.message_id, effect.reached)
                case _:
                    assert_never(effect)

    def _flush(self) -> None:
        """Let what a core has sent to a peer travel together, however many inputs it took."""
        self.keeper.flush()

    def _emit(self, event: Event) -> None:
        logger.debug("%s: %s", short(self.identity.peer_id), event)
        match event:
            case PeerConnected():
                self.peers[event.peer_id] = event.verified
                self._linked.unpark_all()
            case PeerDisconnected():
                if self.peers.pop(event.peer_id, None) is None:
                    return  # it was ended by `close` already
                self._unlinked.unpark_all()
            case DirectReceived():
                self.inbox.put(event)
            case TransportUp():
                self._startup.up()
            case TransportDown():
                self._startup.down(event.name, event.reason)
            case MessageDelivered():
                self.receipts.settle(event.message_id, Delivered(event.reached, event.elapsed))
            case MessageFailed():
                self.receipts.settle(event.message_id, Failed(event.reason, event.reached))
            case _:
                pass
        self.bus.publish(event)


class _Startup:
    """Whether a signaling service has let us in yet, or each has failed once."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._open = set(names)
        self._reasons: dict[str, str] = {}
        self._refusals: set[str] = set()
        self._joined = False
        self._decided = trio.Event()

    def up(self) -> None:
        self._joined = True
        self._decided.set()

    def refused(self, name: str) -> None:
        """This service turned us away; `down` follows."""
        if name not in self._reasons:
            self._refusals.add(name)

    def down(self, name: str, reason: str) -> None:
        self._open.discard(name)
        self._reasons.setdefault(name, reason)
        if not self._open:
            self._decided.set()

    async def wait(self) -> None:
        await self._decided.wait()
        if not self._joined:
            error = JoinRefused if self._refusals == set(self._reasons) else TransportUnavailable
            raise error("; ".join(self._reasons.values()))
