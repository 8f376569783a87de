"""Broadcast: every peer gets every message once, while links come and go.

Plumtree (Leitao, Pereira, Rodrigues: Epidemic Broadcast Trees, SRDS 2007), with a tree for each origin, acks on every
hop, and anti-entropy below it. To be read in this order: `broadcast` (the core), `publisher`, `validation`,
`message_store`, `plumtree` (which links are eager and which are lazy), `eager_push`, `lazy_push` (announcements and
grafts), `anti_entropy`, `legacy` (the original's peers); `fifo_order` is for subscriptions
that want each origin's broadcasts in order.

In go what neighbours send and what the application publishes; out go frames, events, and notices to the receipts.
"""
