"""Whether a machine is what it says: every check of a TPM's or a factory's evidence. Pure.

Laws:
- The endorsement key is one of the two standard templates, and a maker that the repo names
  has certified it, or a DeviceList has its digest.
- The attestation key is in the TPM of that endorsement key (it could open the credential)
  and is restricted: it signs nothing but what its TPM says of itself.
- The enrolment key is in the same TPM (the attestation key certifies its name) and cannot
  leave it.
- A quote is new (our nonce), over the PCRs that were asked for, adds up to the values that
  came with it, agrees with a reference, and its TPM's counters have not gone back.
- The first thing that does not hold is the reason; each has its own.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from edgewise.identity import chains, tpm_keys
from edgewise.identity.admission import Evidence, JoinRules
from edgewise.identity.reattestation import Counters
from edgewise.identity.tpm_structures import (
    AK_REQUIRED,
    ATTEST_CERTIFY,
    ATTEST_QUOTE,
    DECRYPT,
    ECC,
    ECDSA,
    EK_ECC,
    EK_RSA,
    KEY_REQUIRED,
    RESTRICTED,
    SHA256,
    Attested,
    Public,
    Scheme,
    parse_attested,
    parse_public,
)
from edgewise.model.documents.joining import PcrReference
from edgewise.model.errors import Untrusted
from edgewise.protocol.attest import FactoryProof, Quote, TpmKeys, TpmProof

Reason = Literal[
    "stale-challenge",
    "malformed",
    "odd-endorsement-key",
    "no-certificate",
    "unreadable",
    "unknown-maker",
    "outside-its-time",
    "not-a-ca",
    "wrong-kind",
    "other-certificate",
    "weak-attestation-key",
    "not-activated",
    "weak-enrolment-key",
    "other-enrolment-key",
    "other-tpm",
    "forged-quote",
    "wrong-nonce",
    "wrong-selection",
    "wrong-digest",
    "wrong-pcr",
    "counters-went-back",
    "no-serial",
    "forged-proof",
]


class Unproven(Untrusted):
    """Evidence that does not hold."""

    def __init__(self, reason: Reason, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.reason: Reason = reason


# What is signed


def binding(nonce: str, enrolment: bytes, csr: bytes) -> bytes:
    """Qualifying data of a join's quote and certification: they serve this join alone.

    ``enrolment``: DER SubjectPublicKeyInfo.
    """
    parts = b"\0".join((b"tpm-join/1", nonce.encode(), hashlib.sha256(enrolment).digest(), csr))
    return hashlib.sha256(parts).digest()


def attest_binding(nonce: str, node: str) -> bytes:
    """Qualifying data of a later quote."""
    return hashlib.sha256(b"\0".join((b"attest/1", nonce.encode(), node.encode()))).digest()


def factory_bytes(nonce: str, enrolment: bytes, csr: bytes) -> bytes:
    """What the key of a factory certificate signs."""
    return b"\0".join((b"factory/1", nonce.encode(), hashlib.sha256(enrolment).digest(), csr))


# Keys


def endorsement_key(keys: TpmKeys) -> Public:
    """The endorsement key, once it can be one. Raises Unproven."""
    ek = _public(keys.ek)
    blank = EK_ECC if ek.kind == ECC else EK_RSA
    if replace(ek, x=blank.x, y=blank.y, modulus=blank.modulus, exponent=0) != blank:
        raise Unproven(
            "odd-endorsement-key",
            "the endorsement key is not of the standard template",
            hint="P-256 (L-2) and RSA 2048 (L-1) are understood",
        )
    return ek


def attestation_key(keys: TpmKeys) -> Public:
    """The attestation key, once it is one that cannot be misused. Raises Unproven."""
    ak = _public(keys.ak)
    if not ak.has(AK_REQUIRED, DECRYPT):
        raise Unproven(
            "weak-attestation-key",
            "the attestation key is not restricted to its TPM's own words",
            hint="a key that signs anything proves nothing",
        )
    if ak.kind != ECC or ak.scheme != Scheme(ECDSA, SHA256):
        raise Unproven("weak-attestation-key", "the attestation key is not ECDSA P-256, SHA-256")
    return ak


def judge_keys(keys: TpmKeys, rules: JoinRules, now: datetime) -> Evidence:
    """Who vouches for this TPM. Raises Unproven."""
    ek = endorsement_key(keys)
    attestation_key(keys)
    spki = _spki(ek)
    digest = hashlib.sha256(spki).hexdigest()
    evidence = Evidence("tpm", f"ek:{digest}", "its device list", ek=digest, ak=keys.ak)
    listed = digest in rules.by_ek
    try:
        maker = _maker(keys.chain, spki, rules, now)
    except Unproven:
        if listed:
            return evidence  # the repo names this very key: no maker needs to
        raise
    return replace(evidence, says=maker, genuine=True)


def _maker(chain: tuple[bytes, ...], spki: bytes, rules: JoinRules, now: datetime) -> str:
    hint = "put its root into join.tpm.manufacturerRoots, or its key into a DeviceList"
    if not chain:
        raise Unproven(
            "no-certificate", "the TPM holds no certificate of its endorsement key", hint=hint
        )
    found = chains.judge_chain(chain, rules.makers, now)
    if isinstance(found, chains.Broken):
        raise Unproven(found.flaw, f"endorsement certificate: {found.what}", hint=hint)
    if not chains.is_for_ek(found.certificate):
        raise Unproven("wrong-kind", "the certificate is not one for endorsement keys")
    if found.key != spki:
        raise Unproven("other-certificate", "the certificate is of another endorsement key")
    return found.maker


# A join


def judge_join(
    proof: TpmProof,
    enrolment: bytes,
    csr: bytes,
    *,
    expected: bytes,
    rules: JoinRules,
    now: datetime,
) -> tuple[Evidence, Attested]:
    """What this proof shows, and the quote in it. ``expected``: what the credential held.

    ``enrolment``: DER SubjectPublicKeyInfo of the key that the machine enrols with.
    Raises Unproven. The quote's PCRs are not compared here: labels decide which count.
    """
    evidence = judge_keys(proof.keys, rules, now)
    if not hmac.compare_digest(proof.activated, expected):
        raise Unproven(
            "not-activated",
            "the TPM of this endorsement key could not open the credential",
            hint="the attestation key is in another TPM, or the challenge was for another",
        )
    ak = attestation_key(proof.keys)
    bound = binding(proof.nonce, enrolment, csr)
    _judge_enrolment(proof, enrolment, ak, bound)
    return evidence, judge_quote(proof.quote, ak, bound, rules.pcrs)


def _judge_enrolment(proof: TpmProof, enrolment: bytes, ak: Public, bound: bytes) -> None:
    key = _public(proof.enrolment)
    if not key.has(KEY_REQUIRED, RESTRICTED | DECRYPT) or key.kind != ECC:
        raise Unproven("weak-enrolment-key", "the enrolment key could leave its TPM")
    if _spki(key) != enrolment:
        raise Unproven("other-enrolment-key", "the TPM speaks of another enrolment key")
    said = _attested(proof.certified, proof.certified_signature, ak, "other-tpm")
    if said.kind != ATTEST_CERTIFY or said.name != key.name:
        raise Unproven("other-tpm", "the TPM does not certify this enrolment key")
    if said.extra != bound:
        raise Unproven("wrong-nonce", "the certification was made for another join")


def _attested(attested: bytes, signature: bytes, ak: Public, otherwise: Reason) -> Attested:
    try:
        signed = tpm_keys.signed_by(ak, signature, attested)
        said = parse_attested(attested)
    except Untrusted as error:
        raise Unproven("malformed", str(error), hint=error.hint) from error
    if not signed:
        raise Unproven(otherwise, "the attestation key has not signed this")
    return said


# A quote


def judge_quote(quote: Quote, ak: Public, extra: bytes, pcrs: Iterable[int]) -> Attested:
    """The quote, once it is this TPM's own, new, and adds up. Raises Unproven."""
    said = _attested(quote.attested, quote.signature, ak, "forged-quote")
    if said.kind != ATTEST_QUOTE:
        raise Unproven("forged-quote", "what was signed is not a quote")
    if said.extra != extra:
        raise Unproven("wrong-nonce", "the quote answers another challenge")
    wanted = tuple(sorted(pcrs))
    if said.selection != ((SHA256, wanted),):
        raise Unproven("wrong-selection", f"the quote is not over the PCRs {list(wanted)}")
    values = _values(quote)
    if tuple(sorted(values)) != wanted or any(len(value) != 32 for value in values.values()):
        raise Unproven("wrong-digest", "the quote comes without the values that it is over")
    if hashlib.sha256(b"".join(values[pcr] for pcr in wanted)).digest() != said.digest:
        raise Unproven("wrong-digest", "the values that came with the quote do not add up to it")
    return said


