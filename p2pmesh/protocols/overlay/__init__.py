"""The overlay: which links a peer has. A ring of ids (Chord) with long links across (Kleinberg), within `max_peers`.

In reading order: `overlay` (the core), `slots` (the neighbours), `link_manager` (how slots are taken, handed on and
freed), `admission` (which peers are let in), `dial_policy` (which links are missing, or wanted by the application),
`passive_view` (what is known of other peers); on the ring `successor_list` (the view, and what neighbours tell each
other), `ring_join` (our place), `fix_fingers` (long links), `find_successor` (answers to look-ups of others).

In go links that open and end, offers, messages of neighbours, named peers; out come links to open, answer and drop.
"""
