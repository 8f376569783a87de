"""`open_mesh`: the one way in, and `Mesh`: what a program holds while it is a peer.

The root nursery lives here: every task of every subsystem runs in it, and ends with it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio

from p2pmesh.checks import file_path, flag, in_trio, instance, number
from p2pmesh.config import MeshConfig
from p2pmesh.dht import Dht
from p2pmesh.errors import BlockListError, ConfigError, MeshClosed, MeshError, PeerUnreachable
from p2pmesh.events import DirectReceived, Event, MessageReceived, PayloadLike
from p2pmesh.ice_servers import IceServersLike
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, parse_peer_id, short
from p2pmesh.links.link import Dialer
from p2pmesh.moderation import Validator
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.inputs import Connect, Publish, SendDirect, Subsystem, WantHistory
from p2pmesh.receipts import Receipt
from p2pmesh.runtime import arguments
from p2pmesh.runtime.moderation import BlockList
from p2pmesh.runtime.node import Node
from p2pmesh.runtime.ordered import OrderedSubscription
from p2pmesh.subscription import Subscription
from p2pmesh.transports.registry import make_transports
from p2pmesh.transports.transport import TransportLike
from p2pmesh.wire.payloads import pack

ARRIVING = 5.0
"""Seconds that a broadcast may be on its way: what is older when a subscription begins is history to it."""


@asynccontextmanager
async def open_mesh(
    *transports: TransportLike,
    identity: Identity | None = None,
    room: str | None = None,
    max_peers: int | None = None,
    ice_servers: IceServersLike | None = None,
    allow_unverified: bool | None = None,
    bootstrap_peers: Iterable[str] = (),
    kademlia_k: int | None = None,
    block_list: str | os.PathLike[str] | None = None,
    config: MeshConfig | None = None,
    dialer: Dialer | None = None,
    rng: random.Random | None = None,
    wall_clock: WallClock | None = None,
) -> AsyncIterator[Mesh]:
    """Join a mesh: inside the block this program is a peer, at its end it has left.

    Entering returns once one signaling service has let us in; links come up in the background: see `Mesh.events()`.

    Args:
      transports: Where to find other peers: URLs (`ws://`, `wss://`, `memory://`), `TransportConfig`s or transport
        objects. Several are one mesh over several signaling services.
      identity: Who this peer is. Default: a new `Identity` for this block.
      room: Meshes in different rooms of a service don't meet. Default: "".
      max_peers: Hard cap on open links, 1 or more. Default: 3.
      ice_servers: STUN and TURN servers, for peers behind NATs: URLs, `IceServer`s, or what a browser takes. Default:
        none.
      allow_unverified: Link to peers that can't prove their id, such as the original project's. Default: False.
      bootstrap_peers: Ids of peers to try, besides those that the services name.
      kademlia_k: How many peers hold a value of the DHT: the same throughout a mesh. Default: 20.
      block_list: A file that keeps whom `Mesh.block` blocks; made when the first is blocked. One mesh at a time has it.
        Default: none, and the list ends with the block.
      config: Every other number; the options above override its fields.
      dialer: What opens links. Default: a `WebRTCDialer`. Entered and closed by this block.
      rng: Source of all randomness but keys. Default: seeded by the system.
      wall_clock: The wall time at an instant of Trio's clock. Default: the system's.

    Raises:
      ConfigError: if an option makes no sense.
      BlockListError: if the block list can't be read, or is damaged.
      TransportUnavailable: if no signaling service could be joined; the text has every reason, and what to do. If each
        answered and refused us, it is a `JoinRefused`.

    Resource handling:
      All tasks, sockets and links belong to this block and are gone when it is left, however it is left and wherever it
      is cancelled. Leaving says goodbye to neighbours for at most `MeshConfig.leave_timeout` seconds. Don't `yield` out
      of an async generator inside the block.

    Error handling:
      The block owns a nursery, so exceptions raised in it arrive in an `ExceptionGroup`: catch them with `except*`, or
      inside. Calls on the `Mesh` raise plain exceptions. What peers and networks do never raises out of the block.
    """
    in_trio("open_mesh")
    settings = _settings(config, room, max_peers, ice_servers, allow_unverified, kademlia_k)
    bootstrap = arguments.peers(bootstrap_peers)
    services = make_transports(transports)
    if not services:
        raise ConfigError("open_mesh needs a signaling transport, such as ws://localhost:8080")
    who = Identity.generate() if identity is None else instance("identity", identity, Identity)
    instance("rng", rng, random.Random | None)
    path = None if block_list is None else file_path("a block list", block_list)
    blocked = BlockList(settings.max_blocked, path)
    clock = _system_clock if wall_clock is None else arguments.clock(wall_clock)
    failure: MeshError | None = None
    async with _default_dialer(settings) if dialer is None else instance("dialer", dialer, Dialer) as links:
        node = Node(
            who,
            settings,
            services,
            links,
            random.Random() if rng is None else rng,
            clock,
            blocked,
        )
        async with trio.open_nursery() as nursery:
            try:
                await node.start(nursery, bootstrap)
            except MeshError as error:
                failure = error
            else:
                mesh = Mesh(node)
                try:
                    yield mesh
                finally:
                    with trio.move_on_after(settings.leave_timeout + settings.links.close_timeout, shield=True):
                        await mesh.leave()
            finally:
                node.close()
                nursery.cancel_scope.cancel("the mesh is closed")
    if failure is not None:
        raise failure


class Mesh:
    """A peer among many. Made by `open_mesh`.

    Its methods may be called from any number of tasks of the same Trio run. After the block, or after `leave`, calls
    and new streams raise `MeshClosed`; properties and `snapshot` show how things stood.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._dht = Dht(node)
        self._left = False

    def __repr__(self) -> str:
        return f"<Mesh {self.peer_id} with {self.peer_count} peers>"

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._node.identity.peer_id

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """The neighbours: peers with an open link, oldest first."""
        return tuple(self._node.peers)

    @property
    def peer_count(self) -> int:
        """How many neighbours there are, at most `max_peers`."""
        return len(self._node.peers)

    async def linked(self, count: int = 1) -> None:
        """Wait until there are `count` neighbours or more: for the first one, by default.

        No call needs it: `send`, `broadcast`, `connect` and those of `dht` wait for a first link themselves.

        Raises:
          ConfigError: if `count` is not a whole number from 1 to `max_peers`; it is a `ValueError`.
          MeshClosed: if the mesh was left.
        """
        most = self._node.config.max_peers
        number(f"the count of links, from 1 to max_peers ({most}),", count, low=1, high=most, whole=True)
        self._check_open()
        await self._node.linked(count)

    @asynccontextmanager
    async def events(self, *, buffer: int | None = None) -> AsyncIterator[Subscription[Event]]:
        """A stream of everything that happens from now on. One that lags loses its oldest, and is told by a `Lagged`.

        Args:
          buffer: How many events may wait. Default: `MeshConfig.event_buffer`.

        Raises:
          ConfigError: if the buffer makes no sense.
          MeshClosed: if the mesh was left.
        """
        self._check_open()
        with self._node.inbox.watched(), self._node.bus.events(self._buffer(buffer)) as stream:
            yield stream

    @asynccontextmanager
    async def subscribe(
        self,
        topic: str | None = None,
        *,
        ordered: bool = False,
        history: float | None = None,
        buffer: int | None = None,
    ) -> AsyncIterator[Subscription[MessageReceived]]:
        """A stream of the broadcasts of other peers that arrive from now on.

        Args:
          topic: Only those of this topic; None for all.
          ordered: Deliver those of one origin and topic in the order in which they were sent. What arrives early waits,
            for at most `SubscriptionConfig.patience` seconds; what is missing then is given up on, counted in
            `Subscription.skipped` and told as `MessagesSkipped` by `events()`.
          history: Ask for what was sent in so many seconds before this peer came, as far as others keep it: nothing is
            kept for longer than its ttl. Default: none.
          buffer: How many may wait; then the oldest are dropped, counted in `Subscription.missed` and told as `Lagged`
            by `events()`. Default: `MeshConfig.event_buffer`.

        Raises:
          LocalProtocolError: if that can't be a topic.
          ConfigError: if history or buffer make no sense.
          MeshClosed: if the mesh was left.
        """
        self._check_open()
        topic = None if topic is None else arguments.topic(topic)
        bus, capacity = self._node.bus, self._buffer(buffer)
        past = arguments.history(history)
        began = trio.current_time()

        def wants(event: Event) -> bool:
            if not isinstance(event, MessageReceived) or (topic is not None and event.topic != topic):
                return False
            return event.age <= past + trio.current_time() - began + ARRIVING

        stream = Subscription[MessageReceived](capacity, bus.lagging(topic))
        if flag("ordered", ordered):
            stream = OrderedSubscription(capacity, self._node.config.subscriptions, bus.lagging(topic), bus.publish)
        with bus.attach(stream, wants):
            if past:
                self._node.drivers[Subsystem.BROADCAST].post(WantHistory(topic, past))
            yield stream

    @asynccontextmanager
    async def messages(self, *, buffer: int | None = None) -> AsyncIterator[Subscription[DirectReceived]]:
        """A stream of the direct messages to this peer: none is dropped, whoever is slow waits or makes senders wait.

        What came while no stream was open waits for the first one. Several streams give out every message each; what
        one that is closed has not given out goes to another, or to the next.

        Args:
          buffer: How many may wait until senders do: see `send`. Default: `MeshConfig.direct_inbox`, which is also how
            many wait while no stream is open. Peers of the original can't be made to wait: what there is no room for
            is dropped, and told as `Lagged` by `events()`.

        Raises:
          ConfigError: if the buffer makes no sense.
          MeshClosed: if the mesh was left.
        """
        self._check_open()
        with self._node.inbox.open(buffer) as stream:
            yield stream

    async def broadcast(
        self,
        topic: str,
        payload: PayloadLike,
        *,
        ttl: float | None = None,
        max_hops: int | None = None,
        receipts: bool = True,
    ) -> Receipt:
        """Send a message to every peer of the mesh. Returns once it is out; waits while the links are behind.

        Args:
          topic: Up to 256 characters.
          payload: Bytes, or anything that JSON can carry, up to `MeshConfig.max_payload` bytes encoded.
          ttl: Seconds for which it is offered to peers that lack it. Default: `BroadcastConfig.ttl`.
          max_hops: Links it may cross, 1 to 255, to reach what is near only. Default: 255, which is no limit.
          receipts: Whether peers answer, so that `Receipt.settled` can tell.

        Raises:
          PayloadTooLarge, InvalidPayload, ConfigError, LocalProtocolError: before anything is sent.
          MeshClosed: if the mesh was left.

        Cancelled while it waits, the message is not sent.
        """
        message = arguments.broadcast(self._node.config, topic, payload, ttl, max_hops, receipts)
        receipt: Receipt = await self._node.calls.make(
            self._node.drivers[Subsystem.BROADCAST],
            lambda call: Publish(call, *message),
            lambda message_id: self._node.receipts.new(message_id, topic, enabled=receipts),
        )
        return receipt

    async def send(self, peer_id: str, payload: PayloadLike) -> None:
        """Send a message to one peer of the mesh, neighbour or not. Returns when it is in that peer's inbox.

        It waits while much else is under way to the same peer, while the inbox is full, for a first link, and while the
        link to the peer gets on, however slowly; set a deadline of your own around it if you like.
        Messages to one peer may overtake each other. To a peer without a link the message is sealed: nobody but its
        receiver can read it.

        Raises:
          InvalidPeerId, PayloadTooLarge, InvalidPayload: before anything is sent.
          PeerBusy: if its application has not made room in `RoutingConfig.patience` seconds.
          PeerRefused: if it does not take the message, now or later: as too large, or for its clock or ours.
          PeerUnreachable: of which the two above are kinds, if no route leads to the peer, or it does not answer; the
            text says which. It may have the message all the same, if only its answer was lost.
          MeshClosed: if the mesh was left.

        A peer that we have blocked is as good as unreachable.
        Cancelled, the message may or may not arrive; it is not sent again.
        """
        peer = parse_peer_id(peer_id)
        body = pack(payload, self._node.config.max_payload)
        await self._check_not_blocked(peer)
        await self._node.calls.make(self._node.drivers[Subsystem.ROUTING], lambda call: SendDirect(call, peer, body))

    async def connect(self, peer_id: str) -> None:
        """Open a link to this peer and keep it, giving up another if there are `max_peers`. Returns when it is open.

        Raises:
          InvalidPeerId: if that is no id.
          PeerUnreachable: if the link can't be opened, or we have blocked the peer.
          MeshClosed: if the mesh was left.
        """
        peer = parse_peer_id(peer_id)
        await self._check_not_blocked(peer)
        await self._node.calls.make(self._node.drivers[Subsystem.OVERLAY], lambda call: Connect(call, peer))

    async def disconnect(self, peer_id: str) -> None:
        """Close the link to this peer, and end what `connect` wants of it. Returns when it is closed.

        It may come again later, by itself or because the mesh needs the link: to keep it away, `block` it.
        A `connect` that waits for this peer raises `PeerUnreachable`. Without a link nothing is done.

        Raises:
          InvalidPeerId: if that is no id.
          MeshClosed: if the mesh was left.
        """
        peer = parse_peer_id(peer_id)
        self._check_open()
        await self._node.disconnect(peer)

    async def block(self, peer_id: str) -> None:
        """Have nothing more to do with this peer, until `unblock`. Returns when its link is closed.

        From now on its offers are turned down and it is not dialed, its direct messages and all that it asks of us are
        refused, its values in the DHT are not kept here or found from here, and its broadcasts are neither delivered
        nor passed on, whoever brings them: nobody is blamed for that. It is not told. What has been delivered stays,
        what it sends to others by way of us is relayed, and it can still read what we broadcast.

        Raises:
          InvalidPeerId: if that is no id.
          ConfigError: if it is our own.
          BlockListError: if `MeshConfig.max_blocked` peers are; or if the file that keeps the list can't be written:
            then it holds for this mesh all the same.
          MeshClosed: if the mesh was left.

        Cancelled, the peer is blocked, and its link closes in the background.
        """
        peer = parse_peer_id(peer_id)
        if peer == self.peer_id:
            raise ConfigError("a peer can't block itself")
        self._check_open()
        unwritten: BlockListError | None = None
        try:
            self._node.blocked.add(peer)
        except BlockListError as error:
            if peer not in self._node.blocked:
                raise
            unwritten = error
        await self._node.disconnect(peer)
        if unwritten is not None:
            raise unwritten

    async def unblock(self, peer_id: str) -> None:
        """Let this peer come again. What was refused meanwhile is not delivered later.

        Raises:
          InvalidPeerId: if that is no id.
          BlockListError: if the file that keeps the list can't be written: then it holds for this mesh alone.
          MeshClosed: if the mesh was left.
        """
        peer = parse_peer_id(peer_id)
        self._check_open()
        self._node.blocked.remove(peer)
        await trio.lowlevel.checkpoint()

    @property
    def blocked(self) -> tuple[PeerId, ...]:
        """The peers that are blocked, in the order in which they were."""
        return tuple(self._node.blocked)

    def validate(self, topic: str, validator: Validator | None) -> None:
        """Have a function judge the broadcasts of this topic that come, before they are delivered and passed on.

        It is called once for each that is as it should be, with its `MessageReceived`, and returns a `Verdict`: see
        there. It is called between two messages and everything else of this mesh waits for it, so it should take less
        than a millisecond; a broadcast needs a tenth of one. What it raises is counted and logged, and counts as
        `Verdict.IGNORE`. Our own broadcasts are not judged, nor those of peers that are blocked.

        Args:
          topic: Which broadcasts.
          validator: The function, in the place of the last one; None for none. It must not be async.

        Raises:
          LocalProtocolError: if that can't be a topic.
          ConfigError: if the validator is no plain function.
          MeshClosed: if the mesh was left.
        """
        name, function = arguments.topic(topic), arguments.validator(validator)
        self._check_open()
        self._node.moderator.validate(name, function)

    @property
    def dht(self) -> Dht:
        """The distributed hash table: values that the mesh keeps."""
        return self._dht

    def snapshot(self) -> dict[str, Any]:
        """Statistics of every subsystem and link at this moment, in terms that JSON can carry."""
        return self._node.snapshot()

    async def leave(self) -> None:
        """Leave the mesh now: goodbye to neighbours and services, within `MeshConfig.leave_timeout` seconds.

        Streams end after what waits in them; calls that wait raise `MeshClosed`. Leaving twice does nothing.
        """
        if self._left:
            await trio.lowlevel.checkpoint()
            return
        self._left = True
        try:
            await self._node.leave()
        finally:
            self._node.close()

    async def _check_not_blocked(self, peer: PeerId) -> None:
        if peer in self._node.blocked:
            await trio.lowlevel.checkpoint()
            raise PeerUnreachable(f"{short(peer)} is blocked here: `unblock` it first")

    def _check_open(self) -> None:
        if self._left:
            raise MeshClosed("this mesh was left: open a new one")

    def _buffer(self, buffer: int | None) -> int:
        return self._node.config.event_buffer if buffer is None else buffer


