"""The audit log as it is written and read: one writer, each line after the last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec

from edgewise.net.api.ports import AuditStore
from edgewise.net.routes import PEOPLE, Call, Peer, Route
from edgewise.protocol.api import AuditLine, Page
from edgewise.protocol.audit import Said, next_line
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Level, Log

REPEAT_AFTER: Final = timedelta(hours=1)
"""The same refusal or suspicion of the same peer is one line in this time."""
REMEMBERED: Final = 10_000
UNWANTED: Final = 200
"""Lines an hour about calls of one peer that were refused or failed, and about all logins that
failed: whoever makes calls up must not fill the disk."""


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


@dataclass(slots=True)
class _Supply:
    """Lines about unwanted calls, within an hour."""

    since: float
    used: int = 0
    left_out: int = 0


class Journal:
    """Open with ``Journal.open``."""

    def __init__(self, store: AuditStore, clock: Clock, last: AuditLine | None) -> None:
        self._store = store
        self._clock = clock
        self._lock = asyncio.Lock()
        self._said: dict[tuple[str, str], float] = {}
        self._supplies: dict[str, _Supply] = {}
        self.last = last
        """The newest line: its sequence is the count, its hash the head of the chain."""

    @classmethod
    async def open(cls, store: AuditStore, clock: Clock) -> Journal:
        """Go on after the newest line."""
        return cls(store, clock, await store.last_audit())

    async def note(self, actor: Peer | Said, action: str, subject: str, detail: str = "") -> None:
        """Write one line; returns when it is on disk."""
        said = (str(actor), actor.address) if isinstance(actor, Peer) else actor
        async with self._lock:
            line = next_line(self.last, self._clock.now(), said, action, subject, detail)
            await self._store.append_audit(line)
            self.last = line

    async def note_once(self, actor: Peer | Said, action: str, subject: str, detail: str) -> None:
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
        """For ``Server.on_refused``: calls of strangers are not audited."""
        if peer.id is not None:
            await self._bounded(str(peer), peer, ("refused", call, why))

    async def failed(self, peer: Peer, call: str, why: str) -> None:
        """For ``Server.on_failed``."""
        await self._bounded(str(peer), peer, ("failed", call, why))

    async def note_stranger(self, peer: Peer, action: str, subject: str, detail: str) -> None:
        """What somebody tried who has proved nothing: all strangers share one supply of lines."""
        await self._bounded("strangers", peer, (action, subject, detail))

    async def _bounded(self, whose: str, peer: Peer, line: tuple[str, str, str]) -> None:
        """``note_once``, at most ``UNWANTED`` an hour; the next hour's first line says how many
        were left out."""
        now = self._clock.monotonic()
        supply = self._supplies.get(whose)
        if supply is None or now - supply.since >= REPEAT_AFTER.total_seconds():
            left_out = supply.left_out if supply else 0
            if len(self._supplies) >= REMEMBERED:
                self._supplies.clear()
            supply = self._supplies[whose] = _Supply(now)
            if left_out:
                await self.note("hub", "audit.left-out", whose, f"{left_out} lines")
        if supply.used >= UNWANTED:
            supply.left_out += 1
            return
        supply.used += 1
        action, subject, detail = line
        await self.note_once(peer, action, subject, detail)

    def routes(self) -> list[Route]:
        """GET /v1/audit."""
        return [
            Route(
                "GET",
                "/v1/audit",
                "The audit log, oldest line first",
                self._list,
                PEOPLE,
                response=Page[AuditLine],
                query=AuditQuery,
                needs="viewer",
                description="Verify it with `edgewise audit verify`: each line carries the "
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
