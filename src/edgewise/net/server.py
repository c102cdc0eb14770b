"""HTTPS servers: typed routes, client certificates, problem documents."""
