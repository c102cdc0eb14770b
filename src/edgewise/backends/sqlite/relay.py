"""A relay's memory in its own SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from edgewise.backends.sqlite.database import Database
from edgewise.identity.ports import Lineages
from edgewise.identity.rotation import Lineage
from edgewise.model.errors import NeedsPerson
from edgewise.protocol import limits
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.report import Observation
from edgewise.protocol.sync import NodeReport
from edgewise.rollout.fanin import KeptReceipt, Settled
from edgewise.rollout.fanout import Known, Learnt, read_channel, restored
from edgewise.rollout.relay_ports import RelayMemory

_FULL = sqlite3.SQLITE_FULL


class SqliteRelayMemory:
    """Everything a relay must not forget; ``open_relay_database`` makes the file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        try:
            await self._database.run(work)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != _FULL:
                raise
            raise NeedsPerson(
                "the relay's disk is full: reports stay at the nodes",
                hint="free space below the relay's state directory, or lower --cache",
            ) from error

    async def keep(self, heard: Sequence[NodeReport], receipts: Sequence[KeptReceipt]) -> None:
        observed = [
            (report.node, report.heard.isoformat(), encode(report.observation))
            for report in heard
            if report.observation is not None
        ]
        rows = [(*receipt.name, encode(receipt.signed)) for receipt in receipts]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO observations (node, heard, body) VALUES (?, ?, ?)"
                " ON CONFLICT (node) DO UPDATE SET heard = excluded.heard, body = excluded.body"
                " WHERE excluded.heard >= observations.heard",
                observed,
            )
            connection.executemany(
                "INSERT INTO receipts (node, key_id, sequence, body) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (node, key_id, sequence) DO NOTHING",
                rows,
            )

        await self._write(write)

    async def waiting(self) -> tuple[tuple[NodeReport, ...], tuple[KeptReceipt, ...]]:
        def read(
            connection: sqlite3.Connection,
        ) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
            return (
                connection.execute("SELECT * FROM observations ORDER BY heard").fetchall(),
                connection.execute("SELECT * FROM receipts ORDER BY arrived").fetchall(),
            )

        observations, receipts = await self._database.run(read)
        return (
            tuple(
                NodeReport(
                    row["node"],
                    datetime.fromisoformat(row["heard"]),
                    decode(row["body"], Observation, what="kept observation"),
                )
                for row in observations
            ),
            tuple(
                KeptReceipt(row["node"], row["key_id"], row["sequence"], _signed(row["body"]))
                for row in receipts
            ),
        )

    async def drop(self, settled: Settled) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "DELETE FROM receipts WHERE node = ? AND key_id = ? AND sequence = ?",
                settled.receipts,
            )
            connection.executemany(
                "DELETE FROM observations WHERE node = ? AND heard <= ?",
                [(node, heard.isoformat()) for node, heard in settled.observations],
            )

        await self._write(write)

    async def learn(self, change: Learnt) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO channels (fleet, body) VALUES (?, ?)",
                [(channel.fleet, encode(channel)) for channel in change.channels],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO records (node, body) VALUES (?, ?)",
                [(node, encode(signed)) for node, signed in change.records.items()],
            )
            connection.execute("DELETE FROM gone")
            connection.executemany(
                "INSERT INTO gone (node) VALUES (?)", [(node,) for node in sorted(change.gone)]
            )
            connection.execute(
                "INSERT OR REPLACE INTO cursor (id, value) VALUES (1, ?)", (change.cursor,)
            )
            if change.bundles is not None:
                body = encode(change.bundles)
                connection.execute("INSERT OR REPLACE INTO trust_bundles VALUES (1, ?)", (body,))

        await self._write(write)

    async def known(self) -> Known:
        def read(connection: sqlite3.Connection) -> Known:
            channels = [
                read_channel(row["body"]) for row in connection.execute("SELECT body FROM channels")
            ]
            records = {
                row["node"]: _signed(row["body"])
                for row in connection.execute("SELECT * FROM records")
            }
            gone = [row["node"] for row in connection.execute("SELECT node FROM gone")]
            cursor = connection.execute("SELECT value FROM cursor").fetchone()
            bundles = connection.execute("SELECT body FROM trust_bundles").fetchone()
            return restored(
                channels,
                records,
                gone,
                cursor["value"] if cursor else 0,
                _signed(bundles["body"]) if bundles else None,
            )

        return await self._database.run(read)

    async def lineage(self, name: str) -> Lineage:
        """See ``identity.ports.Lineages``."""

        def read(connection: sqlite3.Connection) -> Lineage:
            row = connection.execute("SELECT body FROM lineages WHERE node = ?", (name,)).fetchone()
            return decode(row["body"], Lineage, what="kept lineage") if row else Lineage()

        return await self._database.run(read)

    async def keep_lineage(self, name: str, lineage: Lineage) -> None:
        """See ``identity.ports.Lineages``."""
        body = encode(lineage)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO lineages (node, body) VALUES (?, ?)", (name, body)
            )

        await self._write(write)


def open_relay_database(path: Path) -> Database:
    """The relay's file. Raises NeedsPerson when another process has it."""
    return Database.open(path, migrations="relay_migrations")


def _signed(body: bytes) -> Signed:
    return decode(body, Signed, what="kept document", at_most=2 * limits.BUNDLES)


def _meets_its_port(memory: SqliteRelayMemory) -> tuple[RelayMemory, Lineages]:
    return memory, memory
