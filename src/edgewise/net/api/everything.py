"""All routes of a hub in one list: what the server serves and docs/openapi.json describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgewise.net.api.authority import AuthorityRoutes
from edgewise.net.api.commits import CommitRoutes
from edgewise.net.api.deltas import DeltaRoutes
from edgewise.net.api.fleet import FleetRoutes, View
from edgewise.net.api.joining import JoinRoutes
from edgewise.net.api.journal import Journal
from edgewise.net.api.login import LoginRoutes
from edgewise.net.api.meta import meta_routes
from edgewise.net.api.people import PeopleRoutes
from edgewise.net.api.relays import RelaySide
from edgewise.net.api.rollouts import RolloutRoutes
from edgewise.net.api.supply import SupplyRoutes
from edgewise.net.api.sync import NodeSync
from edgewise.net.api.trust import TrustRoutes
from edgewise.net.api.workloads import WorkloadRoutes
from edgewise.net.openapi import describe
from edgewise.net.routes import Route


@dataclass(frozen=True, slots=True)
class Groups:
    """Each group of paths."""

    nodes: NodeSync
    relays: RelaySide
    fleet: FleetRoutes
    rollouts: RolloutRoutes
    commits: CommitRoutes
    supply: SupplyRoutes
    joining: JoinRoutes
    login: LoginRoutes
    people: PeopleRoutes
    journal: Journal
    workloads: WorkloadRoutes
    trust: TrustRoutes
    authority: AuthorityRoutes
    deltas: DeltaRoutes


def hub_routes(groups: Groups) -> list[Route]:
    """Every route, the description of the others last."""
    routes = [
        *groups.nodes.routes(),
        *groups.relays.routes(),
        *groups.fleet.routes(),
        *groups.rollouts.routes(),
        *groups.commits.routes(),
        *groups.supply.routes(),
        *groups.deltas.routes(),
        *groups.joining.routes(),
        *groups.workloads.routes(),
        *groups.trust.routes(),
        *groups.authority.routes(),
        *groups.login.routes(),
        *groups.people.routes(),
        *groups.journal.routes(),
    ]
    return [*routes, *meta_routes(routes)]


_NO_VIEW: Any = View(*[None] * 10)  # type: ignore[arg-type]


def description() -> dict[str, Any]:
    """docs/openapi.json, without a hub: the routes are described, not called."""
    nothing: Any = None
    groups = Groups(
        NodeSync(nothing, nothing, nothing),
        RelaySide(nothing, nothing, nothing),
        FleetRoutes(_NO_VIEW, nothing, nothing),
        RolloutRoutes(nothing, nothing, nothing, nothing, nothing),
        CommitRoutes(nothing, nothing, nothing, nothing, nothing, nothing),
        SupplyRoutes(nothing, nothing, nothing, nothing, nothing),
        JoinRoutes(nothing, nothing, nothing),
        LoginRoutes(nothing, nothing),
        PeopleRoutes(nothing, nothing),
        Journal(nothing, nothing, nothing),
        WorkloadRoutes(nothing, nothing, nothing),
        TrustRoutes(nothing, nothing),
        AuthorityRoutes(nothing, nothing),
        DeltaRoutes(nothing),
    )
    return describe(hub_routes(groups))
