"""Islands: parts of the mesh that lost each other find each other again and become one ring.

After Shafaat, Ghodsi, Haridi: Dealing with network partitions in structured overlay networks (2009).

Read `islands` (the core), then `detection` (who is missing, and whom to ask the services for), `bridge_merge` (which
links join two islands, and how that is made known) and `recovery` (until an island is healed).

In: broken links, what services name and show, outcomes of look-ups, floods of `merge`. Out: look-ups (routing), pings
(signaling), bridges (overlay), floods (neighbours), `IslandSuspected` and `IslandHealed` (application).
"""
