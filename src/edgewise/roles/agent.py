"""The agent: what it is made of."""
