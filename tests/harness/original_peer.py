"""A stand-in for a peer of the original JavaScript project: its rules, its times and its faults, without a browser.

What it does was recorded from the original: who offers, whom it turns down or gives up, what it swallows, what it never
notices; how it gossips stands in `original_gossip`. Its blunders are kept: it offers from the wrong side, it drops an
offer that crosses its own, it waits for ever for an answer that does not come.

What would end its process stands in `deaths`, and what would surprise its application in `strays`: a peer that gets
along with the original causes neither. Who carries its texts and opens its links is told by a subclass.
"""

import abc
import json
from collections import Counter
from enum import Enum

from attrs import define

from p2pmesh.keyspace import is_peer_id, xor_distance
from tests.harness.original_gossip import OriginalGossip

MAX_MESSAGE = 262_144
SWALLOWED = frozenset({
    "gossip_ack",
    "relay_ack",
    "relay_failure",
    "optimized_relay_confirmation",
    "kademlia_rpc",
    "batched_signals",
})
"""What it takes over a link and gives to nobody."""


class State(Enum):
    """How far it has come with another peer."""

    WAITING = "waits for an offer"
    OFFERING = "has an offer out"
    CONNECTING = "has both descriptions"
    OPEN = "linked"


@define
class Entry:
    state: State
    since: float


