"""Rollouts: list, show, watch, and a person's commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

from edgewise.model.errors import Conflict, NotFound
from edgewise.model.roles import Role
from edgewise.net.api.journal import Journal
from edgewise.net.api.ports import Source
from edgewise.net.api.sight import Sight
from edgewise.net.routes import PEOPLE, Call, Events, Paging, Peer, Route, missing
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
NEEDS: Final[dict[str, Role]] = {
    **dict.fromkeys(("pause", "resume", "abort", "retry"), "operator"),
    "approve": "approver",
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

    def __init__(
        self, rollouts: Rollouts, source: Source, sight: Sight, journal: Journal, clock: Clock
    ) -> None:
        self._rollouts = rollouts
        self._sight = sight
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
                PEOPLE,
                response=Page[RolloutSummary],
                query=RolloutsQuery,
                needs="viewer",
                reach="nodes",
            ),
            Route(
                "GET",
                one,
                "One rollout with its stages",
                self.show,
                PEOPLE,
                response=RolloutDetail,
                errors=(NotFound,),
                needs="viewer",
                reach="nodes",
            ),
            Route(
                "GET",
                f"{one}/watch",
                "The rollout as it goes, as server-sent events",
                self.watch,
                PEOPLE,
                response=RolloutDetail,
                errors=(NotFound,),
                content_type="text/event-stream",
                needs="viewer",
                reach="nodes",
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
            PEOPLE,
            RolloutCommand,
            errors=(NotFound, Conflict),
            status=204,
            needs=NEEDS[verb],
            reach="nodes",
        )

    async def ls(self, call: Call[None]) -> Page[RolloutSummary]:
        """GET /v1/rollouts."""
        query: RolloutsQuery = call.query
        items: list[RolloutSummary] = []
        after = query.after
        while len(items) <= query.limit:
            found = await self._rollouts.rollouts(query.fleet, limit=query.limit + 1, after=after)
            for one in found:
                if self._sight.part(call.peer, one.fleet):
                    limits = self._sight.limits(call.peer, one.fleet)
                    items.append(
                        one
                        if limits is None
                        else (await self._rollouts.detail(one.id, limits)).summary
                    )
            if len(found) <= query.limit:
                break
            after = found[-1].id
        more = len(items) > query.limit
        items = items[: query.limit]
        return Page(tuple(items), items[-1].id if more else None)

    async def show(self, call: Call[None]) -> RolloutDetail:
        """GET /v1/rollouts/{id}."""
        return await self._detail(call.path["id"], call.peer)

    async def watch(self, call: Call[None]) -> Events:
        """GET /v1/rollouts/{id}/watch."""
        identifier = call.path["id"]
        first = await self._detail(identifier, call.peer)
        return Events(self._details(identifier, first, call.peer))

    async def _detail(self, identifier: str, peer: Peer) -> RolloutDetail:
        fleet = await self._rollouts.fleet_of(identifier)
        if not self._sight.part(peer, fleet):
            raise NotFound(f"there is no rollout {identifier!r}", hint="`edgewise rollout ls`")
        return await self._rollouts.detail(identifier, self._sight.limits(peer, fleet))

    async def _details(
        self, identifier: str, detail: RolloutDetail, peer: Peer
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
            detail = await self._detail(identifier, peer)

    async def command(self, call: Call[RolloutCommand], verb: str) -> None:
        """POST /v1/rollouts/{id}/{verb}."""
        identifier, reason, actor = call.path["id"], call.body.reason, str(call.peer)
        if verb == "approve" and any(h.id == identifier for h in self._rollouts.held()):
            if not call.rights.everywhere("approver"):
                raise missing("approver", call.peer, "a held commit concerns every fleet")
            await self._source.approve(identifier, actor=actor, reason=reason)
        else:
            fleet = (await self._detail(identifier, call.peer)).summary.fleet
            self._sight.must_move(call.peer, fleet, NEEDS[verb])
            await self._rollouts.command(identifier, verb, actor=actor, reason=reason)
        await self._journal.note(call.peer, f"rollout.{verb}", identifier, reason)
