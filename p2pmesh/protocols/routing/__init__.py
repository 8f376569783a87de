"""Routing: a message to any peer over the links of others, and direct messages on top of it.

Greedy routing on a small-world ring with lookahead (Kleinberg 2000; Manku, Naor, Wieder 2004).
Read `routing` (the core), `packets`, `forwarding_table`, `relay`, `requests`; then `direct_sender`, `receiver`, `sealed_box`.
In: links, packets and direct messages of neighbours, `Route` of other cores, `SendDirect` of the application.
Out: packets and direct messages to neighbours, one `RouteSucceeded` or `RouteFailed` for each `Route`, `RoutedReceived` for
the core that a message is for, one `Reply` for each call, `DirectReceived` for the application.
"""
