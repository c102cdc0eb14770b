"""Logging in: a password or a provider's word becomes a short-lived certificate.

The key is made on the person's machine and stays there; what it gets is an SVID of twelve
hours, renewed while its session is open, so that mutual TLS stays the one way in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

from edgewise.identity.names import Organisation
from edgewise.identity.people_ports import Account, LoginSession, Passwords
from edgewise.identity.ports import Issued
from edgewise.identity.throttle import Throttle, network_of
from edgewise.model.errors import BadUsage, Conflict, Forbidden, TryLater, Unauthenticated
from edgewise.model.names import SpiffeId, is_name
from edgewise.model.roles import ADMIN_NAME
from edgewise.net.api.journal import Journal
from edgewise.net.register import PeopleRegister
from edgewise.net.routes import Peer
from edgewise.protocol.people import DeviceAnswer, DeviceStart, LoginReply, LoginWays
from edgewise.runtime.clock import Clock

CERTIFICATE: Final = timedelta(hours=12)
"""A stolen one is worth no more than a working day, if nobody ends the session sooner."""
SESSION: Final = timedelta(days=7)
"""Of a local user; then the password is asked again."""
ADDRESSES: Final = 8
"""Addresses of a person that are remembered."""
WRONG: Final = "the name or the password is wrong"


class PersonIssuer(Protocol):
    """Makes certificates for people. Implementation: backends.pki.authority.Authority."""

    @property
    def roots(self) -> tuple[bytes, ...]: ...
    def issue_person(self, identity: SpiffeId, csr: bytes, life: timedelta) -> Issued:
        """Raises Untrusted for a bad request."""


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a provider has recognised."""

    subject: str
    """``issuer NUL sub``."""
    name: str
    """As its claims say, made into a user's name."""
    groups: tuple[str, ...]


class Provider(Protocol):
    """An OpenID provider. Implementations: net.oidc, testing.people."""

    @property
    def issuer(self) -> str: ...
    @property
    def session(self) -> timedelta:
        """How long a login by it holds."""

    async def begin(self, address: str) -> DeviceStart:
        """Start a device authorisation. Raises TryLater when the provider does not answer."""

    async def poll(self, handle: str) -> Person | float:
        """Who it was, or seconds to wait. Raises Forbidden, Untrusted, TryLater."""


@dataclass(frozen=True, slots=True)
class LoginDesk:
    """What logins are made with."""

    organisation: Organisation
    register: PeopleRegister
    passwords: Passwords
    issuer: PersonIssuer
    journal: Journal
    clock: Clock
    age_recipient: Callable[[], str] = lambda: ""


