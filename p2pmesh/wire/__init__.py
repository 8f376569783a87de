"""What peers say to each other: typed messages, and the only parser of bytes that somebody else sent."""
