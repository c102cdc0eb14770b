"""Certificates and sealed secrets: the only place that makes them."""
