"""Deltas: what the hub has made and makes, and what travels with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgewise.model.errors import BadUsage
from edgewise.net.api.supply import digest_of
from edgewise.net.routes import PEOPLE, Call, Route
from edgewise.protocol.travel import (
    AT_ONCE,
    TREES,
    DeltaStatus,
    TreeBytes,
    TreeChange,
    Weighed,
    WeighRequest,
)


class Deltas(Protocol):
    """The hub's deltas. Implementation: roles.hub_deltas."""

    async def status(self) -> DeltaStatus: ...
    async def weigh(self, changes: Sequence[TreeChange]) -> tuple[TreeBytes, ...]: ...


class DeltaRoutes:
    """GET /v1/deltas, POST /v1/trees/weigh."""

    def __init__(self, deltas: Deltas) -> None:
        self._deltas = deltas

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [
            Route(
                "GET",
                "/v1/deltas",
                "Deltas and packs: ready, under way, waiting, not worth it, failed",
                self.status,
                PEOPLE,
                response=DeltaStatus,
                needs="viewer",
            ),
            Route(
                "POST",
                "/v1/trees/weigh",
                "Bytes that travel to nodes that go from some trees to others",
                self.weigh,
                PEOPLE,
                WeighRequest,
                Weighed,
                at_most=8 << 20,
                needs="viewer",
                changes=False,
            ),
        ]

    async def status(self, call: Call[None]) -> DeltaStatus:
        """GET /v1/deltas."""
        return await self._deltas.status()

    async def weigh(self, call: Call[WeighRequest]) -> Weighed:
        """POST /v1/trees/weigh."""
        changes = call.body.changes
        if len(changes) > AT_ONCE:
            raise BadUsage(f"{len(changes)} changes; at most {AT_ONCE} at once")
        for change in changes:
            if len(change.had) > TREES or len(change.new) > TREES:
                raise BadUsage(f"a change has at most {TREES} trees on either side")
            for text in (*change.had, *change.new):
                digest_of(text)
        return Weighed(await self._deltas.weigh(changes))
