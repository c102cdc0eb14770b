"""A trust domain's keys as the SPIFFE bundle format, both ways (SPIFFE Trust Domain and Bundle
specification, section 4; RFC 7517).

Written: one JWK for each root (``x5c``, ``use: x509-svid``) and for each JWT key. Read: any
domain's; entries that we do not understand are passed over, as the specification asks. JWT
keys of other kinds than ECDSA P-256 are left out: nothing here could verify with them.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgewise.identity.bundles import MOST_ROOTS
from edgewise.model.errors import Untrusted
from edgewise.protocol.bundles import DomainBundle
from edgewise.protocol.codec import decode, encode

AT_MOST: Final = 1 << 20
"""Bytes of a bundle; one root and one key have about 1 KB."""
MOST_KEYS: Final = 256
"""Entries that are looked at."""
MOST_JWT: Final = 64
SHORTEST_HINT: Final = 60
LONGEST_HINT: Final = 24 * 3600
"""Seconds: a domain may ask to be looked at every minute, and is at least once a day."""
_KEY_ID = re.compile(r"[!-~]{1,255}")


class _Key(msgspec.Struct, frozen=True):
    kty: str = ""
    use: str = ""
    kid: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""
    x5c: tuple[str, ...] = ()


class _Document(msgspec.Struct, frozen=True):
    keys: tuple[msgspec.Raw, ...]
    spiffe_sequence: int = 0
    spiffe_refresh_hint: float = 300


def render(bundle: DomainBundle) -> bytes:
    """The JWKS document."""
    keys = [_root(der) for der in bundle.x509]
    keys += [{"use": "jwt-svid", "kid": kid, **_jwk(spki)} for kid, spki in bundle.jwt.items()]
    return encode(
        {
            "keys": keys,
            "spiffe_sequence": bundle.sequence,
            "spiffe_refresh_hint": bundle.refresh_hint_s,
        }
    )


def read(data: bytes) -> DomainBundle:
    """A bundle that somebody else wrote. Raises Untrusted for what is none, or has no key."""
    document = decode(data, _Document, what="a SPIFFE bundle", at_most=AT_MOST)
    if len(document.keys) > MOST_KEYS:
        raise Untrusted(f"a SPIFFE bundle has {len(document.keys)} keys, at most {MOST_KEYS}")
    roots: dict[bytes, None] = {}
    jwt: dict[str, bytes] = {}
    for raw in document.keys:
        try:
            key = msgspec.json.decode(raw, type=_Key)
        except (msgspec.DecodeError, RecursionError):
            continue  # of a shape that we do not know
        if key.use == "x509-svid" and len(key.x5c) == 1:
            roots[_certificate(key.x5c[0])] = None
        elif key.use == "jwt-svid" and (spki := _spki(key)) is not None:
            jwt[key.kid] = spki
    if len(roots) > MOST_ROOTS or len(jwt) > MOST_JWT:
        raise Untrusted(f"a SPIFFE bundle has {len(roots)} roots and {len(jwt)} JWT keys")
    if not roots and not jwt:
        raise Untrusted("a SPIFFE bundle has no key that can be used here")
    if not 0 <= document.spiffe_sequence < 1 << 63:
        raise Untrusted("a SPIFFE bundle has no sensible sequence")
    hint = document.spiffe_refresh_hint
    seconds = int(min(max(hint, SHORTEST_HINT), LONGEST_HINT)) if hint == hint else SHORTEST_HINT
    return DomainBundle(tuple(roots), jwt, document.spiffe_sequence, seconds)


def _root(der: bytes) -> dict[str, Any]:
    public = x509.load_der_x509_certificate(der).public_key()
    spki = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {"use": "x509-svid", "x5c": [base64.b64encode(der).decode()], **_jwk(spki)}


def _jwk(spki: bytes) -> dict[str, str]:
    """RFC 7518, sections 6.2 and 6.3. Raises Untrusted for other kinds of keys."""
    key = serialization.load_der_public_key(spki)
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.curve.key_size + 7) // 8
        numbers = key.public_numbers()
        curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
        return {
            "kty": "EC",
            "crv": curve.get(key.curve.name, key.curve.name),
            "x": _number(numbers.x, size),
            "y": _number(numbers.y, size),
        }
    if isinstance(key, rsa.RSAPublicKey):
        public = key.public_numbers()
        size = (key.key_size + 7) // 8
        exponent = (public.e.bit_length() + 7) // 8
        return {"kty": "RSA", "n": _number(public.n, size), "e": _number(public.e, exponent)}
    raise Untrusted(f"a key of kind {type(key).__name__} has no place in a SPIFFE bundle")


def _number(value: int, size: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).decode().rstrip("=")


def _certificate(text: str) -> bytes:
    try:
        der = base64.b64decode(text, validate=True)
        x509.load_der_x509_certificate(der).public_key()
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        raise Untrusted(f"a root in a SPIFFE bundle cannot be read: {error}") from error
    return der


def _spki(key: _Key) -> bytes | None:
    if key.kty != "EC" or key.crv != "P-256" or not _KEY_ID.fullmatch(key.kid):
        return None
    try:
        x, y = (
            int.from_bytes(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), "big")
            for part in (key.x, key.y)
        )
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except (ValueError, binascii.Error, OverflowError) as error:
        raise Untrusted(f"JWT key {key.kid!r} of a SPIFFE bundle is no P-256 key") from error
    return public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
