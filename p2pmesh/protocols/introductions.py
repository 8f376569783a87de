"""Introductions: offers and answers on their way to and from other peers, each with its proof.

Remembers the offers that are out and those that came in, so that an answer is held against its offer, and an offer that
comes by two services counts once. All of it bounded. What has no good proof goes no further.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

from attrs import define, evolve, field, frozen

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import PeerFailed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effects, Emit, FeedSignal, Offered, RemotePeer, SendSignaling, Subsystem, Tell
from p2pmesh.protocols.handshake import sign_answer, sign_offer, verify_answer, verify_offer
from p2pmesh.wire.messages import MAX_SIGNALS_IN_BATCH, Signal
from p2pmesh.wire.signaling import ConnectionRejected

FAILURE_EVERY = 10.0
"""Seconds between two `PeerFailed` events for false signals in one peer's name: a forger must not flood the application."""
SAME_OFFER = 30.0
"""Seconds for which a repeated offer is taken for the same one, come by another service: twice what an attempt lasts."""
MAX_EARLY = MAX_SIGNALS_IN_BATCH
"""Candidates kept until the answer comes, for each offer."""

V = TypeVar("V")


class Recent(Generic[V]):
    """What was learned of peers: bounded, the least recently renewed goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[PeerId, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, peer: PeerId) -> V | None:
        return self._items.get(peer)

    def put(self, peer: PeerId, value: V) -> None:
        self._items[peer] = value
        self._items.move_to_end(peer)
        if len(self._items) > self._limit:
            self._items.popitem(last=False)

    def pop(self, peer: PeerId) -> V | None:
        return self._items.pop(peer, None)


@define
class OwnOffer:
    """An offer of ours, unsigned, to hold the answer against."""

    signal: Signal
    signed: Signal
    tried: list[str]
    """The services that it was given to."""
    answered_by: RemotePeer | None = None
    early: list[Signal] = field(factory=list)
    """Candidates that came before the answer."""


@frozen
class HeardOffer:
    """Somebody's offer to us."""

    signal: Signal
    sender: RemotePeer
    at: float
    live: bool = True
    """Whether an attempt may be under way because of it."""


class Introductions:
    """The offers and answers of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, counts: Counter[str]) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._max_peers = config.max_peers
        self._allow_unverified = config.links.allow_unverified
        self._counts = counts
        self.own: Recent[OwnOffer] = Recent[OwnOffer](config.signaling.remembered_offers)
        self.heard: Recent[HeardOffer] = Recent[HeardOffer](config.signaling.remembered_offers)
        self._failure_told = Recent[float](config.signaling.remembered_peers)

    # --- on their way out ---------------------------------------------------------------------------------------------

    def sign(self, peer: PeerId, signal: Signal, transport: str, links: int) -> Signal | None:
        """Our offer or answer with its proof; None for an answer to an offer that is no longer known."""
        match signal.type:
            case "offer":
                signed = sign_offer(self._identity, peer, signal, links=links)
                self.own.put(peer, OwnOffer(signal, signed, [transport]))
                return signed
            case "answer":
                heard = self.heard.get(peer)
                if heard is None or not heard.live:
                    self._counts["late_answers"] += 1
                    return None
                return sign_answer(self._identity, peer, signal, heard.signal)
            case _:
                return signal

    def rejection(self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...] = ()) -> ConnectionRejected:
        """What tells `peer` that there is no link for its offer."""
        return ConnectionRejected(
            to=peer,
            from_=self._me,
            reason=reason,
            max_peers=min(self._max_peers, 0xFFFF),
            alternative_peers=alternatives,
        )

    def close(self, peer: PeerId) -> None:
        """No attempt with this peer is under way any more."""
        self.own.pop(peer)
        heard = self.heard.get(peer)
        if heard is not None:
            self.heard.put(peer, evolve(heard, live=False))

    # --- on their way in ----------------------------------------------------------------------------------------------

    def hear(self, transport: str, sender: PeerId, signal: Signal, now: float, *, linked: bool) -> Effects:
        """A signal in the name of `sender` came; `linked` says whether we have a link to it."""
        match signal.type:
            case "offer":
                return self._on_offer(transport, sender, signal, now)
            case "answer":
                return self._on_answer(transport, sender, signal, linked=linked)
            case "candidate":
                return self._on_candidate(sender, signal)
            case _:
                return self._ignore("other_signals")

    def _on_offer(self, transport: str, sender: PeerId, offer: Signal, now: float) -> Effects:
        heard = self.heard.get(sender)
        if heard is not None and heard.signal.sdp == offer.sdp and now < heard.at + SAME_OFFER:
            return self._ignore("repeated_offers")
        try:
            remote = verify_offer(offer, sender, self._me)
        except RemoteProtocolError as error:
            return self._on_false_offer(sender, str(error), now)
        if not self._welcome(remote):
            self._counts["unverified_peers"] += 1
            return [SendSignaling(transport, self.rejection(sender, "unverified_peer"))]
        self.heard.put(sender, HeardOffer(offer, remote, now))
        return [Tell(Subsystem.TOPOLOGY, Offered(remote, offer))]

    def _on_answer(self, transport: str, sender: PeerId, answer: Signal, *, linked: bool) -> Effects:
        own = self.own.get(sender)
        if own is None:
            self._counts["unasked_answers"] += 1
            # It holds a slot for an attempt that we have given up.
            return [] if linked else [SendSignaling(transport, self.rejection(sender, "no_attempt"))]
        if own.answered_by is not None:
            return self._ignore("repeated_answers")
        try:
            remote = verify_answer(answer, own.signal, sender, self._me)
        except RemoteProtocolError:
            return self._ignore("false_answers")  # whoever can forge one must not be able to end our attempt by it
        if not self._welcome(remote):
            return self._ignore("unverified_answers")  # for the same reason: a proof is easily left out
        own.answered_by = remote
        early, own.early = own.early, []
        return [FeedSignal(remote, answer), *(FeedSignal(remote, candidate) for candidate in early)]

    def _on_candidate(self, sender: PeerId, candidate: Signal) -> Effects:
        """Candidates prove nothing, and need not: they only add addresses to an attempt that is bound to a fingerprint."""
        own, heard = self.own.get(sender), self.heard.get(sender)
        if own is not None and own.answered_by is not None:
            return [FeedSignal(own.answered_by, candidate)]
        if heard is not None and heard.live:
            return [FeedSignal(heard.sender, candidate)]
        if own is not None and len(own.early) < MAX_EARLY:
            own.early.append(candidate)
            return []
        return self._ignore("stray_candidates")

    def _on_false_offer(self, sender: PeerId, reason: str, now: float) -> Effects:
        self._counts["false_offers"] += 1
        told = self._failure_told.get(sender)
        if told is not None and now < told + FAILURE_EVERY:
            return []
        self._failure_told.put(sender, now)
        return [Emit(PeerFailed(sender, reason))]

    def _welcome(self, remote: RemotePeer) -> bool:
        return remote.verified or self._allow_unverified

    def _ignore(self, why: str) -> Effects:
        self._counts[f"ignored_{why}"] += 1
        return []
