"""ID tokens: the good one, and every way a bad one is refused."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from edgewise.identity.id_tokens import Expected, Jwk, checked, key_of, opened
from edgewise.model.errors import EdgewiseError, Forbidden, Untrusted
from edgewise.net.oidc import OidcSettings, person_of
from edgewise.testing.oidc import CLIENT, OidcProviderFake, b64, number

PROVIDER = OidcProviderFake()
PROVIDER.issuer = "https://id.example"
NUMBERS = PROVIDER.rsa.public_key().public_numbers()
CURVE = PROVIDER.ec.public_key().public_numbers()
RSA = Jwk("RSA", "k1", "sig", n=number(NUMBERS.n), e=number(NUMBERS.e))
X, Y = (b64(value.to_bytes(32, "big")) for value in (CURVE.x, CURVE.y))
EC = Jwk("EC", "k1-ec", crv="P-256", x=X, y=Y)
KEYS = (RSA, EC)
EXPECTED = Expected(PROVIDER.issuer, CLIENT, "n-1")


def judged(text: str, keys: tuple[Jwk, ...] = KEYS) -> Any:
    token = opened(text)
    key = key_of(token, keys)
    if key is None:
        raise Untrusted("its key is not published")
    return checked(token, key, EXPECTED, datetime.now(UTC))


@pytest.fixture(autouse=True)
def good() -> None:
    PROVIDER.claims, PROVIDER.header, PROVIDER.algorithm = {}, {}, "RS256"


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256"])
def test_a_good_token_names_its_person(algorithm: str) -> None:
    PROVIDER.algorithm = algorithm
    assert judged(PROVIDER.token("n-1"))["email"] == "anna.schmidt@acme.example"


NOW = int(time.time())


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": "another"}, "another client"),
        ({"aud": None}, "another client"),
        ({"aud": [CLIENT, "another"]}, "azp"),
        ({"azp": "another"}, "azp"),
        ({"exp": NOW - 3600}, "expired"),
        ({"exp": None}, "exp"),
        ({"exp": "tomorrow"}, "exp"),
        ({"exp": True}, "exp"),
        ({"iat": None}, "iat"),
        ({"iat": NOW + 3600}, "future"),
        ({"iat": NOW - 3600}, "too long ago"),
        ({"nbf": NOW + 3600}, "future"),
        ({"nonce": "n-2"}, "another login"),
        ({"sub": None}, "nobody"),
        ({"sub": ""}, "nobody"),
        ({"sub": 7}, "nobody"),
    ],
)
def test_a_token_that_says_something_else_is_refused(claims: dict[str, Any], why: str) -> None:
    PROVIDER.claims = claims
    with pytest.raises(Untrusted, match=why):
        judged(PROVIDER.token("n-1"))


def test_two_audiences_are_fine_when_it_was_issued_to_us() -> None:
    PROVIDER.claims = {"aud": [CLIENT, "another"], "azp": CLIENT}
    judged(PROVIDER.token("n-1"))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "None", "RS1"])
def test_an_unsigned_token_and_one_signed_with_the_public_key_are_refused(algorithm: str) -> None:
    PROVIDER.header = {"alg": algorithm}
    with pytest.raises(Untrusted, match="none that we take"):
        judged(PROVIDER.token("n-1"))


def test_the_kind_of_key_decides_and_not_the_header() -> None:
    for algorithm, kid in (("RS256", "k1-ec"), ("ES256", "k1"), ("EdDSA", "k1")):
        PROVIDER.algorithm, PROVIDER.header = algorithm, {"kid": kid}
        with pytest.raises(Untrusted, match="not published"):
            judged(PROVIDER.token("n-1"))


def test_a_key_for_encryption_or_another_algorithm_signs_nothing() -> None:
    for key in (msgspec.structs.replace(RSA, use="enc"), msgspec.structs.replace(RSA, alg="PS256")):
        with pytest.raises(Untrusted, match="not published"):
            judged(PROVIDER.token("n-1"), (key,))


def test_a_foreign_a_weak_and_a_broken_key_are_refused() -> None:
    other = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    for key in (
        msgspec.structs.replace(RSA, n=number(other.n)),
        msgspec.structs.replace(RSA, n=number(other.n >> 1100)),
        msgspec.structs.replace(RSA, n="!", e=""),
    ):
        with pytest.raises(Untrusted, match="signature"):
            judged(PROVIDER.token("n-1"), (key,))


def test_without_a_key_id_only_a_single_fitting_key_is_taken() -> None:
    PROVIDER.header = {"kid": ""}
    judged(PROVIDER.token("n-1"))
    with pytest.raises(Untrusted, match="not published"):
        judged(PROVIDER.token("n-1"), (RSA, msgspec.structs.replace(RSA, kid="k2")))


def test_a_header_that_must_be_understood_is_refused() -> None:
    PROVIDER.header = {"crit": ["exp"]}
    with pytest.raises(Untrusted, match="do not know"):
        judged(PROVIDER.token("n-1"))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_goes_unnoticed(position: int, flip: int) -> None:
    text = PROVIDER.token("n-1")
    data = bytearray(text.encode())
    data[position % len(data)] ^= flip
    changed = data.decode("latin-1")
    if changed == text:
        return
    try:
        claims = judged(changed)
    except EdgewiseError:
        return
    # Only the unused bits of a part's last character may differ.
    assert claims["sub"] == "248289761001"


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{0,80}(\.[A-Za-z0-9_-]{0,80}){0,3}"))
def test_any_text_is_refused_and_never_a_fault(text: str) -> None:
    with pytest.raises(Untrusted):
        judged(text)


@given(
    st.dictionaries(
        st.sampled_from(["iss", "aud", "azp", "exp", "iat", "nbf", "nonce", "sub"]),
        st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.text()),
    )
)
def test_claims_of_any_kind_are_judged_and_never_a_fault(claims: dict[str, Any]) -> None:
    PROVIDER.claims, PROVIDER.header, PROVIDER.algorithm = claims, {}, "ES256"
    try:
        judged(PROVIDER.token("n-1"))
    except Untrusted:
        return


# Who it is.

SETTINGS = OidcSettings("https://id.example", CLIENT)
CLAIMS = {"iss": "https://id.example", "sub": "7", "email": "Anna.Schmidt@acme.example",
          "email_verified": True, "groups": ["b", "a", "a"]}  # fmt: skip


def test_a_name_and_groups_come_from_the_claims() -> None:
    person = person_of(CLAIMS, SETTINGS)
    assert (person.name, person.groups) == ("anna-schmidt-acme-example", ("a", "b"))
    ours = msgspec.structs.replace(SETTINGS, email_domain="acme.example")
    assert person_of(CLAIMS, ours).name == "anna-schmidt"
    assert person_of(CLAIMS, ours).subject == "https://id.example\0007"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"email_verified": False}, "not verified"),
        ({"email_verified": "true"}, "not verified"),
        ({"email": "anna@evil.example"}, "only addresses of"),
        ({"email": "anna@acme.example@evil.example"}, "only addresses of"),
        ({"email": None}, "does not say"),
        ({"groups": {"admin": True}}, "no list"),
        ({"groups": ["g"] * 500}, "500 groups"),
    ],
)
def test_claims_that_name_nobody_who_may_come_in(changes: dict[str, Any], why: str) -> None:
    ours = msgspec.structs.replace(SETTINGS, email_domain="acme.example")
    with pytest.raises(Forbidden, match=why):
        person_of({**CLAIMS, **changes}, ours)
