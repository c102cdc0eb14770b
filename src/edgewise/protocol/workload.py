"""Identities of workloads: what a node asks of its relay or hub for the apps on it.

``POST /v1/workloads``, over the node's own mTLS. The node makes the keys; which paths it may
ask for says its signed record (``NodeRecord.identities``), so a relay can answer while the
hub is away and a node cannot take the identity of an app that it does not run.
"""

from __future__ import annotations

from datetime import datetime

import msgspec


class X509Wanted(msgspec.Struct, frozen=True):
    """One X509-SVID."""

    path: str
    """Of the SPIFFE ID, below the node's own trust domain: ``/app/shops/till``."""
    csr: bytes
    """DER PKCS#10; only its key counts."""
    dns: tuple[str, ...] = ()
    """Names for servers of this workload; must be among those that its record allows."""
    ttl_s: float = 0.0
    """Asked lifetime in seconds; 0: the issuer's own. An issuer may give less, never more."""


class JwtWanted(msgspec.Struct, frozen=True):
    """One JWT-SVID."""

    path: str
    audience: tuple[str, ...]
    ttl_s: float = 0.0
    """As in ``X509Wanted``."""


class WorkloadRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most ``limits.WORKLOADS`` of both together."""

    x509: tuple[X509Wanted, ...] = ()
    jwt: tuple[JwtWanted, ...] = ()


class X509Svid(msgspec.Struct, frozen=True):
    """An X509-SVID specification document, for the key in the request."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    """DER, leaf first, without the root."""
    not_before: datetime
    not_after: datetime
    dns: tuple[str, ...] = ()
    """The names that it carries: a relay can only give those below its trust domain
    (docs/adr/0006); the hub gives all that were asked for."""


class JwtSvid(msgspec.Struct, frozen=True):
    """JWT-SVID specification, compact serialisation, ES256."""

    spiffe_id: str
    token: str
    issued: datetime
    expires: datetime


class WorkloadReply(msgspec.Struct, frozen=True):
    """As many answers as there were requests, in their order; all or an error."""

    x509: tuple[X509Svid, ...] = ()
    jwt: tuple[JwtSvid, ...] = ()
