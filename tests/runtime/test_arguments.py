"""The arguments of calls: what is refused, before anything is sent."""

import math
from types import MappingProxyType

import pytest
import trio

from p2pmesh import ConfigError, InvalidPayload, InvalidPeerId, LocalProtocolError, MeshConfig, PayloadTooLarge
from p2pmesh.config import KademliaConfig
from p2pmesh.runtime import arguments
from p2pmesh.wire.payloads import unpack

CONFIG = MeshConfig(max_payload=100, kademlia=KademliaConfig(max_value=50))


def broadcast(topic="chat", payload=1, ttl=None, max_hops=None, receipts=True):
    return arguments.broadcast(CONFIG, topic, payload, ttl, max_hops, receipts)


def put(key="key", value=1, ttl=None):
    return arguments.put(CONFIG.kademlia, key, value, ttl)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"payload": {1, 2}}, InvalidPayload),
        ({"payload": b"x" * 101}, PayloadTooLarge),
        ({"ttl": 0}, ConfigError),
        ({"ttl": math.nan}, ConfigError),
        ({"ttl": 601}, ConfigError),
        ({"ttl": "1"}, ConfigError),
        ({"ttl": True}, ConfigError),
        ({"max_hops": 0}, ConfigError),
        ({"max_hops": 256}, ConfigError),
        ({"max_hops": 1.5}, ConfigError),
        ({"max_hops": True}, ConfigError),
        ({"receipts": None}, ConfigError),
        ({"topic": "x" * 257}, LocalProtocolError),
        ({"topic": "\ud800"}, LocalProtocolError),
        ({"topic": None}, LocalProtocolError),
        ({"topic": "__gossip_connectivity_probe"}, LocalProtocolError),
    ],
)
def test_what_can_not_be_broadcast_is_refused(options, error):
    with pytest.raises(error) as caught:
        broadcast(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"value": b"x" * 51}, PayloadTooLarge),
        ({"value": object()}, InvalidPayload),
        ({"ttl": 0.5}, ConfigError),
        ({"ttl": CONFIG.kademlia.max_ttl + 1}, ConfigError),
        ({"ttl": math.nan}, ConfigError),
        ({"key": b"key"}, ConfigError),
        ({"key": "\udc80"}, ConfigError),
    ],
)
def test_what_can_not_be_put_is_refused(options, error):
    with pytest.raises(error):
        put(**options)


def test_the_error_for_a_large_value_names_its_limit():
    with pytest.raises(PayloadTooLarge, match=r"the value .*KademliaConfig\.max_value"):
        put(value="x" * 51)


def test_what_passes_is_plain():
    class Text(str):  # noqa: FURB189
        __slots__ = ()

    topic, body, ttl, max_hops, receipts = broadcast(Text("t"), Text("x"), 5, 7)
    assert (type(topic), type(body.payload), ttl, max_hops, receipts) == (str, str, 5.0, 7, True)


@pytest.mark.parametrize(
    ("payload", "arrives"),
    [
        (MappingProxyType({"a": (1, range(2))}), {"a": [1, [0, 1]]}),
        (range(3), [0, 1, 2]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
    ],
)
def test_every_mapping_sequence_and_buffer_is_a_payload(payload, arrives):
    body = broadcast(payload=payload)[1]
    assert unpack(body.payload, body.encoding, body.blob) == arrives


def test_a_payload_that_changes_later_is_sent_as_it_was():
    payload = bytearray(b"now")
    body = broadcast(payload=payload)[1]
    payload[:] = b"new"
    assert body.blob == b"now"


@pytest.mark.parametrize("peers", ["a" * 40, b"a", None, 5])
def test_peers_are_a_list(peers):
    with pytest.raises(ConfigError, match="bootstrap_peers must be a list"):
        arguments.peers(peers)


def test_each_of_them_is_an_id():
    with pytest.raises(InvalidPeerId):
        arguments.peers(iter(["a" * 40, 5]))


@pytest.mark.parametrize("clock", [5, lambda now: math.nan, lambda now: None, lambda now: -1, lambda now: 1e300])
async def test_a_wall_clock_tells_the_time(clock):
    with pytest.raises(ConfigError, match="wall_clock"):
        arguments.clock(clock)
    await trio.lowlevel.checkpoint()
