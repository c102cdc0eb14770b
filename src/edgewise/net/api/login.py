"""Logging in and out, and who one is."""

from __future__ import annotations

from edgewise.identity.people import Rights
from edgewise.model.errors import Conflict, Forbidden, TryLater, Unauthenticated, Untrusted
from edgewise.model.roles import ADMIN_NAME
from edgewise.net.logins import Logins
from edgewise.net.register import PeopleRegister
from edgewise.net.routes import ANYONE, Call, Caller, Route
from edgewise.protocol import limits
from edgewise.protocol.people import (
    DeviceAnswer,
    DevicePoll,
    DeviceStart,
    GrantLine,
    LoginRenewal,
    LoginReply,
    LoginWays,
    PasswordLogin,
    WhoAmI,
)

PERSON: frozenset[Caller] = frozenset({"user"})
"""Not the hub: these calls are about the caller itself."""


class LoginRoutes:
    """Everything below /v1/login, /v1/logout and /v1/whoami."""

    def __init__(self, logins: Logins, register: PeopleRegister) -> None:
        self._logins = logins
        self._register = register

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [
            Route(
                "GET",
                "/v1/login",
                "How people log in here",
                self.ways,
                ANYONE,
                response=LoginWays,
            ),
            Route(
                "POST",
                "/v1/login/password",
                "A local user logs in: a certificate for a name and a password",
                self.password,
                ANYONE,
                PasswordLogin,
                LoginReply,
                errors=(Unauthenticated, Forbidden, TryLater, Untrusted),
                at_most=limits.RECORD,
            ),
            Route(
                "POST",
                "/v1/login/device",
                "Start a login by the OpenID provider (RFC 8628)",
                self.begin,
                ANYONE,
                response=DeviceStart,
                errors=(TryLater, Untrusted),
                changes=False,
            ),
            Route(
                "POST",
                "/v1/login/device/poll",
                "A certificate, once the person has agreed at the provider",
                self.poll,
                ANYONE,
                DevicePoll,
                DeviceAnswer,
                errors=(Forbidden, Conflict, TryLater, Untrusted),
                at_most=limits.RECORD,
            ),
            Route(
                "POST",
                "/v1/login/renew",
                "The next certificate of this login",
                self.renew,
                PERSON,
                LoginRenewal,
                LoginReply,
                errors=(Untrusted,),
                at_most=limits.RECORD,
                needs="self",
                tokens=False,
            ),
            Route(
                "POST",
                "/v1/logout",
                "End this login: its certificates count no more",
                self.logout,
                PERSON,
                status=204,
                needs="self",
                tokens=False,
            ),
            Route(
                "GET",
                "/v1/whoami",
                "Who the caller is, and what it may do",
                self.whoami,
                PERSON,
                response=WhoAmI,
                needs="self",
            ),
        ]

    async def ways(self, call: Call[None]) -> LoginWays:
        """GET /v1/login."""
        return self._logins.ways()

    async def password(self, call: Call[PasswordLogin]) -> LoginReply:
        """POST /v1/login/password."""
        body = call.body
        return await self._logins.by_password(call.peer, body.user, body.password, body.csr)

    async def begin(self, call: Call[None]) -> DeviceStart:
        """POST /v1/login/device."""
        return await self._logins.begin(call.peer)

    async def poll(self, call: Call[DevicePoll]) -> DeviceAnswer:
        """POST /v1/login/device/poll."""
        return await self._logins.poll(call.peer, call.body.handle, call.body.csr)

    async def renew(self, call: Call[LoginRenewal]) -> LoginReply:
        """POST /v1/login/renew."""
        return await self._logins.renew(call.peer, call.body.csr)

    async def logout(self, call: Call[None]) -> None:
        """POST /v1/logout."""
        await self._logins.end(call.peer)

    async def whoami(self, call: Call[None]) -> WhoAmI:
        """GET /v1/whoami."""
        identity = call.peer.required()
        account = self._register.account(identity.name)
        session = self._register.session_of(call.peer.serial)
        own = identity.name == ADMIN_NAME
        return WhoAmI(
            identity.name,
            str(identity),
            account.origin if account is not None and not own else "certificate",
            account.groups if account is not None else (),
            grant_lines(call.rights),
            call.peer.token,
            session.expires if session is not None else None,
        )


def grant_lines(rights: Rights) -> tuple[GrantLine, ...]:
    """Rights as they are shown."""
    return tuple(
        GrantLine(
            grant.role,
            str(grant).removeprefix(grant.role).strip(" ()") or "everything",
            grant.source,
        )
        for grant in rights.grants
    )
