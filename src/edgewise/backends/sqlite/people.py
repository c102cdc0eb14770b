"""Accounts, logins, API tokens and bindings in the hub's SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from edgewise.backends.sqlite.database import Database
from edgewise.identity.people_ports import Account, ApiToken, LoginSession, PeopleStore
from edgewise.model.roles import Binding
from edgewise.protocol.codec import decode, encode

T = TypeVar("T")


class SqlitePeople:
    """The PeopleStore port on one Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accounts(self) -> tuple[Account, ...]:
        return await self._all("accounts", "name", Account)

    async def save_account(self, account: Account) -> None:
        row = (account.name, encode(account))
        await self._database.run(
            lambda c: c.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?)", row)
        )

    async def remove_account(self, name: str) -> None:
        def work(c: sqlite3.Connection) -> None:
            c.execute("DELETE FROM api_tokens WHERE owner = ?", (name,))
            c.execute("DELETE FROM logins WHERE user = ?", (name,))
            c.execute("DELETE FROM accounts WHERE name = ?", (name,))

        await self._database.run(work)

    async def sessions(self) -> tuple[LoginSession, ...]:
        return await self._all("logins", "id", LoginSession)

    async def save_session(self, session: LoginSession) -> None:
        row = (session.id, session.user, encode(session))
        await self._database.run(
            lambda c: c.execute("INSERT OR REPLACE INTO logins VALUES (?, ?, ?)", row)
        )

    async def end_sessions(self, ids: Sequence[str]) -> None:
        rows = [(one,) for one in ids]
        await self._database.run(lambda c: c.executemany("DELETE FROM logins WHERE id = ?", rows))

    async def api_tokens(self) -> tuple[ApiToken, ...]:
        return await self._all("api_tokens", "id", ApiToken)

    async def save_api_token(self, token: ApiToken) -> None:
        row = (token.id, token.owner, encode(token))
        await self._database.run(
            lambda c: c.execute("INSERT OR REPLACE INTO api_tokens VALUES (?, ?, ?)", row)
        )

    async def remove_api_tokens(self, ids: Sequence[str]) -> None:
        rows = [(one,) for one in ids]
        await self._database.run(
            lambda c: c.executemany("DELETE FROM api_tokens WHERE id = ?", rows)
        )

    async def used(self, uses: Mapping[str, tuple[datetime, str]]) -> None:
        def work(c: sqlite3.Connection) -> None:
            for identifier, (at, address) in uses.items():
                row = c.execute(
                    "SELECT body FROM api_tokens WHERE id = ?", (identifier,)
                ).fetchone()
                if row is not None:
                    kept = decode(row["body"], ApiToken, what="a stored ApiToken")
                    body = encode(msgspec.structs.replace(kept, last_used=at, last_address=address))
                    c.execute("UPDATE api_tokens SET body = ? WHERE id = ?", (body, identifier))

        await self._database.run(work)

    async def bindings(self) -> tuple[Binding, ...]:
        return await self._all("role_bindings", "name", Binding)

    async def save_bindings(self, bindings: tuple[Binding, ...]) -> None:
        rows = [(one.name, encode(one)) for one in bindings]

        def work(c: sqlite3.Connection) -> None:
            c.execute("DELETE FROM role_bindings")
            c.executemany("INSERT INTO role_bindings VALUES (?, ?)", rows)

        await self._database.run(work)

    async def _all(self, table: str, key: str, kind: type[T]) -> tuple[T, ...]:
        rows = await self._database.run(
            lambda c: c.execute(f"SELECT body FROM {table} ORDER BY {key}").fetchall()
        )
        return tuple(decode(row["body"], kind, what=f"a stored {kind.__name__}") for row in rows)


def _meets_its_port(store: SqlitePeople) -> PeopleStore:
    return store
