"""A relay's memory: the fake and SQLite keep the same promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.backends.sqlite.relay import SqliteRelayMemory, open_relay_database
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import NodeReport, RelayNews
from edgewise.rollout.fanin import Settled, read_receipts
from edgewise.rollout.fanout import Known, learn
from edgewise.rollout.relay_ports import RelayMemory
from edgewise.testing.relay import MemoryOfRelay
from edgewise.testing.relay_words import A, B, after, channel, news, receipt, record, runs


@pytest.fixture(params=["memory", "sqlite"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayMemory]:
    if request.param == "memory":
        yield MemoryOfRelay()
        return
    database = open_relay_database(tmp_path / "relay.db")
    yield SqliteRelayMemory(database)
    database.close()


async def test_an_empty_memory_knows_nothing(memory: RelayMemory) -> None:
    assert await memory.known() == Known()
    assert await memory.waiting() == ((), ())


async def test_receipts_come_back_in_the_order_in_which_they_came(memory: RelayMemory) -> None:
    first = read_receipts("n2", [receipt("n2", 1), receipt("n2", 2)])
    second = read_receipts("n1", [receipt("n1", 7)])
    await memory.keep([], first)
    await memory.keep([], second + first)
    assert (await memory.waiting())[1] == first + second


async def test_of_a_nodes_observations_the_newest_stays(memory: RelayMemory) -> None:
    await memory.keep([NodeReport("n1", after(1), runs(B)), NodeReport("n2", after(1))], [])
    await memory.keep([NodeReport("n1", after(0), runs(A))], [])
    assert (await memory.waiting())[0] == (NodeReport("n1", after(1), runs(B)),)


async def test_what_the_hub_took_is_dropped_and_newer_words_stay(memory: RelayMemory) -> None:
    kept = read_receipts("n1", [receipt("n1", 1), receipt("n1", 2)])
    await memory.keep(
        [NodeReport("n1", after(5), runs(B)), NodeReport("n2", after(1), runs(A))], kept
    )
    settled = Settled((kept[0].name,), (("n1", after(4)), ("n2", after(1))))
    await memory.drop(settled)
    await memory.drop(settled)
    assert await memory.waiting() == ((NodeReport("n1", after(5), runs(B)),), kept[1:])


async def test_what_was_learnt_is_known_again(memory: RelayMemory) -> None:
    known = Known()
    for batch in (
        news(channel(1, stable=A), records={"n1": record("n1"), "n2": record("n2")}, cursor=3),
        news(channel(2, stable=B), cursor=4),
        RelayNews(gone=("n2",), cursor=5),
        RelayNews(cursor=6, bundles=trust(7)),
        RelayNews(cursor=7, bundles=trust(6)),
    ):
        known, change = learn(known, batch)
        await memory.learn(change)
    assert await memory.known() == known
    assert known.gone == {"n2"}
    assert known.bundles == trust(7)


def trust(sequence: int) -> Signed:
    return Signed("bundle/1", encode(TrustBundles(sequence, {})), "k", b"s")


async def test_a_second_relay_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    database = open_relay_database(tmp_path / "relay.db")
    with pytest.raises(NeedsPerson, match="in use by another"):
        open_relay_database(tmp_path / "relay.db")
    database.close()


async def test_on_a_full_disk_nothing_is_kept_and_it_says_so(tmp_path: Path) -> None:
    database = open_relay_database(tmp_path / "relay.db")
    memory = SqliteRelayMemory(database)
    pages = database.run_blocking(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    database.run_blocking(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    big = [receipt("n1", number, reason="x" * 900) for number in range(100)]
    with pytest.raises(NeedsPerson, match="disk is full"):
        await memory.keep([NodeReport("n1", after(0), runs(A))], read_receipts("n1", big))
    assert await memory.waiting() == ((), ())
    database.close()
