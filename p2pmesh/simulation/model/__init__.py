"""What both kinds of simulation share: how links behave, what stands between peers, time, and the record of a run.

Modules in reading order: `conditioner` (latency, loss and the rarer faults of a link), `obstacles` (partitions and
address translators), `reachability` (both, for peers known by id), `sdp_stub` (descriptions), `event_queue` and
`virtual_time` (the clock of bare peers, and of Trio), `trace` and `violations` (what happened, and what must not have).

In go conditions, seeds, frames' sizes and times; out come times of arrival, answers to "does this pass?", and hashes.
"""
