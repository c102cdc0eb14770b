"""A relay's routes for its nodes, and its line to the hub.

Whoever calls is who its certificate says, and must be of the relay's own region. What a
relay answers is verified by the node, so nothing here needs to be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec

from edgewise import __version__
from edgewise.delivery.ports import NotHere, Served
from edgewise.identity.names import RouteKind, Station, authorise
from edgewise.identity.workloads import Desk
from edgewise.model.errors import Conflict, Forbidden, NotFound, TryLater, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.api.trust import bundle_of, bundle_route, trust_route
from edgewise.net.api.workloads import workload_route
from edgewise.net.client import HOLD_MARGIN_S, Client
from edgewise.net.contents import MUTABLE, ContentAnswer, content_answer, name_tag
from edgewise.net.problems import Refusal, not_cached
from edgewise.net.proving import proof_routes
from edgewise.net.ranges import asked
from edgewise.net.routes import (
    ANYONE,
    Answer,
    Bytes,
    Call,
    Caller,
    Peer,
    Route,
)
from edgewise.net.waiters import Standing, Waiters
from edgewise.protocol import limits
from edgewise.protocol.attest import (
    AttestChallenge,
    AttestChallengeRequest,
    AttestReply,
    AttestRequest,
    JoinChallenge,
    JoinChallengeRequest,
)
from edgewise.protocol.bundles import TrustReply
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Roots,
)
from edgewise.protocol.sync import (
    RelayAcknowledged,
    RelayNews,
    RelayReport,
    RelaySync,
    SyncReply,
    SyncRequest,
)
from edgewise.protocol.workload import WorkloadReply, WorkloadRequest
from edgewise.rollout.on_relay import Relaying
from edgewise.rollout.relay_ports import HubLine, Sleepers
from edgewise.runtime.clock import Clock

NODES: Final[frozenset[Caller]] = frozenset({"node"})
MACHINES: Final[frozenset[Caller]] = frozenset({"node", "relay", "hub"})
"""People use the hub: a relay does not know who may do what."""
FIRST_HOLD_S: Final = 60.0
"""How long the hub is expected to hold the first poll; its news say how long from then on."""


class Content(Protocol):
    """Implementation: delivery.on_relay.Cache."""

    @property
    def stored_bytes(self) -> int: ...
    @property
    def fetched_bytes(self) -> int: ...
    async def trust_metadata(self) -> dict[str, bytes]:
        """What verifies the trust bundles, from the root that nodes joined with."""

    async def open(
        self, path: str, start: int = 0, end: int | None = None, *, here: bool = False
    ) -> Served:
        """``path`` below the content root. Raises NotFound, TryLater, Untrusted, NotHere."""


class Doorkeeper(Protocol):
    """Implementation: identity.on_relay.RegionalEnroller."""

    def roots(self) -> Roots: ...
    async def join(self, request: JoinRequest) -> JoinReply: ...
    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge: ...
    async def attest_challenge(
        self, peer: SpiffeId, request: AttestChallengeRequest
    ) -> AttestChallenge: ...
    async def attest(self, peer: SpiffeId, request: AttestRequest) -> AttestReply: ...
    async def challenge(self) -> RejoinChallenge: ...
    async def rejoin(self, request: RejoinRequest) -> JoinReply: ...
    async def renew(
        self, peer: SpiffeId, request: RenewRequest, serial: str = ""
    ) -> RenewReply: ...


class RelayHealth(msgspec.Struct, frozen=True):
    """Answer of GET /v1/health on a relay: numbers only, nothing about single nodes."""

    status: Literal["ok"]
    version: str
    region: str
    hub_reachable: bool
    hub_since: datetime | None
    """Since when the hub can, or cannot, be reached."""
    hub_problem: str
    cache_bytes: int
    fetched_bytes: int
    """Of objects and deltas, from above, since it started."""
    nodes_waiting: int
    """Nodes whose poll is held now."""
    nodes_known: int
    receipts_waiting: int
    """Receipts on the relay's disk that the hub has not stored yet."""
    ca_until: datetime | None
    """Until when the relay can renew its nodes' certificates without the hub."""