def _settings(
    config: MeshConfig | None,
    room: str | None,
    max_peers: int | None,
    ice_servers: IceServersLike | None,
    allow_unverified: bool | None,
    kademlia_k: int | None,
) -> MeshConfig:
    """The config with the options that were given in the place of its fields."""
    settings = MeshConfig() if config is None else instance("config", config, MeshConfig)
    if ice_servers is not None:
        settings = attrs.evolve(settings, links=attrs.evolve(settings.links, ice_servers=ice_servers))
    if allow_unverified is not None:
        settings = attrs.evolve(settings, links=attrs.evolve(settings.links, allow_unverified=allow_unverified))
    if kademlia_k is not None:
        settings = attrs.evolve(settings, kademlia=attrs.evolve(settings.kademlia, k=kademlia_k))
    if room is not None:
        settings = attrs.evolve(settings, room=room)
    if max_peers is not None:
        settings = attrs.evolve(settings, max_peers=max_peers)
    return settings


def _default_dialer(config: MeshConfig) -> AbstractAsyncContextManager[Dialer]:
    from p2pmesh.links.webrtc.dialer import WebRTCDialer  # a second of imports that simulations do without

    return WebRTCDialer(config.links, max_frame=config.max_frame)


def _system_clock(now: float) -> float:
    return time.time() - (trio.current_time() - now)  # noqa: TID251  # the one clock that is handed to the cores
