"""The gate that every call of a person passes: who it is, and what it may do now.

Nothing is kept from call to call: a session that has ended, a person who is disabled and a
token that is revoked count no more with the next call on the same connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from edgewise.identity import api_tokens
from edgewise.identity.names import Organisation
from edgewise.identity.people import EVERYTHING
from edgewise.identity.throttle import Throttle
from edgewise.model.errors import TryLater, Unauthenticated
from edgewise.model.roles import ADMIN_NAME
from edgewise.net.register import PeopleRegister
from edgewise.net.routes import Peer
from edgewise.net.server import Gate
from edgewise.runtime.clock import Clock


class PeopleGate:
    """One for a hub."""

    def __init__(self, register: PeopleRegister, organisation: Organisation, clock: Clock) -> None:
        self._register = register
        self._organisation = organisation
        self._clock = clock
        self._guesses = Throttle()

    def admit(self, peer: Peer, headers: Mapping[str, str]) -> Peer:
        """See ``net.server.Gate``."""
        said = headers.get("Authorization")
        if said is not None:
            return self._by_token(peer, said)
        if peer.id is None or peer.role not in ("user", "hub"):
            return peer
        if peer.id.trust_domain != self._organisation.hub_domain:
            return replace(peer, ended=f"{peer.id} is not of this organisation")
        if peer.role == "hub" or peer.id.name == ADMIN_NAME:
            return replace(peer, rights=EVERYTHING)
        return replace(peer, rights=self._register.rights(peer.id.name), ended=self._ended(peer))

    def _ended(self, peer: Peer) -> str:
        """Why a person's certificate counts no more, or empty."""
        name = peer.required().name
        account, session = self._register.account(name), self._register.session_of(peer.serial)
        if account is None or session is None or session.user != name:
            return f"this login of {name} has ended"
        if session.expires <= self._clock.now():
            return f"this login of {name} ended at {session.expires:%Y-%m-%d %H:%M} UTC"
        return f"user {name} is disabled: {account.disabled}" if account.disabled else ""

    def _by_token(self, peer: Peer, said: str) -> Peer:
        if peer.id is not None:
            raise Unauthenticated(
                "the call came with a certificate and an Authorization header",
                hint="send one of them",
            )
        scheme, _, text = said.partition(" ")
        found = api_tokens.read(text.strip()) if scheme.lower() == "bearer" else None
        token = self._register.token(found[0]) if found else None
        if found is None or token is None or not api_tokens.fits(token, found[1]):
            # A good token is never slowed down, whoever guesses from the same address.
            wait = self._guesses.attempt(
                "", peer.address, at_home=True, now=self._clock.monotonic()
            )
            if wait > 0:
                raise TryLater(
                    "too many calls with bad API tokens from here", wait=timedelta(seconds=wait)
                )
            raise Unauthenticated(
                "the API token is unknown, revoked or malformed",
                hint="`edgewise api-token create` makes one",
            )
        if token.expires <= self._clock.now():
            raise Unauthenticated(
                f"API token {token.id} expired at {token.expires:%Y-%m-%d %H:%M} UTC",
                hint="make another with `edgewise api-token create`",
            )
        self._register.used(token, peer.address)
        owner = self._register.rights(token.owner)
        return Peer(
            self._organisation.user(token.owner),
            None,
            peer.address,
            token=token.id,
            rights=api_tokens.rights(token, owner),
        )


def _meets_its_port(gate: PeopleGate) -> Gate:
    return gate
