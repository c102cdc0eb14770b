"""JWT-SVIDs are checked by our own mathematics: against a real library, and against forgers."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgewise.identity import es256
from edgewise.identity.jwt_check import check
from edgewise.identity.workload_messages import jwks, point_of
from edgewise.model.errors import Untrusted
from edgewise.protocol.bundles import DomainBundle

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ec.derive_private_key(0xED6E315E, ec.SECP256R1())
OTHER = ec.derive_private_key(0x0DDBA11, ec.SECP256R1())
CLAIMS = {
    "sub": "spiffe://eu.acme/app/till",
    "aud": ["ledger", "audit"],
    "exp": (NOW + timedelta(minutes=5)).timestamp(),
    "iat": NOW.timestamp(),
}


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    found = point_of(spki(key))
    assert found is not None
    return found


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(
    key: ec.EllipticCurvePrivateKey = KEY,
    header: dict[str, object] | None = None,
    **claims: object,
) -> str:
    head = part({"alg": "ES256", "kid": "k", "typ": "JWT", **(header or {})})
    body = part({k: v for k, v in {**CLAIMS, **claims}.items() if v is not None})
    return f"{head}.{body}.{part(sign(key, f'{head}.{body}'.encode()))}"


BUNDLES = {"eu.acme": DomainBundle((), {"k": spki(KEY)})}


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=200), st.integers(1, es256.N - 1))
@example(b"", 1)
@example(b"", es256.N - 1)
@example(b"", 2)
def test_what_the_library_signs_holds_and_nothing_beside_it(message: bytes, secret: int) -> None:
    key = ec.derive_private_key(secret, ec.SECP256R1())
    signature = sign(key, message)
    assert es256.verify(point(key), message, signature)
    assert not es256.verify(point(key), message + b"!", signature)
    assert not es256.verify(point(OTHER), message, signature)
    low, high = signature[:32], int.from_bytes(signature[32:], "big")
    # -s is a signature too (SEC 1): the value is malleable, what is signed is not.
    assert es256.verify(point(key), message, low + (es256.N - high).to_bytes(32, "big"))


@pytest.mark.parametrize("r", [0, 1, es256.N, es256.N - 1, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, es256.N, es256.N - 1, 2**256 - 1])
def test_extreme_numbers_are_no_signature(r: int, s: int) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert not es256.verify(point(KEY), b"message", signature)


@pytest.mark.parametrize(
    "bad", [bytes(64), b"\xff" * 64, point(KEY)[:63], point(KEY)[:63] + b"\0", b""]
)
def test_a_point_that_is_not_on_the_curve_is_no_key(bad: bytes) -> None:
    assert not es256.verify(bad, b"message", sign(KEY, b"message"))


def test_multiples_that_meet_are_added_right() -> None:
    """The generator as key: both tables are the same, so doubling by adding occurs."""
    key = ec.derive_private_key(1, ec.SECP256R1())
    for message in (bytes([n]) for n in range(40)):
        assert es256.verify(point(key), message, sign(key, message))


def test_a_good_token_says_who_and_for_whom() -> None:
    spiffe_id, claims = check(token(), "ledger", BUNDLES, NOW)
    assert spiffe_id == "spiffe://eu.acme/app/till"
    assert claims["aud"] == ["ledger", "audit"]


def test_a_single_audience_may_be_plain_text() -> None:
    assert check(token(aud="ledger"), "ledger", BUNDLES, NOW)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (token(OTHER), "signature does not hold"),
        (token(header={"alg": "none"}), "not ES256"),
        (token(header={"alg": "HS256"}), "not ES256"),
        (token(header={"crit": ["b64"]}), "not ES256"),
        (token(header={"typ": "at+jwt"}), "another type"),
        (token(header={"kid": "other"}), "no key 'other'"),
        (token(header={"kid": 7}), "no key"),
        (token(exp=NOW.timestamp() - 31), "expired"),
        (token(exp=None), "expired"),
        (token(exp="never"), "expired"),
        (token(exp=float("nan")), "expired"),
        (token(nbf=NOW.timestamp() + 31), "not valid yet"),
        (token(iat=NOW.timestamp() + 31), "not valid yet"),
        (token(aud=["other"]), "not for the audience"),
        (token(aud=None), "not for the audience"),
        (token(sub="till"), "no SPIFFE ID"),
        (token(sub=None), "no SPIFFE ID"),
        (token(sub="spiffe://us.acme/app/till"), "trust domain us.acme"),
        (token() + "=", "three base64url parts"),
        ("a.b", "three base64url parts"),
        ("bm8.bm8.bm8", "not JSON"),
        ("MQ.MQ.MQ", "not JSON objects"),
        (part(b"[" * 5000) + ".e30.e30", "not JSON"),
    ],
)
def test_a_bad_token_is_refused_with_the_reason(bad: str, reason: str) -> None:
    with pytest.raises(Untrusted, match=reason):
        check(bad, "ledger", BUNDLES, NOW)


@given(st.text(max_size=100) | st.from_regex(r"[\w-]{0,30}\.[\w-]{0,30}\.[\w-]{0,30}"))
def test_any_text_is_refused_and_never_trips(text: str) -> None:
    with pytest.raises(Untrusted):
        check(text, "ledger", BUNDLES, NOW)


def test_our_jwks_is_what_other_libraries_read() -> None:
    import jwt

    (key,) = jwt.PyJWKSet.from_json(jwks(BUNDLES["eu.acme"]).decode()).keys
    assert jwt.decode(
        token(), key, algorithms=["ES256"], audience="ledger", options={"verify_exp": False}
    )
