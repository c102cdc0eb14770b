"""Rollouts: list, show, watch, and a person's commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

from edgewise.model.errors import Conflict, NotFound
from edgewise.net.api.journal import Journal
from edgewise.net.api.ports import Source
from edgewise.net.routes import OPERATORS, Call, Events, Paging, Route
from edgewise.protocol.api import (
    Page,
    RolloutCommand,
    RolloutDetail,
    RolloutState,
    RolloutSummary,
)
from edgewise.rollout.on_hub import Rollouts
from edgewise.runtime.clock import Clock

VERBS: Final = {
    "approve": "Let a stage, or a held commit, go on",
    "pause": "Stop sending nodes to the new release",
    "resume": "Go on after a pause",
    "abort": "Take the nodes back to the release before",
    "retry": "Start a failed rollout again, from the first stage",
}
ENDED: Final[frozenset[RolloutState]] = frozenset(
    {"Succeeded", "RolledBack", "Failed", "Cancelled", "Superseded"}
)
WATCH_PACE: Final = timedelta(milliseconds=100)
"""Changes that come faster are one event."""


class RolloutsQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """Newest first."""

    fleet: str = ""
    """Only of this fleet; empty: all."""


class RolloutRoutes:
    """Everything below /v1/rollouts."""

    def __init__(self, rollouts: Rollouts, source: Source, journal: Journal, clock: Clock) -> None:
        self._rollouts = rollouts
        self._source = source
        self._journal = journal
        self._clock = clock

    def routes(self) -> list[Route]:
        """All routes of this group."""
        one = "/v1/rollouts/{id}"
        shown = [
            Route(
                "GET",
                "/v1/rollouts",
                "Rollouts, newest first",
                self.ls,
                OPERATORS,
                response=Page[RolloutSummary],
                query=RolloutsQuery,
            ),
            Route(
                "GET",
                one,
                "One rollout with its stages",
                self.show,
                OPERATORS,
                response=RolloutDetail,
                errors=(NotFound,),
            ),
            Route(
                "GET",
                f"{one}/watch",
                "The rollout as it goes, as server-sent events",
                self.watch,
                OPERATORS,
                response=RolloutDetail,
                errors=(NotFound,),
                content_type="text/event-stream",
                description="Each event's data is a RolloutDetail; the stream ends with the "
                "rollout. Comment lines keep a quiet connection open.",
            ),
        ]
        return shown + [self._verb(verb, summary) for verb, summary in VERBS.items()]

    def _verb(self, verb: str, summary: str) -> Route:
        async def command(call: Call[RolloutCommand]) -> None:
            await self.command(call, verb)

        return Route(
            "POST",
            f"/v1/rollouts/{{id}}/{verb}",
            summary,
            command,
            OPERATORS,
            RolloutCommand,
            errors=(NotFound, Conflict),
            status=204,
        )

    async def ls(self, call: Call[None]) -> Page[RolloutSummary]:
        """GET /v1/rollouts."""
        query: RolloutsQuery = call.query
        found = await self._rollouts.rollouts(query.fleet, limit=query.limit + 1, after=query.after)
        items = found[: query.limit]
        return Page(items, items[-1].id if len(found) > query.limit else None)

    async def show(self, call: Call[None]) -> RolloutDetail:
        """GET /v1/rollouts/{id}."""
        return await self._rollouts.detail(call.path["id"])

    async def watch(self, call: Call[None]) -> Events:
        """GET /v1/rollouts/{id}/watch."""
        identifier = call.path["id"]
        first = await self._rollouts.detail(identifier)
        return Events(self._details(identifier, first))

    async def _details(
        self, identifier: str, detail: RolloutDetail
    ) -> AsyncIterator[RolloutDetail]:
        version = -1
        shown: Any = None
        while True:
            if detail != shown:
                yield detail
                shown = detail
            if detail.summary.state in ENDED:
                return
            version = await self._rollouts.changed(identifier, version)
            await self._clock.sleep(WATCH_PACE)
            detail = await self._rollouts.detail(identifier)

    async def command(self, call: Call[RolloutCommand], verb: str) -> None:
        """POST /v1/rollouts/{id}/{verb}."""
        identifier, reason, actor = call.path["id"], call.body.reason, str(call.peer)
        if verb == "approve" and any(h.id == identifier for h in self._rollouts.held()):
            await self._source.approve(identifier, actor=actor, reason=reason)
        else:
            await self._rollouts.command(identifier, verb, actor=actor, reason=reason)
        await self._journal.note(actor, f"rollout.{verb}", identifier, reason)
