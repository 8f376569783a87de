"""The Trio shell that drives the cores."""
