"""What identity does on the hub: tokens, joins, rejoins, renewals."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgewise.identity.names import Organisation
from edgewise.identity.nonces import Nonces
from edgewise.identity.ports import Enrolled, Enrolments, Issued, Lineages, RootIssuer, TokenRecord
from edgewise.identity.quarantine import standing
from edgewise.identity.rotation import Lineage, TooOften, TwoUsers, issued, rejoined, shown
from edgewise.identity.signatures import holds, public_key, signature_holds
from edgewise.identity.tokens import (
    KEPT_AFTER_EXPIRY,
    Refused,
    check_shape,
    checked_terms,
    decide_join,
    join_proof_bytes,
    rejoin_proof_bytes,
    secret_digest,
    secret_text,
)
from edgewise.model.errors import BadUsage, Conflict, Forbidden, NeedsPerson, NotFound, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.protocol.api import TokenCreated, TokenLine, TokenRequest
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Roots,
    Token,
)
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

__all__ = ["Enroller", "HubPlace", "Register", "signature_holds"]


class Register(Enrolments, Lineages, Protocol):
    """Both ports in one store, so that forgetting a name forgets all of it."""


@dataclass(frozen=True, slots=True)
class HubPlace:
    """What the hub tells those who join."""

    organisation: Organisation
    urls: tuple[str, ...]
    """Where it is reached: ``https://host:port``."""
    root_sha256: str
    tuf_root: Callable[[], bytes]
    """The initial TUF root metadata (``1.root.json``), which never changes."""


