"""From git to every node: commits, plans, and the webhooks that wake the look at git."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgewise.model.errors import BadUsage, Forbidden, NotFound, Untrusted
from edgewise.net.api.fleet import receipt_line
from edgewise.net.api.ports import Source
from edgewise.net.api.sight import Sight
from edgewise.net.routes import ANYONE, PEOPLE, Bytes, Call, Peer, Route
from edgewise.protocol.api import (
    Plan,
    PlanRequest,
    RolloutSummary,
    Trace,
    TraceNode,
)
from edgewise.protocol.report import Receipt, sum_of
from edgewise.rollout.on_hub import Rollouts
from edgewise.rollout.ports import RolloutStore
from edgewise.runtime.log import Log
from edgewise.sync import webhooks

ROLLOUTS_SEARCHED = 100
"""Rollouts of a fleet among which a trace looks: as many as are kept."""
NodeFate = Literal["Running", "Pending", "Failed", "RolledBack", "Replaced", "Unchanged"]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whose webhooks wake us."""

    secret: str
    """Empty: webhooks are off."""
    branch: str


class CommitRoutes:
    """GET /v1/commits/{rev}, POST /v1/plan, POST /v1/hooks/{provider}."""

    def __init__(
        self,
        source: Source,
        rollouts: Rollouts,
        receipts: RolloutStore,
        sight: Sight,
        hooks: Hooks,
        log: Log,
    ) -> None:
        self._source = source
        self._rollouts = rollouts
        self._receipts = receipts
        self._sight = sight
        self._hooks = hooks
        self._log = log

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [
            Route(
                "GET",
                "/v1/commits/{revision}",
                "A commit's way from git to every node",
                self.trace,
                PEOPLE,
                response=Trace,
                errors=(NotFound,),
                needs="viewer",
                reach="nodes",
            ),
            Route(
                "POST",
                "/v1/plan",
                "What a commit would do, before anything moves",
                self.plan,
                PEOPLE,
                PlanRequest,
                Plan,
                errors=(NotFound,),
                needs="viewer",
                changes=False,
            ),
            Route(
                "POST",
                "/v1/hooks/{provider}",
                "A git server says that something was pushed",
                self.hook,
                ANYONE,
                response=dict[str, str],
                errors=(NotFound, Forbidden, Untrusted),
                at_most=webhooks.MAX_BODY,
                also=(202,),
                changes=False,
                description="For github, gitlab and gitea; the call proves itself with the "
                "hub's webhook secret and only makes the hub look at git sooner.",
            ),
        ]

    async def plan(self, call: Call[PlanRequest]) -> Plan:
        """POST /v1/plan."""
        return await self._source.plan(call.body)

    async def hook(self, call: Call[None]) -> Bytes:
        """POST /v1/hooks/{provider}."""
        provider = call.path["provider"]
        meaning = webhooks.recognise(
            provider,
            call.headers,
            call.raw,
            secret=self._hooks.secret,
            branch=self._hooks.branch,
        )
        if isinstance(meaning, webhooks.Ignored):
            self._log.decision("webhook ignored", because=meaning.reason, provider=provider)
            return Bytes(b'{"result":"ignored"}')
        self._log.decision("webhook", because=f"{meaning.branch} moved", commit=meaning.commit)
        self._source.wake()
        return Bytes(b'{"result":"looking"}', status=202)

    async def trace(self, call: Call[None]) -> Trace:
        """GET /v1/commits/{revision}."""
        revision = call.path["revision"]
        if not revision or len(revision) > 200 or "\0" in revision or revision.startswith("-"):
            raise BadUsage(f"{revision[:50]!r} is not a revision", hint="give a commit id")
        commit = await self._source.commit(revision)
        whole = call.rights.everywhere("viewer")
        releases = {
            fleet: release
            for fleet, release in commit.releases.items()
            if self._sight.part(call.peer, fleet)
        }
        rollouts = await self._rollouts_of(releases, commit.revision, call.peer)
        receipts = {
            receipt.node: receipt
            for receipt in await self._receipts.receipts_for(sorted(set(releases.values())))
            if self._sight.sees(call.peer, receipt.node)
        }
        nodes = tuple(self._nodes(releases, receipts, call.peer))
        return Trace(
            commit.revision,
            commit.author,
            commit.subject,
            commit.seen,
            commit.compiled,
            commit.problems if whole else (),
            releases,
            rollouts,
            nodes,
            sum(receipt.bytes_fetched for receipt in receipts.values()),
            sum(receipt.bytes_full for receipt in receipts.values()),
            sum_of(receipt.traffic for receipt in receipts.values()),
        )

    async def _rollouts_of(
        self, releases: dict[str, str], revision: str, peer: Peer
    ) -> tuple[RolloutSummary, ...]:
        found = []
        for fleet, release in sorted(releases.items()):
            for summary in await self._rollouts.rollouts(fleet, limit=ROLLOUTS_SEARCHED):
                if summary.release == release and summary.revision == revision:
                    limits = self._sight.limits(peer, fleet)
                    found.append(
                        summary
                        if limits is None
                        else (await self._rollouts.detail(summary.id, limits)).summary
                    )
        return tuple(found)

    def _nodes(
        self, releases: dict[str, str], receipts: dict[str, Receipt], peer: Peer
    ) -> Iterable[TraceNode]:
        for enrolled in self._sight.roster.all():
            if not self._sight.sees(peer, enrolled.name):
                continue
            placement = self._rollouts.placement(enrolled.name)
            release = releases.get(placement.fleet) if placement else None
            if placement is None or release is None:
                continue
            seen = self._rollouts.last_seen(enrolled.name)
            running = seen.observation.running if seen and seen.observation else ""
            target = self._rollouts.channel(placement.fleet).target(placement.index, running)
            receipt = receipts.get(enrolled.name)
            fate = fate_of(release, running, target, receipt)
            line = receipt_line(receipt) if receipt else None
            yield TraceNode(enrolled.name, placement.fleet, fate, line)


def fate_of(release: str, running: str, target: str, receipt: Receipt | None) -> NodeFate:
    """What became of one release on one node: what it runs now counts before what it said."""
    if running == release:
        return "Running" if receipt is not None else "Unchanged"
    if target == release:
        return "Failed" if receipt is not None and receipt.outcome == "Failed" else "Pending"
    if receipt is None:
        return "Pending"
    match receipt.outcome:
        case "Failed":
            return "Failed"
        case "RolledBack":
            return "RolledBack"
        case "Succeeded":
            return "Replaced"
