"""TPM 2.0 structures as they travel: read strictly, written canonically.

Names and numbers are those of the TCG "Trusted Platform Module Library", part 2, revision
1.59. Everything is big-endian; a TPM2B is a length in two bytes and that many bytes. What is
read here comes from a TPM or from the network and is believed by nobody yet: every length is
checked before use, and what is left over at the end is an error.

Standard library only: nodes use it without loading ``cryptography``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from edgewise.model.errors import Untrusted

AT_MOST: Final = 4096
"""Bytes of one structure: the largest that we read is the attestation of 24 PCRs, about 200."""
MOST_SELECTIONS: Final = 16
"""PCR banks in one selection: one for each hash algorithm (TPML_PCR_SELECTION)."""
PCRS: Final = 24
"""PCRs of a PC client platform (TCG PC Client Platform TPM Profile, 4.6)."""

RSA, SHA256, NULL, ECDSA, ECC = 0x0001, 0x000B, 0x0010, 0x0018, 0x0023
KEYED_HASH: Final = 0x0008
RSASSA, RSAPSS, OAEP, AES, CFB = 0x0014, 0x0016, 0x0017, 0x0006, 0x0043
P256: Final = 0x0003

FIXED_TPM, FIXED_PARENT, SENSITIVE_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA = 1 << 6, 1 << 7, 1 << 10
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18

GENERATED: Final = 0xFF544347
"""TPM_GENERATED_VALUE: a restricted key never signs outside data that begin so."""
ATTEST_CERTIFY, ATTEST_QUOTE = 0x8017, 0x8018

ENCRYPTED_IN: Final = 1 << 5
"""TPMA_SESSION.decrypt: the TPM decrypts the first parameter of the command."""
ENCRYPTED_OUT: Final = 1 << 6
"""TPMA_SESSION.encrypt: it encrypts the first parameter of its answer."""

EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(TPM_RH_ENDORSEMENT): TCG EK Credential Profile 2.5, B.3."""


class Reader:
    """Takes a byte string apart. Every method raises Untrusted when it is too short."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > AT_MOST:
            raise Untrusted(f"{what} has {len(data)} bytes, at most {AT_MOST} are possible")
        self._data = data
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self._at + count
        if end > len(self._data):
            raise Untrusted(f"{self._what} is cut short: {len(self._data)} bytes")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def number(self, size: int) -> int:
        """An unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """A TPM2B."""
        return self.take(self.number(2))

    def rest(self) -> bytes:
        """What is left."""
        return self.take(len(self._data) - self._at)

    def done(self) -> None:
        """Raise Untrusted when something is left."""
        if self._at != len(self._data):
            raise Untrusted(f"{self._what} has {len(self._data) - self._at} bytes too many")


@dataclass(frozen=True, slots=True)
class Scheme:
    """TPMT_SIG_SCHEME or TPMT_KDF_SCHEME: NULL has no hash."""

    algorithm: int = NULL
    hash: int = 0

    @property
    def wire(self) -> bytes:
        """As it travels."""
        if self.algorithm == NULL:
            return struct.pack(">H", NULL)
        return struct.pack(">HH", self.algorithm, self.hash)


@dataclass(frozen=True, slots=True)
class Public:
    """TPMT_PUBLIC of an RSA or P-256 key whose name algorithm is SHA-256."""

    kind: int
    """``RSA`` or ``ECC``."""
    attributes: int
    policy: bytes
    symmetric: bytes
    """TPMT_SYM_DEF_OBJECT as it travels: two bytes for NULL, else six."""
    scheme: Scheme
    bits: int = 0
    exponent: int = 0
    """RSA: 0 stands for 65537."""
    modulus: bytes = b""
    x: bytes = b""
    y: bytes = b""

    @property
    def wire(self) -> bytes:
        """As it travels; ``parse_public`` of it is this value."""
        head = struct.pack(">HHI", self.kind, SHA256, self.attributes) + sized(self.policy)
        head += self.symmetric + self.scheme.wire
        if self.kind == RSA:
            return head + struct.pack(">HI", self.bits, self.exponent) + sized(self.modulus)
        return head + struct.pack(">HH", P256, NULL) + sized(self.x) + sized(self.y)

    @property
    def name(self) -> bytes:
        """TPM2B_NAME's content: the algorithm and the digest (part 1, section 16)."""
        return name_of(self.wire)

    def has(self, wanted: int, unwanted: int = 0) -> bool:
        """Whether all attributes of ``wanted`` are set and none of ``unwanted``."""
        return self.attributes & wanted == wanted and not self.attributes & unwanted


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return len(data).to_bytes(2, "big") + data


def name_of(public: bytes) -> bytes:
    """The name of a TPMT_PUBLIC, as bytes."""
    return struct.pack(">H", SHA256) + hashlib.sha256(public).digest()


