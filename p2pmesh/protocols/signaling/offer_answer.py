"""Introductions: offers and answers on their way to and from other peers, each with its proof.

Remembers the offers that are out and those that came in, so that an answer is held against its offer, a rejection too, and
an offer that comes by two ways counts once. All of it bounded. What has no good proof goes no further.
"""

from __future__ import annotations

from collections import Counter

from attrs import define, evolve, field

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import PeerFailed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effects, Emit, FeedSignal, Notify
from p2pmesh.protocols.inputs import RemotePeer, Subsystem
from p2pmesh.protocols.notices import CANCELLED, FULL, NO_ATTEMPT, Offered, Rejected
from p2pmesh.protocols.signaling.delivery import ByMesh, ByService, Came, Kind, OutgoingSignal, SignalDelivery
from p2pmesh.protocols.signaling.handshake import mark_of, sign_answer, sign_offer, verify_answer, verify_offer
from p2pmesh.protocols.util.lru_table import LruTable
from p2pmesh.protocols.util.rate_limiter import RateLimiter
from p2pmesh.wire.fields import MAX_SIGNALS_IN_BATCH
from p2pmesh.wire.messages import LONG, LinkRejected, RelayBatch, RelaySignal, Signal
from p2pmesh.wire.signaling import ConnectionRejected, PeerSignal, PeerSignals

FAILURE_EVERY = 10.0
"""Seconds between two `PeerFailed` events for false signals in one peer's name: a forger must not flood the application."""
SAME_OFFER = 30.0
"""Seconds for which a repeated offer is taken for the same one, come by another way: twice what an attempt lasts."""
MAX_EARLY = MAX_SIGNALS_IN_BATCH
"""Candidates kept until the answer comes, for each offer."""
MAX_CANDIDATES = 64
"""Taken for each attempt: a stack has a handful, and each makes ours send packets to an address of somebody's choice."""
MAX_ALTERNATIVES = 8
"""Taken from one rejection: ours name 3, and whoever names more has made them up."""


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


