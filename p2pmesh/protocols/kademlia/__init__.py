"""The DHT: who is nearest to a key, and values that the k nearest peers hold.

Kademlia (Maymounkov and Mazieres, "A Peer-to-peer Information System Based on the XOR Metric", 2002). Read
`kademlia`, the core, then `routing_table`, `lookup`, `rpc`, `records`, `record_store` and `republish`.

In: links, requests that came over routes and what became of ours, and the application's puts, gets and searches. Out:
routes for requests, answers to those of others, and replies to the application.
"""
