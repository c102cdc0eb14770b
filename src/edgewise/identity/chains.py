"""From a device's certificate to a root that the fleet repo names.

Certificates of TPMs and of factories are odd: endless, without a subject, with extensions
that nobody knows, sometimes without the issuers between. So this is not the check of a web
server's certificate. What must hold: every signature; every issuer is a CA that may sign
certificates, within its path length; nothing is used outside its time; no critical
extension that is not understood. An anchor is any certificate that the repo names, root or
not: its own issuer is not looked for (RFC 5280, 6.1.1 d, trusts a name and a key).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

LONGEST: Final = 6
"""Certificates of a chain, the device's among them; makers use three or four."""
MOST_BYTES: Final = 16 << 10
"""Of one certificate."""
EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate (EK Credential Profile 2.5, 3.2.16)."""

_UNDERSTOOD: Final = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_DIRECTORY_ATTRIBUTES,
}
"""What may be critical. A critical name constraint is refused: it would have to be applied."""

_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for certificates that are not what they should be."""

Flaw = Literal["unreadable", "unknown-maker", "outside-its-time", "not-a-ca", "wrong-kind"]


@dataclass(frozen=True, slots=True)
class Broken:
    """Why a certificate proves nothing."""

    flaw: Flaw
    what: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device certificate whose chain holds."""

    certificate: x509.Certificate
    key: bytes
    """DER SubjectPublicKeyInfo that it certifies."""
    maker: str
    """Subject of the anchor, for people."""
    serial: str
    """The device's serial number (IEEE 802.1AR, 8.6: serialNumber of the subject), or ""."""


def _device(leaf: x509.Certificate, anchor: x509.Certificate) -> Device:
    found = leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    serial = found[0].value if len(found) == 1 else ""
    key = leaf.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    maker = anchor.subject.rfc4514_string() or "(no name)"
    return Device(leaf, key, maker, serial if isinstance(serial, str) else "")


def padding_cut(data: bytes) -> bytes:
    """A DER value without what an NV index holds behind it (zeros, or 0xFF of erased memory)."""
    if len(data) < 4 or data[0] != 0x30:
        return data
    first = data[1]
    if first < 0x80:
        return data[: 2 + first]
    count = first & 0x7F
    if not 1 <= count <= 3:
        return data
    return data[: 2 + count + int.from_bytes(data[2 : 2 + count], "big")]


def judge_chain(
    chain: Iterable[bytes], anchors: Iterable[x509.Certificate], now: datetime
) -> Device | Broken:
    """The device's certificate (DER, first of ``chain``) or why it proves nothing.

    The other certificates of ``chain`` may stand in any order, and may be missing.
    """
    given = list(chain)
    if not 1 <= len(given) <= LONGEST or any(len(der) > MOST_BYTES for der in given):
        return Broken("unreadable", f"{len(given)} certificates, at most {LONGEST} of 16 KiB")
    try:
        found = [x509.load_der_x509_certificate(padding_cut(der)) for der in given]
        leaf, between = found[0], found[1:]
        return _climb(leaf, between, tuple(anchors), now)
    except _UNREADABLE as error:
        # Some makers' certificates are not DER; who has such devices lists their keys.
        return Broken("unreadable", f"the certificate cannot be read: {error}")


def _climb(
    leaf: x509.Certificate,
    between: list[x509.Certificate],
    anchors: tuple[x509.Certificate, ...],
    now: datetime,
) -> Device | Broken:
    if (flaw := _own_flaw(leaf, now)) is not None:
        return flaw
    if _is_ca(leaf):
        return Broken("wrong-kind", "it is the certificate of an authority, not of a device")
    lower, depth = leaf, 0
    left = [one for one in between if one != leaf]
    while True:
        anchor = next((one for one in anchors if _issued(lower, one)), None)
        if anchor is not None:
            flaw = _issuer_flaw(anchor, depth, now)
            return flaw or _device(leaf, anchor)
        upper = next((one for one in left if one != lower and _issued(lower, one)), None)
        if upper is None:
            issuer = lower.issuer.rfc4514_string()[:200] or "(no name)"
            return Broken("unknown-maker", f"nobody that is trusted has issued it: {issuer}")
        if (flaw := _issuer_flaw(upper, depth, now)) is not None:
            return flaw
        left.remove(upper)
        lower, depth = upper, depth + 1


def _own_flaw(certificate: x509.Certificate, now: datetime) -> Broken | None:
    """Time and critical extensions."""
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        subject = certificate.subject.rfc4514_string()[:200] or "a certificate without a name"
        return Broken(
            "outside-its-time",
            f"{subject} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        )
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            return Broken(
                "wrong-kind", f"its critical extension {extension.oid.dotted_string} is not known"
            )
    return None


def _issuer_flaw(issuer: x509.Certificate, below: int, now: datetime) -> Broken | None:
    """``below``: how many authorities stand between it and the device."""
    if (flaw := _own_flaw(issuer, now)) is not None:
        return flaw
    name = issuer.subject.rfc4514_string()[:200]
    if not _is_ca(issuer):
        return Broken("not-a-ca", f"{name} is no authority")
    limit = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if limit is not None and below > limit:
        return Broken("not-a-ca", f"{name} may not have authorities below it")
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return None if usage.key_cert_sign else Broken("not-a-ca", f"{name} may not sign certificates")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _issued(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """By name and signature. Weak keys and hashes do not count."""
    key = upper.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            return False
    elif not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    algorithm = lower.signature_hash_algorithm
    if algorithm is None or algorithm.name not in ("sha256", "sha384", "sha512"):
        return False
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def is_for_ek(certificate: x509.Certificate) -> bool:
    """Whether its extended key usage, where it has one, is that of endorsement keys."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return EK_USAGE in usage


def anchors_of(pem: Iterable[str]) -> tuple[x509.Certificate, ...]:
    """Certificates of PEM texts. Raises ValueError for a text that holds none."""
    found: list[x509.Certificate] = []
    for text in pem:
        found += x509.load_pem_x509_certificates(text.encode())
    return tuple(found)
