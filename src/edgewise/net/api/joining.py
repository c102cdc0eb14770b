"""Tokens, and how machines come to their certificates."""

from __future__ import annotations

from typing import Any, Protocol

from edgewise.identity.attestation import Unproven
from edgewise.model.errors import Conflict, Forbidden, NotFound, TryLater, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.api.attesting import Attestor
from edgewise.net.api.journal import Journal
from edgewise.net.proving import proof_routes
from edgewise.net.routes import ANYONE, PEOPLE, Call, Paging, Peer, Route, page
from edgewise.protocol import limits
from edgewise.protocol.api import Page, TokenCreated, TokenLine, TokenRequest
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    JoinChallenge,
    JoinChallengeRequest,
)
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Roots,
)


class Joins(Protocol):
    """Gives certificates. Implementation: identity.on_hub.Enroller."""

    async def join(self, request: JoinRequest, via: SpiffeId | None = None) -> JoinReply:
        """``via``: the relay that passed it on."""

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge: ...
    async def challenge(self) -> RejoinChallenge: ...
    async def rejoin(self, request: RejoinRequest, via: SpiffeId | None = None) -> JoinReply: ...
    async def renew(
        self, peer: SpiffeId, request: RenewRequest, serial: str = ""
    ) -> RenewReply: ...
    async def create_token(self, request: TokenRequest) -> TokenCreated: ...
    async def tokens(self) -> tuple[TokenLine, ...]: ...
    async def revoke_token(self, identifier: str) -> None: ...
    def roots(self) -> Roots: ...


class Joined(Protocol):
    """Told after a machine has joined, before it gets its answer."""

    async def __call__(self, name: str) -> None: ...


class JoinRoutes:
    """Tokens for operators; join, rejoin, renew and the roots for machines."""

    def __init__(
        self, joins: Joins, joined: Joined, journal: Journal, attestor: Attestor | None = None
    ) -> None:
        """Without an ``attestor`` no node can attest anew."""
        self._joins = joins
        self._joined = joined
        self._journal = journal
        self._attestor = attestor

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [
            Route(
                "GET",
                "/v1/tokens",
                "Join tokens, without their secrets",
                self.tokens,
                PEOPLE,
                response=Page[TokenLine],
                query=Paging,
                needs="operator",
            ),
            Route(
                "POST",
                "/v1/tokens",
                "Make a join token; its secret is shown this once",
                self.create,
                PEOPLE,
                TokenRequest,
                TokenCreated,
                needs="operator",
            ),
            Route(
                "DELETE",
                "/v1/tokens/{identifier}",
                "Revoke a token",
                self.revoke,
                PEOPLE,
                errors=(NotFound,),
                status=204,
                needs="operator",
            ),
            _machine(
                "/v1/join",
                "First certificate for a token, a TPM or a factory certificate",
                self.join,
                JoinRequest,
            ),
            *proof_routes(
                self.join_challenge,
                self.attest_challenge,
                self.attest,
                frozenset({"node", "relay"}),
            ),
            Route(
                "POST",
                "/v1/rejoin/challenge",
                "A nonce for a machine whose certificate has expired",
                self.challenge,
                ANYONE,
                response=RejoinChallenge,
                errors=(TryLater,),
                changes=False,
            ),
            _machine("/v1/rejoin", "A certificate for a signed nonce", self.rejoin, RejoinRequest),
            Route(
                "POST",
                "/v1/renew",
                "The next certificate for the caller's own name",
                self.renew,
                frozenset({"node", "relay"}),
                RenewRequest,
                RenewReply,
                errors=(Forbidden, Untrusted),
                at_most=limits.RECORD,
            ),
            Route(
                "GET",
                "/v1/roots",
                "Root certificates; a token says which one to believe",
                self.roots,
                ANYONE,
                response=Roots,
            ),
        ]

    async def tokens(self, call: Call[None]) -> Page[TokenLine]:
        """GET /v1/tokens."""
        lines = sorted(await self._joins.tokens(), key=lambda token: token.identifier)
        return page(lines, call.query, lambda token: token.identifier)

    async def create(self, call: Call[TokenRequest]) -> TokenCreated:
        """POST /v1/tokens."""
        created = await self._joins.create_token(call.body)
        what = f"{call.body.role} in {call.body.region}, {call.body.uses} uses"
        await self._journal.note(call.peer, "token.create", created.identifier, what)
        return created

    async def revoke(self, call: Call[None]) -> None:
        """DELETE /v1/tokens/{identifier}."""
        identifier = call.path["identifier"]
        if not any(token.identifier == identifier for token in await self._joins.tokens()):
            raise NotFound(
                f"there is no token {identifier[:100]!r}", hint="`edgewise node tokens` lists them"
            )
        await self._joins.revoke_token(identifier)
        await self._journal.note(call.peer, "token.revoke", identifier)

    async def join(self, call: Call[JoinRequest]) -> JoinReply:
        """POST /v1/join."""
        request = call.body
        try:
            reply = await self._joins.join(request, _via(call.peer))
        except (Unproven, Forbidden, Conflict) as error:
            # By reason, not by name or address: strangers choose those, and could fill the disk.
            reason = error.reason if isinstance(error, Unproven) else type(error).__name__
            actor = str(call.peer) if call.peer.id else "anyone"
            await self._journal.note_once(actor, "join.refused", reason, str(error))
            raise
        name = SpiffeId.parse(reply.spiffe_id).name
        how = " and ".join(
            said
            for said, given in (
                (f"token {request.token}", request.token),
                ("its TPM", request.tpm),
                ("its factory certificate", request.factory),
            )
            if given
        )
        await self._journal.note(call.peer, "join", f"{request.role}/{name}", how)
        if self._attestor is not None and request.tpm is not None:
            await self._attestor.joined(name)
        await self._joined(name)
        return reply

    async def join_challenge(self, call: Call[JoinChallengeRequest]) -> JoinChallenge:
        """POST /v1/join/challenge."""
        return await self._joins.join_challenge(call.body)

    async def attest_challenge(self, call: Call[AttestChallengeRequest]) -> AttestChallenge:
        """POST /v1/attest/challenge."""
        return await self._asked().challenge(call)

    async def attest(self, call: Call[AttestRequest]) -> AttestReply:
        """POST /v1/attest."""
        return await self._asked().attest(call)

    def _asked(self) -> Attestor:
        if self._attestor is None:
            raise NotFound("this hub takes no quotes", hint="ask the organisation's own hub")
        return self._attestor

    async def challenge(self, call: Call[None]) -> RejoinChallenge:
        """POST /v1/rejoin/challenge."""
        return await self._joins.challenge()

    async def rejoin(self, call: Call[RejoinRequest]) -> JoinReply:
        """POST /v1/rejoin."""
        reply = await self._joins.rejoin(call.body, _via(call.peer))
        await self._journal.note(call.peer, "rejoin", call.body.name)
        return reply

    async def renew(self, call: Call[RenewRequest]) -> RenewReply:
        """POST /v1/renew."""
        return await self._joins.renew(call.peer.required(), call.body, call.peer.serial)

    async def roots(self, call: Call[None]) -> Roots:
        """GET /v1/roots."""
        return self._joins.roots()


def _via(peer: Peer) -> SpiffeId | None:
    return peer.id if peer.role == "relay" else None


def _machine(path: str, summary: str, answer: Any, request: Any) -> Route:
    return Route(
        "POST",
        path,
        summary,
        answer,
        ANYONE,
        request,
        JoinReply,
        errors=(Forbidden, Conflict, Untrusted, NotFound),
        at_most=limits.RECORD,
    )
