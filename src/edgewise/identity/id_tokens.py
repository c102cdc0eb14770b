"""ID tokens of an OpenID provider: whether one is good, and for whom. Pure.

Sources: OpenID Connect Core 1.0, section 3.1.3.7; RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518
(algorithms); RFC 8725 (best current practices).

Laws: only asymmetric signatures of the list below, by a key that the provider publishes for
that use; the key's kind decides what the header may claim, never the other way round; nothing
in the header is fetched or trusted (``jku``, ``jwk``, ``x5u``, ``crit``).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from edgewise.model.errors import Untrusted

LARGEST: Final = 64 << 10
"""Bytes of a token; one with 200 groups has some 10 KB."""
SKEW: Final = timedelta(seconds=60)
"""How far the provider's clock may differ from ours."""
OLDEST: Final = timedelta(minutes=10)
"""A token is used at once; an older one was kept by somebody."""
SMALLEST_RSA: Final = 2048
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_CURVES: Final = {"P-256": (ec.SECP256R1(), "ES256", 32), "P-384": (ec.SECP384R1(), "ES384", 48)}
RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS: Final = RSA_ALGORITHMS | {"ES256", "ES384", "EdDSA"}
"""No ``none``, and nothing with a shared secret."""


class Jwk(msgspec.Struct, frozen=True):
    """One key of a provider's key set; members that we do not use are passed over."""

    kty: str
    kid: str = ""
    use: str = ""
    alg: str = ""
    n: str = ""
    e: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say."""

    issuer: str
    client_id: str
    nonce: str
    """What we sent; providers need not repeat it in a device authorisation, but if one does
    it has to be this."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A token whose parts could be read, and nothing more."""

    algorithm: str
    key_id: str
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes


def opened(token: str) -> Opened:
    """Take a token apart. Raises Untrusted for what can be no good one."""
    if len(token) > LARGEST:
        raise _no(f"it has {len(token)} bytes")
    parts = token.split(".")
    if len(parts) != 3:
        raise _no("it has not three parts")
    try:
        header = msgspec.json.decode(_bytes(parts[0]), type=dict[str, Any])
        claims = msgspec.json.decode(_bytes(parts[1]), type=dict[str, Any])
        signature = _bytes(parts[2])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _no("it is malformed") from error
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _no(f"its algorithm is {str(algorithm)[:20]!r}, which is none that we take")
    if "crit" in header or not isinstance(key_id, str):
        raise _no("its header asks for something that we do not know")
    return Opened(algorithm, key_id, claims, f"{parts[0]}.{parts[1]}".encode(), signature)


def key_of(token: Opened, keys: Sequence[Jwk]) -> Jwk | None:
    """The key that it says it is signed with; None when the set lacks it (it may be new)."""
    fitting = [key for key in keys if key.use in ("", "sig") and _fits(key, token.algorithm)]
    if token.key_id:
        return next((key for key in fitting if key.kid == token.key_id), None)
    return fitting[0] if len(fitting) == 1 else None


def checked(token: Opened, key: Jwk, expected: Expected, now: datetime) -> Mapping[str, Any]:
    """The claims of a good token. Raises Untrusted with the reason for any other."""
    if not _fits(key, token.algorithm) or not _verified(token, key):
        raise _no("its signature does not hold")
    claims = token.claims
    if claims.get("iss") != expected.issuer:
        raise _no(f"it is of issuer {str(claims.get('iss'))[:100]!r}, not {expected.issuer}")
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or expected.client_id not in audiences:
        raise _no("it is for another client")
    party = claims.get("azp")
    if (party is not None or len(audiences) > 1) and party != expected.client_id:
        raise _no("it was issued to another client (azp)")
    _check_times(claims, now)
    nonce = claims.get("nonce")
    if nonce is not None and nonce != expected.nonce:
        raise _no("it belongs to another login (nonce)")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise _no("it names nobody (sub)")
    return claims


def _check_times(claims: Mapping[str, Any], now: datetime) -> None:
    moment, skew = now.timestamp(), SKEW.total_seconds()
    issued, ends = _moment(claims, "iat"), _moment(claims, "exp")
    begins = _moment(claims, "nbf") if "nbf" in claims else issued
    if ends + skew <= moment:
        raise _no("it has expired")
    if max(issued, begins) > moment + skew:
        raise _no("it is from the future; compare the clocks of hub and provider")
    if issued < moment - OLDEST.total_seconds():
        raise _no("it was issued too long ago")


def _moment(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _no(f"it does not say its {name}")
    return float(value)


def _fits(key: Jwk, algorithm: str) -> bool:
    """Whether a key of this kind makes signatures of this algorithm."""
    if key.alg and key.alg != algorithm:
        return False
    match key.kty:
        case "RSA":
            return algorithm in RSA_ALGORITHMS
        case "EC":
            return key.crv in _CURVES and _CURVES[key.crv][1] == algorithm
        case "OKP":
            return key.crv == "Ed25519" and algorithm == "EdDSA"
        case _:
            return False


def _verified(token: Opened, key: Jwk) -> bool:
    try:
        match key.kty:
            case "RSA":
                return _rsa(token, key)
            case "EC":
                return _ec(token, key)
            case _:
                public = ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key.x))
                public.verify(token.signature, token.signed)
                return True
    except (InvalidSignature, ValueError):
        return False


def _rsa(token: Opened, key: Jwk) -> bool:
    public = rsa.RSAPublicNumbers(_number(key.e), _number(key.n)).public_key()
    if public.key_size < SMALLEST_RSA:
        return False
    digest = _HASHES[token.algorithm[2:]]
    how: padding.AsymmetricPadding = padding.PKCS1v15()
    if token.algorithm.startswith("PS"):
        how = padding.PSS(padding.MGF1(digest), digest.digest_size)
    public.verify(token.signature, token.signed, how, digest)
    return True


def _ec(token: Opened, key: Jwk) -> bool:
    curve, _, size = _CURVES[key.crv]
    if len(token.signature) != 2 * size:
        return False
    public = ec.EllipticCurvePublicNumbers(_number(key.x), _number(key.y), curve).public_key()
    r, s = (int.from_bytes(token.signature[i : i + size], "big") for i in (0, size))
    digest = _HASHES[token.algorithm[2:]]
    public.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(digest))
    return True


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text), "big")


def _bytes(text: str) -> bytes:
    """base64url without padding, strictly (RFC 7515, section 2)."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _no(why: str) -> Untrusted:
    return Untrusted(f"the provider's ID token is refused: {why}")
