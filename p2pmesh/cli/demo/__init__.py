"""A mesh of processes on this machine, counted message by message: `p2pmesh demo`.

Read in this order: `command` (the options), `coordinator` (starts the processes and leads them through the stages),
`protocol` (what it and they tell each other over pipes), `worker` (one peer's process), `server` (the signaling
server's process), `partition` (drops packets between the halves), `report` (what came of it), `view` (as text),
`plot` (as a picture).
"""
