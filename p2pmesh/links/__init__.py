"""Links: an open channel of frames between two peers, and what opens one.

Modules, in reading order: `link` (the contracts `Link`, `Attempt` and `Dialer`), `session_link` (a link over any
carrier of packets, decided by `protocols.link.session`), `webrtc/` (links over data channels). In: frames to send,
offers and answers. Out: frames received, `LinkError` when a link has failed. Simulated links fulfil the same contracts
(`simulation.full`).
"""
