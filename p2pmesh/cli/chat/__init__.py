"""A chat for terminals and pipes: everything said is a broadcast or a direct message of a mesh.

`command` is what `p2pmesh chat` runs; it makes a `session` (what people say to one another, and which messages that
takes), which keeps a `roster` (who is there, under which name) and talks to a `terminal` (lines in, lines out).
"""
