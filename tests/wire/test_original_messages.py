"""What the original's peers and servers send is understood, and they are sent what they can't do without."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.keyspace import PeerId
from p2pmesh.wire.codec import decode, decode_signaling, encode
from p2pmesh.wire.messages import Direct, Gossip, GossipAck, GossipData, Message, ReconnectionData, Signal, Unknown
from p2pmesh.wire.signaling import (
    Ack,
    BootstrapPeers,
    ConnectionRejected,
    Join,
    KnownPeer,
    Leave,
    PeerJoined,
    PeerLeft,
    PeerSignal,
    PeerSignals,
    ServiceError,
    SignalingMessage,
    SignalRejected,
)

A = PeerId("0a" * 20)
B = PeerId("b1" * 20)


def gossip_of(payload: Any, relayed_by: tuple[PeerId, ...] = (A,)) -> Gossip:
    return Gossip(
        data=GossipData(
            id="msg-1",
            topic="chat",
            payload=payload,
            origin_peer_id=A,
            timestamp=1_700_000_000_000,
            hops=0,
            relayed_by=relayed_by,
        )
    )


def frame_of(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def test_its_gossip_is_understood() -> None:
    frame = frame_of({
        "type": "gossip",
        "data": {
            "id": "msg-k3j9x0a1b-1700000000000",
            "topic": "chat",
            "payload": '{"text":"hello"}',
            "originPeerId": A,
            "signature": None,
            "timestamp": 1_700_000_000_000,
            "hops": 0,
            "relayedBy": [A],
        },
        "deliveryId": "msg-k3j9x0a1b-1700000000000_1",
        "requiresAck": False,
    })
    message = decode(frame)
    assert isinstance(message, Gossip)
    assert message.delivery_id == "msg-k3j9x0a1b-1700000000000_1"
    assert message.data == GossipData(
        id="msg-k3j9x0a1b-1700000000000",
        topic="chat",
        payload='{"text":"hello"}',
        origin_peer_id=A,
        timestamp=1_700_000_000_000,
        hops=0,
        relayed_by=(A,),
    )


@pytest.mark.parametrize(
    ("sent", "understood"),
    [
        ({"type": "direct", "payload": {"a": [1, None]}}, Direct(payload={"a": [1, None]})),
        ({"type": "direct"}, Direct()),
        ({"type": "gossip_ack"}, GossipAck()),
        (
            {"type": "reconnection_data", "reason": "kademlia_optimization", "peers": [B], "timestamp": 5},
            ReconnectionData(reason="kademlia_optimization", peers=(B,), timestamp=5),
        ),
        (
            {"type": "connection_rejected", "from": A, "reason": "max_peers_reached", "alternativePeers": [B]},
            Unknown("connection_rejected"),
        ),
        ({"type": "relay_signal", "from": A, "to": B, "signal": {}, "timestamp": 5}, Unknown("relay_signal")),
        ({"type": "relay_ack", "to": A, "from": B, "relayPath": [A]}, Unknown("relay_ack")),
        ({"type": "relay_failure", "to": A, "from": B, "targetPeer": A, "reason": ""}, Unknown("relay_failure")),
        ({"type": "batched_signals", "from": A, "signals": []}, Unknown("batched_signals")),
        ({"type": "optimized_relay_signal"}, Unknown("optimized_relay_signal")),
        ({"type": "optimized_relay_confirmation"}, Unknown("optimized_relay_confirmation")),
        ({"type": "kademlia_rpc", "message": {"type": "FIND_NODE", "id": A}}, Unknown("kademlia_rpc")),
        ({"type": "kademlia_rpc_response", "rpcMessage": {}}, Unknown("kademlia_rpc_response")),
        ({"type": "broadcast", "topic": "t", "payload": 1}, Unknown("broadcast")),
    ],
)
def test_its_link_messages_are_understood(sent: dict[str, Any], understood: Message | Unknown) -> None:
    assert decode(frame_of(sent)) == understood


OFFER = {"type": "offer", "sdp": "v=0\r\n"}
CANDIDATE = {"type": "candidate", "candidate": {"candidate": "candidate:1 1 udp", "sdpMLineIndex": 0, "sdpMid": "0"}}


@pytest.mark.parametrize(
    ("sent", "understood"),
    [
        ({"type": "join", "peerId": A}, Join(peer_id=A)),
        ({"type": "leave", "peerId": A}, Leave(peer_id=A)),
        (
            {"type": "signal", "to": B, "from": A, "signal": OFFER},
            PeerSignal(to=B, from_=A, signal=Signal(type="offer", sdp="v=0\r\n")),
        ),
        (
            {
                "type": "connection_rejected",
                "to": B,
                "reason": "max_peers_reached",
                "maxPeers": 3,
                "alternativePeers": [],
            },
            ConnectionRejected(to=B, reason="max_peers_reached", max_peers=3, alternative_peers=()),
        ),
        (
            {"type": "signal_rejected", "to": B, "reason": "initiator_conflict", "correctInitiator": A},
            SignalRejected(to=B, reason="initiator_conflict", correct_initiator=A),
        ),
        ({"type": "bootstrap_peers", "peers": [{"id": A}]}, BootstrapPeers(peers=(KnownPeer(id=A),))),
        (
            {"type": "bootstrap_peers", "peers": [{"id": A, "lastSeen": 5}]},
            BootstrapPeers(peers=(KnownPeer(id=A, last_seen=5),)),
        ),
        ({"type": "peer_joined", "peerId": A}, PeerJoined(peer_id=A)),
        ({"type": "peer_left", "peerId": A}, PeerLeft(peer_id=A)),
        ({"type": "error", "message": f"Peer {A} not found."}, ServiceError(message=f"Peer {A} not found.")),
        ({"type": "ack", "to": B}, Ack(to=B)),
        ({"type": "kademlia_rpc_request", "to": B, "from": A, "rpcMessage": {}}, Unknown("kademlia_rpc_request")),
        ({"type": "signal", "from": None, "signal": {"type": "renegotiate", "renegotiate": True}}, None),
        ({"type": "signal", "signal": {"type": "transceiverRequest", "transceiverRequest": {"kind": "x"}}}, None),
        ({"type": "batched_signals", "to": B, "from": A, "signals": [CANDIDATE], "batchTimestamp": 5}, None),
        ({"message": "Internal server error", "connectionId": "x", "requestId": "y"}, Unknown("")),
    ],
)
def test_its_signaling_is_understood(sent: dict[str, Any], understood: SignalingMessage | Unknown | None) -> None:
    message = decode_signaling(json.dumps(sent))
    if understood is not None:
        assert message == understood
        return
    assert isinstance(message, PeerSignal | PeerSignals)


def test_one_bad_id_does_not_spoil_a_list_of_peers() -> None:
    sent = {
        "type": "bootstrap_peers",
        "peers": [{"id": "zz"}, {"id": A}, 5, {"id": B, "lastSeen": "soon"}, None, {"id": B}],
    }
    assert decode_signaling(json.dumps(sent)) == BootstrapPeers(peers=(KnownPeer(id=A), KnownPeer(id=B)))
    with pytest.raises(RemoteProtocolError):
        decode_signaling(json.dumps({"type": "bootstrap_peers", "peers": [{"id": A}] * 65}))
    with pytest.raises(RemoteProtocolError):
        decode_signaling(json.dumps({"type": "bootstrap_peers", "peers": "none"}))


@pytest.mark.parametrize("payload", ["text", 5, 0, False, None])
def test_it_gets_every_field_that_it_can_not_do_without(payload: object) -> None:
    sent = json.loads(encode(gossip_of(payload), text=True))
    assert sent["data"]["payload"] == payload
    assert {"id", "topic", "payload", "originPeerId", "timestamp", "hops", "relayedBy"} <= sent["data"].keys()
    assert isinstance(sent["data"]["relayedBy"], list)
    assert json.loads(encode(Direct(payload=payload), text=True)) == {"type": "direct", "payload": payload}


def test_it_gets_empty_lists_where_it_expects_lists() -> None:
    assert json.loads(encode(ReconnectionData(reason="", peers=(), timestamp=0), text=True)) == {
        "type": "reconnection_data",
        "reason": "",
        "peers": [],
        "timestamp": 0,
    }
