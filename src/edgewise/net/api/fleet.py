"""What runs where: status, fleets and nodes, and what a person may do to a node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from edgewise.identity.ports import Enrolled, Enrolments
from edgewise.identity.reattestation import Attestation
from edgewise.model.errors import BadUsage, Conflict, NotFound
from edgewise.model.labels import Selector, parse_selector
from edgewise.net.api.journal import Journal
from edgewise.net.api.ports import Roster, Source
from edgewise.net.api.records import Records
from edgewise.net.api.sight import Sight
from edgewise.net.routes import PEOPLE, Call, NoQuery, Paging, Route, missing, page
from edgewise.protocol.api import (
    Explanation,
    FederationStatus,
    FleetStatus,
    HubStatus,
    NodeDetail,
    NodeIdentity,
    NodeProof,
    NodeSummary,
    Page,
    ReceiptLine,
    RelayStatus,
    RolloutCommand,
    SourceStatus,
    SyncState,
)
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout.on_hub import Rollouts
from edgewise.rollout.ports import RolloutStore
from edgewise.runtime.clock import Clock

UNPLACED_ONLINE: Final = timedelta(minutes=5)
"""Nodes of no fleet, and relays, count as online this long after the last contact."""
RECEIPTS_SHOWN: Final = 20


class NodesQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """Which nodes; empty parameters match all."""

    selector: str = ""
    """As kubectl takes it: ``site=berlin,!retired,ring in (a,b)``."""
    fleet: str = ""
    health: Literal["", "Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"] = (
        ""
    )


class ProofsQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """Which nodes; empty parameters match all."""

    selector: str = ""
    """As kubectl takes it."""
    failing: bool = False
    """Only those that fail to attest."""


@dataclass(frozen=True, slots=True)
class View:
    """The parts whose data is shown together."""

    organisation: str
    version: str
    trust: Literal["hub", "builder"]
    roster: Roster
    rollouts: Rollouts
    receipts: RolloutStore
    records: Records
    source: Source
    journal: Journal
    clock: Clock
    attested: Callable[[str], Attestation] = lambda _: Attestation()
    """What is known of a node's TPM."""
    federations: Callable[[], tuple[FederationStatus, ...]] = lambda: ()

    @property
    def sight(self) -> Sight:
        """What callers may see of it."""
        return Sight(self.roster, self.records, self.rollouts)


