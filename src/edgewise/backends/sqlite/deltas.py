"""What the hub knows of deltas, in its SQLite file."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.backends.sqlite.database import Database
from edgewise.delivery.delta_ports import DeltaStore, KeptDelta
from edgewise.protocol.codec import decode, encode


class SqliteDeltas:
    """One table of deltas, one of versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, delta: KeptDelta) -> None:
        row = (delta.tree, delta.base, encode(delta))
        await self._database.run(
            lambda c: c.execute("INSERT OR REPLACE INTO deltas VALUES (?, ?, ?)", row)
        )

    async def drop(self, pairs: Sequence[tuple[str, str]]) -> None:
        rows = [tuple(pair) for pair in pairs]
        await self._database.run(
            lambda c: c.executemany("DELETE FROM deltas WHERE tree = ? AND base = ?", rows)
        )

    async def all(self) -> tuple[KeptDelta, ...]:
        rows = await self._database.run(
            lambda c: c.execute("SELECT body FROM deltas ORDER BY tree, base").fetchall()
        )
        return tuple(decode(row["body"], KeptDelta, what="a stored delta") for row in rows)

    async def note(self, versions: Sequence[tuple[str, str]]) -> None:
        rows = [tuple(one) for one in versions]
        await self._database.run(
            lambda c: c.executemany(
                "INSERT INTO artifact_versions (name, version) SELECT ?1, ?2 WHERE NOT EXISTS"
                " (SELECT 1 FROM artifact_versions WHERE name = ?1 AND version = ?2)",
                rows,
            )
        )

    async def versions(self) -> tuple[tuple[int, str, str], ...]:
        rows = await self._database.run(
            lambda c: c.execute(
                "SELECT sequence, name, version FROM artifact_versions ORDER BY sequence"
            ).fetchall()
        )
        return tuple((row["sequence"], row["name"], row["version"]) for row in rows)


def _meets_its_port(store: SqliteDeltas) -> DeltaStore:
    return store
