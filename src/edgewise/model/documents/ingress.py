"""Ingress: an app that others call over mTLS, with the node's gateway in front of it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgewise.model.documents.words import Port, Strict, Text

CALLER = r"^(spiffe://[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?)?/app(/[A-Za-z0-9._-]+)*/([A-Za-z0-9._-]+|\*)$"

AllowedCaller = Annotated[
    str, Meta(pattern=CALLER, max_length=2048, extra={"like": "/app/shops/till or /app/shops/*"})
]


class IngressRule(Strict, frozen=True, kw_only=True):
    """One port of the node that leads to the app."""

    port: Port
    """On the node. TLS 1.3, with the app's own SVID."""
    to: Port
    """The app's port on 127.0.0.1; bytes arrive there without TLS."""
    allow: Annotated[tuple[AllowedCaller, ...], Meta(min_length=1, max_length=64)]
    """Who may call: ``/app/shops/till`` in any region, ``/app/shops/*`` for everything below, or
    with its trust domain (``spiffe://eu.acme/app/shops/till``). Callers of another organisation
    need an ingress of their own."""
    address: Text = "0.0.0.0"
    """Address to listen on."""
