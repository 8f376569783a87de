"""Peers that work against the mesh, within what a peer can do: it holds its own key, and sends what it likes.

A hostile peer runs the same cores as the others, and does its mischief on top, so that it is let in and stays in. What
a kind makes of the messages of its cores is a table in `lies`; what it sends besides, some functions of `mischief`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec.structs import replace

from p2pmesh.errors import ConfigError
from p2pmesh.keyspace import nearness
from p2pmesh.protocols.core import SendFrame
from p2pmesh.protocols.routing.packets import content, signed
from p2pmesh.simulation.faults import lies, mischief
from p2pmesh.simulation.faults.hostile_peer import HostilePeer, invented
from p2pmesh.simulation.faults.lies import Lies
from p2pmesh.simulation.faults.mischief import Maker
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import Packet
from p2pmesh.wire.signaling import ConnectionRejected, Join, SignalingMessage

EVERY: Final = 0.5
"""Seconds between two acts of mischief of one peer."""
FLOOD: Final = 100
"""Frames in one act of a flooder: more at once than most of what limits floods admits."""
FLOOD_EVERY: Final = 12
"""Acts of a peer for one flood: a mesh's days in the simulator should not go into floods alone."""
GARBAGE_EVERY: Final = 10
"""Acts of a peer for one piece of garbage, which ends its link at once: more would leave no link to send it over."""
OFFERS_AT_ONCE: Final = 4
"""That one peer makes by way of the service in one act: as many as a real one admits."""


class Adversary(Enum):
    """What a hostile peer does."""

    GARBAGE = "garbage"
    """Sends bytes that are no messages."""
    LIAR = "liar"
    """Names peers that don't exist where it should name contacts."""
    DROPPER = "dropper"
    """Acknowledges broadcasts of others and passes none on."""
    FLOODER = "flooder"
    """Sends what no peer asked for: direct messages, offers of broadcasts that don't exist, receipts for nothing."""
    AGES = "ages"
    """Says of others' broadcasts that their time is over, or nearly so."""
    HOPS = "hops"
    """Says of others' broadcasts that they have come as far as they may, or nearly so."""
    RING = "ring"
    """Lies about its links and its place on the ring: crowds that aren't there, nobody, or its allies."""
    ACKS = "acks"
    """Says of broadcasts that it had them, wants none, refuses them, or has others."""
    COUNTS = "counts"
    """Receipt inflater: tells of peers that don't exist, or forgets those that do."""
    DIGESTS = "digests"
    """Says of others' broadcasts, where what two peers have is compared, that it has all, none or other ones."""
    TRAILS = "trails"
    """Writes into others' packets other ways, dead ends and limits, or takes their proof out."""
    MISSES = "misses"
    """Says of each packet that it should pass on that there is no way."""
    BLACK_HOLE = "black-hole"
    """Acknowledges everything of others, and passes nothing on: broadcasts, their names, packets, news."""
    GREY_HOLE = "grey-hole"
    """As a black hole, but for some neighbours alone, and half of the time."""
    DHT_LIAR = "dht-liar"
    """Answers look-ups with its allies and peers that don't exist, and withholds the values that it is to hold."""
    FLUSHER = "flusher"
    """Floods tables with what is valid: broadcasts, of throw-away origins too, packets, directs, contacts, values."""
    REPLAYER = "replayer"
    """Keeps what it passes on, broadcasts and packets of others, and sends it again and again, to anybody, later."""
    BURNER = "burner"
    """Sends small frames that cause large work: histories, comparisons, searches, questions, news of bridges."""
    OFFERS = "offers"
    """Floods offers of links: of throw-away peers through the mesh, and its own by way of the service."""
    GRINDER = "grinder"
    """Comes with an id that was ground near a victim, wants a link to it, and is a black hole that names its allies."""
    GHOST = "ghost"
    """Joins at the service, and never answers anybody."""

    @property
    def comes_anew(self) -> bool:
        """Whether a peer turns into one by coming again with another id."""
        return self in {Adversary.GRINDER, Adversary.GHOST}

    def lets_pass(self, frame: SendFrame, peer: HostilePeer) -> bool:
        """Whether the peer sends what its cores ask it to; it has sent something else, or nothing, if not."""
        table = _LIES.get(self, _HONEST)
        message = frame.message
        lie = table.get(type(message))
        if isinstance(message, Packet) and lies.is_own(message, peer):
            return self._sends_own(message, frame, peer, table)
        if lie is None:
            return True
        for to in frame.peers:
            said = lie(message, peer, to)
            if said is not None:
                peer.send_frame((to,), said, urgent=frame.urgent)
        return False

    def twisted(self, message: SignalingMessage, peer: HostilePeer) -> SignalingMessage | None:
        """What the peer makes of a message to others by way of the service; None for nothing."""
        if self is Adversary.GHOST and not isinstance(message, Join):
            return None
        if self is Adversary.LIAR and isinstance(message, ConnectionRejected):
            return replace(message, alternative_peers=invented(peer.rng, 3))
        return message

    def act(self, peer: HostilePeer) -> None:
        """Do one act of mischief. Called every `EVERY` seconds."""
        rng = peer.rng
        if self is Adversary.GRINDER and (victims := peer.plot.victims()):
            victim = min(victims, key=lambda victim: nearness(peer.peer_id, victim))
            if victim not in peer.peers:
                peer.court(victim)
        if self is Adversary.OFFERS and (victims := peer.plot.victims()):
            for victim in rng.choices(victims, k=OFFERS_AT_ONCE):
                peer.tell_service(mischief.signal(peer, victim))
        makers = _FLOODS.get(self)
        neighbours = peer.peers
        if not neighbours:
            return
        if makers is not None and rng.randrange(FLOOD_EVERY) == 0:
            target, make = rng.choice(neighbours), rng.choice(makers)
            for _ in range(FLOOD):
                peer.send_frame((target,), make(peer, target), urgent=True)
        if self is Adversary.GARBAGE and rng.randrange(GARBAGE_EVERY) == 0:
            peer.send_bytes(rng.choice(neighbours), mischief.garbage(peer))

    def _sends_own(self, message: Packet, frame: SendFrame, peer: HostilePeer, table: Lies) -> bool:
        """Twist what is in a packet of the peer's own, and sign it anew."""
        if self is Adversary.GHOST:
            return False
        inside = None if message.sealed or message.kind not in _CARRIERS else content(message.carry)
        lie = table.get(type(inside))
        if lie is None or inside is None:
            return True
        said: Message | None = lie(inside, peer, message.to)
        if said is not None:
            whole = replace(message, carry=encode(said), from_=peer.peer_id)
            whole = whole if message.key is None else signed(whole, peer.identity, peer.network)
            peer.send_frame(frame.peers, replace(whole, from_=None), urgent=frame.urgent)
        return False


