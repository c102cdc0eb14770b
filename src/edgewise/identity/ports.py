"""What identity needs from the outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from edgewise.identity.jwt_keys import JwtKey
from edgewise.identity.reattestation import Attestation
from edgewise.identity.rotation import Lineage
from edgewise.identity.tpm_structures import Public, Sealed
from edgewise.model.names import SpiffeId
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    JoinChallenge,
    JoinChallengeRequest,
)
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
)
from edgewise.protocol.workload import WorkloadReply, WorkloadRequest


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A node or relay that has joined."""

    name: str
    role: Literal["node", "relay"]
    region: str
    key: bytes
    """DER SubjectPublicKeyInfo of its enrolment key."""
    labels: dict[str, str]
    """From its token; documents in the fleet repo win over them."""
    joined: datetime
    age_recipient: str = ""
    platform: str = ""
    urls: tuple[str, ...] = ()
    """Relays: where nodes reach it."""
    via: str = ""
    """Relay it joined through; empty: the hub."""
    quarantined: str = ""
    """Why it gets nothing more, or empty."""
    method: Literal["token", "tpm", "factory"] = "token"
    """What let it in."""
    evidence: str = ""
    """What it proved besides: ``ek:<SHA-256>``, ``idevid:<SHA-256>``, or nothing."""
    vouched: str = ""
    """For people: who vouches for that."""
    serial: str = ""
    """Of its factory certificate."""
    ak: bytes = b""
    """TPMT_PUBLIC of the key that it attests with; empty: it has no TPM."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A join token as the hub keeps it: never the secret itself."""

    identifier: str
    secret_sha256: str
    role: Literal["node", "relay"]
    region: str
    labels: dict[str, str]
    expires: datetime
    uses: int
    bound: dict[str, str]
    """Hex SHA-256 of each enrolment key that used it, to the name it joined as."""


class Enrolments(Protocol):
    """Implementations: backends.sqlite.enrolments, testing.enrolments."""

    async def get(self, name: str) -> Enrolled | None: ...
    async def all(self) -> tuple[Enrolled, ...]: ...
    async def forget(self, name: str) -> None:
        """Idempotent. The name can be used again by another key."""

    async def quarantine(self, name: str, reason: str) -> None:
        """An empty reason lifts it."""

    async def add_token(self, token: TokenRecord) -> None: ...
    async def token(self, identifier: str) -> TokenRecord | None: ...
    async def tokens(self) -> tuple[TokenRecord, ...]: ...
    async def revoke_token(self, identifier: str) -> None: ...

    async def bind(self, identifier: str, enrolled: Enrolled) -> None:
        """Bind the token to the key and keep the enrolment, in one transaction.

        Repeating it with the same token and key changes nothing. Raises NotFound for a
        token that was revoked in between.
        """

    async def enrol(self, enrolled: Enrolled) -> None:
        """Keep an enrolment that came about without a token. Repeating it changes nothing."""

    async def proven_by(self, evidence: str) -> Enrolled | None:
        """Who has this evidence; None for an empty one."""

    async def forget_tokens(self, before: datetime) -> None:
        """Forget tokens that expired before this."""


class Lineages(Protocol):
    """What was issued to whom. Implementations: backends.sqlite.enrolments, testing.enrolments.

    ``Enrolments.forget`` forgets the lineage as well, where one object is both.
    """

    async def lineage(self, name: str) -> Lineage:
        """An empty one for a name that is not known."""

    async def keep_lineage(self, name: str, lineage: Lineage) -> None: ...


class Attestations(Protocol):
    """What nodes' TPMs have shown. Implementations: backends.sqlite.enrolments,
    testing.enrolments. ``Enrolments.forget`` forgets a node's."""

    async def attestations(self) -> dict[str, Attestation]:
        """All, by name."""

    async def attestation(self, name: str) -> Attestation | None: ...
    async def keep_attestation(self, name: str, attestation: Attestation) -> None:
        """Replace what is known of one node."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate."""

    chain: tuple[bytes, ...]
    """DER, leaf first, without the root."""
    serial: str
    """Lower-case hex without leading zeros, as OpenSSL prints it."""
    not_before: datetime
    not_after: datetime


class Issuer(Protocol):
    """A certificate authority that can make SVIDs of at least one region.

    Implementations: backends.pki.authority.Authority (hub), .RegionalAuthority (relay).
    """

    @property
    def roots(self) -> tuple[bytes, ...]:
        """DER root certificates."""

    def issue(self, identity: SpiffeId, csr: bytes, urls: tuple[str, ...] = ()) -> Issued:
        """An SVID for the key in a PKCS#10 request; names in the request are ignored.

        A relay's also carries the hosts of its ``urls``, for curl and Prometheus.

        Raises Untrusted for a request that is malformed, not signed by its own key, or of
        another kind of key than P-256; Forbidden for an identity that is not its to give.
        """


