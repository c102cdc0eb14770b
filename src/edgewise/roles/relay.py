"""The relay: what it is made of."""
