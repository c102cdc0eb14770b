"""A hub's whole API on a loopback port without TLS, over stores in memory.

Whoever calls says in the header ``x-peer`` who they are: for tests of the API only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from edgewise.backends.files.objects import FileObjects
from edgewise.backends.tuf.repository import FileKeys, FileMetadata
from edgewise.delivery.deltas import DEFAULT
from edgewise.delivery.on_hub import Publisher
from edgewise.identity.names import Organisation
from edgewise.identity.people import EVERYTHING, Grant, Rights
from edgewise.identity.ports import Enrolled, Issued
from edgewise.identity.workloads import Desk
from edgewise.model.errors import Conflict, Forbidden, NotFound, Untrusted
from edgewise.model.labels import parse_selector
from edgewise.model.names import SpiffeId
from edgewise.net.api.authority import AuthorityRoutes, Rotator
from edgewise.net.api.bundles import Bundles
from edgewise.net.api.commits import CommitRoutes, Hooks
from edgewise.net.api.deltas import DeltaRoutes
from edgewise.net.api.everything import Groups, hub_routes
from edgewise.net.api.fleet import FleetRoutes, View
from edgewise.net.api.joining import JoinRoutes
from edgewise.net.api.journal import Journal
from edgewise.net.api.login import LoginRoutes
from edgewise.net.api.people import PeopleRoutes
from edgewise.net.api.records import Records
from edgewise.net.api.relays import RelaySide
from edgewise.net.api.rollouts import RolloutRoutes
from edgewise.net.api.supply import SupplyRoutes
from edgewise.net.api.sync import Fleetside, NodeSync
from edgewise.net.api.trust import TrustRoutes
from edgewise.net.api.workloads import WorkloadRoutes
from edgewise.net.gate import PeopleGate
from edgewise.net.logins import LoginDesk, Logins
from edgewise.net.published import Board
from edgewise.net.register import PeopleRegister
from edgewise.net.routes import Peer
from edgewise.net.server import Listen, Request, Server
from edgewise.net.waiters import Waiters
from edgewise.protocol.api import (
    CaStatus,
    Plan,
    PlanRequest,
    RotateRoot,
    SourceStatus,
    TokenCreated,
    TokenLine,
    TokenRequest,
)
from edgewise.protocol.attest import JoinChallenge, JoinChallengeRequest
from edgewise.protocol.channel import Signed
from edgewise.protocol.join import (
    JoinReply,
    JoinRequest,
    RejoinChallenge,
    RejoinRequest,
    RenewReply,
    RenewRequest,
    Roots,
)
from edgewise.roles.hub_deltas import DeltaPlaces, HubDeltas
from edgewise.rollout.on_hub import Outside, Rollouts
from edgewise.runtime.clock import Clock
from edgewise.sync.ports import CommitSeen
from edgewise.testing.chance import SeededChance
from edgewise.testing.deltas import MemoryDeltaMaker, MemoryDeltas
from edgewise.testing.hub import MemoryHub
from edgewise.testing.log import ListLog
from edgewise.testing.people import MemoryPeople, PlainPasswords
from edgewise.testing.rollouts import MemoryNodeStates, MemoryRollouts, Noticeboard

OPERATOR = "spiffe://hub.acme/user/ada"


class NamedServer(Server):
    """Believes the ``x-peer`` and ``x-serial`` headers."""

    def _peer(self, request: Request) -> Peer:  # type: ignore[override]
        named = request.headers.get("x-peer", "")
        serial = request.headers.get("x-serial", "")
        return Peer(SpiffeId.parse(named) if named else None, None, "127.0.0.1", serial)


class HeaderGate(PeopleGate):
    """People are administrators, unless ``x-role`` (with ``x-selector`` and ``x-fleet``) says
    otherwise. API tokens, and people with ``x-serial``, are judged as on a real hub."""

    def admit(self, peer: Peer, headers: Mapping[str, str]) -> Peer:
        if "Authorization" in headers or "x-serial" in headers:
            return super().admit(peer, headers)
        if peer.role not in ("user", "hub"):
            return peer
        if "x-role" not in headers:
            return replace(peer, rights=EVERYTHING)
        fleets = tuple(filter(None, [headers.get("x-fleet", "")]))
        selector = parse_selector(headers.get("x-selector", ""))
        role: Any = headers["x-role"]
        grants = (Grant(role, selector, fleets),) if role else ()
        return replace(peer, rights=Rights(grants))


class PlainIssuer:
    """Certificates that are only counted."""

    roots: tuple[bytes, ...] = (b"root",)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.made = 0

    def issue_person(self, identity: SpiffeId, csr: bytes, life: timedelta) -> Issued:
        if not csr:
            raise Untrusted("a certificate request cannot be read: it is empty")
        self.made += 1
        now = self._clock.now()
        return Issued((b"leaf",), f"{self.made:x}", now, now + life)


class FixedSource:
    """One commit, which compiled."""

    def __init__(self, clock: Clock) -> None:
        self.seen = CommitSeen("main@sha1:" + "1" * 40, "ada", "first", clock.now(), True)
        self.approved: list[str] = []
        self.woken = 0

    def status(self) -> SourceStatus:
        return SourceStatus(self.seen.revision, self.seen.revision)

    def wake(self) -> None:
        self.woken += 1

    async def commit(self, revision: str) -> CommitSeen:
        if revision not in ("main", "1" * 40):
            raise NotFound(f"there is no commit {revision[:40]!r}")
        return self.seen

    async def plan(self, request: PlanRequest) -> Plan:
        if request.head != "main":
            raise NotFound(f"there is no revision {request.head[:40]!r}")
        return Plan(request.base, request.head, ())

    async def approve(self, identifier: str, *, actor: str, reason: str) -> None:
        self.approved.append(identifier)


class FewJoins:
    """Tokens in a dictionary; every machine is refused."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens: dict[str, TokenLine] = {}

    async def join(self, request: JoinRequest, via: SpiffeId | None = None) -> JoinReply:
        raise Forbidden("this token is not known", hint="make one with `edgewise node token`")

    async def join_challenge(self, request: JoinChallengeRequest) -> JoinChallenge:
        raise Forbidden("nobody joins here")

    async def challenge(self) -> RejoinChallenge:
        return RejoinChallenge("n")

    async def rejoin(self, request: RejoinRequest, via: SpiffeId | None = None) -> JoinReply:
        raise Forbidden(f"{request.name[:40]!r} is not enrolled")

    async def renew(self, peer: SpiffeId, request: RenewRequest, serial: str = "") -> RenewReply:
        raise Forbidden(f"{peer} is not enrolled")

    async def create_token(self, request: TokenRequest) -> TokenCreated:
        name = f"t{len(self._tokens)}"
        expires = self._clock.now() + timedelta(hours=1)
        self._tokens[name] = TokenLine(
            name, request.role, request.labels, request.region, expires, request.uses, ()
        )
        return TokenCreated(name, "ew1.secret", expires)

    async def tokens(self) -> tuple[TokenLine, ...]:
        return tuple(self._tokens.values())

    async def revoke_token(self, identifier: str) -> None:
        self._tokens.pop(identifier, None)

    def roots(self) -> Roots:
        return Roots(())


