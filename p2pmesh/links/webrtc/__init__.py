"""Links over WebRTC data channels (RFC 8831), through aiortc. The only package that imports asyncio.

Modules, in reading order: `dialer` (attempts at links), `carrier` (one peer connection and its data channel),
`event_loop` (asyncio on top of Trio), `eager_coroutine`, `server_pool` (STUN and TURN servers); then aiortc made robust
and fast from outside: `ice_patch`, `sctp_patch`, and `aiortc_patch` (DTLS, which versions are known). In: offers,
answers, packets. Out: a `SessionLink` for each open channel; whatever aiortc raises ends one link.

`deferred_av` comes before all of them: it imports aiortc without PyAV.
"""

from p2pmesh.links.webrtc import deferred_av as deferred_av
