"""A network in a box, for tests."""
