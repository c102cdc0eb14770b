"""Logging in, users and API tokens: what the CLI and the hub say to each other."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from edgewise.model.roles import Role

Origin = Literal["local", "oidc", "certificate"]
"""``certificate``: the administrator of `edgewise up`."""


class LoginWays(msgspec.Struct, frozen=True):
    """GET /v1/login: how people log in here."""

    organisation: str
    password: bool
    """Whether there are local users."""
    oidc: str = ""
    """Issuer of the OpenID provider; empty when there is none."""


class PasswordLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/login/password."""

    user: str
    password: str
    csr: bytes
    """PKCS#10 request (DER) of a P-256 key that stays on the caller's machine."""


class DeviceStart(msgspec.Struct, frozen=True):
    """Answer of POST /v1/login/device (RFC 8628, section 3.2)."""

    handle: str
    """For POST /v1/login/device/poll; nobody else may know it."""
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_s: float
    interval_s: float
    """Ask no more often than this."""


class DevicePoll(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/login/device/poll."""

    handle: str
    csr: bytes


class LoginReply(msgspec.Struct, frozen=True):
    """A person's certificate, and what its context file says."""

    user: str
    spiffe_id: str
    chain: tuple[bytes, ...]
    """DER, leaf first, without the root."""
    roots: tuple[bytes, ...]
    expires: datetime
    """Of the certificate; `edgewise` renews it at half of its life."""
    login_until: datetime
    """Then a person has to log in again."""
    organisation: str
    hub_id: str
    age_recipient: str = ""


class DeviceAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/login/device/poll."""

    state: Literal["pending", "done"]
    wait_s: float = 0.0
    """``pending``: until the next poll."""
    login: LoginReply | None = None


class LoginRenewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/login/renew."""

    csr: bytes


class GrantLine(msgspec.Struct, frozen=True):
    """One role that somebody has."""

    role: Role
    on: str
    """In words: ``everything``, ``fleet kiosks, site=berlin``."""
    binding: str


class WhoAmI(msgspec.Struct, frozen=True):
    """GET /v1/whoami."""

    user: str
    spiffe_id: str
    origin: Origin
    groups: tuple[str, ...]
    grants: tuple[GrantLine, ...]
    api_token: str = ""
    """Identifier of the token that was sent; empty for a certificate."""
    login_until: datetime | None = None


class UserRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/users: a new local user."""

    name: str
    password: str
    groups: tuple[str, ...] = ()


class UserChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/users/{name}/groups: its groups from now on."""

    groups: tuple[str, ...]


class PasswordChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/users/{name}/password."""

    new: str
    old: str = ""
    """For one's own; an administrator needs none for others."""


class UserCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/users/{name}/{disable,enable}."""

    reason: str = ""


class UserLine(msgspec.Struct, frozen=True):
    """One person that the hub knows."""

    name: str
    origin: Origin
    groups: tuple[str, ...]
    grants: tuple[GrantLine, ...]
    created: datetime
    last_login: datetime | None
    disabled: str = ""
    """Why, or empty."""
    logins: int = 0
    """Sessions that are open."""
    api_tokens: int = 0


class ApiTokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/api-tokens."""

    role: Role = "viewer"
    selector: str = ""
    """As kubectl takes it; empty: all nodes."""
    fleets: tuple[str, ...] = ()
    expires_s: float = 30 * 86400.0
    note: str = ""
    """What it is for."""


class ApiTokenCreated(msgspec.Struct, frozen=True):
    """The only time the token is shown."""

    id: str
    token: str
    """Send it as ``Authorization: Bearer ...``."""
    expires: datetime


class ApiTokenLine(msgspec.Struct, frozen=True):
    """An API token without its secret."""

    id: str
    owner: str
    role: Role
    on: str
    created: datetime
    expires: datetime
    note: str = ""
    last_used: datetime | None = None
    last_address: str = ""
