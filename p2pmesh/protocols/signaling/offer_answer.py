"""What is believed of offers, answers, candidates and rejections that come, and what goes back to the offers.

Remembers the offers that came in, with what was said to each, so that one that comes by two ways counts once, and is
answered the way it came last. What has no good proof goes no further. After JSEP (RFC 8829): offer, answer, candidates;
what is signed is in `handshake`.

In: signals that came, our own offers to hold them against, our answers. Out: checked offers (`Offered`), checked
answers and candidates (`Feed`), what goes back (`Response`), rejections that concern us (`TurnedDown`), forgeries to
tell of (`PeerFailed`). State: `SignalingConfig.remembered_offers` offers, and buckets of `remembered_peers` senders.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from attrs import asdict, define
from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.events import PeerFailed
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.notices import CANCELLED, FULL, NO_ATTEMPT, Offered, Rejected
from p2pmesh.protocols.signaling.delivery import ByMesh, ByService, Came, OwnOffer
from p2pmesh.protocols.signaling.handshake import mark_of, sign_answer, verify_answer, verify_offer
from p2pmesh.protocols.util.limits import FRAME, VERIFY, LruTable, Payment, RateLimiter, WorkBudget
from p2pmesh.wire.fields import MAX_SIGNALS_IN_BATCH
from p2pmesh.wire.messages import Answer, Description, IceCandidate, LinkRejected, RejectReason, Signal
from p2pmesh.wire.sdp import read_candidate, read_sdp
from p2pmesh.wire.signaling import ConnectionRejected, PeerSignal

FAILURE_EVERY = 10.0
"""Seconds between two `PeerFailed` for forgeries in one peer's name: they must not flood the application."""
SAME_OFFER = 30.0
"""Seconds for which a repeated offer is taken for the same one, come by another way: twice what an attempt lasts."""
MAX_EARLY = MAX_SIGNALS_IN_BATCH
"""Candidates kept until the answer comes, for each offer."""
MAX_TRICKLED = 64
"""Taken for each attempt: a stack has a handful, and each makes ours send to an address of somebody's choice."""
SERVICES = 4
"""Signaling services whose work is counted apart: few meshes use more."""
DECIDED = 150.0
"""Units that an offer or an answer costs to be decided, and answered, once it is known to be its sender's."""
PARSED = 20.0
"""Characters of a description that cost one unit to be read."""
MAX_ALTERNATIVES = 8
"""Taken from one rejection: ours name 3, and a peer that names more has made them up."""


@define
class HeardOffer:
    """Somebody's offer to us."""

    description: Description
    mark: bytes
    sender: RemotePeer
    came: Came
    at: float
    response: Answer | LinkRejected | None = None
    """What we said to it."""
    live: bool = True
    """Whether an attempt may be under way because of it."""
    candidates: int = 0


class Feed(NamedTuple):
    """A candidate for the attempt that is under way with this peer."""

    peer: RemotePeer
    candidate: IceCandidate


class AnswerHeard(NamedTuple):
    """The answer to our offer, checked."""

    offer: OwnOffer
    peer: RemotePeer
    answer: Description


class Response(NamedTuple):
    """Say this to a peer, the way that its offer came; by any service if that is not known."""

    peer: PeerId
    came: Came | None
    message: Answer | LinkRejected
    changed: bool = False
    """Whether something else was said to the offer before."""


class TurnedDown(NamedTuple):
    """A rejection that concerns what is under way, and whether that ends with it."""

    rejected: Rejected
    ends: bool


Decision: TypeAlias = Offered | AnswerHeard | Feed | Response | PeerFailed | None
"""What a signal that came leads to: notices for other cores, signals for the link layer, a signal back, an event."""


