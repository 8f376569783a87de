"""What a core is told by the shell and the application: links, messages, services, calls. See `core`."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Struct

from p2pmesh.events import PayloadLike
from p2pmesh.keyspace import PeerId
from p2pmesh.wire.fields import shown_of
from p2pmesh.wire.messages import Facts, Message
from p2pmesh.wire.payloads import Body
from p2pmesh.wire.signaling import SignalingMessage


class Value(Struct, frozen=True, gc=False):
    """What goes into a core or comes out of it. A struct, since making one costs a tenth of what frozen attrs cost.

    A peer makes thousands a second. The garbage collector passes them by: none may hold what could lead back to it.
    """

    __repr__ = shown_of


class Subsystem(Enum):
    """The cores of one peer, by the names that logs, tasks and `Mesh.snapshot()` use."""

    if not TYPE_CHECKING:  # to which it is `Enum.__hash__` still
        __hash__ = object.__hash__  # each is the only one of its name, and `Enum` hashes that name anew each time

    SIGNALING = "signaling"
    OVERLAY = "overlay"
    ROUTING = "routing"
    BROADCAST = "broadcast"
    RECEIPTS = "receipts"
    KADEMLIA = "kademlia"
    ISLANDS = "islands"


class RemotePeer(Value, frozen=True):
    """The peer at the other end of a link."""

    peer_id: PeerId
    verified: bool
    """Whether it proved that it holds the key of its id."""
    version: int
    """Its protocol version: 0 for a peer of the original project, which speaks JSON text and knows no extras."""
    public_key: bytes | None = None

    @property
    def is_member(self) -> bool:
        """Whether it takes part in the mesh: it has proved its id and speaks our protocol. Others are guests."""
        return self.verified and self.version > 0


class LinkUp(Value, frozen=True):
    """A link is open. Goes to every core."""

    peer: RemotePeer


class LinkDown(Value, frozen=True):
    """An open link has ended. Goes to every core, once for each `LinkUp`."""

    peer: PeerId
    reason: str
    timed_out: float | None = None
    """Seconds of silence, if that is what ended it."""
    blamed: bool = False
    """Whether the peer broke the protocol, and that is what ended it."""


class LinkSuspected(Value, frozen=True):
    """A neighbour has said nothing since something was sent to it, to a ping neither: it may be dead. Goes to routing.

    Ends in `LinkRecovered` or in `LinkDown`.
    """

    peer: PeerId


class LinkRecovered(Value, frozen=True):
    """A neighbour that was silent is heard again. Goes to routing."""

    peer: PeerId


class LinkLost(Value, frozen=True):
    """An attempt at a link, wanted or accepted, has failed. Goes to the overlay and to signaling."""

    peer: PeerId
    reason: str
    hopeless: bool = False
    """No address of ours can send to any of the peer's: another attempt will fail, too, for as long as that is so."""


NO_SLOT = "no slot left"
"""The reason of a `LinkLost` for which nobody is to blame: a link that was just given up opened in the same moment."""


class Received(Value, frozen=True):
    """A message from a neighbour. Goes to the core that owns its type."""

    peer: PeerId
    message: Message


class ServiceUp(Value, frozen=True):
    """A connection to a signaling service is open (we have not joined yet). Goes to signaling and to broadcast."""

    transport: str


class ServiceDown(Value, frozen=True):
    """It is closed again, or could not be opened."""

    transport: str
    reason: str


class Signaled(Value, frozen=True):
    """A message from a signaling service. Goes to signaling."""

    transport: str
    message: SignalingMessage


class LocalSignal(Value, frozen=True):
    """Our own link layer has an offer or answer for this peer, or a late candidate. Goes to signaling."""

    peer: PeerId
    signal: Facts


Source: TypeAlias = Literal["config", "bootstrap", "joined", "rejection", "hearsay", "ring", "list", "beyond"]
"""Where the news comes from that a peer is there.

- `config`: from the application;
- `bootstrap`, `joined`: from a signaling service, of peers that were there before us or came later (`joined` also from
  the ring);
- `rejection`: from a peer that had no room for us;
- `hearsay`: from peers, of peers that they have heard of; `ring`: of the neighbours that we should have; `list`: of
  peers that may be our neighbours now that one was lost;
- `beyond`: from the other side of a partition.
"""


class PeersFound(Value, frozen=True):
    """These peers are said to be in the mesh. A hint: goes to the overlay.

    The overlay tells Kademlia the peers around us on the ring so, whenever they change: all that it knows.
    """

    peers: tuple[PeerId, ...]
    source: Source


