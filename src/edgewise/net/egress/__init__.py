"""The egress gateway: the node's apps call out through it, over mTLS with their own identity."""
