"""What the hub knows of deltas: memory and SQLite keep the same promises."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.deltas import SqliteDeltas
from edgewise.delivery.delta_ports import KeptDelta
from edgewise.protocol.delta import DeltaRef
from edgewise.testing.deltas import MemoryDeltas

AT = datetime(2026, 1, 1, tzinfo=UTC)
A, B = "a" * 64, "b" * 64
Store = MemoryDeltas | SqliteDeltas


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryDeltas()
        return
    database = Database.open(tmp_path / "hub.db")
    yield SqliteDeltas(database)
    database.close()


async def test_what_became_of_a_delta_replaces_what_was_known_of_it(store: Store) -> None:
    assert await store.all() == ()
    ref = DeltaRef("c" * 64, 10, 20, 30, B, A)
    pack = KeptDelta(B, "", "Failed", AT, tries=2, why="the disk is full")
    await store.save(KeptDelta(B, A, "Trying", AT, tries=1))
    await store.save(pack)
    await store.save(KeptDelta(B, A, "Made", AT, 500, 3, ref))
    assert await store.all() == (pack, KeptDelta(B, A, "Made", AT, 500, 3, ref))


async def test_a_dropped_delta_is_forgotten_and_dropping_it_again_is_nothing(store: Store) -> None:
    for base in ("", A):
        await store.save(KeptDelta(B, base, "NotWorth", AT))
    await store.drop([(B, A), (A, B)])
    await store.drop([])
    assert [kept.base for kept in await store.all()] == [""]


async def test_versions_keep_the_order_in_which_they_came(store: Store) -> None:
    await store.note([("till", "1.9"), ("till", "1.10")])
    await store.note([("till", "1.9"), ("stock", "7"), ("till", "1.8")])
    assert [one[1:] for one in await store.versions()] == [
        ("till", "1.9"), ("till", "1.10"), ("stock", "7"), ("till", "1.8"),
    ]  # fmt: skip
    sequences = [one[0] for one in await store.versions()]
    assert sequences == sorted(set(sequences))
