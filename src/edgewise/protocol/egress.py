"""Where the apps of a node may connect to: the part of a release that an EgressPolicy makes."""

from __future__ import annotations

from typing import Literal

import msgspec


class EgressRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One destination; see ``model.documents.egress.EgressRule`` for the fields' meaning."""

    host: str
    """Exact name, ``*.name``, address or network."""
    ports: tuple[int, ...] = (443,)
    mtls: bool = True
    protocol: Literal["HTTP", "TCP"] = "HTTP"
    spiffe_ids: tuple[str, ...] = ()
    trust: str = "Organisation"
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    """Paths below the node's own trust domain."""
    addresses: tuple[str, ...] = ()


class EgressRules(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="egress"
):
    """A policy as the node follows it."""

    name: str
    """Of the EgressPolicy document, for explanations."""
    apps: tuple[str, ...] = ()
    """Whom it concerns; empty: every app of the node."""
    allow: tuple[EgressRule, ...] = ()
    otherwise: Literal["Deny", "Allow"] = "Deny"
    enforce: bool = False
