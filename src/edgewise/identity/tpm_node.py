"""What a node shows of its TPM, and the enrolment key that lives in it.

Over the port ``Tpm``; runs in the worker. The enrolment key is not stored anywhere: the TPM
makes it again from its own seed and the 32 bytes in ``tpm.json``. Without this TPM the file
is worth nothing, and a TPM that was cleared makes another key of it, which is noticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec

from edgewise.identity import tpm_keys
from edgewise.identity.chains import padding_cut
from edgewise.identity.ports import OpenTpm, Tpm
from edgewise.identity.tpm_structures import (
    AK,
    EK_CHAIN,
    EK_ECC,
    EK_ECC_CERTIFICATE,
    EK_RSA,
    EK_RSA_CERTIFICATE,
    Public,
    enrolment_template,
    parse_attested,
    parse_public,
)
from edgewise.model.errors import NeedsPerson, TryLater
from edgewise.protocol.attest import JoinChallenge, Quote, TpmKeys, TpmProof

MOST_ISSUERS: Final = 4
"""Certificates above the endorsement key's that are sent along."""
TRIES: Final = 5
"""Of a quote whose PCRs were extended while it was made."""


class TpmFile(msgspec.Struct, frozen=True):
    """``tpm.json``: which TPM, and what makes the enrolment key again."""

    place: str
    """``/dev/tpmrm0``, ``unix:PATH`` or ``tcp:HOST:PORT``."""
    unique: bytes
    """32 random bytes; no secret."""
    public: bytes
    """TPMT_PUBLIC of the key, to notice a TPM that makes another."""


@dataclass(frozen=True, slots=True)
class TpmKey:
    """``identity.on_agent.EnrolmentKey`` inside a TPM."""

    file: TpmFile
    open: OpenTpm

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return tpm_keys.spki(parse_public(self.file.public))

    def sign(self, data: bytes) -> bytes:
        """DER ECDSA over SHA-256. Raises NeedsPerson when the TPM has another key now."""
        with self.open(self.file.place) as tpm, tpm.own_key(self._template) as key:
            self._check(key.public)
            return tpm_keys.der_signature(tpm.sign(key, hashlib.sha256(data).digest()))

    @property
    def _template(self) -> Public:
        return enrolment_template(self.file.unique)

    def _check(self, public: Public) -> None:
        if public.wire != self.file.public:
            raise NeedsPerson(
                "the TPM makes another enrolment key than the one that joined",
                hint="was it cleared, or the board changed? `edgewise node forget NAME` at the "
                "hub, then `edgewise agent join - --tpm --anew` here",
            )

    def prove(self, keys: TpmKeys, challenge: JoinChallenge, bound: bytes) -> TpmProof:
        """Everything that a join by TPM needs. ``bound``: ``attestation.binding``."""
        kind = EK_ECC if parse_public(keys.ek).kind == EK_ECC.kind else EK_RSA
        with self.open(self.file.place) as tpm, tpm.attestation_key(AK) as ak:
            with tpm.endorsement_key(kind) as ek:
                activated = tpm.activate(ak, ek, challenge.blob, challenge.secret)
            with tpm.own_key(self._template) as key:
                self._check(key.public)
                certified, signature = tpm.certify(key, ak, bound)
            quote = _quote(tpm, ak, bound, challenge.pcrs)
        return TpmProof(
            keys, challenge.nonce, activated, self.file.public, certified, signature, quote
        )


def make_key(place: str, unique: bytes, open_tpm: OpenTpm) -> TpmFile:
    """A new enrolment key; ``unique``: 32 unpredictable bytes."""
    with open_tpm(place) as tpm, tpm.own_key(enrolment_template(unique)) as key:
        return TpmFile(place, unique, key.public.wire)


def keys_of(tpm: Tpm) -> TpmKeys:
    """Which TPM this is: the endorsement key that has a certificate, else the P-256 one."""
    indexes = tpm.nv_indexes(range(EK_RSA_CERTIFICATE, EK_CHAIN.stop))
    chain: tuple[bytes, ...] = ()
    template = EK_ECC
    for index, kind in ((EK_ECC_CERTIFICATE, EK_ECC), (EK_RSA_CERTIFICATE, EK_RSA)):
        if index in indexes:
            template = kind
            chain = (padding_cut(tpm.read_nv(index)),)
            break
    issuers: list[bytes] = []
    for index in indexes:
        if chain and index in EK_CHAIN and len(issuers) < MOST_ISSUERS:
            issuers += _certificates(tpm.read_nv(index))
    with tpm.endorsement_key(template) as ek, tpm.attestation_key(AK) as ak:
        return TpmKeys(ek.public.wire, ak.public.wire, chain + tuple(issuers[:MOST_ISSUERS]))


def quote(place: str, open_tpm: OpenTpm, bound: bytes, pcrs: tuple[int, ...]) -> Quote:
    """A quote by itself: a node that attests anew."""
    with open_tpm(place) as tpm, tpm.attestation_key(AK) as ak:
        return _quote(tpm, ak, bound, pcrs)


def _quote(tpm: Tpm, ak: object, bound: bytes, pcrs: tuple[int, ...]) -> Quote:
    for _ in range(TRIES):
        values = tpm.read_pcrs(pcrs)
        attested, signature = tpm.quote(ak, bound, pcrs)
        together = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
        if parse_attested(attested).digest == together:
            by_name = {str(pcr): value for pcr, value in values.items()}
            return Quote(attested, signature, by_name)
    raise TryLater("the PCRs change while they are quoted", hint="is the machine still booting?")


def _certificates(data: bytes) -> list[bytes]:
    """The DER values that stand one after the other in an NV index."""
    found = []
    while data[:1] == b"\x30":
        one = padding_cut(data)
        found.append(one)
        data = data[len(one) :] if len(one) > 1 else b""
    return found