class OriginalPeer(OriginalGossip):
    """A peer of the original. Times are seconds.

    Attributes:
      messages: what its application got besides, with the sender; `strays` are those of them that are no `direct`.
      evictions: the notices that it got, with the sender.
      rejections: who turned its offers down.
      received: how many messages of each type came over links.
    """

    def __init__(self, peer_id, rng, *, max_peers=5):
        super().__init__(peer_id, rng)
        self.max_peers = max_peers
        self.min_peers = max(1, max_peers // 2)
        self.deaths = []
        self.strays = []
        self.messages = []
        self.evictions = []
        self.rejections = []
        self.lost_offers = []
        self.zombies = []
        self.received = Counter()
        self.signals = []
        """All that came from the service."""
        self.entries = {}
        self._routing = {}
        self._alternatives = []
        self._tries = Counter()
        self._not_before = {}
        self._fruitless = 0

    # --- what carries it ----------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def now(self): ...

    @abc.abstractmethod
    def _after(self, seconds, action, *args): ...

    @abc.abstractmethod
    def _say(self, message):
        """Send a message to the signaling service."""

    @abc.abstractmethod
    def _offer(self, peer):
        """Begin a link: `described` follows."""

    @abc.abstractmethod
    def _answer(self, peer, offer):
        """Begin the link that `peer` offers: `described` follows."""

    @abc.abstractmethod
    def _complete(self, peer, answer):
        """Take the answer to an offer. `opened` follows, or `closed`."""

    @abc.abstractmethod
    def _close(self, peer):
        """End the link, or the attempt at it, at once. No `closed` follows."""

    # --- what an application does -------------------------------------------------------------------------------------

    @property
    def neighbours(self):
        return [peer for peer, entry in self.entries.items() if entry.state is State.OPEN]

    def join(self):
        self._say({"type": "join", "peerId": self.peer_id})
        self._after(1.0, self._discover)
        self._after(20.0, self._check_connectivity)
        self._after(30.0, self._check_half_open)

    def leave(self):
        """Destroy all links, then say goodbye to the service."""
        for peer in list(self.entries):
            self._drop(peer)
        self._say({"type": "leave", "peerId": self.peer_id})

    def send(self, peer, payload):
        """To a neighbour; to anybody else it is dropped."""
        if peer in self.neighbours:
            self._send(peer, json.dumps({"type": "direct", "payload": payload}))

    # --- who gets a link ----------------------------------------------------------------------------------------------

    def _request(self, peer, *, initiator):
        """`requestConnection`: whether a link to this peer is begun."""
        if peer in self.entries or peer == self.peer_id:
            return False
        if self._tries[peer] >= 3 or self.now < self._not_before.get(peer, 0.0):
            return False
        if not self._makes_room_for(peer):
            return False
        self.entries[peer] = Entry(State.OFFERING if initiator else State.WAITING, self.now)
        if initiator:
            self._offer(peer)
        return True

    def _request_as_initiator(self, peer):
        self._request(peer, initiator=True)

    def _makes_room_for(self, peer):
        connected = self.neighbours
        if len(connected) < self.min_peers or len(self.entries) < self.max_peers:
            return True
        if len(connected) < self.max_peers:
            return False
        mine = xor_distance(self.peer_id, peer)
        farther = [other for other in connected if xor_distance(self.peer_id, other) > mine]
        if not farther:
            return False
        strangers = [other for other in farther if other not in self._routing]
        self._evict(strangers[0] if strangers else max(farther, key=lambda other: xor_distance(self.peer_id, other)))
        return True

    def _evict(self, peer):
        others = [other for other in self.neighbours if other != peer]
        if others:
            notice = {"reason": "kademlia_optimization", "peers": others, "timestamp": self.wall_ms}
            self._send(peer, json.dumps({"type": "reconnection_data", **notice}))
        self._drop(peer)
        self._routing.pop(peer, None)

    def _drop(self, peer):
        if self.entries.pop(peer, None) is not None:
            self._close(peer)

    def _drop_half_open(self, peer):
        entry = self.entries.get(peer)
        if entry is not None and entry.state is not State.OPEN:
            self._drop(peer)

    def _reject(self, peer):
        nearest = sorted(self.neighbours, key=lambda other: xor_distance(other, peer))
        self._say({
            "type": "connection_rejected",
            "to": peer,
            "reason": "max_peers_reached",
            "maxPeers": self.max_peers,
            "alternativePeers": nearest[:3],
        })

    # --- looking for links --------------------------------------------------------------------------------------------

    def _candidates(self):
        known = [peer for peer in dict.fromkeys((*self._routing, *self._alternatives)) if peer not in self.entries]
        return self._rng.sample(known, len(known))

    def _discover(self):
        """Always offers itself, also where the other side should."""
        connected = len(self.neighbours)
        if connected >= max(1, int(0.8 * self.max_peers)):
            self._after(60.0, self._discover)
            return
        wanted = self._candidates()[: min(3, self.max_peers - connected)]
        self._ask_all(wanted, 0.5)
        self._fruitless = 0 if wanted else self._fruitless + 1
        soon = 10.0 if connected else 2.5
        self._after(soon if wanted else min(60.0, 5.0 * 2**self._fruitless), self._discover)

    def _check_connectivity(self):
        self._after(20.0, self._check_connectivity)
        if len(self.entries) >= self.min_peers:
            return
        wanted = [peer for peer in self._candidates() if self._tries[peer] < 3][:2]
        self._ask_all(wanted, 1.0)
        for peer in wanted:
            self._tries[peer] += 1
            self._not_before[peer] = self.now + min(60.0, 5.0 * 2 ** self._tries[peer])

    def _check_half_open(self):
        """Who was to make an offer and did not is given up. Who was sent one and does not answer never is."""
        self._after(30.0, self._check_half_open)
        for peer, entry in list(self.entries.items()):
            if entry.state is State.WAITING and self.now >= entry.since + 30.0:
                self._drop(peer)

    def _ask_all(self, peers, pause):
        for place, peer in enumerate(peers):
            if place:
                self._after(place * pause, self._request_as_initiator, peer)
            else:
                self._request_as_initiator(peer)

    # --- from the service ---------------------------------------------------------------------------------------------

    def signaled(self, text):
        """A text came from the signaling service."""
        message = json.loads(text)
        if not isinstance(message, dict):
            self._die(f"the service said {text:.40}")
            return
        self.signals.append(message)
        match message.get("type"):
            case "bootstrap_peers":
                self._routing.update(dict.fromkeys(self._ids([peer.get("id") for peer in message["peers"]])))
            case "peer_joined":
                self._on_peer_joined(message.get("peerId"))
            case "signal":
                self._on_signal(message.get("from"), message.get("signal"))
            case "batched_signals":
                for signal in message["signals"]:
                    self._on_signal(message.get("from"), signal)
            case "connection_rejected":
                self._on_rejected(message.get("from"), message.get("alternativePeers"))
            case "signal_rejected":
                self._on_signal_rejected(message.get("from"), message.get("correctInitiator"))
            case _:
                pass  # logged

    def _on_peer_joined(self, peer):
        if not self._ids([peer]) or peer in self.entries:
            return
        if not self._request(peer, initiator=self.peer_id < peer):
            self._reject(peer)

    def _on_signal(self, peer, signal):
        if not self._ids([peer]):
            return
        entry = self.entries.get(peer)
        match signal.get("type"):
            case "offer" if entry is None:
                self._on_unexpected_offer(peer, signal)
            case "offer" if entry.state is State.WAITING:
                entry.state = State.CONNECTING
                self._answer(peer, signal)
            case "offer" if entry.state is State.OPEN:  # taken for a renegotiation: no channel will come of it
                self.zombies.append(peer)
            case "offer":
                self.lost_offers.append(peer)
            case "answer" if entry is not None and entry.state is State.OFFERING:
                entry.state = State.CONNECTING
                self._complete(peer, signal)
            case "answer" | "candidate" | "renegotiate" | "transceiverRequest":
                pass
            case _:
                if entry is not None:
                    self._drop(peer)

    def _on_unexpected_offer(self, peer, offer):
        if self.peer_id < peer:
            conflict = {"reason": "initiator_conflict", "correctInitiator": self.peer_id}
            self._say({"type": "signal_rejected", "to": peer, **conflict})
            self._after(0.1, self._request_as_initiator, peer)
        elif self._request(peer, initiator=False):
            self._on_signal(peer, offer)
        else:
            self._reject(peer)

    def _on_rejected(self, peer, alternatives):
        self.rejections.append(peer)
        self._drop_half_open(peer)
        self._alternatives = self._ids(alternatives)
        if len(self.neighbours) < self.max_peers // 2:
            self._ask_all([other for other in self._alternatives if other not in self.entries][:2], 1.0)

    def _on_signal_rejected(self, peer, initiator):
        self._drop_half_open(peer)
        if initiator == self.peer_id and self._ids([peer]):
            self._after(self._rng.uniform(0.2, 0.5), self._offer_after_conflict, peer)

    def _offer_after_conflict(self, peer):
        if len(self.neighbours) < self.max_peers:
            self._request(peer, initiator=True)

    # --- what carries it says -----------------------------------------------------------------------------------------

    def described(self, peer, signal):
        """Offer or answer are ready, all candidates inside."""
        self._say({"type": "signal", "to": peer, "from": self.peer_id, "signal": signal})

    def opened(self, peer):
        self.entries[peer].state = State.OPEN
        self._routing[peer] = None

    def closed(self, peer):
        """The link is gone, or the attempt has failed."""
        self.entries.pop(peer, None)

    # --- over links ---------------------------------------------------------------------------------------------------

    def heard(self, peer, frame):
        """A frame came over the link to this peer."""
        text = frame if isinstance(frame, str) else frame.decode(errors="replace")
        if len(text.encode()) > MAX_MESSAGE:
            self._die(f"a message of {len(text.encode())} bytes over a channel that carries {MAX_MESSAGE}")
        try:
            message = json.loads(text)
        except ValueError:
            self._tell_app(peer, text)
            return
        kind = message.get("type") if isinstance(message, dict) else None
        self.received[kind] += 1
        match kind:
            case "gossip":
                self._on_gossip(peer, message.get("data"))
            case "reconnection_data":
                self._on_evicted(peer, message)
            case "optimized_relay_signal":
                self._die("an optimized_relay_signal: it has no handler for those")
            case "connection_rejected":
                self._drop_half_open(peer)
            case "relay_signal":  # it discards those for itself, and passes others on to nowhere: none should come here
                self.strays.append((peer, message))
            case None if message or isinstance(message, dict | list):
                self._tell_app(peer, message)
            case None:
                pass
            case _:
                if kind not in SWALLOWED:
                    self._tell_app(peer, message)

    def _tell_app(self, peer, message):
        self.messages.append((peer, message))
        if not isinstance(message, dict) or message.get("type") != "direct":
            self.strays.append((peer, message))

    def _on_evicted(self, peer, notice):
        if not isinstance(notice.get("peers"), list):
            self._die("reconnection_data without peers")
            return
        self._alternatives = self._ids(notice["peers"])
        self.evictions.append((peer, notice))

    # --- what must not happen -----------------------------------------------------------------------------------------

    def _ids(self, peers):
        """These ids, if it survives them."""
        if not isinstance(peers, list):
            self._die(f"{peers!r:.60} where a list of ids should be")
            return []
        for peer in peers:
            if not isinstance(peer, str) or not is_peer_id(peer):
                self._die(f"{peer!r:.60} for an id")
                return []
        return [peer for peer in peers if peer != self.peer_id]

    def _die(self, why):
        self.deaths.append(why)
