"""Node records, trust bundles and the audit log in the hub's SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TypeVar

from edgewise.backends.sqlite.database import Database
from edgewise.model.errors import Conflict
from edgewise.net.api.ports import AuditStore, BundleStore, KeptRecord, RecordStore
from edgewise.protocol.api import AuditLine
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode, encode

T = TypeVar("T")


class SqliteHub:
    """Three small stores on one Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save_records(self, batch: Sequence[KeptRecord]) -> None:
        rows = [(k.name, encode(k)) for k in batch]
        await self._database.run(
            lambda c: c.executemany("INSERT OR REPLACE INTO node_records VALUES (?, ?)", rows)
        )

    async def records(self) -> tuple[KeptRecord, ...]:
        rows = await self._database.run(
            lambda c: c.execute("SELECT body FROM node_records ORDER BY name").fetchall()
        )
        return _read(rows, KeptRecord)

    async def save_bundles(self, signed: Signed) -> None:
        body = encode(signed)
        await self._database.run(
            lambda c: c.execute("INSERT OR REPLACE INTO trust_bundles VALUES (1, ?)", (body,))
        )

    async def bundles(self) -> Signed | None:
        rows = await self._database.run(
            lambda c: c.execute("SELECT body FROM trust_bundles").fetchall()
        )
        return next(iter(_read(rows, Signed)), None)

    async def save_relay_keys(self, relay: str, keys: tuple[bytes, ...]) -> None:
        def work(c: sqlite3.Connection) -> None:
            c.execute("DELETE FROM relay_jwt_keys WHERE name = ?", (relay,))
            if keys:
                c.execute("INSERT INTO relay_jwt_keys VALUES (?, ?)", (relay, encode(keys)))

        await self._database.run(work)

    async def relay_keys(self) -> dict[str, tuple[bytes, ...]]:
        rows = await self._database.run(
            lambda c: c.execute("SELECT name, body FROM relay_jwt_keys").fetchall()
        )
        return {
            row["name"]: decode(row["body"], tuple[bytes, ...], what="a relay's JWT keys")
            for row in rows
        }

    async def append_audit(self, line: AuditLine) -> None:
        def work(c: sqlite3.Connection) -> None:
            [(last,)] = c.execute("SELECT coalesce(max(sequence), 0) FROM audit").fetchall()
            if line.sequence != last + 1:
                raise Conflict(f"audit line {line.sequence} does not follow line {last}")
            c.execute("INSERT INTO audit VALUES (?, ?)", (line.sequence, encode(line)))

        await self._database.run(work)

    async def last_audit(self) -> AuditLine | None:
        rows = await self._database.run(
            lambda c: c.execute("SELECT body FROM audit ORDER BY sequence DESC LIMIT 1").fetchall()
        )
        return next(iter(_read(rows, AuditLine)), None)

    async def audit(self, after: int, limit: int) -> tuple[AuditLine, ...]:
        rows = await self._database.run(
            lambda c: c.execute(
                "SELECT body FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after, limit),
            ).fetchall()
        )
        return _read(rows, AuditLine)


def _read(rows: Sequence[sqlite3.Row], kind: type[T]) -> tuple[T, ...]:
    return tuple(decode(row["body"], kind, what=f"a stored {kind.__name__}") for row in rows)


def _meets_its_ports(store: SqliteHub) -> tuple[RecordStore, AuditStore, BundleStore]:
    return store, store, store
