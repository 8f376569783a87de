"""Offers and answers on their way to and from other peers, each with its proof: what is said, and what is believed.

Remembers the offers that are out and those that came in, so that an answer is held against its offer, a rejection too,
and an offer that comes by two ways counts once. What has no good proof goes no further. After JSEP (RFC 8829): offer,
answer, candidates; what is signed is in `handshake`.

In: descriptions of our own link layer, signals that came. Out: signals to send (`OutgoingSignal`), checked offers
(`Offered`), checked answers and candidates (`Feed`), rejections that concern us (`TurnedDown`), forgeries to tell of
(`PeerFailed`). State: two tables of `SignalingConfig.remembered_offers` offers, and buckets of `remembered_peers`
senders.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from attrs import asdict, define, field
from msgspec.structs import replace

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import PeerFailed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.notices import CANCELLED, FULL, NO_ATTEMPT, Offered, Rejected
from p2pmesh.protocols.signaling.delivery import ByMesh, ByService, Came, Kind, OutgoingSignal
from p2pmesh.protocols.signaling.handshake import mark_of, sign_answer, sign_offer, verify_answer, verify_offer
from p2pmesh.protocols.util.limits import LruTable, RateLimiter
from p2pmesh.wire.fields import MAX_SIGNALS_IN_BATCH
from p2pmesh.wire.messages import LinkRejected, RelayBatch, RelaySignal, Signal
from p2pmesh.wire.signaling import ConnectionRejected, PeerSignal, PeerSignals

FAILURE_EVERY = 10.0
"""Seconds between two `PeerFailed` for forgeries in one peer's name: they must not flood the application."""
SAME_OFFER = 30.0
"""Seconds for which a repeated offer is taken for the same one, come by another way: twice what an attempt lasts."""
MAX_EARLY = MAX_SIGNALS_IN_BATCH
"""Candidates kept until the answer comes, for each offer."""
MAX_CANDIDATES = 64
"""Taken for each attempt: a stack has a handful, and each makes ours send to an address of somebody's choice."""
MAX_ALTERNATIVES = 8
"""Taken from one rejection: ours name 3, and a peer that names more has made them up."""


@define
class OwnOffer:
    """An offer of ours, unsigned, to hold the answer against."""

    signal: Signal
    answered_by: RemotePeer | None = None
    came: Came | None = None
    """Which way the answer came."""
    early: list[Signal] = field(factory=list)
    """Candidates that came before the answer."""
    candidates: int = 0


@define
class HeardOffer:
    """Somebody's offer to us."""

    signal: Signal
    sender: RemotePeer
    came: Came
    at: float
    live: bool = True
    """Whether an attempt may be under way because of it."""
    candidates: int = 0
    answer: str | None = None
    """The mark of our answer to it."""


class Feed(NamedTuple):
    """Signals for the attempt that is under way with this peer; the first of them may be the answer to our offer."""

    peer: RemotePeer
    signals: tuple[Signal, ...]
    is_answer: bool = False


class TurnedDown(NamedTuple):
    """A rejection that concerns what is under way, and whether that ends with it."""

    rejected: Rejected
    ends: bool


Verdict: TypeAlias = Offered | Feed | OutgoingSignal | PeerFailed | None
"""What a signal that came leads to: an offer for the overlay, signals for the link layer, a signal back, an event."""


@define
class OfferAnswerCounts:
    """Signals that came and went no further, and why."""

    repeated_offers: int = 0
    excess_offers: int = 0
    false_offers: int = 0
    unverified_peers: int = 0
    unasked_answers: int = 0
    repeated_answers: int = 0
    false_answers: int = 0
    unverified_answers: int = 0
    late_answers: int = 0
    """Of ours, to offers that are no longer known."""
    stray_candidates: int = 0
    excess_candidates: int = 0
    stray_rejections: int = 0
    other_signals: int = 0


