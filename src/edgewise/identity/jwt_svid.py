"""JWT-SVIDs as bytes: made, read and verified (JWT-SVID specification; RFC 7515, RFC 7518).

ES256 only, compact serialisation. Nothing here holds a private key: ``unsigned`` says what
is to be signed and ``compact`` puts the signature to it. Laws: a token is good for those
audiences alone that stand in it, until ``exp``, and by a key of the trust domain in ``sub``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from edgewise.identity.signatures import holds
from edgewise.model.errors import Untrusted
from edgewise.model.names import SpiffeId
from edgewise.protocol.bundles import DomainBundle
from edgewise.protocol.codec import decode, encode

TOKEN: Final = 16 << 10
"""Characters of a token that is read; ours have about 400."""
AUDIENCES: Final = 16
"""In one token."""
AUDIENCE: Final = 255
"""Characters of one audience."""
SKEW: Final = timedelta(seconds=30)
"""How much later than our clock a token may have been issued."""
_HALF: Final = 32
# Bytes of r and of s (RFC 7518, section 3.4).
_TEXT = re.compile(r"[A-Za-z0-9_-]+")


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str = ""
    typ: str = "JWT"
    crit: tuple[str, ...] = ()


class _Body(msgspec.Struct, frozen=True):
    sub: str
    aud: str | tuple[str, ...]
    exp: float
    iat: float = 0.0
    nbf: float = 0.0


@dataclass(frozen=True, slots=True)
class Claims:
    """What a JWT-SVID says."""

    subject: SpiffeId
    audience: tuple[str, ...]
    issued: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class Read:
    """A token that was read; nothing in it is proven yet."""

    key_id: str
    claims: Claims
    not_before: datetime
    signed: bytes
    signature: bytes
    """``r`` and ``s``, 32 bytes each."""


def key_id(spki: bytes) -> str:
    """``kid``: the first half of the key's hex SHA-256 (DER SubjectPublicKeyInfo)."""
    return hashlib.sha256(spki).hexdigest()[:32]


def is_audience(text: str) -> bool:
    """Whether this may be asked for: printable, not empty, not too long."""
    return 0 < len(text) <= AUDIENCE and text.isprintable()


def unsigned(claims: Claims, kid: str) -> bytes:
    """What the key signs."""
    header = {"alg": "ES256", "kid": kid, "typ": "JWT"}
    audience = list(claims.audience)
    body = {
        "sub": str(claims.subject),
        "aud": audience,
        "iat": int(claims.issued.timestamp()),
        "exp": int(claims.expires.timestamp()),
    }
    return b".".join((_pack(encode(header)), _pack(encode(body))))


def raw_signature(der: bytes) -> bytes:
    """``r`` and ``s`` of an ECDSA P-256 signature in DER, as JWS wants them."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")


def compact(signed: bytes, signature: bytes) -> str:
    """The token. ``signature``: as ``raw_signature`` gives it."""
    return b".".join((signed, _pack(signature))).decode("ascii")


def read(token: str) -> Read:
    """A token's parts. Raises Untrusted for anything but a JWT-SVID with ES256."""
    if len(token) > TOKEN:
        raise Untrusted(f"a token has {len(token)} characters, at most {TOKEN} are read")
    parts = token.split(".")
    if len(parts) != 3 or not all(_TEXT.fullmatch(part) for part in parts):
        raise Untrusted("this is not a JWT in compact serialisation")
    header = decode(_unpack(parts[0]), _Header, what="a JWT's header", at_most=TOKEN)
    if header.alg != "ES256" or header.typ not in ("JWT", "JOSE") or header.crit:
        raise Untrusted(f"a JWT-SVID is signed with ES256 here, not {header.alg[:20]!r}")
    body = decode(_unpack(parts[1]), _Body, what="a JWT's claims", at_most=TOKEN)
    audience = (body.aud,) if isinstance(body.aud, str) else body.aud
    signature = _unpack(parts[2])
    if not 1 <= len(audience) <= AUDIENCES or len(signature) != 2 * _HALF or not header.kid:
        raise Untrusted("a JWT-SVID needs an audience, a key ID and a whole signature")
    try:
        subject = SpiffeId.parse(body.sub)
        claims = Claims(subject, audience, _moment(body.iat), _moment(body.exp))
        not_before = _moment(body.nbf)
    except (ValueError, OverflowError, OSError) as error:
        raise Untrusted(f"a JWT's claims make no sense: {error}") from error
    signed = f"{parts[0]}.{parts[1]}".encode()
    return Read(header.kid, claims, not_before, signed, signature)


def verified(
    token: str, domains: Mapping[str, DomainBundle], audience: str, now: datetime
) -> Claims:
    """The claims of a token that holds for ``audience`` now.

    ``domains``: the trust domains to believe, by name. Raises Untrusted with the reason.
    """
    found = read(token)
    claims = found.claims
    domain = domains.get(claims.subject.trust_domain)
    if domain is None:
        raise Untrusted(f"{claims.subject} is of a trust domain that is not known here")
    spki = domain.jwt.get(found.key_id)
    if spki is None:
        raise Untrusted(f"{claims.subject.trust_domain} has no JWT key {found.key_id[:40]!r}")
    halves = found.signature[:_HALF], found.signature[_HALF:]
    r, s = (int.from_bytes(half, "big") for half in halves)
    if not holds(spki, encode_dss_signature(r, s), found.signed):
        raise Untrusted("the signature of a JWT-SVID does not hold")
    if audience not in claims.audience:
        raise Untrusted(f"the token is for {', '.join(claims.audience)[:200]}, not for {audience}")
    if now >= claims.expires:
        raise Untrusted(f"the token expired at {claims.expires.isoformat()}")
    if now + SKEW < max(claims.issued, found.not_before):
        raise Untrusted("the token is from the future")
    return claims


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _pack(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unpack(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error) as error:
        raise Untrusted("a JWT is not base64url") from error
