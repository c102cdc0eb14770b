"""Whom to trust: the roots and JWT keys of every trust domain, signed by the hub.

It travels as ``Signed`` with the purpose ``bundle/1``, made with the hub's channels key like a
node record, so that a relay can pass it on and cannot change it. A root is rotated by
publishing both for as long as the slowest node needs.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgewise.protocol.channel import Signed


class DomainBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trust domain's keys (SPIFFE Trust Domain and Bundle specification, section 4)."""

    x509: tuple[bytes, ...]
    """DER root certificates; several while a root is being replaced."""
    jwt: dict[str, bytes] = {}
    """Key ID to DER SubjectPublicKeyInfo of an ECDSA P-256 key."""
    sequence: int = 1
    """``spiffe_sequence``."""
    refresh_hint_s: int = 300
    """``spiffe_refresh_hint``."""


class TrustBundles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a node of this organisation trusts."""

    sequence: int
    """Grows with every change; a node refuses a smaller one than it has."""
    own: dict[str, DomainBundle]
    """The organisation's trust domains: the hub's and every region's."""
    federated: dict[str, DomainBundle] = {}
    """Other organisations' trust domains, which workloads may be told to trust."""
    schema: Literal[1] = 1


class TrustReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of GET /v1/trust, for anyone."""

    bundles: Signed | None = None
    """None: this relay has none yet."""
    metadata: dict[str, bytes] = {}
    """TUF files by name: every root after the first, timestamp, snapshot and targets."""
