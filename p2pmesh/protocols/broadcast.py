"""Broadcast: every peer gets every message, once, over a mesh whose links come and go.

A flood with dedupe. The origin signs a message and sends it over all its links; a peer that has not seen its id verifies
it, delivers it, acknowledges it and sends it on over all other links. Each hop is acknowledged and retried by itself. A
new neighbour is told the ids of what is alive here and asks for what it lacks, so that a message crosses a gap between
peers that had no path when it was sent.

A message lives for `ttl` from its first sending, measured by the peers that keep it (`age`); the origin's timestamp only
bounds what they may claim, within `clock_skew`. Its id is remembered for as long as any copy could still be accepted.

On each link there is a window of unacknowledged messages and a backlog behind it. While any backlog is long, `Publish`
waits; nothing else ever does.

Peers of the original project acknowledge nothing and prove nothing: they get each message once, and what they send is
delivered, and passed on, as unproven; only where `LinkConfig.allow_unverified` lets them in. A message that claims a
proof must be right: else the neighbour who passed it on without looking is to blame, and its link is closed.

Inputs: LinkUp, LinkDown, Received (Gossip, GossipAck, GossipHave, GossipWant), Publish, Forget, Leave.
Effects: SendFrame, DropLink, Emit (MessageReceived), Reply, Tell to the receipts (Originated, Forwarded, HopSettled).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs
from attrs import define, frozen
from msgspec import structs

from p2pmesh.config import BroadcastConfig, MeshConfig
from p2pmesh.errors import MeshClosed, MeshError, RemoteProtocolError
from p2pmesh.events import MessageReceived
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    DropLink,
    Effect,
    Effects,
    Emit,
    Forget,
    Forwarded,
    Input,
    Leave,
    LinkDown,
    LinkUp,
    Originated,
    Publish,
    Received,
    RemotePeer,
    Reply,
    SendFrame,
    WallClock,
)
from p2pmesh.protocols.gossip_rules import RESERVED_TOPICS, Draft, Rules
from p2pmesh.protocols.gossip_signature import is_proven, is_signed, signed
from p2pmesh.protocols.history import History, Kept, payload_size
from p2pmesh.protocols.hops import Hops, tell_receipts
from p2pmesh.protocols.originals import PROBE, for_originals, probe_response
from p2pmesh.protocols.outflow import Outflow
from p2pmesh.protocols.seen import SeenTable
from p2pmesh.protocols.timers import Backoff, Timers
from p2pmesh.wire.messages import (
    MAX_IDS_IN_LIST,
    MAX_PEERS_IN_LIST,
    Gossip,
    GossipAck,
    GossipData,
    GossipHave,
    GossipWant,
    Message,
)
from p2pmesh.wire.payloads import unpack

SLACK = 1.0
"""Ids are remembered this much longer than a copy could be accepted, for what rounding does to times."""


@frozen
class _Offer:
    """Due when an offer to a new neighbour stays unanswered."""

    peer: PeerId


@frozen
class _Expiry:
    """Due when a message's time is over."""

    message_id: str


_Timer: TypeAlias = _Offer | _Expiry


@define
class _Counts:
    published: int = 0
    delivered: int = 0
    duplicates: int = 0
    sent_to_originals: int = 0
    expired: int = 0
    too_far: int = 0
    unproven: int = 0
    blamed: int = 0
    history_dropped: int = 0
    offered: int = 0
    wanted: int = 0