@dataclass(frozen=True, slots=True)
class RelayRoutes:
    """Everything a relay answers."""

    station: Station
    relaying: Relaying
    waiters: Waiters
    content: Content
    doorkeeper: Doorkeeper
    ca_until: Callable[[], datetime | None]
    desk: Desk
    clock: Clock

    def routes(self) -> list[Route]:
        """All routes of a relay."""
        return [
            Route(
                "POST",
                "/v1/sync",
                "A node's long poll",
                self.sync,
                NODES,
                SyncRequest,
                SyncReply,
                errors=(Forbidden, Untrusted),
                at_most=limits.SYNC_REQUEST,
                held=True,
            ),
            Route(
                "GET",
                "/v1/content/{path*}",
                "TUF metadata, objects and deltas, fetched from the hub once",
                self.content_file,
                MACHINES,
                response=bytes,
                errors=(NotFound, TryLater, Untrusted),
                content_type="application/octet-stream",
                description="Range, ETag and HEAD work. With `Cache-Control: only-if-cached` "
                "nothing is fetched: the answer is 504 when it is not here.",
            ),
            _passed_on("/v1/join", "First certificate for a token", self.join, JoinRequest),
            *proof_routes(self.join_challenge, self.attest_challenge, self.attest, NODES),
            Route(
                "POST",
                "/v1/rejoin/challenge",
                "A nonce for a machine whose certificate has expired",
                self.challenge,
                ANYONE,
                response=RejoinChallenge,
                errors=(TryLater,),
            ),
            _passed_on(
                "/v1/rejoin", "A certificate for a signed nonce", self.rejoin, RejoinRequest
            ),
            Route(
                "POST",
                "/v1/renew",
                "The next certificate for the caller's own name, hub or no hub",
                self.renew,
                NODES,
                RenewRequest,
                RenewReply,
                errors=(Forbidden, Untrusted),
                at_most=limits.RECORD,
            ),
            workload_route(self.workloads),
            trust_route(self.trust),
            bundle_route(self.bundle),
            Route(
                "GET",
                "/v1/roots",
                "Root certificates; a token says which one to believe",
                self.roots,
                ANYONE,
                response=Roots,
            ),
            Route(
                "GET",
                "/v1/health",
                "The relay answers, and how it stands",
                self.health,
                ANYONE,
                response=RelayHealth,
            ),
        ]

    async def sync(self, call: Call[SyncRequest]) -> Bytes | None:
        """POST /v1/sync."""
        node = self._caller("sync", call.peer).name
        self.relaying.admit(node)
        taken = await self.relaying.hear(node, call.body)
        reply = await self.relaying.reply(node, call.body, taken)
        if reply is None and call.body.hold_s > 0:  # a report must not end the held poll
            await self.waiters.hold(Standing(node))
            self.relaying.admit(node)
            reply = await self.relaying.reply(node, call.body)
        return Bytes(reply) if reply is not None else None

    async def content_file(self, call: Call[None]) -> ContentAnswer:
        """GET /v1/content/{path}."""
        peer = self._caller("content", call.peer)
        if peer.role == "node":
            self.relaying.admit(peer.name)
        path = call.path["path"]
        here = "only-if-cached" in call.headers.get("Cache-Control", "")
        try:
            served = await self.content.open(path, *asked(call.headers), here=here)
        except NotHere as error:
            raise Refusal(not_cached(str(error))) from error
        tag = served.etag if path in MUTABLE else name_tag(path)
        return content_answer(path, served.size, tag, served.read)

    async def join(self, call: Call[JoinRequest]) -> JoinReply:
        """POST /v1/join."""
        return await self.doorkeeper.join(call.body)

    async def join_challenge(self, call: Call[JoinChallengeRequest]) -> JoinChallenge:
        """POST /v1/join/challenge."""
        return await self.doorkeeper.join_challenge(call.body)

    async def attest_challenge(self, call: Call[AttestChallengeRequest]) -> AttestChallenge:
        """POST /v1/attest/challenge."""
        return await self.doorkeeper.attest_challenge(call.peer.required(), call.body)

    async def attest(self, call: Call[AttestRequest]) -> AttestReply:
        """POST /v1/attest."""
        return await self.doorkeeper.attest(call.peer.required(), call.body)

    async def challenge(self, call: Call[None]) -> RejoinChallenge:
        """POST /v1/rejoin/challenge."""
        return await self.doorkeeper.challenge()

    async def rejoin(self, call: Call[RejoinRequest]) -> JoinReply:
        """POST /v1/rejoin."""
        return await self.doorkeeper.rejoin(call.body)

    async def renew(self, call: Call[RenewRequest]) -> RenewReply:
        """POST /v1/renew."""
        peer = self._caller("renew", call.peer)
        return await self.doorkeeper.renew(peer, call.body, call.peer.serial)

    async def workloads(self, call: Call[WorkloadRequest]) -> WorkloadReply:
        """POST /v1/workloads, hub or no hub."""
        node = self._caller("workloads", call.peer)
        self.relaying.admit(node.name)
        record = self.relaying.known.nodes.get(node.name)
        return self.desk.answer(node, record, call.body, self.clock.now())

    async def trust(self, call: Call[None]) -> TrustReply:
        """GET /v1/trust."""
        return TrustReply(self.relaying.known.bundles, await self.content.trust_metadata())

    async def bundle(self, call: Call[None]) -> Bytes:
        """GET /v1/bundles/{trust_domain}."""
        return bundle_of(self.relaying.known.trusted, call.path["trust_domain"])

    async def roots(self, call: Call[None]) -> Roots:
        """GET /v1/roots."""
        return self.doorkeeper.roots()

    async def health(self, call: Call[None]) -> RelayHealth:
        """GET /v1/health."""
        contact = self.relaying.contact
        return RelayHealth(
            "ok",
            __version__,
            self.station.region,
            contact.reachable,
            contact.since,
            contact.problem,
            self.content.stored_bytes,
            self.content.fetched_bytes,
            len(self.waiters),
            len(self.relaying.known.nodes),
            self.relaying.receipts_waiting,
            self.ca_until(),
        )

    def _caller(self, kind: RouteKind, peer: Peer) -> SpiffeId:
        authorise(kind, peer.id, self.station)
        return peer.required()


