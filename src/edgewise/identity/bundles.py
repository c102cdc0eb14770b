"""How trust bundles follow one another. Laws:

- the sequence grows when anything changes, and only then; so does each domain's own;
- of an organisation's own domains every one trusts every root that is trusted at all, the
  one that signs now first: which region a certificate may be of say its CA's constraints;
- a JWT key stands in the domain of the region that uses it, and in no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from msgspec import structs

from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode

MOST_ROOTS: Final = 16
"""In one domain."""


def successor(
    before: TrustBundles | None,
    own: Mapping[str, DomainBundle],
    federated: Mapping[str, DomainBundle],
    now: datetime,
) -> TrustBundles | None:
    """The next bundles, or None when ``before`` says it all. Sequences in ``own`` are ignored."""
    old = before.own if before is not None else {}
    numbered = {name: _numbered(old.get(name), bundle) for name, bundle in sorted(own.items())}
    others = dict(sorted(federated.items()))
    if before is not None and before.own == numbered and before.federated == others:
        return None
    # By the clock, so that a hub that was restored from a backup is ahead of its nodes again.
    last = before.sequence if before is not None else 0
    return TrustBundles(max(last + 1, int(now.timestamp())), numbered, others)


def _numbered(before: DomainBundle | None, after: DomainBundle) -> DomainBundle:
    if before is None:
        return structs.replace(after, sequence=1)
    if structs.replace(after, sequence=before.sequence) == before:
        return before
    return structs.replace(after, sequence=before.sequence + 1)


def read_bundles(signed: Signed) -> TrustBundles:
    """What is in it; the signature is checked elsewhere. Raises Untrusted."""
    if signed.purpose != "bundle/1":
        raise Untrusted(f"a {signed.purpose} came where trust bundles belong")
    return decode(signed.payload, TrustBundles, what="trust bundles", at_most=limits.BUNDLES)


def roots_for(bundles: TrustBundles, *domains: str) -> tuple[bytes, ...]:
    """DER roots to trust for these domains, the one that signs now first.

    Raises Untrusted for none at all, or for more than can be right.
    """
    found = dict.fromkeys(
        root for name in domains if name in bundles.own for root in bundles.own[name].x509
    )
    if not 1 <= len(found) <= MOST_ROOTS:
        raise Untrusted(f"the trust bundles hold {len(found)} roots for {', '.join(domains)}")
    return tuple(found)
