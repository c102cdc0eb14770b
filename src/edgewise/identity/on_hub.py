"""What identity does on the hub: tokens, joins, rejoins, renewals."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from edgewise.identity.admission import (
    Evidence,
    JoinRules,
    Place,
    decide_device,
    elsewhere,
    one_name,
    place_for,
    token_alone,
    with_evidence,
)
from edgewise.identity.attestation import (
    Unproven,
    attestation_key,
    compare,
    endorsement_key,
    judge_factory,
    judge_join,
)
from edgewise.identity.names import HUB, Organisation
from edgewise.identity.nonces import Nonces
from edgewise.identity.ports import (
    Attestations,
    Enrolled,
    Enrolments,
    Issued,
    Lineages,
    RootIssuer,
    TokenRecord,
)
from edgewise.identity.quarantine import standing
from edgewise.identity.reattestation import Attestation, passed
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
    renew_proof_bytes,
    secret_digest,
    secret_text,
)
from edgewise.identity.tpm_keys import make_credential
from edgewise.identity.tpm_structures import Attested
from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    Untrusted,
)
from edgewise.model.names import SpiffeId
from edgewise.protocol.api import TokenCreated, TokenLine, TokenRequest
from edgewise.protocol.attest import FactoryProof, JoinChallenge, JoinChallengeRequest
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


class Register(Enrolments, Lineages, Attestations, Protocol):
    """All ports in one store, so that forgetting a name forgets all of it."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A join that is let in."""

    enrolled: Enrolled
    why: str
    token: str = ""
    """Identifier of the token that is used up by it."""
    repeat: bool = False
    """Nothing changes: the same machine asked before."""
    lineage: Lineage | None = None
    """What it goes on from; None: a new one, or the one it has when it repeats."""


@dataclass(frozen=True, slots=True)
class HubPlace:
    """What the hub tells those who join."""

    organisation: Organisation
    urls: tuple[str, ...]
    """Where it is reached: ``https://host:port``."""
    root_sha256: str
    tuf_root: Callable[[], bytes]
    """The initial TUF root metadata (``1.root.json``), which never changes."""


