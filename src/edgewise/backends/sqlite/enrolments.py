"""Who has joined, with which token, and what was issued to them, in SQLite."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import msgspec

from edgewise.backends.sqlite.database import Database
from edgewise.identity.ports import Attestations, Enrolled, Enrolments, Lineages, TokenRecord
from edgewise.identity.reattestation import Attestation
from edgewise.identity.rotation import Lineage
from edgewise.identity.tokens import key_digest
from edgewise.model.errors import NeedsPerson, NotFound
from edgewise.protocol.codec import encode

T = TypeVar("T")


class SqliteEnrolments:
    """On the hub's database; a relay uses one of its own for the lineages alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Enrolled | None:
        return await self._database.run(lambda db: _one(db, "enrolments", name, Enrolled))

    async def all(self) -> tuple[Enrolled, ...]:
        def work(db: sqlite3.Connection) -> tuple[Enrolled, ...]:
            rows = db.execute("SELECT body FROM enrolments ORDER BY name")
            return tuple(_read(row["body"], Enrolled) for row in rows)

        return await self._database.run(work)

    async def forget(self, name: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM enrolments WHERE name = ?", (name,))
            db.execute("DELETE FROM lineages WHERE name = ?", (name,))
            db.execute("DELETE FROM attestations WHERE name = ?", (name,))

        await self._database.run(work)

    async def quarantine(self, name: str, reason: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            enrolled = _one(db, "enrolments", name, Enrolled)
            if enrolled is not None:
                _put(db, replace(enrolled, quarantined=reason))

        await self._database.run(work)

    async def add_token(self, token: TokenRecord) -> None:
        def work(db: sqlite3.Connection) -> None:
            body = encode(replace(token, bound={})).decode()
            db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
                "expires = excluded.expires, body = excluded.body",
                (token.identifier, token.expires.timestamp(), body),
            )
            for key, name in token.bound.items():
                _bind(db, token.identifier, key, name)

        await self._database.run(work)

    async def token(self, identifier: str) -> TokenRecord | None:
        def work(db: sqlite3.Connection) -> TokenRecord | None:
            row = db.execute(
                "SELECT body FROM tokens WHERE identifier = ?", (identifier,)
            ).fetchone()
            return _token(db, row["body"]) if row else None

        return await self._database.run(work)

    async def tokens(self) -> tuple[TokenRecord, ...]:
        def work(db: sqlite3.Connection) -> tuple[TokenRecord, ...]:
            rows = db.execute("SELECT body FROM tokens ORDER BY identifier").fetchall()
            return tuple(_token(db, row["body"]) for row in rows)

        return await self._database.run(work)

    async def revoke_token(self, identifier: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM tokens WHERE identifier = ?", (identifier,))

        await self._database.run(work)

    async def forget_tokens(self, before: datetime) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM tokens WHERE expires < ?", (before.timestamp(),))

        await self._database.run(work)

    async def bind(self, identifier: str, enrolled: Enrolled) -> None:
        def work(db: sqlite3.Connection) -> None:
            if not db.execute(
                "SELECT 1 FROM tokens WHERE identifier = ?", (identifier,)
            ).fetchone():
                raise NotFound(f"token {identifier} was revoked just now")
            _bind(db, identifier, key_digest(enrolled.key), enrolled.name)
            _put(db, enrolled)

        await self._database.run(work)

    async def enrol(self, enrolled: Enrolled) -> None:
        await self._database.run(lambda db: _put(db, enrolled))

    async def proven_by(self, evidence: str) -> Enrolled | None:
        def work(db: sqlite3.Connection) -> Enrolled | None:
            row = db.execute("SELECT name FROM evidence WHERE evidence = ?", (evidence,)).fetchone()
            return _one(db, "enrolments", row["name"], Enrolled) if row else None

        return await self._database.run(work)

    async def attestations(self) -> dict[str, Attestation]:
        def work(db: sqlite3.Connection) -> dict[str, Attestation]:
            rows = db.execute("SELECT name, body FROM attestations ORDER BY name")
            return {row["name"]: _read(row["body"], Attestation) for row in rows}

        return await self._database.run(work)

    async def attestation(self, name: str) -> Attestation | None:
        return await self._database.run(lambda db: _one(db, "attestations", name, Attestation))

    async def keep_attestation(self, name: str, attestation: Attestation) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO attestations VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET body = excluded.body",
                (name, encode(attestation).decode()),
            )

        await self._database.run(work)

    async def lineage(self, name: str) -> Lineage:
        found = await self._database.run(lambda db: _one(db, "lineages", name, Lineage))
        return found or Lineage()

    async def keep_lineage(self, name: str, lineage: Lineage) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO lineages VALUES (?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                (name, encode(lineage).decode()),
            )

        await self._database.run(work)


def _one(db: sqlite3.Connection, table: str, name: str, kind: type[T]) -> T | None:
    row = db.execute(f"SELECT body FROM {table} WHERE name = ?", (name,)).fetchone()
    return _read(row["body"], kind) if row else None


def _token(db: sqlite3.Connection, body: str) -> TokenRecord:
    token = _read(body, TokenRecord)
    rows = db.execute(
        "SELECT key_sha256, name FROM token_keys WHERE identifier = ?", (token.identifier,)
    )
    return replace(token, bound={row["key_sha256"]: row["name"] for row in rows})


def _bind(db: sqlite3.Connection, identifier: str, key: str, name: str) -> None:
    db.execute("INSERT OR REPLACE INTO token_keys VALUES (?, ?, ?)", (identifier, key, name))


def _put(db: sqlite3.Connection, enrolled: Enrolled) -> None:
    db.execute(
        "INSERT INTO enrolments VALUES (?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
        (enrolled.name, encode(enrolled).decode()),
    )
    db.execute("DELETE FROM evidence WHERE name = ?", (enrolled.name,))
    if enrolled.evidence:
        db.execute("INSERT INTO evidence VALUES (?, ?)", (enrolled.evidence, enrolled.name))


def _read(body: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise NeedsPerson(
            f"the hub's database holds a damaged {kind.__name__}: {error}",
            hint="restore it from a backup",
        ) from error


def _meets_its_ports(store: SqliteEnrolments) -> tuple[Enrolments, Lineages, Attestations]:
    return store, store, store
