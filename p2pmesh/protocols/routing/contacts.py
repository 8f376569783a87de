"""Contact records: our own, and those of peers that we send sealed messages to."""

from __future__ import annotations

from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.routing.sealed_box import contact_of, is_contact_of
from p2pmesh.protocols.util.lru_table import LruTable
from p2pmesh.wire.overlay import Contact


class Contacts:
    """A bounded number of records, those used last."""

    def __init__(self, identity: Identity, max_payload: int, limit: int) -> None:
        self._identity = identity
        self._max_payload = max_payload
        self._own: Contact | None = None
        self._known = LruTable[Contact](limit)

    def __len__(self) -> int:
        return len(self._known)

    def own(self, wall_ms: int) -> Contact:
        """Our own record, made when it is first asked for."""
        if self._own is None:
            self._own = contact_of(self._identity, self._max_payload, wall_ms)
        return self._own

    def get(self, peer: PeerId) -> Contact | None:
        """This peer's record, if we have it."""
        contact = self._known.get(peer)
        if contact is not None:
            self._known.put(peer, contact)
        return contact

    def learn(self, peer: PeerId, contact: Contact) -> bool:
        """Keep a record unless we have a newer one. Whether it is really this peer's."""
        known = self._known.get(peer)
        if contact == known:
            return True
        if not is_contact_of(contact, peer):
            return False
        self._known.put(peer, contact if known is None or known.serial < contact.serial else known)
        return True
