"""SQLite: the embedded state of a hub, and of a node."""
