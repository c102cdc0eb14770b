"""Local users and API tokens."""

from __future__ import annotations

from typing import Any

from edgewise.identity import api_tokens
from edgewise.identity.people import (
    Grant,
    check_password,
    checked_groups,
    checked_user_name,
)
from edgewise.identity.people_ports import Account, ApiToken
from edgewise.model.errors import BadUsage, Conflict, Forbidden, NotFound
from edgewise.model.labels import parse_selector
from edgewise.model.names import is_name
from edgewise.net.api.login import grant_lines
from edgewise.net.logins import Logins
from edgewise.net.register import PeopleRegister, no_user
from edgewise.net.routes import PEOPLE, Call, Paging, Route, missing, page
from edgewise.protocol.api import Page
from edgewise.protocol.people import (
    ApiTokenCreated,
    ApiTokenLine,
    ApiTokenRequest,
    PasswordChange,
    UserChange,
    UserCommand,
    UserLine,
    UserRequest,
)

SUMMARIES = {
    "groups": "Set a local user's groups",
    "disable": "End all of a user's logins and API tokens",
    "enable": "Let a disabled user log in again",
    "{name}": "Forget a user; its name is free again",
}


class PeopleRoutes:
    """Everything below /v1/users and /v1/api-tokens."""

    def __init__(self, logins: Logins, register: PeopleRegister) -> None:
        self._logins = logins
        self._register = register

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [*self._user_routes(), *self._token_routes()]

    def _user_routes(self) -> list[Route]:
        one = "/v1/users/{name}"
        return [
            Route(
                "GET",
                "/v1/users",
                "Everybody that the hub knows, with their roles",
                self.users,
                PEOPLE,
                response=Page[UserLine],
                query=Paging,
                needs="admin",
            ),
            Route(
                "POST",
                "/v1/users",
                "Add a local user",
                self.add,
                PEOPLE,
                UserRequest,
                UserLine,
                errors=(Conflict,),
                needs="admin",
                tokens=False,
            ),
            Route(
                "POST",
                f"{one}/password",
                "Set a local user's password: an administrator anybody's, others their own",
                self.password,
                PEOPLE,
                PasswordChange,
                errors=(NotFound, Forbidden, Conflict),
                status=204,
                needs="self",
                tokens=False,
            ),
            self._admin("POST", f"{one}/groups", self.groups, UserChange),
            self._admin("POST", f"{one}/disable", self.disable, UserCommand),
            self._admin("POST", f"{one}/enable", self.enable, UserCommand),
            self._admin("DELETE", one, self.remove),
        ]

    def _admin(self, method: Any, path: str, answer: Any, request: Any = None) -> Route:
        return Route(
            method,
            path,
            SUMMARIES[path.rpartition("/")[2]],
            answer,
            PEOPLE,
            request,
            errors=(NotFound, Conflict),
            status=204,
            needs="admin",
            tokens=False,
        )

    def _token_routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/v1/api-tokens",
                "API tokens without their secrets: one's own; an administrator sees all",
                self.tokens,
                PEOPLE,
                response=Page[ApiTokenLine],
                query=Paging,
                needs="self",
            ),
            Route(
                "POST",
                "/v1/api-tokens",
                "Make an API token; it is shown this once",
                self.create,
                PEOPLE,
                ApiTokenRequest,
                ApiTokenCreated,
                errors=(Conflict,),
                needs="self",
                tokens=False,
                description="It can do no more than its owner may at the time of each call.",
            ),
            Route(
                "DELETE",
                "/v1/api-tokens/{id}",
                "Revoke an API token, at once",
                self.revoke,
                PEOPLE,
                errors=(NotFound,),
                status=204,
                needs="self",
                tokens=False,
            ),
        ]

    # Users.

    async def users(self, call: Call[None]) -> Page[UserLine]:
        """GET /v1/users."""
        accounts = list(self._register.accounts())
        chosen = page(accounts, call.query, lambda account: account.name)
        return Page(tuple(map(self._line, chosen.items)), chosen.next)

    async def add(self, call: Call[UserRequest]) -> UserLine:
        """POST /v1/users."""
        body, desk = call.body, self._logins.desk
        name = checked_user_name(body.name)
        groups = checked_groups(body.groups)
        check_password(body.password, name)
        if self._register.account(name) is not None:
            raise Conflict(f"there is a user {name} already")
        kept = await desk.passwords.hashed(body.password)
        account = Account(name, "local", desk.clock.now(), groups, kept)
        await self._register.add(account)
        await desk.journal.note(
            call.peer, "user.add", name, f"groups {', '.join(groups) or 'none'}"
        )
        return self._line(account)

    async def password(self, call: Call[PasswordChange]) -> None:
        """POST /v1/users/{name}/password."""
        name, body = call.path["name"], call.body
        caller = call.peer.required().name
        governs = call.rights.everywhere("admin")
        if not governs and caller != name:
            raise missing("admin", call.peer, f"this is about {name[:80]}")
        account = self._local(name)
        if caller == name:
            await self._logins.confirm(call.peer, name, body.old)
        check_password(body.new, name)
        kept = await self._logins.desk.passwords.hashed(body.new)
        await self._register.change(account.name, password=kept)
        # Whoever knew the old password is out; the person who changed it stays in.
        own = self._register.session_of(call.peer.serial)
        await self._register.end_sessions(
            [s.id for s in self._register.sessions_of(name) if own is None or s.id != own.id]
        )
        await self._logins.desk.journal.note(call.peer, "user.password", name)

    async def groups(self, call: Call[UserChange]) -> None:
        """POST /v1/users/{name}/groups."""
        account = self._local(call.path["name"])
        groups = checked_groups(call.body.groups)
        await self._register.change(account.name, groups=groups)
        await self._logins.desk.journal.note(
            call.peer, "user.groups", account.name, ", ".join(groups)
        )

    async def disable(self, call: Call[UserCommand]) -> None:
        """POST /v1/users/{name}/disable."""
        name = call.path["name"]
        reason = call.body.reason[:300] or f"by {call.peer}"
        await self._register.change(name, disabled=reason)
        await self._register.end_sessions([s.id for s in self._register.sessions_of(name)])
        await self._logins.desk.journal.note(call.peer, "user.disable", name, reason)

    async def enable(self, call: Call[UserCommand]) -> None:
        """POST /v1/users/{name}/enable."""
        name = call.path["name"]
        await self._register.change(name, disabled="")
        await self._logins.desk.journal.note(call.peer, "user.enable", name, call.body.reason)

    async def remove(self, call: Call[None]) -> None:
        """DELETE /v1/users/{name}."""
        await self._register.remove(call.path["name"])
        await self._logins.desk.journal.note(call.peer, "user.remove", call.path["name"])

    def _local(self, name: str) -> Account:
        account = self._register.account(name) if is_name(name) else None
        if account is None:
            raise no_user(name)
        if account.origin != "local":
            raise Conflict(f"{name} logs in at the OpenID provider", hint="change it there")
        return account

    def _line(self, account: Account) -> UserLine:
        return UserLine(
            account.name,
            account.origin,
            account.groups,
            grant_lines(self._register.rights(account.name)),
            account.created,
            account.last_login,
            account.disabled,
            len(self._register.sessions_of(account.name)),
            len(self._register.tokens(account.name)),
        )

    # API tokens.

    async def tokens(self, call: Call[None]) -> Page[ApiTokenLine]:
        """GET /v1/api-tokens."""
        owner = "" if call.rights.everywhere("admin") else call.peer.required().name
        chosen = page(list(self._register.tokens(owner)), call.query, lambda token: token.id)
        return Page(tuple(map(_token_line, chosen.items)), chosen.next)

    async def create(self, call: Call[ApiTokenRequest]) -> ApiTokenCreated:
        """POST /v1/api-tokens."""
        body, desk = call.body, self._logins.desk
        life = api_tokens.checked_life(body.expires_s)
        try:
            selector = parse_selector(body.selector)
        except ValueError as error:
            raise BadUsage(str(error), hint="the notation is that of kubectl -l") from error
        if len(body.note) > api_tokens.MOST_NOTE or not all(map(is_name, body.fleets)):
            raise BadUsage(
                f"a note has at most {api_tokens.MOST_NOTE} characters, fleets are names"
            )
        if not call.rights.somewhere(body.role):
            raise missing(body.role, call.peer, "a token has no more than its owner")
        identifier, text, digest = api_tokens.written(
            self._register.chance.token(8), self._register.chance.token(32)
        )
        owner = call.peer.id.name if call.peer.id and call.peer.id.name else "admin"
        now = desk.clock.now()
        token = ApiToken(
            identifier, owner, body.role, digest, now, now + life, body.note, selector, body.fleets
        )
        await self._register.add_token(token)
        line = _token_line(token)
        await desk.journal.note(
            call.peer, "api-token.create", identifier, f"{line.role} on {line.on}, {body.note}"
        )
        return ApiTokenCreated(identifier, text, token.expires)

    async def revoke(self, call: Call[None]) -> None:
        """DELETE /v1/api-tokens/{id}."""
        identifier = call.path["id"]
        token = self._register.token(identifier)
        mine = token is not None and token.owner == call.peer.required().name
        if token is None or not (mine or call.rights.everywhere("admin")):
            raise NotFound(
                f"there is no API token {identifier[:80]!r}", hint="`edgewise api-token ls`"
            )
        await self._register.remove_tokens([identifier])
        await self._logins.desk.journal.note(
            call.peer, "api-token.revoke", identifier, f"of {token.owner}"
        )


def _token_line(token: ApiToken) -> ApiTokenLine:
    grant = Grant(token.role, token.selector, token.fleets)
    return ApiTokenLine(
        token.id,
        token.owner,
        token.role,
        str(grant).removeprefix(token.role).strip(" ()") or "everything",
        token.created,
        token.expires,
        token.note,
        token.last_used,
        token.last_address,
    )
