"""A TPM in memory: the same port, the same bytes, no chip and no socket. P-256 keys only."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from edgewise.identity.ports import NewSession, OpenTpm
from edgewise.identity.ports import Tpm as Port
from edgewise.identity.tpm_keys import aes_cfb, kdfa, kdfe
from edgewise.identity.tpm_structures import (
    ATTEST_CERTIFY,
    ATTEST_QUOTE,
    ECDSA,
    GENERATED,
    SEAL_LARGEST,
    SHA256,
    STORAGE,
    Public,
    Reader,
    Sealed,
    parse_sealed,
    sealed_template,
    selection_wire,
    sized,
)
from edgewise.model.errors import BadUsage, NeedsPerson

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True)
class MemoryKey:
    """A loaded key."""

    public: Public
    private: ec.EllipticCurvePrivateKey


@dataclass
class MemoryTpm:
    """One chip. ``seed`` decides all of its keys."""

    seed: bytes
    pcrs: dict[int, bytes] = field(default_factory=lambda: dict.fromkeys(range(24), bytes(32)))
    memory: dict[int, bytes] = field(default_factory=dict)
    """NV index to content."""
    owners: int = 0
    """How often it was cleared."""
    clock: int = 1000
    resets: int = 1
    safe: bool = True

    def open(self, place: str) -> _Opened:
        """As ``OpenTpm``; every place leads here."""
        return _Opened(self)

    @contextmanager
    def endorsement_key(self, template: Public) -> Iterator[MemoryKey]:
        yield self._made(b"endorsement", template)

    @contextmanager
    def attestation_key(self, template: Public) -> Iterator[MemoryKey]:
        yield self._made(b"endorsement", template)

    @contextmanager
    def own_key(self, template: Public) -> Iterator[MemoryKey]:
        yield self._made(b"owner %d" % self.owners, template)

    def _made(self, hierarchy: bytes, template: Public) -> MemoryKey:
        drawn = hmac.new(self.seed, hierarchy + b"\0" + template.wire, hashlib.sha512).digest()
        scalar = int.from_bytes(drawn, "big") % (_ORDER - 1) + 1
        private = ec.derive_private_key(scalar, ec.SECP256R1())
        numbers = private.public_key().public_numbers()
        x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
        return MemoryKey(replace(template, x=x, y=y), private)

    def sign(self, key: MemoryKey, digest: bytes) -> bytes:
        """TPM2_Sign."""
        made = key.private.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        r, s = utils.decode_dss_signature(made)
        head = struct.pack(">HH", ECDSA, SHA256)
        return head + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def quote(self, key: MemoryKey, extra: bytes, pcrs: Iterable[int]) -> tuple[bytes, bytes]:
        """TPM2_Quote."""
        chosen = sorted(set(pcrs))
        digest = hashlib.sha256(b"".join(self.pcrs[pcr] for pcr in chosen)).digest()
        body = selection_wire(chosen) + sized(digest)
        return self._attest(key, ATTEST_QUOTE, extra, body)

    def certify(self, subject: MemoryKey, key: MemoryKey, extra: bytes) -> tuple[bytes, bytes]:
        """TPM2_Certify."""
        body = sized(subject.public.name) + sized(b"qualified")
        return self._attest(key, ATTEST_CERTIFY, extra, body)

    def _attest(self, key: MemoryKey, kind: int, extra: bytes, body: bytes) -> tuple[bytes, bytes]:
        self.clock += 10
        head = struct.pack(">IH", GENERATED, kind) + sized(key.public.name) + sized(extra)
        head += struct.pack(">QIIBQ", self.clock, self.resets, 0, self.safe, 7)
        said = head + body
        return said, self.sign(key, hashlib.sha256(said).digest())

    def activate(self, key: MemoryKey, ek: MemoryKey, blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential."""
        point = Reader(secret, "a secret")
        x, y = point.sized(), point.sized()
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        )
        shared = ek.private.exchange(ec.ECDH(), numbers.public_key())
        inner = kdfe(shared, b"IDENTITY", x, ek.public.x, 256)
        reader = Reader(blob, "a credential")
        mac, encrypted = reader.sized(), reader.rest()
        mac_key = kdfa(inner, b"INTEGRITY", b"", b"", 256)
        good = hmac.new(mac_key, encrypted + key.public.name, hashlib.sha256).digest()
        if not hmac.compare_digest(mac, good):
            raise NeedsPerson("the TPM refuses command 0x147: response code 0x1df")
        return _opened(kdfa(inner, b"STORAGE", key.public.name, b"", 128), encrypted)

    def seal(self, secret: bytes, session: NewSession) -> Sealed:
        """TPM2_Create; in memory there is no bus to hide anything from."""
        if not 0 < len(secret) <= SEAL_LARGEST:
            raise BadUsage(f"a TPM seals 1 to {SEAL_LARGEST} bytes, not {len(secret)}")
        with self.own_key(STORAGE) as parent:
            public = sealed_template(hashlib.sha256(b"unique" + secret).digest())
            key = self._sealing(parent)
            private = aes_cfb(key, bytes(16), secret)
            mac = hmac.new(key, private + public, hashlib.sha256).digest()
            return Sealed(parent.public.wire, public, mac + private)

    def unseal(self, sealed: Sealed, session: NewSession) -> bytes:
        """TPM2_Load and TPM2_Unseal."""
        parse_sealed(sealed.public)
        with self.own_key(STORAGE) as parent:
            if parent.public.wire != sealed.parent:
                raise NeedsPerson("the keys of this node are sealed to another TPM")
            key, mac, private = self._sealing(parent), sealed.private[:32], sealed.private[32:]
            good = hmac.new(key, private + sealed.public, hashlib.sha256).digest()
            if not hmac.compare_digest(mac, good):
                raise NeedsPerson("the TPM refuses command 0x157: response code 0x1df")
            return aes_cfb(key, bytes(16), private, opens=True)

    def _sealing(self, parent: MemoryKey) -> bytes:
        private = parent.private.private_numbers().private_value.to_bytes(32, "big")
        return hashlib.sha256(private).digest()[:16]

    def read_pcrs(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """TPM2_PCR_Read."""
        return {pcr: self.pcrs[pcr] for pcr in sorted(set(pcrs))}

    def extend(self, pcr: int, digest: bytes) -> None:
        """TPM2_PCR_Extend."""
        self.pcrs[pcr] = hashlib.sha256(self.pcrs[pcr] + digest).digest()

    def nv_indexes(self, among: range) -> tuple[int, ...]:
        """TPM2_GetCapability."""
        return tuple(index for index in sorted(self.memory) if index in among)

    def read_nv(self, index: int) -> bytes:
        """TPM2_NV_Read."""
        return self.memory[index]

    def clear(self) -> None:
        """TPM2_Clear."""
        self.owners += 1
        self.clock, self.resets = 0, 0


class _Opened:
    def __init__(self, tpm: MemoryTpm) -> None:
        self._tpm = tpm

    def __enter__(self) -> MemoryTpm:
        return self._tpm

    def __exit__(self, *_: object) -> None:
        return None


def _opened(key: bytes, encrypted: bytes) -> bytes:
    """The value without its length."""
    return Reader(aes_cfb(key, bytes(16), encrypted, opens=True), "a credential").sized()


def _meets_its_port(tpm: MemoryTpm) -> tuple[Port, OpenTpm]:
    return tpm, tpm.open
