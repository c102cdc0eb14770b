"""Rollouts, receipts and last contacts in SQLite. Bodies are canonical JSON."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgewise.backends.sqlite.database import Database
from edgewise.protocol.api import HeldChange
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import encode
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout.fleet import FleetState, Member, Proposal
from edgewise.rollout.ports import (
    LOG_LINES,
    RECEIPTS_PER_NODE,
    ROLLOUTS_KEPT,
    Change,
    Loaded,
    NodeSeen,
    NodeStates,
    Notice,
    Revert,
    RolloutStore,
    Saved,
    Undone,
)
from edgewise.rollout.states import Course, Head, Moved, RolloutPlan, Row

_fleet = msgspec.json.Decoder(FleetState)
_member = msgspec.json.Decoder(Member)
_proposal = msgspec.json.Decoder(Proposal)
_plan = msgspec.json.Decoder(RolloutPlan)
_head: msgspec.json.Decoder[Head] = msgspec.json.Decoder(Head)
_course = msgspec.json.Decoder(Course)
_row = msgspec.json.Decoder(Row)
_moved = msgspec.json.Decoder(Moved)
_channel = msgspec.json.Decoder(Channel)
_notice = msgspec.json.Decoder(Notice)
_revert = msgspec.json.Decoder(Revert)
_receipt = msgspec.json.Decoder(Receipt)
_held = msgspec.json.Decoder(HeldChange)
_observation = msgspec.json.Decoder(Observation)


class SqliteRollouts:
    """The store of ``rollout.on_hub`` in the hub's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Loaded:
        return await self._database.run(_load)

    async def commit(self, change: Change) -> None:
        await self._database.run(lambda db: _commit(db, change))

    async def announced(self, channel: Channel) -> None:
        await self._execute(
            "DELETE FROM rollout_announcements WHERE fleet = ? AND sequence <= ?",
            (channel.fleet, channel.sequence),
        )

    async def notified(self, notice: str) -> None:
        await self._execute("DELETE FROM rollout_notices WHERE id = ?", (notice,))

    async def rows(self, rollout: str) -> Mapping[int, Row]:
        query = "SELECT node, body FROM rollout_rows WHERE rollout = ?"
        return {r["node"]: _row.decode(r["body"]) for r in await self._all(query, (rollout,))}

    async def rollouts(
        self, fleet: str = "", *, limit: int = 100, after: str = ""
    ) -> tuple[Saved, ...]:
        query = (
            "SELECT * FROM rollouts WHERE head IS NOT NULL AND (? = '' OR fleet = ?) "
            "AND (? = '' OR number < (SELECT number FROM rollouts WHERE id = ?)) "
            "ORDER BY number DESC LIMIT ?"
        )
        found = await self._all(query, (fleet, fleet, after, after, limit))
        return tuple(_saved(r) for r in found)

    async def rollout(self, identifier: str) -> Saved | None:
        query = "SELECT * FROM rollouts WHERE id = ? AND head IS NOT NULL"
        found = await self._all(query, (identifier,))
        return _saved(found[0]) if found else None

    async def log(self, rollout: str) -> tuple[Moved, ...]:
        query = "SELECT body FROM rollout_log WHERE rollout = ? ORDER BY number DESC LIMIT ?"
        found = await self._all(query, (rollout, LOG_LINES))
        return tuple(_moved.decode(r["body"]) for r in reversed(found))

    async def receipts(self, node: str, *, limit: int = 50) -> tuple[Receipt, ...]:
        query = "SELECT body FROM rollout_receipts WHERE node = ? ORDER BY sequence DESC LIMIT ?"
        return tuple(_receipt.decode(r["body"]) for r in await self._all(query, (node, limit)))

    async def receipts_for(self, releases: Sequence[str]) -> tuple[Receipt, ...]:
        marks = ",".join("?" * len(releases))
        query = (
            f"SELECT body, node, max(sequence) FROM rollout_receipts WHERE release IN ({marks}) "
            "GROUP BY node ORDER BY node"
        )
        found = await self._all(query, tuple(releases))
        return tuple(_receipt.decode(r["body"]) for r in found)

    async def drop_proposals(self, fleet: str, keep: Sequence[str]) -> None:
        marks = ",".join("?" * len(keep))
        await self._execute(
            f"DELETE FROM rollout_proposals WHERE fleet = ? AND release NOT IN ({marks})",
            (fleet, *keep),
        )

    async def forget(self, node: str) -> None:
        await self._execute("DELETE FROM rollout_receipts WHERE node = ?", (node,))

    async def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        await self._database.run(lambda db: db.execute(statement, values))

    async def _all(self, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        return await self._database.run(lambda db: db.execute(query, values).fetchall())


def _load(db: sqlite3.Connection) -> Loaded:
    members: dict[str, dict[str, Member]] = {}
    for r in db.execute("SELECT * FROM rollout_members"):
        members.setdefault(r["fleet"], {})[r["node"]] = _member.decode(r["body"])
    running = db.execute("SELECT * FROM rollouts WHERE ended IS NULL AND head IS NOT NULL")
    held = db.execute("SELECT body FROM rollout_held_changes ORDER BY number")
    waiting = db.execute("SELECT * FROM rollout_announcements")
    notices = db.execute("SELECT body FROM rollout_notices ORDER BY number")
    reverts = db.execute("SELECT body FROM rollout_reverts ORDER BY number")
    return Loaded(
        fleets={
            r["name"]: _fleet.decode(r["body"]) for r in db.execute("SELECT * FROM rollout_fleets")
        },
        members=members,
        proposals=tuple(
            _proposal.decode(r["body"]) for r in db.execute("SELECT * FROM rollout_proposals")
        ),
        running=tuple(_saved(r) for r in running),
        held=tuple(_held.decode(r["body"]) for r in held),
        undone=Undone(
            {r["fleet"]: _channel.decode(r["body"]) for r in waiting},
            tuple(_notice.decode(r["body"]) for r in notices),
            tuple(_revert.decode(r["body"]) for r in reverts),
        ),
    )


def _saved(row: sqlite3.Row) -> Saved:
    ended = datetime.fromisoformat(row["ended"]) if row["ended"] else None
    head, course = _head.decode(row["head"]), _course.decode(row["course"])
    return Saved(_plan.decode(row["plan"]), head, course, ended)


def _commit(db: sqlite3.Connection, change: Change) -> None:
    for name, state in change.fleets.items():
        db.execute("INSERT OR REPLACE INTO rollout_fleets VALUES (?, ?)", (name, encode(state)))
    for fleet, members in change.members.items():
        rows = [(fleet, node, encode(m)) for node, m in members.items()]
        db.executemany("INSERT OR REPLACE INTO rollout_members VALUES (?, ?, ?)", rows)
    for p in change.proposals:
        db.execute(
            "INSERT OR REPLACE INTO rollout_proposals VALUES (?, ?, ?)",
            (p.fleet, p.release, encode(p)),
        )
    _commit_rollouts(db, change)
    for fleet, channel in change.announce.items():
        db.execute(
            "INSERT OR REPLACE INTO rollout_announcements VALUES (?, ?, ?)",
            (fleet, channel.sequence, encode(channel)),
        )
    notices = [(n.id, encode(n)) for n in change.notices]
    db.executemany("INSERT OR IGNORE INTO rollout_notices (id, body) VALUES (?, ?)", notices)
    reverts = [(r.rollout, encode(r)) for r in change.reverts]
    db.executemany("INSERT OR IGNORE INTO rollout_reverts (rollout, body) VALUES (?, ?)", reverts)
    db.executemany(
        "DELETE FROM rollout_reverts WHERE rollout = ?", [(one,) for one in change.reverted]
    )
    _commit_receipts(db, change.receipts)
    for held in change.held:
        db.execute(
            "INSERT OR REPLACE INTO rollout_held_changes (id, body) VALUES (?, ?)",
            (held.id, encode(held)),
        )
    db.executemany("DELETE FROM rollout_held_changes WHERE id = ?", [(i,) for i in change.unheld])


def _commit_rollouts(db: sqlite3.Connection, change: Change) -> None:
    upsert = (
        "INSERT INTO rollouts (id, fleet, plan) VALUES (?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET plan = excluded.plan"
    )
    for plan in change.plans:
        db.execute(upsert, (plan.id, plan.fleet, encode(plan)))
    for identifier, (head, course, ended) in change.heads.items():
        db.execute(
            "UPDATE rollouts SET head = ?, course = ?, ended = ? WHERE id = ?",
            (encode(head), encode(course), ended.isoformat() if ended else None, identifier),
        )
        if ended is not None:
            _prune_rollouts(db, identifier)
    for rollout, rows in change.rows.items():
        values = [(rollout, index, encode(row)) for index, row in rows.items()]
        db.executemany("INSERT OR REPLACE INTO rollout_rows VALUES (?, ?, ?)", values)
    for rollout, lines in change.log.items():
        db.executemany(
            "INSERT INTO rollout_log (rollout, body) VALUES (?, ?)",
            [(rollout, encode(line)) for line in lines],
        )


def _prune_rollouts(db: sqlite3.Connection, identifier: str) -> None:
    """Of the fleet's ended rollouts only the newest ROLLOUTS_KEPT stay."""
    old = db.execute(
        "SELECT id FROM rollouts WHERE ended IS NOT NULL AND fleet = "
        "(SELECT fleet FROM rollouts WHERE id = ?) ORDER BY number DESC LIMIT -1 OFFSET ?",
        (identifier, ROLLOUTS_KEPT),
    ).fetchall()
    for row in old:
        for statement in (
            "DELETE FROM rollout_rows WHERE rollout = ?",
            "DELETE FROM rollout_log WHERE rollout = ?",
            "DELETE FROM rollouts WHERE id = ?",
        ):
            db.execute(statement, (row["id"],))


def _commit_receipts(db: sqlite3.Connection, receipts: Sequence[Receipt]) -> None:
    db.executemany(
        "INSERT OR IGNORE INTO rollout_receipts VALUES (?, ?, ?, ?)",
        [(r.node, r.sequence, r.release, encode(r)) for r in receipts],
    )
    prune = (
        "DELETE FROM rollout_receipts WHERE node = ?1 AND sequence <= "
        "(SELECT sequence FROM rollout_receipts "
        "WHERE node = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)"
    )
    db.executemany(prune, [(node, RECEIPTS_PER_NODE) for node in {r.node for r in receipts}])


class SqliteNodeStates:
    """Last contacts, in a table of their own so that heartbeats touch nothing else."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, seen: Sequence[NodeSeen]) -> None:
        statement = (
            "INSERT INTO rollout_node_states VALUES (?, ?, ?, ?) ON CONFLICT (node) DO UPDATE SET "
            "heard = excluded.heard, via = excluded.via, "
            "observation = coalesce(excluded.observation, observation)"
        )
        rows = [
            (s.node, s.heard.timestamp(), s.via, encode(s.observation) if s.observation else None)
            for s in seen
        ]
        await self._database.run(lambda db: db.executemany(statement, rows))

    async def all(self) -> tuple[NodeSeen, ...]:
        query = "SELECT * FROM rollout_node_states ORDER BY node"
        found = await self._database.run(lambda db: db.execute(query).fetchall())
        return tuple(
            NodeSeen(
                r["node"],
                datetime.fromtimestamp(r["heard"], UTC),
                _observation.decode(r["observation"]) if r["observation"] else None,
                r["via"],
            )
            for r in found
        )

    async def forget(self, node: str) -> None:
        statement = "DELETE FROM rollout_node_states WHERE node = ?"
        await self._database.run(lambda db: db.execute(statement, (node,)))


def _meets_its_port(store: SqliteRollouts, states: SqliteNodeStates) -> None:
    _store: RolloutStore = store
    _states: NodeStates = states
