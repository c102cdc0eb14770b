"""The Workload API of a node: HTTP/2 and gRPC over a unix socket, and what is served on it."""
