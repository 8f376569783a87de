"""Who is where, and what to tell whom: the signaling server's decisions, without its sockets.

Plain synchronous code: clients come, say something and go, by number, each with the time; orders come out, to be
carried out in their order. The server over WebSocket and the in-memory transport both drive this one class.

It speaks the original server's messages, so that the original's clients work against it unchanged, with these
differences:

- Rooms. A join names one; without a name it is "", where the original's clients meet. Nothing crosses between rooms.
- A join costs a number of messages that does not grow with the room: the joiner is told of its two neighbours on the
  ring (Chord: Stoica et al. 2001) and of `bootstrap_peers` others: members that were seen to answer, those nearest to
  it by XOR (Kademlia: Maymounkov and Mazieres 2002), and one by lot (`rooms`). Only these are told of the joiner. A
  client that was told of a peer, be it by a message relayed from it, is told when it leaves.
- Joins with a `version` come from peers that find each other through their mesh: of these, fewer are told
  (`announced_to`), and a peer that was only listed to them is not told of again. The original's clients, on either
  side, hear what they always do.
- A join with a `version` is always answered; one without is answered as the original does, only if somebody is there.
- `from` is stamped on everything that is relayed, on Kademlia messages too.
- Nothing is relayed before a join (the original relays it with `from: null`), and nothing without `to`: both are
  errors.
- Ids that are not 40 lower-case hexadecimal digits are refused: they crash the original's clients. A client holds one
  id.
- A join may be signed by the key that the id derives from. Then only a newer join of the same key replaces its holder.
  A join with an id that is held without a signature replaces the holder, which is told and closed.
- Messages cost by their size, joins have a rate of their own, and who guesses join tokens has to wait: see
  `ServerConfig`.
- Errors carry a `code` (`p2pmesh.wire.signaling.ERROR_CODES`) beside the original's text, and `to` where a receiver is
  missing.

Nothing that a client sends makes it raise, and nothing it keeps is without a bound in `ServerConfig`.
"""

from __future__ import annotations

import hmac
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
from attrs import define, field, frozen

from p2pmesh.errors import LocalProtocolError
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.signaling.handshake import verify_join
from p2pmesh.protocols.util.limits import RateLimiter, TokenBucket
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.server.addresses import network_of
from p2pmesh.server.config import KIB, ServerConfig
from p2pmesh.server.requests import JoinRequest, LeaveRequest, Refusal, RelayRequest, Request, parse_request
from p2pmesh.server.rooms import Member, Room
from p2pmesh.wire.signaling import BootstrapPeers, Join, KnownPeer, PeerJoined, PeerLeft, ServiceError, SignalingMessage

CLOSE_NORMAL: Final = 1000
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_TRY_LATER: Final = 1013
"""WebSocket close codes (RFC 6455 section 7.4.1, and the IANA registry for 1013)."""

MESSAGE_UNIT: Final = 4 * KIB
"""Bytes that count as one message where messages have a rate: a description with all its candidates."""

_NOBODY: Final = PeerId("")
_TOO_MANY_GUESSES: Final = Refusal("full", "Too many wrong join tokens came from this address: try again later.")
_JITTER: Final = 1.1
"""A factor that spreads join time-outs: clients that all came after a restart are not all closed at once."""


@frozen
class Send:
    """Send this text message to this client.

    If too much waits for it already: where another client, `sender`, sends it, leave it out and call `undelivered`; end
    its connection where it is the service's own.
    """

    client: int
    text: str
    sender: int | None = None


@frozen
class Close:
    """End this client's connection, after what was sent before. `disconnected` follows once it is gone."""

    client: int
    code: int
    reason: str


Order: TypeAlias = Send | Close


