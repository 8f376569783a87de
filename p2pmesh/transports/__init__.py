"""Signaling transports: how peers without a link yet bring offers to one another.

Modules, in reading order: `transport` (the contract), `registry` (kinds by name and URL scheme, plug-ins included),
`connection` (what all carriers of text share), `websocket` with `address` and `diagnostics`, `memory` (within one
process). In: a URL or config, signaling messages. Out: a connection of typed signaling messages, or a `TransportError`
that says what to do.
"""
