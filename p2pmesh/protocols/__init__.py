"""The sans-IO cores: every decision of the protocols, and no input or output.

`core` says what a core is and what comes out of it, `inputs` and `notices` what goes in, `wiring` which core gets what.
Packages, one core each: `signaling`, `overlay`, `routing`, `broadcast`, `receipts`, `kademlia`, `islands`; `link` is
what goes on inside one link; `util` is what they share. They do not import one another.
"""
