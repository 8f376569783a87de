"""Signaling: joining the services, and bringing offers and answers to their peers, each with its proof.

Read `signaling` (the core), then `delivery` (which way a signal goes, and the next one where that fails),
`offer_answer` (what is said, and what is believed), `handshake` (the proofs) and `service_sessions` (joins, and pings
through services).

In: messages of services and of routes, descriptions and candidates of our own link layer, what the overlay accepts or
rejects. Out: messages to services, routes, checked offers (overlay), checked answers and candidates (link layer).
"""
