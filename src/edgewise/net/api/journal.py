"""The audit log as it is written and read: one writer, each line after the last."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec

from edgewise.net.api.ports import AuditStore
from edgewise.net.routes import OPERATORS, Call, Peer, Route
from edgewise.protocol.api import AuditLine, Page
from edgewise.protocol.audit import next_line
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Level, Log

REPEAT_AFTER: Final = timedelta(hours=1)
"""The same refusal or suspicion of the same peer is one line in this time."""
REMEMBERED: Final = 10_000


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lines after a sequence, oldest first."""

    limit: int = 100
    """1 to 1000 lines."""
    after: int = 0
    """Sequence of the last line of the page before."""

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= 1000:
            raise ValueError(f"limit {self.limit} is not between 1 and 1000")
        if not 0 <= self.after < 1 << 62:
            raise ValueError("after is a sequence, not negative")


class Journal:
    """Open with ``Journal.open``."""

    def __init__(self, store: AuditStore, clock: Clock, last: AuditLine | None) -> None:
        self._store = store
        self._clock = clock
        self._lock = asyncio.Lock()
        self._said: dict[tuple[str, str], float] = {}
        self.last = last
        """The newest line: its sequence is the count, its hash the head of the chain."""

    @classmethod
    async def open(cls, store: AuditStore, clock: Clock) -> Journal:
        """Go on after the newest line."""
        return cls(store, clock, await store.last_audit())

    async def note(self, actor: Peer | str, action: str, subject: str, detail: str = "") -> None:
        """Write one line; returns when it is on disk."""
        async with self._lock:
            line = next_line(self.last, self._clock.now(), str(actor), action, subject, detail)
            await self._store.append_audit(line)
            self.last = line

    async def note_once(self, actor: Peer | str, action: str, subject: str, detail: str) -> None:
        """``note``, unless the same was said within the last hour: a peer that is refused
        every minute must not fill the disk."""
        key = (str(actor), f"{action} {subject}")
        now = self._clock.monotonic()
        if now - self._said.get(key, -1e9) < REPEAT_AFTER.total_seconds():
            return
        if len(self._said) >= REMEMBERED:
            self._said.clear()
        self._said[key] = now
        await self.note(actor, action, subject, detail)

    async def refused(self, peer: Peer, call: str, why: str) -> None:
        """For ``Server.on_refused``: strangers are not audited, they could fill the disk."""
        if peer.id is not None:
            await self.note_once(peer, "refused", call, why)

    def routes(self) -> list[Route]:
        """GET /v1/audit."""
        return [
            Route(
                "GET",
                "/v1/audit",
                "The audit log, oldest line first",
                self._list,
                OPERATORS,
                response=Page[AuditLine],
                query=AuditQuery,
                description="Verify it with `edgewise audit --verify`: each line carries the "
                "hash of the one before.",
            )
        ]

    async def _list(self, call: Call[None]) -> Page[AuditLine]:
        query: Any = call.query
        lines = await self._store.audit(query.after, query.limit)
        more = len(lines) == query.limit and self.last and lines[-1].sequence < self.last.sequence
        return Page(lines, str(lines[-1].sequence) if more else None)


class JournaledLog:
    """A log whose decisions are audit lines as well; for the rollout engine.

    ``run`` writes them in order, soon. A hub that dies may lose the last moment's lines
    here; the engine's own log of each rollout loses none.
    """

    def __init__(self, log: Log, journal: Journal) -> None:
        self._log = log
        self._journal = journal
        self._waiting: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue(REMEMBERED)

    def event(self, what: str, /, level: Level = "info", **fields: object) -> None:
        """Only logged."""
        self._log.event(what, level, **fields)

    def decision(self, what: str, /, *, because: object, **fields: object) -> None:
        """Logged, and kept for the audit log."""
        self._log.decision(what, because=because, **fields)
        subject = str(fields.get("id") or fields.get("name") or "")
        more = " ".join(f"{k}={v}" for k, v in fields.items() if k not in ("id", "name"))
        if self._waiting.full():
            self._log.event("audit line dropped", "error", what=what, subject=subject)
            return
        self._waiting.put_nowait((f"decision.{what}", subject, f"{more} because {because}".strip()))

    async def run(self) -> None:
        """Write decisions to the audit log, for ever."""
        while True:
            action, subject, detail = await self._waiting.get()
            await self._journal.note("hub", action, subject, detail)


def _meets_its_port(log: JournaledLog) -> Log:
    return log
