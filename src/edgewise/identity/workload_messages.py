"""Messages of the SPIFFE Workload API, written by hand from its field numbers. Pure.

Source: SPIFFE Workload API specification and its workload.proto; JWKS of trust bundles:
SPIFFE Trust Domain and Bundle specification, section 4.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from edgewise.identity import protobuf
from edgewise.identity.workload_ports import LocalSvid
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.workload import JwtSvid

AUDIENCES: Final = 16
"""Names in one audience: a token for more parties than that is for nobody in particular."""

_SPKI_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
"""DER of a SubjectPublicKeyInfo with an uncompressed point on P-256, up to the point (RFC 5480)."""


@dataclass(frozen=True, slots=True)
class WantedJwt:
    """A JWTSVIDRequest."""

    audience: tuple[str, ...]
    spiffe_id: str
    """Empty: every identity of the caller."""


def read_wanted_jwt(data: bytes) -> WantedJwt:
    """Raises Malformed, also for an audience that cannot be."""
    message = protobuf.read(data)
    audience = tuple(dict.fromkeys(protobuf.texts(message, 1)))
    if not audience or "" in audience:
        raise protobuf.Malformed("the request names no audience")
    if len(audience) > AUDIENCES or any(len(name) > 1024 for name in audience):
        raise protobuf.Malformed(f"an audience has at most {AUDIENCES} names of 1,024 characters")
    return WantedJwt(audience, protobuf.text(message, 2))


def read_validation(data: bytes) -> tuple[str, str]:
    """(audience, token) of a ValidateJWTSVIDRequest. Raises Malformed."""
    message = protobuf.read(data)
    audience, token = protobuf.text(message, 1), protobuf.text(message, 2)
    if not audience or not token:
        raise protobuf.Malformed("the request lacks the audience or the token")
    return audience, token


def x509_svids(
    svids: Iterable[LocalSvid], bundles: Mapping[str, bytes], federated: Mapping[str, bytes]
) -> bytes:
    """An X509SVIDResponse. ``bundles`` and ``federated``: trust domain to concatenated DER."""
    body = b""
    for svid in svids:
        domain = svid.spiffe_id.removeprefix("spiffe://").partition("/")[0]
        body += protobuf.field(
            1,
            protobuf.plain(1, svid.spiffe_id)
            + protobuf.plain(2, b"".join(svid.chain))
            + protobuf.plain(3, svid.key)
            + protobuf.plain(4, bundles.get(domain, b""))
            + protobuf.plain(5, svid.hint),
        )
    return body + protobuf.mapping(3, _by_uri(federated))


def x509_bundles(bundles: Mapping[str, bytes]) -> bytes:
    """An X509BundlesResponse."""
    return protobuf.mapping(2, _by_uri(bundles))


def jwt_svids(svids: Iterable[tuple[JwtSvid, str]]) -> bytes:
    """A JWTSVIDResponse of tokens with their hints."""
    return b"".join(
        protobuf.field(
            1,
            protobuf.plain(1, svid.spiffe_id)
            + protobuf.plain(2, svid.token)
            + protobuf.plain(3, hint),
        )
        for svid, hint in svids
    )


def jwt_bundles(bundles: Mapping[str, bytes]) -> bytes:
    """A JWTBundlesResponse of JWKS documents."""
    return protobuf.mapping(1, _by_uri(bundles))


def validated(spiffe_id: str, claims: Mapping[str, object]) -> bytes:
    """A ValidateJWTSVIDResponse."""
    return protobuf.plain(1, spiffe_id) + protobuf.field(2, protobuf.structure(claims))


def _by_uri(bundles: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"spiffe://{domain}": data for domain, data in bundles.items()}


# What a workload trusts


def trusted(bundles: TrustBundles, federates_with: Iterable[str]) -> dict[str, DomainBundle]:
    """Trust domain to bundle: the organisation's own, and the others that it federates with."""
    others = {d: bundles.federated[d] for d in federates_with if d in bundles.federated}
    return {**others, **bundles.own}


def roots(bundle: DomainBundle) -> bytes:
    """Its root certificates as the Workload API has them: DER, one after the other."""
    return b"".join(bundle.x509)


def jwks(bundle: DomainBundle) -> bytes:
    """Its JWT keys as a JWKS document (RFC 7517, RFC 7518 section 6.2)."""
    keys = []
    for key_id, spki in sorted(bundle.jwt.items()):
        point = point_of(spki)
        if point is not None:
            keys.append(
                {
                    "kty": "EC",
                    "use": "jwt-svid",
                    "kid": key_id,
                    "crv": "P-256",
                    "x": _base64url(point[:32]),
                    "y": _base64url(point[32:]),
                }
            )
    return json.dumps({"keys": keys}, separators=(",", ":")).encode()


def point_of(spki: bytes) -> bytes | None:
    """The 64 bytes of an uncompressed P-256 point; None for any other key."""
    head, point = spki[: len(_SPKI_P256)], spki[len(_SPKI_P256) :]
    return point[1:] if head == _SPKI_P256 and len(point) == 65 and point[0] == 4 else None


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
