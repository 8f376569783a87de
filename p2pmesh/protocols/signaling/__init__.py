"""Signaling: joining the services, and bringing offers and answers to their peers, each with its proof.

WebRTC leaves this to the application (RFC 8825, section 3). Read `signaling` (the core), then `delivery` (which way an
offer goes, and the next one where that fails), `offer_answer` (what is believed, and what is said to offers),
`handshake` (the proofs) and `service_sessions` (joins, and pings through services).

In: messages of services and of routes, descriptions of our own link layer, what the overlay accepts or rejects.
Out: messages to services, routes, checked offers (overlay), checked answers and candidates (link layer).
"""
