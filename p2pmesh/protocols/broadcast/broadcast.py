"""Broadcast: every peer gets every message, once, over a mesh whose links come and go.

Plumtree (Leitao, Pereira, Rodrigues: Epidemic Broadcast Trees, SRDS 2007) with a tree for each origin, acks on every
hop and anti-entropy below it.

The origin signs a message and sends it to its neighbours; a peer that has not seen it verifies it, delivers it,
acknowledges it and passes it on. Which links are *eager* and get a copy, and which are *lazy* and get a mere
announcement, is up to the origin's tree (`plumtree`): copies go along the tree, announcements everywhere else, and a
peer that hears of a message that stays away grafts it (`lazy_push`). Each copy is acknowledged, and retried by itself
(`eager_push`). What falls through all of that, or was sent while there was no path, is found missing when neighbours
compare what they have (`anti_entropy`).

A message lives for `ttl` from its first sending, by the best that relays tell of its age and the timestamp allows
(`validation`). Its number is remembered for as long as any copy could still be accepted (`origins`). Where its proof is
wrong, the neighbour that passed it on without looking is to blame, and its link is closed.

On each link there is a window of unacknowledged messages and a backlog behind it. While any backlog is long, or acks
take far longer than they could, `Publish` waits (`publisher`). What neighbours ask for, and frames that come to
nothing, are paid from a budget of each (`WorkConfig.broadcast`).

The way of a message through this file: `handle`; for ours `_on_publish` and `_send_waiting`, for another's
`_on_received`, `_on_gossip` and `_accept`; then `_store_message`, `_spread` and `_carry_out`, which makes the frames.

Inputs: LinkUp, LinkDown, Received (gossip and its kin), Publish, WantHistory, CancelCall, Leave; the first is when this
peer began.
Effects: SendFrame, DropLink, Emit (MessageReceived, OriginThrottled), Reply, Notify to receipts (ChildrenAdded, ...).
Messages: Gossip, GossipAck, GossipIHave, GossipGraft, GossipDigest, GossipHave, GossipWant, GossipHistory.
Config: BroadcastConfig, and of MeshConfig `max_payload`, `max_peers`, `work.broadcast`, `links.allow_unverified`.
State: ids seen (`seen_ids`), neighbours of version 0, one heap of timers; the rest is in the parts, with their bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

from p2pmesh.config import BroadcastConfig, MeshConfig
from p2pmesh.errors import MeshClosed, MeshError, RemoteProtocolError
from p2pmesh.events import OriginThrottled
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.moderation import Validator, Verdict, accept
from p2pmesh.protocols.broadcast.anti_entropy import AntiEntropy
from p2pmesh.protocols.broadcast.eager_push import (
    AckKind,
    CloseLink,
    EagerPush,
    FailurePressure,
    HopAcks,
    PushDecision,
    Send,
    SendWindow,
    Settled,
    price_of,
)
from p2pmesh.protocols.broadcast.lazy_push import GraftDecisions, GraftScheduler, LazyPush, announcement, grafts_of
from p2pmesh.protocols.broadcast.legacy import (
    PROBE,
    have_same_content,
    in_original_form,
    probe_response,
    without_known,
    without_proof,
)
from p2pmesh.protocols.broadcast.message_store import (
    NOBODY,
    BroadcastTimers,
    Due,
    MessageStore,
    StoredMessage,
    payload_size,
    tree_of,
)
from p2pmesh.protocols.broadcast.origins import Origins
from p2pmesh.protocols.broadcast.plumtree import Plumtree
from p2pmesh.protocols.broadcast.publisher import Publisher
from p2pmesh.protocols.broadcast.validation import (
    RESERVED_TOPICS,
    SPREADS_IN,
    BroadcastLimits,
    Refusal,
    Ways,
    is_proven,
    is_signed,
)
from p2pmesh.protocols.core import DropLink, Effects, Emit, Notify, Reply, SendFrame, WallClock
from p2pmesh.protocols.inputs import (
    CancelCall,
    Leave,
    LinkDown,
    LinkUp,
    Publish,
    Received,
    RemotePeer,
    Subsystem,
    Unsent,
    WantHistory,
)
from p2pmesh.protocols.notices import ChildrenAdded, ChildSettled, Input, Refused, Withdraw
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.limits import BYTES, FRAME, ExpiringSet, Payment, WorkBudget
from p2pmesh.protocols.util.scores import Scores
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


class BroadcastCore:
    """The broadcasts of one peer."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: Random,
        wall: WallClock,
        health: LocalHealth | None = None,
        judge: Validator = accept,
        scores: Scores | None = None,
    ) -> None:
        self._me = identity.peer_id
        self._config: BroadcastConfig = config.broadcast
        self._network = config.network
        self._rng = rng
        self._wall = wall
        self._judge = judge
        self._scores = scores = scores or Scores()
        health = health or LocalHealth()
        self._timers: BroadcastTimers = Timers(health)
        self._deadline: float | None = None
        self._pressure = FailurePressure()
        self._limits = BroadcastLimits(config, wall)
        self._origins = Origins(self._config)
        self._publisher = Publisher(identity, self._limits, wall, config.network, self._origins)
        self._seen: ExpiringSet[str, PeerId | None] = ExpiringSet(self._config.seen_ids)  # and who gave it first
        self._store = MessageStore(self._config.history, self._config.history_bytes)
        self._eager_push = EagerPush(self._config, rng, self._timers, self._pressure, health)
        self._links: Mapping[PeerId, SendWindow] = self._eager_push.links
        self._acks = HopAcks(self._config.ack_delay, self._timers)
        self._plumtree = Plumtree(self._config, self._links)
        self._lazy_push = LazyPush(self._config, rng, self._timers, self._store, self._pressure)
        self._graft = GraftScheduler(config, self._timers, self._links, self._pressure, scores)
        self._anti_entropy = AntiEntropy(
            self._me, self._config, rng, self._timers, self._store, self._links, self._limits
        )
        self._budget = WorkBudget(2 * config.max_peers, config.work.broadcast)
        self._ways = Ways(self._limits, self._store, self._timers, self._links)
        self._originals: dict[PeerId, RemotePeer] = {}  # neighbours of version 0
        self._sent_to_originals = 0
        self._delivered = self._duplicates = 0
        self._refused = dict.fromkeys(Refusal, 0)
        self._effects: Effects = []

    # --- the contract -------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input."""
        self._anti_entropy.begin(now)
        match event:  # the most frequent first
            case Received(peer, message):
                self._on_received(peer, message, now)
            case Publish():
                self._on_publish(event, now)
            case Unsent(peer, Gossip(data=data), limit=int()):
                self._on_refused(peer, (data.id,), event.reason, now)
            case Withdraw(message_id) if (withdrawn := self._store.get(message_id)) is not None:
                self._give_up(withdrawn, now)
                self._store.remove(withdrawn)
            case LinkUp(peer):
                self._on_link_up(peer, now)
            case LinkDown(peer, timed_out=silence):
                self._on_link_down(peer, now, was_lost=silence is not None)
            case WantHistory(topic, seconds):
                self._say(self._anti_entropy.want_history(topic, seconds, now))
            case CancelCall(call):
                self._publisher.forget(call)
            case Leave():
                self._on_leave()
            case _:
                pass  # for other cores
        return self._take(now)

    def next_deadline(self) -> float:
        if self._deadline is None:  # asked for more often than it changes
            self._deadline = self._timers.next_deadline()
        return self._deadline

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        grafts: GraftDecisions = []
        for due, peer, message_id in self._timers.pop_due(now):
            match due:
                case Due.RETRY:
                    self._carry_out(self._eager_push.retry(peer, message_id, now), now)
                case Due.GRAFT:
                    grafts += self._graft.expire(message_id, now)
                case Due.ACKS | Due.PUBLISH:
                    pass  # `_take` sends them
                case Due.ANNOUNCE:
                    for peers, announced in self._lazy_push.pop_due(now):
                        self._effects.append(SendFrame(peers, announced, urgent=True, patient=True))
                case Due.EXPIRY:
                    self._on_expiry(message_id, now)
                case Due.FIRST_DIGEST | Due.DIGEST_AGAIN | Due.PULL_AGAIN | Due.ROUND:
                    self._say(self._anti_entropy.expire(due, peer, now))
        self._say(grafts_of(grafts))
        return self._take(now)

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "links": len(self._links) + len(self._originals),
            "timers": len(self._timers),
            "received": {"delivered": self._delivered, "duplicates": self._duplicates},
            "refused": {refusal.value: count for refusal, count in self._refused.items()},
            "seen": {"ids": len(self._seen), "streams": len(self._origins)},
            "publisher": {"published": self._publisher.published, "waiting": len(self._publisher)},
            "store": {"messages": len(self._store), "bytes": self._store.bytes, "dropped": self._store.dropped},
            "plumtree": self._plumtree.snapshot(),
            "eager_push": self._eager_push.snapshot(),
            "lazy_push": {"announced": self._lazy_push.announced},
            "graft": self._graft.snapshot(),
            "anti_entropy": self._anti_entropy.snapshot(),
            "budget": self._budget.snapshot(),
            "legacy": {"links": len(self._originals), "sent": self._sent_to_originals},
        }

    def _take(self, now: float) -> Effects:
        """The effects of this call, and with them what has waited for room on the links, or for company."""
        if self._publisher:
            self._send_waiting(now)
        if self._acks:
            for effect in self._effects:
                if isinstance(effect, SendFrame):
                    self._acks.go_along(effect.peers, now)
            for peer, ack in self._acks.pop_due(now):
                self._effects.append(SendFrame((peer,), ack, urgent=True, patient=True))
        self._deadline = None
        effects, self._effects = self._effects, []
        return effects

    # --- what the application asks for --------------------------------------------------------------------------------

    def _on_publish(self, event: Publish, now: float) -> None:
        try:
            self._publisher.add(event, now)  # `_take` sends it, or what an ack that makes room for it leads to
        except MeshError as error:
            self._effects.append(Reply(event.call, error=error))

    def _send_waiting(self, now: float) -> None:
        """Send broadcasts of ours, in the order of the calls, while the links can take them."""
        if is_congested := self._eager_push.is_congested(self._publisher.last, now):
            self._carry_out(self._eager_push.judge(now), now)
        while self._publisher and not is_congested:
            if wait := self._publisher.wait(now):
                self._timers.set((Due.PUBLISH, NOBODY, ""), now + wait)
                break
            call, called, message = self._publisher.next_message(now)
            self._effects.append(Reply(call, value=message.data.id))
            self._store_message(message, now)
            self._spread(message, now, called=called)
            is_congested = self._eager_push.is_congested(self._publisher.last, now)

    def _on_leave(self) -> None:
        error = MeshClosed("the mesh was left before the broadcast could be sent")
        self._effects += [Reply(call, error=error) for call in self._publisher.leave()]

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, peer: RemotePeer, now: float) -> None:
        self._on_link_down(peer.peer_id, now, was_lost=False)
        if peer.version == 0:
            self._originals[peer.peer_id] = peer
            self._greet_original(peer.peer_id, now)
            return
        self._plumtree.up(link := self._eager_push.up(peer))
        self._offer(self._store.ours(), [link], now)
        self._say(self._anti_entropy.up(peer.peer_id, now))

    def _on_link_down(self, peer: PeerId, now: float, *, was_lost: bool) -> None:
        self._originals.pop(peer, None)
        link = self._links.get(peer)
        if link is None:
            return
        self._carry_out(self._eager_push.down(peer), now)
        self._offer(link.messages(), list(self._links.values()), now)
        self._pressure.link_ended(now, was_lost=was_lost)
        self._plumtree.down(link)
        self._acks.down(peer)
        self._lazy_push.down(peer)
        self._anti_entropy.down(peer)
        self._say(grafts_of(self._graft.down(peer, now)))

    def _offer(self, messages: Iterable[StoredMessage], links: Sequence[SendWindow], now: float) -> None:
        """Ask neighbours for broadcasts of ours that went out by a peer that can't tell any more."""
        for message in messages:
            asked = [link for link in links if message.data.id not in link]
            if asked and message.is_in_doubt and self._limits.may_go_on(message, now):
                self._add_children(message, asked)
                self._carry_out(self._eager_push.push(message, (), asked, now), now)

    def _greet_original(self, peer: PeerId, now: float) -> None:
        """It can't say what it lacks: it gets what has gone to nobody yet."""
        waiting = [one for one in self._store if not one.went_out and self._limits.may_go_on(one, now)]
        for message in waiting[-self._config.greeting :] if self._config.greeting else ():
            if without_known(message, (peer,)):
                self._send_to_originals(message, (peer,))
                self._add_children(message, (), silent=1)

    # --- what neighbours send -----------------------------------------------------------------------------------------

    def _on_received(self, peer: PeerId, message: Message, now: float) -> None:
        link = self._links.get(peer)
        if link is None:
            if isinstance(message, Gossip) and peer in self._originals:
                self._on_gossip(self._originals[peer], without_proof(message.data), now)
        elif not self._takes(link, message, now):
            self._pays(peer, price_of(message), now)

    def _takes(self, link: SendWindow, message: Message, now: float) -> bool:
        """Do what a neighbour's message is for. Returns whether there was anything to do, or its work is paid for."""
        peer = link.peer.peer_id
        match message:  # the most frequent first
            case Gossip(data=data):
                return self._on_gossip(link.peer, data, now)
            case GossipAck():
                return self._on_ack(link, message, now)
            case GossipIHave():
                return self._on_ihave(link, message, now)
            case GossipGraft(ids=ids):
                for tree_name in dict.fromkeys(map(tree_of, ids)):
                    self._plumtree.grafted(link, tree_name, now)
                return self._serve(link, ids, now)
            case GossipWant(ids=ids):
                return self._anti_entropy.want(peer, now) | self._serve(link, ids, now)
            case GossipDigest() | GossipHave() | GossipHistory():
                if self._pays(peer, self._anti_entropy.price(message, now), now):  # else it is asked again
                    lacked = self._lacked(link, message.ids, now) if isinstance(message, GossipHave) else ()
                    self._say(self._anti_entropy.answer(peer, message, lacked, now))
            case _:
                pass  # for other cores
        return True

    def _pays(self, peer: PeerId, units: float, now: float) -> bool:
        """Whether work is paid for from what a neighbour may cause; one that goes on and on asking loses its link."""
        if (payment := self._budget.spend(peer, units, now)) is Payment.TOO_MUCH:
            self._effects.append(DropLink(peer, "it asks for far more work than a neighbour may cause", blame=True))
        return payment is Payment.NOW

    def _on_gossip(self, sender: RemotePeer, data: GossipData, now: float) -> bool:
        if data.topic.startswith(RESERVED_TOPICS):
            return self._answer_probe(sender, data, now)
        if self._knows(data.id) and not self._unmasks(data, now):
            return self._on_duplicate(sender, data, now)
        age = self._limits.age(data, data.age, now)
        refusal, reason = self._refusal(sender, data, age, now)
        if refusal is None:
            self._accept(sender, data, age, now)
        else:
            self._refuse(sender, data, refusal, reason, now)
        return refusal is None

    def _refusal(self, sender: RemotePeer, data: GossipData, age: float, now: float) -> tuple[Refusal | None, str]:
        """Why a broadcast is neither delivered nor passed on, before anything is checked that takes long."""
        refusal, reason = self._limits.refusal(data, age)
        if data.origin_peer_id == self._me:
            return Refusal.OURS, ""
        if refusal is None and self._anti_entropy.is_before_us(data.topic, min(age, data.age / 1000), now):
            return Refusal.BEFORE_US, ""
        if refusal is None and is_signed(data):
            return self._origins.refusal(sender.peer_id, data, now)
        return refusal, reason

    def _knows(self, message_id: str) -> bool:
        return message_id in self._seen or self._store.get(message_id) is not None

    def _accept(self, sender: RemotePeer, data: GossipData, age: float, now: float) -> None:
        """Deliver and pass on what we have not seen, if it is as it should be."""
        verified = is_signed(data)
        if verified and not is_proven(data, self._network):
            self._blame(sender, data.id, "a broadcast with a signature that is not its origin's", now)
            return
        try:
            payload = unpack(data.payload, data.encoding, data.blob)
        except RemoteProtocolError as error:
            self._blame(sender, data.id, str(error), now)
            return
        if verified:
            until = now + self._limits.acceptable_for(data, now)
            self._origins.add(sender.peer_id, data, payload_size(data), until, now)
        message = StoredMessage(
            data=data,
            parent=sender.peer_id,
            hops=self._limits.hops(data, data.hops),
            since=now,
            born=now - age,
            ttl=self._limits.ttl(data),
            size=payload_size(data),
            relayed_by=(*(data.relayed_by if sender.version == 0 else ()), sender.peer_id)[-MAX_PEERS_IN_LIST:],
        )
        event = message.event(payload, verified=verified, age=age)
        verdict = self._judge(event)
        if verdict is not Verdict.ACCEPT:
            self._turn_down(sender, data, verdict, now)
            return
        self._delivered += 1
        self._scores.add(sender.peer_id, "first", now)
        if sender.version > 0:
            self._acknowledge(sender.peer_id, message, now)
        self._effects.append(Emit(event))
        was_pulled, said = self._anti_entropy.arrived(data.id, now)
        self._say(said)
        self._store_message(message, now)
        self._spread(message, now, was_pulled=was_pulled)

    def _turn_down(self, sender: RemotePeer, data: GossipData, verdict: Verdict, now: float) -> None:
        """The application does not want it. If it is proven, nothing else can have its id: it is as good as seen."""
        if is_signed(data):
            self._seen.add(data.id, None, now + self._limits.acceptable_for(data, now), now)
            for peer in self._graft.arrived(sender.peer_id, data.id, now)[1]:
                self._acks.add(peer, data.id, self._plumtree.ack_for_offer(peer, tree_of(data.id), now), now)
        if verdict is Verdict.REJECT:
            for peer in {sender.peer_id: None, data.origin_peer_id: None}:
                self._scores.add(peer, "faults", now)
        self._refuse(sender, data, Refusal.REJECTED if verdict is Verdict.REJECT else Refusal.IGNORED, "", now)

    def _acknowledge(self, sender: PeerId, message: StoredMessage, now: float) -> None:
        """Tell the neighbour that brought it, and those that have offered it and are not asked any more."""
        message_id = message.data.id
        self._acks.add(sender, message_id, AckKind.NEW, now)
        announcers, offerers = self._graft.arrived(sender, message_id, now)
        for peer in announcers:
            message.held_by(peer)
        for peer in offerers:
            self._acks.add(peer, message_id, self._plumtree.ack_for_offer(peer, message.tree, now), now)

    def _unmasks(self, data: GossipData, now: float) -> bool:
        """Whether what we have by this id is an unproven other message. Then that is forgotten."""
        message = self._store.get(data.id)
        if message is None or is_signed(message.data) or have_same_content(message.data, data):
            return False
        if not is_proven(data, self._network):
            return False
        self._give_up(message, now)
        self._store.remove(message)
        self._seen.discard(data.id)
        return True

    def _on_duplicate(self, sender: RemotePeer, data: GossipData, now: float) -> bool:
        """Take what is known already. Returns whether it was not known that this neighbour has it."""
        self._duplicates += 1
        link = self._links.get(sender.peer_id)
        message = self._store.get(data.id)
        was_held = message is None or message.is_held_by(sender.peer_id)
        if link is not None:
            self._answer_duplicate(link, data.id, tree_of(data.origin_peer_id), now)
            self._say(self._anti_entropy.refused(sender.peer_id, data.id, now))
            if message is not None:
                self._compare(link, message, data, now)
        elif message is not None:
            message.held_by(sender.peer_id)
        return not was_held

    def _compare(self, link: SendWindow, message: StoredMessage, told: GossipData | GossipIHave, now: float) -> None:
        if peers := self._ways.compare(link.peer.peer_id, message, told, now):
            self._effects.append(SendFrame(peers, announcement([message], now), urgent=True))

    def _answer_duplicate(self, link: SendWindow, message_id: str, tree_name: str, now: float) -> None:
        """Answer a copy or an offer of what we have seen: two that cross on a link stand for each other's acks."""
        peer = link.peer.peer_id
        message = self._store.get(message_id)
        if message is not None and message.parent == peer:  # our ack was lost
            self._acks.add(peer, message_id, AckKind.NEW, now)
            return
        kind = self._plumtree.ack_for_duplicate(peer, tree_name, now)
        if message is None:
            self._acks.add(peer, message_id, kind, now)
        elif crossed := self._eager_push.crossed(link, message, now):
            self._carry_out(crossed, now)
            self._plumtree.learn(link, message, AckKind.PRUNE, now)
        else:
            self._acks.add(peer, message_id, kind, now)
            self._carry_out(self._eager_push.spare(link, message), now)

    def _refuse(self, sender: RemotePeer, data: GossipData, refusal: Refusal, reason: str, now: float) -> None:
        """Neither deliver it nor pass it on, but acknowledge it, so that it is not sent again; its origin hears why."""
        self._refused[refusal] += 1
        if refusal is Refusal.THROTTLED and self._origins.is_news(data.origin_peer_id, now):
            self._effects.append(Emit(OriginThrottled(data.origin_peer_id, self._config.origin_rate)))
        if sender.version > 0:
            if data.origin_peer_id == sender.peer_id:  # else it would take the ack for one of a peer that has it
                self._say([(sender.peer_id, GossipAck(refused=(data.id,), reason=reason))])
            else:
                self._acks.add(sender.peer_id, data.id, AckKind.HAD, now)
            self._await_no_more(sender.peer_id, data.id, now, lasts=refusal.lasts)

    def _on_refused(self, peer: PeerId, ids: Sequence[str], reason: str, now: float) -> None:
        """A neighbour will never take these, or, without a reason, does not take them now: it need not get them."""
        for message_id in ids:
            link, message = self._links.get(peer), self._store.get(message_id)
            if link is not None and message is not None:
                self._carry_out(self._eager_push.refused(link, message, now), now)
            if reason:
                self._effects.append(Notify(Subsystem.RECEIPTS, Refused(message_id, peer, reason)))

    def _blame(self, sender: RemotePeer, message_id: str, reason: str, now: float) -> None:
        if sender.version == 0:  # these pass on what they never look at
            return
        self._refused[Refusal.WRONG] += 1
        self._effects.append(DropLink(sender.peer_id, reason, blame=True))
        self._await_no_more(sender.peer_id, message_id, now)

    def _await_no_more(self, sender: PeerId, message_id: str, now: float, *, lasts: float = math.inf) -> None:
        """What was pulled or grafted from there was refused: it must not take the place of what can still come."""
        self._say(self._anti_entropy.refused(sender, message_id, now, lasts=lasts))
        self._say(grafts_of(self._graft.refused(sender, message_id, now)))

    def _answer_probe(self, sender: RemotePeer, data: GossipData, now: float) -> bool:
        """The original's way to ask whether somebody is there; it goes no further and reaches no application."""
        if sender.version == 0 and data.topic == PROBE:
            response = probe_response(data, self._me, self._rng.randbytes(16).hex(), int(self._wall(now) * 1000))
            self._say([(sender.peer_id, response)])
        return False

    def _on_ack(self, link: SendWindow, ack: GossipAck, now: float) -> bool:
        """See what copies and offers of ours were worth. Returns whether any of it was not known."""
        peer = link.peer.peer_id
        is_news = any(one is not None and not one.is_held_by(peer) for one in map(self._store.get, ack.refused))
        for kind, ids in ((AckKind.NEW, ack.new), (AckKind.HAD, ack.had), (AckKind.PRUNE, ack.prune)):
            for message_id in ids:
                message = self._store.get(message_id)
                if message is None:
                    continue
                decisions = self._eager_push.acked(link, message, new=kind is AckKind.NEW, now=now)
                self._carry_out(decisions, now)
                is_news |= bool(decisions)
                # What crossed an announcement was settled by that, but whether it prunes only the ack tells.
                if decisions or kind is AckKind.PRUNE:
                    self._plumtree.learn(link, message, kind, now)
        self._on_refused(peer, ack.refused, ack.reason, now)
        return is_news

    def _on_ihave(self, link: SendWindow, heard: GossipIHave, now: float) -> bool:
        """See what a neighbour has, and sends none of unasked. Returns whether that was known of none of it."""
        grafts: GraftDecisions = []
        is_news = False
        for message_id in dict.fromkeys(heard.ids):
            tree_name = tree_of(message_id)
            if not self._knows(message_id):
                parent = self._plumtree.parent_of(tree_name, now)
                is_news |= not self._graft.awaits(link.peer.peer_id, message_id)
                grafts += self._graft.announced(link, message_id, heard, parent, now)
            elif heard.offer:
                self._answer_duplicate(link, message_id, tree_name, now)
            message = self._store.get(message_id)
            if message is not None:
                is_news |= not message.is_held_by(link.peer.peer_id)
                if not heard.offer:  # it needs no copy
                    crossed = self._eager_push.crossed(link, message, now)
                    self._carry_out(crossed or self._eager_push.spare(link, message), now)
                self._compare(link, message, heard, now)
        self._say(grafts_of(grafts))
        return is_news

    def _lacked(self, link: SendWindow, ids: Sequence[str], now: float) -> list[str]:
        """Those of a neighbour's that we lack; the others need not be sent there."""
        lacked: list[str] = []
        for message_id in ids:
            message = self._store.get(message_id)
            if message is not None:
                self._carry_out(self._eager_push.spare(link, message), now)
            if not self._knows(message_id) or (message is not None and now >= message.expires):
                lacked.append(message_id)  # or it is not as old as we believe
        return lacked

    def _serve(self, link: SendWindow, ids: Sequence[str], now: float) -> bool:
        """Send what a neighbour asks for, by a graft or for anti-entropy. Returns whether any of it is.

        What it can't have, or again without paying, is left out without a word: that stalls its pulls (`anti_entropy`),
        and a graft until it asks the next neighbour.
        """
        peer = link.peer.peer_id
        strays = 0
        for message_id in ids:
            message = self._store.get(message_id)
            if (
                message is None
                or message.parent == peer
                or not self._limits.may_go_on(message, now)
                or (asked := message.asked_by(peer)) > self._config.serve_limit
                or (asked > 1 and not self._pays(peer, FRAME + message.size / BYTES, now))
            ):
                self._eager_push.stray()
                strays += 1
                continue
            if message_id not in link:
                self._add_children(message, (link,))
            self._carry_out(self._eager_push.serve(link, message, now), now)
        return strays < len(ids)

    # --- storing and sending on ---------------------------------------------------------------------------------------

    def _store_message(self, message: StoredMessage, now: float) -> None:
        """Remember a new message, ours or another's, for as long as it lives."""
        data = message.data
        self._seen.add(data.id, message.parent, now + self._limits.acceptable_for(data, now), now)
        self._timers.set((Due.EXPIRY, NOBODY, data.id), message.expires)
        self._anti_entropy.see_to_rounds(now)
        for dropped in self._store.add(message):
            self._give_up(dropped, now)

    def _spread(
        self, message: StoredMessage, now: float, *, was_pulled: bool = False, called: float | None = None
    ) -> None:
        """Send a new message on: copies by eager links, announcements by lazy ones."""
        links: list[SendWindow] = []
        originals: tuple[PeerId, ...] = ()
        if self._limits.may_go_on(message, now):
            links = [link for peer, link in self._links.items() if not message.is_held_by(peer)]
            if self._originals:
                originals = without_known(message, self._originals)
        if was_pulled and message.age(now) > SPREADS_IN * 1000:  # others hardly lack it
            targets = self._plumtree.all_lazy(message, links, now)
        else:
            extra = int(self._pressure.level(now))
            if extra and self._eager_push.is_overloaded(now):
                extra = 0
            targets = self._plumtree.targets(message, links, extra, now)
        self._add_children(message, (*targets.eager, *targets.offered), silent=len(originals), called=called)
        self._carry_out(self._eager_push.push(message, targets.eager, targets.offered, now), now)
        if targets.lazy:
            self._lazy_push.add(message, targets.lazy, now)
        message.went_out = bool(links)
        if originals:
            self._send_to_originals(message, originals)

    def _carry_out(self, decisions: Iterable[PushDecision], now: float) -> None:
        """Turn what eager push has decided into effects."""
        for decision in decisions:
            match decision:
                case Send(peers, message, offered):
                    if offered:
                        self._effects.append(SendFrame(peers, announcement([message], now, offer=True), urgent=True))
                    else:
                        self._effects.append(SendFrame(peers, Gossip(data=message.outgoing(now))))
                case Settled(message, peer, adopted, is_there):
                    if message.data.receipts:
                        settled = ChildSettled(message.data.id, peer, adopted, is_there)
                        self._effects.append(Notify(Subsystem.RECEIPTS, settled))
                case CloseLink(peer, reason):
                    self._effects.append(DropLink(peer, reason))

    def _add_children(
        self, message: StoredMessage, links: Sequence[SendWindow], *, silent: int = 0, called: float | None = None
    ) -> None:
        """Tell the receipts of neighbours that have to answer, unless the origin wants no receipts."""
        data = message.data
        if data.receipts:
            children, expires = tuple([link.peer.peer_id for link in links]), message.since + message.ttl
            origin, topic = data.origin_peer_id, data.topic
            added = ChildrenAdded(data.id, message.parent, children, expires, silent, origin, topic, called)
            self._effects.append(Notify(Subsystem.RECEIPTS, added))

    def _send_to_originals(self, message: StoredMessage, originals: tuple[PeerId, ...]) -> None:
        message.went_out = True
        self._sent_to_originals += len(originals)
        self._effects.append(SendFrame(originals, in_original_form(message)))

    def _say(self, said: Iterable[tuple[PeerId, Message]]) -> None:
        for peer, message in said:
            self._effects.append(SendFrame((peer,), message, urgent=True))

    def _on_expiry(self, message_id: str, now: float) -> None:
        message = self._store.get(message_id)
        if message is None:
            return
        self._give_up(message, now)
        if now < message.since + message.ttl - SPREADS_IN:  # it is not sure that its time is over
            self._store.retire(message)
            self._timers.set((Due.EXPIRY, NOBODY, message_id), message.since + message.ttl)
        else:
            self._store.remove(message)

    def _give_up(self, message: StoredMessage, now: float) -> None:
        """Send a message no more: its time is over, there is no room for it, or a proven one takes its place."""
        self._timers.cancel((Due.EXPIRY, NOBODY, message.data.id))
        self._carry_out(self._eager_push.give_up(message, now), now)
