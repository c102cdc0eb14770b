"""What identity needs from the outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol


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

        Repeating it with the same token and key changes nothing.
        """