def parse_public(data: bytes) -> Public:
    """A TPMT_PUBLIC. Raises Untrusted for anything but what ``Public`` can hold."""
    reader = Reader(data, "a TPM key")
    kind, name_algorithm, attributes = reader.number(2), reader.number(2), reader.number(4)
    if kind not in (RSA, ECC) or name_algorithm != SHA256:
        raise Untrusted(
            f"a TPM key is of type {kind:#x} with name algorithm {name_algorithm:#x}",
            hint="RSA and P-256 keys with SHA-256 names are understood",
        )
    policy = reader.sized()
    algorithm = reader.take(2)
    symmetric = algorithm if algorithm == struct.pack(">H", NULL) else algorithm + reader.take(4)
    scheme = _scheme(reader)
    if kind == RSA:
        bits, exponent, modulus = reader.number(2), reader.number(4), reader.sized()
        found = Public(kind, attributes, policy, symmetric, scheme, bits, exponent, modulus)
    else:
        curve, derivation = reader.number(2), reader.number(2)
        if curve != P256 or derivation != NULL:
            raise Untrusted(
                f"a TPM key is on curve {curve:#x}, derivation {derivation:#x}",
                hint="P-256 without a derivation scheme is understood",
            )
        x, y = reader.sized(), reader.sized()
        found = Public(kind, attributes, policy, symmetric, scheme, x=x, y=y)
    reader.done()
    return found


def _scheme(reader: Reader) -> Scheme:
    algorithm = reader.number(2)
    return Scheme() if algorithm == NULL else Scheme(algorithm, reader.number(2))


Selection = tuple[tuple[int, tuple[int, ...]], ...]
"""Hash algorithm and PCR numbers, ascending, for each bank."""


@dataclass(frozen=True, slots=True)
class Attested:
    """TPMS_ATTEST: what a TPM says of itself, before its signature is looked at."""

    kind: int
    signer: bytes
    """Qualified name of the key that signs."""
    extra: bytes
    """qualifyingData: what the verifier asked to have in it."""
    clock: int
    """Milliseconds that this TPM has run since its owner changed."""
    resets: int
    restarts: int
    safe: bool
    """Whether ``clock`` cannot be behind a value that was told before."""
    firmware: int
    selection: Selection = ()
    digest: bytes = b""
    """Quotes: SHA-256 over the selected PCRs."""
    name: bytes = b""
    """Certifications: name of the certified key."""


def parse_attested(data: bytes) -> Attested:
    """A quote or a certification. Raises Untrusted for everything else."""
    reader = Reader(data, "an attestation")
    magic, kind = reader.number(4), reader.number(2)
    if magic != GENERATED:
        raise Untrusted(f"an attestation begins with {magic:#x}: no TPM made it")
    signer, extra = reader.sized(), reader.sized()
    clock, resets, restarts = reader.number(8), reader.number(4), reader.number(4)
    safe, firmware = reader.number(1), reader.number(8)
    if safe > 1:
        raise Untrusted(f"an attestation has {safe} where yes or no belongs")
    selection: Selection = ()
    digest = name = b""
    if kind == ATTEST_QUOTE:
        selection, digest = _selection(reader), reader.sized()
    elif kind == ATTEST_CERTIFY:
        name = reader.sized()
        reader.sized()  # its qualified name says nothing more: the name is of a primary key
    else:
        raise Untrusted(f"an attestation is of type {kind:#x}, neither a quote nor a certificate")
    reader.done()
    return Attested(
        kind, signer, extra, clock, resets, restarts, bool(safe), firmware, selection, digest, name
    )


