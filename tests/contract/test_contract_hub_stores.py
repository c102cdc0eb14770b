"""The hub's own stores: memory and SQLite keep the same promises."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.hub import SqliteHub
from edgewise.model.errors import Conflict
from edgewise.net.api.ports import KeptReceipt, KeptRecord, ReceiptQuery, Sighting
from edgewise.protocol.audit import next_line, verify_chain
from edgewise.protocol.channel import Signed
from edgewise.protocol.report import Observation, Receipt
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


def kept(node: str, sequence: int, release: str = "r") -> KeptReceipt:
    receipt = Receipt(node, sequence, "Succeeded", release, release, "x", AT)
    return KeptReceipt(receipt, Signed("receipt/1", b"p", "k", b"s"))


async def test_the_newest_contact_of_each_node_is_kept(store: Store) -> None:
    await store.save_sightings([Sighting("a", AT, "hub"), Sighting("b", AT, "hub")])
    newer = Sighting("a", AT, "frankfurt", Observation(running="r1"))
    await store.save_sightings([newer])
    await store.forget_sighting("b")
    await store.forget_sighting("b")
    assert await store.sightings() == (newer,)


async def test_a_repeated_receipt_changes_nothing(store: Store) -> None:
    await store.add_receipts([kept("a", 1), kept("a", 2)])
    await store.add_receipts([kept("a", 2, "other")])
    assert await store.receipts(ReceiptQuery("a")) == (kept("a", 2), kept("a", 1))


async def test_receipts_are_found_by_release_and_limited(store: Store) -> None:
    await store.add_receipts([kept(n, i, f"r{i}") for n in "ab" for i in range(1, 5)])
    found = await store.receipts(ReceiptQuery(releases=("r2", "r4")))
    assert [(k.receipt.node, k.receipt.sequence) for k in found] == [
        ("a", 4),
        ("a", 2),
        ("b", 4),
        ("b", 2),
    ]
    assert len(await store.receipts(ReceiptQuery(limit=3))) == 3


async def test_a_chatty_node_keeps_its_newest_thousand_receipts(store: Store) -> None:
    await store.add_receipts([kept("a", i) for i in range(1, 1201)])
    found = await store.receipts(ReceiptQuery("a", limit=5000))
    assert [k.receipt.sequence for k in found] == list(range(1200, 200, -1))


async def test_a_record_replaces_the_one_before_and_a_mark_stays(store: Store) -> None:
    signed = Signed("node-record/1", b"p", "k", b"s")
    await store.save_records([KeptRecord("a", "eu", 1, 1, signed)])
    await store.save_records([KeptRecord("a", "eu", 2, 1, None)])
    assert await store.records() == (KeptRecord("a", "eu", 2, 1, None),)


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