@dataclass(slots=True)
class Enroller:
    """One per hub. Calls for identities run one after another: each is a few milliseconds."""

    register: Register
    issuer: RootIssuer
    place: HubPlace
    clock: Clock
    chance: Chance
    log: Log
    locked: Callable[[str], Awaitable[None]] | None = None
    """Told of a name that was quarantined because two machines use its key."""
    _nonces: Nonces = field(init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        self._nonces = Nonces(self.chance.token(32))

    def roots(self) -> Roots:
        """Answer of GET /v1/roots."""
        return Roots(self.issuer.roots)

    async def create_token(self, request: TokenRequest) -> TokenCreated:
        """A new token. Raises BadUsage for terms that make no sense, NotFound for ``via``."""
        life = checked_terms(request, self.place.organisation)
        urls = self.place.urls
        if request.via:
            relay = await self.register.get(request.via)
            if relay is None or relay.role != "relay":
                raise NotFound(
                    f"there is no relay {request.via}", hint="`edgewise status` lists the relays"
                )
            if relay.region != request.region:
                raise BadUsage(
                    f"relay {relay.name} is of region {relay.region}, not {request.region}",
                    hint=f"add --region {relay.region}",
                )
            urls = relay.urls
        now = self.clock.now()
        secret = secret_text(self.chance.token(32))
        token = Token(
            urls=urls,
            root=self.place.root_sha256,
            identifier=self.chance.token(8).hex(),
            secret=secret,
            tuf_root=hashlib.sha256(self.place.tuf_root()).hexdigest(),
        )
        record = TokenRecord(
            identifier=token.identifier,
            secret_sha256=secret_digest(secret),
            role=request.role,
            region=request.region,
            labels=dict(request.labels),
            expires=now + life,
            uses=request.uses,
            bound={},
        )
        await self.register.forget_tokens(now - KEPT_AFTER_EXPIRY)
        await self.register.add_token(record)
        return TokenCreated(token.identifier, token.text(), record.expires)

    async def tokens(self) -> tuple[TokenLine, ...]:
        """Every token without its secret, by identifier."""
        return tuple(
            TokenLine(
                identifier=token.identifier,
                role=token.role,
                labels=token.labels,
                region=token.region,
                expires=token.expires,
                uses=token.uses,
                used_by=tuple(sorted(token.bound.values())),
            )
            for token in await self.register.tokens()
        )

    async def join(self, request: JoinRequest, via: SpiffeId | None = None) -> JoinReply:
        """Let a machine in, or again; ``via`` is the relay that passed it on.

        Raises Forbidden (with its own words for each reason), Conflict for a name that is
        taken, BadUsage for a malformed request, Untrusted for a proof that does not hold.
        """
        check_shape(request)
        public_key(request.enrolment_key)
        proven = join_proof_bytes(request.token, request.csr)
        if not holds(request.enrolment_key, request.proof, proven):
            raise self._refused("forged-proof", request.name, via)
        via_region = self._region(via)
        async with self._turn:
            token = await self.register.token(request.token)
            holder = await self.register.get(request.name)
            verdict = decide_join(
                request, token, holder, now=self.clock.now(), via_region=via_region
            )
            if isinstance(verdict, Refused):
                self.log.decision(
                    "join refused", because=verdict.reason, name=request.name, via=str(via or "")
                )
                kind = Conflict if verdict.reason == "name-taken" else Forbidden
                raise kind(verdict.what, hint=verdict.hint)
            assert token is not None
            enrolled = (
                holder
                if verdict.repeat and holder is not None
                else self._enrolment(request, token, holder, via)
            )
            reply, made = self._reply(enrolled, request.csr, request.ca_csr, await self._urls(via))
            if not verdict.repeat:
                await self.register.bind(token.identifier, enrolled)
            await self._remember(enrolled.name, Lineage() if not verdict.repeat else None, made)
        self.log.decision(
            "joined", because="repeat" if verdict.repeat else "token", name=request.name
        )
        return reply

    async def revoke_token(self, identifier: str) -> None:
        """Idempotent. Who joined with it stays joined."""
        await self.register.revoke_token(identifier)

    async def challenge(self) -> RejoinChallenge:
        """A nonce for a rejoin; keeps nothing."""
        return RejoinChallenge(self._nonces.make(self.clock.now(), self.chance.token(16)))

    async def rejoin(self, request: RejoinRequest, via: SpiffeId | None = None) -> JoinReply:
        """A new certificate for a node whose own has expired, by its enrolment key.

        Raises NotFound, Forbidden, Untrusted, or NeedsPerson when it happens too often.
        """
        now = self.clock.now()
        async with self._turn:
            enrolled = await self.register.get(request.name)
            proven = rejoin_proof_bytes(request.nonce, request.csr, request.last)
            # The same answer for an unknown name and a wrong key: names are not for guessing.
            if enrolled is None or not holds(enrolled.key, request.proof, proven):
                raise self._refused("forged-rejoin", request.name, via)
            if why := self._nonces.use(request.nonce, now):
                raise Untrusted(f"the challenge is no good: {why}", hint="ask for a new one")
            if enrolled.quarantined:
                raise Forbidden(
                    f"{enrolled.name} is quarantined: {enrolled.quarantined}",
                    hint=f"`edgewise node release {enrolled.name}` lifts it",
                )
            self._check_region(enrolled, via)
            lineage = await self._shown(enrolled, request.last)
            counted = rejoined(lineage, now)
            if isinstance(counted, TooOften):
                raise NeedsPerson(
                    f"{enrolled.name} may not rejoin before {counted.until:%Y-%m-%d}: "
                    f"{counted.what}",
                    hint=f"look at its disk and clock, then `edgewise node forget "
                    f"{enrolled.name}` and join it with a new token",
                )
            reply, made = self._reply(enrolled, request.csr, b"", await self._urls(via))
            await self._remember(enrolled.name, counted, made)
        self.log.decision("rejoined", because="enrolment key", name=request.name)
        return reply

    async def renew(self, peer: SpiffeId, request: RenewRequest, serial: str = "") -> RenewReply:
        """A new certificate for the caller's own ID. ``serial``: of the certificate it showed.

        Raises Forbidden for somebody who is forgotten, quarantined or not alone.
        """
        if peer.role == "user":
            made = self.issuer.issue(peer, request.csr)
            return RenewReply(made.chain, self.issuer.roots)
        async with self._turn:
            enrolled = await self.register.get(peer.name)
            if (against := standing(peer, enrolled, self.place.organisation)) is not None:
                raise Forbidden(against.what, hint=against.hint)
            assert enrolled is not None
            lineage = await self._shown(enrolled, serial)
            reply, made = self._reply(enrolled, request.csr, request.ca_csr, ())
            await self._remember(enrolled.name, lineage, made)
        return RenewReply(reply.chain, reply.roots, reply.ca_chain)

    def _enrolment(
        self,
        request: JoinRequest,
        token: TokenRecord,
        holder: Enrolled | None,
        via: SpiffeId | None,
    ) -> Enrolled:
        return Enrolled(
            name=request.name,
            role=request.role,
            region=token.region,
            key=request.enrolment_key,
            labels=token.labels,
            joined=holder.joined if holder else self.clock.now(),
            age_recipient=request.age_recipient,
            platform=request.platform,
            urls=request.urls,
            via=via.name if via else "",
        )

    def _reply(
        self, enrolled: Enrolled, csr: bytes, ca_csr: bytes, urls: tuple[str, ...]
    ) -> tuple[JoinReply, Issued]:
        names = self.place.organisation
        named = names.relay if enrolled.role == "relay" else names.node
        identity = named(enrolled.region, enrolled.name)
        made = self.issuer.issue(identity, csr, enrolled.urls)
        ca_chain: tuple[bytes, ...] = ()
        if enrolled.role == "relay" and ca_csr:
            ca_chain = self.issuer.issue_regional(enrolled.region, ca_csr, enrolled.urls)
        return (
            JoinReply(
                spiffe_id=str(identity),
                chain=made.chain,
                roots=self.issuer.roots,
                tuf_root=self.place.tuf_root(),
                urls=urls,
                hub_id=str(names.hub),
                ca_chain=ca_chain,
                region=enrolled.region,
            ),
            made,
        )

    async def _shown(self, enrolled: Enrolled, serial: str) -> Lineage:
        found = shown(await self.register.lineage(enrolled.name), serial)
        if isinstance(found, TwoUsers):
            await self.register.quarantine(enrolled.name, found.what)
            self.log.event("two users of one key", "error", name=enrolled.name, what=found.what)
            if self.locked is not None:
                await self.locked(enrolled.name)
            raise Forbidden(
                f"{enrolled.name} is locked: {found.what}",
                hint="find the copy; then forget the name and join the right machine again",
            )
        return found

    async def _remember(self, name: str, lineage: Lineage | None, made: Issued) -> None:
        before = lineage if lineage is not None else await self.register.lineage(name)
        await self.register.keep_lineage(name, issued(before, made.serial, self.clock.now()))

    async def _urls(self, via: SpiffeId | None) -> tuple[str, ...]:
        if via is None:
            return self.place.urls
        relay = await self.register.get(via.name)
        return relay.urls if relay is not None and relay.urls else self.place.urls

    def _region(self, via: SpiffeId | None) -> str:
        return (self.place.organisation.region_of(via) or "") if via is not None else ""

    def _check_region(self, enrolled: Enrolled, via: SpiffeId | None) -> None:
        if via is not None and self._region(via) != enrolled.region:
            raise Forbidden(
                f"{enrolled.name} is of region {enrolled.region}, this relay is not",
                hint="use a relay of its own region, or the hub",
            )

    def _refused(self, reason: str, name: str, via: SpiffeId | None) -> Untrusted:
        self.log.decision("refused", because=reason, name=name[:80], via=str(via or ""))
        return Untrusted(
            "the request is not signed by the enrolment key",
            hint="was the state directory copied from another machine, or the node forgotten?",
        )