def _selection(reader: Reader) -> Selection:
    count = reader.number(4)
    if count > MOST_SELECTIONS:
        raise Untrusted(f"an attestation speaks of {count} PCR banks")
    found = []
    for _ in range(count):
        algorithm, size = reader.number(2), reader.number(1)
        bits = reader.take(size)
        chosen = tuple(i for i in range(size * 8) if bits[i // 8] >> i % 8 & 1)
        found.append((algorithm, chosen))
    return tuple(found)


def selection_wire(pcrs: Iterable[int]) -> bytes:
    """TPML_PCR_SELECTION of PCRs of the SHA-256 bank."""
    bits = bytearray(PCRS // 8)
    for pcr in pcrs:
        bits[pcr // 8] |= 1 << pcr % 8
    return struct.pack(">IHB", 1, SHA256, len(bits)) + bytes(bits)


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE: ECDSA has r and s, RSASSA and RSAPSS one number."""

    algorithm: int
    hash: int
    r: bytes = b""
    s: bytes = b""
    number: bytes = b""


def parse_signature(data: bytes) -> Signature:
    """Raises Untrusted for anything but ECDSA, RSASSA and RSAPSS."""
    reader = Reader(data, "a TPM signature")
    algorithm, digest = reader.number(2), reader.number(2)
    if algorithm == ECDSA:
        found = Signature(algorithm, digest, r=reader.sized(), s=reader.sized())
    elif algorithm in (RSASSA, RSAPSS):
        found = Signature(algorithm, digest, number=reader.sized())
    else:
        raise Untrusted(f"a TPM signature is of scheme {algorithm:#x}")
    reader.done()
    return found


_NULL: Final = struct.pack(">H", NULL)
_AES128_CFB: Final = struct.pack(">HHH", AES, 128, CFB)
_EK: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
_OWN: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | USER_WITH_AUTH | NO_DA | SIGN

EK_ECC: Final = Public(ECC, _EK, EK_POLICY, _AES128_CFB, Scheme(), x=bytes(32), y=bytes(32))
"""Template L-2 of the TCG EK Credential Profile; its certificate is at ``EK_ECC_CERTIFICATE``."""
EK_RSA: Final = Public(RSA, _EK, EK_POLICY, _AES128_CFB, Scheme(), 2048, 0, bytes(256))
"""Template L-1."""
EK_RSA_CERTIFICATE: Final = 0x01C00002
EK_ECC_CERTIFICATE: Final = 0x01C0000A
EK_CHAIN: Final = range(0x01C00100, 0x01C00200)
"""NV indexes with the certificates of the EK's issuers (EK Credential Profile 2.5, 2.2.1.4)."""

AK: Final = Public(
    ECC,
    _OWN | RESTRICTED,
    b"",
    _NULL,
    Scheme(ECDSA, SHA256),
    x=hashlib.sha256(b"edgewise attestation key").digest(),
)
"""The attestation key: a primary key of the endorsement hierarchy, so the same TPM makes the
same key again whenever it is asked, and its counters are not blurred (part 1, 36.7)."""
AK_REQUIRED: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | RESTRICTED | SIGN
KEY_REQUIRED: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | SIGN


def enrolment_template(unique: bytes) -> Public:
    """The enrolment key: a primary key of the owner hierarchy.

    ``unique``: 32 random bytes, kept beside the public key. They are no secret: only this TPM
    makes this key of them, and one that was cleared since makes another.
    """
    return Public(ECC, _OWN, b"", _NULL, Scheme(ECDSA, SHA256), x=unique)


_STORAGE: Final = (
    FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT
)
STORAGE: Final = Public(
    ECC,
    _STORAGE,
    b"",
    _AES128_CFB,
    Scheme(),
    x=hashlib.sha256(b"edgewise storage key").digest(),
)
"""What seals: a primary key of the owner hierarchy, so a TPM that was cleared makes another."""
_SEALED: Final = FIXED_TPM | FIXED_PARENT | USER_WITH_AUTH | NO_DA
SEAL_LARGEST: Final = 128
"""Bytes that every TPM can seal (MAX_SYM_DATA)."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """Bytes that one TPM opens again. Nothing in it is secret."""

    parent: bytes
    """TPMT_PUBLIC of the storage key, to notice another TPM before it is asked."""
    public: bytes
    """TPMT_PUBLIC of the sealed object."""
    private: bytes
    """Content of TPM2B_PRIVATE: encrypted by the storage key."""


def sealed_template(unique: bytes = b"") -> bytes:
    """TPMT_PUBLIC of data that are sealed without a policy (part 2, 12.2.4; part 3, 12.1)."""
    head = struct.pack(">HHI", KEYED_HASH, SHA256, _SEALED) + sized(b"")
    return head + struct.pack(">H", NULL) + sized(unique)


def parse_sealed(data: bytes) -> bytes:
    """Name of a sealed object. Raises Untrusted for anything but what ``sealed_template`` makes."""
    reader = Reader(data, "a sealed object")
    reader.take(len(sealed_template()) - 2)
    unique = reader.sized()
    reader.done()
    if len(unique) != hashlib.sha256().digest_size or data != sealed_template(unique):
        raise Untrusted("a sealed object has other attributes than ours")
    return name_of(data)


__all__ = [
    "AK",
    "AK_REQUIRED",
    "ATTEST_CERTIFY",
    "ATTEST_QUOTE",
    "EK_CHAIN",
    "EK_ECC",
    "EK_ECC_CERTIFICATE",
    "EK_RSA",
    "EK_RSA_CERTIFICATE",
    "ENCRYPTED_IN",
    "ENCRYPTED_OUT",
    "KEY_REQUIRED",
    "SEAL_LARGEST",
    "STORAGE",
    "Attested",
    "Public",
    "Reader",
    "Scheme",
    "Sealed",
    "Selection",
    "Signature",
    "enrolment_template",
    "name_of",
    "parse_attested",
    "parse_public",
    "parse_sealed",
    "parse_signature",
    "sealed_template",
    "selection_wire",
    "sized",
]
