"""Whether a JWT-SVID holds, for ValidateJWTSVID. Pure.

Sources: JWT-SVID specification (sections 2 to 4), RFC 7515 (compact serialisation), RFC 7519.
Only ES256 is taken: it is what the keys of our bundles are for, and a token never gets to choose
between algorithms.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from edgewise.identity import es256
from edgewise.identity.workload_messages import point_of
from edgewise.model.errors import Untrusted
from edgewise.model.names import SpiffeId
from edgewise.protocol.bundles import DomainBundle

LEEWAY_S: Final = 30.0
"""How far clocks may be apart."""
TOKEN: Final = 16 << 10
"""Bytes of a token: what servers take in one header line at most."""

_PART: Final = re.compile(r"[A-Za-z0-9_-]+")


def check(
    token: str, audience: str, bundles: Mapping[str, DomainBundle], now: datetime
) -> tuple[str, dict[str, object]]:
    """(SPIFFE ID, claims) of a token for ``audience``. Raises Untrusted with the reason."""
    parts = token.split(".")
    if len(token) > TOKEN or len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
        raise Untrusted("the token is not a JWT of three base64url parts")
    header, claims = _object(parts[0]), _object(parts[1])
    subject = _subject(claims)
    bundle = bundles.get(subject.trust_domain)
    if bundle is None:
        raise Untrusted(f"trust domain {subject.trust_domain} of the token is not trusted here")
    point = _key(header, bundle, subject.trust_domain)
    if not es256.verify(point, f"{parts[0]}.{parts[1]}".encode(), _bytes(parts[2])):
        raise Untrusted("the token's signature does not hold")
    _check_times(claims, now)
    named = claims.get("aud")
    if audience not in (named if isinstance(named, list) else [named]):
        raise Untrusted(f"the token is not for the audience {audience[:80]!r}")
    return str(subject), claims


def _key(header: Mapping[str, object], bundle: DomainBundle, domain: str) -> bytes:
    if header.get("alg") != "ES256" or "crit" in header:
        raise Untrusted(f"the token is signed by {str(header.get('alg'))[:20]!r}, not ES256")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise Untrusted("the token is of another type than JWT")
    key_id = header.get("kid")
    spki = bundle.jwt.get(key_id) if isinstance(key_id, str) else None
    point = point_of(spki) if spki is not None else None
    if point is None:
        raise Untrusted(f"no key {str(key_id)[:40]!r} of trust domain {domain} is known here")
    return point


def _subject(claims: Mapping[str, object]) -> SpiffeId:
    subject = claims.get("sub")
    try:
        return SpiffeId.parse(subject if isinstance(subject, str) else "")
    except ValueError as error:
        raise Untrusted(f"the token's subject is no SPIFFE ID: {error}") from error


def _check_times(claims: Mapping[str, object], now: datetime) -> None:
    seconds = now.astimezone(UTC).timestamp()
    expires = claims.get("exp")
    if not _is_number(expires) or not seconds < expires + LEEWAY_S:  # type: ignore[operator]
        raise Untrusted("the token has expired, or never says when it does")
    for name in ("nbf", "iat"):
        begins = claims.get(name)
        if name in claims and (
            not _is_number(begins) or begins > seconds + LEEWAY_S  # type: ignore[operator]
        ):
            raise Untrusted(f"the token is not valid yet ({name})")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _object(part: str) -> dict[str, object]:
    try:
        found = json.loads(_bytes(part))
    except (ValueError, RecursionError) as error:
        raise Untrusted("the token's parts are not JSON") from error
    if not isinstance(found, dict):
        raise Untrusted("the token's parts are not JSON objects")
    return found


def _bytes(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        raise Untrusted("the token's parts are not base64url") from error