async def no_rules() -> JoinRules:
    """Without a fleet repo: tokens for everybody, and no other way in."""
    return JoinRules()


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
    rules: Callable[[], Awaitable[JoinRules]] = no_rules
    """What the fleet repo says about joining now; may raise TryLater while nobody knows."""
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
        if not holds(request.enrolment_key, request.proof, join_proof_bytes(request)):
            raise self._refused("forged-proof", request.name, via)
        rules = await self.rules()
        try:
            evidence, quoted = self._evidence(request, rules)
            async with self._turn:
                decide = self._by_token if request.token else self._by_proof
                verdict = await decide(request, evidence, rules, via)
                if not isinstance(verdict, _Admitted):
                    raise self._kept_out(verdict, request.name, via)
                attested = self._booted(verdict.enrolled, request, quoted, rules)
                reply = await self._let_in(verdict, request, via)
                if attested is not None:
                    await self.register.keep_attestation(verdict.enrolled.name, attested)
        except Unproven as error:
            self.log.decision(
                "join refused",
                because=error.reason,
                name=request.name,
                via=str(via or ""),
                what=str(error),
            )
            raise
        self.log.decision("joined", because=verdict.why, name=verdict.enrolled.name)
        return reply

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        """A nonce for a join by proof; for a TPM also a credential. Keeps nothing.

        Raises Unproven for keys that no TPM of ours has.
        """
        nonce = self._nonces.make(self.clock.now(), self.chance.token(16))
        if request.tpm is None:
            return JoinChallenge(nonce)
        ek, ak = endorsement_key(request.tpm), attestation_key(request.tpm)
        value = self._nonces.secret(nonce, ek.wire + ak.wire)
        made = make_credential(ek, ak.name, value, self.chance.token(32))
        return JoinChallenge(nonce, made.blob, made.secret, (await self.rules()).pcrs)

    def _evidence(
        self, request: JoinRequest, rules: JoinRules
    ) -> tuple[Evidence | None, Attested | None]:
        """What the machine has proven, and its quote. Raises Unproven."""
        proof = request.tpm or request.factory
        if proof is None:
            return None, None
        now = self.clock.now()
        if why := self._nonces.use(proof.nonce, now):
            raise Unproven("stale-challenge", f"the challenge is no good: {why}")
        if isinstance(proof, FactoryProof):
            return judge_factory(proof, request.enrolment_key, request.csr, rules, now), None
        return judge_join(
            proof,
            request.enrolment_key,
            request.csr,
            expected=self._nonces.secret(proof.nonce, proof.keys.ek + proof.keys.ak),
            rules=rules,
            now=now,
        )

    async def _owner(self, evidence: Evidence | None) -> Enrolled | None:
        return await self.register.proven_by(evidence.identifier) if evidence else None

    async def _by_token(
        self,
        request: JoinRequest,
        evidence: Evidence | None,
        rules: JoinRules,
        via: SpiffeId | None,
    ) -> _Admitted | Refused:
        token = await self.register.token(request.token)
        holder = await self.register.get(request.name)
        now, region = self.clock.now(), self._region(via)
        verdict = decide_join(request, token, holder, now=now, via_region=region)
        if isinstance(verdict, Refused):
            return verdict
        assert token is not None
        refused = token_alone(rules, token, proven=evidence is not None)
        if refused := refused or one_name(request.name, await self._owner(evidence)):
            return refused
        if verdict.repeat and holder is not None:
            return _Admitted(holder, "repeat", repeat=True)
        place = Place(request.name, token.region, token.labels)
        enrolled = self._enrolment(request, place, evidence, holder, via)
        return _Admitted(enrolled, "token", token=token.identifier, lineage=Lineage())

    async def _by_proof(
        self,
        request: JoinRequest,
        evidence: Evidence | None,
        rules: JoinRules,
        via: SpiffeId | None,
    ) -> _Admitted | Refused:
        assert evidence is not None
        place = place_for(rules, evidence)
        if isinstance(place, Refused):
            return place
        if via is not None and self._region(via) not in (place.region, HUB):
            return elsewhere(place, self._region(via))
        holder = await self.register.get(place.name)
        owner = await self._owner(evidence)
        verdict = decide_device(
            place, request.name, request.enrolment_key, evidence, owner=owner, holder=holder
        )
        if isinstance(verdict, Refused):
            return verdict
        if verdict.repeat and holder is not None:
            return _Admitted(holder, "repeat", repeat=True)
        lineage = Lineage()
        if verdict.renewed:
            lineage = self._counted(place.name, await self.register.lineage(place.name))
        enrolled = self._enrolment(request, place, evidence, holder, via)
        enrolled = replace(enrolled, method=evidence.method)
        return _Admitted(enrolled, evidence.method, lineage=lineage)

    def _kept_out(self, refused: Refused, name: str, via: SpiffeId | None) -> EdgewiseError:
        self.log.decision("join refused", because=refused.reason, name=name, via=str(via or ""))
        kind = Conflict if refused.reason == "name-taken" else Forbidden
        return kind(refused.what, hint=refused.hint)

    def _booted(
        self,
        enrolled: Enrolled,
        request: JoinRequest,
        quoted: Attested | None,
        rules: JoinRules,
    ) -> Attestation | None:
        """What the first quote says of the boot. Raises Unproven."""
        if quoted is None or request.tpm is None:
            return None
        quote = request.tpm.quote
        reference = compare(quote.values, rules.references(enrolled.labels))
        return passed(quoted, quote, reference, self.clock.now())

    async def _let_in(
        self, admitted: _Admitted, request: JoinRequest, via: SpiffeId | None
    ) -> JoinReply:
        enrolled = admitted.enrolled
        reply, made = self._reply(enrolled, request.csr, request.ca_csr, await self._urls(via))
        if admitted.token:
            await self.register.bind(admitted.token, enrolled)
        elif not admitted.repeat:
            await self.register.enrol(enrolled)
        await self._remember(enrolled.name, admitted.lineage, made)
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
            counted = self._counted(enrolled.name, await self._shown(enrolled, request.last))
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
            proven = renew_proof_bytes(request.csr)
            if enrolled.ak and not holds(enrolled.key, request.proof, proven):
                raise self._refused("forged-renewal", enrolled.name, None)
            lineage = await self._shown(enrolled, serial)
            reply, made = self._reply(enrolled, request.csr, request.ca_csr, ())
            await self._remember(enrolled.name, lineage, made)
        return RenewReply(reply.chain, reply.roots, reply.ca_chain)

    def _counted(self, name: str, lineage: Lineage) -> Lineage:
        counted = rejoined(lineage, self.clock.now())
        if isinstance(counted, TooOften):
            raise NeedsPerson(
                f"{name} may not rejoin before {counted.until:%Y-%m-%d}: {counted.what}",
                hint=f"look at its disk and clock, then `edgewise node forget {name}` and join "
                "it anew",
            )
        return counted

    def _enrolment(
        self,
        request: JoinRequest,
        place: Place,
        evidence: Evidence | None,
        holder: Enrolled | None,
        via: SpiffeId | None,
    ) -> Enrolled:
        fresh = Enrolled(
            name=place.name,
            role=request.role,
            region=place.region,
            key=request.enrolment_key,
            labels=dict(place.labels),
            joined=holder.joined if holder else self.clock.now(),
            age_recipient=request.age_recipient,
            platform=request.platform,
            urls=request.urls,
            via=via.name if via else "",
        )
        return with_evidence(fresh, evidence, holder)

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
