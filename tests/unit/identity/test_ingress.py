"""Who may call an app: names with and without a trust domain, and whose roots count."""

from __future__ import annotations

import re

import pytest

from edgewise.identity.ingress import admits, domains, roots
from edgewise.model.documents.ingress import CALLER
from edgewise.model.names import SpiffeId
from edgewise.protocol.bundles import DomainBundle, TrustBundles

BUNDLES = TrustBundles(
    1,
    {"eu.acme": DomainBundle((b"root",)), "us.acme": DomainBundle((b"root", b"next"))},
    {"bank.example": DomainBundle((b"bank",)), "post.example": DomainBundle((b"post",))},
)
OWN = frozenset(BUNDLES.own)


@pytest.mark.parametrize(
    ("allow", "peer", "admitted"),
    [
        ("/app/shops/till", "spiffe://eu.acme/app/shops/till", True),
        ("/app/shops/till", "spiffe://us.acme/app/shops/till", True),
        ("/app/shops/till", "spiffe://bank.example/app/shops/till", False),
        ("/app/shops/till", "spiffe://eu.acme/app/shops/till2", False),
        ("/app/shops/*", "spiffe://eu.acme/app/shops/till", True),
        ("/app/shops/*", "spiffe://eu.acme/app/shopsmith/till", False),
        ("/app/*", "spiffe://eu.acme/node/n1", False),
        ("spiffe://eu.acme/app/shops/till", "spiffe://us.acme/app/shops/till", False),
        ("spiffe://bank.example/app/*", "spiffe://bank.example/app/pay", True),
    ],
)
def test_only_who_is_named_may_call(allow: str, peer: str, admitted: bool) -> None:
    assert re.fullmatch(CALLER, allow)
    assert admits((allow,), SpiffeId.parse(peer), OWN) is admitted


@pytest.mark.parametrize(
    "allow", ["/node/n1", "/app", "/app/", "/app/*/till", "*", "spiffe://*/app/x"]
)
def test_a_name_that_is_no_workload_cannot_be_allowed(allow: str) -> None:
    assert not re.fullmatch(CALLER, allow)


def test_a_name_without_a_trust_domain_means_every_region_and_nobody_else() -> None:
    assert domains(["/app/a"], BUNDLES) == OWN
    assert roots(["/app/a"], BUNDLES) == (b"next", b"root")


def test_a_partner_counts_alone() -> None:
    assert roots(["spiffe://bank.example/app/a"], BUNDLES) == (b"bank",)


@pytest.mark.parametrize(
    ("allow", "why"),
    [
        (["/app/a", "spiffe://bank.example/app/a"], "several organisations"),
        (["spiffe://bank.example/app/a", "spiffe://post.example/app/a"], "several organisations"),
        (["spiffe://nobody.example/app/a"], "no roots of trust domain nobody.example"),
    ],
)
def test_roots_of_two_organisations_never_count_for_one_port(allow: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        domains(allow, BUNDLES)
