"""Contacts, receipts, node records and the audit log in the hub's SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, TypeVar

from edgewise.backends.sqlite.database import Database
from edgewise.model.errors import Conflict
from edgewise.net.api.ports import (
    AuditStore,
    KeptReceipt,
    KeptRecord,
    ReceiptQuery,
    Receipts,
    RecordStore,
    Sighting,
    Sightings,
)
from edgewise.protocol.api import AuditLine
from edgewise.protocol.codec import decode, encode

RECEIPTS_OF_A_NODE: Final = 1000
T = TypeVar("T")


class SqliteHub:
    """Four small stores on one Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save_sightings(self, batch: Sequence[Sighting]) -> None:
        rows = [(s.name, encode(s)) for s in batch]
        await self._database.run(
            lambda c: c.executemany("INSERT OR REPLACE INTO sightings VALUES (?, ?)", rows)
        )

    async def sightings(self) -> tuple[Sighting, ...]:
        rows = await self._database.run(
            lambda c: c.execute("SELECT body FROM sightings ORDER BY name").fetchall()
        )
        return _read(rows, Sighting)

    async def forget_sighting(self, name: str) -> None:
        await self._database.run(
            lambda c: c.execute("DELETE FROM sightings WHERE name = ?", (name,))
        )

    async def add_receipts(self, batch: Sequence[KeptReceipt]) -> None:
        rows = [(k.receipt.node, k.receipt.sequence, k.receipt.release, encode(k)) for k in batch]
        ends = {(k.receipt.node, k.receipt.sequence - RECEIPTS_OF_A_NODE) for k in batch}

        def work(c: sqlite3.Connection) -> None:
            c.executemany("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)", rows)
            c.executemany("DELETE FROM receipts WHERE node = ? AND sequence <= ?", sorted(ends))

        await self._database.run(work)

    async def receipts(self, query: ReceiptQuery) -> tuple[KeptReceipt, ...]:
        where, values = ["1"], list[object]()
        if query.node:
            where.append("node = ?")
            values.append(query.node)
        if query.releases:
            where.append(f"release IN ({', '.join('?' * len(query.releases))})")
            values += query.releases
        sql = (
            f"SELECT body FROM receipts WHERE {' AND '.join(where)} "
            "ORDER BY node, sequence DESC LIMIT ?"
        )
        rows = await self._database.run(lambda c: c.execute(sql, (*values, query.limit)).fetchall())
        return _read(rows, KeptReceipt)

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


def _meets_its_ports(
    store: SqliteHub,
) -> tuple[Sightings, Receipts, RecordStore, AuditStore]:
    return store, store, store, store
