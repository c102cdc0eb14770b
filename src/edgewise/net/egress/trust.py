"""TLS contexts for calling out: whose certificate we show, and whose we take.

Each context holds the roots of just the trust domains that the rule names, because any of
their authorities could otherwise speak for the others (SPIFFE federation).
"""

from __future__ import annotations

import ssl
from typing import Final

from edgewise.identity.egress import Allowed, Refused, expected_peers
from edgewise.identity.workload_ports import LocalSvid
from edgewise.net.egress.ports import Credentials
from edgewise.net.tls import load_svid
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.egress import EgressRule
from edgewise.runtime.credentials import pem_of

CONTEXTS: Final = 256
"""Kept; about 30 KB each. All go when it is full, and with every rotation."""


class Contexts:
    """Makes and keeps them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, bytes, tuple[bytes, ...], bool, bool], ssl.SSLContext] = {}

    def of(self, credentials: Credentials, allowed: Allowed) -> ssl.SSLContext | Refused:
        """For a rule with ``mtls``."""
        roots = roots_of(allowed, credentials.bundles)
        if isinstance(roots, Refused):
            return roots
        rule, svid = allowed.rule, credentials.svid
        by_name, http = not rule.spiffe_ids, rule.protocol == "HTTP"
        key = (svid.spiffe_id, svid.chain[0], roots, by_name, http)
        context = self._kept.get(key)
        if context is None:
            try:
                context = _context(svid, roots, rule)
            except (ssl.SSLError, OSError, ValueError) as error:
                return Refused(
                    "identity",
                    f"the identity {svid.spiffe_id} or the roots to trust cannot be used: {error}",
                    "look at the agent's log",
                    allowed.name,
                )
            if len(self._kept) >= CONTEXTS:
                self._kept.clear()
            self._kept[key] = context
        return context


def roots_of(allowed: Allowed, bundles: TrustBundles) -> tuple[bytes, ...] | Refused:
    """The roots that count for a rule; empty for the machine's own list."""
    rule = allowed.rule
    if rule.trust == "System" and not rule.spiffe_ids:
        return ()
    if rule.spiffe_ids:
        domains = expected_peers(rule)
    elif rule.trust == "Organisation":
        domains = frozenset(bundles.own)
    else:
        domains = frozenset({rule.trust})
    known = {name: _bundle(name, bundles) for name in domains}
    missing = sorted(name for name, bundle in known.items() if bundle is None)
    if missing or not known:
        return Refused(
            "untrusted",
            f"the node has no roots of trust domain {', '.join(missing) or 'its own'}",
            "federate with it, or correct the trust domain in the rule",
            allowed.name,
        )
    if len(domains) > 1 and not domains <= bundles.own.keys():
        return Refused(
            "untrusted",
            f"one rule trusts several organisations: {', '.join(sorted(domains))}",
            "write a rule for each",
            allowed.name,
        )
    found = {root for bundle in known.values() if bundle is not None for root in bundle.x509}
    return tuple(sorted(found))


def _bundle(name: str, bundles: TrustBundles) -> DomainBundle | None:
    return bundles.own.get(name) or bundles.federated.get(name)


def _context(svid: LocalSvid, roots: tuple[bytes, ...], rule: EgressRule) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = not rule.spiffe_ids
    if roots:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=pem_of(roots))
    else:
        context.load_default_certs()
    if rule.protocol == "HTTP":
        context.set_alpn_protocols(["http/1.1"])
    load_svid(context, svid)
    return context
