"""Broadcast: every peer gets every message, once, over a mesh whose links come and go.

The origin signs a message and sends it to its neighbours; a peer that has not seen it verifies it, delivers it, acknowledges
it and passes it on. To whom as a copy, and to whom as a mere announcement, is up to the origin's tree (`tree`,
`spreading`): copies go along the tree, announcements everywhere else, and who hears of a message that stays away asks for it
(`awaited`). Each copy is acknowledged, and retried by itself (`hops`, `acks`). What falls through all of that, or was
sent while there was no path, is found missing when neighbours compare what they have (`antientropy`).

How much is pushed follows what happens. While all is well, copies go along the tree alone. Each failure nearby, a link that
ended, an ack that stayed away, a message that had to be asked for, adds one more link to those that get copies, and is
forgotten with a half-life of 7 s (`FailurePressure`). And an origin of which nothing was heard for five minutes has no tree: where so
little is sent, its first message goes to everybody who is likely to lack it (`NoveltyEstimate`).

A message lives for `ttl` from its first sending, measured by the peers that keep it (`age`); the origin's timestamp only
bounds what they may claim, within `clock_skew`. Its id is made from its content, so that no other can pass for it, and is
remembered for as long as any copy could still be accepted.

On each link there is a window of unacknowledged messages and a backlog behind it. While any backlog is long, or acks on all
links take far longer than they could, `Publish` waits (`publishing`); nothing else ever does. Who is slow because there is
too much to do gets more time, not more to do: waiting times follow measured round-trips and our own lag (`lag`), and what is
merely late is neither repeated nor asked for elsewhere. One link that is slower than the others is taken out of the trees
instead, and closed if that does not help.

Peers of the original project acknowledge nothing and prove nothing: they get each message once, and what they send is
delivered, and passed on, as unproven; only where `LinkConfig.allow_unverified` lets them in. A message that claims a
proof must be right: else the neighbour who passed it on without looking is to blame, and its link is closed.

Inputs: LinkUp, LinkDown, Received (gossip and its kin), Publish, WantHistory, MeshSize, CancelCall, Leave; the first input of
any kind, at the latest `ServiceUp`, is when this peer began.
Effects: SendFrame, DropLink, Emit (MessageReceived), Reply, Notify to the receipts (BroadcastStarted, ChildrenAdded, ChildSettled).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import define
from msgspec import structs

from p2pmesh.config import BroadcastConfig, MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import MessageReceived
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.anti_entropy import AntiEntropy
from p2pmesh.protocols.broadcast.hop_acks import AckKind
from p2pmesh.protocols.broadcast.legacy import PROBE, for_originals, have_same_content, probe_response
from p2pmesh.protocols.broadcast.limits import RESERVED_TOPICS, BroadcastLimits
from p2pmesh.protocols.broadcast.message_store import MessageStore, StoredMessage, payload_size, tree_of
from p2pmesh.protocols.broadcast.plumtree import Plumtree
from p2pmesh.protocols.broadcast.publisher import Publisher
from p2pmesh.protocols.broadcast.send_window import SendWindow
from p2pmesh.protocols.broadcast.signature import is_proven, is_signed
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import DropLink, Effect, Effects, Emit, SendFrame
from p2pmesh.protocols.inputs import CancelCall, Leave, LinkDown, LinkUp, Publish, Received, RemotePeer, WantHistory
from p2pmesh.protocols.notices import Input, MeshSize
from p2pmesh.protocols.util.lru_table import ExpiringSet
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.fields import MAX_PEERS_IN_LIST
from p2pmesh.wire.messages import (
    Gossip,
    GossipAck,
    GossipData,
    GossipDigest,
    GossipGraft,
    GossipHave,
    GossipHistory,
    GossipIHave,
    GossipWant,
    Message,
)
from p2pmesh.wire.payloads import unpack

SLACK = 1.0
"""Ids are remembered this much longer than a copy could be accepted, for what rounding does to times."""


@define
class _Counts:
    delivered: int = 0
    duplicates: int = 0
    sent_to_originals: int = 0
    expired: int = 0
    too_far: int = 0
    unproven: int = 0
    too_large: int = 0
    before_us: int = 0
    blamed: int = 0
    history_dropped: int = 0


class BroadcastCore:
    """The broadcasts of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._me = identity.peer_id
        self._config: BroadcastConfig = config.broadcast
        self._rules = BroadcastLimits(config, wall)
        self._takes_unproven = config.links.allow_unverified
        self._rng = rng
        self._wall = wall
        self._max_payload = config.max_payload
        self._originals: dict[PeerId, RemotePeer] = {}  # neighbours of version 0
        self._seen: ExpiringSet[str, PeerId | None] = ExpiringSet(self._config.seen_ids)  # who gave it first
        self._history = MessageStore(self._config.history, self._config.history_bytes)
        self._spreading = Plumtree(self._config, rng, self._history, self._do)
        self._hops = self._spreading.hops
        self._sync = AntiEntropy(
            self._me,
            self._config,
            rng,
            self._history,
            self._hops,
            self._seen.__contains__,
            self._rules.may_go_on,
            self._do,
        )
        self._publishing = Publisher(identity, self._rules, self._hops, wall, self._keep, self._do)
        self._expiries: Timers[str] = Timers()
        self._counts = _Counts()
        self._deadline: float | None = None
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        self._sync.begin(now)
        match event:  # the most frequent first
            case Received(peer, message):
                self._received(peer, message, now)
            case LinkUp(peer):
                self._link_up(peer, now)
            case LinkDown(peer, _, timed_out):
                self._link_down(peer, now, was_lost=timed_out is not None)
            case Publish():
                self._publishing.ask(event, now)
            case MeshSize(peers):
                self._rules.mesh_size(peers)
            case WantHistory(topic, seconds):
                self._sync.want_history(topic, seconds, now)
            case CancelCall(call):
                self._publishing.forget(call)
            case Leave():
                self._publishing.leave()
            case _:
                pass  # for other cores
        return self._finish(now)

    def next_deadline(self) -> float:
        if self._deadline is None:  # asked for more often than it changes
            self._deadline = min(
                self._spreading.next_deadline(), self._expiries.next_deadline(), self._sync.next_deadline()
            )
        return self._deadline

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        self._spreading.expire(now)
        self._sync.expire(now)
        for message_id in self._expiries.pop_due(now):
            self._let_go(message_id, now)
        return self._finish(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "published": self._publishing.published,
            **attrs.asdict(self._counts, recurse=False),
            **attrs.asdict(self._hops.counts, recurse=False),
            **attrs.asdict(self._spreading.counts, recurse=False),
            **attrs.asdict(self._spreading.awaited.counts, recurse=False),
            **attrs.asdict(self._sync.counts, recurse=False),
            "announced": self._spreading.announcements.sent,
            "links": len(self._hops) + len(self._originals),
            "in_flight": sum(link.flight for link in self._hops),
            "backlog": sum(link.backlog for link in self._hops),
            "waiting": len(self._publishing),
            "awaited": len(self._spreading.awaited),
            "trees": len(self._spreading.trees),
            "pulling": len(self._sync),
            "history": len(self._history),
            "history_bytes": self._history.bytes,
            "seen_ids": len(self._seen),
            "seen_ids_forgotten": self._seen.forgotten,
        }

    def _finish(self, now: float) -> Effects:
        if self._publishing:
            self._publishing.admit(now)
        self._spreading.awaited.flush()
        if self._spreading.acks:
            for effect in self._effects:
                if isinstance(effect, SendFrame):
                    self._spreading.acks.go_along(effect.peers, now)
            self._spreading.acks.flush(now)
        self._deadline = None
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    # --- links --------------------------------------------------------------------------------------------------------

    def _link_up(self, peer: RemotePeer, now: float) -> None:
        self._link_down(peer.peer_id, now, was_lost=False)
        if peer.version == 0:
            self._originals[peer.peer_id] = peer
            self._greet_original(peer, now)
            return
        self._spreading.up(peer)
        self._sync.up(peer.peer_id, now)

    def _link_down(self, peer: PeerId, now: float, *, was_lost: bool) -> None:
        self._originals.pop(peer, None)
        self._sync.down(peer)
        self._spreading.down(peer, now, was_lost=was_lost)

    def _greet_original(self, peer: RemotePeer, now: float) -> None:
        """It can't say what it lacks: it gets what has gone to nobody yet."""
        waiting = [kept for kept in self._history.newest_first() if not kept.went_out and self._rules.may_go_on(kept)]
        for kept in reversed(waiting[: self._config.greeting]):
            if not kept.is_held_by(peer.peer_id):
                kept.went_out = True
                self._send_to_originals(kept, (peer.peer_id,))
                self._spreading.spread(kept, now, may_go_on=False, was_pulled=False, silent=1)

    # --- what neighbours send -----------------------------------------------------------------------------------------

    def _received(self, peer: PeerId, message: Message, now: float) -> None:
        link = self._hops.get(peer)
        if link is not None:
            self._told(link, message, now)
        elif isinstance(message, Gossip) and peer in self._originals:
            self._gossip(self._originals[peer], message.data, now)

    def _told(self, link: SendWindow, message: Message, now: float) -> None:
        match message:  # the most frequent first
            case Gossip(data=data):
                self._gossip(link.peer, data, now)
            case GossipAck():
                self._spreading.acked(link, message, now)
            case GossipIHave():
                self._spreading.announced(link, message, self._who_gave, now)
            case GossipGraft():
                self._spreading.grafted(link, message, self._rules.may_go_on, now)
            case GossipDigest():
                self._sync.digest(link.peer.peer_id, message, now)
            case GossipHave():
                self._sync.have(link.peer.peer_id, message, now)
            case GossipWant(ids=ids):
                self._sync.wanted(link.peer.peer_id, now)
                self._spreading.serve(link, ids, self._rules.may_go_on, now)
            case GossipHistory():
                self._sync.history(link.peer.peer_id, message, now)
            case _:
                pass  # for other cores

    def _who_gave(self, message_id: str) -> tuple[bool, PeerId | None]:
        is_seen = message_id in self._seen
        return is_seen, self._seen[message_id] if is_seen else None

    def _gossip(self, sender: RemotePeer, data: GossipData, now: float) -> None:
        if data.topic.startswith(RESERVED_TOPICS):
            self._answer_probe(sender, data, now)
        elif data.id in self._seen and not self._unmasks(data, now):
            self._duplicate(sender, data, now)
        elif data.origin_peer_id == self._me:
            self._refuse(sender, data.id, now)  # sent before this process began, or in our name
        elif not self._rules.may_come(data):
            self._counts.too_far += 1
            self._refuse(sender, data.id, now)
        elif (lifetime := self._rules.lifetime(data, now)) <= 0:
            self._counts.expired += 1
            self._refuse(sender, data.id, now)
        elif self._sync.is_before_us(data.topic, data.age, now):
            self._counts.before_us += 1
            self._refuse(sender, data.id, now)
        elif payload_size(data) > self._max_payload:
            self._counts.too_large += 1
            self._refuse(sender, data.id, now)
        else:
            self._fresh(sender, data, lifetime, now)

    def _unmasks(self, data: GossipData, now: float) -> bool:
        """Whether what we have by this id is an unproven other message. Then that is forgotten."""
        kept = self._history.get(data.id)
        if kept is None or is_signed(kept.data) or have_same_content(kept.data, data) or not is_proven(data):
            return False
        self._let_go(data.id, now)
        self._seen.discard(data.id)
        return True

    def _fresh(self, sender: RemotePeer, data: GossipData, lifetime: float, now: float) -> None:
        """One that we have not seen, from a neighbour that may send it."""
        if sender.version == 0:  # it relays no key, so what it relays proves nothing, and nobody counts below it
            data = structs.replace(data, key=None, signature=None, receipts=False)
        verified = is_signed(data)
        if verified and not is_proven(data):
            self._blame(sender, "a broadcast with a signature that is not its origin's")
            return
        if not verified and not self._takes_unproven:
            self._counts.unproven += 1
            self._refuse(sender, data.id, now)
            return
        try:
            payload = unpack(data.payload, data.encoding, data.blob)
        except RemoteProtocolError as error:
            self._blame(sender, str(error))
            return
        kept = StoredMessage(
            data=data,
            parent=sender.peer_id,
            hops=data.hops + 1,
            since=now,
            expires=now + lifetime,
            size=payload_size(data),
            relayed_by=(*(data.relayed_by if sender.version == 0 else ()), sender.peer_id)[-MAX_PEERS_IN_LIST:],
        )
        self._counts.delivered += 1
        if sender.version > 0:
            self._spreading.arrived(sender.peer_id, kept, now)
        self._do(
            Emit(
                MessageReceived(
                    topic=data.topic,
                    payload=payload,
                    origin=data.origin_peer_id,
                    message_id=data.id,
                    timestamp=data.timestamp / 1000,
                    hops=kept.hops,
                    verified=verified,
                    series=data.series,
                    sequence=data.sequence,
                    age=data.age / 1000,
                )
            )
        )
        self._keep(kept, now)

    def _duplicate(self, sender: RemotePeer, data: GossipData, now: float) -> None:
        self._counts.duplicates += 1
        link = self._hops.get(sender.peer_id)
        if link is not None:
            self._spreading.duplicate(link, data.id, tree_of(data.origin_peer_id), self._seen[data.id], now)
            return
        kept = self._history.get(data.id)
        if kept is not None:
            kept.held_by(sender.peer_id)

    def _refuse(self, sender: RemotePeer, message_id: str, now: float) -> None:
        """Neither delivered nor passed on; acknowledged, so that it is not sent again."""
        if sender.version > 0:
            self._spreading.acks.add(sender.peer_id, message_id, AckKind.HAD, now)

    def _blame(self, sender: RemotePeer, reason: str) -> None:
        if sender.version == 0:  # these pass on what they never look at
            return
        self._counts.blamed += 1
        self._do(DropLink(sender.peer_id, reason, blame=True))

    def _answer_probe(self, sender: RemotePeer, data: GossipData, now: float) -> None:
        """The original's way to ask whether somebody is there; it goes no further and reaches no application."""
        if sender.version > 0 or data.topic != PROBE:
            return
        response = probe_response(data, self._me, self._new_id(), int(self._wall(now) * 1000))
        self._do(SendFrame((sender.peer_id,), response, urgent=True))

    # --- sending on ---------------------------------------------------------------------------------------------------

    def _keep(self, kept: StoredMessage, now: float) -> None:
        """Remember a new message, ours or another's, and pass it on."""
        data = kept.data
        was_pulled = self._sync.arrived(data.id, now)
        self._seen.add(data.id, kept.parent, now + self._rules.acceptable_for(data, now) + SLACK, now)
        self._history.add(kept)
        self._expiries.set(data.id, kept.expires)
        self._sync.keep_going(now)
        while (oldest := self._history.overflow()) is not None:
            self._counts.history_dropped += 1
            self._let_go(oldest, now)
        may_go_on = self._rules.may_go_on(kept)
        told = kept.relayed_by  # a hint that only those it comes from are spared for
        originals = tuple([
            peer for peer in self._originals if may_go_on and peer not in told and not kept.is_held_by(peer)
        ])
        heard = self._spreading.spread(kept, now, may_go_on=may_go_on, was_pulled=was_pulled, silent=len(originals))
        kept.went_out = bool(heard or originals)
        if originals:
            self._send_to_originals(kept, originals)

    def _send_to_originals(self, kept: StoredMessage, originals: tuple[PeerId, ...]) -> None:
        self._counts.sent_to_originals += len(originals)
        self._do(SendFrame(originals, for_originals(kept)))

    def _let_go(self, message_id: str, now: float) -> None:
        """Its time is over, or there is no room for it."""
        self._expiries.cancel(message_id)
        self._hops.give_up(self._history[message_id], now)
        self._history.remove(message_id)

    def _new_id(self) -> str:
        return self._rng.randbytes(16).hex()
