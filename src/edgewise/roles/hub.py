"""The hub: what it is made of."""
