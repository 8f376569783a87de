"""Links: an open channel of frames between two peers, and what opens one."""
