"""A log that keeps its lines, for tests that read them."""

from __future__ import annotations

import asyncio

from edgewise.runtime.log import Level, Log


class ListLog:
    """``lines`` holds (what, fields) in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

        self._waiting: dict[str, asyncio.Event] = {}

    async def said(self, what: str) -> None:
        """Wait for a line of this kind."""
        if not any(line[0] == what for line in self.lines):
            await self._waiting.setdefault(what, asyncio.Event()).wait()

    def _add(self, what: str, fields: dict[str, object]) -> None:
        self.lines.append((what, fields))
        if what in self._waiting:
            self._waiting[what].set()

    def event(self, what: str, /, level: Level = "info", **fields: object) -> None:
        self._add(what, {"level": level, **fields})

    def decision(self, what: str, /, *, because: object, **fields: object) -> None:
        self._add(what, {"because": because, **fields})


def _meets_its_port(log: ListLog) -> Log:
    return log
