"""The certificate authority as operators see it: which roots are trusted, and their rotation."""

from __future__ import annotations

from typing import Protocol

from edgewise.model.errors import Conflict, NeedsPerson
from edgewise.net.api.journal import Journal
from edgewise.net.routes import PEOPLE, Call, Route
from edgewise.protocol.api import CaStatus, RotateRoot


class Rotator(Protocol):
    """Implementation: roles.root_rotation.Rotation."""

    async def status(self) -> CaStatus: ...
    async def step(self, request: RotateRoot) -> CaStatus:
        """Take a step, or say what it would do. Raises Conflict, NeedsPerson."""


class AuthorityRoutes:
    """GET /v1/ca and POST /v1/ca/rotate-root."""

    def __init__(self, rotator: Rotator, journal: Journal) -> None:
        self._rotator = rotator
        self._journal = journal

    def routes(self) -> list[Route]:
        """All routes of this group."""
        return [
            Route(
                "GET",
                "/v1/ca",
                "Root certificates and how far their rotation is",
                self.status,
                PEOPLE,
                response=CaStatus,
                needs="viewer",
            ),
            Route(
                "POST",
                "/v1/ca/rotate-root",
                "Take the next step of replacing the root",
                self.rotate,
                PEOPLE,
                RotateRoot,
                CaStatus,
                errors=(Conflict, NeedsPerson),
                needs="admin",
                tokens=False,
            ),
        ]

    async def status(self, call: Call[None]) -> CaStatus:
        """GET /v1/ca."""
        return await self._rotator.status()

    async def rotate(self, call: Call[RotateRoot]) -> CaStatus:
        """POST /v1/ca/rotate-root."""
        after = await self._rotator.step(call.body)
        if not call.body.dry_run:
            how = "forced" if call.body.force else after.stage
            await self._journal.note(
                call.peer, f"root.{call.body.step}", after.roots[0].sha256, how
            )
        return after