@dataclass(slots=True)
class HubOverHttps:
    """The relay's line to the hub."""

    client: Client
    """With at least two connections: a held poll must not keep a report waiting."""
    hold_s: float = FIRST_HOLD_S

    async def sync(self, request: RelaySync) -> RelayNews | None:
        """See ``HubLine``."""
        answer = await self.client.request(
            "POST",
            "/v1/relay/sync",
            encode(request),
            timeout=self.hold_s + HOLD_MARGIN_S,
            at_most=limits.RELAY_NEWS,
        )
        if answer.status == 204:
            return None
        news = decode(answer.body, RelayNews, what="news", at_most=limits.RELAY_NEWS)
        # A hub that names no sensible time must not make us wait for ever, or not at all.
        self.hold_s = min(max(news.hold_s, 5.0), 600.0)
        return news

    async def report(self, report: RelayReport) -> RelayAcknowledged:
        """See ``HubLine``."""
        answer = await self.client.request(
            "POST", "/v1/relay/report", encode(report), at_most=limits.API_BODY
        )
        return decode(answer.body, RelayAcknowledged, what="the answer to a report")


@dataclass(frozen=True, slots=True)
class WaitingNodes:
    """The waiters, as rollout on the relay sees them."""

    waiters: Waiters

    def wake(self, names: Iterable[str]) -> int:
        """End the polls of these nodes; returns how many were held."""
        return self.waiters.wake_each(names)


def _passed_on(path: str, summary: str, answer: Answer, request: type) -> Route:
    return Route(
        "POST",
        path,
        summary,
        answer,
        ANYONE,
        request,
        JoinReply,
        errors=(Forbidden, Conflict, Untrusted, NotFound, TryLater),
        at_most=limits.RECORD,
    )


def _meets_its_port(line: HubOverHttps, waiting: WaitingNodes) -> tuple[HubLine, Sleepers]:
    return line, waiting