def _values(quote: Quote) -> dict[int, bytes]:
    try:
        return quote.values
    except Untrusted as error:
        raise Unproven("malformed", str(error)) from error


def compare(pcrs: Mapping[int, bytes], references: Iterable[PcrReference]) -> str:
    """Name of the reference that these values agree with; "" when there is none to compare.

    Raises Unproven, naming the PCRs that differ from the closest reference.
    """
    closest: list[int] | None = None
    nearest = ""
    for one in references:
        differ = sorted(
            int(pcr) for pcr, value in one.pcrs.items() if pcrs.get(int(pcr), b"").hex() != value
        )
        if not differ:
            return one.name
        if closest is None or len(differ) < len(closest):
            closest, nearest = differ, one.name
    if closest is None:
        return ""
    which = ", ".join(map(str, closest))
    raise Unproven(
        "wrong-pcr",
        f"PCR {which} is not as in any reference (closest: {nearest})",
        hint="a new image? add its values to join.attestation.references, "
        "`edgewise node tpm reference NODE` prints them",
    )


UNSAFE_CLOCK: Final = 5_000_000
"""Milliseconds that the clock may fall back over a sudden power cut: TPMs save it at least
every 2^22 ms (part 1, 36.3.2)."""


def check_counters(before: Counters, said: Attested) -> None:
    """Raise Unproven when the TPM's counters have gone back: it was cleared, or is another's.

    The same TPM counts resets up, and its clock never goes back by more than a power cut.
    """
    back = said.resets < before.resets
    slack = 0 if said.safe else UNSAFE_CLOCK
    if back or said.clock + slack < before.clock:
        raise Unproven(
            "counters-went-back",
            f"the TPM's clock or reset counter went back: {before.clock} ms and "
            f"{before.resets} resets, now {said.clock} ms and {said.resets}",
            hint="was the TPM cleared? forget the node and join it again",
        )


