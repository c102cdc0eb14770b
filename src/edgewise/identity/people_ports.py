"""What the people's side of identity keeps, and what it needs from the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from edgewise.model.labels import Selector
from edgewise.model.roles import Binding, Role

Origin = Literal["local", "oidc"]


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """A person who has logged in, or may."""

    name: str
    """A DNS label: the last segment of ``/user/<name>``."""
    origin: Origin
    created: datetime
    groups: tuple[str, ...] = ()
    """Of a local user as an administrator set them; of others as the provider last said."""
    password: str = ""
    """Argon2id, in the form of the PHC string format; never the password."""
    subject: str = ""
    """``issuer NUL sub`` of the provider: whoever has it is this person, whatever it is called."""
    disabled: str = ""
    """Why it may not log in and nothing of it counts, or empty."""
    last_login: datetime | None = None
    addresses: tuple[str, ...] = ()
    """Where it last logged in from, newest first: an attacker elsewhere cannot slow it there."""


class LoginSession(msgspec.Struct, frozen=True, omit_defaults=True):
    """One login: its certificates count until it ends."""

    id: str
    user: str
    started: datetime
    expires: datetime
    """No certificate is renewed beyond this."""
    address: str
    serials: tuple[str, ...]
    """Of its certificates, newest first, lower-case hex; an older one stays good for commands
    that run while another renews."""


class ApiToken(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API token as it is kept: never the token itself."""

    id: str
    owner: str
    """The user who made it; it may never do more than its owner may now."""
    role: Role
    secret_sha256: str
    created: datetime
    expires: datetime
    note: str = ""
    selector: Selector = Selector()
    fleets: tuple[str, ...] = ()
    last_used: datetime | None = None
    last_address: str = ""


class PeopleStore(Protocol):
    """Implementations: backends.sqlite.people, testing.people. All is read at the start."""

    async def accounts(self) -> tuple[Account, ...]: ...
    async def save_account(self, account: Account) -> None: ...
    async def remove_account(self, name: str) -> None:
        """With its sessions and API tokens, in one transaction. Idempotent."""

    async def sessions(self) -> tuple[LoginSession, ...]: ...
    async def save_session(self, session: LoginSession) -> None: ...
    async def end_sessions(self, ids: Sequence[str]) -> None: ...

    async def api_tokens(self) -> tuple[ApiToken, ...]: ...
    async def save_api_token(self, token: ApiToken) -> None: ...
    async def remove_api_tokens(self, ids: Sequence[str]) -> None: ...
    async def used(self, uses: Mapping[str, tuple[datetime, str]]) -> None:
        """When, and from which address, tokens were last used; unknown ones are passed over."""

    async def bindings(self) -> tuple[Binding, ...]:
        """As the last good commit had them: they count from the start of a hub."""

    async def save_bindings(self, bindings: tuple[Binding, ...]) -> None: ...


class Passwords(Protocol):
    """A slow hash. Implementations: backends.passwords, testing.people."""

    async def hashed(self, password: str) -> str:
        """Raises TryLater when too many wait for one."""

    async def matches(self, password: str, kept: str) -> bool:
        """Takes as long for an empty ``kept`` (nobody) as for any other."""

    def outdated(self, kept: str) -> bool:
        """Whether the parameters have grown since, so that it should be made anew."""
