"""The hub's own stores: memory and SQLite keep the same promises."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.hub import SqliteHub
from edgewise.model.errors import Conflict
from edgewise.net.api.ports import KeptRecord
from edgewise.protocol.audit import next_line, verify_chain
from edgewise.protocol.channel import Signed
from edgewise.testing.hub import MemoryHub

AT = datetime(2026, 1, 1, tzinfo=UTC)
Store = MemoryHub | SqliteHub


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryHub()
        return
    database = Database.open(tmp_path / "hub.db")
    yield SqliteHub(database)
    database.close()


async def test_a_record_replaces_the_one_before_and_a_mark_stays(store: Store) -> None:
    signed = Signed("node-record/1", b"p", "k", b"s")
    await store.save_records([KeptRecord("a", "eu", 1, 1, signed)])
    await store.save_records([KeptRecord("a", "eu", 2, 1, None)])
    assert await store.records() == (KeptRecord("a", "eu", 2, 1, None),)


async def test_trust_bundles_and_the_relays_keys_are_kept_until_replaced(store: Store) -> None:
    assert await store.bundles() is None
    for payload in (b"first", b"second"):
        await store.save_bundles(Signed("bundle/1", payload, "k", b"s"))
    assert await store.bundles() == Signed("bundle/1", b"second", "k", b"s")
    await store.save_relay_keys("r1", (b"a",))
    await store.save_relay_keys("r1", (b"a", b"b"))
    await store.save_relay_keys("r2", (b"c",))
    await store.save_relay_keys("r2", ())
    assert await store.relay_keys() == {"r1": (b"a", b"b")}


async def test_audit_lines_come_back_in_order_and_verify(store: Store) -> None:
    last = None
    for i in range(25):
        last = next_line(last, AT, "ada", "pause", f"r{i}", "détail")
        await store.append_audit(last)
    assert await store.last_audit() == last
    lines = await store.audit(0, 100)
    assert verify_chain(lines) is None
    assert [line.sequence for line in await store.audit(10, 5)] == [11, 12, 13, 14, 15]


async def test_an_audit_line_that_does_not_follow_is_refused(store: Store) -> None:
    first = next_line(None, AT, "ada", "pause", "r")
    await store.append_audit(first)
    with pytest.raises(Conflict):
        await store.append_audit(first)