class PeerGone(Value, frozen=True):
    """This peer is said to have left. A hint: goes to the overlay."""

    peer: PeerId


class Connect(Value, frozen=True):
    """The application wants a link to this peer, for good. Answered by `Reply` once it is open. Goes to the overlay."""

    call: int
    peer: PeerId


class Disconnect(Value, frozen=True):
    """The application wants no link to this peer any more. Answered by `Reply`, at once. Goes to the overlay."""

    call: int
    peer: PeerId


class Blocked(Value, frozen=True):
    """The application has blocked this peer: what is kept of it goes. Goes to the DHT."""

    peer: PeerId


class Publish(Value, frozen=True):
    """The application broadcasts. Answered by `Reply` with the message id once it is out. Goes to broadcast."""

    call: int
    topic: str
    payload: PayloadLike | Body
    ttl: float | None = None
    max_hops: int | None = None
    receipts: bool = True


class WantHistory(Value, frozen=True):
    """The application wants what was broadcast before we came, as far as neighbours still keep it. Goes to broadcast.

    What comes is delivered as `MessageReceived` like anything else, to all subscriptions of its topic: one that asked
    for less can tell by its `age`. Nothing of that age is delivered unasked.
    """

    topic: str | None
    """None for all topics."""
    seconds: float
    """How far back."""


class SendDirect(Value, frozen=True):
    """The application sends to one peer. Answered by `Reply` once that peer has it, or can't be reached."""

    call: int
    peer: PeerId
    payload: PayloadLike | Body


class InboxRead(Value, frozen=True):
    """The application has read on in its direct messages. Goes to routing: the latest state, so one may replace others.

    A message is read once every stream of direct messages that was open has given it out.
    """

    messages: int
    """That were read, since the start and in the order in which they were emitted."""
    most: int
    """That may wait to be read from now on."""


class LinkLoad(Value, frozen=True):
    """What of ours waits in the link to this peer: the answer to `InspectLink`. Goes to routing."""

    peer: PeerId
    frames: int
    """That wait for the link itself to take them."""
    bytes: int
    """In these, in the link and below it."""
    left: int
    """Bytes that have left since the link opened."""


class Unsent(Value, frozen=True):
    """The link to this peer did not take a message. Goes to the core that owns its type."""

    peer: PeerId
    message: Message
    size: int
    """Of the frame, in bytes."""
    limit: int | None = None
    """The peer takes no larger frames than this. None: too many waited, which may be otherwise in a moment."""

    @property
    def reason(self) -> str:
        """Why, for people, if there is a limit."""
        return f"a frame of {self.size} bytes is too large, where {self.limit} is the limit"


class CancelCall(Value, frozen=True):
    """The caller of this call was cancelled: no reply is wanted."""

    call: int


class DhtPut(Value, frozen=True):
    """The application stores a value. Answered by `Reply` with the number of peers that hold it. Goes to the DHT."""

    call: int
    key: str
    value: PayloadLike | Body
    ttl: float | None = None
    owned: bool = False
    """Whether the key is ours alone."""


class DhtGet(Value, frozen=True):
    """The application looks a value up. Answered by `Reply` with a `DhtValue`, or None. Goes to the DHT."""

    call: int
    key: str
    publisher: PeerId | None = None
    owned: bool = False
    """Whether the key is that publisher's alone."""


class DhtGetAll(Value, frozen=True):
    """The application looks up all values under a key. Answered by `Reply` with them by publishers. Goes to the DHT."""

    call: int
    key: str


class DhtFindNode(Value, frozen=True):
    """The application looks for the peers nearest to a key by XOR. Answered by `Reply` with their ids."""

    call: int
    target: PeerId


class Leave(Value, frozen=True):
    """The mesh is being left: say goodbye. Goes to every core."""


FromOutside: TypeAlias = (
    LinkUp
    | LinkDown
    | LinkSuspected
    | LinkRecovered
    | LinkLost
    | Received
    | ServiceUp
    | ServiceDown
    | Signaled
    | LocalSignal
    | PeersFound
    | PeerGone
    | Connect
    | Disconnect
    | Blocked
    | Publish
    | WantHistory
    | SendDirect
    | InboxRead
    | LinkLoad
    | Unsent
    | CancelCall
    | DhtPut
    | DhtGet
    | DhtGetAll
    | DhtFindNode
    | Leave
)
