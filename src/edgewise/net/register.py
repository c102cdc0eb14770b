"""Who the hub knows, in memory: asked at every call of a person, saved before it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import msgspec

from edgewise.identity.people import Rights, rights_of
from edgewise.identity.people_ports import Account, ApiToken, LoginSession, PeopleStore
from edgewise.model.errors import Conflict, NotFound
from edgewise.model.roles import ADMIN_NAME, Binding
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock

MOST_ACCOUNTS: Final = 10_000
"""An OpenID provider lets anybody of an organisation in; this many are kept in memory."""
MOST_LOGINS: Final = 20
"""Open sessions of one person: the oldest ends when there are more."""
MOST_TOKENS: Final = 200
"""API tokens of one person."""
SERIALS: Final = 4
"""Certificates of a session that count: commands that run while another renews."""
TIDY: Final = timedelta(minutes=1)
"""How often what has expired is removed for good: a clock that is set back revives nothing."""

_replace = msgspec.structs.replace


@dataclass(slots=True)
class PeopleRegister:
    """Open it with ``PeopleRegister.open``; ``run`` beside the server."""

    store: PeopleStore
    clock: Clock
    chance: Chance
    bindings: tuple[Binding, ...] = ()
    _accounts: dict[str, Account] = field(default_factory=dict)
    _sessions: dict[str, LoginSession] = field(default_factory=dict)
    _by_serial: dict[str, str] = field(default_factory=dict)
    _tokens: dict[str, ApiToken] = field(default_factory=dict)
    _uses: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    _rights: dict[str, Rights] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    async def open(cls, store: PeopleStore, clock: Clock, chance: Chance) -> PeopleRegister:
        """Read everything."""
        register = cls(store, clock, chance, await store.bindings())
        register._accounts = {one.name: one for one in await store.accounts()}
        register._tokens = {one.id: one for one in await store.api_tokens()}
        for session in await store.sessions():
            register._remember(session)
        return register

    async def run(self) -> None:
        """Once a minute ``tidy``, until cancelled."""
        while True:
            await self.clock.sleep(TIDY)
            await self.tidy()

    async def tidy(self) -> None:
        """Remove what has expired, and save when tokens were last used."""
        now = self.clock.now()
        uses, self._uses = self._uses, {}
        if uses:
            await self.store.used(uses)
        ended = [one.id for one in self._sessions.values() if one.expires <= now]
        if ended:
            await self.end_sessions(ended)
        expired = [one.id for one in self._tokens.values() if one.expires <= now]
        if expired:
            await self.remove_tokens(expired)

    # Rights.

    def rights(self, name: str) -> Rights:
        """What the bindings give to a person now; nothing for one who is disabled."""
        known = self._rights.get(name)
        if known is None:
            account = self._accounts.get(name)
            groups = account.groups if account else ()
            known = rights_of(name, groups, self.bindings)
            if name != ADMIN_NAME and (account is None or account.disabled):
                known = Rights()
            self._rights[name] = known
        return known

    async def bind(self, bindings: tuple[Binding, ...]) -> bool:
        """Let these bindings count from now on; returns whether they are others."""
        if bindings == self.bindings:
            return False
        await self.store.save_bindings(bindings)
        self.bindings = bindings
        self._rights.clear()
        return True

    # Accounts.

    def account(self, name: str) -> Account | None:
        """One person."""
        return self._accounts.get(name)

    def accounts(self) -> tuple[Account, ...]:
        """All, by name."""
        return tuple(self._accounts[name] for name in sorted(self._accounts))

    def of_subject(self, subject: str) -> Account | None:
        """The person whom a provider knows as ``subject``."""
        return next((a for a in self._accounts.values() if subject and a.subject == subject), None)

    async def add(self, account: Account) -> None:
        """A new person. Raises Conflict when the name is taken, or there are too many."""
        async with self._turn:
            if account.name in self._accounts:
                raise Conflict(
                    f"there is a user {account.name} already",
                    hint="choose another name, or `edgewise user rm` the other first",
                )
            if len(self._accounts) >= MOST_ACCOUNTS:
                raise Conflict(
                    f"there are {MOST_ACCOUNTS} users, which is the most",
                    hint="remove those who left with `edgewise user rm`",
                )
            await self._put(account)

    async def change(self, name: str, **changes: object) -> Account:
        """Replace fields of an account. Raises NotFound."""
        async with self._turn:
            account = self._accounts.get(name)
            if account is None:
                raise no_user(name)
            account = _replace(account, **changes)
            await self._put(account)
            return account

    async def _put(self, account: Account) -> None:
        await self.store.save_account(account)
        self._accounts[account.name] = account
        self._rights.pop(account.name, None)

    async def remove(self, name: str) -> None:
        """Forget a person with its sessions and API tokens. Raises NotFound."""
        async with self._turn:
            if name not in self._accounts:
                raise no_user(name)
            await self.store.remove_account(name)
            del self._accounts[name]
            self._rights.pop(name, None)
            for session in self.sessions_of(name):
                self._drop(session)
            self._tokens = {k: t for k, t in self._tokens.items() if t.owner != name}

    # Sessions.

    def session_of(self, serial: str) -> LoginSession | None:
        """The session that a certificate belongs to."""
        return self._sessions.get(self._by_serial.get(serial, "")) if serial else None

    def sessions_of(self, name: str) -> tuple[LoginSession, ...]:
        """Open sessions of a person, oldest first."""
        mine = [one for one in self._sessions.values() if one.user == name]
        return tuple(sorted(mine, key=lambda one: one.started))

    async def start_session(
        self, user: str, serial: str, expires: datetime, address: str
    ) -> LoginSession:
        """A person has logged in."""
        now = self.clock.now()
        session = LoginSession(
            self.chance.token(8).hex(), user, now, expires, address[:64], (serial,)
        )
        await self.store.save_session(session)
        self._remember(session)
        old = self.sessions_of(user)[:-MOST_LOGINS]
        if old:
            await self.end_sessions([one.id for one in old])
        return session

    async def renewed(self, session: LoginSession, serial: str) -> None:
        """A session has another certificate."""
        newer = _replace(session, serials=(serial, *session.serials)[:SERIALS])
        await self.store.save_session(newer)
        self._drop(session)
        self._remember(newer)

    async def end_sessions(self, ids: Iterable[str]) -> None:
        """Their certificates count no more. Idempotent."""
        chosen = [self._sessions[one] for one in ids if one in self._sessions]
        for session in chosen:
            self._drop(session)
        await self.store.end_sessions([one.id for one in chosen])

    def _remember(self, session: LoginSession) -> None:
        self._sessions[session.id] = session
        self._by_serial.update(dict.fromkeys(session.serials, session.id))

    def _drop(self, session: LoginSession) -> None:
        self._sessions.pop(session.id, None)
        for serial in session.serials:
            self._by_serial.pop(serial, None)

    # API tokens.

    def token(self, identifier: str) -> ApiToken | None:
        """One API token."""
        return self._tokens.get(identifier)

    def tokens(self, owner: str = "") -> tuple[ApiToken, ...]:
        """By identifier; of one owner, or of all."""
        chosen = [t for t in self._tokens.values() if owner in ("", t.owner)]
        return tuple(
            _replace(t, last_used=self._uses[t.id][0], last_address=self._uses[t.id][1])
            if t.id in self._uses
            else t
            for t in sorted(chosen, key=lambda one: one.id)
        )

    async def add_token(self, token: ApiToken) -> None:
        """Raises Conflict when its owner has too many."""
        if len(self.tokens(token.owner)) >= MOST_TOKENS:
            raise Conflict(
                f"{token.owner} has {MOST_TOKENS} API tokens, which is the most",
                hint="revoke some with `edgewise api-token revoke`",
            )
        await self.store.save_api_token(token)
        self._tokens[token.id] = token

    async def remove_tokens(self, ids: Iterable[str]) -> None:
        """They count no more, at once. Idempotent."""
        chosen = [one for one in ids if self._tokens.pop(one, None) is not None]
        await self.store.remove_api_tokens(chosen)

    def used(self, token: ApiToken, address: str) -> None:
        """A token was used; saved within a minute."""
        self._uses[token.id] = (self.clock.now(), address[:64])


def no_user(name: str) -> NotFound:
    """The error for a person who is not known."""
    return NotFound(f"there is no user {name[:80]!r}", hint="`edgewise user ls` lists them")
