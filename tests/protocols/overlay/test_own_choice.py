"""Links of a peer's own choice, which nobody else's coming takes, and ids that crowd around its own."""

from __future__ import annotations

import random

import pytest

from p2pmesh.events import EclipseSuspected
from p2pmesh.keyspace import ID_BITS, PeerId, random_place
from p2pmesh.protocols.core import AcceptOffer, DropLink, Emit
from p2pmesh.protocols.inputs import LinkDown, LinkLost, LinkUp, PeersFound, RemotePeer
from p2pmesh.protocols.notices import Offered, RejectOffer, Route, RouteSucceeded, SetLinkPurpose
from p2pmesh.protocols.overlay.crowd import DENSE, REMEMBERED, Crowd
from p2pmesh.protocols.overlay.slots import SHAKEN
from p2pmesh.simulation.model.sdp_stub import describe
from p2pmesh.wire.messages import BRIDGE, LONG, PINNED, RING
from p2pmesh.wire.overlay import SuccessorFound
from tests.harness.overlay import ME, Peer, at, offered, says


def settled(max_peers: int = 3, **options) -> Peer:
    """Both neighbours on the ring, and one link that was looked up and dialed."""
    peer = Peer(max_peers, **options).placed()
    peer.feed(RouteSucceeded(peer.searching().call, at(0x10), SuccessorFound(welcome=True)))
    assert peer.dialed == [at(0x10)]
    return peer.up(0x10, says(0x10)).wait(60)


def near(step: int) -> PeerId:
    """A ground id, so many steps after ours, or before."""
    return PeerId(f"{int(ME, 16) + (step << (ID_BITS - 24)):040x}")


def offer_of(peer: PeerId, purpose=RING) -> Offered:
    return Offered(RemotePeer(peer, True, 1), describe("00" * 8, bytes(32), "actpass"), 1, purpose)


def suspected(peer: Peer) -> list[EclipseSuspected]:
    return [effect.event for effect in peer.got(Emit) if isinstance(effect.event, EclipseSuspected)]


# --- own choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "links", "purpose"),
    [(0x20, 0, LONG), (0x20, 2, PINNED), (0x20, 2, BRIDGE), (0x84, 0, RING), (0x7C, 2, RING), (0x84, 2, PINNED)],
)
def test_no_newcomer_no_caller_and_no_nearness_takes_a_link_of_our_own_choice(place, links, purpose):
    peer = settled()
    assert peer.core.snapshot()["chosen"] == [at(0x10)]
    peer.feed(offered(place, links=links, purpose=purpose))
    assert at(0x10) in peer.links
    is_nearer = place in {0x84, 0x7C}
    assert bool(peer.got(DropLink)) == is_nearer  # who is nearer gets the place of the neighbour that it displaces
    assert bool(peer.notices(RejectOffer)) != is_nearer


def test_a_peer_that_was_named_next_to_us_gets_the_place_of_a_neighbour_rather_than_that_of_our_own_choice():
    assert [drop.peer for drop in settled().found(0x84, source="ring").got(DropLink)] == [at(0x88)]


def test_a_link_that_another_peer_dialed_is_no_choice_of_ours():
    peer = Peer(3).placed().feed(offered(0x10, links=2)).up(0x10, says(0x10)).wait(60)
    assert peer.core.snapshot()["chosen"] == []
    assert [drop.peer for drop in peer.feed(offered(0x20, links=0)).got(DropLink)] == [at(0x10)]


def test_of_many_links_across_half_are_kept_for_our_own_choice():
    peer = settled(8)
    for place in (0x30, 0x50, 0xB0, 0xD0, 0xE0):
        peer.feed(RouteSucceeded(peer.searching().call, at(place), SuccessorFound(welcome=True)))
        peer.up(place, says(place))
    assert peer.core.snapshot()["chosen"] == [at(0x10), at(0x30), at(0x50)]


def test_where_a_proven_link_breaks_the_ring_comes_first_for_a_while():
    peer = settled().feed(LinkDown(at(0x88), "silent", 5.0))
    assert peer.core.snapshot()["links"] == [at(0x78), at(0x10)]
    peer.found(0x84, source="ring").up(0x84).found(0x82, source="ring")
    assert [drop.peer for drop in peer.got(DropLink)] == [at(0x10)]
    later = settled().feed(LinkDown(at(0x88), "silent", 5.0)).found(0x84, source="ring").up(0x84).wait(SHAKEN)
    assert [drop.peer for drop in later.found(0x82, source="ring").got(DropLink)] == [at(0x84)]