# A factory certificate


def judge_factory(
    proof: FactoryProof, enrolment: bytes, csr: bytes, rules: JoinRules, now: datetime
) -> Evidence:
    """Whose certificate it is, once the machine has shown that it holds the key."""
    found = chains.judge_chain(proof.chain, rules.factories, now)
    if isinstance(found, chains.Broken):
        raise Unproven(
            found.flaw,
            f"factory certificate: {found.what}",
            hint="put the factory's root into join.factory.roots of the Workspace",
        )
    if not _signed(found.certificate, proof.proof, factory_bytes(proof.nonce, enrolment, csr)):
        raise Unproven("forged-proof", "the request is not signed by the factory certificate's key")
    if not found.serial:
        raise Unproven(
            "no-serial",
            "the factory certificate has no serialNumber in its subject",
            hint="IEEE 802.1AR asks for one; without it the machine cannot be told from others",
        )
    digest = hashlib.sha256(found.key).hexdigest()
    return Evidence("factory", f"idevid:{digest}", found.maker, serial=found.serial, genuine=True)


def _signed(certificate: x509.Certificate, signature: bytes, data: bytes) -> bool:
    try:
        key = certificate.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True


def _public(data: bytes) -> Public:
    try:
        return parse_public(data)
    except Untrusted as error:
        raise Unproven("malformed", str(error), hint=error.hint) from error


def _spki(public: Public) -> bytes:
    try:
        return tpm_keys.spki(public)
    except Untrusted as error:
        raise Unproven("malformed", str(error), hint=error.hint) from error