class OfferAnswer:
    """The offers and answers of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._max_peers = config.max_peers
        self._network = config.network
        self._allow_unverified = config.links.allow_unverified
        signaling = config.signaling
        self._own = LruTable[OwnOffer](signaling.remembered_offers)
        self._heard = LruTable[HeardOffer](signaling.remembered_offers)
        self._failure_told = LruTable[float](signaling.remembered_peers)
        # What comes by a service may bear anybody's name: it must not use up what its alleged sender may do by itself.
        self._proven, self._alleged = (
            RateLimiter(signaling.remembered_peers, signaling.offers_per_second, signaling.offer_burst)
            for _ in range(2)
        )

        self.counts: OfferAnswerCounts = OfferAnswerCounts()

    def snapshot(self) -> dict[str, int]:
        return {"own_offers": len(self._own), "heard_offers": len(self._heard), **asdict(self.counts)}

    def answering(self, peer: PeerId) -> bool:
        """Whether an attempt may be under way because of an offer of this peer."""
        heard = self._heard.get(peer)
        return heard is not None and heard.live

    # --- on their way out ---------------------------------------------------------------------------------------------

    def offer(self, peer: PeerId, signal: Signal, links: int, purpose: str | None) -> OutgoingSignal:
        """Our offer with its proof. If their own has come through the mesh, it goes back the same way."""
        signed = sign_offer(self._identity, peer, signal, links=links, purpose=purpose, network=self._network)
        self._own.put(peer, OwnOffer(signal))
        heard = self._heard.get(peer)
        came = heard.came if heard is not None and heard.live and isinstance(heard.came, ByMesh) else None
        return self._outgoing(peer, signed, Kind.OFFER).along(came)

    def offer_again(self, lost: OutgoingSignal) -> OutgoingSignal | None:
        """Our offer, which found no way, by the way that theirs has come since.

        Of two that cross, the lower id's is answered. None if ours is not, or that way was tried.
        """
        own, heard = self._own.get(lost.to), self._heard.get(lost.to)
        if own is None or heard is None or heard.sender.version == 0 or lost.to < self._me:
            return None
        if lost.way is not None or lost.first is not None:
            return None
        return OutgoingSignal(lost.to, lost.kind, lost.routed, lost.served).along(heard.came)

    def answer(self, peer: PeerId, signal: Signal) -> OutgoingSignal | None:
        """Our answer with its proof; None if its offer is no longer known."""
        heard = self._heard.get(peer)
        if heard is None or not heard.live:
            self.counts.late_answers += 1
            return None
        self._own.pop(peer)  # its offer has taken the place of ours
        heard.answer = mark_of(signal)
        signed = sign_answer(self._identity, peer, signal, heard.signal, network=self._network)
        return self._outgoing(peer, signed, Kind.ANSWER).along(heard.came)

    def candidates(
        self, peer: PeerId, signals: tuple[Signal, ...], wall_ms: int, under_way: OutgoingSignal | None
    ) -> OutgoingSignal | None:
        """Candidates of ours, the way that the description went; None if no attempt is under way any more."""
        own, heard = self._own.get(peer), self._heard.get(peer)
        candidates = OutgoingSignal(
            peer,
            Kind.CANDIDATES,
            routed=RelayBatch(from_=self._me, signals=signals),
            served=PeerSignals(to=peer, from_=self._me, signals=signals, batch_timestamp=wall_ms),
        )
        if own is not None:
            return candidates.along(own.came) if own.came is not None else candidates.after(under_way)
        return candidates.along(heard.came) if heard is not None and heard.live else None

    def rejections(
        self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...], under_way: OutgoingSignal | None
    ) -> list[OutgoingSignal]:
        """What tells `peer` that there is no link for its offer, or that we take back ours.

        If we take ours back, and it was to be answered instead of theirs, theirs is turned down, too.
        """
        heard = self._heard.get(peer)
        if reason != CANCELLED:
            about = None if heard is None or heard.sender.version == 0 else mark_of(heard.signal)
            return [self._rejection(peer, reason, alternatives, about).along(None if heard is None else heard.came)]
        rejections = [self._cancellation(peer, alternatives, under_way)]
        if heard is not None and heard.live and heard.sender.version > 0:
            rejections.append(self._rejection(peer, FULL, (), mark_of(heard.signal)).along(heard.came))
        return rejections

    def unanswered(self, peer: PeerId, under_way: OutgoingSignal | None) -> OutgoingSignal | None:
        """Nothing came of an attempt: take back an offer that went by a service and was never answered.

        An original that once offered us a link, and never heard of us, takes no offer from us until it is told
        something.
        """
        own = self._own.get(peer)
        if not self._allow_unverified or own is None or own.answered_by is not None:
            return None
        return self._cancellation(peer, (), under_way) if under_way is not None and under_way.services else None

    def close(self, peer: PeerId) -> None:
        """No attempt with this peer is under way any more."""
        self._own.pop(peer)
        heard = self._heard.get(peer)
        if heard is not None:
            heard.live = False

    def _cancellation(
        self, peer: PeerId, alternatives: tuple[PeerId, ...], under_way: OutgoingSignal | None
    ) -> OutgoingSignal:
        own = self._own.get(peer)
        rejection = self._rejection(peer, CANCELLED, alternatives, None if own is None else mark_of(own.signal))
        # Where our offer does not come through the mesh, nor need this.
        rejection.mesh_only = under_way is not None and under_way.call is not None
        return rejection.after(under_way)

    def _outgoing(self, peer: PeerId, signal: Signal, kind: Kind) -> OutgoingSignal:
        return OutgoingSignal(
            peer,
            kind,
            routed=RelaySignal(from_=self._me, to=peer, signal=signal),
            served=PeerSignal(to=peer, from_=self._me, signal=signal),
        )

    def _rejection(
        self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...], about: str | None
    ) -> OutgoingSignal:
        return OutgoingSignal(
            peer,
            Kind.REJECTION,
            routed=LinkRejected(from_=self._me, reason=reason, alternative_peers=alternatives, about=about),
            served=ConnectionRejected(
                to=peer,
                from_=self._me,
                reason=reason,
                max_peers=min(self._max_peers, 0xFFFF),
                alternative_peers=alternatives,
                about=about,
            ),
        )

    # --- on their way in ----------------------------------------------------------------------------------------------

    def hear(self, came: Came, sender: PeerId, signal: Signal, now: float, *, linked: bool) -> Verdict:
        """A signal in the name of `sender` came; `linked` says whether we have a link to it."""
        match signal.type:
            case "offer":
                return self._on_offer(came, sender, signal, now)
            case "answer":
                return self._on_answer(came, sender, signal, linked=linked)
            case "candidate":
                return self._on_candidate(sender, signal)
            case _:
                self.counts.other_signals += 1
                return None

    def hear_rejection(
        self, came: Came, rejected: Rejected, about: str | None, under_way: OutgoingSignal | None
    ) -> TurnedDown | None:
        """A rejection came, in the name of `rejected.peer`. None if it is not for what is under way."""
        sender = rejected.peer
        if not self._concerns_us(came, sender, about, under_way):
            self.counts.stray_rejections += 1
            return None
        others = tuple(peer for peer in rejected.alternatives if peer not in {self._me, sender})[:MAX_ALTERNATIVES]
        rejected = replace(rejected, alternatives=others)
        own, heard = self._own.get(sender), self._heard.get(sender)
        if heard is not None and own is not None and about not in {None, mark_of(own.signal)}:
            heard.live = False  # it takes its own offer back, and may be about to answer ours
            return TurnedDown(rejected, ends=False)
        return TurnedDown(rejected, ends=True)

    def _concerns_us(self, came: Came, sender: PeerId, about: str | None, under_way: OutgoingSignal | None) -> bool:
        """Whether a rejection is for what is under way: it may come late, or be a service's lie."""
        own, heard = self._own.get(sender), self._heard.get(sender)
        live = [] if own is None else [own.signal]
        if heard is not None and heard.live:
            live.append(heard.signal)
        if about is not None:
            answered = heard is not None and heard.live and heard.answer == about
            return answered or any(mark_of(signal) == about for signal in live)
        match came:
            case ByMesh():
                return bool(live)
            case ByService(transport):
                # One that never saw an offer has no say in it. The original's peers reject also what was not offered.
                return under_way is None or transport in under_way.services or transport == under_way.first

    def _on_offer(self, came: Came, sender: PeerId, offer: Signal, now: float) -> Verdict:
        heard = self._heard.get(sender)
        if heard is not None and heard.signal.sdp == offer.sdp and now < heard.at + SAME_OFFER:
            self.counts.repeated_offers += 1
            return None
        allowances = self._proven if isinstance(came, ByMesh) else self._alleged
        if not allowances.take(sender, now):
            return self._on_excess_offer(came, sender, offer)
        try:
            remote = verify_offer(offer, sender, self._me, network=self._network)
        except RemoteProtocolError as error:
            return self._on_false_offer(sender, str(error), now)
        if not self._welcome(remote):
            self.counts.unverified_peers += 1
            return self._rejection(sender, "unverified_peer", (), None).along(came)
        self._heard.put(sender, HeardOffer(offer, remote, came, now))
        return Offered(remote, offer)

    def _on_excess_offer(self, came: Came, sender: PeerId, offer: Signal) -> Verdict:
        """Drop an offer, but tell an original: if it hears nothing, it waits for ever and is deaf to us."""
        self.counts.excess_offers += 1
        if offer.p2pmesh is not None or not self._allow_unverified:
            return None
        return self._rejection(sender, FULL, (), None).along(came)  # names no other peers: it would dial them at once

    def _on_answer(self, came: Came, sender: PeerId, answer: Signal, *, linked: bool) -> Verdict:
        own = self._own.get(sender)
        if own is None:
            self.counts.unasked_answers += 1
            # It holds a slot for an attempt that we have given up.
            about = None if answer.p2pmesh is None else mark_of(answer)
            return None if linked else self._rejection(sender, NO_ATTEMPT, (), about).along(came)
        if own.answered_by is not None:
            self.counts.repeated_answers += 1
            return None
        try:
            remote = verify_answer(answer, own.signal, sender, self._me, network=self._network)
        except RemoteProtocolError:
            self.counts.false_answers += 1  # and no more: a forger must not be able to end our attempt by it
            return None
        if not self._welcome(remote):
            self.counts.unverified_answers += 1  # for the same reason: a proof is easily left out
            return None
        own.answered_by, own.came = remote, came
        early, own.early = own.early, []
        return Feed(remote, (answer, *early), is_answer=True)

    def _on_candidate(self, sender: PeerId, candidate: Signal) -> Feed | None:
        """Take a candidate. It need prove nothing: it adds an address to an attempt that is bound to a fingerprint."""
        own, heard = self._own.get(sender), self._heard.get(sender)
        attempt: OwnOffer | HeardOffer | None = own
        if (own is None or own.answered_by is None) and heard is not None and heard.live:
            attempt = heard
        if attempt is None:
            self.counts.stray_candidates += 1
            return None
        early = isinstance(attempt, OwnOffer) and attempt.answered_by is None
        if attempt.candidates >= (MAX_EARLY if early else MAX_CANDIDATES):
            self.counts.excess_candidates += 1
            return None
        attempt.candidates += 1
        match attempt:
            case HeardOffer(sender=remote) | OwnOffer(answered_by=RemotePeer() as remote):
                return Feed(remote, (candidate,))
            case OwnOffer():
                attempt.early.append(candidate)
                return None

    def _on_false_offer(self, sender: PeerId, reason: str, now: float) -> PeerFailed | None:
        self.counts.false_offers += 1
        told = self._failure_told.get(sender)
        if told is not None and now < told + FAILURE_EVERY:
            return None
        self._failure_told.put(sender, now)
        return PeerFailed(sender, reason)

    def _welcome(self, remote: RemotePeer) -> bool:
        return remote.verified or self._allow_unverified