class FleetRoutes:
    """Status, fleets and nodes."""

    def __init__(
        self,
        view: View,
        enrolments: Enrolments,
        membership: Callable[[str], Awaitable[None]],
    ) -> None:
        """``membership`` is called with a node's name after what it may run has changed."""
        self._view = view
        self._sight = view.sight
        self._enrolments = enrolments
        self._membership = membership

    def routes(self) -> list[Route]:
        """All routes of this group."""
        node = "/v1/nodes/{name}"
        return [
            _get("/v1/status", "How the whole hub stands", self.status, HubStatus),
            _get("/v1/fleets", "Every fleet in one line", self.fleets, Page[FleetStatus], Paging),
            _get("/v1/nodes", "Nodes, by name", self.nodes, Page[NodeSummary], NodesQuery),
            _get(
                "/v1/attestations",
                "How nodes proved themselves, and what their TPMs said last",
                self.proofs,
                Page[NodeProof],
                ProofsQuery,
            ),
            _get(node, "One node", self.node, NodeDetail, missing=True),
            _get(
                f"{node}/explain",
                "Why this node runs what it runs",
                self.explain,
                Explanation,
                missing=True,
            ),
            _act(f"{node}/hold", "Keep the node on what it runs", self.hold),
            _act(f"{node}/release", "Let a held or quarantined node go on", self.release),
            _act(f"{node}/quarantine", "Refuse the node everything from now on", self.quarantine),
            Route(
                "DELETE",
                node,
                "Forget the node; its name can join again",
                self.forget,
                PEOPLE,
                errors=(NotFound,),
                status=204,
                needs="operator",
                reach="nodes",
            ),
        ]

    async def status(self, call: Call[None]) -> HubStatus:
        """GET /v1/status."""
        view = self._view
        mine = [e for e in view.roster.all() if self._sight.sees(call.peer, e.name)]
        relays = [self._relay(e, mine) for e in view.roster.all() if e.role == "relay"]
        whole = call.rights.everywhere("viewer")
        last = view.journal.last if whole else None
        return HubStatus(
            view.organisation,
            view.version,
            view.trust,
            view.source.status() if whole else _outline(view.source.status()),
            tuple(self._fleets(call)),
            tuple(relay for relay in relays if whole or relay.nodes),
            view.rollouts.held() if whole else (),
            sum(1 for e in mine if e.role == "node" and not view.rollouts.placement(e.name)),
            last.sequence if last else 0,
            last.hash if last else "",
            view.federations(),
            sum(1 for e in mine if e.quarantined),
            sum(1 for e in mine if e.ak and view.attested(e.name).failing_since),
        )

    def _fleets(self, call: Call[Any]) -> list[FleetStatus]:
        """Fleets of which the caller sees anything; only the nodes that it sees count."""
        rollouts = self._view.rollouts
        if call.rights.everywhere("viewer"):
            return list(rollouts.fleets())
        return [
            rollouts.fleet_status(one.name, self._sight.limits(call.peer, one.name))
            for one in rollouts.fleets()
            if self._sight.part(call.peer, one.name)
        ]

    def _relay(self, relay: Enrolled, everybody: Sequence[Enrolled]) -> RelayStatus:
        seen = self._view.rollouts.last_seen(relay.name)
        nodes = sum(
            1
            for e in everybody
            if e.role == "node"
            and (s := self._view.rollouts.last_seen(e.name)) is not None
            and s.via == relay.name
        )
        heard = seen.heard if seen else None
        return RelayStatus(relay.name, relay.region, self._recent(heard), heard, nodes)

    def _recent(self, heard: datetime | None) -> bool:
        return heard is not None and self._view.clock.now() - heard < UNPLACED_ONLINE

    async def fleets(self, call: Call[None]) -> Page[FleetStatus]:
        """GET /v1/fleets."""
        return page(self._fleets(call), call.query, lambda fleet: fleet.name)

    async def nodes(self, call: Call[None]) -> Page[NodeSummary]:
        """GET /v1/nodes."""
        query: NodesQuery = call.query
        selector = _selector(query.selector)
        found = []
        for enrolled in self._view.roster.all():
            if enrolled.role != "node" or enrolled.name <= query.after:
                continue
            if not self._sight.sees(call.peer, enrolled.name):
                continue
            one = self._summary(enrolled)
            if (
                query.fleet in ("", one.fleet)
                and query.health in ("", one.health)
                and selector.matches(one.labels)
            ):
                found.append(one)
                if len(found) > query.limit:
                    break
        return page(found, query, lambda node: node.name)

    async def proofs(self, call: Call[None]) -> Page[NodeProof]:
        """GET /v1/attestations."""
        query: ProofsQuery = call.query
        selector = _selector(query.selector)
        found = []
        for enrolled in self._view.roster.all():
            if enrolled.role != "node" or enrolled.name <= query.after:
                continue
            if not self._sight.sees(call.peer, enrolled.name):
                continue
            known = self._view.attested(enrolled.name)
            labels = dict(self._sight.labels(enrolled))
            if selector.matches(labels) and (known.failing_since or not query.failing):
                said = _identity(enrolled, known)
                found.append(NodeProof(enrolled.name, labels, said, enrolled.quarantined))
                if len(found) > query.limit:
                    break
        return page(found, query, lambda one: one.name)

    async def node(self, call: Call[None]) -> NodeDetail:
        """GET /v1/nodes/{name}."""
        enrolled = self._enrolled(call)
        seen = self._view.rollouts.last_seen(enrolled.name)
        said = (seen.observation if seen else None) or Observation()
        receipts = await self._view.receipts.receipts(enrolled.name, limit=RECEIPTS_SHOWN)
        return NodeDetail(
            self._summary(enrolled),
            said.platform or enrolled.platform,
            said.version,
            enrolled.joined,
            (seen.via if seen else "") or "hub",
            said.apps,
            said.drifted,
            said.previous,
            tuple(receipt_line(receipt) for receipt in receipts),
            said.free_bytes,
            _identity(enrolled, self._view.attested(enrolled.name)),
            said.keys,
        )

    async def explain(self, call: Call[None]) -> Explanation:
        """GET /v1/nodes/{name}/explain."""
        enrolled = self._enrolled(call)
        told = self._view.rollouts.explain(enrolled.name)
        if enrolled.quarantined:
            first = f"It is quarantined: {enrolled.quarantined}. It gets nothing new."
            return Explanation(told.node, (first, *told.lines))
        return told

    async def hold(self, call: Call[RolloutCommand]) -> None:
        """POST /v1/nodes/{name}/hold."""
        await self._set_hold(call, held=True)

    async def release(self, call: Call[RolloutCommand]) -> None:
        """POST /v1/nodes/{name}/release."""
        enrolled = self._changeable(call)
        if enrolled.quarantined:
            await self._enrolments.quarantine(enrolled.name, "")
            await self._changed(call, "node.release", enrolled.name)
            return
        await self._set_hold(call, held=False)

    async def _set_hold(self, call: Call[RolloutCommand], *, held: bool) -> None:
        name = self._changeable(call).name
        if self._view.rollouts.placement(name) is None:
            raise Conflict(f"no fleet selects {name}", hint="`edgewise node explain` says why")
        await self._view.rollouts.hold(name, held, actor=str(call.peer), reason=call.body.reason)
        action = "node.hold" if held else "node.release"
        await self._view.journal.note(call.peer, action, name, call.body.reason)

    async def quarantine(self, call: Call[RolloutCommand]) -> None:
        """POST /v1/nodes/{name}/quarantine."""
        name = self._changeable(call).name
        await self._enrolments.quarantine(name, call.body.reason or f"by {call.peer}")
        await self._changed(call, "node.quarantine", name)

    async def forget(self, call: Call[None]) -> None:
        """DELETE /v1/nodes/{name}."""
        name = self._changeable(call, any_role=True).name
        await self._enrolments.forget(name)
        await self._view.rollouts.forget(name)
        await self._changed(call, "node.forget", name)

    async def _changed(self, call: Call[Any], action: str, name: str) -> None:
        reason = call.body.reason if isinstance(call.body, RolloutCommand) else ""
        await self._view.journal.note(call.peer, action, name, reason)
        await self._membership(name)

    def _enrolled(self, call: Call[Any], *, any_role: bool = False) -> Enrolled:
        """The node that the path names; one that the caller may not see is not there."""
        name = call.path["name"]
        enrolled = self._view.roster.get(name)
        if enrolled is None or (enrolled.role != "node" and not any_role):
            raise _no_node(name)
        if not self._sight.sees(call.peer, name):
            raise _no_node(name)
        return enrolled

    def _changeable(self, call: Call[Any], *, any_role: bool = False) -> Enrolled:
        """``_enrolled``, and the caller is an operator of it. A relay has no labels: it takes
        the role over everything."""
        enrolled = self._enrolled(call, any_role=any_role)
        if not self._sight.sees(call.peer, enrolled.name, "operator"):
            why = f"node {enrolled.name} is not among the nodes that this covers"
            raise missing("operator", call.peer, why)
        return enrolled

    def _summary(self, enrolled: Enrolled) -> NodeSummary:
        view, name = self._view, enrolled.name
        seen = view.rollouts.last_seen(name)
        said = (seen.observation if seen else None) or Observation()
        placement = view.rollouts.placement(name)
        labels = self._sight.labels(enrolled)
        target = said.running
        online = self._recent(seen.heard if seen else None)
        sync: SyncState = "Unknown"
        if placement is not None:
            target = view.rollouts.channel(placement.fleet).target(placement.index, said.running)
            online = view.rollouts.is_online(name)
            if seen is not None and seen.observation is not None:
                same = said.running == target and not said.drifted
                sync = "Synced" if same else "OutOfSync"
        return NodeSummary(
            name,
            placement.fleet if placement else "",
            enrolled.region,
            dict(labels),
            sync,
            said.health,
            said.phase,
            online,
            seen.heard if seen else None,
            said.running,
            target,
            bool(placement and placement.held),
            f"quarantined: {enrolled.quarantined}" if enrolled.quarantined else said.reason,
            enrolled.platform,
            dict(enrolled.labels),
        )