class BroadcastCore:
    """The broadcasts of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._config: BroadcastConfig = config.broadcast
        self._rules = Rules(config, wall)
        self._takes_unproven = config.links.allow_unverified
        self._rng = rng
        self._wall = wall
        self._backoff = Backoff(self._config.ack_timeout, self._config.max_ttl)
        self._originals: dict[PeerId, RemotePeer] = {}  # neighbours of version 0
        self._seen: SeenTable[str, PeerId | None] = SeenTable(self._config.seen_ids)  # who gave it first
        self._history = History(self._config.history, self._config.history_bytes)
        self._hops = Hops(self._config, rng, self._history, self._do)
        self._drafts: dict[int, Draft] = {}
        self._timers: Timers[_Timer] = Timers()
        self._counts = _Counts()
        self._left = False
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        match event:  # the most frequent first
            case Received(peer, message):
                self._received(peer, message, now)
            case LinkUp(peer):
                self._link_up(peer, now)
            case LinkDown(peer):
                self._link_down(peer)
            case Publish():
                self._publish(event, now)
            case Forget(call):
                self._drafts.pop(call, None)
            case Leave():
                self._leave()
            case _:
                pass  # for other cores
        return self._finish(now)

    def next_deadline(self) -> float:
        own, hops = self._timers.next_deadline(), self._hops.next_deadline()
        return min(hops, own)

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        self._hops.expire(now)
        for timer in self._timers.pop_due(now):
            match timer:
                case _Offer(peer):
                    self._offer(peer, now)
                case _Expiry(message_id):
                    self._let_go(message_id, now)
        return self._finish(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            **attrs.asdict(self._counts),
            **attrs.asdict(self._hops.counts),
            "links": len(self._hops) + len(self._originals),
            "in_flight": sum(link.flight for link in self._hops),
            "backlog": sum(link.backlog for link in self._hops),
            "waiting": len(self._drafts),
            "history": len(self._history),
            "history_bytes": self._history.bytes,
            "seen_ids": len(self._seen),
            "seen_ids_forgotten": self._seen.forgotten,
        }

    def _finish(self, now: float) -> Effects:
        if self._drafts:
            self._admit(now)
        effects, self._effects = self._effects, []
        return effects

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    # --- links --------------------------------------------------------------------------------------------------------

    def _link_up(self, peer: RemotePeer, now: float) -> None:
        self._link_down(peer.peer_id)
        if peer.version == 0:
            self._originals[peer.peer_id] = peer
            self._greet_original(peer, now)
            return
        self._hops.up(peer)
        self._offer(peer.peer_id, now)

    def _link_down(self, peer: PeerId) -> None:
        self._originals.pop(peer, None)
        self._hops.down(peer)
        self._timers.cancel(_Offer(peer))

    def _offer(self, peer: PeerId, now: float) -> None:
        """Tell a new neighbour what is alive here, until it answers."""
        link, ids = self._hops.get(peer), self._lacked_by(peer)
        if link is None or not ids or link.offers > self._config.retries:
            return
        link.offers += 1
        self._counts.offered += len(ids)
        self._do(SendFrame((peer,), GossipHave(ids=ids), urgent=True))
        self._timers.set(_Offer(peer), now + self._backoff.delay(link.offers, self._rng))

    def _lacked_by(self, peer: PeerId) -> tuple[str, ...]:
        """The newest messages that this peer may lack, the oldest of them first."""
        limit = min(self._config.offers, MAX_IDS_IN_LIST)
        ids: list[str] = []
        for kept in self._history.newest_first():
            if len(ids) >= limit:
                break
            if self._rules.may_go_on(kept) and not kept.is_held_by(peer):
                ids.append(kept.data.id)
        return tuple(reversed(ids))

    def _greet_original(self, peer: RemotePeer, now: float) -> None:
        """It can't say what it lacks: it gets what has gone to nobody yet."""
        waiting = [kept for kept in self._history.newest_first() if not kept.went_out and self._rules.may_go_on(kept)]
        for kept in reversed(waiting[: self._config.offers]):
            if not kept.is_held_by(peer.peer_id):
                self._spread(kept, (), (peer.peer_id,), now)

    # --- broadcasts of ours -------------------------------------------------------------------------------------------

    def _publish(self, event: Publish, now: float) -> None:
        try:
            if self._left:
                raise MeshClosed("the mesh was left")
            self._drafts[event.call] = self._rules.draft(event, now)
        except MeshError as error:
            self._do(Reply(event.call, error=error))

    def _admit(self, now: float) -> None:
        """Let out what waits, in the order of the calls, while the links can take it."""
        while self._drafts and not self._hops.are_congested:
            call = next(iter(self._drafts))
            self._originate(call, self._drafts.pop(call), now)

    def _originate(self, call: int, draft: Draft, now: float) -> None:
        data = GossipData(
            id=self._new_id(),
            topic=draft.topic,
            payload=draft.body.payload,
            encoding=draft.body.encoding,
            blob=draft.body.blob,
            origin_peer_id=self._me,
            timestamp=self._milliseconds(now),
            ttl=max(1, int(draft.ttl * 1000)),
            max_hops=draft.max_hops,
            receipts=draft.receipts,
            hops=0,
            relayed_by=(),
        )
        self._counts.published += 1
        kept = Kept(
            data=signed(data, self._identity),
            parent=None,
            hops=0,
            since=now,
            expires=now + draft.ttl,
            size=draft.body.size,
            relayed_by=(self._me,),
        )
        self._do(Reply(call, value=data.id))
        tell_receipts(self._do, kept, Originated(data.id, data.topic, kept.expires, draft.called))
        self._keep(kept, now)

    def _leave(self) -> None:
        self._left = True
        for call in self._drafts:
            self._do(Reply(call, error=MeshClosed("the mesh was left before the broadcast could be sent")))
        self._drafts.clear()

    # --- what neighbours send -----------------------------------------------------------------------------------------

    def _received(self, peer: PeerId, message: Message, now: float) -> None:
        link = self._hops.get(peer)
        match message:
            case Gossip(data=data) if link is not None:
                self._gossip(link.peer, data, now)
            case Gossip(data=data) if peer in self._originals:
                self._gossip(self._originals[peer], data, now)
            case GossipAck(id=str() as message_id, duplicate=duplicate) if link is not None:
                self._hops.acked(link, message_id, duplicate=duplicate, now=now)
            case GossipHave(ids=ids) if link is not None:
                self._have(link, ids)
            case GossipWant(ids=ids) if link is not None:
                self._want(link, ids, now)
            case _:
                pass  # from a link that has just ended, or nothing an original's peer means by it

    def _gossip(self, sender: RemotePeer, data: GossipData, now: float) -> None:
        if data.topic.startswith(RESERVED_TOPICS):
            self._answer_probe(sender, data, now)
        elif data.id in self._seen:
            self._duplicate(sender, data.id, now)
        elif data.origin_peer_id == self._me:
            self._refuse(sender, data.id)  # sent before this process began, or in our name
        elif not self._rules.may_come(data):
            self._counts.too_far += 1
            self._refuse(sender, data.id)
        elif self._rules.lifetime(data, now) <= 0:
            self._counts.expired += 1
            self._refuse(sender, data.id)
        else:
            self._fresh(sender, data, now)

    def _fresh(self, sender: RemotePeer, data: GossipData, now: float) -> None:
        """One that we have not seen, from a neighbour that may send it."""
        if sender.version == 0:  # it relays no key, so what it relays proves nothing, and nobody counts below it
            data = structs.replace(data, key=None, signature=None, receipts=False)
        verified = is_signed(data)
        if verified and not is_proven(data):
            self._blame(sender, "a broadcast with a signature that is not its origin's")
            return
        if not verified and not self._takes_unproven:
            self._counts.unproven += 1
            self._refuse(sender, data.id)
            return
        try:
            payload = unpack(data.payload, data.encoding, data.blob)
        except RemoteProtocolError as error:
            self._blame(sender, str(error))
            return
        kept = Kept(
            data=data,
            parent=sender.peer_id,
            hops=data.hops + 1,
            since=now,
            expires=now + self._rules.lifetime(data, now),
            size=payload_size(data),
            relayed_by=(*(data.relayed_by if sender.version == 0 else ()), sender.peer_id)[-MAX_PEERS_IN_LIST:],
        )
        self._counts.delivered += 1
        self._ack(sender, data.id, duplicate=False)
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
                )
            )
        )
        self._keep(kept, now)

    def _duplicate(self, sender: RemotePeer, message_id: str, now: float) -> None:
        """A copy more. Two that cross on a link stand for each other's acks; from whom we have it, our ack was lost."""
        self._counts.duplicates += 1
        is_parent = self._seen[message_id] == sender.peer_id
        if not is_parent and self._hops.crossed(sender.peer_id, message_id, now):
            return
        self._ack(sender, message_id, duplicate=not is_parent)
        kept = self._history.get(message_id)
        if kept is not None:
            self._hops.spare(sender.peer_id, kept)

    def _refuse(self, sender: RemotePeer, message_id: str) -> None:
        """Neither delivered nor passed on; acknowledged, so that it is not sent again."""
        self._ack(sender, message_id, duplicate=True)

    def _blame(self, sender: RemotePeer, reason: str) -> None:
        if sender.version == 0:  # these pass on what they never look at
            return
        self._counts.blamed += 1
        self._do(DropLink(sender.peer_id, reason, blame=True))

    def _ack(self, sender: RemotePeer, message_id: str, *, duplicate: bool) -> None:
        if sender.version > 0:
            self._do(SendFrame((sender.peer_id,), GossipAck(id=message_id, duplicate=duplicate), urgent=True))

    def _have(self, link: Outflow, ids: Sequence[str]) -> None:
        for message_id in ids:
            kept = self._history.get(message_id)
            if kept is not None:
                self._hops.spare(link.peer.peer_id, kept)
        wanted = tuple(message_id for message_id in dict.fromkeys(ids) if message_id not in self._seen)
        self._counts.wanted += len(wanted)
        self._do(SendFrame((link.peer.peer_id,), GossipWant(ids=wanted), urgent=True))

    def _want(self, link: Outflow, ids: Sequence[str], now: float) -> None:
        peer = link.peer.peer_id
        self._timers.cancel(_Offer(peer))
        for message_id in ids:
            kept = self._history.get(message_id)
            if kept is None or message_id in link or kept.is_held_by(peer) or not self._rules.may_go_on(kept):
                continue
            self._spread(kept, (link,), (), now)

    def _answer_probe(self, sender: RemotePeer, data: GossipData, now: float) -> None:
        """The original's way to ask whether somebody is there; it goes no further and reaches no application."""
        if sender.version > 0 or data.topic != PROBE:
            return
        response = probe_response(data, self._me, self._new_id(), self._milliseconds(now))
        self._do(SendFrame((sender.peer_id,), response, urgent=True))

    # --- sending on ---------------------------------------------------------------------------------------------------

    def _keep(self, kept: Kept, now: float) -> None:
        """Remember a new message, ours or another's, and spread it."""
        data = kept.data
        self._seen.add(data.id, kept.parent, now + self._rules.acceptable_for(data, now) + SLACK, now)
        self._history.add(kept)
        self._timers.set(_Expiry(data.id), kept.expires)
        while (oldest := self._history.overflow()) is not None:
            self._counts.history_dropped += 1
            self._let_go(oldest, now)
        links: tuple[Outflow, ...] = ()
        originals: tuple[PeerId, ...] = ()
        if self._rules.may_go_on(kept):
            links = tuple(link for link in self._hops if not kept.is_held_by(link.peer.peer_id))
            told = kept.relayed_by  # a hint that only those it comes from are spared for
            originals = tuple(peer for peer in self._originals if peer not in told and not kept.is_held_by(peer))
        self._spread(kept, links, originals, now)

    def _spread(self, kept: Kept, links: Sequence[Outflow], originals: Sequence[PeerId], now: float) -> None:
        children = tuple(link.peer.peer_id for link in links)
        kept.went_out = kept.went_out or bool(links or originals)
        tell_receipts(self._do, kept, Forwarded(kept.data.id, kept.parent, children, kept.expires, len(originals)))
        self._hops.spread(kept, links, now)
        if originals:
            self._counts.sent_to_originals += len(originals)
            self._do(SendFrame(tuple(originals), for_originals(kept)))

    def _let_go(self, message_id: str, now: float) -> None:
        """Its time is over, or there is no room for it."""
        self._timers.cancel(_Expiry(message_id))
        self._hops.give_up(self._history[message_id], now)
        self._history.remove(message_id)

    def _new_id(self) -> str:
        return self._rng.randbytes(16).hex()

    def _milliseconds(self, now: float) -> int:
        return int(self._wall(now) * 1000)