def adversary_of(name: str) -> Adversary:
    """The kind of this name.

    Raises:
      ConfigError: if there is none.
    """
    try:
        return Adversary(name)
    except ValueError:
        kinds = ", ".join(kind.value for kind in Adversary)
        raise ConfigError(f"{name!r:.40} is no kind of adversary: there are {kinds}") from None


_CARRIERS: Final = ("tell", "ask", "answer")
"""Kinds of packets with a message in them."""
_HONEST: Final[Lies] = {}
_LIES: Final[dict[Adversary, Lies]] = {
    Adversary.LIAR: lies.CONTACTS,
    Adversary.DROPPER: lies.DROPS,
    Adversary.AGES: lies.AGES,
    Adversary.HOPS: lies.HOPS,
    Adversary.RING: lies.RING,
    Adversary.ACKS: lies.ACKS,
    Adversary.COUNTS: lies.COUNTS,
    Adversary.DIGESTS: lies.DIGESTS,
    Adversary.TRAILS: lies.TRAILS,
    Adversary.MISSES: lies.MISSES,
    Adversary.BLACK_HOLE: lies.BLACK_HOLE,
    Adversary.GREY_HOLE: lies.GREY_HOLE,
    Adversary.DHT_LIAR: lies.DHT,
    Adversary.GRINDER: lies.ECLIPSE,
    Adversary.GHOST: lies.SILENCE,
    Adversary.REPLAYER: lies.REPLAY,
}
_FLOODS: Final[dict[Adversary, tuple[Maker, ...]]] = {
    Adversary.FLOODER: (mischief.unasked,),
    Adversary.FLUSHER: mischief.FLUSH,
    Adversary.REPLAYER: (mischief.replayed,),
    Adversary.BURNER: mischief.BURN,
    Adversary.OFFERS: (mischief.offer,),
}
