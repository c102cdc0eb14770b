"""Sockets, TLS and HTTP: the only place that knows them."""
