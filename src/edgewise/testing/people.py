"""People in memory, and a password hash that costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from edgewise.identity.people_ports import (
    Account,
    ApiToken,
    LoginSession,
    Passwords,
    PeopleStore,
)
from edgewise.model.roles import Binding


class MemoryPeople:
    """The PeopleStore port."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._sessions: dict[str, LoginSession] = {}
        self._tokens: dict[str, ApiToken] = {}
        self._bindings: tuple[Binding, ...] = ()

    async def accounts(self) -> tuple[Account, ...]:
        return tuple(self._accounts[name] for name in sorted(self._accounts))

    async def save_account(self, account: Account) -> None:
        self._accounts[account.name] = account

    async def remove_account(self, name: str) -> None:
        self._accounts.pop(name, None)
        self._sessions = {k: s for k, s in self._sessions.items() if s.user != name}
        self._tokens = {k: t for k, t in self._tokens.items() if t.owner != name}

    async def sessions(self) -> tuple[LoginSession, ...]:
        return tuple(self._sessions[one] for one in sorted(self._sessions))

    async def save_session(self, session: LoginSession) -> None:
        self._sessions[session.id] = session

    async def end_sessions(self, ids: Sequence[str]) -> None:
        for one in ids:
            self._sessions.pop(one, None)

    async def api_tokens(self) -> tuple[ApiToken, ...]:
        return tuple(self._tokens[one] for one in sorted(self._tokens))

    async def save_api_token(self, token: ApiToken) -> None:
        self._tokens[token.id] = token

    async def remove_api_tokens(self, ids: Sequence[str]) -> None:
        for one in ids:
            self._tokens.pop(one, None)

    async def used(self, uses: Mapping[str, tuple[datetime, str]]) -> None:
        for one, (at, address) in uses.items():
            if one in self._tokens:
                self._tokens[one] = msgspec.structs.replace(
                    self._tokens[one], last_used=at, last_address=address
                )

    async def bindings(self) -> tuple[Binding, ...]:
        return tuple(sorted(self._bindings, key=lambda one: one.name))

    async def save_bindings(self, bindings: tuple[Binding, ...]) -> None:
        self._bindings = bindings


class PlainPasswords:
    """Keeps what it should hash; counts the work, so that tests see it is always done."""

    def __init__(self) -> None:
        self.rounds = 1
        self.worked = 0

    async def hashed(self, password: str) -> str:
        self.worked += 1
        return f"{self.rounds}:{password}"

    async def matches(self, password: str, kept: str) -> bool:
        self.worked += 1
        return kept.partition(":")[2] == password and bool(kept)

    def outdated(self, kept: str) -> bool:
        return int(kept.partition(":")[0]) < self.rounds


def _meets_its_ports(
    store: MemoryPeople, passwords: PlainPasswords
) -> tuple[PeopleStore, Passwords]:
    return store, passwords
