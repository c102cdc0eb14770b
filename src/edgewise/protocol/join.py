"""Joining and renewing: from a token or a certificate to a new certificate.

A token string carries where to go and whom to trust, so that a node needs nothing else:
``ew1.`` and base64url of the canonical JSON of ``Token``.
"""

from __future__ import annotations

import base64
from typing import Literal

import msgspec

from edgewise.model.errors import BadUsage, Untrusted
from edgewise.protocol.attest import FactoryProof, TpmProof
from edgewise.protocol.codec import decode, encode

_PREFIX = "ew1."


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `edgewise node token` prints. ``secret`` is the only secret in it."""

    urls: tuple[str, ...]
    """Where to join, in order of preference: ``https://host:port``."""
    root: str
    """Hex SHA-256 of the root certificate (DER): pins the first TLS connection."""
    identifier: str
    secret: str
    tuf_root: str = ""
    """Hex SHA-256 of the initial TUF root metadata, so that a relay cannot give another."""

    def text(self) -> str:
        """The string that is handed to a node."""
        return _PREFIX + base64.urlsafe_b64encode(encode(self)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises BadUsage, without repeating the secret, for anything but a token."""
        stripped = text.strip()
        if not stripped.startswith(_PREFIX):
            raise BadUsage(
                "this is not a join token (they start with ew1.)",
                hint="make one with `edgewise node token`",
            )
        packed = stripped.removeprefix(_PREFIX)
        try:
            data = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
            return decode(data, cls, what="join token", at_most=16 << 10)
        except (ValueError, Untrusted) as error:
            raise BadUsage("the join token is damaged", hint="copy it again, whole") from error


class JoinRequest(msgspec.Struct, frozen=True):
    """First contact, over TLS that only proves the hub. Repeating it is harmless."""

    token: str
    """Identifier of the token; empty for a machine that joins by its proof alone."""
    secret: str
    role: Literal["node", "relay"]
    name: str
    """Empty, without a token: the one that the fleet repo has for this machine."""
    enrolment_key: bytes
    """DER SubjectPublicKeyInfo of the key that never expires; receipts are signed with it."""
    csr: bytes
    """DER PKCS#10 of the SVID key (for a relay: of its serving key)."""
    proof: bytes
    """Signature by the enrolment key over ``join/2 NUL`` and the SHA-256 of each of: token (or
    the nonce of the proof), role, name, age recipient, platform, URLs, CA request, request."""
    age_recipient: str = ""
    """``age1...``: secrets for this node are sealed to it."""
    ca_csr: bytes = b""
    """Relays only: DER PKCS#10 of its regional CA key."""
    platform: str = ""
    urls: tuple[str, ...] = ()
    """Relays only: where nodes reach it."""
    tpm: TpmProof | None = None
    """Alone, or beside a token."""
    factory: FactoryProof | None = None
    """Alone."""


class JoinReply(msgspec.Struct, frozen=True):
    """The node's first certificate and what it must trust."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    """DER, leaf first, without the root."""
    roots: tuple[bytes, ...]
    """DER root certificates to trust from now on."""
    tuf_root: bytes
    """Initial TUF root metadata."""
    urls: tuple[str, ...]
    """Where to sync from now on."""
    hub_id: str = ""
    """The hub's SPIFFE ID."""
    ca_chain: tuple[bytes, ...] = ()
    """Relays only: its regional CA certificate, then what signed it."""
    region: str = ""


class RenewRequest(msgspec.Struct, frozen=True):
    """A new certificate for the caller's own SPIFFE ID, over mTLS."""

    csr: bytes
    ca_csr: bytes = b""
    proof: bytes = b""
    """Signature by the enrolment key over ``renew/1 NUL csr``; asked of nodes whose key is in a
    TPM, so that a stolen disk cannot renew."""


class RenewReply(msgspec.Struct, frozen=True):
    """The renewed certificate and the present roots."""

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    ca_chain: tuple[bytes, ...] = ()


class RejoinChallenge(msgspec.Struct, frozen=True):
    """A nonce for a node whose certificate has expired; signed with its enrolment key."""

    nonce: str


class RejoinRequest(msgspec.Struct, frozen=True):
    """``proof`` is the enrolment key's signature over ``rejoin/1 NUL nonce NUL last NUL csr``."""

    name: str
    nonce: str
    csr: bytes
    proof: bytes
    last: str = ""
    """Serial number (hex) of the last certificate it held: two users of one key show."""


class Roots(msgspec.Struct, frozen=True):
    """Answer of GET /v1/roots, for anyone: what the token's pinned digest is looked up in.

    The connection that carries it is not verified yet; the digest makes up for that.
    """

    roots: tuple[bytes, ...]
    """DER."""