# --- a crowd ----------------------------------------------------------------------------------------------------------


def test_ids_that_crowd_around_ours_get_no_links_and_the_application_hears_of_them_once():
    peer = settled(6)
    told = []
    for step in (5, -6, 7, -8):
        told += suspected(peer.feed(offer_of(near(step))))
    assert told == [EclipseSuspected(peers=2, mesh_size=30)]
    assert peer.core.snapshot()["crowd"] == 4
    assert peer.got(AcceptOffer) == []
    assert [note.peer for note in peer.notices(RejectOffer)] == [near(-8)]
    inner = peer.feed(offer_of(near(1)))
    assert (inner.got(AcceptOffer), len(inner.notices(RejectOffer))) == ([], 1)
    assert peer.feed(PeersFound((near(2), near(-2)), "ring")).dialed == []
    assert peer.feed(offer_of(at(0x84))).got(AcceptOffer)


def test_links_to_a_crowd_are_closed_once_there_are_others_and_look_ups_avoid_them_until_then():
    peer = settled(6).feed(offer_of(near(5)))
    peer.feed(LinkUp(RemotePeer(near(5), True, 1)))
    peer.feed(offer_of(near(-6))).feed(offer_of(near(7)))
    assert near(5) not in peer.links
    lonely = Peer(3).up(0x10, says(0x10)).up(0x90, says(0x90)).feed(offer_of(near(5)))
    lonely.feed(LinkUp(RemotePeer(near(5), True, 1)))
    lonely.core._slots.crowd.look([near(5), near(6), near(7)], 30, lonely.now)
    lonely.wait(120)
    assert all(route.avoid == (near(5),) for route in lonely.notices(Route))


def test_a_besieged_peer_says_that_it_has_no_links():
    peer = settled(6).feed(LinkDown(at(0x88), "closed")).feed(offer_of(near(5)))
    said = [note for step in (-6, 7) for note in peer.feed(offer_of(near(step))).notices(SetLinkPurpose)]
    said += peer.feed(LinkLost(at(0x90), "no answer")).notices(SetLinkPurpose)
    assert said
    assert all(note.is_besieged for note in said)


@pytest.mark.parametrize("size", [10, 30, 100, 1000])
def test_peers_that_lie_as_by_chance_are_no_crowd_and_ground_ids_are(size):
    rng = random.Random(size)
    ground = sorted(_offset(random_place(rng)) for _ in range(20_000))
    crowds = 0
    for _ in range(300):
        crowd = Crowd(ME)
        met = [random_place(rng) for _ in range(min(size, 256))]
        crowds += crowd.look(met, size, 0.0)
        assert crowd.size == 0 or crowds
    assert crowds == 0
    crowd, taken = Crowd(ME), [*ground[:5], *ground[-4:]]
    attackers = [PeerId(f"{(int(ME, 16) + offset) % (1 << ID_BITS):040x}") for offset in taken]
    is_seen = crowd.look([*attackers, *met], size, 0.0)
    assert is_seen == (size < 20_000 // DENSE)
    if is_seen:
        assert crowd.size == 9
        assert all(peer in crowd for peer in attackers)
        assert at(0x81) not in crowd


def test_a_crowd_is_known_by_what_was_last_heard_of_the_density_elsewhere_for_a_while():
    crowd, ids = Crowd(ME), [near(step) for step in (1, 2, 3, -4)]
    assert not crowd.look(ids, None, 1000.0)
    assert not crowd.look(ids[:1], 30, 1000.0)
    assert crowd.look(ids, None, 1000.0 + REMEMBERED)
    assert not crowd.look(ids, None, 1000.0 + REMEMBERED + 1)
    assert ids[0] in crowd
    assert not crowd.look(ids[:1], 30, 1200.0)
    assert ids[0] not in crowd


def _offset(peer: PeerId) -> int:
    return (int(peer, 16) - int(ME, 16)) % (1 << ID_BITS)
