"""Signaling transports: how peers that have no link yet bring offers to one another."""
