"""What goes on inside one link: packets of a carrier in and out, frames of the application in and out.

Credits and lanes after HTTP/2 (RFC 9113); keepalive after SWIM with Lifeguard (Dadgar, Phillips, Currey 2018).

Read `session` (one end of a link), then `lanes` (frames to packets and back, within credit), `keepalive` (silence,
doubt, round trips) and `legacy_session` (the same for a link to the original's peers). No core: each link's shell owns
one session, feeds it packets, frames and the time, and asks it for packets, frames and its next deadline.
"""
