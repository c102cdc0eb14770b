"""Signatures over small messages: receipts, node records, proofs of a key.

Two kinds of key: ECDSA P-256 with SHA-256 (enrolment keys) and ed25519 (the hub's channels
key). A key is identified by the hex SHA-256 of its DER SubjectPublicKeyInfo.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from edgewise.model.errors import NeedsPerson, Untrusted
from edgewise.protocol.channel import Signed

SPKI_BYTES = 256
"""No key that we accept is longer."""


def spki_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """DER SubjectPublicKeyInfo of the public half."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM PKCS#8, not encrypted."""
    return _pkcs8(key, serialization.Encoding.PEM)


def key_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """DER PKCS#8, not encrypted."""
    return _pkcs8(key, serialization.Encoding.DER)


def _pkcs8(key: ec.EllipticCurvePrivateKey, encoding: serialization.Encoding) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)


def issued_by(certificate: x509.Certificate, anchor: x509.Certificate) -> bool:
    """Whether the anchor's key signed this certificate, by name and signature."""
    try:
        certificate.verify_directly_issued_by(anchor)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def public_key(spki: bytes) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """The key. Raises Untrusted for anything but P-256 and ed25519."""
    if len(spki) > SPKI_BYTES:
        raise Untrusted(f"a public key has {len(spki)} bytes, at most {SPKI_BYTES} are accepted")
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Untrusted(f"a public key cannot be read: {error}") from error
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise Untrusted(f"keys are ECDSA P-256 or ed25519 here, not {type(key).__name__}")


def sign_bytes(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, data: bytes) -> bytes:
    """A signature; ECDSA ones are DER, over SHA-256."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    return key.sign(data)


@dataclass(frozen=True, slots=True)
class FileKey:
    """``identity.on_agent.EnrolmentKey`` in a file of mode 0600."""

    private: ec.EllipticCurvePrivateKey

    @property
    def spki(self) -> bytes:
        return spki_of(self.private)

    def sign(self, data: bytes) -> bytes:
        return sign_bytes(self.private, data)


def sign_with(pem: bytes, data: bytes, what: str) -> bytes:
    """A signature by a PEM private key: ECDSA or RSA PKCS#1 v1.5 with SHA-256, or ed25519.

    Raises NeedsPerson, naming the file ``what``, for anything else.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NeedsPerson(
            f"{what} cannot be read as a private key: {error}",
            hint="it takes PEM without a passphrase",
        ) from error
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)
        case rsa.RSAPrivateKey():
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        case _:
            raise NeedsPerson(f"{what} is a {type(key).__name__}", hint="use ECDSA, RSA or ed25519")


def holds(spki: bytes, signature: bytes, data: bytes) -> bool:
    """Whether this key made this signature over this data. Raises Untrusted for a bad key."""
    key = public_key(spki)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def signature_holds(key: bytes, signed: Signed) -> bool:
    """Whether ``key`` (DER SubjectPublicKeyInfo) made the signature; False for a bad key."""
    if signed.key_id != hashlib.sha256(key).hexdigest():
        return False
    try:
        return holds(key, signed.signature, signed.signed_bytes)
    except Untrusted:
        return False
