"""Plain files: objects on the hub, the tree scanner, and the store of a node."""
