"""The signaling server: how peers find each other and exchange their first messages.

Modules, in reading order: `presence` (sans-IO: who is where, and what to tell whom), `rooms`, `requests` (the parser of
what clients send), `config`, `app` (connections, from the first byte to the last), `listening`, `http`, `proxies` and
`addresses` (whom a connection is from), `websocket`, `metrics`. In: a client's JSON messages. Out: bootstrap peers,
relayed messages, errors, `/healthz`, `/metrics`.
"""
