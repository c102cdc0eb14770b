"""What identity needs from the outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from edgewise.identity.jwt_keys import JwtKey
from edgewise.identity.rotation import Lineage
from edgewise.model.names import SpiffeId
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
)


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

    async def forget_tokens(self, before: datetime) -> None:
        """Forget tokens that expired before this."""


class Lineages(Protocol):
    """What was issued to whom. Implementations: backends.sqlite.enrolments, testing.enrolments.

    ``Enrolments.forget`` forgets the lineage as well, where one object is both.
    """

    async def lineage(self, name: str) -> Lineage:
        """An empty one for a name that is not known."""

    async def keep_lineage(self, name: str, lineage: Lineage) -> None: ...


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


class JoinLine(Protocol):
    """What a machine needs to reach for its identity. Implementation: net.joining."""

    async def join(self, request: JoinRequest) -> JoinReply: ...
    async def challenge(self) -> RejoinChallenge: ...
    async def rejoin(self, request: RejoinRequest) -> JoinReply: ...
    async def renew(self, request: RenewRequest) -> RenewReply: ...
