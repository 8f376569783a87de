"""How a peer of the original JavaScript project gossips: to all its links at once, once, and without any acks."""

import abc
import json
from contextlib import suppress

MAX_HOPS = 10
CACHE = 300_000
"""Milliseconds for which it knows a broadcast again, by the clock of the origin."""
PROBE = "__gossip_connectivity_probe"
RESPONSE = "__gossip_connectivity_response"


class OriginalGossip(abc.ABC):
    """The broadcasts of an original's peer. A subclass has links.

    Attributes:
      delivered: what its application got of broadcasts, as the original hands it over.
      probes_answered: the answers to its probes, with the sender.
    """

    def __init__(self, peer_id, rng):
        self.peer_id = peer_id
        self.delivered = []
        self.probes_answered = []
        self._rng = rng
        self._seen = {}

    # --- what carries it ----------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def wall_ms(self): ...

    @property
    @abc.abstractmethod
    def neighbours(self): ...

    @abc.abstractmethod
    def _send(self, peer, text): ...

    @abc.abstractmethod
    def _die(self, why):
        """What came would end the original's process."""

    # --- broadcasts ---------------------------------------------------------------------------------------------------

    def broadcast(self, topic, payload):
        """Send to all open links, once; nothing is kept for later. Gives the message's id."""
        message_id = f"msg-{self._rng.getrandbits(46):x}-{self.wall_ms}"
        data = {
            "id": message_id,
            "topic": topic,
            "payload": json.dumps(payload) if isinstance(payload, dict | list) else payload,
            "originPeerId": self.peer_id,
            "signature": None,
            "timestamp": self.wall_ms,
            "hops": 0,
            "relayedBy": [self.peer_id],
        }
        self._seen[message_id] = data["timestamp"]
        self._send_all(self.neighbours, data, deliveryId=f"{message_id}_1", requiresAck=False)
        return message_id

    def _on_gossip(self, peer, data):
        if not isinstance(data, dict):
            self._die("a gossip without data")
            return
        if not isinstance(data.get("relayedBy"), list):
            self._die("relayedBy is no array")
            return
        if data["topic"] in {PROBE, RESPONSE}:
            self._on_probe(peer, data)
            return
        data = {**data, "hops": data["hops"] + 1}
        if data["id"] in self._seen or data["hops"] > MAX_HOPS:
            return
        self._seen[data["id"]] = data["timestamp"]
        self._deliver(data)
        known_to = [*data["relayedBy"], peer]
        data["relayedBy"] = list(dict.fromkeys(known_to))
        self._send_all([other for other in self.neighbours if other not in known_to], data)
        for message_id in [key for key, sent in self._seen.items() if self.wall_ms - sent > CACHE]:
            del self._seen[message_id]

    def _on_probe(self, peer, data):
        if data["topic"] == RESPONSE:
            self.probes_answered.append((peer, json.loads(data["payload"])))
            return
        content = {"originalProbe": data["payload"], "respondingPeer": self.peer_id, "timestamp": self.wall_ms}
        response = {
            "id": f"msg-{self._rng.getrandbits(46):x}-{self.wall_ms}",
            "topic": RESPONSE,
            "payload": json.dumps(content),
            "originPeerId": self.peer_id,
            "signature": None,
            "timestamp": self.wall_ms,
            "hops": 0,
            "relayedBy": [],
        }
        self._send_all([peer], response)

    def _deliver(self, data):
        payload = data["payload"]
        if isinstance(payload, str) and payload[:1] in {"{", "["}:
            with suppress(ValueError):
                payload = json.loads(payload)
        self.delivered.append({
            "topic": data["topic"],
            "data": payload,
            "from": data["originPeerId"],
            "messageId": data["id"],
            "timestamp": data["timestamp"],
            "hops": data["hops"],
        })

    def _send_all(self, peers, data, **more):
        text = json.dumps({"type": "gossip", "data": data, **more})
        for peer in peers:
            self._send(peer, text)