@dataclass(slots=True)
class Logins:
    """One for a hub."""

    desk: LoginDesk
    provider: Provider | None = None
    _throttle: Throttle = field(default_factory=Throttle)

    def ways(self) -> LoginWays:
        """How people log in here."""
        local = any(one.origin == "local" for one in self.desk.register.accounts())
        issuer = self.provider.issuer if self.provider else ""
        return LoginWays(self.desk.organisation.name, local, issuer)

    async def by_password(self, peer: Peer, user: str, password: str, csr: bytes) -> LoginReply:
        """A local user logs in.

        Raises Unauthenticated, in the same words and after the same work whether the name,
        the password or both are wrong; TryLater for somebody who guesses.
        """
        desk = self.desk
        account = desk.register.account(user) if is_name(user) else None
        kept = account.password if account is not None else ""
        at_home = account is not None and network_of(peer.address) in account.addresses
        now = desk.clock.monotonic()
        wait = self._throttle.attempt(user[:64], peer.address, at_home=at_home, now=now)
        if wait > 0:
            await desk.journal.note_stranger(peer, "login.slowed", user, "too many failures")
            raise TryLater(
                "too many failed logins", wait=timedelta(seconds=wait), hint="wait, then try again"
            )
        good = await desk.passwords.matches(password, kept)
        if account is None or not good:
            await desk.journal.note_stranger(peer, "login.failed", user, WRONG)
            raise Unauthenticated(
                WRONG, hint="an administrator sets a new one: `edgewise user passwd`"
            )
        self._throttle.succeeded(user[:64], peer.address, at_home=at_home)
        if desk.passwords.outdated(kept):
            account = await desk.register.change(
                user, password=await desk.passwords.hashed(password)
            )
        return await self._let_in(peer, account, csr, SESSION)

    async def confirm(self, peer: Peer, user: str, password: str) -> None:
        """The person who is logged in knows the password. Raises as ``by_password``."""
        account = self.desk.register.account(user)
        now = self.desk.clock.monotonic()
        wait = self._throttle.attempt(user, peer.address, at_home=True, now=now)
        if wait > 0:
            raise TryLater("too many wrong passwords", wait=timedelta(seconds=wait))
        if not await self.desk.passwords.matches(password, account.password if account else ""):
            raise Forbidden("the old password is wrong")
        self._throttle.succeeded(user, peer.address, at_home=True)

    async def begin(self, peer: Peer) -> DeviceStart:
        """A login by the provider starts. Raises BadUsage without one."""
        return await self._provider().begin(peer.address)

    async def poll(self, peer: Peer, handle: str, csr: bytes) -> DeviceAnswer:
        """How a login by the provider goes."""
        provider = self._provider()
        found = await provider.poll(handle)
        if isinstance(found, float | int):
            return DeviceAnswer("pending", float(found))
        try:
            account = await self._recognised(found)
        except Conflict as error:
            await self.desk.journal.note_stranger(peer, "login.failed", found.name, str(error))
            raise
        return DeviceAnswer("done", 0.0, await self._let_in(peer, account, csr, provider.session))

    async def renew(self, peer: Peer, csr: bytes) -> LoginReply:
        """The next certificate of an open session."""
        session = self.desk.register.session_of(peer.serial)
        if session is None:
            raise BadUsage(
                "the administrator's certificate is renewed by the hub itself",
                hint="copy the hub's operator folder again",
            )
        reply, issued = self._issue(session.user, csr, session)
        await self.desk.register.renewed(session, issued.serial)
        await self.desk.journal.note(peer, "login.renew", session.user, f"session {session.id}")
        return reply

    async def end(self, peer: Peer) -> None:
        """Log out: the session's certificates count no more."""
        session = self.desk.register.session_of(peer.serial)
        if session is not None:
            await self.desk.register.end_sessions([session.id])
            await self.desk.journal.note(peer, "logout", session.user, f"session {session.id}")

    def _provider(self) -> Provider:
        if self.provider is None:
            raise BadUsage(
                "this hub has no OpenID provider", hint="log in with a password: --user NAME"
            )
        return self.provider

    async def _recognised(self, person: Person) -> Account:
        """The account of a person, made at the first login. A name belongs to whoever had it
        first, so that nobody takes another's rights by choosing a name at the provider."""
        register = self.desk.register
        account = register.of_subject(person.subject)
        if account is not None:
            return await register.change(account.name, groups=person.groups)
        if not is_name(person.name) or person.name == ADMIN_NAME:
            raise Conflict(
                f"the provider's name {person.name[:80]!r} cannot be a user's name here",
                hint="choose another claim with nameClaim (docs/people.md)",
            )
        if register.account(person.name) is not None:
            raise Conflict(
                f"the name {person.name} belongs to somebody else here",
                hint=f"if they left: `edgewise user rm {person.name}`, then log in again",
            )
        account = Account(
            person.name, "oidc", self.desk.clock.now(), person.groups, subject=person.subject
        )
        await register.add(account)
        return account

    async def _let_in(
        self, peer: Peer, account: Account, csr: bytes, life: timedelta
    ) -> LoginReply:
        desk = self.desk
        if account.disabled:
            await desk.journal.note_stranger(peer, "login.failed", account.name, "disabled")
            raise Forbidden(
                f"user {account.name} is disabled: {account.disabled}",
                hint=f"an administrator lifts it: `edgewise user enable {account.name}`",
            )
        now = desk.clock.now()
        draft = LoginSession("", account.name, now, now + life, peer.address, ())
        reply, issued = self._issue(account.name, csr, draft)
        session = await desk.register.start_session(
            account.name, issued.serial, draft.expires, peer.address
        )
        network = network_of(peer.address)
        others = [one for one in account.addresses if one != network]
        await desk.register.change(
            account.name, last_login=now, addresses=(network, *others)[:ADDRESSES]
        )
        actor = Peer(desk.organisation.user(account.name), None, peer.address)
        how = f"{account.origin}, session {session.id} until {session.expires:%Y-%m-%d %H:%M} UTC"
        await desk.journal.note(actor, "login", account.name, how)
        return reply

    def _issue(self, user: str, csr: bytes, session: LoginSession) -> tuple[LoginReply, Issued]:
        desk = self.desk
        identity = desk.organisation.user(user)
        life = min(CERTIFICATE, session.expires - desk.clock.now())
        issued = desk.issuer.issue_person(identity, csr, life)
        reply = LoginReply(
            user,
            str(identity),
            issued.chain,
            desk.issuer.roots,
            issued.not_after,
            session.expires,
            desk.organisation.name,
            str(desk.organisation.hub),
            desk.age_recipient(),
        )
        return reply, issued
