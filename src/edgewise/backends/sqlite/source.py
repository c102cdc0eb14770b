"""Commits that the hub has looked at, in SQLite."""

from __future__ import annotations

import re
import sqlite3
from typing import Final

from edgewise.backends.sqlite.database import Database
from edgewise.protocol.codec import decode, encode
from edgewise.sync.ports import CommitSeen, CompileMemory

KEPT: Final = 1000
"""Commits; the oldest go first, but never the last good one."""
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


class SqliteCommits:
    """``CompileMemory`` on the hub's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remember(self, seen: CommitSeen) -> None:
        good = int(seen.compiled and not seen.held)
        row = (seen.commit, good, encode(seen))

        def work(c: sqlite3.Connection) -> None:
            c.execute(
                "INSERT INTO commits (commit_id, good, body) VALUES (?, ?, ?) "
                "ON CONFLICT (commit_id) DO UPDATE SET good = excluded.good, body = excluded.body",
                row,
            )
            c.execute(
                "DELETE FROM commits WHERE sequence <= (SELECT max(sequence) FROM commits) - ? "
                "AND sequence IS NOT (SELECT max(sequence) FROM commits WHERE good = 1)",
                (KEPT,),
            )

        await self._database.run(work)

    async def recall(self, commit: str) -> CommitSeen | None:
        if not _PREFIX.fullmatch(commit):
            return None
        return await self._one(
            "SELECT body FROM commits WHERE commit_id >= ? AND commit_id < ? "
            "ORDER BY sequence DESC LIMIT 1",
            commit,
            f"{commit}g",
        )

    async def newest(self) -> CommitSeen | None:
        return await self._one("SELECT body FROM commits ORDER BY sequence DESC LIMIT 1")

    async def last_good(self) -> CommitSeen | None:
        return await self._one(
            "SELECT body FROM commits WHERE good = 1 ORDER BY sequence DESC LIMIT 1"
        )

    async def _one(self, query: str, *values: str) -> CommitSeen | None:
        row = await self._database.run(lambda c: c.execute(query, values).fetchone())
        if row is None:
            return None
        return decode(row["body"], CommitSeen, what="remembered commit", at_most=4 << 20)


def _meets_its_port(commits: SqliteCommits) -> CompileMemory:
    return commits
