"""How a link's window learns how long acks take."""

import pytest
from msgspec import structs

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.eager_push import SendWindow
from p2pmesh.protocols.broadcast.message_store import StoredMessage
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.util.latency import RoundTripTime
from tests.harness.broadcast import gossip

PEER = RemotePeer(PeerId("a" * 40), verified=True, version=1)


def stored(message_id: str) -> StoredMessage:
    data = structs.replace(gossip(sign=False).data, id=message_id)
    return StoredMessage(data, parent=None, hops=0, since=0.0, born=0.0, ttl=60.0, size=100)


def test_an_estimate_grows_with_slow_acks_and_shrinks_again():
    trip = RoundTripTime()
    assert trip.expected() == 0
    for _ in range(20):
        trip.sample(3.0)
    assert 3.0 < trip.expected() < 4.0
    for _ in range(100):
        trip.sample(0.01)
    assert trip.expected() < 0.1


def test_a_busy_peer_is_given_the_time_that_it_takes():
    link = SendWindow(PEER, BroadcastConfig())
    for n in range(20):
        link.launch(stored(str(n)), now=n)
        link.heard(link.in_flight.get(str(n)), n + 2.0)
        link.settle(str(n))
    assert link.patience() > 2


@pytest.mark.parametrize("is_lost", [True, False])
def test_acks_of_repeated_messages_teach_nothing_if_the_first_copy_was_lost(is_lost):
    link = SendWindow(PEER, BroadcastConfig())
    hops = []
    for now, name in enumerate(("repeated", "later")):
        link.launch(stored(name), now=float(now))
        hops.append(link.in_flight.get(name))
    repeated, later = hops
    assert repeated is not None
    repeated.attempts = 2
    if is_lost:  # links keep their order, so the first copy was: this was sent after it
        link.heard(later, 1.1)
    taught = link.round_trip.measured
    link.heard(repeated, 50.0)
    assert link.round_trip.measured == (taught if is_lost else 50.0)