@define
class OfferAnswerCounts:
    """What was said to offers; signals that came and went no further, and why."""

    answers: int = 0
    rejections: int = 0
    repeated_offers: int = 0
    excess_offers: int = 0
    unpaid: int = 0
    """Signals of all kinds, above the budget of the service or neighbour that brought them."""
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
    """The offers that one peer has heard, and what it says to them."""

    def __init__(self, identity: Identity, config: MeshConfig) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._max_peers = config.max_peers
        self._network = config.network
        self._allow_unverified = config.links.allow_unverified
        signaling = config.signaling
        self._heard = LruTable[HeardOffer](signaling.remembered_offers)
        self._most_of_one = max(1, signaling.remembered_offers // 2)
        self._budget = WorkBudget(SERVICES + 2 * config.max_peers, config.work.signaling)
        self._failures = RateLimiter(signaling.remembered_peers, 1 / FAILURE_EVERY, 1)
        # What comes by a service may bear anybody's name: it must not use up what its alleged sender may do by itself.
        self._proven, self._alleged = (
            RateLimiter(signaling.remembered_peers, signaling.offers_per_second, signaling.offer_burst)
            for _ in range(2)
        )

        self.counts: OfferAnswerCounts = OfferAnswerCounts()

    def snapshot(self) -> dict[str, Any]:
        return {"heard_offers": len(self._heard), **asdict(self.counts), "budget": self._budget.snapshot()}

    def live(self, peer: PeerId) -> HeardOffer | None:
        """The offer of this peer because of which an attempt may be under way."""
        heard = self._heard.get(peer)
        return heard if heard is not None and heard.live else None

    def close(self, peer: PeerId) -> None:
        """No attempt with this peer is under way any more."""
        heard = self._heard.get(peer)
        if heard is not None:
            heard.live = False

    # --- what we say --------------------------------------------------------------------------------------------------

    def answer(self, peer: PeerId, description: Description) -> Response | None:
        """Our answer; None if its offer is no longer known."""
        heard = self.live(peer)
        if heard is None:
            self.counts.late_answers += 1
            return None
        self.counts.answers += 1
        heard.response = Answer(description=description)
        return Response(peer, heard.came, heard.response)

    def reject(self, peer: PeerId, reason: RejectReason, alternatives: tuple[PeerId, ...]) -> Response | None:
        """What tells `peer` that there is no link for its offer.

        If we take back ours, and that was to be answered instead of theirs, theirs is turned down, too.
        """
        heard = self._heard.get(peer)
        if reason == CANCELLED:
            if heard is None or not heard.live or heard.sender.version == 0:
                return None
            reason, alternatives = FULL, ()
        self.counts.rejections += 1
        if heard is None:
            return Response(peer, None, LinkRejected(reason=reason, alternative_peers=alternatives))
        # Whatever was said to an offer before, the peer has seen, and waits for no reply any more.
        changed, about = heard.response is not None, heard.mark if heard.sender.version > 0 else None
        heard.response = LinkRejected(reason=reason, alternative_peers=alternatives, about=about)
        return Response(peer, heard.came, heard.response, changed)

    def served(self, peer: PeerId, message: Answer | LinkRejected) -> PeerSignal | ConnectionRejected:
        """What we say to an offer, as a service carries it."""
        match message:
            case Answer(description=description):
                heard = self._heard.get(peer)
                offered = heard.description if heard else description
                signal = sign_answer(self._identity, peer, description, offered, network=self._network)
                return PeerSignal(to=peer, from_=self._me, signal=signal)
            case LinkRejected():
                return ConnectionRejected(
                    to=peer,
                    from_=self._me,
                    reason=message.reason,
                    max_peers=min(self._max_peers, 0xFFFF),
                    alternative_peers=message.alternative_peers,
                    about=message.about,
                )

    # --- what we hear -------------------------------------------------------------------------------------------------

    def hear(
        self, came: ByService, sender: PeerId, signal: Signal, own: OwnOffer | None, now: float, *, linked: bool
    ) -> Decision:
        """A service brought a signal in the name of `sender`; `linked` says whether we have a link to it."""
        price = FRAME if signal.type == "candidate" else DECIDED + VERIFY + len(signal.sdp or "") / PARSED
        if self._budget.spend(came.transport, price, now) is not Payment.NOW:
            self.counts.unpaid += 1
            return None
        match signal.type:
            case "offer":
                return self._hear_served_offer(came, sender, signal, now)
            case "answer":
                return self._hear_served_answer(came, sender, signal, own, linked=linked)
            case "candidate":
                return self._hear_candidate(sender, signal, own)
            case _:
                self.counts.other_signals += 1
                return None

    def hear_offer(self, came: Came, offered: Offered, now: float) -> Offered | Response | None:
        """An offer came whose maker is known."""
        peer, mark = offered.peer.peer_id, mark_of(offered.description)
        heard = self._heard.get(peer)
        if heard is not None and heard.mark == mark and now < heard.at + SAME_OFFER:
            self.counts.repeated_offers += 1
            heard.came = came
            return None if heard.response is None else Response(peer, came, heard.response)
        if heard is None and not self._may_hear(came, now):
            self.counts.excess_offers += 1
            return None
        self._heard.put(peer, HeardOffer(offered.description, mark, offered.peer, came, now))
        return offered

    def _may_hear(self, came: Came, now: float) -> bool:
        """Whether there is room for one more offer: what is under way is not forgotten for it, whoever it is from."""

        def is_under_way(heard: HeardOffer) -> bool:
            return heard.live and now < heard.at + SAME_OFFER

        bringer = _bringer(came)
        brought = sum(is_under_way(heard) and _bringer(heard.came) == bringer for heard in self._heard.values())
        return brought < self._most_of_one and self._heard.make_room(lambda heard: not is_under_way(heard))

    def is_excess(self, came: Came, sender: PeerId, now: float) -> bool:
        """Whether this peer makes more offers than are looked at."""
        if isinstance(came, ByMesh) and self._budget.spend(_bringer(came), DECIDED, now) is not Payment.NOW:
            self.counts.unpaid += 1
            return True
        allowances = self._proven if isinstance(came, ByMesh) else self._alleged
        is_excess = not allowances.take(sender, now)
        self.counts.excess_offers += is_excess
        return is_excess

    def hear_rejection(
        self, transport: str | None, rejected: Rejected, about: bytes | None, own: OwnOffer | None
    ) -> TurnedDown | None:
        """A service, or else the mesh, brought a rejection. None if it is not for what is under way."""
        sender = rejected.peer
        heard = self.live(sender)
        if not _concerns_us(transport, about, own, heard):
            self.counts.stray_rejections += 1
            return None
        others = tuple(peer for peer in rejected.alternatives if peer not in {self._me, sender})[:MAX_ALTERNATIVES]
        rejected = structs.replace(rejected, alternatives=others)
        if heard is not None and own is not None and about not in {None, own.mark}:
            heard.live = False  # it takes its own offer back, and may be about to answer ours
            return TurnedDown(rejected, ends=False)
        return TurnedDown(rejected, ends=True)

    def _hear_served_offer(self, came: ByService, sender: PeerId, signal: Signal, now: float) -> Decision:
        if self.is_excess(came, sender, now):
            # An original that hears nothing waits for ever, deaf to us. Peers that we name it would dial at once.
            may_wait = signal.p2pmesh is None and self._allow_unverified
            return Response(sender, came, LinkRejected(reason=FULL)) if may_wait else None
        try:
            remote, description = verify_offer(signal, sender, self._me, network=self._network)
        except RemoteProtocolError as error:
            return self._on_false_offer(sender, str(error), now)
        if not self._welcome(remote):
            self.counts.unverified_peers += 1
            return Response(sender, came, LinkRejected(reason="unverified_peer"))
        proof = signal.p2pmesh
        told = (None, None) if proof is None else (proof.links, proof.purpose)
        return self.hear_offer(came, Offered(remote, description, *told), now)

    def _hear_served_answer(
        self, came: ByService, sender: PeerId, answer: Signal, own: OwnOffer | None, *, linked: bool
    ) -> AnswerHeard | Response | None:
        if own is None:
            self.counts.unasked_answers += 1
            # It holds a slot for an attempt that we have given up.
            return None if linked else Response(sender, came, LinkRejected(reason=NO_ATTEMPT, about=_mark_in(answer)))
        if own.answered_by is not None:
            self.counts.repeated_answers += 1
            return None
        try:
            remote, description = verify_answer(answer, own.offer.description, sender, self._me, network=self._network)
        except RemoteProtocolError:
            self.counts.false_answers += 1  # and no more: a forger must not be able to end our attempt by it
            return None
        if not self._welcome(remote):
            self.counts.unverified_answers += 1  # for the same reason: a proof is easily left out
            return None
        return AnswerHeard(own, remote, description)

    def _hear_candidate(self, sender: PeerId, signal: Signal, own: OwnOffer | None) -> Feed | None:
        """Take a candidate. It need prove nothing: it adds an address to an attempt that is bound to a fingerprint."""
        heard = self.live(sender)
        attempt = heard if heard is not None and (own is None or own.answered_by is None) else own
        candidate = None if signal.candidate is None else read_candidate(signal.candidate.candidate)
        if attempt is None or candidate is None:
            self.counts.stray_candidates += 1
            return None
        early = isinstance(attempt, OwnOffer) and attempt.answered_by is None
        if attempt.candidates >= (MAX_EARLY if early else MAX_TRICKLED):
            self.counts.excess_candidates += 1
            return None
        attempt.candidates += 1
        match attempt:
            case HeardOffer(sender=remote) | OwnOffer(answered_by=RemotePeer() as remote):
                return Feed(remote, candidate)
            case OwnOffer():
                attempt.early.append(candidate)
                return None

    def _on_false_offer(self, sender: PeerId, reason: str, now: float) -> PeerFailed | None:
        self.counts.false_offers += 1
        return PeerFailed(sender, reason) if self._failures.take(sender, now) else None

    def _welcome(self, remote: RemotePeer) -> bool:
        return remote.verified or self._allow_unverified


def _bringer(came: Came) -> str:
    """The service that brought something, or the neighbour."""
    return came.transport if isinstance(came, ByService) else came.way.bringer


def _concerns_us(transport: str | None, about: bytes | None, own: OwnOffer | None, heard: HeardOffer | None) -> bool:
    """Whether a rejection is for what is under way: it may come late, or be a service's lie."""
    if about is not None:
        marks = [one.mark for one in (own, heard) if one is not None]
        if heard is not None and isinstance(heard.response, Answer):
            marks.append(mark_of(heard.response.description))
        return about in marks
    if transport is None:
        return own is not None or heard is not None
    # A service that never saw an offer has no say in it. The original's peers reject also what was not offered.
    return own is None or transport in own.services or transport == own.first


def _mark_in(answer: Signal) -> bytes | None:
    """The mark of an answer of ours; None if it is none."""
    try:
        return None if answer.p2pmesh is None else mark_of(read_sdp(answer.sdp or ""))
    except RemoteProtocolError:
        return None
