"""May this caller reach that app? The rules of an App's ``ingress``. Pure.

Laws: who is not named is refused; a name that comes without a trust domain means any domain
of the organisation and no other's; the roots of two organisations never count for one port,
because either could speak for the other (SPIFFE federation, section 7).
"""

from __future__ import annotations

from collections.abc import Collection

from edgewise.model.names import SpiffeId
from edgewise.protocol.bundles import TrustBundles


def domains(allow: Collection[str], bundles: TrustBundles) -> frozenset[str]:
    """Trust domains whose roots count for these callers.

    Raises ValueError with the reason for callers of several organisations, or of a domain
    that the node has no roots of.
    """
    named = {_split(one)[0] for one in allow}
    found = {domain for domain in named if domain}
    if "" in named:
        found |= set(bundles.own)
    known = bundles.own.keys() | bundles.federated.keys()
    if missing := sorted(found - known):
        raise ValueError(f"the node has no roots of trust domain {', '.join(missing)}")
    foreign = found - bundles.own.keys()
    if foreign and len(found) > 1:
        raise ValueError(f"one ingress trusts several organisations: {', '.join(sorted(found))}")
    return frozenset(found)


def roots(allow: Collection[str], bundles: TrustBundles) -> tuple[bytes, ...]:
    """DER roots of those domains, in order. Raises ValueError as ``domains``."""
    found: set[bytes] = set()
    for domain in domains(allow, bundles):
        bundle = bundles.own.get(domain) or bundles.federated[domain]
        found.update(bundle.x509)
    return tuple(sorted(found))


def admits(allow: Collection[str], peer: SpiffeId, own: Collection[str]) -> bool:
    """Whether a caller whose certificate was verified is named. ``own``: the organisation's
    trust domains."""
    return any(_fits(one, peer, own) for one in allow)


def _fits(one: str, peer: SpiffeId, own: Collection[str]) -> bool:
    domain, path = _split(one)
    if peer.trust_domain != domain if domain else peer.trust_domain not in own:
        return False
    if path.endswith("/*"):
        return peer.path.startswith(path[:-1])
    return peer.path == path


def _split(one: str) -> tuple[str, str]:
    if not one.startswith("spiffe://"):
        return "", one
    domain, _, path = one.removeprefix("spiffe://").partition("/")
    return domain, f"/{path}"