def _selector(text: str) -> Selector:
    try:
        return parse_selector(text)
    except ValueError as error:
        raise BadUsage(str(error), hint="the notation is that of kubectl -l") from error


def _identity(enrolled: Enrolled, known: Attestation) -> NodeIdentity:
    return NodeIdentity(
        enrolled.method,
        enrolled.evidence,
        enrolled.vouched,
        enrolled.serial,
        known.at,
        known.reference,
        known.failing_since,
        known.reason,
        known.what,
        known.pcrs,
    )


def _no_node(name: str) -> NotFound:
    return NotFound(f"there is no node {name[:100]!r}", hint="`edgewise node ls` lists them")


def _outline(source: SourceStatus) -> SourceStatus:
    """For somebody who does not see the whole repo: nothing that it says."""
    conditions = tuple(
        msgspec.structs.replace(condition, message="") for condition in source.conditions
    )
    return SourceStatus(source.revision, source.compiled, conditions)


def receipt_line(receipt: Receipt) -> ReceiptLine:
    """A receipt as it is shown."""
    return ReceiptLine(
        receipt.node,
        receipt.sequence,
        receipt.outcome,
        receipt.release,
        receipt.rollout,
        receipt.at,
        receipt.reason,
        receipt.bytes_fetched,
        receipt.bytes_full,
        receipt.seconds,
        receipt.traffic,
    )


def _get(
    path: str,
    summary: str,
    answer: Any,
    response: Any,
    query: type[msgspec.Struct] = NoQuery,
    *,
    missing: bool = False,
) -> Route:
    return Route(
        "GET",
        path,
        summary,
        answer,
        PEOPLE,
        None,
        response,
        query=query,
        errors=(NotFound,) if missing else (),
        needs="viewer",
        reach="nodes",
    )


def _act(path: str, summary: str, answer: Any) -> Route:
    return Route(
        "POST",
        path,
        summary,
        answer,
        PEOPLE,
        RolloutCommand,
        errors=(NotFound, Conflict),
        status=204,
        needs="operator",
        reach="nodes",
    )
