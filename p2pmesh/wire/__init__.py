"""What peers say to each other: typed messages, and the only parser of bytes that somebody else sent.

Modules, in reading order: `fields` (bounded fields), `messages` and `overlay` (what links carry), `signaling` (what
services carry), `codec` (bytes to messages and back), `payloads` (what an application sends), `packet_format` (how
frames share packets), `canonical` (what signatures cover). In: bytes. Out: messages within all bounds, or
`RemoteProtocolError`.
"""