class OfferAnswer:
    """The offers and answers of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, ways: SignalDelivery, counts: Counter[str]) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._max_peers = config.max_peers
        self._allow_unverified = config.links.allow_unverified
        self._ways = ways
        self._counts = counts
        signaling = config.signaling
        self._own = LruTable[OwnOffer](signaling.remembered_offers)
        self._heard = LruTable[HeardOffer](signaling.remembered_offers)
        self._failure_told = LruTable[float](signaling.remembered_peers)
        # What comes by a service may bear anybody's name: it must not use up what its alleged sender may do by itself.
        self._proven, self._alleged = (
            RateLimiter(signaling.remembered_peers, signaling.offers_per_second, signaling.offer_burst)
            for _ in range(2)
        )

    def snapshot(self) -> dict[str, int]:
        return {"own_offers": len(self._own), "heard_offers": len(self._heard)}

    def answering(self, peer: PeerId) -> bool:
        """Whether an attempt may be under way because of an offer of this peer."""
        heard = self._heard.get(peer)
        return heard is not None and heard.live

    # --- on their way out ---------------------------------------------------------------------------------------------

    def offer(self, peer: PeerId, signal: Signal, links: int, purpose: str | None = None) -> OutgoingSignal:
        """Our offer with its proof."""
        signed = sign_offer(self._identity, peer, signal, links=links, purpose=purpose)
        self._own.put(peer, OwnOffer(signal))
        heard = self._heard.get(peer)
        came = heard.came if heard is not None and heard.live and isinstance(heard.came, ByMesh) else None
        letter = self._letter(peer, signed, Kind.OFFER).along(came)
        # For a long link another peer will do as well, if the mesh does not lead to this one.
        letter.mesh_only = purpose == LONG and self._ways.into_mesh and not self._ways.is_original(peer)
        return letter

    def offer_again(self, lost: OutgoingSignal) -> OutgoingSignal | None:
        """Our offer, which found no way, by the way that theirs has come since: of two that cross, the lower id's is answered.

        None if what became of ours does not matter, or that way was tried.
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
            self._counts["late_answers"] += 1
            return None
        self._own.pop(peer)  # its offer has taken the place of ours
        heard.answer = mark_of(signal)
        signed = sign_answer(self._identity, peer, signal, heard.signal)
        return self._letter(peer, signed, Kind.ANSWER).along(heard.came)

    def candidates(self, peer: PeerId, signals: tuple[Signal, ...], wall_ms: int) -> OutgoingSignal | None:
        """Candidates of ours, the way that the description went; None if no attempt is under way any more."""
        own, heard = self._own.get(peer), self._heard.get(peer)
        letter = OutgoingSignal(
            peer,
            Kind.CANDIDATES,
            routed=RelayBatch(from_=self._me, signals=signals),
            served=PeerSignals(to=peer, from_=self._me, signals=signals, batch_timestamp=wall_ms),
        )
        if own is not None:
            return letter.along(own.came) if own.came is not None else letter.after(self._ways.out(peer))
        return letter.along(heard.came) if heard is not None and heard.live else None

    def rejection(self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...] = ()) -> OutgoingSignal:
        """What tells `peer` that there is no link for its offer, or that we take back ours."""
        own, heard = self._own.get(peer), self._heard.get(peer)
        if reason == CANCELLED:
            out = self._ways.out(peer)
            letter = self._rejection(peer, reason, alternatives, None if own is None else mark_of(own.signal))
            letter.mesh_only = out is not None and out.call is not None  # where that does not come, nor need this
            return letter.after(out)
        about = None if heard is None or heard.sender.version == 0 else mark_of(heard.signal)
        return self._rejection(peer, reason, alternatives, about).along(None if heard is None else heard.came)

    def rejections(self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...]) -> list[OutgoingSignal]:
        """As `rejection`; and if we take ours back that was to be answered instead of theirs, theirs is turned down, too."""
        found, heard = [self.rejection(peer, reason, alternatives)], self._heard.get(peer)
        if reason == CANCELLED and heard is not None and heard.live and heard.sender.version > 0:
            found.append(self._rejection(peer, FULL, (), mark_of(heard.signal)).along(heard.came))
        return found

    def tell_silent(self, peer: PeerId) -> Effects:
        """Nothing came of an attempt: take back an offer that went by a service and was never answered.

        An original that once offered us a link, and never heard of us, takes no offer from us until it is told something.
        """
        own, out = self._own.get(peer), self._ways.out(peer)
        if not self._allow_unverified or own is None or own.answered_by is not None or out is None or not out.services:
            return []
        return self._ways.send(self.rejection(peer, CANCELLED))

    def close(self, peer: PeerId) -> Effects:
        """No attempt with this peer is under way any more."""
        self._own.pop(peer)
        heard = self._heard.get(peer)
        if heard is not None:
            heard.live = False
        return self._ways.take_back(peer)

    def _letter(self, peer: PeerId, signal: Signal, kind: Kind) -> OutgoingSignal:
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

    def hear(self, came: Came, sender: PeerId, signal: Signal, now: float, *, linked: bool) -> Effects:
        """A signal in the name of `sender` came; `linked` says whether we have a link to it."""
        match signal.type:
            case "offer":
                return self._on_offer(came, sender, signal, now)
            case "answer":
                return self._on_answer(came, sender, signal, linked=linked)
            case "candidate":
                return self._on_candidate(sender, signal)
            case _:
                return self._ignore("other_signals")

    def hear_rejection(self, came: Came, rejected: Rejected, about: str | None) -> Effects:
        """A rejection came, in the name of `rejected.peer`."""
        sender = rejected.peer
        if not self._concerns_us(came, sender, about):
            return self._ignore("stray_rejections")
        others = tuple(peer for peer in rejected.alternatives if peer not in {self._me, sender})[:MAX_ALTERNATIVES]
        told = Notify(Subsystem.OVERLAY, evolve(rejected, alternatives=others))
        own, heard = self._own.get(sender), self._heard.get(sender)
        if heard is not None and own is not None and about not in {None, mark_of(own.signal)}:
            heard.live = False  # it takes its own offer back, and may be about to answer ours
            return [told]
        return [*self.close(sender), told]

    def _concerns_us(self, came: Came, sender: PeerId, about: str | None) -> bool:
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
                letter = self._ways.out(sender)
                return letter is None or transport in letter.services or transport == letter.first

    def _on_offer(self, came: Came, sender: PeerId, offer: Signal, now: float) -> Effects:
        heard = self._heard.get(sender)
        if heard is not None and heard.signal.sdp == offer.sdp and now < heard.at + SAME_OFFER:
            return self._ignore("repeated_offers")
        allowances = self._proven if isinstance(came, ByMesh) else self._alleged
        if not allowances.take(sender, now):
            return self._on_excess_offer(came, sender, offer)
        try:
            remote = verify_offer(offer, sender, self._me)
        except RemoteProtocolError as error:
            return self._on_false_offer(sender, str(error), now)
        if not self._welcome(remote):
            self._counts["unverified_peers"] += 1
            return self._ways.send(self._rejection(sender, "unverified_peer", (), None).along(came))
        self._ways.heard(remote)
        self._heard.put(sender, HeardOffer(offer, remote, came, now))
        return [Notify(Subsystem.OVERLAY, Offered(remote, offer))]

    def _on_excess_offer(self, came: Came, sender: PeerId, offer: Signal) -> Effects:
        """An original that hears nothing waits for ever and is deaf to us; one that hears of other peers dials them at once."""
        ignored = self._ignore("excess_offers")
        if offer.p2pmesh is not None or not self._allow_unverified:
            return ignored
        return self._ways.send(self._rejection(sender, FULL, (), None).along(came))

    def _on_answer(self, came: Came, sender: PeerId, answer: Signal, *, linked: bool) -> Effects:
        own = self._own.get(sender)
        if own is None:
            self._counts["unasked_answers"] += 1
            # It holds a slot for an attempt that we have given up.
            about = None if answer.p2pmesh is None else mark_of(answer)
            return [] if linked else self._ways.send(self._rejection(sender, NO_ATTEMPT, (), about).along(came))
        if own.answered_by is not None:
            return self._ignore("repeated_answers")
        try:
            remote = verify_answer(answer, own.signal, sender, self._me)
        except RemoteProtocolError:
            return self._ignore("false_answers")  # whoever can forge one must not be able to end our attempt by it
        if not self._welcome(remote):
            return self._ignore("unverified_answers")  # for the same reason: a proof is easily left out
        self._ways.heard(remote)
        own.answered_by, own.came = remote, came
        early, own.early = own.early, []
        fed: Effects = [FeedSignal(remote, signal) for signal in (answer, *early)]
        return [*self._ways.answered(sender), *fed]

    def _on_candidate(self, sender: PeerId, candidate: Signal) -> Effects:
        """Candidates prove nothing, and need not: they only add addresses to an attempt that is bound to a fingerprint."""
        own, heard = self._own.get(sender), self._heard.get(sender)
        attempt: OwnOffer | HeardOffer | None = own
        if (own is None or own.answered_by is None) and heard is not None and heard.live:
            attempt = heard
        if attempt is None:
            return self._ignore("stray_candidates")
        early = isinstance(attempt, OwnOffer) and attempt.answered_by is None
        if attempt.candidates >= (MAX_EARLY if early else MAX_CANDIDATES):
            return self._ignore("excess_candidates")
        attempt.candidates += 1
        match attempt:
            case HeardOffer(sender=remote) | OwnOffer(answered_by=RemotePeer() as remote):
                return [FeedSignal(remote, candidate)]
            case OwnOffer():
                attempt.early.append(candidate)
                return []

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
