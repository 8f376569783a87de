"""Receipts: how many peers have a broadcast, counted back along the way it took.

An echo algorithm (Chang, "Echo Algorithms", 1982), made to last when links and peers don't. Read `receipts`, the
core, then `tally`, what is known of who has one broadcast, and `outbox`, how receipts get from peer to peer.

In: what the broadcast core says of our broadcasts and their children, receipts of others, links. Out: receipts for
parents and origins, over links and routes, and what the application is told: delivered or failed, and how far.
"""
