"""Trust bundles: how they follow each other, and the SPIFFE bundle format."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from identity_of import Hub

from edgewise.backends.pki.certificates import make_key
from edgewise.identity import spiffe_bundle
from edgewise.identity.bundles import roots_for, successor
from edgewise.identity.jwt_svid import key_id
from edgewise.identity.signatures import spki_of
from edgewise.model.errors import Untrusted
from edgewise.protocol.bundles import DomainBundle, TrustBundles

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def keys(count: int = 1) -> dict[str, bytes]:
    made = [spki_of(make_key()) for _ in range(count)]
    return {key_id(spki): spki for spki in made}


def test_bundles_grow_only_when_something_changes_and_each_domain_by_itself() -> None:
    own = {"hub.acme": DomainBundle((b"r",)), "eu.acme": DomainBundle((b"r",), {"k": b"1"})}
    first = successor(None, own, {}, NOW)
    assert first is not None
    assert first.sequence == int(NOW.timestamp())
    assert successor(first, own, {}, NOW + timedelta(days=1)) is None
    more = {**own, "eu.acme": DomainBundle((b"r",), {"k": b"1", "l": b"2"})}
    second = successor(first, more, {}, NOW)
    assert second is not None
    assert second.sequence == first.sequence + 1
    assert (second.own["eu.acme"].sequence, second.own["hub.acme"].sequence) == (2, 1)
    third = successor(second, more, {"other.org": DomainBundle((b"x",))}, NOW)
    assert third is not None
    assert third.own == second.own


def test_a_hub_from_a_backup_is_ahead_of_its_nodes_again() -> None:
    old = successor(None, {"hub.acme": DomainBundle((b"r",))}, {}, NOW)
    lost = successor(old, {"hub.acme": DomainBundle((b"s",))}, {}, NOW + timedelta(hours=1))
    again = successor(old, {"hub.acme": DomainBundle((b"t",))}, {}, NOW + timedelta(hours=2))
    assert lost is not None
    assert again is not None
    assert again.sequence > lost.sequence


def test_bundles_that_would_leave_a_machine_without_a_root_are_refused() -> None:
    with pytest.raises(Untrusted, match="0 roots"):
        roots_for(TrustBundles(1, {"eu.acme": DomainBundle(())}), "eu.acme", "hub.acme")
    many = tuple(bytes([n]) for n in range(17))
    with pytest.raises(Untrusted, match="17 roots"):
        roots_for(TrustBundles(1, {"eu.acme": DomainBundle(many)}), "eu.acme")


def test_a_bundle_is_what_the_specification_asks_for_and_reads_back(hub: Hub) -> None:
    bundle = DomainBundle(hub.authority.roots, keys(2), 7, 600)
    document = json.loads(spiffe_bundle.render(bundle))
    assert document["spiffe_sequence"] == 7
    assert document["spiffe_refresh_hint"] == 600
    root, *jwt = document["keys"]
    assert root["use"] == "x509-svid"
    assert (root["kty"], root["crv"], len(root["x5c"])) == ("EC", "P-256", 1)
    assert {(k["use"], k["kty"], k["crv"]) for k in jwt} == {("jwt-svid", "EC", "P-256")}
    assert {k["kid"] for k in jwt} == set(bundle.jwt)
    assert spiffe_bundle.read(spiffe_bundle.render(bundle)) == bundle


def test_entries_that_are_not_understood_are_passed_over(hub: Hub) -> None:
    document = json.loads(spiffe_bundle.render(DomainBundle(hub.authority.roots, keys())))
    good = document["keys"]
    document["keys"] = [
        {"use": "wit-svid", "kty": "EC"},
        {"kty": "EC"},
        {"use": "jwt-svid", "kty": "OKP", "kid": "e"},
        {"use": "jwt-svid", "kty": "EC", "crv": "P-384", "kid": "f", "x": "AA", "y": "AA"},
        {"use": "x509-svid", "kty": "EC", "x5c": []},
        {"use": 7},
        "no key",
        *good,
    ]
    document["something_new"] = {"a": 1}
    found = spiffe_bundle.read(json.dumps(document).encode())
    assert found.x509 == hub.authority.roots
    assert len(found.jwt) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"keys": []}, "no key"),
        ({"keys": "none"}, "malformed"),
        ({"keys": [{}] * 300}, "300 keys"),
        ({"spiffe_sequence": -1}, "no sensible sequence"),
        ({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["AAAA"]}]}, "cannot be read"),
        ({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["!"]}]}, "cannot be read"),
        (
            {"keys": [{"use": "jwt-svid", "kty": "EC", "crv": "P-256", "kid": "k", "x": "AA",
                       "y": "AA"}]},
            "no P-256 key",
        ),
    ],
)  # fmt: skip
def test_a_bundle_that_makes_no_sense_is_refused(
    hub: Hub, change: dict[str, object], why: str
) -> None:
    document = json.loads(spiffe_bundle.render(DomainBundle(hub.authority.roots, keys())))
    with pytest.raises(Untrusted, match=why):
        spiffe_bundle.read(json.dumps(document | change).encode())


@pytest.mark.parametrize(("hint", "seconds"), [(1, 60), (1e9, 86400), (900, 900)])
def test_a_refresh_hint_is_followed_within_bounds(hub: Hub, hint: float, seconds: int) -> None:
    document = json.loads(spiffe_bundle.render(DomainBundle(hub.authority.roots)))
    document["spiffe_refresh_hint"] = hint
    assert spiffe_bundle.read(json.dumps(document).encode()).refresh_hint_s == seconds


_ENTRY = st.dictionaries(
    st.sampled_from(["use", "kty", "kid", "crv", "x", "y", "x5c", "n"]),
    st.sampled_from(["x509-svid", "jwt-svid", "EC", "P-256", "k", "AAAA", "____"])
    | st.lists(st.text(max_size=8), max_size=2)
    | st.text(max_size=48)
    | st.integers()
    | st.none(),
)


@given(st.lists(_ENTRY, max_size=6), st.integers() | st.floats() | st.none())
def test_any_document_is_a_bundle_or_untrusted(
    entries: list[dict[str, object]], number: object
) -> None:
    document = {"keys": entries, "spiffe_sequence": number, "spiffe_refresh_hint": number}
    try:
        spiffe_bundle.read(json.dumps(document).encode())
    except Untrusted:
        return


@given(st.binary(max_size=400))
def test_any_bytes_are_a_bundle_or_untrusted(data: bytes) -> None:
    with pytest.raises(Untrusted):
        spiffe_bundle.read(data)


def test_foreign_roots_of_other_kinds_are_kept_as_they_are() -> None:
    """Only their JWT keys must be P-256."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    from cryptography.hazmat.primitives import hashes, serialization

    der = builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)
    bundle = DomainBundle((der,), {}, 3, 300)
    assert spiffe_bundle.read(spiffe_bundle.render(bundle)) == bundle