class WorkloadIssuer(Protocol):
    """Makes X509-SVIDs of workloads. The same implementations as ``Issuer``."""

    def issue_workload(
        self, identity: SpiffeId, csr: bytes, dns: tuple[str, ...], life: timedelta
    ) -> tuple[Issued, tuple[str, ...]]:
        """An SVID for the key in a PKCS#10 request, and which of the names it carries.

        It may be client and server. Raises as ``Issuer.issue``, and BadUsage for something
        that is no DNS name.
        """


class JwtKeyring(Protocol):
    """The keys that sign JWT-SVIDs. Implementation: backends.pki.jwt.JwtKeyFiles."""

    def keys(self, region: str) -> tuple[JwtKey, ...]:
        """Every key for this region; the first is made where there is none."""

    def sign(self, region: str, kid: str, data: bytes) -> bytes:
        """``r`` and ``s``. Raises NeedsPerson when the key is gone."""


class RootIssuer(Issuer, Protocol):
    """The hub's authority, which also makes regional ones."""

    def issue_regional(self, region: str, csr: bytes, urls: tuple[str, ...]) -> tuple[bytes, ...]:
        """A regional CA certificate (DER) and what signed it, without the root.

        It can only sign names in its region's trust domain, and host names of ``urls``.
        """


class WorkloadIssuerLine(Protocol):
    """Whoever issues identities of workloads. Implementation: net.workload_line."""

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        """As many answers as there were requests. Raises what the far end says."""


class JoinLine(Protocol):
    """What a machine needs to reach for its identity. Implementation: net.joining."""

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge: ...
    async def join(self, request: JoinRequest) -> JoinReply: ...
    async def challenge(self) -> RejoinChallenge: ...
    async def rejoin(self, request: RejoinRequest) -> JoinReply: ...
    async def renew(self, request: RenewRequest) -> RenewReply: ...


class AttestLine(Protocol):
    """What a node with a TPM needs to reach. Implementation: net.joining."""

    async def attest_challenge(self, request: AttestChallengeRequest) -> AttestChallenge: ...
    async def attest(self, request: AttestRequest) -> AttestReply: ...


class HubDoor(JoinLine, AttestLine, Protocol):
    """What a relay passes on."""


class LoadedKey(Protocol):
    """A key inside a TPM, while it is loaded."""

    @property
    def public(self) -> Public: ...


class ParameterSession(Protocol):
    """An encrypted line to a TPM, for one command. Implementation: identity.tpm_session.

    Apart from ``Tpm`` because it needs a cipher, which a resident agent does not load.
    """

    start: bytes
    """Parameters of TPM2_StartAuthSession."""

    def begun(self, nonce: bytes) -> None:
        """The nonce of the TPM's answer."""

    def outgoing(self, code: int, name: bytes, parameters: bytes, what: int) -> tuple[bytes, bytes]:
        """Authorisation without its handle, and encrypted parameters."""

    def incoming(self, code: int, parameters: bytes, area: bytes, what: int) -> bytes:
        """Decrypted parameters. Raises Untrusted for an answer that the TPM did not make."""


NewSession = Callable[[Public], ParameterSession]
"""A session whose salt only the holder of this key can open."""


class Tpm(Protocol):
    """The TPM of this machine. Implementation: host.tpm.

    Every call may raise TryLater (busy, gone), Untrusted (an answer that is none) and
    host.tpm.TpmRefused (its own refusal).
    """

    def endorsement_key(self, template: Public) -> AbstractContextManager[LoadedKey]: ...
    def attestation_key(self, template: Public) -> AbstractContextManager[LoadedKey]: ...
    def own_key(self, template: Public) -> AbstractContextManager[LoadedKey]: ...

    def sign(self, key: Any, digest: bytes) -> bytes:
        """TPMT_SIGNATURE over a SHA-256 digest; ``key`` is one of its own loaded keys."""

    def quote(self, key: Any, extra: bytes, pcrs: Iterable[int]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE."""

    def certify(self, subject: Any, key: Any, extra: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE."""

    def activate(self, key: Any, ek: Any, blob: bytes, secret: bytes) -> bytes:
        """What a credential holds."""

    def seal(self, secret: bytes, session: NewSession) -> Sealed:
        """At most SEAL_LARGEST bytes, for this TPM alone, until it is cleared."""

    def unseal(self, sealed: Sealed, session: NewSession) -> bytes:
        """Raises NeedsPerson for what another TPM sealed, or this one before it was cleared."""

    def read_pcrs(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """SHA-256 bank."""

    def nv_indexes(self, among: range) -> tuple[int, ...]:
        """Defined NV indexes."""

    def read_nv(self, index: int) -> bytes:
        """Content of an NV index."""


OpenTpm = Callable[[str], AbstractContextManager[Tpm]]
"""Opens a TPM by its place: ``/dev/tpmrm0``, ``unix:PATH``. Raises NeedsPerson."""