@define(eq=False)
class _Client:
    number: int
    address: str
    bucket: TokenBucket
    joins: TokenBucket
    warned: TokenBucket | None = None
    """The rate that it was told of exceeding, in this spell of it."""
    closing: bool = False
    room: Room | None = None
    peer: PeerId = _NOBODY
    proven: bool = False
    original: bool = True
    """Whether its joins have no version: it depends on this server for all its links."""
    audience: OrderedDict[int, None] = field(factory=OrderedDict)
    """Clients that were told of `peer`; some may be gone."""
    told: tuple[PeerId, ...] = ()
    """Whom it was told of when it joined last."""


class Presence:
    """The state of a signaling server.

    Args:
      config: its limits.
      rng: for jitter.
      wall: the wall time of a monotonic instant, which signed joins are measured by.
      may_join: whether an id may join, as the owner of the server says.
    """

    def __init__(
        self,
        config: ServerConfig,
        rng: random.Random,
        wall: WallClock,
        may_join: Callable[[PeerId], bool] = lambda peer: True,
    ) -> None:
        self._config = config
        self._may_join = may_join
        self._rng = rng
        self._wall = wall
        self._clients: dict[int, _Client] = {}
        self._addresses: Counter[str] = Counter()
        self._rooms: dict[str, Room] = {}
        self._members = 0
        self._last_joins: OrderedDict[tuple[str, PeerId], int] = OrderedDict()
        self._deadlines: Timers[int] = Timers()
        self._orders: list[Order] = []
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._guesses = RateLimiter(
            config.remembered_addresses, config.token_guesses_per_minute / 60, config.token_guesses
        )

    # --- what happens -------------------------------------------------------------------------------------------------

    def connected(self, client: int, address: str, now: float) -> list[Order]:
        """A client is there, under a number that no other ever had. If it is turned away, its connection is closed.

        Raises:
          LocalProtocolError: if a client of this number is there already.
        """
        if client in self._clients:
            raise LocalProtocolError(f"client {client} is connected already")
        refusal = self._no_place_for(address)
        if refusal is not None:
            self._error(client, refusal)
            self._orders.append(Close(client, CLOSE_TRY_LATER, refusal.message))
            return self._take()
        config = self._config
        bucket = TokenBucket(config.messages_per_second, config.message_burst, now)
        joins = TokenBucket(config.joins_per_minute / 60, config.join_burst, now)
        self._clients[client] = _Client(client, address, bucket, joins)
        self._addresses[address] += 1
        self._deadlines.set(client, now + self._config.join_timeout * self._rng.uniform(1.0, _JITTER))
        return self._take()

    def received(self, client: int, data: str | bytes, now: float) -> list[Order]:
        """A client sent a message. A larger one than allowed may be cut to `max_message + 1` bytes on the way here."""
        sender = self._clients.get(client)
        if sender is not None and not sender.closing:
            self._counts["received"] += 1
            if self._within_rate(sender, sender.bucket, 1 + len(data) // MESSAGE_UNIT, now):
                self._handle(sender, parse_request(data, self._config.max_message), now)
        return self._take()

    def undelivered(self, sender: int | None, receiver: int) -> list[Order]:
        """A message of `sender` was left out: too much waits for `receiver` already."""
        one, other = self._clients.get(sender or 0), self._clients.get(receiver)
        self._counts["undelivered"] += 1
        if one is not None and other is not None and not one.closing:
            self._error(
                one.number,
                Refusal("rate_limited", "Too much waits for this peer already: a message was dropped.", other.peer),
            )
        return self._take()

    def disconnected(self, client: int, now: float) -> list[Order]:
        """A client's connection has ended, by whichever side. Its place is free again."""
        del now
        gone = self._clients.pop(client, None)
        if gone is not None:
            self._leave_room(gone)
            self._deadlines.cancel(client)
            self._addresses[gone.address] -= 1
            if not self._addresses[gone.address]:
                del self._addresses[gone.address]
        return self._take()

    def next_deadline(self) -> float:
        """When `expire` wants to be called next; `math.inf` for never."""
        return self._deadlines.next_deadline()

    def expire(self, now: float) -> list[Order]:
        """Close the clients that have not joined in time."""
        for client in self._deadlines.pop_due(now):
            self._close(self._clients[client], CLOSE_POLICY, f"no join within {self._config.join_timeout:g} s")
        return self._take()

    def snapshot(self) -> dict[str, Any]:
        """Statistics that JSON can carry."""
        return {
            "clients": len(self._clients),
            "members": self._members,
            "rooms": len(self._rooms),
            "received": self._counts["received"],
            "sent": self._counts["sent"],
            "joins": self._counts["joins"],
            "relayed": self._counts["relayed"],
            "undelivered": self._counts["undelivered"],
            "closed": self._counts["closed"],
            "kicked": self._counts["kicked"],
            "errors": dict(sorted(self._errors.items())),
        }

    # --- what the owner says ------------------------------------------------------------------------------------------

    def kick(self, is_meant: Callable[[int, PeerId], bool]) -> list[Order]:
        """Close the clients that this is true of: their number, and the id that they hold."""
        for client in list(self._clients.values()):
            if not client.closing and is_meant(client.number, client.peer):
                self._counts["kicked"] += 1
                self._close(client, CLOSE_POLICY, "kicked")
        return self._take()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _handle(self, sender: _Client, request: Request, now: float) -> None:
        match request:
            case JoinRequest(join):
                self._join(sender, join, now)
            case LeaveRequest():
                self._close(sender, CLOSE_NORMAL, "left")
            case RelayRequest():
                self._relay(sender, request, now)
            case Refusal():
                self._error(sender.number, request)
                if request.code == "too_large":
                    self._close(sender, CLOSE_TOO_BIG, "message too large")

    def _relay(self, sender: _Client, request: RelayRequest, now: float) -> None:
        if sender.room is None:
            self._error(sender.number, Refusal("bad_message", f"Join before sending {request.kind}."))
            return
        receiver = sender.room.client(request.to)
        if receiver is None:
            self._error(sender.number, request.not_found())
            return
        self._counts["relayed"] += 1
        self._watch(sender.room, sender.peer, request, now)
        self._meet(sender, receiver)
        self._orders.append(Send(receiver, request.stamped(sender.peer), sender.number))

    @staticmethod
    def _watch(room: Room, sender: PeerId, request: RelayRequest, now: float) -> None:
        """See who answers offers."""
        match request.describes():
            case "offer":
                room.offered(PeerId(request.to), sender, now)
            case "answer":
                room.answered(sender, PeerId(request.to))
            case "rejection":
                room.rejected(sender, PeerId(request.to))
            case None:
                pass

    # --- joining and leaving ------------------------------------------------------------------------------------------

    def _join(self, client: _Client, join: Join, now: float) -> None:
        if not self._within_rate(client, client.joins, 1, now):
            return
        refusal = self._refuse_join(client, join, now)
        if refusal is None:
            self._enter(client, join, now)
            return
        self._error(client.number, refusal)
        if refusal.code == "bad_token":
            self._close(client, CLOSE_POLICY, "bad token")  # each guess costs a connection
        elif refusal is _TOO_MANY_GUESSES:
            self._close(client, CLOSE_TRY_LATER, refusal.message)

    def _refuse_token(self, client: _Client, join: Join, now: float) -> Refusal | None:
        token = self._config.join_token
        if token is None:
            return None
        if not self._guesses.take(client.address, now):
            return _TOO_MANY_GUESSES  # right or wrong: an answer would be what is guessed for
        if not hmac.compare_digest(token.encode(), (join.token or "").encode()):
            return Refusal("bad_token", "This server wants a join token, and this is not the right one.")
        self._guesses.forget(client.address)
        return None

    def _refuse_join(self, client: _Client, join: Join, now: float) -> Refusal | None:
        refusal = self._refuse_token(client, join, now)
        if refusal is not None:
            return refusal
        if not self._may_join(join.peer_id) or (self._config.allow_ids and join.timestamp is None):
            return Refusal("bad_join", "This server does not let this id in, or not without a signed join.")
        room = self._rooms.get(join.room or "")
        holder = self._holder(room, join.peer_id)
        if join.timestamp is not None:
            refusal = self._refuse_signature(client, holder, join, join.timestamp, now)
            if refusal is not None:
                return refusal
        elif holder is not None and holder is not client and holder.proven:
            return Refusal("id_taken", "Another client holds this id and has signed its join: sign yours with its key.")
        if holder is None:
            return self._no_place_in(room, client)
        return None

    def _refuse_signature(
        self, client: _Client, holder: _Client | None, join: Join, timestamp: int, now: float
    ) -> Refusal | None:
        ahead = timestamp / 1000 - self._wall(now)
        if abs(ahead) > self._config.clock_skew:
            way = "ahead of" if ahead > 0 else "behind"
            return Refusal(
                "clock_skew",
                f"The join's timestamp is {abs(ahead):.0f} s {way} this server's clock, {self._config.clock_skew:.0f} s"
                " are allowed: set the clock.",
            )
        last = self._last_joins.get((join.room or "", join.peer_id), -1)
        if timestamp < last or (timestamp == last and holder is not client):
            return Refusal(
                "clock_skew",
                f"The join's timestamp is {(last - timestamp) / 1000:.3f} s behind the last join of this id: sign a new"
                " one for each connection, by a clock that does not go back.",
                later_than=last,
            )
        if not verify_join(join):
            return Refusal(
                "bad_join", "The join's signature, public key, peerId, room and timestamp don't belong together."
            )
        return None

    def _no_place_for(self, address: str) -> Refusal | None:
        if len(self._clients) >= self._config.max_clients:
            return Refusal("full", "This server is full: try again later.")
        if self._addresses[address] >= self._config.clients_per_address:
            return Refusal("full", f"This server takes {self._config.clients_per_address} clients from one address.")
        return None

    def _no_place_in(self, room: Room | None, client: _Client) -> Refusal | None:
        if room is None:
            leaves_empty = client.room is not None and len(client.room) == 1
            if len(self._rooms) - leaves_empty >= self._config.max_rooms:
                return Refusal("full", f"This server has {self._config.max_rooms} rooms and opens no more.")
        elif len(room) - (client.room is room) >= self._config.clients_per_room:
            return Refusal("full", f"This room has {self._config.clients_per_room} members and takes no more.")
        return None

    def _enter(self, client: _Client, join: Join, now: float) -> None:
        """Let `client` hold its id in its room, in the place of its former holder."""
        name = join.room or ""
        holder = self._holder(self._rooms.get(name), join.peer_id)
        if holder is not client:
            self._leave_room(client)
            room = self._rooms.setdefault(name, Room(name))
            room.put(join.peer_id, Member(client.number, network_of(client.address)))
            self._members += holder is None
            client.room, client.peer, client.proven, client.told = room, join.peer_id, False, ()
            if holder is not None:
                self._replace(holder, client)
        if join.timestamp is not None:
            client.proven = True
            self._rooms[name].signed(join.peer_id)
            self._remember(name, join.peer_id, join.timestamp)
        self._deadlines.cancel(client.number)
        self._counts["joins"] += 1
        client.original = join.version is None
        self._introduce(client, self._rooms[name], now)

    def _remember(self, room: str, peer: PeerId, timestamp: int) -> None:
        """Refuse joins signed before this one from now on.

        When it is forgotten its owner can still take the id back.
        """
        self._last_joins[room, peer] = timestamp
        self._last_joins.move_to_end((room, peer))
        if len(self._last_joins) > self._config.remembered_joins:
            self._last_joins.popitem(last=False)

    def _replace(self, holder: _Client, successor: _Client) -> None:
        """The id has a new holder: the old one goes without a `peer_left`, since the peer is still here."""
        successor.audience = holder.audience
        successor.audience.pop(successor.number, None)
        holder.room, holder.audience = None, OrderedDict()
        self._error(holder.number, Refusal("replaced", "Another client joined with your ID."))
        self._close(holder, CLOSE_POLICY, "replaced")

    def _introduce(self, client: _Client, room: Room, now: float) -> None:
        """Tell a joiner of others, and those that need it of the joiner."""
        named = room.name_to(
            client.peer,
            self._config.bootstrap_peers,
            now,
            self._rng,
            original=client.original,
            told=client.told,
        )
        peers = client.told = named.all(original=client.original)
        if peers or not client.original:
            known = tuple(KnownPeer(id=peer) for peer in peers)
            self._send(client.number, BootstrapPeers(peers=known))
        told = _encode(PeerJoined(peer_id=client.peer))
        announced = set((*named.ring, *named.nearest)[: self._config.announced_to])
        for peer in peers:
            neighbour = self._clients[room.holder(peer)]
            if client.original or neighbour.original or peer in announced:
                self._orders.append(Send(neighbour.number, told))
                self._meet(client, neighbour.number)
                self._meet(neighbour, client.number)

    def _meet(self, peer: _Client, other: int) -> None:
        """`other` is being told of `peer`: remember to tell it when `peer` leaves."""
        if other == peer.number:
            return
        peer.audience[other] = None
        peer.audience.move_to_end(other)
        if len(peer.audience) > self._config.audience:
            peer.audience.popitem(last=False)

    def _leave_room(self, client: _Client) -> None:
        room = client.room
        if room is None:
            return
        client.room = None
        room.remove(client.peer)
        self._members -= 1
        if not room:
            del self._rooms[room.name]
        told = _encode(PeerLeft(peer_id=client.peer))
        for number in client.audience:
            other = self._clients.get(number)
            if other is not None and other.room is room:
                self._orders.append(Send(number, told))
        client.audience = OrderedDict()

    def _holder(self, room: Room | None, peer: PeerId) -> _Client | None:
        number = None if room is None else room.client(peer)
        return None if number is None else self._clients[number]

    # --- small parts --------------------------------------------------------------------------------------------------

    def _within_rate(self, client: _Client, bucket: TokenBucket, count: int, now: float) -> bool:
        if bucket.take(now, count):
            if client.warned is bucket:
                client.warned = None
            return True
        if client.warned is not bucket:  # once for each time, or the answers would be a flood too
            client.warned = bucket
            config = self._config
            rate = f"{config.messages_per_second:g} messages a second, {MESSAGE_UNIT // KIB} KiB each, and"
            self._error(
                client.number,
                Refusal("rate_limited", f"{rate} {config.joins_per_minute:g} joins a minute: some were dropped."),
            )
        if bucket.is_flooded:
            self._close(client, CLOSE_POLICY, "flood")
        return False

    def _error(self, client: int, refusal: Refusal) -> None:
        self._errors[refusal.code] += 1
        error = ServiceError(message=refusal.message, code=refusal.code, to=refusal.to, later_than=refusal.later_than)
        self._send(client, error)

    def _close(self, client: _Client, code: int, reason: str) -> None:
        self._leave_room(client)
        self._deadlines.cancel(client.number)
        client.closing = True
        self._counts["closed"] += 1
        self._orders.append(Close(client.number, code, reason))

    def _send(self, client: int, message: SignalingMessage) -> None:
        self._orders.append(Send(client, _encode(message)))

    def _take(self) -> list[Order]:
        orders, self._orders = self._orders, []
        for order in orders:
            if isinstance(order, Send):
                self._counts["sent"] += 1
        return orders


def _encode(message: SignalingMessage) -> str:
    return msgspec.json.encode(message).decode()
