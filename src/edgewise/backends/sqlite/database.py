"""One SQLite file, one writer thread, numbered migrations.

Every call runs on the writer thread, so a transaction is just a function that gets the
connection: no interleaving, no busy errors. WAL with ``synchronous=FULL``: a commit that
returned survives a power cut. A lock file keeps a second process off the directory.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TypeVar

from edgewise.model.errors import NeedsPerson

T = TypeVar("T")


class Database:
    """Open with ``Database.open``; close when done."""

    def __init__(self, connection: sqlite3.Connection, writer: ThreadPoolExecutor, lock: int):
        self._connection = connection
        self._writer = writer
        self._lock = lock

    @classmethod
    def open(cls, path: Path, *, migrations: str = "migrations") -> Database:
        """Open or create, migrate, and lock against other processes.

        ``migrations`` is a folder of numbered .sql files beside this module.

        Raises NeedsPerson when another process has it, or a newer Edgewise wrote it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise NeedsPerson(
                f"{path.parent} is in use by another Edgewise process",
                hint="stop it first, or give this one a directory of its own with --data",
            ) from error
        writer = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            connection = writer.submit(_connect, path, migrations).result()
        except BaseException:
            writer.shutdown()
            os.close(lock)
            raise
        return cls(connection, writer, lock)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in one transaction: all of it is kept, or nothing when it raises."""
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, _in_transaction, self._connection, work
        )

    def run_blocking(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``run`` for callers without an event loop (start-up, tests)."""
        return self._writer.submit(_in_transaction, self._connection, work).result()

    def close(self) -> None:
        """Finish what is queued and release the lock."""
        self._writer.submit(self._connection.close).result()
        self._writer.shutdown()
        os.close(self._lock)


def _connect(path: Path, migrations: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    _migrate(connection, path, migrations)
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, migrations: str) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")
    done = {row["name"] for row in connection.execute("SELECT name FROM migrations")}
    folder = resources.files("edgewise.backends.sqlite") / migrations
    known = {item.name: item for item in folder.iterdir() if item.name.endswith(".sql")}
    if newer := sorted(done - set(known)):
        raise NeedsPerson(
            f"{path} was written by a newer Edgewise (migration {newer[-1]})",
            hint="install that version, or restore the backup made before the upgrade",
        )
    for name in sorted(set(known) - done):
        script = known[name].read_text()
        statements = f"BEGIN;{script};INSERT INTO migrations VALUES ('{name}');COMMIT;"
        try:
            connection.executescript(statements)
        except sqlite3.Error:
            connection.rollback()
            raise


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
    except BaseException:
        connection.rollback()
        raise
    connection.execute("COMMIT")
    return result
