"""The sans-IO cores: every decision of the protocols, and no input or output."""