class OneRoot:
    """A root that nobody replaces."""

    async def status(self) -> CaStatus:
        return CaStatus("acme", "Stable", (), 1, 0, 0, (), "prepare", 0)

    async def step(self, request: RotateRoot) -> CaStatus:
        raise Conflict("this hub keeps its root", hint="ask a real one")


class People:
    """Who has joined: a roster and the part of the enrolments that the API uses."""

    def __init__(self) -> None:
        self.known: dict[str, Enrolled] = {}

    def add(
        self,
        name: str,
        role: Literal["node", "relay"],
        clock: Clock,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        key = b"key of " + name.encode()
        self.known[name] = Enrolled(name, role, "eu", key, dict(labels or {}), clock.now())

    def get(self, name: str) -> Enrolled | None:
        return self.known.get(name)

    def all(self) -> tuple[Enrolled, ...]:
        return tuple(self.known[name] for name in sorted(self.known))

    async def forget(self, name: str) -> None:
        self.known.pop(name, None)

    async def quarantine(self, name: str, reason: str) -> None:
        old = self.known[name]
        self.known[name] = Enrolled(
            name, old.role, old.region, old.key, old.labels, old.joined, quarantined=reason
        )


class LoopbackHub:
    """``await LoopbackHub.start(folder, clock)``; close it at the end."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.log = ListLog()
        self.people = People()
        self.source = FixedSource(clock)
        self.joins = FewJoins(clock)
        self.passwords = PlainPasswords()
        self.register: PeopleRegister
        self.logins: Logins
        self.store = MemoryRollouts()
        self.changed: list[str] = []
        self.rollouts: Rollouts
        self.publisher: Publisher
        self.records: Records
        self.server: Server
        self.board: Board
        self.journal: Journal
        self.nodes: NodeSync
        self.bundles: Bundles | None = None
        self.rotator: Rotator = OneRoot()
        self.waiters: tuple[Waiters, Waiters]

    @classmethod
    async def start(cls, folder: Path, clock: Clock) -> LoopbackHub:
        """Listen on a free port."""
        hub = cls(clock)
        objects = FileObjects(folder / "content")
        hub.publisher = await Publisher.open(
            FileMetadata(folder / "content" / "tuf"),
            FileKeys(folder / "keys"),
            objects,
            clock=clock,
        )
        hub.board = Board(hub.publisher, hub.log)
        chance = SeededChance()
        outside = Outside(hub.store, MemoryNodeStates(), hub.board, *[Noticeboard()] * 3)
        hub.rollouts = Rollouts(outside, clock, chance, hub.log)
        await hub.rollouts.start()
        memory = MemoryHub()
        hub.journal = await Journal.open(memory, clock)
        hub.records = Records(memory, hub._sign)
        await hub._open(memory, folder)
        hub.register = await PeopleRegister.open(MemoryPeople(), clock, chance)
        acme = Organisation("acme")
        desk = LoginDesk(acme, hub.register, hub.passwords, PlainIssuer(clock), hub.journal, clock)
        hub.logins = Logins(desk)
        groups = hub._groups(objects, folder / "content", chance)
        hub.board.connect(groups.nodes, groups.relays)
        hub.nodes = groups.nodes
        gate = HeaderGate(hub.register, acme, clock)
        hub.server = NamedServer(hub_routes(groups), clock, chance, hub.log, gate=gate)
        hub.server.on_refused = hub.journal.refused
        hub.server.on_failed = hub.journal.failed
        await hub.server.start(Listen())
        return hub

    async def _open(self, memory: MemoryHub, folder: Path) -> None:
        """For hubs with more than this one has."""

    def _desk(self) -> Desk:
        nothing: Any = None  # it has no authority
        return Desk(Organisation("acme"), nothing, nothing, lambda: None)

    async def _sign(self, payload: bytes) -> Signed:
        return Signed("node-record/1", payload, "k", b"s")

    def _verify(self, key: bytes, signed: Signed) -> bool:
        return signed.signature == key

    def _groups(self, objects: FileObjects, content: Path, chance: SeededChance) -> Groups:
        side = Fleetside(
            "acme",
            self.people,
            self.records,
            self.board,
            self.rollouts,
            self._verify,
            lambda subject, what: None,
            self.bundles,
        )
        hold = timedelta(seconds=1)
        self.waiters = Waiters(self.clock, chance, hold), Waiters(self.clock, chance, hold)
        view = View(
            "acme", "0", "hub", self.people, self.rollouts, self.store, self.records,
            self.source, self.journal, self.clock,
        )  # fmt: skip
        people: Any = self.people
        nothing: Any = None
        return Groups(
            NodeSync(side, self.waiters[0], self.clock),
            RelaySide(side, self.waiters[1], self.clock),
            FleetRoutes(view, people, self._membership),
            RolloutRoutes(self.rollouts, self.source, view.sight, self.journal, self.clock),
            CommitRoutes(
                self.source, self.rollouts, self.store, view.sight, Hooks("hush", "main"), self.log
            ),
            SupplyRoutes(self.publisher, objects, content, self.journal, self.source.wake),
            JoinRoutes(self.joins, self._membership, self.journal),
            LoginRoutes(self.logins, self.register),
            PeopleRoutes(self.logins, self.register),
            self.journal,
            WorkloadRoutes(side, self._desk(), self.clock),
            TrustRoutes(
                self.bundles or Bundles(MemoryHub(), self._sign, nothing, self.clock),
                self.publisher.trust_metadata,
            ),
            AuthorityRoutes(self.rotator, self.journal),
            DeltaRoutes(self._deltas(objects)),
        )

    def _deltas(self, objects: FileObjects) -> HubDeltas:
        places = DeltaPlaces(self.publisher, objects, MemoryDeltas(), MemoryDeltaMaker([]))
        return HubDeltas(places, DEFAULT, self.clock, self.log)

    async def _membership(self, name: str) -> None:
        self.changed.append(name)

    async def close(self) -> None:
        """Stop listening."""
        await self.server.close()
