"""The verifying half of a TPM's cryptography: its keys, its signatures, and credentials.

``make_credential`` is what TPM2_MakeCredential does (part 1, section 24, and annexes B.10.4
for RSA and C.6.4 for elliptic curves): only the TPM with this endorsement key and a key of
this name in it can open the result.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from edgewise.identity.tpm_structures import (
    ECC,
    ECDSA,
    RSASSA,
    SHA256,
    Public,
    parse_signature,
    sized,
)
from edgewise.model.errors import Untrusted

SEED = 32
"""Bytes of a seed: the size of the name algorithm's digest."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def key_of(public: Public) -> PublicKey:
    """The key as ``cryptography`` has it. Raises Untrusted for numbers that are no key."""
    try:
        if public.kind == ECC:
            x, y = int.from_bytes(public.x, "big"), int.from_bytes(public.y, "big")
            return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        if public.bits != 2048 or len(public.modulus) != public.bits // 8:
            raise Untrusted(f"a TPM key is RSA with {public.bits} bits, 2048 are understood")
        modulus = int.from_bytes(public.modulus, "big")
        return rsa.RSAPublicNumbers(public.exponent or 65537, modulus).public_key()
    except ValueError as error:
        raise Untrusted(f"a TPM key is not a key: {error}") from error


def spki(public: Public) -> bytes:
    """DER SubjectPublicKeyInfo of the key. Raises Untrusted as ``key_of``."""
    return key_of(public).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def der_signature(signature: bytes) -> bytes:
    """A TPMT_SIGNATURE of ECDSA with SHA-256 as DER. Raises Untrusted for another scheme."""
    found = parse_signature(signature)
    if (found.algorithm, found.hash) != (ECDSA, SHA256):
        raise Untrusted("a TPM signature is not ECDSA with SHA-256")
    return utils.encode_dss_signature(
        int.from_bytes(found.r, "big"), int.from_bytes(found.s, "big")
    )


def signed_by(public: Public, signature: bytes, data: bytes) -> bool:
    """Whether the key made this TPMT_SIGNATURE over ``data``. Raises Untrusted when malformed."""
    key = key_of(public)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(der_signature(signature), data, ec.ECDSA(hashes.SHA256()))
        else:
            found = parse_signature(signature)
            if (found.algorithm, found.hash) != (RSASSA, SHA256):
                raise Untrusted("a TPM signature is not RSASSA with SHA-256")
            key.verify(found.number, data, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Credential:
    """What TPM2_ActivateCredential takes: both without their TPM2B length."""

    blob: bytes
    """TPMS_ID_OBJECT."""
    secret: bytes
    """TPMU_ENCRYPTED_SECRET: the seed, for the endorsement key only."""


def make_credential(ek: Public, name: bytes, value: bytes, seed: bytes) -> Credential:
    """``value`` (at most 32 bytes) for the TPM with ``ek`` and a key called ``name``.

    ``seed``: 32 unpredictable bytes; for a P-256 key they become the ephemeral scalar.
    Raises Untrusted for an endorsement key that is none.
    """
    if len(value) > SEED or len(seed) != SEED:
        raise ValueError("a credential has at most 32 bytes, its seed exactly 32")
    key = key_of(ek)
    if isinstance(key, ec.EllipticCurvePublicKey):
        inner, secret = agreed(key, seed, b"IDENTITY")
    else:
        inner = seed
        secret = key.encrypt(
            seed, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        )
    key_bytes = kdfa(inner, b"STORAGE", name, b"", 128)
    encrypted = aes_cfb(key_bytes, bytes(16), sized(value))
    mac_key = kdfa(inner, b"INTEGRITY", b"", b"", 256)
    mac = hmac.new(mac_key, encrypted + name, hashlib.sha256).digest()
    return Credential(sized(mac) + encrypted, secret)


def agreed(key: ec.EllipticCurvePublicKey, seed: bytes, label: bytes) -> tuple[bytes, bytes]:
    """One-pass Diffie-Hellman (part 1, C.6.1): what both sides have, and our ephemeral point.

    ``seed``: 32 unpredictable bytes that become the ephemeral scalar. ``label``: what it is for.
    """
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    scalar = int.from_bytes(seed, "big") % (order - 1) + 1
    ours = ec.derive_private_key(scalar, ec.SECP256R1())
    shared = ours.exchange(ec.ECDH(), key)
    mine, theirs = _point(ours.public_key()), _point(key)
    inner = kdfe(shared, label, mine[0], theirs[0], 256)
    return inner, sized(mine[0]) + sized(mine[1])


def _point(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")


def kdfa(key: bytes, label: bytes, left: bytes, right: bytes, bits: int) -> bytes:
    """KDFa with SHA-256 (part 1, section 11.4.10.2; SP 800-108 counter mode)."""
    made = b""
    for counter in range(1, (bits + 255) // 256 + 1):
        text = struct.pack(">I", counter) + label + b"\0" + left + right + struct.pack(">I", bits)
        made += hmac.new(key, text, hashlib.sha256).digest()
    return made[: bits // 8]


def kdfe(shared: bytes, label: bytes, left: bytes, right: bytes, bits: int) -> bytes:
    """KDFe with SHA-256 (part 1, section 11.4.10.3; SP 800-56A concatenation)."""
    made = b""
    for counter in range(1, (bits + 255) // 256 + 1):
        text = struct.pack(">I", counter) + shared + label + b"\0" + left + right
        made += hashlib.sha256(text).digest()
    return made[: bits // 8]


def aes_cfb(key: bytes, start: bytes, data: bytes, *, opens: bool = False) -> bytes:
    """AES-128-CFB out of single blocks: a handful of them, and no deprecated mode.

    ``start``: 16 bytes. ``opens``: decrypt instead of encrypt.
    """
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    made, before = b"", start
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        changed = bytes(a ^ b for a, b in zip(piece, block.update(before), strict=False))
        before = piece if opens else changed
        made += changed
    return made
