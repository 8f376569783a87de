"""Routing: a message to any peer over the links of others, and direct messages on top of it.

Papers: Kleinberg 2000 (greedy routing in small worlds); Manku, Naor, Wieder 2004 (with one step of lookahead).
Read `routing` (the core), `packets`, `forwarding_table`, `relay`, `requests`; then `direct_sender`, `receiver` and
`sealed_box`. In: links, packets and direct messages of neighbours, `Route` of other cores, `SendDirect` of the
application. Out: packets and direct messages to neighbours; one `RouteSucceeded` or `RouteFailed` for each `Route`, and
one `Reply` for each call; `RoutedReceived` for the core that a message is for, `DirectReceived` for the application.
"""
