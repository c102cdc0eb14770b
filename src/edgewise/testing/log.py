"""A log that keeps its lines, for tests that read them."""

from __future__ import annotations

from edgewise.runtime.log import Level, Log


class ListLog:
    """``lines`` holds (what, fields) in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def event(self, what: str, /, level: Level = "info", **fields: object) -> None:
        self.lines.append((what, {"level": level, **fields}))

    def decision(self, what: str, /, *, because: object, **fields: object) -> None:
        self.lines.append((what, {"because": because, **fields}))


def _meets_its_port(log: ListLog) -> Log:
    return log
