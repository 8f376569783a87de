"""Direct messages that go as packets: sealed for their receiver, by the contact record that it is asked for first."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from p2pmesh.config import MeshConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.routing.contacts import Contacts
from p2pmesh.protocols.routing.direct_sender import DirectMessage, Directs
from p2pmesh.protocols.routing.packets import content
from p2pmesh.protocols.routing.requests import PendingRequest, Requests
from p2pmesh.protocols.routing.sealed_box import seal
from p2pmesh.wire.codec import encode
from p2pmesh.wire.overlay import Contact, ContactReply, ContactRequest, Packet


@define(eq=False)
class _Inquiry:
    """Letters that wait for their receiver's contact record."""

    packet_id: str
    letters: dict[str, DirectMessage] = field(factory=dict)


class Letters:
    """Brings letters to peers without a link. See `directs.Carrier`."""

    def __init__(
        self,
        config: MeshConfig,
        me: PeerId,
        contacts: Contacts,
        errands: Requests,
        new_id: Callable[[], str],
        wall_ms: Callable[[float], int],
    ) -> None:
        self._patience = config.routing.patience
        self._slowest_link = config.broadcast.slowest_link
        self._me = me
        self._contacts = contacts
        self._errands = errands
        self._new_id = new_id
        self._wall_ms = wall_ms
        self._inquiries: dict[PeerId, _Inquiry] = {}
        self.directs: Directs
        """Who hears what became of each letter; set by who makes both."""

    def bring(self, peer: PeerId, letter: DirectMessage, now: float) -> None:
        """Begin to bring a letter; ends in `Directs.arrived` or `Directs.failed`."""
        letter.deadline = now + self._patience + letter.size / self._slowest_link
        contact = self._contacts.get(peer)
        if contact is not None:
            self._launch(peer, letter, contact, now)
        elif peer in self._inquiries:
            self._inquiries[peer].letters[letter.id] = letter
        else:
            self._inquire(peer, letter, now)

    def stop(self, peer: PeerId, message_id: str) -> None:
        """Nobody waits for it any more."""
        self._errands.cancel(message_id)
        inquiry = self._inquiries.get(peer)
        if inquiry is not None and inquiry.letters.pop(message_id, None) is not None and not inquiry.letters:
            del self._inquiries[peer]
            self._errands.cancel(inquiry.packet_id)

    def _inquire(self, peer: PeerId, letter: DirectMessage, now: float) -> None:
        inquiry = self._inquiries[peer] = _Inquiry(self._new_id(), {letter.id: letter})
        wall_ms = self._wall_ms(now)
        request = ContactRequest(contact=self._contacts.own(wall_ms))
        packet = Packet(
            id=inquiry.packet_id,
            kind="ask",
            from_=self._me,
            to=peer,
            timestamp=wall_ms,
            carry=encode(request),
            waits=True,
        )

        def on_arrival(response: Packet, _hops: int, now: float) -> None:
            self._answered(peer, response, now)

        def on_failure(reason: str, _now: float) -> None:
            self._unknown(peer, reason)

        self._errands.start(PendingRequest(packet, now + self._patience, on_arrival, on_failure, hurried=True), now)

    def _answered(self, peer: PeerId, response: Packet, now: float) -> None:
        try:
            reply = content(response.carry) if response.kind == "answer" else None
        except RemoteProtocolError:
            reply = None
        if not isinstance(reply, ContactReply) or not self._contacts.learn(peer, reply.contact):
            self._unknown(peer, f"{short(peer)} does not say how to write to it")
            return
        contact = reply.contact
        for letter in self._inquiries.pop(peer).letters.values():
            self._launch(peer, letter, contact, now)

    def _unknown(self, peer: PeerId, reason: str) -> None:
        for message_id in self._inquiries.pop(peer).letters:
            self.directs.failed(peer, message_id, reason)

    def _launch(self, peer: PeerId, letter: DirectMessage, contact: Contact, now: float) -> None:
        if letter.size > contact.max_payload:
            reason = (
                f"the payload has {letter.size} bytes: too large for {short(peer)}, which takes {contact.max_payload}"
            )
            self.directs.failed(peer, letter.id, reason)
            return
        try:
            sealed = seal(encode(letter.message), contact.box, self._me, peer, letter.id)
        except RemoteProtocolError as error:
            self.directs.failed(peer, letter.id, f"{short(peer)} can't be written to: {error}")
            return
        packet = Packet(
            id=letter.id,
            kind="tell",
            from_=self._me,
            to=peer,
            timestamp=self._wall_ms(now),
            sealed=True,
            carry=sealed,
            waits=True,
        )

        def on_arrival(response: Packet, _hops: int, _now: float) -> None:
            if response.kind == "ack":
                self.directs.arrived(peer, letter.id)
            else:
                self.directs.failed(peer, letter.id, refusal_of(response))

        def on_failure(reason: str, _now: float) -> None:
            self.directs.failed(peer, letter.id, reason)

        self._errands.start(PendingRequest(packet, letter.deadline, on_arrival, on_failure, hurried=True), now)


def refusal_of(response: Packet) -> str:
    """Why a receiver would not take a packet, in words."""
    if response.kind != "refusal":
        return f"{short(response.from_)} answered what was not asked"
    return f"{short(response.from_)} refused it: {response.carry[:200].decode('utf-8', 'replace')}"
