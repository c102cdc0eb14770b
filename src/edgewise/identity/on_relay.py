"""What identity does on the relay: pass joins on, renew its region's nodes itself.

Joins and rejoins are decided and answered by the hub alone: it knows tokens and enrolment
keys. Renewals are the relay's own, by its regional CA, so that certificates stay fresh
while the hub is away. What the hub says is gone is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from edgewise.identity.names import Organisation, Station, authorise
from edgewise.identity.ports import HubDoor, Issuer, Lineages
from edgewise.identity.rotation import TwoUsers, issued, shown
from edgewise.identity.signatures import holds
from edgewise.identity.tokens import renew_proof_bytes
from edgewise.model.errors import Forbidden, Untrusted
from edgewise.model.names import SpiffeId
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
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log


@dataclass(slots=True)
class RegionalEnroller:
    """One per relay."""

    organisation: Organisation
    region: str
    issuer: Issuer
    hub: HubDoor
    lineages: Lineages
    gone: Callable[[str], str]
    """Why a name is refused (from ``RelayNews.gone``), or an empty text."""
    clock: Clock
    log: Log
    key: Callable[[str], bytes] = lambda _: b""
    """The enrolment key of a node whose key is in a TPM (from its record), or nothing."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def roots(self) -> Roots:
        """Answer of GET /v1/roots."""
        return Roots(self.issuer.roots)

    async def join(self, request: JoinRequest) -> JoinReply:
        """Raises TryLater while the hub is away, and whatever the hub says."""
        return await self.hub.join(request)

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        """The hub's challenge for a proof."""
        return await self.hub.join_challenge(request)

    async def attest_challenge(
        self, peer: SpiffeId, request: AttestChallengeRequest
    ) -> AttestChallenge:
        """The hub's challenge for a node of this region, quarantined or not."""
        self._own(peer, request.node)
        return await self.hub.attest_challenge(request)

    async def attest(self, peer: SpiffeId, request: AttestRequest) -> AttestReply:
        """Passed on: only the hub knows the key that must have signed it."""
        self._own(peer, request.node)
        return await self.hub.attest(request)

    def _own(self, peer: SpiffeId, node: str) -> None:
        authorise("sync", peer, Station(self.organisation, self.region))
        if peer.name != node:
            raise Forbidden(f"{peer} cannot attest for {node[:100]}", hint="each for itself")

    async def challenge(self) -> RejoinChallenge:
        """The hub's challenge."""
        return await self.hub.challenge()

    async def rejoin(self, request: RejoinRequest) -> JoinReply:
        """As ``join``."""
        return await self.hub.rejoin(request)

    async def renew(self, peer: SpiffeId, request: RenewRequest, serial: str = "") -> RenewReply:
        """A new certificate for a node of this region.

        Raises Forbidden for others, for nodes that are gone, and for two users of one key.
        """
        authorise("renew", peer, Station(self.organisation, self.region))
        if peer.role != "node":
            raise Forbidden(f"{peer} renews at the hub", hint="use the hub's URL")
        if why := self.gone(peer.name):
            raise Forbidden(f"{peer.name} gets nothing more: {why}", hint="ask the operator")
        key = self.key(peer.name)
        if key and not holds(key, request.proof, renew_proof_bytes(request.csr)):
            self.log.decision("refused", because="forged-renewal", name=peer.name)
            raise Untrusted(
                "the renewal is not signed by the key in the node's TPM",
                hint="was the disk taken out of its machine?",
            )
        async with self._turn:
            before = shown(await self.lineages.lineage(peer.name), serial)
            if isinstance(before, TwoUsers):
                self.log.event("two users of one key", "error", name=peer.name, what=before.what)
                raise Forbidden(
                    f"{peer.name} is locked: {before.what}",
                    hint="find the copy; then forget the name and join the right machine again",
                )
            made = self.issuer.issue(peer, request.csr)
            await self.lineages.keep_lineage(
                peer.name, issued(before, made.serial, self.clock.now())
            )
        return RenewReply(made.chain, self.issuer.roots)
