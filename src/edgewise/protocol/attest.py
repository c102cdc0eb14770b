"""How a machine proves what it is: by its TPM, or by the certificate of its factory.

``POST /v1/join/challenge`` gives a nonce (and a credential that only this TPM can open);
``JoinRequest`` carries the proof. A node that has joined with a TPM says anew what it booted,
``POST /v1/attest/challenge`` and ``POST /v1/attest``, as often as the fleet repo asks.

Structures of the TPM travel as the TPM makes them (TCG TPM 2.0 Library, part 2), without
the length of a TPM2B in front.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgewise.model.errors import Untrusted


class TpmKeys(msgspec.Struct, frozen=True):
    """Which TPM."""

    ek: bytes
    """TPMT_PUBLIC of its endorsement key, made of template L-1 or L-2."""
    ak: bytes
    """TPMT_PUBLIC of the key that attests."""
    chain: tuple[bytes, ...] = ()
    """DER: the endorsement key's certificate first, then what the TPM holds of its issuers."""


class JoinChallengeRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """For anybody: it costs the hub a moment and no memory."""

    tpm: TpmKeys | None = None


class JoinChallenge(msgspec.Struct, frozen=True, omit_defaults=True):
    """Good for two minutes and for one join."""

    nonce: str
    blob: bytes = b""
    """TPMS_ID_OBJECT: with ``secret`` for TPM2_ActivateCredential."""
    secret: bytes = b""
    pcrs: tuple[int, ...] = ()
    """Which PCRs (SHA-256) the quote shall be over."""


class Quote(msgspec.Struct, frozen=True):
    """What a TPM says of what was booted."""

    attested: bytes
    """TPMS_ATTEST."""
    signature: bytes
    """TPMT_SIGNATURE by the attestation key."""
    pcrs: dict[str, bytes]
    """PCR (``"7"``) to the value that the quote's digest is over."""

    @property
    def values(self) -> dict[int, bytes]:
        """By number. Raises Untrusted for keys that are no PCR."""
        if not all(key.isascii() and key.isdecimal() and len(key) <= 2 for key in self.pcrs):
            raise Untrusted("a quote comes with values of what is no PCR")
        return {int(key): value for key, value in self.pcrs.items()}


class TpmProof(msgspec.Struct, frozen=True):
    """That the enrolment key, the attestation key and the endorsement key are in one TPM."""

    keys: TpmKeys
    nonce: str
    activated: bytes
    """What was in the credential: the endorsement key and the attestation key are together."""
    enrolment: bytes
    """TPMT_PUBLIC of the enrolment key."""
    certified: bytes
    """TPMS_ATTEST of TPM2_Certify: the enrolment key and the attestation key are together."""
    certified_signature: bytes
    quote: Quote


class FactoryProof(msgspec.Struct, frozen=True):
    """That this machine holds the key of its factory certificate (IEEE 802.1AR IDevID)."""

    nonce: str
    chain: tuple[bytes, ...]
    """DER, the device's certificate first."""
    proof: bytes
    """Its signature over ``factory/1 NUL nonce NUL enrolment key NUL csr``."""


class AttestChallengeRequest(msgspec.Struct, frozen=True):
    node: str


class AttestChallenge(msgspec.Struct, frozen=True):
    """Good for two minutes and for one quote."""

    nonce: str
    pcrs: tuple[int, ...]


class AttestRequest(msgspec.Struct, frozen=True):
    """``quote``'s qualifying data is SHA-256 of ``attest/1 NUL nonce NUL node``."""

    node: str
    nonce: str
    quote: Quote


class AttestReply(msgspec.Struct, frozen=True):
    """What the hub makes of it."""

    outcome: Literal["Trusted", "Failing"]
    next_s: float
    """When to come again, in seconds: sooner while it fails."""
    reason: str = ""
    what: str = ""
